"""What a failing run shows without ``-v``: for one recipe at most 60 lines, each cause once.

Reports keep all that a test said, and so do the JUnit file, ``--gate-report`` and ``-v``.  Only
while pytest writes its summary, the failed tests of the gate are put together by test function, and
their messages are cut to what is needed first: what is wrong, the numbers, the fix.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness.pytest_plugin import private
from harness.pytest_plugin.outcomes import first_line, notes_of
from harness.pytest_plugin.run import has_results, is_worker, lines_shown, results_of

#: Lines of a failing run of one recipe.
MOST = 60
#: Lines that failed tests get at least, whatever else the run shows.
LEAST = 12
#: Characters of a line, and of the first line of a message.
WIDE, FIRST = 300, 400
#: Characters of a failed test's reason in pytest's short summary.
REASON = 80
#: Tests that dependents are shown to point to, each on a line.
POINTERS = 2
#: Kinds of reports that fail a run, with pytest's words for them.
FAILING = ("error", "failed", "inconclusive")

_BRIEF = pytest.StashKey["_Brief"]()
_PROGRESS = pytest.StashKey[int]()


# -- what of a message is needed first -------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """A line of a message: how soon it is needed (0 is first)."""

    text: str
    rank: int


def pieces(text: str) -> list[Piece]:
    """The lines of a failed test's message, each with its rank."""
    ranked: list[Piece] = []
    for number, paragraph in enumerate(_paragraphs(text)):
        ranked += _ranked(paragraph, first=number == 0)
    return ranked


def _paragraphs(text: str) -> list[list[str]]:
    """The paragraphs of *text*; of one that ends in a command, the command stands alone."""
    paragraphs: list[list[str]] = []
    blank = True
    for line in text.splitlines():
        alone = line.strip().startswith(("rerun:", "accept:"))
        if line.strip() and (blank or alone):
            paragraphs.append([])
        if line.strip():
            paragraphs[-1].append(line)
        blank = not line.strip() or alone
    return paragraphs


def _ranked(lines: Sequence[str], *, first: bool) -> list[Piece]:
    begins = lines[0].strip()
    if begins.startswith("accept:"):
        return [Piece(lines[0], 1)]
    if begins.startswith("rerun:"):
        return [Piece(lines[0], 4)]
    if begins.startswith("blame"):
        return _of_blame(lines)
    is_list = len(lines) > 2 and not any(line.startswith(" ") for line in lines)
    later = 0 if first else 2
    ranked = []
    for place, line in enumerate(lines):
        if place == 0:
            rank = 0
        elif place == 1 and _is_list_of_names(line):
            rank = 1  # the names that the first line counts
        else:
            rank = _rank(line, last=place == len(lines) - 1 and not is_list)
        ranked.append(Piece(line, rank + later))
    return ranked


def _is_list_of_names(line: str) -> bool:
    """Whether a line lists names: it is indented and says nothing of expected, found or fix."""
    return line.startswith("  ") and ": " not in line


def _rank(line: str, *, last: bool) -> int:
    """The rank of a line that is not the first of its paragraph."""
    text = line.strip()
    if text.startswith(("Fix:", "what to do:", "accept:")) or (last and text == line):
        return 1
    return 2 if text.startswith(("found:", "expected:")) else 3


def _of_blame(lines: Sequence[str]) -> list[Piece]:
    """Of the quantizers at fault: the entries that would help, then the conclusion, then who is
    worst.
    """
    table = [
        place
        for place, line in enumerate(lines)
        if line.startswith("  ") and not line.startswith("    ")
    ]
    behind = table[-1] + 1 if table else 1
    ranks = [5] * behind + [2] * (len(lines) - behind)
    ranks[0] = 3
    for place in table[:3]:  # the heading and the two worst
        ranks[place] = 3
    return [Piece(line, rank) for line, rank in zip(lines, ranks, strict=True)]


def said(report: Any) -> str:
    """What a failed test said; of an assertion pytest's explanation, without the source around
    it.
    """
    text = str(report.longrepr)  # longreprtext would begin with pytest-xdist's worker
    explained = [line[1:].removeprefix("  ") for line in text.splitlines() if line.startswith("E ")]
    crash = getattr(report.longrepr, "reprcrash", None)
    if explained and crash is not None:
        return "\n".join(
            [*(line.strip() for line in explained), f"  at {crash.path}:{crash.lineno}"]
        )
    return text


# -- groups of failed tests ------------------------------------------------------------------------


@dataclass
class FailedGroup:
    """The failed tests of one function that ended alike."""

    kind: str
    reports: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._pieces: list[Piece] = []

    @property
    def pieces(self) -> list[Piece]:
        """The lines of the first test, and the first line of each other one."""
        if not self._pieces:
            first, *others = self.reports
            self._pieces = pieces(said(first))
            for other in others:
                name = other.nodeid.partition("[")[2].removesuffix("]") or other.nodeid
                self._pieces.append(Piece(f"  {name}: {first_line(said(other), WIDE)}", 3))
        return self._pieces

    def report(self, lines: Sequence[str]) -> Any:
        """One report for all of them, which shows *lines*."""
        combined = copy.copy(self.reports[0])
        reason = first_line(said(combined), REASON)
        more = len(self.reports) - 1
        if more:
            path, line, name = combined.location
            combined.location = path, line, f"{name} and {more} more"
            reason = f"and {more} more: {reason}"
        combined.__dict__.pop(
            "node", None
        )  # pytest-xdist's worker, which pytest would name in a line
        combined.longrepr = _Text(tuple(lines), reason)
        combined.sections = []
        return combined


@dataclass(frozen=True)
class _Crash:
    """Where pytest's short summary finds its reason."""

    message: str


class _Text:
    """What pytest writes of a report."""

    def __init__(self, lines: tuple[str, ...], reason: str) -> None:
        self._lines = lines
        self.reprcrash = _Crash(reason)

    def __str__(self) -> str:
        return "\n".join(self._lines)

    def toterminal(self, writer: Any) -> None:
        """Write the lines."""
        for line in self._lines:
            writer.line(line)


def grouped(stats: dict[str, list[Any]]) -> list[FailedGroup]:
    """The failed tests of the gate, by how they ended and by test function."""
    groups: dict[tuple[str, str], FailedGroup] = {}
    for kind in FAILING:
        for report in stats.get(kind, []):
            if hasattr(report, "gate_check"):
                key = kind, report.nodeid.partition("[")[0]
                groups.setdefault(key, FailedGroup(kind)).reports.append(report)
    return list(groups.values())


def share_out(groups: Sequence[FailedGroup], room: int) -> list[list[str]]:
    """The lines that each group shows, first things first.

    Args:
        groups: the failed tests.
        room: lines for all of them; each takes two more, its head line and one in pytest's short
            summary.

    Returns:
        The lines of each group; a group beyond those that the room holds has none.
    """
    held = max(1, room // 3)
    room -= 2 * len(groups[:held])
    chosen: list[set[int]] = [set() for _ in groups]
    ranked = [
        (piece.rank, n, at)
        for n, group in enumerate(groups[:held])
        for at, piece in enumerate(group.pieces)
    ]
    for _, n, at in sorted(ranked)[: max(room, 0)]:
        chosen[n].add(at)
    return [
        [_cut(piece) for at, piece in enumerate(group.pieces) if at in places]
        for group, places in zip(groups, chosen, strict=True)
    ]


def _cut(piece: Piece) -> str:
    # When something failed: every run of pytest imports this module
    from harness.report import summary

    return summary.middle(piece.text, FIRST if piece.rank == 0 else WIDE)


# -- while pytest writes its summary ---------------------------------------------------------------


@dataclass(frozen=True)
class _Brief:
    """What stands in the terminal already: the failed tests, and a line about what is left out of
    them.
    """

    tests: frozenset[str]
    hint: str


def tests_shown(config: pytest.Config) -> frozenset[str] | None:
    """The failed tests that the terminal shows in short, or None where it shows all in full."""
    brief = config.stash.get(_BRIEF, None)
    return None if brief is None else brief.tests


def hint(config: pytest.Config) -> list[str]:
    """A line that says where the rest of what failed tests said is."""
    brief = config.stash.get(_BRIEF, None)
    return [brief.hint] if brief is not None and brief.hint else []


def is_brief(config: pytest.Config) -> bool:
    """Whether this run shows what is needed first, and not all: ``-v`` and ``--tb`` of another
    style ask for all.
    """
    return config.getoption("verbose") <= 0 and config.getoption("tbstyle") in ("auto", "short")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Count the lines that pytest's progress takes: one per row of letters, and one per change of
    module.
    """
    if is_worker(session.config):
        return
    width = session.config.get_terminal_writer().fullwidth - len(" [100%]")
    lines, row = 0, 0
    module: Path | None = None
    for item in session.items:
        if item.path != module:
            module, row = item.path, len(item.nodeid.partition("::")[0]) + 1
            lines += 1
        row += 1
        if row > width:
            lines, row = lines + 1, 1
    session.config.stash[_PROGRESS] = lines


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> Generator[None, object, object]:
    """Have pytest show the failed tests in short."""
    groups = grouped(terminalreporter.stats) if has_results(config) and is_brief(config) else []
    if not groups:
        return (yield)
    with _replaced(terminalreporter, _in_short(terminalreporter, config, groups)):
        return (yield)


@contextmanager
def _replaced(terminal: pytest.TerminalReporter, stats: dict[str, list[Any]]) -> Iterator[None]:
    """Let *terminal* show *stats*; what it counts at its very end is what there was."""
    before = {kind: terminal.stats[kind] for kind in stats}
    terminal.stats.update(stats)
    try:
        yield
    finally:
        terminal.stats.update(before)


def _in_short(
    terminal: Any, config: pytest.Config, groups: Sequence[FailedGroup]
) -> dict[str, list[Any]]:
    """Reports by kind, with one for each group in the place of its members."""
    shown = {
        kind: [report for report in terminal.stats[kind] if not hasattr(report, "gate_check")]
        for kind in (*FAILING, "skipped", "xfailed")
        if kind in terminal.stats
    }
    if "warnings" in terminal.stats:
        shown["warnings"] = []
    if "skipped" in shown:
        shown["skipped"] += _dependents(terminal.stats["skipped"])
    tests = frozenset(report.nodeid for group in groups for report in group.reports)
    config.stash[_BRIEF] = _Brief(tests, "")
    room = _room(terminal, config, shown, groups)
    room = _with_times(config, room)
    chosen = share_out(groups, room)
    for group, lines in zip(groups, chosen, strict=True):
        if lines:
            shown[group.kind].append(group.report(lines))
    left_out = [group for group, lines in zip(groups, chosen, strict=True) if not lines]
    is_whole = all(
        lines == [piece.text for piece in group.pieces] and len(group.reports) == 1
        for group, lines in zip(groups, chosen, strict=True)
    )
    config.stash[_BRIEF] = _Brief(tests, "" if is_whole else _hint(config, left_out))
    return shown


def _dependents(reports: Sequence[Any]) -> list[Any]:
    """Reports of tests that were not judged because another one failed, alike where they point to
    the same test.
    """
    dependents, pointers = [], []
    for report in reports:
        see = getattr(report, "gate_check", {}).get("see", "")
        if not see:
            continue
        if see not in pointers:
            pointers.append(see)
        path, reason = see.partition("::")[0], f"not judged, the cause is reported by {see}"
        if pointers.index(see) >= POINTERS:
            path, reason = (
                pointers[0].partition("::")[0],
                "not judged, their causes are reported by other failed tests",
            )
        pointer = copy.copy(report)
        pointer.longrepr = (path, None, reason)
        dependents.append(pointer)
    return dependents


def _room(
    terminal: Any, config: pytest.Config, shown: dict[str, list[Any]], groups: Sequence[FailedGroup]
) -> int:
    """Lines that are left for failed tests, their lines in pytest's short summary included."""
    from harness.report import cases, summary

    header = 9 if config.getoption("verbose") == 0 else 1
    width = min(terminal.config.get_terminal_writer().fullwidth, summary.WIDEST)
    results = cases.read(results_of(config).as_dict())
    table = summary.lines(results, width, already_shown=tests_shown(config))
    pointers = {
        report.longrepr for report in shown.get("skipped", ()) if hasattr(report, "gate_check")
    }
    headings = {group.kind for group in groups} - {"inconclusive"}
    notes = len(notes_of(config)) + bool(config.getoption("xmlpath", None))
    # What was said before, a blank line, the headings, the hint, the notes, the table, and pytest's
    # short summary with its end.
    used = lines_shown(config) + 1 + len(headings) + 1 + notes + len(table) + 1 + len(pointers) + 1
    return max(LEAST, MOST - header - config.stash.get(_PROGRESS, 8) - used)


def _with_times(config: pytest.Config, room: int) -> int:
    """*room* without pytest-benchmark's table, which is shown only where there is room for it as
    well.
    """
    session = private.benchmark_session(config)
    if session is None or not session.groups or session.quiet:
        return room
    height = 5 + sum(5 + len(benchmarks) for _, benchmarks in session.groups)
    if room - height >= LEAST:
        return room - height
    session.quiet = True
    return room


def _hint(config: pytest.Config, left_out: Sequence[FailedGroup]) -> str:
    from harness.report import summary

    folder = config.getoption("gate_report")
    where = "-v shows" if folder is None else f"-v and {folder}/report.html show"
    text = f"Not all is shown above: {where} the rest."
    if left_out:
        names = [
            f"{g.reports[0].nodeid.partition('[')[0].rpartition('::')[2]} ({len(g.reports)})"
            for g in left_out
        ]
        text = f"Also failed: {', '.join(names)}. {text}"
    return summary.middle(text, FIRST)
