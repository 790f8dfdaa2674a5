"""ONNX Runtime on the CPU."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import onnx
import torch

from harness.export import files

#: What a wrong answer is blamed on.
RUNTIME = f"ONNX Runtime {importlib.metadata.version('onnxruntime')}"


def session(proto: onnx.ModelProto, optimize: bool = False, threads: int = 0) -> Any:
    """An ``onnxruntime.InferenceSession`` of *proto* on the CPU.

    Args:
        proto: from :func:`harness.export.tower`.
        optimize: True: all of the runtime's graph optimisations; False: none, every operator
            computes as it is written.
        threads: inside an operator; 0: as many as torch uses.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    with files.as_argument(proto) as source:
        return onnxruntime.InferenceSession(source, options, ["CPUExecutionProvider"])
