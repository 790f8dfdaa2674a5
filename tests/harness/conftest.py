"""Imports what nested pytest runs use.

pytest's ``pytester`` forgets the modules that a nested run was the first to import; the next run
would import them again and find every class and enumeration twice.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from store_helpers import Clock

import harness.checks.checkpoint_preload
import harness.gate.session
import harness.pull_requests.selection
import harness.pytest_plugin.workers
import harness.report
import harness.report.summary
import harness.tools.proof  # noqa: F401
from harness.baselines import Store
from harness.baselines import store as store_module
from harness.models import references
from harness.models.references import Reference
from harness.statistics import paired


@pytest.fixture(autouse=True)
def uncached() -> None:
    """Each test computes its own exact p-values, and so judges the code that is there now
    (docs/mutants.md).
    """
    paired.exact_p.cache_clear()


@pytest.fixture
def pytester(pytester: pytest.Pytester) -> pytest.Pytester:
    """pytester, whose folder is a project of the gate for ``parseconfig``: elsewhere the installed
    gate adds no option.
    """
    pytester.plugins.append("harness.pytest_plugin.plugin")
    return pytester


@pytest.fixture(scope="session")
def reference() -> Reference:
    """The embedded CLIP in FP16 on the CPU, loaded once: tests change copies of it only."""
    return references.load("embedded", torch.device("cpu"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store of baselines, two folders deeper than what is there."""
    return Store(tmp_path / "work" / "baselines")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The store's clock, at four minutes past eleven in the evening (UTC)."""
    clock = Clock()
    monkeypatch.setattr(store_module, "datetime", clock)
    return clock
