"""The recipes that a git change reaches are selected through any depth of imports, and no other."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.pull_requests.reach import Affected, affected, describe, not_gated
from harness.pull_requests.revisions import at_revision, compare
from harness.recipes import judged
from harness.recipes.finding import DEFAULT, installed_root
from harness.recipes.loading import kind_of, load
from harness.recipes.tree import Tree
from harness.recipes.yaml_reading import MAX_FILE_BYTES

SCHEMA = "# modelopt-schema: modelopt.torch.quantization.config."
FP8 = "configs/numerics/fp8"


def git(repository: Path, *arguments: str) -> None:
    """Run git with an identity of its own, heedless of the machine's settings."""
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(
        ["git", "-C", str(repository), *identity, *arguments], check=True, capture_output=True
    )


def put(root: Path, name: str, text: str) -> Path:
    """Write a file of the tree."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def recipe(unit: str, kind: str = "ptq") -> str:
    """A recipe that splices one unit."""
    body = "quantize:\n  algorithm: max\n  quant_cfg:\n  - $import: u\n"
    return f"imports:\n  u: {unit}\nmetadata:\n  recipe_type: {kind}\n{body}"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A committed tree below the top of its repository: two numerics, units over units, three
    recipes.
    """
    root = tmp_path / "repository" / "recipes"
    for bits in ("fp8", "int8"):
        put(
            root,
            f"configs/numerics/{bits}.yaml",
            f"{SCHEMA}QuantizerAttributeConfig\nnum_bits: 8\naxis:\n",
        )
        entry = "- quantizer_name: '*weight_quantizer'\n  cfg: {$import: n}\n"
        unit = (
            f"{SCHEMA}QuantizerCfgListConfig\nimports:\n  n: configs/numerics/{bits}\n---\n{entry}"
        )
        put(root, f"configs/units/{bits}.yaml", unit)
    put(
        root,
        "configs/units/both.yml",
        f"{SCHEMA}QuantizerCfgListConfig\nimports:\n  u: configs/units/fp8\n---\n- $import: u\n",
    )
    put(root, "a/fp8.yaml", recipe("configs/units/fp8"))
    put(root, "a/deep.yaml", recipe("configs/units/both"))
    put(root, "b/int8.yaml", recipe("configs/units/int8"))
    git(root.parent, "init", "-q", "-b", "main")
    git(root.parent, "add", "-A")
    git(root.parent, "commit", "-q", "-m", "base")
    return root


def names(selection: list[Affected]) -> list[str]:
    """The selected recipes' names."""
    return [recipe.recipe for recipe in selection]


# --- selection


def test_no_change_reaches_nothing(root: Path) -> None:
    """An unchanged tree selects no recipe."""
    assert affected(root, "HEAD") == []


def test_a_numeric_reaches_every_recipe_above_it(root: Path) -> None:
    """Through two-document units and units of units; the chain runs from the recipe to the
    change.
    """
    put(root, f"{FP8}.yaml", f"{SCHEMA}QuantizerAttributeConfig\nnum_bits: e4m3\n")

    selection = affected(root, "HEAD")

    assert names(selection) == ["a/deep", "a/fp8"]
    assert selection[0].chain == (
        "a/deep.yaml",
        "configs/units/both.yml",
        "configs/units/fp8.yaml",
        f"{FP8}.yaml",
    )
    assert [recipe.change for recipe in selection] == ["modified", "modified"]
    assert not any(recipe.broken for recipe in selection)


def test_the_change_may_be_committed(root: Path) -> None:
    """The difference is between the revision and the working tree, whatever was committed in
    between.
    """
    put(root, f"{FP8}.yaml", f"{SCHEMA}QuantizerAttributeConfig\nnum_bits: e4m3\n")
    git(root, "commit", "-qam", "change")

    assert names(affected(root, "HEAD~1")) == ["a/deep", "a/fp8"]
    assert affected(root, "HEAD") == []


def test_a_file_that_no_recipe_imports_reaches_nothing(root: Path) -> None:
    """A readme, a Python file, a snippet without importers, and files outside the root select no
    recipe.
    """
    put(root, "README.md", "hello")
    put(root, "a/tool.py", "x = 1")
    put(
        root,
        "configs/units/lonely.yaml",
        f"{SCHEMA}QuantizerCfgListConfig\n- quantizer_name: '*'\n  enable: false\n",
    )
    put(root.parent, "outside.yaml", recipe("configs/units/fp8"))

    assert affected(root, "HEAD") == []


def test_a_new_recipe_is_selected_before_git_knows_it(root: Path) -> None:
    """Untracked recipes count as added, ignored ones do not."""
    put(root, "c/new.yaml", recipe("configs/units/int8"))
    put(root, "c/ignored.yaml", recipe("configs/units/int8"))
    put(root.parent, ".gitignore", "ignored.yaml\n")

    selection = affected(root, "HEAD")

    assert names(selection) == ["c/new"]
    assert selection[0].change == "added"


def test_a_removed_import_breaks_the_recipes_above_it(root: Path) -> None:
    """They are selected, and reported to be broken with the import that no longer exists."""
    (root / f"{FP8}.yaml").unlink()

    selection = affected(root, "HEAD")

    assert names(selection) == ["a/deep", "a/fp8"]
    assert {recipe.change for recipe in selection} == {"removed"}
    assert all(
        "'configs/numerics/fp8' does not exist" in (recipe.broken or "") for recipe in selection
    )
    with pytest.raises(UsageError, match="does not exist"):
        load("a/fp8", root)


def test_a_renamed_import_breaks_those_that_were_not_told(root: Path) -> None:
    """The unit renamed and one of two importers fixed: the other is broken, both are selected."""
    git(root, "mv", "configs/units/fp8.yaml", "configs/units/float8.yaml")
    put(root, "a/fp8.yaml", recipe("configs/units/float8"))

    selection = {recipe_.recipe: recipe_ for recipe_ in affected(root, "HEAD")}

    assert sorted(selection) == ["a/deep", "a/fp8"]
    assert selection["a/fp8"].broken is None
    assert "configs/units/fp8" in (selection["a/deep"].broken or "")
    assert selection["a/deep"].change == "renamed to configs/units/float8.yaml"
    assert "renamed from configs/units/fp8.yaml" in {
        reach.change for reach in selection["a/fp8"].reaches
    }


def test_a_renamed_recipe_is_one_recipe(root: Path) -> None:
    """It is selected under its new name, and the old one is not reported to be lost."""
    git(root, "mv", "b/int8.yaml", "b/integer.yaml")

    selection = affected(root, "HEAD")

    assert names(selection) == ["b/integer"]
    assert selection[0].change == "renamed from b/int8.yaml"


def test_a_removed_recipe_is_told(root: Path) -> None:
    """It cannot be gated, and it is not dropped in silence."""
    (root / "b/int8.yaml").unlink()

    (gone,) = affected(root, "HEAD")

    assert (gone.recipe, gone.removed, gone.path, gone.change) == ("b/int8", True, None, "removed")
    assert not_gated(gone) == "the recipe was removed"


def test_a_recipe_that_loses_its_suffix_is_told_as_gone(root: Path) -> None:
    """A rename to what is not a recipe file takes the recipe away as a removal does."""
    git(root, "mv", "b/int8.yaml", "b/int8.yaml.bak")

    (gone,) = affected(root, "HEAD")

    assert (gone.recipe, gone.removed, gone.change) == (
        "b/int8",
        True,
        "renamed to b/int8.yaml.bak",
    )


def test_a_file_that_takes_precedence_counts(root: Path) -> None:
    """x.yml next to x.yaml is found first: adding it changes what the import means, and so does
    taking it away.
    """
    put(root, f"{FP8}.yml", f"{SCHEMA}QuantizerAttributeConfig\nnum_bits: 4\n")
    added = affected(root, "HEAD")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "precedence")
    (root / f"{FP8}.yml").unlink()

    assert names(added) == names(affected(root, "HEAD")) == ["a/deep", "a/fp8"]
    assert not any(recipe.broken for recipe in affected(root, "HEAD"))


def test_a_link_inside_the_tree_is_followed(root: Path) -> None:
    """A recipe that imports through a symbolic link is reached by the file behind it and by the
    link itself.
    """
    (root / "alias").symlink_to("configs/units")
    put(root, "c/linked.yaml", recipe("alias/int8"))
    git(root, "add", "-A")
    git(root, "commit", "-qm", "link")
    put(
        root,
        "configs/units/int8.yaml",
        f"{SCHEMA}QuantizerCfgListConfig\n- quantizer_name: '*'\n  enable: false\n",
    )
    behind = affected(root, "HEAD")
    git(root, "checkout", "-q", ".")
    (root / "alias").unlink()
    (root / "alias").symlink_to("configs/numerics")
    link = affected(root, "HEAD")

    assert names(behind) == ["b/int8", "c/linked"]
    assert names(link) == ["c/linked"]
    assert link[0].chain[-1] == "alias"


def test_an_unreadable_recipe_is_selected_as_broken(root: Path) -> None:
    """What does not parse cannot be distinguished from a recipe, so it is not passed over."""
    put(root, "c/new.yaml", "imports: [\n")

    (recipe,) = affected(root, "HEAD")

    assert recipe.recipe == "c/new"
    assert "is not YAML" in (recipe.broken or "")


def test_a_cycle_is_told_as_broken(root: Path) -> None:
    """The graph walk ends, and the recipe is reported to be circular."""
    put(
        root,
        "configs/units/fp8.yaml",
        f"{SCHEMA}QuantizerCfgListConfig\nimports:\n  u: configs/units/both\n---\n- $import: u\n",
    )

    selection = affected(root, "HEAD")

    assert names(selection) == ["a/deep", "a/fp8"]
    assert all("circle" in (recipe.broken or "") for recipe in selection)


def test_a_recipe_kept_as_a_directory_is_reached(root: Path) -> None:
    """Its quantize file's imports count, and its name is the directory's; removed, it is reported
    once.
    """
    put(root, "c/dir/metadata.yml", "recipe_type: ptq\n")
    put(
        root,
        "c/dir/quantize.yml",
        "imports:\n  u: configs/units/int8\nalgorithm: max\nquant_cfg:\n- $import: u\n",
    )
    git(root, "add", "-A")
    git(root, "commit", "-qm", "directory")
    put(
        root,
        "configs/units/int8.yaml",
        f"{SCHEMA}QuantizerCfgListConfig\n- quantizer_name: '*'\n  enable: false\n",
    )
    reached = affected(root, "HEAD")
    git(root, "checkout", "-q", ".")
    shutil.rmtree(root / "c/dir")

    assert [(recipe.recipe, recipe.kind) for recipe in reached] == [
        ("b/int8", "ptq"),
        ("c/dir", "ptq"),
    ]
    assert load("c/dir" if (root / "c/dir").exists() else "b/int8", root).kind == "ptq"
    assert [(recipe.recipe, recipe.removed) for recipe in affected(root, "HEAD")] == [
        ("c/dir", True)
    ]


def test_a_byte_order_mark_hides_no_recipe(root: Path) -> None:
    """A recipe and a snippet that begin with one are reached as what they are, by the same
    imports.
    """
    for name in ("b/int8", "configs/units/fp8"):
        text = (root / f"{name}.yaml").read_text()
        put(root, f"{name}.yaml", "\ufeff" + text)

    reached = affected(root, "HEAD")

    assert "b/int8" in names(reached)
    assert len(reached) > 1
    assert {(recipe.kind, recipe.broken, recipe.unknown) for recipe in reached} == {
        ("ptq", None, None)
    }


def test_presets_are_listed_only_when_asked_for(root: Path) -> None:
    """A complete config is not a recipe by itself; with presets=True the change's reach into them
    shows.
    """
    put(
        root,
        "presets/x.yaml",
        f"{SCHEMA}QuantizeConfig\nimports: {{u: configs/units/int8}}\nquant_cfg:\n- $import: u\n",
    )

    assert affected(root, "HEAD") == []
    assert [(recipe.recipe, recipe.kind) for recipe in affected(root, "HEAD", presets=True)] == [
        ("presets/x", "preset")
    ]


def test_hostile_file_names_survive(root: Path) -> None:
    """Names with newlines, tabs, quotes, bytes that are no text, and workflow commands come
    through, shown escaped.
    """
    hostile = [
        "c/new\nline.yaml",
        'c/"quoted\t.yaml',
        "c/::set-output name=x::y.yaml",
        os.fsdecode(b"c/\xff.yaml"),
    ]
    for name in hostile:
        put(root, name, recipe("configs/units/int8"))
    git(root, "add", "-A")

    selection = affected(root, "HEAD")

    assert {f"{name}.yaml" for name in names(selection)} == set(hostile)
    text = describe(selection)
    assert "new\\nline" in text
    # GitHub's runner obeys a command at the beginning of a line only.
    assert not any(line.lstrip().startswith("::") for line in text.splitlines())
    assert all(line.isprintable() for line in text.splitlines())
    assert len(text.splitlines()) == sum(2 + bool(selected.broken) for selected in selection)
    assert {selected.recipe for selected in selection if selected.broken} == {
        n.removesuffix(".yaml") for n in hostile if not n.isprintable()
    }


def test_attributes_of_the_tree_do_not_hide_files(root: Path) -> None:
    """export-ignore and diff settings in .gitattributes, which a pull request may set, change no
    selection.
    """
    put(root.parent, ".gitattributes", "*.yaml export-ignore -diff binary\n")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "attributes")
    put(root, f"{FP8}.yaml", f"{SCHEMA}QuantizerAttributeConfig\nnum_bits: e4m3\n")

    assert names(affected(root, "HEAD")) == ["a/deep", "a/fp8"]
    with at_revision(root, "HEAD") as base:
        assert (base / f"{FP8}.yaml").is_file()


def independent_importers(root: Path, target: str) -> set[str]:
    """Recipes above *target* by another road than the harness's: text search for import lines, to a
    fixed point.
    """
    texts = {
        p.relative_to(root).with_suffix("").as_posix(): p.read_text() for p in root.rglob("*.yaml")
    }
    reached, grown = {target}, True
    while grown:
        more = {
            n
            for n, text in texts.items()
            for line in text.splitlines()
            if line.split(": ")[-1].strip() in reached
        }
        grown = not more <= reached
        reached |= more
    return {name for name in reached if "recipe_type:" in texts[name]}


def test_one_line_in_the_fp8_numerics_selects_what_imports_it(tmp_path: Path) -> None:
    """On a copy of the installed tree: exactly the recipes above configs/numerics/fp8.yaml, of
    every kind.
    """
    root = tmp_path / "modelopt_recipes"
    shutil.copytree(installed_root(), root, ignore=shutil.ignore_patterns("__pycache__"))
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "base")
    file = root / f"{FP8}.yaml"
    file.write_text(file.read_text().replace("axis:\n", "axis: 0\n"))

    selection = affected(root, "HEAD")

    assert set(names(selection)) == independent_importers(root, FP8)
    assert len(selection) > 20
    assert all(recipe.chain[-1] == f"{FP8}.yaml" and not recipe.broken for recipe in selection)
    with at_revision(root, "HEAD") as base:
        before, after = load("huggingface/vit/ptq/fp8", base), load("huggingface/vit/ptq/fp8", root)
    assert before.hash == load("huggingface/vit/ptq/fp8").hash != after.hash


def test_a_link_to_a_recipe_does_not_select_it_twice(root: Path) -> None:
    """A recipe that two folders show is one, by the name of the file itself; a link alone is a
    recipe all the same.
    """
    (root / "c").mkdir()
    (root / "c/again.yaml").symlink_to("../b/int8.yaml")
    (root / "alias").symlink_to("b")
    new = affected(root, "HEAD")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "links")
    put(root, "b/int8.yaml", recipe("configs/units/fp8"))

    assert names(new) == ["c/again"]
    assert names(affected(root, "HEAD")) == ["b/int8"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c/imports.yaml", "imports:\n  r: a/fp8\n$import: r\n"),
        ("configs/numerics/bare.yaml", "num_bits: 8\n"),
        ("c/other.yaml", "# modelopt-schema: somebody.else.config.OtherRecipe\nother: {}\n"),
    ],
)
def test_what_nobody_can_tell_from_a_recipe_is_not_passed_over(
    root: Path, name: str, text: str
) -> None:
    """A file that says nothing of its kind, or a kind that is not known here, is listed, and no
    verdict excuses it.
    """
    put(root, name, text)

    (recipe,) = affected(root, "HEAD")

    assert f"{recipe.recipe}.yaml" == name
    assert recipe.unknown or recipe.broken or recipe.kind == "ptq"
    assert not_gated(recipe) is None


def test_settings_of_other_tools_are_no_recipes(root: Path) -> None:
    """Below a name with a dot, YAML that is nothing of ModelOpt's belongs to somebody else."""
    put(root, ".pre-commit-config.yaml", "repos: []\n")
    put(root, ".github/workflows/ci.yml", "jobs: {}\n")
    put(root, ".hidden/new.yaml", recipe("configs/units/int8"))

    assert names(affected(root, "HEAD")) == [".hidden/new"]


def test_what_cannot_be_compared_counts_as_changed_for_those_who_import_it(root: Path) -> None:
    """An ignored snippet may be another one than before, so the recipe above it is selected, with
    that reason.
    """
    put(root, "local/unit.yaml", (root / "configs/units/int8.yaml").read_text())
    put(root.parent, ".gitignore", "local/\n")
    put(root, "c/new.yaml", recipe("local/unit"))
    git(root, "add", "-A")
    git(root, "commit", "-qm", "ignored unit")

    (affected_recipe,) = affected(root, "HEAD")

    assert (affected_recipe.recipe, affected_recipe.change) == (
        "c/new",
        "in local/, ignored by git",
    )


# --- revisions


def test_a_revision_is_exported_read_only_and_gone_afterwards(root: Path) -> None:
    """The tree at a revision is as it was, cannot be written, and leaves nothing behind."""
    before = {p.relative_to(root): p.read_bytes() for p in root.rglob("*.y*ml")}
    (root / "a/fp8.yaml").unlink()
    put(root, f"{FP8}.yaml", "changed")

    with at_revision(root, "HEAD") as base:
        assert {p.relative_to(base): p.read_bytes() for p in base.rglob("*.y*ml")} == before
        assert not any(p.stat().st_mode & 0o222 for p in [base, *base.rglob("*")])
        assert load("a/deep", base).entries
    assert not base.exists()


def test_a_revision_from_before_the_tree_is_empty(root: Path) -> None:
    """Every recipe is then an addition."""
    put(root.parent, "later/recipes/a.yaml", "metadata: {recipe_type: ptq}\n")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "later")

    with at_revision(root.parent / "later", "HEAD~1") as base:
        assert list(base.iterdir()) == []
    assert names(affected(root.parent / "later", "HEAD~1")) == ["recipes/a"]


def test_a_link_out_of_the_tree_is_not_followed_in_a_revision(root: Path, tmp_path: Path) -> None:
    """An exported link that leads outside is refused when a recipe imports through it."""
    put(
        tmp_path / "secret",
        "s.yaml",
        f"{SCHEMA}QuantizerCfgListConfig\n- quantizer_name: '*'\n  enable: false\n",
    )
    (root / "out").symlink_to(tmp_path / "secret")
    put(root, "c/out.yaml", recipe("out/s"))
    git(root, "add", "-A")
    git(root, "commit", "-qm", "out")

    with at_revision(root, "HEAD") as base, pytest.raises(UsageError, match="leads outside"):
        load("c/out", base)


def test_a_huge_file_of_a_revision_is_refused_like_any(root: Path) -> None:
    """It is not read whole, and says that it is too large."""
    put(root, "c/huge.yaml", "#" * (MAX_FILE_BYTES * 4))
    git(root, "add", "-A")
    git(root, "commit", "-qm", "huge")

    with at_revision(root, "HEAD") as base, pytest.raises(UsageError, match="larger than"):
        load("c/huge", base)


def test_changes_name_what_happened(root: Path) -> None:
    """Paths are relative to the root, and a rename is reported at both ends."""
    git(root, "mv", "a/deep.yaml", "a/deeper.yaml")
    (root / "b/int8.yaml").unlink()
    put(root, "c.yaml", "{}")
    put(root, f"{FP8}.yaml", "{}")

    assert compare(root, "HEAD").changes == {
        "a/deeper.yaml": "renamed from a/deep.yaml",
        "a/deep.yaml": "renamed to a/deeper.yaml",
        "b/int8.yaml": "removed",
        "c.yaml": "added",
        f"{FP8}.yaml": "modified",
    }


@pytest.mark.parametrize("rev", ["no-such-branch", "--output=/tmp/x", "", "HEAD\n", "HEAD:recipes"])
def test_a_revision_that_is_none_is_refused(root: Path, rev: str) -> None:
    """An unknown revision, an option in disguise, and what is not a commit are usage errors."""
    with pytest.raises(UsageError, match="--changed-since"):
        affected(root, rev)


def test_a_tree_outside_git_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message is git's own, with the fix."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))

    with pytest.raises(UsageError, match=r"not a git repository.*git checkout"):
        affected(tmp_path, "HEAD")


# --- what is gated

PARTS = {
    **{f"self_attn.{name}_proj": ("weight", "input", "output") for name in ("q", "k", "v", "out")},
    "self_attn": ("q_bmm", "k_bmm", "v_bmm", "softmax", "bmm2_output"),
    "mlp.fc1": ("weight", "input", "output"),
    "mlp.fc2": ("weight", "input", "output"),
}
CLIP = tuple(
    f"{tower}.encoder.layers.{layer}.{module}.{kind}_quantizer"
    for tower in ("vision_model", "text_model")
    for layer in range(2)
    for module, kinds in PARTS.items()
    for kind in kinds
)


@pytest.mark.parametrize("name", DEFAULT)
@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1"])
def test_the_default_recipes_are_gated_everywhere(name: str, device: str) -> None:
    """None of them needs a device, a family or a kind that the gate does not have."""
    assert judged.not_gated(load(name), device, CLIP) is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("general/speculative_decoding/eagle3", "kind speculative_eagle: it trains a draft model"),
        ("general/distillation/dmd2_qwen_image", "kind distillation: it trains a student"),
        (
            "general/ptq/nvfp4_default-kv_none-gptq",
            "reads or writes files \\(layerwise.checkpoint_dir\\)",
        ),
        (
            "general/ptq/nvfp4_experts_only-kv_fp8",
            r"another family of model: .*experts.* name no part",
        ),
        (
            "huggingface/qwen3_5/ptq/w4a16_nvfp4-fp8_attn-kv_fp8_cast",
            "another family of model: .*gate_proj",
        ),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_the_gate_does_not_judge_is_told_with_the_reason(
    name: str, reason: str, device: str
) -> None:
    """Other kinds, other families and recipes that write files have a reason on every device."""
    import re

    assert re.search(reason, judged.not_gated(load(name), device, CLIP) or "gated")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("general/ptq/nvfp4_default-kv_fp8", "NVFP4 (E2M1) needs CUDA, and this is cpu"),
        ("configs/ptq/presets/model/mxfp4", "MX (E2M1) needs CUDA, and this is cpu"),
        ("configs/ptq/presets/model/mxfp8", "MX (E4M3) needs CUDA, and this is cpu"),
        ("configs/ptq/presets/model/mxint8", "MX (INT8) needs CUDA, and this is cpu"),
        ("general/auto_quantize/nvfp4_fp8_at_5p4bits", "NVFP4 (E2M1) needs CUDA, and this is cpu"),
    ],
)
def test_a_format_that_needs_cuda_is_gated_only_there(name: str, reason: str) -> None:
    """NVFP4 and the MX formats are distinguished on the CPU and judged on CUDA."""
    assert judged.not_gated(load(name), "cpu", CLIP) == reason
    assert judged.not_gated(load(name), "cuda", CLIP) is None


@pytest.mark.parametrize(
    "name",
    ["general/ptq/fp8_default-kv_fp8", "huggingface/vit/ptq/fp8", "configs/ptq/presets/model/int8"],
)
def test_a_recipe_that_fails_on_clip_is_not_told_to_be_for_others(name: str) -> None:
    """What loses the vision tower, or quantizes too much, is judged: that verdict is what the gate
    is for.
    """
    assert judged.not_gated(load(name), "cpu", CLIP) is None


def enabling(path: Path, *patterns: str) -> Path:
    """A ptq recipe that enables these patterns."""
    lines = "".join(f"  - quantizer_name: '{pattern}'\n    enable: true\n" for pattern in patterns)
    return put(
        path,
        "r.yaml",
        f"metadata: {{recipe_type: ptq}}\nquantize:\n  algorithm: max\n  quant_cfg:\n{lines}",
    )


@pytest.mark.parametrize(
    "pattern",
    [
        *(
            "*wieght_quantizer",
            "*self_atn*weight_quantizer",
            "*qkv_bmm_quantizer",
            "*patch_embeding*",
        ),
        "*experts*weight_quantizer",
    ],
)
def test_one_wrong_pattern_does_not_excuse_a_recipe_for_clip(tmp_path: Path, pattern: str) -> None:
    """A typo, or one line for another family, in a recipe that quantizes CLIP's weights leaves it
    gated.
    """
    path = enabling(tmp_path, "*fc1.weight_quantizer", pattern)

    assert judged.not_gated(load(str(path)), "cpu", CLIP) is None


@pytest.mark.parametrize(
    "pattern", ["*wieght_quantizer", "*self_atn*weight_quantizer", "*fc3.weight_quantizer"]
)
def test_a_recipe_that_only_has_typos_is_gated(tmp_path: Path, pattern: str) -> None:
    """Nothing matches, but what was meant is plain: insertion fails it with a name."""
    assert judged.not_gated(load(str(enabling(tmp_path, pattern))), "cpu", CLIP) is None


def test_a_broken_recipe_has_no_excuse(root: Path) -> None:
    """What cannot be resolved has to fail, whatever kind it seems to be."""
    put(root, "c/new.yaml", "imports: [\n")

    assert not_gated(affected(root, "HEAD")[0]) is None


def test_every_shipped_recipe_is_either_gated_or_told_why_not() -> None:
    """Over the installed tree the reasons fall where they should: recipes for CLIP's family
    stay.
    """
    tree = Tree(installed_root())
    files = [p for p in tree.root.rglob("*.yaml") if kind_of(tree.read(p)) not in (None, "preset")]
    gated = {
        p.relative_to(tree.root).as_posix()
        for p in files
        if judged.not_gated(load(str(p)), "cpu", CLIP) is None
    }

    assert {"huggingface/vit/ptq/fp8.yaml", "general/ptq/fp8_default-kv_fp8.yaml"} <= gated
    assert len(gated) < len(files) / 2
