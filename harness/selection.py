"""What of a pull request has to be gated: the recipes its diff reaches, less those that it does not change for CLIP."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from harness import effect, reach, recipes, revisions
from harness.effect import Effect
from harness.errors import UsageError


@dataclass(frozen=True)
class Selection:
    """Recipes to gate by their names in the tree, the effects seen, and why others are not gated."""

    gated: tuple[str, ...]
    effects: tuple[Effect, ...]
    not_gated: dict[str, str]
    affected: tuple[reach.Affected, ...]

    def __str__(self) -> str:
        if not self.affected:
            return "the change reaches no recipe"
        lines = ["recipes that the change reaches, and the imports that lead there:", reach.describe(self.affected)]
        if self.effects:
            lines += ["", "what it does to CLIP:"]
            lines += [reach.shown(line) for change in self.effects for line in str(change).splitlines()]
        if self.not_gated:
            lines += [
                "",
                "not gated:",
                *(f"- {reach.shown(n)}: {reach.shown(why)}" for n, why in self.not_gated.items()),
            ]
        lines += ["", f"gated: {', '.join(map(reach.shown, self.gated)) or 'nothing'}"]
        return "\n".join(lines)


def select(root: Path, rev: str, attention: str = "diffusers", device: str = "cpu") -> Selection:
    """Compare the recipe tree *root* (in a git checkout) with its state at *rev*.

    A recipe that the change broke stays selected: gating it says what is wrong with it.

    Raises:
        UsageError: *root* is in no checkout, or *rev* names no commit.
    """
    found: list[reach.Affected] = []
    gated, effects, skipped = [], [], {}
    with revisions.at_revision(root, rev) as base_root:
        for one in reach.affected(root, rev):
            reason, change = reach.not_gated(one, device), None
            if reason is None and not one.broken:
                try:
                    head = recipes.load(one.recipe, root)
                except UsageError as error:  # it resolves, and ModelOpt's schema refuses it
                    one = replace(one, broken=str(error))
                else:
                    reason, change = _judged(base_root, one.recipe, head, attention, device)
            found.append(one)
            if change is not None:
                effects.append(replace(change, recipe=one.recipe))
            if reason is None:
                gated.append(one.recipe)
            else:
                skipped[one.recipe] = reason
    return Selection(tuple(gated), tuple(effects), skipped, tuple(found))


def _judged(
    base_root: Path, name: str, head: recipes.Recipe, attention: str, device: str
) -> tuple[str | None, Effect | None]:
    """Why *head* is not gated, or None; and its effect, where there is one to be seen."""
    reason = reach.not_gated(head, device, effect.quantizer_names())
    if reason is not None:
        return reason, None
    change = _effect(base_root, name, head, attention)
    unchanged = change is not None and change.none
    return "no effect on CLIP: quantizers and algorithm are as they were" if unchanged else None, change


def _effect(base_root: Path, name: str, head: recipes.Recipe, attention: str) -> Effect | None:
    """The effect on CLIP, or None where base or head cannot be applied: the gate then says why."""
    from harness.quantize import QuantizationError

    try:
        return effect.between(recipes.load(name, base_root), head, attention)
    except (UsageError, QuantizationError):
        return None
