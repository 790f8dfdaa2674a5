"""Quantize-dequantize of a whole tensor: format, layout and the kind of scale put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray

from harness.formats import number_formats
from harness.formats.arithmetic import (
    DEFINITION,
    Order,
    Rules,
    apply_factors,
    quantize_scaled,
    settle_amax,
)
from harness.formats.layout import Layout, plan
from harness.formats.number_formats import Float32, Format

Array = NDArray[Any]
Tensor = TypeVar("Tensor", Array, torch.Tensor)

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def to_numpy(x: Array | torch.Tensor) -> Array:
    """A view of a torch tensor as NumPy (bfloat16: ml_dtypes'); no copy on the CPU.  Arrays pass
    through.
    """
    if not isinstance(x, torch.Tensor):
        return np.asarray(x)
    x = x.detach().cpu()
    return x.view(torch.int16).numpy().view(_BFLOAT16) if x.dtype is torch.bfloat16 else x.numpy()


def to_torch(x: Array, device: torch.device | str = "cpu") -> torch.Tensor:
    """The inverse of `to_numpy`."""
    tensor = (
        torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
        if x.dtype == _BFLOAT16
        else torch.from_numpy(x)
    )
    return tensor.to(device)


def quantize_dequantize(
    x: Tensor,
    format: str | int | tuple[int, int] | Format,  # noqa: A002  (the word of this field)
    amax: Any = None,
    *,
    axis: int | Sequence[int] | None = None,
    block_sizes: Mapping[int, int | None] | None = None,
    scale_format: str | None = None,
    global_amax: Any = None,
    scale_max: float = 448.0,
    unsigned: bool = False,
    narrow_range: bool = False,
    rules: Rules = DEFINITION,
) -> Tensor:
    """Return `x` as it is after it was stored in `format` and read back: the same shape and dtype;
    NumPy in, NumPy out; torch in, torch out.

    x             float16, bfloat16, float32 or float64 of any shape
    format        ``"E4M3"``, ``"INT4"``, 8, (4, 3), ...: see `number_formats.find`
    amax          the magnitude that maps to the largest number of the format: one, one per channel
                  (`axis`) or one per block (`block_sizes`); None: max |x| of those elements
                  (dynamic quantization)
    scale_format  how a block's scale is stored.  None: as it is, float32.
                  ``"E8M0"`` (MX): the power of two 2**E, E by `number_formats.e8m0_exponent`, y =
                  Q(x / 2**E) * 2**E. ``"E4M3"`` (NVFP4): two levels, with M = max(format) and g =
                  `global_amax` (None: the largest block's): s = g / (M * scale_max), b = E4M3(amax
                  / M / s), y = Q(x / (b * s)) * (b * s)
    scale_max     the largest block scale of the two levels: 448, or 256 ("four over six")

    Raises ValueError for what does not fit together.
    """
    element = number_formats.find(format, unsigned=unsigned, narrow_range=narrow_range)
    values = to_numpy(x)
    if values.dtype not in (np.float16, np.float32, np.float64, _BFLOAT16):
        raise ValueError(f"quantize-dequantize takes floating point input, not {values.dtype}")
    layout = plan(values.shape, axis, block_sizes)
    cut = layout.cut(values)
    with np.errstate(all="ignore"):
        a = layout.amax(cut, rules.nan_is_local) if amax is None else layout.fit(to_numpy(amax))
        if scale_format is None:
            y = quantize_scaled(cut, a, element, rules)
        elif scale_format.upper() == "E8M0":
            a, _ = settle_amax(a, rules)
            y = _in_blocks(cut, e8m0_scale(a, element, rules), element, rules)
        elif scale_format.upper() == "E4M3":
            y = _in_blocks(
                cut, block_scale(a, layout, element, global_amax, scale_max, rules), element, rules
            )
        else:
            raise ValueError(f"block scales are stored as E8M0 or E4M3, not {scale_format!r}")
    y = layout.join(y)
    return to_torch(np.ascontiguousarray(y), x.device) if isinstance(x, torch.Tensor) else y


def _in_blocks(cut: Array, scale: Float32, element: Format, rules: Rules) -> Array:
    """Elements rounded at the *scale* of their block, in their own dtype."""
    divisor = np.where(scale == 0, np.float32(np.inf), scale)
    if rules.keeps_negative_zero and rules.nan_element is None:
        return apply_factors(cut, divisor, scale, element, Order.STEP)
    # In float32, so that a negative number which only the cast turns into zero keeps its sign.
    wide = apply_factors(cut.astype(np.float32), divisor, scale, element, Order.STEP)
    if rules.nan_element is not None:
        wide = np.where(np.isnan(cut), np.float32(rules.nan_element) * scale, wide)
    return np.asarray(
        (wide if rules.keeps_negative_zero else wide + np.float32(0)).astype(cut.dtype)
    )


def e8m0_scale(amax: Float32, element: Format, rules: Rules = DEFINITION) -> Float32:
    """The shared power of two of each block; NaN where amax is NaN (E8M0 has a code for it: the
    whole block is NaN).
    """
    if rules.nan_is_local:
        largest = np.float32(np.finfo(np.float32).max)
        exponent = number_formats.e8m0_exponent(np.minimum(amax, largest), element, rules.e8m0)
        return np.where(
            (amax == 0) | np.isnan(amax), np.float32(1), np.ldexp(np.float32(1), exponent)
        )
    exponent = number_formats.e8m0_exponent(amax, element, rules.e8m0)
    return np.where(np.isnan(amax), np.float32(np.nan), np.ldexp(np.float32(1), exponent))


def block_scale(
    amax: Float32,
    layout: Layout,
    element: Format,
    global_amax: Any,
    scale_max: float,
    rules: Rules = DEFINITION,
) -> Float32:
    """The product of both levels of a two-level scale, float32 of amax's shape; zero for a block of
    zeros.
    """
    a, _ = settle_amax(amax, rules)
    if rules.block_scale_order == "reciprocal":
        # The rules of a small range are those of the second level alone: a block of amax 0 has the
        # scale 0.
        a = np.asarray(amax, np.float32)
    g = np.float32(a.max(initial=0)) if global_amax is None else layout.fit(to_numpy(global_amax))
    largest = np.float32(element.max)

    def by_constant(values: Any, constant: float) -> Float32:
        c = np.float32(constant)
        return np.asarray(
            values / c if rules.constant_division == "divide" else values * (np.float32(1) / c),
            np.float32,
        )

    if rules.block_scale_order == "reciprocal":
        top = by_constant(g * np.float32(number_formats.E4M3.max / scale_max), element.max)
        scale = quantize_scaled(by_constant(a, element.max), top, number_formats.E4M3, rules)
    else:
        s = by_constant(g, element.max * scale_max)
        b = np.maximum(a / (largest * s), np.float32(rules.smallest_block_scale))
        if rules.nan_is_local:
            # The smaller of a NaN and a number is the number.
            b = np.fmin(b, np.float32(number_formats.E4M3.max))
        scale = np.where(a == 0, np.float32(0), number_formats.E4M3.round(b) * s)
    as_one = scale < np.float32(rules.block_scale_floor)
    if rules.nan_is_local:
        as_one |= np.isnan(scale)
    return np.where(as_one, np.float32(1), scale)


def saturation_fraction(
    x: Array | torch.Tensor,
    amax: Any,
    format: str | int | tuple[int, int] | Format,  # noqa: A002
    *,
    axis: int | Sequence[int] | None = None,
    block_sizes: Mapping[int, int | None] | None = None,
    unsigned: bool = False,
    narrow_range: bool = False,
) -> float:
    """The share of elements beyond the range that amax spans: x > amax, or x < amax * lowest / max.
    0 for an empty tensor.
    """
    element = number_formats.find(format, unsigned=unsigned, narrow_range=narrow_range)
    values = to_numpy(x)
    if values.size == 0:
        return 0.0
    layout = plan(values.shape, axis, block_sizes)
    cut, a = layout.cut(values).astype(np.float32), layout.fit(to_numpy(amax)).astype(np.float64)
    beyond = (cut > a) | (cut < a * (element.lowest / element.max))
    return int(np.count_nonzero(beyond)) / values.size


def underflow_fraction(x: Array | torch.Tensor, y: Array | torch.Tensor) -> float:
    """The share of the non-zero numbers of `x` that are zero in `y`, its quantized form.  0 if x
    has no non-zero number.
    """
    before, after = to_numpy(x), to_numpy(y)
    counted = np.count_nonzero((before != 0) & ~np.isnan(before))
    return int(np.count_nonzero((before != 0) & (after == 0))) / int(counted) if counted else 0.0


def gradient_mask(
    x: Array | torch.Tensor,
    amax: Any,
    *,
    axis: int | Sequence[int] | None = None,
    block_sizes: Mapping[int, int | None] | None = None,
) -> NDArray[np.bool_]:
    """Where the straight-through estimator lets the gradient pass: |x| <= amax."""
    values = to_numpy(x)
    layout = plan(values.shape, axis, block_sizes)
    cut = layout.cut(values).astype(np.float32)
    return np.asarray(layout.join(np.abs(cut) <= layout.fit(to_numpy(amax))))


def same_bits(a: Array | torch.Tensor, b: Array | torch.Tensor) -> NDArray[np.bool_]:
    """Element by element: the same bits, or NaN in both (which NaN a processor makes is not part of
    any format).
    """
    first, second = to_numpy(a), to_numpy(b)
    if first.dtype != second.dtype or first.shape != second.shape:
        raise ValueError(
            f"{first.dtype} {first.shape} against {second.dtype} {second.shape}: nothing to compare"
        )
    code = np.dtype(f"u{first.dtype.itemsize}")
    equal = np.ascontiguousarray(first).view(code) == np.ascontiguousarray(second).view(code)
    return np.asarray(equal | (np.isnan(first) & np.isnan(second)))
