"""The cases of a run: one per recipe and model, whatever they are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.gate import listing
from harness.gate.options import Options
from harness.recipes import names


def test_spellings_are_one_case_and_different_things_are_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six spellings of a model and of a recipe at once, next to others with their names and folders
    called like this package's, give each thing one id, one section and one folder of baselines.
    """
    monkeypatch.chdir(tmp_path)
    for folder in ("a/clip", "b/clip", "embedded", "x/embedded", "b/fp8"):
        Path(folder).mkdir(parents=True)
    for file in ("x/my.yaml", "y/my.yaml", "y/fp8.yaml"):
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).write_text("metadata: {recipe_type: ptq}\n")
    Path("link").symlink_to("a/clip")
    Path("link.yaml").symlink_to("x/my.yaml")
    model = ("a/clip", "a/clip/", "./a//clip", "b/../a/clip", str(tmp_path / "a/clip"), "link")
    recipe = ("x/my.yaml", "./x/my", "x//my.yaml", str(tmp_path / "x/my.yaml"), "link.yaml")
    models = (*model, "b/clip", "embedded", "./embedded", "x/embedded")
    recipes = (*recipe, "x/../x/my.yaml", "y/my.yaml", "fp8", "./y/fp8.yaml")

    cases = listing.cases_of(Options(recipes=recipes, clip_models=models))

    assert len(cases) == 5 * 4
    assert len({case.id for case in cases}) == 20
    assert len({(case.recipe_name, case.model_name) for case in cases}) == 20
    folders = {
        (names.folder_name(case.model_name, "model"), names.folder_name(case.recipe_name, "recipe"))
        for case in cases
    }
    assert len({(model.casefold(), recipe.casefold()) for model, recipe in folders}) == 20
