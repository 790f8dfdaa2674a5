"""Releases of ModelOpt compared: ``python -m harness.tools.versions measure | check | diff |
table``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.errors import UsageError

ROOT = Path(__file__).parents[3]
DOCUMENT = ROOT / "docs" / "versions.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 all as expected, 1 something differs, 4 a usage error."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.tools.versions", description="Releases of ModelOpt compared."
    )
    parser.add_argument(
        "--baselines", type=Path, default=ROOT / "baselines", metavar="DIR", help="the store"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("measure", help="measure the installed release and write its file")
    add.add_argument(
        "--output", type=Path, metavar="FILE", help="in place of versions/<release>.json"
    )
    commands.add_parser(
        "check", help="measure the installed release and hold it against the newest measured one"
    )
    add = commands.add_parser(
        "diff", help="what changes for CLIP from one measured release to another"
    )
    add.add_argument("before", help="a release (0.44) or the file of a measurement")
    add.add_argument("after", help="likewise")
    add.add_argument(
        "--subject", metavar="GLOB", default="*", help="only recipes and presets of this name"
    )
    add = commands.add_parser("table", help="write docs/versions.md from the measured releases")
    add.add_argument(
        "--output", type=Path, metavar="FILE", default=DOCUMENT, help="in place of docs/versions.md"
    )
    options = parser.parse_args(arguments)
    try:
        return _COMMANDS[options.command](options)
    except UsageError as error:
        print(error, file=sys.stderr)
        return 4


def _measure(options: argparse.Namespace) -> int:
    from harness.tools.versions import measurement

    measured = measurement.measure(_say)
    path = options.output or measurement.path_of(measured.release, options.baselines)
    measurement.write(measured, path)
    print(f"wrote {path}")
    return 0


def _check(options: argparse.Namespace) -> int:
    from harness.baselines import differences
    from harness.tools.versions import check, measurement

    records = differences.load(options.baselines)
    measured = measurement.every(options.baselines)
    if not measured:
        fix = "Measure the pinned release first: python -m harness.tools.versions measure."
        raise UsageError(
            options.baselines / differences.FOLDER, "holds no measurement to compare with", fix
        )
    result = check.check(measurement.measure(_say), measured[-1], records)
    print("\n".join(result.lines(records)))
    return 1 if result.findings else 0


def _diff(options: argparse.Namespace) -> int:
    from harness.tools.versions import check, measurement

    before, after = (
        measurement.find(name, options.baselines) for name in (options.before, options.after)
    )
    changed = check.effects(before.only(options.subject), after.only(options.subject))
    print(
        "\n".join(map(str, changed))
        or f"{before.release} and {after.release} make the same of CLIP"
    )
    return 1 if changed else 0


def _table(options: argparse.Namespace) -> int:
    from harness.baselines import differences
    from harness.tools.versions import measurement, table

    text = table.render(measurement.every(options.baselines), differences.load(options.baselines))
    options.output.write_text(text, encoding="utf-8")
    print(f"wrote {options.output}")
    return 0


def _say(what: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{what}", end="", file=sys.stderr, flush=True)


_COMMANDS = {"measure": _measure, "check": _check, "diff": _diff, "table": _table}

if __name__ == "__main__":
    sys.exit(main())
