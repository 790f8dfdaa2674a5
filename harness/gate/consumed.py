"""What the consumers of a case's model read of it, before and after quantization."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from torch import Tensor

from harness.consumers import contracts, probes, tokens
from harness.consumers.probes import Probe
from harness.consumers.reading import Material, Reading
from harness.consumers.tokens import Moved
from harness.data.tasks import Outcomes
from harness.models import families
from harness.models.references import Reference
from harness.statistics import verdicts
from harness.statistics.verdicts import Budget, Decision, Verdict, VerdictFamily

#: Pictures with a map of their errors in a report.
_MAPS = 4
_FIX = (
    "quantize the layers before this hidden state less, or accept the loss with a reason in {place}"
)


class Consumed:
    """The tokens that each consumer reads of a case's model, reference against quantized.

    Args:
        reference: the FP16 model.
        of: the pictures and texts.
        before: the reference's tokens, by consumer and read.
        after: the quantized model's.
        budget: the budget of a consumer's metric.
    """

    def __init__(
        self,
        reference: Reference,
        of: Material,
        before: Mapping[Reading, Tensor],
        after: Mapping[Reading, Tensor],
        budget: Callable[[str, str], Budget],
    ) -> None:
        self._of = of
        consumers = tuple(dict.fromkeys(consumer for consumer, _ in before))
        self.probes: Sequence[Probe] = probes.of_model(reference.revision, consumers)
        self._budget = budget
        towers = families.of(reference.model).towers
        self._leading = {name: tower.leading for name, tower in towers.items()}
        #: How far the tokens of each read moved.
        self.all_moved: dict[Reading, Moved] = {
            key: tokens.compare(
                key,
                self._items(key),
                before[key],
                after[key],
                budget(*key).limits,
            )
            for key in before
        }
        #: The answers of each probe, of the reference and of the quantized model.
        self.outcomes: dict[tuple[str, str], tuple[Outcomes, Outcomes]] = {
            (probe.consumer, probe.metric): (
                probes.ask(probe, of, before[probe.consumer, probe.read]),
                probes.ask(probe, of, after[probe.consumer, probe.read]),
            )
            for probe in self.probes
        }

    def _items(self, key: Reading) -> tuple[str, ...]:
        tower = _read(key).tower
        return self._of.picture_ids if tower == "vision" else self._of.text_ids

    def moved(self, key: Reading) -> Moved:
        """How far the tokens of one read moved."""
        return self.all_moved[key]

    @cached_property
    def verdicts(self) -> Sequence[Verdict]:
        """The verdict on what each probe reads."""
        verdicts_of_probes = []
        for (consumer, metric), (before, after) in self.outcomes.items():
            budget = self._budget(consumer, metric)
            verdict = verdicts.compare(before, after, budget)
            if verdict.decision is Decision.FAIL:
                verdict = replace(verdict, fix=_FIX.format(place=budget.place))
            verdicts_of_probes.append(verdict)
        return verdicts_of_probes

    def family(self, recipe: str, model: str) -> VerdictFamily:
        """The verdicts joined over all probes."""
        return verdicts.family(list(self.verdicts), recipe=recipe, model=model)

    def beyond(self, consumer: str, metric: str) -> dict[str, float]:
        """The measures of the tokens that a probe reads, by name."""
        probe = next(p for p in self.probes if (p.consumer, p.metric) == (consumer, metric))
        moved = self.moved((consumer, probe.read))
        return {measurement.name: measurement.value for measurement in moved.measurements}

    @property
    def data_hash(self) -> str:
        """SHA-256 of what was read."""
        return self._of.hash

    def maps(self, key: Reading) -> list[dict[str, Any]]:
        """The pictures that moved most, with the error of each patch; nothing for texts."""
        read = _read(key)
        if read.tower != "vision" or read.tokens == "pooled":
            return []
        leading = 0 if read.tokens == "patches" else self._leading["vision"]
        maps_of_errors = []
        for name, errors in self.moved(key).worst[:_MAPS]:
            pixels = self._of.pixels[self._of.picture_ids.index(name)]
            maps_of_errors.append({"item": name, **tokens.error_map(pixels, errors[leading:])})
        return maps_of_errors


def _read(key: Reading) -> contracts.Read:
    consumer, name = key
    return next(read for read in contracts.of(consumer).reads if read.name == name)
