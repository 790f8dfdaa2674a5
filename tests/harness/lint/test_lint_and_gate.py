"""The lint against what it was recorded from and what it stands for: ModelOpt's schema, and the
gate.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from bad_recipes import CORPUS, EDITS, RECIPE

from harness.errors import UsageError
from harness.lint import rules
from harness.lint.known import installed
from harness.lint.recorded import Recorded
from harness.lint.run import lint
from harness.models import architectures
from harness.quantization import maps, quantize
from harness.quantization.maps import QuantizerMap
from harness.recipes import algorithms, judged, patterns, schema
from harness.recipes.loading import Entry, Recipe, load_file
from harness.tools import known

NOW = installed()
pytestmark = pytest.mark.skipif(
    metadata.version("nvidia-modelopt") != NOW.version,
    reason=f"the lint knows the schemas of {NOW.version}",
)
OFF = "{quantizer_name: '*', enable: false}"


# -- what was recorded -----------------------------------------------------------------------------


def test_the_recorded_schemas_are_those_of_the_installed_modelopt() -> None:
    """If this fails: python -m harness.tools.known, and look at the difference."""
    fresh = known.schemas() | {"words": known.words()}

    assert {key: NOW.data[key] for key in fresh} == fresh


@pytest.mark.parametrize(
    "name", ["embedded", "SigLIP-B-16-224", "SigLIP2-B-16-naflex", "open_clip-ViT-B-16"]
)
def test_the_recorded_quantizers_are_those_that_modelopt_inserts(name: str) -> None:
    """One architecture of each family; if this fails: python -m harness.tools.known."""
    assert NOW.data["architectures"][name] == known.architecture(name)
    assert list(NOW.data["architectures"]) == sorted(known.names())


def refused(check: Callable[[Any, str], object], value: Any) -> bool:
    """Whether *check* raises a usage error."""
    try:
        check(value, "r.yaml:1")
    except UsageError:
        return True
    return False


ENTRIES: tuple[Any, ...] = (
    {"quantizer_name": "*", "enable": False},
    {"quantizer_name": "*", "enable": "no"},
    {"quantizer_name": "*", "enable": "maybe"},
    {"quantizer_name": "*"},
    {"quantizer_name": "*", "cfg": {}},
    {"quantizer_name": "*", "cfg": {}, "enable": False},
    {"quantizer_name": "*", "cfg": []},
    {"quantizer_name": "*", "cfg": None},
    {"quantizer_name": "*", "cfg": 8},
    {"quantizer_name": "*", "cfg": {"enable": True}},
    {"quantizer_name": 8, "enable": False},
    {"quantizer_name": "*", "parent_class": "nn.Linear", "enable": True},
    {"quantizer_name": "*", "parent_class": "nn.Linaer", "enable": True},
    {"quantizer_name": "*", "parent_class": ["nn.Linear"], "enable": True},
    {"*": {"enable": False}},
    {"default": {"enable": False}},
    {"*": {"num_bits": 8, "axis": None}},
    {"nn.Linear": {"*": {"enable": False}}},
    {"*": {"num_bits": 8}, "*q*": {"num_bits": 8}},
    {},
    "*",
    *(
        {"quantizer_name": "*", "cfg": cfg}
        for cfg in (
            {"num_bits": 8},
            {"num_bits": "8"},
            {"num_bits": 8.5},
            {"num_bits": (4, 3)},
            {"num_bits": [4, 3]},
            {"num_bits": (4, 4)},
            {"num_bits": (4, 3, 1)},
            {"num_bits": (5, 2)},
            {"num_bits": (3, 2), "block_sizes": {-1: 32, "type": "dynamic", "scale_bits": (8, 0)}},
            {"num_bits": (2, 1), "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}},
            {"num_bits": 0},
            {"num_bits": 8, "axis": 0},
            {"num_bits": 8, "axis": [0, 1]},
            {"num_bits": 8, "axis": "0"},
            {"num_bits": 8, "axis": "x"},
            {"num_bits": 8, "axis": 0, "block_sizes": {-1: 16}},
            {"num_bits": 4, "block_sizes": {-1: 128, "type": "static"}},
            {"num_bits": 4, "block_sizes": {-1: 128, "kind": "static"}},
            {"num_bits": 4, "block_sizes": {-1: "x"}},
            {"num_bits": 8, "type": "dynamic"},
            {"num_bits": 8, "type": "dynamical"},
            {"num_bits": 8, "unsigned": "yes"},
            {"num_bits": 8, "learn_amax": True},
            {"num_bits": 8, "calibrator": "max"},
            {"num_bits": 8, "calibrator": "mean"},
            {"num_bits": 8, "constant_amax": 2.0},
            {"num_bits": 8, "constant_amax": -1},
            {"num_bits": 8, "constant_amax": 2.0, "use_constant_amax": True},
            {"num_bits": 8, "trt_high_precision_dtype": "Half"},
            {"num_bits": 8, "trt_high_precision_dtype": "half"},
            {"num_bitz": 8},
            [{"num_bits": 4, "block_sizes": {-1: 128}}, {"num_bits": 8}],
            [{"num_bits": 4, "blocks": {-1: 128}}, {"num_bits": 8}],
        )
    ),
)


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_an_entry_is_refused_where_modelopt_refuses_it(entry: Any) -> None:
    """What the lint knows of ModelOpt's schema and validators decides as they do."""
    recorded = Recorded(NOW)

    entries = recorded.entries(entry, "r.yaml:1")

    assert bool(recorded.problems) == refused(schema.check_entry, entry)
    assert recorded.problems or [entry_[:3] for entry_ in entries] == [
        entry_[:3] for entry_ in schema.check_entry(entry, "r")
    ]


@pytest.mark.parametrize(
    ("algorithm", "is_right"),
    [
        ("max", True),
        (None, True),
        ("mse", True),
        ("maxx", False),
        (7, False),
        (["max", "mse"], True),
        (["max"] * 9, False),
        ({"method": None}, True),
        ({"method": "max", "layerwise": None}, True),
        ({"method": "max", "layerwise": {"enable": True}}, True),
        ({"method": "max", "layerwise": True}, False),
        ({"method": "max", "layerwise": {"on": True}}, False),
        ({"alpha": 1}, False),
        ({"method": "smoothquant", "alpha": 0.5}, True),
        ({"method": "smoothquant", "alpha": 2.0}, False),
        ({"method": "smoothquant", "alpha": "0.5"}, True),
        ({"method": "smoothquant", "alpha": "2.0"}, False),
        ({"method": "awq_lite", "alpha_step": "1e-9"}, False),
        ({"method": "smoothquant", "alpha": None}, False),
        ({"method": "smoothquant", "alpha": float("nan")}, False),
        ({"method": "awq_lite", "alpha_step": 1e-9}, False),
        ({"method": "svdquant", "lowrank": 10**6}, False),
        ({"method": "gptq", "block_size": 0}, False),
        ({"method": "mse", "start_multiplier": 9.0}, False),
        ({"method": "max", "shared_states": {"x": {"patterns": ["(a*)*"]}}}, False),
    ],
    ids=str,
)
def test_an_algorithm_is_refused_where_the_gate_refuses_it(algorithm: Any, is_right: bool) -> None:
    """Methods, their settings, and what the gate cannot run."""
    recorded = Recorded(NOW)

    assert refused(algorithms.check, algorithm) != is_right
    assert (refused(recorded.algorithm, algorithm) or bool(recorded.problems)) != is_right


# -- the gate --------------------------------------------------------------------------------------


#: Rules of the lint that are no line of the recipe's to the gate without a model: quantizers that
#: run as INT8, towers without any and blocks that are padded are seen in the quantized model, and
#: a recipe whose algorithm names files is not gated at all.
NOT_BY_LINE = {"no-deny-all", "nothing-on", "block-size", "files"}


def of_gate(path: Path, places: QuantizerMap) -> set[int]:
    """The lines on which the gate finds a problem of a recipe by its text and the *places* of
    quantizers alone.
    """
    try:
        recipe = load_file(path, path.parent)
    except UsageError as error:
        return {getattr(item.where, "line", 1) for item in getattr(error, "errors", (error,))}
    problems = patterns.unmatched_patterns(places, recipe)
    problems += patterns.overridden_patterns(places, recipe)
    return {int(item.place.split(":")[-2]) for item in problems}


@pytest.mark.parametrize(
    "path",
    [
        file for file in sorted(CORPUS.iterdir()) if file.stem != "schema-function"
    ],  # a snippet, which no gate loads
    ids=lambda path: path.stem,
)
def test_a_hostile_file_is_refused_on_the_line_on_which_the_gate_refuses_it(path: Path) -> None:
    """The first problem of a file is what a run of the gate says, in the same words."""
    with pytest.raises(UsageError) as refused:
        load_file(path, CORPUS)
    error = refused.value
    line = getattr(error.where, "line", 1)

    outcome = lint([path], CORPUS)

    reported = [(file.line, file.what) for file in outcome.problems if file.level == "error"]
    reported += [
        (getattr(file.where, "line", 1), file.what.rstrip(".")) for file in outcome.unreadable
    ]
    assert (line, error.what.rstrip(".")) in reported
    assert {line for line, _ in reported} == of_gate(path, ())


@pytest.fixture(scope="module")
def places() -> QuantizerMap:
    """Where the embedded model has places for quantizers."""
    return maps.quantizer_map(quantize.insert(architectures.build("embedded")))


WEIGHTS = "{quantizer_name: '*weight_quantizer', cfg: {num_bits: 8}}"
INPUTS = "{quantizer_name: '*input_quantizer', cfg: {num_bits: 8}}"


@pytest.mark.parametrize(
    "entries",
    [
        [OFF, WEIGHTS, INPUTS],
        [WEIGHTS, INPUTS, OFF],
        [WEIGHTS, OFF, INPUTS],
        [OFF, WEIGHTS.replace("weight", "wieght"), INPUTS],
        [OFF, WEIGHTS, INPUTS.replace("*input", "*fc1.inptu")],
        [OFF, WEIGHTS, "{quantizer_name: '*layers.{0..1}.*', enable: false}"],
        [OFF, "{quantizer_name: '*fc1*', enable: false}", WEIGHTS, INPUTS],
        [OFF, WEIGHTS, INPUTS, "{quantizer_name: '*fc1*', enable: false}"],
        [OFF, "{quantizer_name: '*fc1.weight_quantizer', cfg: {num_bits: 4}}", WEIGHTS],
        [OFF, WEIGHTS, "{quantizer_name: '*weight_quantizer', cfg: {num_bits: 4}}"],
        [OFF, WEIGHTS, "{quantizer_name: '*', parent_class: nn.Linear, enable: false}"],
        [OFF, "{quantizer_name: '*weight_quantizer.0', cfg: {num_bits: 4}}", WEIGHTS],
        [
            OFF,
            "{quantizer_name: '*weight_quantizer', cfg: [{num_bits: 4}, {num_bits: 8}]}",
            "{quantizer_name: '*weight_quantizer.1', enable: false}",
        ],
        [
            OFF,
            WEIGHTS,
            "{quantizer_name: 'text_model*', enable: false}",
            "{quantizer_name: '*lm_hd*', enable: false}",
        ],
    ],
    ids=str,
)
def test_entries_without_effect_are_those_that_the_gate_reports(
    entries: list[str], places: QuantizerMap, tmp_path: Path
) -> None:
    """Patterns without a match and overridden entries: the same rule on the same lines, with and
    without a model.
    """
    path = tmp_path / "r.yaml"
    body = "".join(f"  - {entry}\n" for entry in entries)
    path.write_text(f"metadata: {{recipe_type: ptq}}\nquantize:\n  quant_cfg:\n{body}")
    recipe = load_file(path, tmp_path)
    problems = patterns.unmatched_patterns(places, recipe) + patterns.overridden_patterns(
        places, recipe
    )
    expected = sorted(
        (
            entry.origin.rpartition(":")[2],
            "no-match" if problem.rule == patterns.NO_MATCH else "overridden",
        )
        for problem in problems
        for entry in recipe.entries
        if f"({entry.origin})" in problem.what
    )

    outcome = lint([path], tmp_path)

    assert (
        sorted(
            (str(problem.line), problem.rule)
            for problem in outcome.problems
            if problem.level == "error"
        )
        == expected
    )


@pytest.mark.parametrize(("old", "new", "line", "column", "rule", "says"), EDITS)
def test_an_edit_is_a_problem_for_the_gate_where_it_is_one_for_the_lint(
    old: str,
    new: str,
    line: int,
    column: int,
    rule: str,
    says: str,
    places: QuantizerMap,
    tmp_path: Path,
) -> None:
    """As far as no model is needed, both report the same lines: no more and no fewer."""
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE.replace(old, new, 1))

    assert of_gate(path, places) == (set() if rule in NOT_BY_LINE else {line})
    assert {problem.line for problem in lint([path]).problems if problem.level == "error"} == {line}


LINES = """metadata: {recipe_type: ptq}
quantize:
  algorithm:
    method: smoothquant
    alpha: 0.5
  quant_cfg:
  - quantizer_name: '*'
    enable: false
  - quantizer_name: '*weight_quantizer'
    parent_class: nn.Linear
    cfg:
      num_bits: 8
      axis: 0
"""


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("alpha: 0.5", "alpha: 7.0", 5),
        ("alpha: 0.5", "alpa: 0.5", 5),
        ("nn.Linear", "nn.Linaer", 10),
        ("num_bits: 8", "num_bits: 17", 12),
        ("num_bits: 8", "num_bits: fp8", 12),
        ("num_bits: 8", "num_bits: [4, 4]", 12),
        ("num_bits: 8", "num_bitz: 8", 12),
        ("axis: 0", "axis: [x]", 13),
        ("axis: 0", "axes: 0", 13),
        ("axis: 0", "block_sizes: {-1: 0}", 13),
        ("axis: 0", "calibrator: mean", 13),
        ("enable: false", "enable: maybe", 8),
        ("enable: false", "enabled: false", 8),
    ],
)
def test_the_gate_names_the_line_of_the_value_as_the_lint_does(
    tmp_path: Path, old: str, new: str, line: int
) -> None:
    """What is wrong has one place: the line of the value, not of its entry."""
    path = tmp_path / "r.yaml"
    path.write_text(LINES.replace(old, new))

    with pytest.raises(UsageError) as refused:
        load_file(path, tmp_path)

    assert getattr(refused.value.where, "line", None) == line
    assert line in [
        problem.line for problem in lint([path], tmp_path).problems if problem.level == "error"
    ]


EXPERTS = "{{quantizer_name: '*{word}*{kind}_quantizer', cfg: {{num_bits: 8}}}}"


@pytest.mark.parametrize(
    ("word", "rule"), [("block_sparse_moe.experts", "other-family"), ("layres", "no-match")]
)
def test_a_recipe_for_another_family_is_one_for_both(
    places: QuantizerMap, tmp_path: Path, word: str, rule: str
) -> None:
    """Patterns of a mixture of experts are of another family for the lint and not gated by the
    gate; misspelt ones are refused by both.
    """
    path = tmp_path / "r.yaml"
    entries = [OFF, *(EXPERTS.format(word=word, kind=kind) for kind in ("weight", "input"))]
    body = "".join(f"  - {entry}\n" for entry in entries)
    path.write_text(f"metadata: {{recipe_type: ptq}}\nquantize:\n  quant_cfg:\n{body}")
    recipe, families = load_file(path, tmp_path), rules.families_here()
    is_other = rule == "other-family"

    def for_others(part: Recipe, entry: Entry) -> bool:
        return rules.is_for_others(part, entry, families)

    reason = judged.not_gated(recipe, "cpu", known=families.names)
    problems = patterns.unmatched_patterns(places, recipe, others=for_others)

    assert {problem.rule for problem in lint([path], tmp_path).problems} == {rule}
    assert ("another family of model" in (reason or "")) == is_other
    assert bool(problems) != is_other
