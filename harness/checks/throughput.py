"""What a forward of each tower costs, what quantization adds, and what the weights weigh."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.checks.registry import NotJudged, check
from harness.evaluation import throughput
from harness.problems import Problem
from harness.quantization import memory

if TYPE_CHECKING:
    from harness.gate.gate import Case, Gate

TOWERS = ("vision", "text")


@check("throughput", tower=TOWERS)
def reference_forward(gate: Gate, case: Case, tower: str, benchmark: Any) -> list[Problem]:
    """Measure a forward of the FP16 tower with pytest-benchmark's fixture; it fails nothing.

    ``--benchmark-compare-fail`` decides about times.
    """
    forward = gate.tower_forward(case, gate.reference(case).model, tower)
    throughput.measure(benchmark, forward, gate.facts(case) | {"recipe": "FP16"})
    return []


@check("throughput", tower=TOWERS)
def quantized_forward(gate: Gate, case: Case, tower: str, benchmark: Any) -> list[Problem]:
    """Measure a forward of the quantized tower in turn with the FP16 one, and keep their ratio; it fails nothing."""
    models = (gate.quantized(case).folded, gate.reference(case).model)
    forward, reference = (gate.tower_forward(case, model, tower) for model in models)
    speed = throughput.compare(benchmark, forward, reference, gate.facts(case), gate.stored_ratio(case, tower))
    if speed is not None:
        gate.add_speed(case, tower, speed)
    return []


@check("throughput")
def compressed_weights_take_their_bits(gate: Gate, case: Case) -> list[Problem]:
    """Return what weighs more, packed by ``mtq.compress``, than bits times parameters."""
    try:
        return gate.compression(case).problems()
    except memory.NotCompressedError as reason:
        raise NotJudged(f"not compressed: {reason}") from reason
