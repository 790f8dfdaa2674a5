"""Compare the output of every quantizer of a model with the oracle, on the tensors that flow
through it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness import formats
from harness.models import families
from harness.models.hooks import after_each
from harness.quantization.maps import tensor_quantizers


@dataclass(frozen=True)
class Observation:
    """One enabled quantizer in one forward.

    ``elements`` went in, ``mismatches`` came out with other bits than the oracle's; ``first``
    describes one of them. ``saturation`` is the share beyond the range, ``underflow`` the share of
    non-zero elements that became zero. ``unsupported`` says why the oracle could not speak.
    """

    name: str
    elements: int
    mismatches: int
    first: str
    saturation: float
    underflow: float
    unsupported: str = ""

    def as_dict(self) -> dict[str, Any]:
        """A plain record for JSON."""
        return asdict(self)


def observe(
    model: nn.Module, forward: Callable[[nn.Module], object] | None = None
) -> tuple[Observation, ...]:
    """Compare every enabled quantizer's output with the oracle's, bit for bit, during one forward
    of *model*.

    Args:
        model: quantized, not folded: folding hides the weight quantizers.
        forward: runs the model; by default ``families.sample_inputs``.
    """
    observations: dict[str, Observation] = {}

    def see(name: str, quantizer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if (
            name not in observations
            and isinstance(output, Tensor)
            and getattr(quantizer, "is_enabled", False)
        ):
            observations[name] = _compare(name, quantizer, args[0], output)

    with torch.no_grad(), after_each(tensor_quantizers(model), see):
        (forward or (lambda m: families.forward(m, families.sample_inputs(m))))(model)
    return tuple(observations.values())


def _compare(name: str, quantizer: Any, x: Tensor, output: Tensor) -> Observation:
    try:
        oracle = formats.from_quantizer(quantizer)
        expected = oracle(x)
    except NotImplementedError as error:
        return Observation(name, x.numel(), 0, "", 0.0, 0.0, str(error))
    equal = torch.as_tensor(oracle.equal(x, output, expected)).flatten()
    wrong = int((~equal).sum())
    first = ""
    if wrong:
        at = int((~equal).nonzero()[0])
        values = [float(t.flatten()[at]) for t in (x, output, expected)]
        first = "input {:.9g}: ModelOpt gives {:.9g}, the definition {:.9g}".format(*values)
    saturation, underflow = oracle.fractions(x)
    return Observation(name, x.numel(), wrong, first, float(saturation), float(underflow))
