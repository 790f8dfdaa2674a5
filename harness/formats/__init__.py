"""Reference quantize-dequantize, written from the definitions of the formats and independent of
ModelOpt.

    # NumPy or torch, same dtype back
    y = formats.quantize_dequantize(x, "E4M3", amax)
    # amax from the blocks
    y = formats.quantize_dequantize(w, "INT4", block_sizes={-1: 128})
    # what this quantizer must return, to the last bit
    y = formats.from_quantizer(module.input_quantizer)(x)

`formats` holds the sets of numbers, `layout` says which elements share a scale, `arithmetic` scales
and rounds, `oracle` puts them together, `nf4` does so where scales are quantized too, `quantizer`
reads a ModelOpt quantizer's attributes, `deviations` lists where ModelOpt differs.
"""

from __future__ import annotations

from harness.formats.arithmetic import DEFINITION, Order, Rules
from harness.formats.deviations import modelopt_rules
from harness.formats.nf4 import NF4Rules, double_quantized
from harness.formats.number_formats import FORMATS, Format, e8m0_exponent, find, integer
from harness.formats.oracle import (
    gradient_mask,
    quantize_dequantize,
    same_bits,
    saturation_fraction,
    to_numpy,
    to_torch,
    underflow_fraction,
)
from harness.formats.quantizer import QuantizerOracle, Step, from_quantizer

__all__ = [
    "DEFINITION",
    "FORMATS",
    "Format",
    "NF4Rules",
    "Order",
    "QuantizerOracle",
    "Rules",
    "Step",
    "double_quantized",
    "e8m0_exponent",
    "find",
    "from_quantizer",
    "gradient_mask",
    "integer",
    "modelopt_rules",
    "quantize_dequantize",
    "same_bits",
    "saturation_fraction",
    "to_numpy",
    "to_torch",
    "underflow_fraction",
]
