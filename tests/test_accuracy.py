"""Is the quantized model no worse than the reference by more than its budget, and has it moved?"""

from __future__ import annotations

import pytest

from harness.gate.gate import Case, Gate
from harness.pytest_plugin.plugin import Check

pytestmark = pytest.mark.accuracy

Metric = tuple[str, str]


def test_loss_is_within_budget(gate: Gate, case: Case, metric: Metric, check: Check) -> None:
    """Sample by sample against FP16, the loss is below the budget at the declared confidence."""
    check.verdict(gate.verdict(case, *metric))


def test_answers_stay_close(gate: Gate, case: Case, metric: Metric, check: Check) -> None:
    """What accuracy does not show stays within its own limits: changed answers, KL, embedding cosines, overlap."""
    check.limits(gate.beyond_limits(case, *metric), metric)


def test_accuracy_equals_baseline(gate: Gate, case: Case, metric: Metric, check: Check) -> None:
    """The reference and the quantized model answer as they did when the baseline was accepted."""
    if gate.options.early_stop:
        pytest.skip("with --early-stop a task's samples are not all evaluated, and a baseline is of all of them")
    check.drift(gate.drift(case, *metric))
