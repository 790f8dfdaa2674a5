"""What the command line alone is refused for: values that cannot be used, and options that cancel
each other.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable

import pytest

from harness.errors import UsageError
from harness.pytest_plugin import machine, options

Refused = Callable[..., str]


@pytest.fixture
def refused(pytester: pytest.Pytester) -> Refused:
    """The one line that a command line is refused with; empty where it is taken."""
    pytester.mkdir("here")

    def line(*words: str) -> str:
        config = pytester.parseconfig(*words)
        try:
            options.check_options(config)
            options.prepare_report(config)
            machine.check_processes(config)
        except UsageError as error:
            return str(error)
        return ""

    return line


@pytest.mark.parametrize(
    ("words", "begins", "fix"),
    [
        (
            ("--update-baselines", "--new-baselines-only", "--reason", "x"),
            "--update-baselines",
            "Choose one",
        ),
        (("--reason", "x"), "--reason", "Give --update-baselines"),
        (
            ("--update-baselines", "--reason", "say why"),
            "--reason 'say why'",
            "Say why the baselines change",
        ),
        (("--list-affected",), "--list-affected", "--changed-since REV"),
        (
            ("--changed-since", "HEAD", "--list-affected", "--new-baselines-only"),
            "--list-affected",
            "Leave out",
        ),
        (
            ("--changed-since", "HEAD", "--list-affected", "--gate-report", "out"),
            "--gate-report",
            "Leave out",
        ),
        (("--blame", "--no-blame"), "--blame", "Choose one"),
        (("--early-stop", "--new-baselines-only"), "--early-stop", "Leave out"),
        (("--early-stop", "--update-baselines", "--reason", "x"), "--early-stop", "Leave out"),
        (("--cluster", "local", "--early-stop"), "--cluster: does not go with", "Leave out"),
        (("--cluster", "h:1", "--early-stop"), "--cluster: does not go with", "Leave out"),
        (("--cluster", "local", "-n", "2"), "--cluster local: does not go with -n", "Leave out"),
        (("--cluster", "h:70000"), "--cluster h:70000: is not an address", "HOST:PORT"),
        (("--data-root", "here"), "--data-root", "--tasks NAME"),
        (("--architectures", " "), "--architectures: is empty", "Give a value"),
        (("--architectures", "all", "--clip-model", "embedded"), "--architectures", "Leave out"),
        (("--architectures", "all", "--new-baselines-only"), "--architectures", "Leave out"),
        (("--architectures", "all", "--list-recipes"), "--architectures", "Leave out"),
        (
            ("--architectures", "all", "--changed-since", "HEAD", "--recipes-root", "here"),
            "--architectures",
            "--recipe REF",
        ),
        (("--calibration-size", "0"), "--calibration-size", "positive"),
        (("--calibration-size", "-3"), "--calibration-size", "positive"),
        (("--batch-size", "0"), "--batch-size", "positive"),
        (
            ("-n", "2", "--dist", "each", "--new-baselines-only"),
            "--new-baselines-only",
            "--dist out",
        ),
        (
            ("-n", "2", "--benchmark-compare"),
            "--benchmark-compare: times are not taken with -n",
            "Leave out",
        ),
        (
            ("-n", "2", "--benchmark-save", "a"),
            "--benchmark-save: times are not taken with -n",
            "Leave out",
        ),
        (
            ("--benchmark-disable", "--benchmark-compare"),
            "--benchmark-compare: times are not taken",
            "Leave out",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_options_that_cancel_each_other(
    refused: Refused, words: tuple[str, ...], begins: str, fix: str
) -> None:
    """Where one of two options would have no effect, or a number is not one, the line names it and
    what to do.
    """
    line = refused(*words)

    assert line.startswith(begins)
    assert fix in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("words", "fix", "corrected"),
    [
        (
            "--update-baselines",
            "Say why the baselines change: --reason TEXT.",
            "--update-baselines --reason x",
        ),
        (
            "--reason x",
            "Give --update-baselines with it, or leave it out.",
            "--reason x --update-baselines",
        ),
        ("--reason x", "or leave it out", ""),
        (
            "--list-affected",
            "It needs --changed-since REV and --recipes-root DIR.",
            "--list-affected --changed-since HEAD --recipes-root here",
        ),
        (
            "--data-root here",
            "Name the tasks that are there: --tasks NAME.",
            "--data-root here --tasks wds/x",
        ),
        ("--blame --no-blame", "Choose one.", "--blame"),
        (
            "--update-baselines --new-baselines-only --reason x",
            "Choose one",
            "--new-baselines-only --reason x",
        ),
        ("--early-stop --new-baselines-only", "Leave out one of them.", "--new-baselines-only"),
        ("-n 2 --dist each --new-baselines-only", "Leave --dist out.", "-n 2 --new-baselines-only"),
        ("--calibration-size 0", "Give a positive number of pairs.", "--calibration-size 1"),
        ("--batch-size 0", "Give a positive number of rows.", "--batch-size 1"),
        (
            "--calibration-data nowhere",
            "Give an existing directory, or an annotation file.",
            "--calibration-data here",
        ),
        (
            "--data-root nowhere --tasks wds/x",
            "Give an existing directory.",
            "--data-root here --tasks wds/x",
        ),
        ("--gate-report setup.cfg", "Give a folder, or a name that is free.", "--gate-report here"),
        ("--gate-report setup.cfg", "or a name that is free", "--gate-report free"),
        ("--gate-report /dev/null/x", "Give a folder that can be written.", "--gate-report here"),
        ("-n 2 --benchmark-compare", "Leave out one of it and -n.", "--benchmark-compare"),
    ],
)
def test_what_a_refusal_proposes_is_taken(
    refused: Refused, pytester: pytest.Pytester, words: str, fix: str, corrected: str
) -> None:
    """Written as the message says, the command line is not refused."""
    pytester.makefile(".cfg", setup="")

    assert fix in refused(*words.split())
    assert refused(*corrected.split()) == ""


def test_recipe_beside_a_selection(pytester: pytest.Pytester) -> None:
    """A recipe that was named would be forgotten for those that the pull request reaches: it is
    refused.
    """
    for words in (
        ("init", "-q"),
        ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a", "--allow-empty"),
    ):
        subprocess.run(["git", *words], check=True, cwd=pytester.path)

    result = pytester.runpytest_inprocess(
        "-p",
        "harness.pytest_plugin.plugin",
        "--recipe",
        "fp8",
        "--changed-since",
        "HEAD",
        "--recipes-root",
        ".",
    )

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --recipe: does not go with --changed-since*Choose one."])


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--recipe", "fp8", "--new-baselines-only", "--reason", "first"),
        ("--update-baselines", "--reason", "torch 2.14"),
        ("--no-blame", "--early-stop"),
        ("--batch-size", "4", "--calibration-size", "16"),
        ("--tasks", "wds/x", "--data-root", "here"),
        ("--gate-report", "new/folder"),
        ("-n", "2", "--new-baselines-only"),
        ("--changed-since", "HEAD", "--recipes-root", "here", "--list-affected"),
    ],
    ids=" ".join,
)
def test_options_that_go_together(refused: Refused, words: tuple[str, ...]) -> None:
    """What means something together is taken."""
    assert refused(*words) == ""


OPTIONS = sorted(set(options._TEXTS.values()))


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(
    "value", ["", "  ", "a\0b", os.fsdecode(b"caf\xe9"), "x" * 5000], ids=ascii
)
def test_texts_that_cannot_be_used(refused: Refused, option: str, value: str) -> None:
    """Empty, too long, with a NUL or with bytes that are not UTF-8: reported in one short line that
    names the option.
    """
    line = refused(option, value)

    assert option in line.split(": ")[0]
    assert "\n" not in line
    assert line.isprintable()
    assert len(line) < 400


@pytest.mark.parametrize(
    "option", ["--baselines", "--gate-report", "--data-root", "--recipe", "--clip-model"]
)
def test_home_of_nobody(refused: Refused, option: str) -> None:
    """A home folder of a user that does not exist is reported."""
    assert "no user 'nosuchuser'" in refused(option, "~nosuchuser/x")


def test_home_is_expanded(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tilde in a path is the home folder."""
    monkeypatch.setenv("HOME", str(pytester.path))
    config = pytester.parseconfig("--baselines", "~/store")
    options.check_options(config)

    assert config.getoption("baselines") == pytester.path / "store"


def test_report_that_cannot_be_written(refused: Refused, pytester: pytest.Pytester) -> None:
    """It is found before a test runs, and a link or a pipe in the place of one of its files too."""
    assert "cannot be written" in refused("--gate-report", "/dev/null/x")
    (pytester.path / "here/summary.md").symlink_to(pytester.path / "elsewhere")
    assert "summary.md in it is not a regular file" in refused("--gate-report", "here")
    (pytester.path / "here/summary.md").unlink()
    os.mkfifo(pytester.path / "here/results.json")
    assert "results.json in it is not a regular file" in refused("--gate-report", "here")
    assert not (pytester.path / "elsewhere").exists()


def test_a_long_number_is_not_repeated(pytester: pytest.Pytester) -> None:
    """A value of thousands of digits is refused in a short line."""
    with pytest.raises(pytest.UsageError) as caught:
        pytester.parseconfig("--calibration-size", "9" * 5000)

    assert "is not a whole number" in str(caught.value)
    assert len(str(caught.value)) < 2000


def test_marker_that_selects_nothing(pytester: pytest.Pytester) -> None:
    """A marker expression that leaves none of the gate's tests is refused; in another project it is
    exit code 5.
    """
    pytester.makepyfile("def test_it(gate): pass")
    ours = pytester.runpytest_inprocess("-p", "harness.pytest_plugin.plugin", "-m", "acuracy")
    assert ours.ret == pytest.ExitCode.USAGE_ERROR
    ours.stderr.fnmatch_lines(
        ["ERROR: -m 'acuracy': selects none of the 1 tests. The gate's markers are insertion*"]
    )

    pytester.makepyfile(test_other="def test_it(): pass")
    other = pytester.runpytest_inprocess(
        "-p", "harness.pytest_plugin.plugin", "-m", "acuracy", "test_other.py"
    )
    assert other.ret == pytest.ExitCode.NO_TESTS_COLLECTED


def saved(pytester: pytest.Pytester, *arguments: str, cases: str = "int8") -> pytest.RunResult:
    """Runs a suite that takes times of one case with the given options."""
    pytester.makepyfile(
        test_times="""
        def test_quantized(gate, case, benchmark): benchmark.pedantic(sum, args=([1, 2],), rounds=3)
        """
    )
    words = ("-p", "harness.pytest_plugin.plugin", "--device", "cpu", "--recipe", cases, *arguments)
    return pytester.runpytest_inprocess(*words)


def test_comparison_with_nothing_in_common(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A saved run without these tests, and no saved run, are reported before any test runs; the same
    tests are compared.
    """
    from harness.gate.reference_side import ReferenceSide

    monkeypatch.setattr("harness.gate.preflight.preflight", lambda *_, **__: None)
    monkeypatch.setattr(ReferenceSide, "lacks", lambda *_, **__: None)

    none = saved(pytester, "--benchmark-compare")
    assert none.ret == pytest.ExitCode.USAGE_ERROR
    none.stderr.fnmatch_lines(["ERROR: --benchmark-compare: there is no saved run in *"])
    assert saved(pytester, "--benchmark-save", "a").ret == 0
    assert (
        saved(pytester, "--benchmark-compare", "--benchmark-compare-fail=mean:100000000%").ret == 0
    )
    renamed = saved(pytester, "--benchmark-compare", cases="fp8")
    assert renamed.ret == pytest.ExitCode.USAGE_ERROR
    renamed.stderr.fnmatch_lines(
        ["ERROR: --benchmark-compare: the saved run holds none of these tests (*fp8*"]
    )


def test_a_slower_test_is_in_the_headline(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What --benchmark-compare-fail refuses fails the run under its word, and not by a
    traceback.
    """
    from harness.gate.reference_side import ReferenceSide

    monkeypatch.setattr("harness.gate.preflight.preflight", lambda *_, **__: None)
    monkeypatch.setattr(ReferenceSide, "lacks", lambda *_, **__: None)
    saved(pytester, "--benchmark-save", "a")
    (path,) = pytester.path.glob(".benchmarks/*/*.json")
    content = json.loads(path.read_text())
    content["benchmarks"][0]["stats"]["min"] /= 1e6
    path.write_text(json.dumps(content))

    result = saved(pytester, "--benchmark-compare", "--benchmark-compare-fail=min:1%")

    assert result.ret == 1
    result.stdout.fnmatch_lines(
        ["*= throughput: FAIL =*", "*slower than --benchmark-compare-fail*"]
    )
    assert "Traceback" not in str(result.stdout) + str(result.stderr)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--recipee fp8", "--recipee: is not an option. Did you mean --recipe?"),
        ("--recipee=fp8", "--recipee: is not an option. Did you mean --recipe?"),
        ("--no-such-thing-x", "--no-such-thing-x: is not an option. Correct it; pytest --help"),
        ("--device tpu", "--device: invalid choice: 'tpu' (choose from auto, cpu, cuda). Correct"),
        ("--calibration-size many", "--calibration-size: 'many' is not a whole number. Correct"),
        ("--tasks", "--tasks: expected one argument. Correct"),
    ],
)
def test_what_the_parser_refuses_is_one_line(
    pytester: pytest.Pytester, words: str, line: str
) -> None:
    """An option that is not there, or a value that it cannot have: no usage, no configuration."""
    with pytest.raises(pytest.UsageError) as caught:
        pytester.parseconfig(*words.split())

    (said,) = caught.value.args
    assert said.replace("'auto', 'cpu', 'cuda'", "auto, cpu, cuda").startswith(line)
    assert "\n" not in said
