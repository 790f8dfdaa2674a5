"""The early stop: a test by betting that may be looked at after every batch."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from drawn import pair

from harness.data.tasks import Outcomes
from harness.statistics.sequential import STAKES, Sequential, log_wealth, shuffled
from harness.statistics.verdicts import Budget, Decision, compare, family


def changes(n: int, lost: float, won: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Losses and wins of n samples, in random order, at these rates."""
    fate = np.random.default_rng(seed).random(n)
    return fate < lost, fate > 1 - won


def part(outcomes: Outcomes, order: np.ndarray) -> Outcomes:
    """The outcomes of some samples, in an order."""
    arrays = ("correct", "answers", "top5", "targets", "margins", "clusters")
    fields = {name: getattr(outcomes, name)[order] for name in arrays}
    return dataclasses.replace(
        outcomes, sample_ids=tuple(outcomes.sample_ids[i] for i in order), **fields
    )


def test_wealth_is_the_product_of_the_bets() -> None:
    """Log wealth from counts is the log of the mean over stakes of the product over samples, one by
    one.
    """
    x = np.array([0, 0, -1, 0, 1, -1, 0, 1, 1, 0])
    margin = 0.02
    grown = np.mean([np.prod(1 + g * (x + margin) / (1 - margin)) for g in STAKES])
    shrunk = np.mean([np.prod(1 - g * (x + margin) / (1 + margin)) for g in STAKES])

    wealth = log_wealth([-1, 0, 1], [1, 1, 1], [2, 5, 3], margin)

    assert [float(w) for w in wealth] == pytest.approx([math.log(grown), math.log(shrunk)])


@pytest.mark.parametrize("margin", [0.005, 0.02, 0.3])
@pytest.mark.parametrize("discordance", [0.3, 0.6])
def test_wealth_cannot_grow_on_average_at_the_margin(margin: float, discordance: float) -> None:
    """One bet multiplies the wealth by 1 on average where the true loss is the margin: the bound of
    Ville's inequality.
    """
    won, lost = (discordance - margin) / 2, (discordance + margin) / 2
    for counts, p in (((1, 0, 0), lost), ((0, 1, 0), 1 - discordance), ((0, 0, 1), won)):
        assert p >= 0, counts
    wealth = np.exp([log_wealth([-1, 0, 1], [1, 1, 1], c, margin) for c in np.eye(3)])

    assert np.array([lost, 1 - discordance, won]) @ wealth == pytest.approx([1.0, 1.0])


def test_wealth_survives_a_large_task() -> None:
    """A million plain samples neither overflow nor decide wrongly."""
    grown, shrunk = log_wealth([-1, 0, 1], [1, 1, 1], [1000, 998_000, 1000], 0.02)

    assert np.isfinite([grown, shrunk]).all()
    assert grown > 1000
    assert shrunk < 0


@pytest.mark.parametrize(
    ("lost", "won", "expected"), [(0.02, 0.02, Decision.PASS), (0.09, 0.01, Decision.FAIL)]
)
def test_update_decides_before_the_end_and_keeps_to_it(
    lost: float, won: float, expected: Decision
) -> None:
    """A plain truth is decided early, and later samples, even contrary ones, do not change it."""
    losses, wins = changes(20_000, lost, won)
    test = Sequential(Budget(2.0))
    used = next(
        i for i in range(0, 20_000, 100) if test.update(losses[i : i + 100], wins[i : i + 100])
    )

    assert test.decision is expected
    assert used < 5000
    contrary = np.ones(5000, dtype=bool)
    assert test.update(contrary if expected is Decision.PASS else ~contrary, ~contrary) is expected
    assert test.used == used + 100


def test_update_does_not_depend_on_the_batches() -> None:
    """The wealth after the same samples is the same whatever batches they came in."""
    losses, wins = changes(700, 0.03, 0.02)
    once, often = Sequential(Budget(2.0)), Sequential(Budget(2.0))
    once.update(losses, wins)
    for i in range(0, 700, 7):
        often.update(losses[i : i + 7], wins[i : i + 7])

    assert once.decision is often.decision is None
    assert dataclasses.astuple(once.shown) == pytest.approx(dataclasses.astuple(often.shown))
    assert once.interval() == pytest.approx(often.interval())


@pytest.mark.parametrize("seed", range(5))
def test_interval_holds_the_estimate_and_agrees_with_the_decision(seed: int) -> None:
    """The interval holds the measured difference; the budget lies below it just when PASS is shown,
    above just when FAIL is.
    """
    losses, wins = changes(1500, 0.04, 0.01, seed)
    measured = (wins.sum() - losses.sum()) / 1500
    for points in (0.5, 1.5, 3.0, 5.0, 8.0):
        test = Sequential(Budget(points))
        decision = test.update(losses, wins)
        low, high = test.interval()

        assert low < measured < high
        assert (decision is Decision.PASS) is (low > -points / 100)
        assert (decision is Decision.FAIL) is (high < -points / 100)


def test_clusters_are_single_bets() -> None:
    """Clusters of five that move as one give the evidence of single samples, a fifth as many; as
    singles they would decide.
    """
    losses, wins = changes(400, 0.02, 0.02)
    five = np.repeat(losses, 5), np.repeat(wins, 5)
    single, clustered, naive = (
        Sequential(Budget(3.0)),
        Sequential(Budget(3.0), largest_cluster=5),
        Sequential(Budget(3.0)),
    )
    single.update(losses, wins)
    clustered.update(*five, clusters=np.repeat(np.arange(400), 5))
    naive.update(*five)

    assert clustered.used == 2000
    assert dataclasses.astuple(clustered.shown) == pytest.approx(dataclasses.astuple(single.shown))
    assert naive.decision is Decision.PASS
    assert clustered.decision is None


def test_update_refuses_clusters_that_break_the_bets() -> None:
    """A cluster split over batches, or larger than announced, is an error: its bets would not be
    independent or bounded.
    """
    test = Sequential(Budget(1.0), largest_cluster=2)
    test.update([False, False], [False, False], clusters=[1, 1])

    with pytest.raises(ValueError, match="cluster 1 comes in two batches"):
        test.update([False], [False], clusters=[1])
    with pytest.raises(ValueError, match="largest was to be 2"):
        test.update([False] * 3, [False] * 3, clusters=[2, 2, 2])


@pytest.mark.parametrize(
    ("fields", "reported"), [({"share": 0.0}, "share"), ({"largest_cluster": 0}, "largest_cluster")]
)
def test_sequential_refuses_senseless_settings(fields: dict[str, float], reported: str) -> None:
    """No alpha to spend and empty clusters are errors."""
    with pytest.raises(ValueError, match=reported):
        Sequential(Budget(1.0), **fields)  # type: ignore[arg-type]


def test_verdict_after_an_early_stop_says_so() -> None:
    """The verdict carries the decision, the fraction used and an interval wider than that of a
    fixed-sample test.
    """
    reference, quantized = pair(8000, 160, 160)
    order = shuffled(reference.clusters, seed=1)[:2000]
    reference, quantized = part(reference, order), part(quantized, order)
    test = Sequential(Budget(3.0))
    test.update(reference.correct & ~quantized.correct, quantized.correct & ~reference.correct)

    verdict = test.verdict(reference, quantized, total=8000)

    plain = compare(reference, quantized, Budget(3.0))
    assert verdict.decision is Decision.PASS
    assert verdict.fraction_used == 0.25
    assert "decided early, on 25.0% of the task's samples" in verdict.message()
    assert verdict.interval[0] < plain.interval[0] < plain.interval[1] < verdict.interval[1]
    assert family([verdict]).decision is Decision.PASS


def test_verdict_of_an_undecided_task_spends_the_alpha_that_is_left() -> None:
    """At the end the fixed-sample test runs at half of alpha, so a result between the two is no
    longer a PASS.
    """
    reference, quantized = pair(1000, 30, 20)
    test = Sequential(Budget(2.4))
    test.update(reference.correct & ~quantized.correct, quantized.correct & ~reference.correct)

    verdict = test.verdict(reference, quantized, total=1000)

    plain = compare(reference, quantized, Budget(2.4))
    assert plain.decision is Decision.PASS
    assert 0.025 < plain.p_noninferior < 0.05
    assert verdict.decision is Decision.INCONCLUSIVE
    assert verdict.p_noninferior == pytest.approx(2 * plain.p_noninferior)
    assert family([verdict]).decision is Decision.INCONCLUSIVE


def test_verdict_refuses_to_come_too_early_or_from_other_samples() -> None:
    """An undecided task that is not at its end has no verdict, nor have samples that were not taken
    in.
    """
    reference, quantized = pair(1000, 30, 20)
    test = Sequential(Budget(2.4))
    test.update(reference.correct & ~quantized.correct, quantized.correct & ~reference.correct)

    with pytest.raises(ValueError, match="undecided after 1000 of 5000"):
        test.verdict(reference, quantized, total=5000)
    with pytest.raises(ValueError, match="1000 samples were taken in"):
        test.verdict(*pair(900, 30, 20), total=900)


def test_shuffled_keeps_clusters_whole_and_mixes_them() -> None:
    """The order is a permutation, the same for a seed, with each cluster's samples side by side and
    clusters mixed.
    """
    clusters = np.arange(1000) // 5
    order = shuffled(clusters, seed=3)

    assert sorted(order) == list(range(1000))
    assert (clusters[order].reshape(-1, 5) == clusters[order][::5, None]).all()
    assert (order == shuffled(clusters, seed=3)).all()
    assert abs(np.corrcoef(clusters[order], clusters)[0, 1]) < 0.2
    assert not np.array_equal(order, shuffled(clusters, seed=4))
