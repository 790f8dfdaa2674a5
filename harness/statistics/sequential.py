"""Early decisions: a paired test that may be looked at after every batch and stopped as soon as it
has decided.

Testing by betting (Waudby-Smith and Ramdas 2024, JRSS-B 86:1-27; Ville 1939). Each sample gives x =
+1 (won), -1 (lost) or 0. Against "the true mean is at most mu" a gambler who stakes the share g of
what may be staked holds

    K(g) = product of 1 + g (x - mu) / (1 + mu),   0 <= g < 1,

which is never negative and cannot grow on average if the claim is true; so the mean of K over a
fixed grid of stakes exceeds 1 / a at *any* time with a chance of at most a. With mu = -margin that
wealth shows non-inferiority, and its mirror image inferiority. K depends on the counts of won, lost
and unchanged only.

What must hold: samples come in random order (`shuffled`), since data sets are often sorted by
class. Samples of one cluster enter together, as one bet on their sum, in proportion to the largest
cluster: the bets are then independent even where the captions of a picture are not.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize

from harness.statistics import clustering, paired
from harness.statistics.verdicts import Budget, Decision, Verdict, compare, decide, not_finite

if TYPE_CHECKING:
    from harness.data.tasks import Outcomes

STAKES = np.geomspace(0.002, 0.9, 16)
"""Shares staked, mixed in equal parts. The best one is about the gap to the margin over the
discordance: 0.25 for 1 point at 4 %.
"""


def log_wealth(
    net: ArrayLike, sizes: ArrayLike, counts: ArrayLike, margin: float, largest: int = 1
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Log wealth against "the loss is at least the margin" and against "the loss is at most the
    margin", both (...).

    `counts` (..., kinds): so many bets had `sizes` (kinds,) samples, of which won - lost = `net`
    (kinds,); none has more than `largest`.
    """
    gap = np.asarray(net, dtype=np.float64) + margin * np.asarray(sizes, dtype=np.float64)
    weight = np.asarray(counts, dtype=np.float64)
    grown = weight @ np.log1p(np.outer(gap / (largest * (1 - margin)), STAKES))
    shrunk = weight @ np.log1p(np.outer(-gap / (largest * (1 + margin)), STAKES))
    return _log_mean(grown), _log_mean(shrunk)


def _log_mean(log_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log of the mean of exp along the last axis, safe against overflow."""
    top = log_values.max(axis=-1)
    return np.asarray(top + np.log(np.exp(log_values - top[..., None]).mean(axis=-1)))


class Sequential:
    """A running test of one metric's budget.

    It spends `share` of the budget's alpha on deciding early and leaves the rest to the
    fixed-sample test of a task that ends undecided, so that both together keep alpha.
    `largest_cluster`: samples in the largest cluster of the task.
    """

    def __init__(self, budget: Budget, largest_cluster: int = 1, share: float = 0.5) -> None:
        if not 0 < share < 1:
            raise ValueError(f"share is {share}, not between 0 and 1")
        if largest_cluster < 1:
            raise ValueError(f"largest_cluster is {largest_cluster}, not at least 1")
        self.budget = budget
        self.largest_cluster = largest_cluster
        self.share = share
        self.used = 0
        self.decision: Decision | None = None
        self.shown = paired.Shown(1.0, 1.0)
        self._bets: Counter[tuple[int, int]] = Counter()
        self._seen: set[int] = set()

    def update(
        self, losses: ArrayLike, wins: ArrayLike, clusters: ArrayLike | None = None
    ) -> Decision | None:
        """Take in a batch; PASS or FAIL as soon as one is shown, which later batches do not change,
        else None.

        `losses` and `wins` (batch,) are bool: right only in the reference, right only in the
        quantized model. `clusters` (batch,) int: a cluster must come whole within one batch.
        ValueError otherwise.
        """
        net = np.asarray(wins, dtype=np.int64) - np.asarray(losses, dtype=np.int64)
        if self.decision is not None or net.size == 0:
            return self.decision
        sums, sizes = self._bets_of(net, clusters)
        self._bets.update(zip(sums.tolist(), sizes.tolist(), strict=True))
        self.used += int(sizes.sum())
        growth = self._wealth(self.budget.margin)
        self.shown = paired.Shown(*(math.exp(min(0.0, -w)) for w in growth))
        decision = decide(self.shown, self.budget.alpha * self.share)
        self.decision = None if decision is Decision.INCONCLUSIVE else decision
        return self.decision

    def interval(self) -> tuple[float, float]:
        """Interval of the true difference (fractions) that holds at any stopping time with 1 - 2
        alpha share.
        """
        bound = -math.log(self.budget.alpha * self.share)

        def against(margin: float, side: int) -> float:
            return self._wealth(margin)[side] - bound

        edge = 1 - 1e-9
        # The first wealth grows with the margin, the second falls.
        low = (
            -1.0
            if against(edge, 0) <= 0
            else -float(optimize.brentq(against, -edge, edge, args=(0,)))
        )
        high = (
            1.0
            if against(-edge, 1) <= 0
            else -float(optimize.brentq(against, -edge, edge, args=(1,)))
        )
        return low, high

    def verdict(self, reference: Outcomes, quantized: Outcomes, total: int) -> Verdict:
        """The verdict on the outcomes taken in so far, of a task of `total` samples.

        Decided early: the sequential p-values and interval. Not decided, and all samples are in:
        the fixed-sample test at the alpha that is left. p-values are divided by the alpha spent on
        them, so that they compare with the budget's alpha as any other verdict's. ValueError if the
        outcomes are not those that were taken in, or the task is neither decided nor at its end.
        """
        if len(reference.sample_ids) != self.used:
            raise ValueError(
                f"{self.used} samples were taken in, the outcomes have {len(reference.sample_ids)}"
            )
        if self.decision is None and self.used < total:
            raise ValueError(f"undecided after {self.used} of {total} samples: go on")
        if not_finite(quantized):
            return replace(
                compare(reference, quantized, self.budget), fraction_used=self.used / total
            )
        if self.decision is None:
            left = 1 - self.share
            final = compare(
                reference, quantized, replace(self.budget, alpha=self.budget.alpha * left)
            )
            note = (
                f"the early-stop test did not decide; alpha {self.budget.alpha * left:g} was left "
                f"for the whole task"
            )
            shown = _scaled(final.p_noninferior, final.p_inferior, left)
            return replace(
                final,
                budget=self.budget,
                p_noninferior=shown[0],
                p_inferior=shown[1],
                p_gain=min(1.0, final.p_gain / left),
                note=note,
            )
        plain = compare(reference, quantized, self.budget)
        low, high = self.interval()
        shown = _scaled(self.shown.noninferior, self.shown.inferior, self.share)
        return replace(
            plain,
            decision=self.decision,
            samples_needed=None,
            interval=(100 * low, 100 * high),
            p_noninferior=shown[0],
            p_inferior=shown[1],
            # A test of the gain at the moment of a stop would be one of many looks.
            p_gain=1.0,
            fraction_used=self.used / total,
        )

    def _bets_of(
        self, net: NDArray[np.int64], clusters: ArrayLike | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Net wins and sample count of each bet of a batch."""
        if clusters is None:
            return net, np.ones_like(net)
        groups = np.unique(np.asarray(clusters)).tolist()
        again = self._seen.intersection(groups)
        if again:
            raise ValueError(f"cluster {min(again)} comes in two batches: give whole clusters")
        self._seen.update(groups)
        sums, sizes = clustering.cluster_sums(net, clusters)
        if sizes.max() > self.largest_cluster:
            raise ValueError(
                f"a cluster of {sizes.max():.0f} samples, where the largest was to be "
                f"{self.largest_cluster}"
            )
        return sums.astype(np.int64), sizes.astype(np.int64)

    def _wealth(self, margin: float) -> tuple[float, float]:
        net, sizes = np.array(list(self._bets), dtype=np.int64).reshape(-1, 2).T
        grown, shrunk = log_wealth(
            net, sizes, np.array(list(self._bets.values())), margin, self.largest_cluster
        )
        return float(grown), float(shrunk)


def _scaled(noninferior: float, inferior: float, share: float) -> tuple[float, float]:
    return min(1.0, noninferior / share), min(1.0, inferior / share)


def shuffled(clusters: ArrayLike, seed: int = 0) -> NDArray[np.int64]:
    """An order (n,) of the samples for an early stop: clusters in seeded random order, each
    cluster's samples together.
    """
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    rank = np.random.default_rng(seed).permutation(int(index.max()) + 1 if index.size else 0)
    return np.argsort(rank[index], kind="stable")
