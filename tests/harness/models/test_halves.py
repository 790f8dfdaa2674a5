"""FP16 on a CPU: products are the right ones, and what is looked up has the bits of what is
computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from modelopt.torch.quantization.config import QuantizerAttributeConfig
from modelopt.torch.quantization.nn import TensorQuantizer
from torch import Tensor, nn
from torch.nn import functional as F

from harness.models.halves import half_products, looked_up

# -- products --------------------------------------------------------------------------------------


@pytest.fixture
def no_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without FP16 arithmetic, whatever this one has."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: False)


def drawn(*shape: int, scale: float = 1.0) -> Tensor:
    """FP16 numbers of a seeded normal distribution."""
    return (scale * torch.randn(*shape, generator=torch.Generator().manual_seed(5))).half()


@pytest.mark.usefixtures("no_half")
@pytest.mark.parametrize("shape", [(192,), (1, 192), (3, 37, 192), (64, 37, 192), (0, 192)])
def test_half_products_are_sums_in_single_precision_rounded_once(shape: tuple[int, ...]) -> None:
    """|y - x W' - b| is at most half an ulp of FP16, and the error of an FP32 sum."""
    x, weight, bias = drawn(*shape), drawn(96, 192, scale=0.05), drawn(96)

    with half_products():
        product = F.linear(x, weight, bias)

    exact = F.linear(x.double(), weight.double(), bias.double())
    assert product.dtype is torch.float16
    assert product.shape == exact.shape
    assert torch.all((product.double() - exact).abs() <= exact.abs() * 2**-11 + 1e-5)


@pytest.mark.usefixtures("no_half")
@pytest.mark.parametrize("rows", [1, 2, 7, 259, 511, 513])
def test_half_products_do_not_depend_on_the_other_rows(rows: int) -> None:
    """A row's product has the same bits in a batch of any size."""
    x, weight = drawn(1200, 768), drawn(192, 768, scale=0.05)

    with half_products():
        whole, part = F.linear(x, weight), F.linear(x[:rows], weight)

    assert torch.equal(whole[:rows], part)


@pytest.mark.usefixtures("no_half")
def test_half_products_of_pictures() -> None:
    """A convolution of FP16 pictures is the one in FP32, rounded once."""
    conv = nn.Conv2d(3, 16, 8, stride=8, bias=False).half().requires_grad_(False)
    x = drawn(4, 3, 48, 48)

    with half_products():
        pictures = conv(x)

    assert torch.equal(pictures, conv.float()(x.float()).half())


@pytest.mark.usefixtures("no_half")
def test_half_products_leave_other_types_alone() -> None:
    """FP32 and BF16 products are torch's own, within the block; behind it so are those of FP16."""
    x, weight = drawn(33, 64).float(), drawn(16, 64).float()
    linear, conv2d = F.linear, F.conv2d
    expected = [linear(x, weight), linear(x.bfloat16(), weight.bfloat16())]

    with half_products():
        products = [F.linear(x, weight), F.linear(x.bfloat16(), weight.bfloat16())]

    assert all(torch.equal(a, b) for a, b in zip(expected, products, strict=True))
    assert (F.linear, F.conv2d) == (linear, conv2d)


def test_half_products_are_torchs_where_the_processor_has_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a CPU with FP16 arithmetic nothing is swapped."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: True)
    linear = F.linear

    with half_products():
        assert F.linear is linear


def test_gradients_pass_through_half_products() -> None:
    """Where a gradient is wanted, the product of FP16 matrices has torch's own gradient but for
    rounding.
    """
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(6, 32, generator=generator).half().requires_grad_(True)
    weight = torch.randn(16, 32, generator=generator).half()

    with half_products():
        product = F.linear(x, weight)
        (gradient,) = torch.autograd.grad(product.float().sum(), x)

    assert product.dtype is torch.float16
    torch.testing.assert_close(
        gradient, weight.float().sum(0).half().expand(6, 32), rtol=2e-3, atol=2e-3
    )


# -- quantizers ------------------------------------------------------------------------------------

#: Every FP16 number once, and in another order.
ALL = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16)
SHUFFLED = ALL[torch.randperm(1 << 16, generator=torch.Generator().manual_seed(7))]


def quantizer(amax: list[list[float]] | float | None = 3.0, **attributes: Any) -> Any:
    """A calibrated TensorQuantizer; with an *amax* of None a dynamic one."""
    tensor_quantizer = TensorQuantizer(QuantizerAttributeConfig(**attributes))
    if amax is not None:
        tensor_quantizer.amax = torch.as_tensor(amax)
    return tensor_quantizer


@pytest.fixture
def entered(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The tensors that ModelOpt's own function was called with."""
    calls: list[Tensor] = []
    own: Callable[[Any, Tensor], Tensor] = TensorQuantizer._fake_quantize

    def noted(self: Any, inputs: Tensor) -> Tensor:
        calls.append(inputs)
        return own(self, inputs)

    monkeypatch.setattr(TensorQuantizer, "_fake_quantize", noted)
    return calls


def same(a: Tensor, b: Tensor) -> bool:
    """Equal codes, of the same shape and dtype."""
    return (
        a.dtype is b.dtype is torch.float16
        and a.shape == b.shape
        and torch.equal(a.view(torch.int16), b.view(torch.int16))
    )


@pytest.mark.parametrize("amax", [2.0**-24, 2.0**-14, 0.1, 3.0, 448.0, 65504.0])
@pytest.mark.parametrize(
    "attributes",
    [{"num_bits": (4, 3)}, {"num_bits": 8}, {"num_bits": 8, "narrow_range": True}, {"num_bits": 4}],
    ids=["E4M3", "INT8", "INT8-narrow", "INT4"],
)
@torch.no_grad()
def test_what_is_looked_up_has_the_bits_of_what_is_computed(
    attributes: dict[str, Any], amax: float
) -> None:
    """Of every FP16 number: both zeros, subnormals, infinities and NaN among them."""
    tensor_quantizer = quantizer(amax, **attributes)
    expected = tensor_quantizer(SHUFFLED)

    with looked_up():
        first, second = tensor_quantizer(ALL[:100]), tensor_quantizer(SHUFFLED)

    assert same(first, tensor_quantizer(ALL[:100]))
    assert same(second, expected)


@torch.no_grad()
def test_modelopts_own_function_runs_twice(entered: list[Tensor]) -> None:
    """Once on the first tensor and once on all numbers, for each quantizer; in the next block
    again.
    """
    first, other, x = quantizer(1.0, num_bits=(4, 3)), quantizer(2.0, num_bits=8), drawn(4, 9)

    with looked_up():
        for _ in range(5):
            first(x), other(x)
    assert [t.numel() for t in entered] == [36, 1 << 16] * 2

    first.amax = torch.tensor(0.5)
    expected = first(x)
    with looked_up():
        results = [first(x), first(x)]
    assert [t.numel() for t in entered[4:]] == [36, 36, 1 << 16]
    assert all(same(f, expected) for f in results)


@pytest.mark.parametrize(
    "tensor_quantizer",
    [
        quantizer([[1.0], [2.0], [3.0]], num_bits=(4, 3), axis=0),
        quantizer(None, num_bits=(4, 3), type="dynamic"),
        quantizer([[1.0], [2.0], [3.0]], num_bits=4, block_sizes={-1: 16}),
        quantizer(None, num_bits=(4, 3)),
    ],
    ids=["per-channel", "dynamic", "blocks", "uncalibrated"],
)
@torch.no_grad()
def test_a_range_a_channel_a_block_or_a_tensor_is_computed(
    tensor_quantizer: Any, entered: list[Tensor]
) -> None:
    """What depends on more than the number is never tabulated: each tensor goes to ModelOpt's
    function, and no other.
    """
    x = drawn(3, 16)
    expected = tensor_quantizer(x), tensor_quantizer(2 * x)

    with looked_up():
        results = tensor_quantizer(x), tensor_quantizer(2 * x)

    assert [t.numel() for t in entered] == [48] * 4
    assert all(same(a, b) for a, b in zip(results, expected, strict=True))


@torch.no_grad()
def test_a_function_of_the_whole_tensor_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quantizer that says it has one range and looks at its tensor keeps its function."""
    monkeypatch.setattr(TensorQuantizer, "_fake_quantize", lambda self, x: x - x[:1].expand_as(x))
    tensor_quantizer, x = quantizer(1.0, num_bits=8), drawn(64)

    with looked_up():
        results = [tensor_quantizer(x), tensor_quantizer(x + 1)]

    assert same(results[0], tensor_quantizer(x))
    assert same(results[1], tensor_quantizer(x + 1))


def test_other_types_and_gradients_are_computed(entered: list[Tensor]) -> None:
    """Nothing is looked up in FP32, nor where a gradient may be asked for."""
    tensor_quantizer, x = quantizer(1.0, num_bits=(4, 3)), drawn(8)

    with looked_up():
        tensor_quantizer(x), tensor_quantizer(x)
        with torch.no_grad():
            tensor_quantizer(x.float()), tensor_quantizer(x.float())

    assert [t.numel() for t in entered] == [8] * 4


@torch.no_grad()
def test_what_is_not_contiguous_is_looked_up_in_place() -> None:
    """A transposed tensor comes back with its shape and its numbers where they were."""
    tensor_quantizer, x = quantizer(1.0, num_bits=(4, 3)), drawn(6, 10).T

    with looked_up():
        results = [tensor_quantizer(x), tensor_quantizer(x)]

    assert all(torch.equal(f, tensor_quantizer(x)) for f in results)


def test_modelopts_function_is_put_back() -> None:
    """Also when something raises within the block."""
    own = TensorQuantizer._fake_quantize

    def fail() -> None:
        with looked_up():
            assert TensorQuantizer._fake_quantize is not own
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fail()

    assert TensorQuantizer._fake_quantize is own


@torch.no_grad()
def test_a_wrong_table_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison of the first tensor is what these tests trust: without it, a wrong table gives
    wrong bits.
    """
    monkeypatch.setattr(TensorQuantizer, "_fake_quantize", lambda self, x: x - x[:1].expand_as(x))
    tensor_quantizer, x = quantizer(1.0, num_bits=8), drawn(64)

    with mock.patch("numpy.array_equal", return_value=True), looked_up():
        tensor_quantizer(x)
        result = tensor_quantizer(x)

    assert not same(result, tensor_quantizer(x))
