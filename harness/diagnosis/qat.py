"""Quantization-aware training: a recipe's loss won back by fine-tuning the weights under frozen
ranges.

The quantized model is trained in float32 with its quantizers in place, straight-through gradients
and all, on the pairs that it was calibrated with: the symmetric contrastive loss of CLIP (Radford
et al. 2021, arXiv 2103.00020, figure 3) over batches, at the reference's own temperature.  Ranges
are buffers and stay what calibration made them.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from harness.data.calibration import CalibrationPairs
from harness.data.tasks import Outcomes, TaskRun
from harness.errors import UsageError, one_line, ran_out_of_memory
from harness.gate.built import built
from harness.models import families
from harness.quantization import quantize
from harness.quantization.contrastive import contrastive, differentiable_attention
from harness.statistics import clustering, paired
from harness.statistics.verdicts import Decision, Verdict, VerdictFamily, check_pair

if TYPE_CHECKING:
    from harness.gate.case import Case


@dataclass(frozen=True)
class TuningSettings:
    """A bounded number of steps: AdamW without weight decay, a learning rate that falls to zero
    linearly, from a seed.

    ``norm`` bounds the gradient's norm.
    """

    steps: int = 120
    batch_size: int = 128
    learning_rate: float = 1e-4
    norm: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Trained:
    """A fine-tuned model in the dtype that it came in, and the loss of every step."""

    model: nn.Module
    losses: tuple[float, ...]


def train(
    model: nn.Module,
    pairs: CalibrationPairs,
    settings: TuningSettings | None = None,
    progress: bool = False,
) -> Trained:
    """A copy of *model*, quantized, calibrated and not folded, with its weights fine-tuned on
    *pairs*.

    Args:
        model: with a tower for pictures and one for words, on any device.
        pairs: of the calibration.
        settings: by default those of :class:`Settings`.
        progress: show a bar with the loss.

    Raises:
        UsageError: there is not enough memory for a step over as many pairs.
    """
    from tqdm import tqdm

    how = settings or TuningSettings()
    parameter = next(model.parameters())
    tuned = copy.deepcopy(model).float()
    weights = [p.requires_grad_(True) for p in tuned.parameters() if p.dim() > 1]
    optimizer = torch.optim.AdamW(weights, lr=how.learning_rate, weight_decay=0.0)
    temperature = float(tuned.logit_scale.detach().exp())  # type: ignore[operator]
    losses = []
    with (
        differentiable_attention(),
        tqdm(total=how.steps, desc="fine-tune", leave=False, disable=not progress) as bar,
    ):
        for step, batch in enumerate(_batches(pairs, how, parameter.device)):
            for group in optimizer.param_groups:
                group["lr"] = how.learning_rate * (1 - step / how.steps)
            with _memory_named(min(how.batch_size, pairs.n)):
                loss = contrastive(families.forward(tuned, batch), temperature)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(weights, how.norm)
                optimizer.step()
            losses.append(float(loss.detach()))
            bar.update()
            bar.set_postfix_str(f"loss {losses[-1]:.3f}")
    return Trained(tuned.to(parameter.dtype).eval().requires_grad_(False), tuple(losses))


@contextmanager
def _memory_named(rows: int) -> Iterator[None]:
    """Turn exhausted memory within a step over *rows* pairs into a :class:`UsageError` with the
    option that helps.
    """
    try:
        yield
    except Exception as error:
        if not ran_out_of_memory(error) or isinstance(error, UsageError):
            raise
        what = f"out of memory in a step of fine-tuning over {rows} pairs ({one_line(error)})"
        fix = (
            f"Take fewer rows: --batch-size {rows // 2}."
            if rows > 2
            else "Run on a machine with more memory."
        )
        raise UsageError("--batch-size", what, fix) from error


def _batches(
    pairs: CalibrationPairs, how: TuningSettings, device: torch.device
) -> Iterator[dict[str, Tensor]]:
    """As many batches as there are steps, every pair once an epoch, in an order of its own each."""
    generator = torch.Generator().manual_seed(how.seed)
    parts = list(pairs.batches(torch.device("cpu"), torch.float32))
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    size = min(how.batch_size, pairs.n)
    step = 0
    while step < how.steps:
        order = torch.randperm(pairs.n, generator=generator)
        for chosen in order[: pairs.n - pairs.n % size].split(size):  # type: ignore[no-untyped-call]
            if step == how.steps:
                return
            yield {name: values[chosen].to(device) for name, values in whole.items()}
            step += 1


@dataclass(frozen=True)
class Gain:
    """What training won back on a metric: ``lost`` and ``won`` samples against the model before it.

    ``p`` is the one-sided p-value of the paired test (exact McNemar, with clusters the sign test
    over them) that the model got better, adjusted by Holm's procedure over the metrics looked at;
    ``alpha`` is that of the metric's budget.
    """

    task: str
    metric: str
    reference: float
    before: float
    after: float
    lost: int
    won: int
    p: float
    alpha: float = 0.05

    @property
    def shown(self) -> bool:
        """The paired test shows the gain."""
        return self.p <= self.alpha

    def __str__(self) -> str:
        return (
            f"{self.task} ({self.metric}): FP16 {self.reference:.2%}, quantized {self.before:.2%}, "
            f"fine-tuned "
            f"{self.after:.2%}: {self.won} won and {self.lost} lost, p(no gain) {self.p:.3g}"
        )


def gains(
    before: VerdictFamily, quantized: Mapping[str, TaskRun], trained: Mapping[str, TaskRun]
) -> list[Gain]:
    """The gain on every metric whose verdict in *before* is neither PASS nor GAIN; empty if there
    is nothing to win back.

    Args:
        before: the verdicts on the quantized model.
        quantized: its outcomes.
        trained: those of the fine-tuned model on the same samples.
    """
    open_ = [v for v in before.verdicts if v.decision not in (Decision.PASS, Decision.GAIN)]
    gains = [
        _gain(v, quantized[v.task].outcomes[v.metric], trained[v.task].outcomes[v.metric])
        for v in open_
    ]
    adjusted = (
        paired.holm([gain.p for gain in gains], [gain.alpha for gain in gains]) if gains else []
    )
    return [replace(gain, p=p) for gain, p in zip(gains, adjusted, strict=True)]


def _gain(verdict: Verdict, before: Outcomes, after: Outcomes) -> Gain:
    """The gain on the metric of *verdict*, its p-value not yet adjusted."""
    check_pair(before, after)
    won, lost = after.correct & ~before.correct, before.correct & ~after.correct
    net, sizes = clustering.cluster_sums(lost.astype(np.int64) - won, before.clusters)
    # The tests look for a loss: seen from the trained model, the one before it lost what was won.
    single = len(sizes) == len(won)
    p, _ = (
        paired.mcnemar(int(lost.sum()), int(won.sum())) if single else clustering.cluster_sign(net)
    )
    return Gain(
        verdict.task,
        verdict.metric,
        verdict.reference_accuracy,
        before.accuracy,
        after.accuracy,
        int(lost.sum()),
        int(won.sum()),
        p,
        verdict.budget.alpha,
    )


class FineTuned:
    """A case's quantized model, fine-tuned on the pairs that it was calibrated with."""

    def __init__(self, case: Case) -> None:
        self.case = case
        began = time.perf_counter()
        options, how = case.setting.options, TuningSettings()
        if options.batch_size is not None:
            how = replace(how, batch_size=min(how.batch_size, options.batch_size))
        trained = train(case.quantized.model, case.calibration, how, progress=options.progress)
        self.model, self.losses = trained.model, trained.losses
        self.seconds = time.perf_counter() - began

    @built
    def gains(self) -> list[Gain]:
        """What fine-tuning won back on every metric on which the case's recipe does not pass."""
        case = self.case
        subject = case.subject_of(case.quantized.recipe, self.model, quantize.fold(self.model))
        after = case.setting.evaluator.evaluate(subject, case.tasks, keep=False)
        return gains(case.verdicts, case.quantized_runs, after)
