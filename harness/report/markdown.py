"""``summary.md``: what a reviewer needs to know, as a comment on the pull request."""

from __future__ import annotations

from collections.abc import Iterator

from harness.escaping import shown
from harness.gate.results_schema import CaseResult, EnvironmentResult, RunResult
from harness.report import cases
from harness.report.text import markdown_block, markdown_code, markdown_text

#: Characters of a comment; GitHub takes 65,536.
LIMIT = 60_000
#: Rows of one table and names of one problem; the rest is in the page.
_ROWS, _NAMES = 40, 12
_SIGNS = {
    "PASS": "✅",
    "FAIL": "❌",
    "GAIN": "❌",
    "INCONCLUSIVE": "❔",
    "REFUSED": "❌",
    "INTERRUPTED": "❌",
}
_DRAWN_BY = "Everything else is in report.html and results.json of the same run."


def summary(results: RunResult) -> str:
    """*results* as Markdown of less than LIMIT characters.

    Recipes that did not pass come first; where there is no room for all, the parts left out are
    counted.
    """
    order = {"FAIL": 0, "GAIN": 1, "INCONCLUSIVE": 2}
    ordered = sorted(results.cases, key=lambda case: order.get(cases.decision(case), 3))
    parts = [
        _heading(results),
        *_refused(results),
        *_architectures(results),
        *_overview(ordered),
        *_other(results),
        *_selection(results),
    ]
    parts += [part for case in ordered for part in _case(case)]
    return _fitting(parts, _footer(results.environment))


def _fitting(parts: list[str], footer: str) -> str:
    """As many of *parts*, each a block of its own, as LIMIT allows."""
    left_out = "\n\n*{} parts of this summary found no room.*\n\n"
    room = LIMIT - len(footer) - len(left_out) - 10
    fitting: list[str] = []
    for part in parts:
        if len(part) + 2 <= room:
            fitting.append(part)
            room -= len(part) + 2
    gone = len(parts) - len(fitting)
    return "\n\n".join(fitting) + (left_out.format(gone) if gone else "\n\n") + footer + "\n"


def _heading(results: RunResult) -> str:
    word = cases.run_decision(results)
    sign = _SIGNS.get(word, "")
    headline = markdown_text(cases.run_headline(results), 300)
    return f"## Quantized CLIP: {sign} {word} ({headline})".replace("  ", " ")


def _refused(results: RunResult) -> Iterator[str]:
    """The line of the usage error that ended the run."""
    line = results.refused or results.interrupted
    if line:
        yield f"**{cases.run_decision(results)}:** {markdown_text(line, 1000)}"


def _other(results: RunResult) -> Iterator[str]:
    yield from _failed(results, "Failed checks of no recipe:")
    yield from (markdown_text(line, 600) for line in cases.known_lines(results))


def _failed(part: CaseResult | RunResult, title: str) -> Iterator[str]:
    """The failed checks, each with its suite and the first line of its message."""
    failed = part.checks.failed
    if not failed:
        return
    lines = [f"**{title}**", ""]
    for check in failed[:_ROWS]:
        suite = f"{check.suite}, " if check.suite else ""
        what = f"{suite}{check.outcome}: {check.message}"
        lines.append(f"- {markdown_code(check.test)} {markdown_text(what, 400)}")
    lines += [f"- and {len(failed) - _ROWS} more"] if len(failed) > _ROWS else []
    for see, count in part.checks.depending.items():
        lines.append(f"- {count} not run for the same cause as {markdown_code(see)}")
    yield "\n".join(lines)


def _architectures(results: RunResult) -> Iterator[str]:
    """What the change does to every architecture that its recipes are for."""
    table = results.environment.selection.architectures
    if table.recipes:
        numbers = range(1, len(table.recipes) + 1)
        lines = ["**Recipes by architectures: quantizers that change**", ""]
        for number, names in zip(numbers, table.recipes, strict=True):
            shown = ", ".join(map(markdown_code, names[:_NAMES]))
            more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
            lines.append(f"- [{number}] {shown}{more}")
        lines += ["", f"| architecture | {' | '.join(f'[{number}]' for number in numbers)} |"]
        lines.append(f"|---|{'---:|' * len(table.recipes)}")
        for name, counts in table.counts.items():
            cells = ("-" if count is None else f"{count:,}" for count in counts)
            lines.append(f"| {markdown_code(name)} | {' | '.join(cells)} |")
        yield "\n".join(lines)
    for title, texts in cases.change_lists(results):
        lines = [f"<details><summary>{title}</summary>", ""]
        lines += [f"- {markdown_text(text, 600)}" for text in texts[:_ROWS]]
        lines += [f"- and {len(texts) - _ROWS} more"] if len(texts) > _ROWS else []
        yield "\n".join([*lines, "", "</details>"])


def _selection(results: RunResult) -> Iterator[str]:
    """What of the pull request was refused or not gated, and what it does to the quantizer map."""
    for reasons in cases.reasons(results):
        lines = [f"**{reasons.title}:**", ""]
        lines += [
            f"- {markdown_code(name)}: {markdown_text(why, 400)}"
            for name, why in reasons.pairs[:_ROWS]
        ]
        lines += [f"- and {len(reasons.pairs) - _ROWS} more"] if len(reasons.pairs) > _ROWS else []
        yield "\n".join(lines)
    for recipe, changes in cases.map_changes(results):
        title = (
            f"<details><summary>What the change does to the map of "
            f"{markdown_code(recipe)}</summary>"
        )
        lines = [f"- {markdown_text(line, 400)}" for line in changes[:_ROWS]]
        lines += [f"- and {len(changes) - _ROWS} more"] if len(changes) > _ROWS else []
        yield "\n".join([title, "", *lines, "", "</details>"])


def _overview(ordered: list[CaseResult]) -> Iterator[str]:
    """One table with one line per recipe, in pieces so that a very long one still fits."""
    for begin in range(0, len(ordered), _ROWS):
        lines = ["| recipe | model | | what decided |", "|---|---|---|---|"]
        for case in ordered[begin : begin + _ROWS]:
            word = cases.decision(case)
            lines.append(
                f"| {markdown_code(case.recipe)} | {markdown_code(case.model)} | "
                f"{_SIGNS.get(word, '')} {word} "
                f"| {markdown_text(cases.headline(case), 400)} |"
            )
        yield "\n".join(lines)


def _case(case: CaseResult) -> Iterator[str]:
    verdicts = cases.rows(case)
    title = (
        f"### {markdown_code(case.recipe)} on {markdown_code(case.model)}: {cases.decision(case)}"
    )
    body = [
        *_verdicts(verdicts),
        *_exceeded(case),
        *_failed(case, "Failed checks:"),
        *(markdown_text(line, 600) for line in cases.known_lines(case)),
        *(markdown_text(line, 300) for line in cases.gain_lines(case)),
        *(f"Not covered: {markdown_text(line, 600)}" for line in cases.not_covered(case)),
        *_problems(case),
        *_mismatches(case),
        *_blame(case),
        *_throughput(case),
        *_export(case),
    ]
    if body:
        # The title goes with the first block: alone it would say nothing.
        yield f"{title}\n\n{body[0]}"
        yield from body[1:]


def _verdicts(rows: list[cases.VerdictRow]) -> Iterator[str]:
    if not rows:
        return
    lines = [
        "| task/metric | FP16 | quantized | difference, points | interval | budget | verdict | "
        "drift |",
        "|---|--:|--:|--:|--:|--:|---|---|",
    ]
    lines += [
        f"| {markdown_code(r.name)} | {r.reference:.2%} | {r.quantized:.2%} | {r.difference:+.2f} "
        f"| {r.low:+.2f} to {r.high:+.2f} | {r.budget:g} | {_SIGNS.get(r.decision, '')} "
        f"{markdown_text(r.decision)} "
        f"| {markdown_text(r.drift)} |"
        for r in rows[:_ROWS]
    ]
    yield "\n".join([*lines, *_more(len(rows) - _ROWS, "verdict")])


def _exceeded(case: CaseResult) -> Iterator[str]:
    lines_beyond = cases.exceeded_lines(case)
    if lines_beyond:
        lines = [
            "**Limits:**",
            "",
            *(f"- {markdown_text(line, 300)}" for line in lines_beyond[:_ROWS]),
        ]
        yield "\n".join(
            [
                *lines,
                *([f"- and {len(lines_beyond) - _ROWS} more"] if len(lines_beyond) > _ROWS else []),
            ]
        )


def _problems(case: CaseResult) -> Iterator[str]:
    for problem in cases.problems(case)[:_ROWS]:
        names = problem.names
        lines = [f"**Insertion:** {markdown_text(problem.what, 600)}", ""]
        lines += [f"- {markdown_code(name)}" for name in names[:_NAMES]]
        lines += [f"- and {len(names) - _NAMES} more"] if len(names) > _NAMES else []
        lines += ["", markdown_text(problem.fix, 600)]
        yield "\n".join(lines).rstrip()


def _mismatches(case: CaseResult) -> Iterator[str]:
    mismatches = cases.mismatches(case)
    if not mismatches:
        return
    lines = ["**Numerics:** these quantizers do not compute what their format says:", ""]
    for seen in mismatches[:_NAMES]:
        differ = f"{seen.mismatches} of {seen.elements} elements differ; {seen.first}"
        what = seen.unsupported or differ
        lines.append(f"- {markdown_code(seen.name)}: {markdown_text(what, 300)}")
    yield "\n".join(
        [*lines, *([f"- and {len(mismatches) - _NAMES} more"] if len(mismatches) > _NAMES else [])]
    )


def _blame(case: CaseResult) -> Iterator[str]:
    blame = case.blame
    if blame is None:
        return
    groups = blame.groups
    if groups:
        lines = ["<details><summary>Blame: quantizers ranked by harm</summary>", ""]
        lines += ["| group | turned off: points won | alone: points lost |", "|---|--:|--:|"]
        lines += [
            f"| {markdown_code(group.name)} | {group.off_points:+.2f} | {group.alone_points:+.2f} |"
            for group in groups[:_NAMES]
        ]
        yield "\n".join([*lines, "", *_more(len(groups) - _NAMES, "group"), "</details>"])
    change = blame.suggestion
    if change is not None:
        yield (
            f"Suggested change of line {change.line} of {markdown_code(change.file)} (verified by "
            f"a full evaluation):\n\n{markdown_block(change.text[:4000], 'suggestion')}"
        )
    elif blame.patch:
        proof = "verified by a full evaluation" if blame.verified else "not verified"
        yield f"Recipe patch ({proof}):\n\n{markdown_block(blame.patch[:4000], 'yaml')}"


def _throughput(case: CaseResult) -> Iterator[str]:
    speeds = cases.speeds(case)
    if speeds:
        lines = [
            "Speed, in times FP16's:",
            "",
            "| tower | ratio | baseline | |",
            "|---|---|---|---|",
        ]
        for speed in speeds:
            cells = (speed.tower, speed.ratio, speed.baseline, speed.moved)
            lines.append(f"| {' | '.join(map(markdown_text, cells))} |")
        yield "\n".join(lines)


def _export(case: CaseResult) -> Iterator[str]:
    lines = [
        *(f"export: {fault}" for fault in cases.export_faults(case)),
        *cases.export_lines(case),
    ]
    if lines:
        yield "\n".join(f"- {markdown_text(line, 400)}" for line in lines)


def _more(n: int, what: str) -> list[str]:
    return ["", f"*and {n} more {what}{'s' if n > 1 else ''}*", ""] if n > 0 else []


def _footer(environment: EnvironmentResult) -> str:
    facts = [f"{name} {version}" for name, version in environment.versions.items()]
    facts += [fact for fact in (environment.device, environment.date) if fact]
    lines = [f"<sub>{markdown_text('; '.join(facts), 1500)}</sub>"] if facts else []
    if environment.command:
        lines.append(markdown_block(shown(environment.command, 2000)))
    return "\n\n".join([*lines, _DRAWN_BY])
