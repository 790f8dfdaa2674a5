"""Slices of a task, and the folder that keeps what a model made of them: shared by processes, left
to the next run.

A shard is the unit embeddings of one slice of a task under one model.  Outcomes are not kept:
``harness.data.tasks.score`` makes them from embeddings, the same in every process, and only the
whole of a task can be scored.

A shard is at a place that people can read (model, recipe, task, slice) and carries all that its
numbers depend on. What does not belong to this run is left out, named and written again, so nothing
stale is ever used.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from harness import digests, files
from harness.data import tasks
from harness.data.samples import CLASSIFICATION
from harness.data.tasks import Task

Side = Literal["images", "texts"]
Floats = npt.NDArray[np.float32]
Bound = Mapping[str, str]

#: Pictures a slice: half a second of a large GPU, so that a worker's death costs little and many
#: workers have work.
PICTURES = 1024
#: Prompts a slice of the candidates in words, which a text tower takes several times as fast.
PROMPTS = 4096
_SUFFIX = ".safetensors"


@dataclass(frozen=True, eq=False)
class Slice:
    """Pictures, or candidates in words (classes, captions), *start* to *stop* of a task."""

    task: Task
    side: Side
    start: int
    stop: int

    @property
    def n(self) -> int:
        """Rows of its embeddings."""
        return self.stop - self.start

    def __str__(self) -> str:
        return f"{self.task.name}, {self.side} {self.start} to {self.stop}"


def cut(task: Task, pictures: int = PICTURES, prompts: int = PROMPTS) -> list[Slice]:
    """*task* as slices: every picture and every candidate in words is in exactly one, in order."""
    each = len(task.prompts) // tasks.texts_of(task) if task.kind == CLASSIFICATION else 1
    sides: tuple[tuple[Side, int, int], ...] = (
        ("images", len(task.sample_ids), pictures),
        ("texts", tasks.texts_of(task), max(1, prompts // each)),
    )
    return [
        Slice(task, side, start, min(start + step, total))
        for side, total, step in sides
        for start in range(0, total, step)
    ]


class ShardStore:
    """Shards of one folder.

    Args:
        folder: made if it is not there.
        run: what this run is called in the shards that it writes: the same for all its processes.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self.folder = folder
        self.run = run
        #: Folders of models that this process read or wrote shards of.
        self.touched: set[Path] = set()
        self._resumed = 0
        self._foreign: dict[Path, str] = {}
        self._damaged: dict[Path, str] = {}
        self._unwritten = ""

    def place(self, model: str, recipe: str, piece: Slice) -> Path:
        """Return the file of the shard of *piece* under *recipe* on *model*."""
        folder = self.folder / _name(model) / _name(recipe)
        self.touched.add(folder)
        # The blocks of an early stop are tasks of their own in addition to the whole one.
        part = piece.task.data_hash.partition("[")[2]
        apart = f"-{digests.of_text(part)[:8]}" if part else ""
        return (
            folder
            / _name(piece.task.name)
            / f"{piece.side}-{piece.start:08}-{piece.stop:08}{apart}{_SUFFIX}"
        )

    def read(self, place: Path, bound: Bound, rows: int) -> Floats | None:
        """Return the embeddings at *place*, (rows, d), or None if there are none or they do not
        belong to *bound*.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(place, "numpy") as file:
                said, array = file.metadata() or {}, file.get_tensor("embeddings")
            recorded = json.loads(said["bound"])
            if (
                said["sha256"] != _digest(array)
                or array.shape[:1] != (rows,)
                or not isinstance(recorded, dict)
            ):
                raise ValueError("its contents are not those that were written")
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            self._damaged[place] = " ".join(str(error).split())
            return None
        if recorded != dict(bound):
            what = next(
                name
                for name in sorted({*recorded, *bound})
                if recorded.get(name) != bound.get(name)
            )
            was, now = (
                digests.short(str(side.get(what, "not recorded"))) for side in (recorded, bound)
            )
            self._foreign[place] = f"{what} {was}; this run has {now}"
            return None
        self._resumed += said.get("run") != self.run
        embeddings: Floats = array
        return embeddings

    def write(self, place: Path, bound: Bound, array: Floats) -> None:
        """Write *array* (rows, d) to *place*, whole or not at all. A folder that cannot be written
        is only noted.
        """
        from safetensors.numpy import save

        said = {
            "bound": json.dumps(dict(bound), sort_keys=True),
            "sha256": _digest(array),
            "run": self.run,
        }
        try:
            content = save({"embeddings": np.ascontiguousarray(array)}, said)
            files.write_whole(place, content, temporary=".part-", durable=False)
        except OSError as error:
            self._unwritten = f"{place}: could not be written ({error.strerror})"

    @contextmanager
    def claimed(self, place: Path, *, wait: bool) -> Iterator[bool]:
        """Yield whether this process is the one to compute the shard at *place*; *wait* until it
        is.

        The operating system takes the claim of a process that dies.  Where no file can be locked,
        all is one's own: shards are then computed more than once, never wrongly.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(place.with_suffix(".lock"), timeout=-1 if wait else 0)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            yield False
            return
        except (OSError, NotImplementedError):
            yield True
            return
        try:
            yield True
        finally:
            lock.release()

    def notes(self) -> list[str]:
        """Return a line for each thing to know about the stored shards: used, left out, damaged."""
        lines = []
        if self._resumed:
            what = "1 shard" if self._resumed == 1 else f"{self._resumed} shards"
            lines.append(f"went on where an earlier run stopped: {what} taken from {self.folder}")
        for (folder, why), count in Counter(
            (place.parent, why) for place, why in self._foreign.items()
        ).items():
            shards, places = (
                ("shard belongs", "its place") if count == 1 else ("shards belong", "their places")
            )
            lines.append(f"{folder}: {count} {shards} to {why}: left out, {places} written again")
        lines += [
            f"{place}: is damaged ({why}): computed again" for place, why in self._damaged.items()
        ]
        return lines + [self._unwritten] * bool(self._unwritten)


def discard(folders: set[Path]) -> None:
    """Remove the shards of a run that has ended: the next one measures again."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # other recipes of the model may be there
            folder.parent.rmdir()


def _name(text: str) -> str:
    """*text* as a folder's name: readable, and different for different texts."""
    return f"{digests.slug(text)}-{digests.of_text(text)[:8]}"


def _digest(array: Floats) -> str:
    return digests.of_bytes(np.ascontiguousarray(array, "<f4").tobytes())
