"""Beyond accuracy: how far the quantized model's answers and embeddings moved, each number against
its own limit.

An unchanged accuracy can hide thousands of changed answers ("Accuracy is not all you need", Dutta
et al. 2024, arXiv 2407.09141) and regressions on samples that were safe (negative flips: Yan et
al., CVPR 2021). These numbers describe the samples at hand, so a limit is plainly kept or not;
means carry a bootstrap interval that says how much other samples might change them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from harness.errors import UsageError
from harness.statistics import clustering
from harness.statistics.limits import Limits
from harness.statistics.verdicts import Budget, check_pair, large_margin

if TYPE_CHECKING:
    from harness.data.tasks import Outcomes, TaskRun

RESAMPLES = 1999
"""Bootstrap and permutation draws: enough that a p-value of 0.05 has a standard error of 0.005."""

_AT_ONCE = 1 << 20
"""Samples times permutations that are drawn at once: scipy loops over the samples of each batch in
Python.
"""


@dataclass(frozen=True)
class Measurement:
    """One number, where it comes from and the limit it keeps or not. `metric` is empty for
    embeddings.

    `interval` (95 %) and `p` are None where they have no meaning. `at_most` says which side of
    `limit` is allowed.
    """

    task: str
    metric: str
    name: str
    value: float
    limit: float | None
    at_most: bool
    interval: tuple[float, float] | None = None
    p: float | None = None

    @property
    def ok(self) -> bool:
        """The limit is kept, or there is none. A value that is NaN keeps no limit."""
        if self.limit is None:
            return True
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def as_dict(self) -> dict[str, Any]:
        """A plain record for JSON: where, what was found, the limit, and whether it is over it."""
        return {
            "task": self.task,
            "metric": self.metric,
            "name": self.name,
            "value": self.value,
            "limit": self.limit,
            "at_most": self.at_most,
            "exceeded": not self.ok,
            "message": self.message(),
        }

    def message(self) -> str:
        """One line: found, and expected."""
        of = f" ({self.metric})" if self.metric else ""
        spread = (
            "" if self.interval is None else f" [{self.interval[0]:.4g}, {self.interval[1]:.4g}]"
        )
        limit = (
            "no limit"
            if self.limit is None
            else f"limit: at {'most' if self.at_most else 'least'} {self.limit:g}"
        )
        return (
            f"{self.task}{of}: {self.name} is {self.value:.4g}{spread}, "
            f"{limit}{'' if self.ok else ': EXCEEDED'}"
        )


def distribution(
    reference: TaskRun, quantized: TaskRun, budgets: Mapping[str, Budget]
) -> tuple[Measurement, ...]:
    """All measurements of one task, by metric and then for the embeddings.

    `budgets` maps each metric of the runs to its budget; embeddings take the limits of the first.
    UsageError if the runs are of different samples or metrics, or a KL limit is set and scores were
    not kept.
    """
    if set(reference.outcomes) != set(quantized.outcomes):
        have, other = sorted(reference.outcomes), sorted(quantized.outcomes)
        raise UsageError(
            reference.task,
            f"metrics {have} in the reference, {other} quantized",
            "Evaluate both in one run.",
        )
    measurements: list[Measurement] = []
    for metric, outcomes in reference.outcomes.items():
        measurements += answers(outcomes, quantized.outcomes[metric], budgets[metric])
    limits = budgets[next(iter(reference.outcomes))].limits
    for side in ("image", "text"):
        name = f"{side}_embeddings"
        measurements += cosines(
            reference.task, side, getattr(reference, name), getattr(quantized, name), limits
        )
    return tuple(measurements)


def answers(reference: Outcomes, quantized: Outcomes, budget: Budget) -> list[Measurement]:
    """What changed in one metric's answers.

    `changed_answers`: share of samples with another first answer. `large_margin_flips`: share that
    were right by a large reference margin and are wrong now; `borderline_flips`: the other lost
    samples. `top5_agreement`: share of samples whose five best candidates are the same set.
    `retrieval_overlap` (retrieval metrics): mean share of the reference's five best that stay among
    the five best. `margin_change`: mean change of the margin (logits), with a paired permutation
    p-value. `kl_*`: divergence (nats) of the quantized softmax over candidates from the
    reference's, where scores were kept.
    """
    check_pair(reference, quantized)
    limits, clusters = budget.limits, np.asarray(reference.clusters)
    lost = np.asarray(reference.correct, dtype=bool) & ~np.asarray(quantized.correct, dtype=bool)
    large = lost & (np.asarray(reference.margins) >= large_margin(reference, budget))
    overlap = _overlap(np.asarray(reference.top5), np.asarray(quantized.top5))

    def measured(name: str, values: ArrayLike, at_most: bool = True) -> Measurement:
        mean, spread = mean_interval(values, clusters)
        return Measurement(
            reference.task,
            reference.metric,
            name,
            mean,
            getattr(limits, name, None),
            at_most,
            spread,
        )

    measurements = [
        measured("changed_answers", np.asarray(reference.answers) != np.asarray(quantized.answers)),
        measured("large_margin_flips", large),
        measured("borderline_flips", lost & ~large),
        measured("top5_agreement", overlap == 1, at_most=False),
    ]
    if "retrieval" in reference.metric:
        measurements.append(measured("retrieval_overlap", overlap, at_most=False))
    mean, spread, p = paired_change(reference.margins, quantized.margins, clusters)
    measurements.append(
        Measurement(reference.task, reference.metric, "margin_change", mean, None, False, spread, p)
    )
    return measurements + _divergences(reference, quantized, limits)


def cosines(
    task: str, side: str, reference: ArrayLike, quantized: ArrayLike, limits: Limits
) -> list[Measurement]:
    """Mean, first percentile and minimum of the cosines of paired unit embeddings (n, d); `side` is
    image or text.
    """
    a, b = np.asarray(reference, dtype=np.float64), np.asarray(quantized, dtype=np.float64)
    if a.shape != b.shape:
        what = f"{side} embeddings are {a.shape} in the reference, {b.shape} quantized"
        raise UsageError(task, what, "Evaluate both models on the same task in the same run.")
    cosine = (a * b).sum(axis=1)
    mean, spread = mean_interval(cosine, np.arange(len(cosine)))
    values = {"mean": mean, "p1": float(np.quantile(cosine, 0.01)), "min": float(cosine.min())}
    return [
        Measurement(
            task,
            "",
            f"{side}_cosine_{k}",
            v,
            getattr(limits, f"{side}_cosine_{k}"),
            False,
            spread if k == "mean" else None,
        )
        for k, v in values.items()
    ]


def divergence(reference_scores: ArrayLike, quantized_scores: ArrayLike) -> NDArray[np.float64]:
    """KL(P || Q) in nats of each row: P and Q are the softmax of the logits (n, candidates). NaN
    where a score is not finite.
    """
    log_p, log_q = (
        special.log_softmax(np.asarray(s, dtype=np.float64), axis=1)
        for s in (reference_scores, quantized_scores)
    )
    # Rounding can leave an equal row a hair under zero.
    return np.asarray(np.maximum((np.exp(log_p) * (log_p - log_q)).sum(axis=1), 0.0))


def mean_interval(
    values: ArrayLike, clusters: ArrayLike, seed: int = 0
) -> tuple[float, tuple[float, float] | None]:
    """Mean of `values` (n,) and its 95 % percentile bootstrap interval over whole clusters (Efron
    1979), seeded.

    The interval is None for fewer than two clusters or where a value is not finite.
    """
    x = np.asarray(values, dtype=np.float64)
    sums, sizes = clustering.cluster_sums(x, clusters)
    mean = float(x.mean())
    if len(sums) < 2 or not math.isfinite(mean):
        return mean, None

    def of(
        total: NDArray[np.float64], count: NDArray[np.float64] | None = None, *, axis: int
    ) -> NDArray[np.float64]:
        return np.asarray(
            total.sum(axis=axis) / (len(x) if count is None else count.sum(axis=axis))
        )

    # Clusters of one size need not be counted again in each resample, which is half of the work.
    drawn = stats.bootstrap(
        (sums,) if (sizes == sizes[0]).all() else (sums, sizes),
        of,
        paired=True,
        n_resamples=RESAMPLES,
        batch=100,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return mean, (float(drawn.confidence_interval.low), float(drawn.confidence_interval.high))


def paired_change(
    reference: ArrayLike, quantized: ArrayLike, clusters: ArrayLike, seed: int = 0
) -> tuple[float, tuple[float, float] | None, float | None]:
    """Mean of quantized - reference (n,), its bootstrap interval, and the two-sided p-value of the
    paired permutation test.

    The test swaps reference and quantized model cluster by cluster (Fisher 1935): if quantization
    changed nothing they are exchangeable. Interval and p are None for fewer than two clusters or
    where a value is not finite.
    """
    a, b = np.asarray(reference, dtype=np.float64), np.asarray(quantized, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        mean, spread = mean_interval(b - a, clusters, seed)
    if spread is None:
        return mean, None, None
    before, after = clustering.cluster_sums(a, clusters)[0], clustering.cluster_sums(b, clusters)[0]

    def of(x: NDArray[np.float64], y: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        return np.asarray((y - x).mean(axis=axis))

    test = stats.permutation_test(
        (before, after),
        of,
        permutation_type="samples",
        n_resamples=RESAMPLES,
        batch=max(100, _AT_ONCE // len(before)),
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return mean, spread, float(test.pvalue)


def _divergences(reference: Outcomes, quantized: Outcomes, limits: Limits) -> list[Measurement]:
    names = ("kl_mean", "kl_p99", "kl_max")
    if reference.scores is None or quantized.scores is None:
        if any(getattr(limits, name) is not None for name in names):
            what = "a KL limit is set, but scores were not kept"
            raise UsageError(
                f"{reference.task} ({reference.metric})",
                what,
                "Evaluate both models with scores kept.",
            )
        return []
    kl = divergence(reference.scores, quantized.scores)
    mean, spread = mean_interval(kl, reference.clusters)
    values = (mean, float(np.quantile(kl, 0.99)), float(kl.max()))
    return [
        Measurement(
            reference.task,
            reference.metric,
            name,
            value,
            getattr(limits, name),
            True,
            spread if name == "kl_mean" else None,
        )
        for name, value in zip(names, values, strict=True)
    ]


def _overlap(reference: NDArray[np.int32], quantized: NDArray[np.int32]) -> NDArray[np.float64]:
    """Share of each row's candidates (n, k) that stand in the other's row too, in any order."""
    same = (reference[:, :, None] == quantized[:, None, :]).any(axis=2)
    return np.asarray(same.mean(axis=1))
