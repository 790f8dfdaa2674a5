"""Small checkpoints of what people load CLIP's towers in, each saved by its own library."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from harness.models.checkpoint_files import EMBEDDED

_SIDE = 48
_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": _SIDE,
    "patch_size": 8,
}
_TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "vocab_size": 1200,
    "max_position_embeddings": 24,
    "bos_token_id": 1198,
    "eos_token_id": 1199,
    "pad_token_id": 1199,
}
_LANGUAGE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 300,
}
_PROJECTED = {"projection_dim": 16}


def _saved(model: Any, folder: Path) -> None:
    model.half().save_pretrained(folder)


def _pictures(folder: Path, kind: str) -> None:
    """The preprocessing of *kind*, to the side of the models here."""
    size: dict[str, Any] = {"size": {"height": _SIDE, "width": _SIDE}}
    if kind in ("CLIPImageProcessor", "BitImageProcessor"):
        crop = {"crop_size": size["size"], "do_center_crop": True}
        size = {"size": {"shortest_edge": _SIDE}} | crop
    plain = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    text = json.dumps({"image_processor_type": kind} | size | plain)
    (folder / "preprocessor_config.json").write_text(text)


def _words(folder: Path) -> None:
    from transformers import CLIPTokenizer

    CLIPTokenizer.from_pretrained(EMBEDDED).save_pretrained(folder)


def _language_on(name: str, tower: str, language: str, layers: int = 3) -> Callable[[Path], Path]:
    """A vision-language model of class *name*."""

    def write(folder: Path) -> Path:
        import transformers

        seen = _VISION | {"num_hidden_layers": layers}
        if tower == "SiglipVisionConfig":
            seen = seen | {"vision_use_head": False}
        said = _LANGUAGE | ({"head_dim": 16} if language == "GemmaConfig" else {})
        settings = {
            "vision_config": getattr(transformers, tower)(**seen),
            "text_config": getattr(transformers, language)(**said),
            "image_token_index": 299,
        }
        if name == "PaliGemma":
            settings["projection_dim"] = 32
        config = getattr(transformers, f"{name}Config")(**settings)
        _saved(getattr(transformers, f"{name}ForConditionalGeneration")(config), folder)
        clip = tower == "CLIPVisionConfig"
        _pictures(folder, "CLIPImageProcessor" if clip else "SiglipImageProcessor")
        return folder

    return write


def _detector(config: str, model: str, pictures: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        import transformers

        said = _TEXT | {"max_position_embeddings": 16, "pad_token_id": 0}
        configuration = getattr(transformers, config)(
            vision_config=_VISION, text_config=said, **_PROJECTED
        )
        _saved(getattr(transformers, model)(configuration), folder)
        _pictures(folder, pictures)
        _words(folder)
        return folder

    return write


def _metaclip2(folder: Path) -> Path:
    import transformers

    config = transformers.MetaClip2Config(
        vision_config=_VISION | _PROJECTED, text_config=_TEXT | _PROJECTED, **_PROJECTED
    )
    _saved(transformers.MetaClip2Model(config), folder)
    _pictures(folder, "CLIPImageProcessor")
    _words(folder)
    return folder


def _clipseg(folder: Path) -> Path:
    import transformers

    config = transformers.CLIPSegConfig(
        vision_config=_VISION | {"num_hidden_layers": 12},
        text_config=_TEXT,
        reduce_dim=16,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
        **_PROJECTED,
    )
    _saved(transformers.CLIPSegForImageSegmentation(config), folder)
    _pictures(folder, "ViTImageProcessor")
    _words(folder)
    return folder


def _dinov2(folder: Path) -> Path:
    import transformers

    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=_SIDE, patch_size=8
    )
    _saved(transformers.Dinov2Model(config), folder)
    _pictures(folder, "BitImageProcessor")
    return folder


def pipeline(folder: Path) -> Path:
    """SDXL's pipeline as diffusers writes it, with its parts of CLIP's family and an image
    encoder.
    """
    import transformers

    parts = {
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "image_encoder": "CLIPVisionModelWithProjection",
    }
    for part, name in parts.items():
        seen, said = (
            transformers.CLIPVisionConfig(**_VISION, **_PROJECTED),
            transformers.CLIPTextConfig(**_TEXT, **_PROJECTED),
        )
        _saved(getattr(transformers, name)(seen if "Vision" in name else said), folder / part)
    for words in ("tokenizer", "tokenizer_2"):
        (folder / words).mkdir()
        _words(folder / words)
    (folder / "feature_extractor").mkdir()
    _pictures(folder / "feature_extractor", "CLIPImageProcessor")
    index = {name: ["transformers", cls] for name, cls in parts.items()}
    index |= {"unet": ["diffusers", "UNet2DConditionModel"]}
    named = {"_class_name": "StableDiffusionXLPipeline", "_diffusers_version": "0.42.1"}
    (folder / "model_index.json").write_text(json.dumps(named | index))
    return folder


#: Kind of checkpoint -> what writes one into a folder, and the consumer that it is judged for.
CHECKPOINTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "llava": (_language_on("Llava", "CLIPVisionConfig", "LlamaConfig"), "llava"),
    "llava-next": (_language_on("LlavaNext", "CLIPVisionConfig", "LlamaConfig"), "llava"),
    "vip-llava": (_language_on("VipLlava", "CLIPVisionConfig", "LlamaConfig", 12), "vip-llava"),
    "llava-onevision": (
        _language_on("LlavaOnevision", "SiglipVisionConfig", "Qwen2Config"),
        "llava-onevision",
    ),
    "paligemma": (_language_on("PaliGemma", "SiglipVisionConfig", "GemmaConfig"), "paligemma"),
    "owlvit": (_detector("OwlViTConfig", "OwlViTModel", "OwlViTImageProcessor"), "owlvit"),
    "owlvit-detector": (
        _detector("OwlViTConfig", "OwlViTForObjectDetection", "OwlViTImageProcessor"),
        "owlvit",
    ),
    "owlv2": (
        _detector("Owlv2Config", "Owlv2ForObjectDetection", "Owlv2ImageProcessor"),
        "owlvit",
    ),
    "metaclip-2": (_metaclip2, "llava"),
    "clipseg": (_clipseg, "clipseg"),
    "dinov2": (_dinov2, "dino"),
}


def saved(kind: str, folder: Path) -> Path:
    """A checkpoint of *kind* in *folder*, with seeded random weights."""
    torch.manual_seed(0)
    return CHECKPOINTS[kind][0](folder)
