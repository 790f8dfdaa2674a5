"""Whether a file's content is what its reader expects, and where in it the first problem is."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import TypeAdapter, ValidationError

from harness.errors import UsageError
from harness.files.located import Place, place_at
from harness.files.messages import cut, shown

T = TypeVar("T")


def validate_python(
    content: Any, where: str | Path, model: type[T] | TypeAdapter[T], *, fix: str | None = None
) -> T:
    """Return *content*, a part of a file's that was read by this module from *where*, as *model*.

    Raises:
        UsageError: it does not fit the model.
    """
    try:
        return adapter(model).validate_python(content)
    except ValidationError as error:
        refuse_content(where, content, error, fix)


def adapter(model: type[T] | TypeAdapter[T]) -> TypeAdapter[T]:
    """Return what validates *model*."""
    return model if isinstance(model, TypeAdapter) else TypeAdapter(model)


def refuse_content(
    where: str | Path,
    content: Any,
    error: ValidationError,
    fix: str | None,
    fixes: Mapping[str, str] | None = None,
) -> NoReturn:
    """Raise the UsageError of the first thing that pydantic found wrong with *content*."""
    first = error.errors(include_url=False, include_context=False)[0]
    fix = (fixes or {}).get(first["type"], fix)
    keys = _keys(first["loc"], content, first["type"] == "missing")
    place = place_of(where, keys, content)
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        raise UsageError(
            place, f"the key {shown(keys[-1] if keys else '')} is missing", fix or "Add it."
        ) from None
    if first["type"] == "extra_forbidden":
        problem = f"there is no setting {shown(keys[-1] if keys else '')}"
        raise UsageError(place, problem, fix or "Remove it, or correct its spelling.") from None
    if first["type"] in ("json_invalid", "value_error"):
        raise UsageError(place, reason, fix or "Correct it.") from None
    raise UsageError(
        place, f"is {_value(first['input'])}: {reason}", fix or "Correct it."
    ) from None


def _value(value: object) -> str:
    """A value as its file spells it."""
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else shown(value)


def _keys(loc: Iterable[int | str], content: Any, missing: bool) -> tuple[int | str, ...]:
    """The keys of *loc* that lead into *content*: without the names of the alternatives of a
    union.
    """
    keys: list[int | str] = []
    path = list(loc)
    for number, key in enumerate(path):
        is_key = isinstance(content, dict) and key in content
        is_index = isinstance(content, list) and isinstance(key, int) and key < len(content)
        if is_key or is_index:
            content = content[key]
        elif not (missing and number == len(path) - 1):
            continue
        keys.append(key)
    return tuple(keys)


def place_of(path: str | Path, keys: Iterable[Hashable], content: Any) -> str:
    """Return ``file:line (dotted.keys)`` of the entry of *content* at *keys*; without the line for
    content that does not know it.
    """
    keys = tuple(keys)
    place = place_at(content, keys, "")
    line = f":{place.line}" if isinstance(place, Place) else ""
    dotted = "".join(
        f"[{key}]" if isinstance(key, int) else f".{cut(str(key))}" for key in keys
    ).removeprefix(".")
    return f"{cut(path)}{line}" + (f" ({dotted})" if dotted else "")
