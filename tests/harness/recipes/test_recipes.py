"""Recipes are found, resolved as ModelOpt resolves them, checked against its schema, and brought
into one form.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import modelopt_tree
from harness.errors import UsageError
from harness.recipes import finding, judged, loading
from harness.recipes.finding import DEFAULT, HERE, MORE, installed_root
from harness.recipes.loading import Recipe, load
from harness.recipes.tree import Tree

FP8 = {"num_bits": (4, 3), "axis": None, "trt_high_precision_dtype": "Half"}


def from_modelopt(path: str | Path) -> dict[str, Any]:
    """What ModelOpt's own loader makes of a recipe, its print swallowed."""
    from modelopt.recipe import load_recipe

    with contextlib.redirect_stdout(io.StringIO()):
        return with_algorithm(load_recipe(path).quantize)


def with_algorithm(quantize: Any) -> dict[str, Any]:
    """A ``QuantizeConfig`` as written, and with the algorithm that ModelOpt reads where none is
    written.
    """
    config: dict[str, Any] = quantize.model_dump(exclude_unset=True)
    return {"algorithm": quantize.get("algorithm")} | config


def searched_by_modelopt(path: str | Path) -> list[dict[str, Any]]:
    """The formats between which ModelOpt's own loader makes an auto_quantize recipe choose."""
    from modelopt.recipe import load_recipe

    with contextlib.redirect_stdout(io.StringIO()):
        formats = load_recipe(path).auto_quantize.candidate_formats
    return [with_algorithm(format_) for format_ in formats]


def shipped() -> list[str]:
    """Names of the ptq recipes of the installed tree."""
    tree = Tree(installed_root())
    files = (p for p in sorted(tree.root.rglob("*.y*ml")) if loading.kind_of(tree.read(p)) == "ptq")
    return [p.relative_to(tree.root).as_posix() for p in files]


def write(path: Path, text: str) -> Path:
    """Write *text*, its folders made, and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def recipe_text(quant_cfg: str, algorithm: str = "max", imports: str = "") -> str:
    """A ptq recipe with these entries (indented by two)."""
    return (
        f"{imports}metadata:\n  recipe_type: ptq\nquantize:\n  algorithm: {algorithm}\n  "
        f"quant_cfg:\n{quant_cfg}"
    )


# --- equal to ModelOpt


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_recipe_resolves_as_modelopt_resolves_it(name: str) -> None:
    """Every ptq recipe of the installed tree comes out equal to ModelOpt's own loader's, value by
    value.
    """
    assert load(name).quant_cfg == from_modelopt(name)


def test_there_are_shipped_recipes_to_compare() -> None:
    """The comparison above is over the whole tree, not over nothing."""
    assert len(shipped()) > 40


ATTRIBUTES = st.fixed_dictionaries(
    {"num_bits": st.sampled_from([8, 4, "e4m3"])},
    optional={"axis": st.sampled_from([0, None]), "unsigned": st.booleans()},
)


@st.composite
def trees(draw: st.DrawFn) -> dict[str, str]:
    """A recipe over numerics, units that import them, and units that import units, as file name ->
    text.
    """
    schema = "# modelopt-schema: modelopt.torch.quantization.config."
    numerics = {f"n{i}": draw(ATTRIBUTES) for i in range(draw(st.integers(1, 3)))}
    files = {
        f"{n}.yaml": f"{schema}QuantizerAttributeConfig\n{yaml.safe_dump(a)}"
        for n, a in numerics.items()
    }
    entry_imports = {n: n for n in numerics}
    units: list[str] = []

    def entries(known: list[str]) -> list[dict[str, Any]]:
        mapping: Any = st.fixed_dictionaries(
            {"$import": st.sampled_from(sorted(numerics))}, optional={"axis": st.just(1)}
        )
        cfg = st.one_of(ATTRIBUTES, mapping, st.lists(mapping, min_size=1, max_size=2))
        name = st.sampled_from(
            ["*", "*weight_quantizer", "*input_quantizer", "*[qkv]_bmm_quantizer"]
        )
        lines = [
            st.fixed_dictionaries({"quantizer_name": name, "cfg": cfg}),
            st.fixed_dictionaries({"quantizer_name": name, "enable": st.booleans()}),
        ]
        if known:
            lines.append(st.fixed_dictionaries({"$import": st.sampled_from(known)}))
        return draw(st.lists(st.one_of(lines), min_size=1, max_size=4))

    for i in range(draw(st.integers(0, 3))):
        header = yaml.safe_dump({"imports": {**entry_imports, **{u: u for u in units}}})
        files[f"u{i}.yml"] = (
            f"{schema}QuantizerCfgListConfig\n{header}---\n{yaml.safe_dump(entries(units))}"
        )
        units.append(f"u{i}")
    body = {
        "imports": {**entry_imports, **{u: u for u in units}},
        "metadata": {"recipe_type": "ptq"},
        "quantize": {"algorithm": "max", "quant_cfg": entries(units)},
    }
    return {**files, "recipe.yaml": yaml.safe_dump(body, sort_keys=False)}


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(files=trees())
def test_a_made_up_tree_resolves_as_modelopt_resolves_it(
    files: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Nested units, splices, appended elements, overrides and lists of imports mean here what they
    mean to ModelOpt.
    """
    root = tmp_path_factory.mktemp("tree")
    for name, text in files.items():
        write(root / name, text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)  # ModelOpt looks imports up in the working directory first
        expected = from_modelopt(root / "recipe.yaml")

    assert load("recipe", root).quant_cfg == expected


def test_a_recipe_kept_as_a_directory_resolves_as_modelopt_resolves_it(tmp_path: Path) -> None:
    """metadata.yml and quantize.yml in a directory are one recipe, named after the directory."""
    write(tmp_path / "mine/metadata.yml", "recipe_type: ptq\n")
    write(
        tmp_path / "mine/quantize.yaml",
        "imports:\n  fp8: configs/numerics/fp8\nalgorithm: max\nquant_cfg:\n"
        "- quantizer_name: '*weight_quantizer'\n  cfg: {$import: fp8}\n",
    )

    loaded = load(str(tmp_path / "mine"))

    assert loaded.quant_cfg == from_modelopt(tmp_path / "mine")
    assert loaded.name == "mine"
    assert {p.name for p in loaded.files} == {"metadata.yml", "quantize.yaml", "fp8.yaml"}


# --- the default recipes


@pytest.mark.parametrize("name", DEFAULT)
def test_a_default_recipe_is_one_of_modelopts(name: str) -> None:
    """ModelOpt's loader takes each default recipe from its file and gives the same quant_cfg."""
    loaded = load(name)

    assert loaded.quant_cfg == from_modelopt(HERE / f"{name}.yaml")
    assert loaded.name == name
    assert loaded.files == (HERE / f"{name}.yaml",), (
        "they need no tree, so no pull request changes them from below"
    )


def test_the_default_recipes_are_the_files_of_the_folder() -> None:
    """No recipe is in the folder without being gated, none is named without a file; ``more``
    likewise.
    """
    assert sorted(DEFAULT) == sorted(p.stem for p in HERE.glob("*.yaml"))
    assert sorted(MORE) == sorted(p.stem for p in (HERE / "more").iterdir())


@pytest.mark.parametrize("name", MORE)
def test_a_further_recipe_is_one_of_modelopts(name: str) -> None:
    """Each is found by its name, ModelOpt's loader gives the same formats, and a plain run leaves
    it out.
    """
    loaded = load(name)
    path = HERE / "more" / f"{name}.yaml"
    expected = searched_by_modelopt(path) if loaded.candidates else [from_modelopt(path)]

    assert [part.quant_cfg for part in loaded.parts] == expected
    assert (loaded.name, loaded.path) == (name, HERE / "more" / f"{name}.yaml")
    assert name not in DEFAULT


@pytest.mark.parametrize("name", DEFAULT + MORE)
def test_a_default_recipe_denies_first_and_says_what_it_does(name: str) -> None:
    """Everything is off before anything is enabled, and the header names both towers and what stays
    in FP16.
    """
    loaded = load(name)
    firsts = [part.entries[0] for part in loaded.parts]
    assert loaded.path is not None
    header = loaded.path.read_text().partition("metadata:")[0]

    assert {(e.pattern, e.parent_class, e.enable, e.cfg) for e in firsts} == {
        ("*", None, False, None)
    }
    assert "SPDX-License-Identifier: Apache-2.0" in header
    assert all(word in header for word in ("Vision tower:", "Text tower:", "Left in FP16"))


def test_the_published_recipe_asks_for_what_was_published() -> None:
    """fp8: E4M3 per tensor with Half at weights, inputs, q, k, v and the attention output; max
    calibration.
    """
    loaded = load("fp8")
    enabled = [e for e in loaded.entries if e.enable]

    assert loaded.algorithm == "max"
    assert {e.pattern for e in enabled} == {
        *("*weight_quantizer", "*input_quantizer"),
        *("*[qkv]_bmm_quantizer", "*bmm2_output_quantizer"),
    }
    assert all(e.cfg == FP8 for e in enabled)


def enabled_by(name: str, attention: str) -> dict[str, int]:
    """Enabled quantizers of CLIP ViT-B/32 under a recipe, counted by tower, module class and
    quantizer.
    """
    from collections import Counter

    from modelopt.torch.quantization.nn import TensorQuantizer

    from harness.models.architectures import build
    from harness.quantization import quantize

    model = quantize.structure(build("ViT-B-32"), load(name), attention)
    counts: Counter[str] = Counter()
    for path, module in model.named_modules():
        if isinstance(module, TensorQuantizer) and module.is_enabled:
            holder, _, kind = re.sub(r"(_quantizer)\.\d+$", r"\1", path).rpartition(".")
            tower = "vision" if path.startswith("vi") else "text"
            counts[
                f"{tower} {type(model.get_submodule(holder)).__name__.removeprefix('Quant')} {kind}"
            ] += 1
    return dict(counts)


LINEARS = 12 * 6 + 1  # layers of a tower times Linears of a layer, and the projection
WEIGHTS = {f"{tower} Linear weight_quantizer": LINEARS for tower in ("vision", "text")}
INPUTS = {f"{tower} Linear input_quantizer": LINEARS for tower in ("vision", "text")}
PATCH = {"vision Conv2d weight_quantizer": 1, "vision Conv2d input_quantizer": 1}
AROUND = {
    f"{tower} CLIPAttention {kind}_quantizer": 12
    for tower in ("vision", "text")
    for kind in ("q_bmm", "k_bmm", "v_bmm", "bmm2_output")
}
NATIVE_AROUND = {name: n for name, n in AROUND.items() if "bmm2_output" not in name}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fp8", WEIGHTS | INPUTS | PATCH | AROUND),
        ("fp8-patch-embedding-fp16", WEIGHTS | INPUTS | AROUND),
        ("fp8-linear-only", WEIGHTS | INPUTS | PATCH),
        ("fp8-per-channel", WEIGHTS | INPUTS | PATCH | AROUND),
        ("int8", WEIGHTS | INPUTS | PATCH),
        ("int8-smoothquant", WEIGHTS | INPUTS | PATCH),
        ("int4-awq", WEIGHTS),
        ("w4a8-awq", {name: 2 * n for name, n in WEIGHTS.items()} | INPUTS),
    ],
)
def test_a_default_recipe_enables_what_its_comment_says(
    name: str, expected: dict[str, int]
) -> None:
    """On CLIP's architecture, with diffusers' attention: these kinds in these towers and no other,
    embeddings least.
    """
    assert enabled_by(name, "diffusers") == expected


def test_the_published_recipe_under_modelopts_attention_lacks_the_output_quantizer() -> None:
    """fp8 is accepted there too and enables everything but bmm2_output, which that attention class
    does not have.
    """
    assert enabled_by("fp8", "modelopt") == WEIGHTS | INPUTS | PATCH | NATIVE_AROUND


# --- names, entries, hashes


def test_entries_tell_the_line_they_stand_on(tmp_path: Path) -> None:
    """An entry names its own file and line, be it in the recipe or in a snippet that the recipe
    imports.
    """
    text = recipe_text(
        "  - quantizer_name: '*'\n    enable: false\n  - $import: u\n  - {quantizer_name: '*x', "
        "enable: true}\n",
        imports="imports:\n  u: units/u\n",
    )
    recipe = write(tmp_path / "r.yaml", text)
    unit = write(
        tmp_path / "units/u.yaml",
        "# modelopt-schema: modelopt.torch.quantization.config.QuantizerCfgListConfig\n"
        "- quantizer_name: '*a'\n  enable: true\n\n- quantizer_name: '*b'\n  enable: true\n",
    )

    loaded = load("r", tmp_path)

    origins = {e.pattern: e.origin for e in loaded.entries}
    assert origins == {
        "*": f"{recipe}:8",
        "*a": f"{unit}:2",
        "*b": f"{unit}:5",
        "*x": f"{recipe}:11",
    }
    assert loaded.files == (recipe, unit)


def test_a_recipe_of_the_tree_is_named_by_its_path_there() -> None:
    """Recipes of one stem in two folders have two names, and old names of moved recipes still find
    them.
    """
    vit = load("huggingface/vit/ptq/fp8")

    assert vit.name == "huggingface.vit.ptq.fp8"
    assert load("huggingface/vit/ptq/fp8.yaml").hash == vit.hash
    assert load("fp8").hash != vit.hash
    moved = load("huggingface/models/stepfun-ai/Step-3.5-Flash/ptq/nvfp4-mlp-only")
    assert (
        moved.path == installed_root() / "models/stepfun-ai/Step-3.5-Flash/ptq/nvfp4-mlp-only.yaml"
    )


@pytest.mark.parametrize(
    "ref",
    ["fp8", "huggingface/vit/ptq/fp8", "configs/ptq/presets/model/int8.yaml", f"{HERE}/int8.yaml"],
)
def test_a_name_is_known_without_loading(ref: str) -> None:
    """Test ids are made before recipes are read, and are the recipes' names."""
    assert finding.name_of(ref) == load(ref).name


def test_a_root_takes_the_place_of_the_installed_tree(tmp_path: Path) -> None:
    """Names and imports are looked up under the given root alone: a changed numeric there changes
    the recipe.
    """
    attribute = (
        "# modelopt-schema: modelopt.torch.quantization.config.QuantizerAttributeConfig\nnum_bits: "
        "3\n"
    )
    write(tmp_path / "configs/numerics/fp8.yaml", attribute)
    text = recipe_text(
        "  - quantizer_name: '*w'\n    cfg: {$import: fp8}\n",
        imports="imports: {fp8: configs/numerics/fp8}\n",
    )
    write(tmp_path / "mine.yaml", text)

    assert load("mine", tmp_path).entries[0].cfg == {"num_bits": 3}
    assert load(str(tmp_path / "mine.yaml")).entries[0].cfg == {"num_bits": (4, 3), "axis": None}
    with pytest.raises(UsageError, match="names no recipe"):
        load("huggingface/vit/ptq/fp8", tmp_path)


def test_the_hash_is_of_the_meaning(tmp_path: Path) -> None:
    """Comments and quoting leave the hash alone; an attribute, the order or the algorithm change
    it.
    """
    first = "  - {quantizer_name: '*a', cfg: {num_bits: e4m3}}\n"
    two = "  - quantizer_name: '*b'\n    enable: false\n"
    texts = {
        "base": recipe_text(first + two),
        "comment": "# hello\n"
        + recipe_text('  - {cfg: {num_bits: E4M3}, quantizer_name: "*a"}\n' + two),
        "order": recipe_text(two + first),
        "bits": recipe_text(first.replace("e4m3", "8") + two),
        "algorithm": recipe_text(first + two, algorithm="mse"),
    }
    hashes = {
        name: load(str(write(tmp_path / f"{name}.yaml", text))).hash for name, text in texts.items()
    }

    assert hashes["base"] == hashes["comment"]
    assert len(set(hashes.values())) == 4
    assert re.fullmatch("[0-9a-f]{64}", hashes["base"])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("general/speculative_decoding/eagle3", "speculative_eagle"),
        ("general/distillation/dmd2_qwen_image", "distillation"),
    ],
)
def test_another_kind_of_recipe_is_loaded_as_that_kind(name: str, kind: str) -> None:
    """It has its kind and its files, and nothing to quantize with."""
    loaded = load(name)

    assert (loaded.kind, loaded.quant_cfg, loaded.entries) == (kind, {}, ())
    assert loaded.files[0] == loaded.path


def test_a_preset_is_loaded_as_the_config_that_it_is() -> None:
    """A complete QuantizeConfig is what mtq offers under its name."""
    import modelopt.torch.quantization as mtq

    assert load("configs/ptq/presets/model/fp8").quant_cfg == mtq.FP8_DEFAULT_CFG


# --- Python

MODULE = """
E4M3 = {"num_bits": (4, 3), "axis": None}
PUBLISHED = {
    "quant_cfg": {
        "*weight_quantizer": E4M3,
        "nn.LayerNorm": {"*input_quantizer": {"enable": False}, "*output_quantizer": {"enable": False}},
        "*input_quantizer": [{"num_bits": 4, "block_sizes": {-1: 128}}, E4M3],
        "default": {"enable": False},
    },
    "algorithm": "max",
}
AS_LIST = {"quant_cfg": [
    {"quantizer_name": "*weight_quantizer", "cfg": E4M3},
    {"quantizer_name": "*input_quantizer", "parent_class": "nn.LayerNorm", "enable": False},
    {"quantizer_name": "*output_quantizer", "parent_class": "nn.LayerNorm", "enable": False},
    {"quantizer_name": "*input_quantizer", "cfg": [{"num_bits": 4, "block_sizes": {-1: 128}}, E4M3]},
    {"quantizer_name": "*", "enable": False},
], "algorithm": "max"}
BARE = AS_LIST["quant_cfg"]
KV = {"quant_cfg": [{"quantizer_name": "*[kv]_bmm_quantizer", "cfg": E4M3}]}
TYPO = {"quant_cfg": {"*weight_quantizer": {"num_bitz": 8}}, "algorithm": "max"}
from modelopt.torch.quantization.config import QuantizeConfig
CONFIG = QuantizeConfig(**KV)
NUMBER = 7
class Holder:
    cfg = AS_LIST
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working directory, importable only because it is there."""
    name = "published_quant_cfg"
    write(tmp_path / f"{name}.py", MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


def test_the_published_dict_is_taken_as_published(module: str) -> None:
    """Dict form, nested classes and sequential lists become entries in the dict's order, the trap
    of S2 last.
    """
    loaded = load(f"{module}:PUBLISHED")

    assert [(e.pattern, e.parent_class, e.enable) for e in loaded.entries] == [
        ("*weight_quantizer", None, True),
        ("*input_quantizer", "nn.LayerNorm", False),
        ("*output_quantizer", "nn.LayerNorm", False),
        ("*input_quantizer", None, True),
        ("*", None, False),
    ]
    assert loaded.entries[3].cfg == [
        {"num_bits": 4, "block_sizes": {-1: 128}},
        {"num_bits": (4, 3), "axis": None},
    ]
    assert list(loaded.quant_cfg["quant_cfg"])[-1] == "default", (
        "what is handed to mtq.quantize keeps form and order"
    )
    assert loaded.name == finding.name_of(f"{module}:PUBLISHED") == "PUBLISHED"
    assert loaded.entries[0].origin == f"{module}:PUBLISHED entry 1"


def test_dict_and_list_form_of_one_config_have_one_hash(module: str) -> None:
    """The form a config was published in does not change what it is; nor does where it hangs."""
    forms = ("PUBLISHED", "AS_LIST", "BARE", "Holder.cfg")

    assert len({load(f"{module}:{form}").hash for form in forms}) == 1


def test_a_dict_without_algorithm_has_none(module: str) -> None:
    """mtq.quantize calibrates nothing then, so the recipe does not claim max; ModelOpt's own config
    object does.
    """
    assert load(f"{module}:KV").algorithm is None
    assert load(f"{module}:CONFIG").algorithm == "max"


def test_a_loaded_config_is_a_copy(module: str) -> None:
    """Nothing that is done to a recipe reaches the module that published it."""
    load(f"{module}:AS_LIST").quant_cfg["quant_cfg"].clear()

    assert load(f"{module}:AS_LIST").entries


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        (
            "TYPO",
            r"published_quant_cfg:TYPO entry 1: unknown attribute 'cfg.num_bitz'. Did you mean "
            r"'num_bits'\?",
        ),
        ("NUMBER", "is not a quant_cfg"),
        ("MISSING", "has no attribute 'MISSING'"),
    ],
)
def test_a_python_reference_that_is_no_recipe_is_refused(
    module: str, attribute: str, message: str
) -> None:
    """The refusal names the reference and what is wrong with it."""
    with pytest.raises(UsageError, match=message):
        load(f"{module}:{attribute}")


# --- refusals


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            recipe_text("  - quantizer_name: '*w'\n    cfg: {num_bitz: 8}\n"),
            r"r.yaml:7: unknown attribute 'cfg.num_bitz'. Did you mean 'num_bits'\?",
        ),
        (
            recipe_text("  - quantizer_name: '*w'\n    enabled: false\n"),
            r"r.yaml:7: unknown attribute 'enabled'. Did you mean 'enable'\?",
        ),
        (
            recipe_text("  - quantizer_name: '*w'\n    cfg: [{num_bits: 4}, {axes: 1}]\n"),
            r"r.yaml:7: unknown attribute 'cfg.1.axes'. Did you mean 'axis'\?",
        ),
        (
            recipe_text("  - quantizer_name: '*w'\n    cfg: {num_bits: [9, 9]}\n"),
            "r.yaml:7: cfg is refused: Supported FPx",
        ),
        (
            recipe_text("  - quantizer_name: '*w'\n    cfg: {}\n"),
            "r.yaml:7: it is refused: .*must specify at least one",
        ),
        (
            recipe_text("  - quantizer_name: '*w'\n"),
            "r.yaml:6: it is refused: .*must specify 'cfg', 'enable', or both",
        ),
        (
            recipe_text("  - quantizer_name: 3\n    enable: true\n"),
            "r.yaml:6: quantizer_name is refused",
        ),
        (recipe_text("  - 7\n"), "r.yaml:6: the entry 7 is not a mapping"),
        (recipe_text("   x\n"), "quant_cfg is not a list of entries"),
        (
            recipe_text("  - {quantizer_name: '*', enable: true}\n", "maxx"),
            "no calibration algorithm 'maxx'. This ModelOpt has .*smoothquant",
        ),
        (
            recipe_text(
                "  - {quantizer_name: '*', enable: true}\n", "{method: smoothquant, alpa: 1}"
            ),
            "algorithm smoothquant: unknown attribute 'alpa'",
        ),
        (
            recipe_text("  - {quantizer_name: '*', enable: true}\n", "{alpha: 1}"),
            "no calibration algorithm None",
        ),
        (
            recipe_text("  - $import: gone\n"),
            "r.yaml:6: \\$import names 'gone'. Declare it under imports: \\(declared: none\\)",
        ),
        (
            recipe_text("  - $import: x\n", imports="imports: {x: configs/numerics/fp9}\n"),
            "r.yaml:1: the import 'configs/numerics/fp9' does not exist",
        ),
        ("metadata:\n  recipe_type: ptq\n", "has no section 'quantize'"),
        ("metadata:\n  recipe_type: ptq\nquantize:\n  algorithm: max\n", "has no quant_cfg.*INT8"),
        ("metadata:\n  recipe_type: ptq\nquantise: {}\n", "unknown section 'quantise'"),
        ("quantize: {quant_cfg: []}\n", "no metadata.recipe_type"),
        (
            "metadata:\n  recipe_type: pqt\nquantize: {}\n",
            "recipe_type 'pqt' is not one of ModelOpt's. Known: ptq",
        ),
        ("metadata:\n  recipe_type: ptq\n---\nquantize: {quant_cfg: []}\n", "two YAML documents"),
        ("a: [1\n", "r.yaml:2: is not YAML that can be used: .*expected"),
        ("a: 1\nb: 2\na: 3\n", "r.yaml:3: .*the key 'a' is written twice"),
        ("", "no metadata.recipe_type"),
    ],
)
def test_an_unusable_recipe_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    """The refusal is one line: the file, the line of the entry, what is wrong, the fix."""
    path = write(tmp_path / "r.yaml", text)

    with pytest.raises(UsageError, match=message) as refused:
        load(str(path))

    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(str(path))


GOOD = "  - {quantizer_name: '*weight_quantizer', cfg: {num_bits: 8}}\n"
NUMERICS = "# modelopt-schema: modelopt.torch.quantization.config.QuantizerAttributeConfig\n"
LISTED = "# modelopt-schema: modelopt.torch.quantization.config.QuantizerCfgListConfig\n"


def using(snippet: str) -> dict[str, str]:
    """A recipe whose attributes are *snippet*."""
    entry = "  - {quantizer_name: '*weight_quantizer', cfg: {$import: n}}\n"
    return {"ptq/r.yaml": recipe_text(entry, imports="imports: {n: n}\n"), "n.yaml": snippet}


def alone(text: str) -> dict[str, str]:
    """A recipe without imports."""
    return {"ptq/r.yaml": text}


def formats(*algorithms: str) -> str:
    """Formats to search among, one for each algorithm."""
    entries = "[{quantizer_name: '*weight_quantizer', cfg: {num_bits: 8}}]"
    return (
        "["
        + ", ".join(f"{{algorithm: {algorithm}, quant_cfg: {entries}}}" for algorithm in algorithms)
        + "]"
    )


def searching(**changes: str) -> dict[str, str]:
    """A search for formats with other values at the top of its section, as YAML."""
    section = {
        "constraints": "{effective_bits: 6.0}",
        "candidate_formats": formats("max"),
    } | changes
    lines = "".join(f"  {key}: {value}\n" for key, value in section.items())
    return alone(f"metadata: {{recipe_type: auto_quantize}}\nauto_quantize:\n{lines}")


HEAD = "metadata: {recipe_type: ptq}\n"
BODY = f"quantize:\n  algorithm: max\n  quant_cfg:\n{GOOD}"


@pytest.mark.parametrize(
    ("files", "fix", "corrected"),
    [
        (
            alone(recipe_text("  - 7\n")),
            "Write quantizer_name, cfg and enable.",
            alone(recipe_text(GOOD)),
        ),
        (
            alone(recipe_text("  - {quantizer_name: '', enable: false}\n")),
            "Write a glob of plain text.",
            alone(recipe_text("  - {quantizer_name: '*', enable: false}\n")),
        ),
        (
            alone(recipe_text(f"  - {{quantizer_name: '{'*a' * 40}', enable: false}}\n")),
            "Use fewer.",
            alone(recipe_text("  - {quantizer_name: '*a*a', enable: false}\n")),
        ),
        (alone(BODY), "Add 'metadata: {recipe_type: ptq}'.", alone(HEAD + BODY)),
        (
            alone("metadata: []\n" + BODY),
            "Write 'metadata: {recipe_type: ptq}'.",
            alone(HEAD + BODY),
        ),
        (alone("metadata: {recipe_type: pqt}\n" + BODY), "Known: ptq", alone(HEAD + BODY)),
        (alone("metadata: {recipe_type: ptq, mine: 1}\n" + BODY), "Remove it.", alone(HEAD + BODY)),
        (alone(HEAD), "Add it: quant_cfg and algorithm.", alone(HEAD + BODY)),
        (
            alone(HEAD + "quantize: {algorithm: max}\n"),
            "write quant_cfg: and its entries.",
            alone(HEAD + BODY),
        ),
        (
            alone(HEAD + BODY + "quantise: {}\n"),
            "A ptq recipe holds metadata and quantize.",
            alone(HEAD + BODY),
        ),
        (
            alone(HEAD + "quantize: {quant_cfg: x}\n"),
            "Write '- quantizer_name: ...' lines.",
            alone(HEAD + BODY),
        ),
        (alone(recipe_text(GOOD * 501)), "Write fewer than 500.", alone(recipe_text(GOOD * 499))),
        (
            alone(recipe_text(GOOD, "maxx")),
            "This ModelOpt has awq_clip,",
            alone(recipe_text(GOOD, "awq_clip")),
        ),
        (alone(HEAD + "---\n" + BODY), "Join them.", alone(HEAD + BODY)),
        (alone(f"{HEAD}---\n{BODY}---\n{{}}\n"), "fit.", alone(HEAD + BODY)),
        (
            alone("- a\n---\n" + HEAD + BODY),
            "Put imports: there.",
            alone("imports: {}\n" + HEAD + BODY),
        ),
        (
            alone("imports: [n]\n" + HEAD + BODY),
            "Write imports: {fp8: configs/...}.",
            {"ptq/r.yaml": "imports: {n: n}\n" + HEAD + BODY, "n.yaml": NUMERICS + "num_bits: 8\n"},
        ),
        (alone("7\n"), "Write a recipe or a snippet.", alone(HEAD + BODY)),
        (alone(f"{HEAD}{BODY}  x: [\n"), "Correct it.", alone(HEAD + BODY)),
        (
            alone(recipe_text(GOOD.replace("8", "!!int ''"))),
            "Put it in quotes.",
            alone(recipe_text(GOOD)),
        ),
        (
            alone(recipe_text("  - {quantizer_name: '*', cfg: {$import: n}}\n")),
            "Declare it under imports: (declared: none)",
            using(NUMERICS + "num_bits: 8\n"),
        ),
        (
            alone(recipe_text(GOOD, imports="imports: {n: n}\n")),
            "Correct its path, or add the file.",
            {
                "ptq/r.yaml": recipe_text(GOOD, imports="imports: {n: n}\n"),
                "n.yaml": NUMERICS + "num_bits: 8\n",
            },
        ),
        (
            using("num_bits: 8\n"),
            "Add the comment '# modelopt-schema: ...'",
            using(NUMERICS + "num_bits: 8\n"),
        ),
        (using(2 * NUMERICS + "num_bits: 8\n"), "Keep one.", using(NUMERICS + "num_bits: 8\n")),
        (
            using("# modelopt-schema: os.path\nnum_bits: 8\n"),
            "modelopt.",
            using(NUMERICS + "num_bits: 8\n"),
        ),
        (
            using(f"{NUMERICS}imports: {{n: n}}\n---\n$import: n\n"),
            "Break it.",
            using(NUMERICS + "num_bits: 8\n"),
        ),
        (
            {
                "ptq/r.yaml": recipe_text(
                    "  - {quantizer_name: '*', cfg: {$import: [n, n]}}\n",
                    imports="imports: {n: n}\n",
                ),
                "n.yaml": LISTED + GOOD.strip() + "\n",
            },
            "Import one.",
            using(NUMERICS + "num_bits: 8\n"),
        ),
        (searching(candidate_formats=formats(*["max"] * 40)), "Write at most", searching()),
        (
            searching(candidate_formats=formats("[max, mse]")),
            "Write one method, such as algorithm: max.",
            searching(),
        ),
        (searching(score_size="0"), "Write score_size: 128.", searching(score_size="128")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_refusal_proposes_is_enough(
    tmp_path: Path, files: dict[str, str], fix: str, corrected: dict[str, str]
) -> None:
    """Done as the message says, the recipe loads."""

    def loaded(texts: dict[str, str]) -> Recipe:
        for name, text in texts.items():
            write(tmp_path / name, text)
        return load("ptq/r", tmp_path)

    with pytest.raises(UsageError) as refused:
        loaded(files)
    assert fix in str(refused.value)
    assert loaded(corrected).hash


def test_a_snippet_is_held_against_its_schema(tmp_path: Path) -> None:
    """An imported snippet with an attribute that ModelOpt does not know is refused by the snippet's
    own name.
    """
    attribute = (
        "# modelopt-schema: modelopt.torch.quantization.config.QuantizerAttributeConfig\nnum_bitz: "
        "3\n"
    )
    write(tmp_path / "n.yaml", attribute)
    write(
        tmp_path / "r.yaml",
        recipe_text(
            "  - quantizer_name: '*w'\n    cfg: {$import: n}\n", imports="imports: {n: n}\n"
        ),
    )

    with pytest.raises(
        UsageError, match=r"n.yaml:2: unknown attribute 'num_bitz'. Did you mean 'num_bits'\?"
    ):
        load("r", tmp_path)


def test_a_snippet_without_schema_is_refused(tmp_path: Path) -> None:
    """ModelOpt requires the comment, so a recipe that works here without it would fail there."""
    write(tmp_path / "n.yaml", "num_bits: 3\n")
    write(
        tmp_path / "r.yaml",
        recipe_text(
            "  - quantizer_name: '*w'\n    cfg: {$import: n}\n", imports="imports: {n: n}\n"
        ),
    )

    with pytest.raises(
        UsageError, match=r"n.yaml: is imported by r.yaml without declaring a schema"
    ):
        load("r", tmp_path)


# --- how a file says that it is a recipe


def test_a_byte_order_mark_is_not_part_of_a_recipe(tmp_path: Path) -> None:
    """A recipe and a snippet that begin with a UTF-8 BOM are read as without it, schema comment
    included.
    """
    snippet = (
        "# modelopt-schema: modelopt.torch.quantization.config.QuantizerAttributeConfig\nnum_bits: "
        "3\n"
    )
    text = recipe_text(
        "  - {quantizer_name: '*w', cfg: {$import: n}}\n", imports="imports: {n: n}\n"
    )
    for folder, mark in (("plain", ""), ("marked", "\ufeff")):
        write(tmp_path / folder / "n.yaml", mark + snippet)
        write(tmp_path / folder / "r.yaml", mark + text)

    plain, marked = (load("r", tmp_path / folder) for folder in ("plain", "marked"))

    assert plain.hash == marked.hash


QUANTIZE = "quantize:\n  algorithm: max\n  quant_cfg: [{quantizer_name: '*', enable: true}]\n"
BY_SCHEMA = f"# modelopt-schema: modelopt.recipe.config.ModelOptPTQRecipe\n{QUANTIZE}"
BY_IMPORT = "imports: {base: base}\n$import: base\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BY_SCHEMA, "says what it is by its modelopt-schema alone"),
        (BY_IMPORT, "is nothing but an $import of a recipe"),
    ],
    ids=["schema", "import"],
)
def test_a_recipe_of_a_later_release_is_known_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    """A recipe without metadata is a ptq recipe, and where ModelOpt refuses it, a release that
    loads it is named.

    ModelOpt's own loader is asked as well.  The release that loads such a recipe is not there to
    run; that it would be read by the same rules is tested as if it were.
    """
    from modelopt.recipe import load_recipe

    write(tmp_path / "base.yaml", f"{BY_SCHEMA}metadata: {{recipe_type: ptq}}\n")
    path = write(tmp_path / "r.yaml", text)
    tree = Tree(tmp_path)

    assert loading.kind_of(tree.read(path), tree) == "ptq"
    with pytest.raises(ValueError, match=r"must contain a 'metadata\.recipe_type' field"):
        load_recipe(path)
    with pytest.raises(
        UsageError,
        match=re.escape(message) + r", which ModelOpt \S+ cannot load. Install .* 0.48 or newer",
    ):
        load("r", tmp_path)
    monkeypatch.setattr(loading, "declares_without_metadata", lambda: True)
    assert [entry.pattern for entry in load("r", tmp_path).entries] == ["*"]


def test_imports_of_each_other_are_refused_as_a_circle(tmp_path: Path) -> None:
    """Two files that are nothing but an import of each other have no kind to find, and say so."""
    write(tmp_path / "a.yaml", "imports: {b: b}\n$import: b\n")
    write(tmp_path / "b.yaml", "imports: {a: a}\n$import: a\n")

    with pytest.raises(UsageError, match=r"a\.yaml"):
        load("a", tmp_path)


# --- the module itself


def test_loading_a_recipe_first_leaves_modelopts_plugins_whole() -> None:
    """In a fresh process whose first act is to load a recipe, ModelOpt still registers Hugging
    Face's attention.
    """
    code = (
        "from harness.recipes import loading as recipes; recipes.load('fp8')\n"
        "from modelopt.torch.quantization.plugins import huggingface; print('whole')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.stdout == "whole\n", done.stderr


def test_a_tree_on_the_path_is_not_taken_for_modelopts_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tree under review in the working folder, which Python would find first, is neither imported
    nor read.
    """
    write(tmp_path / "modelopt_recipes/__init__.py", "raise SystemExit('executed')\n")
    before = installed_root()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "modelopt_recipes")

    modelopt_tree.pin()
    import modelopt_recipes

    assert installed_root() == before
    assert Path(modelopt_recipes.__file__).parent == before


def test_reading_recipes_costs_no_import_of_modelopt_and_prints_nothing() -> None:
    """The module, the names and the graph of imports need no ModelOpt; loading prints nothing of
    its loader's.
    """
    code = (
        "import sys, json; from harness.recipes import finding, loading as recipes; "
        "from harness.pull_requests import reach; "
        "from harness.recipes.tree import Tree\n"
        "tree = Tree(finding.installed_root()); tree.read(finding.find('huggingface/vit/ptq/fp8', "
        "tree))\n"
        "before = 'modelopt' in sys.modules or 'torch' in sys.modules\n"
        "recipes.load('huggingface/vit/ptq/fp8')\n"
        "print(json.dumps([before, recipes.__file__.endswith('loading.py')]))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )

    assert json.loads(done.stdout) == [False, True], (
        "the folder recipes/ must not take the module's place"
    )


def test_a_recipe_is_a_value() -> None:
    """Two loads of one reference are equal and independent."""
    first, two = load("int8"), load("int8")

    assert isinstance(first, Recipe)
    assert first == two
    assert first.quant_cfg is not two.quant_cfg


# --- trees of ModelOpt 0.48


def newer_tree(root: Path) -> Path:
    """A tree as ModelOpt 0.48 lays it out: kinds by schema, and a recipe that is another one."""
    schema = "# modelopt-schema: modelopt.recipe.config.ModelOpt"
    body = "quantize:\n  quant_cfg:\n  - {quantizer_name: '*', enable: false}\n"
    about = "metadata: {description: x}\n"
    write(root / "general/ptq/fp8.yaml", f"{schema}PTQRecipe\n{about}{body}")
    write(root / "model_type/vit/ptq/fp8.yaml", f"{schema}PTQRecipe\n{body}")
    alias = f"imports: {{base: general/ptq/fp8}}\n$import: base\n{about}"
    write(root / "models/org/id/ptq/fp8.yaml", alias)
    fields = "kv_auto_quantize: {a: 1}\nauto_quantize: {candidate_formats: [{effective_bits: 8}]}\n"
    write(root / "general/auto_quantize/kv.yaml", f"{schema}AutoQuantizeRecipe\n{about}{fields}")
    return root


@pytest.mark.parametrize(
    "name",
    [
        "general/ptq/fp8",
        "model_type/vit/ptq/fp8",
        "huggingface/vit/ptq/fp8",
        "models/org/id/ptq/fp8",
        "huggingface/models/org/id/ptq/fp8",
        "model_type/models/org/id/ptq/fp8",
    ],
)
def test_a_newer_tree_is_gated_by_an_older_release(name: str, tmp_path: Path) -> None:
    """A recipe's schema says its kind, or that of the recipe that it imports; old names of folders
    still count.
    """
    recipe = load(name, newer_tree(tmp_path))

    assert (recipe.kind, [entry.pattern for entry in recipe.entries]) == ("ptq", ["*"])


def test_a_new_name_means_the_old_folder_of_an_older_tree(tmp_path: Path) -> None:
    """A name of ModelOpt 0.48 finds the recipe in a tree of 0.47."""
    body = (
        "metadata: {recipe_type: ptq}\nquantize: {quant_cfg: [{quantizer_name: '*', enable: no}]}"
    )
    path = write(tmp_path / "huggingface/vit/ptq/fp8.yaml", body)

    assert load("model_type/vit/ptq/fp8", tmp_path).path == path


def test_fields_of_a_search_that_nobody_knows_are_not_dropped(tmp_path: Path) -> None:
    """What a later release searches for has no verdict, and each field is named."""
    recipe = load("general/auto_quantize/kv", newer_tree(tmp_path))

    reason = judged.not_gated(recipe, "cuda")

    assert reason == "fields kv_auto_quantize, candidate_formats.effective_bits are not known"


def test_a_misspelt_field_of_a_search_is_still_refused() -> None:
    """What resembles a known field is a mistake, not a field of another release."""
    assert loading.unknown_fields({"auto_quantise": {}, "auto_quantize": {"score_siz": 1}}) == ()
