"""From paths to problems: which files are recipes, what is wrong with each, and on which line."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import files
from harness.errors import UnforeseenError, UsageError, reading
from harness.files import NotYamlError
from harness.files.located import Place
from harness.lint.known import Release, installed
from harness.lint.recorded import FileSettingError, Recorded
from harness.lint.rules import check, known_families, level
from harness.recipes.finding import installed_root, section_files
from harness.recipes.loading import SEARCHED, Recipe, kind_of, load_in
from harness.recipes.tree import SUFFIXES, Tree
from harness.recipes.yaml_reading import Document, UnreadableError

MAX_FILES = 20_000  # that are looked at below the given folders
#: Folders of a tree of recipes; a folder that has one of them is such a tree.
_PARTS = ("configs", "general", "huggingface", "model_type", "models")
_JUDGED = ("ptq", "preset", SEARCHED)
#: What a file that is meant as a recipe or a snippet contains, even where it is not YAML.
_SIGNS = ("recipe_type:", "modelopt-schema:", "quant_cfg:")


@dataclass(frozen=True, order=True)
class LintProblem:
    """One problem: where it is (line and column from 1), its rule, what is wrong, and the fix."""

    path: str
    line: int
    column: int
    rule: str
    what: str
    fix: str

    @property
    def level(self) -> str:
        """``error``, or ``note``: something to know, which does not make the lint fail."""
        return level(self.rule)


@dataclass(frozen=True)
class LintOutcome:
    """What a run of the lint found: problems by place, the reasons why files cannot be read, the
    recipes looked at.
    """

    problems: tuple[LintProblem, ...]
    unreadable: tuple[UsageError, ...]
    recipes: int

    @property
    def exit_code(self) -> int:
        """4: something cannot be read; 1: there are problems; 0."""
        if self.unreadable:
            return 4
        return 1 if any(problem.level == "error" for problem in self.problems) else 0


def lint(paths: Sequence[str | Path], root: Path | None = None) -> LintOutcome:
    """Look at recipe files, and at all recipes below folders.

    Args:
        paths: files and folders.
        root: the tree in which imports are looked up; None: the tree that a file is in, or the
            installed ModelOpt's.

    Raises:
        UsageError: a path does not exist, or holds no recipe.
    """
    run = _Run(installed(), root)
    for path in paths:
        expanded = files.expand(path)
        if (
            not files.exists(expanded)
            and not expanded.is_symlink()
            and not os.path.lexists(expanded)
        ):
            raise UsageError(expanded, "there is no such file or folder", "Correct the path.")
        if files.is_folder(expanded):
            run.folder(expanded)
        else:
            run.file(expanded)
    if not run.looked_at and not run.problems and not run.unreadable:
        raise UsageError(
            ", ".join(map(str, paths)),
            "holds no recipe",
            "Give recipe files, or a tree of recipes.",
        )
    problems = {
        (problem.path, problem.line, problem.column, problem.rule): problem
        for problem in sorted(run.problems, reverse=True)
    }
    return LintOutcome(
        tuple(sorted(problems.values())), tuple(run.unreadable.values()), len(run.looked_at)
    )


class _Run:
    """One run: trees are read once, families are matched once."""

    def __init__(self, release: Release, root: Path | None) -> None:
        self.families = known_families(release.version)
        self.schema = Recorded(release)
        self.root = root
        self.trees: dict[Path, Tree] = {}
        self.problems: list[LintProblem] = []
        self.unreadable: dict[str, UsageError] = {}
        self.looked_at: set[Path] = set()
        self.users: dict[Path, dict[Path, list[Path]]] = {}

    # -- which files --

    def folder(self, folder: Path) -> None:
        """Look at every recipe below *folder*."""
        if section_files(folder):
            self._recipe(folder, self._tree(folder))
            return
        for path in yaml_files(folder):
            tree = self._tree(path)
            document = self._read(path, tree, named=False)
            if document is not None:
                self._document(path, document, tree, named=False)

    def file(self, path: Path) -> None:
        """Look at the recipe in *path*, or, if it is a snippet, at the recipes that import it."""
        tree = self._tree(path)
        document = self._read(path, tree, named=True)
        if document is not None:
            self._document(path, document, tree, named=True)

    def _document(self, path: Path, document: Document, tree: Tree, named: bool) -> None:
        sections = section_files(path.parent)
        if sections and path in sections:
            self._recipe(path.parent, tree)
            return
        try:
            kind = kind_of(document, tree)
        except UsageError as error:
            self._report(error, "schema", path)
            return
        if not named and not _declares(document):
            return  # some other YAML
        is_part = kind is None or (kind == "preset" and "configs" in path.parts)
        if not is_part:
            self._recipe(path, tree)
            return
        users = self._users(tree).get(_real(path), []) if named else []
        before = len(self.problems)
        for user in users:
            self._recipe(user, tree)
        here = _real(path)
        self.problems[before:] = [
            problem
            for problem in self.problems[before:]
            if problem.level == "error" or _real(Path(problem.path)) == here
        ]
        if not users:
            self._snippet(document, tree)

    def _tree(self, path: Path) -> Tree:
        """The tree in which the imports of the file or folder *path* are looked up."""
        root = self.root or root_of(path)
        if root not in self.trees:
            self.trees[root] = Tree(root)
        return self.trees[root]

    def _users(self, tree: Tree) -> dict[Path, list[Path]]:
        """The recipes of *tree* that import each of its files."""
        if tree.root not in self.users:
            users: dict[Path, list[Path]] = {}
            for path in yaml_files(tree.root):
                try:
                    document = tree.read(path)
                    if kind_of(document, tree) in (None, "preset"):
                        continue
                    imported = tree.resolve(document).files
                except UsageError:
                    continue  # reported where it is looked at
                for file in imported:
                    users.setdefault(_real(file), []).append(path)
            self.users[tree.root] = users
        return self.users[tree.root]

    # -- one file --

    def _read(self, path: Path, tree: Tree, named: bool) -> Document | None:
        try:
            return tree.read(path)
        except NotYamlError as error:
            if named or tree.root in _real(path).parents or _has_signs(path):
                self._report(error, "yaml", path)
        except UnreadableError as error:
            self.unreadable[str(error)] = error
        except UsageError as error:
            if named or tree.root in _real(path).parents or _has_signs(path):
                self._report(error, "schema", path)
        return None

    def _recipe(self, path: Path, tree: Tree) -> None:
        if path in self.looked_at:
            return
        self.looked_at.add(path)
        self.schema.problems = []
        recipe: Recipe | None = None
        starts = section_files(path) or (path,)
        resolved = [self._imports(start, tree) for start in starts]  # of both files of a folder
        if all(resolved):
            try:
                with reading(path):
                    recipe = load_in(path, tree, self.schema)
            except UsageError as error:
                self.schema.problems.append(error)
        for problem in self.schema.problems:
            self._report(problem, _rule_of(problem), path)
        if recipe is not None and recipe.kind in _JUDGED:
            try:
                with reading(path):
                    for finding in check(recipe, self.families):
                        self._report(
                            UsageError(finding.place, finding.what, finding.fix), finding.rule, path
                        )
            except UsageError as error:
                self._report(error, "schema", path)

    def _imports(self, path: Path, tree: Tree) -> bool:
        """Report every import of *path* that does not resolve; True if all do."""
        before = len(self.problems) + len(self.unreadable)
        try:
            document = tree.read(path)
        except UsageError as error:
            self._report(error, "yaml", path)
            return False
        for name, target in document.imports.items():
            try:
                tree.locate(target, document.import_place(name))
            except UsageError as error:
                self._report(error, "import", path)
        if len(self.problems) + len(self.unreadable) == before:
            try:
                tree.resolve(document)
            except UsageError as error:
                self._report(error, "yaml" if isinstance(error, NotYamlError) else "import", path)
        return len(self.problems) + len(self.unreadable) == before

    def _snippet(self, document: Document, tree: Tree) -> None:
        """Look at a snippet that no recipe imports, or that is not asked about by name."""
        self.schema.problems = []
        if document.schema is not None and self._imports(document.path, tree):
            self.schema.snippet(document, tree.resolve(document).data)
        for problem in self.schema.problems:
            self._report(problem, _rule_of(problem), document.path)
        self.looked_at.add(document.path)

    def _report(self, error: UsageError, rule: str, path: Path) -> None:
        if isinstance(error, (UnreadableError, UnforeseenError)):
            self.unreadable[str(error)] = error
            return
        for single in getattr(error, "errors", (error,)):
            place = single.where
            if isinstance(place, Place):
                where, line, column = place.path, place.line, place.column
            else:
                where, line, column = _file_and_line(str(place), path)
            self.problems.append(
                LintProblem(_shown(where), line, column, rule, single.what.rstrip("."), single.fix)
            )


def root_of(path: Path) -> Path:
    """Return the tree of recipes that *path* is in, or the installed ModelOpt's, or else the folder
    of *path*.
    """
    real = _real(path)
    for folder in (real, *real.parents):
        if folder.name == "modelopt_recipes" and files.is_folder(folder):
            return folder
        if (
            files.is_folder(folder / "configs" / "ptq")
            or sum(files.is_folder(folder / part) for part in _PARTS) > 1
        ):
            return folder
    try:
        return installed_root()
    except UsageError:
        return real if files.is_folder(real) else real.parent


def yaml_files(folder: Path) -> Iterator[Path]:
    """The YAML files below *folder* by name, without hidden folders; links to folders are not
    followed.

    Raises:
        UsageError: there are far too many files.
    """
    seen = 0
    for at, folders, names in os.walk(files.folder(folder)):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        seen += len(names) + 1
        if seen > MAX_FILES:
            raise UsageError(
                folder, f"holds more than {MAX_FILES:,} files", "Give the tree of recipes."
            )
        yield from (
            Path(at, name)
            for name in sorted(names)
            if name.endswith(SUFFIXES) and not name.startswith(".")
        )


def _declares(document: Document) -> bool:
    """Whether *document* says of itself that it is a recipe or a snippet."""
    body = document.body
    return document.schema is not None or (
        isinstance(body, dict) and ("metadata" in body or "quantize" in body or "$import" in body)
    )


def _has_signs(path: Path) -> bool:
    try:
        text = files.read_text(path, what="recipe")
    except UsageError:
        return False
    return any(sign in text for sign in _SIGNS)


def _rule_of(problem: UsageError) -> str:
    if isinstance(problem, FileSettingError):
        return "files"
    return "unknown-attribute" if problem.what.startswith("unknown attribute") else "schema"


def _file_and_line(where: str, path: Path) -> tuple[Path, int, int]:
    """The file and line of a place that is known as text alone: ``file:line ...``, or a file."""
    name = str(path)
    rest = where.removeprefix(name) if where.startswith(name) else ""
    number = rest[1:].split(" ")[0].split(",")[0] if rest.startswith(":") else ""
    if rest or where == name or not files.exists(where):
        return path, int(number) if number.isdigit() else 1, 1
    return Path(where), 1, 1


def _shown(path: Path) -> str:
    """*path* as a person gave it, or from the working directory where it is below that."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_absolute() and here in path.parents else str(path)


def _real(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # a link in a circle
        return path.absolute()
