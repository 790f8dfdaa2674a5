"""Recipes: what to quantize and how, from YAML in ModelOpt's schema or from a Python ``quant_cfg``,
in one form.

A recipe is named as in ``--recipe REF``: one of this package's (``fp8``), one of ModelOpt's
(``huggingface/vit/ptq/fp8``), a YAML path, or ``module:ATTRIBUTE``.  YAML is untrusted: it is read
by :mod:`harness.recipes.tree` and only its resolved, plain data is handed to ModelOpt's schema.  A
Python reference is imported, as the person who typed it asked for.
"""

from __future__ import annotations

import copy
import difflib
import importlib
import json
import re
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from harness import digests, files
from harness.errors import UsageError
from harness.files.located import Located, place_at
from harness.recipes import algorithms, unknown
from harness.recipes.checking import Installed, Schema, first_line
from harness.recipes.finding import SECTIONS, installed_root, path_of, section_files, short_name
from harness.recipes.schema import check_pattern
from harness.recipes.tree import Tree, plain
from harness.recipes.yaml_reading import Document

MAX_ENTRIES = 500  # of one recipe, resolved
MAX_FORMATS = 16  # that one search chooses among; each calibrates the whole model
_WORD = re.compile(r"^[A-Za-z0-9_-]{1,40}$", re.ASCII)
#: The kind of recipe that has ModelOpt search for formats.
SEARCHED = "auto_quantize"
_PRESET = "modelopt.torch.quantization.config.QuantizeConfig"


@dataclass(frozen=True)
class Entry:
    """One line of a resolved ``quant_cfg``; lines apply in order and the last that matches wins.

    ``cfg`` holds quantizer attributes (num_bits, axis, block_sizes, ...; a list for a sequential
    quantizer), or None where the line only switches.  ``origin`` is ``file:line``, or what is known
    of it.  ``written`` is the key that the author wrote where that is not the pattern: ``default``
    in the older dict form.  ``imported_at`` is where the recipe's own file imports the line, or
    empty.
    """

    pattern: str
    parent_class: str | None
    enable: bool
    cfg: dict[str, object] | list[dict[str, object]] | None
    origin: str
    written: str = ""
    imported_at: str = ""

    @property
    def position(self) -> str:
        """Where the recipe's own file has the line among its others: where it is written, or
        imported.
        """
        return self.imported_at or self.origin

    @property
    def shown(self) -> str:
        """The pattern as its author wrote it."""
        return self.written or self.pattern

    @property
    def attributes(self) -> list[dict[str, object]]:
        """The attributes that the line gives, one dict per part of a sequential quantizer; one
        empty dict where the line only switches.
        """
        return self.cfg if isinstance(self.cfg, list) else [self.cfg or {}]


@dataclass(frozen=True)
class Recipe:
    """A loaded recipe.

    ``quant_cfg`` is exactly what ``mtq.quantize`` takes, in the form it was published in (a list,
    or the older dict with its order); ``entries`` is the same in application order.  ``algorithm``
    is what ModelOpt will calibrate with (see :mod:`harness.recipes.algorithms`): ``max`` where a
    recipe does not say, None where nothing is calibrated. ``files`` are the recipe's file and all
    it imports.  ``hash`` is the sha256 (hex) of the canonical JSON of entries and algorithm, so
    comments, file layout and dict-or-list form leave it alone. ``kind`` is ``ptq``, or
    ``auto_quantize`` for a recipe that has ModelOpt search a format for each layer: quant_cfg is
    then what ``mtq.auto_quantize`` takes (and ``score_size``), entries are empty until the search
    has chosen (:func:`harness.quantization.search.chosen`), and ``candidates`` are the formats as
    recipes of their own, a fixed baseline first; ``unknown`` are fields of a search that the gate
    does not know, which it therefore does not judge. object other kind has no quant_cfg and no
    entries:
    ``harness.recipes.judged.not_gated`` says why.
    """

    name: str
    source: str
    path: Path | None
    quant_cfg: dict[str, Any]
    algorithm: object
    entries: tuple[Entry, ...]
    files: tuple[Path, ...]
    hash: str
    kind: str = "ptq"
    candidates: tuple[Recipe, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[Recipe, ...]:
        """The recipes with entries that an author wrote: the candidates of a search, or this
        one.
        """
        return self.candidates or (self,)


def load(ref: str, root: Path | None = None, schema: Schema | None = None) -> Recipe:
    """The recipe that *ref* names, resolved, checked against ModelOpt's schema and in one form.

    Args:
        ref: a name in harness/recipes/library, a name in the tree, a YAML path, or
            ``module:ATTRIBUTE``.
        root: the tree in which ModelOpt's names and ``$import`` are looked up; None: the installed
            one.
        schema: what decides whether ModelOpt takes its parts; None: the installed ModelOpt.

    Raises:
        UsageError: there is no such recipe, or it cannot be used: with the file, the place in it
            and the fix.
    """
    path, schema = path_of(ref, root), schema or Installed()
    if path is None:
        return _from_python(ref, schema)
    return _from_yaml(ref, path, Tree(root if root is not None else installed_root()), schema)


def look(ref: str, root: Path | None = None) -> None:
    """Read the files that *ref* means and what they import; ModelOpt, which knows the rest, is not
    imported.

    Raises:
        UsageError: there is no such recipe, or a file is not YAML, not a recipe, or imports what is
            not there.
    """
    path = path_of(ref, root)
    if path is None:
        if is_quick(ref, root):
            _attribute(ref)
        return
    tree = Tree(root if root is not None else installed_root())
    if files.is_folder(path):
        for file in section_files(path) or ():
            tree.resolve(tree.read(file))
        return
    document = tree.read(path)
    _check_declared(document, kind_of(document, tree), tree)
    tree.resolve(document)


def is_quick(ref: str, root: Path | None = None) -> bool:
    """Whether *ref* can be read without importing libraries: a file, or a module that needs none.

    Raises:
        UsageError: there is no such recipe.
    """
    if path_of(ref, root) is not None:
        return True
    module = ref.partition(":")[0]
    with _importable_from_here():
        if wrong := unknown.missing_module(module):
            raise UsageError(f"--recipe {ref}", *wrong)
        return unknown.needs_no_library(module)


def load_file(path: Path, root: Path) -> Recipe:
    """The recipe in the file (or folder) *path*, whose imports are looked up in the tree *root*.

    Raises:
        UsageError: as :func:`load`.
    """
    return load_in(path, Tree(root))


def load_in(path: Path, tree: Tree, schema: Schema | None = None) -> Recipe:
    """As :func:`load_file`, in a tree of which files may have been read, and by any *schema*.

    Raises:
        UsageError: as :func:`load`.
    """
    return _from_yaml(str(path), path, tree, schema or Installed())


# --- YAML


def kind_of(document: Document, tree: Tree | None = None) -> str | None:
    """The kind of recipe that *document* is, or None for a snippet that recipes import.

    ``metadata.recipe_type`` names it, or, from ModelOpt 0.48 on, the schema that its comment
    declares; a complete QuantizeConfig is a ``preset``.  A document that is nothing but an
    ``$import`` is what it imports, which *tree* looks up; what declares neither is called after its
    folder (``distillation``).

    Raises:
        UsageError: it has metadata that names no kind, or imports a recipe that cannot be read.
    """
    declared = _declared_kind(document)
    if declared is not None:
        return declared
    if document.schema is not None and not _has_metadata(document):
        return None
    base = _imported(document, tree) if tree is not None else None
    kind = _declared_kind(base) if base is not None else None
    if kind not in (None, "preset"):
        return kind
    if _has_metadata(document) and (tree is not None or _only_import(document) is None):
        raise UsageError(
            document.path,
            "its metadata has no recipe_type",
            "Write 'metadata: {recipe_type: ptq}'.",
        )
    folder = document.path.parent.name
    return folder if _WORD.match(folder) else "unknown"


def _has_metadata(document: Document) -> bool:
    return isinstance(document.body, dict) and "metadata" in document.body


def states_type(document: Document) -> bool:
    """Whether *document* names its kind in the way that every release of ModelOpt reads."""
    if not _has_metadata(document):
        return False
    metadata_ = document.body["metadata"]
    return isinstance(metadata_, dict) and "recipe_type" in metadata_


def _declared_kind(document: Document) -> str | None:
    """The kind that *document* itself names, by its metadata or its schema."""
    if states_type(document):
        kind = document.body["metadata"]["recipe_type"]
        if not isinstance(kind, str) or not _WORD.match(kind):
            raise UsageError(
                document.path,
                "its metadata has no recipe_type",
                "Write 'metadata: {recipe_type: ptq}'.",
            )
        return kind
    if _has_metadata(document) and not isinstance(document.body["metadata"], dict):
        raise UsageError(
            document.path,
            "its metadata has no recipe_type",
            "Write 'metadata: {recipe_type: ptq}'.",
        )
    if document.schema == _PRESET:
        return "preset"
    if declared := _RECIPE_SCHEMA.match(document.schema or ""):
        return _KIND_OF_SCHEMA.get(declared[1], declared[1].lower())
    return None


#: The classes that a recipe's ``modelopt-schema`` comment can name instead of a recipe_type
#: (ModelOpt 0.48).
_RECIPE_SCHEMA = re.compile(r"^modelopt\.recipe\.config\.ModelOpt(\w+)Recipe$")
_KIND_OF_SCHEMA = {
    "PTQ": "ptq",
    "AutoQuantize": SEARCHED,
    "Eagle": "speculative_eagle",
    "DFlash": "speculative_dflash",
    "Medusa": "speculative_medusa",
}


def _imported(document: Document, tree: Tree) -> Document | None:
    """The document that *document*, which is nothing but an ``$import``, means in the end; None for
    any other one.
    """
    seen = {document.path}
    target_document: Document | None = None
    while (target := _only_import(target_document or document)) is not None:
        path = tree.locate(target, (target_document or document).path)
        if path in seen:
            return None  # resolving it will say so
        seen.add(path)
        target_document = tree.read(path)
        if _declared_kind(target_document) is not None:
            break
    return target_document


def _only_import(document: Document) -> str | None:
    """The path that *document* imports as a whole, or None."""
    body = document.body
    name = (
        body.get("$import")
        if isinstance(body, dict) and not {"quantize", "auto_quantize"} & set(body)
        else None
    )
    return document.imports.get(name) if isinstance(name, str) else None


def declares_without_metadata() -> bool:
    """Whether the installed ModelOpt loads a recipe that has no ``metadata.recipe_type`` (0.48 and
    later).
    """
    try:
        numbers = re.findall(r"\d+", metadata.version("nvidia-modelopt"))[:2]
    except metadata.PackageNotFoundError:  # the lint, where there is no ModelOpt
        return True
    return tuple(map(int, numbers)) >= (0, 48)


def _from_yaml(ref: str, path: Path, tree: Tree, schema: Schema) -> Recipe:
    name = short_name(path, tree.root)
    if files.is_folder(path):
        return _from_directory(ref, name, path, tree, schema)
    document = tree.read(path)
    kind = kind_of(document, tree)
    _check_declared(document, kind, tree)
    resolved = tree.resolve(document)
    if kind not in ("ptq", "preset", SEARCHED):
        assert kind is not None, "a snippet declares no metadata"
        if isinstance(document.body, dict) and "metadata" in document.body:
            schema.kind(kind, path)
        return Recipe(
            name, ref, path, {}, None, (), resolved.files, _digest(plain(resolved.data)), kind
        )
    if document.documents > 1:
        raise UsageError(
            path, "is a recipe of two YAML documents, which ModelOpt cannot load", "Join them."
        )
    for snippet, data in resolved.snippets:
        # A recipe that is imported whole is checked as this one.
        if not _RECIPE_SCHEMA.match(snippet.schema or ""):
            schema.snippet(snippet, data)
    if kind == SEARCHED and (unknown := unknown_fields(resolved.data)):
        digest = _digest(plain(resolved.data))
        return Recipe(
            name, ref, path, {}, None, (), resolved.files, digest, SEARCHED, unknown=unknown
        )
    if kind == SEARCHED:
        return _searched(name, ref, path, _with_type(resolved.data), resolved.files, schema)
    section = resolved.data if kind == "preset" else _section(resolved.data, path)
    return _build(name, ref, path, section, resolved.files, schema)


def _with_type(data: Any) -> Any:
    """A search's *data* with the recipe_type in its metadata, which up to ModelOpt 0.47 the schema
    asks for.
    """
    if not isinstance(data, Located) or not isinstance(data.get("metadata", {}), Mapping):
        return data
    located = Located(data | {"metadata": {"recipe_type": SEARCHED} | data.get("metadata", {})})
    located.place, located.places = data.place, data.places
    return located


def _check_declared(document: Document, kind: str | None, tree: Tree) -> None:
    """Refuse a document that says of itself in no way the installed ModelOpt knows that it is a
    recipe.

    Raises:
        UsageError: it is a snippet, or only a later release of ModelOpt loads it.
    """
    path, body = document.path, document.body
    if kind == "preset" or states_type(document):
        return
    by_schema = document.schema is not None and _RECIPE_SCHEMA.match(document.schema) is not None
    base = _imported(document, tree) if document.schema is None else None
    by_import = base is not None and _declared_kind(base) not in (None, "preset")
    if by_schema or by_import:
        if tree.is_newer_form or declares_without_metadata():
            return
        how = (
            "says what it is by its modelopt-schema alone"
            if by_schema
            else "is nothing but an $import of a recipe"
        )
        release = metadata.version("nvidia-modelopt")
        fix = (
            "Install nvidia-modelopt 0.48 or newer, or write 'metadata: {recipe_type: ptq}' and a "
            "section 'quantize'."
        )
        raise UsageError(path, f"{how}, which ModelOpt {release} cannot load", fix)
    nameless = kind in (None, "ptq", "unknown") or not isinstance(body, dict) or not body
    if nameless or tree.root not in path.parents:
        raise UsageError(
            path,
            "is not a recipe: it has no metadata.recipe_type",
            "Add 'metadata: {recipe_type: ptq}'.",
        )


def _from_directory(ref: str, name: str, path: Path, tree: Tree, schema: Schema) -> Recipe:
    sections = section_files(path)
    assert sections is not None, "find() returns only directories that hold a recipe"
    described, quantize = (tree.resolve(tree.read(file)) for file in sections)
    for snippet, data in (*described.snippets, *quantize.snippets):
        schema.snippet(snippet, data)
    if not isinstance(described.data, dict) or described.data.get("recipe_type") != "ptq":
        raise UsageError(sections[0], "is not a ptq recipe's metadata", "Write 'recipe_type: ptq'.")
    return _build(name, ref, path, quantize.data, (*described.files, *quantize.files), schema)


def _section(data: dict[str, Any], path: Path) -> object:
    for key in data:
        if key not in SECTIONS:
            where = place_at(data, [key], str(path))
            raise UsageError(
                where,
                f"has the unknown section {key!r}",
                "A ptq recipe holds metadata and quantize.",
            )
    described = data.get("metadata", {})
    extra = set(described) - {"recipe_type", "description"}
    if extra or not isinstance(described.get("description", ""), str):
        raise UsageError(
            path,
            f"has metadata that ModelOpt does not know: {sorted(map(str, extra))}",
            "Remove it.",
        )
    if "quantize" not in data:
        raise UsageError(path, "has no section 'quantize'", "Add it: quant_cfg and algorithm.")
    return data["quantize"]


def _build(
    name: str, ref: str, path: Path, section: object, files: tuple[Path, ...], schema: Schema
) -> Recipe:
    """A ptq recipe from its resolved ``quantize`` section."""
    if not isinstance(section, dict) or "quant_cfg" not in section:
        fix = (
            "Without one ModelOpt would quantize everything to INT8: write quant_cfg: and its "
            "entries."
        )
        raise UsageError(
            getattr(section, "place", "") or path, "its quantize section has no quant_cfg", fix
        )
    entries = _entries(
        section["quant_cfg"], place_at(section, ["quant_cfg"], str(path)), path, schema
    )
    algorithm = section.get("algorithm", algorithms.DEFAULT)
    schema.algorithm(algorithm, place_at(section, ["algorithm"], str(path)))
    quant_cfg = schema.section(section, path)
    algorithm = quant_cfg.get("algorithm")
    return Recipe(name, ref, path, quant_cfg, algorithm, entries, files, _hash(entries, algorithm))


#: What the gate knows of a search: sections, and fields of its parts.
_SECTIONS_OF_SEARCH = ("metadata", "quantize", "auto_quantize")
_FIELDS_OF_SEARCH = (
    "constraints",
    "candidate_formats",
    "module_search_spaces",
    "auto_quantize_method",
    "score_size",
    "disabled_layers",
    "cost_excluded_layers",
    "kv_cache",
)
_FIELDS_OF_FORMAT = ("quant_cfg", "algorithm")
_COST_MODELS = (None, "weight", "active_moe")
#: Fields of later releases, which resemble known ones.
_LATER = ("kv_auto_quantize", "effective_bits")


def unknown_fields(data: object) -> tuple[str, ...]:
    """Return the fields of a resolved auto_quantize recipe that the gate does not know; one that
    resembles a known one is left to the schema, which says what was meant.
    """
    unknown: list[str] = []

    def look(part: object, known: Sequence[str], where: str) -> None:
        for key in part if isinstance(part, Mapping) else ():
            is_near = key not in _LATER and difflib.get_close_matches(str(key), known, 1, 0.8)
            if key not in known and not is_near:
                unknown.append(f"{where}{key}")

    look(data, _SECTIONS_OF_SEARCH, "")
    search = data.get("auto_quantize") if isinstance(data, Mapping) else None
    look(search, _FIELDS_OF_SEARCH, "auto_quantize.")
    if isinstance(search, Mapping):
        formats = search.get("candidate_formats")
        for candidate in formats if isinstance(formats, list) else ():
            look(candidate, _FIELDS_OF_FORMAT, "candidate_formats.")
        constraints = search.get("constraints")
        model = constraints.get("cost_model") if isinstance(constraints, Mapping) else None
        if isinstance(model, str) and model not in _COST_MODELS:
            unknown.append(f"constraints.cost_model {model}")
    return tuple(dict.fromkeys(unknown))


def _searched(
    name: str, ref: str, path: Path, data: dict[str, Any], files: tuple[Path, ...], schema: Schema
) -> Recipe:
    """An auto_quantize recipe: its formats by themselves, and all that ``mtq.auto_quantize``
    takes.
    """
    search = schema.search(data, path)
    search_settings = data["auto_quantize"]
    if search.has_kv_cache:
        what = "has auto_quantize.kv_cache, which mtq.auto_quantize does not take"
        raise UsageError(
            place_at(search_settings, ["kv_cache"], str(path)),
            what,
            "Take it out: CLIP has no KV cache.",
        )
    if search.score_size < 1:
        where = place_at(search_settings, ["score_size"], str(path))
        raise UsageError(
            where,
            f"score_size is {search.score_size}, expected 1 or more",
            "Write score_size: 128.",
        )
    spaces = search_settings.get("module_search_spaces") or ()
    for pattern in (
        *search.disabled_layers,
        *search.cost_excluded_layers,
        *(pattern for space in spaces for pattern in space["module_name_patterns"]),
    ):
        check_pattern(pattern, str(path), what="a layer's name")

    def built(section: object, what: str) -> Recipe:
        return _build(f"{name} {what}", ref, path, section, files, schema)

    fixed = built(data["quantize"], "fixed baseline") if data.get("quantize") is not None else None
    formats = [
        built(candidate, f"format {n}")
        for n, candidate in enumerate(search_settings.get("candidate_formats") or (), 1)
    ]
    searched = [
        (
            space,
            [
                built(candidate, f"space {n} format {m}")
                for m, candidate in enumerate(space["candidate_formats"], 1)
            ],
        )
        for n, space in enumerate(spaces, 1)
    ]
    candidates = (
        *([fixed] if fixed else []),
        *formats,
        *(candidate for _, candidates_of_space in searched for candidate in candidates_of_space),
    )
    if len(candidates) > MAX_FORMATS:
        raise UsageError(
            path, f"has {len(candidates)} formats to search among", f"Write at most {MAX_FORMATS}."
        )
    if listed := next(
        (candidate for candidate in candidates if isinstance(candidate.algorithm, (list, tuple))),
        None,
    ):
        what = (
            f"{listed.name.removeprefix(name).strip()} has a list as its algorithm, which a search "
            f"does not take"
        )
        raise UsageError(path, what, "Write one method, such as algorithm: max.")
    constraints = search.constraints
    if search.cost_excluded_layers:
        cost = constraints.setdefault("cost", {})
        cost["excluded_module_name_patterns"] = list(search.cost_excluded_layers)
    arguments: dict[str, Any] = {
        "constraints": constraints,
        "quantization_formats": [candidate.quant_cfg for candidate in formats] or None,
        "fixed_quantization_config": fixed.quant_cfg if fixed else None,
        "module_search_spaces": [
            {
                "module_name_patterns": list(plain(space["module_name_patterns"])),
                "quantization_formats": [candidate.quant_cfg for candidate in candidates_of_space],
                "allow_no_quant": bool(space.get("allow_no_quant", True)),
            }
            for space, candidates_of_space in searched
        ],
        "disabled_layers": list(search.disabled_layers),
        "method": search.method,
        "score_size": search.score_size,
    }
    methods = {
        json.dumps(_canonical(candidate.algorithm), sort_keys=True): candidate.algorithm
        for candidate in candidates
    }
    algorithm = next(iter(methods.values())) if len(methods) == 1 else None
    return Recipe(
        name, ref, path, arguments, algorithm, (), files, _digest(arguments), SEARCHED, candidates
    )


def _entries(
    quant_cfg: object, where: str, source: str | Path, schema: Schema
) -> tuple[Entry, ...]:
    """The lines of *quant_cfg* in application order, each checked where it stands; dict form
    becomes lines too.
    """
    lines = schema.lines(quant_cfg) if isinstance(quant_cfg, Mapping) else quant_cfg
    if not isinstance(lines, list):
        raise UsageError(
            where, "quant_cfg is not a list of entries", "Write '- quantizer_name: ...' lines."
        )
    if len(lines) > MAX_ENTRIES:
        raise UsageError(where, f"has {len(lines)} entries", f"Write fewer than {MAX_ENTRIES}.")
    imported = getattr(lines, "imported_at", {})
    return tuple(
        Entry(
            *fields,
            origin=place,
            written="default" if "default" in line and len(line) == 1 else "",
            imported_at=imported.get(number - 1, ""),
        )
        for number, line in enumerate(lines, 1)
        for place in [
            getattr(line, "place", "") or place_at(lines, [number - 1], f"{source} entry {number}")
        ]
        for fields in schema.entries(line, place)
    )


# --- Python


def _from_python(ref: str, schema: Schema) -> Recipe:
    """A ``quant_cfg`` published as Python: the dict or list that ``mtq.quantize`` took, order and
    traps included.
    """
    value = _attribute(ref)
    if hasattr(value, "model_dump") and not isinstance(value, type):
        # ModelOpt's own QuantizeConfig, which fills in its defaults
        value = {"algorithm": algorithms.DEFAULT} | value.model_dump(exclude_unset=True)
    if isinstance(value, list) or (isinstance(value, dict) and "quant_cfg" not in value):
        value = {"quant_cfg": value, "algorithm": algorithms.DEFAULT}
    if not isinstance(value, dict) or not value["quant_cfg"]:
        reason = "is empty" if isinstance(value, dict) else f"is of type {type(value).__name__}"
        raise UsageError(
            f"--recipe {ref}",
            f"is not a quant_cfg: it {reason}",
            "Name a dict with the keys quant_cfg and algorithm.",
        )
    try:
        value = copy.deepcopy(value)
    except Exception as error:
        what = f"holds what cannot be copied ({type(error).__name__}: {first_line(error)})"
        raise UsageError(f"--recipe {ref}", what, "Hold plain data in it.") from error
    algorithm = value.get("algorithm")
    try:
        entries = _entries(value["quant_cfg"], ref, ref, schema)
        schema.algorithm(algorithm, ref)
    except RecursionError as error:
        what = "is nested too deeply, or holds itself"
        raise UsageError(f"--recipe {ref}", what, "Hold plain data in it.") from error
    name = ref.rpartition(":")[2]
    return Recipe(name, ref, None, value, algorithm, entries, (), _hash(entries, algorithm))


def _attribute(ref: str) -> object:
    """What the reference ``module:ATTRIBUTE`` means."""
    module, _, path = ref.partition(":")
    with _importable_from_here(), _no_warnings():
        if wrong := unknown.missing_module(module):
            raise UsageError(f"--recipe {ref}", *wrong)
        with _told(ref, f"the module {module} raises", "while it is imported"):
            value: object = importlib.import_module(module)
        shown = module
        for part in path.split("."):
            with _told(ref, f"{shown}.{part} raises", "while it is read"):
                is_there = hasattr(value, part)
                following = getattr(value, part, None)
            if not is_there:
                raise UsageError(f"--recipe {ref}", *unknown.missing_attribute(shown, value, part))
            shown, value = f"{shown}.{part}", following
    return value


@contextmanager
def _told(ref: str, before: str, after: str) -> Iterator[None]:
    """Say what somebody's code raises, and where.

    Raises:
        UsageError: it raised anything but what stops pytest.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a module may raise anything: SystemExit, pytest's outcomes
        reason = f"{type(error).__name__}: {first_line(error)}".rstrip(": ")
        what = f"{before} {reason} {after}{_raised_at(error)}"
        raise UsageError(f"--recipe {ref}", what, "Correct the module.") from error


def _raised_at(error: BaseException) -> str:
    """The file and line at which *error* was raised, in brackets; empty where nobody knows."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}:{error.lineno})"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<frozen") and frame.filename != __file__
    ]
    libraries = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})
    own = [frame for frame in frames if not frame.filename.startswith(libraries)] or frames
    return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""


@contextmanager
def _importable_from_here() -> Iterator[None]:
    """Modules of the working directory can be named, as ``python -m pytest`` allows and ``pytest``
    does not.
    """
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)


@contextmanager
def _no_warnings() -> Iterator[None]:
    """ModelOpt warns of the dict form; the gate says by itself what that form does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# --- hash


def _hash(entries: tuple[Entry, ...], algorithm: object) -> str:
    lines = [[e.pattern, e.parent_class, e.enable, e.cfg] for e in entries]
    return _digest({"algorithm": algorithm, "entries": lines})


def _digest(value: object) -> str:
    text = json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return digests.of_text(text)


def _canonical(value: object) -> object:
    """*value* as JSON has it: names for keys, lists for pairs, the qualified name of what only
    Python can hold.
    """
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    return getattr(value, "__qualname__", type(value).__qualname__)
