"""How the gate's tests ended: one word for all that was judged, in every place, and one failure per
cause.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from harness.baselines.store import Store
from harness.checks import checkpoint_preload  # noqa: F401  (what is imported first inside a nested pytest is dropped with it)
from harness.gate.case import Case
from harness.gate.listing import CaseName
from harness.gate.options import Options
from harness.gate.reference_side import ReferenceSide
from harness.gate.results import CheckResult, Outcome, Results, Word, worst
from harness.gate.session import Gate
from harness.pytest_plugin import brief, outcomes, private
from harness.pytest_plugin.outcomes import Causes
from harness.pytest_plugin.run import results_of
from harness.report import cases

#: A suite whose tests go through the gate's own fixtures and hooks; no model is built.
SUITE = """
import pytest
from harness.errors import UsageError
from harness.pytest_plugin.outcomes import Inconclusive
from harness.pytest_plugin.run import results_of

pytestmark = pytest.mark.insertion


def section_of(config, case, name):
    return results_of(config).section(case.recipe_name, case.model_name, name)


def judged_gain(config, case):
    '''The verdict on 10 lost and 110 won samples of 2,000, as the gate writes it down.'''
    from drawn import pair
    from harness.statistics.verdicts import Budget, compare, family

    reference, quantized = pair(2000, 10, 110)
    found = family([compare(reference, quantized, Budget(1.0, most_gain=1.0))])
    written = [verdict.as_dict() for verdict in found.verdicts]
    section_of(config, case, "accuracy").update(
        decision=found.decision.value, headline=found.headline(), verdicts=written
    )
    return found.verdicts[0]


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
    "a problem": (
        "def test_it(gate, case, check): check.problems(['4 of 7 never ran'])",
        "FAIL",
        1,
    ),
    "a limit": (
        "def test_it(gate, case, check): check.limits(['kl_mean is 3, limit: at most 1: "
        "EXCEEDED'], ('t', 'm'))",
        "FAIL",
        1,
    ),
    "an assertion": ("def test_it(gate, case): assert 1 == 2, 'one is not two'", "FAIL", 1),
    "an error": ("def test_it(gate, case): raise ValueError('no such thing')", "FAIL", 1),
    "an error in a fixture": ("def test_it(gate, case, broken): pass", "FAIL", 1),
    "an error at the end": (
        "@pytest.fixture\ndef ends(gate):\n    yield\n    raise OSError('late')\ndef test_it(case, "
        "ends): pass",
        "FAIL",
        1,
    ),
    "what cannot be decided": (
        "def test_it(gate, case): raise Inconclusive('too few samples', pytrace=False)",
        "INCONCLUSIVE",
        1,
    ),
    "a gain that is not plausible": (
        """
def test_it(gate, case, check, pytestconfig):
    check.verdict(judged_gain(pytestconfig, case))""",
        "GAIN",
        1,
    ),
    "a gain next to a problem": (
        """
def test_it(gate, case, check, pytestconfig):
    check.verdict(judged_gain(pytestconfig, case))
def test_other(gate, case, check): check.problems(['4 of 7 never ran'])""",
        "FAIL",
        1,
    ),
    "a section alone": (
        "def test_it(gate, case, pytestconfig):\n"
        "    section_of(pytestconfig, case, 'insertion')['problems'] = [{'rule': 'r', 'what': 'w', "
        "'names': [], 'fix': 'm'}]",
        "FAIL",
        1,
    ),
    "a limit in a section alone": (
        "def test_it(gate, case, pytestconfig):\n"
        "    section = section_of(pytestconfig, case, 'accuracy')\n"
        "    section |= {'decision': 'PASS', 'limits': [{'task': 't', 'metric': 'm', 'name': 'n', "
        "'exceeded': True, 'message': 'EXCEEDED'}]}",
        "FAIL",
        1,
    ),
    "a test of no recipe": ("def test_it(gate, check): check.problems(['an orphan'])", "FAIL", 1),
    "bad input": (
        "def test_it(gate, case): raise UsageError('/data/7.png', 'is cut', 'Restore it.')",
        "REFUSED",
        4,
    ),
}

RunSuite = Callable[..., pytest.RunResult]


@pytest.fixture
def run_suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> RunSuite:
    """Runs tests in a suite of the gate, with a report and a JUnit file; nothing is loaded for
    it.
    """
    monkeypatch.setattr("harness.gate.preflight.preflight", lambda *_, **__: None)
    monkeypatch.setattr(ReferenceSide, "lacks", lambda *_, **__: None)
    monkeypatch.setenv("COLUMNS", "80")

    def run(tests: str, *arguments: str, baselines: str = "store") -> pytest.RunResult:
        pytester.makepyfile(test_suite=SUITE.replace("{tests}", tests))
        (pytester.path / baselines).mkdir(exist_ok=True)
        head = (
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
        return pytester.runpytest_inprocess(*head, *places, *arguments)

    return run


def words(folder: Path, result: pytest.RunResult) -> dict[str, str]:
    """The word of a run in each place that has one."""
    terminal = re.search(r"=+ [\w ,()]+: ([A-Z]+|no verdict) =", str(result.stdout))
    junit = ElementTree.parse(folder / "junit.xml").find(
        ".//testsuite/properties/property[@name='decision']"
    )
    page = re.search(
        r'<p class="headline">([A-Z]+|no verdict):', (folder / "out/report.html").read_text()
    )
    summary = re.search(
        r"^## Quantized CLIP: \S* ?([A-Z]+|no verdict)", (folder / "out/summary.md").read_text()
    )
    return {
        "terminal": terminal[1] if terminal else "",
        "summary.md": summary[1] if summary else "",
        "report.html": page[1] if page else "",
        "results.json": json.loads((folder / "out/results.json").read_text())["decision"],
        "junit": "" if junit is None else str(junit.get("value")),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_one_word_in_every_place(run_suite: RunSuite, pytester: pytest.Pytester, kind: str) -> None:
    """Whatever falls short alone, among tests that hold, terminal, files and exit code say the
    same.
    """
    tests, word, code = KINDS[kind]

    result = run_suite(tests)

    assert set(words(pytester.path, result).values()) == {word}, words(pytester.path, result)
    assert result.ret == code


#: A known failure of ``test_it``, and how a test's entry differs from it.
KNOWN = """
  - {check: insertion/NAME, recipe: fp8, says: never ran, releases: ">=0", until: "9999-01-01",
     owner: me, reason: ModelOpt cannot}
"""


def test_a_known_failure_is_none(run_suite: RunSuite, pytester: pytest.Pytester) -> None:
    """A check that fails as listed is XFAIL with its reason in every place, and the run passes."""
    (pytester.path / "store").mkdir()
    listed = "known_failures:" + KNOWN.replace("NAME", "it")
    (pytester.path / "store/known_failures.yaml").write_text(listed)
    tests = """
def test_it(gate, case, check, pytestconfig):
    problem = {'rule': 'r', 'what': 'w', 'names': [], 'fix': 'm'}
    section_of(pytestconfig, case, 'insertion')['problems'] = [problem]
    check.problems(['4 of 7 never ran'])"""
    result = run_suite(tests, "-rx")
    result.assert_outcomes(passed=1, xfailed=1)
    assert set(words(pytester.path, result).values()) == {"PASS"}
    assert result.ret == 0
    reason = "ModelOpt cannot (owner me, until 9999-01-01, store/known_failures.yaml:2)"
    (known,) = json.loads((pytester.path / "out/results.json").read_text())["cases"][0]["checks"][
        "known"
    ]
    assert known["reason"] == reason
    assert known["message"] == "4 of 7 never ran"
    page = html.unescape((pytester.path / "out/report.html").read_text())
    summary = (pytester.path / "out/summary.md").read_text().replace("\\", "")
    terminal = " ".join(str(result.stdout).split())
    junit = (pytester.path / "junit.xml").read_text()
    for place in (page, summary, terminal, junit):
        assert "ModelOpt cannot (owner me, until 9999-01-01, " in place


def test_a_known_failure_that_is_not_as_listed_fails(
    run_suite: RunSuite, pytester: pytest.Pytester
) -> None:
    """One that holds, one that has ended and one that says something else are failures."""
    (pytester.path / "store").mkdir()
    ended = KNOWN.replace("9999", "2001").replace("NAME", "ended")
    entries = KNOWN.replace("NAME", "holds") + ended + KNOWN.replace("NAME", "other")
    (pytester.path / "store/known_failures.yaml").write_text("known_failures:" + entries)
    tests = """
def test_ended(gate, case, check): check.problems(['4 of 7 never ran'])
def test_other(gate, case, check): check.problems(['5 of 7 are off'])"""
    result = run_suite(tests)
    result.assert_outcomes(failed=3)
    assert result.ret == 1
    checks = json.loads((pytester.path / "out/results.json").read_text())["cases"][0]["checks"]
    messages = {
        check["test"].rpartition("::test_")[2]: check["message"] for check in checks["failed"]
    }
    assert (
        "holds now. Remove its entry: store/known_failures.yaml:2"
        in messages["holds[fp8-embedded]"]
    )
    assert "ended on 2001-01-01" in messages["ended[fp8-embedded]"]
    assert "which says 'never ran'" in messages["other[fp8-embedded]"]
    assert "5 of 7 are off" in str(result.stdout)


def test_a_gain_is_told_as_one(run_suite: RunSuite, pytester: pytest.Pytester) -> None:
    """Terminal, summary, data and JUnit file name the task with the gain, what is plausible and
    how to declare it; no word says that something was lost.
    """
    result = run_suite(KINDS["a gain that is not plausible"][0], "-v")
    shown = str(result.stdout)
    results = json.loads((pytester.path / "out/results.json").read_text())
    summary = html.unescape((pytester.path / "out/summary.md").read_text())
    (case,) = results["cases"]
    (failed,) = case["checks"]["failed"]

    assert result.ret == 1
    assert results["headline"] == "1 GAIN"
    assert case["decision"] == case["accuracy"]["decision"] == failed["outcome"].upper() == "GAIN"
    assert "1 GAIN; largest gain is emoji/acc1 at +5.00" in case["headline"]
    assert "plausible 1" in case["headline"]
    assert case["headline"] in summary
    assert "❌ GAIN (1 GAIN)" in summary
    assert re.search(r"test_it\[fp8-embedded\] GAIN", shown)
    assert "expected: a gain of at most 1 points" in shown
    assert "most_gain" in shown
    assert "lost with" not in shown
    assert 'name="verdict" value="GAIN"' in (pytester.path / "junit.xml").read_text()


@pytest.mark.parametrize(
    "kind", ["a problem", "an error", "an error in a fixture", "a test of no recipe"]
)
def test_failed_checks_are_listed(
    run_suite: RunSuite, pytester: pytest.Pytester, kind: str
) -> None:
    """The data name each failed check with its test, its suite and the first line of what it
    said.
    """
    run_suite(KINDS[kind][0])
    results = json.loads((pytester.path / "out/results.json").read_text())
    (failed,) = [
        c for part in (results, *results["cases"]) for c in part.get("checks", {}).get("failed", [])
    ]

    assert "test_suite.py::test_it" in failed["test"]
    assert (failed["suite"], failed["outcome"]) == ("insertion", "failed")
    assert failed["message"]
    assert failed["message"].split()[0] in html.unescape(
        (pytester.path / "out/summary.md").read_text()
    )


def test_a_cause_is_one_failure(run_suite: RunSuite) -> None:
    """Tests that meet the same error later are skipped with the id of the first, whatever number it
    holds.
    """
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
    """Where every selected test was skipped nothing was judged: exit code 5, and no verdict in
    every place.
    """
    result = run_suite("def test_it(gate, case): pytest.skip('not here')", "-k", "test_it")

    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert set(words(pytester.path, result).values()) == {"no verdict"}, words(
        pytester.path, result
    )


def test_a_run_of_no_test_is_no_pass(run_suite: RunSuite, pytester: pytest.Pytester) -> None:
    """Where no test is selected the files say so as well, instead of what an earlier run left
    there.
    """
    run_suite("")
    result = run_suite("", "-k", "nosuchtest")

    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    words_by_place = words(pytester.path, result)
    assert {
        words_by_place[place] for place in ("summary.md", "report.html", "results.json", "junit")
    } == {"no verdict"}
    result.stdout.fnmatch_lines(["exit code 5: no test was selected, so nothing was judged"])


@pytest.mark.parametrize(
    "kind", ["nothing", "a problem", "a section alone", "a limit in a section alone"]
)
def test_what_falls_short_is_not_stored(
    run_suite: RunSuite, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """With --new-baselines-only a case is stored where all held, and not where anything of it fell
    short alone.
    """
    stored: list[str] = []
    monkeypatch.setattr(Store, "update", lambda _, record, **__: stored.append(record))
    tests, word, _ = KINDS[kind]
    monkeypatch.setattr(Case, "to_store", "record")

    result = run_suite(tests, "--new-baselines-only")

    assert stored == (["record"] if word == "PASS" else [])
    assert ("not stored: fp8-embedded: " in str(result.stdout)) == (word != "PASS")


def test_what_lost_too_much_is_not_stored() -> None:
    """A verdict that failed keeps its case from being stored, though no check of the run is about
    it.
    """
    results = Results()
    results.section("fp8", "embedded", "accuracy")["decision"] = "FAIL"

    assert outcomes.fell_short(results, CaseName("fp8", "embedded")).startswith("FAIL")


def test_tests_of_a_project_are_none_of_the_gates(pytester: pytest.Pytester) -> None:
    """A project with fixtures of the same names is left alone: its errors keep their phase and its
    exit code 0.
    """
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

    pytester.runpytest_inprocess("-p", "harness.pytest_plugin.plugin").assert_outcomes(
        passed=1, errors=2
    )


# -- the parts -------------------------------------------------------------------------------------


def test_worst_of_words() -> None:
    """The order of the words, and the word of nothing."""
    assert worst([]) is Word.NOTHING
    assert worst([Word.PASS, Word.INCONCLUSIVE]) is Word.INCONCLUSIVE
    assert worst([Word.FAIL, Word.PASS, Word.INCONCLUSIVE]) is Word.FAIL
    assert worst([Word.REFUSED, Word.FAIL]) is Word.REFUSED


def test_causes_are_reported_once() -> None:
    """The first test has a cause; a set of causes counts where other tests have reported all of
    them.
    """
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
        (Outcome.GAIN, "GAIN"),
        (Outcome.FAILED, "FAIL"),
        (Outcome.ERROR, "FAIL"),
        (Outcome.DEPENDENT, "FAIL"),
    ],
)
def test_a_check_decides_a_case(outcome: Outcome, word: str) -> None:
    """One check alone gives its word; next to a verdict that passed, it is never better than
    that.
    """
    check = CheckResult("t.py::test_it", "insertion", outcome, "m", "fp8", "embedded", gated=True)

    assert cases.decision(cases.read_case(case_with(check))) == word
    passed = cases.read_case(case_with(check, accuracy={"decision": "PASS"}))
    assert cases.decision(passed) == (word if word != "no verdict" else "PASS")


@pytest.mark.parametrize(
    ("outcome", "about_baseline", "stored"),
    [
        (Outcome.PASSED, False, True),
        (Outcome.FAILED, False, False),
        (Outcome.INCONCLUSIVE, False, False),
        (Outcome.GAIN, False, False),
        (Outcome.ERROR, False, False),
        (Outcome.FAILED, True, True),
    ],
)
def test_what_fell_short_is_no_new_baseline(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    outcome: Outcome,
    about_baseline: bool,
    stored: bool,
) -> None:
    """``--new-baselines-only`` leaves out what failed, with the command that accepts it all the
    same.

    That a case has no baseline, or another one, is not a reason: the former is why it is stored.
    """
    gate, results = Gate(Options(recipes=("fp8",), baselines=tmp_path)), Results()
    shown: list[str] = []
    (case,) = gate.cases()
    results.add(
        CheckResult(
            "t.py::test_it", "insertion", outcome, "m", "fp8", "embedded", True, about_baseline
        )
    )
    updates: list[object] = []
    monkeypatch.setattr(
        type(gate.store), "update", lambda store, record, **_: updates.append(record)
    )
    record: Any = object()
    monkeypatch.setattr(Case, "to_store", record)

    why = outcomes.fell_short(results, case)
    gate.accept(reason=None, new_only=True, show=shown.append, left_out={case: why} if why else {})

    assert updates == ([record] if stored else [])
    assert ("--update-baselines --reason TEXT" in "".join(shown)) != stored


@pytest.mark.parametrize("falls_short", [True, False])
def test_a_command_is_proposed_where_it_would_store_something(
    pytester: pytest.Pytester, falls_short: bool
) -> None:
    """A case without a baseline that fails elsewhere is accepted by --update-baselines alone, and
    the JUnit file says so too.
    """
    config = pytester.parseconfigure("--junit-xml", "junit.xml")
    junit = private.junit_file(config)
    assert junit is not None
    results = results_of(config)
    outcome = Outcome.FAILED if falls_short else Outcome.PASSED
    results.add(CheckResult("t.py::a", "insertion", outcome, "m", "x", "embedded", True))
    check = CheckResult("t.py::b", "insertion", Outcome.FAILED, "m", "x", "embedded", True, True)
    text = "no baseline\n  accept: pytest --recipe x --new-baselines-only"
    report = pytest.TestReport("t.py::b", ("t.py", 1, "b"), {}, "failed", text, "call")
    report.gate_check = check.as_dict()  # type: ignore[attr-defined]

    junit.pytest_runtest_logreport(report)

    outcomes.correct_commands(config, {"failed": [report], "passed": [object()]})

    (test,) = junit.node_reporters_ordered
    (failure,) = test.to_xml().iter("failure")
    for said in (str(report.longrepr), str(failure.text), str(failure.get("message"))):
        assert said.partition("--recipe x ")[2] == (
            "--update-baselines --reason 'say why'" if falls_short else "--new-baselines-only"
        )


def test_an_architecture_is_a_case_only_where_it_fails() -> None:
    """What holds on the published architectures is counted; what fails on one is shown under its
    name.
    """
    results = Results()
    for model, outcome in (
        ("ViT-B-32", Outcome.PASSED),
        ("ViT-L-14", Outcome.FAILED),
        ("RN50", Outcome.DEPENDENT),
    ):
        results.add(
            CheckResult("t.py::test_it", "insertion", outcome, "m", "fp8", model, see="t.py::first")
        )

    assert [case["model"] for case in results.as_dict()["cases"]] == ["ViT-L-14"]
    assert results.as_dict()["checks"]["counts"] == {"passed": 1, "dependent": 1}


# -- what a failing run shows ----------------------------------------------------------------------

#: Messages as the suites have them: a verdict with blame, limits, problems of a map, a drift.
VERDICT = """{task}: FAIL: the loss exceeds the budget.
  expected: a loss of at most 2.5 points, at alpha 0.05 (baselines/budgets.yaml:32 (tasks.emoji100))
  found: reference 83.50%, quantized 1.20%: -82.30 points, 90% interval [-87.60, -75.29]
    of 1000 samples 824 lost, 1 won
  where: lost with the largest margins: s0000326, s0000412 and 819 more
  Fix: pytest -m accuracy --blame finds the quantizers at fault.

blame, measured on emoji100 (acc1): what turning a group off wins back
  group             off    alone
  layers.0.mlp    +2.34   +33.98
  layers.2.mlp    +0.98   +10.55
  layers.3.mlp    +0.98   +10.55
leaving out layers.0.mlp wins the budget back.
append to the recipe's quant_cfg:
    - quantizer_name: '*layers.0.mlp*'
      enable: false

rerun:  pytest 'tests/test_accuracy.py::test_it'"""
LIMITS = "\n".join(f"{{task}}: measure {n} is 0.9, limit: at most 0.2: EXCEEDED" for n in range(13))
PROBLEM = "\n".join(
    [
        "8 of 132 enabled quantizers never ran:",
        *(f"  layers.{n}.q_bmm" for n in range(12)),
        "Fix: do so.",
    ]
)

MANY = f"""
import warnings
VERDICT, LIMITS, PROBLEM = {VERDICT!r}, {LIMITS!r}, {PROBLEM!r}
tasks = pytest.mark.parametrize("task", [f"task{{n}}/acc1" for n in range(6)])

@tasks
def test_loss(gate, case, check, task): check.problems([VERDICT.replace("{{task}}", task)])

@tasks
def test_limits(gate, case, check, task): check.limits([LIMITS.replace("{{task}}", task)], ("t", "m"))

def test_map(gate, case, check): check.problems([PROBLEM, PROBLEM.replace("never ran", "ran twice")])

@pytest.mark.parametrize("n", range(9))
def test_error(gate, case, n): raise RuntimeError("no room" + "." * n)

def test_assertion(gate, case):
    numbers = list(range(300))
    assert numbers == numbers[1:], "numbers"

@pytest.mark.parametrize("n", range(40))
def test_skipped(gate, case, n): pytest.skip(f"not here {{n}}")

@pytest.mark.parametrize("n", range(40))
def test_dependent(gate, case, check, n): check.problems([PROBLEM.replace("never ran", "ran twice")])

@pytest.mark.parametrize("n", range(5))
def test_open(gate, case, n): raise Inconclusive("cannot decide\\n" + "more\\n" * 20, pytrace=False)

{{more}}
"""
#: Further test functions that fail, each with a cause of its own.
FUNCTIONS = "\n".join(
    f"def test_{n}(gate, case, check): check.problems(['{n}: ' + PROBLEM])" for n in range(20)
)
#: What a run says before pytest's summary, as ``--new-baselines-only`` does.
PRINTS = """
from harness.pytest_plugin.run import print_lines
def test_prints(request): print_lines(request.config, ["not stored: a case", "added: one\\nin two lines"])
"""


@pytest.mark.parametrize(
    ("more", "arguments"), [(FUNCTIONS + PRINTS, ()), ("", ("-q",)), ("", ("-n", "2"))]
)
@pytest.mark.parametrize("in_ci", [True, False], ids=["in CI", "at a keyboard"])
def test_a_failing_run_takes_sixty_lines(
    run_suite: RunSuite,
    more: str,
    arguments: tuple[str, ...],
    in_ci: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However much fails, a run without -v takes 60 lines; they hold what is wrong, a fix, and
    where the rest is.  In CI pytest itself would not cut its lines.
    """
    monkeypatch.delenv("BUILD_NUMBER", raising=False)
    if in_ci:
        monkeypatch.setenv("CI", "true")
    else:
        monkeypatch.delenv("CI", raising=False)
    result = run_suite(MANY.replace("{more}", more), "-ra", *arguments)
    shown = str(result.stdout)

    assert len(result.stdout.lines) <= 60, shown
    assert result.ret == 1
    assert "task0/acc1: FAIL: the loss exceeds the budget" in shown
    assert "Fix:" in shown
    result.stdout.fnmatch_lines(["*Not all is shown above: -v and out/report.html show the rest."])
    assert ("Also failed: " in shown) == bool(more)
    result.stdout.fnmatch_lines(
        ["SKIPPED [[]40[]]*the cause is reported by test_suite.py::test_map*"]
    )
    reasons = [line.partition(" - ")[2] for line in result.stdout.lines if line[:6] == "FAILED"]
    assert max(map(len, reasons)) <= len("and 99 more: ") + 80
    assert "[gw" not in shown
    assert "NotHeld" not in shown
    assert "harness.pytest_plugin" not in shown


def test_a_failing_run_shows_all_with_v(run_suite: RunSuite) -> None:
    """With -v each test that failed says all that it found, and each test that was skipped why."""
    result = run_suite(MANY.replace("{more}", ""), "-ra", "-v")
    shown = str(result.stdout)

    assert shown.count("measure 12 is 0.9") == 6
    assert shown.count("where: lost with the largest margins") == 6
    assert "not here 39" in shown
    assert "harness.pytest_plugin" not in shown


@dataclass(frozen=True)
class Report:
    """A report as far as its text goes."""

    nodeid: str
    longrepr: str


def test_what_is_needed_first_is_shown_first() -> None:
    """Of a message that is cut come its first line, the fix and the numbers, then what would help,
    in their order.
    """
    group = brief.FailedGroup(
        "failed", [Report("t.py::test_it[a]", VERDICT), Report("t.py::test_it[b]", "another thing")]
    )

    few, more = (brief.share_out([group], room)[0] for room in (3, 11))

    assert few == ["{task}: FAIL: the loss exceeds the budget."]
    words = [line.split()[0] for line in more]
    assert words == [
        "{task}:",
        "expected:",
        "found:",
        "of",
        "Fix:",
        "leaving",
        "append",
        "-",
        "enable:",
    ]
