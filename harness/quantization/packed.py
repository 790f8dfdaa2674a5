"""What a CPU can show of the block formats that ModelOpt's fake quantization computes on CUDA only.

NVFP4 and the MX formats fail in their first forward on a CPU, after ``mtq.quantize`` has succeeded.
Three things need no forward: the map on the meta device (``Gate.structure_problems``), the oracle,
and ModelOpt's packed tensors. Here the last two are held against each other on the weights of the
model at hand, in the blocks of the recipe:

* every number that the oracle (``harness.formats``) returns is one of the format's, times its
  block's scale, and none is nearer to the weight: found by search through the format's numbers,
  apart from the oracle's rounding;
* ModelOpt's packed tensor of the weight, read back, has the oracle's bits, but where
  ``formats.deviations`` says otherwise.

E3M2 (MXFP6) and MXINT8 have no packed tensor in ModelOpt 0.47: of them only the first can be shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from harness import formats
from harness.formats import deviations
from harness.formats.layout import plan
from harness.formats.oracle import block_scale, e8m0_scale
from harness.problems import Problem
from harness.quantization import quantize
from harness.quantization.maps import tensor_quantizers
from harness.recipes.loading import Recipe

#: ModelOpt's packed class by element format and format of the block scale.
CLASSES = {
    ("E2M1", "E4M3"): "NVFP4QTensor",
    ("E2M1", "E8M0"): "MXFP4QTensor",
    ("E4M3", "E8M0"): "MXFP8QTensor",
}


def weights(
    model: nn.Module, recipe: Recipe, attention: str = "diffusers"
) -> Iterator[tuple[str, Tensor, Any]]:
    """Every weight of *model* whose enabled quantizer has quantized block scales: (quantizer's
    name, weight, oracle's step).  Nothing is calibrated and no quantizer runs.
    """
    quantized = quantize.structure(model, recipe, attention)
    for name, quantizer in tensor_quantizers(quantized).items():
        if not name.endswith(".weight_quantizer") or not quantizer.is_enabled:
            continue
        (step,) = formats.from_quantizer(quantizer).steps
        if step.scale_format is not None and step.block_sizes is not None:
            yield (
                name,
                quantized.get_parameter(name.removesuffix("_quantizer")).detach().cpu(),
                step,
            )


def problems(
    model: nn.Module, recipe: Recipe, attention: str = "diffusers"
) -> tuple[list[Problem], int]:
    """What is wrong with the numbers of *model*'s weights under *recipe*, and how many weights were
    looked at.
    """
    far, other, count = [], [], 0
    for name, weight, step in weights(model, recipe, attention):
        count += 1
        if wrong := not_nearest(weight, step):
            far.append(f"{name}: {wrong} of {weight.numel()} numbers are not the format's nearest")
        if wrong := unlike_packed(weight, step):
            other.append(f"{name}: {wrong} of {weight.numel()} numbers differ")
    problems_by_rule = (
        (
            "oracle is not nearest",
            "the oracle does not give the nearest number of the format:",
            far,
            "harness.formats is wrong: compare harness/formats/number_formats.py with the format's "
            "specification.",
        ),
        (
            "packed tensor differs",
            "ModelOpt's packed tensors do not hold what the format's definition says:",
            other,
            "Weights that are compressed with this ModelOpt are not those that the recipe was "
            "judged on.",
        ),
    )
    return [
        Problem(rule, what, tuple(lines), fix)
        for rule, what, lines, fix in problems_by_rule
        if lines
    ], count


def _layout(step: Any) -> dict[str, Any]:
    return {"block_sizes": step.block_sizes, "scale_format": step.scale_format}


def not_nearest(weight: Tensor, step: Any) -> int:
    """Return the numbers of the oracle for *weight* that are not numbers of the format, or not the
    nearest ones.

    *weight* float (rows, columns).  Distances are float64; two that differ by less than the weight
    dtype's and the scale's rounding count as equal.
    """
    rounded = formats.quantize_dequantize(
        weight.float(), step.format, scale_max=step.scale_max, **_layout(step)
    ).numpy()
    values = weight.float().numpy()
    layout = plan(values.shape, None, step.block_sizes)
    cut, result = layout.cut(values), layout.cut(rounded)
    amax = layout.amax(cut)
    if step.scale_format == "E8M0":
        scale = e8m0_scale(amax, step.format)
    else:
        scale = block_scale(amax, layout, step.format, None, step.scale_max)
    scale = np.broadcast_to(np.where(scale == 0, np.float32(1), scale), cut.shape).astype(
        np.float64
    )
    points = step.format.code_points.astype(np.float64)
    nearest = _distance(cut / scale, points)
    slack = 2.0**-20 * step.format.max
    is_one = _distance(result / scale, points) <= slack
    return int(np.count_nonzero(~is_one | (np.abs(cut - result) / scale > nearest + slack)))


def _distance(values: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far each value is from the nearest of *points* (ascending)."""
    right = np.clip(np.searchsorted(points, values), 1, len(points) - 1)
    return np.minimum(np.abs(values - points[right - 1]), np.abs(values - points[right]))


def unlike_packed(weight: Tensor, step: Any) -> int:
    """Count the numbers of ModelOpt's packed tensor of *weight* whose bits differ from the
    oracle's, known deviations aside; 0 where ModelOpt does not pack the format.
    """
    kind = CLASSES.get((step.format.name, step.scale_format))
    if kind is None:
        return 0
    ((_, size),) = step.block_sizes.items()
    packed_tensor = deviations.packed(kind, weight, size)
    rules = deviations.PACKED_RULES[kind]
    expected = formats.quantize_dequantize(weight, step.format, rules=rules, **_layout(step))
    if kind != "MXFP4QTensor":
        return int(np.count_nonzero(~formats.same_bits(packed_tensor, expected)))
    # mxfp4-packed-ties and -zero: ties go towards zero, where a slightly smaller number goes too; 0
    # loses its sign.
    amax = weight.abs().reshape(len(weight), -1, size).amax(-1)
    inward = formats.quantize_dequantize(
        weight.double() * (1 - 2.0**-20), step.format, amax, **_layout(step)
    )
    return int((packed_tensor != inward.to(weight.dtype)).sum())
