"""The lint: every rule on the line that causes it, no false alarm on shipped recipes, and no
torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from bad_recipes import EDITS, RECIPE

from harness.lint import formats
from harness.lint.command import main
from harness.lint.known import installed, releases
from harness.lint.rules import RULES
from harness.lint.run import LintOutcome, LintProblem, lint
from harness.recipes import judged
from harness.recipes.finding import HERE, installed_root

CORPUS = Path(__file__).parents[1] / "recipes" / "corpus"
OFF = "{quantizer_name: '*', enable: false}"
SCHEMA = "# modelopt-schema: modelopt.torch.quantization.config."


def put(path: Path, text: str) -> Path:
    """Write a file, its folders made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def errors(outcome: LintOutcome) -> list[tuple[str, int, int, str]]:
    """(file, line, column, rule) of each problem that is not a note."""
    return [
        (Path(p.path).name, p.line, p.column, p.rule)
        for p in outcome.problems
        if p.level == "error"
    ]


def notes(outcome: LintOutcome) -> set[tuple[int, str]]:
    """(line, rule) of each note."""
    return {(p.line, p.rule) for p in outcome.problems if p.level == "note"}


# -- rules -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new", "line", "column", "rule", "says"), EDITS)
def test_a_planted_edit_is_found_where_it_is(
    old: str, new: str, line: int, column: int, rule: str, says: str, tmp_path: Path
) -> None:
    """Each rule reports its edit on the line and column that a person has to change, and nothing
    else.
    """
    assert RECIPE.count(old) >= 1
    path = put(tmp_path / "r.yaml", RECIPE.replace(old, new, 1))

    outcome = lint([path])

    assert errors(outcome) == [("r.yaml", line, column, rule)]
    (problem,) = (
        found_problem for found_problem in outcome.problems if found_problem.level == "error"
    )
    assert says in f"{problem.what} {problem.fix}"


def test_the_recipe_without_an_edit_has_no_problem(tmp_path: Path) -> None:
    """What the edits are planted in is clean, so that it is the edit which is found."""
    assert lint([put(tmp_path / "r.yaml", RECIPE)]).problems == ()


def test_several_problems_are_reported_at_once(tmp_path: Path) -> None:
    """One run shows every problem of a recipe, in the order of its lines."""
    text = (
        RECIPE.replace("num_bits: e4m3\n", "num_bit: e4m3\n")
        .replace("'*input_q", "'*inptu_q")
        .replace("8}", "99}")
    )
    text = text.replace("'*weight_q", "'*wieght_q")

    problems = errors(lint([put(tmp_path / "r.yaml", text)]))

    assert [(line, rule) for _, line, _, rule in problems] == [
        (8, "no-match"),
        (10, "unknown-attribute"),
        (12, "no-match"),
        (15, "schema"),
    ]


@pytest.mark.parametrize(
    ("old", "new", "line", "rule"),
    [
        (
            "cfg: {num_bits: 8}",
            "cfg: {num_bits: e2m1, block_sizes: {-1: 16, type: dynamic, scale_bits: e4m3}}",
            14,
            "cuda",
        ),
        ("'*[qkv]_bmm_quantizer'", "'visual.*weight_quantizer'", 14, "one-family"),
        ("axis: null", "block_sizes: {-1: 128}", 8, "some-blocks"),
        ("'*input_quantizer'", "'*experts*input_quantizer'", 12, "no-match"),
    ],
)
def test_what_is_not_wrong_everywhere(
    old: str, new: str, line: int, rule: str, tmp_path: Path
) -> None:
    """A note does not make the lint fail; a part that no CLIP model has is an error in a recipe for
    CLIP.
    """
    outcome = lint([put(tmp_path / "r.yaml", RECIPE.replace(old, new, 1))])

    assert (line, rule) in {(problem.line, problem.rule) for problem in outcome.problems}
    assert outcome.exit_code == (1 if RULES[rule][1] == "error" else 0)


@pytest.mark.parametrize("folder", ["general/ptq", "huggingface/llama/ptq"])
def test_a_recipe_for_other_families_may_name_their_parts(folder: str, tmp_path: Path) -> None:
    """In ModelOpt's tree a pattern for experts is a note, and a misspelt kind of quantizer is still
    an error.
    """
    text = RECIPE.replace("'*input_quantizer'", "'*block_sparse_moe*input_quantizer'").replace(
        "bmm_q", "bmn_q"
    )
    put(tmp_path / "configs/ptq/units/u.yaml", f"{SCHEMA}QuantizerCfgListConfig\n[]\n")

    outcome = lint([put(tmp_path / folder / "r.yaml", text)])

    assert errors(outcome) == [("r.yaml", 14, 7, "no-match")]
    assert notes(outcome) == {(12, "other-family")}


def test_a_name_of_an_earlier_release_is_told_from_a_misspelt_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A pattern that matched in an earlier release says up to which one."""
    now = installed()
    rows: dict[str, Any] = {
        "ViT-L-14": {
            "family": "clip",
            "places": [["text_model.old_quantizer", [], "Linear", "linear", None]],
        }
    }
    known = releases() | {"0.46.1": type(now)("0.46.1", {"architectures": rows})}
    monkeypatch.setattr("harness.lint.rules.releases", lambda: known)

    outcome = lint(
        [put(tmp_path / "r.yaml", RECIPE.replace("'*[qkv]_bmm_quantizer'", "'*old_quantizer'"))]
    )

    assert "up to ModelOpt 0.46.1 it did" in outcome.problems[0].what


@pytest.mark.parametrize(
    ("algorithm", "named"),
    [
        ("max", []),
        (
            {"method": "max", "layerwise": {"enable": True, "checkpoint_dir": "x"}},
            ["layerwise.checkpoint_dir"],
        ),
        (
            {"method": "max", "layerwise": {"export_dir": "x", "checkpoint_dir": None}},
            ["layerwise.export_dir"],
        ),
        (["max", {"method": "new", "lut_path": "x", "log_file": "y"}], ["lut_path", "log_file"]),
        ({"method": "max", "profile": True, "direct": 1, "sync_expert_weight_amax": True}, []),
    ],
    ids=str,
)
def test_settings_that_name_files_are_known_by_rule(algorithm: Any, named: list[str]) -> None:
    """What ends in dir, path or file and is set, at any depth, whatever the method is called."""
    assert judged.file_settings(algorithm) == named


# -- trees and snippets ----------------------------------------------------------------------------


def tree(root: Path) -> Path:
    """A tree of two recipes that import one snippet, and a snippet that nobody imports."""
    put(
        root / "configs/ptq/units/w8.yaml",
        f"{SCHEMA}QuantizerCfgListConfig\n- quantizer_name: '*weight_quantizer'\n"
        "  cfg:\n    num_bits: e4m3\n",
    )
    put(root / "configs/ptq/units/alone.yaml", f"{SCHEMA}QuantizerAttributeConfig\nnum_bits: 8\n")
    for name in ("a", "b"):
        head = (
            "imports: {w8: configs/ptq/units/w8}\nmetadata: {recipe_type: ptq}\nquantize:\n  "
            "algorithm: max\n"
        )
        body = "  quant_cfg:\n  - {quantizer_name: '*', enable: false}\n  - $import: w8\n"
        put(root / f"general/ptq/{name}.yaml", head + body)
    put(root / ".hidden/x.yaml", "[")
    put(root / "general/values.yaml", "image: {tag: 1}\n")
    return root


def test_a_snippet_is_looked_at_through_the_recipes_that_import_it(tmp_path: Path) -> None:
    """Its problem is reported once, on its own line, whether the snippet, a recipe or the tree is
    given.
    """
    root = tree(tmp_path)
    snippet = root / "configs/ptq/units/w8.yaml"
    assert lint([root]).exit_code == 0
    put(snippet, snippet.read_text().replace("*weight", "*wieght"))

    for paths in ([snippet], [root / "general/ptq/a.yaml"], [root], [snippet, root]):
        assert errors(lint(paths)) == [("w8.yaml", 2, 3, "no-match")]
    assert lint([snippet]).recipes == 2

    put(snippet, snippet.read_text().replace("num_bits", "num_bitz").replace("*wieght", "*weight"))
    assert errors(lint([snippet])) == [("w8.yaml", 4, 5, "unknown-attribute")]


def test_an_order_is_wrong_where_the_recipe_has_it(tmp_path: Path) -> None:
    """A deny-all that a recipe imports last is wrong on the line of that import, not in the
    snippet.
    """
    root = tree(tmp_path)
    put(root / "configs/ptq/units/deny.yaml", f"{SCHEMA}QuantizerCfgListConfig\n- {OFF}\n")
    recipe = root / "general/ptq/a.yaml"
    text = (
        recipe.read_text()
        .replace(f"  - {OFF}\n", "")
        .replace("{w8:", "{deny: configs/ptq/units/deny, w8:")
    )
    put(recipe, f"{text}  - $import: deny\n")

    for name in ("general/ptq/a.yaml", "configs/ptq/units/deny.yaml"):
        assert errors(lint([root / name])) == [("a.yaml", 7, 5, "overridden")]


def test_notes_are_about_the_snippet_that_was_given(tmp_path: Path) -> None:
    """A note about a recipe that imports it is of no use to the author of a snippet."""
    root = tree(tmp_path)
    recipe = root / "general/ptq/a.yaml"
    put(recipe, f"{recipe.read_text()}  - {{quantizer_name: 'visual.*', enable: false}}\n")

    assert notes(lint([recipe])) == {(8, "one-family")}
    assert notes(lint([root / "configs/ptq/units/w8.yaml"])) == set()


def test_a_snippet_that_nobody_imports_is_held_against_its_schema(tmp_path: Path) -> None:
    """A snippet without users still has a schema, and one that is not YAML is reported in a
    tree.
    """
    root = tree(tmp_path)
    alone = put(
        root / "configs/ptq/units/alone.yaml", f"{SCHEMA}QuantizerAttributeConfig\nnum_bitz: 8\n"
    )

    assert (
        errors(lint([alone])) == errors(lint([root])) == [("alone.yaml", 2, 1, "unknown-attribute")]
    )

    put(alone, f"{SCHEMA}QuantizerAttributeConfig\nnum_bits: [\n")
    assert [rule for *_, rule in errors(lint([root]))] == ["yaml"]


def test_every_import_that_does_not_resolve_is_reported(tmp_path: Path) -> None:
    """Two missing imports are two problems, each on its line; a circle is one."""
    text = "imports:\n  a: no/where\n  b: /etc/passwd\n" + RECIPE
    path = put(tmp_path / "general/r.yaml", text)
    put(
        tmp_path / "configs/ptq/c.yaml",
        f"{SCHEMA}QuantizerCfgListConfig\nimports: {{c: configs/ptq/c}}\n---\n[]\n",
    )

    assert errors(lint([path])) == [("r.yaml", 2, 3, "import"), ("r.yaml", 3, 3, "import")]

    put(path, "imports: {c: configs/ptq/c}\n" + RECIPE)
    assert [(name, rule) for name, _, _, rule in errors(lint([path]))] == [("c.yaml", "import")]


@pytest.mark.parametrize(
    "name", ["huggingface/vit/ptq/fp8.yaml", "general/ptq/nvfp4_experts_only-kv_fp8.yaml"]
)
def test_a_shipped_recipe_alone_is_as_in_its_tree(name: str) -> None:
    """A recipe of ModelOpt's has no problem."""
    assert errors(lint([installed_root() / name])) == []


def test_shipped_recipes_have_no_false_alarm() -> None:
    """Of ModelOpt 0.47's whole tree one recipe is refused, which names a folder to write; of this
    package's none.
    """
    expected = [("nvfp4_default-kv_none-gptq.yaml", 34, 7, "files")]

    assert errors(lint([installed_root()])) == expected
    assert errors(lint([HERE])) == []


# -- what a release says ---------------------------------------------------------------------------


def test_names_are_known_by_family_and_release() -> None:
    """The newest release knows every family and its sizes, earlier ones CLIP's names."""
    now = installed()
    assert {"clip", "clip-vision", "siglip", "siglip2", "open_clip"} <= set(now.families)
    shapes = now.widths["ViT-L-14"]
    assert shapes["vision_model.encoder.layers.23.mlp.fc1.weight_quantizer"] == (4096, 1024)
    assert shapes["text_model.encoder.layers.0.mlp.fc2.input_quantizer"] == (3072,)
    assert len(releases()["0.44.0"].families["clip"]) > 900


# -- formats ---------------------------------------------------------------------------------------

HOSTILE = LintProblem(
    "a,b:c%\n.yaml", 3, 7, "no-match", "x\n::error::y ##[z]\x1b[31m %0A", "<b> & \u202e"
)


def test_the_text_format_is_one_printable_line_each() -> None:
    """Names come from pull requests: nothing in a line is a control character or a command of a
    runner.
    """
    lines = formats.text([HOSTILE]).splitlines()

    assert len(lines) == 1
    assert lines[0].isprintable()
    assert "##[" not in lines[0]
    assert lines[0].startswith("a,b:c%\\n.yaml:3:7: no-match: ")


def test_the_github_format_is_one_escaped_command_each() -> None:
    """Percent signs, colons and commas in a property, and line breaks, are what GitHub's toolkit
    makes of them.
    """
    (line,) = formats.github([HOSTILE]).splitlines()

    assert line.startswith(
        "::error file=a%2Cb%3Ac%25\\n.yaml,line=3,col=7,title=no-match::x\\n::error::y"
    )
    assert line.isprintable()
    assert line.endswith("%250A. Fix: <b> & \\u202e")


def test_the_json_format_is_a_list() -> None:
    """The documented keys, nothing else."""
    (item,) = json.loads(formats.as_json([HOSTILE]))

    assert list(item) == ["file", "line", "column", "rule", "level", "what", "fix"]
    assert (item["line"], item["column"], item["level"]) == (3, 7, "error")
    assert item["what"] == HOSTILE.what


def closed(required: dict[str, Any]) -> dict[str, Any]:
    """The schema of an object that has these properties and no others."""
    return {
        "type": "object",
        "properties": required,
        "required": list(required),
        "additionalProperties": False,
    }


_TEXT = {"type": "string", "minLength": 1}
_COUNTED_FROM_1 = {"type": "integer", "minimum": 1}
_LEVEL = {"enum": ["none", "note", "warning", "error"]}
_MESSAGE = closed({"text": _TEXT})
_RULE = closed(
    {"id": _TEXT, "shortDescription": _MESSAGE, "defaultConfiguration": closed({"level": _LEVEL})}
)
_PLACE = closed(
    {
        "physicalLocation": closed(
            {
                "artifactLocation": closed({"uri": {"type": "string", "format": "uri-reference"}}),
                "region": closed({"startLine": _COUNTED_FROM_1, "startColumn": _COUNTED_FROM_1}),
            }
        )
    }
)
_RESULT = closed(
    {
        "ruleId": _TEXT,
        "ruleIndex": {"type": "integer", "minimum": 0},
        "level": _LEVEL,
        "message": _MESSAGE,
        "locations": {"type": "array", "items": _PLACE},
    }
)
_RUN = closed(
    {
        "tool": closed(
            {"driver": closed({"name": _TEXT, "version": _TEXT, "rules": {"items": _RULE}})}
        ),
        "columnKind": {"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
        "results": {"type": "array", "items": _RESULT},
    }
)
#: What SARIF 2.1.0 (OASIS, sections 3.13 to 3.52) asks of the properties that the lint writes.
SARIF = closed(
    {
        "$schema": {"type": "string", "pattern": "sarif-schema-2.1.0.json$"},
        "version": {"const": "2.1.0"},
        "runs": {"type": "array", "items": _RUN},
    }
)


def test_the_sarif_format_is_valid() -> None:
    """Its objects have the standard's properties; every result names a listed rule and a place whose URI is encoded."""
    log = json.loads(formats.sarif([HOSTILE, LintProblem("/x/y.yaml", 1, 1, "cuda", "w", "f")]))

    jsonschema.validate(log, SARIF)
    (run,) = log["runs"]
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == list(RULES)
    assert [
        run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] for result in run["results"]
    ] == [
        "no-match",
        "cuda",
    ]
    uris = [
        result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        for result in run["results"]
    ]
    assert uris == ["a%2Cb%3Ac%25%0A.yaml", "file:///x/y.yaml"]


# -- the command -----------------------------------------------------------------------------------


def test_exit_codes_and_streams(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0 without problems, 1 with one, 4 for what cannot be read; problems of other files are
    printed all the same.
    """
    good, bad = (
        put(tmp_path / "g.yaml", RECIPE),
        put(tmp_path / "b.yaml", RECIPE.replace("*weight", "*wieght")),
    )
    assert main(["lint", str(good)]) == 0
    assert capsys.readouterr() == ("", "1 recipe: 0 problems, 0 notes\n")
    assert main(["lint", str(good), str(bad)]) == 1
    assert f"{bad}:8:7: no-match: " in capsys.readouterr().out
    put(tmp_path / "h.yaml", "[" * 100_000)
    assert main(["lint", str(tmp_path), "--format", "github"]) == 4
    out, err = capsys.readouterr()
    assert f"::error file={bad},line=8,col=7" in out
    assert err.startswith(f"{tmp_path / 'h.yaml'}:1: nests deeper")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [[], ["no/such.yaml"], ["."], [""], ["x\0y"], ["--format", "xml", "."], ["~nobody9/x"]],
)
def test_a_usage_error_is_one_line(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No path, a missing one, an empty folder, no path at all: exit code 4 and one line that says
    so.
    """
    monkeypatch.chdir(tmp_path)

    assert main(["lint", *arguments]) == 4

    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].isprintable()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_and_huge_files_are_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pipe never ends and a file of gigabytes does not fit: one line and exit code 4, given or
    met in a tree.
    """
    os.mkfifo(tmp_path / "pipe.yaml")
    with (tmp_path / "huge.yaml").open("wb") as file:
        file.truncate(1 << 33)

    for argument in (tmp_path / "pipe.yaml", tmp_path / "huge.yaml", tmp_path):
        assert main(["lint", str(argument)]) == 4
        lines = capsys.readouterr().err.splitlines()
        assert 1 <= len([line for line in lines if ".yaml" in line]) <= 2


@pytest.mark.parametrize("path", sorted(CORPUS.iterdir()), ids=lambda path: path.stem)
def test_a_hostile_file_is_refused(path: Path) -> None:
    """Every file of the corpus is a problem or cannot be read, and what is said is printable."""
    outcome = lint([path])

    assert outcome.exit_code in (1, 4)
    assert all(line.isprintable() for line in formats.text(outcome.problems).splitlines())
    assert all(str(error).isprintable() for error in outcome.unreadable)


def test_nothing_heavy_is_imported(tmp_path: Path) -> None:
    """A whole run, in a process of its own, imports no torch, transformers, NumPy or ModelOpt."""
    path = put(tmp_path / "r.yaml", RECIPE.replace("*weight", "*wieght"))
    code = (
        "import sys; from harness.lint.command import main; assert main(['lint', *sys.argv[1:]]) "
        "== 1\n"
        "heavy = {'torch', 'transformers', 'modelopt', 'diffusers', 'numpy', 'scipy', 'onnx', "
        "'pytest'}\n"
        "print(sorted(heavy & {name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert done.stdout.splitlines()[-1:] == ["[]"], done.stdout + done.stderr


def test_the_hooks_call_the_command() -> None:
    """The entry of each pre-commit hook is a command that exists, for files of a tree of
    recipes.
    """
    hooks = yaml.safe_load((Path(__file__).parents[3] / ".pre-commit-hooks.yaml").read_text())

    assert [hook["id"] for hook in hooks] == ["clip-gate-lint", "clip-gate-lint-installed"]
    assert {hook["entry"] for hook in hooks} == {"clip-gate lint"}
