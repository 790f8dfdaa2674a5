"""Measure the verdicts' error rates and write them into the documentation.

    python -m harness.tools.simulation --draws 10000 --seed 1 --output docs/error-rates.md

tests/harness/tools/test_simulation.py does the same small. A rate refutes its promise if the lower
end of its 99.9 % Clopper-Pearson interval lies above alpha.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scipy import stats
from tqdm import tqdm

from harness.statistics import published, sample_sizes
from harness.tools import pages
from harness.tools.draws import (
    Condition,
    Rate,
    ShareCell,
    agree,
    join,
    measure,
    peek,
    shares,
    skewed,
)
from harness.tools.tries import TRIED as TRIES
from harness.tools.tries import TriesCell, gains, tries

# The documentation's cells: what the packaged and the published tasks look like, and where the
# plain tests are weak.
EDGE = (
    Condition(1000, 0.035, 2.5, -2.5),
    Condition(1632, 0.04, 2.5, -2.5),
    Condition(1000, 0.04, 1.0, -1.0),
    Condition(986, 0.0101, 1.0, -1.0),
    Condition(1632, 0.006, 0.5, -0.5),
    Condition(10000, 0.05, 1.0, -1.0),
    Condition(50000, 0.05, 0.5, -0.5),
    Condition(1000, 0.04, 1.0, -1.0, alpha=0.01),
)
CLUSTERED = (
    Condition(600, 0.035, 2.5, -2.5, 5, 0.0),
    Condition(600, 0.035, 2.5, -2.5, 5, 0.3),
    Condition(600, 0.035, 2.5, -2.5, 5, 1.0),
    Condition(200, 0.035, 2.0, -2.0, 5, 0.5),
    Condition(5000, 0.04, 1.0, -1.0, 5, 0.5),
)
_PARETO, _LOG_NORMAL = (
    skewed(stats.pareto(1.2), 2000, 60),
    skewed(stats.lognorm(1.0, scale=3.0), 2000, 60),
)
# The first four come from a report of false passes; in them nothing happens but that whole clusters
# are lost.
UNEQUAL = (
    Condition(1000, 0.01, 1.0, -1.0, 1, 1.0, others=((40, 50),)),
    Condition(300, 0.025, 2.5, -2.5, 1, 1.0, others=((20, 30),)),
    Condition(200, 0.05, 5.0, -5.0, 1, 1.0, others=((20, 20),)),
    Condition(600, 0.025, 2.5, -2.5, 5, 1.0, others=((20, 50),)),
    Condition(1000, 0.06, 5.0, -5.0, 1, 0.5, others=((40, 50),)),
    Condition(1000, 0.04, 2.5, -2.5, 1, 0.5, others=((200, 5),)),
    Condition(_PARETO[0][0], 0.06, 5.0, -5.0, _PARETO[0][1], 1.0, others=_PARETO[1:]),
    Condition(_PARETO[0][0], 0.06, 5.0, -5.0, _PARETO[0][1], 0.5, others=_PARETO[1:]),
    Condition(_LOG_NORMAL[0][0], 0.06, 5.0, -5.0, _LOG_NORMAL[0][1], 1.0, others=_LOG_NORMAL[1:]),
    Condition(_LOG_NORMAL[0][0], 0.06, 5.0, -5.0, _LOG_NORMAL[0][1], 0.3, others=_LOG_NORMAL[1:]),
)
POWER = (
    Condition(1000, 0.035, 2.5, -0.5),
    Condition(1632, 0.04, 2.5, -0.75),
    Condition(1000, 0.04, 1.5, 0.0),
    Condition(10000, 0.05, 0.6, 0.0),
    Condition(1000, 0.04, 1.0, -1.0 - 1.5),
    Condition(1632, 0.06, 1.0, -1.0 - 1.0),
    Condition(5000, 0.06, 1.0, -1.0 - 1.0),
    Condition(600, 0.04, 2.5, -0.5, 5, 0.5),
)
PEEKED = (
    Condition(1000, 0.04, 1.0, -1.0),
    Condition(2000, 0.05, 1.0, -1.0),
    Condition(600, 0.04, 2.5, -2.5, 5, 0.5),
    Condition(2000, 0.05, 2.0, 0.0),
    Condition(2000, 0.05, 1.0, -3.5),
)
FAMILIES = (
    (Condition(1000, 0.04, 1.0, -1.0),) * 3,
    (
        Condition(1000, 0.04, 1.0, -1.0),
        Condition(1632, 0.04, 2.5, 0.0),
        Condition(1632, 0.04, 2.5, 0.0),
    ),
    tuple(Condition(1000, 0.04, 1.0, -1.0, alpha=alpha) for alpha in (0.05, 0.01, 0.001)),
)
# At the edge of a share of the reference, with few discordant samples and with clusters; the last
# loses nothing.
SHARES = (
    ShareCell(1632, 0.69, 0.04, 0.99, 0.99),
    ShareCell(1000, 0.835, 0.04, 0.97, 0.97),
    ShareCell(1000, 0.7, 0.008, 0.99, 0.99),
    ShareCell(10_000, 0.76, 0.05, 0.99, 0.99),
    ShareCell(50_000, 0.76, 0.05, 0.999, 0.999),
    ShareCell(600, 0.9, 0.035, 0.98, 0.98, 5, 0.3),
    ShareCell(600, 0.9, 0.035, 0.98, 0.98, 5, 1.0),
    ShareCell(10_000, 0.76, 0.05, 0.99, 1.0),
)
# Samples, mistake, true difference in points and its spread over checkpoints.
PUBLISHED = tuple(
    (n, mistake, *size)
    for n in (50_000, 10_000, 1_000)
    for mistake, size in (
        ("", (0.0, 0.0)),
        ("", (-0.3, 0.0)),
        (published.GELU, published.SIZES[published.GELU, "imagenet1k", "acc1"]),
        (published.TEMPLATE, published.SIZES[published.TEMPLATE, "imagenet1k", "acc1"]),
        (published.SHUFFLED, (0.1 - 75.54, 0.0)),
    )
)
# Patched recipes on their budgets, few and many, alike and not.
TRIED = (
    TriesCell(1632, 0.04, 2.5, 4, 0.8),
    TriesCell(1632, 0.04, 2.5, 30, 0.8),
    TriesCell(10_000, 0.05, 1.0, 30, 0.5),
    TriesCell(10_000, 0.05, 1.0, 30, 0.0),
)
# `points` is `most_gain` here.
GAINS = (
    Condition(1632, 0.04, 1.0, 0.0),
    Condition(1632, 0.04, 1.0, 1.0),
    Condition(986, 0.0101, 1.0, 1.0),
    Condition(10_000, 0.05, 1.0, 1.0),
    Condition(1632, 0.04, 1.0, 3.0),
)


Row = tuple[str, ...]


class Promises:
    """Collects the rates that are above what was promised."""

    def __init__(self) -> None:
        self.broken: list[str] = []

    def held(self, rate: Rate, cell: Condition, what: str, alpha: float | None = None) -> str:
        """The rate as a table shows it, in bold where it is above *alpha*, or the cell's, beyond
        chance.
        """
        if not rate.refutes(cell.alpha if alpha is None else alpha):
            return str(rate)
        self.broken.append(f"{what} of {cell}: {rate}")
        return f"**{rate}**"


def report(draws: int, seed: int, progress: bool = True) -> tuple[str, list[str]]:
    """The documentation page (Markdown) and the promises that the draws refute (empty: all
    hold).
    """
    promises = Promises()
    rows: tuple[tuple[Callable[[Any, int, int, Promises], Row], Sequence[Any]], ...] = (
        (_edge_row, EDGE),
        (_clustered_row, CLUSTERED),
        (_unequal_row, UNEQUAL),
        (_power_row, POWER),
        (_peeked_row, PEEKED),
        (_family_row, FAMILIES),
        (_published_row, PUBLISHED),
        (_share_row, SHARES),
        (_tries_row, TRIED),
        (_gain_row, GAINS),
    )
    total = sum(len(cells) for _, cells in rows)
    tables: list[list[Row]] = []
    with tqdm(total=total, unit="cell", disable=not progress) as bar:
        for row, cells in rows:
            tables.append([])
            for number, cell in enumerate(cells):
                tables[-1].append(row(cell, draws, seed + number, promises))
                bar.update()
    return _page(draws, seed, tables, promises.broken), promises.broken


def _edge_row(cell: Condition, draws: int, seed: int, promises: Promises) -> Row:
    m = measure(cell, draws, seed)
    both = promises.held(m.passed, cell, "false PASS"), promises.held(m.failed, cell, "false FAIL")
    return *_truth(cell), *both, f"{m.naive_passed.value:.2%}", f"{m.naive_failed.value:.2%}"


def _clustered_row(cell: Condition, draws: int, seed: int, promises: Promises) -> Row:
    row = _edge_row(cell, draws, seed, promises)
    return *row[:4], f"{cell.groups} x {cell.size}", f"{cell.inflation:.1f}", *row[4:]


def _unequal_row(cell: Condition, draws: int, seed: int, promises: Promises) -> Row:
    row = _edge_row(cell, draws, seed, promises)
    unchanged = measure(replace(cell, truth=0.0), max(draws // 10, 1), seed)
    kinds = [(cell.groups, cell.size), *cell.others]
    if len(kinds) <= 2:
        clusters = ", ".join(f"{count} x {size}" for count, size in kinds)
    else:
        clusters = f"{len(cell.sizes)} of {kinds[0][1]} to {kinds[-1][1]}"
    return *row[:4], clusters, f"{cell.together:.0%}", *row[4:], f"{unchanged.passed.value:.1%}"


def _power_row(cell: Condition, draws: int, seed: int, promises: Promises) -> Row:
    m = measure(cell, draws, seed)
    wanted = "PASS" if cell.truth > -cell.points else "FAIL"
    right, wrong = (m.passed, m.failed) if wanted == "PASS" else (m.failed, m.passed)
    promises.held(wrong, cell, "false decision")
    planned = sample_sizes.power(
        cell.n, cell.discordance, cell.margin, cell.truth / 100, cell.alpha, cell.inflation
    )
    return (
        *_truth(cell),
        f"{cell.inflation:.1f}",
        f"{cell.truth:+.2f}",
        wanted,
        str(right),
        f"{planned:.2%}",
    )


def _peeked_row(cell: Condition, draws: int, seed: int, promises: Promises) -> Row:
    s = peek(cell, draws, seed)
    passed, failed = str(s.passed), str(s.failed)
    if cell.truth <= -cell.points:
        passed = promises.held(s.passed, cell, "false PASS with early stop")
    if cell.truth >= -cell.points:
        failed = promises.held(s.failed, cell, "false FAIL with early stop")
    looked = f"{s.peeked_passed.value:.1%} / {s.peeked_failed.value:.1%}"
    return (
        *_truth(cell),
        f"{cell.truth:+.2f}",
        str(cell.groups),
        passed,
        failed,
        f"{s.used:.0%}",
        looked,
    )


def _family_row(cells: Sequence[Condition], draws: int, seed: int, promises: Promises) -> Row:
    j = join(cells, draws, seed)
    name = ", ".join(
        "at the edge" if c.truth == -c.points else f"{c.truth:+g} of {-c.points:+g}" for c in cells
    )
    alphas = [cell.alpha for cell in cells]
    edge = [cell.alpha for cell in cells if cell.truth <= -cell.points]
    both = (
        promises.held(j.passed, cells[0], "family PASS", min(edge)),
        promises.held(j.failed, cells[0], "family FAIL", sum(alphas) / len(alphas)),
    )
    return name, ", ".join(f"{alpha:g}" for alpha in alphas), *both, f"{j.any_failed.value:.2%}"


def _published_row(
    cell: tuple[int, str, float, float], draws: int, seed: int, promises: Promises
) -> Row:
    n, mistake, difference, spread = cell
    known = published.of_checkpoint("openai/clip-vit-large-patch14", published.rows())
    row = next(row for row in known if row.result.task == "imagenet1k")
    share = agree(row, n, difference, spread, mistake, draws, seed)
    alarms = str(share.alarms)
    if not mistake and share.alarms.refutes(published.ALPHA):
        promises.broken.append(f"disagreement of {cell}: {share.alarms}")
        alarms = f"**{alarms}**"
    named = str(share.named) if mistake else ""
    return f"{n:,}", mistake or "none", f"{difference:+.2f}", f"{spread:.1f}", alarms, named


def _share_row(cell: ShareCell, draws: int, seed: int, promises: Promises) -> Row:
    passed, failed = shares(cell, draws, seed)
    texts = []
    for rate, false in (
        (passed, cell.true_share <= cell.share),
        (failed, cell.true_share >= cell.share),
    ):
        refuted = false and rate.refutes(cell.alpha)
        if refuted:
            promises.broken.append(f"share of {cell}: {rate}")
        texts.append(f"**{rate}**" if refuted else str(rate))
    clusters = f"{cell.groups} x {cell.size}" if cell.size > 1 else ""
    n = cell.groups * cell.size
    budget = f"{100 * cell.share:g} %", f"{100 * cell.true_share:g} %"
    return f"{n:,}", clusters, f"{cell.accuracy:.1%}", f"{cell.discordance:.1%}", *budget, *texts


def _tries_row(cell: TriesCell, draws: int, seed: int, promises: Promises) -> Row:
    before, ranked, after = tries(cell, draws, seed)
    shown = str(after)
    if after.refutes(cell.alpha):
        promises.broken.append(f"several tries of {cell}: {after}")
        shown = f"**{after}**"
    together = f"{cell.together:.0%}"
    shape = f"{cell.n:,}", f"{cell.discordance:.1%}", f"{cell.points:g}", str(cell.groups)
    return *shape, together, f"{before.value:.2%}", f"{ranked.value:.2%}", shown


def _gain_row(cell: Condition, draws: int, seed: int, promises: Promises) -> Row:
    rate = gains(cell, draws, seed)
    shown = str(rate)
    if cell.truth <= cell.points:
        shown = promises.held(rate, cell, "GAIN")
    return *_truth(cell), f"{cell.truth:+.2f}", shown


def _truth(cell: Condition) -> tuple[str, ...]:
    return f"{cell.n:,}", f"{cell.discordance:.1%}", f"{cell.points:g}", f"{cell.alpha:g}"


def _table(head: str, rows: Iterable[tuple[str, ...]]) -> str:
    names = head.split(" | ")
    lines = [
        f"| {head} |",
        "|" + " --- |" * len(names),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
    return "\n".join(lines)


def _page(
    draws: int, seed: int, tables: Sequence[Iterable[tuple[str, ...]]], broken: Sequence[str]
) -> str:
    basic = "samples | discordance | budget | alpha"
    holds = "No promise is refuted." if not broken else f"Refuted promises, in bold: {len(broken)}."
    return f"""# Error rates of the verdicts, measured

<!-- Generated: do not edit. -->

Written by `python -m harness.tools.simulation --draws {draws} --seed {
        seed
    } --output docs/error-rates.md`:
{
        draws:,} draws a cell, rates with 99.9 % Clopper-Pearson bounds. Budgets and differences are in points. A promise
counts as refuted where the lower bound lies above alpha. {holds}

## At the edge of the budget

The true loss *is* the budget, so PASS and FAIL are both false; farther from the edge the false one is rarer. Tango's
score test alone (last columns) calls FAIL too often where few samples are discordant; the verdict takes the exact
p-value where that is larger.

{_table(f"{basic} | false PASS | false FAIL | Tango alone: PASS | FAIL", tables[0])}

## Several captions of one image

In a share of the clusters all samples do the same, which gives the design effect; the others' samples are independent.
The naive test takes all samples as independent.

{
        _table(
            f"{basic} | clusters | design effect | false PASS | false FAIL | naive: PASS | FAIL",
            tables[1],
        )
    }

## Clusters of unequal size

As long as none of a few large clusters happens to be lost, the observed variance knows nothing of them. The verdict
assumes nothing of the distribution there: it allows for one more cluster of the largest size that is lost as a whole.
Where the largest clusters hold too much of the data, that leaves INCONCLUSIVE. 2,000 clusters have the quantiles of a
Pareto distribution of shape 1.2 as sizes (from 2) or of a log-normal one with a median of 3 and a sigma of 1 (from 1),
cut at 60. The last column is how often a model that loses nothing, at the same discordance, passes.

{
        _table(
            f"{basic} | clusters | whole | false PASS | false FAIL | naive: PASS | FAIL | no loss: PASS",
            tables[2],
        )
    }

Clusters of about one size (the largest at most twice the smallest) of which the budget is worth fewer than eight, as
the 100 drawings with ten views each of emoji100, cannot be judged without an assumption: not one of 100 drawings is
lost in 8 % of the draws, where each is lost with a chance of 2.5 %. They are taken as alike, and the verdict allows for
one more cluster that moves as the design effect says. Losses of whole drawings next to unrelated scattered changes are
then called PASS too often, in up to 13 % of the draws where 5 % were promised. More clusters, or a larger budget, are
sure.

## Power, against the formula that refuses budgets

{_table(f"{basic} | design effect | true difference | decision | measured | formula", tables[3])}

## Early stop

Looked at after every sample (every image, where clustered). Half of alpha goes to the sequential test, half to the
fixed-sample test of a task that ends undecided; the rates are those of both together. The last column is what looking
at a fixed-sample test every time, and stopping when it decides, would do.

{
        _table(
            f"{basic} | true difference | looks | PASS | FAIL | samples used | peeking: PASS / FAIL",
            tables[4],
        )
    }

## Families of three tasks

PASS needs every task to pass at the alpha of its own budget (intersection-union, no correction): it is false at most at
the smallest alpha of the tasks that are over their budgets. FAIL is Holm's procedure, each task with its own alpha: the
chance of any false one is at most their mean. The last column is how often at least one task fails without a
correction.

{_table("true differences | alphas | PASS | FAIL | FAIL, uncorrected", tables[5])}

## The reference next to what was published

A reference disagrees where its accuracy differs by more than the protocol's allowance and the sampling error at an
alpha of {
        published.ALPHA:g}. Drawn is the row of CLIP ViT-L/14 on imagenet1k (75.54 %, allowance 0.3 points): nothing wrong, a
true difference of the whole allowance, and the mistakes that differ by the size that is known of them. The last column
is how often the mistake is the best fit by its size alone; what can be seen in the model, its preprocessing or its task
is not used here.

{_table("samples | mistake | true difference | spread | disagrees | named", tables[6])}

## A share of the reference

The budget is a share of the reference's accuracy, and the true share is given: where it is the budget, PASS and FAIL
are both false. In clusters of five all samples do the same in 30 % or all of the clusters.

{
        _table(
            "samples | clusters | reference | discordance | budget | true share | PASS | FAIL",
            tables[7],
        )
    }

## Several tries

Blame tries up to {
        TRIES
    } sets of quantizers one after another and accepts the first without which the recipe passes. Drawn
are patched recipes whose true loss is exactly the budget, so that each accepted one is false. The sets are chosen among
so many groups; a share of the discordant samples is the same in all of them. Before the correction, the ranking saw the judged
samples and each try had the whole alpha. Now the ranking is made on calibration pairs and try k is judged at
alpha / 2^k, together at most alpha.

{
        _table(
            "samples | discordance | budget | groups | alike | before | ranked apart, whole alpha | "
            "now",
            tables[8],
        )
    }

## GAIN

The quantized model is truly better by the given points. GAIN is false where that is at most `most_gain`.

{_table("samples | discordance | most_gain | alpha | true difference | GAIN", tables[9])}
{pages.footer("error-rates.md")}"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the error rates of the verdicts and write them as a page of the documentation; 1 if
    one is refuted.
    """
    parser = argparse.ArgumentParser(
        prog="python -m harness.tools.simulation", description=main.__doc__
    )
    parser.add_argument(
        "--draws", type=int, default=10_000, help="draws a cell (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, help="file to write (default: standard output)")
    options = parser.parse_args(arguments)
    page, broken = report(options.draws, options.seed)
    if options.output is None:
        print(page)
    else:
        options.output.write_text(page, encoding="utf-8")
    for line in broken:
        print(f"refuted: {line}", file=sys.stderr)
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
