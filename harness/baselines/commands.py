"""The command lines that messages show: complete, quoted for a shell, to be copied as they are."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from harness import places

#: Stands for the reason in the commands; the store refuses it as a reason.
PLACEHOLDER = "say why"
#: Stands for a folder of one's own in the commands of an installed gate.
FOLDER = "DIR"


def rerun_command(nodeid: str, options: Sequence[str] = ()) -> str:
    """The command that runs one case again.

    Args:
        nodeid: pytest's id of the test, its parameters included; of an installed gate with its
            module's name.
        options: those of this run that the case depends on, such as ``("--recipe", "my
            fp8.yaml")``.

    """
    return shlex.join([*_start(nodeid), *options])


def _start(nodeid: str | None) -> list[str]:
    """The words that run a test, or every suite; those of an installed gate are called by its
    package.
    """
    if nodeid is None:
        return ["pytest", "--pyargs", places.SUITES_PACKAGE] if places.INSTALLED else ["pytest"]
    if nodeid.startswith(f"{places.SUITES_PACKAGE}."):
        return ["pytest", "--pyargs", nodeid]
    return ["pytest", nodeid]


def remove_command(path: str | Path) -> str:
    """The command that removes a file or folder of the store, whether or not git knows it."""
    return shlex.join(["rm", "-r", "--", str(path)])


def accept_command(
    nodeid: str | None = None,
    options: Sequence[str] = (),
    *,
    recipe: str | None = None,
    model: str | None = None,
    new_only: bool = False,
) -> str:
    """The command that measures again and accepts what it finds.

    Args:
        nodeid: the case to run; None runs every suite.
        options: those of this run that the case depends on.
        recipe: named on the command line where *options* name none.
        model: likewise.
        new_only: add what is missing instead of replacing what is there.

    """
    words = [*_start(nodeid), *options]
    for option, value in (("--recipe", recipe), ("--clip-model", model)):
        if value and not any(word == option or word.startswith(f"{option}=") for word in options):
            words += [option, value]
    if places.INSTALLED and "--baselines" not in options:
        words += ["--baselines", FOLDER]  # those of an installed gate are not changed
    words += (
        ["--new-baselines-only"] if new_only else ["--update-baselines", "--reason", PLACEHOLDER]
    )
    return shlex.join(words)
