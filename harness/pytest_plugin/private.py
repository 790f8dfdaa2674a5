"""Every private interface of pytest and of its plugins that the gate needs, each with the reason.

Nothing else in ``harness`` and ``tests`` imports ``_pytest`` or reads an underscore of pytest's
objects; ``tests/harness/pytest_plugin/test_private.py`` tries each function here against the
installed pytest.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    # pytest.fail.Exception is this class, and a variable to a type checker: nothing derives from a
    # variable.
    from _pytest.junitxml import LogXML
    from _pytest.outcomes import Failed as Failed
else:
    Failed = pytest.fail.Exception


def skip_at(item: pytest.Item, reason: str) -> None:
    """Skip a test from a hook, and have the report name the test's place instead of the hook's.

    ``pytest.mark.skip`` does the same inside pytest.
    """
    raise pytest.skip.Exception(reason, _use_item_location=True)


def expect_failure(report: pytest.TestReport, reason: str) -> None:
    """Turn the report of a failed test into that of one which is expected to fail.

    ``pytest.mark.xfail`` sets the same attributes inside pytest.
    """
    report.outcome = "skipped"
    report.wasxfail = reason
    # pytest-xdist and the terminal know such a property of an inconclusive test.
    report.user_properties = [
        property_ for property_ in report.user_properties if property_[0] != "outcome"
    ]


def fail(report: pytest.TestReport, message: str) -> None:
    """Let *report* be that of a test that failed with *message*."""
    report.outcome = "failed"
    report.longrepr = message


def has_option(parser: Any, name: str, dest: str) -> bool:
    """Whether a plugin has taken an option's name, or the name under which its value is kept.

    pytest says so when an option is added, as three kinds of errors and, before release 9, only
    when it reads the command line.
    """
    options = [option for group in (*parser._groups, parser._anonymous) for option in group.options]
    return any(name in option.names() or option.dest == dest for option in options)


def read_command_line_again(
    config: pytest.Config, parser: pytest.Parser, args: Sequence[str]
) -> None:
    """Have the words of the command line distinguished by the options that were just added.

    pytest does so itself after it has loaded plugins, and only then.
    """
    config.known_args_namespace = parser.parse_known_args(
        list(args), namespace=copy.copy(config.option)
    )


def shorten_usage_errors(parser: Any, shorten: Callable[[str, Sequence[str]], str]) -> None:
    """Have the parser of the command line say what is wrong by itself; pytest puts its usage and
    where it was configured around it, in five lines.

    Args:
        parser: pytest's, while plugins add their options.
        shorten: makes one line of argparse's message and the names of all options.
    """

    def watched(argument_parser: Any) -> Any:
        def error(message: str) -> NoReturn:
            raise pytest.UsageError(shorten(message, list(argument_parser._option_string_actions)))

        argument_parser.error = error
        return argument_parser

    if hasattr(parser, "optparser"):
        watched(parser.optparser)
        return
    make = parser._getparser  # up to pytest 8, one for each time that words are parsed
    parser._getparser = lambda: watched(make())


def find_configuration_again(config: Any) -> None:
    """Look for the configuration file again, now that the gate's options and their values are
    known.

    Before plugins are loaded, pytest takes an existing folder behind an option it does not know
    (``--data-root /data``) for a place with tests, and looks there for its configuration instead of
    where it was started.  No hook comes before that.
    """
    from _pytest.config.findpaths import determine_setup

    known = config.known_args_namespace
    if config.inipath is not None or known.inifilename:
        return
    arguments = {
        "inifile": None,
        "override_ini": known.override_ini,
        "args": known.file_or_dir,
        "rootdir_cmd_arg": known.rootdir or None,
        "invocation_dir": config.invocation_params.dir,
    }
    accepted = inspect.signature(determine_setup).parameters
    config._rootpath, config._inipath, ini_values, *_ = determine_setup(
        **{name: value for name, value in arguments.items() if name in accepted}
    )
    if config._inipath is not None:
        setattr(config, "_inicfg" if hasattr(config, "_inicfg") else "inicfg", ini_values)
        config._inicache.clear()


def own_fixtures(metafunc: pytest.Metafunc) -> set[str]:
    """Names that a test asks for and its project has fixtures of; no public attribute has
    them.
    """
    return set(metafunc._arg2fixturedefs)


def fixture_functions(item: pytest.Item) -> list[Callable[..., object]]:
    """The functions of the fixtures that a test uses, each as it is overridden last.

    ``item.fixturenames`` has the names only, and a project may have fixtures of the same names.
    """
    definitions: Mapping[str, Sequence[Any]] = getattr(
        getattr(item, "_fixtureinfo", None), "name2fixturedefs", {}
    )
    return [overridden[-1].func for overridden in definitions.values() if overridden]


def uncaptured(config: pytest.Config) -> AbstractContextManager[None]:
    """A context in which output reaches the terminal; pytest has a fixture for it, and no
    function.
    """
    capture: Any = config.pluginmanager.get_plugin("capturemanager")
    if capture is None:
        return nullcontext()
    context: AbstractContextManager[None] = capture.global_and_fixture_disabled()
    return context


def junit_file(config: pytest.Config) -> LogXML | None:
    """The writer of the JUnit file, or None where none is written."""
    from _pytest.junitxml import xml_key

    return config.stash.get(xml_key, None)


def add_junit_property(config: pytest.Config, name: str, value: str) -> None:
    """Put a property into the JUnit file, if one is written; pytest's own way is a fixture of a
    test.
    """
    xml = junit_file(config)
    if xml is not None:
        xml.add_global_property(name, value)


def strip_group(item: Any) -> None:
    """Take the ``@group`` off a test's id that ``--dist loadgroup`` put there.

    It is there for the process that hands out the tests.  In reports and commands an id is what
    pytest can be called with.
    """
    for mark in item.iter_markers("xdist_group"):
        item._nodeid = item.nodeid.removesuffix(f"@{mark.args[0]}")


def benchmark_session(config: pytest.Config) -> Any:
    """pytest-benchmark's session, or None without it: its hooks see one benchmark at a time."""
    return getattr(config, "_benchmarksession", None)


def replace_in_junit(config: pytest.Config, old: str, new: str) -> None:
    """Put *new* in the place of the failure *old* in the JUnit file, if one is written: pytest has
    kept what it said when the test ended.
    """
    from _pytest.junitxml import bin_xml_escape

    xml = junit_file(config)
    if xml is None:
        return
    escaped, replacement = bin_xml_escape(old), bin_xml_escape(new)
    for reporter in xml.node_reporters_ordered:
        for failure in reporter.to_xml().iter("failure"):
            if failure.text == escaped:
                failure.text = replacement
                failure.set("message", failure.get("message", "").replace(escaped, replacement))
