"""The reference is as accurate as what was published of it, or the known mistake is named."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawn import outcomes
from torch import nn

from harness.checks import accuracy
from harness.checks.registry import NotJudged
from harness.data import tasks
from harness.data.tasks import Task
from harness.errors import UsageError
from harness.gate.options import Options
from harness.gate.session import Gate
from harness.models import references
from harness.statistics import published
from harness.statistics.published import PublishedComparison, PublishedRow

MISTAKEN_TASKS = ("emoji100", "emoji_captions")


@pytest.fixture(scope="module")
def gate() -> Gate:
    """A gate whose reference is evaluated once."""
    return Gate(Options(recipes=("int8",), tasks=MISTAKEN_TASKS))


def row(checkpoint: str, task: str, metric: str = "acc1") -> PublishedRow:
    """The published row of a checkpoint."""
    known = published.of_checkpoint(checkpoint, published.rows())
    return next(r for r in known if (r.result.task, r.result.metric) == (task, metric))


def test_every_row_has_a_source_and_stands_once() -> None:
    """At least 40 published rows next to the packaged model's, each of one checkpoint, task and
    metric.
    """
    known = published.rows()
    keys = [(name, r.result.task, r.result.metric) for r in known for name in r.entry.names]

    assert len(set(keys)) == len(keys)
    assert sum(r.result.data is None for r in known) >= 40
    assert {r.result.task for r in known} >= {"imagenet1k", "cifar100", "mscoco_captions"}
    urls = {url for r in known if r.result.data is None for url in r.source.urls}
    # Without a commit in its address a page may say something else tomorrow.
    assert all(len(part) == 40 for url in urls for part in [url.split("/blob/")[1].split("/")[0]])


@pytest.mark.parametrize(
    ("checkpoint", "task", "metric", "value"),
    [
        ("laion/CLIP-ViT-L-14-laion2B-s32B-b82K", "imagenet1k", "acc1", 75.25),
        ("laion/clip-vit-l-14-laion2b-s32b-b82k", "cifar100", "acc1", 83.32),
        (
            "cache/models--laion--CLIP-ViT-L-14-laion2B-s32B-b82K/snapshots/0",
            "mscoco_captions",
            "text_retrieval_recall@5",
            83.98,
        ),
        ("google/siglip2-so400m-patch14-384", "imagenet1k", "acc1", 84.1),
    ],
)
def test_a_checkpoint_is_known_by_its_name(
    checkpoint: str, task: str, metric: str, value: float
) -> None:
    """By its id in any spelling of letters, and in the folder of the hub's cache."""
    assert row(checkpoint, task, metric).result.value == value


def test_a_checkpoint_is_known_by_its_weights(tmp_path: Path) -> None:
    """A copy under another name has the rows of the packaged model; other weights of the same
    length, a tower alone and planted outliers have none.
    """
    folder = shutil.copytree(references.EMBEDDED, tmp_path / "copy")
    changed = shutil.copytree(references.EMBEDDED, tmp_path / "changed")
    weights = bytearray((changed / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (changed / "model.safetensors").write_bytes(weights)
    known = published.rows()

    assert published.of_checkpoint(str(folder), known) == published.of_checkpoint("embedded", known)
    assert published.of_checkpoint(str(changed), known) == ()
    assert published.of_checkpoint("embedded+outliers", known) == ()


def test_the_packaged_model_agrees(gate: Gate) -> None:
    """Nothing is wrong with the reference of every newcomer's first run; a model without rows is
    not judged.
    """
    (case,) = gate.cases()
    (stressed,) = Gate(
        Options(recipes=("int8",), clip_models=("embedded+outliers",), tasks=("emoji100",))
    ).cases()

    assert accuracy.reference_agrees_with_published(case) == []
    with pytest.raises(NotJudged, match="nothing is published of embedded"):
        accuracy.reference_agrees_with_published(stressed)


def mistaken(gate: Gate, mistake: str) -> tuple[references.Reference, list[Task]]:
    """The reference and its tasks with a mistake planted."""
    side = gate.side("embedded")
    reference, planted = side.reference, list(side.tasks)
    if mistake == published.GELU:
        other = references.load("embedded", torch.device("cpu"))
        for module in other.model.modules():
            if hasattr(module, "activation_fn"):
                module.activation_fn = nn.GELU()
        return other, planted
    return reference, [changed(task, mistake) for task in planted]


def changed(task: Task, mistake: str) -> Task:
    """A task with a mistake planted, where it can have it."""
    changes: dict[str, Any] = {}
    counts = np.diff(task.first_text)
    if mistake == published.NORMALISATION:
        changes["shades"] = torch.linspace(0, 1, 256).expand(3, 256)
    elif mistake == published.SHUFFLED and task.labels is not None:
        changes["labels"] = np.random.default_rng(0).permutation(task.labels)
    elif mistake == (published.TEMPLATE if task.classes else published.FIRST_CAPTION):
        rows = task.prompts.rows[task.first_text[:-1]]
        changes["prompts"] = dataclasses.replace(task.prompts, rows=rows)
        changes["first_text"] = np.arange(len(counts) + 1).astype(np.int32)
    return dataclasses.replace(task, **changes)


@pytest.mark.parametrize(
    "mistake",
    [
        published.GELU,
        published.NORMALISATION,
        published.TEMPLATE,
        published.SHUFFLED,
        published.FIRST_CAPTION,
    ],
)
def test_a_planted_mistake_is_named(gate: Gate, mistake: str) -> None:
    """Each known mistake, planted in the packaged model or its data, is found without a baseline
    and named first.
    """
    reference, planted = mistaken(gate, mistake)
    runs = {task.name: tasks.evaluate(reference.model, task) for task in planted}
    got = {(name, m): o for name, run in runs.items() for m, o in run.outcomes.items()}

    problems = published.problems(reference, {task.name: task for task in planted}, got)

    assert problems
    assert all(f"Fits best: {mistake}" in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("accuracy", "n", "agrees"),
    [
        (75.25, 50_000, True),
        (74.50, 50_000, True),
        (76.20, 50_000, False),
        (74.20, 50_000, False),
        (74.20, 10_000, True),
        (71.40, 1_000, True),
        (70.00, 1_000, False),
        (0.10, 50_000, False),
    ],
)
def test_sampling_error_and_protocol_are_allowed_for(accuracy: float, n: int, agrees: bool) -> None:
    """What fewer samples cannot say agrees, in both directions; a clear difference does not."""
    known = row("laion/CLIP-ViT-L-14-laion2B-s32B-b82K", "imagenet1k")
    got = outcomes(np.arange(n) < round(n * accuracy / 100))

    assert published.compare(known, got).agrees is agrees


@pytest.mark.parametrize(
    ("difference", "seen", "named"),
    [
        (-2.7, {published.GELU: True}, published.GELU),
        (-3.9, {published.GELU: True, published.TEMPLATE: False}, published.GELU),
        (-4.3, {published.GELU: False}, published.TEMPLATE),
        (-75.1, {published.GELU: False}, published.SHUFFLED),
        (-0.9, {published.BILINEAR: True, published.GELU: False}, published.BILINEAR),
        (-20.0, {published.GELU: False}, None),
        (+5.0, {published.GELU: False}, None),
    ],
)
def test_a_mistake_is_named_by_its_size_and_by_what_is_seen(
    difference: float, seen: dict[str, bool], named: str | None
) -> None:
    """What this run visibly does comes first, what it does not do is ruled out, and no mistake is
    made up.
    """
    known = row("openai/clip-vit-large-patch14", "imagenet1k")
    value = known.result.value + difference
    comparison = PublishedComparison(known, value, 50_000, 0.9, 0.19)

    fits = published.fits(comparison, seen, 0.1)

    assert (fits[0].mistake if fits else None) == named
    assert ("No known mistake" in published.problem(comparison, fits)) is (named is None)


def test_samples_of_a_picture_count_once() -> None:
    """Five captions of one picture move together: the allowed difference is that of the
    pictures.
    """
    known = row("openai/clip-vit-large-patch14", "mscoco_captions", "image_retrieval_recall@5")
    right = np.arange(25_000) % 2 == 0
    single = outcomes(right)
    grouped = outcomes(right, clusters=np.repeat(np.arange(5_000), 5))

    wider = published.compare(known, grouped).allowed - known.source.allowance
    narrow = published.compare(known, single).allowed - known.source.allowance

    assert wider / narrow == pytest.approx(5**0.5, rel=1e-3)


def test_other_samples_have_no_row(gate: Gate) -> None:
    """A row about the packaged data says nothing of half of them."""
    known = published.of_checkpoint("embedded", published.rows())
    task = gate.side("embedded").tasks[0]

    assert published.row_for(known, task, "acc1") is not None
    assert published.row_for(known, task.subset(0, 500), "acc1") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("value: 175.0", r"own.yaml:\d+.*value"),
        ("value: .nan", r"own.yaml:\d+.*value"),
        ("worth: 75.0", r"own.yaml:\d+"),
    ],
)
def test_a_file_that_is_wrong_is_refused(tmp_path: Path, change: str, message: str) -> None:
    """The file, the line and the key are named."""
    text = (published.FOLDER / "openai.yaml").read_text()
    (tmp_path / "own.yaml").write_text(text.replace("value: 63.32", change))

    with pytest.raises(UsageError, match=message):
        published.rows(tmp_path)
