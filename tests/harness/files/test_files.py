"""The gateway: whatever a user names is read within bounds, or refused in one line."""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pydantic
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import files
from harness.errors import UsageError


class Sizes(pydantic.BaseModel):
    """A small strict model, as those of checkpoints are."""

    model_config = pydantic.ConfigDict(strict=True)
    width: int = pydantic.Field(ge=1, le=4096)
    scale: float = pydantic.Field(default=1.0, allow_inf_nan=False)
    names: tuple[str, ...] = ()


Names = Annotated[list[str], pydantic.FailFast()]
READERS: dict[str, Callable[[Any], Any]] = {
    "bytes": lambda path: files.read_bytes(path, limit=1000),
    "text": lambda path: files.read_text(path, limit=1000),
    "lines": lambda path: files.read_lines(path, limit=1000),
    "json": lambda path: files.read_json(path, Sizes, limit=1000),
    "json of anything": lambda path: files.read_json(path, dict[str, Any], limit=1000),
    "yaml": lambda path: files.read_yaml_with_places(path, Sizes, limit=1000)[0],
    "yaml of anything": lambda path: files.read_yaml_with_places(path, dict[str, Any], limit=1000)[
        0
    ],
}


def refusal(call: Callable[[], Any]) -> str:
    """The one line with which *call* refuses."""
    with pytest.raises(UsageError) as caught:
        call()
    return str(caught.value)


def refusal_or_nothing(call: Callable[[], Any]) -> str:
    """The line with which *call* refuses, or nothing where it returns."""
    try:
        call()
    except UsageError as error:
        return str(error)
    return ""


# -- paths -----------------------------------------------------------------------------------------


def test_home_folders_are_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A leading ~ is the home folder; a ~ elsewhere is part of a name."""
    monkeypatch.setenv("HOME", str(tmp_path))

    assert files.expand("~/clip") == tmp_path / "clip"
    assert files.expand("a/~b") == Path("a/~b")
    assert files.expand(Path("x")) == Path("x")


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("", "empty"),
        ("~nosuchuser/clip", "no user 'nosuchuser'"),
        ("a\0b", "null"),
        ("\ud800", "cannot be a path"),
        ("a" * 5000, "too long"),
        ("a/" * 5000, "too long"),
    ],
)
def test_what_cannot_be_a_path_is_refused(path: str, part: str) -> None:
    """An unknown user, a NUL, and a name that is too long are refused in one short line, and do not
    exist.
    """
    line = refusal(lambda: files.expand(path, option="--clip-model"))

    assert line.startswith("--clip-model")
    assert part in line
    assert len(line) < 700
    assert not files.exists(path)


@pytest.fixture
def odd(tmp_path: Path) -> dict[str, Path]:
    """Paths that are not regular files, by what they are, in a folder with a file next to it."""
    (tmp_path / "outside.txt").write_text("out")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "inside.txt").write_text("in")
    (folder / "a folder").mkdir()
    os.mkfifo(folder / "pipe")
    for name, target in {
        "device": "/dev/zero",
        "dangling": "nowhere",
        "loop": "loop",
        "to the pipe": "pipe",
        "out": "../outside.txt",
        "good": "inside.txt",
    }.items():
        (folder / name).symlink_to(target)
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("a folder", "is a folder, expected a picture"),
        ("pipe", "is a named pipe"),
        ("to the pipe", "is a named pipe"),
        ("device", "is a device"),
        ("dangling", "is a link to nowhere, which does not exist"),
        ("loop", "symbolic links"),
        ("absent", "there is no such picture"),
        ("inside.txt/x", "there is no such picture"),
    ],
)
def test_only_regular_files_are_read(odd: dict[str, Path], name: str, part: str) -> None:
    """A pipe, a device, a folder and links to them are refused at once, by every reader, with what
    they are.
    """
    path = odd["inside.txt"].parent / name

    line = refusal(lambda: files.regular_file(path, what="picture"))

    assert line.startswith(str(path))
    assert part in line
    for read in READERS.values():
        assert str(path) in refusal(partial(read, path))


def test_links_to_files_are_files_and_stay_inside(odd: dict[str, Path]) -> None:
    """A link to a regular file is that file; with a folder given, all links followed, it must be in
    there.
    """
    folder = odd["good"].parent

    assert files.read_text(odd["good"], inside=folder) == "in"
    assert files.read_text(odd["out"]) == "out"
    for path in (odd["out"], folder / "../outside.txt", folder.parent / "outside.txt"):
        assert "is outside of" in refusal(partial(files.read_text, path, inside=folder))


def test_folders(odd: dict[str, Path]) -> None:
    """A folder is a folder, nothing else is, and its names are sorted."""
    folder = odd["good"].parent

    assert files.folder(folder) == folder
    assert files.names(folder) == sorted(odd)
    assert files.is_folder(folder)
    assert not files.is_folder(odd["pipe"])
    assert not files.is_file(odd["pipe"])
    assert "expected a folder" in refusal(lambda: files.folder(odd["inside.txt"]))
    assert "no such folder" in refusal(lambda: files.folder(folder / "absent"))


# -- text ------------------------------------------------------------------------------------------


def test_text_without_its_mark_and_line_ends(tmp_path: Path) -> None:
    """A byte order mark is dropped, each kind of line end is one, and blank lines keep the numbers
    right.
    """
    path = tmp_path / "names.txt"
    path.write_bytes(b"\xef\xbb\xbfa\r\n\r\nb\rc\xe2\x80\xa8d\n")

    assert files.read_text(path) == "a\n\nb\nc\u2028d\n"
    assert files.read_lines(path) == ["a", "", "b", "c\u2028d"]


@pytest.mark.parametrize(
    ("content", "place", "part"),
    [
        (b"a\nb\n\xff", ":3", "byte 4 (0xff) is not UTF-8"),
        (b"\xef\xbb\xbfa\n\xc3(", ":2", "byte 5 (0xc3)"),
        (b"\xff\xfea\0", "", "UTF-16"),
        (b"a\n\0", ":2", "0x00"),
        (b"a" * 1001, "", "larger than 1,000 bytes"),
    ],
)
def test_what_is_not_text_is_refused_with_its_place(
    tmp_path: Path, content: bytes, place: str, part: str
) -> None:
    """The first byte that is not text is named, with its line, and so is a file that is too
    large.
    """
    path = tmp_path / "names.txt"
    path.write_bytes(content)

    line = refusal(lambda: files.read_lines(path, limit=1000, fix="Save it as text."))

    assert line.startswith(f"{path}{place}: ")
    assert part in line
    assert line.endswith("Save it as text.")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="/proc is Linux's")
def test_files_that_claim_to_be_empty_are_bounded_too() -> None:
    """The limit holds for what is read, whatever size a file says it has."""
    assert "larger than 100 bytes" in refusal(
        lambda: files.read_bytes("/proc/self/status", limit=100)
    )


# -- JSON and YAML ---------------------------------------------------------------------------------

WRONG_JSON = {
    "not JSON": ('{"width": 1,\n  oops}', ":2: is not JSON (column 3"),
    "too deep": ("[" * 100_000, "nests deeper than 64 levels"),
    "as deep, and closed": ("[" * 500 + "]" * 500, "nests deeper than 64 levels"),
    "a key twice": ('{"width": 1, "width": 2}', "the key 'width' is written twice"),
    "many digits": ('{"width": ' + "9" * 5000 + "}", "a whole number of 5000 digits"),
    "too wide": ('{"width": 5000}', "(width): is 5000: Input should be less than or equal to 4096"),
    "a word": ('{"width": "64"}', "(width): is '64': Input should be a valid integer"),
    "none": ("{}", "the key 'width' is missing"),
    "not an object": ("[1]", "is [1]: "),
    "not a number": ('{"width": 1, "scale": NaN}', "(scale): is nan"),
    "too large a number": ('{"width": 1, "scale": 1e999}', "(scale): is inf"),
    "a list with a number": ('{"width": 1, "names": ["a", 2]}', "(names[1]): is 2"),
    "half a surrogate pair": ('{"width": 1, "names": ["\\ud800"]}', "surrogate"),
    "empty": ("", ":1: is not JSON"),
}


@pytest.mark.parametrize("name", WRONG_JSON)
def test_json_that_does_not_fit_is_refused_with_its_place(tmp_path: Path, name: str) -> None:
    """What is wrong with a JSON file is said with the line, or the path of the key, and the
    value.
    """
    content, part = WRONG_JSON[name]
    path = tmp_path / "config.json"
    path.write_text(content)

    line = refusal(lambda: files.read_json(path, Sizes, limit=files.MAX_CONFIG))

    assert line.startswith(str(path))
    assert part in line
    assert len(line) < 600


def test_json_and_yaml_that_fit(tmp_path: Path) -> None:
    """A model is filled from JSON and from YAML; other types than models serve too; a place knows
    its line.
    """
    (tmp_path / "a.json").write_text('\ufeff{"width": 64, "names": ["a"], "more": NaN}')
    (tmp_path / "a.yaml").write_text("# sizes\nwidth: 64\nscale: 0.5\n")

    assert files.read_json(tmp_path / "a.json", Sizes, limit=1000) == Sizes(width=64, names=("a",))
    content, place = files.read_yaml_with_places(tmp_path / "a.yaml", Sizes)
    assert content == Sizes(width=64, scale=0.5)
    assert place("scale") == f"{tmp_path / 'a.yaml'}:3 (scale)"
    adapter = pydantic.TypeAdapter(dict[str, float])
    assert files.read_yaml_with_places(tmp_path / "a.yaml", adapter)[0] == {
        "width": 64,
        "scale": 0.5,
    }


WRONG_YAML = {
    "not YAML": ("width: 1\n: [", ":2"),
    "an alias": ("a: &x [1]\nwidth: *x\n", ":2: is not YAML that can be used: an alias"),
    "a key twice": (
        "width: 1\nwidth: 2\n",
        ":2: is not YAML that can be used: the key 'width' is written twice",
    ),
    "too deep": ("[" * 10_000, "nests deeper than 24 levels"),
    "too many": ("[" + "1," * 20_001 + "]", "more than 20,000 values"),
    "a date": ("width: 2024-01-01\n", "a value of the type 'timestamp' (put it in quotes)"),
    "a tag": ("width: !!python/object:os.system x\n", "a value of the type"),
    "many digits": ("width: " + "9" * 5000, "a number of 5000 digits"),
    "a number in base 60": ("width: " + "1:" * 5000 + "1", "digits"),
    "two documents": ("width: 1\n---\nwidth: 1\n", ":2"),
    "a malformed number": ("width: 0b_\n", "a value that YAML cannot read"),
    "a control character": ("width: \x01", "is not YAML"),
    "a list as a key": ("? [a]\n: 1\n", "key"),
    "too wide": ("# sizes\nwidth: 5000\n", ":2 (width): is 5000"),
    "unlike": ("width: [1]\n", ":1 (width): is [1]"),
}


@pytest.mark.parametrize("name", WRONG_YAML)
def test_yaml_that_does_not_fit_is_refused_with_its_line(tmp_path: Path, name: str) -> None:
    """What is wrong with a YAML file is said with the line and the key."""
    content, part = WRONG_YAML[name]
    path = tmp_path / "budgets.yaml"
    path.write_text(content)

    line = refusal(lambda: files.read_yaml_with_places(path, Sizes))

    assert line.startswith(str(path))
    assert part in line
    assert len(line) < 600


#: What libyaml and PyYAML read in another way, or refuse in other words.
EITHER_WAY = [
    "a: [1\nb: 2\n",
    "a: b: c\n",
    "a:\tb\n",
    "@a\n",
    "a: |#\n",
    "a: !*! b\n",
    "a: '\ufeff'\n",
    'a: "\\z"\n',
    "a: *b\n",
    "\ud800: 1\n",
    "a: &b [1, {c: é}]\nd: *b\n",
    "? a\n: - 1\n  - {b: ''}\n---\n- c\n",
    "[" * 10_000,
]


@pytest.mark.parametrize("text", EITHER_WAY)
def test_both_parsers_read_the_same(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content, places and refusals are those of PyYAML's own parser where libyaml's is used."""

    def read() -> tuple[str, object]:
        try:
            documents = files.load_documents(text, "a.yaml", most=3)
        except UsageError as error:
            return str(error), None
        return repr(documents), [getattr(document, "places", None) for document in documents]

    with_libyaml = read()
    monkeypatch.setattr(yaml, "__with_libyaml__", False)

    assert with_libyaml == read()


@pytest.mark.skipif(not yaml.__with_libyaml__, reason="this PyYAML has no libyaml")
def test_usual_yaml_is_read_by_libyaml(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyYAML's own parser, which is slow, is not asked about a file that libyaml reads."""
    monkeypatch.delattr(files.yaml_text, "_PlainLoader")

    documents = files.load_documents("a: [1]\n---\nb: x!\n", "a.yaml", most=3)
    assert documents == [{"a": [1]}, {"b": "x!"}]


# -- properties ------------------------------------------------------------------------------------

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["width", "scale", "names", "x"]), inner)
    ),
    max_leaves=8,
)
CONTENTS = st.one_of(
    st.binary(max_size=1200),
    st.text(max_size=300).map(lambda text: text.encode("utf-8", "surrogatepass")),
    PLAIN.map(lambda value: json.dumps(value).encode()),
    PLAIN.map(lambda value: yaml.safe_dump(value).encode()),
    st.text('[]{},:"\\ud8-&*!?|>%@#~=<1eE.\n\t ab', max_size=60).map(str.encode),
    st.builds(
        lambda mark, n: mark * n,
        st.sampled_from([b"[", b'{"a":', b"- ", b"? ", b"&a ", b"\xff", b"\0"]),
        st.integers(1, 900),
    ),
)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=CONTENTS)
def test_only_usage_errors_come_out(tmp_path: Path, content: bytes) -> None:
    """Whatever bytes a file holds, each reader returns its content or raises a UsageError of one
    printable line.
    """
    path = tmp_path / "given"
    path.write_bytes(content)

    lines = [refusal_or_nothing(partial(read, path)) for read in READERS.values()]

    assert [line for line in lines if not line.isprintable() or len(line) > 900] == []


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    name=st.text(max_size=20)
    | st.text("./~\0 ax", max_size=8)
    | st.integers(200, 5000).map(lambda n: "n" * n)
)
def test_any_name_is_a_path_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whatever a path is called, looking at it and reading it never raises anything else than a
    UsageError.
    """
    monkeypatch.chdir(tmp_path)

    files.exists(name)
    looks: tuple[Callable[[Any], Any], ...] = (
        files.expand,
        files.regular_file,
        files.folder,
        *READERS.values(),
    )
    lines = [refusal_or_nothing(partial(look, name)) for look in looks]

    assert [line for line in lines if not line.isprintable() or len(line) > 1200] == []


# -- the rule --------------------------------------------------------------------------------------

GATEWAY = Path(files.__file__).parent
HARNESS = GATEWAY.parent
#: Calls that open or look at a path.
LOOKING = {"exists", "is_file", "is_dir", "read_text", "read_bytes", "expanduser"}
OPENING = {
    "os.open",
    "io.open",
    "json.load",
    "np.load",
    "numpy.load",
    "torch.load",
    "yaml.load",
    "yaml.safe_load",
}
#: Holders whose ``open`` is given bytes or an open file.
IN_MEMORY = ("Image", "tarfile", "webbrowser")
#: Modules that may do so all the same, with the reason.
ALLOWED = {
    "report/page.py": "templates of this package",
    "evaluation/environment.py": "/proc/cpuinfo and the sources of installed packages",
    "tools/resident.py": "/proc/self/status",
    "places.py": "folders of this package",
    "lint/known.py": "data of this package",
    "outlines/declared.py": "data of this package",
    "outlines/rows.py": "the embedded model of this package",
    "tools/pages.py": "pages of this project",
    "baselines/text.py": "the store's own files: no link is followed, and one that vanishes is distinguished",
    "baselines/store.py": "what the store itself wrote, compared before it is written again",
    "pull_requests/revisions.py": "files of a git working tree, which may be links and are hashed as git does it",
    "tools/faults/records.py": "records that the fault itself has just stored",
    "tools/faults/recipe.py": "recipes of this package",
    "tools/embedded/datasets.py": "makes the embedded data: archives that it downloaded",
    "tools/embedded/emoji.py": "makes the embedded data: archives that it downloaded",
    "tools/embedded/card.py": "makes the embedded model's card from its own record",
}


def looks(source: str) -> list[str]:
    """``line: call`` of every call in *source* that opens or looks at a path without the
    gateway.
    """
    calls = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            holder, _, attribute = name.rpartition(".")
            around = attribute in LOOKING and holder not in ("files", "os.path.lexists")
            # ``Path.open``; what is opened of bytes in memory has a name of its own.
            around = around or (attribute == "open" and holder not in IN_MEMORY)
            if name == "open" or name in OPENING or around or name.startswith("os.path.is"):
                calls.append(f"{node.lineno}: {name}")
    return calls


def test_the_rule_sees_what_goes_around_the_gateway() -> None:
    """Each way to open or look at a path is seen, the gateway's functions and text in memory are
    not.
    """
    around = [
        "open(p)",
        "p.read_text()",
        "json.load(f)",
        "Path(x).exists()",
        "yaml.safe_load(f)",
        "os.path.isfile(p)",
        "path.open()",
        "gzip.open(p)",
    ]
    through = [
        "files.read_text(p)",
        "files.exists(p)",
        "json.loads(text)",
        "Image.open(io.BytesIO(data))",
    ]

    assert [len(looks(code)) for code in around] == [1] * len(around)
    assert [looks(code) for code in through] == [[]] * len(through)


def test_no_other_module_opens_what_a_user_names() -> None:
    """Under harness/ only the gateway, and a short list of modules with a reason, opens or looks at
    a path.
    """
    modules = {
        path.relative_to(HARNESS).as_posix(): looks(path.read_text())
        for path in HARNESS.rglob("*.py")
        if path.parent != GATEWAY
    }
    around = {name: calls for name, calls in modules.items() if calls}

    assert {name: calls for name, calls in around.items() if name not in ALLOWED} == {}
    assert sorted(ALLOWED.keys() - around.keys()) == [], "no longer needed in the list"
