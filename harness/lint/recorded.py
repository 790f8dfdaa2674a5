"""What was recorded of ModelOpt's schemas, asked instead of ModelOpt: each complaint on the line
that causes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, ValidationError, validators
from pydantic_core import ErrorDetails

from harness.errors import UsageError
from harness.files.located import named_place, place_at
from harness.lint.known import Release
from harness.recipes import algorithms, config_form, judged, limits, schema
from harness.recipes.checking import Search
from harness.recipes.tree import plain
from harness.recipes.yaml_reading import Document

_CONFIG, _RECIPE = "modelopt.torch.quantization.config", "modelopt.recipe.config"
_ENTRY = f"{_CONFIG}.QuantizerCfgEntry"
_TRUTHS = {"0", "off", "f", "false", "n", "no", "1", "on", "t", "true", "y", "yes"}
_FALSE = {"0", "off", "f", "false", "n", "no"}


class FileSettingError(UsageError):
    """A setting of an algorithm that names a file or folder."""


class Recorded:
    """The schemas of one release.  What they refuse is kept in ``problems``; what can be read of a
    part is returned.
    """

    def __init__(self, release: Release) -> None:
        self.release = release
        self.problems: list[UsageError] = []
        self._validators: dict[str, Draft202012Validator] = {}
        self._entries: dict[int, tuple[object, list[UsageError], list[schema.Fields]]] = {}
        self._snippets: dict[Path, list[UsageError]] = {}

    # -- what harness.recipes.checking.Schema asks --

    def lines(self, quant_cfg: Mapping[str, object]) -> list[dict[str, object]]:
        """As :class:`harness.recipes.checking.Schema`."""
        return config_form.single_lines(quant_cfg, list(quant_cfg))

    def entries(self, line: object, place: str) -> list[schema.Fields]:
        """As :class:`harness.recipes.checking.Schema`; a line of a snippet is checked once for all
        recipes.
        """
        if id(line) not in self._entries:
            outside, self.problems = self.problems, []
            entries = list(self._of_line(line, place))
            self._entries[id(line)] = (line, self.problems, entries)
            self.problems = outside
        _, problems, entries = self._entries[id(line)]
        self.problems += problems
        return entries

    def snippet(self, document: Document, data: object) -> None:
        """As :class:`harness.recipes.checking.Schema`."""
        if document.path not in self._snippets:
            outside, self.problems = self.problems, []
            self._check_snippet(document, data)
            self._snippets[document.path], self.problems = self.problems, outside
        self.problems += self._snippets[document.path]

    def kind(self, kind: str, path: Path) -> None:
        """As :class:`harness.recipes.checking.Schema`."""
        known = self.release.data["kinds"]
        if kind not in known:
            self.problems.append(schema.unknown_kind(kind, path, known))

    def algorithm(self, algorithm: object, place: str) -> None:
        """As :class:`harness.recipes.checking.Schema`."""
        methods = algorithms.steps(algorithm)
        algorithms.check_count(methods, place)
        for number, method in enumerate(methods):
            here = place_at(algorithm, [number], place) if isinstance(algorithm, list) else place
            if method is not None:
                self._check_method(method, getattr(method, "place", "") or here)

    def section(self, section: Mapping[str, object], path: Path) -> dict[str, object]:
        """As :class:`harness.recipes.checking.Schema`."""
        name = f"{_CONFIG}.QuantizeConfig"
        self._complain(name, _without_formats(section), section, str(path), self._names(name))
        return {"algorithm": algorithms.DEFAULT, **plain(section)}

    def search(self, data: Mapping[str, Any], path: Path) -> Search:
        """As :class:`harness.recipes.checking.Schema`.

        Raises:
            UsageError: the recipe has not the form of a search.
        """
        name = f"{_RECIPE}.ModelOptAutoQuantizeRecipe"
        before = len(self.problems)
        known = [*self._names(name), *self._names(f"{_RECIPE}.AutoQuantizeConfig")]
        self._complain(name, _without_formats(data), data, str(path), known)
        if len(self.problems) > before:
            raise self.problems.pop()
        settings: dict[str, Any] = plain(data["auto_quantize"])
        if not settings.get("candidate_formats") and not settings.get("module_search_spaces"):
            where = place_at(data, ["auto_quantize"], str(path))
            raise UsageError(
                where, "auto_quantize has no candidate_formats", "List the formats to search among."
            )
        filled = self._defaults(f"{_RECIPE}.AutoQuantizeConfig") | settings
        return Search(
            dict(settings["constraints"]),
            filled["disabled_layers"],
            filled.get("cost_excluded_layers", ()),
            filled["auto_quantize_method"],
            int(filled["score_size"]),
            filled.get("kv_cache") is not None,
        )

    # -- parts --

    def _of_line(self, line: object, place: str) -> Iterator[schema.Fields]:
        """The entries of one line, as far as they can be read."""
        if not isinstance(line, Mapping) or not all(isinstance(key, str) for key in line):
            self.problems.append(schema.not_a_mapping(line, place))
            return
        scoped = any(key.startswith("nn.") for key in line)
        if "quantizer_name" not in line and len(line) != 1 and not scoped:
            self.problems.append(_no_name(line, place))
            return
        for entry in schema.meanings(line):
            attributes = plain(entry)
            outer = [] if "quantizer_name" in line else [next(iter(line))]
            if self._complain(_ENTRY, attributes, line, place, self._attribute_names(), outer):
                entry_found = None
            else:
                entry_found = self._usable(attributes, line, place)
            if entry_found is None:
                entry_found = self._as_far_as_known(entry)
            if entry_found is not None:
                yield entry_found

    def _usable(
        self, entry: dict[str, object], line: Mapping[str, object], place: str
    ) -> schema.Fields | None:
        """The fields of an *entry* of the right types, or None: ModelOpt's validators, or the gate,
        refuse it.
        """
        for attributes in limits.attributes_of(entry):
            names = self._properties(f"{_CONFIG}.QuantizerAttributeConfig")
            attributes.update(_coerced(attributes, names))
        problem = limits.refused_entry(entry)
        entry["enable"] = _truth(entry.get("enable", True))
        for attributes in limits.attributes_of(entry):
            problem = problem or limits.refused_attributes(attributes)
        if problem:
            self.problems.append(UsageError(named_place(line, problem[0], place), *problem))
            return None
        try:
            return schema.fields(entry, place, lambda: self.release.data["classes"])
        except UsageError as error:
            self.problems.append(
                UsageError(named_place(line, error.what, place), error.what, error.fix)
            )
            return None

    def _as_far_as_known(self, entry: Mapping[str, object]) -> schema.Fields | None:
        """The fields of an entry that is refused for its attributes: what it names may be wrong as
        well.
        """
        pattern, parent = entry.get("quantizer_name"), entry.get("parent_class")
        try:
            schema.check_pattern(pattern, "")
        except UsageError:
            return None
        if parent is not None and parent not in self.release.data["classes"]:
            return None
        return (
            str(pattern),
            None if parent is None else str(parent),
            _truth(entry.get("enable", True)),
            None,
        )

    def _check_snippet(self, document: Document, data: object) -> None:
        name = document.schema or ""
        if name not in self.release.data["types"]:
            self.problems.append(schema.unknown_schema(document))
            return
        names = self._attribute_names() if "Cfg" in name or "List" in name else self._names(name)
        self._complain(name, _without_formats(data), data, str(document.path), names)

    def _check_method(self, algorithm: object, place: str) -> None:
        methods = self.release.data["methods"]
        method, settings = algorithms.split(algorithm, list(methods), place)
        name = method if method is not None else "_no"
        settings_in_full: dict[str, object] = {"method": method, **settings}
        if settings_in_full.get("layerwise", {}) is None:
            settings_in_full["layerwise"] = {}
        properties = methods[name]["properties"]
        names = [setting for setting in properties if setting != "method"]
        algorithms.check_keys(settings, names, place)
        for setting in judged.file_settings(algorithm):
            where = place_at(algorithm, setting.split("."), place)
            what = (
                f"{setting} names a file or folder, which ModelOpt would read or write while it "
                f"calibrates"
            )
            self.problems.append(FileSettingError(where, what, f"Remove {setting}."))
        if self._complain(
            f"method {name}", plain(settings_in_full), algorithm, place, list(properties)
        ):
            return
        settings_in_full |= _coerced(settings_in_full, properties)
        if problem := limits.algorithm_problem(self._settings(methods[name], settings_in_full)):
            self.problems.append(UsageError(named_place(algorithm, problem[0], place), *problem))

    def _settings(self, of: Mapping[str, Any], settings: Mapping[str, object]) -> limits.Settings:
        """Settings with defaults filled in; a nested method with its own."""
        defaults = {
            name: description.get("default") for name, description in of["properties"].items()
        }
        values = defaults | dict(settings)
        methods = self.release.data["methods"]
        for name, value in values.items():
            if isinstance(value, Mapping) and value.get("method") in methods:
                values[name] = self._settings(methods[value["method"]], value)
        return limits.Settings(values, defaults)

    # -- JSON Schema --

    def _complain(
        self,
        name: str,
        data: object,
        located: object,
        place: str,
        known: Sequence[str],
        outer: Sequence[str] = (),
    ) -> int:
        """Keep what the schema *name* says against *data*; return how much that is.

        Args:
            name: of the schema.
            data: plain data.
            located: the same with places.
            place: where it stands.
            known: names that could be written where an unknown one is.
            outer: keys that lead to *data* in *located*.
        """
        complaints = list(_complaints(self._validator(name).iter_errors(data)))
        for complaint in complaints:
            keys = [key for key in (*outer, *complaint["loc"]) if not outer or key != "cfg"]
            if complaint["type"] == "missing":
                keys = keys[:-1]
            self.problems.append(
                UsageError(
                    place_at(located, keys, place),
                    *schema.explained_complaint(complaint, [data], known),
                )
            )
        return len(complaints)

    def _validator(self, name: str) -> Draft202012Validator:
        if name not in self._validators:
            types, methods = self.release.data["types"], self.release.data["methods"]
            of = (
                methods[name.removeprefix("method ")] if name.startswith("method ") else types[name]
            )
            self._validators[name] = _Lax({**of, "definitions": self.release.data["definitions"]})
        return self._validators[name]

    def _names(self, name: str) -> list[str]:
        return list(self._properties(name))

    def _defaults(self, name: str) -> dict[str, Any]:
        return {
            key: description.get("default") for key, description in self._properties(name).items()
        }

    def _properties(self, name: str) -> dict[str, Any]:
        return dict(self.release.data["types"].get(name, {}).get("properties", {}))

    def _attribute_names(self) -> list[str]:
        return [
            "quantizer_name",
            "parent_class",
            "cfg",
            *self._names(f"{_CONFIG}.QuantizerAttributeConfig"),
        ]


def _no_name(line: Mapping[str, object], place: str) -> UsageError:
    """The refusal of an entry whose key ``quantizer_name`` is missing or misspelt."""
    key = next((name for name in line if name not in ("cfg", "enable", "parent_class")), "")
    what = f"the entry has no quantizer_name{f' (it has {key!r:.80})' if key else ''}"
    return UsageError(
        place_at(line, [key], place), what, "Write quantizer_name, and cfg or enable."
    )


def _without_formats(data: object) -> object:
    """Plain *data* without what is checked line by line: each ``quant_cfg`` and ``algorithm``."""
    if isinstance(data, Mapping):
        return {
            key: _without_formats(item)
            for key, item in data.items()
            if key not in ("quant_cfg", "algorithm")
        }
    return [_without_formats(item) for item in data] if isinstance(data, list) else data


def _truth(value: object) -> bool:
    return value.lower() not in _FALSE if isinstance(value, str) else bool(value)


# -- the types that pydantic takes for one another -------------------------------------------------


def _is_number(_: object, value: object) -> bool:
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return False
        return True
    return isinstance(value, (int, float))


def _is_integer(_: object, value: object) -> bool:
    return (
        isinstance(value, (str, int, float)) and _is_number(_, value) and float(value).is_integer()
    )


def _is_boolean(_: object, value: object) -> bool:
    if isinstance(value, str):
        return value.lower() in _TRUTHS
    return isinstance(value, bool) or (isinstance(value, (int, float)) and value in (0, 1))


_TYPES = Draft202012Validator.TYPE_CHECKER.redefine_many(
    {
        "array": lambda _, value: isinstance(value, (list, tuple)),
        "boolean": _is_boolean,
        "integer": _is_integer,
        "number": _is_number,
    }
)


def _coerced(values: Mapping[str, object], properties: Mapping[str, Any]) -> dict[str, object]:
    """Text that stands for a number or a truth value, as pydantic reads it."""
    coerced: dict[str, object] = {}
    for name, value in values.items():
        of = properties.get(name, {})
        types = {kind.get("type") for kind in of.get("anyOf", [of])}
        if not isinstance(value, str) or "string" in types or not types - {None}:
            continue
        if "boolean" in types:
            coerced[name] = _truth(value)
        else:
            coerced[name] = int(float(value)) if "integer" in types else float(value)
    return coerced


def _of_numbers(keyword: str) -> Callable[..., Iterator[ValidationError]]:
    """*keyword* of JSON Schema, which compares numbers, for text that stands for one as well."""
    compared = Draft202012Validator.VALIDATORS[keyword]

    def check(
        validator: object, limit: object, value: object, of: object
    ) -> Iterator[ValidationError]:
        if isinstance(value, str) and _is_number(None, value):
            value = float(value)
        yield from compared(validator, limit, value, of) or ()

    return check


_COMPARE = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_Lax = validators.extend(
    Draft202012Validator, {name: _of_numbers(name) for name in _COMPARE}, type_checker=_TYPES
)


def _complaints(errors: Iterable[ValidationError]) -> Iterator[ErrorDetails]:
    """What a schema says against data, in pydantic's form; of a union what its member says that was
    meant.
    """
    for error in errors:
        loc = tuple(error.absolute_path)
        if error.validator in ("anyOf", "oneOf") and (meant := _meant(error)):
            yield from _complaints(meant)
        elif error.validator == "additionalProperties" and error.validator_value is False:
            known = error.schema.get("properties", {})
            for key in error.instance:
                if key not in known:
                    yield {
                        "type": "extra_forbidden",
                        "loc": (*loc, key),
                        "msg": "",
                        "input": error.instance[key],
                    }
        elif error.validator == "required":
            name = next(key for key in error.validator_value if key not in error.instance)
            yield {
                "type": "missing",
                "loc": (*loc, name),
                "msg": f"{name} is missing",
                "input": error.instance,
            }
        else:
            yield {"type": "value", "loc": loc, "msg": _expected(error), "input": error.instance}


def _meant(error: ValidationError) -> list[ValidationError]:
    """The errors of the member of a union whose type *error*'s value has; none if no member has
    it.
    """
    members: dict[object, list[ValidationError]] = {}
    for inner in error.context or ():
        members.setdefault(inner.schema_path[0], []).append(inner)
    fitting = [
        errors
        for errors in members.values()
        if not any(e.validator == "type" and not e.relative_path for e in errors)
    ]
    return min(fitting, key=len, default=[])


def _expected(error: ValidationError) -> str:
    """What *error*'s schema asks for, in words."""
    if error.validator == "type":
        return f"expected {error.validator_value}"
    if error.validator == "enum":
        return f"expected one of {', '.join(map(str, error.validator_value))}"
    if error.validator in ("anyOf", "oneOf"):
        kinds = [str(alternative.get("type", "a mapping")) for alternative in error.validator_value]
        return f"expected {' or '.join(dict.fromkeys(kinds))}"
    return f"expected {error.validator} {error.validator_value}"
