"""Whatever a person gives that cannot be used ends the gate with exit code 4 and one line: the
place and the fix.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.checks import checkpoint_preload  # noqa: F401  (what is imported first inside a nested pytest is dropped with it)
from harness.gate.case import Case
from harness.places import BASELINES

ROOT = Path(__file__).parents[3]
INSERTION, ACCURACY = (ROOT / "tests" / f"test_{name}.py" for name in ("insertion", "accuracy"))

Refused = Callable[..., str]


@pytest.fixture
def refused(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Runs the gate, asserts that it refuses what it was given and writes nothing, and returns its
    one line.
    """
    stopped = property(lambda _: pytest.exit("a model was quantized", returncode=9))
    monkeypatch.setattr(Case, "quantized", stopped)

    def run(*arguments: str | Path) -> str:
        before = contents(pytester.path)
        head = [
            "-p",
            "no:cacheprovider",
            "-c",
            str(ROOT / "pyproject.toml"),
            "--rootdir",
            str(ROOT),
        ]
        result = pytester.runpytest_inprocess(*head, *arguments)
        lines = [line for line in result.errlines if line.strip()]

        assert result.ret == pytest.ExitCode.USAGE_ERROR
        assert contents(pytester.path) == before
        assert len(lines) == 1, lines
        assert "Traceback" not in str(result.outlines)
        return str(lines[0]).removeprefix("ERROR: ")

    return run


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file below a folder, but for what Python compiles."""
    return {
        p: p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and "__pycache__" not in p.parts
    }


def assert_one_line(line: str, *parts: str | Path) -> None:
    """Fail unless the line holds all parts, the first one at its beginning, and ends with a
    sentence on the fix.
    """
    assert line.startswith(str(parts[0])), line
    assert [part for part in parts if str(part) not in line] == [], line
    assert re.search(r"\. .+\.?$|Known: ", line), line


# -- recipes ---------------------------------------------------------------------------------------

ENTRY = (
    "metadata:\n  recipe_type: ptq\nquantize:\n  algorithm: max\n  quant_cfg:\n    - "
    "quantizer_name: '*'\n"
)
RECIPES = {
    "does not parse": (ENTRY.replace("'*'", "'*"), ":7", "is not YAML"),
    "is a list": ("- 1\n- 2\n", "", "is not a recipe"),
    "names an unknown attribute": (ENTRY + "      cfg:\n        num_bist: 8\n", ":8", "num_bist"),
    "imports what does not exist": (
        "imports:\n  base: no/such/recipe\n" + ENTRY,
        "",
        "no/such/recipe",
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_that_cannot_be_used(refused: Refused, tmp_path: Path, name: str) -> None:
    """A recipe that does not parse, or names what is not there, is reported with its file, its line and
    the culprit.
    """
    text, line, culprit = RECIPES[name]
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(text)

    assert_one_line(
        refused(INSERTION, "--recipe", recipe, "-k", "covered"), f"{recipe}{line}", culprit
    )


@pytest.mark.parametrize(
    ("ref", "what"),
    [
        ("fp9", "names no recipe"),
        ("no_such_module:CFG", "there is no module 'no_such_module'"),
        ("harness.errors:CFG", "has no attribute 'CFG'"),
        ("no/such/file.yaml", "file"),
    ],
)
def test_recipe_that_is_not_there(refused: Refused, ref: str, what: str) -> None:
    """A recipe reference that leads nowhere is reported with what was given and what can be."""
    line = refused(INSERTION, "--recipe", ref, "-k", "covered")

    assert ref in line
    assert what in line


# -- models and data -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "gone", ["config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"]
)
def test_incomplete_model_directory(refused: Refused, tmp_path: Path, gone: str) -> None:
    """A model directory without one of its files is reported with that file."""
    folder = tmp_path / "clip"
    shutil.copytree(ROOT / "harness" / "models" / "embedded" / "clip", folder)
    for path in folder.glob("*token*") if gone == "tokenizer.json" else [folder / gone]:
        path.unlink()
    for path in [folder / "vocab.json", folder / "merges.txt"] if gone == "tokenizer.json" else []:
        path.unlink(missing_ok=True)

    line = refused(INSERTION, "--recipe", "int8", "--clip-model", folder, "-k", "covered")

    assert str(folder) in line
    assert gone.partition(".")[0].removesuffix("_config")[:9] in line


def test_truncated_weights(refused: Refused, tmp_path: Path) -> None:
    """Weights cut off in the middle are reported with their folder, not read as far as they go."""
    folder = tmp_path / "clip"
    shutil.copytree(ROOT / "harness" / "models" / "embedded" / "clip", folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])

    assert str(folder) in refused(
        INSERTION, "--recipe", "int8", "--clip-model", folder, "-k", "covered"
    )


@pytest.mark.parametrize(
    ("arguments", "begins", "what"),
    [
        (("--tasks", "cifar1000"), "--tasks cifar1000", "is not a task. Did you mean 'cifar100'"),
        (("--tasks", "cifar100"), "--tasks cifar100", "Give --data-root DIR"),
        (("--tasks", "wds/mine", "--data-root", "here"), "here", "wds/mine"),
        (("--tasks", "cifar100", "--data-root", "here"), "here", "cifar-100-python"),
        (("--data-root", "nowhere"), "--data-root nowhere", "Give an existing directory."),
        (
            ("--calibration-data", "nowhere"),
            "--calibration-data nowhere",
            "Give an existing directory, or",
        ),
        (("--calibration-data", "here"), "here", "neither shards nor caption annotations"),
        (("--recipes-root", "nowhere"), "--recipes-root nowhere", "Give an existing directory."),
        (("--calibration-size", "0"), "--calibration-size", "Give a positive number"),
        (("--update-baselines",), "--update-baselines", "--reason TEXT"),
        (("--update-baselines", "--reason", "  "), "--update-baselines", "--reason TEXT"),
        (("--list-affected",), "--list-affected", "--changed-since REV"),
        (("--changed-since", "HEAD"), "--changed-since", "--recipes-root DIR"),
        (("--changed-since", "HEAD", "--recipes-root", "here"), "", "git"),
        (("--baselines", "here"), "here/budgets.yaml", "there is no budgets file"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, tuple) else "",
)
def test_value_that_cannot_be_used(
    refused: Refused, pytester: pytest.Pytester, arguments: tuple[str, ...], begins: str, what: str
) -> None:
    """A value of an option that leads nowhere is reported with the option or the place, and with what
    can be given.
    """
    pytester.mkdir("here")

    line = refused(ACCURACY, "--recipe", "int8", *arguments)

    assert line.removeprefix(f"{pytester.path}/").startswith(begins)
    assert what in line


@pytest.mark.parametrize(
    "arguments",
    [
        ("--device", "tpu"),
        ("--attention", "none"),
        ("--calibration-size", "many"),
        ("--no-such-option",),
    ],
)
def test_option_that_the_parser_refuses(
    pytester: pytest.Pytester, arguments: tuple[str, ...]
) -> None:
    """An unknown option, or a value outside an option's choices, is a usage error that names it."""
    head = ["-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
    result = pytester.runpytest_inprocess(*head, INSERTION, *arguments)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {arguments[0]}: *"])


# -- budgets and baselines -------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A copy of the committed budgets and of what int8 measured."""
    folder = tmp_path / "store"
    for part in ("int8", "reference"):
        shutil.copytree(BASELINES / "embedded" / part, folder / "embedded" / part)
    shutil.copy(BASELINES / "budgets.yaml", folder)
    return folder


def rewritten(path: Path, old: str | bytes, new: str | bytes) -> Path:
    """The file with one passage in it replaced."""
    was, now = (part.encode() if isinstance(part, str) else part for part in (old, new))
    content = path.read_bytes()
    assert was in content
    path.write_bytes(content.replace(was, now, 1))
    return path


BUDGETS: dict[str, tuple[str, str, str]] = {
    "unknown setting": ("  alpha: 0.05", "  alhpa: 0.05", "alhpa"),
    "not YAML": ("defaults:", "defaults: [", "YAML"),
    "number out of range": ("  power: 0.8", "  power: 1.8", "(defaults.power): is 1.8"),
    "override without a reason": ("    reason: four-bit", "    # four-bit", "reason"),
    "unknown recipe": ('recipe: "int4-awq"', 'recipe: "int4-awg"', "int4-awg"),
}


@pytest.mark.parametrize("name", BUDGETS)
def test_budgets_that_cannot_be_used(refused: Refused, store: Path, name: str) -> None:
    """A broken budgets file is reported with the file and its line."""
    old, new, what = BUDGETS[name]
    path = rewritten(store / "budgets.yaml", old, new)

    line = refused(ACCURACY, "--recipe", "int8", "--tasks", "emoji100", "--baselines", store)

    assert re.search(rf"{re.escape(str(path))}:\d+", line)
    assert what in line


def test_unresolvable_budget_names_the_sample_size_that_would_do(
    refused: Refused, store: Path
) -> None:
    """A budget that the task's sample count cannot resolve, of a task without a record, is refused
    with its line and the count that could.
    """
    path = store / "budgets.yaml"
    rewritten(path, "    points: 2.5\n    expected_loss: 0.5", "    points: 0.7")
    shutil.rmtree(store / "embedded" / "int8")

    line = refused(ACCURACY, "--recipe", "int8", "--tasks", "emoji100", "--baselines", store)

    needed = [
        int(number.replace(",", "")) for number in re.findall(r"\b\d[\d,]*\d\b(?= samples)", line)
    ]
    assert max(needed) > 1000
    assert re.search(rf"{re.escape(str(path))}:\d+", line)


def cut(path: Path) -> None:
    """Leave the first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """Change one bit of a file's last byte."""
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


DAMAGE: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "record that is empty": ("int8/record@*.json", lambda p: p.write_text("")),
    "record cut in the middle": ("int8/record@*.json", cut),
    "record that is not JSON": ("int8/record@*.json", lambda p: rewritten(p, "{", "[")),
    "record with an edited number": (
        "int8/record@*.json",
        lambda p: rewritten(p, '"size": 512', '"size": 513'),
    ),
    "record under another device's name": (
        "int8/record@*.json",
        lambda p: p.rename(p.with_name("record@sm90@nvidia-h200.json")),
    ),
    "record with a stray name": (
        "int8/record@*.json",
        lambda p: p.rename(p.with_name("record.old.json")),
    ),
    "outcomes cut in the middle": ("int8/outcomes-*.safetensors", cut),
    "outcomes with one other bit": ("int8/outcomes-*.safetensors", flip),
    "outcomes that are gone": ("int8/outcomes-*.safetensors", Path.unlink),
    "reference outcomes with one other bit": ("reference/emoji100.acc1-*.safetensors", flip),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_baseline(refused: Refused, store: Path, name: str) -> None:
    """A record or outcomes that were cut, edited, moved or lost are reported with the file, before
    anything is measured.
    """
    pattern, damage = DAMAGE[name]
    # Records of several devices may each have their own reference outcomes.
    paths = sorted(store.rglob(pattern.partition("/")[2]))
    for path in paths:
        damage(path)

    line = refused(ACCURACY, "--recipe", "int8", "--tasks", "emoji100", "--baselines", store)

    assert str(paths[0].parent) in line
    assert re.search(r"git (rm|checkout|restore)|rename|pytest ", line, re.IGNORECASE)


def test_damaged_baseline_is_not_overwritten(refused: Refused, store: Path) -> None:
    """Not even a run that updates the baselines replaces a record that it cannot read."""
    for record in store.rglob("int8/record@*.json"):  # of several devices
        cut(record)

    arguments = (
        "--recipe",
        "int8",
        "--baselines",
        store,
        "--update-baselines",
        "--reason",
        "a new release",
    )
    assert "record@" in refused(INSERTION, *arguments, "-k", "baseline")


def test_annotations_are_printed_of_a_run_that_is_refused(
    pytester: pytest.Pytester, capfd: pytest.CaptureFixture[str]
) -> None:
    """What ends the run is on its line, next to what else the lint sees, and in the report's
    folder.
    """
    text = "metadata: {recipe_type: ptq}\nquantize:\n  quant_cfg:\n"
    entries = (
        "  - {quantizer_name: '*wieght*', enable: no}\n  - {quantizer_name: '*', cfg: {bits: 8}}\n"
    )
    recipe = pytester.path / "r.yaml"
    recipe.write_text(text + entries)
    head = ["-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
    asked = ["--recipe", str(recipe), "--gate-annotations", "github", "--gate-report", "out"]

    result = pytester.runpytest_inprocess(*head, *asked, INSERTION)

    commands = (pytester.path / "out/annotations.txt").read_text().splitlines()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert [
        re.sub(r"file=[^,]*r\.yaml,", "", line.partition("::")[2].partition("::")[0])
        for line in commands
    ] == [
        "error line=4,col=5,title=no-match",
        "error line=5,col=33,title=unknown-attribute",
    ]
    assert commands[0] in "\n".join(result.outlines) + capfd.readouterr().out
    assert '"version": "2.1.0"' in (pytester.path / "out/problems.sarif").read_text()
