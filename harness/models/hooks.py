"""Observe the inputs and outputs of a model's modules within a block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

Key = TypeVar("Key")


class Hookable(Protocol):
    """The part of a module's interface that is used here."""

    def register_forward_hook(self, hook: Callable[..., object]) -> RemovableHandle:
        """Call *hook* after each forward."""

    def register_forward_pre_hook(self, hook: Callable[..., object]) -> RemovableHandle:
        """Call *hook* before each forward."""


@contextmanager
def after_each(modules: Mapping[Key, Hookable], see: Callable[..., object]) -> Iterator[None]:
    """Within the block, call ``see(key, module, arguments, output)`` after each forward of each
    module.

    What *see* returns takes the place of the output, unless it is None.
    """
    with _removed(
        module.register_forward_hook(partial(see, key)) for key, module in modules.items()
    ):
        yield


@contextmanager
def before_each(modules: Mapping[Key, Hookable], see: Callable[..., None]) -> Iterator[None]:
    """Within the block, call ``see(key, module, arguments)`` before each forward of each module."""
    with _removed(
        module.register_forward_pre_hook(partial(see, key)) for key, module in modules.items()
    ):
        yield


@contextmanager
def _removed(registrations: Iterator[RemovableHandle]) -> Iterator[None]:
    """Register the hooks, and remove them on leaving the block."""
    handles: list[RemovableHandle] = []
    try:
        # One by one: those made before one that fails are taken back too.
        handles.extend(registrations)
        yield
    finally:
        for handle in handles:
            handle.remove()
