"""What a recipe's entries show to be wrong, by the names of quantizers that the known families of
model have.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

from harness.lint.known import QuantizerPlace, Release, installed, releases
from harness.lint.matching import FamilyPlaces, Touched
from harness.recipes import judged, patterns
from harness.recipes.applied import matched, place_of
from harness.recipes.loading import Entry, Recipe

#: Rule -> (what it looks for, its level).  An ``error`` makes the lint fail, a ``note`` does not.
RULES = {
    "yaml": ("The file is not YAML that a recipe may hold.", "error"),
    "import": ("An import does not resolve, leads out of the tree, or runs in a circle.", "error"),
    "schema": ("ModelOpt's schema, or the gate, refuses a part of the recipe.", "error"),
    "unknown-attribute": ("There is no attribute or setting of this name.", "error"),
    "no-match": ("A pattern matches no quantizer of any known family of model.", "error"),
    "overridden": (
        "Entries have no effect, because later ones set again all that they set.",
        "error",
    ),
    "no-deny-all": ("Quantizers that no entry names run as INT8, ModelOpt's default.", "error"),
    "nothing-on": ("The recipe turns every quantizer off, and none on.", "error"),
    "block-size": ("Blocks do not divide the tensors that they are for.", "error"),
    "files": ("The algorithm would read or write a file.", "error"),
    "some-blocks": ("Blocks do not divide the tensors of some architectures.", "note"),
    "one-family": ("A pattern matches quantizers of one family only.", "note"),
    "other-family": ("Patterns are for a family of model that is not CLIP's.", "note"),
    "cuda": ("ModelOpt computes the format on CUDA only.", "note"),
}


#: What only the full gate finds, where it annotates the lines of a recipe.
GATE_RULES = {
    "insertion": ("A quantizer of the model is not what the recipe is meant to say.", "error"),
    "failed": ("The gate's verdict on the recipe is FAIL.", "error"),
    "refused": ("The gate cannot use what was given.", "error"),
}


@dataclass(frozen=True)
class Found:
    """Something that a rule found: the entry whose line shows it, what is wrong, and the fix.

    ``is_order`` says that not the entry but where the recipe has it is wrong: of an imported one
    the line of the import is shown.
    """

    rule: str
    entry: Entry
    what: str
    fix: str
    is_order: bool = False

    @property
    def place(self) -> str:
        """The place that shows it."""
        return self.entry.position if self.is_order else self.entry.origin


#: Quantizers that modules of no CLIP model have: around the additions of timm's ResNets (0.48).
_KINDS_OF_OTHERS = ("residual_quantizer",)


class Families:
    """The families of model whose quantizers are known in one release of ModelOpt."""

    def __init__(self, release: Release) -> None:
        self.release = release
        self.names_unknown = lru_cache(maxsize=4096)(self._names_unknown)

    @cached_property
    def every(self) -> list[FamilyPlaces]:
        """All of them."""
        return [FamilyPlaces(name, places) for name, places in self.release.families.items()]

    @cached_property
    def modules(self) -> frozenset[str]:
        """The words of the paths of all modules."""
        return frozenset().union(*(family.modules for family in self.every))

    @cached_property
    def names(self) -> frozenset[str]:
        """One name of quantizers that differ in the number of a layer alone, of every family."""
        return frozenset(
            family.places[first].name for family in self.every for first in family.first_of_rows
        )

    @cached_property
    def places(self) -> list[QuantizerPlace]:
        """One place of those that differ in the number of a layer alone, of every family; CLIP's
        come first.
        """
        places: dict[str, QuantizerPlace] = {}
        for family in sorted(self.every, key=lambda each: each.name):
            for first in family.first_of_rows:
                places.setdefault(family.places[first].name, family.places[first])
        return list(places.values())

    @cached_property
    def classes(self) -> frozenset[str]:
        """The classes of modules that hold quantizers."""
        return frozenset(place.module_class for family in self.every for place in family.places)

    @cached_property
    def words(self) -> frozenset[str]:
        """Words of paths of modules, of families other than CLIP's too."""
        return frozenset(self.modules).union(self.release.data["words"])

    def is_of_others(self, entry: Entry) -> bool:
        """Whether *entry*, which matches nothing here, is spelt as one for another family."""
        if (
            entry.parent_class is not None
            and entry.parent_class.rpartition(".")[2] not in self.classes
        ):
            return True
        kinds = [word for word in re.split(r"[*?.]+", entry.pattern) if "quant" in word]
        known_kind = all(
            any(fnmatch.fnmatch(kind, f"*{word}*") for kind in self.kinds) for word in kinds
        )
        return known_kind and all(
            any(word in known for known in self.words) for word in judged.words_of(entry.pattern)
        )

    @cached_property
    def kinds(self) -> frozenset[str]:
        """The names that quantizers have in a module, of other families too."""
        own_kinds = (place.name.rpartition(".")[2] for place in self.places)
        return frozenset(own_kinds).union(_KINDS_OF_OTHERS)

    def _names_unknown(self, pattern: str) -> bool:
        return judged.names_unknown(pattern, self.modules)


def check(recipe: Recipe, families: Families) -> Iterator[Found]:
    """Yield what is wrong with the entries of *recipe*, and what its author may want to know."""
    for part in recipe.parts:
        if not part.entries:
            continue
        touched = {family.name: family.touched(part.entries) for family in families.every}
        yield from _unmatched(part, touched, families)
        yield from _overridden(part, touched)
        yield from _without_deny_all(part, touched)
        yield from _nothing_on(part, touched)
        yield from _one_family(part, touched)
        yield from _blocks(part, touched, families)
        yield from _cuda(part, touched)


@lru_cache(maxsize=2)
def known_families(version: str) -> Families:
    """The families that are known in a release, whose names are prepared for matching once."""
    return Families(releases()[version])


def families_here() -> Families:
    """The families that are known in the installed release, or in the one nearest to it."""
    return known_families(installed().version)


def is_for_others(recipe: Recipe, entry: Entry, families: Families) -> bool:
    """Whether *entry*, which matches nothing, is meant for a family that is not CLIP's."""
    foreign = bool(judged.foreign_patterns(recipe, families.names))
    if foreign and families.names_unknown(entry.pattern):
        return True
    shared = foreign or _is_for_others(recipe) or not patterns.is_own(recipe, entry)
    return shared and families.is_of_others(entry)


def _is_for_others(recipe: Recipe) -> bool:
    """Whether *recipe* is one of ModelOpt's for every family, or for another one than CLIP's."""
    path = recipe.path.as_posix() if recipe.path else ""
    return judged.kept_elsewhere(recipe) or "/general/" in path


def _whole(family: str) -> str:
    """The family that a single tower belongs to."""
    return family.partition("-")[0]


def _unmatched(recipe: Recipe, touched: dict[str, Touched], families: Families) -> Iterator[Found]:
    """Patterns without a match: misspelt ones, and those of other families."""
    numbers = list(patterns.unmatched(recipe, [here.applied.touched for here in touched.values()]))
    if not numbers:
        return
    others: list[Entry] = []
    for number in numbers:
        entry = recipe.entries[number]
        if is_for_others(recipe, entry, families):
            others.append(entry)
            continue
        what = (
            f"the pattern {entry.shown!r} matches no quantizer of any known family of model"
            f"{patterns.of_class(entry)}{_earlier(entry)}"
        )
        yield Found("no-match", entry, what, patterns.unmatched_hint(entry, families.places, {}))
    if others:
        named = ", ".join(repr(entry.shown) for entry in others[:3]) + (
            ", ..." if len(others) > 3 else ""
        )
        what = f"{named} name parts that no known family of CLIP models has"
        yield Found(
            "other-family",
            others[0],
            what,
            "The gate judges the rest of the recipe, if there is any.",
        )


def _earlier(entry: Entry) -> str:
    """What a message adds where the pattern matched in an earlier release."""
    last = None
    for release in releases().values():
        if matched(release.samples, entry):
            last = release.version
    return f"; up to ModelOpt {last} it did" if last else ""


def _overridden(recipe: Recipe, touched: dict[str, Touched]) -> Iterator[Found]:
    """Findings of :func:`patterns.overridden` that hold in every family in which the entries
    matter.
    """
    by_family = {
        name: {
            (overridden_finding.rule, overridden_finding.entry, number): overridden_finding
            for overridden_finding in _findings(recipe, here)
            for number in overridden_finding.victims
        }
        for name, here in touched.items()
    }
    seen: set[tuple[str, int]] = set()
    for findings in by_family.values():
        for (rule, entry, victim), finding in findings.items():
            matters = [name for name, here in touched.items() if here.applied.touched[victim]]
            if judged.kept_elsewhere(recipe) and not patterns.denies_all(recipe.entries[entry]):
                continue  # what it leaves out of another family may be all of this one
            everywhere = all(any(key[2] == victim for key in by_family[name]) for name in matters)
            if everywhere and (rule, entry) not in seen:
                seen.add((rule, entry))
                what = finding.what.rstrip(".")
                yield Found("overridden", recipe.entries[entry], what, finding.fix, is_order=True)


def _findings(recipe: Recipe, here: Touched) -> list[patterns.Finding]:
    return patterns.overridden(recipe, here.applied, len(here.groups), counted=False)


def _without_deny_all(recipe: Recipe, touched: dict[str, Touched]) -> Iterator[Found]:
    """A recipe that leaves quantizers as ModelOpt makes them: on, as INT8."""
    if any(map(patterns.denies_all, recipe.entries)):
        return
    if all(
        set(here.groups) <= set(map(place_of, here.applied.settings)) for here in touched.values()
    ):
        return
    what = (
        "no entry turns everything off: quantizers that no entry names run as INT8, ModelOpt's "
        "default"
    )
    fix = "Write - {quantizer_name: '*', enable: false} as the first entry."
    yield Found("no-deny-all", recipe.entries[0], what, fix, is_order=True)


def _nothing_on(recipe: Recipe, touched: dict[str, Touched]) -> Iterator[Found]:
    """A recipe whose entries turn off every quantizer of every family, and none on."""
    settings = [setting for here in touched.values() for setting in here.applied.settings.values()]
    is_whole = all(
        set(here.groups) <= set(map(place_of, here.applied.settings)) for here in touched.values()
    )
    if any(entry.enable for entry in recipe.entries) or not is_whole or not settings:
        return
    last = max(setting.switched for setting in settings)
    what = "no entry turns anything on: the recipe quantizes nothing"
    fix = (
        "Add entries with cfg, such as - {quantizer_name: '*weight_quantizer', cfg: {num_bits: 8}}."
    )
    yield Found("nothing-on", recipe.entries[last], what, fix, is_order=True)


def _one_family(recipe: Recipe, touched: dict[str, Touched]) -> Iterator[Found]:
    """Patterns of the author's own that match in one family and nowhere else."""
    for number, entry in enumerate(recipe.entries):
        where = {_whole(name) for name, here in touched.items() if here.applied.touched[number]}
        if len(where) == 1 and patterns.is_own(recipe, entry):
            what = f"the pattern {entry.shown!r} matches quantizers of {where.pop()} models only"
            yield Found(
                "one-family",
                entry,
                what,
                "If other families are meant too, name their modules as well.",
            )


def _cuda(recipe: Recipe, touched: dict[str, Touched]) -> Iterator[Found]:
    """Formats that ModelOpt computes on CUDA only, once each."""
    seen: set[str] = set()
    for number, entry in enumerate(recipe.entries):
        if not entry.enable or not any(here.applied.touched[number] for here in touched.values()):
            continue
        for name in judged.cuda_formats(entry):
            if name not in seen:
                seen.add(name)
                what = f"{name} needs CUDA: without a GPU the gate has no verdict on it"
                yield Found("cuda", entry, what, "Run the gate with --device cuda.")


def _blocks(recipe: Recipe, touched: dict[str, Touched], families: Families) -> Iterator[Found]:
    """Blocks of weights and inputs of linear layers that do not divide them."""
    for number, entry in enumerate(recipe.entries):
        sizes = _block_sizes(entry)
        if not entry.enable or not sizes:
            continue
        names = {place.name for place in _shaped_by(number, touched, families)}
        bad: dict[str, tuple[str, int, int]] = {}
        asked: set[str] = set()
        for architecture, shapes in families.release.widths.items():
            for name in names & shapes.keys():
                asked.add(architecture)
                if (misfitting := misfit(sizes, shapes[name])) is not None:
                    bad[architecture] = min(
                        bad.get(architecture, (name, *misfitting)), (name, *misfitting)
                    )
        if not bad:
            continue
        name, size, width = bad[min(bad)]
        example = f"blocks of {size} do not divide {name} of {min(bad)}, whose size is {width}"
        if len(bad) == len(asked):
            yield Found(
                "block-size",
                entry,
                example,
                f"Write a size that divides {width}, such as {_divisor(width)}.",
            )
        else:
            shown = ", ".join(sorted(bad))
            what = f"{example}; the same in {len(bad)} of {len(asked)} architectures: {shown}"
            yield Found("some-blocks", entry, what, "ModelOpt pads the rows to whole blocks there.")


def _block_sizes(entry: Entry) -> dict[int, int]:
    """The blocks that *entry* asks for, by dimension."""
    sizes: dict[int, int] = {}
    for cfg in entry.attributes:
        blocks = cfg.get("block_sizes")
        blocks = blocks if isinstance(blocks, Mapping) else {}
        sizes |= {
            key: size
            for key, size in blocks.items()
            if isinstance(key, int) and isinstance(size, int)
        }
    return sizes


def _shaped_by(
    number: int, touched: dict[str, Touched], families: Families
) -> list[QuantizerPlace]:
    """The linear layers' places, in every family, that end with the attributes of the entry
    *number* and enabled.
    """
    places: list[QuantizerPlace] = []
    for family in families.every:
        here = touched[family.name]
        group = 0
        for name, members in here.groups.items():
            settings = [
                setting
                for full, setting in here.applied.settings.items()
                if full == name or full.startswith(f"{name}.")
            ]
            if any(setting.enable and setting.shaped == number for setting in settings):
                group |= members
        places += [place for place in family.of(group) if place.module_kind == "linear"]
    return places


def misfit(sizes: dict[int, int], shape: tuple[int, ...]) -> tuple[int, int] | None:
    """The first block, and the size of the dimension that it does not divide; None: all fit."""
    for key, size in sizes.items():
        is_there = -len(shape) <= key < len(shape) and not (len(shape) == 1 and key != -1)
        if is_there and size > 0 and shape[key] % size:
            return size, shape[key]
    return None


def _divisor(width: int) -> int:
    """The largest usual block that divides *width*."""
    return next((size for size in (128, 64, 32, 16, 8, 4, 2) if width % size == 0), width)


def level(rule: str) -> str:
    """The level of a rule: ``error`` or ``note``."""
    return (RULES | GATE_RULES)[rule][1]
