"""The part of a vision-language model that sees: its vision tower and the projector behind it.

transformers has no class for it, so that a person who quantizes LLaVA's tower would have to load
LLaVA's language model.  Each class here is the library's own without the language model; it loads
the same checkpoints, of which only its own tensors are read.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

from torch import Tensor, nn

#: The class here -> transformers' class that it is a part of.
PARTS = {
    "LlavaVision": "LlavaModel",
    "LlavaNextVision": "LlavaNextModel",
    "VipLlavaVision": "VipLlavaModel",
    "LlavaOnevisionVision": "LlavaOnevisionModel",
    "PaliGemmaVision": "PaliGemmaModel",
}


def model_class(name: str) -> Any:
    """The class of a model by its name: one of PARTS, or transformers' own."""
    if name in PARTS:
        return _part(name)
    import transformers

    return getattr(transformers, name)


@cache
def _part(name: str) -> Any:
    import transformers

    whole: Any = getattr(transformers, PARTS[name])
    return type(name, (_Seeing, whole), {"__module__": __name__})


class _Seeing:
    """The tower and the projector of a vision-language model."""

    def __init__(self, config: Any) -> None:
        # A language model of no layers and few words: it is built and thrown away.
        small = copy.deepcopy(config)
        for key, value in (("layer_types", []), ("num_hidden_layers", 0), ("vocab_size", 8)):
            if hasattr(small.text_config, key):
                setattr(small.text_config, key, value)
        for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
            setattr(small.text_config, key, None)
        super().__init__(small)  # type: ignore[call-arg]  # transformers' class comes next
        part: Any = self
        part.config = config
        del part.language_model
        if "image_newline" in dict(part.named_parameters(recurse=False)):
            del part.image_newline

    def get_input_embeddings(self) -> nn.Module:
        """The first module of the tower: there are no words."""
        part: Any = self
        embeddings: nn.Module = part.vision_tower.get_input_embeddings()
        return embeddings

    def forward(self, pixel_values: Tensor, **_: Any) -> Tensor:
        """The projected tokens of each picture, (n, tokens times width)."""
        part: Any = self
        seen = part.vision_tower(pixel_values, output_hidden_states=True, return_dict=True)
        projected: Tensor = part.multi_modal_projector(self._read(seen))
        return projected.flatten(1)

    def _read(self, seen: Any) -> Tensor:
        """The tokens that the projector is given."""
        import torch

        config: Any = self.config  # type: ignore[attr-defined]
        layers = getattr(config, "vision_feature_layers", None)
        if layers is None:
            layers = getattr(config, "vision_feature_layer", None)
        if layers is None:
            return seen.last_hidden_state  # type: ignore[no-any-return]
        chosen = [layers] if isinstance(layers, int) else layers
        tokens = torch.cat([seen.hidden_states[layer] for layer in chosen], dim=-1)
        strategy = getattr(config, "vision_feature_select_strategy", "default")
        return tokens[:, 1:] if strategy == "default" else tokens
