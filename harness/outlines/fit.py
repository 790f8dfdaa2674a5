"""A recipe on an architecture: what each quantizer ends as, and the share of each part."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from harness.errors import UsageError
from harness.outlines.outline import Outline, Site
from harness.outlines.rows import ROWS
from harness.outlines.table import PARTS, Row
from harness.quantization import maps
from harness.recipes import loading
from harness.recipes.applied import AppliedSetting
from harness.recipes.checking import Schema
from harness.recipes.installed import modelopt_config
from harness.recipes.loading import SEARCHED, Recipe
from harness.recipes.tree import Tree

#: Folders of a recipe tree that hold recipes for any model.
_SHARED = ("general", "configs")
#: Presets that no language model is quantized with as they are.
_PARTS = ("configs/ptq/presets/kv/", "configs/ptq/presets/diffusers/")


@dataclass(frozen=True)
class NamedRecipe:
    """A recipe with what its file says for people.

    Attributes:
        recipe: the loaded recipe.
        name: its path in the tree without the ending, or its name.
        description: the description in its metadata.
    """

    recipe: Recipe
    name: str
    description: str = ""

    @property
    def stem(self) -> str:
        """The last part of its name."""
        return self.name.rpartition("/")[2]

    @property
    def folder(self) -> str:
        """The folders of its name."""
        return self.name.rpartition("/")[0]

    @property
    def rows(self) -> tuple[Row, ...]:
        """The architectures that it is for: those of its folder, or the panel of general recipes;
        none where its folder names a model that the table lacks.
        """
        return rows_for(self.name)

    @property
    def is_of_checkpoint(self) -> bool:
        """Whether its folder is that of the very checkpoint whose sizes the table has."""
        folders = self.name.split("/")[:-1]
        sources = [row.source.rpartition("/")[2] for row in self.rows]
        return any(folder in sources for folder in folders)

    @property
    def is_general(self) -> bool:
        """Whether it is for any model."""
        return _of_folders(self.name) is None


def rows_for(name: str) -> tuple[Row, ...]:
    """The architectures that the recipe of this *name* in a tree is for."""
    if name.startswith(_PARTS):
        return ()
    results = _of_folders(name)
    return tuple(row for row in ROWS if row.panel) if results is None else results


def _of_folders(name: str) -> tuple[Row, ...] | None:
    """The architectures that a folder in *name* names; None where none means a model."""
    folders = name.split("/")[:-1]
    if folders and folders[0] in _SHARED:
        return None
    # The innermost folder that names an architecture counts: models/<organisation>/<checkpoint>.
    for folder in reversed(folders):
        rows = tuple(row for row in ROWS if _plain(folder) in _names(row))
        if rows:
            return rows
    return ()


def _names(row: Row) -> set[str]:
    return {_plain(name) for name in (row.family, row.name, *row.folders)}


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def subject(path: Path, tree: Tree, schema: Schema | None = None) -> NamedRecipe:
    """The recipe in the file *path* of *tree*, checked by *schema*: by default the installed one.

    Raises:
        UsageError: it cannot be loaded.
    """
    recipe = loading.load_in(path, tree, schema)
    return NamedRecipe(recipe, _name(path, tree), _description(path, tree))


def named(recipe: Recipe, tree: Tree) -> NamedRecipe:
    """*recipe*, which is loaded already, with its name in *tree* if it is one of that tree."""
    if recipe.path is None:
        return NamedRecipe(recipe, recipe.name)
    path = recipe.path.resolve()
    own = Tree(tree.root.resolve())
    return NamedRecipe(recipe, _name(path, own), _description(path, own))


def _name(path: Path, tree: Tree) -> str:
    try:
        return path.relative_to(tree.root).with_suffix("").as_posix()
    except ValueError:
        return path.with_suffix("").name


def _description(path: Path, tree: Tree) -> str:
    """The description of the recipe in *path*; empty where there is none."""
    try:
        data: Any = tree.resolve(tree.read(path)).data
    except UsageError:  # a recipe of two files, whose metadata nobody has to read
        return ""
    described = data.get("metadata") if isinstance(data, dict) else None
    text = described.get("description") if isinstance(described, dict) else None
    return " ".join(str(text or "").split())


@dataclass(frozen=True)
class State:
    """What a quantizer ends as: its settings, one for each part of a sequence."""

    settings: tuple[AppliedSetting, ...]

    @cached_property
    def on(self) -> bool:
        """Whether it quantizes."""
        return any(item.enable for item in self.settings)

    @property
    def attributes(self) -> tuple[dict[str, Any], ...]:
        """The attributes of the parts that are on."""
        return tuple(item.cfg or {} for item in self.settings if item.enable)

    @cached_property
    def shown(self) -> str:
        """``off``, or format and granularity: ``E2M1/E4M3 block16``."""
        return " and ".join(_shown(item) for item in self.key) or OFF

    @cached_property
    def key(self) -> tuple[str, ...]:
        """What two quantizers that are alike have in common: the attributes as JSON, with the
        values of those that the recipe does not give.
        """
        return tuple(_complete(_as_text(item)) for item in self.attributes)

    @property
    def complete(self) -> tuple[dict[str, Any], ...]:
        """As ``attributes``, with the values of those that the recipe does not give."""
        return tuple(json.loads(item) for item in self.key)


def _with_text_keys(value: Any) -> Any:
    """*value* as JSON has it, whose keys can be sorted."""
    if isinstance(value, Mapping):
        return {str(key): _with_text_keys(item) for key, item in value.items()}
    return value


def _as_text(attributes: Mapping[str, Any]) -> str:
    return json.dumps(_with_text_keys(attributes), sort_keys=True, default=repr)


@lru_cache(maxsize=1024)
def _complete(attributes: str) -> str:
    """*attributes*, as JSON, with ModelOpt's defaults."""
    values = json.loads(attributes)
    if values.get("block_sizes"):
        values["block_sizes"] = _with_numbers(values["block_sizes"])
    try:
        config = modelopt_config().QuantizerAttributeConfig(**values)
    except (TypeError, ValueError):  # of another release of ModelOpt
        return attributes
    return _as_text(config.model_dump(exclude={"enable"}))


def _with_numbers(blocks: Mapping[str, Any]) -> dict[int | str, Any]:
    """The sizes of blocks, whose axes are numbers."""
    return {int(key) if re.fullmatch(r"-?\d+", key) else key: size for key, size in blocks.items()}


OFF = "off"
_NEVER = State(())


@lru_cache(maxsize=1024)
def _shown(attributes: str) -> str:
    value = json.loads(attributes)
    bits = value.get("num_bits", 8)
    blocks = _with_numbers(value.get("block_sizes") or {})
    quantizer = SimpleNamespace(
        num_bits=tuple(bits) if isinstance(bits, list) else bits,
        unsigned=value.get("unsigned", False),
        block_sizes=blocks,
        axis=value.get("axis"),
    )
    return f"{maps.format_name(quantizer)} {maps.granularity(quantizer)}"


@dataclass(frozen=True)
class Share:
    """How many of the weights of a part are quantized."""

    on: int
    of: int

    def __str__(self) -> str:
        return f"{self.on:,} of {self.of:,}"


class View:
    """A recipe, which is not a search, on an outline."""

    def __init__(self, subject: NamedRecipe, outline: Outline) -> None:
        self.subject = subject
        self.outline = outline
        entries = subject.recipe.entries
        self.family = outline.family_for(entries)
        self._touched = self.family.touched(entries)

    @property
    def touched(self) -> tuple[frozenset[str], ...]:
        """For each entry one name of each group of quantizers that it touches."""
        return self._touched.applied.touched

    @cached_property
    def states(self) -> dict[Site, State]:
        """What every quantizer ends as."""
        by_place: dict[str, list[AppliedSetting]] = {}
        for name, setting in self._touched.applied.settings.items():
            by_place.setdefault(re.sub(r"(_quantizer)(?:\.\d+)+$", r"\1", name), []).append(setting)
        # A group holds places of the outline, which are sites.
        places: Iterable[Any] = self.family.places
        sites: list[Site] = list(places)
        states_by_site: dict[int, State] = {}
        for name, group in self._touched.groups.items():
            state = State(tuple(by_place.get(name, ()))) if name in by_place else _NEVER
            while group:
                lowest = group & -group
                states_by_site[lowest.bit_length() - 1] = state
                group ^= lowest
        return {sites[index]: states_by_site[index] for index in sorted(states_by_site)}

    def on(self) -> Iterator[tuple[Site, State]]:
        """Yield the quantizers that are on, with what they end as."""
        yield from ((site, state) for site, state in self.states.items() if state.on)

    @cached_property
    def shares(self) -> dict[str, Share]:
        """The share of quantized weights, by part of the architecture."""
        every: Counter[str] = Counter()
        on: Counter[str] = Counter()
        for site, state in self.states.items():
            if site.kind == "weight" and site.module_kind in ("linear", "conv", "experts"):
                every[site.part] += site.count
                on[site.part] += site.count * state.on
        return {part: Share(on[part], every[part]) for part in PARTS if every[part]}

    @cached_property
    def weights(self) -> dict[str, str]:
        """The modules whose weights are quantized, each with its part."""
        return {
            module: site.part
            for site, _ in self.on()
            if site.kind == "weight"
            for module in site.modules
        }

    def quantizers(self, other: View | None = None) -> list[maps.Quantizer]:
        """The map of the quantizers, or of those that *other* has differently."""
        results = []
        theirs = {} if other is None else other.by_name
        for site, state in self.states.items():
            for name in site.names:
                if other is None or theirs.get(name, _NEVER).key != state.key:
                    results.append(_quantizer(site, name, state))
        return results

    def changed(self, other: View) -> int:
        """How many quantizers end as something else than in *other*, on the same architecture."""
        if other.family is self.family:
            return sum(
                site.count
                for site, state in self.states.items()
                if other.states[site].key != state.key
            )
        theirs = other.by_name
        return sum(
            site.each
            for site, state in self.states.items()
            for name in site.names
            if theirs[name].key != state.key
        )

    def changes(self, other: View) -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...]]]:
        """Yield the name of each quantizer, or of one for each group, that ends as something else
        than in *other*, with what it ended as there and what it ends as here.
        """
        theirs = other.by_name
        alike = other.family is self.family
        for site, state in self.states.items():
            for name in site.names[:1] if alike else site.names:
                was = theirs[name]
                if was.key != state.key:
                    yield name, was.key, state.key

    @cached_property
    def by_name(self) -> dict[str, State]:
        """What every quantizer ends as, by its name in the published model."""
        return {name: state for site, state in self.states.items() for name in site.names}


_LAYER = re.compile(r"\.(\d+)\.")


def _quantizer(site: Site, name: str, state: State) -> maps.Quantizer:
    """A row of a quantizer map, in whose place for the tower the part is."""
    form, _, granularity = state.shown.partition(" ")
    number = _LAYER.search(name)
    constant = next((range_ for item in state.complete if (range_ := _constant(item))), None)
    return maps.Quantizer(
        name=name,
        kind=site.kind,
        tower=site.part,
        layer=int(number[1]) if number else None,
        module_class=site.module_class,
        module_kind=site.module_kind,
        format=form,
        granularity=granularity,
        enabled=state.on,
        dynamic=any(
            "dynamic" in (item.get("type"), (item.get("block_sizes") or {}).get("type"))
            for item in state.attributes
        ),
        calls=1,
        amax=None if constant is None else maps.Amax(1, constant, constant, ""),
        constant=constant is not None,
    )


def _constant(attributes: Mapping[str, Any]) -> float | None:
    """The range that *attributes* fix, so that nothing calibrates it; None where they do not."""
    if attributes.get("use_constant_amax"):
        return float(torch.finfo(torch.float8_e4m3fn).max)
    amax = attributes.get("constant_amax")
    return None if amax is None else float(amax)


def is_search(recipe: Recipe) -> bool:
    """Whether ModelOpt searches for the formats of *recipe*, by weights and data."""
    return recipe.kind == SEARCHED
