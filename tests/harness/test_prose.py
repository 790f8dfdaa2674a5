"""The check of the project's words (``.ci/prose.py``) finds what its table says, and nothing else."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

PROSE = Path(__file__).parents[2] / ".ci/prose.py"


@pytest.fixture(scope="module")
def prose() -> ModuleType:
    """The script, imported from its file."""
    spec = importlib.util.spec_from_file_location("prose", PROSE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "prose", module)
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("It hangs on the seed.", "hangs on"),
        ("what they hang\n    # on", "hang # on"),
        ("This is no recipe.", "is no"),
        ("Count it anew, then mend it.", "anew mend"),
        ("The file lies beside the tests.", "lies beside"),
        ("It tells what it was told.", "tells told"),
        ("one line a task", "one line a"),
        ("ten of them in all.", "in all"),
    ],
)
def test_a_word_of_the_table_is_reported(prose: ModuleType, text: str, written: str) -> None:
    """Each word is found, across the line break of a comment too."""
    problems = sorted(prose.problems(text, python=False), key=lambda p: text.find(p.written[:4]))

    assert " ".join(problem.written for problem in problems) == written


@pytest.mark.parametrize(
    "text",
    [
        "There is no recipe, and it is no longer used.",
        "The value lies between two codes.",
        "position = file.tell()",
        "compared in all suites",
        "one line at a time",
    ],
)
def test_plain_english_is_not_reported(prose: ModuleType, text: str) -> None:
    """Common phrases that only look like those of the table are not found."""
    assert list(prose.problems(text, python=False)) == []


def test_a_name_that_says_nothing_is_reported(prose: ModuleType) -> None:
    """Variables, parameters and functions are found by name; reading such a name is not."""
    text = "def made(kept):\n    for one in kept:\n        found = one\n    return found\n"

    problems = prose.problems(text, python=True)

    assert sorted((p.line, p.written, p.kind) for p in problems) == [
        (1, "kept", "names"),
        (1, "made", "names"),
        (2, "one", "names"),
        (3, "found", "names"),
    ]


def test_the_list_names_paths_and_kinds(prose: ModuleType) -> None:
    """Comments are left out; a path may be held to one of the two kinds already."""
    text = "# comment\nharness/x/ words names\nREADME.md words  # soon\n\n"

    assert prose.read_pending(text) == [
        ("harness/x/", "words"),
        ("harness/x/", "names"),
        ("README.md", "words"),
    ]
