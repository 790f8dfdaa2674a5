"""The gate's own cost, measured: ``python -m harness.benchmark [--quick] [--out FILE]`` (``tox -e benchmark``).

Whole runs of pytest, each in a process of its own: wall time, processor time and peak memory as the operating system
accounts for them.  Absolute times belong to one machine; what to compare are the ratios in the last column.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent

#: What is run, by name; the first is what the others are compared with.
RUNS: dict[str, tuple[str, ...]] = {
    "one recipe": ("--recipe", "fp8"),
    "two recipes": ("--recipe", "fp8", "--recipe", "fp8-patch-embedding-fp16"),
    "structure of every architecture, one recipe": ("--recipe", "fp8", "-k", "structure"),
    "all default recipes": (),
}


@dataclass(frozen=True)
class Cost:
    """Of one run: ``wall`` and ``cpu`` in seconds, ``memory`` in MiB (the largest process), and pytest's exit code."""

    name: str
    wall: float
    cpu: float
    memory: float
    code: int


def run(name: str, arguments: tuple[str, ...]) -> Cost:
    """Run the gate once with *arguments*."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    began = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - began
    return Cost(name, wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, process.returncode)


def main() -> int:
    """The command line; exit code 1 if a run of the gate did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="leave out the run of all default recipes")
    parser.add_argument("--out", type=Path, default=ROOT / ".benchmarks" / "gate.json")
    options = parser.parse_args()
    costs = []
    print(f"{'run':<46} {'wall s':>8} {'cpu s':>8} {'MiB':>7}  {'to the first':>12}")
    for name, arguments in RUNS.items():
        if options.quick and not arguments:
            continue
        costs.append(run(name, arguments))
        cost = costs[-1]
        failed = "" if cost.code == 0 else f"  (exit code {cost.code})"
        ratio = cost.wall / costs[0].wall
        print(f"{name:<46} {cost.wall:>8.1f} {cost.cpu:>8.1f} {cost.memory:>7.0f}  {ratio:>11.2f}x{failed}", flush=True)
    print(
        f"one more recipe: {costs[1].wall - costs[0].wall:.1f} s, {costs[1].wall / costs[0].wall - 1:.0%} of the first"
    )
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps([asdict(cost) for cost in costs], indent=1) + "\n")
    return int(any(cost.code for cost in costs))


if __name__ == "__main__":
    sys.exit(main())
