"""References: the FP16 CLIP that a recipe is applied to, or a published architecture without weights.

A reference is ``embedded`` (the small trained CLIP of this package), a Hugging Face checkpoint directory, or a hub
id.  All three end as a local directory that transformers loads; nothing here knows which one it was.  Each may end in
``+outliers``: the same function with activation outliers planted (``harness.outliers``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness import (
    compat,  # noqa: F401  (before transformers)
    outliers,
)
from harness.errors import UsageError

EMBEDDED = Path(__file__).parent / "embedded" / "clip"

#: attention implementation under which both attention classes of ModelOpt see their quantizers (S3, S4).
SDPA = "sdpa"


@dataclass(frozen=True)
class Reference:
    """The unquantized model, with what turns pictures and words into its inputs.

    ``name`` is what test ids and baseline folders show, ``source`` what the person asked for, ``revision`` the
    SHA-256 over configuration, weights, tokenizer and preprocessing: two references with one revision are the
    same model, whatever their paths.
    """

    name: str
    source: str
    model: Any
    tokenizer: Any
    image_processor: Any
    device: torch.device
    revision: str


def resolve_device(name: str) -> torch.device:
    """``auto``, ``cpu`` or ``cuda`` to a device.

    Raises:
        UsageError: CUDA is asked for and torch sees none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda", "torch sees no CUDA device", "Use --device cpu, or install a CUDA torch.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def load(
    ref: str, device: torch.device, dtype: torch.dtype = torch.float16, attn_implementation: str = SDPA
) -> Reference:
    """Load the reference *ref* onto *device* in evaluation mode, parameters in *dtype*, no gradients.

    Raises:
        UsageError: the directory is incomplete or damaged, or the hub id is neither cached nor reachable.
    """
    if ref.endswith(outliers.SUFFIX) and not Path(ref).expanduser().is_dir():
        return _with_outliers(load(ref.removesuffix(outliers.SUFFIX), device, dtype, attn_implementation), ref)
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    folder = _directory(ref)
    _check_complete(folder)
    with quiet_transformers():
        try:
            model, info = CLIPModel.from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation=attn_implementation,
                output_loading_info=True,
                local_files_only=True,
            )
            tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
            image_processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
        except Exception as error:
            # Whatever transformers, safetensors or json find wrong in these files is the person's input.
            raise UsageError(folder, f"does not load as a CLIP checkpoint ({error})", _MEND_DIRECTORY) from error
    # transformers fills absent weights with random numbers and goes on.
    if info["missing_keys"]:
        some = ", ".join(sorted(info["missing_keys"])[:3])
        raise UsageError(folder, f"{len(info['missing_keys'])} weights are missing ({some}, ...)", _MEND_DIRECTORY)
    model = model.to(device).eval().requires_grad_(False)
    return Reference(_short_name(ref), ref, model, tokenizer, image_processor, device, revision(folder))


def _with_outliers(base: Reference, ref: str) -> Reference:
    planted = outliers.Outliers()
    outliers.plant(base.model, planted)
    return replace(base, name=base.name + outliers.SUFFIX, source=ref, revision=planted.revision(base.revision))


_MEND_DIRECTORY = (
    "Give a directory that holds a saved CLIPModel, tokenizer and image processor, a hub id, or 'embedded'."
)


def _short_name(ref: str) -> str:
    return ref if ref == "embedded" else Path(ref.rstrip("/")).name or ref


def _directory(ref: str) -> Path:
    if ref == "embedded":
        return EMBEDDED
    path = Path(ref).expanduser()
    if path.is_dir():
        return path
    looks_like_path = ref.startswith((".", "/", "~")) or ref.count("/") != 1 or path.exists()
    if looks_like_path:
        raise UsageError(f"--clip-model {ref}", "is no directory", _MEND_DIRECTORY)
    return _from_hub(ref)


def _from_hub(ref: str) -> Path:
    """The snapshot directory of a hub id; local files first, then the network unless transformers is offline."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    patterns = ["*.json", "*.txt", "model*.safetensors"]
    try:
        return Path(snapshot_download(ref, local_files_only=True, allow_patterns=patterns))
    except LocalEntryNotFoundError:
        pass
    except Exception as error:
        raise UsageError(f"--clip-model {ref}", f"is no hub id ({error})", _MEND_DIRECTORY) from error
    try:
        return Path(snapshot_download(ref, allow_patterns=patterns))
    except Exception as error:
        raise UsageError(
            f"--clip-model {ref}",
            f"is not in the local cache and the hub gave nothing ({type(error).__name__}: {error})",
            f"Download it where there is a network ('hf download {ref}') and give the directory.",
        ) from error


def _check_complete(folder: Path) -> None:
    wanted = {
        "config.json": ("config.json",),
        "the weights (model.safetensors)": ("model.safetensors", "model.safetensors.index.json"),
        "preprocessor_config.json": ("preprocessor_config.json", "processor_config.json"),
        "the tokenizer (tokenizer.json, or vocab.json and merges.txt)": ("tokenizer.json", "vocab.json"),
    }
    for what, names in wanted.items():
        if not any((folder / name).is_file() for name in names):
            raise UsageError(folder, f"{what} is missing", _MEND_DIRECTORY)
    try:
        kind = json.loads((folder / "config.json").read_text())["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            folder / "config.json", f"is not a model configuration ({error!r})", _MEND_DIRECTORY
        ) from error
    if kind != "clip":
        raise UsageError(folder / "config.json", f"model_type is {kind!r}, not 'clip'", "Give a CLIPModel checkpoint.")


def revision(folder: Path) -> str:
    """SHA-256 over the names and contents of the checkpoint's files (configuration, weights, tokenizer)."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in {".json", ".txt", ".safetensors"} and path.name != "training.json":
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as handle:
                while chunk := handle.read(1 << 22):
                    digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Loading bars and reports belong to no test's output; what matters is checked above."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _sizes(width: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": more.pop("mlp", 4 * width),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        **more,
    }


#: Published architectures: vision tower, text tower, projection.  Sizes from the checkpoints' own config.json
#: (openai/clip-vit-*, laion/CLIP-ViT-*).
ARCHITECTURES: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "ViT-B-32": (_sizes(768, 12, 12, image_size=224, patch_size=32), _sizes(512, 12, 8), 512),
    "ViT-B-16": (_sizes(768, 12, 12, image_size=224, patch_size=16), _sizes(512, 12, 8), 512),
    "ViT-L-14": (_sizes(1024, 24, 16, image_size=224, patch_size=14), _sizes(768, 12, 12), 768),
    "ViT-L-14-336": (_sizes(1024, 24, 16, image_size=336, patch_size=14), _sizes(768, 12, 12), 768),
    "ViT-H-14": (_sizes(1280, 32, 16, image_size=224, patch_size=14, hidden_act="gelu"),
                 _sizes(1024, 24, 16, hidden_act="gelu"), 1024),
    "ViT-g-14": (_sizes(1408, 40, 16, mlp=6144, image_size=224, patch_size=14, hidden_act="gelu"),
                 _sizes(1024, 24, 16, hidden_act="gelu"), 1024),
    "ViT-bigG-14": (_sizes(1664, 48, 16, mlp=8192, image_size=224, patch_size=14, hidden_act="gelu"),
                    _sizes(1280, 32, 20, hidden_act="gelu"), 1280),
}  # fmt: skip


def architecture(name: str) -> nn.Module:
    """The ``CLIPModel`` of a published architecture, or of ``embedded``, on the meta device: no weights, no memory.

    Raises:
        UsageError: the name is none of ARCHITECTURES.
    """
    return _built(name, torch.device("meta"))


def random(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    """The same on the CPU with transformers' own initial weights, drawn from *seed*: as heavy and as slow as the real
    one, and knowing nothing.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _built(name, torch.device("cpu")).to(dtype)


def _built(name: str, device: torch.device) -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    if name == "embedded":
        config = CLIPConfig.from_pretrained(EMBEDDED)
    elif name in ARCHITECTURES:
        vision, text, projection = ARCHITECTURES[name]
        shared = {"projection_dim": projection}
        config = CLIPConfig(vision_config=vision | shared, text_config=text | shared, projection_dim=projection)
    else:
        raise UsageError(f"architecture {name}", "is not known", f"Known: embedded, {', '.join(ARCHITECTURES)}.")
    config._attn_implementation = SDPA
    with device:
        model: nn.Module = CLIPModel(config)
    return model.eval().requires_grad_(False)
