"""Inputs that distinguish one rounding from another: the neighbourhood of every number of a format,
and of its edges.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.formats.number_formats import Format

#: Where between two neighbouring numbers of a format the probes are, in shares of the gap.
FRACTIONS = (0.0, 0.3, 0.49, 0.5, 0.51, 0.99)


def unit_probes(element: Format) -> NDArray[np.float64]:
    """Exact real numbers around every number of `element`: float64 of shape (k,), the format's own
    scale.

    Each gap at `FRACTIONS`, every number and every midpoint a float32 ulp up and down, both zeros,
    half and all of the way to where the next number beyond the largest would be, then far beyond;
    infinities and NaN.
    """
    points = element.code_points.astype(np.float64)
    low, gap = points[:-1], np.diff(points)
    inside = [low + f * gap for f in FRACTIONS]
    critical = np.concatenate([points, low + gap / 2])
    ulp = 2.0**-23
    close = [critical * (1 - ulp), critical * (1 + ulp), critical * (1 - ulp / 2)]
    last = gap[-1]
    over = element.max + last * np.array([0.0, 0.3, 0.49, 0.5, 0.51, 0.99, 1.0, 1.5, 100.0])
    far = np.array(
        [
            element.max * 2.0**20,
            np.inf,
            np.nan,
            0.0,
            -0.0,
            element.smallest / 2,
            element.smallest * 2.0**-20,
        ]
    )
    unsigned = np.concatenate([*inside, *close, over, far])
    return np.concatenate([unsigned, -unsigned]) if element.signed else np.abs(unsigned)


def probes(element: Format, amax: Any, dtype: Any) -> NDArray[Any]:
    """`unit_probes` at the scale that maps `amax` to the format's largest number: shape (number of
    amaxes, k), of `dtype`.

    Rounding to `dtype` moves the probes off their places where its own gaps are wider; they remain
    valid inputs.
    """
    scales = np.asarray(amax, np.float64).reshape(-1, 1) / element.max
    with np.errstate(all="ignore"):
        return np.asarray((unit_probes(element)[None, :] * scales).astype(np.float32).astype(dtype))


def scales(
    count: int, lowest: float = 2.0**-23, highest: float = 2.0**127, seed: int = 0
) -> NDArray[np.float32]:
    """`count` amaxes from `lowest` to `highest`: spread evenly in the exponent with random
    significands, powers of two every fourth.
    """
    exponents = np.linspace(np.log2(lowest), np.log2(highest), count)
    jitter = np.random.default_rng(seed).uniform(1.0, 2.0, count)
    jitter[::4] = 1.0
    return np.asarray(np.minimum(2.0 ** np.floor(exponents) * jitter, highest), np.float32)
