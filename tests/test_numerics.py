"""Does quantize-dequantize compute exactly what the format says?

First ModelOpt's own arithmetic against the oracle, without a model: exhaustively around every
number of a format, on random bits, and where amax defines no scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from harness.checks import numerics
from harness.formats import deviations
from harness.gate.listing import CaseName
from harness.gate.quantized import Quantized
from harness.gate.session import Gate
from harness.pytest_plugin.judge import Judge

pytestmark = pytest.mark.numerics

_DTYPES = pytest.mark.parametrize("dtype", numerics.DTYPES, ids=str)
_FORMATS = pytest.mark.parametrize("name", numerics.FORMATS)
_MAIN_FORMATS = pytest.mark.parametrize("name", numerics.MAIN_FORMATS)


@_DTYPES
@_FORMATS
def test_every_number_and_its_neighbourhood_per_channel(
    name: str, dtype: torch.dtype, check: Judge
) -> None:
    """At every number of the format, shares of every gap and beyond the range, at scales tiny to
    huge, each bit is right.
    """
    check.problems(numerics.every_number_and_its_neighbourhood_per_channel(name, dtype))


@_DTYPES
@_MAIN_FORMATS
def test_every_number_and_its_neighbourhood_per_tensor(
    name: str, dtype: torch.dtype, check: Judge
) -> None:
    """The same with one amax for the tensor, held in float32 and rounded to the input's dtype as
    calibration leaves it.
    """
    check.problems(numerics.every_number_and_its_neighbourhood_per_tensor(name, dtype))


@_DTYPES
@_MAIN_FORMATS
@pytest.mark.parametrize("layout", numerics.LAYOUTS.values(), ids=numerics.LAYOUTS)
def test_every_layout(
    name: str, layout: Mapping[str, Any], dtype: torch.dtype, check: Judge
) -> None:
    """Whichever elements share a scale, and with amax taken from the tensor, each bit is right."""
    check.problems(numerics.every_layout(name, layout, dtype))


@_DTYPES
def test_a_chain_of_quantizers(dtype: torch.dtype, check: Judge) -> None:
    """W4A8's weights, INT4 in blocks and then E4M3 per tensor, come out as the two definitions in
    turn.
    """
    check.problems(numerics.a_chain_of_quantizers(dtype))


@pytest.mark.parametrize("scale_dtype", numerics.DTYPES, ids=str)
@_DTYPES
def test_a_pre_quantization_scale(
    dtype: torch.dtype, scale_dtype: torch.dtype, check: Judge
) -> None:
    """SmoothQuant's and AWQ's scale multiplies first, in the dtype that torch promotes to."""
    check.problems(numerics.a_pre_quantization_scale(dtype, scale_dtype))


@pytest.mark.parametrize("name", numerics.SIGNED_FORMATS)
@pytest.mark.parametrize("amax", numerics.ODD_AMAXES)
def test_an_amax_that_defines_no_scale(name: str, amax: float, check: Judge) -> None:
    """Zero, subnormal, huge, infinite and NaN amax do what the definition, and the list of known
    deviations, says.
    """
    check.problems(numerics.an_amax_that_defines_no_scale(name, amax))


def test_a_negative_amax_is_an_error_for_integers(check: Judge) -> None:
    """An integer quantizer refuses a negative amax, as the definition does."""
    check.problems(numerics.a_negative_amax_is_an_error_for_integers())


def test_any_bits_at_any_scale(check: Judge) -> None:
    """Whatever bits the input holds and whatever the amax, ModelOpt returns the bits of the
    definition.
    """
    check.problems(numerics.any_bits_at_any_scale())


def test_any_bits_with_an_amax_a_channel(check: Judge) -> None:
    """The same with an amax of its own for each row."""
    check.problems(numerics.any_bits_with_an_amax_a_channel())


@pytest.mark.parametrize("name", numerics.GRADIENT_FORMATS)
def test_the_gradient_passes_within_the_range_only(name: str, check: Judge) -> None:
    """The straight-through estimator with clipping is 1 where |x| <= amax, both ends included, and
    0 beyond.
    """
    check.problems(numerics.the_gradient_passes_within_the_range_only(name))


@pytest.mark.parametrize("attributes", numerics.FOLDED)
def test_folded_weights_are_the_oracles(attributes: Mapping[str, Any], check: Judge) -> None:
    """`mtq.fold_weight` leaves in the weight exactly what the oracle makes of the original one."""
    check.problems(numerics.folded_weights_are_the_oracles(attributes))


@pytest.mark.parametrize("known", deviations.KNOWN, ids=lambda d: d.name)
def test_known_deviation_is_as_it_was(
    gate: Gate, known: deviations.Deviation, check: Judge
) -> None:
    """ModelOpt differs from the definition in this case, and exactly as recorded, or as its release
    is expected to: neither fixed nor grown.
    """
    check.problems(numerics.known_deviation_is_as_it_was(gate, known))


@_DTYPES
@_FORMATS
def test_cuda_computes_what_the_cpu_does(name: str, dtype: torch.dtype, check: Judge) -> None:
    """On a CUDA device, per channel and per tensor, the bits are the oracle's too (for E4M3: by the
    extension where it builds).
    """
    check.problems(numerics.cuda_computes_what_the_cpu_does(name, dtype))


@_DTYPES
def test_cuda_eager_e4m3(dtype: torch.dtype, check: Judge) -> None:
    """ModelOpt's eager E4M3 on a CUDA device gives the oracle's bits, NaN included."""
    check.problems(numerics.cuda_eager_e4m3(dtype))


@pytest.mark.parametrize("block_format", numerics.BLOCK_FORMATS)
def test_cuda_block_formats(block_format: str, check: Judge) -> None:
    """On a CUDA device the dynamic block formats agree with the oracle in all but the ties that
    approximate division moves.
    """
    check.problems(numerics.cuda_block_formats(block_format))


# -- the quantized model itself --------------------------------------------------------------------


def test_quantizers_of_the_model_compute_their_format(
    gate: Gate, case: CaseName, quantized: Quantized, check: Judge
) -> None:
    """Every enabled quantizer gives, bit for bit, what its format says on the tensors that flow
    through it.
    """
    check.problems(numerics.quantizers_of_the_model_compute_their_format(gate[case]))


def test_folded_model_computes_the_same(
    gate: Gate, case: CaseName, quantized: Quantized, check: Judge
) -> None:
    """The copy with folded weights, which accuracy is measured on, gives the quantized model's
    bits.
    """
    check.problems(numerics.folded_model_computes_the_same(gate[case]))


def test_weights_in_a_block_format(gate: Gate, weights_case: CaseName, check: Judge) -> None:
    """Without a CUDA device too: the model's weights in the recipe's block format are its nearest
    numbers, and ModelOpt's packed tensors hold them.
    """
    check.problems(numerics.weights_in_a_block_format(gate[weights_case]))
