"""``--architectures``: names of the table, which are known without torch, and its run."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.outlines import names
from harness.outlines.rows import ROWS

ROOT = Path(__file__).parents[3]
HEAD = ("-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT))
INSERTION = str(ROOT / "tests/test_insertion.py")


def test_names_are_those_of_the_table() -> None:
    """What is known without torch is what is built, CLIP's architectures included."""
    assert set(names.chosen("all")) == {row.name for row in ROWS}
    assert {row.family for row in ROWS} == set(names.by_family())
    assert len(names.chosen("all")) == len(ROWS)


def test_names_are_taken_once_in_any_case() -> None:
    """Blanks, upper and lower case and repetitions make no difference."""
    assert names.chosen("qwen3-vl-8b, ViT-L-14,Qwen3-VL-8B") == ("Qwen3-VL-8B", "ViT-L-14")


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ("Qwen3-VL", "--architectures Qwen3-VL: is not an architecture of the table. "),
        ("Nemotron-H-8", "Did you mean Nemotron-H-8B"),
        ("Qwen3-VL-8B,", "--architectures: is not an architecture"),
        ("zzzzzz", "pytest --list-architectures"),
        ("all,Qwen3-VL-8B", "Leave out the other names"),
        ("x" * 5000, f"--architectures {'x' * 60}: "),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(value: str, part: str) -> None:
    """In one line that names what is near."""
    with pytest.raises(UsageError) as refused:
        names.chosen(value)
    assert part in str(refused.value)
    assert "\n" not in str(refused.value)


def written(folder: Path, name: str, block: int) -> str:
    """A recipe for the MLPs of a vision tower, in blocks of that size."""
    path = folder / f"{name}.yaml"
    path.write_text(
        "metadata: {recipe_type: ptq, description: The vision MLPs are quantized.}\n"
        "quantize:\n  algorithm: max\n  quant_cfg:\n"
        "    - {quantizer_name: '*', enable: false}\n"
        "    - {quantizer_name: '*visual*mlp*weight_quantizer', "
        f"cfg: {{num_bits: 4, block_sizes: {{-1: {block}}}}}}}\n"
    )
    return str(path)


def test_a_defect_on_one_architecture_fails_and_its_fix_passes(pytester: pytest.Pytester) -> None:
    """The failure names architecture, layers, size and fix; no test of a model runs with it."""
    wrong, right = (written(pytester.path, n, b) for n, b in (("wrong", 64), ("right", 16)))
    words = ("--recipe", wrong, "--recipe", right, "--architectures", "qwen3-vl-8b,Qwen3-VL-8B")
    result = pytester.runpytest_subprocess(*HEAD, INSERTION, "-m", "insertion", "-v", *words)

    outcomes = result.parseoutcomes()
    assert (outcomes["passed"], outcomes["failed"]) == (1, 1)
    result.stdout.fnmatch_lines(
        [
            "*rules_of_shape_hold?wrong-Qwen3-VL-8B?*",
            "*Qwen3-VL-8B: blocks of 64 do not divide the 4304 features of 27 layers*",
            "*model.visual.blocks.{0..26}.mlp.linear_fc2*",
            "*Leave them out: *or use blocks that divide 4304, such as 16.*",
        ]
    )
    text = str(result.stdout)
    assert "--architectures Qwen3-VL-8B\n" in text
    assert "right on Qwen3-VL-8B: vision 54 of 109; projector 0 of 8; language 0 of 252" in text
