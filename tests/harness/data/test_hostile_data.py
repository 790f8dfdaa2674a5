"""Data sets that cannot be used, or only with care: each is read right, or refused in one line
before anything runs.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import pickle
import resource
import shutil
import struct
import subprocess
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from harness.data import (
    calibration,
    cifar,
    coco,
    inputs,
    pictures,
    sample_counts,
    samples,
    tasks,
    words,
)
from harness.data.pictures import PictureError
from harness.errors import UsageError
from harness.models.references import Reference
from harness.pytest_plugin import options

TEMPLATES = "zeroshot_classification_templates.txt"


def refusal(call: Callable[[], Any]) -> str:
    """The one line with which *call* refuses."""
    with pytest.raises(UsageError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def picture(form: str = "png", size: tuple[int, int] = (20, 16), seed: int = 0) -> bytes:
    """A picture file of random colours."""
    stream = io.BytesIO()
    shades = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(shades).save(stream, form)
    return stream.getvalue()


def flat(size: tuple[int, int]) -> bytes:
    """A PNG of one bit a pixel, which is small however many pixels it has."""
    stream = io.BytesIO()
    Image.new("1", size).save(stream, "png")
    return stream.getvalue()


def tar(path: Path, members: list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> None:
    """Write an archive of named members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


MEMBERS = [
    item
    for i in range(6)
    for item in ((f"k{i}.png", picture(seed=i)), (f"k{i}.cls", str(i % 3).encode()))
]
CAPTIONED = [
    item
    for i in range(7)
    for item in ((f"r{i}.png", picture(seed=i)), (f"r{i}.txt", b"one\ntwo\n"))
]


def classes(place: Path, members: list[tuple[str, bytes]] | None = None) -> Path:
    """A webdataset of six pictures in three classes."""
    tar(place / "test" / "0.tar", MEMBERS if members is None else members)
    (place / "test" / "nshards.txt").write_text("1")
    (place / "classnames.txt").write_text("goose\ncat\ndog\n")
    (place / TEMPLATES).write_text("a {c}.\n{c}\n")
    return place


def captions(place: Path, members: list[tuple[str, bytes]] | None = None) -> Path:
    """A webdataset of seven pictures with two captions each."""
    tar(place / "test" / "0.tar", CAPTIONED if members is None else members)
    (place / "test" / "nshards.txt").write_text("1")
    (place / "dataset_type.txt").write_text("retrieval")
    return place


def caption_entries(count: int = 7) -> dict[str, Any]:
    """COCO's caption annotations of some pictures."""
    return {
        "images": [{"id": i, "file_name": f"{i}.png"} for i in range(count)],
        "annotations": [{"id": i, "image_id": i, "caption": f"thing {i}"} for i in range(count)],
    }


def captioned_coco(place: Path, content: Any = None) -> Path:
    """CLIP_benchmark's layout of COCO captions."""
    (place / "val2014").mkdir(parents=True)
    for i in range(7):
        (place / "val2014" / f"{i}.png").write_bytes(picture(seed=i))
    text = json.dumps(caption_entries()) if content is None else content
    (place / "coco_test_karpathy.json").write_bytes(
        text if isinstance(text, bytes) else text.encode()
    )
    return place


def counts(name: str, place: Path) -> dict[tuple[str, str], int]:
    """What is known of a task without its pictures."""
    return sample_counts.of([name], place)


# -- words -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "line", "what"),
    [
        ("a photo.", 1, "no place for the class name"),
        ("{c}\n{{c}}", 2, "braces other than those of {c}"),
        ("a {}.", 1, "'a {}.': braces other than those of {c}"),
        ("a {name}.", 1, "braces other"),
        ("a {c", 1, "braces other"),
        ("a {c.__class__}", 1, "braces other"),
        ("{c} {c[9]}", 1, "braces other"),
        ("a {c!r:>9999999999}", 1, "braces other"),
        ("a {c}.\n\n", 2, "is empty"),
        ("a {c}.\n   \n{c}", 2, "is empty"),
        ("a {c}\u2028b {c}", 1, "line separator"),
        ("{c}" + "x" * 30_000, 1, "has 30,003 characters"),
        ("", None, "holds no template"),
        (b"a {c}\n\xff{c}", 2, "not UTF-8"),
        ("a {c}".encode("utf-16"), None, "UTF-16"),
    ],
)
def test_template_that_is_none_is_refused_with_its_line(
    content: str | bytes, line: int | None, what: str, tmp_path: Path
) -> None:
    """A template has the class's place, {c}, and no other brace; nothing in it is evaluated."""
    path = classes(tmp_path) / TEMPLATES
    path.write_bytes(content if isinstance(content, bytes) else content.encode())

    message = refusal(lambda: counts("wds/x", tmp_path))

    assert message.startswith(f"{path}:{line}: " if line else f"{path}: ")
    assert what in message


def test_templates_are_filled_by_replacement(tmp_path: Path) -> None:
    """A byte order mark, other line ends and several places are fine, and a name is taken as it
    is.
    """
    (classes(tmp_path) / TEMPLATES).write_bytes(b"\xef\xbb\xbfa {c}, {c}!\r\n{c}\r\n")

    assert samples.load("wds/x", tmp_path).templates == ("a {c}, {c}!", "{c}")
    assert words.fill("a {c}, {c}!", "{c.__class__}") == "a {c.__class__}, {c.__class__}!"


@pytest.mark.parametrize(
    ("content", "where", "what"),
    [
        ("goose\n\ncat\ndog", ":2", "is empty"),
        ("goose\ncat\ndog\n\n", ":4", "is empty"),
        ("goose\n", "", "holds 1 different class names"),
        ("goose\ngoose\ngoose\n", "", "holds 1 different class names"),
        ("", "", "holds 0 different class names"),
        ("goose\ncat\x0bdog\npig", ":2", "line separator"),
    ],
)
def test_class_names_that_cannot_be_used(
    content: str, where: str, what: str, tmp_path: Path
) -> None:
    """An empty line would shift what follows; fewer than two names leave nothing to choose."""
    path = classes(tmp_path) / "classnames.txt"
    path.write_text(content)

    message = refusal(lambda: counts("wds/x", tmp_path))

    assert message.startswith(f"{path}{where}: ")
    assert what in message


def test_class_names_in_any_language_may_repeat(tmp_path: Path) -> None:
    """ImageNet's own list names two classes 'missile'; letters need not be ASCII."""
    (classes(tmp_path) / "classnames.txt").write_text("Gänse\n猫\n猫\n")

    assert samples.load("wds/x", tmp_path).classes == ("Gänse", "猫", "猫")


def test_too_many_prompts_are_refused_before_they_are_made(tmp_path: Path) -> None:
    """Classes times templates are bounded."""
    classes(tmp_path)
    (tmp_path / "classnames.txt").write_text("\n".join(map(str, range(3000))))
    (tmp_path / TEMPLATES).write_text("\n".join(f"{i} {{c}}" for i in range(1000)))

    assert "makes 3,000,000 prompts" in refusal(lambda: counts("wds/x", tmp_path))


def test_captions_are_lines_with_words(tmp_path: Path) -> None:
    """Blank lines between captions are not captions; a file of them is refused, as is what is not
    UTF-8.
    """
    captions(tmp_path, [("r0.txt", b"one\n\n two\n"), *CAPTIONED[:1], *CAPTIONED[2:]])
    assert samples.load("wds/x", tmp_path).captions == (("one", " two"), *[("one", "two")] * 6)

    for data, what in (
        (b" \n\n", "picture r0 has no caption"),
        (b"\xff", "sample r0: 'utf-8' codec"),
    ):
        captions(tmp_path, [("r0.txt", data), *CAPTIONED[:1]])
        message = refusal(lambda: samples.load("wds/x", tmp_path))
        assert message.startswith(f"{tmp_path / 'test' / '0.tar'}: ")
        assert what in message


# -- special files ---------------------------------------------------------------------------------


def folder_instead(path: Path) -> None:
    """A folder where a file belongs."""
    path.unlink()
    path.mkdir()


def pipe_instead(path: Path) -> None:
    """A named pipe that nobody writes to."""
    path.unlink()
    os.mkfifo(path)


def link_instead(path: Path, to: str) -> None:
    """A symbolic link."""
    path.unlink(missing_ok=True)
    path.symlink_to(to)


INSTEAD: dict[str, Callable[[Path], None]] = {
    "folder": folder_instead,
    "named pipe": pipe_instead,
    "device": partial(link_instead, to="/dev/zero"),
    "dangling link": partial(link_instead, to="/no/such/file"),
}
FILES = {
    "class names": ("wds/x", classes, "classnames.txt"),
    "templates": ("wds/x", classes, TEMPLATES),
    "number of shards": ("wds/x", classes, "test/nshards.txt"),
    "shard": ("wds/x", classes, "test/0.tar"),
    "clusters": ("wds/x", classes, "clusters.txt"),
    "kind": ("wds/x", captions, "dataset_type.txt"),
    "annotations": ("mscoco_captions", captioned_coco, "coco_test_karpathy.json"),
    "picture": ("mscoco_captions", captioned_coco, "val2014/3.png"),
}


@pytest.mark.parametrize("instead", INSTEAD)
@pytest.mark.parametrize("file", FILES)
def test_special_file_in_place_of_data(file: str, instead: str, tmp_path: Path) -> None:
    """Pipes, devices, folders and links to nowhere are refused by name, without waiting or
    reading.
    """
    name, write, item = FILES[file]
    path = write(tmp_path) / item
    path.touch()
    INSTEAD[instead](path)

    message = refusal(lambda: samples.load(name, tmp_path).hash)

    assert path.name in message
    assert str(tmp_path) in message


@pytest.mark.parametrize("instead", INSTEAD)
def test_special_file_in_place_of_calibration_data(
    instead: str, tmp_path: Path, reference: Reference
) -> None:
    """What calibration reads goes through the same gateway: annotations, pictures, shard counts,
    the kind.
    """
    writers = {
        "coco_test_karpathy.json": captioned_coco,
        "val2014/3.png": captioned_coco,
        "test/nshards.txt": captions,
        "dataset_type.txt": captions,
    }
    for item, write in writers.items():
        place = write(tmp_path / item.replace("/", "-"))
        INSTEAD[instead](place / item)
        assert str(place) in refusal(partial(calibration.load, place, reference))


# -- webdatasets -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", ["0", "-1", "two", "", "1_0", "٢", "2.0", "1e9", "9" * 5000, "1 1"]
)
def test_number_of_shards_that_is_none(content: str, tmp_path: Path) -> None:
    """The number of shards is a whole number from 1 up, in digits."""
    path = classes(tmp_path) / "test" / "nshards.txt"
    path.write_text(content)

    assert refusal(lambda: counts("wds/x", tmp_path)).startswith(
        f"{path}: is not a number of shards"
    )


def test_number_of_shards_far_beyond_those_there_are(tmp_path: Path) -> None:
    """The first shard that is missing is named, however many there should be."""
    classes(tmp_path)
    (tmp_path / "test" / "nshards.txt").write_text("100000000")

    assert refusal(lambda: counts("wds/x", tmp_path)).startswith(
        f"{tmp_path / 'test' / '1.tar'}: is missing"
    )


def changed(name: str, data: bytes) -> list[tuple[str, bytes]]:
    """The members with other content for one of them."""
    return [(n, data if n == name else d) for n, d in MEMBERS]


SAMPLES: dict[str, tuple[list[tuple[str, bytes]], str]] = {
    "label below 0": (changed("k1.cls", b"-1"), "sample k1 has label -1, there are 3 class names"),
    "label beyond the classes": (
        changed("k1.cls", b"3"),
        "sample k1 has label 3, there are 3 class names",
    ),
    "label with a point": (changed("k1.cls", b"1.0"), "sample k1 has no label, but b'1.0'"),
    "label of 5,000 digits": (changed("k1.cls", b"9" * 5000), "sample k1 has no label, but"),
    "label of two megabytes": (
        changed("k1.cls", b"1" * (2 << 20)),
        ".cls of 2,097,152 bytes, the limit is",
    ),
    "empty label": (changed("k1.cls", b""), "sample k1 has no label, but b''"),
    "no label": ([m for m in MEMBERS if m[0] != "k1.cls"], "sample k1 has no label"),
    "no picture": ([m for m in MEMBERS if m[0] != "k1.png"], "sample k1 has no picture"),
    "one member twice": ([*MEMBERS, MEMBERS[-1]], "sample k5 has two members .cls"),
    "a name of 5,000 characters": (
        [*MEMBERS, ("k" * 5000 + ".png", b"")],
        "longer than 1000 characters",
    ),
    "a name not in UTF-8": ([*MEMBERS, ("k\udcff9.png", b"")], "is not UTF-8"),
    "nothing": ([], "holds no sample"),
}


@pytest.mark.parametrize("defect", SAMPLES)
def test_sample_that_cannot_be_used(defect: str, tmp_path: Path) -> None:
    """A sample without its parts, or with wrong ones, is named before any picture is read."""
    members, what = SAMPLES[defect]
    classes(tmp_path, members)

    assert what in refusal(lambda: counts("wds/x", tmp_path))


def cut_between_members(data: bytes) -> bytes:
    """All but the last two members and the end mark: tarfile would take it for the whole."""
    return data[: 8 * 1024]


def header_overwritten(data: bytes) -> bytes:
    """A header in the middle that is not a header."""
    at = data.index(b"k3.png")
    return data[:at] + b"\xff" * 512 + data[at + 512 :]


def negative_size(data: bytes) -> bytes:
    """A member that leads back to its own header: reading on would never end."""
    at = data.index(b"k3.png")
    header = bytearray(data[at : at + 512])
    header[124:136] = b"\xff" * 10 + struct.pack(">h", -512)
    header[156:157] = b"5"  # a folder with content, which is skipped
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return data[:at] + bytes(header) + data[at + 512 :]


def long_header(data: bytes) -> bytes:
    """A header that says to be followed by eight gigabytes of attributes."""
    header = bytearray(data[:512])
    header[124:136] = b"77777777777\0"
    header[156:157] = b"x"
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header) + data


SHARDS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut between members": (cut_between_members, "the shard is damaged"),
    "cut within a member": (lambda data: data[: len(data) // 3], "the shard is damaged"),
    "overwritten header": (
        header_overwritten,
        "the shard is damaged (cut off, or no header at byte",
    ),
    "negative size": (negative_size, "the shard is damaged"),
    "long header": (long_header, "the shard is damaged (a header of"),
    "no archive": (lambda _: b"no archive" * 100, "the shard is damaged"),
    "empty": (lambda _: b"", "the shard is damaged"),
    "compressed": (lambda _: b"\x1f\x8b" + bytes(100), "is compressed"),
}


@pytest.mark.parametrize("defect", SHARDS)
def test_damaged_shard(defect: str, tmp_path: Path) -> None:
    """A shard that is not whole is refused, also where tarfile silently takes what comes before for
    all.
    """
    change, what = SHARDS[defect]
    path = classes(tmp_path) / "test" / "0.tar"
    path.write_bytes(change(path.read_bytes()))

    message = refusal(lambda: counts("wds/x", tmp_path))

    assert message.startswith(f"{path}: ")
    assert what in message


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("", "has 0 numbers for 6 samples"),
        ("0 1 2", "has 3 numbers for 6 samples"),
        ("0 1 2 3 4 x", "entry 6 is 'x'"),
        ("0 1 2 3 4 -1", "entry 6 is '-1'"),
        ("0 1 2 3 4 99999999999", "entry 6 is '99999999999'"),
        ("0 1 2 3 4 1.5", "entry 6 is '1.5'"),
    ],
)
def test_clusters_that_cannot_be_used(content: str, what: str, tmp_path: Path) -> None:
    """There is one whole number from 0 up for each sample."""
    path = classes(tmp_path) / "clusters.txt"
    path.write_text(content)

    message = refusal(lambda: counts("wds/x", tmp_path))

    assert message.startswith(f"{path}: ")
    assert what in message


# -- fixes -----------------------------------------------------------------------------------------


def written(item: str, content: str | bytes) -> Callable[[Path], object]:
    """Write a file of a data set."""
    return lambda place: (place / item).write_bytes(
        content.encode() if isinstance(content, str) else content
    )


def without(item: str) -> Callable[[Path], object]:
    """Remove a file of a data set."""
    return lambda place: (place / item).unlink()


def repacked(*members: tuple[str, bytes]) -> Callable[[Path], object]:
    """Write the shard with these members."""
    return lambda place: tar(place / "test/0.tar", list(members))


def named(number: int, **changes: Any) -> Callable[[Path], object]:
    """Write COCO's annotations with other values for one picture."""
    content = caption_entries()
    content["images"][number].update(changes)
    return written("coco_test_karpathy.json", json.dumps(content))


def said(number: int, caption: str | None) -> Callable[[Path], object]:
    """Write COCO's annotations with another caption for one picture of eight captions; None leaves
    it out.
    """
    content = caption_entries()
    content["annotations"].append({"id": 99, "image_id": number, "caption": caption})
    content["annotations"] = [
        entry for entry in content["annotations"] if entry["caption"] is not None
    ]
    return written("coco_test_karpathy.json", json.dumps(content))


EXAMPLE = "a photo of a {c}."
NAMES = "goose\ncat\ndog\n"
#: What is written, what is wrong in it, the words of the fix, and what they say done.
FIXES: dict[
    str, tuple[Callable[[Path], Path], Callable[[Path], object], str, Callable[[Path], object]]
] = {
    "template": (
        classes,
        written(TEMPLATES, "a photo."),
        f"as in '{EXAMPLE}'",
        written(TEMPLATES, EXAMPLE),
    ),
    "OpenAI's template": (
        classes,
        written(TEMPLATES, "a {}."),
        f"as in '{EXAMPLE}'",
        written(TEMPLATES, EXAMPLE),
    ),
    "no template": (
        classes,
        written(TEMPLATES, ""),
        f"as in '{EXAMPLE}'",
        written(TEMPLATES, EXAMPLE),
    ),
    "empty class": (
        classes,
        written("classnames.txt", "goose\n\ndog\n"),
        "Write the class name, or",
        written("classnames.txt", NAMES),
    ),
    "empty line at the end": (
        classes,
        written("classnames.txt", f"{NAMES}\n"),
        "or remove the line",
        written("classnames.txt", NAMES),
    ),
    "one class": (
        classes,
        written("classnames.txt", "goose\n"),
        "Add the others.",
        written("classnames.txt", NAMES),
    ),
    "two classes in a line": (
        classes,
        written("classnames.txt", "goose\ncat\x0bdog\n"),
        "Write one line for each.",
        written("classnames.txt", NAMES),
    ),
    "no shards": (
        classes,
        written("test/nshards.txt", "0"),
        "1 or more: 0.tar, 1",
        written("test/nshards.txt", "1"),
    ),
    "more shards": (
        classes,
        written("test/nshards.txt", "2"),
        "test/nshards.txt, test/0.tar",
        written("test/nshards.txt", "1"),
    ),
    "no number of shards": (
        classes,
        without("test/nshards.txt"),
        "test/nshards.txt,",
        written("test/nshards.txt", "1"),
    ),
    "kind": (
        classes,
        written("dataset_type.txt", "pictures"),
        "Write classification or retrieval.",
        written("dataset_type.txt", "classification"),
    ),
    "clusters": (
        classes,
        written("clusters.txt", "0 1 2"),
        "Write one whole number from 0 up for each sample.",
        written("clusters.txt", "0 0 1 1 2 2"),
    ),
    "label": (
        classes,
        repacked(*MEMBERS[:3], ("k1.cls", b"dog"), *MEMBERS[4:]),
        "has a .cls member: a whole number.",
        repacked(*MEMBERS),
    ),
    "member": (
        classes,
        repacked(*MEMBERS, ("k6.npy", b"")),
        "Allowed are: cls, jpeg, jpg, json, png, txt, webp.",
        repacked(*MEMBERS),
    ),
    "picture": (
        classes,
        repacked(*MEMBERS, ("k6.cls", b"0")),
        "Allowed are: webp, png, jpg, jpeg.",
        repacked(*MEMBERS, ("k6.cls", b"0"), ("k6.jpg", picture("jpeg"))),
    ),
    "two of one name": (
        classes,
        repacked(*MEMBERS, *MEMBERS[-2:]),
        "Give each sample a name of its own.",
        repacked(*MEMBERS, ("k6.png", MEMBERS[-2][1]), ("k6.cls", b"0")),
    ),
    "long name": (
        classes,
        repacked(*MEMBERS, ("k" * 2000 + ".png", picture())),
        "Name it by a number.",
        repacked(*MEMBERS, ("6.png", picture()), ("6.cls", b"0")),
    ),
    "large label": (
        classes,
        repacked(*MEMBERS, ("k6.cls", b"0" * (2 << 20))),
        "Make it smaller, or leave the sample out.",
        repacked(*MEMBERS),
    ),
    "label beyond the classes": (
        classes,
        written("classnames.txt", "goose\ncat\n"),
        "Bring labels and class names together.",
        written("classnames.txt", NAMES),
    ),
    "empty": (classes, repacked(), "Give a data set with pictures.", repacked(*MEMBERS)),
    "damaged shard": (
        classes,
        written("test/0.tar", b"x" * 2000),
        "Fetch the shards again.",
        repacked(*MEMBERS),
    ),
    "no captions": (
        captions,
        repacked(*CAPTIONED, ("r7.png", picture())),
        "A retrieval sample has captions.",
        repacked(*CAPTIONED, ("r7.png", picture()), ("r7.txt", b"one")),
    ),
    "blank captions": (
        captions,
        repacked(*CAPTIONED, ("r7.png", picture()), ("r7.txt", b"\n")),
        "Give it one, or leave it out.",
        repacked(*CAPTIONED),
    ),
    "caption": (
        captions,
        repacked(*CAPTIONED, ("r7.png", picture()), ("r7.txt", b"\xff")),
        "Correct its .txt member.",
        repacked(*CAPTIONED, ("r7.png", picture()), ("r7.txt", b"ff")),
    ),
    "COCO's picture outside": (
        captioned_coco,
        named(3, file_name="../3.png"),
        "plain file names.",
        named(3),
    ),
    "COCO's picture elsewhere": (
        captioned_coco,
        lambda place: (place / "val2014").rename(place / "pictures"),
        "Unpack val2014.zip there",
        lambda place: (place / "pictures").rename(place / "val2014"),
    ),
    "COCO's picture absent": (
        captioned_coco,
        without("val2014/3.png"),
        "Put the picture folder next to the annotations.",
        written("val2014/3.png", picture()),
    ),
    "COCO's ids": (captioned_coco, named(3, id=2), "Give each picture an id of its own.", named(3)),
    "COCO's caption": (captioned_coco, said(3, " "), "Write it, or remove it.", said(3, "a thing")),
    "COCO's caption removed": (captioned_coco, said(3, ""), "or remove it.", said(3, None)),
}


@pytest.mark.parametrize("defect", FIXES)
def test_what_a_refusal_proposes_is_enough(defect: str, tmp_path: Path) -> None:
    """Done as the message says, the data set is read, and all of its pictures are."""
    write, damage, words_of_fix, repair = FIXES[defect]
    name = "mscoco_captions" if write is captioned_coco else "wds/x"
    place = write(tmp_path)
    damage(place)

    assert words_of_fix in refusal(lambda: samples.load(name, place).hash)
    repair(place)
    assert len(samples.load(name, place).hash) == 64


def test_the_command_that_unpacks_a_shard_works(tmp_path: Path) -> None:
    """Run by a shell as it is printed, in a folder with a blank in its name, it leaves a shard that
    is read.
    """
    place = classes(tmp_path / "my data")
    path = place / "test/0.tar"
    path.write_bytes(gzip.compress(path.read_bytes()))

    message = refusal(lambda: counts("wds/x", place))
    subprocess.run(message.partition("Unpack it: ")[2], shell=True, check=True)
    assert counts("wds/x", place) == {("wds/x", "acc1"): 6}


@pytest.mark.parametrize(
    ("names", "words_of_fix", "instead"),
    [
        (
            " , ",
            "Leave it out to take emoji100, emoji, emoji_captions.",
            "emoji100, emoji,emoji_captions",
        ),
        ("../x", "Known: cifar10, cifar100,", "cifar100"),
        ("wds/", "wds/NAME", "wds/x"),
    ],
)
def test_names_of_tasks_that_a_refusal_proposes(
    names: str, words_of_fix: str, instead: str
) -> None:
    """What is listed is taken."""
    assert words_of_fix in refusal(lambda: samples.names_of(names))
    assert samples.names_of(instead) == tuple(part.strip() for part in instead.split(","))


# -- COCO ------------------------------------------------------------------------------------------


def with_entry(kind: str, **changes: Any) -> str:
    """Annotations of which the fourth entry of a kind has other values; None removes the key."""
    content = caption_entries()
    entry = content[kind][3] | changes
    content[kind][3] = {k: v for k, v in entry.items() if v is not ...}
    return json.dumps(content)


ANNOTATIONS: dict[str, tuple[str | bytes, str]] = {
    "nested 100,000 deep": ('{"images": ' + "[" * 100_000 + "]" * 100_000 + "}", "nests deeper"),
    "no file name": (
        with_entry("images", file_name=...),
        "(images[3].file_name): the key 'file_name' is missing",
    ),
    "no caption": (
        with_entry("annotations", caption=...),
        "(annotations[3].caption): the key 'caption' is missing",
    ),
    "caption null": (with_entry("annotations", caption=None), "(annotations[3].caption): is null"),
    "caption empty": (
        with_entry("annotations", caption="  "),
        "(annotations[3].caption): the caption of picture 3",
    ),
    "caption a number": (with_entry("annotations", caption=5), "(annotations[3].caption): is 5"),
    "id true": (with_entry("images", id=True), "(images[3].id): is true"),
    "id a fraction": (with_entry("images", id=1.5), "(images[3].id): is 1.5"),
    "id of 5,000 characters": (with_entry("images", id="x" * 5000), "(images[3].id): is 'xxxx"),
    "id twice": (with_entry("images", id=2), "(images[3].id): id 2 is that of 2.png and of 3.png"),
    "images a mapping": ('{"images": {}, "annotations": []}', "(images): is {}"),
    "a list": ("[]", "is []"),
    "half a surrogate pair": (with_entry("annotations", caption="\ud800"), "surrogate"),
    "not UTF-8": (b'{"images": "\xff"}', "not UTF-8"),
    "nothing": ("", "is not JSON"),
    "no pictures": ('{"images": [], "annotations": []}', "holds no sample"),
    "a picture without caption": (
        with_entry("annotations", image_id=2),
        "picture 3 has no caption",
    ),
}


@pytest.mark.parametrize("defect", ANNOTATIONS)
def test_annotations_that_cannot_be_used(defect: str, tmp_path: Path) -> None:
    """An entry that lacks what it needs, or holds another type, is refused with the file and its
    place.
    """
    content, what = ANNOTATIONS[defect]
    captioned_coco(tmp_path, content)

    message = refusal(lambda: counts("mscoco_captions", tmp_path))

    assert message.startswith(str(tmp_path))
    assert what in message


@pytest.mark.parametrize(
    "name",
    [
        "../../../etc/passwd",
        "/etc/passwd",
        "a/../../secret.png",
        "link.png",
        "..",
        ".",
        "",
        "C:\\secret.png",
    ],
)
def test_picture_outside_of_its_folder(name: str, tmp_path: Path, reference: Reference) -> None:
    """Annotations name pictures in their folder: not by a path that leads out, nor by a link that
    does.
    """
    place = captioned_coco(tmp_path / "data", with_entry("images", file_name=name))
    (tmp_path / "secret.png").write_bytes(picture())
    (place / "val2014" / "link.png").symlink_to(tmp_path / "secret.png")

    for call in (
        lambda: counts("mscoco_captions", place),
        lambda: calibration.load(place, reference),
    ):
        message = refusal(call)
        assert "outside" in message
        assert name in message


def test_pictures_and_annotations_in_folders_of_their_own(
    tmp_path: Path, reference: Reference
) -> None:
    """COCO is found as people keep it: images/val2017 and annotations/, given as a folder or by its
    annotation file.
    """
    (tmp_path / "images" / "val2017").mkdir(parents=True)
    (tmp_path / "annotations").mkdir()
    for i in range(7):
        (tmp_path / "images" / "val2017" / f"{i}.png").write_bytes(picture(seed=i))
    path = tmp_path / "annotations" / "captions_val2017.json"
    path.write_text(json.dumps(caption_entries()))
    expected = calibration.load(tmp_path, reference)
    assert expected.n == 7
    assert calibration.load(path, reference).hash == expected.hash

    (tmp_path / "images" / "val2017").rename(tmp_path / "val2017")
    assert calibration.load(path, reference).hash == expected.hash

    shutil.move(path, tmp_path / "annotations" / "coco_test_karpathy.json")
    shutil.move(tmp_path / "val2017", tmp_path / "images" / "val2014")
    assert len(samples.load("mscoco_captions", tmp_path).hash) == 64


def test_annotation_file_is_a_value_of_the_option(pytester: pytest.Pytester) -> None:
    """--calibration-data takes a folder or a file; --data-root a folder."""
    path = pytester.makefile(".json", captions_val2017="{}")
    options.check_options(pytester.parseconfig("--calibration-data", str(path)))

    config = pytester.parseconfig("--data-root", str(path))
    assert "is not a directory" in refusal(lambda: options.check_options(config))


# -- pictures --------------------------------------------------------------------------------------


def eps() -> bytes:
    """A picture that Pillow hands to another program."""
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "eps")
    return stream.getvalue()


PICTURES: dict[str, tuple[bytes, str]] = {
    "169 million pixels in one bit each": (
        flat((13_000, 13_000)),
        "has 13,000 x 13,000 pixels, the limit is",
    ),
    "twice Pillow's own limit": (flat((20_000, 20_000)), "has more than 89,478,485 pixels"),
    "100,000 x 1": (flat((100_000, 1)), "once its short side is resized to 48"),
    "1 x 100,000": (flat((1, 100_000)), "once its short side is resized to 48"),
    "cut JPEG": (picture("jpeg")[:500], "cannot be read ("),
    "cut PNG": (picture()[:500], "cannot be read ("),
    "cut WEBP": (picture("webp")[:200], "cannot be read ("),
    "empty": (b"", "cannot be read (not a picture file"),
    "text": (b"no picture", "cannot be read (not a picture file"),
    "a program's input": (eps(), "cannot be read (not a picture file"),
}


@pytest.mark.parametrize("defect", PICTURES)
def test_picture_that_cannot_be_used(defect: str, tmp_path: Path, reference: Reference) -> None:
    """Pixels are bounded before they are decoded, as stored and as resized; a picture is named with
    its file.
    """
    data, what = PICTURES[defect]
    path = classes(tmp_path, changed("k1.png", data)) / "test" / "0.tar"

    def decode() -> None:
        (task,) = tasks.load_tasks(["wds/x"], tmp_path, reference)
        task.decode()

    message = refusal(decode)

    assert message.startswith(f"{path}: picture k1 ")
    assert what in message


@pytest.mark.parametrize("form", ["png", "jpeg", "webp", "bmp", "gif", "ppm", "tiff"])
def test_picture_of_every_known_format(form: str) -> None:
    """Whole pictures are accepted by the check and decoded, bytes after their end or not."""
    for data in (picture(form), picture(form) + bytes(100)):
        pictures.check(data)
        assert pictures.decoded(data).size == (16, 20)


def test_picture_in_calibration_data_is_named_before_a_model_is_quantized(
    tmp_path: Path, reference: Reference
) -> None:
    """A cut JPEG is found when the pairs are loaded, and one that only its decoder refuses when
    they are decoded.
    """
    place = captioned_coco(tmp_path / "data")
    path = place / "val2014" / "3.png"
    path.write_bytes(picture("jpeg")[:600])
    assert refusal(lambda: calibration.load(place, reference)).startswith(
        f"{path}: picture 3.png cannot be read"
    )

    path.write_bytes(flat((100_000, 1)))
    pairs = calibration.load(place, reference)
    assert refusal(pairs.decode).startswith(f"{path}: picture 3.png has 100,000 x 1 pixels")


def test_usage_error_survives_the_way_between_processes() -> None:
    """What a process that decodes raises says the same in the one that reports."""
    error = UsageError("file", "is missing", "Restore it.")

    assert str(pickle.loads(pickle.dumps(error))) == str(error) == "file: is missing. Restore it."
    assert len(str(UsageError("f" * 9000, "w" * 9000, "Restore it."))) < 3000


class Plain:
    """Pictures that are made, not read; the last one cannot be."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == self.n - 1:
            raise PictureError("is missing")
        return torch.full((3, 4, 4), index % 256, dtype=torch.uint8)

    def where(self, index: int) -> Path:
        """Return a name."""
        return Path(f"{index}.png")


def test_batches_of_512_need_few_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures decoded in other processes come as bytes, so that a batch is not hundreds of open
    files.
    """
    monkeypatch.setattr(inputs, "_WORTH_WORKERS", 1)
    count = 1200
    decoded = inputs.Pictures(
        Plain(count + 1), [str(i) for i in range(count + 1)], (3, 4, 4), memory_limit=0
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 200, hard)
    )
    try:
        batches = list(decoded.batches(512, 0, count))
        message = refusal(lambda: list(decoded.batches(512, count)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert [len(batch) for batch in batches] == [512, 512, 176]
    assert torch.cat(batches)[:, 0, 0, 0].tolist() == [i % 256 for i in range(count)]
    assert message == f"{count}.png: picture {count} is missing. Restore the file."


# -- CIFAR -----------------------------------------------------------------------------------------

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 3072), dtype=np.uint8)
LABELS = [0, 1, 2, 0, 1, 2, 0, 1, 2]


def hundred(place: Path, test: bytes | None = None, **changes: Any) -> Path:
    """A part of CIFAR-100 in its own format."""
    folder = place / "cifar-100-python"
    folder.mkdir(parents=True, exist_ok=True)
    content = {"data": PIXELS, "fine_labels": LABELS, "filenames": ["a.png"] * 9} | changes
    (folder / "test").write_bytes(pickle.dumps(content) if test is None else test)
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": ["apple", "bear", "cup"]}))
    return place


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "labels", [LABELS, np.asarray(LABELS), np.asarray(LABELS, ">i2"), [np.int64(n) for n in LABELS]]
)
def test_part_of_cifar_is_read(protocol: int, labels: Any, tmp_path: Path) -> None:
    """Anybody's part of CIFAR is read, however Python and NumPy pickled it, with torchvision's
    pixels.
    """
    content = pickle.dumps({"data": PIXELS, "fine_labels": labels}, protocol)
    loaded = samples.load("cifar100", hundred(tmp_path, content))

    assert loaded.labels is not None
    assert loaded.labels.tolist() == LABELS
    assert loaded.classes == ("apple", "bear", "cup")
    expected = PIXELS.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(np.asarray(loaded.pictures.picture(4)), expected[4])
    assert sample_counts.of(["cifar100"], tmp_path) == {("cifar100", "acc1"): 9}


def test_original_pickle_of_python_2_is_read(tmp_path: Path) -> None:
    """The published files hold texts of Python 2, the bytes of the array among them."""
    raw = PIXELS.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87Rq\x03(K\x01K\x09M\x00\x0c"
        b"\x86cnumpy\ndtype\nq\x04U\x02u1K\x00K\x01\x87Rq\x05(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
    )
    labels = b"]q\x06(" + bytes(b for n in LABELS for b in (0x4B, n)) + b"e"
    content = (
        b"\x80\x02}q\x00(U\x04data"
        + array
        + struct.pack("<i", len(raw))
        + raw
        + b"tbU\x0bfine_labels"
        + labels
    )
    place = hundred(tmp_path, content + b"u.")
    assert (
        pickle.loads((place / "cifar-100-python" / "test").read_bytes(), encoding="latin1")[
            "fine_labels"
        ]
        == LABELS
    )

    loaded = cifar.read(place, "cifar100")

    np.testing.assert_array_equal(
        loaded.pixels, PIXELS.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    )
    assert loaded.labels == LABELS


def test_binary_version_of_cifar_is_read(tmp_path: Path) -> None:
    """The version without pickles gives the same samples: the last label byte counts, channels come
    first.
    """
    folder = tmp_path / "binary" / "cifar-100-binary"
    folder.mkdir(parents=True)
    table = np.concatenate(
        [np.full((9, 1), 7, np.uint8), np.asarray(LABELS, np.uint8)[:, None], PIXELS], 1
    )
    (folder / "test.bin").write_bytes(table.tobytes())
    (folder / "fine_label_names.txt").write_text("apple\nbear\ncup\n\n")

    binary, pickled = (
        samples.load("cifar100", p) for p in (tmp_path / "binary", hundred(tmp_path / "python"))
    )
    assert binary.hash == pickled.hash

    (folder / "test.bin").write_bytes(table.tobytes()[:-1])
    assert "expected a multiple of 3,074" in refusal(
        lambda: samples.load("cifar100", tmp_path / "binary")
    )


class Runs:
    """Unpickled as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


def huge_array() -> bytes:
    """A pickle that asks NumPy for a terabyte."""
    return pickle.dumps({"data": Runs(np.empty, (1 << 40,))})


NESTED_KEY = b"\x80\x02}(" + b")" + b"\x85" * 200_000 + b"K\x01u."
CIFARS: dict[str, tuple[bytes, str]] = {
    "a command": (
        pickle.dumps({"data": Runs(os.system, "touch owned")}),
        "system', which is not run",
    ),
    "a terabyte": (huge_array(), "which is not run"),
    "a type": (pickle.dumps({"data": Runs(np.dtype, "O")}), "an array of the type 'O'"),
    "an instance": (pickle.dumps({"data": Image.new("1", (1, 1))}), "which is not run"),
    "a set": (pickle.dumps({"data": {1, 2}}), "the instruction EMPTY_SET"),
    "a large memo index": (b"\x80\x02}r\xff\xff\xff\xff.", "has no entry 'data'"),
    "bytes that are not there": (
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 50) + b".",
        "is not a pickle",
    ),
    "a deeply nested key": (NESTED_KEY, "a dictionary with other keys than texts"),
    "cut": (pickle.dumps({"data": PIXELS})[:5000], "is not a pickle"),
    "text": (b"no pickle", "is not a pickle"),
    "nothing": (b"", "is not a pickle"),
    "a list": (pickle.dumps([1]), "holds list, expected a dictionary"),
    "no pixels": (pickle.dumps({"labels": LABELS}), "has no entry 'data' (it has 'labels')"),
    "other pixels": (
        pickle.dumps({"data": PIXELS[:, :100], "fine_labels": LABELS}),
        "'data' is uint8 (9, 100)",
    ),
    "pixels a list": (
        pickle.dumps({"data": [1], "fine_labels": LABELS}),
        "'data' is list, expected uint8",
    ),
    "fewer labels": (
        pickle.dumps({"data": PIXELS, "fine_labels": [0]}),
        "holds 9 pictures and 1 labels",
    ),
    "labels of text": (
        pickle.dumps({"data": PIXELS, "fine_labels": ["0"] * 9}),
        "not a list of whole numbers",
    ),
    "label outside": (
        pickle.dumps({"data": PIXELS, "fine_labels": [7] * 9}),
        "label 7, there are 3 class names",
    ),
    "no pictures": (pickle.dumps({"data": PIXELS[:0], "fine_labels": []}), "holds no sample"),
}


@pytest.mark.parametrize("defect", CIFARS)
def test_pickle_that_is_not_cifar(
    defect: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pickle makes numbers, texts and arrays, of the size that its bytes have; it runs
    nothing.
    """
    monkeypatch.chdir(tmp_path)
    content, what = CIFARS[defect]
    path = hundred(tmp_path, content) / "cifar-100-python" / "test"

    message = refusal(lambda: counts("cifar100", tmp_path))

    assert str(path.parent.parent) in message
    assert what in message
    assert not (tmp_path / "owned").exists()


# -- ImageNet --------------------------------------------------------------------------------------


def test_class_folders_are_those_of_imagenet(tmp_path: Path) -> None:
    """Folders called otherwise, or too few of them, would get wrong labels; leading zeros keep the
    order.
    """
    from clip_benchmark.datasets.builder import all_imagenet_wordnet_ids as wnids

    val, content = tmp_path / "val", picture("jpeg", (8, 8))
    for wnid in wnids:
        (val / wnid).mkdir(parents=True)
        (val / wnid / "a.JPEG").write_bytes(content)
    name = "imagenet1k-unverified"
    expected = samples.load(name, tmp_path)
    assert expected.labels is not None
    assert expected.labels.tolist() == list(range(1000))

    (val / wnids[0] / "a.JPEG").rename(val / wnids[1] / "b.JPEG")
    assert refusal(lambda: samples.load(name, tmp_path)).startswith(
        f"{val / wnids[0]}: holds no picture"
    )
    (val / wnids[0]).rename(val / "tench")
    assert refusal(lambda: samples.load(name, tmp_path)).startswith(
        f"{val / 'tench'}: is not the WordNet id"
    )
    shutil.rmtree(val / "tench")
    message = refusal(lambda: samples.load(name, tmp_path))
    assert (
        f"999 class folders with pictures for 1000 class names ({wnids[0]} is not there)" in message
    )

    (val / wnids[0]).mkdir()
    (val / wnids[1] / "b.JPEG").rename(val / wnids[0] / "a.JPEG")
    for number, wnid in enumerate(wnids):
        (val / wnid).rename(val / f"{number:04d}")
    assert samples.load(name, tmp_path).labels.tolist() == list(range(1000))  # type: ignore[union-attr]

    (val / "0007" / "loop").symlink_to(val / "0007")
    assert "nests deeper" in refusal(lambda: samples.load(name, tmp_path))


# -- names and counts ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("a, b", ("a", "b")),
        (" wds/x ,wds/x/, wds//x,wds/./x", ("wds/x",)),
        ("a,,b,", ("a", "b")),
        ("emoji\n,\temoji", ("emoji",)),
        ("wds/vtab/Ü 1", ("wds/vtab/Ü 1",)),
    ],
)
def test_task_names_have_one_spelling(names: str, expected: tuple[str, ...]) -> None:
    """Blanks and slashes that mean nothing do not make another task."""
    assert samples.names_of(names) == expected


@pytest.mark.parametrize("names", ["", " ", ",", "/", "wds/", "wds/../../etc", "a\0b", "x" * 5000])
def test_task_name_that_is_none(names: str) -> None:
    """No name at all, one that leads out of the data root, or one that cannot be a file's is
    refused.
    """
    message = refusal(lambda: samples.names_of(names))

    assert message.startswith("--tasks ")
    assert len(message) < 500


def test_one_data_set_under_two_names_is_refused(tmp_path: Path) -> None:
    """Two names that lead to the same data would be judged twice, and one of them is not what was
    meant.
    """
    classes(tmp_path)
    message = refusal(lambda: sample_counts.of(["wds/x", "wds/y"], tmp_path))
    assert message.startswith(f"--tasks wds/y: and wds/x are the same data in {tmp_path}")

    classes(tmp_path / "vtab-x")
    assert "are the same data" in refusal(
        lambda: sample_counts.of(["wds/vtab/x", "wds/vtab-x"], tmp_path)
    )


def test_samples_are_counted_without_pictures(tmp_path: Path) -> None:
    """Every metric's samples are known from names, labels and captions, though no picture can be
    read.
    """
    classes(tmp_path / "x", [(n, b"none" if n.endswith("png") else d) for n, d in MEMBERS])
    captions(tmp_path / "y", [(n, b"none" if n.endswith("png") else d) for n, d in CAPTIONED])

    assert sample_counts.of(["wds/x", "wds/y"], tmp_path) == {
        ("wds/x", "acc1"): 6,
        ("wds/y", "image_retrieval_recall@5"): 14,
        ("wds/y", "text_retrieval_recall@5"): 7,
    }
    assert sample_counts.of(None, None)["emoji100", "acc1"] == 1000


@pytest.mark.parametrize(
    ("root", "what"),
    [
        ("~nosuchuser/x", "there is no user"),
        ("x" * 5000, "is too long"),
        ("", "is empty"),
        ("a\0b", "cannot be a path"),
    ],
)
def test_data_root_that_is_no_path(root: str, what: str) -> None:
    """A root that no file can have is refused with its option."""
    message = refusal(lambda: samples.place_of("cifar100", root))  # type: ignore[arg-type]

    assert message.startswith("--data-root")
    assert what in message


# -- whatever comes --------------------------------------------------------------------------------


def use(path: Path) -> None:
    """Read a data set to its last picture."""
    assert samples.load("wds/x", path).hash


def small(place: Path) -> Path:
    """The data sets of all kinds in one folder."""
    classes(place)
    captioned_coco(place)
    return hundred(place)


READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "shard": ("test/0.tar", use),
    "class names": ("classnames.txt", use),
    "templates": (TEMPLATES, use),
    "number of shards": ("test/nshards.txt", use),
    "kind": ("dataset_type.txt", use),
    "clusters": ("clusters.txt", use),
    "annotations": (
        "coco_test_karpathy.json",
        lambda place: coco.read(place / "coco_test_karpathy.json"),
    ),
    "pickle": ("cifar-100-python/test", lambda place: samples.load("cifar100", place).hash),
    "class names of CIFAR": (
        "cifar-100-python/meta",
        lambda place: samples.load("cifar100", place).hash,
    ),
    "picture": ("val2014/3.png", lambda place: samples.load("mscoco_captions", place).hash),
}
EDITS = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.sampled_from(["flip", "cut", "insert", "repeat"]),
        st.binary(max_size=12),
    ),
    max_size=4,
)


def edited(data: bytes, edits: list[tuple[float, str, bytes]]) -> bytes:
    """*data* with bytes changed, cut off, inserted or repeated."""
    for place, kind, extra in edits:
        at = int(place * len(data))
        if kind == "flip":
            data = data[:at] + extra + data[at + len(extra) :]
        elif kind == "cut":
            data = data[:at]
        elif kind == "insert":
            data = data[:at] + extra + data[at:]
        else:
            data = data[:at] + data[max(0, at - 40) :]
    return data


@pytest.mark.parametrize("reader", READERS)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(edits=EDITS, other=st.none() | st.binary(max_size=60))
def test_whatever_a_file_holds_only_usage_errors_come_out(
    reader: str,
    edits: list[tuple[float, str, bytes]],
    other: bytes | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Arbitrary bytes, and data sets with some bytes changed, are read or refused in one line."""
    item, read = READERS[reader]
    place = tmp_path_factory.getbasetemp() / f"fuzz {reader}"
    if not place.exists():
        small(place)
        (place / "clusters.txt").write_text("0 0 1 1 2 2")
        shutil.copytree(place, tmp_path_factory.getbasetemp() / f"whole {reader}")
    original = tmp_path_factory.getbasetemp() / f"whole {reader}" / item
    data = original.read_bytes() if original.exists() else b"classification"
    (place / item).write_bytes(edited(data, edits) if other is None else other)

    with contextlib.suppress(UsageError):
        read(place)


#: What the fix for a data set that is not there names, once it is unpacked.
NAMED = {
    "cifar10": ("cifar-10-python.tar.gz", ["cifar-10-batches-py/"]),
    "cifar100": ("cifar-100-python.tar.gz", ["cifar-100-python/"]),
    "imagenet1k": (
        "ILSVRC2012_devkit_t12.tar.gz",
        ["ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"],
    ),
    "imagenet1k-unverified": ("class folders of the validation set", ["val/"]),
    "mscoco_captions": ("val2014.zip", ["val2014/", "coco_test_karpathy.json"]),
    "wds/mine": ("test/nshards.txt", ["test/", "test/nshards.txt"]),
}


@pytest.mark.parametrize("task", NAMED)
def test_what_the_fix_names_is_what_is_looked_for(tmp_path: Path, task: str) -> None:
    """A data set that is not there is found once what the fix names is put there."""
    fix, paths = NAMED[task]
    assert fix in refusal(lambda: samples.place_of(task, tmp_path))

    for name in paths:
        if name.endswith("/"):
            (tmp_path / name).mkdir()
        else:
            (tmp_path / name).touch()

    assert samples.place_of(task, tmp_path) == tmp_path
