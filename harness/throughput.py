"""What a forward costs: pytest-benchmark around one tower, with the facts that make a number comparable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness import families
from harness.inputs import half_products

#: Rounds after which a forward of a few milliseconds is known to a few percent.
ROUNDS = 7


@dataclass(frozen=True)
class Forward:
    """One forward of one tower over a batch of ``samples``, synchronised with the device."""

    tower: str
    samples: int
    run: Callable[[], None]


def forward_of(model: nn.Module, tower: str, batch: Mapping[str, Tensor]) -> Forward:
    """A forward of *tower* (``vision`` or ``text``) over the pictures or words of *batch*.

    It runs as it does over the tasks: see :func:`harness.inputs.half_products` for a CPU without FP16 arithmetic.
    """
    tensor = batch[families.INPUTS[tower]]

    def run() -> None:
        with torch.inference_mode(), half_products():
            families.encode(model, tower, tensor)
        if tensor.is_cuda:
            torch.cuda.synchronize(tensor.device)

    return Forward(tower, len(tensor), run)


def measure(benchmark: Any, forward: Forward, facts: Mapping[str, Any]) -> float:
    """Run *forward* under pytest-benchmark, grouped by tower; returns samples a second (median)."""
    benchmark.group = f"{forward.tower} tower"
    benchmark.pedantic(forward.run, rounds=ROUNDS, iterations=1, warmup_rounds=2)
    median = benchmark.stats.stats.median if benchmark.stats else float("nan")
    rate = forward.samples / median
    unit = "images" if forward.tower == "vision" else "texts"
    benchmark.extra_info.update(facts, batch=forward.samples)
    benchmark.extra_info[f"{unit}_per_second"] = round(rate, 1)
    return rate
