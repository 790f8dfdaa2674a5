"""Digests of values, and how hashes and names are shown and stored."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any


def slug(text: str) -> str:
    """*text* in the characters of a device key; trademark signs dropped."""
    plain = re.sub(r"\((r|tm|c)\)", " ", text.lower())
    return re.sub(r"[^a-z0-9._]+", "-", plain).strip("-._")[:60] or "unknown"


def of_bytes(data: bytes) -> str:
    """SHA-256 (hex) of *data*."""
    return hashlib.sha256(data).hexdigest()


def of_text(text: str) -> str:
    """SHA-256 (hex) of *text* in UTF-8, whatever it holds."""
    return of_bytes(text.encode("utf-8", "surrogatepass"))


def of_json(value: Any) -> str:
    """SHA-256 (hex) of *value*'s canonical JSON: sorted keys, no spaces, no NaN.

    Raises:
        ValueError, TypeError: not JSON.

    """
    return of_text(
        json.dumps(
            value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False
        )
    )


def ids_digest(ids: Iterable[str]) -> str:
    """SHA-256 (hex) of sample ids in their order."""
    return of_json(list(ids))


def set_digest(ids: Iterable[str]) -> str:
    """SHA-256 (hex) of sample ids whatever their order."""
    return of_json(sorted(ids))


def short(value: str) -> str:
    """A hash as messages show it: its first 12 digits."""
    return value[:12] if re.fullmatch(r"[0-9a-f]{20,}", value) else value
