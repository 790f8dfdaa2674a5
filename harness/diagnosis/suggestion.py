"""The recipe patch that blame verified, as a change of one line of the recipe's file that a
reviewer can apply with one click.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from harness import files
from harness.errors import UsageError
from harness.recipes.yaml_reading import MAX_FILE_BYTES


@dataclass(frozen=True)
class Suggestion:
    """The lines that replace a line of a file; the replaced line comes first.

    ``place`` is the line, as ``file:line:column``.
    """

    place: str
    text: str


def of_patch(path: Path | None, patch: str) -> Suggestion | None:
    """Return *patch* as a change of the recipe's file at *path*, behind its last entry.

    Args:
        path: the recipe's file; None for a recipe in Python.
        patch: entries of a ``quant_cfg`` as YAML, from the first column on.

    Returns:
        None where there is no patch, or where the entries are not a list with one line or more for
        each: appending is then not a change of one line.
    """
    if path is None or not patch.strip() or not files.is_file(path):
        return None
    try:
        text = files.read_text(path, limit=MAX_FILE_BYTES, what="recipe")
        entries = _entries(text)
    except (UsageError, yaml.YAMLError):  # it was read before: somebody edits it
        return None
    if entries is None or entries.flow_style or not entries.value:
        return None
    lines = text.splitlines()
    last = entries.end_mark.line - (1 if entries.end_mark.column == 0 else 0)
    last = min(last, len(lines) - 1)
    while not lines[last].strip() or lines[last].lstrip().startswith("#"):
        last -= 1
    column = entries.start_mark.column
    if last < entries.value[-1].start_mark.line or lines[last].startswith("---"):
        return None
    added = [" " * column + line for line in patch.splitlines()]
    return Suggestion(f"{path}:{last + 1}:{column + 1}", "\n".join([lines[last], *added]))


def _entries(text: str) -> yaml.SequenceNode | None:
    """The list of entries of a recipe's text."""
    documents = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    for document in documents:
        for keys in (("quantize", "quant_cfg"), ("quant_cfg",)):
            node: yaml.Node | None = document
            for key in keys:
                node = _value(node, key)
            if isinstance(node, yaml.SequenceNode):
                return node
    return None


def _value(node: yaml.Node | None, key: str) -> yaml.Node | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((value for name, value in node.value if name.value == key), None)
