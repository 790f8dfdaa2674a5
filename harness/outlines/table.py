"""The table of architectures: language models, vision-language models and vision encoders in their
published sizes.

A row holds facts: the library's class, the sizes of the checkpoint's own ``config.json``
(``source`` names the checkpoint), its parts by the paths of their modules, and which lists of
layers repeat.  CLIP, SigLIP and SigLIP 2 are in :mod:`harness.outlines.rows`.  Nothing here
imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Sizes = dict[str, Any]
Parts = Mapping[str, tuple[str, ...]]

#: The parts of a model, in the order in which a table shows them.
PARTS = ("vision", "projector", "language", "experts", "head", "other")


@dataclass(frozen=True)
class Stack:
    """A list of layers that repeats.

    Layers of one kind are alike: the first, the last and one of each kind are built, and counted as
    all of their kind.

    Attributes:
        path: the module path of the list.
        section: the part of the configuration that describes it; empty: the configuration itself.
        count: the setting that holds its length; empty where ``lists`` alone decide it.
        lists: settings that hold one value for each layer.
        indices: settings that hold the numbers of the layers which are of another kind.
        first: the setting that says how many layers at the beginning are of another kind.
        also: the paths of other lists that the same settings describe.
    """

    path: str
    section: str = ""
    count: str = "num_hidden_layers"
    lists: tuple[str, ...] = ()
    indices: tuple[str, ...] = ()
    first: str = ""
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One architecture.

    Attributes:
        name: what ``--architectures`` calls it: the checkpoint's name.
        family: the ``model_type`` of its configuration, which is what recipe trees call its folder.
        model_class: the class of transformers that is built.
        source: where the sizes are published.
        sizes: the settings of the configuration.
        stacks: the lists of layers that repeat.
        parts: the part that a module belongs to, by prefixes of its path; the longest prefix wins.
        experts: the section and setting that hold the number of routed experts, if there are any.
        folders: other names of folders in a recipe tree that mean this architecture.
        panel: whether general recipes are gated on it without being asked to.
    """

    name: str
    family: str
    model_class: str
    source: str
    sizes: Sizes
    stacks: tuple[Stack, ...]
    parts: Parts
    experts: tuple[str, str] | None = None
    folders: tuple[str, ...] = ()
    panel: bool = True

    @property
    def sees(self) -> bool:
        """Whether it is a language model with a vision tower, which recipes leave alone."""
        return self.panel and "vision" in self.parts


def _text(width: int, mlp: int, layers: int, heads: int, kv: int, **more: Any) -> Sizes:
    return {
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        **more,
    }


def _vision(width: int, mlp: int, layers: int, heads: int, **more: Any) -> Sizes:
    return {
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        **more,
    }


def _hybrid(pattern: str) -> list[str]:
    """The kinds of Nemotron-H's layers from the letters of ``hybrid_override_pattern``."""
    kinds = {"M": "linear_attention", "E": "moe", "*": "full_attention", "-": "mlp"}
    return [kinds[letter] for letter in pattern]


_LANGUAGE = {"language": ("model.",), "head": ("lm_head",)}
_LAYERS = (Stack("model.layers"),)
_MIXED = (Stack("model.layers", lists=("layer_types",)),)

#: Vision-language models of transformers: the parts have these paths in most of them.
_SEEING = {
    "vision": ("model.vision_tower.", "model.vision_model."),
    "projector": ("model.multi_modal_projector", "model.connector.", "model.mm_projector."),
    "language": ("model.language_model.", "model.text_model."),
    "head": ("lm_head",),
}
_QWEN_PARTS = {
    "vision": ("model.visual.",),
    "projector": ("model.visual.merger.", "model.visual.deepstack_merger_list."),
    "language": ("model.language_model.",),
    "head": ("lm_head",),
}
_DECODER = Stack("model.language_model.layers", "text_config")
_MIXED_DECODER = Stack("model.language_model.layers", "text_config", lists=("layer_types",))
_SIGLIP_LAYERS = Stack("model.vision_tower.encoder.layers", "vision_config")
_CLIP_LAYERS = Stack("model.vision_tower.encoder.layers", "vision_config")
_QWEN_BLOCKS = Stack("model.visual.blocks", "vision_config", "depth")

_CLIP_L_336 = _vision(
    1024, 4096, 24, 16, image_size=336, patch_size=14, projection_dim=768, vocab_size=32000
) | {"model_type": "clip_vision_model"}
_SO400M = _vision(1152, 4304, 27, 16, patch_size=14) | {"model_type": "siglip_vision_model"}
_GEMMA4 = {
    "head_dim": 256,
    "global_head_dim": 512,
    "attention_k_eq_v": True,
    "hidden_size_per_layer_input": 0,
}
_GEMMA4_26B = _text(2816, 2112, 30, 16, 8, **_GEMMA4) | {
    "num_global_key_value_heads": 2,
    "enable_moe_block": True,
    "num_experts": 128,
    "top_k_experts": 8,
    "moe_intermediate_size": 704,
}
_GEMMA4_VISION = _vision(1152, 4304, 27, 16, num_key_value_heads=16, head_dim=72)
_QWEN2_7B = _text(3584, 18944, 28, 28, 4) | {"model_type": "qwen2"}

PUBLISHED = (
    # -- text alone --------------------------------------------------------------------------------
    Row(
        "Llama-3.1-8B",
        "llama",
        "LlamaForCausalLM",
        "meta-llama/Llama-3.1-8B",
        _text(4096, 14336, 32, 32, 8, vocab_size=128256),
        _LAYERS,
        _LANGUAGE,
        folders=("llama3",),
    ),
    Row(
        "Llama-3.1-70B",
        "llama",
        "LlamaForCausalLM",
        "meta-llama/Llama-3.1-70B",
        _text(8192, 28672, 80, 64, 8, vocab_size=128256),
        _LAYERS,
        _LANGUAGE,
    ),
    Row(
        "Qwen2.5-7B",
        "qwen2",
        "Qwen2ForCausalLM",
        "Qwen/Qwen2.5-7B",
        _text(3584, 18944, 28, 28, 4, vocab_size=152064),
        _MIXED,
        _LANGUAGE,
    ),
    Row(
        "Qwen3-8B",
        "qwen3",
        "Qwen3ForCausalLM",
        "Qwen/Qwen3-8B",
        _text(4096, 12288, 36, 32, 8, head_dim=128, vocab_size=151936),
        _MIXED,
        _LANGUAGE,
    ),
    Row(
        "Qwen3-30B-A3B",
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        "Qwen/Qwen3-30B-A3B",
        _text(2048, 6144, 48, 32, 4, head_dim=128, vocab_size=151936)
        | {"moe_intermediate_size": 768, "num_experts": 128},
        (Stack("model.layers", indices=("mlp_only_layers",)),),
        _LANGUAGE,
        ("", "num_local_experts"),
    ),
    Row(
        "Qwen3-Next-80B-A3B",
        "qwen3_next",
        "Qwen3NextForCausalLM",
        "Qwen/Qwen3-Next-80B-A3B-Instruct",
        _text(2048, 5120, 48, 16, 2, head_dim=256, vocab_size=151936)
        | {
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
            "num_experts": 512,
        },
        (Stack("model.layers", lists=("layer_types",), indices=("mlp_only_layers",)),),
        _LANGUAGE,
        ("", "num_experts"),
    ),
    Row(
        "Mixtral-8x7B",
        "mixtral",
        "MixtralForCausalLM",
        "mistralai/Mixtral-8x7B-v0.1",
        _text(4096, 14336, 32, 32, 8, vocab_size=32000, num_local_experts=8),
        _LAYERS,
        _LANGUAGE,
        ("", "num_local_experts"),
    ),
    Row(
        "DeepSeek-V3",
        "deepseek_v3",
        "DeepseekV3ForCausalLM",
        "deepseek-ai/DeepSeek-V3",
        _text(7168, 18432, 61, 128, 128, vocab_size=129280)
        | {
            "moe_intermediate_size": 2048,
            "n_routed_experts": 256,
            "first_k_dense_replace": 3,
            "q_lora_rank": 1536,
            "kv_lora_rank": 512,
        },
        (Stack("model.layers", first="first_k_dense_replace"),),
        _LANGUAGE,
        ("", "n_routed_experts"),
        folders=("deepseek", "deepseek_r1"),
    ),
    Row(
        "Nemotron-H-8B",
        "nemotron_h",
        "NemotronHForCausalLM",
        "nvidia/Nemotron-H-8B-Base-8K",
        {
            "hidden_size": 4096,
            "intermediate_size": 21504,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "mamba_num_heads": 128,
            "mamba_head_dim": 64,
            "ssm_state_size": 128,
            "n_groups": 8,
            "vocab_size": 131072,
            "layers_block_type": _hybrid("M-M-M-M*-" + "M-M-M-M-M*-" * 3 + "M-M-M-M-M-"),
        },
        (Stack("model.layers", count="", lists=("layers_block_type",)),),
        _LANGUAGE,
        folders=("NVIDIA-Nemotron-3-Nano-4B-BF16",),
    ),
    Row(
        "Nemotron-3-Nano-30B-A3B",
        "nemotron_h",
        "NemotronHForCausalLM",
        "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
        {
            "hidden_size": 2688,
            "intermediate_size": 1856,
            "num_attention_heads": 32,
            "num_key_value_heads": 2,
            "head_dim": 128,
            "mamba_num_heads": 64,
            "mamba_head_dim": 64,
            "ssm_state_size": 128,
            "n_groups": 8,
            "vocab_size": 131072,
            "n_routed_experts": 128,
            "moe_intermediate_size": 1856,
            "moe_shared_expert_intermediate_size": 3712,
            "layers_block_type": _hybrid("MEMEM*E" + "MEMEM*E" * 4 + "MEMEMEM*EMEMEMEME"),
        },
        (Stack("model.layers", count="", lists=("layers_block_type",)),),
        _LANGUAGE,
        ("", "n_routed_experts"),
        folders=("NVIDIA-Nemotron-3.5-Lightning-30B-A3B-BF16",),
    ),
    Row(
        "Nemotron-3-Super-120B-A12B",
        "nemotron_h",
        "NemotronHForCausalLM",
        "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16",
        {
            "hidden_size": 4096,
            "intermediate_size": 2688,
            "num_attention_heads": 32,
            "num_key_value_heads": 2,
            "head_dim": 128,
            "mamba_num_heads": 128,
            "mamba_head_dim": 64,
            "ssm_state_size": 128,
            "n_groups": 8,
            "vocab_size": 131072,
            "n_routed_experts": 512,
            "moe_intermediate_size": 2688,
            "moe_shared_expert_intermediate_size": 5376,
            "moe_latent_size": 1024,
            "layers_block_type": _hybrid(
                "MEMEMEM*E" + "MEMEMEM*E" * 2 + "MEMEMEMEM*E" * 4 + "MEMEMEM*EMEMEMEME"
            ),
        },
        (Stack("model.layers", count="", lists=("layers_block_type",)),),
        _LANGUAGE,
        ("", "n_routed_experts"),
        folders=(
            "NVIDIA-Nemotron-3-Super-120B-A12B-BF16",
            "NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16",
        ),
    ),
    Row(
        "Gemma-7B",
        "gemma",
        "GemmaForCausalLM",
        "google/gemma-7b",
        _text(3072, 24576, 28, 16, 16, head_dim=256, vocab_size=256000),
        _LAYERS,
        _LANGUAGE,
    ),
    Row(
        "Gemma-3-1B",
        "gemma3_text",
        "Gemma3ForCausalLM",
        "google/gemma-3-1b-it",
        _text(1152, 6912, 26, 4, 1, head_dim=256, vocab_size=262144, sliding_window=512),
        _MIXED,
        _LANGUAGE,
    ),
    Row(
        "Phi-4",
        "phi3",
        "Phi3ForCausalLM",
        "microsoft/phi-4",
        _text(5120, 17920, 40, 40, 10, vocab_size=100352, pad_token_id=100349),
        _LAYERS,
        _LANGUAGE,
        folders=("phi4",),
    ),
    Row(
        "gpt-oss-20b",
        "gpt_oss",
        "GptOssForCausalLM",
        "openai/gpt-oss-20b",
        _text(2880, 2880, 24, 64, 8, head_dim=64, vocab_size=201088, num_local_experts=32),
        _MIXED,
        _LANGUAGE,
        ("", "num_local_experts"),
    ),
    Row(
        "MiniMax-M2",
        "minimax_m2",
        "MiniMaxM2ForCausalLM",
        "MiniMaxAI/MiniMax-M2",
        _text(3072, 1536, 62, 48, 8, head_dim=128, vocab_size=200064, num_local_experts=256),
        _LAYERS,
        _LANGUAGE,
        ("", "num_local_experts"),
    ),
    Row(
        "MPT-7B",
        "mpt",
        "MptForCausalLM",
        "mosaicml/mpt-7b",
        {"d_model": 4096, "n_layers": 32, "n_heads": 32, "vocab_size": 50432},
        (Stack("transformer.blocks", count="n_layers"),),
        {"language": ("transformer.",), "head": ("lm_head",)},
    ),
    # -- text and pictures -------------------------------------------------------------------------
    Row(
        "LLaVA-1.5-7B",
        "llava",
        "LlavaForConditionalGeneration",
        "llava-hf/llava-1.5-7b-hf",
        {
            "text_config": _text(4096, 11008, 32, 32, 32, vocab_size=32064)
            | {"model_type": "llama"},
            "vision_config": _CLIP_L_336,
        },
        (_DECODER, _CLIP_LAYERS),
        _SEEING,
    ),
    Row(
        "LLaVA-NeXT-7B",
        "llava_next",
        "LlavaNextForConditionalGeneration",
        "llava-hf/llava-v1.6-mistral-7b-hf",
        {
            "text_config": _text(4096, 14336, 32, 32, 8, vocab_size=32064)
            | {"model_type": "mistral"},
            "vision_config": _CLIP_L_336,
        },
        (_DECODER, _CLIP_LAYERS),
        _SEEING,
    ),
    Row(
        "LLaVA-OneVision-7B",
        "llava_onevision",
        "LlavaOnevisionForConditionalGeneration",
        "llava-hf/llava-onevision-qwen2-7b-ov-hf",
        {
            "text_config": _QWEN2_7B | {"vocab_size": 152000},
            "vision_config": _SO400M
            | {"num_hidden_layers": 26, "image_size": 384, "vision_use_head": False},
        },
        (_MIXED_DECODER, _SIGLIP_LAYERS),
        _SEEING,
    ),
    Row(
        "Qwen2-VL-7B",
        "qwen2_vl",
        "Qwen2VLForConditionalGeneration",
        "Qwen/Qwen2-VL-7B-Instruct",
        {
            "text_config": _text(3584, 18944, 28, 28, 4, vocab_size=152064),
            "vision_config": {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "hidden_size": 3584},
        },
        (_MIXED_DECODER, _QWEN_BLOCKS),
        _QWEN_PARTS,
    ),
    Row(
        "Qwen2.5-VL-7B",
        "qwen2_5_vl",
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen/Qwen2.5-VL-7B-Instruct",
        {
            "text_config": _text(3584, 18944, 28, 28, 4, vocab_size=152064),
            "vision_config": {
                "depth": 32,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "num_heads": 16,
                "out_hidden_size": 3584,
            },
        },
        (_MIXED_DECODER, _QWEN_BLOCKS),
        _QWEN_PARTS,
    ),
    Row(
        "Qwen3-VL-8B",
        "qwen3_vl",
        "Qwen3VLForConditionalGeneration",
        "Qwen/Qwen3-VL-8B-Instruct",
        {
            "text_config": _text(4096, 12288, 36, 32, 8, head_dim=128, vocab_size=151936),
            "vision_config": {
                "depth": 27,
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "out_hidden_size": 4096,
            },
        },
        (_DECODER, _QWEN_BLOCKS),
        _QWEN_PARTS,
    ),
    Row(
        "Qwen3-VL-30B-A3B",
        "qwen3_vl_moe",
        "Qwen3VLMoeForConditionalGeneration",
        "Qwen/Qwen3-VL-30B-A3B-Instruct",
        {
            "text_config": _text(2048, 6144, 48, 32, 4, head_dim=128, vocab_size=151936)
            | {"moe_intermediate_size": 768, "num_experts": 128},
            "vision_config": {
                "depth": 27,
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "out_hidden_size": 2048,
            },
        },
        (
            Stack("model.language_model.layers", "text_config", indices=("mlp_only_layers",)),
            _QWEN_BLOCKS,
        ),
        _QWEN_PARTS,
        ("text_config", "num_experts"),
    ),
    Row(
        "Qwen3.5-9B",
        "qwen3_5",
        "Qwen3_5ForConditionalGeneration",
        "Qwen/Qwen3.5-9B (the defaults of transformers 5.14)",
        {"vision_config": {"out_hidden_size": 4096}},
        (_MIXED_DECODER, _QWEN_BLOCKS),
        _QWEN_PARTS,
        folders=("qwen3_6",),
    ),
    Row(
        "Qwen3.5-35B-A3B",
        "qwen3_5_moe",
        "Qwen3_5MoeForConditionalGeneration",
        "Qwen/Qwen3.5-35B-A3B (the defaults of transformers 5.14)",
        {"vision_config": {"out_hidden_size": 2048}},
        (_MIXED_DECODER, _QWEN_BLOCKS),
        _QWEN_PARTS,
        ("text_config", "num_experts"),
        folders=("qwen3_6_moe",),
    ),
    Row(
        "Gemma-3-4B",
        "gemma3",
        "Gemma3ForConditionalGeneration",
        "google/gemma-3-4b-it",
        {
            "text_config": _text(2560, 10240, 34, 8, 4, head_dim=256, sliding_window=1024),
            "vision_config": _SO400M | {"image_size": 896, "vision_use_head": False},
        },
        (_MIXED_DECODER, _SIGLIP_LAYERS),
        _SEEING,
    ),
    Row(
        "Gemma-3-27B",
        "gemma3",
        "Gemma3ForConditionalGeneration",
        "google/gemma-3-27b-it",
        {
            "text_config": _text(5376, 21504, 62, 32, 16, head_dim=128, sliding_window=1024),
            "vision_config": _SO400M | {"image_size": 896, "vision_use_head": False},
        },
        (_MIXED_DECODER, _SIGLIP_LAYERS),
        _SEEING,
    ),
    Row(
        "Gemma-4-31B",
        "gemma4",
        "Gemma4ForConditionalGeneration",
        "google/gemma-4-31B-it",
        {
            "text_config": _text(5376, 21504, 60, 32, 16, **_GEMMA4)
            | {"num_global_key_value_heads": 4},
            "vision_config": _GEMMA4_VISION,
        },
        (_MIXED_DECODER, Stack("model.vision_tower.encoder.layers", "vision_config")),
        {**_SEEING, "projector": ("model.embed_vision.",)},
    ),
    Row(
        "Gemma-4-26B-A4B",
        "gemma4",
        "Gemma4ForConditionalGeneration",
        "google/gemma-4-26B-A4B-it",
        {"text_config": _GEMMA4_26B, "vision_config": _GEMMA4_VISION},
        (_MIXED_DECODER, Stack("model.vision_tower.encoder.layers", "vision_config")),
        {**_SEEING, "projector": ("model.embed_vision.",)},
        ("text_config", "num_experts"),
    ),
    Row(
        "DiffusionGemma-26B-A4B",
        "diffusion_gemma",
        "DiffusionGemmaForBlockDiffusion",
        "google/diffusiongemma-26B-A4B-it, with the sizes of google/gemma-4-26B-A4B-it",
        {"text_config": _GEMMA4_26B, "vision_config": _GEMMA4_VISION},
        (
            Stack(
                "model.decoder.layers",
                "text_config",
                lists=("layer_types",),
                also=("model.encoder.language_model.layers",),
            ),
            Stack("model.encoder.vision_tower.encoder.layers", "vision_config"),
        ),
        {
            "vision": ("model.encoder.vision_tower.",),
            "projector": ("model.encoder.embed_vision.",),
            "language": ("model.",),
            "head": ("lm_head",),
        },
        ("text_config", "num_experts"),
    ),
    Row(
        "PaliGemma-3B-224",
        "paligemma",
        "PaliGemmaForConditionalGeneration",
        "google/paligemma-3b-pt-224",
        {
            "text_config": _text(2048, 16384, 18, 8, 1, head_dim=256, vocab_size=257216)
            | {"model_type": "gemma"},
            "vision_config": _SO400M | {"image_size": 224, "vision_use_head": False},
            "projection_dim": 2048,
        },
        (_DECODER, _SIGLIP_LAYERS),
        _SEEING,
    ),
    Row(
        "Llama-4-Scout-17B-16E",
        "llama4",
        "Llama4ForConditionalGeneration",
        "meta-llama/Llama-4-Scout-17B-16E-Instruct",
        {
            "text_config": _text(5120, 8192, 48, 40, 8, head_dim=128, vocab_size=202048)
            | {"intermediate_size_mlp": 16384, "num_local_experts": 16},
            "vision_config": _vision(1408, 5632, 34, 16, image_size=336, patch_size=14)
            | {
                "vision_output_dim": 4096,
                "projector_input_dim": 4096,
                "projector_output_dim": 4096,
            },
        },
        (
            Stack(
                "language_model.model.layers",
                "text_config",
                lists=("layer_types", "no_rope_layers"),
                indices=("moe_layers",),
            ),
            Stack("vision_model.model.layers", "vision_config"),
        ),
        {
            "vision": ("vision_model.",),
            "projector": ("multi_modal_projector.",),
            "language": ("language_model.",),
            "head": ("language_model.lm_head",),
        },
        ("text_config", "num_local_experts"),
    ),
    Row(
        "Llama-3.2-11B-Vision",
        "mllama",
        "MllamaForConditionalGeneration",
        "meta-llama/Llama-3.2-11B-Vision-Instruct",
        {
            "text_config": _text(4096, 14336, 40, 32, 8, vocab_size=128256),
            "vision_config": {
                "hidden_size": 1280,
                "intermediate_size": 5120,
                "num_hidden_layers": 32,
                "num_global_layers": 8,
                "image_size": 560,
                "vision_output_dim": 7680,
            },
        },
        (
            Stack(
                "model.language_model.layers", "text_config", indices=("cross_attention_layers",)
            ),
            Stack("model.vision_model.transformer.layers", "vision_config"),
            Stack(
                "model.vision_model.global_transformer.layers", "vision_config", "num_global_layers"
            ),
        ),
        _SEEING,
    ),
    Row(
        "InternVL3-8B",
        "internvl",
        "InternVLForConditionalGeneration",
        "OpenGVLab/InternVL3-8B-hf",
        {
            "text_config": _QWEN2_7B | {"vocab_size": 151674},
            "vision_config": _vision(1024, 4096, 24, 16, image_size=[448, 448]),
        },
        (_MIXED_DECODER, Stack("model.vision_tower.encoder.layer", "vision_config")),
        _SEEING,
    ),
    Row(
        "Idefics3-8B",
        "idefics3",
        "Idefics3ForConditionalGeneration",
        "HuggingFaceM4/Idefics3-8B-Llama3",
        {
            "text_config": _text(4096, 14336, 32, 32, 8, vocab_size=128259)
            | {"model_type": "llama"},
            "vision_config": _vision(1152, 4304, 27, 16, image_size=364, patch_size=14),
            "scale_factor": 2,
        },
        (
            Stack("model.text_model.layers", "text_config"),
            Stack("model.vision_model.encoder.layers", "vision_config"),
        ),
        _SEEING,
    ),
    Row(
        "SmolVLM2-2.2B",
        "smolvlm",
        "SmolVLMForConditionalGeneration",
        "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
        {
            "text_config": _text(2048, 8192, 24, 32, 32, vocab_size=49280)
            | {"model_type": "llama"},
            "vision_config": _vision(1152, 4304, 27, 16, image_size=384, patch_size=14),
            "scale_factor": 3,
        },
        (
            Stack("model.text_model.layers", "text_config"),
            Stack("model.vision_model.encoder.layers", "vision_config"),
        ),
        _SEEING,
    ),
    Row(
        "Pixtral-12B",
        "llava",
        "LlavaForConditionalGeneration",
        "mistral-community/pixtral-12b",
        {
            "text_config": _text(5120, 14336, 40, 32, 8, head_dim=128, vocab_size=131072)
            | {"model_type": "mistral"},
            "vision_config": _vision(1024, 4096, 24, 16, image_size=1024, patch_size=16)
            | {"model_type": "pixtral"},
            "vision_feature_layer": -1,
        },
        (_DECODER, Stack("model.vision_tower.transformer.layers", "vision_config")),
        _SEEING,
        folders=("pixtral",),
    ),
    Row(
        "Mistral-Small-3.1-24B",
        "mistral3",
        "Mistral3ForConditionalGeneration",
        "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
        {
            "text_config": _text(5120, 32768, 40, 32, 8, head_dim=128, vocab_size=131072)
            | {"model_type": "mistral"},
            "vision_config": _vision(1024, 4096, 24, 16, image_size=1540, patch_size=14)
            | {"model_type": "pixtral"},
        },
        (_DECODER, Stack("model.vision_tower.transformer.layers", "vision_config")),
        _SEEING,
        folders=("Mistral-Medium-3.5-128B",),
    ),
    Row(
        "Kimi-K2.5",
        "kimi_k25",
        "Kimi_K25ForConditionalGeneration",
        "moonshotai/Kimi-K2.5",
        {
            "text_config": _text(7168, 18432, 61, 64, 64, vocab_size=163840)
            | {
                "model_type": "deepseek_v3",
                "moe_intermediate_size": 2048,
                "n_routed_experts": 384,
                "first_k_dense_replace": 1,
                "n_group": 1,
                "topk_group": 1,
            },
            "vision_config": _vision(1152, 4304, 27, 16),
        },
        (
            Stack("model.language_model.layers", "text_config", first="first_k_dense_replace"),
            Stack("model.vision_tower.layers", "vision_config"),
        ),
        _SEEING,
        ("text_config", "n_routed_experts"),
        folders=("kimi_k2", "kimi_vl"),
    ),
    Row(
        "MiniMax-M3-VL",
        "minimax_m3_vl",
        "MiniMaxM3SparseForConditionalGeneration",
        "the default configuration of transformers 5.14",
        {},
        (
            Stack(
                "model.language_model.layers",
                "text_config",
                lists=("layer_types", "mlp_layer_types"),
            ),
            Stack("model.vision_tower.layers", "vision_config"),
        ),
        _SEEING,
        ("text_config", "num_local_experts"),
    ),
    # -- pictures alone ----------------------------------------------------------------------------
    Row(
        "DINOv2-L",
        "dinov2",
        "Dinov2Model",
        "facebook/dinov2-large",
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
        | {"image_size": 518, "patch_size": 14},
        (Stack("encoder.layer"),),
        {"vision": ("",)},
        panel=False,
    ),
    Row(
        "DINOv2-giant",
        "dinov2",
        "Dinov2Model",
        "facebook/dinov2-giant",
        {"hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24}
        | {"image_size": 518, "patch_size": 14, "use_swiglu_ffn": True},
        (Stack("encoder.layer"),),
        {"vision": ("",)},
        panel=False,
    ),
    Row(
        "ViT-B-16-224",
        "vit",
        "ViTForImageClassification",
        "google/vit-base-patch16-224",
        _vision(768, 3072, 12, 12, image_size=224, patch_size=16),
        (Stack("vit.layers"),),
        {"vision": ("vit.",), "head": ("classifier",)},
        panel=False,
    ),
    Row(
        "OWL-ViT-B-32",
        "owlvit",
        "OwlViTForObjectDetection",
        "google/owlvit-base-patch32",
        {},
        (
            Stack("owlvit.text_model.encoder.layers", "text_config"),
            Stack("owlvit.vision_model.encoder.layers", "vision_config"),
        ),
        {
            "vision": ("owlvit.vision_model.", "owlvit.visual_projection", "layer_norm"),
            "language": ("owlvit.text_model.", "owlvit.text_projection"),
            "head": ("class_head", "box_head"),
        },
        panel=False,
    ),
)
