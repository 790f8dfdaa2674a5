"""What tests of sliced evaluation share."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from written import weights_in

from harness.data.tasks import Outcomes, TaskRun

CPU = torch.device("cpu")


ROWS = 64


def assert_equal(expected: TaskRun, actual: TaskRun) -> None:
    """Both runs have the same bits in everything."""
    assert np.array_equal(expected.image_embeddings, actual.image_embeddings)
    assert np.array_equal(expected.text_embeddings, actual.text_embeddings)
    assert list(expected.outcomes) == list(actual.outcomes)
    for metric, outcomes in expected.outcomes.items():
        for field in dataclasses.fields(Outcomes):
            first, other = (getattr(o, field.name) for o in (outcomes, actual.outcomes[metric]))
            assert np.array_equal(first, other), (metric, field.name)


RECIPE = weights_in(8)
