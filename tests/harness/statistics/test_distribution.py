"""Beyond accuracy: changed answers, flips, divergences and cosines, each against its limit."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from drawn import outcomes
from scipy import special, stats

from harness.data.tasks import Outcomes, TaskRun
from harness.errors import UsageError
from harness.statistics.distribution import (
    Measurement,
    answers,
    distribution,
    divergence,
    mean_interval,
    paired_change,
)
from harness.statistics.limits import Limits
from harness.statistics.verdicts import Budget

RECALL = "image_retrieval_recall@5"


def run(noise: float, metric: str = "acc1", **fields: Any) -> TaskRun:
    """A run over 200 samples and 20 candidates whose scores and embeddings carry Gaussian noise of
    this size.
    """
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(200, 20)) * 3
    images, texts = rng.normal(size=(200, 16)), rng.normal(size=(20, 16))
    rng = np.random.default_rng(1)
    scores = scores + noise * rng.normal(size=scores.shape)
    images, texts = (e + noise * rng.normal(size=e.shape) for e in (images, texts))
    best = np.argsort(-scores, axis=1)[:, :5].astype(np.int32)
    correct = best[:, 0] < 10
    noisy = outcomes(
        correct,
        metric=metric,
        answers=best[:, 0],
        top5=best,
        scores=scores.astype(np.float32),
        **fields,
    )
    unit = [
        (e / np.linalg.norm(e, axis=1, keepdims=True)).astype(np.float32) for e in (images, texts)
    ]
    return TaskRun("emoji", {metric: noisy}, *unit)


def by_name(measurements: tuple[Measurement, ...] | list[Measurement]) -> dict[str, Measurement]:
    """Measurements by name."""
    return {m.name: m for m in measurements}


def test_equal_runs_change_nothing() -> None:
    """A run against itself has no changed answer, no divergence, full agreement and cosines of
    one.
    """
    measured = by_name(
        distribution(
            run(0, RECALL),
            run(0, RECALL),
            {"image_retrieval_recall@5": Budget(1.0)},
        )
    )

    zero = {
        "changed_answers",
        "large_margin_flips",
        "borderline_flips",
        "margin_change",
        "kl_mean",
        "kl_p99",
        "kl_max",
    }
    full_agreement = {"top5_agreement", "retrieval_overlap"}
    cosine = {f"{side}_cosine_{k}" for side in ("image", "text") for k in ("mean", "p1", "min")}
    assert set(measured) == zero | full_agreement | cosine
    assert {measured[name].value for name in zero} == {0.0}
    assert {measured[name].value for name in full_agreement} == {1.0}
    assert [measured[name].value for name in sorted(cosine)] == pytest.approx([1.0] * 6, abs=1e-6)
    assert measured["margin_change"].p == 1.0


#: Limits of what the answers of a task show; the others are about single tokens.
LIMITS = [name for name in Limits.model_fields if not name.startswith("token_")]


def test_every_limit_of_a_budget_is_measured() -> None:
    """A limit that nothing is measured for would be silence: each field of Limits names a
    measurement.
    """
    measured = by_name(
        distribution(
            run(0, "text_retrieval_recall@5"),
            run(0.1, "text_retrieval_recall@5"),
            {"text_retrieval_recall@5": Budget(1.0)},
        )
    )

    assert set(LIMITS) <= set(measured)


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_is_kept_on_one_side_and_exceeded_on_the_other(name: str) -> None:
    """Each limit, set just beyond the measured value on either side, decides accordingly."""
    reference, quantized = run(0, RECALL), run(0.8, RECALL)
    value = by_name(distribution(reference, quantized, {RECALL: Budget(1.0)}))[name].value

    def at(limit: float) -> Measurement:
        budget = Budget(1.0, limits=Limits(**{name: limit}))
        return by_name(distribution(reference, quantized, {RECALL: budget}))[name]

    above, below = at(value + 1e-6), at(value - 1e-6)
    assert above.ok is above.at_most
    assert below.ok is not below.at_most
    assert ("EXCEEDED" in above.message()) is not above.ok
    assert f"{name} is " in above.message()


def test_noise_moves_every_measurement() -> None:
    """More noise means more changed answers and divergence, less agreement and smaller cosines."""
    little, much = (
        by_name(distribution(run(0), run(noise), {"acc1": Budget(1.0)})) for noise in (0.1, 1.0)
    )

    for name, small in little.items():
        if name in ("borderline_flips", "large_margin_flips", "margin_change"):
            continue
        assert (much[name].value > small.value) is small.at_most, name


def test_flips_are_split_by_the_reference_margin() -> None:
    """Lost samples with margins 1 to 4 split at a threshold of 3; a won sample is not a flip."""
    reference, quantized = outcomes([1] * 8 + [0] * 2), outcomes([0] * 4 + [1] * 5 + [0])

    measured = by_name(answers(reference, quantized, Budget(1.0, large_margin=3.0)))

    assert (measured["large_margin_flips"].value, measured["borderline_flips"].value) == (0.2, 0.2)


def test_top5_counts_sets_and_overlap_counts_members() -> None:
    """Another order of the same five agrees; one foreign candidate breaks the agreement but four
    fifths of the overlap stay.
    """
    reference = outcomes(
        [1, 1],
        metric="image_retrieval_recall@5",
        top5=np.array([[0, 1, 2, 3, 4]] * 2, dtype=np.int32),
    )
    quantized = dataclasses.replace(
        reference, top5=np.array([[4, 3, 2, 1, 0], [0, 1, 2, 3, 9]], dtype=np.int32)
    )

    measured = by_name(answers(reference, quantized, Budget(1.0)))

    assert measured["top5_agreement"].value == 0.5
    assert measured["retrieval_overlap"].value == pytest.approx(0.9)


def test_divergence_is_scipys_entropy() -> None:
    """KL of the softmaxed rows equals scipy.stats.entropy of the two distributions, also for logits
    of hundreds.
    """
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 50, 30)) * np.array([1, 5, 30, 100, 300]).repeat(10)[:, None] / 30

    expected = stats.entropy(special.softmax(a, axis=1), special.softmax(b, axis=1), axis=1)

    assert divergence(a, b) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_a_value_that_is_not_finite_keeps_no_limit() -> None:
    """NaN scores and embeddings of a broken quantized model exceed their limits instead of
    comparing as fine.
    """
    reference, quantized = run(0), run(0.1)
    scores = quantized.outcomes["acc1"].scores
    assert scores is not None
    scores[3] = np.nan
    quantized.image_embeddings[5] = np.nan
    limits = Limits(
        kl_mean=9.0,
        kl_p99=9.0,
        kl_max=9.0,
        image_cosine_mean=-1.0,
        image_cosine_p1=-1.0,
        image_cosine_min=-1.0,
    )

    measured = by_name(distribution(reference, quantized, {"acc1": Budget(1.0, limits=limits)}))

    broken = {name for name, m in measured.items() if not m.ok}
    assert broken == {name for name in Limits.model_fields if getattr(limits, name) is not None}


def without_scores(o: Outcomes) -> Outcomes:
    """The outcomes as a baseline keeps them."""
    return dataclasses.replace(o, scores=None)


def test_a_kl_limit_without_scores_is_refused() -> None:
    """Without scores KL is left out, but a limit on it is an error, not a silent pass."""
    reference = without_scores(run(0).outcomes["acc1"])

    assert "kl_mean" not in by_name(answers(reference, reference, Budget(1.0)))
    with pytest.raises(UsageError, match="scores were not kept"):
        answers(reference, reference, Budget(1.0, limits=Limits(kl_max=1.0)))


def test_runs_of_other_metrics_or_shapes_are_refused() -> None:
    """Runs that do not belong together are an error that names the difference."""
    reference, budgets = run(0), {"acc1": Budget(1.0)}

    with pytest.raises(UsageError, match="image_retrieval"):
        distribution(reference, run(0, RECALL), budgets)
    with pytest.raises(UsageError, match="text embeddings are"):
        distribution(
            reference,
            dataclasses.replace(reference, text_embeddings=reference.text_embeddings[:-1]),
            budgets,
        )


def test_mean_interval_covers_the_truth_and_is_seeded() -> None:
    """About 95 % of intervals hold the true mean, wider where samples come in clusters; the same
    data give the same interval.
    """
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(40):
        spread = mean_interval(rng.exponential(size=200), np.arange(200))[1]
        assert spread is not None
        hits += spread[0] <= 1 <= spread[1]
    values = np.repeat(rng.normal(size=100), 5)
    apart, together = (
        mean_interval(values, np.arange(500))[1],
        mean_interval(values, np.arange(500) // 5)[1],
    )
    assert apart is not None
    assert together is not None

    assert hits >= 33
    assert together[1] - together[0] > 1.8 * (apart[1] - apart[0])
    assert mean_interval(values, np.arange(500))[1] == apart


def test_paired_change_is_near_the_t_test() -> None:
    """The permutation p-value is close to Student's paired t-test on well-behaved data."""
    rng = np.random.default_rng(2)
    a = rng.normal(size=300)
    b = a + 0.12 + rng.normal(size=300)

    mean, spread, p = paired_change(a, b, np.arange(300))

    assert spread is not None
    assert spread[0] < mean < spread[1]
    assert p == pytest.approx(stats.ttest_rel(b, a).pvalue, abs=0.02)


def test_paired_change_takes_clusters_as_one() -> None:
    """Copies of a sample add no evidence: five of each give the p-value of one."""
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, 60))

    once = paired_change(a, b, np.arange(60))[2]
    five = paired_change(np.repeat(a, 5), np.repeat(b, 5), np.repeat(np.arange(60), 5))[2]

    assert five == pytest.approx(once)
