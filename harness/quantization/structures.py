"""Maps of recipes on published architectures, without weights.

Layers of a tower are alike, so three of them are built and converted, and the map is that of all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import groupby

from torch import nn

from harness.lint.matching import tells_numbers
from harness.models import architectures
from harness.quantization import maps, quantize
from harness.quantization.maps import Quantizer, QuantizerMap
from harness.recipes.loading import Recipe


class Structures:
    """Maps of recipes on architectures.  What differs in sizes alone is converted once.

    Args:
        attention: the attention class that is registered with ModelOpt.
    """

    def __init__(self, attention: str) -> None:
        self._attention = attention
        self._converted: dict[tuple[str, str], QuantizerMap] = {}

    def of(self, recipe: Recipe, architecture: str) -> QuantizerMap:
        """The map of *recipe* on an architecture.

        Raises:
            QuantizationError: ModelOpt refused the recipe on this model.
        """
        if any(tells_numbers(entry.pattern) for entry in recipe.entries):
            return self._of_model(recipe, _whole(architecture))
        model, counts = blank(architecture)
        return with_all_layers(self._of_model(recipe, model), counts)

    def _of_model(self, recipe: Recipe, model: nn.Module) -> QuantizerMap:
        key = recipe.hash, maps.outline(model)
        if key not in self._converted:
            bare = quantize.structure(model, recipe, self._attention)
            self._converted[key] = maps.quantizer_map(bare)
        return self._converted[key]


@cache
def blank(architecture: str) -> tuple[nn.Module, dict[str, int]]:
    """An architecture with few layers, built once, and how many the published one has."""
    return architectures.few_layers(architecture)


@cache
def _whole(architecture: str) -> nn.Module:
    return architectures.build(architecture)


def with_all_layers(few: QuantizerMap, counts: Mapping[str, int]) -> QuantizerMap:
    """The map of the published model, of which *few* has the first layer, one for those between and
    the last.

    Args:
        few: the map of a model with at most three layers a tower.
        counts: the number of layers of the published model, by the layers' path.
    """
    whole: list[Quantizer] = []
    for (path, number), group in groupby(few, key=lambda q: _layer_of(q.name, counts)):
        quantizers = list(group)
        layers = _stands_for(number, counts[path]) if path else [number]
        for layer in layers:
            whole += [_moved(quantizer, path, layer) for quantizer in quantizers]
    return tuple(whole)


def _layer_of(name: str, counts: Mapping[str, int]) -> tuple[str, int]:
    """The layers' path in a quantizer's name and the number of its layer; ("", 0) outside them."""
    for path in counts:
        if name.startswith(f"{path}."):
            return path, int(name[len(path) + 1 :].partition(".")[0])
    return "", 0


def _stands_for(number: int, count: int) -> Sequence[int]:
    """The layers, of *count*, that layer *number* of the few stands for."""
    if count <= architectures.FEW or number == 0:
        return [number]
    if number == architectures.FEW - 1:
        return [count - 1]
    return range(1, count - 1)


def _moved(quantizer: Quantizer, path: str, layer: int) -> Quantizer:
    """*quantizer* in another layer of the same tower."""
    if not path or quantizer.layer == layer:
        return quantizer
    rest = quantizer.name[len(path) + 1 :].partition(".")[2]
    return replace(quantizer, name=f"{path}.{layer}.{rest}", layer=layer)
