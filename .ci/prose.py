"""Check the words of the project: ``python .ci/prose.py [PATH...]`` (default: all of git's files).

Prints one line per finding, ``file:line: "what is written": write what``, and exits with 1 if
there are any. Files under a path of ``.ci/prose-pending.txt`` are not held to it yet: neither to
``words`` nor to ``names`` of variables, or to one of them. The check also fails if such a path has
nothing left to fix, so that the list can only get shorter. ``--all`` ignores the list.

The table says what to write instead of words that readers of other countries stumble over, or
that are dialect. It is deliberately short: add a row when a review finds a word that had to be
read twice.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PENDING = ROOT / ".ci/prose-pending.txt"
SUFFIXES = {".cff", ".css", ".html", ".ini", ".js", ".md", ".py", ".toml", ".txt", ".yaml", ".yml"}
#: Text of others, data, and the two files that have to quote the words.
EXEMPT = (
    ".ci/prose.py",
    "tests/harness/test_prose.py",
    "harness/models/embedded/data/",
    "harness/models/embedded/clip/merges.txt",
    "tests/harness/recipes/corpus/",
)

#: A pattern, and what to write instead. A blank also matches a line break within a comment.
WORDS = (
    (r"(?:hangs?|hung|hanging) on", "depends on"),
    (
        r"(?<!there\s)(?<!where\s)is no(?!\s+(?:longer|more|less|other|such|better|worse|larger"
        r"|smaller|faster|later|earlier|wider|one)\b)(?=\s+\w)",
        "is not a",
    ),
    (r"(?<!there\s)is (?-i:none)(?=\s|[,.;:)])", "is not one"),
    (r"(?:un)?mend(?:s|ed|ing)?", "fix"),
    (r"anew", "again"),
    (
        r"(?:lies?|lay)(?!\s+(?:within|between|below|above|inside|outside|beyond|nearer|on\sone\sside))",
        "is, are, is stored",
    ),
    (r"beside", "next to, in addition to, besides"),
    (r"(?:un)?told|(?<!\.)(?<!def\s)tells?", "reported, says, distinguish"),
    (
        r"(?:a|an|one) (?:row|line|entry|number|scale|test|file|name|value|record|GPU) an?"
        r"(?!\s+(?:time|single|different|second)\b)(?=\s+\w)",
        "one ... per ...",
    ),
    (r"in all(?=\*\*|\s?[.,;:)|])", "total"),
    (r"what became of|comes to(?!\s+\d)", "the result, ends as"),
)
#: Names of variables and parameters that do not say what the thing is.
NAMES = frozenset({"found", "given", "kept", "made", "mend", "one", "told"})


def main(arguments: list[str]) -> int:
    """Check the files of *arguments*; return the exit status."""
    paths = [name for name in arguments if not name.startswith("-")]
    listed = subprocess.run(
        ["git", "ls-files", "--", *paths], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    pending = [] if "--all" in arguments else read_pending(PENDING.read_text(encoding="utf-8"))
    unfinished = set()
    count = 0
    for name in listed:
        path = ROOT / name
        if path.suffix not in SUFFIXES or name.startswith(EXEMPT) or not path.is_file():
            continue
        for problem in problems(path.read_text(encoding="utf-8"), python=path.suffix == ".py"):
            allowed = [e for e in pending if name.startswith(e[0]) and e[1] == problem.kind]
            if allowed:
                unfinished.update(allowed)
                continue
            count += 1
            print(f'{name}:{problem.line}: "{problem.written}": write {problem.instead}')
    finished = [] if paths else [entry for entry in pending if entry not in unfinished]
    for entry, kind in finished:
        print(f"{PENDING.relative_to(ROOT)}: {entry} {kind}: nothing left to fix: remove it")
    print(f"{count} words to replace; {len(unfinished)} entries are not checked yet")
    return int(bool(count or finished))


def read_pending(text: str) -> list[tuple[str, str]]:
    """Each path of the list with each kind of check that it is not held to yet."""
    entries = []
    for line in text.splitlines():
        path, *kinds = line.partition("#")[0].split() or [""]
        entries += [(path, kind) for kind in kinds]
    return entries


@dataclass(frozen=True)
class WordProblem:
    """A word of the table: its line, the kind of check, and what to write instead."""

    line: int
    kind: str
    written: str
    instead: str


def problems(text: str, *, python: bool) -> Iterator[WordProblem]:
    """Everything in *text* that the table names."""
    for pattern, instead in COMPILED:
        for match in pattern.finditer(text):
            written = " ".join(match[0].split())
            line = text.count("\n", 0, match.start()) + 1
            yield WordProblem(line, "words", written, instead)
    if python:
        for node in ast.walk(ast.parse(text)):
            name = bound_name(node)
            if name in NAMES:
                instead = "a name that says what it is"
                yield WordProblem(node.lineno, "names", name, instead)  # type: ignore[attr-defined]


def bound_name(node: ast.AST) -> str | None:
    """The name that *node* gives to a variable, a parameter or a function, if it does."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return node.id
    if isinstance(node, ast.arg):
        return node.arg
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return node.name
    return None


def _compiled(pattern: str) -> re.Pattern[str]:
    """*pattern* as whole words; where it has a blank, a comment may go on in the next line."""
    spaced = pattern.replace(" ", r"\s+(?:#\s*)?")
    return re.compile(rf"(?<![\w-])(?:{spaced})(?!\w)", re.IGNORECASE)


COMPILED = [(_compiled(pattern), instead) for pattern, instead in WORDS]

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
