"""Proof that the gate catches what it claims to: plant each fault, run the gate, record what kills
it first.

And the other side: the gate run again and again on nothing but other batch sizes, thread counts,
orders, hash seeds and processes must never raise an alarm (A/A).  ``pytest -m proof`` does both and
writes ``docs/kill-matrix.md``; ``python -m harness.tools.proof`` does the same without pytest.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from harness import places
from harness.checks import registry
from harness.checks.registry import Check
from harness.errors import UsageError
from harness.gate.case import Case
from harness.gate.options import Options
from harness.gate.preflight import preflight
from harness.gate.reference_side import Prepared
from harness.gate.session import Gate
from harness.json_values import Json
from harness.quantization.quantize import QuantizationError
from harness.tools import pages
from harness.tools.faults import CATALOGUE, Fault, FaultSite, Where

MATRIX = places.DOCS / "kill-matrix.md"
#: Pairs that the proof calibrates on: two batches, so that a loop which stops early is seen.
PAIRS = 128
#: Confidence of the bounds, one-sided.
CONFIDENCE = 0.95
MODEL = "embedded"
#: One task: what it misses, all of them might catch, and a run of all of them would take an hour.
TASKS = ("emoji100",)
#: Batch sizes of the A/A runs, of which little of a product's 512 rows and of a task's last batch
#: is filling.
BATCHES = (64, 27, 41, 55, 96)
#: What a clean run shares with a fault that does not touch it.
SHARED = frozenset({"reference", "tasks", "runs", "calibration", "places", "material"})

# -- the gate's checks, in the order in which they run ---------------------------------------------

#: Suites that decide about a recipe; the others measure, or need what a planted fault does not
#: have.
_DECIDING = ("insertion", "numerics", "accuracy", "consumers", "checkpoint", "export")
#: Checks of the insertion suite that come after numerics: what they find, an earlier check may find
#: without them.
_LATER = ("map_equals_baseline", "structure_of_published_architecture")
#: The check of accuracy that needs no quantized model, and so comes before those of `_LATER`.
_REFERENCE = ("reference_agrees_with_published",)
#: Of what the suites look at exhaustively, a few values that distinguish a wrong function from a
#: right one.
FEW: dict[str, tuple[object, ...]] = {
    "architecture": ("ViT-L-14",),
    "dtype": (torch.float32, torch.float16),
    "name": ("E4M3", "INT8", "INT8-narrow"),
    "examples": (5,),
}


def ordered(checks: Sequence[Check]) -> tuple[Check, ...]:
    """*checks* of the deciding suites that need no fixture, cheap ones first, and accuracy's record
    last.
    """
    decide = [check for check in checks if check.suite in _DECIDING and not check.needs_fixture]
    later = [check for check in decide if check.name in _LATER]
    recorded = [check for check in decide if check.recorded and check not in later]
    first = [check for check in decide if check not in later and check not in recorded]
    early = [check for check in first if check.suite in ("insertion", "numerics")]
    early += [check for check in first if check.name in _REFERENCE]
    return (*early, *later, *(check for check in first if check not in early), *recorded)


CHECKS = ordered(registry.every())


def _looked_at(gate: Gate) -> tuple[str, ...]:
    preflight(gate, accuracy=True)
    return ()


#: What stops a run with a usage error before its first test.
PREFLIGHT = Check("before the run", "all_that_was_given_can_be_used", _looked_at)
#: Where ModelOpt refuses a recipe, no check has anything to look at.
REFUSED = Check("insertion", "ModelOpt_refuses_the_recipe", _looked_at)
NOTHING = Check("", "", _looked_at)


# -- faults ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kill:
    """The result of one planted fault: the check that killed it first, or none.

    ``how`` is "failed", "usage error" (exit code 4) or "error" (the gate's test raised).
    ``recorded``: the check needs a baseline.  ``seconds`` of the whole run.
    """

    fault: str
    suite: str
    check: str
    how: str
    recorded: bool
    message: str
    seconds: float

    @property
    def survived(self) -> bool:
        """Whether nothing noticed."""
        return not self.suite


class Clean:
    """Runs of the gate with nothing planted: what faults are compared with, and the baselines they
    are held to.
    """

    def __init__(
        self, folder: Path, recipes: Iterable[str], options: Options | None = None
    ) -> None:
        self.folder = folder
        self.baselines = folder / "baselines"
        self.baselines.mkdir(parents=True)
        base = options or Options(tasks=TASKS)
        shutil.copy(base.baselines / "budgets.yaml", self.baselines)
        self.options = Options(
            recipes=tuple(recipes),
            clip_models=(MODEL,),
            tasks=base.tasks,
            calibration_size=PAIRS,
            baselines=self.baselines,
            device="cpu",
        )
        self.gate = Gate(self.options)

    def record(self, *, show: Callable[[str], object] = lambda text: None) -> None:
        """Measure every recipe and store its baseline."""
        for case in self.gate.cases():
            self.gate.store.update(
                case.record(consumers=True), reason="clean run of the proof", show=show
            )

    def prepared(self, fault: Fault | None = None) -> Prepared:
        """What a run takes over of this one: what has been built and *fault* does not touch."""
        return self.gate.side(MODEL).prepared(SHARED - (fault.rebuilt if fault else frozenset()))

    def run(self, site: FaultSite, fault: Fault | None = None) -> Case:
        """A case of a fresh gate over *site*, sharing with the clean one what *fault* does not
        touch.
        """
        options = replace(self.options, recipes=(site.recipe,), baselines=site.baselines)
        options = replace(options, **site.options)
        return Gate(options, prepared={MODEL: self.prepared(fault)}).cases()[0]

    def site(self, recipe: str) -> FaultSite:
        """A new place to plant in, with its own copy of the baselines."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        shutil.copytree(self.baselines, folder / "baselines")
        return FaultSite(folder, folder / "baselines", recipe)


def attempt(fault: Fault, clean: Clean, checks: Sequence[Check] = CHECKS) -> Kill:
    """Plant *fault*, run *checks* in their order, and stop at the first that notices."""
    began = time.perf_counter()
    site = clean.site(fault.recipe)
    with fault.planted(site):
        first = _noticed(fault, clean, site, checks)
    shutil.rmtree(site.folder)
    check, how, message = first or (NOTHING, "", "")
    seconds = round(time.perf_counter() - began, 2)
    return Kill(fault.name, check.suite, check.title, how, check.recorded, message, seconds)


def _noticed(
    fault: Fault, clean: Clean, site: FaultSite, checks: Sequence[Check]
) -> tuple[Check, str, str] | None:
    try:
        case = clean.run(site, fault)
    except UsageError as error:
        return PREFLIGHT, "usage error", str(error)
    # The fresh process of the checkpoint suite carries no fault but those of the checkpoint itself.
    carried = [c for c in checks if c.suite != "checkpoint"]
    if fault.where in (Where.CHECKPOINT, Where.EXPORT):
        # Nothing but its own suite sees a saved model, or a graph.
        carried = [c for c in checks if c.suite == fault.where.value]
    for check in (PREFLIGHT, *carried):
        try:
            problem = next(check.problems(case, FEW), None)
        except UsageError as error:
            return check, "usage error", str(error)
        except QuantizationError as error:
            return REFUSED, "failed", str(error)
        except Exception as error:
            # pytest calls a test that raises failed, whatever it raises.
            return check, "error", f"{type(error).__name__}: {error}"
        if problem is not None:
            return check, "failed", problem
    return None


def kills(
    clean: Clean, faults: Iterable[Fault], show: Callable[[str], object] = print
) -> list[Kill]:
    """Attempt every fault; *show* gets a line of each."""
    kills_of_all = []
    for fault in faults:
        kill = attempt(fault, clean)
        kills_of_all.append(kill)
        verdict = "SURVIVED" if kill.survived else f"{kill.suite}: {kill.check} ({kill.how})"
        aid = "; needs a baseline" if kill.recorded else ""
        show(f"{kill.seconds:6.1f} s  {fault.where.value:11}  {fault.name:45}  {verdict}{aid}")
        if kill.how == "error":
            show(f"{'':12}{kill.message}")
    return kills_of_all


# -- A/A -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variation:
    """How one A/A run differs from the clean one, in nothing that may matter."""

    batch_size: int
    threads: int
    order: int
    hash_seed: str
    process: int


def variations(count: int, process: int, hash_seed: str) -> Iterator[Variation]:
    """*count* variations for one process: BATCHES and thread counts in turn, a new order each time.

    Two threads every third time only: they wait for each other where something else runs at the
    same time them.  Each process begins elsewhere among the pairs.
    """
    axes = zip(itertools.cycle(BATCHES), itertools.cycle((1, 1, 2)), strict=False)
    for number, (batch, threads) in enumerate(
        itertools.islice(axes, process * count, (process + 1) * count)
    ):
        yield Variation(batch, threads, 1000 * process + number, hash_seed, process)


def alarms(
    clean: Clean, how: Variation, recipes: Sequence[str], restore: bool
) -> dict[str, list[str]]:
    """Return what the gate reports of each clean recipe under *how*: nothing, unless it is a false
    alarm.
    """
    torch.set_num_threads(how.threads)
    rng = random.Random(how.order)
    # No restored checkpoint, structure without weights, graph or format knows of batch size or
    # order: once a process.
    once = ("checkpoint: restored", "insertion: structure", "export: ")
    checks = [
        c
        for c in CHECKS
        if restore or (c.is_of_case and not f"{c.suite}: {c.title}".startswith(once))
    ]
    rng.shuffle(checks)
    site = clean.site(recipes[0])
    shuffled = list(clean.gate.side(MODEL).tasks)
    rng.shuffle(shuffled)
    prepared = replace(clean.prepared(), tasks=tuple(shuffled), runs=None)
    options = replace(
        clean.options,
        recipes=tuple(recipes),
        baselines=site.baselines,
        batch_size=how.batch_size,
    )
    gate = Gate(options, prepared={MODEL: prepared})
    alarms_by_recipe = {
        case.name.recipe: [
            f"{c.suite}: {c.title}: {problem}" for c in checks for problem in c.problems(case, FEW)
        ]
        for case in gate.cases()
    }
    shutil.rmtree(site.folder)
    return alarms_by_recipe


def _worker(arguments: argparse.Namespace) -> None:
    """One process of the A/A runs: its own imports, hash seed, and clean preparations; prints a
    JSON line a run.

    As in any run of the gate, recipes under one variation share their reference.
    """
    with tempfile.TemporaryDirectory() as folder:
        clean = Clean(Path(folder) / "clean", arguments.recipe, Options(tasks=TASKS))
        shutil.rmtree(clean.baselines)
        shutil.copytree(arguments.baselines, clean.baselines)
        shared = clean.gate.side(MODEL)
        shared.tasks, shared.calibration, shared.places  # noqa: B018 - built once for all variations
        seed = os.environ.get("PYTHONHASHSEED", "random")
        for number, how in enumerate(variations(arguments.count, arguments.process, seed)):
            for recipe, alarms_ in alarms(
                clean, how, arguments.recipe, restore=number == 0
            ).items():
                print(json.dumps(asdict(how) | {"recipe": recipe, "alarms": alarms_}), flush=True)


def start_worker(
    process: int, count: int, baselines: Path, recipes: Sequence[str]
) -> subprocess.Popen[str]:
    """A fresh interpreter with a hash seed of its own, running *recipes* in *count* variations
    against *baselines*.
    """
    command = [
        sys.executable,
        "-m",
        "harness.tools.proof",
        "worker",
        "--process",
        str(process),
        "--count",
        str(count),
    ]
    command += ["--baselines", str(baselines), "--recipe", *recipes]
    environment = {
        **os.environ,
        "PYTHONHASHSEED": str(1 + 7919 * process),
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    root = Path(__file__).parents[2]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, cwd=root)


# -- bounds and the document -----------------------------------------------------------------------


def lower_bound(killed: int, planted: int) -> float:
    """Clopper and Pearson's (1934) one-sided lower bound of the kill rate, at CONFIDENCE."""
    from scipy.stats import binomtest

    return float(
        binomtest(killed, planted, alternative="greater").proportion_ci(CONFIDENCE, "exact").low
    )


def upper_bound(alarmed: int, runs: int) -> float:
    """Clopper and Pearson's one-sided upper bound of the false-alarm rate, at CONFIDENCE."""
    from scipy.stats import binomtest

    return float(
        binomtest(alarmed, runs, alternative="less").proportion_ci(CONFIDENCE, "exact").high
    )


def headline(kills_made: Sequence[Kill]) -> str:
    """``62 of 62 faults killed: 100.0 %, at least 95.3 % with 95 % confidence``."""
    killed = sum(not kill.survived for kill in kills_made)
    return (
        f"{killed} of {len(kills_made)} faults killed: {killed / len(kills_made):.1%}, "
        f"at least {lower_bound(killed, len(kills_made)):.1%} with {CONFIDENCE:.0%} confidence "
        f"(Clopper-Pearson)"
    )


def calm(runs: Sequence[Mapping[str, Json]]) -> str:
    """``100 A/A runs, 0 alarms: a false alarm in at most 3.0 % of runs ...``."""
    alarmed = sum(bool(run["alarms"]) for run in runs)
    return (
        f"{len(runs)} A/A runs, {alarmed} alarms: false alarms in at most "
        f"{upper_bound(alarmed, len(runs)):.1%} "
        f"of runs with {CONFIDENCE:.0%} confidence (Clopper-Pearson)"
    )


def document(kills_made: Sequence[Kill], runs: Sequence[Mapping[str, Json]]) -> str:
    """The kill matrix as Markdown."""
    lines = [
        "# Kill matrix",
        "",
        "Written by `pytest -m proof`. Each fault of `harness/tools/faults` is planted in turn "
        "and the",
        "gate is run on the embedded model; the table says which check notices it first. A star "
        "marks a check that",
        "needs a baseline; no check before it noticed.",
        "",
        f"**{headline(kills_made)}.**",
        "",
    ]
    if runs:
        axes = {
            axis: len({run[axis] for run in runs})
            for axis in ("recipe", "batch_size", "threads", "order", "hash_seed", "process")
        }
        lines += [
            f"**{calm(runs)}.** Varied: {axes['recipe']} recipes, {axes['batch_size']} batch "
            f"sizes, "
            f"{axes['threads']} thread counts, {axes['order']} orders of the checks, "
            f"{axes['hash_seed']} hash seeds in {axes['process']} processes.",
            "",
        ]
    by_suite = {
        suite: sum(k.suite == suite for k in kills_made)
        for suite in dict.fromkeys(k.suite for k in kills_made)
    }
    lines += ["| killed first by | faults |", "|---|---|"]
    lines += [
        f"| {suite or 'nothing'} | {count} |"
        for suite, count in sorted(by_suite.items(), key=lambda x: -x[1])
    ]
    lines += [
        "",
        "| fault | planted in | what is wrong | stands for | killed first by |",
        "|---|---|---|---|---|",
    ]
    for kill in kills_made:
        fault = CATALOGUE[kill.fault]
        ways = {"failed": "", "usage error": " (usage error)", "error": " (raises)"}
        by = "**survived**" if kill.survived else f"{kill.suite}: {kill.check}{ways[kill.how]}"
        by += " \\*" if kill.recorded else ""
        cells = (fault.name, fault.where.value, fault.plants, fault.origin, by)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n" + pages.footer("kill-matrix.md")


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m harness.tools.proof faults [NAME ...]``: plant these, or all; ``worker`` is for
    the A/A runs.
    """
    parser = argparse.ArgumentParser(prog="python -m harness.tools.proof", description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    planting = commands.add_parser("faults")
    planting.add_argument("names", nargs="*")
    working = commands.add_parser("worker")
    for name, kind in (("--process", int), ("--count", int), ("--baselines", Path)):
        working.add_argument(name, type=kind, required=True)
    working.add_argument("--recipe", nargs="+", required=True)
    chosen = parser.parse_args(arguments)
    if chosen.command == "worker":
        _worker(chosen)
        return 0
    faults = [CATALOGUE[name] for name in chosen.names] or list(CATALOGUE.values())
    with tempfile.TemporaryDirectory() as folder:
        clean = Clean(
            Path(folder) / "clean", dict.fromkeys(["fp8", "int8", *(f.recipe for f in faults)])
        )
        clean.record()
        kills_made = kills(clean, faults)
    print(headline(kills_made))
    return int(any(kill.survived for kill in kills_made))


if __name__ == "__main__":
    sys.exit(main())
