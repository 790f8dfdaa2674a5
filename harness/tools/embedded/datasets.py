"""Make the embedded data sets: CLIP_benchmark webdatasets of emoji, and the pairs for calibration.

    python -m harness.tools.embedded.datasets --sources DIR [--out DIR] [--seed N]

needs the ``make`` extra and ``npm`` (see README).  Evaluation pictures come from one artist's set,
calibration pictures from another's, and training saw neither the first nor any other set of that
artist.  From one seed and the same versions of resvg and libwebp the same bytes come out;
``datasets.json`` says what was made from what.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.tools.embedded import emoji, text
from harness.tools.embedded.emoji import Concept

SEED = 7
IMAGE = 48  #: pixels; what the embedded CLIP reads
RENDERED = 192  #: pixels a drawing is rendered at before it is placed
HUNDRED, VIEWS = 100, 10
CAPTIONED, CAPTIONS = 600, 5
CALIBRATION = 512
#: A picture file fills at most two blocks of a tar archive.
PICTURE_BYTES = 1024
QUALITIES = (95, 90, 85, 80, 75, 70, 60, 50, 40, 30)

RGBA = npt.NDArray[np.uint8]
Sample = tuple[bytes, str]  # picture file, text of its .cls or .txt member


def pastel(rng: random.Random) -> tuple[int, int, int]:
    """A light background colour."""
    return rng.randint(200, 255), rng.randint(200, 255), rng.randint(200, 255)


def plain(drawing: RGBA) -> Any:
    """The drawing filling the frame, on white: PIL picture, IMAGE x IMAGE."""
    return place(drawing, 1.0, 0.0, (0.0, 0.0), (255, 255, 255))


def placed(drawing: RGBA, rng: random.Random) -> Any:
    """The drawing a little smaller, turned, shifted and on a pastel background."""
    scale, angle = rng.uniform(0.7, 1.0), rng.uniform(-15, 15)
    room = 0.1 + (1 - scale) / 2
    shift = rng.uniform(-room, room) * IMAGE, rng.uniform(-room, room) * IMAGE
    return place(drawing, scale, angle, shift, pastel(rng))


def place(
    drawing: RGBA,
    scale: float,
    degrees: float,
    shift: tuple[float, float],
    background: tuple[int, int, int],
) -> Any:
    """*drawing* (s, s, 4) on *background*: scaled about the centre, turned, moved by *shift*
    pixels.
    """
    from PIL import Image

    side = drawing.shape[0]
    step = side / (IMAGE * scale)
    cos, sin = math.cos(math.radians(degrees)) * step, math.sin(math.radians(degrees)) * step
    centre = IMAGE / 2
    a = (cos, sin, side / 2 - cos * (centre + shift[0]) - sin * (centre + shift[1]))
    b = (-sin, cos, side / 2 + sin * (centre + shift[0]) - cos * (centre + shift[1]))
    # Four samples a pixel and axis, then averaged: the inverse map alone would skip pixels of the
    # large drawing.
    fine = 4
    coefficients = [v / fine if i != 2 else v for row in (a, b) for i, v in enumerate(row)]
    colour = drawing.astype(np.float32)
    colour[..., :3] *= colour[..., 3:] / 255
    image = Image.fromarray(colour.round().astype(np.uint8), "RGBA").transform(
        (IMAGE * fine, IMAGE * fine),
        Image.Transform.AFFINE,
        coefficients,
        Image.Resampling.BILINEAR,
    )
    blocks = np.asarray(image, np.float32).reshape(IMAGE, fine, IMAGE, fine, 4).mean((1, 3))
    over = blocks[..., :3] + (1 - blocks[..., 3:] / 255) * np.asarray(background, np.float32)
    return Image.fromarray(over.round().clip(0, 255).astype(np.uint8), "RGB")


def encode(picture: Any) -> bytes:
    """*picture* as WebP of the highest quality that fits PICTURE_BYTES."""
    for quality in QUALITIES:
        stream = io.BytesIO()
        picture.save(stream, "webp", quality=quality, method=6)
        if stream.tell() <= PICTURE_BYTES:
            return stream.getvalue()
    raise ValueError(
        f"a picture needs more than {PICTURE_BYTES} bytes even at quality {QUALITIES[-1]}"
    )


def write(
    folder: Path,
    samples: Iterable[Sample],
    *,
    classes: Sequence[str] = (),
    templates: Sequence[str] = (),
    clusters: Sequence[int] = (),
) -> dict[str, Any]:
    """Write a CLIP_benchmark webdataset of one shard: classification where *classes* are given,
    else retrieval.

    Returns what identifies it: the number of samples, its bytes, and a SHA-256 over its files.
    """
    import webdataset

    (folder / "test").mkdir(parents=True, exist_ok=True)
    ending = "cls" if classes else "txt"
    count = 0
    with (folder / "test" / "0.tar").open("wb") as handle:
        # Times and owners in the archive are fixed: equal samples, equal bytes.
        sink = webdataset.TarWriter(handle, user="root", group="root", mtime=0, encoder=False)
        for picture, words in samples:
            sink.write({"__key__": f"s{count:07d}", "webp": picture, ending: words.encode()})
            count += 1
        sink.close()
    _lines(folder / "test" / "nshards.txt", ["1"])
    _lines(folder / "dataset_type.txt", ["classification" if classes else "retrieval"])
    if classes:
        _lines(folder / "classnames.txt", classes)
        _lines(folder / "zeroshot_classification_templates.txt", templates)
    if clusters:
        _lines(folder / "clusters.txt", map(str, clusters))
    return {"samples": count, **fingerprint(folder)}


def _lines(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), newline="\n")


def fingerprint(folder: Path) -> dict[str, Any]:
    """Bytes and SHA-256 over the names and contents of a data set's files."""
    digest, size = hashlib.sha256(), 0
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{len(data)}\0".encode() + data)
        size += len(data)
    return {"bytes": size, "sha256": digest.hexdigest()}


def drawings(sources: Path, name: str, wanted: Sequence[Concept]) -> list[RGBA]:
    """What the set *name* drew for each concept: uint8 (RENDERED, RENDERED, 4) each."""
    from tqdm import tqdm

    rendered = emoji.pictures(sources, name, [concept.icons[name] for concept in wanted], RENDERED)
    return list(tqdm(rendered, total=len(wanted), desc=f"draw {name}"))


def make(sources: Path, out: Path, seed: int) -> None:
    """Draw all four data sets into *out*, with ``datasets.json`` next to them."""
    known = emoji.concepts(sources)
    drawn = drawings(sources, emoji.EVALUATION, known)
    record = {
        "emoji": everything(out / "emoji", known, drawn, random.Random(f"{seed} emoji")),
        "emoji100": hundred(out / "emoji100", known, drawn, random.Random(f"{seed} emoji100")),
        "emoji_captions": captioned(
            out / "emoji_captions", known, drawn, random.Random(f"{seed} emoji_captions")
        ),
    }
    rng = random.Random(f"{seed} calibration")
    pool = [concept for concept in known if emoji.CALIBRATION in concept.icons]
    chosen = rng.sample(pool, min(CALIBRATION, len(pool)))
    pairs = zip(chosen, drawings(sources, emoji.CALIBRATION, chosen), strict=True)
    record["calibration"] = write(
        out / "calibration",
        ((encode(plain(drawing)), text.caption(concept, rng) + "\n") for concept, drawing in pairs),
    )
    sets = {
        name: {
            "package": f"@iconify-json/{name}",
            "version": emoji.SETS[name][0],
            "licence": emoji.SETS[name][1],
        }
        for name in (emoji.EVALUATION, emoji.CALIBRATION)
    }
    (out / "datasets.json").write_text(
        json.dumps({"seed": seed, "sources": sets, "datasets": record}, indent=1) + "\n"
    )


def everything(
    folder: Path, known: list[Concept], drawn: list[RGBA], rng: random.Random
) -> dict[str, Any]:
    """Every concept once, as drawn, in random order; its name is its class."""
    order = rng.sample(range(len(known)), len(known))
    samples = ((encode(plain(drawn[i])), str(i)) for i in order)
    return write(folder, samples, classes=[c.label for c in known], templates=text.TEMPLATES)


def hundred(
    folder: Path, known: list[Concept], drawn: list[RGBA], rng: random.Random
) -> dict[str, Any]:
    """HUNDRED concepts in VIEWS views each, in random order; the views of a drawing share a
    cluster.
    """
    chosen = sorted(rng.sample(range(len(known)), HUNDRED))
    views: list[tuple[int, Any]] = []
    for label, index in enumerate(chosen):
        views.append((label, plain(drawn[index])))
        views += [(label, placed(drawn[index], rng)) for _ in range(VIEWS - 1)]
    rng.shuffle(views)
    labels = [label for label, _ in views]
    samples = ((encode(picture), str(label)) for label, picture in views)
    classes = [known[i].label for i in chosen]
    return write(folder, samples, classes=classes, templates=text.TEMPLATES, clusters=labels)


def captioned(
    folder: Path, known: list[Concept], drawn: list[RGBA], rng: random.Random
) -> dict[str, Any]:
    """CAPTIONED drawings, each with CAPTIONS different wordings."""

    def samples() -> Iterator[Sample]:
        for index in rng.sample(range(len(known)), CAPTIONED):
            words = text.captions(known[index], CAPTIONS, rng)
            yield encode(plain(drawn[index])), "".join(f"{line}\n" for line in words)

    return write(folder, samples())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sources",
        type=Path,
        required=True,
        help="folder for the emoji packages; fetched if absent",
    )
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parents[2] / "models" / "embedded" / "data"
    )
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    emoji.fetch(args.sources)
    make(args.sources, args.out, args.seed)


if __name__ == "__main__":
    main()
