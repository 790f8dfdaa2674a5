"""What could not be built is not built again: the tests that need it meet the first error."""

from __future__ import annotations

import operator
from collections.abc import Callable
from pathlib import Path

import pytest
from written import DENY_ALL, entry, recipe

from harness.checks import insertion
from harness.gate.case import Case
from harness.gate.options import Options
from harness.gate.session import Gate
from harness.quantization import quantize
from harness.quantization.quantize import QuantizationError


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    """Two recipes: inputs of Linears quantized along their rows, which breaks on batches of two
    sizes; and int8.
    """
    folder: Path = tmp_path_factory.mktemp("recipes")
    recipe(folder, DENY_ALL + entry("*input_quantizer", "num_bits: 8, axis: 0", "nn.Linear"))
    chosen = (str(folder / "r.yaml"), "int8")
    return Gate(
        Options(
            recipes=chosen, tasks=("emoji100",), calibration_size=96, batch_size=64, device="cpu"
        )
    )


def test_a_failed_quantization_is_not_tried_again(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model, its map, its numerics and its verdicts meet the first error; another case is
    built.
    """
    attempts = []
    original = quantize.quantize

    def counted(*arguments: object, **named: object) -> object:
        attempts.append(arguments[1])
        return original(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(quantize, "quantize", counted)
    case, other = gate.cases()
    names = ("quantized", "map", "observations", "quantized_runs", "verdicts")
    needs: tuple[Callable[[Case], object], ...] = (
        *map(operator.attrgetter, names),
        insertion.quantizers_are_what_the_recipe_says,
    )
    met = []
    for need in (*needs, *needs):
        with pytest.raises(QuantizationError) as caught:
            need(case)
        met.append(caught.value)

    assert len(attempts) == 1
    assert all(error is met[0] for error in met)
    assert other.quantized.model is not None
    with pytest.raises(QuantizationError):
        assert case.quantized
    assert len(attempts) == 2


def test_the_error_of_an_earlier_case_holds_no_model(gate: Gate) -> None:
    """The frames of what was raised for one case are dropped before another is built: they hold a
    model.
    """
    case, other = gate.cases()
    with pytest.raises(QuantizationError) as caught:
        assert case.quantized
    cause = caught.value.__cause__
    assert cause is not None

    assert other.quantized

    assert caught.value.__traceback__ is None
    assert cause.__traceback__ is None
