"""What a forward costs: one tower under pytest-benchmark, the quantized one in turn with its
reference.

The ratio of the two is what is kept and held against the baseline
(:mod:`harness.statistics.speed`); the times are for the eye, and for pytest-benchmark's own
comparison on one machine.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.models import families
from harness.models.halves import half_products
from harness.statistics.speed import Effort, Ratio, WallClock

#: Rows of the batch that is timed.
ROWS = 32
#: A gate has many towers to time: a tenth is near enough, and what is not known after 16 rounds
#: says so.
EFFORT = Effort(first=8, most=16, width=0.1, warm=1)


@dataclass(frozen=True)
class Forward:
    """One forward of one tower over a batch of ``samples``, synchronised with the device."""

    tower: str
    samples: int
    run: Callable[[], None]

    @property
    def unit(self) -> str:
        """What is counted: ``images`` or ``texts``."""
        return "images" if self.tower == "vision" else "texts"


@dataclass(frozen=True)
class Speed:
    """Speed of a quantized tower and its reference: samples per second (medians), and the ratio."""

    reference_per_second: float
    quantized_per_second: float
    ratio: Ratio

    def as_dict(self) -> dict[str, Any]:
        """A plain record for JSON: the ratio's parts and the rates."""
        rates = {
            "reference_per_second": self.reference_per_second,
            "quantized_per_second": self.quantized_per_second,
        }
        ratio = self.ratio
        return rates | {
            "ratio": ratio.value,
            "low": ratio.low,
            "high": ratio.high,
            "rounds": ratio.rounds,
        }


def forward_of(model: nn.Module, tower: str, batch: Mapping[str, Tensor]) -> Forward:
    """A forward of *tower* (``vision`` or ``text``) over the first ROWS pictures or texts of
    *batch*.

    It runs as it does over the tasks: see :func:`harness.models.halves.half_products` for a CPU
    without FP16 arithmetic.
    """
    tensor = batch[families.INPUTS[tower]][:ROWS]

    def run() -> None:
        with torch.inference_mode(), half_products():
            families.encode(model, tower, tensor)
        if tensor.is_cuda:
            torch.cuda.synchronize(tensor.device)

    return Forward(tower, len(tensor), run)


def measure(benchmark: Any, forward: Forward, facts: Mapping[str, Any]) -> None:
    """Run *forward* under pytest-benchmark, in a group by its tower."""
    benchmark.group = f"{forward.tower} tower"
    benchmark.pedantic(forward.run, rounds=EFFORT.first, iterations=1, warmup_rounds=EFFORT.warm)
    if benchmark.stats is not None:
        _tell(benchmark, forward, facts)


def compare(
    benchmark: Any,
    forward: Forward,
    reference: Forward,
    facts: Mapping[str, Any],
    known: Ratio | None = None,
) -> Speed | None:
    """Run *forward* under pytest-benchmark, each round behind one of *reference*, until their ratio
    is decided.

    Args:
        benchmark: pytest-benchmark's fixture; its statistics hold every round of *forward*.
        forward: of the quantized tower.
        reference: of the same tower unquantized.
        facts: what the times belong to.
        known: the ratio of the baseline: more rounds are run only while this one may still be the
            same.

    Returns:
        None where pytest-benchmark measures nothing (``--benchmark-disable``, or several
        processes).
    """
    clock, base = WallClock(), list[float]()

    def reference_first() -> None:
        base.append(clock.time(reference.run))

    benchmark.group = f"{forward.tower} tower"
    benchmark.pedantic(
        forward.run,
        setup=reference_first,
        rounds=EFFORT.first,
        iterations=1,
        warmup_rounds=EFFORT.warm,
    )
    if benchmark.stats is None:
        return None
    stats = benchmark.stats.stats
    del base[: EFFORT.warm]
    for rounds in EFFORT.looks:
        while len(base) < rounds:
            reference_first()
            stats.update(clock.time(forward.run))
        ratio = Ratio.of(base, stats.data, EFFORT.level)
        if EFFORT.decided(ratio, None if known is None else known.value):
            break
    benchmark.extra_info["ratio"] = ratio.as_dict()
    _tell(benchmark, forward, facts)
    rate = forward.samples / stats.median
    return Speed(reference.samples / statistics.median(base), rate, ratio)


def _tell(benchmark: Any, forward: Forward, facts: Mapping[str, Any]) -> None:
    """Add to a row of pytest-benchmark what makes its time comparable."""
    benchmark.extra_info.update(facts, batch=forward.samples)
    rate = forward.samples / benchmark.stats.stats.median
    benchmark.extra_info[f"{forward.unit}_per_second"] = round(rate, 1)
