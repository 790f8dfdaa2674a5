"""COCO's caption annotations: which picture has which captions, and where its file is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated

from pydantic import ConfigDict, FailFast, Field, with_config
from typing_extensions import TypedDict

from harness import files
from harness.data import words
from harness.data.pictures import PictureFile
from harness.errors import UsageError

Number = int | str
#: COCO's own ids are whole numbers.
_Id = int | Annotated[str, Field(max_length=255)]

FIX = (
    "Give COCO's caption annotations: 'images' with id and file_name, 'annotations' with image_id "
    "and caption."
)


@with_config(ConfigDict(strict=True))
class _Image(TypedDict):
    id: _Id
    file_name: Annotated[str, Field(max_length=1000)]


@with_config(ConfigDict(strict=True))
class _Caption(TypedDict):
    image_id: _Id
    caption: str


class _Annotations(TypedDict):
    images: Annotated[list[_Image], FailFast()]
    annotations: Annotated[list[_Caption], FailFast()]


@dataclass(frozen=True)
class Annotations:
    """File names and captions by picture, in the order of the file."""

    path: Path
    file_names: dict[Number, str]
    captions: dict[Number, list[str]]

    def located(self, number: Number, folders: Sequence[Path]) -> PictureFile:
        """Return where a picture is: in the first of *folders* that has it, and never outside of
        that folder.

        Raises:
            UsageError: its name leads out of the folders, or none of them has it.
        """
        name = self.file_names[number]
        outside = PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute()
        if outside or ".." in PurePosixPath(name).parts or not name.strip("./"):
            raise UsageError(
                self.path, f"picture {name} lies outside its folder", "Use plain file names."
            )
        for folder in folders:
            if files.exists(folder / name):
                path = files.regular_file(folder / name, inside=folder, what="picture")
                return PictureFile(path, inside=folder)
        looked = ", ".join(dict.fromkeys(_shown(folder) for folder in folders))
        fix = "Put the picture folder next to the annotations."
        raise UsageError(self.path, f"picture {name} is in none of {looked}", fix)


def _shown(folder: Path) -> str:
    """The name of a folder of pictures: ``val2017``, or ``images/val2017``."""
    return f"{folder.parent.name}/{folder.name}" if folder.parent.name == "images" else folder.name


def read(path: Path) -> Annotations:
    """Return the caption annotations in *path*.

    Raises:
        UsageError: it is not such a file, an entry lacks what it needs or holds another type, a
            caption cannot be used, or two pictures have one id.
    """
    content = files.read_json(
        path, _Annotations, limit=files.MAX_ANNOTATIONS, what="annotation file", fix=FIX
    )
    words.check_count(len(content["annotations"]), path)
    file_names: dict[Number, str] = {}
    for index, image in enumerate(content["images"]):
        if file_names.setdefault(image["id"], image["file_name"]) != image["file_name"]:
            what = (
                f"id {image['id']} is that of {file_names[image['id']]} and of {image['file_name']}"
            )
            raise UsageError(
                f"{path} (images[{index}].id)", what, "Give each picture an id of its own."
            )
    captions: dict[Number, list[str]] = {}
    for index, entry in enumerate(content["annotations"]):
        problem = words.problem(entry["caption"])
        if problem is not None:
            place = f"{path} (annotations[{index}].caption)"
            raise UsageError(
                place,
                f"the caption of picture {entry['image_id']} {problem}",
                "Write it, or remove it.",
            )
        captions.setdefault(entry["image_id"], []).append(entry["caption"])
    return Annotations(path, file_names, captions)


def in_order(numbers: Sequence[Number]) -> list[Number]:
    """Return ids in ascending order, whole numbers before texts."""
    return sorted(numbers, key=lambda number: (isinstance(number, str), number))
