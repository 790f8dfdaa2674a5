"""The table of a published evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from drawn import pair

from harness.errors import UsageError
from harness.gate.results import Results
from harness.report import cases, published_table
from harness.statistics.verdicts import Budget, compare, family


def judged() -> Results:
    """Two recipes on one model, of which the second lost more, and a case without a verdict."""
    results = Results()
    results.environment.update(versions={"torch": "2.13"}, date="2026-11-28", command="pytest")
    for recipe, lost in (("fp8", 10), ("a|b", 40)):
        judged_family = family([compare(*pair(2000, lost, 8), Budget(1.0))])
        results.section(recipe, "tiny", "accuracy").update(
            decision=judged_family.decision.value,
            headline=judged_family.headline(),
            verdicts=[verdict.as_dict() for verdict in judged_family.verdicts],
        )
    results.case("int8", "other")
    return results


def test_a_run_becomes_a_table(tmp_path: Path) -> None:
    """Markdown has a row per metric and a column per recipe, JSON the same numbers."""
    run = cases.read(judged().as_dict())
    markdown, data = published_table.write(run, tmp_path / "table.md")
    text = markdown.read_text()
    (row,) = [line for line in text.splitlines() if "2,000" in line]
    assert "10 lost, 8 won; PASS" in row
    assert "40 lost, 8 won; " in row
    assert row.count(" | ") == 4
    assert "torch 2.13" in text
    first, second = json.loads(data.read_text())["rows"]
    assert (first["recipe"], first["lost"], first["won"]) == ("fp8", 10, 8)
    assert second["difference"] == pytest.approx(-1.6)
    assert first["quantized"] - first["fp16"] == pytest.approx(-0.1)


def test_no_verdict_makes_no_table(tmp_path: Path) -> None:
    """A run that judged no task is refused, and nothing is written."""
    with pytest.raises(UsageError, match="no selected test judged a task"):
        published_table.write(cases.read(Results().as_dict()), tmp_path / "table.md")
    assert not list(tmp_path.iterdir())
