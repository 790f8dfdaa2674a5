"""One YAML file of a recipe or a snippet: its schema comment, its imports and its body."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.files import YamlLimitError, load_documents, shown
from harness.files.located import Located, LocatedList, Place, place_at

#: An order of magnitude above the largest file of ModelOpt 0.47's tree.
MAX_FILE_BYTES = 128 * 1024

_SCHEMA = re.compile(r"^\s*#\s*modelopt-schema:\s*(\S+)\s*$")
_MODELOPT_NAME = re.compile(r"^modelopt(\.[A-Za-z]\w*){2,}$", re.ASCII)
_EXMY = re.compile(r"^[Ee](\d{1,2})[Mm](\d{1,2})$")
SPLIT = "Split it, or raise the limit in harness/files/limits.py if the file is trusted."


@dataclass(frozen=True)
class Document:
    """One parsed YAML file, its imports not yet resolved.

    ``body`` is a mapping or a list without the ``imports`` section, ``schema`` what its
    ``modelopt-schema`` comment names (a name only: nothing is imported), ``documents`` how many
    YAML documents the file holds (two: a header with ``imports`` and a body).
    """

    path: Path
    schema: str | None
    imports: dict[str, str]
    body: Any
    documents: int

    def import_place(self, name: str) -> str:
        """Return the place of the import *name*."""
        return place_at(self.imports, [name], str(self.path))


class UnreadableError(UsageError):
    """A file that is not read at all, or not to its end: it is not a file, or exceeds a limit."""


def parse(text: str, path: Path) -> Document:
    """*text*, read from *path*, as a document.

    Raises:
        UsageError: it is not YAML, exceeds a limit, or is not of the shape of a recipe or a
            snippet.
    """
    schema = _schema_comment(text, path)
    try:
        documents = load_documents(text, path, most=3)
    except YamlLimitError as error:
        raise UnreadableError(error.where, error.what, SPLIT) from error
    header: dict[Any, Any] = {}
    body: Any = documents[-1] if documents else None
    if len(documents) == 2:
        if not isinstance(documents[0], dict):
            raise UsageError(
                path, "the first of its two YAML documents is not a mapping", "Put imports: there."
            )
        header = documents[0]
    elif len(documents) > 2:
        raise UsageError(
            path,
            f"holds {len(documents)} YAML documents or more",
            "One, or imports and a body, fit.",
        )
    if body is None:
        body = {}
    if not isinstance(body, (dict, list)):
        raise UsageError(
            path, f"holds {shown(body)}, no mapping and no list", "Write a recipe or a snippet."
        )
    if isinstance(body, dict):
        merged = Located({**header, **body})
        merged.place = getattr(body, "place", str(path))
        merged.places = {**getattr(header, "places", {}), **getattr(body, "places", {})}
        imports = merged.pop("imports", None)
        body = merged
    else:
        imports = header.get("imports")
    imports = imports or {}
    if not isinstance(imports, dict) or not all(isinstance(k, str) for k in imports):
        raise UsageError(
            path,
            "'imports' is not a mapping of names to paths",
            "Write imports: {fp8: configs/...}.",
        )
    return Document(path, schema, imports, _exmy(body), len(documents))


def _schema_comment(text: str, path: Path) -> str | None:
    """The name in the preamble's ``# modelopt-schema:``; never imported, only compared with known
    ones.
    """
    schema: str | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.strip().startswith("#"):
            break
        if not (match := _SCHEMA.match(line)):
            continue
        if schema is not None:
            raise UsageError(
                Place.make(path, number), "a second modelopt-schema comment", "Keep one."
            )
        schema = match[1]
        if not _MODELOPT_NAME.match(schema):
            fix = "Name one such as modelopt.torch.quantization.config.QuantizerCfgListConfig."
            raise UsageError(
                Place.make(path, number),
                f"the schema {shown(schema)} is not one of ModelOpt's",
                fix,
            )
    return schema


def _exmy(value: Any) -> Any:
    """*value* with the strings ``e4m3`` at num_bits and scale_bits as pairs (4, 3), as ModelOpt
    reads them.
    """
    if isinstance(value, dict):
        result = Located()
        result.place, result.places = getattr(value, "place", ""), getattr(value, "places", {})
        for key, item in value.items():
            match = (
                _EXMY.match(item)
                if key in ("num_bits", "scale_bits") and isinstance(item, str)
                else None
            )
            result[key] = (int(match[1]), int(match[2])) if match else _exmy(item)
        return result
    if isinstance(value, list):
        return LocatedList((_exmy(item) for item in value), getattr(value, "places", ()))
    return value
