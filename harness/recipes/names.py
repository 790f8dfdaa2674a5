"""Names of recipes, models and tasks: short, and different for whatever is different in one run.

A name is shown in test ids and results, and is a folder of the baselines.  It is the last part of a
path, as long as nothing else in the run has it; otherwise as many of the folders above it are added
as are needed to distinguish the two.  Two spellings of the same file or folder are one thing:
``clip``, ``./clip/`` and a link to it are one model.  The names of what this package holds
(``embedded``, ``fp8``) are never given to anything else.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path

from harness import digests, files
from harness.errors import UsageError
from harness.recipes import finding

EMBEDDED = "embedded"
_EMBEDDED_FOLDER = Path(__file__).parents[1] / "models" / "embedded" / "clip"
#: Names of folders that the store of baselines keeps for itself -> what they hold.
KEPT = {
    "recipe": ("reference", "the reference's outcomes"),
    "model": ("versions", "what releases are expected to change"),
}
MAX_LENGTH = 100  # characters of a name that is shown as it is


@dataclass(frozen=True)
class _Thing:
    """Something that was given, and how it can be named.

    Attributes:
        reference: as it was given.
        identity: equal for two references to the same thing.
        parts: the path to it, its own name last, fit for a name.
        depth: the least number of parts that its name has.
        raw: its own name before it was made fit for a name.
        own: whether it is one of this package's, whose name no one else gets.
        suffix: follows the path (``+CLIPVisionModel``).
    """

    reference: str
    identity: Hashable
    parts: tuple[str, ...]
    depth: int
    raw: str
    own: bool = False
    suffix: str = ""


def of_recipes(references: Iterable[str], root: Path | None = None) -> dict[str, str]:
    """The name of each recipe, by the first reference to it; one that is not there has a name too.

    Raises:
        UsageError: a name that cannot be shown.
    """
    things = [_recipe(reference, root) for reference in references]
    return _distinct(
        things, ".", lambda name: folder_name(name, "recipe").casefold(), _is_kept_recipe
    )


def of_models(references: Iterable[str]) -> dict[str, str]:
    """The name of each model, by the first reference to it.

    Raises:
        UsageError: a name that cannot be shown, such as one with a line break.
    """
    things = [_model(reference) for reference in references]
    return _distinct(
        things, "/", lambda name: folder_name(name, "model").casefold(), _is_kept_model
    )


def of_tasks(tasks: Iterable[str]) -> dict[str, str]:
    """The short name of each task: its last part, or more of it where two have the same."""
    things = []
    for task in tasks:
        parts = tuple(part for part in task.split("/") if part not in ("", ".")) or (task,)
        things.append(_Thing(task, parts, parts, 1, task))
    return _distinct(things, "/", str, lambda _: False)


def of_model(reference: str) -> str:
    """The name of a model that is alone in its run."""
    return of_models([reference])[reference]


def notes(
    recipes_given: Iterable[str], models_given: Iterable[str], root: Path | None = None
) -> list[str]:
    """One line about each reference that could have meant something else as well.

    Raises:
        UsageError: there is no such recipe.
    """
    ambiguous = [finding.also_means(reference, root) for reference in recipes_given]
    if EMBEDDED in models_given and files.is_folder(EMBEDDED):
        ambiguous.append(
            f"--clip-model {EMBEDDED} means the model of this package; for the folder, give "
            f"./{EMBEDDED}"
        )
    return [line for line in ambiguous if line is not None]


def plain(name: str) -> str:
    """*name* as a part of a test id: as it is, if it is short and of ASCII, else as the baselines'
    folder is called.
    """
    return name if name.isascii() and len(name) <= MAX_LENGTH else folder_name(name, "name")


def folder_name(name: str, what: str) -> str:
    """The folder of a model or recipe: its name, ``/`` written ``--``, and a hash of it where more
    had to change.

    Raises:
        UsageError: empty, absolute, with ``..`` or control characters, or a name that the store
            keeps for itself.

    """
    parts = re.split(r"[/\\]", name)
    if not name.strip() or not name.isprintable():
        raise UsageError(
            f"{what} {name!r}",
            "its name is empty or holds control characters",
            "Give it a plain name",
        )
    if not all(parts) or {".", ".."} & set(parts) or re.match(r"[A-Za-z]:[/\\]", name):
        raise UsageError(
            f"{what} {name!r}",
            "its name leads out of the folder of baselines",
            "Give it a plain name",
        )
    if name.casefold() == KEPT.get(what, ("",))[0]:
        raise UsageError(
            f"{what} {name!r}",
            f"the baselines keep this name for {KEPT[what][1]}",
            "Rename the file",
        )
    fit = re.sub(r"[^A-Za-z0-9._-]", "-", name.replace("/", "--"))
    if (
        fit == name.replace("/", "--")
        and fit[0] not in ".-"
        and fit[-1] != "."
        and len(fit) <= MAX_LENGTH
    ):
        return fit
    return f"{fit.strip('.-')[:80] or 'unnamed'}-{_digest(name)}"


# --- what was given


def _recipe(reference: str, root: Path | None) -> _Thing:
    try:
        path = finding.path_of(reference, root)
    except UsageError:  # loading it says so
        bare = reference.removesuffix(".yaml").removesuffix(".yml").strip("/")
        parts = tuple(filter(None, map(finding.fit, bare.split("/")))) or (
            f"recipe-{_digest(reference)}",
        )
        depth = 1 if bare != reference else len(parts)  # a name of a tree is shown whole
        return _Thing(reference, reference, parts, depth, reference)
    if path is None:
        module, _, attribute = reference.partition(":")
        parts = (*module.split("."), attribute)
        return _Thing(reference, reference, parts, 1, attribute)
    builtin = finding.own_name(path)
    if builtin is not None:
        return _Thing(reference, builtin, (builtin,), 1, builtin, own=True)
    above, shown = finding.place_of(path, root)
    folders = tuple(filter(None, map(finding.fit, above.parts)))
    name = finding.name_of(reference, root)
    return _Thing(reference, _file(path), (*folders, name), 1, shown)


def _model(reference: str) -> _Thing:
    base, suffix = reference, ""
    while "+" in base and not files.is_folder(base):
        base, plus, last = base.rpartition("+")
        suffix = f"{plus}{last}{suffix}"
    if not files.is_folder(base) and base != EMBEDDED:  # a hub id, or nothing
        parts = tuple(part for part in base.split("/") if part not in ("", ".", "..")) or (
            reference,
        )
        return _Thing(reference, (parts, suffix), parts, 1, parts[-1], suffix=suffix)
    folder = files.expand(base)
    if base == EMBEDDED or _file(folder) == _file(_EMBEDDED_FOLDER):
        return _Thing(
            reference, (EMBEDDED, suffix), (EMBEDDED,), 1, EMBEDDED, own=True, suffix=suffix
        )
    # A link has the name that the person knows it by; ``.`` and ``..`` have none.
    named = folder.name not in ("", "..")
    whole = (
        folder.parent.resolve() / folder.name
        if named and ".." in folder.parts
        else folder.absolute()
    )
    place = whole if named else folder.resolve()
    parts = place.parts[1:] or ("root",)
    # A part of a diffusers pipeline is named after both: ``sdxl/text_encoder``.
    depth = 2 if files.is_file(place.parent / "model_index.json") and len(parts) > 1 else 1
    return _Thing(reference, (_file(folder), suffix), parts, depth, parts[-1], suffix=suffix)


def _file(path: Path) -> tuple[int, int]:
    """What is equal for two paths to one file or folder, whatever links lead there."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _is_kept_recipe(name: str) -> bool:
    """Whether only a recipe of this package, or the store, has the name *name*."""
    return name.casefold() in {
        kept_name.casefold() for kept_name in (*finding.DEFAULT, *finding.MORE, KEPT["recipe"][0])
    }


def _is_kept_model(name: str) -> bool:
    """Whether only the embedded model, or the store, has the name *name*."""
    return name.partition("+")[0].casefold() == EMBEDDED or name.casefold() == KEPT["model"][0]


# --- names that are different


def _distinct(
    things: Collection[_Thing],
    joint: str,
    key: Callable[[str], str],
    is_kept: Callable[[str], bool],
) -> dict[str, str]:
    """The name of each of *things*, of those that are the same the first one's.

    Args:
        things: what was given.
        joint: between two parts of a name.
        key: equal for two names that must not be given to different things.
        is_kept: whether a name is given to none but this package's own.
    """
    first: dict[Hashable, _Thing] = {}
    for thing in things:
        first.setdefault(thing.identity, thing)
    left = list(first.values())
    depths = {thing: thing.depth for thing in left}
    hashed: set[_Thing] = set()

    def name(thing: _Thing) -> str:
        shown = joint.join(thing.parts[-depths[thing] :])
        return shown + (f"-{_digest(thing.raw)}" if thing in hashed else "") + thing.suffix

    while True:
        keys = {thing: key(name(thing)) for thing in left if thing.own or not is_kept(name(thing))}
        counts = Counter(keys.values())
        clashing = [
            other
            for other in left
            if not other.own and (other not in keys or counts[keys[other]] > 1)
        ]
        if not clashing:
            return {thing.reference: name(thing) for thing in left}
        growing = [thing for thing in clashing if depths[thing] < len(thing.parts)]
        for thing in growing:
            depths[thing] += 1
        if growing:
            continue
        if hashed.issuperset(clashing):
            raise UsageError(clashing[0].reference, "has the name of something else", "Rename it.")
        # No folder distinguishes them: their names differ in capitals alone, or in a suffix.
        hashed.update(clashing)
        depths.update({thing: thing.depth for thing in clashing})


def _digest(text: str) -> str:
    return digests.of_text(text)[:8]
