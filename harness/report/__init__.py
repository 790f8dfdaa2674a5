"""What a run found, as files: a page to look at, a comment for the pull request, and data for other
programs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.gate.results import SCHEMA
from harness.gate.results_schema import RunResult
from harness.report import cases, markdown, page
from harness.report.text import json_text, plain

__all__ = ["FILES", "write", "write_files"]

#: What :func:`write` writes.
FILES = ("report.html", "summary.md", "results.json")


def write(results: dict[str, Any], folder: Path) -> list[Path]:
    """Write ``report.html``, ``summary.md`` and ``results.json`` of *results* (``Results.as_dict``)
    into *folder*.

    The page is one file that asks for nothing from outside.  The summary is below
    ``markdown.LIMIT`` characters.  In all three, names are data: nothing in them is read as markup,
    a terminal's control sequence or a command of a continuous integration runner.

    Returns:
        The three paths.

    Raises:
        UsageError: *results* has another version, or *folder* cannot be written.
    """
    if results.get("schema") != SCHEMA:
        raise UsageError(
            "results",
            f"have schema {results.get('schema')!r}, and this report reads {SCHEMA}",
            "Report with the version of the gate that measured.",
        )
    run = cases.read(results)
    texts = (
        page.render(run),
        markdown.summary(run),
        json_text(_judged(plain(results), run)),
    )
    return write_files(folder, dict(zip(FILES, texts, strict=True)))


def write_files(folder: Path, texts: Mapping[str, str]) -> list[Path]:
    """Write *texts*, by the names of their files, into the *folder* of a report.

    Returns:
        The paths.

    Raises:
        UsageError: *folder* cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        fix = "Give --gate-report a folder that can be written."
        raise UsageError(folder, f"cannot be written ({error.strerror or error})", fix) from error
    return [folder / name for name in texts]


def _judged(results: dict[str, Any], run: RunResult) -> dict[str, Any]:
    """*results* with the decision and the headline of the run and of each case written into
    them.
    """
    every = [
        case | {"decision": cases.decision(typed), "headline": cases.headline(typed)}
        for case, typed in zip(results["cases"], run.cases, strict=True)
    ]
    return results | {
        "decision": cases.run_decision(run),
        "headline": cases.run_headline(run),
        "cases": every,
    }
