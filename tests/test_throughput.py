"""What does a forward of each tower cost, and what does quantization add?  (pytest-benchmark)"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from harness import throughput
from harness.gate import Case, Gate, Quantized

pytestmark = pytest.mark.throughput


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_reference_forward(gate: Gate, model_case: Case, tower: str, benchmark: BenchmarkFixture) -> None:
    """A forward of the FP16 tower, in images or texts a second."""
    forward = gate.tower_forward(model_case, gate.reference(model_case).model, tower)
    rate = throughput.measure(benchmark, forward, gate.facts(model_case) | {"recipe": "FP16"})
    gate.add_rate(model_case, tower, rate, reference=True)


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_quantized_forward(
    gate: Gate, case: Case, quantized: Quantized, tower: str, benchmark: BenchmarkFixture
) -> None:
    """A forward of the quantized tower, in images or texts a second."""
    rate = throughput.measure(benchmark, gate.tower_forward(case, quantized.folded, tower), gate.facts(case))
    gate.add_rate(case, tower, rate, reference=False)
