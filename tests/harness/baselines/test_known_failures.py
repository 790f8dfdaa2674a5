"""The file of known failures: what it may say, and what it makes of a test."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from harness import places
from harness.baselines import known_failures
from harness.baselines.known_failures import TestOfCase
from harness.checks import registry
from harness.errors import UsageError
from harness.recipes import finding

ENTRY = """known_failures:
  - check: numerics/it
    recipe: int4-*
    only: "*emoji.acc1*"
    says: never ran
    releases: ">=0.41,<0.48"
    until: "2027-05-31"
    owner: somebody
    reason: ModelOpt does not do it.
"""


def written(folder: Path, text: str = ENTRY) -> Path:
    """A folder of baselines with a file of known failures."""
    (folder / known_failures.FILE).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("test", "release", "is_about"),
    [
        (("numerics/it", "int4-awq", "embedded", "int4-awq-embedded-emoji.acc1"), "0.47.0", True),
        (("numerics/it", "int4-awq", "other", "emoji.acc1"), "0.41.0rc1", True),
        (("numerics/it", "int4-awq", "other", "emoji.acc1"), "0.48.0", False),
        (("numerics/it", "int4-awq", "other", "emoji100.acc1"), "0.47.0", False),
        (("numerics/it", "int8", "other", "emoji.acc1"), "0.47.0", False),
        (("accuracy/it", "int4-awq", "other", "emoji.acc1"), "0.47.0", False),
    ],
)
def test_an_entry_is_about_the_tests_that_it_names(
    tmp_path: Path, test: tuple[str, str, str, str], release: str, is_about: bool
) -> None:
    """Check, recipe, parameters and release decide; a candidate counts as its release."""
    (failure,) = known_failures.load(written(tmp_path))
    assert failure.is_about(TestOfCase(*test), release) == is_about


@pytest.mark.parametrize(
    ("message", "day", "problem"),
    [
        ("4 of 7 never ran:\n  a", date(2027, 5, 31), None),
        (None, date(2027, 5, 31), "holds now. Remove its entry"),
        (None, date(2027, 6, 1), "holds now. Remove its entry"),
        ("4 of 7 never ran", date(2027, 6, 1), "ended on 2027-05-31. Fix numerics/it"),
        ("4 of 7 are off", date(2027, 5, 31), "which says 'never ran'"),
    ],
)
def test_a_known_failure_holds_as_listed_only(
    tmp_path: Path, message: str | None, day: date, problem: str | None
) -> None:
    """It may fail as it says until its last day; that it passes is a problem on any day."""
    (failure,) = known_failures.load(written(tmp_path))
    reported = failure.problem(message, day)
    assert reported == problem if problem is None else problem in str(reported)
    assert str(failure).startswith("ModelOpt does not do it (owner somebody, until 2027-05-31, ")
    assert str(failure).endswith(f"{known_failures.FILE}:2)")


@pytest.mark.parametrize(
    ("old", "new", "where", "what"),
    [
        ("numerics/it", "numerics", ":2 ", "is 'numerics'"),
        ("numerics/it", "7", ":2 ", "is 7"),
        ('">=0.41,<0.48"', '"0.41 to 0.48"', ":6 ", "a range of releases is written as"),
        ('"2027-05-31"', "2027-05-31", ":7", "put it in quotes"),
        ('"2027-05-31"', '"2027-02-30"', ":7 ", "a day is written as"),
        ('"2027-05-31"', '"31.5.2027"', ":7 ", "is '31.5.2027'"),
        ("    owner: somebody\n", "", ":2 ", "'owner' is missing"),
        ("owner: somebody", "owner: ' '", ":8 ", "is ' '"),
        ("owner: s", "note: x\n    owner: s", ":8 ", "no setting 'note'"),
        ("    reason: ModelOpt does not do it.\n", "", ":2 ", "'reason' is missing"),
        ("known_failures:", "failures:", "", "'known_failures' is missing"),
        (ENTRY, "known_failures: 3\n", ":1 ", "is 3"),
        (ENTRY, "", "", ""),
        ("[", "[", "", ""),
        ("known_failures:\n", ENTRY, ":10 ", "lists the same tests and releases"),
    ],
)
def test_a_bad_entry_is_one_line(tmp_path: Path, old: str, new: str, where: str, what: str) -> None:
    """A value, a key or a file that cannot be used is refused with its line."""
    text = ENTRY.replace(old, new) if old in ENTRY else old * 5000
    with pytest.raises(UsageError) as refused:
        known_failures.load(written(tmp_path, text))
    assert f"{known_failures.FILE}{where}" in str(refused.value)
    assert what in str(refused.value)
    assert "\n" not in str(refused.value)


def test_names_are_of_recipes_and_checks_that_exist(tmp_path: Path) -> None:
    """A mistyped recipe or check is refused, with the nearest check."""
    failures = known_failures.load(written(tmp_path))
    with pytest.raises(UsageError, match=r"'int4-\*' matches none of fp8, int8"):
        known_failures.check_recipes(failures, ["int8", "fp8"])
    with pytest.raises(UsageError, match=r"no check 'numerics/it'.*Did you mean numerics/its"):
        known_failures.check_checks(failures, ["numerics/its", "accuracy/loss"])


def test_no_file_lists_nothing(tmp_path: Path) -> None:
    """A store without the file has no known failures."""
    assert known_failures.load(tmp_path) == ()


def test_the_packaged_file_is_about_what_exists() -> None:
    """Its recipes and checks exist, and S14 is among them."""
    failures = known_failures.load(places.BASELINES)
    known_failures.check_recipes(failures, [*finding.DEFAULT, *finding.MORE])
    known_failures.check_checks(
        failures, [f"{check.suite}/{check.name}" for check in registry.every()]
    )
    assert "int4-double-quantization" in {check.recipe for check in failures}
