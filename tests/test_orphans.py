"""Is every stored record still used?"""

from __future__ import annotations

import pytest

from harness.gate.gate import Gate
from harness.pytest_plugin.plugin import Check


def test_no_baseline_is_orphaned(gate: Gate, check: Check) -> None:
    """Each record belongs to a recipe and model that a plain run gates; anything else is told with its removal."""
    if not gate.options.is_default:
        pytest.skip("only a run of all default recipes on the default model knows what is unused")
    check.problems(gate.orphans())
