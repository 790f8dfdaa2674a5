"""Does quantization-aware training win back what a recipe lost?  (``pytest -m qat``)"""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.checks import checkpoint
from harness.gate.gate import Case, Gate
from harness.pytest_plugin.plugin import Check

pytestmark = pytest.mark.qat


def test_loss_is_won_back(gate: Gate, trained_case: Case, check: Check) -> None:
    """On every metric on which the recipe does not pass, the fine-tuned model is better by the paired test."""
    found = gate.gains(trained_case)
    if not found:
        pytest.skip(f"{trained_case.id} passes on every task: there is nothing to win back")
    check.problems([gain for gain in found if not gain.shown], "not won back by fine-tuning:")


def test_calibration_did_not_move(gate: Gate, trained_case: Case, check: Check) -> None:
    """The quantizer map after training is the one before it, ranges by bits."""
    check.problems(gate.moved_ranges(trained_case), "changed by fine-tuning:")


@pytest.mark.parametrize("form", checkpoint.FORMS)
def test_trained_model_is_restored(
    gate: Gate, trained_case: Case, form: checkpoint.Form, tmp_path: Path, check: Check
) -> None:
    """The fine-tuned model comes back in a fresh process with the same map, weights and bits."""
    model = gate.trained(trained_case).model
    check.problems(gate.checkpoint_problems(trained_case, form, tmp_path / form, model))
