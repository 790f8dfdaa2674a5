"""What a record keeps: it comes back as it was, as text that people review."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import (
    MAP,
    outcomes,
    quantizer,
    record,
    snapshot,
    stored,
    task_record,
    with_changes,
)

from harness.baselines import SampleOutcomes, Store
from harness.errors import UsageError


def test_record_comes_back_as_it_was(store: Store) -> None:
    """What is found again equals what was written, sample by sample and number by number."""
    fresh = record(
        task_record(), task_record(outcomes(5, 333, "mscoco", "text_retrieval_recall@5", 40_000))
    )

    read_back = stored(store, fresh)

    assert read_back.provenance == fresh.provenance
    assert read_back.quantizers == fresh.quantizers
    assert read_back.throughput == fresh.throughput
    assert read_back.reason == "test"
    assert [t.name for t in read_back.tasks] == ["cifar100 acc1", "mscoco text_retrieval_recall@5"]
    for was, now in zip(fresh.tasks, read_back.tasks, strict=True):
        for side in ("reference", "quantized"):
            a, b = getattr(was, side), getattr(now, side)
            assert np.array_equal(a.correct, b.correct)
            assert np.array_equal(a.answers, b.answers)
            assert np.array_equal(a.margins, b.margins)
            assert a.bits == b.bits
        assert (was.decision, was.interval, was.budget, was.beyond) == (
            now.decision,
            now.interval,
            now.budget,
            now.beyond,
        )
        assert (was.lost, was.won, was.changed, was.difference) == (
            now.lost,
            now.won,
            now.changed,
            now.difference,
        )


def test_derived_numbers_follow_from_the_outcomes() -> None:
    """Lost, won, changed, difference and percentages are those of the samples."""
    task = task_record(outcomes(), with_changes(outcomes(), lose=30, win=20))

    assert (task.lost, task.won, task.changed, task.count) == (30, 20, 50, 1000)
    assert task.difference == pytest.approx(-1.0)
    assert task.percent_quantized == pytest.approx(task.percent_reference - 1.0)


def test_record_is_text_to_review(store: Store) -> None:
    """Keys are sorted, every quantizer has one line, in the order of the model."""
    quantizers = tuple(quantizer(layer) for layer in (2, 10, 1))
    path = store.write(record(task_record(), quantizers=quantizers), "first").path
    lines = path.read_text().splitlines()

    top = [match[1] for line in lines if (match := re.match(r' "(\w+)":', line))]
    assert top == sorted(top)
    rows = [line for line in lines if "q_bmm_quantizer" in line]
    assert [re.findall(r"layers\.(\d+)", row) for row in rows] == [["2"], ["10"], ["1"]]


def test_margins_beyond_float16_are_clipped_and_nan_is_refused() -> None:
    """A huge margin is kept as float16's largest, without a warning; NaN cannot become a
    baseline.
    """
    three = outcomes(n=3)

    clipped = SampleOutcomes.of(replace(three, margins=np.array([1e9, -1e9, np.inf], np.float32)))

    assert clipped.margins.tolist() == [65504.0, -65504.0, 65504.0]
    with pytest.raises(ValueError, match="1 margins are NaN"):
        SampleOutcomes.of(replace(three, margins=np.array([0, np.nan, 1], np.float32)))


@given(st.integers(1, 70), st.integers(2, 70_000), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_outcomes_survive_packing(
    tmp_path_factory: pytest.TempPathFactory, n: int, classes: int, seed: int
) -> None:
    """Any count of samples and of classes, within int16 or beyond, survives the way through bits
    and back.
    """
    task = task_record(outcomes(seed, n, classes=classes))
    task = replace(
        task, quantized=replace(task.quantized, answers=task.quantized.answers * (classes - 1))
    )
    store = Store(tmp_path_factory.mktemp("packing"))

    read_back = stored(store, record(task)).tasks[0]

    assert np.array_equal(read_back.quantized.correct, task.quantized.correct)
    assert np.array_equal(read_back.quantized.answers, task.quantized.answers)
    assert np.array_equal(read_back.reference.margins, task.reference.margins)


def test_pair_of_different_samples_is_refused() -> None:
    """Reference and quantized outcomes of other samples are no pair."""
    with pytest.raises(ValueError, match="not a pair"):
        task_record(outcomes(), replace(outcomes(), sample_ids=outcomes().sample_ids[::-1]))


def test_what_could_not_be_read_again_is_not_written(store: Store) -> None:
    """A decision that is not one, or an amax that is not finite, is refused before anything reaches
    the disk.
    """
    nan = quantizer(amax={"count": 1, "low": float("nan"), "high": 1.0, "digest": "0"})
    for bad in (
        record(task_record(decision="MAYBE")),
        record(quantizers=(nan,)),
        record(quantizers=(MAP[0], MAP[0])),
    ):
        with pytest.raises(UsageError, match="cannot be stored"):
            store.write(bad, "bad")
    assert snapshot(store.root) == {}
