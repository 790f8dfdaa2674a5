"""What git knows of a tree of recipes: which files changed since a revision, and the tree as it was then.

File names are data: git is called without a shell, its output read with ``-z``, and nothing of a revision is written
outside the directory made for it.  Attributes of the tree (``export-ignore``, text conversions) have no say.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from harness.errors import UsageError
from harness.recipe_tree import MAX_TREE_BYTES, SUFFIXES

TIMEOUT = 60  # seconds for one git command
MAX_FILES = 5000  # YAML files and symbolic links of a revision's tree
MAX_LINK_BYTES = 4096


def changes(root: Path, rev: str) -> dict[str, str]:
    """Files under *root* that differ between *rev* and the working tree: path relative to root -> what happened.

    What happened is ``modified``, ``added``, ``removed``, ``renamed from OLD`` (OLD itself is then ``renamed to
    NEW``) or ``changed type``.  Files that git does not track yet, and does not ignore, are ``added``.

    Raises:
        UsageError: *root* is in no git repository, or *rev* is no commit of it.
    """
    commit = resolve(root, rev)
    fields = _git(
        root,
        *("diff", "--name-status", "-z", "--find-renames", "--relative", "--no-ext-diff", "--no-textconv"),
        *("--ignore-submodules=all", commit, "--", "."),
    ).split(b"\0")
    found: dict[str, str] = {}
    words = {"A": "added", "D": "removed", "T": "changed type"}
    position = 0
    while position + 1 < len(fields):
        status, name = fields[position].decode()[:1], os.fsdecode(fields[position + 1])
        position += 2
        if status in "RC":
            new = os.fsdecode(fields[position])
            position += 1
            found[new] = f"renamed from {name}"
            if status == "R":
                found.setdefault(name, f"renamed to {new}")
        else:
            found[name] = words.get(status, "modified")
    untracked = _git(root, "ls-files", "--others", "--exclude-standard", "-z").split(b"\0")
    found.update({os.fsdecode(name): "added" for name in untracked if name})
    return found


def resolve(root: Path, rev: str) -> str:
    """The commit that *rev* means in *root*'s repository, as 40 or 64 hex digits.

    Raises:
        UsageError: there is no such repository or commit.
    """
    if not rev or rev.startswith("-") or not rev.isprintable():
        raise UsageError(
            f"--changed-since {rev!r}", "is no revision", "Give a branch, tag or commit, e.g. origin/main."
        )
    _git(root, "rev-parse", "--show-toplevel")
    try:
        return _git(root, "rev-parse", "--verify", "--quiet", f"{rev}^{{commit}}").decode().strip()
    except UsageError as error:
        mend = "Give a branch, tag or commit; in a shallow clone fetch it first (fetch-depth: 0)."
        raise UsageError(f"--changed-since {rev}", f"is no commit of the repository that holds {root}", mend) from error


@contextmanager
def at_revision(root: Path, rev: str) -> Iterator[Path]:
    """*root*'s YAML files as they were at *rev*, in a read-only directory that is gone after the block.

    A tree that did not exist then is an empty directory.

    Raises:
        UsageError: no such repository or commit, or the tree is too large.
    """
    commit = resolve(root, rev)
    directory = Path(tempfile.mkdtemp(prefix="recipes-at-revision-"))
    try:
        _export(root, commit, directory)
        _set_modes(directory, 0o500, 0o400)
        yield directory
    finally:
        _set_modes(directory, 0o700, 0o600)
        shutil.rmtree(directory)


def _export(root: Path, commit: str, directory: Path) -> None:
    """Write the tree's YAML files and, after them so that none is written through, its symbolic links."""
    files: list[tuple[Path, str]] = []
    links: list[tuple[Path, str]] = []
    size = 0
    for line in _git(root, "ls-tree", "-r", "-z", "-l", commit, "--", ".").split(b"\0"):
        meta, _, raw = line.partition(b"\t")
        name = PurePosixPath(os.fsdecode(raw))
        if not raw or name.is_absolute() or ".." in name.parts:
            continue
        mode, _, blob, length = meta.decode().split()
        if mode == "120000" and int(length) <= MAX_LINK_BYTES:
            links.append((directory / name, blob))
        elif mode.startswith("100") and name.name.endswith(SUFFIXES):
            files.append((directory / name, blob))
            size += int(length)
    if size > MAX_TREE_BYTES or len(files) + len(links) > MAX_FILES:
        what = f"holds over {MAX_TREE_BYTES >> 20} MiB of YAML, or {MAX_FILES} files, at {commit[:12]}"
        raise UsageError(root, what, "Give the modelopt_recipes tree itself.")
    contents = _blobs(root, [blob for _, blob in (*files, *links)])
    for path, blob in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents[blob])
    top = directory.resolve()
    for path, blob in links:
        parent = path.parent.resolve()
        if (parent == top or top in parent.parents) and not path.is_symlink() and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(os.fsdecode(contents[blob]))


def _blobs(root: Path, names: list[str]) -> dict[str, bytes]:
    """The contents of git objects, read in one go."""
    output = _git(root, "cat-file", "--batch", standard_input="".join(f"{name}\n" for name in names).encode())
    contents: dict[str, bytes] = {}
    position = 0
    for name in names:
        end = output.index(b"\n", position)
        size = int(output[position:end].split()[2])
        contents[name] = output[end + 1 : end + 1 + size]
        position = end + size + 2
    return contents


def _set_modes(directory: Path, folder_mode: int, file_mode: int) -> None:
    directory.chmod(0o700)
    for folder, folders, files in os.walk(directory):
        for name in folders:
            if not (path := Path(folder, name)).is_symlink():
                path.chmod(0o700)
        for name in files:
            if not (path := Path(folder, name)).is_symlink():
                path.chmod(file_mode)
    for folder, _, _ in os.walk(directory, topdown=False):
        Path(folder).chmod(folder_mode)


def _git(root: Path, *arguments: str, standard_input: bytes = b"") -> bytes:
    """Standard output of a git command run in *root*.

    Raises:
        UsageError: git is missing, failed or took too long; with git's own message.
    """
    command = ["git", "-C", str(root), "-c", "core.fsmonitor=false", *arguments]
    try:
        done = subprocess.run(
            command,
            input=standard_input,
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(root, f"git cannot be run there ({error})", "Install git, and give a checkout.") from error
    if done.returncode != 0:
        reason = " ".join(done.stderr.decode(errors="replace").split()) or f"exit code {done.returncode}"
        raise UsageError(root, f"git {arguments[0]} failed: {reason[:300]}", "Give a tree in a git checkout.")
    return done.stdout
