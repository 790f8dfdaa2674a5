"""How far quantization moves the tokens that a consumer reads, token by token."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.errors import UsageError
from harness.statistics.distribution import Measurement
from harness.statistics.limits import Limits

#: A token whose norm is above so many medians is an outlier: the few patches in which ViTs keep
#: what belongs to no place of the picture.
OUTLIER = 2.0

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Moved:
    """What quantization did to the tokens of one read.

    Attributes:
        measurements: each number with its limit.
        worst: names of the items whose tokens moved most, with the error of each token, the worst
            item first.
        where: the worst token: its item and its position.
    """

    measurements: tuple[Measurement, ...]
    worst: tuple[tuple[str, tuple[float, ...]], ...]
    where: tuple[str, int]

    def problems(self) -> list[str]:
        """Return the numbers beyond their limits, one line each, with the worst token."""
        item, position = self.where
        return [
            f"{measurement.message()}; worst token: {position} of {item}"
            for measurement in self.measurements
            if not measurement.ok
        ]


def compare(
    name: tuple[str, str],
    items: Sequence[str],
    reference: Tensor,
    quantized: Tensor,
    limits: Limits,
    shown: int = 6,
) -> Moved:
    """Measure the tokens of the quantized model, (items, tokens, d), against the reference's.

    Args:
        name: consumer and read.
        items: names of the pictures or texts.
        reference: its tokens.
        quantized: the quantized model's tokens of the same inputs.
        limits: the largest and smallest values allowed.
        shown: how many of the worst items are kept.

    Raises:
        UsageError: the reference gives tokens that are not finite.
    """
    before, after = reference.float(), quantized.float()
    if not bool(before.isfinite().all()):
        what = "the reference gives tokens that are not finite numbers"
        raise UsageError("/".join(name), what, "Check the reference model's weights in FP16.")
    cosine = F.cosine_similarity(before, after, dim=-1).double().numpy()
    norms = before.norm(dim=-1)
    error = ((after - before).norm(dim=-1) / norms.clamp_min(1e-12)).double().numpy()
    values = {
        "token_cosine_mean": cosine.mean(),
        "token_cosine_p1": np.quantile(cosine, 0.01),
        "token_cosine_min": cosine.min(),
        "token_error_mean": error.mean(),
        "token_error_p99": np.quantile(error, 0.99),
        "token_error_max": error.max(),
        "token_norm_change": _norm_change(norms, after.norm(dim=-1)),
    }
    if before.shape[1] > 2:
        agreement = _similarity_agreement(before, after)
        values["token_similarity_mean"] = agreement.mean()
        values["token_similarity_p1"] = np.quantile(agreement, 0.01)
    consumer, read = name
    measurements = tuple(
        Measurement(
            consumer,
            read,
            key,
            float(value),
            getattr(limits, key),
            at_most="error" in key or "change" in key,
        )
        for key, value in values.items()
    )
    # What is not a number is worse than any number.
    known = np.nan_to_num(error, nan=np.inf)
    order = np.argsort(-known.mean(axis=1), kind="stable")[:shown]
    item, position = divmod(int(known.argmax()), known.shape[1])
    return Moved(
        measurements,
        tuple((items[i], tuple(round(float(e), 4) for e in error[i])) for i in order),
        (items[item], position),
    )


def _similarity_agreement(before: Tensor, after: Tensor) -> Floats:
    """Return for each item the correlation, over all pairs of tokens, of their cosines before and
    after.
    """
    rows, columns = torch.triu_indices(before.shape[1], before.shape[1], offset=1)
    agreements = []
    for item, other in zip(before, after, strict=True):
        pairs = [
            (F.normalize(t, dim=-1) @ F.normalize(t, dim=-1).T)[rows, columns].double()
            for t in (item, other)
        ]
        first, second = (p - p.mean() for p in pairs)
        scale = first.norm() * second.norm()
        agreements.append(float(first @ second / scale) if scale != 0 else 1.0)
    return np.asarray(agreements)


def _norm_change(before: Tensor, after: Tensor) -> float:
    """The largest relative change of norm among the tokens that are outliers in either model."""
    outliers = (before > OUTLIER * before.median()) | (after > OUTLIER * after.median())
    if not bool(outliers.any()):
        return 0.0 if bool(after.isfinite().all()) else math.nan
    return float((after / before.clamp_min(1e-12) - 1).abs()[outliers].max())


def picture_uri(pixels: Tensor) -> str:
    """A picture, uint8 (3, height, width), as the URI of a PNG."""
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(stream, "png")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def error_map(pixels: Tensor, errors: Sequence[float]) -> dict[str, Any]:
    """A picture next to the error of each of its patches, row by row, for a report."""
    side = math.isqrt(len(errors))
    return {"image": picture_uri(pixels), "side": side, "errors": list(errors[-side * side :])}
