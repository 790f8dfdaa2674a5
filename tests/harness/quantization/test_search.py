"""ModelOpt's search for formats on the embedded model: its choice is judged as a recipe, and what
it drops is named.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from harness.checks import agreement, insertion
from harness.data import calibration
from harness.errors import UsageError
from harness.models import families, references
from harness.quantization import maps, search
from harness.quantization.attention import attention_registered
from harness.quantization.quantize import QuantizationError, forward_loop_over, quantize
from harness.recipes import judged, loading
from harness.recipes.loading import Recipe

CPU = torch.device("cpu")
OFF = {"quantizer_name": "*", "enable": False}
ATTENTION = [
    {"quantizer_name": "*[qkv]_bmm_quantizer", "cfg": {"num_bits": "e4m3"}},
    {"quantizer_name": "*bmm2_output_quantizer", "cfg": {"num_bits": "e4m3"}},
]


def a_format(bits: int, *more: dict[str, Any], parent: str | None = None) -> dict[str, Any]:
    """A candidate: weights of *bits* per channel, of *parent* modules only if it is given, and
    *more* entries.
    """
    weights = {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": bits, "axis": 0}}
    return {
        "algorithm": "max",
        "quant_cfg": [OFF, weights | ({"parent_class": parent} if parent else {}), *more],
    }


def a_search(**settings: Any) -> dict[str, Any]:
    """An auto_quantize section over eight and four bits, with *settings* in place of these."""
    return {
        "constraints": {"effective_bits": 6.0},
        "candidate_formats": [a_format(8), a_format(4)],
        "score_size": 8,
        "disabled_layers": ["*patch_embedding*"],
    } | settings


def written(folder: Path, section: dict[str, Any], name: str = "searched", **more: Any) -> Recipe:
    """The recipe of an auto_quantize section, loaded from YAML."""
    path = folder / f"{name}.yaml"
    path.write_text(
        yaml.safe_dump(
            {"metadata": {"recipe_type": "auto_quantize"}, "auto_quantize": section} | more
        )
    )
    return loading.load(str(path))


@pytest.fixture(scope="module")
def batches(reference: references.Reference) -> Iterable[dict[str, torch.Tensor]]:
    """Sixteen calibration pairs in two batches."""
    return calibration.load(None, reference, 16).batches(CPU, torch.float16, batch_size=8)


@dataclass(frozen=True)
class Made:
    """A searched model, the recipe it came from, what the search chose, and the map."""

    model: nn.Module
    recipe: Recipe
    chosen: Recipe
    map: maps.QuantizerMap


def search_with(reference: references.Reference, batches: Any, recipe: Recipe) -> Made:
    """The embedded model under *recipe*."""
    model = quantize(reference.model, recipe, forward_loop_over(batches))
    inputs = next(iter(batches))
    quantizers = maps.quantizer_map(model, lambda m: families.forward(m, inputs))
    return Made(model, recipe, search.chosen(model, recipe), quantizers)


@pytest.fixture(scope="module")
def searched(
    reference: references.Reference, batches: Any, tmp_path_factory: pytest.TempPathFactory
) -> Made:
    """The embedded model after a search over eight- and four-bit weights."""
    return search_with(reference, batches, written(tmp_path_factory.mktemp("recipe"), a_search()))


def test_the_choice_is_a_recipe_that_the_model_obeys(
    searched: Made, reference: references.Reference, batches: Any
) -> None:
    """Read back as entries, the choice is what every quantizer is set to; ranges are the data's,
    weights untouched.
    """
    assert agreement.with_recipe(searched.model, searched.chosen, searched.map) == []
    assert (
        agreement.with_reference(
            searched.model, reference.model, searched.chosen, next(iter(batches))
        )
        == []
    )
    assert search.problems(searched.model, searched.recipe) == []
    assert (searched.chosen.name, searched.chosen.hash, searched.chosen.kind) == (
        searched.recipe.name,
        searched.recipe.hash,
        "ptq",
    )


def test_the_choice_keeps_to_the_allowed_bits(searched: Made) -> None:
    """Both formats were chosen somewhere, and the searched weights average at most six bits."""
    bits = {
        q.module: int(q.format.removeprefix("INT"))
        for q in searched.map
        if q.kind == "weight" and q.enabled
    }
    sizes = {
        name: module.weight.numel()
        for name, module in searched.model.named_modules()
        if isinstance(module, nn.Linear) and isinstance(module.weight, torch.Tensor)
    }

    assert set(bits.values()) == {4, 8}
    assert (
        sum(size * bits.get(name, 16) for name, size in sizes.items())
        <= 6.0 * sum(sizes.values()) * 1.001
    )


def test_the_choice_quantizes_like_any_recipe(
    searched: Made, reference: references.Reference, batches: Any
) -> None:
    """Handed to ``mtq.quantize``, the recipe of the choice gives the searched model's map, ranges
    included.
    """
    again = quantize(reference.model, searched.chosen, forward_loop_over(batches))
    inputs = next(iter(batches))
    quantizers = maps.quantizer_map(again, lambda m: families.forward(m, inputs))

    assert maps.diff(searched.map, quantizers, amax_tolerance=0.0) == []


def test_a_quantizer_that_leaves_the_choice_is_found(searched: Made) -> None:
    """A layer that is switched off behind the search's back is not as the choice has it."""
    with attention_registered(searched.model, "diffusers"):
        spoilt: Any = copy.deepcopy(searched.model)
    spoilt.visual_projection.weight_quantizer.disable()

    assert [p.rule for p in agreement.with_recipe(spoilt, searched.chosen)] == [
        "not as the recipe switches it"
    ]


def test_attention_that_formats_enable_must_not_end_off(
    searched: Made, reference: references.Reference, batches: Any, tmp_path: Path
) -> None:
    """ModelOpt's search drops q, k, v and output of all seven blocks: each is named, with what to
    do (S9).
    """
    asking = a_search(candidate_formats=[a_format(8, *ATTENTION), a_format(4)])
    other_search = search_with(reference, batches, written(tmp_path, asking))

    (problem,) = insertion.broken_attention(other_search.map, other_search.recipe)

    assert problem.rule == "attention quantizer missing"
    assert len(problem.names) == 7 * 4
    assert "mtq.get_auto_quantize_config" in str(problem)
    assert insertion.broken_attention(searched.map, searched.recipe) == [], (
        "no format of this one asks for attention"
    )


def test_a_fixed_baseline_loses_the_attention_output(
    reference: references.Reference, batches: Any, tmp_path: Path
) -> None:
    """A baseline around the search keeps q, k and v; bmm2_output ends off, and both checks say
    so.
    """
    section = a_search(
        candidate_formats=[],
        module_search_spaces=[
            {"module_name_patterns": ["*mlp*"], "candidate_formats": [a_format(8), a_format(4)]}
        ],
    )
    recipe = written(tmp_path, section, quantize=a_format(8, *ATTENTION, parent="nn.Linear"))
    other_search = search_with(reference, batches, recipe)

    missing, part = insertion.broken_attention(other_search.map, other_search.recipe)

    assert {name.rpartition(".")[2] for name in missing.names} == {"bmm2_output_quantizer"}
    assert len(missing.names) == len(part.names) == 7
    (switched,) = agreement.with_recipe(other_search.model, other_search.chosen, other_search.map)
    assert all("bmm2_output_quantizer is off" in line for line in switched.names)


def test_a_format_that_does_nothing_at_a_layer_is_found(
    reference: references.Reference, batches: Any, tmp_path: Path
) -> None:
    """Four bits for Linears only are billed to the patch embedding too, which stays as it is."""
    section = a_search(
        candidate_formats=[a_format(8), a_format(4, parent="nn.Linear")], disabled_layers=[]
    )
    other_search = search_with(reference, batches, written(tmp_path, section))

    (problem,) = search.problems(other_search.model, other_search.recipe)

    assert problem.names == ("vision_model.embeddings.patch_embedding",)


def test_a_search_by_divergence(
    reference: references.Reference, batches: Any, tmp_path: Path
) -> None:
    """The other way to score, KL divergence of CLIP's logits, needs no gradient and is judged the
    same.
    """
    section = a_search(
        auto_quantize_method="kl_div",
        constraints={"effective_bits": 15.85},
        disabled_layers=["*layers*", "*patch_embedding*"],
    )
    other_search = search_with(reference, batches, written(tmp_path, section))

    assert agreement.with_recipe(other_search.model, other_search.chosen, other_search.map) == []
    assert {q.module for q in other_search.map if q.enabled} == {
        "visual_projection",
        "text_projection",
    }


def test_a_search_needs_batches_and_weights(
    reference: references.Reference, tmp_path: Path
) -> None:
    """Without calibration data, or on an architecture without weights, there is no choice: that is
    said.
    """
    from harness.quantization.quantize import structure

    recipe = written(tmp_path, a_search())

    with pytest.raises(QuantizationError, match="needs calibration batches"):
        quantize(reference.model, recipe, None)
    with pytest.raises(QuantizationError, match="depends on weights and data"):
        structure(reference.model, recipe)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"constraints": {"effective_bits": 0}}, "effective_bits must be in"),
        ({"candidate_formats": []}, "candidate_formats"),
        ({"candidate_formats": [{"algorithm": "max"}]}, "has no quant_cfg"),
        ({"candidate_formats": [a_format(8) | {"algorithm": "nonsense"}]}, "nonsense"),
        ({"auto_quantize_method": "guess"}, "auto_quantize_method"),
        ({"kv_cache": a_format(8)}, "CLIP has no KV cache"),
    ],
)
def test_a_search_that_modelopt_refuses_is_told_by_its_file(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    """A bad setting is one line that names the file."""
    with pytest.raises(UsageError, match=message) as caught:
        written(tmp_path, a_search(**settings))

    assert "searched.yaml" in str(caught.value)


def test_a_search_with_a_field_of_another_release_is_not_gated(tmp_path: Path) -> None:
    """A field that this release of ModelOpt does not know is named, never dropped."""
    recipe = written(tmp_path, a_search(effective_bitz=4))

    reason = judged.not_gated(recipe, "cpu", ())

    assert reason is not None
    assert reason.endswith("effective_bitz is not known")


def test_the_hash_of_a_search_is_of_its_meaning(tmp_path: Path) -> None:
    """Formats, allowed bits and excluded layers change it."""
    sections = {
        "base": a_search(),
        "again": a_search(),
        "formats": a_search(candidate_formats=[a_format(8), a_format(3)]),
        "bits": a_search(constraints={"effective_bits": 5.0}),
        "layers": a_search(disabled_layers=[]),
    }
    hashes = {name: written(tmp_path, section, name).hash for name, section in sections.items()}

    assert hashes["base"] == hashes["again"]
    assert len(set(hashes.values())) == 4
