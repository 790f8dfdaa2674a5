"""What a message of the insertion suite or of the comparison with the recipe proposes is done, and
the failure goes.

Everything is looked at on the embedded architecture without weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from pathlib import Path

import pytest
import written
import yaml
from torch import nn
from written import DENY_ALL, entry

from harness.checks import agreement, insertion
from harness.models import architectures, families
from harness.problems import Problem
from harness.quantization import maps, quantize
from harness.recipes import patterns
from harness.recipes.loading import Recipe, load

LINEARS = entry("*weight_quantizer", "num_bits: 8, axis: 0") + entry(
    "*input_quantizer", "num_bits: 8"
)
AROUND = entry("*[qkv]_bmm_quantizer", "num_bits: e4m3") + entry(
    "*bmm2_output_quantizer", "num_bits: e4m3"
)
WHOLE = DENY_ALL + LINEARS + AROUND
Entries = list[dict[str, object]]


@pytest.fixture(scope="module")
def blank() -> nn.Module:
    """The embedded architecture."""
    return architectures.build("embedded")


@pytest.fixture
def problems_of(blank: nn.Module, tmp_path: Path) -> Callable[..., list[Problem]]:
    """What the insertion suite says of a recipe's entries (YAML, or read from it) on the
    architecture.
    """

    def look(
        entries: str | Entries,
        attention: str = "diffusers",
        left_out: Collection[tuple[str, str]] = (),
    ) -> list[Problem]:
        recipe = written.recipe(tmp_path, entries if isinstance(entries, str) else lines(entries))
        quantizers = maps.quantizer_map(quantize.structure(blank, recipe, attention))
        absent, hidden = families.of(blank).absent, families.hidden_in(blank)
        return insertion.check(
            quantizers, recipe, left_out=left_out, calibrated=False, hidden=hidden, absent=absent
        )

    return look


def lines(entries: Entries) -> str:
    """The lines of a recipe for *entries*."""
    return "".join(
        f"  - {yaml.safe_dump(item, default_flow_style=True, width=1000).strip()}\n"
        for item in entries
    )


def read(text: str) -> Entries:
    """The entries in a recipe's lines."""
    entries: Entries = yaml.safe_load(text)
    return entries


def off(pattern: str) -> str:
    """A line that turns off what *pattern* matches."""
    return f"  - {{quantizer_name: '{pattern}', enable: false}}\n"


def test_a_recipe_to_start_from_has_no_problem(problems_of: Callable[..., list[Problem]]) -> None:
    """Otherwise the tests below would show nothing."""
    assert problems_of(WHOLE) == []


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("*wieght_quantizer", "*weight_quantizer"),
        ("*Mlp*input_quantizer", "*mlp*input_quantizer"),
        ("vision_model.encoder.layers.{0..3}.mlp.*", "vision_model.encoder.layers.[0-3].mlp.*"),
        ("*self_attn.{q,k}_proj.*", "*self_attn.[q,k]_proj.*"),
        ("vision_model.layers.0.mlp.*", "vision_model.encoder.layers.0.mlp.*"),
        ("vision_model.layers.{0..1}.mlp.*", "vision_model.encoder.layers.[0-1].mlp.*"),
        ("fc1.weight_quantizer", "*fc1.weight_quantizer"),
        ("*fc1.weight_quantizer.1", "*fc1.weight_quantizer"),
        ("*fc1.wieght_quantizer", "*fc1.weight_quantizer"),
    ],
)
def test_the_pattern_that_was_meant_matches(
    problems_of: Callable[..., list[Problem]], pattern: str, meant: str
) -> None:
    """The proposed pattern, written in the place of the one that matches nothing, matches."""
    (problem,) = problems_of(WHOLE + off(pattern))
    (proposed,) = re.findall(r"Did you mean '(.*?)'\?", problem.fix)

    assert problem.rule == "pattern matches nothing"
    assert "matches none of the" not in "".join(map(str, problems_of(WHOLE + off(proposed))))
    assert set(re.sub(r"[\[\],]", "", proposed)) == set(re.sub(r"[\[\],]", "", meant))


@pytest.mark.parametrize(
    ("entries", "attention", "instead"),
    [
        (WHOLE, "modelopt", "diffusers"),
        (
            DENY_ALL + LINEARS + entry("*[qkv]_bmm_quantizer", "num_bits: e4m3"),
            "modelopt",
            "modelopt",
        ),
    ],
)
def test_the_attention_class_that_is_named_has_the_quantizer(
    problems_of: Callable[..., list[Problem]], entries: str, attention: str, instead: str
) -> None:
    """``--attention diffusers`` for the output quantizer; without the pattern ModelOpt's own class
    will do.
    """
    if attention != instead:
        assert all(
            f"--attention {instead}" in problem.fix for problem in problems_of(entries, attention)
        )
        assert problems_of(entries, attention)
    assert problems_of(entries, instead) == []


def test_what_no_attention_class_runs_is_removed(problems_of: Callable[..., list[Problem]]) -> None:
    """ModelOpt's own class has a quantizer for the probabilities, and it never runs: that class is
    not the fix.
    """
    asked = DENY_ALL + LINEARS + entry("*[qkv]_bmm_quantizer", "num_bits: e4m3")
    (problem,) = problems_of(asked + AROUND + entry("*p_bmm_quantizer", "num_bits: e4m3"))[:1]

    assert problem.fix.startswith("Remove the entry")
    assert problems_of(asked + entry("*p_bmm_quantizer", "num_bits: e4m3"), "modelopt") != []
    assert problems_of(WHOLE) == []


@pytest.mark.parametrize("kind", ["softmax"])
def test_what_never_runs_is_turned_off(
    problems_of: Callable[..., list[Problem]], kind: str
) -> None:
    """The entry that the message gives, put at the end, leaves no problem."""
    asked = WHOLE + entry(f"*{kind}_quantizer", "num_bits: e4m3")
    message = {
        line
        for problem in problems_of(asked)
        for line in re.findall(r"end the recipe with (\{.*?\})", problem.fix)
    }

    assert len(message) == 1
    assert problems_of(f"{asked}  - {message.pop()}\n") == []


def test_a_deny_all_is_moved_to_the_front(
    problems_of: Callable[..., list[Problem]], blank: nn.Module, tmp_path: Path
) -> None:
    """ModelOpt refuses such a recipe; the message says where ``*`` goes, and there it is
    accepted.
    """
    entries = read(LINEARS + AROUND + DENY_ALL)
    recipe = written.recipe(tmp_path, lines(entries))

    quantizers = maps.quantizer_map(quantize.insert(blank))
    (problem,) = patterns.overridden_patterns(quantizers, recipe)

    assert re.search(r"move '\*' to the front, before '\*weight_quantizer'", problem.fix)
    assert problems_of([entries[-1], *entries[:-1]]) == []


def test_an_exception_is_moved_behind_what_it_excepts(
    problems_of: Callable[..., list[Problem]],
) -> None:
    """Behind the entry that the message numbers it has its effect."""
    entries = read(DENY_ALL + off("*layers.0.*") + LINEARS + AROUND)
    (problem,) = problems_of(entries)
    behind = int(re.findall(r"behind entry (\d+)", problem.fix)[0])

    moved = [*entries[:1], *entries[2:behind], entries[1], *entries[behind:]]
    assert problems_of(moved) == []
    assert problems_of([*entries[:1], *entries[2:]]) == []


def test_one_of_two_entries_for_the_same_is_removed(
    problems_of: Callable[..., list[Problem]],
) -> None:
    """Either of the two that the message numbers."""
    again = entry("*weight_quantizer", "num_bits: e4m3")
    entries = read(DENY_ALL + LINEARS + again + AROUND)
    (problem,) = problems_of(entries)
    numbers = [int(n) for n in re.findall(r"entry (\d+)", problem.fix)]

    assert numbers == [2, 4]
    for number in numbers:
        assert problems_of([*entries[: number - 1], *entries[number:]]) == []


def test_what_stays_unquantized_is_declared_or_enabled(
    problems_of: Callable[..., list[Problem]],
) -> None:
    """The tower and the kinds that the message gives are what the budgets file takes."""
    without = WHOLE + off("vision_model.embeddings.patch_embedding.*")
    (problem,) = problems_of(without)
    ((tower, kinds),) = re.findall(r"budgets file that (\w+) (.*?) stays as it is", problem.fix)

    assert problems_of(without, left_out={(tower, kind) for kind in kinds.split(", ")}) == []
    assert problems_of(WHOLE) == []


def test_attention_is_quantized_whole_or_not_at_all(
    problems_of: Callable[..., list[Problem]],
) -> None:
    """Enable the rest, disable the others, or declare it: each of the three is enough."""
    part = DENY_ALL + LINEARS + entry("*bmm2_output_quantizer", "num_bits: e4m3")
    problems = problems_of(part)

    assert ["enable these, or disable the others" in problem.fix for problem in problems] == [True]
    assert problems_of(part + entry("*[qkv]_bmm_quantizer", "num_bits: e4m3")) == []
    declared = {("vision", "attention"), ("text", "attention")}
    assert problems_of(part, left_out=declared) == []
    assert problems_of(DENY_ALL + LINEARS, left_out=declared) == []


def disagreements(blank: nn.Module, recipe: Recipe) -> set[str]:
    """The rules by which a model without weights is not what its recipe says; that it computes
    nothing is known.
    """
    problems = agreement.with_recipe(quantize.structure(blank, recipe), recipe)
    return {problem.rule for problem in problems} - {"enabled and passed through"}


@pytest.mark.parametrize(
    ("entries", "rule", "corrected"),
    [
        (LINEARS, "on without being asked for", DENY_ALL + LINEARS),
        (
            DENY_ALL + LINEARS + entry("*token_embedding.input_quantizer", "num_bits: 8"),
            "enables what stays off",
            DENY_ALL + LINEARS,
        ),
    ],
)
def test_what_is_not_as_the_recipe_says(
    blank: nn.Module, tmp_path: Path, entries: str, rule: str, corrected: str
) -> None:
    """A deny-all entry in front, or the entry removed, as the message says."""
    assert disagreements(blank, written.recipe(tmp_path, entries)) == {rule}
    assert disagreements(blank, written.recipe(tmp_path, corrected)) == set()


def test_the_default_key_of_a_dict_is_moved_to_the_front(
    blank: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published dict ends in ``default``, which turns everything off; in front it does what was
    meant.
    """
    body = "{'*weight_quantizer': {'num_bits': 8, 'axis': 0}, '*input_quantizer': {'num_bits': 8}}"
    text = f"BODY = {body}\nOFF = {{'default': {{'enable': False}}}}\n"
    text += "LAST = {'quant_cfg': BODY | OFF, 'algorithm': 'max'}\nFIRST = {'quant_cfg': OFF | BODY, 'algorithm': 'max'}\n"
    (tmp_path / "published_for_fixes.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))

    quantizers = maps.quantizer_map(quantize.insert(blank))
    (problem,) = patterns.overridden_patterns(quantizers, load("published_for_fixes:LAST"))

    assert problem.fix.endswith("move 'default' to the front, before '*weight_quantizer'.")
    assert patterns.overridden_patterns(quantizers, load("published_for_fixes:FIRST")) == []
