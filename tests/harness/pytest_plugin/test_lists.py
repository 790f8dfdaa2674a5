"""What ``--list-recipes`` and ``--list-architectures`` print."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import UsageError
from harness.pytest_plugin import lists


def listed(**options: Any) -> list[str]:
    """The lines of the lists for a command line."""
    values = {"list_recipes": False, "list_architectures": False, "recipes_root": None} | options
    config: Any = SimpleNamespace(getoption=values.__getitem__)
    return lists.asked(config)


def test_recipes_are_the_gates_own_and_those_of_the_tree(tmp_path: Path) -> None:
    """A recipe in a file or a folder is listed by its name; snippets, other kinds and other YAML
    are not.
    """
    files = {
        "general/ptq/a.yaml": "metadata: {recipe_type: ptq}\n",
        "general/ptq/b.yaml": "# modelopt-schema: modelopt.recipe.config.ModelOptPTQRecipe\n{}\n",
        "general/ptq/c/metadata.yaml": "recipe_type: ptq\n",
        "general/ptq/c/quantize.yaml": "quant_cfg: []\n",
        "general/ptq/broken.yaml": "[",
        "general/ptq/values.yaml": "a: 1\n",
        "general/distillation/d.yaml": "metadata: {recipe_type: distillation}\n",
        "configs/u.yaml": "# modelopt-schema: modelopt.torch.quantization.config.QuantizerCfgEntry\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    lines = listed(list_recipes=True, recipes_root=tmp_path)

    assert {"  fp8", "  svdquant"} <= set(lines)
    assert lines[lines.index(f"of {tmp_path}:") + 1 :] == [
        "  general/ptq/a",
        "  general/ptq/b",
        "  general/ptq/c",
    ]


def test_architectures_are_those_of_each_family() -> None:
    """The embedded model is not a published architecture."""
    text = "\n".join(listed(list_architectures=True))

    assert "clip: ViT-B-16, ViT-B-32" in text
    assert "qwen3_vl: Qwen3-VL-8B" in text
    assert "embedded" not in text


def test_a_tree_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """As in any other run."""
    with pytest.raises(UsageError, match="no such directory"):
        listed(list_recipes=True, recipes_root=tmp_path / "none")
    assert listed() == []
