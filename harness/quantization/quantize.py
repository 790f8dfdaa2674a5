"""From a reference and a recipe to a quantized model: attention registration, calibration,
``mtq.quantize``.

The three steps have an order that ModelOpt does not enforce: the attention class must be registered
before the model is converted, and the calibration must drive both towers (S4, S7).  They are one
function here.
"""

from __future__ import annotations

import copy
import dataclasses
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from harness import (
    compat,  # noqa: F401  (before transformers)
    isolation,
)
from harness.errors import UsageError, one_line, ran_out_of_memory
from harness.models import families
from harness.models.halves import half_products
from harness.quantization import search, stored
from harness.quantization.attention import attention_registered
from harness.quantization.context import quiet
from harness.recipes import config_form
from harness.recipes.loading import SEARCHED, Recipe

ForwardLoop = Callable[[nn.Module], None]
Batch = Mapping[str, Tensor]


class QuantizationError(Exception):
    """ModelOpt raised because of the recipe; the message is ModelOpt's own, on one line.

    Args:
        recipe: what was applied.
        error: what ModelOpt raised.
        in_forward: whether the quantized model raised in its forward, be it in calibration or
            later, instead of ModelOpt while it converted the model.
    """

    def __init__(self, recipe: Recipe, error: Exception, *, in_forward: bool = False) -> None:
        super().__init__(one_line(error))
        self.recipe = recipe
        self.in_forward = in_forward

    @property
    def headline(self) -> str:
        """What failed, and why, in one sentence."""
        if self.in_forward:
            return f"the model that recipe {self.recipe.name} quantizes does not run: {self}"
        return f"ModelOpt refused recipe {self.recipe.name}: {self}"


@contextmanager
def blamed_on(recipe: Recipe) -> Iterator[None]:
    """Turn what is raised within the block into a :class:`QuantizationError` if *recipe* is the
    cause of it.

    The gate's own errors, and whatever came out of the calibration data, pass through as they are.

    Raises:
        QuantizationError: ModelOpt refused the recipe, or the quantized model raised in its
            forward.
        UsageError: there was not enough memory.
    """
    try:
        yield
    except (UsageError, QuantizationError):
        raise
    except Exception as error:
        causes = list(_chain(error))
        for cause in causes:
            if isinstance(cause, UsageError) or _came_through(cause, Drive.__iter__):
                raise cause from cause.__cause__
        if any(map(ran_out_of_memory, causes)):
            what = f"out of memory while the model was quantized ({one_line(error)})"
            fix = "Give the process more memory, or fewer rows per forward: --batch-size N."
            raise UsageError(f"recipe {recipe.name}", what, fix) from error
        in_forward = any(_came_through(cause, families.encode) for cause in causes)
        raise QuantizationError(recipe, error, in_forward=in_forward) from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield *error* and the errors from which it was raised."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _came_through(error: BaseException, function: Callable[..., Any]) -> bool:
    """Whether *error* was raised within a call of *function*."""
    return any(
        frame.f_code is function.__code__ for frame, _ in traceback.walk_tb(error.__traceback__)
    )


@dataclasses.dataclass(frozen=True)
class Drive:
    """A ModelOpt ``forward_loop`` that feeds each batch (pixel_values and input_ids) to every
    tower.
    """

    batches: Iterable[Batch]

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches; what is raised here is caused by the data."""
        yield from self.batches

    def __call__(self, model: nn.Module) -> None:
        """Run *model* over all batches."""
        with torch.no_grad(), half_products():
            for batch in self:
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
        forward_loop: drives every tower over the calibration data, or None (nothing is calibrated
            but weights).  A recipe that searches for formats needs the one of
            :func:`forward_loop_over`, whose batches it scores on.
        attention: one of ATTENTIONS.

    Raises:
        QuantizationError: ModelOpt refused the recipe on this model, or its forward raised during
            calibration.
        UsageError: a function of torch was replaced before, or there was not enough memory; and
            whatever the calibration data raise.
    """
    isolation.check()
    config = copy.deepcopy(recipe.quant_cfg)
    if recipe.kind != SEARCHED:
        config["quant_cfg"] = config_form.accepted(config["quant_cfg"], recipe.source)
    with blamed_on(recipe):
        quantized = copy.deepcopy(model)
        with quiet(), attention_registered(quantized, attention):
            result = _applied(quantized, recipe, config, forward_loop)
    return result.eval().requires_grad_(False)


def _applied(
    model: nn.Module, recipe: Recipe, config: dict[str, Any], forward_loop: ForwardLoop | None
) -> nn.Module:
    """*model* quantized in place, by the recipe's formats (*config*) or by those that a search
    finds.
    """
    import modelopt.torch.quantization as mtq

    if recipe.kind == SEARCHED:
        if not isinstance(forward_loop, Drive):
            raise ValueError(
                "a search for formats needs calibration batches: pass forward_loop_over(batches)"
            )
        return search.run(model, recipe, forward_loop)
    result: nn.Module = mtq.quantize(model, config, forward_loop=forward_loop)
    return result


def insert(model: nn.Module, attention: str = "diffusers") -> nn.Module:
    """A copy of *model* with every quantizer that ModelOpt has a place for, all of them off."""
    import modelopt.torch.quantization as mtq

    converted = copy.deepcopy(model)
    with quiet(), attention_registered(converted, attention):
        everything_off = config_form.accepted(
            [{"quantizer_name": "*", "enable": False}], "everything off"
        )
        result: nn.Module = mtq.quantize(
            converted, {"quant_cfg": everything_off, "algorithm": None}, forward_loop=None
        )
        return result


def structure(model: nn.Module, recipe: Recipe, attention: str = "diffusers") -> nn.Module:
    """*recipe*'s quantizers on a copy of *model* without calibration: what a model on the meta
    device can show.

    Raises:
        QuantizationError: ModelOpt refused the recipe on this model.
    """
    from modelopt.torch.quantization.nn import TensorQuantizer

    if recipe.kind == SEARCHED:
        raise QuantizationError(
            recipe, ValueError("what a search chooses depends on weights and data")
        )
    bare = dataclasses.replace(recipe, quant_cfg=dict(recipe.quant_cfg) | {"algorithm": None})
    quantized = quantize(model, bare, None, attention)
    for module in quantized.modules():
        if isinstance(module, TensorQuantizer):
            # Enabled and called, but computing nothing: INT8's range check asks a meta tensor for
            # its value.
            module.disable_quant()
    return quantized


def fold(model: nn.Module) -> nn.Module:
    """A copy of *model* with its weights quantized in place and their quantizers off: equal bits,
    less work.

    Not so with SVDQuant: ModelOpt adds the low-rank branch to the weight there and rounds the sum
    to the weight's dtype.  Such a copy computes something else, so it is left unfolded.  Nor with
    double quantization, which is stored in another format than it fake-quantizes: the copy has the
    stored numbers (:mod:`harness.quantization.stored`).
    """
    import modelopt.torch.quantization as mtq

    folded = copy.deepcopy(model)
    if any(getattr(module, "svdquant_lora_a", None) is not None for module in folded.modules()):
        return folded
    with quiet():
        stored.fold(folded)
        mtq.fold_weight(folded)
    return folded
