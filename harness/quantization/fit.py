"""Does a recipe fit the tensors of a model?  Asked before anything is calibrated.

ModelOpt looks at an axis or a block only when a tensor arrives.  An axis that the tensor lacks is
passed over without a word, one that runs along the batch raises when the last batch is smaller, a
list of quantizers where one is expected raises in the middle of a forward.  Here the shapes come
from two forwards of a copy without weights, of batches of two sizes: what differs between them
depends on the batch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import UsageError
from harness.models import families
from harness.models.hooks import before_each
from harness.models.shapes import ShapesOnly
from harness.quantization import quantize
from harness.quantization.maps import QuantizerMap, kind_of, quantizer_map, tensor_quantizers
from harness.recipes.algorithms import steps
from harness.recipes.applied import Applied, AppliedSetting, applied_to, place_of
from harness.recipes.loading import Entry, Recipe

#: Quantizers that ModelOpt's FP8 attention of diffusers asks for a range, which a list of
#: quantizers has not.
_ONE_QUANTIZER = ("q_bmm", "k_bmm", "v_bmm")


@dataclass(frozen=True)
class Shape:
    """The shape of the tensor at a quantizer: its sizes, and the dimensions whose size depends on
    the batch.
    """

    sizes: tuple[int, ...]
    of_batch: frozenset[int]

    @property
    def rank(self) -> int:
        """How many dimensions the tensor has."""
        return len(self.sizes)


@dataclass(frozen=True)
class Survey:
    """The places for quantizers in a model, and the shapes of the tensors at those that a forward
    reaches.
    """

    places: QuantizerMap
    shapes: Mapping[str, Shape]


def survey(model: nn.Module, attention: str = "diffusers") -> Survey:
    """Look at *model*'s places for quantizers; no weight is copied and nothing is computed."""
    bare = quantize.insert(without_weights(model), attention)
    small, large = (_sizes(bare, batch) for batch in (2, 3))
    shapes = {name: Shape(sizes, _different(sizes, large[name])) for name, sizes in small.items()}
    return Survey(quantizer_map(bare), shapes)


def _different(first: tuple[int, ...], other: tuple[int, ...]) -> frozenset[int]:
    return frozenset(
        n for n, (here, there) in enumerate(zip(first, other, strict=True)) if here != there
    )


def without_weights(model: nn.Module) -> nn.Module:
    """A copy of *model* on the meta device, made without copying a weight."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.detach().to("meta")
    return copy.deepcopy(model, memo)


def _sizes(model: nn.Module, batch: int) -> dict[str, tuple[int, ...]]:
    """The sizes of the tensor that first reaches each quantizer of *model*."""
    seen: dict[str, tuple[int, ...]] = {}

    def see(name: str, _: nn.Module, args: tuple[Any, ...]) -> None:
        seen.setdefault(name, tuple(args[0].shape))

    with torch.no_grad(), ShapesOnly(), before_each(tensor_quantizers(model), see):
        families.forward(model, families.sample_inputs(model, batch))
    return seen


def check(recipe: Recipe, seen: Survey, attention: str = "diffusers") -> None:
    """Refuse a recipe that ModelOpt cannot apply to the tensors of a model.

    Args:
        recipe: what is asked for.
        seen: of the model.
        attention: the attention class that is registered.

    Raises:
        UsageError: with the entry at fault, the quantizer, and the fix.
    """
    for part in recipe.parts:
        done = applied_to(seen.places, part.entries)
        _check_sequences(part, done, attention)
        for name, setting in done.settings.items():
            shape = seen.shapes.get(place_of(name))
            if not setting.enable or shape is None or setting.shaped is None:
                continue
            _check_history(part, done, name, setting)
            if problem := next(_problems(setting.cfg or {}, name, shape), None):
                raise UsageError(part.entries[setting.shaped].origin, *problem)
        _check_skipped(part, done)


def _problems(cfg: Mapping[str, Any], name: str, shape: Shape) -> Iterator[tuple[str, str]]:
    """Yield the attributes of *cfg* that do not fit the tensor at *name*, with the fix."""
    blocks = {
        key: size for key, size in (cfg.get("block_sizes") or {}).items() if isinstance(key, int)
    }
    axis = cfg.get("axis")
    named = list(blocks) or (
        list(axis) if isinstance(axis, (list, tuple)) else [] if axis is None else [axis]
    )
    attribute = "block_sizes" if blocks else "axis"
    where = f"{name}, whose tensor has {shape.rank} dimensions"
    for dimension in named:
        if not -shape.rank <= dimension < shape.rank:
            yield (
                f"{attribute} names dimension {dimension}, which is not there at {where}",
                _fix(shape),
            )
    at = {dimension % shape.rank for dimension in named}
    if not blocks and len(at) == shape.rank:
        yield (
            f"axis names every dimension at {where}: ModelOpt takes one range for all then",
            _fix(shape),
        )
    if not shape.of_batch:
        return
    whole = bool(blocks) and all(size is None for size in blocks.values())
    if blocks and not whole:
        if (cfg.get("block_sizes") or {}).get("type") != "dynamic":
            what = (
                f"blocks of a fixed size at {name}, whose tensor changes its shape with the batch"
            )
            yield what, "Write axis: null for one range, or axis: -1 for one per channel."
        return
    own_axes = set(range(shape.rank)) - at if whole else at
    constant = cfg.get("use_constant_amax") or cfg.get("constant_amax") is not None
    if own_axes & shape.of_batch and cfg.get("type") != "dynamic" and not constant:
        batch = min(own_axes & shape.of_batch)
        what = (
            f"a range for each sample of the batch (dimension {batch}) at {name}, which no "
            f"calibration can give"
        )
        yield (
            what,
            "Write type: dynamic next to num_bits, or axis: -1 for a range per channel, or axis: "
            "null for one.",
        )


def _fix(shape: Shape) -> str:
    if shape.of_batch:
        return "Write axis: null for one range, or axis: -1 for one per channel."
    return "Write axis: null for one range, or axis: 0 for one per row."


def _check_sequences(recipe: Recipe, done: Applied, attention: str) -> None:
    """Refuse lists of quantizers where ModelOpt nests them, or expects one."""
    for place in done.nested:
        lists = [
            n
            for n, e in enumerate(recipe.entries)
            if isinstance(e.cfg, list) and place in done.touched[n]
        ]
        first, last = lists[0], lists[-1]
        what = (
            f"a list of attributes for {place}, of which entry {first + 1}, "
            f"{recipe.entries[first].shown!r}, made "
            "a list already: ModelOpt puts the new one into each of its parts"
        )
        raise UsageError(recipe.entries[last].origin, what, "Give the list in one entry only.")
    if attention != "diffusers":
        return
    for name, setting in done.settings.items():
        place = place_of(name)
        if name != place and setting.enable and kind_of(place) in _ONE_QUANTIZER:
            what = (
                f"a list of attributes for {place}, of which diffusers' attention class takes one"
            )
            raise UsageError(
                _origin(recipe.entries, setting), what, "Give it one mapping, not a list."
            )


def _origin(entries: Sequence[Entry], setting: AppliedSetting) -> str:
    return entries[setting.switched if setting.shaped is None else setting.shaped].origin


def _check_history(recipe: Recipe, done: Applied, name: str, setting: AppliedSetting) -> None:
    """Refuse ranges per channel where an earlier entry fixed a single range: ModelOpt keeps the old
    buffer, which has another shape.
    """
    cfg = setting.cfg or {}
    if cfg.get("constant_amax") is not None or (
        cfg.get("axis") is None and not cfg.get("block_sizes")
    ):
        return
    for index, entry in enumerate(recipe.entries[: setting.shaped]):
        attributes = entry.cfg if isinstance(entry.cfg, Mapping) else {}
        if attributes.get("constant_amax") is not None and place_of(name) in done.touched[index]:
            what = (
                f"constant_amax for {name}, to which entry {(setting.shaped or 0) + 1} gives a "
                f"range per channel"
            )
            raise UsageError(
                entry.origin,
                what,
                "Remove constant_amax, or leave these quantizers out of that entry.",
            )


def _check_skipped(recipe: Recipe, done: Applied) -> None:
    """Refuse SVDQuant's ``skip_layers`` with weights in blocks, which ModelOpt cannot run."""
    skips = any(
        isinstance(step, Mapping) and step.get("method") == "svdquant" and step.get("skip_layers")
        for step in steps(recipe.algorithm)
    )
    for name, setting in done.settings.items() if skips else ():
        if (
            setting.enable
            and kind_of(name).startswith("weight")
            and (setting.cfg or {}).get("block_sizes")
        ):
            what = (
                "skip_layers of svdquant leaves weights in blocks, and ModelOpt's forward fails on "
                "those"
            )
            fix = "Remove skip_layers, or turn these layers off in quant_cfg."
            raise UsageError(_origin(recipe.entries, setting), what, fix)


@torch.no_grad()
def check_weights(recipe: Recipe, seen: Survey, model: nn.Module, source: str) -> None:
    """Refuse SmoothQuant on a weight with a column of zeros: ModelOpt divides by the largest
    magnitude of the column.

    Raises:
        UsageError: with the layer and the column.
    """
    smooths = any(
        (step.get("method") if isinstance(step, Mapping) else step) == "smoothquant"
        and (step.get("alpha", 1.0) if isinstance(step, Mapping) else 1.0) < 1.0
        for step in steps(recipe.algorithm)
    )
    settings = applied_to(seen.places, recipe.entries).settings if smooths else {}
    for name, setting in settings.items():
        holder = name.removesuffix(".weight_quantizer")
        if not setting.enable or holder == name:
            continue
        weight: Tensor = model.get_parameter(f"{holder}.weight")
        empty = (weight == 0).all(0).nonzero().flatten() if weight.dim() == 2 else torch.tensor([])
        if len(empty):
            what = (
                f"column {int(empty[0])} of {holder}.weight is all zeros, on which ModelOpt's "
                f"smoothquant fails"
            )
            fix = (
                f"Turn '{holder}.*' off in the recipe, or write algorithm: "
                f"{{method: smoothquant, alpha: 1.0}}."
            )
            raise UsageError(source, what, fix)
