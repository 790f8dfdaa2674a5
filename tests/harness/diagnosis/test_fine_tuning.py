"""Fine-tuning of a quantized model: the loss, what moves and what does not, and what counts as won
back.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.data import calibration
from harness.data.calibration import CalibrationPairs
from harness.data.tasks import Outcomes, TaskRun
from harness.diagnosis import qat
from harness.diagnosis.qat import Trained, TuningSettings
from harness.errors import UsageError
from harness.gate.case import Case
from harness.gate.options import Options
from harness.gate.session import Gate
from harness.models import families, references
from harness.models.references import Reference
from harness.quantization import maps, quantize
from harness.quantization.contrastive import contrastive, differentiable_attention
from harness.recipes import loading
from harness.statistics import verdicts
from harness.statistics.verdicts import Budget, Decision

CPU = torch.device("cpu")
FEW = TuningSettings(steps=3, batch_size=16)


@pytest.fixture(scope="module")
def reference() -> Reference:
    """The embedded model with planted outliers."""
    return references.load("embedded+outliers", CPU)


@pytest.fixture(scope="module")
def pairs(reference: Reference) -> CalibrationPairs:
    """A few of its calibration pairs."""
    return calibration.load(None, reference, 48)


@pytest.fixture(scope="module")
def quantized(reference: Reference, pairs: CalibrationPairs) -> torch.nn.Module:
    """Under INT8, calibrated."""
    batches = pairs.batches(CPU, reference.dtype)
    return quantize.quantize(
        reference.model, loading.load("int8"), quantize.forward_loop_over(batches)
    )


def test_the_loss_is_the_mean_cross_entropy_of_both_directions() -> None:
    """Of two pairs at right angles: log(1 + exp(-temperature)) each way; lengths do not count."""
    vision = torch.tensor([[3.0, 0.0], [0.0, 0.5]])
    text = torch.tensor([[1.0, 0.0], [0.0, 2.0]])

    loss = contrastive({"vision": vision, "text": text}, 4.0)
    swapped = contrastive({"vision": vision.flip(0), "text": text}, 4.0)

    assert float(loss) == pytest.approx(math.log1p(math.exp(-4.0)), rel=1e-4)
    assert float(swapped) == pytest.approx(4.0 + math.log1p(math.exp(-4.0)), rel=1e-4)


def test_weights_move_and_ranges_do_not(
    quantized: torch.nn.Module, pairs: CalibrationPairs
) -> None:
    """Every matrix of both towers moves; every buffer has its bits; the model that came in stays as
    it is.
    """
    everything = [*quantized.named_parameters(), *quantized.named_buffers()]
    before = {name: value.clone() for name, value in everything}

    trained = qat.train(quantized, pairs, FEW)

    assert all(torch.equal(value, before[name]) for name, value in everything)
    assert len(trained.losses) == FEW.steps
    for name, value in trained.model.named_buffers():
        assert torch.equal(value, before[name]), name
    moved = {n for n, p in trained.model.named_parameters() if not torch.equal(p, before[n])}
    matrices = {n for n, p in trained.model.named_parameters() if p.dim() > 1}
    assert moved == matrices
    assert {p.dtype for p in trained.model.parameters()} == {torch.float16}
    assert not any(p.requires_grad for p in trained.model.parameters())


def test_training_is_of_the_seed(quantized: torch.nn.Module, pairs: CalibrationPairs) -> None:
    """The same losses again, others from another seed: the batches are others."""
    first, again = (qat.train(quantized, pairs, FEW).losses for _ in range(2))
    other = qat.train(quantized, pairs, dataclasses.replace(FEW, seed=1)).losses

    assert first == again
    assert first != other


def test_more_steps_than_an_epoch_has(quantized: torch.nn.Module, pairs: CalibrationPairs) -> None:
    """After the last whole batch the pairs come again, in another order; an incomplete batch is
    left out.
    """
    how = TuningSettings(steps=5, batch_size=20)

    batches = list(qat._batches(pairs, how, CPU))

    assert [len(b["input_ids"]) for b in batches] == [20] * 5
    assert not torch.equal(batches[0]["pixel_values"], batches[2]["pixel_values"])


def test_exhausted_memory_in_the_backward_is_named(
    quantized: torch.nn.Module, pairs: CalibrationPairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step's pairs and the option that makes them fewer are in one line; any other error stays
    as it is.
    """
    original = contrastive

    def raising(error: Exception) -> Callable[..., Tensor]:
        def fail(_: Tensor) -> None:
            raise error

        def loss(*arguments: Any) -> Tensor:
            output = original(*arguments)
            output.register_hook(fail)  # type: ignore[no-untyped-call]
            return output

        return loss

    monkeypatch.setattr(
        qat, "contrastive", raising(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"))
    )
    with pytest.raises(UsageError, match=r"step of fine-tuning over 16 pairs .* --batch-size 8\."):
        qat.train(quantized, pairs, FEW)
    monkeypatch.setattr(qat, "contrastive", raising(RuntimeError("no such dimension")))
    with pytest.raises(RuntimeError, match="no such dimension"):
        qat.train(quantized, pairs, FEW)


def test_the_option_bounds_the_pairs_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """``--batch-size`` is what the message about exhausted memory proposes, so a step has no more
    pairs than that.
    """
    sizes = []

    def train(model: Any, pairs: Any, how: TuningSettings, progress: bool) -> Trained:
        sizes.append(how.batch_size)
        return Trained(model, ())

    monkeypatch.setattr(Case, "quantized", SimpleNamespace(model=None))
    monkeypatch.setattr(Case, "calibration", None)
    monkeypatch.setattr(qat, "train", train)

    for size in (None, 8, 4096):
        gate = Gate(Options(recipes=("int8",), batch_size=size))
        qat.FineTuned(gate.cases()[0])

    assert sizes == [128, 8, 128]


def test_the_workaround_computes_the_same_and_is_still_needed(
    reference: Reference, pairs: CalibrationPairs
) -> None:
    """ModelOpt 0.47's wrapped attention has no backward; with the workaround there is one, and the
    bits are equal.

    When the first half fails, ``contrastive.differentiable_attention`` can go.
    """
    batch = next(iter(pairs.batches(CPU, torch.float32)))
    quantized = quantize.quantize(
        reference.model.float(), loading.load("fp8"), quantize.forward_loop_over([batch])
    ).requires_grad_(True)
    reference.model.half()
    plain = families.forward(quantized, batch)
    with pytest.raises(NotImplementedError, match="backward"):
        plain["vision"].sum().backward()  # type: ignore[no-untyped-call]

    with differentiable_attention():
        differentiable = families.forward(quantized, batch)
        differentiable["vision"].sum().backward()  # type: ignore[no-untyped-call]

    assert torch.equal(plain["vision"], differentiable["vision"])
    weight = quantized.get_parameter("vision_model.encoder.layers.0.self_attn.q_proj.weight")
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0


def test_ranges_that_moved_are_told(quantized: torch.nn.Module) -> None:
    """A range one bit off is a difference of the maps, by bits."""
    before = maps.quantizer_map(quantized)
    name, quantizer = next(
        (n, q) for n, q in maps.tensor_quantizers(quantized).items() if q.is_enabled
    )
    amax = quantizer.amax.clone()
    quantizer.amax = torch.nextafter(amax.float(), torch.tensor(math.inf)).to(amax.dtype)
    try:
        if torch.equal(quantizer.amax, amax):  # half precision: one ulp of it
            quantizer.amax = amax * (1 + 2**-10)
        problems = maps.diff(before, maps.quantizer_map(quantized), amax_tolerance=0.0)
    finally:
        quantizer.amax = amax

    assert problems, name
    assert maps.diff(before, maps.quantizer_map(quantized), amax_tolerance=0.0) == []


def runs(correct: np.ndarray) -> dict[str, TaskRun]:
    """A run of one task with these samples right."""
    n = len(correct)
    outcomes = Outcomes(
        task="t",
        metric="acc1",
        sample_ids=tuple(map(str, range(n))),
        correct=correct,
        answers=np.zeros(n, np.int32),
        targets=np.zeros(n, np.int32),
        top5=np.zeros((n, 5), np.int32),
        margins=np.zeros(n, np.float32),
        clusters=np.arange(n, dtype=np.int32),
        scores=None,
    )
    empty = np.zeros((n, 2), np.float32)
    return {"t": TaskRun("t", {"acc1": outcomes}, empty, empty)}


@pytest.mark.parametrize(("won_back", "gained"), [(30, True), (3, False), (-30, False)])
def test_a_gain_is_what_the_paired_test_shows(won_back: int, gained: bool) -> None:
    """30 of 60 lost samples back is a gain, 3 with as many lost is not one, and a further loss is
    not.
    """
    reference, before = np.ones(400, bool), np.ones(400, bool)
    before[:60] = False
    after = before.copy()
    if won_back > 0:
        after[:won_back] = True
    after[-3 if won_back == 3 else (-30 if won_back < 0 else 400) :] = False
    family = verdicts.family(
        [
            verdicts.compare(
                runs(reference)["t"].outcomes["acc1"],
                runs(before)["t"].outcomes["acc1"],
                Budget(points=2.5),
            )
        ]
    )

    (gain,) = qat.gains(family, runs(before), runs(after))

    assert (gain.p < 0.05) is gained
    assert (gain.before, gain.after) == (before.mean(), after.mean())
    assert (gain.won, gain.lost) == (max(won_back, 0), int((before & ~after).sum()))


def test_nothing_is_won_back_where_nothing_was_lost() -> None:
    """A recipe that passes everywhere has no gain to show, nor has one that is better than is
    plausible.
    """
    right, half = np.ones(400, bool), np.arange(400) % 2 == 0
    budget = Budget(points=2.5, most_gain=1.0)
    for before, decision in ((right, Decision.PASS), (half, Decision.GAIN)):
        sides = runs(before)["t"].outcomes["acc1"], runs(right)["t"].outcomes["acc1"]
        family = verdicts.family([verdicts.compare(*sides, budget)])

        assert family.decision is decision
        assert qat.gains(family, runs(right), runs(right)) == []
