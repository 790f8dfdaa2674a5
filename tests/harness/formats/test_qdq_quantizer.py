"""The oracle reads every attribute of a quantizer that matters, and equals ModelOpt's packed
tensors bit for bit.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness import (
    compat,  # noqa: F401  (before modelopt imports transformers)
    formats,
)
from harness.formats import deviations
from harness.formats.deviations import PACKED_RULES, packed

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def made_quantizer(**attributes: Any) -> Any:
    """A TensorQuantizer of ModelOpt."""
    from modelopt.torch.quantization.config import QuantizerAttributeConfig
    from modelopt.torch.quantization.nn import TensorQuantizer

    return TensorQuantizer(QuantizerAttributeConfig(**attributes))


def sample(dtype: torch.dtype, magnitude: float = 1.0, seed: int = 0) -> torch.Tensor:
    """Normal numbers with both zeros, (64, 256)."""
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(seed)) * magnitude
    x[0, 0], x[0, 1] = 0.0, -0.0
    return x.to(dtype)


@pytest.mark.parametrize("magnitude", [2.0**-10, 1.0, 300.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("kind", "block"),
    [
        ("FP8QTensor", None),
        ("FP8QTensor", 64),
        ("FP8QTensor", 100),
        ("INT8QTensor", None),
        ("INT8QTensor", 64),
    ],
)
def test_packed_8_bit_tensors(
    kind: str, block: int | None, dtype: torch.dtype, magnitude: float
) -> None:
    """FP8QTensor and INT8QTensor hold x / (amax / max), each operation rounded to the tensor's
    dtype.
    """
    x = sample(dtype, magnitude)

    y = packed(kind, x, block)

    sizes = {-1: block} if block else None
    element = "E4M3" if kind == "FP8QTensor" else "INT8"
    assert formats.same_bits(
        y, formats.quantize_dequantize(x, element, block_sizes=sizes, rules=PACKED_RULES[kind])
    ).all()


@pytest.mark.parametrize("magnitude", [2.0**-10, 1.0, 300.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("kind", "element", "block", "scale_format"),
    [
        ("INT4QTensor", "INT4", 32, None),
        ("INT4QTensor", "INT4", 128, None),
        ("NVFP4QTensor", "E2M1", 16, "E4M3"),
        ("NVFP4QTensor", "E2M1", 32, "E4M3"),
        ("MXFP8QTensor", "E4M3", 32, "E8M0"),
    ],
)
def test_packed_block_tensors(
    kind: str,
    element: str,
    block: int,
    scale_format: str | None,
    dtype: torch.dtype,
    magnitude: float,
) -> None:
    """INT4QTensor, NVFP4QTensor and MXFP8QTensor hold what the definition says, with their own
    order of evaluation.
    """
    x = sample(dtype, magnitude)

    y = packed(kind, x, block)

    expected = formats.quantize_dequantize(
        x, element, block_sizes={-1: block}, scale_format=scale_format, rules=PACKED_RULES[kind]
    )
    assert formats.same_bits(y, expected).all()


def test_packed_nvfp4_blocks_far_below_the_largest() -> None:
    """NVFP4QTensor raises the scales of blocks that E4M3 would lose to its smallest number, and so
    does its oracle.
    """
    x = sample(torch.float32) * torch.logspace(0, -9, 64)[:, None]

    y = packed("NVFP4QTensor", x, 16)

    blocks: dict[str, Any] = {"block_sizes": {-1: 16}, "scale_format": "E4M3"}
    assert formats.same_bits(
        y, formats.quantize_dequantize(x, "E2M1", rules=PACKED_RULES["NVFP4QTensor"], **blocks)
    ).all()
    assert not torch.equal(y, formats.quantize_dequantize(x, "E2M1", **blocks))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_packed_mxfp4_differs_at_ties_and_zeros_only(dtype: torch.dtype) -> None:
    """MXFP4QTensor equals the definition but where it is known to deviate: ties go towards zero, +0
    becomes -0.
    """
    x = sample(dtype)
    blocks: dict[str, Any] = {"block_sizes": {-1: 32}, "scale_format": "E8M0"}

    y, expected = packed("MXFP4QTensor", x, 32), formats.quantize_dequantize(x, "E2M1", **blocks)

    # The neighbour towards zero is what an input a little smaller rounds to, unless that was no
    # tie.
    inward = formats.quantize_dequantize(
        x.double() * (1 - 2.0**-20), "E2M1", x.abs().reshape(64, 8, 32).amax(-1), **blocks
    )
    tie = inward.to(dtype) != expected
    assert tie.any() == (dtype is not torch.float32)
    assert torch.equal(torch.where(tie, inward.to(dtype), expected), y)
    assert formats.same_bits(y, expected)[((x != 0) & ~tie).numpy()].all()


@pytest.mark.parametrize("known", deviations.KNOWN, ids=lambda d: d.name)
def test_every_known_deviation_is_told(known: deviations.Deviation) -> None:
    """A deviation says where it is, what should happen, what happens and on which version; its name
    is its own.
    """
    assert all((known.where, known.definition, known.modelopt, known.measured_on))
    assert [d.name for d in deviations.KNOWN].count(known.name) == 1


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"num_bits": (4, 3)}, ("E4M3", None, None, None)),
        ({"num_bits": 8, "axis": 0}, ("INT8", 0, None, None)),
        ({"num_bits": 8, "unsigned": True}, ("UINT8", None, None, None)),
        ({"num_bits": 4, "narrow_range": True}, ("INT4-narrow", None, None, None)),
        ({"num_bits": 4, "block_sizes": {-1: 128}}, ("INT4", None, {-1: 128}, None)),
        (
            {"num_bits": (2, 1), "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}},
            ("E2M1", None, {-1: 16}, "E4M3"),
        ),
        (
            {"num_bits": (3, 2), "block_sizes": {-1: 32, "type": "dynamic", "scale_bits": (8, 0)}},
            ("E3M2", None, {-1: 32}, "E8M0"),
        ),
        (
            {"num_bits": 8, "block_sizes": {-1: 32, "type": "dynamic", "scale_bits": (8, 0)}},
            ("MXINT8", None, {-1: 32}, "E8M0"),
        ),
    ],
)
def test_attributes_are_read(attributes: dict[str, Any], expected: tuple[Any, ...]) -> None:
    """Format, axis, block sizes and the kind of block scale are those of the quantizer."""
    (step,) = formats.from_quantizer(made_quantizer(**attributes)).steps

    assert (step.format.name, step.axis, step.block_sizes, step.scale_format) == expected


@pytest.mark.parametrize("num_bits", [(4, 3), (3, 2), (2, 1), 8])
def test_a_dynamic_mx_quantizer_is_modelled_without_cuda(num_bits: int | tuple[int, int]) -> None:
    """The oracle of an MX quantizer, which ModelOpt can't run on a CPU, takes each block's scale
    from the tensor.
    """
    blocks: dict[int | str, Any] = {-1: 32, "type": "dynamic", "scale_bits": (8, 0)}
    x = sample(torch.float16).nan_to_num(nan=1.0)

    y = formats.from_quantizer(made_quantizer(num_bits=num_bits, block_sizes=blocks))(x)

    element = "MXINT8" if num_bits == 8 else num_bits
    assert formats.same_bits(
        y, formats.quantize_dequantize(x, element, block_sizes={-1: 32}, scale_format="E8M0")
    ).all()
    assert not torch.equal(y, x)


def test_a_dynamic_nvfp4_quantizer_keeps_its_global_amax() -> None:
    """The calibrated amax of a dynamic NVFP4 quantizer is the global one; the blocks' come from the
    tensor.
    """
    quantizer = made_quantizer(
        num_bits=(2, 1), block_sizes={-1: 16, "type": "dynamic", "scale_bits": (4, 3)}
    )
    quantizer.amax = torch.tensor(50.0)

    (step,) = formats.from_quantizer(quantizer).steps

    assert step.amax is None
    assert step.global_amax is not None
    assert float(step.global_amax) == 50.0


@pytest.mark.parametrize(("four_over_six", "largest"), [(True, 256.0), (False, 448.0)])
def test_a_static_nvfp4_quantizer_has_an_amax_a_block(four_over_six: bool, largest: float) -> None:
    """Block amaxes are the stored ones, and "four over six" keeps block scales up to 256 only."""
    sizes = {-1: 16, "type": "static", "scale_bits": (4, 3), "four_over_six": four_over_six}
    quantizer = made_quantizer(num_bits=(2, 1), block_sizes=sizes)
    quantizer.amax = torch.tensor([[6.0], [3.0]])

    oracle = formats.from_quantizer(quantizer)

    assert oracle.steps[0].scale_max == largest
    assert oracle(torch.full((1, 32), 9.0)).tolist() == [[6.0] * 16 + [3.0] * 16]


def test_a_disabled_quantizer_only_scales() -> None:
    """A disabled quantizer passes its input on, times the pre-quantization scale if there is
    one.
    """
    quantizer = made_quantizer(num_bits=8)
    quantizer.disable()
    x = sample(torch.float32)

    assert torch.equal(formats.from_quantizer(quantizer)(x), x)
    quantizer.pre_quant_scale = torch.full((256,), 2.0)
    assert torch.equal(formats.from_quantizer(quantizer)(x), quantizer(x))
    assert torch.equal(quantizer(x), 2 * x)


def test_an_empty_tensor_passes() -> None:
    """An expert that saw no token hands on its empty tensor."""
    quantizer = made_quantizer(num_bits=(4, 3))
    x = torch.empty(0, 4)

    assert formats.from_quantizer(quantizer)(x).shape == quantizer(x).shape == (0, 4)


def test_a_constant_amax_is_taken() -> None:
    """`use_constant_amax` means 448, whatever the tensor holds."""
    quantizer = made_quantizer(num_bits=(4, 3), use_constant_amax=True)
    x = sample(torch.float32, 300.0)

    assert formats.same_bits(quantizer(x), formats.from_quantizer(quantizer)(x)).all()


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("_rotate", True), ("backend", "another"), ("_fake_quant", False), ("_bias", {-1: None})],
)
def test_what_is_more_than_quantize_dequantize_is_refused(attribute: str, value: Any) -> None:
    """A rotation, a custom backend, real quantization and an affine bias are named, not passed
    over.
    """
    quantizer = made_quantizer(num_bits=8)
    setattr(quantizer, attribute, value)

    with pytest.raises(NotImplementedError, match=attribute.strip("_").split("_")[0]):
        formats.from_quantizer(quantizer)


def test_fractions_of_a_static_and_a_dynamic_quantizer() -> None:
    """Saturation and underflow are measured behind the pre-quantization scale, with the amax in
    force.
    """
    quantizer = made_quantizer(num_bits=8)
    quantizer.amax = torch.tensor(1.0)
    quantizer.pre_quant_scale = torch.tensor([2.0, 2.0, 2.0, 2.0])
    x = torch.tensor([0.4, 0.6, -0.6, 1e-6])

    assert formats.from_quantizer(quantizer).fractions(x) == (0.5, 0.25)
    assert formats.from_quantizer(made_quantizer(num_bits=8, type="dynamic")).fractions(x) == (
        0.0,
        0.25,
    )


NVFP4: dict[int | str, Any] = {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}


def test_a_single_number_is_quantized() -> None:
    """Only what is empty passes untouched."""
    quantizer = made_quantizer(num_bits=8)
    quantizer.amax = torch.tensor(127.0)

    assert formats.from_quantizer(quantizer)(torch.tensor([1.4])).tolist() == [1.0]


def test_channels_have_their_own_range() -> None:
    """With an amax a channel each row has its step, saturates and is counted by its own."""
    quantizer = made_quantizer(num_bits=8, axis=0)
    quantizer.amax = torch.tensor([[127.0], [254.0]])
    x = torch.tensor([[1.4, 200.0, 3.0], [1.4, 200.0, 3.4]])

    oracle = formats.from_quantizer(quantizer)

    assert oracle(x).tolist() == [[1, 127, 3], [2, 200, 4]]
    assert oracle.fractions(x) == (1 / 6, 0)
    assert oracle.steps[0].range(x).tolist() == [[127], [254]]


def test_blocks_have_their_own_range() -> None:
    """With an amax a block each is counted by its own."""
    quantizer = made_quantizer(num_bits=4, block_sizes={-1: 2})
    quantizer.amax = torch.tensor([[7.0], [14.0]])
    x = torch.tensor([[9.0, 1.0, 9.0, 1.1]])

    oracle = formats.from_quantizer(quantizer)

    assert oracle(x).tolist() == [[7, 1, 8, 2]]
    assert oracle.fractions(x) == (1 / 4, 0)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"type": "dynamic"}, [[8.0]]),
        ({"type": "dynamic", "axis": 0}, [[4.0], [8.0]]),
        ({"block_sizes": {-1: 2}}, [[[2.0], [4.0]], [[8.0], [6.0]]]),
    ],
)
def test_the_range_of_a_dynamic_quantizer_is_the_tensors(
    attributes: dict[str, Any], expected: list[Any]
) -> None:
    """Without a stored amax the largest magnitude of the tensor, the channel or the block is in
    force.
    """
    x = torch.tensor([[1.0, -2.0, 3.0, -4.0], [8.0, 7.0, -6.0, 5.0]])

    (step,) = formats.from_quantizer(made_quantizer(num_bits=8, **attributes)).steps

    assert step.range(x).tolist() == expected


def test_the_amax_of_a_dynamic_two_level_quantizer_is_the_global_one() -> None:
    """At a global amax of 6 * 448 block scales are E4M3 numbers: a block of 6.3 gets 1, not 1.05,
    and 6.3 saturates.
    """
    quantizer = made_quantizer(num_bits=(2, 1), block_sizes=NVFP4)
    quantizer.amax = torch.tensor([2688.0, 5.0])

    oracle = formats.from_quantizer(quantizer)

    assert oracle.steps[0].amax is None
    torch.testing.assert_close(
        oracle(torch.full((1, 16), 6.3)), torch.full((1, 16), 6.0), rtol=1e-6, atol=0
    )


def test_the_global_amax_of_a_static_two_level_quantizer_is_its_own() -> None:
    """A stored global amax of 2688 makes the second level 1, and a block amax of 6.3 is kept as 6;
    "four over six" keeps 5.4 next to 6 as 5.25, which is 224 / 256 of it.
    """
    quantizer = made_quantizer(num_bits=(2, 1), block_sizes={**NVFP4, "type": "static"})
    quantizer.amax, quantizer.global_amax = torch.tensor([[6.3], [6.0]]), torch.tensor(2688.0)
    four = made_quantizer(
        num_bits=(2, 1), block_sizes={**NVFP4, "type": "static", "four_over_six": True}
    )
    four.amax = torch.tensor([[6.0], [5.4]])
    x = torch.full((1, 32), 9.0)

    y, z = formats.from_quantizer(quantizer)(x), formats.from_quantizer(four)(x)

    torch.testing.assert_close(y, torch.full((1, 32), 6.0), rtol=1e-6, atol=0)
    torch.testing.assert_close(z, torch.tensor([[6.0] * 16 + [5.25] * 16]), rtol=1e-6, atol=0)


def test_the_amax_of_an_mx_quantizer_is_not_used() -> None:
    """An MX block's scale comes from the tensor, whatever amax a calibration left behind."""
    quantizer = made_quantizer(
        num_bits=(4, 3), block_sizes={-1: 32, "type": "static", "scale_bits": (8, 0)}
    )
    quantizer.amax = torch.tensor(1.0)

    (step,) = formats.from_quantizer(quantizer).steps

    assert (step.amax, step.global_amax) == (None, None)
    assert step(torch.full((32,), 448.0)).tolist() == [448.0] * 32


def test_each_kind_of_quantizer_has_its_rules() -> None:
    """ModelOpt's floor under amax holds for its fake quantization, its two levels have orders of
    their own, and its kernels of block formats have their own way with NaN.
    """
    two_level = {"num_bits": (2, 1)}
    dynamic, static, mx, fp8, int8 = (
        formats.from_quantizer(made_quantizer(**attributes)).steps[0].rules
        for attributes in (
            {**two_level, "block_sizes": NVFP4},
            {**two_level, "block_sizes": {**NVFP4, "type": "static"}},
            {**two_level, "block_sizes": {-1: 32, "type": "dynamic", "scale_bits": (8, 0)}},
            {"num_bits": (4, 3)},
            {"num_bits": 8},
        )
    )

    assert [r.block_scale_floor for r in (dynamic, static, mx, fp8, int8)] == [1e-5, 0, 0, 0, 0]
    assert [r.block_scale_order for r in (dynamic, static)] == ["division", "reciprocal"]
    assert [r.nan_element for r in (dynamic, static, mx, fp8, int8)] == [
        -6.0,
        -6.0,
        6.0,
        None,
        None,
    ]
    assert [r.nan_is_local for r in (dynamic, static, mx, fp8, int8)] == [
        True,
        True,
        True,
        False,
        False,
    ]
    assert [r.zero_amax_acts_as for r in (fp8, int8)] == [1.0, None]
    quantizer = made_quantizer(num_bits=(4, 3))
    quantizer.amax = torch.tensor(2.0**-25)
    x = sample(torch.float32)
    assert formats.same_bits(formats.from_quantizer(quantizer)(x), quantizer(x)).all()


def test_a_quantizer_that_only_calibrates_passes_its_input() -> None:
    """While statistics are gathered nothing is quantized, and nothing counts as saturated or
    lost.
    """
    quantizer = made_quantizer(num_bits=8)
    quantizer.amax = torch.tensor(1.0)
    quantizer.disable_quant()
    x = torch.tensor([0.3, 5.0, 1e-9])

    oracle = formats.from_quantizer(quantizer)

    assert torch.equal(oracle(x), x)
    assert oracle.fractions(x) == (0, 0)


def test_a_chain_is_read_quantizer_by_quantizer() -> None:
    """W4A8's weights go through INT4 blocks and then E4M3, as ModelOpt's chain takes them."""
    from modelopt.torch.quantization.nn import SequentialQuantizer

    first, second = (
        made_quantizer(num_bits=4, block_sizes={-1: 128}),
        made_quantizer(num_bits=(4, 3)),
    )
    x = sample(torch.float32)
    first.amax, second.amax = x.reshape(-1, 128).abs().amax(-1, keepdim=True), x.abs().max()
    chain = SequentialQuantizer(first, second)

    oracle = formats.from_quantizer(chain)

    assert [step.format.name for step in oracle.steps] == ["INT4", "E4M3"]
    assert formats.same_bits(oracle(x), chain(x)).all()


def test_an_attribute_that_a_release_does_not_have_is_not_set() -> None:
    """Attributes that came later count as unset: the quantizer is on, calibrated from the tensor,
    and does no more.
    """
    older = SimpleNamespace(
        num_bits=8,
        is_enabled=True,
        block_sizes=None,
        unsigned=False,
        narrow_range=False,
        axis=0,
        pre_quant_scale=None,
    )

    (step,) = formats.from_quantizer(older).steps

    assert (step.enabled, step.amax, step.global_amax, step.axis) == (True, None, None, 0)
    older.block_sizes = {-1: 16}
    assert formats.from_quantizer(older).steps[0].axis is None  # blocks say which axes there are


def test_a_refusal_names_all_that_is_more() -> None:
    """Everything that is not a quantize-dequantize is in one message."""
    quantizer = made_quantizer(num_bits=8)
    quantizer._rotate, quantizer.backend, quantizer._fake_quant, quantizer._bias = (
        True,
        "another",
        False,
        {-1: None},
    )

    with pytest.raises(NotImplementedError) as refused:
        formats.from_quantizer(quantizer)

    assert str(refused.value) == (
        "no oracle for a quantizer with bias, rotate, backend, fake_quant=False: it does more than "
        "quantize-dequantize"
    )
