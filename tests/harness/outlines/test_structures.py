"""Maps of recipes on published architectures, built with few layers."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.models import architectures
from harness.outlines import structures
from harness.outlines.structures import Structures
from harness.quantization import maps, quantize
from harness.recipes.loading import load

#: Shallow and deep towers, towers of two depths, a pooling head, and a library that is built whole.
NAMES = ("ViT-B-32", "ViT-bigG-14", "SigLIP-so400m-14-384", "open_clip-ViT-B-16")
LAST_LAYER = """
metadata: {recipe_type: ptq}
quantize:
  algorithm: max
  quant_cfg:
    - {quantizer_name: '*', enable: false}
    - {quantizer_name: '*weight_quantizer', cfg: {num_bits: 8, axis: 0}}
    - {quantizer_name: '*layers.11.*', enable: false}
"""


@pytest.mark.parametrize("name", NAMES)
def test_few_layers_give_the_map_of_all(name: str) -> None:
    """Name by name, in the same order, the map is that of the model with all its layers."""
    recipe = load("fp8")
    whole = maps.quantizer_map(quantize.structure(architectures.build(name), recipe))

    assert Structures("diffusers").of(recipe, name) == whole


def test_a_pattern_that_names_a_layer_is_told_on_all_layers(tmp_path: Path) -> None:
    """Layer 11 of 12 is left out of the vision tower, which no model of three layers would show."""
    path = tmp_path / "last.yaml"
    path.write_text(LAST_LAYER)

    structure = Structures("diffusers").of(load(str(path)), "ViT-B-32")

    on = {q.layer for q in structure if q.enabled and q.tower == "vision" and q.layer is not None}
    assert on == set(range(11))


@pytest.mark.parametrize("stands_for", [[[0]], [[0], [1]], [[0], [1], [2]], [[0], [1, 2], [3]]])
def test_towers_of_any_depth(stands_for: list[list[int]]) -> None:
    """A tower of one to four layers has each of them once, and what lies outside stays."""
    path = "vision_model.encoder.layers"
    layers = stands_for[-1][-1] + 1
    first = structures.blank("ViT-B-32").model
    recipe = load("int8")
    few = maps.quantizer_map(quantize.structure(first, recipe))
    built = [q for q in few if q.tower != "vision" or q.layer is None or q.layer < layers]

    whole = structures.with_all_layers(tuple(built), {path: stands_for})

    vision = [q for q in whole if q.tower == "vision"]
    assert sorted({q.layer for q in vision if q.layer is not None}) == list(range(layers))
    assert len({q.name for q in whole}) == len(whole)
    assert {q.name for q in vision if q.layer is None} == {
        q.name for q in few if q.tower == "vision" and q.layer is None
    }
