"""What does a forward of each tower cost, what does quantization add (pytest-benchmark), and what do weights weigh?"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from harness.evaluation import throughput
from harness.gate.gate import Case, Gate, Quantized
from harness.pytest_plugin.plugin import Check
from harness.quantization.memory import NotCompressedError

pytestmark = pytest.mark.throughput


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_reference_forward(gate: Gate, model_case: Case, tower: str, benchmark: BenchmarkFixture) -> None:
    """A forward of the FP16 tower, in images or texts a second."""
    forward = gate.tower_forward(model_case, gate.reference(model_case).model, tower)
    throughput.measure(benchmark, forward, gate.facts(model_case) | {"recipe": "FP16"})


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_quantized_forward(
    gate: Gate, case: Case, quantized: Quantized, tower: str, benchmark: BenchmarkFixture
) -> None:
    """A forward of the quantized tower in turn with the FP16 one; their ratio is kept, and told where it moved."""
    forward, reference = (gate.tower_forward(case, m, tower) for m in (quantized.folded, gate.reference(case).model))
    speed = throughput.compare(benchmark, forward, reference, gate.facts(case), gate.stored_ratio(case, tower))
    if speed is not None:
        gate.add_speed(case, tower, speed)


def test_compressed_weights_take_their_bits(gate: Gate, case: Case, quantized: Quantized, check: Check) -> None:
    """Packed by mtq.compress, every quantized weight takes bits times parameters, and so does the checkpoint."""
    try:
        found = gate.compression(case)
    except NotCompressedError as reason:
        pytest.skip(f"not compressed: {reason}")
    check.problems(found.problems())
