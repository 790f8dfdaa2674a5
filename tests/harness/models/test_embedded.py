"""The embedded data sets and the embedded CLIP's card: what was made is what is here."""

from __future__ import annotations

import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from harness.data import samples, tasks, webdatasets
from harness.models import references
from harness.tools.embedded import card, datasets, emoji, text
from harness.tools.embedded.emoji import Concept

DATA = samples.EMBEDDED
NAMES = ("emoji", "emoji100", "emoji_captions", "calibration")


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    """What was written when the data sets were made."""
    content: dict[str, Any] = json.loads((DATA / "datasets.json").read_text())
    return content


@pytest.mark.parametrize("name", NAMES)
def test_a_data_set_is_what_was_made(name: str, record: dict[str, Any]) -> None:
    """Files and their bytes are those that datasets.json records."""
    expected = {key: record["datasets"][name][key] for key in ("bytes", "sha256")}

    assert datasets.fingerprint(DATA / name) == expected


@pytest.mark.parametrize(
    ("name", "n", "classes"),
    [("emoji", 1632, 1632), ("emoji100", 1000, 100), ("emoji_captions", 600, 0)],
)
def test_the_tasks_have_their_sizes(name: str, n: int, classes: int) -> None:
    """Classes are named once each, all are asked for equally often, and pictures carry five
    different captions.
    """
    data_set = samples.load(name, None)

    assert len(data_set.ids) == n
    assert len(set(data_set.classes)) == len(data_set.classes) == classes
    if data_set.labels is not None:
        assert set(np.bincount(data_set.labels)) == {n // classes}
        assert data_set.templates == text.TEMPLATES
    else:
        assert data_set.captions is not None
        assert {len(set(captions)) for captions in data_set.captions} == {5}


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_small_and_of_the_models_size(name: str) -> None:
    """Every picture is 48 by 48 and fills at most two blocks of its archive."""
    for sample in webdatasets.samples(DATA / name, "test"):
        data = sample.picture.read()
        with Image.open(io.BytesIO(data)) as picture:
            assert (picture.format, picture.size) == ("WEBP", (48, 48))
        assert len(data) <= datasets.PICTURE_BYTES, sample.key


def test_all_package_data_are_under_fifteen_megabytes() -> None:
    """Model and data together stay below what the package may weigh."""
    files = [path for folder in (DATA, card.CLIP) for path in folder.rglob("*") if path.is_file()]

    assert sum(path.stat().st_size for path in files) < 15_000_000


def test_pictures_come_from_sets_that_may_be_passed_on(record: dict[str, Any]) -> None:
    """Both sets are under Apache-2.0 or MIT, by two artists, and named in the NOTICE with their
    licence texts.
    """
    notice = (DATA / "NOTICE").read_text()

    assert set(record["sources"]) == {emoji.EVALUATION, emoji.CALIBRATION}
    assert emoji.SETS[emoji.EVALUATION][2] != emoji.SETS[emoji.CALIBRATION][2]
    for name, source in record["sources"].items():
        version, licence, _ = emoji.SETS[name]
        assert source == {
            "package": f"@iconify-json/{name}",
            "version": version,
            "licence": licence,
        }
        assert licence in ("Apache-2.0", "MIT")
        assert f"{source['package']} {version}" in notice
    assert "Google" in notice
    assert "Microsoft" in notice
    assert "Version 2.0, January 2004" in (DATA / "licences" / "Apache-2.0.txt").read_text()
    assert (
        "Copyright (c) Microsoft Corporation."
        in (DATA / "licences" / "MIT-fluentui-emoji.txt").read_text()
    )


def test_the_evaluated_artist_was_not_trained_on() -> None:
    """No training set is by the artist of the evaluation set, its older editions included."""
    artists = {emoji.SETS[name][2] for name in emoji.TRAINING}

    assert emoji.SETS[emoji.EVALUATION][2] not in artists
    assert emoji.SETS["noto-v1"][2] == emoji.SETS[emoji.EVALUATION][2]
    assert len(artists) >= 5


def concepts_and_drawings(count: int) -> tuple[list[Concept], list[Any]]:
    """Made-up concepts, each a disc of its own colour on nothing."""
    known, drawn = [], []
    y, x = np.mgrid[:192, :192]
    disc = (y - 95.5) ** 2 + (x - 95.5) ** 2 < 80**2
    for i in range(count):
        known.append(Concept(f"thing-{i}", f"{i:x}", "Objects", (), {}))
        drawing = np.zeros((192, 192, 4), np.uint8)
        drawing[disc] = (*np.random.default_rng(i).integers(0, 200, 3), 255)
        drawn.append(drawing)
    return known, drawn


def test_the_same_seed_writes_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All three evaluation sets are made byte for byte alike from one seed, and otherwise from
    another.
    """
    monkeypatch.setattr(datasets, "HUNDRED", 5)
    monkeypatch.setattr(datasets, "CAPTIONED", 6)
    known, drawn = concepts_and_drawings(12)
    for make in (datasets.everything, datasets.hundred, datasets.captioned):
        records = [
            make(tmp_path / f"{make.__name__}{i}", known, drawn, random.Random(s))
            for i, s in enumerate((1, 1, 2))
        ]

        assert records[0] == records[1]
        assert records[0]["sha256"] != records[2]["sha256"]


def test_archives_carry_no_time_and_no_owner(tmp_path: Path) -> None:
    """Members are dated at the epoch and owned by nobody in particular."""
    datasets.write(
        tmp_path, [(b"picture", "0"), (b"other", "1")], classes=["a", "b"], templates=["{c}"]
    )
    with tarfile.open(tmp_path / "test" / "0.tar") as tar:
        members = tar.getmembers()

    assert [m.name for m in members] == [
        "s0000000.cls",
        "s0000000.webp",
        "s0000001.cls",
        "s0000001.webp",
    ]
    assert {(m.mtime, m.uname, m.gname) for m in members} == {(0, "root", "root")}


def test_a_plain_drawing_fills_the_frame_on_white() -> None:
    """Nothing is turned, shifted or tinted: the disc's colour in the middle, white in the
    corner.
    """
    _, (drawing, *_) = concepts_and_drawings(1)
    picture = np.asarray(datasets.plain(drawing))

    assert picture.shape == (48, 48, 3)
    assert picture[24, 24].tolist() == drawing[96, 96, :3].tolist()
    assert picture[0, 0].tolist() == [255, 255, 255]
    np.testing.assert_allclose(picture, picture[::-1, ::-1], rtol=0, atol=1)


def test_placing_moves_the_drawing_as_asked() -> None:
    """The disc's centre of mass moves by the shift, and its area shrinks with the square of the
    scale.
    """
    _, (drawing, *_) = concepts_and_drawings(1)

    def inked(scale: float, shift: tuple[float, float]) -> Any:
        return (
            np.asarray(datasets.place(drawing, scale, 30.0, shift, (255, 255, 255)))[..., 0] < 228
        ).nonzero()

    y, x = inked(0.5, (6.0, -4.0))
    full, _ = inked(1.0, (0.0, 0.0))

    assert x.mean() == pytest.approx(23.5 + 6, abs=0.3)
    assert y.mean() == pytest.approx(23.5 - 4, abs=0.3)
    assert len(y) / len(full) == pytest.approx(0.25, abs=0.03)


@pytest.fixture(scope="module")
def scores() -> dict[str, Any]:
    """What the embedded CLIP scores here and now."""
    return card.measure(card.CLIP)


def test_the_embedded_clip_reaches_its_targets(scores: dict[str, Any]) -> None:
    """An artist never seen: at least 70 % among 100 names, at least 35 % among all of more than
    1,500.
    """
    assert scores["emoji100"]["acc1"]["score"] >= 0.70
    assert scores["emoji"]["acc1"]["score"] >= 0.35
    assert scores["emoji"]["classes"] > 1500
    assert scores["emoji_captions"]["image_retrieval_recall@5"]["score"] >= 0.70


def test_the_card_tells_what_is_measured(scores: dict[str, Any]) -> None:
    """README.md follows from training.json, whose scores are those of the checkpoint next to it."""
    record = json.loads((card.CLIP / "training.json").read_text())

    assert (card.CLIP / "README.md").read_text() == card.render(record, card.parameters(card.CLIP))
    for task, by_metric in scores.items():
        for metric, value in by_metric.items():
            recorded = record["scores"][task][metric]
            if metric == "classes":
                assert recorded == value
            else:
                assert recorded["n"] == value["n"]
                # Another processor may sum in another order; a sample or two may fall to the other
                # side.
                assert recorded["score"] == pytest.approx(value["score"], abs=0.005)


def test_the_card_counts_the_parameters() -> None:
    """The number in the card is that of the loaded model."""
    model = references.load("embedded", torch.device("cpu")).model

    assert card.parameters(card.CLIP) == sum(p.numel() for p in model.parameters())


def test_the_embedded_tasks_are_the_packages() -> None:
    """Every embedded task has its folder, and every folder is a task or the calibration set."""
    folders = {path.name for path in DATA.iterdir() if (path / "test").is_dir()}

    assert folders == {*tasks.EMBEDDED_TASKS, "calibration"}
