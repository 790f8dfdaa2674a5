"""Expected differences between releases: what ModelOpt or transformers changed for CLIP, each a
record with a reason.

Written and reviewed by people, one file per release, next to the baselines and never in them::

    # baselines/versions/0.44.yaml
    package: nvidia-modelopt
    release: "0.44"
    differences:
      - kind: quantizers            # places in the quantizer map
        name: layernorm
        quantizers: ["*"]           # globs over whole names
        module_class: LayerNorm     # optional, as tower: text
        subjects: ["*"]             # optional: recipes and presets that it shows in;
                                    # fp8@modelopt: with that attention
        before: absent              # absent, off, on, present, or a state as the map's
                                    # difference shows it
        after: present
        reason: ...
        evidence: ...
      - kind: deviation             # of harness/formats/deviations.py: as recorded, as defined,
                                    # gives ..., fails: ...
      - kind: outcome               # whether a config is accepted: 30 vision, 20 text quantizers
                                    # on; refused: ...

``before`` and ``after`` mean the release before and this one.  A baseline of a newer release is
compared with an older ModelOpt by going back through the records, newest first; one of an older
release by going forward.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import yaml
from packaging.version import InvalidVersion, Version
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from harness import files
from harness.baselines.store import VERSIONS
from harness.errors import UsageError

#: Packages whose releases change what a recipe does to CLIP, in the order in which their records
#: apply.
PACKAGES = ("nvidia-modelopt", "transformers")
#: Where the records are, under the folder of baselines.
FOLDER = VERSIONS

#: What to do about the file where it is absent, misses a key or has one that does not exist.
_FIXES = {
    "absent": "Give the folder of baselines.",
    "extra_forbidden": "Correct the name; harness/baselines/differences.py shows the layout.",
    "missing": "A difference needs kind, name, before, after, reason and evidence.",
}


def _release(text: str) -> str:
    try:
        return str(Version(text).public)
    except InvalidVersion:
        raise ValueError("a release is written as 0.44") from None


Text = Annotated[str, Field(pattern=r"\S")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
Globs = Annotated[list[Text], Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Difference(_Strict):
    name: Name
    before: Text
    after: Text
    reason: Text
    evidence: Text


class Quantizers(_Difference):
    """Quantizers that are inserted or set in another way."""

    kind: Literal["quantizers"]
    quantizers: Globs
    module_class: Text | None = None
    tower: Literal["vision", "text"] | None = None
    subjects: Globs = ["*"]


class DeviationDifference(_Difference):
    """A known deviation of the arithmetic that another release has not, or has otherwise; on one
    kind of device.
    """

    kind: Literal["deviation"]
    deviations: Globs
    device: Literal["any", "cpu", "cuda"] = "any"


class OutcomeDifference(_Difference):
    """A configuration that another release takes or refuses."""

    kind: Literal["outcome"]
    subjects: Globs


Difference = Annotated[
    Quantizers | DeviationDifference | OutcomeDifference, Field(discriminator="kind")
]


class _File(_Strict):
    package: Literal["nvidia-modelopt", "transformers"]
    release: Annotated[str, AfterValidator(_release)]
    differences: list[Difference]


@dataclass(frozen=True)
class ExpectedDifference:
    """One expected difference and the release that brought it; ``place`` is where it is written."""

    package: str
    release: str
    difference: Quantizers | DeviationDifference | OutcomeDifference
    place: str

    @property
    def name(self) -> str:
        """``nvidia-modelopt 0.44 layernorm``."""
        return f"{self.package} {self.release} {self.difference.name}"


@dataclass(frozen=True)
class ReleaseStep:
    """A record on the way from one release to another: what *was* there becomes what *now* is
    expected.
    """

    record: ExpectedDifference
    was: str
    now: str

    @property
    def difference(self) -> Quantizers | DeviationDifference | OutcomeDifference:
        """What the record says."""
        return self.record.difference


@dataclass(frozen=True)
class Way:
    """The steps from a baseline's releases to those of this run; ``moved`` names packages, from
    which and to which.
    """

    steps: tuple[ReleaseStep, ...]
    moved: tuple[tuple[str, Version, Version], ...]

    def __str__(self) -> str:
        return (
            ", ".join(f"{package} {start} to {end}" for package, start, end in self.moved)
            or "the same releases"
        )

    @property
    def advice(self) -> str:
        """Return where to write a difference that nobody expected."""
        if not self.moved:
            return "The releases are the same, so no record explains it."
        package, start, end = self.moved[0]
        older, newer = sorted((start, end))
        prefix = "" if package == PACKAGES[0] else f"{package}-"
        name = f"baselines/{FOLDER}/{prefix}{newer.major}.{newer.minor}.yaml"
        after = f"the release after {older}, up to {newer}, that brought it"
        return (
            f"If it is the release's and not a defect, write it into the file of {after} (such as "
            f"{name}):"
        )

    def draft(self, kind: str, base: str, fresh: str, **known: object) -> str:
        """A record to be completed: *base* is what the baseline leads to expect, *fresh* what was
        found here.
        """
        back = bool(self.moved) and self.moved[0][2] < self.moved[0][1]
        before, after = (fresh, base) if back else (base, fresh)
        fields = {"kind": kind, "name": "say-what", **known, "before": before, "after": after}
        fields |= {"reason": "say why", "evidence": "say what shows it"}
        text: str = yaml.safe_dump([fields], sort_keys=False, width=110, allow_unicode=True)
        return text


def load(baselines: Path) -> tuple[ExpectedDifference, ...]:
    """Every record under the folder of *baselines*, in the order of packages and releases.

    Raises:
        UsageError: a file that cannot be used, two files for one release, or a name twice.
    """
    records: list[ExpectedDifference] = []
    paths: dict[tuple[str, Version], Path] = {}
    for path in sorted((baselines / FOLDER).glob("*.y*ml")):
        content, place = files.read_yaml_with_places(
            path, _File, what="file of expected differences", fixes=_FIXES
        )
        key = content.package, release(content.release)
        if key in paths:
            what = (
                f"is a second file for {content.package} {content.release}, after {paths[key].name}"
            )
            raise UsageError(path, what, "Join the two.")
        paths[key] = path
        for number, difference in enumerate(content.differences):
            record = ExpectedDifference(
                content.package, content.release, difference, place("differences", number)
            )
            if record.name in {r.name for r in records}:
                raise UsageError(
                    record.place, f"the name {difference.name!r} is taken", "Give it another."
                )
            records.append(record)
    return tuple(sorted(records, key=lambda r: (PACKAGES.index(r.package), release(r.release))))


def release(text: str) -> Version:
    """Return a release in a form that can be compared; a candidate or development build counts as
    the release after it.
    """
    return Version(Version(text).base_version)


def way(
    records: Iterable[ExpectedDifference], base: Mapping[str, str], here: Mapping[str, str]
) -> Way:
    """Return the way from the releases of *base* to those of *here* (package to version); a package
    that either lacks does not change.
    """
    every, differences, moved = list(records), [], []
    for package in PACKAGES:
        try:
            start, end = release(base[package]), release(here[package])
        except (KeyError, InvalidVersion):
            continue
        mine = [(release(r.release), r) for r in every if r.package == package]
        differences += [
            ReleaseStep(r, r.difference.before, r.difference.after)
            for v, r in mine
            if start < v <= end
        ]
        differences += [
            ReleaseStep(r, r.difference.after, r.difference.before)
            for v, r in reversed(mine)
            if end < v <= start
        ]
        moved += [(package, start, end)] if start != end else []
    return Way(tuple(differences), tuple(moved))


def matches(pattern: str, state: str) -> bool:
    """Whether *state* is covered by *pattern* (``before`` or ``after``)."""
    words = {"present": state != "absent", "on": state not in ("absent", "off")}
    return words[pattern] if pattern in words else fnmatch.fnmatchcase(state, pattern)


def subject(recipe: str, attention: str) -> str:
    """What records call a recipe: its name, and the attention class where it is not the one that
    recipes mean.
    """
    return recipe if attention == "diffusers" else f"{recipe}@{attention}"


def any_of(globs: Iterable[str], name: str) -> bool:
    """Whether *name* is one that *globs* mean."""
    return any(fnmatch.fnmatchcase(name, glob) for glob in globs)


def generic(name: str) -> str:
    """The name of a quantizer as a glob over its layers:
    ``*.layers.*.layer_norm1.input_quantizer``.
    """
    return re.sub(r"\.\d+(?=\.)", ".*", name)
