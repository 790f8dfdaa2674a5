"""Entries of a recipe that do nothing on a model: patterns without a match, and entries that later
ones override.

The lint and the insertion suite ask the same functions: the lint of the names of quantizers that
each family of model is known to have, the suite of the quantizer map of the model at hand.
"""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from harness.files.located import spot
from harness.problems import Problem
from harness.recipes.applied import Applied, Placed, applied_to, matched, place_of
from harness.recipes.loading import Entry, Recipe

#: Names of the rules, as the gate reports them.
NO_MATCH, OVERRIDDEN, TOO_EARLY = (
    "pattern matches nothing",
    "pattern overridden",
    "exception before what it excepts",
)


@dataclass(frozen=True)
class Finding:
    """An entry that does nothing, or undoes what others do.

    Attributes:
        rule: the name of the rule.
        entry: its number in the recipe, from 0.
        victims: the numbers of the entries that have no effect because of it, or its own.
        what: what is wrong, for a person.
        fix: what to do.
    """

    rule: str
    entry: int
    victims: tuple[int, ...]
    what: str
    fix: str


def unmatched_patterns(
    quantizers: Sequence[Placed],
    recipe: Recipe,
    hidden: Mapping[str, str] | None = None,
    elsewhere: Sequence[Placed] = (),
    absent: Collection[str] = (),
    others: Callable[[Recipe, Entry], bool] | None = None,
) -> list[Problem]:
    """Patterns of the recipe that name no quantizer of the model (S8).

    A pattern that only switches off and that the recipe imports belongs to a deny-list shared
    between families; it may match nothing.  One that the recipe's author wrote may not, unless it
    speaks of quantizers *elsewhere*: those of the tower that the model, a single one, lacks.
    *hidden* are the model's blocks that ModelOpt cannot quantize (``families.hidden_in``): what
    asks for quantizers around attention may mean them.  An entry for modules of a class in *absent*
    (``families.Family.absent``) speaks of other families, and so does one of which *others* says
    so.
    """
    problems = []
    for part in recipe.parts:
        touched = [applied_to(names, part.entries).touched for names in (quantizers, elsewhere)]
        for index in unmatched(part, touched):
            entry = part.entries[index]
            if entry.parent_class in absent or (others is not None and others(part, entry)):
                continue
            what = (
                f"entry {index + 1} of recipe {part.name}, {entry.shown!r} ({entry.origin}), "
                f"matches none of the "
                f"{len(quantizers)} quantizers of this model{of_class(entry)}."
            )
            fix = unmatched_hint(entry, quantizers, hidden or {})
            problems.append(Problem(NO_MATCH, what, (), fix, spot(entry.origin)))
    return problems


def unmatched(recipe: Recipe, touched: Sequence[Sequence[Collection[str]]]) -> Iterator[int]:
    """Yield the numbers of entries that touch nothing anywhere and should.

    Args:
        recipe: with its entries; not a search.
        touched: for each model what each entry touches there.
    """
    for index, entry in enumerate(recipe.entries):
        shared = not entry.enable and not is_own(recipe, entry)
        if not shared and not any(there[index] for there in touched):
            yield index


def is_own(recipe: Recipe, entry: Entry) -> bool:
    """Whether the author of *recipe* wrote *entry*, rather than importing it."""
    return recipe.path is None or entry.origin.startswith(str(recipe.path))


def denies_all(entry: Entry) -> bool:
    """Whether *entry* turns every quantizer of every model off."""
    return not entry.enable and entry.parent_class is None and means_all(entry.pattern)


def means_all(pattern: str) -> bool:
    """Whether *pattern* matches every quantizer of every model: ``*``, ``*_quantizer``."""
    return pattern.strip("*") in ("", "_quantizer", "quantizer")


def of_class(entry: Entry) -> str:
    """Return what a message adds where *entry* is for the modules of one class."""
    return f" (only those of {entry.parent_class} modules asked)" if entry.parent_class else ""


def unmatched_hint(entry: Entry, quantizers: Sequence[Placed], hidden: Mapping[str, str]) -> str:
    """Return the fix for *entry*, which touches none of *quantizers*: what was probably meant."""
    pattern = entry.pattern
    if hidden and "bmm" in pattern and not any(q.module_kind == "attention" for q in quantizers):
        path, reason = next(iter(hidden.items()))
        return f"{path} and {len(hidden) - 1} more: {reason.rstrip('.')}."
    if "bmm2_output" in pattern:
        return (
            "ModelOpt's own attention class has no output quantizer. Register diffusers': "
            "--attention diffusers"
        )
    if "softmax" in pattern:
        return (
            "ModelOpt's own attention class has softmax_quantizer up to 0.45; from 0.46 on write "
            "p_bmm_quantizer. diffusers' has softmax_quantizer: --attention diffusers"
        )
    if "p_bmm" in pattern:
        return (
            "Remove the entry: diffusers' attention class has no p_bmm quantizer, and ModelOpt's "
            "never runs under sdpa."
        )
    candidates = (
        replace(entry, pattern=corrected) for corrected in _corrections(pattern, quantizers)
    )
    meant = next(
        (corrected.pattern for corrected in candidates if matched(quantizers, corrected)), None
    )
    if "{" in pattern:
        instead = f"Did you mean {meant!r}?" if meant else "Write one entry for each."
        return (
            f"Patterns are globs, which have no braces: write [0-3] for {{0..3}}, [qk] for "
            f"{{q,k}}. {instead}"
        )
    endings = ", ".join(sorted({f"{q.kind}_quantizer" for q in quantizers}))
    if meant:
        return (
            f"Did you mean {meant!r}? Patterns are globs over whole names, which end in: {endings}."
        )
    return f"Correct the pattern or remove it. Quantizer names end in: {endings}."


def _corrections(pattern: str, quantizers: Sequence[Placed]) -> Iterator[str]:
    """Patterns that may have been meant instead of one that matches nothing, the likeliest
    first.
    """
    without_braces = re.sub(r"\{([^{}]*)\}", _as_characters, pattern)
    if without_braces != pattern:
        yield without_braces
    if "{" in without_braces:
        return
    # A part, where there is no sequence
    yield re.sub(r"(_quantizer)\.\d+(\*?)$", r"\1\2", without_braces)
    yield from _with_missing_folders(without_braces, quantizers)
    yield from _with_words_corrected(without_braces, quantizers)
    if re.search(r"\w", pattern) and not any(c in without_braces for c in "*?["):
        yield from (f"*{without_braces}", f"*{without_braces}*")
    words = [w for w in re.split(r"[*.?\[\]]+", pattern) if w]
    names = sorted({f"{q.kind}_quantizer" for q in quantizers})
    for word in reversed(words):
        yield from (f"*{name}" for name in difflib.get_close_matches(word, names, len(names), 0.7))


def _as_characters(braces: re.Match[str]) -> str:
    """``{0..3}`` and ``{q,k}``, as the gate's own messages fold names, in a glob's characters; or
    as they are.
    """
    characters = []
    for part in braces[1].split(","):
        first, dots, last = part.strip().partition("..")
        if len(first) != 1 or (dots and len(last) != 1):
            return braces[0]
        characters.append(f"{first}-{last}" if dots else first)
    return f"[{''.join(characters)}]"


def _with_missing_folders(pattern: str, quantizers: Sequence[Placed]) -> Iterator[str]:
    """*pattern* with the parts of a path put in that its author left out:
    ``vision_model.[encoder.]layers.0``.
    """
    start = re.match(r"[\w.]*", pattern)
    parts_given = start[0].strip(".").split(".") if start else []
    rest = pattern[len(".".join(parts_given)) :]
    if len(parts_given) < 2:
        return
    for module in dict.fromkeys(q.module for q in quantizers):
        parts = module.split(".")
        left = iter(enumerate(parts))
        ends = [next((at for at, part in left if part == word), None) for word in parts_given]
        if ends[-1] is not None:
            yield ".".join(parts[: ends[-1] + 1]) + rest
            return


def _with_words_corrected(pattern: str, quantizers: Sequence[Placed]) -> Iterator[str]:
    """*pattern* with one word of it replaced by one like it that names have there."""
    known = {part for q in quantizers for part in q.name.split(".") if not part.isdigit()}
    whole = {part.lower(): part for part in sorted(known)}
    # What stands behind a class of characters: "[qkv]_bmm_quantizer"
    ends = {part[part.find("_") :].lower(): part[part.find("_") :] for part in known if "_" in part}
    for word in re.findall(r"[A-Za-z_]\w*", pattern):
        if word in known or word in ends.values():
            continue
        lower = ends if f"]{word}" in pattern else whole
        for near in difflib.get_close_matches(word.lower(), lower, 3, 0.7):
            yield pattern.replace(word, lower[near])


def overridden_patterns(
    quantizers: Sequence[Placed], recipe: Recipe, elsewhere: Sequence[Placed] = ()
) -> list[Problem]:
    """Entries that have no effect, because later ones set again all that they set (S2, S15).

    An entry that enables quantizers, of which a later deny-all (or a deny-list that the recipe only
    imports) leaves none on: taking back a part of what was enabled is how recipes are written, a
    deny-all behind everything else is the trap.  And an exception that is written before what it
    excepts: an entry of the author's own that turns off, or gives other attributes to, what later
    entries set again.

    Args:
        quantizers: the map of the model.
        recipe: what was asked for.
        elsewhere: of the tower that the model, a single one, lacks; an entry may have its effect
            there.
    """
    problems = []
    for part in recipe.parts:
        done = applied_to((*quantizers, *elsewhere), part.entries)
        count = len({place_of(q.name) for q in (*quantizers, *elsewhere)})
        problems += [
            Problem(
                finding.rule,
                finding.what,
                (),
                finding.fix,
                spot(part.entries[finding.entry].position),
            )
            for finding in overridden(part, done, count)
        ]
    return problems


def overridden(recipe: Recipe, done: Applied, count: int, counted: bool = True) -> list[Finding]:
    """As :func:`overridden_patterns`, of a recipe that is not a search.

    Args:
        recipe: with its entries.
        done: what ModelOpt makes of them on a model.
        count: the number of places for quantizers that this model has.
        counted: whether messages say how many quantizers that is about.
    """
    return [
        *_turned_off_again(recipe, done, count, counted),
        *_exceptions_too_early(recipe, done, count, counted),
    ]


def _turned_off_again(recipe: Recipe, done: Applied, count: int, counted: bool) -> list[Finding]:
    """Entries that enable what a later deny-all turns off, one finding for each deny-all."""
    victims: dict[int, list[int]] = defaultdict(list)
    for index, entry in enumerate(recipe.entries):
        if not entry.enable or not done.touched[index]:
            continue
        left = set(done.touched[index])
        for later in range(index + 1, len(recipe.entries)):
            other = recipe.entries[later]
            if other.enable or (is_own(recipe, other) and len(done.touched[later]) < count):
                continue
            left -= done.touched[later]
            if not left:
                victims[later].append(index)
                break
    findings = []
    for later, indices in victims.items():
        other, first = recipe.entries[later], recipe.entries[indices[0]]
        total = len(set().union(*(done.touched[index] for index in indices)))
        named = ", ".join(f"{index + 1} ({recipe.entries[index].shown!r})" for index in indices)
        everything = " everything" if len(done.touched[later]) == count else ""
        number = f"{total} quantizers, of " if counted else ""
        what = (
            f"entry {later + 1} of recipe {recipe.name}, {other.shown!r} ({other.position}), "
            f"stands behind the entries that enable and turns{everything} off again: {number}"
            f"{'entry' if len(indices) == 1 else 'entries'} {named}."
        )
        front = " to the front," if everything else ""
        fix = (
            f"Entries apply in order, the last one wins: move {other.shown!r}{front} before "
            f"{first.shown!r}."
        )
        findings.append(Finding(OVERRIDDEN, later, tuple(indices), what, fix))
    return findings


def _exceptions_too_early(
    recipe: Recipe, done: Applied, count: int, counted: bool
) -> list[Finding]:
    """Entries of the author's own whose every setting is replaced by entries behind them."""
    findings = []
    for index, entry in enumerate(recipe.entries):
        if (
            not done.touched[index]
            or len(done.touched[index]) == count
            or not is_own(recipe, entry)
        ):
            continue
        behind = (
            _replaced_by(recipe, done, index) if entry.enable else _undone_by(recipe, done, index)
        )
        if behind is None:
            continue
        does = "turns off" if not entry.enable else "gives attributes to"
        number = f"{len(done.touched[index])} " if counted else ""
        what = (
            f"entry {index + 1} of recipe {recipe.name}, {entry.shown!r} ({entry.position}), "
            f"{does} {number}quantizers, and entries behind it set all of them again: it has no "
            f"effect."
        )
        fix = (
            f"Entries apply in order, the last one wins: move {entry.shown!r} behind entry "
            f"{behind + 1}, "
            f"{recipe.entries[behind].shown!r}, or remove it."
        )
        if done.touched[behind] == done.touched[index]:
            fix = (
                f"Entries apply in order, the last one wins: remove entry {index + 1}, or entry "
                f"{behind + 1}."
            )
        findings.append(Finding(TOO_EARLY, index, (index,), what, fix))
    return findings


def _undone_by(recipe: Recipe, done: Applied, index: int) -> int | None:
    """The last entry that turns on again what the entry *index* turns off, if nothing is left of
    what that one does.
    """
    ends_on = {place_of(name) for name, setting in done.settings.items() if setting.enable}
    touched = done.touched[index]
    # What is turned on by an entry within it (an output among all outputs) is a refinement, not an
    # exception undone.
    undoing = [
        n
        for n in range(index + 1, len(recipe.entries))
        if recipe.entries[n].enable
        and done.touched[n] & touched & ends_on
        and not done.touched[n] < touched
    ]
    if not undoing:
        return None
    for place in touched:
        before = [n for n in range(index) if place in done.touched[n]]
        was_off = bool(before) and not recipe.entries[before[-1]].enable
        if not was_off and not any(place in later for later in done.touched[index + 1 :]):
            return None
    return undoing[-1]


def _replaced_by(recipe: Recipe, done: Applied, index: int) -> int | None:
    """The entry that gives other attributes to all that the entry *index* gives attributes to."""
    entry = recipe.entries[index]
    if entry.cfg is None:
        return None
    for later in range(index + 1, len(recipe.entries)):
        other = recipe.entries[later]
        if (
            other.enable
            and other.cfg not in (None, entry.cfg)
            and done.touched[index] <= done.touched[later]
        ):
            return later
    return None
