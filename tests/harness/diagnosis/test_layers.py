"""Errors by layer: the numbers against their definitions, and where a planted error shows."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from harness import compat  # noqa: F401  (before transformers)
from harness.diagnosis import layers
from harness.models import families
from harness.models.references import Reference


@pytest.fixture(scope="module")
def batch(reference: Reference) -> dict[str, Tensor]:
    """One batch for both towers."""
    return families.sample_inputs(reference.model)


def test_error_has_its_decibels() -> None:
    """A tenth of the signal as noise is 20 dB; turned by 60 degrees the cosine is a half."""
    r = torch.randn(5, 7, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    flat = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, math.sqrt(3) / 2]])

    assert layers.errors(r, 0.9 * r) == pytest.approx([20.0, 1.0])
    assert layers.errors(*flat) == pytest.approx([0.0, 0.5], abs=1e-6)


def test_equal_outputs_are_exact() -> None:
    """No noise is an infinite ratio, not a division by zero; no signal, or NaN, is not a ratio."""
    r = torch.ones(2, 3)

    assert layers.errors(r, r)[0] == math.inf
    assert math.isnan(layers.errors(torch.zeros(2, 3), r)[0])
    assert math.isnan(layers.errors(r, torch.full((2, 3), math.nan))[0])


def test_every_encoder_layer_is_named_once(reference: Reference, batch: dict[str, Tensor]) -> None:
    """Both towers' layers are there in order, and a model against itself is exact."""
    errors = layers.layer_errors(reference.model, reference.model, batch)
    config = reference.model.config

    assert [(e["tower"], e["layer"]) for e in errors if e["tower"] == "vision"] == [
        ("vision", i) for i in range(config.vision_config.num_hidden_layers)
    ]
    assert [(e["tower"], e["layer"]) for e in errors if e["tower"] == "text"] == [
        ("text", i) for i in range(config.text_config.num_hidden_layers)
    ]
    assert {e["sqnr_db"] for e in errors} == {math.inf}
    assert all(e["cosine"] == pytest.approx(1.0) for e in errors)


def test_a_planted_error_shows_from_its_layer_on(
    reference: Reference, batch: dict[str, Tensor]
) -> None:
    """Weights changed in vision layer 2 leave the layers before it, and the text tower, exact."""
    changed = copy.deepcopy(reference.model)
    with torch.no_grad():
        changed.get_submodule("vision_model.encoder.layers.2.mlp.fc1").weight.mul_(1.01)
    errors = {
        (e["tower"], e["layer"]): e for e in layers.layer_errors(reference.model, changed, batch)
    }

    for (tower, layer), error in errors.items():
        exact = tower == "text" or layer < 2
        assert (error["sqnr_db"] == math.inf) == exact
    assert 20 < errors["vision", 2]["sqnr_db"] < 80


def test_hooks_are_taken_off_again(reference: Reference, batch: dict[str, Tensor]) -> None:
    """Afterwards the model has the hooks that it had before, even where the forward fails.

    transformers leaves its own on a model of which hidden states were asked once.
    """

    def hooks() -> list[tuple[int, ...]]:
        return [tuple(module._forward_hooks) for module in reference.model.modules()]

    before = hooks()
    with pytest.raises(KeyError, match="input_ids"):
        layers.layer_errors(
            reference.model, reference.model, {"pixel_values": batch["pixel_values"]}
        )

    assert hooks() == before


def test_models_with_other_layers_are_refused(
    reference: Reference, batch: dict[str, Tensor]
) -> None:
    """A model that lacks a layer is an error that names it."""
    shorter = copy.deepcopy(reference.model)
    del shorter.vision_model.encoder.layers[-1]

    with pytest.raises(ValueError, match=r"vision_model\.encoder\.layers\.\d+"):
        layers.layer_errors(reference.model, shorter, batch)
