"""Text from outside, made safe for a terminal or a log."""

from __future__ import annotations

import pytest

from harness import escaping


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a\nb", "a\\nb"),
        ("::error::x", ": :error::x"),
        ("a##[group]", "a# #[group]"),
        ("\x1b[31m", "\\x1b[31m"),
        ("é", "é"),
    ],
)
def test_names_are_shown_harmless(name: str, expected: str) -> None:
    """Control characters are spelled out and a runner's commands are broken up; letters of any
    script stay.
    """
    assert escaping.shown(name) == expected
