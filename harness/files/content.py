"""Bytes and text of the files that a user names, and how a file is replaced as a whole."""

from __future__ import annotations

import codecs
import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from harness.errors import UsageError
from harness.files.limits import MAX_TEXT, MIB
from harness.files.messages import cut
from harness.files.paths import expand, refuse_kind, refuse_unreadable, resolved, status

_CHUNK = MIB
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOCTTY", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)


@contextmanager
def opened(
    path: str | Path,
    *,
    inside: str | Path | None = None,
    what: str = "file",
    fix: str | None = None,
) -> Iterator[BinaryIO]:
    """Open the regular file *path* for reading bytes, for the length of the block: what is too
    large to be kept.

    Raises:
        UsageError: as :func:`regular_file`, or it cannot be read.
    """
    expanded = expand(path)
    mode = status(expanded, what, fix).st_mode
    if not stat.S_ISREG(mode):  # before it is opened: opening some devices has effects
        refuse_kind(expanded, mode, what, fix)
    real = resolved(expanded, inside, what, fix)
    try:
        file = open(real, "rb", opener=_open_without_waiting)  # noqa: SIM115
    except OSError as error:
        refuse_unreadable(expanded, error, fix)
    with file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode):  # it was replaced in between
            refuse_kind(expanded, mode, what, fix)
        try:
            yield file
        except OSError as error:
            if error.filename is not None:  # of another file
                raise
            refuse_unreadable(expanded, error, fix)


def read_bytes(
    path: str | Path,
    *,
    limit: int,
    inside: str | Path | None = None,
    what: str = "file",
    fix: str | None = None,
) -> bytes:
    """Return the content of the regular file *path*, at most *limit* bytes.

    Raises:
        UsageError: as :func:`opened`, or it is larger.
    """
    with opened(path, inside=inside, what=what, fix=fix) as file:
        chunks: list[bytes] = []
        total = os.fstat(file.fileno()).st_size
        if total <= limit:
            total = 0
            while total <= limit and (chunk := file.read(_CHUNK)):
                chunks.append(chunk)
                total += len(chunk)
    if total > limit:
        problem = f"is larger than {limit:,} bytes, the limit for this {what}"
        raise UsageError(cut(path), problem, fix or "Give a smaller file.")
    return b"".join(chunks)


def read_text(
    path: str | Path,
    *,
    limit: int = MAX_TEXT,
    inside: str | Path | None = None,
    what: str = "file",
    fix: str | None = None,
) -> str:
    r"""Return the text of the UTF-8 file *path*: without a byte order mark, each end of line as
    ``\n``.

    Raises:
        UsageError: as :func:`read_bytes`, or it is not UTF-8 text; with the line and the byte.
    """
    data = read_bytes(path, limit=limit, inside=inside, what=what, fix=fix)
    return decoded(data, path, fix).replace("\r\n", "\n").replace("\r", "\n")


def read_lines(
    path: str | Path,
    *,
    limit: int = MAX_TEXT,
    inside: str | Path | None = None,
    what: str = "file",
    fix: str | None = None,
) -> list[str]:
    """Return the lines of the UTF-8 file *path*, blank ones included, so that line i + 1 is item i.

    Raises:
        UsageError: as :func:`read_text`.
    """
    text = read_text(path, limit=limit, inside=inside, what=what, fix=fix)
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return lines


def decoded(data: bytes, path: str | Path, fix: str | None) -> str:
    """Return *data*, the content of the file *path*, as text.

    Raises:
        UsageError: it is not UTF-8 text; with the line and the byte.
    """
    if data.startswith(_UTF16):
        raise UsageError(cut(path), "is UTF-16, not UTF-8 text", fix or "Save it as UTF-8.")
    start = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
    try:
        text = data[start:].decode("utf-8")
    except UnicodeDecodeError as error:
        offset = start + error.start
        problem = f"byte {offset} (0x{data[offset]:02x}) is not UTF-8 text"
        raise UsageError(_line(path, data, offset), problem, fix or "Save it as UTF-8.") from None
    nul = data.find(b"\0")
    if nul >= 0:
        problem = f"byte {nul} is 0x00, expected text"
        raise UsageError(_line(path, data, nul), problem, fix or "Give a text file.")
    return text


def _line(path: str | Path, data: bytes, offset: int) -> str:
    number = data.count(b"\n", 0, offset) + 1
    return f"{cut(path)}:{number}"


def _open_without_waiting(path: str, _flags: int) -> int:
    """A descriptor for reading; that of a pipe or a device is open at once and is looked at before
    it is read.
    """
    return os.open(path, _FLAGS)


def write_whole(path: Path, data: bytes, *, temporary: str, durable: bool = True) -> None:
    """Replace *path* as a whole: readers and a kill at any moment see the old bytes or the new.

    Args:
        path: the file; its folder is made if there is none.
        data: the new content.
        temporary: how the name of the file begins that is written next to it first.
        durable: whether the content is on the disk before the name is, and the name before this
            returns.

    Raises:
        OSError: it could not be written; nothing is left of the attempt.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unnamed = path.parent / f"{temporary}{os.getpid()}-{secrets.token_hex(4)}"
    descriptor = os.open(unnamed, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(unnamed, path)  # noqa: PTH105
    except BaseException:
        with contextlib.suppress(OSError):
            unnamed.unlink(missing_ok=True)
        raise
    if durable and os.name == "posix":
        # The rename itself reaches the disk only with its folder.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
