"""The GPU's table as far as a CPU can drive it: sides, batch sizes, inputs and the count of Linears
in FP8.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import nn

from harness.models import families, references
from harness.statistics.speed import Effort, WallClock
from harness.tools import gpu
from harness.tools.gpu import BASE, FAKE, REAL, Models, Pool

EFFORT = Effort(first=2, most=2, warm=0)


@pytest.fixture(scope="module")
def sides() -> Models:
    """The three sides of the embedded model, in single precision: a CPU's half precision is
    slow.
    """
    return Models.of(
        references.load("embedded", torch.device("cpu"), torch.float32).model, batches=1, rows=2
    )


def test_every_side_of_every_tower_at_every_batch(sides: Models) -> None:
    """Rows come by tower, batch and side; FP16 is one to itself; rates count samples, not
    batches.
    """
    rows = list(gpu.sweep(sides, WallClock(), batches=(1, 2), effort=EFFORT))

    assert [(r.tower, r.batch, r.side) for r in rows] == [
        (tower, batch, side)
        for tower in ("vision", "text")
        for batch in (1, 2)
        for side in (BASE, FAKE, REAL)
    ]
    assert all(r.ratio.value == 1.0 for r in rows if r.side == BASE)
    assert all(r.per_second > 0 and r.ratio.rounds == 2 for r in rows)
    assert asdict(rows[0])["ratio"]["rounds"] == 2


def test_rates_are_samples_a_second(sides: Models) -> None:
    """A batch of four that takes two seconds is two a second."""

    class TwoSeconds:
        def time(self, run: Callable[[], object]) -> float:
            return 2.0

    rows = gpu.sweep(sides, TwoSeconds(), batches=(4,), effort=EFFORT)

    assert {r.per_second for r in rows} == {2.0}


def test_the_sides_compute_one_function(sides: Models) -> None:
    """Fake and real FP8 are near each other, and near FP16: no side is timed that computes
    something else.
    """
    inputs = families.sample_inputs(sides.reference)
    with torch.no_grad():
        base, fake, real = (
            m(**inputs).image_embeds.double() for m in (sides.reference, sides.fake, sides.real)
        )

    assert torch.nn.functional.cosine_similarity(fake, real, dim=1).min() > 0.98
    assert torch.nn.functional.cosine_similarity(base, fake, dim=1).min() > 0.9
    assert not torch.equal(base, fake)


def test_linears_that_fall_back_are_counted(sides: Models) -> None:
    """Without a GPU no Linear runs in FP8, and all that were packed are known: the patch embedding
    is not one of them.
    """
    with torch.no_grad():
        sides.real(**families.sample_inputs(sides.reference))
    linears = sum(isinstance(m, nn.Linear) for m in sides.reference.modules())

    assert gpu.in_fp8(sides.real) == (0, linears)
    assert gpu.in_fp8(sides.reference) == (0, 0)


def test_inputs_are_larger_than_the_cache_and_taken_in_turn() -> None:
    """The pool holds twice the cache, at least two batches; consecutive runs see different ones and
    start over.
    """
    seen: list[int] = []
    pool = Pool(torch.arange(8.0).reshape(8, 1), batch=2, cache=20)
    run = pool(lambda batch: seen.append(int(batch[0, 0])))
    for _ in range(6):
        run()

    assert sum(batch.nbytes for batch in pool.batches) >= 2 * 20
    assert seen == [0, 2, 4, 6, 0, 0]
    assert len(Pool(torch.zeros(8, 1), batch=4, cache=0).batches) == 2


def test_sides_share_one_pool() -> None:
    """A batch that one side has just read is not the next side's, which would find it in the
    cache.
    """
    seen: list[Any] = []
    pool = Pool(torch.arange(8.0).reshape(8, 1), batch=1, cache=16)
    first, second = (pool(lambda batch: seen.append(batch.item())) for _ in range(2))
    for run in (first, second) * 2:
        run()

    assert seen == [0.0, 1.0, 2.0, 3.0]


def test_conditions_are_what_nvidia_smi_tells() -> None:
    """Its one line of CSV, by the names that were asked for; where there is no such line,
    nothing.
    """
    answer = "NVIDIA H100 80GB HBM3, 550.54.15, 1755 MHz, 1980 MHz, 2619 MHz, 700.00 W, 34\n"

    facts = gpu.asked(answer)

    assert (facts["name"], facts["driver_version"], facts["clocks.sm"]) == (
        "NVIDIA H100 80GB HBM3",
        "550.54.15",
        "1755 MHz",
    )
    assert gpu.asked("") == gpu.asked("No devices were found\n") == {}
    assert gpu.conditions(torch.device("cpu"))["torch"] == torch.__version__


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_there_is_a_reason() -> None:
    """It is said, not shown as an empty table."""
    assert gpu.missing() == "torch sees no CUDA device"
