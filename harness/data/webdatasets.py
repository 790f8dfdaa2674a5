"""CLIP_benchmark's webdatasets: numbered tar archives with pictures, labels or captions, and text
files next to them.

Samples are formed as the package webdataset forms them (files of one name up to its first dot, in
order of the archive), but nothing in an archive is decoded on sight, and a picture is not read
before it is asked for: only where its bytes are is kept.
"""

from __future__ import annotations

import re
import shlex
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from harness import files
from harness.data import words
from harness.data.pictures import PictureFile
from harness.errors import UsageError

CLASSIFICATION, RETRIEVAL = "classification", "retrieval"
FIX = (
    "Give a CLIP_benchmark webdataset: test/nshards.txt, test/0.tar, ..., classnames.txt or "
    "dataset_type.txt."
)

PICTURES = ("webp", "png", "jpg", "jpeg")
#: What a member of a sample may be.  The package webdataset unpickles some others.
_MEMBERS = (*PICTURES, "cls", "txt", "json")
#: Bytes of a label or caption file, and of a header of an archive.
_MAX_SMALL = 1 << 20
_MAX_NAME = 1000
_BLOCK = tarfile.BLOCKSIZE
_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")
_META = re.compile(r"__[^/]*__($|/)")
_DIGITS = re.compile(r"[0-9]{1,12}")


@dataclass
class Sample:
    """Files of one name in a shard: where its picture is, and the content of its label and
    captions.

    Attributes:
        shard: the archive.
        key: the name.
        members: ending to where the file is.
        small: ending to the content of a label or caption file.
    """

    shard: Path
    key: str
    members: dict[str, PictureFile] = field(default_factory=dict)
    small: dict[str, bytes] = field(default_factory=dict)

    @property
    def picture(self) -> PictureFile:
        """Where the picture is.

        Raises:
            UsageError: there is none.
        """
        for ending in PICTURES:
            if ending in self.members:
                return self.members[ending]
        raise UsageError(
            self.shard, f"sample {self.key} has no picture", f"Allowed are: {', '.join(PICTURES)}."
        )

    @property
    def label(self) -> int:
        """The class's position.

        Raises:
            UsageError: there is none, or it is not a whole number.
        """
        fix = "A classification sample has a .cls member: a whole number."
        if "cls" not in self.small:
            raise UsageError(self.shard, f"sample {self.key} has no label", fix)
        text = self.small["cls"].strip()
        if not re.fullmatch(rb"-?[0-9]{1,9}", text):
            raise UsageError(
                self.shard, f"sample {self.key} has no label, but {files.shown(text)}", fix
            )
        return int(text)

    @property
    def captions(self) -> list[str]:
        """The lines of the caption file, without empty ones.

        Raises:
            UsageError: there is none, or a caption cannot be used.
        """
        if "txt" not in self.small:
            raise UsageError(
                self.shard,
                f"sample {self.key} has no .txt member",
                "A retrieval sample has captions.",
            )
        try:
            captions = words.caption_lines(self.small["txt"])
        except ValueError as error:
            raise UsageError(
                self.shard, f"sample {self.key}: {error}", "Correct its .txt member."
            ) from error
        if not captions:
            raise UsageError(
                self.shard, f"picture {self.key} has no caption", "Give it one, or leave it out."
            )
        return captions


def kind_of(place: Path) -> str:
    """Return the kind that dataset_type.txt in *place* says; classification without the file.

    Raises:
        UsageError: it says something else.
    """
    path = place / "dataset_type.txt"
    if not files.exists(path) and not path.is_symlink():
        return CLASSIFICATION
    text = files.read_text(path, what="data set's kind").strip()
    if text.lower() not in (CLASSIFICATION, RETRIEVAL):
        raise UsageError(path, f"is {files.shown(text)}", f"Write {CLASSIFICATION} or {RETRIEVAL}.")
    return text.lower()


def clusters(place: Path, n: int) -> list[int] | None:
    """Return ``clusters.txt``, which CLIP_benchmark ignores: samples of one drawing share a number.

    Raises:
        UsageError: it does not hold one number from 0 up for each of *n* samples.
    """
    path, fix = place / "clusters.txt", "Write one whole number from 0 up for each sample."
    if not files.exists(path) and not path.is_symlink():
        return None
    items = files.read_text(
        path, limit=files.MAX_ANNOTATIONS, what="list of numbers", fix=fix
    ).split()
    for number, item in enumerate(items, 1):
        if not _DIGITS.fullmatch(item) or int(item) >= 1 << 31:
            raise UsageError(
                path, f"entry {number} is {files.shown(item)}, which is not a cluster's number", fix
            )
    if len(items) != n:
        raise UsageError(path, f"has {len(items)} numbers for {n} samples", fix)
    return [int(item) for item in items]


def samples(place: Path, split: str) -> Iterator[Sample]:
    """Yield the samples of a webdataset's *split* in their order.

    Raises:
        UsageError: a shard is missing or damaged, or a sample holds a file that no picture task
            has.
    """
    for path in _shards(place / split):
        with archive(path) as shard:
            yield from _grouped(path, shard)


def _shards(folder: Path) -> list[Path]:
    """The archives that nshards.txt counts."""
    numbers = folder / "nshards.txt"
    text = files.read_text(numbers, what="number of shards", fix=FIX).strip()
    if not _DIGITS.fullmatch(text) or int(text) == 0:
        what = f"is not a number of shards: {files.shown(text)}"
        raise UsageError(numbers, what, "Write how many there are, 1 or more: 0.tar, 1.tar, ...")
    paths: list[Path] = []
    for index in range(int(text)):
        path = folder / f"{index}.tar"
        # The first one that is missing ends the list, however long it claims to be
        if not files.exists(path):
            raise UsageError(path, f"is missing, nshards.txt says {int(text)}", FIX)
        paths.append(path)
    return paths


class _Bounded:
    """A file of which no single read is large: a header that claims to be would be kept in
    memory.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        """Return at most *size* bytes."""
        if not 0 <= size <= _MAX_SMALL:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._file.read(size)

    def seek(self, position: int) -> int:
        """Move to *position*."""
        return self._file.seek(position)

    def tell(self) -> int:
        """Return the position."""
        return self._file.tell()


@contextmanager
def archive(path: Path, fix: str = FIX) -> Iterator[tarfile.TarFile]:
    """Open the archive *path* for the length of the block.

    Raises:
        UsageError: whatever is wrong with it.
    """
    with files.opened(path, what="shard", fix=fix) as file:
        if file.read(2) == b"\x1f\x8b":
            packed, plain = shlex.quote(str(path)), shlex.quote(f"{path}.plain")
            fix = f"Unpack it: gzip -dc < {packed} > {plain} && mv {plain} {packed}"
            raise UsageError(path, "is compressed", fix)
        file.seek(0)
        try:
            bounded: Any = _Bounded(file)
            with tarfile.open(fileobj=bounded, mode="r:") as shard:
                yield shard
        except UsageError:
            raise
        except Exception as error:  # tarfile raises ten kinds for damaged headers
            raise UsageError(
                path, f"the shard is damaged ({error})", "Fetch the shards again."
            ) from error


def _grouped(path: Path, shard: tarfile.TarFile) -> Iterator[Sample]:
    """The samples of one archive: neighbours that share a name."""
    current: Sample | None = None
    for entry in entries(shard):
        matched = _NAME.fullmatch(entry.name)
        if not entry.isreg() or _META.match(entry.name) or not matched:
            continue
        key, ending = matched[1], matched[2].lower()
        if current is None or current.key != key:
            if current is not None:
                yield current
            current = Sample(path, key)
        _add(current, ending, entry, shard)
    if current is not None:
        yield current


def entries(shard: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the headers of an archive, up to its end mark.

    Raises:
        tarfile.ReadError: it has none, or a header leads backwards.
    """
    before = -1
    while (entry := shard.next()) is not None:
        if entry.size < 0 or shard.offset <= before:
            raise tarfile.ReadError("a header with a negative size")
        before = shard.offset
        yield entry
        shard.members = []  # type: ignore[attr-defined]  # it would keep all of them
    file: Any = shard.fileobj
    # TarFile.next takes a header that it cannot read for the end.
    file.seek(shard.offset)
    if file.read(_BLOCK) != bytes(_BLOCK):
        raise tarfile.ReadError(f"cut off, or no header at byte {shard.offset:,}")


def _add(sample: Sample, ending: str, entry: tarfile.TarInfo, shard: tarfile.TarFile) -> None:
    """Take *entry* into its *sample*."""
    path, key = sample.shard, sample.key
    if len(entry.name) > _MAX_NAME or any("\ud800" <= c <= "\udfff" for c in entry.name):
        what = (
            f"the name of member {files.shown(entry.name)} is not UTF-8, or longer than "
            f"{_MAX_NAME} characters"
        )
        raise UsageError(path, what, "Name it by a number.")
    if ending not in _MEMBERS:
        what = f"sample {key} has a member .{ending}"
        raise UsageError(path, what, f"Allowed are: {', '.join(sorted(_MEMBERS))}.")
    if ending in sample.members:
        raise UsageError(
            path, f"sample {key} has two members .{ending}", "Give each sample a name of its own."
        )
    limit = files.MAX_PICTURE if ending in PICTURES else _MAX_SMALL
    if entry.size > limit or entry.issparse():
        what = (
            f"sample {key} has a member .{ending} of {entry.size:,} bytes, the limit is {limit:,}"
        )
        raise UsageError(path, what, "Make it smaller, or leave the sample out.")
    sample.members[ending] = PictureFile(path, offset=entry.offset_data, size=entry.size)
    if ending in ("cls", "txt"):
        sample.small[ending] = sample_bytes(shard, entry)


def sample_bytes(shard: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    """Return the content of a small member."""
    file = shard.extractfile(entry)
    assert file is not None, "a regular member"
    return file.read()
