"""How a message shows a value and a path that a user wrote."""

from __future__ import annotations

import reprlib
from pathlib import Path

from harness.files.limits import MAX_DIGITS

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80
_REPR.maxlong = MAX_DIGITS
_REPR.maxlevel = 3


def shown(value: object) -> str:
    """Return *value* as a message shows it: quoted, control characters spelled out, long values
    cut.
    """
    return _REPR.repr(value)


def cut(path: str | Path) -> str:
    """A path for a message: its middle left out where it is very long."""
    text = str(path)
    return text if len(text) <= 300 else f"{text[:200]}...{text[-60:]}"
