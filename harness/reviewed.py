"""YAML that people write and review: read strictly, each error with its file, line and place."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from harness.errors import UsageError

Shape = TypeVar("Shape", bound=BaseModel)
#: ``file:line (dotted.keys)`` of an entry, by its keys.
Place = Callable[..., str]


def read(path: Path, shape: type[Shape], mends: Mapping[str, str]) -> tuple[Shape, Place]:
    """The file's content in *shape*, and what tells where an entry of it stands.

    Args:
        path: the file.
        shape: what it must hold.
        mends: what the ``file`` is called, and what to do where it is ``absent``, ``nested`` too deeply, or misses a
            key (``missing``) or has one that there is not (``extra_forbidden``).

    Raises:
        UsageError: it is not readable, no YAML, uses aliases, has a key twice, or has another shape.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(path, f"there is no {mends['file']}", mends["absent"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(path, f"it cannot be read: {error}", "Restore the file from git.") from error
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise UsageError(path, "it uses YAML aliases", "Write the values out: policy should read plainly.")
        content = yaml.safe_load(text)
        lines = _lines(path, yaml.compose(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or error
        raise UsageError(where, f"it is no YAML: {problem}", "Mend that line.") from error
    except RecursionError:
        raise UsageError(path, "it is nested too deeply", mends["nested"]) from None
    except ValueError as error:
        # A date that there is not, a number of thousands of digits: YAML's own types refuse them in Python's words.
        raise UsageError(
            path, f"a value in it cannot be read: {error}", "Write it in quotes, or correct it."
        ) from error

    def place(*keys: Hashable) -> str:
        return _place(path, keys, lines)

    try:
        return shape.model_validate(content), place
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(place(*first["loc"]), *_explain(first, mends)) from None


def _explain(error: Any, mends: Mapping[str, str]) -> tuple[str, str]:
    """What is wrong and the mend, from pydantic's first error."""
    key = next((str(k) for k in reversed(error["loc"]) if isinstance(k, str)), "the file")
    if error["type"] == "extra_forbidden":
        return f"there is no setting {key!r}", mends["extra_forbidden"]
    if error["type"] == "missing":
        return f"{key!r} is missing", mends["missing"]
    return f"{key} is {error['input']!r}", f"{error['msg']}."


def _place(path: Path, keys: Iterable[Hashable], lines: dict[tuple[Hashable, ...], int]) -> str:
    at = tuple(keys)
    known = at
    while known and known not in lines:
        known = known[:-1]
    dotted = "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in at).removeprefix(".")
    line = f":{lines[known]}" if known in lines else ""
    return f"{path}{line}" + (f" ({dotted})" if dotted else "")


def _lines(path: Path, node: yaml.Node | None, keys: tuple[Hashable, ...] = ()) -> dict[tuple[Hashable, ...], int]:
    """Line (from 1) of every entry of a YAML document; UsageError for a key written twice, of which YAML drops the
    first.
    """
    found: dict[tuple[Hashable, ...], int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            at, line = (*keys, key.value), key.start_mark.line + 1
            if at in found:
                raise UsageError(f"{path}:{line}", f"{key.value!r} is written twice here", "Keep one of the two.")
            found[at] = line
            found |= _lines(path, value, at)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            found[(*keys, number)] = value.start_mark.line + 1
            found |= _lines(path, value, (*keys, number))
    return found
