"""What this machine does in a second: the rates that ``harness.tools.plan`` plans with.

CPU rates are taken in processor time of one thread, so that they hold on a machine that does other
things as well.
"""

from __future__ import annotations

import hashlib
import io
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from harness.data import inputs, tasks
from harness.data.tasks import Task, TaskRun
from harness.evaluation import cluster, environment
from harness.gate.options import Options
from harness.gate.session import Gate
from harness.models import architectures, references
from harness.models.references import Reference
from harness.places import BASELINES
from harness.quantization import quantize
from harness.recipes import loading
from harness.statistics import budgets, distribution, verdicts

#: The model that is planned for, a recipe that stands for all, and the width of its embeddings.
MODEL, RECIPE, WIDTH = "ViT-L-14", "fp8", 768
#: Tokens that most prompts are cut to, and that calibration texts have.
PROMPT, CONTEXT = 16, 77
#: Rows of a forward on a GPU.
_ROWS = 512


@dataclass(frozen=True)
class Rates:
    """What one machine does in a second of one core's time.

    ``decode`` pictures, ``hash`` bytes, ``tokenize`` prompts, ``score`` and ``judge`` pairs of
    query and candidate. ``start`` (a process's imports), ``pack`` and ``unpack`` (one quantized
    ViT-L/14) are seconds.  ``embedded`` holds forwards of the embedded model on this CPU.  ``gpu``
    holds a measured GPU's samples a second (vision, text, quantized_vision, quantized_text,
    calibrate) and its name, or is None.
    """

    machine: str
    decode: float
    hash: float
    tokenize: float
    score: float
    judge: float
    start: float
    pack: float
    unpack: float
    embedded: dict[str, float]
    gpu: dict[str, Any] | None


def measure(seconds: float = 5.0) -> Rates:
    """The rates of this machine, each taken over at least so many *seconds*."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        reference = references.load("embedded", torch.device("cpu"))
        loaded = tasks.load_tasks(["emoji", "emoji_captions"], None, reference)
        pack, unpack = _sending()
        score, judge = _judging(loaded, seconds)
        return Rates(
            machine=str(environment.DeviceKey.of(torch.device("cpu"))),
            decode=_rate(_decoding(), seconds),
            hash=_rate(_hashing(), seconds),
            tokenize=_rate(_tokenizing(reference), seconds),
            score=score,
            judge=judge,
            start=_starting(),
            pack=pack,
            unpack=unpack,
            embedded=_forwards(seconds),
            gpu=_gpu(seconds) if torch.cuda.is_available() else None,
        )
    finally:
        torch.set_num_threads(threads)


def _rate(
    work: Callable[[], int], seconds: float, clock: Callable[[], float] = time.process_time
) -> float:
    """What *work*, which says how much it did, does in a second of *clock*; three digits, more are
    noise.
    """
    work()
    began, done = clock(), 0
    while (passed := clock() - began) < seconds:
        done += work()
    return float(f"{done / passed:.3g}")


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()
    result = work()
    return float(f"{time.process_time() - began:.3g}"), result


def photograph(width: int = 500, height: int = 375) -> bytes:
    """A JPEG as large as ImageNet's mean one (110 kB): noise whose amplitude falls with its
    frequency.
    """
    from PIL import Image

    rng = np.random.default_rng(0)
    y, x = np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij")
    falling = 1 / np.maximum(np.hypot(y, x), 1 / width)
    waves = np.fft.ifft2(np.fft.fft2(rng.normal(size=(3, height, width))) * falling).real
    shades = 128 + 50 * waves / waves.std() + rng.normal(scale=6, size=waves.shape)
    stream = io.BytesIO()
    Image.fromarray(shades.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)).save(
        stream, "jpeg", quality=90
    )
    return stream.getvalue()


def _decoding() -> Callable[[], int]:
    from PIL import Image
    from transformers import CLIPImageProcessor

    resize, content = inputs.Resize(CLIPImageProcessor()), photograph()

    def decode() -> int:
        for _ in range(16):
            with Image.open(io.BytesIO(content)) as picture:
                resize(picture)
        return 16

    return decode


def _hashing() -> Callable[[], int]:
    content = bytes(1 << 26)

    def digest() -> int:
        hashlib.sha256(content).digest()
        return len(content)

    return digest


def _tokenizing(reference: Reference) -> Callable[[], int]:
    texts = [f"a photo of thing number {i} next to a small dog." for i in range(2000)]

    def tokenize() -> int:
        return len(inputs.tokenize(reference.tokenizer, texts, CONTEXT))

    return tokenize


def _judging(loaded: tuple[Task, ...], seconds: float) -> tuple[float, float]:
    """Pairs scored and pairs judged in a second, from embeddings as wide as the large model's."""
    rng = np.random.default_rng(0)
    budget = budgets.load(BASELINES / "budgets.yaml")

    def units(count: int) -> Any:
        return inputs.unit(torch.from_numpy(rng.normal(size=(count, WIDTH)))).numpy()

    pairs = sum(
        task.n(metric) * _candidates(task, metric) for task in loaded for metric in task.metrics
    )
    images = {
        task.name: (units(len(task.sample_ids)), units(tasks.texts_of(task))) for task in loaded
    }

    def score() -> dict[str, TaskRun]:
        return {
            t.name: TaskRun(t.name, tasks.score(t, *images[t.name]), *images[t.name])
            for t in loaded
        }

    before, after = score(), score()

    def judge() -> int:
        for name, run in before.items():
            limits = {
                metric: budget.budget(name, metric, recipe=RECIPE, model="embedded")
                for metric in run.outcomes
            }
            for metric, outcomes in run.outcomes.items():
                verdicts.compare(outcomes, after[name].outcomes[metric], limits[metric])
            distribution.distribution(run, after[name], limits)
        return pairs

    def scored() -> int:
        score()
        return pairs

    return _rate(scored, seconds), _rate(judge, seconds)


def _candidates(task: Task, metric: str) -> int:
    return len(task.sample_ids) if metric == tasks.IMAGE_RECALL else tasks.texts_of(task)


def _starting() -> float:
    """Seconds of a process that imports what an evaluation needs."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-c", "import harness.gate.session, harness.checks.checkpoint_preload"],
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1)


def large(device: torch.device) -> Any:
    """The planned-for architecture in FP16 with random weights."""
    return architectures.random(MODEL, torch.float16).to(device)


def _batch(device: torch.device, rows: int, tokens: int) -> dict[str, torch.Tensor]:
    return {
        "pixel_values": torch.zeros(rows, 3, 224, 224, dtype=torch.float16, device=device),
        "input_ids": torch.ones(rows, tokens, dtype=torch.long, device=device),
    }


def _sending() -> tuple[float, float]:
    """Seconds to pack the quantized model, and to restore it."""
    from harness.evaluation.subjects import Quantization

    cpu = torch.device("cpu")
    model = large(cpu)
    loop = quantize.forward_loop_over([_batch(cpu, 2, CONTEXT)])
    quantized = quantize.quantize(model, loading.load(RECIPE), loop)
    quantization: Any = Quantization(loading.load(RECIPE), "diffusers", None, quantized)  # type: ignore[arg-type]
    reference = Reference(MODEL, MODEL, model, None, None, cpu, "")
    pack, packed = _timed(lambda: cluster.pack(quantization))
    unpack, _ = _timed(lambda: cluster.unpack(packed, reference, "diffusers"))
    return pack, unpack


def _forwards(seconds: float) -> dict[str, float]:
    """Samples a second and core of the embedded model, as it is and under fake quantization."""
    gate = Gate(Options(recipes=(RECIPE,), tasks=("emoji100",), calibration_size=64))
    (case,) = gate.cases()
    (task,) = case.tasks
    part, rates = task.subset(0, 256), {}
    for name, model in (("FP16", case.shared.model), (RECIPE, case.quantized.folded)):

        def pictures(model: nn.Module = model) -> int:
            return len(tasks.image_embeddings(model, part, 64))

        def words(model: nn.Module = model) -> int:
            tasks.text_embeddings(model, part, 64)
            return len(part.prompts)

        rates[f"{name} pictures"] = _rate(pictures, seconds)
        rates[f"{name} prompts"] = _rate(words, seconds)
    return rates


def _gpu(seconds: float) -> dict[str, Any]:
    """Samples a second of this machine's GPU on the planned-for architecture."""
    device = torch.device("cuda")
    model, recipe = large(device), loading.load(RECIPE)

    def clock() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    def rate(forward: Callable[[], object]) -> float:
        def work() -> int:
            with torch.no_grad():
                forward()
            return _ROWS

        return _rate(work, seconds, clock)

    short, whole = _batch(device, _ROWS, PROMPT), _batch(device, _ROWS, CONTEXT)
    quantized = quantize.fold(quantize.quantize(model, recipe, quantize.forward_loop_over([whole])))
    rates = {"name": torch.cuda.get_device_name(device), "calibrate": rate(lambda: model(**whole))}
    for prefix, timed in (("", model), ("quantized_", quantized)):
        vision: Any = timed.get_image_features
        text: Any = timed.get_text_features
        rates[f"{prefix}vision"] = rate(partial(vision, pixel_values=short["pixel_values"]))
        rates[f"{prefix}text"] = rate(partial(text, input_ids=short["input_ids"]))
    return rates
