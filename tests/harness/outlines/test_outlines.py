"""The table of architectures: published sizes, few layers that are counted as all, and parts."""

from __future__ import annotations

import resource
from collections import Counter
from dataclasses import replace

import pytest

from harness.outlines import building, outline
from harness.outlines.rows import ROWS
from harness.quantization import maps

GIGABYTES = 1.0
BY_NAME = {row.name: row for row in ROWS}


def weights(name: str) -> Counter[str]:
    """The number of weights with a quantizer, by part."""
    results: Counter[str] = Counter()
    for site in outline.of(name).sites:
        results[site.part] += site.count * (site.kind == "weight")
    return +results


def test_every_architecture_is_built_within_its_limits() -> None:
    """Each of the table is measured in a gigabyte of its own, and has parts."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for row in ROWS:
        known = outline.of(row.name)
        assert len(known.sites) < 600, f"{row.name}: layers that repeat are built once each"
        assert not known.unsupported, f"{row.name}: {known.unsupported}"
        assert all(site.part != "other" for site in known.sites), row.name
        assert {site.part for site in known.sites} >= set(row.parts) - {"projector"}, row.name
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20 < GIGABYTES
    assert len(ROWS) >= 25


@pytest.mark.parametrize(
    "name",
    ["Nemotron-H-8B", "Gemma-3-1B", "Qwen3.5-9B", "Llama-3.2-11B-Vision", "DINOv2-L"],
)
def test_few_layers_stand_for_all(name: str) -> None:
    """The names that a few built layers stand for are those of the model with all its layers."""
    whole = building.converted(replace(BY_NAME[name], stacks=()))
    every = {name for site in outline.of(name).sites for name in site.names}
    assert every == set(maps.tensor_quantizers(whole.model))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # 126 more experts of each layer and projection than are built
        ("Qwen3-30B-A3B", {"language": 193, "experts": 48 * 128 * 2, "head": 1}),
        ("Kimi-K2.5", {"vision": 163, "projector": 2, "experts": 60 * 384 * 2}),
        ("LLaVA-1.5-7B", {"vision": 146, "projector": 2, "language": 225, "head": 1}),
        ("ViT-L-14", {"vision": 147, "language": 75}),
    ],
)
def test_parts_are_counted_as_published(name: str, expected: dict[str, int]) -> None:
    """Weights are counted by part, layers and experts that are not built included."""
    assert expected.items() <= weights(name).items()


def test_sizes_of_weights_are_the_published_ones() -> None:
    """The in-features that block formats have trouble with are those of the checkpoints."""
    shapes = {
        (name, site.module.rpartition(".")[2]): site.shape
        for name in ("Qwen3-VL-8B", "Llama-4-Scout-17B-16E", "gpt-oss-20b")
        for site in outline.of(name).sites
        if site.kind == "weight" and site.module_kind in ("linear", "experts")
    }
    assert shapes["Qwen3-VL-8B", "linear_fc2"] is not None
    fc2 = {
        site.shape
        for site in outline.of("Qwen3-VL-8B").sites
        if site.name.endswith("mlp.linear_fc2.weight_quantizer")
    }
    assert (1152, 4304) in fc2
    assert shapes["Llama-4-Scout-17B-16E", "linear"] == (1408, 588)
    assert shapes["gpt-oss-20b", "down_proj"] == (2880, 2880)


def test_an_architecture_that_the_library_lacks_says_so() -> None:
    """What the installed transformers or ModelOpt cannot build has a reason instead of places."""
    row = replace(BY_NAME["Llama-3.1-8B"], name="Llama-9", model_class="Llama9ForCausalLM")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outline, "ROWS", (*ROWS, row))
        known = outline.of("Llama-9")
    assert not known.sites
    assert "Llama9ForCausalLM" in known.unsupported
