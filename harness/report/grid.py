"""The quantizer map as a grid: rows are layers, columns are places in a layer, cells quantizers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from harness.gate.results_schema import (
    AmaxResult,
    CaseResult,
    ObservationResult,
    QuantizerResult,
)

#: A short sign for the kind of a quantizer, over its column.
_ROLES = {
    "weight": "W",
    "input": "in",
    "output": "out",
    "q_bmm": "q",
    "k_bmm": "k",
    "v_bmm": "v",
    "p_bmm": "p",
    "bmm2_output": "out",
    "softmax": "sm",
}
#: Shares from which saturation and underflow get a stronger colour.
_STEPS = (0.0, 0.001, 0.01, 0.1)


@dataclass(frozen=True)
class Cell:
    """One quantizer: a sign, the class that colours it, levels 0 to 4 of saturation and underflow,
    and all in words.
    """

    sign: str
    style: str
    saturation: int
    underflow: int
    title: str


@dataclass(frozen=True)
class Column:
    """Where in a layer: the module's path within it and the quantizer's role."""

    module: str
    role: str


@dataclass(frozen=True)
class Grid:
    """One tower: ``rows`` are (layer, cells), None where a layer lacks a column; ``outside`` are
    cells with names.
    """

    tower: str
    modules: list[tuple[str, int]]
    columns: list[Column]
    rows: list[tuple[int, list[Cell | None]]]
    outside: list[tuple[str, Cell]]
    hidden: int


def grids(case: CaseResult) -> list[Grid]:
    """Return one grid per tower of *case*; columns and outside quantizers that are off everywhere
    are counted, not drawn.
    """
    quantizers = case.insertion.map if case.insertion else []
    seen = {o.name: o for o in case.numerics.observations} if case.numerics else {}
    order = {"vision": 0, "text": 1}
    towers = sorted({q.tower for q in quantizers}, key=lambda t: (order.get(t, 2), t))
    return [_grid(tower, [q for q in quantizers if q.tower == tower], seen) for tower in towers]


def formats(case: CaseResult) -> list[tuple[str, str, int]]:
    """(format, class, enabled quantizers) of *case*, most frequent first: the legend."""
    quantizers = case.insertion.map if case.insertion else []
    count = Counter(q.format for q in quantizers if q.enabled)
    return [(name, style(name), n) for name, n in count.most_common()]


def style(name: str) -> str:
    """The CSS class of a format: of a fixed list, whatever the format is called."""
    known = {
        "E4M3": "e4m3",
        "E5M2": "e5m2",
        "INT8": "int8",
        "UINT8": "int8",
        "INT4": "int4",
        "UINT4": "int4",
    }
    if name.startswith("E2M1"):
        return "f-e2m1"
    return f"f-{known.get(name, 'other')}"


def _grid(
    tower: str, quantizers: list[QuantizerResult], seen: dict[str, ObservationResult]
) -> Grid:
    placed = {(q.layer, _column(q)): q for q in quantizers if q.layer is not None}
    used = [_column(q) for q in quantizers if q.layer is not None and q.enabled]
    # In the order of the model's modules, which a dict over all quantizers keeps.
    every = dict.fromkeys(_column(q) for q in quantizers if q.layer is not None)
    wanted = set(used)
    columns = _by_module([c for c in every if c in wanted])
    rows = []
    for layer in sorted({q.layer for q in quantizers if q.layer is not None}):
        members = [placed.get((layer, c)) for c in columns]
        rows.append((layer, [None if q is None else cell(q, seen.get(q.name)) for q in members]))
    outside = [
        (_short(q), cell(q, seen.get(q.name))) for q in quantizers if q.layer is None and q.enabled
    ]
    off = sum(1 for q in quantizers if q.layer is None and not q.enabled)
    modules = [(name, len(list(group))) for name, group in groupby(c.module for c in columns)]
    return Grid(
        tower, modules, columns, rows if columns else [], outside, off + len(every) - len(columns)
    )


def _by_module(columns: list[Column]) -> list[Column]:
    order = list(dict.fromkeys(c.module for c in columns))
    return sorted(columns, key=lambda c: order.index(c.module))


def _column(q: QuantizerResult) -> Column:
    layer = f".{q.layer}."
    holder = q.name.rpartition(".")[0] if "." in q.name else q.name
    within = holder.partition(layer)[2] if layer in holder else holder.partition(layer[:-1])[2]
    return Column(within or "layer", _role(q))


def _role(q: QuantizerResult) -> str:
    return _ROLES.get(q.kind, q.kind)


def _short(q: QuantizerResult) -> str:
    return f"{q.name.rpartition('.')[0].rpartition('.')[2]} {_role(q)}"


def cell(q: QuantizerResult, seen: ObservationResult | None) -> Cell:
    """The cell of one quantizer of the map, with its observation where there is one."""
    sign, look = _look(q)
    title = "; ".join(_words(q, seen))
    saturation = 0 if seen is None else _level(seen.saturation)
    underflow = 0 if seen is None else _level(seen.underflow)
    return Cell(sign, look, saturation, underflow, title)


def _look(q: QuantizerResult) -> tuple[str, str]:
    if not q.enabled:
        return "·", "off"
    if not q.calls:
        return "!", "broken"
    if q.amax is None and not q.dynamic:
        return "?", "broken"
    short = {"f-e4m3": "8", "f-e5m2": "8", "f-int8": "8", "f-int4": "4", "f-e2m1": "4"}
    look = style(q.format)
    return short.get(look, "q"), look


def _words(q: QuantizerResult, seen: ObservationResult | None) -> Iterator[str]:
    yield q.name
    if not q.enabled:
        yield "off"
        return
    yield f"{q.format} {q.granularity}"
    yield f"{q.calls} call{'' if q.calls == 1 else 's'}" if q.calls else "NEVER CALLED"
    yield "dynamic" if q.dynamic else _range(q.amax)
    if seen:
        yield f"saturated {seen.saturation:.3%}"
        yield f"underflow {seen.underflow:.3%}"
        if seen.mismatches:
            yield f"{seen.mismatches} of {seen.elements} elements differ from the definition"
        if seen.unsupported:
            yield f"not compared: {seen.unsupported}"


def _range(amax: AmaxResult | None) -> str:
    if amax is None:
        return "NO AMAX"
    if amax.count == 1:
        return f"amax {amax.high:.4g}"
    return f"amax {amax.low:.4g} to {amax.high:.4g} ({amax.count} values)"


def _level(share: float) -> int:
    """0 for none, 1 to 4 for shares above each of _STEPS; 4 too for what is not a number."""
    return 4 if math.isnan(share) else sum(share > step for step in _STEPS)
