"""The gate in several processes (pytest-xdist): what was given is looked at once, and every worker's findings join."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from harness.errors import UsageError

#: Where a worker leaves what it hands over.
_HANDED = "quantized CLIP gate"
_LOOKED_AT = pytest.StashKey[bool]()


def is_worker(config: pytest.Config) -> bool:
    """Whether this process runs tests for another one, which reports."""
    return hasattr(config, "workerinput")


def hand_over(config: pytest.Config, lines: Sequence[str]) -> None:
    """Leave what this worker found, and *lines* to be shown, for the process that reports."""
    from harness.plugin import results_of

    output: dict[str, Any] = config.workeroutput  # type: ignore[attr-defined]
    output[_HANDED] = json.dumps({"results": results_of(config).as_dict(), "lines": list(lines)})


def tell(config: pytest.Config, lines: Sequence[str]) -> None:
    """Show *lines* in the terminal, below what is there."""
    terminal = config.get_terminal_writer()
    for line in ["", *lines] if lines else []:
        terminal.line(line)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out all tests of a case together, so that one process builds its model; another ``--dist`` is obeyed."""
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

    ids = _case_ids(config)

    class ByCase(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return max((case for case in ids if case in nodeid), key=len, default=nodeid)

    return ByCase(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: list[str]) -> None:
    """Look at all that was given before a worker runs its first test: a worker cannot end the run with exit code 4."""
    from harness import gate
    from harness.plugin import options_of

    config: pytest.Config = node.config
    if config.stash.get(_LOOKED_AT, False):
        return
    config.stash[_LOOKED_AT] = True
    if not any(case in one for case in _case_ids(config) for one in ids):
        return
    options = options_of(config)
    metrics = tuple(f"{gate.short(task)}/{metric}]" for task, metric in gate.metrics_of(options))
    try:
        gate.Gate(options).preflight(accuracy=any(one.endswith(metrics) for one in ids))
    except UsageError as error:
        raise pytest.UsageError(str(error)) from error


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a worker found, the cases in the order of the command line."""
    from harness.plugin import results_of

    output: dict[str, Any] = getattr(node, "workeroutput", None) or {}
    if _HANDED not in output:
        return
    config: pytest.Config = node.config
    handed = json.loads(output[_HANDED])
    if handed["results"]["cases"]:
        results = results_of(config)
        results.merge(handed["results"])
        order = {case: place for place, case in enumerate(_case_ids(config))}
        results.cases = dict(sorted(results.cases.items(), key=lambda item: order.get(item[0], len(order))))
    tell(config, handed["lines"])


def _case_ids(config: pytest.Config) -> list[str]:
    from harness import gate
    from harness.plugin import options_of

    options = options_of(config)
    return [gate.Case(recipe, model).id for model in options.clip_models for recipe in options.recipes]
