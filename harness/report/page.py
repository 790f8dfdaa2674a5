"""``report.html``: the whole run on one page that opens offline, on a phone too."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from harness.escaping import visible
from harness.gate.results_schema import CaseResult, RunResult
from harness.report import cases, grid
from harness.report.cases import VerdictRow
from harness.report.text import plain

_TEMPLATES = Path(__file__).parent / "templates"
_IMAGE = re.compile(r"data:image/(?:png|jpeg|webp);base64,[A-Za-z0-9+/]+={0,2}")
#: Sections with a place of their own; any other is shown as it is.
_DRAWN = {
    "recipe",
    "model",
    "quantize",
    "insertion",
    "numerics",
    "accuracy",
    "consumers",
    "drift",
    "throughput",
    "layer_error",
    "blame",
    "export",
    "checks",
    "decision",
    "headline",
    "not_gated",
}


def render(results: RunResult) -> str:
    """The page of *results*.

    Everything printed is escaped, control characters are made visible, and the page's own policy
    lets nothing but its one script run and nothing be fetched.
    """
    script, style = (_asset(name) for name in ("report.js", "report.css"))
    return (
        _environment()
        .get_template("report.html")
        .render(
            environment=results.environment,
            decision=cases.run_decision(results),
            headline=cases.run_headline(results),
            failed=results.checks.failed,
            reasons=cases.reasons(results),
            map_changes=cases.map_changes(results),
            architectures=results.environment.selection.architectures,
            change_lists=cases.change_lists(results),
            cases=[view(case, f"case-{i}") for i, case in enumerate(results.cases)],
            script=Markup(script),  # noqa: S704 - this package's own file
            style=Markup(style),  # noqa: S704
            script_hash=_hash(script),
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.filters.update(
        soft=soft, points=_points, sortable=sortable, share=_share, rate=_rate, exact=_exact
    )
    return environment


@cache
def _asset(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def view(case: CaseResult, anchor: str) -> dict[str, object]:
    """What the template shows of *case*; ``anchor`` is its id in the page."""
    rows = cases.rows(case)
    judged = [part for part in (case.accuracy, case.consumers) if part]
    return {
        "id": anchor,
        "recipe": case.recipe,
        "model": case.model,
        "decision": cases.decision(case),
        "headline": cases.headline(case),
        "rows": rows,
        "axis": axis(rows),
        "verdicts": {f"{v.task}/{v.metric}": v for part in judged for v in part.verdicts},
        "beyond": {where: plain(m) for part in judged for where, m in part.beyond.items()},
        "maps": error_maps(case),
        "changed": list(gallery(case)),
        "exceeded": cases.exceeded_lines(case),
        "failed": case.checks.failed,
        "depending": case.checks.depending,
        "problems": cases.problems(case),
        "not_covered": cases.not_covered(case),
        "known": cases.known_lines(case),
        "gains": cases.gain_lines(case),
        "mismatches": cases.mismatches(case),
        "grids": grid.grids(case),
        "formats": grid.formats(case),
        "layers": layers(case),
        "blame": blame(case),
        "throughput": throughput(case),
        "export": cases.export_lines(case),
        "export_faults": cases.export_faults(case),
        "quantize": case.quantize,
        "drift": [(where, cases.drift_word(d), d) for where, d in case.drift.items()],
        "rest": plain(case.model_dump(exclude=_DRAWN, exclude_unset=True)),
    }


@dataclass(frozen=True)
class Patch:
    """One patch of a picture: its place and size in percent, its error, and how dark it is."""

    x: float
    y: float
    size: float
    error: float
    shade: float


@dataclass(frozen=True)
class Map:
    """A picture under the errors of its patches."""

    where: str
    item: str
    image: str
    worst: float
    patches: list[Patch]


def error_maps(case: CaseResult) -> list[Map]:
    """The pictures whose patches moved most, of every consumer that reads patches."""
    maps_of_page = []
    for where, maps in (case.consumers.maps if case.consumers else {}).items():
        for item_map in maps:
            image = picture(item_map.image)
            if image is None or not item_map.side or len(item_map.errors) != item_map.side**2:
                continue
            errors = [error if math.isfinite(error) else math.inf for error in item_map.errors]
            worst, size = max(errors), 100 / item_map.side
            scale = worst or 1.0
            patches = [
                Patch(
                    x=round(size * (number % item_map.side), 3),
                    y=round(size * (number // item_map.side), 3),
                    size=round(size, 3),
                    error=error,
                    shade=1.0 if error == scale else round(error / scale, 3),
                )
                for number, error in enumerate(errors)
            ]
            maps_of_page.append(Map(where, item_map.item, image, worst, patches))
    return maps_of_page


@dataclass(frozen=True)
class Axis:
    """A scale: ``at`` maps points to percent of the width, ``ticks`` label it."""

    at: Callable[[float], float]
    ticks: list[float]


def axis(rows: list[VerdictRow]) -> Axis:
    """The scale that all verdicts of a case share."""
    ends = [
        x for r in rows for x in (r.low, r.high, r.difference, -r.budget, 0.0) if math.isfinite(x)
    ] or [-1.0, 1.0]
    low, high = min(ends), max(ends)
    pad = max(0.06 * (high - low), 0.1)
    low, high = low - pad, high + pad

    def at(points: float) -> float:
        return round(100 * min(max((points - low) / (high - low), 0.0), 1.0), 2)

    step = next((s for s in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if (high - low) / s <= 6), 100)
    ticks = [round(k * step, 6) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return Axis(at, ticks)


def layers(case: CaseResult) -> list[dict[str, object]]:
    """One row per encoder layer: its error, and the worst saturation and underflow of its
    quantizers.
    """
    errors = {(error.tower, error.layer or 0): error for error in case.layer_error}
    seen = (
        {observed.name: observed for observed in case.numerics.observations}
        if (case.numerics)
        else {}
    )
    worst: dict[tuple[str, int], dict[str, tuple[float, str]]] = {place: {} for place in errors}
    for quantizer in case.insertion.map if case.insertion else []:
        observed = seen.get(quantizer.name)
        if observed is None or quantizer.layer is None:
            continue
        shares = worst.setdefault((quantizer.tower, quantizer.layer), {})
        for key, share in (
            ("saturation", observed.saturation),
            ("underflow", observed.underflow),
        ):
            if share >= shares.get(key, (-1.0, ""))[0]:
                shares[key] = (share, quantizer.name)
    finite = [error.sqnr_db for error in errors.values() if math.isfinite(error.sqnr_db)]
    top = max(finite, default=1.0)
    towers = list(dict.fromkeys(tower for tower, _ in worst))
    rows = []
    for tower, layer in sorted(worst, key=lambda place: (towers.index(place[0]), place[1])):
        error = errors.get((tower, layer))
        sqnr = None if error is None else error.sqnr_db
        rows.append(
            {
                "tower": tower,
                "layer": layer,
                "saturation": worst[tower, layer].get("saturation"),
                "underflow": worst[tower, layer].get("underflow"),
                "sqnr": sqnr,
                "cosine": None if error is None else error.cosine,
                "order": sortable(sqnr),
                "bar": _bar(sqnr, top),
            }
        )
    return rows


def _bar(value: float | None, top: float) -> float:
    """The length of a bar in percent of that of *top*."""
    if value is None or math.isnan(value):
        return 0.0
    return max(0.0, min(100.0, 100 * value / max(top, 1e-9)))


def blame(case: CaseResult) -> dict[str, object] | None:
    """The ranked groups with bars on one scale, and the patch as lines."""
    result = case.blame
    if result is None:
        return None
    points = [abs(x) for group in result.groups for x in (group.off_points, group.alone_points)]
    top = max(points, default=0.0) or 1.0
    return {
        "groups": [
            {
                "name": group.name,
                "off": group.off_points,
                "alone": group.alone_points,
                "off_bar": round(100 * max(0.0, group.off_points) / top, 1),
                "alone_bar": round(100 * max(0.0, group.alone_points) / top, 1),
            }
            for group in result.groups
        ],
        "patch": result.patch.splitlines(),
        "verified": result.verified,
        "note": result.note,
        "where": " ".join(word for word in (result.task, result.metric) if word),
    }


def throughput(case: CaseResult) -> list[dict[str, object]]:
    """One row per tower: rates, the ratio to the reference and that of the baseline; bars have one
    scale.
    """
    shown = {speed.tower: speed for speed in cases.speeds(case)}
    ratios = [x for speed in case.throughput.values() for x in (speed.ratio, speed.baseline_ratio)]
    top = max([1.0, *(ratio or 0.0 for ratio in ratios)])
    return [
        {
            "tower": tower,
            "shown": shown.get(tower),
            "reference_per_second": speed.reference_per_second,
            "quantized_per_second": speed.quantized_per_second,
            "ratio": speed.ratio,
            "baseline_ratio": speed.baseline_ratio,
            "ratio_bar": round(100 * (speed.ratio or 0.0) / top, 1),
            "baseline_ratio_bar": round(100 * (speed.baseline_ratio or 0.0) / top, 1),
            "one": round(100 / top, 1),
        }
        for tower, speed in case.throughput.items()
    ]


def gallery(case: CaseResult) -> Iterator[dict[str, object]]:
    """Every changed answer of every metric, pictures checked: what is not a picture is not
    shown.
    """
    for where, answers in case.accuracy.changed.items() if case.accuracy else ():
        for answer in answers:
            before, after = answer.reference_margin, answer.quantized_margin
            yield {
                "sample": answer.sample,
                "target": answer.target,
                "reference": answer.reference,
                "quantized": answer.quantized,
                "query": answer.query,
                "image": picture(answer.image),
                "reference_image": picture(answer.reference_image),
                "quantized_image": picture(answer.quantized_image),
                "where": where,
                # Under recall@5 a sample is right by its five first answers, of which only one is
                # shown.
                "deep": "@" in where,
                "kind": answer.kind,
                "before": before,
                "after": after,
                "fall": sortable(before - after),
                "rank": sortable(before),
            }


def soft(value: str) -> Markup:
    """*value*, escaped, with places to break a long name: behind its dots, slashes and
    underscores.
    """
    parts = re.split(r"(?<=[./_])(?=.)", visible(value))
    return Markup("<wbr>").join(parts)


def sortable(value: float | None) -> float:
    """*value* as the page's script sorts it: finite, what is not a number last."""
    return -1e9 if value is None or math.isnan(value) else max(-1e9, min(1e9, value))


def picture(value: object) -> str | None:
    """*value* if it is the data URI of a picture, else None."""
    return value if isinstance(value, str) and _IMAGE.fullmatch(value) else None


def _points(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:+.{digits}f}"


def _share(value: float | None) -> str:
    """A share in percent, with as many digits as a small one needs."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    return f"{value:.2%}" if value >= 0.0001 else f"{100 * value:.1g}%"


def _rate(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _exact(value: float | None, digits: int = 1) -> str:
    """A number that is infinite where nothing differs."""
    if value is None:
        return "–"
    return "exact" if value == math.inf else f"{value:.{digits}f}"
