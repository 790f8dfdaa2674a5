"""The one table of families of models, which other modules read instead of branching.

A row names the towers of a family, how each is fed and where it gives its embedding, the class of
its attention blocks, and what ModelOpt cannot reach in it.  Supporting another family means another
row.

Inputs have one form for all: ``pixel_values``, (n, 3, h, w) in the model's dtype, and
``input_ids``, int64 (n, context); a tower takes the one that is its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import UsageError, one_line, ran_out_of_memory
from harness.isolation import functions_kept

#: tower -> its input
INPUTS = {"vision": "pixel_values", "text": "input_ids"}


@dataclass(frozen=True)
class Tower:
    """One tower of a family.

    ``prefixes`` are the module paths that belong to it.  ``encode`` is the method that takes the
    input to the embedding, empty where the model is nothing but this tower; ``argument`` the name
    that the method gives its input. ``completed_by`` names the projection of the whole checkpoint
    that a tower without its own lacks, and ``as_arguments`` makes the method's arguments of an
    input that is not passed as it is.  ``norm`` is the name of the normalisation after the last
    layer, and ``leading`` the number of tokens before the first patch.
    """

    prefixes: tuple[str, ...]
    encode: str
    argument: str
    completed_by: str = ""
    as_arguments: Callable[[nn.Module, Tensor], dict[str, Tensor]] | None = None
    norm: str = ""
    leading: int = 0


@dataclass(frozen=True)
class Family:
    """One row.

    ``model_classes`` are the classes of its models, ``attention_classes`` those of the attention
    blocks that ModelOpt converts on request.  ``hidden`` holds classes whose products
    ModelOpt cannot quantize, with the reason and what helps: full insertion leaves them out, and
    the gate says so.  ``patch_embedding`` is what the path of the patch embedding contains.
    ``absent`` are classes of layer, as recipes write them, that this family alone has none of.
    ``text_is_causal``: whether what follows the end token of a text can be cut off.
    ``consumers`` are those whose contracts are gated where none is named
    (:mod:`harness.consumers.contracts`).
    """

    name: str
    model_classes: tuple[str, ...]
    towers: dict[str, Tower]
    attention_classes: tuple[str, ...]
    hidden: dict[str, str] = field(default_factory=dict)
    patch_embedding: str = "patch_embed"
    absent: tuple[str, ...] = ()
    text_is_causal: bool = True
    consumers: tuple[str, ...] = ()


def _patches(model: nn.Module, pixels: Tensor) -> dict[str, Tensor]:
    """Pictures as the flat patches of SigLIP 2's NaFlex form, every one at its full square size: no
    mask is needed.
    """
    config: Any = model.config
    side = config.vision_config.patch_size
    n, channels, height, width = pixels.shape
    rows, columns = height // side, width // side
    grid = pixels.reshape(n, channels, rows, side, columns, side).permute(0, 2, 4, 3, 5, 1)
    return {
        "pixel_values": grid.reshape(n, rows * columns, side * side * channels),
        # Read as numbers in the forward, so there even where the pictures are not.
        "spatial_shapes": torch.tensor(
            [[rows, columns]] * n, device="cpu" if pixels.is_meta else pixels.device
        ),
    }


_POOLING = (
    "the pooling head attends with nn.MultiheadAttention, which keeps its projections in one "
    "parameter and its "
    "products in one function: ModelOpt has no quantizer for either"
)
_PACKED = (
    "nn.MultiheadAttention keeps its projections in one parameter and its products in one function "
    "(or in a fused "
    "kernel that skips quantizers): ModelOpt has no quantizer for either.  `python -m "
    "harness.models.openclip DIR OUT` "
    "converts the checkpoint to a CLIPModel, whose attention can be quantized"
)
_CLIP_ATTENTION = ("CLIPAttention",)
#: The normalisations after the last layer.
_VISION_NORM, _TEXT_NORM = "post_layernorm", "final_layer_norm"
_SIGLIP = {
    "vision": Tower(("vision_model.",), "get_image_features", "pixel_values", norm=_VISION_NORM),
    "text": Tower(("text_model.",), "get_text_features", "input_ids", norm=_TEXT_NORM),
}
_CLIP_TOWERS = {
    "vision": Tower(
        ("vision_model.", "visual_projection"),
        "get_image_features",
        "pixel_values",
        norm=_VISION_NORM,
        leading=1,
    ),
    "text": Tower(
        ("text_model.", "text_projection"), "get_text_features", "input_ids", norm=_TEXT_NORM
    ),
}


def _vision_alone(completed_by: str = "") -> dict[str, Tower]:
    alone = Tower(("",), "", "pixel_values", completed_by, norm=_VISION_NORM, leading=1)
    return {"vision": alone}


def _seeing(norm: str, leading: int) -> dict[str, Tower]:
    """The one tower of a model that takes pictures alone."""
    return {"vision": Tower(("",), "", "pixel_values", norm=norm, leading=leading)}


def _text_alone(completed_by: str = "") -> dict[str, Tower]:
    return {"text": Tower(("",), "", "input_ids", completed_by, norm=_TEXT_NORM)}


FAMILIES = (
    Family(
        name="clip",
        model_classes=("CLIPModel",),
        towers=_CLIP_TOWERS,
        attention_classes=_CLIP_ATTENTION,
        consumers=("llava", "sd15", "owlvit"),
    ),
    Family(
        "clip-vision",
        ("CLIPVisionModelWithProjection",),
        _vision_alone(),
        _CLIP_ATTENTION,
        consumers=("ip-adapter",),
    ),
    Family(
        "clip-text",
        ("CLIPTextModelWithProjection",),
        _text_alone(),
        _CLIP_ATTENTION,
        consumers=("sdxl",),
    ),
    Family(
        "clip-vision-encoder",
        ("CLIPVisionModel",),
        _vision_alone("visual_projection"),
        _CLIP_ATTENTION,
        consumers=("llava",),
    ),
    Family(
        "clip-text-encoder",
        ("CLIPTextModel",),
        _text_alone("text_projection"),
        _CLIP_ATTENTION,
        consumers=("sd15",),
    ),
    Family(
        name="siglip",
        model_classes=("SiglipModel",),
        towers=_SIGLIP,
        attention_classes=("SiglipAttention",),
        hidden={"MultiheadAttention": _POOLING},
        text_is_causal=False,
        consumers=("paligemma", "llava-onevision"),
    ),
    Family(
        name="siglip2",
        model_classes=("Siglip2Model",),
        towers=_SIGLIP
        | {
            "vision": Tower(
                ("vision_model.",),
                "get_image_features",
                "pixel_values",
                as_arguments=_patches,
                norm=_VISION_NORM,
            )
        },
        attention_classes=("Siglip2Attention",),
        hidden={"MultiheadAttention": _POOLING},
        absent=("nn.Conv2d",),  # its patch embedding is a Linear over flat patches
        text_is_causal=False,
        consumers=("paligemma", "llava-onevision"),
    ),
    *(
        Family(
            name=name,
            model_classes=(model,),
            towers=_CLIP_TOWERS,
            attention_classes=(attention,),
            consumers=consumers,
        )
        for name, model, attention, consumers in (
            ("owlvit", "OwlViTModel", "OwlViTAttention", ("owlvit",)),
            ("owlv2", "Owlv2Model", "Owlv2Attention", ("owlvit",)),
            ("clipseg", "CLIPSegModel", "CLIPSegAttention", ("clipseg",)),
            ("metaclip_2", "MetaClip2Model", "MetaClip2Attention", ("llava", "sd15")),
        )
    ),
    *(
        Family(
            name=name,
            model_classes=(model,),
            towers=_seeing(norm=_VISION_NORM, leading=1),
            attention_classes=("CLIPAttention", "SiglipAttention"),
            hidden={"MultiheadAttention": _POOLING},
            consumers=consumers,
        )
        for name, model, consumers in (
            ("llava", "LlavaVision", ("llava",)),
            ("llava-next", "LlavaNextVision", ("llava",)),
            ("vip-llava", "VipLlavaVision", ("vip-llava",)),
        )
    ),
    *(
        Family(
            name=name,
            model_classes=(model,),
            towers=_seeing(norm=_VISION_NORM, leading=0),
            attention_classes=("SiglipAttention", "CLIPAttention"),
            hidden={"MultiheadAttention": _POOLING},
            consumers=consumers,
        )
        for name, model, consumers in (
            ("llava-onevision", "LlavaOnevisionVision", ("llava-onevision",)),
            ("paligemma", "PaliGemmaVision", ("paligemma",)),
        )
    ),
    Family(
        name="dinov2",
        model_classes=("Dinov2Model",),
        towers=_seeing(norm="layernorm", leading=1),
        attention_classes=("Dinov2SelfAttention",),
        consumers=("dino",),
    ),
    Family(
        # open_clip's class and its variant with a text tower of its own (EVA, SigLIP), of the
        # library of that name.
        name="open_clip",
        model_classes=("CLIP", "CustomTextCLIP"),
        towers={
            "vision": Tower(("visual.",), "encode_image", "image"),
            "text": Tower(
                ("transformer.", "text.", "token_embedding", "ln_final"), "encode_text", "text"
            ),
        },
        attention_classes=("Attention", "EvaAttention", "AttentionPoolLatent"),
        hidden={"MultiheadAttention": _PACKED},
        patch_embedding="visual.conv1|patch_embed",
        text_is_causal=False,
    ),
)

#: The family that the embedded model is of.
CLIP = FAMILIES[0]

_LAYER = re.compile(r"\.(?:layers?|blocks|resblocks)\.(\d+)(?:\.|$)")
_IS_LAYER = re.compile(r"(?:.*\.)?(?:layers?|blocks|resblocks)\.\d+")


def of(model: nn.Module) -> Family:
    """Return the row of *model*, by the name of its class or of a base class (ModelOpt wraps
    classes).

    Raises:
        TypeError: no row has it.
    """
    names = {cls.__name__ for cls in type(model).__mro__}
    for family in FAMILIES:
        if names & set(family.model_classes):
            return family
    known = ", ".join(name for family in FAMILIES for name in family.model_classes)
    raise TypeError(f"{type(model).__name__} is of no known family; known: {known}")


def named(model_class: str) -> str:
    """The name of the family that a class of models belongs to.

    Raises:
        StopIteration: no row has it.
    """
    return next(family.name for family in FAMILIES if model_class in family.model_classes)


def tower_of(family: Family, module: str) -> str:
    """The tower that the module path *module* is in, or ``none``."""
    return next(
        (name for name, tower in family.towers.items() if module.startswith(tower.prefixes)), "none"
    )


def layer_of(module: str) -> int | None:
    """The number of the encoder layer in a module path; None outside the layers."""
    match = _LAYER.search(f".{module}")
    return int(match[1]) if match else None


def layers_of(model: nn.Module, tower: str) -> list[nn.Module]:
    """The encoder layers of *model*'s *tower*, first to last."""
    prefixes = of(model).towers[tower].prefixes
    return [
        module
        for path, module in model.named_modules()
        if path.startswith(prefixes) and _IS_LAYER.fullmatch(path)
    ]


def norm_of(model: nn.Module, tower: str) -> nn.Module:
    """The normalisation after the last layer of *model*'s *tower*.

    Raises:
        LookupError: its family names none.
    """
    row = of(model).towers[tower]
    for path, module in model.named_modules():
        if row.norm and path.startswith(row.prefixes) and path.rpartition(".")[2] == row.norm:
            norm: nn.Module = module
            return norm
    raise LookupError(f"{type(model).__name__} has no norm after the last layer of its {tower}")


def hidden_in(model: nn.Module) -> dict[str, str]:
    """Module path -> reason, of every block of *model* whose products ModelOpt cannot quantize."""
    reasons = of(model).hidden
    blocks = {}
    for path, module in model.named_modules():
        for cls in type(module).__mro__:
            if cls.__name__ in reasons:
                blocks[path] = reasons[cls.__name__]
    return blocks


# -- forwards --------------------------------------------------------------------------------------


def encode(model: nn.Module, tower: str, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the embedding (n, d) of *model*'s *tower* for its input *x*, in the model's dtype, of
    any length.

    *mask* is the attention mask of a text's padding, where the tower is given one.

    That of a tower without a projection is what its pooling gives.  Every forward of the gate comes
    through here, and none leaves the functions of torch otherwise than it found them
    (:mod:`harness.isolation`).

    Raises:
        UsageError: there is not enough memory for a forward of as many rows.
    """
    row = of(model).towers[tower]
    method: Any = getattr(model, row.encode) if row.encode else model
    arguments = row.as_arguments(model, x) if row.as_arguments else {row.argument: x}
    if mask is not None:
        arguments["attention_mask"] = mask
    with functions_kept():
        try:
            return feature(method(**arguments))
        except Exception as error:
            if ran_out_of_memory(error):
                raise _too_many_rows(tower, len(x), error) from error
            raise


def _too_many_rows(tower: str, rows: int, error: Exception) -> UsageError:
    what = f"out of memory in a forward of the {tower} tower over {rows} rows ({one_line(error)})"
    # The evaluation runs two rows at least.
    fix = (
        f"Take fewer rows: --batch-size {rows // 2}."
        if rows > 2
        else "Run on a machine with more memory."
    )
    return UsageError("--batch-size", what, fix)


def forward(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Run one forward of every tower: embeddings (n, d) by tower, of ``pixel_values`` and
    ``input_ids`` in *inputs*.
    """
    return {tower: encode(model, tower, inputs[INPUTS[tower]]) for tower in of(model).towers}


def feature(output: Any) -> Tensor:
    """Return the embedding in the output of a tower: (n, d).

    A tensor, or an output object: of a tower with its projection, of one without, or (from
    transformers 5 on) of ``get_image_features`` and ``get_text_features``, whose ``pooler_output``
    is projected.
    """
    if isinstance(output, Tensor):
        return output
    for name in ("image_embeds", "text_embeds", "pooler_output"):
        value = getattr(output, name, None)
        if isinstance(value, Tensor):
            return value
    raise TypeError(f"{type(output).__name__} holds no embedding")


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model's inputs: pixels per side, tokens per text, words of the vocabulary, the end
    token.
    """

    image: int = 0
    context: int = 0
    vocabulary: int = 0
    end: int = 0


def sizes(model: nn.Module) -> Sizes:
    """Return the sizes of *model*'s inputs; 0 for a tower that it does not have."""
    if not hasattr(model, "config"):
        return _open_clip_sizes(model)
    config: Any = model.config
    towers = of(model).towers
    numbers: dict[str, int] = {}
    if "vision" in towers:
        vision = getattr(config, "vision_config", config)
        side = getattr(vision, "image_size", None)
        numbers["image"] = side or int(vision.num_patches**0.5) * vision.patch_size
    if "text" in towers:
        text = getattr(config, "text_config", config)
        # Old checkpoints say 2 and mean the last word of the vocabulary.
        last = text.vocab_size - 1
        end = (
            text.eos_token_id
            if text.eos_token_id not in (None, 2) and text.eos_token_id <= last
            else last
        )
        numbers |= {
            "context": text.max_position_embeddings,
            "vocabulary": text.vocab_size,
            "end": end,
        }
    return Sizes(**numbers)


def _open_clip_sizes(model: Any) -> Sizes:
    size = model.visual.image_size
    words = (model if hasattr(model, "token_embedding") else model.text).vocab_size
    return Sizes(
        size[0] if isinstance(size, (tuple, list)) else size, model.context_length, words, words - 1
    )


def sample_inputs(model: nn.Module, batch: int = 2) -> dict[str, Tensor]:
    """Inputs of the right shapes for one forward of every tower, on the model's device: seeded
    noise and tokens.
    """
    size = sizes(model)
    parameter = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    inputs = {}
    if size.image:
        pixels = torch.randn(batch, 3, size.image, size.image, generator=generator)
        inputs["pixel_values"] = pixels.to(parameter.device, parameter.dtype)
    if size.context:
        ids = torch.randint(
            1, max(2, size.vocabulary - 2), (batch, size.context), generator=generator
        )
        ids[:, -1] = size.end
        inputs["input_ids"] = ids.to(parameter.device)
    return inputs
