"""The ONNX graph computes what fake quantization promised."""

from __future__ import annotations

import torch

from harness import export
from harness.checks.registry import NotJudged, check
from harness.export import engine
from harness.gate.case import Case
from harness.gate.graphs import Graphs
from harness.problems import Problem

TOWERS = tuple(export.TOWERS)
PRECISIONS = (torch.float32, torch.float16)
#: In half precision codes fall on other sides of boundaries all over: as far from fake quantization
#: as it from FP16.
ENGINE_COSINE = 0.98


def _graphs(case: Case) -> Graphs:
    """The case's graphs.

    Raises:
        NotJudged: standard ONNX cannot express the model.
    """
    if case.graphs.no_form:
        raise NotJudged(f"no ONNX form: {case.graphs.no_form}")
    return case.graphs


@check("export", tower=TOWERS, dtype=PRECISIONS)
def graph_has_the_quantizers_of_the_map(
    case: Case, tower: str, dtype: torch.dtype
) -> list[Problem]:
    """Return what in a tower's graph is not what the case's quantizers say."""
    return _graphs(case).problems_of(tower, dtype)


@check("export", tower=TOWERS)
def runtime_computes_what_fake_quantization_does(case: Case, tower: str) -> list[export.Parity]:
    """Return where ONNX Runtime, without optimisations, differs from fake quantization by more than
    rounding.
    """
    parity = _graphs(case).parity(tower)
    return [] if parity.holds else [parity]


@check("export")
def answers_are_those_of_fake_quantization(case: Case) -> list[str]:
    """Return the answers on the first classification task that neither codes nor ties in rounding
    explain.
    """
    graphs = _graphs(case)
    reason = case.shared.lacks(accuracy=True)
    if reason:
        raise NotJudged(f"no task: {reason}")
    task = next((task for task in case.tasks if task.labels is not None), None)
    if task is None:
        raise NotJudged("none of the tasks is a classification")
    return graphs.answers_on(task).problems()


@check("export", tower=TOWERS)
def engine_computes_what_fake_quantization_does(case: Case, tower: str) -> list[str]:
    """Return where TensorRT's engine of the float16 graph differs by more than half precision
    does.
    """
    missing = engine.missing()
    if missing is not None:
        raise NotJudged(f"no engine: {missing}")
    graphs = _graphs(case)
    if case.setting.device.type != "cuda":
        raise NotJudged("no engine: the models run on the CPU (--device)")
    measured = graphs.engine(tower)
    if measured.cosine > ENGINE_COSINE:
        return []
    return [f"{tower}: least cosine {measured.cosine:.4f}; {measured.ratio:.2f} times FP16's speed"]
