"""Quantizer maps and recipes for tests, made by hand."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.models import families
from harness.problems import Problem
from harness.quantization import maps
from harness.quantization.maps import Amax, Quantizer, QuantizerMap
from harness.recipes.loading import Entry, Recipe

INF, NAN = math.inf, math.nan
OWN = Path("recipes/r.yaml")
QKV = ("q_bmm", "k_bmm", "v_bmm")
FUSED = (*QKV, "bmm2_output")


def amax(low: float = 1.0, high: float = 1.0, digest: str = "same", count: int = 1) -> Amax:
    """A range; by default of one value, 1."""
    return Amax(count, low, high, digest)


def at(name: str, **other: Any) -> Quantizer:
    """An enabled static FP8 quantizer that ran once, of a linear layer of the tower that its name
    begins with.
    """
    facts: dict[str, Any] = {
        "name": name,
        "kind": maps.kind_of(name),
        "tower": name.partition(".")[0],
        "layer": families.layer_of(name),
        "module_class": "Linear",
        "module_kind": "linear",
        "format": "E4M3",
        "granularity": "per-tensor",
        "enabled": True,
        "dynamic": False,
        "calls": 1,
        "amax": amax(),
    }
    return Quantizer(**facts | other)


def attention(block: str, kinds: Iterable[str] = FUSED, **other: Any) -> QuantizerMap:
    """The quantizers around the attention of *block*."""
    facts = {"module_class": "CLIPAttention", "module_kind": "attention"} | other
    return tuple(at(f"{block}.{kind}_quantizer", **facts) for kind in kinds)


def without(quantizers: QuantizerMap, *names: str) -> QuantizerMap:
    """*quantizers* with the quantizers *names* off."""
    assert set(names) <= {q.name for q in quantizers}
    return tuple(replace(q, enabled=q.enabled and q.name not in names) for q in quantizers)


def on(pattern: str, parent: str | None = None, origin: str = f"{OWN}:5") -> Entry:
    """An entry that enables, of the recipe's own file."""
    return Entry(pattern, parent, True, {"num_bits": (4, 3)}, origin)


def off(pattern: str, parent: str | None = None, origin: str = f"{OWN}:7") -> Entry:
    """An entry that turns off, of the recipe's own file."""
    return Entry(pattern, parent, False, None, origin)


def imported(pattern: str) -> Entry:
    """An entry of a deny-list that the recipe imports."""
    return off(pattern, origin="units/deny.yaml:3")


def recipe(
    *entries: Entry, path: Path | None = OWN, name: str = "r", candidates: tuple[Recipe, ...] = ()
) -> Recipe:
    """A recipe of *entries*."""
    return Recipe(
        name,
        name,
        path,
        {},
        "max",
        entries,
        (),
        "",
        "auto_quantize" if candidates else "ptq",
        candidates,
    )


def searching(*formats: tuple[Entry, ...]) -> Recipe:
    """A search among formats named ``format 1`` and on."""
    formats_of_search = tuple(
        recipe(*entries, name=f"format {n}") for n, entries in enumerate(formats, 1)
    )
    return recipe(name="search", candidates=formats_of_search)


def only(problems: list[Problem], rule: str) -> Problem:
    """The one problem there is, of the rule named *rule*."""
    assert [p.rule for p in problems] == [rule]
    return problems[0]


def numbers(text: str) -> list[int]:
    """The whole numbers that stand by themselves in *text*."""
    return [int(n) for n in re.findall(r"(?<![\w.-])-?\d+(?![\w.])", text)]


HIDDEN = {"vision.head": "it is packed", "vision.pool": "it is packed too"}


def all_off(quantizers: QuantizerMap, *kinds: str) -> QuantizerMap:
    """*quantizers* with the quantizers of modules of *kinds*, or all, off."""
    return tuple(
        replace(q, enabled=q.enabled and bool(kinds) and q.module_kind not in kinds)
        for q in quantizers
    )
