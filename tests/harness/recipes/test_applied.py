"""The gate's rules of matching are ModelOpt's: compared with ModelOpt's own answer, entry by
entry.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import written
from torch import nn

from harness.errors import UsageError
from harness.models import architectures
from harness.quantization.attention import attention_registered
from harness.quantization.context import quiet
from harness.quantization.maps import QuantizerMap, quantizer_map, tensor_quantizers
from harness.recipes import loading
from harness.recipes.applied import applied_to, matched, place_of
from harness.recipes.finding import DEFAULT, MORE, installed_root
from harness.recipes.loading import Entry, Recipe, load
from harness.recipes.tree import Tree


@pytest.fixture(scope="module")
def inserted() -> Iterator[nn.Module]:
    """The embedded architecture without weights, with every quantizer inserted and off, its
    attention registered.
    """
    import modelopt.torch.quantization as mtq

    model = architectures.build("embedded")
    everything_off = {"quant_cfg": [{"quantizer_name": "*", "enable": False}], "algorithm": None}
    with attention_registered(model, "diffusers"), quiet():
        yield mtq.quantize(model, everything_off)


@pytest.fixture(scope="module")
def places(inserted: nn.Module) -> QuantizerMap:
    """The map of that model."""
    return quantizer_map(inserted)


def shipped() -> list[str]:
    """Names of every recipe and preset of the installed tree that the gate loads, and of this
    package's.
    """
    tree = Tree(installed_root())
    names = [*DEFAULT, *MORE]
    names += [
        path.relative_to(tree.root).as_posix()
        for path in sorted(tree.root.rglob("*.y*ml"))
        if loading.kind_of(tree.read(path), tree) in ("ptq", loading.SEARCHED, "preset")
    ]
    return names


def differences(
    model: nn.Module, places: QuantizerMap, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """What ModelOpt makes of the entries of *recipe* on a copy of *model* and the gate does not, or
    the reverse.
    """
    from modelopt.torch.quantization import conversion

    touched_by_modelopt: set[str] = set()
    own = conversion._match_quantizer

    def recording(pattern: Any, name: str, *rest: Any) -> bool:
        matched: bool = own(pattern, name, *rest)
        touched_by_modelopt.update([place_of(name)] if matched else [])
        return matched

    changed = copy.deepcopy(model)
    done = applied_to(places, recipe.entries)
    lines = []
    with monkeypatch.context() as patched:
        patched.setattr(conversion, "_match_quantizer", recording)
        for entry, touched in zip(recipe.entries, done.touched, strict=True):
            touched_by_modelopt.clear()
            conversion.set_quantizer_by_cfg(changed, [as_modelopt_takes_it(entry)])
            if touched_by_modelopt != touched:
                lines.append(
                    f"{recipe.name} {entry.pattern}: {len(touched_by_modelopt)} by ModelOpt, {len(touched)} here"
                )
    on = {name for name, q in tensor_quantizers(changed).items() if q.is_enabled}
    never = {
        n
        for n, q in tensor_quantizers(changed).items()
        if type(q).__name__ == "HardDisabledTensorQuantizer"
    }
    expected = {name for name, setting in done.settings.items() if setting.enable} - never
    return [
        *lines,
        *(f"{recipe.name} {name}: on here or there only" for name in sorted(on ^ expected)),
    ]


def as_modelopt_takes_it(entry: Entry) -> dict[str, Any]:
    """An entry in the form of a ``quant_cfg``."""
    cfg = {} if entry.cfg is None else {"cfg": entry.cfg}
    parent = {} if entry.parent_class is None else {"parent_class": entry.parent_class}
    return {"quantizer_name": entry.pattern, "enable": entry.enable, **cfg, **parent}


@pytest.fixture(scope="module")
def parts() -> list[Recipe]:
    """All that are shipped, once each, but for the formats that the gate cannot judge."""
    parts_by_hash: dict[str, Recipe] = {}
    refused = []
    for name in shipped():
        try:
            parts_by_hash |= {part.hash: part for part in load(name).parts}
        except UsageError as error:
            refused.append(str(error))
    assert all("bias" in line or "rotate" in line for line in refused), refused
    return list(parts_by_hash.values())


def test_entries_of_shipped_recipes_match_what_they_match_in_modelopt(
    inserted: nn.Module, places: QuantizerMap, parts: list[Recipe]
) -> None:
    """Which entries match which quantizers: every pattern and class of every recipe that ModelOpt
    ships.
    """
    from modelopt.torch.quantization.conversion import _match_quantizer
    from modelopt.torch.quantization.nn import QuantModuleRegistry

    entries = {(e.pattern, e.parent_class): e for part in parts for e in part.entries}
    modules = tensor_quantizers(inserted)
    different = []
    for (pattern, parent), entry in entries.items():
        cls = QuantModuleRegistry[parent] if parent else None
        theirs = {
            name
            for name, module in modules.items()
            if _match_quantizer(pattern, name, module, cls, inserted)
        }
        if theirs != matched(places, entry):
            different.append((pattern, parent))

    assert different == []
    assert len(parts) > 60
    assert len(entries) > 100


def test_recipes_are_applied_as_modelopt_applies_them(
    inserted: nn.Module, places: QuantizerMap, parts: list[Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ends on: of the recipes of this package, and of those that ModelOpt ships with sequences
    of quantizers.
    """
    with_lists = [
        part for part in parts if any(isinstance(entry.cfg, list) for entry in part.entries)
    ]
    own = [part for part in parts if part.name in DEFAULT]

    assert len(with_lists) >= 2
    assert [
        line
        for part in (*with_lists[:4], *own)
        for line in differences(inserted, places, part, monkeypatch)
    ] == []


W4A8 = "[{num_bits: 4, block_sizes: {-1: 32}}, {num_bits: e4m3}]"
FC = "  - {quantizer_name: '*fc1.weight_quantizer', "


@pytest.mark.parametrize(
    "entries",
    [
        f"{FC}cfg: {W4A8}}}\n  - {{quantizer_name: '*weight_quantizer.1', enable: false}}\n",
        f"{FC}cfg: {W4A8}}}\n  - {{quantizer_name: '*weight_quantizer.0', cfg: {{num_bits: 8}}}}\n",
        f"{FC}cfg: {W4A8}}}\n{FC}cfg: {{num_bits: 8}}}}\n",
        f"{FC}cfg: {W4A8}}}\n{FC}cfg: {W4A8}}}\n{FC}enable: false}}\n",
        f"{FC}cfg: {W4A8}}}\n  - {{quantizer_name: '*fc1*', cfg: {W4A8}}}\n",
        f"{FC}cfg: {W4A8}}}\n  - {{quantizer_name: '*', parent_class: nn.Linear, enable: true}}\n",
        f"  - {{quantizer_name: '*q_bmm_quantizer', cfg: {W4A8}}}\n"
        "  - {quantizer_name: '*q_bmm_quantizer.1', enable: false}\n",
        "  - {quantizer_name: '*_quantizer', parent_class: CLIPAttention, cfg: {num_bits: 8}}\n",
        "  - {quantizer_name: '*[!t]_quantizer', cfg: {num_bits: 8}}\n",
        "  - {quantizer_name: '*Weight*', enable: true}\n",
        "  - {quantizer_name: 'text_model.encoder.layers.?.*', enable: true}\n",
    ],
)
def test_forms_that_no_shipped_recipe_has(
    inserted: nn.Module,
    places: QuantizerMap,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    entries: str,
) -> None:
    """Parts of sequences, sequences made again, classes of attention blocks, and sets of
    characters.
    """
    recipe = written.recipe(tmp_path, written.DENY_ALL + entries)

    assert differences(inserted, places, recipe, monkeypatch) == []


def test_sequence_within_a_sequence_is_noticed(places: QuantizerMap, tmp_path: Path) -> None:
    """A second list for the same weights ends up in each part of the first one, as ModelOpt does
    it.
    """
    recipe = written.recipe(tmp_path, written.DENY_ALL + 2 * f"{FC}cfg: {W4A8}}}\n")
    done = applied_to(places, recipe.entries)

    assert {place.rpartition(".fc1")[2] for place in done.nested} == {".weight_quantizer"}
    assert "vision_model.encoder.layers.0.mlp.fc1.weight_quantizer.1.0" in done.settings
