"""Statistics of paired 0/1 outcomes: numbers in, numbers out, no policy.

`won` counts the samples that are right only in the quantized model, `lost` those right only in the
reference, `n` all samples. The difference is (won - lost) / n, a fraction: negative is a loss. A
margin is a positive fraction: 0.01 is one point.

Sources: McNemar (1947) for "has anything changed"; Tango (1998, Statistics in Medicine 17:891-908)
for the margin; Hsueh, Liu and Chen (2001, Biometrics 57:478-483) for the exact unconditional
p-value of that statistic, with the confidence set of Berger and Boos (1994, JASA 89:1012-1016) for
the nuisance parameter; Rao and Scott (1992, Biometrics 48:577-585), Miller (2024, arXiv 2411.00640)
and Gaffke (2005, Mathematical Methods of Statistics 14:451-467) for clusters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import integrate, optimize, stats

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


def cluster_sums(per_sample: ArrayLike, clusters: ArrayLike) -> tuple[Floats, Floats]:
    """Sum of `per_sample` (n,) and sample count of each cluster, both (clusters,), in the order of
    the cluster numbers.
    """
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.bincount(index, np.asarray(per_sample, dtype=np.float64)).astype(np.float64)
    return sums, np.bincount(index).astype(np.float64)


def design_effect(
    net: ArrayLike, sizes: ArrayLike, won: ArrayLike, lost: ArrayLike, margin: float
) -> Floats:
    """Variance of the difference with clusters over that without, at a loss of `margin`; at least
    1.

    `net` (..., clusters) is won - lost of each cluster, `sizes` (clusters,) or (..., clusters)
    their samples, `won` and `lost` (...) the totals. Both variances are taken about the margin, not
    about the observed loss: where almost nothing changed they then tend to that of whole clusters,
    the cautious end, instead of to 0/0.
    """
    sums, m = np.asarray(net, dtype=np.float64), np.asarray(sizes, dtype=np.float64)
    b, c = np.asarray(won, dtype=np.float64), np.asarray(lost, dtype=np.float64)
    groups = sums.shape[-1]
    same = b + c
    together = ((sums + margin * m) ** 2).sum(axis=-1) * groups / max(groups - 1, 1)
    apart = b * (1 + margin) ** 2 + c * (1 - margin) ** 2 + (m.sum(axis=-1) - same) * margin**2
    return np.asarray(np.maximum(together / apart, 1.0), dtype=np.float64)


def clustered_p(
    won: int, lost: int, n: int, margin: float, inflation: float, groups: float, alpha: float = 0.05
) -> Shown:
    """Both p-values with clusters: Tango's Z over the root of the design effect, against Student's
    t with groups - 1 degrees.

    Raised to the exact p-value at the effective counts (each divided by the design effect and
    rounded against the claim), as in `guarded_p`: with few discordant clusters the design effect
    itself is uncertain.
    """
    z = float(tango_z(won, lost, n, -margin)) / math.sqrt(inflation)
    degrees, spent = max(groups - 1, 1), confidence_set(alpha)
    down = [math.floor(x / inflation) for x in (won, lost, n)]
    up = [math.ceil(x / inflation) for x in (won, lost, n)]
    total = max(down[2], 1)
    passing = exact_p(down[0], min(up[1], total - down[0]), total, margin, upper=True, spent=spent)
    failing = exact_p(up[0], down[1], max(up[2], up[0] + down[1]), margin, upper=False, spent=spent)
    return Shown(
        max(float(stats.t.sf(z, degrees)), passing), max(float(stats.t.cdf(z, degrees)), failing)
    )


@dataclass(frozen=True)
class ClusteredTest:
    """`shown` by samples in clusters, the design effect, and the effective number of clusters.

    `block`: the samples that a further cluster could lose at once, by which the p-values allow for
    clusters that change as a whole and of which none happens to be among the data.
    """

    shown: Shown
    design_effect: float
    groups: float
    block: float


def clustered_test(
    net: ArrayLike, sizes: ArrayLike, won: int, lost: int, margin: float, alpha: float
) -> ClusteredTest:
    """Test a margin on samples in clusters: `net` (clusters,) is won - lost of each, `sizes`
    (clusters,) its samples.

    `clustered_p` alone trusts the variance that was observed. That fails where a few large clusters
    hold much of the data: as long as none of them happens to be lost, nothing shows that they could
    be (1,000 single samples and 40 clusters of 50 at a budget of 1 point: 66 % false PASS instead
    of 5 %). So each p-value is raised to that of `bounded_p`, which holds however the loss is
    distributed among the clusters.
    """
    sums, counts = np.asarray(net, dtype=np.float64), np.asarray(sizes, dtype=np.float64)
    n = int(counts.sum())
    inflation = float(design_effect(sums, counts, won, lost, margin))
    groups = effective_clusters(counts)
    plain = clustered_p(won, lost, n, margin, inflation, groups, alpha)
    block = unseen_block(sums, counts, won, lost, margin, upper=True)
    passing, failing = plain.noninferior, plain.inferior
    # A p-value of a half or more shows nothing, however much larger it is.
    if passing < 0.5:
        passing = max(passing, bounded_p(sums, counts, margin, block, upper=True))
    if failing < 0.5:
        other = unseen_block(sums, counts, won, lost, margin, upper=False)
        failing = max(failing, bounded_p(sums, counts, margin, other, upper=False))
    shown = Shown(passing, failing)
    return ClusteredTest(shown, inflation, groups, block)


def effective_clusters(sizes: ArrayLike) -> float:
    """Number of clusters of one size whose variance is estimated as well: (sum of m^2)^2 / sum of
    m^4.

    Satterthwaite's degrees of freedom (1946, Biometrics Bulletin 2:110-114) plus one, for clusters
    whose variances go with the squares of their sizes m.
    """
    squares = np.asarray(sizes, dtype=np.float64) ** 2
    return float(squares.sum() ** 2 / (squares**2).sum())


def unseen_block(
    net: ArrayLike, sizes: ArrayLike, won: int, lost: int, margin: float, *, upper: bool
) -> float:
    """Samples that a cluster which is not among the data could lose (upper) or win at once, for
    `bounded_p`.

    All samples of the largest cluster, unless the clusters are of about one size (ALIKE) and so few
    (FEW) that such a bound would decide nothing, whatever they show. Then they are taken as alike,
    and it is the design effect that they would have with one more cluster, lost or won as a whole.
    """
    sums, counts = np.asarray(net, dtype=np.float64), np.asarray(sizes, dtype=np.float64)
    n, largest = counts.sum(), float(counts.max())
    if largest > ALIKE * counts.min() or n * margin >= FEW * largest:
        return largest
    further = 1 - margin if upper else 1 + margin
    together = ((sums + margin * counts) ** 2).sum() + (largest * further) ** 2
    apart = (
        won * (1 + margin) ** 2
        + lost * (1 - margin) ** 2
        + (n - won - lost) * margin**2
        + largest * further**2
    )
    return float(min(max(together / apart, 1.0), largest))


def bounded_p(
    net: ArrayLike, sizes: ArrayLike, margin: float, block: float, *, upper: bool
) -> float:
    """p-value of "the loss is at least the margin" (upper), or at most, that assumes no form of the
    distribution.

    Gaffke's test (2005): the sum of the clusters' net + margin * size is weighted by independent
    exponential variables, with one more cluster of `block` samples that is lost (upper) or won as a
    whole; p is the probability that the sum is at most 0 (at least 0). For single samples of which
    none is won it is the test of Clopper and Pearson (1934); for many clusters it tends to
    Student's. That it never exceeds its level for a bounded variable is proven in special cases and
    a conjecture in general (Learned-Miller and Thomas 2019, arXiv 1905.06208; Phan et al. 2021,
    arXiv 2106.03163); the tests enumerate it for clusters of unequal size.
    """
    sign = 1.0 if upper else -1.0
    values = sign * (
        np.asarray(net, dtype=np.float64) + margin * np.asarray(sizes, dtype=np.float64)
    )
    weights, counts = np.unique(np.append(values, -block * (1 - sign * margin)), return_counts=True)
    return exponential_tail(weights, counts)


def bounded_interval(
    net: ArrayLike, sizes: ArrayLike, block: float, alpha: float
) -> tuple[float, float]:
    """Two-sided 1 - 2 alpha interval of the true difference (fractions) by inversion of
    `bounded_p`.
    """

    def excess(difference: float, upper: bool) -> float:
        return bounded_p(net, sizes, -difference, block, upper=upper) - alpha

    edge = 1 - 1e-9
    ends = []
    for upper, far in ((True, -edge), (False, edge)):
        estimate = float(np.sum(net) / np.sum(sizes))
        if excess(far, upper) >= 0 or abs(estimate) >= edge:
            ends.append(math.copysign(1.0, far))
        else:
            ends.append(float(optimize.brentq(excess, far, estimate, args=(upper,), xtol=1e-6)))
    return ends[0], ends[1]


def exponential_tail(weights: ArrayLike, counts: ArrayLike) -> float:
    """P(sum of w_j G_j <= 0) for independent Gamma variables G_j of shape `counts`; 1 where the
    mean is at most 0.

    The characteristic function is inverted along the vertical line through the saddle point
    (Daniels 1954, Annals of Mathematical Statistics 25:631-650), where nothing cancels: small
    probabilities are as exact as large ones.
    """
    w, k = np.asarray(weights, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    if (w * k).sum() <= 0:
        return 1.0
    if w.min() >= 0:
        return 0.0
    pole = 1 / w.min()

    def slope(t: float) -> float:
        return float((k * w / (1 - w * t)).sum())

    # The slope falls from the mean at 0 to minus infinity at the pole.
    near = pole * (1 - 1e-12)
    saddle = float(optimize.brentq(slope, near, 0.0)) if slope(near) < 0 else near
    saddle = max(min(saddle, -0.5 / math.sqrt((k * w * w).sum())), near)
    bent = w / (1 - w * saddle)
    width = 1 / math.sqrt((k * bent * bent).sum())

    def density(u: float) -> float:
        step = u * width
        log_value = -(k * np.log1p(-1j * bent * step)).sum()
        return float((np.exp(log_value) / -(saddle + 1j * step)).real)

    area = integrate.quad(density, 0, np.inf, limit=400, epsabs=0, epsrel=1e-8)[0] * width / math.pi
    height = math.exp(-float((k * np.log1p(-w * saddle)).sum()))
    return min(1.0, max(0.0, height * float(area)))


def cluster_sign(net: ArrayLike) -> tuple[float, float]:
    """Exact sign test over clusters (one-sided for a loss, two-sided), in McNemar's place where
    samples are not independent.

    If quantization changed nothing, reference and quantized model are exchangeable within a
    cluster, so a cluster is as likely to lose as to win.
    """
    signs = np.sign(np.asarray(net))
    return mcnemar(int((signs > 0).sum()), int((signs < 0).sum()))


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


def power(
    n: float,
    discordance: float,
    margin: float,
    difference: float,
    alpha: float,
    inflation: float = 1.0,
) -> float:
    """Probability that Tango's test decides: PASS if the true `difference` lies above -margin, FAIL
    if below (fractions).

    Phi((sqrt(n) |difference + margin| - z_alpha s0) / s1): s0 is the standard deviation under H0 at
    the expected counts, s1 the true one, sqrt(discordance - difference^2). With a difference of 0
    it is close to (z_alpha + z_power) sqrt(discordance / n).
    """
    s0, s1 = _deviations(discordance, margin, difference)
    gap = math.sqrt(n / inflation) * abs(difference + margin) - float(stats.norm.isf(alpha)) * s0
    return float(stats.norm.cdf(gap / s1)) if s1 > 0 else float(gap > 0)


def samples_for(
    discordance: float,
    margin: float,
    difference: float,
    alpha: float,
    wanted: float,
    inflation: float = 1.0,
    block: float = 1.0,
) -> float:
    """Samples with which the test decides with probability `wanted`; infinite where the true
    difference is the margin.

    At least log(alpha) / log(1 - margin) for a PASS: with fewer, not even an unchanged model can
    show it (`exact_p`). With a `block`, the samples that an unseen cluster could lose at once
    (`bounded_p`), at least so many that such a cluster is unlikely to be missed.
    """
    gap = abs(difference + margin)
    if gap < 1e-9:
        return math.inf
    s0, s1 = _deviations(discordance, margin, difference)
    normal = float(stats.norm.isf(alpha)) * s0 + float(stats.norm.ppf(wanted)) * s1
    least = 0.0
    if difference > -margin:
        evidence = -math.log(alpha - confidence_set(alpha))
        least = max(
            inflation * evidence / -math.log1p(-margin),
            _blocks(block) * evidence * (1 - margin) / gap,
        )
    return max(inflation * (max(normal, 0.0) / gap) ** 2, least)


def smallest_margin(
    n: float,
    discordance: float,
    difference: float,
    alpha: float,
    wanted: float,
    inflation: float = 1.0,
    block: float = 1.0,
) -> float:
    """Smallest margin (a fraction) that n samples resolve: PASS with probability `wanted` at the
    true `difference`; 1 if none.
    """

    def short(margin: float) -> float:
        return power(n, discordance, margin, difference, alpha, inflation) - wanted

    low = max(-difference, 0.0) + 1e-9
    if low >= 1 - 1e-9 or short(1 - 1e-9) < 0:
        return 1.0
    smallest = low if short(low) >= 0 else float(optimize.brentq(short, low, 1 - 1e-9))
    evidence = -math.log(alpha - confidence_set(alpha)) * _blocks(block)
    return max(smallest, (evidence - n * difference) / (n + evidence))


def _blocks(block: float) -> float:
    """A block of single samples adds nothing to what the exact p-value asks for."""
    return block if block > 1 else 0.0


def _deviations(discordance: float, margin: float, difference: float) -> tuple[float, float]:
    """Standard deviations of one sample's change under H0 (loss == margin, Tango's q at the
    expected counts) and in truth.
    """
    rate = max(discordance, abs(difference))
    won, lost = (rate + difference) / 2, (rate - difference) / 2
    half = -(won + lost) - (2 - won + lost) * margin
    q = (math.sqrt(max(half * half - 8 * lost * margin * (1 + margin), 0.0)) - half) / 4
    return math.sqrt(2 * q - margin * (1 + margin)), math.sqrt(max(rate - difference**2, 0.0))
