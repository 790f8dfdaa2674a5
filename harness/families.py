"""What each family of model consists of: the one table that other modules read instead of branching.

A family names its towers by module path, the class of its attention blocks, and how both towers are fed in one
forward.  Supporting another family means another row.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Family:
    """One row: ``towers`` maps a tower to the module path prefixes that belong to it."""

    name: str
    model_classes: tuple[str, ...]
    towers: dict[str, tuple[str, ...]]
    attention_classes: tuple[str, ...]


CLIP = Family(
    name="clip",
    model_classes=("CLIPModel",),
    towers={"vision": ("vision_model.", "visual_projection"), "text": ("text_model.", "text_projection")},
    attention_classes=("CLIPAttention",),
)
FAMILIES = (CLIP,)

_LAYER = re.compile(r"\.(?:layers|blocks|resblocks)\.(\d+)(?:\.|$)")


def of(model: nn.Module) -> Family:
    """The row of *model*, by the name of its class or of a class it derives from (ModelOpt wraps classes).

    Raises:
        TypeError: no row has it.
    """
    names = {cls.__name__ for cls in type(model).__mro__}
    for family in FAMILIES:
        if names & set(family.model_classes):
            return family
    known = ", ".join(name for family in FAMILIES for name in family.model_classes)
    raise TypeError(f"{type(model).__name__} is of no known family; known: {known}")


def tower_of(family: Family, module: str) -> str:
    """The tower that the module path *module* lies in, or ``none``."""
    return next((t for t, prefixes in family.towers.items() if module.startswith(prefixes)), "none")


def layer_of(module: str) -> int | None:
    """The number of the encoder layer in a module path; None outside the layers."""
    match = _LAYER.search(module)
    return int(match[1]) if match else None


def sample_inputs(model: nn.Module, batch: int = 2) -> dict[str, Tensor]:
    """Inputs of the right shapes for one forward of every tower, on the model's device: seeded noise and tokens."""
    config: Any = model.config
    parameter = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    vision, text = config.vision_config, config.text_config
    pixels = torch.randn(batch, 3, vision.image_size, vision.image_size, generator=generator)
    ids = torch.randint(1, max(2, text.vocab_size - 2), (batch, text.max_position_embeddings), generator=generator)
    ids[:, -1] = text.eos_token_id if text.eos_token_id != 2 else text.vocab_size - 1
    return {"pixel_values": pixels.to(parameter.device, parameter.dtype), "input_ids": ids.to(parameter.device)}
