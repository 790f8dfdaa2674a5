"""The keys of a checkpoint's configuration files that are read, with their types and bounds.

``config.json``, ``preprocessor_config.json``, ``model.safetensors.index.json`` and
``open_clip_config.json`` hold many more keys, which are left alone; what is here decides which
classes are built and how large they become.  Defaults are those of transformers and open_clip,
which omit them when they write.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, model_validator

#: Bounds well above every published CLIP; what the weights really hold is compared on top of them.
Width = Annotated[int, Field(ge=1, le=1 << 17)]
Layers = Annotated[int, Field(ge=1, le=512)]
Side = Annotated[int, Field(ge=1, le=4096)]
Words = Annotated[int, Field(ge=1, le=1 << 22)]
Token = Annotated[int, Field(ge=0, lt=1 << 22)]
Channels = Annotated[list[FiniteFloat], Field(min_length=3, max_length=3)]
Deviations = Annotated[
    list[Annotated[float, Field(gt=0, allow_inf_nan=False)]], Field(min_length=3, max_length=3)
]


class Keys(BaseModel):
    """Base of all: numbers are numbers, ``true`` is not 1, and keys that are not read are left
    alone.
    """

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


@dataclass(frozen=True)
class ExpectedTensor:
    """A tensor that the configuration asks for: its shape, and the keys that decide it."""

    shape: tuple[int, ...]
    keys: str


# -- config.json of transformers -------------------------------------------------------------------


class Encoder(Keys):
    """The transformer of one tower."""

    #: what the tower's tensors begin with in a whole model
    prefix: ClassVar[str] = ""
    #: what those of its layers begin with
    layers: ClassVar[str] = "encoder.layers."

    hidden_size: Width = 768
    intermediate_size: Width = 3072
    num_hidden_layers: Layers = 12
    num_attention_heads: Width = 12

    @model_validator(mode="after")
    def _heads(self) -> Encoder:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}"
            )
        return self

    def tensors(self) -> dict[str, ExpectedTensor]:
        """Tensors whose shapes give every size of the tower, by their names without the prefix."""
        width = self.hidden_size
        return {
            "encoder.layers.0.self_attn.q_proj.weight": ExpectedTensor(
                (width, width), "hidden_size"
            ),
            "encoder.layers.0.mlp.fc1.weight": ExpectedTensor(
                (self.intermediate_size, width), "intermediate_size"
            ),
        }


class Vision(Encoder):
    """A vision tower over square pictures of ``side`` pixels."""

    prefix = "vision_model."
    has_class_token: ClassVar[bool] = False

    num_channels: Literal[3] = 3
    image_size: Side = 224
    patch_size: Side = 16

    @model_validator(mode="after")
    def _patches(self) -> Vision:
        if self.patch_size > self.side:
            raise ValueError(
                f"patch_size {self.patch_size} is larger than the picture, {self.side} pixels"
            )
        return self

    @property
    def side(self) -> int:
        """Height and width of the pictures that the tower needs, in pixels."""
        return self.image_size

    def tensors(self) -> dict[str, ExpectedTensor]:
        """As :meth:`Encoder.tensors`, with the embeddings."""
        patch = (self.hidden_size, 3, self.patch_size, self.patch_size)
        positions = (self.image_size // self.patch_size) ** 2 + self.has_class_token
        return super().tensors() | {
            "embeddings.patch_embedding.weight": ExpectedTensor(patch, "patch_size"),
            "embeddings.position_embedding.weight": ExpectedTensor(
                (positions, self.hidden_size), "image_size and patch_size"
            ),
        }


class Text(Encoder):
    """A text tower."""

    prefix = "text_model."

    vocab_size: Words = 32000
    max_position_embeddings: Width = 64
    eos_token_id: Token | None = 49407

    def tensors(self) -> dict[str, ExpectedTensor]:
        """As :meth:`Encoder.tensors`, with the embeddings."""
        words = (self.vocab_size, self.hidden_size)
        positions = (self.max_position_embeddings, self.hidden_size)
        return super().tensors() | {
            "embeddings.token_embedding.weight": ExpectedTensor(words, "vocab_size"),
            "embeddings.position_embedding.weight": ExpectedTensor(
                positions, "max_position_embeddings"
            ),
        }


class ClipVision(Vision):
    """``clip_vision_model``."""

    has_class_token = True

    patch_size: Side = 32
    projection_dim: Width = 512


class LikeClipText(Text):
    """A text tower of CLIP's default sizes: CLIP's own, and that of models that copy it."""

    hidden_size: Width = 512
    intermediate_size: Width = 2048
    num_attention_heads: Width = 8
    vocab_size: Words = 49408
    max_position_embeddings: Width = 77


class ClipText(LikeClipText):
    """``clip_text_model``, whose embedding is taken at the end token."""

    eos_token_id: Token = 49407
    projection_dim: Width | None = 512

    @model_validator(mode="after")
    def _end(self) -> ClipText:
        if self.eos_token_id >= self.vocab_size:
            raise ValueError(
                f"eos_token_id {self.eos_token_id} is not in the vocabulary of {self.vocab_size} "
                f"words"
            )
        return self


class Siglip2Vision(Vision):
    """``siglip2_vision_model``, whose patches come flat."""

    num_patches: Annotated[int, Field(ge=1, le=1 << 20)] = 256

    @property
    def side(self) -> int:
        """Height and width of the square that fills all patches."""
        return math.isqrt(self.num_patches) * self.patch_size

    def tensors(self) -> dict[str, ExpectedTensor]:
        """As :meth:`Vision.tensors`, with a Linear as the patch embedding."""
        patch = (self.hidden_size, 3 * self.patch_size**2)
        positions = (self.num_patches, self.hidden_size)
        return super().tensors() | {
            "embeddings.patch_embedding.weight": ExpectedTensor(patch, "patch_size"),
            "embeddings.position_embedding.weight": ExpectedTensor(positions, "num_patches"),
        }


def _or_empty(content: object) -> object:
    """``null`` where a mapping is expected stands for one without keys."""
    return {} if content is None else content


class Whole(Keys):
    """A model of two towers."""

    vision_config: Annotated[Vision, BeforeValidator(_or_empty)]
    text_config: Annotated[Text, BeforeValidator(_or_empty)]


class Clip(Whole):
    """``clip``."""

    vision_config: Annotated[ClipVision, BeforeValidator(_or_empty)] = Field(
        default_factory=ClipVision
    )
    text_config: Annotated[ClipText, BeforeValidator(_or_empty)] = Field(default_factory=ClipText)
    projection_dim: Width = 512

    @model_validator(mode="before")
    @classmethod
    def _old_form(cls, content: Any) -> Any:
        """Checkpoints of 2021 hold their towers twice; what is under ``..._config_dict`` counts,
        defaults included.
        """
        if not isinstance(content, dict):
            return content
        merged = dict(content)
        for name, tower in (("vision_config", ClipVision), ("text_config", ClipText)):
            old = merged.pop(f"{name}_dict", None)
            if isinstance(old, dict):
                defaults = tower().model_dump()
                merged[name] = {**_mapping(merged.get(name)), **defaults, **old}
        return merged


def _mapping(content: Any) -> Mapping[str, Any]:
    return content if isinstance(content, dict) else {}


class Siglip(Whole):
    """``siglip``."""

    vision_config: Annotated[Vision, BeforeValidator(_or_empty)] = Field(default_factory=Vision)
    text_config: Annotated[Text, BeforeValidator(_or_empty)] = Field(default_factory=Text)


class Siglip2(Whole):
    """``siglip2``."""

    vision_config: Annotated[Siglip2Vision, BeforeValidator(_or_empty)] = Field(
        default_factory=Siglip2Vision
    )
    text_config: Annotated[Text, BeforeValidator(_or_empty)] = Field(default_factory=Text)


class OwlVision(ClipVision):
    """``owlvit_vision_model``, ``owlv2_vision_model``."""

    image_size: Side = 768


class OwlText(LikeClipText):
    """``owlvit_text_model``, ``owlv2_text_model``."""

    max_position_embeddings: Width = 16


class Owl(Whole):
    """``owlvit``, ``owlv2``."""

    vision_config: Annotated[OwlVision, BeforeValidator(_or_empty)] = Field(
        default_factory=OwlVision
    )
    text_config: Annotated[OwlText, BeforeValidator(_or_empty)] = Field(default_factory=OwlText)


class LikeClip(Whole):
    """``clipseg``, ``metaclip_2``."""

    vision_config: Annotated[ClipVision, BeforeValidator(_or_empty)] = Field(
        default_factory=ClipVision
    )
    text_config: Annotated[LikeClipText, BeforeValidator(_or_empty)] = Field(
        default_factory=LikeClipText
    )


class Dinov2(Vision):
    """``dinov2``, which knows no words; positions are interpolated to other sizes of pictures."""

    prefix = ""
    layers = "encoder.layer."
    has_class_token = True

    image_size: Side = 224
    patch_size: Side = 14
    mlp_ratio: Annotated[int, Field(ge=1, le=64)] = 4

    def tensors(self) -> dict[str, ExpectedTensor]:
        """As :meth:`Encoder.tensors`."""
        width, side = self.hidden_size, self.patch_size
        return {
            "encoder.layer.0.attention.attention.query.weight": ExpectedTensor(
                (width, width), "hidden_size"
            ),
            "embeddings.patch_embeddings.projection.weight": ExpectedTensor(
                (width, 3, side, side), "patch_size"
            ),
        }


class Seeing(Keys):
    """A vision-language model, of which the tower is read: on CLIP's or on SigLIP's."""

    vision_config: Annotated[Vision | ClipVision, Field(union_mode="left_to_right")]

    @model_validator(mode="before")
    @classmethod
    def _by_type(cls, content: Any) -> Any:
        """The tower that ``vision_config`` says it is; LLaVA's configuration may leave it out."""
        if not isinstance(content, dict):
            return content
        vision = _mapping(content.get("vision_config"))
        kind = vision.get("model_type", cls.usual)
        known = {"clip_vision_model": ClipVision, "siglip_vision_model": Vision}
        if kind not in known:
            raise ValueError(f"vision_config has model_type {kind!r}; known are {', '.join(known)}")
        return {**content, "vision_config": known[kind].model_validate({**cls.sizes, **vision})}

    #: What the library fills in where ``vision_config`` is left out.
    usual: ClassVar[str] = "clip_vision_model"
    sizes: ClassVar[Mapping[str, Any]] = {}


class SeeingLlava(Seeing):
    """``llava`` and its kin, whose tower is CLIP ViT-L/14 at 336 pixels by default."""

    sizes: ClassVar[Mapping[str, Any]] = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
        "image_size": 336,
    }


class SeeingSiglip(Seeing):
    """``llava_onevision`` and ``paligemma``, whose tower is a SigLIP."""

    usual: ClassVar[str] = "siglip_vision_model"


class ModelType(Keys):
    """What ``config.json`` says of any model: its type, and what would have other files read or
    weights changed.
    """

    model_type: str
    architectures: list[str] | None = None
    quantization_config: Any = None
    transformers_weights: Any = None


# -- preprocessor_config.json ----------------------------------------------------------------------


class PictureSize(Keys):
    """A size of pictures: of the shortest edge, of both sides, or a number, whose meaning the class
    decides.
    """

    number: Side | None = None
    shortest_edge: Side | None = None
    height: Side | None = None
    width: Side | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, content: Any) -> Any:
        if isinstance(content, int) and not isinstance(content, bool):
            return {"number": content}
        if not isinstance(content, dict):
            raise ValueError("expected a number of pixels, shortest_edge, or height and width")
        return {key: value for key, value in content.items() if key != "number"}

    @model_validator(mode="after")
    def _one_way(self) -> PictureSize:
        if self.number is None and self.shortest_edge is None and self.pair is None:
            raise ValueError("expected a number of pixels, shortest_edge, or height and width")
        return self

    @property
    def pair(self) -> tuple[int, int] | None:
        """Height and width where both are given."""
        return None if self.height is None or self.width is None else (self.height, self.width)


Switch = bool | None
OPENAI_MEAN, OPENAI_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


class Preprocessing(Keys):
    """How a picture becomes numbers, as transformers' image processors write it; ``null`` switches
    are defaults.
    """

    do_resize: Switch = True
    size: PictureSize = Field(default_factory=lambda: PictureSize.model_validate(224))
    resample: Annotated[int, Field(ge=0, le=5)] | None = 3
    do_center_crop: Switch = None
    crop_size: PictureSize | None = None
    do_pad: Literal[False] | None = None
    do_rescale: Switch = True
    rescale_factor: Annotated[float, Field(gt=0, le=1)] = 1 / 255
    do_normalize: Switch = True
    image_mean: Channels = Field(default_factory=lambda: list(OPENAI_MEAN))
    image_std: Deviations = Field(default_factory=lambda: list(OPENAI_STD))


class FlatPatches(Keys):
    """What is read of SigLIP 2's preprocessing: its pictures are brought to one square whatever
    else it says.
    """

    resample: Annotated[int, Field(ge=0, le=5)] | None = 2
    image_mean: Channels = Field(default_factory=lambda: [0.5] * 3)
    image_std: Deviations = Field(default_factory=lambda: [0.5] * 3)


class Processor(Keys):
    """``processor_config.json``, which from transformers 5 on may hold the preprocessing in one of
    its keys.
    """

    image_processor: dict[str, Any] | None = None


# -- weights ---------------------------------------------------------------------------------------


class Index(Keys):
    """``model.safetensors.index.json``: the file of each tensor."""

    weight_map: Annotated[dict[str, str], Field(min_length=1)]


class Tensor(Keys):
    """A tensor in the header of a safetensors file."""

    dtype: str
    shape: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=8)]
    data_offsets: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]


# -- open_clip_config.json -------------------------------------------------------------------------


class _OpenClipKeys(Keys):
    model_config = ConfigDict(strict=True, extra="allow", frozen=True)


class OpenClipVision(_OpenClipKeys):
    """``vision_cfg``; keys that are not here are open_clip's to judge."""

    layers: Layers | Annotated[list[Layers], Field(min_length=4, max_length=4)] = 12
    width: Width = 768
    head_width: Width = 64
    mlp_ratio: Annotated[float, Field(gt=0, le=64)] = 4.0
    patch_size: Side = 16
    image_size: Side | Annotated[list[Side], Field(min_length=2, max_length=2)] = 224
    attn_pooler_queries: Width = 256
    timm_model_name: str | None = None

    @model_validator(mode="after")
    def _usable(self) -> OpenClipVision:
        if isinstance(self.image_size, list) and self.image_size[0] != self.image_size[1]:
            raise ValueError(
                f"image_size is {self.image_size}; pictures that are not square are not supported"
            )
        if (
            self.timm_model_name
            and not self.timm_model_name.replace("_", "").replace(".", "").isalnum()
        ):
            raise ValueError(
                f"timm_model_name is {self.timm_model_name!r}; only timm's own names are built"
            )
        return self

    @property
    def side(self) -> int:
        """Height and width of the pictures in pixels."""
        return self.image_size[0] if isinstance(self.image_size, list) else self.image_size


class OpenClipText(_OpenClipKeys):
    """``text_cfg``."""

    context_length: Width = 77
    vocab_size: Words = 49408
    width: Width = 512
    heads: Width = 8
    layers: Layers = 12
    mlp_ratio: Annotated[float, Field(gt=0, le=64)] = 4.0
    hf_tokenizer_name: str | None = None
    hf_model_name: str | None = None

    @model_validator(mode="after")
    def _own_tower(self) -> OpenClipText:
        if self.hf_model_name:
            what = (
                f"hf_model_name is {self.hf_model_name!r}: its text tower would be asked of a hub, "
                f"which is not done"
            )
            raise ValueError(what)
        return self


class OpenClipModel(_OpenClipKeys):
    """``model_cfg``."""

    embed_dim: Width
    vision_cfg: OpenClipVision
    text_cfg: OpenClipText
    custom_text: bool = False
    quick_gelu: bool = False


class OpenClipPreprocessing(_OpenClipKeys):
    """``preprocess_cfg``."""

    size: Side | Annotated[list[Side], Field(min_length=1, max_length=3)] | None = None
    mean: Channels | None = None
    std: Deviations | None = None
    interpolation: Literal["bicubic", "bilinear"] | None = None
    resize_mode: Literal["shortest", "squash"] | None = None


class OpenClip(_OpenClipKeys):
    """``open_clip_config.json``."""

    model_cfg: OpenClipModel
    preprocess_cfg: OpenClipPreprocessing | None = None
