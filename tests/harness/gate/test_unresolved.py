"""Budgets that a run's samples cannot resolve are refused where nothing is recorded."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.gate import unresolved
from harness.statistics import budgets

POLICY = """
defaults: {points: 1.0, discordance: 0.04}
tasks:
  own: {points: 0.7}
"""


@pytest.fixture
def policy(tmp_path: Path) -> budgets.Policy:
    """A budgets file with one task of its own."""
    path = tmp_path / "budgets.yaml"
    path.write_text(POLICY)
    return budgets.load(path)


@pytest.mark.parametrize(
    ("task", "n", "said"),
    [
        ("own", 1000, "own (acc1) has 1,000 samples, which cannot resolve a budget of 0.7 points"),
        ("own", 10_000, None),
        ("new", 1000, "Write under tasks: `new: {samples: 1000, points: 2.0}`"),
        ("new", 10_000, None),
    ],
)
def test_a_budget_is_refused_by_what_it_declares(
    policy: budgets.Policy, task: str, n: int, said: str | None
) -> None:
    """A task with too few samples for its own budget, or for the default, is refused with the
    numbers that would do.
    """
    held = {(task, "acc1"): [policy.budget(task, "acc1")]}

    refused = [str(refusal) for refusal in unresolved.refusals(policy, {(task, "acc1"): n}, held)]

    assert len(refused) == (said is not None)
    assert all(said in line for line in refused if said)


def test_nothing_is_refused_where_everything_is_recorded(policy: budgets.Policy) -> None:
    """A task whose cases all have a record is judged, however few its samples are."""
    assert unresolved.refusals(policy, {("own", "acc1"): 10}, {}) == []
