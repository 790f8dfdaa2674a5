"""Small checkpoints of every family with seeded random weights, written in the forms that their
libraries read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from harness.models import openclip, references

_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_WORDS = 96

#: open_clip's configuration of a standard CLIP; the vocabulary is that of its own tokenizer.
OPEN_CLIP: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def _tokenizer(folder: Path) -> None:
    """A tokenizer that knows the letters, padded at the end."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from transformers import PreTrainedTokenizerFast

    letters = {chr(code): code - 32 + 3 for code in range(32, 32 + _WORDS - 3)}
    words = Tokenizer(WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2} | letters, unk_token="<unk>"))
    words.pre_tokenizer = Split("", "isolated")
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=24,
    ).save_pretrained(folder)


def _text() -> dict[str, Any]:
    special = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    return _TOWER | {"vocab_size": _WORDS, "max_position_embeddings": 24} | special


def siglip(folder: Path) -> Path:
    """A ``SiglipModel``."""
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    torch.manual_seed(0)
    config = SiglipConfig(
        vision_config=_TOWER | {"image_size": 32, "patch_size": 8}, text_config=_text()
    )
    SiglipModel(config).half().save_pretrained(folder)
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    _tokenizer(folder)
    return folder


def siglip2(folder: Path) -> Path:
    """A ``Siglip2Model``, which takes patches."""
    from transformers import Siglip2Config, Siglip2ImageProcessor, Siglip2Model

    torch.manual_seed(0)
    config = Siglip2Config(
        vision_config=_TOWER | {"num_patches": 16, "patch_size": 8}, text_config=_text()
    )
    Siglip2Model(config).half().save_pretrained(folder)
    Siglip2ImageProcessor(patch_size=8, max_num_patches=16).save_pretrained(folder)
    _tokenizer(folder)
    return folder


def open_clip(folder: Path, **model_cfg: Any) -> Path:
    """open_clip's ``CLIP``, in its own form."""
    torch.manual_seed(0)
    cfg = OPEN_CLIP | model_cfg
    folder.mkdir(parents=True, exist_ok=True)
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    content = {"model_cfg": cfg, "preprocess_cfg": {"mean": mean, "std": std}}
    (folder / openclip.CONFIG).write_text(json.dumps(content))
    safetensors.torch.save_file(openclip.build(cfg).half().state_dict(), folder / openclip.WEIGHTS)
    return folder


def _part(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        part = references.load(f"embedded+{name}", torch.device("cpu"))
        part.model.save_pretrained(folder)
        if "Vision" in name:
            part.image_processor.save_pretrained(folder)
        else:
            part.tokenizer.save_pretrained(folder)
        return folder

    return write


_WRITERS: dict[str, Callable[[Path], Path]] = {
    "siglip": siglip,
    "siglip2": siglip2,
    "open_clip": open_clip,
    **{name: _part(name) for name in references.PARTS},
}
#: every family but CLIP itself
NAMES = tuple(_WRITERS)


def write(name: str, folder: Path) -> Path:
    """A checkpoint of the family *name* in the new *folder*."""
    with references.quiet_transformers():
        return _WRITERS[name](folder)
