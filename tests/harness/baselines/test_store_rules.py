"""The store's rules, one at a time: names and nearness, what an update does and says, what is written and swept."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone, tzinfo
from pathlib import Path
from typing import Any

import filelock
import pytest
from made_records import (
    GPU,
    LAPTOP,
    MAP,
    OTHER_XEON,
    XEON,
    outcomes,
    quantizer,
    record,
    snapshot,
    speeds,
    stored,
    task_record,
    with_changes,
)

from harness.baselines import Missing, Orphan, Record, Store, text
from harness.baselines import store as store_module
from harness.baselines.drift import Changes, changes
from harness.baselines.records import HistoryEntry
from harness.baselines.store import Change
from harness.errors import UsageError
from harness.evaluation.environment import DeviceKey
from harness.recipes.names import folder_name

ACCEPT = "pytest --recipe fp8 --clip-model embedded --new-baselines-only"
PLAIN = "Give it a plain name"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store, two folders deeper than what is there."""
    return Store(tmp_path / "work" / "baselines")


class Clock:
    """Time that stands still until it is moved; *now* as ``datetime.now``."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 2, 23, 4, 5, 678_901, tzinfo=timezone.utc)

    def now(self, zone: tzinfo | None = None) -> datetime:
        """The moment in *zone*; of this machine and without a zone where none is given."""
        return self.time.astimezone(zone) if zone else self.time.astimezone().replace(tzinfo=None)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The store's clock, at four minutes past eleven in the evening (UTC)."""
    clock = Clock()
    monkeypatch.setattr(store_module, "datetime", clock)
    return clock


def said(call: Callable[[], object]) -> str:
    """The usage error that *call* ends with."""
    with pytest.raises(UsageError) as caught:
        call()
    return str(caught.value)


# -- names


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("fp8-per_channel.v2", "fp8-per_channel.v2"),
        ("laion/CLIP-ViT-L-14", "laion--CLIP-ViT-L-14"),
        ("XX", "XX"),
        ("x-", "x-"),
        ("a" * 100, "a" * 100),
        ("a" * 101, "a" * 80 + "-9d079339"),
        ("m:a", "m-a-e93d23ac"),
        ("m a", "m-a-55804c61"),
        (".m-a", "m-a-14d63262"),
        ("-x", "x-a4209624"),
        ("x.", "x-c92f00b1"),
        ("a\\b", "a-b-c62016d0"),
        (".x./y.", "x.--y-2ddc54cf"),
        ("é", "unnamed-4a99557e"),
        ("--.", "unnamed-c575f6f4"),
        ("X:X", "X-X-baed1632"),
        ("CC:/x", "CC---x-0cedcb91"),
    ],
)
def test_folder_of_a_name_is_pinned(name: str, folder: str) -> None:
    """A plain name is its own folder, any other a plain part and 8 digits of its SHA-256: committed ones stay."""
    assert folder_name(name, "recipe") == folder


@pytest.mark.parametrize("name", ["", " ", "a\nb", "a\0b", "\x1b[2J", "\ud800"])
def test_name_that_cannot_be_printed_is_told(name: str) -> None:
    """An empty name, or one with control characters, is refused in words, and the word for its kind."""
    expected = f"model {name!r}: its name is empty or holds control characters. {PLAIN}"
    assert said(lambda: folder_name(name, "model")) == " ".join(expected.split())


@pytest.mark.parametrize(
    "name", [".", "..", "a/..", "../a", "a/./b", "a\\..\\b", "a//b", "/a", "a/", "\\a", "C:/x", "c:\\x", "Z:/x"]
)
def test_name_that_leads_elsewhere_is_told(name: str) -> None:
    """A path out of the folder, absolute or relative, with either slash, is refused in words."""
    expected = f"recipe {name!r}: its name leads out of the folder of baselines. {PLAIN}"
    assert said(lambda: folder_name(name, "recipe")) == expected


def test_names_that_the_store_keeps_are_kept_for_their_kind_only() -> None:
    """No recipe is called reference and no model versions, however written; the other way round both are free."""
    assert said(lambda: folder_name("Reference", "recipe")) == (
        "recipe 'Reference': the baselines keep this name for the reference's outcomes. Rename the file"
    )
    assert said(lambda: folder_name("VERSIONS", "model")) == (
        "model 'VERSIONS': the baselines keep this name for what releases are expected to change. Rename the file"
    )
    told = said(lambda: Store("baselines").find("versions", "fp8", XEON))
    assert told.startswith("model 'versions': the baselines keep this name")
    free = [("reference", "model"), ("versions", "recipe"), ("reference", "task"), ("versions", "metric")]
    assert [folder_name(*pair) for pair in free] == [name for name, _ in free]


def test_files_of_a_record_are_named_by_device_and_content(store: Store) -> None:
    """JSON by architecture and device, outcomes by 16 digits of their SHA-256, the reference's by task and metric."""
    made = [task_record(), task_record(outcomes(5, 30, "ms/coco", "text recall@5"))]
    store.write(record(*made), "test")

    quantized = text.sha256(text.quantized_blob(made))[:16]
    references = [text.sha256(text.reference_blob(task))[:16] for task in made]
    assert set(snapshot(store.root)) == {
        "embedded/fp8/record@x86_64-avx512@xeon-8488c-0a1b2c3d.json",
        f"embedded/fp8/outcomes-{quantized}.safetensors",
        f"embedded/reference/cifar100.acc1-{references[0]}.safetensors",
        f"embedded/reference/ms--coco.{folder_name('text recall@5', 'metric')}-{references[1]}.safetensors",
    }
    assert (store.root / ".lock").exists()
    assert [t.name for t in stored(Store(str(store.root))).tasks] == ["cifar100 acc1", "ms/coco text recall@5"]


@pytest.mark.parametrize(("task", "metric", "where"), [("..", "acc1", "task '..'"), ("t", "../m", "metric '../m'")])
def test_task_that_cannot_be_a_file_is_told(store: Store, task: str, metric: str, where: str) -> None:
    """A task or metric whose name leads elsewhere is refused by its kind and name, and no outcomes are written."""
    fresh = record(task_record(outcomes(task=task, metric=metric)))

    told = said(lambda: store.write(fresh, "test"))

    assert told == f"{where}: its name leads out of the folder of baselines. {PLAIN}"
    assert snapshot(store.root) == {}


# -- which record is nearest


def named(name: str, architecture: str) -> DeviceKey:
    """A device."""
    return DeviceKey(name, architecture)


@pytest.mark.parametrize(
    ("devices", "wanted", "found"),
    [
        # From the oldest to the newest.
        ((XEON, OTHER_XEON, GPU), XEON, XEON),
        ((OTHER_XEON, LAPTOP, GPU), XEON, OTHER_XEON),
        ((named("zzz", "sm90"), named("aaa", "sm90")), GPU, named("aaa", "sm90")),
        ((named("aaa", "sm90"), named("zzz", "sm90")), GPU, named("zzz", "sm90")),
        ((LAPTOP, GPU), XEON, LAPTOP),
        ((named("zzz", "x86_64"), GPU), named("a", "x86_64-avx2"), named("zzz", "x86_64")),
        ((named("zzz", "sm90"), named("aaa", "sm80")), named("b", "sm70"), named("aaa", "sm80")),
        ((named("zzz", "ba0"), named("aaa", "sm80")), named("b", "aa0"), named("aaa", "sm80")),
    ],
    ids=[
        "exact-before-newer",
        "architecture-before-newer",
        "newer",
        "newer-whatever-its-name",
        "alike-before-newer",
        "alike-to-its-end",
        "as-alike-and-newer",
        "alike-from-the-first-letter-on",
    ],
)
def test_nearest_record_first_by_device_then_by_age(
    store: Store, clock: Clock, devices: tuple[DeviceKey, ...], wanted: DeviceKey, found: DeviceKey
) -> None:
    """The very device's, else of its architecture, else of the one most alike from the first letter on; then age."""
    for device in devices:
        store.write(record(device=device), "test")
        clock.time += timedelta(seconds=1)

    assert stored(store, device=wanted).provenance.device == found


def test_of_records_of_one_second_the_last_name_is_used(store: Store, clock: Clock) -> None:
    """Where nothing else tells two records apart, the name decides: the same one on every file system."""
    for name in ("b", "c", "a"):
        store.write(record(device=named(name, "sm90")), "test")

    assert stored(store, device=GPU).provenance.device.exact == "c"


def test_farther_records_are_not_even_read(store: Store) -> None:
    """A broken record of another architecture is nobody's trouble while there is a nearer one."""
    store.write(record(), "test")
    store.write(record(device=GPU), "test").path.write_text("{")

    assert stored(store).provenance.device == XEON
    assert stored(store, device=OTHER_XEON).provenance.device == XEON
    assert "cannot be used" in said(lambda: store.find("embedded", "fp8", named("b", "sm80")))


def test_missing_baseline_is_told_line_by_line(store: Store) -> None:
    """What is missing, where it was looked for, on which device, and both commands; no rerun without a test."""
    missing = store.find("embedded", "fp8", XEON)

    folder = store.root / "embedded" / "fp8"
    assert missing == Missing("embedded", "fp8", XEON, folder)
    assert isinstance(missing, Missing)
    head = (
        "no baseline for recipe fp8 on model embedded\n"
        f"  looked for {folder}/record@*.json; this device is xeon-8488c-0a1b2c3d (x86_64-avx512)\n"
    )
    assert missing.message() == f"{head}  accept: {ACCEPT}"
    assert missing.message("t.py::t", ("--device", "cpu")) == (
        f"{head}  rerun:  pytest t.py::t --device cpu\n"
        "  accept: pytest --device cpu --recipe fp8 --clip-model embedded --new-baselines-only"
    )


@pytest.mark.parametrize("name", ["record.json", "record@sm90.json", "record@SM90@x.json", "record@a@b@c.json"])
def test_name_of_no_record_is_told(store: Store, name: str) -> None:
    """A JSON file that begins as a record but names no device is told with its path and how a name reads."""
    path = store.write(record(), "test").path
    (path.parent / "recordings.txt").write_text("no record's business")
    (path.parent / "notes.json").write_text("{}")
    assert stored(store)

    path.with_name(name).write_bytes(path.read_bytes())
    assert said(lambda: store.find("embedded", "fp8", XEON)) == (
        f"{path.with_name(name)}: no name of a record. Names read record@<architecture>@<device>.json: rename it"
    )


# -- reading


@pytest.mark.parametrize(("vanishes", "reads"), [(4, 5), (5, 5)])
def test_vanished_record_is_read_again_four_times(
    store: Store, monkeypatch: pytest.MonkeyPatch, vanishes: int, reads: int
) -> None:
    """A record that another process replaces meanwhile is read anew, at most four times, then told."""
    path = store.write(record(), "test").path
    left, read, count = vanishes, text.read, 0

    def vanishing(*arguments: Any) -> Record:
        nonlocal left, count
        left, count = left - 1, count + 1
        if left >= 0:
            raise text.VanishedError("it is not there")
        return read(*arguments)

    monkeypatch.setattr(text, "read", vanishing)
    if vanishes < reads:
        assert stored(store).reason == "test"
    else:
        assert said(lambda: store.find("embedded", "fp8", XEON)) == (
            f"{path}: this baseline cannot be used: it is not there. "
            f"Bring it back (git checkout -- {path}), or measure again (rm -r -- {path}; {ACCEPT})"
        )
    assert count == reads


def test_broken_record_is_read_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is broken stays broken: it is not read again, and told with the command that measures it anew."""
    path = store.write(record(), "test").path
    path.write_text("[]")
    count, read = 0, text.read

    def counted(*arguments: Any) -> Record:
        nonlocal count
        count += 1
        return read(*arguments)

    monkeypatch.setattr(text, "read", counted)
    assert said(lambda: store.find("embedded", "fp8", XEON)) == (
        f"{path}: this baseline cannot be used: it holds no JSON object. "
        f"Bring it back (git checkout -- {path}), or measure again (rm -r -- {path}; {ACCEPT})"
    )
    assert count == 1


def test_outcomes_that_went_meanwhile_are_looked_for_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outcomes that went with the record that named them are looked for under the record that replaced it."""
    store.write(record(task_record()), "old")
    read_bytes = text.read_bytes
    replaced = False

    def racing(path: Path, limit: int) -> bytes:
        nonlocal replaced
        if path.suffix == ".safetensors" and not replaced:
            replaced = True
            Store(store.root).write(record(task_record(outcomes(9))), "new")
        return read_bytes(path, limit)

    monkeypatch.setattr(text, "read_bytes", racing)

    assert stored(store).reason == "new"


def test_outcomes_at_fault_are_named(store: Store) -> None:
    """Outcomes that are gone, changed or far too large are told by their own path, beside the record's."""
    path = store.write(record(task_record()), "test").path
    (quantized,) = path.parent.glob("*.safetensors")
    (reference,) = (path.parents[1] / "reference").iterdir()
    for file in (quantized, reference):
        whole = file.read_bytes()
        for spoil, what in (
            (lambda f: f.unlink(), "it is not there"),
            (lambda f: f.write_bytes(b""), "truncated or edited: its SHA-256 is not the one the record names"),
            (lambda f: os.truncate(f, (1 << 30) + 1), "it has 1,073,741,825 bytes, the limit is 1,073,741,824"),
        ):
            spoil(file)
            assert said(lambda: store.find("embedded", "fp8", XEON)) == (
                f"{path}: this baseline cannot be used: {file}: {what}. "
                f"Bring it back (git checkout -- {file}), or measure again (rm -r -- {path}; {ACCEPT})"
            )
            file.write_bytes(whole)
    assert stored(store)


@pytest.mark.parametrize("moved", ["model", "recipe", "device"])
def test_moved_record_is_told_with_whose_it_is(store: Store, moved: str) -> None:
    """A record in another model's or recipe's folder, or under another device's name, is told and to be taken out."""
    path = store.write(record(), "test").path
    model, recipe, name = "embedded", "fp8", path.name
    match moved:
        case "model":
            model = "other"
        case "recipe":
            recipe = "int8"
        case _:
            name = "record@sm90@nvidia-h200.json"
    copy = store.root / model / recipe / name
    copy.parent.mkdir(parents=True, exist_ok=True)
    path.rename(copy)

    assert said(lambda: store.find(model, recipe, XEON)) == (
        f"{copy}: this baseline belongs to recipe fp8 on model embedded and xeon-8488c-0a1b2c3d (x86_64-avx512). "
        f"It was moved or copied: rm -r -- {copy}; "
        f"pytest --recipe {recipe} --clip-model {model} --new-baselines-only"
    )


@pytest.mark.skipif(os.name != "posix", reason="symbolic links")
@pytest.mark.parametrize("part", ["embedded", "embedded/fp8", "embedded/reference"])
def test_link_in_the_place_of_any_folder_is_told(store: Store, tmp_path: Path, part: str) -> None:
    """A model's, a recipe's or the reference's folder that is a link is refused by path, for reading and writing."""
    store.write(record(task_record()), "test")
    (store.root / part).rename(tmp_path / "elsewhere")
    (store.root / part).symlink_to(tmp_path / "elsewhere")

    expected = f"{store.root / part}: a link may lead out of the folder of baselines. Put a real folder in its place"
    for call in (
        lambda: store.find("embedded", "fp8", XEON),
        lambda: store.write(record(), "again"),
        lambda: store.orphans([("embedded", "fp8")]),
    ):
        assert said(call) == expected


# -- what an update does


def test_plan_of_a_first_record_adds_it_and_writes_nothing(store: Store, clock: Clock) -> None:
    """No record yet: it is added whole, with the time, the reason and one line of history; the disk stays empty."""
    second, first = task_record(outcomes(4, task="imagenet1k")), task_record()

    change = store.plan(record(second, first), reason="  first \n\x1b light ")

    assert (change.action, change.reason, change.changes, change.stale) == ("added", "first light", Changes(), ())
    assert change.path == store.root / "embedded" / "fp8" / "record@x86_64-avx512@xeon-8488c-0a1b2c3d.json"
    assert change.record is not None
    assert change.record.tasks == (first, second)
    assert change.record.history == (HistoryEntry("2026-01-02", "first light", ("first measured",)),)
    assert change.record.measured == "2026-01-02T23:04:05Z"
    assert not store.root.exists()
    assert store.plan(record(), new_only=True).reason == "new baseline"
    assert store.plan(record(), new_only=True, reason=" why ").reason == "why"
    assert said(lambda: store.plan(record(), reason="say why")) == (
        "--update-baselines: changing baselines needs a reason. Say it: --reason 'torch 2.14, reviewed'"
    )


@pytest.mark.parametrize(("new_only", "action"), [(False, "unchanged"), (True, "kept")])
def test_plan_of_an_equal_record_has_nothing_to_write(store: Store, new_only: bool, action: str) -> None:
    """The same once more: nothing to write, in the word for what was asked."""
    path = store.write(record(task_record()), "first").path

    change = store.plan(record(task_record()), reason="again", new_only=new_only)

    assert change == Change(action, path, Changes(), "again")


def test_plan_of_a_changed_record_keeps_what_was_not_measured(store: Store, clock: Clock) -> None:
    """One task and one speed measured anew replace theirs; the rest stays, and the history goes on."""
    kept = task_record(outcomes(4, task="imagenet1k"))
    was = replace(record(task_record(), kept), throughput=speeds(vision=0.17, text=0.2))
    path = store.write(was, "first").path
    clock.time += timedelta(hours=1)
    moved = task_record(quantized=with_changes(outcomes(), 60, 20))

    change = store.plan(replace(record(moved), throughput=speeds(text=0.4)), reason="second")

    assert (change.action, change.path, change.reason) == ("changed", path, "second")
    now = change.record
    assert now is not None
    assert change.changes == changes(stored(store), now)
    assert change.changes.loosened[0].startswith("cifar100 acc1: difference -1.00 to -4.00 points")
    assert now.tasks[0] is moved
    assert [t.quantized.bits for t in now.tasks[1:]] == [kept.quantized.bits]
    assert now.throughput == speeds(vision=0.17, text=0.4)
    assert now.history == (
        HistoryEntry("2026-01-02", "first", ("first measured",)),
        HistoryEntry("2026-01-03", "second", change.changes.lines),
    )
    assert now.measured == "2026-01-03T00:04:05Z"


def test_plan_of_new_ones_only_adds_beside_what_is_there(store: Store) -> None:
    """New tasks and speeds are added; stored ones, their ranges and their conditions stay as they are."""
    store.write(replace(record(task_record()), throughput=speeds(vision=0.17)), "first")
    new = task_record(outcomes(4, task="imagenet1k"))
    ranges = tuple(quantizer(i, amax={"count": 1, "low": 9.0, "high": 9.0, "digest": "0" * 16}) for i in range(12))
    moved = task_record(quantized=with_changes(outcomes(), 60, 20))
    fresh = replace(record(moved, new, quantizers=ranges), throughput=speeds(vision=0.5, text=0.2))

    change = store.plan(fresh, new_only=True)

    assert change.action == "changed"
    assert change.changes == Changes(
        tightened=(
            "imagenet1k acc1: added, " + f"{new.percent_quantized:.2f} % (-1.00 points), PASS",
            "throughput, text: added",
        )
    )
    now = change.record
    assert now is not None
    assert now.quantizers == MAP
    assert [t.quantized.bits for t in now.tasks] == [task_record().quantized.bits, new.quantized.bits]
    assert now.throughput == speeds(vision=0.17, text=0.2)
    others: list[dict[str, Any]] = [{"recipe_hash": "f" * 64}, {"bits": "4 threads"}]
    for foreign in others:
        found = store.plan(record(moved, new, **foreign), new_only=True)
        assert (found.action, found.record) == ("kept", None), "of another foundation: nothing is added to it"


def test_record_of_another_foundation_replaces_all(store: Store) -> None:
    """Under another recipe hash nothing stored stays: tasks and speeds that were not measured go."""
    store.write(record(task_record(), task_record(outcomes(4, task="imagenet1k"))), "first")

    now = store.plan(replace(record(task_record(), recipe_hash="f" * 64), throughput=None), reason="new").record

    assert now is not None
    assert [t.task for t in now.tasks] == ["cifar100"]
    assert not now.throughput


def test_records_of_other_devices_left_behind_are_told(store: Store) -> None:
    """Records of another recipe are left behind; those of another release alone are not, nor is this device's own."""
    paths = {d: store.write(record(task_record(), device=d), "old").path for d in (XEON, GPU, LAPTOP)}
    older = {"nvidia-modelopt": "0.40.0", "torch": "2.13.0", "transformers": "5.14.1"}
    store.write(record(task_record(), device=OTHER_XEON, versions=older, recipe_hash="f" * 64), "old")

    stale = store.plan(record(task_record(), recipe_hash="f" * 64), reason="new").stale

    assert stale == tuple(
        f"left behind, {paths[d]}: this baseline belongs to recipe hash bbbbbbbbbbbb; this run has ffffffffffff. "
        f"Measure there too, or remove it: rm -r -- {paths[d]}"
        for d in (GPU, LAPTOP)
    )
    other = store.plan(record(task_record(), recipe_hash="f" * 64, device=named("new", "sm80")), reason="new")
    assert (other.action, len(other.stale)) == ("added", 3)
    assert len(store.plan(record(recipe_hash="f" * 64), new_only=True).stale) == 2


def test_left_behind_is_told_by_what_left_it(store: Store) -> None:
    """Where releases and the recipe differ, it is the recipe that is told."""
    other = replace(record(recipe_hash="e" * 64, versions={"torch": "2.0.0"}, device=GPU), path=Path("there.json"))

    (line,) = store_module._stale(other, record())

    assert line.startswith("left behind, there.json: this baseline belongs to recipe hash eeeeeeeeeeee; this run has b")
    assert list(store_module._stale(replace(other, path=None), record())) == [], "it is not on disk"
    data = replace(record(task_record(data_hash="0" * 64), versions={"torch": "2.0.0"}), path=Path("there.json"))
    (line,) = store_module._stale(data, record(task_record()))
    assert "belongs to cifar100 acc1 with the data hash 000000000000; this run has dddddddddddd" in line


def test_diff_is_told_line_by_line() -> None:
    """What is done to which file, each kind of change under its title, the reason if it is written, what is left."""
    found = Changes(("a", "b"), ("c",), ("d",))
    whole = Change("changed", Path("r.json"), found, "why", ("left behind, x", "left behind, y"), record())
    assert whole.text == (
        "changed: r.json\n"
        "  loosened, lets more pass from now on:\n"
        "    a\n"
        "    b\n"
        "  tightened:\n"
        "    c\n"
        "  neither:\n"
        "    d\n"
        "  reason: why\n"
        "  left behind, x\n"
        "  left behind, y"
    )
    assert Change("kept", Path("r.json"), Changes(), "why").text == "kept: r.json"


# -- history


def test_acceptances_of_one_day_and_reason_are_one(store: Store, clock: Clock) -> None:
    """Parts of one run make one entry, each line once; another reason or another day makes another."""
    made = [task_record(outcomes(i, task=f"task{i}")) for i in range(6)]
    for task, reason, hours in zip(
        made, ("run", "run", "other", "run", "run", "run"), (0.5, 0, 0, 1, 0, 0), strict=True
    ):
        store.write(record(task), reason)
        clock.time += timedelta(hours=hours)

    added = [
        f"tightened: task{i} acc1: added, {task.percent_quantized:.2f} % (-1.00 points), PASS"
        for i, task in enumerate(made)
    ]
    assert stored(store).history == (
        HistoryEntry("2026-01-02", "run", ("first measured", added[1])),
        HistoryEntry("2026-01-02", "other", (added[2],)),
        HistoryEntry("2026-01-02", "run", (added[3],)),
        HistoryEntry("2026-01-03", "run", (added[4], added[5])),
    )


@pytest.mark.parametrize(
    ("count", "last"),
    [(59, "line 58"), (60, "line 59"), (61, "... and 1 more lines"), (100, "... and 40 more lines")],
)
def test_history_is_cut_at_sixty_lines(clock: Clock, count: int, last: str) -> None:
    """An entry has at most sixty lines, each once, and one that counts the rest."""
    lines = [f"line {i}" for i in range(count)]

    sealed = store_module._sealed(record(), (), "why", [*lines, *lines])

    assert [e.reason for e in sealed.history] == ["why"]
    assert sealed.history[0].changes == (*lines[:60], *([last] if count > 60 else []))
    assert sealed.history[0].changes[-1] == last


# -- writing


def test_unchanged_is_shown_and_not_written(store: Store) -> None:
    """What an update does is shown even where it is nothing, as it is told afterwards."""
    store.write(record(), "first")
    before = snapshot(store.root)
    shown: list[str] = []

    change = store.update(record(), reason="again", show=shown.append)

    assert shown == [change.text]
    assert change.action == "unchanged"
    assert snapshot(store.root) == before


def test_lock_held_elsewhere_is_told_and_nothing_written(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another writer's lock is waited for only so long; reading goes on beside it, and a free lock is no obstacle."""
    monkeypatch.setattr(store_module, "LOCK_SECONDS", 0.6)
    store.write(record(), "first")
    before = snapshot(store.root)

    with filelock.FileLock(store.root / ".lock"):
        assert said(lambda: store.write(record(task_record()), "second")) == (
            f"{store.root / '.lock'}: another process has held the lock for 1 s. Wait for it, or end it"
        )
        assert stored(store).reason == "first"
    assert snapshot(store.root) == before
    assert store.write(record(task_record()), "second").action == "changed"


def test_store_in_the_place_of_a_file_is_told(store: Store) -> None:
    """A file where the store, or a folder above it, should be is told with the system's own word."""
    store.root.parent.write_text("")
    assert said(lambda: store.write(record(), "test")) == (
        f"{store.root}: cannot be written ({os.strerror(errno.ENOTDIR)}). Look at rights and space"
    )
    assert store.orphans([]) == ()


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_failure_while_writing_is_told_and_leaves_no_temporary(
    store: Store, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """A full disk is told with the record's path; the old record stays and what was begun is removed."""
    path = store.write(record(task_record()), "first").path
    before = snapshot(store.root)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    assert said(lambda: store.write(record(task_record(outcomes(9))), "second")) == (
        f"{path}: cannot be written (No space left on device). Look at rights and space"
    )
    assert snapshot(store.root) == before


def test_interrupted_writing_leaves_no_temporary(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control-C between the bytes and their name passes on as it is, and what was begun is removed."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.write(record(task_record()), "test")
    assert snapshot(store.root) == {}


def test_number_that_json_cannot_hold_is_told_and_nothing_written(store: Store) -> None:
    """A range that is not finite is refused with the path of the record, before any outcomes are written."""
    nan = quantizer(amax={"count": 1, "low": float("nan"), "high": 1.0, "digest": "0"})
    path = store.root / "embedded" / "fp8" / "record@x86_64-avx512@xeon-8488c-0a1b2c3d.json"

    told = said(lambda: store.write(record(task_record(), quantizers=(nan,)), "bad"))

    assert told.startswith(f"{path}: cannot be stored: Out of range float values are not JSON compliant")
    assert told.endswith(". A baseline holds finite numbers only: mend the run")
    assert snapshot(store.root) == {}


@pytest.mark.skipif(os.name != "posix", reason="descriptors and modes of POSIX")
def test_bytes_are_on_disk_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new file, whole, then its name, then its folder reach the disk; its mode is the umask's; all is closed."""
    path = tmp_path / "a" / "b" / "file.json"
    calls: list[tuple[str, object]] = []
    fsync, rename = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        kind = os.fstat(descriptor)
        calls.append(("folder", kind.st_ino) if stat.S_ISDIR(kind.st_mode) else ("bytes", kind.st_size))
        fsync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        calls.append(("name", target))
        assert source.parent == target.parent
        assert re.fullmatch(rf"\.tmp-{os.getpid()}-[0-9a-f]{{8}}", source.name)
        rename(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    before = len(list(Path("/dev/fd").iterdir()))
    old = os.umask(0o020)
    try:
        store_module._write(path, b"12345")
        store_module._write(path, b"1234567")
    finally:
        os.umask(old)

    folder = ("folder", path.parent.stat().st_ino)
    assert calls == [("bytes", 5), ("name", path), folder, ("bytes", 7), ("name", path), folder]
    assert path.read_bytes() == b"1234567"
    assert stat.S_IMODE(path.stat().st_mode) == 0o646
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_temporary_of_another_is_never_written_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file, or a link out of the store, under the very name of the temporary is left as it is."""
    monkeypatch.setattr("secrets.token_hex", lambda _: "00112233")
    there = tmp_path / f".tmp-{os.getpid()}-00112233"
    there.write_bytes(b"another's")

    with pytest.raises(FileExistsError):
        store_module._write(tmp_path / "file.json", b"mine")

    assert there.read_bytes() == b"another's"


def test_whole_outcomes_are_not_written_again(tmp_path: Path) -> None:
    """A file named by its content is written if it is missing, spoiled or a link, and else left untouched."""
    path = tmp_path / "reference" / "outcomes-0.safetensors"

    store_module._write_once(path, b"content")
    assert path.read_bytes() == b"content"
    first = path.stat().st_ino
    store_module._write_once(path, b"content")
    assert path.stat().st_ino == first

    path.write_bytes(b"conten")
    store_module._write_once(path, b"content")
    assert path.read_bytes() == b"content"

    if os.name == "posix":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
        store_module._write_once(path, b"content")
        assert not path.is_symlink()
        assert path.read_bytes() == b"content"


# -- sweeping


def test_sweep_removes_what_no_record_names_and_nothing_else(store: Store) -> None:
    """Outcomes without a record and temporaries go; named outcomes, of any recipe, and foreign files stay."""
    store.write(record(task_record()), "test")
    store.write(record(task_record(outcomes(3)), recipe="int8", device=GPU), "test")
    model = store.root / "embedded"
    named_ones = set(snapshot(model))
    gone = ["fp8/outcomes-0123456789abcdef.safetensors", "reference/ms-coco.b-fedcba9876543210.safetensors"]
    temporary = ["int8/.tmp-1-00112233", "reference/.tmp-1-00112233.safetensors", "fp8/.tmp-"]
    stays = [
        "fp8/outcomes.safetensors",
        "fp8/outcomes-0123456789abcde.safetensors",
        "fp8/outcomes-0123456789abcdef0.safetensors",
        "fp8/outcomes-0123456789ABCDEF.safetensors",
        "fp8/outcomes-0123456789abcdef.npz",
        "fp8/mytmp-1",
        "reference/README.md",
        "outcomes-0123456789abcdef.safetensors",
        ".tmp-1",
        "fp8/deeper/outcomes-0123456789abcdef.safetensors",
    ]
    (model / "fp8" / "deeper").mkdir()
    for name in (*gone, *temporary, *stays):
        (model / name).write_bytes(b"")
    (store.root / "other").mkdir()
    (store.root / "other" / "fp8").mkdir()
    (store.root / "other" / "fp8" / "outcomes-0123456789abcdef.safetensors").write_bytes(b"")

    store_module._sweep(model)

    assert set(snapshot(model)) == {*named_ones, *stays}
    assert len(snapshot(store.root / "other")) == 1


@pytest.mark.parametrize("broken", ["{", "[" * 100_000, None, "\udcff"], ids=["cut", "deep", "large", "not-utf8"])
def test_sweep_removes_nothing_beside_a_broken_record(tmp_path: Path, broken: str | None) -> None:
    """What a record that cannot be read names is not known: no outcomes and no temporary are removed."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "outcomes-0123456789abcdef.safetensors").write_bytes(b"")
    (tmp_path / "a" / ".tmp-1").write_bytes(b"")
    path = tmp_path / "b" / "record@sm90@nvidia-h200.json"
    if broken is None:
        path.write_text("{}")
        os.truncate(path, (32 << 20) + 1)
    else:
        path.write_bytes(broken.encode("utf-8", "surrogateescape"))

    store_module._sweep(tmp_path)
    assert len(snapshot(tmp_path)) == 3

    path.write_text("{}")
    store_module._sweep(tmp_path)
    assert list(snapshot(tmp_path)) == ["b/record@sm90@nvidia-h200.json"]


def test_record_of_a_coming_schema_keeps_its_outcomes(tmp_path: Path) -> None:
    """Whatever stands under an outcomes key, at any depth, is named, in a shape that this version does not know too."""
    digests = ["0" * 16, "1" * 16, "2" * 16]
    content = {
        "schema": 99,
        "outcomes": digests[0] + "f" * 48,
        "tasks": {"a": {"b": {"outcomes": digests[1] + "f" * 48}}, "c": ["outcomes", 7, None]},
        "more": {"outcomes": {"outcomes": digests[2]}, "none": {"outcomes": None}},
    }
    assert store_module._digests(content) == set(digests)
    assert store_module._digests([content]) == set()

    (tmp_path / "fp8").mkdir()
    (tmp_path / "fp8" / "record@sm90@nvidia-h200.json").write_text(json.dumps(content))
    for digest in (*digests, "3" * 16):
        (tmp_path / "fp8" / f"outcomes-{digest}.safetensors").write_bytes(b"")
    store_module._sweep(tmp_path)
    assert sorted(p.name[9:25] for p in (tmp_path / "fp8").glob("outcomes-*")) == digests


@pytest.mark.skipif(os.name != "posix", reason="symbolic links")
@pytest.mark.parametrize("place", ["embedded/linked", "linked", "embedded/fp8/linked"])
def test_nothing_behind_a_link_is_swept(store: Store, tmp_path: Path, place: str) -> None:
    """What looks like outcomes, a temporary or a record behind a link anywhere in the store is left alone."""
    store.write(record(task_record()), "test")
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    for name in ("outcomes-0123456789abcdef.safetensors", "a.b-0123456789abcdef.safetensors", ".tmp-1", "record.json"):
        (outside / name).write_text("{}")
    before = snapshot(outside)
    (store.root / place).symlink_to(outside)
    (store.root / "embedded/fp8/outcomes-fedcba9876543210.safetensors").symlink_to(outside / ".tmp-1")

    store_module._sweep(store.root / "embedded")
    if place == "embedded/linked":
        assert "a link may lead out" in said(lambda: store.write(record(task_record(outcomes(9))), "again"))
    else:
        store.write(record(task_record(outcomes(9))), "again")

    assert snapshot(outside) == before
    assert (store.root / "embedded/fp8/outcomes-fedcba9876543210.safetensors").is_symlink()


@pytest.mark.skipif(os.name != "posix", reason="symbolic links")
@pytest.mark.parametrize("target", ["file", "nowhere"])
def test_lock_or_record_that_is_a_link_is_refused(store: Store, tmp_path: Path, target: str) -> None:
    """Neither is written through, whether it leads to a file or to nothing."""
    (tmp_path / "file").write_text("kept")
    change = store.write(record(), "test")
    for place in (store.root / ".lock", change.path):
        place.unlink(missing_ok=True)
        place.symlink_to(tmp_path / target)

        assert "not a regular file" in said(lambda: store.write(record(task_record()), "again"))
        place.unlink()
    assert (tmp_path / "file").read_text() == "kept"
    assert not (tmp_path / "nowhere").exists()


# -- baselines that no test used


def test_outcomes_of_a_misnamed_record_are_kept(store: Store) -> None:
    """A person is told to rename it; until then nothing that it names is swept by another recipe's update."""
    store.write(record(task_record()), "test")
    (path,) = store.root.glob("*/*/record@*.json")
    kept = {p.name for p in path.parent.glob("*.safetensors")}
    path.rename(path.with_name("record.json"))

    store.write(record(task_record(outcomes(task="another")), recipe="another"), "test")

    assert kept
    assert {p.name for p in path.parent.glob("*.safetensors")} == kept


def test_unused_baselines_are_told_one_by_one(store: Store) -> None:
    """Models, recipes and tasks that no test used, each with why and the command; hidden and kept folders are none."""
    two = (task_record(outcomes(task="z")), task_record(outcomes(task="a")), task_record())
    store.write(record(*two), "test")
    store.write(record(task_record()), "other task")
    others: list[dict[str, Any]] = [
        {"recipe": "my int8"},
        {"model": "a-gone"},
        {"model": "z-gone"},
        {"model": "z-gone", "recipe": "x"},
    ]
    for changed in others:
        store.write(record(task_record(), **changed), "test")
    for name in (".git/x", "versions/x", "embedded/.cache"):
        (store.root / name).mkdir(parents=True)
    (store.root / "budgets.yaml").write_text("")
    (store.root / "embedded" / "notes.md").write_text("")

    unused = store.root / "embedded" / folder_name("my int8", "recipe")
    path = store.root / "embedded" / "fp8" / "record@x86_64-avx512@xeon-8488c-0a1b2c3d.json"
    whole = (
        Orphan(store.root / "a-gone", "no test used any baseline of this model", f"rm -r -- {store.root}/a-gone"),
        Orphan(unused, "no test used this baseline", f"rm -r -- {unused}"),
        Orphan(store.root / "z-gone", "no test used any baseline of this model", f"rm -r -- {store.root}/z-gone"),
    )
    used = [("embedded", "fp8"), ("embedded", "not yet measured")]
    assert store.orphans(used) == whole
    assert store.orphans(used, {"a", "cifar100", "z"}) == whole
    tasks = (Orphan(path, "no test used its a, z", f"rm -r -- {path}; {ACCEPT}"),)
    assert store.orphans(used, {"cifar100"}) == (*whole, *tasks)
    assert store.orphans(used, ())[-1].why == "no test used its a, cifar100, z"
    assert str(whole[0]) == (
        f"{store.root}/a-gone: no test used any baseline of this model. Remove it: rm -r -- {store.root}/a-gone"
    )
