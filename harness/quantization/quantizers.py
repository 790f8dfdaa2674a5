"""The quantizer map: every quantizer of a model, and what must be true of it.

ModelOpt prints a summary of what is *configured*.  The map says what *happens*: it is taken from the model's own
modules after calibration, with the calls of one forward of every tower counted.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from harness.formats.layout import plan
from harness.models import families
from harness.models.shapes import ShapesOnly
from harness.quantization import applied
from harness.quantization.applied import Applied, place_of
from harness.recipes.algorithms import methods
from harness.recipes.loading import Entry, Recipe

#: The quantizers inside an attention block, of both attention classes of ModelOpt.
ATTENTION_KINDS = ("q_bmm", "k_bmm", "v_bmm", "p_bmm", "softmax", "bmm2_output")
#: The four around scaled-dot-product attention, which are quantized together or not at all.
FUSED_KINDS = ("q_bmm", "k_bmm", "v_bmm", "bmm2_output")
#: What every tower must have quantized, unless the budgets file declares otherwise.
COVERED_KINDS = ("linear", "patch_embedding", "attention")


@dataclass(frozen=True)
class Amax:
    """A quantizer's range: how many values, their extremes, and the SHA-256 of their fp32 bytes.

    ``empty`` of the values are zero because the part of the weight that they belong to is all zeros (a pruned
    channel): zeros stay zeros, so the extremes are those of the other values, where there are any.
    """

    count: int
    low: float
    high: float
    digest: str
    empty: int = 0

    @classmethod
    def of(cls, amax: Tensor, empty: Tensor | None = None) -> Amax:
        """Summarise an amax tensor of any shape and float dtype; *empty* marks the values of parts without a number."""
        values = amax.detach().float().cpu().contiguous().flatten()
        digest = hashlib.sha256(values.numpy().tobytes()).hexdigest()[:16]
        rest = values if empty is None or bool(empty.all()) else values[~empty]
        low, high = (rest.min().item(), rest.max().item()) if rest.numel() else (math.nan, math.nan)
        return cls(values.numel(), low, high, digest, 0 if empty is None else int(empty.sum()))

    @property
    def usable(self) -> bool:
        """Every value finite and above zero."""
        return self.count > 0 and math.isfinite(self.high) and math.isfinite(self.low) and self.low > 0


@dataclass(frozen=True)
class Quantizer:
    """One quantizer.

    ``calls`` are those of one forward of every tower.  ``amax`` is its range, None where there is none; ``constant``
    says that the recipe fixes the range (``use_constant_amax``, ``constant_amax``) instead of having it calibrated.
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
        """A plain record for JSON, without ``constant`` and ``empty`` where there is nothing of the kind."""
        record = asdict(self)
        if not self.constant:
            del record["constant"]
        if self.amax is not None and not self.amax.empty:
            del record["amax"]["empty"]
        return record


QuantizerMap = tuple[Quantizer, ...]


def of_dict(attributes: Mapping[str, Any]) -> Quantizer:
    """A quantizer from its ``as_dict``; what another version of the harness kept beside it, or did not, is left out."""
    amax = attributes.get("amax")
    known: dict[str, Any] = {f.name: attributes.get(f.name) for f in fields(Quantizer)}
    known["constant"] = bool(known["constant"])
    if amax is not None:
        summary: dict[str, Any] = {f.name: amax.get(f.name) for f in fields(Amax)}
        known["amax"] = Amax(**summary | {"empty": summary["empty"] or 0})
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
        found.append(
            Quantizer(
                name=name,
                kind=kind,
                tower=families.tower_of(family, holder),
                layer=families.layer_of(holder),
                module_class=original_class(module),
                module_kind=_module_kind(family, module, kind, holder),
                format=format_name(quantizer),
                granularity=granularity(quantizer),
                enabled=bool(quantizer.is_enabled),
                dynamic=bool(getattr(quantizer, "_dynamic", False)) or _dynamic_blocks(quantizer),
                calls=calls[name],
                amax=_amax(module, kind, quantizer),
                constant=is_constant(quantizer),
            )
        )
    return tuple(found)


def is_constant(quantizer: Any) -> bool:
    """Whether the recipe fixes the range of this TensorQuantizer, so that nothing calibrates it."""
    return (
        bool(getattr(quantizer, "_use_constant_amax", False)) or getattr(quantizer, "_constant_amax", None) is not None
    )


def range_of(quantizer: Any) -> Tensor | None:
    """The range that this TensorQuantizer works with, in whatever shape it is kept; None where it has none of its own.

    ``use_constant_amax`` means E4M3's largest number, which ModelOpt keeps in no buffer.
    """
    if getattr(quantizer, "_use_constant_amax", False):
        return torch.tensor(torch.finfo(torch.float8_e4m3fn).max)
    found: Tensor | None = getattr(quantizer, "_amax", None)
    return found


def _amax(module: nn.Module, kind: str, quantizer: Any) -> Amax | None:
    found = range_of(quantizer)
    if found is None or found.is_meta:
        return None
    weight = getattr(module, "weight", None) if kind.partition(".")[0] == "weight" else None
    if not isinstance(weight, Tensor) or weight.is_meta or bool((found != 0).all()):
        return Amax.of(found)
    return Amax.of(found, (found == 0).flatten().cpu() & _all_zeros(module, quantizer, found.numel()))


@torch.no_grad()
def _all_zeros(module: nn.Module, quantizer: Any, count: int) -> Tensor:
    """Which of the *count* parts of a weight that have a range each are all zeros; none if there are not that many."""
    weight = module.get_parameter("weight").detach().float().cpu().numpy()
    sizes = {axis: size for axis, size in (quantizer.block_sizes or {}).items() if isinstance(axis, int)}
    layout = plan(weight.shape, None if sizes else quantizer.axis, sizes or None)
    largest = layout.amax(layout.cut(weight)).ravel()
    return torch.from_numpy(largest == 0) if largest.size == count else torch.zeros(count, dtype=torch.bool)


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


def original_class(module: nn.Module) -> str:
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
    problems += overridden_patterns(quantizers, recipe, elsewhere)
    problems += uncovered(quantizers, left_out)
    problems += broken_attention(quantizers, recipe, left_out)
    problems += never_run(quantizers)
    problems += run_twice(quantizers)
    if calibrated:
        problems += uncalibrated(quantizers, recipe)
    return problems


def matched(quantizers: QuantizerMap, entry: Entry) -> set[str]:
    """Names of the quantizers that *entry* speaks of, as they are now: globs over whole names, case and all.

    Parts of a sequential quantizer also go by their holder's name.  What an entry names while the entries before it
    are applied is :func:`applied_to`'s to say.
    """
    return {q.name for q in quantizers if applied.speaks_of(entry, q.name, q.module_class)}


def applied_to(quantizers: QuantizerMap, entries: Sequence[Entry]) -> Applied:
    """What ModelOpt makes of *entries* on the model of this map."""
    return applied.apply(entries, applied.places((q.name, q.module_class) for q in quantizers))


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
    for part in recipe.parts:
        here, there = applied_to(quantizers, part.entries), applied_to(elsewhere, part.entries)
        for index, entry in enumerate(part.entries):
            shared = not entry.enable and not _is_own(part, entry)
            if shared or entry.parent_class in absent or here.touched[index] or there.touched[index]:
                continue
            problems.append(
                Problem(
                    "pattern matches nothing",
                    f"entry {index + 1} of recipe {part.name}, {entry.shown!r} ({entry.origin}), matches none of the "
                    f"{len(quantizers)} quantizers of this model{_of_class(entry)}.",
                    (),
                    _unmatched_hint(entry, quantizers, hidden or {}),
                )
            )
    return problems


def _is_own(recipe: Recipe, entry: Entry) -> bool:
    """Whether the author of *recipe* wrote *entry*, rather than importing it."""
    return recipe.path is None or entry.origin.startswith(str(recipe.path))


def _of_class(entry: Entry) -> str:
    return f" (only those of {entry.parent_class} modules asked)" if entry.parent_class else ""


def _unmatched_hint(entry: Entry, quantizers: QuantizerMap, hidden: Mapping[str, str]) -> str:
    pattern = entry.pattern
    if hidden and "bmm" in pattern and not any(q.module_kind == "attention" for q in quantizers):
        path, reason = next(iter(hidden.items()))
        return f"{path} and {len(hidden) - 1} more: {reason}."
    if "bmm2_output" in pattern:
        return "ModelOpt's own attention class has no output quantizer. Register diffusers': --attention diffusers"
    if "p_bmm" in pattern:
        return "diffusers' attention class has no p_bmm quantizer. Register ModelOpt's: --attention modelopt"
    candidates = (replace(entry, pattern=one) for one in _corrections(pattern, quantizers))
    meant = next((one.pattern for one in candidates if matched(quantizers, one)), None)
    if "{" in pattern:
        instead = f"Did you mean {meant!r}?" if meant else "Write one entry for each."
        return f"Patterns are globs, which have no braces: write [0-3] for {{0..3}}, [qk] for {{q,k}}. {instead}"
    endings = ", ".join(sorted({f"{q.kind}_quantizer" for q in quantizers}))
    if meant:
        return f"Did you mean {meant!r}? Patterns are globs over whole names, which end in: {endings}."
    return f"Correct the pattern or remove it. Quantizer names end in: {endings}."


def _corrections(pattern: str, quantizers: QuantizerMap) -> Iterator[str]:
    """Patterns that may have been meant instead of one that matches nothing, the likeliest first."""
    without_braces = re.sub(r"\{([^{}]*)\}", _as_characters, pattern)
    if without_braces != pattern:
        yield without_braces
    if "{" in without_braces:
        return
    yield re.sub(r"(_quantizer)\.\d+(\*?)$", r"\1\2", without_braces)  # a part, where there is no sequence
    yield from _with_missing_folders(without_braces, quantizers)
    yield from _with_words_corrected(without_braces, quantizers)
    if re.search(r"\w", pattern) and not any(c in without_braces for c in "*?["):
        yield from (f"*{without_braces}", f"*{without_braces}*")
    for name in sorted({f"{q.kind}_quantizer" for q in quantizers}):
        words = [w for w in re.split(r"[*.?\[\]]+", pattern) if w]
        if any(difflib.get_close_matches(w, [name], 1, 0.7) for w in words):
            yield f"*{name}"


def _as_characters(braces: re.Match[str]) -> str:
    """``{0..3}`` and ``{q,k}``, as the gate's own messages fold names, in a glob's characters; or as they are."""
    found = []
    for part in braces[1].split(","):
        first, dots, last = part.strip().partition("..")
        if len(first) != 1 or (dots and len(last) != 1):
            return braces[0]
        found.append(f"{first}-{last}" if dots else first)
    return f"[{''.join(found)}]"


def _with_missing_folders(pattern: str, quantizers: QuantizerMap) -> Iterator[str]:
    """*pattern* with the parts of a path put in that its author left out: ``vision_model.[encoder.]layers.0``."""
    start = re.match(r"[\w.]*", pattern)
    given = start[0].strip(".").split(".") if start else []
    rest = pattern[len(".".join(given)) :]
    if len(given) < 2:
        return
    for module in dict.fromkeys(q.module for q in quantizers):
        parts = module.split(".")
        left = iter(enumerate(parts))
        ends = [next((at for at, part in left if part == word), None) for word in given]
        if ends[-1] is not None:
            yield ".".join(parts[: ends[-1] + 1]) + rest
            return


def _with_words_corrected(pattern: str, quantizers: QuantizerMap) -> Iterator[str]:
    """*pattern* with one word of it replaced by one like it that names have there."""
    known = {part for q in quantizers for part in q.name.split(".") if not part.isdigit()}
    lower = {part.lower(): part for part in sorted(known)}
    for word in re.findall(r"[A-Za-z_]\w*", pattern):
        if word in known:
            continue
        for near in difflib.get_close_matches(word.lower(), lower, 3, 0.7):
            yield pattern.replace(word, lower[near])


def overridden_patterns(quantizers: QuantizerMap, recipe: Recipe, elsewhere: QuantizerMap = ()) -> list[Problem]:
    """Entries that have no effect, because later ones set again all that they set (S2, S15).

    An entry that enables quantizers, of which a later deny-all (or a deny-list that the recipe only imports) leaves
    none on: taking back a part of what was enabled is how recipes are written, a deny-all behind everything else is
    the trap.  And an exception that is written before what it excepts: an entry of the author's own that turns off, or
    gives other attributes to, what later entries set again.

    Args:
        quantizers: the map of the model.
        recipe: what was asked for.
        elsewhere: of the tower that the model, a single one, lacks; an entry may have its effect there.
    """
    if recipe.candidates:
        return [found for part in recipe.parts for found in overridden_patterns(quantizers, part, elsewhere)]
    done = applied_to((*quantizers, *elsewhere), recipe.entries)
    count = len({place_of(q.name) for q in (*quantizers, *elsewhere)})
    return [*_turned_off_again(recipe, done, count), *_exceptions_too_early(recipe, done, count)]


def _turned_off_again(recipe: Recipe, done: Applied, count: int) -> list[Problem]:
    """Entries that enable what a later deny-all turns off, one problem for each deny-all."""
    victims: dict[int, list[int]] = defaultdict(list)
    for index, entry in enumerate(recipe.entries):
        if not entry.enable or not done.touched[index]:
            continue
        left = set(done.touched[index])
        for later in range(index + 1, len(recipe.entries)):
            other = recipe.entries[later]
            if other.enable or (_is_own(recipe, other) and len(done.touched[later]) < count):
                continue
            left -= done.touched[later]
            if not left:
                victims[later].append(index)
                break
    problems = []
    for later, indices in victims.items():
        other, first = recipe.entries[later], recipe.entries[indices[0]]
        total = len(set().union(*(done.touched[index] for index in indices)))
        named = ", ".join(f"{index + 1} ({recipe.entries[index].shown!r})" for index in indices)
        everything = " everything" if len(done.touched[later]) == count else ""
        what = (
            f"entry {later + 1} of recipe {recipe.name}, {other.shown!r} ({other.origin}), stands behind the entries "
            f"that enable and turns{everything} off again: {total} quantizers, of "
            f"{'entry' if len(indices) == 1 else 'entries'} {named}."
        )
        front = " to the front," if everything else ""
        fix = f"Entries apply in order, the last one wins: move {other.shown!r}{front} before {first.shown!r}."
        problems.append(Problem("pattern overridden", what, (), fix))
    return problems


def _exceptions_too_early(recipe: Recipe, done: Applied, count: int) -> list[Problem]:
    """Entries of the author's own whose every setting is replaced by entries behind them."""
    problems = []
    for index, entry in enumerate(recipe.entries):
        if not done.touched[index] or len(done.touched[index]) == count or not _is_own(recipe, entry):
            continue
        behind = _replaced_by(recipe, done, index) if entry.enable else _undone_by(recipe, done, index)
        if behind is None:
            continue
        does = "turns off" if not entry.enable else "gives attributes to"
        what = (
            f"entry {index + 1} of recipe {recipe.name}, {entry.shown!r} ({entry.origin}), {does} "
            f"{len(done.touched[index])} quantizers, and entries behind it set all of them again: it has no effect."
        )
        fix = (
            f"Entries apply in order, the last one wins: move {entry.shown!r} behind entry {behind + 1}, "
            f"{recipe.entries[behind].shown!r}, or remove it."
        )
        if done.touched[behind] == done.touched[index]:
            fix = f"Entries apply in order, the last one wins: remove entry {index + 1}, or entry {behind + 1}."
        problems.append(Problem("exception before what it excepts", what, (), fix))
    return problems


def _undone_by(recipe: Recipe, done: Applied, index: int) -> int | None:
    """The last entry that turns on again what the entry *index* turns off, if nothing is left of what that one does."""
    ends_on = {place_of(name) for name, setting in done.settings.items() if setting.enable}
    touched = done.touched[index]
    # What is turned on by an entry within it (an output among all outputs) is a refinement, not an exception undone.
    undoing = [
        n
        for n in range(index + 1, len(recipe.entries))
        if recipe.entries[n].enable and done.touched[n] & touched & ends_on and not done.touched[n] < touched
    ]
    if not undoing:
        return None
    for place in touched:
        before = [n for n in range(index) if place in done.touched[n]]
        was_off = bool(before) and not recipe.entries[before[-1]].enable
        if not was_off and not any(place in later for later in done.touched[index + 1 :]):
            return None
    return undoing[-1]


def _replaced_by(recipe: Recipe, done: Applied, index: int) -> int | None:
    """The entry that gives other attributes to all that the entry *index* gives attributes to."""
    entry = recipe.entries[index]
    if entry.cfg is None:
        return None
    for later in range(index + 1, len(recipe.entries)):
        other = recipe.entries[later]
        if other.enable and other.cfg not in (None, entry.cfg) and done.touched[index] <= done.touched[later]:
            return later
    return None


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
        for kind in _asked_of_attention(recipe, block, next(iter(present.values())).module_class):
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
                _sentence(_idle_attention_fix(idle)),
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
            chosen = _named_off(recipe, q) and any(peer.enabled for peer in peers)
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


def _named_off(recipe: Recipe, q: Quantizer) -> bool:
    """Whether the last entry that speaks of *q* turns it off and means it, rather than everything."""
    entries = [entry for part in recipe.parts for entry in part.entries]
    last = next((e for e in reversed(entries) if applied.speaks_of(e, q.name, q.module_class)), None)
    return last is not None and not last.enable and last.pattern.strip("*") not in ("", "_quantizer", "quantizer")


def _asked_of_attention(recipe: Recipe, block: str, module_class: str = "") -> list[str]:
    """The attention kinds that the recipe's last matching entry enables, whether or not the model has them.

    Of a search those of every format: it has no other place to ask for them.
    """
    if recipe.candidates:
        asked_by = [_asked_of_attention(part, block, module_class) for part in recipe.candidates]
        return [kind for kind in ATTENTION_KINDS if any(kind in asked for asked in asked_by)]
    asked = []
    for kind in ATTENTION_KINDS:
        name, last = f"{block}.{kind}_quantizer", None
        for entry in recipe.entries:
            if applied.speaks_of(entry, name, module_class):
                last = entry
        # '*' or '*_quantizer' asks for what is there, not for a particular place in the attention.
        if last is not None and last.enable and any(w in last.pattern for w in ("bmm", "softmax", "attn")):
            asked.append(kind)
    return asked


#: Quantizers of both attention classes that scaled_dot_product_attention passes by: it keeps the probabilities inside.
UNREACHED_KINDS = ("softmax", "p_bmm")


def _idle_attention_fix(names: Iterable[str]) -> str:
    """The fix for quantizers around attention that never ran."""
    kinds = {kind_of(name).partition(".")[0] for name in names}
    if unreached := [kind for kind in UNREACHED_KINDS if kind in kinds]:
        patterns = " and ".join(f"{{quantizer_name: '*{kind}_quantizer', enable: false}}" for kind in unreached)
        fix = f"scaled_dot_product_attention never hands out its probabilities: end the recipe with {patterns}."
        if set(unreached) == kinds:
            return fix
        return f"{fix} For the others: {_LOAD_WITH_SDPA}"
    return _LOAD_WITH_SDPA


_LOAD_WITH_SDPA = (
    'load the model with attn_implementation="sdpa", the only one that diffusers\' attention class intercepts.'
)


def never_run(quantizers: QuantizerMap) -> list[Problem]:
    """Enabled quantizers that a forward of every tower never enters (S3, S6)."""
    names = tuple(q.name for q in quantizers if q.enabled and q.calls == 0)
    enabled = sum(q.enabled for q in quantizers)
    if not names:
        return []
    around = [q.name for q in quantizers if q.name in names and q.module_kind == "attention"]
    fix = "They are configured and compute nothing: turn them off in the recipe."
    if around:
        others = "" if len(around) == len(names) else " The rest: turn them off in the recipe."
        fix = f"{_sentence(_idle_attention_fix(around))}{others}"
    what = f"{len(names)} of {enabled} enabled quantizers never ran in a forward of both towers:"
    return [Problem("never runs", what, names, fix)]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] if not text.startswith("scaled_") else text


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


def uncalibrated(quantizers: QuantizerMap, recipe: Recipe | None = None) -> list[Problem]:
    """Enabled static quantizers whose amax is missing, not finite or not positive (S7).

    A range of zero is one where the part of the weight that it belongs to is all zeros, which stay zeros.

    Args:
        quantizers: the map.
        recipe: what was asked for, if it is known: a recipe may have ModelOpt calibrate nothing.
    """
    static = [q for q in quantizers if q.enabled and not q.dynamic]
    without = tuple(q.name for q in static if q.amax is None)
    unusable = [q for q in static if q.amax is not None and not q.amax.usable]
    problems = []
    if without:
        towers = sorted({q.tower for q in static if q.amax is None})
        fix = "The calibration never reached them: its forward loop must feed pictures and words to both towers."
        if all(q.calls == 0 for q in static if q.amax is None):
            around = all(q.module_kind == "attention" for q in static if q.amax is None)
            fix = "They never run, so no calibration reaches them: turn them off in the recipe."
            fix = _sentence(_idle_attention_fix(without)) if around else fix
        elif recipe is not None and not methods(recipe.algorithm):
            written = f"is {recipe.algorithm!r}" if "algorithm" in recipe.quant_cfg else "is missing"
            fix = f"The recipe's algorithm {written}, so nothing was calibrated: write algorithm: max."
        problems.append(
            Problem(
                "no amax",
                f"{len(without)} of {len(static)} enabled static quantizers have no amax and run dynamic "
                f"({', '.join(towers)}):",
                without,
                fix,
            )
        )
    if unusable:
        fix = "Look at what the calibration data gives these layers: all zero, inf or NaN."
        if all(q.kind.partition(".")[0] == "weight" for q in unusable):
            zeros = all(q.amax is not None and q.amax.empty == q.amax.count for q in unusable)
            fix = "Look at these weights of the checkpoint: they hold inf or NaN, or are zero where their range is not."
            if zeros:
                fix = "These weights are all zeros, so there is nothing to quantize: turn their quantizers off."
        problems.append(
            Problem(
                "unusable amax",
                f"{len(unusable)} enabled quantizers have an amax that is not finite and positive:",
                tuple(q.name for q in unusable),
                fix,
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
    constant = f" constant {q.amax.high:g}" if q.constant and q.amax is not None else ""
    calls = "" if q.calls == 1 else f" called {q.calls} times"
    return f"{q.format} {q.granularity}{dynamic}{constant}{calls}"


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
