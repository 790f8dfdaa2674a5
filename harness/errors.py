"""What a person gave that cannot be used."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class UsageError(Exception):
    """Bad input, reported in one line: the file (or option), what is wrong there, and the fix.

    The plugin turns it into pytest's usage error: exit code 4, nothing written.  ``where``,
    ``what`` and ``fix`` are kept as they were given; the place of an entry of a recipe also knows
    its column.
    """

    def __init__(self, where: str | Path, what: str, fix: str) -> None:
        self.where, self.what, self.fix = where, what, fix
        self._parts = (str(where), what, fix)
        where, what = _cut(str(where), 600), _cut(what, 2400)
        line = f"{where}: {sentences(what, fix)}"
        # One line even where a name or a library's message brings its own line breaks or control
        # characters.
        super().__init__("".join(c if c.isprintable() else " " for c in " ".join(line.split())))

    def __reduce__(self) -> tuple[type[UsageError], tuple[str, str, str]]:
        """Let it travel from the process that reads pictures to the one that reports."""
        return type(self), self._parts

    @property
    def lines(self) -> tuple[str, ...]:
        """One line for each thing that cannot be used."""
        return (str(self),)


class CombinedUsageError(UsageError):
    """Several things that cannot be used, one line each, reported at once."""

    def __init__(self, errors: Sequence[UsageError]) -> None:
        self.errors = tuple(errors)
        Exception.__init__(self, "\n".join(self.lines))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.errors,)

    @property
    def lines(self) -> tuple[str, ...]:
        """As of :class:`UsageError`."""
        return tuple(line for error in self.errors for line in error.lines)


class UnforeseenError(UsageError):
    """An error that came out of reading what somebody gave, and that no check foresaw: a defect of
    the gate.

    It is reported like bad input, before anything is computed; its cause is the error itself.
    """

    def __init__(self, where: str | Path, error: Exception) -> None:
        innermost = traceback.extract_tb(error.__traceback__)[-1:]
        at = "".join(
            f", {Path(f.filename).parent.name}/{Path(f.filename).name}:{f.lineno}"
            for f in innermost
        )
        what = f"cannot be read ({one_line(error)}{at})"
        super().__init__(
            where, what, "This is a defect of the gate: please report it; -v shows the traceback."
        )


@contextmanager
def reading(where: str | Path) -> Iterator[None]:
    """Name what is read within the block in whatever is raised there.

    Raises:
        UsageError: what was given cannot be used, or (:class:`UnforeseenError`) nobody foresaw it.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        raise UnforeseenError(where, error) from error


def raise_all(errors: Sequence[UsageError]) -> None:
    """Raise all of *errors*, each once, as one; nothing where there is none.

    Raises:
        UsageError: there is one, or several.
    """
    different = list({str(error): error for error in errors}.values())
    if len(different) == 1:
        raise different[0]
    if different:
        raise CombinedUsageError(different)


def sentences(*parts: str) -> str:
    """*parts* as one text, in which each but the last ends with one mark: its own, or a full
    stop.
    """
    *heads, last = (part.strip() for part in parts if part.strip())
    ended = [head.rstrip(".") + "." if head[-1] not in "?!…:" else head for head in heads]
    return " ".join([*ended, last])


def _cut(text: str, most: int) -> str:
    """*text* without its middle where it is longer than *most* characters: what somebody gave may
    be.
    """
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 4 :]}"


def forget_frames(error: BaseException) -> None:
    """Drop the tracebacks of *error* and of what it was raised from, and with them all that their
    frames hold.
    """
    cause: BaseException | None = error
    while cause is not None:
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__


def ran_out_of_memory(error: BaseException) -> bool:
    """Return whether *error* says that memory was exhausted: Python's, NumPy's and torch's ways of
    saying so.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    # torch raises a plain RuntimeError for the memory of a CPU, and for what cuBLAS and cuDNN
    # cannot get.
    phrases = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in phrases)


def one_line(error: BaseException) -> str:
    """The kind of *error* and its own words, on one line of at most 400 characters."""
    return f"{type(error).__name__}: {_cut(' '.join(str(error).split()), 400)}"
