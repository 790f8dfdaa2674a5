"""JSON files that a user names, read within bounds and held to a pydantic model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from harness.errors import UsageError
from harness.files.content import decoded, read_bytes
from harness.files.fitting import adapter, refuse_content
from harness.files.limits import MAX_DIGITS, MAX_JSON_DEPTH, MAX_JSON_VALUES
from harness.files.messages import cut, shown

T = TypeVar("T")

# The escape of half a pair; a whole pair has two of them
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(
    path: str | Path,
    model: type[T] | TypeAdapter[T],
    *,
    limit: int,
    inside: str | Path | None = None,
    what: str = "file",
    fix: str | None = None,
) -> T:
    """Return the JSON file *path* as *model*, which pydantic validates as JSON: strictly where the
    model says so.

    A key that is written twice in one object is refused: JSON readers disagree on which one counts.
    ``NaN`` and ``Infinity`` are numbers unless the model says ``allow_inf_nan=False``.  Long lists
    in a model should be ``Annotated[list[...], pydantic.FailFast()]``: one error is enough.

    Args:
        path: what the user named.
        model: a pydantic model, or any type that a ``TypeAdapter`` takes.
        limit: the largest size in bytes, one of the constants of this module.
        inside: the folder that the file must be in.
        what: what the file is, for the message.
        fix: the sentence that ends the message.

    Raises:
        UsageError: as :func:`read_text`; it is not JSON (with line and column), nests too deeply,
            holds too many values, half a surrogate pair, or does not fit the model (with the path
            of the key).
    """
    data = read_bytes(path, limit=limit, inside=inside, what=what, fix=fix)
    text = decoded(data, path, fix)
    return validate_json(text, path, model, fix=fix)


def validate_json(
    text: str, where: str | Path, model: type[T] | TypeAdapter[T], *, fix: str | None = None
) -> T:
    """Return JSON *text*, which was found at *where*, as *model*; as :func:`read_json`.

    Raises:
        UsageError: it is not JSON within the bounds, or does not fit the model.
    """
    content = _json(text, where, fix)
    try:
        return adapter(model).validate_json(text)
    except ValidationError as error:
        refuse_content(where, content, error, fix)


def _json(text: str, where: str | Path, fix: str | None) -> Any:
    """The content of JSON *text*, within the bounds."""
    name = cut(where)
    if text.count(",") + text.count("[") + text.count("{") > MAX_JSON_VALUES:
        raise UsageError(
            name, f"holds more than {MAX_JSON_VALUES:,} values", fix or "Give a smaller file."
        )
    too_deep = f"nests deeper than {MAX_JSON_DEPTH} levels"
    try:
        content = json.loads(text, object_pairs_hook=_unique, parse_int=_bounded_int)
    except json.JSONDecodeError as error:
        place = f"{name}:{error.lineno}"
        raise UsageError(
            place, f"is not JSON (column {error.colno}: {error.msg})", fix or "Correct it."
        ) from None
    except RecursionError:
        raise UsageError(name, too_deep, fix or "Correct it.") from None
    except ValueError as error:
        raise UsageError(
            name, f"is not JSON that can be used ({error})", fix or "Correct it."
        ) from None
    if _depth(content, MAX_JSON_DEPTH) > MAX_JSON_DEPTH:
        raise UsageError(name, too_deep, fix or "Correct it.")
    if _SURROGATE.search(text):
        try:
            json.dumps(content, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = ascii(error.object[error.start])
            problem = f"a string holds {half}, half of a surrogate pair, which is not text"
            raise UsageError(name, problem, fix or "Correct it.") from None
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's pairs as a dict."""
    content = dict(pairs)
    if len(content) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {shown(key)} is written twice in one object")
            seen.add(key)
    return content


def _bounded_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)


def _depth(content: Any, limit: int) -> int:
    """Levels of nested lists and mappings in *content*; at most ``limit + 1``."""
    level = [content] if isinstance(content, (dict, list)) else []
    depth = 0
    while level and depth <= limit:
        depth += 1
        children = (item.values() if isinstance(item, dict) else item for item in level)
        level = [child for items in children for child in items if isinstance(child, (dict, list))]
    return depth
