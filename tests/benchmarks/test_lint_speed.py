"""How long the lint takes: one recipe, and the whole tree of the installed ModelOpt, each in a
process of its own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from harness.recipes.finding import installed_root


@pytest.mark.benchmark(group="lint")
@pytest.mark.parametrize("name", ["huggingface/vit/ptq/fp8.yaml", ""], ids=["one recipe", "tree"])
def test_lint(benchmark: BenchmarkFixture, name: str) -> None:
    """Seconds from the command line to the exit, imports included; docs/lint.md promises two and
    five.
    """
    command = [
        sys.executable,
        "-m",
        "harness.lint.command",
        "lint",
        str(Path(installed_root(), name)),
    ]

    benchmark.pedantic(subprocess.run, args=(command,), kwargs={"capture_output": True}, rounds=3)
