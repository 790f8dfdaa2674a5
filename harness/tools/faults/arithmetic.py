"""ModelOpt computes something else than the format says: its two functions on the CPU, replaced by
wrong ones.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from harness.tools.faults.catalogue import FaultSite, Where, add, replaced

_ZERO = 2.0**-24
Cast = Callable[[Tensor], Tensor]


def _e4m3(y: Tensor) -> Tensor:
    return y.to(torch.float8_e4m3fn).float()


def _toward_zero(y: Tensor) -> Tensor:
    nearest = y.to(torch.float8_e4m3fn)
    below = (nearest.view(torch.uint8) - 1).view(torch.float8_e4m3fn).float()
    return torch.where(nearest.float().abs() > y.abs(), below, nearest.float())


def _beyond(y: Tensor, value: float) -> Tensor:
    return torch.where(y.abs() > 448.0, torch.full_like(y, value).copysign(y), _e4m3(y))


def _no_subnormals(y: Tensor) -> Tensor:
    return torch.where(y.abs() < 2.0**-6, torch.zeros_like(y), _e4m3(y))


def _fp8(
    cast: Cast = _e4m3,
    top: float = 448.0,
    clip: bool = True,
    scale: Callable[[Tensor], Tensor] = lambda s: s,
    amax_of: Callable[[Tensor], Tensor] = lambda a: a,
    floor: float = _ZERO,
) -> Callable[..., Tensor]:
    """Quantize-dequantize to E4M3 with one thing wrong; without any, ModelOpt's own arithmetic."""

    def quantize(x: Tensor, amax: Tensor | None = None) -> Tensor:
        assert amax is not None
        a = amax_of(amax.float())
        factor = scale(top / torch.where(a <= floor, torch.ones_like(a), a))
        y = x.float() * factor
        y = y.clamp(-top, top) if clip else y
        return (cast(y) * (1 / factor)).to(x.dtype)

    return quantize


def _integer(
    round_: Cast = torch.round,
    more: float = 0.0,
    narrow: Callable[[bool], bool] = lambda is_narrow: is_narrow,
    wrap: bool = False,
    amax_of: Callable[[Tensor], Tensor] = lambda a: a,
) -> Callable[..., Tensor]:
    """Quantize-dequantize to integers with one thing wrong; ``more`` is added to the largest number
    for the scale.
    """

    def quantize(
        x: Tensor,
        amax: Tensor,
        num_bits: int = 8,
        unsigned: bool = False,
        narrow_range: bool = True,
    ) -> Tensor:
        top = 2.0 ** (num_bits - 1 + int(unsigned)) - 1
        low = 0.0 if unsigned else -top if narrow(narrow_range) else -top - 1
        a = amax_of(amax.float())
        if a.min() < 0:
            raise ValueError("Negative values in amax")
        s = torch.where(a <= _ZERO, torch.zeros_like(a), (top + more) / a)
        y = round_(x.float() * s)
        y = torch.remainder(y - low, top - low + 1) + low if wrap else y.clamp(low, top)
        return (y / torch.where(s == 0, torch.ones_like(s), s)).to(x.dtype)

    return quantize


def _half_away(y: Tensor) -> Tensor:
    return torch.trunc(y + torch.full_like(y, 0.5).copysign(y))


def _planted(
    function: str, wrong: Callable[..., Tensor]
) -> Callable[[FaultSite], AbstractContextManager[None]]:
    def plant(_: FaultSite) -> AbstractContextManager[None]:
        from modelopt.torch.quantization import tensor_quant

        return replaced((tensor_quant, function, wrong))

    return plant


#: name, recipe, what is planted, where it comes from, the wrong arithmetic
_FLOAT: tuple[tuple[str, str, str, str, Callable[..., Tensor]], ...] = (
    (
        "scale constant 240",
        "fp8",
        "E4M3 scaled to 240, the largest number of the FNUZ variant, instead of 448",
        "class: wrong scale constant",
        _fp8(top=240.0),
    ),
    (
        "FP8 truncates",
        "fp8",
        "E4M3 rounds toward zero",
        "class: truncation for rounding",
        _fp8(cast=_toward_zero),
    ),
    (
        "FP8 ties away from zero",
        "fp8",
        "E4M3 rounds ties away from zero instead of to even",
        "class: rounding of ties",
        _fp8(cast=lambda y: _e4m3(y * (1 + 2.0**-20))),
    ),
    (
        "E5M2 arithmetic",
        "fp8",
        "the cast goes to E5M2 although E4M3 is configured",
        "class: format mixed up (passes a 25 dB floor)",
        _fp8(cast=lambda y: y.to(torch.float8_e5m2).float()),
    ),
    (
        "FP8 overflows to NaN",
        "fp8",
        "numbers beyond amax become NaN: no clip before the cast",
        "casts that do not saturate (ml_dtypes)",
        _fp8(clip=False, cast=lambda y: _beyond(y, torch.nan)),
    ),
    (
        "FP8 overflows to infinity",
        "fp8",
        "numbers beyond amax become infinite",
        "class: saturation to inf",
        _fp8(clip=False, cast=lambda y: _beyond(y, torch.inf)),
    ),
    (
        "FP8 flushes subnormals",
        "fp8",
        "E4M3's subnormal numbers become zero",
        "kernels that flush subnormals",
        _fp8(cast=_no_subnormals),
    ),
    (
        "FP8 scale in half precision",
        "fp8",
        "the scale is rounded to FP16 before it multiplies",
        "class: precision of the scale",
        _fp8(scale=lambda s: s.half().float()),
    ),
    (
        "FP8 zero amax is NaN",
        "fp8",
        "an all-zero channel divides by its zero amax",
        "ModelOpt 0.41",
        _fp8(floor=-1.0),
    ),
    (
        "FP8 axis ignored",
        "fp8-per-channel",
        "the kernel takes the largest amax of all channels",
        "class: per-tensor instead of per-channel",
        _fp8(amax_of=lambda a: a.amax()),
    ),
)
_INTEGER: tuple[tuple[str, str, str, str, Callable[..., Tensor]], ...] = (
    (
        "scale constant 128",
        "int8",
        "INT8 scaled by 128 / amax instead of 127 / amax",
        "class: wrong scale constant",
        _integer(more=1.0),
    ),
    (
        "INT8 truncates",
        "int8",
        "INT8 rounds toward zero",
        "class: truncation for rounding",
        _integer(round_=torch.trunc),
    ),
    (
        "INT8 ties away from zero",
        "int8",
        "INT8 rounds ties away from zero instead of to even",
        "class: rounding of ties",
        _integer(round_=_half_away),
    ),
    (
        "INT8 narrow range flipped",
        "int8",
        "-128 is used where the range is narrow and not where it is full",
        "class: narrow range flipped",
        _integer(narrow=lambda is_narrow: not is_narrow),
    ),
    (
        "INT8 wraps around",
        "int8",
        "numbers beyond the range wrap around instead of saturating",
        "class: two's complement overflow",
        _integer(wrap=True),
    ),
    (
        "INT8 axis ignored",
        "int8",
        "the integer kernel takes the largest amax of all channels",
        "class: per-tensor instead of per-channel",
        _integer(amax_of=lambda a: a.amax()),
    ),
)

for _name, _recipe, _what, _origin, _wrong in _FLOAT:
    add(_name, Where.MODELOPT, _origin, _what, _planted("_fp8_eager", _wrong), _recipe)
for _name, _recipe, _what, _origin, _wrong in _INTEGER:
    add(
        _name,
        Where.MODELOPT,
        _origin,
        _what,
        _planted("_tensor_quant", _wrong),
        _recipe,
    )
