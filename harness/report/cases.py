"""What terminal, comment and page say about a case, taken out of the results once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.gate.results import Outcome, Word, worst
from harness.gate.results_schema import (
    AccuracyResult,
    CaseResult,
    ConsumersResult,
    DriftResult,
    ExportResult,
    FailedCheck,
    LimitResult,
    ObservationResult,
    ProblemResult,
    RunResult,
    SpeedResult,
)
from harness.report.text import plain

#: Short words for the kinds of drift (``baselines.Kind``), for a column of a table.
DRIFT = {
    "nothing moved": "none",
    "only noise": "noise",
    "missing": "no baseline",
    "no baseline for a task": "no baseline",
    "the quantized model moved": "quantized moved",
    "the reference moved": "reference moved",
    "the baseline belongs to something else": "other baseline",
}
#: Kinds of drift that fail nothing.
CALM = ("none", "noise", "")


@dataclass(frozen=True)
class VerdictRow:
    """One verdict as it is shown: accuracies as fractions, everything else in points."""

    task: str
    metric: str
    reference: float
    quantized: float
    difference: float
    low: float
    high: float
    budget: float
    most_gain: float | None
    decision: str
    drift: str

    @property
    def name(self) -> str:
        """``emoji/acc1``."""
        return f"{self.task}/{self.metric}"


def rows(case: CaseResult) -> list[VerdictRow]:
    """The verdicts of *case*, in order."""
    judged = (case.accuracy, case.consumers)
    return [
        VerdictRow(
            task=verdict.task,
            metric=verdict.metric,
            reference=verdict.reference_accuracy,
            quantized=verdict.quantized_accuracy,
            difference=verdict.difference,
            low=verdict.interval[0],
            high=verdict.interval[1],
            budget=verdict.budget.points,
            most_gain=verdict.budget.most_gain,
            decision=verdict.decision,
            drift=drift_word(case.drift.get(f"{verdict.task}/{verdict.metric}")),
        )
        for part in judged
        for verdict in (part.verdicts if part else ())
    ]


def drift_word(drift: DriftResult | None) -> str:
    """A word or two for a drift of the results; nothing where it was not looked at."""
    return "" if drift is None else DRIFT.get(drift.kind, drift.kind)


def mismatches(case: CaseResult) -> list[ObservationResult]:
    """Observations of quantizers that do not compute what their format says, or could not be
    compared.
    """
    observations = case.numerics.observations if case.numerics else []
    return [seen for seen in observations if seen.mismatches or seen.unsupported]


def folded(case: CaseResult) -> list[ProblemResult]:
    """What the weights that accuracy is measured on compute otherwise than fake quantization."""
    return case.numerics.folded if case.numerics else []


def problems(case: CaseResult) -> list[ProblemResult]:
    """Invariants of the quantizer map that do not hold."""
    return case.insertion.problems if case.insertion else []


def not_covered(case: CaseResult) -> list[str]:
    """What of the model no recipe can quantize, and why."""
    return case.insertion.not_covered if case.insertion else []


def heavy(case: CaseResult) -> list[ProblemResult]:
    """Weights that do not take their bits after compression."""
    return case.memory.problems if case.memory else []


def export_faults(case: CaseResult) -> list[str]:
    """What of the exported graphs does not hold, a few words each; the runtime's own defects are
    none of these.
    """
    export = case.export or ExportResult()
    faults = [
        f"{where}: {problem.rule}"
        for where, problems_there in export.problems.items()
        for problem in problems_there
    ]
    faults += [f"{tower}: parity" for tower, parity in export.parity.items() if not parity.holds]
    if answers := export.answers:
        faults += [f"answers on {answers.task}"] if answers.differing else []
        # A tower that the task alone caught, on more rows than the probe.
        faults += [
            f"{tower}: parity on {answers.task}"
            for tower, parity in answers.towers.items()
            if not parity.holds
        ]
    return faults


def export_lines(case: CaseResult) -> list[str]:
    """What exporting to ONNX costs, in sentences: the drop, or why there is no graph, and the
    defects of the runtime and of ModelOpt's own export.
    """
    exported = case.export or ExportResult()
    if exported.no_form:
        return [f"no ONNX form: {exported.no_form}"]
    lines = []
    if answers := exported.answers:
        lines.append(
            f"drop from exporting: {answers.drop:.2f} points, {answers.changed} of {answers.n} "
            f"answers changed ({answers.task}/{answers.metric})"
        )
    for tower, parity in exported.optimized.items():
        same = exported.parity.get(tower)
        if not parity.holds and (same is None or same.holds):
            lines.append(
                f"{tower}, the runtime's defect: with its optimisations on {exported.runtime} is "
                f"{parity.error:.2g} off, {parity.bound:.1g} is rounding"
            )
    if exported.published and not isinstance(exported.published, str):
        problems_of_export = "; ".join(" ".join(problem.split()) for problem in exported.published)
        lines.append(f"ModelOpt's own export, not the recipe: {problems_of_export}")
    return lines


@dataclass(frozen=True)
class SpeedLine:
    """A tower's speed ratio as it is shown, and the baseline's; ``moved`` is ``slower``, ``faster``
    or empty.
    """

    tower: str
    ratio: str
    baseline: str
    moved: str

    def __str__(self) -> str:
        then = f", {self.baseline} in the baseline" if self.baseline else ""
        return (
            f"{self.tower} runs at {self.ratio} times FP16's "
            f"speed{then}{f': {self.moved}' if self.moved else ''}"
        )


def speeds(case: CaseResult) -> list[SpeedLine]:
    """The speed ratios of a case."""
    return [
        SpeedLine(tower, _ratio(speed), _baseline_ratio(speed), speed.moved)
        for tower, speed in case.throughput.items()
        if speed.ratio is not None
    ]


def _ratio(speed: SpeedResult) -> str:
    return _shown_ratio(speed.ratio, speed.low, speed.high)


def _baseline_ratio(speed: SpeedResult) -> str:
    return _shown_ratio(speed.baseline_ratio, speed.baseline_low, speed.baseline_high)


def _shown_ratio(value: float | None, low: float | None, high: float | None) -> str:
    """``0.41 [0.40, 0.42]``, or nothing where there is no ratio."""
    if value is None:
        return ""
    return f"{value:.2f}" + ("" if low is None or high is None else f" [{low:.2f}, {high:.2f}]")


def speed_lines(case: CaseResult) -> list[str]:
    """The towers whose speed ratio is no longer the baseline's, in sentences; they fail nothing."""
    return [f"speed: {speed}" for speed in speeds(case) if speed.moved]


def gain_lines(case: CaseResult) -> list[str]:
    """What fine-tuning won back, a sentence a metric."""
    return [
        f"fine-tuned, {gain.task}/{gain.metric}: {gain.before:.2%} to {gain.after:.2%} (FP16 "
        f"{gain.reference:.2%}), {gain.won} won and {gain.lost} lost, p(no gain) {gain.p:.2g}"
        for gain in (case.qat.gains if case.qat else [])
    ]


def exceeded(case: CaseResult) -> list[LimitResult]:
    """Measures beyond accuracy that are over their limits."""
    return [*_exceeded(case.accuracy), *_exceeded(case.consumers)]


def _exceeded(part: AccuracyResult | ConsumersResult | None) -> list[LimitResult]:
    return [limit for limit in part.limits if limit.exceeded] if part else []


def exceeded_lines(case: CaseResult) -> list[str]:
    """The same, one sentence per measure: ``emoji (acc1): kl_mean is 0.31, limit: at most 0.2:
    EXCEEDED``.
    """
    return [limit.message for limit in exceeded(case)]


@dataclass(frozen=True)
class Failed:
    """All failed checks of one test function: its suite, its name, how many, and what the first one
    said.
    """

    suite: str
    name: str
    count: int
    message: str

    def __str__(self) -> str:
        times = f" ({self.count})" if self.count > 1 else ""
        return f"{self.name}{times}: {self.message}"


def failed_functions(checks: list[FailedCheck]) -> list[Failed]:
    """Failed checks, one line per test function."""
    messages_by_test: dict[tuple[str, str], list[str]] = {}
    for check in checks:
        name = check.test.partition("[")[0].rpartition("::")[2]
        messages_by_test.setdefault((check.suite, name), []).append(check.message)
    return [
        Failed(suite, name, len(messages), messages[0])
        for (suite, name), messages in messages_by_test.items()
    ]


def known_lines(part: CaseResult | RunResult) -> list[str]:
    """The known failures of a case, or of none: a sentence each."""
    return [
        f"known failure, {failure.suite} {failure.test.partition('::')[2]}: {failure.reason}"
        for failure in part.checks.known
    ]


def _checked(part: CaseResult | RunResult) -> Word:
    """The worst word of the checks of *part*."""
    return worst(Outcome(name).word for name, count in part.checks.counts.items() if count)


def decision(case: CaseResult) -> str:
    """The worst word of all that was judged of a case, or ``no verdict`` where nothing was.

    Judged are the verdicts, the limits beyond accuracy, what each suite found, and each check that
    ran: one that failed, or that could not run because another one failed, fails the case whatever
    its accuracy.
    """
    words = [_checked(case)]
    # Where a suite has a known failure, its tests alone say how it ended.
    listed = {known.suite for known in case.checks.known}
    if case.accuracy is not None and "accuracy" not in listed:
        words.append(Word(case.accuracy.decision))
    if case.consumers is not None and case.consumers.decision and "consumers" not in listed:
        words.append(Word(case.consumers.decision))
    broken: dict[str, list[Sequence[object]]] = {
        "insertion": [problems(case)],
        "numerics": [mismatches(case), folded(case)],
        "export": [export_faults(case)],
        "checkpoint": [*case.checkpoint.values()],
        "throughput": [heavy(case)],
        "accuracy": [_exceeded(case.accuracy)],
        "consumers": [_exceeded(case.consumers)],
    }
    if any(
        any(reasons_of_suite) for suite, reasons_of_suite in broken.items() if suite not in listed
    ):
        words.append(Word.FAIL)
    exported = case.export is not None and (case.export.parity or case.export.answers)
    if case.insertion or case.numerics or exported:
        words.append(Word.PASS)
    return worst(words).value


def run_decision(results: RunResult) -> str:
    """The worst word of all that a run judged: its cases, the checks of no case, and what was
    refused.
    """
    words = [Word(decision(case)) for case in results.cases]
    words.append(_checked(results))
    selection = results.environment.selection
    if selection.refused or selection.faults:
        words.append(Word.FAIL)
    if results.interrupted:
        words.append(Word.INTERRUPTED)
    if results.refused:
        words.append(Word.REFUSED)
    return worst(words).value


def run_headline(results: RunResult) -> str:
    """What a run came to, in one line without its word: the usage error that ended it, or how many
    cases ended how.
    """
    if results.refused or results.interrupted:
        return results.refused or results.interrupted
    words = [decision(case) for case in results.cases]
    parts = [
        f"{words.count(word.value)} {word.value}" for word in reversed(Word) if word.value in words
    ]
    other = results.checks.failed
    if other:
        parts.append(f"{len(other)} failed of no recipe")
    selection = results.environment.selection
    if selection.refused:
        parts.append(f"refused: {', '.join(selection.refused)}")
    if selection.faults:
        parts.append(f"faults of shape: {', '.join(selection.faults)}")
    return ", ".join(parts) or "nothing gated"


@dataclass(frozen=True)
class Reasons:
    """One list of a pull request's recipes or files: its title, and (name, reason) pairs."""

    title: str
    pairs: list[tuple[str, str]]


def reasons(results: RunResult) -> list[Reasons]:
    """The recipes and files of a pull request that were refused or not gated, each with its
    reason; what matters most comes first.
    """
    selection = results.environment.selection
    by_title = {
        "Refused": selection.refused,
        "Not gated": selection.not_gated,
        "Undecided": selection.undecided,
        "Not compared": selection.left_out,
        "Changed, and imported by no recipe": selection.unused,
        "Not gated on this device": {
            f"{case.recipe} on {case.model}": case.not_gated
            for case in results.cases
            if case.not_gated
        },
    }
    return [Reasons(title, list(pairs.items())) for title, pairs in by_title.items() if pairs]


def change_lists(results: RunResult) -> list[tuple[str, list[str]]]:
    """The lists below the table of recipes by architectures: (title, lines), without empty ones."""
    table = results.environment.selection.architectures
    lists = [
        ("Faults that the change brings", table.brought),
        ("What changes on the architectures", table.differences),
        ("Faults that the change fixes", table.fixed),
        ("Faults that were there before", table.there),
        (
            "Not judged on architectures",
            [f"{name}: {why}" for name, why in table.not_judged.items()],
        ),
    ]
    return [(title, lines) for title, lines in lists if lines]


def map_changes(results: RunResult) -> list[tuple[str, list[str]]]:
    """What a pull request does to the quantizer map: (recipe, lines), the architecture before each
    of its lines.
    """
    effects = []
    for effect in results.environment.selection.effects:
        lines = [
            f"{architecture}: {line}"
            for architecture, changes in effect.by_architecture.items()
            for line in changes
        ]
        lines += effect.beyond_map
        effects.append((effect.recipe, lines or ["no effect on CLIP"]))
    return effects


def read(results: Mapping[str, object]) -> RunResult:
    """The results of a run (``Results.as_dict``, or what ``results.json`` holds), typed."""
    return RunResult.model_validate(plain(results))


def read_case(case: Mapping[str, object]) -> CaseResult:
    """One case of such results, typed."""
    return CaseResult.model_validate(plain(case))


def _deciding(rows: list[VerdictRow]) -> str:
    """The one of *rows*, all of one decision, that is nearest to its budget or farthest beyond."""
    if rows[0].decision == Word.GAIN.value:
        row = max(rows, key=lambda row: row.difference - (row.most_gain or 0))
        which, limit = "largest gain", f"plausible {row.most_gain or 0:g}"
    else:
        row = min(rows, key=lambda row: row.difference + row.budget)
        which = "closest" if row.decision == Word.PASS.value else "worst"
        limit = f"budget {row.budget:g}"
    return (
        f"{which} is {row.name} at {row.difference:+.2f} [{row.low:+.2f}, {row.high:+.2f}], {limit}"
    )


def headline(case: CaseResult) -> str:
    """What decided a case, in one line without its name."""
    parts = [f"not gated: {case.not_gated}"] if case.not_gated else []
    verdicts = rows(case)
    if verdicts:
        counts = Counter(row.decision for row in verdicts)
        parts.append(", ".join(f"{n} {word}" for word, n in counts.items()))
        judged = [part.decision for part in (case.accuracy, case.consumers) if part]
        word = worst(Word(decided) for decided in judged if decided)
        deciding = [row for row in verdicts if row.decision == word.value] or verdicts
        parts.append(_deciding(deciding))
    if exceeded(case):
        parts.append(_count(len(exceeded(case)), "limit", "") + " EXCEEDED")
    if case.insertion:
        parts.append(_count(len(problems(case)), "insertion problem", "insertion holds"))
    if case.numerics:
        wrong = len(mismatches(case)) + len(folded(case))
        parts.append(_count(wrong, "numerics mismatch", "numerics hold"))
    if case.checkpoint:
        wrong = sum(map(bool, case.checkpoint.values()))
        parts.append(_count(wrong, "checkpoint problem", "checkpoints hold"))
    if case.memory:
        parts.append(_count(len(heavy(case)), "memory problem", "weights take their bits"))
    if case.export and (case.export.problems or case.export.parity or case.export.answers):
        parts.append(_count(len(export_faults(case)), "export problem", "export holds"))
    parts += [
        f"{speed.tower} {speed.moved} than the baseline" for speed in speeds(case) if speed.moved
    ]
    words = [drift_word(drift) for drift in case.drift.values()]
    moved = [word for word in dict.fromkeys(words) if word not in CALM]
    if moved:
        parts.append(f"against the baseline: {', '.join(moved)}")
    parts += _check_parts(case, alone=not parts)
    return "; ".join(parts) or "nothing measured"


def _check_parts(case: CaseResult, *, alone: bool) -> list[str]:
    """What the headline says of the checks of a case; those that passed only where there is nothing
    else to say.
    """
    failed, depending, parts = case.checks.failed, case.checks.depending, []
    if case.checks.known:
        parts.append(_count(len(case.checks.known), "known failure", ""))
    if len(failed) == 1:
        parts.append(f"failed check: {failed[0].message or failed[0].test}")
    elif failed:
        parts.append(_count(len(failed), "failed check", ""))
    if depending:
        parts.append(f"{sum(depending.values())} not run, see {next(iter(depending))}")
    passed = case.checks.counts.get("passed", 0)
    if alone and not parts and passed:
        parts.append(f"{_count(passed, 'check', '')} passed")
    return parts


def _count(n: int, what: str, none: str) -> str:
    ending = "" if n == 1 else "es" if what.endswith("ch") else "s"
    return f"{n} {what}{ending}" if n else none
