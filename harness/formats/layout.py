"""Which elements share a scale: the whole tensor, a slice along an axis, or a block.

A layout turns an array into a view in which the elements that share a scale vary along `reduce`,
and amax has length one there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Layout:
    """How an array of shape `shape` is cut: padded with zeros to `padded`, seen as `split`, reduced
    along `reduce`.
    """

    shape: tuple[int, ...]
    padded: tuple[int, ...]
    split: tuple[int, ...]
    reduce: tuple[int, ...]

    @property
    def amax_shape(self) -> tuple[int, ...]:
        """The shape of amax that broadcasts against the split array."""
        return tuple(1 if i in self.reduce else n for i, n in enumerate(self.split))

    def cut(self, x: Array) -> Array:
        """`x`, padded at the end of each axis where a block is incomplete, in the split shape."""
        if self.padded != self.shape:
            x = np.pad(x, [(0, p - n) for n, p in zip(self.shape, self.padded, strict=True)])
        return x.reshape(self.split)

    def join(self, x: Array) -> Array:
        """The inverse of `cut`."""
        x = x.reshape(self.padded)
        return x if self.padded == self.shape else x[tuple(slice(n) for n in self.shape)]

    def amax(self, cut: Array, without_nan: bool = False) -> NDArray[np.float32]:
        """Max |x| of the elements that share a scale, float32 of `amax_shape`; NaN where there is
        one, 0 where nothing is.  *without_nan*: of the numbers alone, NaN where there is none.
        """
        magnitude = np.abs(cut)
        if without_nan:
            numbers = magnitude.astype(np.float32)
            return np.asarray(
                np.fmax.reduce(numbers, axis=self.reduce, keepdims=True, initial=np.float32(np.nan))
            )
        return np.asarray(np.max(magnitude, axis=self.reduce, keepdims=True, initial=0), np.float32)

    def fit(self, amax: Any) -> NDArray[np.float32]:
        """A given amax, of any shape with the right number of elements, as `amax_shape` (a single
        one: as a scalar array).
        """
        a = np.asarray(amax, dtype=np.float32)
        expected = int(np.prod(self.amax_shape))
        if a.size == 1:
            return a.reshape((1,) * len(self.split))
        if a.size != expected:
            raise ValueError(
                f"amax has {a.size} elements (shape {a.shape}), the tensor of shape {self.shape} "
                f"takes {expected}"
            )
        return a.reshape(self.amax_shape)


def plan(
    shape: Sequence[int],
    axis: int | Sequence[int] | None = None,
    block_sizes: Mapping[int, int | None] | None = None,
) -> Layout:
    """The layout of a tensor of `shape`.

    `axis`: the axes that keep a scale of their own (per channel); None: one scale for all.
    `block_sizes`: axis to block length, None for the whole axis; axes that are not named keep a
    scale for each index, as in ModelOpt's `block_sizes`.  Both at once is an error, and so is an
    axis that does not exist.
    """
    shape = tuple(int(n) for n in shape)
    if axis is not None and block_sizes:
        raise ValueError("axis and block_sizes exclude each other")
    if not block_sizes:
        own_axes = (
            set()
            if axis is None
            else {_normal(a, len(shape)) for a in ([axis] if isinstance(axis, int) else axis)}
        )
        return Layout(shape, shape, shape, tuple(i for i in range(len(shape)) if i not in own_axes))
    blocks = {_normal(a, len(shape)): n for a, n in block_sizes.items()}
    padded, split, reduce = [], [], []
    for i, n in enumerate(shape):
        size = (blocks[i] or max(n, 1)) if i in blocks else 1
        if size < 1:
            raise ValueError(f"block size {size} along axis {i}")
        count = -(-n // size)
        padded.append(count * size)
        split.append(count)
        if i in blocks:
            reduce.append(len(split))
            split.append(size)
    return Layout(shape, tuple(padded), tuple(split), tuple(reduce))


def _normal(axis: int, ndim: int) -> int:
    if not -ndim <= axis < ndim:
        raise ValueError(f"axis {axis} does not exist in a tensor of {ndim} dimensions")
    return axis % ndim
