"""The files of a checkpoint: which of them are read, what they say, and whether they fit together.

Nothing here needs torch or transformers: :func:`look` refuses a checkpoint that cannot be used
within a fraction of a second, before anything is built or allocated.  ``harness.models.references``
and ``harness.models.openclip`` load what it accepts.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from harness import files
from harness.errors import UsageError
from harness.models import checkpoint_configs, checkpoint_weights
from harness.models.checkpoint_configs import (
    Encoder,
    Keys,
    OpenClip,
    Preprocessing,
    Text,
    Vision,
    Whole,
)
from harness.models.checkpoint_weights import (
    CONFIG,
    FIX,
    FIX_SIZES,
    INDEX,
    OPEN_CLIP_WEIGHTS,
    WEIGHTS,
)
from harness.recipes import unknown

EMBEDDED = Path(__file__).parent / "embedded" / "clip"
#: What a reference may end in: activation outliers, or one tower of a whole CLIP.
OUTLIERS = "outliers"
PARTS = (
    "CLIPVisionModel",
    "CLIPVisionModelWithProjection",
    "CLIPTextModel",
    "CLIPTextModelWithProjection",
)

OPEN_CLIP_CONFIG = "open_clip_config.json"
#: The index of a diffusers pipeline.
PIPELINE = "model_index.json"
#: Image processors that crop unless the configuration says no.
_CROPPING = ("CLIPImageProcessor", "BitImageProcessor")
_TOKENIZER = ("tokenizer.json", "vocab.json", "tokenizer.model", "spiece.model")
_PREPROCESSING = ("preprocessor_config.json", "processor_config.json")
_SENTENCEPIECE = ("tokenizer.model", "spiece.model")
#: Read where they are there, by transformers or for the revision.
_SUFFIXES = (".json", ".txt", ".model", ".safetensors", ".jinja")
_REVISION_SUFFIXES = (".json", ".txt", ".model", ".safetensors")


@dataclass(frozen=True)
class CheckpointForm:
    """A form of checkpoint by its ``model_type``.

    ``models`` are transformers' classes that it may be saved as, the usual one first; ``tokenizer``
    and ``image_processor`` the classes that prepare its inputs, empty where it has no such tower.
    ``inside`` matches the beginning of the names of the tower's tensors where the checkpoint holds
    more than is read, and ``renamed`` are pairs of patterns that transformers renames.
    ``any_size``: whether the model takes pictures of other sizes than its own.
    """

    config: type[Keys]
    models: tuple[str, ...]
    tokenizer: str = ""
    image_processor: str = ""
    inside: str = ""
    any_size: bool = False
    renamed: tuple[tuple[str, str], ...] = ()

    @property
    def model(self) -> str:
        """The class that the checkpoint is loaded as."""
        return self.models[0]


#: The tower and the projector of a vision-language model, as transformers 4 and 5 write them.
_IN_TOWER = r"(?:model\.)?(?:vision_tower\.(?:vision_model\.)?|(?=multi_modal_projector\.))"
FORMS = {
    "clip": CheckpointForm(
        checkpoint_configs.Clip, ("CLIPModel",), "CLIPTokenizer", "CLIPImageProcessor"
    ),
    "clip_vision_model": CheckpointForm(
        checkpoint_configs.ClipVision,
        ("CLIPVisionModel", "CLIPVisionModelWithProjection"),
        "",
        "CLIPImageProcessor",
    ),
    "clip_text_model": CheckpointForm(
        checkpoint_configs.ClipText,
        ("CLIPTextModel", "CLIPTextModelWithProjection"),
        "CLIPTokenizer",
    ),
    "siglip": CheckpointForm(
        checkpoint_configs.Siglip, ("SiglipModel",), "AutoTokenizer", "SiglipImageProcessor"
    ),
    "siglip2": CheckpointForm(
        checkpoint_configs.Siglip2, ("Siglip2Model",), "AutoTokenizer", "Siglip2ImageProcessor"
    ),
    "owlvit": CheckpointForm(
        checkpoint_configs.Owl,
        ("OwlViTModel",),
        "CLIPTokenizer",
        "OwlViTImageProcessor",
        inside=r"(?:owlvit\.)?(?=vision_model\.|text_model\.|visual_projection|text_projection|logit)",
    ),
    "owlv2": CheckpointForm(
        checkpoint_configs.Owl,
        ("Owlv2Model",),
        "CLIPTokenizer",
        "Owlv2ImageProcessor",
        inside=r"(?:owlv2\.)?(?=vision_model\.|text_model\.|visual_projection|text_projection|logit)",
    ),
    "clipseg": CheckpointForm(
        checkpoint_configs.LikeClip,
        ("CLIPSegModel",),
        "CLIPTokenizer",
        "ViTImageProcessor",
        inside=r"(?:clip\.)?(?=vision_model\.|text_model\.|visual_projection|text_projection|logit)",
        any_size=True,
        renamed=((r"^clip\.", ""),),
    ),
    "metaclip_2": CheckpointForm(
        checkpoint_configs.LikeClip, ("MetaClip2Model",), "AutoTokenizer", "CLIPImageProcessor"
    ),
    "dinov2": CheckpointForm(
        checkpoint_configs.Dinov2,
        ("Dinov2Model",),
        "",
        "BitImageProcessor",
        inside=r"(?:dinov2\.)?(?=embeddings\.|encoder\.|layernorm\.)",
        any_size=True,
    ),
    "llava": CheckpointForm(
        checkpoint_configs.SeeingLlava, ("LlavaVision",), "", "CLIPImageProcessor", _IN_TOWER
    ),
    "llava_next": CheckpointForm(
        checkpoint_configs.SeeingLlava, ("LlavaNextVision",), "", "CLIPImageProcessor", _IN_TOWER
    ),
    "vipllava": CheckpointForm(
        checkpoint_configs.SeeingLlava, ("VipLlavaVision",), "", "CLIPImageProcessor", _IN_TOWER
    ),
    "llava_onevision": CheckpointForm(
        checkpoint_configs.SeeingSiglip,
        ("LlavaOnevisionVision",),
        "",
        "SiglipImageProcessor",
        _IN_TOWER,
    ),
    "paligemma": CheckpointForm(
        checkpoint_configs.SeeingSiglip, ("PaliGemmaVision",), "", "SiglipImageProcessor", _IN_TOWER
    ),
}
_OPEN_CLIP = CheckpointForm(OpenClip, ("open_clip",))


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that can be loaded, as its files show before they are loaded.

    ``tokenizer`` and ``image_processor`` are the folders of these, None where the model has no such
    tower or brings its own; ``weights`` the safetensors files that are read.
    """

    folder: Path
    form: CheckpointForm
    config: Keys
    weights: tuple[Path, ...]
    tokenizer: Path | None = None
    image_processor: Path | None = None

    @property
    def is_open_clip(self) -> bool:
        """True for open_clip's own form."""
        return self.form is _OPEN_CLIP

    @property
    def side(self) -> int | None:
        """Height and width of the pictures that the model needs; None without a vision tower."""
        if isinstance(self.config, OpenClip):
            return self.config.model_cfg.vision_cfg.side
        vision = towers(self.config).get("vision")
        return vision.side if isinstance(vision, Vision) else None

    def revision(self) -> str:
        """SHA-256 over the names and contents of everything that is read, wherever it is."""
        places = dict.fromkeys((self.folder, self.tokenizer, self.image_processor))
        known = [place for place in places if place is not None]
        if not self.form.inside:
            return revision(*known)
        rest = revision(*known, weights=False)
        own = checkpoint_weights.digest_of(self.weights, self.form.inside)
        return hashlib.sha256(f"{rest}\0{own}".encode()).hexdigest()


# -- references ------------------------------------------------------------------------------------


def split(ref: str) -> tuple[str, tuple[str, ...]]:
    """Split a model reference into the checkpoint and what ``+SUFFIX`` asks to be done with it, in
    order.
    """
    suffixes: list[str] = []
    while "+" in ref and not files.is_folder(ref):
        base, _, suffix = ref.rpartition("+")
        if suffix != OUTLIERS and suffix not in PARTS:
            break
        suffixes.insert(0, suffix)
        ref = base
    return ref, tuple(suffixes)


def look(ref: str) -> Checkpoint:
    """Return the checkpoint that the model reference *ref* means, once its files are known to fit
    together.

    Raises:
        UsageError: it is not there, incomplete, damaged, of a form that is not gated, already
            quantized, or too large.
    """
    base, suffixes = split(ref)
    folder = locate(base)
    try:
        checkpoint = inspect(folder)
    except UsageError as error:
        if not files.is_folder(base) and base != "embedded":  # the user did not name this folder
            fix = f"Repair the cached copy: hf download {base} --force-download."
            raise UsageError(
                f"--clip-model {base}", f"its cached copy cannot be used: {error}", fix
            ) from error
        raise
    parts = [suffix for suffix in suffixes if suffix in PARTS]
    if parts and checkpoint.form.model != "CLIPModel":
        what = f"has no part of class {parts[0]}"
        raise UsageError(f"--clip-model {ref}", what, "Give a CLIPModel before the plus.")
    if OUTLIERS in suffixes and checkpoint.is_open_clip:
        fix = "Convert it first: python -m harness.models.openclip DIR OUT."
        raise UsageError(
            f"--clip-model {ref}", "outliers cannot be planted in open_clip's form", fix
        )
    return checkpoint


def locate(base: str) -> Path:
    """Return the folder of a checkpoint: ``embedded``, a directory, or a hub id, which is fetched
    if need be.

    Raises:
        UsageError: there is no such directory, or the hub id is neither cached nor to be fetched.
    """
    if base == "embedded":
        return EMBEDDED
    path = files.expand(base, option="--clip-model")
    if files.is_folder(path):
        return files.folder(path, fix=FIX)
    name = base.rpartition("+")[0] or base
    if "+" in base and (name == "embedded" or files.is_folder(name)):
        known = ", ".join(f"+{suffix}" for suffix in (OUTLIERS, *PARTS))
        raise UsageError(
            f"--clip-model {base}", f"+{base.rpartition('+')[2]} is not known", f"Known: {known}."
        )
    if not is_hub_id(base):
        raise UsageError(f"--clip-model {base}", *_no_model(base, path))
    return _from_hub(base)


def _no_model(base: str, path: Path) -> tuple[str, str]:
    """What is wrong with a reference that is neither a folder nor a hub id, and the fix."""
    parts = [part for part in re.split(r"[,;\s]+", base) if part]
    if files.is_file(path):
        return "is not a directory but a file", f"Give its folder, {str(path.parent)!r}."
    if re.match(r"\w+://", base):
        return "is not a directory but an address", "Give the hub id alone, such as openai/NAME."
    if len(parts) > 1:
        words = " ".join(f"--clip-model {part}" for part in parts[:3])
        return f"names {len(parts)} models at once", f"Give --clip-model once for each: {words}"
    what = "is not a directory"
    if "/" not in base:
        near = unknown.nearest(base, ["embedded"])
        return what, unknown.meant(near) or FIX
    if is_hub_id(base.strip("/")) and base == base.lstrip("/."):
        return what, f"For the hub id, write {base.strip('/')}."
    return what, FIX


def is_hub_id(base: str) -> bool:
    """Return whether a reference without suffixes can only be the name of a repository of the
    hub.
    """
    is_path = base.startswith((".", "/", "~")) or base.count("/") != 1
    return (
        base != "embedded"
        and not is_path
        and not files.exists(files.expand(base, option="--clip-model"))
    )


def _from_hub(name: str) -> Path:
    """The snapshot directory of a hub id: the cached one if it is whole, else what the hub
    gives.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.txt", "*.model", "model*.safetensors", OPEN_CLIP_WEIGHTS]
    where, lacking = f"--clip-model {name}", ""
    try:
        cached = Path(snapshot_download(name, local_files_only=True, allow_patterns=patterns))
        lacking = _lacking(cached)
        if not lacking:
            return cached
    except LocalEntryNotFoundError:
        pass
    except (HFValidationError, OSError, ValueError) as error:
        raise UsageError(where, f"is not a hub id ({error})", FIX) from error
    fix = f"Download it where there is a network ('hf download {name}') and give the directory."
    try:
        fetched = Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:
        # Whatever the hub's client raises without a network, for an unknown name or a closed
        # repository.
        what = (
            f"is not in the local cache and the hub gave nothing ({type(error).__name__}: {error})"
        )
        if lacking:
            what = (
                f"its cached copy is incomplete ({lacking}) and the hub gave nothing "
                f"({type(error).__name__})"
            )
        raise UsageError(where, what, fix) from error
    lacking = _lacking(fetched)
    if lacking:
        what = (
            f"its cached copy is incomplete ({lacking}); the hub gave no more, or was not reached"
        )
        raise UsageError(
            where, what, f"{fix} Weights in other forms than safetensors are not read."
        )
    return fetched


def _lacking(folder: Path) -> str:
    """Return what a snapshot of a hub's repository lacks to be a checkpoint; empty if it is
    complete.
    """
    if files.is_file(folder / OPEN_CLIP_CONFIG) and not files.is_file(folder / CONFIG):
        return (
            "" if files.is_file(folder / OPEN_CLIP_WEIGHTS) else f"{OPEN_CLIP_WEIGHTS} is missing"
        )
    if not files.is_file(folder / CONFIG):
        return f"{CONFIG} is missing"
    if files.is_file(folder / WEIGHTS):
        return ""
    if not files.is_file(folder / INDEX):
        return f"{WEIGHTS} is missing"
    missing = [
        path.name for path in checkpoint_weights.shards_of(folder) if not files.is_file(path)
    ]
    return f"{', '.join(missing[:3])} missing" if missing else ""


# -- pipelines of diffusers ------------------------------------------------------------------------


def expanded(refs: Iterable[str]) -> tuple[str, ...]:
    """Model references, each diffusers pipeline replaced by its parts of CLIP's family.

    Raises:
        UsageError: a pipeline has no such part, or its index cannot be read.
    """
    return tuple(dict.fromkeys(part for ref in refs for part in _parts_of(ref)))


def _parts_of(ref: str) -> tuple[str, ...]:
    path = files.expand(ref, option="--clip-model")
    if ref == "embedded" or not files.is_folder(path) or files.exists(path / CONFIG):
        return (ref,)
    if not files.exists(path / PIPELINE):
        return (ref,)
    known = {name for form in FORMS.values() for name in form.models}
    parts = [name for name, cls in _pipeline(path).items() if cls in known]
    there = [name for name in parts if files.is_folder(path / name)]
    if not there:
        what = "is a pipeline without a part that is gated"
        fix = f"Its parts of one of these classes are gated: {', '.join(sorted(known))}."
        raise UsageError(path / PIPELINE, what, fix)
    return tuple(f"{ref.rstrip('/')}/{name}" for name in there)


def _pipeline(folder: Path) -> dict[str, str]:
    """The parts of the pipeline in *folder*, and the class of each; ``_class_name`` is its own."""
    content = files.read_json(
        folder / PIPELINE, dict[str, Any], limit=files.MAX_CONFIG, fix="Restore the file."
    )
    classes = {}
    for name, part in content.items():
        is_part = isinstance(part, list) and len(part) == 2 and part[0] == "transformers"
        # Parts are folders of the pipeline itself: a name with a slash would lead out of it.
        if is_part and re.fullmatch(r"\w+", name):
            classes[name] = str(part[1])
    return classes


def pipeline_class(ref: str) -> str:
    """The class of the diffusers pipeline that the model of *ref* is a part of, or nothing."""
    base, _ = split(ref)
    if base == "embedded" or not files.is_folder(base):
        return ""
    folder = files.expand(base)
    for here in dict.fromkeys((folder.absolute().parent, folder.resolve().parent)):
        if files.is_file(here / PIPELINE):
            content = files.read_json(
                here / PIPELINE, dict[str, Any], limit=files.MAX_CONFIG, fix="Restore the file."
            )
            return str(content.get("_class_name", ""))
    return ""


# -- what a folder holds ---------------------------------------------------------------------------


def is_open_clip(folder: Path) -> bool:
    """True if *folder* holds an open_clip checkpoint and no Hugging Face one."""
    return files.exists(folder / OPEN_CLIP_CONFIG) and not files.exists(folder / CONFIG)


def inspect(folder: Path) -> Checkpoint:
    """Return the checkpoint in *folder*, once its files are known to fit together.

    Raises:
        UsageError: as :func:`look`.
    """
    _check_names(folder)
    if is_open_clip(folder):
        return _inspect_open_clip(folder)
    text = _config_text(folder)
    kind = files.validate_json(text, folder / CONFIG, checkpoint_configs.ModelType, fix=FIX)
    form = _form(folder, kind)
    config = files.validate_json(text, folder / CONFIG, form.config, fix=FIX_SIZES)
    checkpoint_weights.check_unquantized(folder, kind)
    weights = checkpoint_weights.weights_of(folder, kind)
    tensors = checkpoint_weights.tensors_of(weights)
    if form.inside:
        tensors = _inside(form, config, tensors)
    checkpoint_weights.check_sizes(folder, form.model, config, tensors, towers(config))
    tokenizer = image_processor = None
    if form.tokenizer:
        tokenizer = _tokenizer_folder(folder, form)
    if form.image_processor:
        image_processor = _preprocessing_folder(folder)
        vision = towers(config)["vision"]
        assert isinstance(vision, Vision)
        _check_preprocessing(image_processor, form, vision.side)
    return Checkpoint(folder, form, config, weights, tokenizer, image_processor)


def _inside(form: CheckpointForm, config: Keys, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tensors that are read of a larger checkpoint, under the names of a single
    tower.
    """
    prefix = "vision_model." if isinstance(config, checkpoint_configs.Seeing) else ""
    tensors_inside = {}
    for name, tensor in tensors.items():
        match = re.match(form.inside, name)
        if match:
            own = "" if "projector" in name else prefix
            tensors_inside[own + name[match.end() :]] = tensor
    return tensors_inside


def family_model(folder: Path) -> str:
    """The class that the checkpoint in *folder* is loaded as, from its configuration alone.

    Raises:
        UsageError: it has no configuration of a form that is gated.
    """
    kind = files.validate_json(
        _config_text(folder), folder / CONFIG, checkpoint_configs.ModelType, fix=FIX
    )
    return _form(folder, kind).model


def towers(config: Keys) -> dict[str, Encoder]:
    """The towers of a configuration of transformers'."""
    if isinstance(config, Whole):
        return {"vision": config.vision_config, "text": config.text_config}
    if isinstance(config, checkpoint_configs.Seeing):
        return {"vision": config.vision_config}
    if isinstance(config, Vision):
        return {"vision": config}
    return {"text": config} if isinstance(config, Text) else {}


def revision(*folders: Path, weights: bool = True) -> str:
    """SHA-256 over the names and contents of a checkpoint's files: configuration, weights,
    tokenizer.

    Args:
        folders: that of the checkpoint, and others that tokenizer and preprocessing are read from.
        weights: whether the weights are among them.
    """
    digest = hashlib.sha256()
    for place in folders:
        for name in files.names(place):
            path = place / name
            if (
                path.suffix not in _REVISION_SUFFIXES
                or name == "training.json"
                or (not weights and (path.suffix == ".safetensors" or name == INDEX))
                or files.is_folder(path)
            ):
                continue
            with files.opened(path, fix=FIX) as file:
                digest.update(f"{name}\0{os.fstat(file.fileno()).st_size}\0".encode())
                while chunk := file.read(1 << 22):
                    digest.update(chunk)
    return digest.hexdigest()


def _check_names(folder: Path) -> None:
    """Refuse a pipe or folder that has the name of a file to read: reading a pipe would never
    end.
    """
    known = (
        *_TOKENIZER,
        *_PREPROCESSING,
        CONFIG,
        WEIGHTS,
        INDEX,
        OPEN_CLIP_CONFIG,
        OPEN_CLIP_WEIGHTS,
    )
    for name in files.names(folder, fix=FIX):
        path = folder / name
        if name in known or (path.suffix in _SUFFIXES and not files.is_folder(path)):
            files.regular_file(path, fix=FIX)


def _config_text(folder: Path) -> str:
    if not files.exists(folder / CONFIG):
        raise UsageError(folder, f"{CONFIG} is missing", FIX)
    return files.read_text(folder / CONFIG, limit=files.MAX_CONFIG, fix=FIX)


def _form(folder: Path, kind: checkpoint_configs.ModelType) -> CheckpointForm:
    if kind.model_type not in FORMS:
        fix = f"Give one of {', '.join(FORMS)}, or open_clip's form."
        raise UsageError(folder / CONFIG, f"model_type is {files.shown(kind.model_type)}", fix)
    form = FORMS[kind.model_type]
    own = [name for name in kind.architectures or () if name in form.models]
    return replace(form, models=(own[0],)) if own else form


# -- tokenizer and preprocessing -------------------------------------------------------------------


def _tokenizer_folder(folder: Path, form: CheckpointForm) -> Path:
    """The folder of the tokenizer: the checkpoint itself or, for a pipeline's ``text_encoder``,
    ``tokenizer`` next to it.
    """
    place = _first_with(folder, _TOKENIZER, ("text_encoder",), ("tokenizer",))
    if place is None:
        raise UsageError(folder, f"the tokenizer ({' or '.join(_TOKENIZER)}) is missing", FIX)
    if place != folder:
        _check_names(place)
    present = [name for name in _TOKENIZER if files.is_file(place / name)]
    fix = "Restore the tokenizer's files."
    if "tokenizer.json" in present:
        files.read_json(
            place / "tokenizer.json", dict[str, Any], limit=files.MAX_TOKENIZER, fix=fix
        )
    elif "vocab.json" in present:
        files.read_json(place / "vocab.json", dict[str, int], limit=files.MAX_TOKENIZER, fix=fix)
        files.read_text(place / "merges.txt", limit=files.MAX_TOKENIZER, fix=fix)
    config = place / "tokenizer_config.json"
    if files.exists(config):
        files.read_json(config, dict[str, Any], limit=files.MAX_CONFIG, fix=fix)
    pieces = [name for name in present if name in _SENTENCEPIECE]
    if pieces and present == pieces and find_spec("sentencepiece") is None:
        what = "a tokenizer of sentencepiece, which is not installed"
        raise UsageError(place / pieces[0], what, "pip install sentencepiece")
    if form.tokenizer == "CLIPTokenizer" and pieces == present:
        raise UsageError(
            place, "the tokenizer (tokenizer.json, or vocab.json and merges.txt) is missing", FIX
        )
    return place


def _preprocessing_folder(folder: Path) -> Path:
    """The folder of the preprocessing: the checkpoint itself or, for a pipeline's
    ``image_encoder``, ``feature_extractor`` or ``image_processor`` next to it.
    """
    place = _first_with(
        folder, _PREPROCESSING, ("image_encoder",), ("feature_extractor", "image_processor")
    )
    if place is None:
        raise UsageError(
            folder, f"the preprocessing ({' or '.join(_PREPROCESSING)}) is missing", FIX
        )
    if place != folder:
        _check_names(place)
    return place


def _first_with(
    folder: Path, wanted: tuple[str, ...], own: tuple[str, ...], others: tuple[str, ...]
) -> Path | None:
    """The first of *folder* and its neighbours that holds one of the files *wanted*.

    Neighbours are named as *folder* is with *own* replaced by one of *others*: those next to it
    and, where *folder* is a link, those next to what it leads to.
    """
    places = [folder]
    for here in dict.fromkeys((folder.absolute(), folder.resolve())):
        for name in own:
            if name in here.name:
                places += [here.with_name(here.name.replace(name, other)) for other in others]
                places += [here.with_name(other) for other in others]
    for place in places:
        if any(files.exists(place / name) for name in wanted):
            return place
    return None


def _check_preprocessing(place: Path, form: CheckpointForm, side: int) -> None:
    """Refuse preprocessing that is not usable, or makes pictures of another size than the model's
    *side*.
    """
    path = place / "preprocessor_config.json"
    nested: dict[str, Any] | None = None
    if files.exists(place / "processor_config.json"):
        processor = place / "processor_config.json"
        nested = files.read_json(
            processor, checkpoint_configs.Processor, limit=files.MAX_CONFIG, fix=FIX
        ).image_processor
        path = processor if nested is not None else path
    shape: type[Keys] = (
        checkpoint_configs.FlatPatches
        if form.image_processor == "Siglip2ImageProcessor"
        else Preprocessing
    )
    fix = "Give the preprocessing that the model was trained with."
    if nested is not None:
        preprocessing: Keys = files.validate_python(nested, path, TypeAdapter(shape), fix=fix)
    else:
        preprocessing = files.read_json(path, shape, limit=files.MAX_CONFIG, fix=fix)
    if not isinstance(preprocessing, Preprocessing):
        return
    produced = _sides(preprocessing, path, crops=form.image_processor in _CROPPING)
    if produced != (side, side) and not form.any_size:
        what = (
            f"makes pictures of {produced[0]} x {produced[1]} pixels, "
            f"the model needs {side} x {side}"
        )
        raise UsageError(path, what, fix)


def _sides(preprocessing: Preprocessing, path: Path, *, crops: bool) -> tuple[int, int]:
    """Return height and width of the pictures that the preprocessing makes; *crops* is the default
    of its class.
    """
    fix = "Give size, and crop_size where it crops, as they were in training."
    size = preprocessing.size
    if preprocessing.do_resize is False:
        raise UsageError(path, "do_resize is false, so that pictures keep sizes of their own", fix)
    # A number alone is the shortest edge where the class crops, and both sides where it does not.
    shortest = size.shortest_edge or (size.number if crops else None)
    resized = size.pair or ((size.number, size.number) if size.number and not crops else None)
    if not (crops if preprocessing.do_center_crop is None else preprocessing.do_center_crop):
        if resized is None:
            raise UsageError(
                path, "resizes the shortest edge and crops nothing: pictures differ in size", fix
            )
        return resized
    crop = (
        checkpoint_configs.PictureSize.model_validate(224)
        if preprocessing.crop_size is None
        else preprocessing.crop_size
    )
    produced = crop.pair or ((crop.number, crop.number) if crop.number else None)
    if produced is None:
        raise UsageError(f"{path} (crop_size)", "has no height and width", fix)
    edge = shortest or min(resized or produced)
    if edge < max(produced):
        what = (
            f"resizes pictures to {edge} pixels and then crops {max(produced)}: "
            "the rest would be black"
        )
        raise UsageError(path, what, fix)
    return produced


# -- open_clip -------------------------------------------------------------------------------------


def _inspect_open_clip(folder: Path) -> Checkpoint:
    config = open_clip_configuration(folder)
    weights = checkpoint_weights.open_clip_weights(folder)
    checkpoint_weights.check_floats(weights[0], checkpoint_weights.tensors_of(weights))
    text = config.model_cfg.text_cfg
    tokenizer = None
    if text.hf_tokenizer_name or files.exists(folder / "tokenizer.json"):
        if not any(files.is_file(folder / name) for name in _TOKENIZER):
            what = f"its tokenizer, {text.hf_tokenizer_name}, is not there"
            raise UsageError(folder, what, "Put the files of that tokenizer next to the weights.")
        tokenizer = _tokenizer_folder(folder, _OPEN_CLIP)
    return Checkpoint(folder, _OPEN_CLIP, config, weights, tokenizer)


def open_clip_configuration(folder: Path) -> OpenClip:
    """Return the configuration of the open_clip checkpoint in *folder*.

    Raises:
        UsageError: the file is not one, or asks for what is not built.
    """
    path = folder / OPEN_CLIP_CONFIG
    fix = f"Give a directory with {OPEN_CLIP_CONFIG} and {OPEN_CLIP_WEIGHTS}."
    config = files.read_json(path, OpenClip, limit=files.MAX_CONFIG, fix=fix)
    side, preprocessing = config.model_cfg.vision_cfg.side, config.preprocess_cfg
    size = None if preprocessing is None else preprocessing.size
    sides = {size} if isinstance(size, int) else set((size or [])[-2:])
    if sides - {side}:
        what = f"makes pictures of {max(sides)} pixels, the model needs {side} x {side}"
        raise UsageError(f"{path} (preprocess_cfg.size)", what, fix)
    return config
