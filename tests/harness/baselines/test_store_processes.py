"""Writers that are killed, and several at once: a record is always whole."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from made_records import (
    outcomes,
    record,
    stored,
    task_record,
)

from harness.baselines import Store

HERE = Path(__file__)


# -- kills and two writers


def child(code: str, *arguments: str) -> subprocess.Popen[str]:
    """A process of its own that has the records of tests."""
    path = os.pathsep.join([str(HERE.parents[1]), str(HERE.parents[3])])
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    program = f"{PREAMBLE}\n{code}"
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )


PREAMBLE = """
import os, signal, sys, time
from pathlib import Path
from made_records import *
from harness.baselines import Store
"""


KILL_AT_EVERY_STEP = """
store = Store(sys.argv[1])
step = 0
while True:
    step += 1
    pid = os.fork()
    if pid == 0:
        seen = 0
        def killing(call):
            def counted(*arguments, **options):
                global seen
                seen += 1
                if seen == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*arguments, **options)
            return counted
        system = [(os, name) for name in ("open", "fdopen", "fsync", "replace")]
        for owner, name in (*system, (Path, "unlink"), (Path, "mkdir")):
            setattr(owner, name, killing(getattr(owner, name)))
        fresh = record(task_record(outcomes(100 + step)), task_record(outcomes(step, task="imagenet1k")))
        store.write(fresh, f"step {step}")
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    found = stored(Store(sys.argv[1]))
    print(step, os.WIFSIGNALED(status), found.reason, len(found.tasks), flush=True)
    if not os.WIFSIGNALED(status):
        break
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_writer_killed_at_any_step_leaves_a_whole_record(store: Store) -> None:
    """SIGKILL before every single step of a write: the old record or the new is there, whole, and
    can be replaced.
    """
    store.write(record(task_record()), "before")

    said, _ = (process := child(KILL_AT_EVERY_STEP, str(store.root))).communicate(timeout=120)

    assert process.returncode == 0
    steps = [line.split() for line in said.splitlines()]
    assert len(steps) >= 15, "too few steps: was anything killed?"
    reason, tasks, replaced = "before", "1", 0
    for number, killed, *words, count in steps:
        if words != reason.split():
            assert words == ["step", number], "a record that nobody wrote as a whole"
            reason, tasks, replaced = " ".join(words), "2", replaced + 1
        assert count == tasks
        assert (killed == "True") == (number != steps[-1][0])
    assert replaced >= 2, "no kill after the commit was tried"
    assert {p.name for p in store.root.rglob(".tmp-*")} == set(), (
        "the last, whole write sweeps what the killed ones left"
    )
    assert len(list(store.root.rglob("*.safetensors"))) == 3


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_writer_killed_at_a_random_moment_loses_nothing(store: Store) -> None:
    """A process killed while it writes records over and over leaves one that reads, and no lock
    that hangs.
    """
    store.write(record(task_record()), "before")
    code = """
for i in range(10**6):
    Store(sys.argv[1]).write(record(task_record(outcomes(i))), str(i))
    print(i, flush=True)
"""
    for delay in (random.Random(1).uniform(0, 0.05), random.Random(2).uniform(0, 0.05)):
        process = child(code, str(store.root))
        assert process.stdout is not None
        for _ in range(3):
            process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        last = [int(line) for line in process.stdout.read().split()] or [2]
        process.stdout.close()

        read_back = stored(store)
        assert read_back.reason != "before"
        assert int(read_back.reason) >= last[-1]

    assert store.write(record(task_record(outcomes(77))), "after").action == "changed"
    assert stored(store).reason == "after"


def test_two_writers_of_one_record_lose_nothing(store: Store) -> None:
    """Two processes that each add tasks to one record, one at a time, end with all tasks of
    both.
    """
    code = """
go = Path(sys.argv[3])
made = [record(task_record(outcomes(i, task=f"{sys.argv[2]}{i}"))) for i in range(12)]
print("ready", flush=True)
while not go.exists(): time.sleep(0.001)
for fresh in made: Store(sys.argv[1]).write(fresh, "xdist")
"""
    go = store.root.parents[1] / "go"
    writers = [child(code, str(store.root), name, str(go)) for name in ("left", "right")]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    go.touch()
    for writer in writers:
        writer.communicate(timeout=120)
        assert writer.returncode == 0

    merged = stored(store)

    assert sorted(t.task for t in merged.tasks) == sorted(
        f"{name}{i}" for name in ("left", "right") for i in range(12)
    )
    assert [h.reason for h in merged.history] == ["xdist"], (
        "one acceptance, whoever wrote its parts"
    )


def test_reader_beside_a_writer_sees_whole_records(store: Store) -> None:
    """Reading while another process replaces the record again and again never meets half of one."""
    store.write(record(task_record()), "0")
    code = "for i in range(40): Store(sys.argv[1]).write(record(task_record(outcomes(i))), str(i))"
    writer = child(code, str(store.root))
    reasons = set()
    while writer.poll() is None:
        reasons.add(stored(store).reason)
    writer.communicate()

    assert writer.returncode == 0
    assert stored(store).reason == "39"
    assert len(reasons) > 1


# -- device keys and versions


def test_bytes_reach_the_disk_before_the_name(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file is flushed to disk before it gets its name, and its folder after: a power cut
    cannot leave it empty.
    """
    calls: list[str] = []

    def noted(name: str, call: Any) -> Any:
        def noting(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            return call(*arguments, **options)

        return noting

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, noted(name, getattr(os, name)))

    store.write(record(task_record()), "test")

    assert calls == ["fsync", "replace", *(["fsync"] if os.name == "posix" else [])] * 3
