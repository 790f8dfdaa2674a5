"""The console command ``clip-gate``: what the gate can say without a model, in two seconds."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from harness.errors import UsageError
from harness.lint.formats import FORMATS
from harness.lint.run import lint


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0: no problems, 1: problems, 4: something cannot be read, or is not a
    path.
    """
    parser = argparse.ArgumentParser(
        prog="clip-gate", description="A regression gate for quantization recipes."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser(
        "lint",
        help="say what is wrong with recipes by their text alone",
        description=(
            "Say what is wrong with recipes by their text alone, without torch, ModelOpt or a "
            "model."
        ),
        epilog="Exit codes: 0 no problems (notes do not count), 1 problems, 4 unreadable input.",
    )
    add.add_argument(
        "paths", nargs="+", metavar="PATH", help="a recipe, a snippet, or a tree of them"
    )
    add.add_argument(
        "--format", choices=sorted(FORMATS), default="text", help="of what is printed (text)"
    )
    add.add_argument(
        "--recipes-root", type=Path, metavar="DIR", help="resolve $imports in this tree of recipes"
    )
    try:
        options = parser.parse_args(arguments)
    except SystemExit as error:
        return 4 if error.code else 0
    try:
        outcome = lint(options.paths, options.recipes_root)
    except UsageError as error:
        print("\n".join(error.lines), file=sys.stderr)
        return 4
    sys.stdout.write(FORMATS[options.format](outcome.problems))
    for problem in outcome.unreadable:
        print(problem, file=sys.stderr)
    if options.format == "text" and not outcome.unreadable:
        counts = Counter(finding.level for finding in outcome.problems)
        print(
            f"{_counted(outcome.recipes, 'recipe')}: {_counted(counts['error'], 'problem')}, "
            f"{_counted(counts['note'], 'note')}",
            file=sys.stderr,
        )
    return outcome.exit_code


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


if __name__ == "__main__":
    sys.exit(main())
