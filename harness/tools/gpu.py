"""What quantization costs and gains on a GPU: FP16, fake quantization, and FP8 in earnest, by batch
size.

Fake quantization is what the gate judges by; it computes more than FP16.  What it stands for is
ModelOpt's real-quant Linear after ``mtq.compress``, whose product is ``torch._scaled_mm`` where its
backend takes the layer.  Elsewhere it unpacks the weight and goes on, which no time would show, so
the Linears that really run in FP8 are counted.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.export.graph import TOWERS, TowerModule
from harness.models import families
from harness.quantization import memory, quantize
from harness.quantization.context import quiet
from harness.recipes import loading
from harness.statistics.speed import Clock, Effort, Ratio, in_turn

BATCHES = (1, 8, 32, 128, 512)
BASE, FAKE, REAL = "FP16", "fake FP8", "real FP8"
EFFORT = Effort(first=16, most=64, width=0.03, warm=5)
#: What nvidia-smi is asked for.
_ASKED = (
    "name",
    "driver_version",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "power.limit",
    "temperature.gpu",
)


@dataclass(frozen=True)
class GpuRow:
    """One side of a tower at one batch size: samples a second (median) and how many times faster
    than FP16.
    """

    tower: str
    batch: int
    side: str
    per_second: float
    ratio: Ratio


@dataclass(frozen=True)
class Models:
    """The sides as models on one device: the reference, fake quantization (its weights folded) and
    the packed one.
    """

    reference: nn.Module
    fake: nn.Module
    real: nn.Module

    @classmethod
    def of(cls, reference: nn.Module, batches: int = 4, rows: int = 8) -> Models:
        """FP8 in all Linears of *reference* (FP16), calibrated on noise: speed does not depend on
        the values.

        The patch embedding is not packed: ModelOpt 0.47 packs convolutions and cannot run them
        packed.
        """
        noise = [families.sample_inputs(reference, rows)] * batches
        quantized = quantize.quantize(
            reference, loading.load("fp8-linear-only"), quantize.forward_loop_over(noise)
        )
        return cls(
            reference, quantize.fold(quantized), memory.compressed(quantized, ["*patch_embedding*"])
        )


def missing() -> str | None:
    """Why nothing can be measured here, or None."""
    return None if torch.cuda.is_available() else "torch sees no CUDA device"


def in_fp8(model: nn.Module) -> tuple[int, int]:
    """Linears of a packed *model* whose products ran in FP8 so far, and all that were packed."""
    from modelopt.torch.quantization.nn import RealQuantLinear

    packed = [m for m in model.modules() if isinstance(m, RealQuantLinear)]
    return sum(getattr(m, "_real_quant_gemm_impl", None) is not None for m in packed), len(packed)


def cache_bytes(device: torch.device) -> int:
    """Bytes of the device's last cache, as the driver reports it; 0 where it does not."""
    return (
        int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0))
        if device.type == "cuda"
        else 0
    )


class Pool:
    """Inputs of one tower that together are larger than a cache: each run takes the next, so none
    is still in it.
    """

    def __init__(self, example: Tensor, batch: int, cache: int) -> None:
        """*example* (n, ...) gives shape, type and device; its rows are repeated."""
        size = batch * example[:1].nbytes
        count = max(2, -(-2 * cache // size))
        rows = torch.arange(count * batch, device=example.device) % len(example)
        self.batches = torch.split(example[rows], batch)
        self._next = 0

    def __call__(self, encode: Callable[[Tensor], object]) -> Callable[[], None]:
        """*encode* over the pool, a batch a call."""

        def run() -> None:
            batch = self.batches[self._next]
            self._next = (self._next + 1) % len(self.batches)
            with torch.inference_mode():
                encode(batch)

        return run


def sweep(
    models: Models,
    clock: Clock,
    batches: Sequence[int] = BATCHES,
    cache: int = 0,
    effort: Effort = EFFORT,
) -> Iterator[GpuRow]:
    """Every side of both towers at every batch size, in turn.

    Args:
        models: on one device.
        clock: of that device.
        batches: rows a forward.
        cache: bytes of the device's cache; the inputs of a batch size are twice as large together.
        effort: of the timing.
    """
    sides = {BASE: models.reference, FAKE: models.fake, REAL: models.real}
    inputs = families.sample_inputs(models.reference, 8)
    for tower, name in TOWERS.items():
        for batch in batches:
            pool = Pool(inputs[name], batch, cache)
            runs = {side: pool(TowerModule(model, tower)) for side, model in sides.items()}
            with quiet():
                rounds = in_turn(runs, BASE, clock, effort)
            for side in sides:
                yield GpuRow(
                    tower, batch, side, batch / rounds.median(side), rounds.ratio(side, BASE)
                )


def conditions(device: torch.device) -> dict[str, str]:
    """What times on *device* belong to: name, driver, clocks and limits as nvidia-smi reports them,
    CUDA, cache.
    """
    facts = {"torch": torch.__version__, "cuda": str(torch.version.cuda)}
    if device.type == "cuda":
        facts |= {
            "gpu": torch.cuda.get_device_name(device),
            "cache": f"{cache_bytes(device) >> 20} MiB",
        }
    program = shutil.which("nvidia-smi")
    if program is None:
        return facts
    command = [
        program,
        f"--query-gpu={','.join(_ASKED)}",
        "--format=csv,noheader",
        f"--id={device.index or 0}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return facts | asked(done.stdout)


def asked(answer: str) -> dict[str, str]:
    """nvidia-smi's answer, one line of CSV, by what was asked for; empty where there is no such
    line.
    """
    cells = [cell.strip() for cell in (answer.splitlines() or [""])[0].split(",")]
    return dict(zip(_ASKED, cells, strict=True)) if len(cells) == len(_ASKED) else {}
