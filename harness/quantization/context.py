"""Run ModelOpt without traces in the process, and copies of quantized models in another dtype."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from harness import (
    compat,  # noqa: F401  (before transformers)
    isolation,
)


@contextmanager
def quiet() -> Iterator[None]:
    """Run ModelOpt without output, and restore on leaving the block what it changes in the process.

    What its warnings could say, the suites check.
    """
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with isolation.process_kept():
            yield


def in_dtype(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Copy *model* to the CPU in a float *dtype*, SVDQuant's low-rank branch included.

    ModelOpt 0.47 keeps the branch of a block quantizer in plain attributes, which ``Module.to``
    passes by: the first forward in another dtype raises.
    """
    converted = copy.deepcopy(model).cpu().to(dtype).eval()
    for module in converted.modules():
        for name in ("svdquant_lora_a", "svdquant_lora_b"):
            if isinstance(getattr(module, name, None), Tensor):
                setattr(module, name, getattr(module, name).to(dtype))
    return converted
