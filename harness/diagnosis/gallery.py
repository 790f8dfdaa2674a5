"""The samples whose answer quantization changed, with their pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from harness.data.tasks import IMAGE_RECALL, Outcomes, Task
from harness.statistics.verdicts import check_pair

if TYPE_CHECKING:
    from harness.gate.case import Case

#: Pixels of a thumbnail's longer side: enough to recognise a picture, small enough for a page of
#: hundreds.
THUMBNAIL = 96
#: Entries a metric; more are counted by the verdict.
LIMIT = 60
_ORDER = {"lost": 0, "changed": 1, "won": 2}


def changed_answers(
    task: Task,
    reference: Outcomes,
    quantized: Outcomes,
    limit: int = LIMIT,
    captions: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """The samples that the two models answer differently, worst first: lost, then changed, then
    won.

    Within each of these the largest fall of the margin comes first.  ``lost``: right only in the
    reference; ``won``: right only in the quantized model; ``changed``: another first answer, as
    right or wrong as before.

    Args:
        task: what both were evaluated on.
        reference: outcomes of the FP16 model.
        quantized: outcomes of the quantized model, same metric, same samples.
        limit: entries to return.
        captions: the words behind a retrieval task's prompts, in their order (:func:`captions_of`);
            without them a caption is called by its picture and number.

    Returns:
        JSON records: ``sample``, ``image`` (a PNG data URI), ``target``, ``reference``,
            ``quantized`` (in words),
        ``reference_margin``, ``quantized_margin`` (logits) and ``kind``.  Where answers are
        pictures, ``query`` is the caption and ``reference_image`` and ``quantized_image`` are the
        pictures that each model put first.

    Raises:
        UsageError: the two are not outcomes of the same samples, or a picture cannot be read.
    """
    check_pair(reference, quantized)
    fall = _fall(reference, quantized)
    chosen = sorted(
        (
            (kind, int(i))
            for kind, members in _kinds(reference, quantized).items()
            for i in np.flatnonzero(members)
        ),
        key=lambda entry: (_ORDER[entry[0]], -fall[entry[1]]),
    )[:limit]
    by_picture = reference.metric == IMAGE_RECALL
    shown = {_picture_of(reference, i) for _, i in chosen}
    if by_picture:
        shown |= {int(o.answers[i]) for o in (reference, quantized) for _, i in chosen} - {-1}
    images = thumbnails(task, sorted(shown))
    names = _names(task, reference.metric, captions)
    entries = []
    for kind, i in chosen:
        entry: dict[str, Any] = {
            "sample": reference.sample_ids[i],
            "image": images[_picture_of(reference, i)],
            "target": names(int(reference.targets[i])),
            "reference": names(int(reference.answers[i])),
            "quantized": names(int(quantized.answers[i])),
            "reference_margin": float(reference.margins[i]),
            "quantized_margin": float(quantized.margins[i]),
            "kind": kind,
        }
        if by_picture:
            entry["query"] = captions[i] if captions is not None else reference.sample_ids[i]
            entry["reference_image"] = images.get(int(reference.answers[i]))
            entry["quantized_image"] = images.get(int(quantized.answers[i]))
        entries.append(entry)
    return entries


def captions_of(task: Task, tokenizer: Any) -> tuple[str, ...]:
    """What the text tower read of each of *task*'s prompts, decoded from their tokens:
    (prompts,).
    """
    words = tokenizer.batch_decode(task.prompts.ids, skip_special_tokens=True)
    return tuple(words[row].strip() for row in task.prompts.rows.tolist())


def thumbnails(task: Task, positions: Sequence[int]) -> dict[int, str]:
    """PNG data URIs of the pictures at *positions* (ascending) of *task*, at most THUMBNAIL pixels
    a side.
    """
    if not positions:
        return {}
    pictures, start = task.pictures, task.start
    return {i: data_uri(next(pictures.batches(1, start + i, start + i + 1))[0]) for i in positions}


def data_uri(picture: Tensor) -> str:
    """*picture*, uint8 (3, height, width), as a ``data:image/png`` URI, reduced to THUMBNAIL pixels
    a side.
    """
    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().cpu().numpy())
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def _kinds(
    reference: Outcomes, quantized: Outcomes
) -> dict[str, np.ndarray[Any, np.dtype[np.bool_]]]:
    lost, won = reference.correct & ~quantized.correct, quantized.correct & ~reference.correct
    return {
        "lost": lost,
        "won": won,
        "changed": (reference.answers != quantized.answers) & ~lost & ~won,
    }


def _fall(reference: Outcomes, quantized: Outcomes) -> np.ndarray[Any, np.dtype[np.float64]]:
    """How far each margin fell (logits); a sample without a finite score fell infinitely."""
    with np.errstate(invalid="ignore"):
        fall = reference.margins.astype(np.float64) - quantized.margins.astype(np.float64)
    # -inf in both is not a fall.
    return np.nan_to_num(fall, nan=0.0, posinf=np.inf, neginf=-np.inf)


def _picture_of(outcomes: Outcomes, sample: int) -> int:
    """Return the position of the picture that a sample shows: its own, or the one that a caption
    belongs to.
    """
    return int(outcomes.targets[sample]) if outcomes.metric == IMAGE_RECALL else sample


def _names(task: Task, metric: str, captions: Sequence[str] | None) -> Any:
    """Return the candidates' names in words, by their numbers."""

    def name(index: int) -> str:
        if index < 0:
            return "no finite score"
        if task.labels is not None:
            return task.classes[index]
        if metric == IMAGE_RECALL:
            return task.sample_ids[index]
        if captions is not None:
            return captions[index]
        owner = int(np.searchsorted(task.first_text, index, side="right")) - 1
        return f"{task.sample_ids[owner]}#{index - int(task.first_text[owner])}"

    return name


def of_case(case: Case) -> dict[str, list[dict[str, Any]]]:
    """Return the changed answers on every metric of every task that was evaluated whole, by task
    and metric.
    """
    before, after = case.runs
    changed_by_metric = {}
    for task in case.tasks:
        for metric, outcomes in before[task.name].outcomes.items():
            if len(outcomes.sample_ids) != task.n(metric):
                continue  # stopped early: positions are not the task's
            captions = None
            if task.labels is None:
                captions = captions_of(task, case.reference.tokenizer)
            changed = changed_answers(
                task, outcomes, after[task.name].outcomes[metric], captions=captions
            )
            changed_by_metric[f"{task.name}/{metric}"] = changed
    return changed_by_metric
