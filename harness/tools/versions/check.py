"""A release against the newest measured one: what is expected to differ does, and nothing else."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from harness.baselines import differences, overlay
from harness.baselines.differences import ExpectedDifference, OutcomeDifference, Way
from harness.baselines.overlay import REFUSED, OverlayFinding
from harness.formats import deviations
from harness.pull_requests import effect
from harness.pull_requests.effect import Effect
from harness.quantization import maps
from harness.tools.versions import measurement
from harness.tools.versions.measurement import ReleaseMeasurement, SubjectState


@dataclass(frozen=True)
class Checked:
    """The records met, each with how much it changed, and what is amiss, by where it showed."""

    way: Way
    met: Mapping[str, int]
    findings: tuple[tuple[OverlayFinding, tuple[str, ...]], ...]

    def lines(self, records: Iterable[ExpectedDifference]) -> list[str]:
        """The whole result for a person."""
        lines = [str(self.way), *(met_lines(self.met, records) or ["no difference is expected"])]
        for finding, where in self.findings:
            lines += ["", f"{', '.join(where)}:", *str(finding).splitlines()]
        drafted = overlay.drafted((finding for finding, _ in self.findings), self.way)
        return [*lines, "", *drafted] if drafted else lines


def met_lines(met: Mapping[str, int], records: Iterable[ExpectedDifference]) -> list[str]:
    """A line for each record that was met: its name, how much it changed, and why."""
    reasons = {record.name: record.difference for record in records}
    return [
        f"{name}: {count} {'places' if reasons[name].kind == 'quantizers' else 'cases'}; "
        f"{reasons[name].reason}"
        for name, count in met.items()
        if name in reasons
    ]


def check(
    fresh: ReleaseMeasurement,
    base: ReleaseMeasurement,
    records: Sequence[ExpectedDifference],
    device: str = "cpu",
) -> Checked:
    """Hold *fresh*, measured here, against *base* with the expected differences of all releases
    between them.
    """
    way = differences.way(records, base.versions, fresh.versions)
    met: Counter[str] = Counter()
    places_by_finding: dict[OverlayFinding, list[str]] = defaultdict(list)

    def take(where: str, done: tuple[Mapping[str, int], Iterable[OverlayFinding]]) -> None:
        met.update(done[0])
        for finding in done[1]:
            places_by_finding[finding].append(where)

    for name in dict.fromkeys([*base.subjects, *fresh.subjects]):
        old, new = base.subjects.get(name), fresh.subjects.get(name)
        if old is None or new is None:
            what = f"{name} is in one of the two measurements only"
            places_by_finding[
                OverlayFinding(
                    what, ("Measure the other release with this version of the harness.",)
                )
            ].append(name)
            continue
        for where, done in _subject(name, old, new, way):
            take(where, done)
    for known in deviations.KNOWN:
        recorded = differences.way(records, {"nvidia-modelopt": known.measured_on}, fresh.versions)
        take(
            known.name,
            overlay.deviation(known.name, fresh.deviations[known.name], recorded, device),
        )
    return Checked(
        way,
        dict(met),
        tuple((finding, tuple(where)) for finding, where in places_by_finding.items()),
    )


def _subject(
    name: str, old: SubjectState, new: SubjectState, way: Way
) -> Iterable[tuple[str, tuple[Mapping[str, int], Iterable[OverlayFinding]]]]:
    """Where, and what, of one subject: its outcome where a record speaks of that or a release
    refuses it, else maps.
    """
    spoken = any(
        isinstance(s.difference, OutcomeDifference)
        and differences.any_of(s.difference.subjects, name)
        for s in way.steps
    )
    if spoken or REFUSED in old.outcome + new.outcome:
        yield name, overlay.outcome(old.outcome, new.outcome, way, name)
        return
    for architecture in measurement.ARCHITECTURES:
        laid = overlay.apply(old.maps[architecture], new.maps[architecture], way, name)
        yield f"{name} on {architecture}", (laid.met, laid.findings)


def effects(base: ReleaseMeasurement, fresh: ReleaseMeasurement) -> list[Effect]:
    """What changes from one release to another, subjects that change alike together; nothing for
    those that do not.
    """
    alike: dict[tuple[tuple[tuple[str, ...], ...], tuple[str, ...]], list[str]] = defaultdict(list)
    for name in dict.fromkeys([*base.subjects, *fresh.subjects]):
        old, new = (m.subjects.get(name, SubjectState("not measured", {})) for m in (base, fresh))
        if REFUSED in old.outcome + new.outcome or not (old.maps and new.maps):
            beyond: tuple[str, ...] = (
                (f"{old.outcome} to {new.outcome}",) if old.outcome != new.outcome else ()
            )
            lines: tuple[tuple[str, ...], ...] = ((),) * len(effect.ARCHITECTURES)
        else:
            beyond = ()
            lines = tuple(tuple(maps.diff(old.maps[a], new.maps[a])) for a in effect.ARCHITECTURES)
        alike[lines, beyond].append(name)
    effects = []
    for (by_architecture, beyond_), names in alike.items():
        change = Effect(
            ", ".join(names), dict(zip(effect.ARCHITECTURES, by_architecture, strict=True)), beyond_
        )
        effects += [] if change.none else [change]
    return effects
