"""The quantizer map: every quantizer of a model, and what must be true of it.

ModelOpt prints a summary of what is *configured*.  The map says what *happens*: it is taken from the model's own
modules after calibration, with the calls of one forward of every tower counted.
"""

from __future__ import annotations

import fnmatch
import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from harness import families
from harness.recipes import Entry, Recipe
from harness.shapes import ShapesOnly

#: The quantizers inside an attention block, of both attention classes of ModelOpt.
ATTENTION_KINDS = ("q_bmm", "k_bmm", "v_bmm", "p_bmm", "softmax", "bmm2_output")
#: The four around scaled-dot-product attention, which are quantized together or not at all.
FUSED_KINDS = ("q_bmm", "k_bmm", "v_bmm", "bmm2_output")
#: What every tower must have quantized, unless the budgets file declares otherwise.
COVERED_KINDS = ("linear", "patch_embedding", "attention")


@dataclass(frozen=True)
class Amax:
    """A quantizer's calibrated range: how many values, their extremes, and the SHA-256 of their fp32 bytes."""

    count: int
    low: float
    high: float
    digest: str

    @classmethod
    def of(cls, amax: Tensor) -> Amax:
        """Summarise an amax tensor of any shape and float dtype."""
        values = amax.detach().float().cpu().contiguous().flatten()
        digest = hashlib.sha256(values.numpy().tobytes()).hexdigest()[:16]
        low, high = (values.min().item(), values.max().item()) if values.numel() else (math.nan, math.nan)
        return cls(values.numel(), low, high, digest)

    @property
    def usable(self) -> bool:
        """Every value finite and above zero."""
        return self.count > 0 and math.isfinite(self.high) and math.isfinite(self.low) and self.low > 0


@dataclass(frozen=True)
class Quantizer:
    """One quantizer.  ``calls`` are those of one forward of every tower; ``amax`` is None where there is none."""

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

    @property
    def module(self) -> str:
        """Path of the module that holds the quantizer."""
        return self.name.partition("_quantizer")[0].rpartition(".")[0]

    def as_dict(self) -> dict[str, Any]:
        """A plain record for JSON."""
        return asdict(self)


QuantizerMap = tuple[Quantizer, ...]


def of_dict(attributes: Mapping[str, Any]) -> Quantizer:
    """A quantizer from its ``as_dict``; what another version of the harness kept beside it, or did not, is left out."""
    amax = attributes.get("amax")
    known: dict[str, Any] = {f.name: attributes.get(f.name) for f in fields(Quantizer)}
    known["amax"] = None if amax is None else Amax(**{f.name: amax.get(f.name) for f in fields(Amax)})
    return Quantizer(**known)


@dataclass(frozen=True)
class Problem:
    """Something that must not be: its rule, the quantizers or patterns it is about, and how to mend it."""

    rule: str
    what: str
    names: tuple[str, ...]
    mend: str

    def __str__(self) -> str:
        lines = [self.what, *(f"  {line}" for line in collapse(self.names)), self.mend]
        return "\n".join(line for line in lines if line.strip())


def tensor_quantizers(model: nn.Module) -> dict[str, Any]:
    """Every leaf ``TensorQuantizer`` of *model* by its module path."""
    from modelopt.torch.quantization.nn import TensorQuantizer

    return {name: module for name, module in model.named_modules() if isinstance(module, TensorQuantizer)}


def outline(model: nn.Module) -> str:
    """SHA-256 over the names and classes of *model*'s modules: all that decides where ModelOpt puts a quantizer."""
    lines = (f"{name} {type(module).__module__}.{type(module).__qualname__}" for name, module in model.named_modules())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def count_calls(model: nn.Module, forward: Callable[[nn.Module], object]) -> dict[str, int]:
    """How often each quantizer's forward is entered while *forward* runs on *model*."""
    calls = dict.fromkeys(tensor_quantizers(model), 0)

    def counter(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            calls[name] += 1

        return hook

    hooks = [q.register_forward_pre_hook(counter(n)) for n, q in tensor_quantizers(model).items()]
    try:
        with torch.no_grad(), ShapesOnly():
            forward(model)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def quantizer_map(model: nn.Module, forward: Callable[[nn.Module], object] | None = None) -> QuantizerMap:
    """The map of *model*, in module order.

    Args:
        model: a model that ModelOpt converted, on any device, ``meta`` included.
        forward: runs one forward of every tower; by default of ``families.sample_inputs``.
    """
    family = families.of(model)
    run = forward or (lambda m: families.forward(m, families.sample_inputs(m)))
    calls = count_calls(model, run)
    found = []
    for name, quantizer in tensor_quantizers(model).items():
        holder, kind = _split(name)
        module = model.get_submodule(holder)
        amax = getattr(quantizer, "_amax", None)
        found.append(
            Quantizer(
                name=name,
                kind=kind,
                tower=families.tower_of(family, holder),
                layer=families.layer_of(holder),
                module_class=_original_class(module),
                module_kind=_module_kind(family, module, kind, holder),
                format=format_name(quantizer),
                granularity=granularity(quantizer),
                enabled=bool(quantizer.is_enabled),
                dynamic=bool(getattr(quantizer, "_dynamic", False)) or _dynamic_blocks(quantizer),
                calls=calls[name],
                amax=None if amax is None or amax.is_meta else Amax.of(amax),
            )
        )
    return tuple(found)


def holder_of(name: str) -> str:
    """Path of the module that holds the quantizer *name*."""
    return _split(name)[0]


def kind_of(name: str) -> str:
    """The kind of the quantizer *name*: ``weight``, ``q_bmm``; of a part of a sequence ``weight.0``."""
    return _split(name)[1]


def _split(name: str) -> tuple[str, str]:
    """``a.b.weight_quantizer.0`` to (``a.b``, ``weight.0``)."""
    match = re.fullmatch(r"(?:(.*)\.)?(\w+?)_quantizer(\.\d+)?", name)
    if match is None:
        holder, _, last = name.rpartition(".")
        return holder, last
    return match[1] or "", match[2] + (match[3] or "")


def _original_class(module: nn.Module) -> str:
    """The class that ModelOpt's dynamic one stands for: ``QuantLinear`` is a ``Linear``."""
    return next(c.__name__ for c in type(module).__mro__ if not c.__module__.startswith("modelopt."))


def _module_kind(family: families.Family, module: nn.Module, kind: str, path: str) -> str:
    if kind in ATTENTION_KINDS:
        return "attention"
    if isinstance(module, (nn.Conv2d, nn.Linear)) and re.search(family.patch_embedding, path):
        return "patch_embedding"
    if isinstance(module, nn.Conv2d):
        return "conv"
    classes = {nn.Linear: "linear", nn.Embedding: "embedding", nn.LayerNorm: "layernorm"}
    return next((label for cls, label in classes.items() if isinstance(module, cls)), type(module).__name__.lower())


def format_name(quantizer: Any) -> str:
    """``E4M3``, ``INT8``, ``UINT8``, ``E2M1/E4M3`` (element / block scale) ... of a TensorQuantizer."""
    bits = quantizer.num_bits
    name = f"E{bits[0]}M{bits[1]}" if isinstance(bits, tuple) else f"{'U' if quantizer.unsigned else ''}INT{bits}"
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


# ---------------------------------------------------------------------------------------------------------------
# Invariants.  Each returns what is wrong; nothing wrong is an empty list.


def check(
    quantizers: QuantizerMap,
    recipe: Recipe,
    *,
    left_out: Collection[tuple[str, str]] = (),
    calibrated: bool = True,
    hidden: Mapping[str, str] | None = None,
    elsewhere: QuantizerMap = (),
    absent: Collection[str] = (),
) -> list[Problem]:
    """All invariants of one map.

    Args:
        quantizers: the map.
        recipe: what was asked for.
        left_out: (tower, module kind) pairs that the budgets file declares to stay unquantized.
        calibrated: False for a model on the meta device, which can hold no amax.
        hidden: see :func:`unmatched_patterns`.
        elsewhere: see :func:`unmatched_patterns`.
        absent: see :func:`unmatched_patterns`.
    """
    problems = unmatched_patterns(quantizers, recipe, hidden, elsewhere, absent)
    problems += overridden_patterns(quantizers, recipe)
    problems += uncovered(quantizers, left_out)
    problems += broken_attention(quantizers, recipe, left_out)
    problems += never_run(quantizers)
    problems += run_twice(quantizers)
    if calibrated:
        problems += uncalibrated(quantizers)
    return problems


def matched(quantizers: QuantizerMap, entry: Entry) -> set[str]:
    """Names of the quantizers that *entry* speaks of, as ModelOpt matches them: globs over whole names, case and all.

    Parts of a sequential quantizer also go by their holder's name.
    """
    parent = (entry.parent_class or "").rpartition(".")[2]
    found = set()
    for q in quantizers:
        names = (q.name, re.sub(r"(_quantizer)\.\d+$", r"\1", q.name))
        if parent in ("", q.module_class) and any(fnmatch.fnmatchcase(n, entry.pattern) for n in names):
            found.add(q.name)
    return found


def unmatched_patterns(
    quantizers: QuantizerMap,
    recipe: Recipe,
    hidden: Mapping[str, str] | None = None,
    elsewhere: QuantizerMap = (),
    absent: Collection[str] = (),
) -> list[Problem]:
    """Patterns of the recipe that name no quantizer of the model (S8).

    A pattern that only switches off and that the recipe imports belongs to a deny-list shared between families; it
    may match nothing.  One that the recipe's author wrote may not, unless it speaks of quantizers *elsewhere*: those of
    the tower that the model, a single one, lacks.  *hidden* are the model's blocks that ModelOpt cannot quantize
    (``families.hidden_in``): what asks for quantizers around attention may mean them.  An entry for modules of a class
    in *absent* (``families.Family.absent``) speaks of other families.
    """
    problems = []
    written = [(part, number, entry) for part in recipe.parts for number, entry in enumerate(part.entries, 1)]
    for part, number, entry in written:
        shared = not entry.enable and part.path is not None and not entry.origin.startswith(str(part.path))
        if shared or entry.parent_class in absent or matched(quantizers, entry) or matched(elsewhere, entry):
            continue
        problems.append(
            Problem(
                "pattern matches nothing",
                f"entry {number} of recipe {part.name}, {entry.pattern!r} ({entry.origin}), matches none of the "
                f"{len(quantizers)} quantizers of this model{_of_class(entry)}.",
                (),
                _unmatched_hint(entry.pattern, quantizers, hidden or {}),
            )
        )
    return problems


def _of_class(entry: Entry) -> str:
    return f" (only those of {entry.parent_class} modules asked)" if entry.parent_class else ""


def _unmatched_hint(pattern: str, quantizers: QuantizerMap, hidden: Mapping[str, str]) -> str:
    import difflib

    if hidden and "bmm" in pattern and not any(q.module_kind == "attention" for q in quantizers):
        path, reason = next(iter(hidden.items()))
        return f"{path} and {len(hidden) - 1} more: {reason}."
    if "bmm2_output" in pattern:
        return "ModelOpt's own attention class has no output quantizer. Register diffusers': --attention diffusers"
    if "p_bmm" in pattern:
        return "diffusers' attention class has no p_bmm quantizer. Register ModelOpt's: --attention modelopt"
    kinds = {f"{q.kind}_quantizer" for q in quantizers}
    words = [w for w in re.split(r"[*.?\[\]]+", pattern) if w]
    close = [c for w in words for c in difflib.get_close_matches(w, kinds, 1, 0.7)] if words else []
    if close:
        return f"Did you mean '*{close[0]}'? Quantizer names end in: {', '.join(sorted(kinds))}."
    if words and not any(c in pattern for c in "*?["):
        return f"Patterns are globs over whole names. Did you mean '*{pattern}*'?"
    return f"Correct the pattern or remove it. Quantizer names end in: {', '.join(sorted(kinds))}."


def overridden_patterns(quantizers: QuantizerMap, recipe: Recipe) -> list[Problem]:
    """Entries that enable quantizers of which a later deny-all leaves none on (S2).

    Taking back a part of what was enabled is how recipes are written (``*patch_embedding*`` off); a deny-all, or a
    deny-list that the recipe only imports, behind everything else is the trap.
    """
    if recipe.candidates:
        return [problem for part in recipe.parts for problem in overridden_patterns(quantizers, part)]
    touched = [matched(quantizers, entry) for entry in recipe.entries]
    problems = []
    for index, entry in enumerate(recipe.entries):
        if not entry.enable or not touched[index]:
            continue
        left = set(touched[index])
        for later in range(index + 1, len(recipe.entries)):
            other = recipe.entries[later]
            own = recipe.path is None or other.origin.startswith(str(recipe.path))
            if other.enable or (own and len(touched[later]) < len(quantizers)):
                continue
            left -= touched[later]
            if not left:
                problems.append(
                    Problem(
                        "pattern overridden",
                        f"entry {index + 1} of recipe {recipe.name}, {entry.pattern!r}, enables "
                        f"{len(touched[index])} quantizers and entry {later + 1}, {other.pattern!r} "
                        f"({other.origin}), turns all of them off again.",
                        (),
                        f"Entries apply in order, the last one wins: put {other.pattern!r} before {entry.pattern!r}.",
                    )
                )
                break
    return problems


def uncovered(quantizers: QuantizerMap, left_out: Iterable[tuple[str, str]] = ()) -> list[Problem]:
    """Towers, and kinds of layer in a tower, with no enabled quantizer although nobody declared it (S1)."""
    declared = set(left_out)
    there: dict[str, dict[str, list[Quantizer]]] = defaultdict(lambda: defaultdict(list))
    for q in quantizers:
        if q.tower != "none" and q.module_kind in COVERED_KINDS:
            there[q.tower][q.module_kind].append(q)
    problems = []
    for tower, kinds in there.items():
        on = {kind for kind, group in kinds.items() if any(q.enabled for q in group)}
        missing = [k for k in COVERED_KINDS if k in kinds and k not in on and (tower, k) not in declared]
        if not missing:
            continue
        total = sum(map(len, kinds.values()))
        whole = not on
        what = (
            f"the whole {tower} tower is unquantized: 0 of {total} quantizers are enabled."
            if whole
            else f"{tower} tower: no enabled quantizer at any {' or '.join(m.replace('_', ' ') for m in missing)}."
        )
        names = tuple(sorted({q.module for kind in missing for q in kinds[kind]}))
        problems.append(
            Problem(
                "tower unquantized" if whole else "kind of layer unquantized",
                what,
                names,
                f"Enable them in the recipe, or declare in the budgets file that {tower} "
                f"{', '.join(missing)} stays as it is, with the reason.",
            )
        )
    return problems


def not_covered(model: nn.Module) -> list[str]:
    """What of *model* no recipe can quantize, a line each tower and reason: which blocks, and why."""
    family = families.of(model)
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for path, reason in families.hidden_in(model).items():
        found[families.tower_of(family, path), reason].append(path)
    return [f"{tower} {' '.join(collapse(paths))}: {reason}" for (tower, reason), paths in found.items()]


def broken_attention(
    quantizers: QuantizerMap, recipe: Recipe, left_out: Iterable[tuple[str, str]] = ()
) -> list[Problem]:
    """Attention blocks quantized in part, or without every working quantizer the recipe asks for (S3, S4)."""
    declared = set(left_out)
    blocks: dict[str, dict[str, Quantizer]] = defaultdict(dict)
    for q in quantizers:
        if q.module_kind == "attention":
            blocks[q.module][q.kind] = q
    missing: list[str] = []
    idle: list[str] = []
    for block, present in blocks.items():
        tower = next(iter(present.values())).tower
        if (tower, "attention") in declared:
            continue
        for kind in _asked_of_attention(recipe, block):
            found = present.get(kind)
            if found is None or not found.enabled:
                missing.append(f"{block}.{kind}_quantizer")
            elif found.calls == 0:
                idle.append(found.name)
    problems = []
    if missing:
        affected = len({n.rpartition(".")[0] for n in missing})
        problems.append(
            Problem(
                "attention quantizer missing",
                f"{affected} of {len(blocks)} attention blocks lack quantizers that the recipe asks for:",
                tuple(missing),
                _SEARCH_MEND
                if recipe.candidates
                else "Register the attention class that has them (--attention diffusers for bmm2_output, "
                "--attention modelopt for p_bmm), or take the pattern out of the recipe.",
            )
        )
    if idle:
        problems.append(
            Problem(
                "attention quantizer never runs",
                f"{len(idle)} attention quantizers are enabled and never ran in a forward of both towers:",
                tuple(idle),
                'Load the model with attn_implementation="sdpa": diffusers\' attention class intercepts '
                "scaled_dot_product_attention only, and under it p_bmm and softmax quantizers are never reached.",
            )
        )
    return problems + _attention_in_part(blocks, recipe, declared)


_SEARCH_MEND = (
    "mtq.auto_quantize decides on Linear and convolution layers only; all quantizers around attention end up off, "
    "whatever its formats say; a fixed baseline keeps q, k and v and loses the output. Take these entries out of the "
    "formats, or put them behind what mtq.get_auto_quantize_config returns and gate that as a ptq recipe."
)


def _attention_in_part(
    blocks: dict[str, dict[str, Quantizer]], recipe: Recipe, declared: set[tuple[str, str]]
) -> list[Problem]:
    """Blocks where some of the quantizers around attention are on and others off: a lost line of the recipe does that.

    A line of the recipe that names such quantizers and turns them off in some layers is a choice.  Off in a whole tower
    is none: flipping the entry that enabled them loses as much as deleting it.
    """
    off: list[str] = []
    among = 0
    for present in blocks.values():
        whole = [present[kind] for kind in FUSED_KINDS if kind in present]
        if not any(q.enabled for q in whole) or (whole[0].tower, "attention") in declared:
            continue
        among += 1
        for q in whole:
            peers = [b[q.kind] for b in blocks.values() if q.kind in b and b[q.kind].tower == q.tower]
            chosen = _named_off(recipe, q.name) and any(peer.enabled for peer in peers)
            if not q.enabled and not chosen:
                off.append(q.name)
    if not off:
        return []
    affected = len({name.rpartition(".")[0] for name in off})
    return [
        Problem(
            "attention quantized in part",
            f"{affected} of {among} quantized attention blocks have some of their quantizers on and these off:",
            tuple(off),
            "All around scaled_dot_product_attention are on, or none: enable these, or disable the others, or declare "
            "in the budgets file that attention stays as it is, with the reason.",
        )
    ]


def _named_off(recipe: Recipe, name: str) -> bool:
    """Whether the last entry that matches *name* turns it off and means it, rather than everything."""
    entries = [entry for part in recipe.parts for entry in part.entries]
    last = next((e for e in reversed(entries) if fnmatch.fnmatchcase(name, e.pattern)), None)
    return last is not None and not last.enable and last.pattern.strip("*") not in ("", "_quantizer", "quantizer")


def _asked_of_attention(recipe: Recipe, block: str) -> list[str]:
    """The attention kinds that the recipe's last matching entry enables, whether or not the model has them.

    Of a search those of every format: it has no other place to ask for them.
    """
    if recipe.candidates:
        asked_by = [_asked_of_attention(part, block) for part in recipe.candidates]
        return [kind for kind in ATTENTION_KINDS if any(kind in asked for asked in asked_by)]
    asked = []
    for kind in ATTENTION_KINDS:
        name, last = f"{block}.{kind}_quantizer", None
        for entry in recipe.entries:
            if entry.parent_class is None and fnmatch.fnmatchcase(name, entry.pattern):
                last = entry
        # '*' or '*_quantizer' asks for what is there, not for a particular place in the attention.
        if last is not None and last.enable and any(w in last.pattern for w in ("bmm", "softmax", "attn")):
            asked.append(kind)
    return asked


def never_run(quantizers: QuantizerMap) -> list[Problem]:
    """Enabled quantizers that a forward of every tower never enters (S3, S6)."""
    names = tuple(q.name for q in quantizers if q.enabled and q.calls == 0)
    enabled = sum(q.enabled for q in quantizers)
    if not names:
        return []
    return [
        Problem(
            "never runs",
            f"{len(names)} of {enabled} enabled quantizers never ran in a forward of both towers:",
            names,
            "They are configured and compute nothing. Disable them in the recipe, or load the model so that "
            'its forward reaches them (attn_implementation="sdpa").',
        )
    ]


def run_twice(quantizers: QuantizerMap) -> list[Problem]:
    """Enabled quantizers that run more than once in one forward: a tensor is quantized twice, or a module shared."""
    names = tuple(q.name for q in quantizers if q.enabled and q.calls > 1)
    if not names:
        return []
    most = max(q.calls for q in quantizers if q.enabled)
    return [
        Problem(
            "runs twice",
            f"{len(names)} enabled quantizers ran up to {most} times in one forward, where once is right:",
            names,
            "Two wrappers quantize the same tensor, or a module is shared between places with different ranges.",
        )
    ]


def uncalibrated(quantizers: QuantizerMap) -> list[Problem]:
    """Enabled static quantizers whose amax is missing, not finite or not positive (S7)."""
    static = [q for q in quantizers if q.enabled and not q.dynamic]
    without = tuple(q.name for q in static if q.amax is None)
    unusable = tuple(q.name for q in static if q.amax is not None and not q.amax.usable)
    problems = []
    if without:
        towers = sorted({q.tower for q in static if q.amax is None})
        problems.append(
            Problem(
                "no amax",
                f"{len(without)} of {len(static)} enabled static quantizers have no amax and run dynamic "
                f"({', '.join(towers)}):",
                without,
                "The calibration never reached them: its forward loop must feed pictures and words to both towers.",
            )
        )
    if unusable:
        problems.append(
            Problem(
                "unusable amax",
                f"{len(unusable)} enabled quantizers have an amax that is not finite and positive:",
                unusable,
                "Look at what the calibration data gives these layers: all zero, inf or NaN.",
            )
        )
    return problems


# ---------------------------------------------------------------------------------------------------------------
# Reading many names, and the difference of two maps.


def collapse(names: Sequence[str], limit: int = 12) -> list[str]:
    """Names with their layer numbers and leaf kinds folded: ``layers.{0..3}.self_attn.{q,k}_bmm_quantizer``."""
    by_shape: dict[tuple[str, ...], set[tuple[str, ...]]] = defaultdict(set)
    for name in names:
        parts = re.split(r"\.(\d+)(?=\.)", name)
        by_shape[tuple(parts[::2])].add(tuple(parts[1::2]))
    by_numbers: dict[tuple[tuple[str, ...], str, tuple[str, ...]], list[str]] = defaultdict(list)
    for shape, numbers in by_shape.items():
        holder, dot, leaf = shape[-1].rpartition(".")
        for ranges in _fold_numbers(numbers):
            by_numbers[shape[:-1], holder + dot, ranges].append(leaf)
    lines = []
    for (between, holder, ranges), leaves in by_numbers.items():
        before = "".join(f"{text}.{among}" for text, among in zip(between, ranges, strict=True))
        lines.append(before + holder + _fold_leaves(leaves))
    more = len(lines) - limit
    return lines if more <= 0 else [*lines[:limit], f"... and {more} more groups"]


def _fold_numbers(numbers: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Numbers that differ at one place alone folded there, the last place first: (2, 0), (2, 1) to (2, {0..1})."""
    rows = sorted(numbers, key=lambda row: [int(n) for n in row])
    for place in reversed(range(len(rows[0]))):
        alike: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = defaultdict(list)
        for row in rows:
            alike[row[:place], row[place + 1 :]].append(row[place])
        rows = [(*before, _ranges(found), *behind) for (before, behind), found in alike.items()]
    return rows


def _ranges(numbers: Iterable[str]) -> str:
    ints = sorted(map(int, numbers))
    runs: list[list[int]] = []
    for n in ints:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    text = ",".join(str(r[0]) if len(r) == 1 else f"{r[0]}..{r[-1]}" for r in runs)
    return text if len(ints) == 1 else f"{{{text}}}"


def _fold_leaves(leaves: Sequence[str]) -> str:
    endings: dict[str, list[str]] = defaultdict(list)
    for leaf in leaves:
        head, sep, tail = leaf.partition("_")
        endings[sep + tail].append(head)
    return " ".join(
        (heads[0] if len(heads) == 1 else "{" + ",".join(heads) + "}") + ending for ending, heads in endings.items()
    )


def diff(before: QuantizerMap, after: QuantizerMap, *, amax_tolerance: float | None = None) -> list[str]:
    """What changed from *before* to *after*, grouped so that a person reads lines and not quantizers.

    Args:
        before: the map as it was.
        after: the map as it is.
        amax_tolerance: relative; None leaves amax out of the comparison, 0.0 asks for equal bits.

    Returns:
        Lines such as ``24 quantizers change: vision q_bmm E4M3 per-tensor to off, layers 0..23``; empty if equal.
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
        where = f", layers {_ranges(layers).strip('{}')}" if layers else ""
        count = f"{total} quantizer{'s' if total > 1 else ''} change{'' if total > 1 else 's'}"
        lines.append(f"{count}: {tower} {_fold_places([place for place, _ in places])} {was} to {now}{where}")
    return lines


def _fold_places(places: Sequence[str]) -> str:
    """``self_attn.q_proj input``, ``self_attn.k_proj input`` ... to ``self_attn.{q,k}_proj {input,weight}``."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for place in places:
        module, _, kind = place.rpartition(" ")
        kinds[module].append(kind)
    modules: dict[tuple[str, str], list[str]] = defaultdict(list)
    for module, found in kinds.items():
        holder, dot, leaf = module.rpartition(".")
        modules[holder + dot, _fold_leaves(found)].append(leaf)
    return ", ".join(f"{holder}{_fold_leaves(leaves)} {leaf}".strip() for (holder, leaf), leaves in modules.items())


def state(q: Quantizer | None) -> str:
    """What a difference of maps shows of a quantizer: ``absent``, ``off``, or its format and what is unusual."""
    if q is None:
        return "absent"
    if not q.enabled:
        return "off"
    dynamic = " dynamic" if q.dynamic else ""
    calls = "" if q.calls == 1 else f" called {q.calls} times"
    return f"{q.format} {q.granularity}{dynamic}{calls}"


def _amax_change(a: Quantizer, b: Quantizer, tolerance: float) -> tuple[str, str]:
    # By their texts: NaN, which equals nothing, is the same in both.
    if not a.enabled or repr(a.amax) == repr(b.amax):
        return "", ""
    if a.amax is None or b.amax is None:
        return ("no amax", "an amax") if a.amax is None else ("an amax", "no amax")
    close = all(math.isclose(x, y, rel_tol=tolerance) for x, y in
                ((a.amax.low, b.amax.low), (a.amax.high, b.amax.high)))  # fmt: skip
    if tolerance > 0 and a.amax.count == b.amax.count and close:
        return "", ""
    return f"amax {a.amax.high:.6g}", f"{b.amax.high:.6g}"
