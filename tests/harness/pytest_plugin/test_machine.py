"""Saved runs of pytest-benchmark: kept by device, compared on it, and never silently with another
machine's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.checks import checkpoint_preload  # noqa: F401  (what is imported first inside a nested pytest is dropped with it)
from harness.evaluation.environment import DeviceKey

DEVICE = DeviceKey.of(torch.device("cpu"))


@pytest.fixture
def run(pytester: pytest.Pytester) -> Any:
    """Runs one short benchmark with the plugin and the given options."""
    pytester.makepyfile(
        "def test_sum(benchmark): benchmark.pedantic(sum, args=([1, 2],), rounds=3)"
    )
    return lambda *options: pytester.runpytest_inprocess(
        "-p", "harness.pytest_plugin.plugin", "--device", "cpu", *options
    )


@pytest.fixture
def saved(run: Any, pytester: pytest.Pytester) -> Path:
    """A run saved on this machine."""
    run("--benchmark-save", "before")
    (path,) = pytester.path.glob(".benchmarks/*/0001_before.json")
    return path


def test_storage_key_carries_the_device(saved: Path) -> None:
    """The folder is named after the CPU, and the run says which device, threads and torch it
    belongs to.
    """
    info = json.loads(saved.read_text())["machine_info"]

    assert saved.parent.name.endswith(f"-{DEVICE.exact}")
    assert info["device"] == str(DEVICE)
    assert (info["threads"], info["torch"]) == (str(torch.get_num_threads()), torch.__version__)
    assert "hz_actual" not in info["cpu"]


def test_same_machine_is_compared(run: Any, saved: Path) -> None:
    """On the device of the saved run pytest-benchmark compares as ever, without a word about
    machines.
    """
    result = run("--benchmark-compare=0001", "--benchmark-compare-fail=median:100000000%")

    assert result.ret == 0
    result.stdout.fnmatch_lines_random(["test_sum (NOW)*", "test_sum (0001_before)*"])
    result.stderr.no_fnmatch_line("*machine_info*")
    result.stderr.no_fnmatch_line("--benchmark-compare:*")


@pytest.fixture
def elsewhere(saved: Path) -> Path:
    """The saved run, edited to belong to another machine."""
    content = json.loads(saved.read_text())
    content["machine_info"]["device"] = "xeon-platinum-8488c-1f3a9c2e (x86_64-avx512)"
    saved.write_text(json.dumps(content))
    return saved


def test_another_machine_is_told_in_one_line_and_not_compared(run: Any, elsewhere: Path) -> None:
    """Times of another device's run stay out of the table; one line names both devices."""
    result = run(f"--benchmark-compare={elsewhere}")

    assert result.ret == 0
    lines_of_device = [
        line
        for line in result.stderr.lines + result.stdout.lines
        if "--benchmark-compare:" in line or "machine_info" in line
    ]
    assert len(lines_of_device) == 1
    assert "xeon-platinum-8488c-1f3a9c2e" in lines_of_device[0]
    assert str(DEVICE) in lines_of_device[0]
    result.stdout.no_fnmatch_line("*test_sum (*")


def test_another_machine_decides_nothing(run: Any, elsewhere: Path) -> None:
    """--benchmark-compare-fail against another device's run is a usage error, not a pass."""
    result = run(f"--benchmark-compare={elsewhere}", "--benchmark-compare-fail=median:10%")

    assert result.ret == 4
    result.stderr.fnmatch_lines(
        ["ERROR: --benchmark-compare: *times of two machines are not compared.*"]
    )
