"""Rules of shape: what a recipe's map and an outline show to be wrong, without weights.

Each rule is a function of a recipe on an architecture (or of a recipe on all of its architectures)
that yields problems.  A problem names the architecture, the layers and the sizes.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from harness.lint.known import installed
from harness.lint.matching import tells_numbers
from harness.lint.rules import misfit
from harness.outlines.fit import Share, State, View
from harness.outlines.names import CONTRASTIVE
from harness.outlines.outline import EXPERTS, MLP, Site
from harness.problems import Problem
from harness.quantization.maps import ATTENTION_KINDS
from harness.recipes import judged, patterns
from harness.recipes.applied import matched
from harness.recipes.loading import Entry

#: Rule -> what it looks for.
RULES = {
    "no match": "A pattern matches nothing in the family that it is written for.",
    "nothing of what it claims": "The recipe says that it quantizes MLPs or experts, and none is.",
    "block size": "Blocks do not divide the in-features of a weight.",
    "odd size": "Numbers of four bits are stored two a byte, and the in-features are odd.",
    "fused layers differ": "Layers that runtimes fuse have different formats.",
    "part not left out": "The vision tower or the projector of a language model is quantized.",
    "part left out": "The description says that a part is quantized, and it is not.",
    "no such quantizer": "A quantizer of attention, KV cache or head exists in no module.",
    "weight-only with inputs": "A weight-only recipe quantizes inputs.",
    "twins differ": "Two recipes that differ in KV cache or inputs quantize other weights.",
}


@dataclass(frozen=True)
class ShapeFault:
    """A problem of a recipe on an architecture."""

    architecture: str
    problem: Problem

    @property
    def rule(self) -> str:
        """The rule that it breaks."""
        return self.problem.rule

    def __str__(self) -> str:
        return f"{self.architecture}: {self.problem}"


Rule = Callable[[View], Iterator[Problem]]


def faults(view: View) -> list[ShapeFault]:
    """What the rules of one architecture find."""
    name = view.outline.row.name
    return [ShapeFault(name, problem) for rule in _RULES for problem in rule(view)]


def _modules(sites: Sequence[Site]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(module for site in sites for module in site.modules))


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


# -- sizes -----------------------------------------------------------------------------------------


def blocks(view: View) -> Iterator[Problem]:
    """Weights, and inputs, of linear layers whose in-features the blocks do not divide."""
    bad: dict[tuple[int, int], list[Site]] = defaultdict(list)
    odd: dict[int, list[Site]] = defaultdict(list)
    for site, state in view.on():
        if site.kind not in ("weight", "input") or site.module_kind not in ("linear", "experts"):
            continue
        if site.shape is None:
            continue
        for attributes in state.attributes:
            sizes = {
                key: size
                for key, size in (attributes.get("block_sizes") or {}).items()
                if key == -1 and isinstance(size, int)
            }
            if (results := misfit(sizes, site.shape)) is not None:
                bad[results].append(site)
            elif site.kind == "weight" and _bits(attributes) == 4 and site.shape[-1] % 2:
                odd[site.shape[-1]].append(site)
    for (block, size), sites in bad.items():
        modules = _modules(sites)
        what = f"blocks of {block} do not divide the {size} features of {_layers(modules)}"
        yield Problem("block size", what, modules, _fix_of_blocks(size, sites))
    for size, sites in odd.items():
        modules = _modules(sites)
        what = f"two numbers of four bits are stored in a byte, and {_layers(modules)} have {size}"
        yield Problem("odd size", what, modules, _fix_of_blocks(size, sites))


def _layers(modules: Sequence[str]) -> str:
    return _count(len(modules), "layer")


def _bits(attributes: dict[str, object]) -> int:
    bits = attributes.get("num_bits", 8)
    return sum(bits) + 1 if isinstance(bits, (tuple, list)) else int(str(bits))


def _fix_of_blocks(size: int, sites: Sequence[Site]) -> str:
    fitting = [block for block in (128, 64, 32, 16, 8, 4, 2) if size % block == 0]
    fits = f", or use blocks that divide {size}, such as {fitting[0]}" if fitting else ""
    pattern = _pattern_of(sites)
    return f"Leave them out: - {{quantizer_name: '{pattern}', enable: false}}{fits}."


def _pattern_of(sites: Sequence[Site]) -> str:
    """A pattern that names *sites*: the words that each of their paths has."""
    paths = [
        [word for word in module.split(".") if not word.isdigit()]
        for site in sites
        for module in site.modules[:1]
    ]
    shared = [word for word in paths[0] if all(word in path for path in paths)]
    remaining = [word for word in shared if word not in ("model", "layers", "blocks", "encoder")]
    return f"*{'*'.join(remaining)}*" if remaining else "*"


# -- fused layers ----------------------------------------------------------------------------------

#: Layers of one module that runtimes read with one product.
_FUSED: tuple[tuple[str, ...], ...] = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
)


def fused(view: View) -> Iterator[Problem]:
    """Layers that are fused, q/k/v or gate/up or the experts of a layer, with different formats."""
    groups: dict[tuple[str, str], dict[str, list[tuple[Site, State]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for site, state in view.states.items():
        if site.kind not in ("weight", "input"):
            continue
        holder, _, leaf = site.module.rpartition(".")
        if site.module_kind == "experts" and site.kind == "weight":
            groups[site.module, "experts"][site.name].append((site, state))
        for members in _FUSED:
            if leaf in members and site.module_kind == "linear":
                groups[holder, f"{'/'.join(members)}.{site.kind}"][leaf].append((site, state))
    differing: dict[tuple[str, str], list[Site]] = defaultdict(list)
    for (_, name), by_leaf in groups.items():
        keys = {state.key for results in by_leaf.values() for _, state in results}
        if len(keys) > 1:
            shown = {leaf: results[0][1].shown for leaf, results in by_leaf.items()}
            different = ", ".join(
                f"{_short(leaf)} {form}" for leaf, form in _first_of_each(shown).items()
            )
            differing[name, different] += [
                site for results in by_leaf.values() for site, _ in results
            ]
    for (name, different), sites in differing.items():
        what = f"{name.replace('.', ' ')}s are fused by runtimes, and differ: {different}"
        fix = "Give all of them one format, granularity and block size, or leave all of them out."
        yield Problem("fused layers differ", what, _modules(sites), fix)


def _short(leaf: str) -> str:
    """The last part of a path; of an expert's quantizer its number."""
    results = re.search(r"\.(\d+)$", leaf)
    return f"expert {results[1]}" if results else leaf


def _first_of_each(shown: dict[str, str]) -> dict[str, str]:
    """*shown* with one name for each value."""
    results: dict[str, str] = {}
    for leaf, form in shown.items():
        if form not in results.values():
            results[leaf] = form
    return results if len(results) > 1 else shown


# -- parts -----------------------------------------------------------------------------------------

#: Words of a description, or of patterns, that mean the vision tower and what leads out of it.
_SEEING = re.compile(r"vision|visual|\bvit\b|image|multi-?modal|projector|\bvl\b", re.IGNORECASE)
#: What says that something is left as it is.
_NEGATED = re.compile(
    r"exclud|skip|left out|leave|not quantiz|unquantiz|un-?touched|without|remain|stay|keep|kept|"
    r"bf16|fp16|disabled|\bonly\b|novit",
    re.IGNORECASE,
)


def left_out(view: View) -> Iterator[Problem]:
    """A vision tower or projector that is quantized although nothing of the recipe means it."""
    row = view.outline.row
    if not row.sees:
        return
    says = _of_vision(view.subject.description)
    for part in ("vision", "projector"):
        on = [site for site, _ in view.on() if site.part == part]
        if not on:
            continue
        meant = _meant(view, on)
        if says != "left out" and meant:
            continue
        if says == "quantized":
            continue
        modules = _modules(on)
        total = _modules([site for site in view.states if site.part == part])
        prefix = row_prefix(view, part)
        reason = (
            "the description says that it is left out"
            if says == "left out"
            else "no entry and no description of the recipe says that it is meant"
        )
        what = f"{len(modules):,} of {len(total):,} modules of the {part} are quantized: {reason}"
        fix = (
            f"Leave it out behind the entries that enable: - {{quantizer_name: '*{prefix}*', "
            f"enable: false}}. Or say in the description that it is quantized."
        )
        yield Problem("part not left out", what, modules, fix)


def row_prefix(view: View, part: str) -> str:
    """The word of a path that means a part of the architecture."""
    prefix = view.outline.row.parts[part]
    words = [
        word
        for path in prefix
        for word in path.split(".")
        if any(f".{word}." in f".{site.name}" and site.part == part for site in view.states)
    ]
    return [word for word in words if word and word != "model"][-1]


def _of_vision(description: str) -> str:
    """What *description* says of the vision tower: ``left out``, ``quantized`` or nothing."""
    results = ""
    for sentence in re.split(r"(?<=[.;:])\s+", description):
        if _SEEING.search(sentence):
            if _NEGATED.search(sentence):
                return "left out"
            results = (
                "quantized" if re.search(r"quantiz|appl", sentence, re.IGNORECASE) else results
            )
    return results


def _meant(view: View, on: Sequence[Site]) -> bool:
    """Whether every one of the quantizers *on* is enabled by an entry that names the part."""
    other = {
        word
        for site in view.outline.sites
        if site.part in ("language", "experts", "head")
        for word in site.name.split(".")
    }
    entries = view.subject.recipe.entries
    for site in on:
        for setting in view.states[site].settings:
            if not setting.enable:
                continue
            words = judged.words_of(entries[setting.switched].pattern)
            if not any(not any(word in known for known in other) for word in words):
                return False
    return True


def left_in(view: View) -> Iterator[Problem]:
    """A vision tower that the description says is quantized, and that is not."""
    share = view.shares.get("vision")
    if share is None or share.on or _of_vision(view.subject.description) != "quantized":
        return
    modules = _modules([site for site in view.states if site.part == "vision"])
    what = f"the description says that the vision tower is quantized; {share} weights of it are"
    yield Problem("part left out", what, modules, "Enable it, or correct the description.")


# -- what the recipe says of itself ----------------------------------------------------------------

_CLAIMS = {
    MLP: re.compile(r"(?<![a-z])o?mlps?(?![a-z])", re.IGNORECASE),
    EXPERTS: re.compile(r"(?<![a-z])(?:experts?|moe)(?![a-z])", re.IGNORECASE),
}
_NOT_CLAIMED = re.compile(
    r"except|exclud|skip|leav|left|not |without|bf16|rest|disabled", re.IGNORECASE
)


def claimed(view: View) -> Iterator[Problem]:
    """MLPs or experts that the recipe says it quantizes, of which none is."""
    said = [
        sentence
        for sentence in re.split(r"(?<=[.;])\s+", view.subject.description)
        if not _NOT_CLAIMED.search(sentence)
    ]
    said.append(view.subject.stem.replace("_", " ").replace("-", " "))
    for role, sign in _CLAIMS.items():
        if not any(sign.search(sentence) for sentence in said):
            continue
        sites = view.outline.roles(role)
        on = [site for site, _ in view.on() if site.role == role and site.kind == "weight"]
        if not sites or on:
            continue
        modules = _modules(sites)
        paths = dict.fromkeys(re.sub(r"\d+", "*", module) for module in modules)
        shown = ", ".join(f"'*{path.rpartition('*')[2]}*'" for path in paths)
        what = f"the recipe says that it quantizes {_word(role)}, and {Share(0, len(modules))} are"
        fix = f"Their names here are {shown}: add entries that match them."
        yield Problem("nothing of what it claims", what, modules, fix)


def _word(role: str) -> str:
    return {MLP: "MLPs", EXPERTS: "experts"}[role]


def weight_only(view: View) -> Iterator[Problem]:
    """Inputs that a recipe quantizes whose name says that it is weight-only."""
    on = [site for site, _ in view.on() if site.kind == "input"]
    if on and "weight_only" in view.subject.stem.replace("-", "_"):
        what = f"the recipe is weight-only, and the inputs of {_layers(_modules(on))} are quantized"
        fix = "Enable weight quantizers alone: end the patterns in weight_quantizer."
        yield Problem("weight-only with inputs", what, _modules(on), fix)


# -- quantizers that do not exist ------------------------------------------------------------------


def absent(view: View) -> Iterator[Problem]:
    """Entries that enable quantizers of attention or of the head which no module here has."""
    if view.outline.row.family in CONTRASTIVE:
        return  # which quantizers attention has there, --attention decides
    kinds = {site.kind for site in view.states}
    for index, entry in enumerate(view.subject.recipe.entries):
        if not entry.enable or view.touched[index]:
            continue
        asked = [
            kind
            for kind in ATTENTION_KINDS
            if fnmatch.fnmatch(f"{kind}_quantizer", f"*{entry.pattern.rpartition('.')[2]}")
            and "_bmm" in entry.pattern.replace("bmm2", "_bmm")
            and kind not in kinds
        ]
        head = "lm_head" in entry.pattern and "head" not in view.outline.row.parts
        if asked or head:
            what = (
                f"entry {index + 1} {entry.shown!r} ({_origin(entry)}) asks for quantizers that no "
                f"module has"
            )
            there = ", ".join(sorted(f"{kind}_quantizer" for kind in kinds if "bmm" in kind))
            fix = f"Remove the entry. Attention has: {there or 'none'}."
            yield Problem("no such quantizer", what, (), fix)


def _origin(entry: Entry) -> str:
    """The file and line of *entry*, without the folders above the tree."""
    return re.sub(r"^.*?(?=(?:general|configs|huggingface|model_type|models)/)", "", entry.origin)


_RULES: tuple[Rule, ...] = (
    blocks,
    fused,
    left_out,
    left_in,
    claimed,
    weight_only,
    absent,
)


# -- of all architectures together -----------------------------------------------------------------

#: Words of patterns -> the role of the modules that they are for, in this library or another.
_WORDS = {
    "shared": "shared experts",
    "experts": EXPERTS,
    "moe": EXPERTS,
    "linear_attn": "linear attention",
    "conv1d": "linear attention",
    "in_proj": "linear attention",
    "attn": "attention",
    "attention": "attention",
    "q_proj": "attention",
    "k_proj": "attention",
    "v_proj": "attention",
    "o_proj": "attention",
    "linear_qkv": "attention",
    "linear_proj": "attention",
    "mlp": MLP,
    "ffn": MLP,
    "feed_forward": MLP,
    "up_proj": MLP,
    "down_proj": MLP,
    "gate_proj": MLP,
    "linear_fc": MLP,
}
#: Other names of the head.
_HEADS = ("lm_head", "output_layer", "proj_out", "embed_out")


def unmatched(views: Sequence[View], vocabulary: frozenset[str]) -> list[ShapeFault]:
    """Entries that enable and match nothing in any architecture that the recipe is for.

    Recipes name a module in the spelling of several libraries; that is not a fault where modules of
    the role that an entry is for are quantized by another entry, or do not exist.

    Args:
        views: the recipe on the architectures that it is for.
        vocabulary: words of modules and quantizers of every architecture, which distinguish a
            module of another model from a misspelt one.
    """
    results = []
    for index, entry in enumerate(views[0].subject.recipe.entries if views else ()):
        if any(view.touched[index] for view in views):
            continue
        if "bmm" in entry.pattern and all(v.outline.row.family in CONTRASTIVE for v in views):
            continue  # which quantizers attention has there, --attention decides
        meant = _misspelt(entry, vocabulary)
        view = _written_for(entry, views, meant)
        if view is None:
            continue
        row = view.outline.row
        what = (
            f"entry {index + 1} {entry.shown!r} ({_origin(entry)}) matches none of the quantizers "
            f"of {row.family} models{patterns.of_class(entry)}"
        )
        fix = f"Did you mean {meant!r}?" if meant else _near(entry, view)
        results.append(ShapeFault(row.name, Problem("no match", what, (), fix)))
    return results


def _written_for(entry: Entry, views: Sequence[View], meant: str) -> View | None:
    """The architecture that *entry*, which matches nothing, was written for; None where it may
    match nothing.
    """
    subject = views[0].subject
    if meant:
        corrected = replace(entry, pattern=meant)
        return next((view for view in views if matched(view.outline.sites, corrected)), None) or (
            views[0] if not subject.is_general else None
        )
    if not entry.enable or not judged.words_of(entry.pattern):
        return None
    if tells_numbers(entry.pattern) and not subject.is_of_checkpoint:
        return None  # of a checkpoint with more layers than the one that stands for it
    own = patterns.is_own(subject.recipe, entry) and not subject.is_general
    asked = [*views] if own else _owners(entry, views)
    role = _role_of(entry)
    for view in asked:
        sites = [site for site in view.states if _is_for(site, role, entry)]
        if sites and not any(view.states[site].on for site in sites):
            return view
    return None


def _role_of(entry: Entry) -> str:
    """The role of the modules that *entry* is for; empty where its words say none."""
    words = judged.words_of(entry.pattern)
    if any(head in word for word in words for head in _HEADS):
        return "head"
    for sign, role in _WORDS.items():
        if any(sign in word for word in words):
            return role
    return ""


def _is_for(site: Site, role: str, entry: Entry) -> bool:
    """Whether *site* is one of those that *entry*, of that *role*, is for."""
    kind = re.search(r"(weight|input|output|[qkv]_bmm)_quantizer", entry.pattern)
    if kind is not None and site.kind != kind[1]:
        return False
    if role == "head":
        return site.part == "head"
    return site.part in ("language", "experts") and (not role or site.role == role)


def _owners(entry: Entry, views: Sequence[View]) -> list[View]:
    """The architectures of the one family that alone has a module which *entry* names."""
    for word in judged.words_of(entry.pattern):
        owners = [view for view in views if any(word in known for known in view.outline.words)]
        if owners and len({view.outline.row.family for view in owners}) == 1 and len(views) > 1:
            return owners
    return []


def _misspelt(entry: Entry, known: frozenset[str]) -> str:
    """*entry*'s pattern with a misspelt word corrected; empty where no word is misspelt."""
    others = known | set(installed().data["words"]) | set(_HEADS) | set(_WORDS)
    for word in re.findall(r"[A-Za-z_]\w{3,}", entry.pattern):
        plain = word.strip("_")
        if any(plain in item for item in others):
            continue
        near = difflib.get_close_matches(plain, sorted(known), 1, 0.8)
        if near:
            return entry.pattern.replace(plain, near[0])
    return ""


def _near(entry: Entry, view: View) -> str:
    """The quantizers that *entry* may have been written for."""
    role = _role_of(entry)
    sites = [site for site in view.states if _is_for(site, role, entry)]
    names = dict.fromkeys(re.sub(r"\.\d+", ".*", site.name) for site in sites)
    shown = ", ".join(map(repr, list(names)[:2]))
    return f"Names of {role or 'modules'} here are such as {shown}."


# -- twins -----------------------------------------------------------------------------------------


def twins(view: View, twin: View) -> list[ShapeFault]:
    """Weights that one of two recipes quantizes and the other does not."""
    ours, theirs = view.weights, twin.weights
    name = view.outline.row.name
    results = []
    for more, less, how in ((theirs, ours, "does not"), (ours, theirs, "does")):
        extra = {module: part for module, part in more.items() if module not in less}
        if extra:
            other = "it" if how == "does not" else "its twin"
            what = (
                f"its twin {twin.subject.name} quantizes {_layers(list(extra))} more than it"
                if how == "does not"
                else f"it quantizes {_layers(list(extra))} more than {other} {twin.subject.name}"
            )
            fix = "Name the same modules in both: import one list of patterns."
            results.append(ShapeFault(name, Problem("twins differ", what, tuple(extra), fix)))
    return results
