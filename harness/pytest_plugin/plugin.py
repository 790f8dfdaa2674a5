"""The pytest side of the gate: parametrisation, fixtures, and how results reach the terminal.

No decision is taken here.  The suites in ``tests/`` call the library; ``harness.gate`` builds each
thing once.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from harness.errors import UsageError
from harness.gate.results import CheckResult, Outcome
from harness.pytest_plugin import (
    annotate,
    brief,
    collector,
    lists,
    machine,
    outcomes,
    private,
    workers,
)
from harness.pytest_plugin.command_line import add_options, refuse_taken
from harness.pytest_plugin.given import check_given
from harness.pytest_plugin.judge import Judge
from harness.pytest_plugin.options import (
    check_options,
    check_stored,
    prepare_report,
)
from harness.pytest_plugin.outcomes import (
    conclude,
    fell_short,
    has_suites,
    in_suites,
    is_ours,
    keep_gate,
    notes_of,
    refusing,
    uses_gate,
)
from harness.pytest_plugin.run import (
    count_shown,
    has_results,
    is_worker,
    options_of,
    parameters,
    print_lines,
    results_of,
)
from harness.pytest_plugin.workers import hand_over, settle, take_selection

if TYPE_CHECKING:
    from harness.diagnosis.qat import FineTuned
    from harness.gate.listing import CaseName
    from harness.gate.options import Options
    from harness.gate.quantized import Quantized
    from harness.gate.session import Gate
    from harness.pull_requests.selection import Selection

#: Suites that never run unless asked for by their marker.
ON_REQUEST = ("proof", "qat")
#: Parameters of the suites that name a case.
_CASES = (
    "case",
    "structure_case",
    "architecture_case",
    "weights_case",
    "model_case",
    "trained_case",
)
#: Parameters of the suites that are pairs of names within a case.
_PAIRS = ("metric", "reading", "question")
#: Stands for a case in a test that has none in this run, until the test is left out.
_NO_CASE = object()

_GATE = pytest.StashKey["Gate"]()
#: Recipes that a pull request broke, so that no test can load them -> what does not hold, and why.
_REFUSED = pytest.StashKey[dict[str, tuple[str, str]]]()
#: Recipes to which a pull request brings faults of shape -> what does not hold, and the faults.
_FAULTY = pytest.StashKey[dict[str, tuple[str, str]]]()


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """The command line of the gate."""
    add_options(parser, pluginmanager)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Look for the configuration file again where the plugin was named by ``-p``."""
    private.find_configuration_again(early_config)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Select what a git diff reaches; stop there if only that was asked, or if nothing is left to
    gate.
    """
    try:
        refuse_taken(config)
        check_options(config)
    except UsageError as error:
        raise pytest.UsageError(*error.lines) from error
    if is_worker(config):
        # Cleared by the process that reports; a worker that starts later would clear what others
        # have left since.
        config.option.cacheclear = False
        take_selection(config)
        return None
    try:
        listed = lists.asked(config)
    except UsageError as error:
        raise pytest.UsageError(*error.lines) from error
    if listed:
        print("\n".join(listed))  # pytest's terminal is not set up yet
        return int(pytest.ExitCode.OK)
    annotate.start(config)
    rev = config.getoption("changed_since")
    if rev is None:
        return None
    from harness.models import references
    from harness.pull_requests import revisions, selection
    from harness.recipes.tree import Tree

    root = config.getoption("recipes_root")
    try:
        if config.getoption("gate_recipes"):
            revisions.resolve(Tree(root).root, rev)
            raise UsageError(
                "--recipe",
                "does not go with --changed-since, which selects the recipes",
                "Choose one.",
            )
        device = references.resolve_device(config.getoption("device"))
        selected = selection.select(root, rev, config.getoption("attention"), device.type)
    except UsageError as error:
        raise pytest.UsageError(*error.lines) from error
    annotate.keep_selection(config, selected)
    print(selected)  # pytest's terminal is not set up yet
    count_shown(config, str(selected))
    if selected.undecided:
        raise pytest.UsageError(str(_undecided(selected)))
    if config.getoption("list_affected"):
        return int(pytest.ExitCode.OK)
    results_of(config).environment["selection"] = selected.as_dict()
    if not selected.gated and not selected.faults:
        return _report_nothing_gated(config)
    config.stash[_REFUSED] = {
        name: ("can be loaded", f"refused: {why}") for name, why in selected.unloadable.items()
    }
    config.stash[_FAULTY] = {
        name: ("rules of shape hold", f"the change brings {why}")
        for name, why in selected.faults.items()
    }
    config.option.gate_recipes = selection.references(selected, root)
    return None


def _undecided(selected: Selection) -> UsageError:
    (name, why), *others = selected.undecided.items()
    more = f" (and {len(others)} more)" if others else ""
    what = f"nobody can say whether {name} has to be gated{more}: {why}"
    return UsageError(
        "--changed-since", what, "Declare what it is, or give it to the gate by itself."
    )


def _report_nothing_gated(config: pytest.Config) -> int:
    """Write the report of a run in which there is nothing to gate, where one was asked for."""
    folder = config.getoption("gate_report")
    if folder is not None:
        from harness import report

        try:
            report.write(results_of(config).as_dict(), folder)
        except UsageError as error:
            raise pytest.UsageError(*error.lines) from error
    return int(pytest.ExitCode.OK)


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a command line that cannot be used before anything is collected."""
    workers.share_cores(os.environ, os.cpu_count() or 1)
    for name, what in outcomes.SUITES.items():
        config.addinivalue_line("markers", f"{name}: {what}")
    workers.group_by_case(config)
    for module in (machine, collector, outcomes, workers, brief):
        if not config.pluginmanager.has_plugin(module.__name__):
            config.pluginmanager.register(module, module.__name__)
    config.pluginmanager.register(
        outcomes.Recorder(config), "harness.pytest_plugin.outcomes.Recorder"
    )
    with refusing(config):
        prepare_report(config)
        machine.key_storage(config)
        if not is_worker(config):  # the process that reports has looked
            check_given(config)
            _print_meanings(config)


def _print_meanings(config: pytest.Config) -> None:
    """Say what a name that was given means, where it could mean something else as well."""
    from harness.escaping import shown
    from harness.recipes import names

    get = config.getoption
    recipes, models, root = get("gate_recipes") or (), get("gate_models") or (), get("recipes_root")
    if not config.option.collectonly:
        for line in names.notes(recipes, models, root):
            print(shown(line, None))  # pytest's terminal is not set up yet


# -- which tests there are -------------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per recipe and model, and where asked for, per metric or architecture."""
    # A test that has its own fixture or parameter of that name is not one of the gate's suites.
    own = {
        name
        for mark in metafunc.definition.iter_markers("parametrize")
        for name in _names(mark.args[0])
    }
    wanted = {*_CASES, *_PAIRS} & set(metafunc.fixturenames)
    wanted -= own | private.own_fixtures(metafunc)
    if not wanted:
        return
    from harness.gate import listing
    from harness.recipes import names
    from harness.recipes.finding import DEFAULT

    options = options_of(metafunc.config)
    cases = listing.cases_of(options)
    ways: dict[str, list[CaseName]] = {
        "case": cases,
        "structure_case": listing.structures_of(options),
        "architecture_case": listing.shapes_of(options),
        # No default recipe has a block format that needs CUDA.
        "weights_case": [case for case in cases if case.recipe_name not in DEFAULT],
        "model_case": list({case.model: case for case in reversed(cases)}.values())[::-1],
        "trained_case": listing.to_train(options),
    }
    for name in wanted - set(_PAIRS):
        ids = [names.plain(c.model_name) if name == "model_case" else c.id for c in ways[name]]
        metafunc.parametrize(
            name, ways[name] or [_NO_CASE], ids=ids or ["no case"], scope="session"
        )
    pairs = {
        "metric": listing.metrics_of,
        "reading": listing.readings_of,
        "question": listing.questions_of,
    }
    for name in wanted & set(_PAIRS):
        known = pairs[name](options)
        # Not of the scope of the session: pytest would then order by metric as well, and quantize a
        # case twice.
        metafunc.parametrize(
            name, known or [_NO_CASE], ids=listing.metric_ids(known) or ["no consumer"]
        )


def _names(names: str | Iterable[str]) -> list[str]:
    """Names of a ``parametrize`` mark, which takes a list or a string with commas."""
    return [n.strip() for n in names.split(",")] if isinstance(names, str) else list(names)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what runs only on request, and what no recipe of this run gives anything to look
    at.
    """
    if config.getoption("architectures") is None:  # such a test is not part of the run
        items[:] = [item for item in items if not _is_of_architecture(item)]
    expression = config.getoption("markexpr") or ""
    unasked = [name for name in ON_REQUEST if name not in expression]
    empty = [item for item in items if _has_no_case(item)]
    ours = [item for item in items if is_ours(item)]
    dropped = empty + [
        item for item in ours if any(item.get_closest_marker(name) for name in unasked)
    ]
    if config.getoption("architectures") is not None:  # all others need a model
        dropped += [item for item in ours if not _is_of_architecture(item) and item not in dropped]
    if config.getoption("gate_recipes") == []:  # nothing of the selection can be loaded
        dropped = ours
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in dropped]


def _is_of_architecture(item: pytest.Item) -> bool:
    """True for a test of a recipe on an architecture of ``--architectures``."""
    return "architecture_case" in parameters(item)


def _has_no_case(item: pytest.Item) -> bool:
    """True for a test of the gate that has nothing to look at; a parameter may be an array: by
    identity.
    """
    params = parameters(item)
    return any(params.get(name) is _NO_CASE for name in (*_CASES, *_PAIRS))


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """Look at everything that was given before the first model runs: a usage error stops the run
    with exit code 4.

    After the last test come the recipes that a pull request broke: earlier, pytest would take them
    for failures of its collection.
    """
    _look_at_everything(session)
    result = yield
    if not session.config.option.collectonly:
        _report_refused(session.config)
    return result


def _look_at_everything(session: pytest.Session) -> None:
    config, items = (
        session.config,
        [item for item in getattr(session, "items", []) if uses_gate(item)],
    )
    if not items or config.option.collectonly or is_worker(config):
        return
    fixtures = {name for item in items for name in getattr(item, "fixturenames", ())}
    from harness.gate.preflight import preflight

    with refusing(config):
        check_stored(config, [item.nodeid for item in items if in_suites(item.path)])
        machine.check_comparison(config, session.items)
        gate = _gate(config)
        preflight(gate, accuracy=bool(fixtures & {"metric", "tuned"}), decode=True)
        if "form" in fixtures:
            from harness.checks import checkpoint

            checkpoint.warm()  # the imports of its fresh processes run in parallel to other work


def _report_refused(config: pytest.Config) -> None:
    """One failure per recipe that the pull request broke, or to which it brings faults of shape, in
    every report that a failing test has.
    """
    from harness.escaping import shown

    broken = [*config.stash.get(_REFUSED, {}).items(), *config.stash.get(_FAULTY, {}).items()]
    for name, (title, message) in broken:
        nodeid = f"{shown(name)}::{title}"
        location = (shown(name), None, title)
        config.hook.pytest_runtest_logstart(nodeid=nodeid, location=location)
        for when, outcome, text in (
            ("call", "failed", message),
            ("teardown", "passed", None),
        ):
            report = pytest.TestReport(nodeid, location, {}, outcome, text, when)  # type: ignore[arg-type]
            if outcome == "failed":
                check = CheckResult(nodeid, "", Outcome.FAILED, str(text))
                report.gate_check = check.as_dict()  # type: ignore[attr-defined]
            config.hook.pytest_runtest_logreport(report=report)
        config.hook.pytest_runtest_logfinish(nodeid=nodeid, location=location)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this device or this gate has no verdict on, with the reason; its structure is
    checked all the same.
    """
    if (
        "benchmark" in getattr(item, "fixturenames", ())
        and uses_gate(item)
        and (why := machine.no_times(item.config))
    ):
        pytest.skip(why)
    params: Any = (
        item.callspec.params
        if isinstance(item, pytest.Function) and hasattr(item, "callspec")
        else {}
    )
    case_parameters = [name for name in _CASES if name in params]
    if (
        _GATE not in item.config.stash
        or not case_parameters
        or "architecture_case" in case_parameters
    ):
        return
    case = item.config.stash[_GATE][params[case_parameters[0]]]
    reason = (
        None
        if "model_case" in case_parameters
        else case.not_gated(structure="case" not in case_parameters)
    )
    if reason is None and "structure_case" not in case_parameters:
        reason = case.shared.lacks(tower=params.get("tower"), accuracy="metric" in params)
    if reason:
        pytest.skip(f"not gated: {reason}")


# -- fixtures --------------------------------------------------------------------------------------


def _gate(config: pytest.Config) -> Gate:
    from harness.evaluation import evaluators
    from harness.gate.session import Gate
    from harness.models import references

    if _GATE not in config.stash:
        workers.take_device(config)
        options = options_of(config)
        evaluator = evaluators.evaluator(
            references.resolve_device(options.device),
            options.batch_size,
            cluster=options.cluster,
            data_root=options.data_root,
            store=workers.store_of(config),
            **_progress(config, options),
        )
        config.stash[_GATE] = Gate(options, evaluator)
        collector.describe(config.stash[_GATE], results_of(config), config.invocation_params.args)
        keep_gate(config, config.stash[_GATE])
    return config.stash[_GATE]


def _progress(config: pytest.Config, options: Options) -> dict[str, Any]:
    """How an evaluation shows its progress: that on a cluster, which is a long one, through
    pytest's capture too.
    """
    if options.cluster is None or is_worker(config) or config.getoption("verbose") < 0:
        return {"progress": options.progress}
    return {"progress": True, "visible": partial(private.uncaptured, config)}


@pytest.fixture(scope="session")
def gate(pytestconfig: pytest.Config) -> Gate:
    """The run: what is built once and shared by every suite."""
    return _gate(pytestconfig)


@pytest.fixture(scope="session")
def quantized(pytestconfig: pytest.Config, gate: Gate, case: CaseName) -> Quantized:
    """The case's quantized and calibrated model."""
    return collector.quantized(gate[case], collector.notes_of(pytestconfig))


@pytest.fixture(scope="session")
def tuned(pytestconfig: pytest.Config, gate: Gate, trained_case: CaseName) -> FineTuned:
    """The case's model, fine-tuned."""
    return collector.tuned(gate[trained_case], collector.notes_of(pytestconfig))


@pytest.fixture
def check(request: pytest.FixtureRequest) -> Judge:
    """How a suite says that something does not hold."""
    return Judge(request)


def updating(config: pytest.Config) -> bool:
    """Whether this run stores what it measures."""
    return bool(config.getoption("update_baselines") or config.getoption("new_baselines_only"))


# -- the end of a run ------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Store what was measured where that was asked for; a worker hands its findings to the process
    that reports.
    """
    config = session.config
    lines = []
    if _GATE in config.stash:
        gate = config.stash[_GATE]
        lines = [*gate.evaluator.notes(), *_collect(session)]
        lines += gate.shapes_told() if config.getoption("verbose") > 0 else []
        lines += _accept(session, exitstatus) if updating(config) else []
        gate.evaluator.close()
    if is_worker(config):
        hand_over(config, lines)
        return
    print_lines(config, lines)
    settle(session, exitstatus)
    is_empty = exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and has_suites(config)
    if has_results(config) or (is_empty and not config.option.collectonly):
        # Where nothing was selected, a report of an earlier run must not stand for this one.
        conclude(session)


def _collect(session: pytest.Session) -> list[str]:
    """Add what this process measured to the results; what a report shows in addition may be refused
    there.
    """
    config = session.config
    results = results_of(config)
    try:
        collector.collect(config.stash[_GATE], results, collector.notes_of(config))
    except UsageError as error:  # a picture of a changed answer, where none was decoded before
        session.exitstatus = pytest.ExitCode.USAGE_ERROR
        results.refused = results.refused or str(error)
        return [f"ERROR: {error}"]
    return []


def _accept(session: pytest.Session, exitstatus: int) -> list[str]:
    """Store this process's measurements, each change shown before it is stored; a worker's lines
    are returned.
    """
    lines: list[str] = []
    config, get = session.config, session.config.getoption
    results, gate = results_of(config), config.stash[_GATE]
    if results.refused or exitstatus == pytest.ExitCode.USAGE_ERROR:
        # Where nothing was measured, the line of the refusal says all there is to say.
        return ["nothing is stored: the run was refused"] if gate.measured() else []
    if exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        return ["nothing is stored: the run did not reach its end"]

    def show(text: str) -> None:
        print_lines(config, [text])

    new_only = get("new_baselines_only")
    left_out = {case: fell_short(results, case) for case in gate.measured()} if new_only else {}
    try:
        gate.accept(
            reason=get("reason"),
            new_only=new_only,
            show=lines.append if is_worker(config) else show,
            left_out={case: why for case, why in left_out.items() if why},
        )
    except UsageError as error:
        session.exitstatus = pytest.ExitCode.USAGE_ERROR
        results.refused = str(error)
        lines.append(f"ERROR: {error}")
    return lines


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """The messages of inconclusive tests, and one line per recipe and task."""
    from harness.report import cases, summary

    for report in terminalreporter.getreports("inconclusive"):
        terminalreporter.write_sep("_", report.head_line or report.nodeid, yellow=True)
        terminalreporter.write_line(report.longreprtext)
    for line in [*brief.hint(config), *notes_of(config)]:
        terminalreporter.write_line(line)
    if has_results(config):
        results = cases.read(results_of(config).as_dict())
        summary.write(terminalreporter, results, already_shown=brief.tests_shown(config))
