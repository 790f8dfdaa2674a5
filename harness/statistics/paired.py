"""Statistics of paired 0/1 outcomes: numbers in, numbers out, no policy.

`won` counts the samples that are right only in the quantized model, `lost` those right only in the
reference, `n` all samples. The difference is (won - lost) / n, a fraction: negative is a loss. A
margin is a positive fraction: 0.01 is one point.

Sources: McNemar (1947) for "has anything changed"; Tango (1998, Statistics in Medicine 17:891-908)
for the margin; Hsueh, Liu and Chen (2001, Biometrics 57:478-483) for the exact unconditional
p-value of that statistic, with the confidence set of Berger and Boos (1994, JASA 89:1012-1016) for
the nuisance parameter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CONFIDENCE_SET = 1e-4
"""Error spent on the confidence set for the discordance; it is added to the exact p-value, which
stays valid.

An alpha below 0.01 has its hundredth spent instead: see `confidence_set`.
"""

ALIKE = 2.0
"""Clusters are of about one size where the largest has at most this many times the samples of the
smallest.
"""

FEW = 8.0
"""Clusters are few where the budget is worth less than this many of the largest."""


def confidence_set(alpha: float) -> float:
    """Error that an exact p-value spends on its confidence set where it is compared with `alpha`.

    It is fixed before the data, as Berger and Boos ask: 1e-4, or a hundredth of a smaller alpha.
    """
    return min(CONFIDENCE_SET, alpha / 100)


def tango_z(won: ArrayLike, lost: ArrayLike, n: ArrayLike, difference: ArrayLike) -> Floats:
    """Tango's score statistic of H0: true difference == `difference` (a fraction; broadcasts).

    Z = (won - lost - n d) / sqrt(n (2q + d (1 - d))), where q is the maximum-likelihood probability
    of a loss under H0, the larger root of 2n q^2 + B q + C with B = -(won + lost) + (2n - won +
    lost) d and C = -lost d (1 - d). d = 0 gives McNemar's statistic, 0 where nothing is discordant.
    """
    b, c, n_, d = (np.asarray(x, dtype=np.float64) for x in (won, lost, n, difference))
    # 8 n c d (1 - d) = -8 n C: below zero for a loss (d < 0), where rounding alone can push the
    # root under zero.
    half = -(b + c) + (2 * n_ - b + c) * d
    root = np.sqrt(np.maximum(half * half + 8 * n_ * c * d * (1 - d), 0.0))
    q = (root - half) / (4 * n_)
    variance = n_ * np.maximum(2 * q + d * (1 - d), 0.0)
    top = b - c - n_ * d
    return standardised(top, variance)


def standardised(top: Floats, variance: Floats) -> Floats:
    """Return *top* over the square root of its *variance*.

    Without variance it is infinite, with the sign of *top*, and 0 where *top* is 0.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        z = top / np.sqrt(variance)
    return np.asarray(
        np.where(variance > 0, z, np.where(top == 0, 0.0, np.copysign(np.inf, top))),
        dtype=np.float64,
    )


def interval(
    won: int, lost: int, n: int, alpha: float, inflation: float = 1.0, groups: float | None = None
) -> tuple[float, float]:
    """Two-sided 1 - 2 alpha interval of the true difference (fractions), by inversion of Tango's
    test.

    Its lower end lies above -margin just when the one-sided test at `alpha` shows non-inferiority.
    `inflation` is the design effect by which clusters enlarge the variance (1: independent
    samples), `groups` their effective number, for Student's t.
    """
    quantile = stats.norm.isf(alpha) if groups is None else stats.t.isf(alpha, max(groups - 1, 1))
    z = float(quantile) * math.sqrt(inflation)
    estimate = (won - lost) / n

    def at(difference: float, bound: float) -> float:
        return float(tango_z(won, lost, n, difference)) - bound

    # Z falls in the difference; the ends of (-1, 1) are singular only for samples that are all lost
    # or all won.
    edge = 1 - 1e-12
    low = (
        -1.0
        if at(-edge, z) <= 0
        else float(optimize.brentq(at, -edge, estimate, args=(z,), xtol=1e-10))
    )
    high = (
        1.0
        if at(edge, -z) >= 0
        else float(optimize.brentq(at, estimate, edge, args=(-z,), xtol=1e-10))
    )
    return low, high


def mcnemar(won: int, lost: int) -> tuple[float, float]:
    """Exact McNemar p-values (one-sided for a loss, two-sided for any change); 1 where nothing is
    discordant.

    One-sided: p = sum over k >= lost of C(won + lost, k) / 2^(won + lost).
    """
    if won + lost == 0:
        return 1.0, 1.0
    worse = stats.binomtest(lost, won + lost, alternative="greater").pvalue
    return float(worse), float(stats.binomtest(lost, won + lost).pvalue)


@dataclass(frozen=True)
class Shown:
    """One-sided p-values of the two claims about a margin: the loss is below it, the loss is above
    it.
    """

    noninferior: float
    inferior: float


def tango_p(won: int, lost: int, n: int, margin: float) -> Shown:
    """Asymptotic p-values of both claims at a loss of `margin` (a fraction)."""
    z = float(tango_z(won, lost, n, -margin))
    return Shown(float(stats.norm.sf(z)), float(stats.norm.cdf(z)))


def guarded_p(won: int, lost: int, n: int, margin: float, alpha: float = 0.05) -> Shown:
    """Tango's p-values, each raised to the exact one where the exact one is larger.

    With few discordant samples Tango's test declares an inferiority too often (8 % where 5 % were
    promised, at 10 expected losses and no gains): the exact unconditional p-value of the same
    statistic closes that gap. `alpha` is what the p-values will be compared with, see
    `confidence_set`.
    """
    plain = tango_p(won, lost, n, margin)
    spent = confidence_set(alpha)
    return Shown(
        max(plain.noninferior, exact_p(won, lost, n, margin, upper=True, spent=spent)),
        max(plain.inferior, exact_p(won, lost, n, margin, upper=False, spent=spent)),
    )


@lru_cache(maxsize=65536)
def exact_p(
    won: int, lost: int, n: int, margin: float, *, upper: bool, spent: float = CONFIDENCE_SET
) -> float:
    """Exact unconditional p-value of Tango's statistic at a true difference of -margin: upper tail,
    or lower.

    p = max over the discordance rate r in a 1 - g confidence set of P(Z >= z_observed | r) + g,
    where g is `spent`. Given the number m of discordant samples, Z grows with `won`, so P(Z >= z |
    m) is a binomial tail; m itself is Binomial(n, r). At a fixed r that tail is largest on the
    boundary of H0, so the p-value holds for every loss at least (upper) or at most (lower) the
    margin.
    """
    return _worst_tail(won, lost, n, margin, upper=upper, spent=spent)


def clopper_pearson(successes: int, n: int, alpha: float) -> tuple[float, float]:
    """Exact two-sided interval of a proportion at level 1 - *alpha* (Clopper & Pearson 1934)."""
    interval = stats.binomtest(successes, n).proportion_ci(1 - alpha, method="exact")
    return float(interval.low), float(interval.high)


def _worst_tail(won: int, lost: int, n: int, margin: float, *, upper: bool, spent: float) -> float:
    """`exact_p` uncached."""
    observed = float(tango_z(won, lost, n, -margin))
    low, high = clopper_pearson(won + lost, n, spent)
    # "Lost at least the margin" needs that much discordance; "lost at most the margin" does not.
    least = max(low, margin if upper else 1e-12)
    if high < least:
        return spent
    # The tail bends sharply where hardly any sample is won, just above the margin: look closer
    # there.
    edge = margin * (1 + np.geomspace(1e-3, 0.5, 16))
    rates = np.union1d(np.linspace(least, high, 32), edge[(edge > least) & (edge < high)])
    cut = 1e-5 * spent
    m = np.arange(
        int(stats.binom.ppf(cut, n, rates[0])), int(stats.binom.isf(cut, n, rates[-1])) + 1
    )
    tail = _conditional_tail(m, n, margin, observed, rates, upper=upper)
    weight = stats.binom.pmf(m[:, None], n, rates[None, :])
    # What the cut ends of m leave out counts against the claim.
    worst = float(np.max((weight * tail).sum(axis=0) + np.maximum(1 - weight.sum(axis=0), 0)))
    return min(1.0, worst + spent)


def _conditional_tail(
    m: Ints, n: int, margin: float, observed: float, rates: Floats, *, upper: bool
) -> Floats:
    """P(Z at least as extreme as `observed` | m discordant, rate) as an array (m, rates)."""
    sign = 1.0 if upper else -1.0

    def extreme(wins: Ints) -> NDArray[np.bool_]:
        # In ties of the statistic rounding must not decide: count them in.
        return np.asarray(sign * (tango_z(wins, m - wins, n, -margin) - observed) >= -1e-9)

    # Bisection for the least number of wins (upper) or losses (lower) that is as extreme.
    low, high = np.zeros_like(m), m + 1
    while np.any(low < high):
        middle = (low + high) // 2
        hit = extreme(middle if upper else m - middle) | (middle > m)
        high = np.where(hit, middle, high)
        low = np.where(hit, low, np.minimum(middle + 1, high))
    share = np.clip((rates - sign * margin) / (2 * rates), 0.0, 1.0)
    return np.asarray(
        stats.binom.sf(low[:, None] - 1, m[:, None], share[None, :]), dtype=np.float64
    )


def holm(p: ArrayLike, alphas: ArrayLike | None = None) -> list[float]:
    """Holm's adjusted p-values (1979), in the order given: the largest of (k - i) p_(i) up to each
    rank i, at most 1.

    With `alphas`, of which each claim has its own, the claims are ordered by p / alpha, and an
    adjusted p-value is compared with the alpha of its claim: the claim of rank i is shown if p <=
    alpha / (k - i) and all before it are. That is the closed test (Marcus, Peritz and Gabriel 1976,
    Biometrika 63:655-660) which rejects an intersection of r claims where one has p <= alpha / r:
    each claim is false at no more than its own alpha, and the chance of any false one is at most
    the mean alpha of the claims that do not hold. With equal alphas it is Holm's procedure.

    By hand because statsmodels' `multipletests` collects garbage on every call, a quarter of a
    second next to a model, and knows one alpha only.
    """
    values = np.asarray(p, dtype=np.float64)
    scale = np.ones_like(values)
    if alphas is not None and len(set(map(float, np.asarray(alphas)))) > 1:
        scale = np.asarray(alphas, dtype=np.float64)
    scaled = values / scale
    order = np.argsort(scaled, kind="stable")
    stepped = np.maximum.accumulate(scaled[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = stepped
    return [min(float(x), 1.0) for x in adjusted * scale]
