"""The accuracy suite on a Ray cluster: two real workers on this machine, one of which is killed in
the middle.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from made_data import webdataset_captions
from slicing import CPU, RECIPE, ROWS, assert_equal

from harness.checks import checkpoint_preload  # noqa: F401  (what is imported first inside a nested pytest is dropped with it)
from harness.errors import UsageError
from harness.evaluation import cluster, environment, shards
from harness.evaluation.cluster import Cluster, ClusterError, SliceOrder
from harness.evaluation.evaluators import Alone, Sliced
from harness.evaluation.shards import ShardStore
from harness.evaluation.subjects import Quantization, state_digest
from harness.gate.case import Case
from harness.gate.options import Options
from harness.gate.session import Gate
from harness.quantization import quantize

ROOT = Path(__file__).parents[3]
HEAD = ("-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT))
ACCURACY = str(ROOT / "tests" / "test_accuracy.py")
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed (extra 'cluster')"
)
TASKS = ("emoji100", "wds/captions")


def watched(folder: Path) -> Callable[[], None]:
    """What a worker does when it starts: write down what it embeds, and die in the middle where
    *folder* arms it.
    """
    armed, log = folder / "armed", folder / "log"

    def hook() -> None:
        import contextlib
        import os
        import signal

        from harness.data import inputs

        original = inputs.embed_images

        def embed(model: Any, batches: Any, *args: Any) -> Any:
            def in_the_middle() -> Any:
                for number, batch in enumerate(batches):
                    yield batch
                    if number == 1:
                        with contextlib.suppress(FileNotFoundError):
                            armed.unlink()  # whoever removes it is the one that dies
                            os.kill(os.getpid(), signal.SIGKILL)

            embeddings = original(model, in_the_middle(), *args)
            with log.open("a") as file:
                file.write(f"{os.getpid()} {len(embeddings)}\n")
            return embeddings

        setattr(inputs, "embed_images", embed)  # noqa: B010

    return hook


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, a recipe, and what workers wrote down."""
    place = tmp_path_factory.mktemp("cluster")
    webdataset_captions(place / "data" / "captions")
    (place / "mine.yaml").write_text(RECIPE)
    return place


@pytest.fixture(scope="module")
def two_workers(folder: Path) -> Iterator[str]:
    """A Ray cluster with room for two workers of one thread each: its node's name."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    import ray

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"worker_process_setup_hook": watched(folder)},
    )
    yield ray.util.get_node_ip_address()
    ray.shutdown()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def gate(folder: Path) -> Gate:
    """A gate without a cluster."""
    options: dict[str, Any] = {
        "recipes": ("int8",),
        "tasks": TASKS,
        "data_root": folder / "data",
        "calibration_size": 16,
    }
    return Gate(Options(**options), evaluator=Alone(ROWS))


@pytest.fixture(scope="module")
def case(gate: Gate) -> Case:
    """Its one case."""
    return gate.cases()[0]


def evaluator(folder: Path, store: ShardStore | None = None) -> Sliced:
    """An evaluator on the cluster, which cuts the larger task into four and two."""
    engine = Cluster("local", CPU, ROWS, folder / "data")
    return Sliced(engine, CPU, ROWS, store, pictures=256, prompts=150)


# -- what is sent ----------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["fp8", "int8-smoothquant", "w4a8-awq"])
def test_a_quantized_model_arrives_as_it_was_sent(recipe: str, gate: Gate) -> None:
    """Packed and unpacked, a model has the same weights, ranges, scales and settings, bit for
    bit.
    """
    prepared = {"embedded": gate.side("embedded").prepared(("reference", "calibration"))}
    other = Gate(dataclasses.replace(gate.options, recipes=(recipe,)), gate.evaluator, prepared)
    (case,) = other.cases()
    quantized = case.quantized
    packed = cluster.pack(
        Quantization(quantized.recipe, "diffusers", case.calibration, quantized.model)
    )

    restored = cluster.unpack(packed, quantized.reference, "diffusers")

    assert state_digest(restored) == state_digest(quantized.model)
    assert state_digest(quantize.fold(restored)) == state_digest(quantized.folded)
    assert state_digest(restored) != state_digest(quantized.reference.model)


@pytest.fixture
def order(gate: Gate, case: Case, folder: Path) -> SliceOrder:
    """An order for a part of the reference's answers."""
    engine = Cluster("local", CPU, ROWS, folder / "data")
    task = case.tasks[1]
    slice_order: SliceOrder = engine._orders(case.shared.subject)(
        shards.Slice(task, "images", 2, 5)
    )
    return slice_order


def test_an_order_is_carried_out(gate: Gate, case: Case, order: SliceOrder) -> None:
    """A worker that has all that the order names answers with the slice's embeddings."""
    whole = gate.evaluator.embed(case.shared.subject, case.tasks[1], "images")

    embeddings = cluster.embedded(order, None)

    assert not isinstance(embeddings, str)
    assert embeddings.tolist() == whole[2:5].tolist()


@pytest.mark.parametrize(
    "name",
    [
        "data",
        "model revision",
        "weights and calibrated ranges",
        "torch",
        "device",
        "bits condition",
        "pillow",
        "sources of harness and ModelOpt",
    ],
)
def test_a_worker_says_what_differs(name: str, order: SliceOrder) -> None:
    """Where anything that the answer depends on is another, the worker names it and computes
    nothing.
    """
    other = dataclasses.replace(order, bound=order.bound | {name: "another"})

    answer = cluster.embedded(other, None)

    assert isinstance(answer, str)
    assert (
        answer
        == f"{name} is {answer.partition(' is ')[2].partition(' there')[0]} there, another in this run"
    )


def test_other_ranges_than_were_sent_are_refused(gate: Gate, case: Case, order: SliceOrder) -> None:
    """A quantized model that arrives with other calibrated ranges than its digest says is not
    evaluated.
    """
    subject = case.subject
    assert subject.quantization is not None
    packed = cluster.pack(subject.quantization)
    bound = order.bound | {"weights and calibrated ranges": "0" * 64}

    answer = cluster.embedded(
        dataclasses.replace(order, attention="diffusers", bound=bound), packed
    )

    assert isinstance(answer, str)
    assert answer.startswith("weights and calibrated ranges is ")


# -- the cluster -----------------------------------------------------------------------------------


@needs_ray
def test_a_killed_worker_changes_nothing(
    two_workers: str, gate: Gate, case: Case, folder: Path, tmp_path: Path
) -> None:
    """With a worker killed in the middle of a slice, reference and quantized model have the bits of
    one process.
    """
    expected = case.reference_runs, case.quantized_runs
    on_cluster = evaluator(folder, ShardStore(tmp_path, "run"))

    reference = on_cluster.evaluate(case.shared.subject, case.tasks)
    before = (folder / "log").read_text().splitlines()
    (folder / "armed").write_text("")
    quantized = on_cluster.evaluate(case.subject, case.tasks)

    assert not (folder / "armed").exists(), "no worker was killed"
    for task in TASKS:
        assert_equal(expected[0][task], reference[task])
        assert_equal(expected[1][task], quantized[task])
    lines = [line.split() for line in (folder / "log").read_text().splitlines()]
    # Pictures of the reference, then of the quantized model: each embedded once to the end.
    pictures = sum(len(task.sample_ids) for task in case.tasks)
    assert [
        sum(int(n) for _, n in part) for part in (lines[: len(before)], lines[len(before) :])
    ] == [pictures] * 2
    assert len({process for process, _ in lines}) >= 2
    for outcomes in quantized["emoji100"].outcomes.values():
        assert len(set(outcomes.sample_ids)) == len(outcomes.sample_ids) == 1000
    counted, died = on_cluster.notes()
    assert counted == f"cluster local: 16 slices computed ({two_workers} 16)"
    assert died.startswith("cluster local: 1 worker(s) died over emoji100, images ")


@needs_ray
@pytest.mark.usefixtures("two_workers")
def test_a_slice_that_kills_every_worker_ends_the_run(
    gate: Gate, case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After so many deaths over one slice the run says which slice it was."""
    monkeypatch.setattr(cluster, "TRIES", 1)
    (folder / "armed").write_text("")

    with pytest.raises(ClusterError, match=r"emoji100, images \d+ to \d+: 1 workers died over it"):
        evaluator(folder).embed(case.shared.subject, case.tasks[0], "images")


@needs_ray
def test_a_node_with_other_releases_is_named(
    two_workers: str, gate: Gate, case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that computes with something else ends the run in one line: the node, what it has,
    what the run has.
    """
    here = environment.conditions(CPU, ROWS)
    monkeypatch.setattr(environment, "conditions", lambda *_: here | {"torch": "9.9"})

    with pytest.raises(
        UsageError,
        match=rf"node {two_workers}: torch is 2\..* there, 9\.9 in this run\. Every node ",
    ):
        evaluator(folder).embed(case.shared.subject, case.tasks[1], "images")


@needs_ray
def test_the_gate_on_a_cluster(two_workers: str, pytester: pytest.Pytester, folder: Path) -> None:
    """``--cluster`` gives the verdicts of a run without it, shows its progress and says who
    computed how much.
    """
    (folder / "budgets.yaml").write_text("defaults: {points: 90.0, discordance: 0.05}\n")
    arguments = (
        ACCURACY,
        "-k",
        "test_loss",
        "--recipe",
        folder / "mine.yaml",
        "--tasks",
        "wds/captions",
        "--data-root",
        folder / "data",
        "--calibration-size",
        "4",
        "--baselines",
        folder,
    )

    alone = pytester.runpytest_inprocess(*HEAD, *arguments)
    clustered = pytester.runpytest_inprocess(*HEAD, *arguments, "--cluster", "local")

    assert clustered.ret == alone.ret
    assert [line for line in clustered.outlines if "captions" in line] == [
        line for line in alone.outlines if "captions" in line
    ]
    clustered.stdout.fnmatch_lines([f"cluster local: 4 slices computed ({two_workers} 4)"])
    assert "sample/s" in clustered.stderr.str()
    assert "sample/s" not in alone.stderr.str()


# -- usage -----------------------------------------------------------------------------------------


@pytest.fixture
def with_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is installed, Ray is found."""
    original = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *_: original("json" if name == "ray" else name)
    )


def refused(pytester: pytest.Pytester, *arguments: str) -> str:
    """The one line with which a command line is refused."""
    result = pytester.runpytest_inprocess(*HEAD, ACCURACY, "--recipe", "int8", *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = [line for line in result.errlines if line]
    return line


def test_without_ray_the_extra_is_named(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Ray is not installed, ``--cluster`` says what to install."""
    original = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *_: None if name == "ray" else original(name)
    )

    line = refused(pytester, "--cluster", "local")

    assert line == (
        "ERROR: --cluster local: needs Ray, which is not installed. Install the extra 'cluster': "
        "pip install 'quantized-clip-gate[cluster]'."
    )


@pytest.mark.usefixtures("with_ray")
@pytest.mark.parametrize(
    "address", ["nowhere", "ray://head:10001", "head:", ":6379", "https://head:80"]
)
def test_what_is_no_address_is_refused(address: str, pytester: pytest.Pytester) -> None:
    """Only ``local`` and HOST:PORT are addresses."""
    assert f"--cluster {address}: is not an address. Give" in refused(
        pytester, f"--cluster={address}"
    )


@pytest.mark.usefixtures("with_ray")
@pytest.mark.parametrize("other", [("--early-stop",), ("-n", "2")])
def test_what_does_not_go_together_is_refused(
    other: tuple[str, ...], pytester: pytest.Pytester
) -> None:
    """Neither an early stop nor processes of xdist next to a local cluster: reported before anything is
    collected.
    """
    assert f"does not go with {other[0]}" in refused(pytester, "--cluster", "local", *other)


def test_a_closed_port_is_told_at_once() -> None:
    """A head that does not listen is named within seconds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"

        with pytest.raises(UsageError, match=f"--cluster {address}: nothing answers there"):
            cluster._knock(address)


@needs_ray
@pytest.mark.usefixtures("two_workers")
def test_a_cluster_without_room_is_told(folder: Path) -> None:
    """Where no node has what a worker takes, the run does not wait for ever."""
    engine = Cluster("local", torch.device("cuda"), ROWS, folder)

    with pytest.raises(
        UsageError, match=r"no node has 1 GPU, which a worker takes \(they have \[0\]\)"
    ):
        engine.start()
