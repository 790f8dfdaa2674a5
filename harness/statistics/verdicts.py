"""From paired outcomes to PASS, FAIL or INCONCLUSIVE, with the numbers behind it.

PASS claims that the loss is below the budget, FAIL that it is above; each claim is a one-sided test
at the budget's alpha, so each is false in at most that share of gates run at the very edge of the
budget (docs/error-rates.md measures it). What neither test shows is INCONCLUSIVE. The statistics
and their sources are in `paired`, `clustering` and `sample_sizes` next to this module.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import UsageError
from harness.statistics import clustering, paired, ratio, sample_sizes
from harness.statistics.limits import Limits

if TYPE_CHECKING:
    from harness.data.tasks import Outcomes


class Decision(str, enum.Enum):
    """What the data say about a budget."""

    PASS = "PASS"  # noqa: S105 - not a password
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    GAIN = "GAIN"


LEAST_POINTS = 0.001
"""Smallest difference, in points, between a budget and the expected loss: ten billion samples show
no smaller one.
"""

MOST_DESIGN_EFFECT = 1e6
"""Largest design effect: that of clusters of a million samples."""


@dataclass(frozen=True)
class Budget:
    """How many points a recipe may lose on a task, and how sure the gate must be. Policy: written
    by people.

    `points`: allowed loss in percentage points, above 0. `alpha`: largest rate of a false PASS and
    of a false FAIL, each. `power`: wanted probability of a PASS where the true loss is
    `expected_loss` (points). `discordance`: expected share of samples right in just one of the two
    models, `design_effect`: expected inflation of the variance by clusters; both serve the planning
    before a run, the verdict uses what was measured. `large_margin`: reference margin (logits) from
    which a lost sample counts as a large-margin flip (None: the median margin of the reference's
    right answers). `share`: instead of points, the share of the reference's accuracy that must be
    kept; `points` is then what that is of a reference that is always right, and `of` gives what it
    is of another. `most_gain`: points from which a gain is implausible; None: any gain is good
    news. `reason`: why this budget is not the default; `place`: where it is written.
    """

    points: float
    alpha: float = 0.05
    power: float = 0.8
    reason: str = ""
    expected_loss: float = 0.0
    discordance: float = 0.04
    design_effect: float = 1.0
    large_margin: float | None = None
    limits: Limits = field(default_factory=Limits)
    place: str = "the budget"
    share: float | None = None
    most_gain: float | None = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("points", 0.0, 100.0),
            ("alpha", 0.0, 0.5),
            ("power", 0.5, 1.0),
            ("discordance", 0.0, 1.0),
        ):
            value = getattr(self, name)
            if not low < value < high:
                raise UsageError(
                    self.place,
                    f"{name} is {value}",
                    f"Give a number above {low:g} and below {high:g}.",
                )
        if not 0 <= self.expected_loss < self.points:
            what = f"expected_loss is {self.expected_loss} points, the budget {self.points}"
            raise UsageError(
                self.place, what, "Expect a loss of at least 0 that is below the budget."
            )
        if self.points - self.expected_loss < LEAST_POINTS:
            what = (
                f"points is {self.points} and expected_loss {self.expected_loss}: no sample count "
                f"distinguishes them"
            )
            raise UsageError(self.place, what, f"Leave {LEAST_POINTS} points between them.")
        if not 1 <= self.design_effect <= MOST_DESIGN_EFFECT:
            fix = f"Give a number of at least 1, at most {MOST_DESIGN_EFFECT:,.0f}."
            raise UsageError(self.place, f"design_effect is {self.design_effect}", fix)

    @property
    def margin(self) -> float:
        """The allowed loss as a fraction."""
        return self.points / 100

    def of(self, accuracy: float) -> Budget:
        """Return the budget with the points that its share is of a reference's *accuracy*."""
        if self.share is None:
            return self
        points = max(100 * (1 - self.share) * accuracy, 2 * LEAST_POINTS)
        return replace(
            self,
            points=points,
            expected_loss=min(self.expected_loss, points - LEAST_POINTS),
        )

    def expected(self) -> str:
        """Return what is expected, in the words of whoever wrote the budget."""
        loss = f"a loss of at most {self.points:.4g} points"
        if self.share is None:
            return loss
        return f"at least {100 * self.share:.4g} % of the reference's accuracy: {loss}"


@dataclass(frozen=True)
class Verdict:
    """A decision about one metric of one task, and what it rests on. Accuracies and shares are
    fractions, differences points.

    `difference` is quantized minus reference and `interval` its two-sided 1 - 2 alpha interval:
    PASS has it above -points, FAIL below. `lost` and `won` count samples right only in the
    reference, only in the quantized model; `changed` those with another first answer. `lost_large`
    lost samples had a reference margin of at least `large_margin` logits; `lost_borderline` the
    others. `p_loss`, `p_change`: exact McNemar (with clusters: sign test over clusters), one-sided
    for a loss and two-sided. `p_noninferior` small: the loss is below the budget; `p_inferior`
    small: it is above. `samples_needed`: where INCONCLUSIVE, the samples that would decide at the
    budget's power if the difference measured here is the true one; None if none would. `lost_ids`,
    `won_ids`: largest reference margin first. `fraction_used` is below 1 after an early stop.
    `block`: samples that a cluster which is not among the data could lose at once, see
    `harness.statistics.clustering.unseen_block`. `p_gain` small: the gain is above the budget's
    `most_gain`. `fix`: what to do, where it is not what a verdict of
    this kind says by itself.
    """

    task: str
    metric: str
    budget: Budget
    n: int
    clusters: int
    design_effect: float
    reference_accuracy: float
    quantized_accuracy: float
    difference: float
    interval: tuple[float, float]
    lost: int
    won: int
    changed: int
    lost_large: int
    lost_borderline: int
    large_margin: float
    p_loss: float
    p_change: float
    p_noninferior: float
    p_inferior: float
    samples_needed: int | None
    decision: Decision
    lost_ids: tuple[str, ...] = ()
    won_ids: tuple[str, ...] = ()
    fraction_used: float = 1.0
    note: str = ""
    fix: str = ""
    block: float = 1.0
    p_gain: float = 1.0

    def as_dict(self) -> dict[str, Any]:
        """A plain record for JSON."""
        record = asdict(self) | {"decision": self.decision.value}
        record["budget"]["limits"] = self.budget.limits.model_dump()
        return record

    @property
    def discordance(self) -> float:
        """Share of the samples that are right in just one of the two models."""
        return (self.lost + self.won) / self.n

    def message(self) -> str:
        """The verdict in plain words: expected, found, where, and what to do."""
        b = self.budget
        low, high = self.interval
        expected, gain = b.expected(), ""
        if self.decision is Decision.GAIN:
            expected = f"a gain of at most {b.most_gain or 0:g} points"
            gain = f"p(gain that is plausible) {self.p_gain:.3g}, "
        clusters = ""
        if self.clusters < self.n:
            clusters = (
                f" in {self.clusters} clusters (design effect {self.design_effect:.2f}; "
                f"an unseen one could lose {self.block:.3g} at once)"
            )
        lines = [
            f"{self.task} ({self.metric}): {self.decision.value}: {_SAYS[self.decision]}",
            f"  expected: {expected}, at alpha {b.alpha:g} ({b.place})",
            f"  found: reference {self.reference_accuracy:.2%}, quantized "
            f"{self.quantized_accuracy:.2%}: "
            f"{self.difference:+.2f} points, "
            f"{1 - 2 * b.alpha:.0%} interval [{low:+.2f}, {high:+.2f}]",
            f"    of {self.n} samples{clusters} {self.lost} lost, {self.won} won, {self.changed} "
            f"answers changed; of "
            "the lost "
            f"{self.lost_large} had a reference margin of at least {self.large_margin:.2f}, "
            f"{self.lost_borderline} "
            "were borderline",
            f"    {gain}p(loss below the budget) {self.p_noninferior:.3g}, "
            f"p(loss above the budget) {self.p_inferior:.3g}, "
            f"p(no change, exact) {self.p_change:.3g}",
        ]
        if self.fraction_used < 1:
            lines.append(f"    decided early, on {self.fraction_used:.1%} of the task's samples")
        if self.note:
            lines.append(f"    {self.note}")
        moved, which = self.lost_ids, "lost with the largest margins"
        if self.decision is Decision.GAIN:
            moved, which = self.won_ids, "won"
        if moved and self.decision is not Decision.PASS:
            more = f" and {len(moved) - 5} more" if len(moved) > 5 else ""
            lines.append(f"  where: {which}: {', '.join(moved[:5])}{more}")
        if self.decision is not Decision.PASS:
            lines.append(f"  what to do: {self._advice()}")
        return "\n".join(lines)

    def _advice(self) -> str:
        if self.fix:
            return self.fix
        policy = f"accept the loss with a reason in {self.budget.place}"
        if self.decision is Decision.GAIN:
            return (
                f"look for data or labels that differ between the two models, and for calibration "
                f"on the samples of the task; a gain that is real is declared with a reason: "
                f"`most_gain` above {self.interval[1]:.1f} in an override of the budgets file"
            )
        if self.decision is Decision.FAIL:
            return f"`pytest -m accuracy --blame` finds the quantizers at fault; or {policy}."
        if self.samples_needed is None:
            return (
                f"the measured loss is on the budget, so no sample size decides; change the "
                f"recipe, or {policy}."
            )
        resolved = 100 * sample_sizes.smallest_margin(
            self.n,
            self.discordance,
            self.difference / 100,
            self.budget.alpha,
            self.budget.power,
            self.design_effect,
            self.block,
        )
        wider = (
            f", or a budget of {resolved:.2f} points on these"
            if resolved < 100 and self.difference > -self.budget.points
            else ""
        )
        return (
            f"about {self.samples_needed:,} samples would decide (power {self.budget.power:.0%}, "
            f"if the true "
            "difference is the "
            f"measured {self.difference:+.2f} points){wider}. Add a larger task with --tasks, or "
            f"{policy}."
        )


_SAYS = {
    Decision.PASS: "the loss is below the budget.",
    Decision.FAIL: "the loss exceeds the budget.",
    Decision.INCONCLUSIVE: "the data cannot decide whether the loss is below the budget.",
    Decision.GAIN: "the quantized model is better than the reference by more than is plausible.",
}


def compare(reference: Outcomes, quantized: Outcomes, budget: Budget) -> Verdict:
    """Verdict on the quantized model's loss, from the outcomes of both models on the same samples
    in the same order.

    Samples that share a cluster number (the captions of one picture) are not taken as independent.
    A quantized model that gives no finite answer for a sample is FAIL. UsageError if the two are
    not outcomes of the same samples, metric and targets, in the same order, or the reference gives
    no finite answer for a sample.
    """
    check_pair(reference, quantized)
    broken = not_finite(reference)
    if broken:
        what = (
            f"the reference gives no finite answer for {broken:,} of {len(reference.margins):,} "
            f"samples"
        )
        raise UsageError(
            f"{reference.task} ({reference.metric})",
            what,
            "Check the reference model's weights in FP16.",
        )
    right, quantized_right = (
        np.asarray(reference.correct, dtype=bool),
        np.asarray(quantized.correct, dtype=bool),
    )
    lost, won = right & ~quantized_right, quantized_right & ~right
    b, c, n = int(won.sum()), int(lost.sum()), len(right)
    net, sizes = clustering.cluster_sums(won.astype(np.int64) - lost, reference.clusters)
    change = paired.mcnemar(b, c) if len(sizes) == n else clustering.cluster_sign(net)
    budget = budget.of(float(right.mean()))
    if budget.share is not None:
        test = ratio.ratio_test(
            right, quantized_right, reference.clusters, budget.share, budget.alpha
        )
    elif len(sizes) == n:
        p = paired.guarded_p(b, c, n, budget.margin, budget.alpha)
        test = clustering.ClusteredTest(p, 1.0, n, 1.0)
    else:
        test = clustering.clustered_test(net, sizes, b, c, budget.margin, budget.alpha)
    gone = not_finite(quantized)
    if gone:
        # Not a matter of chance: the model is broken, however few samples show it.
        test = replace(test, shown=paired.Shown(1.0, 0.0))
    gain = _gain_p(net, sizes, b, c, budget) if not gone else 1.0
    decision = decide(test.shown, budget.alpha, gain)
    threshold = large_margin(reference, budget)
    large = lost & (np.asarray(reference.margins) >= threshold)
    return Verdict(
        task=reference.task,
        metric=reference.metric,
        budget=budget,
        n=n,
        clusters=len(sizes),
        design_effect=test.design_effect,
        reference_accuracy=float(right.mean()),
        quantized_accuracy=float(quantized_right.mean()),
        difference=100 * (b - c) / n,
        interval=_interval(net, sizes, (b, c), budget, test, decision)
        if budget.share is None
        else _share_interval(
            (int((right & quantized_right).sum()), b, c), n, budget, test, decision
        ),
        lost=c,
        won=b,
        changed=int((np.asarray(reference.answers) != np.asarray(quantized.answers)).sum()),
        lost_large=int(large.sum()),
        lost_borderline=c - int(large.sum()),
        large_margin=threshold,
        p_loss=change[0],
        p_change=change[1],
        p_noninferior=test.shown.noninferior,
        p_inferior=test.shown.inferior,
        samples_needed=_samples_needed(b, c, n, budget, test)
        if decision is Decision.INCONCLUSIVE
        else None,
        decision=decision,
        lost_ids=_ids(reference, lost),
        won_ids=_ids(reference, won),
        note=f"the quantized model gives no finite answer for {gone:,} of {n:,} samples"
        if gone
        else "",
        block=test.block,
        p_gain=gain,
    )


def _gain_p(
    net: NDArray[np.float64], sizes: NDArray[np.float64], won: int, lost: int, budget: Budget
) -> float:
    """Return the one-sided p-value of "the gain is at most what is plausible"; 1 if no limit is
    declared.

    It is the test of a loss with the two models exchanged.
    """
    if budget.most_gain is None:
        return 1.0
    n, margin = int(sizes.sum()), budget.most_gain / 100
    if (won - lost) / n <= margin:
        return 1.0
    if len(sizes) == n:
        return paired.guarded_p(lost, won, n, margin, budget.alpha).inferior
    test = clustering.clustered_test(-net, sizes, lost, won, margin, budget.alpha)
    return test.shown.inferior


def _share_interval(
    counts: tuple[int, int, int],
    n: int,
    budget: Budget,
    test: clustering.ClusteredTest,
    decision: Decision,
) -> tuple[float, float]:
    """The interval of the share as points of the reference's accuracy, widened to hold the budget
    where the guard withholds a decision.
    """
    both, won, lost = counts
    accuracy = 100 * (both + lost) / n
    if not accuracy:
        return 0.0, 100 * won / n
    shares = ratio.ratio_interval(both, won, lost, budget.alpha, test, n)
    low, high = ((share - 1) * accuracy for share in shares)
    if decision is Decision.INCONCLUSIVE:
        low, high = min(low, -budget.points), max(high, -budget.points)
    return low, high


def not_finite(outcomes: Outcomes) -> int:
    """Samples for which the model gave no finite score."""
    return int((~(np.asarray(outcomes.margins) > -np.inf)).sum())


def undecided(verdict: Verdict, note: str, fix: str) -> Verdict:
    """Return the same numbers as INCONCLUSIVE, with the reason why they show nothing, and what to
    do.
    """
    low, high = verdict.interval
    edge = -verdict.budget.points
    return replace(
        verdict,
        decision=Decision.INCONCLUSIVE,
        p_noninferior=1.0,
        p_inferior=1.0,
        p_gain=1.0,
        interval=(min(low, edge), max(high, edge)),
        samples_needed=None,
        note=note,
        fix=fix,
    )


def decide(p: paired.Shown, alpha: float, gain: float = 1.0) -> Decision:
    """The decision that one-sided p-values allow at `alpha`; `gain` is that of an implausible
    gain.
    """
    if gain <= alpha:
        return Decision.GAIN
    if p.noninferior <= alpha:
        return Decision.PASS
    return Decision.FAIL if p.inferior <= alpha else Decision.INCONCLUSIVE


def check_pair(reference: Outcomes, quantized: Outcomes) -> None:
    """UsageError unless both hold the same samples of the same metric, in the same order, with the
    same targets and clusters.
    """
    where = f"{reference.task} ({reference.metric})"
    fix = "Evaluate both models on the same task in the same run."
    if (reference.task, reference.metric) != (quantized.task, quantized.metric):
        raise UsageError(
            where, f"the other outcomes are of {quantized.task} ({quantized.metric})", fix
        )
    n = len(reference.sample_ids)
    if n == 0:
        raise UsageError(where, "it has no samples", "Check the task's data.")
    if n != len(quantized.sample_ids):
        raise UsageError(
            where,
            f"{n} samples in the reference, {len(quantized.sample_ids)} in the quantized model",
            fix,
        )
    for outcomes, side in ((reference, "reference"), (quantized, "quantized model")):
        for name in ("correct", "answers", "targets", "margins", "clusters"):
            if len(getattr(outcomes, name)) != n:
                what = f"{n} sample ids but {len(getattr(outcomes, name))} {name} in the {side}"
                raise UsageError(where, what, "The outcomes are damaged: evaluate again.")
    if tuple(reference.sample_ids) != tuple(quantized.sample_ids):
        pairs = zip(reference.sample_ids, quantized.sample_ids, strict=True)
        at, (a, z) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
        same = sorted(reference.sample_ids) == sorted(quantized.sample_ids)
        what = (
            f"the {'order' if same else 'samples'} differ: number {at} is {a!r} in the reference, "
            f"{z!r} quantized"
        )
        raise UsageError(where, what, fix)
    for name in ("targets", "clusters"):
        if not np.array_equal(getattr(reference, name), getattr(quantized, name)):
            raise UsageError(where, f"the {name} of the two differ", fix)
    if np.isnan(np.asarray(reference.margins)).any():
        what = "the reference has margins that are NaN"
        raise UsageError(where, what, "The reference model itself is broken: check it in FP16.")


@dataclass(frozen=True)
class Resolution:
    """What a task can decide: power of the budget at n samples, smallest budget (points) it
    resolves, samples this budget needs.
    """

    n: int
    discordance: float
    power: float
    smallest_points: float
    samples_needed: int


def resolution(
    budget: Budget, n: int, discordance: float | None = None, design_effect: float | None = None
) -> Resolution:
    """Plan a verdict: what `n` samples resolve at the budget's alpha, power and expected loss.

    `discordance` (share) and `design_effect`: as observed in the baseline; None takes the budget's
    declared ones.
    """
    rate = max(
        budget.discordance if discordance is None else discordance, budget.expected_loss / 100
    )
    inflation = budget.design_effect if design_effect is None else design_effect
    truth = -budget.expected_loss / 100
    return Resolution(
        n=n,
        discordance=rate,
        power=sample_sizes.power(n, rate, budget.margin, truth, budget.alpha, inflation),
        smallest_points=100
        * sample_sizes.smallest_margin(n, rate, truth, budget.alpha, budget.power, inflation),
        samples_needed=math.ceil(
            sample_sizes.samples_for(
                rate, budget.margin, truth, budget.alpha, budget.power, inflation
            )
        ),
    )


def resolvable(
    budget: Budget,
    n: int,
    discordance: float | None = None,
    design_effect: float | None = None,
    task: str = "the task",
) -> Resolution:
    """`resolution`, or UsageError where `n` samples cannot resolve the budget: names the sample
    size and the budget that could.
    """
    plan = resolution(budget, n, discordance, design_effect)
    if n < plan.samples_needed:
        source = "declared" if discordance is None else "observed"
        raise UsageError(
            budget.place,
            f"{task} has {n:,} samples, which cannot resolve a budget of {budget.points:g} points "
            f"at alpha "
            f"{budget.alpha:g}, power "
            f"{budget.power:g}, expected loss {budget.expected_loss:g} and the {source} "
            f"discordance of "
            f"{plan.discordance:.1%}: "
            f"the power is {plan.power:.0%}",
            f"It takes {plan.samples_needed:,} samples, or a budget of "
            f"{math.ceil(plan.smallest_points * 100) / 100:.2f} points.",
        )
    return plan


@dataclass(frozen=True)
class VerdictFamily:
    """The verdict over all tasks of one recipe on one model; `verdicts` hold the decisions after
    Holm's correction.

    `alpha` is the largest of the tasks' budgets. `p_inferior` are Holm's adjusted p-values in the
    order of `verdicts`, each to be compared with the alpha of its own budget.
    """

    recipe: str
    model: str
    alpha: float
    decision: Decision
    verdicts: tuple[Verdict, ...]
    p_inferior: tuple[float, ...]

    def headline(self) -> str:
        """One line: the decision and the task that decided it."""
        name = f"{self.recipe} on {self.model}: {self.decision.value}"
        counts = ", ".join(
            f"{sum(v.decision is d for v in self.verdicts)} {d.value}"
            for d in Decision
            if any(v.decision is d for v in self.verdicts)
        )
        deciding = [v for v in self.verdicts if v.decision is self.decision]
        if self.decision is Decision.GAIN:
            worst = max(deciding, key=lambda v: v.difference - (v.budget.most_gain or 0))
            which, limit = "largest gain", f"plausible {worst.budget.most_gain or 0:g}"
        else:
            worst = min(deciding, key=lambda v: v.difference + v.budget.points)
            which = "closest" if self.decision is Decision.PASS else "worst"
            limit = f"budget {worst.budget.points:g}"
        low, high = worst.interval
        return (
            f"{name}: {counts}; {which} is {worst.task} ({worst.metric}) at "
            f"{worst.difference:+.2f} points [{low:+.2f}, {high:+.2f}], {limit}"
        )


def family(
    verdicts: Sequence[Verdict],
    alpha: float | None = None,
    recipe: str = "recipe",
    model: str = "model",
) -> VerdictFamily:
    """Join the verdicts on the tasks of one model, each judged at the alpha of its budget, or all
    at `alpha`.

    The family is PASS if every task passes at its own alpha. That is an intersection-union test
    (Berger 1982): it is false only if some task is truly over its budget and passes nevertheless,
    so its rate is at most that task's alpha, with no correction. The family is FAIL if Holm's
    procedure over the tasks shows at least one loss above its budget, each task with its own alpha
    (`paired.holm`): a task within its budget is called FAIL at no more than its alpha, and the
    chance that *any* task within its budget is, is at most the mean alpha of those tasks, however
    the tasks depend on each other. A task that fails alone but not after Holm is INCONCLUSIVE.
    """
    if not verdicts:
        raise ValueError("a family needs at least one verdict")
    alphas = [v.budget.alpha if alpha is None else alpha for v in verdicts]
    adjusted = paired.holm([v.p_inferior for v in verdicts], alphas)
    gains = paired.holm([v.p_gain for v in verdicts], alphas)
    joined = tuple(
        _in_family(v, level, p, gain, len(verdicts))
        for v, level, p, gain in zip(verdicts, alphas, adjusted, gains, strict=True)
    )
    decisions = {v.decision for v in joined}
    if Decision.FAIL in decisions:
        decision = Decision.FAIL
    elif Decision.GAIN in decisions:
        decision = Decision.GAIN
    else:
        decision = Decision.INCONCLUSIVE if Decision.INCONCLUSIVE in decisions else Decision.PASS
    return VerdictFamily(recipe, model, max(alphas), decision, joined, tuple(adjusted))


def _in_family(verdict: Verdict, alpha: float, adjusted: float, gain: float, tasks: int) -> Verdict:
    if gain <= alpha:
        return replace(verdict, decision=Decision.GAIN, samples_needed=None)
    if verdict.p_noninferior <= alpha:
        return replace(verdict, decision=Decision.PASS, samples_needed=None)
    if adjusted <= alpha:
        return replace(verdict, decision=Decision.FAIL, samples_needed=None)
    if verdict.decision is not Decision.FAIL:
        return replace(verdict, decision=Decision.INCONCLUSIVE)
    note = (
        f"fails alone (p {verdict.p_inferior:.3g}), not after Holm's correction over {tasks} tasks "
        f"(p {adjusted:.3g})"
    )
    shown = paired.Shown(verdict.p_noninferior, verdict.p_inferior)
    test = clustering.ClusteredTest(shown, verdict.design_effect, verdict.clusters, verdict.block)
    budget = replace(verdict.budget, alpha=alpha / tasks)
    needed = _samples_needed(verdict.won, verdict.lost, verdict.n, budget, test)
    return replace(verdict, decision=Decision.INCONCLUSIVE, samples_needed=needed, note=note)


def _interval(
    net: NDArray[np.float64],
    sizes: NDArray[np.float64],
    counts: tuple[int, int],
    budget: Budget,
    test: clustering.ClusteredTest,
    decision: Decision,
) -> tuple[float, float]:
    """The 1 - 2 alpha interval in points; widened to hold the budget where an exact test withholds
    a decision.
    """
    n = int(sizes.sum())
    groups = test.groups if len(sizes) < n else None
    low, high = paired.interval(*counts, n, budget.alpha, test.design_effect, groups)
    if len(sizes) < n and sizes.max() > paired.ALIKE * sizes.min():
        # Unequal clusters: how far the difference may be from 0 depends on the largest, whatever
        # was observed.
        ends = clustering.bounded_interval(net, sizes, test.block, budget.alpha)
        low, high = min(low, ends[0]), max(high, ends[1])
    if decision is Decision.INCONCLUSIVE:
        low, high = min(low, -budget.margin), max(high, -budget.margin)
    return 100 * low, 100 * high


def _samples_needed(
    won: int, lost: int, n: int, budget: Budget, test: clustering.ClusteredTest
) -> int | None:
    needed = sample_sizes.samples_for(
        (won + lost) / n,
        budget.margin,
        (won - lost) / n,
        budget.alpha,
        budget.power,
        test.design_effect,
        test.block,
    )
    # Beyond a billion the measured loss is the budget, as far as anyone can measure.
    return max(math.ceil(needed), n + 1) if needed < 1e9 else None


def large_margin(reference: Outcomes, budget: Budget) -> float:
    """Reference margin (logits) from which a lost sample counts as a large-margin flip."""
    if budget.large_margin is not None:
        return budget.large_margin
    margins = np.asarray(reference.margins)[np.asarray(reference.correct, dtype=bool)]
    return float(np.median(margins)) if margins.size else 0.0


def _ids(reference: Outcomes, chosen: NDArray[np.bool_]) -> tuple[str, ...]:
    indices = np.flatnonzero(chosen)
    order = np.argsort(-np.asarray(reference.margins)[indices], kind="stable")
    return tuple(reference.sample_ids[i] for i in indices[order])
