"""The report: page, summary and data of a run that the gate measured, and of one with hostile
names.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import urllib.parse
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from browser import MISSING, Browser
from found import HOSTILE, hostile, measured
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel

from harness import escaping, report
from harness.errors import UsageError
from harness.gate import results_schema
from harness.report import cases, grid, markdown, page, text

ROOT = Path(__file__).parents[3]
SCHEMA_FILE = ROOT / "harness/report/templates/results.schema.json"
SCHEMA: dict[str, Any] = json.loads(SCHEMA_FILE.read_text())
#: The names themselves would end up in the log of a run of these tests.
HOSTILE_IDS = [f"hostile{i}" for i in range(len(HOSTILE))]
EMPTY: dict[str, Any] = {"schema": 2, "environment": {}, "cases": []}


def strict(written: str) -> Any:
    """*written* as JSON of the standard, which has no NaN."""
    return json.loads(written, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a measured run's report."""
    folder = tmp_path_factory.mktemp("report")
    report.write(measured(), folder)
    return folder


class Elements(HTMLParser):
    """The elements of a page with their attributes, and what its scripts say."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.opened: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep it; where a long name may break is not an element of its own."""
        if tag != "wbr":
            self.opened.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Keep what stands in a script."""
        if self.cdata_elem == "script":
            self.scripts.append(data)

    @property
    def tags(self) -> set[str]:
        """The kinds of element there are."""
        return {tag for tag, _ in self.opened}


# -- the three files -------------------------------------------------------------------------------


def test_three_files_are_written_and_named(tmp_path: Path) -> None:
    """The folder is made and the paths of page, summary and data are returned."""
    paths = report.write(EMPTY, tmp_path / "a" / "b")

    assert [p.name for p in paths] == ["report.html", "summary.md", "results.json"]
    assert all(p.stat().st_size for p in paths)


def test_results_hold_to_their_schema(written: Path) -> None:
    """A measured run's data are what the published schema says."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)

    jsonschema.validate(strict((written / "results.json").read_text()), SCHEMA)


def test_published_schema_is_that_of_the_types() -> None:
    """The schema file is what the types make; ``python -m harness.gate.results_schema`` renews
    it.
    """
    assert SCHEMA_FILE.read_text() == results_schema.schema_text()


def test_types_have_every_key_of_a_measured_run() -> None:
    """No part of a run has a key that its type lacks."""

    def unknown(part: object) -> Iterator[str]:
        if isinstance(part, BaseModel):
            yield from part.model_extra or ()
            parts: list[object] = [getattr(part, name) for name in type(part).model_fields]
        elif isinstance(part, dict):
            parts = list(part.values())
        else:
            parts = part if isinstance(part, list) else []
        for inner in parts:
            yield from unknown(inner)

    run = measured()
    run["cases"][0]["insertion"]["map"][0]["surplus"] = True

    assert list(unknown(cases.read(run))) == ["surplus"]


def test_results_are_the_run(written: Path) -> None:
    """Read back, the data are the run's, with tuples as lists and numbers that JSON lacks in
    words.
    """
    run = measured()
    back = strict((written / "results.json").read_text())["cases"][0]

    assert back["layer_error"] == run["cases"][0]["layer_error"]
    assert back["accuracy"]["verdicts"][0]["interval"] == list(
        run["cases"][0]["accuracy"]["verdicts"][0]["interval"]
    )
    assert {m["kl_max"] for m in back["accuracy"]["beyond"].values()} == {"Infinity"}


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("schema",), 3),
        (("cases", 0, "recipe"), None),
        (("cases", 0, "insertion", "map", 0, "calls"), -1),
        (("cases", 0, "insertion", "map", 0, "enabled"), "yes"),
        (("cases", 0, "numerics", "observations", 0, "saturation"), "none"),
        (("cases", 0, "accuracy", "decision"), "MAYBE"),
        (("cases", 0, "accuracy", "verdicts", 0, "interval"), [0.0]),
        (
            ("cases", 0, "accuracy", "changed", "emoji/acc1", 0, "image"),
            "https://pwned.example/x.png",
        ),
        (("cases", 0, "layer_error", 0, "sqnr_db"), None),
        (("cases", 0, "blame", "verified"), 1),
    ],
)
def test_schema_refuses_what_is_not_results(
    written: Path, where: tuple[Any, ...], value: object
) -> None:
    """A wrong version, type, count, word or picture is an error."""
    data = strict((written / "results.json").read_text())
    place = data
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value

    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, SCHEMA)


def test_every_key_of_the_schema_is_documented() -> None:
    """docs/results-schema.md names each key that the schema has."""
    named = set(re.findall(r"[\w@]+", (ROOT / "docs/results-schema.md").read_text()))

    def keys(part: Any) -> Iterator[str]:
        if isinstance(part, dict):
            yield from part.get("properties", {})
            for item in part.values():
                yield from keys(item)

    assert set(keys(SCHEMA)) <= named


def test_numbers_and_enums_of_any_library_become_json() -> None:
    """Numpy's numbers, enums, tuples, NaN and infinities are written so that ``float`` reads them
    back.
    """
    from harness.statistics.verdicts import Decision

    values = {
        "a": np.float32(0.5),
        "b": (np.int64(3), float("-inf")),
        "c": Decision.FAIL,
        "d": np.bool_(True),
    }
    back = strict(text.json_text(text.plain(values)))

    assert back == {"a": 0.5, "b": [3, "-Infinity"], "c": "FAIL", "d": True}
    assert float(back["b"][1]) == float("-inf")


def test_another_version_is_refused(tmp_path: Path) -> None:
    """Results of a version that this report does not know are a usage error, and nothing is
    written.
    """
    with pytest.raises(UsageError, match="schema 3"):
        report.write({**EMPTY, "schema": 3}, tmp_path)

    assert not list(tmp_path.iterdir())


def test_folder_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    """A file where the folder should be is reported in one line with its fix."""
    (tmp_path / "taken").write_text("")

    with pytest.raises(UsageError, match=r"taken: cannot be written .* --gate-report"):
        report.write(EMPTY, tmp_path / "taken")


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"insertion": {}},
        {"accuracy": {}},
        {"numerics": {"observations": []}, "throughput": {"vision": {"quantized_per_second": 3.0}}},
        {
            "layer_error": [
                {
                    "module": "m",
                    "tower": "vision",
                    "layer": 0,
                    "sqnr_db": float("nan"),
                    "cosine": float("inf"),
                }
            ]
        },
        {"export": {"parity": {}, "no_form": None}, "blame": {}},
    ],
    ids=str,
)
def test_sections_that_a_run_did_not_touch_are_left_out(
    tmp_path: Path, sections: dict[str, Any]
) -> None:
    """A run of one suite is reported too."""
    report.write({**EMPTY, "cases": [{"recipe": "fp8", "model": "embedded", **sections}]}, tmp_path)

    assert "fp8" in (tmp_path / "report.html").read_text()


# -- names that mean something ---------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE, ids=HOSTILE_IDS)
def test_hostile_names_are_text_in_the_page(name: str) -> None:
    """No name adds an element, an attribute or a script to the page."""
    usual = Elements(page.render(cases.read(hostile("harmless"))))
    source = page.render(cases.read(hostile(name)))
    parsed = Elements(source)

    assert [(tag, list(attrs)) for tag, attrs in parsed.opened] == [
        (tag, list(attrs)) for tag, attrs in usual.opened
    ]
    assert parsed.scripts == usual.scripts
    assert len(parsed.scripts) == 1
    assert source.replace("\n", "").isprintable()


@pytest.mark.parametrize("name", HOSTILE, ids=HOSTILE_IDS)
def test_hostile_names_are_text_in_the_summary(name: str) -> None:
    """No name becomes markup, a link, a picture, a mention, a command or another row."""
    markdown_it = pytest.importorskip("markdown_it", reason="needs markdown-it-py")
    summary = markdown.summary(cases.read(hostile(name)))
    renderer = markdown_it.MarkdownIt("commonmark", {"html": True}).enable(
        ["table", "strikethrough"]
    )
    parsed = Elements(renderer.render(summary))
    usual = Elements(renderer.render(markdown.summary(cases.read(hostile("harmless")))))

    assert parsed.tags == usual.tags
    assert [t for t, _ in parsed.opened if t in ("tr", "td", "h2", "h3", "li", "details")] == [
        t for t, _ in usual.opened if t in ("tr", "td", "h2", "h3", "li", "details")
    ]
    assert inert(summary)
    # Outside of code a person would be notified, and an address would become a link.
    prose = re.sub(r"```.*?^```$|`[^`\n]*`|<code>.*?</code>", "", summary, flags=re.S | re.M)
    assert not re.search(r"https?://|www\.", prose)
    assert not re.search(r"@\w", html.unescape(prose))


@pytest.mark.parametrize("name", HOSTILE, ids=HOSTILE_IDS)
def test_hostile_names_are_text_in_the_data(name: str, tmp_path: Path) -> None:
    """The data hold the name itself, and neither a log nor a page that takes them in obeys it."""
    report.write(hostile(name), tmp_path)
    written = (tmp_path / "results.json").read_text()

    assert strict(written)["cases"][0]["recipe"] == name
    assert "<" not in written
    assert inert(written)


def inert(log: str) -> bool:
    """Whether a terminal and GitHub's runner print *log* without doing anything."""
    lines = log.split("\n")
    return (
        all(line.isprintable() for line in lines)
        and not any(line.lstrip().startswith("::") for line in lines)
        and "##[" not in log
    )


@given(st.text())
@example("::add-mask::x")
@example("　::add-mask::x")
@example("##[#[")
def test_shown_text_is_one_line_without_commands(name: str) -> None:
    """Whatever a name holds, what is shown is printable, on one line, of bounded length, and no
    command.
    """
    shown = escaping.shown(name)

    assert shown.isprintable()
    assert inert(shown)
    assert len(shown) <= 10 * escaping.WIDTH


@given(st.text(), st.text())
def test_json_is_the_same_value(key: str, value: str) -> None:
    """Escaping for pages and logs does not change what is read back."""
    assert strict(text.json_text({key: [value]})) == {key: [value]}


@given(st.text())
@example("```\n# pwned")
@example("``\r````")
def test_block_cannot_be_closed_from_within(value: str) -> None:
    """A fenced block has one opening and one closing fence, whatever stands in it."""
    markdown_it = pytest.importorskip("markdown_it", reason="needs markdown-it-py")
    tokens = markdown_it.MarkdownIt().parse(f"{text.markdown_block(value)}\n\nafter")

    assert [t.type for t in tokens] == ["fence", "paragraph_open", "inline", "paragraph_close"]
    assert tokens[2].content == "after"


@pytest.mark.parametrize(
    "value",
    [
        "https://pwned.example/x.png",
        "javascript:alert(1)",
        "data:text/html;base64,AAAA",
        'data:image/png;base64,A" x="',
        3,
    ],
)
def test_what_is_no_picture_is_not_shown(value: object) -> None:
    """Only the data URI of a picture becomes a picture."""
    assert page.picture(value) is None
    assert page.picture("data:image/png;base64,iVBORw0=") is not None


# -- the summary -----------------------------------------------------------------------------------


def test_summary_fits_a_comment_and_counts_what_it_leaves_out() -> None:
    """Hundreds of failing recipes with long names stay below the limit; no table or block is cut in
    its middle.
    """
    run = text.plain(hostile("pwned ` | <b>" * 40))
    run["cases"] = run["cases"] * 120
    summary = markdown.summary(cases.read(run))

    assert len(summary) < markdown.LIMIT < 65_536
    assert re.search(r"\*\d+ parts of this summary found no room\.\*", summary)
    assert summary.count("<details>") == summary.count("</details>")
    assert summary.count("```") % 2 == 0


def test_summary_names_the_failing_recipes_first() -> None:
    """FAIL comes before GAIN, then come INCONCLUSIVE and PASS."""
    run = text.plain(measured())
    words = ("PASS", "INCONCLUSIVE", "GAIN", "FAIL")
    run["cases"] = [{"recipe": w.lower(), "model": "m", "accuracy": {"decision": w}} for w in words]
    summary = markdown.summary(cases.read(run))

    assert [summary.index(f"`{w}`") for w in ("fail", "gain", "inconclusive", "pass")] == sorted(
        summary.index(f"`{w.lower()}`") for w in words
    )
    assert "1 FAIL, 1 GAIN, 1 INCONCLUSIVE, 1 PASS" in summary


def test_summary_has_every_number_of_a_verdict() -> None:
    """FP16, quantized, difference, interval, budget, verdict and drift stand in one row."""
    run = cases.read(measured())
    row = cases.rows(run.cases[0])[0]
    line = next(
        line for line in markdown.summary(run).splitlines() if line.startswith(f"| `{row.name}`")
    )

    for shown in (
        f"{row.reference:.2%}",
        f"{row.quantized:.2%}",
        f"{row.difference:+.2f}",
        f"{row.low:+.2f} to",
    ):
        assert shown in line
    assert f"| {row.budget:g} |" in line
    assert row.decision in line


def test_speed_stands_beside_the_baselines() -> None:
    """Both ratios with their intervals and the word for what moved, in the comment and on the
    page.
    """
    results = cases.read(measured())
    ratio, baseline = "0.33 [0.32, 0.34]", "0.50 [0.48, 0.52]"

    assert f"| vision | {ratio} | {baseline} | slower |" in html.unescape(markdown.summary(results))
    assert f"<td>{ratio}</td>" in page.render(results)
    assert f"<td>{baseline}: slower</td>" in page.render(results)


def test_weights_that_do_not_take_their_bits_fail_a_case() -> None:
    """The problems of the memory check decide like any other, and are counted in the headline."""
    results = text.plain(measured())
    case = results["cases"][0]
    case["memory"] = {"problems": []}
    assert "weights take their bits" in cases.headline(cases.read_case(case))

    case["memory"] = {
        "problems": [{"rule": "weight not compressed", "what": "1 of 45", "names": [], "fix": ""}]
    }

    failed = cases.read_case(case)
    assert cases.decision(failed) == "FAIL"
    assert "1 memory problem" in cases.headline(failed)


def test_patch_in_the_summary_is_the_patch() -> None:
    """What a person copies out of the comment is the recipe's YAML, unescaped."""
    run = cases.read(measured())

    assert "```yaml\n- quantizer_name: '*layers.0.mlp*'\n  enable: false\n```" in markdown.summary(
        run
    )


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("insertion", {"problems": [{"rule": "r", "what": "w", "names": [], "fix": ""}]}),
        ("numerics", {"observations": [{"name": "q", "mismatches": 1, "unsupported": ""}]}),
        ("numerics", {"observations": [{"name": "q", "mismatches": 0, "unsupported": "E2M3"}]}),
        ("numerics", {"folded": [{"rule": "r", "what": "w", "names": ["q"], "fix": "m"}]}),
        ("checkpoint", {"mto": ["the map differs"]}),
    ],
)
def test_a_case_fails_whatever_its_accuracy(section: str, value: Any) -> None:
    """Accuracy that passed does not hide a defect found by another suite."""
    case = {"recipe": "r", "model": "m", "accuracy": {"decision": "PASS"}}

    assert cases.decision(cases.read_case(case)) == "PASS"
    assert cases.decision(cases.read_case({**case, section: value})) == "FAIL"


# -- the page --------------------------------------------------------------------------------------


def test_page_asks_for_nothing_and_runs_only_its_script(written: Path) -> None:
    """There is no address outside the page, and its policy admits the script by its hash alone."""
    source = (written / "report.html").read_text()
    elements = Elements(source)
    addresses = [
        a[k] for _, a in elements.opened for k in ("src", "href", "action", "data") if a.get(k)
    ]
    digest = base64.b64encode(hashlib.sha256(elements.scripts[0].encode()).digest()).decode()
    policy = next(a["content"] for t, a in elements.opened if t == "meta" and a.get("http-equiv"))

    assert all(str(a).startswith(("data:", "#case-")) for a in addresses)
    assert "default-src 'none'" in str(policy)
    assert f"script-src 'sha256-{digest}'" in str(policy)
    assert "@import" not in source
    assert "url(" not in source


def test_grid_shows_what_never_runs() -> None:
    """A quantizer that is enabled and not called, or without a range, is not coloured as one that
    works.
    """
    insertion = cases.read(measured()).cases[0].insertion
    assert insertion is not None
    q = next(q for q in insertion.map if q.enabled and q.amax and q.layer is not None)

    def cell(**changed: object) -> grid.Cell:
        return grid.cell(q.model_copy(update=changed), None)

    assert q.amax is not None
    assert cell().style == "f-e4m3"
    assert f"amax {q.amax.high:.4g}" in cell().title
    assert cell(calls=0).style == "broken"
    assert "NEVER CALLED" in cell(calls=0).title
    assert cell(amax=None).style == "broken"
    assert cell(amax=None, dynamic=True).style == "f-e4m3"
    assert cell(enabled=False).style == "off"


def test_grid_has_every_enabled_quantizer_once() -> None:
    """Every enabled quantizer has a cell, and each cell is another's."""
    case = cases.read(measured()).cases[0]
    assert case.insertion is not None
    cells = [c for g in grid.grids(case) for _, row in g.rows for c in row if c] + [
        c for g in grid.grids(case) for _, c in g.outside
    ]
    named = [c.title.partition(";")[0] for c in cells if c.style != "off"]

    assert sorted(named) == sorted(q.name for q in case.insertion.map if q.enabled)


def test_axis_holds_every_interval_budget_and_zero() -> None:
    """Positions grow with the points and lie within the picture, the budget's too."""
    rows = cases.rows(cases.read(measured()).cases[0])
    at = page.axis(rows).at

    for r in rows:
        places = [at(p) for p in sorted({r.low, r.difference, r.high, -r.budget, 0.0})]
        assert places == sorted(set(places))
        assert 0 < places[0] < places[-1] < 100


# -- in a browser ----------------------------------------------------------------------------------


needs_browser = pytest.mark.skipif(bool(MISSING), reason=MISSING)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium."""
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with three recipes: one as measured, one that fails and one that is inconclusive."""
    run = measured()
    cases = [json.loads(json.dumps(text.plain(run["cases"][0]))) for _ in range(3)]
    for case, name, word in zip(
        cases, ("fp8", "int8", "int4-awq"), ("PASS", "FAIL", "INCONCLUSIVE"), strict=True
    ):
        case["recipe"], case["accuracy"]["decision"] = name, word
    folder = tmp_path_factory.mktemp("several")
    report.write({**run, "cases": cases}, folder)
    return folder / "report.html"


@needs_browser
def test_page_loads_without_a_word_on_the_console(browser: Browser, several: Path) -> None:
    """No error and no warning; nothing but the file itself is asked for; every picture is there and
    drawn.
    """
    browser.console(), browser.requested()
    browser.open(several)
    pictures = browser.run(
        "const all = [...document.images]; all.forEach(i => i.loading = 'eager');"
        "await Promise.all(all.map(i => i.decode())); return all.map(i => i.naturalWidth)"
    )
    drawn = browser.run(
        "return [...document.querySelectorAll('svg.interval .dot')].map(d => d.getBBox().width)"
    )

    assert browser.console() == []
    assert {urllib.parse.urlsplit(a).scheme for a in browser.requested()} <= {"file", "data"}
    assert len(pictures) >= 10
    assert all(width > 0 for width in pictures)
    assert len(drawn) == 6
    assert all(width == 10 for width in drawn)


@needs_browser
def test_tables_sort_by_a_click(browser: Browser, several: Path) -> None:
    """A click on a heading sorts by the column's numbers, a second one the other way round."""
    browser.open(several)
    script = (
        "const t = document.querySelector('table.layers'); const h = [...t.tHead.rows[0].cells]"
        ".find(c => c.textContent.startsWith('SQNR')); h.querySelector('button').click();"
        "return [[...t.tBodies[0].rows].map(r => Number(r.cells[2].dataset.value)), "
        "h.getAttribute('aria-sort')]"
    )
    up, down = browser.run(script), browser.run(script)

    assert up == [sorted(up[0]), "ascending"]
    assert down == [sorted(up[0], reverse=True), "descending"]
    assert len(set(up[0])) > 3


@needs_browser
def test_recipes_are_found_by_words_and_decision(browser: Browser, several: Path) -> None:
    """What does not fit is hidden in the overview and below it."""
    browser.open(several)
    script = (
        "const [id, event, value] = args; const e = document.getElementById(id); e.value = value;"
        "e.dispatchEvent(new Event(event)); const seen = s => [...document.querySelectorAll(s)]"
        ".filter(x => x.checkVisibility()).map(x => x.id || x.dataset.case);"
        "return [seen('.case'), seen('#overview tbody tr'), "
        "document.getElementById('count').textContent]"
    )

    assert browser.run(script, "find", "input", "INT") == [
        ["case-1", "case-2"],
        ["case-1", "case-2"],
        "2 of 3",
    ]
    assert browser.run(script, "only", "change", "FAIL") == [["case-1"], ["case-1"], "1 of 3"]
    assert browser.run(script, "find", "input", "fp8") == [[], [], "0 of 3"]


@needs_browser
def test_changed_answers_are_filtered_and_sorted(browser: Browser, several: Path) -> None:
    """Kinds, tasks and words choose; lost come first, and the other orders are by number; more come
    on request.
    """
    browser.open(several)
    script = (
        "const g = document.querySelector('.gallery'); const [name, value] = args; if (name) {"
        "const e = g.querySelector('.tools .' + name); e.value = value; e.dispatchEvent(new "
        "Event('input')); }"
        "const more = g.querySelector('button.more'); while (!more.hidden) more.click();"
        "return [...g.querySelectorAll('.card')].filter(c => c.checkVisibility())"
        ".map(c => [c.dataset.kind, c.dataset.where, Number(c.dataset.fall), "
        "Number(c.dataset.before)])"
    )
    every = browser.run(script, None, None)
    severity = [("lost", "changed", "won").index(c[0]) for c in every]
    changed = measured()["cases"][0]["accuracy"]["changed"]

    assert len(every) == sum(map(len, changed.values())) > 5
    assert severity == sorted(severity)
    falls = [c[2] for c in browser.run(script, "order", "fall")]
    assert falls == sorted(falls, reverse=True)
    margins = [c[3] for c in browser.run(script, "order", "before")]
    assert margins == sorted(margins, reverse=True)
    assert {c[0] for c in browser.run(script, "kind", "changed")} == {"changed"}
    browser.run(script, "kind", "")
    assert {c[1] for c in browser.run(script, "where", "emoji/acc1")} == {"emoji/acc1"}
    browser.run(script, "where", "")
    sample = changed["emoji/acc1"][0]["sample"]
    assert len(browser.run(script, "words", sample.upper())) in (1, 2)
    assert browser.run(script, "words", "no such word") == []


@needs_browser
def test_map_tells_a_cell_and_recolours(browser: Browser, several: Path) -> None:
    """A tap on a cell writes its name, calls and amax; the colours can be those of underflow."""
    browser.open(several)
    described = browser.run(
        "const m = document.querySelector('.map'); m.querySelector('td.q').click();"
        "return m.querySelector('.detail').textContent"
    )
    script = (
        "const m = document.querySelector('.map'); const s = m.querySelector('.mode'); s.value = "
        "args[0];"
        "s.dispatchEvent(new Event('change')); return [...m.querySelectorAll('td.q:not(.off)')]"
        ".map(c => getComputedStyle(c).backgroundColor)"
    )
    formats, underflow = browser.run(script, "format"), browser.run(script, "underflow")

    assert re.search(
        r"vision_model\.encoder\.layers\.0\..*E4M3 per-tensor; 1 call; amax [\d.]+", described
    )
    assert len(set(formats)) == 1
    assert len(set(underflow)) > 1


@needs_browser
def test_page_is_readable_on_a_phone(browser: Browser, several: Path) -> None:
    """At 390 pixels nothing sticks out of the page's width, and no text is smaller than 11
    pixels.
    """
    browser.command(
        "Emulation.setDeviceMetricsOverride",
        width=390,
        height=844,
        deviceScaleFactor=1,
        mobile=True,
    )
    browser.open(several)
    width = browser.run("return document.documentElement.scrollWidth")
    smallest = browser.run(
        "return Math.min(...[...document.querySelectorAll('main *')].filter(e => "
        "e.checkVisibility()"
        " && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))"
        ".map(e => parseFloat(getComputedStyle(e).fontSize)))"
    )
    browser.command("Emulation.clearDeviceMetricsOverride")

    assert width == 390
    assert smallest >= 11


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_schemes(browser: Browser, several: Path, scheme: str) -> None:
    """With either preference, text has a contrast of at least 4.5 to what it stands on (WCAG 2.2,
    AA).
    """
    browser.command(
        "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
    )
    browser.open(several)
    worst, ground = browser.run(
        """
        const parse = c => c.match(/[\\d.]+/g).map(Number);
        const linear = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
        const light = c => { const [r, g, b] = c.map(linear); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        const ground = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
                              if (c.length === 3 || c[3] > 0) return c.slice(0, 3); } return [255, 255, 255]; };
        let worst = [99, ""];
        for (const e of document.querySelectorAll("body *")) {
          if (!e.checkVisibility() || e.closest("svg, .q")) continue;
          if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
          const [a, b] = [light(parse(getComputedStyle(e).color)), light(ground(e))];
          const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
          if (contrast < worst[0]) worst = [contrast, e.outerHTML.slice(0, 120)];
        }
        return [worst, light(parse(getComputedStyle(document.body).backgroundColor))];
        """
    )

    assert worst[0] >= 4.5, worst[1]
    assert ground > 0.8 if scheme == "light" else ground < 0.05


@needs_browser
def test_hostile_names_do_nothing_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    """All hostile names at once: no script of theirs runs, nothing is asked for, and they are read
    as they are.
    """
    run = hostile(HOSTILE[0])
    run["cases"] = [hostile(name)["cases"][0] for name in HOSTILE]
    report.write(run, tmp_path)
    browser.console(), browser.requested()
    browser.open(tmp_path / "report.html")
    heading = browser.run(
        "const over = () => new MouseEvent('mouseover', {bubbles: true});"
        "document.querySelectorAll('[title]').forEach(e => e.dispatchEvent(over()));"
        "return document.querySelector('.case h2').firstChild.textContent.trim()"
    )

    assert browser.run("return typeof window.pwned") == "undefined"
    assert browser.console() == []
    assert {urllib.parse.urlsplit(a).scheme for a in browser.requested()} <= {"file", "data"}
    assert heading == HOSTILE[0]
