"""What is said of something that cannot be used is one line of whole sentences."""

from __future__ import annotations

import pytest

from harness.errors import UsageError, sentences


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (("is empty", "Fill it."), "is empty. Fill it."),
        (("is empty.", "Fill it."), "is empty. Fill it."),
        (("is empty.. ", "Fill it"), "is empty. Fill it"),
        (("what is it?", "Say so."), "what is it? Say so."),
        (("it was cut…", "See -v."), "it was cut… See -v."),
        (("a", "", "b.", "c."), "a. b. c."),
        (("alone..",), "alone.."),
    ],
)
def test_sentences_end_with_one_mark(parts: tuple[str, ...], text: str) -> None:
    """Whatever a part ends with, there is one mark between it and the next."""
    assert sentences(*parts) == text
    assert str(UsageError("here", *(parts * 2)[:2])) == f"here: {sentences(*(parts * 2)[:2])}"
