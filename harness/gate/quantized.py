"""A quantized model in memory."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from torch import Tensor, nn

from harness import export
from harness.models import families
from harness.models.references import Reference
from harness.quantization import maps, observations, quantize
from harness.quantization.maps import QuantizerMap
from harness.quantization.observations import Observation
from harness.recipes.loading import Recipe


class Quantized:
    """A quantized model with its map, and what is derived from both once."""

    def __init__(
        self,
        reference: Reference,
        recipe: Recipe,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        seconds: float = 0.0,
    ) -> None:
        self.reference = reference
        #: What was applied: of a search, what it chose.
        self.recipe = recipe
        self.model = model
        #: One batch of real pictures and words, which the map's calls and the numerics are taken
        #: from.
        self.inputs = inputs
        #: What quantizing and calibrating took.
        self.seconds = seconds

    @cached_property
    def map(self) -> QuantizerMap:
        """The quantizer map, calls counted in one forward of every tower."""
        return maps.quantizer_map(self.model, self._forward)

    @cached_property
    def observations(self) -> tuple[Observation, ...]:
        """Every enabled quantizer against the oracle, on the tensors of one forward."""
        return observations.observe(self.model, self._forward)

    @cached_property
    def folded(self) -> nn.Module:
        """A copy whose weights are quantized once and for all: the same bits, without the work on
        every forward.
        """
        return quantize.fold(self.model)

    @cached_property
    def exported(self) -> export.Exports:
        """The model as ONNX graphs, with what they compute."""
        return export.Exports(self.model, self.inputs)

    def _forward(self, model: nn.Module) -> object:
        return families.forward(model, self.inputs)
