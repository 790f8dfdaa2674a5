"""Sliced, shared, interrupted and resumed: a task's outcomes are those of one process that never
stopped.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from made_data import file_bytes, noise, replace_in_shard, webdataset_captions, webdataset_classes
from safetensors.torch import load_file, save_file
from slicing import CPU, RECIPE, ROWS, assert_equal

from harness.checks import checkpoint
from harness.data import inputs, tasks
from harness.data.tasks import Task, TaskRun
from harness.evaluation import early, environment, shards
from harness.evaluation.evaluators import Alone, Here, Sliced
from harness.evaluation.shards import Floats, ShardStore, Slice
from harness.evaluation.subjects import Subject, state_digest
from harness.gate.options import Options
from harness.gate.session import Gate
from harness.models import references
from harness.models.references import Reference
from harness.quantization import maps, quantize

#: Slices of four pieces and two.
SIZES: dict[str, Any] = {"pictures": 60, "prompts": 150}

#: Slices that a test's engine has computed, as they were asked for.
Computed = list[str]


@dataclasses.dataclass(frozen=True)
class Counting(Here):
    """The engine of this process, which also says what it computed."""

    computed: Computed = dataclasses.field(default_factory=list)

    def compute(self, subject: Subject, slices: Sequence[Slice]) -> Iterator[tuple[Slice, Floats]]:
        """As :class:`Here`, with a record of it."""
        for piece, array in super().compute(subject, slices):
            self.computed.append(f"{subject.name}: {piece}")
            yield piece, array


def sliced(
    store: ShardStore | None, batch_size: int = ROWS, **more: Any
) -> tuple[Sliced, Computed]:
    """An evaluator that cuts tasks small, and what it has computed."""
    engine = Counting(batch_size)
    return Sliced(engine, CPU, batch_size, store, **(SIZES | more)), engine.computed


@pytest.fixture(scope="module")
def subject(reference: Reference) -> Subject:
    """The embedded CLIP as it is."""
    return Subject(reference, reference.model)


def part_of_hundred(reference: Reference) -> Task:
    """Two hundred pictures, a hundred classes."""
    return tasks.load_tasks(["emoji100"], None, reference)[0].subset(0, 200)


@pytest.fixture(scope="module")
def hundred(reference: Reference) -> Task:
    """Two hundred pictures, a hundred classes."""
    return part_of_hundred(reference)


@pytest.fixture(scope="module")
def whole(subject: Subject, hundred: Task) -> TaskRun:
    """The task as one process evaluates it in one piece."""
    return Alone(ROWS).evaluate(subject, [hundred])["emoji100"]


# -- slices ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pictures", [1, 7, 199, 200, 5000])
@pytest.mark.parametrize("prompts", [1, 90, 1 << 20])
def test_slices_are_the_task(hundred: Task, pictures: int, prompts: int) -> None:
    """Every picture and every class is in exactly one slice, in order, and no slice is larger than
    asked for.
    """
    cut = shards.cut(hundred, pictures, prompts)

    for side, total in (("images", 200), ("texts", 100)):
        mine = [piece for piece in cut if piece.side == side]
        assert [i for piece in mine for i in range(piece.start, piece.stop)] == list(range(total))
    assert max(piece.n for piece in cut if piece.side == "images") <= pictures


def test_sliced_classification_equals_the_whole(
    subject: Subject, hundred: Task, whole: TaskRun
) -> None:
    """A classification task in slices, a part of a class's prompts never apart, has the bits of the
    whole.
    """
    evaluator, computed = sliced(None)

    sliced_run = evaluator.evaluate(subject, [hundred])["emoji100"]

    assert_equal(whole, sliced_run)
    assert len(computed) == len(set(computed)) == 4 + 2


def test_sliced_retrieval_equals_the_whole(
    reference: Reference, subject: Subject, tmp_path: Path
) -> None:
    """A retrieval task is embedded in slices of pictures and of captions, and scored whole."""
    webdataset_captions(tmp_path / "captions")
    loaded = tasks.load_tasks(["wds/captions"], tmp_path, reference)
    evaluator, computed = sliced(None, pictures=3, prompts=4)

    assert_equal(
        Alone(ROWS).evaluate(subject, loaded)["wds/captions"],
        evaluator.evaluate(subject, loaded)["wds/captions"],
    )
    assert len(computed) == 3 + 4


def test_slices_of_a_part_equal_the_part(subject: Subject, hundred: Task) -> None:
    """A part of a task that begins in its middle is sliced from there."""
    part = hundred.subset(30, 190)

    assert_equal(
        Alone(ROWS).evaluate(subject, [part])["emoji100"],
        sliced(None, pictures=70)[0].evaluate(subject, [part])["emoji100"],
    )


def test_pictures_are_decoded_when_they_are_asked_for() -> None:
    """A slice decodes its own pictures, each once."""
    decoded = []

    class Files:
        def __getitem__(self, index: int) -> torch.Tensor:
            decoded.append(index)
            return torch.full((3, 2, 2), index, dtype=torch.uint8)

        def where(self, index: int) -> Path:
            return Path(f"{index}.png")

    pictures = inputs.Pictures(Files(), [str(i) for i in range(9)], (3, 2, 2))

    assert [int(p) for batch in pictures.batches(2, 3, 6) for p in batch[:, 0, 0, 0]] == [3, 4, 5]
    assert decoded == [3, 4, 5]
    assert [int(p[0, 0, 0]) for p in pictures.at([8, 4])] == [8, 4]
    assert decoded == [3, 4, 5, 8]


# -- the store -------------------------------------------------------------------------------------


def test_what_is_there_is_not_computed_again(
    subject: Subject, hundred: Task, whole: TaskRun, tmp_path: Path
) -> None:
    """A second process of the same run takes every shard, bit for bit; one of a later run says that
    it did.
    """
    first, computed = sliced(ShardStore(tmp_path, "run"))
    first.evaluate(subject, [hundred])
    again, more = sliced(ShardStore(tmp_path, "run"))
    later, none = sliced(ShardStore(tmp_path, "another run"))

    assert_equal(whole, again.evaluate(subject, [hundred])["emoji100"])
    assert_equal(whole, later.evaluate(subject, [hundred])["emoji100"])
    assert (len(computed), more, none) == (4 + 2, [], [])
    assert first.notes() == again.notes() == []
    assert later.notes() == [
        f"went on where an earlier run stopped: 6 shards taken from {tmp_path}"
    ]


def test_a_damaged_shard_is_computed_again(
    subject: Subject, hundred: Task, whole: TaskRun, tmp_path: Path
) -> None:
    """A shard that is cut short, empty, changed in one bit, or no shard at all is named and
    computed again.
    """
    sliced(ShardStore(tmp_path, "one"))[0].evaluate(subject, [hundred])
    files = sorted(tmp_path.rglob("*.safetensors"))
    content = files[0].read_bytes()
    files[0].write_bytes(content[:-100])
    files[1].write_bytes(b"")
    files[2].write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    files[3].write_text("{}")
    evaluator, computed = sliced(ShardStore(tmp_path, "two"))

    assert_equal(whole, evaluator.evaluate(subject, [hundred])["emoji100"])
    assert len(computed) == 4
    notes = evaluator.notes()
    assert [note.partition(": is damaged")[0] for note in notes[1:]] == [
        str(file) for file in files[:4]
    ]
    assert sliced(ShardStore(tmp_path, "three"))[0].evaluate(subject, [hundred])
    assert sorted(tmp_path.rglob(".part-*")) == []


def change_a_weight(folder: Path) -> None:
    """One weight of the checkpoint in *folder* becomes another."""
    weights = load_file(folder / "model.safetensors")
    weights["visual_projection.weight"][0, 0] += 0.25
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


#: What is changed between two runs: (in the folder of all that was given, in the options), and what
#: the gate calls it.
CHANGES: dict[str, tuple[Callable[[Path], object], dict[str, Any], str, int]] = {
    "recipe": (
        lambda f: (f / "mine.yaml").write_text(RECIPE.replace("8", "5")),
        {},
        "recipe hash",
        1,
    ),
    "weight": (lambda f: change_a_weight(f / "clip"), {}, "model revision", 2),
    "picture": (
        lambda f: replace_in_shard(
            f / "data/tiny/test/1.tar", "k11.png", file_bytes(noise(99), "png")
        ),
        {},
        "data",
        2,
    ),
    "class name": (
        lambda f: (f / "data/tiny/classnames.txt").write_text("goose\ncat\nhog\n"),
        {},
        "data",
        2,
    ),
    "calibration": (lambda f: None, {"calibration_size": 5}, "calibration data", 1),
    "attention": (lambda f: None, {"attention": "modelopt"}, "attention class", 1),
    "batch size": (lambda f: None, {"batch_size": 16}, "batch size", 2),
}


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, a checkpoint, a data set, and the shards of a run on them."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "mine.yaml").write_text(RECIPE)
    shutil.copytree(references.EMBEDDED, folder / "clip")
    webdataset_classes(folder / "data" / "tiny")
    run(folder, folder / "shards", "first")
    return folder


def run(
    folder: Path, shards_of: Path | None, name: str = "", **options: Any
) -> tuple[list[TaskRun], Computed, list[str]]:
    """Reference and quantized model on what is in *folder*, what was computed, and what was
    said.
    """
    size = options.get("batch_size", ROWS)
    evaluator, computed = sliced(None if shards_of is None else ShardStore(shards_of, name), size)
    fixed = Options(
        recipes=(str(folder / "mine.yaml"),),
        clip_models=(str(folder / "clip"),),
        tasks=("wds/tiny",),
        data_root=folder / "data",
        calibration_size=4,
    )
    gate = Gate(dataclasses.replace(fixed, **options), evaluator=evaluator)
    (case,) = gate.cases()
    runs = [case.reference_runs["wds/tiny"], case.quantized_runs["wds/tiny"]]
    return runs, computed, evaluator.notes()


def test_shards_of_an_unchanged_run_are_all_taken(first_run: Path, tmp_path: Path) -> None:
    """With the same recipe, data, model, calibration and options nothing is computed again."""
    shutil.copytree(first_run / "shards", tmp_path / "shards")

    _, computed, notes = run(first_run, tmp_path / "shards", "second")

    assert computed == []
    assert notes == [
        f"went on where an earlier run stopped: 4 shards taken from {tmp_path / 'shards'}"
    ]


@pytest.mark.parametrize("changed", CHANGES)
def test_shards_of_something_else_are_left_out(
    changed: str, first_run: Path, tmp_path: Path
) -> None:
    """After any change of what numbers depend on, none of the old ones is used, and what differs is
    named.
    """
    change, options, what, models_affected = CHANGES[changed]
    shutil.copytree(first_run, tmp_path / "given")
    # The same places as before the copy: a checkpoint's folder gives its name, not its path.
    change(tmp_path / "given")
    expected, _, _ = run(tmp_path / "given", None, **options)

    outcomes, computed, notes = run(
        tmp_path / "given", tmp_path / "given" / "shards", "second", **options
    )

    assert len(computed) == 2 * models_affected
    foreign = [note for note in notes if "left out" in note]
    assert len(foreign) == models_affected
    assert all(f"belong to {what} " in note and "; this run has " in note for note in foreign)
    for first, other in zip(expected, outcomes, strict=True):
        assert_equal(first, other)


def test_a_model_changed_in_memory_is_something_else(
    subject: Subject, hundred: Task, tmp_path: Path
) -> None:
    """A weight that is another in this process alone, or a quantizer switched off, binds shards as
    well.
    """
    sliced(ShardStore(tmp_path, "one"))[0].evaluate(subject, [hundred])
    model = copy.deepcopy(subject.model)
    next(model.parameters()).data.view(-1)[0] += 1
    evaluator, computed = sliced(ShardStore(tmp_path, "two"))
    evaluator.evaluate(Subject(subject.reference, model), [hundred])

    assert len(computed) == 6
    assert "6 shards belong to weights and calibrated ranges" in " ".join(evaluator.notes())

    inserted = quantize.insert(subject.model)
    before = state_digest(inserted)
    next(iter(maps.tensor_quantizers(inserted).values())).enable()
    assert state_digest(inserted) != before


def test_other_sources_are_something_else(
    subject: Subject, hundred: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An edited checkout of the harness or of ModelOpt keeps its release; shards of before the edit
    are left out.
    """
    sliced(ShardStore(tmp_path, "one"))[0].evaluate(subject, [hundred])
    monkeypatch.setattr(environment, "sources", lambda: "another digest")
    evaluator, computed = sliced(ShardStore(tmp_path, "two"))

    evaluator.evaluate(subject, [hundred])

    assert len(computed) == 6
    assert "6 shards belong to sources of harness and ModelOpt" in " ".join(evaluator.notes())


def test_a_folder_that_takes_no_file_costs_nothing_but_a_note(
    subject: Subject, hundred: Task, whole: TaskRun, tmp_path: Path
) -> None:
    """Where nothing can be kept the run goes on, and says so."""
    (tmp_path / "file").write_text("")
    evaluator, computed = sliced(ShardStore(tmp_path / "file", "run"))

    assert_equal(whole, evaluator.evaluate(subject, [hundred])["emoji100"])
    assert len(computed) == 6
    assert ["could not be written" in note for note in evaluator.notes()] == [True]


def test_only_what_a_run_touched_is_discarded(
    subject: Subject, hundred: Task, tmp_path: Path
) -> None:
    """A run that came to its end takes its own shards with it and no other's."""
    other_shards = tmp_path / shards._name("embedded") / "another recipe"
    other_shards.mkdir(parents=True)
    store = ShardStore(tmp_path, "run")
    sliced(store)[0].evaluate(subject, [hundred])

    shards.discard(store.touched)

    assert list((tmp_path / shards._name("embedded")).iterdir()) == [other_shards]


# -- processes -------------------------------------------------------------------------------------


def evaluate_until_killed(folder: Path, held: Any) -> None:
    """Compute slices of the task, and stop for ever in the middle of the third, its claim held."""

    class Stopping(Here):
        def compute(
            self, subject: Subject, slices: Sequence[Slice]
        ) -> Iterator[tuple[Slice, Floats]]:
            if slices and slices[0].start == 120:
                held.set()
                time.sleep(600)
            yield from super().compute(subject, slices)

    reference = references.load("embedded", CPU)
    evaluator = Sliced(Stopping(ROWS), CPU, ROWS, ShardStore(folder, "run"), **SIZES)
    evaluator.evaluate(Subject(reference, reference.model), [part_of_hundred(reference)])


def test_a_process_that_dies_with_a_claim_is_taken_over_from(
    subject: Subject, hundred: Task, whole: TaskRun, tmp_path: Path
) -> None:
    """A process waits for the shard that another computes; when that one is killed, it computes the
    shard itself.
    """
    context = checkpoint.warm()
    held = context.Event()
    other = context.Process(target=evaluate_until_killed, args=(tmp_path, held))
    other.start()
    evaluator, computed = sliced(ShardStore(tmp_path, "run"))

    def kill() -> None:
        while len(computed) < 3:  # all that is left but the shard that the other one holds
            time.sleep(0.01)
        assert other.pid is not None
        os.kill(other.pid, signal.SIGKILL)

    try:
        assert held.wait(120), "the other process computed nothing"
        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        outcomes = evaluator.evaluate(subject, [hundred])["emoji100"]
    finally:
        other.kill()
        other.join()

    assert_equal(whole, outcomes)
    assert computed == [
        "reference: emoji100, images 180 to 200",
        "reference: emoji100, texts 0 to 50",
        "reference: emoji100, texts 50 to 100",
        "reference: emoji100, images 120 to 180",
    ]


# -- early stop ------------------------------------------------------------------------------------


def test_blocks_of_an_early_stop_are_shared(
    reference: Reference, subject: Subject, tmp_path: Path
) -> None:
    """With a store, blocks of an early stop are those without one, and a second process computes
    none of them.
    """
    (task,) = tasks.load_tasks(["emoji100"], None, reference)
    blocks = list(early.blocks(task))[:2]
    alone = early.Evaluation(functools.partial(Alone(ROWS).embed, subject), task)
    counts = []
    for _ in range(2):
        evaluator, computed = sliced(ShardStore(tmp_path, "run"))
        shared = early.Evaluation(functools.partial(evaluator.embed, subject), task)
        for number, block in enumerate(blocks):
            assert_equal(alone.run(number, block), shared.run(number, block))
        counts.append(len(computed))

    assert counts == [2 * 5 + 2, 0]
