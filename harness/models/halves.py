"""FP16 on a CPU: the same bits in less time.

Few CPUs compute in FP16, and torch's and ModelOpt's own ways around it cost most of a forward
there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

#: Rows of one matrix product in FP32: always as many, as the order of the sums depends on their
#: number.
_ROWS = 512
#: Every FP16 number, by its code.  Made by NumPy: torch would start its threads, and whoever
#: imports this and forks, as the checkpoint suite's server does, leaves children that wait for them
#: forever.
_NUMBERS = np.arange(1 << 16, dtype=np.uint16).view(np.float16)

Table = npt.NDArray[np.uint16]


@contextmanager
def half_products() -> Iterator[None]:
    """Within the block a CPU without FP16 arithmetic multiplies FP16 matrices in FP32 and rounds
    the sums once.

    That is what tensor cores compute, and what torch's own kernel for such a CPU computes but for
    the order of its sums, at a sixth of the speed (measured with torch 2.13 on a CPU with AVX-512
    and no FP16).  Linear and convolution layers only: ModelOpt keeps attention's function for
    itself.  Elsewhere the block does nothing.
    """
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", None)
    if supported is not None and supported():
        yield
        return
    linear, conv2d = F.linear, F.conv2d

    def of_rows(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if not _is_half_on_cpu(x):
            return linear(x, weight, bias)
        # None passes through a buffer
        if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
            return linear(x.float(), weight.float(), None if bias is None else bias.float()).half()
        rows = x.reshape(-1, x.shape[-1])
        padded = torch.empty(len(rows) + -len(rows) % _ROWS, rows.shape[1])
        padded[: len(rows)].copy_(rows)
        padded[len(rows) :].zero_()
        products = torch.empty(len(padded), len(weight), dtype=x.dtype)
        wide, offset = weight.float(), None if bias is None else bias.float()
        for part, product in zip(
            torch.split(padded, _ROWS), torch.split(products, _ROWS), strict=True
        ):
            product.copy_(linear(part, wide, offset))
        return products[: len(rows)].view(*x.shape[:-1], len(weight))

    def of_pictures(x: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any) -> Tensor:
        if not _is_half_on_cpu(x):
            return conv2d(x, weight, bias, *args)
        return conv2d(
            x.float(), weight.float(), None if bias is None else bias.float(), *args
        ).half()

    with mock.patch.object(F, "linear", of_rows), mock.patch.object(F, "conv2d", of_pictures):
        yield


@contextmanager
def looked_up() -> Iterator[None]:
    """Within the block, on a CPU, quantizers with one range look up FP16 numbers in a table of
    their outputs.

    There are 65,536 such numbers.  A quantizer answers all of them when it first runs, ModelOpt's
    own function does that, and from then on a tensor costs a read an element instead of FP8's chain
    of casts (measured with torch 2.13 on a CPU with AVX-512: 15 ns an element and 1 to 3).  The
    first tensor goes both ways: a quantizer whose answer is not the table's, for depending on more
    than the number, keeps its function.
    """
    from modelopt.torch.quantization.nn import TensorQuantizer

    own: Callable[[Any, Tensor], Tensor] = TensorQuantizer._fake_quantize
    tables: dict[Any, Table | None] = {}

    def quantized(self: Any, inputs: Tensor) -> Tensor:
        if not _is_half_on_cpu(inputs) or torch.is_grad_enabled():
            return own(self, inputs)
        if self not in tables:
            outputs = own(self, inputs)
            tables[self] = (
                _table(partial(own, self), inputs, outputs) if _has_one_range(self) else None
            )
            return outputs
        table = tables[self]
        return own(self, inputs) if table is None else _read(table, inputs)

    with mock.patch.object(TensorQuantizer, "_fake_quantize", quantized):
        yield


def _is_half_on_cpu(x: Tensor) -> bool:
    return x.dtype is torch.float16 and x.device.type == "cpu" and x.numel() > 0


def _has_one_range(quantizer: Any) -> bool:
    amax = getattr(quantizer, "_amax", None)
    return (
        amax is not None
        and amax.numel() == 1
        and not quantizer.block_sizes
        and not quantizer._dynamic
    )


def _table(function: Callable[[Tensor], Tensor], inputs: Tensor, outputs: Tensor) -> Table | None:
    """Return the outputs of *function* for every FP16 number, by code; None if the table does not
    give *outputs* for *inputs*.
    """
    answers = function(torch.from_numpy(_NUMBERS))
    if answers.dtype is not torch.float16 or outputs.dtype is not torch.float16:
        return None
    table = _codes(answers)
    return table if np.array_equal(table[_codes(inputs)], _codes(outputs)) else None


def _read(table: Table, x: Tensor) -> Tensor:
    return torch.from_numpy(np.take(table, _codes(x)).view(np.int16)).view(torch.float16)


def _codes(x: Tensor) -> Table:
    return x.detach().contiguous().view(torch.int16).numpy().view(np.uint16)
