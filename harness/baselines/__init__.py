"""The store of baselines: what was measured and accepted, and how a fresh measurement drifts from
it.

A *record* (``records``, ``text``) is bound to what it was measured on; the *store* (``store``)
finds the nearest one, and writes so that neither a kill nor a second process loses anything;
*drift* (``drift``) says what moved, or refuses to compare.
"""

from harness.baselines.commands import PLACEHOLDER, accept_command, rerun_command
from harness.baselines.comparison import Comparison
from harness.baselines.drift import Changes, Drift, Kind, NoiseLimits, changes, compare
from harness.baselines.records import HistoryEntry, Record, SampleOutcomes, TaskRecord
from harness.baselines.store import Change, Missing, Orphan, Store

__all__ = [
    "PLACEHOLDER",
    "Change",
    "Changes",
    "Comparison",
    "Drift",
    "HistoryEntry",
    "Kind",
    "Missing",
    "NoiseLimits",
    "Orphan",
    "Record",
    "SampleOutcomes",
    "Store",
    "TaskRecord",
    "accept_command",
    "changes",
    "compare",
    "rerun_command",
]
