"""Train the probes of the embedded CLIP: linear readers of its FP16 tokens.

    python -m harness.tools.embedded.probes [--out FILE]

The patches' probes are trained on the calibration pictures, another artist's than the ones that
they are judged on; the positions' on the captions of the evaluation pictures but the first of each,
which is the one that they are judged on.  Least squares have one solution, so the same numbers come
out on every machine up to rounding.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from harness.consumers import contracts, probes, reading
from harness.consumers.reading import Material
from harness.data import calibration, samples
from harness.files import write_whole
from harness.models import references
from harness.models.references import Reference

#: The penalty of least squares, as a share of the tokens.
RIDGE = 1e-2
#: Rows of a forward.
ROWS = 64


def training(reference: Reference) -> Material:
    """The pictures and texts that the probes are trained on."""
    pairs = calibration.load(None, reference, calibration.SIZE)
    assert pairs.pictures is not None, "the embedded model sees pictures"
    names = tuple(f"pair{i}" for i in range(pairs.n))
    captions = samples.load("emoji_captions", None).captions
    assert captions is not None, "the captions' task has captions"
    texts = tuple(text for group in captions for text in group[1:])
    known = reading.material(reference, None, None)
    return replace(
        known,
        pictures=pairs.pictures.take(list(range(pairs.n))),
        picture_ids=names,
        clusters=np.arange(pairs.n, dtype=np.int32),
        texts=texts,
        text_ids=texts,
        hash=pairs.hash,
    )


def train(reference: Reference, out: Path) -> dict[str, int]:
    """Write the probes of *reference* into *out*; the number of classes of each is returned."""
    from safetensors.torch import save

    of = training(reference)
    reads = {
        (consumer, read.name): read
        for consumer, name in probes.PROBED
        for read in contracts.of(consumer).reads
        if read.name == name
    }
    consumers = [consumer for consumer, _ in probes.PROBED]
    tokens_by_reading = reading.read_all(reference.model, of, consumers, ROWS)
    tensors: dict[str, torch.Tensor] = {}
    classes: dict[str, tuple[int, ...]] = {}
    for (consumer, name), read in reads.items():
        tokens = tokens_by_reading[consumer, name]
        for metric in probes.METRICS[read.tower]:
            right = probes.answers(of, read, metric, tokens.shape[1])[: len(tokens)]
            weight, bias, values = probes.fit(
                tokens.flatten(0, 1), np.asarray(right).ravel(), RIDGE
            )
            key = f"{consumer}/{name}/{metric}"
            tensors |= {f"{key}.weight": weight.contiguous(), f"{key}.bias": bias}
            classes[key] = values
    meta = {"revision": reference.revision, "classes": json.dumps(classes)}
    write_whole(out, save(tensors, meta), temporary=".probes-")
    return {key: len(values) for key, values in classes.items()}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=probes.FILE)
    args = parser.parse_args()
    for key, count in train(references.load("embedded", torch.device("cpu")), args.out).items():
        print(f"{key}: {count} classes")


if __name__ == "__main__":
    main()
