"""Does the gate catch what it claims to, and stay silent where nothing is wrong?  (``pytest -m proof``)"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import proof
from harness.faults import CATALOGUE
from harness.proof import Clean, Kill

pytestmark = pytest.mark.proof

#: A/A runs, and the processes that they are spread over.
RUNS, PROCESSES = 104, 4
#: What the A/A runs gate, in turn.
CALM = ("fp8", "int8")

#: What speaks before any accuracy is measured; a recipe that cannot be used stops the run.
_EARLY = ("before the run", "insertion", "numerics")

Workers = list[Any]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Clean:
    """The gate with nothing planted, and its baselines."""
    made = Clean(
        tmp_path_factory.mktemp("proof") / "clean", dict.fromkeys([*CALM, *(f.recipe for f in CATALOGUE.values())])
    )
    made.record()
    return made


@pytest.fixture(scope="module")
def calm_runs(clean: Clean) -> Iterator[Workers]:
    """The A/A processes, two at a time beside the faults: each has mostly one thread at work."""
    from concurrent.futures import ThreadPoolExecutor

    def run(process: int) -> tuple[int, str, str]:
        worker = proof.start_worker(process, RUNS // PROCESSES, clean.baselines, CALM)
        out, err = worker.communicate()
        return worker.returncode, out, err

    with ThreadPoolExecutor(2) as pool:
        yield [pool.submit(run, process) for process in range(PROCESSES)]


@pytest.fixture(scope="module")
def matrix(clean: Clean, calm_runs: Workers, pytestconfig: pytest.Config) -> list[Kill]:
    """Every fault planted once."""
    terminal = pytestconfig.get_terminal_writer()
    terminal.line()
    return proof.kills(clean, CATALOGUE.values(), show=terminal.line)


@pytest.fixture(scope="module")
def calm(calm_runs: Workers) -> list[dict[str, Any]]:
    """What each A/A run found."""
    results = [future.result() for future in calm_runs]
    assert [code for code, _, _ in results] == [0] * PROCESSES, [err[-2000:] for _, _, err in results]
    return [json.loads(line) for _, out, _ in results for line in out.splitlines() if line.startswith("{")]


def test_a_clean_model_passes_every_check(clean: Clean) -> None:
    """With nothing planted no check of the proof finds anything: what it finds elsewhere is the fault's."""
    for recipe in CALM:
        gate, case = clean.run(clean.site(recipe))
        found = {check.name: [str(problem) for problem in check.run(gate, case)] for check in proof.CHECKS}

        assert not {name: problems for name, problems in found.items() if problems}


def test_every_fault_is_killed(matrix: list[Kill]) -> None:
    """No planted fault goes unnoticed, and each is noticed by a check and not by the proof's own mistake."""
    assert len(matrix) == len(CATALOGUE) >= 40
    assert [kill.fault for kill in matrix if kill.survived] == []


def test_no_fault_is_killed_by_accident(matrix: list[Kill]) -> None:
    """A check that raises something else than a failure names what ModelOpt refused, not an error of the gate."""
    allowed = ("ValueError: Negative values in amax",)

    assert [k for k in matrix if k.how == "error" and not k.message.startswith(allowed)] == []


def test_faults_in_the_quantized_model_need_no_accuracy(matrix: list[Kill]) -> None:
    """What is wrong in ModelOpt, a recipe or the calibration is seen by insertion or numerics, or costs accuracy."""
    planted = {"ModelOpt", "recipe", "calibration"}
    late = [k for k in matrix if CATALOGUE[k.fault].where.value in planted and k.suite not in _EARLY]

    assert [k.fault for k in late if (k.suite, k.check) != ("accuracy", "loss is within budget")] == []


def test_nothing_but_a_fault_raises_an_alarm(calm: list[dict[str, Any]]) -> None:
    """Over batch sizes, thread counts, orders, hash seeds and processes, a hundred clean runs raise no alarm."""
    assert len(calm) == RUNS >= 100
    assert len({run["hash_seed"] for run in calm}) == PROCESSES
    assert [run for run in calm if run["alarms"]] == []


def test_the_matrix_is_written_down(
    matrix: list[Kill], calm: list[dict[str, Any]], pytestconfig: pytest.Config
) -> None:
    """The matrix with its bounds lies in the documentation, and the bounds are shown."""
    proof.MATRIX.parent.mkdir(exist_ok=True)
    proof.MATRIX.write_text(proof.document(matrix, calm))

    terminal = pytestconfig.get_terminal_writer()
    for line in ("", proof.headline(matrix), proof.calm(calm), f"written: {os.path.relpath(proof.MATRIX, Path.cwd())}"):
        terminal.line(line)
    assert all(kill.fault in proof.MATRIX.read_text() for kill in matrix)
