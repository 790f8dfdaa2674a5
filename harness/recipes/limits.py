"""Values of a recipe that ModelOpt's schema accepts and that ModelOpt cannot run, or not in reasonable time and memory.

Every rule was measured with ModelOpt 0.47: without it the value ends in a traceback inside ModelOpt, hours, gigabytes,
or in numbers that are not those of the format.  A rule looks at the values alone; what depends on the shape of a tensor
is in :mod:`harness.quantization.fit`.  Each function returns (what is wrong, the fix), or None.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

Finding = tuple[str, str] | None
Attributes = Mapping[str, Any]

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
MAX_REPEATS = 3  # of '*', '+' and '{' in one: each one more multiplies the time of matching by a name's length
#: FP16's largest number; and what ModelOpt takes for a range of zero.
LARGEST_AMAX, NO_AMAX = 65504.0, 2.0**-24

_E2M1, _E4M3, _E8M0 = (2, 1), (4, 3), (8, 0)
_BLOCK_FIX = "Write block_sizes: {-1: 32}, for a scale every 32 numbers of the last dimension."
_AXIS_FIX = "Write axis: null for one range, or axis: 0 for one per row of a weight."
_CONSTANT_FIX = "Write a number between 2**-24 and 65504."


# -- attributes of a quantizer ----------------------------------------------------------------------------------------


def attribute_problem(cfg: Attributes) -> Finding:
    """The first attribute of *cfg* (as ModelOpt's schema returns it) that ModelOpt or the gate cannot work with."""
    rules = (_not_judged, _bits, _axis, _blocks, _scales, _calibrator, _constant)
    return next((problem for rule in rules if (problem := rule(cfg))), None)


def _not_judged(cfg: Attributes) -> Finding:
    """What does more, or less, than quantize and dequantize: the gate has no definition to compare it with."""
    rotate = cfg.get("rotate")
    rotates = rotate.get("enable") if isinstance(rotate, Mapping) else getattr(rotate, "enable", rotate)
    found = {
        "rotate": rotates and "turns the tensor before it is quantized",
        "bias": cfg.get("bias") is not None and "shifts the range (affine quantization)",
        "backend": cfg.get("backend") is not None and f"is {cfg.get('backend')!r:.60}, a quantizer of its own",
        "fake_quant": cfg.get("fake_quant") is False and "is false: numbers would be stored packed, not simulated",
    }
    for name, what in found.items():
        if what:
            return f"{name} {what}, which the gate cannot judge", f"Remove {name}."
    return None


def _bits(cfg: Attributes) -> Finding:
    bits = cfg.get("num_bits", 8)
    if isinstance(bits, str):
        fix = f"Write {bits} without quotes." if bits.isdigit() else "Write a number from 2 to 16, or (4, 3) for FP8."
        return f"num_bits is the text {bits!r:.40}, expected a number or a format", fix
    if isinstance(bits, int) and bits not in INTEGER_BITS:
        return f"num_bits is {bits}, integers have 2 to 16 bits", "Write 8, or e4m3 for FP8."
    return None


def _axis(cfg: Attributes) -> Finding:
    axis = cfg.get("axis")
    if axis is None:
        return None
    axes = list(axis) if isinstance(axis, (list, tuple)) else [axis]
    if not axes:
        return "axis is an empty list, expected a dimension or null", _AXIS_FIX
    if far := [one for one in axes if one not in DIMENSIONS]:
        return f"axis is {far[0]}, and no tensor here has that dimension", _AXIS_FIX
    return None


def _blocks(cfg: Attributes) -> Finding:
    blocks = cfg.get("block_sizes")
    if blocks is None:
        return None
    sizes = {key: size for key, size in blocks.items() if isinstance(key, int)}
    if not sizes:
        return "block_sizes names no dimension", _BLOCK_FIX
    if far := [key for key in sizes if key not in DIMENSIONS]:
        return f"block_sizes names dimension {far[0]}, and no tensor here has that one", _BLOCK_FIX
    if len({size is None for size in sizes.values()}) > 1:
        return "block_sizes mixes null and numbers, which ModelOpt reads otherwise than it says", _BLOCK_FIX
    for size in sizes.values():
        if size is not None and not 1 <= size <= MAX_BLOCK:
            return f"block_sizes asks for blocks of {size}, expected 1 to {MAX_BLOCK}", _BLOCK_FIX
    if blocks.get("type") not in (None, "static", "dynamic"):
        return f"block_sizes has the type {blocks['type']!r:.40}", "Write type: static or type: dynamic."
    return None


def _scales(cfg: Attributes) -> Finding:
    """Formats of the scales of blocks, and the formats of numbers that need them."""
    blocks, bits = cfg.get("block_sizes") or {}, cfg.get("num_bits", 8)
    bits = tuple(bits) if isinstance(bits, list) else bits
    scale = blocks.get("scale_bits")
    scale = tuple(scale) if isinstance(scale, list) else scale
    if scale not in (None, 8, _E4M3, _E8M0):
        return f"scale_bits is {scale!r:.40}, ModelOpt has e4m3, e8m0 and 8", "Write scale_bits: e4m3."
    for size in (blocks.get("scale_block_sizes") or {}).values():
        if not isinstance(size, int) or not 1 <= size <= 1 << 20:
            return f"scale_block_sizes asks for blocks of {size!r:.40}", "Write scale_block_sizes: {-1: 256}."
    dynamic = blocks.get("type") == "dynamic" and any(isinstance(k, int) and size for k, size in blocks.items())
    if dynamic and (scale not in (_E4M3, _E8M0) or (isinstance(bits, int) and bits != 8)):
        name = f"INT{bits}" if isinstance(bits, int) else "this format"
        what = f"block_sizes has type: dynamic, which ModelOpt has for NVFP4 and MX only, not for {name}"
        return what, "Write type: static, or a format with scale_bits (NVFP4: num_bits: e2m1, scale_bits: e4m3)."
    if bits == _E2M1 and not dynamic and scale != _E4M3:
        fix = "Write block_sizes: {-1: 16, type: dynamic, scale_bits: e4m3} (NVFP4), or num_bits: e4m3."
        return "num_bits is e2m1 without blocks that have a scale of e4m3, which ModelOpt cannot compute", fix
    return None


def _calibrator(cfg: Attributes) -> Finding:
    calibrator = cfg.get("calibrator", "max")
    if calibrator == "histogram":
        return "calibrator is histogram, which no algorithm of ModelOpt can evaluate", "Write calibrator: max."
    is_constructor = isinstance(calibrator, Sequence) and not isinstance(calibrator, str)
    if is_constructor and not callable(next(iter(calibrator), None)):
        return f"the calibrator {calibrator!r:.80} is no class", "Write calibrator: max."
    return None


def _constant(cfg: Attributes) -> Finding:
    amax, fixed = cfg.get("constant_amax"), bool(cfg.get("use_constant_amax"))
    if amax is None and not fixed:
        return None
    name = "use_constant_amax" if fixed else "constant_amax"
    if cfg.get("type") == "dynamic":
        return f"{name} fixes the range and type: dynamic computes it from each tensor", "Remove one of the two."
    if amax is not None and not NO_AMAX < amax <= LARGEST_AMAX:
        return f"constant_amax is {amax:g}", _CONSTANT_FIX
    return None


# -- settings of an algorithm -----------------------------------------------------------------------------------------


def algorithm_problem(settings: Any) -> Finding:
    """The first setting of a method (an instance of ModelOpt's configuration class) that cannot run."""
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        is_number = isinstance(field.default, (int, float)) and not isinstance(field.default, bool)
        if is_number and value is None:
            return f"{name} is null, expected a number", f"Remove {name}, for ModelOpt's {field.default}."
        if isinstance(value, float) and not math.isfinite(value):
            return f"{name} is {value}, expected a finite number", f"Remove {name}, for ModelOpt's {field.default}."
        if hasattr(type(value), "model_fields") and name != "layerwise" and (inner := algorithm_problem(value)):
            return f"{name}: {inner[0]}", inner[1]
    rules = (_candidates, _clip, _low_rank, _gptq, _regexes)
    return next((problem for rule in rules if (problem := rule(settings))), None)


def _candidates(settings: Any) -> Finding:
    """Scales or exponents that a search tries."""
    start, stop = getattr(settings, "start_multiplier", None), getattr(settings, "stop_multiplier", None)
    if start is not None and stop is not None:
        if start > stop:
            fix = "Write a stop_multiplier above it."
            return f"start_multiplier is {start:g}, above stop_multiplier, {stop:g}", fix
        if problem := _too_many("step_size", settings.step_size, stop - start):
            return problem
    if (step := getattr(settings, "alpha_step", None)) is not None and (problem := _too_many("alpha_step", step, 1.0)):
        return problem
    if (step := getattr(settings, "shrink_step", None)) is not None:
        return _too_many("shrink_step", step, 1.0 - settings.min_clip_ratio)
    return None


def _too_many(name: str, step: float, width: float) -> Finding:
    if width / step + 1 <= MAX_CANDIDATES:
        return None
    smallest = width / (MAX_CANDIDATES - 1)
    what = f"{name} is {step:g}, which makes over {MAX_CANDIDATES} candidates"
    return what, f"Write {math.ceil(smallest * 1e6) / 1e6:g} or more."


def _clip(settings: Any) -> Finding:
    channels, tokens = getattr(settings, "max_co_batch_size", None), getattr(settings, "max_tokens_per_batch", None)
    if channels is None or tokens is None:
        return None
    for name, value in (("max_co_batch_size", channels), ("max_tokens_per_batch", tokens)):
        if value < 1:
            return f"{name} is {value}, expected 1 or more", f"Remove {name}, for ModelOpt's own."
    if channels * tokens > MAX_CLIP_BATCH:
        what = f"max_co_batch_size times max_tokens_per_batch is {channels * tokens:,}"
        return what, f"Write numbers whose product is at most {MAX_CLIP_BATCH:,}."
    return None


def _low_rank(settings: Any) -> Finding:
    rank = getattr(settings, "lowrank", None)
    if rank is not None and not 1 <= rank <= MAX_LOW_RANK:
        return f"lowrank is {rank:,}, expected 1 to {MAX_LOW_RANK:,}", "Write lowrank: 32, ModelOpt's own."
    return None


def _gptq(settings: Any) -> Finding:
    size = getattr(settings, "block_size", None)
    if size is not None and not 1 <= size <= MAX_GPTQ_BLOCK:
        return f"block_size is {size:,}, expected 1 to {MAX_GPTQ_BLOCK:,}", "Write block_size: 128."
    return None


def _regexes(settings: Any) -> Finding:
    """Regular expressions of a pull request, which ModelOpt matches against every module's name."""
    for state in (getattr(settings, "shared_states", None) or {}).values():
        for pattern in state.get("patterns", []):
            repeats = len(re.findall(r"[*+{]", pattern))
            if len(pattern) > MAX_REGEX or repeats > MAX_REPEATS or re.search(r"\)[*+{]", pattern):
                what = f"the regular expression {pattern!r:.60} in shared_states can take for ever to match"
                return what, f"Write one with at most {MAX_REPEATS} of '*', '+' and '{{', none behind a group."
    return None
