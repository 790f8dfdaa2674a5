"""What quantize-dequantize must do whatever the format: the properties that follow from its
definition, on random input.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from harness import formats
from harness.formats import Order, Rules
from harness.formats.layout import plan
from harness.formats.oracle import block_scale, e8m0_scale
from harness.formats.probes import probes, scales

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = (np.dtype(np.float32), np.dtype(np.float16), BFLOAT16)
SIGNED = [name for name, f in formats.FORMATS.items() if f.signed]
FLOATS = [name for name, f in formats.FORMATS.items() if f.kind == "float"]
SYMMETRIC = [name for name in SIGNED if formats.FORMATS[name].lowest == -formats.FORMATS[name].max]

names = st.sampled_from(list(formats.FORMATS))
ordinary_amax = st.floats(min_value=2.0**-20, max_value=2.0**20, width=32)
finite = st.floats(min_value=-(2.0**24), max_value=2.0**24, width=32)
quick = settings(max_examples=60, deadline=None)


def arrays(**shape: Any) -> st.SearchStrategy[NDArray[np.float32]]:
    """Finite float32 arrays of up to three dimensions."""
    return hnp.arrays(
        np.float32, hnp.array_shapes(max_dims=3, max_side=9, **shape), elements=finite
    )


def exact(x: float, amax: float, element: formats.Format) -> Fraction:
    """Q(x * max / amax) * amax / max in rational arithmetic, with a search for the nearest number
    in place of a rounding.
    """
    scaled = Fraction(x) * Fraction(element.max) / Fraction(amax)
    points = [Fraction(float(p)) for p in element.code_points]
    chosen = min(points, key=lambda p: abs(p - scaled))
    return chosen * Fraction(amax) / Fraction(element.max)


@quick
@given(x=finite, amax=ordinary_amax, name=names)
def test_value_is_the_rational_one_within_the_declared_roundings(
    x: float, amax: float, name: str
) -> None:
    """Away from ties, the result is that of exact arithmetic up to the three or four float32
    roundings of the evaluation.
    """
    element = formats.FORMATS[name]
    scaled = x / amax * element.max
    midpoints = (element.code_points[:-1] + element.code_points[1:]) / 2
    assume(np.abs(midpoints - scaled).min() > 2.0**-20 * abs(scaled))

    y = formats.quantize_dequantize(np.array([x], np.float32), name, amax)[0]

    wanted = exact(x, amax, element)
    assert abs(Fraction(float(y)) - wanted) <= abs(wanted) * Fraction(2) ** -21


@quick
@given(x=arrays(), amax=ordinary_amax, name=st.sampled_from(FLOATS))
def test_quantizing_twice_with_a_power_of_two_scale_is_quantizing_once(
    x: NDArray[np.float32], amax: float, name: str
) -> None:
    """Where the scale is exact, a quantized tensor is a fixed point."""
    a = formats.FORMATS[name].max * 2.0 ** np.floor(np.log2(amax))
    rules = Rules(order=Order.STEP)

    once = formats.quantize_dequantize(x, name, a, rules=rules)

    assert formats.same_bits(formats.quantize_dequantize(once, name, a, rules=rules), once).all()


@quick
@given(x=arrays(), amax=ordinary_amax, name=names)
def test_quantizing_twice_moves_nothing_by_more_than_a_rounding(
    x: NDArray[np.float32], amax: float, name: str
) -> None:
    """With any scale the second pass finds every number where it was, up to the float32 roundings
    of scaling back.
    """
    once = formats.quantize_dequantize(x, name, amax)

    twice = formats.quantize_dequantize(once, name, amax)

    np.testing.assert_allclose(twice, once, rtol=2.0**-21, atol=0)


@quick
@given(x=arrays(), amax=ordinary_amax, name=st.sampled_from(SYMMETRIC))
def test_it_is_odd(x: NDArray[np.float32], amax: float, name: str) -> None:
    """Negating the input of a symmetric format negates the output, zeros included."""
    y = formats.quantize_dequantize(x, name, amax)

    assert formats.same_bits(formats.quantize_dequantize(-x, name, amax), -y).all()


@quick
@given(x=arrays(), amax=ordinary_amax, name=names)
def test_it_never_decreases(x: NDArray[np.float32], amax: float, name: str) -> None:
    """A larger input never gives a smaller output."""
    ordered = np.sort(x, axis=None)

    assert (np.diff(formats.quantize_dequantize(ordered, name, amax)) >= 0).all()


@quick
@given(x=arrays(), amax=ordinary_amax, name=names)
def test_error_is_at_most_half_a_gap_in_range(
    x: NDArray[np.float32], amax: float, name: str
) -> None:
    """Within the range, the error is at most half of the gap around the input (and the roundings of
    scaling).
    """
    element = formats.FORMATS[name]
    unit = np.float64(amax) / element.max
    x = np.clip(x, np.float32(element.lowest * unit), np.float32(amax))

    y = formats.quantize_dequantize(x, name, amax)

    points = element.code_points.astype(np.float64) * unit
    gap = np.diff(points)[np.clip(np.searchsorted(points, x) - 1, 0, len(points) - 2)]
    error = np.abs(y.astype(np.float64) - x)
    assert (error <= gap / 2 + np.abs(x) * 2.0**-20).all()


@quick
@given(amax=ordinary_amax, name=names, beyond=st.floats(1.001, 1e6))
def test_it_saturates_exactly(amax: float, name: str, beyond: float) -> None:
    """Everything beyond the range, infinity included, becomes what the largest number stands
    for.
    """
    element = formats.FORMATS[name]
    top = np.float32(amax)

    x = np.array([top, top * beyond, np.inf, -top * 3, -np.inf], np.float32)
    y = formats.quantize_dequantize(x, name, amax)

    assert y[0] == y[1] == y[2]
    assert y[3] == y[4]
    np.testing.assert_allclose(
        y[[0, 3]], [amax, element.lowest * amax / element.max], rtol=2.0**-21
    )


@quick
@given(x=arrays(), amax=ordinary_amax, power=st.integers(-30, 30), name=names)
def test_powers_of_two_pass_through(
    x: NDArray[np.float32], amax: float, power: int, name: str
) -> None:
    """Scaling input and amax by a power of two scales the output by it, bit for bit."""
    factor = np.float32(2.0**power)
    assume(np.all((x == 0) | (np.abs(x) > 2.0**-60)))

    y = formats.quantize_dequantize(x * factor, name, np.float32(amax) * factor)

    assert formats.same_bits(y, formats.quantize_dequantize(x, name, amax) * factor).all()


@quick
@given(x=arrays(min_dims=2), name=names, seed=st.integers(0, 99))
def test_channels_can_be_permuted(x: NDArray[np.float32], name: str, seed: int) -> None:
    """With an amax a channel, permuting channels before or after gives the same."""
    order = np.random.default_rng(seed).permutation(x.shape[0])
    amax = np.linspace(1, 1000, x.shape[0], dtype=np.float32)

    before = formats.quantize_dequantize(x[order], name, amax[order], axis=0)

    assert formats.same_bits(
        before, formats.quantize_dequantize(x, name, amax, axis=0)[order]
    ).all()


BLOCKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "E8M0": {"scale_format": "E8M0"},
    "E4M3": {"scale_format": "E4M3", "global_amax": 2.0**20},
}


@quick
@given(
    x=hnp.arrays(np.float32, (3, 40), elements=finite),
    name=names,
    kind=st.sampled_from(list(BLOCKS)),
)
def test_blocks_do_not_know_each_other(x: NDArray[np.float32], name: str, kind: str) -> None:
    """Changing one block leaves every other as it was; an incomplete last block counts as one."""
    changed = x.copy()
    changed[1, 16:32] = 7.0

    before = formats.quantize_dequantize(x, name, block_sizes={-1: 16}, **BLOCKS[kind])
    after = formats.quantize_dequantize(changed, name, block_sizes={-1: 16}, **BLOCKS[kind])

    same = formats.same_bits(before, after)
    same[1, 16:32] = True
    assert same.all()


@quick
@given(
    x=hnp.arrays(np.float32, (6, 5, 8), elements=finite), name=names, dtype=st.sampled_from(DTYPES)
)
def test_strided_equals_contiguous(x: NDArray[np.float32], name: str, dtype: Any) -> None:
    """A transposed or sliced view gives what a contiguous copy of it gives, per tensor and per
    channel.
    """
    given_ = np.clip(x, -60000, 60000).astype(dtype)
    for view in (given_.transpose(2, 0, 1), given_[::2, :, ::-3]):
        for kw in ({}, {"axis": 1}, {"block_sizes": {-1: 4}}):
            copy = np.ascontiguousarray(view)
            y = formats.quantize_dequantize(view, name, **kw)
            assert formats.same_bits(y, formats.quantize_dequantize(copy, name, **kw)).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", formats.FORMATS)
def test_working_in_chunks_changes_nothing(name: str, dtype: Any) -> None:
    """A tensor longer than a working chunk gives what its pieces give one by one."""
    x = np.random.default_rng(0).normal(size=(1 << 16) + 7).astype(dtype)

    whole = formats.quantize_dequantize(x, name, 2.5)

    pieces = [formats.quantize_dequantize(piece, name, 2.5) for piece in np.array_split(x, 19)]
    assert formats.same_bits(whole, np.concatenate(pieces)).all()


@pytest.mark.parametrize("name", formats.FORMATS)
@pytest.mark.parametrize("shape", [(0,), (3, 0), (), (1,), (1, 1, 1)])
def test_empty_and_single_elements(name: str, shape: tuple[int, ...]) -> None:
    """An empty tensor stays empty, a scalar stays a scalar; both keep shape and dtype."""
    for dtype in DTYPES:
        y = formats.quantize_dequantize(np.ones(shape, dtype), name, 1.0)

        assert (y.shape, y.dtype) == (shape, dtype)
        np.testing.assert_allclose(y.astype(np.float64), 1.0, rtol=1e-2)


@pytest.mark.parametrize("name", formats.FORMATS)
def test_an_amax_of_zero_leaves_zeros_of_the_inputs_sign(name: str) -> None:
    """Amax 0 (or one whose scale no float32 holds) spans nothing: every number becomes zero and
    keeps its sign.
    """
    x = np.array([1.0, -1.0, 0.0, -0.0, 1e-30], np.float32)

    for amax in (0.0, 2.0**-149):
        y = formats.quantize_dequantize(x, name, amax)

        assert not y.any()
        assert (np.signbit(y) == np.signbit(x)).all() or not formats.FORMATS[name].signed


@pytest.mark.parametrize("name", formats.FORMATS)
@pytest.mark.parametrize("amax", [np.nan, np.inf])
def test_an_amax_that_is_no_number_makes_everything_nan(name: str, amax: float) -> None:
    """A NaN or infinite amax leaves nothing that could pass for a result."""
    assert np.isnan(formats.quantize_dequantize(np.ones(5, np.float32), name, amax)).all()


def test_a_negative_amax_is_refused() -> None:
    """No magnitude is negative."""
    with pytest.raises(ValueError, match="amax must not be negative"):
        formats.quantize_dequantize(np.ones(3, np.float32), "E4M3", -1.0)


@pytest.mark.parametrize("name", formats.FORMATS)
def test_nan_stays_nan_and_spreads_no_further(name: str) -> None:
    """A NaN among the input becomes NaN; its neighbours are not touched."""
    x = np.array([1.0, np.nan, 0.25], np.float32)

    y = formats.quantize_dequantize(x, name, 1.0)

    assert np.isnan(y).tolist() == [False, True, False]


@pytest.mark.parametrize("name", SIGNED)
def test_negative_zero_and_what_rounds_to_it_keep_their_sign(name: str) -> None:
    """-0 stays -0 and a negative underflow becomes -0, unless the rules say that zeros have no
    sign.
    """
    x = np.array([-0.0, -1e-12], np.float32)

    rounded = formats.quantize_dequantize(x, name, 1.0)
    dropped = formats.quantize_dequantize(x, name, 1.0, rules=Rules(keeps_negative_zero=False))

    assert np.signbit(rounded).all()
    assert not np.signbit(dropped).any()
    assert not rounded.any()
    assert not dropped.any()


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BFLOAT16], ids=str)
@pytest.mark.parametrize("name", formats.FORMATS)
def test_half_precision_is_float32_rounded_once_more(name: str, dtype: Any) -> None:
    """Double rounding, declared: 16-bit input is computed in float32 and the result rounded to 16
    bits, nowhere else.
    """
    amax = scales(16, 2.0**-14, 2.0**14)
    x = probes(formats.FORMATS[name], amax, dtype)

    y = formats.quantize_dequantize(x, name, amax, axis=0)

    with np.errstate(over="ignore"):
        wide = formats.quantize_dequantize(x.astype(np.float32), name, amax, axis=0).astype(dtype)
    assert formats.same_bits(y, wide).all()


@pytest.mark.parametrize(
    ("order", "formula"),
    [
        (Order.RECIPROCAL, lambda x, a, m, q: q(x * ((1 / a) * m)) * (1 / ((1 / a) * m))),
        (Order.RATIO, lambda x, a, m, q: q(x * (m / a)) / (m / a)),
        (Order.RECIPROCAL_RATIO, lambda x, a, m, q: q(x * ((1 / a) * m)) / ((1 / a) * m)),
        (Order.STEP, lambda x, a, m, q: q(x / (a / m)) * (a / m)),
    ],
    ids=lambda v: v.value if isinstance(v, Order) else "",
)
@pytest.mark.parametrize("name", ["E4M3", "INT8"])
def test_each_order_of_evaluation_is_the_written_one(name: str, order: Order, formula: Any) -> None:
    """The four orders compute their formulas in float32, and no two of them are the same
    function.
    """
    element = formats.FORMATS[name]
    amax = scales(200, 2.0**-10, 2.0**10, seed=3)[:, None]
    x = (np.random.default_rng(4).normal(size=(200, 300)).astype(np.float32) * amax).astype(
        np.float32
    )

    y = formats.quantize_dequantize(x, name, amax, axis=0, rules=Rules(order=order))

    expected = formula(x, amax, np.float32(element.max), element.round)
    assert expected.dtype == np.float32
    assert formats.same_bits(y, expected).all()
    for other in set(Order) - {order}:
        assert not np.array_equal(
            y, formats.quantize_dequantize(x, name, amax, axis=0, rules=Rules(order=other))
        )


@pytest.mark.parametrize("given_amax", np.linspace(2.7, 2.8, 12).tolist())
@pytest.mark.parametrize("order", Order)
def test_each_operation_rounds_to_the_input_where_the_rules_say_so(
    order: Order, given_amax: float
) -> None:
    """Working in the input's precision, scale, scaled value and result are fp16 numbers, and so is
    the amax to begin with.
    """
    x = np.random.default_rng(10).normal(size=300).astype(np.float16)
    amax, m = np.float16(given_amax), np.float16(448)
    unit, q = np.float16(1), formats.FORMATS["E4M3"].round
    s = m / amax if order is Order.RATIO else (unit / amax) * m
    step = amax / m
    forward = x / step if order is Order.STEP else x * s
    back: dict[Order, Callable[[Any], Any]] = {
        Order.STEP: lambda v: v * step,
        Order.RECIPROCAL: lambda v: v * (unit / s),
        Order.RATIO: lambda v: v / s,
        Order.RECIPROCAL_RATIO: lambda v: v / s,
    }

    y = formats.quantize_dequantize(
        x, "E4M3", given_amax, rules=Rules(order=order, working="input")
    )

    assert formats.same_bits(y, back[order](q(forward).astype(np.float16))).all()


@pytest.mark.parametrize("name", FLOATS)
def test_a_shared_power_of_two_scale(name: str) -> None:
    """MX: every block is the format's own rounding at the power of two that covers it, and nothing
    saturates.
    """
    x = np.random.default_rng(5).normal(size=(4, 96)).astype(np.float32) * np.logspace(
        -9, 9, 96
    ).astype(np.float32)
    element = formats.FORMATS[name]

    y = formats.quantize_dequantize(x, name, block_sizes={-1: 32}, scale_format="E8M0")

    blocks = x.reshape(4, 3, 32).astype(np.float64)
    scale = 2.0 ** formats.e8m0_exponent(np.abs(blocks).max(-1, keepdims=True), element)
    assert formats.same_bits(
        y, (element.round(blocks / scale) * scale).reshape(4, 96).astype(np.float32)
    ).all()
    assert (np.abs(blocks / scale) <= element.max).all()


@pytest.mark.parametrize(
    ("name", "info"),
    [
        ("E4M3", "mxfp8_e4m3"),
        ("E5M2", "mxfp8_e5m2"),
        ("E3M2", "mxfp6_e3m2"),
        ("E2M3", "mxfp6_e2m3"),
        ("E2M1", "mxfp4_e2m1"),
    ],
)
def test_mx_blocks_agree_with_gfloat(name: str, info: str) -> None:
    """With the exponent rule of MX 1.0 a block comes out as gfloat's block formats have it."""
    import gfloat.formats

    x = (
        np.random.default_rng(6).normal(size=(24, 32)).astype(np.float32)
        * np.float32(2.0) ** np.arange(-12, 12)[:, None]
    )

    y = formats.quantize_dequantize(
        x.astype(np.float32),
        name,
        block_sizes={-1: 32},
        scale_format="E8M0",
        rules=Rules(e8m0="floor"),
    )

    block = getattr(gfloat.formats, f"format_info_{info}")
    for row, got in zip(x.astype(np.float64), y, strict=True):
        np.testing.assert_array_equal(
            got, gfloat.quantize_block(block, row, gfloat.compute_scale_amax)
        )


def test_a_nan_makes_its_mx_block_nan() -> None:
    """E8M0 has a code for NaN: the block is NaN, its neighbours are not."""
    x = np.ones((1, 64), np.float32)
    x[0, 3] = np.nan

    y = formats.quantize_dequantize(x, "E4M3", block_sizes={-1: 32}, scale_format="E8M0")

    assert np.isnan(y[0, :32]).all()
    assert (y[0, 32:] == 1).all()


@pytest.mark.parametrize("block", [16, 32])
@pytest.mark.parametrize("scale_max", [448.0, 256.0])
def test_two_level_scales(block: int, scale_max: float) -> None:
    """NVFP4: a block's scale is an E4M3 number times the global one, and the element rounds to E2M1
    at that scale.
    """
    x = np.random.default_rng(7).normal(size=(8, 96)).astype(np.float32)

    y = formats.quantize_dequantize(
        x, "E2M1", block_sizes={-1: block}, scale_format="E4M3", scale_max=scale_max
    )

    blocks = x.reshape(-1, block)
    top = np.float32(np.abs(x).max() / np.float32(6 * scale_max))
    level = (np.abs(blocks).max(-1, keepdims=True) / (np.float32(6) * top)).astype(
        ml_dtypes.float8_e4m3fn
    )
    scale = level.astype(np.float32) * top
    rounded = (blocks / scale).clip(-6, 6).astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    assert level.astype(np.float32).max() == scale_max
    assert formats.same_bits(y, (rounded * scale).reshape(x.shape)).all()


def test_two_level_scale_of_zeros_and_tiny_blocks() -> None:
    """Blocks of zeros, and blocks whose scale rounds to zero in E4M3, become zeros; a tensor of
    zeros does too.
    """
    x = np.zeros((1, 48), np.float32)
    x[0, 0], x[0, 16] = 2688.0, 2.0**-10

    y = formats.quantize_dequantize(x, "E2M1", block_sizes={-1: 16}, scale_format="E4M3")

    assert y[0, 0] == 2688.0
    assert not y[0, 1:].any()
    assert not formats.quantize_dequantize(
        x * 0, "E2M1", block_sizes={-1: 16}, scale_format="E4M3"
    ).any()


def test_a_static_two_level_scale_takes_its_amaxes_as_given() -> None:
    """Stored block amaxes and a global one replace those of the tensor, so a larger input
    saturates.
    """
    x = np.full((1, 32), 100.0, np.float32)

    y = formats.quantize_dequantize(
        x, "E2M1", [6.0, 3.0], block_sizes={-1: 16}, scale_format="E4M3", global_amax=6.0
    )

    assert y[0].tolist() == [6.0] * 16 + [3.0] * 16


def test_two_level_rules_of_the_triton_kernels() -> None:
    """The scale's order of evaluation, division by constants and smallest block change the scale as
    their names say.
    """
    amax = np.array([[5.0], [0.7], [1e-4]], np.float32)
    layout = plan((3, 16), block_sizes={-1: 16})
    element = formats.FORMATS["E2M1"]
    amax = amax.reshape(layout.amax_shape)

    plain = block_scale(amax, layout, element, 5.0, 448.0)
    divided = block_scale(amax, layout, element, 5.0, 448.0, Rules(constant_division="multiply"))
    static = block_scale(amax, layout, element, 5.0, 448.0, Rules(block_scale_order="reciprocal"))
    lower = block_scale(amax, layout, element, 5.0, 256.0, Rules(block_scale_order="reciprocal"))
    cut = block_scale(amax, layout, element, 5.0, 448.0, Rules(block_scale_floor=1e-2))

    np.testing.assert_allclose(divided, plain, rtol=2.0**-22)
    np.testing.assert_allclose(static, plain, rtol=2.0**-22)
    s = np.float32(5) / np.float32(6)
    expected = formats.quantize_dequantize(amax / np.float32(6), "E4M3", s)
    assert formats.same_bits(static, expected).all()
    top = np.float32(5) * np.float32(448 / 256) / np.float32(6)
    assert formats.same_bits(
        lower, formats.quantize_dequantize(amax / np.float32(6), "E4M3", top)
    ).all()
    assert (cut.ravel() == 1).tolist() == [False, False, True]


def test_shared_scale_of_a_block_that_holds_infinity() -> None:
    """An infinite block takes the largest exponent there is."""
    assert e8m0_scale(np.array([np.inf, 0.0], np.float32), formats.FORMATS["E4M3"]).tolist() == [
        2.0**127,
        2.0**-127,
    ]


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str
)
def test_torch_in_torch_out(dtype: torch.dtype) -> None:
    """A torch tensor gives a torch tensor of its dtype and device with NumPy's bits, and is left
    untouched.
    """
    x = torch.linspace(-3, 3, 101).to(dtype).requires_grad_()
    before = x.detach().clone()

    y = formats.quantize_dequantize(x, "E4M3", torch.tensor(2.0))

    assert (y.dtype, y.device, y.requires_grad) == (dtype, x.device, False)
    assert formats.same_bits(y, formats.quantize_dequantize(formats.to_numpy(x), "E4M3", 2.0)).all()
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_torch_tensors_are_viewed_not_copied(dtype: torch.dtype) -> None:
    """The way to NumPy and back shares memory on the CPU, strided views included."""
    x = torch.arange(24, dtype=dtype).reshape(4, 6).t()

    there = formats.to_numpy(x)
    back = formats.to_torch(np.ascontiguousarray(there))

    assert there.__array_interface__["data"][0] == x.data_ptr()
    assert torch.equal(back, x)


def test_saturation_fraction_counts_what_lies_beyond_the_range() -> None:
    """Beyond amax, and below the lowest number of an asymmetric format, counts; the ends do not,
    nor does NaN.
    """
    x = np.array([1.0, 1.001, -1.0, -1.007, -1.009, np.inf, np.nan, 0.0], np.float32)

    assert formats.saturation_fraction(x, 1.0, "E4M3") == 4 / 8
    assert formats.saturation_fraction(x, 1.0, "INT8") == 3 / 8
    assert formats.saturation_fraction(x, 1.0, 8, unsigned=True) == 5 / 8
    assert formats.saturation_fraction(x.reshape(2, 4), [1.0, 2.0], "E4M3", axis=0) == 3 / 8
    assert formats.saturation_fraction(x[:0], 1.0, "E4M3") == 0


def test_underflow_fraction_counts_numbers_lost_to_zero() -> None:
    """Of the non-zero numbers those that became zero count; zeros and NaN do not."""
    x = np.array([1.0, 1e-9, -1e-9, 0.0, np.nan], np.float32)

    assert formats.underflow_fraction(x, formats.quantize_dequantize(x, "E4M3", 1.0)) == 2 / 3
    assert formats.underflow_fraction(x[3:], x[3:]) == 0


def test_wrong_scales_show_in_the_fractions_and_not_in_the_noise() -> None:
    """An amax 16 times off leaves FP8's signal-to-noise ratio where it was; saturation or underflow
    shows at once.
    """
    x = np.random.default_rng(8).normal(size=100_000).astype(np.float32)
    amax = float(np.abs(x).max())

    def ratio(a: float) -> float:
        y = formats.quantize_dequantize(x, "E4M3", a)
        return float(
            10
            * np.log10((x.astype(np.float64) ** 2).sum() / ((x - y).astype(np.float64) ** 2).sum())
        )

    assert abs(ratio(amax) - ratio(16 * amax)) < 0.5
    assert formats.saturation_fraction(x, amax / 16, "E4M3") > 0.5
    small, large = (
        formats.underflow_fraction(x, formats.quantize_dequantize(x, "E4M3", a))
        for a in (amax, 16 * amax)
    )
    assert large > 10 * small


@pytest.mark.parametrize(
    ("shape", "kw", "amax_shape"),
    [
        ((4, 6), {}, (1, 1)),
        ((4, 6), {"axis": 0}, (4, 1)),
        ((4, 6), {"axis": -1}, (1, 6)),
        ((2, 3, 4), {"axis": (0, 2)}, (2, 1, 4)),
        ((2, 3, 4), {"block_sizes": {-1: None}}, (2, 3, 1, 1)),
        ((4, 10), {"block_sizes": {-1: 4}}, (4, 3, 1)),
        ((5, 10), {"block_sizes": {-1: 4, -2: 2}}, (3, 1, 3, 1)),
        ((2, 5, 10), {"block_sizes": {2: 4, 1: 2}}, (2, 3, 1, 3, 1)),
    ],
)
def test_layout_cuts_and_joins(
    shape: tuple[int, ...], kw: dict[str, Any], amax_shape: tuple[int, ...]
) -> None:
    """A layout has one amax for each group, each the largest magnitude of its group, and joining
    undoes cutting.
    """
    x = np.random.default_rng(9).normal(size=shape).astype(np.float32)
    layout = plan(shape, **kw)

    cut = layout.cut(x)
    amax = layout.amax(cut).squeeze()

    np.testing.assert_array_equal(layout.join(cut), x)
    assert layout.amax_shape == layout.amax(cut).shape
    assert amax.size == int(np.prod(amax_shape))
    assert amax.max() == np.abs(x).max()
    spread = layout.join(np.broadcast_to(layout.amax(cut), cut.shape))
    assert (np.abs(x) <= spread).all()
    assert np.isin(spread, np.abs(x)).all()


@pytest.mark.parametrize(
    ("kw", "message"),
    [
        ({"axis": 5}, "axis 5 does not exist"),
        ({"axis": 0, "block_sizes": {-1: 4}}, "exclude each other"),
        ({"block_sizes": {-1: -4}}, "block size -4"),
        ({"axis": 0, "amax": np.ones(3)}, "amax has 3 elements"),
        ({"scale_format": "E5M2", "block_sizes": {-1: 4}}, "stored as E8M0 or E4M3"),
    ],
)
def test_what_does_not_fit_together_is_refused(kw: dict[str, Any], message: str) -> None:
    """Axes that do not exist, contradicting layouts, amaxes of another size and unknown scales are
    errors with a reason.
    """
    with pytest.raises(ValueError, match=message):
        formats.quantize_dequantize(np.ones((4, 8), np.float32), "E4M3", **kw)


def test_integer_input_is_refused() -> None:
    """Codes are not numbers to quantize."""
    with pytest.raises(ValueError, match="floating point input, not int64"):
        formats.quantize_dequantize(np.arange(4), "INT8", 1.0)


def test_comparing_different_tensors_is_refused() -> None:
    """Bits of different dtypes or shapes are not compared."""
    with pytest.raises(ValueError, match="nothing to compare"):
        formats.same_bits(np.ones(3, np.float32), np.ones(3, np.float16))


def test_same_bits_tells_zeros_apart_and_not_nans() -> None:
    """+0 and -0 differ; any two NaNs are the same."""
    a = np.array([0.0, 1.0, np.nan], np.float32)
    b = np.array([-0.0, 1.0, -np.nan], np.float32)

    assert formats.same_bits(a, b).tolist() == [False, True, True]
