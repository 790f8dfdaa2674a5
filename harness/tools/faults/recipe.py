"""The recipe is not what its author meant: files with one slip, and entries that ModelOpt reads
otherwise.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import yaml
from torch import nn
from typing_extensions import Required, TypedDict

from harness.recipes.loading import Recipe
from harness.tools.faults.catalogue import FaultSite, Where, add, fault, replaced


class RecipeEntry(TypedDict, total=False):
    """An entry of a recipe's quant_cfg, as far as a slip changes it."""

    quantizer_name: Required[str]
    parent_class: str
    enable: bool
    cfg: dict[str, object]


Entries = list[RecipeEntry]
Slip = Callable[[Entries], Entries]

OFF: RecipeEntry = {"quantizer_name": "*", "enable": False}
E4M3: dict[str, object] = {"num_bits": "e4m3", "axis": None}
LEFT_OUT = "*vision_model.encoder.layers.1.mlp.fc2.*"


def _named(ending: str, **cfg: object) -> Slip:
    """Change the attributes of the entries whose pattern ends so."""

    def change(entries: Entries) -> Entries:
        for entry in entries:
            if entry["quantizer_name"].endswith(ending) and "cfg" in entry:
                entry["cfg"] = entry["cfg"] | cfg
        return entries

    return change


def _renamed(old: str, new: str) -> Slip:
    def change(entries: Entries) -> Entries:
        return [{**e, "quantizer_name": e["quantizer_name"].replace(old, new)} for e in entries]

    return change


def _written(slip: Slip) -> Callable[[FaultSite], AbstractContextManager[None]]:
    """The recipe's file, with a slip in it, takes the clean one's place under the same name."""

    @contextmanager
    def plant(site: FaultSite) -> Iterator[None]:
        from harness.recipes import loading

        path = loading.load(site.recipe).path
        assert path is not None
        content = yaml.safe_load(path.read_text())
        content["quantize"]["quant_cfg"] = slip(content["quantize"]["quant_cfg"])
        changed = site.folder / path.name
        changed.write_text(yaml.safe_dump(content, sort_keys=False))
        site.options["recipes"] = (str(changed),)
        yield

    return plant


def _misread(slip: Slip) -> Callable[[FaultSite], AbstractContextManager[None]]:
    """The file is right; what ModelOpt makes of it is not."""

    @contextmanager
    def plant(_: FaultSite) -> Iterator[None]:
        from harness.quantization import quantize

        original: Callable[..., nn.Module] = quantize.quantize

        def quantized(
            model: nn.Module, recipe: Recipe, *args: object, **kwargs: object
        ) -> nn.Module:
            entries = slip(copy.deepcopy(recipe.quant_cfg["quant_cfg"]))
            read = dataclasses.replace(recipe, quant_cfg=recipe.quant_cfg | {"quant_cfg": entries})
            return original(model, read, *args, **kwargs)

        with replaced((quantize, "quantize", quantized)):
            yield

    return plant


def _deny_last(entries: Entries) -> Entries:
    return [e for e in entries if e["quantizer_name"] != "*"] + [OFF]


def _layers_by_number(entries: Entries) -> Entries:
    linears = [
        e
        for e in entries
        if "bmm" not in e["quantizer_name"] and e.get("parent_class") != "nn.Linear"
    ]
    named: Entries = [
        {"quantizer_name": f"*layers.[0-3].*{kind}_quantizer", "cfg": E4M3}
        for kind in (
            "proj.weight",
            "proj.input",
            "fc[12].weight",
            "fc[12].input",
            "[qkv]_bmm",
            "bmm2_output",
        )
    ]
    heads: Entries = [
        {"quantizer_name": f"*al_projection.{kind}_quantizer", "cfg": E4M3}
        for kind in ("weight", "input")
    ]
    return linears + named + heads


def _of_any_class(entries: Entries) -> Entries:
    for entry in entries:
        entry.pop("parent_class", None)
    return entries


_FILES: tuple[tuple[str, str, str, str, Slip], ...] = (
    (
        "deny-all last",
        "fp8",
        "the entry that turns everything off stands last",
        "the published dict (S2)",
        _deny_last,
    ),
    (
        "typo in a weight pattern",
        "fp8",
        "*wieght_quantizer matches nothing",
        "class: typos (S8)",
        _renamed("weight_quantizer", "wieght_quantizer"),
    ),
    (
        "typo in an attention pattern",
        "fp8",
        "*qkv_bmm_quantizer matches nothing",
        "class: typos (S8)",
        _renamed("[qkv]_bmm", "qkv_bmm"),
    ),
    (
        "pattern without globs",
        "fp8",
        "patch_embedding, without stars, is meant to leave the patch embedding out",
        "disable_quantizer(model, 'patch_embedding') (S8)",
        lambda e: [*e, {"quantizer_name": "patch_embedding", "enable": False}],
    ),
    (
        "softmax never applied",
        "fp8",
        "the softmax quantizer is configured and never called under sdpa",
        "diffusers' attention class (S4)",
        lambda e: [*e, {"quantizer_name": "*softmax_quantizer", "cfg": E4M3}],
    ),
    (
        "attention class without an output quantizer",
        "fp8",
        "p_bmm is asked for, which diffusers' class does not have",
        "two attention classes (S4)",
        lambda e: [*e, {"quantizer_name": "*p_bmm_quantizer", "cfg": E4M3}],
    ),
    (
        "no deny-all",
        "fp8",
        "only the attention entries are left, so all Linears run INT8 dynamic",
        "FP8_KV_CFG alone (S10)",
        lambda e: [x for x in e if "bmm" in x["quantizer_name"]],
    ),
    (
        "embeddings quantized too",
        "fp8",
        "*weight_quantizer without a parent class also takes the embeddings",
        "more is quantized than meant (S11)",
        _of_any_class,
    ),
    (
        "recipe swapped",
        "fp8",
        "the file called fp8.yaml holds INT8",
        "class: recipe swapped",
        _named("_quantizer", num_bits=8),
    ),
    (
        "layers by number",
        "fp8",
        "patterns name layers 0 to 3, all of the small model and 4 of 24 of ViT-L",
        "class: recipe fitted to one model",
        _layers_by_number,
    ),
    (
        "text tower left out",
        "fp8",
        "*text_model* is turned off at the end",
        "class: one tower left out",
        lambda e: [*e, {"quantizer_name": "*text_*", "enable": False}],
    ),
    (
        "E5M2 configured",
        "fp8",
        "the recipe says e5m2 for weights and inputs",
        "class: format mixed up",
        _named("put_quantizer", num_bits="e5m2"),
    ),
    (
        "inputs scaled row by row",
        "fp8",
        "inputs get a scale per row of the batch, so a forward of other rows raises",
        "a recipe that raises in its forward, with another recipe and model after it (S12)",
        _named("input_quantizer", axis=0),
    ),
    (
        "per-tensor weights",
        "int8",
        "weights lose their axis",
        "class: per-tensor instead of per-channel",
        _named("weight_quantizer", axis=None),
    ),
)
_MISREAD: tuple[tuple[str, str, str, str, Slip], ...] = (
    (
        "one Linear left out",
        "fp8",
        "ModelOpt skips one Linear of one layer",
        "class: one Linear left out",
        lambda e: [*e, {"quantizer_name": LEFT_OUT, "enable": False}],
    ),
    (
        "weights on the wrong axis",
        "int8",
        "weights get one scale per input channel instead of one per output channel",
        "class: wrong axis",
        _named("weight_quantizer", axis=1),
    ),
    (
        "ModelOpt drops the axis",
        "fp8-per-channel",
        "ModelOpt takes per-channel weights per tensor",
        "class: per-tensor instead of per-channel",
        _named("weight_quantizer", axis=None),
    ),
    (
        "INT8 runs with seven bits",
        "int8",
        "ModelOpt sets num_bits 7 for 8",
        "class: format mixed up",
        _named("_quantizer", num_bits=7),
    ),
    (
        "narrow range set",
        "int8",
        "ModelOpt quantizes to -127..127 where the recipe says nothing of it",
        "class: narrow range flipped (its default changed between versions)",
        _named("_quantizer", narrow_range=True),
    ),
    (
        "FP8 read as INT8",
        "fp8",
        "ModelOpt falls back to INT8 where the recipe says E4M3",
        "class: format mixed up",
        _named("_quantizer", num_bits=8),
    ),
    (
        "dynamic for static",
        "fp8",
        "ModelOpt computes input scales again for each batch",
        "class: dynamic for static",
        _named("input_quantizer", type="dynamic"),
    ),
    (
        "more than the recipe",
        "fp8-linear-only",
        "ModelOpt enables attention quantizers that the recipe leaves off",
        "class: more is quantized than asked",
        lambda e: [*e, {"quantizer_name": "*[qkv]_bmm_quantizer", "cfg": {"num_bits": (4, 3)}}],
    ),
)

for _name, _clean, _what, _origin, _slip in _FILES:
    add(_name, Where.RECIPE, _origin, _what, _written(_slip), _clean)
for _name, _clean, _what, _origin, _slip in _MISREAD:
    add(_name, Where.MODELOPT, _origin, _what, _misread(_slip), _clean)


@fault("preset that skips the vision tower", Where.RECIPE, "every mtq.*_CFG preset since 0.45 (S1)")
def _preset(site: FaultSite) -> Iterator[None]:
    """ModelOpt's own FP8 preset leaves the whole vision tower in FP16."""
    site.options["recipes"] = ("modelopt.torch.quantization:FP8_DEFAULT_CFG",)
    yield
