"""Which quantizers of the known families the entries of a recipe touch, fast enough for a whole
tree of recipes.

A family has thousands of names, and ModelOpt's rules of matching (:mod:`harness.recipes.applied`)
go through all of them for every entry.  Quantizers that the entries of a recipe do not distinguish
end alike, so one of each kind is enough: names are compared once per pattern, and the rules run on
one name of each group.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from harness.lint.known import QuantizerPlace
from harness.recipes import applied
from harness.recipes.applied import Applied, AppliedEntry

#: A pattern without these treats every number of a layer alike: a digit behind a letter ("bmm2") is
#: not one of those.
_TELLS_NUMBERS = re.compile(r"(?<![A-Za-z_0-9])\d|\?|\[[^\]]*[-!\d]")
_NUMBER = re.compile(r"\.\d+(?=\.)")


def tells_numbers(pattern: str) -> bool:
    """Whether *pattern* matches some layers and not others, by their numbers."""
    return _TELLS_NUMBERS.search(pattern) is not None


@dataclass(frozen=True)
class Touched:
    """The effect of a recipe's entries on one family: on one place of each group, and by its name
    the bits of the group.
    """

    applied: Applied
    groups: dict[str, int]


class FamilyPlaces:
    """The places for quantizers of one family of model, as bits of whole numbers."""

    def __init__(self, name: str, places: Sequence[QuantizerPlace]) -> None:
        self.name = name
        self.places = tuple(places)
        self.modules = frozenset(
            part for place in places for part in place.name.split(".") if not part.isdigit()
        )
        self.all = (1 << len(self.places)) - 1
        rows: dict[tuple[str, str], list[int]] = {}
        for index, place in enumerate(self.places):
            rows.setdefault((_NUMBER.sub(".#", place.name), place.module_class), []).append(index)
        self._rows = [(indices[0], _bits(indices)) for indices in rows.values()]
        self.first_of_rows = [first for first, _ in self._rows]
        self.matching = lru_cache(maxsize=4096)(self._matching)
        self._of_class = lru_cache(maxsize=64)(self._find_class)

    def touched(self, entries: Sequence[AppliedEntry]) -> Touched:
        """Return what ModelOpt makes of *entries* here, by one place of each group that they do not
        distinguish.
        """
        groups = [self.all] if self.all else []
        for mask in dict.fromkeys(mask for entry in entries for mask in self._masks(entry)):
            groups = [part for group in groups for part in (group & mask, group & ~mask) if part]
        chosen: dict[str, int] = {}
        places: dict[str, str] = {}
        for group in groups:
            place = self.places[(group & -group).bit_length() - 1]
            chosen[place.name] = group
            places[place.name] = place.module_class
        return Touched(applied.apply(entries, places), chosen)

    def of(self, group: int) -> list[QuantizerPlace]:
        """Return the places of a *group*."""
        return [place for index, place in enumerate(self.places) if group >> index & 1]

    def _masks(self, entry: AppliedEntry) -> list[int]:
        """The places that *entry* speaks of, and those of which it speaks as the parts of a
        sequence.
        """
        of_class = self._of_class(entry.parent_class)
        masks = [self.matching(entry.pattern, "")]
        if "_quantizer." in entry.pattern or isinstance(entry.cfg, list):
            masks += [self.matching(entry.pattern, f".{number}") for number in range(4)]
        return [mask & of_class for mask in masks]

    def _matching(self, pattern: str, part: str) -> int:
        if tells_numbers(pattern):
            return _bits(
                n
                for n, place in enumerate(self.places)
                if applied.matches(pattern, place.name + part)
            )
        mask = 0
        for first, row in self._rows:
            if applied.matches(pattern, self.places[first].name + part):
                mask |= row
        return mask

    def _find_class(self, parent_class: str | None) -> int:
        return _bits(
            n
            for n, place in enumerate(self.places)
            if applied.is_of(parent_class, place.module_class)
        )


def _bits(indices: Iterable[int]) -> int:
    mask = 0
    for index in indices:
        mask |= 1 << index
    return mask
