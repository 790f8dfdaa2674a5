"""Calibrated ranges that are not what the data give: amax changed afterwards, or a calibration on
other things.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from harness.tools.faults.catalogue import (
    FaultSite,
    Where,
    add,
    after_quantizing,
    enabled,
    fault,
    replaced,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ONE_INPUT = "vision_model.encoder.layers.1.mlp.fc1.input_quantizer"
ONE_WEIGHT = "text_model.encoder.layers.1.mlp.fc2.weight_quantizer"
ONE_KEY = "vision_model.encoder.layers.0.self_attn.k_bmm_quantizer"


def _amax(
    change: Callable[[Tensor], Tensor], *endings: str
) -> Callable[[FaultSite], AbstractContextManager[None]]:
    """*change* every calibrated amax of the quantizers whose names end so, behind the setter's
    checks.
    """

    def plant(_: FaultSite) -> AbstractContextManager[None]:
        def edit(model: nn.Module) -> None:
            for quantizer in enabled(model, *endings):
                if getattr(quantizer, "_amax", None) is not None and not quantizer._amax.is_meta:
                    quantizer._amax.data = change(quantizer._amax.data)

        return after_quantizing(edit)

    return plant


def _filled(value: float) -> Callable[[Tensor], Tensor]:
    return lambda amax: torch.full_like(amax, value)


def _first_channel(value: float) -> Callable[[Tensor], Tensor]:
    def change(amax: Tensor) -> Tensor:
        amax = amax.clone()
        amax.flatten()[0] = value
        return amax

    return change


for _name, _clean, _what, _change, _ending in (
    (
        "amax x16 in one input",
        "fp8",
        "one Linear's input range is 16 times too wide",
        lambda a: a * 16,
        ONE_INPUT,
    ),
    (
        "amax x16 everywhere",
        "fp8",
        "every range is 16 times too wide (FP8's SNR is blind to it)",
        lambda a: a * 16,
        "",
    ),
    (
        "amax x2 in one key",
        "fp8",
        "one key's range is twice too wide: a power of two, nearly invisible in FP8",
        lambda a: a * 2,
        ONE_KEY,
    ),
    (
        "amax of one weight is stale",
        "fp8",
        "one weight's range is that of weights before an update: 3 % less",
        lambda a: a * 0.97,
        ONE_WEIGHT,
    ),
    (
        "amax one step off",
        "fp8",
        "one input's range is off by one unit in the last place of FP16",
        lambda a: (a.half().view(torch.int16) + 1).view(torch.float16).to(a.dtype),
        ONE_INPUT,
    ),
    (
        "amax / 4 in one input",
        "fp8",
        "one Linear's input range is four times too narrow and saturates",
        lambda a: a / 4,
        ONE_INPUT,
    ),
    ("amax zero", "fp8", "one input's range is zero", _filled(0.0), ONE_INPUT),
    ("amax NaN", "fp8", "one input's range is NaN", _filled(torch.nan), ONE_INPUT),
    ("amax infinite", "fp8", "one weight's range is infinite", _filled(torch.inf), ONE_WEIGHT),
    ("amax negative", "fp8", "one key's range is negative", lambda a: -a, ONE_KEY),
    (
        "amax zero in one channel",
        "int8",
        "one channel of one weight has range zero",
        _first_channel(0.0),
        ONE_WEIGHT,
    ),
    (
        "channels shifted by one",
        "int8",
        "a weight's scales belong to the neighbouring channels",
        lambda a: a.roll(1, 0),
        ONE_WEIGHT,
    ),
):
    add(
        _name,
        Where.MODELOPT,
        "class: stale, scaled or unusable amax",
        _what,
        _amax(_change, _ending),
        _clean,
    )


@fault("two quantizers share one amax", Where.MODELOPT, "class: two quantizers sharing one amax")
def _one_amax(_: FaultSite) -> Iterator[None]:
    """Key and value of one block have the query's range."""

    def share(model: nn.Module) -> None:
        block = "vision_model.encoder.layers.2.self_attn"
        query, key, value = enabled(model, *(f"{block}.{x}_bmm_quantizer" for x in "qkv"))
        for other in (key, value):
            if getattr(other, "_amax", None) is not None:
                other._amax.data = query._amax.data

    with after_quantizing(share):
        yield


# -- the calibration itself ------------------------------------------------------------------------

Batches = Iterable[dict[str, Tensor]]


def _calibrated_on(change: Callable[[Batches], Batches]) -> AbstractContextManager[None]:
    """The calibration's forward loop runs over what *change* makes of its batches."""
    from harness.quantization import quantize

    original = quantize.forward_loop_over

    class Changed:
        def __init__(self, batches: Batches) -> None:
            self._batches = batches

        def __iter__(self) -> Iterator[dict[str, Tensor]]:
            return iter(change(self._batches))

    return replaced((quantize, "forward_loop_over", lambda batches: original(Changed(batches))))


@fault(
    "image normalisation wrong in calibration", Where.CALIBRATION, "ToTensor() without Normalize()"
)
def _not_normalised(_: FaultSite) -> Iterator[None]:
    """Calibration sees pixels from 0 to 1, evaluation normalised ones."""

    def change(batches: Batches) -> Batches:
        for batch in batches:
            pixels = batch["pixel_values"]
            low, high = pixels.amin((0, 2, 3), True), pixels.amax((0, 2, 3), True)
            yield batch | {"pixel_values": (pixels - low) / (high - low)}

    with _calibrated_on(change):
        yield


@fault("colours exchanged in calibration", Where.CALIBRATION, "BGR for RGB (OpenCV's order)")
def _bgr(_: FaultSite) -> Iterator[None]:
    """Calibration sees pictures with red and blue exchanged."""
    with _calibrated_on(
        lambda batches: (b | {"pixel_values": b["pixel_values"].flip(1)} for b in batches)
    ):
        yield


@fault(
    "calibration stops after a batch",
    Where.CALIBRATION,
    "a generator that is empty from the second pass on",
)
def _one_batch(_: FaultSite) -> Iterator[None]:
    """Only the first batch is seen, whatever size was asked for."""
    import itertools

    with _calibrated_on(lambda batches: itertools.islice(iter(batches), 1)):
        yield


@fault("calibration on noise", Where.CALIBRATION, "dummy inputs left in a script")
def _noise(_: FaultSite) -> Iterator[None]:
    """Pictures are Gaussian noise."""

    def change(batches: Batches) -> Batches:
        generator = torch.Generator().manual_seed(0)
        for batch in batches:
            pixels = batch["pixel_values"]
            yield batch | {
                "pixel_values": torch.randn(pixels.shape, generator=generator).to(pixels)
            }

    with _calibrated_on(change):
        yield


@fault("calibration on empty captions", Where.CALIBRATION, "captions that were not found")
def _no_words(_: FaultSite) -> Iterator[None]:
    """Every caption consists of the same padding."""
    with _calibrated_on(
        lambda bs: (b | {"input_ids": b["input_ids"][:, -1:].expand_as(b["input_ids"])} for b in bs)
    ):
        yield


@fault("text tower uncalibrated", Where.CALIBRATION, "an image-only calibration loop (S7)")
def _images_only(_: FaultSite) -> Iterator[None]:
    """Only pictures run through the model, so that the text tower's inputs run dynamic."""
    with _driven(lambda model, batch: model.get_image_features(pixel_values=batch["pixel_values"])):
        yield


@fault("vision tower uncalibrated", Where.CALIBRATION, "a text-only calibration loop (S7)")
def _words_only(_: FaultSite) -> Iterator[None]:
    """Only captions run through the model."""
    with _driven(lambda model, batch: model.get_text_features(input_ids=batch["input_ids"])):
        yield


@fault("no calibration at all", Where.CALIBRATION, "forward_loop=None (S7)")
def _nothing(_: FaultSite) -> Iterator[None]:
    """The loop runs nothing, and every input quantizer stays dynamic."""
    with _driven(lambda model, batch: None):
        yield


def _driven(
    step: Callable[[PreTrainedModel, dict[str, Tensor]], object],
) -> AbstractContextManager[None]:
    from harness.quantization import quantize

    def over(batches: Batches) -> Callable[[nn.Module], None]:
        def loop(model: nn.Module) -> None:
            with torch.no_grad():
                for batch in batches:
                    step(model, batch)

        return loop

    return replaced((quantize, "forward_loop_over", over))


@fault(
    "other calibration data",
    Where.CALIBRATION,
    "class: calibration data changed",
    rebuilt=("calibration",),
)
def _other_data(_: FaultSite) -> Iterator[None]:
    """Fewer pairs than the record was measured with are loaded."""
    from harness.data import calibration

    load = calibration.load
    with replaced(
        (calibration, "load", lambda source, reference, size: load(source, reference, size // 2))
    ):
        yield
