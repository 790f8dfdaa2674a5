"""The store: where records are, which one is nearest, and how they are written.

On disk, a folder a model and one a recipe in it::

    <root>/<model>/<recipe>/record@<architecture>@<exact device>.json
        text to review, one file per device
    <root>/<model>/<recipe>/outcomes-<digest>.safetensors
        what each sample got from the quantized model
    <root>/<model>/reference/<task>.<metric>-<digest>.safetensors
        what it got from the reference, for all recipes

Outcomes are named by their content and never overwritten, so the rename of the JSON is the one
moment in which a record changes: a process killed before it leaves the old record, after it the new
one.  One lock guards all writing.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import filelock

from harness import digests, files
from harness.baselines import text
from harness.baselines.commands import PLACEHOLDER, accept_command, remove_command, rerun_command
from harness.baselines.comparison import Comparison
from harness.baselines.drift import Changes, belongs_to, changes, mergeable
from harness.baselines.records import HistoryEntry, Record, TaskRecord
from harness.errors import UsageError, sentences
from harness.evaluation.environment import BINDING_PACKAGES, DeviceKey, Nearness
from harness.recipes.names import KEPT, folder_name

LOCK = ".lock"
LOCK_SECONDS = 60.0
REFERENCE = KEPT["recipe"][0]
#: The one folder of the store that is not a model's: expected differences between releases
#: (``harness.tools.versions``).
VERSIONS = KEPT["model"][0]
_RECORD = re.compile(r"record@(?P<architecture>[^@]+)@(?P<exact>[^@]+)\.json")
_OUTCOMES = re.compile(r"outcomes-(?P<digest>[0-9a-f]{16})\.safetensors")
_REFERENCE_OUTCOMES = re.compile(r".+\..+-(?P<digest>[0-9a-f]{16})\.safetensors")
_TEMPORARY = ".tmp-"
_HISTORY_LINES = 60  #: of one entry; what a wholesale change says beyond them is in git


@dataclass(frozen=True)
class Missing(Comparison):
    """There is no baseline for this recipe on this model, on any device."""

    model: str
    recipe: str
    device: DeviceKey
    folder: Path

    @property
    def only_adds(self) -> bool:
        """True: there is nothing to replace."""
        return True

    @property
    def causes(self) -> tuple[str, ...]:
        """Every comparison of the case has no baseline then."""
        return (self.headline,)

    @property
    def word(self) -> str:
        """``missing``."""
        return "missing"

    @property
    def headline(self) -> str:
        """A few words for a table."""
        return "no baseline"

    def message(self, nodeid: str | None = None, options: Sequence[str] = ()) -> str:
        """What is missing, where it was looked for, and the commands that rerun the case and make
        the baseline.
        """
        lines = [
            f"no baseline for recipe {self.recipe} on model {self.model}",
            f"  looked for {self.folder}/record@*.json; this device is {self.device}",
            *([f"  rerun:  {rerun_command(nodeid, options)}"] if nodeid else []),
            f"  accept: "
            f"{accept_command(None, options, recipe=self.recipe, model=self.model, new_only=True)}",
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class Orphan:
    """A baseline that no test used: its path, why, and the command that removes it."""

    path: Path
    why: str
    command: str

    def __str__(self) -> str:
        return f"{self.path}: {sentences(self.why, f'Remove it: {self.command}')}"


@dataclass(frozen=True)
class Change:
    """What an update does, or did.

    ``action`` is "added" (no record before), "changed", "unchanged" (nothing to write) or "kept"
    (there is one, and only new ones were asked for).  ``stale`` names other devices' records that
    this one leaves behind.
    """

    action: str
    path: Path
    changes: Changes
    reason: str
    stale: tuple[str, ...] = ()
    record: Record | None = None

    @property
    def text(self) -> str:
        """The diff a person reads before it is accepted, what is loosened apart from what is
        tightened.
        """
        lines = [f"{self.action}: {self.path}"]
        for title, part in (
            ("loosened, lets more pass from now on", self.changes.loosened),
            ("tightened", self.changes.tightened),
            ("neither", self.changes.other),
        ):
            lines += [f"  {title}:", *(f"    {line}" for line in part)] if part else []
        lines += [f"  reason: {self.reason}"] if self.record else []
        lines += [f"  {line}" for line in self.stale]
        return "\n".join(lines)


class Store:
    """The baselines under *root*, which need not exist yet.

    *options* gives the options of a command that gates the recipe on the model of these names
    again.
    """

    def __init__(
        self, root: Path | str, options: Callable[[str, str], Sequence[str]] | None = None
    ) -> None:
        self.root = Path(root)
        self._options = options

    # -- reading

    def find(
        self,
        model: str,
        recipe: str,
        device: DeviceKey,
        holding: tuple[str, str] | None = None,
    ) -> Record | Missing:
        """The nearest record: of this device, else of its architecture, else of any; of several the
        newest.

        Args:
            model: the model's name.
            recipe: the recipe's name.
            device: this device.
            holding: a task and a metric; a record without them is the answer only where no record
                has them, as not every device has measured everything.

        Raises:
            UsageError: a name that cannot be a folder, or a record in reach that is corrupt, edited
                or another's.

        """
        folder = self._folder(model, recipe)
        tiers: dict[Nearness, list[tuple[Path, DeviceKey]]] = {near: [] for near in Nearness}
        for path, key in self._record_files(folder):
            tiers[device.nearness(key)].append((path, key))
        others: list[Record] = []
        for near in Nearness:
            records = [self._read(path, key, model, recipe) for path, key in tiers[near]]
            records.sort(key=lambda r: _rank(r, device), reverse=True)
            for record in records:
                if holding is None or record.task(*holding) is not None:
                    return record
            others += records
        return others[0] if others else Missing(model, recipe, device, folder)

    def _record_files(self, folder: Path) -> Iterator[tuple[Path, DeviceKey]]:
        for path in sorted(folder.glob("record*.json")):
            match = _RECORD.fullmatch(path.name)
            try:
                key = DeviceKey(match["exact"], match["architecture"]) if match else None
            except ValueError:
                key = None
            if key is None:
                raise UsageError(
                    path,
                    "no name of a record",
                    "Names read record@<architecture>@<device>.json: rename it",
                )
            yield path, key

    def _read(self, path: Path, key: DeviceKey, model: str, recipe: str) -> Record:
        accept = self._accept(model, recipe)
        for last in (False, False, False, False, True):
            try:
                record = text.read(path, lambda *which: self._blob(path.parent, *which))
                break
            except text.UnreadableRecordError as error:
                # Another process may have replaced the record, and swept its outcomes, since the
                # JSON was read.
                if last or not isinstance(error, text.VanishedError):
                    raise text.corrupt(path, error, accept) from None
        p = record.provenance
        if (p.model, p.recipe, p.device) != (model, recipe, key):
            belongs = (
                f"this baseline belongs to recipe {p.recipe} on model {p.model} and {p.device}"
            )
            raise UsageError(
                path, belongs, f"It was moved or copied: {remove_command(path)}; {accept}"
            )
        return record

    def _blob(self, folder: Path, task: str, metric: str, digest: str) -> bytes:
        path = folder / _quantized_name(digest)
        if task:
            path = folder.parent / REFERENCE / _reference_name(task, metric, digest)
        try:
            data = text.read_bytes(path, text.MAX_OUTCOMES)
        except text.UnreadableRecordError as error:
            raise type(error)(str(error), path) from None
        if digests.of_bytes(data) != digest:
            raise text.UnreadableRecordError(
                "truncated or edited: its SHA-256 is not the one the record names", path
            )
        return data

    def _folder(self, model: str, recipe: str) -> Path:
        folder = self.root / folder_name(model, "model") / folder_name(recipe, "recipe")
        for part in (folder, folder.parent, folder.parent / REFERENCE):
            _refuse_link(part)
        return folder

    def _accept(self, model: str, recipe: str) -> str:
        options = self._options(model, recipe) if self._options else ()
        return accept_command(None, options, recipe=recipe, model=model, new_only=True)

    # -- writing

    def write(self, record: Record, reason: str) -> Change:
        """Call ``update`` without showing anything."""
        return self.update(record, reason=reason)

    def plan(self, record: Record, *, reason: str | None = None, new_only: bool = False) -> Change:
        """Return what ``update`` would do, without writing anything.

        Raises:
            UsageError: as ``update``.
        """
        reason = _reason(reason, new_only)
        model, recipe, device = (
            record.provenance.model,
            record.provenance.recipe,
            record.provenance.device,
        )
        folder = self._folder(model, recipe)
        path = folder / f"record@{device.architecture}@{device.exact}.json"
        others = [
            self._read(p, key, model, recipe)
            for p, key in self._record_files(folder)
            if key != device
        ]
        stale = tuple(line for other in others for line in _stale(other, record))
        if not os.path.lexists(path):
            new = _sealed(record, (), reason, ("first measured",))
            return Change("added", path, Changes(), reason, stale, new)
        stored = self._read(path, device, model, recipe)
        if new_only:
            merged = _merge(record, stored) if mergeable(stored, record) else stored
        else:
            merged = _merge(stored, record) if mergeable(stored, record) else record
        changed = changes(stored, merged)
        if not changed:
            return Change("kept" if new_only else "unchanged", path, changed, reason, stale)
        return Change(
            "changed",
            path,
            changed,
            reason,
            stale,
            _sealed(merged, stored.history, reason, changed.lines),
        )

    def update(
        self,
        record: Record,
        *,
        reason: str | None = None,
        new_only: bool = False,
        show: Callable[[str], object] | None = None,
    ) -> Change:
        """Accept *record*: add it, or replace this device's.

        Tasks and speeds that are stored and that this run has not measured stay, if they belong to
        the same model, recipe, versions and map; otherwise they go, and the diff says so.

        Args:
            record: fresh, whole or in part.
            reason: why; needed unless *new_only*.
            new_only: add a record, or tasks to it, and change nothing that is there.
            show: gets ``Change.text`` before anything is written; what it raises stops the writing.

        Raises:
            UsageError: no reason, a corrupt record in the way, or a folder that cannot be written.

        """
        _reason(reason, new_only)
        model = self._folder(record.provenance.model, record.provenance.recipe).parent
        with self._locked():
            for part in sorted(model.iterdir()) if model.is_dir() else ():
                _refuse_link(part)
            change = self.plan(record, reason=reason, new_only=new_only)
            if show:
                show(change.text)
            if change.record is not None:
                try:
                    self._commit(change.path, change.record)
                except OSError as error:
                    raise UsageError(
                        change.path,
                        f"cannot be written ({error.strerror})",
                        "Look at rights and space",
                    ) from None
        return change

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = self.root / LOCK
            if os.path.lexists(lock) and not _is_regular(lock):
                raise UsageError(
                    lock,
                    "is not a regular file, and a lock would be written through it",
                    "Remove it",
                )
            with filelock.FileLock(self.root / LOCK, timeout=LOCK_SECONDS):
                yield
        except filelock.Timeout:
            held = f"another process has held the lock for {LOCK_SECONDS:.0f} s"
            raise UsageError(self.root / LOCK, held, "Wait for it, or end it") from None
        except OSError as error:
            raise UsageError(
                self.root, f"cannot be written ({error.strerror})", "Look at rights and space"
            ) from None

    def _commit(self, path: Path, record: Record) -> None:
        """Outcomes first, then the JSON that names them, then the sweep of what nothing names any
        more.
        """
        try:
            content = text.to_text(record).encode()
        except ValueError as error:
            raise UsageError(
                path,
                f"cannot be stored: {error}",
                "A baseline holds finite numbers only: correct the run",
            ) from None
        reference = path.parent.parent / REFERENCE
        for task in record.tasks:
            blob = text.reference_blob(task)
            _write_once(
                reference / _reference_name(task.task, task.metric, digests.of_bytes(blob)), blob
            )
        if record.tasks:
            blob = text.quantized_blob(record.tasks)
            _write_once(path.parent / _quantized_name(digests.of_bytes(blob)), blob)
        files.write_whole(path, content, temporary=_TEMPORARY)
        _sweep(path.parent.parent)

    # -- keeping order

    def orphans(
        self, used: Iterable[tuple[str, str]], tasks: Collection[str] | None = None
    ) -> tuple[Orphan, ...]:
        """Baselines that no test of a full run used.

        Args:
            used: (model, recipe) of every case of the run.
            tasks: names of every task of the run; records of other tasks are orphans too.  None:
                not looked at.

        Raises:
            UsageError: a record that cannot be read.

        """
        used_folders = {self._folder(*pair): pair for pair in used}
        orphans = []
        for model in (folder for folder in _folders(self.root) if folder.name != VERSIONS):
            recipes = [folder for folder in _folders(model) if folder.name != REFERENCE]
            if not any(folder in used_folders for folder in recipes):
                orphans.append(_orphan(model, "no test used any baseline of this model"))
                continue
            orphans += [
                _orphan(f, "no test used this baseline") for f in recipes if f not in used_folders
            ]
        for folder, (name, recipe) in used_folders.items():
            for path, key in self._record_files(folder) if tasks is not None else ():
                record = self._read(path, key, name, recipe)
                gone = sorted({t.task for t in record.tasks} - set(tasks or ()))
                if gone:
                    again = self._accept(name, recipe)
                    orphans.append(
                        Orphan(
                            path,
                            f"no test used its {', '.join(gone)}",
                            f"{remove_command(path)}; {again}",
                        )
                    )
        return tuple(orphans)


def _refuse_link(part: Path) -> None:
    if part.is_symlink():
        raise UsageError(
            part, "a link may lead out of the folder of baselines", "Put a real folder in its place"
        )


def _orphan(path: Path, why: str) -> Orphan:
    return Orphan(path, why, remove_command(path))


def _folders(root: Path) -> list[Path]:
    """The real folders in *root*, but for hidden ones: what a link leads to is not the store's."""
    if not files.is_folder(root):
        return []
    real = (p for p in root.iterdir() if files.is_folder(p) and not p.is_symlink())
    return sorted(p for p in real if not p.name.startswith("."))


def _rank(record: Record, device: DeviceKey) -> tuple[int, str, str]:
    """Of records equally near: the architecture whose name begins most like this one's, then the
    newest.
    """
    theirs = record.provenance.device
    pairs = zip(theirs.architecture, device.architecture, strict=False)
    return (
        len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))),
        record.measured,
        theirs.exact,
    )


def _reason(reason: str | None, new_only: bool) -> str:
    words = " ".join("".join(c if c.isprintable() else " " for c in reason or "").split())
    if new_only:
        return words or "new baseline"
    if not words or words == PLACEHOLDER:
        raise UsageError(
            "--update-baselines",
            "changing baselines needs a reason",
            "Say it: --reason 'torch 2.14, reviewed'",
        )
    return words


def _stale(other: Record, fresh: Record) -> Iterator[str]:
    """Return the record of another device that this update makes stale: of another recipe, model or
    data.
    """
    behind = [m for m in belongs_to(other, fresh) if m.what not in BINDING_PACKAGES]
    if behind and other.path is not None:
        yield (
            f"left behind, {other.path}: "
            + sentences(
                str(behind[0]), f"Measure there too, or remove it: {remove_command(other.path)}"
            )
        )


def _merge(base: Record, over: Record) -> Record:
    """Merge both records; *over* wins where both have a value, and gives map, provenance and time
    if it has new content.
    """
    named = {(t.task, t.metric): t for t in (*base.tasks, *over.tasks)}
    speeds = {**(base.throughput or {}), **(over.throughput or {})}
    return replace(over, tasks=tuple(named[key] for key in sorted(named)), throughput=speeds)


def _sealed(
    record: Record, history: tuple[HistoryEntry, ...], reason: str, lines: Sequence[str]
) -> Record:
    """*record* with its tasks in order, the time, and the acceptance in its history.

    Workers of one run that each bring a part of a record make one entry together, not one each.
    """
    now = datetime.now(timezone.utc)
    day = now.date().isoformat()
    if history and (history[-1].date, history[-1].reason) == (day, reason):
        lines, history = (*history[-1].changes, *lines), history[:-1]
    lines = tuple(dict.fromkeys(lines))
    if len(lines) > _HISTORY_LINES:
        lines = (*lines[:_HISTORY_LINES], f"... and {len(lines) - _HISTORY_LINES} more lines")
    entry = HistoryEntry(day, reason, tuple(lines))
    ordered: tuple[TaskRecord, ...] = tuple(sorted(record.tasks, key=lambda t: (t.task, t.metric)))
    measured = now.isoformat(timespec="seconds").replace("+00:00", "Z")
    return replace(record, tasks=ordered, history=(*history, entry), measured=measured)


# --------------------------------------------------------------------------------------------------
# Files.


def _quantized_name(digest: str) -> str:
    return f"outcomes-{digest[:16]}.safetensors"


def _reference_name(task: str, metric: str, digest: str) -> str:
    return f"{folder_name(task, 'task')}.{folder_name(metric, 'metric')}-{digest[:16]}.safetensors"


def _write_once(path: Path, data: bytes) -> None:
    """Write a file that is named by its content, unless it is there already and whole."""
    if not path.is_file() or path.is_symlink() or path.read_bytes() != data:
        files.write_whole(path, data, temporary=_TEMPORARY)


def _sweep(model: Path) -> None:
    """Remove outcomes that no record of *model* names, and what killed writers left; call it under
    the lock.

    Only regular files with the store's own names, in real folders of the model: a link is neither
    followed nor removed.
    """
    named: set[str] = set()
    folders = _folders(model)
    # Misnamed records too: ``find`` says to rename them.
    for path in (path for folder in folders for path in folder.glob("record*.json")):
        try:
            named |= _digests(json.loads(text.read_bytes(path, text.MAX_TEXT)))
        except (text.UnreadableRecordError, ValueError, RecursionError):
            # What a broken record names is not known: it may be restored from git, so nothing is
            # removed.
            return
    for folder in folders:
        outcomes = _REFERENCE_OUTCOMES if folder.name == REFERENCE else _OUTCOMES
        for path in folder.iterdir():
            match = outcomes.fullmatch(path.name)
            unnamed = match is not None and match["digest"] not in named
            if (unnamed or path.name.startswith(_TEMPORARY)) and _is_regular(path):
                path.unlink(missing_ok=True)


def _is_regular(path: Path) -> bool:
    """Whether *path* is a regular file itself, and no link to one."""
    return files.is_file(path) and not path.is_symlink()


def _digests(value: object) -> set[str]:
    """The first 16 digits of everything under an ``outcomes`` key, at any depth."""
    if not isinstance(value, dict):
        return set()
    digests = {value["outcomes"][:16]} if isinstance(value.get("outcomes"), str) else set()
    return digests.union(*(_digests(inner) for inner in value.values()))
