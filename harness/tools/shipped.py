"""The table of docs/shipped-recipes.md: what the insertion suite says of each recipe that the
installed ModelOpt ships, on the structure of CLIP ViT-L/14.

Print it with ``python -m harness.tools.shipped``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import metadata

from harness import Gate, Options
from harness.checks import insertion
from harness.errors import UsageError
from harness.problems import Problem
from harness.pytest_plugin.lists import names_of
from harness.quantization.quantize import QuantizationError
from harness.recipes import finding, loading
from harness.recipes.tree import Tree
from harness.report.text import markdown_code, markdown_text

#: The published architecture that stands for all: recipes name modules, not sizes.
ARCHITECTURE = "ViT-L-14"
_HEAD = """\
# The recipes that ModelOpt {version} ships, on CLIP

What the insertion suite says of each on the published architecture {architecture}, without
weights, on a CPU. Each recipe that is not gated has the reason, each FAIL says what is wrong. Most
are written for language models and turn vision towers off: right for their models, wrong for CLIP.
`python -m harness.tools.shipped` prints this page.

| recipe | verdict | reason |
|---|---|---|
"""
_FOOT = "\n[Documentation](index.md) | before: [Mutants](mutants.md)"


def main() -> int:
    """Print the page."""
    version = metadata.version("nvidia-modelopt")
    print(_HEAD.format(version=version, architecture=ARCHITECTURE), end="")
    for name, verdict, reason in rows():
        print(f"| {markdown_code(name)} | {verdict} | {markdown_text(reason, 600)} |", flush=True)
    print(_FOOT)
    return 0


def rows() -> Iterator[tuple[str, str, str]]:
    """Yield each recipe's name, verdict and reason."""
    for name in names_of(Tree(finding.installed_root())):
        yield name, *_judged(name)


def _judged(name: str) -> tuple[str, str]:
    try:
        loading.load(name)
        gate = Gate(Options(recipes=(name,)))
        (case,) = gate.cases()
        if (why := case.not_gated()) is not None:
            return "not gated", why
        problems = insertion.structure_of_published_architecture(case, ARCHITECTURE)
    except UsageError as error:
        return "refused", str(error).replace(f"{finding.installed_root()}/", "")
    except QuantizationError as error:
        return "FAIL", error.headline
    if problems:
        return "FAIL", "; ".join(map(_shown, problems))
    return "PASS", ""


def _shown(problem: Problem) -> str:
    """What is wrong, without the folder of the installed tree."""
    return problem.what.rstrip(".:").replace(f"{finding.installed_root()}/", "")


if __name__ == "__main__":
    sys.exit(main())
