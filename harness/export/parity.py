"""Does the exported graph compute what fake quantization promised?

Two floating-point libraries never agree to the last bit: they sum in another order.  Between
quantizers that is harmless, but a quantizer turns the smallest difference into a whole step where a
value is on the boundary of two codes, and what follows then differs by as much as quantization
itself.  A tolerance on the output alone is therefore either too tight to hold or too wide to mean
anything.  So outputs are compared *given the codes* (:func:`compare`):

* on its way through torch, each activation takes the code that the runtime chose, if that code is a
  right one: the quantizer's own output for some input within ``bound * amax`` of the one that torch
  computed.  A code that is not is counted against the graph, by the quantizer's name;
* what is left is rounding.  The outputs must agree within ``bound`` times their norm.

``bound`` is that of a chain of D products of up to n terms in float32, ``D * sqrt(n) * 2**-24``:
each sum of n terms deviates by about sqrt(n) unit roundoffs (Higham and Mary, "A new approach to
probabilistic rounding error analysis", SIAM J. Sci. Comput. 41(5), 2019), and D of them at most add
up.  For the embedded model: 6e-5 (vision) and 3e-5 (text).

Answers are compared sample by sample over a task in the same way (:func:`answers`).  What the codes
on a boundary cost is reported separately, as the drop from exporting: accuracy of the graph against
fake quantization by itself.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from harness.data import inputs, tasks
from harness.data.tasks import Task
from harness.export.gated import Graph
from harness.export.graph import TOWERS, TowerModule
from harness.export.runtime import session
from harness.models.hooks import after_each
from harness.quantization import quantize
from harness.quantization.context import in_dtype
from harness.quantization.maps import tensor_quantizers

#: Half the distance of 1 and the next float32.
UNIT = 2.0**-24
#: Samples of a task that are answered by both, and rows a batch.
SAMPLES, ROWS = 64, 64


@dataclass(frozen=True)
class Parity:
    """One tower in one runtime against fake quantization in torch, on one batch, given the codes.

    ``error`` is the largest distance of two output rows over the norm of torch's, ``bound`` its
    limit.  Of ``elements`` quantized activations, ``moved`` have another code than torch chose and
    rightly so, ``wrong`` one that no rounding explains, by quantizer in ``culprits``.
    """

    tower: str
    optimized: bool
    error: float
    bound: float
    elements: int
    moved: int
    wrong: int
    culprits: dict[str, int]

    @property
    def holds(self) -> bool:
        """Whether the runtime computes what fake quantization does."""
        return self.error <= self.bound and not self.wrong

    def as_dict(self) -> dict[str, Any]:
        """A plain record for JSON."""
        return asdict(self) | {"holds": self.holds}

    def __str__(self) -> str:
        codes = (
            f"{self.moved} of {self.elements} codes on a boundary"
            if self.elements
            else "no activation quantized"
        )
        text = f"{self.tower}: relative error {self.error:.2g}, bound {self.bound:.2g}; {codes}"
        for name, count in list(self.culprits.items())[:3]:
            text += f"\n  {name}: {count} codes that no rounding explains"
        return text


def plain(model: nn.Module) -> nn.Module:
    """A copy of a model in float32 on the CPU."""
    return in_dtype(model, torch.float32)


def single(model: nn.Module) -> nn.Module:
    """A copy of a quantized model in float32 on the CPU, its weights quantized once and for all."""
    return quantize.fold(plain(model))


def bound(proto: onnx.ModelProto) -> float:
    """What float32 leaves open in the graph: the number of products times the root of the longest,
    in roundoffs.
    """
    graph = Graph(proto)
    lengths = []
    for node in graph.nodes:
        if node.op_type in ("MatMul", "Conv", "Gemm"):
            shapes = [s for s in (_weight_shape(graph, name) for name in node.input[:2]) if s]
            lengths += [math.prod(s[1:]) if node.op_type == "Conv" else s[0] for s in shapes] or [1]
    return len(lengths) * math.sqrt(max(lengths, default=1)) * UNIT


def _weight_shape(graph: Graph, name: str) -> tuple[int, ...] | None:
    """Shape of a weight as its product reads it; None for an activation."""
    turned = False
    while name not in graph.constants:
        node = graph.producer.get(name)
        if node is None or node.op_type not in ("DequantizeLinear", "QuantizeLinear", "Transpose"):
            return None
        turned ^= node.op_type == "Transpose"
        name = node.input[0]
    shape = tuple(graph.constants[name].dims)
    return shape[::-1] if turned else shape


class Runtimes:
    """One tower in ONNX Runtime and in torch next to each other; torch uses the codes that the
    runtime chose.

    Args:
        proto: the tower in float32.
        model: from :func:`single`.
        tower: ``vision`` or ``text``.
        optimize: whether the runtime may rewrite the graph.
    """

    def __init__(
        self, proto: onnx.ModelProto, model: nn.Module, tower: str, *, optimize: bool = False
    ) -> None:
        self.tower, self.optimize, self.limit = tower, optimize, bound(proto)
        pairs = Graph(proto).pairs()
        self._watched = {
            p.name: p.dequantize.output[0] for p in pairs if p.quantize and not p.is_weight
        }
        self._session = session(_showing(proto, list(self._watched.values())), optimize)
        self._model, self._module = model, TowerModule(model, tower)
        self._error, self._elements, self._moved = 0.0, 0, 0
        self._wrong: Counter[str] = Counter()

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of rows *x*: the runtime's, and torch's with the runtime's codes,
        float32 (n, d) each.
        """
        features, *seen = self._session.run(None, {TOWERS[self.tower]: x.numpy()})
        chosen = {
            name: torch.from_numpy(values) for name, values in zip(self._watched, seen, strict=True)
        }
        self._elements += sum(v.numel() for v in chosen.values())
        theirs, ours = torch.from_numpy(features), self._given(x, chosen)
        error = (
            ((theirs.double() - ours.double()).norm(dim=1) / ours.double().norm(dim=1)).max().item()
        )
        self._error = max(self._error, error) if math.isfinite(error) else math.inf
        return theirs, ours

    def both(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what a call returns, and torch's features with its own codes."""
        moved = self._moved
        theirs, coded = self(x)
        if self._moved == moved:
            return theirs, coded, coded
        with torch.no_grad():
            return theirs, coded, self._module(x)

    @property
    def parity(self) -> Parity:
        """Return the parity over all rows so far."""
        wrong = dict(self._wrong)
        return Parity(
            self.tower,
            self.optimize,
            self._error,
            self.limit,
            self._elements,
            self._moved,
            sum(wrong.values()),
            wrong,
        )

    @torch.no_grad()
    def _given(self, x: Tensor, chosen: dict[str, Tensor]) -> Tensor:
        quantizers = tensor_quantizers(self._model)
        with after_each(
            {name: quantizers[name] for name in chosen}, partial(self._replaced, chosen)
        ):
            features: Tensor = self._module(x)
        return features

    def _replaced(
        self,
        chosen: dict[str, Tensor],
        name: str,
        quantizer: Any,
        args: tuple[Tensor, ...],
        output: Tensor,
    ) -> Tensor:
        """*output* with the runtime's value of *chosen* wherever that one is as right."""
        theirs = chosen.pop(name)
        if theirs.shape != output.shape:
            self._wrong[name] += theirs.numel()
            return output
        # A code times its scale may differ by an ulp or two from the code times the inverse of the
        # inverse scale.
        other = (theirs - output).abs() > 4 * UNIT * output.abs()
        if not other.any():
            return output
        before = (
            args[0] if quantizer.pre_quant_scale is None else args[0] * quantizer.pre_quant_scale
        )
        room = self.limit * quantizer._get_amax(before).float()
        low, high = (
            quantizer._fake_quantize(edge) for edge in (before[other] - room, before[other] + room)
        )
        slack = 4 * UNIT * theirs[other].abs()
        right = (theirs[other] >= low - slack) & (theirs[other] <= high + slack)
        self._moved += int(right.sum())
        if not right.all():
            self._wrong[name] += int((~right).sum())
        taken = output.clone()
        taken[other] = torch.where(right, theirs[other], output[other])
        return taken


def _showing(proto: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """*proto* with more outputs, of a shape that is left open."""
    shown = onnx.ModelProto()
    shown.CopyFrom(proto)
    for name in names:
        shown.graph.output.append(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        )
    return shown


def compare(
    proto: onnx.ModelProto,
    model: nn.Module,
    tower: str,
    batch: Mapping[str, Tensor],
    *,
    optimize: bool = False,
) -> Parity:
    """One *batch* through :class:`Runtimes`."""
    x = batch[TOWERS[tower]].cpu()
    runtimes = Runtimes(proto, model, tower, optimize=optimize)
    runtimes(x.float() if x.is_floating_point() else x)
    return runtimes.parity


@dataclass(frozen=True)
class Answers:
    """A classification task through the exported towers, on its first ``n`` samples.

    ``torch`` and ``runtime`` are the accuracies of fake quantization and of the graph, as
    fractions, ``changed`` counts the answers in which they differ.  ``differing`` are those that
    differ though torch takes the runtime's codes, and though torch's first two candidates are
    further apart than ``tie`` logits: there must be none.  ``ties`` counts those that differ within
    it.
    """

    task: str
    metric: str
    n: int
    torch: float
    runtime: float
    changed: int
    differing: tuple[str, ...]
    ties: int
    tie: float
    towers: tuple[Parity, ...]

    @property
    def drop(self) -> float:
        """What exporting costs, in points; negative where the graph answers better."""
        return 100 * (self.torch - self.runtime)

    def as_dict(self) -> dict[str, Any]:
        """A plain record for JSON."""
        return asdict(self) | {
            "drop": self.drop,
            "towers": {p.tower: p.as_dict() for p in self.towers},
        }

    def problems(self) -> list[str]:
        """Return the differences that rounding does not explain, one paragraph each."""
        paragraphs = [str(parity) for parity in self.towers if not parity.holds]
        if self.differing:
            paragraphs.append(
                f"{len(self.differing)} of {self.n} answers of the graph on {self.task} "
                f"({self.metric}) are not fake "
                f"quantization's, given the same codes and further than {self.tie:.2g} logits from "
                f"a tie: "
                f"{', '.join(self.differing[:5])}"
            )
        return paragraphs


def answers(
    graphs: Mapping[str, onnx.ModelProto], model: nn.Module, task: Task, n: int = SAMPLES
) -> Answers:
    """The first *n* samples of a classification *task*, answered by the graphs and by torch.

    Args:
        graphs: every tower of the model in float32.
        model: from :func:`single`.
        task: from ``harness.data.tasks``.
        n: pictures; every class is a candidate.
    """
    part = task.subset(0, min(n, len(task.sample_ids)))
    runtimes = {tower: Runtimes(proto, model, tower) for tower, proto in graphs.items()}
    images = _pictures(part, runtimes["vision"]) if "vision" in runtimes else _given(part, "vision")
    texts = _classes(part, runtimes["text"]) if "text" in runtimes else _given(part, "text")
    (metric,) = part.metrics
    theirs, coded, alone = (
        tasks.score(part, i.numpy(), t.numpy())[metric] for i, t in zip(images, texts, strict=True)
    )
    towers = tuple(runtime.parity for runtime in runtimes.values())
    # A unit vector's error is at most twice the relative one, a cosine's the sum of two, a gap's
    # twice that.
    tie = 100 * 4 * sum(parity.error for parity in towers)
    assert coded.scores is not None
    best = -np.sort(-coded.scores, axis=1)
    gaps = best[:, 0] - best[:, 1]
    other = theirs.answers != coded.answers
    differing = np.flatnonzero(other & ~(gaps <= tie))
    changed = int((theirs.answers != alone.answers).sum())
    return Answers(
        task.name,
        metric,
        part.n(metric),
        alone.accuracy,
        theirs.accuracy,
        changed,
        tuple(part.sample_ids[k] for k in differing),
        int((other & (gaps <= tie)).sum()),
        tie,
        towers,
    )


Three = tuple[Tensor, Tensor, Tensor]


def _given(task: Task, tower: str) -> Three:
    """Return the embeddings that a single tower needs from the other tower of its checkpoint."""
    assert task.completion is not None
    embeddings = torch.from_numpy(task.completion.embeddings[tower])
    return embeddings, embeddings, embeddings


def _unit(task: Task, features: Tensor) -> Tensor:
    """Unit embeddings of features, projected where the model has no projection of its own."""
    with torch.no_grad():
        return inputs.unit(
            features
            if task.projection is None
            else copy.deepcopy(task.projection).float()(features)
        )


def _pictures(task: Task, run: Runtimes) -> Three:
    """Unit embeddings of the pictures: the runtime's, torch's given its codes, torch's alone;
    float32 (n, d) each.
    """
    parts = []
    for batch in task.pictures.batches(ROWS, task.start, task.start + len(task.sample_ids)):
        pixels = inputs.pixel_values(batch, task.shades.float())
        parts.append(run.both(pixels))
    theirs, coded, alone = (_unit(task, torch.cat(side)) for side in zip(*parts, strict=True))
    return theirs, coded, alone


def _classes(task: Task, run: Runtimes) -> Three:
    """Unit embeddings of the classes, as :func:`_pictures`."""
    sides: list[dict[int, Tensor]] = [{}, {}, {}]
    for chosen, ids in task.prompts.batches(ROWS):
        for side, features in zip(sides, run.both(ids), strict=True):
            side.update(zip(chosen.tolist(), _unit(task, features), strict=False))
    theirs, coded, alone = (_of_classes(task, side) for side in sides)
    return theirs, coded, alone


def _of_classes(task: Task, prompts: Mapping[int, Tensor]) -> Tensor:
    rows = torch.stack([prompts[row] for row in task.prompts.rows.tolist()])
    return inputs.unit(rows.double().view(len(task.first_text) - 1, -1, rows.shape[1]).mean(1))
