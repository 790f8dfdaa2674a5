"""Rules of shape: each names its planted fault with architecture, layer and size, and passes when
it is fixed.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.modelopt_tree import installed
from harness.outlines import declared, matrix
from harness.outlines.matrix import Matrix
from harness.recipes.tree import Tree

HEAD = (
    "metadata: {recipe_type: ptq, description: '%s'}\nquantize:\n  algorithm: max\n  quant_cfg:\n"
)
OFF = "{quantizer_name: '*', enable: false}"
NO_HEAD = "{quantizer_name: '*lm_head*', enable: false}"
NO_VISION = "{quantizer_name: '*visual*', enable: false}"
NO_PATCHES = "{quantizer_name: '*vision_model*', enable: false}"


def block(pattern: str, size: int = 16) -> str:
    """An entry that gives blocks of four-bit numbers."""
    return f"{{quantizer_name: '{pattern}', cfg: {{num_bits: 4, block_sizes: {{-1: {size}}}}}}}"


def fp8(pattern: str) -> str:
    """An entry that gives FP8."""
    return f"{{quantizer_name: '{pattern}', cfg: {{num_bits: e4m3}}}}"


def write(root: Path, name: str, *entries: str, description: str = "A recipe.") -> Path:
    """Write a recipe of *entries* into the tree *root*."""
    path = root / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEAD % description + "".join(f"    - {item}\n" for item in entries))
    return path


ALL = (OFF, block("*weight_quantizer", 64), NO_HEAD)
MLP = "NVFP4 of MLP weights."
FUSED = (OFF, fp8("*q_proj.weight_quantizer"), fp8("*k_proj.weight_quantizer"))

#: name, entries, description, rule, architecture, part of the message, entries that fix it
PLANTED = {
    "a pattern that is empty in a hybrid": (
        "huggingface/nemotron_h/ptq/x",
        (OFF, block("*mlp*weight_quantizer")),
        "A recipe.",
        ("no match", "Nemotron-H-8B", "mixer.up_proj"),
        (
            OFF,
            block("*mlp*weight_quantizer"),
            block("*mixer.up_proj*weight_quantizer"),
            block("*mixer.down_proj*weight_quantizer"),
        ),
    ),
    "MLPs of a general recipe, empty in a hybrid": (
        "general/ptq/x_mlp_only",
        (OFF, block("*language_model*mlp*weight_quantizer"), block("*s.*.mlp*weight_quantizer")),
        MLP,
        ("nothing of what it claims", "Nemotron-H-8B", "layers.{1,3,5"),
        None,
    ),
    "a vision tower under a general recipe": (
        "general/ptq/x",
        (OFF, fp8("*weight_quantizer"), NO_HEAD),
        "FP8 of all linear layers.",
        ("part not left out", "Qwen3-VL-8B", "visual.blocks.{0..26}"),
        (OFF, fp8("*weight_quantizer"), NO_HEAD, NO_VISION),
    ),
    "a projector that the description leaves out": (
        "huggingface/llava/ptq/x",
        (OFF, fp8("*language_model*weight_quantizer"), fp8("*multi_modal_projector*")),
        "The vision tower and the projector are left out.",
        ("part not left out", "LLaVA-1.5-7B", "multi_modal_projector.linear_1"),
        (OFF, fp8("*language_model*weight_quantizer")),
    ),
    "a vision tower that the description promises": (
        "huggingface/qwen3_vl/ptq/x",
        (OFF, fp8("*language_model*weight_quantizer")),
        "The vision tower is quantized to FP8.",
        ("part left out", "Qwen3-VL-8B", "0 of 109"),
        (
            OFF,
            fp8("*language_model*weight_quantizer"),
            fp8("*visual.blocks*weight_quantizer"),
            fp8("*visual.patch_embed*weight_quantizer"),
        ),
    ),
    "blocks of 64 on 4304": (
        "huggingface/qwen3_vl/ptq/x",
        (OFF, block("*visual*mlp*weight_quantizer", 64)),
        "A recipe.",
        ("block size", "Qwen3-VL-8B", "64 do not divide the 4304"),
        (OFF, block("*visual*mlp*weight_quantizer", 16)),
    ),
    "blocks of 16 on a patch embedding of 588": (
        "huggingface/llama4/ptq/x",
        (OFF, block("*vision_model.patch*weight_quantizer", 16)),
        "A recipe.",
        ("block size", "Llama-4-Scout-17B-16E", "16 do not divide the 588"),
        (OFF, block("*vision_model.patch*weight_quantizer", 4)),
    ),
    "q and k without v": (
        "huggingface/llama/ptq/x",
        FUSED,
        "A recipe.",
        ("fused layers differ", "Llama-3.1-8B", "layers.{0..31}.self_attn.{q,k,v}_proj"),
        (*FUSED, fp8("*v_proj.weight_quantizer")),
    ),
    "one expert in another format": (
        "huggingface/qwen3_moe/ptq/x",
        (
            OFF,
            fp8("*experts.gate_up_proj_weight_quantizers.*"),
            block("*experts.gate_up_proj_weight_quantizers.0"),
        ),
        "A recipe.",
        ("fused layers differ", "Qwen3-30B-A3B", "experts.gate_up_proj"),
        (OFF, fp8("*experts.gate_up_proj_weight_quantizers.*")),
    ),
    "a misspelt module": (
        "huggingface/gemma3/ptq/x",
        (OFF, fp8("*langauge_model*weight_quantizer")),
        "A recipe.",
        ("no match", "Gemma-3-4B", "'*language_model*weight_quantizer'"),
        (OFF, fp8("*language_model*weight_quantizer")),
    ),
    "a misspelt module that is to be left out": (
        "huggingface/qwen3_vl/ptq/x",
        (OFF, fp8("*language_model*weight_quantizer"), NO_VISION.replace("visual", "visaul")),
        "A recipe.",
        ("no match", "Qwen3-VL-8B", "'*visual*'"),
        (OFF, fp8("*language_model*weight_quantizer"), NO_VISION),
    ),
    "an output quantizer that attention does not have": (
        "huggingface/llama/ptq/x",
        (OFF, fp8("*weight_quantizer"), fp8("*bmm2_output_quantizer")),
        "A recipe.",
        ("no such quantizer", "Llama-3.1-8B", "p_bmm_quantizer"),
        (OFF, fp8("*weight_quantizer"), fp8("*[kv]_bmm_quantizer")),
    ),
    "inputs in a weight-only recipe": (
        "huggingface/llama/ptq/x_weight_only",
        (OFF, fp8("*weight_quantizer"), fp8("*mlp*input_quantizer")),
        "A recipe.",
        ("weight-only with inputs", "Llama-3.1-8B", "of 96 layers"),
        (OFF, fp8("*weight_quantizer")),
    ),
}


@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_fault_is_named_and_its_fix_passes(case: str, tmp_path: Path) -> None:
    """The rule names the architecture with its layers or sizes, and nothing once it is fixed."""
    name, entries, description, (rule, architecture, part), fix = PLANTED[case]
    path = write(tmp_path, name, *entries, description=description)
    tables = Matrix(Tree(tmp_path))
    line = tables.line(tables.subject(path))

    results = [
        str(item) for item in line.faults if (item.rule, item.architecture) == (rule, architecture)
    ]
    assert any(part in text for text in results), line.faults
    if fix is not None:
        path = write(tmp_path, name, *fix, description=description)
        fixed = Matrix(Tree(tmp_path))
        left = fixed.line(fixed.subject(path)).faults
        assert not [item for item in left if (item.rule, item.architecture) == (rule, architecture)]


def test_a_weight_only_recipe_out_of_step_with_its_twin_is_named(tmp_path: Path) -> None:
    """The modules that one of the two leaves out are named, and nothing once both are equal."""
    both = (block("*mlp*weight_quantizer"), fp8("*mlp*input_quantizer"))
    hybrid = block("*mixer.[ud]*_proj.weight_quantizer")
    write(tmp_path, "general/ptq/x_mlp_only-kv_fp8", OFF, *both, hybrid, NO_VISION)
    path = write(tmp_path, "general/ptq/x_mlp_weight_only", OFF, both[0], NO_VISION)
    tables = Matrix(Tree(tmp_path))
    results = [
        item for item in tables.line(tables.subject(path)).faults if item.rule == "twins differ"
    ]

    assert {item.architecture for item in results} >= {"Nemotron-H-8B"}
    assert "quantizes 48 layers more than it" in str(results[0])
    write(tmp_path, "general/ptq/x_mlp_weight_only", OFF, both[0], hybrid, NO_VISION)
    tables = Matrix(Tree(tmp_path))
    results = [
        item for item in tables.line(tables.subject(path)).faults if item.rule == "twins differ"
    ]
    assert not results


def test_every_fault_of_the_shipped_recipes_is_declared() -> None:
    """The installed ModelOpt's recipes have no fault that nobody looked at, and nothing is declared
    that no recipe has.
    """
    root = installed()
    assert root is not None
    tables = Matrix(Tree(root))
    met = set()
    for path in matrix.recipes_in(tables.tree):
        line = tables.line(tables.subject(path))
        assert not line.undeclared, [str(item) for item in line.undeclared][:3]
        met |= {
            item
            for item in declared.of_release()
            for f in line.faults
            if item.covers(line.recipe, f)
        }
    assert met == set(declared.of_release())


@pytest.mark.parametrize(
    ("name", "architectures"),
    [
        ("huggingface/qwen3_5/ptq/x", {"Qwen3.5-9B"}),
        ("model_type/gemma4/ptq/x", {"Gemma-4-31B", "Gemma-4-26B-A4B"}),
        (
            "models/nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16/ptq/x",
            {"Nemotron-3-Super-120B-A12B"},
        ),
        ("models/somebody/Unheard-Of-7B/ptq/x", set()),
        ("huggingface/vit/ptq/fp8", {"ViT-B-16-224"}),
        ("configs/ptq/presets/kv/fp8", set()),
    ],
)
def test_folders_say_which_architectures_a_recipe_is_for(
    name: str, architectures: set[str]
) -> None:
    """A family's folder means its architectures, under the old and the new name of the tier."""
    assert {row.name for row in matrix.rows_for(name)} == architectures
