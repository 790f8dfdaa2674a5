"""The documentation: every link leads somewhere, every page is linked, references name what there
is, and examples can be used.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from harness.checks import registry
from harness.lint import command as lint_command
from harness.statistics import budgets
from harness.tools import pages

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md"), *ROOT.glob(".github/**/*.md")])
#: A fenced block: its language and its text.
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^]\[]*\]\(([^)\s]+)\)")


def prose(path: Path) -> str:
    """The text of a document without its code: fenced blocks, indented blocks and code in lines."""
    text = FENCED.sub("", path.read_text(encoding="utf-8"))
    text = re.sub(r"(?m)^    .*$", "", text)
    return re.sub(r"`[^`\n]*`", "code", text)


def anchors(path: Path) -> set[str]:
    """The anchors of a document, as GitHub makes them from its headings."""
    text = FENCED.sub("", path.read_text(encoding="utf-8"))
    headings = re.findall(r"(?m)^#+ (.*)$", text)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def wrong_links(path: Path) -> list[str]:
    """The links of a document that lead nowhere; of those to other hosts, only the form is read."""
    wrong = []
    for link in LINK.findall(prose(path)):
        parts = urlsplit(link)
        if parts.scheme:
            if parts.scheme != "https" or "." not in parts.netloc:
                wrong.append(link)
            continue
        target = path.parent / parts.path if parts.path else path
        if not target.exists() or (parts.fragment and parts.fragment not in anchors(target)):
            wrong.append(link)
    return wrong


def blocks(language: str) -> list[tuple[str, str]]:
    """Every fenced block of *language*, with the name of its page and its number there."""
    return [
        (f"{path.name}-{number}", text)
        for path in DOCUMENTS
        for number, (kind, text) in enumerate(FENCED.findall(path.read_text(encoding="utf-8")))
        if kind == language
    ]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    """Files and headings that a document links to exist."""
    assert wrong_links(path) == []


def test_a_wrong_link_is_noticed(tmp_path: Path) -> None:
    """A missing file, a missing heading and an address without a host are reported."""
    page = tmp_path / "page.md"
    page.write_text("# One\n[a](#one) [b](#two) [c](gone.md) [d](https://) [e](page.md#one)\n")

    assert wrong_links(page) == ["#two", "gone.md", "https://"]


def test_every_page_is_in_the_index() -> None:
    """docs/index.md lists each page, and only pages that exist."""
    there = {path.name for path in DOCS.glob("*.md")} - {pages.INDEX}

    assert set(pages.pages()) == there, "add the page to docs/index.md"


@pytest.mark.parametrize("name", sorted(pages.pages()))
def test_pages_link_to_their_neighbours(name: str) -> None:
    """Each page ends with links to the index and to the pages before and after it."""
    text = (DOCS / name).read_text(encoding="utf-8")

    assert text.endswith(pages.footer(name)), "run python -m harness.tools.pages"
    assert text.count("[Documentation](index.md)") == 1


def test_footers_are_written_again_after_the_index_changed(tmp_path: Path) -> None:
    """The command adds missing footers, replaces old ones and leaves the rest of a page alone."""
    (tmp_path / "index.md").write_text("# Index\n- [A page](a.md): x\n- [B page](b.md)\n")
    (tmp_path / "a.md").write_text("# A\n\ntext\n")
    (tmp_path / "b.md").write_text("# B\n\n[Documentation](index.md) | before: [Old](old.md)\n")

    pages.main(tmp_path)
    pages.main(tmp_path)

    assert (tmp_path / "a.md").read_text() == (
        "# A\n\ntext\n\n[Documentation](index.md) | next: [B page](b.md)\n"
    )
    assert (tmp_path / "b.md").read_text() == (
        "# B\n\n[Documentation](index.md) | before: [A page](a.md)\n"
    )


def test_the_readme_is_short() -> None:
    """The README is an overview: at most 900 words, everything else is linked."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900


def test_the_options_page_has_every_option(pytester: pytest.Pytester) -> None:
    """docs/options.md has a row for each option of the gate, and for no other."""
    text = (DOCS / "options.md").read_text(encoding="utf-8")
    rows = re.findall(r"(?m)^\| (`-.*?) \| ", text)
    named = {name for row in rows for name in re.findall(r"--[\w-]+", row)}
    config = pytester.parseconfig()
    (group,) = [g for g in config._parser._groups if g.name == "quantized CLIP gate"]
    options = {name for option in group.options for name in option.names()}

    assert named == options


def test_the_page_of_checks_has_every_check() -> None:
    """docs/checks.md has each check under its suite, and no other; recorded ones have a star."""
    text = (DOCS / "checks.md").read_text(encoding="utf-8")
    named = set()
    for section in text.split("\n## ")[1:]:
        suite = section.partition("\n")[0].strip()
        for row in re.findall(r"(?m)^\| (`[^|]*) \|", section):
            named |= {(suite, name, row.endswith("*")) for name in re.findall(r"`(\w+)`", row)}
    there = {(check.suite, check.name, check.recorded) for check in registry.every()}

    assert named == there


@pytest.mark.parametrize(("name", "text"), blocks("python"), ids=lambda x: x.partition("\n")[0])
def test_python_examples_are_python(name: str, text: str) -> None:
    """Each Python example can be parsed."""
    ast.parse(text, filename=name)


@pytest.mark.parametrize(("name", "text"), blocks("yaml"), ids=lambda x: x.partition("\n")[0])
def test_yaml_examples_are_yaml(name: str, text: str) -> None:
    """Each YAML example can be parsed."""
    assert yaml.safe_load(text), name


RECIPES = [(name, text) for name, text in blocks("yaml") if "\nquantize:" in text]
BUDGETS = [(name, text) for name, text in blocks("yaml") if text.startswith("defaults:")]


@pytest.mark.parametrize(("name", "text"), RECIPES, ids=lambda x: x.partition("\n")[0])
def test_recipes_of_the_examples_have_no_problems(name: str, text: str, tmp_path: Path) -> None:
    """The lint finds nothing in a recipe, unless the recipe says so in its first line."""
    path = tmp_path / f"{name}.yaml"
    path.write_text(text)

    assert lint_command.main(["lint", str(path)]) == int(text.startswith("# two mistakes"))


@pytest.mark.parametrize(("name", "text"), BUDGETS, ids=lambda x: x.partition("\n")[0])
def test_budgets_of_the_examples_can_be_used(name: str, text: str, tmp_path: Path) -> None:
    """Budgets that a page shows can be loaded."""
    path = tmp_path / f"{name}.yaml"
    path.write_text(text)

    assert budgets.load(path).path == path
