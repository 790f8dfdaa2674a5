"""Picture files: where each one is stored, and its pixels, bounded before memory is taken for
them.
"""

from __future__ import annotations

import io
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from harness import files
from harness.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

#: Pixels of one picture, as it is stored and as it is resized: Pillow's own limit, a quarter of a
#: GiB in RGB.
MAX_PIXELS = 89_478_485
#: What may be decoded. Pillow starts a program for some others (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")


class PictureError(ValueError):
    """A picture that cannot be used: what is wrong with it, and the fix."""

    def __init__(self, what: str, fix: str = "Restore the file.") -> None:
        super().__init__(what)
        self.what, self.fix = what, fix


@dataclass(frozen=True)
class PictureFile:
    """Where one picture's bytes are: a file of its own, or a part of a shard.

    Args:
        path: the picture file or the shard.
        inside: the folder that a picture file must be in after all links are followed.
        offset: of the first byte in a shard.
        size: bytes in a shard; None for a file of its own.
    """

    path: Path
    inside: Path | None = None
    offset: int = 0
    size: int | None = None

    def read(self) -> bytes:
        """Return the picture's bytes.

        Raises:
            UsageError: the file cannot be read, or is larger than a picture can be.
        """
        if self.size is None:
            return files.read_bytes(
                self.path, limit=files.MAX_PICTURE, inside=self.inside, what="picture"
            )
        with files.opened(self.path, what="shard") as shard:
            return self.read_from(shard)

    def read_from(self, shard: BinaryIO) -> bytes:
        """Return the picture's bytes, which are a part of the opened *shard*.

        Raises:
            UsageError: the shard has become shorter.
        """
        shard.seek(self.offset)
        data = shard.read(-1 if self.size is None else self.size)
        if len(data) != self.size:
            raise UsageError(self.path, "changed while it was read", "Start again.")
        return data


def _all_bytes(stored: Iterable[PictureFile]) -> Iterator[bytes]:
    """The bytes of one picture after the other; a shard is opened once."""
    for path, neighbours in itertools.groupby(stored, key=lambda file: file.path):
        parts = list(neighbours)
        if parts[0].size is None:
            yield from (part.read() for part in parts)
            continue
        with files.opened(path, what="shard") as shard:
            yield from (part.read_from(shard) for part in parts)


def decoded(data: bytes) -> Image.Image:
    """Return a picture file's content as RGB.

    Raises:
        PictureError: it has too many pixels, or is not a picture that can be decoded.
    """
    with _opened(data) as picture:
        try:
            return picture.convert("RGB")
        except Exception as error:
            raise PictureError(f"cannot be read ({_reason(error)})") from error


def check(data: bytes) -> None:
    """Refuse a picture whose header says that it cannot be used, and one that is cut off, without
    decoding the others.

    Raises:
        PictureError: as :func:`decoded`.
    """
    with _opened(data) as picture:
        form = picture.format
    if _may_be_cut(data, form):
        decoded(data)


def check_size(width: int, height: int, *, edge: int = 0) -> None:
    """Refuse a picture that has too many pixels, as it is or once its shorter edge is resized to
    *edge*.

    Raises:
        PictureError: it has more than MAX_PIXELS.
    """
    stored = width * height
    if stored > MAX_PIXELS:
        what = f"has {width:,} x {height:,} pixels, the limit is {MAX_PIXELS:,} in total"
        raise PictureError(what, "Make it smaller, or leave it out.")
    if stored and edge * edge * max(width, height) > MAX_PIXELS * min(width, height):
        what = (
            f"has {width:,} x {height:,} pixels, more than {MAX_PIXELS:,} once its short side is "
            f"resized to {edge}"
        )
        raise PictureError(what, "Crop it, or leave it out.")


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """A picture's header, for the length of the block.

    Raises:
        PictureError: it has too many pixels, or is not a picture.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own limits warn; check_size refuses
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise PictureError(
            f"has more than {MAX_PIXELS:,} pixels", "Make it smaller, or leave it out."
        ) from error
    except Exception as error:
        raise PictureError(f"cannot be read ({_reason(error)})") from error
    with picture:
        check_size(*picture.size)
        yield picture


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"not a picture file of a known format: {', '.join(FORMATS)}"
    return str(error) or type(error).__name__


def _may_be_cut(data: bytes, form: str | None) -> bool:
    """True where a file's end mark is absent; False may be wrong, True is for the decoder to
    decide.
    """
    if form in ("JPEG", "MPO"):
        # End of the picture, start of its last scan
        return data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")
    if form == "PNG":
        return b"IEND" not in data[-64:]
    if form == "WEBP":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    return False


class Source(Protocol):
    """The pictures of a data set, by position."""

    def __len__(self) -> int: ...

    def where(self, index: int) -> Path:
        """Return the file that a picture is in."""
        ...

    def picture(self, index: int) -> Image.Image:
        """Return a picture as RGB.

        Raises:
            PictureError: it cannot be used.
            UsageError: its file cannot be read.
        """
        ...

    def contents(self) -> Iterator[bytes]:
        """Return what a hash over the pictures is taken of; each picture is checked on the way.

        Raises:
            UsageError: a picture cannot be used, as far as its header and its end show.
        """
        ...


@dataclass(frozen=True)
class PictureFiles:
    """Pictures in files or shards, each with the name that messages call it by."""

    stored: Sequence[PictureFile]
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.stored)

    def where(self, index: int) -> Path:
        """As :class:`Source`."""
        return self.stored[index].path

    def picture(self, index: int) -> Image.Image:
        """As :class:`Source`."""
        return decoded(self.stored[index].read())

    def contents(self) -> Iterator[bytes]:
        """As :class:`Source`."""
        for stored, name, data in zip(
            self.stored, self.names, _all_bytes(self.stored), strict=True
        ):
            try:
                check(data)
            except PictureError as error:
                raise unusable(stored.path, name, error) from error
            yield data


@dataclass(frozen=True)
class PictureArray:
    """Pictures in one array of the file *path*: uint8 (n, height, width, 3)."""

    path: Path
    pixels: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.pixels)

    def where(self, index: int) -> Path:
        """As :class:`Source`."""
        return self.path

    def picture(self, index: int) -> Image.Image:
        """As :class:`Source`."""
        return Image.fromarray(self.pixels[index])

    def contents(self) -> Iterator[bytes]:
        """As :class:`Source`."""
        yield self.pixels.tobytes()


def unusable(where: Path, name: str, error: PictureError) -> UsageError:
    """Return the message on the picture *name* in the file *where*."""
    return UsageError(where, f"picture {name} {error.what}", error.fix)


@dataclass(frozen=True)
class Resized:
    """The pictures of a *source* as model inputs: a data set by position."""

    source: Source
    resize: Callable[[Any], Tensor]

    def __len__(self) -> int:
        return len(self.source)

    def where(self, index: int) -> Path:
        """Return the file that a picture is in."""
        return self.source.where(index)

    def __getitem__(self, index: int) -> Tensor:
        return self.resize(self.source.picture(index))
