"""What does a forward of each tower cost, what does quantization add (pytest-benchmark), and what
do weights weigh?
"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from harness.checks import throughput
from harness.gate.listing import CaseName
from harness.gate.quantized import Quantized
from harness.gate.session import Gate
from harness.pytest_plugin.judge import Judge

pytestmark = pytest.mark.throughput

_TOWERS = pytest.mark.parametrize("tower", throughput.TOWERS)


@_TOWERS
def test_reference_forward(
    gate: Gate, model_case: CaseName, tower: str, benchmark: BenchmarkFixture, check: Judge
) -> None:
    """A forward of the FP16 tower, in images or texts a second."""
    check.problems(throughput.reference_forward(gate[model_case], tower, benchmark))


@_TOWERS
def test_quantized_forward(
    gate: Gate,
    case: CaseName,
    quantized: Quantized,
    tower: str,
    benchmark: BenchmarkFixture,
    check: Judge,
) -> None:
    """A forward of the quantized tower in turn with the FP16 one; their ratio is kept, and reported
    where it moved.
    """
    check.problems(throughput.quantized_forward(gate[case], tower, benchmark))


def test_compressed_weights_take_their_bits(
    gate: Gate, case: CaseName, quantized: Quantized, check: Judge
) -> None:
    """Packed by mtq.compress, every quantized weight takes bits times parameters, and so does the
    checkpoint.
    """
    check.problems(throughput.compressed_weights_take_their_bits(gate[case]))
