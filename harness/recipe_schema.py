"""Recipes against ModelOpt's own schema: each entry where it stands, with the attribute meant in the message.

ModelOpt's pydantic models decide; this module asks them entry by entry, so that a refusal can name a line instead of
the whole list.  Importing ModelOpt costs seconds, so every function does it for itself.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_origin

from harness import config_form
from harness.errors import UsageError
from harness.recipe_tree import plain
from harness.recipe_yaml import Document

MAX_PATTERN = 256  # characters of a quantizer_name
MAX_WILDCARDS = 16  # of '*' in one, far above any in use: each one more makes matching slower

Fields = tuple[str, "str | None", bool, "dict[str, Any] | list[dict[str, Any]] | None"]


def modelopt_config() -> Any:
    """``modelopt.torch.quantization.config``, imported so that ModelOpt finds its plugins.

    torchvision is mended first: with the broken pair ModelOpt would leave out its Hugging Face plugin, and with it the
    attention quantizers, after a warning.
    """
    from harness import compat  # noqa: F401

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of plugins for packages that the gate does without
        from modelopt.torch.quantization import config
    return config


def check_entry(line: Any, place: str) -> list[Fields]:
    """(pattern, parent class, enable, attributes) of one line of a quant_cfg; more than one for the older dict forms.

    Raises:
        UsageError: ModelOpt's schema refuses the line, or its pattern could make matching crawl.
    """
    if not isinstance(line, Mapping) or not all(isinstance(key, str) for key in line):
        raise UsageError(
            place, f"the entry {line!r:.80} is no mapping of names", "Write quantizer_name, cfg and enable."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the dict form being old
            entries = config_form.normalized(dict(line))
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(place, *_explained(error, line)) from error
    return [_fields(entry, place) for entry in entries]


def _fields(entry: Any, place: str) -> Fields:
    data = entry.model_dump(exclude_unset=True) if hasattr(entry, "model_dump") else dict(entry)
    pattern, parent = data["quantizer_name"], data.get("parent_class")
    for name in (pattern, parent or "x"):
        if not isinstance(name, str) or not name or not name.isprintable() or len(name) > MAX_PATTERN:
            raise UsageError(place, f"{name!r:.80} is no pattern of a quantizer's name", "Write a glob of plain text.")
    if pattern.count("*") > MAX_WILDCARDS:
        raise UsageError(place, f"the pattern {pattern!r:.80} has over {MAX_WILDCARDS} wildcards", "Use fewer.")
    for attributes in data["cfg"] if isinstance(data.get("cfg"), list) else [data.get("cfg") or {}]:
        _check_attributes(attributes, place)
    return pattern, parent, data.get("enable", True), data.get("cfg")


def _check_attributes(attributes: Mapping[str, Any], place: str) -> None:
    """What the schema lets pass although YAML cannot mean it: a calibrator to be constructed."""
    calibrator = attributes.get("calibrator", "max")
    if isinstance(calibrator, (list, tuple)) and not callable(next(iter(calibrator), None)):
        raise UsageError(place, f"the calibrator {calibrator!r:.80} is no class", "Write max or histogram.")


def check_snippet(document: Document, data: Any) -> None:
    """Hold an imported snippet against the schema that it declares, as ModelOpt does before using it.

    Only data types of ModelOpt's two config modules are looked up, by name: a schema that names a function, which
    pydantic would call, is refused.

    Raises:
        UsageError: no such schema, or the snippet does not fit it.
    """
    import pydantic

    quantization_config = modelopt_config()
    from modelopt.recipe import config as recipe_config

    assert document.schema is not None, "the resolver refuses a snippet without one"
    module_name, _, name = document.schema.rpartition(".")
    modules = {module.__name__: module for module in (quantization_config, recipe_config)}
    schema: Any = getattr(modules.get(module_name), name, None)
    is_model = isinstance(schema, type) and issubclass(schema, pydantic.BaseModel)
    if not is_model and get_origin(schema) is not list:
        mend = "Name a type of modelopt.torch.quantization.config, such as QuantizerAttributeConfig."
        raise UsageError(document.path, f"declares {document.schema}, no schema of this ModelOpt's recipes", mend)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pydantic.TypeAdapter(schema).validate_python(plain(data))
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(document.path, *_explained(error, data)) from error


def check_kind(kind: str, path: Path) -> None:
    """Hold a ``recipe_type`` against the kinds that ModelOpt knows.

    Raises:
        UsageError: it is none of them.
    """
    modelopt_config()
    from modelopt.recipe.config import RecipeType

    known = [member.value for member in RecipeType]
    if kind not in known:
        raise UsageError(path, f"its recipe_type {kind!r} is none of ModelOpt's", f"Known: {', '.join(known)}.")


def check_algorithm(algorithm: Any, place: str) -> None:
    """Hold a calibration algorithm (a name, a mapping with ``method``, a list of these, or None) against ModelOpt's.

    Raises:
        UsageError: ModelOpt has no such method, or the method no such setting.
    """
    modelopt_config()
    from modelopt.torch.quantization.mode import CalibrateModeRegistry

    for one in algorithm if isinstance(algorithm, (list, tuple)) else [algorithm]:
        settings = dict(one) if isinstance(one, Mapping) else {}
        method = settings.pop("method", None) if isinstance(one, Mapping) else one
        if method is None and one is None:
            continue
        mode = f"{method}_calibrate"
        if not isinstance(method, str) or mode not in CalibrateModeRegistry:
            known = sorted(name.removesuffix("_calibrate") for name in CalibrateModeRegistry._name2descriptor)
            mend = f"This ModelOpt has {', '.join(name for name in known if not name.startswith('_'))}."
            raise UsageError(place, f"there is no calibration algorithm {method!r:.80}", mend)
        try:
            CalibrateModeRegistry[mode].config_class(method=method, **settings)
        except (ValueError, TypeError, AttributeError) as error:
            raise UsageError(f"{place}, algorithm {method}", *_explained(error, settings)) from error


def _explained(error: Exception, given: Any) -> tuple[str, str]:
    """What is wrong and the mend, in one sentence each, from the telling one of a schema's many complaints."""
    import pydantic

    if not isinstance(error, pydantic.ValidationError):
        return f"ModelOpt refuses it: {' '.join(str(error).split())[:300]}", "Correct it."
    complaint = max(error.errors(include_url=False), key=lambda e: _weight(e, given))
    path = [str(part) for part in complaint["loc"] if isinstance(part, int) or str(part)[:1].islower()]
    path = [part for part in path if "[" not in part]
    where = ".".join(path) or "it"
    if complaint["type"] == "extra_forbidden":
        near = difflib.get_close_matches(path[-1], _attributes(), 1, 0.6)
        mend = f"Did you mean {near[0]!r}?" if near else f"Known attributes: {', '.join(_attributes())}."
        return f"unknown attribute {where!r:.120}", mend
    message = complaint["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return f"{where} is refused: {' '.join(message.split())[:300]}", f"It is {complaint['input']!r:.80}; correct it."


def _weight(complaint: Any, given: Any) -> tuple[bool, bool, int]:
    """Rank of a complaint: of a union pydantic reports every member, and only the one the author meant helps."""
    branches = [str(part) for part in complaint["loc"]]
    is_list = isinstance(given, Mapping) and isinstance(given.get("cfg"), list)
    meant = any(b.startswith("list[") for b in branches) == is_list
    return meant, complaint["type"] == "extra_forbidden", len(branches)


def _attributes() -> list[str]:
    return ["quantizer_name", "parent_class", "cfg", *modelopt_config().QuantizerAttributeConfig.model_fields]
