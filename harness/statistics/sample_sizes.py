"""How many samples a paired test needs, and which loss a number of samples can show."""

from __future__ import annotations

import math

from scipy import optimize, stats

from harness.statistics.paired import confidence_set


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
