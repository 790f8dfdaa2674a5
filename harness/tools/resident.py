"""One deployed tower in a process of its own: ``python -m harness.tools.resident WHAT PATH INPUT
THREADS`` reports its memory.

WHAT is ``onnxruntime``, or a class of transformers with a precision
(``CLIPTextModelWithProjection:float16``); PATH the graph, or the folder of the checkpoint; INPUT a
file of ``numpy.save``.  Nothing is imported that such a process does not need: what ONNX Runtime
takes cannot be measured with torch in the same process.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[[], Any]


def load(what: str, path: str, x: Any, threads: int) -> Run:
    """A forward of the tower at *path* over *x* (a NumPy array, in single precision or token
    ids).
    """
    if what == "onnxruntime":
        return _graph(path, x, threads)
    name, _, precision = what.partition(":")
    return _checkpoint(name, precision, path, x, threads)


def _graph(path: str, x: Any, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    (graph_input,) = session.get_inputs()
    fed = {
        graph_input.name: x.astype(
            {"tensor(float16)": "float16", "tensor(float)": "float32"}.get(
                graph_input.type, x.dtype
            )
        )
    }
    return lambda: session.run(None, fed)[0]


def _checkpoint(name: str, precision: str, path: str, x: Any, threads: int) -> Run:
    import torch
    import transformers
    from transformers.utils import logging

    from harness import compat  # noqa: F401  (before transformers)

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    dtype = getattr(torch, precision)
    model = (
        getattr(transformers, name)
        .from_pretrained(path, dtype=dtype, attn_implementation="sdpa")
        .eval()
    )
    fed = torch.from_numpy(x)
    fed = fed.to(dtype) if fed.is_floating_point() else fed

    @torch.inference_mode()
    def run() -> Any:
        return model(fed)[0]

    return run


def memory() -> dict[str, int]:
    """Resident memory of this process now, and its peak: bytes, as Linux accounts for them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {
        name: int(fields[key].split()[0]) << 10
        for name, key in (("resident", "VmRSS"), ("peak", "VmHWM"))
    }


def main(what: str, path: str, input_file: str, threads: str) -> None:
    """Load, run three times, and print :func:`memory` as JSON, with what was resident before
    anything was loaded.
    """
    import numpy as np

    before = memory()["resident"]
    run = load(what, path, np.load(input_file), int(threads))
    for _ in range(3):
        run()
    gc.collect()
    print(json.dumps(memory() | {"before": before}))


if __name__ == "__main__":
    main(*sys.argv[1:])
