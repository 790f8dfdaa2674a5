"""What a change of a recipe does to CLIP, before anything is calibrated or evaluated: the
difference of two maps.

Base and head are quantized without weights on the embedded architecture and on ViT-L/14, so the
answer takes seconds and no data.  A change that leaves every quantizer and the algorithm as they
were needs no accuracy run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import nn

from harness.errors import sentences
from harness.models import architectures
from harness.quantization import maps, quantize
from harness.quantization.maps import QuantizerMap
from harness.quantization.quantize import QuantizationError
from harness.recipes import applied
from harness.recipes.loading import SEARCHED, Recipe

#: The small model that accuracy is measured on, and the one that the published recipe is about.
ARCHITECTURES = ("embedded", "ViT-L-14")

Attributes = dict[str, dict[str, Any]]
Structures = dict[str, tuple[QuantizerMap, Attributes]]


@dataclass(frozen=True)
class Effect:
    """Lines by architecture (see ``maps.diff``), and changes that no map shows (algorithm, other
    attributes).
    """

    recipe: str
    by_architecture: dict[str, tuple[str, ...]]
    beyond_map: tuple[str, ...]

    @property
    def none(self) -> bool:
        """Whether CLIP is left exactly as it was."""
        return not self.beyond_map and not any(self.by_architecture.values())

    def __str__(self) -> str:
        if self.none:
            return f"{self.recipe}: no effect on CLIP"
        lines = [f"{self.recipe}:"]
        for architecture, changes in self.by_architecture.items():
            lines += [
                f"  {architecture}:",
                *(f"    {line}" for line in changes or ("no quantizer changes",)),
            ]
        return "\n".join([*lines, *(f"  {line}" for line in self.beyond_map)])


@lru_cache(maxsize=1)
def quantizer_names(attention: str = "diffusers") -> tuple[str, ...]:
    """Every quantizer that CLIP has a place for."""
    return tuple(q.name for q in _places(attention))


@lru_cache(maxsize=1)
def _places(attention: str = "diffusers") -> QuantizerMap:
    """The map of the embedded architecture with every quantizer off: what a pattern can match."""
    return maps.quantizer_map(quantize.insert(_blank("embedded"), attention))


def of_change(base: Recipe | None, head: Recipe, attention: str = "diffusers") -> Effect | None:
    """The effect of *head* where *base* was, or None where it cannot be seen: *base* was not there,
    or refused.

    Nor can that of a recipe that searches for formats.

    Raises:
        QuantizationError: ModelOpt refuses *head* on CLIP.
    """
    if base is not None and base.hash == head.hash:
        return between(base, head, attention)
    if SEARCHED in (head.kind, None if base is None else base.kind):
        return None
    if base is None:
        _structure(ARCHITECTURES[0], head, attention)
        return None
    after = _structures(head, attention)
    try:
        before = _structures(base, attention)
    except QuantizationError:
        return None
    return _difference(base, head, before, after)


def refusal(head: Recipe, error: QuantizationError) -> str:
    """Why ModelOpt refuses *head* on CLIP, in one line: the entry that turns everything off, if one
    does.
    """
    on: set[str] = set()
    last = None
    for number, entry in enumerate(head.entries, 1):
        touched = applied.matched(_places(), entry)
        if entry.enable:
            on |= touched
        elif on and on <= touched:
            on, last = (
                set(),
                f"entry {number} `{entry.pattern}` ({entry.position}) turns everything off",
            )
        else:
            on -= touched
    if last is not None and not on:
        return sentences(last, "Entries apply in order: put it first.")
    return f"ModelOpt refuses it on CLIP: {str(error)[:300]}"


def between(base: Recipe, head: Recipe, attention: str = "diffusers") -> Effect:
    """The effect on CLIP of going from *base* to *head* under one attention class.

    Raises:
        QuantizationError: ModelOpt refuses one of the two on CLIP.
    """
    if base.hash == head.hash:
        return Effect(head.name, dict.fromkeys(ARCHITECTURES, ()), ())
    return _difference(base, head, _structures(base, attention), _structures(head, attention))


def _difference(base: Recipe, head: Recipe, before: Structures, after: Structures) -> Effect:
    lines: dict[str, tuple[str, ...]] = {}
    others: dict[str, None] = {}
    for name in ARCHITECTURES:
        (old_map, was), (new_map, now) = before[name], after[name]
        lines[name] = tuple(maps.diff(old_map, new_map))
        others |= dict.fromkeys(_attribute_changes(was, now))
    if base.algorithm != head.algorithm:
        others[f"algorithm: {base.algorithm!r} to {head.algorithm!r}"] = None
    return Effect(head.name, lines, tuple(others))


@lru_cache(maxsize=len(ARCHITECTURES))
def _blank(architecture: str) -> nn.Module:
    return architectures.build(architecture)


def _structures(recipe: Recipe, attention: str) -> Structures:
    """The recipe's map, and the attributes of its enabled quantizers, on each architecture."""
    return {name: _structure(name, recipe, attention) for name in ARCHITECTURES}


def _structure(
    architecture: str, recipe: Recipe, attention: str
) -> tuple[QuantizerMap, Attributes]:
    model = quantize.structure(_blank(architecture), recipe, attention)
    found = maps.tensor_quantizers(model)
    # What a disabled quantizer would do has no effect.
    attributes = {
        name: q.get_modelopt_state(properties_only=True)
        for name, q in found.items()
        if q.is_enabled
    }
    return maps.quantizer_map(model), attributes


def _attribute_changes(was: Attributes, now: Attributes) -> list[str]:
    """Attributes that the map does not show and that changed at quantizers that both have on."""
    shown = {"_num_bits", "_axis", "_block_sizes", "_unsigned", "_dynamic", "_disabled", "_type"}
    changed: dict[str, int] = {}
    for name in was.keys() & now.keys():
        for key in (was[name].keys() | now[name].keys()) - shown:
            before, after = (repr(side[name].get(key)) for side in (was, now))
            if before != after:
                line = f"{key.strip('_')}: {before} to {after}"
                changed[line] = changed.get(line, 0) + 1
    return [f"{line} at {count} quantizers" for line, count in sorted(changed.items())]
