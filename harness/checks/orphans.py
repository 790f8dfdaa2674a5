"""Every stored record is still used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.baselines import Orphan
from harness.checks.registry import NotJudged, check

if TYPE_CHECKING:
    from harness.gate.session import Gate


@check("orphans")
def no_baseline_is_orphaned(session: Gate) -> tuple[Orphan, ...]:
    """Return the records that belong to no recipe and model of a plain run."""
    if not session.options.is_default:
        raise NotJudged(
            "only a run of all default recipes on the default model knows what is unused"
        )
    return session.orphans()
