"""Each format is the set of numbers, and the rounding to it, that its specification and two other
libraries say.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import gfloat
import ml_dtypes
import numpy as np
import pytest
from gfloat.formats import (
    format_info_ocp_e2m1,
    format_info_ocp_e2m3,
    format_info_ocp_e3m2,
    format_info_ocp_e4m3,
    format_info_ocp_e5m2,
    format_info_ocp_int8,
)

from harness import formats
from harness.formats import number_formats
from harness.formats.probes import unit_probes

ML_DTYPES = {
    "E4M3": ml_dtypes.float8_e4m3fn,
    "E5M2": ml_dtypes.float8_e5m2,
    "E3M2": ml_dtypes.float6_e3m2fn,
    "E2M3": ml_dtypes.float6_e2m3fn,
    "E2M1": ml_dtypes.float4_e2m1fn,
    "INT4": ml_dtypes.int4,
    "UINT4": ml_dtypes.uint4,
    "INT8": np.int8,
    "UINT8": np.uint8,
}
GFLOAT = {
    "E4M3": format_info_ocp_e4m3,
    "E5M2": format_info_ocp_e5m2,
    "E3M2": format_info_ocp_e3m2,
    "E2M3": format_info_ocp_e2m3,
    "E2M1": format_info_ocp_e2m1,
    "MXINT8": format_info_ocp_int8,
}
FLOATS = [name for name, f in formats.FORMATS.items() if f.kind == "float"]


def from_codes(codes: Any, dtype: Any) -> Any:
    """The numbers that another library reads in codes."""
    stored = codes.astype(np.uint8)
    # ml_dtypes keeps a four-bit integer in the low bits of a byte, sign extended: a view would be
    # out of its range.
    four_bits = dtype in (ml_dtypes.int4, ml_dtypes.uint4)
    return (stored.view(np.int8).astype(dtype) if four_bits else stored.view(dtype)).astype(
        np.float32
    )


@pytest.mark.parametrize("name", ML_DTYPES)
def test_every_code_is_read_as_ml_dtypes_reads_it(name: str) -> None:
    """All codes of a format, NaN and infinity included, stand for the same numbers in ml_dtypes."""
    element = formats.FORMATS[name]
    codes = np.arange(2**element.bits)

    ours, theirs = element.decode(codes), from_codes(codes, ML_DTYPES[name])

    assert formats.same_bits(ours, theirs).all()


@pytest.mark.parametrize("name", GFLOAT)
def test_every_code_is_read_as_gfloat_reads_it(name: str) -> None:
    """All codes of a format stand for the same numbers in gfloat."""
    element = formats.FORMATS[name]
    codes = range(2**element.bits)

    theirs = np.array([gfloat.decode_float(GFLOAT[name], code).fval for code in codes], np.float32)

    assert formats.same_bits(element.decode(codes), theirs).all()


@pytest.mark.parametrize(
    ("name", "largest", "smallest", "count"),
    [
        ("E4M3", 448, 2.0**-9, 253),
        ("E5M2", 57344, 2.0**-16, 247),
        ("E3M2", 28, 0.0625, 63),
        ("E2M3", 7.5, 0.125, 63),
        ("E2M1", 6, 0.5, 15),
        ("MXINT8", 127 / 64, 2.0**-6, 255),
        ("INT8", 127, 1, 256),
        ("INT4", 7, 1, 16),
        ("UINT4", 15, 1, 16),
        ("INT8-narrow", 127, 1, 255),
    ],
)
def test_range_is_the_specified_one(name: str, largest: float, smallest: float, count: int) -> None:
    """The largest and the smallest positive number and how many there are, as printed in the
    specifications.
    """
    element = formats.FORMATS[name]

    assert (element.max, element.smallest, len(element.code_points)) == (largest, smallest, count)
    assert element.code_points[-1] == largest
    assert element.code_points[0] == element.lowest


@pytest.mark.parametrize("name", GFLOAT)
def test_rounding_agrees_with_gfloat_around_every_number(name: str) -> None:
    """At every probe around every number the nearest-even, saturating rounding is gfloat's."""
    element = formats.FORMATS[name]
    values = unit_probes(element).astype(np.float32)
    values = values[~np.isnan(values)] if element.specials == "none" else values

    theirs = gfloat.round_ndarray(
        GFLOAT[name], values.astype(np.float64), gfloat.RoundMode.TiesToEven, sat=True
    )

    if element.kind == "int":
        # gfloat keeps the code of -2, which MX leaves out, and has no negative zero.
        theirs = np.maximum(theirs, element.lowest)
        np.testing.assert_array_equal(element.round(values), theirs)
    else:
        assert formats.same_bits(element.round(values), theirs.astype(np.float32)).all()


@pytest.mark.parametrize("name", FLOATS)
def test_rounding_agrees_with_ml_dtypes_around_every_number(name: str) -> None:
    """Within the range, at every probe around every number, the rounding is that of an ml_dtypes
    cast.
    """
    element = formats.FORMATS[name]
    values = unit_probes(element).astype(np.float32)
    values = values[np.abs(values) <= element.max]

    theirs = values.astype(ML_DTYPES[name]).astype(np.float32)

    assert len(values) > 10 * len(element.code_points)
    assert formats.same_bits(element.round(values), theirs).all()


@pytest.mark.parametrize("name", formats.FORMATS)
def test_rounding_is_to_the_nearest_number_in_exact_arithmetic(name: str) -> None:
    """No number of the format is nearer than the chosen one, judged in rational arithmetic."""
    element = formats.FORMATS[name]
    points = element.code_points
    values = unit_probes(element).astype(np.float32)
    values = values[np.isfinite(values)]

    chosen = element.round(values)

    at = np.searchsorted(points, np.clip(values, points[0], points[-1]))
    for value, got, i in zip(values.tolist(), chosen.tolist(), at.tolist(), strict=True):
        near = [Fraction(float(points[j])) for j in {max(i - 1, 0), min(i, len(points) - 1)}]
        assert abs(Fraction(got) - Fraction(value)) == min(abs(p - Fraction(value)) for p in near)


@pytest.mark.parametrize("name", formats.FORMATS)
def test_a_tie_goes_to_the_even_code(name: str) -> None:
    """Half way between two numbers the one with an even code is chosen."""
    element = formats.FORMATS[name]
    codes = np.arange(2**element.bits)
    code_of = {
        float(v): int(c)
        for c, v in zip(codes, element.decode(codes), strict=True)
        if np.isfinite(v)
    }
    points = element.code_points
    ties = points[:-1] + np.diff(points) / 2

    chosen = element.round(ties)

    assert all(code_of[float(v)] % 2 == 0 for v in chosen + np.float32(0))


@pytest.mark.parametrize("name", formats.FORMATS)
def test_rounding_keeps_the_numbers_of_the_format(name: str) -> None:
    """A number of the format rounds to itself, in place as well as into a new array."""
    element = formats.FORMATS[name]
    points = element.code_points
    copy = points.copy()

    fresh = element.round(points)
    element.round(copy, out=copy)

    assert formats.same_bits(fresh, points).all()
    assert formats.same_bits(copy, points).all()
    assert fresh is not points


@pytest.mark.parametrize("name", ["E4M3", "INT8", "MXINT8"])
def test_rounding_writes_where_it_is_told_and_nowhere_else(name: str) -> None:
    """What is rounded stays as it was, whatever its type, unless it is itself the place to write
    to.
    """
    element = formats.FORMATS[name]
    values = np.array([[0.3, -1.27], [1e9, -0.0]], np.float32)
    before, out, scratch = (
        values.copy(),
        np.full((2, 2), 7, np.float32),
        np.zeros((2, 2, 2), np.uint32),
    )

    expected = element.round(values)
    returned = element.round(values, out=out, scratch=scratch)

    assert returned is out
    assert formats.same_bits(values, before).all()
    assert formats.same_bits(out, expected).all()
    assert scratch.any() == (element.kind == "float"), "the scratch is what saves the allocation"
    wide = element.round(values.astype(np.float64).tolist())
    assert wide.dtype == np.float32
    assert formats.same_bits(wide, expected).all()
    assert element.round(values, out=values) is values
    assert formats.same_bits(values, expected).all()


@pytest.mark.parametrize(
    ("name", "exponent_bits", "mantissa_bits", "specials"),
    [
        ("E4M3", 4, 3, "nan"),
        ("E5M2", 5, 2, "ieee"),
        ("E3M2", 3, 2, "none"),
        ("E2M3", 2, 3, "none"),
        ("E2M1", 2, 1, "none"),
    ],
)
def test_float_formats_follow_from_their_bits(
    name: str, exponent_bits: int, mantissa_bits: int, specials: Any
) -> None:
    """A listed float format is what its numbers of bits and its specials give; without specials
    named it has none.
    """
    derived = number_formats._float(name, exponent_bits, mantissa_bits, specials)

    assert derived == formats.FORMATS[name]
    assert (
        derived.smallest
        == formats.FORMATS[name].code_points[formats.FORMATS[name].code_points > 0].min()
    )
    plain = number_formats._float(name, exponent_bits, mantissa_bits)
    assert plain.specials == "none"
    assert (plain == derived) == (specials == "none")


@pytest.mark.parametrize("bits", [2, 3, 8, 16])
def test_integer_formats_follow_from_their_bits(bits: int) -> None:
    """Two's complement with or without its lowest number, or no sign: range, name, sign and number
    of codes.
    """
    top = 2 ** (bits - 1) - 1
    plain, narrow = number_formats.integer(bits), number_formats.integer(bits, narrow_range=True)
    unsigned = number_formats.integer(bits, unsigned=True)

    assert (plain.name, plain.lowest, plain.max, plain.bits, plain.kind) == (
        f"INT{bits}",
        -top - 1,
        top,
        bits,
        "int",
    )
    assert (narrow.name, narrow.lowest, narrow.max, narrow.bits) == (
        f"INT{bits}-narrow",
        -top,
        top,
        bits,
    )
    assert (unsigned.name, unsigned.lowest, unsigned.max, unsigned.bits) == (
        f"UINT{bits}",
        0,
        2**bits - 1,
        bits,
    )
    assert (plain.signed, narrow.signed, unsigned.signed) == (True, True, False)
    assert [len(f.code_points) for f in (plain, narrow, unsigned)] == [
        2**bits,
        2**bits - 1,
        2**bits,
    ]
    assert (
        number_formats.find(bits, narrow_range=True)
        == number_formats.find(f"int{bits}-narrow")
        == narrow
    )
    assert (
        number_formats.find(bits, unsigned=True) == number_formats.find(f"uint{bits}") == unsigned
    )
    assert number_formats.find(f"int{bits}", unsigned=True) == unsigned
    assert number_formats.find(f"int{bits}", narrow_range=True) == narrow
    assert number_formats.find(narrow, unsigned=True) is narrow


def test_integer_formats_have_as_many_bits_as_float32_can_judge() -> None:
    """From 2 to 16 bits, without a sign from 1; the message says which."""
    assert (
        number_formats.integer(1, unsigned=True).lowest,
        number_formats.integer(1, unsigned=True).max,
    ) == (0, 1)
    assert number_formats.integer(16, unsigned=True).max == 65535
    for bits, unsigned, said in (
        (1, False, "2 to 16 bits, not 1"),
        (17, False, "2 to 16 bits, not 17"),
        (0, True, "1 to 16 bits, not 0"),
        (17, True, "1 to 16 bits, not 17"),
    ):
        with pytest.raises(ValueError, match=f"integer formats have {said}"):
            number_formats.integer(bits, unsigned=unsigned)
    with pytest.raises(ValueError, match="no format 'nonsense'; there are E4M3, E5M2, "):
        number_formats.find("nonsense")


@pytest.mark.parametrize("name", ML_DTYPES)
def test_codes_are_read_alike_whatever_integers_hold_them(name: str) -> None:
    """Codes kept in bytes, as a checkpoint has them, stand for the same numbers as codes in wide
    integers.
    """
    element = formats.FORMATS[name]
    codes = np.arange(2**element.bits)

    assert formats.same_bits(element.decode(codes.astype(np.uint8)), element.decode(codes)).all()


@pytest.mark.parametrize(
    "element",
    [
        number_formats.E4M3,
        number_formats.E2M1,
        number_formats.E3M2,
        number_formats.E5M2,
        number_formats.MXINT8,
    ],
)
def test_shared_exponent_is_the_smallest_that_covers(element: formats.Format) -> None:
    """NVIDIA's rule gives the least E with amax <= max * 2**E, over every binade and next to every
    boundary.
    """
    edges = (element.max * 2.0 ** np.arange(-126, 127 - np.log2(element.max))).astype(np.float32)
    amax = np.concatenate(
        [edges, np.nextafter(edges, np.float32(0)), np.nextafter(edges, np.float32(3e38))]
    )

    exponent = formats.e8m0_exponent(amax, element)

    for a, e in zip(amax.tolist(), exponent.tolist(), strict=True):
        assert Fraction(a) <= Fraction(element.max) * Fraction(2) ** e
        assert e == -127 or Fraction(a) > Fraction(element.max) * Fraction(2) ** (e - 1)


@pytest.mark.parametrize("name", GFLOAT)
def test_shared_exponent_of_the_specification_agrees_with_gfloat(name: str) -> None:
    """The rule printed in MX 1.0 is the one gfloat implements."""
    element = formats.FORMATS[name]
    amax = np.array(
        [1e-30, 0.1, 0.5, 0.999, 1, 1.75, 2, 3.99, 6, 7, 448, 1e10, 3e38, 0], np.float32
    )

    ours = np.ldexp(1.0, formats.e8m0_exponent(amax, element, "floor"))

    theirs = [
        gfloat.block.compute_scale_amax(GFLOAT[name].emax, np.array([float(a)])) for a in amax
    ]
    np.testing.assert_array_equal(ours, theirs)


def test_shared_exponent_is_clamped() -> None:
    """Zero takes the smallest exponent of E8M0, infinity the largest, as does what would need one
    more.
    """
    amax = np.array([0, 1e-45, np.inf], np.float32)

    assert formats.e8m0_exponent(amax, number_formats.E4M3).tolist() == [-127, -127, 127]
    assert int(formats.e8m0_exponent(np.finfo(np.float32).max, number_formats.MXINT8)) == 127


def test_shared_exponent_is_that_of_a_float32_amax() -> None:
    """An amax of more digits is a float32 number first: one that rounds to the largest number needs
    no further step.
    """
    exponents = [
        formats.e8m0_exponent(np.float64(448) * (1 + step), number_formats.E4M3)
        for step in (2.0**-40, 2.0**-20)
    ]

    assert [int(e) for e in exponents] == [0, 1]
    assert exponents[0].dtype == np.int32


@pytest.mark.parametrize(
    ("which", "name"),
    [
        ("e4m3", "E4M3"),
        ((2, 1), "E2M1"),
        (8, "INT8"),
        (3, "INT3"),
        ("INT4-narrow", "INT4-narrow"),
        ("uint8", "UINT8"),
    ],
)
def test_a_format_is_found_by_name_bits_or_pair(
    which: str | int | tuple[int, int], name: str
) -> None:
    """Recipes write formats in several ways; each finds the same one."""
    assert number_formats.find(which).name == name


@pytest.mark.parametrize("which", ["E9M9", (1, 1), 1, 17, "INT99", "nonsense"])
def test_an_unknown_format_is_refused(which: str | int | tuple[int, int]) -> None:
    """What no specification defines is an error that names it."""
    with pytest.raises(ValueError, match=r"no format|integer formats have"):
        number_formats.find(which)
