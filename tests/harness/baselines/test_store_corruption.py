"""Records and outcomes that were edited, cut or moved: refused with the reason, never believed."""

from __future__ import annotations

import json
import re

import pytest
from made_records import (
    XEON,
    outcomes,
    record,
    record_path,
    snapshot,
    stored,
    task_record,
)

from harness.baselines import Store
from harness.errors import UsageError

# -- corruption


@pytest.mark.parametrize(
    ("pattern", "by", "said"),
    [
        (
            r'"lost": 30',
            '"lost": 3',
            "tasks.cifar100.acc1.lost says 3, the outcomes next to it say 30",
        ),
        (r'"right": (\d+)', '"right": 999', "right says 999"),
        (r'"kl_mean": [\d.]+', '"kl_mean": 0.001', "edited by hand"),
        (r'"budget": 3.0', '"budget": 9.0', "edited by hand"),
        (r'"decision": "PASS"', '"decision": "FAIL"', "edited by hand"),
        (r'"high": 3.25', '"high": 4.25', "edited by hand"),
        (r'"torch": "2.13.0"', '"torch": "2.14.0"', "edited by hand"),
        (r'"count": 1000', '"count": 999', "shape"),
        (r'"count": 1000', '"count": -1', "count"),
        (r'"schema": 1', '"schema": 2', "schema 2, this harness reads schema 1"),
        (r'"size": 512', '"size": NaN', "NaN is not a number"),
        (r'"size": 512', '"size": "512"', "calibration.size"),
        (r'"size": 512', '"size": 512, "size": 512', "a key appears twice"),
        (r'"size": 512', '"size": 512, "more": 1', "calibration.more"),
        (r'"size": 512', '"size": ' + "9" * 5000, "not JSON"),
        (r'"decision": "PASS"', '"decision": "OK"', "decision"),
        (r'"facts": {', '"facts": {"x": ' + "[" * 100_000 + ",", "not JSON|line"),
    ],
)
def test_edited_record_is_refused_with_its_reason(
    store: Store, pattern: str, by: str, said: str
) -> None:
    """Any number or word changed by hand is found and reported with the file, the place and the
    fix.
    """
    path = record_path(store)
    text, count = re.subn(pattern, by.replace("\\", r"\\"), path.read_text(), count=1)
    assert count == 1
    path.write_text(text)

    with pytest.raises(UsageError, match=said) as caught:
        store.find("embedded", "fp8", XEON)

    assert str(path) in str(caught.value)
    assert f"git checkout -- {path}" in str(caught.value)
    assert "--new-baselines-only" in str(caught.value)


def test_reformatted_record_is_still_the_same(store: Store) -> None:
    """White space and line ends are not numbers: a formatter, or git on Windows, does no harm."""
    path = record_path(store)
    content = json.loads(path.read_text())
    path.write_bytes(json.dumps(content, indent=4).replace("\n", "\r\n").encode())

    assert stored(store).task("cifar100", "acc1") is not None


def test_reordered_quantizers_are_an_edit(store: Store) -> None:
    """The order of the quantizers is part of the record."""
    path = record_path(store)
    content = json.loads(path.read_text())
    content["quantizers"] = dict(reversed(content["quantizers"].items()))
    path.write_text(json.dumps(content))

    with pytest.raises(UsageError, match="edited by hand"):
        store.find("embedded", "fp8", XEON)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_files_are_refused(store: Store, share: float) -> None:
    """A record, or outcomes, cut off anywhere is a usage error that names the file and never
    another exception.
    """
    path = record_path(store)
    before = snapshot(store.root)
    for name, whole in before.items():
        file = store.root / name
        file.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(UsageError) as caught:
            store.find("embedded", "fp8", XEON)
        assert str(path) in str(caught.value)
        file.write_bytes(whole)
    assert stored(store)


def test_flipped_bit_in_outcomes_is_refused(store: Store) -> None:
    """One bit of one sample changed in the outcomes is found."""
    record_path(store)
    for file in store.root.rglob("*.safetensors"):
        whole = bytearray(file.read_bytes())
        whole[-1] ^= 1
        file.write_bytes(whole)
        with pytest.raises(UsageError, match="truncated or edited"):
            store.find("embedded", "fp8", XEON)
        whole[-1] ^= 1
        file.write_bytes(whole)


def test_outcomes_taken_away_are_named(store: Store) -> None:
    """Missing outcomes are reported by their path."""
    record_path(store)
    file = next((store.root / "embedded" / "reference").iterdir())
    file.unlink()

    with pytest.raises(UsageError, match=re.escape(str(file))):
        store.find("embedded", "fp8", XEON)


def test_oversized_record_is_not_read(store: Store) -> None:
    """A file far larger than any record is refused by its size, not read into memory."""
    path = record_path(store)
    with path.open("wb") as file:
        file.truncate(33 << 20)

    with pytest.raises(UsageError, match="the limit is"):
        store.find("embedded", "fp8", XEON)


def test_copied_record_belongs_to_another(store: Store) -> None:
    """A record copied to another recipe's folder, or another device's name, is reported whose it is."""
    path = record_path(store)
    copy = store.root / "embedded" / "int8" / path.name
    copy.parent.mkdir()
    for file in path.parent.iterdir():
        (copy.parent / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UsageError, match="this baseline belongs to recipe fp8 on model embedded"):
        store.find("embedded", "int8", XEON)

    path.rename(path.with_name("record@sm90@nvidia-h200.json"))
    with pytest.raises(UsageError, match=r"this baseline belongs to .*xeon-8488c"):
        store.find("embedded", "fp8", XEON)


def test_corrupt_record_is_not_overwritten(store: Store) -> None:
    """An update that meets a corrupt record stops and leaves every file as it is."""
    path = record_path(store)
    path.write_text(path.read_text()[:-50])
    before = snapshot(store.root)

    with pytest.raises(UsageError, match="cannot be used"):
        store.update(record(task_record(outcomes(7))), reason="new")

    assert snapshot(store.root) == before


def test_loading_runs_no_code(store: Store) -> None:
    """A pickle in the place of a record or of outcomes is refused, and nothing in it runs."""
    path = record_path(store)
    mark = store.root / "ran"
    pickled = f"cos\nsystem\n(S'touch {mark}'\ntR.".encode()
    for file in (path, next(path.parent.glob("*.safetensors"))):
        whole = file.read_bytes()
        file.write_bytes(pickled)
        with pytest.raises(UsageError):
            store.find("embedded", "fp8", XEON)
        file.write_bytes(whole)
    assert not mark.exists()


# -- device keys and versions


def test_file_that_is_no_record_is_told(store: Store) -> None:
    """A record under a name that names no device is not passed over in silence."""
    path = record_path(store)
    path.rename(path.with_name("record.json"))

    with pytest.raises(UsageError, match="rename it"):
        store.find("embedded", "fp8", XEON)
