"""Pictures and prompts that several tasks share are embedded once.

Sound because an embedding depends on its picture or prompt alone and not on its batch (see
:mod:`harness.data.inputs`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Known:
    """What one model made of the pictures (by digest) and prompts (by token ids) it has seen: rows
    (d,) each.
    """

    pictures: dict[bytes, Tensor] = field(default_factory=dict)
    prompts: dict[bytes, Tensor] = field(default_factory=dict)


def once(
    known: dict[bytes, Tensor], names: Sequence[bytes], embed: Callable[[list[int]], Tensor]
) -> Tensor:
    """The rows of *names*, (n, d); those that are not *known* yet are embedded, each once, and
    known from then on.

    Args:
        known: rows by name; filled.
        names: of n pictures or prompts; equal names stand for equal ones.
        embed: rows of the ones at some positions of *names*, in their order.
    """
    fresh: dict[bytes, int] = {}
    for position, name in enumerate(names):
        if name not in known:
            fresh.setdefault(name, position)
    if fresh:
        known.update(zip(fresh, embed(list(fresh.values())), strict=True))
    return torch.stack([known[name] for name in names])
