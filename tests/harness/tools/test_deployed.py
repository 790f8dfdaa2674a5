"""Towers as they are deployed: every side computes the same features, and its process holds nothing
else.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from harness.export import graph
from harness.models import architectures, families, references
from harness.quantization import quantize
from harness.recipes import loading
from harness.statistics.speed import Effort
from harness.tools import deployed, resident
from harness.tools.deployed import BASE, Side

#: Least cosine with FP32's features: two libraries' rounding, half precisions, and quantization to
#: eight bits.
NEAR = {"FP32": 1 - 1e-6, "FP16": 1 - 1e-4, "BF16": 0.99, "INT8": 0.95}


@pytest.fixture(scope="module")
def reference() -> torch.nn.Module:
    """The embedded model in single precision."""
    model: torch.nn.Module = references.load("embedded", torch.device("cpu"), torch.float32).model
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the graphs and the checkpoint are."""
    return tmp_path_factory.mktemp("deployed")


@pytest.fixture(scope="module")
def sides(reference: torch.nn.Module, folder: Path) -> dict[str, list[Side]]:
    """Every side of both towers, INT8 calibrated on noise."""
    loop = quantize.forward_loop_over([families.sample_inputs(reference, 8)])
    int8 = quantize.quantize(reference, loading.load("int8"), loop)
    return deployed.write(reference, {"INT8": int8}, folder)


@pytest.mark.parametrize("tower", list(graph.TOWERS))
def test_every_side_computes_the_same_features(
    reference: torch.nn.Module, sides: dict[str, list[Side]], tower: str
) -> None:
    """FP32, FP16, BF16 and INT8 in both runtimes are one function, as near as their precision
    is.
    """
    x = families.sample_inputs(reference, 4)[graph.TOWERS[tower]]
    with torch.no_grad():
        expected = graph.TowerModule(reference, tower)(x).double()

    for side in sides[tower]:
        features = torch.as_tensor(resident.load(side.what, side.path, x.numpy(), 2)()).double()
        cosine = torch.nn.functional.cosine_similarity(features, expected, dim=1).min()
        assert cosine > NEAR[side.name.rpartition(" ")[2]], side.name
    names = [side.name.rpartition(" ")[2] for side in sides[tower]]
    assert names == ["FP32", "FP16", "INT8", "FP32", "FP16", "BF16"]


def test_a_side_is_weighed_in_a_process_that_holds_nothing_else(
    reference: torch.nn.Module, sides: dict[str, list[Side]], folder: Path
) -> None:
    """ONNX Runtime's process never loads torch; the tower comes on top of what was resident before
    it.
    """
    x = families.sample_inputs(reference)["input_ids"].numpy()

    graphs, torch_fp32 = (
        deployed.weigh(next(s for s in sides["text"] if s.name.endswith(name)), x, folder, 1)
        for name in ("INT8", f"{deployed._torch()} FP32")
    )

    assert graphs["before"] < graphs["resident"] <= graphs["peak"] < 200 << 20
    assert torch_fp32["resident"] > graphs["resident"]


def test_a_side_that_does_not_run_says_why(folder: Path) -> None:
    """The process's own error is in the message."""
    with pytest.raises(
        RuntimeError, match=r"broken does not run in a process of its own: .*no\.onnx"
    ):
        deployed.weigh(
            Side("broken", "onnxruntime", str(folder / "no.onnx")), np.zeros((1, 4)), folder, 1
        )


def test_rows_say_what_was_measured(
    reference: torch.nn.Module, sides: dict[str, list[Side]], folder: Path
) -> None:
    """One row per side, with samples per second and the ratio to ONNX Runtime's FP32, which is one to
    itself; torch's threads are put back.
    """
    x, threads = families.sample_inputs(reference, 4)["input_ids"].numpy(), torch.get_num_threads()

    rows = list(
        deployed.measure(
            "text", sides["text"][:3], x, folder, threads + 1, Effort(first=8, most=8, warm=1)
        )
    )

    assert [row.side for row in rows] == [side.name for side in sides["text"][:3]]
    assert rows[0].side == BASE
    assert (rows[0].ratio.value, rows[0].ratio.interval) == (1.0, (1.0, 1.0))
    assert all(
        row.per_second > 0 and row.ratio.rounds == 8 and row.resident > row.before for row in rows
    )
    assert torch.get_num_threads() == threads


def test_random_weights_are_of_the_architecture_and_of_the_seed() -> None:
    """The same names and shapes as on the meta device; equal for one seed; no draw of the process
    is used up.
    """
    state = torch.random.get_rng_state()
    first, again, other = (
        architectures.random("embedded", torch.float16, seed) for seed in (0, 0, 1)
    )
    shapes = {name: p.shape for name, p in architectures.build("embedded").named_parameters()}

    assert {name: p.shape for name, p in first.named_parameters()} == shapes
    name = "vision_model.encoder.layers.0.mlp.fc1.weight"
    weights = [m.get_parameter(name) for m in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert weights[0].dtype is torch.float16
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_runtime_says_why_it_has_no_bf16() -> None:
    """ONNX Runtime 1.32's CPU kernels have no BF16, which it says itself; when this fails, BF16 can
    be a side.
    """
    assert "NOT_IMPLEMENTED" in (deployed.no_bf16() or "")
