"""The whole gate, given each of ModelOpt's silent failures, fails and names it.

pytest runs inside pytest here: options, collection, fixtures and messages are those that a person
meets.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from written import weights_in

from harness.checks import (
    checkpoint,
    checkpoint_preload,  # noqa: F401  (what is imported first inside a nested pytest is dropped with it)
)
from harness.models import references
from harness.quantization import quantize

ROOT = Path(__file__).parents[3]

RunGate = Any


@pytest.fixture
def run_gate(pytester: pytest.Pytester) -> RunGate:
    """Runs the repository's gate with the given arguments; returns its result."""

    def run(*arguments: str | Path) -> pytest.RunResult:
        head: list[str | Path] = [
            "-p",
            "no:cacheprovider",
            "-c",
            ROOT / "pyproject.toml",
            "--rootdir",
            ROOT,
        ]
        return pytester.runpytest_inprocess(*head, *arguments)

    return run


def suite(name: str) -> Path:
    """A suite of the gate."""
    return ROOT / "tests" / f"test_{name}.py"


def test_s1_preset_that_skips_the_vision_tower(run_gate: RunGate) -> None:
    """S1: ModelOpt's FP8 preset fails insertion because the whole vision tower is untouched."""
    result = run_gate(
        suite("insertion"), "--recipe", "general/ptq/fp8_default-kv_fp8", "-k", "covered"
    )

    assert result.ret == 1
    result.stdout.fnmatch_lines(
        ["*the whole vision tower is unquantized: 0 of * quantizers are enabled.*"]
    )


PUBLISHED = """
FP8 = {
    "quant_cfg": {
        "*weight_quantizer": {"num_bits": (4, 3), "axis": None, "trt_high_precision_dtype": "Half"},
        "*input_quantizer": {"num_bits": (4, 3), "axis": None, "trt_high_precision_dtype": "Half"},
        "*output_quantizer": {"enable": False},
        "*[qkv]_bmm_quantizer": {"num_bits": (4, 3), "axis": None, "trt_high_precision_dtype": "Half"},
        "*bmm2_output_quantizer": {"num_bits": (4, 3), "axis": None, "trt_high_precision_dtype": "Half"},
        "default": {"enable": False},
    },
    "algorithm": "max",
}
"""


def test_s2_published_dict_with_default_last(
    run_gate: RunGate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S2: the published Python dict fails, and the message says which entry turns all the others
    off.
    """
    (tmp_path / "published.py").write_text(PUBLISHED)
    monkeypatch.syspath_prepend(str(tmp_path))

    result = run_gate(suite("insertion"), "--recipe", "published:FP8", "-k", "embedded")

    assert result.ret == 1
    result.stdout.fnmatch_lines(
        ["*turns everything off again*", "*the last one wins: move 'default' to the front*"]
    )


def test_s3_eager_attention(run_gate: RunGate, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3: loaded with eager attention, the four attention quantizers of every block are named as
    never run.
    """
    load = references.load
    monkeypatch.setattr(
        references, "load", lambda ref, device: load(ref, device, attn_implementation="eager")
    )

    result = run_gate(suite("insertion"), "--recipe", "fp8", "-k", "attention or runs")

    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "*28 attention quantizers are enabled and never ran*",
            "*self_attn.*bmm*",
            '*attn_implementation="sdpa"*',
        ]
    )


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ({"hook": False}, "*loaded without a single quantizer*enable_huggingface_checkpointing*"),
        (
            {"attn_implementation": "eager"},
            '*enabled quantizers never run*attn_implementation="sdpa"*',
        ),
        ({"attention": "modelopt"}, "*saved with another attention class*"),
    ],
    ids=["no hook", "eager", "another class"],
)
def test_s5_checkpoint_loaded_the_wrong_way(
    run_gate: RunGate, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any], named: str
) -> None:
    """S5: a load round ModelOpt's hook, with eager attention or with another attention class is
    named.
    """
    restore = checkpoint.restore_in_fresh_process

    def wrongly(folder: Any, form: Any, inputs: Any, loading: Any) -> checkpoint.Restored:
        return restore(folder, form, inputs, dataclasses.replace(loading, **how))

    monkeypatch.setattr(checkpoint, "restore_in_fresh_process", wrongly)

    result = run_gate(suite("checkpoint"), "--recipe", "fp8", "-k", "pretrained")

    assert result.ret == 1
    result.stdout.fnmatch_lines([named])


def test_s7_image_only_calibration(run_gate: RunGate, monkeypatch: pytest.MonkeyPatch) -> None:
    """S7: a calibration that feeds pictures alone leaves the text tower without ranges, and is
    named.
    """

    def images_only(batches: Any) -> quantize.ForwardLoop:
        def loop(model: Any) -> None:
            for batch in batches:
                model.get_image_features(pixel_values=batch["pixel_values"])

        return loop

    monkeypatch.setattr(quantize, "forward_loop_over", images_only)

    result = run_gate(suite("insertion"), "--recipe", "fp8", "-k", "calibrated")

    assert result.ret == 1
    result.stdout.fnmatch_lines(
        ["*enabled static quantizers have no amax and run dynamic (text):*"]
    )


@pytest.mark.parametrize("typo", ["*wieght_quantizer", "*qkv_bmm_quantizer"])
def test_s8_typo_in_a_pattern(run_gate: RunGate, tmp_path: Path, typo: str) -> None:
    """S8: a misspelt pattern fails with the recipe's file and line and what was meant."""
    right = "*weight_quantizer" if "wieght" in typo else "*[qkv]_bmm_quantizer"
    text = (ROOT / "harness" / "recipes" / "library" / "fp8.yaml").read_text()
    recipe = tmp_path / "typo.yaml"
    recipe.write_text(text.replace(right, typo, 1))
    line = recipe.read_text().splitlines().index(f"    - quantizer_name: '{typo}'") + 1

    result = run_gate(suite("insertion"), "--recipe", recipe, "-k", "pattern_matches")

    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [f"*'{typo}' (*typo.yaml:{line})*matches none of*", "*id you mean*_quantizer'*"]
    )


def test_int3_weights_fail_accuracy(run_gate: RunGate, tmp_path: Path) -> None:
    """Weights in three bits lose more than their budget, and the accuracy suite says so."""
    recipe = tmp_path / "int3.yaml"
    recipe.write_text(weights_in(3))

    result = run_gate(suite("accuracy"), "--recipe", recipe, "-k", "budget", "--no-blame")

    assert result.ret == 1
    result.stdout.fnmatch_lines(["emoji100 (acc1): FAIL*", "  emoji/acc1 * FAIL"])


def test_patch_embedding_in_fp16_passes_accuracy(run_gate: RunGate) -> None:
    """The published way to win accuracy back passes under the committed budgets."""
    result = run_gate(suite("accuracy"), "--recipe", "fp8-patch-embedding-fp16", "-k", "budget")

    assert result.ret == 0
    result.assert_outcomes(passed=4)


def test_libraries_around_a_graph_are_looked_at_for_the_report(
    run_gate: RunGate, tmp_path: Path
) -> None:
    """A test of a graph leaves in the results what the runtime's optimisations make of it and what
    ModelOpt's own export does; no test is about either.
    """
    result = run_gate(
        suite("export"),
        "--recipe",
        "int8",
        "-k",
        "runtime_computes and text",
        "--gate-report",
        tmp_path / "report",
    )

    result.assert_outcomes(passed=1, deselected=result.parseoutcomes()["deselected"])
    (case,) = json.loads((tmp_path / "report" / "results.json").read_text())["cases"]
    assert case["export"]["optimized"].keys() == case["export"]["parity"].keys() == {"text"}
    assert "published" in case["export"]
