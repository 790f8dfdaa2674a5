"""Accepting a measurement: what is shown first, what is kept, what is left behind."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import replace

import pytest
from made_records import (
    GPU,
    XEON,
    outcomes,
    record,
    record_path,
    snapshot,
    speeds,
    stored,
    task_record,
    with_changes,
)

from harness import baselines
from harness.baselines import Record, Store, compare
from harness.errors import UsageError


@pytest.mark.parametrize("reason", [None, "", "  ", "\n\t", baselines.PLACEHOLDER])
def test_update_without_a_reason_is_refused(store: Store, reason: str | None) -> None:
    """No reason, or the placeholder that messages show, writes nothing."""
    with pytest.raises(UsageError, match="needs a reason"):
        store.update(record(task_record()), reason=reason)
    assert not store.root.exists()


def test_update_shows_the_diff_before_it_writes(store: Store) -> None:
    """The diff comes while the old record is still there, and whoever raises on it stops the
    writing.
    """
    path = record_path(store)
    before = path.read_bytes()

    def refuse(text: str) -> None:
        assert path.read_bytes() == before
        assert "difference -1.00 to -3.00 points" in text
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.update(
            record(task_record(quantized=with_changes(outcomes(), 50, 20))), reason="x", show=refuse
        )
    assert path.read_bytes() == before


def test_diff_tells_loosened_from_tightened(store: Store) -> None:
    """What lets more pass from now on stands apart from what lets less, number by number."""
    was = record(
        task_record(beyond={"kl_mean": 0.01, "cosine_min": 0.9, "top5_agreement": 0.8}),
        task_record(outcomes(4, task="imagenet1k"), decision="FAIL"),
    )
    store.write(was, "first")
    now = record(
        task_record(
            quantized=with_changes(outcomes(), 60, 20),
            beyond={"kl_mean": 0.02, "cosine_min": 0.95, "top5_agreement": 0.7},
            decision="INCONCLUSIVE",
        ),
        task_record(
            outcomes(4, task="imagenet1k"), with_changes(outcomes(4, task="imagenet1k"), 10, 20)
        ),
    )

    plan = store.plan(now, reason="recipe")

    loosened, tightened = "\n".join(plan.changes.loosened), "\n".join(plan.changes.tightened)
    for line in (
        "difference -1.00 to -4.00",
        "verdict PASS to INCONCLUSIVE",
        "kl_mean 0.01 to 0.02",
        "top5_agreement 0.8 to 0.7",
    ):
        assert line in loosened
        assert line not in tightened
    for line in ("difference -1.00 to +1.00", "verdict FAIL to PASS", "cosine_min 0.9 to 0.95"):
        assert line in tightened
        assert line not in loosened
    assert plan.text.index("loosened") < plan.text.index("tightened")


def test_upgrade_shows_what_moved(store: Store) -> None:
    """The diff of an upgrade sets old and new numbers side by side, reference and quantized model
    apart.
    """
    store.write(record(task_record()), "first")
    newer = {"nvidia-modelopt": "0.47.0", "torch": "2.14.0", "transformers": "5.14.1"}
    moved = record(
        task_record(with_changes(outcomes(), 5), with_changes(outcomes(), 35, 20)), versions=newer
    )

    text = store.update(moved, reason="torch 2.14").text

    assert "torch 2.13.0 to 2.14.0" in text
    assert re.search(
        r"reference \d+\.\d+ % to \d+\.\d+ % \(5 of 1,000 answers changed, 5 lost, 0 won", text
    )
    assert re.search(
        r"quantized \d+\.\d+ % to \d+\.\d+ % \(5 of 1,000 answers changed, 5 lost, 0 won", text
    )


def test_history_is_kept(store: Store) -> None:
    """Every acceptance stays in the record: day, reason and what it changed."""
    store.write(record(task_record()), "first light")
    store.write(
        record(task_record(quantized=with_changes(outcomes(), 40, 20))),
        "per-channel\n\x1b[31mweights",
    )

    history = stored(store).history

    assert [h.reason for h in history] == ["first light", "per-channel [31mweights"]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", h.date) for h in history)
    assert "loosened: cifar100 acc1: difference -1.00 to -2.00 points" in history[1].changes


def test_unchanged_measurement_writes_nothing(store: Store) -> None:
    """Measured again with the same result, and a speed that differs as timings do, no byte of the
    store changes.
    """
    store.write(record(task_record()), "first")
    before = snapshot(store.root)

    change = store.write(
        replace(record(task_record()), throughput=speeds(vision=0.175, text=0.199)), "again"
    )

    assert change.action == "unchanged"
    assert snapshot(store.root) == before


def test_new_only_adds_and_never_changes(store: Store) -> None:
    """A new task and a new device are added; what is there stays, whatever was measured."""
    store.write(record(task_record()), "first")
    was = stored(store).task("cifar100", "acc1")
    other = task_record(outcomes(4, task="imagenet1k"))

    change = store.update(
        record(task_record(quantized=with_changes(outcomes(), 90)), other), new_only=True
    )
    assert change.action == "changed"
    merged = stored(store)
    now = merged.task("cifar100", "acc1")
    assert was is not None
    assert now is not None
    assert was.quantized.bits == now.quantized.bits
    assert merged.task("imagenet1k", "acc1") is not None

    before = snapshot(store.root)
    assert store.update(record(task_record(), recipe_hash="f" * 64), new_only=True).action == "kept"
    assert snapshot(store.root) == before

    assert store.update(record(task_record(), device=GPU), new_only=True).action == "added"
    assert stored(store, device=GPU).reason == "new baseline"
    assert before.items() <= snapshot(store.root).items()


def test_part_of_a_record_keeps_the_rest_of_the_same_foundation(store: Store) -> None:
    """One task measured leaves the others; under another recipe hash they do not belong: they go,
    and it is reported.
    """
    other = task_record(outcomes(4, task="imagenet1k"))
    store.write(record(task_record(), other), "first")

    store.write(record(task_record(quantized=with_changes(outcomes(), 40, 20))), "one task")
    assert [t.task for t in stored(store).tasks] == ["cifar100", "imagenet1k"]
    store.write(replace(record(), throughput=None), "the map only")
    assert [t.task for t in stored(store).tasks] == ["cifar100", "imagenet1k"]
    assert stored(store).throughput == speeds(vision=0.17, text=0.2)

    change = store.update(record(task_record(), recipe_hash="f" * 64), reason="recipe")
    assert "imagenet1k acc1: taken out, not measured in this run" in "\n".join(
        change.changes.loosened
    )
    assert [t.task for t in stored(store).tasks] == ["cifar100"]


def test_case_that_cannot_stand_alone_is_accepted_with_its_recipe(store: Store) -> None:
    """One case is accepted alone where the rest of the record still belongs to it, else with its
    whole recipe.
    """
    was = stored(store, record(task_record()))
    moved = task_record(quantized=with_changes(outcomes(), 60, 20))
    nodeid = "tests/test_accuracy.py::test_it[fp8-embedded]"

    alone = compare(was, record(moved)).accept_command(nodeid)
    assert shlex.split(alone)[:2] == ["pytest", nodeid]
    for changed in ({"device": GPU}, {"recipe_hash": "f" * 64}, {"bits": "4 threads"}):
        assert nodeid not in compare(was, record(moved, **changed)).accept_command(nodeid)


def test_records_left_behind_on_other_devices_are_named(store: Store) -> None:
    """An update under a new recipe hash names the other devices' records that still belong to the
    old one.
    """
    store.write(record(task_record(), device=GPU), "gpu")

    stale = store.write(record(task_record(), recipe_hash="f" * 64), "recipe").stale

    assert len(stale) == 1
    assert "record@sm90@nvidia-h200.json" in stale[0]
    assert "belongs to recipe hash bbbbbbbbbbbb" in stale[0]
    assert "rm -r -- " in stale[0]
    assert (
        store.write(record(task_record(), recipe_hash="f" * 64, device=GPU), "recipe").stale == ()
    )


def test_outcomes_nobody_names_are_swept(store: Store) -> None:
    """A replaced record takes its old outcomes with it; those of other recipes and devices stay."""
    store.write(record(task_record()), "first")
    store.write(record(task_record(), recipe="int8"), "first")
    store.write(record(task_record(), device=GPU), "first")
    shared = {name for name in snapshot(store.root) if "reference" in name}
    assert len(shared) == 1

    store.write(record(task_record(outcomes(9))), "other outcomes")

    assert shared < {name for name in snapshot(store.root) if "reference" in name}
    for model, recipe, device in (
        ("embedded", "int8", XEON),
        ("embedded", "fp8", GPU),
        ("embedded", "fp8", XEON),
    ):
        assert isinstance(store.find(model, recipe, device), Record)
    for recipe, device in (("int8", XEON), ("fp8", GPU)):
        store.write(record(task_record(outcomes(9)), recipe=recipe, device=device), "the same")
    assert len({name for name in snapshot(store.root) if name.endswith(".safetensors")}) == 3


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="rights do not bind root")
def test_unwritable_store_is_a_usage_error(store: Store) -> None:
    """A folder that cannot be written is reported in one line."""
    store.root.mkdir()
    store.root.chmod(0o500)
    with pytest.raises(UsageError, match="cannot be written"):
        store.write(record(task_record()), "test")


def test_store_that_is_a_file_is_a_usage_error(store: Store) -> None:
    """A file where the folder should be is reported in one line."""
    store.root.parent.mkdir()
    store.root.write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        store.write(record(task_record()), "test")
