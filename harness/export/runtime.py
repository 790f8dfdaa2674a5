"""ONNX Runtime on the CPU: sessions, and a graph's two towers in the place of a model."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import onnx
import torch
from torch import Tensor

from harness.export.graph import TOWERS

#: What a wrong answer is blamed on.
RUNTIME = f"ONNX Runtime {importlib.metadata.version('onnxruntime')}"


def session(proto: onnx.ModelProto, optimize: bool = False, threads: int = 0) -> Any:
    """An ``onnxruntime.InferenceSession`` of *proto* on the CPU.

    Args:
        proto: from :func:`harness.export.tower`.
        optimize: True: all of the runtime's graph optimisations; False: none, every operator computes as it is written.
        threads: inside an operator; 0: as many as torch uses.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])


class Exported:
    """Both towers in ONNX Runtime, answering as a ``CLIPModel`` does where ``harness.tasks`` asks."""

    def __init__(self, graphs: dict[str, onnx.ModelProto], *, optimize: bool = False) -> None:
        self.sessions = {tower: session(proto, optimize) for tower, proto in graphs.items()}

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """(batch, d) of pixels (batch, 3, h, w)."""
        return self._run("vision", pixel_values)

    def get_text_features(self, input_ids: Tensor) -> Tensor:
        """(batch, d) of token ids (batch, sequence)."""
        return self._run("text", input_ids)

    def _run(self, tower: str, x: Tensor) -> Tensor:
        (features,) = self.sessions[tower].run(None, {TOWERS[tower]: x.cpu().numpy()})
        return torch.from_numpy(features)
