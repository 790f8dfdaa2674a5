"""Budgets that the samples of a run cannot resolve, refused all at once from the counts alone.

Nothing here needs torch or a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from harness.data.sample_counts import IMAGE_RECALL, TEXT_RECALL
from harness.errors import UsageError
from harness.statistics import budgets, verdicts
from harness.statistics.verdicts import Budget

#: (task, metric) -> the budgets of the cases that have no record of it.
Unrecorded = Mapping[tuple[str, str], Sequence[Budget]]


def refusals(
    policy: budgets.Policy, counts: Mapping[tuple[str, str], int], unrecorded: Unrecorded
) -> list[UsageError]:
    """Return a refusal for every budget that cannot be resolved by the discordance it declares.

    Where a baseline is recorded, the task is judged whatever its samples can show: the verdict is
    FAIL for a loss far over the budget, and INCONCLUSIVE, with the samples that would decide, for
    one that is not.

    Args:
        policy: the budgets file.
        counts: the samples of each (task, metric).
        unrecorded: the budgets to look at.
    """
    refused: list[UsageError] = []
    plans: dict[str, list[budgets.SamplePlan]] = {}
    for (task, metric), held in unrecorded.items():
        n = counts[task, metric]
        small = [budget for budget in held if n < verdicts.resolution(budget, n).samples_needed]
        default = [budget for budget in small if budget.place == policy.place("defaults")]
        refused += _own(task, metric, n, (budget for budget in small if budget not in default))
        if default:
            mean = n / counts[task, TEXT_RECALL] if metric == IMAGE_RECALL else 1.0
            # Captions of one picture move together: half of what they would if they were one
            # sample.
            plan = budgets.SamplePlan(task, metric, n, (1 + mean) / 2, tuple(default))
            plans.setdefault(task, []).append(plan)
    return refused + [
        budgets.no_entry(policy, task, held_budgets) for task, held_budgets in plans.items()
    ]


def _own(task: str, metric: str, n: int, held: Iterable[Budget]) -> list[UsageError]:
    """The refusals of budgets that the file gives for the task itself."""
    refused = []
    for budget in held:
        try:
            verdicts.resolvable(budget, n, task=f"{task} ({metric})")
        except UsageError as error:
            refused.append(error)
    return refused
