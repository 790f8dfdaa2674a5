"""Compare an exported graph with the quantizer map: the same quantizers, in the same places, with
the same numbers.

A pair is found by what it is, QuantizeLinear and DequantizeLinear or a DequantizeLinear of stored
codes, in any standard graph whose nodes carry the module paths that torch gives them.  Its name
says which quantizer it means to be; where it really sits is read off the graph around it.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import nn

from harness import formats
from harness.formats import Step
from harness.models import families
from harness.problems import Problem
from harness.quantization.maps import tensor_quantizers

Array = npt.NDArray[Any]

#: element formats of the oracle -> the type of code that stands for them
_CODES = {
    "E4M3": onnx.TensorProto.FLOAT8E4M3FN,
    "INT8": onnx.TensorProto.INT8,
    "INT4": onnx.TensorProto.INT4,
}
#: What lies between a pair and the product it feeds without changing what is quantized.
_TRANSPARENT = {"Transpose", "Reshape", "Identity", "Cast", "Squeeze", "Unsqueeze", "Flatten"}
_PRODUCTS = {"MatMul", "Gemm", "Conv"}
_REPAIR = "The exporter, not the recipe, is at fault: do not deploy this graph."


@dataclass(frozen=True)
class Pair:
    """One Q/DQ pair of a graph; ``quantize`` is None where a weight's codes are stored."""

    name: str
    quantize: onnx.NodeProto | None
    dequantize: onnx.NodeProto

    @property
    def is_weight(self) -> bool:
        """Whether its name says that it quantizes a weight."""
        return ".weight_quantizer" in f".{self.name}"


class Graph:
    """A graph with its nodes by input and output, and its constants by name."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.nodes = list(proto.graph.node)
        self.producer = {output: node for node in self.nodes for output in node.output}
        self.consumers: dict[str, list[tuple[onnx.NodeProto, int]]] = defaultdict(list)
        for node in self.nodes:
            for position, name in enumerate(node.input):
                self.consumers[name].append((node, position))
        self.constants = {i.name: i for i in proto.graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t

    def constant(self, name: str) -> Array | None:
        """The values of a constant, or None if it is not a constant."""
        held = self.constants.get(name)
        if held is None:
            # Exporters write a zero point as a constant and a cast.
            cast = self.producer.get(name)
            if cast is None or cast.op_type != "Cast" or cast.input[0] not in self.constants:
                return None
            held = self.constants[cast.input[0]]
        values: Array = onnx.numpy_helper.to_array(held)
        return values

    def element_type(self, name: str) -> int | None:
        """ONNX's type of a constant, a cast's target included."""
        if name in self.constants:
            return int(self.constants[name].data_type)
        cast = self.producer.get(name)
        if cast is not None and cast.op_type == "Cast":
            return int(cast.attribute[0].i)
        return None

    def pairs(self) -> Iterator[Pair]:
        """Every pair, in the order of the graph."""
        for node in self.nodes:
            if node.op_type == "DequantizeLinear":
                before = self.producer.get(node.input[0])
                quantize = (
                    before if before is not None and before.op_type == "QuantizeLinear" else None
                )
                named = Pair(quantizer_name((quantize or node).name), quantize, node)
                if "_quantizer" not in named.name:
                    # ModelOpt writes some from within the attention block: the name says no more
                    # than the block.
                    named = replace(named, name=self.place(named) or named.name)
                yield named

    def loose(self) -> list[onnx.NodeProto]:
        """QuantizeLinear nodes whose codes no DequantizeLinear reads."""
        return [
            node
            for node in self.nodes
            if node.op_type == "QuantizeLinear"
            and not any(c.op_type == "DequantizeLinear" for c, _ in self.consumers[node.output[0]])
        ]

    def foreign(self) -> Counter[str]:
        """Operators outside the standard, by name."""
        standard = ("", "ai.onnx")
        return Counter(f"{n.domain}::{n.op_type}" for n in self.nodes if n.domain not in standard)

    # -- where a pair sits -------------------------------------------------------------------------

    def place(self, pair: Pair) -> str | None:
        """Return the quantizer whose place this pair has, by its neighbours in the graph; None if
        they do not show it.
        """
        source = self.producer.get(pair.quantize.input[0]) if pair.quantize is not None else None
        if source is not None and self._follows_softmax(source):
            return f"{_module(source)}.bmm2_output_quantizer"
        places = {
            self._read_by(node, position)
            for node, position in self._readers(pair.dequantize.output[0])
        }
        return places.pop() if len(places) == 1 else None

    def _readers(self, name: str) -> Iterator[tuple[onnx.NodeProto, int]]:
        """Return the products that read a tensor, directly or through nodes that only move or scale
        it.
        """
        for node, position in self.consumers[name]:
            if node.op_type in _PRODUCTS:
                yield node, position
            elif (node.op_type in _TRANSPARENT and position == 0) or self._scales(node, position):
                yield from self._readers(node.output[0])

    def _scales(self, node: onnx.NodeProto, position: int) -> bool:
        """Whether *node* multiplies its input at *position* with one number."""
        if node.op_type != "Mul":
            return False
        values = self.constant(node.input[1 - position])
        return values is not None and values.size == 1

    def _read_by(self, node: onnx.NodeProto, position: int) -> str | None:
        module = _module(node)
        if node.op_type == "Conv" or any(self._fixed(name) for name in node.input[:2]):
            # A layer with a weight: the other operand is its input.
            kind = "weight" if self._fixed(node.input[position]) else "input"
            return f"{module}.{kind}_quantizer"
        if self._follows_softmax(node):
            return f"{module}.v_bmm_quantizer" if position == 1 else f"{module}.softmax_quantizer"
        return f"{module}.{'qk'[position]}_bmm_quantizer"

    def scaled(self, pair: Pair) -> bool:
        """Whether the tensor that a pair of an attention block quantizes was multiplied before."""
        name = pair.quantize.input[0] if pair.quantize is not None else ""
        while (before := self.producer.get(name)) is not None and before.op_type in _TRANSPARENT:
            name = before.input[0]
        return before is not None and before.op_type == "Mul"

    def _fixed(self, name: str) -> bool:
        """Whether a tensor depends on nothing but constants."""
        if name in self.constants:
            return True
        node = self.producer.get(name)
        if node is None:
            return False
        return node.op_type in {
            *_TRANSPARENT,
            "QuantizeLinear",
            "DequantizeLinear",
        } and self._fixed(node.input[0])

    def _follows_softmax(self, node: onnx.NodeProto) -> bool:
        """Whether *node* is the second product of an attention block."""
        if node.op_type != "MatMul":
            return False
        name = node.input[0]
        while (before := self.producer.get(name)) is not None:
            if before.op_type == "Softmax":
                return True
            if before.op_type not in {
                *_TRANSPARENT,
                "Where",
                "Dropout",
                "QuantizeLinear",
                "DequantizeLinear",
            }:
                return False
            # Where(isnan(p), 0, p) guards rows that are masked throughout.
            name = before.input[2] if before.op_type == "Where" else before.input[0]
        return False


def quantizer_name(node: str) -> str:
    """The quantizer that a node's name means: ``/a/layers.0/fc1/input_quantizer/QuantizeLinear``
    and ours alike.
    """
    path = node.rpartition("/")[0].strip("/").replace("/", ".")
    return re.sub(r"^model\.", "", path)


def _module(node: onnx.NodeProto) -> str:
    return quantizer_name(node.name)


def check(proto: onnx.ModelProto, model: nn.Module, tower: str) -> list[Problem]:
    """Return where *proto* differs from the *tower* of *model*, quantizer by quantizer.

    Each enabled quantizer has one pair and a disabled one none; pairs sit where their quantizers
    are called; both nodes have a zero point of the right type; scales are amax / largest to the
    last bit, codes of weights the oracle's.

    Args:
        proto: an exported tower, in float32 or float16.
        model: what it was exported from: quantized, calibrated, not folded.
        tower: ``vision`` or ``text``.
    """
    graph = Graph(proto)
    family = families.of(model)
    quantizers = {
        n: q for n, q in tensor_quantizers(model).items() if families.tower_of(family, n) == tower
    }
    pairs = list(graph.pairs())
    problems = [*_counted(graph, pairs, quantizers), *_placed(graph, pairs)]
    known = [pair for pair in pairs if pair.name in quantizers]
    problems += _zero_points(graph, known, quantizers)
    wrong: dict[str, list[str]] = {"scales": [], "codes": []}
    for pair in known:
        for what, line in _numbers(graph, pair, quantizers[pair.name], model):
            wrong[what].append(line)
    if wrong["scales"]:
        what = (
            f"{len(wrong['scales'])} scales are not their quantizer's amax divided by the format's "
            f"largest number:"
        )
        problems.append(Problem("scale is not the amax", what, _some(wrong["scales"]), _REPAIR))
    if wrong["codes"]:
        what = f"{len(wrong['codes'])} weights have other codes than their format gives them:"
        problems.append(Problem("codes differ", what, _some(wrong["codes"]), _REPAIR))
    return problems


def _counted(graph: Graph, pairs: list[Pair], quantizers: dict[str, Any]) -> Iterator[Problem]:
    if foreign := graph.foreign():
        names = tuple(f"{name}, {count} times" for name, count in foreign.items())
        yield Problem(
            "operators outside the standard",
            "the graph needs operators that ONNX does not have:",
            names,
            "Only an engine that knows this domain can read it.",
        )
    counts = Counter(pair.name for pair in pairs)
    on = {name for name, q in quantizers.items() if q.is_enabled}
    loose = [quantizer_name(node.name) for node in graph.loose()]
    groups: tuple[tuple[str, str, set[str]], ...] = (
        ("Q/DQ dropped", "enabled quantizers have no Q/DQ pair in the graph:", on - set(counts)),
        (
            "Q/DQ twice",
            "quantizers have more than one Q/DQ pair:",
            {n for n, c in counts.items() if c > 1},
        ),
        (
            "disabled but exported",
            "quantizers are disabled in the model and have a Q/DQ pair in the graph:",
            (set(counts) & set(quantizers)) - on,
        ),
        (
            "Q/DQ of no quantizer",
            "Q/DQ pairs belong to no quantizer of the model:",
            set(counts) - set(quantizers),
        ),
        ("Q without DQ", "QuantizeLinear nodes have no DequantizeLinear behind them:", set(loose)),
    )
    for rule, what, meant in groups:
        if meant:
            ordered = tuple(n for n in dict.fromkeys([*quantizers, *counts, *loose]) if n in meant)
            yield Problem(rule, f"{len(ordered)} {what}", ordered, _REPAIR)


def _placed(graph: Graph, pairs: list[Pair]) -> Iterator[Problem]:
    """Pairs that quantize another tensor than the one their name says, or a multiple of it."""
    lines = []
    for pair in pairs:
        place = graph.place(pair)
        # The parts of a chain (W4A8) share a place.
        if place is not None and re.sub(r"\.\d+$", "", pair.name) != place:
            lines.append(f"{pair.name} quantizes what {place} should")
        elif "_bmm_quantizer" in pair.name and graph.scaled(pair):
            lines.append(f"{pair.name} quantizes its tensor times a factor")
    if lines:
        what = f"{len(lines)} Q/DQ pairs sit on the wrong tensor:"
        yield Problem("Q/DQ on the wrong tensor", what, _some(lines), _REPAIR)


def _zero_points(graph: Graph, pairs: list[Pair], quantizers: dict[str, Any]) -> Iterator[Problem]:
    lines: list[str] = []
    for pair in pairs:
        expected = _CODES.get(_step(quantizers[pair.name]).format.name)
        for node in (pair.quantize, pair.dequantize):
            if node is None:
                continue
            zero = node.input[2] if len(node.input) > 2 else ""
            values = graph.constant(zero) if zero else None
            if values is None:
                lines.append(f"{pair.name}: {node.op_type} has none")
            elif graph.element_type(zero) != expected or np.any(values.astype(np.float32) != 0):
                lines.append(f"{pair.name}: {node.op_type} has one of another type, or not zero")
    if lines:
        what = f"{len(lines)} nodes lack the zero point that says which format they mean:"
        fix = (
            "Without it the format is the runtime's to guess, and ONNX Runtime's optimisations "
            "compute garbage."
        )
        yield Problem("zero point", what, _some(lines), fix)


def _numbers(
    graph: Graph, pair: Pair, quantizer: Any, model: nn.Module
) -> Iterator[tuple[str, str]]:
    """(``scales`` or ``codes``, what is wrong) of one pair."""
    step = _step(quantizer)
    if step.amax is None:
        return
    amax = formats.to_numpy(step.amax).astype(np.float64).ravel()
    scales = [
        graph.constant(node.input[1])
        for node in (pair.quantize, pair.dequantize)
        if node is not None
    ]
    for scale in scales:
        if scale is None:
            yield "scales", f"{pair.name}: not a constant"
            return
        expected = (amax / step.format.max).astype(np.float32).astype(scale.dtype)
        # Blocks of a weight that is stored transposed come in the other order.
        flat = (scale.T if step.block_sizes and _turned(graph, pair) else scale).ravel()
        apart = amax > 2.0**-24
        if flat.shape != expected.shape or not np.array_equal(flat[apart], expected[apart]):
            at = (
                0
                if flat.shape != expected.shape
                else int(np.flatnonzero((flat != expected) & apart)[0])
            )
            yield (
                "scales",
                f"{pair.name}: {flat[at]:.9g}, not {amax[at]:.9g} / {step.format.max:g} = "
                f"{expected[at]:.9g}",
            )
            return
    if pair.is_weight:
        codes = _codes(graph, pair, step)
        if codes is None:
            return
        layer: Any = model.get_submodule(pair.name.partition(".weight_quantizer")[0])
        wanted = _oracle_codes(step, layer.weight)
        got = codes.astype(np.float32)
        got = got.T if got.shape != wanted.shape or _turned(graph, pair) else got
        if got.shape != wanted.shape:
            yield (
                "codes",
                f"{pair.name}: a tensor of shape {got.shape}, the weight has {wanted.shape}",
            )
        elif differing := int((got != wanted).sum()):
            where = tuple(int(i) for i in np.argwhere(got != wanted)[0])
            line = (
                f"{differing} of {got.size} differ; at {list(where)} {got[where]:g}, the "
                f"definition {wanted[where]:g}"
            )
            yield "codes", f"{pair.name}: {line}"


def _codes(graph: Graph, pair: Pair, step: Step) -> Array | None:
    """A weight's codes: stored, or what QuantizeLinear makes of a stored weight by its definition,
    x / scale.
    """
    if pair.quantize is None:
        return graph.constant(pair.dequantize.input[0])
    weight, scale = (graph.constant(name) for name in pair.quantize.input[:2])
    if weight is None or scale is None:
        return None
    axis = next((a.i for a in pair.quantize.attribute if a.name == "axis"), 1)
    spread = (
        scale
        if scale.ndim == 0
        else scale.reshape([-1 if d == axis else 1 for d in range(weight.ndim)])
    )
    return step.format.round(weight.astype(np.float32) / spread.astype(np.float32))


def _turned(graph: Graph, pair: Pair) -> bool:
    """Whether a product reads the weight's codes as they are stored, [in, out], and not through a
    transposition.
    """
    if pair.quantize is not None:
        return False
    return any(c.op_type == "MatMul" for c, _ in graph.consumers[pair.dequantize.output[0]])


def _oracle_codes(step: Step, weight: torch.Tensor) -> Array:
    """Codes as numbers: what the oracle gives back, on the grid of its format again."""
    values = step(weight.detach().float().cpu())
    layout = formats.layout.plan(tuple(values.shape), step.axis, step.block_sizes)
    assert step.amax is not None
    amax = layout.fit(formats.to_numpy(step.amax))
    scale = np.where(amax <= 2.0**-24, 1, amax).astype(np.float64) / step.format.max
    # A code times its scale is off by an ulp or two; the next code is further away by far.
    return layout.join(step.format.round(layout.cut(formats.to_numpy(values)) / scale))


def _step(quantizer: Any) -> Step:
    (step,) = formats.from_quantizer(quantizer).steps
    return step


def _some(lines: list[str], most: int = 10) -> tuple[str, ...]:
    return (*lines[:most], *([f"... and {len(lines) - most} more"] if len(lines) > most else []))
