"""What drift says: every kind of change in its own words, on its own side, and nothing where
nothing changed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_records import (
    GPU,
    MAP,
    OTHER_XEON,
    XEON,
    other_order,
    outcomes,
    quantizer,
    record,
    speeds,
    task_record,
    with_changes,
)

from harness.baselines import Drift, Kind, NoiseLimits, Record, SampleOutcomes, compare
from harness.baselines import drift as drift_module
from harness.baselines.drift import Changes, changes
from harness.evaluation.environment import Nearness

BITS = "torch 2.13.0+cpu, batch 64, 2 threads"


# -- what a person is about to accept


def test_equal_records_have_nothing_to_accept() -> None:
    """Replacing a record by its equal changes nothing, and that is false; any line on any side is
    true.
    """
    assert changes(record(task_record()), record(task_record())) == Changes()
    assert not Changes()
    assert all((Changes(("x",)), Changes(tightened=("x",)), Changes(other=("x",))))
    assert Changes(("a",), ("b",), ("c",)).lines == ("loosened: a", "tightened: b", "c")


def test_conditions_and_ranges_are_described_and_let_nothing_through() -> None:
    """Other conditions, a range that moved by less than any tolerance and a quantizer turned off
    are reported as what they are, and count neither as loosened nor as tightened.
    """
    moved = quantizer(3, amax={"count": 1, "low": 3.251, "high": 3.251, "digest": "0" * 16})
    differences = changes(
        record(), record(quantizers=(*MAP[:3], moved, *MAP[4:]), bits="4 threads")
    )
    assert differences == Changes(
        other=(
            f"conditions {BITS} to 4 threads",
            "1 quantizer changes: vision self_attn q_bmm amax 3.25 to 3.251, layers 3",
        )
    )

    off = quantizer(3, enabled=False)
    differences = changes(record(), record(quantizers=(*MAP[:2], replaced(2, 9.0), off, *MAP[4:])))
    assert differences == Changes(
        other=("1 quantizer changes: vision self_attn q_bmm E4M3 per-tensor to off, layers 3",)
    ), "the structure first; its ranges are reported once it is the same"


def replaced(layer: int, amax: float) -> dict[str, Any]:
    """The row of *layer* with another range."""
    return quantizer(layer, amax={"count": 1, "low": amax, "high": amax, "digest": "1" * 16})


def test_speed_that_goes_or_slows_is_loosened_and_one_that_comes_or_quickens_is_tightened() -> None:
    """A tower's speed taken out or slower lets more pass, one added or faster lets less; noise is
    neither.
    """
    base = record()
    both = replace(base, throughput=speeds(vision=0.17, text=0.2))
    none = replace(base, throughput=None)
    vision, text = (
        replace(base, throughput=speeds(vision=0.17)),
        replace(base, throughput=speeds(text=0.2)),
    )
    gone, came = "throughput, {}: taken out, not measured in this run", "throughput, {}: added"

    assert changes(both, vision) == Changes(loosened=(gone.format("text"),))
    assert changes(vision, both) == Changes(tightened=(came.format("text"),))
    assert changes(vision, text) == Changes((gone.format("vision"),), (came.format("text"),))
    assert changes(both, none) == Changes(loosened=(gone.format("text"), gone.format("vision")))
    assert changes(none, both) == Changes(tightened=(came.format("text"), came.format("vision")))

    other = replace(base, throughput=speeds(vision=0.08, text=0.4))
    slower = "throughput, vision: 0.17 [0.166, 0.174] to 0.08 [0.078, 0.082] of the reference's"
    faster = "throughput, text: 0.2 [0.195, 0.205] to 0.4 [0.39, 0.41] of the reference's"
    assert changes(both, other) == Changes((slower,), (faster,))
    assert changes(both, replace(base, throughput=speeds(vision=0.171, text=0.2))) == Changes()


def test_other_samples_are_described_without_comparing_sample_by_sample() -> None:
    """Where the new record has other samples its percentages stand next to the old ones, and no
    sample is held against one that it is not, neither for another count nor for another order.
    """
    fewer = outcomes(1, n=900)
    was, now = task_record(), task_record(fewer, with_changes(fewer, 30, 20))
    differences = changes(record(was), record(now))

    assert differences.other == (
        "cifar100 acc1: 1,000 samples to 900",
        f"cifar100 acc1: reference {was.percent_reference:.2f} % to {now.percent_reference:.2f} %",
        f"cifar100 acc1: quantized {was.percent_quantized:.2f} % to {now.percent_quantized:.2f} %",
    )
    assert differences.loosened == ("cifar100 acc1: difference -1.00 to -1.11 points",)

    reordered = changes(record(task_record()), record(task_record(other_order())))
    assert "answers changed" not in "\n".join(reordered.lines)
    assert (
        "cifar100 acc1: another order of the samples to the same 1,000 samples reordered"
        in reordered.other
    )


def test_tasks_that_come_and_go_are_on_their_sides() -> None:
    """A task taken out lets everything pass there; one added, with its numbers and verdict, does
    not.
    """
    first, other = (
        task_record(),
        task_record(outcomes(4, task="imagenet1k"), decision="INCONCLUSIVE"),
    )

    assert changes(record(first, other), record(first)).loosened == (
        "imagenet1k acc1: taken out, not measured in this run",
    )
    assert changes(record(first), record(first, other)) == Changes(
        tightened=(
            f"imagenet1k acc1: added, {other.percent_quantized:.2f} % (-1.00 points), INCONCLUSIVE",
        )
    )


def test_budget_and_interval_are_told_and_are_policy_not_a_measurement() -> None:
    """Another budget or interval of equal outcomes is described with both numbers, on neither
    side.
    """
    now = task_record(budget=2.5, interval=(-2.5, 0.25))

    assert changes(record(task_record()), record(now)) == Changes(
        other=(
            "cifar100 acc1: budget 3 to 2.5 points",
            "cifar100 acc1: interval -2.40..+0.40 to -2.50..+0.25",
        )
    )


def test_numbers_beyond_accuracy_that_come_go_and_move_are_on_their_sides() -> None:
    """A number taken out is loosened and one added tightened, whichever way it would move; equal
    ones are passed over, and of the rest the name decides whether higher is better.
    """
    was = task_record(
        beyond={"a_same": 1.0, "cosine_p1": 0.9, "kl_mean": 0.01, "top5_overlap": 0.5, "z_kl": 2.0}
    )
    now = task_record(
        beyond={"a_same": 1.0, "kl_max": 0.5, "kl_mean": 0.02, "top5_overlap": 0.25, "z_kl": 1.5}
    )

    assert changes(record(was), record(now)) == Changes(
        loosened=(
            "cifar100 acc1: cosine_p1 0.9 to none, kl_mean 0.01 to 0.02, top5_overlap 0.5 to 0.25",
        ),
        tightened=("cifar100 acc1: kl_max none to 0.5, z_kl 2 to 1.5",),
    )


# -- changes of the map that the grouped diff does not show


def test_quantizers_in_another_order_are_named_in_both() -> None:
    """The first place where two orders differ is reported with what stood there and what stands
    there.
    """
    swapped = (MAP[0], MAP[2], MAP[1], *MAP[3:])

    assert drift_module.map_changes(record(), record(quantizers=swapped)) == [
        f"the order of the quantizers: {MAP[1]['name']} to {MAP[2]['name']}"
    ]
    assert drift_module.map_changes(record(), record(quantizers=(*MAP, MAP[0]))) == [
        "12 quantizers to 13"
    ]


def test_attributes_that_the_diff_does_not_know_are_told_with_both_values() -> None:
    """Of attributes that only one side has, or that differ, the first quantizer's are reported, sorted,
    with the count.
    """
    was = (*MAP[:2], *(quantizer(layer, old=1) for layer in range(2, 12)))
    now = (*MAP[:2], *(quantizer(layer, new=2, tower="text") for layer in range(2, 12)))

    assert drift_module.map_changes(record(quantizers=was), record(quantizers=now)) == [
        f"10 quantizers change, first {MAP[2]['name']}: new None to 2, old 1 to None, tower vision "
        f"to text"
    ]


# -- what a comparison says and how it decides


def verdict(was: Record, now: Record, limits: NoiseLimits | None = None) -> Drift:
    """The two compared by verdict, as neither promises bits."""
    bare = [replace(r, provenance=replace(r.provenance, bits=None)) for r in (was, now)]
    return compare(bare[0], bare[1], limits)


def test_change_of_outcomes_is_told_in_numbers() -> None:
    """Answers, losses, wins and the largest step of a margin, or that float16 does not show it."""
    was = SampleOutcomes.of(replace(outcomes(), margins=np.zeros(1000, np.float32)))
    nudged = replace(
        with_changes(outcomes(), 3, 2), margins=np.linspace(-1.5, 0.5, 1000, dtype=np.float32)
    )

    assert drift_module.outcome_change(was, SampleOutcomes.of(nudged)) == (
        "5 of 1,000 answers changed, 3 lost, 2 won, margins by up to 1.5"
    )
    assert drift_module.outcome_change(was, was) == (
        "0 of 1,000 answers changed, 0 lost, 0 won, margins by less than float16 resolves"
    )


def test_each_side_is_reported_where_it_belongs() -> None:
    """Of two models of which one moved by noise and the other by more, the first is a note and the
    second a line.
    """
    was = record(task_record())
    noisy, moved = with_changes(outcomes(), 2, 2), with_changes(outcomes(), 60, 20)

    drift = verdict(was, record(task_record(noisy, moved)))
    assert drift.kind is Kind.QUANTIZED
    assert [line.partition(":")[0] for line in drift.lines] == ["cifar100 acc1, quantized"]
    assert [
        n
        for n in drift.notes
        if "cifar100 acc1, reference: 4 of 1,000" in n and "within noise" in n
    ]

    drift = verdict(
        was, record(task_record(with_changes(outcomes(), 40), with_changes(outcomes(), 31, 20)))
    )
    assert drift.kind is Kind.REFERENCE
    assert [line.partition(":")[0] for line in drift.lines] == ["cifar100 acc1, reference"]
    assert [
        n
        for n in drift.notes
        if "cifar100 acc1, quantized: 1 of 1,000" in n and "within noise" in n
    ]


@pytest.mark.parametrize("side", ["reference", "quantized"])
def test_captions_lost_together_are_one_event_of_the_comparison(side: str) -> None:
    """Two pictures whose sixteen captions are lost are noise; sixteen pictures that lose one
    caption each are not.
    """
    all_right = replace(outcomes(n=800), correct=np.ones(800, np.bool_))
    pictures = np.arange(800, dtype=np.int32) // 8
    lost = all_right.correct.copy()
    lost[:16] = False
    quantized = replace(
        all_right, answers=np.where(np.arange(800) >= 700, all_right.answers + 1, all_right.answers)
    )

    def kind(clusters: Any) -> Kind:
        was = {
            "reference": replace(all_right, clusters=clusters),
            "quantized": replace(quantized, clusters=clusters),
        }
        now = {**was, side: replace(was[side], correct=lost)}
        return verdict(record(task_record(**was)), record(task_record(**now))).kind

    assert kind(pictures) is Kind.NOISE
    assert kind(np.arange(800, dtype=np.int32)) is (
        Kind.REFERENCE if side == "reference" else Kind.QUANTIZED
    )


def test_reference_may_change_as_many_answers_as_the_limit_says_and_no_more() -> None:
    """Half of the 50 answers that quantization changes, or the floor of 3 where it changes none;
    one more is drift.
    """
    for lose, win, limit in ((30, 20, 25), (0, 0, 3)):
        quantized = with_changes(outcomes(), lose, win)
        was = record(task_record(outcomes(), quantized))
        for moved, kind in ((limit, Kind.NOISE), (limit + 1, Kind.REFERENCE)):
            reference = with_changes(outcomes(), moved - moved // 2, moved // 2)
            assert verdict(was, record(task_record(reference, quantized))).kind is kind


def test_quantized_model_may_change_as_many_answers_as_a_redraw() -> None:
    """The limit of the comparison is that of two exact tests a task, reached but not exceeded."""
    limit = drift_module.redrawn(50, 0.01 / 2)
    for more, kind in ((0, Kind.NOISE), (1, Kind.QUANTIZED)):
        half = (limit + more) // 2
        now = with_changes(with_changes(outcomes(), 30, 20), half, limit + more - half)
        moved = int((now.answers != with_changes(outcomes(), 30, 20).answers).sum())
        assert moved == limit + more
        assert verdict(record(task_record()), record(task_record(quantized=now))).kind is kind


@pytest.mark.parametrize("tasks", [1, 2])
def test_error_rate_is_shared_by_the_tests_of_all_compared_tasks(tasks: int) -> None:
    """Eight losses (p = 2**-7) are drift under an error rate above 2 * tasks * 2**-7, and not at
    it; a task without a baseline takes no share.
    """
    names = ["cifar100", "imagenet1k"][:tasks]
    was = record(*(task_record(outcomes(task=name)) for name in names))
    lost = with_changes(with_changes(outcomes(), 30, 20), lose=8)
    others = [task_record(outcomes(task=name)) for name in (*names[1:], "new")]
    now = record(task_record(quantized=lost), *others)

    at = 2 * tasks * 2.0**-7
    assert "within noise (p = 0.0078)" in "\n".join(verdict(was, now, NoiseLimits(alpha=at)).notes)
    assert verdict(was, now, NoiseLimits(alpha=at)).kind is Kind.MISSING
    assert verdict(was, now, NoiseLimits(alpha=1.01 * at)).kind is Kind.QUANTIZED


def test_another_verdict_on_equal_outcomes_is_the_statistics() -> None:
    """Where no sample changed, a verdict that did is reported as one of other statistics, and nothing
    moved; where a sample of either model did, it is drift.
    """
    drift = compare(record(task_record()), record(task_record(decision="FAIL")))
    assert drift.kind is Kind.NOTHING
    assert "cifar100 acc1: the verdict was PASS and is FAIL on equal outcomes" in "\n".join(
        drift.notes
    )

    for reference, lose in ((outcomes(), 31), (with_changes(outcomes(), 1), 30)):
        now = task_record(reference, with_changes(outcomes(), lose, 20), decision="FAIL")
        drift = verdict(record(task_record()), record(now))
        assert drift.kind is Kind.QUANTIZED
        assert drift.lines == ("cifar100 acc1: the verdict was PASS and is FAIL (budget 3 points)",)


def test_message_begins_with_what_became_of_the_baseline() -> None:
    """The first line says the kind and its suspect, the second the record, the third how it was
    compared, and all that follows is in order: lines, missing tasks, notes, commands.
    """
    was = replace(record(task_record()), measured="2026-01-02T03:04:05+00:00")
    new = task_record(outcomes(task="imagenet1k"))
    reference = compare(was, record(task_record(with_changes(outcomes(), 2)), new))
    quantized = compare(was, record(task_record(quantized=with_changes(outcomes(), 33, 20))))
    foreign = compare(was, record(task_record(), recipe_hash="f" * 64))

    def line(drift: Drift, number: int) -> str:
        return drift.message().splitlines()[number]

    assert line(reference, 0) == "the reference moved: a dependency, not the recipe"
    assert line(quantized, 0) == "the quantized model moved: ModelOpt's code, or the calibration"
    assert line(foreign, 0) == "not compared: the baseline belongs to something else"
    assert line(compare(was, was), 0) == "nothing moved"
    assert line(reference, 1) == f"  baseline, 2026-01-02, {XEON}: {Nearness.EXACT.value}"
    assert line(reference, 2) == "  compared by bits"
    assert "compared by" not in foreign.message()
    assert line(compare(replace(was, path=Path("b/r.json")), was), 1).startswith(
        "  b/r.json, 2026-01-02, xeon"
    )
    assert "rerun:" not in reference.message()
    text = reference.message("test.py::it", ("--recipe", "x.yaml"))
    assert "\n  rerun:  pytest test.py::it --recipe x.yaml\n" in text
    order = (
        "cifar100 acc1, reference",
        "no baseline for imagenet1k acc1",
        "note: ",
        "rerun:  pytest",
        "accept: pytest",
    )
    assert sorted(order, key=text.index) == list(order)
    assert (
        "accept: pytest test.py::it --recipe x.yaml --clip-model embedded --update-baselines"
        in text
    )


@pytest.mark.parametrize(
    ("changed", "whole", "new_only"),
    [
        ({}, False, False),
        ({"device": OTHER_XEON}, True, True),
        ({"device": GPU}, True, True),
        ({"bits": "4 threads"}, True, False),
        ({"recipe_hash": "f" * 64}, True, False),
        ({"quantizers": (quantizer(0, enabled=False), *MAP[1:])}, True, False),
        ({"quantizers": (replaced(0, 9.0), *MAP[1:])}, False, False),
    ],
    ids=["same", "architecture", "gpu", "conditions", "recipe", "structure", "range"],
)
def test_what_accepting_replaces(changed: dict[str, Any], whole: bool, new_only: bool) -> None:
    """A case stands alone where device, conditions, binding and structure agree; another device's
    record stays.
    """
    drift = compare(record(task_record()), record(task_record(), **changed))

    assert (drift.whole, drift.new_only) == (whole, new_only)
    assert (drift.recipe, drift.model, drift.missing) == ("fp8", "embedded", ())


def test_everything_foreign_is_told_at_once() -> None:
    """All that forbids a comparison is listed, binding first, then data, then the map; a task that
    the record lacks is not a mismatch, and releases alone are followed by advice.
    """
    now = record(
        task_record(data_hash="0" * 64, preprocessing="1" * 64),
        task_record(outcomes(task="imagenet1k")),
        quantizers=(quantizer(0, enabled=False), *MAP[1:]),
        recipe_hash="f" * 64,
    )

    drift = compare(record(task_record()), now)

    assert drift.lines == (
        "this baseline belongs to recipe hash bbbbbbbbbbbb; this run has ffffffffffff",
        "this baseline belongs to cifar100 acc1 with the data hash dddddddddddd; this run has "
        "000000000000",
        "this baseline belongs to cifar100 acc1 preprocessed by eeeeeeeeeeee; this run has "
        "111111111111",
        "this baseline belongs to another quantizer map. From it to this run's: "
        "1 quantizer changes: vision self_attn q_bmm E4M3 per-tensor to off, layers 0",
    )
    assert drift.notes == ()
    assert drift.missing == ("imagenet1k acc1",)


def test_other_samples_are_told_by_their_digests() -> None:
    """Where ids differ both sets are named; where only their order does, that is said."""
    was = task_record()
    now = task_record(replace(outcomes(), sample_ids=tuple(map(str, range(1000)))))

    assert compare(record(was), record(now)).lines == (
        f"this baseline belongs to cifar100 acc1 with the sample ids {was.sample_set[:12]}; "
        f"this run has {now.sample_set[:12]}",
    )
    assert compare(record(was), record(task_record(other_order()))).lines == (
        "this baseline belongs to cifar100 acc1 in another order of the samples; "
        "this run has the same 1,000 samples reordered",
    )


def test_suspects_are_named_for_what_moved() -> None:
    """A moved reference has the packages that changed, or else what lies outside them; other
    conditions on one device say why bits are not compared; what did not move has none.
    """
    was = record(task_record())
    moved = task_record(with_changes(outcomes(), 2))
    outside = (
        "no recorded package changed since: look at drivers, system libraries, and how the data is "
        "decoded"
    )

    assert compare(was, record(moved)).notes == (outside,)
    assert compare(was, record(moved, facts={"numpy": "2.5.0"})).notes == (
        "not bound, and changed since: numpy 2.4.6 to 2.5.0, pillow 12.0.0 to none",
    )
    assert compare(was, record(task_record(quantized=with_changes(outcomes(), 31, 20)))).notes == (
        "the reference did not move on the same samples; recipe and releases are those of the "
        "baseline",
    )
    assert compare(was, record(task_record(), facts={})).notes == ()
    assert compare(was, record(task_record(), bits=None)).notes == (
        f"same device, other conditions: {BITS} then, not deterministic now; so bits are not "
        f"compared",
    )
    assert compare(was, record(task_record(), bits=None, device=GPU)).notes == ()
    ranges = record(quantizers=(replaced(0, 9.0), *MAP[1:]))
    assert compare(was, ranges).notes == (), "no sample was compared that could clear the reference"
    assert compare(was, ranges).lines == (
        "1 quantizer changes: vision self_attn q_bmm amax 3.25 to 9, layers 0",
    )
    assert compare(was, replace(record(task_record()), throughput=None)).notes == ()
    assert compare(replace(was, throughput=None), record(task_record())).notes == ()
    vision = replace(record(task_record()), throughput=speeds(vision=0.17))
    assert compare(was, vision).notes == (), (
        "a tower that only one of them has timed is not compared"
    )
