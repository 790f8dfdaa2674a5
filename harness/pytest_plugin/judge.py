"""The fixture ``check``, with which a test of the suites reports what the library found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from harness.pytest_plugin import collector
from harness.pytest_plugin.outcomes import (
    Gained,
    Inconclusive,
    NotHeld,
    address_of,
    case_of,
    first_line,
)
from harness.pytest_plugin.run import options_of, parameters

if TYPE_CHECKING:
    from harness.baselines import Comparison
    from harness.gate.listing import CaseName
    from harness.statistics.verdicts import Verdict

#: Which test showed the quantizers at fault of a case.
_BLAMED = pytest.StashKey[dict["CaseName", str]]()


class Judge:
    """Turns results of the library into a test's outcome, with the commands that rerun the case and
    accept it.
    """

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._nodeid = address_of(request.node)
        self._options = repeated_options(request.config, request.node)
        self._request = request

    def problems(self, reported: Iterable[object], heading: str = "") -> None:
        """Fail with all of *reported*, one paragraph each; pass if there are none."""
        from harness.baselines import rerun_command

        problems = list(reported)
        collector.keep_problems(self._request.node, problems)
        texts = [str(problem) for problem in problems]
        if texts:
            parts = (
                [heading] * bool(heading)
                + texts
                + [f"rerun:  {rerun_command(self._nodeid, self._options)}"]
            )
            raise NotHeld("\n\n".join(parts), self._causes(texts))

    def verdict(self, verdict: Verdict) -> None:
        """Fail if the loss is over its budget. The outcome has a word of its own if the data do not
        decide (INCONCLUSIVE) or if the gain is not plausible (GAIN).
        """
        from harness.baselines import rerun_command
        from harness.statistics.verdicts import Decision

        self._request.node.user_properties.append(("verdict", verdict.decision.value))
        message = verdict.message()
        wanted = self._request.config.getoption("blame")
        # What the search for quantizers at fault evaluates are tasks, not tokens.
        is_of_task = "metric" in parameters(self._request.node)
        asked = wanted and verdict.decision is not Decision.GAIN  # no quantizer is at fault there
        if is_of_task and (asked or (wanted is None and verdict.decision is Decision.FAIL)):
            message += "\n\n" + self._blame(verdict.task, verdict.metric)
        message += f"\nrerun:  {rerun_command(self._nodeid, self._options)}"
        if verdict.decision is Decision.INCONCLUSIVE:
            raise Inconclusive(message, pytrace=False)
        if verdict.decision is Decision.GAIN:
            raise Gained(message)
        if verdict.decision is Decision.FAIL:
            raise NotHeld(message)

    def drift(self, drift: Comparison) -> None:
        """Fail if there is no baseline, if it belongs to something else, or if something moved."""
        get = self._request.config.getoption
        # --new-baselines-only stores what is missing; a record that moved stays as it is and still
        # fails.
        if get("update_baselines") or (get("new_baselines_only") and drift.only_adds):
            return
        if drift.failed:
            message = drift.message(self._nodeid, self._options)
            raise NotHeld(message, self._causes(drift.causes), about_baseline=True)

    def limits(self, beyond: list[str], metric: tuple[str, str]) -> None:
        """Fail where measures beyond accuracy passed their limits, and say which quantizers did
        it.
        """
        if not beyond:
            return
        from harness.baselines import rerun_command

        parts = ["\n".join(beyond)]
        if self._request.config.getoption("blame") is not False:
            parts.append(self._blame(*metric))
        parts.append(f"rerun:  {rerun_command(self._nodeid, self._options)}")
        raise NotHeld("\n\n".join(parts), self._causes(beyond))

    def _causes(self, texts: Iterable[str]) -> list[str]:
        """Return the first lines of *texts* as causes of this test's recipe; none if the test is
        about no recipe.

        What is wrong on one model or architecture is wrong on the next: a first line says what, and
        not where.
        """
        case = case_of(self._request.node)
        return [] if case is None else [f"{case.recipe}: {first_line(text)}" for text in texts]

    def _blame(self, task: str, metric: str) -> str:
        """Return the text about the quantizers at fault, or the test of the case that has it
        already.
        """
        gate, case = (self._request.getfixturevalue(name) for name in ("gate", "case"))
        blamed = self._request.config.stash.setdefault(_BLAMED, {})
        if case in blamed:
            return f"blame: see {blamed[case]}"
        from harness.diagnosis import blame

        blame_result = blame.of_case(gate[case], task, metric)
        blamed[case] = self._nodeid
        collector.notes_of(self._request.config).blames[gate[case]] = blame_result
        return blame_result.message()


def repeated_options(config: pytest.Config, item: pytest.Item | None = None) -> list[str]:
    """Return the options of this run that a command needs which repeats *item* (or the whole
    run).
    """
    from harness.gate import listing

    own_parameters = {} if item is None else parameters(item)
    options = options_of(config)
    if "architecture_case" in own_parameters:
        options = replace(options, architectures=(own_parameters["architecture_case"].model,))
    return listing.words_of(options, own_parameters.get("case"))
