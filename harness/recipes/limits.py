"""Values of a recipe that ModelOpt's schema accepts and that ModelOpt cannot run, or not in
reasonable time and memory.

Every rule was measured with ModelOpt 0.47: without it the value ends in a traceback inside
ModelOpt, hours, gigabytes, or in numbers that are not those of the format.  A rule looks at the
values alone; what depends on the shape of a tensor is in :mod:`harness.quantization.fit`.  Each
function returns (what is wrong, the fix), or None.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

from typing_extensions import TypedDict

Finding = tuple[str, str] | None


class QuantizerAttributes(TypedDict, total=False):
    """Attributes of a quantizer as ModelOpt's schema returns them, as far as rules look at them."""

    num_bits: int | str | list[int] | tuple[int, ...]
    axis: int | list[int] | tuple[int, ...] | None
    block_sizes: Mapping[object, BlockValue] | None
    type: str
    calibrator: str | Sequence[object]
    constant_amax: float | None
    use_constant_amax: bool
    rotate: object
    bias: object
    backend: object
    fake_quant: bool


class MethodSettings(TypedDict, total=False):
    """Settings of a calibration method, as far as rules look at them."""

    start_multiplier: float | None
    stop_multiplier: float | None
    step_size: float
    alpha_step: float | None
    shrink_step: float | None
    min_clip_ratio: float
    max_co_batch_size: int | None
    max_tokens_per_batch: int | None
    lowrank: int | None
    block_size: int | None
    shared_states: Mapping[str, Mapping[str, list[str]]] | None


#: A size of blocks, bits of their scales, a type, sizes of blocks of scales.
BlockValue: TypeAlias = "int | str | list[int] | tuple[int, ...] | Mapping[int, int] | None"
Attributes = Mapping[str, object]

INTEGER_BITS = range(2, 17)
#: Dimensions of a tensor that a quantizer can meet, counted from the front and from the back.
DIMENSIONS = range(-5, 5)
MAX_BLOCK = 4096  # numbers that share a scale; ModelOpt pads every row of a weight to a whole block
MAX_SEQUENCE = 4  # quantizers in a row at one place
MAX_CANDIDATES = 500  # that a search for a scale tries, each on every weight
MAX_LOW_RANK = 1024  # of SVDQuant; ModelOpt pads smaller weights up to it
MAX_CLIP_BATCH = 2**18  # output channels times tokens at once; four times ModelOpt's default
MAX_GPTQ_BLOCK = 1 << 16
MAX_REGEX = 256  # characters of a pattern in shared_states
# of '*', '+' and '{' in one: each one more multiplies the time of matching by a name's length
MAX_REPEATS = 3
#: FP16's largest number; and what ModelOpt takes for a range of zero.
LARGEST_AMAX, NO_AMAX = 65504.0, 2.0**-24

_E2M1, _E4M3, _E8M0 = (2, 1), (4, 3), (8, 0)
_BLOCK_FIX = "Write block_sizes: {-1: 32}, for a scale every 32 numbers of the last dimension."
_AXIS_FIX = "Write axis: null for one range, or axis: 0 for one per row of a weight."
_CONSTANT_FIX = "Write a number between 2**-24 and 65504."


# -- attributes of a quantizer ---------------------------------------------------------------------


def attribute_problem(cfg: Attributes) -> Finding:
    """The first attribute of *cfg* (as ModelOpt's schema returns it) that ModelOpt or the gate
    cannot work with.
    """
    rules = (_not_judged, _bits, _axis, _blocks, _scales, _calibrator, _constant)
    attributes = cast("QuantizerAttributes", cfg)
    return next((problem for rule in rules if (problem := rule(attributes))), None)


def _not_judged(cfg: QuantizerAttributes) -> Finding:
    """What does more, or less, than quantize and dequantize: the gate has no definition to compare
    it with.
    """
    rotate = cfg.get("rotate")
    rotates = (
        rotate.get("enable") if isinstance(rotate, Mapping) else getattr(rotate, "enable", rotate)
    )
    refused_settings = {
        "rotate": rotates and "turns the tensor before it is quantized",
        "bias": cfg.get("bias") is not None and "shifts the range (affine quantization)",
        "backend": cfg.get("backend") is not None
        and f"is {cfg.get('backend')!r:.60}, a quantizer of its own",
        "fake_quant": cfg.get("fake_quant") is False
        and "is false: numbers would be stored packed, not simulated",
    }
    for name, what in refused_settings.items():
        if what:
            return f"{name} {what}, which the gate cannot judge", f"Remove {name}."
    return None


def _bits(cfg: QuantizerAttributes) -> Finding:
    bits = cfg.get("num_bits", 8)
    if isinstance(bits, str):
        fix = (
            f"Write {bits} without quotes."
            if bits.isdigit()
            else "Write a number from 2 to 16, or (4, 3) for FP8."
        )
        return f"num_bits is the text {bits!r:.40}, expected a number or a format", fix
    if isinstance(bits, int) and bits not in INTEGER_BITS:
        return f"num_bits is {bits}, integers have 2 to 16 bits", "Write 8, or e4m3 for FP8."
    return None


def _axis(cfg: QuantizerAttributes) -> Finding:
    axis = cfg.get("axis")
    if axis is None:
        return None
    axes = list(axis) if isinstance(axis, (list, tuple)) else [axis]
    if not axes:
        return "axis is an empty list, expected a dimension or null", _AXIS_FIX
    if far := [axis_ for axis_ in axes if axis_ not in DIMENSIONS]:
        return f"axis is {far[0]}, and no tensor here has that dimension", _AXIS_FIX
    return None


def _blocks(cfg: QuantizerAttributes) -> Finding:
    blocks = cfg.get("block_sizes")
    if blocks is None:
        return None
    sizes = {key: size for key, size in blocks.items() if isinstance(key, int)}
    if not sizes:
        return "block_sizes names no dimension", _BLOCK_FIX
    if far := [key for key in sizes if key not in DIMENSIONS]:
        return f"block_sizes names dimension {far[0]}, and no tensor here has that one", _BLOCK_FIX
    if len({size is None for size in sizes.values()}) > 1:
        return (
            "block_sizes mixes null and numbers, which ModelOpt reads otherwise than it says",
            _BLOCK_FIX,
        )
    for size in sizes.values():
        if isinstance(size, int) and not 1 <= size <= MAX_BLOCK:
            return f"block_sizes asks for blocks of {size}, expected 1 to {MAX_BLOCK}", _BLOCK_FIX
    if blocks.get("type") not in (None, "static", "dynamic"):
        return (
            f"block_sizes has the type {blocks['type']!r:.40}",
            "Write type: static or type: dynamic.",
        )
    return None


def _scales(cfg: QuantizerAttributes) -> Finding:
    """Formats of the scales of blocks, and the formats of numbers that need them."""
    blocks, bits = cfg.get("block_sizes") or {}, cfg.get("num_bits", 8)
    bits = tuple(bits) if isinstance(bits, list) else bits
    scale = blocks.get("scale_bits")
    scale = tuple(scale) if isinstance(scale, list) else scale
    if scale not in (None, 8, _E4M3, _E8M0):
        return (
            f"scale_bits is {scale!r:.40}, ModelOpt has e4m3, e8m0 and 8",
            "Write scale_bits: e4m3.",
        )
    of_scales = blocks.get("scale_block_sizes") or {}
    if not isinstance(of_scales, Mapping):
        return (
            f"scale_block_sizes is {of_scales!r:.40}, expected a mapping",
            "Write scale_block_sizes: {-1: 256}.",
        )
    for size in of_scales.values():
        if not isinstance(size, int) or not 1 <= size <= 1 << 20:
            return (
                f"scale_block_sizes asks for blocks of {size!r:.40}",
                "Write scale_block_sizes: {-1: 256}.",
            )
    dynamic = blocks.get("type") == "dynamic" and any(
        isinstance(k, int) and size for k, size in blocks.items()
    )
    if dynamic and (scale not in (_E4M3, _E8M0) or (isinstance(bits, int) and bits != 8)):
        name = f"INT{bits}" if isinstance(bits, int) else "this format"
        what = (
            f"block_sizes has type: dynamic, which ModelOpt has for NVFP4 and MX only, not for "
            f"{name}"
        )
        return (
            what,
            "Write type: static, or a format with scale_bits (NVFP4: num_bits: e2m1, scale_bits: "
            "e4m3).",
        )
    if bits == _E2M1 and not dynamic and scale != _E4M3:
        fix = (
            "Write block_sizes: {-1: 16, type: dynamic, scale_bits: e4m3} (NVFP4), or num_bits: "
            "e4m3."
        )
        return (
            "num_bits is e2m1 without blocks that have a scale of e4m3, which ModelOpt cannot "
            "compute",
            fix,
        )
    return None


def _calibrator(cfg: QuantizerAttributes) -> Finding:
    calibrator = cfg.get("calibrator", "max")
    if calibrator == "histogram":
        return (
            "calibrator is histogram, which no algorithm of ModelOpt can evaluate",
            "Write calibrator: max.",
        )
    is_constructor = isinstance(calibrator, Sequence) and not isinstance(calibrator, str)
    if is_constructor and not callable(next(iter(calibrator), None)):
        return f"the calibrator {list(calibrator)!r:.80} is not a class", "Write calibrator: max."
    return None


def _constant(cfg: QuantizerAttributes) -> Finding:
    amax, fixed = cfg.get("constant_amax"), bool(cfg.get("use_constant_amax"))
    if amax is None and not fixed:
        return None
    name = "use_constant_amax" if fixed else "constant_amax"
    if cfg.get("type") == "dynamic":
        return (
            f"{name} fixes the range and type: dynamic computes it from each tensor",
            "Remove one of the two.",
        )
    if amax is not None and not NO_AMAX < amax <= LARGEST_AMAX:
        return f"constant_amax is {amax:g}", _CONSTANT_FIX
    return None


#: Formats of numbers that ModelOpt has, as (exponent, mantissa).
_FORMATS = (_E4M3, (5, 2), _E2M1, (1, 2), (0, 3), (3, 0), (3, 2), (2, 3))
_BLOCK_KEYS = ("type", "scale_bits", "scale_block_sizes", "four_over_six")


def attributes_of(entry: Mapping[str, object]) -> list[dict[str, object]]:
    """Return the attributes that an entry gives, of each quantizer in a row."""
    cfg = entry.get("cfg")
    if isinstance(cfg, dict):
        return [cfg]
    return (
        [attributes for attributes in cfg if isinstance(attributes, dict)]
        if isinstance(cfg, list)
        else []
    )


def refused_entry(entry: Mapping[str, object]) -> Finding:
    """What ModelOpt's validators refuse in an entry that has the right types; see
    :func:`refused_attributes`.
    """
    cfg = entry.get("cfg")
    is_empty = cfg in ({}, []) or (
        isinstance(cfg, list) and all(attributes == {} for attributes in cfg)
    )
    if cfg is not None and is_empty and entry.get("enable", True):
        return (
            "cfg is empty",
            "Write attributes, such as num_bits: e4m3, or remove cfg and write enable: true.",
        )
    if "cfg" not in entry and "enable" not in entry:
        return "the entry says neither cfg nor enable", "Write cfg: {...}, or enable: false."
    return None


def refused_attributes(cfg: Attributes) -> Finding:
    """What ModelOpt's validators refuse in attributes that have the right types.

    For the lint, which does not import ModelOpt; where ModelOpt is there it decides itself, and a
    test compares.
    """
    if cfg.get("enable") is True and len(cfg) == 1:
        return "cfg holds enable: true alone", "Write the attributes, such as num_bits: e4m3."
    bits, blocks = cfg.get("num_bits", 8), cfg.get("block_sizes")
    bits = tuple(bits) if isinstance(bits, list) else bits
    blocks = blocks if isinstance(blocks, Mapping) else None
    if isinstance(bits, tuple) and cfg.get("backend") is None:
        if bits not in _FORMATS:
            return (
                f"num_bits is {bits}, which is not a format of ModelOpt",
                "Write e4m3, e5m2, e3m2, e2m3 or e2m1.",
            )
        if bits not in (_E4M3, _E2M1) and (blocks or {}).get("type") != "dynamic":
            fix = "Write block_sizes: {-1: 32, type: dynamic, scale_bits: e8m0}."
            return f"num_bits is {bits}, which ModelOpt has in dynamic blocks only", fix
    if blocks is not None and (problem := _refused_blocks(cfg, blocks)):
        return problem
    if cfg.get("use_constant_amax") and cfg.get("constant_amax") is not None:
        return "use_constant_amax and constant_amax are both set", "Remove one of the two."
    if cfg.get("learn_amax") is True:
        return "learn_amax is true, which ModelOpt no longer has", "Remove learn_amax."
    if isinstance(calibrator := cfg.get("calibrator", "max"), str) and calibrator not in (
        "max",
        "histogram",
    ):
        return f"calibrator is {calibrator!r:.40}", "Write calibrator: max."
    return None


def _refused_blocks(cfg: Attributes, blocks: Mapping[object, object]) -> Finding:
    if cfg.get("axis") is not None:
        return "axis and block_sizes are both set", "Remove one of the two."
    if unknown := [key for key in blocks if isinstance(key, str) and key not in _BLOCK_KEYS]:
        return (
            f"block_sizes has the key {unknown[0]!r:.40}",
            f"Known: dimensions, {', '.join(_BLOCK_KEYS)}.",
        )
    sizes = [key for key in blocks if not isinstance(key, str)]
    if odd := [key for key in sizes if not isinstance(blocks[key], (int, type(None)))]:
        return (
            f"block_sizes asks for blocks of {blocks[odd[0]]!r:.40}",
            "Write block_sizes: {-1: 16}.",
        )
    if blocks.get("type") == "dynamic" and len(sizes) != 1:
        return (
            "block_sizes has type: dynamic, which needs one dimension",
            "Write block_sizes: {-1: 16, type: dynamic}.",
        )
    return None


# -- settings of an algorithm ----------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """Settings of a method: their values with ModelOpt's defaults filled in (nested ones too), and
    these defaults.
    """

    values: Mapping[str, object]
    defaults: Mapping[str, object]


def algorithm_problem(settings: Settings) -> Finding:
    """The first setting of a method that cannot run."""
    for name, default in settings.defaults.items():
        value = settings.values[name]
        is_number = isinstance(default, (int, float)) and not isinstance(default, bool)
        if is_number and value is None:
            return f"{name} is null, expected a number", f"Remove {name}, for ModelOpt's {default}."
        if isinstance(value, float) and not math.isfinite(value):
            return (
                f"{name} is {value}, expected a finite number",
                f"Remove {name}, for ModelOpt's {default}.",
            )
        if (
            isinstance(value, Settings)
            and name != "layerwise"
            and (inner := algorithm_problem(value))
        ):
            return f"{name}: {inner[0]}", inner[1]
    rules = (_candidates, _clip, _low_rank, _gptq, _regexes)
    values = cast("MethodSettings", settings.values)
    return next((problem for rule in rules if (problem := rule(values))), None)


def _candidates(values: MethodSettings) -> Finding:
    """Scales or exponents that a search tries."""
    start, stop = values.get("start_multiplier"), values.get("stop_multiplier")
    if start is not None and stop is not None:
        if start > stop:
            fix = "Write a stop_multiplier above it."
            return f"start_multiplier is {start:g}, above stop_multiplier, {stop:g}", fix
        if problem := _too_many("step_size", values["step_size"], stop - start):
            return problem
    if (step := values.get("alpha_step")) is not None and (
        problem := _too_many("alpha_step", step, 1.0)
    ):
        return problem
    if (step := values.get("shrink_step")) is not None:
        return _too_many("shrink_step", step, 1.0 - values["min_clip_ratio"])
    return None


def _too_many(name: str, step: float, width: float) -> Finding:
    if width / step + 1 <= MAX_CANDIDATES:
        return None
    smallest = width / (MAX_CANDIDATES - 1)
    what = f"{name} is {step:g}, which makes over {MAX_CANDIDATES} candidates"
    return what, f"Write {math.ceil(smallest * 1e6) / 1e6:g} or more."


def _clip(values: MethodSettings) -> Finding:
    channels, tokens = values.get("max_co_batch_size"), values.get("max_tokens_per_batch")
    if channels is None or tokens is None:
        return None
    for name, value in (("max_co_batch_size", channels), ("max_tokens_per_batch", tokens)):
        if value < 1:
            return f"{name} is {value}, expected 1 or more", f"Remove {name}, for ModelOpt's own."
    if channels * tokens > MAX_CLIP_BATCH:
        what = f"max_co_batch_size times max_tokens_per_batch is {channels * tokens:,}"
        return what, f"Write numbers whose product is at most {MAX_CLIP_BATCH:,}."
    return None


def _low_rank(values: MethodSettings) -> Finding:
    rank = values.get("lowrank")
    if rank is not None and not 1 <= rank <= MAX_LOW_RANK:
        return (
            f"lowrank is {rank:,}, expected 1 to {MAX_LOW_RANK:,}",
            "Write lowrank: 32, ModelOpt's own.",
        )
    return None


def _gptq(values: MethodSettings) -> Finding:
    size = values.get("block_size")
    if size is not None and not 1 <= size <= MAX_GPTQ_BLOCK:
        return f"block_size is {size:,}, expected 1 to {MAX_GPTQ_BLOCK:,}", "Write block_size: 128."
    return None


def _regexes(values: MethodSettings) -> Finding:
    """Regular expressions of a pull request, which ModelOpt matches against every module's name."""
    for state in (values.get("shared_states") or {}).values():
        for pattern in state.get("patterns", []):
            repeats = len(re.findall(r"[*+{]", pattern))
            if len(pattern) > MAX_REGEX or repeats > MAX_REPEATS or re.search(r"\)[*+{]", pattern):
                what = (
                    f"the regular expression {pattern!r:.60} in shared_states can take for ever to "
                    f"match"
                )
                return (
                    what,
                    f"Write one with at most {MAX_REPEATS} of '*', '+' and "
                    f"'{{', none behind a group.",
                )
    return None
