"""The table of ModelOpt's own recipes: which are judged, and what a row says."""

from __future__ import annotations

from pathlib import Path

from harness.recipes import finding
from harness.tools import shipped
from harness.tools.shipped import JudgedRecipe

HEAD = "metadata: {recipe_type: ptq}\nquantize:\n  quant_cfg:\n"
OFF = "  - {quantizer_name: '*', enable: false}\n"
WEIGHTS = "  - {quantizer_name: '*weight_quantizer', cfg: {num_bits: %s}}\n"


def test_recipes_are_judged_or_have_a_reason(tmp_path: Path) -> None:
    """Whole recipes alone are looked at; those that a CPU cannot judge are listed by the reason."""
    texts = {
        "general/ptq/int8": HEAD + OFF + WEIGHTS % 8,
        "general/ptq/wide": HEAD + OFF + WEIGHTS % "[5, 2]",
        "general/ptq/wrong": HEAD + OFF + WEIGHTS % 99,
        "general/ptq/part": "- {quantizer_name: '*', enable: false}\n",
        "configs/ptq/units/off": HEAD + OFF,
    }
    for name, text in texts.items():
        path = tmp_path / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    judged, others = shipped.sort(tmp_path, shipped.recipes_of(tmp_path))

    assert [path.stem for path in judged] == ["int8"]
    assert sorted(name for names in others.values() for name in names) == [
        "general/ptq/wide",
        "general/ptq/wrong",
    ]


def test_a_row_is_one_line_without_folders_of_the_machine() -> None:
    """Files of ModelOpt's tree are named from its root, and a bar does not end the cell."""
    place = finding.installed_root() / "general/ptq/x.yaml"
    row = JudgedRecipe("x", "FAIL", "+0.00 [-1.00, +1.00]", (f"entry 1 ({place}:3)", "a|b\nc"))

    text = shipped.page([row], {"no reason": ["y"]})

    assert "entry 1 (general/ptq/x.yaml:3)<br>a\\|b" in text
    assert str(finding.installed_root()) not in text
    assert "The 2 recipes and presets" in text
    assert "| no reason | 1 | `y` |" in text
