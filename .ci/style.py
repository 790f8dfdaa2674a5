"""Print how the product's source reads, in figures: ``python .ci/style.py [FOLDER]`` (default:
harness).

Files under five lines are left out.  Densities are counts per 1,000 lines.  Exit code 1 where two
modules define a public class of one name.
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
LONG = 100


def main(folder: Path) -> int:
    """Print one line per measure; return the exit code."""
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.py"))}
    lines_of = {path: text.splitlines() for path, text in texts.items()}
    lines_of = {path: lines for path, lines in lines_of.items() if len(lines) >= 5}
    trees = [ast.parse(texts[path]) for path in lines_of]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    lines = [line for module in lines_of.values() for line in module]
    functions = [node for node in nodes if isinstance(node, FUNCTIONS)]
    public = [node for tree in trees for node in public_definitions(tree)]
    classes = Counter(node.name for node in public if isinstance(node, ast.ClassDef))
    twice = [name for name, count in classes.items() if count > 1]
    counts = Counter(type(node) for node in nodes)
    comprehensions = sum(counts[kind] for kind in COMPREHENSIONS)
    documented = sum(ast.get_docstring(node) is not None for node in public)
    typed = sum(node.returns is not None for node in functions)
    per_thousand = 1000 / len(lines)
    measures = {
        "lines": f"{len(lines):,} in {len(lines_of)} modules",
        "lines per module (median/p90/max)": spread([len(module) for module in lines_of.values()]),
        "lines per function (median/p90)": spread(
            [length(node) for node in functions], maximum=False
        ),
        "public docstrings": f"{documented / len(public):.0%}",
        "return types": f"{typed / len(functions):.0%}",
        "comprehensions per 1,000 lines": f"{comprehensions * per_thousand:.1f}",
        "conditional expressions per 1,000 lines": f"{counts[ast.IfExp] * per_thousand:.1f}",
        f"lines over {LONG} columns": f"{sum(len(line) > LONG for line in lines) / len(lines):.1%}",
        "Any": str(sum(isinstance(node, ast.Name) and node.id == "Any" for node in nodes)),
        "fmt: skip": str(sum("# fmt: skip" in line for line in lines)),
        "type: ignore": str(sum("# type: ignore" in line for line in lines)),
        "public class names in several modules": ", ".join(twice) or "none",
    }
    for name, value in measures.items():
        print(f"{name:42} {value}")
    return 1 if twice else 0


def public_definitions(
    tree: ast.Module,
) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """The public classes and functions of a module, and the public methods of its public
    classes.
    """
    for node in tree.body:
        if not isinstance(node, (ast.ClassDef, *FUNCTIONS)) or node.name.startswith("_"):
            continue
        yield node
        if isinstance(node, ast.ClassDef):
            methods = (method for method in node.body if isinstance(method, FUNCTIONS))
            yield from (method for method in methods if not method.name.startswith("_"))


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function, its signature and docstring included."""
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def spread(sizes: list[int], *, maximum: bool = True) -> str:
    """Median, 90th percentile and, if wanted, maximum."""
    ninth = statistics.quantiles(sizes, n=10)[-1]
    shown = [f"{statistics.median(sizes):.0f}", f"{ninth:.0f}"]
    return "/".join([*shown, str(max(sizes))] if maximum else shown)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "harness")))
