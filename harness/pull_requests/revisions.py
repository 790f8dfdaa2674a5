"""Read from git which files of a tree of recipes changed since a revision, and the tree as it was
then.

File names are data: git is called without a shell, its output is read with ``-z``, and nothing of a
revision is written outside the folder made for it.  Only commands that run nothing of the
repository are used: no filter, hook, text conversion, pager or fetch.  The contents of the working
tree are hashed here and compared with the names of git's objects, because ``git diff`` would run
filters and refresh the index.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from harness.errors import UsageError
from harness.recipes.tree import MAX_TREE_BYTES, SUFFIXES

TIMEOUT = 60  # seconds for one git command
MAX_FILES = 5000  # YAML files and symbolic links of a revision's tree
MAX_TREE_FILES = 2000  # of YAML in one working tree, over ten times ModelOpt 0.47's
MAX_LINK_BYTES = 4096
MAX_PAIRS = 400  # of a removed and an added file that are compared line by line
SIMILAR = 0.5  # share of lines that a renamed file keeps, as git has it

_FILE, _LINK, _SUBMODULE, _OTHER = "100", "120", "160", "000"  # how git's modes begin
#: Settings of the environment that say where git's own files and the person's configuration are.
_KEPT = {
    "GIT_CEILING_DIRECTORIES",
    "GIT_CONFIG_GLOBAL",
    "GIT_CONFIG_NOSYSTEM",
    "GIT_CONFIG_SYSTEM",
    "GIT_DISCOVERY_ACROSS_FILESYSTEM",
    "GIT_EXEC_PATH",
}
#: Settings of the repository that could run or fetch something, each turned off.  An empty
#: fsmonitor means no monitor in every release of git; "false" was a command's name up to 2.35.
_OFF = (
    *("core.fsmonitor=", "core.untrackedCache=false", f"core.hooksPath={os.devnull}"),
    *("core.sshCommand=false", "credential.helper=", "protocol.allow=never"),
)


@dataclass(frozen=True)
class LeftOut:
    """A part of the tree that is not compared.

    Attributes:
        path: relative to the root; a folder ends in ``/``.
        why: what it is, e.g. ``ignored by git``.
        fix: how to have it compared, where it may be a part of the change; else empty.
        changed: whether a recipe that imports from it counts as changed, since nobody can say that
            it is not.
    """

    path: str
    why: str
    fix: str = ""
    changed: bool = True


@dataclass(frozen=True)
class Changeset:
    """The difference between a revision and the working tree.

    Attributes:
        commit: what the working tree is compared with, in full: the merge base of the revision and
            HEAD.
        note: one line that says so.
        changes: path relative to the root -> ``modified``, ``added``, ``removed``, ``changed
            type``, ``changed mode``, ``renamed from OLD`` (OLD itself is then ``renamed to NEW``).
        renamed: new path -> old path.
        files: the YAML files of the working tree that were compared.
        left_out: what was not.
    """

    commit: str
    note: str
    changes: dict[str, str]
    renamed: dict[str, str]
    files: tuple[str, ...]
    left_out: tuple[LeftOut, ...]


@dataclass(frozen=True)
class _Entry:
    """A file as git has it: the mode, and the name of its contents (empty where they cannot be
    read).
    """

    mode: str
    blob: str


def compare(root: Path, rev: str) -> Changeset:
    """Compare *root* as it is now with the merge base of *rev* and HEAD.

    YAML files and symbolic links count, those too that git does not track yet and does not ignore.

    Raises:
        UsageError: *root* is in no git repository, *rev* is not a commit of it or has no merge base
            with HEAD, the tree is far too large, or it holds nothing that can be compared.
    """
    root = root.resolve()
    commit, note = base_of(root, rev)
    committed, index = _committed(root, commit), _index(root)
    before = {name: entry for name, entry in committed.items() if _counts(name, entry)}
    submodules = {name for name, (_, entry) in index.items() if entry.mode.startswith(_SUBMODULE)}
    gone = {
        name
        for name, entry in before.items()
        if entry.mode.startswith(_SUBMODULE) and name not in submodules
    }
    left_out = [
        _submodule(root, name, before.get(name), index) for name in sorted(submodules | gone)
    ]
    walked, others = _walk(root, {*before, *index}, submodules)
    left_out += others
    before = {
        name: entry for name, entry in before.items() if not entry.mode.startswith(_SUBMODULE)
    }
    absent = {
        name
        for name, (tag, _) in index.items()
        if tag == "S" and name not in walked and _is_yaml(name)
    }
    left_out += _sparse(absent, before, index)
    now = {name: _entry(root / name, len(commit), before.get(name)) for name in walked}
    _check_size(root, now)
    if not any(map(_is_yaml, (*before, *now))):
        parts = "".join(f"; {part.path} is {part.why}" for part in left_out[:3])
        fixes = [part.fix for part in left_out if part.fix]
        what = f"holds no YAML file that git has at {commit[:12]} or would add{parts}"
        raise UsageError(root, what, [*fixes, "Give the recipe tree of a git checkout."][0])
    changes, renamed = _differences(root, before, now, index, absent)
    # A recipe that loses its suffix has moved as well.
    others_now = {
        entry.blob: name
        for name, (_, entry) in index.items()
        if name not in committed and name not in now
    }
    for name, what in changes.items():
        if what == "removed" and before[name].blob in others_now.keys() - _EMPTY:
            changes[name] = f"renamed to {others_now[before[name].blob]}"
    yaml = tuple(sorted(name for name in now if _is_yaml(name)))
    return Changeset(commit, note, changes, renamed, yaml, tuple(left_out))


# --- revisions


def base_of(root: Path, rev: str) -> tuple[str, str]:
    """The merge base of *rev* and HEAD in *root*'s repository, and one line that says what is
    compared with.

    Raises:
        UsageError: no such repository or commit, or the two have no common ancestor here.
    """
    commit = resolve(root, rev)
    done = _run(root, "merge-base", commit, "HEAD")
    base = done.stdout.decode().strip()
    if done.returncode == 0 and base:
        if base == commit:
            return base, f"compared with {rev} ({commit[:12]})"
        return base, f"compared with {base[:12]}, the merge base of {rev} and HEAD"
    if _git(root, "rev-parse", "--is-shallow-repository").strip() == b"true":
        what = "has no common ancestor with HEAD in this shallow clone"
        raise UsageError(
            f"--changed-since {rev}",
            what,
            "Fetch the history: git fetch --unshallow (fetch-depth: 0).",
        )
    what = "has no common ancestor with HEAD"
    raise UsageError(
        f"--changed-since {rev}", what, "Give a commit of the history that is checked out."
    )


def resolve(root: Path, rev: str) -> str:
    """The commit that *rev* means in *root*'s repository, as 40 or 64 hex digits.

    Raises:
        UsageError: there is no such repository or commit.
    """
    if not rev or rev.startswith("-") or not rev.isprintable():
        raise UsageError(
            f"--changed-since {rev!r}",
            "is not a revision",
            "Give a branch, tag or commit, e.g. origin/main.",
        )
    _git(root, "rev-parse", "--show-toplevel")
    try:
        return _git(root, "rev-parse", "--verify", "--quiet", f"{rev}^{{commit}}").decode().strip()
    except UsageError as error:
        fix = "Give a branch, tag or commit; in a shallow clone fetch it first (fetch-depth: 0)."
        what = f"is not a commit of the repository that holds {root}"
        raise UsageError(f"--changed-since {rev}", what, fix) from error


@contextmanager
def at_revision(root: Path, rev: str) -> Iterator[Path]:
    """*root*'s YAML files as they were at *rev*, in a read-only directory that is gone after the
    block.

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
    """Write the tree's YAML files and, after them so that none is written through, its symbolic
    links.
    """
    files: list[tuple[Path, str]] = []
    links: list[tuple[Path, str]] = []
    for name, entry in _committed(root, commit).items():
        if entry.mode.startswith(_LINK):
            links.append((directory / name, entry.blob))
        elif entry.mode.startswith(_FILE) and _is_yaml(name):
            files.append((directory / name, entry.blob))
    sizes = _sizes(root, [blob for _, blob in (*files, *links)])
    size = sum(sizes[blob] for _, blob in files)
    if size > MAX_TREE_BYTES or len(files) + len(links) > MAX_FILES:
        what = (
            f"holds over {MAX_TREE_BYTES >> 20} MiB of YAML, or {MAX_FILES} files, at {commit[:12]}"
        )
        raise UsageError(root, what, "Give the modelopt_recipes tree itself.")
    links = [(path, blob) for path, blob in links if sizes[blob] <= MAX_LINK_BYTES]
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


# --- what git has


def _committed(root: Path, commit: str) -> dict[str, _Entry]:
    """The files of the tree at *commit*, by their path relative to *root*."""
    entries = {}
    for line in _git(root, "ls-tree", "-r", "-z", commit, "--", ".").split(b"\0"):
        meta, _, raw = line.partition(b"\t")
        name = PurePosixPath(os.fsdecode(raw))
        if raw and not name.is_absolute() and ".." not in name.parts:
            mode, _, blob = meta.decode().split()
            entries[str(name)] = _Entry(mode, blob)
    return entries


def _index(root: Path) -> dict[str, tuple[str, _Entry]]:
    """The files of the tree that git's index has: tag (``S``: left out of a sparse checkout) and
    entry by path.
    """
    entries = {}
    for line in _git(root, "ls-files", "-z", "-s", "-t", "--", ".").split(b"\0"):
        meta, _, raw = line.partition(b"\t")
        if raw:
            tag, mode, blob, _ = meta.decode().split()
            entries[os.fsdecode(raw)] = tag, _Entry(mode, blob)
    return entries


def _sizes(root: Path, names: Collection[str]) -> dict[str, int]:
    """Bytes of git objects.

    Raises:
        UsageError: an object is not in this clone.
    """
    output = _git(
        root,
        "cat-file",
        "--batch-check",
        standard_input="".join(f"{name}\n" for name in names).encode(),
    )
    lines = [line.split() for line in output.decode().splitlines()]
    if any(fields[1] == "missing" for fields in lines):
        raise _partial(root)
    return {fields[0]: int(fields[2]) for fields in lines}


def _blobs(root: Path, names: list[str]) -> dict[str, bytes]:
    """The contents of git objects, read in one go; all of them exist."""
    output = _git(
        root, "cat-file", "--batch", standard_input="".join(f"{name}\n" for name in names).encode()
    )
    contents: dict[str, bytes] = {}
    position = 0
    for name in names:
        end = output.index(b"\n", position)
        size = int(output[position:end].split()[2])
        contents[name] = output[end + 1 : end + 1 + size]
        position = end + size + 2
    return contents


# --- what the working tree has


def _is_yaml(name: str) -> bool:
    return name.endswith(SUFFIXES)


def _counts(name: str, entry: _Entry) -> bool:
    """Whether a change of the file can change a recipe."""
    return entry.mode.startswith((_LINK, _SUBMODULE)) or (
        entry.mode.startswith(_FILE) and _is_yaml(name)
    )


def _walk(
    root: Path, known: Collection[str], submodules: Collection[str]
) -> tuple[list[str], list[LeftOut]]:
    """Return YAML files and symbolic links that git has (*known*) or would add, and the folders and
    files that it ignores.

    Submodules are not entered.
    """
    listed = _git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", ".").split(b"\0")
    untracked = {
        os.fsdecode(raw) for raw in listed if raw
    }  # "folder/" is a repository inside this one
    ours = {*known, *untracked}
    holding_ours = {str(parent) for name in ours for parent in PurePosixPath(name).parents}
    files_found: list[str] = []
    left_out: list[LeftOut] = []
    for place, folders, files in os.walk(root, onerror=_unreadable):
        here = Path(place).relative_to(root)
        entered = []
        for name in sorted(folders):
            path = (here / name).as_posix()
            if name == ".git" or path in submodules:
                continue
            if (root / path).is_symlink():
                files.append(name)
            elif f"{path}/" in untracked:
                fix = f"Give it as --recipes-root {root / path}, or have git ignore it."
                left_out += _unless_empty(
                    root / path, LeftOut(f"{path}/", "a git repository of its own", fix)
                )
            elif path in holding_ours:
                entered.append(name)
            else:
                left_out += _unless_empty(root / path, LeftOut(f"{path}/", "ignored by git"))
        folders[:] = entered
        for name in sorted(files):
            path = (here / name).as_posix()
            if not _is_yaml(name) and not (root / path).is_symlink():
                continue
            if path in ours:
                files_found.append(path)
            elif (root / path).is_file():
                left_out.append(LeftOut(path, "ignored by git"))
        if len(files_found) > MAX_FILES:
            break
    return files_found, left_out


def _unreadable(error: OSError) -> None:
    raise UsageError(
        str(error.filename), f"cannot be read ({error.strerror})", "Look at the rights."
    ) from error


def _unless_empty(folder: Path, part: LeftOut) -> list[LeftOut]:
    """Return *part* if its *folder* holds YAML; without any, no recipe is missed there."""
    return (
        [part] if any(_is_yaml(name) for _, _, files in os.walk(folder) for name in files) else []
    )


def _submodule(
    root: Path, name: str, before: _Entry | None, index: Mapping[str, tuple[str, _Entry]]
) -> LeftOut:
    """Return what to report about the submodule *name*: nothing in it is compared, and whether its
    commit moved.
    """
    was = before.blob if before and before.mode.startswith(_SUBMODULE) else ""
    now = index[name][1].blob if name in index else ""
    if now and os.path.lexists(root / name / ".git"):
        now = _git(root / name, "rev-parse", "HEAD").decode().strip()
    if was == now:
        return LeftOut(f"{name}/", f"a submodule, at {now[:12]} as before", changed=False)
    why = f"a submodule that went from {was[:12] or 'nothing'} to {now[:12] or 'nothing'}"
    fix = f"Gate it by itself: --recipes-root {root / name} --changed-since {was[:12] or 'REV'}."
    return LeftOut(f"{name}/", why, fix)


def _sparse(
    absent: Collection[str], before: Mapping[str, _Entry], index: Mapping[str, tuple[str, _Entry]]
) -> list[LeftOut]:
    """The YAML files that a sparse checkout leaves out."""
    fix = "Check it out: git sparse-checkout add FOLDER, or git sparse-checkout disable."
    why = "changed, and left out of this sparse checkout"
    changed = sorted(name for name in absent if before.get(name) != index[name][1])
    left_out = [LeftOut(name, why, fix) for name in changed]
    rest = sorted(set(absent) - set(changed))
    if rest:
        more = f", with {len(rest) - 1} more files" if len(rest) > 1 else ""
        left_out.append(
            LeftOut(rest[0], f"left out of this sparse checkout{more}, as before", changed=False)
        )
    return left_out


def _entry(path: Path, digits: int, before: _Entry | None) -> _Entry:
    """Return a file of the working tree as git would store it; if only line endings differ, with
    the contents of *before*.
    """
    try:
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            return _Entry("120000", _blob_name(os.fsencode(path.readlink()), digits))
        if not stat.S_ISREG(status.st_mode):
            return _Entry(_OTHER, "")
        if status.st_size > MAX_TREE_BYTES:
            return _Entry("100644", "")
        data = path.read_bytes()
    except OSError:
        return _Entry("100644", "")
    name = _blob_name(data, digits)
    if (
        before
        and name != before.blob
        and _blob_name(data.replace(b"\r\n", b"\n"), digits) == before.blob
    ):
        name = before.blob
    return _Entry("100644", name)


def _blob_name(data: bytes, digits: int) -> str:
    """The name of git's object with the contents *data*, in a repository whose names have so many
    *digits*.
    """
    digest = hashlib.sha256() if digits == 64 else hashlib.sha1(usedforsecurity=False)
    digest.update(b"blob %d\0" % len(data))
    digest.update(data)
    return digest.hexdigest()


#: Names of contents by which a moved file is not known again: none, and what cannot be read.
_EMPTY = {_blob_name(b"", 40), _blob_name(b"", 64), ""}


def _check_size(root: Path, now: Mapping[str, _Entry]) -> None:
    names = [
        name for name, entry in now.items() if _is_yaml(name) and not entry.mode.startswith(_LINK)
    ]
    if (
        len(names) > MAX_TREE_FILES
        or sum((root / name).lstat().st_size for name in names) > MAX_TREE_BYTES
    ):
        what = f"holds over {MAX_TREE_FILES} YAML files, or {MAX_TREE_BYTES >> 20} MiB of them"
        raise UsageError(root, what, "Give the modelopt_recipes tree itself.")


# --- the difference


def _differences(
    root: Path,
    before: Mapping[str, _Entry],
    now: Mapping[str, _Entry],
    index: Mapping[str, tuple[str, _Entry]],
    absent: Collection[str],
) -> tuple[dict[str, str], dict[str, str]]:
    """What happened to each file, and the old name of each renamed one."""
    changes: dict[str, str] = {}
    for name in sorted(before.keys() & now.keys()):
        was, entry = before[name], now[name]
        indexed = index[name][1].mode if name in index else was.mode
        if was.mode[:3] != entry.mode[:3]:
            changes[name] = "changed type"
        elif was.blob != entry.blob:
            changes[name] = "modified"
        elif indexed.startswith(_FILE) and indexed != was.mode:
            changes[name] = "changed mode"
    gone = {name: was for name, was in before.items() if name not in now and name not in absent}
    new = {name: entry for name, entry in now.items() if name not in before}
    renamed = _renames(root, gone, new)
    changes |= dict.fromkeys(gone, "removed") | dict.fromkeys(new, "added")
    changes |= {old: f"renamed to {name}" for name, old in renamed.items()}
    changes |= {name: f"renamed from {old}" for name, old in renamed.items()}
    return changes, renamed


def _renames(root: Path, gone: Mapping[str, _Entry], new: Mapping[str, _Entry]) -> dict[str, str]:
    """New name -> old name of files that moved: those of equal contents first, then those of
    similar lines.
    """
    left = dict(gone)
    renamed: dict[str, str] = {}
    for name, entry in sorted(new.items()):
        equal = [
            old
            for old, was in left.items()
            if was == _Entry(was.mode, entry.blob) and entry.blob not in _EMPTY
        ]
        if equal:
            renamed[name] = min(equal, key=lambda old: (Path(old).name != Path(name).name, old))
            del left[renamed[name]]
    rest = [name for name in new if name not in renamed and _is_yaml(name)]
    old_names = [old for old, was in left.items() if was.mode.startswith(_FILE)]
    if not rest or not old_names or len(rest) * len(old_names) > MAX_PAIRS:
        return renamed
    _sizes(root, [left[old].blob for old in old_names])
    contents = _blobs(root, [left[old].blob for old in old_names])
    lines = {
        name: Counter((root / name).read_bytes().splitlines()) for name in rest if new[name].blob
    }
    scores = [
        (_similarity(Counter(contents[left[old].blob].splitlines()), lines[name]), old, name)
        for old in old_names
        for name in lines
    ]
    for score, old, name in sorted(scores, key=lambda match: (-match[0], match[1], match[2])):
        if score >= SIMILAR and name not in renamed and old not in renamed.values():
            renamed[name] = old
    return renamed


def _similarity(lines: Counter[bytes], other: Counter[bytes]) -> float:
    """The share of lines that two files have in common."""
    return 2 * (lines & other).total() / max(1, lines.total() + other.total())


# --- git


def _git(root: Path, *arguments: str, standard_input: bytes = b"") -> bytes:
    """Standard output of a git command run in *root*.

    Raises:
        UsageError: git is missing, failed or took too long; with git's own message.
    """
    done = _run(root, *arguments, standard_input=standard_input)
    if done.returncode != 0:
        if b"promisor remote" in done.stderr:
            raise _partial(root)
        reason = (
            " ".join(done.stderr.decode(errors="replace").split()) or f"exit code {done.returncode}"
        )
        raise UsageError(
            root, f"git {arguments[0]} failed: {reason[:300]}", "Give a tree in a git checkout."
        )
    return done.stdout


def _partial(root: Path) -> UsageError:
    what = (
        "some files as they were then are not in this clone (a partial one), and the gate fetches "
        "nothing"
    )
    return UsageError(
        root, what, "Fetch them: git fetch --refetch --no-filter, or clone without --filter."
    )


def _run(
    root: Path, *arguments: str, standard_input: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run a git command in *root*, without settings of the repository or of a calling git.

    Raises:
        UsageError: git is missing or took too long.
    """
    settings = [word for setting in _OFF for word in ("-c", setting)]
    options = ["--no-pager", "--no-replace-objects", "--no-optional-locks", "--literal-pathspecs"]
    # What `git rev-parse --local-env-vars` lists, and more: a hook that runs the gate has set some
    # of these.
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_") or name in _KEPT
    }
    environment |= {
        "GIT_ALLOW_PROTOCOL": "none",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "LC_ALL": "C",
    }
    try:
        return subprocess.run(
            ["git", "-C", str(root), *options, *settings, *arguments],
            input=standard_input,
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(
            root, f"git cannot be run there ({error})", "Install git, and give a checkout."
        ) from error
