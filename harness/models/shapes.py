"""Fast forwards on the meta device, where only shapes are computed.

torch derives the shape of a linear layer's, a normalisation's or an attention's output there by
running its Python decomposition: hundreds of small operations, which are half of what the structure
of a published architecture costs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def _linear(x: Tensor, weight: Tensor, *_: object, **__: object) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _alike(x: Tensor, *_: object, **__: object) -> Tensor:
    return x.new_empty(x.shape)


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object) -> Tensor:
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


#: What an output's shape and dtype are, from the inputs'.
_RULES: dict[Any, Callable[..., Tensor]] = {
    F.linear: _linear,
    F.layer_norm: _alike,
    torch.layer_norm: _alike,
    F.scaled_dot_product_attention: _attention,
}


class ShapesOnly(TorchFunctionMode):
    """Within the block the layers that _RULES names return meta tensors of the right shape without
    computing.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Return *func* of *args*, or an empty tensor of its result's shape."""
        rule = _RULES.get(func)
        if rule is not None and args[0].is_meta:
            return rule(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))
