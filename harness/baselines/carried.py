"""A stored record as another release is expected to give it, for the comparison of quantizer maps.

Only the map is carried over.  What a task's samples got under another release is not expected of
this one: there a record of another release stays what it is, an error and no comparison.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from harness.baselines import (
    Comparison,
    Kind,
    Record,
    differences,
    overlay,
    provenance,
    rerun_command,
)
from harness.baselines.differences import Way
from harness.baselines.overlay import OverlayFinding
from harness.formats.deviations import Deviation
from harness.quantization import maps


@dataclass(frozen=True)
class Unexpected(Comparison):
    """The map of this release differs from the stored one in a way that no record expects, or a
    record changed nothing.
    """

    against: str
    way: Way
    met: Mapping[str, int]
    findings: tuple[OverlayFinding, ...]

    @property
    def word(self) -> str:
        """As for a drift from a record of something else."""
        return Kind.MISMATCH.value

    @property
    def headline(self) -> str:
        """A few words for a table."""
        return f"not as expected after {self.way}"

    def message(self, nodeid: str | None = None, options: Sequence[str] = ()) -> str:
        """All of it for a person: what was expected and met, what was not, and the record that
        would expect it.
        """
        lines = [f"the quantizer map is not what is expected after {self.way}", f"  {self.against}"]
        lines += [
            f"  expected and met: {name} ({count} quantizers)" for name, count in self.met.items()
        ]
        lines += overlay.explanations(self.findings, self.way)
        lines += [f"rerun:  {rerun_command(nodeid, options)}"] if nodeid else []
        return "\n".join(lines)


@dataclass(frozen=True)
class Carried:
    """The record to compare with, the expected differences that were met in it, and what is
    amiss.
    """

    record: Record
    met: Mapping[str, int]
    unexpected: Unexpected | None = None


def carry(
    stored: Record, fresh: Record, records: Sequence[differences.ExpectedDifference]
) -> Carried:
    """Return *stored* with the changes of its map that are expected between its releases and those
    of *fresh*.

    It is left as it is where the two have the same releases, or belong to different things in any
    other way: the comparison says so.
    """
    old, new = stored.provenance, fresh.provenance
    way = differences.way(records, old.versions, new.versions)
    here = old.versions | {p: new.versions[p] for p in differences.PACKAGES if p in new.versions}
    moved = replace(old, versions=here)
    if not way.moved or provenance.mismatches(moved, new):
        return Carried(stored, {})
    pair = [tuple(maps.of_dict(q) for q in record.quantizers) for record in (stored, fresh)]
    laid = overlay.apply(pair[0], pair[1], way, differences.subject(new.recipe, new.attention))
    quantizers: tuple[dict[str, object], ...] = tuple(q.as_dict() for q in laid.map)
    against = f"{stored.path or 'baseline'}, {stored.measured[:10]}"
    unexpected = Unexpected(against, way, laid.met, laid.findings) if laid.findings else None
    return Carried(replace(stored, provenance=moved, quantizers=quantizers), laid.met, unexpected)


def deviation(
    known: Deviation,
    records: Sequence[differences.ExpectedDifference],
    versions: Mapping[str, str],
    device: str,
) -> tuple[Mapping[str, int], list[str]]:
    """The expected differences met in a *known* deviation, and what is amiss: no text where it is
    as recorded, or as the installed *versions* are expected to have it on this kind of *device*.
    """
    way = differences.way(records, {"nvidia-modelopt": known.measured_on}, versions)
    met, findings = overlay.deviation(known.name, known.state(), way, device)
    if not findings:
        return met, []
    explanation = (
        f"{known.name} in {known.where}, measured on {known.measured_on}: {known.definition}; "
        f"{known.modelopt}"
    )
    fix = [] if way.moved else ["Correct or remove it in harness/formats/deviations.py."]
    return met, ["\n".join([explanation, *overlay.explanations(findings, way), *fix])]
