"""Quantizing leaves the process as it found it, and FP16 products on a CPU without FP16 are the right ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness import agreement, families, models, recipes
from harness.inputs import half_products
from harness.quantize import QuantizationError, in_dtype, quantize, torch_functions_kept

SDPA = F.scaled_dot_product_attention


@pytest.fixture
def stray() -> Any:
    """A model in whose first attention block the forward raises, quantized."""
    made: Any = quantize(models.load("embedded", torch.device("cpu")).model, recipes.load("fp8"), None)

    def fail(*_: Any) -> Tensor:
        raise ArithmeticError("no memory")

    made.vision_model.encoder.layers[0].self_attn.out_proj.forward = fail
    return made


def run(model: nn.Module) -> None:
    """One forward that raises."""
    with pytest.raises(ArithmeticError), torch.no_grad():
        families.forward(model, families.sample_inputs(model))


def test_modelopt_leaves_attention_swapped_when_a_forward_raises(stray: nn.Module) -> None:
    """The defect that is worked around: when this fails, ModelOpt has mended it and the workaround can go."""
    try:
        run(stray)
        assert F.scaled_dot_product_attention is not SDPA
    finally:
        F.scaled_dot_product_attention = SDPA


def test_functions_of_torch_are_put_back(stray: nn.Module) -> None:
    """Within the block a forward may raise: the functions of torch that ModelOpt swaps are torch's own again."""
    with torch_functions_kept():
        run(stray)

    assert F.scaled_dot_product_attention is SDPA


def test_a_calibration_that_raises_leaves_torch_as_it_was() -> None:
    """A recipe that ModelOpt refuses in the middle of a forward spoils no other model of the process."""
    reference = models.load("embedded", torch.device("cpu")).model

    def loop(model: Any) -> None:
        model.text_model.encoder.layers[1].self_attn.out_proj.forward = None
        families.forward(model, families.sample_inputs(model))

    with pytest.raises(QuantizationError, match="TypeError"):
        quantize(reference, recipes.load("fp8"), loop)

    assert F.scaled_dot_product_attention is SDPA


def test_an_attention_that_was_left_swapped_is_named(stray: nn.Module) -> None:
    """The gate tells a model that attends through another one's quantizers, and says how that came."""
    reference, recipe = models.load("embedded", torch.device("cpu")).model, recipes.load("fp8")
    made, inputs = quantize(reference, recipe, None), families.sample_inputs(reference)
    with torch_functions_kept():
        run(stray)
        (problem,) = agreement.with_reference(made, reference, recipe, inputs)

    assert "is not torch's own" in problem.mend
    assert agreement.with_reference(made, reference, recipe, inputs) == []


# -- products -------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without FP16 arithmetic, whatever this one has."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: False)


def drawn(*shape: int, scale: float = 1.0) -> Tensor:
    """FP16 numbers of a seeded normal distribution."""
    return (scale * torch.randn(*shape, generator=torch.Generator().manual_seed(5))).half()


@pytest.mark.usefixtures("no_half")
@pytest.mark.parametrize("shape", [(192,), (1, 192), (3, 37, 192), (64, 37, 192), (0, 192)])
def test_half_products_are_sums_in_single_precision_rounded_once(shape: tuple[int, ...]) -> None:
    """|y - x W' - b| is at most half an ulp of FP16, and the error of an FP32 sum."""
    x, weight, bias = drawn(*shape), drawn(96, 192, scale=0.05), drawn(96)

    with half_products():
        found = F.linear(x, weight, bias)

    exact = F.linear(x.double(), weight.double(), bias.double())
    assert found.dtype is torch.float16
    assert found.shape == exact.shape
    assert torch.all((found.double() - exact).abs() <= exact.abs() * 2**-11 + 1e-5)


@pytest.mark.usefixtures("no_half")
@pytest.mark.parametrize("rows", [1, 2, 7, 259, 511, 513])
def test_half_products_do_not_depend_on_the_other_rows(rows: int) -> None:
    """A row's product has the same bits in a batch of any size."""
    x, weight = drawn(1200, 768), drawn(192, 768, scale=0.05)

    with half_products():
        whole, part = F.linear(x, weight), F.linear(x[:rows], weight)

    assert torch.equal(whole[:rows], part)


@pytest.mark.usefixtures("no_half")
def test_half_products_of_pictures() -> None:
    """A convolution of FP16 pictures is the one in FP32, rounded once."""
    conv = nn.Conv2d(3, 16, 8, stride=8, bias=False).half().requires_grad_(False)
    x = drawn(4, 3, 48, 48)

    with half_products():
        found = conv(x)

    assert torch.equal(found, conv.float()(x.float()).half())


@pytest.mark.usefixtures("no_half")
def test_half_products_leave_other_types_alone() -> None:
    """FP32 and BF16 products are torch's own, within the block; behind it so are those of FP16."""
    x, weight = drawn(33, 64).float(), drawn(16, 64).float()
    linear, conv2d = F.linear, F.conv2d
    expected = [linear(x, weight), linear(x.bfloat16(), weight.bfloat16())]

    with half_products():
        found = [F.linear(x, weight), F.linear(x.bfloat16(), weight.bfloat16())]

    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert (F.linear, F.conv2d) == (linear, conv2d)


def test_half_products_are_torchs_where_the_processor_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU with FP16 arithmetic nothing is swapped."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: True)
    linear = F.linear

    with half_products():
        assert F.linear is linear


def test_gradients_pass_through_half_products() -> None:
    """Where a gradient is wanted, the product of FP16 matrices has torch's own gradient but for rounding."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(6, 32, generator=generator).half().requires_grad_(True)
    weight = torch.randn(16, 32, generator=generator).half()

    with half_products():
        product = F.linear(x, weight)
        (gradient,) = torch.autograd.grad(product.float().sum(), x)

    assert product.dtype is torch.float16
    torch.testing.assert_close(gradient, weight.float().sum(0).half().expand(6, 32), rtol=2e-3, atol=2e-3)


def test_svdquants_branch_follows_the_model_into_another_dtype() -> None:
    """A copy in float32 computes what the FP16 model does; ModelOpt leaves the branch in FP16 and raises."""
    import modelopt.torch.quantization as mtq

    torch.manual_seed(0)
    entries = [
        {"quantizer_name": "*", "enable": False},
        {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": 4, "block_sizes": {-1: 16}}},
    ]
    x = torch.randn(8, 64).half()
    config = {"quant_cfg": entries, "algorithm": {"method": "svdquant", "lowrank": 4}}
    made = mtq.quantize(nn.Sequential(nn.Linear(64, 32)).half(), config, lambda m: m(x))

    with torch.no_grad():
        found, expected = in_dtype(made, torch.float32)(x.float()), made(x)

        torch.testing.assert_close(found, expected.float(), rtol=1e-2, atol=1e-2)
        with pytest.raises(RuntimeError, match="same dtype"):
            made.float()(x.float())
