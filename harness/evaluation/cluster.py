"""Slices on the workers of a Ray cluster (``--cluster ADDRESS|local``).

A worker reads the reference and the data from its own disk, where they must be under the same
paths as here.  A quantized model is sent to it: calibrated once, here, saved and restored as the
checkpoint suite does it.  Were each worker to calibrate for itself, 64 of them would spend more on
that than on the pictures, and on a GPU nothing promises that all would get the same ranges.

Before it computes anything, a worker says what its answers depend on: releases, sources, device,
data, weights, ranges. Where that is not what this run says, the run stops and names the node and
the difference.
"""

from __future__ import annotations

import copy
import functools
import io
import os
import secrets
import socket
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from harness import digests, files
from harness.data import tasks
from harness.data.tasks import Task
from harness.errors import UsageError
from harness.evaluation import environment
from harness.evaluation.addresses import FIX, LOCAL
from harness.evaluation.shards import Floats, Side, Slice
from harness.evaluation.subjects import STATE, Quantization, Subject, side_embeddings
from harness.models import references
from harness.models.references import Reference
from harness.quantization import quantize
from harness.quantization.attention import attention_registered
from harness.quantization.context import quiet

#: Workers that may die over one slice before the run gives up on it.
TRIES = 4
_MEND_JOIN = (
    "It needs the same releases of Ray and Python here as there, and, where it asks for a token, "
    "RAY_AUTH_MODE=token "
    "with its RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH."
)

Packed = npt.NDArray[np.uint8]


class ClusterError(Exception):
    """A slice took every worker that tried it."""


@dataclass(frozen=True)
class SliceOrder:
    """A slice as a worker is asked for it, with what its answer must depend on."""

    model: str
    task: str
    data_root: Path | None
    side: Side
    part: tuple[int, int]
    device: str
    threads: int
    batch_size: int
    attention: str | None
    bound: dict[str, str]


class Cluster:
    """The engine: every slice is an order, given to a free worker, and to another one if the worker
    dies.

    A worker has one GPU, or as many CPU cores as torch has threads here: the number of threads is
    part of what equal bits depend on.
    """

    at_once: int | None = None

    def __init__(
        self, address: str, device: torch.device, batch_size: int, data_root: Path | None
    ) -> None:
        self.address = address
        self._device = device
        self._batch_size = batch_size
        self._data_root = None if data_root is None else files.expand(data_root).absolute()
        self._started = False
        self._died: Counter[str] = Counter()
        self._computed: Counter[str] = Counter()
        self._packed: tuple[str, Any] | None = None

    def start(self) -> None:
        """Connect, or start a cluster on this machine; a connection that this process has is used.

        Raises:
            UsageError: nothing answers, it cannot be joined, or no node has room for a worker.
        """
        # Read when Ray is imported; neither a report on its use nor a dashboard belongs into a test
        # run.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        if self.address == LOCAL and "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
            # Ray's ports take code from whoever knows the token; by itself Ray would write one into
            # the home folder.
            os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
        import ray

        if not ray.is_initialized():
            quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
            if self.address == LOCAL:
                cores = max(os.cpu_count() or 1, torch.get_num_threads())
                ray.init(num_cpus=cores, include_dashboard=False, **quiet)
            else:
                _knock(self.address)
                try:
                    ray.init(address=self.address, **quiet)
                except Exception as error:
                    what = f"cannot be joined ({' '.join(str(error).split())[:300]})"
                    raise UsageError(f"--cluster {self.address}", what, _MEND_JOIN) from error
            self._started = True
        kind, amount = (
            ("GPU", 1) if self._device.type == "cuda" else ("CPU", torch.get_num_threads())
        )
        nodes = [node["Resources"].get(kind, 0) for node in ray.nodes() if node["Alive"]]
        if not any(there >= amount for there in nodes):
            what = f"no node has {amount} {kind}, which a worker takes (they have {sorted(nodes)})"
            fix = (
                "Choose --device, or the threads of this process with OMP_NUM_THREADS, to fit the "
                "nodes."
            )
            raise UsageError(f"--cluster {self.address}", what, fix)

    def compute(self, subject: Subject, slices: Sequence[Slice]) -> Iterator[tuple[Slice, Floats]]:
        """The embeddings of each slice, as they come."""
        if not slices:
            return
        self.start()
        import ray

        died = ray.exceptions
        lost = (
            died.WorkerCrashedError,
            died.OutOfMemoryError,
            died.NodeDiedError,
            died.ObjectLostError,
        )
        packed, order_of = self._sent(subject), self._orders(subject)
        room = (
            {"num_gpus": 1}
            if self._device.type == "cuda"
            else {"num_cpus": torch.get_num_threads()}
        )
        # Deaths are counted and reported here, so Ray does not try again by itself.
        work = ray.remote(max_retries=0, **room)(answer)
        pending = {work.remote(order_of(piece), packed): (piece, 1) for piece in slices}
        try:
            while pending:
                for done in ray.wait(list(pending), num_returns=1)[0]:
                    piece, tries = pending.pop(done)
                    try:
                        node, result = ray.get(done)
                    except lost as error:
                        self._died[str(piece)] += 1
                        if tries == TRIES:
                            why = " ".join(str(error).split())[:300]
                            raise ClusterError(
                                f"{piece}: {tries} workers died over it, the last so: {why}"
                            ) from error
                        pending[work.remote(order_of(piece), packed)] = piece, tries + 1
                        continue
                    if isinstance(result, str):
                        fix = (
                            "Every node needs the data, the model and the releases that this "
                            "process has."
                        )
                        raise UsageError(f"--cluster {self.address}, node {node}", result, fix)
                    self._computed[node] += 1
                    yield piece, result
        finally:
            for left in pending:
                ray.cancel(left, force=True)

    def notes(self) -> list[str]:
        """Return who computed how much, and which slices had to be computed again."""
        lines = []
        if self._computed:
            nodes = ", ".join(f"{node} {count}" for node, count in sorted(self._computed.items()))
            lines.append(
                f"cluster {self.address}: {self._computed.total()} slices computed ({nodes})"
            )
        for piece, count in self._died.items():
            lines.append(
                f"cluster {self.address}: {count} worker(s) died over {piece}: given to another"
            )
        return lines

    def close(self) -> None:
        """Leave the cluster, or end it where it was started here."""
        if self._started:
            import ray

            self._packed = None
            ray.shutdown()
            self._started = False

    def _orders(self, subject: Subject) -> Any:
        quantization = subject.quantization
        order = SliceOrder(
            model=references.absolute(subject.reference.source),
            task="",
            data_root=self._data_root,
            side="images",
            part=(0, 0),
            device=self._device.type,
            threads=torch.get_num_threads(),
            batch_size=self._batch_size,
            attention=None if quantization is None else quantization.attention,
            bound=subject.bound | environment.conditions(self._device, self._batch_size),
        )

        def of(piece: Slice) -> SliceOrder:
            bound = {"data": piece.task.data_hash} | order.bound
            return replace(
                order,
                task=piece.task.name,
                side=piece.side,
                part=(piece.start, piece.stop),
                bound=bound,
            )

        return of

    def _sent(self, subject: Subject) -> Any:
        """A handle to the quantized model in the cluster's memory, put there once; None for a
        reference.
        """
        import ray

        if subject.quantization is None:
            return None
        digest = subject.bound[STATE]
        if self._packed is None or self._packed[0] != digest:
            self._packed = digest, ray.put(pack(subject.quantization))
        return self._packed[1]


def _knock(address: str) -> None:
    """Refuse an *address* at which nothing listens: Ray itself needs minutes to report that."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise UsageError(f"--cluster {address}", f"nothing answers there ({error})", FIX) from error


def pack(quantization: Quantization) -> Packed:
    """The quantized model's checkpoint, as ``mto.save`` writes it."""
    import modelopt.torch.opt as mto

    stream = io.BytesIO()
    with quiet():
        mto.save(quantization.model, stream)
    return np.frombuffer(stream.getvalue(), np.uint8)


def unpack(packed: Packed, reference: Reference, attention: str) -> nn.Module:
    """The model of :func:`pack`, on *reference*'s device.

    Nothing but tensors and plain values is read: ModelOpt loads a checkpoint with ``weights_only``.
    """
    import modelopt.torch.opt as mto

    blank = copy.deepcopy(reference.model).cpu()
    with quiet(), attention_registered(blank, attention):
        model = mto.restore(blank, io.BytesIO(packed.tobytes()))
    restored: nn.Module = model.to(reference.device).eval().requires_grad_(False)
    return restored


# -- in the worker ---------------------------------------------------------------------------------


def answer(order: SliceOrder, packed: Packed | None) -> tuple[str, Floats | str]:
    """The node's name with the slice's embeddings, or with what is wrong here."""
    import ray

    node = str(ray.util.get_node_ip_address())
    try:
        return node, embedded(order, packed)
    except UsageError as error:
        return node, str(error)


def embedded(order: SliceOrder, packed: Packed | None) -> Floats | str:
    """Compute the embeddings for *order*.

    If the environment, model or data of this node differ from those of the run, return the
    differences as text instead.

    Raises:
        UsageError: the model or the data are not here, or damaged.
    """
    torch.set_num_threads(order.threads)
    device = torch.device(order.device)
    wanted = order.bound
    differing = _differing(wanted, environment.conditions(device, order.batch_size))
    if not differing:
        reference = _reference(order.model, order.device)
        subject = Subject(reference, reference.model)
        if packed is not None and order.attention is not None:
            subject = _restored(wanted[STATE], reference, order.attention, packed)
        task = _task(order.task, order.data_root, order.model, order.device)
        differing = _differing(wanted, {"data": task.data_hash} | subject.bound)
    if differing:
        return "; ".join(differing)
    return side_embeddings(subject.model, task, order.side, order.batch_size, order.part)


def _differing(wanted: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    return [
        f"{name} is {digests.short(value)} there, {digests.short(wanted.get(name, 'none'))} in "
        f"this run"
        for name, value in here.items()
        if wanted.get(name) != value
    ]


@functools.lru_cache(1)
def _reference(source: str, device: str) -> Reference:
    return references.load(source, torch.device(device))


@functools.lru_cache(8)
def _task(name: str, data_root: Path | None, source: str, device: str) -> Task:
    (task,) = tasks.load_tasks([name], data_root, _reference(source, device))
    return task


#: The quantized model that this worker was sent last, by the digest of its state.
_latest: dict[str, Subject] = {}


def _restored(digest: str, reference: Reference, attention: str, packed: Packed) -> Subject:
    if digest not in _latest:
        _latest.clear()
        _latest[digest] = Subject(reference, quantize.fold(unpack(packed, reference, attention)))
    return _latest[digest]
