"""The options that the gate adds to pytest's command line."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from harness.errors import UsageError
from harness.pytest_plugin import private
from harness.pytest_plugin.options import shortened, usage_error

#: Options of the gate that another plugin had taken already.
_TAKEN = pytest.StashKey[list[str]]()


def _whole_number(text: str) -> int:
    """Convert *text* to a whole number; a refusal repeats only its first characters."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{shortened(text)!r} is not a whole number") from None


def add_options(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Add the gate's options; what another plugin has taken already is refused when it runs."""
    private.shorten_usage_errors(parser, usage_error)
    group = parser.getgroup("quantized CLIP gate")
    config: Any = pluginmanager.get_plugin("pytestconfig")
    taken = config.stash.setdefault(_TAKEN, [])

    def add(name: str, **attributes: Any) -> None:
        dest = attributes.setdefault("dest", name.removeprefix("--").replace("-", "_"))
        if name == "--no-blame" or not private.has_option(parser, name, dest):
            group.addoption(name, **attributes)
        else:
            taken.append(name)

    add(
        "--recipe",
        action="append",
        metavar="REF",
        dest="gate_recipes",
        help="recipe to gate; repeatable: a name from harness/recipes/library, a ModelOpt name "
        "(huggingface/vit/ptq/fp8), a "
        "YAML path, or module:ATTRIBUTE for a Python quant_cfg (default: the recipes of "
        "harness/recipes/library)",
    )
    add(
        "--recipes-root",
        metavar="DIR",
        help="resolve ModelOpt names and $imports in this modelopt_recipes tree",
    )
    add(
        "--clip-model",
        action="append",
        metavar="REF",
        dest="gate_models",
        help="model to gate; repeatable: embedded (default), a checkpoint directory, a hub id",
    )
    add(
        "--architectures",
        metavar="all|NAME[,NAME]",
        help="gate the recipes on these architectures of language and vision models, without "
        "weights, instead of on a model (--list-architectures lists the names)",
    )
    add(
        "--consumer",
        action="append",
        metavar="NAME",
        dest="gate_consumers",
        help="judge what this consumer reads of the towers; repeatable: llava, sd15, sdxl, owlvit, "
        "... (default: those of the model's kind)",
    )
    add(
        "--tasks",
        metavar="NAME[,NAME]",
        help=(
            "CLIP_benchmark tasks (cifar100, imagenet1k, mscoco_captions, wds/...; default: the "
            "embedded three)"
        ),
    )
    add("--data-root", metavar="DIR", help="folder of the tasks' data")
    add(
        "--calibration-data",
        metavar="DIR",
        help="image-text pairs: a webdataset or the COCO captions layout",
    )
    add(
        "--calibration-size",
        type=_whole_number,
        default=8192,
        metavar="N",
        help="pairs to calibrate on (default: 8192, or all there is)",
    )
    add(
        "--batch-size",
        type=_whole_number,
        metavar="N",
        help="rows per forward (default: what suits the device); fewer need less memory, and a "
        "baseline measured with another number is compared by verdicts instead of bits",
    )
    add(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where the models run (default: auto)",
    )
    add(
        "--attention",
        choices=("modelopt", "diffusers"),
        default="diffusers",
        help=(
            "attention class that ModelOpt puts in (default: diffusers, which the published recipe "
            "means)"
        ),
    )
    add(
        "--baselines",
        metavar="DIR",
        help="the store of records and budgets (default: the gate's own)",
    )
    add(
        "--update-baselines",
        action="store_true",
        help="accept what this run measures; needs --reason",
    )
    add(
        "--new-baselines-only",
        action="store_true",
        help="store records that are missing; never change one",
    )
    add("--reason", metavar="TEXT", help="why the baselines change; kept in the record's history")
    add(
        "--changed-since",
        metavar="REV",
        help=(
            "gate only recipes of --recipes-root that the git diff since REV reaches through "
            "$import"
        ),
    )
    add(
        "--list-affected",
        action="store_true",
        help="with --changed-since: list those recipes and stop",
    )
    add("--list-recipes", action="store_true", help="list the recipes that can be named, and stop")
    add(
        "--list-architectures",
        action="store_true",
        help="list the published architectures on which structure is gated, and stop",
    )
    add(
        "--blame",
        action="store_true",
        default=None,
        help="find the quantizers at fault, also on a pass",
    )
    add(
        "--no-blame",
        dest="blame",
        action="store_false",
        help="do not look for the quantizers at fault",
    )
    add("--early-stop", action="store_true", help="stop a task once a sequential test has decided")
    add(
        "--cluster",
        metavar="ADDRESS|local",
        help="evaluate the accuracy suite's tasks in slices on the workers of this Ray cluster "
        "(HOST:PORT of its head), or of one started on this machine (local); needs the extra "
        "'cluster'",
    )
    add("--gate-report", metavar="DIR", help="write report.html, summary.md and results.json here")
    add(
        "--published-table",
        metavar="FILE",
        help="write the table of a published evaluation (FP16 and each recipe on each task, with "
        "intervals) to this Markdown file, and its data next to it as .json",
    )
    add(
        "--gate-annotations",
        choices=("github",),
        help="print what is wrong as workflow commands, which GitHub shows on the recipe's lines; "
        "with --gate-report, write them and a SARIF file there too",
    )


def refuse_taken(config: pytest.Config) -> None:
    """Refuse a run in which an option of the gate means something else.

    Raises:
        UsageError: another plugin defines an option of that name.
    """
    taken = config.stash.get(_TAKEN, [])
    if taken:
        what = "another pytest plugin that is installed here defines this too"
        fix = (
            "Run the gate without that plugin: -p no:NAME (pytest --trace-config lists the names)."
        )
        raise UsageError(", ".join(taken), what, fix)
