"""What is kept is damaged: a checkpoint between saving and restoring, a baseline between two
runs.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.tools.faults.catalogue import FaultSite, Where, add, fault, replaced

WEIGHT = "text_model.encoder.layers.0.mlp.fc1.weight"
AMAX = "vision_model.encoder.layers.1.mlp.fc1.input_quantizer._amax"

# -- checkpoints -----------------------------------------------------------------------------------


def _read_back(**other: Any) -> Callable[[FaultSite], AbstractContextManager[None]]:
    """The fresh process reads the checkpoint in another way than it was written."""

    def plant(_: FaultSite) -> AbstractContextManager[None]:
        from harness.checks import checkpoint

        original = checkpoint.restore_in_fresh_process

        def careless(folder: Path, form: Any, inputs: Any, how: Any = None) -> Any:
            return original(
                folder, form, inputs, dataclasses.replace(how or checkpoint.Loading(), **other)
            )

        return replaced((checkpoint, "restore_in_fresh_process", careless))

    return plant


def _damaged(damage: Callable[[Path], None]) -> Callable[[FaultSite], AbstractContextManager[None]]:
    """*damage* happens to the folder after the model was saved into it."""

    def plant(_: FaultSite) -> AbstractContextManager[None]:
        from harness.checks import checkpoint

        original = checkpoint.save

        def save(model: Any, folder: Path, form: Any) -> None:
            original(model, folder, form)
            damage(folder)

        return replaced((checkpoint, "save", save))

    return plant


def _tensor(name: str, change: Callable[[Tensor], Tensor | None]) -> Callable[[Path], None]:
    """Change one tensor of ``model.safetensors``, or take it out."""

    def damage(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        path = folder / "model.safetensors"
        tensors = load_file(path)
        changed = change(tensors.pop(name))
        if changed is not None:
            tensors[name] = changed
        save_file(tensors, path, metadata={"format": "pt"})

    return damage


def _one_bit(weight: Tensor) -> Tensor:
    bits = weight.contiguous().view(torch.int16).clone()
    bits[0, 0] ^= 1
    return bits.view(weight.dtype)


for _name, _origin, _what, _plant in (
    (
        "checkpoint without hook",
        "from_pretrained without enable_huggingface_checkpointing (S5)",
        "the checkpoint is loaded past ModelOpt's hook, without a quantizer",
        _read_back(hook=False),
    ),
    (
        "checkpoint loaded with eager attention",
        "from_pretrained(attn_implementation='eager') (S5)",
        "all quantizers come back, and the attention goes round its own",
        _read_back(attn_implementation="eager"),
    ),
    (
        "another attention class at restore",
        "two attention classes (S4)",
        "ModelOpt's own attention class is registered when diffusers' was saved",
        _read_back(attention="modelopt"),
    ),
    (
        "checkpoint weight changed by one bit",
        "class: checkpoint not bit-equal",
        "the last bit of one weight is flipped, less than quantization rounds away",
        _damaged(_tensor(WEIGHT, _one_bit)),
    ),
    (
        "checkpoint range changed",
        "class: checkpoint not bit-equal",
        "one input's range is twice as wide after loading",
        _damaged(_tensor(AMAX, lambda amax: amax * 2)),
    ),
    (
        "checkpoint range lost",
        "buffers dropped on saving",
        "one input's range is not in the file",
        _damaged(_tensor(AMAX, lambda amax: None)),
    ),
    (
        "ModelOpt's state lost",
        "modelopt_state.pth left out of an upload",
        "the weights come without modelopt_state.pth",
        _damaged(lambda folder: (folder / "modelopt_state.pth").unlink()),
    ),
):
    add(_name, Where.CHECKPOINT, _origin, _what, _plant)


# -- baselines -------------------------------------------------------------------------------------


def _record(site: FaultSite, recipe: str | None = None) -> Path:
    """The record of the clean run."""
    (path,) = (site.baselines / "embedded" / (recipe or site.recipe)).glob("record@*.json")
    return path


def _outcomes(site: FaultSite) -> Path:
    (path,) = _record(site).parent.glob("outcomes-*.safetensors")
    return path


def _sealed(site: FaultSite, change: Callable[[Any], Any]) -> None:
    """Put a changed record into the store as the store itself writes it: intact, and not what was
    measured.
    """
    from harness.baselines import Store
    from harness.evaluation.environment import DeviceKey

    store = Store(site.baselines)
    record = change(store.find("embedded", site.recipe, DeviceKey.of(torch.device("cpu"))))
    shutil.rmtree(_record(site).parent)
    store.update(record, reason="planted")


@fault("baseline edited", Where.BASELINE, "references lowered by hand to make CI green")
def _edited(site: FaultSite) -> Iterator[None]:
    """A number in the record was changed in an editor."""
    path = _record(site)
    content = json.loads(path.read_text())

    def lower(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: v - 1 if key == "correct" and isinstance(v, int) else lower(v)
                for key, v in value.items()
            }
        return [lower(v) for v in value] if isinstance(value, list) else value

    changed = lower(content)
    if changed == content:
        text = path.read_text()
        changed = json.loads(text.replace('"PASS"', '"INCONCLUSIVE"', 1))
    path.write_text(json.dumps(changed))
    yield


@fault("outcomes truncated", Where.BASELINE, "a write that was cut off, a full disk")
def _truncated(site: FaultSite) -> Iterator[None]:
    """The outcomes file ends in the middle."""
    path = _outcomes(site)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    yield


@fault("outcomes lost", Where.BASELINE, "a file that was not added to the commit")
def _lost(site: FaultSite) -> Iterator[None]:
    """The record is there, its outcomes file is not."""
    _outcomes(site).unlink()
    yield


@fault("outcomes file is a pointer", Where.BASELINE, "Git LFS that was not fetched")
def _pointer(site: FaultSite) -> Iterator[None]:
    """The outcomes file holds three lines of text instead of its content."""
    _outcomes(site).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    yield


@fault("baseline of another recipe", Where.BASELINE, "a record copied from folder to folder")
def _copied(site: FaultSite) -> Iterator[None]:
    """The recipe's folder holds the record of INT8."""
    here, other = _record(site).parent, _record(site, "int8").parent
    shutil.rmtree(here)
    shutil.copytree(other, here)
    yield


@fault(
    "baseline of another release",
    Where.BASELINE,
    "a baseline that silently belongs to another version",
)
def _release(site: FaultSite) -> Iterator[None]:
    """The record was measured with another ModelOpt."""

    def older(record: Any) -> Any:
        versions = dict(record.provenance.versions) | {"nvidia-modelopt": "0.44.0"}
        return dataclasses.replace(
            record, provenance=dataclasses.replace(record.provenance, versions=versions)
        )

    _sealed(site, older)
    yield


@fault("baseline of other outcomes", Where.BASELINE, "references lowered by hand to make CI green")
def _lowered(site: FaultSite) -> Iterator[None]:
    """An intact record says that the quantized model lost 1 % more samples than it did."""

    def lower(record: Any) -> Any:
        return dataclasses.replace(record, tasks=tuple(_with_losses(task) for task in record.tasks))

    _sealed(site, lower)
    yield


def _with_losses(task: Any) -> Any:
    accepted = task.quantized
    correct = np.array(accepted.correct)
    correct[np.flatnonzero(correct)[:: max(1, correct.sum() // max(1, len(correct) // 100))]] = (
        False
    )
    return dataclasses.replace(
        task, quantized=dataclasses.replace(accepted, correct=correct, bits="0" * 64)
    )


@fault("baseline removed", Where.BASELINE, "a renamed recipe")
def _removed(site: FaultSite) -> Iterator[None]:
    """There is no record."""
    shutil.rmtree(_record(site).parent)
    yield
