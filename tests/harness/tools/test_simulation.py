"""The error rates that the verdicts promise, measured on drawn pairs: at least 10,000 draws a
cell.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from drawn import pair

from harness.statistics import published, sample_sizes
from harness.statistics.verdicts import Budget, Decision, compare
from harness.tools import draws, simulation
from harness.tools.draws import Condition, Rate, ShareCell
from harness.tools.tries import TriesCell, gains, tries

DRAWS = 10_000


@pytest.mark.parametrize(
    "cell",
    [
        Condition(1000, 0.035, 2.5, -2.5),
        Condition(1632, 0.04, 1.0, -1.0),
        Condition(986, 0.0101, 1.0, -1.0),
        Condition(1632, 0.006, 0.5, -0.5),
        Condition(300, 0.1, 3.0, -3.0),
        Condition(1000, 0.04, 1.0, -1.0, alpha=0.01),
    ],
    ids=str,
)
def test_false_pass_and_false_fail_keep_alpha(cell: Condition) -> None:
    """With the true loss on the budget, neither PASS nor FAIL comes more often than alpha."""
    measured = draws.measure(cell, DRAWS, seed=1)

    assert not measured.passed.refutes(cell.alpha), str(measured.passed)
    assert not measured.failed.refutes(cell.alpha), str(measured.failed)
    # A test that never decides would keep alpha too.
    assert measured.passed.value > cell.alpha / 3
    assert measured.failed.value > cell.alpha / 3


def test_tango_alone_does_not_keep_alpha() -> None:
    """Where hardly any sample is discordant Tango's test alone calls FAIL too often: the exact
    guard is needed.
    """
    measured = draws.measure(Condition(986, 0.0101, 1.0, -1.0), DRAWS, seed=1)

    assert measured.naive_failed.refutes(0.05), str(measured.naive_failed)


@pytest.mark.parametrize(
    "cell",
    [
        Condition(300, 0.035, 2.5, -2.5, 5, 0.5),
        Condition(200, 0.04, 2.0, -2.0, 5, 1.0),
        Condition(300, 0.035, 2.5, -2.5, 5, 0.0),
    ],
    ids=str,
)
def test_clustered_verdict_keeps_alpha_where_the_naive_one_does_not(cell: Condition) -> None:
    """With captions that move together the clustered verdict keeps alpha; taking them as
    independent breaks it.
    """
    measured = draws.measure(cell, DRAWS, seed=1)

    assert not measured.passed.refutes(cell.alpha), str(measured.passed)
    assert not measured.failed.refutes(cell.alpha), str(measured.failed)
    if cell.together > 0:
        assert measured.naive_passed.refutes(2 * cell.alpha), str(measured.naive_passed)
        assert measured.naive_failed.refutes(2 * cell.alpha), str(measured.naive_failed)


@pytest.mark.parametrize(
    "cell",
    [
        Condition(1000, 0.06, 5.0, -5.0, together=0.5, others=((40, 50),)),
        Condition(100, 0.026, 2.5, -2.5, 10, 0.5),
    ],
    ids=str,
)
def test_few_or_unequal_clusters_keep_alpha(cell: Condition) -> None:
    """Where large clusters may stay clean by chance, or there are few, a loss on the budget rarely
    passes.
    """
    measured = draws.measure(cell, 1000, seed=1)

    assert not measured.passed.refutes(cell.alpha), str(measured.passed)
    assert not measured.failed.refutes(cell.alpha), str(measured.failed)


@pytest.mark.parametrize(
    "cell",
    [
        Condition(1000, 0.035, 2.5, -0.5),
        Condition(1000, 0.04, 1.5, 0.0),
        Condition(10_000, 0.05, 0.6, 0.0),
        Condition(1000, 0.04, 1.0, -2.5),
        Condition(1632, 0.06, 1.0, -2.0),
    ],
    ids=str,
)
def test_measured_power_agrees_with_the_formula(cell: Condition) -> None:
    """The share of right decisions is within 3 points of the formula that refuses budgets; wrong
    ones are rare.
    """
    measured = draws.measure(cell, DRAWS, seed=1)
    right, wrong = (
        (measured.passed, measured.failed)
        if cell.truth > -cell.points
        else (measured.failed, measured.passed)
    )

    planned = sample_sizes.power(
        cell.n, cell.discordance, cell.margin, cell.truth / 100, cell.alpha
    )

    assert right.value == pytest.approx(planned, abs=0.03)
    assert not wrong.refutes(0.005)


def test_planted_loss_is_decided_by_a_large_task_only() -> None:
    """A true loss of 1 point, a budget of half: 1,000 samples mostly cannot decide, 20,000 nearly
    always FAIL.
    """
    small = draws.measure(Condition(1000, 0.04, 0.5, -1.0), DRAWS, seed=1)
    large = draws.measure(Condition(20_000, 0.04, 0.5, -1.0), DRAWS, seed=1)

    assert small.passed.value + small.failed.value < 0.25
    assert small.passed.value < 0.05
    assert large.failed.value > 0.95


@pytest.mark.parametrize(
    "cell", [Condition(400, 0.08, 3.0, -3.0), Condition(150, 0.15, 8.0, -8.0, 3, 0.5)], ids=str
)
def test_early_stop_keeps_alpha_under_continuous_peeking(cell: Condition) -> None:
    """Looking after every bet and stopping at once keeps alpha; a fixed-sample test looked at that
    way does not.
    """
    stopped = draws.peek(cell, DRAWS, seed=1)

    assert not stopped.early_passed.refutes(cell.alpha / 2), str(stopped.early_passed)
    assert not stopped.early_failed.refutes(cell.alpha / 2), str(stopped.early_failed)
    assert not stopped.passed.refutes(cell.alpha), str(stopped.passed)
    assert not stopped.failed.refutes(cell.alpha), str(stopped.failed)
    assert stopped.peeked_passed.refutes(2 * cell.alpha), str(stopped.peeked_passed)


def test_early_stop_saves_samples_where_the_truth_is_plain() -> None:
    """An equal model and one far over the budget are decided rightly before half of the samples are
    used.
    """
    equal, worse = (draws.peek(Condition(4000, 0.04, 2.0, t), 200, seed=1) for t in (0.0, -6.0))

    assert equal.passed.value > 0.97
    assert worse.failed.value > 0.97
    assert max(equal.used, worse.used) < 0.5


def test_family_keeps_the_false_fail_rate_over_three_tasks() -> None:
    """Three tasks on their budgets: Holm keeps the family's false FAIL at alpha, without it 1 -
    0.95^3 is near.
    """
    joined = draws.join([Condition(1000, 0.04, 1.0, -1.0)] * 3, DRAWS, seed=1)

    assert not joined.failed.refutes(0.05), str(joined.failed)
    assert joined.any_failed.refutes(0.09), str(joined.any_failed)


def test_family_keeps_the_false_pass_rate_without_a_correction() -> None:
    """One task over its budget and two that are equal: the family is PASS in no more than alpha of
    the draws, and not far less.
    """
    equal = Condition(1632, 0.01, 2.5, 0.0)

    joined = draws.join([Condition(1000, 0.04, 1.0, -1.0), equal, equal], DRAWS, seed=1)

    assert not joined.passed.refutes(0.05), str(joined.passed)
    assert joined.passed.value > 0.03


def test_drawn_pairs_are_judged_as_compare_judges() -> None:
    """The vectorised decisions of the simulation are those of compare on outcomes with the same
    counts.
    """
    cell = Condition(400, 0.05, 2.0, -1.0)
    won, lost = draws.draw(generator(), cell, 60)
    passed, failed = draws.fixed(won[:, 0], lost[:, 0], cell.n, cell.margin, cell.alpha)

    for b, c, is_pass, is_fail in zip(won[:, 0], lost[:, 0], passed, failed, strict=True):
        decision = compare(*pair(400, int(c), int(b)), Budget(2.0)).decision

        assert (decision is Decision.PASS, decision is Decision.FAIL) == (
            bool(is_pass),
            bool(is_fail),
        )


def generator() -> np.random.Generator:
    """A generator with a fixed seed."""
    return np.random.default_rng(5)


@pytest.mark.parametrize("size", [1, 5])
def test_drawn_pairs_have_the_stated_truth(size: int) -> None:
    """Discordance, difference and design effect of the draws are those of the cell."""
    cell = Condition(400, 0.06, 2.0, -2.0, size, 0.5 if size > 1 else 0.0)
    won, lost = draws.draw(generator(), cell, 4000)
    n = 4000 * cell.n

    assert (won.sum() + lost.sum()) / n == pytest.approx(0.06, rel=0.02)
    assert (won.sum() - lost.sum()) / n == pytest.approx(-0.02, rel=0.05)
    spread = (won - lost).sum(axis=1).var() / cell.n
    assert spread == pytest.approx(cell.inflation * (0.06 - 0.02**2), rel=0.1)


def test_rate_bounds_refute_only_beyond_chance() -> None:
    """5.2 % of 10,000 does not refute 5 %; 6 % does."""
    assert not Rate(520, 10_000).refutes(0.05)
    assert Rate(600, 10_000).refutes(0.05)


def test_command_writes_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The documented command writes every table with the draws and the command that made it, the
    same for the same seed.
    """
    for name in ("EDGE", "CLUSTERED", "UNEQUAL", "POWER", "PEEKED", "FAMILIES"):
        monkeypatch.setattr(simulation, name, getattr(simulation, name)[:1])
    first, second = tmp_path / "a.md", tmp_path / "b.md"

    assert simulation.main(["--draws", "50", "--seed", "3", "--output", str(first)]) == 0
    assert simulation.main(["--draws", "50", "--seed", "3", "--output", str(second)]) == 0

    text = first.read_text()
    assert text == second.read_text()
    assert "--draws 50 --seed 3" in text
    assert text.count("| 1,000 | 3.5% | 2.5 | 0.05 |") == 2


def test_report_names_a_refuted_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell whose rate is above its alpha makes the command fail and stands in bold."""
    # The truth lies inside the budget, so PASS is right and frequent; declared as an edge it must
    # be reported.
    monkeypatch.setattr(simulation, "EDGE", (Condition(1000, 0.04, 2.5, 0.0),))
    for name in ("CLUSTERED", "UNEQUAL", "POWER", "PEEKED", "FAMILIES"):
        monkeypatch.setattr(simulation, name, ())

    page, broken = simulation.report(200, 1, progress=False)

    assert len(broken) == 1
    assert "false PASS" in broken[0]
    assert "Refuted promises, in bold: 1" in page
    assert "| **" in page


@pytest.mark.parametrize(
    ("cell", "least", "most"),
    [
        ((50_000, "", 0.0, 0.0), 0.0, published.ALPHA),
        ((50_000, "", -0.3, 0.0), 0.0, published.ALPHA),
        ((1_000, "", -0.3, 0.0), 0.0, published.ALPHA),
        ((50_000, published.GELU, -2.7, 1.0), 0.9, 1.0),
        ((50_000, published.TEMPLATE, -4.5, 0.7), 0.99, 1.0),
        ((1_000, published.SHUFFLED, -75.4, 0.0), 1.0, 1.0),
    ],
)
def test_disagreement_with_what_was_published(
    cell: tuple[int, str, float, float], least: float, most: float
) -> None:
    """A reference that is within the protocol's allowance raises an alarm no more often than
    promised, a known mistake nearly always, and then it is named more often than any other.
    """
    known = published.of_checkpoint("openai/clip-vit-large-patch14", published.rows())
    row = next(row for row in known if row.result.task == "imagenet1k")
    n, mistake, difference, spread = cell

    shares = draws.agree(row, n, difference, spread, mistake, DRAWS, seed=1)

    assert shares.alarms.value >= least
    assert not shares.alarms.refutes(most)
    assert not mistake or shares.named.value > 0.5 * shares.alarms.value


@pytest.mark.parametrize(
    "cell",
    [
        ShareCell(1632, 0.69, 0.04, 0.99, 0.99),
        ShareCell(1000, 0.7, 0.008, 0.99, 0.99),
        ShareCell(300, 0.9, 0.035, 0.98, 0.98, 5, 0.3),
    ],
    ids=str,
)
def test_a_share_of_the_reference_keeps_alpha(cell: ShareCell) -> None:
    """With the true share on the budget, neither PASS nor FAIL comes more often than alpha, and
    both come.
    """
    for rate in draws.shares(cell, DRAWS // 5, seed=1):
        assert not rate.refutes(cell.alpha), str(rate)
        assert rate.value > cell.alpha / 10


def test_several_tries_spend_alpha_once() -> None:
    """Tries at shares of alpha keep it where the same tries at the whole alpha, and a ranking on
    the judged samples, do not.
    """
    before, ranked, after = tries(TriesCell(10_000, 0.05, 1.0, 30, 0.5), DRAWS, seed=1)

    assert not after.refutes(0.05), str(after)
    assert after.value > 0.05 / 3
    assert ranked.refutes(0.05), str(ranked)
    assert before.value > 2 * ranked.value


def test_gain_keeps_alpha_and_has_power() -> None:
    """A gain of just what is plausible is called GAIN at most at alpha, a large one mostly."""
    at_edge = gains(Condition(1632, 0.04, 1.0, 1.0), DRAWS, seed=1)
    far = gains(Condition(1632, 0.04, 1.0, 3.0), DRAWS, seed=1)

    assert not at_edge.refutes(0.05), str(at_edge)
    assert at_edge.value > 0.05 / 3
    assert far.value > 0.9
