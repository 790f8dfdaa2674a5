"""The largest magnitudes that reach each quantizer's place while the calibration data run through
the reference.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from harness.models import families
from harness.models.halves import half_products
from harness.models.hooks import before_each
from harness.quantization.maps import tensor_quantizers

#: Dimensions of a tensor that keep a range each; empty: one range for all.
Axes = tuple[int, ...]


class Magnitudes:
    """The largest magnitudes that reach each quantizer's place while *batches* run through *plain*,
    computed once.

    Under max calibration nothing but the data, the reference and the place decides them, so that
    one pass serves every recipe on a model.  What one recipe's model computes with its quantizers
    off is :func:`with_reference`'s matter.

    Args:
        plain: the reference with every quantizer inserted and off
            (:func:`harness.quantization.quantize.insert`).
        batches: of the calibration, as :func:`harness.quantization.quantize.forward_loop_over`
            takes them.
    """

    def __init__(self, plain: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> None:
        self._plain, self._batches = plain, batches
        self._weights: dict[str, Tensor] = {}
        self._seen: dict[tuple[str, Axes], Tensor] = {}

    def along(self, axes: Mapping[str, Axes]) -> dict[str, Tensor]:
        """Return the largest magnitude at each place that was reached, along the dimensions kept in
        *axes*: float32, by name.

        *axes* holds names of quantizers.  The parts of a sequential quantizer
        (``weight_quantizer.0``) share a place.
        """
        if not self._seen:
            self._watch({(name, ()) for name in tensor_quantizers(self._plain)})
        wanted = {name: (place(name), own_axes) for name, own_axes in axes.items()}
        reached = {at for at, _ in self._seen}
        missing = {key for key in wanted.values() if key[0] in reached} - set(self._seen)
        if missing:
            self._watch(missing)
        weights = {
            name: _largest(self._weights[at], own_axes)
            for name, (at, own_axes) in wanted.items()
            if at in self._weights
        }
        return weights | {
            name: self._seen[key] for name, key in wanted.items() if key in self._seen
        }

    @torch.no_grad()
    def _watch(self, wanted: Iterable[tuple[str, Axes]]) -> None:
        def see(key: tuple[str, Axes], _: nn.Module, args: tuple[Any, ...]) -> None:
            name, own_axes = key
            if isinstance(args[0], nn.Parameter):
                self._weights[name] = args[0].detach()  # the same in every batch
                return
            fresh, known = _largest(args[0].detach(), own_axes), self._seen.get(key)
            self._seen[key] = fresh if known is None else torch.maximum(known, fresh)

        places = tensor_quantizers(self._plain)
        with half_products(), before_each({key: places[key[0]] for key in wanted}, see):
            for batch in self._batches:
                families.forward(self._plain, batch)


def place(name: str) -> str:
    """Return a quantizer's name without its number in a sequential quantizer."""
    return re.sub(r"\.\d+$", "", name)


def _largest(x: Tensor, own_axes: Axes) -> Tensor:
    """Largest magnitude of *x* along the dimensions *own_axes*: float32, on the CPU."""
    at = {axis % x.dim() for axis in own_axes}
    reduced = [d for d in range(x.dim()) if d not in at]
    return (x.abs().amax(reduced) if reduced else x.abs()).float().cpu()
