"""Tasks that share pictures and prompts: one forward for each, and every bit as without sharing."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from harness.data import tasks
from harness.data.inputs import Pictures
from harness.data.known import Known, once
from harness.data.tasks import ACC1, Task
from harness.models.references import Reference

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def emoji100(reference: Reference) -> Task:
    """The smallest task."""
    (task,) = tasks.load_tasks(["emoji100"], None, reference)
    return task


def forwards(model: Any, task: Task, known: Known | None) -> tuple[tasks.TaskRun, int, int]:
    """A run of *task*, and how many forwards of the vision and the text tower it took."""
    with (
        mock.patch.object(model, "get_image_features", wraps=model.get_image_features) as images,
        mock.patch.object(model, "get_text_features", wraps=model.get_text_features) as texts,
    ):
        run = tasks.evaluate(model, task, batch_size=32, known=known)
    return run, images.call_count, texts.call_count


def test_shared_pictures_and_prompts_keep_every_bit(reference: Reference, emoji100: Task) -> None:
    """After a task that shares most of its samples, a task gives the bits that it gives alone, in
    fewer forwards.
    """
    first, second = emoji100.subset(0, 101), emoji100.subset(40, 120)
    known = Known()
    alone, images, texts = forwards(reference.model, second, None)
    forwards(reference.model, first, known)

    run, fewer_images, fewer_texts = forwards(reference.model, second, known)

    np.testing.assert_array_equal(run.image_embeddings, alone.image_embeddings)
    np.testing.assert_array_equal(run.text_embeddings, alone.text_embeddings)
    for name in ("correct", "answers", "top5", "margins", "scores"):
        np.testing.assert_array_equal(
            getattr(run.outcomes[ACC1], name), getattr(alone.outcomes[ACC1], name)
        )
    assert (images, fewer_images) == (3, 1)
    assert texts > 0 == fewer_texts


def test_equal_pictures_and_no_others_share_a_name(emoji100: Task) -> None:
    """As many names as there are different pictures; where two pictures are equal their names
    are.
    """
    (pictures,) = emoji100.pictures.batches(1000)
    _, index = np.unique(pictures.flatten(1).numpy(), axis=0, return_inverse=True)
    assert isinstance(emoji100.pictures, Pictures)
    names = emoji100.pictures.digests(0, len(emoji100.pictures))

    assert names is not None
    assert len(set(names)) == index.max() + 1 == len(set(zip(names, index.tolist(), strict=True)))


def test_pictures_that_do_not_fit_into_memory_have_no_names(emoji100: Task) -> None:
    """They are embedded task by task: to distinguish them they would have to be decoded once
    more.
    """
    pictures: Any = emoji100.pictures
    large = Pictures(pictures._dataset, pictures._ids, (3, 48, 48), memory_limit=1)

    assert large.digests(0, 2) is None


def test_each_is_embedded_once_and_the_order_is_kept() -> None:
    """Of names that repeat, within a call and over calls, only the first of each is embedded."""
    known: dict[bytes, torch.Tensor] = {}
    asked: list[list[int]] = []

    def embed(positions: list[int]) -> torch.Tensor:
        asked.append(positions)
        return torch.tensor([[float(p)] for p in positions])

    assert once(known, [b"a", b"b", b"a", b"c"], embed).flatten().tolist() == [0, 1, 0, 3]
    assert once(known, [b"c", b"b"], embed).flatten().tolist() == [3, 1]
    assert once(known, [b"d", b"a"], embed).flatten().tolist() == [0, 0]
    assert asked == [[0, 1, 3], [0]]
