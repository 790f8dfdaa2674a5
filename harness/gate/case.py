"""A recipe on a model, with everything that a run derives from the two, each built once."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from harness import baselines
from harness.baselines import Comparison, Missing, Record, TaskRecord, carried
from harness.baselines.provenance import Provenance
from harness.consumers import contracts
from harness.data.calibration import CalibrationPairs
from harness.data.tasks import Task, TaskRun
from harness.evaluation import early, environment, throughput
from harness.evaluation.subjects import Quantization, Subject
from harness.gate.built import attempt, built
from harness.gate.consumed import Consumed
from harness.gate.graphs import Graphs
from harness.gate.listing import CaseName, short
from harness.gate.quantized import Quantized
from harness.gate.reference_side import ReferenceSide
from harness.gate.setting import Setting
from harness.lint import rules
from harness.models import families
from harness.models.references import Reference
from harness.problems import Problem
from harness.quantization import memory, packed, quantize, search
from harness.quantization.maps import QuantizerMap
from harness.quantization.observations import Observation
from harness.recipes import judged
from harness.recipes.loading import Recipe
from harness.statistics import distribution, sanity, verdicts
from harness.statistics.distribution import Measurement
from harness.statistics.speed import Ratio
from harness.statistics.verdicts import Verdict, VerdictFamily

#: Pairs in the one batch that calls are counted and numerics are compared on.
PROBED = 8


class Case:
    """A case of a run.  Of quantized models only the latest of the run stays in memory."""

    def __init__(self, setting: Setting, name: CaseName, shared: ReferenceSide) -> None:
        self.setting = setting
        self.name = name
        #: What all recipes on the model share.
        self.shared = shared
        self.graphs = Graphs(lambda: self.quantized, shared)
        #: What quantizing took, the last time.
        self.seconds: float | None = None
        #: Comparisons with the stored record: of the map (None, None), or of a task and metric.
        self.comparisons: dict[tuple[str | None, str | None], Comparison] = {}
        #: Expected differences between releases that the map's comparison met, with how often.
        self.expected_met: Mapping[str, int] = {}
        #: Speeds of quantized towers next to the reference's, as a benchmark measured them.
        self.speeds: dict[str, throughput.Speed] = {}
        self._reasons: dict[str, str | None] = {}
        self._measurements: dict[str, tuple[Measurement, ...]] = {}

    @property
    def id(self) -> str:
        """What test ids show: ``fp8-embedded``."""
        return self.name.id

    @property
    def recipe_name(self) -> str:
        """What the recipe is called in this run."""
        return self.name.recipe_name

    @property
    def model_name(self) -> str:
        """What the model is called in this run."""
        return self.name.model_name

    def __repr__(self) -> str:
        return f"<Case {self.id}>"

    # -- what it is made from ----------------------------------------------------------------------

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe, as it was written."""
        return self.setting.recipe(self.name.recipe)

    @property
    def reference(self) -> Reference:
        """The FP16 model."""
        return self.shared.reference

    @property
    def calibration(self) -> CalibrationPairs:
        """Image-text pairs prepared for the reference."""
        return self.shared.calibration

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks, prepared for the reference."""
        return self.shared.tasks

    def task(self, name: str) -> Task:
        """The task of that name."""
        return next(task for task in self.tasks if task.name == name)

    @cached_property
    def left_out(self) -> tuple[tuple[str, str], ...]:
        """(tower, kind of layer) pairs that the budgets file declares to stay unquantized under the
        recipe.
        """
        return self.setting.policy.left_out(self.recipe.name)

    def not_gated(self, *, structure: bool = False) -> str | None:
        """Why there is no verdict on the recipe on this device, or None; *structure* needs no
        device.
        """
        if structure and self.recipe.candidates:
            return "what a search chooses depends on weights and data"
        device = "cuda" if structure else self.setting.device.type
        if device not in self._reasons:
            self._reasons[device] = judged.not_gated(self.recipe, device, known=self._names)
        return self._reasons[device]

    @cached_property
    def _names(self) -> frozenset[str]:
        """Names of quantizers by which a recipe is for another family: those of every family that
        is known, and those of a model of none.
        """
        names = rules.families_here().names
        if not judged.foreign_patterns(self.recipe, names):
            return names
        return names.union(q.name for q in self.shared.places)

    # -- the quantized model -----------------------------------------------------------------------

    @property
    def quantized(self) -> Quantized:
        """The quantized, calibrated model; made again where another case's has taken its place.

        Raises:
            QuantizationError: ModelOpt refused the recipe, or the model does not run.
        """
        return self.setting.latest(self, self._quantize_once)

    def _quantize_once(self) -> Quantized:
        """Quantize and calibrate the reference; where that failed before, raise the same error."""
        quantized = attempt(self, "quantized", self._quantize)
        self.seconds = quantized.seconds
        return quantized

    def _quantize(self) -> Quantized:
        reference, recipe, _ = self.reference, self.recipe, self.calibration
        began = time.perf_counter()
        model, sample = self.calibrated(recipe)
        seconds = time.perf_counter() - began
        return Quantized(reference, search.chosen(model, recipe), model, sample, seconds)

    def calibrated(self, recipe: Recipe) -> tuple[nn.Module, dict[str, Tensor]]:
        """The reference quantized with *recipe* and calibrated, and inputs that it was shown to run
        on.

        Raises:
            QuantizationError: ModelOpt refused the recipe, or the model does not run.
        """
        batches = self.shared.batches()
        loop = quantize.forward_loop_over(batches)
        model = quantize.quantize(self.shared.model, recipe, loop, self.setting.options.attention)
        sample = {name: tensor[:PROBED] for name, tensor in next(iter(batches)).items()}
        with quantize.blamed_on(recipe), torch.no_grad():
            # The first forward after calibration: formats that need CUDA raise here, once, and not
            # in every check.
            families.forward(model, sample)
        return model, sample

    @built
    def map(self) -> QuantizerMap:
        """The quantizer map."""
        return self.quantized.map

    @built
    def observations(self) -> tuple[Observation, ...]:
        """Every enabled quantizer against the oracle."""
        return self.quantized.observations

    @built
    def compression(self) -> memory.Compression:
        """Bytes of the weights before and after ``mtq.compress``.

        Raises:
            NotCompressedError: ModelOpt packs no weight of one of the recipe's formats.
        """
        model = self.quantized.model
        return memory.compare(model, memory.compressed(model))

    @built
    def packed_weights(self) -> tuple[list[Problem], int]:
        """Problems of the weights in a block format that needs CUDA, and how many such weights
        there are.
        """
        return packed.problems(self.shared.model, self.recipe, self.setting.options.attention)

    def structure(self, architecture: str) -> QuantizerMap:
        """The map of the recipe on an architecture without weights."""
        return self.setting.structure(self.recipe, architecture)

    # -- accuracy ----------------------------------------------------------------------------------

    @property
    def subject(self) -> Subject:
        """The quantized model as a subject of evaluation; whoever holds it holds the model."""
        quantized = self.quantized
        return self.subject_of(quantized.recipe, quantized.model, quantized.folded)

    def subject_of(self, recipe: Recipe, model: nn.Module, folded: nn.Module) -> Subject:
        """*model*, which *recipe* made of the reference, and its *folded* copy as a subject of
        evaluation.
        """
        how = Quantization(recipe, self.setting.options.attention, self.calibration, model)
        return Subject(self.reference, folded, how)

    @property
    def reference_runs(self) -> dict[str, TaskRun]:
        """The reference on every task."""
        return self.shared.runs

    @built
    def quantized_runs(self) -> dict[str, TaskRun]:
        """The quantized model on every task."""
        return self.setting.evaluator.evaluate(self.subject, self.tasks)

    @built
    def stopped(self) -> dict[str, early.Stopped]:
        """What was evaluated of each task that may stop early; empty where that was not asked
        for.
        """
        if not self.setting.options.early_stop:
            return {}
        subject, stopped = self.subject, {}
        for task in filter(early.can_stop, self.tasks):
            (metric,) = task.metrics
            after = early.Evaluation(partial(self.setting.evaluator.embed, subject), task)
            budget = self.budget(task.name, metric)
            stopped[task.name] = early.judge(
                task, metric, budget, self.shared.in_blocks(task), after
            )
        return stopped

    @built
    def runs(self) -> tuple[dict[str, TaskRun], dict[str, TaskRun]]:
        """Reference and quantized model on every task, the same samples each: all, or those up to
        an early stop.
        """
        stopped = self.stopped
        if not stopped:
            return self.reference_runs, self.quantized_runs
        whole = tuple(task for task in self.tasks if task.name not in stopped)
        after = self.setting.evaluator.evaluate(self.subject, whole)
        before = self.shared.runs_without_stop | {
            name: evaluation.reference for name, evaluation in stopped.items()
        }
        return self.shared.sane(before), after | {
            name: evaluation.quantized for name, evaluation in stopped.items()
        }

    def budget(self, task: str, metric: str) -> verdicts.Budget:
        """The budget of a metric of a task under the recipe."""
        return self.setting.policy.budget(
            task, metric, recipe=self.recipe.name, model=short(self.name.model)
        )

    @built
    def verdicts(self) -> VerdictFamily:
        """The verdicts on every metric of every task, joined over the tasks."""
        known = {name: evaluation.verdict for name, evaluation in self.stopped.items()}
        judged = self.judged(*self.runs, known)
        return verdicts.family(judged, recipe=self.recipe_name, model=self.model_name)

    def judged(
        self,
        before: Mapping[str, TaskRun],
        after: Mapping[str, TaskRun],
        known: Mapping[str, Verdict] | None = None,
        alpha_share: float = 1.0,
    ) -> list[Verdict]:
        """A verdict for every metric of every task; *known* are those that there are already, by
        task. One of several tries on the same samples has its *alpha_share* of each alpha.
        """
        verdicts_of_all = []
        for guess in sanity.guesses(before):
            task, metric = guess.task, guess.metric
            if known is not None and task in known:
                verdict = known[task]
            else:
                budget = self.budget(task, metric)
                budget = replace(budget, alpha=alpha_share * budget.alpha)
                verdict = verdicts.compare(
                    before[task].outcomes[metric], after[task].outcomes[metric], budget
                )
            verdicts_of_all.append(sanity.doubted(verdict, guess) if guess.at_chance else verdict)
        return verdicts_of_all

    def verdict(self, task: str, metric: str) -> Verdict:
        """One metric's verdict, as it stands in the family."""
        return next(v for v in self.verdicts.verdicts if (v.task, v.metric) == (task, metric))

    def measurements(self, task: str) -> tuple[Measurement, ...]:
        """How far answers and embeddings of a task moved, each number next to its limit."""
        if task not in self._measurements:
            before, after = (runs[task] for runs in self.runs)
            budgets_of = {metric: self.budget(task, metric) for metric in before.outcomes}
            self._measurements[task] = distribution.distribution(before, after, budgets_of)
        return self._measurements[task]

    def beyond(self, task: str, metric: str) -> dict[str, float]:
        """Measures that accuracy does not show, by name; those of embeddings belong to every metric
        of the task.
        """
        return {m.name: m.value for m in self.measurements(task) if m.metric in ("", metric)}

    # -- what consumers read -----------------------------------------------------------------------

    @property
    def consumers(self) -> tuple[str, ...]:
        """The consumers whose contracts are gated."""
        return self.shared.consumers

    @built
    def read(self) -> Consumed:
        """What the consumers read of the reference and of the quantized model."""
        shared = self.shared
        after = shared.read(self.quantized.folded)
        return Consumed(self.reference, shared.material, shared.tokens, after, self.budget)

    @built
    def consumed(self) -> VerdictFamily:
        """The verdicts on what frozen probes read, joined over all of them."""
        return self.read.family(self.recipe_name, self.model_name)

    # -- baselines ---------------------------------------------------------------------------------

    @cached_property
    def provenance(self) -> Provenance:
        """What a record of this case is bound to."""
        setting, pairs = self.setting, self.calibration
        return Provenance(
            model=self.model_name,
            model_revision=self.reference.revision,
            recipe=self.recipe_name,
            recipe_hash=self.recipe.hash,
            calibration_hash=pairs.hash,
            calibration_size=pairs.n,
            attention=setting.options.attention,
            device=setting.device_key,
            bits=environment.bits_condition(setting.device, setting.batch_size),
        )

    def record(self, *, accuracy: bool = True, consumers: bool = False) -> Record:
        """What this run measured of the case, as the store keeps it; without tasks if *accuracy* is
        False, and with what probes read if *consumers* is True.
        """
        records = tuple(map(self._task_record, self.verdicts.verdicts)) if accuracy else ()
        if consumers:
            records += tuple(map(self._probe_record, self.consumed.verdicts))
        return Record(
            self.provenance, quantizers=tuple(q.as_dict() for q in self.map), tasks=records
        )

    def _task_record(self, verdict: Verdict) -> TaskRecord:
        task, metric = verdict.task, verdict.metric
        beyond = self.beyond(task, metric)
        return TaskRecord.of(
            self.reference_runs[task].outcomes[metric],
            self.quantized_runs[task].outcomes[metric],
            data_hash=self.task(task).data_hash,
            preprocessing=self.shared.preprocessing,
            decision=verdict.decision.value,
            interval=verdict.interval,
            budget=verdict.budget.points,
            beyond={name: value for name, value in beyond.items() if math.isfinite(value)},
        )

    def _probe_record(self, verdict: Verdict) -> TaskRecord:
        consumer, metric = verdict.task, verdict.metric
        beyond = self.read.beyond(consumer, metric)
        return TaskRecord.of(
            *self.read.outcomes[consumer, metric],
            data_hash=self.read.data_hash,
            preprocessing=self.shared.preprocessing,
            decision=verdict.decision.value,
            interval=verdict.interval,
            budget=verdict.budget.points,
            beyond={name: value for name, value in beyond.items() if math.isfinite(value)},
        )

    @property
    def stored(self) -> Record | Missing:
        """The record of the case that is nearest to this device."""
        return self._stored(None)

    def _stored(self, holding: tuple[str, str] | None) -> Record | Missing:
        """The nearest record, of those that hold a task and metric if there are any."""
        key = self.setting.device_key
        return self.setting.store.find(self.model_name, self.recipe_name, key, holding)

    def drift(self, task: str | None = None, metric: str | None = None) -> Comparison:
        """The case against its stored record: the quantizer map alone, or one metric of one task
        with it.
        """
        if (task, metric) not in self.comparisons:
            self.comparisons[task, metric] = self._compare(task, metric)
        return self.comparisons[task, metric]

    def _compare(self, task: str | None, metric: str | None) -> Comparison:
        consumers = task in contracts.CONTRACTS
        accuracy = task is not None and not consumers
        holding = (task, metric) if task is not None and metric is not None else None
        fresh = self.record(accuracy=accuracy, consumers=consumers)
        stored = self._stored(holding)
        if isinstance(stored, Missing):
            return stored
        if task is not None:
            return baselines.compare(stored, fresh.only(task, metric))
        result = carried.carry(stored, fresh, self.setting.expected)
        self.expected_met = result.met
        return result.unexpected or baselines.compare(result.record, fresh)

    @property
    def to_store(self) -> Record | None:
        """What this run measured of the case, as far as it was compared with the store; None where
        it was not.
        """
        if not self.comparisons:
            return None
        tasks = {task for task, _ in self.comparisons if task is not None}
        read = tasks & set(contracts.CONTRACTS)
        record = self.record(accuracy=tasks > read, consumers=bool(read))
        ratios = {tower: speed.ratio for tower, speed in self.speeds.items()}
        return replace(record, throughput=ratios or None)

    # -- throughput --------------------------------------------------------------------------------

    def stored_ratio(self, tower: str) -> Ratio | None:
        """The baseline's ratio of a tower, if it was measured on this device: on another it is
        another number.
        """
        record = self.stored
        if isinstance(record, Missing) or record.provenance.device != self.setting.device_key:
            return None
        return (record.throughput or {}).get(tower)

    def facts(self) -> dict[str, Any]:
        """What a time belongs to."""
        return {
            "recipe": self.recipe_name,
            "model": self.model_name,
            "device": str(self.setting.device_key),
            "dtype": str(self.reference.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
        }
