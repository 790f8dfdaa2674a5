"""``report.html``: the whole run on one page that opens offline, on a phone too."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from harness.escaping import visible
from harness.report import cases, grid
from harness.report.cases import Json, Row
from harness.report.text import number

_TEMPLATES = Path(__file__).parent / "templates"
_IMAGE = re.compile(r"data:image/(?:png|jpeg|webp);base64,[A-Za-z0-9+/]+={0,2}")
#: Sections with a place of their own; any other is shown as it is.
_DRAWN = (
    "recipe",
    "model",
    "quantize",
    "insertion",
    "numerics",
    "accuracy",
    "drift",
    "throughput",
    "layer_error",
    "blame",
    "export",
    "checks",
    "decision",
    "headline",
    "not_gated",
)


def render(results: Json) -> str:
    """The page of *results* (plain, see ``harness.report.text``).

    Everything printed is escaped, control characters are made visible, and the page's own policy
    lets nothing but its one script run and nothing be fetched.
    """
    script, style = (_asset(name) for name in ("report.js", "report.css"))
    return (
        _environment()
        .get_template("report.html")
        .render(
            environment=results["environment"],
            decision=cases.run_decision(results),
            headline=cases.run_headline(results),
            failed=cases.failed_checks(results),
            reasons=cases.reasons(results),
            map_changes=cases.map_changes(results),
            cases=[view(case, f"case-{i}") for i, case in enumerate(results["cases"])],
            script=Markup(script),  # noqa: S704 - this package's own file
            style=Markup(style),  # noqa: S704
            script_hash=_hash(script),
        )
    )


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    made.filters.update(
        soft=soft, points=_points, sortable=sortable, share=_share, rate=_rate, exact=_exact
    )
    return made


@cache
def _asset(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def view(case: Json, anchor: str) -> Json:
    """What the template shows of *case*; ``anchor`` is its id in the page."""
    rows = cases.rows(case)
    return {
        "id": anchor,
        "recipe": case["recipe"],
        "model": case["model"],
        "decision": cases.decision(case),
        "headline": cases.headline(case),
        "rows": rows,
        "axis": axis(rows),
        "verdicts": {
            f"{v['task']}/{v['metric']}": v
            for v in (case.get("accuracy") or {}).get("verdicts") or []
        },
        "beyond": (case.get("accuracy") or {}).get("beyond") or {},
        "changed": list(gallery(case)),
        "exceeded": cases.exceeded_lines(case),
        "failed": cases.failed_checks(case),
        "depending": cases.depending(case),
        "problems": cases.problems(case),
        "not_covered": cases.not_covered(case),
        "gains": cases.gain_lines(case),
        "mismatches": cases.mismatches(case),
        "grids": grid.grids(case),
        "formats": grid.formats(case),
        "layers": layers(case),
        "blame": blame(case),
        "throughput": throughput(case),
        "export": cases.export_lines(case),
        "export_faults": cases.export_faults(case),
        "quantize": case.get("quantize") or {},
        "drift": {
            key: {"word": cases.drift_word(d), **d} for key, d in (case.get("drift") or {}).items()
        },
        "rest": {name: value for name, value in case.items() if name not in _DRAWN},
    }


def axis(rows: list[Row]) -> Json:
    """The scale that all verdicts of a case share: ``at`` maps points to percent of the width,
    ``ticks`` label it.
    """
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
    return {"at": at, "ticks": ticks}


def layers(case: Json) -> list[Json]:
    """A row an encoder layer: its error, and the worst saturation and underflow of its
    quantizers.
    """
    found: dict[tuple[str, int], Json] = {}
    for e in case.get("layer_error") or []:
        found[e["tower"], e["layer"]] = {
            "sqnr": number(e["sqnr_db"]),
            "cosine": number(e["cosine"]),
        }
    seen = {o["name"]: o for o in (case.get("numerics") or {}).get("observations") or []}
    for q in (case.get("insertion") or {}).get("map") or []:
        observed = seen.get(q["name"])
        if observed is None or q["layer"] is None:
            continue
        row = found.setdefault((q["tower"], q["layer"]), {"sqnr": None, "cosine": None})
        for key in ("saturation", "underflow"):
            share = number(observed[key]) or 0.0
            if share >= row.get(key, (-1.0, ""))[0]:
                row[key] = (share, q["name"])
    finite = [
        row["sqnr"]
        for row in found.values()
        if row["sqnr"] is not None and math.isfinite(row["sqnr"])
    ]
    top = max(finite, default=1.0)
    order = {tower: i for i, tower in enumerate(dict.fromkeys(tower for tower, _ in found))}
    return [
        {
            "tower": tower,
            "layer": layer,
            "saturation": None,
            "underflow": None,
            **row,
            "order": sortable(row["sqnr"]),
            "bar": 0.0
            if row["sqnr"] is None or math.isnan(row["sqnr"])
            else max(0.0, min(100.0, 100 * row["sqnr"] / max(top, 1e-9))),
        }
        for (tower, layer), row in sorted(
            found.items(), key=lambda item: (order[item[0][0]], item[0][1])
        )
    ]


def blame(case: Json) -> Json | None:
    """The ranked groups with bars on one scale, and the patch as lines."""
    found = case.get("blame") or {}
    if not found:
        return None
    groups = [
        {
            "name": g["name"],
            "off": number(g.get("off_points")),
            "alone": number(g.get("alone_points")),
        }
        for g in found.get("groups") or []
    ]
    top = (
        max((abs(x) for g in groups for x in (g["off"], g["alone"]) if x is not None), default=0.0)
        or 1.0
    )
    for g in groups:
        for key in ("off", "alone"):
            g[f"{key}_bar"] = round(100 * max(0.0, g[key] or 0.0) / top, 1)
    return {
        "groups": groups,
        "patch": str(found.get("patch") or "").splitlines(),
        "verified": bool(found.get("verified")),
        "note": found.get("note", ""),
        "where": " ".join(str(found[key]) for key in ("task", "metric") if found.get(key)),
    }


def throughput(case: Json) -> list[Json]:
    """A row a tower: rates, the ratio to the reference and that of the baseline, with bars on one
    scale.
    """
    rows, shown = [], {speed.tower: speed for speed in cases.speeds(case)}
    for tower, speed in (case.get("throughput") or {}).items():
        if not isinstance(speed, dict):
            continue
        keys = ("reference_per_second", "quantized_per_second", "ratio", "baseline_ratio")
        rows.append(
            {
                "tower": tower,
                "shown": shown.get(tower),
                **{key: number(speed.get(key)) for key in keys},
            }
        )
    top = max([1.0, *(r[key] or 0.0 for r in rows for key in ("ratio", "baseline_ratio"))])
    for r in rows:
        for key in ("ratio", "baseline_ratio"):
            r[f"{key}_bar"] = round(100 * (r[key] or 0.0) / top, 1)
        r["one"] = round(100 / top, 1)
    return rows


def gallery(case: Json) -> Iterator[Json]:
    """Every changed answer of every metric, pictures checked: what is not a picture is not
    shown.
    """
    for where, entries in ((case.get("accuracy") or {}).get("changed") or {}).items():
        for entry in entries:
            before, after = (
                number(entry.get("reference_margin")),
                number(entry.get("quantized_margin")),
            )
            images = {
                key: picture(entry.get(key))
                for key in ("image", "reference_image", "quantized_image")
            }
            yield {
                "query": None,
                **entry,
                **images,
                "where": where,
                # Under recall@5 a sample is right by its five first answers, of which only one is
                # shown.
                "deep": "@" in where,
                "kind": entry["kind"] if entry["kind"] in ("lost", "won") else "changed",
                "before": before,
                "after": after,
                "fall": 0.0 if before is None or after is None else sortable(before - after),
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


def picture(value: Any) -> str | None:
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
