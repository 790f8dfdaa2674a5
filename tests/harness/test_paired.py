"""The statistics of paired outcomes against independent calculations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests

from harness import paired


def likelihood_z(won: int, lost: int, n: int, difference: float) -> float:
    """Tango's Z with q found by maximising the trinomial likelihood numerically instead of by the closed form."""

    def negative(q: float) -> float:
        p = (q + difference, q, 1 - 2 * q - difference)
        return -sum(k * math.log(x) for k, x in zip((won, lost, n - won - lost), p, strict=True) if k)

    low, high = max(0.0, -difference), (1 - difference) / 2
    q = optimize.minimize_scalar(
        negative, bounds=(low + 1e-12, high - 1e-12), method="bounded", options={"xatol": 1e-13}
    ).x
    return float((won - lost - n * difference) / math.sqrt(n * (2 * q + difference * (1 - difference))))


def brute_p(won: int, lost: int, n: int, margin: float, *, upper: bool) -> float:
    """The exact p-value by summing the trinomial probabilities of every possible outcome, over a fine grid of rates."""
    b, c = (x.ravel() for x in np.meshgrid(np.arange(n + 1), np.arange(n + 1)))
    b, c = b[b + c <= n], c[b + c <= n]
    z, observed = paired.tango_z(b, c, n, -margin), paired.tango_z(won, lost, n, -margin)
    extreme = z >= observed - 1e-9 if upper else z <= observed + 1e-9
    ends = stats.binomtest(won + lost, n).proportion_ci(1 - paired.CONFIDENCE_SET, method="exact")
    worst = 0.0
    for rate in np.linspace(max(ends.low, margin if upper else 1e-12), ends.high, 400):
        loss = min(margin, rate)
        p = [(rate - loss) / 2, (rate + loss) / 2, 1 - rate]
        mass = stats.multinomial.pmf(np.stack([b, c, n - b - c], axis=-1)[extreme], n, p)
        worst = max(worst, float(np.sum(mass)))
    return worst + paired.CONFIDENCE_SET


@pytest.mark.parametrize(
    ("won", "lost", "n", "difference"),
    [(20, 32, 1579, -0.01), (3, 9, 100, -0.03), (40, 10, 500, -0.02), (7, 7, 60, -0.1), (25, 5, 300, 0.04)],
)
def test_tango_z_uses_the_maximum_likelihood_under_the_margin(won: int, lost: int, n: int, difference: float) -> None:
    """The closed form equals the statistic whose nuisance parameter is found by numerical maximum likelihood."""
    assert float(paired.tango_z(won, lost, n, difference)) == pytest.approx(
        likelihood_z(won, lost, n, difference), abs=1e-4
    )


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(0, 300))
def test_tango_z_without_a_margin_is_mcnemar(won: int, lost: int) -> None:
    """At a difference of 0 the square of Z is McNemar's chi-square without a continuity correction."""
    assume(won + lost > 0)
    z = float(paired.tango_z(won, lost, 1000, 0.0))

    expected = statsmodels_mcnemar([[400, lost], [won, 0]], exact=False, correction=False).statistic

    assert z * z == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_tango_z_falls_as_the_difference_rises() -> None:
    """Z decreases in the hypothesised difference, which makes its inversion an interval."""
    z = paired.tango_z(20, 32, 1579, np.linspace(-0.2, 0.2, 401))

    assert (np.diff(z) < 0).all()


@pytest.mark.parametrize(("won", "lost", "n"), [(20, 32, 1579), (0, 0, 1000), (0, 16, 1000), (50, 0, 50), (0, 50, 50)])
def test_interval_ends_where_the_test_turns(won: int, lost: int, n: int) -> None:
    """At the ends of the interval the one-sided test is at alpha exactly, and the estimate lies within."""
    low, high = paired.interval(won, lost, n, 0.05)

    assert low <= (won - lost) / n <= high
    if low > -1:
        assert float(paired.tango_z(won, lost, n, low)) == pytest.approx(stats.norm.isf(0.05), abs=1e-5)
    if high < 1:
        assert float(paired.tango_z(won, lost, n, high)) == pytest.approx(-stats.norm.isf(0.05), abs=1e-5)


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_binomial_tail(won: int, lost: int) -> None:
    """The one-sided p-value is the sum of C(won + lost, k) / 2^(won + lost) over k >= lost."""
    total = won + lost
    expected = sum(math.comb(total, k) for k in range(lost, total + 1)) / 2**total

    assert paired.mcnemar(won, lost)[0] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("upper", [True, False])
@pytest.mark.parametrize(
    ("won", "lost", "n", "margin"),
    [(3, 9, 100, 0.03), (1, 0, 80, 0.05), (6, 2, 60, 0.1), (0, 12, 90, 0.05), (0, 0, 70, 0.02)],
)
def test_exact_p_agrees_with_full_enumeration(won: int, lost: int, n: int, margin: float, upper: bool) -> None:
    """The exact p-value, found by binomial tails, is that of summing over all outcomes."""
    expected = min(1.0, brute_p(won, lost, n, margin, upper=upper))

    assert paired.exact_p(won, lost, n, margin, upper=upper) == pytest.approx(expected, rel=0.01, abs=2e-4)


def test_exact_p_repairs_tango_where_few_samples_are_discordant() -> None:
    """15 losses and no gain of 986 at a budget of 1 point: Tango calls it a FAIL at 5 %, the exact test does not."""
    plain, guarded = paired.tango_p(0, 15, 986, 0.01), paired.guarded_p(0, 15, 986, 0.01)

    assert plain.inferior < 0.05 < guarded.inferior


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 30), st.integers(0, 30), st.sampled_from([0.005, 0.01, 0.03]))
def test_guarded_p_never_shows_both_claims(won: int, lost: int, margin: float) -> None:
    """No data show at once that the loss is below the budget and that it is above."""
    shown = paired.guarded_p(won, lost, 700, margin)

    assert shown.noninferior + shown.inferior >= 1 - 1e-9


def test_unchanged_model_needs_enough_samples() -> None:
    """With nothing changed PASS is shown from log(alpha) / log(1 - margin) samples on, which samples_for knows."""
    needed = math.ceil(paired.samples_for(0.0, 0.01, 0.0, 0.05, 0.8))

    assert paired.guarded_p(0, 0, needed, 0.01).noninferior <= 0.05
    assert paired.guarded_p(0, 0, needed - 2, 0.01).noninferior > 0.05


def test_design_effect_is_the_cluster_size_where_clusters_move_as_one() -> None:
    """Clusters of five whose samples all do the same have a design effect near five, independent samples near one."""
    rng = np.random.default_rng(0)
    fate = rng.choice([-1, 0, 1], 4000, p=[0.04, 0.93, 0.03])
    single = rng.choice([-1, 0, 1], (4000, 5), p=[0.04, 0.93, 0.03])
    sizes = np.full(4000, 5)

    together = paired.design_effect(5 * fate, sizes, 5 * (fate > 0).sum(), 5 * (fate < 0).sum(), 0.02)
    apart = paired.design_effect(single.sum(axis=1), sizes, (single > 0).sum(), (single < 0).sum(), 0.02)

    assert float(together) == pytest.approx(5, rel=0.01)
    assert 1 <= float(apart) < 1.1


def test_cluster_sums_keep_all_samples() -> None:
    """Clusters in any order and with gaps in their numbers are summed and counted."""
    sums, sizes = paired.cluster_sums([1, -1, 1, 0], [7, 3, 7, 9])

    assert sums.tolist() == [-1, 2, 0]
    assert sizes.tolist() == [1, 2, 1]


@pytest.mark.parametrize(("n", "unpaired"), [(1319, 4.84), (4096, 2.75), (50000, 0.79)])
def test_smallest_margin_is_near_the_rule_of_thumb(n: int, unpaired: float) -> None:
    """At 4 % discordance the smallest margin is within 5 % of (z_alpha + z_power) sqrt(p_d / n), far below the
    unpaired one.
    """
    found = 100 * paired.smallest_margin(n, 0.04, 0.0, 0.05, 0.8)

    thumb = 100 * (stats.norm.isf(0.05) + stats.norm.isf(0.2)) * math.sqrt(0.04 / n)
    assert found == pytest.approx(thumb, rel=0.05)
    assert found < unpaired / 3


@pytest.mark.parametrize(("difference", "margin"), [(0.0, 0.01), (-0.005, 0.01), (-0.03, 0.01), (-0.001, 0.003)])
def test_samples_for_reaches_the_wanted_power(difference: float, margin: float) -> None:
    """With the samples that samples_for names, the power is the wanted one."""
    n = paired.samples_for(0.05, margin, difference, 0.05, 0.8)

    assert paired.power(n, 0.05, margin, difference, 0.05) == pytest.approx(0.8, abs=1e-6)


def test_samples_for_is_infinite_on_the_budget() -> None:
    """A true loss equal to the budget is never decided."""
    assert math.isinf(paired.samples_for(0.04, 0.01, -0.01, 0.05, 0.8))


@settings(max_examples=10, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_that_of_statsmodels(p: list[float]) -> None:
    """The adjusted p-values are those of an independent implementation, in the order given."""
    assert paired.holm(p) == pytest.approx(multipletests(p, method="holm")[1].tolist())
