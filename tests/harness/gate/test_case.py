"""A case builds each thing once, remembers what failed, and writes nothing anywhere when it is
asked.
"""

from __future__ import annotations

from typing import Any

import pytest

from harness.errors import UsageError
from harness.gate.built import built, forget_frames, is_built
from harness.gate.listing import CaseName
from harness.gate.options import Options
from harness.gate.reference_side import Prepared
from harness.gate.results import Results
from harness.gate.session import Gate
from harness.pytest_plugin import collector


class Tried:
    """Counts how often a property was tried; *error* is what trying raises."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.tries = 0

    @built
    def value(self) -> int:
        """The number of tries, or the error."""
        self.tries += 1
        if self.error is not None:
            raise self.error
        return self.tries


@pytest.mark.parametrize(
    ("error", "tries"),
    [(None, 1), (ValueError("no"), 1), (UsageError("here", "is wrong", "Fix it."), 2)],
)
def test_a_value_is_tried_once(error: Exception | None, tries: int) -> None:
    """A value and an error are kept; a usage error ends the run and is raised by a new try each
    time.
    """
    tried = Tried(error)
    seen: list[object] = []
    assert not is_built(tried, "value")

    for _ in range(2):
        try:
            seen.append(tried.value)
        except Exception as raised:
            seen.append(raised)

    assert (tried.tries, is_built(tried, "value")) == (tries, error is None)
    assert seen == [error or 1] * 2


def test_a_remembered_error_can_let_go_of_its_frames() -> None:
    """The frames of an error hold models; they are dropped, and the error stays."""
    error = ValueError("no")
    tried = Tried(error)
    with pytest.raises(ValueError, match="no"):
        assert tried.value

    forget_frames(tried)

    assert error.__traceback__ is None
    with pytest.raises(ValueError, match="no") as again:
        assert tried.value
    assert again.value is error


def test_what_is_prepared_is_taken_over() -> None:
    """Another run's tasks are this one's; what nobody has built is built here, and only what exists
    is handed on.
    """
    tasks: Any = ("one", "two")
    gate = Gate(Options(recipes=("fp8", "int8")), prepared={"embedded": Prepared(tasks=tasks)})
    first, second = gate.cases()

    assert first.tasks is tasks
    assert first.shared is second.shared
    assert first.shared.prepared(("tasks", "runs", "reference")) == Prepared(tasks=tasks)
    assert first.shared.prepared(("runs",)) == Prepared()


def test_a_case_is_one_object_under_its_name() -> None:
    """Whoever asks for a case gets the same one, by its name or in the list."""
    gate = Gate(Options(recipes=("fp8",)))
    (case,) = gate.cases()

    assert gate[CaseName("fp8", "embedded")] is case
    assert gate.cases() == [case]
    assert (case.id, case.recipe_name, case.model_name) == ("fp8-embedded", "fp8", "embedded")


def test_asking_leaves_no_results() -> None:
    """A run whose cases were looked at and not measured has no case in its results, and nothing to
    store.
    """
    gate, results = Gate(Options(recipes=("fp8",))), Results()
    (case,) = gate.cases()
    assert case.recipe.name == "fp8"
    assert case.reference.name == "embedded"

    collector.collect(gate, results, collector.Notes())

    assert results.as_dict()["cases"] == []
    assert gate.measured() == {}
