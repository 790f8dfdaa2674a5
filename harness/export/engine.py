"""The same graphs in TensorRT: an engine is built; its answers and its speed are reported.

Needs ``tensorrt`` 10 or later and a GPU; :func:`missing` says what is not there.
"""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from harness.export import files
from harness.export.graph import OUTPUT, TOWERS, TowerModule

#: Forwards before the clock runs, and forwards on the clock.
_WARM, _TIMED = 10, 50


@dataclass(frozen=True)
class Measured:
    """One tower of a deployed graph: least cosine with fake quantization on the same GPU, and
    samples a second.
    """

    tower: str
    cosine: float
    engine_per_second: float
    torch_per_second: float

    @property
    def ratio(self) -> float:
        """Speed of the engine over that of the unquantized model in torch."""
        return self.engine_per_second / self.torch_per_second

    def as_dict(self) -> dict[str, Any]:
        """A plain record for JSON."""
        return asdict(self) | {"ratio": self.ratio}


def missing() -> str | None:
    """Why no engine can be built here, or None."""
    if importlib.util.find_spec("tensorrt") is None:
        return "tensorrt is not installed"
    return None if torch.cuda.is_available() else "torch sees no CUDA device"


class TensorRTEngine:
    """A TensorRT engine of one tower, for batches up to the size of *example*'s.

    The network is strongly typed: the graph's own types and Q/DQ decide the precision, nothing else
    does.

    Raises:
        RuntimeError: TensorRT refused the graph; the message is its own.
    """

    def __init__(self, proto: onnx.ModelProto, tower: str, example: Tensor) -> None:
        import tensorrt

        logger = tensorrt.Logger(tensorrt.Logger.ERROR)
        builder = tensorrt.Builder(logger)
        network = builder.create_network(
            1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        )
        parser = tensorrt.OnnxParser(network, logger)
        with files.as_argument(proto) as source:
            parsed = (
                parser.parse_from_file(source) if isinstance(source, str) else parser.parse(source)
            )
        if not parsed:
            errors = [str(parser.get_error(i)) for i in range(parser.num_errors)]
            raise RuntimeError(
                f"TensorRT {tensorrt.__version__} does not read the {tower} tower: "
                f"{'; '.join(errors)}"
            )
        config, profile = builder.create_builder_config(), builder.create_optimization_profile()
        shape = tuple(example.shape)
        profile.set_shape(TOWERS[tower], (1, *shape[1:]), shape, shape)
        config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise RuntimeError(
                f"TensorRT {tensorrt.__version__} builds no engine of the {tower} tower"
            )
        self._runtime = tensorrt.Runtime(logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        self._context = self._engine.create_execution_context()
        self._input = TOWERS[tower]

    def __call__(self, x: Tensor) -> Tensor:
        """Features (batch, d) of rows *x* on the GPU, both in the graph's types."""
        x = x.contiguous()
        self._context.set_input_shape(self._input, tuple(x.shape))
        features = torch.empty(
            tuple(self._context.get_tensor_shape(OUTPUT)), dtype=torch.float16, device=x.device
        )
        self._context.set_tensor_address(self._input, x.data_ptr())
        self._context.set_tensor_address(OUTPUT, features.data_ptr())
        stream = torch.cuda.current_stream(x.device)
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError("TensorRT could not run the engine")
        stream.synchronize()
        return features


def measure(
    proto: onnx.ModelProto,
    tower: str,
    quantized: nn.Module,
    reference: nn.Module,
    batch: dict[str, Tensor],
) -> Measured:
    """Build an engine of the float16 graph *proto* and run *batch* through it and through torch, on
    the GPU.

    Args:
        proto: the tower in float16.
        tower: ``vision`` or ``text``.
        quantized: the fake-quantized model, whose answers the engine must give.
        reference: the unquantized one in float16, whose speed it is measured against.
        batch: with the tower's input, pixels in float16.
    """
    x = batch[TOWERS[tower]].cuda()
    engine = TensorRTEngine(proto, tower, x)
    encode, plain = TowerModule(quantized.cuda(), tower), TowerModule(reference.cuda(), tower)
    with torch.inference_mode():
        cosine = (
            torch.nn.functional.cosine_similarity(engine(x).double(), encode(x).double(), dim=1)
            .min()
            .item()
        )
        rates = [len(x) / _seconds(run, x) for run in (engine, plain)]
    return Measured(tower, cosine, *rates)


def _seconds(run: Any, x: Tensor) -> float:
    """Seconds a forward, the median of _TIMED between CUDA events."""
    for _ in range(_WARM):
        run(x)
    times: list[float] = []
    for _ in range(_TIMED):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        run(x)
        end.record()
        torch.cuda.synchronize(x.device)
        times.append(start.elapsed_time(end) / 1000)
    return sorted(times)[len(times) // 2]
