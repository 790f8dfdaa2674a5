"""Known failures become XFAIL; those that hold, have ended, or fail in another way fail."""

from __future__ import annotations

from datetime import datetime, timezone
from importlib import metadata
from typing import TYPE_CHECKING

import pytest

from harness import places
from harness.baselines import known_failures
from harness.baselines.known_failures import KnownFailure, TestOfCase
from harness.gate.results import CheckResult, Outcome
from harness.pytest_plugin import private

if TYPE_CHECKING:
    from pathlib import Path

#: Ways to fall short that a person can declare; a gain has its own declaration in the budgets file.
_FALLS_SHORT = (Outcome.FAILED, Outcome.INCONCLUSIVE)

_LISTED = pytest.StashKey[tuple[KnownFailure, ...]]()


def known_failure(config: pytest.Config, check: CheckResult) -> KnownFailure | None:
    """Return the known failure that lists the test of *check*, or None."""
    if _LISTED not in config.stash:
        baselines: Path = config.getoption("baselines") or places.BASELINES
        config.stash[_LISTED] = known_failures.load(baselines)
    _, _, function = check.test.partition("::")
    name, _, parameters = function.partition("[")
    test = TestOfCase(
        f"{check.suite}/{name.removeprefix('test_')}",
        check.recipe,
        check.model,
        parameters.removesuffix("]"),
    )
    release = metadata.version("nvidia-modelopt")
    return next(
        (failure for failure in config.stash[_LISTED] if failure.is_about(test, release)), None
    )


def apply(config: pytest.Config, report: pytest.TestReport, check: CheckResult) -> CheckResult:
    """Return *check* as a known failure makes it, and change pytest's *report* with it.

    A check that no known failure lists is returned as it is.
    """
    if not check.recipe or check.outcome not in (*_FALLS_SHORT, Outcome.PASSED):
        return check
    failure = known_failure(config, check)
    if failure is None:
        return check
    message = None if check.outcome is Outcome.PASSED else report.longreprtext
    problem = failure.problem(message, datetime.now(timezone.utc).date())
    if problem is None:
        private.expect_failure(report, str(failure))
        return check.with_outcome(Outcome.XFAILED, reason=str(failure))
    private.fail(report, "\n\n".join(text for text in (problem, message) if text))
    outcome = Outcome.FAILED if message is None else check.outcome
    return check.with_outcome(outcome, message=problem)
