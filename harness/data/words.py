"""Class names, prompt templates and captions: what of them can be used, checked before a prompt is
made.

A template marks the place of the class name with ``{c}``, as CLIP_benchmark's do.  It is filled by
replacing those three characters: a format string would evaluate attributes and indices of what it
is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness import files
from harness.errors import UsageError

PLACE = "{c}"
#: Characters of one class name, template or caption: published captions have some hundred.
MAX_LENGTH = 20_000
#: Prompts of one task; ImageNet's 1,000 classes have 80 templates each.
MAX_PROMPTS = 2_000_000

_FIX_TEMPLATE = "Write {c} where the class name belongs, as in 'a photo of a {c}.'."


def problem(text: str) -> str | None:
    """Reason why *text* cannot be a class name, a template or a caption, or None."""
    if not text.strip():
        return "is empty"
    if len(text) > MAX_LENGTH:
        return f"has {len(text):,} characters, the limit is {MAX_LENGTH:,}"
    if any("\ud800" <= c <= "\udfff" for c in text):
        return "holds half of a surrogate pair, which is not a character"
    return None


def template_problem(template: str) -> str | None:
    """Reason why *template* cannot be used as a prompt template, or None."""
    reason = problem(template)
    if reason is not None:
        return reason
    rest = template.replace(PLACE, "")
    if "{" in rest or "}" in rest:
        return f"is {files.shown(template)}: braces other than those of {PLACE}"
    if PLACE not in template:
        return f"is {files.shown(template)}: no place for the class name"
    return None


def fill(template: str, name: str) -> str:
    """Return *template* with the class *name* in its places."""
    return template.replace(PLACE, name)


def read_class_names(path: Path, fix: str) -> list[str]:
    """Return the class names of a webdataset, one per line.

    Raises:
        UsageError: the file cannot be read, a line is empty or unusable, or fewer than two names
            differ.
    """
    names = _lines(path, fix)
    for number, name in enumerate(names, 1):
        reason = problem(name)
        if reason is not None:
            fix_line = "Write the class name, or remove the line: the n-th line names class n - 1."
            raise UsageError(f"{path}:{number}", f"the class name {reason}", fix_line)
    if len(set(names)) < 2:
        raise UsageError(
            path,
            f"holds {len(set(names))} different class names, expected at least 2",
            "Add the others.",
        )
    return names


def read_templates(path: Path, fix: str) -> list[str]:
    """Return the prompt templates of a webdataset, one per line.

    Raises:
        UsageError: the file cannot be read, is empty, or a line is not a template.
    """
    templates = _lines(path, fix)
    if not templates:
        raise UsageError(path, "holds no template", _FIX_TEMPLATE)
    for number, template in enumerate(templates, 1):
        reason = template_problem(template)
        if reason is not None:
            raise UsageError(f"{path}:{number}", f"the template {reason}", _FIX_TEMPLATE)
    return templates


def check_count(prompts: int, place: Path) -> None:
    """Refuse more prompts than a task can have.

    Raises:
        UsageError: there are more than MAX_PROMPTS.
    """
    if prompts > MAX_PROMPTS:
        what = (
            f"makes {prompts:,} prompts (classes times templates, or captions), the limit is "
            f"{MAX_PROMPTS:,}"
        )
        raise UsageError(place, what, "Give fewer templates, or a part of the data set.")


def caption_lines(data: bytes) -> list[str]:
    """Return the captions in a caption file's content: its lines, without those that hold no word.

    Raises:
        ValueError: the content is not UTF-8 text, or a caption cannot be used.
    """
    captions = [line for line in data.decode("utf-8").splitlines() if line.strip()]
    check_all(captions)
    return captions


def check_all(captions: Sequence[str]) -> None:
    """Refuse captions that cannot be used.

    Raises:
        ValueError: with the number of the first such caption.
    """
    for number, caption in enumerate(captions, 1):
        reason = problem(caption)
        if reason is not None:
            raise ValueError(f"caption {number} {reason}")


def _lines(path: Path, fix: str) -> list[str]:
    """The lines of *path* without blanks around them, split where CLIP_benchmark splits them."""
    lines = files.read_lines(path, what="text file", fix=fix)
    for number, line in enumerate(lines, 1):
        if len(line.splitlines()) > 1:
            what = f"holds a line separator inside of the line: {files.shown(line)}"
            raise UsageError(f"{path}:{number}", what, "Write one line for each.")
    return [line.strip() for line in lines]
