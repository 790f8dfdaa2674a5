"""The quantizer map: every quantizer of a model, and the difference of two maps.

ModelOpt prints a summary of what is *configured*.  The map says what *happens*: it is taken from
the model's own modules after calibration, with the calls of one forward of every tower counted.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from harness import digests
from harness.formats.layout import plan
from harness.models import families
from harness.models.hooks import before_each
from harness.models.shapes import ShapesOnly
from harness.problems import fold_leaves, number_ranges

#: The quantizers inside an attention block, of both attention classes of ModelOpt.
ATTENTION_KINDS = ("q_bmm", "k_bmm", "v_bmm", "p_bmm", "softmax", "bmm2_output")
#: The four around scaled-dot-product attention, which are quantized together or not at all.
FUSED_KINDS = ("q_bmm", "k_bmm", "v_bmm", "bmm2_output")


@dataclass(frozen=True)
class Amax:
    """A quantizer's range: how many values, their extremes, and the SHA-256 of their fp32 bytes.

    ``empty`` of the values are zero because the part of the weight that they belong to is all zeros
    (a pruned channel): zeros stay zeros, so the extremes are those of the other values, where there
    are any.
    """

    count: int
    low: float
    high: float
    digest: str
    empty: int = 0

    @classmethod
    def of(cls, amax: Tensor, empty: Tensor | None = None) -> Amax:
        """Summarise an amax tensor of any shape and float dtype; *empty* marks the values of parts
        without a number.
        """
        values = amax.detach().float().cpu().contiguous().flatten()
        digest = digests.of_bytes(values.numpy().tobytes())[:16]
        rest = values if empty is None or bool(empty.all()) else values[~empty]
        low, high = (rest.min().item(), rest.max().item()) if rest.numel() else (math.nan, math.nan)
        return cls(values.numel(), low, high, digest, 0 if empty is None else int(empty.sum()))

    @property
    def usable(self) -> bool:
        """Every value finite and above zero."""
        return (
            self.count > 0 and math.isfinite(self.high) and math.isfinite(self.low) and self.low > 0
        )


@dataclass(frozen=True)
class Quantizer:
    """One quantizer.

    ``calls`` are those of one forward of every tower.  ``amax`` is its range, None where there is
    none; ``constant`` says that the recipe fixes the range (``use_constant_amax``,
    ``constant_amax``) instead of having it calibrated.
    """

    name: str
    kind: str
    tower: str
    layer: int | None
    module_class: str
    module_kind: str
    format: str
    granularity: str
    enabled: bool
    dynamic: bool
    calls: int
    amax: Amax | None
    constant: bool = False

    @property
    def module(self) -> str:
        """Path of the module that holds the quantizer."""
        return self.name.partition("_quantizer")[0].rpartition(".")[0]

    def as_dict(self) -> dict[str, Any]:
        """A plain record for JSON, without ``constant`` and ``empty`` where there is nothing of the
        kind.
        """
        record = asdict(self)
        if not self.constant:
            del record["constant"]
        if self.amax is not None and not self.amax.empty:
            del record["amax"]["empty"]
        return record


QuantizerMap = tuple[Quantizer, ...]


def of_dict(attributes: Mapping[str, Any]) -> Quantizer:
    """A quantizer from its ``as_dict``.  Keys that only another version of the harness has are left
    out.
    """
    amax = attributes.get("amax")
    known: dict[str, Any] = {f.name: attributes.get(f.name) for f in fields(Quantizer)}
    known["constant"] = bool(known["constant"])
    if amax is not None:
        summary: dict[str, Any] = {f.name: amax.get(f.name) for f in fields(Amax)}
        known["amax"] = Amax(**summary | {"empty": summary["empty"] or 0})
    return Quantizer(**known)


def tensor_quantizers(model: nn.Module) -> dict[str, Any]:
    """Every leaf ``TensorQuantizer`` of *model* by its module path."""
    from modelopt.torch.quantization.nn import TensorQuantizer

    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, TensorQuantizer)
    }


def outline(model: nn.Module) -> str:
    """Return the SHA-256 over the names and classes of *model*'s modules, which decide where
    ModelOpt puts quantizers.
    """
    lines = (
        f"{name} {type(module).__module__}.{type(module).__qualname__}"
        for name, module in model.named_modules()
    )
    return digests.of_text("\n".join(lines))


def count_calls(model: nn.Module, forward: Callable[[nn.Module], object]) -> dict[str, int]:
    """Count how often each quantizer's forward is entered while *forward* runs on *model*."""
    calls = dict.fromkeys(tensor_quantizers(model), 0)

    def count(name: str, *_: object) -> None:
        calls[name] += 1

    with torch.no_grad(), ShapesOnly(), before_each(tensor_quantizers(model), count):
        forward(model)
    return calls


def quantizer_map(
    model: nn.Module, forward: Callable[[nn.Module], object] | None = None
) -> QuantizerMap:
    """The map of *model*, in module order.

    Args:
        model: a model that ModelOpt converted, on any device, ``meta`` included.
        forward: runs one forward of every tower; by default of ``families.sample_inputs``.
    """
    family = families.of(model)
    run = forward or (lambda m: families.forward(m, families.sample_inputs(m)))
    calls = count_calls(model, run)
    records = []
    for name, quantizer in tensor_quantizers(model).items():
        holder, kind = _split(name)
        module = model.get_submodule(holder)
        records.append(
            Quantizer(
                name=name,
                kind=kind,
                tower=families.tower_of(family, holder),
                layer=families.layer_of(holder),
                module_class=original_class(module),
                module_kind=module_kind_of(family, module, kind, holder),
                format=format_name(quantizer),
                granularity=granularity(quantizer),
                enabled=bool(quantizer.is_enabled),
                dynamic=bool(getattr(quantizer, "_dynamic", False)) or _dynamic_blocks(quantizer),
                calls=calls[name],
                amax=_amax(module, kind, quantizer),
                constant=is_constant(quantizer),
            )
        )
    return tuple(records)


def is_constant(quantizer: Any) -> bool:
    """Whether the recipe fixes the range of this TensorQuantizer, so that nothing calibrates it."""
    return (
        bool(getattr(quantizer, "_use_constant_amax", False))
        or getattr(quantizer, "_constant_amax", None) is not None
    )


def range_of(quantizer: Any) -> Tensor | None:
    """Return the range that this TensorQuantizer uses, in the shape in which it is stored; None if
    it has no range of its own.

    ``use_constant_amax`` means E4M3's largest number, which ModelOpt keeps in no buffer.
    """
    if getattr(quantizer, "_use_constant_amax", False):
        return torch.tensor(torch.finfo(torch.float8_e4m3fn).max)
    amax: Tensor | None = getattr(quantizer, "_amax", None)
    return amax


def _amax(module: nn.Module, kind: str, quantizer: Any) -> Amax | None:
    amax = range_of(quantizer)
    if amax is None or amax.is_meta:
        return None
    weight = getattr(module, "weight", None) if kind.partition(".")[0] == "weight" else None
    if not isinstance(weight, Tensor) or weight.is_meta or bool((amax != 0).all()):
        return Amax.of(amax)
    return Amax.of(amax, (amax == 0).flatten().cpu() & _all_zeros(module, quantizer, amax.numel()))


@torch.no_grad()
def _all_zeros(module: nn.Module, quantizer: Any, count: int) -> Tensor:
    """Return which of the *count* parts of a weight with a range each are all zeros; False for all
    if the weight has another number of parts.
    """
    weight = module.get_parameter("weight").detach().float().cpu().numpy()
    sizes = {
        axis: size for axis, size in (quantizer.block_sizes or {}).items() if isinstance(axis, int)
    }
    layout = plan(weight.shape, None if sizes else quantizer.axis, sizes or None)
    largest = layout.amax(layout.cut(weight)).ravel()
    return (
        torch.from_numpy(largest == 0)
        if largest.size == count
        else torch.zeros(count, dtype=torch.bool)
    )


def holder_of(name: str) -> str:
    """Path of the module that holds the quantizer *name*."""
    return _split(name)[0]


def kind_of(name: str) -> str:
    """The kind of the quantizer *name*: ``weight``, ``q_bmm``; of a part of a sequence
    ``weight.0``.
    """
    return _split(name)[1]


def _split(name: str) -> tuple[str, str]:
    """``a.b.weight_quantizer.0`` to (``a.b``, ``weight.0``)."""
    match = re.fullmatch(r"(?:(.*)\.)?(\w+?)_quantizer(\.\d+)?", name)
    if match is None:
        holder, _, last = name.rpartition(".")
        return holder, last
    return match[1] or "", match[2] + (match[3] or "")


def original_class(module: nn.Module) -> str:
    """The class that ModelOpt's dynamic one stands for: ``QuantLinear`` is a ``Linear``."""
    return next(
        c.__name__ for c in type(module).__mro__ if not c.__module__.startswith("modelopt.")
    )


def module_kind_of(family: families.Family, module: nn.Module, kind: str, path: str) -> str:
    """Return the kind of the *module* at *path* that holds a quantizer of that *kind*: ``linear``,
    ``patch_embedding`` ...
    """
    if kind in ATTENTION_KINDS:
        return "attention"
    if isinstance(module, (nn.Conv2d, nn.Linear)) and re.search(family.patch_embedding, path):
        return "patch_embedding"
    if isinstance(module, nn.Conv2d):
        return "conv"
    classes = {nn.Linear: "linear", nn.Embedding: "embedding", nn.LayerNorm: "layernorm"}
    return next(
        (label for cls, label in classes.items() if isinstance(module, cls)),
        type(module).__name__.lower(),
    )


def format_name(quantizer: Any) -> str:
    """``E4M3``, ``INT8``, ``UINT8``, ``E2M1/E4M3`` (element / block scale) ... of a
    TensorQuantizer.
    """
    bits = quantizer.num_bits
    name = (
        f"E{bits[0]}M{bits[1]}"
        if isinstance(bits, tuple)
        else f"{'U' if quantizer.unsigned else ''}INT{bits}"
    )
    scale = (quantizer.block_sizes or {}).get("scale_bits")
    return f"{name}/E{scale[0]}M{scale[1]}" if isinstance(scale, (tuple, list)) else name


def granularity(quantizer: Any) -> str:
    """``per-tensor``, ``per-channel(0)``, ``block16`` ... of a TensorQuantizer."""
    blocks = {k: v for k, v in (quantizer.block_sizes or {}).items() if isinstance(k, int) and v}
    if blocks:
        return "block" + "x".join(str(blocks[axis]) for axis in sorted(blocks))
    if quantizer.block_sizes:
        return "per-token"
    axis = quantizer.axis
    if axis is None:
        return "per-tensor"
    return f"per-channel({','.join(map(str, axis)) if isinstance(axis, (tuple, list)) else axis})"


def _dynamic_blocks(quantizer: Any) -> bool:
    return bool((quantizer.block_sizes or {}).get("type") == "dynamic")


def diff(
    before: QuantizerMap, after: QuantizerMap, *, amax_tolerance: float | None = None
) -> list[str]:
    """Return the differences from *before* to *after*, grouped so that a person reads lines and not
    quantizers.

    Args:
        before: the map as it was.
        after: the map as it is.
        amax_tolerance: relative; None leaves amax out of the comparison, 0.0 asks for equal bits.

    Returns:
        Lines such as ``24 quantizers change: vision q_bmm E4M3 per-tensor to off, layers 0..23``;
            empty if equal.
    """
    old, new = ({q.name: q for q in m} for m in (before, after))
    groups: dict[tuple[str, str, str, str], list[Quantizer]] = defaultdict(list)
    for name in dict.fromkeys([*old, *new]):
        a, b = old.get(name), new.get(name)
        was, now = state(a), state(b)
        if was == now and a is not None and b is not None and amax_tolerance is not None:
            was, now = _amax_change(a, b, amax_tolerance)
        if was != now:
            q = b or a
            assert q is not None
            place = re.sub(r"^.*?(?:layers|blocks)\.\d+\.", "", q.module)
            groups[q.tower, f"{place} {q.kind}".strip(), was, now].append(q)
    # Places that change alike, in the same layers, share a line.
    alike: dict[tuple[str, str, str, tuple[str, ...]], list[tuple[str, int]]] = defaultdict(list)
    for (tower, place, was, now), members in groups.items():
        layers = tuple(sorted({str(q.layer) for q in members if q.layer is not None}, key=int))
        alike[tower, was, now, layers].append((place, len(members)))
    lines = []
    for (tower, was, now, layers), places in alike.items():
        total = sum(count for _, count in places)
        where = f", layers {number_ranges(layers).strip('{}')}" if layers else ""
        count = f"{total} quantizer{'s' if total > 1 else ''} change{'' if total > 1 else 's'}"
        lines.append(
            f"{count}: {tower} {_fold_places([place for place, _ in places])} {was} to {now}{where}"
        )
    return lines


def _fold_places(places: Sequence[str]) -> str:
    """``self_attn.q_proj input``, ``self_attn.k_proj input`` ... to ``self_attn.{q,k}_proj
    {input,weight}``.
    """
    kinds: dict[str, list[str]] = defaultdict(list)
    for place in places:
        module, _, kind = place.rpartition(" ")
        kinds[module].append(kind)
    modules: dict[tuple[str, str], list[str]] = defaultdict(list)
    for module, kind_names in kinds.items():
        holder, dot, leaf = module.rpartition(".")
        modules[holder + dot, fold_leaves(kind_names)].append(leaf)
    return ", ".join(
        f"{holder}{fold_leaves(leaves)} {leaf}".strip()
        for (holder, leaf), leaves in modules.items()
    )


def state(q: Quantizer | None) -> str:
    """Return how a difference of maps shows a quantizer: ``absent``, ``off``, or its format and
    what is unusual.
    """
    if q is None:
        return "absent"
    if not q.enabled:
        return "off"
    dynamic = " dynamic" if q.dynamic else ""
    constant = f" constant {q.amax.high:g}" if q.constant and q.amax is not None else ""
    calls = "" if q.calls == 1 else f" called {q.calls} times"
    return f"{q.format} {q.granularity}{dynamic}{constant}{calls}"


def _amax_change(a: Quantizer, b: Quantizer, tolerance: float) -> tuple[str, str]:
    # By their texts: NaN, which equals nothing, is the same in both.
    if not a.enabled or repr(a.amax) == repr(b.amax):
        return "", ""
    if a.amax is None or b.amax is None:
        return ("no amax", "an amax") if a.amax is None else ("an amax", "no amax")
    close = all(
        math.isclose(x, y, rel_tol=tolerance)
        for x, y in ((a.amax.low, b.amax.low), (a.amax.high, b.amax.high))
    )
    if tolerance > 0 and a.amax.count == b.amax.count and close:
        return "", ""
    return f"amax {a.amax.high:.6g}", f"{b.amax.high:.6g}"
