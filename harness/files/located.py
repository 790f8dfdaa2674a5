"""Data of a file that know where in it they are, which lets a message name the line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.files.messages import cut


class Place(str):
    """``file:line`` of something that a file holds, which also knows its column.

    Attributes:
        path: the file.
        line: from 1.
        column: from 1.
    """

    __slots__ = ("column", "line", "path")
    path: Path
    line: int
    column: int

    @classmethod
    def make(cls, path: Path, line: int, column: int = 1) -> Place:
        """Return the place at a *line* and *column* of the file *path*."""
        place = cls(f"{cut(path)}:{line}")
        place.path, place.line, place.column = path, line, column
        return place

    @classmethod
    def at(cls, path: Path, mark: Any) -> Place:
        """Return the place of PyYAML's *mark* in the file *path*."""
        return cls.make(path, mark.line + 1, mark.column + 1)

    @classmethod
    def of(cls, place: str, more: str) -> str:
        """Return *place*, described more closely: ``file:line, algorithm max``."""
        text = f"{place}{more}"
        if not isinstance(place, Place):
            return text
        closer = cls(text)
        closer.path, closer.line, closer.column = place.path, place.line, place.column
        return closer


def spot(place: str | Path) -> str:
    """Return ``file:line:column`` of a *place*, or an empty string where no line is known."""
    return f"{place.path}:{place.line}:{place.column}" if isinstance(place, Place) else ""


class Located(dict[Any, Any]):
    """A mapping that knows its place, which lets a message name the place of an entry, and those of
    its keys.
    """

    place: str = ""

    def __init__(self, *items: Any) -> None:
        super().__init__(*items)
        self.places: dict[Any, Place] = {}


class LocatedList(list[Any]):
    """A list that knows the places of its items, and of imported ones where the document at hand
    imports them.
    """

    def __init__(self, items: Iterable[Any] = (), places: Iterable[str] = ()) -> None:
        super().__init__(items)
        self.places = list(places)
        self.imported_at: dict[int, str] = {}

    def add(self, item: Any, place: str, imported_at: str = "") -> None:
        """Append *item*, which is at *place*."""
        if imported_at:
            self.imported_at[len(self)] = imported_at
        self.append(item)
        self.places.append(place)


def place_at(value: Any, keys: Iterable[Any], place: str) -> str:
    """Return the place of what is in *value* at *keys*: of the last one on the way there whose
    place is known.

    Args:
        value: data of a file, with their places.
        keys: names and numbers that lead into it; a name that is not there ends the way.
        place: where *value* itself is.
    """
    for key in keys:
        if isinstance(value, Located):
            place = value.places.get(key, place)
        elif isinstance(value, LocatedList) and isinstance(key, int) and key < len(value.places):
            place = value.places[key]
        try:
            value = value[key]
        except (LookupError, TypeError):
            break
    return place


def named_place(value: Any, what: str, place: str) -> str:
    """Return the place of the key of *value* that *what* names first, or else *place*."""
    keys: list[tuple[int, str]] = []
    _find_named(value, what, keys)
    return min(keys, key=lambda key: key[0], default=(0, place))[1]


def _find_named(value: Any, what: str, keys: list[tuple[int, str]]) -> None:
    is_list = isinstance(value, (list, tuple))
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value) if is_list else ()
    for key, item in pairs:
        match = (
            re.search(rf"(?<![\w.]){re.escape(str(key))}(?!\w)", what)
            if isinstance(key, str)
            else None
        )
        if match is not None and isinstance(value, Located) and key in value.places:
            keys.append((match.start(), value.places[key]))
        if isinstance(item, (Mapping, LocatedList)):
            _find_named(item, what, keys)
