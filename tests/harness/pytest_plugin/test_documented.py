"""Every command of the documents is one that its program takes: options, modules and environments
are there.
"""

from __future__ import annotations

import configparser
import contextlib
import importlib.util
import io
import re
import shlex
from pathlib import Path

import pytest

from harness.lint import command as lint_command

ROOT = Path(__file__).parents[3]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob(".github/**/*.md")])


def commands(program: str) -> list[str]:
    """The documents' commands of *program*: indented, behind a prompt or not, or between
    backquotes.
    """
    commands_found = []
    for path in DOCUMENTS:
        text = path.read_text().replace("\\\n", " ")
        shown = re.findall(rf"^    (?:\$ )?({program} .*|{program})$", text, re.MULTILINE)
        commands_found += [line.partition("  #")[0].strip() for line in shown]
        commands_found += re.findall(rf"`({program} [^`]*)`", text)
    return sorted(
        {
            command.replace(" ...", "").replace("$(git merge-base origin/main HEAD)", "HEAD")
            for command in commands_found
        }
    )


def test_documents_have_commands() -> None:
    """Otherwise the tests below would show nothing."""
    assert len(commands("pytest")) > 30
    assert len(commands("python -m")) > 8


@pytest.mark.parametrize("command", commands("pytest"))
def test_documented_options_are_taken(pytester: pytest.Pytester, command: str) -> None:
    """The option parser knows every option of a command line that is shown."""
    pytester.parseconfig(*shlex.split(command)[1:])


@pytest.mark.parametrize("command", [*commands("python -m"), *commands("python3 -m")])
def test_documented_modules_are_there(command: str) -> None:
    """Each ``python -m`` names a module of this project, or pip or tox."""
    for part in command.split("&&"):
        module = part.split()[2]
        assert module in ("pip", "tox") or importlib.util.find_spec(module) is not None


def test_documented_options_of_the_lint_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    """``clip-gate lint --help`` has every option that a page shows with the lint."""
    shown = {option for line in commands("clip-gate") for option in re.findall(r"--[\w-]+", line)}

    lint_command.main(["lint", "--help"])

    assert shown <= set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    assert "--format" in shown


#: ``$(python -c 'CODE')PATH`` in a command: quotes, code, path.
COPIED = re.compile(r"""\$\(python -c (['"])(.*?)\1\)([\w./-]*)""")


@pytest.mark.parametrize(
    "path", [p for p in DOCUMENTS if COPIED.search(p.read_text())], ids=lambda p: p.name
)
def test_files_that_a_page_copies_are_there(path: Path) -> None:
    """What the Python code of a command prints, with the path behind it, is a file or folder."""
    text = path.read_text()
    for _, code, behind in COPIED.findall(text):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, {})  # code of the pages of this project
        place = Path(printed.getvalue().strip() + behind)
        assert place.exists()
        copied = re.findall(r'"\$EMBEDDED/([\w/]+)"', text) if place.name == "embedded" else []
        assert [name for name in copied if not (place / name).exists()] == []


def test_documented_environments_are_there() -> None:
    """Each ``tox -e`` names an environment of tox.ini."""
    config = configparser.ConfigParser()
    config.read(ROOT / "tox.ini")
    known = set()
    for section in config.sections():
        name = section.removeprefix("testenv:")
        factors = re.search(r"\{(.*)\}", name)
        known |= (
            {name[: factors.start()] + factor for factor in factors[1].split(",")}
            if factors
            else {name}
        )
    shown = {
        name
        for path in DOCUMENTS
        for name in re.findall(r"tox (?:devenv |exec )?-e ([\w.-]+)", path.read_text())
    }

    assert len(shown) > 5
    assert shown <= known
