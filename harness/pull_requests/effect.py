"""What a change of a recipe does to CLIP, before anything is calibrated or evaluated: the
difference of two maps.

Base and head are compared without weights on the embedded architecture and on ViT-L/14, as on every
other architecture (:mod:`harness.outlines.fit`), so the answer takes a moment and no data.  A
change that leaves every quantizer and the algorithm as they were needs no accuracy run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from torch import nn

from harness.errors import UsageError, sentences
from harness.models import architectures
from harness.outlines import outline
from harness.outlines.fit import NamedRecipe, View
from harness.outlines.outline import Outline
from harness.quantization import maps, quantize
from harness.quantization.maps import QuantizerMap
from harness.quantization.quantize import QuantizationError
from harness.recipes import applied
from harness.recipes.loading import SEARCHED, Recipe

#: The small model that accuracy is measured on, and the one that the published recipe is about.
ARCHITECTURES = ("embedded", "ViT-L-14")
#: Attributes that a map shows.
_SHOWN = {"num_bits", "axis", "block_sizes", "unsigned", "type"}


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


def quantizer_names(attention: str = "diffusers") -> tuple[str, ...]:
    """Every quantizer that CLIP has a place for."""
    return tuple(place.name for place in _outline(ARCHITECTURES[0], attention).full.places)


def of_change(base: Recipe | None, head: Recipe, attention: str = "diffusers") -> Effect | None:
    """The effect of *head* where *base* was, or None where it cannot be seen: *base* was not
    there.

    Nor can that of a recipe that searches for formats.

    Raises:
        QuantizationError: ModelOpt refuses *head* on CLIP.
    """
    if base is not None and base.hash == head.hash:
        return between(base, head, attention)
    if SEARCHED in (head.kind, None if base is None else base.kind):
        return None
    _hold(head, attention)
    return None if base is None else _difference(base, head, attention)


def refusal(head: Recipe, error: QuantizationError) -> str:
    """Why ModelOpt refuses *head* on CLIP, in one line: the entry that turns everything off, if one
    does.
    """
    on: set[str] = set()
    last = None
    places = _outline(ARCHITECTURES[0], "diffusers").full.places
    for number, entry in enumerate(head.entries, 1):
        touched = applied.matched(places, entry)
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
    for recipe in (base, head):
        _hold(recipe, attention)
    return _difference(base, head, attention)


def _hold(recipe: Recipe, attention: str) -> None:
    """Have ModelOpt convert the small architecture by *recipe*.

    Raises:
        QuantizationError: it refuses.
    """
    quantize.structure(_blank(ARCHITECTURES[0]), recipe, attention)


def _difference(base: Recipe, head: Recipe, attention: str) -> Effect:
    lines: dict[str, tuple[str, ...]] = {}
    others: dict[str, None] = {}
    for name in ARCHITECTURES:
        before, after = (
            View(NamedRecipe(recipe, recipe.name), _outline(name, attention))
            for recipe in (base, head)
        )
        lines[name] = tuple(maps.diff(_map(before, after), _map(after, before)))
        others |= dict.fromkeys(_attribute_changes(before, after))
    if base.algorithm != head.algorithm:
        others[f"algorithm: {base.algorithm!r} to {head.algorithm!r}"] = None
    return Effect(head.name, lines, tuple(others))


def _map(view: View, other: View) -> QuantizerMap:
    """The quantizers of *view* that *other* has differently; CLIP's language model is its text
    tower.
    """
    return tuple(
        replace(quantizer, tower="text") if quantizer.tower == "language" else quantizer
        for quantizer in view.quantizers(other)
    )


@lru_cache(maxsize=1)
def _blank(architecture: str) -> nn.Module:
    return architectures.build(architecture)


def _outline(architecture: str, attention: str) -> Outline:
    """The outline of one of CLIP's architectures.

    Raises:
        UsageError: the installed libraries cannot build it.
    """
    known = outline.of(architecture, attention)
    if known.unsupported:
        fix = "Install releases of transformers and ModelOpt that the gate knows."
        raise UsageError(f"architecture {architecture}", known.unsupported, fix)
    return known


def _attribute_changes(before: View, after: View) -> list[str]:
    """Attributes that the map does not show and that changed at quantizers that both have on."""
    changed: dict[str, int] = {}
    for name, now in after.by_name.items():
        was = before.by_name[name]
        if was.key == now.key:
            continue
        # What a disabled quantizer would do has no effect: it has no attributes here.
        for old, new in zip(was.complete, now.complete, strict=False):
            for key in (old.keys() | new.keys()) - _SHOWN:
                values = repr(old.get(key)), repr(new.get(key))
                if values[0] != values[1]:
                    line = f"{key}: {values[0]} to {values[1]}"
                    changed[line] = changed.get(line, 0) + 1
    return [f"{line} at {count} quantizers" for line, count in sorted(changed.items())]
