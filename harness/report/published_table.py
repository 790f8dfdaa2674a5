"""The table of a published evaluation from one run: FP16 and every recipe on every task."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.gate.results_schema import CaseResult, RunResult, VerdictResult
from harness.report import cases
from harness.report.text import json_text, markdown_block, markdown_code, markdown_text

#: What the numbers mean, below the table.
_EXPLAINED = (
    "Accuracy or recall@5 in per cent. A difference is quantized minus FP16 on the same samples, "
    "in points, with its two-sided 1 - 2 alpha interval; then the samples that only FP16 has right "
    "(lost) and that only the quantized model has right (won), and the verdict on the budget."
)


def data(results: RunResult) -> dict[str, Any]:
    """Return the table as plain data: rows, and what the run ran on."""
    rows = [
        {
            "model": case.model,
            "recipe": case.recipe,
            "task": verdict.task,
            "metric": verdict.metric,
            "samples": verdict.n,
            "fp16": 100 * verdict.reference_accuracy,
            "quantized": 100 * verdict.quantized_accuracy,
            "difference": verdict.difference,
            "interval": list(verdict.interval),
            "alpha": verdict.budget.alpha,
            "lost": verdict.lost,
            "won": verdict.won,
            "decision": verdict.decision,
        }
        for case, verdict in _verdicts(results)
    ]
    environment = results.environment
    return {
        "decision": cases.run_decision(results),
        "rows": rows,
        "environment": {
            "versions": environment.versions,
            "device": environment.device,
            "date": environment.date,
            "attention": environment.attention,
            "command": environment.command,
        },
    }


def markdown(results: RunResult) -> str:
    """Return the table in Markdown: one table per model, one row per metric, one column per
    recipe.
    """
    parts = [f"# Quantized against FP16: {cases.run_decision(results)}"]
    every = _verdicts(results)
    for model, of_model in itertools.groupby(every, key=lambda pair: pair[0].model):
        parts.append(_table(model, list(of_model)))
    environment = results.environment
    facts = [f"{name} {version}" for name, version in environment.versions.items()]
    facts += [fact for fact in (environment.device, environment.date) if fact]
    parts += [_EXPLAINED, f"Measured with {markdown_text('; '.join(facts), 1500)}."]
    if environment.command:
        parts.append(markdown_block(environment.command))
    return "\n\n".join(parts) + "\n"


def _verdicts(results: RunResult) -> list[tuple[CaseResult, VerdictResult]]:
    """The verdicts on tasks, the cases of one model one after another."""
    judged = sorted((case for case in results.cases if case.accuracy), key=lambda case: case.model)
    return [
        (case, verdict)
        for case in judged
        for verdict in (case.accuracy.verdicts if case.accuracy else ())
    ]


def _table(model: str, pairs: list[tuple[CaseResult, VerdictResult]]) -> str:
    recipes = list(dict.fromkeys(case.recipe for case, _ in pairs))
    by_metric: dict[tuple[str, str], dict[str, VerdictResult]] = {}
    for case, verdict in pairs:
        by_metric.setdefault((verdict.task, verdict.metric), {})[case.recipe] = verdict
    heads = ["task/metric", "samples", "FP16", *map(markdown_code, recipes)]
    lines = [f"## {markdown_code(model)}", "", f"| {' | '.join(heads)} |"]
    lines.append("|---|--:|--:|" + "---|" * len(recipes))
    for (task, metric), by_recipe in by_metric.items():
        first = next(iter(by_recipe.values()))
        cells = [
            markdown_code(f"{task}/{metric}"),
            f"{first.n:,}",
            f"{100 * first.reference_accuracy:.2f}",
            *(_cell(by_recipe.get(recipe)) for recipe in recipes),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(verdict: VerdictResult | None) -> str:
    if verdict is None:
        return ""
    low, high = verdict.interval
    return (
        f"{100 * verdict.quantized_accuracy:.2f} ({verdict.difference:+.2f} [{low:+.2f}, "
        f"{high:+.2f}]; {verdict.lost} lost, {verdict.won} won; {verdict.decision})"
    )


def write(results: RunResult, path: Path) -> list[Path]:
    """Write the table to *path* (Markdown), and to the same name with ``.json``.

    Raises:
        UsageError: nothing was judged on a task, or *path* cannot be written.
    """
    where = f"--published-table {path}"
    if not _verdicts(results):
        what = "is not written: no selected test judged a task"
        raise UsageError(where, what, "Select the accuracy suite as well, or leave it out.")
    texts = {path: markdown(results), path.with_suffix(".json"): json_text(data(results))}
    try:
        for file, text in texts.items():
            file.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        what = f"cannot be written ({error.strerror or error})"
        raise UsageError(where, what, "Give a file that can be written.") from error
    return list(texts)
