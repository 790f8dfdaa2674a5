"""Which attention class ModelOpt converts a model's attention blocks to."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from torch import nn

from harness import (
    compat,  # noqa: F401  (before transformers)
    isolation,
)
from harness.modelopt_types import QuantizedAttention
from harness.models import families

#: which attention class of ModelOpt takes the place of the model's own.
ATTENTIONS = ("diffusers", "modelopt")


@contextmanager
def attention_registered(model: nn.Module, attention: str) -> Iterator[None]:
    """Have ModelOpt convert *model*'s attention blocks to the class that *attention* names, within
    the block.

    ``diffusers``: q, k, v, softmax and bmm2_output quantizers around
    ``scaled_dot_product_attention``, which the published recipe means.  ``modelopt``: what ModelOpt
    registers by itself, q, k, v and p without an output quantizer.  The registry is global to the
    process, so it is put back on leaving.
    """
    import modelopt.torch.quantization as mtq
    from modelopt.torch.quantization.nn import QuantModuleRegistry

    if attention not in ATTENTIONS:
        raise ValueError(f"attention is {attention!r}, not one of {', '.join(ATTENTIONS)}")
    classes = {
        type(m) for m in model.modules() if type(m).__name__ in families.of(model).attention_classes
    }
    with isolation.registrations_kept():
        for cls in classes:
            if QuantModuleRegistry.get(cls) is not None:
                mtq.unregister(cls)
            if attention == "diffusers":
                mtq.register(cls, diffusers_attention())
        yield


def diffusers_plugin() -> ModuleType:
    """ModelOpt's plugin module for diffusers, which holds the attention class that the published
    recipe means.
    """
    plugins = "modelopt.torch.quantization.plugins"
    try:
        return importlib.import_module(f"{plugins}.diffusion.diffusers")
    # Its place up to ModelOpt 0.42, where the package's attribute of that name is the library
    except ImportError:
        return importlib.import_module(f"{plugins}.diffusers")


def diffusers_attention() -> type[QuantizedAttention]:
    """The class that ModelOpt's plugin puts in the place of an attention class."""
    cls: type[QuantizedAttention] = diffusers_plugin()._QuantAttention
    return cls
