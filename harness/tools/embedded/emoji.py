"""Emoji in several artists' styles: one picture a concept and artist, with the names people give
it.

The sets come from the npm registry (``@iconify-json/<set>``: SVG bodies, names, aliases and code
points as JSON).  A *concept* is a Unicode code point sequence; the sets are joined on it, and on
names where a set carries no code points.  Flags and skin tones are left out: the first are text in
disguise, the second are the same drawing in another colour.
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

#: set -> (npm version, licence, artist).  Sets of one company count as one artist for the split
#: below.
SETS: dict[str, tuple[str, str, str]] = {
    "noto": ("1.2.9", "Apache-2.0", "Google"),
    "noto-v1": ("1.2.5", "Apache-2.0", "Google"),
    "fxemoji": ("1.2.2", "Apache-2.0", "Mozilla"),
    "fluent-emoji": ("1.2.7", "MIT", "Microsoft"),
    "fluent-emoji-flat": ("1.2.6", "MIT", "Microsoft"),
    "twemoji": ("1.2.5", "CC-BY-4.0", "Twitter"),
    "emojione": ("1.2.3", "CC-BY-4.0", "EmojiOne"),
    "emojione-v1": ("1.2.3", "CC-BY-SA-4.0", "EmojiOne"),
    "openmoji": ("1.2.29", "CC-BY-SA-4.0", "OpenMoji"),
}
EVALUATION = "noto"
CALIBRATION = "fluent-emoji-flat"
#: Google's older set shares drawings with the evaluation set; an artist "never seen" excludes it
#: from training.
TRAINING = tuple(name for name, (_, _, artist) in SETS.items() if artist != SETS[EVALUATION][2])

_SKIN_TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
_VARIATION_SELECTOR = "fe0f"


@dataclass(frozen=True)
class Concept:
    """One emoji: its name in the evaluation set, its category and where each artist drew it."""

    name: str
    code_points: str
    category: str
    synonyms: tuple[str, ...]
    icons: dict[str, str] = field(hash=False)

    @property
    def label(self) -> str:
        """The name as words."""
        return self.name.replace("-", " ")


def fetch(folder: Path) -> None:
    """Bring every set's package into *folder* with ``npm pack``; what is there already stays."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (version, _, _) in SETS.items():
        if not (folder / f"iconify-json-{name}-{version}.tgz").exists():
            subprocess.run(
                ["npm", "pack", "--silent", f"@iconify-json/{name}@{version}"],
                cwd=folder,
                check=True,
            )


def _read(folder: Path, name: str, member: str) -> Any:
    archive = folder / f"iconify-json-{name}-{SETS[name][0]}.tgz"
    with tarfile.open(archive) as tar:
        try:
            handle = tar.extractfile(f"package/{member}")
        except KeyError:
            return {}
        assert handle is not None
        return json.load(handle)


def concepts(folder: Path, least_artists: int = 4) -> list[Concept]:
    """Concepts of the evaluation set that at least *least_artists* training sets drew, by code
    point.
    """
    icons = {name: _read(folder, name, "icons.json") for name in SETS}
    aliases = {
        name: {k: v["parent"] for k, v in data.get("aliases", {}).items()}
        for name, data in icons.items()
    }
    names_of: dict[str, set[str]] = defaultdict(set)
    base: dict[str, str] = {}
    for name in SETS:
        for code, icon in _read(folder, name, "chars.json").items():
            points = "-".join(p for p in code.split("-") if p != _VARIATION_SELECTOR)
            names_of[points].add(icon)
            if (
                name == EVALUATION
                and not _SKIN_TONES & set(points.split("-"))
                and not icon.startswith("flag-")
            ):
                base[points] = icon
    category = {
        icon: group
        for group, members in _read(folder, EVALUATION, "metadata.json")["categories"].items()
        for icon in members
    }
    by_squeezed = {
        name: {icon.replace("-", ""): icon for icon in [*icons[name]["icons"], *aliases[name]]}
        for name in SETS
    }
    concepts = []
    for points, icon in sorted(base.items()):
        words = names_of[points] | {icon}
        words |= {
            alias
            for table in aliases.values()
            for alias, parent in table.items()
            if parent in words
        }
        drawn = {EVALUATION: icon}
        for name in SETS:
            match = next(
                (
                    by_squeezed[name][w.replace("-", "")]
                    for w in sorted(words)
                    if w.replace("-", "") in by_squeezed[name]
                ),
                None,
            )
            if match is not None:
                drawn.setdefault(name, match)
        if sum(name in drawn for name in TRAINING) >= least_artists:
            concepts.append(
                Concept(
                    icon,
                    points,
                    category.get(icon, "Symbols"),
                    _synonyms(points, words, icon),
                    drawn,
                )
            )
    return concepts


def _synonyms(points: str, words: set[str], name: str) -> tuple[str, ...]:
    """Other names as words: what the sets call it, and Unicode's own name where it is one
    character.
    """
    synonyms = {w.replace("-", " ") for w in words if w.isascii()} - {name.replace("-", " ")}
    if "-" not in points:
        synonyms.add(unicodedata.name(chr(int(points, 16)), name).lower().replace("-", " "))
    return tuple(sorted(synonyms - {name.replace("-", " ")}))


def pictures(
    folder: Path, name: str, wanted: list[str], size: int
) -> Iterator[npt.NDArray[np.uint8]]:
    """Render the icons *wanted* of one set on nothing: uint8 RGBA (size, size, 4) each."""
    import resvg_py
    from PIL import Image

    data = _read(folder, name, "icons.json")
    for icon in wanted:
        svg = _svg(data, icon, size)
        raw = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size)
        with Image.open(io.BytesIO(bytes(raw))) as image:
            yield np.asarray(image.convert("RGBA").resize((size, size)), dtype=np.uint8)


def _svg(data: dict[str, Any], icon: str, size: int) -> str:
    flips = {}
    body = data["icons"].get(icon)
    if body is None:
        alias = data["aliases"][icon]
        flips = {key: alias[key] for key in ("hFlip", "vFlip", "rotate") if key in alias}
        body = data["icons"][alias["parent"]]
    side = {key: body.get(key, data.get(key, 0)) for key in ("left", "top")}
    width, height = (
        body.get("width", data.get("width", 16)),
        body.get("height", data.get("height", 16)),
    )
    inner = body["body"]
    if flips.get("hFlip"):
        inner = f'<g transform="translate({width + 2 * side["left"]} 0) scale(-1 1)">{inner}</g>'
    if flips.get("vFlip"):
        inner = f'<g transform="translate(0 {height + 2 * side["top"]}) scale(1 -1)">{inner}</g>'
    if flips.get("rotate"):
        inner = (
            f'<g transform="rotate({90 * flips["rotate"]} {width / 2} {height / 2})">{inner}</g>'
        )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{size}" height="{size}" viewBox="{side["left"]} {side["top"]} {width} '
        f'{height}">{inner}</svg>'
    )
