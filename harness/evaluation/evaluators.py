"""Who runs a model over tasks: this process alone, several that share a folder, or the workers of a
cluster.

All three answer alike (:class:`Evaluator`), sample by sample.  The first takes a task whole.  The
others take slices: each slice's embeddings come from an :class:`Engine`, and the whole is scored
here, as without them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import torch

from harness import isolation
from harness.data import inputs, tasks
from harness.data.known import Known
from harness.data.tasks import Task, TaskRun
from harness.evaluation import shards
from harness.evaluation.cluster import Cluster
from harness.evaluation.environment import conditions
from harness.evaluation.shards import Floats, ShardStore, Side, Slice
from harness.evaluation.subjects import Engine, Evaluator, Subject, side_embeddings


@dataclass(frozen=True)
class Alone:
    """The process that evaluates each task whole, without others."""

    batch_size: int
    progress: bool = False

    def evaluate(
        self, subject: Subject, among: Sequence[Task], *, keep: bool = True
    ) -> dict[str, TaskRun]:
        """As :class:`Evaluator`."""
        isolation.check()
        known = Known()
        return {
            task.name: tasks.evaluate(
                subject.model, task, batch_size=self.batch_size, progress=self.progress, known=known
            )
            for task in among
        }

    def embed(self, subject: Subject, task: Task, side: Side) -> Floats:
        """As :class:`Evaluator`."""
        return side_embeddings(subject.model, task, side, self.batch_size)

    def ready(self) -> None:
        """Do nothing: there is nothing to connect to."""

    def notes(self) -> list[str]:
        """Return nothing: there is nothing to report."""
        return []

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


@dataclass(frozen=True, eq=False)
class Here:
    """The process itself as an engine: one slice at a time, so that others can compute the next."""

    batch_size: int
    at_once: int | None = 1
    _known: WeakKeyDictionary[Subject, Known] = field(default_factory=WeakKeyDictionary)

    def start(self) -> None:
        """Do nothing: there is nothing to connect to."""

    def compute(self, subject: Subject, slices: Sequence[Slice]) -> Iterator[tuple[Slice, Floats]]:
        """As :class:`Engine`; what the slices of a subject share is embedded once."""
        known = self._known.setdefault(subject, Known())
        for piece in slices:
            part = piece.start, piece.stop
            yield (
                piece,
                side_embeddings(
                    subject.model, piece.task, piece.side, self.batch_size, part, known
                ),
            )

    def notes(self) -> list[str]:
        """Return nothing: there is nothing to report."""
        return []

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


@dataclass(frozen=True, eq=False)
class Sliced:
    """Slices from an engine, each computed once by all processes that share a store.

    ``visible`` is entered while the bar is shown: where output is captured, it lets the bar
    through.
    """

    engine: Engine
    device: torch.device
    batch_size: int
    store: ShardStore | None = None
    progress: bool = False
    visible: Callable[[], AbstractContextManager[None]] = nullcontext
    pictures: int = shards.PICTURES
    prompts: int = shards.PROMPTS

    def evaluate(
        self, subject: Subject, among: Sequence[Task], *, keep: bool = True
    ) -> dict[str, TaskRun]:
        """As :class:`Evaluator`."""
        slices = {task.name: shards.cut(task, self.pictures, self.prompts) for task in among}
        embeddings = self._embeddings(
            subject, [piece for cut in slices.values() for piece in cut], keep
        )
        runs = {}
        for task in among:
            images, texts = (
                _joined(embeddings, slices[task.name], side) for side in ("images", "texts")
            )
            runs[task.name] = TaskRun(task.name, tasks.score(task, images, texts), images, texts)
        return runs

    def embed(self, subject: Subject, task: Task, side: Side) -> Floats:
        """As :class:`Evaluator`."""
        slices = [
            piece for piece in shards.cut(task, self.pictures, self.prompts) if piece.side == side
        ]
        return _joined(self._embeddings(subject, slices, keep=True), slices, side)

    def ready(self) -> None:
        """As :class:`Evaluator`."""
        self.engine.start()

    def notes(self) -> list[str]:
        """As :class:`Evaluator`."""
        return [*([] if self.store is None else self.store.notes()), *self.engine.notes()]

    def close(self) -> None:
        """As :class:`Evaluator`."""
        self.engine.close()

    def _embeddings(
        self, subject: Subject, slices: Sequence[Slice], keep: bool
    ) -> dict[Slice, Floats]:
        from tqdm import tqdm

        embeddings: dict[Slice, Floats] = {}
        with self.visible() if self.progress else nullcontext():
            total = sum(piece.n for piece in slices)
            often = 0.1 if sys.stderr.isatty() else 10.0  # a log keeps every line
            with tqdm(
                total=total,
                desc=subject.name,
                leave=False,
                unit="sample",
                mininterval=often,
                disable=not self.progress,
            ) as bar:
                for piece, array in self._each(subject, slices, self.store if keep else None):
                    assert piece not in embeddings, f"{piece} came twice"
                    embeddings[piece] = array
                    bar.update(piece.n)
        return embeddings

    def _each(
        self, subject: Subject, slices: Sequence[Slice], store: ShardStore | None
    ) -> Iterator[tuple[Slice, Floats]]:
        """Yield every slice once, in any order: from the store, computed here, or from the process
        that computes it now.
        """
        if store is None:
            yield from self.engine.compute(subject, slices)
            return
        places = {
            piece: store.place(subject.reference.name, subject.name, piece) for piece in slices
        }
        bound = subject.bound | conditions(self.device, self.batch_size)
        bounds = {piece: {"data": piece.task.data_hash} | bound for piece in slices}
        missing = list(slices)
        while missing:
            with ExitStack() as claims:
                mine: list[Slice] = []
                taken_over: dict[Slice, Floats] = {}
                for piece in missing:
                    if len(mine) == self.engine.at_once:
                        break
                    array = store.read(places[piece], bounds[piece], piece.n)
                    if array is not None:
                        taken_over[piece] = array
                    elif claims.enter_context(store.claimed(places[piece], wait=False)):
                        mine.append(piece)
                # Who held a claim a moment ago may have written its shard since it was looked for.
                late = {piece: store.read(places[piece], bounds[piece], piece.n) for piece in mine}
                taken_over |= {piece: array for piece, array in late.items() if array is not None}
                yield from taken_over.items()
                for piece, array in self.engine.compute(
                    subject, [piece for piece in mine if piece not in taken_over]
                ):
                    store.write(places[piece], bounds[piece], array)
                    yield piece, array
            missing = [piece for piece in missing if piece not in mine and piece not in taken_over]
            if missing and not mine and not taken_over:
                # Other processes compute all that is left.  One that dies leaves its claim, and the
                # shard missing.
                with store.claimed(places[missing[0]], wait=True):
                    pass


def _joined(embeddings: dict[Slice, Floats], slices: Sequence[Slice], side: str) -> Floats:
    return np.concatenate([embeddings[piece] for piece in slices if piece.side == side])


def evaluator(
    device: torch.device,
    batch_size: int | None,
    *,
    cluster: str | None = None,
    data_root: Path | None = None,
    store: ShardStore | None = None,
    progress: bool = False,
    visible: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Evaluator:
    """Return the evaluator of a run: this process alone; one of several, or one that may be
    interrupted, with a *store*; or a *cluster*.
    """
    size = batch_size or inputs.default_batch_size(device)
    if cluster is not None:
        engine = Cluster(cluster, device, size, data_root)
        return Sliced(engine, device, size, store, progress, visible)
    if store is None:
        return Alone(size, progress)
    return Sliced(Here(size), device, size, store, progress, visible)
