"""References: the FP16 model that a recipe is applied to.

A reference is ``embedded`` (the small trained CLIP of this package), a checkpoint directory
(Hugging Face's form of a CLIP or SigLIP, whole or a single tower, or open_clip's), or a hub id.
All end as a local directory; nothing here knows which one it was.  Each may end in ``+outliers``,
the same function with activation outliers planted (``harness.models.outliers``), and a whole CLIP
in ``+CLIPVisionModel`` or another class of a single tower: that part of it alone, as conditioning
encoders use it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from harness import (
    compat,  # noqa: F401  (before transformers)
    digests,
    files,
)
from harness.errors import UsageError
from harness.models import checkpoint_files, composites, families, openclip, outliers
from harness.models.checkpoint_files import EMBEDDED as EMBEDDED
from harness.models.checkpoint_files import PARTS as PARTS
from harness.models.checkpoint_files import Checkpoint
from harness.models.checkpoint_files import revision as revision
from harness.models.checkpoint_weights import FIX
from harness.recipes import names

#: attention implementation under which both attention classes of ModelOpt see their quantizers (S3,
#: S4).
SDPA = "sdpa"


@dataclass(frozen=True)
class Reference:
    """The unquantized model, with its preprocessing of pictures and words.

    ``name`` is what test ids and baseline folders show, ``source`` what the person asked for,
    ``revision`` the SHA-256 over configuration, weights, tokenizer and preprocessing: two
    references with one revision are the same model, whatever their paths.  A single tower has no
    use for the tokenizer or the image processor of the other and may have None.  ``whole`` is the
    model that a single tower was cut out of.
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
        """The dtype of the parameters, and of the pictures that the model needs."""
        return next(self.model.parameters()).dtype  # type: ignore[no-any-return]


def resolve_device(name: str) -> torch.device:
    """Return the device that ``auto``, ``cpu`` or ``cuda`` means.

    Raises:
        UsageError: CUDA is asked for and torch sees none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "--device cuda",
            "torch sees no CUDA device",
            "Use --device cpu, or install a CUDA torch.",
        )
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def load(
    ref: str,
    device: torch.device,
    dtype: torch.dtype = torch.float16,
    attn_implementation: str = SDPA,
) -> Reference:
    """Load the reference *ref* onto *device* in evaluation mode, parameters in *dtype*, no
    gradients.

    Raises:
        UsageError: the directory is incomplete or damaged, or the hub id is neither cached nor
            reachable.
    """
    base, suffixes = checkpoint_files.split(ref)
    if suffixes:
        checkpoint_files.look(ref)
        whole = load("+".join((base, *suffixes[:-1])), device, dtype, attn_implementation)
        return (
            _with_outliers(whole, ref)
            if suffixes[-1] == checkpoint_files.OUTLIERS
            else _part(whole, suffixes[-1], ref)
        )
    checkpoint = checkpoint_files.look(ref)
    if checkpoint.is_open_clip:
        model = openclip.load(checkpoint.folder, dtype)
        words, pictures = (
            openclip.tokenizer(checkpoint.folder),
            openclip.image_processor(checkpoint.folder),
        )
    else:
        model, words, pictures = _from_transformers(checkpoint, dtype, attn_implementation)
    _check_inputs(checkpoint, model, words, pictures)
    model = model.to(device).eval().requires_grad_(False)
    return Reference(
        names.of_model(ref), ref, model, words, pictures, device, checkpoint.revision()
    )


def _from_transformers(
    checkpoint: Checkpoint, dtype: torch.dtype, attn_implementation: str
) -> tuple[Any, Any, Any]:
    """Model, tokenizer and image processor (None where its form has none) of a Hugging Face
    checkpoint.
    """
    form, folder = checkpoint.form, checkpoint.folder
    with quiet_transformers():
        try:
            model, info = composites.model_class(form.model).from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation=attn_implementation,
                output_loading_info=True,
                local_files_only=True,
                use_safetensors=True,
                **({"key_mapping": dict(form.renamed)} if form.renamed else {}),
            )
        except Exception as error:
            # Whatever transformers or safetensors find wrong in these files is the person's input.
            raise UsageError(folder, f"does not load as a {form.model} ({error})", FIX) from error
        tokenizer = _prepared(form.tokenizer, checkpoint.tokenizer)
        image_processor = _prepared(form.image_processor, checkpoint.image_processor)
    # transformers fills absent weights with random numbers and goes on.
    if info["missing_keys"]:
        some = ", ".join(sorted(info["missing_keys"])[:3])
        what = f"{len(info['missing_keys'])} weights are missing ({some}, ...)"
        raise UsageError(folder, what, FIX)
    model.config.return_dict = True  # a checkpoint may say false, and a tuple has no names
    if form.image_processor == "Siglip2ImageProcessor":
        image_processor = _square(image_processor, families.sizes(model).image)
    return model, tokenizer, image_processor


def _prepared(name: str, place: Path | None) -> Any:
    """Transformers' object of class *name* (a tokenizer or an image processor) from the files in
    *place*; or None.
    """
    import transformers

    if not name or place is None:
        return None
    # Without a no, transformers asks whether code of the checkpoint may run, and waits.
    options = {"trust_remote_code": False} if name == "AutoTokenizer" else {}
    try:
        return getattr(transformers, name).from_pretrained(place, local_files_only=True, **options)
    except Exception as error:
        raise UsageError(place, f"does not load as a {name} ({error})", FIX) from error


def _check_inputs(checkpoint: Checkpoint, model: Any, tokenizer: Any, image_processor: Any) -> None:
    """Refuse a tokenizer whose ids the model does not know, and pictures of a size that it does not
    take.
    """
    sizes = families.sizes(model)
    if image_processor is not None:
        picture = np.zeros((5, 7, 3), np.uint8)
        try:
            shape = np.asarray(image_processor(picture, return_tensors="np")["pixel_values"]).shape[
                -2:
            ]
        except Exception as error:
            place = checkpoint.image_processor or checkpoint.folder
            raise UsageError(place, f"its preprocessing does not work ({error})", FIX) from error
        if shape != (sizes.image, sizes.image) and not checkpoint.form.any_size:
            place = checkpoint.image_processor or checkpoint.folder
            what = (
                f"its preprocessing makes pictures of {shape[0]} x {shape[1]} pixels, the model "
                f"needs {sizes.image}"
            )
            raise UsageError(place, what, FIX)
    if tokenizer is not None:
        place = checkpoint.tokenizer or checkpoint.folder
        try:
            ids = tokenizer("a photo of a cat.")["input_ids"]
        except Exception as error:
            raise UsageError(place, f"its tokenizer does not work ({error})", FIX) from error
        if max(ids, default=0) >= sizes.vocabulary:
            what = (
                f"its tokenizer gives the id {max(ids)}, the model knows {sizes.vocabulary} words"
            )
            raise UsageError(place, what, "Give the tokenizer that the model was trained with.")
        at_end = families.of(model).name.startswith("clip")
        if at_end and sizes.end not in ids:
            what = f"its tokenizer does not end a text with {sizes.end}, the model's eos_token_id"
            raise UsageError(place, what, "Give the tokenizer that the model was trained with.")


def _square(naflex: Any, side: int) -> Any:
    """SigLIP 2's preprocessing with every picture brought to one square, as its fixed-size
    checkpoints do it.
    """
    from transformers import SiglipImageProcessor

    return SiglipImageProcessor(
        size={"height": side, "width": side},
        resample=naflex.resample,
        image_mean=naflex.image_mean,
        image_std=naflex.image_std,
    )


def family_of(ref: str) -> str:
    """The family of the reference *ref*, from its name and configuration alone; ``clip`` where they
    do not say.

    What is wrong with it, loading it says.
    """
    base, suffixes = checkpoint_files.split(ref)
    parts = [suffix for suffix in suffixes if suffix in checkpoint_files.PARTS]
    if parts:
        return families.named(parts[-1])
    try:
        folder = EMBEDDED if base == "embedded" else files.folder(base)
        if checkpoint_files.is_open_clip(folder):
            return "open_clip"
        return families.named(checkpoint_files.family_model(folder))
    except UsageError:
        return "clip"


def absolute(ref: str) -> str:
    """The reference *ref* as a process with another working directory finds it: a folder's whole
    path.
    """
    base, suffixes = checkpoint_files.split(ref)
    if base != "embedded" and files.is_folder(base):
        base = str(files.expand(base).absolute())
    return "+".join((base, *suffixes))


def _with_outliers(base: Reference, ref: str) -> Reference:
    planted = outliers.Outliers()
    try:
        outliers.plant(base.model, planted)
    except ValueError as error:
        raise UsageError(
            f"--clip-model {ref}", str(error), "Give a CLIPModel or a SiglipModel."
        ) from error
    return replace(
        base, name=base.name + outliers.SUFFIX, source=ref, revision=planted.revision(base.revision)
    )


def _part(base: Reference, name: str, ref: str) -> Reference:
    """One tower of a whole CLIP as a model of class *name*, with the same weights."""
    import transformers

    if families.of(base.model).name != "clip":
        raise UsageError(
            f"--clip-model {ref}",
            f"has no part of class {name}",
            "Give a CLIPModel before the plus.",
        )
    tower = "vision" if "Vision" in name else "text"
    config = copy.deepcopy(getattr(base.model.config, f"{tower}_config"))
    config.projection_dim = base.model.config.projection_dim
    config._attn_implementation = base.model.config._attn_implementation
    with torch.device("meta"):
        part = getattr(transformers, name)(config)
    state = base.model.state_dict()
    # From transformers 5 on a tower without projection has no prefix in its own names.
    own = {
        key: state[key if key in state else f"{tower}_model.{key}"].clone()
        for key in part.state_dict()
    }
    part = part.to_empty(device=base.device).to(base.dtype)
    _restore_buffers(part, base.model.get_submodule(f"{tower}_model"))
    part.load_state_dict(own)
    revision = digests.of_text(f"{base.revision}\0{name}")
    return replace(
        base,
        name=f"{base.name}+{name}",
        source=ref,
        model=part.eval().requires_grad_(False),
        revision=revision,
        whole=base.model,
    )


def _restore_buffers(part: nn.Module, tower: nn.Module) -> None:
    """Copy buffers that no checkpoint holds (position ids) from the whole model."""
    known = dict(tower.named_buffers())
    for name, buffer in part.named_buffers():
        buffer.copy_(known[name.partition("_model.")[2] or name])


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Turn off transformers' progress bars and loading reports: what matters in them is checked
    above.
    """
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
