"""The gate in several processes (pytest-xdist): what was given is looked at once, and every
worker's findings join.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import uuid
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.pytest_plugin import machine, private
from harness.pytest_plugin.options import check_stored
from harness.pytest_plugin.outcomes import CASES, in_suites, refusing, uses_gate
from harness.pytest_plugin.run import is_worker, options_of, parameters, print_lines, results_of

if TYPE_CHECKING:
    from harness.evaluation.shards import ShardStore
    from harness.gate.listing import CaseName

#: Where a worker leaves what it hands over, and finds the folder of shards.
_HANDED = "quantized CLIP gate"
#: Under this a worker finds the references of the recipes to gate.
_SELECTED = "quantized CLIP gate recipes"
#: The folder of shards in pytest's cache, next to those of other plugins.
CACHE = "quantized-clip-gate"
_LOOKED_AT = pytest.StashKey[bool]()
_STORE = pytest.StashKey["ShardStore | None"]()
_TOUCHED = pytest.StashKey[set[Path]]()


def share_cores(environment: MutableMapping[str, str], cores: int) -> None:
    """Set how many threads OpenMP starts in this process and how they wait; what is set already
    stays.

    Threads that wait by spinning take the cores from other processes: next to other work they make
    torch several times slower.  Each of N workers takes its share of the cores.

    Args:
        environment: the process's, before torch is imported: OpenMP reads it once.
        cores: how many this process may use.
    """
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    workers = int(environment.get("PYTEST_XDIST_WORKER_COUNT", 1))
    if workers > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // workers)))


def cuda_device(worker: str, count: int) -> int:
    """The one of *count* CUDA devices that the worker ``gwN`` takes: N modulo the count.

    Raises:
        ValueError: there is no device, or *worker* is not a worker's name.
    """
    if count < 1:
        raise ValueError("there is no CUDA device to take")
    return int(worker.removeprefix("gw")) % count


def take_device(config: pytest.Config) -> None:
    """Make this worker's GPU the one that ``cuda`` means in this process; the process alone keeps
    the first.
    """
    import torch

    if is_worker(config) and config.getoption("device") != "cpu" and torch.cuda.is_available():
        worker: str = config.workerinput["workerid"]  # type: ignore[attr-defined]
        torch.cuda.set_device(cuda_device(worker, torch.cuda.device_count()))


def store_of(config: pytest.Config) -> ShardStore | None:
    """Where shards are kept: in pytest's cache, else, for several processes, in a folder of this
    run; else nowhere.
    """
    from harness.evaluation.shards import ShardStore

    if _STORE not in config.stash:
        if is_worker(config):
            folder, run = config.workerinput.get(_HANDED) or (None, "")  # type: ignore[attr-defined]
        else:
            folder, run = _folder(config), uuid.uuid4().hex
        config.stash[_STORE] = None if folder is None else ShardStore(Path(folder), run)
    return config.stash[_STORE]


def _folder(config: pytest.Config) -> Path | None:
    try:
        return config.cache.mkdir(CACHE) if config.cache is not None else None
    except AttributeError:  # -p no:cacheprovider
        if not getattr(config.option, "numprocesses", None):
            return None
    except OSError:  # a checkout that cannot be written to
        return None
    folder = Path(tempfile.mkdtemp(prefix=f"{CACHE}-"))
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    return folder


def settle(session: pytest.Session, exitstatus: int) -> None:
    """Remove the shards of a run that came to its end; what is left of any other lets the next one
    go on.
    """
    from harness.evaluation import shards

    config = session.config
    came_to_its_end = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    if not came_to_its_end or session.shouldstop or session.shouldfail:
        return
    store = config.stash.get(_STORE, None)
    shards.discard(
        config.stash.get(_TOUCHED, set()) | (store.touched if store is not None else set())
    )


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Pass a worker the folder of the shards, and the recipes to gate."""
    store = store_of(node.config)
    node.workerinput[_HANDED] = None if store is None else [str(store.folder), store.run]
    node.workerinput[_SELECTED] = node.config.option.gate_recipes


def take_selection(config: pytest.Config) -> None:
    """Have this worker gate the recipes that the process which reports has selected."""
    config.option.gate_recipes = config.workerinput[_SELECTED]  # type: ignore[attr-defined]


def hand_over(config: pytest.Config, lines: Sequence[str]) -> None:
    """Leave what this worker found, and *lines* to be shown, for the process that reports."""
    output: dict[str, Any] = config.workeroutput  # type: ignore[attr-defined]
    store = config.stash.get(_STORE, None)
    touched = [] if store is None else sorted(map(str, store.touched))
    output[_HANDED] = json.dumps(
        {"results": results_of(config).as_dict(), "lines": list(lines), "shards": touched}
    )


def group_by_case(config: pytest.Config) -> None:
    """Where tests are handed out one by one, hand out all tests of a case together: its model is
    built once.

    Another ``--dist`` is obeyed.
    """
    if getattr(config.option, "dist", "no") == "load":
        config.option.dist = "loadgroup"


def pytest_itemcollected(item: pytest.Item) -> None:
    """Say which tests ``--dist loadgroup`` is to keep together: those of a case."""
    if not is_worker(item.config) or not uses_gate(item):
        return
    params = parameters(item)
    cases = [params[name] for name in CASES if hasattr(params.get(name), "id")]
    if cases:
        # pytest-xdist puts an @ of its own before the group.
        item.add_marker(pytest.mark.xdist_group(cases[0].id.replace("@", " on ")))


def without_group(nodeid: str) -> str:
    """A test's id as pytest gives it: a worker sends it with its group behind an @."""
    # Behind the path, which may have an @ of its own, and behind the parameters, which may too.
    start = max(nodeid.find("::"), nodeid.rfind("]"))
    group = nodeid.rfind("@")
    return nodeid[:group] if group > start >= 0 else nodeid


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Give tests their ids back, now that the process which hands them out knows their groups."""
    if is_worker(session.config):
        for item in session.items:
            private.strip_group(item)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: list[str]) -> None:
    """Look at all that was given before a worker runs its first test: a worker cannot end the run
    with exit code 4.
    """
    from harness.gate import listing
    from harness.gate.preflight import preflight
    from harness.gate.session import Gate

    config: pytest.Config = node.config
    if config.stash.get(_LOOKED_AT, False):
        return
    config.stash[_LOOKED_AT] = True
    ids = [without_group(test_id) for test_id in ids]
    if not any(case in test_id for case in _case_ids(config) for test_id in ids):
        return
    with refusing(config):
        check_stored(
            config,
            [test_id for test_id in ids if in_suites(config.rootpath / test_id.partition("::")[0])],
        )
        machine.check_processes(config)
        options = options_of(config)
        metrics = tuple(
            f"{test_id}]" for test_id in listing.metric_ids(listing.metrics_of(options))
        )
        gate = Gate(options)
        try:
            preflight(gate, accuracy=any(test_id.endswith(metrics) for test_id in ids))
        finally:
            gate.evaluator.close()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a worker found, the cases in the order of the command line."""
    output: dict[str, Any] = getattr(node, "workeroutput", None) or {}
    if _HANDED not in output:
        return
    config: pytest.Config = node.config
    handed = json.loads(output[_HANDED])
    config.stash.setdefault(_TOUCHED, set()).update(map(Path, handed["shards"]))
    if handed["results"]["cases"]:
        results = results_of(config)
        results.merge(handed["results"])
        order = {
            (case.recipe_name, case.model_name): place for place, case in enumerate(_cases(config))
        }
        results.cases = dict(
            sorted(results.cases.items(), key=lambda item: order.get(item[0], len(order)))
        )
    print_lines(config, handed["lines"])


def _case_ids(config: pytest.Config) -> list[str]:
    return [case.id for case in _cases(config)]


def _cases(config: pytest.Config) -> list[CaseName]:
    from harness.gate import listing

    return listing.cases_of(options_of(config))
