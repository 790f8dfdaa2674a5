"""Apply expected differences, in version order, to a copy of a baseline before a release is
compared with it.

A baseline is never edited: it stays what was measured under its release.  What the releases between
it and the one that runs are known to have changed is laid over a copy.  What then still differs,
nobody expected; and a record that found nothing to change expects what is no longer so.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from harness.baselines import differences
from harness.baselines.differences import (
    DeviationDifference,
    OutcomeDifference,
    Quantizers,
    ReleaseStep,
    Way,
)
from harness.problems import collapse
from harness.quantization import maps
from harness.quantization.maps import Quantizer, QuantizerMap

ABSENT = "absent"
#: How the outcome of a configuration begins that a release does not take.
REFUSED = "refused: "


@dataclass(frozen=True)
class OverlayFinding:
    """Something that no record expects (``draft`` is the record that would), or a record that met
    nothing.
    """

    what: str
    lines: tuple[str, ...]
    draft: str = ""

    def __str__(self) -> str:
        return "\n".join([self.what, *(f"  {line}" for line in self.lines)])


@dataclass(frozen=True)
class Expected:
    """What a baseline leads to expect here: the map, how much each record changed (by its name),
    and what is amiss.
    """

    map: QuantizerMap
    met: Mapping[str, int]
    findings: tuple[OverlayFinding, ...]


def apply(base: QuantizerMap, fresh: QuantizerMap, way: Way, subject: str) -> Expected:
    """Return the map that *base* becomes on the *way*, and how *fresh*, which was measured here,
    differs from it.

    Args:
        base: as it was measured under the releases that the way starts from.
        fresh: of this run.
        way: to the releases of this run.
        subject: the recipe or preset that both are of.
    """
    old, new = ({q.name: q for q in m} for m in (base, fresh))
    every = {**old, **new}
    was = {name: state(old.get(name)) for name in every}
    expected, actual = dict(was), {name: state(new.get(name)) for name in every}
    met: dict[str, int] = {}
    findings = []
    steps = [
        (s, d)
        for s in way.steps
        if isinstance(d := s.difference, Quantizers) and _covers(d, subject)
    ]
    for number, (step, difference) in enumerate(steps):
        among = [name for name, q in every.items() if _speaks_of(difference, q)]
        touched = [name for name in among if differences.matches(step.was, expected[name])]
        if not touched and not _passing(number, steps):
            findings.append(
                _unmet(step, f"no quantizer of {subject} is {step.was!r} where it looks")
            )
        elif touched:
            met[step.record.name] = len(touched)
        for name in touched:
            # Words that stand for several states leave it to the release which of them it is.
            expected[name] = (
                actual[name] if differences.matches(step.now, actual[name]) else step.now
            )
    wrong = [name for name in every if expected[name] != actual[name]]
    moved = {name for name in every if expected[name] != was[name]}
    findings += [_unexpected(way, expected, actual, every, wrong)] if wrong else []
    # In the order of what runs here; what only the base has comes behind.
    order = [*(q.name for q in fresh), *(q.name for q in base if q.name not in new)]
    laid = [new.get(n) if n in moved and n not in wrong else old.get(n) for n in order]
    return Expected(tuple(q for q in laid if q is not None), met, tuple(findings))


def explanations(findings: Iterable[OverlayFinding], way: Way) -> list[str]:
    """Findings for a person, and the records that would expect them."""
    every = list(findings)
    return [*(line for f in every for line in str(f).splitlines()), *drafted(every, way)]


def drafted(findings: Iterable[OverlayFinding], way: Way) -> list[str]:
    """The records that would expect *findings*, to be completed, under the line that says where
    they belong.
    """
    drafts = "".join(dict.fromkeys(f.draft for f in findings)).splitlines()
    return [way.advice, *drafts] if drafts else []


def state(q: Quantizer | None) -> str:
    """What records call the state of a quantizer: ``absent``, ``off``, or ``E4M3 per-tensor`` with
    what is unusual.
    """
    return ABSENT if q is None else maps.state(q)


def outcome(
    base: str, fresh: str, way: Way, subject: str
) -> tuple[dict[str, int], list[OverlayFinding]]:
    """Whether the outcome of *subject* is what *base* leads to expect: the records met, and what is
    amiss.
    """
    expected, met = base, dict[str, int]()
    findings: list[OverlayFinding] = []
    for step in way.steps:
        difference = step.difference
        if not isinstance(difference, OutcomeDifference) or not _covers(difference, subject):
            continue
        expected = _taken(step, expected, fresh, f"{subject}: {expected}", met, findings)
    # The words in which a release refuses it do not matter.
    if expected != fresh and not (expected.startswith(REFUSED) and fresh.startswith(REFUSED)):
        draft = way.draft("outcome", expected, fresh, subjects=[subject])
        findings.append(
            OverlayFinding(
                f"{subject} has another outcome", (f"expected {expected}", f"found {fresh}"), draft
            )
        )
    return met, findings


def deviation(
    name: str, fresh: str, way: Way, device: str
) -> tuple[dict[str, int], list[OverlayFinding]]:
    """Whether a known deviation is in the state that its record, made under the way's first
    release, leads to.
    """
    expected, met = "as recorded", dict[str, int]()
    findings: list[OverlayFinding] = []
    for step in way.steps:
        difference = step.difference
        if not isinstance(difference, DeviationDifference) or not differences.any_of(
            difference.deviations, name
        ):
            continue
        if difference.device not in ("any", device):
            continue
        expected = _taken(step, expected, fresh, f"{name} is {expected!r}", met, findings)
    if expected != fresh:
        draft = way.draft("deviation", expected, fresh, deviations=[name])
        findings.append(
            OverlayFinding(
                f"the deviation {name} is another",
                (f"expected {expected}", f"found {fresh}"),
                draft,
            )
        )
    return met, findings


def _taken(
    step: ReleaseStep,
    expected: str,
    fresh: str,
    shown: str,
    met: dict[str, int],
    findings: list[OverlayFinding],
) -> str:
    """Return the expected state after *step*, which is added to *met*, or to *findings* if it
    starts from another state.
    """
    if not differences.matches(step.was, expected):
        findings.append(_unmet(step, shown))
        return expected
    met[step.record.name] = 1
    return fresh if differences.matches(step.now, fresh) else step.now


def _covers(difference: Quantizers | OutcomeDifference, subject: str) -> bool:
    return differences.any_of(difference.subjects, subject)


def _passing(number: int, steps: Sequence[tuple[ReleaseStep, Quantizers]]) -> bool:
    """Whether the quantizers of a step are at neither end of the way: one step added them and a
    later one removed them.
    """

    def ends(first: int, other: int) -> bool:
        (came, places), (went, same) = steps[first], steps[other]
        alike = (places.quantizers, places.module_class, places.tower) == (
            same.quantizers,
            same.module_class,
            same.tower,
        )
        return alike and came.was == went.now == ABSENT

    return any(
        ends(min(number, other), max(number, other))
        for other in range(len(steps))
        if other != number
    )


def _speaks_of(difference: Quantizers, q: Quantizer) -> bool:
    return (
        difference.module_class in (None, q.module_class)
        and difference.tower in (None, q.tower)
        and differences.any_of(difference.quantizers, q.name)
    )


def _unmet(step: ReleaseStep, what: str) -> OverlayFinding:
    return OverlayFinding(
        f"the expected difference {step.record.name} meets nothing: {what}",
        (
            f"{step.record.place} expects {step.was!r} to become {step.now!r}",
            "Correct the record, or remove it.",
        ),
    )


def _unexpected(
    way: Way,
    expected: Mapping[str, str],
    actual: Mapping[str, str],
    every: Mapping[str, Quantizer],
    wrong: Sequence[str],
) -> OverlayFinding:
    groups: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for name in wrong:
        groups[expected[name], actual[name], every[name].module_class].append(name)
    lines, drafts = [], []
    for (before, after, module_class), names in groups.items():
        lines.append(f"{len(names)} {module_class} quantizers are {after}, expected {before}:")
        lines += [f"  {line}" for line in collapse(names)]
        patterns = list(
            dict.fromkeys(
                re.sub(r"^.*\.layers\.", "*.layers.", differences.generic(n)) for n in names
            )
        )
        drafts.append(
            way.draft("quantizers", before, after, quantizers=patterns, module_class=module_class)
        )
    what = f"{len(wrong)} quantizers are not as expected:"
    return OverlayFinding(what, tuple(lines), "".join(drafts))
