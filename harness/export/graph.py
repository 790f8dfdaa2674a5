"""A tower as ONNX: traced with a mark wherever an enabled quantizer is called, each mark then
replaced by its Q/DQ.

Activations become QuantizeLinear, DequantizeLinear.  A weight becomes its codes, quantized here and
stored as the initializer, and a DequantizeLinear: what an engine wants to find, and a quarter of
the bytes.  Both operators of a pair carry an explicit zero point: without one, ONNX Runtime's
optimisations compute something else for E4M3.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.export import files, forms
from harness.export.forms import Form, NoFormError
from harness.models import families
from harness.problems import collapse
from harness.quantization.context import in_dtype, quiet
from harness.quantization.maps import tensor_quantizers

#: tower -> the name of its input
TOWERS = families.INPUTS
OUTPUT = "features"
#: The opset that is written; blocks and INT4 need the next one, which changes no operator that
#: these graphs use.
OPSET = 20
_IR_VERSION = {20: 9, 21: 10}
_MARK = "Quantizer"
_DOMAIN = "harness"
_ONNX_FLOAT = {torch.float32: np.float32, torch.float16: np.float16}


def tower(model: nn.Module, tower: str, dtype: torch.dtype = torch.float32) -> onnx.ModelProto:
    """One tower of *model* as an ONNX graph, checked by ``onnx.checker``.

    The graph maps ``pixel_values`` (batch, 3, h, w) of *dtype*, or ``input_ids`` (batch, sequence)
    of int64, to ``features`` (batch, d) of *dtype*, the projected embedding before it is
    normalised.  Batch and sequence are dynamic.

    Args:
        model: a ``CLIPModel``, quantized and calibrated (not folded), or unquantized; any float
            dtype, any device.
        tower: ``vision`` or ``text``.
        dtype: ``torch.float32`` to compare with fake quantization, ``torch.float16`` to deploy.  In
            float16 every scale is rounded to it, as QuantizeLinear wants scales of its input's
            type.

    Raises:
        NoFormError: a quantizer computes what standard ONNX cannot say.
    """
    if tower not in TOWERS or dtype not in _ONNX_FLOAT:
        raise ValueError(
            f"{tower!r} in {dtype}: the towers are {', '.join(TOWERS)}, in float32 or float16"
        )
    forms_by_name = forms_of(model, tower)
    plain = in_dtype(model, dtype)
    with _marked(plain, set(forms_by_name)):
        proto = _traced(plain, tower, dtype)
    _write(proto, forms_by_name, model, dtype)
    files.check(proto)
    return proto


def forms_of(model: nn.Module, tower: str) -> dict[str, Form]:
    """The form of every enabled quantizer of a tower, by name.

    Raises:
        NoFormError: naming every quantizer that has none.
    """
    forms_by_name: dict[str, Form] = {}
    refused: dict[str, list[str]] = {}
    family = families.of(model)
    for name, quantizer in tensor_quantizers(model).items():
        if not quantizer.is_enabled or families.tower_of(family, name) != tower:
            continue
        try:
            if name.rpartition(".")[2].isdigit():
                raise NoFormError(_CHAIN)
            forms_by_name[name] = forms.of(quantizer, _weight_shape(model, name))
        except NoFormError as reason:
            refused.setdefault(str(reason), []).append(name)
    if refused:
        parts = [
            f"{reason} ({collapse(tuple(names), 1)[0]}, ...)" for reason, names in refused.items()
        ]
        raise NoFormError(". ".join(parts))
    return forms_by_name


#: W4A8.  Codes of the second quantizer in place of the chain would be no INT4 any more.
_CHAIN = (
    "a graph stores the codes of one quantizer, and the second rounding of a chain is then the "
    "runtime's: it falls "
    "otherwise than in fake quantization wherever a number of the first format lies between two of "
    "the second"
)


def _weight_shape(model: nn.Module, name: str) -> tuple[int, ...] | None:
    """Shape of the weight that a weight quantizer quantizes, None for any other."""
    holder, _, leaf = name.partition("weight_quantizer")
    return (
        None
        if leaf == name or not name.count("weight_quantizer")
        else tuple(_weight(model, holder).shape)
    )


def _weight(model: nn.Module, holder: str) -> Tensor:
    weight: Tensor = model.get_submodule(holder.rstrip(".")).weight  # type: ignore[assignment]
    return weight


# -- tracing ---------------------------------------------------------------------------------------


class _Mark(torch.autograd.Function):
    """The identity in torch, one node of our own domain in the traced graph."""

    @staticmethod
    def forward(_: Any, x: Tensor, name: str) -> Tensor:
        return x.clone()

    @staticmethod
    def symbolic(g: Any, x: Any, name: str) -> Any:
        return g.op(f"{_DOMAIN}::{_MARK}", x, name_s=name).setType(x.type())


@contextmanager
def _marked(model: nn.Module, enabled: set[str]) -> Iterator[None]:
    """*model* with a mark in the place of each quantizer of *enabled*.

    The others do what they always do: nothing, or a product with the scale that AWQ took out of the
    weights.
    """
    for name, quantizer in tensor_quantizers(model).items():
        if name in enabled:
            quantizer.forward = _marking(name, quantizer.pre_quant_scale)
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", _sdpa))
        for cls in {
            c for m in model.modules() for c in type(m).__mro__ if c.__name__ == "_QuantAttention"
        }:
            # While it exports, ModelOpt's sdpa passes q, k and v by their quantizers and hands
            # their ranges to an operator of its own (modelopt.py).  This is what it does when it
            # does not export.
            if hasattr(cls, "_functionals_to_replace"):
                changed = [(F, "scaled_dot_product_attention", _attention)]
                stack.enter_context(mock.patch.object(cls, "_functionals_to_replace", changed))
        yield


def _marking(name: str, pre_quant_scale: Tensor | None) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        x = x if pre_quant_scale is None else x * pre_quant_scale
        marked: Tensor = _Mark.apply(x, name)  # type: ignore[no-untyped-call]
        return marked

    return forward


_SDPA = F.scaled_dot_product_attention


def _attention(
    block: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    query, key, value = (
        block.q_bmm_quantizer(query),
        block.k_bmm_quantizer(key),
        block.v_bmm_quantizer(value),
    )
    output: Tensor = block.bmm2_output_quantizer(_sdpa(query, key, value, *args, **kwargs))
    return output


def _sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *args: Any,
    **kw: Any,
) -> Tensor:
    """Attention with a mask that is added: torch 2.13 exports a boolean one as FP16 plus FP32,
    which is not a sum.
    """
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(
            ~attn_mask, -torch.inf
        )
    return _SDPA(query, key, value, attn_mask, *args, **kw)


class TowerModule(nn.Module):
    """One tower of a model, from its input to its embedding."""

    def __init__(self, model: nn.Module, tower: str) -> None:
        super().__init__()
        self.model = model
        self._tower = tower

    def forward(self, x: Tensor) -> Tensor:
        """(batch, d) of pixels (batch, 3, h, w) or token ids (batch, sequence)."""
        return families.encode(self.model, self._tower, x)


def traced(model: nn.Module, tower: str, example: Tensor, **more: Any) -> onnx.ModelProto:
    """Return the graph that ``torch.onnx.export`` writes of a tower, with dynamic batch and
    sequence.
    """
    name = TOWERS[tower]
    axes = {name: {0: "batch"} | ({1: "sequence"} if tower == "text" else {}), OUTPUT: {0: "batch"}}
    # Into a file: beyond two gibibytes torch writes the constants next to it, which it cannot in
    # memory.
    with tempfile.TemporaryDirectory() as folder, quiet(), torch.no_grad():
        path = Path(folder) / "graph.onnx"
        torch.onnx.export(
            TowerModule(model, tower).eval(),
            (example,),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=[name],
            output_names=[OUTPUT],
            dynamic_axes=axes,
            **more,
        )
        return onnx.load(path)


def _traced(model: nn.Module, tower: str, dtype: torch.dtype) -> onnx.ModelProto:
    example = families.sample_inputs(model)[TOWERS[tower]]
    example = example.to(dtype) if example.is_floating_point() else example
    return traced(model, tower, example, custom_opsets={_DOMAIN: 1})


# -- writing ---------------------------------------------------------------------------------------


def _write(
    proto: onnx.ModelProto, forms_by_name: dict[str, Form], model: nn.Module, dtype: torch.dtype
) -> None:
    """Replace every mark by its pair, and say which opset the graph then needs."""
    graph = proto.graph
    floats = {i.name for i in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    transposed = {n.input[0]: n for n in graph.node if n.op_type == "Transpose"}
    nodes: list[onnx.NodeProto] = []
    gone: set[str] = set()
    for node in graph.node:
        if node.op_type != _MARK or node.domain != _DOMAIN:
            if node.output[0] not in gone:
                nodes.append(node)
            continue
        name = node.attribute[0].s.decode()
        form, x, y = forms_by_name[name], node.input[0], node.output[0]
        if x not in floats:
            nodes += _pair(graph, name, form, x, y, dtype)
            continue
        codes, axis = form.codes(_weight(model, name.partition("weight_quantizer")[0])), form.axis
        scale = form.scale
        turn = transposed.get(y)
        if turn is not None and uses[y] == 1 and codes.ndim == 2:
            # A Linear multiplies with its weight transposed: store the codes as the product reads
            # them.
            codes, y = np.ascontiguousarray(codes.T), turn.output[0]
            axis, scale = (
                None if axis is None else 1 - axis,
                scale.T if form.block is not None else scale,
            )
            gone.add(y)
        nodes.append(_stored(graph, name, form, codes, scale, axis, y, dtype))
    del graph.node[:]
    graph.node.extend(nodes)
    _forget_unused(graph)
    opset = max([OPSET, *(form.element.opset for form in forms_by_name.values())])
    del proto.opset_import[:]
    proto.opset_import.append(onnx.helper.make_opsetid("", opset))
    proto.ir_version = _IR_VERSION[opset]
    proto.producer_name = "harness.export"


def _pair(
    graph: onnx.GraphProto, name: str, form: Form, x: str, y: str, dtype: torch.dtype
) -> list[onnx.NodeProto]:
    """QuantizeLinear and DequantizeLinear of an activation."""
    scale = _add(graph, f"{name}.scale", form.scale.reshape(()).astype(_ONNX_FLOAT[dtype]))
    zero = _add(graph, f"{name}.zero_point", np.zeros((), form.element.dtype))
    code = f"{name}.codes"
    return [
        onnx.helper.make_node("QuantizeLinear", [x, scale, zero], [code], f"{name}/QuantizeLinear"),
        onnx.helper.make_node(
            "DequantizeLinear", [code, scale, zero], [y], f"{name}/DequantizeLinear"
        ),
    ]


def _stored(
    graph: onnx.GraphProto,
    name: str,
    form: Form,
    codes: Any,
    scale: Any,
    axis: int | None,
    y: str,
    dtype: torch.dtype,
) -> onnx.NodeProto:
    """DequantizeLinear of a weight's codes."""
    shaped = scale.reshape(()) if axis is None else np.ascontiguousarray(scale)
    parts = [
        _add(graph, f"{name}.codes", codes),
        _add(graph, f"{name}.scale", shaped.astype(_ONNX_FLOAT[dtype])),
        _add(graph, f"{name}.zero_point", np.zeros(shaped.shape, form.element.dtype)),
    ]
    where = {} if axis is None else {"axis": axis}
    where |= {} if form.block is None else {"block_size": form.block}
    return onnx.helper.make_node(
        "DequantizeLinear", parts, [y], f"{name}/DequantizeLinear", **where
    )


def _add(graph: onnx.GraphProto, name: str, values: Any) -> str:
    graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values), name))
    return name


def _forget_unused(graph: onnx.GraphProto) -> None:
    """Drop the weights whose codes took their place."""
    used = {name for node in graph.node for name in node.input}
    still_used = [i for i in graph.initializer if i.name in used]
    del graph.initializer[:]
    graph.initializer.extend(still_used)
