"""Maps of recipes on published architectures of CLIP's families, without weights.

Layers of a tower are alike: few of them are built and converted, and the map is that of all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import groupby

from torch import nn

from harness.lint.matching import tells_numbers
from harness.models import architectures
from harness.outlines import building
from harness.outlines.building import Built
from harness.outlines.rows import ROWS
from harness.quantization import maps, quantize
from harness.quantization.maps import Quantizer, QuantizerMap
from harness.recipes.loading import Recipe


class Structures:
    """Maps of recipes on architectures.  What differs in sizes alone is converted once.

    Args:
        attention: the attention class that ModelOpt quantizes inside.
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
        built = blank(architecture)
        return with_all_layers(self._of_model(recipe, built.model), built.layers)

    def _of_model(self, recipe: Recipe, model: nn.Module) -> QuantizerMap:
        key = recipe.hash, maps.outline(model)
        if key not in self._converted:
            converted = quantize.structure(model, recipe, self._attention)
            self._converted[key] = maps.quantizer_map(converted)
        return self._converted[key]


@cache
def blank(architecture: str) -> Built:
    """An architecture with few layers, built once; one that is not in the table is built whole."""
    for row in ROWS:
        if row.name == architecture:
            return building.build(row)
    return Built(architectures.build(architecture), {}, 0)


@cache
def _whole(architecture: str) -> nn.Module:
    return architectures.build(architecture)


def with_all_layers(
    few: QuantizerMap, layers: Mapping[str, Sequence[Sequence[int]]]
) -> QuantizerMap:
    """The map of the published model.

    Args:
        few: the map of a model with few layers.
        layers: by the layers' path, for each layer that was built those that it stands for.
    """
    whole: list[Quantizer] = []
    for (path, number), group in groupby(few, key=lambda q: _layer_of(q.name, layers)):
        quantizers = list(group)
        for layer in layers[path][number] if path else [number]:
            whole += [_moved(quantizer, path, layer) for quantizer in quantizers]
    return tuple(whole)


def _layer_of(name: str, paths: Mapping[str, object]) -> tuple[str, int]:
    """The layers' path in a quantizer's name and the number of its layer; ("", 0) outside them."""
    for path in paths:
        if name.startswith(f"{path}."):
            return path, int(name[len(path) + 1 :].partition(".")[0])
    return "", 0


def _moved(quantizer: Quantizer, path: str, layer: int) -> Quantizer:
    """*quantizer* in another layer of the same tower."""
    if not path or quantizer.layer == layer:
        return quantizer
    rest = quantizer.name[len(path) + 1 :].partition(".")[2]
    return replace(quantizer, name=f"{path}.{layer}.{rest}", layer=layer)
