"""A recipe that does not fit the tensors of a model is refused before ModelOpt tries, and the fix
fits.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
import written
from torch import nn
from written import DENY_ALL, entry

from harness.errors import UsageError
from harness.models import architectures, references
from harness.quantization import fit
from harness.recipes import finding, loading


@pytest.fixture(scope="module")
def seen() -> fit.Survey:
    """The embedded architecture."""
    return fit.survey(architectures.build("embedded"))


W, IN, Q = "*fc1.weight_quantizer", "*fc1.input_quantizer", "*q_bmm_quantizer"
LIST = "cfg: [{num_bits: 8}, {num_bits: e4m3}]}\n"
SVD = "{{method: svdquant, lowrank: 8{}}}"


@pytest.mark.parametrize(
    ("entries", "message", "correct"),
    [
        (
            entry(W, "num_bits: 8, axis: 2"),
            "axis names dimension 2, .*fc1.weight_quantizer, .* 2 dim.*axis: 0",
            entry(W, "num_bits: 8, axis: 0"),
        ),
        (
            entry(W, "num_bits: 8, axis: [0, 1]"),
            "axis names every dimension at .*axis: 0",
            entry(W, "num_bits: 8, axis: 0"),
        ),
        (
            entry(W, "num_bits: 4, block_sizes: {3: 16}"),
            "block_sizes names dimension 3",
            entry(W, "num_bits: 4, block_sizes: {-1: 16}"),
        ),
        (
            entry(IN, "num_bits: 8, axis: 0"),
            "a range for each sample of the batch.*type: dynamic next to num_bits",
            entry(IN, "num_bits: 8, axis: 0, type: dynamic"),
        ),
        (
            entry(IN, "num_bits: 8, axis: 0"),
            "axis: -1 for a range per channel",
            entry(IN, "num_bits: 8, axis: -1"),
        ),
        (
            entry(IN, "num_bits: 8, axis: 0"),
            "axis: null for one",
            entry(IN, "num_bits: 8, axis: null"),
        ),
        (
            entry(IN, "num_bits: 8, block_sizes: {-1: null, type: dynamic}"),
            "a range for each sample of the batch",
            entry(IN, "num_bits: 8, block_sizes: {-1: null}, type: dynamic"),
        ),
        (
            entry(IN, "num_bits: 8, block_sizes: {-1: 16}"),
            "blocks of a fixed size at .*axis: -1",
            entry(IN, "num_bits: 8, axis: -1"),
        ),
        (
            entry("*input_quantizer", "num_bits: 8, axis: 2", "nn.Linear"),
            "axis names dimension 2.*projection",
            entry("*input_quantizer", "num_bits: 8, axis: -1", "nn.Linear"),
        ),
        (
            f"  - {{quantizer_name: '{Q}', {LIST}",
            "diffusers' attention class takes one.*Give it one mapping",
            entry(Q, "num_bits: 8"),
        ),
        (
            2 * f"  - {{quantizer_name: '{W}', {LIST}",
            "of which entry 2, .*made a list already.*in one entry only",
            f"  - {{quantizer_name: '{W}', {LIST}",
        ),
        (
            entry(W, "num_bits: 8, constant_amax: 4.0") + entry(W, "num_bits: 8, axis: 0"),
            "constant_amax for .*entry 3 gives a range per channel. Remove constant_amax",
            entry(W, "num_bits: 8") + entry(W, "num_bits: 8, axis: 0"),
        ),
    ],
)
def test_attribute_that_does_not_fit(
    tmp_path: Path, seen: fit.Survey, entries: str, message: str, correct: str
) -> None:
    """The entry's line, the quantizer and a fix are reported; what the fix says fits."""
    with pytest.raises(UsageError, match=message) as refused:
        fit.check(written.recipe(tmp_path, DENY_ALL + entries), seen)

    assert re.match(re.escape(str(tmp_path / "r.yaml")) + r":\d: ", str(refused.value))
    fit.check(written.recipe(tmp_path, DENY_ALL + correct), seen)


def test_layers_that_svdquant_skips(tmp_path: Path, seen: fit.Survey) -> None:
    """SVDQuant leaves skipped weights in blocks in a form that its forward cannot run."""
    blocks = DENY_ALL + entry(W, "num_bits: 4, block_sizes: {-1: 32}")

    with pytest.raises(UsageError, match=r"skip_layers of svdquant .* Remove skip_layers"):
        fit.check(written.recipe(tmp_path, blocks, SVD.format(", skip_layers: ['*fc1']")), seen)
    fit.check(written.recipe(tmp_path, blocks, SVD.format("")), seen)


@pytest.mark.parametrize("name", finding.DEFAULT + finding.MORE)
def test_recipe_of_this_package_fits(name: str, seen: fit.Survey) -> None:
    """No recipe of this package is refused."""
    fit.check(loading.load(name), seen)


def test_pruned_input_under_smoothquant(tmp_path: Path, seen: fit.Survey) -> None:
    """A column of zeros, on which ModelOpt's smoothquant raises, is named with its layer; the fix
    is accepted.
    """
    model: nn.Module = copy.deepcopy(references.load("embedded", torch.device("cpu")).model)
    layer = "vision_model.encoder.layers.0.mlp.fc1"
    model.get_parameter(f"{layer}.weight").data[:, 3] = 0
    recipe = loading.load("int8-smoothquant")

    with pytest.raises(
        UsageError, match=f"^here: column 3 of {layer}.weight is all zeros.*'{layer}"
    ) as refused:
        fit.check_weights(recipe, seen, model, "here")
    pattern = re.search(r"Turn '(.*?)' off", str(refused.value))
    assert pattern is not None
    text = recipe.path.read_text() if recipe.path else ""
    path = tmp_path / "r.yaml"
    path.write_text(f"{text}    - {{quantizer_name: '{pattern[1]}', enable: false}}\n")
    fit.check_weights(loading.load(str(path)), seen, model, "here")
