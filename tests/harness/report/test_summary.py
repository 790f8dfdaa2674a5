"""The table at the end of a run: what it says, in what colour, and on how narrow a terminal."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from drawn import outcomes, pair
from found import HOSTILE

from harness.report import cases, summary
from harness.statistics import verdicts
from harness.statistics.verdicts import Budget

LONG = "wds/imagenet-a-task-with-a-very-long-name-indeed/image_retrieval_recall@5"


def run(**names: str) -> dict[str, Any]:
    """Two recipes: one with a PASS and an INCONCLUSIVE, one with a FAIL, as verdicts judges drawn
    outcomes.
    """
    task, metric = names.get("task", "emoji"), names.get("metric", "acc1")
    verdicts_of_run = []
    for n, lost, won in ((4000, 10, 12), (120, 4, 1), (2000, 150, 10)):
        before, after = (
            outcomes(o.correct, o.clusters, task=task, metric=metric) for o in pair(n, lost, won)
        )
        verdicts_of_run.append(verdicts.compare(before, after, Budget(points=2.5)))
    recipes = names.get("recipe", "fp8"), "int4"
    families = [
        verdicts.family(verdicts_of_run[:2], recipe=recipes[0]),
        verdicts.family(verdicts_of_run[2:], recipe=recipes[1]),
    ]
    cases = [
        {
            "recipe": f.recipe,
            "model": "embedded",
            "accuracy": {
                "decision": f.decision.value,
                "headline": f.headline(),
                "verdicts": [v.as_dict() for v in f.verdicts],
            },
            "drift": {f"{task}/{metric}": {"kind": names.get("drift", kind), "headline": "moved"}},
        }
        for f, kind in zip(families, ("nothing moved", "the quantized model moved"), strict=True)
    ]
    return {"schema": 2, "environment": {}, "cases": cases}


class Screen:
    """pytest's own terminal reporter with a screen of so many columns; ``text`` is what it
    showed.
    """

    def __init__(
        self, config: pytest.Config, capsys: pytest.CaptureFixture[str], width: int, colour: bool
    ) -> None:
        self._capsys = capsys
        reporter = config.pluginmanager.getplugin("terminalreporter")
        assert isinstance(reporter, pytest.TerminalReporter)
        self.reporter = pytest.TerminalReporter(config)
        writer = self.reporter._tw
        writer.fullwidth, writer.hasmarkup = width, colour
        self.writer = writer

    def show(self, results: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> str:
        """What `summary.write` writes."""
        monkeypatch.setattr(
            self.reporter.config, "get_terminal_writer", lambda: self.writer, raising=False
        )
        self._capsys.readouterr()
        summary.write(self.reporter, cases.read(results))
        return self._capsys.readouterr().out


@pytest.fixture
def show(
    pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Any:
    """What a terminal of so many columns shows of results."""

    def shown(results: dict[str, Any], width: int = 120, colour: bool = False) -> str:
        return Screen(pytestconfig, capsys, width, colour).show(results, monkeypatch)

    return shown


def test_a_line_has_every_number_of_a_verdict(show: Any) -> None:
    """FP16, quantized, difference with its interval, budget, verdict and drift stand in one line per
    task and metric.
    """
    lines = show(run()).splitlines()
    v = run()["cases"][1]["accuracy"]["verdicts"][0]
    line = next(line for line in lines if "FAIL" in line and line.startswith("  emoji/acc1"))

    assert re.split(r"\s{2,}", line.strip()) == [
        "emoji/acc1",
        f"{v['reference_accuracy']:.2%}",
        f"{v['quantized_accuracy']:.2%}",
        "-7.00",
        f"[{v['interval'][0]:+.2f}, {v['interval'][1]:+.2f}]",
        "2.5",
        "FAIL",
        "quantized moved",
    ]
    assert sum(line.startswith("  emoji/acc1") for line in lines) == 3


@pytest.mark.parametrize(
    ("parts", "title"),
    [
        ({}, "quantized CLIP gate: "),
        ({"insertion": {"problems": []}}, "insertion: "),
        (
            {
                "checks": {
                    "counts": {"failed": 1},
                    "failed": [{"test": "t.py::a", "suite": "export", "outcome": "failed"}],
                }
            },
            "export: ",
        ),
        ({"numerics": {"problems": []}, "insertion": {"problems": []}}, "insertion, numerics: "),
    ],
)
def test_the_title_is_what_was_judged(show: Any, parts: dict[str, Any], title: str) -> None:
    """Points are compared where a task was; else the title names what was looked at."""
    failed = {"counts": {"failed": 1}, "failed": []}
    case = {"recipe": "fp8", "model": "embedded", "checks": failed} | parts

    assert f" {title}" in show({"schema": 2, "environment": {}, "cases": [case]})
    assert " quantized against FP16 (points): " in show(run())


def test_each_recipe_has_one_headline(show: Any) -> None:
    """Its name, the decision of its family, and which task decided."""
    lines = show(run()).splitlines()

    assert [line.split("  ")[0] for line in lines if line[:1] not in (" ", "=", "")] == [
        "fp8 on embedded: INCONCLUSIVE",
        "int4 on embedded: FAIL",
    ]
    assert "worst is emoji/acc1 at -7.00" in show(run())


@pytest.mark.parametrize("width", [200, 120, 100, 80, 60, 40])
@pytest.mark.parametrize("task", ["emoji", LONG])
def test_no_line_is_wider_than_the_terminal(show: Any, width: int, task: str) -> None:
    """Whatever the width, and at most 120, lines fit, and each keeps its difference and its
    verdict.
    """
    lines = show(run(task=task, recipe="a-recipe-with-a-long-name" * 3), width).splitlines()
    rows = [
        line
        for line in lines
        if re.search(r"[+-]\d\.\d\d.* (PASS|FAIL|INCONCLUSIVE)", line) and line[:1] == " "
    ]

    assert max(len(line) for line in lines if not line.startswith("=")) <= min(width, 120)
    words = [re.findall(r"PASS|FAIL|INCONCLUSIVE", row) for row in rows[-3:]]
    assert words == [["PASS"], ["INCONCLUSIVE"], ["FAIL"]]
    assert all(re.search(r"[+-]\d\.\d\d", row) for row in rows[-3:])


def test_no_name_that_tells_rows_apart_is_cut(show: Any) -> None:
    """At 80 columns the task, the metric and the recipe are there whole, in lines of their own where
    they need them.
    """
    recipe = "a-recipe-whose-name-is-longer-than-half-of-the-terminal"
    lines = show(run(task=LONG, recipe=recipe), 80).splitlines()

    assert any(line.startswith(f"{recipe} on") for line in lines)
    assert any(line.strip().startswith(f"{LONG}/") for line in lines)
    assert "…" not in "".join(lines)


def test_columns_go_in_the_order_of_their_worth(show: Any) -> None:
    """All are there at 120 columns; drift goes first and the interval next, the budget last of
    all.
    """
    names = ("FP16", "quantized", "difference", "interval", "budget", "verdict", "drift")
    columns_by_width = {}
    for width in (120, 100, 80, 70, 60, 50, 40):
        headings = next(
            line for line in show(run(task=LONG), width).splitlines() if "task/metric" in line
        )
        columns_by_width[width] = [n for n in names if n in headings.split()]

    assert columns_by_width[120] == list(names)
    counts = [len(columns) for columns in columns_by_width.values()]
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) > 3
    assert columns_by_width[40] == ["difference", "verdict"]
    gone = [
        next(n for n in a if n not in b)
        for a, b in itertools.pairwise(columns_by_width.values())
        if a != b
    ]
    assert gone[0] == "drift"
    assert all("budget" in columns or len(columns) == 2 for columns in columns_by_width.values())


def test_verdicts_have_their_colours(show: Any) -> None:
    """Green, yellow and red where the terminal has colours; no control sequence where it has
    none.
    """
    coloured, plain = show(run(), colour=True), show(run())

    for code, word in ((32, "PASS"), (33, "INCONCLUSIVE"), (31, "FAIL")):
        assert re.search(rf"\x1b\[{code}m{word} *\x1b\[0m", coloured)
    assert "\x1b[33mquantized moved" in coloured
    assert "\x1b[33mnone" not in coloured
    assert re.sub(r"\x1b\[\d+m", "", coloured) == plain
    assert "\x1b" not in plain


def test_nothing_is_written_about_nothing(show: Any) -> None:
    """A run without cases, or whose cases have no verdict, leaves the terminal alone."""
    assert show({"schema": 2, "environment": {}, "cases": []}) == ""
    assert (
        show({"schema": 2, "environment": {}, "cases": [{"recipe": "fp8", "model": "embedded"}]})
        == ""
    )


def test_a_run_without_accuracy_has_headlines_only(show: Any) -> None:
    """Of a run of the insertion suite one line per recipe says how many problems there are."""
    problem = {"rule": "never run", "what": "1 never ran", "names": ["q"], "fix": ""}
    cases = [
        {"recipe": "fp8", "model": "embedded", "insertion": {"map": [], "problems": [problem]}}
    ]
    lines = show({"schema": 2, "environment": {}, "cases": cases}).splitlines()

    assert lines[-1] == "fp8 on embedded: FAIL  1 insertion problem"


@pytest.mark.parametrize("name", HOSTILE, ids=[f"hostile{i}" for i in range(len(HOSTILE))])
def test_hostile_names_are_text_on_the_terminal(show: Any, name: str) -> None:
    """No control character reaches the terminal, no name begins another line, and no line is a
    runner's command.
    """
    written = show(run(recipe=name, task=name, metric=name, drift=name))
    lines = written.split("\n")

    usual = [
        len(show(run(recipe=n, task=n, metric="m", drift="d")).split("\n"))
        for n in ("n", "n" * 120)
    ]

    # A headline without room for its reason has it on the next line.
    assert usual[0] <= len(lines) <= usual[1]
    assert (
        len([line for line in lines if re.search(r" embedded: (INCONCLUSIVE|FAIL)( |$)", line)])
        == 2
    )
    assert all(line.isprintable() for line in lines)
    assert not [line for line in lines if line.lstrip().startswith("::") or "##[" in line]


SPEED = {
    "reference_per_second": 100.0,
    "quantized_per_second": 40.0,
    "ratio": 0.4,
    "low": 0.38,
    "high": 0.42,
    "rounds": 8,
    "baseline_ratio": 0.5,
    "baseline_low": 0.48,
    "baseline_high": 0.52,
    "moved": "slower",
}


def test_a_tower_that_became_slower_is_told_and_fails_nothing(show: Any) -> None:
    """Its ratio and the baseline's stand there with their intervals, and in the headline, after a
    run of this suite alone too; the verdict is no other.
    """
    results = run()
    results["cases"][0]["throughput"] = {"vision": SPEED}
    alone = {
        "environment": {},
        "cases": [{"recipe": "fp8", "model": "embedded", "throughput": {"vision": SPEED}}],
    }
    line = (
        "  speed: vision runs at 0.40 [0.38, 0.42] times FP16's speed, 0.50 [0.48, 0.52] in the "
        "baseline: slower"
    )

    for shown in (show(results), show(alone)):
        assert line in shown.splitlines()
        assert "vision slower than the baseline" in shown
    slower, steady = (cases.read(each).cases[0] for each in (results, run()))
    assert cases.decision(slower) == cases.decision(steady)


def test_a_ratio_that_did_not_move_is_no_news(show: Any) -> None:
    """The terminal has a line for a change only."""
    steady = {"recipe": "fp8", "model": "embedded", "throughput": {"vision": SPEED | {"moved": ""}}}

    assert show({"environment": {}, "cases": [steady]}) == ""


PARITY = {"error": 1e-7, "bound": 5e-5, "holds": True}
OPTIMIZED = {"optimized": {"text": PARITY | {"error": 0.017, "holds": False}}}


def exported(**sections: object) -> dict[str, Any]:
    """A case whose graph of the text tower holds, and what else was found."""
    export = {"no_form": None, "runtime": "ort 1", "parity": {"text": PARITY}, **sections}
    return {"recipe": "fp8", "model": "embedded", "export": export}


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        (OPTIMIZED, "text, the runtime's defect: with its optimisations on ort 1 is 0.017 off"),
        ({"published": ["no pair\n  at q"]}, "ModelOpt's own export, not the recipe: no pair at q"),
    ],
    ids=["optimised", "published"],
)
def test_a_defect_of_a_library_is_a_line_and_fails_nothing(
    show: Any, sections: dict[str, Any], line: str
) -> None:
    """What the runtime's optimisations or ModelOpt's own export get wrong is reported; the export of
    the case holds.
    """
    case = exported(**sections)

    assert f"  {line}" in show({"environment": {}, "cases": [case]})
    assert cases.export_faults(cases.read_case(case)) == []


def test_libraries_that_get_nothing_wrong_are_not_told() -> None:
    """Optimisations that hold and a published way that exports nothing are no line."""
    case = exported(optimized={"text": PARITY}, published="TypeError: a float")

    assert cases.export_lines(cases.read_case(case)) == []
