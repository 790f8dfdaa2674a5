"""What all recipes on one model share: the FP16 model, its data, and how it answers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from harness import digests
from harness.consumers import reading
from harness.consumers.reading import Material, Reading
from harness.data import calibration, inputs, tasks
from harness.data.calibration import Batches, CalibrationPairs
from harness.data.tasks import Task, TaskRun
from harness.evaluation import early, throughput
from harness.evaluation.subjects import Subject
from harness.gate.built import built, is_built
from harness.gate.setting import Setting
from harness.models import architectures, families, references
from harness.models.references import Reference
from harness.quantization import fit, maps, quantize
from harness.quantization.magnitudes import Magnitudes
from harness.quantization.maps import QuantizerMap
from harness.statistics import published, sanity


@dataclass(frozen=True)
class Prepared:
    """What a run takes over of one model from another run with the same options, instead of
    building it.
    """

    reference: Reference | None = None
    calibration: CalibrationPairs | None = None
    tasks: tuple[Task, ...] | None = None
    runs: dict[str, TaskRun] | None = None
    places: QuantizerMap | None = None
    material: Material | None = None


class ReferenceSide:
    """A reference and what is derived from it, each built once."""

    def __init__(self, setting: Setting, source: str, prepared: Prepared) -> None:
        self.setting = setting
        #: The model as the person named it.
        self.source = source
        self._early: dict[str, early.Evaluation] = {}
        vars(self).update(
            {name: value for name, value in vars(prepared).items() if value is not None}
        )

    def prepared(self, names: Collection[str]) -> Prepared:
        """What has been built so far of *names*, for another run to take over."""
        known = {field.name for field in fields(Prepared)}
        return Prepared(
            **{name: vars(self)[name] for name in known & set(names) if is_built(self, name)}
        )

    @built
    def reference(self) -> Reference:
        """The FP16 model."""
        return references.load(self.source, self.setting.device)

    @property
    def model(self) -> nn.Module:
        """The FP16 model's module."""
        module: nn.Module = self.reference.model
        return module

    def lacks(self, *, tower: str | None = None, accuracy: bool = False) -> str | None:
        """Reason to skip a *tower*, or any task's *accuracy*, for this model; None where it has
        them.
        """
        reference = self.reference
        if tower is not None and tower not in families.of(reference.model).towers:
            return f"{reference.name} has no {tower} tower"
        if accuracy and reference.whole is None and len(families.of(reference.model).towers) == 1:
            return (
                f"{reference.name} is a single tower: give the checkpoint that it belongs to as "
                f"DIR+CLASS"
            )
        return None

    @property
    def preprocessing(self) -> str:
        """SHA-256 over the image processor's settings."""
        return digests.of_json(self.reference.image_processor.to_dict())

    # -- calibration -------------------------------------------------------------------------------

    @built
    def calibration(self) -> CalibrationPairs:
        """Image-text pairs prepared for the reference."""
        options = self.setting.options
        return calibration.load(options.calibration_data, self.reference, options.calibration_size)

    def batches(self, dtype: torch.dtype | None = None) -> Batches:
        """The calibration pairs as inputs of the reference, or in another *dtype*.

        A smaller batch size than the device's usual one is taken; a larger one is for the
        evaluation alone.
        """
        device = self.setting.device
        size = min(self.setting.batch_size, inputs.default_batch_size(device))
        return self.calibration.batches(
            device, dtype or self.reference.dtype, size, self.setting.options.progress
        )

    def tower_forward(self, model: nn.Module, tower: str) -> throughput.Forward:
        """A forward of one tower of *model* on a batch of the calibration data."""
        return throughput.forward_of(model, tower, next(iter(self.batches())))

    @built
    def magnitudes(self) -> Magnitudes:
        """The largest magnitudes of the calibration data at every place of the reference: one pass
        for all recipes.
        """
        return Magnitudes(
            quantize.insert(self.model, self.setting.options.attention), self.batches()
        )

    # -- places for quantizers ---------------------------------------------------------------------

    @built
    def places(self) -> QuantizerMap:
        """Every quantizer that ModelOpt has a place for in the model, all off: what patterns can
        match.
        """
        return maps.quantizer_map(quantize.insert(self.model, self.setting.options.attention))

    @built
    def beyond_places(self) -> dict[str, Any]:
        """What a pattern may mean although the model has no quantizer there: hidden or absent
        blocks, another tower.
        """
        family = families.of(self.model)
        elsewhere: QuantizerMap = ()
        if len(family.towers) == 1:
            whole = quantize.insert(architectures.build("embedded"), self.setting.options.attention)
            elsewhere = tuple(q for q in maps.quantizer_map(whole) if q.tower not in family.towers)
        return {
            "hidden": families.hidden_in(self.model),
            "elsewhere": elsewhere,
            "absent": family.absent,
        }

    @built
    def survey(self) -> fit.Survey:
        """The tensors that recipes quantize, by which a recipe is refused before it is tried."""
        return fit.survey(self.model, self.setting.options.attention)

    # -- what consumers read ----------------------------------------------------------------------

    @cached_property
    def consumers(self) -> tuple[str, ...]:
        """The consumers whose contracts are gated on the model."""
        chosen = self.setting.options.consumers
        return reading.names_of(families.of(self.model), self.source, chosen)

    @built
    def material(self) -> Material:
        """The pictures and texts that consumers read."""
        options = self.setting.options
        # The embedded data are read wherever nothing else was named: probes know them.
        named = [task for task in options.tasks or () if task not in tasks.EMBEDDED_TASKS]
        task = named[0] if named else None
        return reading.material(self.reference, task, options.data_root)

    @built
    def tokens(self) -> dict[Reading, Tensor]:
        """What each consumer reads of the reference."""
        return self.read(self.model)

    def read(self, model: nn.Module) -> dict[Reading, Tensor]:
        """What each consumer reads of *model*."""
        size = min(self.setting.batch_size, inputs.default_batch_size(self.setting.device))
        return reading.read_all(model, self.material, self.consumers, size)

    # -- answers -----------------------------------------------------------------------------------

    @built
    def tasks(self) -> tuple[Task, ...]:
        """The tasks, prepared for the reference: pictures resized and prompts tokenized once."""
        options = self.setting.options
        return tasks.load_tasks(options.tasks, options.data_root, self.reference)

    @cached_property
    def subject(self) -> Subject:
        """The reference as a subject of evaluation."""
        return Subject(self.reference, self.model)

    @built
    def runs(self) -> dict[str, TaskRun]:
        """The reference on every task.

        Raises:
            UsageError: it gives embeddings that are not finite, or answers as one that guesses.
        """
        return self.sane(self.setting.evaluator.evaluate(self.subject, self.tasks))

    def sane(self, runs: Mapping[str, TaskRun]) -> dict[str, TaskRun]:
        """Return *runs* of the reference; raise a usage error if nothing can be compared with
        them.
        """
        sanity.check(self.source, runs, _called(self.reference.dtype))
        return dict(runs)

    @built
    def published_problems(self) -> list[str] | None:
        """What disagrees with published results, a sentence each; None where there are none."""
        outcomes = {
            (name, metric): outcomes
            for name, run in self.runs.items()
            for metric, outcomes in run.outcomes.items()
        }
        return published.problems(
            self.reference, {task.name: task for task in self.tasks}, outcomes
        )

    def in_blocks(self, task: Task) -> early.Evaluation:
        """The reference on *task*, as far as early stops need it."""
        if task.name not in self._early:
            self._early[task.name] = early.Evaluation(
                partial(self.setting.evaluator.embed, self.subject), task
            )
        return self._early[task.name]

    @built
    def runs_without_stop(self) -> dict[str, TaskRun]:
        """The reference on the tasks that cannot stop early."""
        whole = tuple(task for task in self.tasks if not early.can_stop(task))
        return self.setting.evaluator.evaluate(self.subject, whole)


def _called(dtype: torch.dtype) -> str:
    """Return the usual name of a floating-point type: ``FP16``."""
    return str(dtype).removeprefix("torch.").replace("bfloat", "BF").replace("float", "FP")
