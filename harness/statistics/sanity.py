"""Is the reference fit to be compared with: finite embeddings, and answers that are better than
guesses.

A model that overflows in FP16, or one whose labels or class names are mixed up, loses nothing by
quantization: it had nothing to lose. Both are seen in the runs that the verdicts rest on, so that
looking costs nothing.

A reference that guesses on every task is refused. One that guesses on some task and not on others
may be a real model on a hard task, or the labels of that task may be wrong: there its verdict is
INCONCLUSIVE. A task on which not even a model that is always right could be distinguished from
guessing is not doubted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from harness.data.tasks import DEPTH, TEXT_RECALL, Outcomes, TaskRun
from harness.errors import UsageError
from harness.statistics.verdicts import Verdict, undecided

#: One-sided error of taking a guessing reference for one that knows something, for each metric.
ALPHA = 1e-3


@dataclass(frozen=True)
class Guess:
    """The right answers of a reference on one metric, and those that guessing would give."""

    task: str
    metric: str
    right: int
    n: int
    chance: float

    @property
    def p(self) -> float:
        """Exact binomial p-value of "it guesses"."""
        return float(stats.binom.sf(self.right - 1, self.n, self.chance))

    @property
    def can_be_told(self) -> bool:
        """Whether a model that is always right would be distinguished from one that guesses."""
        return self.chance**self.n <= ALPHA

    @property
    def at_chance(self) -> bool:
        """Whether it could be distinguished from guessing, and is not."""
        return self.can_be_told and self.p > ALPHA

    def __str__(self) -> str:
        guessed = self.chance * self.n
        return (
            f"{self.task} ({self.metric}): {self.right:,} of {self.n:,} right, where guessing "
            f"gives {guessed:.3g}"
        )


def guesses(runs: Mapping[str, TaskRun]) -> tuple[Guess, ...]:
    """Compare the reference with guessing on every metric of its runs."""
    return tuple(
        Guess(task, metric, int(outcomes.correct.sum()), outcomes.n, _chance(outcomes))
        for task, run in runs.items()
        for metric, outcomes in run.outcomes.items()
    )


def _chance(outcomes: Outcomes) -> float:
    """Expected share of right answers if answers and targets had nothing to do with each other.

    It is the agreement by chance of Cohen (1960, Educational and Psychological Measurement
    20:37-46), which allows for classes of unequal size and for candidates that are answered to
    everything: over candidates, the share of queries that have it among their answers times the
    share whose target it is.
    """
    answers, targets = outcomes.top5[:, : DEPTH[outcomes.metric]], outcomes.targets
    if outcomes.metric == TEXT_RECALL:
        # Candidates are captions; right is any caption of the picture.  Targets are first captions,
        # in order.
        answers = np.where(answers < 0, -1, np.searchsorted(targets, answers, side="right") - 1)
        targets = np.arange(len(targets), dtype=np.int32)
    size = int(max(answers.max(initial=0), targets.max())) + 1
    rows = np.sort(answers, axis=1)
    first = rows >= 0
    first[:, 1:] &= rows[:, 1:] != rows[:, :-1]
    answered = np.bincount(rows[first], minlength=size)
    return float(answered @ np.bincount(targets, minlength=size)) / len(targets) ** 2


def check(model: str, runs: Mapping[str, TaskRun], dtype: str) -> None:
    """Refuse a reference that cannot be compared with.

    Args:
        model: what the person called it.
        runs: the reference on every task.
        dtype: what it computes in, as a person calls it: ``FP16``.

    Raises:
        UsageError: an embedding is not finite, or no metric distinguishes the reference from one
            that guesses.
    """
    lost = [reason for side in ("image", "text") if (reason := _lost(runs, side))]
    if lost:
        what = f"the reference gives no finite embedding for {' and '.join(lost)} in {dtype}"
        fix = (
            "Check the checkpoint's weights: FP16 holds nothing above 65504, and what is computed "
            "from them overflows."
        )
        raise UsageError(f"--clip-model {model}", what, fix)
    known = [guess for guess in guesses(runs) if guess.can_be_told]
    if known and all(guess.at_chance for guess in known):
        what = f"the reference is at chance: {'; '.join(map(str, known))}"
        fix = (
            "Check its weights, the labels and the order of the class names: who guesses has "
            "nothing to lose."
        )
        raise UsageError(f"--clip-model {model}", what, fix)


def _lost(runs: Mapping[str, TaskRun], side: str) -> str:
    """``3 of 1,000 pictures of emoji100 (vision tower)``: rows that are not finite; empty where all
    are.
    """
    nouns = {"image": ("pictures", "vision"), "text": ("texts", "text")}
    count, total, where = 0, 0, []
    for task, run in runs.items():
        rows = run.image_embeddings if side == "image" else run.text_embeddings
        broken = int((~np.isfinite(rows).all(axis=1)).sum())
        count, total = count + broken, total + len(rows)
        if broken:
            where.append(task)
    noun, tower = nouns[side]
    return f"{count:,} of {total:,} {noun} of {', '.join(where)} ({tower} tower)" if count else ""


def doubted(verdict: Verdict, guess: Guess) -> Verdict:
    """*verdict* on a metric on which the reference guesses, while it does not on others: nothing
    can be concluded.
    """
    fix = (
        "Look at the labels, the class names and their order: this task does not show what the "
        "reference can do."
    )
    return undecided(verdict, f"the reference is at chance: {guess} (p {guess.p:.2g})", fix)
