"""harness.export: both towers of a quantized CLIP as standard ONNX, gated against the quantizer
map.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import onnx
import pytest
import torch

from harness import export
from harness.checks import numerics
from harness.export import gated, modelopt, parity
from harness.export.exports import Exports
from harness.export.graph import TOWERS
from harness.gate.options import Options
from harness.gate.quantized import Quantized
from harness.gate.session import Gate
from harness.models import families
from harness.quantization import quantize
from harness.quantization.observations import observe
from harness.recipes import loading
from harness.tools.faults import CATALOGUE, FaultSite, Where

#: fault -> the rule that names it, or "parity"
NAMED = {
    "Q/DQ dropped": "Q/DQ dropped",
    "exported scale one step off": "scale is not the amax",
    "patch embedding exported quantized": "disabled but exported",
    "zero point dropped": "zero point",
    "Q/DQ of key and value exchanged": "Q/DQ on the wrong tensor",
    "exported codes truncated": "codes differ",
    "exported scales of other channels": "scale is not the amax",
    "other epsilon in a LayerNorm": "parity",
    "attention scale lost on export": "parity",
}


@pytest.fixture(scope="module")
def exported_gate() -> Gate:
    """A gate over a few calibration pairs; what it builds is shared by this module's tests."""
    return Gate(
        Options(
            recipes=("fp8-patch-embedding-fp16", "int8"), tasks=("emoji100",), calibration_size=64
        )
    )


@pytest.fixture(scope="module")
def fp8(exported_gate: Gate) -> Quantized:
    """FP8 with attention, the patch embedding disabled."""
    return exported_gate.cases()[0].quantized


@pytest.fixture(scope="module")
def int8(exported_gate: Gate) -> Quantized:
    """INT8, weights per channel."""
    return exported_gate.cases()[1].quantized


def test_every_fault_of_export_has_its_rule() -> None:
    """The table above speaks of every fault that is planted in an exporter."""
    assert {f.name for f in CATALOGUE.values() if f.where is Where.EXPORT} == set(NAMED)


@pytest.mark.parametrize("name", NAMED)
def test_fault_of_export_is_named(
    name: str, fp8: Quantized, int8: Quantized, tmp_path: Path
) -> None:
    """Each planted exporter fault is named by the rule that is about it."""
    fault = CATALOGUE[name]
    clean = int8 if fault.recipe == "int8" else fp8

    with fault.planted(FaultSite(tmp_path, tmp_path, fault.recipe)):
        exports = Exports(clean.model, clean.inputs)
        rules = {problem.rule for problem in exports.problems("vision", torch.float32)}
        if NAMED[name] == "parity":
            assert not rules
            rules = set() if exports.parity("vision", optimize=False).holds else {"parity"}

    assert NAMED[name] in rules


def test_tower_takes_any_batch(fp8: Quantized) -> None:
    """Batch and sequence are dynamic, and a row's feature does not depend on its neighbours."""
    text = export.session(fp8.exported.graph("text"))
    ids = fp8.inputs["input_ids"]

    whole = text.run(None, {"input_ids": ids.numpy()})[0]
    single = text.run(None, {"input_ids": ids[2:3, :24].numpy()})[0]

    assert whole.shape[0] == len(ids)
    # Another width may round a code to the other side of a boundary, no more.
    assert (
        torch.nn.functional.cosine_similarity(
            torch.tensor(whole[2]), torch.tensor(single[0]), dim=0
        )
        > 0.999
    )


@pytest.mark.parametrize("tower", list(TOWERS))
def test_unquantized_tower_computes_the_reference(exported_gate: Gate, tower: str) -> None:
    """A model without quantizers exports too, without Q/DQ, and agrees within rounding."""
    reference = parity.plain(exported_gate.cases()[0].reference.model)
    proto = export.tower(reference, tower)

    compared = parity.compare(proto, reference, tower, families.sample_inputs(reference))

    assert "QuantizeLinear" not in {node.op_type for node in proto.graph.node}
    assert compared.holds, compared


def test_ranges_that_a_recipe_fixes_are_constants_of_the_graph(exported_gate: Gate) -> None:
    """With ``use_constant_amax`` (no buffer: 448) and ``constant_amax`` the graph has these scales
    and runs alike.
    """
    reference = exported_gate.cases()[0].reference
    recipe = loading.load("fp8-patch-embedding-fp16")
    config = copy.deepcopy(recipe.quant_cfg)
    fixed = {"num_bits": (4, 3), "axis": None}
    config["quant_cfg"] += [
        {"quantizer_name": "*[kv]_bmm_quantizer", "cfg": fixed | {"use_constant_amax": True}},
        {"quantizer_name": "*fc1.input_quantizer", "cfg": fixed | {"constant_amax": 56.0}},
    ]
    inputs = families.sample_inputs(reference.model)
    loop = quantize.forward_loop_over([inputs])
    model = quantize.quantize(reference.model, dataclasses.replace(recipe, quant_cfg=config), loop)
    exports = Exports(model, inputs)

    scales = {
        i.name: onnx.numpy_helper.to_array(i) for i in exports.graph("text").graph.initializer
    }

    assert exports.no_form is None
    assert exports.problems("text", torch.float32) == []
    assert exports.parity("text", optimize=False).holds
    block = "text_model.encoder.layers.0"
    assert scales[f"{block}.self_attn.k_bmm_quantizer.scale"] == 1.0
    assert scales[f"{block}.mlp.fc1.input_quantizer.scale"] == 0.125


@pytest.mark.parametrize("name", ["fp8-per-channel", "int8", "int4-block"])
def test_a_row_of_zeros_stays_zeros(exported_gate: Gate, name: str) -> None:
    """A pruned channel has amax 0: every number of the model is its format's, and the graph has its
    zeros.
    """
    model = copy.deepcopy(exported_gate.cases()[0].reference.model)
    weight = model.get_parameter("text_model.encoder.layers.0.mlp.fc1.weight")
    weight.data[3] = 0
    inputs = families.sample_inputs(model)
    quantized = quantize.quantize(model, loading.load(name), quantize.forward_loop_over([inputs]))
    exports = Exports(quantized, inputs)

    observations = observe(quantized)

    assert numerics.mismatches(observations) == []
    assert any(
        o.name.endswith("text_model.encoder.layers.0.mlp.fc1.weight_quantizer")
        for o in observations
    )
    assert exports.problems("text", torch.float32) == []
    assert exports.parity("text", optimize=False).holds


# -- ModelOpt's own export.  Each of these tests fails when its defect is gone: then drop what works


@contextmanager
def scale_repaired() -> Iterator[None]:
    """Within the block ``export_fp8_mha`` gets its scale as a value of the graph (ModelOpt 0.47).

    It reads a constant scale into a Python float and hands that to ``g.op("Sqrt", ...)``, a
    TypeError for every model with diffusers' attention class, whatever its format.
    """
    from modelopt.torch.quantization.plugins.diffusion import diffusers
    from torch.onnx import symbolic_helper

    original = diffusers.export_fp8_mha

    def repaired(g: Any, query: Any, key: Any, value: Any, *args: Any) -> Any:
        mask, dropout, causal, scale, *more = args
        known = symbolic_helper._maybe_get_const(scale, "f")
        if isinstance(known, float):
            dtype = torch.float16 if query.type().scalarType() == "Half" else torch.float32
            # Not a constant itself, or it is read into a float again.
            scale = g.op("Identity", g.op("Constant", value_t=torch.tensor(known, dtype=dtype)))
        return original(g, query, key, value, mask, dropout, causal, scale, *more)

    with mock.patch.object(diffusers, "export_fp8_mha", repaired):
        yield


def test_published_export_stops_at_diffusers_attention(fp8: Quantized) -> None:
    """ModelOpt 0.47 hands a Python float to Sqrt (fixed by scale_repaired)."""
    with pytest.raises(TypeError, match="incompatible function arguments"):
        modelopt.published(fp8.model, "text")


def test_published_attention_wants_half_precision(fp8: Quantized) -> None:
    """ModelOpt 0.47 exports quantized attention in 16 bits alone, where parity cannot be distinguished from
    rounding.
    """
    with scale_repaired(), pytest.raises(ValueError, match="16-bit inputs"):
        modelopt.published(fp8.model, "text")


def test_published_attention_is_another(fp8: Quantized) -> None:
    """ModelOpt 0.47's attention quantizes the softmax, which no recipe enables, and q and k after
    scaling them.
    """
    with scale_repaired():
        proto = modelopt.published(fp8.model, "text", torch.float16)
    problems = {p.rule: str(p) for p in gated.check(modelopt.standard(proto), fp8.model, "text")}

    assert "trt::TRT_FP8QuantizeLinear" in gated.Graph(proto).foreign()
    assert "softmax_quantizer" in problems["disabled but exported"]
    assert "times a factor" in problems["Q/DQ on the wrong tensor"]


def test_published_weights_have_other_codes(int8: Quantized) -> None:
    """ModelOpt 0.47 leaves weights to be quantized as x / scale: ties, common in FP16, fall the
    other way.
    """
    with scale_repaired():
        proto = modelopt.published(int8.model, "text")

    assert [p.rule for p in gated.check(proto, int8.model, "text")] == ["codes differ"]
