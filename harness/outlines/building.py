"""Architectures of the table on the meta device, with as few layers as distinguish them.

A model of 80 layers of one kind is built with the first, one in the middle and the last; a
quantizer of the middle one stands for those of 78.  Routed experts of a layer are built and counted
alike.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from harness import (
    compat,  # noqa: F401  (before transformers)
    isolation,
)
from harness.outlines.names import CONTRASTIVE
from harness.outlines.table import Row, Stack
from harness.quantization.attention import attention_registered
from harness.quantization.context import quiet

#: Routed experts of a layer that are built: the first, one in the middle and the last.
EXPERTS = 3
_EXPERT = re.compile(r"(?<=\.experts)(\.[^.]*?)?\.(\d+)(?=\.|$)")


@dataclass(frozen=True)
class Built:
    """A model on the meta device, and which layers of the published one each of its layers is."""

    model: nn.Module
    layers: dict[str, list[list[int]]]
    experts: int

    def published(self, name: str) -> Iterator[tuple[str, int]]:
        """Yield the names in the published model that *name* of the built one stands for, and how
        many modules each of them is.
        """
        for path, numbers in self.layers.items():
            if name.startswith(f"{path}."):
                number, dot, rest = name[len(path) + 1 :].partition(".")
                for item in numbers[int(number)]:
                    yield self._expert(f"{path}.{item}{dot}{rest}")
                return
        yield self._expert(name)

    def _expert(self, name: str) -> tuple[str, int]:
        """*name* with the published number of its expert, and how many experts it stands for."""
        results = _EXPERT.search(name)
        if results is None or self.experts <= EXPERTS:
            return name, 1
        number = int(results[2])
        if number == EXPERTS - 1:
            return f"{name[: results.start(2)]}{self.experts - 1}{name[results.end(2) :]}", 1
        return name, self.experts - EXPERTS + 1 if number == 1 else 1


def build(row: Row) -> Built:
    """The model of *row*, without weights and with few layers.

    Raises:
        AttributeError, TypeError, ValueError: the installed transformers cannot build it.
    """
    import transformers

    with _silent():
        config = transformers.CONFIG_MAPPING[row.family](**copy.deepcopy(row.sizes))
    layers: dict[str, list[list[int]]] = {}
    for stack in row.stacks:
        groups = _reduce(_section(config, stack.section), stack)
        layers |= dict.fromkeys((stack.path, *stack.also), groups)
    experts = _few_experts(config, row)
    with torch.device("meta"), isolation.process_kept(), _silent():
        model: nn.Module = getattr(transformers, row.model_class)(config)
    for path, numbers in layers.items():
        if len(model.get_submodule(path)) != len(numbers):  # type: ignore[arg-type]
            raise ValueError(f"{row.name}: {path} does not have the layers that were asked for")
    return Built(model.eval().requires_grad_(False), layers, experts)


def converted(row: Row, attention: str = "diffusers") -> Built:
    """As :func:`build`, with every quantizer that ModelOpt has a place for, all of them off.

    Args:
        row: what is built.
        attention: the class that attention blocks are converted to, in the families whose attention
            ``--attention`` chooses; others have ModelOpt's own.
    """
    import modelopt.torch.quantization as mtq

    built = build(row)
    off = {"quant_cfg": [{"quantizer_name": "*", "enable": False}], "algorithm": None}
    chosen = (
        attention_registered(built.model, attention)
        if row.family in CONTRASTIVE
        else isolation.registrations_kept()
    )
    with quiet(), chosen:
        mtq.quantize(built.model, off, forward_loop=None)
    return built


@contextmanager
def _silent() -> Iterator[None]:
    """Keep the library from saying which kernels a forward, of which there is none, would lack."""
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _section(config: Any, name: str) -> Any:
    return getattr(config, name) if name else config


def _few_experts(config: Any, row: Row) -> int:
    """Leave a few routed experts in *config*; return how many there are in the published model."""
    if row.experts is None:
        return 0
    section, name = _section(config, row.experts[0]), row.experts[1]
    experts = int(getattr(section, name))
    setattr(section, name, min(EXPERTS, experts))
    return experts


def _reduce(section: Any, stack: Stack) -> list[list[int]]:
    """Leave the first layer, the last and one of each kind in a part of the configuration.

    Returns:
        For each layer that is left the numbers of the published layers that it stands for.
    """
    lists = {name: list(getattr(section, name)) for name in stack.lists}
    count = getattr(section, stack.count) if stack.count else len(next(iter(lists.values())))
    indices = {name: set(getattr(section, name) or ()) for name in stack.indices}
    first = getattr(section, stack.first) if stack.first else 0
    kinds: list[Hashable] = [
        (
            tuple(values[layer] for values in lists.values()),
            tuple(layer in those for those in indices.values()),
            layer < first,
        )
        for layer in range(count)
    ]
    groups = _groups(kinds)
    chosen = [group[0] for group in groups]
    if stack.count:
        setattr(section, stack.count, len(chosen))
    for name, values in lists.items():
        setattr(section, name, [values[layer] for layer in chosen])
    for name, those in indices.items():
        setattr(section, name, [n for n, layer in enumerate(chosen) if layer in those])
    if stack.first:
        setattr(section, stack.first, sum(layer < first for layer in chosen))
    return groups


def _groups(kinds: Sequence[Hashable]) -> list[list[int]]:
    """Layers that one of them stands for, in order: the first alone, the last alone, and the others
    by kind.
    """
    between: dict[Hashable, list[int]] = {}
    for layer in range(1, len(kinds) - 1):
        between.setdefault(kinds[layer], []).append(layer)
    groups = [[0], *between.values()]
    return groups if len(kinds) == 1 else [*groups, [len(kinds) - 1]]
