"""Outliers change what quantization sees and nothing else."""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from harness import compat  # noqa: F401
from harness.gate.options import Options
from harness.gate.session import Gate
from harness.models import families, outliers, references  # noqa: F401
from harness.models.outliers import Outliers, plant
from harness.quantization.quantize import forward_loop_over, quantize
from harness.recipes import loading

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def embedded() -> references.Reference:
    """The embedded model in FP16."""
    return references.load("embedded", CPU)


@pytest.fixture(scope="module")
def planted() -> references.Reference:
    """The embedded model with outliers."""
    return references.load("embedded+outliers", CPU)


def outputs(model: nn.Module) -> dict[str, torch.Tensor]:
    """What one forward of both towers gives, by name."""
    with torch.no_grad():
        embeddings = families.forward(model, families.sample_inputs(model, batch=4))
    return {name: embeddings[name].double() for name in ("vision", "text")}


def test_the_function_stays_in_fp16(
    embedded: references.Reference, planted: references.Reference
) -> None:
    """In FP16 the outputs with and without outliers differ by no more than FP16 rounding."""
    before, after = outputs(embedded.model), outputs(planted.model)

    for name, value in before.items():
        assert torch.allclose(
            after[name], value, rtol=2**-9, atol=2**-9 * float(value.abs().max())
        ), name


def test_the_function_stays_bit_for_bit_in_fp32() -> None:
    """In FP32, where no weight leaves the normal range, a factor that is a power of two changes no
    bit.
    """
    model = references.load("embedded", CPU, torch.float32).model
    changed = copy.deepcopy(model)

    plant(changed)

    after = outputs(changed)
    for name, value in outputs(model).items():
        assert torch.equal(after[name], value), name


def test_every_layer_of_both_towers_has_them(
    embedded: references.Reference, planted: references.Reference
) -> None:
    """Both norms of every layer carry the factor, in the same channels through a tower, and a tower
    has its own.
    """
    factors = plant(copy.deepcopy(embedded.model))

    config = embedded.model.config
    layers = {
        "vision": config.vision_config.num_hidden_layers,
        "text": config.text_config.num_hidden_layers,
    }
    for tower, count in layers.items():
        channels = {tuple(c) for path, c in factors.items() if path.startswith(f"{tower}_model")}
        assert sum(path.startswith(f"{tower}_model") for path in factors) == 2 * count
        assert len(channels) == 1
    for path, channels_of in factors.items():
        before, after = (r.model.get_submodule(path).weight for r in (embedded, planted))
        ratio = after / before
        assert torch.equal((ratio > 32).nonzero().flatten(), torch.tensor(channels_of)), path


def test_the_norms_really_put_out_outliers(
    embedded: references.Reference, planted: references.Reference
) -> None:
    """The largest output of a LayerNorm grows by more than ten times, while the median stays."""

    def seen(model: nn.Module) -> list[torch.Tensor]:
        magnitudes: list[torch.Tensor] = []
        norms = [m for n, m in model.named_modules() if n.endswith(("layer_norm1", "layer_norm2"))]
        hooks = [
            m.register_forward_hook(lambda _m, _i, o: magnitudes.append(o.float().abs()))
            for m in norms
        ]
        outputs(model)
        for hook in hooks:
            hook.remove()
        return magnitudes

    for plain, spiked in zip(seen(embedded.model), seen(planted.model), strict=True):
        assert spiked.max() > 10 * plain.max()
        assert spiked.median() < 1.1 * plain.median()


def test_the_channels_hang_on_the_seed_alone(embedded: references.Reference) -> None:
    """One seed always plants the same channels, another one others, and the share says how many."""
    first, again, other = (
        plant(copy.deepcopy(embedded.model), Outliers(seed=s)) for s in (3, 3, 4)
    )
    many = plant(copy.deepcopy(embedded.model), Outliers(share=0.05))

    assert first == again
    assert first != other
    width = embedded.model.config.vision_config.hidden_size
    assert len(next(iter(many.values()))) == round(0.05 * width)


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0, 48.0])
def test_a_factor_that_is_not_exact_is_refused(factor: float) -> None:
    """Only powers of two above one can be planted."""
    with pytest.raises(ValueError, match="power of two"):
        Outliers(factor=factor)


def test_a_share_out_of_bounds_is_refused() -> None:
    """All of the channels, or none, are no outliers."""
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match="share"):
            Outliers(share=share)


def test_a_model_without_known_layers_is_refused(embedded: references.Reference) -> None:
    """Where a tower has no layer to plant in, that is an error and not an unchanged model."""
    model = copy.deepcopy(embedded.model)
    model.text_model.encoder.layers = nn.ModuleList()

    with pytest.raises(ValueError, match="text tower"):
        plant(model)


def test_name_and_revision_tell_the_model_apart(
    embedded: references.Reference, planted: references.Reference
) -> None:
    """The reference is called embedded+outliers and has a revision of its own, which other outliers
    change.
    """
    assert (planted.name, planted.source) == ("embedded+outliers", "embedded+outliers")
    assert planted.revision == Outliers().revision(embedded.revision)
    assert (
        len(
            {embedded.revision, planted.revision, Outliers(factor=32.0).revision(embedded.revision)}
        )
        == 3
    )


def test_a_directory_may_carry_the_suffix(tmp_path: Path, embedded: references.Reference) -> None:
    """A checkpoint directory takes the suffix as 'embedded' does; one whose own name ends so is
    loaded as it is.
    """
    for name in ("clip", "mine+outliers"):
        shutil.copytree(references.EMBEDDED, tmp_path / name, copy_function=os.link)

    spiked = references.load(f"{tmp_path}/clip+outliers", CPU)
    plain = references.load(f"{tmp_path}/mine+outliers", CPU)

    assert spiked.name == "clip+outliers"
    assert spiked.revision == Outliers().revision(embedded.revision)
    assert plain.revision == embedded.revision


def test_the_gate_names_the_case() -> None:
    """Test ids and baselines of the gate carry the suffix."""
    gate = Gate(Options(recipes=("fp8",), clip_models=("embedded+outliers",)))

    assert [case.id for case in gate.cases()] == ["fp8-embedded+outliers"]


def cosine_loss(reference: references.Reference, recipe: str) -> float:
    """1 - mean cosine of the quantized model's image embeddings to the reference's, on the
    calibration pictures.
    """
    from harness.data import calibration

    pairs = calibration.load(None, reference, 64)
    batches = pairs.batches(CPU, torch.float16)
    model = quantize(reference.model, loading.load(recipe), forward_loop_over(batches))
    batch = next(iter(batches))
    with torch.no_grad():
        before, after = (
            families.encode(m, "vision", batch["pixel_values"]).double()
            for m in (reference.model, model)
        )
    return 1 - float(nn.functional.cosine_similarity(before, after).mean())


def test_they_break_per_tensor_int8_and_smoothquant_mends_it(
    embedded: references.Reference, planted: references.Reference
) -> None:
    """INT8 loses over twenty times as much on the stressed model, SmoothQuant brings it back, FP8
    hardly notices.
    """
    plain = {r: cosine_loss(embedded, r) for r in ("fp8", "int8", "int8-smoothquant")}
    spiked = {r: cosine_loss(planted, r) for r in ("fp8", "int8", "int8-smoothquant")}

    assert spiked["int8"] > 20 * plain["int8"]
    assert spiked["int8-smoothquant"] < 2 * plain["int8-smoothquant"]
    assert spiked["fp8"] < 3 * plain["fp8"]


def test_the_gate_decides_what_outliers_mean() -> None:
    """On the stressed model INT8 fails its budget, SmoothQuant wins it back, and FP8 holds."""
    options = Options(
        recipes=("fp8", "int8", "int8-smoothquant"),
        clip_models=("embedded+outliers",),
        tasks=("emoji100",),
        calibration_size=256,
    )
    gate = Gate(options)

    decisions = {case.recipe_name: case.verdicts.decision.value for case in gate.cases()}

    assert decisions == {"fp8": "PASS", "int8": "FAIL", "int8-smoothquant": "PASS"}
