"""Which record is nearest, and how it is read while others write."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from made_records import (
    GPU,
    LAPTOP,
    OTHER_XEON,
    XEON,
    outcomes,
    record,
    stored,
    task_record,
)
from store_helpers import Clock, named, said

from harness.baselines import Missing, Record, Store, text
from harness.evaluation.environment import DeviceKey

ACCEPT = "pytest --recipe fp8 --clip-model embedded --new-baselines-only"


# -- which record is nearest


@pytest.mark.parametrize(
    ("devices", "wanted", "expected"),
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
    store: Store,
    clock: Clock,
    devices: tuple[DeviceKey, ...],
    wanted: DeviceKey,
    expected: DeviceKey,
) -> None:
    """The very device's, else of its architecture, else of the one most alike from the first letter
    on; then age.
    """
    for device in devices:
        store.write(record(device=device), "test")
        clock.time += timedelta(seconds=1)

    assert stored(store, device=wanted).provenance.device == expected


def test_of_records_of_one_second_the_last_name_is_used(store: Store, clock: Clock) -> None:
    """Where nothing else distinguishes two records, the name decides, so that every file system has
    the same one.
    """
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
    """What is missing, where it was looked for, on which device, and both commands; no rerun
    without a test.
    """
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


@pytest.mark.parametrize(
    "name", ["record.json", "record@sm90.json", "record@SM90@x.json", "record@a@b@c.json"]
)
def test_name_of_no_record_is_told(store: Store, name: str) -> None:
    """A JSON file that begins as a record but names no device is reported with its path and how a name
    reads.
    """
    path = store.write(record(), "test").path
    (path.parent / "recordings.txt").write_text("no record's business")
    (path.parent / "notes.json").write_text("{}")
    assert stored(store)

    path.with_name(name).write_bytes(path.read_bytes())
    assert said(lambda: store.find("embedded", "fp8", XEON)) == (
        f"{path.with_name(name)}: no name of a record. Names read "
        f"record@<architecture>@<device>.json: rename it"
    )


# -- reading


@pytest.mark.parametrize(("vanishes", "reads"), [(4, 5), (5, 5)])
def test_vanished_record_is_read_again_four_times(
    store: Store, monkeypatch: pytest.MonkeyPatch, vanishes: int, reads: int
) -> None:
    """A record that another process replaces meanwhile is read again, at most four times, then
    reported.
    """
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
    """What is broken stays broken: it is not read again, and reported with the command that measures it
    again.
    """
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


def test_outcomes_that_went_meanwhile_are_looked_for_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outcomes that went with the record that named them are looked for under the record that
    replaced it.
    """
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
    """Outcomes that are gone, changed or far too large are reported by their own path, next to the
    record's.
    """
    path = store.write(record(task_record()), "test").path
    (quantized,) = path.parent.glob("*.safetensors")
    (reference,) = (path.parents[1] / "reference").iterdir()
    for file in (quantized, reference):
        whole = file.read_bytes()
        for spoil, what in (
            (lambda f: f.unlink(), "it is not there"),
            (
                lambda f: f.write_bytes(b""),
                "truncated or edited: its SHA-256 is not the one the record names",
            ),
            (
                lambda f: os.truncate(f, (1 << 30) + 1),
                "it has 1,073,741,825 bytes, the limit is 1,073,741,824",
            ),
        ):
            spoil(file)
            assert said(lambda: store.find("embedded", "fp8", XEON)) == (
                f"{path}: this baseline cannot be used: {file}: {what}. "
                f"Bring it back (git checkout -- {file}), or measure again (rm -r -- {path}; "
                f"{ACCEPT})"
            )
            file.write_bytes(whole)
    assert stored(store)


@pytest.mark.parametrize("moved", ["model", "recipe", "device"])
def test_moved_record_is_told_with_whose_it_is(store: Store, moved: str) -> None:
    """A record in another model's or recipe's folder, or under another device's name, is reported and
    to be taken out.
    """
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
        f"{copy}: this baseline belongs to recipe fp8 on model embedded and xeon-8488c-0a1b2c3d "
        f"(x86_64-avx512). "
        f"It was moved or copied: rm -r -- {copy}; "
        f"pytest --recipe {recipe} --clip-model {model} --new-baselines-only"
    )


@pytest.mark.skipif(os.name != "posix", reason="symbolic links")
@pytest.mark.parametrize("part", ["embedded", "embedded/fp8", "embedded/reference"])
def test_link_in_the_place_of_any_folder_is_told(store: Store, tmp_path: Path, part: str) -> None:
    """A model's, a recipe's or the reference's folder that is a link is refused by path, for
    reading and writing.
    """
    store.write(record(task_record()), "test")
    (store.root / part).rename(tmp_path / "elsewhere")
    (store.root / part).symlink_to(tmp_path / "elsewhere")

    expected = (
        f"{store.root / part}: a link may lead out of the folder of baselines. Put a real folder "
        f"in its place"
    )
    for call in (
        lambda: store.find("embedded", "fp8", XEON),
        lambda: store.write(record(), "again"),
        lambda: store.orphans([("embedded", "fp8")]),
    ):
        assert said(call) == expected
