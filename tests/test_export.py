"""Does the ONNX graph compute what fake quantization promised?"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from harness.checks import export
from harness.gate.listing import CaseName
from harness.gate.session import Gate
from harness.pytest_plugin.judge import Judge

pytestmark = [pytest.mark.export, pytest.mark.usefixtures("quantized")]

_TOWERS = pytest.mark.parametrize("tower", export.TOWERS)
_PRECISIONS = pytest.mark.parametrize("dtype", export.PRECISIONS, ids=["fp32", "fp16"])


@pytest.fixture(autouse=True)
def libraries(gate: Gate, case: CaseName) -> Iterator[None]:
    """After a test of a case's graphs, while its model is in memory: what the libraries around them
    get wrong, for the report.  It fails no recipe.
    """
    yield
    gate[case].graphs.look_at_libraries()


@_TOWERS
@_PRECISIONS
def test_graph_has_the_quantizers_of_the_map(
    gate: Gate, case: CaseName, tower: str, dtype: torch.dtype, check: Judge
) -> None:
    """One Q/DQ pair for each enabled quantizer and none for a disabled one, in its place, with its
    scale and codes.
    """
    check.problems(export.graph_has_the_quantizers_of_the_map(gate[case], tower, dtype))


@_TOWERS
def test_runtime_computes_what_fake_quantization_does(
    gate: Gate, case: CaseName, tower: str, check: Judge
) -> None:
    """In ONNX Runtime without optimisations, codes are the quantizers' and outputs agree within
    rounding.
    """
    check.problems(export.runtime_computes_what_fake_quantization_does(gate[case], tower))


def test_answers_are_those_of_fake_quantization(gate: Gate, case: CaseName, check: Judge) -> None:
    """Sample by sample, graph and fake quantization answer the same, given the codes and but for
    ties in rounding.
    """
    check.problems(export.answers_are_those_of_fake_quantization(gate[case]))


@_TOWERS
def test_engine_computes_what_fake_quantization_does(
    gate: Gate, case: CaseName, tower: str, check: Judge
) -> None:
    """TensorRT builds an engine of the float16 graph, its features those of fake quantization
    within half precision.
    """
    check.problems(export.engine_computes_what_fake_quantization_does(gate[case], tower))
