"""Where ModelOpt differs from the definition of a format: each case by name, with a reproducer and
the version it was seen on.

`modelopt_rules` gives the arithmetic under which the oracle equals ModelOpt bit for bit.  `KNOWN`
lists what that arithmetic, or something no arithmetic describes, does to numbers that the
definition treats otherwise: a test holds ModelOpt to each, so that a repair is noticed as well as
growth.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray

from harness.formats.arithmetic import Order, Rules
from harness.formats.nf4 import NF4Rules, double_quantized
from harness.formats.number_formats import E4M3, Format, find
from harness.formats.oracle import quantize_dequantize, same_bits

_FLOAT = Rules(amax_floor=2.0**-24, zero_amax_acts_as=1.0, negative_amax_is_zero=True)
_INT = Rules(amax_floor=2.0**-24)

# What follows was read in the CUDA sources of ModelOpt 0.47, under
# modelopt/torch/kernels/quantization; this project did not run it on a device.
#: gemm/tensor_quant_gpu.cu, fake_tensor_quant_device: ``if (amax < EPSILON) return 0.f``, EPSILON =
#: 2**-24.
_INT_ON_CUDA = Rules(
    amax_floor=float(np.nextafter(np.float32(2.0**-24), np.float32(0))), zero_amax_gives_zero=True
)
#: common/nvfp4_quant.py, fp4_round_magnitude: no comparison holds for NaN, so that it gets the last
#: number, and ``where(x >= 0, y, -y)`` makes that negative.  Triton compiles -y to fma(-scale, q,
#: +0), which is never -0. tl.max and tl.minimum return the number where the other is NaN.
_NVFP4_RULES = Rules(
    nan_is_local=True, nan_element=-6.0, keeps_negative_zero=False, constant_division="multiply"
)
#: gemm/fp4_kernel_hopper.py, fp4_fake_quant_kernel: ``where(block_max_quant >= 1e-5,
#: block_max_quant, 1.0)``.
_DYNAMIC_TWO_LEVEL = replace(_NVFP4_RULES, block_scale_floor=1e-5)
#: gemm/fp4_kernel.py, compute_fp4_scales (the scales are E4M3's own fake quantization), and
#: common/nvfp4_quant.py, nvfp4_scalar_quant: a scale that is NaN acts as 1, and one of zero makes
#: zeros.
_STATIC_TWO_LEVEL = replace(
    _NVFP4_RULES,
    amax_floor=2.0**-24,
    zero_amax_acts_as=1.0,
    negative_amax_is_zero=True,
    block_scale_order="reciprocal",
)
#: gemm/tensor_quant_mx.cu: fmaxf leaves NaN out of a block's amax (compute_max), an amax of 0 or
#: NaN has the scale 1 (compute_scale), infinity is clamped to FLT_MAX, and quantize() sets no sign
#: where x is neither < 0 nor > 0.
_MX = Rules(nan_is_local=True, zero_sign_is_open=True)
#: gemm/tensor_quant_mx.h: convert_to_table_types gives NaN the last number of the table,
#: convert_int8_saturating the integer that the device casts NaN to, which is 0.  E4M3 and E5M2 have
#: a code for NaN.
_MX_NAN = {"E2M1": 6.0, "E3M2": 28.0, "E2M3": 7.5, "MXINT8": 0.0}

#: The arithmetic of ModelOpt's packed tensors, by class.  MXFP4QTensor and MXFP8QTensor follow the
#: definition up to `KNOWN`.
PACKED_RULES: dict[str, Rules] = {
    "FP8QTensor": Rules(order=Order.STEP, working="input"),
    "INT8QTensor": Rules(order=Order.STEP, working="input", keeps_negative_zero=False),
    "INT4QTensor": Rules(order=Order.RECIPROCAL_RATIO, working="input", keeps_negative_zero=False),
    "NVFP4QTensor": Rules(smallest_block_scale=2.0**-9, keeps_negative_zero=False),
    "MXFP4QTensor": Rules(),
    "MXFP8QTensor": Rules(),
}


#: ModelOpt's sixteen levels of NF4: four decimals of QLoRA's, held in bfloat16.
NF4_LEVELS = (
    np.asarray(
        [
            -1,
            -0.6962,
            -0.5251,
            -0.3949,
            -0.2844,
            -0.1848,
            -0.0911,
            0,
            0.0796,
            0.1609,
            0.2461,
            0.3379,
            0.4407,
            0.5626,
            0.7230,
            1,
        ]
    )
    .astype(ml_dtypes.bfloat16)
    .astype(np.float32)
)
#: The arithmetic of ModelOpt's packed NF4 with double-quantized scales.
PACKED_NF4 = NF4Rules(levels=NF4_LEVELS, padding_counts=True, zero_block_level=0, reciprocal=True)


def modelopt_rules(
    element: Format, scale_format: str | None = None, *, dynamic: bool = False, cuda: bool = False
) -> Rules:
    """The rules of ModelOpt's fake quantization.

    Args:
        element: the format of the elements.
        scale_format: the format of block scales; those in E8M0 and E4M3 are computed on CUDA only.
        dynamic: whether block scales are made at run time.
        cuda: whether the kernel of integers on a CUDA device is meant, and not the function for a
            CPU.
    """
    if scale_format == "E8M0":
        return replace(_MX, nan_element=_MX_NAN.get(element.name))
    if scale_format == "E4M3":
        return _DYNAMIC_TWO_LEVEL if dynamic else _STATIC_TWO_LEVEL
    if element.kind == "int":
        return _INT_ON_CUDA if cuda else _INT
    return _FLOAT


@dataclass(frozen=True)
class Evidence:
    """The arrays of one deviation, of one shape and dtype: what ModelOpt returned, what it is known
    to return, and the definition.
    """

    actual: NDArray[Any]
    known: NDArray[Any]
    definition: NDArray[Any]

    @property
    def unchanged(self) -> bool:
        """ModelOpt still returns exactly what it is known to."""
        return bool(same_bits(self.actual, self.known).all())

    @property
    def deviates(self) -> bool:
        """What ModelOpt returns is not what the definition asks for."""
        return not same_bits(self.actual, self.definition).all()


@dataclass(frozen=True)
class Deviation:
    """One known difference.  `measured_on` is the version of ModelOpt that `reproduce` was last
    seen to hold on, on a CPU.
    """

    name: str
    where: str
    definition: str
    modelopt: str
    measured_on: str
    reproduce: Callable[[], Evidence]

    def state(self) -> str:
        """What the installed ModelOpt does: ``as recorded``, ``as defined``, ``gives [...]`` or
        ``fails: ...``.
        """
        try:
            evidence = self.reproduce()
        except Exception as error:  # whatever a release raises is what it does
            return f"fails: {type(error).__name__}: {' '.join(str(error).split())[:120]}"
        if not evidence.deviates:
            return "as defined"
        return (
            "as recorded"
            if evidence.unchanged
            else f"gives {evidence.actual.flatten()[:8].tolist()}"
        )


def _fake(
    x: torch.Tensor | NDArray[np.float32],
    amax: Any,
    bits: int | tuple[int, int],
    axis: int | None = None,
) -> torch.Tensor:
    """Return the output of ModelOpt's TensorQuantizer for `x` in float32."""
    from modelopt.torch.quantization.config import QuantizerAttributeConfig
    from modelopt.torch.quantization.nn import TensorQuantizer

    from harness import compat  # noqa: F401  (before modelopt imports transformers)

    quantizer = TensorQuantizer(QuantizerAttributeConfig(num_bits=bits, axis=axis))
    quantizer.amax = torch.tensor(amax)
    return torch.as_tensor(quantizer(torch.as_tensor(x)))


def packed(kind: str, x: torch.Tensor, block_size: int | None = None) -> torch.Tensor:
    """`x` stored in ModelOpt's packed class of that name and read back.  INT4, MXFP4 and NVFP4 need
    a block size.
    """
    from modelopt.torch.quantization import qtensor

    from harness import compat  # noqa: F401  (before modelopt imports transformers)

    # Not one of the names that the package exports.
    module = (
        importlib.import_module(f"{qtensor.__name__}.mxfp8_tensor")
        if kind == "MXFP8QTensor"
        else qtensor
    )
    cls = getattr(module, kind)
    if kind in ("FP8QTensor", "INT8QTensor"):
        blocks = {-1: block_size} if block_size else None
        stored, scale = cls.quantize(x, block_sizes=blocks)
        return torch.as_tensor(stored.dequantize(scale=scale, block_sizes=blocks))
    stored, *scales = cls.quantize(x) if kind == "MXFP8QTensor" else cls.quantize(x, block_size)
    named = dict(zip(("scale", "double_scale"), scales, strict=False))
    return torch.as_tensor(stored.dequantize(block_sizes={-1: block_size}, **named))


def packed_nf4(x: torch.Tensor, block: int, scale_block: int, scale_bits: int = 8) -> torch.Tensor:
    """`x` stored as ModelOpt's packed NF4 with double-quantized scales and read back.

    Raises RuntimeError where there is more than one block of scales (ModelOpt 0.47).
    """
    from modelopt.torch.quantization.qtensor import NF4QTensor

    from harness import compat  # noqa: F401  (before modelopt imports transformers)

    stored, scales = NF4QTensor.quantize(x, block, scale_block)
    scale, double_scale, zero = NF4QTensor.double_quantization(scales, scale_block, scale_bits)
    read_back = stored.dequantize(
        scale=scale, block_sizes={-1: block}, double_scale=double_scale, scale_zeros=zero
    )
    return torch.as_tensor(read_back)


def _evidence(computed: torch.Tensor, known: Any, definition: Any) -> Evidence:
    """Make evidence of a float32 tensor and two values that broadcast to it."""
    shape = computed.shape
    wanted = [np.broadcast_to(np.asarray(a, np.float32), shape).copy() for a in (known, definition)]
    return Evidence(computed.detach().numpy(), *wanted)


def _amax_acts_as_one(amax: float) -> Callable[[], Evidence]:
    def reproduce() -> Evidence:
        x = np.array([0.0, 0.5, -1.0, 300.0], np.float32)
        meant = quantize_dequantize(x, E4M3, amax) if amax >= 0 else [np.nan] * 4
        return _evidence(_fake(x, amax, (4, 3)), quantize_dequantize(x, E4M3, 1.0), meant)

    return reproduce


def _tiny_integer_amax() -> Evidence:
    amax = 2.0**-25
    x = np.array([amax, -amax / 2], np.float32)
    return _evidence(_fake(x, amax, 8), [0.0, -0.0], quantize_dequantize(x, 8, amax))


def _nan_amax_reaches_other_channels() -> Evidence:
    computed = _fake(torch.tensor([[0.0, 1.0], [1.0, 2.0]]), [[0.0], [float("nan")]], 8, axis=0)
    return _evidence(computed, [[np.nan, 0.0], [np.nan, np.nan]], [[0.0, 0.0], [np.nan, np.nan]])


def _zeros_become_nan(kind: str, block_size: int | None = None) -> Callable[[], Evidence]:
    return lambda: _evidence(packed(kind, torch.zeros(2, 32), block_size), np.nan, 0.0)


def _nvfp4_sign_of_zero() -> Evidence:
    x = torch.tensor([[-0.0, -0.01, 6.0, -6.0] * 4])
    meant = quantize_dequantize(x.numpy(), "E2M1", block_sizes={-1: 16}, scale_format="E4M3")
    return _evidence(packed("NVFP4QTensor", x, 16), meant + np.float32(0), meant)


def _nvfp4_smallest_block_scale() -> Evidence:
    x = torch.full((1, 32), 2688.0)
    x[0, 16:] = 2.0**-10
    meant = quantize_dequantize(x.numpy(), "E2M1", block_sizes={-1: 16}, scale_format="E4M3")
    return _evidence(packed("NVFP4QTensor", x, 16), x.numpy(), meant)


def _mxfp4_ties() -> Evidence:
    x = torch.tensor([[6.0, 0.75, 1.75, 3.5] * 8])
    return _evidence(
        packed("MXFP4QTensor", x, 32), [[6.0, 0.5, 1.5, 3.0] * 8], [[6.0, 1.0, 2.0, 4.0] * 8]
    )


def _mxfp4_zero() -> Evidence:
    return _evidence(packed("MXFP4QTensor", torch.zeros(1, 32), 32), -0.0, 0.0)


def _mxfp4_infinity() -> Evidence:
    x = torch.ones(1, 32)
    x[0, 0] = float("inf")
    meant = quantize_dequantize(x.numpy(), "E2M1", block_sizes={-1: 32}, scale_format="E8M0")
    computed = packed("MXFP4QTensor", x, 32)
    return _evidence(computed[:, :1], -0.0, meant[:, :1])


def _mxfp8_nan() -> Evidence:
    x = torch.ones(1, 32)
    x[0, 0] = float("nan")
    known = np.full((1, 32), 448 * 2.0**-127)
    known[0, 0] = np.nan
    return _evidence(packed("MXFP8QTensor", x), known, np.nan)


def _logarithm_rounds_down(kind: str, element: str, top: float) -> Callable[[], Evidence]:
    def reproduce() -> Evidence:
        largest = np.nextafter(np.float32(top * 2.0**10), np.float32(np.inf))
        x = np.zeros((1, 32), np.float32)
        x[0, :2] = largest, find(element).smallest * 2.0**10
        blocks: dict[str, Any] = {"block_sizes": {-1: 32}, "scale_format": "E8M0"}
        meant = quantize_dequantize(x, element, **blocks)
        one_lower = quantize_dequantize(x, element, np.float32(top * 2.0**10), **blocks)
        computed = packed(kind, torch.from_numpy(x), 32)
        return _evidence(computed[:, :2], one_lower[:, :2], meant[:, :2])

    return reproduce


def _packed_is_not_fake(kind: str, num_bits: int | tuple[int, int]) -> Callable[[], Evidence]:
    def reproduce() -> Evidence:
        x = torch.linspace(-1.1, 1.3, 2 * 32).reshape(2, 32)
        stored = packed(kind, x, 32 if num_bits == 4 else None)
        layout: dict[str, Any] = {"block_sizes": {-1: 32}} if num_bits == 4 else {}
        same = quantize_dequantize(x.numpy(), num_bits, rules=PACKED_RULES[kind], **layout)
        return _evidence(stored, same, quantize_dequantize(x.numpy(), num_bits, **layout))

    return reproduce


def _nf4(rows: int, scale_block: int, rules: NF4Rules, zeros: int = 0) -> Callable[[], Evidence]:
    """Rows of one block of 64 each, the last *zeros* of them zero; *rules* is ModelOpt's arithmetic
    there.
    """

    def reproduce() -> Evidence:
        x = torch.linspace(-1.1, 1.3, rows * 64).reshape(rows, 64)
        x[rows - zeros :] = 0
        known, meant = (double_quantized(x, 64, scale_block, 8, how) for how in (rules, NF4Rules()))
        return _evidence(packed_nf4(x, 64, scale_block), known, meant)

    return reproduce


def _nf4_second_scale_block() -> Evidence:
    x = torch.linspace(-1.1, 1.3, 4 * 64).reshape(4, 64)
    try:
        computed = packed_nf4(x, 64, 2)
    except RuntimeError:
        computed = torch.full_like(x, torch.nan)
    return _evidence(computed, np.nan, double_quantized(x, 64, 2, 8))


def _nf4_fake() -> Evidence:
    from modelopt.torch.quantization.config import QuantizerAttributeConfig
    from modelopt.torch.quantization.nn import TensorQuantizer

    from harness import compat  # noqa: F401  (before modelopt imports transformers)

    x = torch.linspace(-1.1, 1.3, 4 * 64).reshape(4, 64)
    blocks = {-1: 64, "scale_bits": 8, "scale_block_sizes": {-1: 4}}
    computed = TensorQuantizer(QuantizerAttributeConfig(num_bits=4, block_sizes=blocks))(x)
    return _evidence(
        computed,
        quantize_dequantize(x.numpy(), 4, block_sizes={-1: 64}),
        double_quantized(x, 64, 4, 8),
    )


_NF4 = "qtensor.NF4QTensor"
_NVFP4, _MXFP4, _MXFP8 = (
    "qtensor.NVFP4QTensor",
    "qtensor.MXFP4QTensor",
    "qtensor.mxfp8_tensor.MXFP8QTensor",
)

#: Every known deviation that shows on a CPU.
KNOWN: tuple[Deviation, ...] = tuple(
    Deviation(name, where, definition, modelopt, "0.47.0", reproduce)
    for name, where, definition, modelopt, reproduce in (
        (
            "fp8-zero-amax",
            "tensor_quant._fp8_eager",
            "amax 0 spans nothing: all becomes 0",
            "acts as amax 1",
            _amax_acts_as_one(0.0),
        ),
        (
            "fp8-tiny-amax",
            "tensor_quant._fp8_eager",
            "a positive amax is a range",
            "up to 2**-24 it acts as amax 1",
            _amax_acts_as_one(2.0**-24),
        ),
        (
            "fp8-negative-amax",
            "tensor_quant._fp8_eager",
            "no magnitude is negative: an error",
            "acts as amax 1",
            _amax_acts_as_one(-2.0),
        ),
        (
            "int-tiny-amax",
            "tensor_quant._tensor_quant",
            "a positive amax is a range",
            "up to 2**-24 all becomes 0",
            _tiny_integer_amax,
        ),
        (
            "int-nan-amax",
            "tensor_quant._tensor_quant",
            "channels do not know each other",
            "a NaN amax in one makes zeros in channels of amax 0 NaN",
            _nan_amax_reaches_other_channels,
        ),
        (
            "fp8-packed-zeros",
            "qtensor.FP8QTensor",
            "zeros stay zeros",
            "a tensor of zeros becomes NaN",
            _zeros_become_nan("FP8QTensor"),
        ),
        (
            "nvfp4-packed-zeros",
            _NVFP4,
            "zeros stay zeros",
            "a tensor of zeros becomes NaN",
            _zeros_become_nan("NVFP4QTensor", 16),
        ),
        (
            "nvfp4-packed-negative-zero",
            _NVFP4,
            "code 1000 is -0",
            "it is read back as +0",
            _nvfp4_sign_of_zero,
        ),
        (
            "nvfp4-packed-smallest-scale",
            _NVFP4,
            "a block scale below E4M3's range rounds to 0",
            "it is raised to 2**-9",
            _nvfp4_smallest_block_scale,
        ),
        ("mxfp4-packed-ties", _MXFP4, "ties to even", "ties towards zero", _mxfp4_ties),
        ("mxfp4-packed-zero", _MXFP4, "+0 stays +0", "it becomes -0", _mxfp4_zero),
        ("mxfp4-packed-infinity", _MXFP4, "infinity saturates", "it becomes -0", _mxfp4_infinity),
        (
            "mxfp8-packed-nan",
            _MXFP8,
            "a block with a NaN is NaN",
            "the others saturate at scale 2**-127",
            _mxfp8_nan,
        ),
        (
            "mxfp8-packed-exponent",
            _MXFP8,
            "the smallest power of two that covers the block",
            "log2 in float32 rounds down: a block just above a power of two saturates",
            _logarithm_rounds_down("MXFP8QTensor", "E4M3", 448.0),
        ),
        (
            "mxfp4-packed-exponent",
            _MXFP4,
            "the smallest power of two that covers the block",
            "log2 in float32 rounds down: a block just above a power of two saturates",
            _logarithm_rounds_down("MXFP4QTensor", "E2M1", 6.0),
        ),
        (
            "nf4-packed-levels",
            _NF4,
            "QLoRA's sixteen levels",
            "four decimals of them, rounded to bfloat16",
            _nf4(4, 4, PACKED_NF4),
        ),
        (
            "nf4-packed-scale-padding",
            _NF4,
            "the mean of a weight's scales",
            "zeros that fill up the block of scales count in the mean",
            _nf4(5, 8, PACKED_NF4),
        ),
        (
            "nf4-packed-zero-block",
            _NF4,
            "zeros stay zeros",
            "0 / 0 takes the level -1 of a scale that is not quite 0",
            _nf4(4, 4, PACKED_NF4, zeros=1),
        ),
        (
            "nf4-packed-second-scale-block",
            _NF4,
            "scales are read back block by block",
            "with more than one block of scales reading back raises (here: NaN)",
            _nf4_second_scale_block,
        ),
        (
            "nf4-packed-is-not-fake",
            "TensorQuantizer",
            "one format, one result",
            "scale_bits and scale_block_sizes are ignored: plain INT4 blocks",
            _nf4_fake,
        ),
        (
            "int4-packed-is-not-fake",
            "qtensor.INT4QTensor",
            "one format, one result: s = 7 / amax",
            "s = (1 / amax) * 7: compressed weights differ from fake-quantized ones in the last "
            "bit",
            _packed_is_not_fake("INT4QTensor", 4),
        ),
        (
            "fp8-packed-is-not-fake",
            "qtensor.FP8QTensor",
            "one format, one result",
            "x / (amax / 448): compressed weights differ from fake-quantized ones",
            _packed_is_not_fake("FP8QTensor", (4, 3)),
        ),
    )
)
