"""Every test of the suites calls one registered check, and every registered check has one test."""

from __future__ import annotations

import ast

import pytest

from harness.checks import registry
from harness.checks.registry import Check, NotJudged, Values
from harness.gate.case import Case
from harness.gate.options import Options
from harness.gate.session import Gate
from harness.places import SUITES


def calls_of(source: str) -> dict[str, set[tuple[str, str]]]:
    """The (module, function) pairs that each test function of *source* calls, by the test's
    name.
    """
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            called = {call.func for call in ast.walk(node) if isinstance(call, ast.Call)}
            found[node.name] = {
                (func.value.id, func.attr)
                for func in called
                if isinstance(func, ast.Attribute) and isinstance(func.value, ast.Name)
            }
    return found


def amiss(suite: str, source: str) -> list[str]:
    """What differs between the tests of *source* and the registered checks of *suite*."""
    tests = calls_of(source)
    names = {check.name for check in registry.every() if check.suite == suite}
    untested = [
        f"check {name} has no test" for name in sorted(names) if f"test_{name}" not in tests
    ]
    unregistered = [
        f"{test} has no check" for test in tests if test.removeprefix("test_") not in names
    ]
    uncalled = [
        f"{test} does not call its check"
        for test, called in tests.items()
        if test.removeprefix("test_") in names and (suite, test.removeprefix("test_")) not in called
    ]
    return untested + unregistered + uncalled


@pytest.mark.parametrize("suite", registry.SUITES)
def test_tests_and_checks_are_the_same(suite: str) -> None:
    """Each test of a suite calls the check of its name, and each check of the suite has such a
    test.
    """
    assert amiss(suite, (SUITES / f"test_{suite}.py").read_text()) == []


def test_every_suite_is_compared() -> None:
    """No file of tests beside the proof's is left out of the comparison."""
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
        f"test_{name} does not call its check"
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
