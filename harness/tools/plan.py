"""What a large evaluation takes: ImageNet-1k, COCO and ten recipes for ViT-L/14 on 1, 8 and 64
GPUs.

    # measure this machine into docs/scale.json; with a GPU, its forwards too
    python -m harness.tools.plan measure
    python -m harness.tools.plan            # write docs/scale.md from docs/scale.json

Work is counted (floating-point operations on the meta device, slices as they are cut), CPU rates
are measured here, and a GPU that is not at hand is assumed: its peak and utilisation have a source,
and a measured rate takes their place.
"""

from __future__ import annotations

import argparse
import heapq
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness import files
from harness.evaluation import shards
from harness.models import architectures
from harness.places import DOCS
from harness.quantization import quantize
from harness.recipes import loading
from harness.tools import pages
from harness.tools.rates import CONTEXT, MODEL, PROMPT, RECIPE, Rates, measure

RATES, PAGE = DOCS / "scale.json", DOCS / "scale.md"
RECIPES, CALIBRATION = 10, 8192
#: Processes that ask, in the runs with several of them.
ASKING = 8
#: (GPUs, processes that ask)
RUNS = ((1, 1), (8, 1), (8, ASKING), (64, 1), (64, ASKING))
#: Cores that prepare the pictures of one GPU: ``harness.data.inputs`` takes so many.
CORES = 8


@dataclass(frozen=True)
class TaskSize:
    """A task as far as its cost goes; ``pairs`` are scored: queries times candidates, over its
    metrics.
    """

    name: str
    pictures: int
    texts: int
    prompts: int
    pairs: int
    bytes: int


TASKS = (
    # 80 templates a class in CLIP_benchmark; ILSVRC2012_img_val.tar has 6.7 GB.
    TaskSize("ImageNet-1k", 50_000, 1_000, 80_000, 50_000 * 1_000, 6_745_000_000),
    # The Karpathy test split: five captions a picture; both directions are scored; val2014 has 160
    # kB a picture.
    TaskSize("COCO captions", 5_000, 25_000, 25_000, 2 * 5_000 * 25_000, 800_000_000),
)


@dataclass(frozen=True)
class Assumption:
    """A number that was not measured here, and where it comes from."""

    name: str
    value: float
    unit: str
    source: str


PEAK = Assumption(
    "FP16 tensor peak",
    989.4e12,
    "FLOP/s",
    "NVIDIA H100 SXM data sheet: half of 1,979 T with sparsity",
)
TRAINED = Assumption(
    "CLIP ViT-g/14 trained on 8 H100",
    935,
    "samples/s",
    "NVIDIA NeMo user guide, CLIP performance: one node of 8",
)
BANDWIDTH = Assumption("memory bandwidth", 3.35e12, "bytes/s", "NVIDIA H100 SXM data sheet")
NETWORK = Assumption(
    "network to a node", 1.25e9, "bytes/s", "10 Gbit/s Ethernet, taken as the least of a GPU node"
)


# -- what is counted -------------------------------------------------------------------------------


@cache
def operations(architecture: str, tokens: int = CONTEXT) -> dict[str, float]:
    """FLOP of one sample's forward by tower, a multiplication and an addition counted as two."""
    from torch.utils.flop_counter import FlopCounterMode

    flops = {}
    for tower, forward in _forwards(architectures.build(architecture), tokens).items():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            forward()
        flops[tower] = counter.get_total_flops() / 2
    return flops


@cache
def quantized_elements(architecture: str, recipe: str, tokens: int = CONTEXT) -> dict[str, float]:
    """Numbers that enabled quantizers take in one sample's forward, by tower; weights are folded
    and cost nothing.
    """
    from harness.quantization.maps import tensor_quantizers

    model = quantize.structure(architectures.build(architecture), loading.load(recipe))
    count = 0

    def counted(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal count
        count += inputs[0].numel()

    for name, quantizer in tensor_quantizers(model).items():
        if quantizer.is_enabled and not name.endswith("weight_quantizer"):
            quantizer.register_forward_pre_hook(counted)
    elements = {}
    for tower, forward in _forwards(model, tokens).items():
        count = 0
        with torch.no_grad():
            forward()
        elements[tower] = count / 2
    return elements


def _forwards(model: Any, tokens: int) -> dict[str, Callable[[], object]]:
    """A forward of two samples on the meta device, by tower."""
    size = model.config.vision_config.image_size
    return {
        "vision": lambda: model.get_image_features(
            pixel_values=torch.zeros(2, 3, size, size, device="meta")
        ),
        "text": lambda: model.get_text_features(
            input_ids=torch.ones(2, tokens, dtype=torch.long, device="meta")
        ),
    }


def utilisation() -> float:
    """Share of the peak that a published training of CLIP reached: a backward pass costs two
    forwards.
    """
    pair = sum(operations("ViT-g-14").values())
    return 3 * pair * TRAINED.value / 8 / PEAK.value


@dataclass(frozen=True)
class Gpu:
    """Samples a second of one GPU, and where they come from."""

    name: str
    vision: float
    text: float
    quantized_vision: float
    quantized_text: float
    calibrate: float
    measured: bool

    @classmethod
    def of(cls, rates: Rates) -> Gpu:
        """The measured one, or the assumed H100."""
        if rates.gpu is not None:
            return cls(measured=True, **rates.gpu)
        plain = {"vision": operations(MODEL)["vision"], "text": operations(MODEL, PROMPT)["text"]}
        moved = {
            "vision": quantized_elements(MODEL, RECIPE)["vision"],
            "text": quantized_elements(MODEL, RECIPE, PROMPT)["text"],
        }
        seconds = {tower: count / (PEAK.value * utilisation()) for tower, count in plain.items()}
        # One kernel a quantizer: two bytes read and two written an element.
        more = {tower: 4 * count / BANDWIDTH.value for tower, count in moved.items()}
        pair = sum(operations(MODEL).values()) / (PEAK.value * utilisation())
        return cls(
            "NVIDIA H100 (assumed)",
            **{tower: 1 / value for tower, value in seconds.items()},
            **{f"quantized_{tower}": 1 / (value + more[tower]) for tower, value in seconds.items()},
            calibrate=1 / pair,
            measured=False,
        )


# -- the plan --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """A run on so many GPUs: seconds by part, in the order in which they pass, and those a GPU
    computes in.

    ``asking`` processes gate the recipes side by side (pytest's ``-n``).
    """

    workers: int
    asking: int
    parts: dict[str, float]
    computing: float

    @property
    def seconds(self) -> float:
        """From the first import to the last verdict."""
        return sum(self.parts.values())

    @property
    def gpu_hours(self) -> float:
        """GPUs held, all the time."""
        return self.workers * self.seconds / 3600

    @property
    def busy(self) -> float:
        """Share of that time in which a GPU computes."""
        return self.computing / (self.workers * self.seconds)

    @property
    def bottleneck(self) -> str:
        """The part that takes longest."""
        return max(self.parts, key=lambda name: self.parts[name])


def makespan(times: Iterable[float], workers: int) -> float:
    """Seconds until the last of *times* is done, each given to the worker that is free first."""
    free = [0.0] * workers
    for seconds in times:
        heapq.heapreplace(free, free[0] + seconds)
    return max(free)


def slices(rates: Rates, gpu: Gpu, *, quantized: bool) -> tuple[list[float], float]:
    """Seconds of every slice of the tasks on one worker, and how many of them its GPU computes.

    Decoding and computing overlap: the slower one counts.
    """
    vision, text = (
        (gpu.quantized_vision, gpu.quantized_text) if quantized else (gpu.vision, gpu.text)
    )
    times: list[float] = []
    computing = 0.0
    for task in TASKS:
        times += [
            max(count / (rates.decode * CORES), count / vision)
            for count in _cut(task.pictures, shards.PICTURES)
        ]
        each = task.prompts // task.texts
        times += [count * each / text for count in _cut(task.texts, shards.PROMPTS // each)]
        computing += task.pictures / vision + task.prompts / text
    return times, computing


def _cut(total: int, step: int) -> list[int]:
    return [min(step, total - start) for start in range(0, total, step)]


def plan(rates: Rates, workers: int, asking: int = 1) -> Plan:
    """The run of ``pytest -m accuracy --cluster ...`` with RECIPES recipes; on one GPU without a
    cluster.
    """
    turns = -(-RECIPES // asking)
    gpu = Gpu.of(rates)
    prepare = (
        rates.start
        + sum(t.bytes for t in TASKS) / rates.hash
        + sum(t.prompts for t in TASKS) / rates.tokenize
    )
    pairs = sum(task.pairs for task in TASKS)
    score = pairs / (rates.score * CORES)
    plain, computed_plain = slices(rates, gpu, quantized=False)
    coarse, computed_coarse = slices(rates, gpu, quantized=True)
    weights = 2 * sum(p.numel() for p in architectures.build(MODEL).parameters())
    sent = rates.pack + weights / NETWORK.value + rates.unpack + weights / rates.hash
    calibrated = CALIBRATION / gpu.calibrate
    parts = {
        "start: imports, hashes, tokens": prepare * (1 if workers == 1 else 2),
        "calibrate": CALIBRATION / (rates.decode * CORES) + turns * calibrated,
        "send the models": 0.0 if workers == 1 else RECIPES * sent,
        "embed pictures and words": makespan(plain, workers) + RECIPES * makespan(coarse, workers),
        "score and judge": (1 + turns) * score + turns * pairs / rates.judge,
    }
    return Plan(workers, asking, parts, computed_plain + RECIPES * (computed_coarse + calibrated))


# -- the page --------------------------------------------------------------------------------------

#: What to say of each part, where it is the bottleneck.
_ABOUT = {
    "start: imports, hashes, tokens": "More recipes a run share it; more GPUs do not shorten it.",
    "calibrate": "It runs in the process that asks, recipe after recipe; several processes do it "
    "side by side.",
    "send the models": "It is spent once a recipe, whatever the size of the tasks; more GPUs do "
    "not shorten it.",
    "embed pictures and words": "It is what is divided among the GPUs.",
    "score and judge": "It runs on the CPU of the process that asks; several processes do it side "
    "by side.",
}


def page(rates: Rates) -> str:
    """docs/scale.md."""
    gpu, plans = Gpu.of(rates), [plan(rates, workers, asking) for workers, asking in RUNS]
    command = "pytest -m accuracy --tasks imagenet1k,mscoco_captions"
    source = (
        "Its rates were measured."
        if gpu.measured
        else (
            "**Its rates are an assumption, not a measurement**: operations that were counted, "
            "over a peak and a "
            "utilisation that have a source (below). `python -m harness.tools.plan measure` on a "
            "machine with a GPU puts "
            "measured rates in their place."
        )
    )
    return "\n".join(
        [
            "# Scale",
            "",
            "Written by `python -m harness.tools.plan`; do not edit.",
            "",
            f"What it takes to gate {RECIPES} recipes on {MODEL} with "
            f"{' and '.join(task.name for task in TASKS)}, "
            f"calibrated on {CALIBRATION:,} pairs:",
            "",
            f"    {command} ...                                # one GPU",
            f"    {command} --cluster HOST:PORT ...            # many",
            f"    {command} --cluster HOST:PORT -n {ASKING} ...       # and {ASKING} processes "
            f"that ask",
            "",
            f"GPU: {gpu.name}. {source}",
            "",
            *_table(plans),
            "",
            "## The bottleneck",
            "",
            *(
                f"- {_called(p)}: {p.bottleneck.partition(':')[0]}, "
                f"{p.parts[p.bottleneck] / p.seconds:.0%} of the time. "
                f"{_ABOUT[p.bottleneck]}"
                for p in plans
            ),
            "",
            f"Soonest done: {_called(min(plans, key=lambda p: p.seconds))}. Fewest GPU hours: "
            f"{_called(min(plans, key=lambda p: p.gpu_hours))}.",
            "",
            *_pictures(rates, gpu),
            "",
            *_measured(rates),
            *([] if gpu.measured else _assumed(gpu)),
            *_adding(),
        ]
    ) + pages.footer("scale.md")


def _table(plans: Sequence[Plan]) -> list[str]:
    return [
        _row("", map(_called, plans)),
        "|---|" + "---:|" * len(plans),
        *(_row(name, (_duration(p.parts[name]) for p in plans)) for name in plans[0].parts),
        _row("**total**", (f"**{_duration(p.seconds)}**" for p in plans)),
        _row("GPU hours", (f"{p.gpu_hours:.1f}" for p in plans)),
        _row("share of them computing", (f"{p.busy:.0%}" for p in plans)),
    ]


def _pictures(rates: Rates, gpu: Gpu) -> list[str]:
    decoded = rates.decode * CORES
    slower = "decoding" if decoded < gpu.quantized_vision else "the GPU"
    return [
        f"Of pictures, {slower} is the slower half: {CORES} cores decode {decoded:,.0f} a second, "
        f"the GPU takes "
        f"{gpu.vision:,.0f} in FP16 and {gpu.quantized_vision:,.0f} under fake quantization. A "
        f"data set whose pictures "
        "fit into 2 GiB is decoded once a process, a larger one once a recipe."
    ]


def _measured(rates: Rates) -> list[str]:
    """The section on what was measured."""
    return [
        "## Measured",
        "",
        f"On {rates.machine}; in seconds of one core's time, so that what else the machine did "
        f"does not count.",
        "",
        "| | |",
        "|---|---:|",
        _row(
            "JPEG of 500 x 375 decoded, resized and cropped to 224",
            [f"{rates.decode:,.0f} a second"],
        ),
        _row("data hashed", [f"{rates.hash / 1e6:,.0f} MB a second"]),
        _row("prompts tokenized", [f"{rates.tokenize:,.0f} a second"]),
        _row("pairs of query and candidate scored", [f"{rates.score / 1e6:,.1f} million a second"]),
        _row(
            "pairs judged (verdict, flips, KL, overlap)",
            [f"{rates.judge / 1e6:,.1f} million a second"],
        ),
        _row("imports of a process", [f"{rates.start:.1f} s"]),
        _row(
            f"a quantized {MODEL} packed; restored", [f"{rates.pack:.1f} s; {rates.unpack:.1f} s"]
        ),
        *(
            _row(f"the embedded model on this CPU, {name}", [f"{n:,.0f} a second"])
            for name, n in rates.embedded.items()
        ),
        "",
    ]


def _adding() -> list[str]:
    """The section on how the parts come from the rates."""
    return [
        "## How it adds up",
        "",
        f"- A slice is {shards.PICTURES:,} pictures or {shards.PROMPTS:,} prompts. Each goes to "
        f"the worker that is "
        f"free first; of decoding (on {CORES} cores a GPU) and computing the slower one counts.",
        f"- Start: imports, {sum(t.bytes for t in TASKS) / 1e9:.1f} GB hashed, "
        f"{sum(t.prompts for t in TASKS):,} "
        "prompts tokenized; here, and then in every worker at once. A disk slower than the hash "
        "adds to it.",
        "- Calibrate: pairs / rate, in the process that asks; their pictures are decoded once.",
        "- Send: packed here, over the network, restored and hashed in every worker at once.",
        f"- Score and judge: pairs / rate, in the process that asks; scoring uses its {CORES} "
        f"cores, judging one.",
        f"- With -n {ASKING} each process calibrates, scores and judges for its share of the "
        f"recipes, and the "
        "reference's slices are computed once for all. Sending and embedding stay as they are, on "
        "the same workers.",
        "- GPU hours: GPUs times the total time, whether they compute or not.",
        "",
    ]


def _assumed(gpu: Gpu) -> list[str]:
    """The section on what was not measured."""
    counted, short = operations(MODEL), operations(MODEL, PROMPT)
    moved = quantized_elements(MODEL, RECIPE)["vision"]
    used = utilisation()
    return [
        "## Assumed",
        "",
        "| | | source |",
        "|---|---:|---|",
        *(
            f"| {a.name} | {_scaled(a.value)} {a.unit} | {a.source} |"
            for a in (PEAK, TRAINED, BANDWIDTH, NETWORK)
        ),
        "",
        f"Counted on the meta device: a picture costs {counted['vision'] / 1e9:.1f} GFLOP, a text "
        f"of {CONTEXT} tokens "
        f"{counted['text'] / 1e9:.1f}, a prompt cut to {PROMPT} tokens {short['text'] / 1e9:.1f}; "
        f"recipe {RECIPE} "
        f"quantizes {moved / 1e6:.0f} million numbers a picture.",
        "",
        f"    utilisation = 3 x FLOP of a ViT-g/14 pair x {TRAINED.value:,.0f} / 8 / peak = "
        f"{used:.1%}",
        f"    FP16        = peak x utilisation / FLOP                = {gpu.vision:,.0f} "
        f"pictures/s, "
        f"{gpu.text:,.0f} prompts/s",
        f"    quantized   = 1 / (1 / FP16 + 4 bytes x numbers / bandwidth) = "
        f"{gpu.quantized_vision:,.0f} pictures/s, "
        f"{gpu.quantized_text:,.0f} prompts/s",
        "",
        "Three, as a backward pass costs two forwards; four bytes, as ModelOpt's CUDA kernel reads "
        "and writes an FP16 "
        "number once. A training's utilisation is a cautious one for inference; fake quantization "
        "without that kernel "
        "is several times as dear.",
        "",
    ]


def _called(run: Plan) -> str:
    return f"{run.workers} GPU{'s' * (run.workers > 1)}" + f", -n {run.asking}" * (run.asking > 1)


def _row(name: str, values: Iterable[str]) -> str:
    return f"| {name} | {' | '.join(values)} |"


def _duration(seconds: float) -> str:
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.1f} h"


def _scaled(value: float) -> str:
    for factor, sign in ((1e12, "T"), (1e9, "G")):
        if value >= factor:
            return f"{value / factor:g} {sign}"
    return f"{value:,.0f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=("page", "measure"), default="page")
    parser.add_argument(
        "--rates", type=Path, default=RATES, help="measured rates (default: docs/scale.json)"
    )
    parser.add_argument("--out", type=Path, default=PAGE, help="the page (default: docs/scale.md)")
    options = parser.parse_args(arguments)
    if options.what == "measure":
        options.rates.write_text(json.dumps(asdict(measure()), indent=1) + "\n")
        print(f"wrote {options.rates}")
        return 0
    options.out.write_text(page(files.read_json(options.rates, Rates, limit=files.MAX_MEASURED)))
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
