"""What a change does to every architecture that its recipes are for: a table of recipes by
architectures, the lines of the map differences below it, and the faults of shape that it brings.
"""

from __future__ import annotations

import re
import shutil
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from harness.errors import UsageError
from harness.outlines import declared
from harness.outlines.fit import NamedRecipe, View
from harness.outlines.matrix import Matrix
from harness.outlines.rules import ShapeFault
from harness.problems import collapse
from harness.pull_requests.reach import Affected
from harness.pull_requests.revisions import Changeset
from harness.quantization import maps
from harness.recipes.tree import Tree

#: Lines of differences, and architectures of one of them, that are shown.
_LINES, _WHERE = 40, 4
#: The lines of a difference, by the architecture and what changes on it.
Lines = dict[tuple[str, frozenset[tuple[str, tuple[str, ...], tuple[str, ...]]]], tuple[str, ...]]
_DIFFERENCE = re.compile(r"^\d+ quantizers? changes?: (.*?)(?:, layers [\d.,]+)?$")


@dataclass(frozen=True)
class ArchitectureChange:
    """What a change does to one recipe on its architectures.

    Attributes:
        recipe: its name in the tree.
        counts: the number of quantizers that change, by architecture; all that are on, where the
            recipe was not there before.
        lines: the difference of the maps, by architecture.
        new: faults that the recipe did not have before.
        left: faults that it had before, or that are declared.
        fixed: faults that it no longer has.
        not_judged: why there is no verdict, if so.
    """

    recipe: str
    counts: dict[str, int]
    lines: dict[str, tuple[str, ...]]
    new: tuple[ShapeFault, ...] = ()
    left: tuple[ShapeFault, ...] = ()
    fixed: tuple[ShapeFault, ...] = ()
    not_judged: str = ""


@dataclass(frozen=True)
class ChangeTable:
    """Recipes by architectures, as every report shows them.

    Attributes:
        recipes: the recipes of each column: those on which the change does the same.
        counts: for each architecture the number of quantizers that change, one for each column;
            None where the column's recipes are not for it.
        differences: lines of the map differences, with the architectures that have them.
        brought: faults of shape that the change brings.
        fixed: those that it fixes.
        there: those that were there before, or are declared.
        not_judged: recipes without a verdict, such as those that concern no architecture of the
            table -> the reason.
    """

    recipes: tuple[tuple[str, ...], ...] = ()
    counts: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)
    differences: tuple[str, ...] = ()
    brought: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    there: tuple[str, ...] = ()
    not_judged: Mapping[str, str] = field(default_factory=dict)

    def lines(self, width: int | None = None) -> Iterator[str]:
        """Yield the table as text.

        Args:
            width: columns of the terminal; None: those that it has.
        """
        width = width or shutil.get_terminal_size().columns
        if self.recipes:
            yield "recipes by architectures: quantizers that change (- is not concerned)"
            for number, names in enumerate(self.recipes, 1):
                yield from _wrapped(f"  [{number}] ", ", ".join(names), width)
            yield from self._grid(width)
        if self.differences:
            yield "what changes:"
            for line in self.differences:
                yield from _wrapped("  ", line, width)
        for title, faults in (
            ("faults that the change brings:", self.brought),
            ("faults that the change fixes:", self.fixed),
            ("faults that were there before:", self.there),
        ):
            if faults:
                yield title
                for fault in faults:
                    yield from _wrapped("- ", fault, width)
        if self.not_judged:
            yield "not judged on architectures:"
            by_reason: dict[str, list[str]] = defaultdict(list)
            for name, why in self.not_judged.items():
                by_reason[why].append(name)
            for why, alike in by_reason.items():
                yield from _wrapped("- ", f"{why}: {', '.join(alike)}", width)

    def _grid(self, width: int) -> Iterator[str]:
        heads = [f"[{number}]" for number in range(1, len(self.recipes) + 1)]
        cells = {name: [cell_text(count) for count in row] for name, row in self.counts.items()}
        first = max(map(len, cells), default=0)
        wide = 2 + max(len(text) for row in (heads, *cells.values()) for text in row)
        side_by_side = max(1, (width - first - 2) // wide)
        for begin in range(0, len(heads), side_by_side):
            shown = slice(begin, begin + side_by_side)
            yield f"  {'':{first}}" + "".join(f"{head:>{wide}}" for head in heads[shown])
            for name, row in cells.items():
                if any(text != _NOT_CONCERNED for text in row[shown]):
                    yield f"  {name:{first}}" + "".join(f"{text:>{wide}}" for text in row[shown])


_NOT_CONCERNED = "-"


def cell_text(count: int | None) -> str:
    """What a cell of the table shows."""
    return _NOT_CONCERNED if count is None else f"{count:,}"


def _wrapped(head: str, text: str, width: int) -> list[str]:
    """*text* behind *head* in lines that fit; words are kept whole."""
    return textwrap.wrap(
        text,
        max(width, 40),
        initial_indent=head,
        subsequent_indent=" " * (len(head) + 2 if head.strip() else len(head) + 4),
        break_long_words=False,
        break_on_hyphens=False,
    )


def changes(
    reached: Iterable[Affected],
    tree: Tree,
    base: Tree,
    comparison: Changeset,
    attention: str = "diffusers",
) -> list[ArchitectureChange]:
    """What the change does to each of the recipes *reached* that can be loaded."""
    head, before = Matrix(tree, attention=attention), Matrix(base, attention=attention)
    recipe_changes = []
    lines: Lines = {}
    for affected in reached:
        path = affected.path
        if path is None or affected.broken or affected.unknown or affected.removed:
            continue
        name = path.relative_to(tree.root).as_posix()
        old = base.root / comparison.renamed.get(name, name)
        try:
            now = head.subject(path)
        except UsageError:
            continue  # refused, with its reason
        try:
            was = before.subject(old)
        except UsageError:  # it was not there, or broken
            was = None
        recipe_changes.append(_change(affected.recipe, head, now, before, was, lines))
    return recipe_changes


def _change(
    recipe: str,
    head: Matrix,
    now: NamedRecipe,
    before: Matrix,
    was: NamedRecipe | None,
    known_lines: Lines,
) -> ArchitectureChange:
    line = head.line(now)
    if line.not_judged:
        return ArchitectureChange(recipe, {}, {}, not_judged=line.not_judged)
    earlier = before.line(was, now.rows).faults if was is not None else ()
    known = {_key(fault) for fault in earlier}
    here = {_key(fault) for fault in line.faults}
    undeclared = line.undeclared
    new = tuple(f for f in line.faults if _key(f) not in known and f in undeclared)
    views = before.views(was, now.rows) if was is not None else []
    counts, lines = _differences(
        head.views(now, now.rows), {view.outline.row.name: view for view in views}, known_lines
    )
    return ArchitectureChange(
        recipe,
        counts,
        lines,
        new,
        tuple(fault for fault in line.faults if fault not in new),
        tuple(fault for fault in earlier if _key(fault) not in here),
    )


def _key(fault: ShapeFault) -> tuple[str, str, str]:
    """What makes two faults the same, wherever the lines of a file have moved to."""
    return fault.rule, fault.architecture, re.sub(r"entry \d+|:\d+", "", fault.problem.what)


def _differences(
    views: Iterable[View], earlier: Mapping[str, View], known: Lines
) -> tuple[dict[str, int], dict[str, tuple[str, ...]]]:
    """The number of quantizers that change, and the lines of the difference, by architecture."""
    counts, lines = {}, {}
    for view in views:
        name = view.outline.row.name
        old = earlier.get(name)
        if old is None:
            counts[name] = sum(site.count for site, _ in view.on())
            continue
        counts[name] = view.changed(old)
        if counts[name]:
            key = name, frozenset(view.changes(old))
            if key not in known:
                before, after = tuple(old.quantizers(view)), tuple(view.quantizers(old))
                known[key] = tuple(maps.diff(before, after))
            lines[name] = known[key]
    return counts, lines


def table(recipe_changes: Iterable[ArchitectureChange]) -> ChangeTable:
    """The table of what a change does to its recipes."""
    recipe_changes = list(recipe_changes)
    judged = [change for change in recipe_changes if not change.not_judged]
    columns: dict[tuple[tuple[str, int], ...], list[str]] = defaultdict(list)
    for change in judged:
        columns[tuple(change.counts.items())].append(change.recipe)
    counts = [dict(column) for column in columns]
    names = dict.fromkeys(name for column in counts for name in column)
    return ChangeTable(
        recipes=tuple(tuple(recipes) for recipes in columns.values()),
        counts={name: tuple(column.get(name) for column in counts) for name in names},
        differences=tuple(_difference_lines(judged)),
        brought=_fault_lines((change.recipe, f) for change in judged for f in change.new),
        fixed=_fault_lines((change.recipe, f) for change in judged for f in change.fixed),
        there=_fault_lines((change.recipe, f) for change in judged for f in change.left),
        not_judged={
            change.recipe: change.not_judged for change in recipe_changes if change.not_judged
        },
    )


def _difference_lines(judged: Sequence[ArchitectureChange]) -> Iterator[str]:
    """Yield the lines of the differences of maps, each once, with the architectures that have
    it.
    """
    where: dict[str, dict[str, None]] = defaultdict(dict)
    for change in judged:
        for architecture, lines in change.lines.items():
            for line in lines:
                if match := _DIFFERENCE.match(line):
                    where[match[1]][architecture] = None
    for number, (text, names) in enumerate(where.items()):
        if number == _LINES:
            yield f"... and {len(where) - _LINES} more"
            return
        yield f"{text}: {_some(list(names))}"


def _some(names: Sequence[str]) -> str:
    """The first of *names*, and how many more there are."""
    more = f" and {len(names) - _WHERE} more" if len(names) > _WHERE else ""
    return ", ".join(names[:_WHERE]) + more


def _fault_lines(faults: Iterable[tuple[str, ShapeFault]]) -> tuple[str, ...]:
    """One line for each fault, with the recipes that have it; those that are declared for one
    reason share a line.
    """
    recipes: dict[str, dict[str, None]] = defaultdict(dict)
    where: dict[str, dict[str, None]] = defaultdict(dict)
    for recipe, fault in faults:
        why = declared.reason(recipe, fault)
        text = f"declared, {why}" if why else fault_text(fault)
        key = f"{fault.rule}\0{text}"
        recipes[key][recipe] = None
        where[key][fault.architecture] = None
    lines = []
    for key, names in recipes.items():
        rule, _, text = key.partition("\0")
        first, *others = names
        more = f" and {len(others)} more" if others else ""
        lines.append(f"{first}{more}: {rule} on {_some(list(where[key]))}: {text}")
    return tuple(lines)


def fault_text(fault: ShapeFault) -> str:
    """What is wrong, where, and the fix, in one line without the rule and the architecture."""
    problem = fault.problem
    names = "; ".join(collapse(problem.names, 3))
    return f"{problem.what}{f': {names}' if names else ''}. {problem.fix}"


def brought(recipe_changes: Iterable[ArchitectureChange]) -> dict[str, str]:
    """Recipes to which the change brings faults -> the faults, in one text."""
    return {
        change.recipe: " | ".join(
            f"{fault.rule} on {fault.architecture}: {fault_text(fault)}" for fault in change.new
        )
        for change in recipe_changes
        if change.new
    }
