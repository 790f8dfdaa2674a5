"""What is written and swept, and what never is."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import filelock
import pytest
from made_records import (
    GPU,
    outcomes,
    quantizer,
    record,
    snapshot,
    stored,
    task_record,
)
from store_helpers import said

from harness import files
from harness.baselines import Orphan, Store
from harness.baselines import store as store_module
from harness.recipes.names import folder_name

ACCEPT = "pytest --recipe fp8 --clip-model embedded --new-baselines-only"


# -- writing


def test_unchanged_is_shown_and_not_written(store: Store) -> None:
    """What an update does is shown even where it is nothing, as it is reported afterwards."""
    store.write(record(), "first")
    before = snapshot(store.root)
    shown: list[str] = []

    change = store.update(record(), reason="again", show=shown.append)

    assert shown == [change.text]
    assert change.action == "unchanged"
    assert snapshot(store.root) == before


def test_lock_held_elsewhere_is_told_and_nothing_written(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another writer's lock is waited for only so long; reading goes on next to it, and a free lock
    is not an obstacle.
    """
    monkeypatch.setattr(store_module, "LOCK_SECONDS", 0.6)
    store.write(record(), "first")
    before = snapshot(store.root)

    with filelock.FileLock(store.root / ".lock"):
        assert said(lambda: store.write(record(task_record()), "second")) == (
            f"{store.root / '.lock'}: another process has held the lock for 1 s. Wait for it, or "
            f"end it"
        )
        assert stored(store).reason == "first"
    assert snapshot(store.root) == before
    assert store.write(record(task_record()), "second").action == "changed"


def test_store_in_the_place_of_a_file_is_told(store: Store) -> None:
    """A file where the store, or a folder above it, should be is reported with the system's own
    word.
    """
    store.root.parent.write_text("")
    assert said(lambda: store.write(record(), "test")) == (
        f"{store.root}: cannot be written ({os.strerror(errno.ENOTDIR)}). Look at rights and space"
    )
    assert store.orphans([]) == ()


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_failure_while_writing_is_told_and_leaves_no_temporary(
    store: Store, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """A full disk is reported with the record's path; the old record stays and what was begun is
    removed.
    """
    path = store.write(record(task_record()), "first").path
    before = snapshot(store.root)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    assert said(lambda: store.write(record(task_record(outcomes(9))), "second")) == (
        f"{path}: cannot be written (No space left on device). Look at rights and space"
    )
    assert snapshot(store.root) == before


def test_interrupted_writing_leaves_no_temporary(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control-C between the bytes and their name passes on as it is, and what was begun is
    removed.
    """

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.write(record(task_record()), "test")
    assert snapshot(store.root) == {}


def test_number_that_json_cannot_hold_is_told_and_nothing_written(store: Store) -> None:
    """A range that is not finite is refused with the path of the record, before any outcomes are
    written.
    """
    nan = quantizer(amax={"count": 1, "low": float("nan"), "high": 1.0, "digest": "0"})
    path = store.root / "embedded" / "fp8" / "record@x86_64-avx512@xeon-8488c-0a1b2c3d.json"

    message = said(lambda: store.write(record(task_record(), quantizers=(nan,)), "bad"))

    assert message.startswith(
        f"{path}: cannot be stored: Out of range float values are not JSON compliant"
    )
    assert message.endswith(". A baseline holds finite numbers only: correct the run")
    assert snapshot(store.root) == {}


@pytest.mark.skipif(os.name != "posix", reason="descriptors and modes of POSIX")
def test_bytes_are_on_disk_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new file, whole, then its name, then its folder reach the disk; its mode is the umask's;
    all is closed.
    """
    path = tmp_path / "a" / "b" / "file.json"
    calls: list[tuple[str, object]] = []
    fsync, rename = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        kind = os.fstat(descriptor)
        calls.append(
            ("folder", kind.st_ino) if stat.S_ISDIR(kind.st_mode) else ("bytes", kind.st_size)
        )
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
        files.write_whole(path, b"12345", temporary=".tmp-")
        files.write_whole(path, b"1234567", temporary=".tmp-")
    finally:
        os.umask(old)

    folder = ("folder", path.parent.stat().st_ino)
    assert calls == [("bytes", 5), ("name", path), folder, ("bytes", 7), ("name", path), folder]
    assert path.read_bytes() == b"1234567"
    assert stat.S_IMODE(path.stat().st_mode) == 0o646
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_temporary_of_another_is_never_written_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file, or a link out of the store, under the very name of the temporary is left as it is."""
    monkeypatch.setattr("secrets.token_hex", lambda _: "00112233")
    there = tmp_path / f".tmp-{os.getpid()}-00112233"
    there.write_bytes(b"another's")

    with pytest.raises(FileExistsError):
        files.write_whole(tmp_path / "file.json", b"mine", temporary=".tmp-")

    assert there.read_bytes() == b"another's"


def test_whole_outcomes_are_not_written_again(tmp_path: Path) -> None:
    """A file named by its content is written if it is missing, spoiled or a link, and else left
    untouched.
    """
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
    """Outcomes without a record and temporaries go; named outcomes, of any recipe, and foreign
    files stay.
    """
    store.write(record(task_record()), "test")
    store.write(record(task_record(outcomes(3)), recipe="int8", device=GPU), "test")
    model = store.root / "embedded"
    named_ones = set(snapshot(model))
    gone = [
        "fp8/outcomes-0123456789abcdef.safetensors",
        "reference/ms-coco.b-fedcba9876543210.safetensors",
    ]
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


@pytest.mark.parametrize(
    "broken", ["{", "[" * 100_000, None, "\udcff"], ids=["cut", "deep", "large", "not-utf8"]
)
def test_sweep_removes_nothing_beside_a_broken_record(tmp_path: Path, broken: str | None) -> None:
    """What a record that cannot be read names is not known: no outcomes and no temporary are
    removed.
    """
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
    """Whatever stands under an outcomes key, at any depth, is named, in a shape that this version
    does not know too.
    """
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
    """What looks like outcomes, a temporary or a record behind a link anywhere in the store is left
    alone.
    """
    store.write(record(task_record()), "test")
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    for name in (
        "outcomes-0123456789abcdef.safetensors",
        "a.b-0123456789abcdef.safetensors",
        ".tmp-1",
        "record.json",
    ):
        (outside / name).write_text("{}")
    before = snapshot(outside)
    (store.root / place).symlink_to(outside)
    (store.root / "embedded/fp8/outcomes-fedcba9876543210.safetensors").symlink_to(
        outside / ".tmp-1"
    )

    store_module._sweep(store.root / "embedded")
    if place == "embedded/linked":
        assert "a link may lead out" in said(
            lambda: store.write(record(task_record(outcomes(9))), "again")
        )
    else:
        store.write(record(task_record(outcomes(9))), "again")

    assert snapshot(outside) == before
    assert (store.root / "embedded/fp8/outcomes-fedcba9876543210.safetensors").is_symlink()


@pytest.mark.skipif(os.name != "posix", reason="symbolic links")
@pytest.mark.parametrize("target", ["file", "nowhere"])
def test_lock_or_record_that_is_a_link_is_refused(
    store: Store, tmp_path: Path, target: str
) -> None:
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
    """The message asks a person to rename it; until then nothing that it names is swept by another recipe's
    update.
    """
    store.write(record(task_record()), "test")
    (path,) = store.root.glob("*/*/record@*.json")
    names = {p.name for p in path.parent.glob("*.safetensors")}
    path.rename(path.with_name("record.json"))

    store.write(record(task_record(outcomes(task="another")), recipe="another"), "test")

    assert names
    assert {p.name for p in path.parent.glob("*.safetensors")} == names


def test_unused_baselines_are_told_one_by_one(store: Store) -> None:
    """Models, recipes and tasks that no test used, each with why and the command; hidden and kept
    folders are none.
    """
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
        Orphan(
            store.root / "a-gone",
            "no test used any baseline of this model",
            f"rm -r -- {store.root}/a-gone",
        ),
        Orphan(unused, "no test used this baseline", f"rm -r -- {unused}"),
        Orphan(
            store.root / "z-gone",
            "no test used any baseline of this model",
            f"rm -r -- {store.root}/z-gone",
        ),
    )
    used = [("embedded", "fp8"), ("embedded", "not yet measured")]
    assert store.orphans(used) == whole
    assert store.orphans(used, {"a", "cifar100", "z"}) == whole
    tasks = (Orphan(path, "no test used its a, z", f"rm -r -- {path}; {ACCEPT}"),)
    assert store.orphans(used, {"cifar100"}) == (*whole, *tasks)
    assert store.orphans(used, ())[-1].why == "no test used its a, cifar100, z"
    assert str(whole[0]) == (
        f"{store.root}/a-gone: no test used any baseline of this model. Remove it: rm -r -- "
        f"{store.root}/a-gone"
    )
