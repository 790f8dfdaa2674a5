"""Which cases, tasks and metrics the options ask for, under names and test ids of their own;
nothing is loaded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.consumers import contracts, probes, reading
from harness.data import sample_counts, samples, tasks
from harness.gate.options import Options
from harness.models import architectures, families, references
from harness.recipes import names


@dataclass(frozen=True)
class CaseName:
    """A recipe on a model (or, for structure alone, on an architecture), both as the person named
    them.

    ``recipe_name`` and ``model_name`` are what they are called in this run
    (:mod:`harness.recipes.names`): no other recipe or model of it is.
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
    """Return the readable end of a model's name, for a run with a single model."""
    return names.of_model(ref)


def short_recipe(ref: str) -> str:
    """A recipe's name as ``loading.load`` will give it, without loading it."""
    if ref.endswith((".yaml", ".yml")):
        return Path(ref).stem
    module, colon, attribute = ref.partition(":")
    return attribute if colon and module else ref.strip("/").replace("/", ".")


def cases_of(options: Options) -> list[CaseName]:
    """Every recipe on every model, each once, under names and test ids of its own.

    Raises:
        UsageError: a recipe is not there, or a name cannot be shown.
    """
    return _cases(options, names.of_models(options.clip_models))


def structures_of(options: Options) -> list[CaseName]:
    """Every recipe on every published architecture of the models' families."""
    families_of = [references.family_of(ref) for ref in options.clip_models]
    known = [
        name for family in dict.fromkeys(families_of) for name in architectures.of_family(family)
    ]
    return _cases(options, {name: name for name in known})


def shapes_of(options: Options) -> list[CaseName]:
    """Every recipe on every architecture that was asked for."""
    return _cases(options, {name: name for name in options.architectures})


def _cases(options: Options, models_named: Mapping[str, str]) -> list[CaseName]:
    recipes_named = names.of_recipes(options.recipes, options.recipes_root)
    cases = [
        CaseName(r, m, recipes_named[r], models_named[m])
        for m in models_named
        for r in recipes_named
    ]
    counts = Counter(case.id for case in cases)
    # "a-b" on "c" and "a" on "b-c" would have one id; no recipe's name has an @.
    return [case if counts[case.id] == 1 else replace(case, joint="@") for case in cases]


def to_train(options: Options) -> list[CaseName]:
    """The cases that are fine-tuned: those of the options, or one whose recipe fails on the
    stressed model.
    """
    if options.is_default:
        return [CaseName("int8", "embedded+outliers")]
    return cases_of(options)


def metrics_of(options: Options) -> list[tuple[str, str]]:
    """(task, metric) pairs that the chosen tasks have, known from their layout alone.

    Raises:
        UsageError: a task is unknown or its data are not there.
    """
    known = options.tasks or tasks.EMBEDDED_TASKS
    return [
        (name, metric)
        for name in known
        for metric in sample_counts.metrics_of(samples.kind_of(name, options.data_root))
    ]


def metric_ids(metrics: Sequence[tuple[str, str]]) -> list[str]:
    """What test ids show of each (task, metric) pair: ``emoji/acc1``."""
    shown = names.of_tasks(task for task, _ in metrics)
    return [f"{shown[task]}/{metric}" for task, metric in metrics]


def consumers_of(options: Options) -> tuple[str, ...]:
    """The consumers that were named, or those of the models' families."""
    if options.consumers:
        return options.consumers
    rows = {family.name: family for family in families.FAMILIES}
    return tuple(
        dict.fromkeys(
            consumer
            for ref in options.clip_models
            for consumer in reading.names_of(rows[references.family_of(ref)], ref, ())
        )
    )


def readings_of(options: Options) -> list[tuple[str, str]]:
    """(consumer, read) pairs of the consumers."""
    return [
        (consumer, read.name)
        for consumer in consumers_of(options)
        for read in contracts.of(consumer).reads
    ]


def questions_of(options: Options) -> list[tuple[str, str]]:
    """(consumer, metric) pairs of the consumers that there are probes for."""
    return [pair for pair in probes.QUESTIONS if pair[0] in consumers_of(options)]


#: Options that belong into a command which repeats a case.
_REPEATED = (
    *("recipes_root", "tasks", "data_root", "calibration_data", "calibration_size", "batch_size"),
    *("device", "attention", "baselines"),
)


def words_of(options: Options, case: CaseName | None = None) -> list[str]:
    """The words of a command line that gates *case* again, or all that *options* ask for."""
    plain = Options()
    recipes_given, models_given = options.recipes, options.clip_models
    if case is not None:
        alone = names.of_recipes([case.recipe], options.recipes_root), names.of_models([case.model])
        named = (alone[0][case.recipe], alone[1][case.model], "-")
        # Next to others of their names they have longer ones; alone they would be called something
        # else.
        if named == (case.recipe_name, case.model_name, case.joint):
            recipes_given, models_given = (case.recipe,), (case.model,)
    if case is None and recipes_given == plain.recipes:
        recipes_given = ()
    words = [word for recipe in recipes_given for word in _option("recipe", recipe)]
    if models_given != plain.clip_models:
        words += [word for model in models_given for word in _option("clip-model", model)]
    words += [word for consumer in options.consumers for word in _option("consumer", consumer)]
    if options.architectures:
        words += _option("architectures", ",".join(options.architectures))
    for name in _REPEATED:
        value = getattr(options, name)
        if value and value != getattr(plain, name):
            words += _option(
                name.replace("_", "-"), ",".join(value) if isinstance(value, tuple) else str(value)
            )
    return words


def words_of_names(options: Options, model: str, recipe: str) -> list[str]:
    """As :func:`words_of`, of the case whose model and recipe are called so in the run."""
    named = {(name.model_name, name.recipe_name): name for name in cases_of(options)}
    return words_of(options, named.get((model, recipe)))


def _option(name: str, value: str) -> list[str]:
    """An option and its value, in one word where the value would be read as another option."""
    return [f"--{name}={value}"] if value.startswith("-") else [f"--{name}", value]
