"""Which loaded recipes the gate can judge, and why not the others."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache

from harness.recipes.loading import SEARCHED, Entry, Recipe

#: Kinds of recipes that the gate judges.
JUDGED = ("ptq", SEARCHED)
#: Other kinds, by how they begin, with the reason why the gate does not judge them.
OTHER_KINDS = {
    "speculative": "it trains a draft model for decoding",
    "distillation": "it trains a student model",
    "preset": "it is a preset behind an mtq.*_CFG, not a recipe",
}


def not_gated(
    recipe: Recipe,
    device: str,
    names: Collection[str] = (),
    known: Collection[str] | None = None,
) -> str | None:
    """Why the gate has no verdict on *recipe* on *device*, or None: it has to hold.

    Args:
        recipe: a loaded recipe.
        device: ``cpu`` or ``cuda``.
        names: the quantizers' names of the model at hand.
        known: names of quantizers by which a recipe is taken to be for another family; None: those
            of the model at hand. Without any, no recipe is.
    """
    if recipe.kind not in JUDGED:
        return kind_not_gated(recipe.kind)
    if recipe.unknown:
        fields = "field" if len(recipe.unknown) == 1 else "fields"
        verb = "is" if len(recipe.unknown) == 1 else "are"
        return f"{fields} {', '.join(recipe.unknown)} {verb} not known"
    if named := [setting for part in recipe.parts for setting in file_settings(part.algorithm)]:
        return (
            f"its algorithm reads or writes files ({', '.join(dict.fromkeys(named))}), which a "
            f"gate does not"
        )
    entries = [entry for part in recipe.parts for entry in part.entries]
    known = names if known is None else known
    if known and (foreign := foreign_patterns(recipe, known)):
        return (
            f"its patterns are for another family of model: {', '.join(foreign[:3])} name no part "
            f"of this one"
        )
    asked = [e for e in entries if e.enable and (not names or fnmatch.filter(names, e.pattern))]
    if device.partition(":")[0] != "cuda" and (
        formats := sorted({f for e in asked for f in cuda_formats(e)})
    ):
        return f"{', '.join(formats)} needs CUDA, and this is {device}"
    return None


def kind_not_gated(kind: str) -> str:
    """Why the gate does not judge recipes of *kind*, which is not one of :data:`JUDGED`."""
    why = next((why for start, why in OTHER_KINDS.items() if kind.startswith(start)), None)
    why = why or "no recipe that ModelOpt loads by itself"
    return f"kind {kind}: {why}; the gate judges ptq and {SEARCHED} recipes"


#: Settings of an algorithm that name a file or folder, which ModelOpt would read or write: known
#: ones, and by rule.
_FILE_SETTING = re.compile(r"(^|_)(dir|dirs|directory|folder|path|paths|file|files|filename)$")


def file_settings(algorithm: object) -> list[str]:
    """Return the settings of *algorithm* that name a file or folder, dotted:
    ``layerwise.checkpoint_dir``.
    """
    settings_found: list[str] = []
    if isinstance(algorithm, (list, tuple)):
        for step in algorithm:
            settings_found += file_settings(step)
    if isinstance(algorithm, Mapping):
        for name, value in algorithm.items():
            if isinstance(value, (Mapping, list, tuple)):
                settings_found += [f"{name}.{inner}" for inner in file_settings(value)]
            if value and _FILE_SETTING.search(str(name)):
                settings_found.append(str(name))
    return list(dict.fromkeys(settings_found))


def cuda_formats(entry: Entry) -> Iterator[str]:
    """Yield the formats of *entry* that ModelOpt computes on CUDA only (measured): NVFP4 and the MX
    formats.
    """
    for cfg in entry.attributes:
        bits, blocks = cfg.get("num_bits", 8), cfg.get("block_sizes")
        scale = blocks.get("scale_bits") if isinstance(blocks, Mapping) else None
        name = f"E{bits[0]}M{bits[1]}" if isinstance(bits, (list, tuple)) else f"INT{bits}"
        if isinstance(scale, (list, tuple)):
            yield f"NVFP4 ({name})" if tuple(scale) == (4, 3) else f"MX ({name})"
        elif isinstance(bits, (list, tuple)) and tuple(bits) != (4, 3):
            yield name


def foreign_patterns(recipe: Recipe, names: Collection[str]) -> list[str]:
    """Patterns that mean parts which no quantizer of *names* has, where they are what the recipe is
    about.

    A pattern is foreign if it matches nothing, ends in a kind of quantizer that exists, and names a
    module that resembles none here (a typo resembles one).  One foreign line in a recipe for this
    family is that recipe's defect, and insertion will say so; so a recipe counts as foreign only if
    nothing it enables is a weight here, or if it is kept in another family's folder.
    """
    asked = [e for part in recipe.parts for e in part.entries if e.enable]
    modules = {part for name in names for part in name.split(".")}
    foreign = [
        e.pattern
        for e in asked
        if not fnmatch.filter(names, e.pattern) and names_unknown(e.pattern, modules)
    ]
    weights = any(
        n.endswith("weight_quantizer") for e in asked for n in fnmatch.filter(names, e.pattern)
    )
    return foreign if foreign and (kept_elsewhere(recipe) or not weights) else []


def kept_elsewhere(recipe: Recipe) -> bool:
    """Whether *recipe* is in the folder of a family that is not CLIP's."""
    path = recipe.path.as_posix() if recipe.path else ""
    return (
        re.search(r"/(?:huggingface|models|model_type|timm)/(?!clip/|vit/|siglip)[^/]+/", path)
        is not None
    )


def words_of(pattern: str) -> list[str]:
    """Return the words of *pattern* that name parts of modules."""
    words = [
        w
        for w in re.split(r"[*?.]+|\[[^\]]*\]", pattern)
        if len(w) > 2 and not w.lstrip("_").isdigit()
    ]
    return [w for w in words if not re.search(r"quantizers?$", w)]


def names_unknown(pattern: str, modules: Collection[str]) -> bool:
    """Whether *pattern* names a module that resembles none of *modules* (parts of paths)."""
    known = frozenset(m for m in modules if not m.isdigit())
    return any(not _resembles(word, known) for word in words_of(pattern))


@lru_cache(maxsize=8192)
def _resembles(word: str, known: frozenset[str]) -> bool:
    """Whether *word* is a part of a name of *known*, or nearly one of them.

    Kept, as the recipes of a tree repeat the words of a few snippets.
    """
    if any(word in name for name in known):
        return True
    # One letter of a short name weighs more.
    cutoff = 0.8 if len(word) > 4 else 0.6
    return bool(difflib.get_close_matches(word, known, 1, cutoff))
