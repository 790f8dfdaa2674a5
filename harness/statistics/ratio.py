"""Statistics of a budget that is a share of the reference: is the quantized accuracy at least 99 %
of it?

`both` counts the samples that are right in both models, `won` and `lost` those right in one only.
The share is tested on paired samples: sample by sample, quantized minus share times reference has
the mean 0 at the edge of the budget. Nam and Blackwelder (2002, Statistics in Medicine 21:689-699)
give the score statistic with the variance of the maximum-likelihood estimates at that edge. As with
a margin in points (`harness.statistics.paired`), a bound that assumes no form of the distribution
guards it where few samples are discordant or clusters are large, and clusters enlarge the variance.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from harness.statistics import clustering, paired
from harness.statistics.clustering import ClusteredTest
from harness.statistics.paired import Shown

Floats = NDArray[np.float64]


def ratio_z(both: ArrayLike, won: ArrayLike, lost: ArrayLike, share: ArrayLike) -> Floats:
    """Return the score statistic of "the quantized accuracy is *share* times the reference's".

    Large values speak for more than the share, small ones for less; 0 where nothing is right. A
    share of 1 gives McNemar's statistic. Arguments broadcast.
    """
    a, b, c, s = (np.asarray(x, dtype=np.float64) for x in (both, won, lost, share))
    rest, whole, up = 1 - s, a + b + c, 1 + s
    # The expected count of lost samples at the edge is the larger root of a quadratic.
    half = up * rest * (a + c) + (b + c)
    root = np.sqrt(np.maximum(half * half - 4 * up * c * rest * whole, 0.0))
    expected_lost = (half + root) / (2 * up)
    expected_won = (expected_lost - rest * whole) / s
    variance = s * np.maximum(expected_lost + expected_won, 0.0)
    top = rest * a + b - s * c
    return paired.standardised(top, variance)


def ratio_test(
    right: ArrayLike, quantized_right: ArrayLike, clusters: ArrayLike, share: float, alpha: float
) -> ClusteredTest:
    """Test a share on paired samples, which may be in clusters.

    Args:
        right: where the reference is right, bool (n,).
        quantized_right: where the quantized model is right, bool (n,).
        clusters: number of each sample's cluster, int (n,).
        share: of the reference's accuracy that must be kept.
        alpha: what the p-values will be compared with.
    """
    before, after = (
        np.asarray(right, dtype=np.float64),
        np.asarray(quantized_right, dtype=np.float64),
    )
    sums, sizes = clustering.cluster_sums(after - share * before, clusters)
    both = float((before * after).sum())
    won, lost = float(after.sum()) - both, float(before.sum()) - both
    return clustered_ratio_test(sums, sizes, both, won, lost, share, alpha)


def clustered_ratio_test(
    sums: Floats, sizes: Floats, both: float, won: float, lost: float, share: float, alpha: float
) -> ClusteredTest:
    """Test a share from the clusters' *sums* of quantized minus share times reference."""
    n, groups = float(sizes.sum()), len(sizes)
    inflation, effective = 1.0, float(groups)
    z = float(ratio_z(both, won, lost, share))
    clustered = groups < n
    if clustered:
        together = float((sums**2).sum()) * groups / max(groups - 1, 1)
        apart = won + share**2 * lost + (1 - share) ** 2 * both
        inflation = max(1.0, together / apart) if apart > 0 else 1.0
        effective = clustering.effective_clusters(sizes)
        z /= math.sqrt(inflation)
    law = stats.t(max(effective - 1, 1)) if clustered else stats.norm()
    passing, failing = float(law.sf(z)), float(law.cdf(z))
    margin = (1 - share) * (both + lost) / n
    block = 1.0
    if clustered:
        net = sums + (1 - share) * sizes * (both + lost) / n
        block = clustering.unseen_block(net, sizes, round(won), round(lost), margin, upper=True)
    # One more cluster that is lost as a whole, or won: the smallest and the largest value it can
    # have. A p-value well above alpha shows nothing, however much larger it is.
    if passing <= 2 * alpha:
        passing = max(passing, _bounded(sums, -share * block))
    if failing <= 2 * alpha:
        failing = max(failing, _bounded(-sums, -block))
    return ClusteredTest(Shown(passing, failing), inflation, effective, block)


def _bounded(values: Floats, further: float) -> float:
    """Gaffke's p-value of "the mean is at most 0", see `clustering.bounded_p`."""
    rounded = np.round(np.append(values, further), 12)
    weights, counts = np.unique(rounded, return_counts=True)
    return clustering.exponential_tail(weights, counts)


def ratio_interval(
    both: float, won: float, lost: float, alpha: float, test: ClusteredTest, n: int
) -> tuple[float, float]:
    """Return the two-sided 1 - 2 alpha interval of the share, by inversion of the score test."""
    clustered = test.design_effect > 1 or test.groups < n
    law = stats.t(max(test.groups - 1, 1)) if clustered else stats.norm()
    critical = float(law.isf(alpha)) * math.sqrt(test.design_effect)
    estimate = (both + won) / (both + lost)

    def at(share: float, bound: float) -> float:
        return float(ratio_z(both, won, lost, share)) - bound

    low_edge, high_edge = 1e-6, max(10.0, 10 * estimate)
    low, high = 0.0, high_edge
    if at(low_edge, critical) > 0 > at(estimate, critical):
        low = float(optimize.brentq(at, low_edge, estimate, args=(critical,)))
    if at(high_edge, -critical) < 0 < at(estimate, -critical):
        high = float(optimize.brentq(at, estimate, high_edge, args=(-critical,)))
    return low, high
