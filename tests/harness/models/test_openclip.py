"""open_clip checkpoints come over whole, or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from harness.data import inputs
from harness.errors import UsageError
from harness.models import checkpoint_files, families, openclip, references

CPU = torch.device("cpu")
WORDS = [
    "a photo of a cat.",
    "  An   Emoji of TWO dogs, running -- fast!  ",
    "naïve café, 42 % (déjà vu) it's the dog's & we'll see",
    "antidisestablishmentarianism " * 30,
    "",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An open_clip checkpoint."""
    return tiny.write("open_clip", tmp_path_factory.mktemp("tiny") / "open_clip")


@pytest.fixture(scope="module")
def converted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a ``CLIPModel``, by the command."""
    out = tmp_path_factory.mktemp("out") / "clip"
    assert openclip.main([str(folder), str(out)]) == 0
    return out


def test_a_converted_checkpoint_computes_the_same(folder: Path, converted: Path) -> None:
    """In float32 both give the same embeddings within rounding, on noise and on words."""
    theirs, ours = (
        references.load(str(place), CPU, torch.float32).model for place in (folder, converted)
    )
    inputs_ = families.sample_inputs(ours, batch=5)

    with torch.no_grad():
        expected, actual = families.forward(theirs, inputs_), families.forward(ours, inputs_)

    for tower, value in expected.items():
        assert torch.allclose(actual[tower], value, rtol=1e-5, atol=1e-6), tower


def test_outliers_are_planted_in_a_converted_checkpoint(folder: Path, converted: Path) -> None:
    """open_clip's own form is refused with the command that converts it; what the command writes is
    taken.
    """
    with pytest.raises(
        UsageError, match=r"Convert it first: python -m harness\.models\.openclip DIR OUT\."
    ):
        checkpoint_files.look(f"{folder}+outliers")

    assert checkpoint_files.look(f"{converted}+outliers").side == 32


def test_a_converted_checkpoint_has_the_same_weights(folder: Path, converted: Path) -> None:
    """Every number is there once, none is changed: packed projections are split, transposed ones
    turned.
    """
    theirs, ours = (references.load(str(place), CPU).model for place in (folder, converted))
    state: dict[str, Any] = ours.state_dict()

    layer = "visual.transformer.resblocks.1.attn"
    packed = theirs.state_dict()[f"{layer}.in_proj_weight"]
    parts = [state[f"vision_model.encoder.layers.1.self_attn.{k}_proj.weight"] for k in "qkv"]
    assert torch.equal(torch.cat(parts), packed)
    assert torch.equal(state["visual_projection.weight"], theirs.visual.proj.T)
    numbers = [
        torch.cat([w.float().flatten() for w in m.state_dict().values()]).sort().values
        for m in (theirs, ours)
    ]
    assert torch.equal(*numbers)


@pytest.mark.parametrize("quick", [False, True])
def test_the_activation_is_kept(tmp_path: Path, quick: bool) -> None:
    """OpenAI's quick GELU and the exact one are distinguished."""
    place = tiny.open_clip(tmp_path / "a", quick_gelu=quick)

    converted = openclip.convert(openclip.load(place, torch.float32))

    assert converted.config.vision_config.hidden_act == ("quick_gelu" if quick else "gelu")  # type: ignore[union-attr]


def test_words_get_the_ids_that_open_clip_gives_them(folder: Path, converted: Path) -> None:
    """Both tokenizers, the one read and the one written, give open_clip's ids up to the end
    token.
    """
    from open_clip.tokenizer import SimpleTokenizer

    expected = SimpleTokenizer(context_length=24)(WORDS)

    for place in (folder, converted):
        tokenized = inputs.tokenize(references.load(str(place), CPU).tokenizer, WORDS, 24)
        for row, ids in zip(expected, tokenized.ids[tokenized.rows], strict=True):
            end = int(row.argmax()) + 1
            assert ids[:end].tolist() == row[:end].tolist()


def test_pictures_are_prepared_as_open_clip_prepares_them(folder: Path) -> None:
    """Resized, cropped and normalised, a picture is open_clip's within two steps of 255."""
    from open_clip.transform import image_transform

    rng = np.random.default_rng(3)
    picture = Image.fromarray(rng.integers(0, 256, (60, 47, 3)).astype(np.uint8)).resize((120, 94))
    reference = references.load(str(folder), CPU)
    theirs = image_transform(32, False, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))(picture)

    resize = inputs.Resize(reference.image_processor)
    ours = inputs.pixel_values(resize(picture)[None], inputs.shades(reference.image_processor))[0]

    assert float((ours - theirs).abs().max()) <= 2 / 255 / 0.2


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"vision_cfg": tiny.OPEN_CLIP["vision_cfg"] | {"ls_init_value": 0.1}}, "ls_1.gamma"),
        (
            {"vision_cfg": tiny.OPEN_CLIP["vision_cfg"] | {"pool_type": "avg"}},
            "computes something else",
        ),
        (
            {"text_cfg": tiny.OPEN_CLIP["text_cfg"] | {"no_causal_mask": True}},
            "computes something else",
        ),
        ({"custom_text": True}, "standard vision transformer"),
    ],
    ids=["layer scale", "average pooling", "no causal mask", "text tower of its own"],
)
def test_what_a_clip_model_cannot_be_is_refused(
    tmp_path: Path, change: dict[str, Any], what: str
) -> None:
    """Parts that a CLIPModel lacks are reported in one line, and nothing is written."""
    place, out = tiny.open_clip(tmp_path / "a", **change), tmp_path / "out"

    with pytest.raises(UsageError, match=what):
        openclip.write(place, out)

    assert not out.exists()


def test_the_command_refuses_in_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that exists, or one without weights, ends the command with code 4 and one line."""
    assert openclip.main([str(folder), str(tmp_path)]) == 4
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / openclip.CONFIG).write_text((folder / openclip.CONFIG).read_text())
    assert openclip.main([str(tmp_path / "b"), str(tmp_path / "out")]) == 4

    exists, missing = capsys.readouterr().err.splitlines()
    assert "exists" in exists
    assert "open_clip_model.safetensors is missing" in missing


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"model_cfg": {"vision_cfg": 3, "text_cfg": {}}}']
)
def test_a_damaged_configuration_is_refused(tmp_path: Path, text: str) -> None:
    """What is not a configuration of open_clip's is reported with the file."""
    (tmp_path / openclip.CONFIG).write_text(text)

    with pytest.raises(UsageError, match=openclip.CONFIG):
        references.load(str(tmp_path), CPU)


def test_weights_of_another_configuration_are_refused(folder: Path, tmp_path: Path) -> None:
    """Weights that do not fit the configuration are reported."""
    cfg = json.loads((folder / openclip.CONFIG).read_text())
    cfg["model_cfg"]["vision_cfg"]["layers"] = 3
    (tmp_path / openclip.CONFIG).write_text(json.dumps(cfg))
    (tmp_path / openclip.WEIGHTS).symlink_to(folder / openclip.WEIGHTS)

    with pytest.raises(UsageError, match="does not load as an open_clip checkpoint"):
        references.load(str(tmp_path), CPU)


def test_a_tokenizer_of_the_hub_must_lie_there(tmp_path: Path) -> None:
    """A checkpoint that names a tokenizer of the hub is refused without its files, not fetched."""
    place = tiny.open_clip(tmp_path / "a")
    cfg = json.loads((place / openclip.CONFIG).read_text())
    cfg["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "someone/some-tokenizer"
    (place / openclip.CONFIG).write_text(json.dumps(cfg))

    with pytest.raises(UsageError, match="someone/some-tokenizer, is not there"):
        references.load(str(place), CPU)
