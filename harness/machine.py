"""What pytest-benchmark keeps of the machine, so that times of two machines are never compared silently.

A saved run lies under a key that carries the CPU's model or the GPU's name, and says which device, how many threads and
which torch it was measured with.  Its times are compared on that device alone.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest

from harness.errors import UsageError

#: Options of pytest-benchmark that read or write saved runs.
_OPTIONS = ("benchmark_save", "benchmark_autosave", "benchmark_compare", "benchmark_json")
#: What pytest-benchmark records of a CPU that changes from one second to the next.
_FICKLE = ("hz_actual", "hz_actual_friendly")


def key_storage(config: pytest.Config) -> None:
    """Have pytest-benchmark store and look for runs under a key with this device in it, for the length of the session.

    To be called before pytest-benchmark is configured, which has no hook for its key.
    """
    if not any(getattr(config.option, name, None) for name in _OPTIONS):
        return
    from pytest_benchmark import session

    plain, device = session.get_machine_id(), facts(config)["device"].split()[0]
    patch = mock.patch.object(session, "get_machine_id", return_value=f"{plain}-{device}")
    patch.start()
    config.add_cleanup(patch.stop)


def facts(config: pytest.Config) -> dict[str, str]:
    """The device of this run, its name, torch's threads and release."""
    import torch

    from harness import models, provenance

    device = models.resolve_device(config.getoption("device"))
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return gpu | {
        "device": str(provenance.DeviceKey.of(device)),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
    }


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Add what times belong to; leave out what never is the same twice."""
    machine_info.update(facts(config))
    for name in _FICKLE:
        (machine_info.get("cpu") or {}).pop(name, None)


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_benchmark_compare_machine_info(
    config: pytest.Config, benchmarksession: Any, machine_info: dict[str, Any], compared_benchmark: dict[str, Any]
) -> None:
    """Take a run of another device out of the comparison, and say so in one line.

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
        mend = "Save a run on this machine first (--benchmark-save NAME), or leave --benchmark-compare-fail out."
        raise pytest.UsageError(str(UsageError("--benchmark-compare", what, mend)))
    benchmarksession.logger.info(f"--benchmark-compare: {what}; the ratios of each row's extra_info may be.")
    compared_benchmark["benchmarks"] = []
    # pytest-benchmark's own warning would print every fact of both machines on top.
    compared_benchmark["machine_info"] = machine_info
