"""References load whole or not at all, and published architectures have the published sizes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from harness.errors import UsageError
from harness.models import architectures, references

CPU = torch.device("cpu")

#: Parameters in millions, as open_clip's published model profile gives them; SigLIP's as their
#: checkpoints count.
PUBLISHED_SIZES = {
    "ViT-B-32": 151.28,
    "ViT-B-16": 149.62,
    "ViT-L-14": 427.62,
    "ViT-L-14-336": 427.94,
    "ViT-H-14": 986.11,
    "ViT-g-14": 1366.68,
    "ViT-bigG-14": 2539.57,
    "open_clip-ViT-B-16": 149.62,
    "open_clip-ViT-L-14": 427.62,
    "open_clip-ViT-H-14": 986.11,
    "open_clip-ViT-g-14": 1366.68,
    "open_clip-ViT-bigG-14": 2539.57,
    "open_clip-EVA02-B-16": 149.69,
    "open_clip-EVA02-L-14": 427.76,
    "open_clip-EVA02-E-14-plus": 5044.89,
    "open_clip-ViT-B-16-SigLIP": 203.16,
    "SigLIP-B-16-224": 203.16,
    "SigLIP-so400m-14-384": 877.96,
    "SigLIP2-B-16-224": 375.19,
    "SigLIP2-L-16-256": 881.53,
    "SigLIP2-so400m-14-384": 1136.01,
    "SigLIP2-giant-16-256": 1871.39,
    "SigLIP2-B-16-naflex": 375.23,
    "SigLIP2-so400m-16-naflex": 1135.67,
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A writable copy of the embedded checkpoint."""
    return Path(shutil.copytree(references.EMBEDDED, tmp_path / "clip"))


@pytest.mark.parametrize("name", PUBLISHED_SIZES)
def test_architecture_has_the_published_size(name: str) -> None:
    """Each published architecture has its published number of parameters, and none of them takes
    memory.
    """
    model = architectures.build(name)

    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == PUBLISHED_SIZES[name]
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_every_architecture_is_tested() -> None:
    """No architecture is listed without a published size to hold it to."""
    assert set(architectures.ARCHITECTURES) == set(PUBLISHED_SIZES)


def test_unknown_architecture_names_the_known_ones() -> None:
    """An unknown architecture is a usage error that lists what there is."""
    with pytest.raises(UsageError, match="ViT-L-14"):
        architectures.build("ViT-Z-99")


def test_embedded_and_its_directory_are_one_model(checkpoint: Path) -> None:
    """The embedded model and a copy of its directory share revision and outputs; only the name
    differs.
    """
    embedded, copied = references.load("embedded", CPU), references.load(str(checkpoint), CPU)

    assert (embedded.name, copied.name) == ("embedded", "clip")
    assert embedded.revision == copied.revision
    assert embedded.model.dtype == torch.float16
    assert embedded.model.config._attn_implementation == "sdpa"


def test_revision_follows_the_weights(checkpoint: Path) -> None:
    """One changed byte of the weights is another revision."""
    before = references.revision(checkpoint)
    weights = checkpoint / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)

    assert references.revision(checkpoint) != before


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_incomplete_directory_names_the_missing_file(checkpoint: Path, name: str) -> None:
    """A directory without one of its files is refused in one line that names it."""
    (checkpoint / name).unlink()

    with pytest.raises(UsageError) as caught:
        references.load(str(checkpoint), CPU)

    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_truncated_weights_are_refused(checkpoint: Path) -> None:
    """Weights cut off in the middle are a usage error that names the directory."""
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])

    with pytest.raises(UsageError, match="does not load"):
        references.load(str(checkpoint), CPU)


def test_missing_weights_are_refused(checkpoint: Path) -> None:
    """A tensor that is absent is never filled with random numbers."""
    from safetensors.torch import load_file, save_file

    weights = load_file(checkpoint / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(UsageError, match="visual_projection"):
        references.load(str(checkpoint), CPU)


def test_another_kind_of_model_is_refused(checkpoint: Path) -> None:
    """A checkpoint of another family is distinguished before anything is loaded."""
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))

    with pytest.raises(UsageError, match="'bert'"):
        references.load(str(checkpoint), CPU)


@pytest.mark.parametrize("ref", ["./nowhere", "/no/such/place", "a/b/c", "nothing"])
def test_path_that_is_no_directory_is_refused(ref: str) -> None:
    """What looks like a path and is not one never goes to the hub."""
    with pytest.raises(UsageError, match="is not a directory"):
        references.load(ref, CPU)


def test_hub_id_offline_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A hub id that is not in the cache, without a network, says the download command."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    with pytest.raises(UsageError, match="hf download openai/clip-vit-base-patch32"):
        references.load("openai/clip-vit-base-patch32", CPU)


def test_hub_id_loads_from_the_local_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A hub id whose snapshot is in the cache loads from there, without a network."""
    from huggingface_hub import constants

    snapshot = tmp_path / "models--someone--small-clip" / "snapshots" / ("a" * 40)
    shutil.copytree(references.EMBEDDED, snapshot)
    refs = tmp_path / "models--someone--small-clip" / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    reference = references.load("someone/small-clip", CPU)

    assert reference.name == "small-clip"
    assert reference.revision == references.revision(references.EMBEDDED)


def test_cuda_without_a_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking for CUDA where torch sees none is a usage error; auto falls back to the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(UsageError, match="no CUDA device"):
        references.resolve_device("cuda")
    assert references.resolve_device("auto") == CPU
