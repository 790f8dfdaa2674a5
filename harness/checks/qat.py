"""Quantization-aware training wins back what a recipe lost, and changes nothing but weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.checks import checkpoint
from harness.checks.registry import NotJudged, check
from harness.diagnosis import qat
from harness.diagnosis.qat import Gain, Trained
from harness.models import families
from harness.quantization import maps

if TYPE_CHECKING:
    from harness.gate.gate import Case, Gate


@check("qat")
def loss_is_won_back(gate: Gate, case: Case, trained: Trained) -> list[Gain]:
    """Return the metrics on which the recipe does not pass and the fine-tuned model is not better."""
    gains = qat.gains_of(gate, case, trained)
    if not gains:
        raise NotJudged(f"{case.id} passes on every task: there is nothing to win back")
    return [gain for gain in gains if not gain.shown]


@check("qat")
def calibration_did_not_move(gate: Gate, case: Case, trained: Trained) -> list[str]:
    """Return the quantizers that fine-tuning changed: their ranges by bits, and everything else."""
    inputs = gate.quantized(case).inputs
    after = maps.quantizer_map(trained.model, lambda model: families.forward(model, inputs))
    return maps.diff(gate.map(case), after, amax_tolerance=0.0)


@check("qat", form=checkpoint.FORMS)
def trained_model_is_restored(
    gate: Gate, case: Case, trained: Trained, form: checkpoint.Form, folder: Path
) -> list[str]:
    """Return what differs after the fine-tuned model was saved and restored in a fresh process."""
    return checkpoint.lost(gate, case, trained.model, form, folder / form)
