"""What to say of a ``--recipe`` that leads to no recipe: why, and what was probably meant."""

from __future__ import annotations

import ast
import difflib
import os
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from importlib.machinery import ModuleSpec
from itertools import islice
from pathlib import Path
from types import ModuleType

from harness import files, modelopt_tree
from harness.errors import UsageError
from harness.recipes.tree import SUFFIXES, Tree

MAX_NAMES = 2000  # of a tree or a folder that are compared with what was given
MAX_SOURCE = 1_000_000  # bytes of a Python module
MAX_LISTED = 8  # names that are listed where none is near
MAX_NEAR = 3  # names that are proposed
#: Python's names of ModelOpt's own configurations: ``mtq.FP8_DEFAULT_CFG``.
_CONSTANT = re.compile(r"^(?:\w+\.)*([A-Z0-9_]+_CFG)$")
#: Suffixes of files of Python.
PYTHON = (".py", ".pyc")
_ONCE = "Give --recipe once for each"


def refusal(ref: str, tree: Tree, own: Collection[str]) -> UsageError:
    """Return what to say of *ref*, which means no recipe.

    Args:
        ref: as it was given.
        tree: the tree in which names are looked up.
        own: the names of this package's recipes.
    """
    path = files.expand(ref, option="--recipe")
    reason_and_fix = (
        _kind(path)
        or _in_tree(ref, tree)
        or _several(ref, tree, own)
        or _in_other_words(ref, path)
        or (_no_file(ref, path, tree, own) if _is_path(ref) else _no_name(ref, tree, own))
    )
    return UsageError(f"--recipe {ref}", *reason_and_fix)


def python_file(ref: str) -> UsageError:
    """Return what to say of *ref*, a file of Python."""
    fix = f"Name what it holds: {_as_module(f'{ref}:quant_cfg')}."
    return UsageError(f"--recipe {ref}", "is a Python file, not a recipe in YAML", fix)


def _in_other_words(ref: str, path: Path) -> tuple[str, str] | None:
    """What is wrong where *ref* is neither a name nor a path."""
    if re.match(r"\w+://", ref):
        return "is an address, not a file", "Download it first, and give the file."
    if ":" in ref:
        attribute = ref.rpartition(":")[2]
        dotted = f", with dots: {_as_module(ref)}" if attribute.isidentifier() else ""
        return "is neither a file nor module:ATTRIBUTE", f"Write module:ATTRIBUTE{dotted}."
    if path.suffix in PYTHON:
        return "is not a file", f"Name what it holds: {_as_module(f'{ref}:quant_cfg')}."
    if re.search(r"[*?\[]", ref):
        what = "is a pattern, which matches no file where pytest was started"
        return what, f"{_ONCE} file."
    return None


def _kind(path: Path) -> tuple[str, str] | None:
    """What is wrong where there is something at *path* that is not a recipe."""
    if not os.path.lexists(path):
        return None
    if files.is_folder(path):
        inside = [str(path / name) for name in _yaml_names(path)]
        return (
            "is a folder and not a recipe (which would hold metadata.yaml and quantize.yaml)",
            _one_of(inside) if inside else "Give a file, or --recipes-root for a tree of recipes.",
        )
    if not files.exists(path):
        return "is a link to nothing", "Correct the link, or give the file itself."
    return "is not a regular file", "Give a YAML file."


def _in_tree(ref: str, tree: Tree) -> tuple[str, str] | None:
    """What is wrong where *ref* is a folder of the tree."""
    folder = tree.root / ref
    if ".." in folder.parts or not files.is_folder(folder):
        return None
    inside = [name for name in _tree_names(tree) if name.startswith(f"{ref.strip('/')}/")]
    return f"is a folder of {tree.root}, not a recipe", _one_of(inside)


def _several(ref: str, tree: Tree, own: Collection[str]) -> tuple[str, str] | None:
    """What is wrong where *ref* lists several recipes."""
    parts = [part for part in re.split(r"[,;\s]+", ref) if part]
    known = {*own, *_tree_names(tree)}
    listed = "," in ref or ";" in ref
    if len(parts) < 2 or not (listed or all(part in known or files.exists(part) for part in parts)):
        return None
    words = " ".join(f"--recipe {part}" for part in parts[:MAX_NEAR])
    more = " ..." if len(parts) > MAX_NEAR else ""
    return f"names {len(parts)} recipes at once", f"{_ONCE}: {words}{more}"


def _is_path(ref: str) -> bool:
    """Whether *ref* is written as a path of a file."""
    begins = ("/", "./", "../", "~")
    return ref.startswith(begins) or ref.endswith((*SUFFIXES, ".json", ".txt"))


def _no_file(ref: str, path: Path, tree: Tree, own: Collection[str]) -> tuple[str, str]:
    folder, named = path.parent, [*own, *_tree_names(tree)]
    what, near = "there is no such file", []
    if not files.is_folder(folder):
        what = f"there is no such file: {folder} is not a folder"
    elif _bare(ref) not in named:
        start = ref[: len(ref) - len(path.name)]
        near = nearest(path.name, [*_yaml_names(folder), *_folders(folder)], start)
    return what, meant(near or nearest(_bare(ref), named)) or "Correct the path."


def _no_name(ref: str, tree: Tree, own: Collection[str]) -> tuple[str, str]:
    installed = modelopt_tree.installed()
    is_installed = installed is not None and installed.resolve() == tree.root
    place = "ModelOpt" if is_installed else tree.root
    what = f"names no recipe of this package or of {place}, and no file"
    if constant := _CONSTANT.match(ref):
        return what, f"For ModelOpt's own, write modelopt.torch.quantization:{constant[1]}."
    names = [*own, *_tree_names(tree), *_yaml_names(Path())]
    near = nearest(ref, names)
    if not near:  # a part of a longer name: its last words
        last = {name.rpartition("/")[2]: name for name in reversed(names)}
        near = [last[similar] for similar in nearest(ref.rpartition("/")[2], list(last))]
    first = ", ".join(list(own)[:MAX_LISTED])
    everything = f"Give one of {first}, ..., a name in the tree, a YAML path or module:ATTRIBUTE."
    return what, meant(near) or everything


def nearest(ref: str, names: Collection[str], start: str = "") -> list[str]:
    """Return those of *names* that are most like *ref*, each behind *start*."""
    bare = {_bare(name).lower(): name for name in reversed(list(names))}
    asked = _bare(ref).strip("/").lower()
    if asked in bare:
        return [start + bare[asked]]
    near = difflib.get_close_matches(asked, bare, MAX_NEAR)
    alike = [difflib.SequenceMatcher(None, asked, candidate).ratio() for candidate in near]
    # Next to a name that differs in a letter, one that differs in half of them is noise.
    return [
        start + bare[candidate]
        for candidate, ratio in zip(near, alike, strict=True)
        if ratio > alike[0] - 0.15
    ]


def meant(near: list[str]) -> str:
    """Return the question whether one of *near* was meant; empty where there is not one."""
    if not near:
        return ""
    *others, last = map(repr, near)
    listed = f"{', '.join(others)} or {last}" if others else last
    return f"Did you mean {listed}?"


def _one_of(names: list[str]) -> str:
    more = ", ..." if len(names) > MAX_NEAR else ""
    return f"Give one of its recipes: {', '.join(names[:MAX_NEAR])}{more}"


def _bare(ref: str) -> str:
    """*ref* without what makes it a path."""
    name = ref.removeprefix("./")
    return name.removesuffix(".yaml").removesuffix(".yml")


def _as_module(ref: str) -> str:
    """*ref*, the path of a Python file and an attribute, as ``module:ATTRIBUTE``."""
    path, _, attribute = ref.rpartition(":")
    parts = path.removesuffix(".pyc").removesuffix(".py").replace("\\", "/").split("/")
    module = ".".join(re.sub(r"\W", "_", part) for part in parts if part not in ("", ".", ".."))
    return f"{module or 'module'}:{attribute if attribute.isidentifier() else 'ATTRIBUTE'}"


def _tree_names(tree: Tree) -> list[str]:
    """The names of the files of *tree* that can be recipes."""
    every = (Path(at, name) for at, _, names in os.walk(tree.root) for name in names)
    tree_files = (
        path.relative_to(tree.root).with_suffix("").as_posix()
        for path in every
        if path.name.endswith(SUFFIXES)
    )
    return sorted(name for name in islice(tree_files, MAX_NAMES) if not name.startswith("configs/"))


def _yaml_names(folder: Path) -> list[str]:
    return [name for name in _names(folder) if name.endswith(SUFFIXES)]


def _folders(folder: Path) -> list[str]:
    return [name for name in _names(folder) if files.is_folder(folder / name)]


def _names(folder: Path) -> list[str]:
    try:
        return files.names(folder)[:MAX_NAMES]
    except UsageError:  # nothing to propose
        return []


# -- module:ATTRIBUTE ------------------------------------------------------------------------------


def missing_module(module: str) -> tuple[str, str] | None:
    """What is wrong where Python finds no module of the name *module*; nothing is imported."""
    path: Sequence[str] | None = None
    parts = module.split(".")
    if parts[-1] == "py" and len(parts) > 1:
        fix = f"Leave out .py: {'.'.join(parts[:-1])}:ATTRIBUTE."
        return f"there is no module {module!r}", fix
    for number, part in enumerate(parts, 1):
        name = ".".join(parts[:number])
        spec = _spec(name, path)
        if spec is None:
            before = "".join(f"{package}." for package in parts[: number - 1])
            near = nearest(part, list(_modules(sys.path if path is None else path)), before)
            fix = "Correct it, or start pytest where it can be imported (PYTHONPATH)."
            return f"there is no module {name!r}", meant(near) or fix
        path = list(spec.submodule_search_locations or ())
    return None


def _spec(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    """Where Python finds the module *name*, whose parents are not imported for it."""
    loaded = getattr(sys.modules.get(name), "__spec__", None)
    finders = (finder.find_spec(name, path) for finder in sys.meta_path)
    return loaded or next((spec for spec in finders if spec is not None), None)


def needs_no_library(module: str) -> bool:
    """Whether the module *module*, one file, imports nothing but Python's own library: it can be
    read at once.
    """
    spec = None if "." in module else _spec(module, None)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return False
    try:
        tree = ast.parse(files.read_bytes(spec.origin, limit=MAX_SOURCE))
    except (UsageError, SyntaxError, ValueError, RecursionError, MemoryError):
        return True  # importing it says what is wrong
    names = [
        name
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else _aliases(node))
    ]
    return all(name.partition(".")[0] in sys.stdlib_module_names for name in names)


def _aliases(node: ast.Import) -> list[str]:
    return [alias.name for alias in node.names]


def _modules(places: Collection[str]) -> Iterator[str]:
    """The modules and packages in the folders *places*."""
    for place in places:
        folder = Path(place or ".")
        if not files.is_folder(folder):
            continue
        for name in _names(folder):
            bare = name.removesuffix(".py")
            if bare.isidentifier() and (bare != name or files.is_folder(folder / name)):
                yield bare


def missing_attribute(ref: str, value: object, name: str) -> tuple[str, str]:
    """What is wrong where *value*, to which *ref* leads so far, has no attribute *name*."""
    if isinstance(value, ModuleType) and missing_module(f"{ref}.{name}") is None:
        return f"{name!r} is a module of {ref}", f"Write {ref}.{name}:ATTRIBUTE."
    near = nearest(name, [attribute for attribute in dir(value) if not attribute.startswith("__")])
    return f"{ref} has no attribute {name!r}", meant(near) or "Correct module:ATTRIBUTE."
