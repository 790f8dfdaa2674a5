"""The public names of the package, and the document that describes its packages."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import harness

HARNESS = Path(harness.__file__).parent
ARCHITECTURE = HARNESS.parent / "docs/architecture.md"


def test_the_public_names_are_these() -> None:
    """Adding or removing a public name is a decision: this list changes with it."""
    assert sorted(harness.__all__) == [
        "Budget",
        "Case",
        "Decision",
        "Drift",
        "Gate",
        "Options",
        "Problem",
        "Quantizer",
        "Recipe",
        "Record",
        "Reference",
        "Store",
        "UsageError",
        "Verdict",
        "__version__",
    ]


@pytest.mark.parametrize("name", [name for name in harness.__all__ if name != "__version__"])
def test_a_public_name_is_the_class_of_its_module(name: str) -> None:
    """Each public name can be imported and is listed by ``dir``."""
    assert getattr(harness, name).__name__ == name
    assert name in dir(harness)


def test_the_version_is_that_of_the_distribution() -> None:
    """``harness.__version__`` is what pip installed."""
    assert harness.__version__ == metadata.version("quantized-clip-gate")


def test_another_name_is_an_attribute_error() -> None:
    """A name that is not public and not a module is refused as Python does it."""
    with pytest.raises(AttributeError, match="has no attribute 'Gates'"):
        harness.Gates  # noqa: B018


def test_importing_the_package_is_cheap() -> None:
    """``import harness`` loads neither torch nor ModelOpt, nor any other part of the package."""
    program = "import sys, harness; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", program],
        cwd=HARNESS.parent,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()

    assert "harness" in loaded
    heavy = [
        name for name in loaded if re.match(r"(torch|modelopt|transformers|numpy|harness\.)", name)
    ]
    assert heavy == []


def test_the_architecture_names_every_package() -> None:
    """The table of docs/architecture.md has one row per package, and no row without a package."""
    packages = {"harness"} | {
        f"harness.{path.parent.name}" for path in HARNESS.glob("*/__init__.py")
    }
    rows = re.findall(r"^\| `(harness[\w.]*)` \|.*\| (.*) \|$", ARCHITECTURE.read_text(), re.M)

    assert sorted(name for name, _ in rows) == sorted(packages - {"harness.suites"})
    for package, files in rows:
        folder = HARNESS.parent / package.replace(".", "/")
        assert [
            name for name in re.findall(r"`(\w+\.py)`", files) if not (folder / name).is_file()
        ] == []


def test_the_architecture_names_files_that_exist() -> None:
    """Every path that docs/architecture.md gives is a file or a folder, but for what only a wheel
    has.
    """
    paths = set(
        re.findall(r"`((?:harness|tests|docs|baselines)/[\w./]+)`", ARCHITECTURE.read_text())
    )
    paths -= {"harness/baselines/stored/"}

    assert paths
    assert [path for path in paths if not (HARNESS.parent / path).exists()] == []


def test_no_test_module_imports_another() -> None:
    """What test modules share is in helper modules next to conftest.py."""
    folder = HARNESS.parent / "tests"
    imported = re.compile(r"^\s*(?:from|import) (?:\w+\.)*test_\w+", re.M)

    assert [path.name for path in folder.rglob("*.py") if imported.search(path.read_text())] == []


def test_names_of_test_modules_are_unique() -> None:
    """Pytest and mypy import test modules by their file names alone."""
    names = [
        path.name for path in (HARNESS.parent / "tests").rglob("*.py") if path.name != "conftest.py"
    ]

    assert sorted(names) == sorted(set(names))
