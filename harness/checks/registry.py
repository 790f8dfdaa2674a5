"""The gate's checks, by suite and name: what the tests of the suites call, and what the proof
measures.

A check is a function that returns what is wrong; nothing wrong is an empty list.  It is registered
under its suite and its own name, and ``tests/test_<suite>.py`` has one test of it, ``test_<name>``.
A notebook calls the same functions::

    from harness.checks import insertion
    insertion.every_enabled_quantizer_runs(case)
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from harness.gate.case import Case

#: The suites, in the order in which a run takes them; each is a module of this package.
SUITES = (
    "insertion",
    "numerics",
    "accuracy",
    "consumers",
    "checkpoint",
    "export",
    "throughput",
    "qat",
    "orphans",
)

#: Values of a parameter: fixed, or what a case has.
Values = Iterable[object] | Callable[["Case"], Iterable[object]]
Run = TypeVar("Run", bound=Callable[..., object])


class NotJudged(Exception):  # noqa: N818 - no error: there is nothing to judge
    """A check has nothing to look at; the text says why."""


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        suite: the suite that it belongs to.
        name: of its function; its test has ``test_`` before it.
        run: the function.
        recorded: whether it compares with a stored baseline.
        values: what its parameters range over, by name.  ``case``, ``gate`` (the case's setting)
            and ``folder`` are given to any check; whatever else a function takes is a fixture that
            a test alone has, such as ``benchmark`` or ``tuned``.
    """

    suite: str
    name: str
    run: Callable[..., object]
    recorded: bool = False
    values: Mapping[str, Values] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The name in words."""
        return self.name.replace("_", " ")

    @property
    def is_of_case(self) -> bool:
        """Whether the check is about a case; the others are about a release of ModelOpt and a
        device.
        """
        return "case" in inspect.signature(self.run).parameters

    @property
    def needs_fixture(self) -> tuple[str, ...]:
        """Return the parameters that only a test can supply: fixtures of pytest, a fine-tuned
        model.
        """
        available = {"case", "gate", "folder", *self.values}
        return tuple(
            name
            for name, parameter in inspect.signature(self.run).parameters.items()
            if name not in available and parameter.default is parameter.empty
        )

    def problems(
        self, case: Case, only: Mapping[str, Iterable[object]] | None = None
    ) -> Iterator[str]:
        """Yield the problems of *case* for all values of the check's parameters; values that cannot
        be judged are left out.

        Args:
            case: a case of a run.
            only: values that take the place of a parameter's own, by name.

        Raises:
            TypeError: the check needs what a test alone can give.
        """
        if self.needs_fixture:
            # A plain run leaves fine-tuning out.
            asked = " -m qat" if self.suite == "qat" else ""
            if "architecture_name" in self.needs_fixture:
                asked = " --architectures all"
            raise TypeError(
                f"{self.suite}: {self.name} needs {' and '.join(self.needs_fixture)}, which its "
                f"test alone has: run pytest tests/test_{self.suite}.py::test_{self.name}{asked}"
            )
        accepted = inspect.signature(self.run).parameters
        values = dict(self.values) | {
            name: few for name, few in (only or {}).items() if name in accepted
        }
        ranges = [of(case) if callable(of) else of for of in values.values()]
        arguments = {
            name: value
            for name, value in (("case", case), ("gate", case.setting))
            if name in accepted
        }
        for chosen in itertools.product(*ranges):
            with tempfile.TemporaryDirectory() as folder:
                own = {"folder": Path(folder)} if "folder" in accepted else {}
                try:
                    result = self.run(**arguments, **own, **dict(zip(values, chosen, strict=True)))
                except NotJudged:
                    continue
            yield from _texts(result)


def _texts(result: object) -> list[str]:
    """Return the result of a check as texts, one per problem."""
    from harness.baselines import Comparison
    from harness.statistics.verdicts import Decision, Verdict

    if isinstance(result, Verdict):
        return [] if result.decision is Decision.PASS else [result.message()]
    if isinstance(result, Comparison):
        return [result.message()] if result.failed else []
    assert isinstance(result, Iterable), "a check returns a verdict, a comparison or problems"
    return [str(problem) for problem in result]


_CHECKS: dict[tuple[str, str], Check] = {}


def check(suite: str, *, recorded: bool = False, **values: Values) -> Callable[[Run], Run]:
    """Register a function as a check of *suite*, under its own name.

    Args:
        suite: the suite.
        recorded: whether it compares with a stored baseline.
        values: what its parameters range over.
    """

    def register(run: Run) -> Run:
        key = suite, run.__name__
        if suite not in SUITES or key in _CHECKS:
            raise ValueError(f"{suite}: {run.__name__}: not a suite, or registered before")
        _CHECKS[key] = Check(suite, run.__name__, run, recorded, values)
        return run

    return register


def every() -> tuple[Check, ...]:
    """All registered checks, suite by suite."""
    for suite in SUITES:
        importlib.import_module(f"harness.checks.{suite}")
    return tuple(check for suite in SUITES for check in _CHECKS.values() if check.suite == suite)
