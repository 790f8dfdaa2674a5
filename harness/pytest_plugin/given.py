"""Early checks of the command line: what can be refused before anything slow is imported.

Names, YAML files and model configurations are checked first, because they need no torch.  Budgets,
records and the device follow, before pytest collects the tests.
"""

from __future__ import annotations

import itertools
import json
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Any

from harness import errors, files, places
from harness.errors import UsageError
from harness.pytest_plugin.run import options_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import pytest

    from harness.gate.options import Options
    from harness.statistics.verdicts import Budget

    Look = tuple[str, Callable[[], object]]

#: Problems of one recipe that are shown, each in a line; the lint shows all.
MOST_PROBLEMS = 5


def check_given(config: pytest.Config) -> None:
    """Refuse all that can be refused before the tests are collected.

    A model that may have to be fetched from the hub is not looked for here.

    Raises:
        UsageError: something cannot be used; each thing has its line.
    """
    get = config.getoption
    _look(_cheap(get))
    if not _asks_for_suites(config):
        return
    store = get("baselines") or places.BASELINES
    _look([(str(store), partial(_look_at_budgets, get, store))])
    if _asks_for_accuracy(config):
        _look([("--tasks", partial(_look_at_counts, get, store))])
    if not config.option.collectonly:
        _look([(str(store), partial(_look_at_records, options_of(config)))])


def _asks_for_suites(config: pytest.Config) -> bool:
    """Whether the command line names the gate's suites, or a folder above them: other tests need
    neither budgets nor records.
    """
    here = config.invocation_params.dir
    for argument in config.args:
        named = argument.partition("::")[0]
        path = (here / named).resolve()
        if named.startswith(places.SUITES_PACKAGE) or path.parent == places.SUITES:
            return True
        if path == places.SUITES or path in places.SUITES.parents:
            return True
    return False


def _asks_for_accuracy(config: pytest.Config) -> bool:
    """Whether the tests of accuracy are surely among those that run, by the command line alone."""
    get = config.getoption
    narrowed = any(get(name, None) for name in ("keyword", "deselect", "ignore", "ignore_glob"))
    whole = all("::" not in argument for argument in config.args)
    anything = (get("markexpr") or "accuracy").strip() == "accuracy"
    return whole and anything and not narrowed and get("architectures") is None


def _look(looks: list[Look]) -> None:
    """Look at each thing.

    Raises:
        UsageError: some cannot be used; each has its line.
    """
    refused = []
    for where, look in looks:
        try:
            with errors.reading(where):
                look()
        except UsageError as error:
            refused.append(error)
    errors.raise_all(refused)


def _cheap(get: Callable[[str], Any]) -> list[Look]:
    """The checks of names, YAML files and model configurations; they import no torch."""
    from harness.consumers import contracts
    from harness.models import checkpoint_files
    from harness.outlines import names as architectures
    from harness.recipes import names

    models = checkpoint_files.expanded(get("gate_models") or ())
    looks: list[Look] = [("--clip-model", partial(names.of_models, models))]
    for model in models:
        if not checkpoint_files.is_hub_id(checkpoint_files.split(model)[0]):
            looks.append((f"--clip-model {model}", partial(checkpoint_files.look, model)))
    for consumer in get("gate_consumers") or ():
        looks.append((f"--consumer {consumer}", partial(contracts.of, consumer)))
    if get("architectures") is not None:
        looks.append(("--architectures", partial(architectures.chosen, get("architectures"))))
    if get("tasks") is not None:
        looks.append(("--tasks", partial(_look_at_tasks, get("tasks"), get("data_root"))))
    for recipe in get("gate_recipes") or ():
        looks.append((f"--recipe {recipe}", partial(look_at_recipe, recipe, get("recipes_root"))))
    return looks


def _look_at_tasks(task_names: str, data_root: Path | None) -> None:
    """Refuse names of tasks that are unknown, or whose data are not there."""
    from harness.data import samples

    refused = []
    for name in samples.names_of(task_names):
        try:
            samples.place_of(name, data_root)
            samples.kind_of(name, data_root)
        except UsageError as error:
            refused.append(error)
    errors.raise_all(refused)


def look_at_recipe(ref: str, root: Path | None) -> None:
    """Refuse a recipe that is not there, or that the installed ModelOpt refuses for its form.

    ModelOpt's schema was recorded for the lint; where it was recorded of another release than the
    installed one, ModelOpt itself decides, later.

    Raises:
        UsageError: it cannot be used; each thing in it that is refused has its line.
    """
    from harness.lint import known, recorded
    from harness.recipes import loading

    loading.look(ref, root)
    release = known.installed()
    if release.version != metadata.version("nvidia-modelopt") or not loading.is_quick(ref, root):
        return
    schema = recorded.Recorded(release)
    refused: list[UsageError] = []
    try:
        loading.load(ref, root, schema)
    except UsageError as error:
        refused.append(error)
    # A setting that names a file is not a reason to refuse a recipe: it is not gated.
    refused += [
        problem for problem in schema.problems if not isinstance(problem, recorded.FileSettingError)
    ]
    errors.raise_all(_each_once(refused))


def _each_once(refused: Sequence[UsageError]) -> list[UsageError]:
    """*refused* with one line for what is wrong at several places, and a few lines at most."""
    alike: dict[tuple[str, str], list[UsageError]] = {}
    for error in refused:
        alike.setdefault((error.what, error.fix), []).append(error)
    merged = []
    for (what, fix), (first, *others) in alike.items():
        lines = [str(getattr(error_.where, "line", error_.where)) for error_ in others]
        more = f"; the same in line {', '.join(lines)}" if lines else ""
        merged.append(UsageError(first.where, what.rstrip(".") + more, fix))
    return merged[:MOST_PROBLEMS]


def _look_at_budgets(get: Callable[[str], Any], store: Path) -> None:
    """Refuse files of budgets, expected differences and known failures that cannot be used."""
    from harness.baselines import differences, known_failures
    from harness.consumers import contracts
    from harness.data import samples
    from harness.recipes import finding
    from harness.statistics import budgets

    policy = budgets.load(store / "budgets.yaml")
    differences.load(store)
    root = get("recipes_root")
    recipe_names = [finding.name_of(ref, root) for ref in get("gate_recipes") or ()]
    known = (*samples.EMBEDDED_TASKS, *contracts.CONTRACTS)
    recipes = [*recipe_names, *finding.DEFAULT, *finding.MORE]
    policy.check_names(recipes, known)
    known_failures.check_recipes(known_failures.load(store), recipes)


def _look_at_counts(get: Callable[[str], Any], store: Path) -> None:
    """Refuse tasks without a budget of their own whose samples cannot resolve the default.

    Only cases without a record of the task are checked here.  The others, and models that may have
    to be fetched, are checked later, when their records have been read.
    """
    from harness.data import sample_counts, samples
    from harness.gate import unresolved
    from harness.recipes import finding, names
    from harness.statistics import budgets

    task_names = [] if get("tasks") is None else samples.names_of(get("tasks"))
    policy = budgets.load(store / "budgets.yaml")
    new = [name for name in task_names if not policy.has_entry(name)]
    if not new:
        return
    recipes = names.of_recipes(get("gate_recipes") or finding.DEFAULT, get("recipes_root"))
    models = names.of_models(_whole_models(get("gate_models") or ("embedded",)))
    counts = sample_counts.of(new, get("data_root"))
    unrecorded: dict[tuple[str, str], list[Budget]] = {}
    for task, metric in counts:
        for recipe, model in itertools.product(recipes, models):
            folder = (
                store
                / names.folder_name(models[model], "model")
                / names.folder_name(recipes[recipe], "recipe")
            )
            if not recorded_names(folder, task):
                called = finding.name_of(recipe, get("recipes_root")), names.of_model(model)
                budget = policy.budget(task, metric, *called)
                unrecorded.setdefault((task, metric), []).append(budget)
    errors.raise_all(unresolved.refusals(policy, counts, unrecorded))


def _whole_models(refs: Sequence[str]) -> list[str]:
    """Those of the models *refs* that are here and have both towers."""
    from harness.models import checkpoint_files

    whole_models = []
    for ref in checkpoint_files.expanded(refs):
        base, suffixes = checkpoint_files.split(ref)
        if checkpoint_files.is_hub_id(base):
            continue
        checkpoint = checkpoint_files.look(ref)
        both = len(checkpoint_files.towers(checkpoint.config)) == 2
        if suffixes or both or checkpoint.is_open_clip:
            whole_models.append(ref)
    return whole_models


def recorded_names(folder: Path, task: str) -> bool:
    """Return whether a record in *folder* names the task, or cannot be read and so may name it."""
    if not files.is_folder(folder):
        return False
    for name in files.names(folder):
        if name.startswith("record") and name.endswith(".json"):
            try:
                text = files.read_text(folder / name, limit=files.MAX_MEASURED)
            except UsageError:
                return True
            if json.dumps(task, ensure_ascii=False) in text or json.dumps(task) in text:
                return True
    return False


def _look_at_records(options: Options) -> None:
    """Refuse a device that is not there, records of this run's cases that are damaged, and known
    failures of checks that do not exist.
    """
    # Not at the top: they import torch
    from harness.baselines import Store, known_failures
    from harness.checks import registry
    from harness.evaluation import environment
    from harness.gate import listing
    from harness.models import references

    checks = [f"{check.suite}/{check.name}" for check in registry.every()]
    known_failures.check_checks(known_failures.load(options.baselines), checks)
    device = environment.DeviceKey.of(references.resolve_device(options.device))
    store = Store(options.baselines, partial(listing.words_of_names, options))
    for name in listing.cases_of(options):
        store.find(name.model_name, name.recipe_name, device)
