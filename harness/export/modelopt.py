"""ModelOpt's own, published export to ONNX, and its defects.

Verified with ModelOpt 0.47.0 and torch 2.13; `tests/harness/export/test_export_graph.py` holds a
test for each defect that fails when it is gone.
"""

from __future__ import annotations

import copy

import numpy as np
import onnx
import torch
from torch import nn

from harness.export.graph import OPSET, TOWERS, traced
from harness.models import families

_TRT = ("TRT_FP8QuantizeLinear", "TRT_FP8DequantizeLinear")


def published(model: nn.Module, tower: str, dtype: torch.dtype = torch.float32) -> onnx.ModelProto:
    """A tower as ``torch.onnx.export`` writes it with ModelOpt's own symbolic functions, untouched.

    Raises:
        Exception: whatever ModelOpt or torch raise.
    """
    plain = copy.deepcopy(model).cpu().to(dtype).eval()
    example = families.sample_inputs(plain)[TOWERS[tower]]
    return traced(plain, tower, example)


def standard(proto: onnx.ModelProto) -> onnx.ModelProto:
    """*proto* with ModelOpt's E4M3 operators, which only TensorRT knows, as standard ones (ModelOpt
    0.47).

    ``trt::TRT_FP8QuantizeLinear`` and its inverse have no zero point, and a QuantizeLinear without
    one means UINT8.
    """
    standard_proto = onnx.ModelProto()
    standard_proto.CopyFrom(proto)
    graph = standard_proto.graph
    zero = onnx.numpy_helper.from_array(np.zeros((), np.uint8), "e4m3_zero")
    zero.data_type = onnx.TensorProto.FLOAT8E4M3FN
    changed = [node for node in graph.node if node.op_type in _TRT]
    for node in changed:
        node.op_type, node.domain = node.op_type.removeprefix("TRT_FP8"), ""
        node.name = node.name.replace("TRT_FP8", "")
        node.input.append(zero.name)
    if changed:
        graph.initializer.append(zero)
        # The types that ModelOpt noted for codes are those of its own operators.
        del graph.value_info[:]
    del standard_proto.opset_import[:]
    standard_proto.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    return standard_proto
