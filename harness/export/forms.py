"""What of a quantizer standard ONNX can hold: an element type, a scale, and the codes of a
weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harness.quantization.maps import range_of

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]

#: At or below this, ModelOpt takes the amax of an E4M3 quantizer for one and that of an integer one
#: for zero.
_ZERO = 2.0**-24


class NoFormError(Exception):
    """A quantized model that standard ONNX cannot express; the message names the quantizers and the
    reason.
    """


@dataclass(frozen=True)
class Element:
    """An element type of Q/DQ: ONNX's name, the NumPy dtype of its codes, its largest number, the
    opset it needs.
    """

    name: str
    dtype: npt.DTypeLike
    largest: float
    lowest: float
    opset: int


E4M3 = Element("E4M3", ml_dtypes.float8_e4m3fn, 448.0, -448.0, 20)
INT8 = Element("INT8", np.int8, 127.0, -128.0, 20)
INT4 = Element("INT4", ml_dtypes.int4, 7.0, -8.0, 21)
_ELEMENTS = {(4, 3): E4M3, 8: INT8, 4: INT4}


@dataclass(frozen=True)
class Form:
    """How a graph represents one quantizer.

    ``amax`` is float32: (1,) a tensor, (n,) along ``axis``, or with ``block`` the shape of the
    tensor, its ``axis`` shortened to the number of blocks.
    """

    element: Element
    amax: Float32
    axis: int | None
    block: int | None

    @property
    def scale(self) -> Float32:
        """The step between codes, amax / largest, evaluated in double precision and rounded once to
        float32.

        Where amax counts as zero every code is zero too, and any scale will do: that of amax one.
        """
        amax = np.where(self.amax <= _ZERO, np.float32(1), self.amax).astype(np.float64)
        return (amax / self.element.largest).astype(np.float32)

    def codes(self, weight: Tensor) -> Array:
        """The codes of *weight* (any float dtype), evaluated as ModelOpt's fake quantization
        evaluates them.

        E4M3: ``cast(clip(w * (1/amax * 448)))``; integers: ``clip(rint(w * (largest / amax)))``,
        all in float32.
        """
        w = weight.detach().float().cpu()
        amax = torch.from_numpy(self._spread(tuple(w.shape)))
        zero = amax <= _ZERO
        if self.element is E4M3:
            factor = torch.where(zero, torch.ones_like(amax), amax).reciprocal() * 448.0
            cast = (w * factor).clamp(-448.0, 448.0).to(torch.float8_e4m3fn)
            return cast.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)
        # number / tensor would multiply with the reciprocal in torch, and ties would fall the other
        # way.
        factor = torch.where(
            zero, torch.zeros_like(amax), torch.full_like(amax, self.element.largest).div(amax)
        )
        return (
            (w * factor)
            .round()
            .clamp(self.element.lowest, self.element.largest)
            .numpy()
            .astype(self.element.dtype)
        )

    def _spread(self, shape: tuple[int, ...]) -> Float32:
        """The amax in a shape that broadcasts against a tensor of *shape*."""
        if self.block is not None:
            assert self.axis is not None
            full = np.repeat(self.amax, self.block, self.axis)
            return np.ascontiguousarray(full.take(range(shape[self.axis]), self.axis))
        if self.axis is None:
            return self.amax.reshape((1,) * len(shape))
        return self.amax.reshape([-1 if d == self.axis else 1 for d in range(len(shape))])


def of(quantizer: Any, shape: tuple[int, ...] | None) -> Form:
    """The form of an enabled ModelOpt ``TensorQuantizer``.

    Args:
        quantizer: the quantizer, calibrated.
        shape: of the weight it quantizes; None for an activation, whose rank is not fixed.

    Raises:
        NoFormError: there is none; the message is the reason alone.
    """
    bits, blocks = quantizer.num_bits, dict(quantizer.block_sizes or {})
    sizes = {axis: size for axis, size in blocks.items() if isinstance(axis, int) and size}
    element = _ELEMENTS.get(bits)
    amax = range_of(quantizer)
    if element is None or blocks.get("scale_bits") is not None:
        raise NoFormError(
            f"QuantizeLinear before opset 23 has no {_bits(bits)} with block scales of their own "
            f"format"
        )
    if quantizer.unsigned or quantizer.narrow_range:
        raise NoFormError(
            "an unsigned or narrow range is not the one that QuantizeLinear saturates to"
        )
    if amax is None or bool(getattr(quantizer, "_dynamic", False)):
        raise NoFormError(
            "its scale is computed from each tensor, and QuantizeLinear takes a constant"
        )
    if shape is None and amax.numel() != 1:
        raise NoFormError(
            "an activation with more than one scale has no axis that is known when the graph is "
            "written"
        )
    values = amax.detach().float().cpu().numpy()
    if (
        not np.isfinite(values).all()
        or (values < 0).any()
        or (shape is None and (values <= _ZERO).any())
    ):
        raise NoFormError("its amax is not a range (see the insertion suite)")
    if sizes:
        return _blocked(element, values, sizes, shape)
    if values.size == 1:
        return Form(element, values.reshape(1), None, None)
    assert shape is not None
    axis = quantizer.axis if isinstance(quantizer.axis, int) else (quantizer.axis or (0,))[0]
    return Form(element, values.reshape(-1), axis % len(shape), None)


def _blocked(
    element: Element, amax: Float32, sizes: dict[int, int], shape: tuple[int, ...] | None
) -> Form:
    if shape is None or len(sizes) != 1:
        raise NoFormError("ONNX knows blocks along one axis of a weight only")
    ((axis, size),) = ((a % len(shape), s) for a, s in sizes.items())
    counts = tuple(-(-n // size) if d == axis else n for d, n in enumerate(shape))
    return Form(element, amax.reshape(counts), axis, size)


def _bits(bits: Any) -> str:
    return f"E{bits[0]}M{bits[1]}" if isinstance(bits, tuple) else f"INT{bits}"
