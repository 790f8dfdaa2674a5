"""Budgets that are a share of the reference, and gains that are too good."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from drawn import outcomes, pair
from scipy import optimize

from harness.errors import UsageError
from harness.statistics import budgets, paired, ratio
from harness.statistics.verdicts import Budget, Decision, compare, family


def scored(both: int, won: int, lost: int, neither: int, share: float) -> float:
    """The score statistic with the likelihood maximized by numbers instead of by its formula."""
    n = both + won + lost + neither
    right = both + won + lost

    def parts(count: float) -> tuple[float, float, float]:
        gained = (count - (1 - share) * right) / share
        return (right - (1 + share) * count) / share, gained, count

    def loss(count: float) -> float:
        chances = np.array(parts(count)) / n
        if chances.min() <= 0:
            return 1e9
        return -float((np.array([both, won, lost]) * np.log(chances)).sum())

    bounds = ((1 - share) * right, right / (1 + share))
    options = {"xatol": 1e-10}
    count = optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options=options).x
    _, gained, _ = parts(count)
    top = (1 - share) * both + won - share * lost
    return float(top / np.sqrt(share * (gained + count)))


@pytest.mark.parametrize(
    ("both", "won", "lost", "neither", "share"),
    [(700, 10, 30, 260, 0.99), (700, 40, 10, 250, 0.95), (90, 3, 9, 10, 0.9)],
)
def test_the_statistic_maximizes_the_likelihood(
    both: int, won: int, lost: int, neither: int, share: float
) -> None:
    """The closed form is what a numeric search finds."""
    z = float(ratio.ratio_z(both, won, lost, share))

    assert z == pytest.approx(scored(both, won, lost, neither, share), abs=1e-4)


def test_the_whole_reference_is_mcnemars_question() -> None:
    """A share of one is a margin of zero; nothing right at all says nothing."""
    assert float(ratio.ratio_z(100, 5, 9, 1.0)) == pytest.approx(
        float(paired.tango_z(5, 9, 200, 0.0))
    )
    assert float(ratio.ratio_z(0, 0, 0, 0.99)) == 0


@pytest.mark.parametrize(
    ("lost", "won", "share", "decision"),
    [
        (0, 0, 0.99, Decision.PASS),
        (10, 10, 0.99, Decision.PASS),
        (100, 10, 0.99, Decision.FAIL),
        (70, 10, 0.99, Decision.INCONCLUSIVE),
        (10, 10, 0.9999, Decision.INCONCLUSIVE),
    ],
)
def test_a_verdict_on_a_share(lost: int, won: int, share: float, decision: Decision) -> None:
    """The decision, its interval and its budget in points of the reference agree."""
    verdict = compare(*pair(9000, lost, won), Budget(100 * (1 - share), share=share))
    low, high = verdict.interval
    points = 100 * (1 - share) * verdict.reference_accuracy

    assert verdict.decision is decision
    assert verdict.budget.points == pytest.approx(points)
    assert low <= verdict.difference <= high
    assert (low > -points) == (decision is Decision.PASS)
    assert (high < -points) == (decision is Decision.FAIL)
    assert f"at least {100 * share:.4g} % of the reference's accuracy" in verdict.message()


def test_a_share_is_of_the_reference_and_not_of_all_samples() -> None:
    """Half a point is within 99 % of a reference that is right on all samples, and not of one that
    is right on a third.
    """
    n = 100_000
    strong = np.ones(n, dtype=bool)
    weak = np.arange(n) % 3 == 0
    decisions = []
    for right in (strong, weak):
        quantized = right.copy()
        quantized[np.flatnonzero(right)[: n // 200]] = False
        verdict = compare(outcomes(right), outcomes(quantized), Budget(1.0, share=0.99))
        decisions.append(verdict.decision)

    assert decisions == [Decision.PASS, Decision.FAIL]


def test_samples_of_a_cluster_are_not_independent() -> None:
    """Losses that come in whole clusters show less than the same number of single ones."""
    budget = Budget(1.0, share=0.99)
    single = compare(*pair(9000, 75, 0), budget)
    together = compare(*pair(9000, 75, 0, size=5), budget)

    assert together.design_effect > 3
    assert together.p_inferior > single.p_inferior
    assert together.interval[0] < single.interval[0]


def test_a_gain_that_is_too_good_fails_until_it_is_declared() -> None:
    """GAIN comes where the gain is significantly above what is plausible, and not from one lucky
    sample; a larger declared gain is news, not a failure.
    """
    reference, quantized = pair(2000, 10, 110)
    expected = Budget(1.0, most_gain=1.0)

    verdict = compare(reference, quantized, expected)
    declared = compare(reference, quantized, Budget(1.0, most_gain=8.0))
    small = compare(*pair(2000, 10, 31), expected)

    assert verdict.decision is Decision.GAIN
    assert "most_gain" in verdict.message()
    assert "better than the reference by more than is plausible" in verdict.message()
    assert declared.decision is Decision.PASS
    assert compare(reference, quantized, Budget(1.0)).decision is Decision.PASS
    assert small.difference > 1.0
    assert small.decision is Decision.PASS
    assert "where: won: " in verdict.message()
    assert family([small, verdict]).decision is Decision.GAIN
    assert (
        family([small, verdict])
        .headline()
        .endswith(
            "1 PASS, 1 GAIN; largest gain is emoji (acc1) at +5.00 points "
            f"[{verdict.interval[0]:+.2f}, {verdict.interval[1]:+.2f}], plausible 1"
        )
    )
    assert family([compare(quantized, reference, expected), verdict]).decision is Decision.FAIL


def test_gains_are_corrected_for_the_number_of_tasks() -> None:
    """What is GAIN alone and not after Holm's correction is PASS among many tasks."""
    alone = compare(*pair(2000, 10, 45), Budget(1.0, most_gain=1.0))
    families = family([alone, *(compare(*pair(2000, 10, 10), Budget(1.0, most_gain=1.0)),) * 30])

    assert alone.decision is Decision.GAIN
    assert families.decision is Decision.PASS


def written(folder: Path, text: str) -> budgets.Policy:
    """The policy of a budgets file."""
    path = folder / "budgets.yaml"
    path.write_text(text)
    return budgets.load(path)


@pytest.mark.parametrize(
    ("terms", "share", "points"),
    [
        ("share: 0.99", 0.99, 1.0),
        ("preset: mlperf-99", 0.99, 1.0),
        ("preset: mlperf-99.9", 0.999, 0.1),
        ("preset: 1-point", None, 1.0),
        ("points: 3.0", None, 3.0),
    ],
)
def test_the_latest_form_of_a_budget_counts(
    tmp_path: Path, terms: str, share: float | None, points: float
) -> None:
    """A later entry replaces points by a share or a preset, and a share by points."""
    text = f"defaults: {{points: 2.0}}\ntasks:\n  one: {{{terms}}}\n  two: {{share: 0.5}}\n"
    text += f"overrides:\n  - {{task: two, {terms}, reason: because}}\n"
    policy = written(tmp_path, text)

    for task in ("one", "two"):
        budget = policy.budget(task, "acc1")
        assert budget.share == share
        assert budget.points == pytest.approx(points)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ("points: 1.0, share: 0.99", "points and share are both given"),
        ("share: 0.99, preset: mlperf-99", "share and preset are both given"),
        ("share: 1.0", "share"),
        ("share: 99", "share"),
        ("preset: mlperf", "preset"),
        ("points: 1.0, most_gain: 0", "most_gain"),
        ("alpha: 0.05", "no points are given"),
        ("share: 0.999, expected_loss: 0.5", "expected_loss"),
    ],
)
def test_a_budget_that_says_two_things_or_none_is_refused(
    tmp_path: Path, terms: str, message: str
) -> None:
    """One line with the file, the place and the fix."""
    with pytest.raises(UsageError, match=message) as refused:
        written(tmp_path, f"defaults: {{{terms}}}\n")

    assert "budgets.yaml" in str(refused.value)
