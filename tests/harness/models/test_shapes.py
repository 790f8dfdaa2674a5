"""The short way of shapes over the meta device: the same shapes, the same calls, and nothing else
touched.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from harness.models import architectures, families
from harness.models.shapes import ShapesOnly
from harness.quantization import maps, quantize
from harness.recipes import loading

DTYPES = (torch.float32, torch.float16)


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor without values."""
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_rule_gives_the_shape_and_dtype_that_torch_gives(dtype: torch.dtype) -> None:
    """Linear layers with and without bias, normalisations and attention come out as from torch's
    own derivation.
    """
    x, q, v = (
        meta(2, 5, 8, dtype=dtype),
        meta(2, 3, 5, 8, dtype=dtype),
        meta(2, 3, 7, 4, dtype=dtype),
    )
    calls: list[Any] = [
        lambda: F.linear(x, meta(6, 8, dtype=dtype)),
        lambda: F.linear(x, meta(6, 8, dtype=dtype), bias=meta(6, dtype=dtype)),
        lambda: F.layer_norm(x, (8,), meta(8, dtype=dtype), meta(8, dtype=dtype)),
        lambda: F.scaled_dot_product_attention(q, meta(2, 3, 7, 8, dtype=dtype), v, scale=0.5),
    ]

    for call in calls:
        expected = call()
        with ShapesOnly():
            result = call()
        assert (result.shape, result.dtype, result.device) == (
            expected.shape,
            expected.dtype,
            expected.device,
        )


def test_tensors_with_values_are_computed() -> None:
    """Off the meta device the block changes no bit."""
    norm, linear, x = nn.LayerNorm(8), nn.Linear(8, 4), torch.randn(3, 8)
    expected = linear(norm(x))

    with ShapesOnly():
        assert torch.equal(linear(norm(x)), expected)


@pytest.mark.parametrize("name", ["embedded", "ViT-B-32"])
def test_calls_are_those_of_the_long_way(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each quantizer of an architecture is entered as often, and the towers' outputs have the same
    shapes.
    """
    model = quantize.structure(architectures.build(name), loading.load("fp8"))
    inputs = families.sample_inputs(model)
    seen: list[list[torch.Size]] = []

    def forward(m: nn.Module) -> None:
        seen.append(
            [value.shape for value in m(**inputs).values() if isinstance(value, torch.Tensor)]
        )

    short = maps.count_calls(model, forward)
    monkeypatch.setattr("harness.models.shapes._RULES", {})

    assert maps.count_calls(model, forward) == short
    assert seen[0] == seen[1]
    assert set(short.values()) == {0, 1}


def test_architectures_with_one_outline_have_one_map() -> None:
    """ViT-B-16 has ViT-B-32's modules in other sizes, so its map is the same, quantizer by
    quantizer; a tower more has another outline.
    """
    fp8, names = loading.load("fp8"), ("ViT-B-32", "ViT-B-16", "ViT-L-14")
    blank = {name: architectures.build(name) for name in names}

    small, patches, large = (maps.outline(blank[name]) for name in names)

    assert small == patches != large
    assert maps.quantizer_map(quantize.structure(blank["ViT-B-32"], fp8)) == maps.quantizer_map(
        quantize.structure(blank["ViT-B-16"], fp8)
    )
