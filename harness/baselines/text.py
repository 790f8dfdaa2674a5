"""A record's form on disk: JSON that reviewers read, and safetensors with what each sample got.

Keys are sorted, short values stand on one line, each quantizer has a line of its own, in module
order.  Counts are exact.  Rounded are percentages and differences (4 decimals), and intervals,
numbers beyond accuracy and speed ratios (6 significant digits); nothing that is compared by bits is
among them.  A checksum over the content, and the outcomes next to it, reveal an edited number.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from harness.baselines.commands import remove_command
from harness.baselines.provenance import Provenance
from harness.baselines.records import HistoryEntry, Record, SampleOutcomes, TaskRecord, rounded
from harness.digests import of_bytes, of_json
from harness.errors import UsageError
from harness.evaluation.environment import DeviceKey
from harness.statistics.speed import Ratio

#: Version of the JSON's shape; a record of another version is refused, never guessed at.
SCHEMA = 1
MAX_TEXT = 32 << 20  #: bytes of a record; ViT-L/14's map takes 0.4 MB
MAX_OUTCOMES = 1 << 30  #: bytes of an outcomes file; 50,000 samples take 0.2 MB
_WIDTH = 118

Arrays = dict[str, NDArray[Any]]
Hash = Annotated[str, pydantic.StringConstraints(pattern=r"^[0-9a-f]{64}$")]


# --------------------------------------------------------------------------------------------------
# The shape of the JSON.


class _Shape(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False
    )


class _Side(_Shape):
    bits: Hash
    percent: float
    right: int
    outcomes: Hash | None = None


class _Task(_Shape):
    beyond: dict[str, float]
    budget: float
    changed: int
    count: int = pydantic.Field(ge=1, le=100_000_000)
    data: str
    decision: Literal["PASS", "FAIL", "INCONCLUSIVE", "GAIN"]
    difference: float
    interval: tuple[float, float]
    lost: int
    preprocessing: str
    quantized: _Side
    reference: _Side
    sample_ids: Hash
    sample_set: Hash
    won: int


class _Named(_Shape):
    name: str
    hash: str


class _Calibration(_Shape):
    hash: str
    size: int


class _Device(_Shape):
    architecture: str
    bits: str | None
    exact: str


class _Stored(_Shape):
    attention: str
    calibration: _Calibration
    checksum: Hash
    device: _Device
    facts: dict[str, str]
    history: tuple[HistoryEntry, ...] = pydantic.Field(min_length=1)
    measured: str
    model: _Named
    outcomes: Hash | None
    quantizers: dict[str, dict[str, Any]]
    recipe: _Named
    schema_: Literal[1] = pydantic.Field(alias="schema")
    tasks: dict[str, dict[str, _Task]]
    throughput: dict[str, Ratio]
    versions: dict[str, str]


# --------------------------------------------------------------------------------------------------
# Writing.


def reference_blob(task: TaskRecord) -> bytes:
    """The safetensors file of the reference's outcomes under one task and metric."""
    return _blob(_arrays("", task.reference))


def quantized_blob(tasks: Iterable[TaskRecord]) -> bytes:
    """The safetensors file of the quantized model's outcomes under all tasks of a record."""
    return _blob(
        {
            k: v
            for task in tasks
            for k, v in _arrays(f"{task.task}/{task.metric}/", task.quantized).items()
        }
    )


def _blob(arrays: Arrays) -> bytes:
    data: bytes = safetensors.numpy.save(dict(sorted(arrays.items())))
    return data


def _arrays(prefix: str, outcomes: SampleOutcomes) -> Arrays:
    low, high = int(outcomes.answers.min()), int(outcomes.answers.max())
    narrow = np.int16 if low >= -(1 << 15) and high < 1 << 15 else np.int32
    return {
        f"{prefix}correct": np.packbits(outcomes.correct),
        f"{prefix}answers": outcomes.answers.astype(narrow),
        f"{prefix}margins": outcomes.margins,
    }


def to_text(record: Record) -> str:
    """*record* as the JSON that is stored, checksum included.

    Raises:
        ValueError: a quantizer named twice, a number that JSON cannot hold, a decision that is
            not known: what could not be read again is not written.

    """
    content = _content(record)
    content["checksum"] = _checksum(content)
    text = _render(content) + "\n"
    _Stored.model_validate_json(text)
    return text


def _content(record: Record) -> dict[str, Any]:
    p = record.provenance
    tasks: dict[str, dict[str, Any]] = {}
    for task in record.tasks:
        tasks.setdefault(task.task, {})[task.metric] = _task_content(task)
    quantizers = {
        str(q["name"]): {k: v for k, v in sorted(q.items()) if k != "name"}
        for q in record.quantizers
    }
    if len(quantizers) != len(record.quantizers):
        raise ValueError("two quantizers of one name")
    return {
        "attention": p.attention,
        "calibration": {"hash": p.calibration_hash, "size": p.calibration_size},
        "device": {"architecture": p.device.architecture, "bits": p.bits, "exact": p.device.exact},
        "facts": dict(p.facts),
        "history": [
            {"changes": list(h.changes), "date": h.date, "reason": h.reason} for h in record.history
        ],
        "measured": record.measured,
        "model": {"hash": p.model_revision, "name": p.model},
        "outcomes": of_bytes(quantized_blob(record.tasks)) if record.tasks else None,
        "quantizers": quantizers,
        "recipe": {"hash": p.recipe_hash, "name": p.recipe},
        "schema": SCHEMA,
        "tasks": tasks,
        "throughput": {tower: _ratio(ratio) for tower, ratio in (record.throughput or {}).items()},
        "versions": dict(p.versions),
    }


def _ratio(ratio: Ratio) -> dict[str, Any]:
    numbers = {"high": ratio.high, "low": ratio.low, "value": ratio.value}
    return {name: None if x is None else rounded(x) for name, x in numbers.items()} | {
        "rounds": ratio.rounds
    }


def _task_content(task: TaskRecord) -> dict[str, Any]:
    return {
        "beyond": {name: rounded(value) for name, value in task.beyond.items()},
        "budget": task.budget,
        "data": task.data_hash,
        "decision": task.decision,
        "interval": list(task.interval),
        "preprocessing": task.preprocessing,
        "sample_ids": task.sample_ids,
        "sample_set": task.sample_set,
        **_derived(task),
        "quantized": _side(task.quantized, task.percent_quantized),
        "reference": {
            **_side(task.reference, task.percent_reference),
            "outcomes": of_bytes(reference_blob(task)),
        },
    }


def _derived(task: TaskRecord) -> dict[str, int | float]:
    """Numbers that follow from the outcomes: written for the reader, checked against the outcomes
    when read.
    """
    return {
        "changed": task.changed,
        "count": task.count,
        "difference": round(task.difference, 4),
        "lost": task.lost,
        "won": task.won,
    }


def _side(outcomes: SampleOutcomes, percent: float) -> dict[str, Any]:
    return {"bits": outcomes.bits, "percent": round(percent, 4), "right": outcomes.right}


def _checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical content, and of the order of the quantizers, which canonical JSON
    would lose.
    """
    rest = {key: value for key, value in content.items() if key != "checksum"}
    return of_json([rest, list(rest["quantizers"])])


def _render(value: Any, indent: int = 0, keep_order: bool = False) -> str:
    """JSON with sorted keys in which whatever fits a line is on one line; the quantizers each on
    theirs, in order.
    """
    line = json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False)
    if (
        not value
        or not isinstance(value, (dict, list))
        or (indent and len(line) + indent <= _WIDTH and not keep_order)
    ):
        return line
    pad, close = " " * (indent + 1), " " * indent
    if isinstance(value, list):
        parts = [pad + _render(item, indent + 1) for item in value]
        return "[\n" + ",\n".join(parts) + f"\n{close}]"
    parts = []
    for key in value if keep_order else sorted(value):
        inner = (
            json.dumps(value[key], sort_keys=True, allow_nan=False, ensure_ascii=False)
            if keep_order
            else None
        )
        text = inner or _render(
            value[key], indent + 1, keep_order=key == "quantizers" and indent == 0
        )
        parts.append(f"{pad}{json.dumps(key, ensure_ascii=False)}: {text}")
    return "{\n" + ",\n".join(parts) + f"\n{close}}}"


# --------------------------------------------------------------------------------------------------
# Reading.


class UnreadableRecordError(Exception):
    """Why a record cannot be used, and the file at fault if it is not the record itself."""

    def __init__(self, what: str, path: Path | None = None) -> None:
        super().__init__(f"{path}: {what}" if path else what)
        self.path = path


class VanishedError(UnreadableRecordError):
    """A file is not there: another process has replaced the record meanwhile, or it was removed."""


def read(path: Path, blob: Callable[[str, str, str], bytes]) -> Record:
    """The record in *path*, every number in it checked.

    Args:
        path: its JSON.
        blob: gives an outcomes file, checked against its SHA-256, by (task, metric, SHA-256); task
            and metric are empty for the quantized model's.

    Raises:
        UnreadableError: whatever is wrong with it, in words for a person.

    """
    content = _parse(read_bytes(path, MAX_TEXT))
    if content.get("schema") != SCHEMA:
        raise UnreadableRecordError(
            f"it is of schema {content.get('schema')!r}, this harness reads schema {SCHEMA}"
        )
    try:
        stored = _Stored.model_validate_json(json.dumps(content))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise UnreadableRecordError(
            f"at {'.'.join(map(str, first['loc']))}: {first['msg']}"
        ) from None
    intact = _checksum(content) == stored.checksum
    tasks, wrong = _tasks(stored, blob)
    if wrong or not intact:
        first_wrong = (
            wrong[0] if wrong else f"its checksum is not {stored.checksum[:12]}, which it carries"
        )
        raise UnreadableRecordError(
            f"it was edited by hand, or a merge mixed two versions: {first_wrong}"
        )
    return Record(
        provenance=_provenance(stored),
        quantizers=tuple(
            {"name": name, **attributes} for name, attributes in stored.quantizers.items()
        ),
        tasks=tasks,
        throughput=stored.throughput,
        history=stored.history,
        measured=stored.measured,
        path=path,
    )


def read_bytes(path: Path, limit: int) -> bytes:
    """The bytes of a regular file of at most *limit* bytes.

    Raises:
        UnreadableError: a link, a pipe, a folder, too large, or not to be read.
        VanishedError: not there.

    """
    # One descriptor for the look and the read: between two calls on the path, a writer may have
    # swept it.
    flags = (
        os.O_RDONLY
        | getattr(os, "O_NOFOLLOW", 0)
        | getattr(os, "O_NONBLOCK", 0)
        | getattr(os, "O_BINARY", 0)
    )
    try:
        with open(os.open(path, flags), "rb") as file:  # noqa: PTH123
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UnreadableRecordError("it is not a regular file")
            if status.st_size > limit:
                raise UnreadableRecordError(
                    f"it has {status.st_size:,} bytes, the limit is {limit:,}"
                )
            return file.read()
    except FileNotFoundError:
        raise VanishedError("it is not there") from None
    except OSError as error:
        link = error.errno == errno.ELOOP or isinstance(error, IsADirectoryError)
        raise UnreadableRecordError(
            "it is not a regular file" if link else f"it cannot be read ({error.strerror})"
        ) from None


def _parse(data: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) != len(pairs):
            raise UnreadableRecordError("a key appears twice in one object")
        return entries

    def constant(name: str) -> float:
        raise UnreadableRecordError(f"{name} is not a number")

    try:
        content = json.loads(data.decode(), object_pairs_hook=unique, parse_constant=constant)
    except UnicodeDecodeError as error:
        raise UnreadableRecordError(f"byte {error.start} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise UnreadableRecordError(
            f"line {error.lineno} column {error.colno}: {error.msg}; truncated or a bad merge"
        ) from None
    except (RecursionError, ValueError) as error:
        raise UnreadableRecordError(f"not JSON of a record ({type(error).__name__})") from None
    if not isinstance(content, dict):
        raise UnreadableRecordError("it holds no JSON object")
    return content


def _provenance(stored: _Stored) -> Provenance:
    try:
        device = DeviceKey(stored.device.exact, stored.device.architecture)
    except ValueError as error:
        raise UnreadableRecordError(f"at device: {error}") from None
    return Provenance(
        model=stored.model.name,
        model_revision=stored.model.hash,
        recipe=stored.recipe.name,
        recipe_hash=stored.recipe.hash,
        calibration_hash=stored.calibration.hash,
        calibration_size=stored.calibration.size,
        attention=stored.attention,
        versions=stored.versions,
        device=device,
        bits=stored.device.bits,
        facts=stored.facts,
    )


def _tasks(
    stored: _Stored, blob: Callable[[str, str, str], bytes]
) -> tuple[tuple[TaskRecord, ...], list[str]]:
    """The tasks with their outcomes, and every number of theirs that the outcomes contradict."""
    if bool(stored.tasks) != (stored.outcomes is not None):
        raise UnreadableRecordError(
            "at outcomes: there must be outcomes if and only if there are tasks"
        )
    quantized = _load(blob("", "", stored.outcomes)) if stored.outcomes else {}
    tasks, wrong = [], []
    for task, metrics in stored.tasks.items():
        for metric, t in metrics.items():
            reference = _load(blob(task, metric, t.reference.outcomes or ""))
            read_task = TaskRecord(
                task=task,
                metric=metric,
                data_hash=t.data,
                sample_ids=t.sample_ids,
                sample_set=t.sample_set,
                preprocessing=t.preprocessing,
                reference=_kept("", reference, t.count, t.reference.bits),
                quantized=_kept(f"{task}/{metric}/", quantized, t.count, t.quantized.bits),
                decision=t.decision,
                interval=t.interval,
                budget=t.budget,
                beyond=t.beyond,
            )
            tasks.append(read_task)
            wrong += _contradictions(read_task, t)
    return tuple(tasks), wrong


def _contradictions(task: TaskRecord, stored: _Task) -> list[str]:
    says = stored.model_dump()
    follows: dict[str, Any] = _task_content(task)
    pairs = {name: (says[name], follows[name]) for name in _derived(task)}
    for side in ("reference", "quantized"):
        pairs |= {
            f"{side}.{name}": (says[side][name], follows[side][name])
            for name in ("percent", "right")
        }
    where = f"tasks.{task.task}.{task.metric}"
    return [
        f"{where}.{n} says {a}, the outcomes next to it say {b}"
        for n, (a, b) in pairs.items()
        if a != b
    ]


def _load(data: bytes) -> Arrays:
    try:
        arrays: Arrays = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise UnreadableRecordError(f"its outcomes are no safetensors file ({error})") from None
    return arrays


def _kept(prefix: str, arrays: Arrays, count: int, bits: str) -> SampleOutcomes:
    packed = _array(arrays, f"{prefix}correct", ("uint8",), (count + 7) // 8)
    answers = _array(arrays, f"{prefix}answers", ("int16", "int32"), count)
    margins = _array(arrays, f"{prefix}margins", ("float16",), count)
    correct = np.unpackbits(packed, count=count).astype(np.bool_)
    return SampleOutcomes(correct, answers.astype(np.int32), margins, bits)


def _array(arrays: Arrays, name: str, dtypes: tuple[str, ...], length: int) -> NDArray[Any]:
    array = arrays.get(name)
    if array is None or array.dtype.name not in dtypes or array.shape != (length,):
        described = "nothing" if array is None else f"{array.dtype} of shape {array.shape}"
        raise UnreadableRecordError(
            f"its outcomes hold {described} for {name}, "
            f"not {' or '.join(dtypes)} of shape ({length},)"
        )
    return array


def corrupt(path: Path, error: UnreadableRecordError, accept: str) -> UsageError:
    """The usage error for a record in *path* that cannot be used; *accept* is the command that
    measures again.
    """
    restore = shlex.join(["git", "checkout", "--", str(error.path or path)])
    fix = f"Bring it back ({restore}), or measure again ({remove_command(path)}; {accept})"
    return UsageError(path, f"this baseline cannot be used: {error}", fix)
