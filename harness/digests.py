"""Digests of values, and how hashes and names are shown and stored."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


def slug(text: str) -> str:
    """*text* in the characters of a device key; trademark signs dropped."""
    plain = re.sub(r"\((r|tm|c)\)", " ", text.lower())
    return re.sub(r"[^a-z0-9._]+", "-", plain).strip("-._")[:60] or "unknown"


def digest(value: Any) -> str:
    """SHA-256 (hex) of *value*'s canonical JSON: sorted keys, no spaces, no NaN.

    Raises:
        ValueError, TypeError: not JSON.

    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def ids_digest(ids: Iterable[str]) -> str:
    """SHA-256 (hex) of sample ids in their order."""
    return digest(list(ids))


def set_digest(ids: Iterable[str]) -> str:
    """SHA-256 (hex) of sample ids whatever their order."""
    return digest(sorted(ids))


def short(value: str) -> str:
    """A hash as messages show it: its first 12 digits."""
    return value[:12] if re.fullmatch(r"[0-9a-f]{20,}", value) else value
