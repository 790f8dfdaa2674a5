"""Draws of decisions that are taken several times, and of implausible gains."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.diagnosis import blame
from harness.tools.draws import Bools, Condition, Ints, Rate, draw, fixed

#: Sets that a search tries one after another.
TRIED = 4


@dataclass(frozen=True)
class TriesCell:
    """Patched recipes, each with a true loss that is exactly the budget.

    ``groups`` recipes are ranked; of the discordant samples of each a share ``together`` is the
    same in all of them.
    """

    n: int
    discordance: float
    points: float
    groups: int
    together: float
    alpha: float = 0.05


def tries(cell: TriesCell, draws: int, seed: int) -> tuple[Rate, Rate, Rate]:
    """How often a patch over the budget is accepted: ranked on the judged samples and each try at
    alpha; ranked on other samples, each try at alpha; and so with each try at its share of alpha.
    """
    rng = np.random.default_rng(seed)
    margin = cell.points / 100
    win, lose = (cell.discordance - margin) / 2, (cell.discordance + margin) / 2
    shape = (draws, cell.groups)

    def drawn(chance: float) -> Ints:
        same = rng.binomial(cell.n, cell.together * chance, (draws, 1))
        return same + rng.binomial(cell.n, (1 - cell.together) * chance, shape)

    won, lost = drawn(win), drawn(lose)
    ranked = np.argsort(lost - won, axis=1, kind="stable")[:, :TRIED]
    best = (np.take_along_axis(won, ranked, 1), np.take_along_axis(lost, ranked, 1))
    other = (won[:, :TRIED], lost[:, :TRIED])
    plain = [cell.alpha] * TRIED
    spent = [cell.alpha * blame.alpha_share(number) for number in range(1, TRIED + 1)]
    return (
        _accepted(best, cell.n, margin, plain),
        _accepted(other, cell.n, margin, plain),
        _accepted(other, cell.n, margin, spent),
    )


def _accepted(counts: tuple[Ints, Ints], n: int, margin: float, alphas: list[float]) -> Rate:
    """How often one of the tries passes, each at its own alpha."""
    won, lost = counts
    passed: Bools = np.zeros(len(won), dtype=bool)
    for number, alpha in enumerate(alphas):
        passed |= fixed(won[:, number], lost[:, number], n, margin, alpha)[0]
    return Rate(int(passed.sum()), len(won))


def gains(cell: Condition, draws: int, seed: int) -> Rate:
    """How often a true difference is called GAIN where more than ``points`` are implausible."""
    won, lost = draw(np.random.default_rng(seed), cell, draws)
    # The test of a loss with the two models exchanged.
    called = fixed(lost[:, 0], won[:, 0], cell.n, cell.margin, cell.alpha)[1]
    return Rate(int(called.sum()), draws)
