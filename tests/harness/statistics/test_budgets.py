"""The budgets file: what it says, and how it is refused."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from harness.data import tasks
from harness.errors import UsageError
from harness.gate.options import Options
from harness.gate.preflight import preflight
from harness.gate.session import Gate
from harness.recipes import finding
from harness.statistics import budgets
from harness.statistics.verdicts import resolution, resolvable

COMMITTED = Path(__file__).parents[3] / "baselines" / "budgets.yaml"

SMALL = """\
defaults:
  points: 1.0
  limits: {changed_answers: 0.2, kl_max: 3.0}
tasks:
  emoji:
    points: 2.0
    samples: 1632
    metrics:
      recall: {points: 3.0, samples: 600}
overrides:
  - {recipe: "int4-*", points: 4.0, limits: {kl_max: 5.0}, reason: four bits}
  - {recipe: int4-awq, model: embedded, task: emoji, metric: acc1, points: 5.0, reason: a small model}
expectations:
  fp8-linear-only:
    - {tower: vision, module_kind: attention, reason: Linear layers only}
"""


def write(folder: Path, text: str) -> Path:
    """A budgets file with this text."""
    path = folder / "budgets.yaml"
    path.write_text(text)
    return path


@pytest.fixture
def policy(tmp_path: Path) -> budgets.Policy:
    """The small file, loaded."""
    return budgets.load(write(tmp_path, SMALL))


@pytest.mark.parametrize(
    ("of", "points"),
    [
        (("unknown", "acc1", "fp8", "embedded"), 1.0),
        (("emoji", "acc1", "fp8", "embedded"), 2.0),
        (("emoji", "recall", "fp8", "embedded"), 3.0),
        (("wds/vtab/emoji", "acc1", "fp8", "embedded"), 2.0),
        (("unknown", "acc1", "int4-awq", "embedded"), 4.0),
        (("emoji", "acc1", "int4-awq", "vit-l"), 4.0),
        (("emoji", "acc1", "int4-awq", "embedded"), 5.0),
        (("wds/emoji", "acc1", "int4-awq", "embedded"), 5.0),
        (("emoji", "recall", "int4-awq", "embedded"), 4.0),
    ],
)
def test_budget_is_the_last_terms_that_match(
    policy: budgets.Policy, of: tuple[str, str, str, str], points: float
) -> None:
    """Defaults, task, metric and overrides apply in this order; a task is also known by the end of
    its name.
    """
    assert policy.budget(*of).points == points


def test_budget_merges_limits_and_tells_reason_and_place(policy: budgets.Policy) -> None:
    """An override replaces only the limits it names; its reason is kept, and the place is where the
    points are written.
    """
    budget = policy.budget("emoji", "acc1", "int4-awq", "embedded")

    assert (budget.limits.changed_answers, budget.limits.kl_max) == (0.2, 5.0)
    assert budget.reason == "four bits; a small model"
    assert budget.place == f"{policy.path}:12 (overrides[1])"
    assert policy.budget("emoji", "recall").place == f"{policy.path}:9 (tasks.emoji.metrics.recall)"


def test_expectations_and_samples(policy: budgets.Policy) -> None:
    """Declared leave-outs come with their reason and place; sample counts of a metric go before the
    task's.
    """
    (declared,) = policy.expectations("fp8-linear-only")

    assert (declared.tower, declared.module_kind, declared.reason) == (
        "vision",
        "attention",
        "Linear layers only",
    )
    assert declared.place == f"{policy.path}:15 (expectations.fp8-linear-only[0])"
    assert policy.left_out("fp8-linear-only") == (("vision", "attention"),)
    assert policy.left_out("fp8") == ()
    assert (
        policy.samples("emoji", "acc1"),
        policy.samples("emoji", "recall"),
        policy.samples("x", "acc1"),
    ) == (
        1632,
        600,
        None,
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("points: 2.0", "points: -2.0", r":6 \(tasks\.emoji\.points\): is -2\.0"),
        ("points: 2.0", "points: two", r":6 \(tasks\.emoji\.points\): is 'two'"),
        ("points: 2.0", "points: .nan", r":6 \(tasks\.emoji\.points\): is nan"),
        ("points: 2.0", "points: true", r":6 \(tasks\.emoji\.points\)"),
        (
            "points: 2.0",
            "pionts: 2.0",
            r":6 \(tasks\.emoji\.pionts\): there is no setting 'pionts'",
        ),
        ("points: 2.0", "points: 2.0\n    points: 3.0", r":7: .*'points' is written twice"),
        ("points: 2.0", "points: 2.0\n    expected_loss: 2.5", r":5 .*expected_loss is 2\.5"),
        ("points: 1.0", "alpha: 0.05", r":1 \(defaults\): no points"),
        ("points: 1.0", "alpha: 0.7", r":2 \(defaults\.alpha\): is 0\.7"),
        (", reason: four bits", "", r":11 \(overrides\[0\]\.reason\): the key 'reason' is missing"),
        ("reason: four bits", "reason: ' '", r":11 \(overrides\[0\]\.reason\)"),
        ("kl_max: 3.0", "kl_mxa: 3.0", r":3 .*there is no setting 'kl_mxa'"),
        ("changed_answers: 0.2", "changed_answers: 20", r":3 .*changed_answers\): is 20"),
        ("tower: vision", "tower: visoin", r":15 .*tower\): is 'visoin'"),
        (", reason: Linear layers only", "", r":15 .*'reason' is missing"),
        ("defaults:", "default:", r"there is no setting 'default'|'defaults' is missing"),
        ("overrides:\n", "overrides: [\n", r"is not YAML"),
        ("reason: four bits", "reason: !!python/object/apply:os.system [id]", r"is not YAML"),
        ("points: 1.0", "points: &p 1.0\n  expected_loss: *p", r":3: .*an alias"),
        ("emoji:", "? [a, b]\n  :", r"is not YAML|emoji"),
    ],
)
def test_load_refuses_what_is_wrong_and_says_where(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    """Each error in the file is one line with file, line, place and fix."""
    assert old in SMALL
    path = write(tmp_path, SMALL.replace(old, new, 1))

    with pytest.raises(UsageError, match=message) as refused:
        budgets.load(path)

    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "- 1\n", "just words\n", "\x00", "[" * 5000])
def test_load_refuses_what_is_no_budgets_file(tmp_path: Path, text: str) -> None:
    """Empty, foreign, binary and absurd files are a usage error, not a traceback."""
    with pytest.raises(UsageError):
        budgets.load(write(tmp_path, text))


def test_load_refuses_a_missing_file(tmp_path: Path) -> None:
    """A missing file is named."""
    with pytest.raises(UsageError, match="no budgets file"):
        budgets.load(tmp_path / "budgets.yaml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("int4-awq", "int4-akw", "int4-akw"),
        ("fp8-linear-only:", "fp8-liner-only:", "fp8-liner-only"),
        ("task: emoji", "task: emojy", "emojy"),
    ],
)
def test_check_names_finds_mistyped_names(tmp_path: Path, old: str, new: str, message: str) -> None:
    """An override or expectation for a recipe or task that does not exist would hold silently for
    nothing.
    """
    known = ["fp8", "fp8-linear-only", "int4-awq"]
    budgets.load(write(tmp_path, SMALL)).check_names(known, ["emoji"])

    with pytest.raises(UsageError, match=message):
        budgets.load(write(tmp_path, SMALL.replace(old, new))).check_names(known, ["emoji"])


def test_committed_budgets_name_known_recipes_and_tasks() -> None:
    """The file of this repository has no mistyped name, and says what each default recipe leaves
    out.
    """
    policy = budgets.load(COMMITTED)

    policy.check_names(finding.DEFAULT + finding.MORE, tasks.EMBEDDED_TASKS)
    assert set(tasks.EMBEDDED_TASKS) <= set(policy.tasks)


@pytest.mark.parametrize("name", finding.DEFAULT + finding.MORE)
def test_committed_budgets_can_be_resolved(name: str) -> None:
    """Every budget of the embedded tasks is within what its declared sample count resolves."""
    policy = budgets.load(COMMITTED)
    for task in policy.tasks:
        for metric in policy.metrics(task) or ("acc1",):
            samples = policy.samples(task, metric)
            assert samples is not None
            resolvable(policy.budget(task, metric, name, "embedded"), samples, task=task)


def test_command_prints_what_the_budgets_resolve(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`python -m harness.statistics.budgets` shows one line per metric; a bad file is reported in one line
    with exit code 4.
    """
    assert budgets.main([str(COMMITTED), "--recipe", "fp8"]) == 0
    table = capsys.readouterr().out
    assert budgets.main([str(write(tmp_path, "defaults: {}\n"))]) == 4
    error = capsys.readouterr().err

    assert len(table.splitlines()) == 13
    assert "emoji_captions   image_retrieval_recall@5" in table
    assert "no points are given" in error
    assert len(error.splitlines()) == 1


NUMBERS = [
    "0",
    "-1",
    ".nan",
    ".inf",
    "1e308",
    "1.0e+308",
    "x",
    "true",
    "null",
    "[]",
    "{}",
    "1e-300",
    "1.0e-12",
]
NUMBERS += ["1.0e-6", "0.4999", "0.999999999999", "2", "1e6", "2024-13-45", "9" * 400, "9" * 5000]
TERMS = ("points", "alpha", "power", "expected_loss", "discordance", "design_effect", "samples")


def refusal(path: Path) -> str | None:
    """What is wrong with a budgets file; None where all that it says can be planned with, at any
    sample count.
    """
    try:
        policy = budgets.load(path)
    except UsageError as error:
        return str(error)
    budgets.table(policy)
    assert all(
        resolution(policy.budget("t", "acc1"), n).samples_needed > 0 for n in (1, 1000, 10**7)
    )
    return None


@pytest.mark.parametrize("key", TERMS)
@pytest.mark.parametrize("value", NUMBERS)
def test_every_number_is_usable_or_refused(tmp_path: Path, key: str, value: str) -> None:
    """What the file lets pass can be planned with; the rest is one line with the place."""
    terms = {"points": "1.0"} | {key: value}
    entry = "".join(f"    {name}: {number}\n" for name, number in terms.items())
    path = write(tmp_path, f"defaults: {{points: 1.0}}\ntasks:\n  t:\n{entry}")

    message = refusal(path)

    assert message is None or (message.startswith(str(path)) and "\n" not in message)


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "1E-6", "0.000001"])
def test_small_alphas_are_numbers_in_every_spelling(tmp_path: Path, text: str) -> None:
    """`1e-4`, which PyYAML reads as text, is the number; an alpha below a millionth is refused."""
    policy = budgets.load(write(tmp_path, f"defaults: {{points: 1.0, alpha: {text}}}\n"))

    assert policy.budget("t", "acc1").alpha == float(text)
    with pytest.raises(UsageError, match=r":1 \(defaults\.alpha\): is .*0\.000001"):
        budgets.load(write(tmp_path, "defaults: {points: 1.0, alpha: 1e-7}\n"))


def test_tasks_without_a_budget_are_refused_at_once_with_the_lines_to_add(tmp_path: Path) -> None:
    """Three such tasks give three lines, before a picture is read; with the proposed lines nothing
    is refused.
    """
    for name, labels in (("shapes", range(480)), ("tones", range(200)), ("large", range(20_000))):
        folder = tmp_path / "data" / name
        (folder / "test").mkdir(parents=True)
        (folder / "test/nshards.txt").write_text("1\n")
        (folder / "classnames.txt").write_text("a\nb\nc\n")
        (folder / "zeroshot_classification_templates.txt").write_text("a photo of {c}\n")
        with tarfile.open(folder / "test/0.tar", "w") as tar:
            for i in labels:
                for suffix, content in (("png", b"not a picture"), ("cls", str(i % 3).encode())):
                    info = tarfile.TarInfo(f"{i:05d}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    names = ("wds/shapes", "wds/tones", "wds/large")
    options = Options(
        recipes=("int8",), tasks=names, data_root=tmp_path / "data", baselines=tmp_path
    )
    write(tmp_path, "defaults: {points: 1.0, discordance: 0.04}\n")

    with pytest.raises(UsageError) as refused:
        preflight(Gate(options), accuracy=True)

    lines = refused.value.lines
    assert len(lines) == 2
    assert lines[0].endswith("Write under tasks: `shapes: {samples: 480, points: 2.5}`")
    entries = "".join(f"  {line.split('`')[1]}\n" for line in lines)
    write(tmp_path, f"defaults: {{points: 1.0, discordance: 0.04}}\ntasks:\n{entries}")
    with pytest.raises(UsageError, match="picture") as refused:
        preflight(Gate(options), accuracy=True)
    assert "points" not in str(refused.value)
