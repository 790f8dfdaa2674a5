"""YAML that people write and review: read strictly, each error with its file, line and place."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from harness import files
from harness.errors import UsageError
from harness.files import Place as Place

Shape = TypeVar("Shape", bound=BaseModel)


def read(path: Path, shape: type[Shape], mends: Mapping[str, str]) -> tuple[Shape, Place]:
    """The file's content in *shape*, and what tells where an entry of it stands.

    Args:
        path: the file.
        shape: what it must hold.
        mends: what the ``file`` is called, and what to do where it is ``absent``, misses a key (``missing``) or has
            one that there is not (``extra_forbidden``).

    Raises:
        UsageError: it is not readable, not YAML, uses aliases, has a key twice, or has another shape.
    """
    if not files.exists(path):
        raise UsageError(path, f"there is no {mends['file']}", mends["absent"])
    text = files.read_text(path, limit=files.MAX_YAML, what=mends["file"])
    content, lines = files.load_yaml(text, path)

    def place(*keys: Hashable) -> str:
        return files.place_of(path, keys, lines)

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
    return f"{key} is {files.shown(error['input'])}", f"{error['msg']}."
