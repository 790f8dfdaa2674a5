"""Known failures: checks that are known to fail, each with an owner, a reason and an end date.

Policy, written and reviewed by people, in ``known_failures.yaml`` next to the budgets::

    known_failures:
      - check: numerics/folded_model_computes_the_same   # suite/name of the check
        recipe: int4-double-quantization                 # name or glob
        model: "*"                                       # optional: name or glob
        only: "*emoji.acc1*"                             # optional: glob over the test's parameters
        says: is not what is stored                      # part of what the failed check says
        releases: ">=0.41,<0.48"                         # of nvidia-modelopt
        until: "2027-03-31"                              # the last day
        owner: somebody
        reason: why it fails, and why that is accepted

A listed check that fails as it *says* is XFAIL with its reason.  One that passes is an error that
says to remove the entry, and one that is past its last day fails.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from harness import files
from harness.baselines import differences
from harness.errors import UsageError

#: The file, in the folder of baselines.
FILE = "known_failures.yaml"

_FIXES = {
    "extra_forbidden": "Correct the name; harness/baselines/known_failures.py shows the layout.",
    "missing": "A known failure needs check, recipe, says, releases, until, owner and reason.",
}


def _specifier(text: str) -> str:
    try:
        SpecifierSet(text)
    except InvalidSpecifier:
        raise ValueError('a range of releases is written as ">=0.41,<0.48"') from None
    return text


def _day(text: str) -> str:
    try:
        date.fromisoformat(text)
    except ValueError:
        raise ValueError('a day is written as "2027-03-31"') from None
    return text


Text = Annotated[str, Field(pattern=r"\S")]
Check = Annotated[str, Field(pattern=r"^[a-z]+/[a-z][a-z0-9_]*$")]
Day = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$"), AfterValidator(_day)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    check: Check
    recipe: Text
    model: Text = "*"
    only: Text = "*"
    says: Text
    releases: Annotated[Text, AfterValidator(_specifier)]
    until: Day
    owner: Text
    reason: Text


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    known_failures: list[_Entry]


@dataclass(frozen=True)
class TestOfCase:
    """A test of a check: what a known failure is about.

    ``parameters`` is what stands in the brackets of the test's id.
    """

    __test__ = False  # not a class of tests, whatever pytest takes the name for

    check: str
    recipe: str
    model: str
    parameters: str = ""


@dataclass(frozen=True)
class KnownFailure:
    """A check that is known to fail for a recipe; ``place`` is where it is written."""

    check: str
    recipe: str
    model: str
    only: str
    says: str
    releases: str
    until: date
    owner: str
    reason: str
    place: str

    def is_about(self, test: TestOfCase, release: str) -> bool:
        """Return whether *test* is listed for a *release* of ModelOpt."""
        names = (
            (test.recipe, self.recipe),
            (test.model, self.model),
            (test.parameters, self.only),
        )
        is_named = all(fnmatch.fnmatchcase(name, pattern) for name, pattern in names)
        is_of_release = differences.release(release) in SpecifierSet(self.releases)
        return is_named and test.check == self.check and is_of_release

    def __str__(self) -> str:
        reason = self.reason.rstrip(".")
        return f"{reason} (owner {self.owner}, until {self.until}, {self.place})"

    def problem(self, message: str | None, today: date) -> str | None:
        """Return why the check may not fail as it is listed to, or None where it may.

        Args:
            message: what the failed check says, None where it passed.
            today: the day of the run.
        """
        if message is None:
            return (
                f"the known failure {self.check} of {self.recipe} holds now. Remove its entry: "
                f"{self.place}."
            )
        if today > self.until:
            return (
                f"the known failure of {self.place} ended on {self.until}. Fix {self.check}, or "
                f"ask {self.owner} for a later day with a reason."
            )
        if self.says not in message:
            return (
                f"not the known failure of {self.place}, which says {self.says!r}. Fix it, or "
                f"correct the entry."
            )
        return None


def load(baselines: Path) -> tuple[KnownFailure, ...]:
    """Return the known failures of a folder of *baselines*; none where it has no such file.

    Raises:
        UsageError: the file cannot be used, or lists the same twice.
    """
    path = baselines / FILE
    if not files.exists(path):
        return ()
    content, place = files.read_yaml_with_places(
        path, _File, what="file of known failures", fixes=_FIXES
    )
    failures: list[KnownFailure] = []
    for number, entry in enumerate(content.known_failures):
        where = place("known_failures", number)
        values = entry.model_dump() | {"until": date.fromisoformat(entry.until)}
        failure = KnownFailure(**values, place=where.partition(" (")[0])
        for other in failures:
            if _tests(other) == _tests(failure):
                what = f"lists the same tests and releases as {other.place}"
                raise UsageError(where, what, "Join the two entries.")
        failures.append(failure)
    return tuple(failures)


def _tests(failure: KnownFailure) -> tuple[str, ...]:
    return failure.check, failure.recipe, failure.model, failure.only, failure.releases


def check_recipes(failures: Iterable[KnownFailure], recipes: Collection[str]) -> None:
    """Refuse entries that are about none of the known *recipes*.

    Raises:
        UsageError: an entry is about none of them.
    """
    for failure in failures:
        if not fnmatch.filter(recipes, failure.recipe):
            what = f"recipe {failure.recipe!r} matches none of {', '.join(sorted(recipes))}"
            raise UsageError(failure.place, what, "Correct the name or remove the entry.")


def check_checks(failures: Iterable[KnownFailure], checks: Collection[str]) -> None:
    """Refuse entries that are about none of the gate's *checks* (suite/name).

    Raises:
        UsageError: an entry is about none of them.
    """
    for failure in failures:
        if failure.check not in checks:
            near = difflib.get_close_matches(failure.check, checks, n=1, cutoff=0.5)
            fix = f"Did you mean {near[0]}? " if near else ""
            raise UsageError(
                failure.place,
                f"there is no check {failure.check!r}",
                f"{fix}docs/checks.md lists the checks.",
            )
