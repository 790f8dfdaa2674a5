"""How the gate's tests ended: one word for all that was judged, in every place, and one failure per cause."""

from __future__ import annotations

import html
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.checks import checkpoint_preload  # noqa: F401  (what is imported first inside a nested pytest is dropped with it)
from harness.gate.gate import Gate, Options
from harness.gate.results import CheckResult, Outcome, Results, Word, worst
from harness.pytest_plugin import outcomes
from harness.pytest_plugin.outcomes import Causes
from harness.report import cases

#: A suite whose tests go through the gate's own fixtures and hooks; no model is built.
SUITE = """
import pytest
from harness.errors import UsageError
from harness.gate.gate import Case
from harness.pytest_plugin.outcomes import Inconclusive

pytestmark = pytest.mark.insertion


@pytest.fixture
def broken(case):
    raise RuntimeError("boom at 0x7f12")


def test_holds(gate, case, check):
    check.problems([])


{tests}
"""

#: By the kind of what falls short: the tests, the word of the run, its exit code.
KINDS: dict[str, tuple[str, str, int]] = {
    "nothing": ("", "PASS", 0),
    "a problem": ("def test_it(gate, case, check): check.problems(['4 of 7 never ran'])", "FAIL", 1),
    "a limit": (
        "def test_it(gate, case, check): check.limits(['kl_mean is 3, limit: at most 1: EXCEEDED'], ('t', 'm'))",
        "FAIL",
        1,
    ),
    "an assertion": ("def test_it(gate, case): assert 1 == 2, 'one is not two'", "FAIL", 1),
    "an error": ("def test_it(gate, case): raise ValueError('no such thing')", "FAIL", 1),
    "an error in a fixture": ("def test_it(gate, case, broken): pass", "FAIL", 1),
    "an error at the end": (
        "@pytest.fixture\ndef ends(gate):\n    yield\n    raise OSError('late')\ndef test_it(case, ends): pass",
        "FAIL",
        1,
    ),
    "what cannot be decided": (
        "def test_it(gate, case): raise Inconclusive('too few samples', pytrace=False)",
        "INCONCLUSIVE",
        1,
    ),
    "a section alone": (
        "def test_it(gate, case):\n"
        "    gate.section(case, 'insertion')['problems'] = [{'what': 'w', 'names': [], 'mend': 'm'}]",
        "FAIL",
        1,
    ),
    "a limit in a section alone": (
        "def test_it(gate, case):\n"
        "    gate.section(case, 'accuracy')['limits'] = [{'exceeded': True, 'message': 'EXCEEDED'}]",
        "FAIL",
        1,
    ),
    "a test of no recipe": ("def test_it(gate, check): check.problems(['an orphan'])", "FAIL", 1),
    "bad input": ("def test_it(gate, case): raise UsageError('/data/7.png', 'is cut', 'Restore it.')", "REFUSED", 4),
}

RunSuite = Callable[..., pytest.RunResult]


@pytest.fixture
def run_suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> RunSuite:
    """Runs tests in a suite of the gate, with a report and a JUnit file; nothing is loaded for it."""
    monkeypatch.setattr(Gate, "preflight", lambda *_, **__: None)
    monkeypatch.setattr(Gate, "lacks", lambda *_, **__: None)
    monkeypatch.setenv("COLUMNS", "80")

    def run(tests: str, *arguments: str, baselines: str = "store") -> pytest.RunResult:
        pytester.makepyfile(test_suite=SUITE.replace("{tests}", tests))
        (pytester.path / baselines).mkdir(exist_ok=True)
        given = (
            "-p",
            "no:cacheprovider",
            "-p",
            "harness.pytest_plugin.plugin",
            "--recipe",
            "fp8",
            "--gate-report",
            "out",
        )
        places = ("--junit-xml", "junit.xml", "--no-blame", "--baselines", baselines)
        return pytester.runpytest_inprocess(*given, *places, *arguments)

    return run


def words(folder: Path, result: pytest.RunResult) -> dict[str, str]:
    """The word of a run in each place that has one."""
    terminal = re.search(r"quantized against FP16 \(points\): ([A-Z]+)", str(result.stdout))
    junit = ElementTree.parse(folder / "junit.xml").find(".//testsuite/properties/property[@name='decision']")
    page = re.search(r'<p class="headline">([A-Z]+):', (folder / "out/report.html").read_text())
    summary = re.search(r"^## Quantized CLIP: \S* ?([A-Z]+)", (folder / "out/summary.md").read_text())
    return {
        "terminal": terminal[1] if terminal else "",
        "summary.md": summary[1] if summary else "",
        "report.html": page[1] if page else "",
        "results.json": json.loads((folder / "out/results.json").read_text())["decision"],
        "junit": "" if junit is None else str(junit.get("value")),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_one_word_in_every_place(run_suite: RunSuite, pytester: pytest.Pytester, kind: str) -> None:
    """Whatever falls short alone, beside tests that hold, terminal, files and exit code say the same."""
    tests, word, code = KINDS[kind]

    result = run_suite(tests)

    assert set(words(pytester.path, result).values()) == {word}, words(pytester.path, result)
    assert result.ret == code


@pytest.mark.parametrize("kind", ["a problem", "an error", "an error in a fixture", "a test of no recipe"])
def test_failed_checks_are_listed(run_suite: RunSuite, pytester: pytest.Pytester, kind: str) -> None:
    """The data name each failed check with its test, its suite and the first line of what it said."""
    run_suite(KINDS[kind][0])
    found = json.loads((pytester.path / "out/results.json").read_text())
    (failed,) = [c for part in (found, *found["cases"]) for c in part.get("checks", {}).get("failed", [])]

    assert "test_suite.py::test_it" in failed["test"]
    assert (failed["suite"], failed["outcome"]) == ("insertion", "failed")
    assert failed["message"]
    assert failed["message"].split()[0] in html.unescape((pytester.path / "out/summary.md").read_text())


def test_a_cause_is_one_failure(run_suite: RunSuite) -> None:
    """Tests that meet the same error later are skipped with the id of the first, whatever number it holds."""
    more = "\n".join(f"def test_{n}(gate, case, broken): pass" for n in "abc")
    other = "def test_z(gate, case, check): check.problems(['another thing'])"

    result = run_suite(f"{more}\n{other}", "-rs")

    result.assert_outcomes(passed=1, failed=2, skipped=2)
    result.stdout.fnmatch_lines(["*not judged, the cause is reported by test_suite.py::test_a*"])


def test_an_error_is_told_without_its_traceback(run_suite: RunSuite) -> None:
    """Without -v an unforeseen error takes a few lines, with -v it has its traceback."""
    short = run_suite(KINDS["an error"][0])
    long = run_suite(KINDS["an error"][0], "-v")

    short.stdout.fnmatch_lines(["ValueError: no such thing", "*report it*"])
    short.stdout.no_fnmatch_line(">*raise*")
    long.stdout.fnmatch_lines([">*raise ValueError*"])


def test_a_run_of_skips_is_no_pass(run_suite: RunSuite, pytester: pytest.Pytester) -> None:
    """Where every selected test was skipped nothing was judged: exit code 5, no verdict."""
    result = run_suite("def test_it(gate, case): pytest.skip('not here')", "-k", "test_it")

    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert json.loads((pytester.path / "out/results.json").read_text())["decision"] == "no verdict"


def test_tests_of_a_project_are_none_of_the_gates(pytester: pytest.Pytester) -> None:
    """A project with fixtures of the same names is left alone: its errors keep their phase and its exit code 0."""
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture
        def gate():
            return 1

        @pytest.fixture
        def case():
            raise RuntimeError("theirs")

        def test_gate(gate): assert gate == 1
        def test_case(case): pass
        def test_again(case): pass
        """
    )

    pytester.runpytest_inprocess("-p", "harness.pytest_plugin.plugin").assert_outcomes(passed=1, errors=2)


# -- the parts ----------------------------------------------------------------------------------------------------


def test_worst_of_words() -> None:
    """The order of the words, and the word of nothing."""
    assert worst([]) is Word.NOTHING
    assert worst([Word.PASS, Word.INCONCLUSIVE]) is Word.INCONCLUSIVE
    assert worst([Word.FAIL, Word.PASS, Word.INCONCLUSIVE]) is Word.FAIL
    assert worst([Word.REFUSED, Word.FAIL]) is Word.REFUSED


def test_causes_are_reported_once() -> None:
    """The first test has a cause; a set of causes counts where other tests have reported all of them."""
    causes = Causes()

    assert causes.first_of("a", [["x"]], "") == ""
    assert causes.first_of("b", [["x"]], "") == "a"
    assert causes.first_of("a", [["x"]], "") == ""
    assert causes.first_of("c", [["x", "y"]], "") == ""
    assert causes.first_of("d", [["y", "x"]], "") == "c"
    assert causes.first_of("e", [["new"], ["x"]], "") == "a"
    assert causes.first_of("f", [["new"]], "") == "a"
    assert causes.first_of("g", [[]], "") == ""
    assert causes.first_of("h", [], "b") == "a"


def case_with(*checks: CheckResult, **sections: Any) -> dict[str, Any]:
    """The case of fp8 on the embedded model, as results hold it."""
    results = Results()
    results.case("fp8", "embedded").update(sections)
    for check in checks:
        results.add(check)
    (case,) = results.as_dict()["cases"]
    return dict(case)


@pytest.mark.parametrize(
    ("outcome", "word"),
    [
        (Outcome.PASSED, "PASS"),
        (Outcome.XFAILED, "PASS"),
        (Outcome.SKIPPED, "no verdict"),
        (Outcome.INCONCLUSIVE, "INCONCLUSIVE"),
        (Outcome.FAILED, "FAIL"),
        (Outcome.ERROR, "FAIL"),
        (Outcome.DEPENDENT, "FAIL"),
    ],
)
def test_a_check_decides_a_case(outcome: Outcome, word: str) -> None:
    """One check alone gives its word; beside a verdict that passed, it is never better than that."""
    check = CheckResult("t.py::test_it", "insertion", outcome, "m", "fp8", "embedded", gated=True)

    assert cases.decision(case_with(check)) == word
    passed = case_with(check, accuracy={"decision": "PASS"})
    assert cases.decision(passed) == (word if word != "no verdict" else "PASS")


@pytest.mark.parametrize(
    ("outcome", "about_baseline", "stored"),
    [
        (Outcome.PASSED, False, True),
        (Outcome.FAILED, False, False),
        (Outcome.INCONCLUSIVE, False, False),
        (Outcome.ERROR, False, False),
        (Outcome.FAILED, True, True),
    ],
)
def test_what_fell_short_is_no_new_baseline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome: Outcome, about_baseline: bool, stored: bool
) -> None:
    """``--new-baselines-only`` leaves out what failed, with the command that accepts it all the same.

    That a case has no baseline, or another one, is no reason: the former is why it is stored.
    """
    gate, results, shown = Gate(Options(recipes=("fp8",), baselines=tmp_path)), Results(), []
    (case,) = gate.cases()
    results.add(CheckResult("t.py::test_it", "insertion", outcome, "m", "fp8", "embedded", True, about_baseline))
    updates: list[object] = []
    monkeypatch.setattr(type(gate.store), "update", lambda store, record, **_: updates.append(record))
    record: Any = object()
    gate.pending[case] = record

    why = outcomes.fell_short(results, case)
    gate.accept(reason=None, new_only=True, show=shown.append, left_out={case: why} if why else {})

    assert updates == ([record] if stored else [])
    assert ("--update-baselines --reason TEXT" in "".join(shown)) != stored


def test_an_architecture_is_a_case_only_where_it_fails() -> None:
    """What holds on the published architectures is counted; what fails on one is shown under its name."""
    results = Results()
    for model, outcome in (("ViT-B-32", Outcome.PASSED), ("ViT-L-14", Outcome.FAILED), ("RN50", Outcome.DEPENDENT)):
        results.add(CheckResult("t.py::test_it", "insertion", outcome, "m", "fp8", model, see="t.py::first"))

    assert [case["model"] for case in results.as_dict()["cases"]] == ["ViT-L-14"]
    assert results.as_dict()["checks"]["counts"] == {"passed": 1, "dependent": 1}
