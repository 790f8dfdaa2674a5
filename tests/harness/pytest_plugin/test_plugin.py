"""The gate as a person meets it: markers, verdicts, baselines, commands and processes, from the
command line.

pytest runs inside pytest here.  A run that several tests look at is made by the first of them.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from written import weights_in

from harness.baselines import Record, Store
from harness.checks import checkpoint_preload  # noqa: F401  (what is imported first inside a nested pytest is dropped with it)
from harness.digests import ids_digest
from harness.evaluation.environment import DeviceKey
from harness.gate.case import Case
from harness.gate.options import Options
from harness.gate.reference_side import ReferenceSide
from harness.gate.session import Gate
from harness.places import BASELINES

ROOT = Path(__file__).parents[3]
HEAD = ("-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT))
INSERTION, ACCURACY, ORPHANS = (
    str(ROOT / "tests" / f"test_{n}.py") for n in ("insertion", "accuracy", "orphans")
)

RunGate = Callable[..., pytest.RunResult]

#: Weights in four bits lose 1.4 points of emoji100, give or take 1.4: a budget of two points is not
#: decided.
FOUR_BITS = weights_in(4)
BUDGETS = "defaults: {points: 2.0, discordance: 0.035}\n"


@pytest.fixture
def run_gate(pytester: pytest.Pytester) -> RunGate:
    """Runs the repository's gate in this process; returns its result."""
    return lambda *arguments: pytester.runpytest_inprocess(*HEAD, *arguments)


def record_of(store: Path, recipe: str) -> Record:
    """The record that this machine finds."""
    record = Store(store).find("embedded", recipe, DeviceKey.of(torch.device("cpu")))
    assert isinstance(record, Record)
    return record


# -- what runs -------------------------------------------------------------------------------------

SUITES = ("insertion", "numerics", "accuracy", "checkpoint", "throughput", "export", "proof", "qat")


def collected(result: pytest.RunResult) -> set[str]:
    """Files of the tests that a ``--collect-only -q`` lists."""
    return {line.partition("::")[0].rpartition("/")[2] for line in result.outlines if "::" in line}


def test_each_marker_selects_its_suite_alone(run_gate: RunGate) -> None:
    """``-m accuracy``, and each other suite that is there, collects that suite's file and no
    other.
    """
    there = [name for name in SUITES if (ROOT / "tests" / f"test_{name}.py").exists()]
    collected_files = {
        name: collected(
            run_gate(
                ROOT / "tests",
                "--ignore",
                ROOT / "tests/harness",
                "--collect-only",
                "-q",
                "-m",
                name,
            )
        )
        for name in there
    }

    assert collected_files == {name: {f"test_{name}.py"} for name in there}


def test_plain_run_leaves_out_what_is_on_request(run_gate: RunGate) -> None:
    """Neither the proof nor QAT is in a plain run, and both say so as deselected; the other suites
    are all there.
    """
    result = run_gate(ROOT / "tests", "--ignore", ROOT / "tests/harness", "--collect-only", "-q")

    assert {
        "test_insertion.py",
        "test_numerics.py",
        "test_accuracy.py",
        "test_checkpoint.py",
    } <= collected(result)
    assert not {"test_proof.py", "test_qat.py"} & collected(result)
    result.stdout.fnmatch_lines(["*deselected*"])


def test_ids_name_recipe_and_model(run_gate: RunGate, tmp_path: Path) -> None:
    """Test ids read ``[recipe-model]``, folders and suffixes left out."""
    mine = tmp_path / "mine.yaml"
    mine.write_text("metadata: {recipe_type: ptq}\nquantize: {quant_cfg: []}\n")
    recipes = (
        "--recipe",
        "fp8",
        "--recipe",
        str(mine),
        "--recipe",
        "huggingface/vit/ptq/fp8",
    )

    result = run_gate(INSERTION, *recipes, "--collect-only", "-q", "-k", "covered")

    ids = [line.partition("[")[2].rstrip("]") for line in result.outlines if "::" in line]
    assert ids == ["fp8-embedded", "mine-embedded", "huggingface.vit.ptq.fp8-embedded"]


def test_help_shows_the_options(run_gate: RunGate) -> None:
    """``pytest --help`` lists the gate's options in a group of their own."""
    text = str(run_gate("--help").stdout)

    own = text.partition("quantized CLIP gate:")[2]
    options = (
        "recipe recipes-root clip-model tasks data-root calibration-data calibration-size device "
        "attention"
    )
    options += " baselines update-baselines new-baselines-only reason changed-since list-affected blame no-blame"
    for option in f"{options} early-stop gate-report".split():
        assert f"--{option}" in own


# -- verdicts --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Where the run that several tests look at is: its store, its arguments, and once it ran, its
    result.

    int8 passes, and its baseline holds the same samples in another order; four bits are
    inconclusive, and have none.
    """
    folder = tmp_path_factory.mktemp("mixed")
    store = folder / "store"
    shutil.copytree(BASELINES, store)
    (store / "budgets.yaml").write_text(BUDGETS)
    record = record_of(store, "int8")
    tasks = tuple(
        dataclasses.replace(task, sample_ids=ids_digest(["reversed"]))
        if task.task == "emoji100"
        else task
        for task in record.tasks
    )
    Store(store).update(dataclasses.replace(record, tasks=tasks), reason="another order")
    (folder / "four.yaml").write_text(FOUR_BITS)
    options = [
        "--recipe",
        "int8",
        "--recipe",
        str(folder / "four.yaml"),
        "--tasks",
        "emoji100",
        "--no-blame",
    ]
    return {"folder": folder, "arguments": [ACCURACY, *options, "--baselines", str(store)]}


@pytest.fixture
def mixed_run(
    mixed: dict[str, Any], run_gate: RunGate, monkeypatch: pytest.MonkeyPatch
) -> pytest.RunResult:
    """The result of the mixed run, made once; as on a CI server, where pytest's summary does not
    cut messages.
    """
    if "result" not in mixed:
        monkeypatch.setenv("CI", "true")
        mixed["result"] = run_gate(
            *mixed["arguments"], f"--junit-xml={mixed['folder'] / 'junit.xml'}"
        )
    result: pytest.RunResult = mixed["result"]
    return result


def cases_of(junit: Path) -> dict[str, ElementTree.Element]:
    """The test cases of a JUnit file by name."""
    return {str(case.get("name")): case for case in ElementTree.parse(junit).iter("testcase")}


def outcomes(junit: Path) -> dict[str, tuple[str, str]]:
    """Outcome and verdict of each test case of a JUnit file."""
    outcomes_by_test = {}
    for name, case in cases_of(junit).items():
        kinds = [kind for kind in ("failure", "error", "skipped") if case.find(kind) is not None]
        verdict = case.find("properties/property[@name='verdict']")
        outcomes_by_test[name] = (
            (kinds or ["passed"])[0],
            "" if verdict is None else str(verdict.get("value")),
        )
    return outcomes_by_test


def test_inconclusive_has_its_own_word(mixed_run: pytest.RunResult) -> None:
    """What the data cannot decide is counted and shown as inconclusive, with its message, and fails
    the run.
    """
    assert mixed_run.ret == pytest.ExitCode.TESTS_FAILED
    mixed_run.stdout.re_match_lines(
        [
            r".*test_accuracy\.py .*I",
            r"_+ test_loss_is_within_budget\[four-embedded-emoji100/acc1\] _+",
            r"emoji100 \(acc1\): INCONCLUSIVE: the data cannot decide whether the loss is below "
            r"the budget\.",
            r".*about [\d,]+ samples would decide",
            r"  emoji100/acc1 .* INCONCLUSIVE.*",
            r".*1 inconclusive.*",
        ]
    )


def test_inconclusive_in_junit(mixed: dict[str, Any], mixed_run: pytest.RunResult) -> None:
    """The JUnit file has an inconclusive test as a failure with its verdict as a property, and the
    whole message.
    """
    case = cases_of(mixed["folder"] / "junit.xml")[
        "test_loss_is_within_budget[four-embedded-emoji100/acc1]"
    ]
    failure = case.find("failure")

    assert failure is not None
    assert "the data cannot decide" in str(failure.text)
    assert "rerun:" in str(failure.text)
    outcomes_by_test = outcomes(mixed["folder"] / "junit.xml")
    assert outcomes_by_test["test_loss_is_within_budget[four-embedded-emoji100/acc1]"] == (
        "failure",
        "INCONCLUSIVE",
    )
    assert outcomes_by_test["test_loss_is_within_budget[int8-embedded-emoji100/acc1]"] == (
        "passed",
        "PASS",
    )


def test_other_order_of_the_samples_is_another_baseline(mixed_run: pytest.RunResult) -> None:
    """A baseline of the same samples in another order is not compared: it belongs to something
    else.
    """
    mixed_run.stdout.fnmatch_lines(
        [
            "*this baseline belongs to emoji100 acc1 in another order of the samples; this run has "
            "the same 1,000*"
        ]
    )


def commands(junit: Path, word: str) -> list[list[str]]:
    """The commands that messages show behind ``rerun:`` or ``accept:``, split as a shell does; the
    JUnit file has every message whole.
    """
    failures = [case.find("failure") for case in cases_of(junit).values()]
    messages = [str(failure.text) for failure in failures if failure is not None]
    lines = [line.strip() for message in messages for line in message.splitlines()]
    return [
        shlex.split(line.removeprefix(f"{word}:")) for line in lines if line.startswith(f"{word}:")
    ]


def test_missing_baseline_names_the_command(
    mixed: dict[str, Any], mixed_run: pytest.RunResult
) -> None:
    """A case without a baseline fails and names the command that makes it, with all that this run
    was given.
    """
    mixed_run.stdout.fnmatch_lines(["*no baseline for recipe four on model embedded*"])

    # On another device than the stored record's, the other recipe's message ends with such a
    # command as well.
    (command,) = [
        command
        for command in commands(mixed["folder"] / "junit.xml", "accept")
        if str(mixed["folder"] / "four.yaml") in command
    ]
    assert command[0] == "pytest"
    # Its verdict is INCONCLUSIVE, and --new-baselines-only stores nothing that falls short.
    assert "--update-baselines" in command
    for option, value in (
        ("--recipe", "four.yaml"),
        ("--tasks", "emoji100"),
        ("--baselines", "store"),
    ):
        assert command[command.index(option) + 1].endswith(value)


def test_rerun_commands_select_the_failed_test(
    mixed: dict[str, Any],
    mixed_run: pytest.RunResult,
    run_gate: RunGate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every failure prints the command that reruns it, which collects just this test."""
    failed = [
        name
        for name, (outcome, _) in outcomes(mixed["folder"] / "junit.xml").items()
        if outcome == "failure"
    ]
    reruns = commands(mixed["folder"] / "junit.xml", "rerun")
    monkeypatch.chdir(ROOT)

    assert sorted(command[1].partition("::")[2] for command in reruns) == sorted(failed)
    for command in reruns:
        result = run_gate(*command[1:], "--collect-only", "-q")
        assert [line for line in result.outlines if "::" in line] == [command[1]]


#: A plugin that writes down every evaluation of pictures and of words in any process.
COUNTING = """
import os
from harness.data import tasks


def counted(name):
    original = getattr(tasks, name)

    def embed(model, task, *args, **kwargs):
        quantized = any("quantizer" in path for path, _ in model.named_modules())
        with open(os.environ["COUNTED"], "a") as file:
            kind = "quantized" if quantized else "reference"
            file.write(f"{os.getpid()} {kind} {name} {task.name} {kwargs.get('part') or args[-1]}\\n")
        return original(model, task, *args, **kwargs)

    setattr(tasks, name, embed)


counted("image_embeddings")
counted("text_embeddings")
"""


def test_two_processes_give_the_verdicts_of_one(
    mixed: dict[str, Any], mixed_run: pytest.RunResult, tmp_path: Path
) -> None:
    """Under pytest-xdist the same tests fail with the same verdicts, the table at the end is whole,
    and no evaluation of the reference, which both processes need, is made twice.
    """
    (tmp_path / "counting.py").write_text(COUNTING)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    more = ["-p", "counting", "-n", "2", f"--junit-xml={tmp_path / 'two.xml'}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *HEAD, *more, *mixed["arguments"]],
        cwd=ROOT,
        env=os.environ
        | {"COLUMNS": "120", "PYTHONPATH": path, "COUNTED": str(tmp_path / "counted")},
        capture_output=True,
        text=True,
        check=False,
    )

    def table(lines: list[str]) -> list[str]:
        heading = next(i for i, line in enumerate(lines) if "quantized against FP16" in line)
        return list(
            itertools.takewhile(lambda line: not line.startswith("="), lines[heading + 1 :])
        )

    assert done.returncode == mixed_run.ret == 1, done.stdout + done.stderr
    assert outcomes(tmp_path / "two.xml") == outcomes(mixed["folder"] / "junit.xml")
    rows = [line.split() for line in table(done.stdout.splitlines()) if "emoji100/acc1" in line]
    assert rows
    expected = [line.split() for line in table(mixed_run.outlines) if "emoji100/acc1" in line]
    assert [row[:4] for row in rows] == [row[:4] for row in expected]
    counted = [line.split(maxsplit=1) for line in (tmp_path / "counted").read_text().splitlines()]
    of_reference = [what for _, what in counted if what.startswith("reference")]
    assert sorted(of_reference) == [
        "reference image_embeddings emoji100 (0, 1000)",
        "reference text_embeddings emoji100 (0, 100)",
    ]
    assert len({process for process, what in counted if what.startswith("quantized")}) == 2


def test_two_processes_refuse_bad_input(tmp_path: Path) -> None:
    """Under pytest-xdist, too, what cannot be used ends the run with exit code 4 and its line."""
    (tmp_path / "mine.yaml").write_text("- 1\n")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            *HEAD,
            "-n",
            "1",
            INSERTION,
            "--recipe",
            str(tmp_path / "mine.yaml"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == pytest.ExitCode.USAGE_ERROR, done.stdout + done.stderr
    assert f"ERROR: {tmp_path / 'mine.yaml'}: is not a recipe" in done.stderr
    assert "INTERNALERROR" not in done.stdout + done.stderr


def test_usage_error_in_a_running_test(run_gate: RunGate, monkeypatch: pytest.MonkeyPatch) -> None:
    """What only a running test can find unusable ends the run at once with exit code 4 and its
    line; no other line says that nothing is stored.
    """
    from harness.errors import UsageError

    def broken(*_: object) -> None:
        raise UsageError("/data/7.png", "is not a picture", "Restore it.")

    monkeypatch.setattr(ReferenceSide, "places", property(broken))

    result = run_gate(
        INSERTION, "--recipe", "int8", "--new-baselines-only", "-k", "matches or map_equals"
    )

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.no_fnmatch_line("*nothing is stored*")
    assert [line for line in result.errlines if line] == [
        "ERROR: /data/7.png: is not a picture. Restore it."
    ]


# -- baselines -------------------------------------------------------------------------------------


def test_life_of_a_baseline(run_gate: RunGate, tmp_path: Path) -> None:
    """Missing, it fails; added, it holds; of other calibration data, it belongs to something else
    and is kept by ``--new-baselines-only``; updated with a reason, the diff is shown, the reason
    kept, and it holds again.
    """
    (tmp_path / "budgets.yaml").write_text((BASELINES / "budgets.yaml").read_text())

    def gate(size: int, *options: str) -> pytest.RunResult:
        head = (
            "--recipe",
            "int8",
            "--baselines",
            tmp_path,
            "--calibration-size",
            str(size),
            *options,
        )
        return run_gate(INSERTION, *head, "-k", "test_map_equals_baseline")

    missing = gate(16)
    assert missing.ret == 1
    missing.stdout.fnmatch_lines(
        ["no baseline for recipe int8 on model embedded", "*accept: pytest*--new-baselines-*"]
    )
    assert not list(tmp_path.rglob("record@*"))

    added = gate(16, "--new-baselines-only")
    assert added.ret == 0
    added.stdout.fnmatch_lines(["added: *int8/record@*.json"])
    (path,) = tmp_path.rglob("record@*")
    assert gate(16).ret == 0

    content = path.read_bytes()
    foreign = gate(8)
    assert foreign.ret == 1
    foreign.stdout.fnmatch_lines(
        [
            "*this baseline belongs to calibration size 16 pairs; this run has 8 pairs",
            "*accept: *--update-baselines*",
        ]
    )
    gate(8, "--new-baselines-only").stdout.fnmatch_lines(["kept: *"])
    assert path.read_bytes() == content

    updated = gate(8, "--update-baselines", "--reason", "half the pairs will do")
    assert updated.ret == 0
    updated.stdout.fnmatch_lines(
        ["changed: *", "*calibration size 16 pairs to 8 pairs", "*reason: half the pairs*"]
    )
    assert [entry.reason for entry in record_of(tmp_path, "int8").history][
        -1
    ] == "half the pairs will do"
    assert len(record_of(tmp_path, "int8").history) == 2
    assert gate(8).ret == 0


def test_orphan_fails_the_full_run(run_gate: RunGate, tmp_path: Path) -> None:
    """A record that no default recipe uses fails a full run and names the command that removes it;
    a partial run cannot know and skips.
    """
    shutil.copytree(BASELINES, tmp_path / "store")
    shutil.copytree(tmp_path / "store/embedded/int8", tmp_path / "store/embedded/int7")

    full = run_gate(ORPHANS, "--baselines", tmp_path / "store")
    part = run_gate(ORPHANS, "--baselines", tmp_path / "store", "--recipe", "int8")

    assert full.ret == 1
    full.stdout.fnmatch_lines(["*int7: no test used this baseline. Remove it: rm -r -- *int7"])
    part.assert_outcomes(skipped=1)


# -- reruns ----------------------------------------------------------------------------------------


def test_twenty_reruns_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the batch size, the threads and the order, decisions and every sample's answer are
    the same.
    """
    (tmp_path / "budgets.yaml").write_text("defaults: {points: 8.0, discordance: 0.1}\n")
    options = Options(
        recipes=("int8",), tasks=("emoji100",), calibration_size=16, baselines=tmp_path
    )
    first = Gate(options)
    (case,) = first.cases()
    small = case.tasks[0].subset(0, 40)
    quantized = case.quantized
    prepared = dataclasses.replace(
        first.side("embedded").prepared(("reference", "calibration")), tasks=(small,)
    )
    monkeypatch.setattr(Case, "quantized", property(lambda case: quantized))
    threads = torch.get_num_threads()

    def answers(batch: int, count: int, reference_first: bool) -> tuple[Any, ...]:
        torch.set_num_threads(count)
        gate = Gate(dataclasses.replace(options, batch_size=batch), prepared={"embedded": prepared})
        (case,) = gate.cases()
        for name in ("reference_runs", "quantized_runs")[:: 1 if reference_first else -1]:
            assert getattr(case, name)
        runs = case.reference_runs, case.quantized_runs
        (verdict,) = case.verdicts.verdicts
        return verdict.decision, *(
            run["emoji100"].outcomes["acc1"].answers.tolist() for run in runs
        )

    # Two threads on small batches wait for each other more than they compute.
    sizes = [(size, 1) for size in (3, 8, 16, 24, 32, 40, 64, 100, 200)] + [(64, 2)]
    try:
        runs = [answers(*size, order) for size, order in itertools.product(sizes, (True, False))]
    finally:
        torch.set_num_threads(threads)

    assert len(runs) == 20
    assert [run for run in runs if run != runs[0]] == []
