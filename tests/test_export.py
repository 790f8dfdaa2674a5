"""Does the ONNX graph compute what fake quantization promised?"""

from __future__ import annotations

import pytest
import torch

from harness import export
from harness.export import engine
from harness.gate.gate import Case, Gate, Quantized
from harness.pytest_plugin.plugin import Check

pytestmark = pytest.mark.export

#: In half precision codes fall on other sides of boundaries all over: as far from fake quantization as it from FP16.
ENGINE_COSINE = 0.98

_TOWERS = pytest.mark.parametrize("tower", list(export.TOWERS))
_PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])


@pytest.fixture(autouse=True)
def _has_a_form(gate: Gate, case: Case, quantized: Quantized) -> None:
    """Skip, with the reason, what standard ONNX cannot express."""
    if reason := gate.no_form(case):
        pytest.skip(f"no ONNX form: {reason}")


@_TOWERS
@_PRECISIONS
def test_graph_has_the_quantizers_of_the_map(
    gate: Gate, case: Case, tower: str, dtype: torch.dtype, check: Check
) -> None:
    """One Q/DQ pair for each enabled quantizer and none for a disabled one, in its place, with its scale and codes."""
    check.problems(gate.export_problems(case, tower, dtype))


@_TOWERS
def test_runtime_computes_what_fake_quantization_does(gate: Gate, case: Case, tower: str, check: Check) -> None:
    """In ONNX Runtime without optimisations, codes are the quantizers' and outputs agree within rounding."""
    found = gate.parity(case, tower)
    check.problems([] if found.holds else [found])


@_TOWERS
def test_optimisations_change_nothing(gate: Gate, case: Case, tower: str) -> None:
    """With ONNX Runtime's optimisations on, the same; what differs is the runtime's defect and fails no recipe."""
    found = gate.parity(case, tower, optimize=True)
    if gate.parity(case, tower).holds and not found.holds:
        pytest.xfail(f"{export.RUNTIME} optimises this graph into another: {found}")


def test_published_export_is_gated_too(gate: Gate, case: Case) -> None:
    """Where ModelOpt's own export works, its graph is the map's too; what is not is its defect and fails no recipe."""
    found = gate.published_problems(case)
    if isinstance(found, str):
        pytest.skip(f"the published path does not export: {found}")
    if found:
        pytest.xfail("ModelOpt's own export, not the recipe: " + "; ".join(problem.what for problem in found))


def test_answers_are_those_of_fake_quantization(gate: Gate, case: Case, check: Check) -> None:
    """Sample by sample, graph and fake quantization answer the same, given the codes and but for ties in rounding."""
    if reason := gate.lacks(case, accuracy=True):
        pytest.skip(f"no task: {reason}")
    found = gate.export_answers(case)
    if found is None:
        pytest.skip("none of the tasks is a classification")
    check.problems(found.problems())


@pytest.mark.skipif(engine.missing() is not None, reason=f"no engine: {engine.missing()}")
@_TOWERS
def test_engine_computes_what_fake_quantization_does(gate: Gate, case: Case, tower: str) -> None:
    """TensorRT builds an engine of the float16 graph, its features those of fake quantization within half precision."""
    if gate.device.type != "cuda":
        pytest.skip("no engine: the models run on the CPU (--device)")
    found = gate.engine(case, tower)

    assert found.cosine > ENGINE_COSINE, f"least cosine {found.cosine:.4f}; {found.ratio:.2f} times FP16's speed"
