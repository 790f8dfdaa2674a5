"""The command lines that messages show: complete, quoted for a shell, to be copied as they are."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

#: Stands for the reason in the commands; the store refuses it as a reason.
PLACEHOLDER = "say why"


def rerun_command(nodeid: str, options: Sequence[str] = ()) -> str:
    """The command that runs one case again.

    Args:
        nodeid: pytest's id of the test, its parameters included.
        options: those of this run that the case depends on, such as ``("--recipe", "my fp8.yaml")``.

    """
    return shlex.join(["pytest", nodeid, *options])


def accept_command(
    nodeid: str | None = None,
    options: Sequence[str] = (),
    *,
    recipe: str | None = None,
    model: str | None = None,
    new_only: bool = False,
) -> str:
    """The command that measures anew and accepts what it finds.

    Args:
        nodeid: the case to run; None runs every suite.
        options: those of this run that the case depends on.
        recipe: named on the command line where *options* name none.
        model: likewise.
        new_only: add what is missing instead of replacing what is there.

    """
    words = ["pytest", *([nodeid] if nodeid else []), *options]
    for option, value in (("--recipe", recipe), ("--clip-model", model)):
        if value and not any(word == option or word.startswith(f"{option}=") for word in options):
            words += [option, value]
    words += ["--new-baselines-only"] if new_only else ["--update-baselines", "--reason", PLACEHOLDER]
    return shlex.join(words)
