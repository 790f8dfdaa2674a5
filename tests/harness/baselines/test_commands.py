"""The commands that messages print: the option parser takes them, and they gate the same case
again.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.baselines import Missing, rerun_command
from harness.gate import listing
from harness.gate.options import Options
from harness.gate.session import Gate
from harness.pytest_plugin import options
from harness.pytest_plugin.run import options_of

Parsed = Callable[[str], tuple[pytest.Config, Options]]


@pytest.fixture
def parsed(pytester: pytest.Pytester) -> Parsed:
    """What the option parser makes of a command line."""

    def parse(command: str) -> tuple[pytest.Config, Options]:
        program, *words = shlex.split(command)
        assert program == "pytest"
        config = pytester.parseconfig(*words)
        options.check_options(config)
        return config, options_of(config)

    return parse


@pytest.fixture
def here(pytester: pytest.Pytester) -> Path:
    """The working folder, with recipes and folders of models of several names."""
    folder = pytester.path
    for name in (
        "x/my.yaml",
        "y/my.yaml",
        "tree/my.yaml",
        "-dash.yaml",
        "a-b.yaml",
        "a.yaml",
        "two words.yaml",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("metadata: {recipe_type: ptq}\nquantize: {quant_cfg: []}\n")
    for name in ("a/clip", "b/clip", "c", "b-c", "embedded", "mödel 1", "data", "store"):
        (folder / name).mkdir(parents=True)
    return folder


GIVEN: dict[str, dict[str, Any]] = {
    "nothing": {},
    "one": {"recipes": ("x/my.yaml",), "clip_models": ("a/clip",)},
    "names alike": {
        "recipes": ("x/my.yaml", "y/my.yaml", "int8"),
        "clip_models": ("embedded", "a/clip", "b/clip"),
    },
    "a folder called embedded": {"recipes": ("fp8",), "clip_models": ("embedded", "./embedded")},
    "ids alike": {"recipes": ("a-b.yaml", "a.yaml"), "clip_models": ("c", "b-c")},
    "a suffix": {"recipes": ("int8",), "clip_models": ("embedded+outliers", "embedded")},
    "a tree": {"recipes": ("my", "fp8"), "recipes_root": Path("tree")},
    "defaults with a tree": {"recipes_root": Path("tree")},
    "odd names": {"recipes": ("two words.yaml", "./-dash.yaml"), "clip_models": ("mödel 1",)},
    "a dict": {"recipes": ("package.module:CONFIG",)},
    "every option": {
        "recipes": ("fp8",),
        "tasks": ("emoji100", "wds/x y"),
        "data_root": Path("data"),
        "calibration_data": Path("data"),
        "calibration_size": 16,
        "batch_size": 4,
        "device": "cpu",
        "attention": "modelopt",
        "baselines": Path("store"),
    },
}


@pytest.mark.parametrize("name", GIVEN)
def test_a_command_gates_the_same_case_again(here: Path, parsed: Parsed, name: str) -> None:
    """The printed options give the case the same id, recipe, model and conditions, an id with ``@``
    included.
    """
    options = Options(**GIVEN[name])
    cases = listing.cases_of(options)

    assert name != "ids alike" or {"a-b@c", "a@b-c"} <= {case.id for case in cases}
    for case in cases:
        _, again = parsed(
            rerun_command(f"tests/test_x.py::test_x[{case.id}]", listing.words_of(options, case))
        )
        assert (case.id, case) in [(same.id, same) for same in listing.cases_of(again)]
        for option in listing._REPEATED:
            assert getattr(again, option) == getattr(options, option)


@pytest.mark.parametrize("name", ["nothing", "one", "names alike", "ids alike", "every option"])
def test_the_command_for_a_missing_baseline_makes_that_one(
    here: Path, parsed: Parsed, name: str
) -> None:
    """It is taken, adds baselines and changes none, and gates the case that has none under the same
    names.
    """
    gate = Gate(Options(**GIVEN[name]))

    for case in gate.cases():
        missing = Missing(case.model_name, case.recipe_name, gate.device_key, here)
        message = missing.message(None, listing.words_of(gate.options, case.name))
        of_the_store = gate.store._accept(case.model_name, case.recipe_name)
        for command in (message.rpartition("accept: ")[2], of_the_store):
            config, again = parsed(command)
            named = [
                (other.recipe_name, other.model_name, other) for other in listing.cases_of(again)
            ]
            assert config.getoption("new_baselines_only")
            assert not config.getoption("update_baselines")
            assert (case.recipe_name, case.model_name, case.name) in named
