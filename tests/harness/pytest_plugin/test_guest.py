"""An unrelated project, with the gate installed, is left alone: it runs as it does without."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import quantized_clip_gate

GUEST = "quantized_clip_gate"
ROOT = Path(__file__).parents[3]
#: Imported by every run below, as an installed plugin is.
OTHERS = ("xdist.plugin", "pytest_benchmark.plugin")

#: An option of another plugin (pytest-playwright has one of this name) and one of the project.
BROWSER = """
def pytest_addoption(parser):
    parser.addoption("--device", default=None, help="Device to be emulated")
    parser.addoption("--tasks", action="store_true", default=False, dest="jobs")
    parser.addoption("--folder", dest="data_root")
"""
CONFTEST = """
import pytest

def pytest_addoption(parser):
    parser.addoption("--recipe", default="soup")
    parser.addoption("--baselines", type=int)

def pytest_sessionfinish(session):
    scheduler = getattr(session.config.pluginmanager.get_plugin("dsession"), "sched", None)
    if scheduler is not None:
        print("scheduler:", type(scheduler).__name__)

@pytest.fixture(params=[1, 2])
def case(request):
    return request.param

@pytest.fixture
def check(case):
    return lambda value: value == case

@pytest.fixture
def gate():
    return "gate"

@pytest.fixture
def quantized(gate):
    return gate + "s"
"""
TESTS = """
import sys
import pytest

@pytest.mark.qat
def test_qat(check, case):
    assert check(case)

@pytest.mark.proof
def test_proof(quantized, pytestconfig):
    assert quantized == "gates"
    assert pytestconfig.getoption("recipe") in ("soup", "pie")

@pytest.mark.parametrize("metric", [])
def test_of_nothing(metric):
    pass

def test_time(benchmark):
    benchmark.pedantic(sum, args=([1, 2],), rounds=3)

def test_that_fails():
    assert not "found"

def test_imports():
    import harness
    assert harness.STEEL
    assert not [name for name in sys.modules if name.startswith("harness.")]
    assert not {"torch", "modelopt", "transformers", "numpy", "pydantic"} & set(sys.modules)
"""
CONFIGURATION = """
[pytest]
addopts = --strict-markers --strict-config -p no:cacheprovider
filterwarnings = ignore:Module already imported:pytest.PytestAssertRewriteWarning
markers =
    qat: questions and answers, tested
    proof: as of a bread
"""

Run = Callable[..., pytest.RunResult]


@pytest.fixture(autouse=True)
def stranger(pytester: pytest.Pytester) -> None:
    """The projects of these tests are nobody's, until they ask for the gate themselves."""
    pytester.plugins.clear()


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A project with names that are the gate's too; runs pytest in it, with the guest or
    without.
    """
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(emulated_devices=BROWSER, test_own=TESTS)
    pytester.makefile(".ini", pytest=CONFIGURATION)
    pytester.mkdir("data")
    pytester.mkpydir("harness").joinpath("__init__.py").write_text("STEEL = True")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.syspath_prepend(pytester.path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(pytester.path), str(ROOT)]))

    def run(
        *arguments: str, plugins: tuple[str, ...] = (), process: bool = False
    ) -> pytest.RunResult:
        monkeypatch.setenv("PYTEST_PLUGINS", ",".join([*OTHERS, *plugins]))
        start = pytester.runpytest_subprocess if process else pytester.runpytest_inprocess
        return start(*arguments)

    return run


#: How lines begin that differ.
DIFFERENT = "test_time  |Name .time|-----|=====|plugins: "


def without_times(result: pytest.RunResult) -> list[str]:
    """The output of a run without what differs from one run to the next: times, and rules around
    them; and without pytest's list of installed plugins, which names every one.
    """
    lines = [
        re.sub(r"\b[0-9.]+ ?(s|us|ns)\b|[0-9]{8}_[0-9]{6}", "#", line)
        for line in result.outlines + result.errlines
    ]
    return [line for line in lines if not re.match(DIFFERENT, line)]


@pytest.mark.parametrize(
    "arguments",
    [
        ("-v", "-ra", "--deselect", "test_own.py::test_imports"),
        ("-v", "-m", "qat or proof"),
        ("-q", "-m", "no_such_marker"),
        ("--fixtures",),
        ("--markers",),
        ("--help",),
        ("-v", "--recipe", "pie", "--device", "iPhone 15", "-m", "proof"),
        ("-q", "--baselines", "7", "--tasks", "-m", "proof", "data", "test_own.py"),
        ("-q", "--clip-model", "embedded"),
        ("-q", "--pyargs", "json", "-m", "qat"),
        ("-q", "-k", "time", "--benchmark-compare-fail", "median:5%"),
    ],
    ids=" ".join,
)
def test_same_output_and_exit_code(project: Run, arguments: tuple[str, ...]) -> None:
    """Whatever such a project asks for, it gets the same message, before or after a plugin with an
    option of ours.
    """
    alone = project(*arguments, plugins=("emulated_devices",))

    for plugins in ((GUEST, "emulated_devices"), ("emulated_devices", GUEST)):
        visited = project(*arguments, plugins=plugins)
        assert visited.ret == alone.ret
        assert without_times(visited) == without_times(alone)


def test_its_tests_are_spread_by_xdist_and_nothing_heavy_is_imported(project: Run) -> None:
    """With two workers the scheduler is pytest-xdist's own, nothing heavy is imported, and
    ``harness`` is its own.
    """
    result = project(
        "-n",
        "2",
        "-k",
        "imports or qat or proof",
        plugins=(GUEST, "emulated_devices"),
        process=True,
    )

    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(["*scheduler: LoadScheduling*"])


def test_its_saved_times_are_where_pytest_benchmark_keeps_them(
    project: Run, pytester: pytest.Pytester
) -> None:
    """Runs are saved under pytest-benchmark's own key, with its own facts, and compared by its own
    rules.
    """
    from pytest_benchmark.session import get_machine_id

    project("-k", "time", "--benchmark-save", "before", plugins=(GUEST,))
    compared = project(
        "-k",
        "time",
        "--benchmark-compare",
        "--benchmark-compare-fail=median:1000000%",
        plugins=(GUEST,),
    )

    (saved,) = pytester.path.glob(".benchmarks/*/0001_before.json")
    assert saved.parent.name == get_machine_id()
    assert not {"device", "gpu", "torch", "threads"} & set(
        json.loads(saved.read_text())["machine_info"]
    )
    assert compared.ret == 0
    compared.stdout.fnmatch_lines_random(["test_time (NOW)*", "test_time (0001_before)*"])


# -- where the gate is asked for -------------------------------------------------------------------


def configured(folder: Path, *words: str, pyargs: bool = False, **settings: Any) -> Any:
    """What a plugin knows of the command line before the command line is read in earnest."""
    known = {"file_or_dir": list(words), "pyargs": pyargs, "rootdir": None, "inifilename": None}
    return SimpleNamespace(
        known_args_namespace=SimpleNamespace(**known | settings),
        invocation_params=SimpleNamespace(dir=folder),
    )


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """A checkout of the gate, with another project inside it, next to a folder that has nothing to
    do with it.
    """
    for folder in ("checkout/tests", "checkout/vendor/other/tests", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "checkout/conftest.py").write_text(
        'pytest_plugins = ["harness.pytest_plugin.plugin"]\n'
    )
    (tmp_path / "checkout/pyproject.toml").touch()
    (tmp_path / "checkout/tests/test_insertion.py").touch()
    (tmp_path / "checkout/vendor/other/pytest.ini").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("folder", "words", "pyargs", "wanted"),
    [
        ("elsewhere", ["harness.suites"], True, True),
        ("elsewhere", ["fp8", "harness.suites.test_insertion::test_x[fp8-embedded]"], True, True),
        ("elsewhere", ["harness.suites"], False, False),
        ("elsewhere", ["harness.suitescase"], True, False),
        ("elsewhere", [], False, False),
        ("elsewhere", ["../checkout/tests/test_insertion.py::test_x"], False, True),
        ("elsewhere", ["\0", "x" * 5000, "?"], False, False),
        ("checkout", [], False, True),
        ("checkout", ["fp8"], False, True),
        ("checkout/tests", [], False, True),
        ("checkout/vendor/other", [], False, False),
        ("checkout/vendor/other/tests", ["."], False, False),
    ],
)
def test_where_the_gate_is_wanted(
    places: Path, folder: str, words: list[str], pyargs: bool, wanted: bool
) -> None:
    """It is wanted by the name of its suites and by a conftest.py of the project, not by one above
    the project.
    """
    assert (
        quantized_clip_gate.is_wanted(configured(places / folder, *words, pyargs=pyargs)) is wanted
    )


@pytest.mark.parametrize(
    "settings", [{"rootdir": "../checkout"}, {"inifilename": "../checkout/pyproject.toml"}]
)
def test_a_root_that_is_named_counts(places: Path, settings: dict[str, Any]) -> None:
    """Started elsewhere with ``--rootdir`` or ``-c``, the project that is named there decides."""
    assert quantized_clip_gate.is_wanted(configured(places / "elsewhere", **settings))


def test_values_of_its_options_are_not_places_with_tests(
    project: Run, pytester: pytest.Pytester
) -> None:
    """In a project of the gate, a folder behind an option does not decide where the configuration
    is looked for.
    """
    pytester.makeconftest('pytest_plugins = ["harness.pytest_plugin.plugin"]')
    (pytester.path.parent / "tree").mkdir(exist_ok=True)

    result = project("--collect-only", "--recipes-root", "../tree", plugins=(GUEST,))

    result.stdout.fnmatch_lines([f"rootdir: {pytester.path}", "configfile: pytest.ini"])


@pytest.mark.parametrize("arguments", [(), ("--device", "cpu"), ("--collect-only",)], ids=" ".join)
def test_a_taken_option_is_refused_where_the_gate_runs(
    project: Run, pytester: pytest.Pytester, arguments: tuple[str, ...]
) -> None:
    """Where ``--device`` means something else, a run of the gate is refused in one line; it is not
    misread.
    """
    pytester.makeconftest('pytest_plugins = ["harness.pytest_plugin.plugin"]')

    result = project(*arguments, plugins=(GUEST, "emulated_devices"))

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = [line for line in result.errlines if line]
    assert line.startswith(
        "ERROR: --tasks, --data-root, --device: another pytest plugin that is installed here "
        "defines this too."
    )
