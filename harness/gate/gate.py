"""One run of the gate: each reference, task and quantized model is built once and shared by every suite.

Nothing here knows pytest.  A notebook does what the suites do::

    from harness.gate.gate import Gate, Options
    gate = Gate(Options(recipes=("fp8",)))
    case = gate.cases()[0]
    print(gate.map(case))
    print(gate.verdicts(case))
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness import baselines, digests, errors, export
from harness.baselines import Comparison, Missing, Record, Store, TaskRecord, carried, differences
from harness.baselines.provenance import Provenance
from harness.data import calibration, inputs, samples, tasks
from harness.data.calibration import Batches, CalibrationPairs
from harness.data.tasks import Task, TaskRun
from harness.errors import UsageError
from harness.evaluation import early, environment, evaluators, throughput
from harness.evaluation.subjects import Evaluator, Quantization, Subject
from harness.formats import deviations
from harness.gate.results import Results
from harness.models import architectures, families, outliers, references
from harness.models.references import Reference
from harness.places import BASELINES as BASELINES
from harness.quantization import fit, maps, memory, observations, quantize, search
from harness.quantization.magnitudes import Magnitudes
from harness.quantization.maps import QuantizerMap
from harness.quantization.observations import Observation
from harness.recipes import finding, judged, loading, names
from harness.recipes.loading import Recipe
from harness.statistics import budgets, distribution, sanity, verdicts
from harness.statistics.distribution import Measurement
from harness.statistics.speed import Ratio, moved
from harness.statistics.verdicts import Family, Verdict

#: Pairs in the one batch that calls are counted and numerics are compared on.
PROBED = 8


@dataclass(frozen=True)
class Options:
    """What a person can choose; the names are those of the command line."""

    recipes: tuple[str, ...] = finding.DEFAULT
    recipes_root: Path | None = None
    clip_models: tuple[str, ...] = ("embedded",)
    tasks: tuple[str, ...] | None = None
    data_root: Path | None = None
    calibration_data: Path | None = None
    calibration_size: int = 8192
    batch_size: int | None = None
    device: str = "auto"
    attention: str = "diffusers"
    early_stop: bool = False
    cluster: str | None = None
    report: bool = False
    baselines: Path = BASELINES
    progress: bool = False

    def __post_init__(self) -> None:
        if self.recipes == finding.DEFAULT and self.recipes_root is not None:
            # The default recipes are this package's, whatever files of their names the tree holds.
            own = tuple(finding.own_reference(name, self.recipes_root) for name in self.recipes)
            object.__setattr__(self, "recipes", own)

    @property
    def is_default(self) -> bool:
        """Whether this is what a plain run gates: all default recipes on the default models and tasks."""
        plain = Options()
        return (self.recipes, self.clip_models, self.tasks) == (plain.recipes, plain.clip_models, plain.tasks)


@dataclass(frozen=True)
class Case:
    """A recipe on a model (or, for structure alone, on an architecture), both as the person named them.

    ``recipe_name`` and ``model_name`` are what they are called in this run (:mod:`harness.recipes.names`): no other
    recipe or model of it is.
    """

    recipe: str
    model: str
    recipe_name: str = field(default="", compare=False)
    model_name: str = field(default="", compare=False)
    joint: str = field(default="-", compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.recipe_name:
            object.__setattr__(self, "recipe_name", short_recipe(self.recipe))
        if not self.model_name:
            object.__setattr__(self, "model_name", short(self.model))

    @property
    def id(self) -> str:
        """What test ids show: ``fp8-embedded``."""
        return f"{names.plain(self.recipe_name)}{self.joint}{names.plain(self.model_name)}"


def short(ref: str) -> str:
    """The readable end of a model's name where it is the only one of the run."""
    return names.of_model(ref)


def short_recipe(ref: str) -> str:
    """A recipe's name as ``loading.load`` will give it, without loading it."""
    if ref.endswith((".yaml", ".yml")):
        return Path(ref).stem
    module, colon, attribute = ref.partition(":")
    return attribute if colon and module else ref.strip("/").replace("/", ".")


def cases_of(options: Options) -> list[Case]:
    """Every recipe on every model, each once, under names and test ids of its own.

    Raises:
        UsageError: a recipe is not there, or a name cannot be shown.
    """
    return _cases(options, names.of_models(options.clip_models))


def structures_of(options: Options) -> list[Case]:
    """Every recipe on every published architecture of the models' families."""
    families_of = [references.family_of(ref) for ref in options.clip_models]
    known = [name for family in dict.fromkeys(families_of) for name in architectures.of_family(family)]
    return _cases(options, {name: name for name in known})


def _cases(options: Options, models_named: Mapping[str, str]) -> list[Case]:
    recipes_named = names.of_recipes(options.recipes, options.recipes_root)
    found = [Case(r, m, recipes_named[r], models_named[m]) for m in models_named for r in recipes_named]
    counts = Counter(case.id for case in found)
    # "a-b" on "c" and "a" on "b-c" would have one id; no recipe's name has an @.
    return [case if counts[case.id] == 1 else replace(case, joint="@") for case in found]


def to_train(options: Options) -> list[Case]:
    """The cases that are fine-tuned: those of the options, or one whose recipe fails on the stressed model."""
    if options.is_default:
        return [Case("int8", "embedded+outliers")]
    return cases_of(options)


def metrics_of(options: Options) -> list[tuple[str, str]]:
    """(task, metric) pairs that the chosen tasks have, known from their layout alone.

    Raises:
        UsageError: a task is unknown or its data are not there.
    """
    known = options.tasks or tasks.EMBEDDED_TASKS
    return [(name, metric) for name in known for metric in tasks.metrics_of(samples.kind_of(name, options.data_root))]


def metric_ids(metrics: Sequence[tuple[str, str]]) -> list[str]:
    """What test ids show of each (task, metric) pair: ``emoji/acc1``."""
    shown = names.of_tasks(task for task, _ in metrics)
    return [f"{shown[task]}/{metric}" for task, metric in metrics]


#: Options that belong into a command which repeats a case.
_REPEATED = (
    *("recipes_root", "tasks", "data_root", "calibration_data", "calibration_size", "batch_size"),
    *("device", "attention", "baselines"),
)


def words_of(options: Options, case: Case | None = None) -> list[str]:
    """The words of a command line that gates *case* again, or all that *options* ask for."""
    plain = Options()
    recipes_given, models_given = options.recipes, options.clip_models
    if case is not None:
        alone = names.of_recipes([case.recipe], options.recipes_root), names.of_models([case.model])
        named = (alone[0][case.recipe], alone[1][case.model], "-")
        # Beside others of their names they have longer ones; alone they would be called something else.
        if named == (case.recipe_name, case.model_name, case.joint):
            recipes_given, models_given = (case.recipe,), (case.model,)
    if case is None and recipes_given == plain.recipes:
        recipes_given = ()
    words = [word for recipe in recipes_given for word in _option("recipe", recipe)]
    if models_given != plain.clip_models:
        words += [word for model in models_given for word in _option("clip-model", model)]
    for name in _REPEATED:
        value = getattr(options, name)
        if value and value != getattr(plain, name):
            words += _option(name.replace("_", "-"), ",".join(value) if isinstance(value, tuple) else str(value))
    return words


def _option(name: str, value: str) -> list[str]:
    """An option and its value, in one word where the value would be read as another option."""
    return [f"--{name}={value}"] if value.startswith("-") else [f"--{name}", value]


def _called(dtype: torch.dtype) -> str:
    """What people call a floating-point type: ``FP16``."""
    return str(dtype).removeprefix("torch.").replace("bfloat", "BF").replace("float", "FP")


class Quantized:
    """A quantized model with its map, and what is derived from both once."""

    def __init__(self, reference: Reference, recipe: Recipe, model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
        self.reference = reference
        self.recipe = recipe
        self.model = model
        #: One batch of real pictures and words, which the map's calls and the numerics are taken from.
        self.inputs = inputs

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
        """A copy whose weights are quantized once and for all: the same bits, without the work on every forward."""
        return quantize.fold(self.model)

    @cached_property
    def exported(self) -> export.Exports:
        """The model as ONNX graphs, with what they compute."""
        return export.Exports(self.model, self.inputs)

    def _forward(self, model: nn.Module) -> object:
        return families.forward(model, self.inputs)


class Gate:
    """Builds what the suites ask for, each once; of quantized models only the latest stays in memory."""

    def __init__(self, options: Options, results: Results | None = None, evaluator: Evaluator | None = None) -> None:
        self.options = options
        self.results = results or Results()
        self.device = references.resolve_device(options.device)
        self.evaluator = evaluator or evaluators.evaluator(
            self.device,
            options.batch_size,
            cluster=options.cluster,
            data_root=options.data_root,
            progress=options.progress,
        )
        self.results.environment.update(
            versions=environment.versions(),
            device=str(self.device_key),
            attention=options.attention,
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        self.store = Store(options.baselines, self._command_options)
        self._kept: dict[tuple[str, ...], Any] = {}
        #: What building something raised, by its key: it is not tried again.
        self._failed: dict[tuple[str, ...], Exception] = {}
        self._latest: tuple[Case, Quantized] | None = None
        #: Records measured in this run, by case.
        self.pending: dict[Case, Record] = {}
        self._speeds: dict[Case, dict[str, Ratio]] = {}

    def _once(self, make: Callable[[], Any], *key: str) -> Any:
        if key not in self._kept:
            self._kept[key] = self._attempt(make, *key)
        return self._kept[key]

    def _attempt(self, make: Callable[[], Any], *key: str) -> Any:
        """What *make* returns; where it raised before under this key, the same error without another attempt."""
        if key in self._failed:
            raise self._failed[key]
        try:
            return make()
        except UsageError:
            raise
        except Exception as error:
            self._failed[key] = error
            raise

    def share(self, other: Gate, kinds: Iterable[str]) -> None:
        """Take over what *other* has built of *kinds*: reference, tasks, runs (the reference's), calibration, places.

        Both must gate the same models with the same options as far as these are concerned.
        """
        wanted = set(kinds) & {"reference", "tasks", "runs", "calibration", "places"}
        for key, value in other._kept.items():
            if key[0] in wanted and len(key) == 2:
                self._kept[key] = value

    @property
    def batch_size(self) -> int:
        """Rows a forward: the option's, or what the device likes."""
        return self.options.batch_size or inputs.default_batch_size(self.device)

    @cached_property
    def device_key(self) -> environment.DeviceKey:
        """What records of this device are stored under."""
        return environment.DeviceKey.of(self.device)

    def _command_options(self, model: str, recipe: str) -> list[str]:
        """The options of a command that gates the case of these names again."""
        named = {(case.model_name, case.recipe_name): case for case in self.cases()}
        return words_of(self.options, named.get((model, recipe)))

    # -- what is gated ------------------------------------------------------------------------------------------

    def cases(self) -> list[Case]:
        """Every recipe on every model."""
        return cases_of(self.options)

    def recipe(self, case: Case) -> Recipe:
        """The case's recipe, loaded once."""
        found: Recipe = self._once(lambda: loading.load(case.recipe, self.options.recipes_root), "recipe", case.recipe)
        return found

    def not_gated(self, case: Case, *, structure: bool = False) -> str | None:
        """Why there is no verdict on the case's recipe on this device, or None; *structure* needs no device."""
        recipe = self.recipe(case)
        if structure and recipe.candidates:
            return "what a search chooses hangs on weights and data"
        return judged.not_gated(recipe, "cuda" if structure else self.device.type)

    def lacks(self, case: Case, *, tower: str | None = None, accuracy: bool = False) -> str | None:
        """Why the case's model has nothing to show in a *tower*, or in any task's *accuracy*; None where it has."""
        reference = self.reference(case)
        if tower is not None and tower not in families.of(reference.model).towers:
            return f"{reference.name} has no {tower} tower"
        if accuracy and reference.whole is None and len(families.of(reference.model).towers) == 1:
            return f"{reference.name} is a single tower: give the checkpoint that it belongs to as DIR+CLASS"
        return None

    def reference(self, case: Case) -> Reference:
        """The case's FP16 model, loaded once."""
        found: Reference = self._once(lambda: references.load(case.model, self.device), "reference", case.model)
        return found

    @cached_property
    def policy(self) -> budgets.Policy:
        """Budgets and declared expectations."""
        return budgets.load(self.options.baselines / "budgets.yaml")

    def left_out(self, case: Case) -> tuple[tuple[str, str], ...]:
        """(tower, kind of layer) pairs that the budgets file declares to stay unquantized under the case's recipe."""
        return self.policy.left_out(self.recipe(case).name)

    # -- quantizing ---------------------------------------------------------------------------------------------

    def calibration(self, case: Case) -> CalibrationPairs:
        """Image-text pairs prepared for the case's reference."""
        options = self.options

        def load() -> CalibrationPairs:
            return calibration.load(options.calibration_data, self.reference(case), options.calibration_size)

        found: CalibrationPairs = self._once(load, "calibration", case.model)
        return found

    def calibration_batches(self, case: Case, dtype: torch.dtype | None = None) -> Batches:
        """The case's calibration pairs as inputs of its reference, or in another *dtype*.

        A smaller batch size than the device's usual one is taken; a larger one is for the evaluation alone.
        """
        pairs, options = self.calibration(case), self.options
        size = min(self.batch_size, inputs.default_batch_size(self.device))
        return pairs.batches(self.device, dtype or self.reference(case).dtype, size, options.progress)

    def quantized(self, case: Case) -> Quantized:
        """The case's quantized, calibrated model.

        Raises:
            QuantizationError: ModelOpt refused the recipe, or the model does not run.
        """
        if self._latest is None or self._latest[0] != case:
            self._latest = None
            for failed in self._failed.values():
                errors.forget_frames(failed)  # they hold the models of cases that came before
            made = self._attempt(partial(self._quantize, case), "quantized", case.model, case.recipe)
            self._latest = case, made
        return self._latest[1]

    def _quantize(self, case: Case) -> Quantized:
        reference, recipe, pairs = self.reference(case), self.recipe(case), self.calibration(case)
        began = time.perf_counter()
        model, sample = self.calibrated(case, recipe)
        seconds = time.perf_counter() - began
        made = Quantized(reference, search.chosen(model, recipe), model, sample)
        self.section(case, "quantize").update(seconds=round(seconds, 3), calibration_size=pairs.n)
        return made

    def calibrated(self, case: Case, recipe: Recipe) -> tuple[nn.Module, dict[str, Tensor]]:
        """The case's model quantized with *recipe* and calibrated, and inputs that it was shown to run on.

        Raises:
            QuantizationError: ModelOpt refused the recipe, or the model does not run.
        """
        batches = self.calibration_batches(case)
        loop = quantize.forward_loop_over(batches)
        model = quantize.quantize(self.reference(case).model, recipe, loop, self.options.attention)
        sample = {name: tensor[:PROBED] for name, tensor in next(iter(batches)).items()}
        with quantize.blamed_on(recipe), torch.no_grad():
            # The first forward after calibration: formats that need CUDA raise here, once, and not in every check.
            families.forward(model, sample)
        return model, sample

    def preflight(self, *, accuracy: bool, decode: bool = False) -> None:
        """Look at all that was given before anything is computed: recipes, models, data, budgets, baselines.

        With *decode* the pictures that this process will need are decoded now, and kept: one that cannot be is found
        before a model is quantized.

        Raises:
            UsageError: something cannot be used.
        """
        for case in self.cases():
            with errors.reading(f"--recipe {case.recipe}"):
                self.recipe(case)
        with errors.reading(self.options.baselines):
            policy = self.policy
            differences.load(self.options.baselines)
            policy.check_names(
                [self.recipe(case).name for case in self.cases()] + [*finding.DEFAULT, *finding.MORE],
                tasks.EMBEDDED_TASKS,
            )
            # Records first: reading them costs nothing, and a damaged one makes the rest pointless.
            records = {case: self._stored(case) for case in self.cases()}
        for case in records:
            with errors.reading(f"--clip-model {case.model}"):
                self.reference(case)
        if accuracy:
            with errors.reading(f"--data-root {self.options.data_root}"):
                errors.raise_all(self._budget_refusals(records))
        for case in records:
            self._check_fit(case)
        for case in records:
            with errors.reading(f"--calibration-data {self.options.calibration_data}"):
                self.calibration(case)
            if accuracy and not self.lacks(case, accuracy=True):
                with errors.reading(f"--data-root {self.options.data_root}"):
                    self.tasks(case)
        if accuracy:
            self.evaluator.ready()
        if decode:
            self._decode(accuracy)

    def _check_fit(self, case: Case) -> None:
        """Refuse a recipe that ModelOpt cannot apply to the tensors of the case's model, before it tries."""
        if self.not_gated(case) is not None:
            return
        reference, attention = self.reference(case), self.options.attention
        seen: fit.Survey = self._once(lambda: fit.survey(reference.model, attention), "survey", case.model)
        fit.check(self.recipe(case), seen, attention)
        fit.check_weights(self.recipe(case), seen, reference.model, case.model)

    def _decode(self, accuracy: bool) -> None:
        """Decode what every case will need; tasks only where this process takes each of them whole."""
        whole = accuracy and not self.options.early_stop and self.options.cluster is None
        for case in self.cases():
            self.calibration(case).decode()
            for task in self.tasks(case) if whole and not self.lacks(case, accuracy=True) else ():
                task.decode()

    def _budget_refusals(self, records: Mapping[Case, Record | Missing]) -> list[UsageError]:
        """Every budget that its task's samples cannot resolve, from the counts alone: no picture is read."""
        counts = tasks.sample_counts(self.options.tasks, self.options.data_root)
        refused: list[UsageError] = []
        plans: dict[str, dict[str, budgets.Plan]] = {}
        for (task, metric), n in counts.items():
            for case, record in records.items():
                budget = self.budget(case, task, metric)
                kept = None if isinstance(record, Missing) else record.task(task, metric)
                observed = None if kept is None else verdicts.Observed(kept.lost, kept.won, kept.count)
                if verdicts.judgeable(budget, n, observed) or self.lacks(case, accuracy=True):
                    continue
                if budget.place != self.policy.place("defaults"):
                    try:
                        verdicts.resolvable(budget, n, task=f"{task} ({metric})")
                    except UsageError as error:
                        refused.append(error)
                    continue
                mean = n / counts[task, tasks.TEXT_RECALL] if metric == tasks.IMAGE_RECALL else 1.0
                known = plans.setdefault(task, {})
                others = known[metric].budgets if metric in known else ()
                # Captions of one picture move together: half of what they would if they were one sample.
                known[metric] = budgets.Plan(task, metric, n, (1 + mean) / 2, (*others, budget))
        return refused + [budgets.no_entry(self.policy, task, list(found.values())) for task, found in plans.items()]

    def map(self, case: Case) -> QuantizerMap:
        """The quantizer map of the case."""

        def take() -> QuantizerMap:
            found = self.quantized(case).map
            self.section(case, "insertion")["map"] = [q.as_dict() for q in found]
            return found

        made: QuantizerMap = self._once(take, "map", case.model, case.recipe)
        return made

    def observations(self, case: Case) -> tuple[Observation, ...]:
        """Every enabled quantizer of the case against the oracle."""

        def take() -> tuple[Observation, ...]:
            found = self.quantized(case).observations
            self.section(case, "numerics")["observations"] = [o.as_dict() for o in found]
            return found

        made: tuple[Observation, ...] = self._once(take, "observations", case.model, case.recipe)
        return made

    def magnitudes(self, case: Case) -> Magnitudes:
        """What the calibration data give at every place of the case's reference: one pass for all recipes."""

        def prepare() -> Magnitudes:
            inserted = quantize.insert(self.reference(case).model, self.options.attention)
            return Magnitudes(inserted, self.calibration_batches(case))

        found: Magnitudes = self._once(prepare, "magnitudes", case.model)
        return found

    def places(self, case: Case) -> QuantizerMap:
        """Every quantizer that ModelOpt has a place for in the case's model, all off: what patterns can match."""

        def insert() -> QuantizerMap:
            return maps.quantizer_map(quantize.insert(self.reference(case).model, self.options.attention))

        found: QuantizerMap = self._once(insert, "places", case.model)
        return found

    def beyond_places(self, case: Case) -> dict[str, Any]:
        """What a pattern may mean though the model has no quantizer there: hidden or absent blocks, another tower."""

        def find() -> dict[str, Any]:
            model = self.reference(case).model
            family = families.of(model)
            towers = family.towers
            found: QuantizerMap = ()
            if len(towers) == 1:
                whole = quantize.insert(architectures.build("embedded"), self.options.attention)
                found = tuple(q for q in maps.quantizer_map(whole) if q.tower not in towers)
            return {"hidden": families.hidden_in(model), "elsewhere": found, "absent": family.absent}

        found: dict[str, Any] = self._once(find, "beyond places", case.model)
        return found

    def structure(self, case: Case, architecture: str) -> QuantizerMap:
        """The map of the case's recipe on an architecture without weights."""
        blank = self.blank(architecture)

        def build() -> QuantizerMap:
            made = quantize.structure(blank, self.recipe(case), self.options.attention)
            return maps.quantizer_map(made)

        # Two architectures that differ in sizes alone have the same places for the same quantizers.
        found: QuantizerMap = self._once(build, "structure", case.recipe, maps.outline(blank))
        return found

    def blank(self, architecture: str) -> nn.Module:
        """An architecture on the meta device."""
        found: nn.Module = self._once(lambda: architectures.build(architecture), "architecture", architecture)
        return found

    # -- accuracy -----------------------------------------------------------------------------------------------

    def tasks(self, case: Case) -> tuple[Task, ...]:
        """The tasks, prepared for the case's reference: pictures resized and prompts tokenized once."""
        found: tuple[Task, ...] = self._once(
            lambda: tasks.load_tasks(self.options.tasks, self.options.data_root, self.reference(case)),
            "tasks",
            case.model,
        )
        return found

    def reference_runs(self, case: Case) -> dict[str, TaskRun]:
        """The reference on every task, evaluated once a model.

        Raises:
            UsageError: it gives embeddings that are not finite, or answers as one that guesses.
        """

        def evaluate() -> dict[str, TaskRun]:
            return self._sane(case, self.evaluator.evaluate(self._reference(case), self.tasks(case)))

        found: dict[str, TaskRun] = self._once(evaluate, "runs", case.model)
        return found

    def _sane(self, case: Case, runs: dict[str, TaskRun]) -> dict[str, TaskRun]:
        """*runs* of the case's reference; a usage error where nothing can be compared with them."""
        sanity.check(case.model, runs, _called(self.reference(case).dtype))
        return runs

    def quantized_runs(self, case: Case) -> dict[str, TaskRun]:
        """The quantized model on every task, evaluated once a case."""
        found: dict[str, TaskRun] = self._once(
            lambda: self.evaluator.evaluate(self._subject(case), self.tasks(case)), "runs", case.model, case.recipe
        )
        return found

    def _reference(self, case: Case) -> Subject:
        """The case's reference as a subject of evaluation."""
        reference = self.reference(case)
        found: Subject = self._once(lambda: Subject(reference, reference.model), "subject", case.model)
        return found

    def _subject(self, case: Case) -> Subject:
        """The case's quantized model as a subject of evaluation; whoever holds it holds the model."""
        made = self.quantized(case)
        return self.quantized_subject(case, made.recipe, made.model, made.folded)

    def quantized_subject(self, case: Case, recipe: Recipe, model: nn.Module, folded: nn.Module) -> Subject:
        """*model*, which *recipe* made of the case's reference, and its *folded* copy as a subject of evaluation."""
        how = Quantization(recipe, self.options.attention, self.calibration(case), model)
        return Subject(self.reference(case), folded, how)

    def _stopped(self, case: Case) -> dict[str, early.Stopped]:
        """What was evaluated of each task that may stop early; empty where that was not asked for."""
        if not self.options.early_stop:
            return {}

        def of(subject: Subject, task: Task) -> early.Evaluation:
            return early.Evaluation(partial(self.evaluator.embed, subject), task)

        def judge() -> dict[str, early.Stopped]:
            subject, judged = self._subject(case), {}
            for task in filter(early.can_stop, self.tasks(case)):
                (metric,) = task.metrics
                before = self._once(partial(of, self._reference(case), task), "blocks", case.model, task.name)
                after, budget = of(subject, task), self.budget(case, task.name, metric)
                judged[task.name] = early.judge(task, metric, budget, before, after)
            return judged

        found: dict[str, early.Stopped] = self._once(judge, "stopped", case.model, case.recipe)
        return found

    def runs(self, case: Case) -> tuple[dict[str, TaskRun], dict[str, TaskRun]]:
        """Reference and quantized model on every task, the same samples each: all, or those up to an early stop."""
        stopped = self._stopped(case)
        if not stopped:
            return self.reference_runs(case), self.quantized_runs(case)
        rest = tuple(task for task in self.tasks(case) if task.name not in stopped)
        evaluate = self.evaluator.evaluate
        before = self._once(lambda: evaluate(self._reference(case), rest), "rest", case.model)
        after = self._once(lambda: evaluate(self._subject(case), rest), "rest", case.model, case.recipe)
        return (
            self._sane(case, before | {name: s.reference for name, s in stopped.items()}),
            after | {name: s.quantized for name, s in stopped.items()},
        )

    def budget(self, case: Case, task: str, metric: str) -> verdicts.Budget:
        """The budget of a metric of a task under the case's recipe."""
        return self.policy.budget(task, metric, recipe=self.recipe(case).name, model=short(case.model))

    def verdicts(self, case: Case) -> Family:
        """The verdicts on every metric of every task, joined over the tasks."""

        def judge() -> Family:
            stopped = self._stopped(case)
            before, after = self.runs(case)
            found = self.judged(case, before, after, {name: one.verdict for name, one in stopped.items()})
            joined = verdicts.family(found, recipe=case.recipe_name, model=case.model_name)
            self.section(case, "accuracy").update(
                decision=joined.decision.value,
                headline=joined.headline(),
                verdicts=[asdict(v) | {"decision": v.decision.value} for v in joined.verdicts],
                beyond={f"{v.task}/{v.metric}": self.beyond(case, v.task, v.metric) for v in joined.verdicts},
                limits=[m.as_dict() for task in before for m in self.measurements(case, task) if m.limit is not None],
            )
            return joined

        found: Family = self._once(judge, "verdicts", case.model, case.recipe)
        return found

    def judged(
        self,
        case: Case,
        before: Mapping[str, TaskRun],
        after: Mapping[str, TaskRun],
        known: Mapping[str, Verdict] | None = None,
    ) -> list[Verdict]:
        """A verdict for every metric of every task; *known* are those that there are already, by task."""
        judged = []
        for guess in sanity.guesses(before):
            task, metric = guess.task, guess.metric
            if known is not None and task in known:
                verdict = known[task]
            else:
                budget = self.budget(case, task, metric)
                verdict = verdicts.compare(before[task].outcomes[metric], after[task].outcomes[metric], budget)
            judged.append(sanity.doubted(verdict, guess) if guess.at_chance else verdict)
        return judged

    def verdict(self, case: Case, task: str, metric: str) -> Verdict:
        """One metric's verdict, as it stands in the family."""
        return next(v for v in self.verdicts(case).verdicts if (v.task, v.metric) == (task, metric))

    # -- baselines ----------------------------------------------------------------------------------------------

    def provenance(self, case: Case) -> Provenance:
        """What a record of this case is bound to."""
        reference, recipe, pairs = self.reference(case), self.recipe(case), self.calibration(case)
        return Provenance(
            model=case.model_name,
            model_revision=reference.revision,
            recipe=case.recipe_name,
            recipe_hash=recipe.hash,
            calibration_hash=pairs.hash,
            calibration_size=pairs.n,
            attention=self.options.attention,
            device=self.device_key,
            bits=environment.bits_condition(self.device, self.batch_size),
        )

    def record(self, case: Case, *, accuracy: bool = True) -> Record:
        """What this run measured of the case, as the store keeps it; without tasks if *accuracy* is False."""
        found: list[TaskRecord] = []
        if accuracy:
            before, after = self.reference_runs(case), self.quantized_runs(case)
            for verdict in self.verdicts(case).verdicts:
                beyond = self.beyond(case, verdict.task, verdict.metric)
                found.append(
                    TaskRecord.of(
                        before[verdict.task].outcomes[verdict.metric],
                        after[verdict.task].outcomes[verdict.metric],
                        data_hash=self.task(case, verdict.task).data_hash,
                        preprocessing=self.preprocessing(case),
                        decision=verdict.decision.value,
                        interval=verdict.interval,
                        budget=verdict.budget.points,
                        beyond={name: value for name, value in beyond.items() if math.isfinite(value)},
                    )
                )
        return Record(self.provenance(case), quantizers=tuple(q.as_dict() for q in self.map(case)), tasks=tuple(found))

    def preprocessing(self, case: Case) -> str:
        """SHA-256 over the image processor's settings."""
        return digests.of_json(self.reference(case).image_processor.to_dict())

    def task(self, case: Case, name: str) -> Task:
        """The case's task of that name."""
        return next(task for task in self.tasks(case) if task.name == name)

    def drift(self, case: Case, task: str | None = None, metric: str | None = None) -> Comparison:
        """The case against its stored record: the quantizer map alone, or one metric of one task with it."""
        fresh = self.record(case, accuracy=task is not None)
        if task is not None or case not in self.pending:
            self.pending[case] = fresh
        stored: Record | Missing = self._stored(case)
        found = self._compared(stored, fresh, task, metric)
        shown = self.section(case, "drift").setdefault("map" if task is None else f"{task}/{metric}", {})
        shown.update(kind=found.word, headline=found.headline)
        return found

    def _compared(self, stored: Record | Missing, fresh: Record, task: str | None, metric: str | None) -> Comparison:
        if isinstance(stored, Missing):
            return stored
        if task is not None:
            return baselines.compare(stored, fresh.only(task, metric))
        made = carried.carry(stored, fresh, self.expected)
        self._meet(made.met)
        return made.unexpected or baselines.compare(made.record, fresh)

    def _stored(self, case: Case) -> Record | Missing:
        """The record of the case that is nearest to this device."""
        return self.store.find(case.model_name, case.recipe_name, self.device_key)

    @cached_property
    def expected(self) -> tuple[differences.Record, ...]:
        """The differences that are expected between releases of ModelOpt and transformers."""
        return differences.load(self.options.baselines)

    def _meet(self, met: Mapping[str, int]) -> None:
        """Keep which expected differences this run met, for its summary."""
        reasons = {record.name: " ".join(record.difference.reason.split()) for record in self.expected}
        kept = self.results.environment.setdefault("expected_differences", {}) if met else {}
        for name, count in met.items():
            kept[name] = {"count": kept.get(name, {}).get("count", 0) + count, "reason": reasons[name]}

    def deviation(self, known: deviations.Deviation) -> list[str]:
        """How the installed ModelOpt differs in a known deviation from what it was recorded, or is expected, to do."""
        met, found = carried.deviation(known, self.expected, environment.versions(), self.device.type)
        self._meet(met)
        return found

    def accept(
        self,
        *,
        reason: str | None,
        new_only: bool,
        show: Callable[[str], object],
        left_out: Mapping[Case, str] | None = None,
    ) -> None:
        """Store what this run measured of every case whose drift was asked for.

        Args:
            reason: why the baselines change.
            new_only: store what is missing, and change nothing that is there.
            show: gets each change before it is stored, and each case that is not stored.
            left_out: cases that are not stored, with the reason.
        """
        for case, record in self.pending.items():
            if left_out and case in left_out:
                fix = "Fix it, or accept it as it is: --update-baselines --reason TEXT"
                show(f"not stored: {case.id}: {left_out[case]}. {fix}")
                continue
            self.store.update(record, reason=reason, new_only=new_only, show=show)

    def orphans(self) -> tuple[baselines.Orphan, ...]:
        """Records in the store that none of this run's cases uses, nor further recipes or the stressed model."""
        named = list(names.of_models(self.options.clip_models).values())
        named += [model + outliers.SUFFIX for model in named]
        used = [(model, recipe) for model in named for recipe in (*finding.DEFAULT, *finding.MORE)]
        used += [(case.model_name, case.recipe_name) for case in self.cases()]
        return self.store.orphans(used, tasks.EMBEDDED_TASKS if self.options.tasks is None else self.options.tasks)

    # -- beyond accuracy ----------------------------------------------------------------------------------------

    def measurements(self, case: Case, task: str) -> tuple[Measurement, ...]:
        """How far answers and embeddings of a task moved, each number beside its limit."""

        def measure() -> tuple[Measurement, ...]:
            before, after = (runs[task] for runs in self.runs(case))
            budgets_of = {metric: self.budget(case, task, metric) for metric in before.outcomes}
            return distribution.distribution(before, after, budgets_of)

        found: tuple[Measurement, ...] = self._once(measure, "measurements", case.model, case.recipe, task)
        return found

    def beyond(self, case: Case, task: str, metric: str) -> dict[str, float]:
        """Measures that accuracy does not show, by name; those of embeddings belong to every metric of the task."""
        return {m.name: m.value for m in self.measurements(case, task) if m.metric in ("", metric)}

    # -- export -------------------------------------------------------------------------------------------------

    def no_form(self, case: Case) -> str | None:
        """Why the case's model has no form in standard ONNX, or None."""
        reason = self.quantized(case).exported.no_form
        self.section(case, "export").update(no_form=reason, runtime=export.RUNTIME)
        return reason

    # -- memory -------------------------------------------------------------------------------------------------

    def compression(self, case: Case) -> memory.Compression:
        """Bytes of the case's weights before and after ``mtq.compress``.

        Raises:
            NotCompressedError: ModelOpt packs no weight of one of the recipe's formats.
        """
        model = self.quantized(case).model
        found = memory.compare(model, memory.compressed(model))
        self.section(case, "memory").update(found.as_dict(), problems=[asdict(p) for p in found.problems()])
        return found

    # -- throughput ---------------------------------------------------------------------------------------------

    def tower_forward(self, case: Case, model: nn.Module, tower: str) -> throughput.Forward:
        """A forward of one tower on a batch of the calibration data."""
        return throughput.forward_of(model, tower, next(iter(self.calibration_batches(case))))

    def add_speed(self, case: Case, tower: str, speed: throughput.Speed) -> None:
        """Keep a quantized tower's speed beside its reference's, and say where the ratio moved against the baseline.

        It fails nothing: ``--benchmark-compare-fail`` decides about times.
        """
        self._speeds.setdefault(case, {})[tower] = speed.ratio
        stored = self.stored_ratio(case, tower)
        found: dict[str, Any] = {"baseline_ratio": None, "moved": ""}
        if stored is not None:
            found = {"baseline_ratio": stored.value, "baseline_low": stored.low, "baseline_high": stored.high,
                     "moved": moved(stored, speed.ratio)}  # fmt: skip
        self.section(case, "throughput")[tower] = speed.as_dict() | found

    def stored_ratio(self, case: Case, tower: str) -> Ratio | None:
        """The baseline's ratio of a tower, if it was measured on this device: on another it is another number."""
        record = self._stored(case)
        if isinstance(record, Missing) or record.provenance.device != self.device_key:
            return None
        return (record.throughput or {}).get(tower)

    def finish(self) -> None:
        """Put the speeds that this run measured into the records that it measured."""
        for case, record in self.pending.items():
            ratios = dict(record.throughput or {}) | self._speeds.get(case, {})
            self.pending[case] = replace(record, throughput=ratios or None)

    def facts(self, case: Case) -> dict[str, Any]:
        """What a time belongs to."""
        return {
            "recipe": case.recipe_name,
            "model": case.model_name,
            "device": str(self.device_key),
            "dtype": str(self.reference(case).dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
        }

    # -- results ------------------------------------------------------------------------------------------------

    def section(self, case: Case, name: str) -> dict[str, Any]:
        """A section of the case's results."""
        return self.results.section(case.recipe_name, case.model_name, name)
