"""Quantization-aware training wins back what a recipe lost, and changes nothing but weights."""

from __future__ import annotations

from pathlib import Path

from harness.checks import checkpoint
from harness.checks.registry import NotJudged, check
from harness.diagnosis.qat import FineTuned, Gain
from harness.models import families
from harness.quantization import maps


@check("qat")
def loss_is_won_back(tuned: FineTuned) -> list[Gain]:
    """Return the metrics on which the recipe does not pass and the fine-tuned model is not
    better.
    """
    if not tuned.gains:
        raise NotJudged(f"{tuned.case.id} falls short on no task: there is nothing to win back")
    return [gain for gain in tuned.gains if not gain.shown]


@check("qat")
def calibration_did_not_move(tuned: FineTuned) -> list[str]:
    """Return the quantizers that fine-tuning changed: their ranges by bits, and everything else."""
    inputs = tuned.case.quantized.inputs
    after = maps.quantizer_map(tuned.model, lambda model: families.forward(model, inputs))
    return maps.diff(tuned.case.map, after, amax_tolerance=0.0)


@check("qat", form=checkpoint.FORMS)
def trained_model_is_restored(tuned: FineTuned, form: checkpoint.Form, folder: Path) -> list[str]:
    """Return what differs after the fine-tuned model was saved and restored in a fresh process."""
    return checkpoint.lost(tuned.case, tuned.model, form, folder / form)
