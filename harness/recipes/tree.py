"""A tree of recipes read as untrusted data: bounded YAML, imports that stay inside the tree,
``$import`` resolution.

ModelOpt's own loader imports whatever module a schema comment names, follows imports to any file of
the machine and expands aliases without limit.  A pull request's recipe must not reach that code
before it was read here.  What this module accepts it resolves as ModelOpt does (the tests compare
the two on every shipped recipe); it imports neither ModelOpt nor torch, so the graph of imports
costs milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, overload

from harness import files
from harness.errors import UsageError
from harness.files import shown
from harness.files.limits import MAX_YAML_VALUES
from harness.files.located import Located, LocatedList, place_at
from harness.recipes.yaml_reading import MAX_FILE_BYTES, SPLIT, Document, UnreadableError, parse

SUFFIXES = (".yml", ".yaml")
#: Limits, each far above what ModelOpt 0.47's tree holds.
MAX_RESOLVED = MAX_YAML_VALUES  # values of a recipe with its imports resolved
MAX_TOTAL = 5 * MAX_RESOLVED  # of all the snippets of one recipe together, each counted by itself
MAX_TREE_BYTES = 2 * 1024 * 1024  # of all files that are read of one tree
MAX_IMPORT_DEPTH = 24
MAX_NAME = 512  # characters of a path in ``imports``


#: Folders that ModelOpt 0.48 renamed: the old prefix of a name, and the new one.
_RENAMED = (
    ("huggingface/models/", "models/"),
    ("model_type/models/", "models/"),
    ("huggingface/", "model_type/"),
)


def spellings(name: str) -> list[str]:
    """Return the *name* of a file in a tree as given, then as newer and as older trees call it."""
    newer = [new + name[len(old) :] for old, new in _RENAMED if name.startswith(old)]
    older = [old + name[len(new) :] for old, new in _RENAMED if name.startswith(new)]
    return list(dict.fromkeys([name, *newer, *older]))


@dataclass(frozen=True)
class Snippet:
    """An imported document resolved once for all that import it: its data, their size, and its own
    imports.
    """

    document: Document
    data: object
    size: int
    imports: tuple[Path, ...]


@dataclass(frozen=True)
class Resolved:
    """A document without ``$import`` markers: its data, every file that went into it (its own
    first), and the data of each imported snippet, which the schema it declares has yet to check.
    """

    data: Any
    files: tuple[Path, ...]
    snippets: tuple[tuple[Document, object], ...]


class Tree:
    """The files under one root.  Nothing outside it is opened, whatever a file inside says."""

    def __init__(self, root: Path) -> None:
        try:
            self.root = root.resolve(strict=True)
        except (OSError, RuntimeError, ValueError) as error:
            raise UsageError(
                root, f"no such directory ({error})", "Give the modelopt_recipes tree."
            ) from error
        if not files.is_folder(self.root):
            raise UsageError(
                root, "is not a directory", "Give the modelopt_recipes tree of a checkout."
            )
        self._documents: dict[Path, Document | UsageError] = {}
        self._bytes = 0
        self.snippets: dict[Path, Snippet | UsageError] = {}

    @property
    def is_newer_form(self) -> bool:
        """Whether the tree is laid out as from ModelOpt 0.48 on, where a recipe's schema says its
        kind.
        """
        return files.is_folder(self.root / "model_type")

    def candidates(self, name: str, where: str | Path) -> list[Path]:
        """Return the paths that an import of *name* can mean; the first that exists counts.

        They are inside the tree as they are written.

        Raises:
            UsageError: the name is absolute, climbs with ``..``, or is not a name.
        """
        fix = "Import by a path relative to the tree's root, such as configs/numerics/fp8."
        if not isinstance(name, str) or not name:
            raise UsageError(where, f"an import path is {shown(name)}, not a name", fix)
        if len(name) > MAX_NAME or not name.isprintable() or "\\" in name:
            raise UsageError(where, f"the import path {shown(name)} is not a plain file name", fix)
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or re.match(r"^[A-Za-z]:|^~", name):
            raise UsageError(where, f"the import {shown(name)} leads outside the tree", fix)
        suffixes = [""] if name.endswith(SUFFIXES) else list(SUFFIXES)
        return [
            self.root / PurePosixPath(spelling + suffix)
            for spelling in spellings(name)
            for suffix in suffixes
        ]

    def locate(self, name: str, where: str | Path) -> Path:
        """The file that an import of *name* means.

        Raises:
            UsageError: there is none, or it lies outside the tree (by a symbolic link, say).
        """
        for candidate in self.candidates(name, where):
            if self.holds(candidate, where) and files.is_file(candidate):
                return candidate
        raise UsageError(
            where,
            f"the import {shown(name)} does not exist under {self.root}",
            "Correct its path, or add the file.",
        )

    def holds(self, path: Path, where: str | Path) -> bool:
        """True when *path*, its symbolic links followed, lies inside the tree.

        Raises:
            UsageError: a symbolic link leads outside, or in a circle.
        """
        fix = "Put the file itself there, not a link to it."
        try:
            real = path.resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise UsageError(
                where, f"{shown(str(path))} cannot be followed ({error})", fix
            ) from error
        if real != self.root and self.root not in real.parents:
            raise UsageError(
                where, f"{shown(str(path))} is a link that leads outside {self.root}", fix
            )
        return True

    def read(self, path: Path) -> Document:
        """The parsed file, once a tree.  *path* need not lie inside: a recipe that the user names
        may import from it.

        Raises:
            UsageError: the file is not readable, too large, not YAML, or not of the shape of a
                recipe or a snippet.
        """
        if path not in self._documents:
            try:
                text = _text_of(path)
                self._bytes += len(text)
                if self._bytes > MAX_TREE_BYTES:
                    raise UnreadableError(
                        path,
                        f"is one file too many: over {MAX_TREE_BYTES >> 20} MiB were read",
                        SPLIT,
                    )
                self._documents[path] = parse(text, path)
            except UsageError as error:
                self._documents[path] = (
                    error  # a defect costs its time once, however many recipes lead to it
                )
        return _or_raise(self._documents[path])

    def resolve(self, document: Document) -> Resolved:
        """*document* with every ``$import``, to any depth, replaced by what it names.

        Raises:
            UsageError: an import is unknown, missing, circular, or the result is too large.
        """
        return _Resolver(self).run(document)


def _text_of(path: Path) -> str:
    try:
        return files.read_text(path, limit=MAX_FILE_BYTES, what="recipe")
    except UsageError as error:
        raise UnreadableError(error.where, error.what, error.fix) from error


_Kept = TypeVar("_Kept", Document, Snippet)


def _or_raise(outcome: _Kept | UsageError) -> _Kept:
    if isinstance(outcome, UsageError):
        raise outcome.with_traceback(None)
    return outcome


class _Resolver:
    """One resolution: every snippet on the way resolved once, the chain that leads to each watched
    for circles.
    """

    def __init__(self, tree: Tree) -> None:
        self.tree = tree

    def run(self, document: Document) -> Resolved:
        data, _, imports = self._document(document, (document.path,))
        used: dict[Path, Snippet] = {}
        self._collect(imports, used)
        if sum(snippet.size for snippet in used.values()) > MAX_TOTAL:
            raise UsageError(document.path, f"imports more than {MAX_TOTAL} values", "Import less.")
        snippets = tuple((snippet.document, snippet.data) for snippet in used.values())
        return Resolved(data, (document.path, *used), snippets)

    def _collect(self, paths: tuple[Path, ...], used: dict[Path, Snippet]) -> None:
        for path in paths:
            if path not in used:
                used[path] = _or_raise(self.tree.snippets[path])
                self._collect(used[path].imports, used)

    def _document(
        self, document: Document, chain: tuple[Path, ...]
    ) -> tuple[object, int, tuple[Path, ...]]:
        paths = {name: self._import(name, document, chain) for name in document.imports}
        imports = {name: _or_raise(self.tree.snippets[path]) for name, path in paths.items()}
        data, size = _Splicer(document, imports).run()
        return data, size, tuple(dict.fromkeys(paths.values()))

    def _import(self, name: str, document: Document, chain: tuple[Path, ...]) -> Path:
        """The file of the import *name*, its snippet resolved and kept, or the reason kept why it
        cannot be.
        """
        where = document.import_place(name)
        path = self.tree.locate(document.imports[name], where)
        reals = [known.resolve() for known in chain]
        if path.resolve() in reals:
            circle = [*chain[reals.index(path.resolve()) :], path]
            names = " -> ".join(p.name for p in circle)
            raise UsageError(where, f"the imports run in a circle: {names}", "Break it.")
        if len(chain) > MAX_IMPORT_DEPTH:
            raise UsageError(
                where,
                f"is imported over more than {MAX_IMPORT_DEPTH} files",
                "Flatten the imports.",
            )
        if path not in self.tree.snippets:
            try:
                snippet = self.tree.read(path)
                if snippet.schema is None:
                    fix = "Add the comment '# modelopt-schema: ...' that says what the snippet is."
                    raise UsageError(
                        path,
                        f"is imported by {document.path.name} without declaring a schema",
                        fix,
                    )
                self.tree.snippets[path] = Snippet(
                    snippet, *self._document(snippet, (*chain, path))
                )
            except UsageError as error:
                self.tree.snippets[path] = error
        return path


class _Splicer:
    """Replaces the ``$import`` markers of one document by the resolved data of its imports,
    counting the size.
    """

    def __init__(self, document: Document, imports: dict[str, Snippet]) -> None:
        self.document = document
        self.imports = imports
        self.size = 0

    def run(self) -> tuple[object, int]:
        return self._value(self.document.body, str(self.document.path)), self.size

    def _count(self, nodes: int, where: str) -> None:
        self.size += nodes
        if self.size > MAX_RESOLVED:
            raise UsageError(where, f"resolves to more than {MAX_RESOLVED} values", "Import less.")

    def _lookup(self, name: object, where: str) -> object:
        if not isinstance(name, str) or name not in self.imports:
            known = ", ".join(self.imports) or "none"
            raise UsageError(
                where,
                f"$import names {shown(name)}",
                f"Declare it under imports: (declared: {known}).",
            )
        self._count(self.imports[name].size, where)
        return self.imports[name].data

    def _value(self, value: object, where: str) -> object:
        self._count(1, where)
        if isinstance(value, dict):
            return self._mapping(value, getattr(value, "place", "") or where)
        if isinstance(value, list):
            return self._list(value, where)
        return value

    def _mapping(self, value: dict[object, object], where: str) -> Located:
        """A mapping: what it imports first, its own keys over that."""
        result = Located()
        result.place, result.places = where, dict(getattr(value, "places", {}))
        names = value.get("$import", [])
        for name in names if isinstance(names, list) else [names]:
            here = place_at(value, ["$import"], where)
            imported = self._lookup(name, here)
            if not isinstance(imported, dict):
                raise UsageError(
                    here, f"$import {shown(name)} is a list where a mapping stands", "Import one."
                )
            result.update(imported)
            result.places = getattr(imported, "places", {}) | result.places
        result.update(
            {key: self._value(item, where) for key, item in value.items() if key != "$import"}
        )
        return result

    def _list(self, value: list[object], where: str) -> list[object]:
        """A list: an item that is only an import is spliced in (a list) or stands there (a
        mapping).
        """
        result = LocatedList()
        for number, item in enumerate(value):
            place = place_at(value, [number], where)
            if not (isinstance(item, dict) and list(item) == ["$import"]):
                result.add(self._value(item, where), place)
                continue
            imported = self._lookup(item["$import"], getattr(item, "place", "") or where)
            if isinstance(imported, list):
                for inner, imported_item in enumerate(imported):
                    result.add(imported_item, place_at(imported, [inner], place), place)
            else:
                result.add(imported, place, place)
        return result


@overload
def plain(value: Mapping[str, object]) -> dict[str, object]: ...
@overload
def plain(value: object) -> object: ...
def plain(value: object) -> object:
    """A deep copy of resolved data in dicts, lists and tuples of Python's own: what ModelOpt is
    handed.
    """
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value
