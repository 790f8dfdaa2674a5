"""Does the quantized model agree with what it was made from: recipe, data, reference, and its own
folded copy?

The map says what the quantizers are and the oracle that each computes what *it* is set to.  Neither
notices a quantizer that ModelOpt set to something else than the recipe says, nor a range that the
calibration data never gave.  No record is needed for either: both are derived again here.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from harness.models import families
from harness.problems import Problem
from harness.quantization.magnitudes import Axes, Magnitudes
from harness.quantization.maps import (
    QuantizerMap,
    is_constant,
    quantizer_map,
    range_of,
    tensor_quantizers,
)
from harness.recipes.algorithms import methods
from harness.recipes.applied import applied_to, place_of
from harness.recipes.loading import Recipe

#: Attributes of a quantizer that a recipe decides, with what ModelOpt takes where an entry says
#: nothing.
DEFAULTS: dict[str, object] = {
    "num_bits": 8,
    "axis": None,
    "unsigned": False,
    "narrow_range": False,
    "block_sizes": None,
    "use_constant_amax": False,
}


def with_recipe(
    model: nn.Module, recipe: Recipe, quantizers: QuantizerMap | None = None
) -> list[Problem]:
    """Return the quantizers of *model* that differ from the recipe's last matching entry: on or
    off, format, granularity.

    Args:
        model: as ``mtq.quantize`` left it.
        recipe: what was asked for.
        quantizers: the model's map, where it has been taken already.
    """
    names = quantizers or quantizer_map(model)
    done = applied_to(names, recipe.entries)
    decided = done.settings
    never_on = {
        place_of(name)
        for name, quantizer in tensor_quantizers(model).items()
        if _is_never_on(quantizer)
    }
    hopeless = [
        f"entry {n}, {entry.shown!r} ({entry.origin})"
        for n, (entry, touched) in enumerate(zip(recipe.entries, done.touched, strict=True), 1)
        if entry.enable and touched and touched <= never_on
    ]
    switched: list[str] = []
    other: list[str] = []
    hollow: list[str] = []
    unasked: list[str] = []
    for name, quantizer in tensor_quantizers(model).items():
        on = bool(quantizer.is_enabled)
        if on and (
            not getattr(quantizer, "_if_quant", True) or getattr(quantizer, "_if_calib", False)
        ):
            hollow.append(name)
        wanted = decided.get(name)
        if wanted is None:
            unasked += [name] if on else []
        elif on != wanted.enable:
            switched += [] if _is_never_on(quantizer) else [f"{name} is {'on' if on else 'off'}"]
        elif on and wanted.shaped is not None:
            origin = recipe.entries[wanted.shaped].origin
            other += [
                f"{name}: {line}"
                for line in _differences(quantizer, dict(wanted.cfg or {}), origin)
            ]
    problems_by_rule = (
        (
            "not as the recipe switches it",
            "are on where the recipe turns them off, or the reverse",
            switched,
        ),
        (
            "not what the recipe says",
            "have other attributes than the recipe's last matching entry gives them",
            other,
        ),
        (
            "enabled and passed through",
            "are enabled and do not quantize, as calibration left them",
            hollow,
        ),
        ("on without being asked for", "are on and no entry of the recipe speaks of them", unasked),
    )
    problems = [
        Problem(rule, f"{len(lines)} quantizers {what} (recipe {recipe.name}):", _some(lines), _FIX)
        for rule, what, lines in problems_by_rule
        if lines
    ]
    if hopeless:
        what = (
            f"{len(hopeless)} entries of recipe {recipe.name} enable only inputs of embeddings, "
            f"which stay off:"
        )
        fix = (
            "The input of an embedding is a word's number, which ModelOpt never quantizes: remove "
            "these entries."
        )
        problems.append(Problem("enables what stays off", what, tuple(hopeless), fix))
    return problems


_FIX = (
    "Put a deny-all entry ('*', enable: false) first and look at how this ModelOpt reads the "
    "entries: "
    "mtq.print_quant_summary(model) shows what it made of them."
)


def _some(lines: list[str], limit: int = 12) -> tuple[str, ...]:
    return (*lines[:limit], *([f"... and {len(lines) - limit} more"] if len(lines) > limit else []))


def _is_never_on(quantizer: object) -> bool:
    """Whether ModelOpt keeps this quantizer off whatever a recipe says: the input of an embedding
    is the number of a word.
    """
    return type(quantizer).__name__ == "HardDisabledTensorQuantizer"


def _differences(quantizer: Any, cfg: dict[str, Any], origin: str) -> list[str]:
    """Return the attributes of *quantizer* that differ from *cfg*, which is written at *origin*."""
    lines = []
    for attribute, default in DEFAULTS.items():
        actual = _plain(attribute, getattr(quantizer, f"_{attribute}", default))
        wanted = _plain(attribute, cfg.get(attribute, default))
        # Blocks are laid out when the first tensor comes, and the axis then describes the layout.
        if attribute == "axis" and cfg.get("block_sizes"):
            continue
        if (
            attribute == "block_sizes"
            and actual is None
            and _shares_whole_dimensions(quantizer, cfg)
        ):
            continue
        if wanted != actual:
            lines.append(f"{attribute} is {actual}, the recipe says {wanted} ({origin})")
    wanted_dynamic = cfg.get("type") == "dynamic"
    if bool(getattr(quantizer, "_dynamic", False)) != wanted_dynamic and not cfg.get("block_sizes"):
        actual = "static" if wanted_dynamic else "dynamic"
        lines.append(f"scales are {actual}, the recipe says otherwise ({origin})")
    constant = cfg.get("constant_amax")
    if constant is not None:
        amax = range_of(quantizer)
        if amax is None or not bool((amax.float() == torch.tensor(float(constant)).to(amax)).all()):
            shown = "missing" if amax is None else amax.flatten().tolist()[:3]
            lines.append(f"the range is {shown}, the recipe fixes {constant} ({origin})")
    return lines


def _shares_whole_dimensions(quantizer: Any, cfg: dict[str, Any]) -> bool:
    """Whether *quantizer* has one range along each dimension that *cfg* names whole (``block_sizes:
    {-1: null}``).

    ModelOpt turns such blocks into an axis of the other dimensions once it has seen a tensor.
    """
    blocks = {
        key: size for key, size in (cfg.get("block_sizes") or {}).items() if isinstance(key, int)
    }
    if not blocks or any(size is not None for size in blocks.values()):
        return False
    own_axes = _kept(quantizer.axis)
    rank = len(own_axes) + len(blocks)
    return {axis % rank for axis in blocks} == set(range(rank)) - {axis % rank for axis in own_axes}


def _plain(attribute: str, value: Any) -> Any:
    """Return one form for equal values: ``e4m3`` and (4, 3), lists and tuples, blocks' keys as
    text.
    """
    if attribute == "num_bits" and isinstance(value, str):
        match = re.fullmatch(r"e(\d+)m(\d+)", value.lower())
        return (int(match[1]), int(match[2])) if match else value
    if isinstance(value, list):
        return tuple(value)
    if attribute == "block_sizes" and value is not None:
        plain = {
            int(k) if re.fullmatch(r"-?\d+", str(k)) else k: _plain("num_bits", v)
            for k, v in dict(value).items()
        }
        return {k: v for k, v in plain.items() if v is not None and (k, v) != ("type", "static")}
    return value


# --------------------------------------------------------------------------------------------------


def calibrates_by_max(recipe: Recipe) -> bool:
    """Whether the recipe's static ranges are the largest magnitudes that calibration sees, and
    nothing else.
    """
    return set(methods(recipe.algorithm)) == {"max"}


def with_data(
    model: nn.Module, recipe: Recipe, data: Magnitudes, tolerance: float = 0.0
) -> list[Problem]:
    """Return the static ranges of *model* that are not the largest magnitudes of the calibration
    data at that place.

    Args:
        model: calibrated by max, not folded.
        recipe: what was asked for; under another algorithm than max nothing is said.
        data: of the reference that *model* was made from.
        tolerance: relative; 0 asks for equal bits.
    """
    if not calibrates_by_max(recipe):
        return []
    static = {
        name: quantizer
        for name, quantizer in tensor_quantizers(model).items()
        if quantizer.is_enabled
        and getattr(quantizer, "_amax", None) is not None
        and quantizer.block_sizes is None
        and not is_constant(quantizer)
    }
    seen = data.along({name: _kept(quantizer.axis) for name, quantizer in static.items()})
    wrong = []
    for name in seen:
        stored, measured = static[name]._amax.float().cpu().flatten(), seen[name].flatten()
        if len(stored) != len(measured):
            wrong.append(f"{name}: {len(stored)} ranges, the data give {len(measured)}")
        elif not torch.allclose(stored, measured, rtol=tolerance, atol=0.0):
            at = int((stored - measured).abs().nan_to_num(torch.inf).argmax())
            wrong.append(
                f"{name}: amax is {float(stored[at]):.6g}, the data give {float(measured[at]):.6g}"
            )
    if not wrong:
        return []
    what = f"{len(wrong)} calibrated ranges are not the largest magnitude in the calibration data:"
    fix = (
        "The calibration ran on other data, another model or not at all there, or a range was "
        "changed after it."
    )
    return [Problem("range is not the data's", what, _some(wrong), fix)]


def _kept(axis: Any) -> Axes:
    return () if axis is None else (axis,) if isinstance(axis, int) else tuple(axis)


#: How far a model with its quantizers off may be from the reference, by calibration method: the
#: relative error of an output's norm.  Max calibration touches no weight; scales that move between
#: weights and inputs round in FP16.
MOVED = {"max": 0.0, "smoothquant": 0.02, "awq_lite": 0.02, "awq_clip": 0.0, "awq_full": 0.02}


@torch.no_grad()
def with_reference(
    model: nn.Module,
    reference: nn.Module,
    recipe: Recipe,
    inputs: Mapping[str, Tensor],
    deterministic: bool = True,
) -> list[Problem]:
    """Return the outputs of *model*, with every quantizer off, that differ from the reference's.

    Quantizers aside, a quantized model is the reference: what differs comes from a rewritten
    attention (a lost mask, another scale), or from weights that were changed and not changed back.
    Methods that adapt the weights to the rounding have no such property: nothing is said of
    SVDQuant, and of GPTQ that it did adapt them.

    Args:
        model: as ``mtq.quantize`` left it, not folded.
        reference: unquantized, on the same device and in the same dtype.
        recipe: whose method decides what must be equal.
        inputs: of one forward.
        deterministic: False where equal work need not give equal bits; a small error is then let
            pass.
    """
    used = methods(recipe.algorithm)
    if used[-1:] == ("gptq",):
        return _only_rounded(model, reference)
    if not set(used) <= set(MOVED):
        return []
    plain = copy.deepcopy(model)
    for quantizer in tensor_quantizers(plain).values():
        quantizer.disable()
    expected, actual = families.forward(reference, inputs), families.forward(plain, inputs)
    allowed = max(sum(MOVED[method] for method in used), 0.0 if deterministic else 2.0**-8)
    lines = []
    for name, value in expected.items():
        if not torch.equal(actual[name], value):
            error = float((actual[name].double() - value.double()).norm() / value.double().norm())
            # NaN is not a small error.
            lines += (
                []
                if error <= allowed
                else [f"{name}: relative error {error:.2g}, allowed {allowed:.2g}"]
            )
    if not lines:
        return []
    what = (
        f"with every quantizer off, {len(lines)} outputs of the quantized model are not the "
        f"reference's:"
    )
    fix = (
        "Look at the attention class (--attention): the mask and the scale must reach "
        "scaled_dot_product_attention. "
        "Then at the weights: calibration must leave them, or give the inputs the inverse of what "
        "it does to them."
    )
    return [Problem("not the reference underneath", what, tuple(lines), fix)]


def _only_rounded(model: nn.Module, reference: nn.Module) -> list[Problem]:
    """Return the linear layers of *model* whose weights GPTQ left equal to the rounded weights of
    the reference.

    ModelOpt 0.47 takes the identity for the inverse Hessian where that has no Cholesky factor,
    which makes no error good, and says so in a print that most callers silence.
    """
    enabled = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and getattr(getattr(module, "weight_quantizer", None), "is_enabled", False)
    }
    only = []
    for name, module in enabled.items():
        quantizer: Any = module.weight_quantizer
        if torch.equal(
            quantizer(module.weight), quantizer(reference.get_parameter(f"{name}.weight"))
        ):
            only.append(name)
    if not only:
        return []
    what = (
        f"GPTQ adapted nothing in {len(only)} of {len(enabled)} Linear layers; their weights are "
        f"only rounded:"
    )
    fix = (
        "Their Hessian has no inverse, and ModelOpt then goes on without one: calibrate on more "
        "pairs than a layer has "
        "inputs (--calibration-size), or raise perc_damp (0.01 is the method's own)."
    )
    return [Problem("GPTQ did nothing", what, tuple(only), fix)]


@torch.no_grad()
def with_folded(model: nn.Module, folded: nn.Module, inputs: Mapping[str, Tensor]) -> list[Problem]:
    """Return the outputs of the folded copy, on which accuracy is measured, that differ in a bit
    from those of the quantized model.
    """
    expected, actual = families.forward(model, inputs), families.forward(folded, inputs)
    lines = []
    for name, value in expected.items():
        if not torch.equal(actual[name], value):
            lines.append(
                f"{name}: {int((actual[name] != value).sum())} of {value.numel()} elements differ"
            )
    if not lines:
        return []
    what = f"folding the weights changes {len(lines)} outputs of the model:"
    fix = "mtq.fold_weight must leave every bit as it is: accuracy is measured on the folded copy."
    return [Problem("folded model differs", what, tuple(lines), fix)]
