"""Which record is found, under which names, and the commands that messages give."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import (
    GPU,
    LAPTOP,
    OTHER_XEON,
    XEON,
    record,
    snapshot,
    stored,
    task_record,
)

from harness import baselines
from harness.baselines import Missing, Store, compare
from harness.errors import UsageError
from harness.evaluation.environment import DeviceKey, Nearness
from harness.recipes.names import folder_name

# -- finding


def test_nearest_record_is_found_and_named(store: Store) -> None:
    """The very device's record comes first, then one of its architecture, then any; the message
    names it.
    """
    for device in (GPU, LAPTOP, OTHER_XEON, XEON):
        store.write(record(task_record(), device=device), "test")

    for wanted, expected, near in (
        (XEON, XEON, Nearness.EXACT),
        (DeviceKey("xeon-new", "x86_64-avx512"), OTHER_XEON, Nearness.ARCHITECTURE),
        (DeviceKey("pentium", "x86_64"), LAPTOP, Nearness.ANY),
        (DeviceKey("nvidia-a100", "sm80"), GPU, Nearness.ANY),
    ):
        nearest = stored(store, device=wanted)
        if near is Nearness.ARCHITECTURE:
            assert nearest.provenance.device in (XEON, OTHER_XEON)
        elif wanted.architecture == "x86_64":
            assert nearest.provenance.device.architecture.startswith("x86_64")
        else:
            assert nearest.provenance.device == expected
        drift = compare(nearest, record(task_record(), device=wanted))
        assert near.value in drift.against
        assert str(nearest.provenance.device) in drift.against


def test_newest_of_equally_near_records_is_used(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two records of one architecture, the one measured last is nearest, whatever the names."""
    store.write(record(task_record(), device=DeviceKey("zzz", "x86_64-avx512")), "old")
    time.sleep(1.1)
    store.write(record(task_record(), device=DeviceKey("aaa", "x86_64-avx512")), "new")

    assert stored(store, device=XEON).provenance.device.exact == "aaa"


def test_missing_baseline_names_the_command_that_makes_it(store: Store) -> None:
    """Where there is no record, the message names the folder and a complete command."""
    missing = store.find("embedded", "my fp8", XEON)

    assert isinstance(missing, Missing)
    message = missing.message(
        "tests/test_accuracy.py::test_it[my fp8-embedded]", ("--recipe", "my fp8.yaml")
    )
    assert str(store.root / "embedded") in message
    accept = shlex.split(message.splitlines()[-1].removeprefix("  accept: "))
    assert accept == [
        "pytest",
        "--recipe",
        "my fp8.yaml",
        "--clip-model",
        "embedded",
        "--new-baselines-only",
    ]
    assert (
        "rerun:  pytest 'tests/test_accuracy.py::test_it[my fp8-embedded]' --recipe 'my fp8.yaml'"
        in message
    )


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
    """A model or recipe whose name leads elsewhere or holds control characters is a usage error,
    and writes nothing.
    """
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
    """Names that differ only in characters a folder cannot have get different folders; plain ones
    stay as they are.
    """
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


# -- orphans and commands


def test_orphans_are_named_with_the_command_that_removes_them(store: Store) -> None:
    """A recipe, a model and a task that no test used are named, each with its command; what was
    used is not.
    """
    for changed in ({}, {"recipe": "old"}, {"model": "gone"}, {"device": GPU}):
        store.write(record(task_record(), **changed), "test")
    (store.root / "budgets.yaml").write_text("")

    orphans = store.orphans([("embedded", "fp8")], {"cifar100"})

    assert {o.path: o.command for o in orphans} == {
        store.root / "embedded" / "old": f"rm -r -- {store.root / 'embedded' / 'old'}",
        store.root / "gone": f"rm -r -- {store.root / 'gone'}",
    }
    assert all(o.command in str(o) for o in orphans)
    assert store.orphans([("embedded", "fp8"), ("embedded", "old"), ("gone", "fp8")]) == ()
    tasks = store.orphans(
        [("embedded", "fp8"), ("embedded", "old"), ("gone", "fp8")], {"imagenet1k"}
    )
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
    subprocess.run(
        orphan.command, shell=True, cwd=store.root.parent, check=True, capture_output=True
    )

    assert store.orphans([("embedded", "fp8")]) == ()
    assert stored(store)


@pytest.mark.parametrize("tracked", [True, False])
def test_commands_of_refusals_do_what_they_say(tmp_path: Path, tracked: bool) -> None:
    """A copied record, and one edited after it was committed, are gone after the command; the
    latter is also restored.

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
    restore, _, remove = (
        refused("fp8").partition("Bring it back (")[2].partition("), or measure again (")
    )
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
        (
            baselines.accept_command(nodeid, options),
            [nodeid, *options, "--update-baselines", "--reason", "say why"],
        ),
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
