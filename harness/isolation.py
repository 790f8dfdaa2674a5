"""Keep one case out of the next: put back what a quantized model, or ModelOpt, changes in the
process.

A quantized attention block of ModelOpt 0.47 swaps functions of torch for the length of its forward
(``modelopt/torch/quantization/utils/core_utils.py``, ``replace_function``) and does not put them
back if the forward raises; every later model of the process, the reference included, then attends
through that block's quantizers (S12, see docs/silent-failures.md).  Saving a checkpoint leaves
hooks in transformers, a registered attention class stays in ModelOpt's registry, and a library may
leave another default dtype or random state.

* Every forward of the gate goes through :func:`harness.models.families.encode`, which runs it under
  :func:`functions_kept`.
* Everything else that ModelOpt does runs under :func:`harness.quantization.context.quiet`, which
  includes :func:`process_kept`.
* Before a model is quantized or evaluated, :func:`check` compares torch's functions with those that
  were there when this module was imported, which is before ModelOpt runs anything.
"""

from __future__ import annotations

import os
import random
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn import init

from harness.errors import UsageError


def _names(holder: types.ModuleType, *kinds: type) -> tuple[str, ...]:
    return tuple(name for name, value in vars(holder).items() if isinstance(value, kinds))


#: Where functions are watched, and their names there.  Of ``torch`` itself only what is written in
#: C: some of its Python functions are wrapped by ``torch._dynamo`` when that is imported.
_WATCHED: tuple[tuple[types.ModuleType, tuple[str, ...]], ...] = (
    (torch, _names(torch, types.BuiltinFunctionType)),
    (F, _names(F, types.BuiltinFunctionType, types.FunctionType)),
    (init, _names(init, types.FunctionType)),
)


def _functions() -> list[tuple[object, ...]]:
    """What now stands under the watched names, holder by holder."""
    return [tuple(map(vars(holder).get, names)) for holder, names in _WATCHED]


#: torch's own functions.
_OWN = _functions()


@contextmanager
def functions_kept() -> Iterator[None]:
    """Put back torch's functions and transformers' attention functions on leaving the block,
    whatever it raises.
    """
    before = _functions()
    with _attention_functions_kept():
        try:
            yield
        finally:
            if _functions() != before:
                _put_back(before)


def _put_back(before: list[tuple[object, ...]]) -> None:
    for (holder, names), functions in zip(_WATCHED, before, strict=True):
        for name, function in zip(names, functions, strict=True):
            if vars(holder).get(name) is not function:
                setattr(holder, name, function)
                # ModelOpt keeps the function that it replaces under this name.
                if f"_{name}" not in names and vars(holder).get(f"_{name}") is function:
                    delattr(holder, f"_{name}")


@contextmanager
def _attention_functions_kept() -> Iterator[None]:
    """Put back what transformers' attention blocks look up, which ModelOpt's own attention class
    replaces.
    """
    library = sys.modules.get("transformers.modeling_utils")
    if library is None:
        yield
        return
    registry = library.ALL_ATTENTION_FUNCTIONS
    mappings = [
        m for m in (registry._local_mapping, registry._global_mapping) if isinstance(m, dict)
    ]
    entries = [dict(mapping) for mapping in mappings]
    eager = [
        (module, vars(module)["eager_attention_forward"])
        for module in _with_eager_attention(len(sys.modules))
    ]
    try:
        yield
    finally:
        for mapping, before in zip(mappings, entries, strict=True):
            if mapping != before:
                mapping.clear()
                mapping.update(before)
        for module, function in eager:
            vars(module)["eager_attention_forward"] = function


@lru_cache(1)
def _with_eager_attention(_: int) -> tuple[types.ModuleType, ...]:
    """The imported model files of transformers that have an eager attention; depends on the number
    of modules.
    """
    modules = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("transformers.models.")
    ]
    return tuple(module for module in modules if "eager_attention_forward" in vars(module))


@contextmanager
def process_kept() -> Iterator[None]:
    """Put back, on leaving the block, whatever of the process ModelOpt may change.

    These are the functions of :func:`functions_kept`, ModelOpt's registry of quantized classes, its
    hooks in the classes of transformers and diffusers, torch's settings, the random states, the
    environment and warning filters. ModelOpt is imported first: what its import does to the process
    stays.
    """
    import modelopt.torch.opt
    import modelopt.torch.quantization  # noqa: F401

    with ExitStack() as stack:
        for part in (
            _settings_kept,
            _random_kept,
            _environment_kept,
            _hooks_kept,
            registrations_kept,
            functions_kept,
        ):
            stack.enter_context(part())
        yield


#: (reads, writes) of torch's settings that decide what a computation returns, or how fast.
_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], object]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    *(
        (partial(getattr, holder, name), partial(setattr, holder, name))
        for holder, name in (
            (torch.backends.cudnn, "benchmark"),
            (torch.backends.cudnn, "deterministic"),
            (torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction"),
            (torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction"),
        )
    ),
    (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    (torch.backends.cuda.mem_efficient_sdp_enabled, torch.backends.cuda.enable_mem_efficient_sdp),
    (torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
)


@contextmanager
def _settings_kept() -> Iterator[None]:
    before = [read() for read, _ in _SETTINGS]
    try:
        yield
    finally:
        for (read, write), value in zip(_SETTINGS, before, strict=True):
            if read() != value:
                write(value)


@contextmanager
def _random_kept() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def _environment_kept() -> Iterator[None]:
    variables, filters = dict(os.environ), list(warnings.filters)
    try:
        yield
    finally:
        for name in os.environ.keys() - variables.keys():
            del os.environ[name]
        for name, value in variables.items():
            if os.environ.get(name) != value:
                os.environ[name] = value
        if list(warnings.filters) != filters:
            warnings.resetwarnings()
            warnings.filters[:] = filters  # type: ignore[index]


@contextmanager
def registrations_kept() -> Iterator[None]:
    """Put back, on leaving the block, which classes of modules ModelOpt converts, and to what."""
    from modelopt.torch.quantization.nn import QuantModuleRegistry

    registry = QuantModuleRegistry
    before, keys = dict(registry._registry), dict(registry._key_registry)
    try:
        yield
    finally:
        for cls in [
            cls for cls, converted in registry._registry.items() if before.get(cls) is not converted
        ]:
            registry.unregister(cls)
        for cls in [cls for cls in before if cls not in registry._registry]:
            registry.register({cls: keys[cls]})(before[cls])


@contextmanager
def _hooks_kept() -> Iterator[None]:
    """Put back the methods of transformers and diffusers that ``enable_huggingface_checkpointing``
    replaces.

    With them a checkpoint that holds ModelOpt's state is loaded as a quantized model, a reference
    among them.
    """
    from modelopt.torch.opt.plugins import huggingface

    known: dict[str, tuple[list[type], list[list[tuple[str, object]]]]] = (
        huggingface._LIBRARY_CLASSES_FOR_PATCHING
    )
    patched: set[Any] = huggingface._PATCHED_CLASSES
    before = set(patched)
    names = {
        cls: [name for name, _ in methods]
        for pair in known.values()
        for cls, methods in zip(*pair, strict=True)
    }
    own = {
        (cls, name): vars(cls)[name] for cls in names for name in names[cls] if name in vars(cls)
    }
    try:
        yield
    finally:
        for cls in patched - before:
            for name in names[cls]:
                if (cls, name) in own:
                    setattr(cls, name, own[cls, name])
                elif name in vars(cls):
                    delattr(cls, name)
            del cls._modelopt_cache
        patched.intersection_update(before)


def replaced() -> list[str]:
    """Describe each watched function of torch that is not torch's own: ``torch.bmm is a.b.c``."""
    return [
        f"{holder.__name__}.{name} is {_described(vars(holder).get(name))}"
        for (holder, names), own in zip(_WATCHED, _OWN, strict=True)
        for name, function in zip(names, own, strict=True)
        if vars(holder).get(name) is not function
    ]


def _described(function: object) -> str:
    """A short name of *function*: the text of one that is bound to a module would be pages."""
    while isinstance(function, partial):
        function = function.func
    module = getattr(function, "__module__", None)
    name = getattr(function, "__qualname__", type(function).__name__)
    return f"{module}.{name}"


def check() -> None:
    """Refuse to go on where a function of torch is not torch's own: every model would compute
    something else.

    Raises:
        UsageError: naming the functions and what stands in their place.
    """
    replaced_names = replaced()
    if replaced_names:
        more = f" and {len(replaced_names) - 1} more" if len(replaced_names) > 1 else ""
        what = (
            f"not torch's own function{more}: code that ran in this process replaced it and did "
            f"not put it back"
        )
        fix = (
            "Start a new process. If only this gate ran in it, please report the recipe that ran "
            "before."
        )
        raise UsageError(replaced_names[0], what, fix)
