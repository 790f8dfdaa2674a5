"""Verdicts on paired outcomes: the three answers, their numbers and their words."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable

import numpy as np
import pytest
from drawn import outcomes, pair

from harness.data.tasks import Outcomes
from harness.errors import UsageError
from harness.statistics import paired, sample_sizes
from harness.statistics.verdicts import (
    Budget,
    Decision,
    Verdict,
    compare,
    decide,
    family,
    resolution,
    resolvable,
)


@pytest.mark.parametrize(
    ("n", "lost", "won", "points", "expected"),
    [
        (1579, 32, 20, 2.0, Decision.PASS),
        (1579, 32, 20, 1.0, Decision.INCONCLUSIVE),
        (1579, 179, 63, 2.5, Decision.FAIL),
        (1000, 0, 0, 1.0, Decision.PASS),
        (200, 0, 0, 1.0, Decision.INCONCLUSIVE),
        (1000, 20, 40, 1.0, Decision.PASS),
        (40, 40, 0, 1.0, Decision.FAIL),
    ],
)
def test_compare_gives_the_three_answers(
    n: int, lost: int, won: int, points: float, expected: Decision
) -> None:
    """PASS, FAIL or INCONCLUSIVE follow from the counts, an unchanged model on too few samples not
    being a PASS.
    """
    assert compare(*pair(n, lost, won), Budget(points)).decision is expected


@pytest.mark.parametrize(
    ("n", "expected"), [(1000, Decision.INCONCLUSIVE), (50_000, Decision.FAIL)]
)
def test_compare_a_planted_loss_of_one_point(n: int, expected: Decision) -> None:
    """A loss of 1 point with 4 % discordance against half a point: 1,000 samples cannot say,
    50,000 FAIL.
    """
    lost, won = round(0.025 * n), round(0.015 * n)

    verdict = compare(*pair(n, lost, won), Budget(0.5))

    assert verdict.difference == pytest.approx(-1.0)
    assert verdict.decision is expected
    assert (verdict.samples_needed is not None) is (expected is Decision.INCONCLUSIVE)


def test_compare_counts_what_changed() -> None:
    """Accuracies, counts, changed answers and the ids of lost and won samples are those of the two
    runs.
    """
    reference, quantized = pair(300, lost=4, won=2)
    quantized.answers[200] = 9

    verdict = compare(reference, quantized, Budget(2.0))

    assert (verdict.n, verdict.clusters, verdict.lost, verdict.won, verdict.changed) == (
        300,
        300,
        4,
        2,
        7,
    )
    assert verdict.reference_accuracy == reference.accuracy
    assert verdict.quantized_accuracy == quantized.accuracy
    assert verdict.difference == pytest.approx(-2 / 3)
    assert verdict.lost_ids == ("s00003", "s00002", "s00001", "s00000")
    assert verdict.won_ids == ("s00004", "s00005")
    assert verdict.discordance == 6 / 300
    assert (verdict.p_loss, verdict.p_change) == paired.mcnemar(2, 4)


@pytest.mark.parametrize(("threshold", "large"), [(3.0, 2), (None, 0), (0.5, 4)])
def test_compare_splits_the_lost_by_reference_margin(threshold: float | None, large: int) -> None:
    """Lost samples with margins 1 to 4 split at the threshold, or at the median margin of the right
    answers.
    """
    verdict = compare(*pair(300, lost=4, won=2), Budget(2.0, large_margin=threshold))

    assert (verdict.lost_large, verdict.lost_borderline) == (large, 4 - large)


@pytest.mark.parametrize(("lost", "won"), [(32, 20), (100, 20), (55, 20), (15, 0)])
def test_compare_interval_agrees_with_the_decision(lost: int, won: int) -> None:
    """The budget lies below the interval of a PASS, above that of a FAIL, and within that of an
    INCONCLUSIVE.
    """
    for points in np.arange(0.2, 8, 0.2):
        verdict = compare(*pair(986, lost, won), Budget(float(points)))
        low, high = verdict.interval
        decision = (
            Decision.PASS
            if low > -points
            else Decision.FAIL
            if high < -points
            else Decision.INCONCLUSIVE
        )

        assert verdict.decision is decision, points


def test_compare_with_clusters_is_less_sure() -> None:
    """The same counts in whole clusters of five that change together no longer decide what single
    samples decided.
    """
    alone, together = (
        compare(*pair(1500, 55, 35), Budget(2.7)),
        compare(*pair(1500, 55, 35, size=5), Budget(2.7)),
    )

    assert alone.decision is Decision.PASS
    assert (together.decision, together.clusters) == (Decision.INCONCLUSIVE, 300)
    assert together.design_effect == pytest.approx(5, rel=0.05)
    assert together.interval[0] < alone.interval[0] < alone.interval[1] < together.interval[1]
    assert together.p_change > alone.p_change
    assert "300 clusters" in together.message()


def test_compare_ignores_how_clusters_are_numbered() -> None:
    """Cluster numbers are names: renumbering them changes nothing."""
    reference, quantized = pair(600, 20, 10, size=5)
    names = np.random.default_rng(0).permutation(10_000)[reference.clusters].astype(np.int32)

    renamed = compare(
        dataclasses.replace(reference, clusters=names),
        dataclasses.replace(quantized, clusters=names),
        Budget(3.0),
    )

    assert renamed == compare(reference, quantized, Budget(3.0))


def drop_last(o: Outcomes) -> Outcomes:
    """The same outcomes without the last sample."""
    cut = {
        f.name: getattr(o, f.name)[:-1]
        for f in dataclasses.fields(o)
        if f.name not in ("task", "metric", "scores")
    }
    return dataclasses.replace(o, **cut)


@pytest.mark.parametrize(
    ("spoil", "reported"),
    [
        (lambda o: dataclasses.replace(o, task="emoji100"), "emoji100"),
        (lambda o: dataclasses.replace(o, metric="acc5"), "acc5"),
        (drop_last, "50 samples in the reference, 49"),
        (
            lambda o: dataclasses.replace(o, sample_ids=o.sample_ids[::-1]),
            "order differ: number 0 is 's00000'",
        ),
        (
            lambda o: dataclasses.replace(o, sample_ids=("x", *o.sample_ids[1:])),
            "samples differ: number 0 is 's00000'",
        ),
        (lambda o: dataclasses.replace(o, targets=o.targets + 1), "targets"),
        (lambda o: dataclasses.replace(o, clusters=o.clusters // 2), "clusters"),
        (lambda o: dataclasses.replace(o, margins=o.margins[:-1]), "49 margins"),
    ],
)
def test_compare_refuses_what_is_not_a_pair(
    spoil: Callable[[Outcomes], Outcomes], reported: str
) -> None:
    """Outcomes of another task, metric, sample set, order, target or clustering are an error that
    names the difference.
    """
    reference, quantized = pair(50, 3, 2)

    with pytest.raises(UsageError, match=reported) as refused:
        compare(reference, spoil(quantized), Budget(1.0))

    assert re.match(r"emoji \(acc1\): .*\b[Ee]valuate (both models|again)", str(refused.value))


def test_compare_refuses_no_samples_and_a_broken_reference() -> None:
    """An empty task and a reference with NaN margins have no verdict."""
    reference, quantized = pair(50, 3, 2)
    broken = dataclasses.replace(reference, margins=np.full(50, np.nan, dtype=np.float32))

    with pytest.raises(
        UsageError, match=r"^emoji \(acc1\): .*no samples.*[Cc]heck the task's data"
    ):
        compare(outcomes([]), outcomes([]), Budget(1.0))
    with pytest.raises(UsageError, match=r"^emoji \(acc1\): .*NaN.*reference model itself"):
        compare(broken, quantized, Budget(1.0))


def test_message_says_expected_found_where_and_what_to_do() -> None:
    """A FAIL says the budget and its place, the numbers, the samples and the next step, in that
    order.
    """
    text = compare(*pair(1000, 60, 10), Budget(1.0, place="budgets.yaml:7 (tasks.emoji)")).message()

    parts = [
        "emoji (acc1): FAIL",
        "expected:",
        "at most 1 points",
        "budgets.yaml:7",
        "found:",
        "-5.00 points",
        "60 lost, 10 won",
    ]
    parts += ["where:", "s00059", "55 more", "what to do:", "--blame"]
    positions = [text.index(part) for part in parts]
    assert positions == sorted(positions)


def test_message_of_inconclusive_names_the_samples_that_decide() -> None:
    """An INCONCLUSIVE says how many samples would decide, and with that many the same rates do."""
    verdict = compare(*pair(1000, 25, 15), Budget(1.5))

    needed = verdict.samples_needed
    assert needed is not None
    assert f"about {needed:,} samples would decide" in verdict.message()
    assert (
        compare(*pair(needed, round(0.025 * needed), round(0.015 * needed)), Budget(1.5)).decision
        is Decision.PASS
    )


def test_message_on_the_budget_promises_no_sample_size() -> None:
    """A measured loss equal to the budget is decided by no number of samples, and the message says
    so.
    """
    verdict = compare(*pair(1000, 25, 15), Budget(1.0))

    assert verdict.samples_needed is None
    assert "no sample size" in verdict.message()


def test_verdict_is_json() -> None:
    """A verdict becomes plain JSON for the report."""
    verdict = compare(*pair(100, 3, 2), Budget(1.0))

    assert json.loads(json.dumps(verdict.as_dict()))["decision"] == "INCONCLUSIVE"


@pytest.mark.parametrize(
    "fields",
    [
        {"points": 0.0},
        {"points": -1.0},
        {"points": float("nan")},
        {"points": 100.5},
        {"points": 1.0, "alpha": 0.5},
        {"points": 1.0, "power": 1.0},
        {"points": 1.0, "discordance": 0.0},
        {"points": 1.0, "discordance": 1.5},
        {"points": 1.0, "expected_loss": 1.0},
        {"points": 1.0, "design_effect": 0.5},
        {"points": 1.0, "design_effect": math.inf},
    ],
)
def test_budget_refuses_what_makes_no_test(fields: dict[str, float]) -> None:
    """Terms outside their range are a usage error at the budget's place, with the range they must
    keep to.
    """
    with pytest.raises(
        UsageError, match=r"^budgets\.yaml:3: .*(number above|number of at least|loss of at least)"
    ):
        Budget(**fields, place="budgets.yaml:3")  # type: ignore[arg-type]


def test_resolvable_refuses_and_names_what_would_do() -> None:
    """Half a point on 1,000 samples is refused; the named sample size and the named budget are both
    accepted.
    """
    budget = Budget(0.5, place="budgets.yaml:3")
    plan = resolution(budget, 1000)

    with pytest.raises(UsageError) as refused:
        resolvable(budget, 1000, task="emoji100")

    assert f"{plan.samples_needed:,} samples" in str(refused.value)
    assert "declared discordance of 4.0%" in str(refused.value)
    assert resolvable(budget, plan.samples_needed).power >= budget.power - 1e-6
    assert resolvable(Budget(plan.smallest_points + 0.01), 1000).n == 1000


def test_resolvable_goes_by_the_observed_discordance() -> None:
    """What the baseline observed takes the place of the declared prior, in both directions."""
    budget = Budget(1.5, discordance=0.04)

    assert resolvable(budget, 1000, discordance=0.02).power > 0.9
    with pytest.raises(UsageError, match=r"observed discordance of 10\.0%"):
        resolvable(budget, 1000, discordance=0.1)


def test_resolvable_counts_expected_loss_and_clusters() -> None:
    """An expected loss and a design effect both raise the samples that a budget needs."""
    plain = resolution(Budget(1.5), 1000).samples_needed

    assert resolution(Budget(1.5, expected_loss=0.5), 1000).samples_needed > 2 * plain
    assert resolution(Budget(1.5, design_effect=2.0), 1000).samples_needed == pytest.approx(
        2 * plain, abs=2
    )


def verdict_with(p_inferior: float, p_noninferior: float = 1.0) -> Verdict:
    """A verdict with these p-values and the decision they make alone."""
    verdict = compare(*pair(1000, 30, 10), Budget(1.0))
    alone = (
        Decision.PASS
        if p_noninferior <= 0.05
        else Decision.FAIL
        if p_inferior <= 0.05
        else Decision.INCONCLUSIVE
    )
    return dataclasses.replace(
        verdict, p_inferior=p_inferior, p_noninferior=p_noninferior, decision=alone
    )


@pytest.mark.parametrize(
    ("p_inferior", "p_noninferior", "expected"),
    [
        ((0.9, 0.9, 0.9), (0.04, 0.04, 0.04), Decision.PASS),
        ((0.9, 0.9, 0.9), (0.04, 0.06, 0.04), Decision.INCONCLUSIVE),
        ((0.03, 0.5, 0.5), (1, 1, 1), Decision.INCONCLUSIVE),
        ((0.01, 0.5, 0.5), (1, 1, 1), Decision.FAIL),
        ((0.01, 0.9, 0.9), (1, 0.01, 0.01), Decision.FAIL),
    ],
)
def test_family_passes_uncorrected_and_fails_by_holm(
    p_inferior: tuple[float, ...], p_noninferior: tuple[float, ...], expected: Decision
) -> None:
    """PASS needs all tasks at alpha each, FAIL one task after Holm's correction, the rest is
    INCONCLUSIVE.
    """
    verdicts = [verdict_with(f, p) for f, p in zip(p_inferior, p_noninferior, strict=True)]

    assert family(verdicts, 0.05).decision is expected


def test_family_withdraws_a_fail_that_holm_does_not_uphold() -> None:
    """A task that fails only alone becomes INCONCLUSIVE, says so, and keeps its number of samples
    needed.
    """
    joined = family([verdict_with(0.03), verdict_with(0.5)], 0.05)

    first = joined.verdicts[0]
    assert first.decision is Decision.INCONCLUSIVE
    assert joined.p_inferior[0] == pytest.approx(0.06)
    assert "not after Holm's correction over 2 tasks" in first.message()
    assert first.samples_needed is not None


def test_family_headline_is_one_line_with_the_worst_task() -> None:
    """The headline names recipe, model, decision, counts and the task that decided."""
    passing, failing = (
        compare(*pair(1579, 32, 20), Budget(2.0)),
        compare(*pair(1579, 179, 63), Budget(2.5)),
    )

    line = family(
        [passing, dataclasses.replace(failing, task="captions")], recipe="int3", model="embedded"
    ).headline()

    assert line.startswith(
        "int3 on embedded: FAIL: 1 PASS, 1 FAIL; worst is captions (acc1) at -7.35 points ["
    )
    assert "\n" not in line


def test_family_of_nothing_is_refused() -> None:
    """No verdicts are no PASS."""
    with pytest.raises(ValueError, match="at least one"):
        family([])


def test_plan_agrees_with_itself() -> None:
    """At the samples needed the power is the wanted one and the smallest budget this one; the
    smallest budget needs the samples there are.
    """
    budget = Budget(
        1.5, expected_loss=0.4, discordance=0.03, design_effect=1.7, alpha=0.02, power=0.9
    )

    plan = resolution(budget, 4000)
    enough = resolution(budget, plan.samples_needed)
    smallest = resolution(dataclasses.replace(budget, points=plan.smallest_points), 4000)

    assert enough.power == pytest.approx(0.9, abs=1e-3)
    assert enough.smallest_points == pytest.approx(1.5, rel=1e-3)
    assert smallest.samples_needed == pytest.approx(4000, abs=2)
    assert (enough.n, smallest.n) == (plan.samples_needed, 4000)


def test_plan_is_in_fractions_of_the_budgets_points() -> None:
    """An expected loss in points enters as a fraction; no fewer samples are discordant than are
    expected to be lost.
    """
    plan = resolution(Budget(1.5, expected_loss=0.5), 1000)
    rare = resolution(Budget(5.0, expected_loss=4.0, discordance=0.01), 1000)

    assert plan.samples_needed == math.ceil(
        sample_sizes.samples_for(0.04, 0.015, -0.005, 0.05, 0.8)
    )
    assert plan.discordance == 0.04
    assert rare.discordance == pytest.approx(0.04)


def test_plan_goes_by_the_observed_design_effect() -> None:
    """A design effect that the baseline observed takes the place of the declared one, and can
    refuse a budget.
    """
    budget = Budget(1.5)
    n = resolution(budget, 1000).samples_needed

    assert resolution(budget, n, design_effect=3.0).samples_needed == pytest.approx(3 * n, abs=3)
    assert resolvable(budget, n).n == n
    with pytest.raises(UsageError, match=r"^budgets\.yaml:3: the task has "):
        resolvable(dataclasses.replace(budget, place="budgets.yaml:3"), n, design_effect=3.0)


def test_refusal_names_the_smallest_budget_that_is_accepted() -> None:
    """The budget that the refusal offers is accepted, and one a hundredth of a point smaller is
    not.
    """
    with pytest.raises(UsageError) as refused:
        resolvable(Budget(0.5), 1000)
    (offered,) = map(float, re.findall(r"or a budget of ([\d.]+) points", str(refused.value)))

    assert resolvable(Budget(offered), 1000).n == 1000
    with pytest.raises(UsageError):
        resolvable(Budget(offered - 0.011), 1000)


def test_family_headline_measures_each_task_by_its_own_budget() -> None:
    """The worst task is the one furthest beyond its own budget, of passing ones the closest to it;
    each is counted.
    """
    passing = compare(*pair(1579, 32, 20), Budget(2.0))
    over = dataclasses.replace(compare(*pair(1579, 179, 63), Budget(2.5)), task="over")
    wide = dataclasses.replace(compare(*pair(1579, 200, 60), Budget(6.0)), task="wide")
    roomy = dataclasses.replace(compare(*pair(1579, 20, 20), Budget(6.0)), task="roomy")

    assert wide.difference < over.difference < passing.difference
    failed = family([wide, passing, over]).headline()
    assert "FAIL: 1 PASS, 2 FAIL; worst is over (acc1)" in failed
    assert "PASS: 2 PASS; closest is emoji (acc1)" in family([roomy, passing]).headline()


@pytest.mark.parametrize(
    ("n", "lost", "won", "size", "points"),
    [
        (60, 30, 0, 1, 5.0),
        (60, 0, 30, 1, 5.0),
        (300, 0, 150, 5, 5.0),
        (1000, 25, 15, 1, 1.5),
        (200, 10, 5, 5, 3.0),
    ],
)
def test_interval_is_students_only_with_clusters(
    n: int, lost: int, won: int, size: int, points: float
) -> None:
    """The interval in points is Tango's, with Student's t and the design effect where samples share
    clusters.
    """
    verdict = compare(*pair(n, lost, won, size=size), Budget(points))
    groups = None if size == 1 else n // size

    expected = paired.interval(won, lost, n, 0.05, verdict.design_effect, groups)

    assert (verdict.design_effect > 1) is (size > 1)
    assert verdict.interval == pytest.approx([100 * end for end in expected], abs=1e-9)


def test_interval_holds_the_budget_where_the_exact_test_withholds_a_pass() -> None:
    """140 unchanged samples pass 2 points by Tango's test but not by the exact one: the interval
    reaches the budget.
    """
    verdict = compare(*pair(140, 0, 0), Budget(2.0))

    assert 100 * paired.interval(0, 0, 140, 0.05)[0] > -2.0
    assert verdict.decision is Decision.INCONCLUSIVE
    assert verdict.interval[0] == -2.0


def test_samples_needed_count_clusters_and_exceed_those_there_are() -> None:
    """More clusters need more samples, and a number that could not decide is never said to suffice."""
    clustered = compare(*pair(1500, 55, 35, size=5), Budget(2.7))
    withheld = compare(*pair(640, 11, 0), Budget(1.0, power=0.51))
    plain = sample_sizes.samples_for(90 / 1500, 0.027, -20 / 1500, 0.05, 0.8)

    assert clustered.samples_needed == math.ceil(clustered.design_effect * plain)
    assert sample_sizes.samples_for(11 / 640, 0.01, -11 / 640, 0.05, 0.51) < 640
    assert (withheld.decision, withheld.samples_needed) == (Decision.INCONCLUSIVE, 641)


def test_large_margin_without_a_right_answer_is_zero() -> None:
    """A reference that gets nothing right has no median margin, and its verdict still has
    numbers.
    """
    wrong = outcomes(np.zeros(50))

    assert compare(wrong, wrong, Budget(1.0)).large_margin == 0.0


def test_ids_of_equal_margins_keep_the_order_of_the_samples() -> None:
    """Where margins tie, lost and won samples come in the order of the task, run after run."""
    reference, quantized = pair(400, lost=200, won=200)
    even = (np.arange(400) % 2).astype(np.float32)

    verdict = compare(
        dataclasses.replace(reference, margins=even),
        dataclasses.replace(quantized, margins=even),
        Budget(1.0),
    )

    assert verdict.lost_ids == reference.sample_ids[1:200:2] + reference.sample_ids[0:200:2]
    assert verdict.won_ids == reference.sample_ids[201::2] + reference.sample_ids[200::2]


def test_claim_is_shown_at_alpha_itself() -> None:
    """A p-value equal to alpha shows its claim, alone and in a family."""
    assert decide(paired.Shown(0.05, 1.0), 0.05) is Decision.PASS
    assert decide(paired.Shown(1.0, 0.05), 0.05) is Decision.FAIL
    assert family([verdict_with(1.0, 0.05)], 0.05).decision is Decision.PASS
    assert family([verdict_with(0.05)], 0.05).decision is Decision.FAIL


def test_family_judges_by_its_own_alpha() -> None:
    """The family's alpha decides again, whatever each task decided alone; what is decided needs no
    more samples.
    """
    open_ = [
        dataclasses.replace(v, samples_needed=9999)
        for v in (verdict_with(1.0, 0.07), verdict_with(0.07))
    ]

    loose = family(open_, 0.2)
    strict = family([verdict_with(1.0, 0.04)], 0.01)

    assert [v.decision for v in loose.verdicts] == [Decision.PASS, Decision.FAIL]
    assert [v.samples_needed for v in loose.verdicts] == [None, None]
    assert strict.verdicts[0].decision is Decision.INCONCLUSIVE
    assert (loose.alpha, strict.alpha) == (0.2, 0.01)


def test_withdrawn_fail_needs_samples_at_the_corrected_alpha() -> None:
    """What Holm does not uphold would be decided by the samples that alpha over the number of tasks
    asks for.
    """
    first = family([verdict_with(0.03), verdict_with(0.5)], 0.05).verdicts[0]

    expected = sample_sizes.samples_for(0.04, 0.01, -0.02, 0.025, 0.8)

    assert expected > 1000
    assert first.samples_needed == math.ceil(expected)


def test_message_says_only_what_is_so() -> None:
    """Clusters, an early stop and lost samples are reported where there are any; every line but the
    first is indented.
    """
    failing = compare(*pair(1000, 60, 10), Budget(1.0))
    passing = compare(*pair(1579, 32, 20), Budget(2.0))
    text = failing.message()

    assert " 90% interval [" in text
    assert "of 1000 samples 60 lost" in text
    assert "decided early" not in text
    assert "where:" not in passing.message()
    assert (
        "decided early, on 25.0% of" in dataclasses.replace(failing, fraction_used=0.25).message()
    )
    assert all(line.startswith("  ") and line == line.rstrip() for line in text.splitlines()[1:])
    assert not text.splitlines()[0].startswith(" ")


@pytest.mark.parametrize(("lost", "more"), [(0, None), (5, ""), (6, " and 1 more")])
def test_message_lists_five_lost_samples_and_counts_the_rest(lost: int, more: str | None) -> None:
    """Up to five lost samples are named, largest margin first, and the others counted."""
    verdict = compare(*pair(100, lost, 0), Budget(2.0))
    where = [line for line in verdict.message().splitlines() if "where:" in line]

    named = ", ".join(f"s{i:05d}" for i in range(lost - 1, max(lost - 6, -1), -1))
    assert verdict.decision is not Decision.PASS
    assert where == (
        [] if more is None else [f"  where: lost with the largest margins: {named}{more}"]
    )


@pytest.mark.parametrize(("n", "lost", "won", "size"), [(1000, 25, 15, 1), (1500, 55, 35, 5)])
def test_advice_offers_the_budget_that_these_samples_resolve(
    n: int, lost: int, won: int, size: int
) -> None:
    """The budget offered is the smallest one that this many samples resolve at the measured loss,
    clusters included.
    """
    verdict = compare(
        *pair(n, lost, won, size), Budget(2.7 if size > 1 else 1.5, place="budgets.yaml:3")
    )
    (offered,) = map(
        float, re.findall(r", or a budget of ([\d.]+) points on these", verdict.message())
    )

    wide = Budget(offered, expected_loss=-verdict.difference, discordance=verdict.discordance)
    plan = resolution(wide, n, design_effect=verdict.design_effect)

    assert plan.smallest_points == pytest.approx(offered, abs=0.005)
    assert "or accept the loss with a reason in budgets.yaml:3" in verdict.message()


def test_advice_offers_no_budget_for_a_loss_beyond_it() -> None:
    """A measured loss beyond the budget that is not shown yet asks for samples, never for a wider
    budget.
    """
    verdict = compare(*pair(300, 10, 2), Budget(2.0))

    assert verdict.difference < -2.0
    assert verdict.decision is Decision.INCONCLUSIVE
    assert "would decide" in verdict.message()
    assert "or a budget of" not in verdict.message()


def test_family_judges_each_task_at_the_alpha_of_its_budget() -> None:
    """A p-value of 0.02 passes at 0.05 and not at 0.01, alone and in a family of tasks with
    different alphas.
    """

    def at(alpha: float, p_noninferior: float, p_inferior: float = 1.0) -> Verdict:
        verdict = verdict_with(p_inferior, p_noninferior)
        shown = paired.Shown(p_noninferior, p_inferior)
        budget = dataclasses.replace(verdict.budget, alpha=alpha)
        return dataclasses.replace(verdict, budget=budget, decision=decide(shown, alpha))

    assert family([at(0.05, 0.02)]).decision is Decision.PASS
    assert family([at(0.01, 0.02)]).decision is Decision.INCONCLUSIVE
    mixed = family([at(0.05, 0.02), at(0.01, 0.02), at(0.01, 1.0, 0.02), at(1e-4, 1.0, 1e-5)])
    expected = [Decision.PASS, Decision.INCONCLUSIVE, Decision.INCONCLUSIVE, Decision.FAIL]
    assert [v.decision for v in mixed.verdicts] == expected
    assert mixed.alpha == 0.05


def test_large_clean_clusters_decide_nothing() -> None:
    """1,000 single samples and 40 clusters of 50 without a loss: INCONCLUSIVE at 1 point, and the
    message says why.
    """
    right = np.ones(3000, dtype=bool)
    quantized = right.copy()
    quantized[:10] = False
    clusters = np.r_[np.arange(1000), 1000 + np.repeat(np.arange(40), 50)]

    verdict = compare(outcomes(right, clusters), outcomes(quantized, clusters), Budget(1.0))

    assert verdict.decision is Decision.INCONCLUSIVE
    assert verdict.interval[0] < -3
    assert verdict.samples_needed is not None
    assert verdict.samples_needed > 10_000
    assert "an unseen one could lose 50 at once" in verdict.message()
