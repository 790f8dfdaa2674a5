"""Does quantization-aware training win back what a recipe lost?  (``pytest -m qat``)"""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.checks import checkpoint, qat
from harness.diagnosis.qat import FineTuned
from harness.gate.listing import CaseName
from harness.pytest_plugin.judge import Judge

pytestmark = pytest.mark.qat


def test_loss_is_won_back(trained_case: CaseName, tuned: FineTuned, check: Judge) -> None:
    """On every metric on which the recipe does not pass, the fine-tuned model is better by the
    paired test.
    """
    check.problems(qat.loss_is_won_back(tuned), "not won back by fine-tuning:")


def test_calibration_did_not_move(trained_case: CaseName, tuned: FineTuned, check: Judge) -> None:
    """The quantizer map after training is the one before it, ranges by bits."""
    check.problems(qat.calibration_did_not_move(tuned), "changed by fine-tuning:")


@pytest.mark.parametrize("form", checkpoint.FORMS)
def test_trained_model_is_restored(
    trained_case: CaseName, tuned: FineTuned, form: checkpoint.Form, tmp_path: Path, check: Judge
) -> None:
    """The fine-tuned model comes back in a fresh process with the same map, weights and bits."""
    check.problems(qat.trained_model_is_restored(tuned, form, tmp_path))
