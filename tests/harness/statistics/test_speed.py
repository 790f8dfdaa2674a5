"""Ratios of sides that run in turn: the interval, when to stop, and what counts as moved."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from harness.statistics.speed import (
    CudaClock,
    Effort,
    Ratio,
    Rounds,
    WallClock,
    clock_of,
    in_turn,
    moved,
)


class KnownTimes:
    """A clock that asks what runs how long it takes."""

    def time(self, run: Callable[[], Any]) -> float:
        """Seconds, as *run* says."""
        return float(run())


def steady(seconds: float, noise: float = 0.0, seed: int = 0) -> Callable[[], float]:
    """A side that takes *seconds*, give or take a share of *noise*."""
    rng = np.random.default_rng(seed)
    return lambda: seconds * float(np.exp(noise * rng.normal()))


# -- the ratio -------------------------------------------------------------------------------------


def test_a_side_twice_as_fast_has_the_ratio_two() -> None:
    """The ratio is the base's time over the side's; equal rounds leave no doubt."""
    assert Ratio.of([2.0] * 8, [1.0] * 8, 0.95) == Ratio(2.0, 2.0, 2.0, 8)


def test_the_interval_is_that_of_order_statistics() -> None:
    """Its ends are the innermost rounds that hold the median with the confidence asked for, by the
    binomial.
    """
    ratios = np.random.default_rng(1).lognormal(size=25)
    ratio = Ratio.of(ratios, np.ones(25), 0.95)
    rank = int(stats.binom.ppf(0.025, 25, 0.5))

    assert ratio.interval == (np.sort(ratios)[rank - 1], np.sort(ratios)[25 - rank])
    assert 1 - 2 * stats.binom.cdf(rank - 1, 25, 0.5) >= 0.95


def test_an_interrupted_round_moves_it_by_one_rank() -> None:
    """A side that was stopped for a second in one round of nine changes neither the estimate nor
    the scale of its interval.
    """
    base, side = np.ones(9), np.linspace(0.99, 1.01, 9)
    side[4] = 100.0
    ratio = Ratio.of(base, side, 0.9)

    assert ratio.value == pytest.approx(1.0, abs=0.01)
    assert ratio.interval is not None
    assert ratio.interval[0] > 0.98


def test_too_few_rounds_have_no_interval() -> None:
    """Three rounds cannot hold a median with 95 %: the ratio says so instead of guessing."""
    assert Ratio.of([1.0] * 3, [2.0] * 3, 0.95) == Ratio(0.5, None, None, 3)


@pytest.mark.parametrize(
    ("was", "now", "word"),
    [
        ((0.50, 0.54), (0.40, 0.44), "slower"),
        ((0.50, 0.54), (0.60, 0.7), "faster"),
        ((0.50, 0.54), (0.53, 0.60), ""),
    ],
)
def test_moved_is_what_has_no_number_in_common(
    was: tuple[float, float], now: tuple[float, float], word: str
) -> None:
    """Intervals that touch have not moved; of others the side is named."""
    assert moved(Ratio(0.52, *was), Ratio(0.5, *now)) == word


def test_what_has_no_interval_has_not_moved() -> None:
    """Nothing is concluded from a single number."""
    assert (
        moved(Ratio(0.5), Ratio(0.1, 0.1, 0.1, 8))
        == moved(Ratio(0.5, 0.5, 0.5, 8), Ratio(0.1))
        == ""
    )


# -- when to stop ----------------------------------------------------------------------------------


def test_sides_run_in_turn_and_warm_rounds_do_not_count() -> None:
    """A, B, A, B: every round runs each side once, in order; the first rounds are not kept."""
    ran: list[str] = []

    def side(name: str) -> Callable[[], float]:
        return lambda: ran.append(name) or (100.0 if len(ran) <= 4 else 1.0)  # type: ignore[func-returns-value]

    rounds = in_turn(
        {"a": side("a"), "b": side("b")}, "a", KnownTimes(), Effort(first=8, most=8, warm=2)
    )

    assert ran == ["a", "b"] * 10
    assert rounds.seconds.tolist() == [[1.0, 1.0]] * 8
    assert rounds.sides == ("a", "b")


def test_a_clear_ratio_takes_the_first_rounds_only() -> None:
    """Where the interval is narrow at the first look, nothing more is run."""
    rounds = in_turn({"a": steady(1.0), "b": steady(2.0)}, "a", KnownTimes())

    assert rounds.ratio("b", "a") == Ratio(0.5, 0.5, 0.5, 8)


def test_more_rounds_are_run_only_while_undecided() -> None:
    """Noise asks for more rounds, up to the last look and no further."""
    sides = {"a": steady(1.0, 0.3, 1), "b": steady(2.0, 0.3, 2)}

    rounds = in_turn(sides, "a", KnownTimes(), Effort(first=8, most=32, width=0.05))

    assert rounds.ratio("b", "a").rounds == 32
    assert (
        in_turn(sides, "a", KnownTimes(), Effort(first=8, most=32, width=9.0))
        .ratio("b", "a")
        .rounds
        == 8
    )


def test_a_bound_decides_as_well() -> None:
    """A wide interval that lies on one side of the bound is enough; one that holds it is not."""
    sides = {"a": steady(1.0, 0.1, 1), "b": steady(10.0, 0.1, 2)}
    effort = Effort(first=8, most=64, width=0.01)

    assert in_turn(sides, "a", KnownTimes(), effort, bound=1.0).ratio("b", "a").rounds == 8
    assert in_turn(sides, "a", KnownTimes(), effort, bound=0.1).ratio("b", "a").rounds == 64


def test_every_side_is_decided_before_it_ends() -> None:
    """With several sides the one that is noisiest says how long."""
    sides = {"a": steady(1.0), "quiet": steady(1.0), "noisy": steady(1.0, 0.5, 3)}

    rounds = in_turn(sides, "a", KnownTimes(), Effort(first=8, most=16))

    assert rounds.seconds.shape == (16, 3)
    assert rounds.median("quiet") == 1.0


def test_looks_double_and_share_the_error() -> None:
    """8, 16, 32, 50: each look's interval has a quarter of the error that all of them may have."""
    effort = Effort(first=8, most=50, confidence=0.9)

    assert effort.looks == (8, 16, 32, 50)
    assert effort.level == pytest.approx(0.975)
    assert Effort(first=8, most=8).looks == (8,)


def test_the_interval_holds_the_truth_however_often_it_was_looked_at() -> None:
    """Over 300 noisy measurements with interruptions, stopped when narrow, at most 5 % miss the
    true ratio.
    """
    missed = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)

        def side(seconds: float, rng: np.random.Generator = rng) -> Callable[[], float]:
            return lambda: (
                seconds * float(np.exp(0.03 * rng.normal())) * (3.0 if rng.random() < 0.05 else 1.0)
            )

        ratio = in_turn({"a": side(1.0), "b": side(2.0)}, "a", KnownTimes()).ratio("b", "a")
        assert ratio.interval is not None
        missed += not ratio.interval[0] <= 0.5 <= ratio.interval[1]

    assert missed <= 15


def test_rounds_are_read_by_side() -> None:
    """Medians and ratios come from the columns that carry the sides' names."""
    rounds = Rounds(
        ("a", "b"), np.array([[1.0, 4.0], [2.0, 4.0], [3.0, 9.0]]), Effort(confidence=0.1)
    )

    assert (rounds.median("a"), rounds.median("b")) == (2.0, 4.0)
    assert rounds.ratio("a", "b").value == 3.0


# -- clocks ----------------------------------------------------------------------------------------


def test_the_wall_clock_counts_what_the_call_takes() -> None:
    """From before the call to after it."""
    ran: list[int] = []

    assert WallClock().time(lambda: ran.append(1)) >= 0
    assert ran == [1]
    assert isinstance(clock_of(torch.device("cpu")), WallClock)


def test_the_cuda_clock_is_read_between_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start is recorded before the work and end behind it; the end is waited for; milliseconds
    become seconds.
    """
    message: list[str] = []
    names: Iterator[str] = iter(("start", "end"))

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            self.name = next(names)

        def record(self) -> None:
            message.append(f"{self.name} recorded")

        def synchronize(self) -> None:
            message.append(f"{self.name} waited for")

        def elapsed_time(self, other: Event) -> float:
            assert (self.name, other.name) == ("start", "end")
            return 250.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    clock = clock_of(torch.device("cuda", 0))

    assert isinstance(clock, CudaClock)
    assert clock.time(lambda: message.append("ran")) == 0.25
    assert message == ["start recorded", "ran", "end recorded", "end waited for"]


# -- under pytest-benchmark ------------------------------------------------------------------------

BENCHMARK = """
    from harness.evaluation import throughput
    from harness.evaluation.throughput import Forward

    ran = []

    def test_both(benchmark):
        quantized, reference = (Forward("vision", 32, lambda n=n: ran.append(n)) for n in "qr")
        speed = throughput.compare(benchmark, quantized, reference, {"recipe": "fp8"})
        if speed is None:
            assert ran == ["r", "q"]
            return
        rounds = speed.ratio.rounds
        assert ran == ["r", "q"] * (throughput.EFFORT.warm + rounds)
        assert rounds in throughput.EFFORT.looks
        assert len(benchmark.stats.stats.data) == rounds
        assert speed.quantized_per_second == 32 / benchmark.stats.stats.median
"""


def test_pytest_benchmark_holds_every_round_of_the_quantized_side(
    pytester: pytest.Pytester,
) -> None:
    """Each of its rounds is behind one of the reference; the row carries the ratio with its
    interval, and the rate.
    """
    pytester.makepyfile(BENCHMARK)

    result = pytester.runpytest_inprocess("--benchmark-json=out.json")

    result.assert_outcomes(passed=1)
    (row,) = json.loads((pytester.path / "out.json").read_text())["benchmarks"]
    assert row["group"] == "vision tower"
    assert row["extra_info"]["recipe"] == "fp8"
    assert {"value", "low", "high", "rounds"} == set(row["extra_info"]["ratio"])
    assert row["extra_info"]["images_per_second"] > 0
    assert row["stats"]["rounds"] == row["extra_info"]["ratio"]["rounds"]


def test_where_pytest_benchmark_measures_nothing_there_is_no_ratio(
    pytester: pytest.Pytester,
) -> None:
    """With --benchmark-disable each side runs once and nothing is reported."""
    pytester.makepyfile(BENCHMARK)

    pytester.runpytest_inprocess("--benchmark-disable").assert_outcomes(passed=1)
