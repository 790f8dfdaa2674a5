"""What is refused on the command line alone: values that cannot be used, and options that cancel
each other.

Nothing here imports torch or ModelOpt: a mistyped option is answered at once.
"""

from __future__ import annotations

import difflib
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness import files, places
from harness.errors import UsageError
from harness.pytest_plugin.run import is_worker

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

#: Options whose values are text, by their names in the configuration.
_TEXTS = {
    "gate_recipes": "--recipe",
    "recipes_root": "--recipes-root",
    "gate_models": "--clip-model",
    "gate_consumers": "--consumer",
    "architectures": "--architectures",
    "tasks": "--tasks",
    "data_root": "--data-root",
    "calibration_data": "--calibration-data",
    "baselines": "--baselines",
    "reason": "--reason",
    "changed_since": "--changed-since",
    "cluster": "--cluster",
    "gate_report": "--gate-report",
    "published_table": "--published-table",
}
#: Those of them that name a file or a folder and nothing else.
_PATHS = (
    "recipes_root",
    "data_root",
    "calibration_data",
    "baselines",
    "gate_report",
    "published_table",
)
#: Those that may name a file or a folder among other things.
_REFERENCES = ("gate_recipes", "gate_models")
#: Most characters of a value that is not a path; paths have the operating system's limit.
_MOST = 4096
#: Tests of the suites whose measurements are stored as baselines.
STORING = (
    "test_map_equals_baseline",
    "test_accuracy_equals_baseline",
    "test_probe_equals_baseline",
)
#: Options that cannot be used together: what is said of the first, and how to fix it.
_CANCEL: tuple[tuple[str, str, str, str], ...] = (
    (
        "update_baselines",
        "new_baselines_only",
        "does not go with --new-baselines-only, which changes no record",
        "Choose one.",
    ),
    (
        "list_affected",
        "update_baselines",
        "does not go with --update-baselines: nothing is measured",
        "Leave out one of them.",
    ),
    (
        "list_affected",
        "new_baselines_only",
        "does not go with --new-baselines-only: nothing is measured",
        "Leave out one of them.",
    ),
    (
        "gate_report",
        "list_affected",
        "does not go with --list-affected: nothing is gated",
        "Leave out one of them.",
    ),
    (
        "gate_annotations",
        "list_affected",
        "does not go with --list-affected: nothing is gated",
        "Leave out one of them.",
    ),
    *(
        (
            listing,
            other,
            f"does not go with {option}: nothing is measured",
            "Leave out one of them.",
        )
        for listing in ("list_recipes", "list_architectures")
        for other, option in (
            ("changed_since", "--changed-since"),
            ("update_baselines", "--update-baselines"),
            ("new_baselines_only", "--new-baselines-only"),
            ("gate_report", "--gate-report"),
            ("gate_annotations", "--gate-annotations"),
            ("published_table", "--published-table"),
        )
    ),
    *(
        (
            "published_table",
            other,
            f"does not go with {option}: no task is judged",
            "Leave out one of them.",
        )
        for other, option in (
            ("list_affected", "--list-affected"),
            ("architectures", "--architectures"),
        )
    ),
    *(
        (
            "architectures",
            other,
            f"does not go with {option}: recipes are gated without a model and its data",
            "Leave out one of them.",
        )
        for other, option in (
            ("gate_models", "--clip-model"),
            ("gate_consumers", "--consumer"),
            ("tasks", "--tasks"),
            ("calibration_data", "--calibration-data"),
            ("batch_size", "--batch-size"),
            ("update_baselines", "--update-baselines"),
            ("new_baselines_only", "--new-baselines-only"),
            ("blame", "--blame"),
            ("early_stop", "--early-stop"),
            ("cluster", "--cluster"),
        )
    ),
    (
        "architectures",
        "changed_since",
        "does not go with --changed-since, which leaves out recipes for other models than CLIP",
        "Name the recipes: --recipe REF.",
    ),
    *(
        (
            "architectures",
            listing,
            f"does not go with --{listing.replace('_', '-')}: nothing is gated",
            "Leave out one of them.",
        )
        for listing in ("list_recipes", "list_architectures")
    ),
    (
        "early_stop",
        "update_baselines",
        "does not go with --update-baselines: a baseline is of all samples, and not all are "
        "evaluated",
        "Leave out one of them.",
    ),
    (
        "early_stop",
        "new_baselines_only",
        "does not go with --new-baselines-only: a baseline is of all samples, and not all are "
        "evaluated",
        "Leave out one of them.",
    ),
    (
        "cluster",
        "early_stop",
        "does not go with --early-stop, which takes one block after another and stops",
        "Leave out one of them.",
    ),
    (
        "cluster",
        "list_affected",
        "does not go with --list-affected: nothing is gated",
        "Leave out one of them.",
    ),
)


def usage_error(message: str, known: Sequence[str]) -> str:
    """One line for what argparse says of the command line.

    Args:
        message: argparse's.
        known: the names of all options.
    """
    listed = "pytest --help lists all options."
    if message.startswith("unrecognized arguments: "):
        words = message.partition(": ")[2].split()
        options = [word for word in words if word.startswith("-")] or words
        name = options[0].partition("=")[0]
        near = difflib.get_close_matches(
            name, [option for option in known if option.startswith("--")], 1
        )
        fix = f"Did you mean {near[0]}?" if near else f"Correct it; {listed}"
        return str(UsageError(shortened(name), "is not an option", fix))
    named, colon, what = message.removeprefix("argument ").partition(": ")
    if not colon or not message.startswith("argument "):
        return str(UsageError("pytest", message, f"Correct the command; {listed}"))
    return str(UsageError(named, what, f"Correct the option; {listed}"))


def check_options(config: pytest.Config) -> None:
    """Refuse what cannot be used, and put paths where text was given; looks at no file but the
    places named.

    Raises:
        UsageError: a value cannot be used, or two options cancel each other.
    """
    for name, option in _TEXTS.items():
        _settle_text(config, name, option)
    _check_numbers(config)
    _check_places(config)
    _check_pairs(config)
    _check_store(config)
    _check_cluster(config)


def _settle_text(config: pytest.Config, name: str, option: str) -> None:
    option_value = config.getoption(name)
    if option_value is None:
        return
    values = option_value if isinstance(option_value, list) else [option_value]
    if name == "reason" and config.getoption("update_baselines") and not option_value.strip():
        return  # the option that needs it says so
    for value in values:
        _check_text(os.fspath(value), option, bounded=name not in _PATHS)
    if name in _PATHS:
        setattr(config.option, name, files.expand(option_value, option=option))
    elif name in _REFERENCES:
        for value in values:
            files.expand(value, option=option)


def _check_text(text: str, option: str, *, bounded: bool) -> None:
    """Refuse what is empty, too long, or cannot be written as UTF-8."""
    if not text.strip():
        raise UsageError(option, "is empty", "Give a value, or leave the option out.")
    try:
        text.encode()
    except UnicodeEncodeError:
        fix = "Rename what it names, or give it in UTF-8."
        raise UsageError(
            f"{option} {shortened(text)}", "holds bytes that are not UTF-8", fix
        ) from None
    if "\0" in text:
        raise UsageError(f"{option} {shortened(text)}", "holds a NUL character", "Leave it out.")
    if bounded and len(text) > _MOST:
        what = f"has {len(text):,} characters"
        raise UsageError(f"{option} {shortened(text)}", what, f"Give at most {_MOST:,} characters.")


def shortened(text: str, most: int = 60) -> str:
    """The beginning of a value that somebody gave, for a message."""
    return text if len(text) <= most else f"{text[:most]}..."


def _check_numbers(config: pytest.Config) -> None:
    if config.getoption("calibration_size") < 1:
        size = config.getoption("calibration_size")
        raise UsageError("--calibration-size", f"is {size}", "Give a positive number of pairs.")
    rows = config.getoption("batch_size")
    if rows is not None and rows < 1:
        raise UsageError("--batch-size", f"is {rows}", "Give a positive number of rows.")


def _check_reason(reason: str) -> None:
    """Refuse to change baselines without a reason, before anything is measured."""
    from harness.baselines import PLACEHOLDER  # not at the top: starting pytest needs no numpy

    fix = "Say why the baselines change: --reason TEXT."
    if not reason:
        raise UsageError("--update-baselines", "has no reason", fix)
    if reason == PLACEHOLDER:
        raise UsageError(
            f"--reason {PLACEHOLDER!r}", "stands for a reason in printed commands", fix
        )


def _check_pairs(config: pytest.Config) -> None:
    """Refuse options of which one would have no effect."""
    get = config.getoption
    for first, second, what, fix in _CANCEL:
        if get(first) and get(second):
            raise UsageError(_option(first), what, fix)
    if get("update_baselines"):
        _check_reason((get("reason") or "").strip())
    if get("reason") and not (get("update_baselines") or get("new_baselines_only")):
        what = "is of no use: no baseline is stored"
        raise UsageError("--reason", what, "Give --update-baselines with it, or leave it out.")
    if get("changed_since") is not None and get("recipes_root") is None:
        raise UsageError(
            "--changed-since", "needs a recipe tree", "Give --recipes-root DIR in a git checkout."
        )
    if get("list_affected") and get("changed_since") is None:
        raise UsageError(
            "--list-affected",
            "has nothing to list",
            "It needs --changed-since REV and --recipes-root DIR.",
        )
    if get("data_root") is not None and get("tasks") is None:
        what = "is read by no task: those of a plain run are the embedded ones"
        raise UsageError("--data-root", what, "Name the tasks that are there: --tasks NAME.")
    if get("early_stop") and _asks_for_tuning(get("markexpr") or ""):
        what = "does not go with -m qat: what fine-tuning wins back is judged on all samples"
        raise UsageError("--early-stop", what, "Leave out one of them.")
    words = [str(word) for word in config.invocation_params.args]
    if "--blame" in words and "--no-blame" in words:
        raise UsageError("--blame", "does not go with --no-blame", "Choose one.")
    workers = getattr(config.option, "numprocesses", None)
    stored = get("update_baselines") or get("new_baselines_only")
    # By case is how the gate itself hands out tests (harness.pytest_plugin.workers): "load" stands
    # for it.
    if stored and workers and config.getoption("dist", "load") not in ("load", "loadgroup", "no"):
        how = config.getoption("dist")
        what = (
            f"does not go with --dist {how}: a worker would store a case without knowing what "
            f"failed in another"
        )
        raise UsageError(
            _option("update_baselines" if get("update_baselines") else "new_baselines_only"),
            what,
            "Leave --dist out.",
        )


def _asks_for_tuning(expression: str) -> bool:
    """Whether ``-m`` asks for the tests that fine-tune."""
    return re.search(r"\bqat\b", re.sub(r"\bnot\s+qat\b", "", expression)) is not None


def _option(name: str) -> str:
    return _TEXTS.get(name) or f"--{name.replace('_', '-')}"


def _check_places(config: pytest.Config) -> None:
    get = config.getoption
    for name in ("recipes_root", "data_root"):
        path = get(name)
        # Filled in for each task, and looked for then
        pattern = name == "data_root" and "{dataset" in str(path)
        if path is not None and not pattern and not files.is_folder(path):
            raise UsageError(
                f"{_option(name)} {path}", "is not a directory", "Give an existing directory."
            )
    path = get("calibration_data")
    if path is not None and not files.is_folder(path) and not files.is_file(path):
        what = "is neither a directory nor a file"
        raise UsageError(
            f"--calibration-data {path}", what, "Give an existing directory, or an annotation file."
        )
    folder = get("gate_report")
    if folder is not None and files.exists(folder) and not files.is_folder(folder):
        raise UsageError(
            f"--gate-report {folder}", "is a file", "Give a folder, or a name that is free."
        )
    table: Path | None = get("published_table")
    if table is not None:
        _check_table(table)


def _check_table(table: Path) -> None:
    """Refuse a file of the published table that could not be written after the run."""
    where = f"--published-table {table}"
    if table.suffix != ".md":
        fix = "Give a file that ends in .md; the same data are written next to it as .json."
        raise UsageError(where, "is not the name of a Markdown file", fix)
    if not files.is_folder(table.parent):
        raise UsageError(where, "is in a folder that does not exist", "Make the folder first.")
    if not os.access(table.parent, os.W_OK):
        raise UsageError(where, "is in a folder that cannot be written", "Give another folder.")
    for path in (table, table.with_suffix(".json")):
        if os.path.lexists(path) and (path.is_symlink() or not files.is_file(path)):
            fix = "Move it away, or give another name."
            raise UsageError(where, f"{path.name} is not a regular file", fix)


def _check_store(config: pytest.Config) -> None:
    """Refuse to store anything in an installed gate: the next installation would replace it."""
    names = [name for name in ("update_baselines", "new_baselines_only") if config.getoption(name)]
    store = config.getoption("baselines") or places.BASELINES
    if not names or not places.INSTALLED or Path(store).resolve() != places.BASELINES.resolve():
        return
    fix = f"Give a folder of your own, with a copy of {places.BUDGETS} in it: --baselines DIR."
    raise UsageError(_option(names[0]), "would change the baselines of the installed gate", fix)


def _check_cluster(config: pytest.Config) -> None:
    address = config.getoption("cluster")
    if address is None:
        return
    # Not at the top: numpy is imported with it
    from harness.evaluation import addresses

    if address == addresses.LOCAL and getattr(config.option, "numprocesses", None):
        what = "does not go with -n, which starts processes on this machine itself"
        raise UsageError(
            "--cluster local",
            what,
            "Leave out one of them, or give the address of a running cluster.",
        )
    addresses.check(address)


def check_stored(config: pytest.Config, tests: Iterable[str]) -> None:
    """Refuse to store baselines, or to write a table, from *tests* that measure nothing for it.

    Raises:
        UsageError: none of the selected tests measures it.
    """
    get = config.getoption
    storing_option = next(
        (name for name in ("update_baselines", "new_baselines_only") if get(name)), None
    )
    functions = {test.partition("[")[0].rpartition("::")[2] for test in tests}
    if get("published_table") and functions and "test_loss_is_within_budget" not in functions:
        what = "has nothing to write: no selected test judges a task"
        fix = "Select the accuracy suite as well, or leave the option out."
        raise UsageError("--published-table", what, fix)
    if storing_option is not None and functions and not functions & set(STORING):
        what = "has nothing to store: no selected test measures what a baseline holds"
        fix = f"Select {' or '.join(STORING)} as well, or leave the option out."
        raise UsageError(_option(storing_option), what, fix)


def prepare_report(config: pytest.Config) -> None:
    """Make the folder of the report and try to write into it: after the tests it would be too late
    to find out.

    Raises:
        UsageError: nothing can be written there.
    """
    folder: Path | None = config.getoption("gate_report")
    if folder is None or is_worker(config) or config.option.collectonly:
        return
    where, fix = f"--gate-report {folder}", "Give a folder that can be written."
    for path in _in_the_way(folder):
        raise UsageError(
            where,
            f"{path.name} in it is not a regular file",
            "Move it away, or give another folder.",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(where, f"cannot be written ({error.strerror or error})", fix) from error


def _in_the_way(folder: Path) -> Iterator[Path]:
    """What has the name of a file of the report and is a link, a folder or a device."""
    from harness import report  # asks for pydantic, which not every run needs
    from harness.report import annotated

    for name in (*report.FILES, annotated.COMMANDS, annotated.SARIF):
        path = folder / name
        if os.path.lexists(path) and (path.is_symlink() or not files.is_file(path)):
            yield path
