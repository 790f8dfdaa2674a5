"""Several processes, or one that is interrupted: what they share, what is left, and which GPU each
takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from made_data import webdataset_classes

from harness.checks import checkpoint_preload  # noqa: F401  (what is imported first inside a nested pytest is dropped with it)
from harness.evaluation import evaluators
from harness.evaluation.shards import Floats, Slice
from harness.evaluation.subjects import Subject
from harness.pytest_plugin import workers

ROOT = Path(__file__).parents[3]

#: Runs the accuracy suite on a small task: (what it computed, its result).
Run = Callable[..., tuple[list[str], pytest.RunResult]]


@pytest.mark.parametrize(
    ("set_before", "threads"),
    [
        ({}, None),
        ({"PYTEST_XDIST_WORKER_COUNT": "2"}, "4"),
        ({"PYTEST_XDIST_WORKER_COUNT": "30"}, "1"),
        ({"PYTEST_XDIST_WORKER_COUNT": "2", "OMP_NUM_THREADS": "3"}, "3"),
    ],
    ids=["one process", "a share", "more workers than cores", "set by the user"],
)
def test_each_worker_takes_its_share_of_the_cores(
    set_before: dict[str, str], threads: str | None
) -> None:
    """Of eight cores N workers start 8/N threads each, and threads wait without spinning."""
    environment = dict(set_before)

    workers.share_cores(environment, cores=8)

    assert environment.get("OMP_NUM_THREADS") == threads
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"


def test_a_way_of_waiting_that_the_user_set_stays() -> None:
    """OMP_WAIT_POLICY of the user is kept."""
    environment = {"OMP_WAIT_POLICY": "ACTIVE"}

    workers.share_cores(environment, cores=8)

    assert environment == {"OMP_WAIT_POLICY": "ACTIVE"}


@pytest.mark.parametrize(
    ("worker", "count", "device"),
    [
        ("gw0", 1, 0),
        ("gw3", 1, 0),
        ("gw0", 8, 0),
        ("gw7", 8, 7),
        ("gw8", 8, 0),
        ("gw21", 8, 5),
        ("gw3", 2, 1),
    ],
)
def test_worker_takes_the_device_of_its_number(worker: str, count: int, device: int) -> None:
    """Worker gwN takes CUDA device N modulo the count."""
    assert workers.cuda_device(worker, count) == device


@pytest.mark.parametrize("count", range(1, 9))
def test_workers_are_spread_over_the_devices(count: int) -> None:
    """As many workers as devices take each device once."""
    assert sorted(workers.cuda_device(f"gw{n}", count) for n in range(count)) == list(range(count))


@pytest.mark.parametrize(
    ("sent", "plain"),
    [
        (
            "test_a.py::test_x[emoji/acc1-fp8-embedded]@fp8-embedded",
            "test_a.py::test_x[emoji/acc1-fp8-embedded]",
        ),
        ("test_a.py::test_x[a@b]@a on b", "test_a.py::test_x[a@b]"),
        ("test_a.py::test_x[a@b]", "test_a.py::test_x[a@b]"),
        ("test_a.py::test_x", "test_a.py::test_x"),
        ("../python@3.11/test_a.py::test_x", "../python@3.11/test_a.py::test_x"),
        ("../python@3.11/test_a.py::test_x@fp8", "../python@3.11/test_a.py::test_x"),
    ],
)
def test_ids_are_read_without_their_groups(sent: str, plain: str) -> None:
    """What a worker reports as collected is looked at by the ids that pytest knows: their ends say
    the metric.
    """
    assert workers.without_group(sent) == plain


def test_no_device_is_no_choice() -> None:
    """Without a CUDA device there is not one to take."""
    with pytest.raises(ValueError, match="no CUDA device"):
        workers.cuda_device("gw0", 0)


@pytest.fixture
def accuracy(pytester: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs one test of the accuracy suite in this process, with pytest's cache in a folder of the
    test.
    """
    webdataset_classes(tmp_path / "data" / "tiny")
    (tmp_path / "budgets.yaml").write_text("defaults: {points: 90.0, discordance: 0.05}\n")
    head = (
        "-c",
        str(ROOT / "pyproject.toml"),
        "--rootdir",
        str(ROOT),
        "-o",
        f"cache_dir={tmp_path / 'cache'}",
    )
    options_before = (
        "--recipe",
        "int8",
        "--tasks",
        "wds/tiny",
        "--data-root",
        tmp_path / "data",
        "--calibration-size",
        "4",
        "--baselines",
        tmp_path,
        "-k",
        "test_loss",
    )
    original = evaluators.Here.compute

    def run(*arguments: str, interrupted_at: int = -1) -> tuple[list[str], pytest.RunResult]:
        computed: list[str] = []

        def compute(
            engine: evaluators.Here, subject: Subject, slices: Sequence[Slice]
        ) -> Iterator[tuple[Slice, Floats]]:
            for piece, array in original(engine, subject, slices):
                if len(computed) == interrupted_at:
                    raise KeyboardInterrupt
                computed.append(f"{subject.name}: {piece}")
                yield piece, array

        monkeypatch.setattr(evaluators.Here, "compute", compute)
        suite = ROOT / "tests" / "test_accuracy.py"
        result = pytester.runpytest_inprocess(
            *head, suite, *options_before, *arguments, no_reraise_ctrlc=True
        )
        return computed, result

    return run


def shard_names(tmp_path: Path) -> list[str]:
    """Names of the shards in pytest's cache."""
    return sorted(path.name for path in tmp_path.glob(f"cache/d/{workers.CACHE}/**/*.safetensors"))


def test_an_interrupted_run_goes_on_where_it_stopped(accuracy: Run, tmp_path: Path) -> None:
    """After an interruption the next run computes what is missing, says so, and leaves nothing to
    the one after it.
    """
    computed, interrupted = accuracy(interrupted_at=3)
    assert interrupted.ret == pytest.ExitCode.INTERRUPTED
    assert len(shard_names(tmp_path)) == len(computed) == 3

    more, finished = accuracy()
    assert finished.ret == pytest.ExitCode.OK
    finished.stdout.fnmatch_lines(["went on where an earlier run stopped: 3 shards taken from *"])
    assert (len(more), shard_names(tmp_path)) == (1, [])

    computed_again, again = accuracy()
    assert len(computed_again) == 4
    assert set(computed_again) == {*computed, *more}
    again.stdout.no_fnmatch_line("*went on*")


def test_cache_clear_forgets_an_interrupted_run(accuracy: Run, tmp_path: Path) -> None:
    """With pytest's own ``--cache-clear`` a run begins at the beginning."""
    accuracy(interrupted_at=3)
    assert len(shard_names(tmp_path)) == 3

    computed, result = accuracy("--cache-clear")

    assert len(computed) == 4
    result.stdout.no_fnmatch_line("*went on*")


def test_a_run_that_evaluates_nothing_keeps_what_is_there(accuracy: Run, tmp_path: Path) -> None:
    """Another run that ends takes nothing from an interrupted one that it did not go on
    with.
    """
    accuracy(interrupted_at=3)

    accuracy("--collect-only")

    assert len(shard_names(tmp_path)) == 3


def test_a_worker_does_not_clear_the_cache(pytester: pytest.Pytester) -> None:
    """The process that reports clears pytest's cache, once; a worker, which may start later,
    never.
    """
    pytester.makepyfile(
        """
        def test_worker(pytestconfig):
            assert hasattr(pytestconfig, "workerinput")
            assert not pytestconfig.getoption("cacheclear")
        """
    )

    result = pytester.runpytest_subprocess(
        "-p", "harness.pytest_plugin.plugin", "-n", "1", "--cache-clear"
    )

    result.assert_outcomes(passed=1)
