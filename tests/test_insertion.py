"""Did the quantizers go where the recipe says, and do they run with calibrated ranges?"""

from __future__ import annotations

import pytest

from harness.checks import insertion
from harness.gate.listing import CaseName
from harness.gate.quantized import Quantized
from harness.gate.session import Gate
from harness.pytest_plugin.judge import Judge

pytestmark = pytest.mark.insertion


def test_every_pattern_matches(gate: Gate, case: CaseName, check: Judge) -> None:
    """Every pattern of the recipe names at least one quantizer of the model."""
    check.problems(insertion.every_pattern_matches(gate[case]))


def test_no_pattern_is_overridden(gate: Gate, case: CaseName, check: Judge) -> None:
    """No entry of the recipe is without effect because later ones set again all that it sets."""
    check.problems(insertion.no_pattern_is_overridden(gate[case]))


def test_every_tower_is_covered(
    gate: Gate, case: CaseName, quantized: Quantized, check: Judge
) -> None:
    """Each tower has enabled quantizers at its Linears, patch embedding and attention, or a
    declared reason.
    """
    check.problems(insertion.every_tower_is_covered(gate[case]))


def test_attention_has_its_quantizers(
    gate: Gate, case: CaseName, quantized: Quantized, check: Judge
) -> None:
    """Every attention block has, enabled and running, each quantizer around it that the recipe asks
    for.
    """
    check.problems(insertion.attention_has_its_quantizers(gate[case]))


def test_every_enabled_quantizer_runs(
    gate: Gate, case: CaseName, quantized: Quantized, check: Judge
) -> None:
    """No enabled quantizer is passed by in a forward of every tower."""
    check.problems(insertion.every_enabled_quantizer_runs(gate[case]))


def test_no_quantizer_runs_twice(
    gate: Gate, case: CaseName, quantized: Quantized, check: Judge
) -> None:
    """No tensor is quantized twice in one forward."""
    check.problems(insertion.no_quantizer_runs_twice(gate[case]))


def test_every_static_quantizer_is_calibrated(
    gate: Gate, case: CaseName, quantized: Quantized, check: Judge
) -> None:
    """Every enabled static quantizer has a finite, positive amax."""
    check.problems(insertion.every_static_quantizer_is_calibrated(gate[case]))


def test_quantizers_are_what_the_recipe_says(
    gate: Gate, case: CaseName, quantized: Quantized, check: Judge
) -> None:
    """Each quantizer is on or off, and has the format and granularity, that the last entry matching
    it says.
    """
    check.problems(insertion.quantizers_are_what_the_recipe_says(gate[case]))


def test_ranges_are_those_of_the_data(
    gate: Gate, case: CaseName, quantized: Quantized, check: Judge
) -> None:
    """Each range calibrated by max is the largest magnitude that the calibration data give, bit for
    bit on a CPU.
    """
    check.problems(insertion.ranges_are_those_of_the_data(gate[case]))


def test_nothing_but_quantizers_was_added(
    gate: Gate, case: CaseName, quantized: Quantized, check: Judge
) -> None:
    """With every quantizer off, the quantized model computes what the reference computes."""
    check.problems(insertion.nothing_but_quantizers_was_added(gate[case]))


def test_map_equals_baseline(
    gate: Gate, case: CaseName, quantized: Quantized, check: Judge
) -> None:
    """The quantizer map is the one that was measured and accepted."""
    check.drift(insertion.map_equals_baseline(gate[case]))


def test_structure_of_published_architecture(
    gate: Gate, structure_case: CaseName, check: Judge
) -> None:
    """On the published architecture, without weights, the recipe covers and runs what it does on
    the small model.
    """
    check.problems(
        insertion.structure_of_published_architecture(gate[structure_case], structure_case.model)
    )


def test_rules_of_shape_hold(gate: Gate, architecture_case: CaseName, check: Judge) -> None:
    """On an architecture of --architectures, without weights, sizes, parts and patterns fit."""
    check.problems(insertion.rules_of_shape_hold(gate[architecture_case], architecture_case.model))
