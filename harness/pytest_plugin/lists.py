"""``--list-recipes`` and ``--list-architectures``: list the names that the command line accepts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import UsageError

if TYPE_CHECKING:
    import pytest

    from harness.recipes.tree import Tree


def asked(config: pytest.Config) -> list[str]:
    """Return the lines of the lists that the command line asks for; empty where it asks for none.

    Raises:
        UsageError: the tree of recipes is not there.
    """
    lines: list[str] = []
    if config.getoption("list_recipes"):
        lines += _recipes(config.getoption("recipes_root"))
    if config.getoption("list_architectures"):
        lines += _architectures()
    return lines


def _recipes(root: Path | None) -> Iterator[str]:
    from harness.escaping import shown
    from harness.recipes import finding
    from harness.recipes.tree import Tree

    yield "gated by a plain pytest:"
    yield from (f"  {name}" for name in finding.DEFAULT)
    yield "gated by name (--recipe NAME):"
    yield from (f"  {name}" for name in finding.MORE)
    tree = Tree(root if root is not None else finding.installed_root())
    yield f"of {shown(tree.root)}:"
    yield from (f"  {shown(name, None)}" for name in names_of(tree))


def names_of(tree: Tree) -> Iterator[str]:
    """The recipes of a tree that the gate judges, by their names."""
    from harness.lint.run import yaml_files
    from harness.recipes.finding import section_files
    from harness.recipes.judged import JUDGED
    from harness.recipes.loading import kind_of

    for path in yaml_files(tree.root):
        name = path.relative_to(tree.root).with_suffix("").as_posix()
        sections = section_files(path.parent)
        if sections is not None:
            if path == sections[0]:
                yield path.parent.relative_to(tree.root).as_posix()
            continue
        try:
            document = tree.read(path)
            is_recipe = kind_of(document, tree) in JUDGED
        except UsageError:  # gating it says why
            continue
        declares = document.schema is not None or not {"metadata", "$import"}.isdisjoint(
            document.body
        )
        if is_recipe and declares:
            yield name


def _architectures() -> Iterator[str]:
    from harness.lint.known import installed
    from harness.outlines import names as architectures

    yield "published architectures on which structure is gated, by family:"
    families: dict[str, list[str]] = {}
    for name, architecture in installed().data["architectures"].items():
        if name != "embedded":
            families.setdefault(architecture["family"], []).append(name)
    yield from (f"  {family}: {', '.join(names)}" for family, names in families.items())
    yield "gated by the rules of shape (--architectures all, or NAME,...), by family:"
    known = architectures.by_family()
    yield from (f"  {family}: {', '.join(names)}" for family, names in known.items())
