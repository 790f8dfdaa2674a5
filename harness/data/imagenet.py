"""ImageNet's validation set in its own two archives, read where they are: nothing is unpacked.

The development kit says which picture is of which class.  Its MATLAB file is parsed by SciPy, so
the kit must be the published one, by its MD5 sum.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path

from harness import files
from harness.data import webdatasets
from harness.data.pictures import PictureFile
from harness.errors import UsageError

PICTURES, KIT = "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
#: MD5 sum of the published development kit, as in torchvision.
KIT_SUM = "fa75699e90414af021442c21a62c3abf"
FIX = f"Put {PICTURES} and {KIT} there."

_MAX_KIT = 64 * files.MIB
_MAX_NUMBERS = 16 * files.MIB  # the ground truth and meta.mat of the kit
_PICTURE = re.compile(r"(?:.*/)?(ILSVRC2012_val_([0-9]{8})\.JPEG)")


def read(place: Path, order: Sequence[str]) -> tuple[list[PictureFile], list[str], list[int]]:
    """Return the pictures in *place*, their ids (``WNID/NAME``) and labels, in the order of the
    classes, as if they had been unpacked into class folders.

    Args:
        place: the folder of both archives.
        order: the WordNet ids of the classes, by label.

    Raises:
        UsageError: an archive is absent or damaged, the kit is not the published one, or the two
            do not belong together.
    """
    classes = _classes(place / KIT)
    pictures = _pictures(place / PICTURES)
    if len(pictures) != len(classes):
        what = f"holds {len(pictures):,} pictures, the development kit says {len(classes):,}"
        raise UsageError(place / PICTURES, what, "Fetch it again.")
    label_of = {wnid: label for label, wnid in enumerate(order)}
    ordered = sorted(
        (label_of[classes[number - 1]], name, number) for number, (name, _) in pictures.items()
    )
    return (
        [pictures[number][1] for _, _, number in ordered],
        [f"{order[label]}/{name}" for label, name, _ in ordered],
        [label for label, _, _ in ordered],
    )


def _pictures(path: Path) -> dict[int, tuple[str, PictureFile]]:
    """Name and place of each picture in the archive *path*, by its number from 1."""
    places: dict[int, tuple[str, PictureFile]] = {}
    with webdatasets.archive(path, fix=FIX) as archive:
        for entry in webdatasets.entries(archive):
            matched = _PICTURE.fullmatch(entry.name)
            if matched and entry.isreg() and not entry.issparse():
                file = PictureFile(path, offset=entry.offset_data, size=entry.size)
                places[int(matched[2])] = matched[1], file
    if sorted(places) != list(range(1, len(places) + 1)):
        what = "its pictures are not ILSVRC2012_val_00000001.JPEG and on, without a gap"
        raise UsageError(path, what, "Fetch it again.")
    return places


def _classes(path: Path) -> list[str]:
    """The WordNet id of each picture by its number, which the development kit *path* says."""
    data = files.read_bytes(path, limit=_MAX_KIT, what="development kit", fix=FIX)
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != KIT_SUM:
        raise UsageError(path, "is not the published file, by its MD5 sum", "Fetch it again.")
    from scipy.io import loadmat  # needed here alone

    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as kit:
        parts = {
            Path(entry.name).name: kit.extractfile(entry)
            for entry in kit
            if entry.isreg() and entry.size <= _MAX_NUMBERS
        }
        numbers, meta = parts["ILSVRC2012_validation_ground_truth.txt"], parts["meta.mat"]
        assert numbers is not None, "a regular member"
        assert meta is not None, "a regular member"
        synsets = loadmat(io.BytesIO(meta.read()), squeeze_me=True)["synsets"]
        # A synset without children is a class; the others are above them in WordNet.
        wnids = {
            int(synset["ILSVRC2012_ID"]): str(synset["WNID"])
            for synset in synsets
            if int(synset["num_children"]) == 0
        }
        return [wnids[int(line)] for line in numbers.read().split()]
