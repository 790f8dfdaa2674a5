"""Changed answers: which samples, in what order, in what words, with which pictures."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from harness import compat  # noqa: F401  (before clip_benchmark)
from harness.data import tasks
from harness.data.tasks import ACC1, IMAGE_RECALL, TEXT_RECALL, Outcomes, Task
from harness.diagnosis import gallery
from harness.errors import UsageError
from harness.models.references import Reference


@pytest.fixture(scope="module")
def prepared(reference: Reference) -> dict[str, Task]:
    """A classification and a retrieval task by name."""
    return {
        task.name: task
        for task in tasks.load_tasks(("emoji100", "emoji_captions"), None, reference)
    }


def ranked(task: Task, metric: str, seed: int, noise: float) -> Outcomes:
    """Outcomes of a model whose embeddings are seeded noise around a right answer, scored as any
    model's are.
    """
    draw = np.random.default_rng(seed)
    pictures, texts = len(task.sample_ids), len(task.first_text) - 1
    if task.labels is None:
        texts = len(task.prompts)
    words = np.random.default_rng(0).standard_normal((texts, 32))
    owner = task.labels if task.labels is not None else task.first_text[:-1]
    images = words[owner] + noise * draw.standard_normal((pictures, 32))

    def unit(x: Any) -> Any:
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)

    return tasks.score(task, unit(images), unit(words))[metric]


def pixels(uri: str) -> Image.Image:
    """The picture of a data URI."""
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_changed_answers_are_the_samples_that_differ(prepared: dict[str, Task]) -> None:
    """Every sample with another answer or another correctness is there once, under the word for its
    change.
    """
    task = prepared["emoji100"]
    before, after = (ranked(task, ACC1, seed, 1.2) for seed in (1, 2))
    entries = {e["sample"]: e for e in gallery.changed_answers(task, before, after, limit=10**6)}
    expected = {}
    for i, sample in enumerate(before.sample_ids):
        if before.correct[i] != after.correct[i]:
            expected[sample] = "lost" if before.correct[i] else "won"
        elif before.answers[i] != after.answers[i]:
            expected[sample] = "changed"

    assert {sample: e["kind"] for sample, e in entries.items()} == expected
    assert set(expected.values()) == {"lost", "won", "changed"}
    i = before.sample_ids.index(next(s for s, k in expected.items() if k == "lost"))
    entry = entries[before.sample_ids[i]]
    assert task.labels is not None
    assert entry["target"] == entry["reference"] == task.classes[task.labels[i]]
    assert entry["quantized"] == task.classes[after.answers[i]] != entry["target"]
    assert entry["reference_margin"] == float(before.margins[i]) > 0 > entry["quantized_margin"]


def test_worst_comes_first(prepared: dict[str, Task]) -> None:
    """Lost before changed before won, each by the fall of its margin, and the limit cuts the
    mildest.
    """
    task = prepared["emoji100"]
    before, after = (ranked(task, ACC1, seed, 1.2) for seed in (1, 2))
    every = gallery.changed_answers(task, before, after, limit=10**6)
    keys = [
        (("lost", "changed", "won").index(e["kind"]), e["quantized_margin"] - e["reference_margin"])
        for e in every
    ]

    assert keys == sorted(keys)
    assert gallery.changed_answers(task, before, after, limit=7) == every[:7]
    assert len(gallery.changed_answers(task, before, after)) == gallery.LIMIT < len(every)


def test_pictures_are_the_samples_own(prepared: dict[str, Task]) -> None:
    """Each entry shows the picture that its sample id names, as the model got it."""
    task = prepared["emoji100"]
    before, after = (ranked(task, ACC1, seed, 1.2) for seed in (1, 2))
    for entry in gallery.changed_answers(task, before, after, limit=5):
        i = task.sample_ids.index(entry["sample"])
        original = next(task.pictures.batches(1, i, i + 1))[0].permute(1, 2, 0).numpy()

        assert np.array_equal(np.asarray(pixels(entry["image"])), original)


def test_pictures_of_a_part_are_the_parts_own(prepared: dict[str, Task]) -> None:
    """A subset that does not begin at the data set's first picture shows its own pictures."""
    task = prepared["emoji100"]

    assert gallery.thumbnails(task.subset(40, 90), [0, 3]) == dict(
        zip([0, 3], gallery.thumbnails(task, [40, 43]).values(), strict=True)
    )


def test_large_pictures_are_reduced() -> None:
    """A picture of 336 pixels becomes a thumbnail, in its proportions."""
    assert pixels(gallery.data_uri(torch.zeros(3, 168, 336, dtype=torch.uint8))).size == (96, 48)


def test_retrieval_tells_captions_and_pictures(
    prepared: dict[str, Task], reference: Reference
) -> None:
    """A picture's answers are captions in words; a caption's answers are pictures, shown."""
    task = prepared["emoji_captions"]
    captions = gallery.captions_of(task, reference.tokenizer)
    first_model, second_model = (ranked(task, TEXT_RECALL, seed, 1.2) for seed in (1, 2))
    texts = gallery.changed_answers(task, first_model, second_model, limit=5, captions=captions)
    before, after = (ranked(task, IMAGE_RECALL, seed, 1.2) for seed in (1, 2))
    images = gallery.changed_answers(task, before, after, limit=5, captions=captions)

    assert len(captions) == len(task.prompts)
    assert all(e[key] in captions for e in texts for key in ("target", "reference", "quantized"))
    for entry in images:
        i = before.sample_ids.index(entry["sample"])
        own, first = int(before.targets[i]), int(after.answers[i])
        assert entry["query"] == captions[i]
        assert entry["target"] == task.sample_ids[own]
        assert entry["image"] == gallery.thumbnails(task, [own])[own]
        assert entry["quantized_image"] == gallery.thumbnails(task, [first])[first]


def test_captions_are_what_was_tokenized(prepared: dict[str, Task], reference: Reference) -> None:
    """Tokenized again, the decoded captions give the task's tokens."""
    task = prepared["emoji_captions"]
    captions = gallery.captions_of(task, reference.tokenizer)
    again = reference.tokenizer(
        list(captions[:40]), padding="max_length", max_length=task.prompts.ids.shape[1]
    )

    assert again["input_ids"] == task.prompts.ids[task.prompts.rows[:40]].tolist()


def test_captions_without_words_are_called_by_picture_and_number(prepared: dict[str, Task]) -> None:
    """Where no captions are given, an answer is its picture's id and the caption's number."""
    task = prepared["emoji_captions"]
    before, after = (ranked(task, TEXT_RECALL, seed, 1.2) for seed in (1, 2))
    entry = gallery.changed_answers(task, before, after, limit=1)[0]
    i = before.sample_ids.index(entry["sample"])

    assert entry["target"] == f"{task.sample_ids[i]}#0"


def test_no_finite_score_is_the_worst(prepared: dict[str, Task]) -> None:
    """A sample that the quantized model gave no score comes first, and says so."""
    task = prepared["emoji100"]
    before, after = (ranked(task, ACC1, seed, 1.2) for seed in (1, 2))
    i = int(np.flatnonzero(before.correct)[-1])
    answers, margins, correct = after.answers.copy(), after.margins.copy(), after.correct.copy()
    answers[i], margins[i], correct[i] = -1, -np.inf, False
    entry = gallery.changed_answers(
        task,
        before,
        dataclasses.replace(after, answers=answers, margins=margins, correct=correct),
        limit=1,
    )[0]

    assert entry["sample"] == before.sample_ids[i]
    assert entry["quantized"] == "no finite score"
    assert entry["quantized_margin"] == -math.inf


def test_equal_outcomes_have_no_changes(prepared: dict[str, Task]) -> None:
    """A model that answers like the reference has an empty gallery."""
    same = ranked(prepared["emoji100"], ACC1, 1, 1.2)

    assert gallery.changed_answers(prepared["emoji100"], same, same) == []


def test_other_samples_are_refused(prepared: dict[str, Task]) -> None:
    """Outcomes of other samples are no pair."""
    same = ranked(prepared["emoji100"], ACC1, 1, 1.2)

    with pytest.raises(UsageError):
        gallery.changed_answers(
            prepared["emoji100"], same, dataclasses.replace(same, sample_ids=same.sample_ids[::-1])
        )
