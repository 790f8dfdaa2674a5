"""What ModelOpt makes of the entries of a ``quant_cfg``: which quantizers each one touches, and
what they end as.

This is the one place in which ModelOpt's rules of matching are written down a second time
(``_match_quantizer`` and ``set_quantizer_by_cfg`` of ``modelopt.torch.quantization.conversion``).
The tests compare it with ModelOpt's own answer on every recipe that ModelOpt ships.

* Entries apply in order; each sets what it names, so the last one that touches a quantizer wins.
* A pattern is a glob over a quantizer's whole name.  Braces mean nothing.
* ``parent_class`` asks for the class of the module that holds the quantizer, subclasses not
  included.
* A list of attributes makes a sequence: ``weight_quantizer.0``, ``weight_quantizer.1``.  Its parts
  have names of their own, which later entries can match; weights' and inputs' parts match by the
  name of the sequence as well.
* An entry without attributes only switches; one with attributes replaces all of them.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

#: The class of the module that holds a quantizer, by the quantizer's name (without the number of a
#: part).
Places = Mapping[str, str]
Attributes = dict[str, object]

_PART = re.compile(r"(_quantizer)(?:\.\d+)+$")
_OF_A_SEQUENCE = re.compile(r"(weight_quantizers?|input_quantizers?)\.\d+(?=$|\.)")


class AppliedEntry(Protocol):
    """What is asked of an entry (:class:`harness.recipes.loading.Entry`)."""

    @property
    def pattern(self) -> str:
        """Glob over the names of quantizers."""

    @property
    def parent_class(self) -> str | None:
        """Class of the module that holds them, or None for any."""

    @property
    def enable(self) -> bool:
        """On or off."""

    @property
    def cfg(self) -> Attributes | list[Attributes] | None:
        """Attributes, of each part for a sequence, or None."""


class Placed(Protocol):
    """What is asked of a quantizer (a row of the quantizer map): its name, and the module that
    holds it.
    """

    @property
    def name(self) -> str:
        """Its whole name, ``text_model.encoder.layers.0.mlp.fc1.weight_quantizer``."""

    @property
    def kind(self) -> str:
        """``weight``, ``q_bmm``; of a part of a sequence ``weight.0``."""

    @property
    def module(self) -> str:
        """Path of the module that holds it."""

    @property
    def module_class(self) -> str:
        """The class of that module, as the library names it that the model is from."""

    @property
    def module_kind(self) -> str:
        """``linear``, ``attention``, ``patch_embedding`` ..."""


@dataclass(frozen=True)
class AppliedSetting:
    """What the entries leave of one quantizer.

    ``cfg`` are its attributes as written (None: ModelOpt's defaults); ``switched`` is the index of
    the entry that turned it on or off, ``shaped`` of the one that gave the attributes.
    """

    enable: bool
    cfg: Attributes | None
    switched: int
    shaped: int | None


@dataclass(frozen=True)
class Applied:
    """The entries of a recipe, applied to the places of a model.

    ``touched`` holds for each entry the places that it names; ``settings`` what each quantizer ends
    as, by its full name, if any entry touched it; ``nested`` the places where an entry made a
    sequence within a sequence.
    """

    touched: tuple[frozenset[str], ...]
    settings: dict[str, AppliedSetting]
    nested: frozenset[str]


@lru_cache(maxsize=1 << 16)
def place_of(name: str) -> str:
    """Return the name of a quantizer without its number within a sequence."""
    return _PART.sub(r"\1", name)


def matches(pattern: str, name: str) -> bool:
    """Whether the glob *pattern* matches the quantizer *name* in ModelOpt's way."""
    if fnmatch.fnmatchcase(name, pattern):
        return True
    shorter = _singular(name)
    return shorter != name and fnmatch.fnmatchcase(shorter, pattern)


@lru_cache(maxsize=1 << 16)
def _singular(name: str) -> str:
    """The name that ModelOpt also compares for a quantizer of a list: ``weight_quantizer`` for
    ``weight_quantizers.3``.

    Kept, as every entry is compared with the same names.
    """
    return _OF_A_SEQUENCE.sub(lambda match: match[1].removesuffix("s"), name)


def is_of(parent_class: str | None, module_class: str) -> bool:
    """Whether a module of the class named *module_class* is what ``parent_class`` asks for."""
    return parent_class is None or parent_class.rpartition(".")[2] == module_class


def speaks_of(entry: AppliedEntry, name: str, module_class: str) -> bool:
    """Whether *entry* touches the quantizer *name* of a module of that class, itself or through its
    sequence.
    """
    if not is_of(entry.parent_class, module_class):
        return False
    return matches(entry.pattern, name) or matches(entry.pattern, place_of(name))


def last_about(entries: Sequence[AppliedEntry], name: str, module_class: str) -> int | None:
    """Return the number of the last of *entries* that speaks of the quantizer *name*, or None."""
    numbers = reversed(range(len(entries)))
    return next((n for n in numbers if speaks_of(entries[n], name, module_class)), None)


def apply(entries: Sequence[AppliedEntry], places: Places) -> Applied:
    """Return what ModelOpt makes of *entries* on a model that has quantizers at *places*."""
    roots = {place: _Node() for place in places}
    nested: set[str] = set()
    touched: list[frozenset[str]] = []
    for index, entry in enumerate(entries):
        places_touched = set()
        for place, module_class in places.items():
            for path, node in list(roots[place].walk()):
                name = ".".join((place, *map(str, path)))
                # The module that holds a part is the sequence, which is of no class that an entry
                # can ask for.
                is_class = entry.parent_class is None or (
                    not path and is_of(entry.parent_class, module_class)
                )
                if is_class and matches(entry.pattern, name):
                    places_touched.add(place)
                    _set(roots, place, path, node, entry, index, nested)
        touched.append(frozenset(places_touched))
    settings = {
        ".".join((place, *map(str, path))): setting
        for place, root in roots.items()
        for path, node in root.walk()
        if (setting := node.setting) is not None
    }
    return Applied(tuple(touched), settings, frozenset(nested))


class _Node:
    """A quantizer, or a sequence of them (``parts``)."""

    def __init__(self) -> None:
        self.parts: list[_Node] | None = None
        self.setting: AppliedSetting | None = None

    def walk(self, path: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], _Node]]:
        """Yield the node and those below it, in the order of ``named_modules``, each with its
        path.
        """
        yield path, self
        for number, part in enumerate(self.parts or ()):
            yield from part.walk((*path, number))

    def switch(self, enable: bool, index: int) -> None:
        """Turn on or off, every part of a sequence."""
        for part in self.parts or ():
            part.switch(enable, index)
        if self.parts is None:
            before = self.setting
            shaped = (before.cfg, index, before.shaped) if before else (None, index, None)
            self.setting = AppliedSetting(enable, *shaped)

    def shape(self, cfg: Attributes, enable: bool, index: int) -> None:
        """Give attributes, the same to every part of a sequence."""
        for part in self.parts or ():
            part.shape(cfg, enable, index)
        if self.parts is None:
            self.setting = AppliedSetting(enable, cfg, index, index)


def _set(
    roots: dict[str, _Node],
    place: str,
    path: tuple[int, ...],
    node: _Node,
    entry: AppliedEntry,
    index: int,
    nested: set[str],
) -> None:
    """Apply *entry* to the quantizer or sequence *node*, which is replaced where its form
    changes.
    """
    siblings, last = _holder(roots, place, path)
    if siblings is None or siblings[last] is not node:
        return  # a part of what this entry has just replaced
    if entry.cfg is None:
        node.switch(entry.enable, index)
        return
    if isinstance(entry.cfg, list):
        if node.parts is None:
            node = siblings[last] = _Node()
            node.parts = [_Node() for _ in entry.cfg]
            if path:
                nested.add(place)
        assert node.parts is not None
        for cfg, part in zip(entry.cfg, node.parts, strict=False):
            part.shape(cfg, entry.enable, index)
        return
    if node.parts is not None:
        node = siblings[last] = _Node()
    node.shape(entry.cfg, entry.enable, index)


def _holder(roots: dict[str, _Node], place: str, path: tuple[int, ...]) -> tuple[Any, Any]:
    """Where the node at *path* of *place* is kept: a container and the key in it; (None, None) if
    there is not one.
    """
    if not path:
        return roots, place
    node = roots[place]
    for number in path[:-1]:
        if node.parts is None or number >= len(node.parts):
            return None, None
        node = node.parts[number]
    if node.parts is None or path[-1] >= len(node.parts):
        return None, None
    return node.parts, path[-1]


def matched(quantizers: Iterable[Placed], entry: AppliedEntry) -> set[str]:
    """Names of the quantizers that *entry* speaks of, as they are now: globs over whole names, case
    and all.

    Parts of a sequential quantizer also go by their holder's name.  What an entry names while the
    entries before it are applied is :func:`applied_to`'s to say.
    """
    return {q.name for q in quantizers if speaks_of(entry, q.name, q.module_class)}


def applied_to(quantizers: Iterable[Placed], entries: Sequence[AppliedEntry]) -> Applied:
    """Return what ModelOpt makes of *entries* on the model that has *quantizers*."""
    return apply(entries, places((q.name, q.module_class) for q in quantizers))


def places(names: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Places, by the names of quantizers (parts of sequences among them) and the classes of their
    modules.
    """
    return {place_of(name): module_class for name, module_class in names}
