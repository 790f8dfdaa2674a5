"""What of a pull request has to be gated: the recipes its diff reaches, less those that it does not
change for CLIP.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from harness import escaping
from harness.errors import UsageError, sentences
from harness.pull_requests import effect, reach, revisions, tables
from harness.pull_requests.effect import Effect
from harness.pull_requests.reach import Affected
from harness.pull_requests.revisions import Changeset
from harness.pull_requests.tables import ChangeTable
from harness.quantization.quantize import QuantizationError
from harness.recipes import judged, loading
from harness.recipes.loading import Recipe
from harness.recipes.tree import Tree


@dataclass(frozen=True)
class Selection:
    """What a pull request reaches, and what is to be done about it.  Recipes go by their names in
    the tree.

    Attributes:
        compared: one line that says what the working tree was compared with.
        gated: the recipes to gate; those that are refused are among them, since they must not pass.
        effects: what the change does to the quantizer maps of CLIP, one per recipe where that can
            be seen.
        not_gated: recipes without a verdict -> the reason.
        refused: recipes that cannot be loaded, or that ModelOpt refuses on CLIP -> the reason, in
            one line.
        undecided: files of which nobody can say whether they are a recipe, and parts of the tree
            that were not compared although they may have changed -> what they are, and the fix.
        left_out: other parts of the tree that were not compared -> what they are.
        unused: changed files that no recipe imports -> what happened to them.
        affected: every recipe that the change reaches, and how.
        architectures: what the change does to every architecture that its recipes are for.
        faults: recipes to which the change brings faults of shape -> the faults.
    """

    compared: str
    gated: tuple[str, ...]
    effects: tuple[Effect, ...]
    not_gated: dict[str, str]
    refused: dict[str, str]
    undecided: dict[str, str]
    left_out: dict[str, str]
    unused: dict[str, str]
    affected: tuple[Affected, ...]
    architectures: ChangeTable = field(default_factory=ChangeTable)
    faults: dict[str, str] = field(default_factory=dict)

    @property
    def unloadable(self) -> dict[str, str]:
        """The refused recipes that no test can load -> the reason.  A cause that several share is
        there once.
        """
        reasons = {
            affected_recipe.recipe: affected_recipe.broken
            for affected_recipe in self.affected
            if affected_recipe.broken and affected_recipe.recipe in self.refused
        }
        return {_first_of(names): why for why, names in _by_reason(reasons).items()}

    @property
    def paths(self) -> dict[str, Path]:
        """Where each recipe that can be loaded is."""
        return {
            affected_recipe.recipe: affected_recipe.path
            for affected_recipe in self.affected
            if affected_recipe.path is not None and not affected_recipe.broken
        }

    def as_dict(self) -> dict[str, Any]:
        """The selection as plain data: what ``environment.selection`` of the results holds."""
        return {
            "compared": self.compared,
            "gated": list(self.gated),
            "refused": self.refused,
            "not_gated": self.not_gated,
            "undecided": self.undecided,
            "left_out": self.left_out,
            "unused": self.unused,
            "effects": [asdict(change) for change in self.effects],
            "architectures": asdict(self.architectures),
            "faults": self.faults,
            "affected": [
                {
                    "recipe": affected_recipe.recipe,
                    "kind": affected_recipe.kind,
                    "reaches": [asdict(way) for way in affected_recipe.reaches],
                }
                for affected_recipe in self.affected
            ],
        }

    def __str__(self) -> str:
        lines = [_shown(self.compared), *_section("not compared:", self.left_out)]
        if not self.affected:
            lines += ["the change reaches no recipe"]
        else:
            lines += [
                "recipes that the change reaches, and the imports that lead there:",
                reach.describe(self.affected),
            ]
        if self.effects:
            lines += ["", "what it does to CLIP:"]
            lines += [_shown(line) for change in self.effects for line in str(change).splitlines()]
        table = [_shown(line) for line in self.architectures.lines()]
        lines += ["", *table] if table else []
        for title, reasons in (
            ("refused:", _joined(self.refused)),
            ("not gated:", self.not_gated),
            ("changed, and imported by no recipe:", self.unused),
            ("undecided:", self.undecided),
        ):
            lines += ["", *_section(title, reasons)] if reasons else []
        if self.affected:
            lines += ["", f"gated: {', '.join(map(_shown, self.gated)) or 'nothing'}"]
        return "\n".join(lines)


def _shown(text: str) -> str:
    """*text* whole, as it cannot harm a terminal or a log."""
    return escaping.shown(text, None)


def _section(title: str, reasons: dict[str, str]) -> list[str]:
    """A heading, and one line per recipe or file."""
    if not reasons:
        return []
    return [title, *(f"- {_shown(name)}: {_shown(why)}" for name, why in reasons.items())]


def _joined(reasons: dict[str, str]) -> dict[str, str]:
    """*reasons* with everything that has the same one in one place: one cause, one line."""
    return {", ".join(names): why for why, names in _by_reason(reasons).items()}


def _by_reason(reasons: dict[str, str]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for name, why in reasons.items():
        names.setdefault(why, []).append(name)
    return names


def _first_of(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def select(root: Path, rev: str, attention: str = "diffusers", device: str = "cpu") -> Selection:
    """Compare the recipe tree *root* (in a git checkout) with the merge base of *rev* and HEAD.

    A recipe that the change broke stays selected: it must not pass.

    Raises:
        UsageError: *root* is in no checkout, or *rev* names no commit.
    """
    tree = Tree(root)
    comparison = revisions.compare(tree.root, rev)
    with revisions.at_revision(tree.root, comparison.commit) as base:
        affected = reach.reached(tree, Tree(base), comparison)
        judged = [
            _judge(judged_recipe, tree.root, base, comparison, attention, device)
            for judged_recipe in affected
        ]
        # What is refused has its reason: a table of it would say nothing more.
        usable = [judged_recipe.recipe for judged_recipe in judged if not judged_recipe.refused]
        changes = tables.changes(usable, tree, Tree(base), comparison, attention)
    reached = {
        name for judged_recipe in affected for way in judged_recipe.reaches for name in way.chain
    }
    unused = [
        name for name in comparison.files if name in comparison.changes and name not in reached
    ]
    undecided = {
        judged_recipe.recipe.recipe: judged_recipe.undecided
        for judged_recipe in judged
        if judged_recipe.undecided
    }
    undecided |= {
        part.path: sentences(part.why, part.fix) for part in comparison.left_out if part.fix
    }
    return Selection(
        compared=comparison.note,
        gated=tuple(judged_recipe.recipe.recipe for judged_recipe in judged if judged_recipe.gated),
        effects=tuple(
            replace(judged_recipe.effect, recipe=judged_recipe.recipe.recipe)
            for judged_recipe in judged
            if judged_recipe.effect is not None
        ),
        not_gated={
            judged_recipe.recipe.recipe: judged_recipe.not_gated
            for judged_recipe in judged
            if judged_recipe.not_gated
        },
        refused={
            judged_recipe.recipe.recipe: judged_recipe.refused
            for judged_recipe in judged
            if judged_recipe.refused
        },
        undecided=undecided,
        left_out={part.path: part.why for part in comparison.left_out if not part.fix},
        unused={name: comparison.changes[name] for name in unused},
        affected=tuple(judged_recipe.recipe for judged_recipe in judged),
        architectures=tables.table(changes),
        faults=tables.brought(changes),
    )


def references(selected: Selection, root: Path) -> list[str]:
    """What ``--recipe`` takes for each recipe of *selected* that can be loaded: its path below
    *root*.

    A name could mean another file, and one from a pull request could even be read as
    ``module:ATTRIBUTE``.
    """
    top = Tree(root).root
    paths = [
        selected.paths[name].relative_to(top) for name in selected.gated if name in selected.paths
    ]
    return [str(root / path) if root.is_absolute() else f"./{root / path}" for path in paths]


@dataclass(frozen=True)
class _Judged:
    """A recipe with what is to be done about it: exactly one of the reasons, or none and it is
    gated.
    """

    recipe: Affected
    not_gated: str | None = None
    refused: str | None = None
    undecided: str | None = None
    effect: Effect | None = None

    @property
    def gated(self) -> bool:
        return self.not_gated is None and self.undecided is None


def _judge(
    affected_recipe: Affected,
    root: Path,
    base: Path,
    comparison: Changeset,
    attention: str,
    device: str,
) -> _Judged:
    """Load the recipe and compare its effect on CLIP with its effect in the tree *base*."""
    reason = reach.not_gated(affected_recipe)
    if reason is not None:
        return _Judged(affected_recipe, not_gated=reason)
    if affected_recipe.unknown is not None:
        return _Judged(affected_recipe, undecided=affected_recipe.unknown)
    if affected_recipe.broken is not None:
        return _Judged(affected_recipe, refused=affected_recipe.broken)
    assert affected_recipe.path is not None, "what was removed is not gated"
    try:
        head = loading.load_file(affected_recipe.path, root)
    except UsageError as error:  # it resolves, and ModelOpt's schema refuses it
        if not reach.states_type(Tree(root), affected_recipe.path):  # another release may load it
            return _Judged(affected_recipe, undecided=str(error))
        return _Judged(replace(affected_recipe, broken=str(error)), refused=str(error))
    reason = judged.not_gated(head, device, effect.quantizer_names())
    if reason is not None:
        return _Judged(affected_recipe, not_gated=reason)
    try:
        change = effect.of_change(
            _before(affected_recipe.path, root, base, comparison), head, attention
        )
    except QuantizationError as error:
        return _Judged(affected_recipe, refused=effect.refusal(head, error))
    if (
        change is not None
        and change.none
        and affected_recipe.path.relative_to(root).as_posix() not in comparison.renamed
    ):
        return _Judged(
            affected_recipe,
            not_gated="no effect on CLIP: quantizers and algorithm are as they were",
            effect=change,
        )
    return _Judged(affected_recipe, effect=change)


def _before(path: Path, root: Path, base: Path, comparison: Changeset) -> Recipe | None:
    """The recipe at *path* as it was, under its old name if it was renamed; None where it was not
    there or broken.
    """
    name = path.relative_to(root).as_posix()
    try:
        return loading.load_file(base / comparison.renamed.get(name, name), base)
    except UsageError:
        return None
