"""The form of ``quant_cfg`` that the installed ModelOpt takes: the one place that knows there are
two.

Since 0.44 it is a list of entries, each with its ``quantizer_name``.  Up to 0.43 it is a dict from
pattern to attributes; a class (``nn.Linear``) has a dict of its own, and ``default`` applies before
everything else wherever it stands.  The gate speaks in lists.  For an older ModelOpt they are
written as a dict, as far as a dict can say the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any

from harness.errors import UsageError
from harness.files.located import Located, place_at
from harness.recipes.installed import modelopt_config

Line = dict[str, object]

#: What ModelOpt's schema raises where it refuses a value: its validators look up keys that are not
#: there.
REFUSALS = (ValueError, TypeError, AttributeError, LookupError)


def takes_lists() -> bool:
    """Whether the installed ModelOpt takes a list of entries."""
    return hasattr(modelopt_config(), "normalize_quant_cfg_list")


def lines(quant_cfg: Mapping[str, object]) -> list[Line]:
    """A ``quant_cfg`` in dict form as single-key lines, in the order in which the installed
    ModelOpt applies them.
    """
    names = list(quant_cfg)
    if not takes_lists():
        names.sort(key=lambda name: name != "default")
    return single_lines(quant_cfg, names)


def single_lines(quant_cfg: Mapping[str, object], names: Iterable[str]) -> list[Line]:
    """The entries of a dict as single-key lines in the order of *names*, each with its place in the
    file.
    """
    lines: list[Line] = []
    for name in names:
        line = Located({name: quant_cfg[name]})
        line.place = place_at(quant_cfg, [name], "")
        lines.append(line)
    return lines


def normalized(line: Mapping[str, object]) -> list[Line]:
    """The entries that one line means, of either form, checked by ModelOpt's schema.

    Raises:
        ValueError, TypeError, AttributeError, LookupError: the schema refuses it
            (:data:`REFUSALS`).
    """
    config = modelopt_config()
    if takes_lists():
        return list(config.normalize_quant_cfg_list([line]))
    entries = entries_of(line)
    for entry in entries:
        unknown = entry.keys() - {"quantizer_name", "parent_class", "enable", "cfg"}
        if unknown or (entry.get("cfg") is None and entry.get("enable", True)):
            raise ValueError(
                f"an entry has a pattern, and attributes or enable: false; this is {entry}"
            )
        for attributes in _each(entry.get("cfg")):
            config.QuantizerAttributeConfig(**attributes)
    return entries


def accepted(quant_cfg: object, place: str) -> object:
    """*quant_cfg*, a list or a dict, in the form that the installed ModelOpt takes.

    Args:
        quant_cfg: what a recipe holds under that name.
        place: where it stands, for messages.

    Raises:
        UsageError: only a list can say it, and this ModelOpt takes dicts.
    """
    if takes_lists() or not isinstance(quant_cfg, list):
        return quant_cfg
    return as_dict((entry for line in quant_cfg for entry in normalized(line)), place)


def entries_of(line: Mapping[str, object]) -> list[Line]:
    """The entries that one line means: itself, or one for each key of the dict form."""
    return (
        [dict(line)]
        if "quantizer_name" in line
        else [entry for item in line.items() for entry in _of_key(*item)]
    )


def as_dict(entries: Iterable[Line], place: str) -> dict[str, object]:
    """*entries* as one dict that means the same, applied in its order.

    Raises:
        UsageError: a dict has no place for a pattern twice, nor for a class before and after other
            patterns.
    """
    merged: dict[str, Any] = {}
    last: str | None = None
    for entry in entries:
        pattern, parent = str(entry["quantizer_name"]), entry.get("parent_class")
        assert isinstance(parent, (str, type(None))), "checked by the schema"
        again = parent in merged and parent != last if parent else pattern in merged
        inner = merged.setdefault(parent, {}) if parent else merged
        if again or pattern in inner:
            raise UsageError(
                place,
                f"ModelOpt {metadata.version('nvidia-modelopt')} takes quant_cfg as a dict, which "
                f"cannot come back to "
                f"{parent or pattern!r} after other entries",
                "Put its entries together, or install nvidia-modelopt 0.44 or newer.",
            )
        inner[pattern] = _attributes(entry)
        last = parent
    return merged


def _of_key(key: str, value: Any) -> list[Line]:
    if key.startswith("nn."):
        return [
            {"parent_class": key} | entry
            for item in dict(value).items()
            for entry in _of_key(*item)
        ]
    name = "*" if key == "default" else key
    if not isinstance(value, Mapping):
        return [{"quantizer_name": name, "cfg": value}]
    cfg = {attribute: v for attribute, v in value.items() if attribute != "enable"}
    switch = {"enable": value["enable"]} if "enable" in value else {}
    return [{"quantizer_name": name, "cfg": cfg or None} | switch]


def _attributes(entry: Line) -> object:
    """What an entry says of its quantizers: on or off next to the attributes, of each in a
    sequence.
    """
    cfg: Any = entry.get("cfg")
    enable = bool(entry.get("enable", True))
    if isinstance(cfg, (list, tuple)):
        return [dict(attributes) | {"enable": enable} for attributes in cfg]
    return dict(cfg or {}) | {"enable": enable}


def _each(cfg: Any) -> list[Any]:
    return list(cfg) if isinstance(cfg, (list, tuple)) else [] if cfg is None else [cfg]
