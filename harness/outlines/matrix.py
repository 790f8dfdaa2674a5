"""Recipes by architectures: shares, faults, and what a change does to each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness import files
from harness.errors import UsageError
from harness.outlines import declared, outline, rules
from harness.outlines.fit import NamedRecipe, Share, View, is_search, rows_for, subject
from harness.outlines.rules import ShapeFault
from harness.outlines.table import Row
from harness.recipes.checking import Schema
from harness.recipes.loading import kind_of
from harness.recipes.tree import SUFFIXES, Tree

__all__ = [
    "ArchitectureCell",
    "Matrix",
    "MatrixLine",
    "recipes_in",
    "rows_for",
    "twin_name",
]


@dataclass(frozen=True)
class ArchitectureCell:
    """A recipe on one architecture.

    Attributes:
        architecture: its name in the table.
        shares: quantized weights by part.
        unsupported: why there is nothing to see, if so.
    """

    architecture: str
    shares: dict[str, Share] = field(default_factory=dict)
    unsupported: str = ""


@dataclass(frozen=True)
class MatrixLine:
    """A recipe on the architectures that it is for."""

    recipe: str
    cells: tuple[ArchitectureCell, ...]
    faults: tuple[ShapeFault, ...]
    #: Why there is no verdict on it, if so.
    not_judged: str = ""

    @property
    def undeclared(self) -> tuple[ShapeFault, ...]:
        """The faults that nobody has declared."""
        return tuple(item for item in self.faults if not declared.reason(self.recipe, item))


def recipes_in(tree: Tree) -> Iterator[Path]:
    """Yield the files of *tree* that are recipes or presets which the gate can read, by name."""
    for path in sorted(tree.root.rglob("*")):
        if path.suffix not in SUFFIXES or not files.is_file(path):
            continue
        try:
            if kind_of(tree.read(path), tree) in ("ptq", "preset"):
                subject(path, tree)
                yield path
        except UsageError:
            continue  # what ModelOpt or the gate refuses has no verdict


class Matrix:
    """Recipes of one tree on architectures; what several ask for is computed once."""

    def __init__(
        self, tree: Tree, schema: Schema | None = None, attention: str = "diffusers"
    ) -> None:
        self.tree = tree
        self.schema = schema
        self.attention = attention
        self._views: dict[tuple[str, str, str], View] = {}
        self._subjects: dict[Path, NamedRecipe] = {}

    def subject(self, path: Path) -> NamedRecipe:
        """The recipe in the file *path*.

        Raises:
            UsageError: it cannot be loaded.
        """
        if path not in self._subjects:
            self._subjects[path] = subject(path, self.tree, schema=self.schema)
        return self._subjects[path]

    def views(self, of: NamedRecipe, rows: Iterable[Row]) -> list[View]:
        """The recipe on each of *rows* that the installed library can build."""
        results = []
        for row in rows:
            known = outline.of(row.name, self.attention)
            if not known.unsupported:
                key = (of.name, of.recipe.hash, row.name)
                if key not in self._views:
                    self._views[key] = View(of, known)
                results.append(self._views[key])
        return results

    def line(self, of: NamedRecipe, rows: Sequence[Row] | None = None) -> MatrixLine:
        """*of* on *rows*, by default on the architectures that it is for."""
        chosen = of.rows if rows is None else tuple(rows)
        if not chosen:
            return MatrixLine(of.name, (), (), "its folder names no architecture of the table")
        if is_search(of.recipe):
            return MatrixLine(of.name, (), (), "a search chooses its formats, by weights and data")
        if of.recipe.kind not in ("ptq", "preset"):
            return MatrixLine(
                of.name, (), (), f"a recipe of kind {of.recipe.kind} quantizes nothing"
            )
        views = {view.outline.row.name: view for view in self.views(of, chosen)}
        cells = []
        results: list[ShapeFault] = []
        for row in chosen:
            view = views.get(row.name)
            if view is None:
                cells.append(
                    ArchitectureCell(row.name, unsupported=outline.of(row.name).unsupported)
                )
                continue
            cells.append(ArchitectureCell(row.name, view.shares))
            results += rules.faults(view)
        results += rules.unmatched(list(views.values()), outline.vocabulary())
        for twin in self._twins(of):
            theirs = {view.outline.row.name: view for view in self.views(twin, chosen)}
            for name, view in views.items():
                results += rules.twins(view, theirs[name])
        return MatrixLine(of.name, tuple(cells), tuple(results))

    def _twins(self, of: NamedRecipe) -> list[NamedRecipe]:
        """Recipes of the same folder that quantize the same weights, by their names."""
        path = of.recipe.path
        if path is None or self.tree.root not in path.parents or not files.is_folder(path.parent):
            return []
        results: dict[str, Path] = {}
        for other in sorted(path.parent.iterdir()):
            if (
                other.suffix in SUFFIXES
                and other != path
                and twin_name(path.stem) == twin_name(other.stem)
            ):
                # One of each kind is enough: with inputs, and weight-only.
                results.setdefault("weight" if "weight_only" in other.stem else "both", other)
        twins = []
        for other in results.values():
            try:
                twins.append(self.subject(other))
            except UsageError:
                continue  # said where it is looked at
        return [twin for twin in twins if twin.recipe.kind in ("ptq", "preset")]


def twin_name(stem: str) -> str:
    """What the names of two recipes have in common that quantize the same weights: without the
    format of the KV cache, the calibration, and whether inputs are quantized.
    """
    bare = re.sub(r"[-_]kv_[a-z0-9]+(_cast|_affine|_rotate)?", "", stem)
    bare = re.sub(r"_(layerwise(_offload)?|mse|default|input_scale1)\b", "", bare)
    bare = re.sub(r"^w4a16_nvfp4", "nvfp4_weight_only", bare)
    return re.sub(r"_weight_only", "", re.sub(r"_(\w+)_weight_only", r"_\1_only", bare))
