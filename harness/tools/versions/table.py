"""``docs/versions.md``: what changed for CLIP from version to version, written from the
measurements.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise

from harness.baselines.differences import ExpectedDifference, release
from harness.baselines.overlay import REFUSED
from harness.formats import deviations
from harness.quantization.maps import ATTENTION_KINDS, QuantizerMap
from harness.tools import pages
from harness.tools.versions import check, measurement
from harness.tools.versions.measurement import OWN, PLACES, ReleaseMeasurement

_EMBEDDED, _LARGE = measurement.ARCHITECTURES
_HEAD = """\
# What changed for CLIP from version to version

Written by `python -m harness.tools.versions table` from the measurements in `baselines/versions/*.json`, each made in
the environment of its release (`python3 -m tox exec -e modelopt-0.46 -- python -m harness.tools.versions measure`);
edit neither.

Measured with {others}. Counts are quantizers that are on, vision / text, on ViT-L/14's
architecture without weights. **Bold** is what differs from the release to its left; *not known* is a setting or a form
that the release does not have.
"""
_CHANGES = """\
## From each release to the next

Differences of the quantizer maps on ViT-L/14's architecture, and the records in `baselines/versions/*.yaml` that expect
them. For any two releases, and on the embedded architecture too: `python -m harness.tools.versions diff 0.44 0.47`.
"""

Row = tuple[str, list[str]]


def render(measured: Sequence[ReleaseMeasurement], records: Sequence[ExpectedDifference]) -> str:
    """The page, from *measured* (oldest first) and the expected differences."""
    packages = [p for p in measured[-1].versions if p != "nvidia-modelopt"]
    others = ", ".join(
        f"{p} {' or '.join(sorted({m.versions[p] for m in measured}))}" for p in packages
    )
    parts = [_HEAD.format(others=others)]
    for title, rows in _tables(measured):
        parts += [f"## {title}\n", _markdown([m.release for m in measured], rows)]
    parts.append(_CHANGES)
    for before, after in pairwise(measured):
        parts.append(_step(before, after, records))
    return "\n".join(parts) + pages.footer("versions.md")


def _tables(measured: Sequence[ReleaseMeasurement]) -> list[tuple[str, list[Row]]]:
    def row(name: str, show: Callable[..., str], *more: str) -> Row:
        return name, [show(m, *more) for m in measured]

    places = [row("quantizers inserted", _inserted, "*")]
    places += [
        row(f"of them at {name}", _inserted, name)
        for name in ("Linear", "Conv2d", "LayerNorm", "Embedding")
    ]
    places += [
        row("around attention, diffusers' class", _attention, "diffusers"),
        row("around attention, ModelOpt's own class", _attention, "modelopt"),
    ]
    forms = [
        row("dict that ends in `default: off` (published)", _taken, "DEFAULT_LAST"),
        row("dict that begins with `default: off`", _taken, "DEFAULT_FIRST"),
    ]
    states = [row(f"`{known.name}`", _deviation, known.name) for known in deviations.KNOWN]
    moved = [r for r in states if len(set(r[1])) > 1]

    def subjects(names: Sequence[str]) -> list[Row]:
        return [row(f"`{name}`", _taken, name) for name in names]

    return [
        ("Where quantizers are inserted", places),
        ("ModelOpt's presets", subjects(measurement.PRESETS)),
        (
            "The dict form of a config, and ModelOpt's recipe for vision transformers",
            forms + subjects(measurement.MODELOPT_RECIPES),
        ),
        ("The recipes of this package", subjects(OWN)),
        (
            "Known deviations of the arithmetic",
            [*moved, (f"the other {len(states) - len(moved)}", ["as recorded"] * len(measured))],
        ),
    ]


def _inserted(m: ReleaseMeasurement, module_class: str) -> str:
    return str(sum(module_class in ("*", q.module_class) for q in _places(m, "diffusers")))


def _attention(m: ReleaseMeasurement, attention: str) -> str:
    kinds = {q.kind for q in _places(m, attention) if q.module_kind == "attention"}
    return " ".join(kind.removesuffix("_bmm") for kind in ATTENTION_KINDS if kind in kinds)


def _deviation(m: ReleaseMeasurement, name: str) -> str:
    state = m.deviations[name]
    return f"fails ({state.split(':')[1].strip()})" if state.startswith("fails: ") else state


def _places(m: ReleaseMeasurement, attention: str) -> QuantizerMap:
    return m.subjects[PLACES[attention]].maps[_LARGE]


def _taken(m: ReleaseMeasurement, name: str) -> str:
    """What a release made of a subject, in the width of a table's cell."""
    subject = m.subjects[name]
    if subject.outcome.startswith(REFUSED):
        error = subject.outcome.removeprefix(REFUSED)
        missing = "names no recipe" in error or "no recipes are installed" in error
        raised = error.split(":")[0].endswith("Error")
        return (
            "not there"
            if missing
            else f"refused ({error.split(':')[0]})"
            if raised
            else "not known"
        )
    on = Counter(q.tower for q in subject.maps[_LARGE] if q.enabled)
    return f"{on['vision']} / {on['text']}"


def _markdown(releases: Sequence[str], rows: Sequence[Row]) -> str:
    lines = ["| | " + " | ".join(releases) + " |", "|---|" + "---|" * len(releases)]
    for name, cells in rows:
        shown = [
            cells[0],
            *(after if after == before else f"**{after}**" for before, after in pairwise(cells)),
        ]
        lines.append(f"| {name} | " + " | ".join(cell.replace("|", "\\|") for cell in shown) + " |")
    return "\n".join([*lines, ""])


def _step(
    before: ReleaseMeasurement, after: ReleaseMeasurement, records: Sequence[ExpectedDifference]
) -> str:
    """One release to the next: the differences of the maps, and who expects them."""
    start, end = release(before.release), release(after.release)
    mine = [
        r for r in records if r.package == "nvidia-modelopt" and start < release(r.release) <= end
    ]
    lines = [f"### {before.release} to {after.release}", ""]
    lines += [f"- {r.difference.name}: {' '.join(r.difference.reason.split())}" for r in mine] or [
        "No record."
    ]
    lines += ["", "```"]
    for effect in check.effects(before, after):
        lines += [f"{effect.recipe}:", *(f"  {line}" for line in effect.by_architecture[_LARGE])]
        lines += [f"  {line}" for line in effect.beyond_map]
    lines += [
        f"{name}: {before.deviations[name]} to {state}"
        for name, state in after.deviations.items()
        if before.deviations[name] != state
    ]
    return "\n".join([*(lines if lines[-1] != "```" else [*lines, "nothing changes"]), "```", ""])
