"""Does the gate catch what it claims to, and stay silent where nothing is wrong?  (``pytest -m
proof``)
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.pytest_plugin import private
from harness.tools import proof
from harness.tools.faults import CATALOGUE
from harness.tools.proof import Clean, Kill

pytestmark = pytest.mark.proof

#: A/A runs, and the processes that they are spread over.
RUNS, PROCESSES = 108, 3
#: The recipes that faults are planted in; each is an A/A run in every variation.
CALM = tuple(dict.fromkeys(fault.recipe for fault in CATALOGUE.values()))

#: What speaks before any accuracy is measured; a recipe that cannot be used stops the run.
_EARLY = ("before the run", "insertion", "numerics")

Workers = list[Any]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clean]:
    """The gate with nothing planted, and its baselines.

    One thread from here on: two would wait for each other next to the A/A processes, and bits are
    compared with a baseline of as many threads only.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    clean_gate = Clean(tmp_path_factory.mktemp("proof") / "clean", CALM)
    clean_gate.record()
    yield clean_gate
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def calm_runs(clean: Clean) -> Iterator[Workers]:
    """The A/A processes next to the faults: each has mostly one thread at work."""
    from concurrent.futures import ThreadPoolExecutor

    def run(process: int) -> tuple[int, str, str]:
        worker = proof.start_worker(process, RUNS // PROCESSES // len(CALM), clean.baselines, CALM)
        out, err = worker.communicate()
        return worker.returncode, out, err

    with ThreadPoolExecutor(PROCESSES) as pool:
        yield [pool.submit(run, process) for process in range(PROCESSES)]


@pytest.fixture(scope="module")
def show(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Prints a line that pytest does not capture: a run of ten minutes says where it is, and what
    it found.
    """
    terminal = pytestconfig.get_terminal_writer()

    def line(text: str) -> None:
        with private.uncaptured(pytestconfig):
            terminal.line(text)
            terminal.flush()

    return line


@pytest.fixture(scope="module")
def matrix(clean: Clean, calm_runs: Workers, show: Callable[[str], None]) -> list[Kill]:
    """Every fault planted once."""
    show("")
    return proof.kills(clean, CATALOGUE.values(), show)


@pytest.fixture(scope="module")
def calm(calm_runs: Workers) -> list[dict[str, Any]]:
    """What each A/A run found."""
    results = [future.result() for future in calm_runs]
    assert [code for code, _, _ in results] == [0] * PROCESSES, [
        err[-2000:] for _, _, err in results
    ]
    return [
        json.loads(line)
        for _, out, _ in results
        for line in out.splitlines()
        if line.startswith("{")
    ]


@pytest.mark.usefixtures("calm_runs")
def test_a_clean_model_passes_every_check(clean: Clean) -> None:
    """With nothing planted no check of the proof finds anything: what it finds elsewhere is the
    fault's.

    A/A holds the other recipes to the same.
    """
    case = clean.run(clean.site(CALM[0]))
    problems_by_check = {
        check.title: list(check.problems(case, proof.FEW)) for check in proof.CHECKS
    }

    assert not {name: problems for name, problems in problems_by_check.items() if problems}


def test_every_fault_is_killed(matrix: list[Kill]) -> None:
    """No planted fault goes unnoticed, and each is noticed by a check and not by the proof's own
    mistake.
    """
    assert len(matrix) == len(CATALOGUE) >= 40
    assert [kill.fault for kill in matrix if kill.survived] == []


def test_no_fault_is_killed_by_accident(matrix: list[Kill]) -> None:
    """A check that raises something else than a failure names what ModelOpt refused, not an error
    of the gate.
    """
    allowed = ("ValueError: Negative values in amax",)

    assert [k for k in matrix if k.how == "error" and not k.message.startswith(allowed)] == []


def test_faults_in_the_quantized_model_need_no_accuracy(matrix: list[Kill]) -> None:
    """What is wrong in ModelOpt, a recipe or the calibration is seen by insertion or numerics, or
    costs accuracy.
    """
    planted = {"ModelOpt", "recipe", "calibration"}
    late = [
        k for k in matrix if CATALOGUE[k.fault].where.value in planted and k.suite not in _EARLY
    ]

    assert [
        k.fault for k in late if (k.suite, k.check) != ("accuracy", "loss is within budget")
    ] == []


def test_nothing_but_a_fault_raises_an_alarm(calm: list[dict[str, Any]]) -> None:
    """Over batch sizes, thread counts, orders, hash seeds and processes, a hundred clean runs raise
    no alarm.
    """
    assert len(calm) == RUNS >= 100
    assert len({run["hash_seed"] for run in calm}) == PROCESSES
    assert [run for run in calm if run["alarms"]] == []


def test_the_matrix_is_written_down(
    matrix: list[Kill], calm: list[dict[str, Any]], show: Callable[[str], None]
) -> None:
    """The matrix with its bounds is in the documentation, and the bounds are shown."""
    proof.MATRIX.parent.mkdir(exist_ok=True)
    proof.MATRIX.write_text(proof.document(matrix, calm))

    for line in (
        "",
        proof.headline(matrix),
        proof.calm(calm),
        f"written: {os.path.relpath(proof.MATRIX, Path.cwd())}",
    ):
        show(line)
    assert all(kill.fault in proof.MATRIX.read_text() for kill in matrix)
