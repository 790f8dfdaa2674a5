"""An early stop takes whole clusters in random order, says how much it used, and agrees with the
whole task.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest

from harness.data.tasks import Task
from harness.errors import UsageError
from harness.evaluation import early
from harness.gate.case import Case
from harness.gate.options import Options
from harness.gate.preflight import preflight
from harness.gate.session import Gate
from harness.statistics.verdicts import Decision


@pytest.fixture(scope="module")
def gate() -> Gate:
    """An early-stopping gate on one task."""
    return Gate(Options(recipes=("int8",), tasks=("emoji100",), early_stop=True))


@pytest.fixture(scope="module")
def case(gate: Gate) -> Case:
    """Its one case."""
    return gate.cases()[0]


@pytest.fixture(scope="module")
def task(gate: Gate, case: Case) -> Task:
    """Its one task: a hundred drawings, ten views of each."""
    return case.tasks[0]


def test_blocks_are_the_task_in_another_order(task: Task) -> None:
    """Every sample is in exactly one block, and no cluster is in two."""
    parts = list(early.blocks(task))

    assert sorted(name for part in parts for name in part.sample_ids) == sorted(task.sample_ids)
    assert len(parts) > 2
    clusters = [set(part.clusters.tolist()) for part in parts]
    assert sum(map(len, clusters)) == len(set.union(*clusters))


def test_order_is_random_and_seeded(task: Task) -> None:
    """The first block is not a prefix of the data set, and it is the same block every time."""
    first, again = next(early.blocks(task)), next(early.blocks(task))

    assert first.sample_ids == again.sample_ids
    assert set(first.sample_ids) != set(task.sample_ids[: len(first.sample_ids)])


def test_stopped_outcomes_equal_those_of_the_whole_task(gate: Gate, case: Case, task: Task) -> None:
    """What was evaluated before the stop is bit for bit what the whole evaluation gives those
    samples.
    """
    stopped = case.runs[1][task.name].outcomes["acc1"]
    whole = case.quantized_runs[task.name].outcomes["acc1"]
    at = [whole.sample_ids.index(name) for name in stopped.sample_ids]

    assert np.array_equal(stopped.answers, whole.answers[at])
    assert np.array_equal(stopped.margins, whole.margins[at])


def test_verdict_says_how_much_was_used(gate: Gate, case: Case, task: Task) -> None:
    """The verdict's share of samples is that of the outcomes it rests on."""
    verdict = case.verdict(task.name, "acc1")
    used = len(case.runs[0][task.name].outcomes["acc1"].sample_ids)

    assert verdict.fraction_used == used / len(task.sample_ids)


def test_wide_budget_is_decided_before_the_end(gate: Gate, case: Case, task: Task) -> None:
    """A loss far inside its budget passes on a part of the samples."""
    subjects = case.shared.subject, case.subject
    sides = [
        early.Evaluation(functools.partial(gate.evaluator.embed, subject), task)
        for subject in subjects
    ]
    budget = dataclasses.replace(case.budget(task.name, "acc1"), points=30.0)

    stopped = early.judge(task, "acc1", budget, *sides)

    assert stopped.verdict.decision is Decision.PASS
    assert stopped.verdict.fraction_used < 1


def test_retrieval_is_not_stopped() -> None:
    """A retrieval task is always evaluated whole."""
    gate = Gate(Options(recipes=("int8",), tasks=("emoji_captions",), early_stop=True))

    assert not early.can_stop(gate.cases()[0].tasks[0])


@pytest.mark.parametrize(
    ("task", "terms", "early_stop", "is_refused"),
    [
        ("emoji100", "share: 0.9", True, True),
        ("emoji100", "preset: mlperf-99, alpha: 0.4", True, True),
        ("emoji100", "share: 0.9", False, False),
        ("emoji100", "points: 9.0", True, False),
        ("emoji_captions", "share: 0.9", True, False),
    ],
)
def test_a_share_is_refused_before_anything_is_computed(
    tmp_path: Path, task: str, terms: str, early_stop: bool, is_refused: bool
) -> None:
    """The look at what was given refuses it, at the line of the budget; not on a task that is never
    stopped.
    """
    (tmp_path / "budgets.yaml").write_text(
        f"defaults: {{points: 9.0}}\ntasks:\n  {task}: {{{terms}}}\n"
    )
    gate = Gate(
        Options(recipes=("int8",), tasks=(task,), early_stop=early_stop, baselines=tmp_path)
    )
    refused = ""
    try:
        preflight(gate, accuracy=True)
    except UsageError as error:
        (refused,) = error.lines

    assert bool(refused) == is_refused
    if is_refused:
        assert refused.startswith(f"{tmp_path / 'budgets.yaml'}:3")
        assert f"the budget of {task} is a share" in refused
        assert "Leave --early-stop out" in refused
