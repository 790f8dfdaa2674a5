"""The weights of a checkpoint as far as their headers show: which files hold them, and whether they
fit its sizes.

Only safetensors are read: a pickle is a program.  Every size that ``config.json`` asks for is
compared with the shapes in the headers before a model is built, which could otherwise take any
amount of memory.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import shlex
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from harness import files
from harness.errors import UsageError
from harness.models import checkpoint_configs
from harness.models.checkpoint_configs import Encoder, ExpectedTensor, Keys, Tensor, Vision, Whole

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"
_FIX_QUANTIZED = "Give the checkpoint before quantization: the gate quantizes it itself."
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_PICKLED_WEIGHTS = re.compile(r"(open_clip_)?(pytorch_)?model.*\.(bin|pt|pth|ckpt)")
_QUANTIZED_FILES = ("modelopt_state.pth", "hf_quant_config.json")
_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_ITEM_SIZES = _FLOATS | {
    "I64": 8,
    "U64": 8,
    "I32": 4,
    "U32": 4,
    "I16": 2,
    "U16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
}
#: The program that writes safetensors (its first argument) from pickled weights (the others),
#: nothing changed.
_CONVERSION = (
    "import sys, torch, safetensors.torch as s; "
    "w = {k: v.clone().contiguous() for f in sys.argv[2:] "
    "for k, v in torch.load(f, map_location='cpu', weights_only=True).items()}; "
    "s.save_file(w, sys.argv[1], metadata={'format': 'pt'})"
)
#: safetensors' own bound on the header of a file.
_MAX_HEADER = 100_000_000
_MAX_SHARDS = 1000

FIX = (
    "Give a directory that holds a saved CLIPModel, tokenizer and image processor, a hub id, or "
    "'embedded'."
)
FIX_SIZES = "Give the configuration that these weights were saved with."


def weights_of(folder: Path, kind: checkpoint_configs.ModelType) -> tuple[Path, ...]:
    """The safetensors files of the Hugging Face checkpoint in *folder*.

    Raises:
        UsageError: they are missing, pickled, or not all in the folder.
    """
    if kind.transformers_weights is not None:
        what = (
            f"transformers_weights is {files.shown(kind.transformers_weights)}, which is not read"
        )
        raise UsageError(
            folder / CONFIG, what, f"Remove that key, and save the weights as {WEIGHTS}."
        )
    if files.exists(folder / "adapter_config.json"):
        what = "an adapter of PEFT, which is not read"
        raise UsageError(
            folder / "adapter_config.json", what, "Merge it into the weights and save the model."
        )
    if files.exists(folder / WEIGHTS):
        return (files.regular_file(folder / WEIGHTS, fix=FIX),)
    if files.exists(folder / INDEX):
        return tuple(
            files.regular_file(path, what="file of weights", fix=FIX) for path in shards_of(folder)
        )
    raise _no_weights(folder, WEIGHTS)


def shards_of(folder: Path) -> list[Path]:
    """The files that the index names, each in *folder* itself.

    Raises:
        UsageError: it is not an index, or names a file elsewhere or of another kind.
    """
    path = folder / INDEX
    index = files.read_json(path, checkpoint_configs.Index, limit=files.MAX_INDEX, fix=FIX)
    shards = sorted(set(index.weight_map.values()))
    for name in shards:
        if name.endswith(_PICKLES):
            fix = "Save the model again: transformers' save_pretrained writes safetensors."
            raise UsageError(path, f"names {files.shown(name)}: pickled weights are not read", fix)
        if (
            "/" in name
            or "\\" in name
            or name in ("", ".", "..")
            or not name.endswith(".safetensors")
        ):
            fix = "Put every file of weights next to the index, and save it again."
            raise UsageError(
                path, f"names {files.shown(name)}, not a safetensors file of its own folder", fix
            )
    if len(shards) > _MAX_SHARDS:
        raise UsageError(
            path, f"names {len(shards)} files of weights, the limit is {_MAX_SHARDS}", FIX
        )
    return [folder / name for name in shards]


def open_clip_weights(folder: Path) -> tuple[Path, ...]:
    """The file of weights of the open_clip checkpoint in *folder*.

    Raises:
        UsageError: it is missing, or pickled.
    """
    if files.exists(folder / OPEN_CLIP_WEIGHTS):
        return (files.regular_file(folder / OPEN_CLIP_WEIGHTS, fix=FIX),)
    raise _no_weights(folder, OPEN_CLIP_WEIGHTS)


def _no_weights(folder: Path, wanted: str) -> UsageError:
    """The refusal of a folder without the file *wanted*, with the command that writes it from
    pickled weights.
    """
    pickles = [name for name in files.names(folder) if _PICKLED_WEIGHTS.fullmatch(name)]
    if not pickles:
        return UsageError(folder, f"{wanted} is missing", FIX)
    parts = [name for name in pickles if "-of-" in name]
    sources = parts if pickles[0] in parts else pickles[:1]
    places = " ".join(shlex.quote(str(folder / name)) for name in (wanted, *sources))
    fix = f'Convert them once: python -c "{_CONVERSION}" {places}'
    return UsageError(folder / pickles[0], "pickled weights are not read", fix)


def tensors_of(weights: tuple[Path, ...]) -> dict[str, Tensor]:
    """The names, dtypes and shapes of all tensors in safetensors files, from their headers.

    Raises:
        UsageError: a file is not one of safetensors, or is cut off.
    """
    tensors: dict[str, Tensor] = {}
    for path in weights:
        tensors |= _header(path)
    return tensors


def digest_of(weights: tuple[Path, ...], wanted: str) -> str:
    """SHA-256 over the tensors whose names begin as the pattern *wanted* says; the others are not
    read.
    """
    digest = hashlib.sha256()
    for path in weights:
        tensors = {name: t for name, t in _header(path).items() if re.match(wanted, name)}
        with files.opened(path, what="file of weights", fix=FIX) as file:
            start = 8 + struct.unpack("<Q", file.read(8))[0]
            for name in sorted(tensors):
                tensor = tensors[name]
                begin, end = tensor.data_offsets
                digest.update(f"{name}\0{tensor.dtype}\0{tensor.shape}\0".encode())
                file.seek(start + begin)
                digest.update(file.read(end - begin))
    return digest.hexdigest()


def _header(path: Path) -> dict[str, Tensor]:
    fix = "Restore the file, or download it again."
    with files.opened(path, what="file of weights", fix=fix) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise UsageError(path, "is not a safetensors file: it does not load as one", fix)
        header = file.read(length)
    try:
        text = header.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            path, f"its header is not UTF-8 at byte {error.start}: it does not load", fix
        ) from error
    content: Mapping[str, Any] = files.validate_json(text, path, dict[str, Any], fix=fix)
    content = {name: value for name, value in content.items() if name != "__metadata__"}
    tensors = files.validate_python(content, path, TypeAdapter(dict[str, Tensor]), fix=fix)
    for name, tensor in tensors.items():
        begin, end = tensor.data_offsets
        item = _ITEM_SIZES.get(tensor.dtype)
        if item is not None and math.prod(tensor.shape) * item != end - begin:
            raise UsageError(
                path, f"tensor {files.shown(name)} has {end - begin} bytes for {tensor.shape}", fix
            )
    needed = 8 + length + max((tensor.data_offsets[1] for tensor in tensors.values()), default=0)
    if needed > size:
        what = f"is cut off: it does not load, {size:,} bytes where its header asks for {needed:,}"
        raise UsageError(path, what, fix)
    return tensors


def check_unquantized(folder: Path, kind: checkpoint_configs.ModelType) -> None:
    """Refuse a checkpoint whose files say that it is quantized.

    Raises:
        UsageError: it is.
    """
    for name in _QUANTIZED_FILES:
        if files.exists(folder / name):
            raise UsageError(folder / name, "the model is already quantized", _FIX_QUANTIZED)
    if kind.quantization_config is not None:
        raise UsageError(
            folder / CONFIG, "quantization_config: the model is already quantized", _FIX_QUANTIZED
        )


def check_floats(place: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not floating-point numbers, and ranges of quantizers.

    Raises:
        UsageError: *place* holds such tensors.
    """
    for name, tensor in tensors.items():
        quantized = name.endswith("weight") and tensor.dtype not in _FLOATS
        if quantized or "_quantizer." in name or name.endswith(("weight_scale", "input_scale")):
            what = f"the model is already quantized: it holds {files.shown(name)} as {tensor.dtype}"
            raise UsageError(place, what, _FIX_QUANTIZED)


def check_sizes(
    folder: Path,
    model: str,
    config: Keys,
    tensors: Mapping[str, Tensor],
    towers: Mapping[str, Encoder],
) -> None:
    """Refuse weights of other sizes than the configuration's, before a model of these is built.

    Raises:
        UsageError: the first size that differs, with the keys that decide it.
    """
    check_floats(folder, tensors)
    expected: dict[str, tuple[str, ExpectedTensor]] = {}
    for tower_name, tower in towers.items():
        place = f" ({tower_name}_config)" if isinstance(config, Whole) else ""
        expected |= {
            f"{tower.prefix}{name}": (place, shape) for name, shape in tower.tensors().items()
        }
        layers = _layers(tensors, tower, whole=isinstance(config, Whole))
        if layers != tower.num_hidden_layers:
            what = f"num_hidden_layers is {tower.num_hidden_layers}, the weights have {layers}"
            if not layers:
                what = f"weights are missing: {tower.prefix}{tower.layers}0, ..."
            raise UsageError(f"{folder / CONFIG}{place}", what, FIX_SIZES)
    expected |= {name: ("", shape) for name, shape in _projections(model, config).items()}
    for name, (place, wanted) in expected.items():
        tensor = tensors.get(name) or tensors.get(name.partition("_model.")[2])
        if tensor is None:
            raise UsageError(folder, f"weights are missing: {name}", FIX)
        if tuple(tensor.shape) != wanted.shape:
            asks, has = (" x ".join(map(str, shape)) for shape in (wanted.shape, tensor.shape))
            what = f"by {wanted.keys} {name} would be {asks}, the weights have {has}"
            raise UsageError(f"{folder / CONFIG}{place}", what, FIX_SIZES)


def _layers(tensors: Mapping[str, Tensor], tower: Encoder, *, whole: bool) -> int:
    """Encoder layers that the weights hold of *tower*; one alone may leave its prefix out."""
    starts = [f"{tower.prefix}{tower.layers}"] + ([] if whole else [tower.layers])
    numbers = {
        name[len(start) :].partition(".")[0]
        for name in tensors
        for start in starts
        if name.startswith(start)
    }
    return len(numbers)


def _projections(model: str, config: Keys) -> dict[str, ExpectedTensor]:
    """The projections into the space that pictures and words share, where the class has them."""
    if isinstance(config, checkpoint_configs.Clip):
        return {
            f"{kind}_projection.weight": ExpectedTensor(
                (config.projection_dim, tower.hidden_size), "projection_dim"
            )
            for kind, tower in (("visual", config.vision_config), ("text", config.text_config))
        }
    if model.endswith("WithProjection") and isinstance(
        config, checkpoint_configs.ClipVision | checkpoint_configs.ClipText
    ):
        kind = "visual" if isinstance(config, Vision) else "text"
        width = config.projection_dim or config.hidden_size
        return {
            f"{kind}_projection.weight": ExpectedTensor(
                (width, config.hidden_size), "projection_dim"
            )
        }
    return {}
