"""Which loaded recipes the gate can judge, and why not the others."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Collection, Iterator
from typing import Any

from harness.recipes.loading import SEARCHED, Entry, Recipe

#: Kinds of recipes that the gate judges.
JUDGED = ("ptq", SEARCHED)
#: Other kinds, by how they begin, with the reason why the gate does not judge them.
OTHER_KINDS = {
    "speculative": "it trains a draft model for decoding",
    "distillation": "it trains a student model",
    "preset": "it is a preset behind an mtq.*_CFG, not a recipe",
}


def not_gated(recipe: Recipe, device: str, names: Collection[str] = ()) -> str | None:
    """Why the gate has no verdict on *recipe* on *device*, or None: it has to hold.

    Args:
        recipe: a loaded recipe.
        device: ``cpu`` or ``cuda``.
        names: the quantizers' names of the model at hand; without them no recipe is taken to be for another family.
    """
    if recipe.kind not in JUDGED:
        return kind_not_gated(recipe.kind)
    if any(_keeps_checkpoints(part.algorithm) for part in recipe.parts):
        return "its algorithm keeps files in layerwise.checkpoint_dir, and a gate neither reads nor writes there"
    entries = [entry for part in recipe.parts for entry in part.entries]
    if names and (foreign := _foreign(recipe, names)):
        return f"its patterns are for another family of model: {', '.join(foreign[:3])} name no part of this one"
    asked = [e for e in entries if e.enable and (not names or fnmatch.filter(names, e.pattern))]
    if device.partition(":")[0] != "cuda" and (formats := sorted({f for e in asked for f in _cuda_formats(e)})):
        return f"{', '.join(formats)} needs CUDA, and this is {device}"
    return None


def kind_not_gated(kind: str) -> str:
    """Why the gate does not judge recipes of *kind*, which is not one of :data:`JUDGED`."""
    why = next((why for start, why in OTHER_KINDS.items() if kind.startswith(start)), None)
    why = why or "no recipe that ModelOpt loads by itself"
    return f"kind {kind}: {why}; the gate judges ptq and {SEARCHED} recipes"


def _cfgs(entry: Entry) -> list[dict[str, Any]]:
    return entry.cfg if isinstance(entry.cfg, list) else [entry.cfg or {}]


def _cuda_formats(entry: Entry) -> Iterator[str]:
    """Formats of *entry* that ModelOpt computes on CUDA only (measured): NVFP4 and the MX formats."""
    for cfg in _cfgs(entry):
        bits, blocks = cfg.get("num_bits", 8), cfg.get("block_sizes") or {}
        scale = blocks.get("scale_bits")
        name = f"E{bits[0]}M{bits[1]}" if isinstance(bits, (list, tuple)) else f"INT{bits}"
        if isinstance(scale, (list, tuple)):
            yield f"NVFP4 ({name})" if tuple(scale) == (4, 3) else f"MX ({name})"
        elif isinstance(bits, (list, tuple)) and tuple(bits) != (4, 3):
            yield name


def _keeps_checkpoints(algorithm: object) -> bool:
    if isinstance(algorithm, (list, tuple)):
        return any(map(_keeps_checkpoints, algorithm))
    if not isinstance(algorithm, dict):
        return False
    nested = algorithm.values()
    return bool(algorithm.get("checkpoint_dir")) or any(map(_keeps_checkpoints, nested))


def _foreign(recipe: Recipe, names: Collection[str]) -> list[str]:
    """Patterns that mean parts which this family of model does not have, where they are what the recipe is about.

    A pattern is foreign if it matches nothing, ends in a kind of quantizer that exists, and names a module that
    resembles none here (a typo resembles one).  One foreign line in a recipe for this family is that recipe's defect,
    and insertion will say so; so a recipe counts as foreign only if nothing it enables is a weight here, or if it is
    kept in another family's folder.
    """
    asked = [e for part in recipe.parts for e in part.entries if e.enable]
    modules = {part for name in names for part in name.split(".")}
    foreign = [e.pattern for e in asked if not fnmatch.filter(names, e.pattern) and _names_unknown(e.pattern, modules)]
    weights = any(n.endswith("weight_quantizer") for e in asked for n in fnmatch.filter(names, e.pattern))
    elsewhere = re.search(
        r"/(?:huggingface|models)/(?!clip/|vit/|siglip)[^/]+/", recipe.path.as_posix() if recipe.path else ""
    )
    return foreign if foreign and (elsewhere or not weights) else []


def _names_unknown(pattern: str, modules: Collection[str]) -> bool:
    words = [w for w in re.split(r"[*?.]+|\[[^\]]*\]", pattern) if len(w) > 2 and not w.lstrip("_").isdigit()]
    parts = [w for w in words if not re.search(r"quantizers?$", w)]
    known = [m for m in modules if not m.isdigit()]
    # One letter of a short name weighs more.
    near = {w: difflib.get_close_matches(w, known, 1, 0.8 if len(w) > 4 else 0.6) for w in parts}
    return any(not near[w] and not any(w in m for m in known) for w in parts)
