"""What the gate costs, measured truly: the page's arithmetic, a run's own cost, and the plain script's
accuracies.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.tools import benchmark
from harness.tools.benchmark import PLAIN, RUNS, SINGLE


def stored() -> dict[str, Any]:
    """Made-up measurements, one of each kind."""
    seconds = dict.fromkeys(RUNS, 100.0) | {PLAIN: 60.0, SINGLE: 20.0}
    seconds |= {"accuracy, ten recipes": 80.0, "accuracy, two recipes": 112.0}
    costs = [
        {"name": name, "wall": s, "cpu": s, "memory": 900.0, "code": 0}
        for name, s in seconds.items()
    ]
    ratio = {"value": 1.5, "low": 1.4, "high": 1.6, "rounds": 8}
    row = {
        "tower": "text",
        "side": "INT8",
        "per_second": 1234.5,
        "ratio": ratio,
        "resident": 100 << 20,
    }
    return {
        "gate": {"device": "a CPU", "costs": costs, "least": {"calibration": 8.0, "forward": 2.0}},
        "deployed": {
            "device": "a CPU",
            "threads": 2,
            "rows": {"embedded": [row]},
            "bf16": "no kernel",
        },
        "gpu": {"missing": "torch sees no CUDA device"},
    }


def test_the_page_holds_the_ratios_of_what_was_measured() -> None:
    """Ten plain scripts of 60 s are 7.5 times 80 s, of 20 s 2.5; one more recipe of 12 s is 1.2
    times 10 s.
    """
    page = benchmark.page(stored())

    assert "ten times 60 s: **7.5 times**" in page
    assert "In FP32 ten times 20 s: 2.5 times." in page
    assert "One more recipe: 12.0 s" in page
    assert "**1.20 times**" in page
    assert "| text | INT8 | 1,234.5 | 1.50 [1.40, 1.60] | 100 |" in page
    assert "Not measured: torch sees no CUDA device" in page


def test_the_page_is_of_what_is_stored(tmp_path: Path) -> None:
    """The command writes it from the file it is given; a part that was not measured is left out."""
    record = tmp_path / "speed.json"
    record.write_text(json.dumps({"gpu": stored()["gpu"]}))

    assert (
        benchmark.main(["page", "--stored", str(record), "--out", str(tmp_path / "speed.md")]) == 0
    )

    text = (tmp_path / "speed.md").read_text()
    assert "## On a GPU" in text
    assert "## The gate's own" not in text


def test_a_page_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 4, one line with the fix, and no page."""
    with pytest.raises(SystemExit, match="4"):
        benchmark.main(
            ["page", "--stored", str(tmp_path / "no.json"), "--out", str(tmp_path / "speed.md")]
        )

    assert (
        "holds no measurement; run `python -m harness.tools.benchmark` first"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "speed.md").exists()


def test_a_run_is_charged_with_its_own_time_and_memory() -> None:
    """Of a process that fills 200 MiB and fails: its exit code, its memory, and no more processor
    time than there was.

    In a small process: what a parent holds when it forks counts as its child's.
    """
    code = "x = bytearray(200 << 20); x[::4096] = b'1' * len(x[::4096]); raise SystemExit(3)"
    ask = (
        "import sys; from harness.tools.benchmark import cost; print(vars(cost('', "
        "[sys.executable, '-c', "
        "sys.argv[1]])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", ask, code], capture_output=True, text=True, check=True
    )

    cost = ast.literal_eval(done.stdout)

    assert cost["code"] == 3
    assert 200 <= cost["memory"] < 300
    assert 0 < cost["cpu"] <= cost["wall"] + 1


@pytest.mark.parametrize("how", [[], ["--fp32"]], ids=["fp16", "fp32"])
def test_the_plain_script_finds_the_accuracies_of_the_gate(how: list[str]) -> None:
    """What the gate is timed against does the same work: its accuracies are those of the model
    card.
    """
    command = [sys.executable, "-m", "harness.tools.plain", *how, "fp8", "emoji100"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=benchmark.ROOT, check=True)

    accuracies = json.loads(done.stdout.splitlines()[-1])

    assert accuracies["reference"]["emoji100 acc1"] == pytest.approx(0.835, abs=0.011)
    assert accuracies["quantized"]["emoji100 acc1"] == pytest.approx(0.835, abs=0.021)
