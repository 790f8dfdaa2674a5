"""The pictures, labels and captions of a CLIP_benchmark data set, as they are stored on the disk.

A task here is the task in CLIP_benchmark: same order, same class names, same prompts, which the
tests compare with its own loaders.  Those loaders are not used: they download what they miss, some
of them through a shell, and they unpickle.  Everything is read through :mod:`harness.files`, names
and labels first, pictures only when they are asked for.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness import files
from harness.data import cifar, coco, imagenet, webdatasets, words
from harness.data.pictures import PictureArray, PictureFile, PictureFiles, Source
from harness.errors import UsageError
from harness.recipes import unknown

CLASSIFICATION, RETRIEVAL = webdatasets.CLASSIFICATION, webdatasets.RETRIEVAL
EMBEDDED = Path(__file__).parents[1] / "models" / "embedded" / "data"
#: The tasks in the package: what cifar100, imagenet1k and mscoco_captions are to a full-size model.
EMBEDDED_TASKS = ("emoji100", "emoji", "emoji_captions")

#: ``https://...``, of which ``Path`` makes ``https:/...``.
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")

#: torchvision's, for the pictures in class folders.
_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_MAX_DEPTH = 8  # of folders in a class folder


@dataclass(frozen=True)
class FolderLayout:
    """What is under the root of a data set: of each group of paths, one must be there."""

    kind: str
    needs: tuple[tuple[str, ...], ...]
    fix: str


#: CLIP_benchmark names that are read from their original files.  Any other comes as a webdataset.
LAYOUTS = {
    "cifar10": FolderLayout(
        CLASSIFICATION, (cifar.folders("cifar10"),), "Unpack cifar-10-python.tar.gz there."
    ),
    "cifar100": FolderLayout(
        CLASSIFICATION, (cifar.folders("cifar100"),), "Unpack cifar-100-python.tar.gz there."
    ),
    "imagenet1k": FolderLayout(
        CLASSIFICATION,
        (("val", imagenet.PICTURES), ("meta.bin", imagenet.KIT)),
        imagenet.FIX,
    ),
    "imagenet1k-unverified": FolderLayout(
        CLASSIFICATION, (("val",),), "Put the 1000 class folders of the validation set there."
    ),
    "mscoco_captions": FolderLayout(
        RETRIEVAL,
        (
            ("val2014", "images/val2014"),
            ("coco_test_karpathy.json", "annotations/coco_test_karpathy.json"),
        ),
        "Unpack val2014.zip there and put coco_test_karpathy.json next to it.",
    ),
}
_WEBDATASET = FolderLayout(CLASSIFICATION, (("test/nshards.txt",),), webdatasets.FIX)


@dataclass(frozen=True)
class Samples:
    """``n`` pictures in a fixed order, each with one label (classification) or its captions
    (retrieval).
    """

    name: str
    place: Path
    kind: str
    ids: tuple[str, ...]
    labels: npt.NDArray[np.int32] | None
    captions: tuple[tuple[str, ...], ...] | None
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    clusters: npt.NDArray[np.int32]
    pictures: Source

    @property
    def prompts(self) -> int:
        """Number of prompts: templates within classes, or captions."""
        if self.captions is None:
            return len(self.classes) * len(self.templates)
        return sum(len(group) for group in self.captions)

    @cached_property
    def hash(self) -> str:
        """SHA-256 over ids, picture files, labels or captions, class names and templates: equal
        hashes, equal data.

        Every picture file is read, and checked as far as its header and its end show.

        Raises:
            UsageError: a picture cannot be used.
        """
        read_as = self.name if self.name in LAYOUTS else "webdataset"
        digest = _Digest(read_as)
        # COCO's ids are in the order of their captions; the arrays of CIFAR have none.
        named = read_as in ("webdataset", "imagenet1k", "imagenet1k-unverified")
        for index, content in enumerate(self.pictures.contents()):
            if named:
                digest.add(self.ids[index])
            digest.add(content)
        if self.captions is None:
            assert self.labels is not None, "a classification task has labels"
            for part in (
                *self.classes,
                "templates",
                *self.templates,
                *map(str, self.labels.tolist()),
            ):
                digest.add(part)
        else:
            for texts in self.captions:
                digest.add(str(len(texts)))
                for text in texts:
                    digest.add(text)
        return digest.hex()


def names_of(text: str) -> tuple[str, ...]:
    """Return the task names in the value of ``--tasks``, without blanks around them, each once.

    Raises:
        UsageError: there is none, or one cannot be a task's name.
    """
    names = tuple(dict.fromkeys(canonical(part) for part in text.split(",") if part.strip()))
    if not names:
        known = ", ".join(EMBEDDED_TASKS)
        raise UsageError(
            f"--tasks {files.shown(text)}", "names no task", f"Leave it out to take {known}."
        )
    return names


def canonical(name: str) -> str:
    """Return the one spelling of a task's name: no blanks around it, no slashes that mean nothing.

    Raises:
        UsageError: it cannot be a task's name.
    """
    parts = [part for part in name.strip().split("/") if part not in ("", ".")]
    printable = all(c.isprintable() for c in name.strip())
    if not parts or ".." in parts or parts == ["wds"] or not printable or len(name) > 200:
        raise UsageError(
            f"--tasks {files.shown(name)}", "is not a task's name", f"Known: {_known()}."
        )
    return "/".join(parts)


def _known() -> str:
    return ", ".join([*LAYOUTS, "wds/NAME", *EMBEDDED_TASKS])


def kind_of(name: str, root: Path | None) -> str:
    """Return whether data set *name* is of the classification or the retrieval kind, from its
    layout alone.

    Raises:
        UsageError: the name is unknown, needs a root and has none, or is not there.
    """
    if name in LAYOUTS:
        return LAYOUTS[name].kind
    return webdatasets.kind_of(place_of(name, root))


def place_of(name: str, root: Path | None) -> Path:
    """Return the folder of data set *name*: in the package, or under *root*.

    Raises:
        UsageError: the name is unknown, needs a root and has none, or what it needs is not there.
    """
    if name in EMBEDDED_TASKS:
        return EMBEDDED / name
    if name not in LAYOUTS and not name.startswith("wds/"):
        fix = (
            f"Known: {_known()}. Convert another with clip_benchmark_export_wds and give wds/NAME."
        )
        if len(re.split(r"[;\s]+", name)) > 1:
            fix = "Put a comma between the names of tasks."
        elif near := unknown.nearest(name, [*EMBEDDED_TASKS, *LAYOUTS]):
            fix = unknown.meant(near)
        raise UsageError(f"--tasks {name}", "is not a task", fix)
    if root is None:
        fix = f"Give --data-root DIR, or one of the embedded tasks: {', '.join(EMBEDDED_TASKS)}."
        raise UsageError(f"--tasks {name}", "needs to know where its data are", fix)
    return _find(name, root, LAYOUTS.get(name, _WEBDATASET))


def load(name: str, root: Path | None) -> Samples:
    """Read the test split of CLIP_benchmark's data set *name*: all but its pictures.

    Args:
        name: one of LAYOUTS, ``wds/NAME``, or one of EMBEDDED_TASKS.
        root: the folder of the data set itself, or one that holds it under its name.

    Raises:
        UsageError: the name is unknown, or what is there is incomplete or damaged.
    """
    place = place_of(name, root)
    if name in ("cifar10", "cifar100"):
        return _cifar(name, place)
    if name in ("imagenet1k", "imagenet1k-unverified"):
        return _folders(name, place)
    if name == "mscoco_captions":
        return _coco(name, place)
    return _webdataset(name, place)


def _find(name: str, root: Path, layout: FolderLayout) -> Path:
    """The folder that holds data set *name*: *root* filled in, below it by name, or *root*
    itself.
    """
    if ADDRESS.match(str(root)):
        raise UsageError(
            f"--data-root {root}",
            "is an address, not a folder",
            "Download it first and give the folder.",
        )
    short = name.removeprefix("wds/")
    cleaned = short.replace("/", "-")
    filled = str(root).replace("{dataset_cleaned}", cleaned).replace("{dataset}", short)
    base = files.expand(filled, option="--data-root").absolute()
    tried = dict.fromkeys([base / short, base / cleaned, base / f"wds_{cleaned}", base])
    missing = {place: _missing(place, layout) for place in tried}
    place = min(tried, key=lambda p: (len(missing[p]), not files.is_folder(p)))
    if missing[place]:
        below = "" if place == base else f" (nor in {base})"
        raise UsageError(
            place, f"data set {name} needs {' and '.join(missing[place])} there{below}", layout.fix
        )
    return place


def _missing(place: Path, layout: FolderLayout) -> list[str]:
    """What the layout needs that is not in *place*."""
    return [
        " or ".join(group)
        for group in layout.needs
        if not any(files.exists(place / item) for item in group)
    ]


def _first(place: Path, group: Sequence[str]) -> Path:
    """The first of a group of paths that is there; the layout was found to have one."""
    return next(place / item for item in group if files.exists(place / item))


class _Digest:
    """SHA-256 over a sequence of parts, each with its length, so that no two sequences read
    alike.
    """

    def __init__(self, *parts: str) -> None:
        self._sha = hashlib.sha256()
        for part in parts:
            self.add(part)

    def add(self, part: str | bytes) -> None:
        data = part.encode() if isinstance(part, str) else part
        self._sha.update(len(data).to_bytes(8, "little"))
        self._sha.update(data)

    def hex(self) -> str:
        return self._sha.hexdigest()


# -- the formats -----------------------------------------------------------------------------------


def _classified(
    name: str,
    place: Path,
    pictures: Source,
    ids: Sequence[str],
    labels: Sequence[int],
    words_of: tuple[Sequence[str], Sequence[str]],
    clusters: Sequence[int] | None = None,
) -> Samples:
    """Samples with labels; *words_of* are the class names and the templates."""
    classes, templates = words_of
    if not ids:
        raise UsageError(place, "holds no sample", "Give a data set with pictures.")
    outside = next((i for i, label in enumerate(labels) if not 0 <= label < len(classes)), None)
    if outside is not None:
        what = (
            f"sample {ids[outside]} has label {labels[outside]}, there are {len(classes)} class "
            f"names"
        )
        raise UsageError(pictures.where(outside), what, "Bring labels and class names together.")
    return Samples(
        name=name,
        place=place,
        kind=CLASSIFICATION,
        ids=tuple(ids),
        labels=np.asarray(labels, np.int32),
        captions=None,
        classes=tuple(classes),
        templates=tuple(templates),
        clusters=np.asarray(range(len(ids)) if clusters is None else clusters, np.int32),
        pictures=pictures,
    )


def _captioned(
    name: str, place: Path, pictures: Source, ids: Sequence[str], captions: Sequence[Sequence[str]]
) -> Samples:
    """Samples with captions."""
    if not ids:
        raise UsageError(place, "holds no sample", "Give a data set with pictures.")
    for index, texts in enumerate(captions):
        if not texts:
            what = f"picture {ids[index]} has no caption"
            raise UsageError(place, what, "Give it one, or leave the picture out.")
    return Samples(
        name=name,
        place=place,
        kind=RETRIEVAL,
        ids=tuple(ids),
        labels=None,
        captions=tuple(map(tuple, captions)),
        classes=(),
        templates=(),
        clusters=np.arange(len(ids), dtype=np.int32),
        pictures=pictures,
    )


def _cifar(name: str, place: Path) -> Samples:
    content = cifar.read(place, name)
    ids = [str(i) for i in range(len(content.labels))]
    pictures = PictureArray(content.path, content.pixels)
    return _classified(
        name, place, pictures, ids, content.labels, (content.classes, _templates(name))
    )


def _folders(name: str, place: Path) -> Samples:
    """ImageNet's validation set: a folder for each class, called by its WordNet id."""
    root = place / "val"
    named = _packaged("classnames")["imagenet1k"], _templates(name)
    if not files.exists(root):
        stored, ids, labels = imagenet.read(place, _wordnet_ids())
        return _classified(name, place, PictureFiles(stored, ids), ids, labels, named)
    order = _class_folders(root)
    paths, labels = [], []
    for label, folder in enumerate(order):
        folder_pictures = _pictures_in(root / folder)
        if not folder_pictures:
            raise UsageError(root / folder, "holds no picture", "Restore it.")
        paths += folder_pictures
        labels += [label] * len(folder_pictures)
    ids = [f"{path.parent.name}/{path.name}" for path in paths]
    for path, id_ in zip(paths, ids, strict=True):
        if any("\ud800" <= c <= "\udfff" for c in id_):
            raise UsageError(path, "the file's name is not UTF-8", "Rename it.")
    pictures = PictureFiles([PictureFile(path) for path in paths], ids)
    return _classified(name, place, pictures, ids, labels, named)


def _class_folders(root: Path) -> list[str]:
    """The names of ImageNet's class folders in *root*, in the order of the classes.

    Raises:
        UsageError: they are not its thousand classes, by WordNet id or by number.
    """
    fix = LAYOUTS["imagenet1k-unverified"].fix
    held = [
        item
        for item in files.names(root, what="folder of class folders")
        if files.is_folder(root / item)
    ]
    expected = _wordnet_ids()
    if [item.lstrip("0") or "0" for item in held] == [str(i) for i in range(len(expected))]:
        return held  # numbered with leading zeros: the order of the names is that of the classes
    if len(held) != len(expected):
        absent = next((item for item in expected if item not in held), "")
        hint = f" ({absent} is not there)" if absent else ""
        what = f"{len(held)} class folders with pictures for {len(expected)} class names{hint}"
        raise UsageError(
            root, what, f"{fix} For a part of them, make a webdataset with its own classnames.txt."
        )
    other = sorted(set(held) - set(expected))
    if other:
        # CLIP_benchmark numbers the folders that it finds: called otherwise, their labels would be
        # wrong, silently.
        raise UsageError(root / other[0], "is not the WordNet id of an ImageNet class", fix)
    return expected


def _pictures_in(folder: Path, depth: int = 0) -> list[Path]:
    """Picture files in *folder* and below it, in torchvision's order."""
    if depth > _MAX_DEPTH:
        raise UsageError(
            folder,
            f"nests deeper than {_MAX_DEPTH} folders",
            "Look for a link to a folder above it.",
        )
    pictures, below = [], []
    for item in files.names(folder, what="class folder"):
        path = folder / item
        if files.is_folder(path):
            below.append(path)
        elif item.lower().endswith(_EXTENSIONS):
            pictures.append(files.regular_file(path, what="picture"))
    for path in below:
        pictures += _pictures_in(path, depth + 1)
    return pictures


def _wordnet_ids() -> list[str]:
    """The WordNet ids of ImageNet's classes, in their order."""
    # Not at the top: it takes torch
    from harness import compat

    compat.repair_torchvision()
    from clip_benchmark.datasets.builder import all_imagenet_wordnet_ids

    return list(all_imagenet_wordnet_ids)


def _coco(name: str, place: Path) -> Samples:
    folders, annotations = LAYOUTS[name].needs
    content = coco.read(_first(place, annotations))
    order = coco.in_order(list(content.file_names))
    ids = [str(number) for number in order]
    pictures = PictureFiles(
        [content.located(number, [_first(place, folders)]) for number in order], ids
    )
    return _captioned(
        name, place, pictures, ids, [content.captions.get(number, []) for number in order]
    )


def _webdataset(name: str, place: Path) -> Samples:
    kind = webdatasets.kind_of(place)
    classes: list[str] = []
    templates: list[str] = []
    if kind == CLASSIFICATION:  # small files first: a shard may take minutes
        classes = words.read_class_names(place / "classnames.txt", webdatasets.FIX)
        templates = words.read_templates(
            place / "zeroshot_classification_templates.txt", webdatasets.FIX
        )
        words.check_count(len(classes) * len(templates), place)
    ids: list[str] = []
    stored: list[PictureFile] = []
    labels: list[int] = []
    captions: list[list[str]] = []
    for sample in webdatasets.samples(place, "test"):
        ids.append(sample.key)
        stored.append(sample.picture)
        if kind == CLASSIFICATION:
            labels.append(sample.label)
        else:
            captions.append(sample.captions)
    pictures = PictureFiles(stored, ids)
    if kind == RETRIEVAL:
        return _captioned(name, place, pictures, ids, captions)
    clusters = webdatasets.clusters(place, len(ids))
    return _classified(name, place, pictures, ids, labels, (classes, templates), clusters)


@cache
def _packaged(what: str) -> dict[str, Any]:
    """CLIP_benchmark's own class names or templates, by data set."""
    spec = importlib.util.find_spec("clip_benchmark")
    assert spec is not None, "the package depends on clip_benchmark"
    assert spec.origin is not None, "clip_benchmark is a package of files"
    path = Path(spec.origin).parent / "datasets" / f"en_{what}.json"
    return files.read_json(path, dict[str, Any], limit=files.MAX_ANNOTATIONS)


def _templates(name: str) -> list[str]:
    """CLIP_benchmark's templates for *name*; ImageNet's where it has none of its own."""
    packaged = _packaged("zeroshot_classification_templates")
    templates: list[str] = packaged.get(name, packaged["imagenet1k"])
    return templates
