"""Imports what nested pytest runs use.

pytest's ``pytester`` forgets the modules that a nested run was the first to import; the next run would import them
again and find every class and enumeration twice.
"""

from __future__ import annotations

import pytest

import harness.checkpoint_preload
import harness.gate
import harness.proof
import harness.report
import harness.selection
import harness.summary
import harness.workers  # noqa: F401
from harness import paired


@pytest.fixture(autouse=True)
def uncached() -> None:
    """Each test computes its own exact p-values, and so judges the code that is there now (docs/mutants.md)."""
    paired.exact_p.cache_clear()
