"""Names from pull requests, data sets and exceptions, made safe for a terminal or a log.

A terminal obeys control characters; GitHub's runner obeys ``::command::`` at the beginning of a
line of a log and ``##[command]`` anywhere in it.
"""

from __future__ import annotations

#: Characters of one name that are shown; enough for a quantizer's path in the largest models.
WIDTH = 160


def visible(value: object, width: int | None = None) -> str:
    r"""*value* on one line with every character visible: ``\n`` and ``\x1b`` stand for what they
    name.
    """
    text = str(value)
    if width is not None and len(text) > width:
        text = text[: width - 1] + "…"
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def shown(value: object, width: int | None = WIDTH) -> str:
    """*value* for a terminal or a log: visible, of *width* characters at most (before escapes), and
    no command.
    """
    text = visible(value, width).replace("##[", "# #[")
    return text.replace("::", ": :", 1) if text.lstrip().startswith("::") else text
