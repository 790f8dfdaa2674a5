"""The quantizer map sees each of ModelOpt's silent failures on CLIP and says which, where and what
to do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from harness.checks import insertion
from harness.models import architectures, families, references
from harness.problems import Problem, collapse
from harness.quantization import maps, quantize
from harness.recipes import loading, patterns
from harness.recipes.loading import Entry, Recipe


@pytest.fixture(scope="module")
def blank() -> nn.Module:
    """The embedded architecture with seeded random weights."""
    return references.load("embedded", torch.device("cpu")).model  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def fp8() -> Recipe:
    """The published recipe."""
    return loading.load("fp8")


def quantized(model: nn.Module, recipe: Recipe, attention: str = "diffusers") -> nn.Module:
    """*model* quantized with one batch of both inputs."""
    loop = quantize.forward_loop_over([families.sample_inputs(model)])
    return quantize.quantize(model, recipe, loop, attention)


def rules(problems: list[Problem]) -> set[str]:
    """The names of the broken rules."""
    return {p.rule for p in problems}


def with_entries(recipe: Recipe, *extra: tuple[str, bool]) -> Recipe:
    """*recipe* with entries appended, in its own file."""
    import dataclasses

    more = tuple(
        Entry(pattern, None, enable, None, f"{recipe.path}:99") for pattern, enable in extra
    )
    return dataclasses.replace(recipe, entries=recipe.entries + more)


def test_published_recipe_holds_every_invariant(blank: nn.Module, fp8: Recipe) -> None:
    """The published recipe on a CLIP with both towers calibrated breaks no rule."""
    assert insertion.check(maps.quantizer_map(quantized(blank, fp8)), fp8) == []


def test_map_says_what_each_quantizer_is(blank: nn.Module, fp8: Recipe) -> None:
    """A quantizer's kind, tower, layer, format, granularity, calls and amax are those of the module
    it is.
    """
    quantizers = {q.name: q for q in maps.quantizer_map(quantized(blank, fp8))}
    q = quantizers["vision_model.encoder.layers.2.self_attn.q_bmm_quantizer"]

    assert (q.kind, q.tower, q.layer, q.module_kind) == ("q_bmm", "vision", 2, "attention")
    assert (q.format, q.granularity, q.enabled, q.dynamic, q.calls) == (
        "E4M3",
        "per-tensor",
        True,
        False,
        1,
    )
    assert q.amax is not None
    assert q.amax.usable
    assert (
        quantizers["vision_model.embeddings.patch_embedding.weight_quantizer"].module_kind
        == "patch_embedding"
    )
    assert quantizers["text_projection.input_quantizer"].tower == "text"


def test_s1_untouched_vision_tower_is_named(blank: nn.Module) -> None:
    """S1: a preset that skips the vision tower fails by the tower's name."""
    recipe = loading.load("general/ptq/fp8_default-kv_fp8")

    problems = insertion.uncovered(maps.quantizer_map(quantized(blank, recipe)))

    assert "the whole vision tower is unquantized" in str(problems[0])
    assert "patch_embedding" in str(problems[0])


def test_s2_deny_all_at_the_end_is_named(blank: nn.Module, fp8: Recipe) -> None:
    """S2: a deny-all behind the enabling entries is reported, with the entry that has to move."""
    trap = with_entries(fp8, ("*", False))

    problems = patterns.overridden_patterns(maps.quantizer_map(quantize.insert(blank)), trap)

    assert rules(problems) == {"pattern overridden"}
    assert "move '*' to the front, before '*weight_quantizer'" in str(problems[0])


def test_s3_eager_attention_is_named(fp8: Recipe) -> None:
    """S3: under eager attention the four quantizers are enabled, never run, and the message asks to fix the
    load.
    """
    eager = references.load("embedded", torch.device("cpu"), attn_implementation="eager").model

    problems = insertion.check(maps.quantizer_map(quantized(eager, fp8)), fp8)

    assert {"attention quantizer never runs", "never runs", "no amax"} <= rules(problems)
    assert 'attn_implementation="sdpa"' in str(problems[0])


def test_s4_missing_output_quantizer_is_named(blank: nn.Module, fp8: Recipe) -> None:
    """S4: ModelOpt's own attention class has no output quantizer, and the message names the class
    that has.
    """
    problems = insertion.check(maps.quantizer_map(quantized(blank, fp8, "modelopt")), fp8)

    assert {"pattern matches nothing", "attention quantizer missing"} <= rules(problems)
    assert all("--attention diffusers" in str(p) for p in problems)


def test_s7_image_only_calibration_is_named(blank: nn.Module, fp8: Recipe) -> None:
    """S7: calibrating one tower leaves the other's quantizers without amax, by name."""
    pixels = families.sample_inputs(blank)["pixel_values"]

    def images_only(model: Any) -> None:
        model.get_image_features(pixel_values=pixels)

    half = quantize.quantize(blank, fp8, images_only)
    problems = insertion.uncalibrated(maps.quantizer_map(half))

    assert rules(problems) == {"no amax"}
    assert "(text)" in str(problems[0])
    assert "text_projection.input_quantizer" in str(problems[0])


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("*wieght_quantizer", "weight_quantizer"),
        ("*inputt_quantizer", "input_quantizer"),
        ("*qkv_bmm_quantizer", "bmm_quantizer"),
        ("patch_embedding", "'*patch_embedding*'"),
    ],
)
def test_s8_typo_is_named_with_what_was_meant(
    blank: nn.Module, fp8: Recipe, pattern: str, hint: str
) -> None:
    """S8: a pattern that matches nothing fails with its file, its line and the name that was
    meant.
    """
    problems = patterns.unmatched_patterns(
        maps.quantizer_map(quantize.insert(blank)),
        with_entries(fp8, (pattern, "wieght" in pattern)),
    )

    assert rules(problems) == {"pattern matches nothing"}
    assert "fp8.yaml:99" in str(problems[0])
    assert hint in problems[0].fix


def test_imported_deny_list_may_match_nothing(blank: nn.Module, fp8: Recipe) -> None:
    """A deny-list that a recipe imports names other families too; a pattern of it that matches
    nothing is not a failure.
    """
    import dataclasses

    shared = Entry(
        "*lm_head*", None, False, None, "configs/ptq/units/default_disabled_quantizers.yaml:3"
    )
    recipe = dataclasses.replace(fp8, entries=(*fp8.entries, shared))

    assert patterns.unmatched_patterns(maps.quantizer_map(quantize.insert(blank)), recipe) == []


def test_quantizer_that_runs_twice_is_named(blank: nn.Module, fp8: Recipe) -> None:
    """A shared quantizer that runs at two places of one forward is named."""
    model = quantized(blank, fp8)
    layers: Any = model.get_submodule("vision_model.encoder.layers")
    layers[1].mlp.fc1.input_quantizer = layers[0].mlp.fc1.input_quantizer

    problems = insertion.run_twice(maps.quantizer_map(model))

    assert problems[0].names == ("vision_model.encoder.layers.0.mlp.fc1.input_quantizer",)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), -1.0])
def test_unusable_amax_is_named(blank: nn.Module, fp8: Recipe, value: float) -> None:
    """Zero, NaN, infinite and negative ranges are each a failure with the quantizer's name."""
    model = quantized(blank, fp8)
    name = "text_model.encoder.layers.0.mlp.fc2.input_quantizer"
    model.get_submodule(name)._amax.fill_(value)  # type: ignore[operator]

    problems = insertion.uncalibrated(maps.quantizer_map(model))

    assert rules(problems) == {"unusable amax"}
    assert problems[0].names == (name,)


def test_declared_omission_is_no_failure(blank: nn.Module) -> None:
    """What the budgets file declares to stay unquantized is not reported, and nothing else is
    excused.
    """
    recipe = loading.load("fp8-patch-embedding-fp16")
    quantizers = maps.quantizer_map(quantized(blank, recipe))

    assert rules(insertion.uncovered(quantizers)) == {"kind of layer unquantized"}
    assert insertion.uncovered(quantizers, [("vision", "patch_embedding")]) == []


def test_structure_on_meta_equals_the_calibrated_one(blank: nn.Module, fp8: Recipe) -> None:
    """The map of the weightless model differs from the calibrated one's in amax alone."""
    bare = maps.quantizer_map(quantize.structure(architectures.build("embedded"), fp8))

    assert maps.diff(bare, maps.quantizer_map(quantized(blank, fp8))) == []


def test_diff_reads_as_a_sentence(blank: nn.Module, fp8: Recipe) -> None:
    """Layers that change alike make one line: count, tower, place, before, after, layers."""
    model = quantized(blank, fp8)
    before = maps.quantizer_map(model)
    for name, quantizer in maps.tensor_quantizers(model).items():
        if name.startswith("vision") and "q_bmm" in name:
            quantizer.disable()

    lines = maps.diff(before, maps.quantizer_map(model))

    assert lines == [
        "4 quantizers change: vision self_attn q_bmm E4M3 per-tensor to off, layers 0..3"
    ]


def test_diff_sees_one_bit_of_amax(blank: nn.Module, fp8: Recipe) -> None:
    """Without a tolerance the smallest change of a range is a difference; within a tolerance it is
    not.
    """
    model = quantized(blank, fp8)
    before = maps.quantizer_map(model)
    amax: Any = model.get_submodule("visual_projection.input_quantizer")._amax
    amax.copy_(
        torch.nextafter(amax.float(), torch.tensor(9e9)).to(amax.dtype)
        if amax.dtype == torch.float32
        else amax * (1 + 2**-9)
    )
    after = maps.quantizer_map(model)

    assert len(maps.diff(before, after, amax_tolerance=0.0)) == 1
    assert maps.diff(before, after, amax_tolerance=0.05) == []
    assert maps.diff(before, after) == []


def test_collapse_folds_layers_and_kinds() -> None:
    """Many names read as one line with ranges and alternatives."""
    names = [f"v.layers.{i}.self_attn.{k}_bmm_quantizer" for i in (0, 1, 2, 5) for k in "qk"]

    assert collapse(names) == ["v.layers.{0..2,5}.self_attn.{q,k}_bmm_quantizer"]


def test_registration_leaves_no_trace(blank: nn.Module, fp8: Recipe) -> None:
    """Quantizing with one attention class does not change what the next quantization gets."""
    first = maps.quantizer_map(quantized(blank, fp8, "modelopt"))
    quantized(blank, fp8, "diffusers")

    assert (
        maps.diff(first, maps.quantizer_map(quantized(blank, fp8, "modelopt")), amax_tolerance=0.0)
        == []
    )


def test_reference_stays_unquantized(blank: nn.Module, fp8: Recipe) -> None:
    """Quantizing works on a copy: the reference has no quantizer afterwards."""
    quantized(blank, fp8)

    assert maps.tensor_quantizers(blank) == {}


def test_recipes_path_is_what_messages_name(fp8: Recipe) -> None:
    """The default recipe knows its own file, so that messages can name it."""
    assert fp8.path == Path(loading.__file__).parent / "library" / "fp8.yaml"


@pytest.mark.parametrize(
    ("off", "entry", "broken"),
    [
        ("*[qkv]_bmm_quantizer", None, True),
        ("*layers.1.*q_bmm_quantizer", None, True),
        ("*vision*q_bmm_quantizer", "*vision*q_bmm_quantizer", True),
        ("*layers.1.*q_bmm_quantizer", "*layers.1.*q_bmm_quantizer", False),
        ("*self_attn.*[mt]_quantizer", None, False),
    ],
    ids=[
        "deleted entry",
        "hole in a layer",
        "tower turned off",
        "layer chosen",
        "all of attention",
    ],
)
def test_attention_is_quantized_whole(
    blank: nn.Module, fp8: Recipe, off: str, entry: str | None, broken: bool
) -> None:
    """Some of the four around attention off and others on is a problem, unless the recipe names
    them in some layers.
    """
    import dataclasses
    import fnmatch

    whole = maps.quantizer_map(quantized(blank, fp8))
    there = tuple(
        dataclasses.replace(q, enabled=q.enabled and not fnmatch.fnmatchcase(q.name, off))
        if q.module_kind == "attention"
        else q
        for q in whole
    )
    asked = tuple(e for e in fp8.entries if "bmm" not in e.pattern)
    recipe = dataclasses.replace(fp8, entries=asked)
    recipe = with_entries(recipe, (entry, False)) if entry else recipe

    assert there != whole
    assert rules(insertion.broken_attention(there, recipe)) == (
        {"attention quantized in part"} if broken else set()
    )
    assert (
        insertion.broken_attention(there, recipe, [("vision", "attention"), ("text", "attention")])
        == []
    )
