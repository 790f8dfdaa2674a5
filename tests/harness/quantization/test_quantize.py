"""What is raised while a model is quantized is blamed on its cause."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.errors import UsageError
from harness.models import families, references
from harness.quantization.context import in_dtype
from harness.quantization.quantize import QuantizationError, blamed_on, forward_loop_over, quantize
from harness.recipes import loading
from harness.recipes.loading import Recipe


@pytest.fixture(scope="module")
def clip() -> nn.Module:
    """The embedded model."""
    model: nn.Module = references.load("embedded", torch.device("cpu")).model
    return model


def fp8(**attributes: Any) -> Recipe:
    """The recipe fp8 with other attributes of its inputs."""
    recipe = loading.load("fp8")
    config = copy.deepcopy(recipe.quant_cfg)
    for entry in config["quant_cfg"]:
        if entry["quantizer_name"] == "*input_quantizer":
            entry["cfg"].update(attributes)
    return dataclasses.replace(recipe, quant_cfg=config)


def broken(error: Exception) -> Any:
    """Calibration data whose first batch raises *error*."""

    class Batches:
        def __iter__(self) -> Iterator[dict[str, Tensor]]:
            raise error

    return Batches()


@pytest.mark.parametrize(
    "error",
    [
        UsageError("8.jpg", "is cut off", "Copy it again."),
        OSError("disk on fire"),
        ValueError("no picture"),
    ],
)
@pytest.mark.parametrize("recipe", ["fp8", "auto-fp8-int4"])
def test_an_error_of_the_data_is_not_the_recipes(
    clip: nn.Module, recipe: str, error: Exception
) -> None:
    """What the calibration data raise comes out as it is, of a search for formats too."""
    with pytest.raises(type(error)) as raised:
        quantize(clip, loading.load(recipe), forward_loop_over(broken(error)))

    assert raised.value is error


def test_the_gates_own_error_is_found_under_others() -> None:
    """A usage error that ModelOpt caught and raised again as another one is still a usage error."""

    def calibrate() -> None:
        try:
            raise UsageError("8.jpg", "is cut off", "Copy it again.")
        except UsageError as error:
            raise RuntimeError("calibration failed") from error

    with pytest.raises(UsageError, match=r"8\.jpg"), blamed_on(loading.load("fp8")):
        calibrate()


def test_a_refused_recipe_is_named_with_modelopts_reason_on_one_line(clip: nn.Module) -> None:
    """ModelOpt raises while it converts the model: the recipe is refused, and the reason is its
    own.
    """
    refused = fp8()
    refused.quant_cfg["quant_cfg"].append({"quantizer_name": "*", "enable": False})

    with pytest.raises(QuantizationError, match="no weight quantizer is enabled") as raised:
        quantize(clip, refused, forward_loop_over([families.sample_inputs(clip)]))

    assert raised.value.headline.startswith("ModelOpt refused recipe fp8: RuntimeError: ")
    assert "\n" not in str(raised.value)


def test_a_forward_that_raises_is_not_called_a_refusal(clip: nn.Module) -> None:
    """A scale per row of the batch holds for that number of rows only: the second batch, a shorter
    one, raises.
    """
    batches = [families.sample_inputs(clip, batch=n) for n in (3, 2)]

    with pytest.raises(QuantizationError) as raised:
        quantize(clip, fp8(axis=0), forward_loop_over(batches))

    assert raised.value.in_forward
    assert raised.value.headline.startswith("the model that recipe fp8 quantizes does not run: ")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 "
            "bytes."
        ),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    ],
)
def test_exhausted_memory_is_named_with_the_option_that_helps(
    clip: nn.Module, error: Exception
) -> None:
    """In a forward the rows are named, elsewhere the recipe: and neither is called a refusal of
    ModelOpt's.
    """
    model = copy.deepcopy(clip)

    def fail(*_: Any) -> Tensor:
        raise error

    with (
        pytest.raises(UsageError, match=r"recipe fp8: out of memory .* --batch-size N"),
        blamed_on(fp8()),
    ):
        fail()
    model.text_model.encoder.layers[1].mlp.fc1.forward = fail  # type: ignore[union-attr,index]
    with pytest.raises(UsageError, match=r"the text tower over 6 rows .*--batch-size 3"):
        families.forward(model, families.sample_inputs(model, batch=6))
    with pytest.raises(UsageError, match="more memory"):
        families.forward(model, families.sample_inputs(model, batch=2))


def test_memory_that_is_really_exhausted_is_named() -> None:
    """The words of torch's own allocator, of more bytes than any machine has."""
    with pytest.raises(UsageError, match="out of memory"), blamed_on(fp8()):
        torch.empty(1 << 60, dtype=torch.uint8)


def test_svdquants_branch_follows_the_model_into_another_dtype() -> None:
    """A copy in float32 computes what the FP16 model does; ModelOpt leaves the branch in FP16 and
    raises.
    """
    import modelopt.torch.quantization as mtq

    torch.manual_seed(0)
    entries = [
        {"quantizer_name": "*", "enable": False},
        {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": 4, "block_sizes": {-1: 16}}},
    ]
    x = torch.randn(8, 64).half()
    config = {"quant_cfg": entries, "algorithm": {"method": "svdquant", "lowrank": 4}}
    quantized = mtq.quantize(nn.Sequential(nn.Linear(64, 32)).half(), config, lambda m: m(x))

    with torch.no_grad():
        result, expected = in_dtype(quantized, torch.float32)(x.float()), quantized(x)

        torch.testing.assert_close(result, expected.float(), rtol=1e-2, atol=1e-2)
        with pytest.raises(RuntimeError, match="same dtype"):
            quantized.float()(x.float())
