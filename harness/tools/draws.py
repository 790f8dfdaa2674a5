"""Draw outcome pairs whose truth is known, judge them, count what is wrong: the parts of
`harness.tools.simulation`.

Draws are judged by the functions that judge real outcomes; where one decision serves many draws
(equal counts) it is made once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from harness.statistics import clustering, paired, published, ratio
from harness.statistics.sequential import log_wealth
from harness.statistics.verdicts import Budget, Decision, Verdict, decide, family

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

REFUTED = 1e-3
"""One-sided error of calling a promise broken, twice over (two-sided 99.9 % bounds)."""


@dataclass(frozen=True)
class Condition:
    """One condition: `groups` clusters of `size` samples, their discordance and true difference
    (points), the budget (points).

    `together` is the share of clusters whose samples all do the same; the others' samples are
    independent. `others` are further clusters: how many of how many samples.
    """

    groups: int
    discordance: float
    points: float
    truth: float
    size: int = 1
    together: float = 0.0
    alpha: float = 0.05
    others: tuple[tuple[int, int], ...] = ()

    @property
    def sizes(self) -> Ints:
        """Samples of each cluster."""
        kinds = ((self.groups, self.size), *self.others)
        return np.concatenate([np.full(count, size, dtype=np.int64) for count, size in kinds])

    @property
    def n(self) -> int:
        """Samples."""
        return int(self.sizes.sum())

    @property
    def single(self) -> bool:
        """Every cluster is one sample."""
        return bool((self.sizes == 1).all())

    @property
    def margin(self) -> float:
        """Budget as a fraction."""
        return self.points / 100

    @property
    def inflation(self) -> float:
        """True design effect, neglecting the square of the difference."""
        return 1 + (float((self.sizes**2).sum()) / self.n - 1) * self.together


def skewed(law: Any, count: int, largest: int) -> tuple[tuple[int, int], ...]:
    """Clusters whose sizes are the quantiles of a law, rounded up and at most *largest*: (count,
    size) by size.
    """
    quantiles = np.ceil(law.ppf((np.arange(count) + 0.5) / count)).clip(1, largest).astype(int)
    sizes, counts = np.unique(quantiles, return_counts=True)
    return tuple((int(n), int(size)) for size, n in zip(sizes, counts, strict=True))


@dataclass(frozen=True)
class Rate:
    """How often something happened in `draws`."""

    hits: int
    draws: int

    @property
    def value(self) -> float:
        """Share of the draws."""
        return self.hits / self.draws

    @property
    def bounds(self) -> tuple[float, float]:
        """Clopper-Pearson bounds, 99.9 %."""
        return paired.clopper_pearson(self.hits, self.draws, REFUTED)

    def refutes(self, alpha: float) -> bool:
        """The rate is above alpha beyond chance."""
        return self.bounds[0] > alpha

    def __str__(self) -> str:
        low, high = self.bounds
        return f"{self.value:.2%} [{low:.2%}, {high:.2%}]"


@dataclass(frozen=True)
class MeasuredCondition:
    """How often a cell was called PASS and FAIL, by the verdict and by the plain test that it
    improves on.
    """

    cell: Condition
    passed: Rate
    failed: Rate
    naive_passed: Rate
    naive_failed: Rate


def draw(rng: np.random.Generator, cell: Condition, draws: int) -> tuple[Ints, Ints]:
    """Samples won and lost in each cluster, both (draws, groups); for independent samples their
    totals, (draws, 1).
    """
    truth = cell.truth / 100
    win, lose = (cell.discordance + truth) / 2, (cell.discordance - truth) / 2
    if cell.single:
        won = rng.binomial(cell.n, win, (draws, 1))
        return won, rng.binomial(cell.n - won, lose / (1 - win))
    sizes = cell.sizes
    shape = (draws, len(sizes))
    won = rng.binomial(sizes, win, shape)
    lost = rng.binomial(sizes - won, lose / (1 - win))
    whole, fate = rng.random(shape) < cell.together, rng.random(shape)
    won = np.where(whole, sizes * (fate < win), won)
    return won, np.where(whole, sizes * ((fate >= win) & (fate < win + lose)), lost)


def measure(cell: Condition, draws: int, seed: int) -> MeasuredCondition:
    """Judge `draws` runs of one cell, in chunks that bound the memory."""
    rng = np.random.default_rng(seed)
    counts = np.zeros(4, dtype=np.int64)
    chunk = max(1, min(draws, 4_000_000 // (1 if cell.single else len(cell.sizes))))
    for start in range(0, draws, chunk):
        won, lost = draw(rng, cell, min(chunk, draws - start))
        plain = tango(won.sum(axis=1), lost.sum(axis=1), cell)
        if cell.single:
            judged = fixed(won[:, 0], lost[:, 0], cell.n, cell.margin, cell.alpha)
        else:
            judged = clustered(won, lost, cell)
        counts += [int(x.sum()) for x in (*judged, *plain)]
    return MeasuredCondition(cell, *(Rate(int(c), draws) for c in counts))


def tango(won: Ints, lost: Ints, cell: Condition) -> tuple[Bools, Bools]:
    """PASS and FAIL (draws,) of Tango's test alone: neither clusters nor the exact guard."""
    z, critical = paired.tango_z(won, lost, cell.n, -cell.margin), stats.norm.isf(cell.alpha)
    return z >= critical, z <= -critical


def fixed(won: Ints, lost: Ints, n: int, margin: float, alpha: float) -> tuple[Bools, Bools]:
    """PASS and FAIL (draws,) of the verdict on independent samples.

    Given the number of discordant samples both p-values are monotone in the wins, so one critical
    count serves all.
    """
    z, critical = paired.tango_z(won, lost, n, -margin), stats.norm.isf(alpha)
    passed, failed = np.zeros(won.shape, dtype=bool), np.zeros(won.shape, dtype=bool)
    for out, may, upper in ((passed, z >= critical, True), (failed, z <= -critical, False)):
        for m in np.unique((won + lost)[may]):
            here = may & (won + lost == m)
            wins = np.unique(won[here])
            for k in wins if upper else wins[::-1]:
                if paired.exact_p(int(k), int(m - k), n, margin, upper=upper) <= alpha:
                    out |= here & ((won >= k) if upper else (won <= k))
                    break
    return passed, failed


def clustered(won: Ints, lost: Ints, cell: Condition) -> tuple[Bools, Bools]:
    """PASS and FAIL (draws,) of the clustered verdict; `won` and `lost` are (draws, groups)."""
    b, c, sizes = won.sum(axis=1), lost.sum(axis=1), cell.sizes
    inflation = clustering.design_effect(won - lost, sizes, b, c, cell.margin)
    z = paired.tango_z(b, c, cell.n, -cell.margin) / np.sqrt(inflation)
    critical = stats.t.isf(cell.alpha, max(clustering.effective_clusters(sizes) - 1, 1))
    decisions = np.full(b.shape, Decision.INCONCLUSIVE.value, dtype=object)
    # The exact tests can only raise a p-value: elsewhere there is nothing to decide.
    for i in np.flatnonzero(np.abs(z) >= 0.999 * critical):
        test = clustering.clustered_test(
            won[i] - lost[i], sizes, int(b[i]), int(c[i]), cell.margin, cell.alpha
        )
        decisions[i] = decide(test.shown, cell.alpha).value
    return decisions == Decision.PASS.value, decisions == Decision.FAIL.value


@dataclass(frozen=True)
class StoppedCondition:
    """A cell under continuous peeking: decisions of the early stop and of the whole procedure, and
    samples used.

    `early_*`: by the sequential test, looking after every bet. `passed`, `failed`: with the
    fixed-sample test of what is left at the end. `peeked_*`: by Tango's test at every look, as a
    person would who stops when it looks good. `used`: mean share of samples.
    """

    cell: Condition
    early_passed: Rate
    early_failed: Rate
    passed: Rate
    failed: Rate
    peeked_passed: Rate
    peeked_failed: Rate
    used: float


def peek(cell: Condition, draws: int, seed: int, share: float = 0.5) -> StoppedCondition:
    """Run the early stop on `draws` tasks of a cell, looking after every sample, or every
    cluster.
    """
    rng = np.random.default_rng(seed)
    counts, used = np.zeros(6, dtype=np.int64), 0.0
    chunk = max(1, 400_000 // cell.groups)
    for start in range(0, draws, chunk):
        net, won, lost = _ordered(rng, cell, min(chunk, draws - start))
        kinds = np.arange(-cell.size, cell.size + 1)
        seen = np.stack([np.cumsum(net == k, axis=1) for k in kinds], axis=-1)
        grown, shrunk = log_wealth(
            kinds, np.full(len(kinds), cell.size), seen, cell.margin, cell.size
        )
        bound = -math.log(cell.alpha * share)
        first_pass, first_fail = _first(grown >= bound), _first(shrunk >= bound)
        early_pass, early_fail = first_pass < first_fail, first_fail < first_pass
        at_end = replace(cell, alpha=cell.alpha * (1 - share))
        if cell.size == 1:
            end = fixed(won.sum(axis=1), lost.sum(axis=1), cell.n, cell.margin, at_end.alpha)
        else:
            end = clustered(won, lost, at_end)
        open_ = ~(early_pass | early_fail)
        b, c = np.cumsum(won, axis=1), np.cumsum(lost, axis=1)
        z = paired.tango_z(b, c, cell.size * np.arange(1, cell.groups + 1), -cell.margin)
        critical = stats.norm.isf(cell.alpha)
        peeked = (_first(z >= critical), _first(z <= -critical))
        results = (
            early_pass,
            early_fail,
            early_pass | (open_ & end[0]),
            early_fail | (open_ & end[1]),
        )
        looked = (peeked[0] < peeked[1], peeked[1] < peeked[0])
        counts += [int(x.sum()) for x in (*results, *looked)]
        used += (
            float(np.minimum(np.minimum(first_pass, first_fail) + 1, cell.groups).sum())
            / cell.groups
        )
    early_passed, early_failed, passed, failed, peeked_passed, peeked_failed = (
        Rate(int(c), draws) for c in counts
    )
    return StoppedCondition(
        cell, early_passed, early_failed, passed, failed, peeked_passed, peeked_failed, used / draws
    )


def _ordered(rng: np.random.Generator, cell: Condition, draws: int) -> tuple[Ints, Ints, Ints]:
    """Net wins, won and lost of every bet in order, (draws, groups): `draw`, but with single
    samples kept apart.
    """
    if cell.size > 1:
        won, lost = draw(rng, cell, draws)
    else:
        truth, fate = cell.truth / 100, rng.random((draws, cell.groups))
        won = (fate < (cell.discordance + truth) / 2).astype(np.int64)
        lost = (fate >= 1 - (cell.discordance - truth) / 2).astype(np.int64)
    return won - lost, won, lost


def _first(hit: Bools) -> Ints:
    """Index of the first True of each row; the row's length if there is none."""
    return np.asarray(np.where(hit.any(axis=1), hit.argmax(axis=1), hit.shape[1]), dtype=np.int64)


@dataclass(frozen=True)
class Joined:
    """Families of tasks: how often the family was PASS and FAIL, and how often some task alone
    would have been FAIL.
    """

    cells: tuple[Condition, ...]
    passed: Rate
    failed: Rate
    any_failed: Rate


def join(cells: Sequence[Condition], draws: int, seed: int) -> Joined:
    """Judge `draws` families of independent tasks, one for each cell (without clusters), each at
    its cell's alpha.
    """
    rng = np.random.default_rng(seed)
    alphas = np.array([cell.alpha for cell in cells])
    p = np.array([_p_values(cell, draws, rng) for cell in cells])  # (tasks, 2, draws)
    passed = failed = any_failed = 0
    for i in range(draws):
        if not ((p[:, 0, i] <= alphas).all() or (p[:, 1, i] <= alphas).any()):
            continue  # Neither PASS nor FAIL is possible.
        verdicts = [
            _verdict(cell, float(p[k, 0, i]), float(p[k, 1, i])) for k, cell in enumerate(cells)
        ]
        decision = family(verdicts).decision
        passed += decision is Decision.PASS
        failed += decision is Decision.FAIL
        any_failed += any(v.decision is Decision.FAIL for v in verdicts)
    return Joined(tuple(cells), *(Rate(x, draws) for x in (passed, failed, any_failed)))


def _p_values(cell: Condition, draws: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """The two p-values of each draw (2, draws): guarded where they could be at most alpha, Tango's
    where not.
    """
    won, lost = (x[:, 0] for x in draw(rng, cell, draws))
    pairs, index = np.unique(np.stack([won, lost]), axis=1, return_inverse=True)
    z = paired.tango_z(pairs[0], pairs[1], cell.n, -cell.margin)
    p = np.stack([stats.norm.sf(z), stats.norm.cdf(z)])
    for side in (0, 1):
        for k in np.flatnonzero(p[side] <= cell.alpha):
            exact = paired.exact_p(
                int(pairs[0, k]), int(pairs[1, k]), cell.n, cell.margin, upper=side == 0
            )
            p[side, k] = max(p[side, k], exact)
    return p[:, index.ravel()]


def _verdict(cell: Condition, noninferior: float, inferior: float) -> Verdict:
    budget = Budget(cell.points, alpha=cell.alpha)
    return Verdict(
        task="drawn",
        metric="acc1",
        budget=budget,
        n=cell.n,
        clusters=cell.groups,
        design_effect=1.0,
        reference_accuracy=math.nan,
        quantized_accuracy=math.nan,
        difference=cell.truth,
        interval=(-100.0, 100.0),
        lost=1,
        won=0,
        changed=0,
        lost_large=0,
        lost_borderline=0,
        large_margin=0.0,
        p_loss=1.0,
        p_change=1.0,
        p_noninferior=noninferior,
        p_inferior=inferior,
        samples_needed=None,
        decision=decide(paired.Shown(noninferior, inferior), cell.alpha),
    )


@dataclass(frozen=True)
class PublishedAgreement:
    """How often a reference was found to disagree with its published row, and how often the best
    fit was the mistake that was made.
    """

    alarms: Rate
    named: Rate


def agree(
    row: published.PublishedRow,
    n: int,
    difference: float,
    spread: float,
    mistake: str,
    draws: int,
    seed: int,
) -> PublishedAgreement:
    """Draw accuracies of a reference whose true accuracy differs from its published row.

    Args:
        row: the published row.
        n: samples.
        difference: true difference in points.
        spread: standard deviation of the true difference over checkpoints.
        mistake: what was done wrong, or empty; it is one that cannot be seen.
        draws: how many.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    truth = row.result.value + rng.normal(difference, spread, draws)
    right = rng.binomial(n, np.clip(truth / 100, 0, 1))
    counts, times = np.unique(right, return_counts=True)
    alarms = named = 0
    for count, often in zip(counts, times, strict=True):
        comparison = published.sampled(row, 100 * float(count) / n, n, n)
        if comparison.agrees:
            continue
        alarms += int(often)
        mistakes = published.fits(comparison, {}, 0.1)
        named += int(often) * bool(mistakes and mistakes[0].mistake == mistake)
    return PublishedAgreement(Rate(alarms, draws), Rate(named, draws))


@dataclass(frozen=True)
class ShareCell:
    """A budget that is a share of the reference: `groups` clusters of `size` samples, of which a
    share `together` do the same; `true_share` is the true share of the reference's accuracy.
    """

    groups: int
    accuracy: float
    discordance: float
    share: float
    true_share: float
    size: int = 1
    together: float = 0.0
    alpha: float = 0.05

    @property
    def chances(self) -> tuple[float, float, float, float]:
        """Chances of a sample to be right in both, won, lost, or wrong in both."""
        difference = (self.true_share - 1) * self.accuracy
        won, lost = (self.discordance + difference) / 2, (self.discordance - difference) / 2
        both = self.accuracy - lost
        return both, won, lost, 1 - both - won - lost


def shares(cell: ShareCell, draws: int, seed: int) -> tuple[Rate, Rate]:
    """How often a share is shown to be kept, and not to be kept, by the verdict's own test."""
    rng = np.random.default_rng(seed)
    passed = failed = 0
    sizes = np.full(cell.groups, cell.size, dtype=np.float64)
    value = np.array([1 - cell.share, 1.0, -cell.share, 0.0])
    critical = 0.999 * stats.norm.isf(cell.alpha)
    for _ in range(draws):
        if cell.size == 1:
            counts = rng.multinomial(cell.groups, cell.chances)
            sums = np.empty(0)
        else:
            apart = rng.multinomial(cell.size, cell.chances, cell.groups)
            whole = rng.multinomial(1, cell.chances, cell.groups) * cell.size
            drawn = np.where(rng.random((cell.groups, 1)) < cell.together, whole, apart)
            counts, sums = drawn.sum(axis=0), drawn @ value
        both, won, lost = (float(x) for x in counts[:3])
        # Clusters and the guard only raise p-values: elsewhere there is nothing to decide.
        if abs(float(ratio.ratio_z(both, won, lost, cell.share))) < critical:
            continue
        if cell.size == 1:
            sums = np.repeat(value, counts)
        test = ratio.clustered_ratio_test(sums, sizes, both, won, lost, cell.share, cell.alpha)
        decision = decide(test.shown, cell.alpha)
        passed += decision is Decision.PASS
        failed += decision is Decision.FAIL
    return Rate(passed, draws), Rate(failed, draws)
