"""Write ``docs/architectures.md``: every architecture that recipes are judged on, as measured.

python -m harness.tools.architectures
"""

from __future__ import annotations

import sys
from collections import Counter
from importlib import metadata
from pathlib import Path

from harness.outlines import outline
from harness.outlines.rows import ROWS
from harness.outlines.rules import RULES
from harness.outlines.table import PARTS, Row
from harness.tools import pages

PAGE = Path(__file__).parents[2] / "docs/architectures.md"
_HEAD = """# Architectures

The architectures that recipes are judged on without weights, in their published sizes. Each is
built on torch's meta device with few of its layers, and counted as all; the sizes and their sources
are in `harness/outlines/table.py`. `python -m harness.tools.architectures` writes this page.

Weights that ModelOpt {release} has a quantizer for, by part, and all quantizers, with transformers
{library}. "panel" marks the architectures that recipes for any model (`general/`) are judged on.

| architecture | family | {parts} | quantizers | panel | sizes from |
|---|---|{rules}|---|---|---|
"""


def main() -> int:
    """Write the page; 0."""
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE}\n")
    return 0


def page() -> str:
    """Return the page's text."""
    parts = [part for part in PARTS if part != "other"]
    head = _HEAD.format(
        release=metadata.version("nvidia-modelopt"),
        library=metadata.version("transformers"),
        parts=" | ".join(parts),
        rules="|".join("---" for _ in parts),
    )
    rules = "".join(f"| {name} | {what} |\n" for name, what in RULES.items())
    table = "".join(f"{_line(row, parts)}\n" for row in ROWS)
    return (
        f"{head}{table}\n## Rules of shape\n\n| rule | what it finds |\n|---|---|\n{rules}"
        + pages.footer(PAGE.name)
    )


def _line(row: Row, parts: list[str]) -> str:
    weights: Counter[str] = Counter()
    total = 0
    for site in outline.of(row.name).sites:
        total += site.count
        weights[site.part] += site.count * (site.kind == "weight")
    counts = [f"{weights[part]:,}" if weights[part] else "" for part in parts]
    panel = "yes" if row.panel else ""
    return " | ".join(
        [f"| {row.name}", row.family, *counts, f"{total:,}", panel, row.source + " |"]
    )


if __name__ == "__main__":
    sys.exit(main())
