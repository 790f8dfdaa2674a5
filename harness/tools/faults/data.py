"""The model, the data or the evaluation under a fixed threshold are not what they were."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn

from harness.tools.faults.catalogue import FaultSite, Where, fault, replaced, with_result

_MODEL = ("reference", "runs", "places", "calibration", "tasks")


@fault(
    "base model moved", Where.MODEL, "a hub checkpoint that was updated in place", rebuilt=_MODEL
)
def _moved(_: FaultSite) -> Iterator[None]:
    """The reference's files hold other weights, so that its revision is another one."""
    from harness.models import references

    def other(reference: references.Reference) -> references.Reference:
        reference.model.vision_model.encoder.layers[0].mlp.fc1.weight.data *= 1.01
        return dataclasses.replace(reference, revision="0" * 64)

    with replaced((references, "load", with_result(references.load, other))):
        yield


@fault(
    "a dependency changes the model",
    Where.MODEL,
    "gelu for quick_gelu after an upgrade",
    rebuilt=_MODEL,
)
def _activation(_: FaultSite) -> Iterator[None]:
    """The same files and the same releases compute another activation."""
    from harness.models import references

    def other(reference: references.Reference) -> references.Reference:
        for module in reference.model.modules():
            if hasattr(module, "activation_fn"):
                module.activation_fn = nn.GELU()
        return reference

    with replaced((references, "load", with_result(references.load, other))):
        yield


@fault(
    "sample count changed",
    Where.DATA,
    "another sample count under a fixed threshold",
    rebuilt=("tasks", "runs"),
)
def _fewer(_: FaultSite) -> Iterator[None]:
    """A classification task has half of its samples."""
    from harness.data import tasks

    def half(loaded: tuple[tasks.Task, ...]) -> tuple[tasks.Task, ...]:
        return tuple(
            t.subset(0, len(t.sample_ids) // 2) if t.labels is not None else t for t in loaded
        )

    with replaced((tasks, "load_tasks", with_result(tasks.load_tasks, half))):
        yield


@fault("labels shuffled", Where.DATA, "class: labels shuffled", rebuilt=("tasks", "runs"))
def _shuffled(_: FaultSite) -> Iterator[None]:
    """Every picture gets the label of another one, for the reference and the quantized model
    alike.
    """
    from harness.data import tasks

    def shuffled(loaded: tuple[tasks.Task, ...]) -> tuple[tasks.Task, ...]:
        rng = np.random.default_rng(0)
        return tuple(
            t if t.labels is None else dataclasses.replace(t, labels=rng.permutation(t.labels))
            for t in loaded
        )

    with replaced((tasks, "load_tasks", with_result(tasks.load_tasks, shuffled))):
        yield


@fault(
    "class names off by one", Where.DATA, "an index that starts at one", rebuilt=("tasks", "runs")
)
def _off_by_one(_: FaultSite) -> Iterator[None]:
    """The quantized model is asked with the class names of the neighbouring classes."""
    from harness.data import tasks

    original: Callable[..., tasks.TaskRun] = tasks.evaluate

    def off(model: nn.Module, task: tasks.Task, **kwargs: object) -> tasks.TaskRun:
        if task.labels is not None and _is_quantized(model):
            prompts = task.prompts
            task = dataclasses.replace(
                task, prompts=dataclasses.replace(prompts, rows=prompts.rows.roll(1))
            )
        return original(model, task, **kwargs)

    with replaced((tasks, "evaluate", off)):
        yield


@fault(
    "reference compared with itself",
    Where.DATA,
    "the quantized model that was never put in the pipeline",
)
def _itself(_: FaultSite) -> Iterator[None]:
    """The evaluation of the quantized model runs with all its quantizers off."""
    from harness.quantization import quantize

    def unquantized(model: nn.Module) -> nn.Module:
        from harness.quantization.maps import tensor_quantizers

        plain = copy.deepcopy(model)
        for quantizer in tensor_quantizers(plain).values():
            quantizer.disable()
        return plain

    with replaced((quantize, "fold", unquantized)):
        yield


@fault("quantized model sees other pixels", Where.DATA, "a deployment with its own preprocessing")
def _other_pixels(_: FaultSite) -> Iterator[None]:
    """Only the quantized model is evaluated on pictures that were not normalised."""
    from harness.data import tasks

    original: Callable[..., tasks.TaskRun] = tasks.evaluate

    def other(model: nn.Module, task: tasks.Task, **kwargs: object) -> tasks.TaskRun:
        if _is_quantized(model):
            task = dataclasses.replace(task, shades=torch.linspace(0, 1, 256).expand(3, 256))
        return original(model, task, **kwargs)

    with replaced((tasks, "evaluate", other)):
        yield


def _is_quantized(model: nn.Module) -> bool:
    from harness.quantization.maps import tensor_quantizers

    return bool(tensor_quantizers(model))
