"""ModelOpt's plumbing around the arithmetic: who calls which quantizer, what is folded, what the
attention computes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.models import families
from harness.quantization.maps import tensor_quantizers
from harness.tools.faults.catalogue import (
    FaultSite,
    Where,
    after_quantizing,
    enabled,
    fault,
    replaced,
    with_result,
)

if TYPE_CHECKING:
    from harness.modelopt_types import QuantizedAttention

#: An attention: (module, query, key, value, and what scaled_dot_product_attention takes) to output.
Attention = Callable[..., Tensor]

_SDPA = F.scaled_dot_product_attention


def _around_sdpa(wrong: Attention) -> AbstractContextManager[None]:
    """Diffusers' attention class with *wrong(module, original, ...)* where it quantizes around
    sdpa.
    """
    from harness.quantization.attention import diffusers_attention

    cls = diffusers_attention()
    replacements = list(cls._functionals_to_replace)
    original = next(new for _, name, new in replacements if name == "scaled_dot_product_attention")

    def quantized(module: nn.Module, *args: object, **kwargs: object) -> Tensor:
        return wrong(module, original, *args, **kwargs)

    changed = [
        (holder, name, quantized if new is original else new) for holder, name, new in replacements
    ]
    return replaced((cls, "_functionals_to_replace", changed))


@fault(
    "attention skipped under sdpa",
    Where.MODELOPT,
    "diffusers' class with another attention backend (S3)",
)
def _skipped(_: FaultSite) -> Iterator[None]:
    """The attention quantizers are inserted and enabled, and scaled_dot_product_attention goes
    round them.
    """
    with _around_sdpa(lambda _module, _original, *a, **k: _plain_sdpa(*a, **k)):
        yield


def _plain_sdpa(q: Tensor, k: Tensor, v: Tensor, *args: object, **kwargs: object) -> Tensor:
    attend: Attention = _SDPA
    return attend(q, k, v, *args, **kwargs)


@fault(
    "eager attention",
    Where.MODEL,
    "attn_implementation='eager' (S3)",
    rebuilt=("reference", "runs", "places"),
)
def _eager(_: FaultSite) -> Iterator[None]:
    """The model is loaded with eager attention, which never reaches the four attention
    quantizers.
    """
    from harness.models import references

    load = references.load
    with replaced(
        (references, "load", lambda ref, device: load(ref, device, attn_implementation="eager"))
    ):
        yield


@fault(
    "nested attention quantized twice",
    Where.MODELOPT,
    "an attention module wrapped inside another one",
)
def _twice(_: FaultSite) -> Iterator[None]:
    """Query, key and value pass their quantizers twice."""

    def twice(
        m: QuantizedAttention,
        original: Attention,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *args: object,
        **kwargs: object,
    ) -> Tensor:
        q, k, v = m.q_bmm_quantizer(q), m.k_bmm_quantizer(k), m.v_bmm_quantizer(v)
        return original(m, q, k, v, *args, **kwargs)

    with _around_sdpa(twice):
        yield


@fault(
    "one wrapper quantizes the value twice",
    Where.MODELOPT,
    "an attention module wrapped inside another one",
)
def _value_twice(_: FaultSite) -> Iterator[None]:
    """Only the value passes its quantizer twice, which changes no bit, as quantizing is
    idempotent.
    """

    def twice(
        m: QuantizedAttention,
        original: Attention,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *args: object,
        **kwargs: object,
    ) -> Tensor:
        return original(m, q, k, m.v_bmm_quantizer(v), *args, **kwargs)

    with _around_sdpa(twice):
        yield


@fault("attention output not quantized", Where.MODELOPT, "ModelOpt's own attention class (S4)")
def _no_output(_: FaultSite) -> Iterator[None]:
    """The output of the second product never passes its quantizer."""

    def without(
        m: QuantizedAttention,
        _original: Attention,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *args: object,
        **kwargs: object,
    ) -> Tensor:
        return _plain_sdpa(
            m.q_bmm_quantizer(q), m.k_bmm_quantizer(k), m.v_bmm_quantizer(v), *args, **kwargs
        )

    with _around_sdpa(without):
        yield


@fault(
    "causal mask lost", Where.MODELOPT, "a rewritten attention that drops is_causal and attn_mask"
)
def _no_mask(_: FaultSite) -> Iterator[None]:
    """The quantized text tower sees words that come later."""

    def unmasked(m: nn.Module, original: Attention, *args: object, **kwargs: object) -> Tensor:
        others = {k: v for k, v in kwargs.items() if k not in ("attn_mask", "is_causal")}
        return original(m, *args[:3], **others)

    with _around_sdpa(unmasked):
        yield


@fault(
    "attention left swapped",
    Where.MODELOPT,
    "replace_function after a forward that raised (ModelOpt 0.47, S12)",
)
def _left_swapped(_: FaultSite) -> Iterator[None]:
    """A quantized model raised in its forward, and every other one attends through that model's
    quantizers.
    """
    from harness import isolation
    from harness.models import references
    from harness.quantization import quantize
    from harness.recipes import loading

    stray = quantize.quantize(
        references.load("embedded", torch.device("cpu")).model, loading.load("fp8"), None
    )
    blocks = stray.get_submodule("vision_model").modules()
    block = next(m for m in blocks if hasattr(m, "q_bmm_quantizer"))
    with isolation.functions_kept(), replaced((block.out_proj, "forward", _raise)):
        # Not through harness.models.families, which would put the functions back.
        with contextlib.suppress(ArithmeticError), torch.no_grad():
            stray.get_submodule("vision_model")(families.sample_inputs(stray)["pixel_values"])
        yield


def _raise(*_: object) -> Tensor:
    raise ArithmeticError("a layer that raises")


@fault(
    "softmax left swapped",
    Where.MODELOPT,
    "ModelOpt's own attention class, which quantizes the softmax (S12)",
)
def _softmax_swapped(_: FaultSite) -> Iterator[None]:
    """A forward raised and torch's softmax is another function ever since, for every model of the
    process.
    """

    def rounded(x: Tensor) -> Tensor:
        return x.to(torch.float8_e4m3fn).half()

    with replaced((F, "softmax", with_result(F.softmax, rounded))):
        yield


@fault(
    "attention scale lost",
    Where.MODELOPT,
    "a rewritten attention that passes no scale, or another one",
)
def _no_scale(_: FaultSite) -> Iterator[None]:
    """The quantized attention does not divide by the root of the head's width."""

    def unscaled(m: nn.Module, original: Attention, *args: object, **kwargs: object) -> Tensor:
        return original(m, *args, **kwargs | {"scale": 1.0})

    with _around_sdpa(unscaled):
        yield


@fault(
    "key and value quantizers exchanged",
    Where.MODELOPT,
    "class: quantizers wired to each other's tensors",
)
def _exchanged(_: FaultSite) -> Iterator[None]:
    """The key passes the value's quantizer and the value the key's, after a right calibration."""

    def exchange(model: nn.Module) -> None:
        for module in model.modules():
            if hasattr(module, "k_bmm_quantizer"):
                module.k_bmm_quantizer, module.v_bmm_quantizer = (
                    module.v_bmm_quantizer,
                    module.k_bmm_quantizer,
                )

    with after_quantizing(exchange):
        yield


@fault(
    "quantizers disabled after calibration",
    Where.MODELOPT,
    "class: quantizers off after calibration",
)
def _disabled(_: FaultSite) -> Iterator[None]:
    """All quantizers are calibrated, and off."""

    def switch_off(model: nn.Module) -> None:
        for quantizer in enabled(model):
            quantizer.disable()

    with after_quantizing(switch_off):
        yield


@fault("calibration never ends", Where.MODELOPT, "quantizers left in calibration mode")
def _calibrating(_: FaultSite) -> Iterator[None]:
    """One layer's quantizers stay in calibration mode: enabled, called, with an amax, and
    quantizing nothing.
    """

    def reopen(model: nn.Module) -> None:
        for quantizer in enabled(model, "layers.1.mlp.fc1.input_quantizer"):
            quantizer.disable_quant()
            quantizer.enable_calib()

    with after_quantizing(reopen):
        yield


@fault("quantizing switched off inside", Where.MODELOPT, "quantizers whose _if_quant stays False")
def _if_quant(_: FaultSite) -> Iterator[None]:
    """Every attention quantizer is enabled, called and calibrated, and returns its input."""

    def hollow(model: nn.Module) -> None:
        for quantizer in enabled(model, "bmm_quantizer"):
            quantizer._if_quant = False

    with after_quantizing(hollow):
        yield


@fault("two places share one quantizer", Where.MODELOPT, "tied modules that are wrapped once")
def _shared(_: FaultSite) -> Iterator[None]:
    """Query and key of each block pass one and the same quantizer."""

    def share(model: nn.Module) -> None:
        for module in model.modules():
            if hasattr(module, "k_bmm_quantizer"):
                module.k_bmm_quantizer = module.q_bmm_quantizer

    with after_quantizing(share):
        yield


@fault("auto-quantize leaves attention off", Where.MODELOPT, "auto_quantize (S9)")
def _no_attention(_: FaultSite) -> Iterator[None]:
    """All attention quantizers end up disabled although the formats enabled them."""

    def switch_off(model: nn.Module) -> None:
        for quantizer in enabled(model, "bmm_quantizer", "bmm2_output_quantizer"):
            quantizer.disable()

    with after_quantizing(switch_off):
        yield


@fault("folding switches input quantizers off", Where.MODELOPT, "class: folding does too much")
def _fold_all(_: FaultSite) -> Iterator[None]:
    """The folded model that accuracy is measured on quantizes weights only."""
    import modelopt.torch.quantization as mtq

    fold = mtq.fold_weight

    def wrong(model: nn.Module, *args: object, **kwargs: object) -> None:
        fold(model, *args, **kwargs)
        # The numerics suite folds a Linear that quantizes its weight alone.
        for name, quantizer in tensor_quantizers(model).items():
            if name.endswith("input_quantizer"):
                quantizer.disable()

    with replaced((mtq, "fold_weight", wrong)):
        yield


@fault("folding forgets to quantize", Where.MODELOPT, "class: folding does too little")
def _fold_nothing(_: FaultSite) -> Iterator[None]:
    """Folding turns weight quantizers off and leaves the weights as they are."""
    import modelopt.torch.quantization as mtq

    def wrong(model: nn.Module, *_args: object, **_kwargs: object) -> None:
        for quantizer in enabled(model, "weight_quantizer"):
            quantizer.disable()

    with replaced((mtq, "fold_weight", wrong)):
        yield


@fault(
    "SmoothQuant folded twice", Where.MODELOPT, "weights folded twice", recipe="int8-smoothquant"
)
def _smoothed_twice(_: FaultSite) -> Iterator[None]:
    """SmoothQuant's scale multiplies the weights twice, and the inputs once."""

    def again(model: nn.Module) -> None:
        for module in model.modules():
            scale = getattr(getattr(module, "input_quantizer", None), "_pre_quant_scale", None)
            if scale is not None:
                weight = module.get_parameter("weight")
                weight.data.copy_((weight.float() / scale.float().squeeze()).to(weight.dtype))

    with after_quantizing(again):
        yield


@fault(
    "SmoothQuant's scale lost",
    Where.MODELOPT,
    "a scale that is not restored",
    recipe="int8-smoothquant",
)
def _scale_lost(_: FaultSite) -> Iterator[None]:
    """One layer's weights are smoothed and its inputs are not."""

    def lose(model: nn.Module) -> None:
        for quantizer in enabled(model, "layers.0.mlp.fc1.input_quantizer"):
            if quantizer.pre_quant_scale is not None:
                quantizer._pre_quant_scale = torch.ones_like(quantizer._pre_quant_scale)

    with after_quantizing(lose):
        yield
