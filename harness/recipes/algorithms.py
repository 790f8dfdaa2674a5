"""The key ``algorithm`` of a recipe, as ModelOpt reads it: one method, a list of them, or none.

This is the one place that knows the forms.  A method is a name (``max``) or a mapping with the key ``method``; a list
runs its methods in order.  A recipe without the key means ``max``, which is the default of ModelOpt's schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.errors import UsageError
from harness.recipes import limits

#: What a recipe without the key ``algorithm`` means.
DEFAULT = "max"
MAX_METHODS = 8  # of one recipe; each runs over all calibration data


def methods(algorithm: Any) -> tuple[str, ...]:
    """Return the names of the methods that *algorithm* runs, in order; empty where nothing is calibrated."""
    names = [one.get("method") if isinstance(one, Mapping) else one for one in steps(algorithm)]
    return tuple(name for name in names if name is not None)


def steps(algorithm: Any) -> list[Any]:
    """Return *algorithm* as the list of its methods, each as it is written."""
    return list(algorithm) if isinstance(algorithm, (list, tuple)) else [algorithm]


def check(algorithm: Any, place: str) -> None:
    """Hold *algorithm* against ModelOpt's methods and their settings.

    Raises:
        UsageError: ModelOpt has no such method, the method no such setting, or the setting a value that cannot run.
    """
    found = steps(algorithm)
    if len(found) > MAX_METHODS:
        raise UsageError(place, f"algorithm lists {len(found)} methods", f"Write at most {MAX_METHODS}.")
    for one in found:
        if one is not None:
            _check_method(one, getattr(one, "place", "") or place)


def _check_method(one: Any, place: str) -> None:
    from harness.recipes.installed import modelopt_config  # it imports ModelOpt, which takes seconds
    from harness.recipes.schema import explained

    modelopt_config()
    from modelopt.torch.quantization.mode import CalibrateModeRegistry

    settings = dict(one) if isinstance(one, Mapping) else {"method": one}
    named = "method" in settings
    method = settings.pop("method", None)
    mode = f"{method}_calibrate" if method is not None else "_no_calibrate"  # {method: null} calibrates nothing
    if not named or not isinstance(method, (str, type(None))) or mode not in CalibrateModeRegistry:
        known = sorted(name.removesuffix("_calibrate") for name in CalibrateModeRegistry._name2descriptor)
        listed = ", ".join(name for name in known if not name.startswith("_"))
        missing = "" if named else " (the key 'method' is missing)"
        raise UsageError(
            place, f"there is no calibration algorithm {method!r:.80}{missing}", f"This ModelOpt has {listed}."
        )
    where = f"{place}, algorithm {method}"
    schema = CalibrateModeRegistry[mode].config_class
    if odd := next((key for key in settings if not isinstance(key, str)), None):
        raise UsageError(where, f"the key {odd!r:.80} is not a name", f"Known settings: {_names(schema)}.")
    try:
        checked = schema(method=method, **settings)
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(where, *explained(error, [settings], tuple(schema.model_fields))) from error
    if problem := limits.algorithm_problem(checked):
        raise UsageError(where, *problem)


def _names(schema: Any) -> str:
    return ", ".join(name for name in schema.model_fields if name != "method")
