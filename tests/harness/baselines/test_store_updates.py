"""What an update does and says, and what its history keeps."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from made_records import (
    GPU,
    LAPTOP,
    MAP,
    OTHER_XEON,
    XEON,
    outcomes,
    quantizer,
    record,
    speeds,
    stored,
    task_record,
    with_changes,
)
from store_helpers import Clock, named, said

from harness.baselines import Store
from harness.baselines import store as store_module
from harness.baselines.drift import Changes, changes
from harness.baselines.records import HistoryEntry
from harness.baselines.store import Change

# -- what an update does


def test_plan_of_a_first_record_adds_it_and_writes_nothing(store: Store, clock: Clock) -> None:
    """No record yet: it is added whole, with the time, the reason and one line of history; the disk
    stays empty.
    """
    second, first = task_record(outcomes(4, task="imagenet1k")), task_record()

    change = store.plan(record(second, first), reason="  first \n\x1b light ")

    assert (change.action, change.reason, change.changes, change.stale) == (
        "added",
        "first light",
        Changes(),
        (),
    )
    assert (
        change.path
        == store.root / "embedded" / "fp8" / "record@x86_64-avx512@xeon-8488c-0a1b2c3d.json"
    )
    assert change.record is not None
    assert change.record.tasks == (first, second)
    assert change.record.history == (
        HistoryEntry("2026-01-02", "first light", ("first measured",)),
    )
    assert change.record.measured == "2026-01-02T23:04:05Z"
    assert not store.root.exists()
    assert store.plan(record(), new_only=True).reason == "new baseline"
    assert store.plan(record(), new_only=True, reason=" why ").reason == "why"
    assert said(lambda: store.plan(record(), reason="say why")) == (
        "--update-baselines: changing baselines needs a reason. Say it: --reason 'torch 2.14, "
        "reviewed'"
    )


@pytest.mark.parametrize(("new_only", "action"), [(False, "unchanged"), (True, "kept")])
def test_plan_of_an_equal_record_has_nothing_to_write(
    store: Store, new_only: bool, action: str
) -> None:
    """The same once more: nothing to write, in the word for what was asked."""
    path = store.write(record(task_record()), "first").path

    change = store.plan(record(task_record()), reason="again", new_only=new_only)

    assert change == Change(action, path, Changes(), "again")


def test_plan_of_a_changed_record_keeps_what_was_not_measured(store: Store, clock: Clock) -> None:
    """One task and one speed measured again replace theirs; the rest stays, and the history goes
    on.
    """
    other_task = task_record(outcomes(4, task="imagenet1k"))
    was = replace(record(task_record(), other_task), throughput=speeds(vision=0.17, text=0.2))
    path = store.write(was, "first").path
    clock.time += timedelta(hours=1)
    moved = task_record(quantized=with_changes(outcomes(), 60, 20))

    change = store.plan(replace(record(moved), throughput=speeds(text=0.4)), reason="second")

    assert (change.action, change.path, change.reason) == ("changed", path, "second")
    now = change.record
    assert now is not None
    assert change.changes == changes(stored(store), now)
    assert change.changes.loosened[0].startswith("cifar100 acc1: difference -1.00 to -4.00 points")
    assert now.tasks[0] is moved
    assert [t.quantized.bits for t in now.tasks[1:]] == [other_task.quantized.bits]
    assert now.throughput == speeds(vision=0.17, text=0.4)
    assert now.history == (
        HistoryEntry("2026-01-02", "first", ("first measured",)),
        HistoryEntry("2026-01-03", "second", change.changes.lines),
    )
    assert now.measured == "2026-01-03T00:04:05Z"


def test_plan_of_new_ones_only_adds_beside_what_is_there(store: Store) -> None:
    """New tasks and speeds are added; stored ones, their ranges and their conditions stay as they
    are.
    """
    store.write(replace(record(task_record()), throughput=speeds(vision=0.17)), "first")
    new = task_record(outcomes(4, task="imagenet1k"))
    ranges = tuple(
        quantizer(i, amax={"count": 1, "low": 9.0, "high": 9.0, "digest": "0" * 16})
        for i in range(12)
    )
    moved = task_record(quantized=with_changes(outcomes(), 60, 20))
    fresh = replace(record(moved, new, quantizers=ranges), throughput=speeds(vision=0.5, text=0.2))

    change = store.plan(fresh, new_only=True)

    assert change.action == "changed"
    assert change.changes == Changes(
        tightened=(
            "imagenet1k acc1: added, " + f"{new.percent_quantized:.2f} % (-1.00 points), PASS",
            "throughput, text: added",
        )
    )
    now = change.record
    assert now is not None
    assert now.quantizers == MAP
    assert [t.quantized.bits for t in now.tasks] == [
        task_record().quantized.bits,
        new.quantized.bits,
    ]
    assert now.throughput == speeds(vision=0.17, text=0.2)
    others: list[dict[str, Any]] = [{"recipe_hash": "f" * 64}, {"bits": "4 threads"}]
    for foreign in others:
        plan = store.plan(record(moved, new, **foreign), new_only=True)
        assert (plan.action, plan.record) == ("kept", None), (
            "of another foundation: nothing is added to it"
        )


def test_record_of_another_foundation_replaces_all(store: Store) -> None:
    """Under another recipe hash nothing stored stays: tasks and speeds that were not measured
    go.
    """
    store.write(record(task_record(), task_record(outcomes(4, task="imagenet1k"))), "first")

    now = store.plan(
        replace(record(task_record(), recipe_hash="f" * 64), throughput=None), reason="new"
    ).record

    assert now is not None
    assert [t.task for t in now.tasks] == ["cifar100"]
    assert not now.throughput


def test_records_of_other_devices_left_behind_are_told(store: Store) -> None:
    """Records of another recipe are left behind; those of another release alone are not, nor is
    this device's own.
    """
    paths = {
        d: store.write(record(task_record(), device=d), "old").path for d in (XEON, GPU, LAPTOP)
    }
    older = {"nvidia-modelopt": "0.40.0", "torch": "2.13.0", "transformers": "5.14.1"}
    store.write(
        record(task_record(), device=OTHER_XEON, versions=older, recipe_hash="f" * 64), "old"
    )

    stale = store.plan(record(task_record(), recipe_hash="f" * 64), reason="new").stale

    assert stale == tuple(
        f"left behind, {paths[d]}: this baseline belongs to recipe hash bbbbbbbbbbbb; this run has "
        f"ffffffffffff. "
        f"Measure there too, or remove it: rm -r -- {paths[d]}"
        for d in (GPU, LAPTOP)
    )
    other = store.plan(
        record(task_record(), recipe_hash="f" * 64, device=named("new", "sm80")), reason="new"
    )
    assert (other.action, len(other.stale)) == ("added", 3)
    assert len(store.plan(record(recipe_hash="f" * 64), new_only=True).stale) == 2


def test_left_behind_is_told_by_what_left_it(store: Store) -> None:
    """Where releases and the recipe differ, it is the recipe that is reported."""
    other = replace(
        record(recipe_hash="e" * 64, versions={"torch": "2.0.0"}, device=GPU),
        path=Path("there.json"),
    )

    (line,) = store_module._stale(other, record())

    assert line.startswith(
        "left behind, there.json: this baseline belongs to recipe hash eeeeeeeeeeee; this run has b"
    )
    assert list(store_module._stale(replace(other, path=None), record())) == [], "it is not on disk"
    data = replace(
        record(task_record(data_hash="0" * 64), versions={"torch": "2.0.0"}),
        path=Path("there.json"),
    )
    (line,) = store_module._stale(data, record(task_record()))
    assert (
        "belongs to cifar100 acc1 with the data hash 000000000000; this run has dddddddddddd"
        in line
    )


def test_diff_is_told_line_by_line() -> None:
    """What is done to which file, each kind of change under its title, the reason if it is written,
    what is left.
    """
    changed = Changes(("a", "b"), ("c",), ("d",))
    whole = Change(
        "changed", Path("r.json"), changed, "why", ("left behind, x", "left behind, y"), record()
    )
    assert whole.text == (
        "changed: r.json\n"
        "  loosened, lets more pass from now on:\n"
        "    a\n"
        "    b\n"
        "  tightened:\n"
        "    c\n"
        "  neither:\n"
        "    d\n"
        "  reason: why\n"
        "  left behind, x\n"
        "  left behind, y"
    )
    assert Change("kept", Path("r.json"), Changes(), "why").text == "kept: r.json"


# -- history


def test_acceptances_of_one_day_and_reason_are_one(store: Store, clock: Clock) -> None:
    """Parts of one run make one entry, each line once; another reason or another day makes
    another.
    """
    tasks = [task_record(outcomes(i, task=f"task{i}")) for i in range(6)]
    for task, reason, hours in zip(
        tasks, ("run", "run", "other", "run", "run", "run"), (0.5, 0, 0, 1, 0, 0), strict=True
    ):
        store.write(record(task), reason)
        clock.time += timedelta(hours=hours)

    added = [
        f"tightened: task{i} acc1: added, {task.percent_quantized:.2f} % (-1.00 points), PASS"
        for i, task in enumerate(tasks)
    ]
    assert stored(store).history == (
        HistoryEntry("2026-01-02", "run", ("first measured", added[1])),
        HistoryEntry("2026-01-02", "other", (added[2],)),
        HistoryEntry("2026-01-02", "run", (added[3],)),
        HistoryEntry("2026-01-03", "run", (added[4], added[5])),
    )


@pytest.mark.parametrize(
    ("count", "last"),
    [
        (59, "line 58"),
        (60, "line 59"),
        (61, "... and 1 more lines"),
        (100, "... and 40 more lines"),
    ],
)
def test_history_is_cut_at_sixty_lines(clock: Clock, count: int, last: str) -> None:
    """An entry has at most sixty lines, each once, and one that counts the rest."""
    lines = [f"line {i}" for i in range(count)]

    sealed = store_module._sealed(record(), (), "why", [*lines, *lines])

    assert [e.reason for e in sealed.history] == ["why"]
    assert sealed.history[0].changes == (*lines[:60], *([last] if count > 60 else []))
    assert sealed.history[0].changes[-1] == last
