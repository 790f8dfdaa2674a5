"""The content of a record: one recipe on one model and device, its tasks, and their samples."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from harness.baselines.provenance import Provenance
from harness.digests import ids_digest, set_digest
from harness.statistics.speed import Ratio

_FLOAT16_MAX = 65504.0


class HasOutcomes(Protocol):
    """The part of ``harness.data.tasks.Outcomes`` that is stored: n samples of one task and metric,
    in the order of ``sample_ids``.
    """

    @property
    def task(self) -> str: ...  # noqa: D102
    @property
    def metric(self) -> str: ...  # noqa: D102
    @property
    def sample_ids(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def correct(self) -> NDArray[np.bool_]: ...  # noqa: D102
    @property
    def answers(self) -> NDArray[np.int32]: ...  # noqa: D102
    @property
    def margins(self) -> NDArray[np.float32]: ...  # noqa: D102
    @property
    def clusters(self) -> NDArray[np.int32]: ...  # noqa: D102


@dataclass(frozen=True, eq=False)
class SampleOutcomes:
    """What n samples got from one model: ``correct`` bool, ``answers`` int32, ``margins`` float16
    in logits, all (n,).

    ``bits`` is the SHA-256 of all three with the margins still in float32: equal if and only if the
    bits were.
    """

    correct: NDArray[np.bool_]
    answers: NDArray[np.int32]
    margins: NDArray[np.float16]
    bits: str

    @classmethod
    def of(cls, outcomes: HasOutcomes) -> SampleOutcomes:
        """Keep what a baseline needs of *outcomes*.

        Raises:
            ValueError: arrays of unequal length, none at all, or a NaN margin.

        """
        correct = np.asarray(outcomes.correct, dtype=np.bool_)
        answers = np.asarray(outcomes.answers, dtype=np.int32)
        margins = np.asarray(outcomes.margins, dtype=np.float32)
        if not correct.size or not correct.shape == answers.shape == margins.shape == (
            len(outcomes.sample_ids),
        ):
            raise ValueError(
                f"{outcomes.task} {outcomes.metric}: outcomes of unequal length, or none"
            )
        if np.isnan(margins).any():
            raise ValueError(
                f"{outcomes.task} {outcomes.metric}: {int(np.isnan(margins).sum())} margins are NaN"
            )
        exact = hashlib.sha256(np.packbits(correct).tobytes())
        exact.update(answers.astype("<i4").tobytes())
        exact.update(margins.astype("<f4").tobytes())
        clipped = np.clip(margins, -_FLOAT16_MAX, _FLOAT16_MAX).astype(np.float16)
        return cls(correct, answers, clipped, exact.hexdigest())

    @property
    def right(self) -> int:
        """How many samples are correct."""
        return int(self.correct.sum())


@dataclass(frozen=True, eq=False)
class TaskRecord:
    """One task under one metric: the data it belongs to, both models' outcomes, and what was
    concluded from them.

    ``interval`` (of the difference) and ``budget`` are in points; ``beyond`` holds the numbers
    beyond accuracy by name; ``clusters`` (n,) numbers samples of one picture alike and is known of
    fresh records only.
    """

    task: str
    metric: str
    data_hash: str
    sample_ids: str  #: SHA-256 of the ids in their order
    sample_set: str  #: SHA-256 of the ids whatever their order
    preprocessing: str
    reference: SampleOutcomes
    quantized: SampleOutcomes
    decision: str
    interval: tuple[float, float]
    budget: float
    beyond: Mapping[str, float]
    clusters: NDArray[np.int32] | None = None

    @classmethod
    def of(
        cls,
        reference: HasOutcomes,
        quantized: HasOutcomes,
        *,
        data_hash: str,
        preprocessing: str,
        decision: str,
        interval: tuple[float, float],
        budget: float,
        beyond: Mapping[str, float],
    ) -> TaskRecord:
        """Make a record of a pair of outcomes on the same samples.

        Raises:
            ValueError: the two are not of the same samples, task and metric, or a number is not
                finite.

        """
        ids = reference.sample_ids
        if (ids, reference.task, reference.metric) != (
            quantized.sample_ids,
            quantized.task,
            quantized.metric,
        ):
            raise ValueError(f"{reference.task} {reference.metric}: not a pair of the same samples")
        return cls(
            task=reference.task,
            metric=reference.metric,
            data_hash=data_hash,
            sample_ids=ids_digest(ids),
            sample_set=set_digest(ids),
            preprocessing=preprocessing,
            reference=SampleOutcomes.of(reference),
            quantized=SampleOutcomes.of(quantized),
            decision=decision,
            interval=(rounded(interval[0]), rounded(interval[1])),
            budget=rounded(budget),
            beyond={name: rounded(value) for name, value in sorted(beyond.items())},
            clusters=np.asarray(reference.clusters, dtype=np.int32),
        )

    @property
    def name(self) -> str:
        """``cifar100 acc1``."""
        return f"{self.task} {self.metric}"

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(self.reference.correct)

    @property
    def lost(self) -> int:
        """Samples right in the reference only."""
        return int((self.reference.correct & ~self.quantized.correct).sum())

    @property
    def won(self) -> int:
        """Samples right in the quantized model only."""
        return int((self.quantized.correct & ~self.reference.correct).sum())

    @property
    def changed(self) -> int:
        """Samples whose first answer differs between reference and quantized model."""
        return int((self.reference.answers != self.quantized.answers).sum())

    @property
    def difference(self) -> float:
        """Quantized minus reference, in points."""
        return 100.0 * (self.won - self.lost) / self.count

    @property
    def percent_reference(self) -> float:
        """Accuracy of the reference, 0 to 100."""
        return 100.0 * self.reference.right / self.count

    @property
    def percent_quantized(self) -> float:
        """Accuracy of the quantized model, 0 to 100."""
        return 100.0 * self.quantized.right / self.count


@dataclass(frozen=True)
class HistoryEntry:
    """One acceptance: the day (UTC), the person's reason, and what it changed."""

    date: str
    reason: str
    changes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Record:
    """What was measured for one recipe on one model and device.

    ``quantizers`` is the map as ``Quantizer.as_dict`` gives it, in module order; ``throughput``
    says by tower how many times faster than its reference the quantized one is.  A run of some
    suites only leaves ``tasks`` or ``throughput`` empty; the store merges.  ``history``,
    ``measured`` (UTC) and ``path`` are the store's.
    """

    provenance: Provenance
    quantizers: tuple[dict[str, object], ...]
    tasks: tuple[TaskRecord, ...] = ()
    throughput: Mapping[str, Ratio] | None = None
    history: tuple[HistoryEntry, ...] = ()
    measured: str = ""
    path: Path | None = None

    @property
    def reason(self) -> str:
        """Why the latest numbers were accepted."""
        return self.history[-1].reason if self.history else ""

    def task(self, task: str, metric: str) -> TaskRecord | None:
        """The record of one task and metric, or None."""
        return next((t for t in self.tasks if (t.task, t.metric) == (task, metric)), None)

    def only(self, task: str, metric: str | None = None) -> Record:
        """The same record with one task left (all its metrics, or one): what a test of that task
        compares.
        """
        return replace(
            self,
            tasks=tuple(t for t in self.tasks if t.task == task and metric in (None, t.metric)),
        )


def rounded(value: float) -> float:
    """*value* to 6 significant digits.

    Raises:
        ValueError: NaN or infinite.

    """
    if not np.isfinite(value):
        raise ValueError(f"a measured number is {value}")
    return float(f"{value:.6g}")
