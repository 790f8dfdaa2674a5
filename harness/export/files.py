"""Graphs of any size: beyond two gibibytes their constants are written next to them, as ONNX's
external data.

Protobuf takes no message of two gibibytes or more, so such a graph exists in memory but cannot be
made into bytes: it is written, checked and loaded by its path.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx

#: Bytes of constants from which they are written next to the graph.  Protobuf's limit is 2**31 for
#: everything; nodes and names take the rest.
LIMIT = 2**31 - 2**26


def constant_bytes(proto: onnx.ModelProto) -> int:
    """Bytes that the constants of *proto* take, from their shapes and types: measuring them would
    need a message.
    """
    return sum(
        math.prod(held.dims) * onnx.helper.tensor_dtype_to_np_dtype(held.data_type).itemsize
        for held in proto.graph.initializer
    )


def is_large(proto: onnx.ModelProto) -> bool:
    """Whether *proto* is written in two files."""
    return constant_bytes(proto) > LIMIT


def write(proto: onnx.ModelProto, path: Path) -> None:
    """Write *proto* to *path*; the constants of a large one to a second file, *path* with ``.data``
    behind it.
    """
    if not is_large(proto):
        onnx.save(proto, path)
        return
    data = path.with_name(f"{path.name}.data")
    data.unlink(missing_ok=True)  # onnx appends
    onnx.save(proto, path, save_as_external_data=True, location=data.name)
    # onnx takes the constants out of what it writes.
    onnx.load_external_data_for_model(proto, str(path.parent))


@contextlib.contextmanager
def as_argument(proto: onnx.ModelProto) -> Iterator[bytes | str]:
    """Yield *proto* in the form that ONNX Runtime and TensorRT accept: bytes, or the path of a
    large graph.
    """
    if not is_large(proto):
        yield proto.SerializeToString()
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        write(proto, path)
        yield str(path)


def check(proto: onnx.ModelProto) -> None:
    """Check *proto* as ONNX does, shapes included.

    Raises:
        onnx.checker.ValidationError: the graph is not valid.
    """
    with as_argument(proto) as source:
        onnx.checker.check_model(source, full_check=True)
