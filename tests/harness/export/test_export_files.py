"""Graphs whose constants do not fit into one file, with the limit lowered to a few kilobytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from harness.export import files, runtime

WEIGHT = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)


@pytest.fixture
def product() -> onnx.ModelProto:
    """``y = x @ WEIGHT``: 8 KiB of constants."""
    kind = onnx.TensorProto.FLOAT
    x, y = (
        onnx.helper.make_tensor_value_info(name, kind, ["batch", n])
        for name, n in (("x", 64), ("y", 32))
    )
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph(
        [node], "product", [x], [y], [onnx.numpy_helper.from_array(WEIGHT, "w")]
    )
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9
    )


@pytest.mark.parametrize(
    ("limit", "names"), [(8192, ["g.onnx"]), (8191, ["g.onnx", "g.onnx.data"])]
)
def test_constants_over_the_limit_are_a_file_of_their_own(
    product: onnx.ModelProto,
    limit: int,
    names: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Written twice, checked and run from two files or from one, the graph computes the same and
    stays as it is.
    """
    monkeypatch.setattr(files, "LIMIT", limit)
    before = product.SerializeToString()
    x = np.ones((3, 64), np.float32)

    for _ in range(2):
        files.write(product, tmp_path / "g.onnx")
    files.check(product)
    (y,) = runtime.session(product).run(None, {"x": x})

    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2 * len(before)
    np.testing.assert_allclose(y, x @ WEIGHT, rtol=1e-5, atol=1e-5)
    again = onnx.load(tmp_path / "g.onnx")
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(again.graph.initializer[0]), WEIGHT)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(product.graph.initializer[0]), WEIGHT)


def test_an_invalid_graph_is_refused_from_two_files_too(
    product: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checker reads the graph by its path as it does from memory."""
    monkeypatch.setattr(files, "LIMIT", 0)
    product.graph.node[0].op_type = "NoSuchProduct"

    with pytest.raises(onnx.checker.ValidationError, match="NoSuchProduct"):
        files.check(product)


def test_bytes_of_constants_are_counted_without_a_message() -> None:
    """A graph that says it holds three gibibytes is large, whatever is in it."""
    proto = onnx.ModelProto()
    proto.graph.initializer.add(data_type=onnx.TensorProto.FLOAT16, dims=[3 << 20, 512])

    assert files.constant_bytes(proto) == 3 << 30
    assert files.is_large(proto)
