"""Image-text pairs that calibrate both towers.

A recipe's static scales are the largest magnitudes seen while these pairs run through the model.
Texts keep the full context length, padding included, because that is the shape a deployed text
tower sees.
"""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness import files
from harness.data import coco, inputs, samples, webdatasets
from harness.data.inputs import Pictures
from harness.data.pictures import PictureFile, PictureFiles, Resized
from harness.data.tasks import context_of
from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.models.references import Reference

SIZE = 8192  #: pairs by default, as the published recipe takes from COCO
#: Folders of COCO pictures, next to an annotation file or in ``images`` there; training pictures
#: come first, as the retrieval task is made of validation pictures.
_COCO_SPLITS = ("train2017", "train2014", "val2017", "val2014")
_COCO_FOLDERS = (*_COCO_SPLITS, *(f"images/{split}" for split in _COCO_SPLITS), "images")
_FIX = (
    "Give a webdataset of the retrieval form (nshards.txt, 0.tar, ... with pictures and .txt "
    "captions), a COCO folder "
    "(annotations/captions_*.json, with its pictures in train2017, images/train2017, ...), or one "
    "of its annotation "
    "files."
)


@dataclass(frozen=True)
class CalibrationPairs:
    """``n`` pictures with one caption each, ready for one reference.

    ``pictures`` come with their ``shades``, and ``ids`` are token ids, int64 (n, context); None for
    a reference that has no use for them.  ``hash`` is the SHA-256 over pictures and captions.
    """

    source: str
    n: int
    pictures: Pictures | None
    shades: Tensor | None
    ids: Tensor | None
    hash: str

    def decode(self) -> None:
        """Decode the pictures that fit in memory, so that a broken one is found now.

        Raises:
            UsageError: a picture cannot be read.
        """
        if self.pictures is not None:
            self.pictures.decode()

    def batches(
        self,
        device: torch.device,
        dtype: torch.dtype,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Batches:
        """The pairs as model inputs on *device*; by default 512 a batch on CUDA, 64 elsewhere."""
        return Batches(
            self, device, dtype, batch_size or inputs.default_batch_size(device), progress
        )


@dataclass(frozen=True)
class Batches:
    """Model inputs ``{"pixel_values": (b, 3, h, w) in dtype, "input_ids": int64 (b, context)}``,
    which can be iterated again.

    A reference that reads only one of the two gets only that.

    An object rather than a generator: AWQ and SmoothQuant run their calibration loop several times,
    and a generator would be empty, silently, from the second on.
    """

    pairs: CalibrationPairs
    device: torch.device
    dtype: torch.dtype
    batch_size: int
    progress: bool = False

    def __len__(self) -> int:
        return -(-self.pairs.n // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        from tqdm import tqdm

        both = {"pixel_values": self._pixels(), "input_ids": self._ids()}
        streams = {name: stream for name, stream in both.items() if stream is not None}
        steps = zip(*streams.values(), strict=True)
        for parts in tqdm(
            steps, total=len(self), desc="calibrate", leave=False, disable=not self.progress
        ):
            yield dict(zip(streams, parts, strict=True))

    def _pixels(self) -> Iterator[Tensor] | None:
        pictures, shades = self.pairs.pictures, self.pairs.shades
        if pictures is None or shades is None:
            return None
        table = shades.to(self.device, self.dtype)
        return (
            inputs.pixel_values(batch.to(self.device), table)
            for batch in pictures.batches(self.batch_size)
        )

    def _ids(self) -> Iterator[Tensor] | None:
        ids = self.pairs.ids
        return (
            None
            if ids is None
            else (part.to(self.device) for part in torch.split(ids, self.batch_size))
        )


def load(
    source: str | Path | None, reference: Reference, size: int = SIZE, seed: int = 0
) -> CalibrationPairs:
    """Up to *size* pairs from *source*, for *reference*'s input size and tokenizer.

    Args:
        source: None or ``embedded``; the folder of a webdataset of the retrieval form (its
            ``train`` split, else its ``test`` split, or the shards themselves); a COCO folder, or
            one of its caption annotation files.
        reference: whose tokenizer and image processor are used.
        size: at most so many pairs.  A webdataset gives its first ones (they are written shuffled);
            of COCO pictures a random choice is drawn from *seed*, one caption each.
        seed: of that choice.

    Raises:
        UsageError: nothing usable is there, or a file is damaged.
    """
    if size < 1:
        raise UsageError(
            f"--calibration-size {size}", "leaves nothing to calibrate with", "Give at least 1."
        )
    stored = _embedded(size) if source in (None, "embedded") else _stored(str(source), size, seed)
    resize = None if reference.image_processor is None else inputs.Resize(reference.image_processor)
    pictures = None
    if resize is not None:
        pictures = Pictures(Resized(stored.pictures, resize), stored.pictures.names, resize.shape)
    return _pairs(stored, pictures, reference)


@dataclass(frozen=True)
class _Stored:
    """Pairs as they are stored: pictures, each with a caption."""

    place: Path
    pictures: PictureFiles
    captions: list[str]

    def hash(self) -> str:
        """SHA-256 over pictures and captions; each picture is checked as far as its header and its
        end show.
        """
        digest = hashlib.sha256()
        for content, caption in zip(self.pictures.contents(), self.captions, strict=True):
            digest.update(hashlib.sha256(content).digest() + caption.encode() + b"\0")
        return digest.hexdigest()


def _embedded(size: int) -> _Stored:
    return _from_webdataset(samples.EMBEDDED / "calibration" / "test", size)


def _stored(source: str, size: int, seed: int) -> _Stored:
    """The pairs in the folder or annotation file that a person gave."""
    if samples.ADDRESS.match(source):
        fix = "Download it first and give the folder."
        raise UsageError(f"--calibration-data {source}", "is an address, not a folder", fix)
    place = files.expand(source, option="--calibration-data").absolute()
    if not files.exists(place):
        raise UsageError(f"--calibration-data {place}", "does not exist", _FIX)
    for split in (place / "train", place / "test", place):
        if files.exists(split / "nshards.txt"):
            return _from_webdataset(split, size)
    return _from_coco(*_coco_files(place), size, seed)


def _from_webdataset(split: Path, size: int) -> _Stored:
    kind = split.parent / "dataset_type.txt"
    stated = files.exists(kind) or kind.is_symlink()
    if stated and webdatasets.kind_of(split.parent) != webdatasets.RETRIEVAL:
        raise UsageError(
            kind, f"is not '{webdatasets.RETRIEVAL}'", "Calibration needs pictures with captions."
        )
    names: list[str] = []
    stored: list[PictureFile] = []
    captions: list[str] = []
    for sample in itertools.islice(webdatasets.samples(split.parent, split.name), size):
        names.append(sample.key)
        stored.append(sample.picture)
        captions.append(sample.captions[0])
    if not names:
        raise UsageError(split, "holds no pair", _FIX)
    return _Stored(split, PictureFiles(stored, names), captions)


def _coco_files(place: Path) -> tuple[Path, list[Path]]:
    """The caption annotation file and the folders in which its pictures may be."""
    if not files.is_folder(place):
        above = [place.parent, place.parent.parent]
        return place, [base / name for base in above for name in _COCO_FOLDERS] + above
    names = {
        folder: files.names(folder)
        for folder in (place / "annotations", place)
        if files.is_folder(folder)
    }
    for pattern in ("captions_train*.json", "coco_train_*.json", "captions_*.json", "coco_*.json"):
        for folder, held in names.items():
            matching = fnmatch.filter(held, pattern)
            if matching:
                return folder / max(matching), [place / name for name in _COCO_FOLDERS] + [place]
    raise UsageError(place, "holds neither shards nor caption annotations", _FIX)


def _from_coco(path: Path, folders: list[Path], size: int, seed: int) -> _Stored:
    annotations = coco.read(path)
    # The split's own folder first: COCO's annotation files carry its name
    # (captions_train2017.json).
    folders = sorted(folders, key=lambda folder: folder.name not in path.name)
    known = coco.in_order(
        [number for number in annotations.captions if number in annotations.file_names]
    )
    if not known:
        raise UsageError(path, "names no picture with a caption", _FIX)
    rng = random.Random(seed)
    chosen = coco.in_order(rng.sample(known, min(size, len(known))))
    captions = [rng.choice(annotations.captions[number]) for number in chosen]
    stored = [annotations.located(number, folders) for number in chosen]
    return _Stored(path, PictureFiles(stored, [picture.path.name for picture in stored]), captions)


def _pairs(stored: _Stored, pictures: Pictures | None, reference: Reference) -> CalibrationPairs:
    shades = None if pictures is None else inputs.shades(reference.image_processor)
    ids = None
    if reference.tokenizer is not None:
        prompts = inputs.tokenize(reference.tokenizer, stored.captions, context_of(reference))
        ids = prompts.ids[prompts.rows]
    return CalibrationPairs(
        str(stored.place), len(stored.captions), pictures, shades, ids, stored.hash()
    )
