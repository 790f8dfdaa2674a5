"""CLIP_benchmark tasks to per-sample outcomes.

Two kinds, with CLIP_benchmark's definitions and its names for the metrics:

* classification, ``acc1``: each class is the mean of its prompts' unit embeddings, made a unit
  again; the answer to a picture is the class of the highest cosine;
* retrieval, ``image_retrieval_recall@5`` (a caption finds its picture among the first five) and
  ``text_retrieval_recall@5`` (a picture finds at least one of its captions among the first five).

What the model returns is taken in its own precision; everything after it is computed in double
precision and rounded once to float32 logits (100 times the cosine).  CLIP_benchmark computes on in
the model's precision: with a half-precision model its logits are on a grid of 1/64, and many
answers are ties.  Where it gets single-precision features, every sample's answer is the same as
here.  Ties go to the lower index.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from harness import digests
from harness.data import inputs, sample_counts, samples, words
from harness.data.inputs import Pictures, Prompts, TakenPictures
from harness.data.known import Known, once
from harness.data.pictures import Resized
from harness.data.samples import CLASSIFICATION, Samples
from harness.models import families

if TYPE_CHECKING:
    from harness.models.references import Reference

EMBEDDED_TASKS = samples.EMBEDDED_TASKS
ACC1, IMAGE_RECALL, TEXT_RECALL = (
    sample_counts.ACC1,
    sample_counts.IMAGE_RECALL,
    sample_counts.TEXT_RECALL,
)
#: metric -> how far down the ranking a right candidate counts
DEPTH = {ACC1: 1, IMAGE_RECALL: 5, TEXT_RECALL: 5}
#: Scores are computed for so many query-candidate pairs at a time.
_CHUNK = 1 << 24
#: Scores of one metric that are kept at most, 2 GiB: COCO's 5,000 pictures and 25,000 captions have
#: a quarter.
_MAX_SCORES = 1 << 29


@dataclass(frozen=True)
class Outcomes:
    """What each sample got from one model under one metric of one task.

    ``n`` samples, each with one or more right ones among ``m`` candidates: an image among class
    names (``acc1``), a caption among images (``image_retrieval_recall@5``), an image among captions
    (``text_retrieval_recall@5``).  All arrays are on the CPU and are in the order of
    ``sample_ids``.

    ``margins`` are in logits: the best right candidate's minus that of the k-th best wrong one (k
    is 1 for ``acc1``, 5 for recall@5), so a sample is correct where its margin is positive,
    whatever the metric.  Where a model gave no finite score the sample is wrong, its answers are -1
    and its margin is minus infinity.
    """

    task: str
    metric: str
    sample_ids: tuple[str, ...]
    correct: npt.NDArray[np.bool_]  #: (n,)
    answers: npt.NDArray[np.int32]  #: (n,) the candidate ranked first
    top5: npt.NDArray[np.int32]  #: (n, min(5, m)) best first
    targets: npt.NDArray[
        np.int32
    ]  #: (n,) the right class, the right image, or the image's first caption
    margins: npt.NDArray[np.float32]  #: (n,)
    clusters: npt.NDArray[np.int32]  #: (n,) samples of one picture share a number
    scores: (
        npt.NDArray[np.float32] | None
    )  #: (n, m) logits 100*cos, or None where they were not kept

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.correct)

    @property
    def accuracy(self) -> float:
        """Share of correct samples, 0 to 1."""
        return float(self.correct.mean())


@dataclass(frozen=True)
class TaskRun:
    """One model on one task: its outcomes by metric and the unit embeddings they came from."""

    task: str
    outcomes: dict[str, Outcomes]
    image_embeddings: npt.NDArray[np.float32]  #: (images, d)
    text_embeddings: npt.NDArray[
        np.float32
    ]  #: (texts, d): one a class (classification) or one a caption (retrieval)


@dataclass(frozen=True)
class Completion:
    """What a single tower needs for a task from the whole checkpoint that it was cut out of.

    ``embeddings`` are unit embeddings by tower, float32 (n, d), of the pictures or of the
    candidates in words; ``projection`` is that of the tower itself where it has none.
    """

    embeddings: dict[str, npt.NDArray[np.float32]]
    projection: nn.Module | None

    def of(self, chosen: Any) -> Completion:
        """The same for the pictures *chosen* (an index of NumPy's)."""
        embeddings = {k: v[chosen] if k == "vision" else v for k, v in self.embeddings.items()}
        return dataclasses.replace(self, embeddings=embeddings)


@dataclass(frozen=True)
class Task:
    """A data set with its metrics, its pictures resized and its prompts tokenized for one
    reference.

    ``prompts`` are templates within classes (classification) or captions within pictures
    (retrieval); ``first_text[i]`` is where class or picture i's begin, with one more entry for the
    end.
    """

    name: str
    kind: str
    sample_ids: tuple[str, ...]  #: one a picture
    data_hash: str
    pictures: Pictures | TakenPictures
    shades: Tensor
    prompts: Prompts
    first_text: npt.NDArray[np.int32]
    labels: npt.NDArray[np.int32] | None  #: (pictures,) for classification
    clusters: npt.NDArray[np.int32]  #: (pictures,)
    classes: tuple[str, ...] = ()
    start: int = 0  #: position of the first picture in the whole data set
    completion: Completion | None = None  #: what the reference, a single tower, lacks

    @property
    def projection(self) -> nn.Module | None:
        """The projection of a tower's embedding into the common space, where the tower does not
        project itself.
        """
        return None if self.completion is None else self.completion.projection

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics this kind of task has."""
        return sample_counts.metrics_of(self.kind)

    def n(self, metric: str) -> int:
        """Samples under *metric*: captions for image retrieval, else pictures."""
        return len(self.prompts) if metric == IMAGE_RECALL else len(self.sample_ids)

    def decode(self) -> None:
        """Decode the pictures that fit in memory, so that a broken one is found now.

        Raises:
            UsageError: a picture cannot be read.
        """
        if isinstance(self.pictures, Pictures):
            self.pictures.decode()

    def subset(self, start: int, stop: int) -> Task:
        """Pictures *start* to *stop* of a classification task, with all its classes.

        Retrieval has no such part, as every picture is a candidate: embed slices and :func:`score`
        the whole.
        """
        if self.kind != CLASSIFICATION or self.labels is None:
            raise ValueError(
                f"{self.name} is a {self.kind} task; embed its slices and score them together"
            )
        if not 0 <= start < stop <= len(self.sample_ids):
            raise ValueError(f"{start}:{stop} is not a part of {len(self.sample_ids)} samples")
        part = slice(start, stop)
        whole = (start, stop) == (0, len(self.sample_ids))
        return dataclasses.replace(
            self,
            sample_ids=self.sample_ids[part],
            data_hash=self.data_hash
            if whole
            else f"{self.data_hash}[{self.start + start}:{self.start + stop}]",
            labels=self.labels[part],
            clusters=self.clusters[part],
            start=self.start + start,
            completion=self.completion and self.completion.of(part),
        )


def take(task: Task, positions: npt.NDArray[np.int64]) -> Task:
    """The samples at *positions* of a classification task, in that order, with all its classes."""
    if task.labels is None or not isinstance(task.pictures, Pictures) or task.start:
        raise ValueError(
            f"samples can be taken from a whole classification task, which {task.name} is not"
        )
    digest = digests.of_bytes(np.ascontiguousarray(positions, dtype="<i8").tobytes())
    return dataclasses.replace(
        task,
        sample_ids=tuple(task.sample_ids[i] for i in positions),
        data_hash=f"{task.data_hash}[{digest}]",
        pictures=task.pictures.take(positions.tolist()),
        labels=task.labels[positions],
        clusters=task.clusters[positions],
        completion=task.completion and task.completion.of(positions),
    )


def load_tasks(
    names: Sequence[str] | None, data_root: Path | None, reference: Reference
) -> tuple[Task, ...]:
    """The tasks *names*, ready for *reference*'s input size and tokenizer.

    Args:
        names: CLIP_benchmark names (``cifar100``, ``imagenet1k``, ``mscoco_captions``, ``wds/...``)
            under *data_root*, or EMBEDDED_TASKS, which need none; None means the latter.
        data_root: the folder of the data; ``{dataset}`` in it stands for the task's name.
        reference: whose tokenizer and image processor are used.

    Raises:
        UsageError: a task is unknown, or its data are absent, incomplete or damaged.
    """
    loaded = sample_counts.loaded(names, data_root)
    resize = inputs.Resize(reference.image_processor)
    return tuple(completed(prepare(data_set, resize, reference), reference) for data_set in loaded)


def prepare(data_set: Samples, resize: inputs.Resize, reference: Reference) -> Task:
    """*data_set* as a task: prompts written out and tokenized, pictures behind a cache."""
    if data_set.labels is not None:
        texts = [
            words.fill(template, name)
            for name in data_set.classes
            for template in data_set.templates
        ]
        counts = [len(data_set.templates)] * len(data_set.classes)
    else:
        assert data_set.captions is not None
        texts, counts = (
            [text for group in data_set.captions for text in group],
            [len(g) for g in data_set.captions],
        )
    return Task(
        name=data_set.name,
        kind=data_set.kind,
        sample_ids=data_set.ids,
        data_hash=data_set.hash,
        pictures=Pictures(Resized(data_set.pictures, resize), data_set.ids, resize.shape),
        shades=inputs.shades(reference.image_processor),
        prompts=inputs.tokenize(
            reference.tokenizer,
            texts,
            context_of(reference),
            families.of(reference.model).text_is_causal,
        ),
        first_text=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        labels=data_set.labels,
        clusters=data_set.clusters,
        classes=data_set.classes,
    )


def completed(task: Task, reference: Reference) -> Task:
    """Return *task* with what *reference* lacks for it, if it is a single tower of a whole
    checkpoint.
    """
    if reference.whole is None:
        return task
    towers = families.of(reference.model).towers
    runs: dict[str, Callable[[nn.Module, Task, int], npt.NDArray[np.float32]]]
    runs = {"vision": image_embeddings, "text": text_embeddings}
    size = inputs.default_batch_size(reference.device)
    embeddings = {
        name: run(reference.whole, task, size) for name, run in runs.items() if name not in towers
    }
    (own,) = towers.values()
    projection = getattr(reference.whole, own.completed_by) if own.completed_by else None
    return dataclasses.replace(task, completion=Completion(embeddings, projection))


def context_of(reference: Reference) -> int:
    """Positions of the text tower, of the whole checkpoint where the reference is a part of it."""
    return families.sizes(reference.whole or reference.model).context


def evaluate(
    model: nn.Module,
    task: Task,
    *,
    batch_size: int | None = None,
    keep_scores: bool = True,
    progress: bool = False,
    known: Known | None = None,
) -> TaskRun:
    """Run *model* (of a known family, quantized or not) over *task*, where it is and in its own
    dtype.

    Args:
        model: in evaluation mode.
        task: from :func:`load_tasks`.
        batch_size: rows a forward, at least 2 (a single row takes another kernel); by default what
            the device likes.
        keep_scores: keep the (n, m) logits; tasks with more than 2 GiB of them do without.
        progress: show a bar over the pictures.
        known: what this very model has made of other tasks' pictures and prompts; those are not
            embedded again.
    """
    size = max(2, batch_size or inputs.default_batch_size(next(model.parameters()).device))
    images = image_embeddings(model, task, size, progress, known)
    texts = text_embeddings(model, task, size, known)
    return TaskRun(task.name, score(task, images, texts, keep_scores), images, texts)


def image_embeddings(
    model: nn.Module,
    task: Task,
    size: int,
    progress: bool = False,
    known: Known | None = None,
    part: tuple[int, int] | None = None,
) -> npt.NDArray[np.float32]:
    """Unit embeddings of the task's pictures, or of *part* (start, stop) of them: float32
    (pictures, d).

    Args:
        model: in evaluation mode.
        task: whose pictures are taken.
        size: rows a forward.
        progress: show a bar.
        known: as :func:`evaluate`.
        part: by default all.
    """
    first, last = part or (0, len(task.sample_ids))
    if task.completion and "vision" in task.completion.embeddings:
        return task.completion.embeddings["vision"][first:last]
    start, stop = task.start + first, task.start + last

    def embed(batches: Iterable[Tensor], n: int) -> Tensor:
        if progress:
            from tqdm import tqdm

            batches = tqdm(batches, total=-(-n // size), desc=task.name, leave=False, unit="batch")
        return inputs.embed_images(model, batches, task.shades, size, task.projection)

    pictures = task.pictures
    if (
        known is not None
        and isinstance(pictures, Pictures)
        and (names := pictures.digests(start, stop)) is not None
    ):

        def fresh(positions: list[int]) -> Tensor:
            return embed(
                pictures.take([start + i for i in positions]).batches(size), len(positions)
            )

        return once(known.pictures, names, fresh).numpy()
    return embed(pictures.batches(size, start, stop), last - first).numpy()


def text_embeddings(
    model: nn.Module,
    task: Task,
    size: int,
    known: Known | None = None,
    part: tuple[int, int] | None = None,
) -> npt.NDArray[np.float32]:
    """Unit embeddings of the candidates in words, or of *part* of them: float32 (classes or
    captions, d).

    The arguments are those of :func:`image_embeddings`.
    """
    start, stop = part or (0, texts_of(task))
    if task.completion and "text" in task.completion.embeddings:
        return task.completion.embeddings["text"][start:stop]
    first, last = (
        (task.first_text[i] for i in (start, stop))
        if task.kind == CLASSIFICATION
        else (start, stop)
    )
    prompts = task.prompts.part(int(first), int(last))

    def fresh(positions: list[int]) -> Tensor:
        return inputs.embed_texts(model, prompts.different(positions), size, task.projection)

    if known is None:
        embeddings = inputs.embed_texts(model, prompts, size, task.projection)
    else:
        embeddings = once(known.prompts, [ids.numpy().tobytes() for ids in prompts.ids], fresh)[
            prompts.rows
        ]
    if task.kind != CLASSIFICATION:
        return embeddings.numpy()
    return inputs.unit(
        embeddings.double().view(stop - start, -1, embeddings.shape[1]).mean(1)
    ).numpy()


def texts_of(task: Task) -> int:
    """Candidates in words: classes (classification) or captions (retrieval)."""
    return len(task.first_text) - 1 if task.kind == CLASSIFICATION else len(task.prompts)


def score(
    task: Task,
    images: npt.NDArray[np.float32],
    texts: npt.NDArray[np.float32],
    keep_scores: bool = True,
) -> dict[str, Outcomes]:
    """Outcomes by metric from unit embeddings of the task's pictures and candidates in words."""
    if task.labels is not None:
        right = np.stack([task.labels, task.labels + 1], 1)
        return {
            ACC1: _outcomes(
                task, ACC1, task.sample_ids, images, texts, right, task.clusters, keep_scores
            )
        }
    first = task.first_text
    captions = np.diff(first)
    owner = np.repeat(np.arange(len(captions), dtype=np.int32), captions)
    within = np.arange(len(owner)) - first[owner]
    caption_ids = tuple(f"{task.sample_ids[i]}#{k}" for i, k in zip(owner, within, strict=True))
    to_image, to_text = np.stack([owner, owner + 1], 1), np.stack([first[:-1], first[1:]], 1)
    own = np.arange(len(captions), dtype=np.int32)
    return {
        IMAGE_RECALL: _outcomes(
            task, IMAGE_RECALL, caption_ids, texts, images, to_image, owner, keep_scores
        ),
        TEXT_RECALL: _outcomes(
            task, TEXT_RECALL, task.sample_ids, images, texts, to_text, own, keep_scores
        ),
    }


def _outcomes(
    task: Task,
    metric: str,
    sample_ids: tuple[str, ...],
    queries: npt.NDArray[np.float32],
    candidates: npt.NDArray[np.float32],
    right: npt.NDArray[np.int32],
    clusters: npt.NDArray[np.int32],
    keep_scores: bool,
) -> Outcomes:
    """Rank *candidates* (m, d) for each of *queries* (n, d); the right ones are right[i, 0] to
    right[i, 1] - 1.
    """
    wanted, table = torch.from_numpy(queries).double(), torch.from_numpy(candidates).double().T
    bounds = torch.from_numpy(right).long()
    index = torch.arange(len(candidates))
    keep_scores = keep_scores and len(queries) * len(candidates) <= _MAX_SCORES
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    logits_of_parts = []
    step = max(1, _CHUNK // len(candidates))
    for begin in range(0, len(queries), step):
        logits = (100 * (wanted[begin : begin + step] @ table)).float()
        low, high = bounds[begin : begin + step, :1], bounds[begin : begin + step, 1:]
        parts.append(_ranked(logits, (index >= low) & (index < high), DEPTH[metric]))
        if keep_scores:
            logits_of_parts.append(logits)
    correct, top, margins = (torch.cat(column) for column in zip(*parts, strict=True))
    return Outcomes(
        task=task.name,
        metric=metric,
        sample_ids=sample_ids,
        correct=correct.numpy(),
        answers=top[:, 0].int().numpy(),
        top5=top.int().numpy(),
        targets=right[:, 0].astype(np.int32),
        margins=margins.numpy(),
        clusters=clusters,
        scores=torch.cat(logits_of_parts).numpy() if keep_scores else None,
    )


def _ranked(logits: Tensor, is_right: Tensor, depth: int) -> tuple[Tensor, Tensor, Tensor]:
    """(correct bool (n,), top five (n, min(5, m)), margins float32 (n,)) of a block of queries."""
    top = best(logits, min(5, logits.shape[1]))
    correct = is_right.gather(1, top[:, :depth]).any(1)
    infinite = torch.tensor(float("-inf"))
    inside = torch.where(is_right, logits, infinite).amax(1)
    outside = (
        torch.where(is_right, infinite, logits).topk(min(depth, logits.shape[1]), 1).values[:, -1]
    )
    margins = inside - outside
    lost = ~logits.isfinite().all(1)
    return (
        correct & ~lost,
        torch.where(lost[:, None], -1, top),
        torch.where(lost, infinite, margins),
    )


def best(logits: Tensor, count: int) -> Tensor:
    """Return the positions of the *count* highest values in each row, best first; equal ones by
    position, which topk leaves open.
    """
    some = min(count + 1, logits.shape[1])
    values, positions = logits.topk(some, 1)
    tied = (values[:, 1:] == values[:, :-1]).any(1)
    if tied.any():
        positions[tied] = logits[tied].sort(stable=True, dim=1, descending=True).indices[:, :some]
    return positions[:, :count]
