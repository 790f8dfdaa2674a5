"""Which recipes a change reaches through ``$import``, and which of them the gate can judge.

A pull request edits a file deep in a tree; the recipes it changes are those whose imports lead
there.  Selection is by the graph of imports of the working tree.  An import that leads nowhere
still counts: the file that it would have found may be the one that was removed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness import escaping, files
from harness.errors import UsageError
from harness.pull_requests.revisions import Changeset, at_revision, compare
from harness.recipes import judged, loading
from harness.recipes.finding import section_files
from harness.recipes.loading import kind_of
from harness.recipes.tree import SUFFIXES, Tree
from harness.recipes.yaml_reading import Document

#: Schemas of what recipes import, as the trees of ModelOpt 0.44 to 0.48 declare them.
_SNIPPETS = {
    *(f"modelopt.recipe.config.{name}" for name in ("LayerPatternList", "RecipeMetadataConfig")),
    *(
        f"modelopt.torch.quantization.config.{name}"
        for name in (
            "QuantizeConfig",
            "QuantizerAttributeConfig",
            "QuantizerCfgEntry",
            "QuantizerCfgListConfig",
        )
    ),
}


@dataclass(frozen=True)
class Reach:
    """One way from a recipe to a changed file: ``chain`` runs from the recipe's file to it,
    relative to the root.
    """

    chain: tuple[str, ...]
    change: str


@dataclass(frozen=True)
class Affected:
    """A recipe that a change reaches.

    ``recipe`` is what the tree calls it, ``path`` the file (or folder) to load; ``reaches`` holds
    the shortest way to each changed file, nearest first.  ``broken`` says why the recipe can no
    longer be resolved, if so; ``removed`` that it is gone (``path`` is then None).  ``unknown``
    says why the gate does not know whether it is a recipe, if so.
    """

    recipe: str
    path: Path | None
    kind: str
    reaches: tuple[Reach, ...]
    broken: str | None = None
    removed: bool = False
    unknown: str | None = None

    @property
    def chain(self) -> tuple[str, ...]:
        """The shortest chain of imports that leads to a change."""
        return self.reaches[0].chain

    @property
    def change(self) -> str:
        """What happened to the file at the end of ``chain``."""
        return self.reaches[0].change


def affected(root: Path, rev: str, presets: bool = False) -> list[Affected]:
    """The recipes under *root* that the difference between *rev* and the working tree reaches, by
    name.

    The difference is the one to the merge base of *rev* and HEAD.  Every kind of recipe is listed,
    the ones that the gate does not judge too (see :func:`not_gated`).  *presets* adds the complete
    quantization configs that ModelOpt offers as ``mtq.*_CFG``, which are no recipes by themselves.

    Raises:
        UsageError: *root* is not a directory of a git checkout, *rev* is not a commit of it, or the
            tree is far too large.
    """
    tree = Tree(root)
    comparison = compare(tree.root, rev)
    with at_revision(tree.root, comparison.commit) as base:
        return reached(tree, Tree(base), comparison, presets)


def reached(tree: Tree, base: Tree, comparison: Changeset, presets: bool = False) -> list[Affected]:
    """Return what :func:`affected` returns, for the working tree and *base*, with which it was
    compared.
    """
    changed = comparison.changes
    paths = _recipe_files(tree, comparison.files)
    if not _holds_recipes(tree, paths) and not _holds_recipes(
        base, _recipe_files(base, comparison.files)
    ):
        what = "no file in it is a recipe"
        fix = "Give the folder that imports are resolved in, such as modelopt_recipes."
        raise UsageError(tree.root, what, fix)
    selected = [
        affected_recipe for path in paths if (affected_recipe := _reached(tree, path, comparison))
    ]
    selected = _each_once(selected)
    selected += _unknown_snippets(tree, comparison, selected)
    moved = {
        f"renamed to {_name(tree, affected_recipe.path)}"
        for affected_recipe in selected
        if affected_recipe.path
    }
    selected += _removed(base, changed, moved)
    return sorted(
        (
            affected_recipe
            for affected_recipe in selected
            if presets or affected_recipe.kind != "preset"
        ),
        key=lambda affected_recipe: affected_recipe.recipe,
    )


def _holds_recipes(tree: Tree, paths: Iterable[Path]) -> bool:
    """Whether any of *paths* is, or might be, more than a preset."""
    for path in paths:
        try:
            if files.is_folder(path) or kind_of(tree.read(path), tree) != "preset":
                return True
        except UsageError:
            return True
    return False


def _recipe_files(tree: Tree, compared: Iterable[str]) -> list[Path]:
    """Return the recipes among the files *compared*, folders that hold one, and files that cannot
    be read and might be one.
    """
    paths_found: list[Path] = []
    for path in (tree.root / name for name in compared):
        if sections := section_files(path.parent):
            if path == sections[0]:
                paths_found.append(path.parent)
            if path in sections:
                continue
        try:
            if tree.holds(path, path) and kind_of(tree.read(path), tree) is None:
                continue
        except UsageError:
            pass  # reported as the recipe's defect, if the change reaches it
        paths_found.append(path)
    return paths_found


def _each_once(selected: Iterable[Affected]) -> list[Affected]:
    """Return *selected* without links to a recipe that is selected itself, or by another link."""
    by_file: dict[Path, Affected] = {}
    for affected_recipe in sorted(
        selected,
        key=lambda affected_recipe: (
            affected_recipe.path is not None and _is_linked(affected_recipe.path),
            affected_recipe.recipe,
        ),
    ):
        assert affected_recipe.path is not None, "what is removed is added later"
        by_file.setdefault(_real(affected_recipe.path), affected_recipe)
    return list(by_file.values())


def _is_linked(path: Path) -> bool:
    return _real(path) != path


def _real(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # a link in a circle
        return path


def _unknown_snippets(
    tree: Tree, comparison: Changeset, selected: Iterable[Affected]
) -> list[Affected]:
    """Changed files with a schema that nobody here knows, which no selected recipe imports:
    snippets or recipes?
    """
    seen = {
        name
        for affected_recipe in selected
        for reach in affected_recipe.reaches
        for name in reach.chain
    }
    unread = []
    for name in comparison.files:
        if name not in comparison.changes or name in seen:
            continue
        path = tree.root / name
        try:
            document = tree.read(path)
        except UsageError:
            continue  # selected as a recipe
        if (
            document.schema is not None
            and document.schema not in _SNIPPETS
            and kind_of(document) is None
        ):
            why = (
                f"it declares {document.schema}, which is not a kind of snippet or recipe that is "
                f"known here"
            )
            reach = Reach((name,), comparison.changes[name])
            unread.append(
                Affected(_recipe_name(tree, path), path, "unknown", (reach,), unknown=why)
            )
    return unread


def _reached(tree: Tree, path: Path, comparison: Changeset) -> Affected | None:
    """Return the recipe at *path* with the changes that it reaches, or None; breadth first, so that
    chains are the shortest.
    """
    reaches: dict[str, Reach] = {}
    broken: str | None = None
    starts = section_files(path) or (path,)
    queue: deque[tuple[Path, tuple[str, ...]]] = deque(
        (start, (_name(tree, start),)) for start in starts
    )
    seen = set(starts)
    while queue:
        file, chain = queue.popleft()
        for name in _footprint(tree, file):
            change = _change(comparison, name)
            if change and name not in reaches:
                reaches[name] = Reach(chain if name == chain[-1] else (*chain, name), change)
        try:
            imports = (
                tree.read(file).imports.values()
                if tree.holds(file, file) and files.exists(file)
                else ()
            )
            for target in imports:
                for imported in _probed(tree, target, file):
                    if imported not in seen:
                        seen.add(imported)
                        queue.append((imported, (*chain, _name(tree, imported))))
        except UsageError as error:
            broken = broken or str(error)
    if not reaches:
        return None
    kind, unknown = "unknown", None
    try:
        kind = "ptq" if files.is_folder(path) else kind_of(tree.read(path), tree) or "unknown"
        unknown = None if files.is_folder(path) else _why_unknown(tree.read(path), kind)
        for start in starts:
            tree.resolve(tree.read(start))
    except UsageError as error:
        broken = broken or str(error)
    if not str(path).isprintable():
        broken = broken or str(
            UsageError(repr(path.name), "is not a plain file name", "Rename it.")
        )
    if unknown and any(part.startswith(".") for part in path.relative_to(tree.root).parts):
        return None  # a configuration of some tool, such as .pre-commit-config.yaml
    return Affected(
        _recipe_name(tree, path), path, kind, tuple(reaches.values()), broken, unknown=unknown
    )


def _why_unknown(document: Document, kind: str) -> str | None:
    """Return why the gate does not know whether *document* is a recipe, or None where the document
    itself or its folder says so.
    """
    declared = document.schema is not None or (
        isinstance(document.body, dict) and "metadata" in document.body
    )
    if declared or kind in judged.JUDGED or any(map(kind.startswith, judged.OTHER_KINDS)):
        return None
    return "it says neither by metadata.recipe_type nor by a modelopt-schema comment what it is"


def states_type(tree: Tree, path: Path) -> bool:
    """Whether the recipe at *path* names its kind in the way that every release of ModelOpt
    reads.
    """
    try:
        return files.is_folder(path) or loading.states_type(tree.read(path))
    except UsageError:
        return True


def _change(comparison: Changeset, name: str) -> str | None:
    """Return what happened to the file *name*; a file that is not compared may have changed."""
    if name in comparison.changes:
        return comparison.changes[name]
    for part in comparison.left_out:
        if part.changed and (
            name == part.path or (part.path.endswith("/") and name.startswith(part.path))
        ):
            return f"in {part.path}, {part.why}" if part.path.endswith("/") else part.why
    return None


def _probed(tree: Tree, target: str, where: Path) -> Iterator[Path]:
    """Return the files that decide what an import of *target* finds: the first that exists, and
    those tried before it.
    """
    for candidate in tree.candidates(target, where):
        yield candidate
        if tree.holds(candidate, where) and files.is_file(candidate):
            return


def _footprint(tree: Tree, file: Path) -> Iterator[str]:
    """Return the names whose change changes what is read at *file*: itself, the symbolic links on
    the way, and their targets.
    """
    yield _name(tree, file)
    for folder in file.parents:
        if folder == tree.root:
            break
        if folder.is_symlink():
            yield _name(tree, folder)
    try:
        real = file.resolve()
    except (OSError, RuntimeError):
        return
    if real != file and tree.root in real.parents:
        yield _name(tree, real)


def _name(tree: Tree, path: Path) -> str:
    return path.relative_to(tree.root).as_posix()


def _recipe_name(tree: Tree, path: Path) -> str:
    """The name that ModelOpt and :func:`harness.recipes.finding.find` give it: without suffix,
    where that is not ambiguous.
    """
    short = path.with_suffix("")
    others = [short, *(Path(f"{short}{suffix}") for suffix in SUFFIXES)]
    alone = path.suffix in SUFFIXES and not any(
        files.exists(other) for other in others if other != path
    )
    return _name(tree, short if alone else path)


def _removed(base: Tree, changed: dict[str, str], moved: Collection[str]) -> list[Affected]:
    """Return the recipes of the base that are gone, except those that were moved (*moved*: the new
    names).
    """
    gone: dict[Path, Affected] = {}
    for name, what in changed.items():
        path = base.root / name
        left = what == "removed" or (what.startswith("renamed to ") and what not in moved)
        if not left or not name.endswith(SUFFIXES) or not files.is_file(path):
            continue
        try:
            kind = kind_of(base.read(path), base) if base.holds(path, path) else None
        except UsageError:
            continue  # it was no recipe that anyone could load
        if path in (section_files(path.parent) or ()):
            path, kind = path.parent, "ptq"
        if kind is not None:
            gone[path] = Affected(
                _recipe_name(base, path), None, kind, (Reach((name,), what),), removed=True
            )
    return list(gone.values())


def describe(selection: Iterable[Affected]) -> str:
    """*selection* for a terminal: each recipe, and below it the imports that lead to each
    change.
    """
    lines = []
    for affected_recipe in selection:
        kind = "" if affected_recipe.kind == "ptq" else f" ({affected_recipe.kind})"
        lines.append(f"- {escaping.shown(affected_recipe.recipe, None)}{kind}")
        for reach in affected_recipe.reaches:
            way = " -> ".join(escaping.shown(name, None) for name in reach.chain)
            lines.append(f"  - {way}: {escaping.shown(reach.change, None)}")
        if affected_recipe.broken:
            lines.append("  - broken: see refused")
    return "\n".join(lines)


def not_gated(affected_recipe: Affected) -> str | None:
    """Return why the gate has no verdict on recipes of this kind, or None.

    One that gets None is to be loaded and asked about again:
    :func:`harness.recipes.judged.not_gated`.
    """
    if affected_recipe.removed:
        return "the recipe was removed"
    other = any(affected_recipe.kind.startswith(start) for start in judged.OTHER_KINDS)
    return (
        judged.kind_not_gated(affected_recipe.kind)
        if other and not affected_recipe.broken and not affected_recipe.unknown
        else None
    )
