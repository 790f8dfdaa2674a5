"""Write ``docs/shipped-recipes.md``: every recipe of the installed ModelOpt that a CPU can gate on
the embedded model, with its verdict and the reason.

    python -m harness.tools.shipped

One process quantizes one recipe after the other. Insertion is checked without stored baselines;
accuracy is that of one task.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from harness import places
from harness.checks import registry
from harness.errors import UsageError, one_line
from harness.escaping import visible
from harness.gate.case import Case
from harness.gate.options import Options
from harness.gate.session import Gate
from harness.lint import rules
from harness.lint.run import yaml_files
from harness.quantization.quantize import QuantizationError
from harness.recipes import finding, judged, loading
from harness.statistics.verdicts import Decision
from harness.tools import pages

PAGE = places.DOCS / "shipped-recipes.md"
TASK = "emoji100"
#: Folders of ModelOpt's tree whose files are whole recipes; the rest are their parts.
FOLDERS = ("general", "huggingface", "model_type", "models", "configs/ptq/presets")
_HEAD = """# ModelOpt's own recipes on CLIP

The {total} recipes and presets of ModelOpt {release}, as the checks of insertion and accuracy judge
them on the embedded model on a CPU, without baselines: {judged} can be judged there. Accuracy is
that of the task `{task}`. `python -m harness.tools.shipped` writes this page.

Most recipes are for language models, and a FAIL says that CLIP needs another one. The reasons:

- "the whole vision tower is unquantized": the recipe imports `default_disabled_quantizers`, whose
  patterns `*vision_model*` and `*visual*` leave CLIP's vision tower and its projection as they are.
- "no enabled quantizer at any attention": the recipe quantizes weights and inputs of layers, and
  nothing around scaled-dot-product attention.
- "some of their quantizers on": around attention the recipe quantizes a part of the tensors, such
  as the keys and values of a cache.
- "never ran" and "have no amax": a wide pattern, or ModelOpt's default, turns on quantizers around
  attention that are never called, such as the softmax's.
- "no entry of the recipe speaks of them": the recipe has no deny-all, so that ModelOpt's default,
  INT8, is on elsewhere.
- "matches none": a pattern is for a part of another family.
- "with every quantizer off, 2 outputs are not the reference's" (the searched recipe): the cause is
  not known yet.
- INCONCLUSIVE: the samples of the task, in their clusters, are too few for its budget.

| recipe | verdict | change in points [interval] | reasons |
|---|---|---|---|
"""


@dataclass(frozen=True)
class JudgedRecipe:
    """One recipe that was judged: its verdict, the change of its accuracy and the reasons."""

    recipe: str
    verdict: str
    change: str
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        reasons = "<br>".join(map(_cell, self.reasons))
        return f"| `{self.recipe}` | {self.verdict} | {self.change} | {reasons} |"


def main() -> int:
    """Write the page; 0."""
    root = finding.installed_root()
    paths, reasons = sort(root, recipes_of(root))
    gate = Gate(Options(recipes=tuple(map(str, paths)), tasks=(TASK,), device="cpu"))
    rows = []
    for path, case in zip(paths, gate.cases(), strict=True):
        rows.append(judge(_name(path, root), case))
        sys.stderr.write(f"{rows[-1]}\n")
    PAGE.write_text(page(rows, reasons), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE}\n")
    return 0


def recipes_of(root: Path) -> Iterator[Path]:
    """Yield the files of whole recipes below *root*, by name."""
    for path in yaml_files(root):
        if path.relative_to(root).as_posix().startswith(FOLDERS):
            yield path


def sort(root: Path, paths: Iterable[Path]) -> tuple[list[Path], dict[str, list[str]]]:
    """Return the recipes that a CPU can judge, and the names of the others by the reason."""
    known = rules.families_here().names
    on_cpu: list[Path] = []
    others: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        try:
            recipe = loading.load(str(path))
        except UsageError as error:
            if "is not a recipe" not in error.what:
                others[error.what.rstrip(".")].append(_name(path, root))
            continue
        reason = judged.not_gated(recipe, "cpu", known=known)
        if reason is None:
            on_cpu.append(path)
        else:
            short = reason.partition(": ")[0] if "another family" in reason else reason
            others[short].append(_name(path, root))
    return on_cpu, others


def judge(recipe: str, case: Case) -> JudgedRecipe:
    """Return the row of *recipe*: FAIL with each problem's first line, or the verdict on
    accuracy.
    """
    try:
        problems = _problems(case)
        (verdict,) = case.verdicts.verdicts
    except (QuantizationError, UsageError) as error:
        return JudgedRecipe(recipe, "FAIL", "", (f"ModelOpt refuses it: {one_line(error)}",))
    low, high = verdict.interval
    change = f"{verdict.difference:+.2f} [{low:+.2f}, {high:+.2f}]"
    decision = Decision.FAIL if problems else verdict.decision
    if verdict.decision is not Decision.PASS:
        problems.append(verdict.message().splitlines()[0])
    return JudgedRecipe(recipe, decision.value, change, tuple(problems))


def _problems(case: Case) -> list[str]:
    """The first line of each problem of the insertion suite, without baselines and published
    architectures.
    """
    messages = [
        problem.splitlines()[0]
        for check in registry.every()
        if check.suite == "insertion" and not check.recorded and not check.needs_fixture
        for problem in check.problems(case, {"architecture": ()})
    ]
    return list(dict.fromkeys(messages))


def page(rows: Iterable[JudgedRecipe], others: dict[str, list[str]]) -> str:
    """Return the page's text."""
    lines = [str(row) for row in rows]
    total = len(lines) + sum(map(len, others.values()))
    head = _HEAD.format(
        total=total,
        release=metadata.version("nvidia-modelopt"),
        judged=len(lines),
        task=TASK,
    )
    rest = "".join(
        f"| {_cell(reason)} | {len(names)} | {', '.join(f'`{name}`' for name in names)} |\n"
        for reason, names in sorted(others.items())
    )
    return (
        head
        + "\n".join(lines)
        + "\n\n## Not judged on a CPU\n\n| reason | recipes | names |\n|---|---|---|\n"
        + rest
        + pages.footer(PAGE.name)
    )


def _cell(text: str) -> str:
    """*text* for a cell of a table; files of ModelOpt's tree are named from its root."""
    return visible(text).replace(f"{finding.installed_root()}/", "").replace("|", "\\|")


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).with_suffix("").as_posix()


if __name__ == "__main__":
    sys.exit(main())
