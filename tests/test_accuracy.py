"""Is the quantized model no worse than the reference by more than its budget, and has it moved?"""

from __future__ import annotations

import pytest

from harness.checks import accuracy
from harness.checks.accuracy import Metric
from harness.gate.listing import CaseName
from harness.gate.session import Gate
from harness.pytest_plugin.judge import Judge

pytestmark = pytest.mark.accuracy


def test_reference_agrees_with_published(gate: Gate, case: CaseName, check: Judge) -> None:
    """The FP16 model is as accurate as what was published of its checkpoint."""
    check.problems(accuracy.reference_agrees_with_published(gate[case]))


def test_loss_is_within_budget(gate: Gate, case: CaseName, metric: Metric, check: Judge) -> None:
    """Sample by sample against FP16, the loss is below the budget at the declared confidence."""
    check.verdict(accuracy.loss_is_within_budget(gate[case], metric))


def test_answers_stay_close(gate: Gate, case: CaseName, metric: Metric, check: Judge) -> None:
    """What accuracy does not show stays within its own limits: changed answers, KL, embedding
    cosines, overlap.
    """
    check.limits(accuracy.answers_stay_close(gate[case], metric), metric)


def test_accuracy_equals_baseline(gate: Gate, case: CaseName, metric: Metric, check: Judge) -> None:
    """The reference and the quantized model answer as they did when the baseline was accepted."""
    check.drift(accuracy.accuracy_equals_baseline(gate[case], metric))
