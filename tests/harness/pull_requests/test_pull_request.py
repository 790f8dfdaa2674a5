"""A pull request to a recipe tree, from its diff to the gate's exit code, on a scratch git
repository.

The tree is the installed ``modelopt_recipes`` with a CLIP recipe put where one would be proposed.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import compat  # noqa: F401
from harness.checks import checkpoint_preload  # noqa: F401  (what is imported first inside a nested pytest is dropped with it)
from harness.pull_requests import effect, selection
from harness.recipes import finding, loading

ROOT = Path(__file__).parents[3]
CLIP = "huggingface/clip/ptq/fp8"
NUMERIC = "configs/numerics/fp8"
IDENTITY = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")


class Tree:
    """A recipe tree in a git repository, and the gate run on what the last commit changed."""

    def __init__(self, root: Path, pytester: pytest.Pytester) -> None:
        self.root = root
        self._pytester = pytester

    def git(self, *arguments: str) -> None:
        """Run git with an identity of its own."""
        subprocess.run(
            ["git", "-C", str(self.root.parent), *IDENTITY, *arguments],
            check=True,
            capture_output=True,
        )

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace the one place of *old* in a file."""
        path = self.root / f"{name}.yaml"
        text = path.read_text()
        assert text.count(old) == 1, f"{name} holds {old!r} {text.count(old)} times"
        path.write_text(text.replace(old, new))

    def gate(self, *arguments: str) -> pytest.RunResult:
        """Commit what was edited and run the gate on that commit's changes."""
        self.commit()
        return self.run("--changed-since", "HEAD~1", *arguments)

    def commit(self) -> None:
        """Commit what was edited."""
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "pull request")

    def words(self, *arguments: str) -> list[str]:
        """The words of a command line that gates recipes of the tree."""
        place = [
            "-p",
            "no:cacheprovider",
            "-c",
            str(ROOT / "pyproject.toml"),
            "--rootdir",
            str(ROOT),
        ]
        return [
            *place,
            str(ROOT / "tests" / "test_insertion.py"),
            "--recipes-root",
            str(self.root),
            *arguments,
        ]

    def run(self, *arguments: str) -> pytest.RunResult:
        """Run the gate on the tree, inside this process."""
        return self._pytester.runpytest_inprocess(*self.words(*arguments))


@pytest.fixture
def whole(tmp_path: Path, pytester: pytest.Pytester) -> Tree:
    """All of the installed tree, committed."""
    return _committed(tmp_path, pytester, ("",))


@pytest.fixture
def tree(tmp_path: Path, pytester: pytest.Pytester) -> Tree:
    """The tree without other families' folders, committed."""
    return _committed(tmp_path, pytester, ("configs", "general/auto_quantize", "huggingface/vit"))


def _committed(folder: Path, pytester: pytest.Pytester, parts: tuple[str, ...]) -> Tree:
    root = folder / "repository" / "modelopt_recipes"
    for part in parts:
        shutil.copytree(
            finding.installed_root() / part,
            root / part,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    clip = root / f"{CLIP}.yaml"
    clip.parent.mkdir(parents=True)
    shutil.copy(loading.load("fp8").path or "", clip)
    tree = Tree(root, pytester)
    subprocess.run(["git", "init", "-q", "-b", "main", str(root.parent)], check=True)
    tree.git("add", "-A")
    tree.git("commit", "-q", "-m", "base")
    return tree


def selected(result: pytest.RunResult) -> set[str]:
    """Recipes that a run listed as reached: those in the listing's first part."""
    lines = result.outlines
    first = lines.index("recipes that the change reaches, and the imports that lead there:")
    return {
        m[1]
        for line in lines[first + 1 : lines.index("", first)]
        if (m := re.match(r"- (\S+)", line))
    }


def importers(root: Path, name: str) -> set[str]:
    """Recipes under *root* that import *name* at any depth, found without the harness's own reader.

    Every ``imports:`` of every document counts; a file is a recipe if its first document has a
    ``recipe_type``.
    """
    direct: dict[str, set[str]] = {}
    recipe_files = set()
    for path in root.rglob("*.y*ml"):
        short = path.relative_to(root).with_suffix("").as_posix()
        documents = [d for d in yaml.safe_load_all(path.read_text()) if isinstance(d, dict)]
        targets = {
            str(t).removesuffix(".yaml")
            for d in documents
            for t in (d.get("imports") or {}).values()
        }
        direct[short] = targets
        if any("recipe_type" in (d.get("metadata") or {}) for d in documents):
            recipe_files.add(short)
    reached, grown = {name}, True
    while grown:
        more = {importer for importer, targets in direct.items() if targets & reached} - reached
        reached, grown = reached | more, bool(more)
    return reached & recipe_files


def test_a_line_of_a_numeric_selects_its_importers_and_no_other(whole: Tree) -> None:
    """On ModelOpt's whole tree, one changed line of a numeric selects exactly the recipes that
    import it, any depth.
    """
    expected = importers(whole.root, NUMERIC)
    whole.edit(NUMERIC, "num_bits: e4m3", "num_bits: e4m3  # four bits of exponent")
    result = whole.gate("--list-affected")

    assert result.ret == 0
    assert len(expected) > 40
    assert selected(result) == expected


def test_a_comment_has_no_effect_and_runs_nothing(tree: Tree) -> None:
    """A change that resolves to the same recipe is reported as no effect on CLIP, and no test is
    collected.
    """
    tree.edit(NUMERIC, "num_bits: e4m3", "num_bits: e4m3  # four bits of exponent")
    result = tree.gate()

    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "- huggingface/vit/ptq/fp8",
            "  - huggingface/vit/ptq/fp8.yaml -> *configs/numerics/fp8.yaml: modified",
            "huggingface/vit/ptq/fp8: no effect on CLIP",
            "- huggingface/vit/ptq/fp8: no effect on CLIP: quantizers and algorithm are as they "
            "were",
            "gated: nothing",
        ]
    )
    assert "collected" not in result.stdout.str()


def test_a_renamed_snippet_has_no_effect(tree: Tree) -> None:
    """A snippet that moves together with what imports it changes no quantizer."""
    unit = "configs/ptq/units/w8a8_fp8_fp8"
    tree.git(
        "mv",
        f"modelopt_recipes/{unit}.yaml",
        "modelopt_recipes/configs/ptq/units/fp8_everywhere.yaml",
    )
    for path in tree.root.rglob("*.yaml"):
        path.write_text(path.read_text().replace(f"{unit}\n", "configs/ptq/units/fp8_everywhere\n"))
    result = tree.gate()

    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["*fp8_everywhere.yaml: renamed from *w8a8_fp8_fp8.yaml", "gated: nothing"]
    )
    assert "broken" not in result.stdout.str()


def test_a_changed_numeric_shows_its_effect(tree: Tree) -> None:
    """A change of granularity is a map diff that a person reads; recipes of other kinds are listed
    with the reason.
    """
    tree.edit(NUMERIC, "axis:", "axis: 0")
    result = tree.gate("--list-affected")

    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "huggingface/vit/ptq/fp8:",
            "  embedded:",
            "* quantizers change: vision *self_attn.* E4M3 per-tensor to E4M3 per-channel(0), "
            "layers 0..3",
            "  ViT-L-14:",
            "* quantizers change: vision *self_attn.* E4M3 per-tensor to E4M3 per-channel(0), "
            "layers 0..23",
            "gated: general/auto_quantize/w4a8_awq_beta_fp8_at_6p0bits, huggingface/vit/ptq/fp8",
        ]
    )
    effects = result.outlines[result.outlines.index("  ViT-L-14:") + 1 :]
    assert effects.index("") <= 10
    assert CLIP not in selected(result)
    result.stdout.fnmatch_lines(
        ["- general/auto_quantize/nvfp4_*: NVFP4 (E2M1) needs CUDA, and this is cpu"]
    )


def test_nothing_reached_is_a_clean_exit(tree: Tree) -> None:
    """A change outside every recipe's imports ends with exit code 0 and says so."""
    (tree.root / "README.md").write_text("words\n")
    schema = "# modelopt-schema: modelopt.torch.quantization.config.QuantizerAttributeConfig\n"
    (tree.root / "configs" / "numerics" / "unused.yaml").write_text(f"{schema}num_bits: 8\n")
    result = tree.gate()

    assert result.ret == 0
    result.stdout.fnmatch_lines(["the change reaches no recipe"])
    assert "collected" not in result.stdout.str()


def test_a_root_that_is_too_deep_is_refused(tree: Tree) -> None:
    """A folder of snippets alone is not the tree that recipes are resolved in: nothing of it would
    ever be judged.
    """
    tree.edit(NUMERIC, "axis:", "axis: 0")
    tree.root = tree.root / "configs"
    result = tree.gate("--list-affected")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *configs: no file in it is a recipe. Give the folder *"])


def test_a_deleted_attention_entry_is_shown_and_fails_insertion(tree: Tree) -> None:
    """Without ``*[qkv]_bmm_quantizer`` the diff says which quantizers went, and insertion fails on
    both models.
    """
    path = tree.root / f"{CLIP}.yaml"
    config: Any = yaml.safe_load(path.read_text())
    others = [
        e for e in config["quantize"]["quant_cfg"] if e["quantizer_name"] != "*[qkv]_bmm_quantizer"
    ]
    assert len(others) == len(config["quantize"]["quant_cfg"]) - 1
    config["quantize"]["quant_cfg"] = others
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    result = tree.gate("--calibration-size", "64", "-k", "attention_has or ViT-B-32")

    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "*12 quantizers change: vision self_attn {?,?,?}_bmm E4M3 per-tensor to off, layers "
            "0..3",
            "*72 quantizers change: vision self_attn {?,?,?}_bmm E4M3 per-tensor to off, layers "
            "0..23",
            f"gated: {CLIP}",
            "7 of 7 quantized attention blocks have some of their quantizers on and these off:",
            "  vision_model.encoder.layers.{0..3}.self_attn.{q,k,v}_bmm_quantizer",
            "24 of 24 quantized attention blocks have some of their quantizers on and these off:",
        ]
    )
    result.assert_outcomes(failed=2)


def test_added_recipes_are_gated_by_every_worker(tree: Tree, pytester: pytest.Pytester) -> None:
    """Recipes that the base does not have are gated, without a diff to show; two processes take the
    same selection.
    """
    for name in ("one", "two"):
        shutil.copy(tree.root / f"{CLIP}.yaml", tree.root / f"huggingface/clip/ptq/{name}.yaml")
    tree.commit()
    result = pytester.run(
        *(
            sys.executable,
            "-m",
            "pytest",
            *tree.words("--changed-since", "HEAD~1", "-n", "2", "-v"),
        ),
        *("--calibration-size", "64", "-k", "attention_has or ViT-B-32"),
    )

    assert result.ret == 0
    result.stdout.fnmatch_lines(["gated: huggingface/clip/ptq/one, huggingface/clip/ptq/two"])
    result.assert_outcomes(passed=4)
    passed = [line for line in result.outlines if "PASSED" in line]
    assert [
        sum(f"huggingface.clip.ptq.{name}-" in line for line in passed) for name in ("one", "two")
    ] == [2, 2]
    assert {line.partition("]")[0] for line in passed} == {"[gw0", "[gw1"}


def test_a_recipe_that_the_schema_refuses_stays_selected(tree: Tree) -> None:
    """A numeric that no recipe can hold leaves the list whole: each reached recipe is there with
    what is wrong.
    """
    tree.edit(NUMERIC, "num_bits: e4m3", "num_bits: e5m2")
    result = tree.gate("--list-affected")

    assert result.ret == 0
    assert "huggingface/vit/ptq/fp8" in selected(result)
    result.stdout.fnmatch_lines(
        [
            "- huggingface/vit/ptq/fp8: *w8a8_fp8_fp8.yaml*cfg is refused*",
            "gated: *, huggingface/vit/ptq/fp8",
        ]
    )


def test_names_from_a_pull_request_are_escaped(tree: Tree) -> None:
    """No line of the listing is a workflow command, wherever a file's or an algorithm's name tries
    to be one.
    """
    source = (tree.root / f"{CLIP}.yaml").read_text()
    hostile = tree.root / "::error title=x::y.yaml"
    hostile.write_text(source)
    (tree.root / "two\n::set-output name=a::b.yaml").write_text(source)
    tree.git("add", "-A")
    tree.git("commit", "-q", "-m", "base")
    hostile.write_text(source.replace("axis: null", "axis: 0"))
    (tree.root / "two\n::set-output name=a::b.yaml").write_text(source + "# more\n")
    result = tree.gate("--list-affected")

    assert result.ret == 0
    assert "quantizers change" in result.stdout.str()
    assert not [line for line in result.outlines if line.lstrip().startswith("::") or "##[" in line]


def test_selection_names_effects_as_the_tree_does(tree: Tree) -> None:
    """An effect goes by the name that selects the recipe, so that a listing can be searched for
    it.
    """
    tree.edit(CLIP, "algorithm: max", "algorithm: {method: mse}")
    selected = selection.select(tree.root, "HEAD")

    assert selected.gated == (CLIP,)
    assert [e.recipe for e in selected.effects] == [CLIP]
    assert str(effect.Effect(CLIP, {}, ())) == f"{CLIP}: no effect on CLIP"


def test_a_recipe_called_like_one_of_ours_is_the_file_of_the_tree(tree: Tree) -> None:
    """``fp8.yaml`` in the tree, its attention entry deleted, is compared with itself as it was,
    gated, and fails.
    """
    ours = loading.load("fp8").path
    assert ours is not None
    path = tree.root / "fp8.yaml"
    shutil.copy(ours, path)
    tree.git("add", "-A")
    tree.git("commit", "-q", "-m", "base")
    config: Any = yaml.safe_load(path.read_text())
    config["quantize"]["quant_cfg"] = [
        entry
        for entry in config["quantize"]["quant_cfg"]
        if entry["quantizer_name"] != "*[qkv]_bmm_quantizer"
    ]
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    result = tree.gate("--calibration-size", "64", "-k", "attention_has")

    assert result.ret == 1
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "* quantizers change: vision self_attn {?,?,?}_bmm E4M3 per-tensor to off, layers 0..3",
            "gated: fp8",
            "*test_attention_has_its_quantizers[[]modelopt_recipes.fp8-embedded[]]*",
        ]
    )


def test_what_a_pull_request_breaks_is_refused_in_every_report(tree: Tree) -> None:
    """Deny-all behind everything, and an import that is gone: one line each, exit code 1, JUnit and
    results alike.
    """
    clip = tree.root / f"{CLIP}.yaml"
    config: Any = yaml.safe_load(clip.read_text())
    entries = config["quantize"]["quant_cfg"]
    entries.sort(key=lambda entry: entry["quantizer_name"] == "*")
    clip.write_text(yaml.safe_dump(config, sort_keys=False))
    (tree.root / "configs/ptq/units/w8a8_fp8_fp8.yaml").unlink()
    reports = tree.root.parent.parent / "reports"
    junit = reports.parent / "junit.xml"
    result = tree.gate(
        "-k", "no_such_test", "--gate-report", str(reports), "--junitxml", str(junit)
    )

    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "refused:",
            f"- {CLIP}: entry {len(entries)} `[*]` (*fp8.yaml:*) turns everything off. *",
            "- huggingface/vit/ptq/fp8: *the import 'configs/ptq/units/w8a8_fp8_fp8' does not "
            "exist*",
            "FAILED *huggingface/vit/ptq/fp8::can be loaded*",
        ]
    )
    selection = json.loads((reports / "results.json").read_text())["environment"]["selection"]
    assert set(selection["refused"]) >= {CLIP, "huggingface/vit/ptq/fp8"}
    assert set(selection["refused"]) <= set(selection["gated"])
    assert "does not exist" in junit.read_text()
    result.assert_outcomes(failed=2)
    assert len(result.outlines) < 60


#: An edit of the recipe for CLIP, and the line and rule that it is annotated with.
BAD_EDITS = {
    "pattern": ("'*weight_quantizer'", "'*wieght_quantizer'", "no-match"),
    "attribute": ("axis: null", "axes: null", "unknown-attribute"),
    "value": ("num_bits: e4m3", "num_bits: e4m4", "schema"),
    "import": ("metadata:", "imports: {fp8: configs/numerics/fp9}\nmetadata:", "import"),
}


def test_five_bad_edits_are_five_annotations(tree: Tree, tmp_path: Path) -> None:
    """A pull request with a mistake of each kind in a file of its own, one of them in the order of
    the entries, is annotated on the five lines of its mistakes.
    """
    clip = tree.root / f"{CLIP}.yaml"
    text = clip.read_text()
    names = [*BAD_EDITS, "order"]
    for name in names:
        clip.with_name(f"{name}.yaml").write_text(text)
    tree.commit()
    expected = set()
    for name, (old, new, rule) in BAD_EDITS.items():
        path = clip.with_name(f"{name}.yaml")
        path.write_text(text.replace(old, new, 1))
        wrong = new.partition("\n")[0]
        line = next(n for n, row in enumerate(path.read_text().splitlines(), 1) if wrong in row)
        expected.add((f"modelopt_recipes/huggingface/clip/ptq/{name}.yaml", line, rule))
    order = clip.with_name("order.yaml")
    order.write_text(f"{text.rstrip()}\n    - quantizer_name: '*'\n      enable: false\n")
    last = len(order.read_text().splitlines()) - 1
    expected.add(("modelopt_recipes/huggingface/clip/ptq/order.yaml", last, "overridden"))
    reports = tmp_path / "reports"

    tree.gate("-k", "no_such_test", "--gate-annotations", "github", "--gate-report", str(reports))

    commands = (reports / "annotations.txt").read_text().splitlines()
    start = re.compile(r"::error file=(.+),line=(\d+),col=\d+,title=([a-z-]+)::")
    annotated = [match.groups() for command in commands if (match := start.match(command))]
    assert len(commands) == 5
    assert {(file, int(line), rule) for file, line, rule in annotated} == expected


def test_a_repository_inside_the_tree_ends_the_run(tree: Tree, pytester: pytest.Pytester) -> None:
    """Nobody compared its recipes: exit code 4 and one line with the root to give, which is then
    compared.
    """
    inner = tree.root / "vendored"
    shutil.copytree(tree.root / "huggingface/clip", inner / "clip")
    for words in (("init", "-q"), ("add", "-A"), ("commit", "-qm", "base")):
        subprocess.run(
            ["git", "-C", str(inner), *IDENTITY, *words], check=True, capture_output=True
        )
    result = tree.run("--changed-since", "HEAD", "--list-affected")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = [line for line in result.errlines if line]
    assert line.startswith(
        "ERROR: --changed-since: nobody can say whether vendored/ has to be gated: a git repository"
    )
    fix = re.search(r"--recipes-root ([^ ,]+)", line)
    assert fix is not None
    again = Tree(Path(fix[1]), pytester).run("--changed-since", "HEAD", "--list-affected")
    assert again.ret == 0
    again.stdout.fnmatch_lines(["the change reaches no recipe"])


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("huggingface/clip/ptq/again", f"imports: {{r: {CLIP}}}\n$import: r\n", ""),
        ("huggingface/clip/ptq/bare", "quantize: {quant_cfg: []}\n", ""),
        ("configs/numerics/bare", "num_bits: 8\n", "says neither by metadata.recipe_type nor by"),
    ],
)
def test_a_kind_that_nobody_can_tell_is_no_silent_pass(
    tree: Tree, name: str, text: str, reason: str
) -> None:
    """Such a file is either gated or a usage error that names it: never exit code 0 with nothing
    looked at.
    """
    (tree.root / f"{name}.yaml").write_text(text)
    result = tree.gate("--list-affected")

    assert name in selected(result)
    assert f"gated: {name}" in result.outlines or result.ret == 4
    assert reason in result.stderr.str()
