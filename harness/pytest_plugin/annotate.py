"""``--gate-annotations``: write problems as annotations on the lines of the recipes, however a run
ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness import files
from harness.errors import UsageError
from harness.pytest_plugin.run import is_worker, options_of, results_of

if TYPE_CHECKING:
    from harness.lint.run import LintProblem
    from harness.pull_requests.selection import Selection

_REFUSED = pytest.StashKey[list[UsageError]]()
_SELECTED = pytest.StashKey["Selection"]()


def start(config: pytest.Config) -> None:
    """Write the annotations when the run ends, if the command line asks for them."""
    asked = config.getoption("gate_annotations") is not None
    if asked and not is_worker(config) and not config.option.collectonly:
        config.add_cleanup(partial(_finish, config))


def keep_selection(config: pytest.Config, selected: Selection) -> None:
    """Annotate all files that *selected* reaches, including those that are not gated."""
    config.stash[_SELECTED] = selected


def keep_refusal(config: pytest.Config, error: UsageError) -> None:
    """Annotate the errors that ended the run."""
    config.stash.setdefault(_REFUSED, []).append(error)


def _finish(config: pytest.Config) -> None:
    """Print the annotations, and write them where a report is written."""
    from harness import report
    from harness.report import annotated, cases

    try:
        recipes = _recipes(config)
        linted = _linted(config, {*recipes.values(), *_selected(config)})
        results, refused = cases.read(results_of(config).as_dict()), config.stash.get(_REFUSED, [])
        problems = annotated.of_run(linted, results, recipes, refused)
        text = annotated.commands(problems)
        if folder := config.getoption("gate_report"):
            texts = {annotated.COMMANDS: text, annotated.SARIF: annotated.sarif(problems)}
            report.write_files(folder, texts)
    except UsageError as error:
        print(f"no annotations: {error}")
        return
    print(text, end="", flush=True)


def _recipes(config: pytest.Config) -> dict[str, Path]:
    """The file of each recipe of the run, by its name in the results."""
    from harness.recipes import finding, names

    paths = {}
    options = options_of(config)
    for reference, name in names.of_recipes(options.recipes, options.recipes_root).items():
        try:
            path = finding.path_of(reference, options.recipes_root)
        except UsageError:  # it has been refused, with this reason
            continue
        if path is not None:
            paths[name] = path
    return paths


def _selected(config: pytest.Config) -> Iterable[Path]:
    """The files that a pull request reaches or changes."""
    selected = config.stash.get(_SELECTED, None)
    if selected is None:
        return []
    root = Path(config.getoption("recipes_root"))
    reached = [
        affected_recipe.path
        for affected_recipe in selected.affected
        if affected_recipe.path is not None
    ]
    return [*reached, *(root / name for name in selected.unused)]


def _linted(config: pytest.Config, paths: Iterable[Path]) -> list[LintProblem]:
    from harness.lint.run import lint
    from harness.recipes.tree import SUFFIXES

    there = sorted(path for path in paths if files.is_folder(path) or path.name.endswith(SUFFIXES))
    there = [path for path in there if files.exists(path)]
    if not there:
        return []
    try:
        outcome = lint(there, config.getoption("recipes_root"))
    except UsageError as error:
        keep_refusal(config, error)
        return []
    for unreadable in outcome.unreadable:
        keep_refusal(config, unreadable)
    return list(outcome.problems)
