"""What a forward of each tower costs, what quantization adds, and what the weights weigh."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.checks.registry import NotJudged, check
from harness.evaluation import throughput
from harness.problems import Problem
from harness.quantization import memory

if TYPE_CHECKING:
    from harness.gate.case import Case

TOWERS = ("vision", "text")


@check("throughput", tower=TOWERS)
def reference_forward(case: Case, tower: str, benchmark: object) -> list[Problem]:
    """Measure a forward of the FP16 tower with pytest-benchmark's fixture; it fails nothing.

    ``--benchmark-compare-fail`` decides about times.
    """
    forward = case.shared.tower_forward(case.shared.model, tower)
    throughput.measure(benchmark, forward, case.facts() | {"recipe": "FP16"})
    return []


@check("throughput", tower=TOWERS)
def quantized_forward(case: Case, tower: str, benchmark: object) -> list[Problem]:
    """Measure forwards of the quantized tower and of the FP16 one in turn, and keep their ratio; it
    fails nothing.
    """
    models = (case.quantized.folded, case.shared.model)
    forward, reference = (case.shared.tower_forward(model, tower) for model in models)
    speed = throughput.compare(
        benchmark, forward, reference, case.facts(), case.stored_ratio(tower)
    )
    if speed is not None:
        case.speeds[tower] = speed
    return []


@check("throughput")
def compressed_weights_take_their_bits(case: Case) -> list[Problem]:
    """Return what weighs more, packed by ``mtq.compress``, than bits times parameters."""
    try:
        return case.compression.problems()
    except memory.NotCompressedError as reason:
        raise NotJudged(f"not compressed: {reason}") from reason
