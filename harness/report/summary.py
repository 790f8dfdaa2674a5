"""The few lines at the end of a run: its word, a headline per recipe, and a line per task and
metric.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.escaping import shown
from harness.gate.results import Word
from harness.gate.results_schema import CaseResult, ExpectedResult, RunResult
from harness.report import cases
from harness.report.cases import VerdictRow

if TYPE_CHECKING:
    import pytest

#: Colours of pytest's terminal writer.
_COLOURS = {
    "PASS": "green",
    "FAIL": "red",
    "GAIN": "red",
    "INCONCLUSIVE": "yellow",
    "INTERRUPTED": "red",
    "REFUSED": "red",
}
#: Words of a run that ended before its end.
_STOPPED = (Word.INTERRUPTED.value, Word.REFUSED.value)
#: Widest table, in columns.
WIDEST = 120
#: Most verdicts and sentences of a case where the failed checks stand above.
_BRIEF_ROWS, _BRIEF_DETAILS = 6, 3
#: Most lines of what decided a case.
_HEADLINE = 2


@dataclass(frozen=True)
class _Column:
    """A column: its heading, what a row shows in it, whether numbers line up, and when it goes (0
    never, then last).
    """

    heading: str
    show: Callable[[VerdictRow], str]
    right: bool
    goes: int


_COLUMNS = (
    _Column("task/metric", lambda r: shown(r.name), False, 0),
    _Column("FP16", lambda r: f"{r.reference:.2%}", True, 3),
    _Column("quantized", lambda r: f"{r.quantized:.2%}", True, 4),
    _Column("difference", lambda r: f"{r.difference:+.2f}", True, 0),
    _Column("interval", lambda r: f"[{r.low:+.2f}, {r.high:+.2f}]", True, 2),
    _Column("budget", lambda r: f"{r.budget:g}", True, 5),
    _Column("verdict", lambda r: r.decision, False, 0),
    _Column("drift", lambda r: shown(r.drift), False, 1),
)


def write(
    terminal: pytest.TerminalReporter,
    results: RunResult,
    *,
    already_shown: Collection[str] | None = None,
) -> None:
    """Write the table of *results* to pytest's terminal reporter, if there is
    anything in it.

    The table takes the terminal's width, 120 columns at most; on a narrower one drift, interval,
    accuracies and budget go, in this order, and a name that is still too long has a line of its
    own.  Differences, intervals and budgets are in points.  The word of the whole run is in the
    line above the table, and is never cut.

    Args:
        terminal: pytest's terminal reporter.
        results: what the run found.
        already_shown: the failed tests that are above it in the terminal; each case then has a few
            lines only.
    """
    width = min(terminal.config.get_terminal_writer().fullwidth, WIDEST)
    for line in lines(results, width, already_shown=already_shown):
        if line.is_heading:
            ((text, colours),) = line.parts
            terminal.write_sep("=", text, **colours)
            continue
        for text, colours in line.parts:
            terminal.write(text, **colours)
        terminal.line("")


@dataclass(frozen=True)
class Line:
    """A line of the terminal: pieces of text with their colours."""

    parts: tuple[tuple[str, dict[str, bool]], ...]
    is_heading: bool = False


def _plain(text: str) -> Line:
    return Line(((text, {}),))


def lines(
    results: RunResult, width: int, *, already_shown: Collection[str] | None = None
) -> list[Line]:
    """Return the lines that :func:`write` writes."""
    brief = already_shown is not None
    lines_of_table = _expected(results.environment.expected_differences)
    shown_cases = [case for case in results.cases if _worth_a_line(case)]
    word = cases.run_decision(results)
    if not shown_cases and not results.checks.failed and word not in _STOPPED:
        return lines_of_table
    every = [row for case in shown_cases for row in cases.rows(case)]
    columns, name_width = fit(every, width)
    heading = f"{_judged(results)}: {word}"
    lines_of_table.append(Line(((heading, {_COLOURS.get(word, "bold"): True}),), is_heading=True))
    if word == Word.INTERRUPTED.value:  # the line of a refusal is written to standard error
        lines_of_table.append(
            _plain(middle(f"  {shown(cases.run_headline(results), None)}", width))
        )
    for case in shown_cases:
        lines_of_table += _headline(case, width)
        rows = cases.rows(case)
        if rows:
            headings = _cells(columns, [c.heading for c in columns], every, name_width)
            lines_of_table.append(_plain("  " + "  ".join(headings)))
        if brief and len(rows) > _BRIEF_ROWS:
            rows = sorted(rows, key=_holds)[:_BRIEF_ROWS]
        for row in rows:
            lines_of_table += _row(row, columns, every, name_width, width)
        if len(rows) < len(cases.rows(case)):
            lines_of_table.append(_plain(f"  ... and {len(cases.rows(case)) - len(rows)} more"))
        details = _details(case, width)
        if brief:
            lines_of_table += [_plain(middle(text, width)) for text in details[:_BRIEF_DETAILS]]
        else:
            lines_of_table += [_plain(line) for text in details for line in _wrapped(text, width)]
        lines_of_table += _failed(case, width, already_shown or ())
    others = _failed(results, width, already_shown or ())
    return [*lines_of_table, _plain("of no recipe: FAIL"), *others] if others else lines_of_table


def _judged(results: RunResult) -> str:
    """What was judged, as the title of the lines."""
    if any(cases.rows(case) for case in results.cases):
        return "quantized against FP16 (points)"
    parts = ("insertion", "numerics", "checkpoint", "export", "throughput")
    every = [results.checks, *(case.checks for case in results.cases)]
    suites = {check.suite for checks in every for check in checks.failed}
    judged = [
        part
        for part in parts
        if part in suites or any(getattr(case, part, None) for case in results.cases)
    ]
    return ", ".join(judged) or "quantized CLIP gate"


def _worth_a_line(case: CaseResult) -> bool:
    """Whether anything was judged of the case, or its speed moved."""
    judged = (case.accuracy, case.insertion, case.numerics, case.export, case.not_gated)
    return any(judged) or bool(case.checks.counts or cases.speed_lines(case))


def _holds(row: VerdictRow) -> bool:
    return row.decision == Word.PASS.value


def _details(case: CaseResult, width: int) -> list[str]:
    """Return sentences about a case below its verdicts; long ones are wrapped if everything is
    shown.
    """
    known = cases.known_lines(case)
    short = [*cases.export_lines(case), *cases.speed_lines(case)]
    long = [*cases.gain_lines(case), *(f"not covered: {name}" for name in cases.not_covered(case))]
    return [
        *(f"  {shown(text, None)}" for text in known),
        *(middle(f"  {shown(text, None)}", width) for text in short),
        *(f"  {shown(text, None)}" for text in long),
    ]


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent="    ", drop_whitespace=True) or [text]


def _failed(part: CaseResult | RunResult, width: int, already_shown: Collection[str]) -> list[Line]:
    """Return the failed checks of a case, or of no case: one line per test function with the first
    message.
    """
    not_shown = [check for check in part.checks.failed if check.test not in already_shown]
    lines_of_checks = []
    for failed in cases.failed_functions(not_shown):
        line = f"  {failed.suite or 'test'}: {shown(failed, None)}"
        lines_of_checks.append(_plain(line if len(line) <= width else f"{line[: width - 1]}…"))
    return lines_of_checks


def _expected(met: dict[str, ExpectedResult]) -> list[Line]:
    """The differences between releases that were expected, and met."""
    if not met:
        return []
    heading = Line((("expected differences of this release, met", {}),), is_heading=True)
    places = (
        f"{shown(name)} ({difference.count} places): {shown(difference.reason, None)}"
        for name, difference in met.items()
    )
    return [heading, *map(_plain, places)]


def fit(rows: list[VerdictRow], width: int) -> tuple[list[_Column], int]:
    """The columns that *width* holds for *rows*, and the width of the names among them."""
    columns = list(_COLUMNS)
    longest = max((len(shown(r.name)) for r in rows), default=0)
    longest = max(longest, len(_COLUMNS[0].heading))
    # A name that is cut to 24 characters is still distinct; a column goes only when that is not
    # enough.
    for goes in range(1, 6):
        if _fixed(columns, rows) + min(longest, 24) <= width:
            break
        columns = [c for c in columns if c.goes != goes]
    return columns, max(8, min(longest, width - _fixed(columns, rows)))


def _fixed(columns: list[_Column], rows: list[VerdictRow]) -> int:
    """Width of a line without the names: indentation, the other columns, two blanks between
    columns.
    """
    return 2 + sum(2 + _width(c, rows) for c in columns[1:])


def _width(column: _Column, rows: list[VerdictRow]) -> int:
    return max([len(column.heading), *(len(column.show(r)) for r in rows)])


def _cells(
    columns: list[_Column], cells: list[str], rows: list[VerdictRow], name_width: int
) -> list[str]:
    """Return *cells* padded to their columns' widths."""
    padded = [middle(cells[0], name_width).ljust(name_width)]
    for column, cell in zip(columns[1:], cells[1:], strict=True):
        size = _width(column, rows)
        padded.append(cell.rjust(size) if column.right else cell.ljust(size))
    return [*padded[:-1], padded[-1].rstrip()]


def _row(
    row: VerdictRow, columns: list[_Column], rows: list[VerdictRow], name_width: int, width: int
) -> list[Line]:
    """One verdict, its decision and a drift that fails in colour; a name that is too long for its
    column stands in a line before.
    """
    colours = {
        "verdict": {_COLOURS.get(row.decision, "bold"): True},
        "drift": {} if row.drift in cases.CALM else {"yellow": True},
    }
    texts = [column.show(row) for column in columns]
    above = []
    if len(texts[0]) > name_width:
        above = [_plain(f"  {part}") for part in textwrap.wrap(texts[0], width - 2)]
        texts[0] = ""
    parts: list[tuple[str, dict[str, bool]]] = []
    for column, cell in zip(columns, _cells(columns, texts, rows, name_width), strict=True):
        parts += [("  ", {}), (cell, colours.get(column.heading, {}))]
    return [*above, Line(tuple(parts))]


def _headline(case: CaseResult, width: int) -> list[Line]:
    """The recipe, its decision and what decided it; on a narrow terminal in lines of their own."""
    word = cases.decision(case)
    name = shown(f"{case.recipe} on {case.model}")
    colour = {_COLOURS[word]: True} if word in _COLOURS else {}
    text = shown(cases.headline(case), None)
    *above, last = textwrap.wrap(
        f"{name}: {word}", width, subsequent_indent="  ", break_on_hyphens=False
    )
    first: tuple[tuple[str, dict[str, bool]], ...] = (
        (last.removesuffix(word), {}),
        (word, {"bold": True, **colour}),
    )
    if not above and len(text) <= width - len(last) - 2:
        return [Line((*first, (f"  {text}", {})))]
    below = textwrap.wrap(text, width - 2, max_lines=_HEADLINE, placeholder=" ...")
    return [*map(_plain, above), Line(first), *(_plain(f"  {line}") for line in below)]


def middle(text: str, width: int) -> str:
    """*text* in *width* characters, its middle left out where it is longer."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"
