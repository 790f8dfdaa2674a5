"""What of ModelOpt's objects the gate reads, as types: ModelOpt has none of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeAlias

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor
    from torch.utils.hooks import RemovableHandle

#: Bits of an integer, or (exponent bits, mantissa bits).
NumBits: TypeAlias = "int | tuple[int, int]"
#: The dimension along which each index has a range of its own, or several; None: one range.
QuantizerAxis: TypeAlias = "int | tuple[int, ...] | None"


class TensorQuantizer(Protocol):
    """``modelopt.torch.quantization.nn.TensorQuantizer``.

    ``block_sizes`` holds sizes by dimension (whole numbers), and settings of the blocks by name
    (``type``, ``scale_bits``, ``scale_block_sizes``).
    """

    num_bits: NumBits
    unsigned: bool
    narrow_range: bool
    axis: QuantizerAxis
    block_sizes: Mapping[int | str, object] | None
    is_enabled: bool
    amax: Tensor | None
    pre_quant_scale: Tensor | None
    _amax: Tensor
    _dynamic: bool
    _if_quant: bool
    _pre_quant_scale: Tensor

    def __call__(self, inputs: Tensor) -> Tensor:
        """Quantize and dequantize."""

    def _fake_quantize(self, inputs: Tensor) -> Tensor: ...

    def _get_amax(self, inputs: Tensor) -> Tensor: ...

    def disable(self) -> None:
        """Turn the quantizer off."""

    def disable_quant(self) -> None:
        """Pass tensors on as they are."""

    def enable_calib(self) -> None:
        """Collect the range of what passes."""

    def register_forward_hook(self, hook: Callable[..., object]) -> RemovableHandle:
        """Call *hook* after each forward."""

    def register_forward_pre_hook(self, hook: Callable[..., object]) -> RemovableHandle:
        """Call *hook* before each forward."""


class QuantizedAttention(Protocol):
    """An attention module with the quantizers around scaled-dot-product attention."""

    _functionals_to_replace: ClassVar[list[tuple[ModuleType, str, Callable[..., Tensor]]]]
    q_bmm_quantizer: TensorQuantizer
    k_bmm_quantizer: TensorQuantizer
    v_bmm_quantizer: TensorQuantizer
