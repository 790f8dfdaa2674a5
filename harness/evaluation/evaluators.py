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
    """The process that asks, which takes each task whole."""

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
        """There is nothing to reach."""

    def notes(self) -> list[str]:
        """There is nothing to report."""
        return []

    def close(self) -> None:
        """There is nothing to let go."""


@dataclass(frozen=True, eq=False)
class Here:
    """The process that asks as an engine: one slice at a time, so that others can take the next."""

    batch_size: int
    at_once: int | None = 1
    _known: WeakKeyDictionary[Subject, Known] = field(default_factory=WeakKeyDictionary)

    def start(self) -> None:
        """There is nothing to reach."""

    def compute(self, subject: Subject, slices: Sequence[Slice]) -> Iterator[tuple[Slice, Floats]]:
        """As :class:`Engine`; what slices of one subject share is embedded once."""
        known = self._known.setdefault(subject, Known())
        for one in slices:
            part = one.start, one.stop
            yield (
                one,
                side_embeddings(subject.model, one.task, one.side, self.batch_size, part, known),
            )

    def notes(self) -> list[str]:
        """There is nothing to report."""
        return []

    def close(self) -> None:
        """There is nothing to let go."""


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
        found = self._embeddings(subject, [one for cut in slices.values() for one in cut], keep)
        runs = {}
        for task in among:
            images, texts = (
                _joined(found, slices[task.name], side) for side in ("images", "texts")
            )
            runs[task.name] = TaskRun(task.name, tasks.score(task, images, texts), images, texts)
        return runs

    def embed(self, subject: Subject, task: Task, side: Side) -> Floats:
        """As :class:`Evaluator`."""
        slices = [one for one in shards.cut(task, self.pictures, self.prompts) if one.side == side]
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

        found: dict[Slice, Floats] = {}
        with self.visible() if self.progress else nullcontext():
            total = sum(one.n for one in slices)
            often = 0.1 if sys.stderr.isatty() else 10.0  # a log keeps every line
            with tqdm(
                total=total,
                desc=subject.name,
                leave=False,
                unit="sample",
                mininterval=often,
                disable=not self.progress,
            ) as bar:
                for one, array in self._each(subject, slices, self.store if keep else None):
                    assert one not in found, f"{one} came twice"
                    found[one] = array
                    bar.update(one.n)
        return found

    def _each(
        self, subject: Subject, slices: Sequence[Slice], store: ShardStore | None
    ) -> Iterator[tuple[Slice, Floats]]:
        """Every slice once, in any order: from the store, computed here, or taken over from who
        computes it now.
        """
        if store is None:
            yield from self.engine.compute(subject, slices)
            return
        places = {one: store.place(subject.reference.name, subject.name, one) for one in slices}
        bound = subject.bound | conditions(self.device, self.batch_size)
        bounds = {one: {"data": one.task.data_hash} | bound for one in slices}
        missing = list(slices)
        while missing:
            with ExitStack() as claims:
                mine: list[Slice] = []
                kept: dict[Slice, Floats] = {}
                for one in missing:
                    if len(mine) == self.engine.at_once:
                        break
                    array = store.read(places[one], bounds[one], one.n)
                    if array is not None:
                        kept[one] = array
                    elif claims.enter_context(store.claimed(places[one], wait=False)):
                        mine.append(one)
                # Who held a claim a moment ago may have written its shard since it was looked for.
                late = {one: store.read(places[one], bounds[one], one.n) for one in mine}
                kept |= {one: array for one, array in late.items() if array is not None}
                yield from kept.items()
                for one, array in self.engine.compute(
                    subject, [one for one in mine if one not in kept]
                ):
                    store.write(places[one], bounds[one], array)
                    yield one, array
            missing = [one for one in missing if one not in mine and one not in kept]
            if missing and not mine and not kept:
                # Other processes compute all that is left.  One that dies leaves its claim, and the
                # shard missing.
                with store.claimed(places[missing[0]], wait=True):
                    pass


def _joined(found: dict[Slice, Floats], slices: Sequence[Slice], side: str) -> Floats:
    return np.concatenate([found[one] for one in slices if one.side == side])


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
    """The process alone; with a *store* one of several, or one that may be interrupted; or a
    *cluster*.
    """
    size = batch_size or inputs.default_batch_size(device)
    if cluster is not None:
        engine = Cluster(cluster, device, size, data_root)
        return Sliced(engine, device, size, store, progress, visible)
    if store is None:
        return Alone(size, progress)
    return Sliced(Here(size), device, size, store, progress, visible)
