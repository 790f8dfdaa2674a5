"""Read the oracle's arguments from a ModelOpt quantizer, so that any quantizer's output can be
checked on any tensor.

Only attributes are read (duck typing); ModelOpt is not imported here and none of its arithmetic
runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from harness.formats import deviations
from harness.formats.arithmetic import Rules
from harness.formats.layout import plan
from harness.formats.number_formats import Format, find
from harness.formats.oracle import (
    quantize_dequantize,
    same_bits,
    saturation_fraction,
    to_numpy,
    underflow_fraction,
)

#: ModelOpt's `scale_bits` to the formats that block scales are stored in.
_SCALE_FORMATS = {(8, 0): "E8M0", (4, 3): "E4M3"}
#: ModelOpt gives every MX integer eight bits; MX means the fixed-point format.
_MX_INT8 = "MXINT8"


@dataclass(frozen=True)
class Step:
    """One quantizer of a chain and its effect on a tensor, read from its attributes.

    `amax` is float32 (any shape with the right number of elements) or None where it is computed
    from each tensor. `pre_quant_scale` multiplies the tensor first (SmoothQuant, AWQ); `enabled`
    False: nothing else happens.
    """

    format: Format
    amax: torch.Tensor | None
    axis: int | tuple[int, ...] | None
    block_sizes: dict[int, int | None] | None
    scale_format: str | None
    global_amax: torch.Tensor | None
    scale_max: float
    pre_quant_scale: torch.Tensor | None
    enabled: bool
    rules: Rules
    #: On a CUDA device, where ModelOpt has a kernel of its own for integers.
    rules_on_cuda: Rules

    def scaled(self, x: torch.Tensor) -> torch.Tensor:
        """`x` times the pre-quantization scale, in the dtype that torch promotes to."""
        return x if self.pre_quant_scale is None else x * self.pre_quant_scale.to(x.device)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output of the quantizer for `x`; an empty tensor is returned unchanged."""
        if x.numel() == 0:
            return x
        x = self.scaled(x)
        if not self.enabled:
            return x
        return quantize_dequantize(
            x,
            self.format,
            self.amax,
            axis=self.axis,
            block_sizes=self.block_sizes,
            scale_format=self.scale_format,
            global_amax=self.global_amax,
            scale_max=self.scale_max,
            rules=self.rules_on_cuda if x.is_cuda else self.rules,
        )

    def range(self, x: torch.Tensor) -> Any:
        """The amax in force for `x` (already scaled): the stored one, or max |x| a channel or
        block.
        """
        layout = plan(tuple(x.shape), self.axis, self.block_sizes)
        return layout.amax(layout.cut(to_numpy(x))) if self.amax is None else to_numpy(self.amax)


@dataclass(frozen=True)
class QuantizerOracle:
    """A quantizer, or a chain of them (W4A8: INT4 blocks, then E4M3), as a function on tensors."""

    steps: tuple[Step, ...]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The tensor that the quantizer must return for `x`, bit for bit."""
        for step in self.steps:
            x = step(x)
        return x

    def equal(
        self, x: torch.Tensor, actual: torch.Tensor, expected: torch.Tensor
    ) -> NDArray[np.bool_]:
        """Element by element, whether *actual* has the bits of *expected*, which this oracle
        returned for *x*.

        Where nothing is said of the sign of a zero, or of what NaN becomes, the magnitude decides.
        """
        same = same_bits(actual, expected)
        if any(step.enabled and step.rules.zero_sign_is_open for step in self.steps):
            values = to_numpy(x)
            same |= ((values == 0) | np.isnan(values)) & same_bits(actual.abs(), expected.abs())
        return same

    def fractions(self, x: torch.Tensor) -> tuple[float, float]:
        """The share of elements that the first enabled quantizer saturates, and of non-zero ones
        that the chain turns to zero.
        """
        before, saturated = x, 0.0
        for step in self.steps:
            x = step.scaled(x)
            if step.enabled:
                saturated = saturation_fraction(
                    x, step.range(x), step.format, axis=step.axis, block_sizes=step.block_sizes
                )
                break
        return saturated, underflow_fraction(before, self(before))


def from_quantizer(quantizer: Any) -> QuantizerOracle:
    """The oracle of a ModelOpt TensorQuantizer or SequentialQuantizer, as it stands now.

    Raises NotImplementedError, naming the attribute, where the quantizer does something that
    quantize-dequantize is not: an affine bias, a rotation, a custom backend, real (packed)
    quantization.
    """
    chain: Iterable[Any] = [quantizer] if hasattr(quantizer, "num_bits") else list(quantizer)
    return QuantizerOracle(tuple(_step(q) for q in chain))


def _step(q: Any) -> Step:
    enabled = bool(q.is_enabled) and bool(getattr(q, "_if_quant", True))
    _refuse_what_is_not_qdq(q)
    blocks = dict(q.block_sizes or {})
    sizes = {k: v for k, v in blocks.items() if isinstance(k, int)} or None
    scale_bits = blocks.get("scale_bits")
    scale_format = (
        _SCALE_FORMATS.get(tuple(scale_bits)) if isinstance(scale_bits, (tuple, list)) else None
    )
    dynamic = blocks.get("type") == "dynamic" and scale_format is not None
    element = find(q.num_bits, unsigned=bool(q.unsigned), narrow_range=bool(q.narrow_range))
    if scale_format == "E8M0" and element.kind == "int":
        element = find(_MX_INT8)
    amax = None if scale_format == "E8M0" else getattr(q, "_amax", None)
    if getattr(q, "_use_constant_amax", False):
        amax = torch.tensor(448.0)
    return Step(
        format=element,
        amax=None if dynamic else amax,
        axis=None if sizes else q.axis,
        block_sizes=sizes,
        scale_format=scale_format,
        global_amax=_peak(amax) if dynamic else getattr(q, "global_amax", None),
        scale_max=256.0 if blocks.get("four_over_six") else 448.0,
        pre_quant_scale=q.pre_quant_scale,
        enabled=enabled,
        rules=deviations.modelopt_rules(element, scale_format, dynamic=dynamic),
        rules_on_cuda=deviations.modelopt_rules(
            element, scale_format, dynamic=dynamic, cuda=_has_kernel(amax)
        ),
    )


def _has_kernel(amax: torch.Tensor | None) -> bool:
    """Whether ModelOpt's kernel takes such an amax: one, or several along one axis (its
    ``fake_quant_impl``).
    """
    return amax is None or amax.numel() == 1 or amax.numel() in amax.shape


def _peak(amax: torch.Tensor | None) -> torch.Tensor | None:
    """ModelOpt reduces the amax of a dynamic two-level quantizer to its largest element."""
    return None if amax is None else amax.amax()


def _refuse_what_is_not_qdq(q: Any) -> None:
    refused = {
        "bias": getattr(q, "bias", None) is not None,
        "rotate": bool(getattr(q, "rotate_is_enabled", False)),
        "backend": getattr(q, "backend", None) is not None,
        "fake_quant=False": not getattr(q, "fake_quant", True),
    }
    if named := [name for name, there in refused.items() if there]:
        raise NotImplementedError(
            f"no oracle for a quantizer with {', '.join(named)}: it does more than "
            f"quantize-dequantize"
        )
