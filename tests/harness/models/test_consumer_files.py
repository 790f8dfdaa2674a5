"""Checkpoints of CLIP's consumers: the tower is loaded, and nothing else of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_consumers
import torch

from harness.consumers import contracts, reading
from harness.errors import UsageError
from harness.gate import listing
from harness.gate.options import Options
from harness.models import checkpoint_files, families, references


@pytest.mark.parametrize("kind", tiny_consumers.CHECKPOINTS)
def test_the_tower_of_a_consumer_is_loaded_and_read(kind: str, tmp_path: Path) -> None:
    """The checkpoint that the library saved loads without its language model or heads; its contract
    is the family's, and what that reads is finite and the same in every forward.
    """
    folder = tiny_consumers.saved(kind, tmp_path / kind)
    consumer = tiny_consumers.CHECKPOINTS[kind][1]

    reference = references.load(str(folder), torch.device("cpu"))
    family = families.of(reference.model)
    of = reading.material(reference, None, None)
    by_reading = reading.read_all(reference.model, of, (consumer,), 64)

    parts = {name.partition(".")[0] for name, _ in reference.model.named_parameters()}
    assert parts.isdisjoint({"language_model", "lm_head", "class_head", "box_head", "decoder"})
    assert consumer in family.consumers
    assert family.name == references.family_of(str(folder))
    assert len(by_reading) == len(contracts.of(consumer).reads)
    for key, tokens in by_reading.items():
        assert bool(tokens.float().isfinite().all()), key
        assert float(tokens.float().std()) > 0, key


def test_the_tensors_of_the_language_model_are_not_read(tmp_path: Path) -> None:
    """The revision of LLaVA's tower does not depend on the language model's weights."""
    from safetensors.torch import load_file, save_file

    folder = tiny_consumers.saved("llava", tmp_path / "llava")
    before = checkpoint_files.inspect(folder).revision()
    weights = load_file(folder / "model.safetensors")
    changed = {
        k: v + 1 if "language_model" in k or "lm_head" in k else v for k, v in weights.items()
    }
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    assert checkpoint_files.inspect(folder).revision() == before
    name = next(k for k in weights if "multi_modal_projector" in k)
    save_file(changed | {name: weights[name] + 1}, folder / "model.safetensors")

    assert checkpoint_files.inspect(folder).revision() != before


def test_a_pipeline_stands_for_its_parts(tmp_path: Path) -> None:
    """Each part of CLIP's family is a case named after both, judged as the pipeline reads it."""
    folder = tiny_consumers.pipeline(tmp_path / "sdxl")

    options = Options(recipes=("fp8",), clip_models=(f"{folder}/",))

    names = [case.model_name for case in listing.cases_of(options)]
    assert names == ["sdxl/text_encoder", "sdxl/text_encoder_2", "sdxl/image_encoder"]
    assert listing.consumers_of(options) == ("sdxl", "ip-adapter")


@pytest.mark.parametrize("way", ["part", "slash", "link", "here"])
def test_one_part_of_a_pipeline_alone(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part finds its tokenizer by its path, with a slash behind it, through a link, and as the
    current folder.
    """
    part = tiny_consumers.pipeline(tmp_path / "sdxl") / "text_encoder_2"
    (tmp_path / "link").symlink_to(part)
    monkeypatch.chdir(part)
    ref = {"part": str(part), "slash": f"{part}/", "link": str(tmp_path / "link"), "here": "."}[way]

    checkpoint = checkpoint_files.look(ref)

    assert checkpoint.tokenizer is not None
    assert checkpoint.tokenizer.name == "tokenizer_2"
    assert contracts.of_pipeline(checkpoint_files.pipeline_class(ref)) == "sdxl"


def test_a_class_that_is_not_gated_gets_its_line(tmp_path: Path) -> None:
    """The line says what was found and which kinds of checkpoint are gated."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))

    with pytest.raises(UsageError) as refused:
        checkpoint_files.inspect(tmp_path)

    assert "bert" in str(refused.value)
    assert all(kind in str(refused.value) for kind in ("clip", "llava", "owlvit", "dinov2"))


def test_a_pipeline_without_clip_is_refused(tmp_path: Path) -> None:
    """A pipeline of another kind of text encoder names the classes that are gated."""
    index = {"_class_name": "PixArtAlphaPipeline", "text_encoder": ["transformers", "T5Encoder"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))

    with pytest.raises(UsageError, match=r"model_index.json.*CLIPTextModel"):
        checkpoint_files.expanded([str(tmp_path)])
