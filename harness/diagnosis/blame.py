"""Which quantizers are at fault: measured on the calibrated model, not guessed.

Quantizers are grouped by tower, layer and kind.  A group's harm is measured twice: what is won back
when it alone is turned off, and what is lost when it alone is on.  The smallest set of groups that
wins the budget back is then looked for along that ranking, and the recipe that leaves it out is
quantized, evaluated and judged like any other.

Several sets are tried on the same samples, so each is judged at its own share of alpha: try number
*k* at ``alpha / 2 ** k``, together at most alpha.  The ranking is made on calibration pairs: it
must not see the samples on which the sets are judged.  docs/error-rates.md has the rates.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from harness.data import tasks
from harness.data.calibration import CalibrationPairs
from harness.data.inputs import Prompts
from harness.data.samples import RETRIEVAL
from harness.data.tasks import DEPTH, IMAGE_RECALL, TEXT_RECALL, Task
from harness.errors import sentences
from harness.quantization import quantize
from harness.quantization.maps import Quantizer, QuantizerMap, tensor_quantizers
from harness.quantization.quantize import QuantizationError
from harness.recipes.loading import Entry, Recipe
from harness.statistics import distribution, verdicts

if TYPE_CHECKING:
    from harness.gate.case import Case

#: Calibration pairs that the ranking looks at.
RANKED_ON = 512
#: Seconds after which the search stops with what it has.
LIMIT = 180.0
#: Sets of groups that are tried by a real evaluation.
_TRIED = 4

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Group:
    """Quantizers that stand or fall together: one kind in one layer of one tower; ``patterns`` name
    just them.
    """

    name: str
    tower: str
    quantizers: tuple[str, ...]
    patterns: tuple[str, ...]


@dataclass(frozen=True)
class Harm:
    """A group's share in the loss, in points of the metric and in mean margin (logits); positive
    means harmful.

    ``off_*``: what turning the group off wins back.  ``alone_*``: what the group costs when nothing
    else is quantized.
    """

    group: Group
    off_points: float
    off_margin: float
    alone_points: float
    alone_margin: float

    @property
    def rank(self) -> float:
        """What the ranking goes by: margins see harm before answers flip, so they decide between
        equal points.
        """
        return self.off_margin + self.alone_margin


@dataclass(frozen=True)
class Blame:
    """The ranking (worst first), the set found, the recipe patch that leaves it out, and what was
    verified.
    """

    task: str
    metric: str
    ranking: tuple[Harm, ...]
    culprits: tuple[Group, ...]
    patch: str
    verified: bool
    seconds: float
    note: str

    def as_dict(self) -> dict[str, Any]:
        """A plain record for JSON."""
        rows = [
            {
                "name": h.group.name,
                "tower": h.group.tower,
                "off_points": h.off_points,
                "alone_points": h.alone_points,
                "off_margin": h.off_margin,
                "alone_margin": h.alone_margin,
            }
            for h in self.ranking
        ]
        names = [g.name for g in self.culprits]
        return {
            "task": self.task,
            "metric": self.metric,
            "groups": rows,
            "culprits": names,
            "patch": self.patch,
            "verified": self.verified,
            "seconds": self.seconds,
            "note": self.note,
        }

    def message(self, rows: int = 8) -> str:
        """The table and the patch, for a person."""
        lines = [
            f"blame, measured on {self.task} ({self.metric}): what turning a group off wins back, "
            f"what it costs alone",
            f"  {'group':<44} {'off':>8} {'alone':>8}  (points; margins in logits)",
        ]
        for harm in self.ranking[:rows]:
            points = f"{harm.off_points:>+8.2f} {harm.alone_points:>+8.2f}"
            lines.append(
                f"  {harm.group.name:<44} {points}  ({harm.off_margin:+.3f}, "
                f"{harm.alone_margin:+.3f})"
            )
        lines.append(self.note)
        if self.patch:
            lines += [
                "append to the recipe's quant_cfg:",
                *(f"    {line}" for line in self.patch.splitlines()),
            ]
        return "\n".join(lines)


def groups(quantizers: QuantizerMap) -> tuple[Group, ...]:
    """The enabled quantizers by tower, layer and kind, each with patterns that match them and
    nothing else enabled.
    """
    quantizers_by_place: dict[tuple[str, str], list[Quantizer]] = {}
    for q in quantizers:
        if q.enabled:
            quantizers_by_place.setdefault((q.tower, _place(q)), []).append(q)
    enabled = [q.name for q in quantizers if q.enabled]
    return tuple(
        Group(
            place,
            tower,
            tuple(q.name for q in members),
            _patterns([q.name for q in members], place, enabled),
        )
        for (tower, place), members in quantizers_by_place.items()
    )


def _place(q: Quantizer) -> str:
    block = q.module.split(".self_attn")[0].split(".mlp")[0]
    if q.layer is None:
        return q.module
    part = (
        "self_attn"
        if ".self_attn" in q.module
        else "mlp"
        if ".mlp" in q.module
        else q.module.rpartition(".")[2]
    )
    return f"{block}.{part} {q.module_kind}"


def _patterns(members: Sequence[str], place: str, enabled: Sequence[str]) -> tuple[str, ...]:
    path, _, kind = place.partition(" ")
    ending = {"attention": ".*_bmm_quantizer", "linear": ".*_proj.*"}.get(kind, "*")
    candidates = [f"*{path}{ending}", f"*{path}.*", f"*{path}*"]
    for pattern in candidates:
        if {n for n in enabled if fnmatch.fnmatchcase(n, pattern)} == set(members):
            return (pattern,)
    return tuple(f"*{name}" for name in members)


def patch_of(culprits: Sequence[Group]) -> str:
    """The entries that leave *culprits* out, as they stand in a recipe's YAML."""
    return "".join(
        f"- quantizer_name: '{p}'\n  enable: false\n" for g in culprits for p in g.patterns
    )


def patched(recipe: Recipe, culprits: Sequence[Group]) -> Recipe:
    """*recipe* with the patch appended."""
    patterns = [p for g in culprits for p in g.patterns]
    cfg = dict(recipe.quant_cfg)
    listed = cfg["quant_cfg"]
    if isinstance(listed, dict):
        cfg["quant_cfg"] = listed | {p: {"enable": False} for p in patterns}
    else:
        cfg["quant_cfg"] = [*listed, *({"quantizer_name": p, "enable": False} for p in patterns)]
    entries = (*recipe.entries, *(Entry(p, None, False, None, "patch") for p in patterns))
    return dataclasses.replace(recipe, quant_cfg=cfg, entries=entries)


@contextmanager
def switched(model: nn.Module, off: Callable[[str], bool]) -> Iterator[None]:
    """Within the block, enabled quantizers of *model* whose name *off* says so are disabled."""
    turned = [q for name, q in tensor_quantizers(model).items() if q.is_enabled and off(name)]
    for quantizer in turned:
        quantizer.disable()
    try:
        yield
    finally:
        for quantizer in turned:
            quantizer.enable()


class _Meter:
    """Measures one metric with some quantizers off; only the tower that changes is computed
    again.
    """

    def __init__(
        self, reference: nn.Module, quantized: nn.Module, task: Task, metric: str, batch_size: int
    ) -> None:
        self.quantized = quantized
        self.task = task
        self.metric = metric
        self.batch_size = batch_size
        self.exact = {tower: self._embed(reference, tower) for tower in ("vision", "text")}
        self.coarse = {tower: self._embed(quantized, tower) for tower in ("vision", "text")}
        self.start = self._score(self.coarse)
        self.best = self._score(self.exact)

    def _embed(self, model: nn.Module, tower: str) -> Floats:
        run = tasks.image_embeddings if tower == "vision" else tasks.text_embeddings
        return run(model, self.task, self.batch_size)

    def _score(self, embeddings: dict[str, Floats]) -> tuple[float, float]:
        outcomes = tasks.score(
            self.task, embeddings["vision"], embeddings["text"], keep_scores=False
        )[self.metric]
        return 100 * outcomes.accuracy, float(outcomes.margins.mean())

    def harm(self, group: Group) -> Harm:
        """Both measurements of *group*."""
        members = set(group.quantizers)
        with switched(self.quantized, lambda name: name in members):
            without = self._score(
                self.coarse | {group.tower: self._embed(self.quantized, group.tower)}
            )
        with switched(self.quantized, lambda name: name not in members):
            alone = self._score(
                self.exact | {group.tower: self._embed(self.quantized, group.tower)}
            )
        return Harm(
            group,
            without[0] - self.start[0],
            without[1] - self.start[1],
            self.best[0] - alone[0],
            self.best[1] - alone[1],
        )


def find(
    reference: nn.Module,
    quantized: nn.Module,
    quantizers: QuantizerMap,
    recipe: Recipe,
    task: Task,
    metric: str,
    holds: Callable[[Recipe, float], bool],
    *,
    batch_size: int = 64,
    limit: float = LIMIT,
    progress: bool = False,
) -> Blame:
    """Find the quantizers at fault for a loss.

    Args:
        reference: the unquantized model.
        quantized: the calibrated model, not folded; its quantizers are switched and put back.
        quantizers: its map.
        recipe: what it was made from.
        task: what the ranking is measured on; not one that *holds* judges on.
        metric: the metric of the task.
        holds: quantizes a patched recipe again, evaluates it on everything and says whether its
            verdicts pass at a share of their alpha; it raises a QuantizationError where ModelOpt
            refuses the patched recipe, which is then not a fix.
        batch_size: rows a forward.
        limit: seconds after which no further step is begun.
        progress: show a bar.
    """
    from tqdm import tqdm

    began = time.monotonic()

    def left() -> float:
        return limit - (time.monotonic() - began)

    meter = _Meter(reference, quantized, task, metric, batch_size)
    everything = groups(quantizers)
    ranking = []
    for group in tqdm(
        everything, desc=f"blame (at most {limit:.0f} s)", leave=False, disable=not progress
    ):
        if left() < 0:
            break
        ranking.append(meter.harm(group))
    ranking.sort(key=lambda h: h.rank, reverse=True)

    refused: list[str] = []
    tried = 0

    def holds_without(left_out: Sequence[Group]) -> bool:
        nonlocal tried
        tried += 1
        try:
            return holds(patched(recipe, left_out), alpha_share(tried))
        except QuantizationError as error:
            refused.append(
                f"without {', '.join(group.name for group in left_out)}, {error.headline}"
            )
            return False

    culprits: tuple[Group, ...] = ()
    verified = False
    for size in range(1, min(_TRIED, len(ranking)) + 1):
        if left() < 0:
            break
        culprits = tuple(h.group for h in ranking[:size])
        if holds_without(culprits):
            verified = True
            culprits = _pruned(culprits, lambda rest: left() > 0 and holds_without(rest))
            break
    seconds = round(time.monotonic() - began, 1)
    if verified:
        note = (
            f"leaving out {', '.join(g.name for g in culprits)} wins the budget back: verified by "
            f"a full evaluation. {_tries(tried)}"
        )
    else:
        culprits = ()
        looked = (
            f"{len(ranking)} of {len(everything)} groups ranked, {tried} sets tried in "
            f"{seconds:.0f} s"
        )
        note = (
            f"no set of at most {_TRIED} groups wins the budget back ({looked}): the loss is "
            f"spread over the model."
        )
        if refused:
            more = f"{len(refused)} of these sets cannot be left out: {refused[0].rstrip('.')}."
            note = sentences(note, more)
    return Blame(
        task.name, metric, tuple(ranking), culprits, patch_of(culprits), verified, seconds, note
    )


def alpha_share(number: int) -> float:
    """Return the share of alpha at which try *number* (from 1) is judged; all together are 1."""
    return 0.5**number


def _tries(tried: int) -> str:
    sets = "1 set was tried" if tried == 1 else f"{tried} sets were tried"
    return (
        f"{sets}, set k at alpha / 2^k: the chance that a patch whose loss is over the budget is "
        f"accepted is at most alpha over all tries."
    )


def _pruned(
    culprits: tuple[Group, ...], holds: Callable[[Sequence[Group]], bool]
) -> tuple[Group, ...]:
    """*culprits* without the members that are not needed."""
    needed = list(culprits)
    for group in culprits[:-1]:
        rest = [g for g in needed if g is not group]
        if rest and holds(rest):
            needed = rest
    return tuple(needed)


def of_case(case: Case, task: str, metric: str) -> Blame:
    """Find the quantizers at fault for the case's loss on *metric* of *task*."""
    quantized = case.quantized
    ranked_on: Task | None = pairs_task(case.calibration)
    if ranked_on is None:
        # A single tower is calibrated without the other's inputs.
        ranked_on, ranked_metric = case.task(task), metric
        if ranked_on.labels is not None and len(ranked_on.sample_ids) > RANKED_ON:
            ranked_on = ranked_on.subset(0, RANKED_ON)
    else:
        ranked_metric = IMAGE_RECALL if metric == IMAGE_RECALL else TEXT_RECALL
    return find(
        quantized.reference.model,
        quantized.model,
        case.map,
        quantized.recipe,
        ranked_on,
        ranked_metric,
        lambda recipe, share: holds(case, recipe, share),
        batch_size=case.setting.batch_size,
        progress=case.setting.options.progress,
        limit=LIMIT,
    )


def pairs_task(pairs: CalibrationPairs) -> Task | None:
    """Return the first calibration pairs as a retrieval task; None where a side is missing."""
    if pairs.pictures is None or pairs.shades is None or pairs.ids is None:
        return None
    count = min(pairs.n, RANKED_ON)
    if count <= DEPTH[TEXT_RECALL]:
        return None  # each picture needs more wrong captions than the metric looks at
    ids = pairs.ids[:count]
    lengths = torch.full((count,), ids.shape[1], dtype=torch.int64)
    return Task(
        name="calibration pairs",
        kind=RETRIEVAL,
        sample_ids=tuple(map(str, range(count))),
        data_hash=pairs.hash,
        pictures=pairs.pictures.take(list(range(count))),
        shades=pairs.shades,
        prompts=Prompts(ids, lengths, torch.arange(count)),
        first_text=np.arange(count + 1, dtype=np.int32),
        labels=None,
        clusters=np.arange(count, dtype=np.int32),
    )


def holds(case: Case, recipe: Recipe, share: float = 1.0) -> bool:
    """Return whether the case's verdicts would all pass with *recipe* in place of its own, limits
    included, each at a *share* of its alpha.
    """
    model, _ = case.calibrated(recipe)
    subject = case.subject_of(recipe, model, quantize.fold(model))
    runs, before = (
        case.setting.evaluator.evaluate(subject, case.tasks, keep=False),
        case.reference_runs,
    )
    within_limits = []
    for task, run in before.items():
        budgets = {name: case.budget(task, name) for name in run.outcomes}
        within_limits += [
            measure.ok for measure in distribution.distribution(run, runs[task], budgets)
        ]
    decision = verdicts.family(case.judged(before, runs, alpha_share=share)).decision
    return decision is verdicts.Decision.PASS and all(within_limits)
