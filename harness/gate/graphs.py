"""The ONNX graphs of a case and what they compute."""

from __future__ import annotations

from collections.abc import Callable

import torch

from harness import export
from harness.data.tasks import Task
from harness.export import engine
from harness.gate.built import built, is_built
from harness.gate.quantized import Quantized
from harness.gate.reference_side import ReferenceSide
from harness.problems import Problem


class Graphs:
    """The ONNX graphs of a case and what they compute; the object outlives the model from which
    they were made.
    """

    def __init__(self, quantized: Callable[[], Quantized], shared: ReferenceSide) -> None:
        self._quantized = quantized
        self._shared = shared
        #: What in a tower's graph is not what the quantizers say, by tower and type.
        self.problems: dict[tuple[str, torch.dtype], list[Problem]] = {}
        #: Towers in ONNX Runtime against fake quantization, by tower and whether they were
        #: optimised.
        self.parities: dict[tuple[str, bool], export.Parity] = {}
        #: Towers in TensorRT.
        self.engines: dict[str, engine.Measured] = {}
        #: Tasks through both graphs.
        self.answers: dict[str, export.Answers] = {}

    @property
    def _exported(self) -> export.Exports:
        return self._quantized().exported

    @built
    def no_form(self) -> str | None:
        """Why the case's model has no form in standard ONNX, or None."""
        return self._exported.no_form

    @built
    def published(self) -> list[Problem] | str:
        """What ModelOpt's own export gets wrong in either tower, or why it exports nothing."""
        return self._exported.published()

    def problems_of(self, tower: str, dtype: torch.dtype) -> list[Problem]:
        """Return where a tower's graph differs from the case's quantizers."""
        if (tower, dtype) not in self.problems:
            self.problems[tower, dtype] = self._exported.problems(tower, dtype)
        return self.problems[tower, dtype]

    def parity(self, tower: str, *, optimize: bool = False) -> export.Parity:
        """Compare a tower's graph in ONNX Runtime with fake quantization in torch, which uses the
        runtime's codes.
        """
        if (tower, optimize) not in self.parities:
            self.parities[tower, optimize] = self._exported.parity(tower, optimize)
        return self.parities[tower, optimize]

    def look_at_libraries(self) -> None:
        """Measure what a report says of the libraries around a case's graphs: the towers that were
        compared, with the runtime's optimisations on, and ModelOpt's own export.
        """
        if not is_built(self, "no_form") or self.no_form:
            return
        for tower in dict.fromkeys(tower for tower, _ in self.parities):
            self.parity(tower, optimize=True)
        _ = self.published

    def engine(self, tower: str) -> engine.Measured:
        """A tower's float16 graph in TensorRT: its answers against fake quantization, its speed
        against FP16.
        """
        if tower not in self.engines:
            graph = self._exported.graph(tower, torch.float16)
            batch = dict(next(iter(self._shared.batches(torch.float16))))
            self.engines[tower] = engine.measure(
                graph, tower, self._quantized().model, self._shared.model, batch
            )
        return self.engines[tower]

    def answers_on(self, task: Task) -> export.Answers:
        """A classification task through both graphs and through torch."""
        if task.name not in self.answers:
            self.answers[task.name] = self._exported.answers(task)
        return self.answers[task.name]
