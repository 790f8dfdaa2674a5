"""Weights that ModelOpt stores in another format than its fake quantization computes: double
quantization (S14).

A weight quantizer with ``scale_bits`` and ``scale_block_sizes`` fake-quantizes as plain INT4
blocks; ``mtq.compress`` stores NF4 with integer scales.  What is deployed is what is stored, so
accuracy is measured on that: the packed tensor read back, or, where ModelOpt cannot read it back,
the numbers of the definition.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from harness.formats.nf4 import double_quantized
from harness.problems import Problem
from harness.quantization.context import quiet


def weights(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """(layer's name, layer) for each enabled weight quantizer of *model* with integer scales in
    blocks.
    """
    for name, module in model.named_modules():
        quantizer = getattr(module, "weight_quantizer", None)
        blocks = getattr(quantizer, "block_sizes", None) or {}
        if blocks.get("scale_block_sizes") and quantizer is not None and quantizer.is_enabled:
            yield name, module


def sizes(quantizer: Any) -> tuple[int, int, int]:
    """(block, block of scales, bits of a scale) of such a quantizer."""
    blocks = quantizer.block_sizes
    return blocks[-1], blocks["scale_block_sizes"][-1], blocks.get("scale_bits") or 8


def read_back(weight: Tensor, block: int, scale_block: int, scale_bits: int) -> Tensor | None:
    """*weight* as ModelOpt's packed NF4 tensor holds it, in its own dtype; None where ModelOpt
    cannot read it back.
    """
    from modelopt.torch.quantization.qtensor import NF4QTensor

    with quiet():
        packed, scales = NF4QTensor.quantize(weight, block, scale_block)
        stored, double_scale, zero = NF4QTensor.double_quantization(scales, scale_block, scale_bits)
    try:
        tensor = packed.dequantize(
            scale=stored, block_sizes={-1: block}, double_scale=double_scale, scale_zeros=zero
        )
    except RuntimeError:  # more than one block of scales (ModelOpt 0.47)
        return None
    return torch.as_tensor(tensor)


@torch.no_grad()
def fold(model: nn.Module) -> None:
    """Put the stored numbers in the place of *model*'s weights of this kind, and turn their
    quantizers off.
    """
    for _, module in list(weights(model)):
        layout = sizes(module.weight_quantizer)
        tensor = read_back(module.weight, *layout)
        if tensor is None:
            tensor = torch.from_numpy(double_quantized(module.weight, *layout))
        module.weight.copy_(tensor)
        module.weight_quantizer.disable()


@torch.no_grad()
def problems(model: nn.Module) -> list[Problem]:
    """Weights of *model* (not folded) whose fake quantization is not what is stored, or that cannot
    be read back.
    """
    other, lost = [], []
    for name, module in weights(model):
        tensor = read_back(module.weight, *sizes(module.weight_quantizer))
        if tensor is None:
            lost.append(name)
        elif not torch.equal(tensor, module.weight_quantizer(module.weight)):
            other.append(name)
    findings = (
        (
            "fake quantization is not what is stored",
            other,
            "weights are stored as NF4 with integer scales and fake-quantized as plain INT4 "
            "blocks:",
            "ModelOpt's fake quantization ignores scale_bits and scale_block_sizes, so what is "
            "measured or fine-tuned "
            "with it is another format. Accuracy here is that of what is stored. Take both "
            "settings out to deploy INT4.",
        ),
        (
            "stored weights cannot be read back",
            lost,
            "weights are stored as NF4 with more than one block of scales, which ModelOpt cannot "
            "read back:",
            "Give scale_block_sizes a block that holds all scales of a weight (elements / block "
            "size). Accuracy here is "
            "that of the definition's numbers (harness/formats/nf4.py).",
        ),
    )
    return [
        Problem(rule, f"{len(names)} {what}", tuple(names), fix)
        for rule, names, what, fix in findings
        if names
    ]
