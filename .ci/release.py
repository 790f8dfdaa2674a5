"""Make a release: build the wheel, check it, and tag the commit.

    python .ci/release.py 0.2.0 --dry-run     # everything but the tag; the version may still differ
    python .ci/release.py 0.2.0               # the real one, on a clean checkout of main

``python3 -m tox -e release -- 0.2.0 --dry-run`` brings the programs that it needs. Nothing is
uploaded: the wheel is in ``dist/``, and the last lines say how to publish wheel and tag.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
#: What a run from the wheel cannot do without; tests/harness/test_wheel.py compares every file.
NEEDED = (
    "harness/models/embedded/clip/model.safetensors",
    "harness/recipes/library/fp8.yaml",
    "harness/suites/test_insertion.py",
    "harness/baselines/stored/budgets.yaml",
    "quantized_clip_gate.py",
)
#: What must not be in a wheel.
UNWANTED = re.compile(r"(^|/)(__pycache__|\.git|\.lock|tests/harness|.*\.pyc)(/|$)")


def main(arguments: list[str] | None = None) -> int:
    """Run all steps; return 1 if something is wrong, before the tag is made."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("version", help="such as 0.2.0")
    parser.add_argument("--dry-run", action="store_true", help="check everything, tag nothing")
    options = parser.parse_args(arguments)
    problems = version_problems(options.version) + checkout_problems()
    wheel = build()
    problems += wheel_problems(wheel)
    for problem in problems:
        print(f"release: {problem}", file=sys.stderr)
    if options.dry_run:
        print(f"dry run: built {wheel.relative_to(ROOT)}, {len(problems)} problems, no tag")
        return int(bool(problems))
    if problems:
        return 1
    tag = f"v{options.version}"
    run("git", "tag", "--annotate", tag, "--message", f"Release {options.version}")
    print(f"tagged {tag}. To publish:\n  git push origin {tag}\n  python -m twine upload {wheel}")
    return 0


def version_problems(version: str) -> list[str]:
    """Places that have another version than the one that is released."""
    problems = []
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        problems.append(f"{version!r} is not a version. Write MAJOR.MINOR.PATCH.")
    for name, pattern in (
        ("pyproject.toml", r'(?m)^version = "(.*)"$'),
        ("CITATION.cff", r"(?m)^version: (.*)$"),
        ("CHANGELOG.md", r"(?m)^## (\S+)"),
    ):
        match = re.search(pattern, (ROOT / name).read_text(encoding="utf-8"))
        stated = match[1] if match else "no version"
        if stated != version:
            problems.append(f"{name}: says {stated}, not {version}. Change it and commit.")
    return problems


def checkout_problems() -> list[str]:
    """What makes a checkout unfit for a release: it is changed, or not on main."""
    problems = []
    if run("git", "status", "--porcelain"):
        problems.append("the checkout has changes that are not committed. Commit or stash them.")
    branch = run("git", "rev-parse", "--abbrev-ref", "HEAD")
    if branch != "main":
        problems.append(f"this is branch {branch}. Release from main.")
    return problems


def build() -> Path:
    """Build the wheel into ``dist/`` and return its path; older ones are removed."""
    DIST.mkdir(exist_ok=True)
    for old in DIST.glob("quantized_clip_gate-*.whl"):
        old.unlink()
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", DIST, ROOT)
    (wheel,) = DIST.glob("quantized_clip_gate-*.whl")
    return wheel


def wheel_problems(wheel: Path) -> list[str]:
    """What twine and a look at the contents have against the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    problems = [f"{wheel.name}: {name} is missing" for name in NEEDED if name not in names]
    problems += [f"{wheel.name}: holds {name}" for name in names if UNWANTED.search(name)]
    checked = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", wheel],
        capture_output=True,
        text=True,
        check=False,
    )
    if checked.returncode:
        problems.append(f"twine check: {' '.join((checked.stdout + checked.stderr).split())}")
    return problems


def run(*command: str | Path) -> str:
    """The output of *command*, run at the top of the checkout."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"release: {' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
