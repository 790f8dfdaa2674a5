"""How many times faster: sides that run in turn in one process, until the ratio of their times is
known.

An absolute time belongs to one machine in one hour.  What can be held against another day is the
ratio of two sides that ran in turn: a round runs every side once, so that whatever slows the
machine down slows both of a pair.  The estimate is the median over the rounds of the ratio within a
round, with the interval of order statistics (exact for any distribution: Thompson 1936;
``scipy.stats.quantile_test``): a round that was interrupted moves it by one rank at most.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import torch

Run = Callable[[], object]


class Clock(Protocol):
    """Measures how long something takes on one kind of device."""

    def time(self, run: Run) -> float:
        """Seconds that *run* takes, all work that it starts included."""
        ...


class WallClock:
    """Measures work that is finished when the call returns: on a CPU."""

    def time(self, run: Run) -> float:
        """Seconds between call and return."""
        began = time.perf_counter()
        run()
        return time.perf_counter() - began


class CudaClock:
    """Measures work on the current CUDA device, between two events of its stream; waits for it to
    end.
    """

    def time(self, run: Run) -> float:
        """Seconds between the events."""
        import torch

        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000


def clock_of(device: torch.device) -> Clock:
    """The clock for work on *device*."""
    return CudaClock() if device.type == "cuda" else WallClock()


@dataclass(frozen=True)
class Effort:
    """How many rounds: ``first`` ones, then twice as many, again and again while undecided, up to
    ``most``.

    A ratio is decided once its interval is narrower than ``width`` (its upper end so far above its
    lower, relative), or lies on one side of a bound.  ``confidence`` holds for all looks together:
    each interval has its error divided by their number (Bonferroni).  ``warm`` rounds go before and
    do not count.
    """

    first: int = 8
    most: int = 64
    width: float = 0.05
    confidence: float = 0.95
    warm: int = 2

    @property
    def looks(self) -> tuple[int, ...]:
        """Rounds at which to look: 8, 16, 32, 64."""
        return tuple(self._looks())

    def _looks(self) -> Iterator[int]:
        rounds = self.first
        while rounds < self.most:
            yield rounds
            rounds *= 2
        yield self.most

    @property
    def level(self) -> float:
        """Confidence of the interval at one look."""
        return 1 - (1 - self.confidence) / len(self.looks)

    def decided(self, ratio: Ratio, bound: float | None = None) -> bool:
        """Whether no more rounds are needed."""
        if ratio.interval is None:
            return False
        low, high = ratio.interval
        return high <= low * (1 + self.width) or (bound is not None and not low <= bound <= high)


@dataclass(frozen=True)
class Ratio:
    """How many times faster one side is than another (above 1: faster), from ``rounds`` rounds of
    both in turn.

    ``low`` and ``high`` are None where there are too few rounds for an interval.
    """

    value: float
    low: float | None = None
    high: float | None = None
    rounds: int = 0

    @classmethod
    def of(cls, base: ArrayLike, side: ArrayLike, confidence: float) -> Ratio:
        """The ratio of a side to its base, from the seconds of each in the same rounds, (n,)
        both.
        """
        from scipy import stats

        ratios = np.asarray(base, dtype=np.float64) / np.asarray(side, dtype=np.float64)
        interval = stats.quantile_test(ratios, p=0.5).confidence_interval(confidence)
        low, high = float(interval.low), float(interval.high)
        known = math.isfinite(low) and math.isfinite(high)
        return cls(
            float(np.median(ratios)), low if known else None, high if known else None, len(ratios)
        )

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends, or None."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    def as_dict(self) -> dict[str, Any]:
        """A plain record for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.value:.3g}" + (
            "" if self.interval is None else f" [{self.low:.3g}, {self.high:.3g}]"
        )


def moved(was: Ratio, now: Ratio) -> str:
    """``slower`` or ``faster`` where the two intervals have no number in common, else nothing."""
    if was.interval is None or now.interval is None:
        return ""
    if now.interval[1] < was.interval[0]:
        return "slower"
    return "faster" if now.interval[0] > was.interval[1] else ""


@dataclass(frozen=True)
class Rounds:
    """The times of every round: ``seconds`` (n, sides), the sides in the order in which they
    ran.
    """

    sides: tuple[str, ...]
    seconds: NDArray[np.float64]
    effort: Effort

    def of(self, side: str) -> NDArray[np.float64]:
        """Seconds of one side, (n,)."""
        return np.asarray(self.seconds[:, self.sides.index(side)])

    def median(self, side: str) -> float:
        """Seconds that one side takes."""
        return float(np.median(self.of(side)))

    def ratio(self, side: str, base: str) -> Ratio:
        """How many times faster *side* is than *base*."""
        return Ratio.of(self.of(base), self.of(side), self.effort.level)


def in_turn(
    sides: Mapping[str, Run],
    base: str,
    clock: Clock,
    effort: Effort | None = None,
    bound: float | None = None,
) -> Rounds:
    """Run every side once a round until each one's ratio to *base* is decided.

    Args:
        sides: what to run, by name; they run in this order.
        base: the name of the one that the others are compared with.
        clock: for the device they run on.
        effort: when to stop.
        bound: a ratio on one side of which they are decided as well.
    """
    effort = effort or Effort()
    for _ in range(effort.warm):
        for run in sides.values():
            clock.time(run)
    seconds: list[list[float]] = []
    others = [name for name in sides if name != base]
    for rounds in effort.looks:
        while len(seconds) < rounds:
            seconds.append([clock.time(run) for run in sides.values()])
        measured = Rounds(
            tuple(sides), np.asarray(seconds, dtype=np.float64).reshape(-1, len(sides)), effort
        )
        if all(effort.decided(measured.ratio(name, base), bound) for name in others):
            break
    return measured
