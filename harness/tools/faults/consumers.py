"""Faults that no pooled embedding shows: wrong tokens that a consumer reads, with the right class
or end token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TypeVar

import torch
from torch import Tensor, nn

from harness.models import families
from harness.tools.faults.catalogue import FaultSite, Where, after_quantizing, fault
from harness.tools.faults.modelopt import Attention, _around_sdpa

#: What an encoder layer returns: tokens, alone or first.
Output = TypeVar("Output", Tensor, tuple[Tensor, ...])


def _with_tokens(output: Output, change: Callable[[Tensor], Tensor]) -> Output:
    """*output* with its tokens changed."""
    if isinstance(output, tuple):
        return (change(output[0]), *output[1:])
    return change(output)


def _on_layer(
    tower: str, layer: int, change: Callable[[Tensor], Tensor]
) -> AbstractContextManager[None]:
    """What one encoder layer of each quantized model returns goes through *change*."""

    def plant(model: nn.Module) -> None:
        def after(_module: nn.Module, _arguments: object, output: Output) -> Output:
            return _with_tokens(output, change)

        families.layers_of(model, tower)[layer].register_forward_hook(after)

    return after_quantizing(plant)


@fault(
    "patch tokens wrong",
    Where.MODELOPT,
    "class: a rewritten last layer that computes the class token alone",
)
def _patches(_: FaultSite) -> Iterator[None]:
    """Each patch of the last layer is its neighbour's; the class token is right."""

    def shifted(tokens: Tensor) -> Tensor:
        return torch.cat([tokens[:, :1], tokens[:, 1:].roll(1, dims=1)], dim=1)

    with _on_layer("vision", -1, shifted):
        yield


@fault(
    "padding positions wrong",
    Where.MODELOPT,
    "class: positions after the end token left out to save work",
)
def _padding(_: FaultSite) -> Iterator[None]:
    """What the last layer gives after the end token is what it gives at the end token."""

    def plant(model: nn.Module) -> None:
        end = families.sizes(model).end
        ends: list[Tensor] = []

        def see(_module: nn.Module, _arguments: object, arguments: dict[str, Tensor]) -> None:
            ends[:] = [(arguments["input_ids"] == end).int().argmax(dim=1)]

        def held(tokens: Tensor) -> Tensor:
            places = torch.arange(tokens.shape[1], device=tokens.device)
            sources = torch.minimum(places[None], ends[0][:, None])
            return tokens.gather(1, sources[..., None].expand_as(tokens))

        def after(_module: nn.Module, _arguments: object, output: Output) -> Output:
            return _with_tokens(output, held)

        tower = model.get_submodule("text_model")
        tower.register_forward_pre_hook(see, with_kwargs=True)
        families.layers_of(model, "text")[-1].register_forward_hook(after)

    with after_quantizing(plant):
        yield


@fault(
    "layer before the last wrong and compensated",
    Where.MODELOPT,
    "class: an order of channels that is folded into the next layer",
)
def _compensated(_: FaultSite) -> Iterator[None]:
    """The layer before the last returns its channels in another order, and the last layer puts them
    back.
    """

    def plant(model: nn.Module) -> None:
        def exchanged(_module: nn.Module, _arguments: object, output: Output) -> Output:
            return _with_tokens(output, _swapped)

        def put_back(_module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (_swapped(arguments[0]), *arguments[1:])

        for tower in families.of(model).towers:
            *_, before, last = families.layers_of(model, tower)
            before.register_forward_hook(exchanged)
            last.register_forward_pre_hook(put_back)

    with after_quantizing(plant):
        yield


def _swapped(tokens: Tensor) -> Tensor:
    """The two halves of the channels exchanged; twice is nothing."""
    return tokens.roll(tokens.shape[-1] // 2, dims=-1)


@fault(
    "mask of padding lost",
    Where.MODELOPT,
    "a rewritten attention that takes every mask for the causal one",
)
def _mask(site: FaultSite) -> Iterator[None]:
    """The quantized text tower sees the words, and the padding that its mask hides."""
    site.options["consumers"] = ("stable-cascade",)

    def causal(
        m: nn.Module,
        original: Attention,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *_: object,
        **kw: object,
    ) -> Tensor:
        mask = kw.pop("attn_mask", None)
        if mask is not None:
            kw["is_causal"] = True
        return original(m, q, k, v, **kw)

    with _around_sdpa(causal):
        yield
