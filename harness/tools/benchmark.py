"""The gate's own cost, and the speed of what is deployed: ``python -m harness.tools.benchmark``
(``tox -e benchmark``).

    # all of it, 25 minutes on two cores; stored in docs/speed.json
    python -m harness.tools.benchmark
    python -m harness.tools.benchmark gate        # only whole runs of pytest, and the plain script
    python -m harness.tools.benchmark deployed    # only the towers in ONNX Runtime and torch
    python -m harness.tools.benchmark lint        # only the lint of one recipe and of a tree
    python -m harness.tools.benchmark gpu         # only FP16, fake FP8 and real FP8 on the GPU
    python -m harness.tools.benchmark page        # docs/speed.md from what is stored

A run of pytest is a process of its own: wall time, processor time and peak memory as the operating
system accounts for them.  Absolute times belong to one machine; what to compare are ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from harness import files
from harness.tools import pages

ROOT = Path(__file__).parents[2]
STORED, PAGE = ROOT / "docs" / "speed.json", ROOT / "docs" / "speed.md"
TEN = (
    "fp8",
    "fp8-linear-only",
    "fp8-patch-embedding-fp16",
    "fp8-per-channel",
    "int8",
    "int8-smoothquant",
    "int4-awq",
    "w4a8-awq",
    "fp8-mse",
    "int4-block",
)
#: One recipe, and another of the same work.
ONE, OTHER = "fp8", "fp8-patch-embedding-fp16"
#: Rows of a batch of each tower, by architecture.
ROWS = {"embedded": 32, "ViT-B-32": 8}
PLAIN, SINGLE = "plain script, one recipe", "plain script in FP32, one recipe"


def _pytest(*arguments: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--no-blame",
        *arguments,
    ]


def _recipes(*names: str) -> list[str]:
    return [part for name in names for part in ("--recipe", name)]


#: What is run, by name, in turn.
RUNS: dict[str, list[str]] = {
    "whole gate, one recipe": _pytest(*_recipes(ONE)),
    "whole gate, two recipes": _pytest(*_recipes(ONE, OTHER)),
    "whole gate, all default recipes": _pytest(),
    "structure of every architecture, one recipe": _pytest(*_recipes(ONE), "-k", "structure"),
    "accuracy, one recipe": _pytest("-m", "accuracy", *_recipes(ONE)),
    "accuracy, two recipes": _pytest("-m", "accuracy", *_recipes(ONE, OTHER)),
    "accuracy, ten recipes": _pytest("-m", "accuracy", *_recipes(*TEN)),
    PLAIN: [sys.executable, "-m", "harness.tools.plain", ONE],
    SINGLE: [sys.executable, "-m", "harness.tools.plain", "--fp32", ONE],
}


@dataclass(frozen=True)
class Cost:
    """Of one run: ``wall`` and ``cpu`` in seconds, ``memory`` in MiB (the largest process), and the
    exit code.
    """

    name: str
    wall: float
    cpu: float
    memory: float
    code: int


def cost(name: str, command: Sequence[str]) -> Cost:
    """Run *command* once, all its output thrown away."""
    began = time.perf_counter()
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - began
    return Cost(
        name, wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, process.returncode
    )


def least() -> dict[str, float]:
    """Seconds of what one more recipe cannot do without: its calibration, and one quantized forward
    over the tasks.
    """
    from harness.data import tasks
    from harness.gate.options import Options
    from harness.gate.session import Gate
    from harness.quantization import quantize

    gate = Gate(Options(recipes=(OTHER,)))
    (case,) = gate.cases()
    reference, pairs, among = case.reference, case.calibration, case.tasks
    batches = list(pairs.batches(gate.device, reference.dtype))
    for task in among:
        tasks.evaluate(reference.model, task, batch_size=gate.batch_size)  # decodes the pictures
    began = time.perf_counter()
    model = quantize.quantize(reference.model, case.recipe, quantize.forward_loop_over(batches))
    calibrated = time.perf_counter()
    folded = quantize.fold(model)
    for task in among:
        tasks.image_embeddings(folded, task, gate.batch_size)
        tasks.text_embeddings(folded, task, gate.batch_size)
    return {"calibration": calibrated - began, "forward": time.perf_counter() - calibrated}


def gate_costs() -> dict[str, Any]:
    """Every run once, in turn, and what one more recipe takes at least."""
    costs = {}
    print(f"{'run':<46} {'wall s':>8} {'cpu s':>8} {'MiB':>7}")
    for name, command in RUNS.items():
        run = costs[name] = cost(name, command)
        failed = "" if run.code == 0 else f"  (exit code {run.code})"
        print(f"{name:<46} {run.wall:>8.1f} {run.cpu:>8.1f} {run.memory:>7.0f}{failed}", flush=True)
    return {"costs": [asdict(run) for run in costs.values()], "least": least()}


def lint_costs() -> dict[str, Any]:
    """The lint of one recipe, and of the installed ModelOpt's whole tree, each in a process of its
    own.
    """
    from harness.lint.run import yaml_files
    from harness.recipes import finding

    root = finding.installed_root()
    lint = [sys.executable, "-m", "harness.lint.command", "lint"]
    paths = {"one recipe": finding.HERE / f"{ONE}.yaml", "ModelOpt's whole tree": root}
    costs = [cost(name, [*lint, str(path)]) for name, path in paths.items()]
    for run in costs:
        print(f"lint, {run.name:<22} {run.wall:>6.2f} s {run.cpu:>6.2f} s {run.memory:>6.0f} MiB")
    return {"costs": [asdict(run) for run in costs], "files": sum(1 for _ in yaml_files(root))}


def deployed_rows() -> dict[str, Any]:
    """Both towers of each architecture in every runtime and precision: INT8 against FP32, FP16 and
    BF16.
    """
    import torch

    from harness.export.graph import TOWERS
    from harness.models import architectures, families, references
    from harness.quantization import quantize
    from harness.recipes import loading
    from harness.tools import deployed

    rows_by_tower: dict[str, Any] = {}
    for name, rows in ROWS.items():
        if name == "embedded":
            model = references.load(name, torch.device("cpu"), torch.float32).model
        else:
            model = architectures.random(name)
        noise = quantize.forward_loop_over([families.sample_inputs(model, 8)] * 2)
        int8 = {"INT8": quantize.quantize(model, loading.load("int8"), noise)}
        with tempfile.TemporaryDirectory() as folder:
            sides = deployed.write(model, int8, Path(folder))
            rows_by_tower[name] = []
            for tower, input_name in TOWERS.items():
                x = families.sample_inputs(model, rows)[input_name].numpy()
                # Seconds a round where FP16 is emulated: of the large architecture only the first
                # look.
                effort = (
                    deployed.EFFORT
                    if name == "embedded"
                    else replace(deployed.EFFORT, most=deployed.EFFORT.first)
                )
                for row in deployed.measure(
                    tower, sides[tower], x, Path(folder), torch.get_num_threads(), effort
                ):
                    rows_by_tower[name].append(asdict(row))
                    print(
                        f"{name:<10} {tower:<7} {row.side:<26} {row.per_second:>9.1f}/s  "
                        f"x{row.ratio}",
                        flush=True,
                    )
    return {"threads": torch.get_num_threads(), "rows": rows_by_tower, "bf16": deployed.no_bf16()}


def gpu_rows() -> dict[str, Any]:
    """FP16, fake FP8 and real FP8 of ViT-L/14's architecture by batch size; or why there is nothing
    to measure.
    """
    import torch

    from harness.models import architectures
    from harness.statistics.speed import clock_of
    from harness.tools import gpu

    reason = gpu.missing()
    if reason:
        print(f"gpu: not measured: {reason}")
        return {"missing": reason}
    device = torch.device("cuda")
    sides = gpu.Models.of(architectures.random("ViT-L-14", torch.float16).to(device))
    rows = []
    for row in gpu.sweep(sides, clock_of(device), cache=gpu.cache_bytes(device)):
        rows.append(asdict(row))
        print(
            f"{row.tower:<7} {row.batch:>4} {row.side:<9} {row.per_second:>9.1f}/s  x{row.ratio}",
            flush=True,
        )
    return {"conditions": gpu.conditions(device), "rows": rows, "in FP8": gpu.in_fp8(sides.real)}


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "gate": gate_costs,
    "lint": lint_costs,
    "deployed": deployed_rows,
    "gpu": gpu_rows,
}


# -- the page --------------------------------------------------------------------------------------


def page(stored: dict[str, Any]) -> str:
    """``docs/speed.md`` from what was stored."""
    return (
        "\n".join([*_HEAD, *_gate(stored), *_lint(stored), *_deployed(stored), *_gpu(stored)])
        + "\n"
        + pages.footer(PAGE.name)
    )


_HEAD = [
    "# Speed",
    "",
    "Written by `python -m harness.tools.benchmark page` from [speed.json](speed.json), which "
    "`tox -e benchmark` measures; edit neither.",
]


def _gate(stored: dict[str, Any]) -> Iterator[str]:
    part = stored.get("gate")
    if part is None:
        return
    costs = {run["name"]: run for run in part["costs"]}
    yield from ("", "## The gate's own", "", f"On {part['device']}.", "")
    yield from ("| run | wall, s | processor, s | peak memory, MiB |", "|---|---|---|---|")
    for run in costs.values():
        yield f"| {run['name']} | {run['wall']:.1f} | {run['cpu']:.1f} | {run['memory']:.0f} |"
    wall = {name: run["wall"] for name, run in costs.items()}
    plain, single, ten = wall[PLAIN], wall[SINGLE], wall["accuracy, ten recipes"]
    more, least_ = (
        wall["accuracy, two recipes"] - wall["accuracy, one recipe"],
        sum(part["least"].values()),
    )
    yield from (
        "",
        "The plain script (`harness/tools/plain.py`) is bare ModelOpt with CLIP_benchmark's "
        "evaluation of the "
        "checkpoint and "
        "of the quantized model. It runs once for each recipe and shares nothing. In FP16 it "
        "computes what the gate "
        "does; on a CPU without FP16 arithmetic torch is slow there, which the gate goes around "
        "(`harness/models/halves.py`). "
        "FP32 is another model, at this CPU's best.",
        "",
        f"- Ten recipes, accuracy: {ten:.0f} s, against ten times {plain:.0f} s: "
        f"**{10 * plain / ten:.1f} times** as "
        f"fast, with verdicts, measures beyond accuracy and baselines on top. In FP32 ten times "
        f"{single:.0f} s: "
        f"{10 * single / ten:.1f} times.",
        f"- One more recipe: {more:.1f} s, against {part['least']['calibration']:.1f} s of "
        f"calibration and "
        f"{part['least']['forward']:.1f} s of one quantized forward over the tasks: "
        f"**{more / least_:.2f} times** "
        "(below 1, as pictures and prompts that two tasks share are embedded once).",
        f"- The whole gate of one more recipe, checkpoint, export and numerics on top: "
        f"{wall['whole gate, two recipes'] - wall['whole gate, one recipe']:.1f} s.",
    )


def _lint(stored: dict[str, Any]) -> Iterator[str]:
    part = stored.get("lint")
    if part is None:
        return
    yield from ("", "## The lint", "", f"On {part['device']}; the tree has {part['files']} files.")
    yield from ("", "| of | wall, s | processor, s | peak memory, MiB |", "|---|---|---|---|")
    for run in part["costs"]:
        yield f"| {run['name']} | {run['wall']:.2f} | {run['cpu']:.2f} | {run['memory']:.0f} |"


def _deployed(stored: dict[str, Any]) -> Iterator[str]:
    part = stored.get("deployed")
    if part is None:
        return
    yield from (
        "",
        "## On a CPU, as deployed",
        "",
        f"On {part['device']}, {part['threads']} threads. Sides run in turn; a ratio is the median "
        "over the rounds, with its 95 % interval, to ONNX Runtime's FP32. Resident memory is that "
        "of a process that "
        "holds nothing else. ViT-B/32 has random weights.",
    )
    for name, rows in part["rows"].items():
        yield from (
            "",
            f"### {name}, batches of {ROWS[name]}",
            "",
            "| tower | side | per second | times FP32 | resident, MiB |",
        )
        yield "|---|---|---|---|---|"
        for row in rows:
            ratio = row["ratio"]
            span = "" if ratio["low"] is None else f" [{ratio['low']:.2f}, {ratio['high']:.2f}]"
            yield (
                f"| {row['tower']} | {row['side']} | {row['per_second']:,.1f} | "
                f"{ratio['value']:.2f}{span} "
                f"| {row['resident'] / 2**20:,.0f} |"
            )
    if part["bf16"]:
        yield from ("", f"ONNX Runtime has no BF16 side: {part['bf16']}.")


def _gpu(stored: dict[str, Any]) -> Iterator[str]:
    part = stored.get("gpu")
    if part is None:
        return
    yield from ("", "## On a GPU", "")
    if "missing" in part:
        yield (
            f"Not measured: {part['missing']}. `python -m harness.tools.benchmark gpu` measures it "
            f"where there is one."
        )
        return
    yield (
        f"ViT-L/14's architecture. "
        f"{', '.join(f'{name} {value}' for name, value in part['conditions'].items())}."
    )
    yield f"Linears that ran in FP8: {part['in FP8'][0]} of {part['in FP8'][1]}."
    yield from ("", "| tower | batch | side | per second | times FP16 |", "|---|---|---|---|---|")
    for row in part["rows"]:
        ratio = row["ratio"]["value"]
        yield (
            f"| {row['tower']} | {row['batch']} | {row['side']} | {row['per_second']:,.1f} | "
            f"{ratio:.2f} |"
        )


def _stored(path: Path) -> dict[str, Any]:
    """What was measured before, or nothing."""
    if not files.exists(path):
        return {}
    return files.read_json(path, dict[str, Any], limit=files.MAX_MEASURED)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; exit code 1 if a run of the gate did not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=("all", *PARTS, "page"), default="all")
    parser.add_argument(
        "--stored",
        type=Path,
        default=STORED,
        help="what was measured (default: docs/speed.json)",
    )
    parser.add_argument("--out", type=Path, default=PAGE, help="the page (default: docs/speed.md)")
    options = parser.parse_args(arguments)
    stored: dict[str, Any] = _stored(options.stored)
    if options.what == "page" and not stored:
        parser.exit(
            4,
            f"{options.stored}: holds no measurement; run `python -m harness.tools.benchmark` "
            f"first\n",
        )
    if options.what == "page":
        options.out.write_text(page(stored))
        print(f"wrote {options.out}")
        return 0
    for name, measure in PARTS.items():
        if options.what in ("all", name):
            # The device last: what this process holds when it forks counts as its child's memory.
            measured = measure()
            stored[name] = measured | {"device": _device()}
            options.stored.parent.mkdir(parents=True, exist_ok=True)
            options.stored.write_text(json.dumps(stored, indent=1) + "\n")
    print(f"wrote {options.stored}")
    return int(any(run["code"] for run in stored.get("gate", {}).get("costs", ())))


def _device() -> str:
    from harness.evaluation import environment

    recorded = environment.facts()
    return f"{recorded.get('cpu', 'an unknown CPU')} ({os.cpu_count()} cores)"


if __name__ == "__main__":
    sys.exit(main())
