"""A change is shown on every architecture that its recipes are for, with the faults it brings."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from harness import report
from harness.gate.results import Results
from harness.pull_requests import tables
from harness.pull_requests.reach import Affected, Reach
from harness.pull_requests.revisions import Changeset
from harness.recipes.tree import Tree

NAME = "huggingface/qwen3_vl/ptq/x.yaml"
TEXT = """metadata: {recipe_type: ptq, description: 'A recipe.'}
quantize:
  algorithm: max
  quant_cfg:
    - {quantizer_name: '*', enable: false}
    - {quantizer_name: '*weight_quantizer', cfg: {num_bits: 4, block_sizes: {-1: 64}}}
    - {quantizer_name: '*lm_head*', enable: false}
"""
NO_VISION = "    - {quantizer_name: '*visual*', enable: false}\n"


def changed(
    folder: Path, before: str, after: str, name: str = NAME
) -> list[tables.ArchitectureChange]:
    """What the change from one text of the recipe to another does."""
    for side, text in (("before", before), ("after", after)):
        path = folder / side / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    comparison = Changeset("", "", {name: "modified"}, {}, (name,), ())
    reached = Affected(
        name, folder.resolve() / "after" / name, "ptq", (Reach((name,), "modified"),)
    )
    return tables.changes([reached], Tree(folder / "after"), Tree(folder / "before"), comparison)


def test_a_vision_tower_that_a_change_lets_in_is_counted_and_named(tmp_path: Path) -> None:
    """The quantizers that change are counted, the new faults named, and its reverse fixes them."""
    recipe_changes = changed(tmp_path, TEXT + NO_VISION, TEXT)
    text = " ".join(tables.table(recipe_changes).brought)

    assert recipe_changes[0].counts == {"Qwen3-VL-8B": 110 + 8}
    assert {fault.rule for fault in recipe_changes[0].new} == {"part not left out", "block size"}
    assert "blocks of 64 do not divide the 4304 features of 27 layers" in text
    assert "model.visual.blocks.{0..26}.mlp.linear_fc2" in tables.brought(recipe_changes)[NAME]
    back = changed(tmp_path, TEXT, TEXT + NO_VISION)
    assert not tables.brought(back)
    assert {fault.rule for fault in back[0].fixed} == {"part not left out", "block size"}


def test_a_remark_changes_nothing(tmp_path: Path) -> None:
    """A comment has no count, no line and no fault that is new, whatever was there before."""
    recipe_changes = changed(tmp_path, TEXT, TEXT + "# a remark\n")

    assert recipe_changes[0].counts == {"Qwen3-VL-8B": 0}
    assert not recipe_changes[0].lines
    assert not recipe_changes[0].new
    assert recipe_changes[0].left


def test_a_recipe_of_a_family_that_the_table_lacks_is_listed(tmp_path: Path) -> None:
    """It has no column; its name and the reason are below the table."""
    name = "models/somebody/Unheard-Of-7B/ptq/x.yaml"
    table = tables.table(changed(tmp_path, TEXT, TEXT + NO_VISION, name))

    assert not table.recipes
    assert "names no architecture of the table" in table.not_judged[name]
    assert f"- {table.not_judged[name]}: {name}" in " ".join(table.lines(200))


@pytest.mark.parametrize("width", [80, 160])
def test_the_table_fits_the_terminal(width: int) -> None:
    """Columns that find no room next to each other follow below, and none is lost."""
    recipes = tuple((f"general/ptq/recipe{number}",) for number in range(20))
    counts = {"Nemotron-3-Super-120B-A12B": tuple(range(49_000, 49_020)), "Phi-4": (None,) * 20}
    lines = list(tables.ChangeTable(recipes, counts).lines(width))

    assert max(map(len, lines)) <= width
    assert all(any(f"{count:,}" in line for line in lines) for count in range(49_000, 49_020))


def test_the_table_opens_the_reports(tmp_path: Path) -> None:
    """Page and summary show counts and faults before anything else, and the run fails."""
    recipe_changes = changed(tmp_path, TEXT + NO_VISION, TEXT)
    results = Results()
    results.environment["selection"] = {
        "architectures": asdict(tables.table(recipe_changes)),
        "faults": tables.brought(recipe_changes),
    }
    report.write(results.as_dict(), tmp_path / "report")
    summary = (tmp_path / "report/summary.md").read_text()
    page = (tmp_path / "report/report.html").read_text()

    assert summary.startswith("## Quantized CLIP: ❌ FAIL")
    assert "| `Qwen3-VL-8B` | 118 |" in summary
    assert page.index('id="architectures-title"') < page.index('id="overview-title"')
    assert ">118</td>" in page
    for text in (page, summary):
        assert "blocks of 64 do not divide the 4304 features of 27 layers" in text
