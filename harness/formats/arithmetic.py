"""Scale, round, scale back: one array and the amax that belongs to each of its elements.

Mathematically ``y = Q(x * max / amax) * amax / max``, with max the largest number of the format and
Q its rounding. To the last bit the result depends on the order of evaluation, so the order is part
of the definition (`Order`), and so is what happens where amax does not define a scale (`Rules`).
Every operation rounds once, to nearest even.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from harness.formats.number_formats import Float32, Format

Array = NDArray[Any]

#: Elements worked on at a time: three float32 buffers of this length stay in a core's second-level
#: cache.
_CHUNK = 1 << 15


class Order(Enum):
    """In which order ``Q(x * max / amax) * amax / max`` is evaluated; fl() rounds to the working
    precision.
    """

    #: ``s = fl(fl(1/a) * max)``, ``y = fl(Q(fl(x * s)) * fl(1/s))``: floats, as ModelOpt's fake
    #: quantization evaluates them.
    RECIPROCAL = "reciprocal"
    #: ``s = fl(max / a)``, ``y = fl(Q(fl(x * s)) / s)``: integers, as ModelOpt's fake quantization
    #: evaluates them.
    RATIO = "ratio"
    #: ``s = fl(fl(1/a) * max)``, ``y = fl(Q(fl(x * s)) / s)``: ModelOpt's packed INT4.
    RECIPROCAL_RATIO = "reciprocal ratio"
    #: ``d = fl(a / max)``, ``y = fl(Q(fl(x / d)) * d)``: stored tensors, whose scale d is kept
    #: next to the codes.
    STEP = "step"


@dataclass(frozen=True)
class Rules:
    """What the mathematics leaves open.  The defaults are the definition; ModelOpt's are in
    `harness.formats.deviations`.
    """

    #: The order of evaluation; None: RECIPROCAL for floats, RATIO for integers.
    order: Order | None = None
    #: The working precision: float32, or the input's own (each operation then rounds to fp16 or
    #: bf16).
    working: Literal["float32", "input"] = "float32"
    #: An amax up to here counts as zero.  By definition only zero does, and what is too small for
    #: max / amax to be finite.
    amax_floor: float = 0.0
    #: What amax is taken for where it counts as zero.  By definition None: everything becomes zero
    #: of its own sign.
    zero_amax_acts_as: float | None = None
    #: Whether a negative amax counts as zero.  By definition it is an error.
    negative_amax_is_zero: bool = False
    #: Whether an amax that counts as zero gives +0 for every element.  By definition a zero keeps
    #: the element's sign, and NaN stays.
    zero_amax_gives_zero: bool = False
    #: Whether -0, and what rounds to it, keeps its sign.  By definition it does; stored integers
    #: have one zero only.
    keeps_negative_zero: bool = True
    #: Two-level scales: the smallest E4M3 block scale.  By definition zero: the block then becomes
    #: zero.
    smallest_block_scale: float = 0.0
    #: Two-level scales: below this product of both levels the scale of a block acts as 1.  By
    #: definition 0: never.
    block_scale_floor: float = 0.0
    #: Block scales: whether a NaN leaves the rest of its block alone.  It then does not count in
    #: the block's amax, a scale that is NaN acts as 1, and for a shared exponent infinity counts as
    #: the largest float32 and a block of zeros has the scale 1.  By definition the whole block
    #: becomes NaN.
    nan_is_local: bool = False
    #: Block scales: the number of the format that a NaN element becomes, times its block's scale.
    #: None: it stays NaN.
    nan_element: float | None = None
    #: Whether nothing is said of the sign that a zero or a NaN gets.
    zero_sign_is_open: bool = False
    #: Two-level scales: how a block's scale is evaluated: by division, or as E4M3 in
    #: `Order.RECIPROCAL` (static blocks).
    block_scale_order: Literal["division", "reciprocal"] = "division"
    #: Two-level scales: whether dividing by a constant divides, or multiplies with its reciprocal
    #: as torch does on CUDA.
    constant_division: Literal["divide", "multiply"] = "divide"
    #: How the shared exponent of the MX formats is chosen, see `number_formats.e8m0_exponent`.
    e8m0: Literal["ceil", "floor"] = "ceil"


DEFINITION = Rules()


def quantize_scaled(x: Array, amax: Any, element: Format, rules: Rules = DEFINITION) -> Array:
    """Quantize-dequantize `x` (float16, bfloat16, float32 or float64) with an `amax` that
    broadcasts against it.

    Returns an array of x's shape and dtype.  NaN stays NaN, and a NaN or infinite amax makes
    everything NaN.  Raises ValueError for a negative amax unless the rules take it for zero.
    """
    a, zero = settle_amax(amax, rules)
    order = rules.order or (Order.RECIPROCAL if element.kind == "float" else Order.RATIO)
    with np.errstate(all="ignore"):
        if rules.working == "input" and x.dtype.itemsize < 4:
            y = _in_input_precision(x, a, zero, element, order)
        else:
            y = apply_factors(x, *_factors(a, zero, element, order), element, order)
        if rules.zero_amax_gives_zero:
            y = np.where(zero, y.dtype.type(0), y)
        return y if rules.keeps_negative_zero else y + y.dtype.type(0)


def settle_amax(amax: Any, rules: Rules) -> tuple[Float32, NDArray[np.bool_]]:
    """Amax as float32 with the rules' stand-in, and where it counts as zero without one."""
    a = np.array(amax, dtype=np.float32)
    negative = a < 0
    if negative.any() and not rules.negative_amax_is_zero:
        raise ValueError(f"amax must not be negative, found {float(a.min())}")
    zero = (a <= np.float32(rules.amax_floor)) | negative
    if rules.zero_amax_acts_as is not None:
        a[zero] = rules.zero_amax_acts_as
        zero = np.zeros_like(zero)
    return a, zero


def _factors(
    a: Float32, zero: NDArray[np.bool_], element: Format, order: Order
) -> tuple[Float32, Float32]:
    """The factor (or divisor) on the way in and the one on the way out, in float32.

    A zero amax gets factors that send every finite number to zero: 0 to multiply with, infinity to
    divide by.
    """
    largest = np.float32(element.max)
    if order is Order.STEP:
        step = a / largest
        none = zero | (step == 0)
        return np.where(none, np.float32(np.inf), step), np.where(none, np.float32(0), step)
    scale = largest / a if order is Order.RATIO else (np.float32(1) / a) * largest
    none = zero | np.isinf(scale)
    back, neutral = (np.float32(1) / scale, 0) if order is Order.RECIPROCAL else (scale, 1)
    return np.where(none, np.float32(0), scale), np.where(none, np.float32(neutral), back)


def apply_factors(
    x: Array, scale_in: Float32, scale_out: Float32, element: Format, order: Order
) -> Array:
    """``Q(x o scale_in) o' scale_out`` in float32, in chunks; o divides for STEP, o' divides for
    the RATIOs, else they multiply.
    """
    into = np.divide if order is Order.STEP else np.multiply
    back = np.divide if order in (Order.RATIO, Order.RECIPROCAL_RATIO) else np.multiply
    flat = np.ascontiguousarray(x)  # of one axis at least
    if scale_in.size == 1:
        flat, scale_in, scale_out = flat.reshape(-1), scale_in.reshape(()), scale_out.reshape(())
    out = np.empty(flat.shape, x.dtype)
    if out.size == 0:
        return out.reshape(x.shape)
    rows = max(1, _CHUNK // max(1, flat.size // flat.shape[0]))
    values = np.empty((min(rows, flat.shape[0]), *flat.shape[1:]), np.float32)
    scratch = np.empty((2, *values.shape), np.uint32)
    for start in range(0, flat.shape[0], rows):
        part = slice(start, start + rows)
        v = values[: flat[part].shape[0]]
        np.copyto(v, flat[part], casting="same_kind")
        into(v, _rows(scale_in, part, flat.ndim), out=v)
        element.round(v, out=v, scratch=scratch[:, : v.shape[0]])
        back(v, _rows(scale_out, part, flat.ndim), out=v)
        np.copyto(out[part], v, casting="unsafe")
    return out.reshape(x.shape)


def _rows(factor: Float32, part: slice, ndim: int) -> Float32:
    """The rows of a broadcast factor that belong to a chunk."""
    return factor[part] if factor.ndim == ndim and factor.shape[0] > 1 else factor


def _in_input_precision(
    x: Array, a: Float32, zero: NDArray[np.bool_], element: Format, order: Order
) -> Array:
    """The same with every intermediate rounded to x's dtype.

    float32 carries more than twice the bits of fp16 and bf16, so "compute in float32, then round"
    equals rounding once.
    """

    def fl(values: Any) -> Float32:
        return np.asarray(values, np.float32).astype(x.dtype).astype(np.float32)

    wide, largest = x.astype(np.float32), np.float32(element.max)
    if order is Order.STEP:
        step = fl(fl(a) / largest)
        none = zero | (step == 0)
        quantized = element.round(fl(wide / np.where(none, np.float32(np.inf), step)))
        return np.asarray(fl(quantized * np.where(none, np.float32(0), step)).astype(x.dtype))
    scale = fl(largest / fl(a) if order is Order.RATIO else fl(1 / fl(a)) * largest)
    none = zero | np.isinf(scale)
    quantized = element.round(fl(wide * np.where(none, np.float32(0), scale)))
    back = quantized * fl(1 / scale) if order is Order.RECIPROCAL else quantized / scale
    return np.asarray(np.where(none, quantized, fl(back)).astype(x.dtype))
