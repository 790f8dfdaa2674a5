"""Published architectures on the meta device: the right modules in the right sizes, no weights, no
memory.

A recipe's structure can be gated on each of them in a second or so.  Sizes are from the
checkpoints' own config.json (openai/clip-vit-*, laion/CLIP-ViT-*, google/siglip-*,
google/siglip2-*) and from open_clip's model configurations.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from harness import compat  # noqa: F401  (before transformers)
from harness.errors import UsageError
from harness.models import openclip
from harness.models.checkpoint_files import EMBEDDED

Sizes = dict[str, Any]


@dataclass(frozen=True)
class Architecture:
    """A published architecture: the family in whose name it is gated, and what builds it on torch's
    default device.

    ``sizes`` are the settings of its configuration, empty where the library knows them by a name.
    """

    family: str
    make: Callable[[], nn.Module]
    sizes: Sizes = field(default_factory=dict)


def _sizes(width: int, layers: int, heads: int, **more: Any) -> Sizes:
    return {
        "hidden_size": width,
        "intermediate_size": more.pop("mlp", 4 * width),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        **more,
    }


def _clip(vision: Sizes, text: Sizes, projection: int) -> Architecture:
    shared = {"projection_dim": projection}
    sizes = {"vision_config": vision | shared, "text_config": text | shared, **shared}
    return Architecture("clip", partial(_built_of, "CLIPConfig", "CLIPModel", sizes), sizes)


def _siglip(vision: Sizes, text: Sizes, naflex: bool = False) -> Architecture:
    name = "Siglip2" if naflex else "Siglip"
    words = {
        "max_position_embeddings": 64,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    sizes = {"vision_config": vision, "text_config": words | text}
    make = partial(_built_of, f"{name}Config", f"{name}Model", sizes)
    return Architecture(name.lower(), make, sizes)


def _built_of(config_class: str, model_class: str, sizes: Sizes) -> nn.Module:
    import transformers

    config = getattr(transformers, config_class)(**copy.deepcopy(sizes))
    config._attn_implementation = "sdpa"
    return getattr(transformers, model_class)(config)  # type: ignore[no-any-return]


def _embedded() -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig.from_pretrained(EMBEDDED)
    config._attn_implementation = "sdpa"
    return CLIPModel(config)  # type: ignore[no-any-return]


_CLIP: dict[str, tuple[Sizes, Sizes, int]] = {
    "ViT-B-32": (_sizes(768, 12, 12, image_size=224, patch_size=32), _sizes(512, 12, 8), 512),
    "ViT-B-16": (_sizes(768, 12, 12, image_size=224, patch_size=16), _sizes(512, 12, 8), 512),
    "ViT-L-14": (_sizes(1024, 24, 16, image_size=224, patch_size=14), _sizes(768, 12, 12), 768),
    "ViT-L-14-336": (_sizes(1024, 24, 16, image_size=336, patch_size=14), _sizes(768, 12, 12), 768),
    "ViT-H-14": (
        _sizes(1280, 32, 16, image_size=224, patch_size=14, hidden_act="gelu"),
        _sizes(1024, 24, 16, hidden_act="gelu"),
        1024,
    ),
    "ViT-g-14": (
        _sizes(1408, 40, 16, mlp=6144, image_size=224, patch_size=14, hidden_act="gelu"),
        _sizes(1024, 24, 16, hidden_act="gelu"),
        1024,
    ),
    "ViT-bigG-14": (
        _sizes(1664, 48, 16, mlp=8192, image_size=224, patch_size=14, hidden_act="gelu"),
        _sizes(1280, 32, 20, hidden_act="gelu"),
        1280,
    ),
}
_B, _L, _SO400M = _sizes(768, 12, 12), _sizes(1024, 24, 16), _sizes(1152, 27, 16, mlp=4304)
_GIANT = _sizes(1536, 40, 16)
_OLD, _NEW = {"vocab_size": 32000}, {"vocab_size": 256000}
_SIGLIP: dict[str, tuple[Sizes, Sizes]] = {
    "SigLIP-B-16-224": (_B | {"image_size": 224, "patch_size": 16}, _B | _OLD),
    "SigLIP-so400m-14-384": (_SO400M | {"image_size": 384, "patch_size": 14}, _SO400M | _OLD),
    "SigLIP2-B-16-224": (_B | {"image_size": 224, "patch_size": 16}, _B | _NEW),
    "SigLIP2-L-16-256": (_L | {"image_size": 256, "patch_size": 16}, _L | _NEW),
    "SigLIP2-so400m-14-384": (_SO400M | {"image_size": 384, "patch_size": 14}, _SO400M | _NEW),
    "SigLIP2-giant-16-256": (
        _GIANT | {"image_size": 256, "patch_size": 16},
        _SO400M | _NEW | {"projection_size": 1536},
    ),
}
_NAFLEX: dict[str, tuple[Sizes, Sizes]] = {
    "SigLIP2-B-16-naflex": (_B | {"num_patches": 256, "patch_size": 16}, _B | _NEW),
    "SigLIP2-so400m-16-naflex": (_SO400M | {"num_patches": 256, "patch_size": 16}, _SO400M | _NEW),
}
_OPEN_CLIP = (
    "ViT-B-16",
    "ViT-L-14",
    "ViT-H-14",
    "ViT-g-14",
    "ViT-bigG-14",
    "EVA02-B-16",
    "EVA02-L-14",
    "EVA02-E-14-plus",
    "ViT-B-16-SigLIP",
)

ARCHITECTURES: dict[str, Architecture] = {
    **{name: _clip(*sizes) for name, sizes in _CLIP.items()},
    **{name: _siglip(*sizes) for name, sizes in _SIGLIP.items()},
    **{name: _siglip(*sizes, naflex=True) for name, sizes in _NAFLEX.items()},
    **{
        f"open_clip-{n}": Architecture("open_clip", partial(openclip.build_published, n))
        for n in _OPEN_CLIP
    },
}


def of_family(family: str) -> tuple[str, ...]:
    """The architectures that a model of *family* stands for; a single tower stands for those of the
    whole.
    """
    whole = family.partition("-")[0]
    return tuple(name for name, known in ARCHITECTURES.items() if known.family == whole)


def build(name: str) -> nn.Module:
    """The model of a published architecture, or of ``embedded``, on the meta device: no weights, no
    memory.

    Raises:
        UsageError: the name is not in ARCHITECTURES.
    """
    return _built(name, torch.device("meta"))


def random(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    """The same on the CPU with the library's own initial weights, drawn from *seed*: as heavy and
    as slow as the real one, and knowing nothing.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _built(name, torch.device("cpu")).to(dtype)


def _built(name: str, device: torch.device) -> nn.Module:
    if name != "embedded" and name not in ARCHITECTURES:
        raise UsageError(
            f"architecture {name}", "is not known", f"Known: embedded, {', '.join(ARCHITECTURES)}."
        )
    with device:
        model = _embedded() if name == "embedded" else ARCHITECTURES[name].make()
    return model.eval().requires_grad_(False)
