"""The key ``algorithm`` of a recipe, as ModelOpt reads it: one method, a list of them, or none.

This is the one place that knows the forms.  A method is a name (``max``) or a mapping with the key
``method``; a list runs its methods in order.  A recipe without the key means ``max``, which is the
default of ModelOpt's schema.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import pydantic

from harness.errors import UsageError
from harness.files.located import Place, named_place
from harness.recipes import limits

#: What a recipe without the key ``algorithm`` means.
DEFAULT = "max"
MAX_METHODS = 8  # of one recipe; each runs over all calibration data


def methods(algorithm: object) -> tuple[str, ...]:
    """Return the names of the methods that *algorithm* runs, in order; empty where nothing is
    calibrated.
    """
    names = [
        method.get("method") if isinstance(method, Mapping) else method
        for method in steps(algorithm)
    ]
    return tuple(str(name) for name in names if name is not None)


def steps(algorithm: object) -> list[object]:
    """Return *algorithm* as the list of its methods, each as it is written."""
    return list(algorithm) if isinstance(algorithm, (list, tuple)) else [algorithm]


def check(algorithm: object, place: str) -> None:
    """Hold *algorithm* against ModelOpt's methods and their settings.

    Raises:
        UsageError: ModelOpt has no such method, the method no such setting, or the setting a value
            that cannot run.
    """
    methods_in_turn = steps(algorithm)
    check_count(methods_in_turn, place)
    for method_settings in methods_in_turn:
        if method_settings is not None:
            _check_method(method_settings, getattr(method_settings, "place", "") or place)


def check_count(methods: Sequence[object], place: str) -> None:
    """Refuse more methods than a gate can run.

    Raises:
        UsageError: there are too many.
    """
    if len(methods) > MAX_METHODS:
        raise UsageError(
            place, f"algorithm lists {len(methods)} methods", f"Write at most {MAX_METHODS}."
        )


def _check_method(method_settings: object, place: str) -> None:
    # It imports ModelOpt, which takes seconds
    from harness.recipes.installed import modelopt_config
    from harness.recipes.schema import explained, refused_at

    modelopt_config()
    from modelopt.torch.quantization.mode import CalibrateModeRegistry

    known = [name.removesuffix("_calibrate") for name in CalibrateModeRegistry._name2descriptor]
    method, settings = split(method_settings, known, place)
    where = Place.of(place, f", algorithm {method}")
    schema = CalibrateModeRegistry[
        f"{method}_calibrate" if method is not None else "_no_calibrate"
    ].config_class
    names = [name for name in schema.model_fields if name != "method"]
    check_keys(settings, names, where)
    try:
        checked = schema(method=method, **settings)
    except (ValueError, TypeError, AttributeError) as error:
        place = refused_at(error, method_settings, [settings], place)
        where = Place.of(place, f", algorithm {method}")
        raise UsageError(
            where, *explained(error, [settings], tuple(schema.model_fields))
        ) from error
    if problem := limits.algorithm_problem(_settings(checked)):
        where = Place.of(named_place(method_settings, problem[0], place), f", algorithm {method}")
        raise UsageError(where, *problem)


def split(
    method_settings: object, known: Collection[str], place: str
) -> tuple[str | None, dict[str, object]]:
    """Return the name of a method as it is written, and its settings.

    Args:
        method_settings: a name, or a mapping with the key ``method``.
        known: the names of ModelOpt's methods; ``_no`` is what ``{method: null}`` means, which
            calibrates nothing.
        place: where it stands.

    Raises:
        UsageError: ModelOpt has no such method.
    """
    settings: dict[str, object] = (
        dict(method_settings)
        if isinstance(method_settings, Mapping)
        else {"method": method_settings}
    )
    named = "method" in settings
    method = settings.pop("method", None)
    if (
        named
        and isinstance(method, (str, type(None)))
        and (method if method is not None else "_no") in known
    ):
        return method, settings
    listed = ", ".join(name for name in sorted(known) if not name.startswith("_"))
    missing = "" if named else " (the key 'method' is missing)"
    raise UsageError(
        place,
        f"there is no calibration algorithm {method!r:.80}{missing}",
        f"This ModelOpt has {listed}.",
    )


def check_keys(settings: Mapping[str, object], names: Sequence[str], where: str) -> None:
    """Refuse settings whose keys are not text.

    Raises:
        UsageError: one is not.
    """
    if odd := next((key for key in settings if not isinstance(key, str)), None):
        raise UsageError(
            where, f"the key {odd!r:.80} is not a name", f"Known settings: {', '.join(names)}."
        )


def _settings(checked: pydantic.BaseModel) -> limits.Settings:
    """The settings in an instance of ModelOpt's configuration class, nested ones too."""
    fields = type(checked).model_fields
    values = {name: getattr(checked, name) for name in fields}
    nested = {
        name: _settings(value)
        for name, value in values.items()
        if hasattr(type(value), "model_fields")
    }
    return limits.Settings(values | nested, {name: field.default for name, field in fields.items()})
