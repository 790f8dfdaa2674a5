"""The installed ModelOpt's configuration module."""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=1)
def modelopt_config() -> Any:
    """``modelopt.torch.quantization.config``, imported so that ModelOpt finds its plugins.

    torchvision is fixed first: with the broken pair ModelOpt would leave out its Hugging Face
    plugin, and with it the attention quantizers, after a warning.
    """
    from harness import compat  # noqa: F401

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of plugins for packages that the gate does without
        from modelopt.torch.quantization import config
    return config
