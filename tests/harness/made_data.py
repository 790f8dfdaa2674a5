"""Small webdatasets for tests, written into a folder."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from harness import compat  # noqa: F401  (before clip_benchmark)


def noise(seed: int, size: tuple[int, int] = (40, 52)) -> Any:
    """A PIL picture of random colours."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def file_bytes(picture: Any, form: str) -> bytes:
    """*picture* as a file of the format *form*."""
    stream = io.BytesIO()
    picture.save(stream, form)
    return stream.getvalue()


def webdataset_classes(root: Path) -> Path:
    """Two shards of PNG and JPEG pictures with three classes."""
    for shard in (0, 1):
        members = []
        for i in range(3):
            form = "png" if i % 2 else "jpg"
            picture = file_bytes(noise(10 * shard + i), {"png": "png", "jpg": "jpeg"}[form])
            members += [(f"k{shard}{i}.{form}", picture), (f"k{shard}{i}.cls", str(i).encode())]
        write_shard(root / "test" / f"{shard}.tar", members)
    (root / "test" / "nshards.txt").write_text("2\n")
    (root / "classnames.txt").write_text("goose\ncat\ndog\n")
    (root / "zeroshot_classification_templates.txt").write_text("a {c}.\n{c}\n")
    return root


def webdataset_captions(root: Path) -> Path:
    """One shard of seven pictures with two captions each."""
    members = []
    for i in range(7):
        members += [
            (f"r{i}.webp", file_bytes(noise(i), "webp")),
            (f"r{i}.txt", f"thing {i}\nan emoji {i}\n".encode()),
        ]
    write_shard(root / "test" / "0.tar", members)
    (root / "test" / "nshards.txt").write_text("1")
    (root / "dataset_type.txt").write_text("retrieval\n")
    return root


def replace_in_shard(path: Path, name: str, data: bytes) -> None:
    """Write the shard again with other *data* for the member *name*."""
    with tarfile.open(path) as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar.getmembers()]  # type: ignore[union-attr]
    write_shard(path, [(n, data if n == name else d) for n, d in members])


def write_shard(path: Path, members: list[tuple[str, bytes]]) -> None:
    """A tar archive of named *members*."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
