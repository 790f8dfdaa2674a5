"""What git is asked: the merge base, contents without running anything of the repository, and every
part by name.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.pull_requests.revisions import at_revision, compare

SNIPPET = (
    "# modelopt-schema: modelopt.torch.quantization.config.QuantizerAttributeConfig\nnum_bits: 8\n"
)


def git(folder: Path, *arguments: str) -> str:
    """Run git with an identity of its own, heedless of the machine's settings."""
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    allowed = ["-c", "protocol.file.allow=always"]
    command = ["git", "-C", str(folder), *identity, *allowed, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def put(root: Path, name: str, text: str = SNIPPET) -> Path:
    """Write a file of the tree."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def commit(root: Path, message: str = "more") -> str:
    """Commit everything; the new commit's name."""
    git(root, "add", "-A")
    git(root, "commit", "-q", "--allow-empty", "-m", message)
    return git(root, "rev-parse", "HEAD")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two committed files in a tree below the top of its repository."""
    root = tmp_path / "repository" / "recipes"
    put(root, "a.yaml", "a: 1\nb: 2\nc: 3\n")
    put(root, "b.yaml", "b: 1\n")
    git(root.parent, "init", "-q", "-b", "main")
    commit(root.parent)
    return root


# --- the merge base


def test_what_the_base_branch_did_meanwhile_is_no_change(root: Path) -> None:
    """The branch edits a.yaml, main then edits b.yaml: a.yaml alone is changed, and one line says
    against what.
    """
    base = git(root, "rev-parse", "HEAD")
    git(root, "checkout", "-q", "-b", "topic")
    put(root, "a.yaml", "a: 2\n")
    commit(root)
    git(root, "checkout", "-q", "main")
    put(root, "b.yaml", "b: 2\n")
    commit(root)
    git(root, "checkout", "-q", "topic")

    changeset = compare(root, "main")

    assert changeset.changes == {"a.yaml": "modified"}
    assert changeset.note == f"compared with {base[:12]}, the merge base of main and HEAD"
    assert compare(root, "HEAD~1").note == f"compared with HEAD~1 ({base[:12]})"


def test_a_shallow_clone_without_merge_base_says_how_to_get_one(root: Path, tmp_path: Path) -> None:
    """One line with the fix, and after the fix the comparison works."""
    git(root, "checkout", "-q", "-b", "topic")
    put(root, "a.yaml", "a: 2\n")
    commit(root)
    git(root, "checkout", "-q", "main")
    put(root, "b.yaml", "b: 2\n")
    commit(root)
    clone = tmp_path / "clone"
    git(
        tmp_path,
        "clone",
        "-q",
        "--depth=1",
        "--no-single-branch",
        "-b",
        "topic",
        f"file://{root.parent}",
        str(clone),
    )

    with pytest.raises(
        UsageError, match=r"no common ancestor .* shallow clone\. .*git fetch --unshallow"
    ):
        compare(clone / "recipes", "origin/main")
    git(clone, "fetch", "-q", "--unshallow")

    assert compare(clone / "recipes", "origin/main").changes == {"a.yaml": "modified"}


def test_unrelated_histories_are_refused(root: Path) -> None:
    """A branch that shares nothing with HEAD is not a base to compare with."""
    git(root, "checkout", "-q", "--orphan", "other")
    commit(root, "unrelated")

    with pytest.raises(UsageError, match="--changed-since main: has no common ancestor with HEAD"):
        compare(root, "main")


# --- nothing of the repository runs


def plant(root: Path, marker: Path) -> None:
    """Have everything that git can be configured to run write *marker*: hooks, filters, monitors,
    commands and aliases.
    """
    top = root.parent
    command = f"sh -c 'echo ran >> {marker}; cat'"
    (top / ".git/hooks").mkdir(exist_ok=True)
    hooks = (
        "post-index-change",
        "fsmonitor-watchman",
        "reference-transaction",
        "post-checkout",
        "pre-auto-gc",
    )
    for name in hooks:
        hook = top / ".git/hooks" / name
        hook.write_text(f"#!/bin/sh\necho {name} >> {marker}\n")
        hook.chmod(0o755)
    settings = {
        "filter.x.clean": command,
        "filter.x.smudge": command,
        "filter.y.process": command,
        "filter.y.required": "true",
        "core.fsmonitor": str(top / ".git/hooks/fsmonitor-watchman"),
        "core.hooksPath": str(top / ".git/hooks"),
        "core.untrackedCache": "true",
        "core.pager": command,
        "core.sshCommand": command,
        "core.alternateRefsCommand": command,
        "credential.helper": f"!{command}",
        "diff.external": command,
        "diff.z.textconv": command,
        "diff.z.command": command,
        "interactive.diffFilter": command,
        "gpg.program": command,
        "log.showSignature": "true",
        **{
            f"alias.{name}": f"!{command}"
            for name in ("ls-files", "ls-tree", "cat-file", "rev-parse", "merge-base")
        },
    }
    for key, value in settings.items():
        git(top, "config", key, value)
    included = top / ".git/more"
    included.write_text(f"[core]\n\tfsmonitor = {top / '.git/hooks/fsmonitor-watchman'}\n")
    git(top, "config", "include.path", str(included))
    put(top, ".git/info/attributes", "a.yaml filter=x diff=z\nb.yaml filter=y diff=z\n")


def test_no_filter_hook_or_command_of_the_repository_runs(root: Path, tmp_path: Path) -> None:
    """Comparing and reading a revision runs none of what is planted, and what changed is found all
    the same.
    """
    marker = tmp_path / "marker"
    put(root.parent, ".gitattributes", "a.yaml filter=x diff=z\nb.yaml filter=y diff=z\n")
    commit(root)
    plant(root, marker)
    put(root, "a.yaml", "a: 2\n")
    (root / "b.yaml").touch()  # the index no longer knows that it is as it was
    marker.unlink(missing_ok=True)
    index = (root.parent / ".git/index").read_bytes()

    changes = compare(root, "HEAD").changes
    with at_revision(root, "HEAD") as base:
        before = (base / "a.yaml").read_text()

    assert not marker.exists(), marker.read_text()
    assert changes == {"a.yaml": "modified"}
    assert before == "a: 1\nb: 2\nc: 3\n"
    assert (root.parent / ".git/index").read_bytes() == index
    subprocess.run(["git", "-C", str(root), "status"], capture_output=True, check=False)
    assert marker.exists(), "what is planted would have run"


def test_a_partial_clone_fetches_nothing(root: Path, tmp_path: Path) -> None:
    """A file that only the server has is one line with the fix, which works; nothing is asked of
    the server.
    """
    put(root, "a.yaml", "entirely: different\n")
    commit(root)
    git(root.parent, "config", "uploadpack.allowFilter", "true")
    clone, marker = tmp_path / "clone", tmp_path / "marker"
    git(tmp_path, "clone", "-q", "--filter=blob:none", f"file://{root.parent}", str(clone))
    git(clone, "config", "protocol.file.allow", "always")
    git(
        clone,
        "config",
        "remote.origin.uploadpack",
        f"sh -c 'echo asked >> {marker}; exec git-upload-pack \"$1\"' -",
    )

    with (
        pytest.raises(UsageError, match=r"not in this clone.*git fetch --refetch --no-filter"),
        at_revision(clone / "recipes", "HEAD~1"),
    ):
        pass
    assert not marker.exists()
    git(clone, "fetch", "-q", "--refetch", "--no-filter")
    assert marker.exists()

    with at_revision(clone / "recipes", "HEAD~1") as base:
        assert (base / "a.yaml").read_text() == "a: 1\nb: 2\nc: 3\n"


def test_the_environment_of_a_calling_git_has_no_say(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside a hook of another repository, whose git has set its own folders, index and settings,
    it is this tree.
    """
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    put(root, "a.yaml", "a: 2\n")
    marker = tmp_path / "marker"
    for name, value in {
        "GIT_DIR": str(other / ".git"),
        "GIT_WORK_TREE": str(other),
        "GIT_INDEX_FILE": str(other / "index"),
        "GIT_OBJECT_DIRECTORY": str(other / ".git/objects"),
        "GIT_PREFIX": "x/",
        "GIT_EXTERNAL_DIFF": f"touch {marker}",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "core.bare",
        "GIT_CONFIG_VALUE_0": "true",
    }.items():
        monkeypatch.setenv(name, value)

    assert compare(root, "HEAD").changes == {"a.yaml": "modified"}
    assert not marker.exists()


# --- what happened to a file


def test_every_kind_of_change_has_its_word(root: Path) -> None:
    """Renames with and without an edit, capitals, modes, types, staged and untracked files, line
    endings.
    """
    for name in ("mode.yaml", "type.yaml", "gone.yaml", "ends.yaml", "Case.yaml", "staged.yaml"):
        put(root, name, f"{name}: 1\nother: 2\nlines: 3\n")
    put(root, "c/new\nline 'and \"quotes.yaml", "q: 1\n")
    put(root, "é.yaml", "e: 1\n")
    commit(root)
    git(root, "mv", "a.yaml", "renamed.yaml")
    put(root, "renamed.yaml", "a: 1\nb: 2\nc: 4\n")
    (root / "Case.yaml").rename(root / "case.yaml")
    (root / "mode.yaml").chmod(0o755)
    (root / "type.yaml").unlink()
    (root / "type.yaml").symlink_to("b.yaml")
    (root / "gone.yaml").unlink()
    (root / "ends.yaml").write_bytes(b"ends.yaml: 1\r\nother: 2\r\nlines: 3\r\n")
    put(root, "staged.yaml", "staged: 2\n")
    put(root, "c/new\nline 'and \"quotes.yaml", "q: 2\n")
    put(root, "é.yaml", "e: 2\n")
    git(root, "add", "mode.yaml", "staged.yaml")
    put(root, "untracked.yaml", "u: 1\n")

    assert compare(root, "HEAD").changes == {
        "renamed.yaml": "renamed from a.yaml",
        "a.yaml": "renamed to renamed.yaml",
        "case.yaml": "renamed from Case.yaml",
        "Case.yaml": "renamed to case.yaml",
        "mode.yaml": "changed mode",
        "type.yaml": "changed type",
        "gone.yaml": "removed",
        "staged.yaml": "modified",
        "c/new\nline 'and \"quotes.yaml": "modified",
        "é.yaml": "modified",
        "untracked.yaml": "added",
    }


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_in_place_of_a_file_is_not_opened(root: Path) -> None:
    """It would be waited for without end; the file's type has changed."""
    (root / "a.yaml").unlink()
    os.mkfifo(root / "a.yaml")

    assert compare(root, "HEAD").changes == {"a.yaml": "changed type"}


# --- what is not compared


def test_ignored_folders_and_files_are_named(root: Path) -> None:
    """What git ignores and holds YAML is named with the reason; what holds none is not worth a
    line.
    """
    put(root.parent, ".gitignore", "build/\nlocal.yaml\n__pycache__/\n")
    put(root, "build/deep/x.yaml")
    put(root, "local.yaml")
    put(root, "__pycache__/x.pyc")

    changeset = compare(root, "HEAD")

    assert {part.path: part.why for part in changeset.left_out} == {
        "build/": "ignored by git",
        "local.yaml": "ignored by git",
    }
    assert changeset.changes == {}


def test_a_tree_of_which_nothing_is_compared_is_refused(root: Path, tmp_path: Path) -> None:
    """A root that is ignored, or holds no YAML at all, is a usage error and no empty difference."""
    put(root.parent, ".gitignore", "out/\n")
    put(root.parent, "out/recipes/x.yaml")
    put(root.parent, "docs/page.md", "words\n")
    commit(root.parent)

    with pytest.raises(UsageError, match=r"holds no YAML file .*recipes/ is ignored by git"):
        compare(root.parent / "out", "HEAD")
    with pytest.raises(UsageError, match="holds no YAML file"):
        compare(root.parent / "docs", "HEAD")


def test_a_repository_inside_the_tree_is_named_with_what_to_do(root: Path) -> None:
    """Its files are no part of this repository; a folder whose recipes nobody compares may not pass
    in silence.
    """
    inner = root / "vendored"
    inner.mkdir()
    git(inner, "init", "-q")
    put(inner, "x.yaml")

    (part,) = compare(root, "HEAD").left_out

    assert (part.path, part.why) == ("vendored/", "a git repository of its own")
    assert f"--recipes-root {inner}" in part.fix


def test_a_submodule_is_named_and_one_that_moved_asks_for_a_gate_of_its_own(
    root: Path, tmp_path: Path
) -> None:
    """As long as its commit is the base's there is nothing to do; after that the fix names root and
    revision.
    """
    other = tmp_path / "other"
    put(other, "x.yaml")
    git(other, "init", "-q", "-b", "main")
    first = commit(other)
    git(root, "submodule", "--quiet", "add", f"file://{other}", "sub")
    commit(root)
    before = compare(root, "HEAD").left_out
    put(root / "sub", "x.yaml", "x: 2\n")
    commit(root / "sub")
    (moved,) = compare(root, "HEAD").left_out

    assert [(part.path, part.fix, part.changed) for part in before] == [("sub/", "", False)]
    assert moved.why.startswith(f"a submodule that went from {first[:12]} to ")
    assert f"--recipes-root {root / 'sub'} --changed-since {first[:12]}" in moved.fix
    assert compare(root / "sub", first[:12]).changes == {"x.yaml": "modified"}


def test_a_sparse_checkout_hides_no_change(root: Path) -> None:
    """A file that is not checked out counts as it is in the index: as before, or changed and nobody
    can read it.
    """
    put(root, "far/x.yaml")
    base = commit(root)
    put(root, "far/x.yaml", "x: 2\n")
    commit(root)
    git(root.parent, "sparse-checkout", "set", "--no-cone", "/*", "!/recipes/far/")
    assert not (root / "far").exists()

    (same,) = compare(root, "HEAD").left_out
    (changed,) = compare(root, base).left_out

    assert (same.path, same.fix) == ("far/x.yaml", "")
    assert changed.path == "far/x.yaml"
    assert "sparse-checkout disable" in changed.fix
    assert compare(root, "HEAD").changes == {}
