"""Quantizing leaves the process as it found it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness import agreement, families, models, recipes
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
    with torch_functions_kept():  # bmm is swapped as well
        run(stray)
        assert F.scaled_dot_product_attention is not SDPA


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
