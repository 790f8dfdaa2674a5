"""What the consumers of the towers read is not worse than the reference's by more than its budget,
and has not moved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.baselines import Comparison
from harness.checks.registry import NotJudged, check
from harness.consumers import contracts
from harness.consumers.reading import Reading
from harness.statistics.verdicts import Verdict

if TYPE_CHECKING:
    from harness.gate.case import Case

#: A consumer and what its probe is asked.
Question = tuple[str, str]


def _readings(case: Case) -> list[Reading]:
    return [
        (consumer, read.name)
        for consumer in case.consumers
        for read in contracts.of(consumer).reads
    ]


def _questions(case: Case) -> list[Question]:
    return [(probe.consumer, probe.metric) for probe in case.read.probes]


@check("consumers", reading=_readings)
def tokens_stay_close(case: Case, reading: Reading) -> list[str]:
    """Return the measures of one read that exceed their limits, a sentence each."""
    if reading not in _readings(case):
        raise NotJudged(f"{reading[0]} does not read {case.model_name}")
    return case.read.moved(reading).problems()


@check("consumers", question=_questions)
def probe_loss_is_within_budget(case: Case, question: Question) -> Verdict:
    """Return the verdict on what a frozen probe reads, as it stands among those of all probes."""
    _known(case, question)
    return next(v for v in case.consumed.verdicts if (v.task, v.metric) == question)


@check("consumers", recorded=True, question=_questions)
def probe_equals_baseline(case: Case, question: Question) -> Comparison:
    """Compare what a probe reads in both models with what was accepted."""
    _known(case, question)
    return case.drift(*question)


def _known(case: Case, question: Question) -> None:
    """Leave out what no probe was trained for.

    Raises:
        NotJudged: the model has no such probe.
    """
    if question not in _questions(case):
        raise NotJudged(
            f"no probe was trained on the tokens that {question[0]} reads of {case.model_name}: "
            f"only how far they move is judged"
        )
