"""How many samples each metric of a task has, from names, labels and captions alone.

Nothing here needs torch: what depends on the counts is refused before it is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.data import samples, words
from harness.data.samples import CLASSIFICATION, Samples
from harness.errors import UsageError

ACC1, IMAGE_RECALL, TEXT_RECALL = "acc1", "image_retrieval_recall@5", "text_retrieval_recall@5"


def metrics_of(kind: str) -> tuple[str, ...]:
    """Return the metrics that a kind of task has."""
    return (ACC1,) if kind == CLASSIFICATION else (IMAGE_RECALL, TEXT_RECALL)


def of(names: Sequence[str] | None, data_root: Path | None) -> dict[tuple[str, str], int]:
    """Return the number of samples of each (task, metric), from names, labels and captions alone.

    The arguments are those of :func:`harness.data.tasks.load_tasks`.

    Raises:
        UsageError: a task is unknown, or its data are absent, incomplete or damaged.
    """
    return {
        (data_set.name, metric): data_set.prompts if metric == IMAGE_RECALL else len(data_set.ids)
        for data_set in loaded(names, data_root)
        for metric in metrics_of(data_set.kind)
    }


def loaded(names: Sequence[str] | None, data_root: Path | None) -> list[Samples]:
    """Return the data sets *names*, each once; what can be known without a picture is checked.

    Raises:
        UsageError: a task is unknown, or its data are absent, incomplete or damaged.
    """
    known: dict[Path, Samples] = {}
    names_to_load = samples.EMBEDDED_TASKS if names is None else names
    for name in dict.fromkeys(map(samples.canonical, names_to_load)):
        data_set = samples.load(name, data_root)
        # Several original formats may share a folder; a webdataset has its own.
        place = data_set.place / name if name in samples.LAYOUTS else data_set.place.resolve()
        if place in known:
            what = f"and {known[place].name} are the same data in {data_set.place}"
            raise UsageError(
                f"--tasks {name}", what, "Give one of them, or a --data-root that holds both."
            )
        words.check_count(data_set.prompts, data_set.place)
        candidates = len(data_set.classes) if data_set.labels is not None else len(data_set.ids)
        most = 1 if data_set.labels is not None else 5
        if candidates - 1 < most:
            fix = "A task needs more wrong candidates than the metric looks at."
            raise UsageError(
                data_set.place, f"{candidates} candidates are too few for {data_set.name}", fix
            )
        known[place] = data_set
    return list(known.values())
