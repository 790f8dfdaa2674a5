"""Recipes written as text, for tests."""

from __future__ import annotations

from pathlib import Path

from harness.recipes.loading import Recipe, load

DENY_ALL = "  - {quantizer_name: '*', enable: false}\n"


def recipe(folder: Path, entries: str, algorithm: str | None = "max") -> Recipe:
    """The recipe of *entries* (lines indented by two) and an algorithm (None: the key is not
    written) in *folder*.
    """
    path = folder / "r.yaml"
    key = "" if algorithm is None else f"  algorithm: {algorithm}\n"
    path.write_text(f"metadata: {{recipe_type: ptq}}\nquantize:\n{key}  quant_cfg:\n{entries}")
    return load(str(path))


def weights_in(bits: int) -> str:
    """The text of a recipe that rounds the weights of Linears to integers, one scale per row."""
    weights = entry("*weight_quantizer", f"num_bits: {bits}, axis: 0", "nn.Linear")
    head = "metadata: {recipe_type: ptq}\nquantize:\n  algorithm: max\n  quant_cfg:\n"
    return head + DENY_ALL + weights


def entry(pattern: str, cfg: str, parent_class: str = "") -> str:
    """A line that gives the attributes *cfg* (YAML without braces) to what *pattern* matches."""
    parent = f"parent_class: {parent_class}, " if parent_class else ""
    return f"  - {{quantizer_name: '{pattern}', {parent}cfg: {{{cfg}}}}}\n"
