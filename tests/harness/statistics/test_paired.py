"""The statistics of paired outcomes against independent calculations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests

from harness.statistics import clustering, paired, sample_sizes


def likelihood_z(won: int, lost: int, n: int, difference: float) -> float:
    """Tango's Z with q found by maximising the trinomial likelihood numerically instead of by the
    closed form.
    """

    def negative(q: float) -> float:
        p = (q + difference, q, 1 - 2 * q - difference)
        return -sum(
            k * math.log(x) for k, x in zip((won, lost, n - won - lost), p, strict=True) if k
        )

    low, high = max(0.0, -difference), (1 - difference) / 2
    q = optimize.minimize_scalar(
        negative, bounds=(low + 1e-12, high - 1e-12), method="bounded", options={"xatol": 1e-13}
    ).x
    return float(
        (won - lost - n * difference) / math.sqrt(n * (2 * q + difference * (1 - difference)))
    )


def brute_p(won: int, lost: int, n: int, margin: float, *, upper: bool) -> float:
    """The exact p-value by summing the trinomial probabilities of every possible outcome, over a
    fine grid of rates.
    """
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
    [
        (20, 32, 1579, -0.01),
        (3, 9, 100, -0.03),
        (40, 10, 500, -0.02),
        (7, 7, 60, -0.1),
        (25, 5, 300, 0.04),
    ],
)
def test_tango_z_uses_the_maximum_likelihood_under_the_margin(
    won: int, lost: int, n: int, difference: float
) -> None:
    """The closed form equals the statistic whose nuisance parameter is found by numerical maximum
    likelihood.
    """
    assert float(paired.tango_z(won, lost, n, difference)) == pytest.approx(
        likelihood_z(won, lost, n, difference), abs=1e-4
    )


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(0, 300))
def test_tango_z_without_a_margin_is_mcnemar(won: int, lost: int) -> None:
    """At a difference of 0 the square of Z is McNemar's chi-square without a continuity
    correction.
    """
    assume(won + lost > 0)
    z = float(paired.tango_z(won, lost, 1000, 0.0))

    expected = statsmodels_mcnemar([[400, lost], [won, 0]], exact=False, correction=False).statistic

    assert z * z == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_tango_z_falls_as_the_difference_rises() -> None:
    """Z decreases in the hypothesised difference, which makes its inversion an interval."""
    z = paired.tango_z(20, 32, 1579, np.linspace(-0.2, 0.2, 401))

    assert (np.diff(z) < 0).all()


@pytest.mark.parametrize(
    ("won", "lost", "n"), [(20, 32, 1579), (0, 0, 1000), (0, 16, 1000), (50, 0, 50), (0, 50, 50)]
)
def test_interval_ends_where_the_test_turns(won: int, lost: int, n: int) -> None:
    """At the ends of the interval the one-sided test is at alpha exactly, and the estimate is
    within.
    """
    low, high = paired.interval(won, lost, n, 0.05)

    assert -1 <= low <= high <= 1
    assert low <= (won - lost) / n <= high
    if low > -1:
        assert float(paired.tango_z(won, lost, n, low)) == pytest.approx(
            stats.norm.isf(0.05), abs=1e-5
        )
    if high < 1:
        assert float(paired.tango_z(won, lost, n, high)) == pytest.approx(
            -stats.norm.isf(0.05), abs=1e-5
        )


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
    [
        (3, 9, 100, 0.03),
        (1, 0, 80, 0.05),
        (6, 2, 60, 0.1),
        (0, 12, 90, 0.05),
        (0, 0, 70, 0.02),
        (0, 4, 60, 0.05),
    ],
)
def test_exact_p_agrees_with_full_enumeration(
    won: int, lost: int, n: int, margin: float, upper: bool
) -> None:
    """The exact p-value, found by binomial tails, is that of summing over all outcomes."""
    expected = min(1.0, brute_p(won, lost, n, margin, upper=upper))

    assert paired.exact_p(won, lost, n, margin, upper=upper) == pytest.approx(
        expected, rel=0.01, abs=2e-4
    )


def test_exact_p_repairs_tango_where_few_samples_are_discordant() -> None:
    """15 losses and no gain of 986 at a budget of 1 point: Tango calls it a FAIL at 5 %, the exact
    test does not.
    """
    plain, guarded = paired.tango_p(0, 15, 986, 0.01), paired.guarded_p(0, 15, 986, 0.01)

    assert plain.inferior < 0.05 < guarded.inferior


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 30), st.integers(0, 30), st.sampled_from([0.005, 0.01, 0.03]))
def test_guarded_p_never_shows_both_claims(won: int, lost: int, margin: float) -> None:
    """No data show at once that the loss is below the budget and that it is above."""
    shown = paired.guarded_p(won, lost, 700, margin)

    assert shown.noninferior + shown.inferior >= 1 - 1e-9


def test_unchanged_model_needs_enough_samples() -> None:
    """With nothing changed PASS is shown from log(alpha) / log(1 - margin) samples on, which
    samples_for knows.
    """
    needed = math.ceil(sample_sizes.samples_for(0.0, 0.01, 0.0, 0.05, 0.8))

    assert paired.guarded_p(0, 0, needed, 0.01).noninferior <= 0.05
    assert paired.guarded_p(0, 0, needed - 2, 0.01).noninferior > 0.05


def test_design_effect_is_the_cluster_size_where_clusters_move_as_one() -> None:
    """Clusters of five whose samples all do the same have a design effect near five, independent
    samples near one.
    """
    rng = np.random.default_rng(0)
    fate = rng.choice([-1, 0, 1], 4000, p=[0.04, 0.93, 0.03])
    single = rng.choice([-1, 0, 1], (4000, 5), p=[0.04, 0.93, 0.03])
    sizes = np.full(4000, 5)

    together = clustering.design_effect(
        5 * fate, sizes, 5 * (fate > 0).sum(), 5 * (fate < 0).sum(), 0.02
    )
    apart = clustering.design_effect(
        single.sum(axis=1), sizes, (single > 0).sum(), (single < 0).sum(), 0.02
    )

    assert float(together) == pytest.approx(5, rel=0.01)
    assert 1 <= float(apart) < 1.1


def test_cluster_sums_keep_all_samples() -> None:
    """Clusters in any order and with gaps in their numbers are summed and counted."""
    sums, sizes = clustering.cluster_sums([1, -1, 1, 0], [7, 3, 7, 9])

    assert sums.tolist() == [-1, 2, 0]
    assert sizes.tolist() == [1, 2, 1]


@pytest.mark.parametrize(("n", "unpaired"), [(1319, 4.84), (4096, 2.75), (50000, 0.79)])
def test_smallest_margin_is_near_the_rule_of_thumb(n: int, unpaired: float) -> None:
    """At 4 % discordance the smallest margin is within 5 % of (z_alpha + z_power) sqrt(p_d / n),
    far below the unpaired one.
    """
    margin = 100 * sample_sizes.smallest_margin(n, 0.04, 0.0, 0.05, 0.8)

    thumb = 100 * (stats.norm.isf(0.05) + stats.norm.isf(0.2)) * math.sqrt(0.04 / n)
    assert margin == pytest.approx(thumb, rel=0.05)
    assert margin < unpaired / 3


@pytest.mark.parametrize(
    ("difference", "margin"),
    [(0.0, 0.01), (-0.005, 0.01), (-0.03, 0.01), (-0.3, 0.01), (-0.001, 0.003)],
)
def test_samples_for_reaches_the_wanted_power(difference: float, margin: float) -> None:
    """With the samples that samples_for names, the power is the wanted one."""
    n = sample_sizes.samples_for(0.05, margin, difference, 0.05, 0.8)

    assert sample_sizes.power(n, 0.05, margin, difference, 0.05) == pytest.approx(0.8, abs=1e-6)


def test_samples_for_is_infinite_on_the_budget() -> None:
    """A true loss equal to the budget is never decided."""
    assert math.isinf(sample_sizes.samples_for(0.04, 0.01, -0.01, 0.05, 0.8))


@settings(max_examples=10, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_that_of_statsmodels(p: list[float]) -> None:
    """The adjusted p-values are those of an independent implementation, in the order given."""
    assert paired.holm(p) == pytest.approx(multipletests(p, method="holm")[1].tolist())


def test_tango_z_is_infinite_where_the_data_rule_the_difference_out() -> None:
    """Unchanged samples exclude a difference of 1 either way, and say nothing against a difference
    of 0.
    """
    assert paired.tango_z(0, 0, 10, [1.0, -1.0, 0.0]).tolist() == [-math.inf, math.inf, 0.0]


def test_mcnemar_of_nothing_shows_nothing() -> None:
    """Without a discordant sample both p-values are 1."""
    assert paired.mcnemar(0, 0) == (1.0, 1.0)


def test_unchanged_model_is_never_shown_to_lose() -> None:
    """With nothing lost the exact p-value of a loss above the margin is 1, however many samples
    there are.
    """
    assert [paired.exact_p(0, 0, n, 0.02, upper=False) for n in (10, 300, 2000)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("groups", [2, 3, 30])
@pytest.mark.parametrize("inflation", [1.0, 2.5])
def test_interval_with_clusters_ends_at_students_quantile(groups: int, inflation: float) -> None:
    """With clusters Z over the root of the design effect is Student's quantile at both ends, groups
    - 1 degrees.
    """
    ends = paired.interval(200, 320, 1579, 0.05, inflation, groups)

    z = [float(paired.tango_z(200, 320, 1579, end)) / math.sqrt(inflation) for end in ends]
    assert z == pytest.approx(
        [stats.t.isf(0.05, groups - 1), -stats.t.isf(0.05, groups - 1)], abs=1e-4
    )


@pytest.mark.parametrize("sizes", [(3, 1, 5, 2, 2, 4), (4,), (1, 6)])
def test_design_effect_is_a_ratio_of_sums_over_samples(sizes: tuple[int, ...]) -> None:
    """Squares about the margin, summed by cluster times G / (G - 1), over squares summed by sample;
    several at once.
    """
    rng = np.random.default_rng(1)
    index = np.repeat(np.arange(len(sizes)), sizes)
    changes = rng.choice([-1, 0, 1], (40, len(index)), p=[0.3, 0.3, 0.4])
    net = np.stack([changes[:, index == g].sum(axis=1) for g in range(len(sizes))], axis=-1)

    counts = (changes > 0).sum(axis=1), (changes < 0).sum(axis=1)
    effect = clustering.design_effect(net, sizes, *counts, 0.1)

    together = sum((changes[:, index == g] + 0.1).sum(axis=1) ** 2 for g in range(len(sizes)))
    correction = len(sizes) / max(len(sizes) - 1, 1)
    expected = np.maximum(correction * together / ((changes + 0.1) ** 2).sum(axis=1), 1.0)
    assert effect == pytest.approx(expected, rel=1e-9)
    assert clustering.design_effect(net, np.tile(sizes, (40, 1)), *counts, 0.1) == pytest.approx(
        expected, rel=1e-9
    )
    assert expected.max() > 1


@pytest.mark.parametrize(
    ("won", "lost", "n", "margin"),
    [
        (20, 32, 1579, 0.02),
        (3, 9, 100, 0.03),
        (0, 15, 986, 0.01),
        (12, 2, 90, 0.02),
        (0, 5, 20, 0.05),
        (4, 30, 60, 0.1),
        (2, 0, 2, 0.1),
        (0, 2, 2, 0.1),
        (0, 1, 2, 0.4),
    ],
)
def test_clusters_that_move_as_one_count_as_one_sample(
    won: int, lost: int, n: int, margin: float
) -> None:
    """Clusters of five that change together have the p-values of as many single samples, with
    Student's t.
    """
    z = float(paired.tango_z(won, lost, n, -margin))

    shown = clustering.clustered_p(5 * won, 5 * lost, 5 * n, margin, 5.0, n)

    passing, failing = (
        paired.exact_p(won, lost, n, margin, upper=upper) for upper in (True, False)
    )
    assert shown.noninferior == pytest.approx(max(float(stats.t.sf(z, n - 1)), passing), rel=1e-9)
    assert shown.inferior == pytest.approx(max(float(stats.t.cdf(z, n - 1)), failing), rel=1e-9)


@pytest.mark.parametrize(("won", "lost", "n"), [(7, 9, 103), (1, 41, 201), (41, 1, 201)])
def test_effective_counts_are_rounded_against_the_claim(won: int, lost: int, n: int) -> None:
    """At a design effect of 2 odd counts are rounded to fewer gains and more losses for a PASS, and
    the reverse.
    """
    shown = clustering.clustered_p(won, lost, n, 0.03, 2.0, 10**6)

    passing = paired.exact_p(won // 2, (lost + 1) // 2, n // 2, 0.03, upper=True)
    failing = paired.exact_p((won + 1) // 2, lost // 2, (n + 1) // 2, 0.03, upper=False)
    assert shown.noninferior >= passing
    assert shown.inferior >= failing
    assert (passing, failing) == pytest.approx(
        (shown.noninferior, shown.inferior), rel=0.5, abs=1e-3
    )


@pytest.mark.parametrize("groups", [2, 3])
def test_clustered_p_is_students_where_that_is_the_larger(groups: int) -> None:
    """Few clusters leave few degrees of freedom: both p-values are Student's, with one fewer than
    clusters.
    """
    better, worse = (
        float(paired.tango_z(*counts, 1579, -0.02)) / math.sqrt(2.5)
        for counts in ((150, 0), (0, 150))
    )

    passing = clustering.clustered_p(150, 0, 1579, 0.02, 2.5, groups).noninferior
    failing = clustering.clustered_p(0, 150, 1579, 0.02, 2.5, groups).inferior

    assert passing == pytest.approx(stats.t.sf(better, groups - 1))
    assert failing == pytest.approx(stats.t.cdf(worse, groups - 1))


def test_effective_counts_never_exceed_the_effective_samples() -> None:
    """Rounded counts still fit into the rounded number of samples, of which there is at least
    one.
    """
    assert clustering.clustered_p(5, 5, 10, 0.1, 4.0, 100).noninferior >= paired.exact_p(
        1, 1, 2, 0.1, upper=True
    )
    assert clustering.clustered_p(0, 0, 6, 0.1, 5.0, 2).noninferior >= paired.exact_p(
        0, 0, 1, 0.1, upper=True
    )


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (0, 6), (6, 0), (3, 3), (1, 5)])
@pytest.mark.parametrize("inflation", [1.5, 5.0, 7.0])
def test_clustered_p_is_a_probability_with_hardly_a_sample(
    won: int, lost: int, inflation: float
) -> None:
    """Six samples in two clusters give p-values from 0 to 1 that show no two claims, at any design
    effect.
    """
    shown = clustering.clustered_p(won, lost, 6, 0.1, inflation, 2)

    assert 0 < shown.noninferior <= 1
    assert 0 < shown.inferior <= 1
    assert shown.noninferior + shown.inferior >= 1 - 1e-9


@pytest.mark.parametrize(
    ("discordance", "margin", "difference"),
    [(0.2, 0.05, -0.1), (0.1, 0.03, 0.05), (0.05, 0.02, -0.2), (0.3, 0.1, 0.0)],
)
def test_power_is_that_of_the_expected_counts(
    discordance: float, margin: float, difference: float
) -> None:
    """Z at the expected counts, rescaled from H0's deviation to the true one, is beyond its
    quantile with this chance.

    As many samples are discordant as the difference needs at least.
    """
    n, rate = 400, max(discordance, abs(difference))
    won, lost = n * (rate + difference) / 2, n * (rate - difference) / 2
    z = abs(float(paired.tango_z(won, lost, n, -margin)))
    under_h0 = math.sqrt(n) * abs(difference + margin) / z
    truly = math.sqrt(rate - difference**2)

    expected = stats.norm.cdf((z - stats.norm.isf(0.05)) * under_h0 / truly)

    assert sample_sizes.power(n, discordance, margin, difference, 0.05) == pytest.approx(
        expected, abs=1e-9
    )


def test_power_of_an_unchanged_model_is_all_or_nothing() -> None:
    """Where nothing can be discordant the test passes from a number of samples on, z_alpha^2 (1 -
    margin) / margin.
    """
    turn = stats.norm.isf(0.05) ** 2 * (1 - 0.02) / 0.02

    assert sample_sizes.power(1.01 * turn, 0.0, 0.02, 0.0, 0.05) == 1.0
    assert sample_sizes.power(0.99 * turn, 0.0, 0.02, 0.0, 0.05) == 0.0


def test_design_effect_divides_the_samples() -> None:
    """Power and smallest margin with a design effect are those of so many times fewer samples."""
    assert sample_sizes.power(3000, 0.05, 0.01, 0.0, 0.05, 3.0) == pytest.approx(
        sample_sizes.power(1000, 0.05, 0.01, 0.0, 0.05)
    )
    assert sample_sizes.smallest_margin(3000, 0.05, 0.0, 0.05, 0.8, 3.0) == pytest.approx(
        sample_sizes.smallest_margin(1000, 0.05, 0.0, 0.05, 0.8)
    )


def test_smallest_margin_is_all_where_no_margin_is_resolved() -> None:
    """Less than one effective sample resolves nothing: the margin is 1."""
    assert sample_sizes.smallest_margin(1, 0.04, 0.0, 0.05, 0.8, 100.0) == 1.0


Kinds = tuple[tuple[int, int], ...]


def rates_by_enumeration(
    kinds: Kinds, lost_share: tuple[float, ...], margin: float, alpha: float
) -> float:
    """Exact rate of a PASS where each cluster is lost as a whole with its kind's chance, and
    nothing else happens.
    """
    sizes = np.concatenate([np.full(count, size) for count, size in kinds])
    rate = 0.0
    most = [
        int(stats.binom.isf(1e-7, count, q))
        for (count, _), q in zip(kinds, lost_share, strict=True)
    ]
    for lost in itertools.product(*(range(m + 1) for m in most)):
        parts = [
            np.r_[np.full(k, -size), np.zeros(count - k)]
            for k, (count, size) in zip(lost, kinds, strict=True)
        ]
        net = np.concatenate(parts)
        samples = int(-net.sum())
        if float(paired.tango_z(0, samples, int(sizes.sum()), -margin)) < stats.norm.isf(alpha):
            continue
        shown = clustering.clustered_test(net, sizes, 0, samples, margin, alpha).shown
        chance = math.prod(
            float(stats.binom.pmf(k, count, q))
            for k, (count, _), q in zip(lost, kinds, lost_share, strict=True)
        )
        rate += chance * (shown.noninferior <= alpha)
    return rate


@pytest.mark.parametrize(
    ("kinds", "margin"),
    [
        (((1000, 1), (40, 50)), 0.01),
        (((300, 1), (20, 30)), 0.025),
        (((200, 1), (20, 20)), 0.05),
        (((600, 5), (20, 50)), 0.025),
        (((200, 1), (100, 5)), 0.05),
    ],
    ids=str,
)
def test_unequal_clusters_keep_alpha_by_enumeration(kinds: Kinds, margin: float) -> None:
    """A loss on the budget passes in at most alpha of all draws: spread evenly, or all of it in the
    large clusters.
    """
    samples = sum(count * size for count, size in kinds)
    in_large = (0.0, margin * samples / (kinds[1][0] * kinds[1][1]))

    assert rates_by_enumeration(kinds, (margin, margin), margin, 0.05) <= 0.05
    assert rates_by_enumeration(kinds, in_large, margin, 0.05) <= 0.05


def test_unequal_clusters_can_still_pass() -> None:
    """Many clusters of several sizes, an unchanged model: PASS, as the largest of them decides
    little.
    """
    sizes = np.repeat([1, 5], [200, 300])

    assert (
        clustering.clustered_test(np.zeros(500), sizes, 0, 0, 0.05, 0.05).shown.noninferior <= 0.05
    )


@pytest.mark.parametrize(
    ("n", "lost", "margin"), [(1000, 0, 0.01), (1000, 3, 0.01), (5000, 20, 0.01), (80, 2, 0.2)]
)
def test_bounded_p_of_single_samples_is_clopper_and_pearsons(
    n: int, lost: int, margin: float
) -> None:
    """With nothing won it is the exact binomial test, also where it is far below any alpha."""
    net = np.r_[-np.ones(lost), np.zeros(n - lost)]

    p = clustering.bounded_p(net, np.ones(n), margin, 1.0, upper=True)

    assert p == pytest.approx(stats.binom.cdf(lost, n, margin), rel=1e-6)


def test_exponential_tail_is_that_of_drawn_sums() -> None:
    """The inverted characteristic function agrees with sums of drawn exponential variables."""
    weights, counts = np.array([-6.0, -0.8, 0.1, 1.2]), np.array([1, 4, 60, 5])
    drawn = np.random.default_rng(0).gamma(counts, size=(200_000, 4)) @ weights

    assert clustering.exponential_tail(weights, counts) == pytest.approx(
        (drawn <= 0).mean(), abs=0.004
    )
    assert clustering.exponential_tail([1.0, 2.0], [3, 1]) == 0.0
    assert clustering.exponential_tail([-1.0, 0.5], [1, 1]) == 1.0


def test_bounded_interval_ends_where_the_test_turns() -> None:
    """At both ends of the interval the p-value is alpha, and clusters that were not lost widen it
    to below.
    """
    sizes = np.repeat([1, 50], [1000, 40])
    net = np.r_[-np.ones(8), np.ones(4), np.zeros(1028)]

    low, high = clustering.bounded_interval(net, sizes, 50.0, 0.05)

    assert clustering.bounded_p(net, sizes, -low, 50.0, upper=True) == pytest.approx(0.05, abs=1e-3)
    assert clustering.bounded_p(net, sizes, -high, 50.0, upper=False) == pytest.approx(
        0.05, abs=1e-3
    )
    assert low < -0.03


def test_effective_clusters_count_equal_ones_in_full() -> None:
    """Equal clusters count each; 1,000 single samples next to 40 clusters of 50 count for hardly
    more than 40.
    """
    assert clustering.effective_clusters(np.full(600, 5)) == pytest.approx(600)
    assert 40 < clustering.effective_clusters(np.repeat([1, 50], [1000, 40])) < 41


@pytest.mark.parametrize("alpha", [1e-3, 1e-4, 1e-6])
def test_small_alphas_can_be_kept_and_reached(alpha: float) -> None:
    """With the samples that samples_for names, an unchanged model passes at a small alpha; with
    fewer it does not.
    """
    needed = math.ceil(sample_sizes.samples_for(0.0, 0.01, 0.0, alpha, 0.8))

    assert paired.guarded_p(0, 0, needed, 0.01, alpha).noninferior <= alpha
    assert paired.guarded_p(0, 0, int(0.95 * needed), 0.01, alpha).noninferior > alpha


def test_holm_with_different_alphas_is_the_closed_test() -> None:
    """A claim is shown just when every intersection that holds it has some p of at most alpha over
    its size.
    """
    rng = np.random.default_rng(3)
    for _ in range(200):
        alphas = rng.choice([0.05, 0.01, 1e-4], 4)
        p = alphas * rng.uniform(0, 1.2, 4)
        sets = [s for r in range(1, 5) for s in itertools.combinations(range(4), r)]
        rejected = {s: any(p[i] <= alphas[i] / len(s) for i in s) for s in sets}
        closed = [all(rejected[s] for s in sets if i in s) for i in range(4)]

        assert [
            a <= alpha for a, alpha in zip(paired.holm(p, alphas), alphas, strict=True)
        ] == closed
