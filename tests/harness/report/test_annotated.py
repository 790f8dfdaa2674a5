"""Annotations: each problem of a run once, on the line of the recipe that causes it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from harness.diagnosis import suggestion
from harness.errors import UsageError
from harness.files.located import Place
from harness.lint.run import LintProblem, lint
from harness.report import annotated
from harness.report.cases import read
from harness.report.markdown import summary

CORPUS = Path(__file__).parents[1] / "recipes" / "corpus"
HEAD = "metadata: {recipe_type: ptq}\nquantize:\n  algorithm: max\n  quant_cfg:\n"
OFF = "    - {quantizer_name: '*', enable: false}\n"
WEIGHTS = "    - {quantizer_name: '*weight_quantizer', cfg: {num_bits: 8}}\n"
NOTHING = read({"schema": 2, "environment": {}, "cases": []})
PATCH = "- quantizer_name: '*fc1*'\n  enable: false\n"


BLAME: dict[str, Any] = {"groups": [], "patch": PATCH, "verified": True}


def case(recipe: str, *problems: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """A case of the results whose checks failed."""
    failed = [{"test": "t", "suite": "insertion", "outcome": "failed", "message": "it differs"}]
    checks = {"counts": {"failed": 1}, "failed": failed, "depending": {}}
    results_of_case = {"recipe": recipe, "model": "m", "checks": checks, **sections}
    return results_of_case | (
        {"insertion": {"problems": list(problems), "map": []}} if problems else {}
    )


def problem(rule: str, place: str) -> dict[str, Any]:
    """A problem of the insertion suite."""
    return {"rule": rule, "what": "w:", "names": ["a.b"], "fix": "f", "place": place}


def of(*cases: dict[str, Any], files: dict[str, Path], linted: bool = True) -> list[str]:
    """The annotations of a run, as ``file:line rule``."""
    linted_problems = lint(list(files.values())).problems if linted else ()
    results = {"schema": 2, "environment": {}, "cases": list(cases)}
    return [
        f"{Path(problem.path).name}:{problem.line} {problem.rule}"
        for problem in annotated.of_run(linted_problems, read(results), files)
    ]


def put(folder: Path, name: str, text: str) -> Path:
    """Write a recipe."""
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


def test_each_of_five_bad_edits_has_one_annotation(tmp_path: Path) -> None:
    """A misspelt pattern and attribute, an order, what only a model shows, and a loss of accuracy:
    what follows from one of them is not annotated again.
    """
    files = {
        "pattern": put(tmp_path, "pattern", HEAD + OFF + WEIGHTS.replace("weight", "wieght")),
        "attribute": put(tmp_path, "attribute", HEAD + OFF + WEIGHTS.replace("bits", "bit")),
        "order": put(tmp_path, "order", HEAD + WEIGHTS + OFF),
        "model": put(tmp_path, "model", HEAD + OFF + WEIGHTS),
        "loss": put(tmp_path, "loss", HEAD + OFF + WEIGHTS),
    }
    where = {name: f"{path}:6:5" for name, path in files.items()}

    annotations = of(
        case(
            "pattern",
            problem("pattern matches nothing", where["pattern"]),
            problem("tower unquantized", f"{files['pattern']}:5:5"),
        ),
        case("order"),
        case("model", problem("never runs", where["model"]), problem("no amax", where["model"])),
        case("loss", blame={**BLAME, "place": where["loss"]}),
        files=files,
    )

    assert annotations == [
        "attribute.yaml:6 unknown-attribute",
        "loss.yaml:6 failed",
        "model.yaml:6 insertion",
        "order.yaml:6 overridden",
        "pattern.yaml:6 no-match",
    ]


def test_a_failure_without_a_line_is_shown_at_the_top_of_its_recipe(tmp_path: Path) -> None:
    """One for all models on which it failed; of a recipe in Python GitHub shows it without a
    file.
    """
    path = put(tmp_path, "r", HEAD + OFF + WEIGHTS)

    assert of(case("r"), case("r"), files={"r": path}) == ["r.yaml:1 failed"]
    assert of(case("p"), files={}, linted=False) == [":1 failed"]


def test_a_gain_is_annotated_like_a_failure(tmp_path: Path) -> None:
    """A recipe that is better than is plausible fails the run, so it is shown on its file."""
    path = put(tmp_path, "r", HEAD + OFF + WEIGHTS)
    gained = case("r") | {"checks": {}, "accuracy": {"decision": "GAIN"}}

    assert of(gained, files={"r": path}) == ["r.yaml:1 failed"]


def test_a_refusal_is_where_it_is_unless_the_lint_says_so_already(tmp_path: Path) -> None:
    """A usage error with a place is on its line, one of an option has no file."""
    errors = [
        UsageError(Place.make(tmp_path / "r.yaml", 7, 3), "no", "Do."),
        UsageError("--tasks x", "is none", "Do."),
    ]
    known = LintProblem(str(tmp_path / "r.yaml"), 7, 3, "schema", "no", "Do.")

    annotations = annotated.of_run([], NOTHING, {}, errors)
    assert [
        (annotation.line, annotation.rule, bool(annotation.path)) for annotation in annotations
    ] == [
        (1, "refused", False),
        (7, "refused", True),
    ]
    assert annotated.of_run([known], NOTHING, {}, errors[:1]) == [known]


@pytest.mark.parametrize("path", sorted(CORPUS.iterdir()), ids=lambda path: path.stem)
def test_a_hostile_file_makes_commands_of_one_line_each(path: Path) -> None:
    """Nothing in a file of the corpus begins a command of its own, or hides one."""
    outcome = lint([path], CORPUS)
    annotations = annotated.of_run(outcome.problems, NOTHING, {}, outcome.unreadable)

    lines = annotated.commands(annotations).splitlines()

    assert 1 <= len(lines) == len(annotations)
    start = re.compile(r"::error file=[^:,\s]+,line=\d+,col=\d+,title=[a-z-]+::[^\n\r]+$")
    assert all(start.match(line) and line.isprintable() for line in lines)


def test_paths_are_those_of_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GitHub wants them from the workspace, or from the folder that holds ``.git``."""
    monkeypatch.delenv("GITHUB_WORKSPACE", raising=False)
    (tmp_path / "a/b/.git").mkdir(parents=True)
    assert annotated.in_repository(str(tmp_path / "a/b/c.yaml")) == "c.yaml"
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path / "a"))
    assert annotated.in_repository(str(tmp_path / "a/b/c.yaml")) == "b/c.yaml"


@pytest.mark.parametrize(
    ("text", "line", "first"),
    [
        (HEAD + OFF + WEIGHTS, 6, WEIGHTS),
        (HEAD + OFF + "    - quantizer_name: 'x'\n      enable: false  # y\n\n# end\n", 7, None),
        (f"{HEAD}{OFF}{WEIGHTS}extra:\n  a: 1\n", 6, WEIGHTS),
        (f"a: b\n---\n{HEAD}{OFF}", 7, OFF),
        (HEAD + "    - |\n      text\n", 6, None),
    ],
)
def test_a_patch_is_a_change_of_the_last_line_of_the_last_entry(
    text: str, line: int, first: str | None, tmp_path: Path
) -> None:
    """The line stays, and the entries follow with its list's indentation."""
    path = put(tmp_path, "r", text)

    change = suggestion.of_patch(path, PATCH)

    assert change is not None
    assert change.place == f"{path}:{line}:5"
    assert change.text.splitlines()[0] == text.splitlines()[line - 1]
    assert change.text.splitlines()[1:] == [
        "    - quantizer_name: '*fc1*'",
        "      enable: false",
    ]


@pytest.mark.parametrize(
    "text", ["quantize: {quant_cfg: []}\n", "quantize: {quant_cfg: [{a: 1}]}\n", "a: 1", "[", ""]
)
def test_no_change_of_one_line_is_suggested_where_there_is_none(text: str, tmp_path: Path) -> None:
    """Entries in brackets, none at all, or no recipe."""
    assert suggestion.of_patch(put(tmp_path, "r", text), PATCH) is None
    assert suggestion.of_patch(None, PATCH) is None


def test_the_summary_shows_the_change_as_a_suggestion() -> None:
    """GitHub offers what stands in such a block as a change of the line."""
    change = {"file": "a/r.yaml", "line": 6, "text": "x\n- y"}
    results = {
        "schema": 2,
        "environment": {},
        "cases": [case("r", blame={**BLAME, "suggestion": change})],
    }

    text = summary(read(results))

    assert "line 6 of `a/r.yaml`" in text
    assert "```suggestion\nx\n- y\n```" in text
