"""Write what the lint knows of the installed ModelOpt: its schemas, and its quantizers on every
known architecture.

    python -m harness.tools.known

The file is ``harness/lint/data/known.json.gz``.  Of earlier releases it holds the names that were
measured for CLIP (``baselines/versions``), which distinguish a name that a release has removed from
a misspelt one.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from importlib import metadata
from typing import Any

import pydantic
from torch import nn

from harness import places
from harness.lint.known import FILE
from harness.models import architectures, families
from harness.quantization import maps, quantize
from harness.quantization.attention import ATTENTIONS
from harness.recipes import judged
from harness.recipes.finding import installed_root
from harness.recipes.installed import modelopt_config
from harness.recipes.schema import ATTENTION_CLASSES
from harness.recipes.tree import Tree
from harness.tools.versions import measurement

#: Types that a snippet's or recipe's ``modelopt-schema`` comment names, by module.
_TYPES = {
    "modelopt.torch.quantization.config": (
        "QuantizeConfig",
        "QuantizerAttributeConfig",
        "QuantizerCfgEntry",
        "QuantizerCfgListConfig",
    ),
    "modelopt.recipe.config": (
        "AutoQuantizeConfig",
        "AutoQuantizeConstraints",
        "AutoQuantizeCost",
        "AutoQuantizeModuleSearchSpace",
        "LayerPatternList",
        "ModelOptAutoQuantizeRecipe",
        "ModelOptPTQRecipe",
        "RecipeMetadataConfig",
    ),
}
#: Single towers, with the part of CLIP's configuration that makes one.
_TOWERS = {
    "clip-vision": ("CLIPVisionModelWithProjection", "vision_config"),
    "clip-vision-encoder": ("CLIPVisionModel", "vision_config"),
    "clip-text": ("CLIPTextModelWithProjection", "text_config"),
    "clip-text-encoder": ("CLIPTextModel", "text_config"),
}
_WORDS = ("description", "title")


def main() -> int:
    """Write the file; 0."""
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_bytes(packed(content()))
    sys.stdout.write(f"wrote {FILE} ({FILE.stat().st_size:,} bytes)\n")
    return 0


def packed(data: dict[str, Any]) -> bytes:
    """Return *data* as the file holds it: equal data give equal bytes."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return gzip.compress(text.encode(), mtime=0)


def content() -> dict[str, Any]:
    """Return everything that the file holds."""
    releases: dict[str, Any] = {}
    for measured in measurement.every(places.BASELINES):
        releases[measured.release] = {
            "architectures": {"ViT-L-14": {"family": "clip", "places": _measured(measured)}}
        }
    releases[metadata.version("nvidia-modelopt")] = {
        **schemas(),
        "words": words(),
        "architectures": {name: architecture(name) for name in names()},
    }
    return {"releases": releases}


def names() -> list[str]:
    """Return the names of the architectures whose quantizers the file holds."""
    return ["embedded", *architectures.ARCHITECTURES, *_TOWERS]


def _measured(measured: measurement.ReleaseMeasurement) -> list[list[Any]]:
    places = {}
    for subject in measurement.PLACES.values():
        for q in measured.subjects[subject].maps["ViT-L-14"]:
            places[q.name] = (q.module_class, q.module_kind, None)
    return _folded(places)


# -- schemas ---------------------------------------------------------------------------------------


def schemas() -> dict[str, Any]:
    """Return the installed ModelOpt's schemas as JSON Schema, its methods, kinds of recipe and
    classes of module.
    """
    modules = {"modelopt.torch.quantization.config": modelopt_config()}
    from modelopt.recipe import config as recipe_config
    from modelopt.torch.quantization.mode import CalibrateModeRegistry
    from modelopt.torch.quantization.nn import QuantModuleRegistry

    modules["modelopt.recipe.config"] = recipe_config
    definitions: dict[str, Any] = {}
    types = {}
    for module, type_names in _TYPES.items():
        for name in type_names:
            if hasattr(modules[module], name):
                types[f"{module}.{name}"] = _schema(getattr(modules[module], name), definitions)
    modes = CalibrateModeRegistry._name2descriptor
    methods = {
        name.removesuffix("_calibrate"): _schema(
            CalibrateModeRegistry[name].config_class, definitions
        )
        for name in sorted(modes)
    }
    return {
        "definitions": definitions,
        "types": types,
        "methods": methods,
        "kinds": [kind.value for kind in recipe_config.RecipeType],
        "classes": [*QuantModuleRegistry._key_registry.values(), *ATTENTION_CLASSES],
    }


def _schema(of: Any, definitions: dict[str, Any]) -> Any:
    """The JSON Schema of a pydantic type; what it refers to is added to *definitions*."""
    schema = pydantic.TypeAdapter(of).json_schema(ref_template="#/definitions/{model}")
    definitions |= {
        name: _without_words(definition) for name, definition in schema.pop("$defs", {}).items()
    }
    return _without_words(schema)


def _without_words(schema: Any, is_properties: bool = False) -> Any:
    """*schema* without texts for people."""
    if isinstance(schema, dict):
        left = {key: value for key, value in schema.items() if is_properties or key not in _WORDS}
        return {key: _without_words(value, key == "properties") for key, value in left.items()}
    return [_without_words(item) for item in schema] if isinstance(schema, list) else schema


def words() -> list[str]:
    """Return the words of the patterns of all recipes that the installed ModelOpt ships: parts of
    any family.
    """
    tree = Tree(installed_root())
    words_of_all: set[str] = set()
    for path in sorted(tree.root.rglob("*.yaml")):
        for pattern in _patterns(tree.read(path).body):
            words_of_all.update(judged.words_of(pattern))
    return sorted(words_of_all)


def _patterns(value: Any) -> Iterator[str]:
    """The patterns of quantizers in the data of a file."""
    if isinstance(value, dict):
        if isinstance(value.get("quantizer_name"), str):
            yield value["quantizer_name"]
        for item in value.values():
            yield from _patterns(item)
    elif isinstance(value, list):
        for item in value:
            yield from _patterns(item)


# -- quantizers ------------------------------------------------------------------------------------


def architecture(name: str) -> dict[str, Any]:
    """Return where ModelOpt puts quantizers on an architecture, under both attention classes, and
    on which weights.
    """
    model = _tower(*_TOWERS[name]) if name in _TOWERS else architectures.build(name)
    family = families.of(model)
    places: dict[str, tuple[str, str, Any]] = {}
    for attention in ATTENTIONS:
        converted = quantize.insert(model, attention)
        for quantizer in maps.tensor_quantizers(converted):
            path, kind = maps.holder_of(quantizer), maps.kind_of(quantizer)
            module = converted.get_submodule(path)
            kind_of_module = maps.module_kind_of(family, module, kind, path)
            places[quantizer] = (maps.original_class(module), kind_of_module, _shape(module, kind))
    return {"family": family.name, "places": _folded(places)}


def _tower(model_class: str, part: str) -> nn.Module:
    import torch
    import transformers

    with torch.device("meta"):
        whole = architectures.build("ViT-L-14")
        model: nn.Module = getattr(transformers, model_class)(getattr(whole.config, part))
    return model.eval().requires_grad_(False)


def _shape(module: nn.Module, kind: str) -> list[int] | None:
    """The sizes of a weight, or of what enters a linear layer as far as they are known: the last
    one.
    """
    weight = getattr(module, "weight", None)
    if weight is None or (
        kind != "weight" and not (kind == "input" and isinstance(module, nn.Linear))
    ):
        return None
    return list(weight.shape) if kind == "weight" else [weight.shape[-1]]


_NUMBER = re.compile(r"(?<=\.)(layers|blocks|resblocks)\.(\d+)(?=\.)")


def _folded(places: dict[str, tuple[str, str, Any]]) -> list[list[Any]]:
    """Rows [name with ``#`` for the number of its layer, numbers, class, kind of module, shape]."""
    rows: dict[tuple[str, str], list[int]] = defaultdict(list)
    for name, about in places.items():
        match = _NUMBER.search(f".{name}")
        shown = _NUMBER.sub(r"\1.#", f".{name}", count=1)[1:]
        rows[shown, json.dumps(about)] += [int(match[2])] if match else []
    return [
        [name, list(_ranges(numbers)), *json.loads(about)]
        for (name, about), numbers in rows.items()
    ]


def _ranges(numbers: Iterable[int]) -> Iterator[list[int]]:
    """*numbers* as [first, last] of each run."""
    run: list[int] = []
    for number in sorted(numbers):
        if run and number != run[-1] + 1:
            yield [run[0], run[-1]]
            run = []
        run.append(number)
    if run:
        yield [run[0], run[-1]]


if __name__ == "__main__":
    sys.exit(main())
