"""Names: what is different has different ones, whatever it is called; what is the same is there
once.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.recipes import finding, names
from harness.recipes.names import folder_name, of_models, of_recipes, of_tasks

ROOT = Path(__file__).parents[3]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory of a known name."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def folders(here: Path, *wanted: str) -> None:
    """Make folders, which to a name are as good as checkpoints."""
    for name in wanted:
        (here / name).mkdir(parents=True)


def put(here: Path, *wanted: str) -> None:
    """Write files that are recipes as far as a name goes."""
    for name in wanted:
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("metadata: {recipe_type: ptq}\n")


# --- models


@pytest.mark.parametrize(
    ("references", "expected"),
    [
        (["embedded", "embedded+outliers"], ["embedded", "embedded+outliers"]),
        (["a/clip"], ["clip"]),
        (["a/clip", "b/clip"], ["a/clip", "b/clip"]),
        (["a/clip", "c/a/clip"], ["here/a/clip", "c/a/clip"]),
        (
            ["a/clip+CLIPVisionModel", "b/clip+CLIPVisionModel"],
            ["a/clip+CLIPVisionModel", "b/clip+CLIPVisionModel"],
        ),
        (["org/clip", "a/clip"], ["org/clip", "a/clip"]),
        (["sd/text_encoder", "xl/text_encoder"], ["sd/text_encoder", "xl/text_encoder"]),
        (["embedded", "./embedded"], ["embedded", "here/embedded"]),
        (["x/embedded"], ["x/embedded"]),
        (["x/Embedded+CLIPTextModel"], ["x/Embedded+CLIPTextModel"]),
        (["./versions"], ["here/versions"]),
        (["my clip", "模型", "q/-x"], ["my clip", "模型", "-x"]),
    ],
    ids=str,
)
def test_models_have_the_least_of_their_path_that_tells_them_apart(
    here: Path, references: list[str], expected: list[str]
) -> None:
    """The folder's own name, and folders above it only where another model, or this package's, has
    that one.
    """
    folders(
        here,
        "a/clip",
        "b/clip",
        "c/a/clip",
        "sd/text_encoder",
        "xl/text_encoder",
        "embedded",
        "x/embedded",
    )
    folders(here, "x/Embedded", "versions", "my clip", "模型", "q/-x")

    assert of_models(references) == dict(zip(references, expected, strict=True))


def test_one_folder_is_one_model_however_it_is_spelt(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slashes, dots, the whole path and links lead to one model, under the name that was given
    first.
    """
    folders(here, "a/clip", "b")
    (here / "link").symlink_to("a/clip")
    spelt = ["a/clip", "a/clip/", "./a//clip", "b/../a/clip", str(here / "a/clip"), "link"]

    assert of_models(spelt) == {"a/clip": "clip"}
    assert of_models(reversed(spelt)) == {"link": "link"}
    assert (
        of_models([str(ROOT / "harness/models/embedded/clip"), "embedded"]).popitem()[1]
        == "embedded"
    )
    monkeypatch.chdir(here / "a/clip")
    assert of_models([".", "../clip", "../../link"]) == {".": "clip"}
    assert of_models([".."]) == {"..": "a"}


@pytest.mark.parametrize(
    "pair",
    [("u/Clip", "u/clip"), ("a/b", "a--b"), ("a b", "a-b"), ("é", "è"), ("x", "x/x/x")],
    ids=str,
)
def test_no_two_models_share_a_folder_of_the_baselines(here: Path, pair: tuple[str, str]) -> None:
    """Nor do names that differ in capitals alone, which some file systems take for one, or in signs
    that go.
    """
    folders(here, "u/Clip", "u/clip", "a/b", "a--b", "a b", "a-b", "é", "è", "x/x/x")
    names_by_reference = of_models([f"./{name_}" for name_ in pair])

    assert len({folder_name(name, "model").casefold() for name in names_by_reference.values()}) == 2
    assert len({names.plain(name).casefold() for name in names_by_reference.values()}) == 2


@pytest.mark.parametrize("name", ["embedded", "embedded+outliers"])
def test_the_folders_of_the_stored_baselines_keep_their_names(name: str) -> None:
    """What is in the repository is found under the names that the models and recipes have."""
    folder = ROOT / "baselines" / folder_name(of_models([name])[name], "model")
    every = of_recipes([*finding.DEFAULT, *finding.MORE])

    assert list(every) == list(every.values()) == [*finding.DEFAULT, *finding.MORE]
    assert {folder_name(recipe_name, "recipe") for recipe_name in finding.DEFAULT} <= {
        path.name for path in folder.iterdir()
    }


def test_a_test_id_is_short_and_of_ascii() -> None:
    """Other letters become escapes in pytest, and nothing that looks for the id in a node's would
    find it.
    """
    for name in ("模型", "é" * 30, "n" * 200):
        shown = names.plain(name)
        assert shown.isascii()
        assert len(shown) <= names.MAX_LENGTH
    assert names.plain("a/clip+CLIPVisionModel") == "a/clip+CLIPVisionModel"


# --- recipes


@pytest.mark.parametrize(
    ("references", "expected"),
    [
        (["fp8", "huggingface/vit/ptq/fp8"], ["fp8", "huggingface.vit.ptq.fp8"]),
        (["x/my.yaml"], ["my"]),
        (["x/my.yaml", "y/my.yaml"], ["x.my", "y.my"]),
        (["fp8", "./fp8.yaml"], ["fp8", "here.fp8"]),
        (["fp8.yaml"], ["here.fp8"]),
        (["./INT8.yaml"], ["here.INT8"]),
        (["reference.yaml"], ["here.reference"]),
        (["pkg.one:CFG", "pkg.two:CFG", "pkg:fp8"], ["one.CFG", "two.CFG", "pkg.fp8"]),
        (["kept/here"], ["here"]),
    ],
    ids=str,
)
def test_recipes_have_the_least_of_their_path_that_tells_them_apart(
    here: Path, references: list[str], expected: list[str]
) -> None:
    """A file never has the name of one of this package's recipes: their baselines are not its
    own.
    """
    put(
        here,
        "x/my.yaml",
        "y/my.yaml",
        "fp8.yaml",
        "INT8.yaml",
        "reference.yaml",
        "kept/here/metadata.yml",
    )
    put(here, "kept/here/quantize.yml")

    assert of_recipes(references) == dict(zip(references, expected, strict=True))


@pytest.mark.parametrize(
    "pair",
    [("x.yml", "x.yaml"), ("a/b.yaml", "a.b.yaml"), ("a b.yaml", "a-b.yaml"), ("é.yaml", "è.yaml")],
    ids=str,
)
def test_no_two_recipes_of_a_tree_share_a_name(here: Path, pair: Iterable[str]) -> None:
    """Whatever their names lose when they are made fit for a folder."""
    put(here, *(f"tree/{name}" for name in pair))
    names_by_reference = of_recipes(pair, here / "tree")

    assert (
        len({folder_name(name, "recipe").casefold() for name in names_by_reference.values()}) == 2
    )


def test_one_file_is_one_recipe_however_it_is_spelt(here: Path) -> None:
    """With and without suffix, by a link, and by this package's name or its file's."""
    put(here, "x/my.yaml")
    (here / "link.yaml").symlink_to("x/my.yaml")

    assert of_recipes(["x/my.yaml", "./x/my", str(here / "x/my.yaml"), "link.yaml"]) == {
        "x/my.yaml": "my"
    }
    assert of_recipes(["fp8", str(finding.HERE / "fp8.yaml")]) == {"fp8": "fp8"}


# --- which file a name means


def meant(reference: str, root: Path | None = None) -> str:
    """The file that is meant, relative to the working directory where it is below that."""
    path = finding.path_of(reference, root)
    assert path is not None
    own = finding.own_name(path)
    return f"own {own}" if own else str(path.resolve().relative_to(Path.cwd().resolve()))


def test_files_win_where_a_path_is_written_or_a_tree_is_given(here: Path) -> None:
    """A plain name stays this package's in any folder; as a path, or in the tree that was given, it
    is the file.
    """
    put(
        here,
        "fp8.yaml",
        "tree/fp8.yaml",
        "tree/deep/fp8.yaml",
        "deep/fp8.yaml",
        "int8/metadata.yml",
    )
    put(here, "int8/quantize.yml", "huggingface/vit/ptq/fp8.yaml", "~odd.yaml")
    tree = here / "tree"

    assert meant("fp8") == "own fp8"
    assert meant("int8") == "own int8"
    assert meant("./fp8") == meant("fp8.yaml") == meant(str(here / "fp8")) == "fp8.yaml"
    assert meant("./int8") == "int8"
    assert meant("fp8", tree) == "tree/fp8.yaml"
    assert meant("./fp8", tree) == "fp8.yaml"
    assert meant("deep/fp8", tree) == "tree/deep/fp8.yaml"
    assert meant("int8", tree) == "own int8"
    assert meant("huggingface/vit/ptq/fp8") == "huggingface/vit/ptq/fp8.yaml"
    assert meant("./~odd") == "~odd.yaml"


def test_a_name_with_two_meanings_is_said(here: Path) -> None:
    """One line: what it means, and what to write for the other; nothing where there is no other."""
    put(here, "fp8.yaml", "tree/fp8.yaml", "huggingface/vit/ptq/fp8.yaml")
    folders(here, "embedded")

    (plain,) = names.notes(["fp8"], [], None)
    (tree,) = names.notes(["fp8"], [], here / "tree")
    (long,) = names.notes(["huggingface/vit/ptq/fp8"], [], None)
    (model,) = names.notes([], ["embedded"], None)

    assert plain.startswith("--recipe fp8 means the recipe fp8 of this package")
    assert plain.endswith("give ./fp8.yaml")
    assert f"means {here / 'tree/fp8.yaml'}" in tree
    assert "means huggingface/vit/ptq/fp8.yaml" in long
    assert (
        model
        == "--clip-model embedded means the model of this package; for the folder, give ./embedded"
    )
    assert names.notes(["./fp8", "int8", "fp8.yaml"], ["./embedded"], None) == []


def test_a_file_called_like_a_python_reference_is_a_file(here: Path) -> None:
    """A pull request's ``os:system.yaml`` is loaded from its path, and no module is imported."""
    put(here, "tree/os:system.yaml")

    assert meant("./tree/os:system.yaml") == "tree/os:system.yaml"
    assert of_recipes(["./tree/os:system.yaml"]) == {"./tree/os:system.yaml": "os-system"}


@pytest.mark.parametrize(
    "reference", ["", "a\nb", "a\0b", "no/such", "~nosuchuser/x", "x" * 5000, "nosuch"]
)
def test_a_reference_to_nothing_is_refused(here: Path, reference: str) -> None:
    """In one line that names the option, however odd or long what was given is; only listing tests
    needs no file.
    """
    with pytest.raises(UsageError, match="--recipe") as refused:
        names.notes([reference], [], None)

    assert len(str(refused.value)) < 6000
    assert len(names.plain(of_recipes([reference])[reference])) <= names.MAX_LENGTH
    assert of_recipes(["/some/where/mine.yaml", "no/such/name"]) == {
        "/some/where/mine.yaml": "mine",
        "no/such/name": "no.such.name",
    }


# --- tasks


def test_tasks_of_one_short_name_show_more_of_their_paths() -> None:
    """The embedded emoji100 and a copy of it as a webdataset are two tasks; one given twice is
    one.
    """
    assert of_tasks(["wds/emoji100", "emoji100"]) == {
        "wds/emoji100": "wds/emoji100",
        "emoji100": "emoji100",
    }
    assert of_tasks(["wds/a/x", "wds/b/x", "wds/a/x/"]) == {"wds/a/x": "a/x", "wds/b/x": "b/x"}
    assert of_tasks(["wds/vtab/cifar100"]) == {"wds/vtab/cifar100": "cifar100"}
