"""What quantized weights weigh: in memory and on the disk, before and after ``mtq.compress``,
against bits times parameters.

Fake quantization saves nothing: a weight that is quantized to eight bits is still stored in
sixteen.  ``mtq.compress`` packs it.  Here every weight with an enabled quantizer is held against
its format, one by one, so that the one which compression passed over has a name; and the file
against what the weights have become.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from harness.problems import Problem
from harness.quantization.context import quiet
from harness.quantization.maps import format_name, tensor_quantizers

#: What a file may hold beyond its tensors' savings: names, shapes and ModelOpt's state, as a share
#: and in bytes.
_SHARE, _OVERHEAD = 0.05, 64 << 10


class NotCompressedError(Exception):
    """ModelOpt packs no weight of this format; the message is its own."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of a model's parameters and buffers in memory, each storage counted once, and of its
    checkpoint.
    """

    memory: int
    disk: int


@dataclass(frozen=True)
class Weight:
    """One quantized weight after compression: its numbers, the bits of each in its format, and the
    bytes it takes.
    """

    name: str
    format: str
    numbers: int
    bits: int
    packed_bytes: int

    @property
    def expected(self) -> int:
        """Bytes that its numbers take, packed."""
        return math.ceil(self.numbers * self.bits / 8)


@dataclass(frozen=True)
class Compression:
    """A model before and after ``mtq.compress``; ``scales`` are the bytes of the scales that it
    added.
    """

    before: Footprint
    after: Footprint
    weights: tuple[Weight, ...]
    parameters: int
    scales: int

    def problems(self) -> list[Problem]:
        """Return the weights whose size is not that of their bits, and a checkpoint that did not
        shrink as they did.
        """
        wrong = [w for w in self.weights if w.packed_bytes != w.expected]
        problems = []
        if wrong:
            lines = tuple(
                f"{w.name} ({w.format}): {w.packed_bytes} bytes "
                f"for {w.numbers} numbers of {w.bits} bits"
                for w in wrong
            )
            what = (
                f"{len(wrong)} of {len(self.weights)} quantized weights do not take their bits "
                f"after mtq.compress:"
            )
            problems.append(Problem("weight not compressed", what, lines, _FIX))
        saved, shrunk = self.before.memory - self.after.memory, self.before.disk - self.after.disk
        if saved - shrunk > max(_OVERHEAD, _SHARE * saved):
            what = (
                f"the checkpoint shrinks by {shrunk:,} bytes, the weights in memory by {saved:,}."
            )
            fix = "Look at what mto.save writes: a second copy of the weights, or unpacked ones."
            problems.append(Problem("checkpoint not compressed", what, (), fix))
        return problems

    def as_dict(self) -> dict[str, Any]:
        """A plain record for JSON."""
        totals = {
            "numbers": sum(w.numbers for w in self.weights),
            "bytes": sum(w.packed_bytes for w in self.weights),
            "expected": sum(w.expected for w in self.weights),
        }
        return {
            "before": asdict(self.before),
            "after": asdict(self.after),
            "parameters": self.parameters,
            "scales": self.scales,
            "quantized": totals,
        }


_FIX = (
    "Compare mtq.compress's patterns and the formats that ModelOpt packs with the recipe's weight "
    "quantizers."
)


def compressed(model: nn.Module, leave_out: Sequence[str] = ()) -> nn.Module:
    """A copy of a quantized *model*, its weights packed but for those whose quantizers match globs
    of *leave_out*.

    Raises:
        NotCompressedError: ModelOpt packs no weight of one of its formats.
    """
    import modelopt.torch.quantization as mtq
    from modelopt.torch.quantization.config import CompressConfig

    packed = copy.deepcopy(model)
    patterns = {"*": True} | dict.fromkeys(leave_out, False)
    with quiet():
        try:
            mtq.compress(packed, CompressConfig(compress=patterns))
        except (AssertionError, NotImplementedError, ValueError) as error:
            raise NotCompressedError(
                f"{type(error).__name__}: {' '.join(str(error).split())}"
            ) from error
    return packed


def compare(model: nn.Module, packed: nn.Module) -> Compression:
    """Compare a quantized *model* with its packed copy (:func:`compressed`)."""
    weights = quantized_weights(model)
    packed_weights = tuple(
        Weight(name, format_, weight.numel(), bits, _bytes(packed.get_parameter(name)))
        for name, (weight, format_, bits) in weights.items()
    )
    scales = sum(_bytes(b) for b in packed.buffers()) - sum(_bytes(b) for b in model.buffers())
    return Compression(
        footprint(model),
        footprint(packed),
        packed_weights,
        sum(p.numel() for p in model.parameters()),
        scales,
    )


def quantized_weights(model: nn.Module) -> dict[str, tuple[Tensor, str, int]]:
    """Every weight with an enabled quantizer: the weight, its format's name and bits, by the
    parameter's name.

    Of a chain of quantizers (W4A8) the first one's numbers are what is stored.
    """
    weights: dict[str, tuple[Tensor, str, int]] = {}
    for name, quantizer in tensor_quantizers(model).items():
        holder, is_weight, rest = name.partition("weight_quantizer")
        if not is_weight or rest not in ("", ".0") or not quantizer.is_enabled:
            continue
        weights[f"{holder}weight"] = (
            model.get_parameter(f"{holder}weight"),
            format_name(quantizer),
            _bits(quantizer),
        )
    return weights


def _bits(quantizer: Any) -> int:
    bits = quantizer.num_bits
    return 1 + sum(bits) if isinstance(bits, tuple) else int(bits)


def _bytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def footprint(model: nn.Module) -> Footprint:
    """Return the bytes of *model* in memory, and of the file that ``mto.save`` writes."""
    import modelopt.torch.opt as mto

    storages = {
        t.untyped_storage().data_ptr(): _bytes(t) for t in (*model.parameters(), *model.buffers())
    }
    with tempfile.TemporaryDirectory() as folder, quiet():
        path = Path(folder) / "model.pth"
        mto.save(model, path)
        return Footprint(sum(storages.values()), path.stat().st_size)
