"""What checks return becomes outcomes of tests, and what was measured becomes the results that reports show."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import asdict
from typing import TYPE_CHECKING

import pytest

from harness.checks.registry import KnownDefect, NotJudged

if TYPE_CHECKING:
    from harness.diagnosis.qat import Trained
    from harness.gate.gate import Case, Gate, Quantized


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Skip a test whose check has nothing to judge; a library's defect is an expected failure."""
    try:
        yield
    except NotJudged as reason:
        pytest.skip(str(reason))
    except KnownDefect as defect:
        pytest.xfail(str(defect))


def quantized(gate: Gate, case: Case) -> Quantized:
    """The case's quantized model; a report shows the error of every layer, measured while the model is in memory."""
    made = gate.quantized(case)
    results = gate.results.case(case.recipe_name, case.model_name)
    if gate.options.report and "layer_error" not in results:
        from harness.diagnosis import layers

        results["layer_error"] = layers.layer_errors(made.reference.model, made.model, made.inputs)
    return made


def trained(gate: Gate, case: Case) -> Trained:
    """The case's model, fine-tuned; how long that took and how the loss fell goes to the results."""
    from harness.diagnosis import qat

    began = time.perf_counter()
    made = qat.trained(gate, case)
    gate.section(case, "qat").update(seconds=round(time.perf_counter() - began, 1), losses=list(made.losses))
    return made


def collect(gate: Gate) -> None:
    """Add to the results what is derived from the measurements of the run's cases."""
    from harness.checks import insertion
    from harness.diagnosis import gallery

    for case in gate.cases():
        known = gate.results.cases.get((case.recipe_name, case.model_name), {})
        if "map" in known.get("insertion", {}):
            problems = insertion.all_problems(gate, case)
            not_covered = insertion.not_covered(gate.reference(case).model)
            known["insertion"].update(not_covered=not_covered, problems=[asdict(problem) for problem in problems])
        if gate.options.report and "verdicts" in known.get("accuracy", {}):
            known["accuracy"]["changed"] = gallery.of_case(gate, case)
