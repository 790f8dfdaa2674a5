"""Paired tests where samples come in clusters: their sums, signs, design effect and blocks.

Sources: Rao and Scott (1992, Biometrics 48:577-585), Miller (2024, arXiv 2411.00640) and Gaffke
(2005, Mathematical Methods of Statistics 14:451-467).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import integrate, optimize, stats

from harness.statistics.paired import (
    ALIKE,
    FEW,
    Floats,
    Shown,
    confidence_set,
    exact_p,
    mcnemar,
    tango_z,
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
