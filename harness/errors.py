"""What a person gave that cannot be used."""

from __future__ import annotations

from pathlib import Path


class UsageError(Exception):
    """Bad input, told in one line: the file (or option), what is wrong there, and the mend.

    The plugin turns it into pytest's usage error: exit code 4, nothing written.
    """

    def __init__(self, where: str | Path, what: str, fix: str) -> None:
        self._parts = (str(where), what, fix)
        line = f"{where}: {what.rstrip('.')}. {fix}"
        # One line even where a name or a library's message brings its own line breaks or control characters.
        super().__init__("".join(c if c.isprintable() else " " for c in " ".join(line.split())))

    def __reduce__(self) -> tuple[type[UsageError], tuple[str, str, str]]:
        """Let it travel from the process that reads pictures to the one that reports."""
        return type(self), self._parts
