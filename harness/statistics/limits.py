"""Limits beyond accuracy: what a budgets file may say of them, and what a verdict is held to."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

_EXPONENT = re.compile(r"[-+]?\d+[eE][-+]?\d+")


def _number(value: object) -> object:
    """``1e-4`` as the number that it is in YAML 1.2; PyYAML, which reads YAML 1.1, takes it for
    text.
    """
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


Number = Annotated[float, BeforeValidator(_number)]
Share = Annotated[Number, Field(ge=0, le=1)]
Cosine = Annotated[Number, Field(ge=-1, le=1)]
NonNegative = Annotated[Number, Field(ge=0)]


class Strict(BaseModel):
    """A part of a budgets file: no key that it does not have, no number for a text."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Limits(Strict):
    """Limits beyond accuracy; None: measured and reported, not limited.

    ``changed_answers`` and ``large_margin_flips`` are the largest allowed shares of the samples;
    ``kl_*`` the largest allowed divergence (nats) of the quantized answer distribution from the
    reference's; ``*_cosine_*`` the smallest allowed cosines of each embedding with the
    reference's; ``top5_agreement`` and ``retrieval_overlap`` the smallest allowed shares (see
    ``harness.statistics.distribution``).  ``token_*`` are about single tokens, as the consumers of
    a tower read them: the smallest allowed cosines and agreements of token-to-token similarities,
    the largest allowed relative errors and changes of the norm of outliers (see
    ``harness.consumers.tokens``).
    """

    changed_answers: Share | None = None
    large_margin_flips: Share | None = None
    kl_mean: NonNegative | None = None
    kl_p99: NonNegative | None = None
    kl_max: NonNegative | None = None
    image_cosine_mean: Cosine | None = None
    image_cosine_p1: Cosine | None = None
    image_cosine_min: Cosine | None = None
    text_cosine_mean: Cosine | None = None
    text_cosine_p1: Cosine | None = None
    text_cosine_min: Cosine | None = None
    top5_agreement: Share | None = None
    retrieval_overlap: Share | None = None
    token_cosine_mean: Cosine | None = None
    token_cosine_p1: Cosine | None = None
    token_cosine_min: Cosine | None = None
    token_error_mean: NonNegative | None = None
    token_error_p99: NonNegative | None = None
    token_error_max: NonNegative | None = None
    token_similarity_mean: Cosine | None = None
    token_similarity_p1: Cosine | None = None
    token_norm_change: NonNegative | None = None
