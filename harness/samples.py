"""The pictures, labels and captions of a CLIP_benchmark data set, as they lie on the disk.

Everything is read through CLIP_benchmark's own builders, so that a task here is the task there: same order, same
class names, same prompts.  Those builders download what they miss, some of them through a shell; so what a data
set needs is looked for first, and nothing is built that is not there.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness import compat  # noqa: F401  (before clip_benchmark)
from harness.errors import UsageError

CLASSIFICATION, RETRIEVAL = "classification", "retrieval"
EMBEDDED = Path(__file__).parent / "embedded" / "data"

#: ``https://...``, of which ``Path`` makes ``https:/...``.
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")

#: What a member of a webdataset sample may be.  webdataset unpickles some others on sight.
_MEMBERS = {"webp", "png", "jpg", "jpeg", "cls", "txt", "json"}
_PICTURES = ("webp", "png", "jpg", "jpeg")


@dataclass(frozen=True)
class Layout:
    """What lies under the root of a data set: of each group of names, one must be there."""

    kind: str
    needs: tuple[tuple[str, ...], ...]
    mend: str


#: CLIP_benchmark names that are read from their original files.  Any other comes as a webdataset.
LAYOUTS = {
    "cifar10": Layout(CLASSIFICATION, (("cifar-10-batches-py",),), "Unpack cifar-10-python.tar.gz there."),
    "cifar100": Layout(CLASSIFICATION, (("cifar-100-python",),), "Unpack cifar-100-python.tar.gz there."),
    "imagenet1k": Layout(
        CLASSIFICATION,
        (("val", "ILSVRC2012_img_val.tar"), ("meta.bin", "ILSVRC2012_devkit_t12.tar.gz")),
        "Put ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz there.",
    ),
    "imagenet1k-unverified": Layout(
        CLASSIFICATION, (("val",),), "Put the 1000 class folders of the validation set there."
    ),
    "mscoco_captions": Layout(
        RETRIEVAL,
        (("val2014",), ("coco_test_karpathy.json",)),
        "Unpack val2014.zip there and put coco_test_karpathy.json beside it.",
    ),
}


@dataclass(frozen=True)
class Samples:
    """``n`` pictures in a fixed order, each with one label (classification) or its captions (retrieval).

    ``dataset`` is CLIP_benchmark's object and yields (transformed picture, target); ``hash`` is the SHA-256 over
    ids, picture files, labels or captions, class names and templates: equal hashes, equal data.
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
    hash: str
    dataset: Any


def load(name: str, root: Path, transform: Callable[[Any], Any]) -> Samples:
    """The test split of CLIP_benchmark's data set *name* under *root*; pictures come through *transform*.

    Args:
        name: one of LAYOUTS, or ``wds/NAME``.
        root: the folder of the data set itself, or one that holds it under its name.
        transform: PIL picture to what the data set yields; picklable.

    Raises:
        UsageError: the name is unknown, or what lies there is absent, incomplete or damaged.
    """
    if name.startswith("wds/"):
        return _webdataset(name, _find(name, root, (("test/nshards.txt",),), _MEND_WDS), transform)
    if name not in LAYOUTS:
        known = ", ".join([*LAYOUTS, "wds/NAME"])
        mend = "Convert it with clip_benchmark_export_wds and give wds/NAME."
        raise UsageError(f"--tasks {name}", f"is not read from original files (those are: {known})", mend)
    layout = LAYOUTS[name]
    place = _find(name, root, layout.needs, layout.mend)
    dataset = _build(name, place, transform, layout.kind)
    read = {"mscoco_captions": _coco, "cifar10": _cifar, "cifar100": _cifar}.get(name, _folders)
    return read(name, place, dataset)


def embedded(name: str, transform: Callable[[Any], Any]) -> Samples:
    """One of the data sets in the package: ``emoji100``, ``emoji``, ``emoji_captions`` or ``calibration``."""
    return _webdataset(name, EMBEDDED / name, transform)


def kind_of(name: str, root: Path | None) -> str:
    """Whether data set *name* is of the classification or the retrieval kind, from its layout alone.

    Raises:
        UsageError: the name is unknown, needs a root and has none, or is not there.
    """
    if name in LAYOUTS:
        return LAYOUTS[name].kind
    if name.startswith("wds/"):
        if root is None:
            raise UsageError(f"--tasks {name}", "needs to know where its data lie", "Give --data-root DIR.")
        place = _find(name, root, (("test/nshards.txt",),), _MEND_WDS)
    else:
        place = EMBEDDED / name
        if not (place / "dataset_type.txt").is_file():
            known = ", ".join(
                [*LAYOUTS, "wds/NAME", *sorted(p.parent.name for p in EMBEDDED.glob("*/dataset_type.txt"))]
            )
            raise UsageError(f"--tasks {name}", "is no task", f"Known: {known}.")
    return _text(place / "dataset_type.txt", CLASSIFICATION).strip().lower()


def _find(name: str, root: Path, needs: tuple[tuple[str, ...], ...], mend: str) -> Path:
    """The folder that holds data set *name*: *root* filled in, below it by name, or *root* itself."""
    if ADDRESS.match(str(root)):
        # CLIP_benchmark would hand such a root to a shell.
        raise UsageError(f"--data-root {root}", "is an address, not a folder", "Download it first and give the folder.")
    short = name.removeprefix("wds/")
    cleaned = short.replace("/", "-")
    filled = str(root).replace("{dataset_cleaned}", cleaned).replace("{dataset}", short)
    base = Path(filled).expanduser().absolute()
    tried = dict.fromkeys([base / short, base / cleaned, base / f"wds_{cleaned}", base])
    missing: dict[Path, list[str]] = {
        place: [" or ".join(group) for group in needs if not any((place / item).exists() for item in group)]
        for place in tried
    }
    place = min(tried, key=lambda p: (len(missing[p]), not p.is_dir()))
    if missing[place]:
        below = "" if place == base else f" (nor in {base})"
        raise UsageError(place, f"data set {name} needs {' and '.join(missing[place])} there{below}", mend)
    if any(sign in str(place) for sign in ("::", "{", "}", "$")):
        raise UsageError(place, "webdataset would read '::', '{', '}' or '$' as a pattern", "Rename the folder.")
    return place


def _build(name: str, place: Path, transform: Callable[[Any], Any], kind: str) -> Any:
    """CLIP_benchmark's data set, told not to download, with its chatter swallowed and its errors made one line."""
    from clip_benchmark.datasets.builder import build_dataset

    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return build_dataset(name, str(place), transform, "test", download=False, task=f"zeroshot_{kind}")
    except Exception as error:
        raise UsageError(place, f"data set {name} does not load ({error})", "Put the original files there.") from error


class _Digest:
    """SHA-256 over a sequence of parts, each with its length, so that no two sequences read alike."""

    def __init__(self, *parts: str) -> None:
        self._sha = hashlib.sha256()
        for part in parts:
            self.add(part)

    def add(self, part: str | bytes) -> None:
        data = part.encode() if isinstance(part, str) else part
        self._sha.update(len(data).to_bytes(8, "little"))
        self._sha.update(data)

    def add_file(self, path: Path) -> None:
        try:
            self.add(path.read_bytes())
        except OSError as error:
            raise UsageError(path, f"cannot be read ({error.strerror})", "Restore the file.") from error

    def hex(self) -> str:
        return self._sha.hexdigest()


def _classified(
    name: str, place: Path, dataset: Any, ids: list[str], labels: list[int], digest: _Digest, clusters: Any = None
) -> Samples:
    classes, templates = list(dataset.classes), list(dataset.templates)
    outside = next((i for i, label in enumerate(labels) if not 0 <= label < len(classes)), None)
    if outside is not None:
        what = f"sample {ids[outside]} has label {labels[outside]}, there are {len(classes)} class names"
        raise UsageError(place, what, "Bring labels and class names together.")
    for part in (*classes, "templates", *templates, *map(str, labels)):
        digest.add(part)
    groups = np.arange(len(ids)) if clusters is None else clusters
    return Samples(name, place, CLASSIFICATION, tuple(ids), np.asarray(labels, np.int32), None, tuple(classes),
                   tuple(templates), np.asarray(groups, np.int32), digest.hex(), dataset)  # fmt: skip


def _captioned(
    name: str, place: Path, dataset: Any, ids: list[str], captions: list[list[str]], digest: _Digest
) -> Samples:
    for key, texts in zip(ids, captions, strict=True):
        if not texts:
            raise UsageError(place, f"picture {key} has no caption", "Give it one, or leave the picture out.")
        digest.add(str(len(texts)))
        for text in texts:
            digest.add(text)
    return Samples(name, place, RETRIEVAL, tuple(ids), None, tuple(map(tuple, captions)), (), (),
                   np.arange(len(ids), dtype=np.int32), digest.hex(), dataset)  # fmt: skip


def _cifar(name: str, place: Path, dataset: Any) -> Samples:
    digest = _Digest(name, str(dataset.data.shape))
    digest.add(dataset.data.tobytes())
    return _classified(name, place, dataset, [str(i) for i in range(len(dataset))], list(dataset.targets), digest)


def _folders(name: str, place: Path, dataset: Any) -> Samples:
    folders = sorted({Path(path).parent.name for path, _ in dataset.samples})
    if len(folders) != len(dataset.classes):
        # torchvision numbers the folders it finds: one too few and all later labels are wrong, silently.
        what = f"{len(folders)} class folders with pictures for {len(dataset.classes)} class names"
        raise UsageError(place / "val", what, LAYOUTS["imagenet1k-unverified"].mend)
    digest, ids = _Digest(name), []
    for path in map(Path, (path for path, _ in dataset.samples)):
        ids.append(f"{path.parent.name}/{path.name}")
        digest.add(ids[-1])
        digest.add_file(path)
    return _classified(name, place, dataset, ids, [label for _, label in dataset.samples], digest)


def _coco(name: str, place: Path, dataset: Any) -> Samples:
    digest, ids, captions = _Digest(name), [], []
    for number in dataset.ids:
        ids.append(str(number))
        captions.append([str(text) for text in dataset._load_target(number)])
        digest.add_file(Path(dataset.root) / dataset.coco.loadImgs(number)[0]["file_name"])
    return _captioned(name, place, dataset, ids, captions, digest)


_MEND_WDS = "Give a CLIP_benchmark webdataset: test/nshards.txt, test/0.tar, ..., classnames.txt or dataset_type.txt."


def _webdataset(name: str, place: Path, transform: Callable[[Any], Any]) -> Samples:
    kind = _text(place / "dataset_type.txt", CLASSIFICATION).strip().lower()
    if kind not in (CLASSIFICATION, RETRIEVAL):
        raise UsageError(place / "dataset_type.txt", f"is {kind!r}", f"Write {CLASSIFICATION} or {RETRIEVAL}.")
    if kind == CLASSIFICATION:
        _text(place / "classnames.txt"), _text(place / "zeroshot_classification_templates.txt")
    digest, ids, labels, captions = _Digest("webdataset"), [], [], []
    for sample in shards(place, "test"):
        ids.append(sample["__key__"])
        digest.add(sample["__key__"])
        digest.add(picture_of(sample, place))
        if kind == CLASSIFICATION:
            labels.append(_label(sample, place))
        else:
            captions.append(captions_of(sample, place))
    if not ids:
        raise UsageError(place / "test", "holds no sample", _MEND_WDS)
    dataset = _build(name if name.startswith("wds/") else f"wds/{name}", place, transform, kind)
    if kind == RETRIEVAL:
        return _captioned(name, place, dataset, ids, captions, digest)
    return _classified(name, place, dataset, ids, labels, digest, _clusters(place, len(ids)))


def _clusters(place: Path, n: int) -> list[int] | None:
    """``clusters.txt``, which CLIP_benchmark ignores: one number a sample; samples of one drawing share it."""
    text = _text(place / "clusters.txt", "")
    if not text:
        return None
    try:
        found = [int(line) for line in text.split()]
    except ValueError as error:
        raise UsageError(
            place / "clusters.txt", f"is no list of numbers ({error})", "One whole number a sample."
        ) from error
    if len(found) != n:
        raise UsageError(
            place / "clusters.txt", f"has {len(found)} numbers for {n} samples", "One whole number a sample."
        )
    return found


def shards(place: Path, split: str) -> Iterator[dict[str, Any]]:
    """The samples of a webdataset's *split*, undecoded: ``__key__`` and the bytes of each member by its ending.

    Raises:
        UsageError: a shard is missing or damaged, or a sample carries a member that no picture task has.
    """
    import webdataset

    numbers = place / split / "nshards.txt"
    try:
        count = int(_text(numbers))
    except ValueError as error:
        raise UsageError(numbers, "is not a number", "Write the number of shards.") from error
    paths = [place / split / f"{index}.tar" for index in range(count)]
    for path in paths:
        if not path.is_file():
            raise UsageError(path, f"is missing, nshards.txt says {count}", _MEND_WDS)
    stream = iter(webdataset.WebDataset([str(path) for path in paths], shardshuffle=False, empty_check=False))
    while True:
        try:
            sample = next(stream)
        except StopIteration:
            return
        except Exception as error:
            raise UsageError(place / split, f"a shard is damaged ({error})", "Fetch the shards again.") from error
        strange = sorted(key for key in sample if not key.startswith("__") and key not in _MEMBERS)
        if strange:
            what = f"sample {sample['__key__']} has a member .{strange[0]}"
            raise UsageError(place / split, what, f"Allowed are: {', '.join(sorted(_MEMBERS))}.")
        yield sample


def picture_of(sample: dict[str, Any], place: Path) -> bytes:
    """The picture file of an undecoded *sample*."""
    for ending in _PICTURES:
        if ending in sample:
            return bytes(sample[ending])
    raise UsageError(place, f"sample {sample['__key__']} has no picture", f"Allowed are: {', '.join(_PICTURES)}.")


def captions_of(sample: dict[str, Any], place: Path) -> list[str]:
    """The lines of an undecoded *sample*'s caption file."""
    if "txt" not in sample:
        raise UsageError(place, f"sample {sample['__key__']} has no .txt member", "A retrieval sample has captions.")
    return bytes(sample["txt"]).decode("utf-8", "replace").splitlines()


def _label(sample: dict[str, Any], place: Path) -> int:
    try:
        return int(sample["cls"])
    except (KeyError, ValueError) as error:
        mend = "A classification sample has a .cls member: a whole number."
        raise UsageError(place, f"sample {sample['__key__']} has no label ({error!r})", mend) from error


def _text(path: Path, otherwise: str | None = None) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        if otherwise is not None:
            return otherwise
        raise UsageError(path, "is missing", _MEND_WDS) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(path, f"cannot be read ({error})", _MEND_WDS) from error
