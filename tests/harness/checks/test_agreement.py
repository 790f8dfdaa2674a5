"""A model that is what its recipe, its data and its folded copy say passes; one that is not is
named.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import written
from torch import nn

from harness.checks import agreement, insertion
from harness.data import calibration
from harness.models import references
from harness.quantization.attention import attention_registered
from harness.quantization.magnitudes import Magnitudes
from harness.quantization.maps import quantizer_map, state, tensor_quantizers
from harness.quantization.quantize import fold, forward_loop_over, insert, quantize
from harness.recipes import finding, loading

CPU = torch.device("cpu")
FC1 = "vision_model.encoder.layers.1.mlp.fc1"


@pytest.fixture(scope="module")
def batches(reference: references.Reference) -> Iterable[dict[str, torch.Tensor]]:
    """Sixteen calibration pairs in two batches."""
    return calibration.load(None, reference, 16).batches(CPU, torch.float16, batch_size=8)


@pytest.fixture(scope="module")
def data(reference: references.Reference, batches: Any) -> Magnitudes:
    """What those pairs give at every quantizer's place."""
    return Magnitudes(insert(reference.model), batches)


@pytest.fixture(scope="module")
def fp8(reference: references.Reference, batches: Any) -> nn.Module:
    """The embedded model in FP8."""
    return quantize(reference.model, loading.load("fp8"), forward_loop_over(batches))


@pytest.fixture
def model(fp8: nn.Module) -> nn.Module:
    """A copy of it to spoil."""
    with attention_registered(fp8, "diffusers"):
        return copy.deepcopy(fp8)


@pytest.mark.parametrize("name", finding.DEFAULT)
def test_every_default_recipe_agrees_with_its_model(
    name: str, reference: references.Reference, batches: Any, data: Magnitudes
) -> None:
    """What ModelOpt makes of each default recipe agrees with the recipe, with the data and with its
    folded copy.
    """
    recipe = loading.load(name)
    quantized = quantize(reference.model, recipe, forward_loop_over(batches))

    assert agreement.with_recipe(quantized, recipe) == []
    assert agreement.with_data(quantized, recipe, data) == []
    assert agreement.with_folded(quantized, fold(quantized), next(iter(batches))) == []


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("num_bits", 8),
        ("num_bits", (5, 2)),
        ("axis", 0),
        ("unsigned", True),
        ("narrow_range", True),
        ("block_sizes", {-1: 16}),
    ],
)
def test_an_attribute_that_the_recipe_does_not_say(
    model: nn.Module, attribute: str, value: Any
) -> None:
    """A quantizer with any other attribute than its recipe entry gives it is named, with both
    values.
    """
    before = quantizer_map(model)
    setattr(tensor_quantizers(model)[f"{FC1}.input_quantizer"], f"_{attribute}", value)

    (problem,) = agreement.with_recipe(model, loading.load("fp8"), before)

    assert problem.rule == "not what the recipe says"
    assert f"{FC1}.input_quantizer: {attribute} is {value}" in problem.names[0]


def test_a_general_recipe_of_modelopts_with_constant_ranges(
    reference: references.Reference, batches: Any, data: Magnitudes
) -> None:
    """Ten of them fix the range of k and v at 448: the map says so, and nothing is called
    uncalibrated.
    """
    recipe = loading.load("general/ptq/fp8_default-kv_fp8_cast")
    quantized = quantize(reference.model, recipe, forward_loop_over(batches))
    quantizers = quantizer_map(quantized)

    assert agreement.with_recipe(quantized, recipe, quantizers) == []
    assert agreement.with_data(quantized, recipe, data) == []
    assert insertion.uncalibrated(quantizers, recipe) == []
    states = {state(q) for q in quantizers if q.kind in ("k_bmm", "v_bmm") and q.enabled}
    assert states == {"E4M3 per-tensor constant 448"}


def test_ranges_that_the_recipe_fixes(
    tmp_path: Path, reference: references.Reference, batches: Any, data: Magnitudes
) -> None:
    """Constants agree with their recipe and not with another; they are not held against the
    data.
    """
    linears = written.DENY_ALL + written.entry("*weight_quantizer", "num_bits: e4m3", "nn.Linear")

    def fixed(cfg: str) -> loading.Recipe:
        return written.recipe(
            tmp_path, linears + written.entry("*fc1.input_quantizer", f"num_bits: e4m3, {cfg}")
        )

    recipe = fixed("constant_amax: 56.0")
    quantized = quantize(reference.model, recipe, forward_loop_over(batches))
    always = quantize(reference.model, fixed("use_constant_amax: true"), forward_loop_over(batches))

    assert agreement.with_recipe(quantized, recipe) == []
    assert agreement.with_data(quantized, recipe, data) == []
    assert agreement.with_folded(quantized, fold(quantized), next(iter(batches))) == []
    assert agreement.with_recipe(always, fixed("use_constant_amax: true")) == []
    assert agreement.with_data(always, fixed("use_constant_amax: true"), data) == []
    (problem,) = agreement.with_recipe(quantized, fixed("constant_amax: 28.0"))
    assert len(problem.names) == 7
    assert "fc1.input_quantizer: the range is [56.0], the recipe fixes 28.0 (" in problem.names[0]
    (problem,) = agreement.with_recipe(always, fixed("axis: null"))
    assert "use_constant_amax is True, the recipe says False" in problem.names[0]


def test_a_dynamic_quantizer_where_static_is_said(model: nn.Module) -> None:
    """Scales computed at run time where the recipe says nothing of them are named."""
    tensor_quantizers(model)[f"{FC1}.input_quantizer"]._dynamic = True

    (problem,) = agreement.with_recipe(model, loading.load("fp8"))

    assert "scales are dynamic" in problem.names[0]


def test_a_quantizer_switched_against_the_recipe(model: nn.Module) -> None:
    """One off that the recipe turns on, and one on that it turns off, are both named."""
    tensor_quantizers(model)[f"{FC1}.input_quantizer"].disable()
    tensor_quantizers(model)["text_model.encoder.layers.0.layer_norm1.input_quantizer"].enable()

    (problem,) = agreement.with_recipe(model, loading.load("fp8"))

    assert problem.rule == "not as the recipe switches it"
    assert sorted(problem.names) == [
        "text_model.encoder.layers.0.layer_norm1.input_quantizer is on",
        f"{FC1}.input_quantizer is off",
    ]


@pytest.mark.parametrize(("switch", "value"), [("_if_quant", False), ("_if_calib", True)])
def test_an_enabled_quantizer_that_quantizes_nothing(
    model: nn.Module, switch: str, value: bool
) -> None:
    """A quantizer left in calibration mode is enabled, and named all the same."""
    setattr(tensor_quantizers(model)[f"{FC1}.input_quantizer"], switch, value)

    (problem,) = agreement.with_recipe(model, loading.load("fp8"))

    assert (problem.rule, problem.names) == (
        "enabled and passed through",
        (f"{FC1}.input_quantizer",),
    )


def test_quantizers_that_no_entry_speaks_of(model: nn.Module) -> None:
    """Without a deny-all entry, whatever is on next to the entries is named (S10)."""
    recipe = loading.load("fp8")
    attention_only = replace(recipe, entries=tuple(e for e in recipe.entries if "bmm" in e.pattern))

    (problem,) = agreement.with_recipe(model, attention_only)

    assert problem.rule == "on without being asked for"
    assert not any("bmm" in name for name in problem.names)


@pytest.mark.parametrize("name", ["input_quantizer", "weight_quantizer"])
@pytest.mark.parametrize("factor", [16.0, 0.5, 1.01])
def test_a_range_that_the_data_do_not_give(
    model: nn.Module, data: Magnitudes, name: str, factor: float
) -> None:
    """A scaled range of one input or one weight is named with what is stored and what the data
    give.
    """
    quantizer = tensor_quantizers(model)[f"{FC1}.{name}"]
    right = float(quantizer._amax)
    quantizer._amax *= factor

    (problem,) = agreement.with_data(model, loading.load("fp8"), data)

    assert problem.names == (
        f"{FC1}.{name}: amax is {float(quantizer._amax):.6g}, the data give {right:.6g}",
    )


def test_a_range_of_nan(model: nn.Module, data: Magnitudes) -> None:
    """NaN equals no range of the data."""
    tensor_quantizers(model)[f"{FC1}.input_quantizer"]._amax.fill_(float("nan"))

    (problem,) = agreement.with_data(model, loading.load("fp8"), data)

    assert "amax is nan" in problem.names[0]


def test_fewer_batches_give_other_ranges(
    fp8: nn.Module, reference: references.Reference, batches: Any
) -> None:
    """A model calibrated on two batches does not agree with the first alone."""
    first = Magnitudes(insert(reference.model), [next(iter(batches))])

    (problem,) = agreement.with_data(fp8, loading.load("fp8"), first)

    assert problem.rule == "range is not the data's"


def test_the_data_are_looked_at_once_for_all_recipes(
    reference: references.Reference, batches: Any, fp8: nn.Module
) -> None:
    """A second recipe costs no second pass; a range along another dimension costs one, and is as
    wide as that.
    """
    passes = []

    class Counted:
        def __iter__(self) -> Any:
            passes.append(1)
            return iter(batches)

    data = Magnitudes(insert(reference.model), Counted())
    for name in ("fp8", "int8"):
        quantized = (
            fp8
            if name == "fp8"
            else quantize(reference.model, loading.load(name), forward_loop_over(batches))
        )
        assert agreement.with_data(quantized, loading.load(name), data) == []
    assert len(passes) == 1

    along = data.along({f"{FC1}.input_quantizer": (-1,)})[f"{FC1}.input_quantizer"]
    whole = data.along({f"{FC1}.input_quantizer": ()})[f"{FC1}.input_quantizer"]

    assert len(passes) == 2
    assert along.shape == (reference.model.vision_model.encoder.layers[1].mlp.fc1.in_features,)
    assert along.max() == whole


def test_a_tolerance_lets_small_differences_pass(model: nn.Module, data: Magnitudes) -> None:
    """Where bits cannot be asked for, a range within the tolerance passes and one beyond it does
    not.
    """
    tensor_quantizers(model)[f"{FC1}.input_quantizer"]._amax *= 1.01

    assert agreement.with_data(model, loading.load("fp8"), data, tolerance=0.02) == []
    assert agreement.with_data(model, loading.load("fp8"), data, tolerance=0.005) != []


def test_other_calibrations_than_max_are_left_alone(model: nn.Module, data: Magnitudes) -> None:
    """Under SmoothQuant or AWQ a range is not the largest magnitude, and nothing is said."""
    assert not agreement.calibrates_by_max(loading.load("int8-smoothquant"))
    assert not agreement.calibrates_by_max(loading.load("int4-awq"))
    assert agreement.with_data(model, loading.load("int8-smoothquant"), data) == []


def test_a_folded_copy_that_computes_something_else(model: nn.Module, batches: Any) -> None:
    """A folded copy with one input quantizer off is reported by the outputs that differ."""
    folded = fold(model)
    tensor_quantizers(folded)[f"{FC1}.input_quantizer"].disable()

    (problem,) = agreement.with_folded(model, folded, next(iter(batches)))

    assert problem.rule == "folded model differs"
    assert any(name.startswith("vision") for name in problem.names)


@pytest.mark.parametrize("name", finding.DEFAULT)
def test_with_its_quantizers_off_a_model_is_the_reference(
    name: str, reference: references.Reference, batches: Any
) -> None:
    """Each default recipe leaves the reference underneath: to the bit by max, within rounding by
    the others.
    """
    recipe = loading.load(name)
    quantized = quantize(reference.model, recipe, forward_loop_over(batches))

    assert agreement.with_reference(quantized, reference.model, recipe, next(iter(batches))) == []


@pytest.mark.parametrize("name", ["fp8", "int8-smoothquant", "int4-awq"])
def test_a_changed_weight_underneath(
    name: str, reference: references.Reference, batches: Any
) -> None:
    """One layer's weights scaled by a quarter show in the outputs, whatever quantization would have
    hidden.
    """
    recipe = loading.load(name)
    quantized: Any = quantize(reference.model, recipe, forward_loop_over(batches))
    quantized.vision_model.encoder.layers[1].mlp.fc1.weight.data *= 1.25

    (problem,) = agreement.with_reference(quantized, reference.model, recipe, next(iter(batches)))

    assert problem.rule == "not the reference underneath"
    assert any(line.startswith("vision: relative error") for line in problem.names)


def test_a_weight_off_by_one_bit_underneath(
    model: Any, reference: references.Reference, batches: Any
) -> None:
    """Under max calibration a single bit is reported, and not where bits cannot be expected."""
    bits = model.vision_model.encoder.layers[1].mlp.fc1.weight.data.view(torch.int16)
    bits[0] ^= 1
    first = next(iter(batches))

    assert agreement.with_reference(model, reference.model, loading.load("fp8"), first) != []
    assert (
        agreement.with_reference(
            model, reference.model, loading.load("fp8"), first, deterministic=False
        )
        == []
    )


def test_outputs_of_nan_are_no_small_error(
    model: Any, reference: references.Reference, batches: Any
) -> None:
    """A model whose outputs are NaN is not within any allowed error."""
    model.visual_projection.weight.data.fill_(float("nan"))

    problems = agreement.with_reference(
        model, reference.model, loading.load("fp8"), next(iter(batches)), False
    )

    assert "vision: relative error nan" in str(problems[0])


def test_methods_that_adapt_weights_are_left_alone(
    model: nn.Module, reference: references.Reference
) -> None:
    """Nothing is said of a method that changes weights on purpose."""
    svdquant = replace(loading.load("fp8"), algorithm={"method": "svdquant"})

    assert agreement.with_reference(model, reference.model, svdquant, {}) == []


@pytest.mark.parametrize(("perc_damp", "silent"), [(0.01, False), (1e-12, True)])
def test_gptq_that_made_no_error_good_is_found(
    reference: references.Reference, batches: Any, perc_damp: float, silent: bool
) -> None:
    """Where the Hessian of sixteen pairs has no inverse ModelOpt only rounds, and those layers are
    named (S13).
    """
    recipe = loading.load("int4-gptq")
    algorithm = {"method": "gptq", "perc_damp": perc_damp}
    recipe = replace(
        recipe, quant_cfg=recipe.quant_cfg | {"algorithm": algorithm}, algorithm=algorithm
    )
    quantized = quantize(reference.model, recipe, forward_loop_over(batches))

    problems = agreement.with_reference(quantized, reference.model, recipe, next(iter(batches)))

    assert [problem.rule for problem in problems] == (["GPTQ did nothing"] if silent else [])
    assert not silent or "visual_projection" in problems[0].names, "sixteen rows for 192 inputs"
