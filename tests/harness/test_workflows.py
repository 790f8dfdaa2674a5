"""The workflow files do with a hostile pull request what they claim: its text is never a script."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ACTION = ROOT / ".github" / "actions" / "gate" / "action.yml"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def steps(path: Path) -> Iterator[dict[str, Any]]:
    """Every step of a workflow or of a composite action."""
    content = yaml.safe_load(path.read_text())
    for job in content.get("jobs", {"": content.get("runs", {})}).values():
        yield from job["steps"]


@pytest.mark.parametrize("path", [ACTION, *WORKFLOWS], ids=lambda p: p.name)
def test_no_expression_in_a_script(path: Path) -> None:
    """Expressions reach a script through its environment: what a pull request is called cannot end
    a command.
    """
    scripts = [step["run"] for step in steps(path) if "run" in step]

    assert scripts
    assert not [script for script in scripts if "${{" in script]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_no_secret_meets_a_pull_request(path: Path) -> None:
    """No workflow runs a fork's pull request with secrets or with a token that can write to the
    repository.
    """
    content = yaml.safe_load(path.read_text())
    triggers = content[True]  # YAML 1.1 reads the key "on" as true

    assert not {"pull_request_target", "workflow_run"} & set(triggers)
    assert content["permissions"] == {"contents": "read"}
    assert "secrets." not in path.read_text()
    for step in steps(path):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_every_input_of_the_action_is_described_and_used() -> None:
    """Each input has a description and a default, and some step takes it."""
    action = yaml.safe_load(ACTION.read_text())

    for name, description in action["inputs"].items():
        assert description["description"]
        assert "default" in description
        assert f"inputs.{name} }}}}" in ACTION.read_text()


@pytest.fixture
def step(tmp_path: Path) -> Any:
    """Runs the action's gate step as a runner does, on a scratch tree; returns the process and its
    folder of files.
    """
    tree = tmp_path / "work" / "tree"
    tree.mkdir(parents=True)
    (tree / "README.md").write_text("words\n")
    shutil.copy(ROOT / "harness" / "recipes" / "library" / "fp8.yaml", tree)
    git = [
        "git",
        "-C",
        str(tree),
        "-c",
        "user.name=t",
        "-c",
        "user.email=t@example.org",
        "-c",
        "commit.gpgsign=false",
    ]
    subprocess.run(["git", "init", "-q", str(tree)], check=True)
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "base"], check=True)
    python = tmp_path / "clip-gate-python" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    [script] = [s["run"] for s in steps(ACTION) if s.get("id") == "gate"]
    bash = shutil.which("bash")
    assert bash is not None

    def run(**given_inputs: str) -> tuple[subprocess.CompletedProcess[str], Path]:
        inputs = {
            "RECIPES_ROOT": "tree",
            "CHANGED_SINCE": "HEAD",
            "DEVICE": "cpu",
            "BASELINES": "",
            "ARGUMENTS": "",
        }
        runner = {
            "GITHUB_ACTION_PATH": str(ACTION.parent),
            "GITHUB_OUTPUT": str(tmp_path / "output"),
            "RUNNER_TEMP": str(tmp_path),
        }
        done = subprocess.run(
            [bash, "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", script],
            cwd=tree.parent,
            check=False,
            env={**os.environ, **runner, **inputs, **given_inputs},
            text=True,
            capture_output=True,
        )
        return done, tmp_path

    return run


def test_the_step_ends_clean_where_nothing_is_reached(step: Any) -> None:
    """The step's exit code is pytest's, and the runner listens to no command while recipes' names
    are printed.
    """
    done, folder = step()

    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "output").read_text() == "exit-code=0\n"
    assert "the change reaches no recipe" in (folder / "clip-gate-report" / "log.txt").read_text()
    assert lines[0].startswith("::stop-commands::")
    assert lines[-1] == f"::{lines[0].rpartition(':')[2]}::"


def test_the_step_takes_inputs_as_values(step: Any, tmp_path: Path) -> None:
    """Inputs with shell syntax run no command and end in a usage error."""
    mark = tmp_path / "executed"
    done, folder = step(
        CHANGED_SINCE=f'";touch {mark};"$(touch {mark})',
        ARGUMENTS=f"$(touch {mark}) `touch {mark}`",
    )

    assert done.returncode == 4, done.stdout + done.stderr
    assert (folder / "output").read_text() == "exit-code=4\n"
    assert not mark.exists()
