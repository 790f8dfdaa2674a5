"""What is wrong with a pull request's recipes, each on the line that causes it: for GitHub's
annotations and for code scanning.

The lint says what the text of a recipe shows.  The gate adds what only a model shows: insertion
problems by the entry that decides about the quantizers, a recipe that falls short otherwise by the
entry that is about the quantizers at fault.  What the lint says already is not said again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from harness import files
from harness.errors import UsageError
from harness.files.located import Place
from harness.gate.results import Word
from harness.gate.results_schema import CaseResult, RunResult
from harness.lint import formats
from harness.lint.rules import GATE_RULES, RULES
from harness.lint.run import LintProblem
from harness.recipes import patterns
from harness.report import cases

#: Files that a run with ``--gate-annotations`` adds to its report.
COMMANDS, SARIF = "annotations.txt", "problems.sarif"
#: Problems of single entries -> the lint's rule for them.
_OF_ENTRIES = {
    patterns.NO_MATCH: "no-match",
    patterns.OVERRIDDEN: "overridden",
    patterns.TOO_EARLY: "overridden",
}


def of_run(
    linted: Sequence[LintProblem],
    results: RunResult,
    recipes: Mapping[str, Path],
    refused: Sequence[UsageError] = (),
) -> list[LintProblem]:
    """Return all problems of a run, each once, by file and line.

    Args:
        linted: what the lint says of the recipes.
        results: what the run found.
        recipes: the file of each recipe of the run, by its name in the results.
        refused: usage errors that ended the run.
    """
    problems = list(linted)
    for error in refused:
        problems += _new(_of_error(error), problems)
    for case in results.cases:
        problems += _new(_of_case(case, recipes.get(case.recipe), problems), problems)
    return sorted(replace(problem, path=in_repository(problem.path)) for problem in problems)


def _new(more: Iterator[LintProblem], known: Sequence[LintProblem]) -> list[LintProblem]:
    """Those of *more* about whose line nothing is said yet."""
    places = {_line_of(problem) for problem in known if problem.path and problem.level == "error"}
    by_line: dict[tuple[str, int, str], LintProblem] = {}
    for problem in more:
        if _line_of(problem) not in places:
            by_line.setdefault(
                (problem.path, problem.line, "" if problem.path else problem.what), problem
            )
    return list(by_line.values())


def _line_of(problem: LintProblem) -> tuple[str, int]:
    """The line of a problem, whichever way its file is named."""
    return os.path.realpath(problem.path) if problem.path else "", problem.line


def _of_error(error: UsageError) -> Iterator[LintProblem]:
    for single in getattr(error, "errors", (error,)):
        place = single.where
        if isinstance(place, Place):
            where = (str(place.path), place.line, place.column)
        else:
            where = _file_and_line(str(place))
        what = single.what if where[0] else f"{place}: {single.what}"
        yield LintProblem(*where, "refused", what.rstrip("."), single.fix)


def _file_and_line(place: str) -> tuple[str, int, int]:
    """The file and line that *place* begins with; no file where it is about something else."""
    if (match := re.match(r"(.+?):(\d+)\b", place)) and files.is_file(match[1]):
        return match[1], int(match[2]), 1
    return (place, 1, 1) if files.is_file(place) else ("", 1, 1)


def _of_case(
    case: CaseResult, path: Path | None, known: Sequence[LintProblem]
) -> Iterator[LintProblem]:
    """The problems that the gate found.

    Where a recipe has entries without effect, only these are annotated: they are the reason why
    quantizers are missing in the model.
    """
    problems = [problem for problem in cases.problems(case) if problem.place]
    if any(problem.suite == "insertion" for problem in case.checks.known):
        problems = []  # reviewed, and listed as known
    of_entries = [problem for problem in problems if problem.rule in _OF_ENTRIES]
    for problem in of_entries or problems:
        rule = _OF_ENTRIES.get(problem.rule, "insertion")
        names = ", ".join(problem.names[:3]) + (", ..." if len(problem.names) > 3 else "")
        what = f"{problem.what.rstrip('.')} {names}".strip()
        yield LintProblem(*parts_of(problem.place), rule, what, problem.fix)
    is_said = problems or any(_is_file(problem, path) for problem in known)
    if is_said or cases.decision(case) not in (Word.FAIL.value, Word.GAIN.value):
        return
    place = "" if case.blame is None else case.blame.place
    if not place and path is not None:
        place = f"{path}:1:1"
    where = parts_of(place) if place else ("", 1, 1)
    what = f"{case.recipe} on {case.model}: {cases.headline(case)}"
    yield LintProblem(*where, "failed", what, "The report of the run says more.")


def _is_file(problem: LintProblem, path: Path | None) -> bool:
    if path is None or problem.level != "error" or not problem.path:
        return False
    return os.path.realpath(problem.path) == os.path.realpath(path)


def parts_of(place: str) -> tuple[str, int, int]:
    """File, line and column of ``file:line:column``."""
    where, line, column = place.rsplit(":", 2)
    return where, int(line), int(column)


def in_repository(path: str) -> str:
    """*path* from the root of its repository, as GitHub wants it, or as it is outside of one.

    The root is the workspace of a workflow's job, or else the folder above that holds ``.git``.
    """
    if not path:
        return path
    real = Path(os.path.realpath(path))
    workspace = os.environ.get("GITHUB_WORKSPACE")
    roots = [Path(os.path.realpath(workspace))] if workspace else []
    roots += [folder for folder in real.parents if os.path.lexists(folder / ".git")][:1]
    root = next((folder for folder in roots if folder in real.parents), None)
    return path if root is None else real.relative_to(root).as_posix()


def commands(problems: Sequence[LintProblem]) -> str:
    """Return GitHub's workflow commands for the *problems*; notes are left to code scanning."""
    return formats.github([problem for problem in problems if problem.level == "error"])


def sarif(problems: Sequence[LintProblem]) -> str:
    """Return a log of SARIF 2.1.0 with the *problems*."""
    return formats.sarif(problems, "clip-gate", RULES | GATE_RULES)
