"""The few lines at the end of a run: its word, a headline per recipe, and a line per task and metric."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.escaping import shown
from harness.gate.results import Word
from harness.report import cases
from harness.report.cases import Row

if TYPE_CHECKING:
    import pytest

#: Colours of pytest's terminal writer.
_COLOURS = {"PASS": "green", "FAIL": "red", "INCONCLUSIVE": "yellow", "INTERRUPTED": "red", "REFUSED": "red"}
#: Words of a run that ended before its end.
_STOPPED = (Word.INTERRUPTED.value, Word.REFUSED.value)
#: Widest table, in columns.
WIDEST = 120


@dataclass(frozen=True)
class _Column:
    """A column: its heading, what a row shows in it, whether numbers line up, and when it goes (0 never, then last)."""

    heading: str
    show: Callable[[Row], str]
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


def write(terminal: pytest.TerminalReporter, results: dict[str, Any]) -> None:
    """Write the table of *results* (``Results.as_dict``) to pytest's terminal reporter, if there is anything in it.

    The table takes the terminal's width, 120 columns at most; on a narrower one drift, interval, accuracies and budget
    go, in this order, and names are cut in their middle.  Differences, intervals and budgets are in points.  The word
    of the whole run is in the line above the table, and is never cut.
    """
    _expected(terminal, results["environment"].get("expected_differences") or {})
    found = [case for case in results["cases"] if _worth_a_line(case)]
    word = cases.run_decision(results)
    if not found and not cases.failed_checks(results) and word not in _STOPPED:
        return
    width = min(terminal.config.get_terminal_writer().fullwidth, WIDEST)
    every = [row for case in found for row in cases.rows(case)]
    columns, name_width = fit(every, width)
    terminal.write_sep("=", f"quantized against FP16 (points): {word}", **{_COLOURS.get(word, "bold"): True})
    if word == Word.INTERRUPTED.value:  # the line of a refusal is written to standard error
        terminal.write_line(middle(f"  {shown(cases.run_headline(results), None)}", width))
    for case in found:
        _headline(terminal, case, width)
        mine = cases.rows(case)
        if mine:
            headings = _cells(columns, [c.heading for c in columns], every, name_width)
            terminal.write_line("  " + "  ".join(headings))
        for row in mine:
            _row(terminal, row, columns, every, name_width)
        for line in [*cases.export_lines(case), *cases.speed_lines(case)]:
            terminal.write_line(middle(f"  {shown(line, None)}", width))
        for line in [*cases.gain_lines(case), *(f"not covered: {name}" for name in cases.not_covered(case))]:
            terminal.write_line(textwrap.fill(shown(line, None), width, initial_indent="  ", subsequent_indent="    "))
        _failed(terminal, case, width)
    if cases.failed_checks(results):
        terminal.write_line("of no recipe: FAIL")
        _failed(terminal, results, width)


def _worth_a_line(case: dict[str, Any]) -> bool:
    """Whether anything was judged of the case, or its speed moved."""
    judged = {"accuracy", "insertion", "numerics", "export", "checks", "not_gated"}
    return bool(case.keys() & judged or cases.speed_lines(case))


def _failed(terminal: pytest.TerminalReporter, part: dict[str, Any], width: int) -> None:
    """The failed checks of a case, or of none: one line per test function with what the first of them said."""
    for failed in cases.failed_functions(part):
        line = f"  {failed.suite or 'test'}: {shown(failed, None)}"
        terminal.write_line(line if len(line) <= width else f"{line[: width - 1]}…")


def _expected(terminal: pytest.TerminalReporter, met: dict[str, Any]) -> None:
    """The differences between releases that were expected, and met."""
    if not met:
        return
    terminal.write_sep("=", "expected differences of this release, met")
    for name, one in met.items():
        terminal.write_line(f"{shown(name)} ({one['count']} places): {shown(one['reason'], None)}")


def fit(rows: list[Row], width: int) -> tuple[list[_Column], int]:
    """The columns that *width* holds for *rows*, and the width of the names among them."""
    columns = list(_COLUMNS)
    longest = max((len(shown(r.name)) for r in rows), default=0)
    longest = max(longest, len(_COLUMNS[0].heading))
    # A name that is cut is still told apart at 24 characters; a column goes only when that is not enough.
    for goes in range(1, 6):
        if _fixed(columns, rows) + min(longest, 24) <= width:
            break
        columns = [c for c in columns if c.goes != goes]
    return columns, max(8, min(longest, width - _fixed(columns, rows)))


def _fixed(columns: list[_Column], rows: list[Row]) -> int:
    """Width of a line without the names: indentation, the other columns, two blanks between columns."""
    return 2 + sum(2 + _width(c, rows) for c in columns[1:])


def _width(column: _Column, rows: list[Row]) -> int:
    return max([len(column.heading), *(len(column.show(r)) for r in rows)])


def _cells(columns: list[_Column], cells: list[str], rows: list[Row], name_width: int) -> list[str]:
    """*cells* brought to their columns' widths."""
    padded = [middle(cells[0], name_width).ljust(name_width)]
    for column, cell in zip(columns[1:], cells[1:], strict=True):
        size = _width(column, rows)
        padded.append(cell.rjust(size) if column.right else cell.ljust(size))
    return [*padded[:-1], padded[-1].rstrip()]


def _row(terminal: pytest.TerminalReporter, row: Row, columns: list[_Column], rows: list[Row], name_width: int) -> None:
    """One verdict, its decision and a drift that fails in colour."""
    colours = {
        "verdict": {_COLOURS.get(row.decision, "bold"): True},
        "drift": {} if row.drift in cases.CALM else {"yellow": True},
    }
    cells = _cells(columns, [c.show(row) for c in columns], rows, name_width)
    for column, cell in zip(columns, cells, strict=True):
        terminal.write("  ")
        terminal.write(cell, **colours.get(column.heading, {}))
    terminal.line("")


def _headline(terminal: pytest.TerminalReporter, case: dict[str, Any], width: int) -> None:
    """The recipe, its decision and what decided it."""
    word = cases.decision(case)
    name = middle(shown(f"{case['recipe']} on {case['model']}"), max(12, width // 2))
    terminal.write(f"{name}: ")
    terminal.write(word, bold=True, **({_COLOURS[word]: True} if word in _COLOURS else {}))
    text = shown(cases.headline(case), None)
    room = width - len(name) - len(word) - 4
    terminal.write_line(f"  {text}" if len(text) <= room else f"\n  {middle(text, width - 2)}")


def middle(text: str, width: int) -> str:
    """*text* in *width* characters, its middle left out where it is longer."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"
