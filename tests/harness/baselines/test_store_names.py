"""What the store calls folders and files, and which names it refuses."""

from __future__ import annotations

import pytest
from made_records import (
    XEON,
    outcomes,
    record,
    snapshot,
    stored,
    task_record,
)
from store_helpers import said

from harness import digests
from harness.baselines import Store, text
from harness.recipes.names import folder_name

PLAIN = "Give it a plain name"


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
    """A plain name is its own folder, any other a plain part and 8 digits of its SHA-256: committed
    ones stay.
    """
    assert folder_name(name, "recipe") == folder


@pytest.mark.parametrize("name", ["", " ", "a\nb", "a\0b", "\x1b[2J", "\ud800"])
def test_name_that_cannot_be_printed_is_told(name: str) -> None:
    """An empty name, or one with control characters, is refused in words, and the word for its
    kind.
    """
    expected = f"model {name!r}: its name is empty or holds control characters. {PLAIN}"
    assert said(lambda: folder_name(name, "model")) == " ".join(expected.split())


@pytest.mark.parametrize(
    "name",
    [
        ".",
        "..",
        "a/..",
        "../a",
        "a/./b",
        "a\\..\\b",
        "a//b",
        "/a",
        "a/",
        "\\a",
        "C:/x",
        "c:\\x",
        "Z:/x",
    ],
)
def test_name_that_leads_elsewhere_is_told(name: str) -> None:
    """A path out of the folder, absolute or relative, with either slash, is refused in words."""
    expected = f"recipe {name!r}: its name leads out of the folder of baselines. {PLAIN}"
    assert said(lambda: folder_name(name, "recipe")) == expected


def test_names_that_the_store_keeps_are_kept_for_their_kind_only() -> None:
    """No recipe is called reference and no model versions, however written; the other way round
    both are free.
    """
    assert said(lambda: folder_name("Reference", "recipe")) == (
        "recipe 'Reference': the baselines keep this name for the reference's outcomes. Rename the "
        "file"
    )
    assert said(lambda: folder_name("VERSIONS", "model")) == (
        "model 'VERSIONS': the baselines keep this name for what releases are expected to change. "
        "Rename the file"
    )
    message = said(lambda: Store("baselines").find("versions", "fp8", XEON))
    assert message.startswith("model 'versions': the baselines keep this name")
    free = [
        ("reference", "model"),
        ("versions", "recipe"),
        ("reference", "task"),
        ("versions", "metric"),
    ]
    assert [folder_name(*pair) for pair in free] == [name for name, _ in free]


def test_files_of_a_record_are_named_by_device_and_content(store: Store) -> None:
    """JSON by architecture and device, outcomes by 16 digits of their SHA-256, the reference's by
    task and metric.
    """
    tasks = [task_record(), task_record(outcomes(5, 30, "ms/coco", "text recall@5"))]
    store.write(record(*tasks), "test")

    quantized = digests.of_bytes(text.quantized_blob(tasks))[:16]
    references = [digests.of_bytes(text.reference_blob(task))[:16] for task in tasks]
    assert set(snapshot(store.root)) == {
        "embedded/fp8/record@x86_64-avx512@xeon-8488c-0a1b2c3d.json",
        f"embedded/fp8/outcomes-{quantized}.safetensors",
        f"embedded/reference/cifar100.acc1-{references[0]}.safetensors",
        f"embedded/reference/ms--coco.{folder_name('text recall@5', 'metric')}-{references[1]}.safetensors",
    }
    assert (store.root / ".lock").exists()
    assert [t.name for t in stored(Store(str(store.root))).tasks] == [
        "cifar100 acc1",
        "ms/coco text recall@5",
    ]


@pytest.mark.parametrize(
    ("task", "metric", "where"), [("..", "acc1", "task '..'"), ("t", "../m", "metric '../m'")]
)
def test_task_that_cannot_be_a_file_is_told(
    store: Store, task: str, metric: str, where: str
) -> None:
    """A task or metric whose name leads elsewhere is refused by its kind and name, and no outcomes
    are written.
    """
    fresh = record(task_record(outcomes(task=task, metric=metric)))

    message = said(lambda: store.write(fresh, "test"))

    assert message == f"{where}: its name leads out of the folder of baselines. {PLAIN}"
    assert snapshot(store.root) == {}
