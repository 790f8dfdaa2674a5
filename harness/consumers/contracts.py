"""What each consumer reads of a CLIP tower: the one table of contracts.

A consumer is a model or a pipeline that loads a CLIP tower and reads more of it than the pooled
embedding.  Each row was written down from the library that loads the tower; ``source`` says where
it stands there.  Hidden states are numbered as transformers numbers them: 1 is what the first layer
returns, -1 what the last one returns, -2 what the layer before it returns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from harness.errors import UsageError

Tokens = Literal["all", "patches", "pooled"]
Norm = Literal["none", "final", "merged"]
Padding = Literal["tokenizer", "zero"]


@dataclass(frozen=True)
class Read:
    """One tensor that a consumer reads.

    Attributes:
        name: what it is called in test ids.
        tower: whose it is.
        layer: the hidden state.
        tokens: ``all`` of them, the ``patches`` without the class token, or the ``pooled``
            embedding through the tower's projection.
        norm: ``final`` applies the tower's normalisation after the last layer; ``merged`` does, and
            multiplies each patch by the class token and normalises again.
        masked: whether the attention mask of the padding is given to the tower.
        padding: ``tokenizer`` pads texts as the checkpoint's tokenizer does, ``zero`` with the word
            0 (``!`` in CLIP's vocabulary).
        positions: tokens of a text; 0 is the tower's context.
    """

    name: str
    tower: Literal["vision", "text"]
    layer: int = -1
    tokens: Tokens = "all"
    norm: Norm = "none"
    masked: bool = False
    padding: Padding = "tokenizer"
    positions: int = 0


@dataclass(frozen=True)
class Contract:
    """One consumer: what it is, what it reads, and where that is written."""

    consumer: str
    what: str
    reads: tuple[Read, ...]
    source: str


_DIFFUSERS, _TRANSFORMERS = "diffusers: pipelines/", "transformers: models/"
_ALL_POSITIONS = Read("positions", "text", norm="final")
_LAST_BUT_ONE = Read("positions", "text", layer=-2)
_POOLED_TEXT = Read("pooled", "text", tokens="pooled")

_ROWS = (
    Contract(
        "llava",
        "LLaVA-1.5, LLaVA-NeXT",
        (Read("patches", "vision", layer=-2, tokens="patches"),),
        f"{_TRANSFORMERS}llava/modeling_llava.py, LlavaModel.get_image_features "
        "(vision_feature_layer -2, strategy default)",
    ),
    Contract(
        "vip-llava",
        "VipLlava",
        tuple(
            Read(f"layer{layer}", "vision", layer=layer, tokens="patches")
            for layer in (-2, -5, -8, -11, 6)
        ),
        f"{_TRANSFORMERS}vipllava/modeling_vipllava.py, VipLlavaModel.get_image_features "
        "(vision_feature_layers -2, -5, -8, -11, 6)",
    ),
    Contract(
        "llava-onevision",
        "LLaVA-OneVision on SigLIP",
        (Read("patches", "vision", tokens="patches"),),
        f"{_TRANSFORMERS}llava_onevision/modeling_llava_onevision.py, "
        "LlavaOnevisionModel.get_image_features (vision_feature_layer -1, strategy full)",
    ),
    Contract(
        "paligemma",
        "PaliGemma, Idefics2 and Idefics3 on SigLIP",
        (Read("patches", "vision", tokens="patches", norm="final"),),
        f"{_TRANSFORMERS}paligemma/modeling_paligemma.py, PaliGemmaModel.get_image_features "
        "(last_hidden_state)",
    ),
    Contract(
        "owlvit",
        "OWL-ViT, OWLv2",
        (
            Read("patches", "vision", tokens="patches", norm="merged"),
            Read(
                "queries",
                "text",
                tokens="pooled",
                masked=True,
                padding="zero",
                positions=16,
            ),
        ),
        f"{_TRANSFORMERS}owlvit/modeling_owlvit.py, OwlViTForObjectDetection.image_embedder; "
        "processing_owlvit.py (texts of 16 tokens, padded with !)",
    ),
    Contract(
        "clipseg",
        "CLIPSeg",
        tuple(Read(f"layer{layer}", "vision", layer=layer) for layer in (4, 7, 10)),
        f"{_TRANSFORMERS}clipseg/modeling_clipseg.py, CLIPSegForImageSegmentation.forward "
        "(extract_layers 3, 6, 9)",
    ),
    Contract(
        "dino",
        "heads on DINOv2 and DINOv3",
        (Read("tokens", "vision", norm="final"),),
        f"{_TRANSFORMERS}dinov2/modeling_dinov2.py, Dinov2Model.forward (last_hidden_state)",
    ),
    Contract(
        "sd15",
        "Stable Diffusion 1.x, AnimateDiff, ControlNet",
        (_ALL_POSITIONS,),
        f"{_DIFFUSERS}stable_diffusion/pipeline_stable_diffusion.py, encode_prompt",
    ),
    Contract(
        "sd2",
        "Stable Diffusion 2.x, whose checkpoint ends at the last layer but one",
        (Read("positions", "text", norm="final", padding="zero"),),
        f"{_DIFFUSERS}stable_diffusion/pipeline_stable_diffusion.py, encode_prompt; its tokenizer "
        "pads with !",
    ),
    Contract(
        "sdxl",
        "SDXL and Stable Diffusion 3, both encoders",
        (_LAST_BUT_ONE, _POOLED_TEXT),
        f"{_DIFFUSERS}stable_diffusion_xl/pipeline_stable_diffusion_xl.py, encode_prompt",
    ),
    Contract(
        "flux",
        "FLUX.1",
        (_POOLED_TEXT,),
        f"{_DIFFUSERS}flux/pipeline_flux.py, _get_clip_prompt_embeds",
    ),
    Contract(
        "stable-cascade",
        "Stable Cascade",
        (
            Read("positions", "text", masked=True),
            Read("pooled", "text", tokens="pooled", masked=True),
        ),
        f"{_DIFFUSERS}stable_cascade/pipeline_stable_cascade_prior.py, encode_prompt",
    ),
    Contract(
        "ip-adapter",
        "IP-Adapter and IP-Adapter Plus",
        (Read("tokens", "vision", layer=-2), Read("pooled", "vision", tokens="pooled")),
        f"{_DIFFUSERS}stable_diffusion/pipeline_stable_diffusion.py, encode_image",
    ),
)

#: Consumer -> its contract.
CONTRACTS = {row.consumer: row for row in _ROWS}


#: What reads the text encoders of a diffusers pipeline, by how its class's name begins.
_PIPELINES = (
    ("StableDiffusionXL", "sdxl"),
    ("StableDiffusion3", "sdxl"),
    ("Flux", "flux"),
    ("StableCascade", "stable-cascade"),
    ("Wuerstchen", "stable-cascade"),
    ("StableDiffusion", "sd15"),
    ("AnimateDiff", "sd15"),
)


def of_pipeline(class_name: str) -> str:
    """The consumer of a text encoder in a pipeline of that class, or nothing."""
    begins = (consumer for start, consumer in _PIPELINES if class_name.startswith(start))
    return next(begins, "")


def of(consumer: str) -> Contract:
    """The contract of *consumer*.

    Raises:
        UsageError: no row of the table has that name.
    """
    if consumer not in CONTRACTS:
        raise UsageError(
            f"--consumer {consumer}", "is not known", f"Known: {', '.join(CONTRACTS)}."
        )
    return CONTRACTS[consumer]
