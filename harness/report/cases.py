"""What terminal, comment and page say about a case, taken out of the results once."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from harness.gate.results import Outcome, Word, worst
from harness.report.text import number

Json = dict[str, Any]

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
class Row:
    """One verdict as it is shown: accuracies as fractions, everything else in points."""

    task: str
    metric: str
    reference: float
    quantized: float
    difference: float
    low: float
    high: float
    budget: float
    decision: str
    drift: str

    @property
    def name(self) -> str:
        """``emoji/acc1``."""
        return f"{self.task}/{self.metric}"


def rows(case: Json) -> list[Row]:
    """The verdicts of *case*, in order."""
    moved = case.get("drift") or {}
    found = []
    for v in (case.get("accuracy") or {}).get("verdicts") or []:
        low, high = (number(x) or 0.0 for x in v["interval"])
        found.append(
            Row(
                task=v["task"],
                metric=v["metric"],
                reference=number(v["reference_accuracy"]) or 0.0,
                quantized=number(v["quantized_accuracy"]) or 0.0,
                difference=number(v["difference"]) or 0.0,
                low=low,
                high=high,
                budget=number(v["budget"]["points"]) or 0.0,
                decision=v["decision"],
                drift=drift_word(moved.get(f"{v['task']}/{v['metric']}")),
            )
        )
    return found


def drift_word(drift: Json | None) -> str:
    """A word or two for a drift of the results; nothing where it was not looked at."""
    kind = str((drift or {}).get("kind", ""))
    return DRIFT.get(kind, kind)


def mismatches(case: Json) -> list[Json]:
    """Observations of quantizers that do not compute what their format says, or could not be
    compared.
    """
    found = (case.get("numerics") or {}).get("observations") or []
    return [o for o in found if o.get("mismatches") or o.get("unsupported")]


def folded(case: Json) -> list[Json]:
    """What the weights that accuracy is measured on compute otherwise than fake quantization."""
    return (case.get("numerics") or {}).get("folded") or []


def problems(case: Json) -> list[Json]:
    """Invariants of the quantizer map that do not hold."""
    return (case.get("insertion") or {}).get("problems") or []


def not_covered(case: Json) -> list[str]:
    """What of the model no recipe can quantize, and why."""
    return (case.get("insertion") or {}).get("not_covered") or []


def heavy(case: Json) -> list[Json]:
    """Weights that do not take their bits after compression."""
    return (case.get("memory") or {}).get("problems") or []


def export_faults(case: Json) -> list[str]:
    """What of the exported graphs does not hold, a few words each; the runtime's own defects are
    none of these.
    """
    found = case.get("export") or {}
    faults = [
        f"{where}: {p['rule']}" for where, ps in (found.get("problems") or {}).items() for p in ps
    ]
    faults += [
        f"{tower}: parity" for tower, p in (found.get("parity") or {}).items() if not p["holds"]
    ]
    answers = found.get("answers") or {}
    faults += [f"answers on {answers['task']}"] if answers.get("differing") else []
    # A tower that the task alone caught, on more rows than the probe.
    faults += [
        f"{t}: parity on {answers['task']}"
        for t, p in (answers.get("towers") or {}).items()
        if not p["holds"]
    ]
    return faults


def export_lines(case: Json) -> list[str]:
    """What exporting to ONNX costs, in sentences: the drop, or why there is no graph, and the
    defects of the runtime and of ModelOpt's own export.
    """
    found = case.get("export") or {}
    if found.get("no_form"):
        return [f"no ONNX form: {found['no_form']}"]
    lines = []
    if answers := found.get("answers"):
        drop = number(answers["drop"]) or 0.0
        lines.append(
            f"drop from exporting: {drop:.2f} points, {answers['changed']} of {answers['n']} "
            f"answers changed "
            f"({answers['task']}/{answers['metric']})"
        )
    for tower, p in (found.get("optimized") or {}).items():
        same = (found.get("parity") or {}).get(tower) or {}
        if not p["holds"] and same.get("holds", True):
            error, limit = number(p["error"]) or 0.0, number(p["bound"]) or 0.0
            lines.append(
                f"{tower}, the runtime's defect: with its optimisations on "
                f"{found.get('runtime', 'it')} is "
                f"{error:.2g} off, {limit:.1g} is rounding"
            )
    published = found.get("published")
    if published and not isinstance(published, str):
        told = "; ".join(" ".join(problem.split()) for problem in published)
        lines.append(f"ModelOpt's own export, not the recipe: {told}")
    return lines


@dataclass(frozen=True)
class Speed:
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


def speeds(case: Json) -> list[Speed]:
    """The speed ratios of a case."""
    found = []
    for tower, speed in (case.get("throughput") or {}).items():
        if not isinstance(speed, dict) or number(speed.get("ratio")) is None:
            continue
        ratios = (
            _ratio(speed, "ratio", "low", "high"),
            _ratio(speed, *(f"baseline_{k}" for k in ("ratio", "low", "high"))),
        )
        found.append(Speed(str(tower), *ratios, str(speed.get("moved") or "")))
    return found


def _ratio(speed: Json, *keys: str) -> str:
    """``0.41 [0.40, 0.42]``, or nothing where there is no ratio."""
    value, low, high = (number(speed.get(key)) for key in keys)
    if value is None:
        return ""
    return f"{value:.2f}" + ("" if low is None or high is None else f" [{low:.2f}, {high:.2f}]")


def speed_lines(case: Json) -> list[str]:
    """The towers whose speed ratio is no longer the baseline's, in sentences; they fail nothing."""
    return [f"speed: {speed}" for speed in speeds(case) if speed.moved]


def gain_lines(case: Json) -> list[str]:
    """What fine-tuning won back, a sentence a metric."""
    return [
        f"fine-tuned, {g['task']}/{g['metric']}: {g['before']:.2%} to {g['after']:.2%} (FP16 "
        f"{g['reference']:.2%}), "
        f"{g['won']} won and {g['lost']} lost, p(no gain) {g['p']:.2g}"
        for g in (case.get("qat") or {}).get("gains") or []
    ]


def exceeded(case: Json) -> list[Json]:
    """Measures beyond accuracy that are over their limits."""
    return [m for m in (case.get("accuracy") or {}).get("limits") or [] if m.get("exceeded")]


def exceeded_lines(case: Json) -> list[str]:
    """The same, one sentence per measure: ``emoji (acc1): kl_mean is 0.31, limit: at most 0.2:
    EXCEEDED``.
    """
    return [str(m["message"]) for m in exceeded(case)]


def failed_checks(part: Json) -> list[Json]:
    """Checks of a case (or, of a whole run, those of no case) that fell short: test, suite,
    outcome, first line.
    """
    return (part.get("checks") or {}).get("failed") or []


def depending(part: Json) -> dict[str, int]:
    """How many checks did not run because another one failed, by the id of that one."""
    return (part.get("checks") or {}).get("depending") or {}


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


def failed_functions(part: Json) -> list[Failed]:
    """The failed checks, one line per test function."""
    found: dict[tuple[str, str], list[str]] = {}
    for check in failed_checks(part):
        name = str(check["test"]).partition("[")[0].rpartition("::")[2]
        found.setdefault((str(check.get("suite") or ""), name), []).append(
            str(check.get("message") or "")
        )
    return [
        Failed(suite, name, len(messages), messages[0]) for (suite, name), messages in found.items()
    ]


def _checked(part: Json) -> Word:
    """The worst word of the checks of *part*."""
    counts = (part.get("checks") or {}).get("counts") or {}
    return worst(Outcome(name).word for name, count in counts.items() if count)


def decision(case: Json) -> str:
    """The worst word of all that was judged of a case, or ``no verdict`` where nothing was.

    Judged are the verdicts, the limits beyond accuracy, what each suite found, and each check that
    ran: one that failed, or that could not run because another one failed, fails the case whatever
    its accuracy.
    """
    verdict = str((case.get("accuracy") or {}).get("decision") or "")
    words = [_checked(case), *(word for word in Word if word.value == verdict)]
    broken = (
        any((case.get("checkpoint") or {}).values())
        or heavy(case)
        or folded(case)
        or exceeded(case)
    )
    if problems(case) or mismatches(case) or export_faults(case) or broken:
        words.append(Word.FAIL)
    if (
        "insertion" in case
        or "numerics" in case
        or {"parity", "answers"} & set(case.get("export") or {})
    ):
        words.append(Word.PASS)
    return worst(words).value


def run_decision(results: Json) -> str:
    """The worst word of all that a run judged: its cases, the checks of no case, and what was
    refused.
    """
    words = [Word(decision(case)) for case in results["cases"]]
    words.append(_checked(results))
    if (results["environment"].get("selection") or {}).get("refused"):
        words.append(Word.FAIL)
    if results.get("interrupted"):
        words.append(Word.INTERRUPTED)
    if results.get("refused"):
        words.append(Word.REFUSED)
    return worst(words).value


def run_headline(results: Json) -> str:
    """What a run came to, in one line without its word: the usage error that ended it, or how many
    cases ended how.
    """
    if results.get("refused") or results.get("interrupted"):
        return str(results.get("refused") or results["interrupted"])
    words = [decision(case) for case in results["cases"]]
    parts = [
        f"{words.count(word.value)} {word.value}" for word in reversed(Word) if word.value in words
    ]
    other = failed_checks(results)
    if other:
        parts.append(f"{len(other)} failed of no recipe")
    refused = (results["environment"].get("selection") or {}).get("refused") or {}
    if refused:
        parts.append(f"refused: {', '.join(refused)}")
    return ", ".join(parts) or "nothing gated"


@dataclass(frozen=True)
class Reasons:
    """One list of a pull request's recipes or files: its title, and (name, reason) pairs."""

    title: str
    pairs: list[tuple[str, str]]


#: The lists of a selection (``harness.pull_requests.selection``), in the order in which they
#: matter.
_LISTS = {
    "refused": "Refused",
    "not_gated": "Not gated",
    "undecided": "Undecided",
    "left_out": "Not compared",
    "unused": "Changed, and imported by no recipe",
}


def reasons(results: Json) -> list[Reasons]:
    """The recipes and files of a pull request that were refused or not gated, each with its
    reason.
    """
    selection = results["environment"].get("selection") or {}
    lists = [
        Reasons(title, list((selection.get(key) or {}).items())) for key, title in _LISTS.items()
    ]
    by_hand = [
        (f"{c['recipe']} on {c['model']}", c["not_gated"])
        for c in results["cases"]
        if c.get("not_gated")
    ]
    if by_hand:
        lists.append(Reasons("Not gated on this device", by_hand))
    return [found for found in lists if found.pairs]


def map_changes(results: Json) -> list[tuple[str, list[str]]]:
    """What a pull request does to the quantizer map: (recipe, lines), the architecture before each
    of its lines.
    """
    found = []
    for effect in (results["environment"].get("selection") or {}).get("effects") or []:
        lines = [
            f"{architecture}: {line}"
            for architecture, changes in (effect.get("by_architecture") or {}).items()
            for line in changes
        ]
        lines += effect.get("beyond_map") or []
        found.append((str(effect.get("recipe", "")), lines or ["no effect on CLIP"]))
    return found


def judged(results: Json) -> Json:
    """*results* with the decision and the headline of the run and of each case written into
    them.
    """
    cases = [
        case | {"decision": decision(case), "headline": headline(case)} for case in results["cases"]
    ]
    return results | {
        "decision": run_decision(results),
        "headline": run_headline(results),
        "cases": cases,
    }


def headline(case: Json) -> str:
    """What decided a case, in one line without its name."""
    parts = [f"not gated: {case['not_gated']}"] if case.get("not_gated") else []
    verdicts = rows(case)
    if verdicts:
        counts = Counter(r.decision for r in verdicts)
        parts.append(", ".join(f"{n} {word}" for word, n in counts.items()))
        deciding = [
            r for r in verdicts if r.decision == (case["accuracy"].get("decision"))
        ] or verdicts
        worst = min(deciding, key=lambda r: r.difference + r.budget)
        parts.append(
            f"{'closest' if worst.decision == 'PASS' else 'worst'} is {worst.name} at "
            f"{worst.difference:+.2f} "
            f"[{worst.low:+.2f}, {worst.high:+.2f}], budget {worst.budget:g}"
        )
    if exceeded(case):
        parts.append(_count(len(exceeded(case)), "limit", "") + " EXCEEDED")
    if "insertion" in case:
        parts.append(_count(len(problems(case)), "insertion problem", "insertion holds"))
    if "numerics" in case:
        parts.append(
            _count(len(mismatches(case)) + len(folded(case)), "numerics mismatch", "numerics hold")
        )
    if "checkpoint" in case:
        parts.append(
            _count(
                sum(map(bool, case["checkpoint"].values())),
                "checkpoint problem",
                "checkpoints hold",
            )
        )
    if "memory" in case:
        parts.append(_count(len(heavy(case)), "memory problem", "weights take their bits"))
    if {"problems", "parity", "answers"} & set(case.get("export") or {}):
        parts.append(_count(len(export_faults(case)), "export problem", "export holds"))
    parts += [
        f"{speed.tower} {speed.moved} than the baseline" for speed in speeds(case) if speed.moved
    ]
    words = [drift_word(d) for d in (case.get("drift") or {}).values()]
    moved = [word for word in dict.fromkeys(words) if word not in CALM]
    if moved:
        parts.append(f"against the baseline: {', '.join(moved)}")
    parts += _check_parts(case, alone=not parts)
    return "; ".join(parts) or "nothing measured"


def _check_parts(case: Json, *, alone: bool) -> list[str]:
    """What the headline says of the checks of a case; those that passed only where there is nothing
    else to say.
    """
    failed, parts = failed_checks(case), []
    if len(failed) == 1:
        parts.append(f"failed check: {failed[0].get('message') or failed[0]['test']}")
    elif failed:
        parts.append(_count(len(failed), "failed check", ""))
    if depending(case):
        parts.append(f"{sum(depending(case).values())} not run, see {next(iter(depending(case)))}")
    passed = ((case.get("checks") or {}).get("counts") or {}).get("passed", 0)
    if alone and not parts and passed:
        parts.append(f"{_count(passed, 'check', '')} passed")
    return parts


def _count(n: int, what: str, none: str) -> str:
    ending = "" if n == 1 else "es" if what.endswith("ch") else "s"
    return f"{n} {what}{ending}" if n else none
