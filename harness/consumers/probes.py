"""Frozen probes: small readers of single tokens, trained once on the FP16 model and never again.

A distance says how far a token moved, not whether what is read from it still holds.  A probe asks
each token a question whose answer is known from the picture's pixels or from the text; reference
and quantized model are asked the same, so that their answers make a paired verdict.  The probes of
the embedded model are shipped with it (``python -m harness.tools.embedded.probes`` trains them);
another model has none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harness.consumers import contracts, labels
from harness.consumers.contracts import Read
from harness.consumers.reading import Material, Reading
from harness.data.tasks import Outcomes

FILE = Path(__file__).parents[1] / "models" / "embedded" / "probes" / "probes.safetensors"
#: What the patches of a picture and the positions of a text are asked.
FOREGROUND, COLOUR, FIRST_WORD = "foreground", "colour", "first_word"
METRICS = {"vision": (FOREGROUND, COLOUR), "text": (FIRST_WORD,)}
#: The reads that probes are trained for.
PROBED: tuple[Reading, ...] = (
    ("llava", "patches"),
    ("owlvit", "patches"),
    ("sd15", "positions"),
    ("sdxl", "positions"),
)

#: The consumers and metrics that probes are trained for.
QUESTIONS: tuple[tuple[str, str], ...] = tuple(
    (consumer, metric)
    for consumer, name in PROBED
    for read in contracts.of(consumer).reads
    if read.name == name
    for metric in METRICS[read.tower]
)

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Probe:
    """A linear reader of one token.

    Attributes:
        consumer: whose tokens it reads.
        read: which of them.
        metric: what it is asked.
        weight: (d, classes).
        bias: (classes,).
        classes: what each class stands for: an index of COLOURS, a word's number, or 0 and 1.
    """

    consumer: str
    read: str
    metric: str
    weight: Tensor
    bias: Tensor
    classes: tuple[int, ...]


@cache
def shipped() -> tuple[str, Mapping[tuple[str, str], Probe]]:
    """The revision of the model that the shipped probes were trained on, and the probes by consumer
    and metric.
    """
    from safetensors import safe_open

    with safe_open(FILE, "pt") as file:
        meta = file.metadata()
        classes = json.loads(meta["classes"])
        probes = {}
        for name, values in classes.items():
            consumer, read, metric = name.split("/")
            probes[consumer, metric] = Probe(
                consumer,
                read,
                metric,
                file.get_tensor(f"{name}.weight").double(),
                file.get_tensor(f"{name}.bias").double(),
                tuple(values),
            )
    return meta["revision"], probes


def of_model(revision: str, consumers: tuple[str, ...]) -> list[Probe]:
    """The probes of *consumers* that were trained on the model of that *revision*."""
    trained_on, probes = shipped()
    if revision != trained_on:
        return []
    return [probe for probe in probes.values() if probe.consumer in consumers]


def answers(of: Material, read: Read, metric: str, tokens: int, leading: int = 0) -> Ints:
    """The right answer of every token of *read* to *metric*, (items, tokens); -1 where there is
    none.

    Args:
        of: the pictures and texts.
        read: which tokens.
        metric: what is asked.
        tokens: how many there are of one picture or text.
        leading: tokens before the first patch.
    """
    if metric == FIRST_WORD:
        ids, _ = of.ids(read)
        right = ids[:, 1:2].expand(-1, tokens).clone()
        right[:, 0] = -1  # the beginning has seen no word
        return right.numpy().astype(np.int32)
    side = math.isqrt(tokens - leading)
    shown, coloured = _patch_labels(of, side)
    labels = shown if metric == FOREGROUND else coloured
    return np.pad(labels, ((0, 0), (leading, 0)), constant_values=-1)


_PATCH_LABELS: dict[tuple[str, int], tuple[Ints, Ints]] = {}


def _patch_labels(of: Material, side: int) -> tuple[Ints, Ints]:
    key = (of.hash, side)
    if key not in _PATCH_LABELS:
        _PATCH_LABELS.clear()
        _PATCH_LABELS[key] = labels.of_patches(of.pixels.numpy(), side, side)
    return _PATCH_LABELS[key]


def ask(probe: Probe, of: Material, tokens: Tensor) -> Outcomes:
    """Return what *probe* reads in *tokens*, (items, tokens, d), and the right answers.

    A sample is a token that has a right answer; those of one picture or text are a cluster.
    """
    read = next(read for read in contracts.of(probe.consumer).reads if read.name == probe.read)
    right = answers(of, read, probe.metric, tokens.shape[1])[: len(tokens)]
    names = of.picture_ids if read.tower == "vision" else of.text_ids
    items, places = np.nonzero(np.isin(right, probe.classes))
    index = {value: number for number, value in enumerate(probe.classes)}
    targets = np.asarray([index[int(right[i, t])] for i, t in zip(items, places, strict=True)])
    logits = tokens[items, places].double() @ probe.weight + probe.bias
    return _outcomes(
        probe,
        tuple(f"{names[i]}@{t}" for i, t in zip(items, places, strict=True)),
        logits.numpy(),
        targets.astype(np.int32),
        of.clusters[items] if read.tower == "vision" else items.astype(np.int32),
    )


def _outcomes(
    probe: Probe,
    ids: tuple[str, ...],
    logits: npt.NDArray[np.float64],
    targets: Ints,
    clusters: Ints,
) -> Outcomes:
    finite = np.asarray(np.isfinite(logits).all(axis=1))
    safe = np.where(finite[:, None], logits, 0.0)
    order = np.argsort(-safe, axis=1, kind="stable")[:, : min(5, logits.shape[1])]
    rows = np.arange(len(safe))
    own = safe[rows, targets]
    others = safe.copy()
    others[rows, targets] = -np.inf
    margins = np.where(finite, own - others.max(axis=1), -np.inf)
    top = np.where(finite[:, None], order, -1).astype(np.int32)
    return Outcomes(
        task=probe.consumer,
        metric=probe.metric,
        sample_ids=ids,
        correct=finite & (top[:, 0] == targets),
        answers=top[:, 0],
        top5=top,
        targets=targets,
        margins=margins.astype(np.float32),
        clusters=clusters,
        scores=None,
    )


def fit(
    tokens: Tensor, right: npt.NDArray[Any], ridge: float
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Weight, bias and classes of the linear reader that least squares give for *tokens*, (n, d).

    Args:
        tokens: what is read.
        right: (n,), the answers; tokens with -1 are left out.
        ridge: the penalty, as a share of the number of tokens.
    """
    asked = right >= 0
    values, targets = np.unique(right[asked], return_inverse=True)
    x = tokens[torch.from_numpy(asked)].double()
    mean, spread = x.mean(0), x.std(0) + 1e-6
    z = torch.cat([(x - mean) / spread, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    wanted = torch.nn.functional.one_hot(torch.from_numpy(targets), len(values)).double()
    penalty = ridge * len(z) * torch.eye(z.shape[1], dtype=z.dtype)
    solved = torch.linalg.solve(z.T @ z + penalty, z.T @ wanted)
    weight = solved[:-1] / spread[:, None]
    bias = solved[-1] - mean @ weight
    return weight.float(), bias.float(), tuple(int(value) for value in values)
