"""Compare the reference's accuracy with what was published of its checkpoint, and say which known
mistake explains a difference.

Verdicts compare two models with each other: a mistake on both sides (another activation, pictures
that were prepared in another way) cancels out. `harness/references/*.yaml` hold published results;
where the checkpoint at hand has a row, its accuracy must agree with it. The allowed difference is
the sampling error (`ALPHA`, two-sided) plus the allowance that the row's protocol declares. A row
that names its data is about the very samples of this run: then there is no sampling error, and the
mean margin is compared too, which reacts to what changes no answer.

A mistake is found by its size, and by what can be seen: one that the model, its preprocessing or
its task shows not to have happened is ruled out.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from scipy import stats

from harness import files
from harness.data.samples import CLASSIFICATION
from harness.data.tasks import Outcomes, Task
from harness.models import checkpoint_files
from harness.models.references import Reference

#: Two-sided error of calling an agreeing accuracy a disagreement by sampling alone.
ALPHA = 1e-3
#: Logits by which a mean margin of the same samples may differ.
MARGIN_ALLOWANCE = 0.03
#: A mistake fits where the difference is within so many standard deviations of its size.
FITS = 2.5
#: Standard deviations of the measured size of a mistake, on the very samples of a row.
_POINTS_SPREAD, _MARGIN_SPREAD = 0.3, 0.02

FOLDER = Path(__file__).parent.parent / "references"
_RESAMPLING = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}
_HUB_CACHE = re.compile(r"models--([\w.-]+?)--([\w.-]+)")

GELU = "GELU in place of QuickGELU"
QUICK_GELU = "QuickGELU in place of GELU"
BILINEAR = "another interpolation than bicubic"
NORMALISATION = "pictures that are not normalised"
TEMPLATE = "one template in place of all"
SHUFFLED = "shuffled labels"
FIRST_CAPTION = "first caption only"
#: Every known mistake.
MISTAKES = (GELU, QUICK_GELU, BILINEAR, NORMALISATION, TEMPLATE, SHUFFLED, FIRST_CAPTION)

#: Sizes of mistakes on published checkpoints: (mistake, task, metric) -> points, standard
#: deviation.
SIZES: Mapping[tuple[str, str, str], tuple[float, float]] = {
    # One set of weights (ViT-B/32, laion400m_e32) with both activations, in open_clip's tables of
    # results: 62.93 and 60.24, 70.29 and 67.73, 60.89 and 60.00, 76.72 and 76.42.
    (GELU, "imagenet1k", "acc1"): (-2.7, 1.0),
    (GELU, "cifar100", "acc1"): (-2.6, 1.0),
    (GELU, "mscoco_captions", "image_retrieval_recall@5"): (-0.9, 0.5),
    (GELU, "mscoco_captions", "text_retrieval_recall@5"): (-0.3, 0.5),
    # ViT-B/32 of OpenAI with one template: 59.06 in github.com/openai/CLIP/issues/24, where 63.32
    # is published; RN50: 55.09 and 59.82.
    (TEMPLATE, "imagenet1k", "acc1"): (-4.5, 0.7),
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


Percent = Annotated[float, Field(ge=0, le=100)]
Text = Annotated[str, Field(pattern=r"\S")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class PublishedSource(_Strict):
    """Where results were published, when they were read, and how they were measured."""

    title: Text
    urls: Annotated[list[Text], Field(min_length=1)]
    read: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")]
    prompts: Text
    crop: Text
    resample: Text
    precision: Text
    allowance: Annotated[float, Field(ge=0, lt=10)]
    allowance_reason: Text


class MistakenResult(_Strict):
    """What a mistake gives on the samples of a row."""

    value: Percent
    mean_margin: float


class PublishedResult(_Strict):
    """One published number, in per cent; `data` binds it to the samples of one data set."""

    task: Text
    metric: Text
    value: Percent
    data: Digest | None = None
    mean_margin: float | None = None
    mistakes: dict[Text, MistakenResult] = {}


class PublishedCheckpoint(_Strict):
    """What was published of one checkpoint, which is known by its names or its weights."""

    names: Annotated[list[Text], Field(min_length=1)]
    weights: Digest | None = None
    bytes: Annotated[int, Field(gt=0)] | None = None
    activation: Text | None = None
    results: Annotated[list[PublishedResult], Field(min_length=1)]


class PublishedFile(_Strict):
    """One file of published results."""

    source: PublishedSource
    checkpoints: Annotated[list[PublishedCheckpoint], Field(min_length=1)]


@dataclass(frozen=True)
class PublishedRow:
    """A published result with its checkpoint, its source and its place in the files."""

    entry: PublishedCheckpoint
    result: PublishedResult
    source: PublishedSource
    place: str


@lru_cache(maxsize=4)
def rows(folder: Path = FOLDER) -> tuple[PublishedRow, ...]:
    """Return every published result of the files in *folder*.

    Raises:
        UsageError: a file is not what it should be.
    """
    rows: list[PublishedRow] = []
    for path in sorted(folder.glob("*.yaml")):
        content, place = files.read_yaml_with_places(
            path, PublishedFile, what="file of published results"
        )
        for i, entry in enumerate(content.checkpoints):
            for k, result in enumerate(entry.results):
                line = place("checkpoints", i, "results", k).partition(" ")[0]
                where = f"harness/references/{path.name}{line.removeprefix(str(path))}"
                rows.append(PublishedRow(entry, result, content.source, where))
    return tuple(rows)


def of_checkpoint(ref: str, known: tuple[PublishedRow, ...]) -> tuple[PublishedRow, ...]:
    """Return the rows of the checkpoint that a person calls *ref*, by its name or by its weights.

    A part of a checkpoint, or one with planted outliers, is another model and has none.
    """
    base, suffixes = checkpoint_files.split(ref)
    if suffixes:
        return ()
    cached = _HUB_CACHE.search(base)
    name = (f"{cached[1]}/{cached[2]}" if cached else base).lower()
    named = tuple(row for row in known if name in map(str.lower, row.entry.names))
    return named or _of_weights(ref, known)


def _of_weights(ref: str, known: tuple[PublishedRow, ...]) -> tuple[PublishedRow, ...]:
    """Rows whose weights are those of the checkpoint; only a file of a known length is read."""
    lengths = {row.entry.bytes for row in known if row.entry.weights}
    weights = checkpoint_files.look(ref).weights
    if len(weights) != 1 or weights[0].stat().st_size not in lengths:
        return ()
    digest = hashlib.sha256()
    with files.opened(weights[0]) as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return tuple(row for row in known if row.entry.weights == digest.hexdigest())


def row_for(known: tuple[PublishedRow, ...], task: Task, metric: str) -> PublishedRow | None:
    """Return the row about *metric* of *task*, or None: a row about other samples is not one."""
    name = task.name.rpartition("/")[2]
    for row in known:
        result = row.result
        same_data = result.data is None or result.data == task.data_hash
        if (result.task, result.metric) == (name, metric) and same_data:
            return row
    return None


@dataclass(frozen=True)
class PublishedComparison:
    """The reference on one metric next to what was published, in points and logits.

    `allowed` is the largest difference in points that still agrees, `margin_change` None where the
    row has no mean margin.
    """

    row: PublishedRow
    accuracy: float
    samples: int
    allowed: float
    deviation: float
    margin_change: float | None = None

    @property
    def difference(self) -> float:
        """Measured minus published, in points."""
        return self.accuracy - self.row.result.value

    @property
    def agrees(self) -> bool:
        """Whether the difference is within what is allowed."""
        margin = abs(self.margin_change or 0.0)
        return abs(self.difference) <= self.allowed and margin <= MARGIN_ALLOWANCE


def compare(row: PublishedRow, outcomes: Outcomes) -> PublishedComparison:
    """Compare a reference's outcomes with a published row.

    Sampling error is that of whole clusters, whose samples may move together.
    """
    result, accuracy = row.result, 100 * outcomes.accuracy
    if result.data is not None:
        margins = np.asarray(outcomes.margins, dtype=np.float64)
        change = None
        if result.mean_margin is not None:
            change = float(margins[np.isfinite(margins)].mean()) - result.mean_margin
        return PublishedComparison(row, accuracy, outcomes.n, row.source.allowance, 0.0, change)
    return sampled(row, accuracy, outcomes.n, len(np.unique(outcomes.clusters)))


def sampled(row: PublishedRow, accuracy: float, samples: int, clusters: int) -> PublishedComparison:
    """Compare an accuracy (per cent) of samples in clusters with a published row."""
    deviation = sampling_error(row.result.value, clusters)
    allowed = row.source.allowance + float(stats.norm.isf(ALPHA / 2)) * deviation
    return PublishedComparison(row, accuracy, samples, allowed, deviation)


def sampling_error(value: float, n: int) -> float:
    """Standard deviation in points of an accuracy of *value* per cent on *n* samples; that of one
    right answer where all are right or wrong.
    """
    share = min(max(value / 100, 1 / (n + 1)), n / (n + 1))
    return 100 * math.sqrt(share * (1 - share) / n)


@dataclass(frozen=True)
class MistakeFit:
    """A mistake that explains a difference: its size in points, how many standard deviations it is
    off, and whether the mistake can be seen.
    """

    mistake: str
    points: float | None
    distance: float
    seen: bool

    def __str__(self) -> str:
        size = "" if self.points is None else f" ({self.points:+.2f} points)"
        return f"{self.mistake}{size}{', which is what this run does' if self.seen else ''}"


def fits(
    comparison: PublishedComparison, seen: Mapping[str, bool], chance: float
) -> list[MistakeFit]:
    """Return the known mistakes that explain a difference, the best first.

    Args:
        comparison: what differs.
        seen: for the mistakes that can be seen, whether this run makes them.
        chance: accuracy of guessing, in per cent.
    """
    result, fitting = comparison.row.result, []
    for mistake in MISTAKES:
        if seen.get(mistake) is False:
            continue
        points: float | None
        if mistake in result.mistakes:
            score = result.mistakes[mistake]
            points = score.value - result.value
            distance = abs(comparison.difference - points) / _POINTS_SPREAD
            if comparison.margin_change is not None and result.mean_margin is not None:
                margin = score.mean_margin - result.mean_margin
                off = abs(comparison.margin_change - margin) / _MARGIN_SPREAD
                distance = max(distance, off)
        elif mistake == SHUFFLED and comparison.row.result.metric == "acc1":
            points = chance - result.value
            distance = abs(comparison.difference - points) / math.hypot(comparison.deviation, 0.5)
        elif (key := (mistake, result.task, result.metric)) in SIZES:
            points, spread = SIZES[key]
            distance = abs(comparison.difference - points) / math.hypot(
                comparison.deviation, spread
            )
        else:
            points, distance = None, math.inf
        if distance <= FITS or seen.get(mistake):
            fitting.append(MistakeFit(mistake, points, distance, bool(seen.get(mistake))))
    return sorted(fitting, key=lambda fit: (not fit.seen, fit.distance))


def visible(row: PublishedRow, reference: Reference, task: Task) -> dict[str, bool]:
    """Of the mistakes that can be seen in model, preprocessing or task: whether this run makes
    them.
    """
    seen: dict[str, bool] = {}
    activation = activation_of(reference.model)
    expected = row.entry.activation
    # Without a declared activation neither mistake can be detected.
    seen[GELU] = expected == "quick_gelu" and activation == "gelu"
    seen[QUICK_GELU] = expected == "gelu" and activation == "quick_gelu"
    resample = getattr(reference.image_processor, "resample", None)
    if resample is not None:
        seen[BILINEAR] = int(resample) != _RESAMPLING[row.source.resample]
    plain = torch.linspace(0, 1, task.shades.shape[-1])
    seen[NORMALISATION] = bool((task.shades.float().cpu() - plain).abs().max() < 1e-3)
    texts = len(task.prompts)
    if task.kind == CLASSIFICATION:
        seen[TEMPLATE] = texts == len(task.classes)
        seen[FIRST_CAPTION] = False
    else:
        seen[TEMPLATE] = seen[SHUFFLED] = False
        seen[FIRST_CAPTION] = texts == len(task.sample_ids)
    return seen


def activation_of(model: Any) -> str | None:
    """Return ``quick_gelu`` or ``gelu`` for what the model's blocks compute, None if neither."""
    kinds = {type(module).__name__.lower().replace("_", "") for module in model.modules()}
    if any("quickgelu" in kind for kind in kinds):
        return "quick_gelu"
    return "gelu" if any("gelu" in kind for kind in kinds) else None


def problem(comparison: PublishedComparison, explained: list[MistakeFit]) -> str:
    """Say what differs from what was published, how much may differ, and what explains it."""
    row = comparison.row
    off = f"{comparison.difference:+.2f} points"
    if comparison.margin_change is not None:
        off += f", {comparison.margin_change:+.3f} logits of mean margin"
        allowed = f"{comparison.allowed:.2f} points and {MARGIN_ALLOWANCE:g} logits"
    else:
        allowed = f"{comparison.allowed:.2f} points on {comparison.samples:,} samples"
    if explained:
        cause = f"Fits best: {explained[0]}"
        if len(explained) > 1:
            cause += f"; next: {explained[1]}"
    else:
        cause = "No known mistake has this size"
    return (
        f"{row.result.task} ({row.result.metric}): the reference has {comparison.accuracy:.2f} %, "
        f"published is {row.result.value:.2f} % ({row.place}, {row.source.title}): {off}, where "
        f"{allowed} are allowed. {cause}. Check the reference's weights, activation, "
        f"preprocessing, prompts and labels before you trust a verdict."
    )


def problems(
    reference: Reference, tasks: Mapping[str, Task], outcomes: Mapping[tuple[str, str], Outcomes]
) -> list[str] | None:
    """Return what of the reference disagrees with what was published, a sentence per metric; None
    where nothing was published of this checkpoint on these tasks.

    Args:
        reference: the model.
        tasks: its tasks by name.
        outcomes: what it got, by task and metric.
    """
    known = of_checkpoint(reference.source, rows())
    problems: list[str] = []
    compared = 0
    for (name, metric), got in outcomes.items():
        row = row_for(known, tasks[name], metric)
        if row is None:
            continue
        compared += 1
        comparison = compare(row, got)
        if not comparison.agrees:
            seen = visible(row, reference, tasks[name])
            chance = 100 / max(len(tasks[name].classes), 1)
            problems.append(problem(comparison, fits(comparison, seen, chance)))
    return problems if compared else None
