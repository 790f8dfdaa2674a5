"""The ONNX graphs of one quantized model and what they compute, each built once."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from importlib.metadata import version

import onnx
import torch
from torch import Tensor, nn

from harness.data.tasks import Task
from harness.export import graph, modelopt, parity
from harness.export.forms import NoFormError
from harness.export.gated import check
from harness.export.parity import Answers, Parity
from harness.models import families
from harness.problems import Problem


class Exports:
    """The graphs of one quantized model, and what they compute."""

    def __init__(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
        self.model = model
        #: One batch of real pictures and words.
        self.inputs = inputs
        self._graphs: dict[tuple[str, torch.dtype], onnx.ModelProto] = {}
        self._parities: dict[tuple[str, bool], Parity] = {}
        self._answers: dict[str, Answers] = {}

    @cached_property
    def no_form(self) -> str | None:
        """Why standard ONNX cannot express the model, or None."""
        try:
            for tower in families.of(self.model).towers:
                graph.forms_of(self.model, tower)
        except NoFormError as reason:
            return str(reason)
        return None

    def graph(self, tower: str, dtype: torch.dtype = torch.float32) -> onnx.ModelProto:
        """A tower as ONNX."""
        if (tower, dtype) not in self._graphs:
            self._graphs[tower, dtype] = graph.tower(self.model, tower, dtype)
        return self._graphs[tower, dtype]

    def problems(self, tower: str, dtype: torch.dtype) -> list[Problem]:
        """Return where a tower's graph differs from the model's quantizers."""
        return check(self.graph(tower, dtype), self.model, tower)

    def published(self) -> list[Problem] | str:
        """Return the problems of ModelOpt's own export, its domain replaced by the standard one, or
        why it exports nothing.
        """
        problems = []
        # The smaller tower first: where one does not export, neither does the other.
        for tower in reversed(families.of(self.model).towers):
            try:
                proto = modelopt.published(self.model, tower)
            except Exception as error:
                return (
                    f"ModelOpt {version('nvidia-modelopt')}: {type(error).__name__}: "
                    f"{str(error).splitlines()[0]}"
                )
            problems += check(modelopt.standard(proto), self.model, tower)
        return problems

    @cached_property
    def single(self) -> nn.Module:
        """The model in float32 with its weights quantized: what the graphs are compared with."""
        return parity.single(self.model)

    def parity(self, tower: str, optimize: bool) -> Parity:
        """Compare a tower in ONNX Runtime with torch, which uses the runtime's codes."""
        if (tower, optimize) not in self._parities:
            compared = parity.compare(
                self.graph(tower), self.single, tower, self.inputs, optimize=optimize
            )
            self._parities[tower, optimize] = compared
        return self._parities[tower, optimize]

    def answers(self, task: Task) -> Answers:
        """A classification task through both graphs."""
        if task.name not in self._answers:
            graphs = {tower: self.graph(tower) for tower in families.of(self.model).towers}
            self._answers[task.name] = parity.answers(graphs, self.single, task)
        return self._answers[task.name]
