"""From a reference and a recipe to a quantized model: attention registration, calibration, ``mtq.quantize``.

The three steps have an order that ModelOpt does not enforce: the attention class must be registered before the
model is converted, and the calibration must drive both towers (S4, S7).  They are one function here.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib
import io
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness import (
    compat,  # noqa: F401  (before transformers)
    config_form,
    families,
)
from harness.halves import half_products
from harness.recipes import SEARCHED, Recipe

#: which attention class of ModelOpt takes the place of the model's own.
ATTENTIONS = ("diffusers", "modelopt")

ForwardLoop = Callable[[nn.Module], None]
Batch = Mapping[str, Tensor]


class QuantizationError(Exception):
    """ModelOpt raised while applying the recipe; the message is ModelOpt's own, on one line."""

    def __init__(self, recipe: Recipe, error: Exception) -> None:
        super().__init__(f"{type(error).__name__}: {' '.join(str(error).split())}")
        self.recipe = recipe


@contextmanager
def attention_registered(model: nn.Module, attention: str) -> Iterator[None]:
    """Have ModelOpt convert *model*'s attention blocks to the class that *attention* names, within the block.

    ``diffusers``: q, k, v, softmax and bmm2_output quantizers around ``scaled_dot_product_attention``, which the
    published recipe means.  ``modelopt``: what ModelOpt registers by itself, q, k, v and p without an output
    quantizer.  The registry is global to the process, so it is put back on leaving.
    """
    import modelopt.torch.quantization as mtq
    from modelopt.torch.quantization.nn import QuantModuleRegistry

    if attention not in ATTENTIONS:
        raise ValueError(f"attention is {attention!r}, not one of {', '.join(ATTENTIONS)}")
    classes = {type(m) for m in model.modules() if type(m).__name__ in families.of(model).attention_classes}
    before = {cls: _registered(QuantModuleRegistry, cls) for cls in classes}
    try:
        for cls in classes:
            if before[cls] is not None:
                mtq.unregister(cls)
            if attention == "diffusers":
                mtq.register(cls, _diffusers_attention())
        yield
    finally:
        for cls in classes:
            if _registered(QuantModuleRegistry, cls) is not None:
                mtq.unregister(cls)


def _registered(registry: Any, cls: type[nn.Module]) -> Any:
    return registry.get(cls)


def diffusers_plugin() -> Any:
    """ModelOpt's plugin module for diffusers, which holds the attention class that the published recipe means."""
    plugins = "modelopt.torch.quantization.plugins"
    try:
        return importlib.import_module(f"{plugins}.diffusion.diffusers")
    except ImportError:  # its place up to ModelOpt 0.42, where the package's attribute of that name is the library
        return importlib.import_module(f"{plugins}.diffusers")


def _diffusers_attention() -> Any:
    return diffusers_plugin()._QuantAttention


@dataclasses.dataclass(frozen=True)
class Drive:
    """A ModelOpt ``forward_loop`` that feeds each batch (pixel_values and input_ids) to every tower."""

    batches: Iterable[Batch]

    def __call__(self, model: nn.Module) -> None:
        """Run *model* over all batches."""
        with torch.no_grad(), half_products():
            for batch in self.batches:
                families.forward(model, batch)


def forward_loop_over(batches: Iterable[Batch]) -> Drive:
    """The ``forward_loop`` over *batches*, which must iterate as often as they are asked to."""
    return Drive(batches)


def quantize(
    model: nn.Module, recipe: Recipe, forward_loop: ForwardLoop | None, attention: str = "diffusers"
) -> nn.Module:
    """A quantized and calibrated copy of *model*; *model* itself stays as it is.

    Args:
        model: the reference's model, unquantized.
        recipe: what to quantize and how.
        forward_loop: drives every tower over the calibration data, or None (nothing is calibrated but weights).  A
            recipe that searches for formats needs the one of :func:`forward_loop_over`, whose batches it scores on.
        attention: one of ATTENTIONS.

    Raises:
        QuantizationError: ModelOpt refused the recipe on this model.
    """
    quantized = copy.deepcopy(model)
    config = copy.deepcopy(recipe.quant_cfg)
    if recipe.kind != SEARCHED:
        config["quant_cfg"] = config_form.accepted(config["quant_cfg"], recipe.source)
    with attention_registered(quantized, attention), quiet(), torch_functions_kept():
        try:
            made = _applied(quantized, recipe, config, forward_loop)
        except Exception as error:
            raise QuantizationError(recipe, error) from error
    return made.eval().requires_grad_(False)


def _applied(model: nn.Module, recipe: Recipe, config: dict[str, Any], forward_loop: ForwardLoop | None) -> nn.Module:
    """*model* quantized in place, by the recipe's formats (*config*) or by those that a search finds."""
    import modelopt.torch.quantization as mtq

    if recipe.kind == SEARCHED:
        from harness import search

        if not isinstance(forward_loop, Drive):
            raise ValueError("a search for formats needs calibration batches: pass forward_loop_over(batches)")
        return search.run(model, recipe, forward_loop.batches)
    made: nn.Module = mtq.quantize(model, config, forward_loop=forward_loop)
    return made


def insert(model: nn.Module, attention: str = "diffusers") -> nn.Module:
    """A copy of *model* with every quantizer that ModelOpt has a place for, all of them off."""
    import modelopt.torch.quantization as mtq

    converted = copy.deepcopy(model)
    with attention_registered(converted, attention), quiet():
        everything_off = config_form.accepted([{"quantizer_name": "*", "enable": False}], "everything off")
        found: nn.Module = mtq.quantize(converted, {"quant_cfg": everything_off, "algorithm": None}, forward_loop=None)
        return found


def structure(model: nn.Module, recipe: Recipe, attention: str = "diffusers") -> nn.Module:
    """*recipe*'s quantizers on a copy of *model* without calibration: what a model on the meta device can show.

    Raises:
        QuantizationError: ModelOpt refused the recipe on this model.
    """
    from modelopt.torch.quantization.nn import TensorQuantizer

    if recipe.kind == SEARCHED:
        raise QuantizationError(recipe, ValueError("what a search chooses hangs on weights and data"))
    bare = dataclasses.replace(recipe, quant_cfg=dict(recipe.quant_cfg) | {"algorithm": None})
    made = quantize(model, bare, None, attention)
    for module in made.modules():
        if isinstance(module, TensorQuantizer):
            # Enabled and called, but computing nothing: INT8's range check asks a meta tensor for its value.
            module.disable_quant()
    return made


#: What ModelOpt's quantized modules swap for the length of their forward.
_SWAPPED = ((torch, "bmm"), (torch, "baddbmm"), (torch, "matmul"), (F, "scaled_dot_product_attention"), (F, "softmax"))


@contextmanager
def torch_functions_kept() -> Iterator[None]:
    """Put back the functions of torch that ModelOpt swaps, on leaving the block.

    A quantized attention's forward sets ``scaled_dot_product_attention`` to its own and does not put it back if it
    raises (ModelOpt 0.47, ``replace_function``).  Every model of the process then attends through that block's
    quantizers, the reference included.
    """
    before = [(module, name, getattr(module, name)) for module, name in _SWAPPED]
    try:
        yield
    finally:
        for module, name, function in before:
            setattr(module, name, function)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep ModelOpt's prints and warnings out of the test output: what they could tell, the suites check."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def fold(model: nn.Module) -> nn.Module:
    """A copy of *model* with its weights quantized in place and their quantizers off: equal bits, less work.

    Not so with SVDQuant: ModelOpt adds the low-rank branch to the weight there and rounds the sum to the weight's
    dtype.  Such a copy computes something else, so it is left unfolded.  Nor with double quantization, which is stored
    in another format than it fake-quantizes: the copy has the stored numbers (:mod:`harness.stored`).
    """
    import modelopt.torch.quantization as mtq

    from harness import stored

    folded = copy.deepcopy(model)
    if any(getattr(module, "svdquant_lora_a", None) is not None for module in folded.modules()):
        return folded
    with quiet():
        stored.fold(folded)
        mtq.fold_weight(folded)
    return folded


def in_dtype(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of *model* on the CPU in a float *dtype*, SVDQuant's low-rank branch with it.

    ModelOpt 0.47 keeps the branch of a block quantizer in plain attributes, which ``Module.to`` passes by: the first
    forward in another dtype raises.
    """
    made = copy.deepcopy(model).cpu().to(dtype).eval()
    for module in made.modules():
        for name in ("svdquant_lora_a", "svdquant_lora_b"):
            if isinstance(getattr(module, name, None), Tensor):
                setattr(module, name, getattr(module, name).to(dtype))
    return made
