"""Outcomes made by hand, for the tests of verdicts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from harness.data.tasks import Outcomes


def outcomes(correct: ArrayLike, clusters: ArrayLike | None = None, **fields: Any) -> Outcomes:
    """Outcomes in which right samples answer 0, wrong ones 1, with reference margins of 1, 2, 3,
    ... in order.
    """
    right = np.asarray(correct, dtype=bool)
    n = len(right)
    values: dict[str, Any] = {
        "task": "emoji",
        "metric": "acc1",
        "sample_ids": tuple(f"s{i:05d}" for i in range(n)),
        "correct": right,
        "answers": np.where(right, 0, 1).astype(np.int32),
        "top5": np.tile(np.arange(5, dtype=np.int32), (n, 1)),
        "targets": np.zeros(n, dtype=np.int32),
        "margins": (np.where(right, 1, -1) * np.arange(1, n + 1)).astype(np.float32),
        "clusters": np.arange(n, dtype=np.int32)
        if clusters is None
        else np.asarray(clusters, dtype=np.int32),
        "scores": None,
    }
    return Outcomes(**values | fields)


def pair(n: int, lost: int, won: int, size: int = 1) -> tuple[Outcomes, Outcomes]:
    """Reference and quantized outcomes of n samples, the first `lost` lost, the next `won` won;
    clusters of `size`.
    """
    reference = np.arange(n) % 3 != 0
    reference[:lost], reference[lost : lost + won] = True, False
    quantized = reference.copy()
    quantized[: lost + won] ^= True
    clusters = np.arange(n) // size
    return outcomes(reference, clusters), outcomes(quantized, clusters)
