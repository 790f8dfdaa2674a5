"""Which pictures are shown to a consumer."""

from __future__ import annotations

import numpy as np
import pytest

from harness.consumers.reading import apart


@pytest.mark.parametrize(
    ("clusters", "most", "chosen"),
    [
        ([0, 1, 2, 3, 4], 3, [0, 2, 4]),
        ([7, 7, 5, 5, 9, 9], 3, [0, 2, 4]),
        ([7, 7, 5, 5, 9, 9], 2, [0, 4]),
        ([0, 0, 0, 1, 1, 1], 3, [0, 2, 5]),
        ([0, 0], 5, [0, 1]),
    ],
    ids=["no clusters", "one of each", "some of them", "too few clusters", "too few pictures"],
)
def test_pictures_are_of_as_many_clusters_as_there_are(
    clusters: list[int], most: int, chosen: list[int]
) -> None:
    """Pictures are taken from different clusters, in order and at equal distances."""
    assert apart(np.array(clusters, np.int32), most) == chosen
