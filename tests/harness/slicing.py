"""What tests of sliced evaluation share."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from written import weights_in

from harness.data.tasks import Outcomes, TaskRun

CPU = torch.device("cpu")


ROWS = 64


def assert_equal(expected: TaskRun, found: TaskRun) -> None:
    """Both runs have the same bits in everything."""
    assert np.array_equal(expected.image_embeddings, found.image_embeddings)
    assert np.array_equal(expected.text_embeddings, found.text_embeddings)
    assert list(expected.outcomes) == list(found.outcomes)
    for metric, outcomes in expected.outcomes.items():
        for field in dataclasses.fields(Outcomes):
            one, other = (getattr(o, field.name) for o in (outcomes, found.outcomes[metric]))
            assert np.array_equal(one, other), (metric, field.name)


RECIPE = weights_in(8)
