"""What a record binds, and what moved against it."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from made_records import (
    GPU,
    MAP,
    OTHER_XEON,
    XEON,
    Made,
    other_order,
    outcomes,
    quantizer,
    record,
    speeds,
    stored,
    task_record,
    with_changes,
)
from numpy.typing import NDArray
from scipy.stats import binomtest

from harness import baselines
from harness.baselines import Kind, NoiseLimits, Record, SampleOutcomes, Store, compare
from harness.digests import ids_digest, set_digest
from harness.evaluation.environment import DeviceKey

# -- binding


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model_revision": "f" * 64}, "model revision aaaaaaaaaaaa; this run has ffffffffffff"),
        ({"recipe_hash": "f" * 64}, "recipe hash bbbbbbbbbbbb; this run has ffffffffffff"),
        (
            {"calibration_hash": "f" * 64},
            "calibration data cccccccccccc; this run has ffffffffffff",
        ),
        ({"calibration_size": 8192}, "calibration size 512 pairs; this run has 8,192 pairs"),
        ({"attention": "modelopt"}, "attention class diffusers; this run has modelopt"),
        (
            {
                "versions": {
                    "nvidia-modelopt": "0.47.0",
                    "torch": "2.14.0",
                    "transformers": "5.14.1",
                }
            },
            "torch 2.13.0; this run has 2.14.0",
        ),
        (
            {"versions": {"torch": "2.13.0", "transformers": "5.14.1"}},
            "nvidia-modelopt 0.47.0; this run has not recorded",
        ),
    ],
)
def test_other_binding_is_an_error_and_no_comparison(
    store: Store, changed: dict[str, Any], said: str
) -> None:
    """A record of something else is distinguished by name, with the command that measures again, and
    never compared.
    """
    # Outcomes far apart: nothing of them may show.
    drift = compare(
        stored(store, record(task_record())),
        record(task_record(outcomes(9), decision="FAIL"), **changed),
    )

    message = drift.message("tests/test_accuracy.py::test_it[fp8-embedded]")
    assert drift.kind is Kind.MISMATCH
    assert drift.failed
    assert f"this baseline belongs to {said}" in message
    assert "answers" not in message
    assert "PASS" not in message
    assert message.endswith(
        "accept: pytest --recipe fp8 --clip-model embedded --update-baselines --reason 'say why'"
    )


@pytest.mark.parametrize(
    ("fresh", "said"),
    [
        (
            lambda: task_record(outcomes(n=900)),
            "cifar100 acc1 with 1,000 samples; this run has 900",
        ),
        (lambda: task_record(other_order()), "in another order of the samples"),
        (
            lambda: task_record(replace(outcomes(), sample_ids=tuple(map(str, range(1000))))),
            "with the sample ids",
        ),
        (
            lambda: task_record(data_hash="0" * 64),
            "with the data hash dddddddddddd; this run has 000000000000",
        ),
        (
            lambda: task_record(preprocessing="0" * 64),
            "preprocessed by eeeeeeeeeeee; this run has 000000000000",
        ),
    ],
    ids=["size", "order", "ids", "data", "preprocessing"],
)
def test_other_samples_are_an_error_and_no_comparison(store: Store, fresh: Any, said: str) -> None:
    """Another sample size, order, id, data hash or preprocessing is reported as what the baseline
    belongs to.
    """
    drift = compare(stored(store, record(task_record())), record(fresh()))

    assert drift.kind is Kind.MISMATCH
    assert said in drift.message()


def test_other_release_tells_both_ways_out(store: Store) -> None:
    """A new release of torch is an error that names how to measure again and how to go back."""
    newer = {"nvidia-modelopt": "0.48.0", "torch": "2.14.0", "transformers": "5.14.1"}

    message = compare(
        stored(store, record(task_record())), record(task_record(), versions=newer)
    ).message()

    assert "pip install nvidia-modelopt==0.47.0 torch==2.13.0" in message
    assert "what the upgrade moved" in message


def test_other_release_on_another_device_adds_a_record(store: Store) -> None:
    """Where the mismatching record is another device's, the command adds one and replaces none."""
    newer = {"nvidia-modelopt": "0.48.0", "torch": "2.13.0", "transformers": "5.14.1"}

    drift = compare(
        stored(store, record(task_record())), record(task_record(), versions=newer, device=GPU)
    )

    assert drift.kind is Kind.MISMATCH
    assert drift.message().endswith("--new-baselines-only")


@pytest.mark.parametrize("device", [XEON, GPU], ids=["same-device", "other-device"])
def test_other_map_is_an_error_that_says_what_changed(store: Store, device: DeviceKey) -> None:
    """A map of another structure is a mismatch on every device, reported in grouped lines."""
    off = tuple(quantizer(layer, enabled=layer >= 8) for layer in range(12))

    drift = compare(
        stored(store, record(task_record())), record(task_record(), quantizers=off, device=device)
    )

    assert drift.kind is Kind.MISMATCH
    assert "another quantizer map" in drift.message()
    assert (
        "8 quantizers change: vision self_attn q_bmm E4M3 per-tensor to off, layers 0..7"
        in drift.message()
    )


@pytest.mark.parametrize(
    "changed", [{"module_kind": "linear"}, {"tower": "text"}, {"new_attribute": 1}]
)
def test_any_attribute_of_the_map_binds(store: Store, changed: dict[str, Any]) -> None:
    """A change that the grouped diff does not show, or an attribute it does not know, is a mismatch
    all the same.
    """
    drift = compare(stored(store, record()), record(quantizers=(quantizer(0, **changed), *MAP[1:])))

    assert drift.kind is Kind.MISMATCH
    assert next(iter(changed)) in drift.message()


def test_rows_of_the_map_are_the_quantizers_own() -> None:
    """The rows these tests use have the attributes of the real map, but for those left out where
    they are false.
    """
    from harness.quantization.maps import Amax, Quantizer

    assert {f.name for f in fields(Quantizer)} - {"constant"} == set(quantizer())
    assert {f.name for f in fields(Amax)} - {"empty"} == set(quantizer()["amax"])


def test_sample_digests_tell_order_from_set() -> None:
    """One digest changes with the order, the other does not, and joined ids are not mistaken for
    split ones.
    """
    assert ids_digest(["a", "b"]) != ids_digest(["b", "a"])
    assert set_digest(["a", "b"]) == set_digest(["b", "a"])
    assert ids_digest(["ab", "c"]) != ids_digest(["a", "bc"])


# -- drift


def test_equal_bits_are_nothing(store: Store) -> None:
    """The same bits on the same device: nothing moved, compared by bits."""
    drift = compare(stored(store, record(task_record())), record(task_record()))

    assert (drift.kind, drift.by, drift.failed) == (Kind.NOTHING, "bits", False)


def test_smallest_step_of_a_margin_shows_on_the_same_device(store: Store) -> None:
    """A float32 margin one unit in the last place off, invisible in the stored float16, is found by
    bits.
    """
    reference = outcomes()
    quantized = with_changes(reference, 30, 20)
    margins = quantized.margins.copy()
    margins[0] = np.nextafter(margins[0], np.float32(np.inf))

    drift = compare(
        stored(store, record(task_record())),
        record(task_record(reference, replace(quantized, margins=margins))),
    )

    assert drift.kind is Kind.QUANTIZED
    assert "0 of 1,000 answers changed" in drift.message()
    assert "float16" in drift.message()


def test_moved_reference_is_told_with_its_suspects(store: Store) -> None:
    """If the reference's own bits moved, a dependency is at fault, and unbound packages that
    changed are named.
    """
    moved = with_changes(outcomes(), lose=2)
    fresh = record(task_record(moved), facts={"pillow": "13.0.0", "numpy": "2.4.6"})

    drift = compare(stored(store, record(task_record())), fresh)

    assert drift.kind is Kind.REFERENCE
    assert "cifar100 acc1, reference: 2 of 1,000 answers changed, 2 lost, 0 won" in drift.message()
    assert "pillow 12.0.0 to 13.0.0" in drift.message()
    assert "numpy" not in drift.message()


def test_moved_quantized_model_is_told_apart(store: Store) -> None:
    """If only the quantized model moved, the recipe's execution is at fault, not a dependency of
    the reference.
    """
    fresh = record(task_record(quantized=with_changes(outcomes(), 33, 20)))

    drift = compare(stored(store, record(task_record())), fresh)

    assert drift.kind is Kind.QUANTIZED
    assert "the reference did not move" in drift.message()


def test_moved_range_shows_by_bits_and_within_tolerance_elsewhere(store: Store) -> None:
    """Another amax is drift on the same device; on another one only beyond the tolerance."""
    was = stored(store, record(task_record()))

    def fresh(amax: float, **changed: Any) -> Record:
        moved = quantizer(3, amax={"count": 1, "low": amax, "high": amax, "digest": "0" * 16})
        return record(task_record(), quantizers=(*MAP[:3], moved, *MAP[4:]), **changed)

    assert compare(was, fresh(3.251)).kind is Kind.QUANTIZED
    assert compare(was, fresh(3.251, device=OTHER_XEON)).kind is Kind.NOISE
    far = compare(was, fresh(6.5, device=OTHER_XEON))
    assert far.kind is Kind.QUANTIZED
    assert "amax 3.25 to 6.5, layers 3" in far.message()


@pytest.mark.parametrize(
    "changed",
    [
        {"device": OTHER_XEON},
        {"device": GPU},
        {"bits": "torch 2.13.0+cpu, batch 64, 4 threads"},
        {"bits": None},
    ],
    ids=["same-architecture", "gpu", "threads", "not-deterministic"],
)
def test_other_device_or_conditions_compare_by_verdict(
    store: Store, changed: dict[str, Any]
) -> None:
    """A few changed answers are noise where bits cannot be expected to agree, and drift where they
    can.
    """
    was = stored(store, record(task_record()))
    reference = with_changes(outcomes(), 2, 1, nudge=0.01)
    fresh = task_record(reference, with_changes(outcomes(), 33, 21, nudge=0.01))

    drift = compare(was, record(fresh, **changed))

    assert (drift.kind, drift.by, drift.failed) == (Kind.NOISE, "verdict", False)
    assert compare(was, record(fresh)).kind is Kind.REFERENCE


def test_platform_without_determinism_never_compares_bits(store: Store) -> None:
    """Where neither run promises bits, the same device is compared by verdict."""
    was = stored(store, record(task_record(), bits=None))

    assert (
        compare(
            was, record(task_record(quantized=with_changes(outcomes(), 31, 20)), bits=None)
        ).kind
        is Kind.NOISE
    )


@pytest.mark.parametrize(
    ("fresh", "kind", "said"),
    [
        (
            lambda: task_record(quantized=with_changes(outcomes(), 60, 20)),
            Kind.QUANTIZED,
            "more than noise",
        ),
        (
            lambda: task_record(quantized=with_changes(outcomes(), 110, 100)),
            Kind.QUANTIZED,
            "noise would be at most 110",
        ),
        (lambda: task_record(with_changes(outcomes(), 30)), Kind.REFERENCE, "more than noise"),
        (
            lambda: task_record(with_changes(outcomes(), 20, 20)),
            Kind.REFERENCE,
            "noise would be at most 25",
        ),
        (
            lambda: task_record(quantized=with_changes(outcomes(), 31, 20), decision="FAIL"),
            Kind.QUANTIZED,
            "was PASS and is FAIL",
        ),
    ],
    ids=["loss", "churn", "reference-loss", "reference-churn", "verdict"],
)
def test_more_than_noise_on_another_device_is_drift(
    store: Store, fresh: Any, kind: Kind, said: str
) -> None:
    """A significant loss, more churn than quantization's own, or another verdict is drift on any
    device.
    """
    drift = compare(stored(store, record(task_record())), record(fresh(), device=OTHER_XEON))

    assert drift.kind is kind
    assert said in drift.message()


def test_another_verdict_under_another_budget_is_only_noted(store: Store) -> None:
    """Budgets are policy: a verdict that changed with its budget is reported, and is not a drift of the
    model.
    """
    drift = compare(
        stored(store, record(task_record())),
        record(task_record(budget=0.5, decision="INCONCLUSIVE"), device=OTHER_XEON),
    )

    assert not drift.failed
    assert "the budget went from 3 to 0.5 points" in drift.message()


def test_captions_of_one_picture_count_once() -> None:
    """Eight captions lost together are one event where the picture is the unit, and eight where
    each caption is.
    """
    was = SampleOutcomes.of(replace(outcomes(n=80), correct=np.ones(80, np.bool_)))
    now = replace(was, correct=np.arange(80) >= 8)
    pictures = np.arange(80, dtype=np.int32) // 8

    assert baselines.drift.sign_test(was, now) == pytest.approx(2 * 0.5**8)
    assert baselines.drift.sign_test(was, now, pictures) == 1.0


def test_sign_test_is_mcnemar_for_single_samples() -> None:
    """Against statsmodels' exact McNemar, over several tables."""
    from statsmodels.stats.contingency_tables import mcnemar

    for lose, win in ((0, 0), (1, 0), (9, 2), (30, 31)):
        was, now = outcomes(), with_changes(outcomes(), lose, win)
        expected = (
            1.0 if lose + win == 0 else float(mcnemar([[0, lose], [win, 0]], exact=True).pvalue)
        )
        assert baselines.drift.sign_test(
            SampleOutcomes.of(was), SampleOutcomes.of(now)
        ) == pytest.approx(expected)


def test_limit_of_a_redraw_is_the_exact_test_of_two_rates() -> None:
    """The limit is the last count that the conditional binomial test of two Poisson rates does not
    reject.
    """
    share = 2**0.5 / (1 + 2**0.5)
    for changed, alpha in ((0, 0.01), (7, 0.00125), (50, 0.005), (146, 0.00125)):
        limit = baselines.drift.redrawn(changed, alpha)
        p = [
            binomtest(k, k + changed, share, alternative="greater").pvalue
            for k in (limit, limit + 1)
        ]
        assert p[0] > alpha >= p[1]


@pytest.mark.parametrize(
    ("size", "drifts"), [(1.0, False), (3.0, True)], ids=["same-noise", "threefold-noise"]
)
def test_noise_drawn_anew_is_no_drift(size: float, drifts: bool) -> None:
    """Two models whose scores err independently by the same amount agree; where the error grew they
    do not.
    """
    rng = np.random.default_rng(5)
    targets = np.arange(1000, dtype=np.int32) % 10
    scores = rng.normal(size=(1000, 10)) + 3.0 * np.eye(10)[targets]
    failures = 0
    for _ in range(40):
        was, now = (
            task_record(
                as_scored(scores, targets),
                as_scored(scores + noise * rng.normal(size=scores.shape), targets),
            )
            for noise in (0.15, 0.15 * size)
        )
        failures += compare(record(was, bits=None), record(now, bits=None)).failed

    assert failures == 40 if drifts else failures <= 2


def as_scored(scores: NDArray[np.float64], targets: NDArray[np.int32]) -> Made:
    """The outcomes of a model that gives these *scores*."""
    answers = scores.argmax(1).astype(np.int32)
    return replace(outcomes(n=len(targets)), correct=answers == targets, answers=answers)


def test_noise_is_rarely_called_drift() -> None:
    """Over seeded draws of balanced small changes, false drift stays at or under its error rate."""
    limits = NoiseLimits(alpha=0.05)
    rng = np.random.default_rng(3)
    base = outcomes()
    was = record(task_record())
    false = 0
    draws = 300
    for _ in range(draws):
        lose = int(rng.binomial(16, 0.5))
        drift = compare(
            was,
            record(
                task_record(quantized=with_changes(with_changes(base, 30, 20), lose, 16 - lose)),
                bits=None,
            ),
            limits,
        )
        false += drift.failed

    assert false <= draws * 0.05 + 3 * (draws * 0.05 * 0.95) ** 0.5


def test_task_without_baseline_is_missing_and_others_are_compared(store: Store) -> None:
    """A task that the record lacks is named with the command that adds it; the others are
    judged.
    """
    was = stored(store, record(task_record()))
    new = task_record(outcomes(task="imagenet1k"))

    drift = compare(was, record(task_record(), new))

    assert drift.kind is Kind.MISSING
    assert drift.failed
    assert "no baseline for imagenet1k acc1" in drift.message()
    assert drift.message().endswith("--new-baselines-only")
    moved = compare(was, record(task_record(quantized=with_changes(outcomes(), 40, 20)), new))
    assert moved.kind is Kind.QUANTIZED
    assert moved.missing == ("imagenet1k acc1",)


def test_task_not_run_is_left_out(store: Store) -> None:
    """A run of one task is compared on that task alone, and a run of the map on the map alone."""
    was = stored(store, record(task_record(), task_record(outcomes(4, task="imagenet1k"))))
    moved = task_record(
        outcomes(4, task="imagenet1k"), with_changes(outcomes(4, task="imagenet1k"), 99)
    )

    assert (
        compare(was.only("cifar100"), record(task_record(), moved).only("cifar100", "acc1")).kind
        is Kind.NOTHING
    )
    assert compare(was, record()).kind is Kind.NOTHING
    assert compare(replace(was, tasks=()), record()).kind is Kind.NOTHING


def test_slower_forward_is_noted_on_the_same_device_only(store: Store) -> None:
    """A speed ratio whose interval has nothing in common with the stored one is a note; on another
    device it says nothing.
    """
    was = stored(store, record(task_record()))
    slow = replace(record(task_record()), throughput=speeds(vision=0.08, text=0.205))

    drift = compare(was, slow)
    assert drift.kind is Kind.NOTHING
    note = (
        "throughput, vision: 0.17 [0.166, 0.174] of the reference's then, 0.08 [0.078, 0.082] now: "
        "slower"
    )
    assert note in drift.message()
    assert "text" not in drift.message()
    elsewhere = replace(record(task_record(), device=GPU), throughput=speeds(vision=0.08))
    assert "throughput" not in compare(was, elsewhere).message()
