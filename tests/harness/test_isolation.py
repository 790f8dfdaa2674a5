"""Nothing of one case reaches another: what ModelOpt and its models change in the process is put
back.
"""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness import isolation
from harness.checks import checkpoint
from harness.data import tasks
from harness.errors import UsageError
from harness.evaluation import evaluators, shards
from harness.evaluation.subjects import Subject
from harness.models import families, references
from harness.quantization import quantize
from harness.quantization.attention import ATTENTIONS, attention_registered, diffusers_plugin
from harness.quantization.context import quiet
from harness.recipes import loading

SDPA = F.scaled_dot_product_attention
SOFTMAX = F.softmax


@pytest.fixture
def stray() -> Any:
    """A quantized model in whose first attention block the forward raises."""
    quantized: Any = quantize.quantize(
        references.load("embedded", torch.device("cpu")).model, loading.load("fp8"), None
    )

    def fail(*_: Any) -> Tensor:
        raise ArithmeticError("a layer that raises")

    quantized.vision_model.encoder.layers[0].self_attn.out_proj.forward = fail
    return quantized


def run(model: Any) -> None:
    """One forward that raises, not through the gate."""
    with pytest.raises(ArithmeticError), torch.no_grad():
        model.get_image_features(families.sample_inputs(model)["pixel_values"])


def test_modelopt_leaves_attention_swapped_when_a_forward_raises(stray: nn.Module) -> None:
    """The defect that is worked around: when this fails, ModelOpt has fixed it and the workaround
    can go.
    """
    with isolation.functions_kept():
        run(stray)
        assert F.scaled_dot_product_attention is not SDPA
        assert "_bmm" in vars(torch)

    assert F.scaled_dot_product_attention is SDPA
    assert "_bmm" not in vars(torch)


def test_a_forward_of_the_gate_that_raises_leaves_the_next_model_alone(stray: nn.Module) -> None:
    """The reference gives the same bits before and after another model raised in its forward."""
    reference = references.load("embedded", torch.device("cpu")).model
    inputs = families.sample_inputs(reference)
    with torch.no_grad():
        before = families.forward(reference, inputs)
        with pytest.raises(ArithmeticError):
            families.forward(stray, inputs)
        after = families.forward(reference, inputs)

    assert all(torch.equal(before[tower], after[tower]) for tower in before)
    assert isolation.replaced() == []


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_recipe_whose_calibration_raises_leaves_the_process_as_it_was(attention: str) -> None:
    """Functions of torch, attention functions of transformers and ModelOpt's registry are as
    before.
    """
    from modelopt.torch.quantization.nn import QuantModuleRegistry
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    reference = references.load("embedded", torch.device("cpu")).model

    def state() -> tuple[Any, ...]:
        registry = ALL_ATTENTION_FUNCTIONS
        return (
            isolation.replaced(),
            dict(registry._local_mapping),
            dict(QuantModuleRegistry._registry),
        )

    def loop(model: Any) -> None:
        families.forward(model, families.sample_inputs(model))
        model.text_model.encoder.layers[1].self_attn.out_proj.forward = None
        families.forward(model, families.sample_inputs(model))

    before = state()
    with pytest.raises(quantize.QuantizationError, match="TypeError"):
        quantize.quantize(reference, loading.load("fp8-linear-only"), loop, attention)

    assert state() == before


def test_a_class_that_was_registered_before_is_registered_again() -> None:
    """A person's own quantized class for the model's attention survives the gate's registration of
    another one.
    """
    import modelopt.torch.quantization as mtq
    from modelopt.torch.quantization.nn import QuantModuleRegistry

    model = references.load("embedded", torch.device("cpu")).model
    cls: Any = next(type(m) for m in model.modules() if type(m).__name__ == "CLIPAttention")

    class Own(diffusers_plugin()._QuantAttention):  # type: ignore[misc]
        pass

    mtq.register(cls, Own)
    try:
        with attention_registered(model, "diffusers"):
            assert not issubclass(QuantModuleRegistry[cls], Own)
        assert issubclass(QuantModuleRegistry[cls], Own)
    finally:
        mtq.unregister(cls)


def other_precision() -> None:
    """Change settings of torch that decide about bits."""
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark


def other_numbers() -> None:
    """Draw random numbers."""
    torch.rand(3), np.random.rand(3), random.random()


def other_environment() -> None:
    """Set, change and delete variables, and silence a warning."""
    os.environ["HARNESS_A"], os.environ["HARNESS_B"] = "new", "changed"
    del os.environ["HARNESS_C"]
    warnings.filterwarnings("ignore", category=ResourceWarning)


def other_functions() -> None:
    """Replace functions of torch, and one of transformers."""
    import transformers.models.clip.modeling_clip as clip

    torch.bmm = F.softmax = torch.nn.init.zeros_ = clip.eager_attention_forward = print  # type: ignore[assignment]


def state() -> list[Any]:
    """Everything that the functions above change."""
    import transformers.models.clip.modeling_clip as clip

    numpy: Any = np.random.get_state()
    return [
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.benchmark,
        torch.get_rng_state().tolist(),
        numpy[1].tolist(),
        random.getstate(),
        dict(os.environ),
        list(warnings.filters),
        torch.bmm,
        F.softmax,
        torch.nn.init.zeros_,
        clip.eager_attention_forward,
    ]


@pytest.mark.parametrize(
    "change", [other_precision, other_numbers, other_environment, other_functions]
)
def test_what_runs_as_modelopt_does_changes_nothing_that_lasts(
    change: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings, random states, environment, warnings and functions are put back, also behind an
    error.
    """
    monkeypatch.setenv("HARNESS_B", "before")
    monkeypatch.setenv("HARNESS_C", "before")
    before = state()

    with suppress(ZeroDivisionError), quiet():
        change()
        assert state() != before
        raise ZeroDivisionError

    assert state() == before


def test_saving_a_checkpoint_leaves_no_hook_in_transformers(tmp_path: Path) -> None:
    """Afterwards a folder with ModelOpt's state is loaded as transformers loads it, not as a
    quantized model.
    """
    from transformers import PreTrainedModel

    quantized = quantize.quantize(
        references.load("embedded", torch.device("cpu")).model,
        loading.load("fp8-linear-only"),
        None,
    )
    before = dict(vars(PreTrainedModel))
    checkpoint.save(quantized, tmp_path, "pretrained")

    assert (tmp_path / "modelopt_state.pth").exists()
    assert dict(vars(PreTrainedModel)) == before


@pytest.mark.parametrize(
    ("holder", "name"),
    [(F, "scaled_dot_product_attention"), (F, "softmax"), (torch, "bmm"), (F, "linear")],
)
def test_a_function_that_is_not_torchs_own_stops_the_run(
    holder: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither is a model quantized nor one evaluated, the reference included: one line says which
    function it is.
    """
    reference = references.load("embedded", torch.device("cpu"))
    (task,) = tasks.load_tasks(["emoji100"], None, reference)
    subject = Subject(reference, reference.model)
    monkeypatch.setattr(holder, name, other_numbers)

    for use in (
        lambda: quantize.quantize(reference.model, loading.load("fp8"), None),
        lambda: evaluators.Alone(64).evaluate(subject, [task]),
        lambda: evaluators.Alone(64).embed(subject, task, "texts"),
        lambda: list(evaluators.Here(64).compute(subject, shards.cut(task))),
    ):
        with pytest.raises(UsageError) as raised:
            use()
        assert f"{holder.__name__}.{name} is {__name__}.other_numbers: not torch's own" in str(
            raised.value
        )


def test_a_bound_function_is_described_by_its_name(stray: nn.Module) -> None:
    """What ModelOpt leaves holds the whole block, whose text would be pages."""
    with isolation.functions_kept():
        run(stray)
        lines = isolation.replaced()

    place = "modelopt.torch.quantization.plugins.diffusion.diffusers._quantized_sdpa"
    assert f"torch.nn.functional.scaled_dot_product_attention is {place}" in lines
    assert len(lines) == 3
