"""What a measurement belongs to: models and data by hash, versions, and the device it ran on.

Two measurements may be compared only if they belong to the same things.  ``mismatches`` says where
they do not; the device is the one thing that may differ, and then only verdicts are compared, never
bits.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.digests import short
from harness.evaluation.environment import DeviceKey, facts, versions


@dataclass(frozen=True)
class Provenance:
    """What every number of one record was measured on.

    ``model_revision``, ``recipe_hash`` (after $import resolution) and ``calibration_hash`` are
    SHA-256 in hex; ``calibration_size`` counts pairs; ``attention`` names ModelOpt's attention
    class; ``versions`` come from ``versions()`` and ``facts``, which explain and never bind, from
    ``facts()``: those of this process unless given; ``bits`` comes from ``bits_condition``.
    """

    model: str
    model_revision: str
    recipe: str
    recipe_hash: str
    calibration_hash: str
    calibration_size: int
    attention: str
    device: DeviceKey
    bits: str | None = None
    versions: dict[str, str] = field(default_factory=versions)
    facts: dict[str, str] = field(default_factory=facts)


@dataclass(frozen=True)
class Mismatch:
    """One thing that a baseline belongs to and this run does not have (``fresh`` empty: ``stored``
    says it all).
    """

    what: str
    stored: str
    fresh: str

    def __str__(self) -> str:
        this_run = f"; this run has {self.fresh}" if self.fresh else ""
        return f"this baseline belongs to {self.what} {self.stored}{this_run}"


def mismatches(stored: Provenance, fresh: Provenance) -> tuple[Mismatch, ...]:
    """Where two provenances bind to different things; the device, ``bits`` and ``facts`` are not
    among them.
    """
    pairs = [
        ("model", stored.model, fresh.model),
        ("model revision", stored.model_revision, fresh.model_revision),
        ("recipe", stored.recipe, fresh.recipe),
        ("recipe hash", stored.recipe_hash, fresh.recipe_hash),
        ("calibration data", stored.calibration_hash, fresh.calibration_hash),
        (
            "calibration size",
            f"{stored.calibration_size:,} pairs",
            f"{fresh.calibration_size:,} pairs",
        ),
        ("attention class", stored.attention, fresh.attention),
    ]
    for package in sorted({*stored.versions, *fresh.versions}):
        was, now = (p.versions.get(package, "not recorded") for p in (stored, fresh))
        pairs.append((package, was, now))
    return tuple(Mismatch(what, short(a), short(b)) for what, a, b in pairs if a != b)


def same_bits(stored: Provenance, fresh: Provenance) -> bool:
    """Whether equal bits may be expected of two measurements that otherwise belong together."""
    return stored.device == fresh.device and stored.bits is not None and stored.bits == fresh.bits


def changed_facts(stored: Provenance, fresh: Provenance) -> tuple[str, ...]:
    """Return changes of facts that bind nothing, such as ``pillow 11.0 to 12.0``."""
    names = sorted({*stored.facts, *fresh.facts})
    was, now = ({n: p.facts.get(n, "none") for n in names} for p in (stored, fresh))
    return tuple(f"{name} {was[name]} to {now[name]}" for name in names if was[name] != now[name])
