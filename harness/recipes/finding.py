"""Which file a recipe's name means: one of this package, of ModelOpt's tree, or a path."""

from __future__ import annotations

import re
from pathlib import Path

from harness import digests, files, modelopt_tree
from harness.errors import UsageError
from harness.recipes import unknown
from harness.recipes.tree import SUFFIXES, Tree, spellings

HERE = Path(__file__).parent / "library"
#: The recipes that a plain ``pytest`` gates, in the order of the reports.
DEFAULT = (
    "fp8",
    "fp8-patch-embedding-fp16",
    "fp8-linear-only",
    "fp8-per-channel",
    "int8",
    "int8-smoothquant",
    "int4-awq",
    "w4a8-awq",
)
#: Recipes that search for formats: what they choose depends on weights and data.
SEARCHES = ("auto-fp8-int4",)
#: Further recipes, in the folder ``more``: gated by name (``--recipe svdquant``), not by a plain
#: ``pytest``.
MORE = (
    "fp8-mse",
    "int4-block",
    "int4-awq-clip",
    "int4-awq-full",
    "int4-gptq",
    "svdquant",
    *SEARCHES,
    "int4-double-quantization",
    *("nvfp4", "nvfp4-static", "mxfp8", "mxfp6", "mxfp4", "mxint8"),  # CUDA
)
#: The files of a recipe that is a folder.
SECTIONS = ("metadata", "quantize")
_PYTHON = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")


def installed_root() -> Path:
    """The ``modelopt_recipes`` tree of the installed ModelOpt, found without importing it.

    Raises:
        UsageError: this ModelOpt has none.
    """
    path = modelopt_tree.installed()
    if path is None:
        fix = "Install nvidia-modelopt 0.44 or newer."
        raise UsageError(modelopt_tree.NAME, "no recipes are installed with this ModelOpt", fix)
    return path


def name_of(ref: str, root: Path | None = None) -> str:
    """The name that :func:`load` gives the recipe of *ref*, without reading it.

    Raises:
        UsageError: there is no such recipe.
    """
    path = path_of(ref, root)
    if path is None:
        return ref.rpartition(":")[2]
    return short_name(path, root if root is not None else installed_root())


def path_of(ref: str, root: Path | None = None) -> Path | None:
    """The file or folder that *ref* means, or None: it is a ``module:ATTRIBUTE``.

    Raises:
        UsageError: there is no such recipe.
    """
    if not isinstance(ref, str) or not ref or not ref.isprintable():
        raise UsageError(
            f"--recipe {ref!r}",
            "is not a recipe name",
            f"Give one of {', '.join(DEFAULT)}, ..., or a path.",
        )
    if _PYTHON.match(ref) and not files.exists(ref):
        return None
    return find(
        ref, Tree(root if root is not None else installed_root()), given_root=root is not None
    )


def find(ref: str, tree: Tree, given_root: bool = False) -> Path:
    """Return the file, or the directory with metadata and quantize files, that *ref* means.

    What is written as a path (``./fp8``, ``/data/fp8.yaml``, ``~/fp8``) is a path.  Any other name
    is looked up in these places, in this order: the tree that the person named, if there is one;
    this package's recipes, if the name has no folder and no suffix; the working directory; the
    installed tree.

    Args:
        ref: as for :func:`load`.
        tree: ModelOpt's installed one, or another.
        given_root: whether the person named this tree (``--recipes-root``): its files come first.

    Raises:
        UsageError: there is none.
    """
    meanings = _meanings(ref, tree, given_root)
    if meanings and meanings[0].suffix in unknown.PYTHON:
        raise unknown.python_file(ref)
    if meanings:
        return meanings[0]
    raise unknown.refusal(ref, tree, DEFAULT + MORE)


def also_means(ref: str, root: Path | None = None) -> str | None:
    """One line that says what else goes by the name *ref*, or None: the name has one meaning.

    Raises:
        UsageError: there is no such recipe.
    """
    if path_of(ref, root) is None:
        return None
    tree = Tree(root if root is not None else installed_root())
    first, *others = _meanings(ref, tree, given_root=root is not None)
    rest = [path for path in others if path.resolve() != first.resolve()]
    if not rest:
        return None
    what = f"the recipe {ref} of this package" if HERE in first.parents else str(first)
    other = str(rest[0]) if rest[0].is_absolute() else f"./{rest[0]}"
    return f"--recipe {ref} means {what}; to gate the other one of this name, give {other}"


def _meanings(ref: str, tree: Tree, given_root: bool) -> list[Path]:
    """Every recipe that *ref* may mean, the one that counts first."""
    path = files.expand(ref, option="--recipe")
    if path.parts[:1] and path.parts[0].startswith(
        "~"
    ):  # "./~x": a file of that name, not to be expanded again
        path = path.absolute()
    typed = _with_suffixes(path)
    if path.is_absolute() or ref.startswith(("./", "../")):
        return [file for file in typed if _exists(file)]
    inside: list[Path] = []
    if ".." not in path.parts:
        inside = [
            file
            for spelling in spellings(ref)
            for file in _with_suffixes(tree.root / spelling)
            if _exists(file) and tree.holds(file, ref)
        ]
    own: list[Path] = []
    if "/" not in ref and not ref.endswith(SUFFIXES):
        own = [HERE / f"{ref}.yaml", HERE / "more" / f"{ref}.yaml"]
    candidates = [*inside, *own, *typed] if given_root else [*own, *typed, *inside]
    return [file for file in candidates if _exists(file)]


def _with_suffixes(path: Path) -> list[Path]:
    """*path* and, where it has no suffix of a YAML file, the files that may be meant by it."""
    if path.name.endswith(SUFFIXES):
        return [path]
    return [path, *(path.with_name(path.name + suffix) for suffix in SUFFIXES if path.name)]


def _exists(path: Path) -> bool:
    return files.is_file(path) or (files.is_folder(path) and section_files(path) is not None)


def section_files(directory: Path) -> tuple[Path, Path] | None:
    """Return the metadata and quantize files of a recipe that is a directory, or None."""
    section_paths = [
        next((p for s in SUFFIXES if files.is_file(p := directory / f"{n}{s}")), None)
        for n in SECTIONS
    ]
    return (section_paths[0], section_paths[1]) if section_paths[0] and section_paths[1] else None


def own_name(path: Path) -> str | None:
    """The name of this package's recipe that is the file *path*, or None: it is another one."""
    real = path.resolve()
    here = HERE.resolve()
    return real.stem if real.parent in (here, here / "more") else None


def own_reference(name: str, root: Path) -> str:
    """What means this package's recipe *name* where the tree *root* may hold a file of that
    name.
    """
    path = path_of(name, root)
    if path is not None and own_name(path) == name:
        return name
    return str(
        next(
            own
            for own in (HERE / f"{name}.yaml", HERE / "more" / f"{name}.yaml")
            if files.is_file(own)
        )
    )


def place_of(path: Path, root: Path | None = None) -> tuple[Path, str]:
    """The folder below which the recipe at *path* is named, and its path from there with its
    suffix.

    The folder is the tree for one of its recipes, links followed, and any other's own folder.
    """
    real = path.resolve()
    top = (root if root is not None else installed_root()).resolve()
    if top in real.parents and own_name(path) is None:
        return top, real.relative_to(top).as_posix()
    return path.absolute().parent, path.name


def fit(text: str) -> str:
    """*text* with only such characters as test ids and names of folders may have."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip(".-")


def short_name(path: Path, root: Path) -> str:
    """Short and fit for test ids and folder names: ``fp8``; for a recipe of the tree its path with
    dots.
    """
    shown = place_of(path, root)[1]
    bare = Path(shown).with_suffix("").as_posix() if files.is_file(path) else shown
    name = fit(bare.replace("/", "."))
    return name or f"recipe-{digests.of_text(shown)[:8]}"
