"""Which architectures ``--architectures`` names; torch is not imported for it."""

from __future__ import annotations

import difflib
from functools import lru_cache

from harness import errors
from harness.errors import UsageError
from harness.lint.known import installed
from harness.outlines.table import PUBLISHED

#: Means every architecture.
ALL = "all"
#: Families of :mod:`harness.models.architectures` that the table has as well.
CONTRASTIVE = ("clip", "siglip", "siglip2")
#: Names that are proposed for an unknown one.
_PROPOSED = 3
#: Characters of a name that are repeated.
_SHOWN = 60


@lru_cache(maxsize=1)
def by_family() -> dict[str, tuple[str, ...]]:
    """The names of all architectures, by family."""
    results: dict[str, list[str]] = {}
    for row in PUBLISHED:
        results.setdefault(row.family, []).append(row.name)
    for name, known in installed().data["architectures"].items():
        if known["family"] in CONTRASTIVE and name != "embedded":
            results.setdefault(known["family"], []).append(name)
    return {family: tuple(names) for family, names in results.items()}


def chosen(value: str) -> tuple[str, ...]:
    """The names in *value*: ``all``, or names with commas, in upper or lower case.

    Raises:
        UsageError: an architecture is unknown.
    """
    every = [name for names in by_family().values() for name in names]
    asked = [name.strip() for name in value.split(",")]
    if asked == [ALL]:
        return tuple(every)
    known = {name.lower(): name for name in every}
    refused = [_unknown(name, known) for name in asked if name.lower() not in known]
    errors.raise_all(refused)
    return tuple(dict.fromkeys(known[name.lower()] for name in asked))


def _unknown(name: str, known: dict[str, str]) -> UsageError:
    """The line that refuses *name*, with the nearest names."""
    short = name.lower()[:_SHOWN]
    where = f"--architectures {name[:_SHOWN]}".rstrip()
    if short == ALL:
        return UsageError(where, "stands for every architecture", "Leave out the other names.")
    near = [known[lower] for lower in known if len(short) > 2 and short in lower]
    near += [
        known[lower] for lower in difflib.get_close_matches(short, list(known), _PROPOSED, 0.5)
    ]
    proposed = " or ".join(list(dict.fromkeys(near))[:_PROPOSED])
    fix = f"Did you mean {proposed}? " if proposed else ""
    listed = "pytest --list-architectures lists all names."
    return UsageError(where, "is not an architecture of the table", f"{fix}{listed}")
