"""What a recipe's change does to CLIP is seen before anything is evaluated: in the maps, and beyond
them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.pull_requests import effect
from harness.recipes import loading
from harness.recipes.loading import Recipe

Variant = Callable[..., Recipe]


@pytest.fixture
def variant(tmp_path: Path) -> Variant:
    """Makes the FP8 recipe with one piece of its text replaced everywhere."""

    def make(old: str = "", new: str = "") -> Recipe:
        base = loading.load("fp8").path
        assert base is not None
        text = base.read_text()
        assert old in text
        path = tmp_path / "fp8.yaml"
        path.write_text(text.replace(old, new) if old else text + "\n# a remark\n")
        return loading.load(str(path))

    return make


@pytest.fixture(scope="module")
def fp8() -> Recipe:
    """The published recipe."""
    return loading.load("fp8")


def test_a_remark_has_no_effect(fp8: Recipe, variant: Variant) -> None:
    """Recipes that resolve to the same thing are equal, and no model is built to say so."""
    changed = effect.between(fp8, variant())

    assert changed.none
    assert str(changed) == "fp8: no effect on CLIP"


def test_an_entry_that_restates_another_has_no_effect(fp8: Recipe, variant: Variant) -> None:
    """Another text with the same quantizers and algorithm is not an effect, by the maps of both
    architectures.
    """
    last = "    - quantizer_name: '*bmm2_output_quantizer'"
    head = variant(last, "    - quantizer_name: '*softmax_quantizer'\n      enable: false\n" + last)

    assert head.hash != fp8.hash
    assert effect.between(fp8, head).none


def test_two_recipes_differ_by_their_maps(fp8: Recipe) -> None:
    """From FP8 with attention to Linear layers alone: the attention's quantizers go off, and
    nothing else changes.
    """
    changed = effect.between(fp8, loading.load("fp8-linear-only"))

    assert changed.by_architecture["embedded"] == (
        "12 quantizers change: text self_attn {q,k,v}_bmm bmm2_output E4M3 per-tensor to off, "
        "layers 0..2",
        "16 quantizers change: vision self_attn {q,k,v}_bmm bmm2_output E4M3 per-tensor to off, "
        "layers 0..3",
    )
    assert [line.split()[0] for line in changed.by_architecture["ViT-L-14"]] == ["48", "96"]
    assert changed.beyond_map == ()


def test_an_algorithm_alone_is_an_effect(fp8: Recipe, variant: Variant) -> None:
    """Another calibration leaves every map as it was and is reported beyond it."""
    changed = effect.between(fp8, variant("algorithm: max", "algorithm: {method: mse}"))

    assert not changed.none
    assert not any(changed.by_architecture.values())
    assert [line.partition(":")[0] for line in changed.beyond_map] == ["algorithm"]
    assert "no quantizer changes" in str(changed)


def test_an_attribute_alone_is_an_effect(fp8: Recipe, variant: Variant) -> None:
    """An attribute that no map shows, of quantizers that are on, is named with how many carry
    it.
    """
    changed = effect.between(
        fp8, variant("trt_high_precision_dtype: Half", "trt_high_precision_dtype: Float")
    )

    assert not any(changed.by_architecture.values())
    assert changed.beyond_map
    assert all(
        line.startswith("trt_high_precision_dtype: 'Half' to 'Float' at ")
        for line in changed.beyond_map
    )


def test_an_attribute_of_a_disabled_quantizer_is_none(fp8: Recipe, variant: Variant) -> None:
    """What a quantizer that is off would do has no effect."""
    last = "    - quantizer_name: '*bmm2_output_quantizer'"
    off = (
        "    - quantizer_name: '*softmax_quantizer'\n      enable: false\n      cfg: {num_bits: "
        "BITS}\n" + last
    )
    first, other = (variant(last, off.replace("BITS", bits)) for bits in ("8", "e4m3"))

    assert first.hash != other.hash
    assert effect.between(first, other).none
