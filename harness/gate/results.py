"""What one run of the gate found, as plain data: the one thing that reports, summaries and other
processes read.

A run is a list of cases, one per recipe and model.  A case has sections (``insertion``,
``numerics``, ``accuracy``, ``checkpoint``, ``throughput``, ``drift``, ``blame``, ``export``), each
filled by the suite of that name, and ``checks``: how the tests of the case ended.  Everything is
JSON: a worker process hands its part to the one that reports.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from typing import Any

#: Version of the shape below; raised when a reader of an older shape would misread it.
SCHEMA = 2

Json = Any


class Word(str, Enum):
    """What a headline says, from best to worst."""

    NOTHING = "no verdict"
    PASS = "PASS"  # noqa: S105 - a verdict
    INCONCLUSIVE = "INCONCLUSIVE"
    GAIN = "GAIN"
    FAIL = "FAIL"
    INTERRUPTED = "INTERRUPTED"
    REFUSED = "REFUSED"

    @property
    def falls_short(self) -> bool:
        """Whether a run with this word may not end with exit code 0."""
        return self not in (Word.NOTHING, Word.PASS)


def worst(words: Iterable[Word]) -> Word:
    """The worst of *words*: the one word for everything that they stand for."""
    order = list(Word)
    return max(words, key=order.index, default=Word.NOTHING)


class Outcome(str, Enum):
    """How one check (a test of the gate's suites) ended."""

    PASSED = "passed"
    SKIPPED = "skipped"
    XFAILED = "xfailed"
    INCONCLUSIVE = "inconclusive"
    #: Better than the reference by more than is plausible.
    GAIN = "gain"
    FAILED = "failed"
    ERROR = "error"
    #: Not run: what it needs failed in another check, which says why.
    DEPENDENT = "dependent"

    @property
    def word(self) -> Word:
        """What the outcome makes of the headline."""
        if self is Outcome.SKIPPED:
            return Word.NOTHING
        if self in (Outcome.PASSED, Outcome.XFAILED):
            return Word.PASS
        own = {Outcome.INCONCLUSIVE: Word.INCONCLUSIVE, Outcome.GAIN: Word.GAIN}
        return own.get(self, Word.FAIL)


#: Outcomes that a report lists one by one.
LISTED = (Outcome.FAILED, Outcome.ERROR, Outcome.GAIN, Outcome.INCONCLUSIVE)


@dataclass(frozen=True)
class CheckResult:
    """One check and how it ended.

    Attributes:
        test: pytest's id of the test.
        suite: the marker of its suite, or empty.
        outcome: how it ended.
        message: the first line of what it said.
        recipe: the name of the recipe that it is about, or empty.
        model: the name of the model (or architecture) that it is about, or empty.
        gated: whether recipe and model are a case of the run; a published architecture alone is
            not.
        about_baseline: whether it compares with a stored record: such a record is never changed by
            ``--new-baselines-only``.
        see: of a dependent check, the id of the test that says why.
        reason: of a known failure, why it is accepted, by whom and until when.
    """

    test: str
    suite: str
    outcome: Outcome
    message: str = ""
    recipe: str = ""
    model: str = ""
    gated: bool = False
    about_baseline: bool = False
    see: str = ""
    reason: str = ""

    def with_outcome(
        self, outcome: Outcome, *, message: str | None = None, reason: str = ""
    ) -> CheckResult:
        """Return the check with another *outcome*, and another *message* where one is given."""
        said = self.message if message is None else message
        return replace(self, outcome=outcome, message=said, reason=reason)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, which reports of pytest carry between processes."""
        return asdict(self) | {"outcome": self.outcome.value}

    @classmethod
    def of_dict(cls, values: dict[str, Any]) -> CheckResult:
        """The check that ``as_dict`` wrote down."""
        return cls(**(values | {"outcome": Outcome(values["outcome"])}))


@dataclass
class Checks:
    """How the checks of one case, or those of no case, ended."""

    every: list[CheckResult] = field(default_factory=list)

    def add(self, check: CheckResult) -> None:
        """Keep one more check."""
        self.every.append(check)

    def as_dict(self) -> dict[str, Json]:
        """Plain values: how many ended how, those that fell short one by one, which of them others
        depend on, and the known failures.
        """
        keys = ("test", "suite", "outcome", "message")
        failed = [
            {key: check.as_dict()[key] for key in keys}
            for check in self.every
            if check.outcome in LISTED
        ]
        return {
            "counts": dict(Counter(check.outcome.value for check in self.every)),
            "failed": failed,
            "depending": dict(
                Counter(check.see for check in self.every if check.outcome is Outcome.DEPENDENT)
            ),
            "known": [
                {key: check.as_dict()[key] for key in ("test", "suite", "message", "reason")}
                for check in self.every
                if check.reason
            ],
        }


class Results:
    """The cases of a run, in the order in which they were first touched."""

    def __init__(self) -> None:
        self.cases: dict[tuple[str, str], dict[str, Json]] = {}
        self.environment: dict[str, Json] = {}
        #: The checks of each case, by the case's key.
        self.checks: dict[tuple[str, str], Checks] = {}
        #: The checks that are of no case: the arithmetic of formats, orphans, references.
        self.other_checks = Checks()
        #: The line of the usage error that ended the run, or empty.
        self.refused = ""
        #: Why the run did not come to its end, or empty.
        self.interrupted = ""

    def case(self, recipe: str, model: str) -> dict[str, Json]:
        """The case of *recipe* on *model*; made on first use."""
        return self.cases.setdefault((recipe, model), {"recipe": recipe, "model": model})

    def section(self, recipe: str, model: str, name: str) -> dict[str, Json]:
        """A section of a case; made on first use."""
        section: dict[str, Json] = self.case(recipe, model).setdefault(name, {})
        return section

    @property
    def has_checks(self) -> bool:
        """Whether any test of the gate's suites ran or was skipped."""
        return bool(self.checks or self.other_checks.every)

    def add(self, check: CheckResult) -> None:
        """Keep how one check ended.

        A published architecture becomes a case of its own only where something of it fell short:
        what holds on all of them would fill the report.
        """
        of_case = check.recipe and check.model and (check.gated or check.outcome in LISTED)
        if not of_case:
            self.other_checks.add(check)
            return
        self.case(check.recipe, check.model)
        self.checks.setdefault((check.recipe, check.model), Checks()).add(check)

    def merge(self, other: dict[str, Json]) -> None:
        """Take over what another process found (its ``as_dict``), but for its checks, whose reports
        come singly.
        """
        expected = [
            side.get("expected_differences", {})
            for side in (self.environment, other["environment"])
        ]
        self.environment = other["environment"] | self.environment
        if any(expected):
            self.environment["expected_differences"] = _added(*expected)
        for case in other["cases"]:
            mine = self.case(case["recipe"], case["model"])
            for name, value in case.items():
                if name == "checks":
                    continue
                if isinstance(value, dict):
                    mine.setdefault(name, {}).update(value)
                else:
                    mine[name] = value

    def as_dict(self) -> dict[str, Json]:
        """The whole run as one JSON value."""
        cases = []
        for key, case in self.cases.items():
            checks = {"checks": self.checks[key].as_dict()} if key in self.checks else {}
            cases.append(case | checks)
        content: dict[str, Json] = {
            "schema": SCHEMA,
            "environment": self.environment,
            "cases": cases,
        }
        if self.other_checks.every:
            content["checks"] = self.other_checks.as_dict()
        if self.refused:
            content["refused"] = self.refused
        if self.interrupted:
            content["interrupted"] = self.interrupted
        return content


def _added(ours: Mapping[str, Json], other: Mapping[str, Json]) -> dict[str, Json]:
    """Expected differences of two processes, with the counts of those that both met added."""
    both = dict(ours)
    for name, met in other.items():
        count = ours[name]["count"] + met["count"] if name in ours else met["count"]
        both[name] = {**met, "count": count}
    return both
