"""Each private interface of pytest that the gate needs still does what it is needed for."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from harness.pytest_plugin import private

ROOT = Path(__file__).parents[3]

SUITE = """
import pytest

@pytest.fixture
def own():
    return 1

@pytest.mark.xdist_group("a b")
def test_it(own, tmp_path):
    pass
"""


def test_failures_derive_from_what_pytest_fail_raises() -> None:
    """What a suite raises is a failure to pytest, as what ``pytest.fail`` raises."""
    with pytest.raises(private.Failed):
        pytest.fail("no")


def test_fixtures_and_groups_of_a_test(pytester: pytest.Pytester) -> None:
    """The functions of a test's fixtures are found, and its id loses the group that xdist put
    behind it, once.
    """
    item: Any = pytester.getitem(SUITE, "test_it")
    (own,) = [
        function for function in private.fixture_functions(item) if function.__name__ == "own"
    ]
    plain = item.nodeid

    assert own.__module__ == item.module.__name__
    item._nodeid = f"{plain}@a b"
    for _ in range(2):
        private.strip_group(item)
        assert item.nodeid == plain


def test_fixtures_that_a_test_asks_for(pytester: pytest.Pytester) -> None:
    """Names with a fixture are reported from those that are still to be parametrized."""
    pytester.makeconftest(
        """
        from harness.pytest_plugin import private

        def pytest_generate_tests(metafunc):
            assert "own" in private.own_fixtures(metafunc)
            assert "number" not in private.own_fixtures(metafunc)
            metafunc.parametrize("number", [1])
        """
    )
    pytester.makepyfile(SUITE.replace("(own,", "(own, number,").replace("@pytest.mark", "#"))

    pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_output_past_the_capture_and_properties(pytester: pytest.Pytester) -> None:
    """What is printed while nothing is captured reaches the terminal, and a property the JUnit
    file.
    """
    pytester.makepyfile(
        """
        from harness.pytest_plugin import private

        def test_it(pytestconfig):
            with private.uncaptured(pytestconfig):
                print("seen")
            print("not seen")
            private.add_junit_property(pytestconfig, "decision", "PASS")
        """
    )

    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "--junit-xml", "junit.xml")
    bare = pytester.runpytest_inprocess(
        "-p", "no:cacheprovider", "-p", "no:junitxml", "-p", "no:capture"
    )

    result.stdout.fnmatch_lines(["*seen*"])
    result.stdout.no_fnmatch_line("*not seen*")
    assert '<property name="decision" value="PASS"' in (pytester.path / "junit.xml").read_text()
    bare.assert_outcomes(passed=1)


def test_session_of_pytest_benchmark(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session of pytest-benchmark is found where the plugin is there."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    config = pytester.parseconfigure("-p", "pytest_benchmark.plugin")

    assert private.benchmark_session(config).compared_mapping == {}


def test_options_that_are_taken() -> None:
    """An option of any plugin is known by its name and by the name of its value; any other is
    not.
    """
    parser = pytest.Parser(_ispytest=True)
    parser.getgroup("browsers").addoption("--device", dest="browser_device")
    parser.addoption("--tasks")

    assert private.has_option(parser, "--device", "any")
    assert private.has_option(parser, "--any", "browser_device")
    assert private.has_option(parser, "--tasks", "any")
    assert not private.has_option(parser, "--recipe", "gate_recipes")


def test_no_other_module_imports_private_pytest() -> None:
    """Private modules of pytest are imported in one place."""
    files = [*ROOT.glob("harness/**/*.py"), *ROOT.glob("tests/**/*.py")]
    imports = {
        path.relative_to(ROOT).as_posix()
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "_pytest"
    }

    assert imports <= {"harness/pytest_plugin/private.py"}
