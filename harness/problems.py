"""A problem that a check reports, and how its names are folded so that a person can read them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Problem:
    """A rule that is broken, the quantizers or patterns that break it, and the fix.

    ``place`` is where the recipe causes it, ``file:line:column``, or empty where no line is known.
    """

    rule: str
    what: str
    names: tuple[str, ...]
    fix: str
    place: str = field(default="", compare=False)

    def __str__(self) -> str:
        lines = [self.what, *(f"  {line}" for line in collapse(self.names)), self.fix]
        return "\n".join(line for line in lines if line.strip())


def collapse(names: Sequence[str], limit: int = 12) -> list[str]:
    """Fold layer numbers and leaf kinds: ``layers.{0..3}.self_attn.{q,k}_bmm_quantizer``."""
    by_shape: dict[tuple[str, ...], set[tuple[str, ...]]] = defaultdict(set)
    for name in names:
        parts = re.split(r"\.(\d+)(?=\.)", name)
        by_shape[tuple(parts[::2])].add(tuple(parts[1::2]))
    by_numbers: dict[tuple[tuple[str, ...], str, tuple[str, ...]], list[str]] = defaultdict(list)
    for shape, numbers in by_shape.items():
        holder, dot, leaf = shape[-1].rpartition(".")
        for ranges in _fold_numbers(numbers):
            by_numbers[shape[:-1], holder + dot, ranges].append(leaf)
    lines = []
    for (between, holder, ranges), leaves in by_numbers.items():
        before = "".join(f"{text}.{among}" for text, among in zip(between, ranges, strict=True))
        lines.append(before + holder + fold_leaves(leaves))
    more = len(lines) - limit
    return lines if more <= 0 else [*lines[:limit], f"... and {more} more groups"]


def _fold_numbers(numbers: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Fold rows that differ in one place only, the last place first: (2, 0), (2, 1) to (2, {0..1}).

    Args:
        numbers: the layer numbers of each name.
    """
    rows = sorted(numbers, key=lambda row: [int(n) for n in row])
    for place in reversed(range(len(rows[0]))):
        alike: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = defaultdict(list)
        for row in rows:
            alike[row[:place], row[place + 1 :]].append(row[place])
        rows = [
            (*before, number_ranges(values), *behind) for (before, behind), values in alike.items()
        ]
    return rows


def number_ranges(numbers: Iterable[str]) -> str:
    """Write numbers as ranges in braces, ``{0..3,5}``; a single number without braces."""
    ints = sorted(map(int, numbers))
    runs: list[list[int]] = []
    for n in ints:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    text = ",".join(str(r[0]) if len(r) == 1 else f"{r[0]}..{r[-1]}" for r in runs)
    return text if len(ints) == 1 else f"{{{text}}}"


def fold_leaves(leaves: Sequence[str]) -> str:
    """Fold names with the same ending: ``q_bmm_quantizer k_bmm_quantizer`` to
    ``{q,k}_bmm_quantizer``.
    """
    endings: dict[str, list[str]] = defaultdict(list)
    for leaf in leaves:
        head, sep, tail = leaf.partition("_")
        endings[sep + tail].append(head)
    return " ".join(
        (heads[0] if len(heads) == 1 else "{" + ",".join(heads) + "}") + ending
        for ending, heads in endings.items()
    )
