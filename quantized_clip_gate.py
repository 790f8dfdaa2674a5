"""What pytest imports of an installed gate in every project: a guest that registers the plugin
where it is asked for.

A project that has none of the gate's suites is left alone: no option, fixture or marker is added,
no hook acts, and nothing else is imported, not even the package ``harness``: the project may have
one of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

#: The plugin itself; a ``conftest.py`` names it in ``pytest_plugins``.
PLUGIN = "harness.pytest_plugin.plugin"
#: The package of the suites in an installed gate.
SUITES = "harness.suites"
#: A folder with one of these is where a project begins: what is above it belongs to somebody else.
_PROJECT_FILES = (
    "pytest.toml",
    ".pytest.toml",
    "pytest.ini",
    ".pytest.ini",
    "pyproject.toml",
    "tox.ini",
    "setup.cfg",
    "setup.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, args: list[str], parser: pytest.Parser
) -> None:
    """Register the plugin if this is a run of the gate.

    At this moment every installed plugin has its options, so that a clash is ours to report, and
    the command line has not been read in earnest, so that the gate's options are still in time.
    """
    manager = early_config.pluginmanager
    if manager.has_plugin(PLUGIN) or manager.is_blocked(PLUGIN) or not is_wanted(early_config):
        return
    from harness.pytest_plugin import private

    manager.import_plugin(PLUGIN)
    private.read_command_line_again(early_config, parser, args)
    private.find_configuration_again(early_config)


def is_wanted(config: pytest.Config) -> bool:
    """Whether this run is of the gate's suites: installed ones, or those of a project.

    Args:
        config: pytest's configuration, of which only the words of the command line are known yet.
    """
    known = config.known_args_namespace
    words = [str(word).partition("::")[0] for word in known.file_or_dir]
    suites = [word for word in words if word == SUITES or word.startswith(f"{SUITES}.")]
    if known.pyargs and suites:
        return True
    folder = config.invocation_params.dir
    # A word may be the value of an option that nobody knows yet: the current folder counts as well.
    paths = [folder / word for word in (known.rootdir, known.inifilename, *words) if word]
    return any(_has_gate(place) for place in (folder, *_existing(paths)))


def _existing(paths: Iterable[Path]) -> list[Path]:
    """Those of *paths* that exist; text that cannot be a path does not."""
    existing = []
    for path in paths:
        try:
            if path.exists():
                existing.append(path)
        except (OSError, ValueError):
            continue
    return existing


def _has_gate(place: Path) -> bool:
    """Whether the project that *place* belongs to names the plugin in a ``conftest.py``."""
    for folder in (place, *place.absolute().parents):
        try:
            if PLUGIN in (folder / "conftest.py").read_text(encoding="utf-8", errors="replace"):
                return True
        except OSError:
            pass  # no such file, or none that may be read: pytest will say so where it matters
        if any((folder / name).exists() for name in _PROJECT_FILES):
            return False
    return False
