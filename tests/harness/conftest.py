"""Imports what nested pytest runs use.

pytest's ``pytester`` forgets the modules that a nested run was the first to import; the next run would import them
again and find every class and enumeration twice.
"""

from __future__ import annotations

import pytest

import harness.checks.checkpoint_preload
import harness.gate.gate
import harness.pull_requests.selection
import harness.pytest_plugin.workers
import harness.report
import harness.report.summary
import harness.tools.proof  # noqa: F401
from harness.statistics import paired


@pytest.fixture(autouse=True)
def uncached() -> None:
    """Each test computes its own exact p-values, and so judges the code that is there now (docs/mutants.md)."""
    paired.exact_p.cache_clear()
