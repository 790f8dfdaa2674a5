"""What a CPU shows of NVFP4 and the MX formats, on the weights of the embedded model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness import formats
from harness.formats import deviations
from harness.models.references import Reference
from harness.quantization import packed
from harness.recipes import finding, judged, loading

BLOCK_FORMATS = ("nvfp4", "nvfp4-static", "mxfp8", "mxfp6", "mxfp4", "mxint8")


def a_step(reference: Reference, name: str) -> tuple[torch.Tensor, Any]:
    """A weight of the model and the oracle's step for it under a recipe."""
    _, weight, step = next(packed.weights(reference.model, loading.load(name)))
    return weight, step


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_every_weight_holds(reference: Reference, name: str) -> None:
    """All 44 Linear weights of the embedded model are shown to be right in every block format,
    without a GPU.
    """
    assert packed.problems(reference.model, loading.load(name)) == ([], 44)


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_the_rest_is_skipped_with_the_reason(name: str) -> None:
    """On a CPU there is no verdict on these recipes, and the format is named; on CUDA there is."""
    recipe = loading.load(name)

    assert "needs CUDA, and this is cpu" in str(judged.not_gated(recipe, "cpu"))
    assert judged.not_gated(recipe, "cuda") is None


@pytest.mark.parametrize("name", finding.DEFAULT)
def test_no_default_recipe_has_such_a_format(name: str) -> None:
    """The plugin leaves these out by name, without reading them."""
    recipe = loading.load(name)

    assert judged.not_gated(recipe, "cpu") is None
    assert not any(
        isinstance(blocks := (c or {}).get("block_sizes"), dict) and blocks.get("scale_bits")
        for e in recipe.entries
        if e.enable
        for c in (e.cfg if isinstance(e.cfg, list) else [e.cfg])
    )


@pytest.mark.parametrize("name", ["nvfp4", "mxfp8", "mxfp6", "mxint8"])
def test_a_wrong_oracle_is_found(
    reference: Reference, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An oracle that gives a neighbour of the nearest number, here by a scale too large, does not
    pass.
    """
    weight, step = a_step(reference, name)
    right = formats.quantize_dequantize
    monkeypatch.setattr(formats, "quantize_dequantize", lambda x, *a, **k: right(x * 1.25, *a, **k))

    assert packed.not_nearest(weight, step) > weight.numel() / 100


@pytest.mark.parametrize("name", ["nvfp4", "mxfp8", "mxfp4"])
def test_a_wrong_packed_tensor_is_found(
    reference: Reference, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A packed tensor with one number changed is counted as one number changed."""
    weight, step = a_step(reference, name)
    right = deviations.packed

    def wrong(*args: Any) -> torch.Tensor:
        spoilt = right(*args)
        spoilt[3, 5] += 1
        return spoilt

    monkeypatch.setattr(deviations, "packed", wrong)

    assert packed.unlike_packed(weight, step) == 1
