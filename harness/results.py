"""What one run of the gate found, as plain data: the one thing that reports, summaries and other processes read.

A run is a list of cases, one a recipe and model.  A case has sections (``insertion``, ``numerics``, ``accuracy``,
``checkpoint``, ``throughput``, ``drift``, ``blame``, ``export``), each filled by the suite of that name.  Everything is
JSON: a worker process hands its part to the one that reports.
"""

from __future__ import annotations

from typing import Any

#: Version of the shape below; raised when a reader of an older shape would misread it.
SCHEMA = 1

Json = Any


class Results:
    """The cases of a run, in the order in which they were first touched."""

    def __init__(self) -> None:
        self.cases: dict[str, dict[str, Json]] = {}
        self.environment: dict[str, Json] = {}

    def case(self, recipe: str, model: str) -> dict[str, Json]:
        """The case of *recipe* on *model*; made on first use."""
        return self.cases.setdefault(f"{recipe}-{model}", {"recipe": recipe, "model": model})

    def section(self, recipe: str, model: str, name: str) -> dict[str, Json]:
        """A section of a case; made on first use."""
        found: dict[str, Json] = self.case(recipe, model).setdefault(name, {})
        return found

    def merge(self, other: dict[str, Json]) -> None:
        """Take over what another process found (its ``as_dict``)."""
        expected = [side.get("expected_differences", {}) for side in (self.environment, other["environment"])]
        self.environment = other["environment"] | self.environment
        if any(expected):
            self.environment["expected_differences"] = expected[0] | expected[1]
        for case in other["cases"]:
            mine = self.case(case["recipe"], case["model"])
            for name, value in case.items():
                if isinstance(value, dict):
                    mine.setdefault(name, {}).update(value)
                else:
                    mine[name] = value

    def as_dict(self) -> dict[str, Json]:
        """The whole run as one JSON value."""
        return {"schema": SCHEMA, "environment": self.environment, "cases": list(self.cases.values())}
