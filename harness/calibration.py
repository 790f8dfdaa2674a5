"""Image-text pairs that calibrate both towers.

A recipe's static scales are the largest magnitudes seen while these pairs run through the model.  Texts keep the
full context length, padding included, because that is the shape a deployed text tower sees.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness import inputs, samples
from harness.errors import UsageError
from harness.inputs import Pictures
from harness.samples import RETRIEVAL
from harness.tasks import context_of

if TYPE_CHECKING:
    from harness.models import Reference

SIZE = 8192  #: pairs by default, as the published recipe takes from COCO
#: Folders of COCO pictures beside an annotation file, by what its name says; training pictures come first, as the
#: retrieval task is made of validation pictures.
_COCO_FOLDERS = ("train2017", "train2014", "val2017", "val2014", "images")
_MEND = (
    "Give a webdataset of the retrieval form (nshards.txt, 0.tar, ... with pictures and .txt captions), a COCO folder "
    "(annotations/captions_*.json beside train2017, train2014, ...), or one of its annotation files."
)


@dataclass(frozen=True)
class CalibrationPairs:
    """``n`` pictures with one caption each, ready for one reference.

    ``pictures`` come with their ``shades``, and ``ids`` are token ids, int64 (n, context); None for a reference that
    has no use for them.  ``hash`` is the SHA-256 over pictures and captions.
    """

    source: str
    n: int
    pictures: Pictures | None
    shades: Tensor | None
    ids: Tensor | None
    hash: str

    def batches(
        self, device: torch.device, dtype: torch.dtype, batch_size: int | None = None, progress: bool = False
    ) -> Batches:
        """The pairs as model inputs on *device*; by default 512 a batch on CUDA, 64 elsewhere."""
        return Batches(self, device, dtype, batch_size or inputs.default_batch_size(device), progress)


@dataclass(frozen=True)
class Batches:
    """``{"pixel_values": (b, 3, h, w) in dtype, "input_ids": int64 (b, context)}``, as often as they are iterated.

    A reference that reads only one of the two gets only that.

    An object rather than a generator: AWQ and SmoothQuant run their calibration loop several times, and a generator
    would be empty, silently, from the second on.
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
        for parts in tqdm(steps, total=len(self), desc="calibrate", leave=False, disable=not self.progress):
            yield dict(zip(streams, parts, strict=True))

    def _pixels(self) -> Iterator[Tensor] | None:
        pictures, shades = self.pairs.pictures, self.pairs.shades
        if pictures is None or shades is None:
            return None
        table = shades.to(self.device, self.dtype)
        return (inputs.pixel_values(batch.to(self.device), table) for batch in pictures.batches(self.batch_size))

    def _ids(self) -> Iterator[Tensor] | None:
        ids = self.pairs.ids
        return None if ids is None else (part.to(self.device) for part in torch.split(ids, self.batch_size))


def load(source: str | Path | None, reference: Reference, size: int = SIZE, seed: int = 0) -> CalibrationPairs:
    """Up to *size* pairs from *source*, for *reference*'s input size and tokenizer.

    Args:
        source: None or ``embedded``; the folder of a webdataset of the retrieval form (its ``train`` split, else its
            ``test`` split, or the shards themselves); a COCO folder, or one of its caption annotation files.
        reference: whose tokenizer and image processor are used.
        size: at most so many pairs.  A webdataset gives its first ones (they are written shuffled); of COCO pictures
            a random choice is drawn from *seed*, one caption each.
        seed: of that choice.

    Raises:
        UsageError: nothing usable lies there, or a file is damaged.
    """
    if size < 1:
        raise UsageError(f"--calibration-size {size}", "leaves nothing to calibrate with", "Give at least 1.")
    resize = None if reference.image_processor is None else inputs.Resize(reference.image_processor)
    place = (
        samples.EMBEDDED / "calibration" if source in (None, "embedded") else Path(str(source)).expanduser().absolute()
    )
    if samples.ADDRESS.match(str(source)):
        mend = "Download it first and give the folder."
        raise UsageError(f"--calibration-data {source}", "is an address, not a folder", mend)
    if not place.exists():
        raise UsageError(f"--calibration-data {place}", "does not exist", _MEND)
    split = _split(place)
    if split is not None:
        return _from_webdataset(split, resize, reference, size)
    return _from_coco(*_coco_files(place), resize, reference, size, seed)


def _split(place: Path) -> Path | None:
    for folder in (place / "train", place / "test", place):
        if (folder / "nshards.txt").is_file():
            return folder
    return None


def _from_webdataset(split: Path, resize: inputs.Resize | None, reference: Reference, size: int) -> CalibrationPairs:
    kind = split.parent / "dataset_type.txt"
    if kind.is_file() and kind.read_text().strip().lower() != RETRIEVAL:
        raise UsageError(kind, "is not 'retrieval'", "Calibration needs pictures with captions.")
    names, captions, digest = [], [], hashlib.sha256()
    for sample in samples.shards(split.parent, split.name):
        lines = samples.captions_of(sample, split)
        if not lines:
            raise UsageError(split, f"picture {sample['__key__']} has no caption", "Give it one, or leave it out.")
        names.append(sample["__key__"])
        captions.append(lines[0])
        digest.update(hashlib.sha256(samples.picture_of(sample, split)).digest() + lines[0].encode() + b"\0")
        if len(names) == size:
            break
    if not names:
        raise UsageError(split, "holds no pair", _MEND)
    pictures = None if resize is None else Pictures(_Shards(split, resize), names, resize.shape, split)
    return _pairs(split, pictures, captions, reference, digest.hexdigest())


class _Shards(torch.utils.data.IterableDataset[Any]):
    """The pictures of a webdataset's split, as :class:`Pictures` takes them."""

    def __init__(self, split: Path, resize: inputs.Resize) -> None:
        self._split, self._resize = split, resize

    def __iter__(self) -> Iterator[tuple[Tensor, None]]:
        import io

        from PIL import Image

        for sample in samples.shards(self._split.parent, self._split.name):
            with Image.open(io.BytesIO(samples.picture_of(sample, self._split))) as picture:
                yield self._resize(picture), None


class _Files(torch.utils.data.Dataset[Any]):
    """Picture files, as :class:`Pictures` takes them."""

    def __init__(self, paths: list[Path], resize: inputs.Resize) -> None:
        self._paths, self._resize = paths, resize

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Tensor, None]:
        from PIL import Image

        with Image.open(self._paths[index]) as picture:
            return self._resize(picture), None


def _coco_files(place: Path) -> tuple[Path, list[Path]]:
    """The caption annotation file and the folders in which its pictures may lie."""
    if place.is_file():
        above = [place.parent, place.parent.parent]
        return place, [base / name for base in above for name in _COCO_FOLDERS] + above
    patterns = ("captions_train*.json", "coco_train_*.json", "captions_*.json", "coco_*.json")
    for pattern in patterns:
        found = sorted([*place.glob(f"annotations/{pattern}"), *place.glob(pattern)], reverse=True)
        if found:
            return found[0], [place / name for name in _COCO_FOLDERS] + [place]
    raise UsageError(place, "holds neither shards nor caption annotations", _MEND)


def _from_coco(
    annotations: Path, folders: list[Path], resize: inputs.Resize | None, reference: Reference, size: int, seed: int
) -> CalibrationPairs:
    try:
        data = json.loads(annotations.read_text())
        files = {image["id"]: str(image["file_name"]) for image in data["images"]}
        captions: dict[Any, list[str]] = {}
        for entry in data["annotations"]:
            captions.setdefault(entry["image_id"], []).append(str(entry["caption"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"holds no COCO captions ({type(error).__name__}: {error})"
        raise UsageError(annotations, what, "It needs 'images' and 'annotations'.") from error
    # The split's own folder first: COCO's annotation files carry its name (captions_train2017.json).
    folders = sorted(folders, key=lambda folder: folder.name not in annotations.name)
    known = sorted(number for number in captions if number in files)
    if not known:
        raise UsageError(annotations, "names no picture with a caption", _MEND)
    rng = random.Random(seed)
    chosen = sorted(rng.sample(known, min(size, len(known))))
    words = [rng.choice(captions[number]) for number in chosen]
    paths = [_located(files[number], folders, annotations) for number in chosen]
    digest = hashlib.sha256()
    for path, caption in zip(paths, words, strict=True):
        digest.update(hashlib.sha256(path.read_bytes()).digest() + caption.encode() + b"\0")
    names = [path.name for path in paths]
    pictures = None if resize is None else Pictures(_Files(paths, resize), names, resize.shape, annotations)
    return _pairs(annotations, pictures, words, reference, digest.hexdigest())


def _located(name: str, folders: list[Path], annotations: Path) -> Path:
    """The picture *name* in the first of *folders* that has it; names that lead out of them are refused."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise UsageError(annotations, f"picture {name} lies outside its folder", "Use plain file names.")
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    looked = ", ".join(dict.fromkeys(folder.name for folder in folders))
    raise UsageError(
        annotations, f"picture {name} is in none of {looked}", "Put the picture folder beside the annotations."
    )


def _pairs(
    place: Path, pictures: Pictures | None, captions: list[str], reference: Reference, digest: str
) -> CalibrationPairs:
    shades = None if pictures is None else inputs.shades(reference.image_processor)
    ids = None
    if reference.tokenizer is not None:
        prompts = inputs.tokenize(reference.tokenizer, captions, context_of(reference))
        ids = prompts.ids[prompts.rows]
    return CalibrationPairs(str(place), len(captions), pictures, shades, ids, digest)
