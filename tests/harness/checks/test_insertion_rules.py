"""The rules of insertion on maps made by hand: what each counts, what it names, what it says to
do.
"""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from made_maps import (
    FUSED,
    HIDDEN,
    NAN,
    QKV,
    all_off,
    amax,
    at,
    attention,
    numbers,
    off,
    on,
    only,
    recipe,
    searching,
    without,
)

from harness.checks import insertion
from harness.quantization.maps import QuantizerMap
from harness.recipes.loading import Entry

# -- coverage


def tower(name: str) -> QuantizerMap:
    """A tower with all three kinds that must be covered, and one that need not be."""
    return (
        at(f"{name}.layers.0.fc2.weight_quantizer"),
        at(f"{name}.layers.0.fc1.weight_quantizer"),
        at(f"{name}.layers.0.fc1.input_quantizer"),
        at(f"{name}.patches.weight_quantizer", module_kind="patch_embedding"),
        at(f"{name}.norm.input_quantizer", module_kind="layernorm"),
        *attention(f"{name}.layers.0.attn", ("q_bmm",)),
    )


def test_untouched_tower_is_told_with_its_modules() -> None:
    """A tower with nothing enabled is reported whole: how many quantizers of its covered kinds, every
    module, in order.
    """
    quantizers = tower("vision") + all_off(tower("text"))
    problem = only(insertion.uncovered(quantizers), "tower unquantized")

    assert "the whole text tower is unquantized: 0 of 5 quantizers" in problem.what
    assert problem.names == (
        "text.layers.0.attn",
        "text.layers.0.fc1",
        "text.layers.0.fc2",
        "text.patches",
    )
    assert "text linear, patch_embedding, attention stays" in problem.fix


def test_untouched_kind_of_layer_is_told_with_its_modules() -> None:
    """A kind of layer with nothing enabled in a tower is reported for that tower, with the modules of
    that kind only.
    """
    quantizers = all_off(tower("vision"), "patch_embedding", "attention") + tower("text")
    problem = only(insertion.uncovered(quantizers), "kind of layer unquantized")

    assert "vision tower: no enabled quantizer at any patch embedding or attention." in problem.what
    assert problem.names == ("vision.layers.0.attn", "vision.patches")
    assert "vision patch_embedding, attention stays" in problem.fix


def test_one_enabled_quantizer_covers_a_kind() -> None:
    """A kind of layer is covered by one enabled quantizer in the tower."""
    quantizers = without(
        tower("vision"),
        "vision.layers.0.fc1.weight_quantizer",
        "vision.layers.0.fc1.input_quantizer",
    )

    assert insertion.uncovered(quantizers) == []


def test_every_tower_is_asked() -> None:
    """Two untouched towers are two problems, in the order of the map."""
    quantizers = all_off(tower("vision")) + all_off(tower("text"), "linear")

    assert [(p.rule, p.what.split()[0]) for p in insertion.uncovered(quantizers)] == [
        ("tower unquantized", "the"),
        ("kind of layer unquantized", "text"),
    ]


def test_declared_omissions_are_not_told() -> None:
    """What the budgets file leaves out in one tower is reported neither there nor taken for said of the
    other.
    """
    both = all_off(tower("vision"), "attention") + all_off(tower("text"), "attention")

    problem = only(
        insertion.uncovered(both, [("vision", "attention")]), "kind of layer unquantized"
    )
    assert problem.names == ("text.layers.0.attn",)
    assert insertion.uncovered(both, [("vision", "attention"), ("text", "attention")]) == []


def test_tower_off_but_for_what_is_declared_is_told_whole() -> None:
    """A tower with nothing on is reported whole even where one of its kinds is declared, and then
    without that kind.
    """
    problem = only(
        insertion.uncovered(all_off(tower("vision")), [("vision", "patch_embedding")]),
        "tower unquantized",
    )

    assert "0 of 5" in problem.what
    assert "vision.patches" not in problem.names
    assert "vision linear, attention stays" in problem.fix


def test_what_is_in_no_tower_need_not_be_covered() -> None:
    """Modules outside the towers, and kinds that are not among the covered ones, may stay
    unquantized.
    """
    quantizers = (
        at("none.logit.input_quantizer", enabled=False),
        at("vision.norm.input_quantizer", module_kind="layernorm", enabled=False),
    )

    assert insertion.uncovered(quantizers) == []


def test_tower_without_a_kind_need_not_cover_it() -> None:
    """A tower that has no layer of a kind, such as a text tower a patch embedding, lacks
    nothing.
    """
    assert insertion.uncovered((at("text.fc.weight_quantizer"),)) == []


# -- attention


BLOCKS = ("vision.layers.0.attn", "vision.layers.1.attn", "text.layers.0.attn")


WHOLE = tuple(q for block in BLOCKS for q in attention(block))


ASKS = recipe(on("*[qkv]_bmm_quantizer"), on("*bmm2_output_quantizer"))


def test_attention_quantized_whole_is_no_problem() -> None:
    """Blocks with all that the recipe asks for, on and run, break no rule, nor do quantizers
    outside attention.
    """
    others = at("vision.layers.0.fc.q_bmm_quantizer", enabled=False)

    assert insertion.broken_attention((*WHOLE, others), ASKS) == []


def test_attention_quantizer_that_is_not_there_is_told() -> None:
    """A quantizer that the recipe asks for and a block lacks is named, with the number of such
    blocks of all.
    """
    quantizers = attention(BLOCKS[0], QKV) + attention(BLOCKS[1]) + attention(BLOCKS[2], QKV)
    problem = only(insertion.broken_attention(quantizers, ASKS), "attention quantizer missing")

    assert numbers(problem.what) == [2, 3]
    assert problem.names == (
        f"{BLOCKS[0]}.bmm2_output_quantizer",
        f"{BLOCKS[2]}.bmm2_output_quantizer",
    )
    assert re.search(r"--attention diffusers for bmm2_output.*or take the pattern out", problem.fix)


def test_attention_quantizers_that_are_off_are_told_by_block() -> None:
    """Quantizers that are asked for and off count by block, not by name; a part that is off is reported
    as well.
    """
    names = (f"{BLOCKS[1]}.q_bmm_quantizer", f"{BLOCKS[1]}.k_bmm_quantizer")

    missing, part = insertion.broken_attention(without(WHOLE, *names), ASKS)

    assert (missing.rule, part.rule) == (
        "attention quantizer missing",
        "attention quantized in part",
    )
    assert (numbers(missing.what), missing.names) == ([1, 3], names)
    assert (numbers(part.what), part.names) == ([1, 3], names)


def test_attention_quantizer_that_never_runs_is_told() -> None:
    """Enabled quantizers around attention without a call are counted and named; those that are off
    are missing.
    """
    idle = attention(BLOCKS[0], calls=0) + attention(BLOCKS[1])
    problem = only(insertion.broken_attention(idle, ASKS), "attention quantizer never runs")

    assert numbers(problem.what) == [4]
    assert problem.names == tuple(f"{BLOCKS[0]}.{kind}_quantizer" for kind in FUSED)
    assert 'attn_implementation="sdpa"' in problem.fix


def test_attention_quantizer_that_runs_twice_runs() -> None:
    """One call is enough, and two are not for this rule to say."""
    assert insertion.broken_attention(attention(BLOCKS[0], calls=2), ASKS) == []


def test_attention_that_is_neither_there_nor_run_is_two_problems() -> None:
    """What is missing in one block and what is idle in another are distinguished."""
    quantizers = attention(BLOCKS[0], QKV) + attention(BLOCKS[1], calls=0)

    assert [(p.rule, numbers(p.what)) for p in insertion.broken_attention(quantizers, ASKS)] == [
        ("attention quantizer missing", [1, 2]),
        ("attention quantizer never runs", [4]),
    ]


def test_declared_attention_is_not_asked() -> None:
    """Attention that the budgets file leaves out in one tower is not asked for there, and is in the
    other.
    """
    quantizers = attention(BLOCKS[0], QKV, calls=0) + attention(BLOCKS[2], QKV)
    vision = [("vision", "attention")]

    problem = only(
        insertion.broken_attention(quantizers, ASKS, vision), "attention quantizer missing"
    )

    assert problem.names == (f"{BLOCKS[2]}.bmm2_output_quantizer",)
    assert insertion.broken_attention(quantizers, ASKS, [*vision, ("text", "attention")]) == []
    assert len(insertion.broken_attention(quantizers, ASKS, [("vision", "linear")])) == 2


@pytest.mark.parametrize(
    ("entries", "asked"),
    [
        ((on("*p_bmm_quantizer"), on("*softmax_quantizer")), ["p_bmm", "softmax"]),
        ((on("*attn*"),), ["q_bmm", "k_bmm", "v_bmm", "p_bmm", "softmax", "bmm2_output"]),
        ((on("*"),), []),
        ((on("*_quantizer"),), []),
        ((on("*q_bmm*"), off("*")), []),
        ((off("*"), on("*q_bmm*")), ["q_bmm"]),
        ((on("*q_bmm*"), off("text*")), ["q_bmm"]),
        ((on("*q_bmm*", "nn.Linear"),), []),
        ((on("*q_bmm*"), off("*", "nn.Linear")), ["q_bmm"]),
        ((on("*q_bmm*"), on("*")), []),
        ((on("*Q_bmm*"),), []),
        ((on("text*q_bmm*"),), []),
    ],
)
def test_attention_is_asked_for_by_the_last_entry_that_matches(
    entries: tuple[Entry, ...], asked: list[str]
) -> None:
    """A kind is asked for if the last entry without a class that matches its place enables it and
    names attention.
    """
    assert insertion._asked_of_attention(recipe(*entries), BLOCKS[0]) == asked


def test_attention_is_asked_for_block_by_block() -> None:
    """What a recipe, or a format of a search, asks for in some blocks is missing in these only."""
    quantizers = all_off(attention(BLOCKS[0])) + all_off(attention(BLOCKS[2]))
    entries = (on("text*q_bmm*"),)

    for asking in (recipe(*entries), searching(entries)):
        problem = only(
            insertion.broken_attention(quantizers, asking), "attention quantizer missing"
        )
        assert problem.names == (f"{BLOCKS[2]}.q_bmm_quantizer",)


def test_search_asks_for_the_attention_of_every_format() -> None:
    """A search asks for what any of its formats does, each judged alone, and is reported what a search
    can hold.
    """
    search = searching((on("*v_bmm*"), off("*")), (on("*k_bmm*"),), (on("*q_bmm*"),))
    quantizers = without(attention(BLOCKS[0]), *(q.name for q in attention(BLOCKS[0])))

    problem = only(insertion.broken_attention(quantizers, search), "attention quantizer missing")

    assert problem.names == (f"{BLOCKS[0]}.q_bmm_quantizer", f"{BLOCKS[0]}.k_bmm_quantizer")
    assert "mtq.get_auto_quantize_config" in problem.fix


NOTHING = recipe(on("*weight_quantizer"))


def test_attention_in_part_names_what_is_off() -> None:
    """Of blocks with some of the four on, those off are named and the blocks counted; a block all
    off is not one.
    """
    names = (
        f"{BLOCKS[0]}.q_bmm_quantizer",
        f"{BLOCKS[0]}.v_bmm_quantizer",
        f"{BLOCKS[2]}.bmm2_output_quantizer",
    )
    quantizers = without(WHOLE, *names, *(f"{BLOCKS[1]}.{kind}_quantizer" for kind in FUSED))
    problem = only(insertion.broken_attention(quantizers, NOTHING), "attention quantized in part")

    assert numbers(problem.what) == [2, 2]
    assert problem.names == names
    assert re.search("enable these, or disable the others, or declare.*budgets file", problem.fix)


def test_only_the_four_around_the_product_belong_together() -> None:
    """The quantizers of probabilities may be off next to the four, and on next to none of them."""
    others = ("p_bmm", "softmax")
    fused, rest = attention(BLOCKS[0]), attention(BLOCKS[0], others)

    assert insertion.broken_attention(fused + all_off(rest), NOTHING) == []
    assert insertion.broken_attention(all_off(fused) + rest, NOTHING) == []


@pytest.mark.parametrize("kinds", [QKV, FUSED[:1], ("p_bmm",)])
def test_block_without_all_four_may_be_whole(kinds: tuple[str, ...]) -> None:
    """A block whose class has some of the four, or none, is whole with these on."""
    assert insertion.broken_attention(attention(BLOCKS[0], kinds), NOTHING) == []


def test_declared_attention_may_be_in_part() -> None:
    """Attention that the budgets file leaves out in a tower may be on in part there, and not in the
    other.
    """
    names = (f"{BLOCKS[0]}.q_bmm_quantizer", f"{BLOCKS[2]}.q_bmm_quantizer")
    quantizers = without(WHOLE, *names)

    problem = only(
        insertion.broken_attention(quantizers, NOTHING, [("vision", "attention")]),
        "attention quantized in part",
    )

    assert (numbers(problem.what), problem.names) == ([1, 1], names[1:])


@pytest.mark.parametrize(
    ("entries", "chosen"),
    [
        ((off("*layers.0.*q_bmm_quantizer"),), True),
        ((off("*q_bmm*"),), True),
        ((on("*q_bmm*"),), False),
        ((off("*layers.0.*q_bmm_quantizer"), on("*q_bmm*")), False),
        ((on("*q_bmm*"), off("*layers.0.*q_bmm_quantizer")), True),
        ((off("*layers.1.*q_bmm_quantizer"),), False),
        ((off("*"),), False),
        ((off("*_quantizer"),), False),
        ((off("*quantizer"),), False),
        ((off("*_quantizer*"),), False),
        ((off("*layers.0.*Q_bmm_quantizer"),), False),
        ((), False),
    ],
)
def test_attention_off_in_a_layer_may_be_chosen(entries: tuple[Entry, ...], chosen: bool) -> None:
    """Off in one layer is a choice if the last entry that matches turns it off and does not mean
    everything.
    """
    name = f"{BLOCKS[0]}.q_bmm_quantizer"
    problems = insertion.broken_attention(without(WHOLE, name), replace(NOTHING, entries=entries))

    assert ("attention quantized in part" in {p.rule for p in problems}) is not chosen


def test_attention_off_in_a_whole_tower_is_no_choice() -> None:
    """A line that turns a kind off in all layers of a tower is reported, the other tower's layers being
    no help.
    """
    names = (f"{BLOCKS[0]}.q_bmm_quantizer", f"{BLOCKS[1]}.q_bmm_quantizer")
    problems = insertion.broken_attention(
        without(WHOLE, *names), recipe(off("vision*q_bmm_quantizer"))
    )

    assert only(problems, "attention quantized in part").names == names


def test_choice_in_a_format_of_a_search_counts() -> None:
    """What a format of a search turns off in a layer is chosen as well."""
    quantizers = without(WHOLE, f"{BLOCKS[0]}.q_bmm_quantizer")

    assert (
        insertion.broken_attention(quantizers, searching((off("*layers.0.*q_bmm_quantizer"),)))
        == []
    )


def test_peers_are_of_the_same_kind() -> None:
    """A kind that only one block has is chosen by no peer of another kind."""
    quantizers = attention(BLOCKS[0], enabled=True) + attention(BLOCKS[1], QKV)
    name = f"{BLOCKS[0]}.bmm2_output_quantizer"
    problems = insertion.broken_attention(
        without(quantizers, name), recipe(off("*bmm2_output_quantizer"))
    )

    assert only(problems, "attention quantized in part").names == (name,)


# -- calls and ranges


def called(*calls: int) -> QuantizerMap:
    """Quantizers with these calls, and one that is off and was never called, and one off that was
    called nine times.
    """
    live = tuple(
        at(f"vision.layers.{n}.fc.input_quantizer", calls=count) for n, count in enumerate(calls)
    )
    rest = (
        at("text.a.input_quantizer", calls=0, enabled=False),
        at("text.b.input_quantizer", calls=9, enabled=False),
    )
    return live + rest


def test_enabled_quantizer_without_a_call_never_runs() -> None:
    """Quantizers that are on and have no call are counted among those that are on, and named."""
    problem = only(insertion.never_run(called(1, 0, 2, 0, 1)), "never runs")

    assert numbers(problem.what) == [2, 5]
    assert problem.names == (
        "vision.layers.1.fc.input_quantizer",
        "vision.layers.3.fc.input_quantizer",
    )
    assert "turn them off in the recipe" in problem.fix
    assert insertion.never_run(called(1, 2)) == []


@pytest.mark.parametrize(
    ("kinds", "fixes"),
    [
        (("softmax",), ["quantizer_name: '*softmax_quantizer', enable: false"]),
        (("p_bmm",), ["quantizer_name: '*p_bmm_quantizer', enable: false"]),
        (QKV, ['attn_implementation="sdpa"']),
        (
            ("q_bmm", "softmax"),
            ["'*softmax_quantizer', enable: false", 'attn_implementation="sdpa"'],
        ),
    ],
)
def test_idle_attention_is_told_with_the_fix_that_works(
    kinds: tuple[str, ...], fixes: list[str]
) -> None:
    """What scaled_dot_product_attention passes by is turned off; loading with sdpa helps only what
    it does reach.
    """
    idle = attention(BLOCKS[0], kinds, calls=0)
    asks = recipe(*(on(f"*{kind}_quantizer") for kind in kinds))
    message = [*insertion.never_run(idle), *insertion.broken_attention(idle, asks)]

    assert len(message) >= 2
    for problem in message[:2]:
        assert all(fix in problem.fix for fix in fixes), problem.fix
        assert ("sdpa" in problem.fix) == any("sdpa" in fix for fix in fixes)


def test_enabled_quantizer_with_two_calls_runs_twice() -> None:
    """Quantizers that are on and have more than one call are counted and named, with the most calls
    of any.
    """
    problem = only(insertion.run_twice(called(1, 0, 2, 3, 1)), "runs twice")

    assert numbers(problem.what) == [2, 3]
    assert problem.names == (
        "vision.layers.2.fc.input_quantizer",
        "vision.layers.3.fc.input_quantizer",
    )
    assert "shared" in problem.fix
    assert insertion.run_twice(called(0, 1)) == []


def test_static_quantizer_needs_a_usable_range() -> None:
    """Without a range and with one that cannot be used are distinguished; what is off or dynamic needs
    none.
    """
    quantizers = (
        at("vision.a.input_quantizer", amax=None),
        at("text.a.input_quantizer", amax=None),
        at("vision.b.input_quantizer", amax=None),
        at("vision.c.input_quantizer", amax=amax(0.0)),
        at("vision.d.input_quantizer"),
        at("vision.e.input_quantizer", amax=None, dynamic=True),
        at("vision.f.input_quantizer", amax=amax(0.0), dynamic=True),
        at("other.g.input_quantizer", amax=None, enabled=False),
        at("other.h.input_quantizer", amax=amax(NAN), enabled=False),
    )
    without_any, unusable = insertion.uncalibrated(quantizers)

    assert (without_any.rule, unusable.rule) == ("no amax", "unusable amax")
    assert numbers(without_any.what) == [3, 5]
    assert "(text, vision)" in without_any.what
    assert without_any.names == (
        "vision.a.input_quantizer",
        "text.a.input_quantizer",
        "vision.b.input_quantizer",
    )
    assert "both towers" in without_any.fix
    assert numbers(unusable.what) == [1]
    assert unusable.names == ("vision.c.input_quantizer",)
    assert "calibration data" in unusable.fix
    assert insertion.uncalibrated(quantizers[4:]) == []


def test_check_asks_every_rule() -> None:
    """The check of a map is all rules in their order, each with what it needs."""
    quantizers = (
        at("vision.fc.weight_quantizer", amax=None),
        at("vision.fc.input_quantizer", calls=0),
        at("vision.fc.output_quantizer", calls=2),
        at("vision.patches.weight_quantizer", enabled=False, module_kind="patch_embedding"),
        *without(attention("vision.attn"), "vision.attn.q_bmm_quantizer"),
    )
    asked = recipe(on("*wrong"), on("*weight*"), off("*"))

    assert [p.rule for p in insertion.check(quantizers, asked)] == [
        "pattern matches nothing",
        "pattern overridden",
        "kind of layer unquantized",
        "attention quantized in part",
        "never runs",
        "runs twice",
        "no amax",
    ]
    assert "no amax" not in {p.rule for p in insertion.check(quantizers, asked, calibrated=False)}
    left = [("vision", "patch_embedding"), ("vision", "attention")]
    rules = {p.rule for p in insertion.check(quantizers, asked, left_out=left)}
    assert not rules & {"kind of layer unquantized", "attention quantized in part"}


def test_check_tells_the_patterns_what_is_beside_the_model() -> None:
    """The check passes on hidden blocks, the other tower's quantizers and classes that the family
    lacks.
    """
    quantizers = (at("vision.fc.weight_quantizer"),)
    asked = recipe(
        on("*weight_quantizer"), on("*q_bmm_quantizer"), on("*text_only"), on("*conv*", "nn.Conv2d")
    )

    problem = only(
        insertion.check(
            quantizers,
            asked,
            hidden=HIDDEN,
            elsewhere=(at("text.text_only"),),
            absent=("nn.Conv2d",),
        ),
        "pattern matches nothing",
    )

    assert "entry 2" in problem.what
    assert problem.fix == "vision.head and 1 more: it is packed."
