"""Records for tests of the store, made without a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.baselines import Record, Store, TaskRecord
from harness.baselines.provenance import Provenance
from harness.evaluation.environment import DeviceKey
from harness.statistics.speed import Ratio

XEON = DeviceKey("xeon-8488c-0a1b2c3d", "x86_64-avx512")


OTHER_XEON = DeviceKey("epyc-9654-99887766", "x86_64-avx512")


LAPTOP = DeviceKey("core-i5-aabbccdd", "x86_64-avx2")


GPU = DeviceKey("nvidia-h200", "sm90")


@dataclass(frozen=True)
class Made:
    """Outcomes as ``harness.data.tasks`` makes them, as far as the store looks."""

    task: str
    metric: str
    sample_ids: tuple[str, ...]
    correct: NDArray[np.bool_]
    answers: NDArray[np.int32]
    margins: NDArray[np.float32]
    clusters: NDArray[np.int32]


def outcomes(
    seed: int = 0, n: int = 1000, task: str = "cifar100", metric: str = "acc1", classes: int = 100
) -> Made:
    """*n* samples of which about 70 % are right."""
    rng = np.random.default_rng(seed)
    targets = np.arange(n, dtype=np.int32) % classes
    correct = rng.random(n) < 0.7
    answers = np.where(correct, targets, (targets + 1) % classes).astype(np.int32)
    margins = (rng.exponential(2.0, n) * np.where(correct, 1, -1)).astype(np.float32)
    return Made(
        task,
        metric,
        tuple(f"s{i}" for i in range(n)),
        correct,
        answers,
        margins,
        np.arange(n, dtype=np.int32),
    )


def with_changes(sound: Made, lose: int = 0, win: int = 0, nudge: float = 0.0) -> Made:
    """*sound* with *lose* right samples wrong, *win* wrong ones right, and all margins moved by
    *nudge*.
    """
    correct, answers = sound.correct.copy(), sound.answers.copy()
    for samples, value in (
        (np.flatnonzero(sound.correct)[:lose], False),
        (np.flatnonzero(~sound.correct)[:win], True),
    ):
        correct[samples] = value
        answers[samples] += -1 if value else 1
    return replace(
        sound, correct=correct, answers=answers, margins=sound.margins + np.float32(nudge)
    )


def task_record(
    reference: Made | None = None, quantized: Made | None = None, **changed: Any
) -> TaskRecord:
    """A task's record; by default quantization loses 30 samples and wins 20 of 1000."""
    reference = reference or outcomes()
    given_: dict[str, Any] = {
        "data_hash": "d" * 64,
        "preprocessing": "e" * 64,
        "decision": "PASS",
        "interval": (-2.4, 0.4),
        "budget": 3.0,
        "beyond": {"kl_mean": 0.0123, "cosine_p1": 0.991},
    }
    return TaskRecord.of(
        reference, quantized or with_changes(reference, 30, 20), **{**given_, **changed}
    )


def quantizer(layer: int = 0, **changed: Any) -> dict[str, Any]:
    """A row of the map, as ``Quantizer.as_dict`` gives it."""
    return {
        "name": f"vision_model.encoder.layers.{layer}.self_attn.q_bmm_quantizer",
        "kind": "q_bmm",
        "tower": "vision",
        "layer": layer,
        "module_kind": "attention",
        "module_class": "CLIPAttention",
        "format": "E4M3",
        "granularity": "per-tensor",
        "enabled": True,
        "dynamic": False,
        "calls": 1,
        "amax": {"count": 1, "low": 3.25, "high": 3.25, "digest": "9f2c9f2c9f2c9f2c"},
        **changed,
    }


MAP = tuple(quantizer(layer) for layer in range(12))


def record(
    *tasks: TaskRecord, quantizers: tuple[dict[str, Any], ...] = MAP, **changed: Any
) -> Record:
    """A fresh record of fp8 on the embedded model."""
    given_: dict[str, Any] = {
        "model": "embedded",
        "model_revision": "a" * 64,
        "recipe": "fp8",
        "recipe_hash": "b" * 64,
        "calibration_hash": "c" * 64,
        "calibration_size": 512,
        "attention": "diffusers",
        "device": XEON,
        "bits": "torch 2.13.0+cpu, batch 64, 2 threads",
        "versions": {"nvidia-modelopt": "0.47.0", "torch": "2.13.0", "transformers": "5.14.1"},
        "facts": {"pillow": "12.0.0", "numpy": "2.4.6"},
    }
    return Record(
        Provenance(**{**given_, **changed}), quantizers, tasks, speeds(vision=0.17, text=0.2)
    )


def speeds(**ratios: float) -> dict[str, Ratio]:
    """Speed ratios by tower, each known to 5 %."""
    return {tower: Ratio(value, 0.975 * value, 1.025 * value, 8) for tower, value in ratios.items()}


def stored(store: Store, fresh: Record | None = None, device: DeviceKey = XEON) -> Record:
    """*fresh* written and read again."""
    if fresh is not None:
        store.write(fresh, "test")
    record = store.find("embedded", "fp8", device)
    assert isinstance(record, Record)
    return record


def snapshot(root: Path) -> dict[str, bytes]:
    """Every file under *root* but the lock."""
    return {
        str(p.relative_to(root)): p.read_bytes()
        for p in root.rglob("*")
        if p.is_file() and p.name != ".lock"
    }


def other_order() -> Made:
    """The default samples from the last to the first."""
    usual = outcomes()
    arrays = {
        name: getattr(usual, name)[::-1].copy()
        for name in ("correct", "answers", "margins", "clusters")
    }
    return replace(usual, sample_ids=usual.sample_ids[::-1], **arrays)


def record_path(store: Store) -> Path:
    """A record in the store, written."""
    return store.write(record(task_record()), "test").path
