"""Recipes against ModelOpt's own schema: each entry where it stands, with the attribute meant in
the message.

ModelOpt's pydantic models decide; this module asks them entry by entry, so that a refusal can name
a line instead of the whole list.  Importing ModelOpt costs seconds, so every function does it for
itself.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_origin

import pydantic
from pydantic_core import ErrorDetails

from harness.errors import UsageError
from harness.files.located import named_place, place_at
from harness.recipes import config_form, limits
from harness.recipes.installed import modelopt_config
from harness.recipes.tree import plain
from harness.recipes.yaml_reading import Document

MAX_PATTERN = 256  # characters of a quantizer_name
MAX_WILDCARDS = 16  # of '*' in one, far above any in use: each one more makes matching slower
#: The attention classes of the families (``harness.models.families``) that ModelOpt has registered
#: by the time that a recipe is applied, sorted.
ATTENTION_CLASSES = (
    "Attention",
    "AttentionPoolLatent",
    "CLIPAttention",
    "CLIPSegAttention",
    "Dinov2SelfAttention",
    "EvaAttention",
    "MetaClip2Attention",
    "OwlViTAttention",
    "Owlv2Attention",
    "Siglip2Attention",
    "SiglipAttention",
)

_ABSENT = object()
#: Attributes of a quantizer, of several in a row, or none.
Cfg = dict[str, object] | list[dict[str, object]] | None
Fields = tuple[str, str | None, bool, Cfg]


def check_entry(line: object, place: str) -> list[Fields]:
    """(pattern, parent class, enable, attributes) of one line of a quant_cfg; more than one for the
    older dict forms.

    Raises:
        UsageError: ModelOpt's schema refuses the line, its pattern could make matching crawl, or it
            asks for what ModelOpt cannot run (:mod:`harness.recipes.limits`).
    """
    if not isinstance(line, Mapping) or not all(isinstance(key, str) for key in line):
        raise not_a_mapping(line, place)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the dict form being old
            entries = config_form.normalized(plain(line))
    except config_form.REFUSALS as error:
        alternatives = meanings(line)
        what, fix = explained(error, alternatives, _attributes())
        raise UsageError(_refused_at(error, line, alternatives, place), what, fix) from error
    try:
        return [fields(_dumped(entry), place, _classes) for entry in entries]
    except UsageError as error:
        raise UsageError(named_place(line, error.what, place), error.what, error.fix) from None


def _refused_at(
    error: Exception, line: Mapping[str, object], alternatives: Sequence[object], place: str
) -> str:
    """The place of the value in *line* that ModelOpt's schema refuses with *error*."""
    by_validator = True
    if isinstance(error, pydantic.ValidationError):
        by_validator = _most_telling(error, alternatives)["type"].endswith("_error")
    if by_validator and (problem := _known_refusal(alternatives)) is not None:
        return named_place(line, problem[0], place)
    if "quantizer_name" in line:
        return refused_at(error, line, alternatives, place)
    # The dict form: pattern -> attributes, where an entry has them under cfg
    inner = [
        alternative.get("cfg") for alternative in alternatives if isinstance(alternative, Mapping)
    ]
    keys = [next(iter(line), "")]
    value = line.get(keys[0])
    return refused_at(error, value, inner, place_at(line, keys, place), skipped="cfg")


def _known_refusal(alternatives: Sequence[object]) -> limits.Finding:
    """What the gate itself knows of ModelOpt's validators, which do not say which key they mean."""
    for entry in alternatives:
        rules: list[
            tuple[Callable[[Mapping[str, object]], limits.Finding], Mapping[str, object]]
        ] = []
        if isinstance(entry, Mapping):
            rules = [(limits.refused_entry, entry)]
            rules += [
                (limits.refused_attributes, entry_attributes)
                for entry_attributes in limits.attributes_of(entry)
            ]
        for rule, data in rules:
            try:
                problem = rule(data)
            except (TypeError, ValueError):  # values of other types, which pydantic names
                continue
            if problem is not None:
                return problem
    return None


def refused_at(
    error: Exception, located: object, alternatives: Sequence[object], place: str, skipped: str = ""
) -> str:
    """Return the place of what a schema refuses with *error*.

    Args:
        error: what ModelOpt or pydantic raised.
        located: the data with their places.
        alternatives: the data that were checked; several where one line means several entries.
        place: where they stand.
        skipped: a key at which the schema had *alternatives*, and which *located* does not have.
    """
    keys: list[int | str] = []
    if isinstance(error, pydantic.ValidationError):
        loc = [
            key
            for key in _most_telling(error, alternatives)["loc"]
            if not skipped or key != skipped
        ]
        keys = max((_path(loc, alternative) for alternative in alternatives), key=len, default=[])
    return place_at(located, keys, place) if keys else named_place(located, str(error), place)


def not_a_mapping(line: object, place: str) -> UsageError:
    """Return the refusal of an entry that is not a mapping."""
    return UsageError(
        place,
        f"the entry {line!r:.80} is not a mapping of names",
        "Write quantizer_name, cfg and enable.",
    )


def meanings(line: Mapping[str, object]) -> list[Mapping[str, object]]:
    """Return the entries that *line* means, as far as it can be read."""
    try:
        return list(config_form.entries_of(dict(line)))
    except config_form.REFUSALS:
        return [line]


def _dumped(entry: object) -> dict[str, object]:
    if hasattr(entry, "model_dump"):
        return dict(entry.model_dump(exclude_unset=True))
    assert isinstance(entry, Mapping), "an entry of a release without a class for it"
    return dict(entry)


def fields(entry: Mapping[str, object], place: str, classes: Callable[[], Sequence[str]]) -> Fields:
    """Return the fields of an *entry* that fits ModelOpt's schema, once they are known to be
    usable.

    Args:
        entry: as ModelOpt's schema returns it.
        place: where it stands.
        classes: returns the classes of module that ModelOpt quantizes.

    Raises:
        UsageError: its pattern could make matching crawl, its class is not known, or it asks for
            what ModelOpt cannot run (:mod:`harness.recipes.limits`).
    """
    pattern, parent, cfg = (
        entry["quantizer_name"],
        entry.get("parent_class"),
        cast("Cfg", entry.get("cfg")),
    )
    check_pattern(pattern, place)
    if parent is not None:
        _check_class(parent, place, classes())
    in_a_row = cfg if isinstance(cfg, list) else [cfg or {}]
    if len(in_a_row) > limits.MAX_SEQUENCE:
        fix = f"Write at most {limits.MAX_SEQUENCE}."
        raise UsageError(place, f"cfg lists {len(in_a_row)} quantizers for one place", fix)
    for attributes in in_a_row:
        if problem := limits.attribute_problem(attributes):
            raise UsageError(place, *problem)
    return cast("Fields", (pattern, parent, entry.get("enable", True), cfg))


def check_pattern(pattern: object, place: str, *, what: str = "a quantizer's name") -> None:
    """Refuse a glob that no name can match, or whose matching could take for ever.

    Raises:
        UsageError: it is not plain text of a bounded length with a bounded number of wildcards.
    """
    if (
        not isinstance(pattern, str)
        or not pattern
        or not pattern.isprintable()
        or len(pattern) > MAX_PATTERN
    ):
        raise UsageError(
            place, f"{pattern!r:.80} is not a pattern of {what}", "Write a glob of plain text."
        )
    if pattern.count("*") > MAX_WILDCARDS:
        raise UsageError(
            place, f"the pattern {pattern!r:.80} has over {MAX_WILDCARDS} wildcards", "Use fewer."
        )


def _check_class(name: object, place: str, known: Sequence[str]) -> None:
    """Refuse a ``parent_class`` that ModelOpt does not know: it would raise when the recipe is
    applied.
    """
    check_pattern(name, place)
    if name in known:
        return
    by_case = {class_name.rpartition(".")[2].lower(): class_name for class_name in reversed(known)}
    near = difflib.get_close_matches(str(name).rpartition(".")[2].lower(), by_case, 1, 0.6)
    fix = (
        f"Did you mean {by_case[near[0]]!r}?"
        if near
        else "Write a class such as nn.Linear or nn.Conv2d."
    )
    raise UsageError(
        place, f"parent_class is {name!r:.80}, which no quantized module of ModelOpt has", fix
    )


def _classes() -> Sequence[str]:
    """The classes of module that the installed ModelOpt quantizes, and those of CLIP's attention
    blocks.
    """
    modelopt_config()
    from modelopt.torch.quantization.nn import QuantModuleRegistry

    return [*QuantModuleRegistry._key_registry.values(), *ATTENTION_CLASSES]


def check_snippet(document: Document, data: object) -> None:
    """Hold an imported snippet against the schema that it declares, as ModelOpt does before using
    it.

    Only data types of ModelOpt's two config modules are looked up, by name: a schema that names a
    function, which pydantic would call, is refused.

    Raises:
        UsageError: no such schema, or the snippet does not fit it.
    """
    quantization_config = modelopt_config()
    from modelopt.recipe import config as recipe_config

    assert document.schema is not None, "the resolver refuses a snippet without one"
    module_name, _, name = document.schema.rpartition(".")
    modules = {module.__name__: module for module in (quantization_config, recipe_config)}
    schema: Any = getattr(modules.get(module_name), name, None)
    is_model = isinstance(schema, type) and issubclass(schema, pydantic.BaseModel)
    if not is_model and get_origin(schema) is not list:
        raise unknown_schema(document)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _adapter(document.schema, schema).validate_python(plain(data))
    except config_form.REFUSALS as error:
        where = refused_at(error, data, [data], str(document.path))
        raise UsageError(where, *explained(error, [data], _known(schema))) from error


_ADAPTERS: dict[str, pydantic.TypeAdapter[Any]] = {}


def _adapter(name: str, schema: Any) -> pydantic.TypeAdapter[Any]:
    """What validates by *schema*, made once."""
    if name not in _ADAPTERS:
        _ADAPTERS[name] = pydantic.TypeAdapter(schema)
    return _ADAPTERS[name]


def _known(schema: Any) -> list[str]:
    """The names that can be written in a snippet of *schema*."""
    return _attributes() if get_origin(schema) is list else list(schema.model_fields)


def unknown_schema(document: Document) -> UsageError:
    """Return the refusal of a snippet whose schema this ModelOpt does not have."""
    fix = "Name a type of modelopt.torch.quantization.config, such as QuantizerAttributeConfig."
    return UsageError(
        document.path, f"declares {document.schema}, no schema of this ModelOpt's recipes", fix
    )


def unknown_kind(kind: str, path: Path, known: Sequence[str]) -> UsageError:
    """Return the refusal of a ``recipe_type`` that this ModelOpt does not have."""
    return UsageError(
        path, f"its recipe_type {kind!r} is not one of ModelOpt's", f"Known: {', '.join(known)}."
    )


def check_kind(kind: str, path: Path) -> None:
    """Hold a ``recipe_type`` against the kinds that ModelOpt knows.

    Raises:
        UsageError: it is not one of them.
    """
    modelopt_config()
    from modelopt.recipe.config import RecipeType

    known = [member.value for member in RecipeType]
    if kind not in known:
        raise unknown_kind(kind, path, known)


def explained(
    error: Exception, alternatives: Sequence[object], known: Sequence[str]
) -> tuple[str, str]:
    """What is wrong and the fix, in one sentence each, from the most telling of a schema's
    complaints.

    Args:
        error: what ModelOpt or pydantic raised.
        alternatives: the data that were checked; several where one line means several entries.
        known: the names that could be written where an unknown one is.
    """
    if not isinstance(error, pydantic.ValidationError):
        return f"ModelOpt refuses it: {' '.join(str(error).split())[:300]}", "Correct it."
    return explained_complaint(_most_telling(error, alternatives), alternatives, known)


def _most_telling(error: pydantic.ValidationError, alternatives: Sequence[object]) -> ErrorDetails:
    """The complaint that is about what the author meant."""
    return max(
        error.errors(include_url=False), key=lambda complaint: _weight(complaint, alternatives)
    )


def explained_complaint(
    complaint: ErrorDetails, alternatives: Sequence[object], known: Sequence[str]
) -> tuple[str, str]:
    """What is wrong and the fix, of one complaint: pydantic's, or one of the lint's in the same
    form.

    Args:
        complaint: with its ``type``, ``loc`` (keys), ``msg`` and ``input``.
        alternatives: as for :func:`explained`.
        known: as for :func:`explained`.
    """
    path = max(
        (_path(complaint["loc"], alternative) for alternative in alternatives), key=len, default=[]
    )
    where = ".".join(str(key) for key in path) if path else "it"
    if complaint["type"] == "extra_forbidden":
        key = str(complaint["loc"][-1])
        if key in REMOVED:
            return (
                f"unknown attribute {where!r:.120}, which ModelOpt has up to {REMOVED[key][0]}",
                REMOVED[key][1],
            )
        return f"unknown attribute {where!r:.120}", _meant(key, known, inside="cfg" in path[:-1])
    message = complaint["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    reason = (
        " ".join(message.split())[:300]
        or "its keys or values are not of the types that ModelOpt takes"
    )
    if removed := _removed(complaint, path):
        return removed
    return f"{where} is refused: {reason}", f"It is {complaint['input']!r:.80}; correct it."


def _path(loc: Sequence[int | str], value: object) -> list[int | str]:
    """The keys of *loc* that lead into *value*: without the names that pydantic gives to
    alternatives of a union.
    """
    keys: list[int | str] = []
    for key in loc:
        item: object = _ABSENT
        if isinstance(value, Mapping):
            item = value.get(key, _ABSENT)
        elif isinstance(value, (list, tuple)) and isinstance(key, int) and key < len(value):
            item = value[key]
        if item is not _ABSENT:
            value = item
            keys.append(key)
    return keys


def _meant(key: str, known: Sequence[str], *, inside: bool) -> str:
    """The fix for an unknown *key*: the name that it resembles, or where it belongs.

    Args:
        key: as it is written.
        known: the names that can be written there.
        inside: whether it is written in ``cfg``.
    """
    outer = ("quantizer_name", "parent_class")
    if key in known and key not in outer and not inside:
        return f"Write it under cfg: {{{key}: ...}}."
    if key in outer and inside:
        return f"Write {key} next to cfg, not in it."
    by_case = {name.lower(): name for name in known}
    near = difflib.get_close_matches(key.lower(), by_case, 1, 0.6)
    if near:
        return f"Did you mean {by_case[near[0]]!r}?"
    return f"Known attributes: {', '.join(known)}."


#: Settings that a release of ModelOpt removed -> the last that has them, and what to write since.
REMOVED = {
    "layerwise_checkpoint_dir": ("0.46", "Write layerwise: {enable: true, checkpoint_dir: ...}."),
    "use_sequential": ("0.46", "Write layerwise: {enable: true}."),
}


def _removed(complaint: ErrorDetails, path: Sequence[int | str]) -> tuple[str, str] | None:
    """What is wrong and the fix, where a setting has a form that a release of ModelOpt removed."""
    if list(path[-1:]) != ["layerwise"] or not isinstance(complaint["input"], bool):
        return None
    word = "true" if complaint["input"] else "false"
    return (
        f"layerwise is {word}, a form that ModelOpt has up to 0.46",
        f"Write layerwise: {{enable: {word}}}.",
    )


def _weight(complaint: ErrorDetails, alternatives: Sequence[object]) -> tuple[bool, bool, int]:
    """Rank of a complaint: of a union pydantic reports every member, and only the one the author
    meant helps.
    """
    branches = [str(part) for part in complaint["loc"]]
    is_list = any(
        isinstance(alternative, Mapping) and isinstance(alternative.get("cfg"), list)
        for alternative in alternatives
    )
    meant = any(b.startswith("list[") for b in branches) == is_list
    return meant, complaint["type"] == "extra_forbidden", len(branches)


def _attributes() -> list[str]:
    return [
        "quantizer_name",
        "parent_class",
        "cfg",
        *modelopt_config().QuantizerAttributeConfig.model_fields,
    ]
