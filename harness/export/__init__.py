"""From fake quantization to the graph that an engine runs: both towers of a quantized CLIP as
standard ONNX.

    # QuantizeLinear / DequantizeLinear, dynamic batch
    proto = export.tower(model, "vision", torch.float32)
    # against the quantizer map, to the bit
    problems = export.check(proto, model, "vision")
    export.session(proto).run(None, {"pixel_values": pixels})

The Q/DQ are written here, from the quantizers themselves, and not by rewriting what ModelOpt
exports.  ModelOpt 0.47 exports E4M3 as operators of a domain of TensorRT's that nothing else reads,
stops at diffusers' attention (a TypeError), would quantize the softmax and move a factor before the
quantizers of query and key if it did not stop, and has no form for scales per channel.  Fixing all
that afterwards means recognising each pattern in the graph; writing a pair where a quantizer is
called is one rule (`graph`).  Where ModelOpt's own export works it is gated by the same check
(`modelopt`, which also names its defects, each with a test that notices when it is gone).

`forms` says what of a quantizer ONNX can hold, `graph` traces and writes, `gated` holds a graph
against the map, `runtime` runs it, `parity` compares answers, `engine` does the same with TensorRT.
"""

from __future__ import annotations

from harness.export.exports import Exports
from harness.export.forms import NoFormError
from harness.export.gated import check
from harness.export.graph import TOWERS, tower
from harness.export.parity import Answers, Parity
from harness.export.runtime import RUNTIME, session

__all__ = [
    "RUNTIME",
    "TOWERS",
    "Answers",
    "Exports",
    "NoFormError",
    "Parity",
    "check",
    "session",
    "tower",
]
