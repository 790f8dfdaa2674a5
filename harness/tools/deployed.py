"""Both towers as they are deployed on a CPU, in every runtime and precision that it has: what
quantization gains there.

Fake quantization is slower than what it simulates.  An exported INT8 graph is what runs, so it is
what is timed here: in turn with the unquantized tower in ONNX Runtime and in torch
(:mod:`harness.statistics.speed`), all with as many threads, and each once more in a fresh process
that reports its resident memory (:mod:`harness.tools.resident`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from harness.export import files, graph
from harness.export.runtime import RUNTIME
from harness.models.references import quiet_transformers
from harness.quantization.context import quiet
from harness.statistics.speed import Effort, Ratio, WallClock, in_turn
from harness.tools import resident

#: What every other side is compared with.
BASE = f"{RUNTIME} FP32"
EFFORT = Effort(first=8, most=32, width=0.05, warm=2)

_CLASSES = {"vision": "CLIPVisionModelWithProjection", "text": "CLIPTextModelWithProjection"}
_PRECISIONS = {"FP32": "float32", "FP16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Side:
    """One way to run a tower: what :func:`harness.tools.resident.load` takes."""

    name: str
    what: str
    path: str


@dataclass(frozen=True)
class DeployedRow:
    """One side, measured: samples a second (median), how many times faster than BASE, and bytes of
    memory.

    ``resident`` and ``peak`` are those of a fresh process that holds nothing else, ``before`` its
    bytes before the tower was loaded: what Python and NumPy take.
    """

    tower: str
    side: str
    per_second: float
    ratio: Ratio
    resident: int
    peak: int
    before: int


def write(
    reference: nn.Module, quantized: Mapping[str, nn.Module], folder: Path
) -> dict[str, list[Side]]:
    """Write what the sides of each tower load into *folder*: graphs, and a checkpoint for torch.

    Args:
        reference: an unquantized ``CLIPModel`` in float32.
        quantized: models made from it, by the name of their precision (``INT8``); each has a form
            in ONNX.
        folder: an empty one.
    """
    with quiet_transformers(), quiet():
        reference.save_pretrained(folder / "checkpoint")  # type: ignore[operator]
    graphs = {"FP32": (reference, torch.float32), "FP16": (reference, torch.float16)}
    graphs |= {name: (model, torch.float32) for name, model in quantized.items()}
    sides: dict[str, list[Side]] = {}
    for tower in graph.TOWERS:
        sides[tower] = []
        for precision, (model, dtype) in graphs.items():
            path = folder / f"{tower}-{precision}.onnx"
            files.write(graph.tower(model, tower, dtype), path)
            sides[tower].append(Side(f"{RUNTIME} {precision}", "onnxruntime", str(path)))
        for precision, dtype_name in _PRECISIONS.items():
            what = f"{_CLASSES[tower]}:{dtype_name}"
            sides[tower].append(Side(f"{_torch()} {precision}", what, str(folder / "checkpoint")))
    return sides


def _torch() -> str:
    return f"torch {torch.__version__.partition('+')[0]}"


def measure(
    tower: str, sides: list[Side], x: Any, folder: Path, threads: int, effort: Effort = EFFORT
) -> Iterator[DeployedRow]:
    """Time the *sides* of a tower in turn over the rows of *x*, and weigh each in a process of its
    own.

    Args:
        tower: of the sides.
        sides: from :func:`write`; BASE is among them.
        x: pixels (rows, 3, h, w) in float32, or token ids (rows, sequence): a NumPy array.
        folder: for the input's file.
        threads: of every side.
        effort: of the timing.
    """
    before = torch.get_num_threads()
    try:
        runs = {side.name: resident.load(side.what, side.path, x, threads) for side in sides}
        rounds = in_turn(runs, BASE, WallClock(), effort)
    finally:
        torch.set_num_threads(before)
    del runs
    for side in sides:
        weighed = weigh(side, x, folder, threads)
        yield DeployedRow(
            tower,
            side.name,
            len(x) / rounds.median(side.name),
            rounds.ratio(side.name, BASE),
            **weighed,
        )


def weigh(side: Side, x: Any, folder: Path, threads: int) -> dict[str, int]:
    """Return the bytes of a fresh process that holds one side and runs it over *x*."""
    input_file = folder / "input.npy"
    np.save(input_file, x)
    command = [
        sys.executable,
        "-m",
        "harness.tools.resident",
        side.what,
        side.path,
        str(input_file),
        str(threads),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False
    )
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise RuntimeError(f"{side.name} does not run in a process of its own: {why}")
    bytes_by_name: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return bytes_by_name


def no_bf16() -> str | None:
    """Why ONNX Runtime runs no BF16 tower on a CPU, in its own words, or None: one addition is
    tried.
    """
    kind = onnx.TensorProto.BFLOAT16
    a, b, y = (onnx.helper.make_tensor_value_info(name, kind, [1]) for name in "aby")
    model_graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["a", "b"], ["y"])], "bf16", [a, b], [y]
    )
    proto = onnx.helper.make_model(
        model_graph, opset_imports=[onnx.helper.make_opsetid("", graph.OPSET)], ir_version=9
    )
    import onnxruntime

    try:
        onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception as error:
        return f"{RUNTIME}: {' '.join(str(error).split())}"
    return None
