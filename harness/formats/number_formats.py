"""The number formats: which values exist, and how a real number becomes one of them.

A format is a finite set of numbers.  Rounding is the same mathematics for each of them: saturate to
the range, then take the nearest element of the set, and of two equally near ones the one with the
even significand.

Sources: OCP 8-bit Floating Point Specification (OFP8) 1.0 for E4M3 and E5M2; OCP Microscaling
Formats (MX) 1.0 for E3M2, E2M3, E2M1, INT8 with six fraction bits, and the scale format E8M0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

_SIGN = np.uint32(0x8000_0000)
_MAGNITUDE = np.uint32(0x7FFF_FFFF)
_EXPONENT = np.uint32(0x7F80_0000)


@dataclass(frozen=True)
class Format:
    """A set of numbers with at most sixteen bits a code.

    A *float* with m = `mantissa_bits` has the elements ``+-k * 2**(max(e, min_exponent) - m)``, k <
    2**(m+1), up to `max`: an exponent below `min_exponent` is a subnormal.  An *int* has the
    elements ``k * step`` from `lowest` to `max`. `specials` says what the codes beyond the finite
    ones hold: ``"none"``; ``"nan"`` (the last code of each sign, OFP8's E4M3); ``"ieee"`` (infinity
    and NaNs in the last exponent, E5M2).
    """

    name: str
    kind: Literal["float", "int"]
    bits: int
    max: float
    lowest: float
    mantissa_bits: int = 0
    min_exponent: int = 0
    specials: Literal["none", "nan", "ieee"] = "none"
    step: float = 1.0

    @property
    def signed(self) -> bool:
        """Whether negative numbers exist."""
        return self.lowest < 0

    @property
    def smallest(self) -> float:
        """The smallest positive element."""
        return (
            self.step
            if self.kind == "int"
            else float(2.0 ** (self.min_exponent - self.mantissa_bits))
        )

    def round(
        self, values: Any, out: Float32 | None = None, scratch: NDArray[np.uint32] | None = None
    ) -> Float32:
        """The nearest element for each value: saturating, ties to even, NaN stays NaN, the sign of
        zero is kept.

        `values` is anything NumPy turns into float32, of any shape.  `out` and `scratch` (two
        arrays of uint32 stacked, the shape of `values` behind the first axis) save allocations;
        `out` may be `values` itself.
        """
        array = np.asarray(values, dtype=np.float32)
        v = np.array(array, dtype=np.float32, order="C") if out is None else out
        if out is not None and out is not array:
            out[...] = array
        if self.kind == "int":
            return self._round_int(v)
        room = np.empty((2, *v.shape), np.uint32) if scratch is None else scratch
        self._round_float(v, room)
        return v

    def _round_int(self, v: Float32) -> Float32:
        """round(v / step) * step in place; the division is by a power of two, so exact."""
        if self.step != 1.0:
            v /= np.float32(self.step)
        np.rint(v, out=v)
        np.maximum(v, np.float32(self.lowest / self.step), out=v)
        np.minimum(v, np.float32(self.max / self.step), out=v)
        if self.step != 1.0:
            v *= np.float32(self.step)
        return v

    def _round_float(self, v: Float32, scratch: NDArray[np.uint32]) -> None:
        """In place.  Let 2**e be the binade of |v| (for subnormals that of the smallest normal) and
        c = 2**(e + 23 - m).

        The float32 ulp at c is 2**(e - m), which is the gap of the format around v, and |v| < c: so
        (|v| + c) - c lets the processor's own rounding, nearest and ties to even, do the work; c is
        an even multiple of the gap, so "even" stays what it was.
        """
        bits = v.view(np.uint32)
        sign, carrier = scratch[0], scratch[1]
        np.bitwise_and(bits, _SIGN, out=sign)
        np.bitwise_and(bits, _MAGNITUDE, out=bits)
        np.minimum(v, np.float32(self.max), out=v)
        np.bitwise_and(bits, _EXPONENT, out=carrier)
        c = carrier.view(np.float32)
        np.maximum(c, np.float32(2.0**self.min_exponent), out=c)
        c *= np.float32(2.0 ** (23 - self.mantissa_bits))
        v += c
        v -= c
        np.bitwise_or(bits, sign, out=bits)

    def decode(self, codes: Any) -> Float32:
        """The number each code stands for, float32.  Codes are integers: sign, exponent,
        significand (floats), two's complement (ints).
        """
        c = np.asarray(codes, dtype=np.int64)
        if self.kind == "int":
            wrapped = c - ((c >> (self.bits - 1)) << self.bits) if self.signed else c
            return np.asarray(wrapped * self.step, dtype=np.float32)
        m, magnitude = self.mantissa_bits, c & ((1 << (self.bits - 1)) - 1)
        exponent, significand = magnitude >> m, magnitude & ((1 << m) - 1)
        normal = exponent > 0
        value = np.ldexp(
            (significand + (normal << m)).astype(np.float64),
            (np.maximum(exponent, 1) - 1 + self.min_exponent - m).astype(np.int32),
        )
        last = (1 << (self.bits - 1)) - 1
        if self.specials == "nan":
            value = np.where(magnitude == last, np.nan, value)
        elif self.specials == "ieee":
            value = np.where(
                exponent == last >> m, np.where(significand == 0, np.inf, np.nan), value
            )
        return np.asarray(
            np.copysign(value, np.where(c >> (self.bits - 1), -1.0, 1.0)), dtype=np.float32
        )

    @cached_property
    def code_points(self) -> Float32:
        """All finite elements, ascending, zero once: float32 of shape (k,)."""
        if self.kind == "int":
            return np.arange(
                round(self.lowest / self.step), round(self.max / self.step) + 1
            ).astype(np.float32) * np.float32(self.step)
        values = self.decode(np.arange(1 << self.bits))
        return np.unique(values[np.isfinite(values)] + np.float32(0))


def _float(
    name: str,
    exponent_bits: int,
    mantissa_bits: int,
    specials: Literal["none", "nan", "ieee"] = "none",
) -> Format:
    """A format with bias 2**(exponent_bits - 1) - 1."""
    bias = 2 ** (exponent_bits - 1) - 1
    top_exponent = 2**exponent_bits - 1 - bias - (1 if specials == "ieee" else 0)
    top_significand = 2 ** (mantissa_bits + 1) - 1 - (1 if specials == "nan" else 0)
    largest = float(top_significand * 2.0 ** (top_exponent - mantissa_bits))
    return Format(
        name,
        "float",
        1 + exponent_bits + mantissa_bits,
        largest,
        -largest,
        mantissa_bits,
        1 - bias,
        specials,
    )


def integer(bits: int, *, unsigned: bool = False, narrow_range: bool = False) -> Format:
    """The integer format of `bits` bits: [-2**(b-1), 2**(b-1) - 1]; narrow: symmetric; unsigned:
    [0, 2**b - 1].

    `bits` from 2 to 16 (unsigned from 1): beyond that float32 arithmetic would no longer be exact
    enough to define it.
    """
    if not (1 if unsigned else 2) <= bits <= 16:
        raise ValueError(f"integer formats have {1 if unsigned else 2} to 16 bits, not {bits}")
    if unsigned:
        return Format(f"UINT{bits}", "int", bits, 2.0**bits - 1, 0.0)
    top = 2.0 ** (bits - 1) - 1
    return Format(
        f"INT{bits}" + ("-narrow" if narrow_range else ""),
        "int",
        bits,
        top,
        -top if narrow_range else -top - 1,
    )


E4M3 = _float("E4M3", 4, 3, "nan")
E5M2 = _float("E5M2", 5, 2, "ieee")
E3M2 = _float("E3M2", 3, 2)
E2M3 = _float("E2M3", 2, 3)
E2M1 = _float("E2M1", 2, 1)
#: MX's INT8 is a fixed-point number with six fraction bits; -2 is left out so that the format is
#: symmetric.
MXINT8 = replace(
    integer(8, narrow_range=True), name="MXINT8", max=127 / 64, lowest=-127 / 64, step=2.0**-6
)

#: Formats by name; further integer formats come from `integer` or `find`.
FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        E4M3,
        E5M2,
        E3M2,
        E2M3,
        E2M1,
        MXINT8,
        integer(8),
        integer(4),
        integer(8, unsigned=True),
        integer(4, unsigned=True),
        integer(8, narrow_range=True),
        integer(4, narrow_range=True),
    )
}


def find(
    which: str | int | tuple[int, int] | Format,
    *,
    unsigned: bool = False,
    narrow_range: bool = False,
) -> Format:
    """The format meant by a name (``"E4M3"``, ``"INT4"``), a number of bits (8) or a pair of
    exponent and mantissa bits ((4, 3)).

    Raises ValueError for what does not exist.
    """
    if isinstance(which, Format):
        return which
    if isinstance(which, int):
        return integer(which, unsigned=unsigned, narrow_range=narrow_range)
    name = which.upper() if isinstance(which, str) else "E{}M{}".format(*which)
    if match := re.fullmatch(r"(U?)INT(\d+)(-NARROW)?", name):
        unsigned, narrow_range = unsigned or bool(match[1]), narrow_range or bool(match[3])
        return integer(int(match[2]), unsigned=unsigned, narrow_range=narrow_range)
    if name not in FORMATS:
        raise ValueError(f"no format {which!r}; there are {', '.join(FORMATS)} and INT2 to INT16")
    return FORMATS[name]


def e8m0_exponent(
    amax: Any, element: Format, rule: Literal["ceil", "floor"] = "ceil"
) -> NDArray[np.int32]:
    """The exponent E of the shared scale 2**E of a block, clamped to [-127, 127]; int32, the shape
    of `amax` (non-negative, not NaN).

    ``ceil`` (NVIDIA's rule): the smallest E with ``amax <= max(element) * 2**E``, so nothing
    saturates. ``floor`` (MX 1.0, section 6.3): ``floor(log2(amax)) - floor(log2(max(element)))``.
    Both are exact: significands are compared, no logarithm is rounded.  Zero gives -127, infinity
    127.
    """
    a = np.asarray(amax, dtype=np.float32)
    significand, exponent = np.frexp(np.where(np.isfinite(a), a, np.float32(1)))
    top_significand, top_exponent = np.frexp(np.float32(element.max))
    e = exponent - top_exponent
    if rule == "ceil":
        e = e + (significand > top_significand)
    e = np.where(a == 0, -127, np.where(np.isinf(a), 127, e))
    return np.clip(e, -127, 127).astype(np.int32)
