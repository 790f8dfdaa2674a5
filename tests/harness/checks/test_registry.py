"""Every test of the suites calls one registered check, and every registered check has one test."""

from __future__ import annotations

import ast
import inspect
import runpy
from collections.abc import Callable
from typing import Any

import pytest

from harness.checks import registry
from harness.checks.registry import Check, NotJudged, Values
from harness.gate.case import Case
from harness.gate.options import Options
from harness.gate.session import Gate
from harness.places import SUITES

#: Methods of the fixture ``check`` that turn what a check returned into an outcome.
JUDGES = ("problems", "verdict", "drift", "limits")


def judged_in(test: ast.FunctionDef) -> set[tuple[str, str]]:
    """The (module, function) pairs whose result a test hands to its fixture ``check``, whatever
    else happens in it.
    """
    judged = set()
    for statement in test.body:
        match statement:
            case ast.Expr(
                ast.Call(
                    func=ast.Attribute(value=ast.Name("check"), attr=judge),
                    args=[
                        ast.Call(func=ast.Attribute(value=ast.Name(module), attr=function)),
                        *_,
                    ],
                )
            ) if judge in JUDGES:
                judged.add((module, function))
    return judged


def amiss(suite: str, source: str) -> list[str]:
    """What differs between the tests of *source* and the registered checks of *suite*."""
    tests = {
        node.name: judged_in(node)
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    names = {check.name for check in registry.every() if check.suite == suite}
    untested = [
        f"check {name} has no test" for name in sorted(names) if f"test_{name}" not in tests
    ]
    unregistered = [
        f"{test} has no check" for test in tests if test.removeprefix("test_") not in names
    ]
    unjudged = [
        f"{test} does not judge what its check returns"
        for test, judged in tests.items()
        if test.removeprefix("test_") in names and (suite, test.removeprefix("test_")) not in judged
    ]
    return untested + unregistered + unjudged


def parametrized(test: Callable[..., None]) -> dict[str, list[Any]]:
    """The values that a test's own marks give, by parameter."""
    marks = [mark for mark in getattr(test, "pytestmark", ()) if mark.name == "parametrize"]
    return {mark.args[0]: list(mark.args[1]) for mark in marks}


def ranged_over(check: Check) -> dict[str, list[Any]]:
    """The values of a check's parameters, by name, but for those that a case has (pytest gets them
    from the run) and those that the function has by default.
    """
    accepted = inspect.signature(check.run).parameters
    fixed = {name: list(of) for name, of in check.values.items() if not callable(of)}
    return {name: of for name, of in fixed.items() if of != [accepted[name].default]}


@pytest.mark.parametrize("suite", registry.SUITES)
def test_tests_and_checks_are_the_same(suite: str) -> None:
    """Each test of a suite calls the check of its name, and each check of the suite has such a
    test.
    """
    assert amiss(suite, (SUITES / f"test_{suite}.py").read_text()) == []


@pytest.mark.parametrize("suite", registry.SUITES)
def test_tests_range_over_the_values_of_their_checks(suite: str) -> None:
    """A test is parametrized with the registered values of its check, all of them in their order:
    the proof and a run look at the same.
    """
    tests = runpy.run_path(str(SUITES / f"test_{suite}.py"))
    checks = [check for check in registry.every() if check.suite == suite]

    values = {check.name: parametrized(tests[f"test_{check.name}"]) for check in checks}

    assert values == {check.name: ranged_over(check) for check in checks}


def test_every_suite_is_compared() -> None:
    """No file of tests next to the proof's is left out of the comparison."""
    files = {path.stem.removeprefix("test_") for path in SUITES.glob("test_*.py")}

    assert files - {"proof"} == set(registry.SUITES)


def test_a_deleted_or_foreign_test_is_noticed() -> None:
    """A check without a test, a test without a check and a test that calls another check are three
    differences.
    """
    source = (SUITES / "test_checkpoint.py").read_text()
    name = "restored_model_is_the_saved_one"

    assert amiss("checkpoint", "") == [f"check {name} has no test"]
    assert amiss("checkpoint", f"{source}\n\ndef test_else(): pass\n") == ["test_else has no check"]
    assert amiss("checkpoint", source.replace(f"checkpoint.{name}", "checkpoint.lost")) == [
        f"test_{name} does not judge what its check returns"
    ]


@pytest.mark.parametrize(
    "body",
    [
        "orphans.no_baseline_is_orphaned(gate)",
        "check.problems([]); orphans.no_baseline_is_orphaned(gate)",
        "check.keep(orphans.no_baseline_is_orphaned(gate))",
        "check.problems([*orphans.no_baseline_is_orphaned(gate)][:0])",
        "if gate.cases(): check.problems(orphans.no_baseline_is_orphaned(gate))",
    ],
)
def test_a_check_whose_result_is_dropped_is_noticed(body: str) -> None:
    """To call the check is not enough: what it returns decides about the test, always."""
    name = "test_no_baseline_is_orphaned"

    assert amiss("orphans", f"def {name}(gate, check):\n    {body}") == [
        f"{name} does not judge what its check returns"
    ]


def both(case: Case, letter: str, number: int) -> list[str]:
    """A check of two parameters that finds something for b, and for 2 nothing to judge."""
    if number == 2:
        raise NotJudged("two")
    return [f"{case.id} {letter} {number}"] if letter == "b" else []


def test_problems_are_those_of_all_values() -> None:
    """A check runs for every combination of its parameters; what cannot be judged is left out,
    *only* chooses.
    """
    gate = Gate(Options(recipes=("fp8",)))
    (case,) = gate.cases()
    values: dict[str, Values] = {"letter": ("a", "b"), "number": lambda case: (1, 2, 3)}
    check = Check("insertion", "of_two_parameters", both, values=values)

    assert list(check.problems(case)) == ["fp8-embedded b 1", "fp8-embedded b 3"]
    assert list(check.problems(case, {"number": (3,), "other": ()})) == ["fp8-embedded b 3"]
    assert check.title == "of two parameters"


NEEDED = {
    "rules_of_shape_hold": ("architecture_name",),
    "no_baseline_is_orphaned": ("session",),
    "reference_forward": ("benchmark",),
    "quantized_forward": ("benchmark",),
    "loss_is_won_back": ("tuned",),
    "calibration_did_not_move": ("tuned",),
    "trained_model_is_restored": ("tuned",),
}


def test_what_a_test_alone_has_is_known() -> None:
    """Checks of speed, of fine-tuned models and of a whole run say which of their parameters the
    registry cannot give; no other check has any.
    """
    needed_by_check = {check.name: check.needs_fixture for check in registry.every()}

    assert {name: needed for name, needed in needed_by_check.items() if needed} == NEEDED


@pytest.mark.parametrize("name", NEEDED)
def test_a_check_that_needs_a_fixture_is_refused(name: str) -> None:
    """It says what is missing and how to run it, before anything is measured."""
    (check,) = (check for check in registry.every() if check.name == name)
    (case,) = Gate(Options(recipes=("fp8",))).cases()

    with pytest.raises(TypeError, match=f"needs {NEEDED[name][0]}, .* run pytest .*::test_{name}"):
        list(check.problems(case))


@pytest.mark.parametrize(
    ("suite", "name"), [("nowhere", "a_check"), ("insertion", "every_pattern_matches")]
)
def test_a_check_is_registered_once_and_in_a_suite(suite: str, name: str) -> None:
    """Another suite than the gate's, or a name that is taken, is an error when the module is
    imported.
    """
    registry.every()

    def run() -> list[str]:
        return []

    run.__name__ = name
    with pytest.raises(ValueError, match=name):
        registry.check(suite)(run)
