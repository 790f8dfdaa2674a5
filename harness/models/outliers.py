"""Activation outliers, planted in a CLIP without changing what it computes.

Small models lack the few huge activation channels that make large CLIPs hard to quantize (Dettmers
et al. 2022, arXiv 2208.07339).  A LayerNorm's gain and bias can be multiplied by k in chosen
channels if the Linears that read it divide the matching input columns by k (the inverse of
SmoothQuant's migration, Xiao et al. 2022, arXiv 2211.10438)::

    y_j = sum_c W[j, c] * LN(x)[c] = sum_c (W[j, c] / k_c) * (k_c * LN(x)[c])

With k a power of two both factors are exact, but for numbers that leave the dtype's normal range:
the model computes the same, and a per-tensor integer scale of the LayerNorm's output now wastes
log2 k of its bits.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import nn

from harness import digests
from harness.models import families

#: What a model reference ends in to have outliers planted: ``embedded+outliers``.
SUFFIX = "+outliers"
#: The LayerNorms of an encoder layer whose output goes to Linears and nowhere else, and these
#: Linears.
READERS = {
    "layer_norm1": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "layer_norm2": ("mlp.fc1",),
}


@dataclass(frozen=True)
class Outliers:
    """Outliers to plant: in every encoder layer of every tower, *share* of the channels becomes
    *factor* times as large.

    The channels are drawn from *seed* once a tower and stay the same through its layers, as
    outliers of large models do; at least one is chosen.
    """

    factor: float = 64.0
    share: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be planted exactly.

        Raises:
            ValueError: the factor is not a power of two above 1, or the share not in (0, 1).
        """
        if self.factor <= 1 or not math.log2(self.factor).is_integer():
            raise ValueError(
                f"factor is {self.factor}; a power of two above 1 leaves the function as it is"
            )
        if not 0 < self.share < 1:
            raise ValueError(f"share is {self.share}, not between 0 and 1")

    def channels(self, width: int, tower: int) -> list[int]:
        """Return the chosen channels, ascending, of *width* channels in the *tower*-th tower."""
        generator = torch.Generator().manual_seed(self.seed * 1000 + tower)
        count = max(1, round(self.share * width))
        return sorted(torch.randperm(width, generator=generator)[:count].tolist())

    def revision(self, of: str) -> str:
        """SHA-256 that names a model of revision *of* with these outliers."""
        return digests.of_text(f"{of}\0{sorted(asdict(self).items())}")


@torch.no_grad()
def plant(model: nn.Module, outliers: Outliers | None = None) -> dict[str, list[int]]:
    """Plant *outliers* in *model*, in place, whatever its device and dtype.

    Returns:
        The channels by the path of each LayerNorm that carries them.

    Raises:
        ValueError: a tower has no layer of the known form, so that nothing could be planted.
    """
    outliers = outliers or Outliers()
    planted: dict[str, list[int]] = {}
    for number, (side, tower) in enumerate(families.of(model).towers.items()):
        planted_any = False
        for path, norm in list(model.named_modules()):
            holder, _, name = path.rpartition(".")
            if (
                name not in READERS
                or not path.startswith(tower.prefixes)
                or not isinstance(norm, nn.LayerNorm)
            ):
                continue
            layer = model.get_submodule(holder)
            channels = outliers.channels(norm.normalized_shape[-1], number)
            _scale(
                norm,
                [layer.get_submodule(reader) for reader in READERS[name]],
                channels,
                outliers.factor,
            )
            planted[path], planted_any = channels, True
        if not planted_any:
            raise ValueError(
                f"the {side} tower of {type(model).__name__} has no {' or '.join(READERS)} to "
                f"plant in"
            )
    return planted


def _scale(
    norm: nn.LayerNorm, readers: list[nn.Module], channels: list[int], factor: float
) -> None:
    for parameter in (norm.weight, norm.bias):
        if parameter is not None:
            parameter[channels] *= factor
    for reader in readers:
        assert isinstance(reader, nn.Linear), f"{reader} reads a LayerNorm and is not a Linear"
        reader.weight[:, channels] /= factor
