"""Shared state of a run in the plugin: its options, its results, and whether another process
reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytest

from harness.gate.results import Results

if TYPE_CHECKING:
    from harness.gate.options import Options

_RESULTS = pytest.StashKey[Results]()
_SHOWN = pytest.StashKey[int]()


def results_of(config: pytest.Config) -> Results:
    """Return the results of this run so far."""
    return config.stash.setdefault(_RESULTS, Results())


def has_results(config: pytest.Config) -> bool:
    """Whether anything of the gate ran or was checked in this session."""
    return _RESULTS in config.stash


def options_of(config: pytest.Config) -> Options:
    """The command line as the library's options."""
    from harness.data import samples
    from harness.gate.options import Options

    get = config.getoption
    values: dict[str, Any] = {
        "clip_models": tuple(dict.fromkeys(get("gate_models") or ())),
        "consumers": tuple(dict.fromkeys(get("gate_consumers") or ())),
        "tasks": None if get("tasks") is None else samples.names_of(get("tasks")),
        "baselines": get("baselines"),
        "architectures": _architectures(get("architectures")),
    }
    values = {name: value for name, value in values.items() if value}
    # An empty list where a pull request broke all that it touched
    if get("gate_recipes") is not None:
        values["recipes"] = tuple(dict.fromkeys(get("gate_recipes")))
    return Options(
        **values,
        recipes_root=get("recipes_root"),
        data_root=get("data_root"),
        calibration_data=get("calibration_data"),
        calibration_size=get("calibration_size"),
        batch_size=get("batch_size"),
        device=get("device"),
        attention=get("attention"),
        early_stop=get("early_stop"),
        cluster=get("cluster"),
        report=get("gate_report") is not None,
        # What pytest captures nobody sees move; it would only clutter the reports of failing tests.
        progress=config.getoption("verbose") >= 0
        and config.getoption("capture") == "no"
        and not is_worker(config),
    )


def _architectures(architectures_given: str | None) -> tuple[str, ...]:
    from harness.outlines import names

    return () if architectures_given is None else names.chosen(architectures_given)


def parameters(item: pytest.Item) -> dict[str, Any]:
    """The parameters of a test by name; empty where it has none."""
    values: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
    return values


def is_worker(config: pytest.Config) -> bool:
    """Whether this process runs tests for another process, which reports."""
    return hasattr(config, "workerinput")


def print_lines(config: pytest.Config, lines: Sequence[str]) -> None:
    """Print *lines* to the terminal, below its content."""
    terminal = config.get_terminal_writer()
    for line in ["", *lines] if lines else []:
        terminal.line(line)
        count_shown(config, line)


def count_shown(config: pytest.Config, text: str) -> None:
    """Count the lines of *text*, which was printed outside of pytest's report."""
    config.stash[_SHOWN] = lines_shown(config) + 1 + text.count("\n")


def lines_shown(config: pytest.Config) -> int:
    """Return how many lines were printed outside of pytest's report."""
    return config.stash.get(_SHOWN, 0)
