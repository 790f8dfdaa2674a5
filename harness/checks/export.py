"""The ONNX graph computes what fake quantization promised."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import torch

from harness import export
from harness.checks.registry import KnownDefect, NotJudged, check
from harness.export import engine
from harness.problems import Problem

if TYPE_CHECKING:
    from harness.gate.gate import Case, Gate

TOWERS = tuple(export.TOWERS)
PRECISIONS = (torch.float32, torch.float16)
#: In half precision codes fall on other sides of boundaries all over: as far from fake quantization as it from FP16.
ENGINE_COSINE = 0.98


def _exported(gate: Gate, case: Case) -> export.Exports:
    """The case's graphs.

    Raises:
        NotJudged: standard ONNX cannot express the model.
    """
    reason = gate.no_form(case)
    if reason:
        raise NotJudged(f"no ONNX form: {reason}")
    return gate.quantized(case).exported


@check("export", tower=TOWERS, dtype=PRECISIONS)
def graph_has_the_quantizers_of_the_map(gate: Gate, case: Case, tower: str, dtype: torch.dtype) -> list[Problem]:
    """Return what in a tower's graph is not what the case's quantizers say."""
    problems = _exported(gate, case).problems(tower, dtype)
    graphs = gate.section(case, "export").setdefault("problems", {})
    graphs[f"{tower}/{str(dtype).removeprefix('torch.')}"] = [asdict(problem) for problem in problems]
    return problems


def _parity(gate: Gate, case: Case, tower: str, *, optimize: bool) -> export.Parity:
    parity = _exported(gate, case).parity(tower, optimize)
    key = "optimized" if optimize else "parity"
    gate.section(case, "export").setdefault(key, {})[tower] = parity.as_dict()
    return parity


@check("export", tower=TOWERS)
def runtime_computes_what_fake_quantization_does(gate: Gate, case: Case, tower: str) -> list[export.Parity]:
    """Return where ONNX Runtime, without optimisations, differs from fake quantization by more than rounding."""
    parity = _parity(gate, case, tower, optimize=False)
    return [] if parity.holds else [parity]


@check("export", tower=TOWERS)
def optimisations_change_nothing(gate: Gate, case: Case, tower: str) -> list[Problem]:
    """Look for the same with optimisations on; what differs then is the runtime's defect.

    Raises:
        KnownDefect: only the optimised graph differs.
    """
    optimized = _parity(gate, case, tower, optimize=True)
    if _parity(gate, case, tower, optimize=False).holds and not optimized.holds:
        raise KnownDefect(f"{export.RUNTIME} optimises this graph into another: {optimized}")
    return []


@check("export")
def published_export_is_gated_too(gate: Gate, case: Case) -> list[Problem]:
    """Look at the graph of ModelOpt's own export where that works; what is wrong in it is ModelOpt's defect.

    Raises:
        KnownDefect: the graph is not what the quantizers say.
    """
    problems = _exported(gate, case).published()
    said = problems if isinstance(problems, str) else [str(problem) for problem in problems]
    gate.section(case, "export")["published"] = said
    if isinstance(problems, str):
        raise NotJudged(f"the published path does not export: {problems}")
    if problems:
        raise KnownDefect("ModelOpt's own export, not the recipe: " + "; ".join(problem.what for problem in problems))
    return []


@check("export")
def answers_are_those_of_fake_quantization(gate: Gate, case: Case) -> list[str]:
    """Return the answers on the first classification task that neither codes nor ties in rounding explain."""
    exported = _exported(gate, case)
    reason = gate.lacks(case, accuracy=True)
    if reason:
        raise NotJudged(f"no task: {reason}")
    task = next((task for task in gate.tasks(case) if task.labels is not None), None)
    if task is None:
        raise NotJudged("none of the tasks is a classification")
    answers = exported.answers(task)
    gate.section(case, "export")["answers"] = answers.as_dict()
    return answers.problems()


@check("export", tower=TOWERS)
def engine_computes_what_fake_quantization_does(gate: Gate, case: Case, tower: str) -> list[str]:
    """Return where TensorRT's engine of the float16 graph differs by more than half precision does."""
    missing = engine.missing()
    if missing is not None:
        raise NotJudged(f"no engine: {missing}")
    exported = _exported(gate, case)
    if gate.device.type != "cuda":
        raise NotJudged("no engine: the models run on the CPU (--device)")
    batch = dict(next(iter(gate.calibration_batches(case, torch.float16))))
    models = (gate.quantized(case).model, gate.reference(case).model)
    measured = engine.measure(exported.graph(tower, torch.float16), tower, *models, batch)
    gate.section(case, "export").setdefault("engine", {})[tower] = measured.as_dict()
    if measured.cosine > ENGINE_COSINE:
        return []
    return [f"{tower}: least cosine {measured.cosine:.4f}; {measured.ratio:.2f} times FP16's speed"]
