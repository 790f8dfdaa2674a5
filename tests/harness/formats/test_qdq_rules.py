"""The oracle where a tensor is cut and where a scale is at its ends, with results worked out by
hand: `test_qdq` asks for what holds of any input.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from harness import formats
from harness.formats import Order, Rules, nf4
from harness.formats.arithmetic import quantize_scaled, settle_amax
from harness.formats.layout import plan
from harness.formats.oracle import block_scale, e8m0_scale

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
E2M1, E4M3, INT8 = (formats.FORMATS[name] for name in ("E2M1", "E4M3", "INT8"))
INF, NAN = np.inf, np.nan


def f32(*values: float) -> Any:
    """A vector of float32."""
    return np.array(values, np.float32)


def same(numbers: Any, *expected: float) -> bool:
    """Whether the numbers are these, zeros distinguished by their sign, NaN by nothing."""
    return bool(formats.same_bits(numbers.astype(np.float32), f32(*expected)).all())


# --- layout ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "axis", "blocks", "padded", "split", "reduce"),
    [
        ((2, 3), None, None, (2, 3), (2, 3), (0, 1)),
        ((2, 3), None, {}, (2, 3), (2, 3), (0, 1)),
        ((2, 3), (), None, (2, 3), (2, 3), (0, 1)),
        ((2, 3), 0, None, (2, 3), (2, 3), (1,)),
        ((2, 3), -2, None, (2, 3), (2, 3), (1,)),
        ((2, 3), 1, {}, (2, 3), (2, 3), (0,)),
        ((2, 3, 4), [-1, 0], None, (2, 3, 4), (2, 3, 4), (1,)),
        ((2, 3), (0, 1), None, (2, 3), (2, 3), ()),
        ((2, 7), None, {1: 3}, (2, 9), (2, 3, 3), (2,)),
        ((2, 7), None, {-1: 7}, (2, 7), (2, 1, 7), (2,)),
        ((2, 7), None, {-1: 9}, (2, 9), (2, 1, 9), (2,)),
        ((2, 7), None, {-1: 1}, (2, 7), (2, 7, 1), (2,)),
        ((5, 7), None, {0: 2, 1: 4}, (6, 8), (3, 2, 2, 4), (1, 3)),
        ((5, 7), None, {0: None}, (5, 7), (1, 5, 7), (1,)),
        ((5, 7), None, {-1: None, -2: 2}, (6, 7), (3, 2, 1, 7), (1, 3)),
        ((5, 1), None, {-1: None}, (5, 1), (5, 1, 1), (2,)),
        ((5, 0), None, {-1: None}, (5, 0), (5, 0, 1), (2,)),
        ((5, 0), None, {-1: 4}, (5, 0), (5, 0, 4), (2,)),
        ((), None, None, (), (), ()),
    ],
)
def test_how_a_tensor_is_cut(
    shape: tuple[int, ...],
    axis: Any,
    blocks: Mapping[int, int | None] | None,
    padded: tuple[int, ...],
    split: tuple[int, ...],
    reduce: tuple[int, ...],
) -> None:
    """Axes count from either end, a block without a length is the whole axis, an incomplete one is
    filled up.
    """
    layout = plan(shape, axis, blocks)

    assert (layout.shape, layout.padded, layout.split, layout.reduce) == (
        shape,
        padded,
        split,
        reduce,
    )
    assert layout.amax_shape == tuple(1 if i in reduce else n for i, n in enumerate(split))


def test_two_dimensional_blocks_that_do_not_divide() -> None:
    """Blocks of 2 x 4 in 3 x 5: six numbers are where their block says, zeros fill what is missing
    and are cut off.
    """
    x = np.arange(15, dtype=np.float32).reshape(3, 5) - 7
    layout = plan(x.shape, block_sizes={0: 2, 1: 4})

    cut = layout.cut(x)

    assert cut.shape == (2, 2, 2, 4)
    assert cut[0, :, 0].tolist() == [[-7, -6, -5, -4], [-2, -1, 0, 1]]
    assert cut[0, :, 1].tolist() == [[-3, 0, 0, 0], [2, 0, 0, 0]]
    assert cut[1, :, 0].tolist() == [[3, 4, 5, 6], [0, 0, 0, 0]]
    assert cut[1, :, 1].tolist() == [[7, 0, 0, 0], [0, 0, 0, 0]]
    assert layout.amax(cut).reshape(2, 2).tolist() == [[7, 3], [6, 7]]
    assert np.array_equal(layout.join(cut), x)
    # The largest magnitude of each block is kept, and INT4's step is a seventh of it.
    y = formats.quantize_dequantize(
        x, "INT4", block_sizes={0: 2, 1: 4}, rules=Rules(order=Order.STEP)
    )
    assert y[:2].tolist() == [[-7, -6, -5, -4, -3], [-2, -1, 0, 1, f32(3)[0] / 7 * 5]]
    assert y[2, [3, 4]].tolist() == [6, 7]


def test_the_range_of_what_holds_nan_or_nothing() -> None:
    """A NaN is its slice's amax, an empty slice has 0, and amax is float32 whatever the tensor
    is.
    """
    x = np.array([[1.0, -3.0], [NAN, 9.0]])
    per_row, empty = plan((2, 2), 0), plan((0, 3))

    with np.errstate(invalid="ignore"):
        assert same(per_row.amax(x).ravel(), 3, NAN)
        assert {per_row.amax(x.astype(kind)).dtype for kind in (float, np.float16, BFLOAT16)} == {
            np.dtype(np.float32)
        }
    assert empty.amax(np.empty((0, 3))).tolist() == [[0]]


@pytest.mark.parametrize("amax", [[1, 2, 3], [[1], [2], [3]], [[1, 2, 3]], torch.tensor([1, 2, 3])])
def test_an_amax_of_the_right_size_fits_in_any_shape(amax: Any) -> None:
    """Three numbers are those of three channels, however they are arranged; they become float32."""
    fitted = plan((4, 3), axis=1).fit(amax)

    assert (fitted.tolist(), fitted.dtype) == ([[1, 2, 3]], np.dtype(np.float32))


@pytest.mark.parametrize("amax", [0.1, [0.1], [[[[0.1]]]]])
def test_a_single_amax_serves_all(amax: Any) -> None:
    """One number gets an axis of length one for each that the tensor is cut into, and serves every
    block.
    """
    fitted = plan((4, 6), block_sizes={1: 3}).fit(amax)

    assert (fitted.shape, fitted.dtype) == ((1, 1, 1), np.dtype(np.float32))
    assert fitted.item() == np.float32(0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: plan((4, 6), axis=0).fit([1, 2, 3]),
            r"amax has 3 elements \(shape \(3,\)\), the tensor of shape \(4, 6\) takes 4",
        ),
        (
            lambda: plan((4, 6), block_sizes={-1: 4}).fit(np.ones((4, 3))),
            r"12 elements \(shape \(4, 3\)\).* takes 8",
        ),
        (lambda: plan((4, 6), axis=2), "axis 2 does not exist in a tensor of 2 dimensions"),
        (lambda: plan((4, 6), axis=-3), "axis -3 does not exist in a tensor of 2 dimensions"),
        (lambda: plan((4, 6), axis=(0, 2)), "axis 2 does not exist"),
        (lambda: plan((4, 6), block_sizes={2: 3}), "axis 2 does not exist"),
        (lambda: plan((), axis=0), "axis 0 does not exist in a tensor of 0 dimensions"),
        (
            lambda: plan((4, 6), axis=0, block_sizes={1: 3}),
            "^axis and block_sizes exclude each other$",
        ),
        (lambda: plan((4, 6), block_sizes={1: -1}), "^block size -1 along axis 1$"),
        (lambda: settle_amax([1, -0.5, -2], Rules()), "^amax must not be negative, found -2.0$"),
        (
            lambda: formats.quantize_dequantize(f32(1), "E4M3", 1.0, scale_format="e5m2"),
            "E8M0 or E4M3, not 'e5m2'$",
        ),
        (
            lambda: formats.quantize_dequantize(np.ones(2, np.int8), "E4M3"),
            "takes floating point input, not int8$",
        ),
        (
            lambda: formats.same_bits(np.ones((2, 1), np.float32), np.ones(2, np.float32)),
            r"^float32 \(2, 1\) against float32 \(2,\): nothing to compare$",
        ),
    ],
)
def test_a_refusal_names_what_was_found(call: Any, message: str) -> None:
    """What does not fit together is refused with the numbers, shapes and names that do not."""
    with pytest.raises(ValueError, match=message):
        call()


# --- amax at its ends -----------------------------------------------------------------------------


def test_where_amax_counts_as_zero() -> None:
    """Zero does, up to a floor the floor does too, a negative one if the rules say so; NaN and
    infinity never do.
    """
    amax = [0, 2.0**-24, 2.0**-23, INF, NAN]

    plain, floor = settle_amax(amax, Rules()), settle_amax(amax, Rules(amax_floor=2.0**-24))
    negative = settle_amax([-1, 0, 1], Rules(negative_amax_is_zero=True))

    assert plain[1].tolist() == [True, False, False, False, False]
    assert floor[1].tolist() == [True, True, False, False, False]
    assert same(floor[0], *amax)
    assert negative[1].tolist() == [True, True, False]


def test_what_stands_in_for_an_amax_of_zero() -> None:
    """With a stand-in nothing counts as zero any more; amax is float32 and what was given is not
    written to.
    """
    amax = np.array([0, 1, -3])

    a, zero = settle_amax(amax, Rules(zero_amax_acts_as=1.5, negative_amax_is_zero=True))

    assert (a.tolist(), a.dtype) == ([1.5, 1, 1.5], np.dtype(np.float32))
    assert (zero.tolist(), zero.dtype) == ([False] * 3, np.dtype(bool))
    assert amax.tolist() == [0, 1, -3]
    assert settle_amax(0.1, Rules())[0] == np.float32(0.1)


@pytest.mark.parametrize("working", ["float32", "input"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, BFLOAT16], ids=str)
@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize("element", [E4M3, INT8], ids=lambda e: e.name)
@pytest.mark.parametrize("amax", [0.0, -0.0, -1.0, 2.0**-30])
def test_what_spans_nothing_becomes_zero_of_its_sign(
    amax: float, element: formats.Format, order: Order, dtype: Any, working: Any
) -> None:
    """In every order and precision an amax of zero, below the floor or negative sends numbers to
    zeros of their sign; NaN stays.
    """
    x = f32(1, -1, 0, -0.0, NAN, 60000).astype(dtype)
    rules = Rules(order=order, working=working, negative_amax_is_zero=True, amax_floor=2.0**-24)

    assert same(quantize_scaled(x, amax, element, rules), 0, -0.0, 0, -0.0, NAN, 0)


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize(
    ("dtype", "working", "amax"), [(np.float32, "float32", 2.0**-149), (np.float16, "input", 2e-8)]
)
def test_a_scale_that_no_number_holds_spans_nothing(
    order: Order, dtype: Any, working: Any, amax: float
) -> None:
    """The smallest float32 or fp16 over 448 is zero, and 448 over it infinity: zeros come out, not
    NaN.
    """
    x = f32(1, -1, 0, -0.0, NAN).astype(dtype)

    assert same(
        quantize_scaled(x, amax, E4M3, Rules(order=order, working=working)), 0, -0.0, 0, -0.0, NAN
    )


@pytest.mark.parametrize("working", ["float32", "input"])
@pytest.mark.parametrize("order", Order)
def test_a_scale_of_one_is_a_scale_like_any_other(order: Order, working: Any) -> None:
    """With amax at the largest number nothing is scaled: 448 stays, 1.06 rounds to 1, 5000
    saturates.
    """
    x = f32(448, 1.06, -5000, 0).astype(np.float16)

    assert same(
        quantize_scaled(x, 448.0, E4M3, Rules(order=order, working=working)), 448, 1, -448, 0
    )


@pytest.mark.parametrize("working", ["float32", "input"])
def test_no_warning_leaves_the_arithmetic(working: Any) -> None:
    """Divisions by zero and infinities on the way to a result are part of it: NumPy is not to warn
    of them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for order in Order:
            y = quantize_scaled(
                f32(1, INF).astype(np.float16), 0.0, E4M3, Rules(order=order, working=working)
            )
            assert not np.isinf(y).any()


@pytest.mark.parametrize("element", [E4M3, INT8], ids=lambda e: e.name)
def test_floats_are_scaled_by_reciprocals_and_integers_by_ratios(element: formats.Format) -> None:
    """By default a float's scale is (1 / a) * max and undone by 1 / scale, an integer's is max
    / a.
    """
    amax = (np.arange(1, 200) / 7).astype(np.float32)
    unit, top = np.float32(1), np.float32(element.max)
    reciprocal, ratio = (unit / amax) * top, top / amax
    expected = {"float": top * (unit / reciprocal), "int": top / ratio}

    y = quantize_scaled(amax, amax, element)

    assert formats.same_bits(y, expected[element.kind]).all()
    assert not np.array_equal(expected["float"], expected["int"])


# --- chunks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(70_000, 2), (2, 40_000), (1, 40_000), (3, 2, 20_000), (40_000, 1)]
)
@pytest.mark.parametrize("axis", [0, 1])
def test_a_channels_scale_follows_it_through_the_chunks(shape: tuple[int, ...], axis: int) -> None:
    """Beyond one chunk, with one channel or more on either axis, each number is scaled by its own
    channel's amax.
    """
    channel = np.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    amax = (2.0 ** (channel % 5)).astype(np.float32)
    x = np.broadcast_to(amax * np.float32(0.26), shape)

    # The step is amax, so a quarter of it is lost
    y = formats.quantize_dequantize(x, "INT4", 7 * amax, axis=axis)
    z = formats.quantize_dequantize(x, "INT4", 7 / 2 * amax, axis=axis)  # and here half of amax

    assert not y.any()
    assert np.array_equal(z, np.broadcast_to(amax / 2, shape))


@pytest.mark.parametrize("shape", [(3, 0), (0, 3), (0,), (), (1,), (2, 3)])
@pytest.mark.parametrize("working", ["float32", "input"])
def test_the_arithmetic_keeps_shape_and_dtype(shape: tuple[int, ...], working: Any) -> None:
    """Arrays of no element, of no axis and of several come back in their shape, with one amax for
    all.
    """
    for dtype in (np.float16, np.float32, np.float64, BFLOAT16):
        y = quantize_scaled(
            np.ones(shape, dtype), np.ones((1,) * len(shape)), INT8, Rules(working=working)
        )

        assert (y.shape, y.dtype) == (shape, dtype)
        assert (y == 1).all()


# --- the whole ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [127, -128, -3]),
        ({"narrow_range": True}, [127, -127, -3]),
        ({"unsigned": True}, [127, 0, 0]),
    ],
)
def test_the_kind_of_integers_is_that_asked_for(
    options: dict[str, Any], expected: list[float]
) -> None:
    """Narrow range leaves out the lowest number, unsigned the negative ones."""
    amax = 255.0 if "unsigned" in options else 127.0

    assert formats.quantize_dequantize(f32(127, -200, -3), 8, amax, **options).tolist() == expected


@pytest.mark.parametrize("scale_format", [None, "E8M0", "e8m0", "E4M3", "e4m3"])
def test_an_empty_tensor_has_no_blocks(scale_format: str | None) -> None:
    """No element, no scale, no error, whatever the scale is stored as."""
    for shape in ((0, 16), (3, 0)):
        y = formats.quantize_dequantize(
            np.empty(shape, np.float16), "E2M1", block_sizes={-1: 16}, scale_format=scale_format
        )

        assert (y.shape, y.dtype) == (shape, np.dtype(np.float16))


def test_a_tensor_goes_to_the_device_asked_for() -> None:
    """The way back to torch ends on the device named, by default the CPU; bits of bfloat16 are
    kept.
    """
    x = f32(1, -0.0, NAN, 3e38).astype(BFLOAT16)

    assert formats.to_torch(x, "meta").device.type == "meta"
    back = formats.to_torch(x)
    assert (back.device.type, back.dtype) == ("cpu", torch.bfloat16)
    assert formats.same_bits(back, x).all()
    assert formats.to_numpy(back).dtype == BFLOAT16
    assert formats.to_numpy([1, 2]).tolist() == [1, 2]  # type: ignore[arg-type]


# --- block scales ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amax", "rule", "scale"),
    [
        (6.0, "ceil", 1.0),
        (6.1, "ceil", 2.0),
        (6.1, "floor", 1.0),
        (8.0, "floor", 2.0),
        (3.0, "ceil", 0.5),
        (0.0, "ceil", 2.0**-127),
        (INF, "ceil", 2.0**127),
        (NAN, "ceil", NAN),
    ],
)
def test_the_shared_exponent_by_hand(amax: float, rule: Any, scale: float) -> None:
    """E2M1 ends at 6 = 1.5 * 2**2: the power of two covers amax (ceil), or is that of its own
    binade over 4 (floor).
    """
    assert same(e8m0_scale(f32(amax), E2M1, Rules(e8m0=rule)), scale)


def test_a_given_block_amax_decides_the_shared_exponent() -> None:
    """With amaxes 6 and 12 in E2M1 the scales are 1 and 2, what is beyond saturates, -0 stays; a
    negative amax is an error.
    """
    x = f32(7, 1.2, -0.0, -7, 13, 2.4, -0.0, 0.4)

    y = formats.quantize_dequantize(x, "E2M1", [6.0, 12.0], block_sizes={0: 4}, scale_format="E8M0")

    assert same(y, 6, 1, -0.0, -6, 12, 2, -0.0, 0)
    with pytest.raises(ValueError, match="negative"):
        formats.quantize_dequantize(x, "E2M1", [6.0, -1.0], block_sizes={0: 4}, scale_format="E8M0")
    acts = Rules(zero_amax_acts_as=6.0)
    assert same(
        formats.quantize_dequantize(
            f32(7, 1.2), "E2M1", 0.0, block_sizes={0: 2}, scale_format="E8M0", rules=acts
        ),
        6,
        1,
    )


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (6.0, 6.0),
        (6.3, 6.0),  # 6.3 / 6 = 1.05 lies nearer 1 than 1.125
        (6.6, 6.75),  # 1.1 lies nearer 1.125, and 6 * 1.125 = 6.75
        (2.0**-10, 0.0),  # E4M3 loses 2**-10 / 6
        (5000.0, 2688.0),  # a block scale of 448 is the largest
    ],
)
def test_a_global_amax_is_taken_where_it_is_given(x: float, expected: float) -> None:
    """A global amax of 2688 = 6 * 448 makes the second level 1: a block's scale is then its amax /
    6 in E4M3.
    """
    y = formats.quantize_dequantize(
        f32(x, 0), "E2M1", block_sizes={0: 2}, scale_format="E4M3", global_amax=2688.0
    )

    assert same(y, expected, 0)


def test_two_levels_of_zeros_and_their_signs() -> None:
    """A block whose stored amax is 0 becomes zeros of each number's sign, and of none where the
    rules know one zero.
    """
    x = f32(1, -1, 6, -0.1)
    blocks: dict[str, Any] = {"block_sizes": {0: 2}, "scale_format": "E4M3", "global_amax": 2688.0}

    y = formats.quantize_dequantize(x, "E2M1", [0.0, 6.0], **blocks)
    one_zero = formats.quantize_dequantize(
        x, "E2M1", [0.0, 6.0], rules=Rules(keeps_negative_zero=False), **blocks
    )

    assert same(y, 0, -0.0, 6, -0.0)
    assert same(one_zero, 0, 0, 6, 0)
    assert block_scale(f32(0), plan((2,), block_sizes={0: 2}), E2M1, 2688.0, 448.0) == 0


@pytest.mark.parametrize(
    ("below", "expected"), [(0.0, [2, 0.5]), (0.5, [2, 0.5]), (0.501, [2, 1]), (2.0, [2, 1])]
)
def test_blocks_below_a_product_of_scales_have_the_scale_one(
    below: float, expected: list[float]
) -> None:
    """Below, not at, the rules' smallest product of both levels a block's scale acts as 1
    (ModelOpt's Triton kernel: ``where(block_max_quant >= 1e-5, block_max_quant, 1.0)``).
    """
    layout = plan((4,), block_sizes={0: 2})

    scale = block_scale(
        f32(12, 3).reshape(2, 1), layout, E2M1, 2688.0, 448.0, Rules(block_scale_floor=below)
    )

    assert same(scale.ravel(), *expected)


def test_the_smallest_block_scale_by_hand() -> None:
    """At a second level of 1 a block's scale is at least the rules' smallest, but for a block of
    zeros.
    """
    layout = plan((6,), block_sizes={0: 2})
    amax = f32(2.0**-20, 6, 0).reshape(3, 1)

    scale = block_scale(amax, layout, E2M1, 2688.0, 448.0, Rules(smallest_block_scale=2.0**-9))

    assert same(scale.ravel(), 2.0**-9, 1, 0)


@pytest.mark.parametrize("scale_max", [448.0, 256.0])
def test_dividing_by_a_constant_may_multiply(scale_max: float) -> None:
    """The second level is g / (6 * scale_max), or g times that constant's float32 reciprocal: not
    always the same.
    """
    g = (np.arange(1, 100) / 3).astype(np.float32)
    constant, layout = np.float32(6 * scale_max), plan((2,), block_sizes={0: 2})

    scales = [
        [
            float(
                block_scale(f32(a), layout, E2M1, a, scale_max, Rules(constant_division=how)).item()
            )
            for a in g
        ]
        for how in ("divide", "multiply")
    ]

    # The largest block's own scale is scale_max times the second level.
    expected = [
        np.float32(scale_max) * (g / constant),
        np.float32(scale_max) * (g * (np.float32(1) / constant)),
    ]
    assert np.array_equal(scales, expected)
    assert not np.array_equal(expected[0], expected[1])


def test_a_static_block_scale_obeys_the_rules_of_amax() -> None:
    """In the reciprocal order block scales are quantized with a range: one at the floor acts as the
    stand-in.
    """
    layout = plan((4,), block_sizes={0: 2})
    rules = Rules(block_scale_order="reciprocal", amax_floor=1.0, zero_amax_acts_as=448.0)

    # 6 / 6 = 1 is at the floor, so E4M3 spans 448: block scales 12 / 6 = 2 and 6.6 / 6 = 1.1 become
    # 2 and 1.125.
    scale = block_scale(f32(12, 6.6).reshape(2, 1), layout, E2M1, 6.0, 448.0, rules)

    assert same(scale.ravel(), 2, 1.125)


# --- shares and masks -----------------------------------------------------------------------------


def test_saturation_counts_each_block_against_its_own_amax() -> None:
    """Five numbers in blocks of two: beyond are 3 over 2 and -1 over 0.5, what fills up the last
    block is not.
    """
    x = f32(1, 3, 0.5, -1, 7)

    assert formats.saturation_fraction(x, [2, 0.5, 7], "E4M3", block_sizes={0: 2}) == 2 / 5
    assert formats.saturation_fraction(x.reshape(1, 5), [1, 3, 0.4, 1, 7], "E4M3", axis=1) == 1 / 5


def test_saturation_ends_where_the_integers_do() -> None:
    """-128 steps lie within INT8 and beyond its narrow range; unsigned, all below zero is
    beyond.
    """
    x = f32(127, -127, -128, -129)

    assert formats.saturation_fraction(x, 127.0, 8) == 1 / 4
    assert formats.saturation_fraction(x, 127.0, 8, narrow_range=True) == 2 / 4
    assert formats.saturation_fraction(x, 127.0, 8, unsigned=True) == 3 / 4


def test_a_double_is_measured_as_the_float32_that_is_quantized() -> None:
    """1 + 2**-30 is 1 in float32, so within an amax of 1, and the gradient passes."""
    x = np.array([1 + 2.0**-30, 1 + 2.0**-20])

    assert formats.saturation_fraction(x, 1.0, "E4M3") == 1 / 2
    assert formats.gradient_mask(x, 1.0).tolist() == [True, False]


def test_underflow_by_hand() -> None:
    """Of 1, 1 and -2 one became zero; a zero that stayed, a zero that grew and a NaN do not
    count.
    """
    x, y = f32(1, 1, -2, 0, 0, NAN), f32(0, 1, -2, 0, 5, NAN)

    assert formats.underflow_fraction(x, y) == 1 / 3
    assert formats.underflow_fraction(y[3:4], y[3:4]) == 0
    assert formats.underflow_fraction(torch.tensor([1.0, 4.0]), torch.tensor([0.0, -0.0])) == 1


def test_where_the_gradient_passes() -> None:
    """At |x| <= amax: the range's ends included, with one amax, one a channel and one a block; NaN
    lets none pass.
    """
    x = torch.tensor([[1.0, -1.0, 1.5], [2.0, -2.5, float("nan")]])
    ulp = np.nextafter(f32(1), f32(2))

    assert formats.gradient_mask(x, 1.0).tolist() == [[True, True, False], [False, False, False]]
    assert formats.gradient_mask(x, [1.5, 2.0], axis=0).tolist() == [
        [True, True, True],
        [True, False, False],
    ]
    assert formats.gradient_mask(x, [2, 1, 9], axis=-1).tolist() == [
        [True, True, True],
        [True, False, False],
    ]
    assert formats.gradient_mask(x, [[1, 1], [2.5, 9]], block_sizes={-1: 2}).tolist() == [
        [True, True, False],
        [True, True, False],
    ]
    assert formats.gradient_mask(ulp, 1.0).tolist() == [False]
    assert formats.gradient_mask(ulp, torch.from_numpy(ulp)).tolist() == [True]
    with pytest.raises(ValueError, match="exclude each other"):
        formats.gradient_mask(x, 1.0, axis=0, block_sizes={1: 3})


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, BFLOAT16], ids=str)
def test_the_same_bits(dtype: Any) -> None:
    """NaN is the same as NaN and as nothing else, zeros differ by their sign, strides make no
    difference.
    """
    a, b = (f32(*v).astype(dtype) for v in ((NAN, NAN, 1, 0, 2, INF), (-NAN, 1, NAN, -0.0, 2, INF)))

    expected = [True, False, False, False, True, True]
    assert formats.same_bits(a, b).tolist() == expected
    assert formats.same_bits(a[::-1], b[::-1]).tolist() == expected[::-1]
    assert formats.same_bits(a.reshape(2, 3), b.reshape(2, 3)).tolist() == [
        expected[:3],
        expected[3:],
    ]
    assert formats.same_bits(formats.to_torch(a), b).tolist() == expected


# --- double quantization --------------------------------------------------------------------------

#: Blocks of two with the scales 0, 1, 12 and 3.
SCALES = (0, 0, 1, -1, 12, 6, 3, 0)
#: The level next to 0.5 (PUBLISHED in `test_stored`).
NEXT_TO_HALF = 0.44070982933044434  # a float32


def test_double_quantized_scales_by_hand() -> None:
    """Mean 4, largest difference 8: with two bits the scales 0, 1, 12 and 3 are stored as 0, 0, 1
    and 0 times 8 and read as 4, 4, 12 and 4; a block of zeros stays zeros.
    """
    y = formats.double_quantized(f32(*SCALES), 2, 4, 2)

    assert y.dtype == np.float32
    np.testing.assert_allclose(y, [0, 0, 4, -4, 12, 12 * NEXT_TO_HALF, 4, 0], rtol=3e-7)


def test_a_block_of_zeros_takes_the_level_that_the_rules_name() -> None:
    """ModelOpt's zeros are at level 0, which is -1, and so read as minus their stored scale."""
    levels = np.linspace(-1, 1, 16, dtype=np.float32)

    lowest = formats.double_quantized(f32(*SCALES), 2, 4, 2, formats.NF4Rules(zero_block_level=0))
    third = formats.double_quantized(
        f32(*SCALES), 2, 4, 2, formats.NF4Rules(levels=levels, zero_block_level=2)
    )

    assert lowest[:4].tolist() == [-4, -4, 4, -4]
    assert third[:4].tolist() == [4 * levels[2]] * 2 + [4, -4]


@pytest.mark.parametrize(
    ("scales", "padding_counts", "expected"),
    [
        ((5, 3), False, [5, 3]),  # mean 4, differences 1 and -1
        ((4.5, 3.5), False, [4.5, 3.5]),  # differences of a half
        (
            (10, 4, 1, 1),
            True,
            [10, 2, 2, 2],
        ),  # mean 16 / 8, largest difference 8: all but the first are nearer 0
        (
            (5, 3),
            True,
            [5, 1],
        ),  # mean 1, differences 4, 2 (which is half of 4: even is 0) and -1 of what fills up
    ],
)
def test_what_fills_up_a_block_of_scales(
    scales: tuple[float, ...], padding_counts: bool, expected: list[float]
) -> None:
    """By definition the zeros that fill up a block of eight scales neither count in the mean nor
    spread it.
    """
    x = f32(*scales).repeat(2)

    y = formats.double_quantized(x, 2, 8, 2, formats.NF4Rules(padding_counts=padding_counts))

    assert y.tolist() == np.repeat(expected, 2).tolist()


def test_the_factor_of_stored_scales_is_evaluated_as_the_rules_say() -> None:
    """127 / d, or 127 times the reciprocal of d: for scales 0 and 2 d around their mean they differ
    in bits.
    """
    factors: dict[bool, list[float]] = {False: [], True: []}
    expected: dict[bool, list[float]] = {False: [], True: []}
    for d in (np.arange(1, 300) / 7).astype(np.float32):  # the mean of 0 and 2 d is d exactly
        for reciprocal in factors:
            factor = (np.float32(1) / d) * np.float32(127) if reciprocal else np.float32(127) / d
            expected[reciprocal].append(float(np.float32(127) / factor + d))
            rules = formats.NF4Rules(reciprocal=reciprocal)
            factors[reciprocal].append(
                float(formats.double_quantized(f32(0, 2 * d), 1, 2, 8, rules)[1])
            )

    assert factors == expected
    assert factors[True] != factors[False]


def test_any_tensor_is_worked_on_in_float32() -> None:
    """A parameter in bfloat16, a double and a nested list give what their float32 gives; levels are
    float32.
    """
    x = np.random.default_rng(0).normal(size=(6, 11))
    parameter = torch.nn.Parameter(torch.from_numpy(x).bfloat16())

    assert nf4.levels().dtype == np.float32
    for tensor, single in (
        (x, x.astype(np.float32)),
        (parameter, parameter.detach().float().numpy()),
    ):
        y = formats.double_quantized(tensor, 4, 8, 8)
        assert (y.shape, y.dtype) == (x.shape, np.dtype(np.float32))
        assert formats.same_bits(y, formats.double_quantized(single, 4, 8, 8)).all()
