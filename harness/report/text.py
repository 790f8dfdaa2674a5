"""Text from a recipe, a data set or an exception, made safe for where it goes.

Names come from pull requests.  A terminal obeys control characters, GitHub's runner obeys
``::command::`` at the beginning of a line of a log and ``##[command]`` anywhere in it, Markdown and
HTML obey their markup.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from enum import Enum
from typing import Any

from harness.escaping import WIDTH, shown

#: How a number that JSON does not have is written (``float()`` of each gives it back).
NON_FINITE = ("NaN", "Infinity", "-Infinity")


def plain(value: Any) -> Any:
    """*value* as JSON has it: enums by value, tuples as lists, numbers of numpy as Python's, no NaN
    or infinity.
    """
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, str)):
        return value
    if hasattr(value, "item"):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return NON_FINITE[0] if math.isnan(value) else NON_FINITE[1 if value > 0 else 2]
    return value if isinstance(value, (int, float)) else str(value)


def number(value: Any) -> float | None:
    """A number as ``plain`` writes it, or None where there is not one."""
    if value is None or isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def json_text(value: Any) -> str:
    """*value* as JSON in ASCII that is inert in HTML and in a log: ``<``, ``>``, ``&`` and ``##[``
    are escaped.
    """
    text = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=True)
    for sign, escape in (
        ("<", "\\u003c"),
        (">", "\\u003e"),
        ("&", "\\u0026"),
        ("##[", "#\\u0023["),
    ):
        text = text.replace(sign, escape)
    return text + "\n"


#: What means nothing to Markdown wherever it stands within a line.
_INERT = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 .,;%+-/()=?'\"")


def markdown_text(value: object, width: int | None = WIDTH) -> str:
    """*value* within a line of Markdown: every sign with a meaning as a character reference, ``@``
    notifying no one.
    """
    return "".join(
        c if c in _INERT or ord(c) > 127 else _reference(c) for c in shown(value, width)
    ).replace("www.", "www&#46;")


def _reference(sign: str) -> str:
    # GitHub looks for @names in what the references have become, so a zero-width space parts them.
    return f"&#{ord(sign)};" + ("&#8203;" if sign == "@" else "")


def markdown_code(value: object, width: int | None = WIDTH) -> str:
    """*value* as code within a line of Markdown, in a table too."""
    text = shown(value, width)
    if text and all(c in _INERT or c in "_*:@[]{}#" for c in text) and text == text.strip():
        return f"`{text}`"
    return (
        "<code>"
        + "".join(c if c.isalnum() and c.isascii() else f"&#{ord(c)};" for c in text)
        + "</code>"
    )


def markdown_block(value: str, language: str = "") -> str:
    """*value*, of any number of lines, as a fenced block that it cannot close."""
    lines = [shown(line, None) for line in value.splitlines()]
    fence = "```"
    while any(fence in line for line in lines):
        fence += "`"
    return "\n".join([fence + language, *lines, fence])
