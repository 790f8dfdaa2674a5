"""What is known of ModelOpt without importing it: schemas, and names of quantizers by family and
release.

The file is written by ``python -m harness.tools.known``.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "data" / "known.json.gz"


@dataclass(frozen=True)
class QuantizerPlace:
    """A place for a quantizer: its name, and the module that holds it.

    ``shape`` are the sizes of the weight, or the last size alone of what enters a linear layer;
    None: not known.
    """

    name: str
    module_class: str
    module_kind: str
    shape: tuple[int, ...] | None = None

    @property
    def module(self) -> str:
        """Path of the module."""
        return self.name.rpartition(".")[0]

    @property
    def kind(self) -> str:
        """``weight``, ``q_bmm`` ..."""
        return self.name.rpartition(".")[2].removesuffix("_quantizer")


@dataclass(frozen=True)
class Release:
    """What is known of one release of ModelOpt."""

    version: str
    data: Mapping[str, Any]

    @cached_property
    def families(self) -> dict[str, list[QuantizerPlace]]:
        """The places for quantizers of each family: those of all its architectures together."""
        places_by_family: dict[str, dict[str, QuantizerPlace]] = {}
        for places in self.architectures.values():
            for family, place in places:
                places_by_family.setdefault(family, {}).setdefault(place.name, place)
        return {family: list(places.values()) for family, places in places_by_family.items()}

    @cached_property
    def samples(self) -> list[QuantizerPlace]:
        """One place of those that differ in the number of a layer alone, of each architecture."""
        rows = {
            tuple(map(str, row)): row
            for architecture in self.data["architectures"].values()
            for row in architecture["places"]
        }
        return [next(_places(*row)) for row in rows.values()]

    @cached_property
    def architectures(self) -> dict[str, list[tuple[str, QuantizerPlace]]]:
        """The places of each architecture, each with the family."""
        return {
            name: [
                (architecture["family"], place)
                for row in architecture["places"]
                for place in _places(*row)
            ]
            for name, architecture in self.data["architectures"].items()
        }

    @cached_property
    def widths(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """The sizes at each place, by architecture: of published ones, as far as they are known."""
        return {
            name: {place.name: place.shape for _, place in places if place.shape is not None}
            for name, places in self.architectures.items()
            if name != "embedded"
        }


@lru_cache(maxsize=1)
def releases() -> dict[str, Release]:
    """Return what is known, by release, oldest first."""
    data = json.loads(gzip.decompress(FILE.read_bytes()))["releases"]
    return {version: Release(version, data[version]) for version in sorted(data, key=_numbers)}


def installed() -> Release:
    """Return the release whose schemas count: the installed one, or else the nearest older one that
    is known.
    """
    known = [release for release in releases().values() if "types" in release.data]
    try:
        here = _numbers(metadata.version("nvidia-modelopt"))
    except metadata.PackageNotFoundError:
        return known[-1]
    return next(
        (release for release in reversed(known) if _numbers(release.version) <= here), known[0]
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3]))


def _places(
    name: str,
    ranges: Sequence[Sequence[int]],
    module_class: str,
    module_kind: str,
    shape: Sequence[int] | None,
) -> Iterator[QuantizerPlace]:
    sizes = None if shape is None else tuple(shape)
    if not ranges:
        yield QuantizerPlace(name, module_class, module_kind, sizes)
    for first, last in ranges:
        for number in range(first, last + 1):
            yield QuantizerPlace(
                name.replace("#", str(number), 1), module_class, module_kind, sizes
            )
