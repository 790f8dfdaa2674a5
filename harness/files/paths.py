"""Paths that a user names: what is there is looked at before anything is opened."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import NoReturn

from harness.errors import UsageError
from harness.files.limits import MAX_NAMES
from harness.files.messages import cut

_CORRECT_PATH = "Correct the path."
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def expand(path: str | Path, *, option: str = "") -> Path:
    """Return *path* with a leading ``~`` or ``~user`` replaced by the home folder.

    Args:
        path: what the user wrote.
        option: the command-line option that it was given to, for the message.

    Raises:
        UsageError: it is empty, names an unknown user, holds a NUL or a character that no file name
            can hold, or is longer than the operating system allows.
    """
    text = os.fspath(path)
    where = f"{option} {cut(text)}" if option else cut(text)
    if not text:
        raise UsageError(option or "a path", "is empty", "Give a path.")
    try:
        expanded = os.path.expanduser(text)  # noqa: PTH111  (Path's raises RuntimeError)
        if expanded.startswith("~"):
            user = text.split("/", 1)[0]
            fix = f"Write the folder's path; for a file of that name, ./{cut(text)}."
            raise UsageError(
                where,
                f"there is no user {cut(user[1:])!r}, whose home folder {cut(user)} is",
                fix,
            )
        os.lstat(expanded)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UsageError(
                where, f"a path of {len(text):,} characters is too long", _CORRECT_PATH
            ) from None
    except ValueError as error:  # a NUL, or half of a surrogate pair
        raise UsageError(where, f"cannot be a path ({error})", _CORRECT_PATH) from None
    return Path(expanded)


def regular_file(
    path: str | Path,
    *,
    inside: str | Path | None = None,
    what: str = "file",
    fix: str | None = None,
) -> Path:
    """Return *path*, expanded, once it is known to be a regular file (or a link to one).

    Args:
        path: what the user named.
        inside: the folder that the file must be in after all links are followed; None for anywhere.
        what: what the file is, for the message, such as "picture".
        fix: the sentence that ends the message.

    Raises:
        UsageError: it is absent, a folder, a named pipe, a device, a dangling link, or outside
            *inside*.
    """
    expanded = expand(path)
    mode = status(expanded, what, fix).st_mode
    if not stat.S_ISREG(mode):
        refuse_kind(expanded, mode, what, fix)
    resolved(expanded, inside, what, fix)
    return expanded


def folder(
    path: str | Path,
    *,
    inside: str | Path | None = None,
    what: str = "folder",
    fix: str | None = None,
) -> Path:
    """Return *path*, expanded, once it is known to be a folder (or a link to one) that can be
    listed.

    Raises:
        UsageError: it is absent, not a folder, not readable, or outside *inside*.
    """
    expanded = expand(path)
    if not stat.S_ISDIR(status(expanded, what, fix).st_mode):
        raise UsageError(cut(expanded), f"is a file, expected a {what}", fix or "Give a folder.")
    resolved(expanded, inside, what, fix)
    if not os.access(expanded, os.R_OK | os.X_OK):
        raise UsageError(
            cut(expanded), f"the {what} cannot be read (permission denied)", fix or "Allow it."
        )
    return expanded


def exists(path: str | Path) -> bool:
    """True if *path* is a file or a folder, links followed; False for anything else, whatever is
    wrong with it.
    """
    return _mode(path) is not None


def is_file(path: str | Path) -> bool:
    """True if *path* is a regular file, links followed; never raises."""
    mode = _mode(path)
    return mode is not None and stat.S_ISREG(mode)


def is_folder(path: str | Path) -> bool:
    """True if *path* is a folder, links followed; never raises."""
    mode = _mode(path)
    return mode is not None and stat.S_ISDIR(mode)


def names(path: str | Path, *, what: str = "folder", fix: str | None = None) -> list[str]:
    """Return the names of what is in the folder *path*, sorted.

    Raises:
        UsageError: it is not a folder that can be listed, or holds more than ``MAX_NAMES`` names.
    """
    expanded = folder(path, what=what, fix=fix)
    entry_names: list[str] = []
    try:
        with os.scandir(expanded) as entries:
            for entry in entries:
                entry_names.append(entry.name)
                if len(entry_names) > MAX_NAMES:
                    problem = f"holds more than {MAX_NAMES:,} files"
                    raise UsageError(
                        cut(expanded),
                        problem,
                        fix or "Give the folder of the files that are meant.",
                    )
    except OSError as error:
        refuse_unreadable(expanded, error, fix)
    return sorted(entry_names)


def _mode(path: str | Path) -> int | None:
    """The type bits of *path*, links followed; None where there is nothing that can be looked
    at.
    """
    try:
        return os.stat(expand(path)).st_mode  # noqa: PTH116
    except (OSError, ValueError, UsageError):
        return None


def status(path: Path, what: str, fix: str | None) -> os.stat_result:
    """Return what the operating system says of *path*, links followed; a UsageError if nothing."""
    try:
        return os.stat(path)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            problem = f"is a link to {cut(os.readlink(path))}, which does not exist"  # noqa: PTH115
            raise UsageError(cut(path), problem, fix or "Correct the link.") from None
        raise UsageError(cut(path), f"there is no such {what}", fix or _CORRECT_PATH) from None
    except OSError as error:
        refuse_unreadable(path, error, fix)


def resolved(path: Path, inside: str | Path | None, what: str, fix: str | None) -> Path:
    """Return *path* with every link followed, which must be in the folder *inside*; unchanged where
    it may be anywhere.
    """
    if inside is None:
        return path  # following links costs more than reading a small file
    try:
        real = Path(os.path.realpath(path, strict=True))
        if not real.is_relative_to(os.path.realpath(expand(inside), strict=True)):
            problem = f"is outside of {cut(inside)}, which the {what} must be in"
            raise UsageError(
                cut(path), problem, fix or "Move it there, and name it by its path in there."
            )
    except OSError as error:
        refuse_unreadable(path, error, fix)
    return real


def refuse_kind(path: Path, mode: int, what: str, fix: str | None) -> NoReturn:
    """Raise the UsageError for *path*, which is not a regular file but what *mode* says."""
    kind = _KINDS.get(stat.S_IFMT(mode), "not a file")
    raise UsageError(cut(path), f"is {kind}, expected a {what}", fix or "Give a regular file.")


def refuse_unreadable(path: Path, error: OSError, fix: str | None) -> NoReturn:
    """Raise the UsageError for *path*, which the operating system did not let us read."""
    reason = error.strerror or str(error)
    raise UsageError(
        cut(path), f"cannot be read ({reason})", fix or "Correct the path or its permissions."
    ) from None
