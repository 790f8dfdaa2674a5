"""Calibration pairs: pictures with captions from the package, a webdataset or a COCO folder."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from harness.data import calibration, inputs, samples, webdatasets
from harness.errors import UsageError
from harness.models import families
from harness.models.references import Reference

CPU = torch.device("cpu")


def noise(seed: int) -> Any:
    """A PIL picture of random colours."""
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (50, 44, 3), dtype=np.uint8)
    )


def shard(path: Path, numbers: range, captions: Callable[[int], str]) -> None:
    """A tar archive of pictures and captions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            stream = io.BytesIO()
            noise(number).save(stream, "png")
            for ending, data in (("png", stream.getvalue()), ("txt", captions(number).encode())):
                entry = tarfile.TarInfo(f"p{number:03d}.{ending}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


def webdataset(root: Path, split: str = "test") -> Path:
    """Two shards of five pictures, each with two captions."""
    for index in (0, 1):
        shard(
            root / split / f"{index}.tar",
            range(5 * index, 5 * index + 5),
            lambda i: f"thing {i}\nanother {i}\n",
        )
    (root / split / "nshards.txt").write_text("2\n")
    (root / "dataset_type.txt").write_text("retrieval\n")
    return root


def coco(root: Path, split: str = "train2017", first: int = 100) -> Path:
    """COCO's own layout: annotations/captions_<split>.json next to the picture folder <split>."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / split).mkdir()
    images, annotations = [], []
    for number in range(first, first + 9):
        noise(number).save(root / split / f"{number:012d}.jpg")
        images.append({"id": number, "file_name": f"{number:012d}.jpg"})
        annotations += [
            {"image_id": number, "id": 10 * number + k, "caption": f"words {k} {number}"}
            for k in (0, 1, 2)
        ]
    content = {"images": images[::-1], "annotations": annotations}
    (root / "annotations" / f"captions_{split}.json").write_text(json.dumps(content))
    return root


def inputs_of(
    pairs: calibration.CalibrationPairs, batch_size: int = 4
) -> tuple[torch.Tensor, torch.Tensor]:
    """All pixel values and all token ids of *pairs*."""
    batches = list(pairs.batches(CPU, torch.float32, batch_size))
    return torch.cat([b["pixel_values"] for b in batches]), torch.cat(
        [b["input_ids"] for b in batches]
    )


def expected_inputs(
    reference: Reference, pictures: list[Any], captions: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the checkpoint's own processor and tokenizer make of *pictures* and *captions*."""
    processor = inputs.over_pil(reference.image_processor)
    pixels = processor([p.convert("RGB") for p in pictures], return_tensors="pt")["pixel_values"]
    ids = reference.tokenizer(
        captions, padding="max_length", truncation=True, max_length=24, return_tensors="pt"
    )
    return pixels, ids["input_ids"]


def test_embedded_pairs_drive_both_towers(reference: Reference) -> None:
    """The package's 512 pairs run through every tower, each on input of its full size."""
    pairs = calibration.load(None, reference)
    batches = list(pairs.batches(CPU, torch.float16))
    with torch.no_grad():
        output = families.forward(reference.model, batches[-1])

    assert pairs.n == 512 == sum(len(batch["input_ids"]) for batch in batches)
    assert batches[0]["pixel_values"].shape == (64, 3, 48, 48)
    assert batches[0]["pixel_values"].dtype == torch.float16
    assert batches[0]["input_ids"].shape == (64, 24)
    assert set(output) == {"vision", "text"}
    assert all(
        len(embeddings) == 64 and embeddings.isfinite().all() for embeddings in output.values()
    )


def test_pairs_fit_each_other(reference: Reference) -> None:
    """The trained model finds most captions among 64 pairs: pictures and captions were not shuffled
    apart.
    """
    batch = next(iter(calibration.load("embedded", reference).batches(CPU, torch.float16)))
    with torch.no_grad():
        embeddings = {
            tower: F.normalize(x) for tower, x in families.forward(reference.model, batch).items()
        }
    logits = embeddings["text"] @ embeddings["vision"].T

    assert (logits.argmax(1) == torch.arange(64)).float().mean() > 0.8


def test_batches_can_be_run_through_again(reference: Reference) -> None:
    """A second pass, which AWQ and SmoothQuant make, sees the same pairs as the first."""
    batches = calibration.load(None, reference, size=100).batches(CPU, torch.float16, 32)
    passes = [[batch["pixel_values"] for batch in batches] for _ in range(2)]

    assert len(batches) == len(passes[0]) == len(passes[1]) == 4
    assert all(torch.equal(a, b) for a, b in zip(*passes, strict=True))


@pytest.mark.parametrize("split", ["test", "train"])
def test_a_webdataset_gives_its_first_pairs(
    split: str, tmp_path: Path, reference: Reference
) -> None:
    """Pictures in order over the shards, each with its first caption, preprocessed as the
    checkpoint says.
    """
    pairs = calibration.load(webdataset(tmp_path / "w", split), reference, size=7)
    pixels, ids = expected_inputs(
        reference, [noise(i) for i in range(7)], [f"thing {i}" for i in range(7)]
    )
    loaded = inputs_of(pairs)

    assert pairs.n == 7
    assert torch.equal(loaded[0], pixels)
    assert torch.equal(loaded[1], ids)


def test_the_training_split_comes_before_the_test_split(
    tmp_path: Path, reference: Reference
) -> None:
    """Where a webdataset has both, nothing is calibrated on test pictures; a split's own folder may
    be given.
    """
    place = webdataset(webdataset(tmp_path / "w", "test"), "train")

    assert calibration.load(place, reference).source == str(place / "train")
    assert calibration.load(place / "test", reference).source == str(place / "test")


def test_a_coco_folder_gives_a_choice_by_seed(tmp_path: Path, reference: Reference) -> None:
    """Each pair is a picture with one of its own captions; the seed decides which, and all are
    taken if they fit.
    """
    place = coco(tmp_path / "coco")
    pairs = calibration.load(place, reference, size=6, seed=3)
    again, other = (
        calibration.load(place, reference, size=6, seed=3),
        calibration.load(place, reference, size=6, seed=4),
    )
    pixels, ids = inputs_of(pairs)
    pictures = []
    for number in range(100, 109):
        with Image.open(place / "train2017" / f"{number:012d}.jpg") as picture:
            pictures.append(picture.convert("RGB"))
    texts = [f"words {k} {number}" for number in range(100, 109) for k in (0, 1, 2)]
    known_pixels, _ = expected_inputs(reference, pictures, ["a"])
    _, known_ids = expected_inputs(reference, pictures, texts)
    shown = [
        next(i for i, known in enumerate(known_pixels) if torch.equal(known, row)) for row in pixels
    ]
    said = [
        next(i for i, known in enumerate(known_ids) if torch.equal(known, row)) // 3 for row in ids
    ]

    assert shown == said == sorted(set(shown))
    assert pairs.n == 6
    assert pairs.hash == again.hash != other.hash
    assert calibration.load(place, reference).n == 9


def test_training_annotations_come_first(tmp_path: Path, reference: Reference) -> None:
    """A COCO folder with both splits gives training pictures, as the retrieval task is made of the
    others.
    """
    place = coco(coco(tmp_path / "coco", "val2017", 500), "train2017", 100)
    assert calibration.load(place, reference).source.endswith("captions_train2017.json")

    validation = calibration.load(place / "annotations" / "captions_val2017.json", reference)
    assert validation.source.endswith("captions_val2017.json")
    assert validation.n == 9


def test_the_hash_is_that_of_pictures_and_captions(tmp_path: Path, reference: Reference) -> None:
    """Another picture or another caption is another hash; the same data elsewhere is the same."""
    first, two = (calibration.load(webdataset(tmp_path / name), reference).hash for name in "ab")
    shard(
        tmp_path / "b" / "test" / "1.tar", range(5, 10), lambda i: f"thing {i if i != 8 else 9}\n"
    )
    words = calibration.load(tmp_path / "b", reference).hash
    shard(tmp_path / "a" / "test" / "1.tar", range(6, 11), lambda i: f"thing {i - 1}\n")

    assert first == two
    assert len({first, words, calibration.load(tmp_path / "a", reference).hash}) == 3


def without_pictures(place: Path) -> Path:
    """A COCO folder whose picture folder was forgotten."""
    coco(place)
    (place / "train2017").rename(place.parent / "elsewhere")
    return place


def with_annotations(text: str) -> Callable[[Path], Path]:
    """A COCO folder whose annotation file holds *text*."""

    def write(place: Path) -> Path:
        coco(place)
        (place / "annotations" / "captions_train2017.json").write_text(text)
        return place

    return write


def leading_out(place: Path) -> Path:
    """A COCO folder whose annotations name a picture outside of it."""
    content = {
        "images": [{"id": 1, "file_name": "../secret.jpg"}],
        "annotations": [{"image_id": 1, "caption": "c"}],
    }
    noise(1).save(place.parent / "secret.jpg")
    return with_annotations(json.dumps(content))(place)


def classification(place: Path) -> Path:
    """A webdataset of the other kind."""
    webdataset(place)
    (place / "dataset_type.txt").write_text("classification")
    return place


def empty(place: Path) -> Path:
    """A folder with nothing in it."""
    place.mkdir()
    return place


@pytest.mark.parametrize(
    ("writer", "message"),
    [
        (lambda p: p, "does not exist"),
        (empty, "holds neither shards nor caption annotations"),
        (without_pictures, r"picture 000000000100.jpg is in none of train2017"),
        (with_annotations("{"), r"captions_train2017.json:1: is not JSON"),
        (
            with_annotations('{"images": []}'),
            r"2017.json \(annotations\): the key 'annotations' is missing",
        ),
        (with_annotations('{"images": [], "annotations": []}'), "names no picture with a caption"),
        (leading_out, r"picture ../secret.jpg lies outside its folder"),
        (classification, "is not 'retrieval'"),
    ],
)
def test_unusable_calibration_data_are_told_in_one_line(
    writer: Callable[[Path], Path], message: str, tmp_path: Path, reference: Reference
) -> None:
    """Missing, damaged and foreign data name the place and the fault."""
    with pytest.raises(UsageError, match=message) as error:
        calibration.load(writer(tmp_path / "data"), reference)
    assert "\n" not in str(error.value)


def test_a_damaged_picture_is_named(tmp_path: Path, reference: Reference) -> None:
    """A picture that is not one, or is cut, is named with its file when the pairs are loaded."""
    place = coco(tmp_path / "coco")
    path = place / "train2017" / "000000000103.jpg"
    for data in (b"no picture", path.read_bytes()[:900]):
        path.write_bytes(data)
        with pytest.raises(
            UsageError, match=r"000000000103\.jpg: picture 000000000103\.jpg cannot be read"
        ):
            calibration.load(place, reference)


@pytest.mark.parametrize(
    ("source", "size", "message"),
    [
        ("https://example.org/x", 8, "is an address, not a folder"),
        (None, 0, "leaves nothing to calibrate with"),
    ],
)
def test_unusable_options_are_told(
    source: str | None, size: int, message: str, reference: Reference
) -> None:
    """An address is not fetched, and no pairs are no calibration."""
    with pytest.raises(UsageError, match=message):
        calibration.load(source, reference, size=size)


def test_calibration_pictures_are_no_evaluation_pictures() -> None:
    """No calibration picture is, in its bytes, a picture of any embedded task."""
    calibrating = {
        s.picture.read() for s in webdatasets.samples(samples.EMBEDDED / "calibration", "test")
    }
    evaluating = {
        sample.picture.read()
        for name in ("emoji", "emoji100", "emoji_captions")
        for sample in webdatasets.samples(samples.EMBEDDED / name, "test")
    }

    assert len(calibrating) == 512
    assert not calibrating & evaluating
