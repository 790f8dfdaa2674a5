"""The probes are where they say, written out number by number: a probe next to its place asks
nothing.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from harness import formats
from harness.formats import probes

ULP = 2.0**-23
INT2 = [-2.0, -1.0, 0.0, 1.0]
UINT1 = [0.0, 1.0]
E2M1 = [-6.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def around(numbers: list[float], smallest: float) -> list[float]:
    """Where the probes of a format with these numbers are, one sign of them."""
    gaps = list(pairwise(numbers))
    inside = [a + share * (b - a) for a, b in gaps for share in (0, 0.3, 0.49, 0.5, 0.51, 0.99)]
    critical = numbers + [(a + b) / 2 for a, b in gaps]
    close = [c * f for c in critical for f in (1 + ULP, 1 - ULP, 1 - ULP / 2)]
    top, last = numbers[-1], numbers[-1] - numbers[-2]
    beyond = [top + last * share for share in (0, 0.3, 0.49, 0.5, 0.51, 0.99, 1, 1.5, 100)]
    return (
        inside
        + close
        + beyond
        + [top * 1048576, np.inf, 0.0, -0.0, smallest / 2, smallest / 1048576]
    )


def ordered(values: Any) -> Any:
    """The numbers sorted by their bits, so that zeros are distinguished, without NaN."""
    array = np.asarray(values, np.float64)
    return np.sort(array[~np.isnan(array)].view(np.int64)).view(np.float64)


@pytest.mark.parametrize(
    ("element", "numbers", "smallest"),
    [
        (formats.FORMATS["E2M1"], E2M1, 0.5),
        (formats.integer(2), INT2, 1.0),
        (formats.integer(1, unsigned=True), UINT1, 1.0),
    ],
    ids=lambda v: getattr(v, "name", ""),
)
def test_where_the_probes_lie(
    element: formats.Format, numbers: list[float], smallest: float
) -> None:
    """At shares of every gap, an ulp next to every number and midpoint, beyond the largest and far
    away; unsigned formats get no negative ones.
    """
    points, one_sign = probes.unit_probes(element), around(numbers, smallest)

    expected = (
        [*one_sign, *(-v for v in one_sign)] if numbers[0] < 0 else [abs(v) for v in one_sign]
    )
    np.testing.assert_allclose(ordered(points), ordered(expected), rtol=1e-15, atol=0)
    assert np.array_equal(np.signbit(ordered(points)), np.signbit(ordered(expected)))
    assert np.isnan(points).sum() == (2 if numbers[0] < 0 else 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_probes_are_scaled_to_each_amax(dtype: Any) -> None:
    """A row for each amax, in float64 times amax / 6 for E2M1, rounded to float32 and then to the
    dtype asked for.
    """
    amax = np.array([6.0, 0.1, 3.0, 700.0], np.float32)
    unit = probes.unit_probes(formats.FORMATS["E2M1"])

    points = probes.probes(formats.FORMATS["E2M1"], amax, dtype)

    with np.errstate(all="ignore"):
        rows = [(unit * (float(a) / 6)).astype(np.float32).astype(dtype) for a in amax]
    assert (points.shape, points.dtype) == ((4, unit.size), dtype)
    assert formats.same_bits(points, np.stack(rows)).all()
    assert probes.probes(formats.FORMATS["E2M1"], 6.0, dtype).shape == (1, unit.size)


def test_amaxes_are_spread_over_the_exponents() -> None:
    """Nine amaxes from 2**-4 to 2**4 are in one binade each, every fourth at its power of two; the
    same seed gives the same, none exceeds the highest.
    """
    amaxes = probes.scales(9, 2.0**-4, 2.0**4)

    powers = 2.0 ** np.arange(-4, 5)
    assert amaxes.dtype == np.float32
    assert amaxes[[0, 4, 8]].tolist() == [2.0**-4, 1.0, 2.0**4]
    between = amaxes[[1, 2, 3, 5, 6, 7]] / powers[[1, 2, 3, 5, 6, 7]]
    assert ((between > 1) & (between < 2)).all()
    assert len(np.unique(between)) == 6
    assert np.array_equal(amaxes, probes.scales(9, 2.0**-4, 2.0**4))
    assert not np.array_equal(amaxes, probes.scales(9, 2.0**-4, 2.0**4, seed=1))
    many = probes.scales(1000, 1.0, 8.0)
    assert (many / 2.0 ** np.floor(np.linspace(0, 3, 1000)) < 2).all()
    assert many.max() == 8


def test_amaxes_reach_from_where_fp8_ends_to_where_float32_does() -> None:
    """By default the first is 2**-23 and the last at most 2**127."""
    amaxes = probes.scales(5)

    assert (amaxes[0], amaxes[-1]) == (2.0**-23, 2.0**127)
