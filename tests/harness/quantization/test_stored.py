"""Double quantization: the oracle is QLoRA's definition, ModelOpt's packed NF4 follows it but for
what is listed, and the gate measures what is stored.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from harness import formats
from harness.data import calibration
from harness.formats import deviations, nf4
from harness.models import families, references
from harness.quantization import maps, stored
from harness.quantization.quantize import fold, forward_loop_over, quantize
from harness.recipes import loading

CPU = torch.device("cpu")
#: As published with QLoRA (arXiv 2305.14314, appendix E).
PUBLISHED = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Gaussian numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_levels_are_the_published_ones() -> None:
    """Bit for bit; quantiles of the normal distribution in double precision give twelve of the
    sixteen otherwise.
    """
    outermost = 1 - (1 / 32 + 1 / 30) / 2
    above = stats.norm.ppf(np.linspace(outermost, 0.5, 9)[:-1])
    below = -stats.norm.ppf(np.linspace(outermost, 0.5, 8)[:-1])
    computed = (np.sort(np.concatenate([above, [0.0], below])) / above.max()).astype(np.float32)

    assert nf4.levels().tolist() == [float(np.float32(level)) for level in PUBLISHED]
    assert int((nf4.levels() != computed).sum()) == 12
    assert 1.7e-7 < float(np.abs(nf4.levels() - computed).max()) < 1.9e-7


def test_every_number_is_the_nearest_level_of_a_stored_scale() -> None:
    """Searched in float64 with one scale block after the other: no level is nearer, and scales err
    by half a step.
    """
    x = noise(40, 64)

    levels = formats.double_quantized(x, 64, 8, 8).astype(np.float64)

    values = x.numpy().astype(np.float64)
    scale = np.abs(values).max(1)
    largest = np.abs(levels).max(1)  # the largest magnitude of each block is at level 1 or -1
    steps = np.abs(scale - scale.mean()).reshape(-1, 8).max(1).repeat(8) / 127
    assert (np.abs(largest - scale) <= steps / 2 * 1.001).all()
    level = levels / largest[:, None]
    table = np.asarray(PUBLISHED)
    distance = np.abs(values[:, :, None] / scale[:, None, None] - table)
    assert (np.abs(level[:, :, None] - table).min(-1) < 1e-6).all()
    assert (np.abs(values / scale[:, None] - level) <= distance.min(-1) + 1e-6).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_stored_scales_have_as_many_values_as_their_bits(bits: int) -> None:
    """Fewer bits leave fewer scales, and both extremes of a scale block are among them exactly."""
    x = noise(256, 64)

    largest = np.abs(formats.double_quantized(x, 64, 256, bits)).max(1)

    assert 2 < len(np.unique(largest)) <= 2**bits - 1


@pytest.mark.parametrize("value", [0.0, 0.75])
def test_scales_that_are_all_alike_are_kept(value: float) -> None:
    """Without any spread of scales nothing divides by zero: the numbers come back as they were."""
    x = np.full((4, 64), value, np.float32)

    assert np.array_equal(formats.double_quantized(x, 64, 4, 8), x)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    ("shape", "scale_block"), [((64, 256), 256), ((128, 192), 4096), ((96, 96), 256), ((5, 50), 8)]
)
def test_the_packed_tensor_follows_the_oracle_with_modelopts_rules(
    shape: tuple[int, int], scale_block: int, seed: int
) -> None:
    """One block of scales, full or filled up, with incomplete blocks too: every bit is the
    oracle's.
    """
    x = noise(*shape, seed=seed)

    packed = deviations.packed_nf4(x, 64, scale_block)

    expected = formats.double_quantized(x, 64, scale_block, 8, deviations.PACKED_NF4)
    assert formats.same_bits(packed, torch.from_numpy(expected)).all()


def test_compress_stores_what_is_read_back() -> None:
    """A layer under ``mtq.compress`` computes with the numbers that accuracy is measured on."""
    import modelopt.torch.quantization as mtq

    torch.manual_seed(0)
    blocks = {-1: 64, "scale_bits": 8, "scale_block_sizes": {-1: 64}}
    entries: list[dict[str, Any]] = [
        {"quantizer_name": "*", "enable": False},
        {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": 4, "block_sizes": blocks}},
    ]
    x = noise(3, 128)
    quantized = mtq.quantize(
        nn.Sequential(nn.Linear(128, 32, bias=False)),
        {"quant_cfg": entries, "algorithm": "max"},
        lambda m: m(x),
    )
    weight = quantized[0].weight.detach().clone()

    mtq.compress(quantized)

    expected = stored.read_back(weight, 64, 64, 8)
    assert expected is not None
    with torch.no_grad():
        torch.testing.assert_close(quantized(x), x @ expected.T, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def quantized() -> nn.Module:
    """The embedded model under the recipe for double quantization."""
    reference = references.load("embedded", CPU)
    batches = calibration.load(None, reference, 8).batches(CPU, torch.float16, batch_size=8)
    return quantize(
        reference.model, loading.load("int4-double-quantization"), forward_loop_over(batches)
    )


def test_what_is_stored_is_told_apart_from_what_is_computed(quantized: nn.Module) -> None:
    """All 44 Linears are named: they fake-quantize as INT4 blocks and are stored as NF4 (S14)."""
    (problem,) = stored.problems(quantized)

    assert problem.rule == "fake quantization is not what is stored"
    assert len(problem.names) == 44


def test_weights_that_cannot_be_read_back_are_told(quantized: nn.Module) -> None:
    """With QLoRA's blocks of 256 scales ModelOpt reads most weights back no more; these are named
    apart.
    """
    for _, module in stored.weights(quantized):
        module.weight_quantizer.block_sizes["scale_block_sizes"] = {-1: 256}
    try:
        rules = {problem.rule: len(problem.names) for problem in stored.problems(quantized)}
    finally:
        for _, module in stored.weights(quantized):
            module.weight_quantizer.block_sizes["scale_block_sizes"] = {-1: 4096}

    assert set(rules) == {
        "fake quantization is not what is stored",
        "stored weights cannot be read back",
    }
    assert sum(rules.values()) == 44


def test_the_folded_copy_has_the_stored_numbers(quantized: nn.Module) -> None:
    """Accuracy is measured on what ModelOpt stores, not on its fake quantization; the model itself
    is left alone.
    """
    inputs = families.sample_inputs(quantized)
    before = {name: p.detach().clone() for name, p in quantized.named_parameters()}

    folded = fold(quantized)

    for name, module in stored.weights(quantized):
        expected = stored.read_back(module.weight, 64, 4096, 8)
        assert expected is not None
        assert torch.equal(folded.get_parameter(f"{name}.weight"), expected)
    assert not any(
        q.enabled for q in maps.quantizer_map(folded, lambda m: families.forward(m, inputs))
    )
    assert all(torch.equal(p, before[name]) for name, p in quantized.named_parameters())


def test_other_recipes_have_no_such_weights() -> None:
    """INT4 blocks without quantized scales are stored as they are computed."""
    reference = references.load("embedded", CPU)

    assert stored.problems(quantize(reference.model, loading.load("int4-block"), None)) == []
