"""NF4 in blocks whose scales are quantized themselves: QLoRA's double quantization.

Source: Dettmers et al. 2023, arXiv 2305.14314, section 3 and appendix E.  Sixteen levels, the
quantiles of a normal distribution; a block of 64 is scaled by its largest magnitude c; the scales,
less their mean, are stored in eight bits in blocks of 256.  The paper stores them as eight-bit
floats; here, as in ModelOpt, they are symmetric integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from harness.formats.number_formats import Float32

#: As published: QLoRA's appendix E, and bitsandbytes' functional.py (get_4bit_type).  They are
#: quantiles of N(0, 1), seven below zero and eight above, from the one that leaves out the mean of
#: 1/32 and 1/30 towards 0.5, divided by the largest.  Computed in double precision, twelve of the
#: sixteen differ from the published ones by up to 1.8e-7.
_LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


def levels() -> Float32:
    """The sixteen levels, ascending from -1 to 1 with an exact zero: float32 of shape (16,)."""
    return np.asarray(_LEVELS, np.float32)


@dataclass(frozen=True)
class NF4Rules:
    """Where ModelOpt differs from the definition; the defaults are the definition (``levels``: of
    shape (16,), None: QLoRA's).
    """

    levels: Float32 | None = None
    #: Whether scales that fill up the last scale block with zeros count in the mean.
    padding_counts: bool = False
    #: The level of an element of a block of zeros; by definition the level zero.
    zero_block_level: int | None = None
    #: Whether q / d is evaluated as (1 / d) * q, as torch does with a number and a tensor.
    reciprocal: bool = False


def double_quantized(
    x: torch.Tensor | NDArray[Any],
    block: int,
    scale_block: int,
    scale_bits: int,
    rules: NF4Rules | None = None,
) -> Float32:
    """Return *x* as it is after it was stored in this form and read back: float32 of x's shape.

    With c a block's largest magnitude, m the mean of all c, d the largest |c - m| of a scale block
    and q = 2**(scale_bits - 1) - 1: ``k = rint((c - m) * (q / d))``, ``c' = k / (q / d) + m``, ``y
    = L(x / c) * c'``, L the nearest level (of two the lower).  All in float32.

    Args:
        x: float of any shape; blocks are runs of *block* elements of the flattened tensor, the last
            filled with zeros.
        block: elements that share a scale.
        scale_block: scales that share a scale of their own.
        scale_bits: of a stored scale, 2 to 8.
        rules: the definition by default.
    """
    how = rules or NF4Rules()
    table = levels() if how.levels is None else how.levels
    values = (
        x.detach().float().cpu().numpy()
        if isinstance(x, torch.Tensor)
        else np.asarray(x, np.float32)
    )
    flat = values.reshape(-1)
    blocks = np.pad(flat, (0, -flat.size % block)).reshape(-1, block)
    scale = np.abs(blocks).max(1)
    with np.errstate(all="ignore"):
        unit = blocks / scale[:, None]
        index = np.abs(unit[:, :, None] - table).argmin(-1)
        zero = (
            int(np.flatnonzero(table == 0)[0])
            if how.zero_block_level is None
            else how.zero_block_level
        )
        index[scale == 0] = zero
        stored = _stored(scale, scale_block, scale_bits, how)
    return np.asarray(
        (table[index] * stored[:, None]).reshape(-1)[: flat.size].reshape(values.shape), np.float32
    )


def _stored(scale: Float32, scale_block: int, scale_bits: int, how: NF4Rules) -> Float32:
    """Return the scales as they are after they were stored and read back."""
    padded = np.pad(scale, (0, -scale.size % scale_block))
    # As torch sums: the order decides the mean's last bit, and with it that of every scale.
    mean = np.float32(torch.from_numpy(padded if how.padding_counts else scale).mean().item())
    largest = np.float32(2 ** (scale_bits - 1) - 1)
    centred = padded - mean
    if not how.padding_counts:
        centred[scale.size :] = 0
    centred = centred.reshape(-1, scale_block)
    peak = np.abs(centred).max(1, keepdims=True)
    factor = (np.float32(1) / peak) * largest if how.reciprocal else largest / peak
    code = np.clip(np.rint(centred * factor), -largest, largest)
    # Scales that are all alike are their mean.
    back = np.where(np.isinf(factor), np.float32(0), code / factor) + mean
    return np.asarray(back.reshape(-1)[: scale.size], np.float32)
