"""Blame finds the poisonous layer and prints a patch that, applied, passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from unittest import mock

import pytest
import yaml

from harness.data.tasks import Task
from harness.diagnosis import blame
from harness.diagnosis.blame import Blame
from harness.gate.case import Case
from harness.gate.options import Options
from harness.gate.session import Gate
from harness.quantization import maps
from harness.quantization.maps import QuantizerMap
from harness.recipes.loading import Entry, Recipe
from harness.statistics.verdicts import Decision

POISON = "*vision_model.encoder.layers.2.mlp.*_quantizer"


@pytest.fixture(scope="module")
def gate() -> Gate:
    """A gate on the published recipe, one layer of it made two bits wide."""
    poisoned_gate = Gate(Options(recipes=("fp8",), tasks=("emoji100",)))
    case = poisoned_gate.cases()[0]
    recipe = case.recipe
    poison = {"quantizer_name": POISON, "cfg": {"num_bits": 2, "axis": None}}
    off = {
        "quantizer_name": "*vision_model.encoder.layers.2.mlp.*output_quantizer",
        "enable": False,
    }
    cfg = dict(recipe.quant_cfg) | {"quant_cfg": [*recipe.quant_cfg["quant_cfg"], poison, off]}
    entries = (*recipe.entries, Entry(POISON, None, True, {"num_bits": 2}, f"{recipe.path}:90"))
    poisoned = dataclasses.replace(recipe, name="poisoned", quant_cfg=cfg, entries=entries)
    case.recipe = poisoned
    return poisoned_gate


@pytest.fixture(scope="module")
def case(gate: Gate) -> Case:
    """The one case of the gate."""
    return gate.cases()[0]


@pytest.fixture(scope="module")
def blamed(gate: Gate, case: Case) -> Blame:
    """What blame says of it, however slow this machine is."""
    with mock.patch.object(blame, "LIMIT", 3600.0):
        return blame.of_case(case, "emoji100", "acc1")


def few_pairs(case: Case) -> Task:
    """The calibration pairs that blame would rank on."""
    task = blame.pairs_task(case.calibration)
    assert task is not None
    return task


def ranked_on_pairs(
    case: Case, holds: Callable[[Recipe, float], bool], limit: float = blame.LIMIT
) -> Blame:
    """Blame on a few calibration pairs of *case*."""
    return blame.find(
        case.quantized.reference.model,
        case.quantized.model,
        case.map,
        case.quantized.recipe,
        few_pairs(case),
        "text_retrieval_recall@5",
        holds,
        limit=limit,
    )


def test_poison_fails(gate: Gate, case: Case) -> None:
    """The poisoned recipe does not pass: there is something to blame."""
    assert case.verdicts.decision is not Decision.PASS


def test_poisonous_layer_is_blamed(blamed: Blame) -> None:
    """The poisonous layer ranks first and is the whole set."""
    assert blamed.ranking[0].group.name == "vision_model.encoder.layers.2.mlp linear"
    assert [g.name for g in blamed.culprits] == ["vision_model.encoder.layers.2.mlp linear"]
    assert blamed.verified


def test_printed_patch_passes(gate: Gate, case: Case, blamed: Blame) -> None:
    """The patch, read as YAML and appended to the recipe, passes every budget after calibrating
    again.
    """
    entries = yaml.safe_load(blamed.patch)
    assert all(entry["enable"] is False for entry in entries)
    recipe = case.recipe
    cfg = dict(recipe.quant_cfg) | {"quant_cfg": [*recipe.quant_cfg["quant_cfg"], *entries]}

    assert blame.holds(case, dataclasses.replace(recipe, quant_cfg=cfg))


def test_model_is_left_as_it_was(gate: Gate, case: Case, blamed: Blame) -> None:
    """Measuring switches quantizers and puts every one back."""
    assert blamed.seconds > 0
    again = maps.quantizer_map(case.quantized.model, lambda m: m(**case.quantized.inputs))

    assert maps.diff(case.map, again, amax_tolerance=0.0) == []


def test_message_shows_table_and_patch(blamed: Blame) -> None:
    """A person gets the ranking, what was verified and the lines to paste."""
    text = blamed.message()

    assert "off" in text
    assert "verified by a full evaluation" in text
    assert "enable: false" in text


@pytest.fixture(scope="module")
def fp8_map(gate: Gate, case: Case) -> QuantizerMap:
    """The map of the case."""
    return case.map


def test_patterns_name_a_group_and_nothing_else(fp8_map: QuantizerMap) -> None:
    """Each group's patterns match its own enabled quantizers and no others."""
    import fnmatch

    enabled = [q.name for q in fp8_map if q.enabled]
    for group in blame.groups(fp8_map):
        matched = {n for n in enabled for p in group.patterns if fnmatch.fnmatchcase(n, p)}

        assert matched == set(group.quantizers), group.name


def test_groups_divide_the_enabled_quantizers(fp8_map: QuantizerMap) -> None:
    """Every enabled quantizer is in exactly one group."""
    names = [n for g in blame.groups(fp8_map) for n in g.quantizers]

    assert sorted(names) == sorted(q.name for q in fp8_map if q.enabled)


def test_time_limit_is_kept(gate: Gate, case: Case) -> None:
    """With no time left nothing is measured, and the note says how far it came."""
    never: Callable[[Recipe, float], bool] = lambda *_: pytest.fail("evaluated past the limit")  # noqa: E731

    blame_result = ranked_on_pairs(case, never, limit=-1.0)

    assert not blame_result.verified
    assert blame_result.patch == ""
    assert "0 of" in blame_result.note


def test_every_try_has_its_share_of_alpha(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many sets are tried and pruned, their shares of alpha are at most one together; the
    note says so.
    """
    monkeypatch.setattr(blame, "RANKED_ON", 16)
    three = blame.groups(case.map)[:3]
    monkeypatch.setattr(blame, "groups", lambda _: three)
    shares: list[float] = []

    def holds(recipe: Recipe, share: float) -> bool:
        shares.append(share)
        return sum(1 for entry in recipe.entries if entry.origin == "patch") > 2

    blame_result = ranked_on_pairs(case, holds)
    assert blame_result.task == "calibration pairs"
    assert shares == [0.5**number for number in range(1, len(shares) + 1)]
    assert len(shares) >= 3
    assert f"{len(shares)} sets were tried, set k at alpha / 2^k" in blame_result.note


def test_a_share_of_alpha_is_what_the_verdicts_use(case: Case) -> None:
    """A case is judged at the share of every budget's alpha that it is given."""
    judged = case.judged(case.reference_runs, case.reference_runs, alpha_share=0.25)
    assert [verdict.budget.alpha for verdict in judged] == [
        0.25 * case.budget(verdict.task, verdict.metric).alpha for verdict in judged
    ]


def test_spread_loss_gets_no_patch(gate: Gate, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no small set wins the budget back, no patch is printed and the note says so."""
    monkeypatch.setattr(blame, "RANKED_ON", 64)
    blame_result = ranked_on_pairs(case, lambda *_: False)

    assert not blame_result.verified
    assert blame_result.patch == ""
    assert "spread over the model" in blame_result.note


def test_patched_python_recipe_keeps_its_form(gate: Gate, case: Case) -> None:
    """A recipe in the dict form gets the patch as further keys, last."""
    recipe = dataclasses.replace(
        case.recipe, quant_cfg={"quant_cfg": {"*": {"enable": False}}, "algorithm": "max"}
    )
    group = blame.groups(case.map)[0]

    cfg = blame.patched(recipe, [group]).quant_cfg["quant_cfg"]

    assert list(cfg)[-len(group.patterns) :] == list(group.patterns)


@pytest.mark.parametrize(
    ("entry", "reported"),
    [
        (
            {"quantizer_name": "*", "enable": False},
            "ModelOpt refused recipe poisoned: RuntimeError: ",
        ),
        (
            {"quantizer_name": "*input_quantizer", "cfg": {"num_bits": 8, "axis": 0}},
            "the model that recipe poisoned quantizes does not run: ",
        ),
    ],
    ids=["refused", "forward"],
)
def test_a_patched_recipe_that_does_not_run_is_not_a_fix(
    case: Case, monkeypatch: pytest.MonkeyPatch, entry: dict[str, object], reported: str
) -> None:
    """A set whose patched recipe ModelOpt refuses, or whose model raises, is named in the note;
    blame goes on.
    """
    monkeypatch.setattr(blame, "RANKED_ON", 16)
    two = blame.groups(case.map)[:2]
    monkeypatch.setattr(blame, "groups", lambda _: two)

    def holds(recipe: Recipe, share: float) -> bool:
        cfg = dict(recipe.quant_cfg) | {"quant_cfg": [*recipe.quant_cfg["quant_cfg"], entry]}
        return blame.holds(case, dataclasses.replace(recipe, quant_cfg=cfg))

    blame_result = ranked_on_pairs(case, holds)

    assert not blame_result.verified
    assert "2 sets tried" in blame_result.note
    assert (
        f"2 of these sets cannot be left out: without {blame_result.ranking[0].group.name}, {reported}"
        in blame_result.note
    )
