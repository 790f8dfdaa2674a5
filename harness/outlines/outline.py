"""The outline of an architecture: every place where ModelOpt puts a quantizer, with the part and
the role of its module and the sizes of its weight.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from torch import nn

from harness.errors import one_line
from harness.lint.known import QuantizerPlace
from harness.lint.matching import FamilyPlaces, tells_numbers
from harness.outlines import building, rows
from harness.outlines.names import CONTRASTIVE
from harness.outlines.rows import ROWS
from harness.outlines.table import PARTS, Row
from harness.quantization import maps
from harness.recipes.applied import AppliedEntry

#: Roles of modules, in the order in which the first that fits is taken: what a path contains.
_ROLES: tuple[tuple[str, str], ...] = (
    ("router", r"\.(?:router|gate|shared_expert_gate)(?:\.|$)"),
    ("experts", r"\.experts\."),
    ("shared experts", r"\.shared_experts?\."),
    ("linear attention", r"\.linear_attn\.|\.mixer\.(?:in_proj|out_proj|conv1d)$"),
    (
        "attention",
        r"attn|attention|\.mixer\.[qkvo]_proj$|\.mixer$",
    ),
    ("mlp", r"\.(?:mlp|ffn|feed_forward)\.|\.mixer\.(?:up|down)_proj$"),
)
#: Of modules for which recipes name MLPs and experts.
MLP, EXPERTS = "mlp", "experts"
#: Classes of experts whose weights are stored as (in-features, out-features).
_TRANSPOSED = ("Llama4TextExperts", "GptOssExperts")
#: Quantizers of fused experts: ``up_proj_input_quantizer``, ``down_proj_weight_quantizers.0``.
_OF_EXPERTS = re.compile(
    r"^(?P<module>.*)\.(?P<leaf>\w+_proj)_(?P<kind>\w+)_quantizers?(?:\.\d+)?$"
)


@dataclass(frozen=True)
class Site(QuantizerPlace):
    """A place for a quantizer in all layers that are alike.

    Attributes:
        part: vision, projector, language, experts, head or other.
        role: what the module does: attention, mlp, experts ...
        names: the names of the quantizers that it stands for, ``name`` first.
        each: how many quantizers each name stands for: routed experts that are not built.
    """

    part: str = "other"
    role: str = ""
    names: tuple[str, ...] = ()
    each: int = 1

    @cached_property
    def module(self) -> str:
        """Path of the module, or of the projection within fused experts."""
        results = _OF_EXPERTS.match(self.name)
        return f"{results['module']}.{results['leaf']}" if results else super().module

    @cached_property
    def kind(self) -> str:
        """``weight``, ``input``, ``k_bmm`` ..."""
        results = _OF_EXPERTS.match(self.name)
        return results["kind"] if results else super().kind

    @property
    def count(self) -> int:
        """How many quantizers of the published model it stands for."""
        return len(self.names) * self.each

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """The paths of the modules that it stands for."""
        return tuple(replace(self, name=name).module for name in self.names)


class Outline:
    """The places for quantizers of one architecture."""

    def __init__(self, row: Row, sites: Iterable[Site], unsupported: str = "") -> None:
        self.row = row
        self.sites = tuple(sites)
        #: Why there are none: what the installed library or ModelOpt said.
        self.unsupported = unsupported

    @cached_property
    def folded(self) -> FamilyPlaces:
        """One place of those that differ in the number of a layer alone."""
        return FamilyPlaces(self.row.family, self.sites)

    @cached_property
    def full(self) -> FamilyPlaces:
        """Every place, for entries that distinguish layers by their numbers."""
        return FamilyPlaces(
            self.row.family,
            [replace(site, name=name, names=(name,)) for site in self.sites for name in site.names],
        )

    def family_for(self, entries: Iterable[AppliedEntry]) -> FamilyPlaces:
        """The places that *entries* distinguish."""
        return self.full if any(tells_numbers(entry.pattern) for entry in entries) else self.folded

    @cached_property
    def words(self) -> frozenset[str]:
        """The words of the paths of its modules."""
        return self.folded.modules

    def roles(self, role: str) -> list[Site]:
        """The weights of modules of that *role* in the language model."""
        return [
            site
            for site in self.sites
            if site.role == role and site.kind == "weight" and site.part in ("language", "experts")
        ]


def of(name: str, attention: str = "diffusers") -> Outline:
    """The outline of the architecture *name*, or of ``embedded``, measured in the installed
    ModelOpt.

    Args:
        name: as ``--architectures`` names it.
        attention: as ``--attention`` names it; it makes a difference to CLIP's families alone.

    Raises:
        StopIteration: the table has no such row.
    """
    row = _row(name)
    return _measured(name, attention if row.family in CONTRASTIVE else "")


def _row(name: str) -> Row:
    if name == "embedded":
        return rows.embedded()
    return next(row for row in ROWS if row.name == name)


@lru_cache(maxsize=2 * len(ROWS))
def _measured(name: str, attention: str) -> Outline:
    row = _row(name)
    try:
        built = building.converted(row, attention)
    except Exception as error:  # of the library or of ModelOpt: the outline says it
        return Outline(row, (), f"{type(error).__name__}: {one_line(error)}"[:300])
    return Outline(row, _sites(row, built))


@lru_cache(maxsize=1)
def vocabulary() -> frozenset[str]:
    """The words of modules and the names of quantizers of every architecture of the panel."""
    outlines = [of(row.name) for row in ROWS if row.panel]
    kinds = {site.name.rpartition(".")[2] for known in outlines for site in known.sites}
    words = frozenset().union(*(known.words for known in outlines if known.sites))
    return words | {kind for kind in kinds if not kind.isdigit()}


def _sites(row: Row, built: building.Built) -> Iterable[Site]:
    for quantizer in maps.tensor_quantizers(built.model):
        published = list(built.published(quantizer))
        name = published[0][0]
        results = _OF_EXPERTS.match(name)
        path = results["module"] if results else name.rpartition(".")[0]
        own = _OF_EXPERTS.match(quantizer)
        module = built.model.get_submodule(own["module"] if own else quantizer.rpartition(".")[0])
        site = Site(
            name, maps.original_class(module), "", names=tuple(item for item, _ in published)
        )
        site = replace(site, each=published[0][1], role=_role(f".{site.module}", site.kind))
        yield replace(
            site,
            part=_part(row, f"{path}.", site.role),
            module_kind=_module_kind(module, bool(results)),
            shape=_shape(module, site),
        )


def _role(path: str, kind: str) -> str:
    """What the module at *path* does; of a quantizer around attention always ``attention``."""
    if kind in maps.ATTENTION_KINDS:
        return "attention"
    return next((role for role, sign in _ROLES if re.search(sign, path)), "")


def _part(row: Row, path: str, role: str) -> str:
    """The part that the module at *path* belongs to: that of the longest prefix."""
    results = max(
        (
            (len(prefix), part)
            for part, prefixes in row.parts.items()
            for prefix in prefixes
            if path.startswith(prefix)
        ),
        default=(0, "other"),
    )[1]
    assert results in PARTS, f"{row.name}: no part is called {results}"
    return "experts" if results == "language" and role == EXPERTS else results


def _module_kind(module: nn.Module, is_experts: bool) -> str:
    if is_experts:
        return "experts"
    classes: tuple[tuple[str, tuple[type[nn.Module], ...]], ...] = (
        ("linear", (nn.Linear,)),
        ("conv", (nn.Conv1d, nn.Conv2d, nn.Conv3d)),
        ("embedding", (nn.Embedding,)),
        ("layernorm", (nn.LayerNorm,)),
    )
    return next((kind for kind, of_kind in classes if isinstance(module, of_kind)), "attention")


def _shape(module: nn.Module, site: Site) -> tuple[int, ...] | None:
    """The sizes of the weight (out-features, in-features), or the in-features of an input."""
    results = _OF_EXPERTS.match(site.name)
    weight = getattr(module, results["leaf"] if results else "weight", None)
    if weight is None or not hasattr(weight, "shape"):
        return None
    sizes = tuple(int(size) for size in weight.shape)
    if results:
        sizes = sizes[1:]
        if site.module_class in _TRANSPOSED:
            sizes = sizes[::-1]
    if site.kind == "weight":
        return sizes
    linear = isinstance(module, nn.Linear) or results is not None
    return sizes[-1:] if site.kind == "input" and linear else None
