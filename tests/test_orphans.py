"""Is every stored record still used?"""

from __future__ import annotations

from harness.checks import orphans
from harness.gate.session import Gate
from harness.pytest_plugin.judge import Judge


def test_no_baseline_is_orphaned(gate: Gate, check: Judge) -> None:
    """Each record belongs to a recipe and model that a plain run gates; anything else is reported with
    its removal.
    """
    check.problems(orphans.no_baseline_is_orphaned(gate))
