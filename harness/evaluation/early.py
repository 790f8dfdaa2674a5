"""Stopping a task as soon as a sequential test has decided (``--early-stop``).

A task's clusters are taken in seeded random order, a block at a time; both models see a block, and
the betting test of ``harness.statistics.sequential`` looks at every one.  Its error rate holds at
any number of looks.  Retrieval is not stopped
early: there every picture is a candidate for every caption.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from harness.data import tasks
from harness.data.tasks import Outcomes, Task, TaskRun
from harness.errors import UsageError
from harness.evaluation.shards import Side
from harness.statistics.sequential import Sequential, shuffled
from harness.statistics.verdicts import Budget, Verdict

#: Samples a block: about what a GPU takes in one batch, and small against a task that is worth
#: stopping.
BLOCK = 256


def can_stop(task: Task) -> bool:
    """Whether the kind and size of *task* allow an early stop."""
    return task.labels is not None and is_long_enough(len(task.sample_ids))


def is_long_enough(samples: int) -> bool:
    """Whether a task of *samples* has blocks to leave out."""
    return samples >= 2 * BLOCK


def check_budget(task: str, budget: Budget) -> None:
    """Refuse a budget that is a share of the reference: the sequential test is of points.

    Raises:
        UsageError: it is one.
    """
    if budget.share is not None:
        what = f"the budget of {task} is a share, which is judged on all samples"
        fix = "Leave --early-stop out, or give the budget in points."
        raise UsageError(budget.place, what, fix)


def blocks(task: Task) -> Iterator[Task]:
    """Return the samples of *task*, whole clusters in random order, about BLOCK at a time."""
    order = shuffled(task.clusters)
    ends = np.flatnonzero(np.diff(task.clusters[order], append=-1)) + 1
    start = 0
    while start < len(order):
        reached = ends[ends >= min(start + BLOCK, len(order))]
        stop = int(reached[0]) if len(reached) else len(order)
        yield tasks.take(task, order[start:stop])
        start = stop


class Evaluation:
    """One model on the blocks of one task, each evaluated when it is first asked for and then kept.

    *embed* gives the model's unit embeddings of a task's pictures or candidates in words, float32
    (n, d).
    """

    def __init__(self, embed: Callable[[Task, Side], npt.NDArray[np.float32]], task: Task) -> None:
        self._embed = embed
        self._task = task
        self._texts: npt.NDArray[np.float32] | None = None
        self._runs: list[TaskRun] = []

    def run(self, number: int, block: Task) -> TaskRun:
        """Return the run of the model on *block*, the *number*-th of the task (from 0)."""
        while number >= len(self._runs):
            if self._texts is None:
                self._texts = self._embed(self._task, "texts")
            images = self._embed(block, "images")
            self._runs.append(
                TaskRun(
                    self._task.name, tasks.score(block, images, self._texts), images, self._texts
                )
            )
        return self._runs[number]

    def joined(self, count: int) -> TaskRun:
        """The first *count* blocks as one run."""
        runs = self._runs[:count]
        (metric,) = runs[0].outcomes
        parts = [run.outcomes[metric] for run in runs]
        images = np.concatenate([run.image_embeddings for run in runs])
        return TaskRun(self._task.name, {metric: _joined(parts)}, images, runs[0].text_embeddings)


def _joined(parts: list[Outcomes]) -> Outcomes:
    whole = {}
    for field in fields(Outcomes):
        values = [getattr(part, field.name) for part in parts]
        if field.name in ("task", "metric"):
            whole[field.name] = values[0]
        elif field.name == "sample_ids":
            whole[field.name] = tuple(name for ids in values for name in ids)
        else:
            whole[field.name] = None if values[0] is None else np.concatenate(values)
    return Outcomes(**whole)


@dataclass(frozen=True)
class Stopped:
    """What was evaluated of a task, and the verdict on it."""

    reference: TaskRun
    quantized: TaskRun
    verdict: Verdict


def judge(
    task: Task, metric: str, budget: Budget, reference: Evaluation, quantized: Evaluation
) -> Stopped:
    """Evaluate block after block until the sequential test decides, or the task ends.

    Raises:
        UsageError: the budget is a share.
    """
    check_budget(task.name, budget)
    largest = int(np.unique(task.clusters, return_counts=True)[1].max())
    test = Sequential(budget, largest)
    count = 0
    for count, block in enumerate(blocks(task), 1):
        before, after = (
            side.run(count - 1, block).outcomes[metric] for side in (reference, quantized)
        )
        if (
            test.update(
                before.correct & ~after.correct, after.correct & ~before.correct, before.clusters
            )
            is not None
        ):
            break
    runs = reference.joined(count), quantized.joined(count)
    verdict = test.verdict(runs[0].outcomes[metric], runs[1].outcomes[metric], len(task.sample_ids))
    return Stopped(*runs, verdict)
