"""Drift: what moved between a stored record and a fresh measurement, or between a record and its
replacement.

``compare`` judges and refuses to compare what does not belong together.  ``changes`` only
describes, for the person who is about to accept a new record, so it may set numbers side by side
that belong to different versions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from harness.baselines.commands import accept_command, rerun_command
from harness.baselines.comparison import Comparison
from harness.baselines.provenance import Mismatch, changed_facts, mismatches, same_bits
from harness.baselines.records import Record, SampleOutcomes, TaskRecord
from harness.digests import short
from harness.evaluation.environment import BINDING_PACKAGES, Nearness
from harness.statistics.speed import Ratio, moved

#: Words in the name of a number beyond accuracy that say: higher is better.  Of all others, lower
#: is.
HIGHER_IS_BETTER = ("cosine", "agreement", "overlap", "similarity")


class Kind(Enum):
    """How a measurement compares with the baseline; the last in this order is reported first."""

    NOTHING = "nothing moved"
    NOISE = "only noise"
    MISSING = "no baseline for a task"
    QUANTIZED = "the quantized model moved"
    REFERENCE = "the reference moved"
    MISMATCH = "the baseline belongs to something else"


@dataclass(frozen=True)
class NoiseLimits:
    """What still counts as noise where bits cannot be compared.

    ``alpha``: error rate, over all tasks of one comparison (Bonferroni), of the exact tests for
    "more samples lost than won, or the reverse" and for "more of the quantized model's answers
    changed than another draw of its rounding explains" (``redrawn``).  ``share``: answers of the
    reference that may change, as a share of those that quantization changes; at least ``floor``
    samples may.  ``amax``: relative tolerance of calibrated ranges.
    """

    alpha: float = 0.01
    share: float = 0.5
    floor: int = 3
    amax: float = 0.05


@dataclass(frozen=True)
class Drift(Comparison):
    """The result of ``compare``.

    ``by`` is "bits" or "verdict"; ``against`` names the record, its device and how near that is;
    ``lines`` say what moved, or what the baseline belongs to; ``notes`` explain; ``missing`` names
    tasks that the baseline has not. ``whole`` means that one case cannot be accepted alone, because
    the rest of the record would not belong to it; ``new_only`` that accepting adds and replaces
    nothing.
    """

    kind: Kind
    by: str
    against: str
    lines: tuple[str, ...]
    notes: tuple[str, ...]
    missing: tuple[str, ...]
    recipe: str
    model: str
    whole: bool
    new_only: bool

    @property
    def failed(self) -> bool:
        """Whether a person must look: anything but nothing and noise."""
        return self.kind not in (Kind.NOTHING, Kind.NOISE)

    @property
    def only_adds(self) -> bool:
        """As ``new_only``."""
        return self.new_only

    @property
    def causes(self) -> tuple[str, ...]:
        """What the baseline belongs to instead, where it belongs to something else."""
        return self.lines if self.kind is Kind.MISMATCH else ()

    @property
    def word(self) -> str:
        """The kind of drift."""
        return self.kind.value

    @property
    def headline(self) -> str:
        """A few words for a table: ``only noise (by verdict)``."""
        return (
            self.kind.value
            if self.kind in (Kind.MISMATCH, Kind.MISSING)
            else f"{self.kind.value} (by {self.by})"
        )

    def accept_command(self, nodeid: str | None = None, options: Sequence[str] = ()) -> str:
        """The command that measures again and accepts: the case *nodeid* where it can stand alone,
        else the recipe.
        """
        case = None if self.whole else nodeid
        return accept_command(
            case, options, recipe=self.recipe, model=self.model, new_only=self.new_only
        )

    def message(self, nodeid: str | None = None, options: Sequence[str] = ()) -> str:
        """All of it for a person, with the command that reruns the case and the one that measures
        again and accepts.
        """
        title = {
            Kind.MISMATCH: "not compared: the baseline belongs to something else",
            Kind.REFERENCE: "the reference moved: a dependency, not the recipe",
            Kind.QUANTIZED: "the quantized model moved: ModelOpt's code, or the calibration",
        }.get(self.kind, self.kind.value)
        how = [] if self.kind is Kind.MISMATCH else [f"  compared by {self.by}"]
        lines = [title, f"  {self.against}", *how, *(f"  {line}" for line in self.lines)]
        lines += [f"  no baseline for {name}" for name in self.missing]
        lines += [f"  note: {note}" for note in self.notes]
        if self.failed:
            lines += [f"  rerun:  {rerun_command(nodeid, options)}"] if nodeid else []
            lines.append(f"  accept: {self.accept_command(nodeid, options)}")
        return "\n".join(lines)


def compare(stored: Record, fresh: Record, limits: NoiseLimits | None = None) -> Drift:
    """Hold *fresh* against *stored*.

    What must agree before anything is compared: model revision, recipe hash, calibration data and
    size, attention class, releases of ModelOpt, torch and transformers, the structure of the
    quantizer map, and of each task the data hash, sample ids in their order, count and
    preprocessing.  Where all agree and device, torch build, threads and batch do too, bits are
    compared; otherwise verdicts are, and the samples' changes tested for being more than noise.

    Args:
        stored: from ``Store.find``.
        fresh: of this run; tasks that it has not measured are left out.
        limits: of what counts as noise.

    """
    limits = limits or NoiseLimits()
    near = fresh.provenance.device.nearness(stored.provenance.device)
    foreign = belongs_to(stored, fresh)
    missing = tuple(t.name for t in fresh.tasks if stored.task(t.task, t.metric) is None)
    pairs = [
        (was, now) for now in fresh.tasks if (was := stored.task(now.task, now.metric)) is not None
    ]
    judge = _Judge(same_bits(stored.provenance, fresh.provenance), limits, tests=2 * len(pairs))
    if not foreign:
        for was, now in pairs:
            judge.task(was, now)
        judge.ranges(stored, fresh)
    kind = Kind.MISMATCH if foreign else Kind.MISSING if missing and not judge.moved else judge.kind
    notes = (*_suspects(kind, len(pairs), stored, fresh), *judge.notes, *_speed(stored, fresh))
    return Drift(
        kind=kind,
        by="bits" if judge.bits else "verdict",
        against=(
            f"{stored.path or 'baseline'}, {stored.measured[:10]}, {stored.provenance.device}: "
            f"{near.value}"
        ),
        lines=tuple(map(str, foreign)) or tuple(judge.lines),
        notes=_advice(foreign) if foreign else notes,
        missing=missing,
        recipe=fresh.provenance.recipe,
        model=fresh.provenance.model,
        whole=not mergeable(stored, fresh),
        new_only=near is not Nearness.EXACT or kind is Kind.MISSING,
    )


def mergeable(stored: Record, fresh: Record) -> bool:
    """Whether parts of both may stand in one record: same device, conditions and everything that
    binds all tasks.
    """
    old, new = stored.provenance, fresh.provenance
    return (
        old.device == new.device
        and old.bits == new.bits
        and not mismatches(old, new)
        and _structure(stored) == _structure(fresh)
    )


# --------------------------------------------------------------------------------------------------
# What a baseline belongs to.


def belongs_to(stored: Record, fresh: Record) -> tuple[Mismatch, ...]:
    """Return everything that forbids comparing the two, except tasks that only one of them has."""
    obstacles = [*mismatches(stored.provenance, fresh.provenance)]
    for now in fresh.tasks:
        was = stored.task(now.task, now.metric)
        obstacles += [] if was is None else _other_data(was, now)
    obstacles += [
        Mismatch("another quantizer map. From it to this run's:", line, "")
        for line in map_changes(stored, fresh)
    ]
    return tuple(obstacles)


def _other_data(was: TaskRecord, now: TaskRecord) -> Iterator[Mismatch]:
    if was.count != now.count:
        yield Mismatch(f"{now.name} with", f"{was.count:,} samples", f"{now.count:,}")
    elif was.sample_set != now.sample_set:
        yield Mismatch(
            f"{now.name} with the sample ids", short(was.sample_set), short(now.sample_set)
        )
    elif was.sample_ids != now.sample_ids:
        yield Mismatch(
            f"{now.name} in",
            "another order of the samples",
            f"the same {now.count:,} samples reordered",
        )
    if was.data_hash != now.data_hash:
        yield Mismatch(f"{now.name} with the data hash", short(was.data_hash), short(now.data_hash))
    if was.preprocessing != now.preprocessing:
        yield Mismatch(
            f"{now.name} preprocessed by", short(was.preprocessing), short(now.preprocessing)
        )


def _advice(foreign: Sequence[Mismatch]) -> tuple[str, ...]:
    packages = [m for m in foreign if m.what in BINDING_PACKAGES]
    if not packages:
        return ()
    back = " ".join(f"{m.what}=={m.stored}" for m in packages)
    return (
        "this record does not judge other releases. Accepting measures again and prints, before it "
        "writes, what the "
        "upgrade moved in the reference and in the quantized model; git diff shows it for review",
        f"to compare with this very baseline, go back to its releases: pip install {back}",
    )


def _structure(record: Record) -> list[dict[str, object]]:
    return [{key: value for key, value in q.items() if key != "amax"} for q in record.quantizers]


def map_changes(stored: Record, fresh: Record, amax: float | None = None) -> list[str]:
    """What changed in the quantizer map, grouped; its ranges only with a relative tolerance *amax*
    (0: by bits).
    """
    if amax is None and _structure(stored) == _structure(fresh):
        return []
    if stored.quantizers == fresh.quantizers:
        return []
    # maps.py needs torch: imported only where there is something to report.
    from harness.quantization import maps

    pair = [tuple(maps.of_dict(q) for q in record.quantizers) for record in (stored, fresh)]
    lines = maps.diff(pair[0], pair[1], amax_tolerance=amax)
    if not lines and amax is None:
        # The diff groups what a person asks about; a change in any other attribute is a change all
        # the same.
        lines = [_first_change(_structure(stored), _structure(fresh))]
    return lines


def _first_change(was: list[dict[str, object]], now: list[dict[str, object]]) -> str:
    pairs = [(a, b) for a, b in zip(was, now, strict=False) if a != b]
    if not pairs:
        return f"{len(was)} quantizers to {len(now)}"
    a, b = pairs[0]
    if a["name"] != b["name"]:
        return f"the order of the quantizers: {a['name']} to {b['name']}"
    keys = [key for key in sorted({*a, *b}) if a.get(key) != b.get(key)]
    what = ", ".join(f"{key} {a.get(key)} to {b.get(key)}" for key in keys)
    return f"{len(pairs)} quantizers change, first {a['name']}: {what}"


# --------------------------------------------------------------------------------------------------
# What moved.


class _Judge:
    """Collects what moved over the tasks and the ranges of one comparison."""

    def __init__(self, bits: bool, limits: NoiseLimits, tests: int) -> None:
        self.bits, self.limits, self.tests = bits, limits, tests
        self.reference = self.quantized = self.noise = False
        self.lines: list[str] = []
        self.notes: list[str] = []

    @property
    def moved(self) -> bool:
        return self.reference or self.quantized

    @property
    def alpha(self) -> float:
        return self.limits.alpha / max(1, self.tests)

    @property
    def kind(self) -> Kind:
        if self.reference:
            return Kind.REFERENCE
        if self.quantized:
            return Kind.QUANTIZED
        return Kind.NOISE if self.noise else Kind.NOTHING

    def task(self, was: TaskRecord, now: TaskRecord) -> None:
        """Judge both models on one task."""
        allowed = {
            "reference": max(self.limits.floor, round(self.limits.share * was.changed)),
            "quantized": redrawn(was.changed, self.alpha),
        }
        for side in ("reference", "quantized"):
            before, after = getattr(was, side), getattr(now, side)
            if before.bits == after.bits:
                continue
            moved, line = self._moved(before, after, now.clusters, allowed[side])
            setattr(self, side, getattr(self, side) or moved)
            self.noise = True
            (self.lines if moved else self.notes).append(f"{now.name}, {side}: {line}")
        self._decision(was, now)

    def _moved(
        self,
        was: SampleOutcomes,
        now: SampleOutcomes,
        clusters: NDArray[np.int32] | None,
        allowed: int,
    ) -> tuple[bool, str]:
        line = outcome_change(was, now)
        if self.bits:
            return True, line
        p = sign_test(was, now, clusters)
        changed = int((was.answers != now.answers).sum())
        if p < self.alpha:
            return True, f"{line}; p = {p:.2g}, more than noise"
        if changed > allowed:
            return True, f"{line}; noise would be at most {allowed:,} changed answers"
        return False, f"{line}; within noise (p = {p:.2g})"

    def _decision(self, was: TaskRecord, now: TaskRecord) -> None:
        if was.decision == now.decision:
            return
        line = f"{now.name}: the verdict was {was.decision} and is {now.decision}"
        if was.budget != now.budget:
            self.notes.append(
                f"{line}; the budget went from {was.budget:g} to {now.budget:g} points"
            )
        elif was.quantized.bits == now.quantized.bits and was.reference.bits == now.reference.bits:
            self.notes.append(f"{line} on equal outcomes: the statistics or their settings changed")
        else:
            self.quantized = True
            self.lines.append(f"{line} (budget {now.budget:g} points)")

    def ranges(self, stored: Record, fresh: Record) -> None:
        """Judge the calibrated ranges of a map whose structure is the same."""
        changed = map_changes(stored, fresh, amax=0.0 if self.bits else self.limits.amax)
        self.lines += changed
        self.quantized = self.quantized or bool(changed)
        self.noise = self.noise or stored.quantizers != fresh.quantizers


def outcome_change(was: SampleOutcomes, now: SampleOutcomes) -> str:
    """``3 of 1,000 answers changed, 2 lost, 1 won, margins by up to 0.03``, of one model on the
    same samples.
    """
    changed = int((was.answers != now.answers).sum())
    lost, won = int((was.correct & ~now.correct).sum()), int((now.correct & ~was.correct).sum())
    by = float(np.abs(was.margins.astype(np.float32) - now.margins.astype(np.float32)).max())
    margins = f"by up to {by:.3g}" if by else "by less than float16 resolves"
    return (
        f"{changed:,} of {len(was.answers):,} answers changed, {lost:,} lost, {won:,} won, margins "
        f"{margins}"
    )


def redrawn(changed: int, alpha: float) -> int:
    """Return how many answers may differ between two quantized models that err equally often, but
    in other places.

    Another processor sums in another order.  The reference hardly notices; a quantized model does,
    as a value next to a rounding boundary lands on its other side and drags the next layer's along.
    At worst its error is drawn again: the difference of two independent errors is sqrt(2) as large
    as one, and answers change in proportion, as the density of margins is flat near zero.  So with
    *changed* (c) answers that quantization changed in the record, a Poisson count, the count
    between two models has the mean sqrt(2) E[c], and stays with probability 1 - *alpha* at or under
    the quantile of the negative binomial distribution NB(c + 1, 1 / (1 + sqrt(2))): the exact
    conditional test for two Poisson rates of Przyborowski and Wilenski (1940), solved for the
    limit.
    """
    from scipy.stats import nbinom

    return int(nbinom.isf(alpha, changed + 1, 1 / (1 + 2**0.5)))


def sign_test(
    was: SampleOutcomes, now: SampleOutcomes, clusters: NDArray[np.int32] | None = None
) -> float:
    """Exact two-sided p-value of "as many lost as won": McNemar (1947) where every sample is its
    own cluster.

    Samples of one picture are not independent: each cluster counts once, with the sign of its sum,
    so that the test stays exact.  Without *clusters* every sample counts.
    """
    steps = now.correct.astype(np.int64) - was.correct.astype(np.int64)
    if clusters is not None:
        _, index = np.unique(clusters, return_inverse=True)
        steps = np.bincount(index, weights=steps).round().astype(np.int64)
    better, worse = int((steps > 0).sum()), int((steps < 0).sum())
    if better + worse == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(better, better + worse).pvalue)


def _suspects(kind: Kind, compared: int, stored: Record, fresh: Record) -> Iterator[str]:
    old, new = stored.provenance, fresh.provenance
    facts = changed_facts(old, new)
    if kind is Kind.REFERENCE and facts:
        yield f"not bound, and changed since: {', '.join(facts)}"
    elif kind is Kind.REFERENCE:
        yield (
            "no recorded package changed since: look at drivers, system libraries, and how the "
            "data is decoded"
        )
    if kind is Kind.QUANTIZED and compared:
        yield (
            "the reference did not move on the same samples; recipe and releases are those of the "
            "baseline"
        )
    if old.device == new.device and old.bits != new.bits:
        was, now = (p.bits or "not deterministic" for p in (old, new))
        yield f"same device, other conditions: {was} then, {now} now; so bits are not compared"


def _speed(stored: Record, fresh: Record) -> Iterator[str]:
    if stored.provenance.device != fresh.provenance.device:
        return
    for tower, was, now in _ratios(stored, fresh):
        if word := moved(was, now):
            yield f"throughput, {tower}: {was} of the reference's then, {now} now: {word}"


def _ratios(stored: Record, fresh: Record) -> Iterator[tuple[str, Ratio, Ratio]]:
    was, now = stored.throughput or {}, fresh.throughput or {}
    yield from ((tower, was[tower], now[tower]) for tower in sorted({*was} & {*now}))


# --------------------------------------------------------------------------------------------------
# What a person is about to accept.


@dataclass(frozen=True)
class Changes:
    """What accepting changes, in lines: ``loosened`` lets more pass from now on, ``tightened``
    less, ``other`` neither.
    """

    loosened: tuple[str, ...] = ()
    tightened: tuple[str, ...] = ()
    other: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.loosened or self.tightened or self.other)

    @property
    def lines(self) -> tuple[str, ...]:
        """All of them, each with its kind."""
        return (
            *(f"loosened: {line}" for line in self.loosened),
            *(f"tightened: {line}" for line in self.tightened),
            *self.other,
        )


def changes(stored: Record, new: Record) -> Changes:
    """Describe what replacing *stored* by *new* would change."""
    lines: dict[str, list[str]] = defaultdict(list)
    for m in mismatches(stored.provenance, new.provenance):
        lines["other"].append(f"{m.what} {m.stored} to {m.fresh}")
    if stored.provenance.bits != new.provenance.bits:
        lines["other"].append(f"conditions {stored.provenance.bits} to {new.provenance.bits}")
    lines["other"] += map_changes(stored, new) or map_changes(stored, new, amax=0.0)
    for key in sorted({(t.task, t.metric) for t in (*stored.tasks, *new.tasks)}):
        for kind, line in _task_changes(stored.task(*key), new.task(*key)):
            lines[kind].append(f"{' '.join(key)}: {line}")
    for tower in sorted({*(stored.throughput or {})} - {*(new.throughput or {})}):
        lines["loosened"].append(f"throughput, {tower}: taken out, not measured in this run")
    for tower in sorted({*(new.throughput or {})} - {*(stored.throughput or {})}):
        lines["tightened"].append(f"throughput, {tower}: added")
    for tower, was, now in _ratios(stored, new):
        if word := moved(was, now):
            kind = "loosened" if word == "slower" else "tightened"
            lines[kind].append(f"throughput, {tower}: {was} to {now} of the reference's")
    return Changes(tuple(lines["loosened"]), tuple(lines["tightened"]), tuple(lines["other"]))


def _task_changes(was: TaskRecord | None, now: TaskRecord | None) -> Iterator[tuple[str, str]]:
    if now is None:
        yield "loosened", "taken out, not measured in this run"
    elif was is None:
        yield (
            "tightened",
            f"added, {now.percent_quantized:.2f} % ({now.difference:+.2f} points), {now.decision}",
        )
    else:
        for mismatch in _other_data(was, now):
            yield "other", f"{mismatch.stored} to {mismatch.fresh}"
        yield from _outcome_changes(was, now)
        yield from _number_changes(was, now)


def _outcome_changes(was: TaskRecord, now: TaskRecord) -> Iterator[tuple[str, str]]:
    same_samples = was.sample_ids == now.sample_ids
    if was.reference.bits != now.reference.bits:
        detail = f" ({outcome_change(was.reference, now.reference)})" if same_samples else ""
        yield (
            "other",
            f"reference {was.percent_reference:.2f} % to {now.percent_reference:.2f} %{detail}",
        )
    if was.quantized.bits != now.quantized.bits:
        detail = f" ({outcome_change(was.quantized, now.quantized)})" if same_samples else ""
        yield (
            "other",
            f"quantized {was.percent_quantized:.2f} % to {now.percent_quantized:.2f} %{detail}",
        )
    if was.difference != now.difference:
        kind = "loosened" if now.difference < was.difference else "tightened"
        yield kind, f"difference {was.difference:+.2f} to {now.difference:+.2f} points"
    if was.decision != now.decision:
        order = ("FAIL", "GAIN", "INCONCLUSIVE", "PASS")
        kind = "loosened" if order.index(now.decision) < order.index(was.decision) else "tightened"
        yield kind, f"verdict {was.decision} to {now.decision}"


def _number_changes(was: TaskRecord, now: TaskRecord) -> Iterator[tuple[str, str]]:
    if was.budget != now.budget:
        yield "other", f"budget {was.budget:g} to {now.budget:g} points"
    if was.interval != now.interval:
        before, after = (f"{low:+.2f}..{high:+.2f}" for low, high in (was.interval, now.interval))
        yield "other", f"interval {before} to {after}"
    grouped: dict[str, list[str]] = defaultdict(list)
    for name in sorted({*was.beyond, *now.beyond}):
        a, b = was.beyond.get(name), now.beyond.get(name)
        if a == b:
            continue
        better_high = any(word in name for word in HIGHER_IS_BETTER)
        kind = (
            "loosened"
            if b is None
            else "tightened"
            if a is None or (b > a) == better_high
            else "loosened"
        )
        grouped[kind].append(
            f"{name} {'none' if a is None else f'{a:g}'} to {'none' if b is None else f'{b:g}'}"
        )
    yield from ((kind, ", ".join(parts)) for kind, parts in grouped.items())
