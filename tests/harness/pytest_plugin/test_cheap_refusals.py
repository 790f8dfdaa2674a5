"""What is wrong in names, YAML and configurations alone is refused at once: before torch is
imported.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from made_data import webdataset_classes

from harness.errors import UsageError
from harness.models import checkpoint_files
from harness.pytest_plugin import given, options

ROOT = Path(__file__).parents[3]

#: Runs pytest several times, and says after each what it ended with, and whether torch and ModelOpt
#: were imported.
RUNS = """
import json, sys
import pytest
for words in json.loads(sys.argv[1]):
    code = int(pytest.main(["-q", "-p", "no:cacheprovider", *words]))
    print(json.dumps([code, "torch" in sys.modules, "modelopt" in sys.modules]), flush=True)
"""

#: Command lines that cannot be used, and what their line names.
REFUSED = {
    ("--tasks", "nosuchtask"): "--tasks nosuchtask: is not a task",
    ("--recipe", "./nosuch.yaml"): "--recipe ./nosuch.yaml: there is no such file",
    ("--recipe", "broken.yaml"): "broken.yaml",
    ("--recipe", "list.yaml"): "list.yaml",
    ("--recipe", "import.yaml"): "import.yaml",
    ("--clip-model", "foreign"): "foreign/config.json",
    ("--clip-model", "./nosuchfolder"): "--clip-model ./nosuchfolder: is not a directory",
    ("--clip-model", "empty"): "empty",
    ("--recipes-root", "./nosuchtree"): "--recipes-root",
    ("--architectures", "Qwen3-VL-8B,Qwen3-VL"): "Did you mean Qwen3-VL-8B",
    ("--changed-since", "HEAD"): "--changed-since: needs a recipe tree",
    ("-m", "qat", "--early-stop"): "--early-stop: does not go with -m qat",
    (
        *("--tasks", "wds/small", "--data-root", ".", "-m", "accuracy", "--recipe", "int8"),
        str(ROOT / "tests"),
    ): "wds/small has no budget of its own, and its 6 samples (acc1) cannot resolve",
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with files that cannot be used."""
    (tmp_path / "broken.yaml").write_text("quantize: [1, 2\nmetadata: }")
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    (tmp_path / "import.yaml").write_text(
        "imports:\n  a: no/such/file\nmetadata: {recipe_type: ptq}\nquantize: {$import: a}\n"
    )
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/config.json").write_text(
        json.dumps({"model_type": "bert", "architectures": ["BertModel"]})
    )
    (tmp_path / "empty").mkdir()
    webdataset_classes(tmp_path / "small")
    return tmp_path


def test_cheap_refusals_import_no_torch(place: Path) -> None:
    """An unknown task or recipe, broken YAML, a foreign configuration, a missing folder: a line
    each, before torch is imported.
    """
    script = place / "runs.py"
    script.write_text(RUNS)
    commands = [["-p", "harness.pytest_plugin.plugin", *words] for words in REFUSED]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    ended = subprocess.run(
        [sys.executable, str(script), json.dumps(commands)],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    runs = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("[")]
    errors = [line for line in ended.stderr.splitlines() if line.startswith("ERROR: ")]

    assert [code for code, *_ in runs] == [4] * len(REFUSED), ended.stderr
    assert not any(torch or modelopt for _, torch, modelopt in runs)
    assert len(errors) == len(REFUSED), ended.stderr
    for line, name in zip(errors, REFUSED.values(), strict=True):
        assert name in line


Refused = Callable[..., list[str]]


@pytest.fixture
def refused(pytester: pytest.Pytester, place: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """The lines that a command line is refused with after its files were looked at."""
    monkeypatch.chdir(place)

    def lines(*words: str) -> list[str]:
        config = pytester.parseconfig(*words)
        options.check_options(config)
        try:
            given.check_given(config)
        except UsageError as error:
            return list(error.lines)
        return []

    return lines


def test_all_that_cannot_be_used_is_said_at_once(refused: Refused) -> None:
    """Each model, task and recipe that cannot be used has its line, and what can has none."""
    arguments = (
        "--clip-model",
        "embedded",
        "--clip-model",
        "foreign",
        "--recipe",
        "fp8",
        "--recipe",
        "broken.yaml",
    )

    lines = refused(*arguments, "--tasks", "emoji,nosuch,other")

    assert [line.split(":")[0].split("/")[0] for line in lines] == [
        "foreign",
        "--tasks nosuch",
        "--tasks other",
        "broken.yaml",
    ]
    assert refused("--clip-model", "embedded", "--recipe", "fp8", "--tasks", "emoji") == []


def test_tasks_are_counted_early_where_nothing_is_recorded_of_them(
    refused: Refused, place: Path
) -> None:
    """A task without a budget is refused before records are read, unless a record names it or the
    tests that run are not known to be those of accuracy.
    """
    store = place / "store"
    shutil.copytree(ROOT / "baselines", store, ignore=lambda _, content: {"embedded"} & {*content})
    words = ["--tasks", "wds/small", "--data-root", str(place), "--baselines", str(store)]
    words += ["--recipe", "int8", str(ROOT / "tests")]

    (line,) = refused(*words)
    assert "`small: {samples: 6, points:" in line
    assert refused(*words, "-m", "insertion") == refused(*words, "-k", "map") == []

    record = store / "embedded" / "int8" / "record@x.json"
    record.parent.mkdir(parents=True)
    record.write_text('{"tasks": [{"task": "wds/other"}]}')
    assert given.recorded_names(record.parent, "wds/other")
    assert not given.recorded_names(record.parent, "wds/small")


def test_a_model_of_the_hub_is_not_fetched(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reference that may have to be fetched is left to the moment when it is needed."""
    monkeypatch.setattr(checkpoint_files, "look", lambda _: pytest.fail("looked for"))

    assert refused("--clip-model", "openai/clip-vit-base-patch32+outliers") == []


@pytest.mark.parametrize("verbose", [False, True])
def test_an_unforeseen_error_names_the_input(
    pytester: pytest.Pytester, place: Path, monkeypatch: pytest.MonkeyPatch, verbose: bool
) -> None:
    """What no check foresaw is exit code 4 with the input, called a defect of the gate; -v adds the
    traceback.
    """
    monkeypatch.setattr(checkpoint_files, "inspect", lambda _: 1 // 0)
    (place / "whole").mkdir()
    words = ["--clip-model", str(place / "whole"), *["-v"] * verbose]

    result = pytester.runpytest_inprocess("-p", "harness.pytest_plugin.plugin", *words)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = [line for line in result.errlines if line.startswith("ERROR: ")]
    assert f"--clip-model {place / 'whole'}: cannot be read (ZeroDivisionError" in line
    assert "defect of the gate" in line
    assert ("Traceback" in str(result.stderr)) == verbose


@pytest.mark.parametrize(
    "option", [("--update-baselines", "--reason", "x"), ("--new-baselines-only",)]
)
def test_a_run_that_measures_no_baseline_stores_none(
    pytester: pytest.Pytester, option: tuple[str, ...]
) -> None:
    """Where no selected test measures what a baseline holds, the option is refused; one such test
    is enough.
    """
    config = pytester.parseconfig(*option)

    with pytest.raises(UsageError, match=f"^{option[0]}: has nothing to store") as caught:
        options.check_stored(
            config, ["tests/test_numerics.py::test_rounding[a]", "tests/test_orphans.py::test_it"]
        )

    assert "test_map_equals_baseline" in str(caught.value)
    for test in options.STORING:
        options.check_stored(
            config, ["tests/test_numerics.py::test_it", f"tests/test_x.py::{test}[fp8-embedded]"]
        )
    options.check_stored(pytester.parseconfig(), ["tests/test_numerics.py::test_it"])


def test_tests_that_store_are_in_the_suites() -> None:
    """The names of the tests that measure a baseline are those of the suites."""
    text = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))

    assert [name for name in options.STORING if f"def {name}(" not in text] == []


HEAD = "metadata: {recipe_type: ptq}\nquantize:\n  algorithm: max\n  quant_cfg:\n"
ENTRY = "  - {quantizer_name: '*weight_quantizer', cfg: {num_bits: 8}}\n"


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ("num_bits: 8", "num_bits: fp8", ["r.yaml:5: num_bits is the text 'fp8'"]),
        ("num_bits: 8", "num_bits: 17", ["r.yaml:5: num_bits is 17, integers have"]),
        ("num_bits: 8", "num_bitz: 8", ["r.yaml:5: unknown attribute 'cfg.num_bitz'"]),
        ("algorithm: max", "algorithm: maxx", ["r.yaml:3: there is no calibration algorithm"]),
        (ENTRY, ENTRY.replace("8", "x") * 3, ["num_bits is the text 'x', expected"]),
        (
            "algorithm: max\n  quant_cfg:\n",
            "algorithm: maxx\n  quant_cfg:\n  - {quantizer_name: '*', enabled: false}\n",
            ["r.yaml:5: unknown attribute 'enabled'", "r.yaml:3: there is no calibration"],
        ),
    ],
)
def test_what_modelopt_refuses_of_a_recipe_is_refused_early(
    tmp_path: Path, old: str, new: str, lines: list[str]
) -> None:
    """What was recorded of ModelOpt's schema refuses a recipe before ModelOpt is imported; the same
    mistake has one line.
    """
    path = tmp_path / "r.yaml"
    path.write_text((HEAD + ENTRY).replace(old, new))

    with pytest.raises(UsageError) as caught:
        given.look_at_recipe(str(path), None)

    assert len(caught.value.lines) == len(lines)
    assert all(any(line in said for said in caught.value.lines) for line in lines)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--clip-model", "Embeded"), "is not a directory. Did you mean 'embedded'?"),
        (("--clip-model", "foreign/config.json"), "but a file. Give its folder, 'foreign'."),
        (("--clip-model", "https://h.co/a/b"), "but an address. Give the hub id alone"),
        (("--clip-model", "embedded,foreign"), "names 2 models at once. Give --clip-model once"),
        (("--clip-model", "org/name/"), "For the hub id, write org/name."),
        (("--tasks", "EMOJI"), "is not a task. Did you mean 'emoji'?"),
        (("--tasks", "cifar-100"), "is not a task. Did you mean 'cifar100' or 'cifar10'?"),
        (("--tasks", "emoji;emoji100"), "Put a comma between the names of tasks."),
        (("--tasks", "cifar100", "--data-root", "empty"), "needs cifar-100-python"),
    ],
)
def test_what_was_probably_meant_is_proposed(
    refused: Refused, words: tuple[str, ...], line: str
) -> None:
    """A model or task that is not there is answered with the nearest that is, or with how to give
    several.
    """
    (said,) = refused(*words)

    assert line in said
