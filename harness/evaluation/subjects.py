"""The models to evaluate, and the interfaces of evaluators and engines."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import nn

from harness import digests, isolation
from harness.data import tasks
from harness.data.calibration import CalibrationPairs
from harness.data.known import Known
from harness.data.tasks import Task, TaskRun
from harness.evaluation.shards import Floats, Side, Slice
from harness.models.references import Reference
from harness.quantization import maps
from harness.recipes.loading import Recipe

#: What the digest of a model's state is called where it does not agree.
STATE = "weights and calibrated ranges"


@dataclass(frozen=True)
class Quantization:
    """How a subject was made from its reference; ``model`` is not folded."""

    recipe: Recipe
    attention: str
    calibration: CalibrationPairs
    model: nn.Module


@dataclass(frozen=True, eq=False)
class Subject:
    """A model to evaluate: a reference, or the quantized model of a recipe."""

    reference: Reference
    model: nn.Module
    quantization: Quantization | None = None

    @property
    def name(self) -> str:
        """The recipe's name, or ``reference``."""
        return "reference" if self.quantization is None else self.quantization.recipe.name

    @cached_property
    def bound(self) -> dict[str, str]:
        """Return what the answers depend on, apart from the data and the computing process."""
        facts = {
            "model revision": self.reference.revision,
            "preprocessing": digests.of_json(self.reference.image_processor.to_dict()),
            STATE: state_digest(self.model),
        }
        if self.quantization is not None:
            quantization = self.quantization
            facts |= {
                "recipe hash": quantization.recipe.hash,
                "calibration data": quantization.calibration.hash,
                "calibration size": str(quantization.calibration.n),
                "attention class": quantization.attention,
            }
        return facts


def state_digest(model: nn.Module) -> str:
    """SHA-256 over *model*'s parameters, buffers (calibrated ranges among them) and what its
    quantizers are set to.
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, torch.Tensor):
            digest.update(f"{name}\0{tensor!r}\0".encode())
            continue
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(
            tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    for name, q in maps.tensor_quantizers(model).items():
        setting = (
            maps.format_name(q),
            maps.granularity(q),
            bool(q.is_enabled),
            getattr(q, "_dynamic", None),
        )
        digest.update(f"{name}\0{setting}\0".encode())
    return digest.hexdigest()


class Evaluator(Protocol):
    """Runs a model over tasks."""

    def evaluate(
        self, subject: Subject, among: Sequence[Task], *, keep: bool = True
    ) -> dict[str, TaskRun]:
        """Return the run of *subject* on each task of *among*, by the task's name; *keep* says
        whether another process may need it.
        """
        ...

    def embed(self, subject: Subject, task: Task, side: Side) -> Floats:
        """Unit embeddings of *task*'s pictures, or of its candidates in words: float32 (n, d)."""
        ...

    def ready(self) -> None:
        """Connect to what the evaluator needs, before the first model runs.

        Raises:
            UsageError: it cannot be reached.
        """
        ...

    def notes(self) -> list[str]:
        """Return what a person should know about the evaluation, one line each."""
        ...

    def close(self) -> None:
        """Release what the evaluator holds."""
        ...


def side_embeddings(
    model: nn.Module,
    task: Task,
    side: Side,
    batch_size: int,
    part: tuple[int, int] | None = None,
    known: Known | None = None,
) -> Floats:
    """Unit embeddings of one side of *task*, or of *part* (start, stop) of it: float32 (n, d).

    *known* is what the model has made of other tasks' samples.

    Raises:
        UsageError: a function of torch is not torch's own, so that the embeddings would not be the
            model's.
    """
    isolation.check()
    size = max(2, batch_size)
    if side == "texts":
        return tasks.text_embeddings(model, task, size, known, part)
    return tasks.image_embeddings(model, task, size, known=known, part=part)


class Engine(Protocol):
    """Computes slices."""

    @property
    def at_once(self) -> int | None:
        """How many slices one call computes; None for all."""
        ...

    def start(self) -> None:
        """As :meth:`Evaluator.ready`."""
        ...

    def compute(self, subject: Subject, slices: Sequence[Slice]) -> Iterator[tuple[Slice, Floats]]:
        """The embeddings of each slice, in any order."""
        ...

    def notes(self) -> list[str]:
        """As :meth:`Evaluator.notes`."""
        ...

    def close(self) -> None:
        """As :meth:`Evaluator.close`."""
        ...
