"""Store the machine with pytest-benchmark's times, so that times of two machines are never compared
silently.

A saved run is under a key that carries the CPU's model or the GPU's name, and says which device,
how many threads and which torch it was measured with.  Its times are compared on that device alone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any
from unittest import mock

import pytest

from harness.errors import UsageError
from harness.pytest_plugin import private
from harness.pytest_plugin.run import parameters

#: Options of pytest-benchmark that read or write saved runs.
_OPTIONS = ("benchmark_save", "benchmark_autosave", "benchmark_compare", "benchmark_json")
#: What pytest-benchmark records of a CPU that changes from one second to the next.
_FICKLE = ("hz_actual", "hz_actual_friendly")

#: Why the saved run is not compared: it is of another machine.
_ELSEWHERE = pytest.StashKey[str]()


def key_storage(config: pytest.Config) -> None:
    """Let pytest-benchmark store and find runs under a key with this device in it, during the
    session.

    To be called before pytest-benchmark is configured, which has no hook for its key.
    """
    if not any(getattr(config.option, name, None) for name in _OPTIONS):
        return
    from pytest_benchmark import session

    plain, device = session.get_machine_id(), facts(config)["device"].split()[0]
    patch = mock.patch.object(session, "get_machine_id", return_value=f"{plain}-{device}")
    patch.start()
    config.add_cleanup(patch.stop)


def no_times(config: pytest.Config) -> str:
    """Why pytest-benchmark takes no times in this run; empty where it does."""
    if os.environ.get("PYTEST_XDIST_WORKER") or getattr(config.option, "numprocesses", None):
        return "times are not taken with -n"
    if config.getoption("benchmark_disable", False) and not config.getoption(
        "benchmark_enable", False
    ):
        return "times are not taken with --benchmark-disable"
    return ""


def check_processes(config: pytest.Config) -> None:
    """Refuse to save or compare times in a run that takes none.

    Raises:
        UsageError: one of pytest-benchmark's options asks for what cannot be had.
    """
    why = no_times(config)
    options_given = [
        name for name in (*_OPTIONS, "benchmark_compare_fail") if getattr(config.option, name, None)
    ]
    if why and options_given:
        other = why.rpartition(" ")[2]
        raise UsageError(
            f"--{options_given[0].replace('_', '-')}", why, f"Leave out one of it and {other}."
        )


def check_comparison(config: pytest.Config, items: Sequence[pytest.Item]) -> None:
    """Refuse a comparison in which there is nothing to compare, before any test runs.

    Raises:
        UsageError: there is no saved run, it is of another machine, or it holds none of these
            tests.
    """
    check_processes(config)
    option, fail = (
        config.getoption("benchmark_compare", None),
        config.getoption("benchmark_compare_fail", None),
    )
    session = private.benchmark_session(config)
    if (not option and not fail) or session is None:
        return
    if not option:
        fix = "Give --benchmark-compare as well."
        raise UsageError("--benchmark-compare-fail", "has nothing to compare with", fix)
    fix = "Save a run of these tests first: --benchmark-save NAME."
    if not session.compared_mapping:
        raise UsageError("--benchmark-compare", f"there is no saved run in {session.storage}", fix)
    if config.stash.get(_ELSEWHERE, ""):
        raise UsageError("--benchmark-compare", config.stash[_ELSEWHERE], fix)
    timed = [item.nodeid for item in items if "benchmark" in getattr(item, "fixturenames", ())]
    # The reference is timed whatever the recipe is called: those of a recipe are what is asked for.
    of_recipes = [item.nodeid for item in items if item.nodeid in timed and _has_case(item)]
    if not timed:
        raise UsageError(
            "--benchmark-compare",
            "none of the selected tests takes times",
            "Select them: -m throughput.",
        )
    saved = {name for tests in session.compared_mapping.values() for name in tests}
    if not saved & set(of_recipes or timed):
        what = f"the saved run holds none of these tests ({(of_recipes or timed)[0]}, ...)"
        raise UsageError("--benchmark-compare", what, fix)


def _has_case(item: pytest.Item) -> bool:
    return "case" in parameters(item)


def regressions(config: pytest.Config) -> list[tuple[str, str]]:
    """Tests that became slower than ``--benchmark-compare-fail`` allows, and by how much.

    pytest-benchmark would raise them as a traceback after the terminal's summary; they are reported
    here instead.
    """
    session = private.benchmark_session(config)
    slower = (
        []
        if session is None
        else [(str(name), str(what)) for name, what in session.performance_regressions]
    )
    if session is not None:
        session.performance_regressions.clear()
    return slower


def facts(config: pytest.Config) -> dict[str, str]:
    """The device of this run, its name, torch's threads and release."""
    import torch

    from harness.evaluation import environment
    from harness.models import references

    device = references.resolve_device(config.getoption("device"))
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return gpu | {
        "device": str(environment.DeviceKey.of(device)),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
    }


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """Add what times depend on; leave out what is never the same twice."""
    machine_info.update(facts(config))
    for name in _FICKLE:
        (machine_info.get("cpu") or {}).pop(name, None)


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_benchmark_compare_machine_info(
    config: pytest.Config,
    benchmarksession: Any,
    machine_info: dict[str, Any],
    compared_benchmark: dict[str, Any],
) -> None:
    """Leave a run of another device out of the comparison, and report it in one line.

    Raises:
        pytest.UsageError: ``--benchmark-compare-fail`` is to judge by it.
    """
    theirs = compared_benchmark["machine_info"].get("device") or "an unknown device"
    ours = machine_info["device"]
    if theirs == ours:
        return
    saved = f"the run saved {compared_benchmark.get('datetime', 'without a date')}"
    what = f"{saved} is of {theirs}, this is {ours}: times of two machines are not compared"
    if config.getoption("benchmark_compare_fail"):
        fix = (
            "Save a run on this machine first (--benchmark-save NAME), or leave "
            "--benchmark-compare-fail out."
        )
        raise pytest.UsageError(str(UsageError("--benchmark-compare", what, fix)))
    config.stash[_ELSEWHERE] = what
    benchmarksession.logger.info(
        f"--benchmark-compare: {what}; the ratios of each row's extra_info may be."
    )
    compared_benchmark["benchmarks"] = []
    # pytest-benchmark's own warning would print every fact of both machines on top.
    compared_benchmark["machine_info"] = machine_info
