"""The wheel has everything that a run needs, and a run from it leaves the installed package as it
is.
"""

from __future__ import annotations

import configparser
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness import baselines, places
from harness.pytest_plugin import outcomes

ROOT = Path(__file__).parents[2]


def files_of(folder: Path, pattern: str = "**/*") -> set[str]:
    """Files below *folder*, by their paths in it."""
    paths = (
        path for path in folder.glob(pattern) if path.is_file() and "__pycache__" not in path.parts
    )
    return {path.relative_to(folder).as_posix() for path in paths if path.name != ".lock"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, unpacked; what the build writes stays out of the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in (
        "LICENSE",
        "README.md",
        "baselines",
        "harness",
        "pyproject.toml",
        "quantized_clip_gate.py",
        "setup.py",
        "tests",
    ):
        (source / name).symlink_to(ROOT / name)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", build, str(folder)],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def test_the_wheel_is_the_package_its_suites_and_its_baselines(wheel: Path) -> None:
    """Modules, recipes, templates, embedded model, suites and baselines are in it; the project's
    own tests are not.
    """
    expected = {f"harness/{name}" for name in files_of(ROOT / "harness")}
    expected.add("quantized_clip_gate.py")
    expected |= {f"harness/suites/{name}" for name in files_of(ROOT / "tests", "*.py")}
    expected |= {f"harness/baselines/stored/{name}" for name in files_of(ROOT / "baselines")}
    names = {name for name in files_of(wheel) if not name.split("/")[0].endswith(".dist-info")}

    assert {
        "harness/recipes/library/more/nvfp4.yaml",
        "harness/report/templates/report.html",
        "harness/models/embedded/clip/model.safetensors",
        "harness/models/embedded/data/emoji/test/0.tar",
        "harness/suites/test_insertion.py",
        "harness/baselines/stored/budgets.yaml",
    } <= names
    assert names == expected


def test_the_baselines_in_the_wheel_are_those_of_the_checkout(wheel: Path) -> None:
    """Budgets and records are in the wheel byte for byte."""
    stored = wheel / "harness" / "baselines" / "stored"

    for name in files_of(ROOT / "baselines"):
        assert (stored / name).read_bytes() == (ROOT / "baselines" / name).read_bytes()


def test_the_entry_point_is_the_guest(wheel: Path) -> None:
    """Of an installed gate pytest imports one module in every project: the guest."""
    entries = configparser.ConfigParser()
    entries.read(wheel.glob("*.dist-info/entry_points.txt"))

    assert set(entries["pytest11"].values()) == {"quantized_clip_gate"}


def test_an_unpacked_wheel_finds_its_own_suites_and_baselines(wheel: Path, tmp_path: Path) -> None:
    """Imported from the wheel, the gate has its suites and baselines in the package, and nothing of
    a checkout.
    """
    code = (
        "from harness import places; print(places.INSTALLED, places.SUITES, places.BUDGETS, "
        "places.DOCS)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(wheel)},
        check=False,
        capture_output=True,
        text=True,
    )

    package = wheel / "harness"
    stored = f"{package}/baselines/stored/budgets.yaml"
    assert done.stdout.split() == ["True", f"{package / 'suites'}", stored, "."]


# -- a run from an installed gate ------------------------------------------------------------------


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """As if the gate were installed, with its baselines in a folder of the package; returns that
    folder.
    """
    stored = tmp_path / "site-packages" / "harness" / "baselines" / "stored"
    stored.mkdir(parents=True)
    monkeypatch.setattr(places, "INSTALLED", True)
    monkeypatch.setattr(places, "BASELINES", stored)
    monkeypatch.setattr(places, "SUITES", tmp_path / "site-packages" / "harness" / "suites")
    return stored


@pytest.mark.parametrize("store", [[], ["--baselines"]], ids=["default", "named"])
@pytest.mark.parametrize(
    "options",
    [["--update-baselines", "--reason", "new data"], ["--new-baselines-only"]],
    ids=lambda words: words[0],
)
def test_nothing_is_stored_in_an_installed_gate(
    pytester: pytest.Pytester, installed: Path, store: list[str], options: list[str]
) -> None:
    """Without a folder of one's own, storing baselines is refused in one line, and nothing is
    written.
    """
    place = [*store, str(installed)] if store else []

    result = pytester.runpytest_inprocess("-p", "harness.pytest_plugin.plugin", *options, *place)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = [line for line in result.errlines if line]
    assert line.startswith(
        f"ERROR: {options[0]}: would change the baselines of the installed gate. Give a folder"
    )
    assert line.endswith(": --baselines DIR.")
    assert list(installed.iterdir()) == []


def test_commands_of_an_installed_gate_call_its_package(installed: Path) -> None:
    """A test of the installed suites is run again by its module's name, a test of a project by its
    id.
    """
    suite: Any = SimpleNamespace(
        path=places.SUITES / "test_numerics.py", nodeid="any/test_numerics.py::test_x[a-b]"
    )
    other: Any = SimpleNamespace(path=installed / "test_mine.py", nodeid="test_mine.py::test_x")
    address = outcomes.address_of(suite)

    assert address == "harness.suites.test_numerics::test_x[a-b]"
    assert baselines.rerun_command(address) == f"pytest --pyargs '{address}'"
    assert baselines.rerun_command(outcomes.address_of(other)) == "pytest test_mine.py::test_x"
    assert baselines.accept_command(recipe="mine.yaml", new_only=True) == (
        "pytest --pyargs harness.suites --recipe mine.yaml --baselines DIR --new-baselines-only"
    )
    own = baselines.accept_command(options=["--baselines", "mine"], recipe="r", new_only=True)
    assert own == "pytest --pyargs harness.suites --baselines mine --recipe r --new-baselines-only"
