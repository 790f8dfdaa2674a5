"""The reference is fit to be compared with: finite, and better than guesses."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from drawn import outcomes, pair
from safetensors.torch import load_file, save_file

from harness.data import tasks
from harness.data.tasks import Task, TaskRun
from harness.errors import UsageError
from harness.gate.options import Options
from harness.gate.session import Gate
from harness.models import references
from harness.statistics import sanity
from harness.statistics.sanity import Guess
from harness.statistics.verdicts import Budget, Decision, compare, family

Floats = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def gate() -> Gate:
    """A gate whose reference is evaluated once."""
    return Gate(Options(recipes=("int8",), tasks=("emoji100", "emoji_captions")))


@pytest.fixture(scope="module")
def real(gate: Gate) -> dict[str, TaskRun]:
    """The embedded reference on two tasks."""
    return gate.cases()[0].reference_runs


@pytest.fixture(scope="module")
def emoji100(gate: Gate) -> Task:
    """The classification task of the two."""
    return gate.cases()[0].tasks[0]


def scored(task: Task, images: Floats, texts: Floats) -> dict[str, TaskRun]:
    """The run that these embeddings make of a task."""
    return {task.name: TaskRun(task.name, tasks.score(task, images, texts), images, texts)}


def test_chance_is_what_guessing_gives(real: dict[str, TaskRun]) -> None:
    """One of 100 classes, five of 600 pictures, and about five times five of 3,000 captions; the
    reference is above.
    """
    guesses = {guess.metric: guess for guess in sanity.guesses(real)}

    assert guesses[tasks.ACC1].chance == pytest.approx(0.01, rel=1e-6)
    assert guesses[tasks.IMAGE_RECALL].chance == pytest.approx(5 / 600, rel=1e-6)
    assert 1 / 600 < guesses[tasks.TEXT_RECALL].chance < 5 / 600
    assert not any(guess.at_chance for guess in guesses.values())
    sanity.check("embedded", real, "FP16")


@pytest.mark.parametrize(
    "kind", ["labels shuffled", "class names in another order", "random weights"]
)
def test_a_reference_at_chance_is_refused(
    real: dict[str, TaskRun], emoji100: Task, kind: str
) -> None:
    """Shuffled labels, class names in the wrong order and random embeddings are one line with
    counts and chance.
    """
    rng = np.random.default_rng(0)
    run, task = real["emoji100"], emoji100
    images, texts = run.image_embeddings, run.text_embeddings
    assert task.labels is not None
    if kind == "labels shuffled":
        task = dataclasses.replace(task, labels=rng.permutation(task.labels))
    elif kind == "random weights":
        images = rng.normal(size=images.shape).astype(np.float32)
    else:
        texts = np.roll(texts, 7, axis=0)

    with pytest.raises(
        UsageError,
        match=r"--clip-model mine: the reference is at chance: emoji100 .* of 1,000 right",
    ):
        sanity.check("mine", scored(task, images, texts), "FP16")


def test_a_task_at_chance_among_others_is_inconclusive(
    real: dict[str, TaskRun], emoji100: Task
) -> None:
    """Labels of one task shuffled: its verdict is INCONCLUSIVE and says why, those on the other
    task are judged.
    """
    run = real["emoji100"]
    assert emoji100.labels is not None
    labels = np.random.default_rng(0).permutation(emoji100.labels)
    shuffled = scored(
        dataclasses.replace(emoji100, labels=labels), run.image_embeddings, run.text_embeddings
    )
    runs = real | shuffled
    (case,) = Gate(Options(recipes=("int8",), tasks=("emoji100", "emoji_captions"))).cases()
    case.runs = (runs, runs)

    sanity.check("embedded", runs, "FP16")
    judged = case.verdicts

    assert [v.decision for v in judged.verdicts] == [
        Decision.INCONCLUSIVE,
        Decision.PASS,
        Decision.PASS,
    ]
    assert "the reference is at chance" in judged.verdicts[0].message()
    assert judged.decision is Decision.INCONCLUSIVE


def test_embeddings_that_are_not_finite_are_counted_by_tower(real: dict[str, TaskRun]) -> None:
    """Pictures and texts without a finite embedding are counted over all tasks, with the tower and
    the type.
    """
    run = real["emoji100"]
    images, texts = run.image_embeddings.copy(), run.text_embeddings.copy()
    images[:620, 0], texts[3] = np.inf, np.nan
    broken = {"emoji100": dataclasses.replace(run, image_embeddings=images, text_embeddings=texts)}

    with pytest.raises(UsageError) as refused:
        sanity.check("mine", real | broken, "FP16")

    line = str(refused.value)
    assert "no finite embedding for 620 of 1,600 pictures of emoji100 (vision tower)" in line
    assert "and 1 of 3,100 texts of emoji100 (text tower) in FP16" in line


def test_a_checkpoint_that_overflows_is_refused_by_the_gate(tmp_path: Path) -> None:
    """Weights that FP16 holds, and whose features it does not, are refused before the quantized
    model is built.
    """
    folder = shutil.copytree(references.EMBEDDED, tmp_path / "large")
    weights = load_file(folder / "model.safetensors")
    weights["visual_projection.weight"] = weights["visual_projection.weight"] * 2.0**16
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    gate = Gate(Options(recipes=("int4-block",), clip_models=(str(folder),), tasks=("emoji100",)))

    with pytest.raises(
        UsageError, match=r"no finite embedding for [\d,]+ of 1,000 pictures .* in FP16"
    ):
        assert gate.cases()[0].runs


def test_a_quantized_model_without_finite_answers_fails() -> None:
    """However few samples show it, and whatever the budget: FAIL with the count, alone and in a
    family.
    """
    reference, quantized = pair(1000, 0, 0)
    quantized.correct[:3], quantized.margins[:3] = False, -np.inf

    verdict = compare(reference, quantized, Budget(50.0))

    assert verdict.decision is Decision.FAIL
    assert "no finite answer for 3 of 1,000 samples" in verdict.message()
    assert family([verdict, compare(reference, reference, Budget(50.0))]).decision is Decision.FAIL
    with pytest.raises(
        UsageError, match="the reference gives no finite answer for 3 of 1,000 samples"
    ):
        compare(quantized, quantized, Budget(50.0))


@pytest.mark.parametrize(
    ("right", "n", "chance", "expected"),
    [
        (
            6,
            6,
            0.5,
            False,
        ),  # a coin that is always right six times shows nothing: such a task is not doubted
        (10, 10, 0.5, False),
        (5, 10, 0.5, True),
        (12, 20, 0.1, False),
        (4, 20, 0.01, False),
        (10, 1000, 0.01, True),
        (0, 1000, 0.01, True),
        (30, 1000, 0.01, False),
    ],
)
def test_small_honest_tasks_are_not_doubted(
    right: int, n: int, chance: float, expected: bool
) -> None:
    """A reference is at chance where a perfect one would be distinguished from guessing, and this one is
    not.
    """
    assert Guess("t", "acc1", right, n, chance).at_chance is expected


def test_classes_of_unequal_size_raise_what_guessing_gives() -> None:
    """Nine of ten samples are of one class, which the model always answers with: right nine times
    of ten, by chance.
    """
    targets = np.repeat([0, 1], [90, 10]).astype(np.int32)
    always = outcomes(targets == 0, targets=targets, top5=np.zeros((100, 1), np.int32))
    empty = np.zeros((100, 2), np.float32)

    (guess,) = sanity.guesses({"t": TaskRun("t", {"acc1": always}, empty, empty)})

    assert guess.chance == pytest.approx(0.9)
    assert guess.at_chance
