"""The proof counts rightly: what plants nothing survives, bounds are the closed forms, errors are
distinguished.
"""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from harness.checks.registry import Check
from harness.errors import UsageError
from harness.gate.case import Case
from harness.tools import proof
from harness.tools.faults import CATALOGUE, Fault, FaultSite, Where
from harness.tools.proof import Clean, Kill


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Clean:
    """A clean run's place, with nothing measured yet."""
    return Clean(tmp_path_factory.mktemp("proof") / "clean", ["fp8"])


def nothing(_: FaultSite) -> AbstractContextManager[None]:
    """Plants nothing."""
    return nullcontext()


HARMLESS = Fault("harmless", Where.MODELOPT, "none", "nothing at all", nothing, "fp8", frozenset())


def kill(**changes: object) -> Kill:
    """A kill by insertion, with *changes*."""
    killed = Kill("scale constant 240", "insertion", "a check", "failed", False, "message", 1.0)
    return dataclasses.replace(killed, **changes)  # type: ignore[arg-type]


def test_a_fault_that_plants_nothing_survives(clean: Clean) -> None:
    """What kills is the fault and not the proof: with nothing planted, the checks that need no data
    find nothing.
    """
    checks = [
        c
        for c in proof.CHECKS
        if c.name in ("every_pattern_matches", "every_enabled_quantizer_runs")
    ]

    killed = proof.attempt(HARMLESS, clean, checks)

    assert killed.survived
    assert (killed.suite, killed.check, killed.how) == ("", "", "")


def refuse(case: Case) -> list[str]:
    """A check that ends in a usage error."""
    raise UsageError("somewhere", "is wrong", "Fix it.")


def crash(case: Case) -> list[str]:
    """A check that breaks."""
    raise ZeroDivisionError("by zero")


@pytest.mark.parametrize(
    ("run", "how"), [(refuse, "usage error"), (crash, "error"), (lambda case: ["wrong"], "failed")]
)
def test_the_way_of_a_kill_is_told(clean: Clean, run: object, how: str) -> None:
    """A usage error, a raised exception and a found problem are three different words in the
    matrix.
    """
    killed = proof.attempt(HARMLESS, clean, [Check("insertion", "this_one", run)])  # type: ignore[arg-type]

    assert (killed.suite, killed.check, killed.how) == ("insertion", "this one", how)


def test_the_first_check_that_notices_kills(clean: Clean) -> None:
    """In the order of the checks; whether it needs a baseline stands next to it, and nothing behind
    it runs.
    """
    wrong = [
        Check("numerics", "silent", lambda case: []),
        Check("insertion", "with", lambda case: ["moved"], recorded=True),
        Check("accuracy", "behind", crash),
    ]

    killed = proof.attempt(HARMLESS, clean, wrong)

    assert (killed.check, killed.how, killed.recorded) == ("with", "failed", True)


def test_only_checkpoint_faults_meet_the_checkpoint_suite(clean: Clean) -> None:
    """A fresh process does not carry a fault planted in this one, so its difference would be no
    kill.
    """
    checks = [Check("checkpoint", "differs", lambda case: ["differs"])]

    assert proof.attempt(HARMLESS, clean, checks).survived
    assert not proof.attempt(
        dataclasses.replace(HARMLESS, where=Where.CHECKPOINT), clean, checks
    ).survived


def test_a_site_is_gone_after_the_attempt(clean: Clean) -> None:
    """Nothing of a planted fault stays on the disk."""
    before = sorted(clean.folder.iterdir())

    proof.attempt(HARMLESS, clean, [Check("insertion", "none", lambda case: [])])

    assert sorted(clean.folder.iterdir()) == before


@pytest.mark.parametrize("count", [1, 40, 98])
def test_bounds_are_the_closed_forms(count: int) -> None:
    """With all killed the lower bound is alpha^(1/n), and with no alarm the upper one is 1 -
    alpha^(1/n).
    """
    assert proof.lower_bound(count, count) == pytest.approx(0.05 ** (1 / count))
    assert proof.upper_bound(0, count) == pytest.approx(1 - 0.05 ** (1 / count))
    assert proof.lower_bound(count - 1, count) < proof.lower_bound(count, count)


def test_the_document_names_survivors_and_baselines() -> None:
    """A survivor stands out in the matrix, and a kill that needed a baseline carries its star."""
    lost = kill(fault="FP8 truncates", suite="", check="", how="")
    starred = kill(fault="recipe swapped", recorded=True)

    text = proof.document([kill(), lost, starred], [])

    assert "2 of 3 faults killed: 66.7%" in text
    rows = {
        line.split(" | ")[0].strip("| "): line
        for line in text.splitlines()
        if line.startswith("| ")
    }
    assert rows["FP8 truncates"].endswith("| **survived** |")
    assert rows["recipe swapped"].endswith("| insertion: a check \\* |")
    assert rows["scale constant 240"].endswith("| insertion: a check |")


def test_alarms_are_counted() -> None:
    """A run with alarms is one false alarm, however many it raised."""
    runs: list[dict[str, Any]] = [{"alarms": []}, {"alarms": ["a", "b"]}, {"alarms": []}]

    assert proof.calm(runs).startswith("3 A/A runs, 1 alarms")


def test_variations_differ_in_order_and_cover_the_axes() -> None:
    """Every variation has an order of its own; over three processes each batch size meets both
    thread counts.
    """
    variations = [v for process in range(3) for v in proof.variations(6, process, "7")]

    assert len({v.order for v in variations}) == 18
    assert len({v.batch_size for v in variations}) == 5
    assert {(v.batch_size, v.threads) for v in variations} == {
        (b, t) for b in {v.batch_size for v in variations} for t in (1, 2)
    }


def test_the_command_refuses_unknown_faults() -> None:
    """A fault that is not in the catalogue is an error, not an empty and successful run."""
    with pytest.raises(KeyError):
        proof.main(["faults", "no such fault"])


def test_every_suite_of_the_gate_is_in_the_order() -> None:
    """Insertion comes first, what needs records last, and each suite that decides something is
    there.
    """
    suites = [check.suite for check in proof.CHECKS]

    assert set(suites) == {"insertion", "numerics", "accuracy", "consumers", "checkpoint", "export"}
    assert suites[0] == "insertion"
    recorded = [check.name for check in proof.CHECKS[-2:]]
    assert recorded == ["accuracy_equals_baseline", "probe_equals_baseline"]
    assert all(isinstance(fault, Fault) for fault in CATALOGUE.values())
    assert Path(proof.MATRIX).name == "kill-matrix.md"


@pytest.mark.parametrize("parameter", sorted(proof.FEW.keys() - {"examples"}))
def test_a_few_values_mean_the_same_to_every_check(clean: Clean, parameter: str) -> None:
    """A parameter that the proof narrows has one meaning: all checks that have it take values of
    one set, and the few are of it too.  (The number of examples is of no set.)
    """
    case = clean.gate.cases()[0]
    ranges = [check.values[parameter] for check in proof.CHECKS if parameter in check.values]
    values_of = [set(of(case) if callable(of) else of) for of in ranges]
    widest = max(values_of, key=len)

    assert set(proof.FEW[parameter]) <= widest
    assert [values - widest for values in values_of] == [set()] * len(values_of)


def test_a_check_that_needs_a_fixture_is_left_out() -> None:
    """The proof has no fixtures: a check of a suite that decides, but needs one, is not among its
    checks.
    """

    def measured(case: Case, benchmark: object) -> list[str]:
        return []

    checks = [Check("accuracy", "measured", measured), Check("accuracy", "plain", crash)]

    assert [check.name for check in proof.ordered(checks)] == ["plain"]
