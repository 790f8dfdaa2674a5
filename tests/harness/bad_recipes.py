"""Recipes that are wrong: one that is right, and edits of it which are not.

The files of ``recipes/corpus`` are those that nobody writes by mistake.
"""

from __future__ import annotations

from pathlib import Path

CORPUS = Path(__file__).parent / "recipes" / "corpus"
RECIPE = """\
metadata:
  recipe_type: ptq
quantize:
  algorithm: max
  quant_cfg:
    - quantizer_name: '*'
      enable: false
    - quantizer_name: '*weight_quantizer'
      cfg:
        num_bits: e4m3
        axis: null
    - quantizer_name: '*input_quantizer'
      cfg: {num_bits: e4m3}
    - quantizer_name: '*[qkv]_bmm_quantizer'
      cfg: {num_bits: 8}
"""
LAST = "    - quantizer_name: '*[qkv]_bmm_quantizer'\n      cfg: {num_bits: 8}\n"

#: What is replaced, and by what; line, column and rule of what is then wrong, and a part of the
#: message.
EDITS: tuple[tuple[str, str, int, int, str, str], ...] = (
    ("e4m3\n", "[e4m3\n", 11, 13, "yaml", "is not YAML"),
    (
        "  algorithm: max\n",
        "  algorithm: max\n  algorithm: mse\n",
        5,
        3,
        "yaml",
        "'algorithm' is written twice",
    ),
    (
        "num_bits: e4m3\n",
        "num_bit: e4m3\n",
        10,
        9,
        "unknown-attribute",
        "Did you mean 'num_bits'",
    ),
    (
        "cfg: {num_bits: e4m3}",
        "cfg: {num_bits: e4m3, axes: 0}",
        13,
        29,
        "unknown-attribute",
        "Did you mean 'axis'",
    ),
    ("axis: null", "axis: [a]", 11, 16, "schema", "axis"),
    ("axis: null", "axis: 9", 11, 9, "schema", "axis is 9"),
    ("num_bits: e4m3\n", "num_bits: e4m4\n", 10, 9, "schema", "num_bits"),
    ("num_bits: 8}", "num_bits: 99}", 15, 13, "schema", "num_bits is 99"),
    ("cfg: {num_bits: 8}", "cfg: {}", 15, 7, "schema", "cfg is empty"),
    ("      cfg: {num_bits: 8}\n", "", 14, 7, "schema", "neither cfg nor enable"),
    (
        "'*input_quantizer'\n",
        "'*input_quantizer'\n      parent_class: nn.Linaer\n",
        13,
        7,
        "schema",
        "nn.Linear",
    ),
    (
        "    - quantizer_name: '*input",
        "    - quantiser_name: '*input",
        12,
        7,
        "schema",
        "no quantizer_name",
    ),
    ("algorithm: max", "algorithm: maxx", 4, 3, "schema", "no calibration algorithm 'maxx'"),
    (
        "algorithm: max",
        "algorithm: {method: mse, stepsize: 1}",
        4,
        28,
        "unknown-attribute",
        "'step_size'",
    ),
    (
        "algorithm: max",
        "algorithm: {method: mse, step_size: 1.0e-9}",
        4,
        28,
        "schema",
        "candidates",
    ),
    (
        "algorithm: max",
        "algorithm: {method: max, layerwise: true}",
        4,
        28,
        "schema",
        "up to 0.46",
    ),
    (
        "algorithm: max",
        "algorithm: {method: max, use_sequential: true}",
        4,
        28,
        "unknown-attribute",
        "up to 0.46",
    ),
    ("quantize:\n", "quantise: {}\nquantize:\n", 3, 1, "schema", "unknown section 'quantise'"),
    ("  algorithm: max\n", "  algorthm: max\n", 4, 3, "unknown-attribute", "'algorithm'"),
    (
        "'*weight_quantizer'",
        "'*wieght_quantizer'",
        8,
        7,
        "no-match",
        "Did you mean '*weight_quantizer'",
    ),
    (
        "'*weight_quantizer'",
        "'*self_atn*weight_quantizer'",
        8,
        7,
        "no-match",
        "'*self_attn*weight_quantizer'",
    ),
    (
        "'*weight_quantizer'",
        "'*layers.{0..3}.*weight_quantizer'",
        8,
        7,
        "no-match",
        "no braces",
    ),
    (
        "    - quantizer_name: '*'\n      enable: false\n",
        "",
        6,
        7,
        "no-deny-all",
        "'*', enable: false",
    ),
    (
        LAST,
        LAST + "    - quantizer_name: '*'\n      enable: false\n",
        16,
        7,
        "overridden",
        "everything",
    ),
    (
        "    - quantizer_name: '*weight",
        "    - quantizer_name: '*fc1.input_quantizer'\n      cfg: {num_bits: 8}\n    - "
        "quantizer_name: '*weight",
        8,
        7,
        "overridden",
        "no effect",
    ),
    (
        RECIPE[RECIPE.index("    - quantizer_name: '*weight") :],
        "",
        6,
        7,
        "nothing-on",
        "turns anything on",
    ),
    ("'*[qkv]_bmm_q", "'*[qkv]_bnm_q", 14, 7, "no-match", "'*[qkv]_bmm_quantizer'"),
    ("axis: null", "block_sizes: {-1: 100}", 8, 7, "block-size", "blocks of 100"),
    (
        "max",
        "{method: gptq, layerwise: {enable: on, checkpoint_dir: x}}",
        4,
        53,
        "files",
        "file",
    ),
    (
        "metadata:",
        "imports: {a: configs/numerics/fp9}\nmetadata:",
        1,
        11,
        "import",
        "fp9' does not exist",
    ),
    ("metadata:", "imports: {a: ../../x}\nmetadata:", 1, 11, "import", "outside the tree"),
    (
        "cfg: {num_bits: 8}",
        "cfg: {$import: int8}",
        15,
        13,
        "import",
        "Declare it under imports",
    ),
)
