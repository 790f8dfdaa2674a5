"""References: the FP16 model that a recipe is applied to.

A reference is ``embedded`` (the small trained CLIP of this package), a checkpoint directory (Hugging Face's form of a
CLIP or SigLIP, whole or a single tower, or open_clip's), or a hub id.  All end as a local directory; nothing here knows
which one it was.  Each may end in ``+outliers``, the same function with activation outliers planted
(``harness.outliers``), and a whole CLIP in ``+CLIPVisionModel`` or another class of a single tower: that part of it
alone, as conditioning encoders use it.
"""

from __future__ import annotations

import copy
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
    families,
    openclip,
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
    same model, whatever their paths.  A single tower has no use for the tokenizer or the image processor of the other
    and may have None.  ``whole`` is the model that a single tower was cut out of.
    """

    name: str
    source: str
    model: Any
    tokenizer: Any
    image_processor: Any
    device: torch.device
    revision: str
    whole: Any = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters, and of the pictures that the model takes."""
        return next(self.model.parameters()).dtype  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _Form:
    """A form of checkpoint by its ``model_type``: transformers' classes of model, tokenizer and image processor."""

    model: str
    tokenizer: str = ""
    image_processor: str = ""


_FORMS = {
    "clip": _Form("CLIPModel", "CLIPTokenizer", "CLIPImageProcessor"),
    "clip_vision_model": _Form("CLIPVisionModel", image_processor="CLIPImageProcessor"),
    "clip_text_model": _Form("CLIPTextModel", "CLIPTokenizer"),
    "siglip": _Form("SiglipModel", "AutoTokenizer", "SiglipImageProcessor"),
    "siglip2": _Form("Siglip2Model", "AutoTokenizer", "Siglip2ImageProcessor"),
}
#: Parts of a whole CLIP that ``REF+CLASS`` asks for.
PARTS = ("CLIPVisionModel", "CLIPVisionModelWithProjection", "CLIPTextModel", "CLIPTextModelWithProjection")


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
    base, plus, suffix = ref.rpartition("+")
    if plus and not Path(ref).expanduser().is_dir():
        if f"+{suffix}" == outliers.SUFFIX:
            return _with_outliers(load(base, device, dtype, attn_implementation), ref)
        if suffix in PARTS:
            return _part(load(base, device, dtype, attn_implementation), suffix, ref)
    folder = _directory(ref)
    if openclip.is_checkpoint(folder):
        model = openclip.load(folder, dtype)
        words, pictures = openclip.tokenizer(folder), openclip.image_processor(folder)
    else:
        model, words, pictures = _from_transformers(folder, dtype, attn_implementation)
    model = model.to(device).eval().requires_grad_(False)
    return Reference(_short_name(ref), ref, model, words, pictures, device, revision(folder))


def _from_transformers(folder: Path, dtype: torch.dtype, attn_implementation: str) -> tuple[Any, Any, Any]:
    """Model, tokenizer and image processor (None where its form has none) of a Hugging Face checkpoint."""
    import transformers

    form = _form(folder)
    words = _beside(folder, form.tokenizer, "tokenizer.json", "vocab.json", "tokenizer.model", "spiece.model")
    pictures = _beside(folder, form.image_processor, "preprocessor_config.json", "processor_config.json")
    with quiet_transformers():
        try:
            model, info = getattr(transformers, form.model).from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation=attn_implementation,
                output_loading_info=True,
                local_files_only=True,
            )
            tokenizer, image_processor = (
                name and getattr(transformers, name).from_pretrained(place, local_files_only=True)
                for name, place in ((form.tokenizer, words), (form.image_processor, pictures))
            )
        except Exception as error:
            # Whatever transformers, safetensors or json find wrong in these files is the person's input.
            raise UsageError(folder, f"does not load as a {form.model} ({error})", _MEND_DIRECTORY) from error
    # transformers fills absent weights with random numbers and goes on.
    if info["missing_keys"]:
        some = ", ".join(sorted(info["missing_keys"])[:3])
        raise UsageError(folder, f"{len(info['missing_keys'])} weights are missing ({some}, ...)", _MEND_DIRECTORY)
    if form.image_processor == "Siglip2ImageProcessor":
        image_processor = _square(image_processor, families.sizes(model).image)
    return model, tokenizer or None, image_processor or None


def _square(naflex: Any, side: int) -> Any:
    """SigLIP 2's preprocessing with every picture brought to one square, as its fixed-size checkpoints do it."""
    from transformers import SiglipImageProcessor

    return SiglipImageProcessor(
        size={"height": side, "width": side}, resample=naflex.resample, image_mean=naflex.image_mean,
        image_std=naflex.image_std,
    )  # fmt: skip


def family_of(ref: str) -> str:
    """The family of the reference *ref*, from its name and configuration alone; ``clip`` where they do not tell.

    What is wrong with it, loading it says.
    """
    base, plus, suffix = ref.rpartition("+")
    if plus and not Path(ref).expanduser().is_dir():
        return families.named(suffix) if suffix in PARTS else family_of(base)
    folder = EMBEDDED if ref == "embedded" else Path(ref).expanduser()
    try:
        return "open_clip" if openclip.is_checkpoint(folder) else families.named(_form(folder).model)
    except UsageError:
        return "clip"


def absolute(ref: str) -> str:
    """The reference *ref* as a process with another working directory finds it: a folder's whole path."""
    if Path(ref).expanduser().is_dir():
        return str(Path(ref).expanduser().absolute())
    base, plus, suffix = ref.rpartition("+")
    return f"{absolute(base)}+{suffix}" if plus else ref


def _form(folder: Path) -> _Form:
    """The form of a Hugging Face checkpoint, and that it has its configuration and weights.

    Raises:
        UsageError: it is incomplete, or of a form that is not gated.
    """
    _require(folder, "config.json", "config.json")
    _require(folder, "the weights (model.safetensors)", "model.safetensors", "model.safetensors.index.json")
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
        kind, classes = config["model_type"], config.get("architectures") or []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(path, f"is not a model configuration ({error!r})", _MEND_DIRECTORY) from error
    if kind not in _FORMS:
        raise UsageError(path, f"model_type is {kind!r}", f"Give one of {', '.join(_FORMS)}, or open_clip's form.")
    known = [name for family in families.FAMILIES for name in family.model_classes]
    own = [name for name in classes if name in known and name.startswith(_FORMS[kind].model)]
    return replace(_FORMS[kind], model=own[0]) if own else _FORMS[kind]


def _require(folder: Path, what: str, *names: str) -> None:
    if not any((folder / name).is_file() for name in names):
        raise UsageError(folder, f"{what} is missing", _MEND_DIRECTORY)


def _beside(folder: Path, wanted: str, *files: str) -> Path:
    """Where the files of the tokenizer or the image processor *wanted* lie.

    That is the checkpoint itself or, for a pipeline's ``text_encoder``, the folder ``tokenizer`` beside it.
    """
    if not wanted:
        return folder
    pipeline = folder.with_name(folder.name.replace("text_encoder", "tokenizer"))
    for place in (folder, pipeline):
        if any((place / name).is_file() for name in files):
            return place
    what = f"the {'tokenizer' if 'Tokenizer' in wanted else 'preprocessing'} ({' or '.join(files)})"
    raise UsageError(folder, f"{what} is missing", _MEND_DIRECTORY)


def _with_outliers(base: Reference, ref: str) -> Reference:
    planted = outliers.Outliers()
    outliers.plant(base.model, planted)
    return replace(base, name=base.name + outliers.SUFFIX, source=ref, revision=planted.revision(base.revision))


def _part(base: Reference, name: str, ref: str) -> Reference:
    """One tower of a whole CLIP as a model of class *name*, with the same weights."""
    import transformers

    if families.of(base.model).name != "clip":
        raise UsageError(f"--clip-model {ref}", f"has no part of class {name}", "Give a CLIPModel before the plus.")
    tower = "vision" if "Vision" in name else "text"
    config = copy.deepcopy(getattr(base.model.config, f"{tower}_config"))
    config.projection_dim = base.model.config.projection_dim
    config._attn_implementation = base.model.config._attn_implementation
    with torch.device("meta"):
        part = getattr(transformers, name)(config)
    state = base.model.state_dict()
    # From transformers 5 on a tower without projection has no prefix in its own names.
    own = {key: state[key if key in state else f"{tower}_model.{key}"].clone() for key in part.state_dict()}
    part = part.to_empty(device=base.device).to(base.dtype)
    _restore_buffers(part, base.model.get_submodule(f"{tower}_model"))
    part.load_state_dict(own)
    revision = hashlib.sha256(f"{base.revision}\0{name}".encode()).hexdigest()
    return replace(
        base, name=f"{base.name}+{name}", source=ref, model=part.eval().requires_grad_(False), revision=revision,
        whole=base.model,
    )  # fmt: skip


def _restore_buffers(part: nn.Module, tower: nn.Module) -> None:
    """Buffers that no checkpoint holds (position ids), from the same places of the whole."""
    known = dict(tower.named_buffers())
    for name, buffer in part.named_buffers():
        buffer.copy_(known[name.partition("_model.")[2] or name])


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

    patterns = ["*.json", "*.txt", "*.model", "model*.safetensors"]
    try:
        return Path(snapshot_download(ref, local_files_only=True, allow_patterns=patterns))
    except LocalEntryNotFoundError:
        pass
    except Exception as error:
        raise UsageError(f"--clip-model {ref}", f"is no hub id ({error})", _MEND_DIRECTORY) from error
    try:
        found = Path(snapshot_download(ref, allow_patterns=patterns))
        if openclip.is_checkpoint(found):
            found = Path(snapshot_download(ref, allow_patterns=[*patterns, openclip.WEIGHTS]))
        return found
    except Exception as error:
        raise UsageError(
            f"--clip-model {ref}",
            f"is not in the local cache and the hub gave nothing ({type(error).__name__}: {error})",
            f"Download it where there is a network ('hf download {ref}') and give the directory.",
        ) from error


def revision(folder: Path) -> str:
    """SHA-256 over the names and contents of the checkpoint's files (configuration, weights, tokenizer)."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in {".json", ".txt", ".model", ".safetensors"} and path.name != "training.json":
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
