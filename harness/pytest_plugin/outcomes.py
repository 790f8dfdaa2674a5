"""How the gate's tests ended: each check under its case, and each cause as one failure.

A cause (a recipe that ModelOpt refuses, a baseline that is missing, an error while a model is
built) is reported by the first test that meets it.  Tests that meet the same cause later did not
find anything new: they are skipped, with the id of the first.  Reports carry what is needed for
that between processes, so a run with ``-n`` is treated alike.
"""

from __future__ import annotations

import itertools
import re
import shlex
import threading
import traceback
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness import places
from harness.errors import UnforeseenError, UsageError, reading
from harness.gate.results import CheckResult, Checks, Outcome, Results, Word
from harness.pytest_plugin import annotate, expected, machine, private
from harness.pytest_plugin.private import Failed
from harness.pytest_plugin.run import is_worker, parameters, results_of

if TYPE_CHECKING:
    from harness.gate.case import Case
    from harness.gate.listing import CaseName
    from harness.gate.results_schema import RunResult
    from harness.gate.session import Gate

#: Markers of the suites, by which a report says what it belongs to, and what each asks.
SUITES = {
    "insertion": "quantizers are where the recipe says, and run with calibrated scales",
    "numerics": "quantize-dequantize computes exactly what the format says",
    "accuracy": "the quantized model is no worse than the reference by more than its budget",
    "consumers": "what LLaVA, Stable Diffusion or OWL-ViT reads of the towers is no worse",
    "checkpoint": "saved, restored in a fresh process, bit-equal",
    "export": "the ONNX graph computes what fake quantization promised",
    "throughput": "what a forward costs (pytest-benchmark)",
    "proof": "plant faults and count what is caught (not in a plain run)",
    "qat": "fine-tune the quantized model and prove the gain (not in a plain run)",
}
#: Parameters of a test that name a case of the run.
CASES = ("case", "weights_case", "trained_case")
#: Those that name a recipe on an architecture without weights.
BARE = ("structure_case", "architecture_case")
#: Accepts what holds, and nothing that fell short.
_NEW_ONLY = "--new-baselines-only"
#: Characters of the first line of a message in a pointer.
SHORT = 110

_GATE = pytest.StashKey["Gate"]()
_CAUSES = pytest.StashKey["Causes"]()
_OURS = pytest.StashKey[set[Path]]()
_NOTES = pytest.StashKey[list[str]]()
#: Property of the report of a test that met a usage error.
_USAGE_ERROR = "usage error"


class NotHeld(Failed):
    """A check that does not hold.

    Args:
        message: what is wrong, where, and how to fix it.
        causes: what it is due to; a later test all of whose causes are known is skipped.
        about_baseline: whether it compares with a stored record.
    """

    __module__ = (
        "builtins"  # as of what pytest.fail raises: pytest shows the name of the class, and no path
    )

    def __init__(
        self, message: str, causes: Iterable[str] = (), *, about_baseline: bool = False
    ) -> None:
        super().__init__(message, pytrace=False)
        self.causes = tuple(causes)
        self.about_baseline = about_baseline


class Inconclusive(Failed):
    """The data cannot decide.  It fails the run under its own word."""

    __module__ = "builtins"


class Gained(NotHeld):
    """The quantized model is better than is plausible.  It fails the run under its own word."""

    __module__ = "builtins"


class Causes:
    """Which test reported each cause first; safe to use from the threads that receive workers'
    reports.
    """

    def __init__(self) -> None:
        self._first: dict[str, str] = {}
        self._moved: dict[str, str] = {}
        self._lock = threading.Lock()

    def first_of(self, test: str, causes: Sequence[Sequence[str]], see: str) -> str:
        """The test that has reported the same already, or *see*, or an empty string: then *test* is
        the one to see.

        Args:
            test: the id of the failed test.
            causes: sets of causes, each of which explains the failure by itself.
            see: the test that another process points to; that one may depend on a test that was
                seen here earlier.
        """
        with self._lock:
            first = next(filter(None, (self._known(test, group) for group in causes)), "")
            for group in causes:
                for cause in group:
                    self._first.setdefault(cause, first or test)
            if first:
                self._moved[test] = first
            return first or self._moved.get(see, see)

    def _known(self, test: str, causes: Sequence[str]) -> str:
        """The test that reported the first of *causes*, if other tests than *test* have reported
        all of them.
        """
        tests = [self._first.get(cause, test) for cause in causes]
        return tests[0] if tests and test not in tests else ""


def keep_gate(config: pytest.Config, gate: Gate) -> None:
    """Make *gate* the one that explains why a recipe was refused."""
    config.stash[_GATE] = gate


# -- which tests are the gate's --------------------------------------------------------------------


def uses_gate(item: pytest.Item) -> bool:
    """Whether a test asks for one of the gate's own fixtures (a project may have fixtures of the
    same names).
    """
    functions = private.fixture_functions(item)
    return any(
        getattr(function, "__module__", "") == "harness.pytest_plugin.plugin"
        for function in functions
    )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Generator[None, None, None]:
    """Remember the modules of the gate's suites before anything is deselected; refuse a marker that
    selects nothing.
    """
    config.stash[_OURS] = {item.path for item in items if in_suites(item.path) or uses_gate(item)}
    expression, before = config.getoption("markexpr"), len(items)
    yield
    # Of a pull request that broke every recipe nothing is left
    selected = config.getoption("gate_recipes") != []
    if expression and config.stash[_OURS] and not items and selected and not is_worker(config):
        what = f"selects none of the {before} tests"
        fix = f"The gate's markers are {', '.join(SUITES)}."
        raise pytest.UsageError(str(UsageError(f"-m {expression!r}", what, fix)))


def address_of(item: pytest.Item) -> str:
    """The word by which pytest runs *item* again: its id, or the module's name in an installed
    gate.
    """
    if not places.INSTALLED or item.path.parent != places.SUITES:
        return item.nodeid
    return f"{places.SUITES_PACKAGE}.{item.path.stem}::{item.nodeid.partition('::')[2]}"


def in_suites(module: Path) -> bool:
    """Whether a test module is one of the suites that come with the gate."""
    return module.parent == places.SUITES


def has_suites(config: pytest.Config) -> bool:
    """Whether tests of the gate's suites were found, selected or not."""
    return bool(config.stash.get(_OURS, None))


def is_ours(item: pytest.Item) -> bool:
    """Whether a test is of one of the gate's suites."""
    return item.path in item.config.stash.get(_OURS, set())


@contextmanager
def refusing(config: pytest.Config) -> Iterator[None]:
    """End the run with exit code 4 where what was given cannot be used: it is said in the report as
    well.
    """
    try:
        with reading("what was given"):
            yield
    except UsageError as error:
        if (
            isinstance(error, UnforeseenError)
            and error.__cause__
            and config.getoption("verbose") > 0
        ):
            traceback.print_exception(error.__cause__)
        results_of(config).refused = str(error)
        annotate.keep_refusal(config, error)
        raise pytest.UsageError(*error.lines) from error


# -- from a test's report to a check ---------------------------------------------------------------


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Say in the report which check of which case it is, and what it is due to."""
    report = yield
    error = None if call.excinfo is None else call.excinfo.value
    if error is not None and is_ours(item):
        _mark(item, report, error)
    crash = getattr(report.longrepr, "reprcrash", None)
    if isinstance(error, Failed) and not error.pytrace and crash is not None:
        # Where CI is set, pytest's short summary repeats whole messages: pages of what stands right
        # above it.
        crash.message = first_line(str(error), SHORT)
    if is_ours(item):
        if report.when == "setup" and report.failed:
            report.when = (
                "call"  # what a fixture builds is part of the check: it failed, it is not broken
            )
        outcome = _outcome(report)
        if outcome is not None:
            check = expected.apply(item.config, report, _check(item, report, outcome, error))
            report.gate_check = check.as_dict()  # type: ignore[attr-defined]
            report.gate_causes = _causes(item, report, error)  # type: ignore[attr-defined]
            _once(item.config, report)
    return report


def _mark(item: pytest.Item, report: pytest.TestReport, error: BaseException) -> None:
    """Put usage errors, refusals and errors of the gate itself into words, without a chain of
    tracebacks.
    """
    if isinstance(error, UsageError):
        report.user_properties += [(_USAGE_ERROR, line) for line in error.lines]
        if not is_worker(item.config):
            # As on a report that xdist brought home: here the run can be ended.
            report.node = None  # type: ignore[attr-defined]
    elif isinstance(error, Inconclusive):
        report.user_properties.append(("outcome", Outcome.INCONCLUSIVE.value))
    elif isinstance(error, Gained):
        report.user_properties.append(("outcome", Outcome.GAIN.value))
    elif isinstance(error, Exception) and not isinstance(error, AssertionError):
        text = _told(item, error)
        if text:
            report.longrepr = text


def _told(item: pytest.Item, error: Exception) -> str:
    """*error* in a few lines, or an empty string where pytest's own traceback is to be shown."""
    from harness.quantization.quantize import QuantizationError

    if isinstance(error, QuantizationError):
        return _explained(item, error)
    if item.config.getoption("verbose") > 0 or item.config.getoption("tbstyle") not in (
        "auto",
        "short",
        "line",
    ):
        return ""
    lines = [
        f"{type(error).__name__}: {first_line(str(error), 400)}",
        *(f"  {place}" for place in _places(error)),
        "This is not a verdict on the recipe: the gate, or a library under it, has an error. "
        "Run with -v for the traceback, and report it.",
    ]
    return "\n".join(lines)


def _explained(item: pytest.Item, error: Any) -> str:
    case, gate = case_of(item), item.config.stash.get(_GATE, None)
    if gate is None or case is None:
        return str(error)
    from harness.checks import insertion
    from harness.gate.listing import CaseName

    if "structure_case" in item.callspec.params:  # type: ignore[attr-defined]
        case = CaseName(case.recipe, gate.options.clip_models[0])
    try:
        reason, *problems = insertion.explain(gate[case], error).split("\n\n")
    except Exception:  # the explanation is a help; the refusal is what has to be shown
        reason, problems = str(error), []
    if item.config.getoption("verbose") <= 0:
        reason = first_line(reason, 600)
    return "\n\n".join([*problems, reason])


def _places(error: BaseException, most: int = 3) -> list[str]:
    """Where *error* went through this package, and where it was raised, innermost last."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames[:-1] if f"{Path(__file__).parents[1]}" in frame.filename]
    chosen = [*own[-most:], *frames[-1:]]
    return [
        f"{Path(f.filename).parent.name}/{Path(f.filename).name}:{f.lineno} in {f.name}"
        for f in chosen
    ]


def _outcome(report: pytest.TestReport) -> Outcome | None:
    """How the check ended, or None where this phase of the test says nothing about it."""
    if report.when != "call" and report.passed:
        return None
    for own in (Outcome.INCONCLUSIVE, Outcome.GAIN):
        if ("outcome", own.value) in report.user_properties:
            return own
    if report.failed:
        return Outcome.FAILED if report.when == "call" else Outcome.ERROR
    if report.skipped:
        return Outcome.XFAILED if hasattr(report, "wasxfail") else Outcome.SKIPPED
    return Outcome.PASSED


def case_of(item: pytest.Item) -> CaseName | None:
    """The case that a test is about, a published architecture's included."""
    params = parameters(item)
    case_name: CaseName | None = next(
        (params[name] for name in (*CASES, *BARE) if name in params), None
    )
    return case_name


def _check(
    item: pytest.Item, report: pytest.TestReport, outcome: Outcome, error: BaseException | None
) -> CheckResult:
    case = case_of(item)
    params = parameters(item)
    message = "" if outcome in (Outcome.PASSED, Outcome.SKIPPED) else _message(report, error)
    return CheckResult(
        test=report.nodeid,
        suite=next((name for name in SUITES if item.get_closest_marker(name)), ""),
        outcome=outcome,
        message=message,
        recipe="" if case is None else case.recipe_name,
        model="" if case is None else case.model_name,
        gated=case is not None and params.keys().isdisjoint(BARE),
        about_baseline=getattr(error, "about_baseline", False),
    )


def _message(report: pytest.TestReport, error: BaseException | None) -> str:
    """The first line of what a failed test says."""
    if isinstance(report.longrepr, str) or (isinstance(error, Failed) and not error.pytrace):
        return first_line(report.longreprtext)
    return first_line(
        f"{type(error).__name__}: {error}" if error is not None else report.longreprtext
    )


def first_line(text: str, width: int = 400) -> str:
    """The first line of *text* that is not blank, in *width* characters."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= width else f"{line[: width - 1]}…"


def _causes(
    item: pytest.Item, report: pytest.TestReport, error: BaseException | None
) -> list[list[str]]:
    """What a failure is due to, as keys that are the same for every test that meets it: sets that
    each explain it.
    """
    case = case_of(item)
    if isinstance(error, NotHeld):
        return [list(error.causes)]
    if (
        not isinstance(error, Exception)
        or isinstance(error, (AssertionError, UsageError))
        or case is None
    ):
        return []
    from harness.quantization.quantize import QuantizationError

    if isinstance(error, QuantizationError):
        # Before ModelOpt's own reason stand the problems of the recipe's entries, which are checks
        # of their own.
        problems = str(report.longrepr).split("\n\n")[:-1]
        return [[refused(case.recipe)], [f"{case.recipe}: {first_line(text)}" for text in problems]]
    # Numbers (addresses, free memory) differ from one attempt to the next.
    return [[f"{case.recipe}: {type(error).__name__}: {re.sub(r'[0-9]+', '#', str(error))}"]]


def refused(recipe: str) -> str:
    """The cause that ModelOpt refuses a recipe: one failure, on however many models and
    architectures.
    """
    return f"{recipe}: refused"


# -- one cause, one failure ------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_report_from_serializable(config: pytest.Config) -> Generator[None, Any, Any]:
    """Treat a report that a worker sent home like one of this process."""
    report = yield
    if isinstance(report, pytest.TestReport) and hasattr(report, "gate_check"):
        _once(config, report)
    return report


def _once(config: pytest.Config, report: Any) -> None:
    """Turn a failure whose causes another test has reported into a skip that points there."""
    check = CheckResult.of_dict(report.gate_check)
    if check.outcome not in (Outcome.FAILED, Outcome.ERROR, Outcome.DEPENDENT):
        return
    causes = config.stash.setdefault(_CAUSES, Causes())
    see = causes.first_of(check.test, report.gate_causes, check.see)
    if not see or see == check.see:
        return
    report.outcome = "skipped"
    reason = f"not judged, the cause is reported by {see}: {first_line(check.message, SHORT)}"
    report.longrepr = (see.partition("::")[0], None, reason)
    report.sections = []
    report.gate_check = check.as_dict() | {"outcome": Outcome.DEPENDENT.value, "see": see}


class Recorder:
    """Keeps how each check ended; reports of workers come to the process that reports, and count
    there.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record the check; end the run with exit code 4 where a test, here or in a worker, met a
        usage error.
        """
        errors = [str(text) for name, text in report.user_properties if name == _USAGE_ERROR]
        if errors and hasattr(report, "node"):
            results_of(self._config).refused = "\n".join(errors)
            raise pytest.UsageError(*errors)
        check = getattr(report, "gate_check", None)
        if check is not None and not errors:
            results_of(self._config).add(CheckResult.of_dict(check))


def pytest_report_teststatus(
    report: pytest.CollectReport | pytest.TestReport,
) -> tuple[str, str, Any] | None:
    """``INCONCLUSIVE`` has its own letter and word, ``GAIN`` is a failure with its own word."""
    properties = getattr(report, "user_properties", ())
    if ("outcome", Outcome.INCONCLUSIVE.value) in properties:
        return "inconclusive", "I", ("INCONCLUSIVE", {"yellow": True})
    if ("outcome", Outcome.GAIN.value) in properties:
        return "failed", "F", ("GAIN", {"red": True})
    return None


# -- the end of a run ------------------------------------------------------------------------------


def fell_short(results: Results, case: Case | CaseName) -> str:
    """Why what was measured of *case* is not a baseline: what did not hold of it; empty where all
    held.

    A difference from the stored record is not a reason: that record is kept as it is in any case.
    """
    from harness.report import cases

    key = (case.recipe_name, case.model_name)
    checks = Checks()
    for check in results.checks.get(key, Checks()).every:
        if not check.about_baseline:
            checks.add(check)
    judged = cases.read_case(results.case(*key) | {"checks": checks.as_dict()})
    if not Word(cases.decision(judged)).falls_short:
        return ""
    return f"{cases.decision(judged)}: {cases.headline(judged)}"


def correct_commands(config: pytest.Config, stats: Mapping[str, Sequence[Any]]) -> None:
    """Have what is shown propose a command that stores something: --new-baselines-only stores
    nothing of a case that fell short in another check.
    """
    from harness.baselines import PLACEHOLDER
    from harness.gate.listing import CaseName

    for report in itertools.chain.from_iterable(stats.values()):
        check = getattr(report, "gate_check", None)
        text = str(getattr(report, "longrepr", ""))
        if not check or not check.get("about_baseline") or _NEW_ONLY not in text:
            continue
        result = CheckResult.of_dict(check)
        name = CaseName(result.recipe, result.model, result.recipe, result.model)
        if fell_short(results_of(config), name):
            how = shlex.join(["--update-baselines", "--reason", PLACEHOLDER])
            report.longrepr = text.replace(_NEW_ONLY, how)
            private.replace_in_junit(config, text, report.longrepr)


def conclude(session: pytest.Session) -> None:
    """Give the run its one word: the exit code follows it, the JUnit file and the report carry
    it.
    """
    from harness.report import cases

    config, results = session.config, results_of(session.config)
    if session.exitstatus in (pytest.ExitCode.INTERRUPTED, pytest.ExitCode.INTERNAL_ERROR):
        results.interrupted = "the run did not come to its end: what it says is of a part"
    for test, what in machine.regressions(config):
        results.add(
            CheckResult(
                test,
                "throughput",
                Outcome.FAILED,
                f"slower than --benchmark-compare-fail allows: {what}",
            )
        )
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        correct_commands(config, reporter.stats)
    content = results.as_dict()
    run = cases.read(content)
    word = Word(cases.run_decision(run))
    notes = config.stash.setdefault(_NOTES, [])
    if session.exitstatus == pytest.ExitCode.OK and word.falls_short:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        notes.append(
            f"exit code 1: no selected test failed, and the run is {word.value} all the same, as "
            f"below"
        )
    elif session.exitstatus == pytest.ExitCode.OK and word is Word.NOTHING and results.has_checks:
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
        notes.append("exit code 5: every selected test was skipped, so nothing was judged")
    elif session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        notes.append("exit code 5: no test was selected, so nothing was judged")
    private.add_junit_property(config, "decision", word.value)
    _write_report(session, content)
    _write_table(session, run)


def _write_table(session: pytest.Session, run: RunResult) -> None:
    path = session.config.getoption("published_table")
    if path is None or results_of(session.config).refused:
        return
    from harness.report import published_table

    notes = session.config.stash[_NOTES]
    try:
        written = published_table.write(run, path)
    except UsageError as error:
        session.exitstatus = pytest.ExitCode.USAGE_ERROR
        notes.append(f"ERROR: {error}")
    else:
        notes.append(f"wrote {', '.join(map(str, written))}")


def _write_report(session: pytest.Session, content: dict[str, Any]) -> None:
    folder = session.config.getoption("gate_report")
    if folder is None:
        return
    from harness import report

    notes = session.config.stash[_NOTES]
    try:
        report.write(content, folder)
    except UsageError as error:
        session.exitstatus = pytest.ExitCode.USAGE_ERROR
        notes.append(f"ERROR: {error}")
    else:
        notes.append(f"wrote {folder}: report.html, summary.md, results.json")


def notes_of(config: pytest.Config) -> list[str]:
    """Lines about the end of the run, for the terminal."""
    return config.stash.get(_NOTES, [])
