"""open_clip checkpoints: read as they are, and converted to a ``CLIPModel`` whose attention can be
quantized.

An open_clip checkpoint directory holds ``open_clip_config.json`` and
``open_clip_model.safetensors``.  Its attention is ``nn.MultiheadAttention``, which ModelOpt has no
quantizers for; a standard vision transformer with a standard text transformer is, renamed, a
Hugging Face ``CLIPModel``::

    python -m harness.models.openclip DIR OUT

writes that checkpoint, with the tokenizer and the preprocessing, and refuses what it cannot convert
exactly.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness import (
    compat,  # noqa: F401  (before open_clip imports torchvision)
    files,
)
from harness.errors import UsageError
from harness.models import checkpoint_files, checkpoint_weights, families
from harness.models.checkpoint_configs import OpenClipPreprocessing
from harness.models.checkpoint_weights import open_clip_weights, tensors_of

CONFIG, WEIGHTS = checkpoint_files.OPEN_CLIP_CONFIG, checkpoint_weights.OPEN_CLIP_WEIGHTS
_FIX = f"Give a directory with {CONFIG} and {WEIGHTS}."
#: Largest relative error of an embedding that rounding in float32 explains, for towers of up to 48
#: layers.
ROUNDING = 1e-4

Json = dict[str, Any]


is_checkpoint = checkpoint_files.is_open_clip


def configuration(folder: Path) -> Json:
    """Return ``model_cfg`` and ``preprocess_cfg`` of a checkpoint as its file has them.

    Raises:
        UsageError: the file is not a configuration of open_clip's, or asks for what is not built.
    """
    config = checkpoint_files.open_clip_configuration(folder).model_dump(exclude_unset=True)
    return {"model_cfg": config["model_cfg"], "preprocess_cfg": config.get("preprocess_cfg") or {}}


def build(model_cfg: Json) -> nn.Module:
    """The model that a ``model_cfg`` describes, on torch's default device, with random weights;
    nothing is fetched.

    It carries its configuration in the attribute ``open_clip_config``.
    """
    from open_clip import CLIP, CustomTextCLIP

    cfg = {key: value for key, value in model_cfg.items() if key != "custom_text"}
    # Would ask a hub for weights that the checkpoint's replace
    if cfg["vision_cfg"].get("timm_model_pretrained"):
        cfg["vision_cfg"] = cfg["vision_cfg"] | {"timm_model_pretrained": False}
    model: nn.Module = (CustomTextCLIP if model_cfg.get("custom_text") else CLIP)(**cfg)
    model.open_clip_config = model_cfg  # type: ignore[assignment]
    return model


def build_published(name: str) -> nn.Module:
    """The model of one of open_clip's own configurations."""
    import open_clip

    return build(open_clip.get_model_config(name))


def load(folder: Path, dtype: torch.dtype) -> nn.Module:
    """The checkpoint's model in *dtype*, on the CPU.

    Raises:
        UsageError: a file is missing or damaged, or the weights are not those of the configuration.
    """
    import safetensors.torch

    cfg = configuration(folder)["model_cfg"]
    (path,) = open_clip_weights(folder)
    try:
        with torch.device("meta"):
            blank = build(cfg)
        _check_shapes(
            blank, {name: tuple(tensor.shape) for name, tensor in tensors_of((path,)).items()}
        )
        model = build(cfg)
        model.load_state_dict(safetensors.torch.load_file(path))
    except UsageError:
        raise
    except Exception as error:
        # Whatever open_clip, safetensors or torch find wrong in these files is the person's input.
        raise UsageError(
            folder, f"does not load as an open_clip checkpoint ({_line(error)})", _FIX
        ) from error
    return model.to(dtype)


def _check_shapes(blank: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse weights of other names or shapes than those of *blank*, before a model is built that
    takes memory.

    Raises:
        ValueError: the first that differs.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in blank.state_dict().items()}
    unmatched = sorted(wanted.keys() ^ shapes.keys())
    if unmatched:
        place = "configuration" if unmatched[0] in wanted else "weights"
        raise ValueError(f"{unmatched[0]} is only in the {place}")
    for name, shape in wanted.items():
        if shape != shapes[name]:
            raise ValueError(f"{name} is {shapes[name]}, the configuration asks for {shape}")


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def image_processor(folder: Path) -> Any:
    """The checkpoint's preprocessing as a ``CLIPImageProcessor``.

    Raises:
        UsageError: it resizes in a way that cannot be written so.
    """
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
    from transformers import CLIPImageProcessor

    configuration = checkpoint_files.open_clip_configuration(folder)
    cfg = configuration.preprocess_cfg or OpenClipPreprocessing()
    side, mode = configuration.model_cfg.vision_cfg.side, cfg.resize_mode or "shortest"
    square = {"height": side, "width": side}
    return CLIPImageProcessor(
        size={"shortest_edge": side} if mode == "shortest" else square,
        do_center_crop=mode == "shortest",
        crop_size=square,
        resample=2 if cfg.interpolation == "bilinear" else 3,
        image_mean=list(cfg.mean or OPENAI_DATASET_MEAN),
        image_std=list(cfg.std or OPENAI_DATASET_STD),
    )


def tokenizer(folder: Path) -> Any:
    """The checkpoint's tokenizer, of transformers: open_clip's own byte-pair vocabulary, or what
    is next to it.

    Raises:
        UsageError: the checkpoint names a tokenizer of the hub and does not hold it.
    """
    from transformers import AutoTokenizer

    text = configuration(folder)["model_cfg"]["text_cfg"]
    if text.get("hf_tokenizer_name") or files.is_file(folder / "tokenizer.json"):
        try:
            return AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:
            what = f"its tokenizer, {text.get('hf_tokenizer_name')}, is not there ({_line(error)})"
            raise UsageError(
                folder, what, "Put the files of that tokenizer next to the weights."
            ) from error
    return _byte_pairs(text.get("context_length", 77))


def _byte_pairs(context: int) -> Any:
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTokenizer

    theirs = SimpleTokenizer()
    begin, end = "<|startoftext|>", "<|endoftext|>"
    vocabulary = dict(theirs.encoder)
    for number, name in ((theirs.sot_token_id, begin), (theirs.eot_token_id, end)):
        vocabulary = {
            name if index == number else word: index for word, index in vocabulary.items()
        }
    merges = [" ".join(pair) for pair in theirs.bpe_ranks]
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        # Of the way in which transformers reads these files
        warnings.simplefilter("ignore", DeprecationWarning)
        (Path(place) / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
        (Path(place) / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
        return CLIPTokenizer.from_pretrained(place, model_max_length=context, local_files_only=True)


# -- conversion ------------------------------------------------------------------------------------

_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_OUTER = {
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "logit_scale": "logit_scale",
}
#: open_clip multiplies with these from the right, transformers keeps them as Linears.
_TRANSPOSED = {
    "visual.proj": "visual_projection.weight",
    "text_projection": "text_projection.weight",
}


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of open_clip's ``CLIP`` under transformers' names: same numbers, packed
    ones split.

    Raises:
        KeyError: a weight has no counterpart.
    """
    weights: dict[str, Tensor] = {}
    for name, weight in state.items():
        block = re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)", name)
        stem, _, leaf = name.rpartition(".")
        if block:
            layer = f"{'vision' if block[1] else 'text'}_model.encoder.layers.{block[2]}"
            weights |= {
                f"{layer}.{inner}": part for inner, part in _in_block(block[3], weight).items()
            }
        elif name in _TRANSPOSED:
            weights[_TRANSPOSED[name]] = weight.T.contiguous()
        elif name in _OUTER:
            weights[_OUTER[name]] = weight
        elif stem in _OUTER:
            weights[f"{_OUTER[stem]}.{leaf}"] = weight
        else:
            raise KeyError(name)
    return weights


def _in_block(name: str, weight: Tensor) -> dict[str, Tensor]:
    packed = re.fullmatch(r"attn\.in_proj_(weight|bias)", name)
    if packed:
        kinds = zip("qkv", weight.chunk(3), strict=True)
        return {f"self_attn.{kind}_proj.{packed[1]}": part.contiguous() for kind, part in kinds}
    stem, _, leaf = name.rpartition(".")
    if stem not in _BLOCK:
        raise KeyError(name)
    return {f"{_BLOCK[stem]}.{leaf}": weight}


def _clip_config(cfg: Json, state: dict[str, Tensor]) -> Any:
    from transformers import CLIPConfig

    vision, text, projection = cfg["vision_cfg"], cfg["text_cfg"], cfg["embed_dim"]
    activation = "quick_gelu" if cfg.get("quick_gelu") else "gelu"
    words = text.get("vocab_size", 49408)
    image = vision.get("image_size", 224)

    def tower(width: int, layers: int, heads: int, ratio: float) -> Json:
        return {
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": int(width * ratio),
            "hidden_act": activation,
            "projection_dim": projection,
        }

    width = vision.get("width", 768)
    heads = width // vision.get("head_width", 64)
    return CLIPConfig(
        vision_config=tower(width, vision.get("layers", 12), heads, vision.get("mlp_ratio", 4.0))
        | {
            "image_size": image[0] if isinstance(image, list) else image,
            "patch_size": vision.get("patch_size", 16),
        },
        text_config=tower(
            text.get("width", 512),
            text.get("layers", 12),
            text.get("heads", 8),
            text.get("mlp_ratio", 4.0),
        )
        | {
            "vocab_size": words,
            "max_position_embeddings": text.get("context_length", 77),
            "bos_token_id": words - 2,
            "eos_token_id": words - 1,
            "pad_token_id": words - 1,
        },
        projection_dim=projection,
        logit_scale_init_value=float(state["logit_scale"]),
    )


def convert(model: nn.Module, place: str | Path = "the checkpoint") -> nn.Module:
    """Convert *model*, an open_clip ``CLIP``, to a ``CLIPModel`` that computes the same: same
    weights, in float32.

    Both are run on the same inputs before it is returned.

    Raises:
        UsageError: *model* has parts that a ``CLIPModel`` does not have.
    """
    from transformers import CLIPModel

    fix = "Gate it as it is: the gate says what ModelOpt cannot quantize in it."
    cfg: Json = model.open_clip_config  # type: ignore[assignment]
    state = {name: weight.float() for name, weight in model.state_dict().items()}
    if (
        cfg.get("custom_text")
        or "timm_model_name" in cfg["vision_cfg"]
        or "visual.class_embedding" not in state
    ):
        what = (
            "is not a standard vision transformer with a standard text transformer (timm, EVA, "
            "SigLIP, ResNet, CoCa)"
        )
        raise UsageError(place, what, fix)
    config = _clip_config(cfg, state)
    config._attn_implementation = "sdpa"
    converted: nn.Module = CLIPModel(config).eval()
    try:
        converted.load_state_dict(renamed(state))
    except (KeyError, RuntimeError) as error:
        raise UsageError(
            place, f"has weights that a CLIPModel has no place for ({_line(error)})", fix
        ) from error
    off = difference(model, converted)
    if not off <= ROUNDING:
        what = (
            f"computes something else than the CLIPModel of its weights: relative error {off:.2g}"
        )
        raise UsageError(place, what, fix)
    return converted.requires_grad_(False)


@torch.no_grad()
def difference(model: nn.Module, converted: nn.Module) -> float:
    """The largest relative error of *converted*'s embeddings against *model*'s, both in float32 on
    sample inputs.
    """
    plain = build(model.open_clip_config)  # type: ignore[arg-type]
    plain.load_state_dict({name: weight.float() for name, weight in model.state_dict().items()})
    inputs = families.sample_inputs(converted)
    expected, actual = families.forward(plain.eval(), inputs), families.forward(converted, inputs)
    errors = [
        (actual[t].double() - e.double()).norm(dim=1) / e.double().norm(dim=1)
        for t, e in expected.items()
    ]
    return float(torch.cat(errors).max())


def write(folder: Path, out: Path) -> nn.Module:
    """Convert the checkpoint in *folder* and write it, whole, to the new folder *out*, in the dtype
    of its weights.

    Raises:
        UsageError: it cannot be converted, or *out* exists.
    """
    import safetensors

    out = files.expand(out)
    if files.exists(out):
        raise UsageError(out, "exists", "Give a new folder.")
    folder = files.folder(folder)
    checkpoint_files.inspect(folder)
    model, words, pictures = load(folder, torch.float32), tokenizer(folder), image_processor(folder)
    converted = convert(model, folder)
    with safetensors.safe_open(folder / WEIGHTS, framework="pt") as weights:
        dtype = weights.get_tensor("visual.conv1.weight").dtype
    converted.to(dtype).save_pretrained(out)  # type: ignore[operator]
    words.save_pretrained(out)
    pictures.save_pretrained(out)
    return converted


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.models.openclip", description="Convert an open_clip checkpoint."
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help=f"holds {CONFIG} and {WEIGHTS}")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder for the CLIPModel")
    options = parser.parse_args(arguments)
    try:
        converted = write(options.folder, options.out)
    except UsageError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 4
    count = sum(p.numel() for p in converted.parameters())
    print(
        f"wrote {options.out}: a CLIPModel of {count:,} parameters; gate it with --clip-model "
        f"{options.out}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
