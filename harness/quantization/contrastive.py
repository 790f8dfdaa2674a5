"""CLIP's contrastive loss on a quantized model, with gradients through its attention.

Radford et al. 2021, arXiv 2103.00020, figure 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.quantization.attention import diffusers_plugin


def contrastive(embeddings: Mapping[str, Tensor], temperature: float) -> Tensor:
    """CLIP's loss of *n* pairs: the mean cross-entropy of each picture among the words and of each
    text among pictures.

    Args:
        embeddings: (n, d) by tower, of any length; row i of both towers is one pair.
        temperature: what cosines are multiplied with.
    """
    return matched(similarities(embeddings, temperature))


def similarities(embeddings: Mapping[str, Tensor], temperature: float) -> Tensor:
    """The logits (n, n) of :func:`contrastive`: each picture's cosine with every text, times
    *temperature*.
    """
    pictures, words = (F.normalize(embeddings[tower], dim=-1) for tower in ("vision", "text"))
    return temperature * pictures @ words.T


def matched(logits: Tensor) -> Tensor:
    """Return CLIP's loss from its logits: picture i and text i are a pair."""
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


@contextmanager
def differentiable_attention() -> Iterator[None]:
    """Within the block gradients pass through diffusers' attention class.

    ModelOpt 0.47 wraps ``scaled_dot_product_attention`` into an autograd function without a
    backward, so that no model with that class can be trained, whatever its format.  Forward it
    computes the same.
    """
    plugin = diffusers_plugin()

    class Plain:
        """The wrapped function itself, under the wrapper's signature."""

        @staticmethod
        def apply(*args: Any) -> Tensor:
            names = ("attn_mask", "dropout_p", "is_causal", "scale")
            options = dict(zip(names, args[3:7], strict=False))
            output: Tensor = plugin.original_scaled_dot_product_attention(*args[:3], **options)
            return output

    with mock.patch.object(plugin, "FP8SDPA", Plain):
        yield
