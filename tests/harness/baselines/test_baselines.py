"""The store of baselines: what it binds, how it compares, and that nothing is lost or silently believed."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import (
    GPU,
    LAPTOP,
    MAP,
    OTHER_XEON,
    XEON,
    Made,
    other_order,
    outcomes,
    quantizer,
    record,
    snapshot,
    speeds,
    stored,
    task_record,
    with_changes,
)
from numpy.typing import NDArray
from scipy.stats import binomtest

from harness import baselines
from harness.baselines import Kind, Limits, Missing, Record, SampleOutcomes, Store, compare
from harness.digests import ids_digest, set_digest
from harness.errors import UsageError
from harness.evaluation.environment import DeviceKey, Nearness
from harness.recipes.names import folder_name

HERE = Path(__file__)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "baselines")


# -- what is kept


def test_record_comes_back_as_it_was(store: Store) -> None:
    """What is found again equals what was written, sample by sample and number by number."""
    fresh = record(task_record(), task_record(outcomes(5, 333, "mscoco", "text_retrieval_recall@5", 40_000)))

    found = stored(store, fresh)

    assert found.provenance == fresh.provenance
    assert found.quantizers == fresh.quantizers
    assert found.throughput == fresh.throughput
    assert found.reason == "test"
    assert [t.name for t in found.tasks] == ["cifar100 acc1", "mscoco text_retrieval_recall@5"]
    for was, now in zip(fresh.tasks, found.tasks, strict=True):
        for side in ("reference", "quantized"):
            a, b = getattr(was, side), getattr(now, side)
            assert np.array_equal(a.correct, b.correct)
            assert np.array_equal(a.answers, b.answers)
            assert np.array_equal(a.margins, b.margins)
            assert a.bits == b.bits
        assert (was.decision, was.interval, was.budget, was.beyond) == (
            now.decision,
            now.interval,
            now.budget,
            now.beyond,
        )
        assert (was.lost, was.won, was.changed, was.difference) == (now.lost, now.won, now.changed, now.difference)


def test_derived_numbers_follow_from_the_outcomes() -> None:
    """Lost, won, changed, difference and percentages are those of the samples."""
    made = task_record(outcomes(), with_changes(outcomes(), lose=30, win=20))

    assert (made.lost, made.won, made.changed, made.count) == (30, 20, 50, 1000)
    assert made.difference == pytest.approx(-1.0)
    assert made.percent_quantized == pytest.approx(made.percent_reference - 1.0)


def test_record_is_text_to_review(store: Store) -> None:
    """Keys are sorted, every quantizer has one line, in the order of the model."""
    quantizers = tuple(quantizer(layer) for layer in (2, 10, 1))
    path = store.write(record(task_record(), quantizers=quantizers), "first").path
    lines = path.read_text().splitlines()

    top = [match[1] for line in lines if (match := re.match(r' "(\w+)":', line))]
    assert top == sorted(top)
    rows = [line for line in lines if "q_bmm_quantizer" in line]
    assert [re.findall(r"layers\.(\d+)", row) for row in rows] == [["2"], ["10"], ["1"]]


def test_margins_beyond_float16_are_clipped_and_nan_is_refused() -> None:
    """A huge margin is kept as float16's largest, without a warning; NaN cannot become a baseline."""
    made = outcomes(n=3)

    kept = SampleOutcomes.of(replace(made, margins=np.array([1e9, -1e9, np.inf], np.float32)))

    assert kept.margins.tolist() == [65504.0, -65504.0, 65504.0]
    with pytest.raises(ValueError, match="1 margins are NaN"):
        SampleOutcomes.of(replace(made, margins=np.array([0, np.nan, 1], np.float32)))


@given(st.integers(1, 70), st.integers(2, 70_000), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_outcomes_survive_packing(tmp_path_factory: pytest.TempPathFactory, n: int, classes: int, seed: int) -> None:
    """Any count of samples and of classes, within int16 or beyond, survives the way through bits and back."""
    made = task_record(outcomes(seed, n, classes=classes))
    made = replace(made, quantized=replace(made.quantized, answers=made.quantized.answers * (classes - 1)))
    store = Store(tmp_path_factory.mktemp("packing"))

    found = stored(store, record(made)).tasks[0]

    assert np.array_equal(found.quantized.correct, made.quantized.correct)
    assert np.array_equal(found.quantized.answers, made.quantized.answers)
    assert np.array_equal(found.reference.margins, made.reference.margins)


def test_pair_of_different_samples_is_refused() -> None:
    """Reference and quantized outcomes of other samples are no pair."""
    with pytest.raises(ValueError, match="not a pair"):
        task_record(outcomes(), replace(outcomes(), sample_ids=outcomes().sample_ids[::-1]))


def test_what_could_not_be_read_again_is_not_written(store: Store) -> None:
    """A decision that is none, or an amax that is not finite, is refused before anything reaches the disk."""
    nan = quantizer(amax={"count": 1, "low": float("nan"), "high": 1.0, "digest": "0"})
    for bad in (record(task_record(decision="MAYBE")), record(quantizers=(nan,)), record(quantizers=(MAP[0], MAP[0]))):
        with pytest.raises(UsageError, match="cannot be stored"):
            store.write(bad, "bad")
    assert snapshot(store.root) == {}


# -- finding


def test_nearest_record_is_found_and_named(store: Store) -> None:
    """The very device's record comes first, then one of its architecture, then any; the message names it."""
    for device in (GPU, LAPTOP, OTHER_XEON, XEON):
        store.write(record(task_record(), device=device), "test")

    for wanted, expected, near in (
        (XEON, XEON, Nearness.EXACT),
        (DeviceKey("xeon-new", "x86_64-avx512"), OTHER_XEON, Nearness.ARCHITECTURE),
        (DeviceKey("pentium", "x86_64"), LAPTOP, Nearness.ANY),
        (DeviceKey("nvidia-a100", "sm80"), GPU, Nearness.ANY),
    ):
        found = stored(store, device=wanted)
        if near is Nearness.ARCHITECTURE:
            assert found.provenance.device in (XEON, OTHER_XEON)
        elif wanted.architecture == "x86_64":
            assert found.provenance.device.architecture.startswith("x86_64")
        else:
            assert found.provenance.device == expected
        drift = compare(found, record(task_record(), device=wanted))
        assert near.value in drift.against
        assert str(found.provenance.device) in drift.against


def test_newest_of_equally_near_records_is_used(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two records of one architecture, the one measured last is nearest, whatever the names."""
    store.write(record(task_record(), device=DeviceKey("zzz", "x86_64-avx512")), "old")
    time.sleep(1.1)
    store.write(record(task_record(), device=DeviceKey("aaa", "x86_64-avx512")), "new")

    assert stored(store, device=XEON).provenance.device.exact == "aaa"


def test_missing_baseline_names_the_command_that_makes_it(store: Store) -> None:
    """Where there is no record, the message names the folder and a complete command."""
    missing = store.find("embedded", "my fp8", XEON)

    assert isinstance(missing, Missing)
    message = missing.message("tests/test_accuracy.py::test_it[my fp8-embedded]", ("--recipe", "my fp8.yaml"))
    assert str(store.root / "embedded") in message
    accept = shlex.split(message.splitlines()[-1].removeprefix("  accept: "))
    assert accept == ["pytest", "--recipe", "my fp8.yaml", "--clip-model", "embedded", "--new-baselines-only"]
    assert "rerun:  pytest 'tests/test_accuracy.py::test_it[my fp8-embedded]' --recipe 'my fp8.yaml'" in message


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "..",
        "../x",
        "a/../../x",
        "/etc",
        "\\\\server\\x",
        "C:\\x",
        "a\nb",
        "a\0b",
        "a//b",
        "./a",
        "a/.",
        "\x1b[2J",
    ],
)
def test_names_cannot_leave_the_root(store: Store, name: str) -> None:
    """A model or recipe whose name leads elsewhere or holds control characters is a usage error, and writes nothing."""
    for fresh in (record(task_record(), model=name), record(task_record(), recipe=name)):
        with pytest.raises(UsageError) as caught:
            store.write(fresh, "test")
        assert "\n" not in str(caught.value)
    assert snapshot(store.root) == {}


@given(st.text(min_size=1, max_size=150))
@settings(deadline=None)
def test_every_folder_lies_directly_under_its_parent(name: str) -> None:
    """Whatever the name, its folder is one plain component, or the name is refused."""
    try:
        folder = folder_name(name, "recipe")
    except UsageError:
        return

    assert re.fullmatch(r"[A-Za-z0-9_-]?[A-Za-z0-9._-]*", folder)
    assert folder not in ("", ".", "..", "reference")
    assert len(folder) <= 110


def test_names_that_read_alike_do_not_share_a_folder() -> None:
    """Names that differ only in characters a folder cannot have get different folders; plain ones stay as they are."""
    assert folder_name("fp8-per-channel", "recipe") == "fp8-per-channel"
    assert folder_name("laion/CLIP-ViT-L-14", "model") == "laion--CLIP-ViT-L-14"
    assert len({folder_name(name, "recipe") for name in ("m:a", "m a", "m-a", "m?a", ".m-a")}) == 5


def test_reference_is_no_name_for_a_recipe(store: Store) -> None:
    """The folder of the reference's outcomes cannot be taken by a recipe."""
    with pytest.raises(UsageError, match="keep this name"):
        store.find("embedded", "Reference", XEON)


@pytest.mark.skipif(os.name != "posix", reason="symbolic links")
def test_links_out_of_the_root_are_refused(store: Store, tmp_path: Path) -> None:
    """A folder or a record that is a link is neither followed when reading nor when writing."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (store.root / "embedded").mkdir(parents=True)
    (store.root / "embedded" / "fp8").symlink_to(outside)
    with pytest.raises(UsageError, match="link"):
        store.write(record(task_record()), "test")
    assert list(outside.iterdir()) == []

    (store.root / "embedded" / "fp8").unlink()
    path = store.write(record(task_record()), "test").path
    path.rename(outside / "record.json")
    path.symlink_to(outside / "record.json")
    with pytest.raises(UsageError, match="not a regular file"):
        store.find("embedded", "fp8", XEON)


# -- corruption


def record_path(store: Store) -> Path:
    """A record in the store, written."""
    return store.write(record(task_record()), "test").path


@pytest.mark.parametrize(
    ("pattern", "by", "said"),
    [
        (r'"lost": 30', '"lost": 3', "tasks.cifar100.acc1.lost says 3, the outcomes beside it say 30"),
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
def test_edited_record_is_refused_with_its_reason(store: Store, pattern: str, by: str, said: str) -> None:
    """Any number or word changed by hand is found and told with the file, the place and the mend."""
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
    """A record, or outcomes, cut off anywhere is a usage error that names the file and never another exception."""
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
    """Missing outcomes are told by their path."""
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
    """A record copied to another recipe's folder, or another device's name, is told whose it is."""
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


# -- binding


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model_revision": "f" * 64}, "model revision aaaaaaaaaaaa; this run has ffffffffffff"),
        ({"recipe_hash": "f" * 64}, "recipe hash bbbbbbbbbbbb; this run has ffffffffffff"),
        ({"calibration_hash": "f" * 64}, "calibration data cccccccccccc; this run has ffffffffffff"),
        ({"calibration_size": 8192}, "calibration size 512 pairs; this run has 8,192 pairs"),
        ({"attention": "modelopt"}, "attention class diffusers; this run has modelopt"),
        (
            {"versions": {"nvidia-modelopt": "0.47.0", "torch": "2.14.0", "transformers": "5.14.1"}},
            "torch 2.13.0; this run has 2.14.0",
        ),
        (
            {"versions": {"torch": "2.13.0", "transformers": "5.14.1"}},
            "nvidia-modelopt 0.47.0; this run has not recorded",
        ),
    ],
)
def test_other_binding_is_an_error_and_no_comparison(store: Store, changed: dict[str, Any], said: str) -> None:
    """A record of something else is told apart by name, with the command that measures anew, and never compared."""
    # Outcomes far apart: nothing of them may show.
    drift = compare(stored(store, record(task_record())), record(task_record(outcomes(9), decision="FAIL"), **changed))

    message = drift.message("tests/test_accuracy.py::test_it[fp8-embedded]")
    assert drift.kind is Kind.MISMATCH
    assert drift.failed
    assert f"this baseline belongs to {said}" in message
    assert "answers" not in message
    assert "PASS" not in message
    assert message.endswith("accept: pytest --recipe fp8 --clip-model embedded --update-baselines --reason 'say why'")


@pytest.mark.parametrize(
    ("fresh", "said"),
    [
        (lambda: task_record(outcomes(n=900)), "cifar100 acc1 with 1,000 samples; this run has 900"),
        (lambda: task_record(other_order()), "in another order of the samples"),
        (lambda: task_record(replace(outcomes(), sample_ids=tuple(map(str, range(1000))))), "with the sample ids"),
        (lambda: task_record(data_hash="0" * 64), "with the data hash dddddddddddd; this run has 000000000000"),
        (lambda: task_record(preprocessing="0" * 64), "preprocessed by eeeeeeeeeeee; this run has 000000000000"),
    ],
    ids=["size", "order", "ids", "data", "preprocessing"],
)
def test_other_samples_are_an_error_and_no_comparison(store: Store, fresh: Any, said: str) -> None:
    """Another sample size, order, id, data hash or preprocessing is told as what the baseline belongs to."""
    drift = compare(stored(store, record(task_record())), record(fresh()))

    assert drift.kind is Kind.MISMATCH
    assert said in drift.message()


def test_other_release_tells_both_ways_out(store: Store) -> None:
    """A new release of torch is an error that names how to measure anew and how to go back."""
    newer = {"nvidia-modelopt": "0.48.0", "torch": "2.14.0", "transformers": "5.14.1"}

    message = compare(stored(store, record(task_record())), record(task_record(), versions=newer)).message()

    assert "pip install nvidia-modelopt==0.47.0 torch==2.13.0" in message
    assert "what the upgrade moved" in message


def test_other_release_on_another_device_adds_a_record(store: Store) -> None:
    """Where the mismatching record is another device's, the command adds one and replaces none."""
    newer = {"nvidia-modelopt": "0.48.0", "torch": "2.13.0", "transformers": "5.14.1"}

    drift = compare(stored(store, record(task_record())), record(task_record(), versions=newer, device=GPU))

    assert drift.kind is Kind.MISMATCH
    assert drift.message().endswith("--new-baselines-only")


@pytest.mark.parametrize("device", [XEON, GPU], ids=["same-device", "other-device"])
def test_other_map_is_an_error_that_says_what_changed(store: Store, device: DeviceKey) -> None:
    """A map of another structure is a mismatch on every device, told in grouped lines."""
    off = tuple(quantizer(layer, enabled=layer >= 8) for layer in range(12))

    drift = compare(stored(store, record(task_record())), record(task_record(), quantizers=off, device=device))

    assert drift.kind is Kind.MISMATCH
    assert "another quantizer map" in drift.message()
    assert "8 quantizers change: vision self_attn q_bmm E4M3 per-tensor to off, layers 0..7" in drift.message()


@pytest.mark.parametrize("changed", [{"module_kind": "linear"}, {"tower": "text"}, {"new_attribute": 1}])
def test_any_attribute_of_the_map_binds(store: Store, changed: dict[str, Any]) -> None:
    """A change that the grouped diff does not show, or an attribute it does not know, is a mismatch all the same."""
    drift = compare(stored(store, record()), record(quantizers=(quantizer(0, **changed), *MAP[1:])))

    assert drift.kind is Kind.MISMATCH
    assert next(iter(changed)) in drift.message()


def test_rows_of_the_map_are_the_quantizers_own() -> None:
    """The rows these tests use have the attributes of the real map, but for those left out where they are false."""
    from harness.quantization.maps import Amax, Quantizer

    assert {f.name for f in fields(Quantizer)} - {"constant"} == set(quantizer())
    assert {f.name for f in fields(Amax)} - {"empty"} == set(quantizer()["amax"])


def test_sample_digests_tell_order_from_set() -> None:
    """One digest changes with the order, the other does not, and joined ids are not mistaken for split ones."""
    assert ids_digest(["a", "b"]) != ids_digest(["b", "a"])
    assert set_digest(["a", "b"]) == set_digest(["b", "a"])
    assert ids_digest(["ab", "c"]) != ids_digest(["a", "bc"])


# -- drift


def test_equal_bits_are_nothing(store: Store) -> None:
    """The same bits on the same device: nothing moved, compared by bits."""
    drift = compare(stored(store, record(task_record())), record(task_record()))

    assert (drift.kind, drift.by, drift.failed) == (Kind.NOTHING, "bits", False)


def test_smallest_step_of_a_margin_shows_on_the_same_device(store: Store) -> None:
    """A float32 margin one unit in the last place off, invisible in the stored float16, is found by bits."""
    made = outcomes()
    quantized = with_changes(made, 30, 20)
    margins = quantized.margins.copy()
    margins[0] = np.nextafter(margins[0], np.float32(np.inf))

    drift = compare(
        stored(store, record(task_record())), record(task_record(made, replace(quantized, margins=margins)))
    )

    assert drift.kind is Kind.QUANTIZED
    assert "0 of 1,000 answers changed" in drift.message()
    assert "float16" in drift.message()


def test_moved_reference_is_told_with_its_suspects(store: Store) -> None:
    """If the reference's own bits moved, a dependency is at fault, and unbound packages that changed are named."""
    moved = with_changes(outcomes(), lose=2)
    fresh = record(task_record(moved), facts={"pillow": "13.0.0", "numpy": "2.4.6"})

    drift = compare(stored(store, record(task_record())), fresh)

    assert drift.kind is Kind.REFERENCE
    assert "cifar100 acc1, reference: 2 of 1,000 answers changed, 2 lost, 0 won" in drift.message()
    assert "pillow 12.0.0 to 13.0.0" in drift.message()
    assert "numpy" not in drift.message()


def test_moved_quantized_model_is_told_apart(store: Store) -> None:
    """If only the quantized model moved, the recipe's execution is at fault, not a dependency of the reference."""
    fresh = record(task_record(quantized=with_changes(outcomes(), 33, 20)))

    drift = compare(stored(store, record(task_record())), fresh)

    assert drift.kind is Kind.QUANTIZED
    assert "the reference did not move" in drift.message()


def test_moved_range_shows_by_bits_and_within_tolerance_elsewhere(store: Store) -> None:
    """Another amax is drift on the same device; on another one only beyond the tolerance."""
    was = stored(store, record(task_record()))

    def fresh(amax: float, **changed: Any) -> Record:
        moved = quantizer(3, amax={"count": 1, "low": amax, "high": amax, "digest": "0" * 16})
        return record(task_record(), quantizers=(*MAP[:3], moved, *MAP[4:]), **changed)

    assert compare(was, fresh(3.251)).kind is Kind.QUANTIZED
    assert compare(was, fresh(3.251, device=OTHER_XEON)).kind is Kind.NOISE
    far = compare(was, fresh(6.5, device=OTHER_XEON))
    assert far.kind is Kind.QUANTIZED
    assert "amax 3.25 to 6.5, layers 3" in far.message()


@pytest.mark.parametrize(
    "changed",
    [{"device": OTHER_XEON}, {"device": GPU}, {"bits": "torch 2.13.0+cpu, batch 64, 4 threads"}, {"bits": None}],
    ids=["same-architecture", "gpu", "threads", "not-deterministic"],
)
def test_other_device_or_conditions_compare_by_verdict(store: Store, changed: dict[str, Any]) -> None:
    """A few changed answers are noise where bits cannot be expected to agree, and drift where they can."""
    was = stored(store, record(task_record()))
    reference = with_changes(outcomes(), 2, 1, nudge=0.01)
    fresh = task_record(reference, with_changes(outcomes(), 33, 21, nudge=0.01))

    drift = compare(was, record(fresh, **changed))

    assert (drift.kind, drift.by, drift.failed) == (Kind.NOISE, "verdict", False)
    assert compare(was, record(fresh)).kind is Kind.REFERENCE


def test_platform_without_determinism_never_compares_bits(store: Store) -> None:
    """Where neither run promises bits, the same device is compared by verdict."""
    was = stored(store, record(task_record(), bits=None))

    assert compare(was, record(task_record(quantized=with_changes(outcomes(), 31, 20)), bits=None)).kind is Kind.NOISE


@pytest.mark.parametrize(
    ("fresh", "kind", "said"),
    [
        (lambda: task_record(quantized=with_changes(outcomes(), 60, 20)), Kind.QUANTIZED, "more than noise"),
        (
            lambda: task_record(quantized=with_changes(outcomes(), 110, 100)),
            Kind.QUANTIZED,
            "noise would be at most 110",
        ),
        (lambda: task_record(with_changes(outcomes(), 30)), Kind.REFERENCE, "more than noise"),
        (lambda: task_record(with_changes(outcomes(), 20, 20)), Kind.REFERENCE, "noise would be at most 25"),
        (
            lambda: task_record(quantized=with_changes(outcomes(), 31, 20), decision="FAIL"),
            Kind.QUANTIZED,
            "was PASS and is FAIL",
        ),
    ],
    ids=["loss", "churn", "reference-loss", "reference-churn", "verdict"],
)
def test_more_than_noise_on_another_device_is_drift(store: Store, fresh: Any, kind: Kind, said: str) -> None:
    """A significant loss, more churn than quantization's own, or another verdict is drift on any device."""
    drift = compare(stored(store, record(task_record())), record(fresh(), device=OTHER_XEON))

    assert drift.kind is kind
    assert said in drift.message()


def test_another_verdict_under_another_budget_is_only_noted(store: Store) -> None:
    """Budgets are policy: a verdict that changed with its budget is told, and is no drift of the model."""
    drift = compare(
        stored(store, record(task_record())),
        record(task_record(budget=0.5, decision="INCONCLUSIVE"), device=OTHER_XEON),
    )

    assert not drift.failed
    assert "the budget went from 3 to 0.5 points" in drift.message()


def test_captions_of_one_picture_count_once() -> None:
    """Eight captions lost together are one event where the picture is the unit, and eight where each caption is."""
    was = SampleOutcomes.of(replace(outcomes(n=80), correct=np.ones(80, np.bool_)))
    now = replace(was, correct=np.arange(80) >= 8)
    pictures = np.arange(80, dtype=np.int32) // 8

    assert baselines.drift.sign_test(was, now) == pytest.approx(2 * 0.5**8)
    assert baselines.drift.sign_test(was, now, pictures) == 1.0


def test_sign_test_is_mcnemar_for_single_samples() -> None:
    """Against statsmodels' exact McNemar, over several tables."""
    from statsmodels.stats.contingency_tables import mcnemar

    for lose, win in ((0, 0), (1, 0), (9, 2), (30, 31)):
        was, now = outcomes(), with_changes(outcomes(), lose, win)
        expected = 1.0 if lose + win == 0 else float(mcnemar([[0, lose], [win, 0]], exact=True).pvalue)
        assert baselines.drift.sign_test(SampleOutcomes.of(was), SampleOutcomes.of(now)) == pytest.approx(expected)


def test_limit_of_a_redraw_is_the_exact_test_of_two_rates() -> None:
    """The limit is the last count that the conditional binomial test of two Poisson rates does not reject."""
    share = 2**0.5 / (1 + 2**0.5)
    for changed, alpha in ((0, 0.01), (7, 0.00125), (50, 0.005), (146, 0.00125)):
        limit = baselines.drift.redrawn(changed, alpha)
        p = [binomtest(k, k + changed, share, alternative="greater").pvalue for k in (limit, limit + 1)]
        assert p[0] > alpha >= p[1]


@pytest.mark.parametrize(("size", "drifts"), [(1.0, False), (3.0, True)], ids=["same-noise", "threefold-noise"])
def test_noise_drawn_anew_is_no_drift(size: float, drifts: bool) -> None:
    """Two models whose scores err independently by the same amount agree; where the error grew they do not."""
    rng = np.random.default_rng(5)
    targets = np.arange(1000, dtype=np.int32) % 10
    scores = rng.normal(size=(1000, 10)) + 3.0 * np.eye(10)[targets]
    found = 0
    for _ in range(40):
        was, now = (
            task_record(as_scored(scores, targets), as_scored(scores + noise * rng.normal(size=scores.shape), targets))
            for noise in (0.15, 0.15 * size)
        )
        found += compare(record(was, bits=None), record(now, bits=None)).failed

    assert found == 40 if drifts else found <= 2


def as_scored(scores: NDArray[np.float64], targets: NDArray[np.int32]) -> Made:
    """The outcomes of a model that gives these *scores*."""
    answers = scores.argmax(1).astype(np.int32)
    return replace(outcomes(n=len(targets)), correct=answers == targets, answers=answers)


def test_noise_is_rarely_called_drift() -> None:
    """Over seeded draws of balanced small changes, false drift stays at or under its error rate."""
    limits = Limits(alpha=0.05)
    rng = np.random.default_rng(3)
    base = outcomes()
    was = record(task_record())
    false = 0
    draws = 300
    for _ in range(draws):
        lose = int(rng.binomial(16, 0.5))
        drift = compare(
            was,
            record(task_record(quantized=with_changes(with_changes(base, 30, 20), lose, 16 - lose)), bits=None),
            limits,
        )
        false += drift.failed

    assert false <= draws * 0.05 + 3 * (draws * 0.05 * 0.95) ** 0.5


def test_task_without_baseline_is_missing_and_others_are_compared(store: Store) -> None:
    """A task that the record lacks is named with the command that adds it; the others are judged."""
    was = stored(store, record(task_record()))
    new = task_record(outcomes(task="imagenet1k"))

    drift = compare(was, record(task_record(), new))

    assert drift.kind is Kind.MISSING
    assert drift.failed
    assert "no baseline for imagenet1k acc1" in drift.message()
    assert drift.message().endswith("--new-baselines-only")
    moved = compare(was, record(task_record(quantized=with_changes(outcomes(), 40, 20)), new))
    assert moved.kind is Kind.QUANTIZED
    assert moved.missing == ("imagenet1k acc1",)


def test_task_not_run_is_left_out(store: Store) -> None:
    """A run of one task is compared on that task alone, and a run of the map on the map alone."""
    was = stored(store, record(task_record(), task_record(outcomes(4, task="imagenet1k"))))
    moved = task_record(outcomes(4, task="imagenet1k"), with_changes(outcomes(4, task="imagenet1k"), 99))

    assert compare(was.only("cifar100"), record(task_record(), moved).only("cifar100", "acc1")).kind is Kind.NOTHING
    assert compare(was, record()).kind is Kind.NOTHING
    assert compare(replace(was, tasks=()), record()).kind is Kind.NOTHING


def test_slower_forward_is_noted_on_the_same_device_only(store: Store) -> None:
    """A speed ratio whose interval has nothing in common with the stored one is a note; on another device it says
    nothing.
    """
    was = stored(store, record(task_record()))
    slow = replace(record(task_record()), throughput=speeds(vision=0.08, text=0.205))

    drift = compare(was, slow)
    assert drift.kind is Kind.NOTHING
    note = "throughput, vision: 0.17 [0.166, 0.174] of the reference's then, 0.08 [0.078, 0.082] now: slower"
    assert note in drift.message()
    assert "text" not in drift.message()
    elsewhere = replace(record(task_record(), device=GPU), throughput=speeds(vision=0.08))
    assert "throughput" not in compare(was, elsewhere).message()


# -- updating


@pytest.mark.parametrize("reason", [None, "", "  ", "\n\t", baselines.PLACEHOLDER])
def test_update_without_a_reason_is_refused(store: Store, reason: str | None) -> None:
    """No reason, or the placeholder that messages show, writes nothing."""
    with pytest.raises(UsageError, match="needs a reason"):
        store.update(record(task_record()), reason=reason)
    assert not store.root.exists()


def test_update_shows_the_diff_before_it_writes(store: Store) -> None:
    """The diff comes while the old record is still there, and whoever raises on it stops the writing."""
    path = record_path(store)
    before = path.read_bytes()

    def refuse(text: str) -> None:
        assert path.read_bytes() == before
        assert "difference -1.00 to -3.00 points" in text
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.update(record(task_record(quantized=with_changes(outcomes(), 50, 20))), reason="x", show=refuse)
    assert path.read_bytes() == before


def test_diff_tells_loosened_from_tightened(store: Store) -> None:
    """What lets more pass from now on stands apart from what lets less, number by number."""
    was = record(
        task_record(beyond={"kl_mean": 0.01, "cosine_min": 0.9, "top5_agreement": 0.8}),
        task_record(outcomes(4, task="imagenet1k"), decision="FAIL"),
    )
    store.write(was, "first")
    now = record(
        task_record(
            quantized=with_changes(outcomes(), 60, 20),
            beyond={"kl_mean": 0.02, "cosine_min": 0.95, "top5_agreement": 0.7},
            decision="INCONCLUSIVE",
        ),
        task_record(outcomes(4, task="imagenet1k"), with_changes(outcomes(4, task="imagenet1k"), 10, 20)),
    )

    found = store.plan(now, reason="recipe")

    loosened, tightened = "\n".join(found.changes.loosened), "\n".join(found.changes.tightened)
    for line in (
        "difference -1.00 to -4.00",
        "verdict PASS to INCONCLUSIVE",
        "kl_mean 0.01 to 0.02",
        "top5_agreement 0.8 to 0.7",
    ):
        assert line in loosened
        assert line not in tightened
    for line in ("difference -1.00 to +1.00", "verdict FAIL to PASS", "cosine_min 0.9 to 0.95"):
        assert line in tightened
        assert line not in loosened
    assert found.text.index("loosened") < found.text.index("tightened")


def test_upgrade_shows_what_moved(store: Store) -> None:
    """The diff of an upgrade sets old and new numbers side by side, reference and quantized model apart."""
    store.write(record(task_record()), "first")
    newer = {"nvidia-modelopt": "0.47.0", "torch": "2.14.0", "transformers": "5.14.1"}
    moved = record(task_record(with_changes(outcomes(), 5), with_changes(outcomes(), 35, 20)), versions=newer)

    text = store.update(moved, reason="torch 2.14").text

    assert "torch 2.13.0 to 2.14.0" in text
    assert re.search(r"reference \d+\.\d+ % to \d+\.\d+ % \(5 of 1,000 answers changed, 5 lost, 0 won", text)
    assert re.search(r"quantized \d+\.\d+ % to \d+\.\d+ % \(5 of 1,000 answers changed, 5 lost, 0 won", text)


def test_history_is_kept(store: Store) -> None:
    """Every acceptance stays in the record: day, reason and what it changed."""
    store.write(record(task_record()), "first light")
    store.write(record(task_record(quantized=with_changes(outcomes(), 40, 20))), "per-channel\n\x1b[31mweights")

    history = stored(store).history

    assert [h.reason for h in history] == ["first light", "per-channel [31mweights"]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", h.date) for h in history)
    assert "loosened: cifar100 acc1: difference -1.00 to -2.00 points" in history[1].changes


def test_unchanged_measurement_writes_nothing(store: Store) -> None:
    """Measured again with the same result, and a speed that differs as timings do, no byte of the store changes."""
    store.write(record(task_record()), "first")
    before = snapshot(store.root)

    change = store.write(replace(record(task_record()), throughput=speeds(vision=0.175, text=0.199)), "again")

    assert change.action == "unchanged"
    assert snapshot(store.root) == before


def test_new_only_adds_and_never_changes(store: Store) -> None:
    """A new task and a new device are added; what is there stays, whatever was measured."""
    store.write(record(task_record()), "first")
    was = stored(store).task("cifar100", "acc1")
    other = task_record(outcomes(4, task="imagenet1k"))

    change = store.update(record(task_record(quantized=with_changes(outcomes(), 90)), other), new_only=True)
    assert change.action == "changed"
    found = stored(store)
    now = found.task("cifar100", "acc1")
    assert was is not None
    assert now is not None
    assert was.quantized.bits == now.quantized.bits
    assert found.task("imagenet1k", "acc1") is not None

    before = snapshot(store.root)
    assert store.update(record(task_record(), recipe_hash="f" * 64), new_only=True).action == "kept"
    assert snapshot(store.root) == before

    assert store.update(record(task_record(), device=GPU), new_only=True).action == "added"
    assert stored(store, device=GPU).reason == "new baseline"
    assert before.items() <= snapshot(store.root).items()


def test_part_of_a_record_keeps_the_rest_of_the_same_foundation(store: Store) -> None:
    """One task measured leaves the others; under another recipe hash they do not belong: they go, and it is told."""
    other = task_record(outcomes(4, task="imagenet1k"))
    store.write(record(task_record(), other), "first")

    store.write(record(task_record(quantized=with_changes(outcomes(), 40, 20))), "one task")
    assert [t.task for t in stored(store).tasks] == ["cifar100", "imagenet1k"]
    store.write(replace(record(), throughput=None), "the map only")
    assert [t.task for t in stored(store).tasks] == ["cifar100", "imagenet1k"]
    assert stored(store).throughput == speeds(vision=0.17, text=0.2)

    change = store.update(record(task_record(), recipe_hash="f" * 64), reason="recipe")
    assert "imagenet1k acc1: taken out, not measured in this run" in "\n".join(change.changes.loosened)
    assert [t.task for t in stored(store).tasks] == ["cifar100"]


def test_case_that_cannot_stand_alone_is_accepted_with_its_recipe(store: Store) -> None:
    """One case is accepted alone where the rest of the record still belongs to it, else with its whole recipe."""
    was = stored(store, record(task_record()))
    moved = task_record(quantized=with_changes(outcomes(), 60, 20))
    nodeid = "tests/test_accuracy.py::test_it[fp8-embedded]"

    alone = compare(was, record(moved)).accept_command(nodeid)
    assert shlex.split(alone)[:2] == ["pytest", nodeid]
    for changed in ({"device": GPU}, {"recipe_hash": "f" * 64}, {"bits": "4 threads"}):
        assert nodeid not in compare(was, record(moved, **changed)).accept_command(nodeid)


def test_records_left_behind_on_other_devices_are_named(store: Store) -> None:
    """An update under a new recipe hash names the other devices' records that still belong to the old one."""
    store.write(record(task_record(), device=GPU), "gpu")

    stale = store.write(record(task_record(), recipe_hash="f" * 64), "recipe").stale

    assert len(stale) == 1
    assert "record@sm90@nvidia-h200.json" in stale[0]
    assert "belongs to recipe hash bbbbbbbbbbbb" in stale[0]
    assert "rm -r -- " in stale[0]
    assert store.write(record(task_record(), recipe_hash="f" * 64, device=GPU), "recipe").stale == ()


def test_outcomes_nobody_names_are_swept(store: Store) -> None:
    """A replaced record takes its old outcomes with it; those of other recipes and devices stay."""
    store.write(record(task_record()), "first")
    store.write(record(task_record(), recipe="int8"), "first")
    store.write(record(task_record(), device=GPU), "first")
    shared = {name for name in snapshot(store.root) if "reference" in name}
    assert len(shared) == 1

    store.write(record(task_record(outcomes(9))), "other outcomes")

    assert shared < {name for name in snapshot(store.root) if "reference" in name}
    for model, recipe, device in (("embedded", "int8", XEON), ("embedded", "fp8", GPU), ("embedded", "fp8", XEON)):
        assert isinstance(store.find(model, recipe, device), Record)
    for recipe, device in (("int8", XEON), ("fp8", GPU)):
        store.write(record(task_record(outcomes(9)), recipe=recipe, device=device), "the same")
    assert len({name for name in snapshot(store.root) if name.endswith(".safetensors")}) == 3


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="rights do not bind root")
def test_unwritable_store_is_a_usage_error(store: Store) -> None:
    """A folder that cannot be written is told in one line."""
    store.root.mkdir()
    store.root.chmod(0o500)
    with pytest.raises(UsageError, match="cannot be written"):
        store.write(record(task_record()), "test")


def test_store_that_is_a_file_is_a_usage_error(store: Store) -> None:
    """A file where the folder should be is told in one line."""
    store.root.write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        store.write(record(task_record()), "test")


# -- orphans and commands


def test_orphans_are_named_with_the_command_that_removes_them(store: Store) -> None:
    """A recipe, a model and a task that no test used are named, each with its command; what was used is not."""
    for changed in ({}, {"recipe": "old"}, {"model": "gone"}, {"device": GPU}):
        store.write(record(task_record(), **changed), "test")
    (store.root / "budgets.yaml").write_text("")

    found = store.orphans([("embedded", "fp8")], {"cifar100"})

    assert {o.path: o.command for o in found} == {
        store.root / "embedded" / "old": f"rm -r -- {store.root / 'embedded' / 'old'}",
        store.root / "gone": f"rm -r -- {store.root / 'gone'}",
    }
    assert all(o.command in str(o) for o in found)
    assert store.orphans([("embedded", "fp8"), ("embedded", "old"), ("gone", "fp8")]) == ()
    tasks = store.orphans([("embedded", "fp8"), ("embedded", "old"), ("gone", "fp8")], {"imagenet1k"})
    assert len(tasks) == 4
    assert "no test used its cifar100" in str(tasks[0])
    assert "--new-baselines-only" in tasks[0].command
    assert Store(store.root / "nowhere").orphans([]) == ()


def test_orphan_command_removes_exactly_the_orphan(store: Store) -> None:
    """The command, run in a git repository as it is printed, leaves a store without orphans."""
    store.write(record(task_record()), "test")
    store.write(record(task_record(), recipe="old one"), "test")

    def git(*words: str) -> None:
        subprocess.run(["git", *words], cwd=store.root.parent, check=True, capture_output=True)

    git("init", "-q")
    git("add", ".")
    git("-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "t")
    (orphan,) = store.orphans([("embedded", "fp8")])
    subprocess.run(orphan.command, shell=True, cwd=store.root.parent, check=True, capture_output=True)

    assert store.orphans([("embedded", "fp8")]) == ()
    assert stored(store)


@pytest.mark.parametrize("tracked", [True, False])
def test_commands_of_refusals_do_what_they_say(tmp_path: Path, tracked: bool) -> None:
    """A copied record, and one edited after it was committed, are gone after the command; the latter is also restored.

    The folder's name has a blank, and git need not know the store.
    """
    store = Store(tmp_path / "my store")
    store.write(record(task_record()), "test")
    (path,) = store.root.rglob("record@*")

    def run(command: str) -> None:
        subprocess.run(command, shell=True, cwd=tmp_path, check=True, capture_output=True)

    def refused(recipe: str) -> str:
        with pytest.raises(UsageError) as caught:
            store.find("embedded", recipe, XEON)
        return str(caught.value)

    if tracked:
        run("git init -q; git add .; git -c user.name=t -c user.email=t@example.org commit -qm t")
    shutil.copytree(path.parent, path.parent.with_name("other"))
    run(refused("other").partition("copied: ")[2].partition("; pytest")[0])
    assert isinstance(store.find("embedded", "other", XEON), Missing)

    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    restore, _, remove = refused("fp8").partition("Bring it back (")[2].partition("), or measure again (")
    if tracked:
        run(restore)
        assert path.read_bytes() == whole
    path.write_bytes(whole[:-100])
    run(remove.partition("; pytest")[0])
    assert isinstance(store.find("embedded", "fp8", XEON), Missing)


def test_commands_survive_a_shell() -> None:
    """Whatever is in a node id or an option, a shell hands pytest exactly these words."""
    nodeid = "tests/test_accuracy.py::test_it[$(touch x); 'fp8' \"q\"-embedded]"
    options = ("--recipe", "my recipe's.yaml", "--clip-model=a b")

    for command, expected in (
        (baselines.rerun_command(nodeid, options), [nodeid, *options]),
        (baselines.accept_command(nodeid, options), [nodeid, *options, "--update-baselines", "--reason", "say why"]),
        (
            baselines.accept_command(None, (), recipe="fp8", model="m", new_only=True),
            ["--recipe", "fp8", "--clip-model", "m", "--new-baselines-only"],
        ),
        (
            baselines.accept_command(None, options, recipe="fp8", model="m"),
            [*options, "--update-baselines", "--reason", "say why"],
        ),
    ):
        echo = f"pytest() {{ printf '%s\\0' \"$@\"; }}; {command}"
        said = subprocess.run(["sh", "-c", echo], check=True, capture_output=True, text=True).stdout
        assert said.split("\0")[:-1] == expected


# -- kills and two writers


def child(code: str, *arguments: str) -> subprocess.Popen[str]:
    """A process of its own that has this module's helpers."""
    path = os.pathsep.join([str(HERE.parent), str(HERE.parents[1]), str(HERE.parents[3])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    program = f"from {HERE.stem} import *\n{code}"
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments], env=environment, stdout=subprocess.PIPE, text=True
    )


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
    """SIGKILL before every single step of a write: the old record or the new is there, whole, and can be replaced."""
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
    """A process killed while it writes records over and over leaves one that reads, and no lock that hangs."""
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

        found = stored(store)
        assert found.reason != "before"
        assert int(found.reason) >= last[-1]

    assert store.write(record(task_record(outcomes(77))), "after").action == "changed"
    assert stored(store).reason == "after"


def test_two_writers_of_one_record_lose_nothing(store: Store) -> None:
    """Two processes that each add tasks to one record, one at a time, end with all tasks of both."""
    code = """
go = Path(sys.argv[3])
made = [record(task_record(outcomes(i, task=f"{sys.argv[2]}{i}"))) for i in range(12)]
print("ready", flush=True)
while not go.exists(): time.sleep(0.001)
for fresh in made: Store(sys.argv[1]).write(fresh, "xdist")
"""
    go = store.root.parent / "go"
    writers = [child(code, str(store.root), name, str(go)) for name in ("left", "right")]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    go.touch()
    for writer in writers:
        writer.communicate(timeout=120)
        assert writer.returncode == 0

    found = stored(store)

    assert sorted(t.task for t in found.tasks) == sorted(f"{name}{i}" for name in ("left", "right") for i in range(12))
    assert [h.reason for h in found.history] == ["xdist"], "one acceptance, whoever wrote its parts"


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


def test_device_key_of_this_cpu_is_stable_and_plain() -> None:
    """The key of the CPU is the same each time and fits a file name."""
    import torch

    from harness.evaluation import environment

    key = DeviceKey.of(torch.device("cpu"))
    assert key == DeviceKey.of(torch.device("cpu"))
    assert re.fullmatch(r"[a-z0-9._-]+", key.exact)
    assert environment.bits_condition(torch.device("cpu"), 64) != environment.bits_condition(torch.device("cpu"), 32)
    assert set(environment.versions()) == {"nvidia-modelopt", "torch", "transformers"}
    assert "+" not in environment.versions()["torch"]


@pytest.mark.parametrize("text", ["a@b", "A", "", "../x", "a/b", "-a", "x" * 81])
def test_device_key_refuses_what_a_file_name_cannot_hold(text: str) -> None:
    """A key cannot smuggle a path or the separator into a file name."""
    with pytest.raises(ValueError, match="not a device key"):
        DeviceKey(text, "x86_64")
    with pytest.raises(ValueError, match="not a device key"):
        DeviceKey("cpu", text)


def test_file_that_is_no_record_is_told(store: Store) -> None:
    """A record under a name that names no device is not passed over in silence."""
    path = record_path(store)
    path.rename(path.with_name("record.json"))

    with pytest.raises(UsageError, match="rename it"):
        store.find("embedded", "fp8", XEON)


def test_bytes_reach_the_disk_before_the_name(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file is flushed to disk before it gets its name, and its folder after: a power cut cannot leave it empty."""
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
