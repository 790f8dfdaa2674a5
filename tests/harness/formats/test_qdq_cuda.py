"""What ModelOpt's CUDA kernels return, with numbers written out: read in their sources, which each
test names.

None of them runs here.  All files are those of ModelOpt 0.47 under
modelopt/torch/kernels/quantization.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from harness import formats
from harness.formats import deviations

NAN, INF = float("nan"), float("inf")
DYNAMIC = {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}
STATIC = {-1: 16, "type": "static", "scale_bits": (4, 3)}
MX = {-1: 32, "type": "dynamic", "scale_bits": (8, 0)}
INT_ON_CUDA = formats.modelopt_rules(formats.FORMATS["INT8"], cuda=True)


def quantizer(blocks: dict[Any, Any], amax: Any = None, num_bits: Any = (2, 1)) -> Any:
    """A quantizer of ModelOpt's."""
    from modelopt.torch.quantization.config import QuantizerAttributeConfig
    from modelopt.torch.quantization.nn import TensorQuantizer

    tensor_quantizer = TensorQuantizer(
        QuantizerAttributeConfig(num_bits=num_bits, block_sizes=blocks)
    )
    if amax is not None:
        tensor_quantizer.amax = torch.tensor(amax)
    return tensor_quantizer


def answer(
    tensor_quantizer: Any, *values: float, dtype: torch.dtype = torch.float32
) -> list[float]:
    """What the oracle of *tensor_quantizer* returns for a block that begins with *values* and goes on with
    zeros.
    """
    size = tensor_quantizer.block_sizes[-1]
    x = torch.zeros(1, size, dtype=dtype)
    x[0, : len(values)] = torch.tensor(values)
    return formats.from_quantizer(tensor_quantizer)(x)[0, : len(values)].tolist()


def signs(values: list[float]) -> list[bool]:
    """Whether each value has its sign bit set."""
    return np.signbit(values).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "tensor_quantizer",
    [quantizer(DYNAMIC, 6.0), quantizer(STATIC, [[6.0]])],
    ids=["dynamic", "static"],
)
def test_nvfp4_has_no_negative_zero(tensor_quantizer: Any) -> None:
    """``where(x >= 0, y, -y)`` is compiled to fma(-scale, q, +0) (gemm/fp4_kernel_hopper.py,
    common/nvfp4_quant.py).
    """
    numbers = answer(tensor_quantizer, 6.0, -0.1, -0.0, -6.0, -0.25, -0.26)

    assert numbers == [6.0, 0.0, 0.0, -6.0, 0.0, -0.5]
    assert signs(numbers) == [False, False, False, True, False, True]


def test_nvfp4_keeps_the_sign_that_only_the_cast_turns_into_zero() -> None:
    """The zero of the fma is added in float32: what is below half of FP16's smallest number then
    becomes -0.
    """
    tensor_quantizer = quantizer(STATIC, [[6 * 2.0**-22 / 448], [6.0]])
    tensor_quantizer.global_amax = torch.tensor(6 * 2.0**-20)
    x = torch.full((2, 16), -(2.0**-24), dtype=torch.float16)

    numbers = formats.from_quantizer(tensor_quantizer)(x)

    assert numbers[0].tolist() == [0.0] * 16
    assert np.signbit(numbers[0].numpy()).all()


@pytest.mark.parametrize(
    ("tensor_quantizer", "expected"),
    [
        (quantizer(DYNAMIC, 3.0), [-3.0, 3.0, 1.0, 0.5]),
        (quantizer(STATIC, [[3.0]]), [-3.0, 3.0, 1.0, 0.5]),
    ],
    ids=["dynamic", "static"],
)
def test_nan_in_a_block_of_nvfp4(tensor_quantizer: Any, expected: list[float]) -> None:
    """NaN fails every comparison of fp4_round_magnitude and gets 6, ``x >= 0`` fails and makes it
    -6; tl.max does not count it, so the block's scale is that of the others
    (common/nvfp4_quant.py).
    """
    assert answer(tensor_quantizer, NAN, 3.0, 1.0, 0.5) == expected


def test_a_block_of_nvfp4_that_is_nan_throughout() -> None:
    """tl.minimum(NaN, 448) is 448: the block's scale is the largest, 448 * g, and -6 times it the
    global amax.
    """
    assert answer(quantizer(DYNAMIC, 2688.0), *[NAN] * 16) == [-2688.0] * 16


@pytest.mark.parametrize(
    ("amax", "value", "expected"),
    [
        (5e-5, 4.9e-5, 0.0),
        (5e-5, 3.0, 3.0),
        (5e-5, -0.3, -0.5),
        (6e-4, 6e-4, 6e-4),
        (0.0, 3.0, 3.0),
        (5e-5, NAN, -6.0),
    ],
)
def test_a_small_scale_of_dynamic_nvfp4_acts_as_one(
    amax: float, value: float, expected: float
) -> None:
    """``where(block_max_quant >= 1e-5, block_max_quant, 1.0)`` (gemm/fp4_kernel_hopper.py): numbers
    are then rounded on the plain grid, which is zero for small ones, but not for those far beyond
    the calibrated range.
    """
    (number,) = answer(quantizer(DYNAMIC, amax), value)

    assert number == pytest.approx(expected, rel=1e-6)


def test_a_scale_of_static_nvfp4_that_is_no_number() -> None:
    """A block amax of NaN has the scale 1, one of zero makes zeros of NaN too
    (nvfp4_scalar_quant).
    """
    nan = quantizer(STATIC, [[NAN], [6.0]])
    zero = quantizer(STATIC, [[0.0], [2688.0]])
    x = torch.tensor([[0.3, NAN, -5.0, 9.0] * 4, [1.0, NAN, -6.0, 0.3] * 4])
    nan.global_amax = zero.global_amax = torch.tensor(2688.0)

    by_one, zeros = (
        formats.from_quantizer(tensor_quantizer)(x) for tensor_quantizer in (nan, zero)
    )

    assert by_one[0, :4].tolist() == [0.5, -6.0, -4.0, 6.0]
    assert zeros[0].tolist() == [0.0] * 16
    assert not np.signbit(zeros[0].numpy()).any()


@pytest.mark.parametrize(
    ("num_bits", "expected"),
    [
        ((2, 1), [12.0, 12.0, -3.0]),  # 6, the last of the table, times the scale of the others: 2
        ((3, 2), [14.0, 12.0, -3.0]),  # 28 times 0.5
        ((2, 3), [15.0, 12.0, -3.0]),  # 7.5 times 2
        (8, [0.0, 12.0, -3.0]),  # an int cast from NaN is 0 on the device
        ((4, 3), [NAN, 12.0, -3.0]),
    ],
    ids=["E2M1", "E3M2", "E2M3", "INT8", "E4M3"],
)
def test_nan_in_a_block_of_mx(num_bits: Any, expected: list[float]) -> None:
    """The rest of the block stays finite, and NaN becomes a number where the format has no code for
    it (gemm/tensor_quant_mx.cu, compute_max; gemm/tensor_quant_mx.h, convert_to_types).
    """
    numbers = answer(quantizer(MX, num_bits=num_bits), NAN, 12.0, -3.0)

    np.testing.assert_array_equal(numbers, expected)


def test_mx_blocks_without_a_range() -> None:
    """The scale of a block of zeros, or of NaN throughout, is 1 (compute_scale); infinity counts as
    FLT_MAX.
    """
    tensor_quantizer = quantizer(MX)

    assert answer(tensor_quantizer, NAN, 0.0) == [6.0, 0.0]
    assert answer(tensor_quantizer, *[NAN] * 32) == [6.0] * 32
    assert answer(tensor_quantizer, INF, 3.0 * 2.0**126, 2.0**126) == [
        INF,
        3.0 * 2.0**126,
        2.0**126,
    ]


def test_nothing_is_said_of_the_sign_of_an_mx_zero() -> None:
    """quantize() of gemm/tensor_quant_mx.cu sets none where x is neither < 0 nor > 0; the rest is
    compared by bits.
    """
    oracle = formats.from_quantizer(quantizer(MX))
    x = torch.zeros(1, 32)
    x[0, :4] = torch.tensor([NAN, 12.0, 0.0, -0.1])
    expected = oracle(x)
    other = expected.clone()
    other[0, [0, 2]] = torch.tensor([-12.0, -0.0])

    assert oracle.equal(x, expected, expected).all()
    assert oracle.equal(x, other, expected).all()
    other[0, [1, 3]] = torch.tensor([-12.0, 0.0])
    assert np.flatnonzero(~oracle.equal(x, other, expected)).tolist() == [1, 3]


def test_zeros_in_e8m0_blocks_have_the_sign_that_the_rules_ask_for() -> None:
    """As with every other kind of scale."""
    x = np.array([[-0.0, -0.1, 6.0, -6.0] * 8], np.float32)
    rules = formats.Rules(keeps_negative_zero=False)

    by_definition, one_zero = (
        formats.quantize_dequantize(x, "E2M1", block_sizes={-1: 32}, scale_format="E8M0", rules=r)
        for r in (formats.DEFINITION, rules)
    )

    assert signs(by_definition[0, :4].tolist()) == [True, True, False, True]
    assert signs(one_zero[0, :4].tolist()) == [False, False, False, True]


@pytest.mark.parametrize(
    ("amax", "cuda", "cpu"),
    [
        (2.0**-24, [2.0**-24, -(2.0**-24), NAN], [0.0, -0.0, NAN]),
        (
            float(np.nextafter(np.float32(2.0**-24), np.float32(0))),
            [0.0, 0.0, 0.0],
            [0.0, -0.0, NAN],
        ),
        (0.0, [0.0, 0.0, 0.0], [0.0, -0.0, NAN]),
    ],
)
def test_integers_at_the_smallest_amax(amax: float, cuda: list[float], cpu: list[float]) -> None:
    """``if (amax < EPSILON) return 0.f`` in the kernel (gemm/tensor_quant_gpu.cu), ``amax <=
    epsilon`` and a product with 0 on a CPU (quantization/tensor_quant.py, _tensor_quant).
    """
    x = np.array([2.0**-24, -(2.0**-24), NAN], np.float32)

    on_cuda = formats.quantize_dequantize(x, 8, amax, rules=INT_ON_CUDA)
    on_cpu = formats.quantize_dequantize(
        x, 8, amax, rules=formats.modelopt_rules(formats.FORMATS["INT8"])
    )

    assert formats.same_bits(on_cuda, np.array(cuda, np.float32)).all()
    assert formats.same_bits(on_cpu, np.array(cpu, np.float32)).all()
    assert formats.same_bits(deviations._fake(x, amax, 8), on_cpu).all()


@pytest.mark.parametrize(
    ("amax", "expected"),
    [
        ([[1.0], [2.0]], True),
        ([1.0, 2.0], True),
        (3.0, True),
        ([[1.0, 2.0], [3.0, 4.0]], False),
        (None, True),
    ],
)
def test_the_kernel_of_integers_takes_one_axis(amax: Any, expected: bool) -> None:
    """With an amax along two axes ModelOpt falls back to the function for a CPU (fake_quant_impl, a
    ValueError).
    """
    tensor_quantizer = quantizer({-1: 16}, num_bits=8)
    if amax is not None:
        tensor_quantizer._amax = torch.tensor(amax)

    (step,) = formats.from_quantizer(tensor_quantizer).steps

    assert (step.rules_on_cuda == INT_ON_CUDA) is expected
    assert step.rules == formats.modelopt_rules(formats.FORMATS["INT8"])
