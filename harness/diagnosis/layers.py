"""The error of each encoder layer's output: where in a tower quantization error arises and how it
grows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from harness.models import families
from harness.models.hooks import after_each

_LAYER = re.compile(r"\.(?:layers|blocks|resblocks)\.\d+$")


def layer_errors(
    reference_model: nn.Module, quantized_model: nn.Module, inputs: Mapping[str, Tensor]
) -> list[dict[str, Any]]:
    """The error of every encoder layer's output, both towers, in one forward of each model on the
    same *inputs*.

    With r the reference's output and q the quantized model's, in float64:

    * ``sqnr_db`` = 10 log10(sum r^2 / sum (r - q)^2): signal to quantization noise, infinite where
      r and q are equal;
    * ``cosine``: the mean over positions of the cosine between r and q along the hidden dimension.

    The error of a layer contains that of the layers before it.

    Args:
        reference_model: a model of a known family.
        quantized_model: its quantized copy.
        inputs: of one forward of every tower (``pixel_values``, ``input_ids``).

    Returns:
        JSON records in module order: ``module``, ``tower``, ``layer``, ``sqnr_db``, ``cosine``.

    Raises:
        TypeError: the model is of no known family.
        ValueError: the two models do not have the same encoder layers.
    """
    family = families.of(reference_model)
    expected, actual = _outputs(reference_model, inputs), _outputs(quantized_model, inputs)
    if expected.keys() != actual.keys():
        different = sorted(expected.keys() ^ actual.keys())
        raise ValueError(
            f"the models have different encoder layers: {', '.join(different)} is in one of them "
            f"only"
        )
    rows = []
    for module, r in expected.items():
        tower = families.tower_of(family, module)
        sqnr, cosine = errors(r, actual[module])
        rows.append(
            {
                "module": module,
                "tower": tower,
                "layer": families.layer_of(module),
                "sqnr_db": sqnr,
                "cosine": cosine,
            }
        )
    return rows


def errors(reference: Tensor, quantized: Tensor) -> tuple[float, float]:
    """(SQNR in dB, mean cosine) of *quantized* against *reference*, both (..., hidden) of any float
    dtype.
    """
    r, q = (t.detach().double().reshape(-1, t.shape[-1]) for t in (reference, quantized))
    signal, noise = float(r.square().sum()), float((r - q).square().sum())
    cosine = float(torch.nn.functional.cosine_similarity(r, q, dim=-1).mean())
    if noise == 0:
        return math.inf, cosine
    # No signal, or one that is not a number, has no ratio.
    return (
        10 * math.log10(signal / noise) if signal > 0 and math.isfinite(noise) else math.nan
    ), cosine


def _outputs(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the output of each encoder layer in one forward of *model*, by module path."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str, _module: nn.Module, _args: object, output: Any) -> None:
        # A layer gives a tensor, or up to transformers 4.57 a tuple that begins with it.
        outputs[name] = output if isinstance(output, Tensor) else output[0]

    layers = {name: module for name, module in model.named_modules() if _LAYER.search(name)}
    with torch.inference_mode(), after_each(layers, keep):
        families.forward(model, inputs)
    return outputs
