"""The plan of a large run: work is counted right, parts add up, and what was not measured says
so.
"""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.data import tasks
from harness.evaluation import shards
from harness.models import references
from harness.tools import plan, rates
from harness.tools.plan import Gpu
from harness.tools.rates import Rates


@pytest.fixture(scope="module")
def measured() -> Rates:
    """The rates that the page was written from."""
    return Rates(**json.loads(plan.RATES.read_text()))


def test_page_is_what_the_rates_give(measured: Rates) -> None:
    """docs/scale.md is the page of docs/scale.json."""
    assert plan.PAGE.read_text() == plan.page(measured)


# -- what is counted -------------------------------------------------------------------------------


def test_operations_are_those_of_the_architecture() -> None:
    """A ViT-L/14 of n = 257 tokens, d = 1024: 24 layers of 24 n d^2 + 4 n^2 d, the patches and the
    projection.
    """
    n, d = 257, 1024

    expected = 24 * (24 * n * d * d + 4 * n * n * d) + 2 * 256 * 3 * 14 * 14 * d + 2 * d * 768

    assert plan.operations("ViT-L-14")["vision"] == expected


def test_a_cut_prompt_costs_what_its_tokens_cost() -> None:
    """The text tower of n tokens, d = 768: 12 layers of 24 n d^2 + 4 n^2 d, and the projection of
    one.
    """
    for n in (16, 77):
        assert (
            plan.operations("ViT-L-14", n)["text"]
            == 12 * (24 * n * 768**2 + 4 * n * n * 768) + 2 * 768 * 768
        )


def test_quantized_numbers_are_those_that_enabled_quantizers_take() -> None:
    """Recipe fp8 takes 13 n d a layer (q, k, v, out, fc1, four in fc2, four around attention),
    pixels and the head.
    """
    n, d = 257, 1024

    assert (
        plan.quantized_elements("ViT-L-14", "fp8")["vision"] == 24 * 13 * n * d + 3 * 224 * 224 + d
    )


def test_slices_are_cut_as_the_evaluator_cuts_them() -> None:
    """The plan's slices have the sizes of those that an evaluation of such a task takes."""
    reference = references.load("embedded", torch.device("cpu"))
    (task,) = tasks.load_tasks(["emoji"], None, reference)
    texts, each = tasks.texts_of(task), len(task.prompts) // tasks.texts_of(task)
    cut = shards.cut(task)

    assert [piece.n for piece in cut if piece.side == "images"] == plan._cut(
        len(task.sample_ids), shards.PICTURES
    )
    assert [piece.n for piece in cut if piece.side == "texts"] == plan._cut(
        texts, shards.PROMPTS // each
    )


# -- how it adds up --------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 12))
def test_makespan_keeps_the_bounds_of_list_scheduling(times: list[int], workers: int) -> None:
    """No shorter than the longest slice or an even share, no longer than both together (Graham
    1966).
    """
    seconds = plan.makespan(times, workers)

    assert max(*times, sum(times) / workers) <= seconds <= sum(times) / workers + max(times)
    assert plan.makespan(times, 1) == sum(times)


def test_more_gpus_take_less_time_and_more_gpu_hours(measured: Rates) -> None:
    """With a cluster, time falls with the GPUs and never below what is not divided; their hours
    only grow.
    """
    plans = [plan.plan(measured, workers) for workers in (2, 4, 8, 16, 32, 64)]
    undivided = [sum(v for k, v in p.parts.items() if not k.startswith("embed")) for p in plans]

    assert len(set(undivided)) == 1
    for plan_, other in pairwise(plans):
        assert undivided[0] < other.seconds <= plan_.seconds
        assert other.gpu_hours > plan_.gpu_hours
    assert all(0 < p.busy < 1 for p in plans)


def test_several_processes_that_ask_shorten_what_is_not_divided(measured: Rates) -> None:
    """Calibrating and judging are shared by the processes that ask, embedding is not theirs."""
    alone, many = plan.plan(measured, 8), plan.plan(measured, 8, asking=8)

    for name, seconds in many.parts.items():
        shared = name in ("calibrate", "score and judge")
        assert (seconds < alone.parts[name]) is shared
    assert plan.plan(measured, 8, asking=10).parts == plan.plan(measured, 8, asking=64).parts


def test_a_measured_gpu_takes_the_place_of_the_assumed_one(measured: Rates) -> None:
    """Rates of a GPU in the file are planned with, and no assumption is on the page."""
    gpu = {
        "name": "Card",
        "vision": 10.0,
        "text": 90.0,
        "quantized_vision": 5.0,
        "quantized_text": 40.0,
        "calibrate": 8.0,
    }
    page = plan.page(dataclasses.replace(measured, gpu=gpu))

    assert "GPU: Card. Its rates were measured." in page
    assert "assum" not in page
    assert "not a measurement" in plan.page(dataclasses.replace(measured, gpu=None))
    times, computing = plan.slices(
        measured, Gpu.of(dataclasses.replace(measured, gpu=gpu)), quantized=True
    )
    assert computing == pytest.approx(55_000 / 5 + 105_000 / 40)
    assert sum(times) >= computing * (1 - 1e-9)


def test_a_slow_decoder_is_what_a_slice_waits_for(measured: Rates) -> None:
    """Where cores decode more slowly than the GPU computes, they are the slower half, and the page
    says so.
    """
    slow = dataclasses.replace(measured, decode=1.0)

    assert sum(plan.slices(slow, Gpu.of(slow), quantized=False)[0]) > 55_000 / plan.CORES
    assert "Of pictures, decoding is the slower half" in plan.page(slow)


# -- measuring -------------------------------------------------------------------------------------


def test_the_photograph_is_as_large_as_imagenets() -> None:
    """The picture that decoding is measured on has the bytes of ImageNet's mean one, give or take a
    fifth.
    """
    assert 90_000 < len(rates.photograph()) < 135_000


def test_a_rate_is_work_over_time() -> None:
    """Ten units of work a tick of the clock are a rate of ten; the first round, which warms up,
    does not count.
    """
    ticks = iter(range(100))
    done = []

    def work() -> int:
        done.append(10)
        return 10

    assert rates._rate(work, 5.0, lambda: float(next(ticks))) == 8.0
    assert len(done) == 1 + 4
