"""The quantized model is not worse than the reference by more than its budget, and has not
moved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.baselines import Comparison
from harness.checks.registry import NotJudged, check
from harness.statistics.verdicts import Verdict

if TYPE_CHECKING:
    from harness.gate.case import Case

#: A task and a metric of it.
Metric = tuple[str, str]


def _metrics(case: Case) -> list[Metric]:
    return [(verdict.task, verdict.metric) for verdict in case.verdicts.verdicts]


@check("accuracy")
def reference_agrees_with_published(case: Case) -> list[str]:
    """Compare the FP16 model with what was published of its checkpoint, a sentence per metric."""
    if case.setting.options.early_stop:
        raise NotJudged("with --early-stop the reference does not see all of a task's samples")
    problems = case.shared.published_problems
    if problems is None:
        raise NotJudged(f"nothing is published of {case.model_name} on these tasks")
    return problems


@check("accuracy", metric=_metrics)
def loss_is_within_budget(case: Case, metric: Metric) -> Verdict:
    """Return the verdict on one metric, as it stands among those on all tasks."""
    return case.verdict(*metric)


@check("accuracy", metric=_metrics)
def answers_stay_close(case: Case, metric: Metric) -> list[str]:
    """Return the measures beyond accuracy that exceed their limits, a sentence each."""
    task, name = metric
    own = [m for m in case.measurements(task) if m.metric in ("", name)]
    return [measurement.message() for measurement in own if not measurement.ok]


@check("accuracy", recorded=True, metric=_metrics)
def accuracy_equals_baseline(case: Case, metric: Metric) -> Comparison:
    """Compare both models' answers with those that were accepted."""
    if case.setting.options.early_stop:
        raise NotJudged(
            "with --early-stop a task's samples are not all evaluated, and a baseline is of all of "
            "them"
        )
    return case.drift(*metric)
