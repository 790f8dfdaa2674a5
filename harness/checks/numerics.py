"""Quantize-dequantize computes exactly what the format says.

First ModelOpt's own arithmetic against the oracle, without a model: exhaustively around every
number of a format, on random bits, and where amax defines no scale.  Then the quantizers of the
quantized model, on its own tensors.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from harness import (
    compat,  # noqa: F401  (before modelopt imports transformers)
    formats,
)
from harness.checks import agreement
from harness.checks.registry import NotJudged, check
from harness.formats import deviations
from harness.formats.probes import probes, scales
from harness.problems import Problem
from harness.quantization import stored
from harness.quantization.context import quiet
from harness.quantization.observations import Observation
from harness.recipes import config_form

if TYPE_CHECKING:
    from harness.gate.case import Case
    from harness.gate.setting import Setting

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
#: Formats that are looked at per tensor and in every layout as well.
MAIN_FORMATS = ("E4M3", "INT8", "INT4")
#: Formats that are looked at with any bits and any amax.
SIGNED_FORMATS = (*MAIN_FORMATS, "INT8-narrow")
#: Which elements share a scale, by name, as the attributes of a quantizer.
LAYOUTS: dict[str, dict[str, object]] = {
    "per-tensor": {"type": "dynamic"},
    "per-channel": {"axis": 0, "type": "dynamic"},
    "two-axes": {"axis": (0, 2), "type": "dynamic"},
    "per-token": {"block_sizes": {-1: None, "type": "dynamic"}},
    "block": {"block_sizes": {-1: 16}},
    "2-D-block": {"block_sizes": {-1: 16, -2: 4}},
}
#: Zero, subnormal, huge, infinite and NaN.
ODD_AMAXES = (
    0.0,
    2.0**-149,
    2.0**-126,
    2.0**-25,
    2.0**-24,
    65504.0,
    3.0e38,
    float("inf"),
    float("nan"),
)
GRADIENT_FORMATS = ("E4M3", "INT8")
#: Attributes of the weight quantizers that are folded.
FOLDED: tuple[dict[str, object], ...] = (
    {"num_bits": (4, 3)},
    {"num_bits": 8, "axis": 0},
    {"num_bits": 4, "block_sizes": {-1: 16}},
)
#: Formats whose blocks have a scale in a format of its own, by name: (bits of an element, block,
#: bits of a scale).
BLOCK_FORMATS: dict[str, tuple[int | tuple[int, int], int, tuple[int, int]]] = {
    "NVFP4": ((2, 1), 16, (4, 3)),
    "MXFP4": ((2, 1), 32, (8, 0)),
    "MXFP6-e3m2": ((3, 2), 32, (8, 0)),
    "MXFP6-e2m3": ((2, 3), 32, (8, 0)),
    "MXFP8": ((4, 3), 32, (8, 0)),
    "MXINT8": (8, 32, (8, 0)),
}
#: Integers of the width of each floating-point type, whose patterns are its bits.
BITS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
#: Share of the elements of a block format that approximate division may move to a neighbour.
MOVED_BY_DIVISION = 1e-4


def quantizer(amax: Tensor | None = None, **attributes: Any) -> Any:
    """Make a TensorQuantizer of ModelOpt with these attributes."""
    from modelopt.torch.quantization.config import QuantizerAttributeConfig
    from modelopt.torch.quantization.nn import TensorQuantizer

    tensor_quantizer = TensorQuantizer(QuantizerAttributeConfig(**attributes))
    if amax is not None:
        tensor_quantizer.amax = amax
    return tensor_quantizer


def differences(quantizer: Any, x: Tensor) -> list[str]:
    """Return where the quantizer does not give the oracle's bits for *x*, and the first element
    where it does not.
    """
    return _unequal(quantizer(x), formats.from_quantizer(quantizer)(x), x, quantizer.num_bits)


def _unequal(actual: Tensor, expected: Tensor, x: Tensor, num_bits: object) -> list[str]:
    equal = torch.from_numpy(formats.same_bits(actual, expected))
    if equal.all():
        return []
    at = tuple(int(i) for i in (~equal).nonzero()[0])
    values = (
        f"expected {float(expected[at]):.9g}, found {float(actual[at]):.9g} for input "
        f"{float(x[at]):.9g}"
    )
    lines = (
        f"{int((~equal).sum())} of {x.numel()} elements differ from the definition of {num_bits}",
        f"{values} at {at}, {x.dtype}",
        "what is known of ModelOpt's own arithmetic is in harness/formats/deviations.py",
    )
    return ["\n".join(lines)]


@functools.cache
def neighbourhood(name: str, dtype: torch.dtype, count: int = 128) -> tuple[Tensor, Tensor]:
    """Return probes around every number of a format, one row per amax, and the amaxes as a
    column.
    """
    amax = scales(count, lowest=2.0**-23, highest=2.0**126)
    x = torch.from_numpy(probes(formats.find(name), amax, np.float32)).to(dtype)
    return x, torch.from_numpy(amax)[:, None]


@check("numerics", name=FORMATS, dtype=DTYPES)
def every_number_and_its_neighbourhood_per_channel(name: str, dtype: torch.dtype) -> list[str]:
    """Probe every number of a format, shares of every gap and beyond the range, at scales from tiny
    to huge.
    """
    x, amax = neighbourhood(name, dtype)
    return differences(quantizer(amax, axis=0, **FORMATS[name]), x)


@check("numerics", name=MAIN_FORMATS, dtype=DTYPES)
def every_number_and_its_neighbourhood_per_tensor(name: str, dtype: torch.dtype) -> list[str]:
    """Probe the same with one amax for the tensor, in float32 and rounded to the input's dtype."""
    x, amax = neighbourhood(name, dtype)
    problems = []
    for row, of_row in zip(x[::4], amax[::4, 0], strict=True):
        problems += differences(quantizer(of_row, **FORMATS[name]), row)
        problems += differences(quantizer(of_row.to(dtype), **FORMATS[name]), row)
    return problems[:1]


@check("numerics", name=MAIN_FORMATS, layout=LAYOUTS.values(), dtype=DTYPES)
def every_layout(name: str, layout: Mapping[str, Any], dtype: torch.dtype) -> list[str]:
    """Let different elements share a scale, with amax taken from the tensor."""
    x = torch.randn(3, 8, 96, generator=torch.Generator().manual_seed(5)) * torch.logspace(
        -3, 3, 96
    )
    return differences(quantizer(**FORMATS[name], **layout), x.to(dtype))


@check("numerics", dtype=DTYPES)
def a_chain_of_quantizers(dtype: torch.dtype) -> list[str]:
    """Compare W4A8's weights, INT4 in blocks and then E4M3 per tensor, with the two definitions in
    turn.
    """
    from modelopt.torch.quantization.nn import SequentialQuantizer

    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(6)).to(dtype)
    chain = SequentialQuantizer(
        quantizer(num_bits=4, block_sizes={-1: 128}), quantizer(num_bits=(4, 3))
    )
    return _unequal(
        chain(weight), formats.from_quantizer(chain)(weight), weight, "INT4 and then E4M3"
    )


@check("numerics", dtype=DTYPES, scale_dtype=DTYPES)
def a_pre_quantization_scale(dtype: torch.dtype, scale_dtype: torch.dtype) -> list[str]:
    """Let the scale of SmoothQuant and AWQ multiply first, in the dtype that torch promotes to."""
    tensor_quantizer = quantizer(torch.tensor(3.0), num_bits=8)
    tensor_quantizer.pre_quant_scale = torch.logspace(-2, 2, 64).to(scale_dtype)
    return differences(
        tensor_quantizer, torch.randn(8, 64, generator=torch.Generator().manual_seed(7)).to(dtype)
    )


@check("numerics", name=SIGNED_FORMATS, amax=ODD_AMAXES)
def an_amax_that_defines_no_scale(name: str, amax: float) -> list[str]:
    """Compare zero, subnormal, huge, infinite and NaN amaxes with the definition and the known
    deviations.
    """
    x = torch.tensor(
        [0.0, -0.0, 1e-38, -1e-8, 0.5, -1.0, 300.0, 3e38, float("inf"), -float("inf"), float("nan")]
    )
    quantizers = [quantizer(torch.tensor(amax), **FORMATS[name]) for _ in DTYPES]
    return [
        line
        for tensor_quantizer, dtype in zip(quantizers, DTYPES, strict=True)
        for line in differences(tensor_quantizer, x.to(dtype))
    ]


@check("numerics")
def a_negative_amax_is_an_error_for_integers() -> list[str]:
    """Return which of ModelOpt's integer quantizer and the definition accepts a negative amax."""
    tensor_quantizer = quantizer(torch.tensor(-1.0), num_bits=8)
    sides: dict[str, Callable[[Tensor], object]] = {
        "ModelOpt": tensor_quantizer,
        "the definition": formats.from_quantizer(tensor_quantizer),
    }
    return [
        f"{side} accepts a negative amax"
        for side, run in sides.items()
        if not _refuses_negative(run)
    ]


def _refuses_negative(quantize: Callable[[Tensor], object]) -> bool:
    try:
        quantize(torch.ones(3))
    except ValueError as error:
        return "negative" in str(error).lower()
    return False


@st.composite
def any_bits(draw: st.DrawFn) -> Tensor:
    """Draw a matrix of arbitrary bit patterns, so of any number, infinity or NaN, of one of the
    three dtypes.
    """
    dtype = draw(st.sampled_from(DTYPES))
    width = torch.iinfo(BITS[dtype])
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 40)))
    size = shape[0] * shape[1]
    codes = draw(st.lists(st.integers(width.min, width.max), min_size=size, max_size=size))
    return torch.tensor(codes, dtype=BITS[dtype]).view(dtype).reshape(shape)


AMAXES = st.floats(min_value=2.0**-24, max_value=2.0**127, width=32, exclude_min=True)


class _CounterexampleError(Exception):
    """An example that shows the problem; hypothesis notes which one."""


def _searched(search: Callable[[], object]) -> list[str]:
    """Run *search*, a function that hypothesis drives, and return the smallest example that it
    finds.
    """
    try:
        search()
    except _CounterexampleError as found:
        return ["\n".join([str(found), *getattr(found, "__notes__", ())])]
    return []


def _must_equal(quantize: object, x: Tensor) -> None:
    lines = differences(quantize, x)
    if lines:
        raise _CounterexampleError(lines[0])


@check("numerics", examples=(150,))
def any_bits_at_any_scale(examples: int = 150) -> list[str]:
    """Search for bits of an input and an amax for which ModelOpt does not return the bits of the
    definition.
    """

    @settings(max_examples=examples, deadline=None, report_multiple_bugs=False)
    @given(x=any_bits(), name=st.sampled_from(SIGNED_FORMATS), amax=AMAXES)
    def search(x: Tensor, name: str, amax: float) -> None:
        _must_equal(quantizer(torch.tensor(amax), **FORMATS[name]), x)

    return _searched(search)


@check("numerics", examples=(100,))
def any_bits_with_an_amax_a_channel(examples: int = 100) -> list[str]:
    """Search for the same with an amax of its own for each row."""

    @settings(max_examples=examples, deadline=None, report_multiple_bugs=False)
    @given(data=st.data(), x=any_bits(), name=st.sampled_from(MAIN_FORMATS))
    def search(data: st.DataObject, x: Tensor, name: str) -> None:
        amax = data.draw(st.lists(AMAXES, min_size=x.shape[0], max_size=x.shape[0]))
        _must_equal(quantizer(torch.tensor(amax)[:, None], axis=0, **FORMATS[name]), x)

    return _searched(search)


@check("numerics", name=GRADIENT_FORMATS)
def the_gradient_passes_within_the_range_only(name: str) -> list[str]:
    """Compare the clipping straight-through estimator: 1 where |x| <= amax, both ends included, and
    0 beyond.
    """
    x = torch.tensor([0.0, -0.0, 0.1, 1.5, -1.5, 1.5000001, -1.6, float("inf")], requires_grad=True)
    quantizer(torch.tensor(1.5), pass_through_bwd=False, **FORMATS[name])(x).sum().backward()
    expected = [1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    sides = {
        "ModelOpt": [] if x.grad is None else x.grad.tolist(),
        "the definition": formats.gradient_mask(x, 1.5).astype(float).tolist(),
    }
    wrong = {side: gradient for side, gradient in sides.items() if gradient != expected}
    return [
        f"{side}: the gradient is {gradient}, expected {expected}"
        for side, gradient in wrong.items()
    ]


@check("numerics", attributes=FOLDED)
def folded_weights_are_the_oracles(attributes: Mapping[str, Any]) -> list[str]:
    """Compare the weight that ``mtq.fold_weight`` leaves with what the oracle makes of the original
    one.
    """
    import modelopt.torch.quantization as mtq

    with torch.random.fork_rng():
        torch.manual_seed(0)
        linear: Any = nn.Linear(64, 32, bias=False).half()
    weight = linear.weight.detach().clone()
    entries = [
        {"quantizer_name": "*", "enable": False},
        {"quantizer_name": "*weight_quantizer", "cfg": attributes},
        {"quantizer_name": "*input_quantizer", "cfg": {"num_bits": 8}},
    ]
    config = {"quant_cfg": config_form.accepted(entries, "this check"), "algorithm": "max"}
    with quiet():
        model = mtq.quantize(
            nn.Sequential(linear), config, lambda model: model(torch.ones(1, 64).half())
        )
    expected = formats.from_quantizer(linear.weight_quantizer)(weight)
    mtq.fold_weight(model)
    if torch.equal(expected, weight):
        return ["the definition leaves the weight as it is: nothing was compared"]
    return _unequal(linear.weight.detach(), expected, weight, attributes["num_bits"])


@check("numerics", known=deviations.KNOWN)
def known_deviation_is_as_it_was(gate: Setting, known: deviations.Deviation) -> list[str]:
    """Return where ModelOpt deviates from the definition in another way than recorded, or than its
    release should.
    """
    return gate.deviation(known)


def _need_cuda() -> None:
    if not torch.cuda.is_available():
        raise NotJudged("no CUDA device for ModelOpt's CUDA kernels")


@check("numerics", name=FORMATS, dtype=DTYPES)
def cuda_computes_what_the_cpu_does(name: str, dtype: torch.dtype) -> list[str]:
    """Compare per channel and per tensor on a CUDA device (for E4M3: by the extension where it
    builds).
    """
    _need_cuda()
    x, amax = neighbourhood(name, dtype, count=16)
    finite = x.clone().nan_to_num_(nan=0.0)
    problems = differences(quantizer(amax, axis=0, **FORMATS[name]).cuda(), finite.cuda())
    return problems + differences(quantizer(amax[5, 0], **FORMATS[name]).cuda(), finite[5].cuda())


@check("numerics", dtype=DTYPES)
def cuda_eager_e4m3(dtype: torch.dtype) -> list[str]:
    """Compare ModelOpt's eager E4M3 on a CUDA device, NaN included."""
    from modelopt.torch.quantization.tensor_quant import fp8_eager

    _need_cuda()
    x, amax = neighbourhood("E4M3", dtype, count=16)
    rules = formats.modelopt_rules(formats.FORMATS["E4M3"])
    expected = formats.quantize_dequantize(x, "E4M3", amax, axis=0, rules=rules)
    return _unequal(fp8_eager(x.cuda(), amax.cuda()).cpu(), torch.as_tensor(expected), x, "E4M3")


@check("numerics", block_format=BLOCK_FORMATS)
def cuda_block_formats(block_format: str) -> list[str]:
    """Compare the dynamic block formats on a CUDA device, but for the ties that approximate
    division moves.

    Triton's kernel and the MX extension (built with fast math) divide within two ulp, so an element
    that is that close to the middle of two numbers may go either way: one in ten thousand, and then
    to a neighbour.
    """
    _need_cuda()
    num_bits, block, scale_bits = BLOCK_FORMATS[block_format]
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(8))
    amax = None if scale_bits == (8, 0) else x.abs().max()
    blocks = {-1: block, "type": "dynamic", "scale_bits": scale_bits}
    tensor_quantizer = quantizer(amax, num_bits=num_bits, block_sizes=blocks).cuda()
    oracle = formats.from_quantizer(tensor_quantizer)
    actual, expected = tensor_quantizer(x.cuda()).cpu(), oracle(x)
    differs = torch.from_numpy(~oracle.equal(x, actual, expected))
    far = ((actual - expected).abs() > 0.34 * x.abs().amax())[differs]
    problems = []
    if differs.float().mean() > MOVED_BY_DIVISION:
        problems.append(
            f"{int(differs.sum())} of {x.numel()} elements differ from the definition of "
            f"{block_format}"
        )
    if far.any():
        problems.append(
            f"{int(far.sum())} elements are further from the definition of {block_format} than "
            f"a neighbour"
        )
    return problems


# -- the quantized model itself --------------------------------------------------------------------


@check("numerics")
def quantizers_of_the_model_compute_their_format(case: Case) -> list[str]:
    """Return the enabled quantizers that do not give, bit for bit, what their format says on the
    model's tensors.
    """
    observations = case.observations
    return mismatches(observations) if observations else ["no enabled quantizer ran"]


def mismatches(observations: Iterable[Observation]) -> list[str]:
    """Return a line for each quantizer that does not compute what its format says, or that the
    oracle cannot judge.
    """
    seen = tuple(observations)
    wrong = [
        f"{o.name}: {o.mismatches} of {o.elements} elements differ; {o.first}"
        for o in seen
        if o.mismatches
    ]
    return wrong + [
        f"{o.name}: not compared, the oracle has no {o.unsupported}" for o in seen if o.unsupported
    ]


@check("numerics")
def folded_model_computes_the_same(case: Case) -> list[Problem]:
    """Return where the folded copy, which accuracy is measured on, computes something else than the
    model.
    """
    quantized = case.quantized
    return stored.problems(quantized.model) or agreement.with_folded(
        quantized.model, quantized.folded, quantized.inputs
    )


@check("numerics")
def weights_in_a_block_format(case: Case) -> list[Problem]:
    """Return the weights in a block format that needs CUDA whose numbers are not the format's
    nearest.

    ModelOpt's packed tensors must hold them; nothing runs on a CUDA device.
    """
    problems, count = case.packed_weights
    if not count:
        raise NotJudged(
            "the recipe has no block format that needs CUDA: the quantized model itself is compared"
        )
    return problems
