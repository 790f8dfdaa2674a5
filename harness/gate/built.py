"""Properties that are built once, whether that succeeds or fails."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar, overload

from harness import errors
from harness.errors import UsageError

T = TypeVar("T")
_FAILED = "_failed"


class built(cached_property[T]):  # noqa: N801 - a decorator
    """A cached property that remembers an error as well: what could not be built is not tried
    again.

    A usage error ends the run and is not remembered.
    """

    @overload
    def __get__(self, instance: None, owner: type[Any] | None = None) -> built[T]: ...
    @overload
    def __get__(self, instance: object, owner: type[Any] | None = None) -> T: ...
    def __get__(self, instance: object | None, owner: type[Any] | None = None) -> built[T] | T:
        """Build the value, or raise again what building it raised."""
        if instance is None:
            return self
        parent = super().__get__
        return attempt(instance, str(self.attrname), lambda: parent(instance, owner))


def attempt(owner: object, name: str, make: Callable[[], T]) -> T:
    """Return what *make* returns; where it raised before for *owner* under this name, raise the
    same error again.
    """
    failed: dict[str, Exception] = vars(owner).setdefault(_FAILED, {})
    if name in failed:
        raise failed[name]
    try:
        return make()
    except UsageError:
        raise
    except Exception as error:
        failed[name] = error
        raise


def forget_frames(owner: object) -> None:
    """Drop what the frames of *owner*'s remembered errors hold: models of cases that came
    before.
    """
    for error in vars(owner).get(_FAILED, {}).values():
        errors.forget_frames(error)


def is_built(owner: object, name: str) -> bool:
    """Whether the property *name* of *owner* has been built; asking does not build it."""
    return name in vars(owner)
