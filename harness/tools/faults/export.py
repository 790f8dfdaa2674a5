"""The exporter writes another graph than the model: one thing wrong in the ONNX of every tower that
it touches.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import numpy.typing as npt
import onnx
from torch import Tensor, nn

from harness.tools.faults.catalogue import FaultSite, Where, add, replaced

#: recipes: attention quantized; the patch embedding left out; scales per channel
_FP8, _WITHOUT_PATCHES, _INT8 = "fp8", "fp8-patch-embedding-fp16", "int8"
_FC1 = "encoder.layers.1.mlp.fc1"
_PATCHES = "vision_model.embeddings.patch_embedding"
Array = npt.NDArray[np.generic]
Edit = Callable[[onnx.GraphProto], None]


def _exported(edit: Edit) -> Callable[[FaultSite], AbstractContextManager[None]]:
    """Every float32 vision tower goes through *edit* as it leaves the exporter."""

    def plant(_: FaultSite) -> AbstractContextManager[None]:
        from harness.export import graph

        original: Callable[..., onnx.ModelProto] = graph.tower

        def tower(model: nn.Module, which: str, *args: object, **kw: object) -> onnx.ModelProto:
            proto = original(model, which, *args, **kw)
            if which == "vision":
                edit(proto.graph)
            return proto

        return replaced((graph, "tower", tower))

    return plant


def _node(graph: onnx.GraphProto, ending: str) -> onnx.NodeProto:
    return next(node for node in graph.node if node.name.endswith(ending))


def _constant(graph: onnx.GraphProto, ending: str) -> onnx.TensorProto:
    return next(i for i in graph.initializer if i.name.endswith(ending))


def _rewrite(graph: onnx.GraphProto, ending: str, change: Callable[[Array], Array]) -> None:
    """Change the values of a constant."""
    held = _constant(graph, ending)
    values = np.asarray(change(onnx.numpy_helper.to_array(held)))
    held.CopyFrom(onnx.numpy_helper.from_array(values, held.name))


def _reading(graph: onnx.GraphProto, name: str, other: str) -> None:
    """Have all that reads *name* read *other*."""
    for node in graph.node:
        for position, input_name in enumerate(node.input):
            if input_name == name:
                node.input[position] = other


def _drop(graph: onnx.GraphProto) -> None:
    quantize = _node(graph, f"{_FC1}.input_quantizer/QuantizeLinear")
    dequantize = _node(graph, f"{_FC1}.input_quantizer/DequantizeLinear")
    _reading(graph, dequantize.output[0], quantize.input[0])
    for node in (quantize, dequantize):
        graph.node.remove(node)


def _one_ulp(graph: onnx.GraphProto) -> None:
    _rewrite(graph, f"{_FC1}.input_quantizer.scale", lambda s: np.nextafter(s, np.float32(np.inf)))


def _quantized_patches(graph: onnx.GraphProto) -> None:
    """A pair before the convolution, with the scale of another input."""
    conv = next(node for node in graph.node if node.op_type == "Conv")
    name = f"{_PATCHES}.input_quantizer"
    scale, zero = (
        _constant(graph, f"layers.0.mlp.fc1.input_quantizer.{x}").name
        for x in ("scale", "zero_point")
    )
    pair = [
        onnx.helper.make_node(
            "QuantizeLinear",
            [conv.input[0], scale, zero],
            [f"{name}.codes"],
            f"{name}/QuantizeLinear",
        ),
        onnx.helper.make_node(
            "DequantizeLinear", [f"{name}.codes", scale, zero], [name], f"{name}/DequantizeLinear"
        ),
    ]
    at = list(graph.node).index(conv)
    conv.input[0] = name
    for node in reversed(pair):
        graph.node.insert(at, node)


def _no_zero_point(graph: onnx.GraphProto) -> None:
    del _node(graph, f"{_FC1}.input_quantizer/DequantizeLinear").input[2:]


def _keys_for_values(graph: onnx.GraphProto) -> None:
    """Key and value of one block have changed their pairs."""
    block = "encoder.layers.1.self_attn"
    k, v = (_node(graph, f"{block}.{x}_bmm_quantizer/QuantizeLinear") for x in "kv")
    k.input[0], v.input[0] = v.input[0], k.input[0]
    outputs = [_node(graph, f"{block}.{x}_bmm_quantizer/DequantizeLinear").output[0] for x in "kv"]
    _reading(graph, outputs[0], "swapped")
    _reading(graph, outputs[1], outputs[0])
    _reading(graph, "swapped", outputs[1])


def _truncating(_: FaultSite) -> AbstractContextManager[None]:
    """Weights' codes are rounded toward zero."""
    from harness.export.forms import Form

    original = Form.codes

    def codes(form: Form, weight: Tensor) -> Array:
        nearest = original(form, weight)
        beyond = np.abs(nearest.astype(np.float32) * form.scale) > np.abs(
            weight.detach().float().numpy()
        )
        return (
            np.where(beyond, nearest.view(np.uint8) - 1, nearest.view(np.uint8))
            .astype(np.uint8)
            .view(nearest.dtype)
        )

    return replaced((Form, "codes", codes))


def _wrong_axis(graph: onnx.GraphProto) -> None:
    _rewrite(graph, f"{_FC1}.weight_quantizer.scale", lambda s: np.roll(s, 1))


def _other_epsilon(graph: onnx.GraphProto) -> None:
    norm = next(node for node in graph.node if node.op_type == "LayerNormalization")
    next(a for a in norm.attribute if a.name == "epsilon").f = 1e-2


def _unscaled(graph: onnx.GraphProto) -> None:
    """Queries without their share of 1 / sqrt(d)."""
    factor = next(
        n for n in graph.node if n.op_type == "Mul" and "encoder/layers.1/self_attn" in n.name
    )
    source = next(name for name in factor.input if "Constant" not in name)
    _reading(graph, factor.output[0], source)
    graph.node.remove(factor)


for _name, _recipe, _what, _origin, _edit in (
    (
        "Q/DQ dropped",
        _FP8,
        "one Linear's input goes into its product unquantized",
        "class: Q/DQ lost in a fusion",
        _drop,
    ),
    (
        "exported scale one step off",
        _FP8,
        "one scale is off by one unit in the last place",
        "class: a scale that went through another precision",
        _one_ulp,
    ),
    (
        "patch embedding exported quantized",
        _WITHOUT_PATCHES,
        "the first layer's input has a Q/DQ though it is disabled",
        "get_onnx_bytes_and_metadata quantizes convolutions (ModelOpt 0.47)",
        _quantized_patches,
    ),
    (
        "zero point dropped",
        _FP8,
        "one DequantizeLinear has no zero point",
        "trt::TRT_FP8DequantizeLinear rewritten without one",
        _no_zero_point,
    ),
    (
        "Q/DQ of key and value exchanged",
        _FP8,
        "key and value of one block are quantized with each other's scale",
        "class: attention's Q/DQ on the wrong tensor",
        _keys_for_values,
    ),
    (
        "exported scales of other channels",
        _INT8,
        "one weight's scales belong to the neighbouring channels",
        "class: axis lost in a transposition",
        _wrong_axis,
    ),
    (
        "other epsilon in a LayerNorm",
        _FP8,
        "one LayerNorm adds 1e-2 to the variance instead of 1e-5",
        "class: attribute lost on export",
        _other_epsilon,
    ),
    (
        "attention scale lost on export",
        _INT8,
        "queries of one block lack their share of 1 / sqrt(d)",
        "export_fp8_mha's handling of scale (ModelOpt 0.47)",
        _unscaled,
    ),
):
    add(_name, Where.EXPORT, _origin, _what, _exported(_edit), _recipe)
_what = "weights' codes are rounded toward zero"
add(
    "exported codes truncated",
    Where.EXPORT,
    "class: truncation for rounding",
    _what,
    _truncating,
    _FP8,
)
