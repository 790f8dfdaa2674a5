"""Entries of a recipe that do nothing: each is named with what was meant, and no other is."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from made_maps import HIDDEN, OWN, at, attention, imported, off, on, only, recipe, searching

from harness.recipes import applied, patterns
from harness.recipes.loading import Entry

PAIR = (at("vision.fc.weight_quantizer"), at("text.conv.input_quantizer", module_class="Conv2d"))


@pytest.mark.parametrize(
    ("pattern", "parent", "positions"),
    [
        ("*", None, {0, 1}),
        ("*weight_quantizer", None, {0}),
        ("weight_quantizer", None, set()),
        ("*Weight_quantizer", None, set()),
        ("vision.fc", None, set()),
        ("*_quantizer", "nn.Conv2d", {1}),
        ("*_quantizer", "Conv2d", {1}),
        ("*_quantizer", "torch.nn.Linear", {0}),
        ("*weight*", "nn.Conv2d", set()),
        ("*", "nn.Conv", set()),
    ],
)
def test_pattern_is_a_glob_over_whole_names_of_a_class(
    pattern: str, parent: str | None, positions: set[int]
) -> None:
    """An entry speaks of the names that its glob matches whole, case and all, in modules of its
    class if it has one.
    """
    assert applied.matched(PAIR, on(pattern, parent)) == {PAIR[n].name for n in positions}


@pytest.mark.parametrize(
    ("pattern", "positions"),
    [
        ("*weight_quantizer", {0, 10}),
        ("*weight_quantizer.0", {0}),
        ("*weight_quantizer.1", set()),
        ("*.10", {10}),
        ("vision.fc.weight_quantizer", {0, 10}),
        ("*fc", set()),
    ],
)
def test_part_of_a_sequence_goes_by_its_holder(pattern: str, positions: set[int]) -> None:
    """Parts of a sequential quantizer match by their own name and by that of the sequence."""
    parts = tuple(at(f"vision.fc.weight_quantizer.{n}") for n in (0, 10))

    assert applied.matched(parts, on(pattern)) == {
        f"vision.fc.weight_quantizer.{n}" for n in positions
    }


@pytest.mark.parametrize(
    ("entry", "path", "is_reported"),
    [
        (on("*wrong"), OWN, True),
        (off("*wrong"), OWN, True),
        (imported("*wrong"), OWN, False),
        (imported("*wrong"), None, True),
        (on("*wrong", origin="units/on.yaml:2"), OWN, True),
        (off("*weight_quantizer"), OWN, False),
        (on("*weight_quantizer"), OWN, False),
        (on("*wrong", "nn.Conv2d"), OWN, False),
        (on("*wrong", "nn.Linear"), OWN, True),
        (on("*elsewhere_quantizer"), OWN, False),
    ],
    ids=[
        "on",
        "off",
        "imported off",
        "off in Python",
        "imported on",
        "matches",
        "matches on",
        "absent class",
        "class that is there",
        "other tower",
    ],
)
def test_unmatched_pattern_is_told_unless_it_may_be(
    entry: Entry, path: Path | None, is_reported: bool
) -> None:
    """What matches nothing is reported, but not a shared deny-list, a class of other families or the
    tower left out.
    """
    problems = patterns.unmatched_patterns(
        PAIR,
        recipe(entry, path=path),
        elsewhere=(at("text.elsewhere_quantizer"),),
        absent=("nn.Conv2d",),
    )

    assert [p.rule for p in problems] == ["pattern matches nothing"] * is_reported


def test_unmatched_pattern_is_told_with_its_place() -> None:
    """The message names entry, recipe, pattern, origin and how many quantizers were asked; entries
    before it count.
    """
    problems = patterns.unmatched_patterns(
        PAIR, recipe(imported("*lm_head*"), on("*"), on("*wrong", "nn.Linear"))
    )
    problem = only(problems, "pattern matches nothing")

    assert (
        "entry 3 of recipe r, '*wrong' (recipes/r.yaml:5), matches none of the 2 quantizers"
        in problem.what
    )
    assert problem.what.endswith("this model (only those of nn.Linear modules asked).")
    assert problem.names == ()
    assert "input_quantizer, weight_quantizer." in problem.fix
    plain = only(patterns.unmatched_patterns(PAIR, recipe(on("*wrong"))), "pattern matches nothing")
    assert plain.what.endswith("of this model.")


def test_unmatched_patterns_of_a_search_are_those_of_its_formats() -> None:
    """In a search each format's entries are asked, numbered and named by themselves."""
    problems = patterns.unmatched_patterns(
        PAIR, searching((on("*"), on("*a?b")), (on("*"),), (on("*c?d"),))
    )

    pattern = r"entry (\d) of recipe (format \d), '(.*?)'"
    assert [match.groups() for p in problems if (match := re.match(pattern, p.what))] == [
        ("2", "format 1", "*a?b"),
        ("1", "format 3", "*c?d"),
    ]


@pytest.mark.parametrize(
    ("pattern", "hidden", "block", "fix"),
    [
        ("*q_bmm_quantizer", HIDDEN, False, r"vision\.head and 1 more: it is packed\."),
        ("*bmm2_output_quantizer", HIDDEN, False, r"vision\.head and 1 more: it is packed\."),
        ("*bmm2_output_quantizer", HIDDEN, True, ".*--attention diffusers"),
        ("*bmm2_output_quantizer", {}, False, ".*--attention diffusers"),
        ("*p_bmm_quantizer", {}, False, "Remove the entry"),
        ("*p_bmm_quantizer", HIDDEN, True, "Remove the entry"),
        (
            "*wieght_quantizer",
            HIDDEN,
            False,
            r"Did you mean '\*weight_quantizer'\? .*: input_quantizer, weight_q\w+\.$",
        ),
        ("*fc.*.inputt_quantizer", {}, False, r"Did you mean '\*input_quantizer'\?"),
        ("*fc[01].inputt_quantizer", {}, False, r"Did you mean '\*input_quantizer'\?"),
        ("inputt_quantizer?zz", {}, False, r"Did you mean '\*input_quantizer'\?"),
        ("*Weight_quantizer", {}, False, r"Did you mean '\*weight_quantizer'\?"),
        ("weight_quantizer", {}, False, r"Did you mean '\*weight_quantizer'\?"),
        ("*weight_quantizer.1", {}, False, r"Did you mean '\*weight_quantizer'\?"),
        (
            "*{fc,conv}.weight_quantizer",
            {},
            False,
            r".*have no braces: .*Write one entry for each\.$",
        ),
        (
            "*f{a..c}.weight_quantizer",
            {},
            False,
            r".*have no braces: .*Did you mean '\*f\[a-c\].weight_quantizer'\?$",
        ),
        ("*quantiz", {}, False, "Correct the pattern .*: input_quantizer, weight_quantizer.$"),
        ("sion.f", HIDDEN, False, r"Did you mean '\*sion\.f\*'\?"),
        ("max.fc", HIDDEN, False, "Correct the pattern"),
        ("zz*", {}, False, "Correct the pattern"),
        ("zz?", {}, False, "Correct the pattern"),
        ("z[z", {}, False, "Correct the pattern"),
        (".", {}, False, "Correct the pattern"),
    ],
)
def test_unmatched_pattern_is_told_with_what_was_meant(
    pattern: str, hidden: dict[str, str], block: bool, fix: str
) -> None:
    """The fix is why the block is hidden, the attention class that has it, the name meant, or the
    names there are.
    """
    there = PAIR + attention("vision.attn", ("k_bmm",)) * block

    problem = only(
        patterns.unmatched_patterns(there, recipe(on(pattern)), hidden), "pattern matches nothing"
    )

    assert re.match(fix, problem.fix)


def test_unmatched_pattern_on_a_model_without_quantizers() -> None:
    """Where there is no quantizer at all, even '*' matches nothing and no name can be meant."""
    problem = only(patterns.unmatched_patterns((), recipe(on("*"))), "pattern matches nothing")

    assert "none of the 0 quantizers" in problem.what
    assert problem.fix.startswith("Correct the pattern")


@pytest.mark.parametrize(
    ("entries", "path", "pairs"),
    [
        ((on("*weight*"), off("*")), OWN, [(1, 2)]),
        ((on("*weight*"), off("*")), None, [(1, 2)]),
        ((off("*"), on("*weight*")), OWN, []),
        ((on("*weight*"), off("*weight*")), OWN, []),
        ((on("*weight*"), off("*weight*")), None, []),
        ((on("*weight*"), imported("*weight*")), OWN, [(1, 2)]),
        ((on("*"), imported("*weight*")), OWN, []),
        ((on("*"), imported("*weight*"), imported("*input*")), OWN, [(1, 3)]),
        ((on("*"), off("*weight*"), imported("*input*")), OWN, []),
        ((on("*none*"), off("*")), OWN, []),
        ((off("*"), off("*")), OWN, []),
        ((on("*weight*"), on("*"), off("*"), off("*")), OWN, [(1, 3), (2, 3)]),
        (
            (on("*none*"), off("*input*"), on("*weight*"), imported("*nothing*"), off("*")),
            OWN,
            [(3, 5)],
        ),
    ],
    ids=[
        "deny-all",
        "deny-all in Python",
        "before",
        "own line",
        "own line in Python",
        "imported",
        "a part",
        "two imported",
        "own and imported",
        "matches nothing",
        "nothing on",
        "two enabled",
        "others between",
    ],
)
def test_overridden_pattern_is_told_with_both_entries(
    entries: tuple[Entry, ...], path: Path | None, pairs: list[tuple[int, int]]
) -> None:
    """An entry that a deny-all or imported deny-lists behind it leave nothing of is reported, with the
    last one.
    """
    problems = patterns.overridden_patterns(PAIR, recipe(*entries, path=path))

    assert [p.rule for p in problems] == ["pattern overridden"] * len({last for _, last in pairs})
    for problem, last in zip(problems, sorted({last for _, last in pairs}), strict=True):
        enabling = [(first, entries[first - 1].pattern) for first, other in pairs if other == last]
        behind = entries[last - 1]
        named = ", ".join(f"{first} ({pattern!r})" for first, pattern in enabling)
        assert (
            f"entry {last} of recipe r, '{behind.pattern}' ({behind.origin}), stands behind"
            in problem.what
        )
        assert problem.what.endswith(f"{named}.")
        assert problem.names == ()
        assert re.search(
            rf"move '{re.escape(behind.pattern)}'.* before '{re.escape(enabling[0][1])}'",
            problem.fix,
        )


@pytest.mark.parametrize(
    ("entries", "early"),
    [
        ((off("*fc*"), off("*"), on("*_quantizer")), [1]),
        ((off("*"), off("*fc*"), on("*_quantizer"), on("*input*")), [2]),
        ((off("*"), off("vision*"), on("*_quantizer")), [2]),
        ((off("*"), on("*_quantizer"), off("*fc*")), []),
        ((off("*"), off("*_quantizer"), on("*weight*")), []),
        ((off("*"), off("*conv*"), on("*weight*")), []),
        ((off("*"), imported("*fc*"), on("*_quantizer")), []),
        ((off("*"), off("*none*"), on("*")), []),
        ((off("*"), Entry("*fc*", None, True, {"num_bits": 4}, "x"), on("*_quantizer")), [2]),
        ((off("*"), on("*fc*"), on("*_quantizer")), []),
    ],
    ids=[
        "before the deny-all",
        "behind it",
        "a tower",
        "in its place",
        "refined",
        "stays off",
        "imported",
        "matches nothing",
        "other attributes",
        "the same attributes",
    ],
)
def test_exception_before_what_it_excepts_is_told(
    entries: tuple[Entry, ...], early: list[int]
) -> None:
    """An author's exception that later entries undo everywhere has no effect; the fix is to move it
    behind them.
    """
    own_recipe = recipe(*entries, path=None)
    if any(entry.origin.startswith("units") for entry in entries):
        own_recipe = replace(own_recipe, path=OWN)
    problems = patterns.overridden_patterns(PAIR, own_recipe)

    assert [p.rule for p in problems] == ["exception before what it excepts"] * len(early)
    for problem, number in zip(problems, early, strict=True):
        moved = re.search(r"behind entry (\d+), ", problem.fix)
        assert moved is not None
        order = [entry for n, entry in enumerate(entries, 1) if n != number]
        order.insert(int(moved[1]) - 1, entries[number - 1])
        assert patterns.overridden_patterns(PAIR, recipe(*order, path=None)) == []


def test_entry_that_is_written_again_is_told() -> None:
    """Of two entries for the same quantizers with other attributes the first has no effect, and one
    is to go.
    """
    entries = (off("*"), Entry("*fc*", None, True, {"num_bits": 4}, "x"), on("*weight*"))
    problem = only(
        patterns.overridden_patterns(PAIR, recipe(*entries, path=None)),
        "exception before what it excepts",
    )

    assert problem.fix.endswith("remove entry 2, or entry 3.")
    assert patterns.overridden_patterns(PAIR, recipe(*entries[:2], path=None)) == []
    assert patterns.overridden_patterns(PAIR, recipe(entries[0], entries[2], path=None)) == []


def test_exception_that_holds_in_the_other_tower_is_no_problem() -> None:
    """On a single tower an entry may have its effect in the tower that is not there."""
    entries = (off("*"), Entry("*weight*", None, True, {"num_bits": 4}, "x"), on("vision*weight*"))

    assert len(patterns.overridden_patterns(PAIR, recipe(*entries, path=None))) == 1
    assert (
        patterns.overridden_patterns(
            PAIR, recipe(*entries, path=None), (at("text.fc.weight_quantizer"),)
        )
        == []
    )


def test_overridden_patterns_of_a_search_are_those_of_its_formats() -> None:
    """In a search an entry is overridden by entries of its own format only."""
    problems = patterns.overridden_patterns(
        PAIR, searching((on("*"),), (off("*"),), (on("*input*"), off("*")))
    )

    assert "entry 2 of recipe format 3, '*'" in only(problems, "pattern overridden").what
