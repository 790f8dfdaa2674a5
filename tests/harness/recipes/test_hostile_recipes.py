"""A recipe from a fork is untrusted: it is refused in one line, in seconds and bounded memory, or
it is harmless.

``corpus/`` holds one defect a file, most of them found by the fuzzing below or known from other
loaders; each has its refusal here.  Tests that watch what a load opens, imports and costs run it in
a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from harness.errors import UsageError
from harness.pull_requests.reach import affected
from harness.recipes import finding, loading, yaml_reading
from harness.recipes import tree as recipe_tree
from harness.recipes.loading import load
from harness.recipes.schema import MAX_WILDCARDS
from harness.recipes.tree import MAX_TREE_BYTES, Tree

CORPUS = Path(__file__).parent / "corpus"
SCHEMA = "# modelopt-schema: modelopt.torch.quantization.config."
ENTRY = "  - {quantizer_name: '*', enable: true}\n"
#: What each file of the corpus is refused with.
REFUSALS = {
    "algorithm-list": r"no calibration algorithm \['max'\]",
    "algorithm-module": "no calibration algorithm 'os.system'",
    "algorithm-number": "no calibration algorithm 7",
    "alias-bomb": "expands to more than",
    "alias-to-itself": "an alias inside what it names",
    "alias-undefined": "undefined alias",
    "binary": "type 'binary'",
    "calibrator": "is not a class",
    "control": "unacceptable character",
    "date": "type 'timestamp'",
    "date-impossible": "type 'timestamp'",
    "empty": "no metadata.recipe_type",
    "entries-none": "not a list of entries",
    "entries-too-many": "has 501 entries",
    "float-tag": "YAML cannot read",
    "header-list": "first of its two YAML documents",
    "import-absolute": "leads outside the tree",
    "import-backslash": "not a plain file name",
    "import-home": "leads outside the tree",
    "import-long": "not a plain file name",
    "import-long-name": "does not exist",
    "import-missing": "does not exist",
    "import-nested-marker": r"\$import names",
    "import-newline": "not a plain file name",
    "import-nul": "not a plain file name",
    "import-of-list": r"\$import names \['a'\]",
    "import-of-number": r"\$import names 7",
    "import-parent": "leads outside the tree",
    "import-parent-inside": "leads outside the tree",
    "import-unknown-name": r"\$import names 'zzz'",
    "import-url": "does not exist",
    "import-windows": "leads outside the tree",
    "imports-empty": "not a name",
    "imports-list": "not a mapping of names to paths",
    "imports-nested": "not a name",
    "imports-number": "not a name",
    "int-empty": "YAML cannot read",
    "int-endless": "YAML cannot read|over 63 bits",
    "int-huge": "over 63 bits",
    "int-sexagesimal": "over 63 bits",
    "int-tag": "YAML cannot read",
    "key-float": "the key 1.5, expected a name",
    "key-list": "the key .*, expected a name",
    "key-null": "the key None, expected a name",
    "key-twice": "the key 'a' is written twice",
    "merge-bomb": "expands to more than",
    "metadata-extra": "metadata that ModelOpt does not know",
    "metadata-list": "its metadata has no recipe_type",
    "nested-block": "nests deeper than",
    "nested-braces": "nests deeper than",
    "nested-flow": "nests deeper than",
    "nested-keys": "nests deeper than",
    "not-utf8": "not UTF-8",
    "parent-newline": "not a pattern of a quantizer's name",
    "pattern-bidi": "not a pattern of a quantizer's name",
    "pattern-empty": "not a pattern of a quantizer's name",
    "pattern-escape": "not a pattern of a quantizer's name",
    "pattern-long": "not a pattern of a quantizer's name",
    "pattern-newline": "not a pattern of a quantizer's name",
    "pattern-stars": "wildcards",
    "python-name": "type 'os.system'",
    "python-object": "type 'os.system'",
    "quant-cfg-text": "not a list of entries",
    "quantize-list": "no quant_cfg",
    "recipe-type-list": "its metadata has no recipe_type",
    "scalar": "no mapping and no list",
    "schema-function": "no metadata.recipe_type",
    "schema-markup": "not one of ModelOpt's",
    "schema-other-module": "not one of ModelOpt's",
    "schema-twice": "second modelopt-schema",
    "set": "type 'set'",
    "tag-unknown": "type '!include'",
    "three-documents": "3 YAML documents",
    "timestamp-tag": "type 'timestamp'",
    "utf16": "is UTF-16",
    "value-key": "type 'value'",
}


def put(path: Path, text: str) -> Path:
    """Write a file, its folders made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def recipe(body: str = ENTRY, imports: str = "") -> str:
    """A ptq recipe; *imports* is YAML in flow form."""
    head = f"imports: {imports}\n" if imports else ""
    return (
        f"{head}metadata: {{recipe_type: ptq}}\nquantize:\n  algorithm: max\n  quant_cfg:\n{body}"
    )


def unit(body: str = "- {quantizer_name: '*', enable: false}\n", imports: str = "") -> str:
    """A list snippet."""
    head = f"imports: {imports}\n---\n" if imports else ""
    return f"{SCHEMA}QuantizerCfgListConfig\n{head}{body}"


def in_a_process(code: str, *arguments: str, memory: int = 0, seconds: int = 60) -> str:
    """What *code* prints, run by itself under limits on address space and processor time (*memory*
    in MiB).
    """
    limits = "import resource, sys\n" + (
        f"resource.setrlimit(resource.RLIMIT_AS, ({memory << 20}, {memory << 20}))\n"
        if memory
        else ""
    )
    limits += f"resource.setrlimit(resource.RLIMIT_CPU, ({seconds}, {seconds}))\n"
    command = [sys.executable, "-W", "ignore", "-c", limits + code, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=30 + 4 * seconds
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def committed(root: Path) -> None:
    """Make *root* a git repository with one empty commit."""
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    subprocess.run(
        ["git", "-C", str(root), *identity, "commit", "-q", "--allow-empty", "-m", "base"],
        check=True,
    )


# --- the corpus


def test_the_corpus_and_its_refusals_belong_together() -> None:
    """No file of the corpus is without an expected refusal, and no refusal without a file."""
    assert sorted(REFUSALS) == sorted(path.stem for path in CORPUS.iterdir())


@pytest.mark.parametrize("name", sorted(REFUSALS))
def test_a_hostile_file_is_refused_by_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is a usage error of one printable line that starts with the file and says what is
    wrong.
    """
    monkeypatch.chdir(tmp_path)

    with pytest.raises(UsageError, match=REFUSALS[name]) as refused:
        load(str(CORPUS / f"{name}.yaml"))

    message = str(refused.value)
    assert message.isprintable()
    assert message.startswith(str(CORPUS / name))
    assert len(message) < 1200
    assert list(tmp_path.iterdir()) == [], "something was executed"


def test_the_corpus_is_read_in_little_memory_and_time() -> None:
    """All of it together, parsed and resolved, within 512 MiB of address space and ten seconds of
    processor.
    """
    code = (
        "from pathlib import Path; from harness.recipes.tree import Tree; from harness.errors "
        "import UsageError\n"
        "refused = 0\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    tree = Tree(path.parent)\n"
        "    try: tree.resolve(tree.read(path))\n"
        "    except UsageError: refused += 1\n"
        "print(refused)"
    )

    assert int(in_a_process(code, str(CORPUS), memory=512)) > len(REFUSALS) / 2


# --- size and depth


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("[" * 100_000, id="open brackets"),
        pytest.param("{" * 100_000, id="open braces"),
        pytest.param("- " * 60_000, id="nested items"),
        pytest.param("? " * 60_000, id="nested keys"),
        pytest.param("- a\n" * 30_000, id="items"),
        pytest.param("---\n" * 30_000, id="documents"),
        pytest.param("!a " * 40_000 + "x", id="tags"),
        pytest.param("&a " * 40_000, id="anchors"),
        pytest.param("a: " * 40_000, id="colons"),
        pytest.param("%TAG !a! tag:x\n" * 8000 + "---\na", id="directives"),
        pytest.param("1" * 100_000, id="digits"),
        pytest.param("a: 1" + ":59" * 40_000, id="base sixty"),
        pytest.param("".join(f"k{i}: 1\n" for i in range(14_000)), id="keys"),
        pytest.param('"' + "a\n" * 60_000 + '"', id="lines in quotes"),
        pytest.param("a: |\n" + "  x\n" * 30_000, id="literal block"),
        pytest.param("#" * 2**24, id="sixteen MiB"),
        pytest.param(
            "a: [" + "x, " * 9 + "x]\n" + "".join(f"b{i}: *a\n" for i in range(99)),
            id="undefined aliases",
        ),
    ],
)
def test_a_large_file_is_refused_at_once(text: str, tmp_path: Path) -> None:
    """Whatever is repeated up to the limit on size and beyond it, reading ends with a refusal."""
    path = put(tmp_path / "large.yaml", text)

    with pytest.raises(UsageError, match=r"large\.yaml"):
        load(str(path))


def test_imports_that_double_are_refused_before_they_fill_memory(tmp_path: Path) -> None:
    """Each unit splices the one below nine times: 9**20 entries are counted, not made."""
    put(tmp_path / "u0.yaml", unit())
    for level in range(1, 21):
        put(tmp_path / f"u{level}.yaml", unit("- $import: u\n" * 9, f"{{u: u{level - 1}}}"))
    put(tmp_path / "r.yaml", recipe("  - $import: u\n", "{u: u20}"))
    code = (
        "from pathlib import Path; from harness.recipes.tree import Tree; from harness.errors "
        "import UsageError\n"
        "tree = Tree(Path(sys.argv[1]))\n"
        "try: tree.resolve(tree.read(tree.root / 'r.yaml'))\n"
        "except UsageError as error: print(error)"
    )

    assert "resolves to more than" in in_a_process(code, str(tmp_path), memory=512)


def test_imports_that_go_too_deep_are_refused(tmp_path: Path) -> None:
    """A chain of a thousand imports ends in a refusal, not in Python's recursion limit."""
    put(tmp_path / "u0.yaml", unit())
    for level in range(1, 1001):
        put(tmp_path / f"u{level}.yaml", unit("- $import: u\n", f"{{u: u{level - 1}}}"))
    put(tmp_path / "r.yaml", recipe("  - $import: u\n", "{u: u1000}"))

    with pytest.raises(UsageError, match="imported over more than"):
        load("r", tmp_path)


def test_imports_that_are_many_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a recipe that imports megabytes, in files each within the limit, no more is parsed than
    the limit on a tree, then it is refused.
    """
    body = "- {quantizer_name: '*', enable: false}\n" * 2900
    for number in range(40):
        put(tmp_path / f"u{number}.yaml", unit(body))
    put(
        tmp_path / "r.yaml",
        recipe(imports=json.dumps({f"u{number}": f"u{number}" for number in range(40)})),
    )
    lengths: list[int] = []

    def parse(text: str, path: Path) -> yaml_reading.Document:
        lengths.append(len(text))
        return yaml_reading.parse(text, path)

    monkeypatch.setattr("harness.recipes.tree.parse", parse)

    with pytest.raises(UsageError, match=r"one file too many|more than"):
        load("r", tmp_path)

    assert 0 < sum(lengths) <= MAX_TREE_BYTES


@pytest.mark.parametrize("defect", ["- [\n", "- $import: unknown\n"], ids=["parsing", "resolving"])
def test_a_defect_is_paid_for_once(
    defect: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred recipes over one bad snippet parse it once, resolve it once, and get the same
    refusal.
    """
    put(tmp_path / "u.yaml", unit(defect))
    for number in range(100):
        put(tmp_path / f"r{number}.yaml", recipe("  - $import: u\n", "{u: u}"))
    parsed: list[Path] = []

    def parse(text: str, path: Path) -> yaml_reading.Document:
        parsed.append(path)
        return yaml_reading.parse(text, path)

    monkeypatch.setattr("harness.recipes.tree.parse", parse)
    tree = Tree(tmp_path)
    refusals = set()
    for number in range(100):
        with pytest.raises(UsageError, match=r"u\.yaml") as refused:
            tree.resolve(tree.read(tmp_path / f"r{number}.yaml"))
        refusals.add(refused.value)

    assert parsed.count(tmp_path / "u.yaml") == 1
    assert len(refusals) == 1, "the very refusal of the first time, not a new one each time"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_no_recipe(tmp_path: Path) -> None:
    """Reading it would never end, so it is not opened: as a recipe, as an import, or met on the
    way.
    """
    committed(tmp_path)
    os.mkfifo(tmp_path / "pipe.yaml")
    put(tmp_path / "r.yaml", recipe("  - $import: u\n", "{u: pipe}"))
    code = (
        "from pathlib import Path; from harness.pull_requests.reach import affected\n"
        "print([(a.recipe, bool(a.broken)) for a in affected(Path(sys.argv[1]), 'HEAD')])"
    )

    assert "('r', True)" in in_a_process(code, str(tmp_path))
    with pytest.raises(UsageError, match="does not exist"):
        load("r", tmp_path)


# --- places


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A snippet outside the tree that a hostile recipe wants to read."""
    return put(tmp_path / "outside" / "secret.yaml", unit())


@pytest.mark.parametrize(
    "how", ["absolute", "parent", "file link", "folder link", "link chain", "relative link"]
)
def test_nothing_outside_the_tree_is_imported(how: str, secret: Path, tmp_path: Path) -> None:
    """By whatever road an import leads out of the root, it is refused, though the file exists and
    would fit.
    """
    root = tmp_path / "tree"
    root.mkdir()
    target = {"absolute": str(secret), "parent": "../outside/secret"}.get(how, "in/secret")
    if how == "file link":
        (root / "in").mkdir()
        (root / "in/secret.yaml").symlink_to(secret)
    elif how == "folder link":
        (root / "in").symlink_to(secret.parent)
    elif how == "link chain":
        (root / "hop").symlink_to(secret.parent)
        (root / "in").symlink_to("hop")
    elif how == "relative link":
        (root / "in").symlink_to("../outside")
    put(root / "r.yaml", recipe("  - $import: u\n", json.dumps({"u": target})))

    with pytest.raises(UsageError, match="leads outside"):
        load("r", root)


def test_a_recipe_that_is_a_link_out_of_the_tree_is_not_read(secret: Path, tmp_path: Path) -> None:
    """Neither by its name nor by the walk over the tree."""
    root = tmp_path / "tree"
    root.mkdir()
    (root / "r.yaml").symlink_to(secret)
    committed(root)

    with pytest.raises(UsageError, match="leads outside"):
        load("r", root)
    (recipe,) = affected(root, "HEAD")
    assert "leads outside" in (recipe.broken or "")


def test_a_circle_of_links_is_refused(tmp_path: Path) -> None:
    """Links to each other are no file."""
    (tmp_path / "a.yaml").symlink_to("b.yaml")
    (tmp_path / "b.yaml").symlink_to("a.yaml")
    put(tmp_path / "r.yaml", recipe("  - $import: u\n", "{u: a}"))

    with pytest.raises(UsageError, match=r"cannot be followed|does not exist"):
        load("r", tmp_path)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_circle_of_imports_is_refused_with_its_way(length: int, tmp_path: Path) -> None:
    """Units that import each other, or themselves, are reported in the circle's order, however they are
    named.
    """
    for number in range(length):
        put(
            tmp_path / f"u{number}.yaml",
            unit("- $import: u\n", f"{{u: ./u{(number + 1) % length}}}"),
        )
    put(tmp_path / "r.yaml", recipe("  - $import: u\n", "{u: u0}"))
    way = " -> ".join(f"u{number % length}.yaml" for number in range(length + 1))

    with pytest.raises(UsageError, match=f"circle: {way}"):
        load("r", tmp_path)


def test_a_load_opens_only_its_tree_and_runs_nothing(tmp_path: Path) -> None:
    """Watched by Python's audit hooks: no file but the tree's and the installation's, no process,
    no foreign import.
    """
    put(tmp_path / "modules/intruder.py", "open('executed', 'w')")
    root = tmp_path / "tree"
    schemas = [
        "intruder.Config",
        "modelopt.intruder.Config",
        "modelopt.torch.export.Config",
        "os.system",
    ]
    schemas += [
        "modelopt.torch.quantization.config.load_config",
        "modelopt.torch.quantization.config.warnings",
    ]
    for number, schema in enumerate(schemas):
        put(
            root / f"u{number}.yaml",
            f"# modelopt-schema: {schema}\n- {{quantizer_name: '*', enable: false}}\n",
        )
        put(root / f"s{number}.yaml", recipe("  - $import: u\n", f"{{u: u{number}}}"))
    put(root / "u.yaml", unit())
    put(root / "good.yaml", recipe("  - $import: u\n", "{u: u}"))
    for path in CORPUS.iterdir():
        (root / path.name).write_bytes(path.read_bytes())
    code = f"""
import json, os
sys.path.insert(0, {str(tmp_path / "modules")!r})
from pathlib import Path
from harness.recipes import loading as recipes
from harness.errors import UsageError
recipes.load("fp8")
try: recipes.load("fp9")
except UsageError: pass
root = Path(sys.argv[1])
opened, events, modules, refused = set(), [], set(sys.modules), {{}}
def watch(event, arguments):
    if event == "open" and not isinstance(arguments[0], int): opened.add(str(arguments[0]))
    elif event.split(".")[0] in ("subprocess", "socket", "shutil", "ctypes", "pty") or event in (
        "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.remove", "os.rename", "os.mkdir", "os.symlink"
    ): events.append(event)
sys.addaudithook(watch)
accepted = []
for path in sorted(root.glob("*.yaml")):
    try: recipes.load(path.name, root); accepted.append(path.name)
    except UsageError as error: refused[path.name] = str(error)
allowed = (str(root), sys.prefix, sys.base_prefix, str(Path(recipes.__file__).parents[1]))
opened = [p for p in opened if not p.startswith(allowed)]
new = sorted(m for m in set(sys.modules) - modules if not m.startswith(("modelopt", "pydantic", "encodings")))
print(json.dumps([accepted, opened, events, new, refused]))
"""
    accepted, opened, events, imported, refused = json.loads(
        in_a_process(code, str(root), seconds=120)
    )

    assert accepted == ["good.yaml"]
    assert opened == []
    assert events == []
    assert not any("intruder" in module or module in ("imp", "ctypes") for module in imported)
    assert not (tmp_path / "executed").exists()
    assert not Path("executed").exists()
    for number in range(len(schemas)):
        assert "schema" in refused[f"s{number}.yaml"]


# --- patterns


def test_the_slowest_pattern_that_is_accepted_matches_quickly(tmp_path: Path) -> None:
    """At the limits of length and wildcards, matching a thousand long names ends."""
    import fnmatch

    pattern = "*a" * MAX_WILDCARDS + "?" * 100 + "z"
    path = put(tmp_path / "r.yaml", recipe(f"  - {{quantizer_name: '{pattern}', enable: true}}\n"))
    (entry,) = load(str(path)).entries
    names = ["a" * 200 + str(number) for number in range(1000)]

    assert fnmatch.filter(names, entry.pattern) == []


@pytest.mark.parametrize(
    "markup",
    [
        "<script>alert(1)</script>",
        "![x](https://example.org)",
        "`code` | table",
        "::set-output name=x::y",
    ],
)
def test_a_name_with_markup_is_kept_as_text(markup: str, tmp_path: Path) -> None:
    """It is a glob like any other: escaping is for those who show it, and what is shown is what was
    written.
    """
    path = put(
        tmp_path / "r.yaml",
        recipe(f"  - quantizer_name: {json.dumps('*' + markup)}\n    enable: true\n"),
    )

    assert load(str(path)).entries[0].pattern == "*" + markup


@pytest.mark.parametrize(
    "name", ["new\nline.yaml", "bell\x07.yaml", "\x1b[31mred.yaml", "\u202eback.yaml"]
)
def test_a_file_name_with_control_characters_is_refused(name: str, tmp_path: Path) -> None:
    """Such a recipe cannot be named, and the refusal itself holds none of the characters."""
    put(tmp_path / name, recipe())

    with pytest.raises(UsageError, match="is not a recipe name") as refused:
        load(str(tmp_path / name))

    assert str(refused.value).isprintable()


# --- fuzzing

WORDS = st.sampled_from(["*", "ptq", "e4m3", "max"])
SCALARS: Any = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), WORDS
)
KEYS = st.sampled_from(
    [
        "imports",
        "$import",
        "metadata",
        "recipe_type",
        "quantize",
        "quant_cfg",
        "algorithm",
        "method",
        "quantizer_name",
        "cfg",
        "enable",
        "num_bits",
        "axis",
        "block_sizes",
        "parent_class",
        "type",
        "default",
        "nn.Linear",
        "bias",
        "rotate",
        "calibrator",
    ]
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | SCALARS, inner, max_size=4),
    max_leaves=20,
)
ENTRIES = st.dictionaries(KEYS, ANYTHING, max_size=4) | st.fixed_dictionaries(
    {"quantizer_name": st.just("*"), "cfg": st.dictionaries(KEYS, ANYTHING, max_size=3)}
)


def outcome(ref: str) -> str:
    """A load's recipe's hash, or its usage error's message; any other exception fails the test that
    asked.
    """
    try:
        return load(ref).hash
    except UsageError as refused:
        return str(refused)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file, written again for each example."""
    return tmp_path_factory.mktemp("fuzz") / "r.yaml"


FUZZ = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))


@FUZZ
@given(raw=st.binary(max_size=200))
@example(raw=b"")
@example(raw=b"\xef\xbb\xbfa: 1")
@example(raw=b"0b_")
def test_any_bytes_are_loaded_or_refused(raw: bytes, fuzzed: Path) -> None:
    """No file, whatever its bytes, ends in anything but a recipe or a usage error."""
    fuzzed.write_bytes(raw)
    assert outcome(str(fuzzed)).isprintable()


@FUZZ
@given(text=st.text(alphabet="abe:-?[]{}&*!|>'\"%#,0123 \n\t.<=_~$", max_size=120))
def test_any_yaml_like_text_is_loaded_or_refused(text: str, fuzzed: Path) -> None:
    """Text of YAML's own characters reaches the parser's corners."""
    fuzzed.write_text(text)
    assert outcome(str(fuzzed)).isprintable()


@FUZZ
@given(body=ANYTHING)
def test_any_structure_is_loaded_or_refused(body: Any, fuzzed: Path) -> None:
    """Well-formed YAML with a recipe's words in the wrong places."""
    fuzzed.write_text(yaml.safe_dump(body))
    assert outcome(str(fuzzed)).isprintable()


@FUZZ
@given(
    quantize=st.fixed_dictionaries({"quant_cfg": ANYTHING}, optional={"algorithm": ANYTHING}),
    imports=ANYTHING,
)
def test_any_quantize_section_is_loaded_or_refused(
    quantize: Any, imports: Any, fuzzed: Path
) -> None:
    """A recipe whose frame is right and whose inside is anything."""
    body = {"imports": imports, "metadata": {"recipe_type": "ptq"}, "quantize": quantize}
    fuzzed.write_text(yaml.safe_dump(body))
    assert outcome(str(fuzzed)).isprintable()


@FUZZ
@given(entries=st.lists(ENTRIES, max_size=4))
def test_any_entries_are_loaded_or_refused(entries: Any, fuzzed: Path) -> None:
    """A list of entries with a recipe's words at every place, where ModelOpt's schema decides."""
    body = {
        "metadata": {"recipe_type": "ptq"},
        "quantize": {"quant_cfg": entries, "algorithm": "max"},
    }
    fuzzed.write_text(yaml.safe_dump(body))
    assert outcome(str(fuzzed)).isprintable()


@FUZZ
@given(value=ANYTHING)
def test_any_python_object_is_loaded_or_refused(value: Any) -> None:
    """A module's attribute may be anything, too."""
    module = type(sys)("fuzzed_quant_cfg")
    module.__dict__["CFG"] = value
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "fuzzed_quant_cfg", module)
        assert outcome("fuzzed_quant_cfg:CFG").isprintable()


@FUZZ
@given(ref=st.text(max_size=40) | st.text(alphabet="ab/.:~\\$*\x00\n", max_size=40))
def test_any_name_is_loaded_or_refused(ref: str) -> None:
    """A reference of any characters names a recipe or is refused."""
    assert outcome(ref).isprintable()


def test_the_limits_leave_room_for_what_is_shipped() -> None:
    """Every limit is at least five times what the installed tree needs, so honest recipes never
    meet one.
    """
    tree = Tree(finding.installed_root())
    files = list(tree.root.rglob("*.yaml"))
    resolved = [
        tree.resolve(tree.read(path))
        for path in files
        if loading.kind_of(tree.read(path)) in ("ptq", "preset")
    ]

    def size(value: Any) -> int:
        inner = (
            value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        )
        return 1 + sum(map(size, inner))

    assert max(path.stat().st_size for path in files) * 5 < yaml_reading.MAX_FILE_BYTES
    assert sum(path.stat().st_size for path in files) * 5 < recipe_tree.MAX_TREE_BYTES
    assert max(size(document.data) for document in resolved) * 5 < recipe_tree.MAX_RESOLVED
    longest = max(
        len(document.data.get("quantize", document.data)["quant_cfg"]) for document in resolved
    )
    assert longest * 5 < loading.MAX_ENTRIES
