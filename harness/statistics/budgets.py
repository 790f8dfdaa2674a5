"""The budgets file: what loss is allowed on which task, and which layers a recipe leaves out on
purpose.

Policy, written and reviewed by people; what was measured lives in the records next to it. Four
sections::

    defaults:       # terms of every budget
      points: 1.0
    tasks:          # by task, and within it by metric
      emoji: {samples: 1632, points: 2.0}
    overrides:      # in order, a later one wins; recipe, model, task and metric are names or globs,
                    # one that is left out stands for any
      - {recipe: int4-*, task: emoji, points: 4.0, reason: four-bit weights}
    expectations:   # layers that a recipe leaves unquantized
      fp8-linear-only:
        - {tower: vision, module_kind: attention, reason: the recipe quantizes Linear layers only}

The allowed loss is `points`, or `share: 0.99` of the reference's accuracy, or a `preset`
(mlperf-99, mlperf-99.9, 1-point). A gain that is significantly above `most_gain` points is GAIN,
which fails until an override declares a larger one with its reason.

`points`, `most_gain` and `expected_loss` are percentage points; all other shares are fractions.
`python -m harness.statistics.budgets` prints what each budget can resolve.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import re
import sys
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from harness import files, places
from harness.errors import UsageError
from harness.files import PlaceOf
from harness.statistics.limits import Limits, NonNegative, Number, Strict
from harness.statistics.verdicts import MOST_DESIGN_EFFECT, Budget, resolution

LEAST_ALPHA = 1e-6
"""Smallest alpha of the file. The tests hold further down; nobody runs a million gates to see
it.
"""

Text = Annotated[str, Field(pattern=r"\S")]


#: What to do about the file where it is absent, misses a key or has one that does not exist.
_FIXES = {
    "absent": "Point --baselines at the folder that holds it, or begin with a copy of "
    f"{places.BUDGETS}.",
    "extra_forbidden": "Correct the name; harness/statistics/budgets.py lists the settings.",
    "missing": "An override and an expectation need a reason; the file needs defaults.",
}


#: Budgets that people already use, by name: MLPerf's shares of the reference, and one point.
PRESETS: dict[str, dict[str, float]] = {
    "mlperf-99": {"share": 0.99},
    "mlperf-99.9": {"share": 0.999},
    "1-point": {"points": 1.0},
}
#: Terms of which the latest decides how large the allowed loss is.
_LOSSES = ("points", "share", "preset")


class _Terms(Strict):
    points: Annotated[Number, Field(gt=0, lt=100)] | None = None
    share: Annotated[Number, Field(gt=0, lt=1)] | None = None
    preset: Literal["mlperf-99", "mlperf-99.9", "1-point"] | None = None
    most_gain: Annotated[Number, Field(gt=0, lt=100)] | None = None
    alpha: Annotated[Number, Field(ge=LEAST_ALPHA, lt=0.5)] | None = None
    power: Annotated[Number, Field(gt=0.5, lt=1)] | None = None
    expected_loss: NonNegative | None = None
    discordance: Annotated[Number, Field(gt=0, lt=1)] | None = None
    design_effect: Annotated[Number, Field(ge=1, le=MOST_DESIGN_EFFECT)] | None = None
    large_margin: Annotated[Number, Field(ge=-1e6, le=1e6)] | None = None
    limits: Limits | None = None


class _Metric(_Terms):
    samples: Annotated[int, Field(gt=0, le=10**12)] | None = None


class _Task(_Metric):
    metrics: dict[Text, _Metric] = Field(default_factory=dict)


class _Override(_Terms):
    recipe: Text = "*"
    model: Text = "*"
    task: Text = "*"
    metric: Text = "*"
    reason: Text


class _LeaveOut(Strict):
    tower: Literal["vision", "text"]
    module_kind: Literal["linear", "patch_embedding", "attention"]
    reason: Text


class _File(Strict):
    defaults: _Terms
    tasks: dict[Text, _Task] = Field(default_factory=dict)
    overrides: list[_Override] = Field(default_factory=list)
    expectations: dict[Text, list[_LeaveOut]] = Field(default_factory=dict)


@dataclass(frozen=True)
class LeaveOut:
    """A kind of layer that a recipe leaves unquantized in one tower, and why."""

    tower: str
    module_kind: str
    reason: str
    place: str


class Policy:
    """A budgets file, checked. Made by `load`."""

    def __init__(self, path: Path, content: _File, place: PlaceOf) -> None:
        self.path = path
        self._content = content
        self._place = place

    def budget(self, task: str, metric: str, recipe: str = "", model: str = "") -> Budget:
        """The budget of one metric of one task for a recipe and model (short names, as in test
        ids).

        Terms in order, a later one wins: defaults, the task, its metric, the overrides that match.
        A task that the file does not name by its full name is looked up by the last part of it
        (`wds/vtab/cifar100`: `cifar100`), else the defaults hold.
        """
        name = self._task(task)
        layers: list[tuple[_Terms, tuple[Hashable, ...]]] = [
            (self._content.defaults, ("defaults",))
        ]
        if name is not None:
            entry = self._content.tasks[name]
            layers.append((entry, ("tasks", name)))
            if metric in entry.metrics:
                layers.append((entry.metrics[metric], ("tasks", name, "metrics", metric)))
        reasons = []
        for number, override in enumerate(self._content.overrides):
            if _matches(override, recipe, model, (task, name), metric):
                layers.append((override, ("overrides", number)))
                reasons.append(override.reason)
        return self._merge(layers, "; ".join(reasons))

    def samples(self, task: str, metric: str) -> int | None:
        """Sample count that the file declares for a metric of a task, for planning; None if it does
        not.
        """
        name = self._task(task)
        if name is None:
            return None
        entry = self._content.tasks[name]
        own = entry.metrics[metric].samples if metric in entry.metrics else None
        return own or entry.samples

    def expectations(self, recipe: str) -> tuple[LeaveOut, ...]:
        """What a recipe is declared to leave unquantized."""
        declared = self._content.expectations.get(recipe, [])
        return tuple(
            LeaveOut(e.tower, e.module_kind, e.reason, self.place("expectations", recipe, i))
            for i, e in enumerate(declared)
        )

    def left_out(self, recipe: str) -> tuple[tuple[str, str], ...]:
        """`expectations` as (tower, module kind) pairs."""
        return tuple((e.tower, e.module_kind) for e in self.expectations(recipe))

    def check_names(self, recipes: Iterable[str], tasks: Iterable[str]) -> None:
        """UsageError for an override or expectation that matches none of the known recipes or
        tasks.
        """
        known, known_tasks = list(recipes), [*tasks, *self._content.tasks]
        for i, override in enumerate(self._content.overrides):
            for key, names in (("recipe", known), ("task", known_tasks)):
                pattern = getattr(override, key)
                if not fnmatch.filter(names, pattern):
                    what = f"{key} {pattern!r} matches none of {', '.join(sorted(names))}"
                    raise UsageError(
                        self.place("overrides", i, key),
                        what,
                        "Correct the name or remove the override.",
                    )
        for recipe in self._content.expectations:
            if recipe not in known:
                what = f"there is no recipe {recipe!r} among {', '.join(sorted(known))}"
                raise UsageError(
                    self.place("expectations", recipe),
                    what,
                    "Correct the name or remove the entry.",
                )

    def place(self, *keys: Hashable) -> str:
        """`file:line (dotted.keys)` of an entry."""
        return self._place(*keys)

    def metrics(self, task: str) -> tuple[str, ...]:
        """Metrics of a task that have terms of their own."""
        name = self._task(task)
        return () if name is None else tuple(self._content.tasks[name].metrics)

    def has_entry(self, task: str) -> bool:
        """Whether the file has terms of its own for a task."""
        return self._task(task) is not None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks that the file names."""
        return tuple(self._content.tasks)

    def check(self) -> None:
        """UsageError if any combination of terms in the file makes no budget."""
        content = self._content
        for task in (*content.tasks, "a task without an entry"):
            for metric in ("acc1", *self.metrics(task)):
                for override in (None, *content.overrides):
                    names = ("", "") if override is None else (override.recipe, override.model)
                    self.budget(task, metric, *names)

    def _task(self, task: str) -> str | None:
        return next(
            (name for name in (task, task.rpartition("/")[2]) if name in self._content.tasks), None
        )

    def _merge(self, layers: list[tuple[_Terms, tuple[Hashable, ...]]], reason: str) -> Budget:
        terms: dict[str, Any] = {}
        limits: dict[str, Any] = {}
        place: tuple[Hashable, ...] = ("defaults",)
        for layer, keys in layers:
            terms_of_layer = layer.model_dump(exclude_unset=True, include=set(_Terms.model_fields))
            limits |= terms_of_layer.pop("limits", None) or {}
            loss = [name for name in _LOSSES if terms_of_layer.get(name) is not None]
            if len(loss) > 1:
                what = f"{' and '.join(loss)} are both given"
                raise UsageError(
                    self.place(*keys), what, "Give one: points, share, or the name of a preset."
                )
            if loss:
                # Where the allowed loss is written is where a maintainer would change it.
                place = keys
                for name in _LOSSES:
                    terms.pop(name, None)
            terms |= terms_of_layer
        terms |= PRESETS.get(terms.pop("preset", None) or "", {})
        if terms.get("share") is not None:
            terms["points"] = 100 * (1 - terms["share"])
        if terms.get("points") is None:
            raise UsageError(
                self.place("defaults"),
                "no points are given",
                "Give the allowed loss: `points: 1.0`, `share: 0.99` or `preset: mlperf-99`.",
            )
        terms = {k: v for k, v in terms.items() if v is not None or k == "large_margin"}
        return Budget(**terms, limits=Limits(**limits), reason=reason, place=self.place(*place))


def load(path: Path) -> Policy:
    """Read and check a budgets file; UsageError (file, line, place, fix) for anything wrong in
    it.
    """
    parsed, place = files.read_yaml_with_places(path, _File, what="budgets file", fixes=_FIXES)
    policy = Policy(path, parsed, place)
    policy.check()
    return policy


@dataclass(frozen=True)
class SamplePlan:
    """Samples of one metric of a task, with the budgets of all recipes that will be judged on
    it.
    """

    task: str
    metric: str
    samples: int
    design_effect: float
    budgets: tuple[Budget, ...]

    def smallest(self) -> float | None:
        """Smallest budget in half points that these samples resolve under every recipe; None if
        there is none.
        """
        points = 0.0
        for budget in self.budgets:
            plan = resolution(
                budget, self.samples, design_effect=max(budget.design_effect, self.design_effect)
            )
            points = max(points, math.ceil(2 * plan.smallest_points) / 2)
        return points if points < 100 else None


def no_entry(policy: Policy, task: str, plans: Sequence[SamplePlan]) -> UsageError:
    """Return the refusal of a task without budgets of its own that has too few samples for the
    default budget.

    The fix is the line to add under `tasks`.
    """
    where = policy.place("tasks") if policy.tasks else str(policy.path)
    counts = ", ".join(f"{plan.samples:,} samples ({plan.metric})" for plan in plans)
    default = max(budget.points for plan in plans for budget in plan.budgets)
    what = (
        f"{task} has no budget of its own, and its {counts} cannot resolve the default of "
        f"{default:g} points"
    )
    entries = {}
    for plan in plans:
        smallest = plan.smallest()
        if smallest is None:
            return UsageError(
                where, what, f"They resolve no budget: give {task} more samples, or leave it out."
            )
        effect = f", design_effect: {plan.design_effect:g}" if plan.design_effect > 1 else ""
        entries[plan.metric] = f"{{samples: {plan.samples}, points: {smallest:.1f}{effect}}}"
    entry = entries.get("acc1") if len(entries) == 1 else None
    if entry is None:
        entry = (
            "{metrics: {"
            + ", ".join(f"{metric}: {terms}" for metric, terms in entries.items())
            + "}}"
        )
    name = task.rpartition("/")[2]
    key = name if re.fullmatch(r"[A-Za-z][\w.-]*", name) else json.dumps(name)
    return UsageError(where, what, f"Write under tasks: `{key}: {entry}`")


def _matches(
    override: _Override, recipe: str, model: str, tasks: tuple[str | None, ...], metric: str
) -> bool:
    plain = ((override.recipe, recipe), (override.model, model), (override.metric, metric))
    return all(fnmatch.fnmatchcase(value, pattern) for pattern, value in plain) and any(
        fnmatch.fnmatchcase(task, override.task) for task in tasks if task is not None
    )


def table(
    policy: Policy, recipe: str = "", model: str = "", discordance: float | None = None
) -> str:
    """What each task's budget resolves at its declared sample count: one line per metric."""
    columns = ("samples", "discord.", "expected", "budget", "resolves", "needs")
    head = f"{'task':16} {'metric':26} " + " ".join(f"{c:>8}" for c in columns) + "  power"
    rows = [head]
    for task in policy.tasks:
        for metric in policy.metrics(task) or ("acc1",):
            budget, n = policy.budget(task, metric, recipe, model), policy.samples(task, metric)
            if n is None:
                rows.append(f"{task:16} {metric:26} {'?':>8}")
                continue
            plan = resolution(budget, n, discordance)
            rows.append(
                f"{task:16} {metric:26} {n:8d} {plan.discordance:8.1%} {budget.expected_loss:8.2f} "
                f"{budget.points:8.2f} "
                f"{plan.smallest_points:8.2f} {plan.samples_needed:8d} {plan.power:6.0%}"
            )
    return "\n".join(rows)


def main(arguments: list[str] | None = None) -> int:
    """Print what the budgets can resolve, as a help to tune them."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.statistics.budgets", description=main.__doc__
    )
    parser.add_argument("file", nargs="?", type=Path, default=Path("baselines/budgets.yaml"))
    parser.add_argument("--recipe", default="", help="apply the overrides of this recipe")
    parser.add_argument("--model", default="embedded", help="apply the overrides of this model")
    parser.add_argument(
        "--discordance",
        type=float,
        help="share of samples right in one model only, in place of the declared",
    )
    options = parser.parse_args(arguments)
    try:
        print(table(load(options.file), options.recipe, options.model, options.discordance))
    except UsageError as error:
        print(error, file=sys.stderr)
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
