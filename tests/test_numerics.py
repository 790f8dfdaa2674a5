"""Does quantize-dequantize compute exactly what the format says?

First ModelOpt's own arithmetic against the oracle, without a model: exhaustively around every number of a format, on
random bits, and where amax defines no scale.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from harness import (
    compat,  # noqa: F401  (before modelopt imports transformers)
    formats,
)
from harness.checks import numerics
from harness.formats import deviations
from harness.formats.probes import probes, scales
from harness.gate.gate import Case, Gate, Quantized
from harness.pytest_plugin.plugin import Check
from harness.recipes import config_form

pytestmark = pytest.mark.numerics

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#: What the recipes of a model call a format, as the attributes of a quantizer.
FORMATS: dict[str, dict[str, Any]] = {
    "E4M3": {"num_bits": (4, 3)},
    "INT8": {"num_bits": 8},
    "INT8-narrow": {"num_bits": 8, "narrow_range": True},
    "UINT8": {"num_bits": 8, "unsigned": True},
    "INT4": {"num_bits": 4},
    "INT4-narrow": {"num_bits": 4, "narrow_range": True},
    "INT3": {"num_bits": 3},
}
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device for ModelOpt's CUDA kernels")


def quantizer(amax: torch.Tensor | None = None, **attributes: Any) -> Any:
    """A TensorQuantizer of ModelOpt with these attributes."""
    from modelopt.torch.quantization.config import QuantizerAttributeConfig
    from modelopt.torch.quantization.nn import TensorQuantizer

    made = TensorQuantizer(QuantizerAttributeConfig(**attributes))
    if amax is not None:
        made.amax = amax
    return made


def hold(made: Any, x: torch.Tensor) -> None:
    """Fail unless the quantizer returns the oracle's bits for `x`, naming the first element where it does not."""
    found, expected = made(x), formats.from_quantizer(made)(x)
    equal = torch.from_numpy(formats.same_bits(found, expected))
    if not equal.all():
        at = tuple(int(i) for i in (~equal).nonzero()[0])
        values = f"expected {float(expected[at]):.9g}, found {float(found[at]):.9g} for input {float(x[at]):.9g}"
        lines = (
            f"{int((~equal).sum())} of {x.numel()} elements differ from the definition of {made.num_bits}",
            f"{values} at {at}, {x.dtype}",
            "what is known of ModelOpt's own arithmetic is in harness/formats/deviations.py",
        )
        pytest.fail("\n".join(lines), pytrace=False)


@functools.cache
def neighbourhood(name: str, dtype: torch.dtype, count: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """Probes around every number of a format, one row an amax, and the amaxes as a column."""
    amax = scales(count, lowest=2.0**-23, highest=2.0**126)
    x = torch.from_numpy(probes(formats.find(name), amax, np.float32)).to(dtype)
    return x, torch.from_numpy(amax)[:, None]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_every_number_and_its_neighbourhood_per_channel(name: str, dtype: torch.dtype) -> None:
    """At every number of the format, shares of every gap and beyond the range, at scales tiny to huge, each bit is
    right.
    """
    x, amax = neighbourhood(name, dtype)

    hold(quantizer(amax, axis=0, **FORMATS[name]), x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["E4M3", "INT8", "INT4"])
def test_every_number_and_its_neighbourhood_per_tensor(name: str, dtype: torch.dtype) -> None:
    """The same with one amax for the tensor, held in float32 and rounded to the input's dtype as calibration leaves
    it.
    """
    x, amax = neighbourhood(name, dtype)

    for row, a in zip(x[::4], amax[::4, 0], strict=True):
        hold(quantizer(a, **FORMATS[name]), row)
        hold(quantizer(a.to(dtype), **FORMATS[name]), row)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["E4M3", "INT8", "INT4"])
@pytest.mark.parametrize(
    "layout",
    [
        {"type": "dynamic"},
        {"axis": 0, "type": "dynamic"},
        {"axis": (0, 2), "type": "dynamic"},
        {"block_sizes": {-1: None, "type": "dynamic"}},
        {"block_sizes": {-1: 16}},
        {"block_sizes": {-1: 16, -2: 4}},
    ],
    ids=["per-tensor", "per-channel", "two-axes", "per-token", "block", "2-D-block"],
)
def test_every_layout(name: str, layout: dict[str, Any], dtype: torch.dtype) -> None:
    """Whichever elements share a scale, and with amax taken from the tensor, each bit is right."""
    x = torch.randn(3, 8, 96, generator=torch.Generator().manual_seed(5)) * torch.logspace(-3, 3, 96)

    hold(quantizer(**FORMATS[name], **layout), x.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_chain_of_quantizers(dtype: torch.dtype) -> None:
    """W4A8's weights, INT4 in blocks and then E4M3 per tensor, come out as the two definitions in turn."""
    from modelopt.torch.quantization.nn import SequentialQuantizer

    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(6)).to(dtype)
    chain = SequentialQuantizer(quantizer(num_bits=4, block_sizes={-1: 128}), quantizer(num_bits=(4, 3)))

    assert formats.same_bits(chain(weight), formats.from_quantizer(chain)(weight)).all()


@pytest.mark.parametrize("scale_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_pre_quantization_scale(dtype: torch.dtype, scale_dtype: torch.dtype) -> None:
    """SmoothQuant's and AWQ's scale multiplies first, in the dtype that torch promotes to."""
    made = quantizer(torch.tensor(3.0), num_bits=8)
    made.pre_quant_scale = torch.logspace(-2, 2, 64).to(scale_dtype)

    hold(made, torch.randn(8, 64, generator=torch.Generator().manual_seed(7)).to(dtype))


@pytest.mark.parametrize("name", ["E4M3", "INT8", "INT4", "INT8-narrow"])
@pytest.mark.parametrize(
    "amax", [0.0, 2.0**-149, 2.0**-126, 2.0**-25, 2.0**-24, 65504.0, 3.0e38, float("inf"), float("nan")]
)
def test_an_amax_that_defines_no_scale(name: str, amax: float) -> None:
    """Zero, subnormal, huge, infinite and NaN amax do what the definition, and the list of known deviations, says."""
    x = torch.tensor([0.0, -0.0, 1e-38, -1e-8, 0.5, -1.0, 300.0, 3e38, float("inf"), -float("inf"), float("nan")])

    for dtype in DTYPES:
        hold(quantizer(torch.tensor(amax), **FORMATS[name]), x.to(dtype))


def test_a_negative_amax_is_an_error_for_integers() -> None:
    """An integer quantizer refuses a negative amax, as the definition does."""
    made = quantizer(torch.tensor(-1.0), num_bits=8)

    for quantize in (made, formats.from_quantizer(made)):
        with pytest.raises(ValueError, match=r"[Nn]egative"):
            quantize(torch.ones(3))


BITS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}


@st.composite
def any_bits(draw: st.DrawFn) -> torch.Tensor:
    """A matrix of arbitrary bit patterns, so of any number, infinity or NaN, of one of the three dtypes."""
    dtype = draw(st.sampled_from(DTYPES))
    width = torch.iinfo(BITS[dtype])
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 40)))
    size = shape[0] * shape[1]
    codes = draw(st.lists(st.integers(width.min, width.max), min_size=size, max_size=size))
    return torch.tensor(codes, dtype=BITS[dtype]).view(dtype).reshape(shape)


amaxes = st.floats(min_value=2.0**-24, max_value=2.0**127, width=32, exclude_min=True)


@settings(max_examples=150, deadline=None)
@given(x=any_bits(), name=st.sampled_from(["E4M3", "INT8", "INT4", "INT8-narrow"]), amax=amaxes)
def test_any_bits_at_any_scale(x: torch.Tensor, name: str, amax: float) -> None:
    """Whatever bits the input holds and whatever the amax, ModelOpt returns the bits of the definition."""
    hold(quantizer(torch.tensor(amax), **FORMATS[name]), x)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), x=any_bits(), name=st.sampled_from(["E4M3", "INT8", "INT4"]))
def test_any_bits_with_an_amax_a_channel(data: st.DataObject, x: torch.Tensor, name: str) -> None:
    """The same with an amax of its own for each row."""
    amax = data.draw(st.lists(amaxes, min_size=x.shape[0], max_size=x.shape[0]))

    hold(quantizer(torch.tensor(amax)[:, None], axis=0, **FORMATS[name]), x)


@pytest.mark.parametrize("name", ["E4M3", "INT8"])
def test_the_gradient_passes_within_the_range_only(name: str) -> None:
    """The straight-through estimator with clipping is 1 where |x| <= amax, both ends included, and 0 beyond."""
    x = torch.tensor([0.0, -0.0, 0.1, 1.5, -1.5, 1.5000001, -1.6, float("inf")], requires_grad=True)
    made = quantizer(torch.tensor(1.5), pass_through_bwd=False, **FORMATS[name])

    made(x).sum().backward()

    assert x.grad is not None
    assert x.grad.tolist() == formats.gradient_mask(x, 1.5).astype(float).tolist() == [1, 1, 1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    "attributes", [{"num_bits": (4, 3)}, {"num_bits": 8, "axis": 0}, {"num_bits": 4, "block_sizes": {-1: 16}}]
)
def test_folded_weights_are_the_oracles(attributes: dict[str, Any]) -> None:
    """`mtq.fold_weight` leaves in the weight exactly what the oracle makes of the original one."""
    import modelopt.torch.quantization as mtq

    torch.manual_seed(0)
    linear: Any = nn.Linear(64, 32, bias=False).half()
    weight = linear.weight.detach().clone()
    entries = [{"quantizer_name": "*", "enable": False}, {"quantizer_name": "*weight_quantizer", "cfg": attributes}]
    config = {"quant_cfg": config_form.accepted(entries, "this test"), "algorithm": "max"}
    model = mtq.quantize(nn.Sequential(linear), config, lambda m: m(torch.ones(1, 64).half()))
    expected = formats.from_quantizer(linear.weight_quantizer)(weight)

    mtq.fold_weight(model)

    assert formats.same_bits(linear.weight, expected).all()
    assert not torch.equal(expected, weight)


@pytest.mark.parametrize("known", deviations.KNOWN, ids=lambda d: d.name)
def test_known_deviation_is_as_it_was(gate: Gate, known: deviations.Deviation, check: Check) -> None:
    """ModelOpt differs from the definition in this case, and exactly as recorded, or as its release is expected to:
    neither mended nor grown.
    """
    check.problems(gate.deviation(known))


@cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_cuda_computes_what_the_cpu_does(name: str, dtype: torch.dtype) -> None:
    """On a CUDA device, per channel and per tensor, the bits are the oracle's too (for E4M3: by the extension where
    it builds).
    """
    x, amax = neighbourhood(name, dtype, count=16)
    finite = x.clone().nan_to_num_(nan=0.0)

    hold(quantizer(amax, axis=0, **FORMATS[name]).cuda(), finite.cuda())
    hold(quantizer(amax[5, 0], **FORMATS[name]).cuda(), finite[5].cuda())


@cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cuda_eager_e4m3(dtype: torch.dtype) -> None:
    """ModelOpt's eager E4M3 on a CUDA device gives the oracle's bits, NaN included."""
    from modelopt.torch.quantization.tensor_quant import fp8_eager

    x, amax = neighbourhood("E4M3", dtype, count=16)
    expected = formats.quantize_dequantize(
        x, "E4M3", amax, axis=0, rules=formats.modelopt_rules(formats.FORMATS["E4M3"])
    )

    assert formats.same_bits(fp8_eager(x.cuda(), amax.cuda()), expected).all()


@cuda
@pytest.mark.parametrize(
    ("num_bits", "block", "scale_bits"),
    [
        ((2, 1), 16, (4, 3)),
        ((2, 1), 32, (8, 0)),
        ((3, 2), 32, (8, 0)),
        ((2, 3), 32, (8, 0)),
        ((4, 3), 32, (8, 0)),
        (8, 32, (8, 0)),
    ],
    ids=["NVFP4", "MXFP4", "MXFP6-e3m2", "MXFP6-e2m3", "MXFP8", "MXINT8"],
)
def test_cuda_block_formats(num_bits: int | tuple[int, int], block: int, scale_bits: tuple[int, int]) -> None:
    """On a CUDA device the dynamic block formats agree with the oracle in all but the ties that approximate division
    moves.

    Triton's kernel and the MX extension (built with fast math) divide within two ulp, so an element that lies that
    close to the middle of two numbers may go either way: one in ten thousand, and then to a neighbour.
    """
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(8))
    amax = None if scale_bits == (8, 0) else x.abs().max()
    made = quantizer(
        amax, num_bits=num_bits, block_sizes={-1: block, "type": "dynamic", "scale_bits": scale_bits}
    ).cuda()

    oracle = formats.from_quantizer(made)

    found, expected = made(x.cuda()).cpu(), oracle(x)

    differs = torch.from_numpy(~oracle.equal(x, found, expected))
    assert differs.float().mean() <= 1e-4
    assert ((found - expected).abs() <= 0.34 * x.abs().amax())[differs].all()


# -- the quantized model itself -----------------------------------------------------------------------------------


def test_quantizers_of_the_model_compute_their_format(
    gate: Gate, case: Case, quantized: Quantized, check: Check
) -> None:
    """Every enabled quantizer gives, bit for bit, what its format says on the tensors that flow through it."""
    observations = gate.observations(case)

    assert observations, "no enabled quantizer ran"
    check.problems(numerics.mismatches(observations))


def test_folded_model_computes_the_same(gate: Gate, case: Case, quantized: Quantized, check: Check) -> None:
    """The copy with folded weights, which accuracy is measured on, gives the quantized model's bits."""
    check.problems(gate.fold_problems(case))


def test_weights_in_a_block_format(gate: Gate, weights_case: Case, check: Check) -> None:
    """Without a CUDA device too: the model's weights in the recipe's block format are its nearest numbers, and
    ModelOpt's packed tensors hold them.
    """
    found = gate.packed_problems(weights_case)

    if not gate.section(weights_case, "numerics")["packed_weights"]:
        pytest.skip("the recipe has no block format that needs CUDA: the quantized model itself is compared")
    check.problems(found)
