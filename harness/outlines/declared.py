"""Faults of shipped recipes that were looked at: defects of ModelOpt, and what is meant so."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import yaml

from harness.outlines.rules import ShapeFault

FILE = Path(__file__).parent / "declared.yaml"


@dataclass(frozen=True)
class Declared:
    """A kind of fault that fails no run, and the reason.

    Attributes:
        rule: the rule that finds it.
        recipes: globs over the names of recipes in their tree.
        architectures: globs over the names of architectures.
        kind: ``defect`` of ModelOpt, or ``meant``.
        reason: why it is as it is.
        releases: the releases of ModelOpt whose recipes have it; empty: those that are known.
    """

    rule: str
    recipes: tuple[str, ...]
    architectures: tuple[str, ...]
    kind: str
    reason: str
    releases: tuple[str, ...] = ()

    def covers(self, recipe: str, fault: ShapeFault) -> bool:
        """Whether *fault* of *recipe* is of this kind."""
        return (
            fault.rule == self.rule
            and any(fnmatch.fnmatchcase(recipe, item) for item in self.recipes)
            and any(fnmatch.fnmatchcase(fault.architecture, item) for item in self.architectures)
        )


@lru_cache(maxsize=1)
def every() -> tuple[Declared, ...]:
    """All that is declared."""
    rows = cast("list[dict[str, Any]]", yaml.safe_load(FILE.read_text(encoding="utf-8")))
    return tuple(
        Declared(
            row["rule"],
            tuple(row["recipes"]),
            tuple(row["architectures"]),
            row["kind"],
            " ".join(row["reason"].split()),
            tuple(row.get("releases", ())),
        )
        for row in rows
    )


def of_release() -> tuple[Declared, ...]:
    """What is declared of the recipes of the installed release."""
    release = metadata.version("nvidia-modelopt")
    return tuple(item for item in every() if not item.releases or release.startswith(item.releases))


def reason(recipe: str, fault: ShapeFault) -> str:
    """Why *fault* of *recipe* is declared; empty where it is not."""
    results = next((item for item in of_release() if item.covers(recipe, fault)), None)
    return "" if results is None else f"{results.kind}: {results.reason}"
