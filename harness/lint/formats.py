"""Write problems for people and programs: text, JSON, GitHub's workflow commands, SARIF."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

from harness.errors import sentences
from harness.escaping import shown, visible
from harness.lint.rules import RULES, level
from harness.lint.run import LintProblem

SARIF_SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
_NAME = "quantized-clip-gate"


def text(problems: Sequence[LintProblem]) -> str:
    """Return one line for each problem: ``file:line:column: rule: what. Fix: ...``."""
    lines = []
    for problem in problems:
        place = f"{problem.path}:{problem.line}:{problem.column}"
        note = " (note)" if problem.level == "note" else ""
        lines.append(shown(f"{place}: {problem.rule}{note}: {_said(problem)}", None))
    return "".join(f"{line}\n" for line in lines)


def as_json(problems: Sequence[LintProblem]) -> str:
    """Return a list of objects with ``file``, ``line``, ``column``, ``rule``, ``level``, ``what``
    and ``fix``.
    """
    objects = [
        {
            "file": problem.path,
            "line": problem.line,
            "column": problem.column,
            "rule": problem.rule,
            "level": problem.level,
            "what": problem.what,
            "fix": problem.fix,
        }
        for problem in problems
    ]
    return json.dumps(objects, indent=1, ensure_ascii=True) + "\n"


def _said(problem: LintProblem) -> str:
    """What is wrong, and how to fix it."""
    return sentences(problem.what, f"Fix: {problem.fix}")


def github(problems: Sequence[LintProblem]) -> str:
    """Return one workflow command for each problem, which GitHub shows on the line of the file."""
    lines = []
    for problem in problems:
        command = {"error": "error", "note": "notice"}[problem.level]
        where = (
            {"file": problem.path, "line": problem.line, "col": problem.column}
            if problem.path
            else {}
        )
        properties = where | {"title": problem.rule}
        parameters = ",".join(f"{key}={_property(value)}" for key, value in properties.items())
        lines.append(f"::{command} {parameters}::{_message(_said(problem))}")
    return "".join(f"{line}\n" for line in lines)


def _message(value: object) -> str:
    """*value* as the message of a workflow command, by the rules of GitHub's toolkit; controls made
    visible.
    """
    return visible(value).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(value: object) -> str:
    """*value* as a property of a workflow command."""
    return _message(value).replace(":", "%3A").replace(",", "%2C")


def sarif(
    problems: Sequence[LintProblem],
    tool: str = "clip-gate lint",
    known: Mapping[str, tuple[str, str]] = RULES,
) -> str:
    """Return a log of SARIF 2.1.0 with one run of *tool*, which knows the rules *known*."""
    names = list(known)
    rules = [
        {
            "id": name,
            "shortDescription": {"text": description},
            "defaultConfiguration": {"level": level(name)},
        }
        for name, (description, _) in known.items()
    ]
    results = [
        {
            "ruleId": problem.rule,
            "ruleIndex": names.index(problem.rule),
            "level": problem.level,
            "message": {"text": visible(_said(problem))},
            "locations": [{"physicalLocation": _location(problem)}] if problem.path else [],
        }
        for problem in problems
    ]
    driver: dict[str, Any] = {"name": tool, "version": _version(), "rules": rules}
    log = {
        "$schema": SARIF_SCHEMA,
        "version": "2.1.0",
        "runs": [
            {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}
        ],
    }
    return json.dumps(log, indent=1, ensure_ascii=True) + "\n"


def _location(problem: LintProblem) -> dict[str, Any]:
    path = PurePath(problem.path)
    uri = path.as_uri() if path.is_absolute() else quote(path.as_posix(), errors="surrogatepass")
    return {
        "artifactLocation": {"uri": uri},
        "region": {"startLine": problem.line, "startColumn": problem.column},
    }


def _version() -> str:
    try:
        return metadata.version(_NAME)
    except metadata.PackageNotFoundError:
        return "0"


FORMATS: dict[str, Callable[[Sequence[LintProblem]], str]] = {
    "text": text,
    "json": as_json,
    "github": github,
    "sarif": sarif,
}
