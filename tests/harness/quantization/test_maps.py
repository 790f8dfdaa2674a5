"""The quantizer map: its records, what it takes from a model, and the difference of two."""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from made_maps import INF, NAN, all_off, amax, at
from torch import Tensor, nn

from harness.checks import insertion
from harness.models import families
from harness.quantization import maps
from harness.quantization.maps import Amax, QuantizerMap

# -- the records


def test_amax_is_summarised_by_count_extremes_and_bytes() -> None:
    """A range of any shape and dtype is reported by its count, its extremes and the SHA-256 of its fp32
    bytes.
    """
    values = torch.tensor([[3.0, 0.5], [2.0, 8.0]])
    digest = hashlib.sha256(bytes.fromhex("000040400000003f0000004000000041")).hexdigest()[:16]

    assert Amax.of(values) == Amax(4, 0.5, 8.0, digest)
    assert Amax.of(values.bfloat16()) == Amax.of(values.half()) == Amax.of(values)
    assert Amax.of(values.t()).digest != digest
    assert Amax.of(values.t().contiguous().t()).digest == digest


def test_empty_amax_is_not_usable() -> None:
    """A range without a value has no extremes and cannot be used."""
    empty = Amax.of(torch.empty(0))

    assert empty.count == 0
    assert math.isnan(empty.low)
    assert math.isnan(empty.high)
    assert not empty.usable


@pytest.mark.parametrize(
    ("count", "low", "high", "usable"),
    [
        (1, 1e-30, 1e-30, True),
        (7, 1.0, 2.0, True),
        (0, 1.0, 2.0, False),
        (1, 0.0, 2.0, False),
        (1, -1.0, 2.0, False),
        (1, 1.0, INF, False),
        (1, INF, INF, False),
        (1, -INF, 1.0, False),
        (1, NAN, 1.0, False),
        (1, 1.0, NAN, False),
    ],
)
def test_amax_is_usable_if_finite_and_positive(
    count: int, low: float, high: float, usable: bool
) -> None:
    """A range is usable if it has values, all finite and above zero; zero is not."""
    assert Amax(count, low, high, "").usable is usable


@pytest.mark.parametrize(
    ("name", "holder", "kind"),
    [
        ("a.b.weight_quantizer", "a.b", "weight"),
        ("a.b.weight_quantizer.0", "a.b", "weight.0"),
        ("a.b.weight_quantizer.12", "a.b", "weight.12"),
        ("a.0.bmm2_output_quantizer", "a.0", "bmm2_output"),
        ("input_quantizer", "", "input"),
        ("input_quantizer.1", "", "input.1"),
        ("a.b.rotation", "a.b", "rotation"),
        ("a.weight_quantizer.inner", "a.weight_quantizer", "inner"),
        ("rotation", "", "rotation"),
    ],
)
def test_name_is_split_into_holder_and_kind(name: str, holder: str, kind: str) -> None:
    """A quantizer's name is the path of its module and its kind, of a part of a sequence with the
    part's number.
    """
    assert (maps.holder_of(name), maps.kind_of(name)) == (holder, kind)


def test_quantizer_knows_its_module() -> None:
    """The module that holds a quantizer, or a part of a sequence, is what its path begins with."""
    assert at("vision.layers.1.fc.weight_quantizer").module == "vision.layers.1.fc"
    assert at("vision.layers.1.fc.weight_quantizer.0").module == "vision.layers.1.fc"
    assert at("input_quantizer").module == ""


def test_record_is_read_back_whole() -> None:
    """A quantizer is the same after it was kept as a record, with a range and without."""
    for q in (
        at("vision.fc.input_quantizer", dynamic=True),
        at("text.fc.weight_quantizer", amax=None, calls=3),
    ):
        assert maps.of_dict(q.as_dict()) == q


def test_record_keeps_what_is_unusual_only() -> None:
    """Constant ranges and empty parts of weights are read back, and are in no record of a quantizer
    without them.
    """
    fixed = at("vision.fc.input_quantizer", constant=True)
    pruned = at(
        "vision.fc.weight_quantizer",
        amax=Amax.of(torch.tensor([0.0, 2.0]), torch.tensor([True, False])),
    )

    assert [maps.of_dict(q.as_dict()) for q in (fixed, pruned)] == [fixed, pruned]
    assert pruned.amax is not None
    assert (pruned.amax.empty, pruned.amax.low, pruned.amax.usable) == (1, 2.0, True)
    assert maps.state(fixed) == "E4M3 per-tensor constant 1"
    plain = at("vision.fc.input_quantizer").as_dict()
    assert "constant" not in plain
    assert "empty" not in plain["amax"]


def test_record_of_another_version_is_read_as_far_as_known() -> None:
    """What a record has next to the known fields is left out, and what it lacks is None."""
    q = maps.of_dict({"name": "n", "calls": 2, "colour": "red", "amax": {"low": 0.5, "mean": 1.0}})
    facts = q.as_dict()

    assert [facts[field] for field in ("name", "calls", "kind", "layer")] == ["n", 2, None, None]
    assert q.amax == Amax(None, 0.5, None, None)  # type: ignore[arg-type]
    assert maps.of_dict({"name": "n"}).amax is None


# -- the map of a model


class CLIPModel(nn.Module):
    """By the name of its class of the family clip: layers of every kind that the map distinguishes,
    all tiny.
    """

    def __init__(self) -> None:
        from modelopt.torch.quantization.nn import (
            QuantModuleRegistry,
            SequentialQuantizer,
            TensorQuantizer,
        )

        super().__init__()
        attention_block = nn.Identity()
        layers = nn.ModuleList(
            [nn.ModuleDict({"self_attn": attention_block, "fc": nn.Linear(2, 2)})]
        )
        self.vision_model = nn.ModuleDict(
            {
                "patch_embedding": nn.Conv2d(3, 2, 2),
                "stem": nn.Conv2d(3, 2, 2),
                "layers": layers,
                "norm": nn.LayerNorm(2),
                "pool": nn.AvgPool1d(1),
            }
        )
        self.text_model = nn.ModuleDict(
            {"patch_embedding": nn.LayerNorm(2), "words": nn.Embedding(4, 2)}
        )
        self.text_projection = nn.Linear(2, 2)
        self.visual_projection = QuantModuleRegistry.convert(nn.Linear(2, 2))
        self.logit = nn.Linear(2, 2)
        for path in (
            "patch_embedding",
            "stem",
            "layers.0.self_attn",
            "layers.0.fc",
            "norm",
            "pool",
        ):
            kind = "q_bmm" if path.endswith("attn") else "input"
            setattr(self.vision_model.get_submodule(path), f"{kind}_quantizer", TensorQuantizer())
        for module in (self.text_model["patch_embedding"], self.text_model["words"], self.logit):
            module.input_quantizer = TensorQuantizer()
        self.text_projection.weight_quantizer = SequentialQuantizer(
            TensorQuantizer(), TensorQuantizer()
        )
        vision = SimpleNamespace(image_size=4)
        text = SimpleNamespace(vocab_size=4, eos_token_id=2, max_position_embeddings=3)
        self.config = SimpleNamespace(vision_config=vision, text_config=text)

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Passes its pictures through the projection's quantizer once."""
        assert not torch.is_grad_enabled()
        quantizer: Any = self.get_submodule("visual_projection.input_quantizer")
        return quantizer(pixel_values)  # type: ignore[no-any-return]

    def get_text_features(self, input_ids: Tensor) -> Tensor:
        """Passes its words through one part of the sequential quantizer twice."""
        part: Any = self.get_submodule("text_projection.weight_quantizer.1")
        return part(part(input_ids.float()))  # type: ignore[no-any-return]


@pytest.fixture
def clip() -> CLIPModel:
    """The tiny model, its quantizers of random ranges."""
    torch.manual_seed(0)
    return CLIPModel()


def test_quantizers_of_a_model_are_its_leaves(clip: CLIPModel) -> None:
    """A model's quantizers are the leaves in module order: the parts of a sequence, not the
    sequence.
    """
    assert list(maps.tensor_quantizers(clip)) == [
        "vision_model.patch_embedding.input_quantizer",
        "vision_model.stem.input_quantizer",
        "vision_model.layers.0.self_attn.q_bmm_quantizer",
        "vision_model.layers.0.fc.input_quantizer",
        "vision_model.norm.input_quantizer",
        "vision_model.pool.input_quantizer",
        "text_model.patch_embedding.input_quantizer",
        "text_model.words.input_quantizer",
        "text_projection.weight_quantizer.0",
        "text_projection.weight_quantizer.1",
        "visual_projection.input_quantizer",
        "visual_projection.output_quantizer",
        "visual_projection.weight_quantizer",
        "logit.input_quantizer",
    ]


def test_map_names_class_kind_tower_and_layer(clip: CLIPModel) -> None:
    """A quantizer is reported by the class, kind, tower and layer of the module that holds it."""
    facts = {
        q.name: (q.module_class, q.module_kind, q.tower, q.layer, q.kind)
        for q in maps.quantizer_map(clip)
    }

    assert facts == {
        "vision_model.patch_embedding.input_quantizer": (
            "Conv2d",
            "patch_embedding",
            "vision",
            None,
            "input",
        ),
        "vision_model.stem.input_quantizer": ("Conv2d", "conv", "vision", None, "input"),
        "vision_model.layers.0.self_attn.q_bmm_quantizer": (
            "Identity",
            "attention",
            "vision",
            0,
            "q_bmm",
        ),
        "vision_model.layers.0.fc.input_quantizer": ("Linear", "linear", "vision", 0, "input"),
        "vision_model.norm.input_quantizer": ("LayerNorm", "layernorm", "vision", None, "input"),
        "vision_model.pool.input_quantizer": ("AvgPool1d", "avgpool1d", "vision", None, "input"),
        "text_model.patch_embedding.input_quantizer": (
            "LayerNorm",
            "layernorm",
            "text",
            None,
            "input",
        ),
        "text_model.words.input_quantizer": ("Embedding", "embedding", "text", None, "input"),
        "text_projection.weight_quantizer.0": ("Linear", "linear", "text", None, "weight.0"),
        "text_projection.weight_quantizer.1": ("Linear", "linear", "text", None, "weight.1"),
        "visual_projection.input_quantizer": ("Linear", "linear", "vision", None, "input"),
        "visual_projection.output_quantizer": ("Linear", "linear", "vision", None, "output"),
        "visual_projection.weight_quantizer": ("Linear", "linear", "vision", None, "weight"),
        "logit.input_quantizer": ("Linear", "linear", "none", None, "input"),
    }


def test_patch_embedding_may_be_a_linear_layer() -> None:
    """Where the family's pattern finds the patch embedding, a linear layer is one as well as a
    convolution.
    """
    for layer in (nn.Linear(2, 2), nn.Conv2d(3, 2, 2)):
        kind = maps.module_kind_of(
            families.CLIP, layer, "weight", "vision_model.embeddings.patch_embedding"
        )
        assert kind == "patch_embedding"


def test_map_takes_state_from_the_quantizer(clip: CLIPModel) -> None:
    """Format, granularity, being on, being dynamic and the range are those that the quantizer
    has.
    """
    quantizers: Any = maps.tensor_quantizers(clip)
    q, blocks, tensor, meta = (
        quantizers[f"vision_model.{path}.input_quantizer"]
        for path in ("stem", "norm", "pool", "patch_embedding")
    )
    q.num_bits, q.axis, q.amax = (4, 3), 0, torch.tensor([2.0, 0.25])
    blocks.num_bits, blocks.block_sizes = (2, 1), {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}
    tensor._dynamic = True
    tensor.disable()
    meta.amax = torch.tensor(1.0)
    meta.to("meta")

    after = {q.name: q for q in maps.quantizer_map(clip)}
    q = after["vision_model.stem.input_quantizer"]
    blocks = after["vision_model.norm.input_quantizer"]
    tensor = after["vision_model.pool.input_quantizer"]
    meta = after["vision_model.patch_embedding.input_quantizer"]

    assert (q.format, q.granularity, q.enabled, q.dynamic) == (
        "E4M3",
        "per-channel(0)",
        True,
        False,
    )
    assert q.amax == Amax.of(torch.tensor([2.0, 0.25]))
    assert (blocks.format, blocks.granularity, blocks.enabled, blocks.dynamic) == (
        "E2M1/E4M3",
        "block16",
        True,
        True,
    )
    assert (tensor.format, tensor.granularity, tensor.enabled, tensor.dynamic) == (
        "INT8",
        "per-tensor",
        False,
        True,
    )
    assert (blocks.amax, tensor.amax, meta.amax) == (None, None, None)


def test_map_counts_the_calls_of_a_forward_of_both_towers(clip: CLIPModel) -> None:
    """Without another forward the map's calls are those of one forward of every tower, each call
    counted.
    """
    calls = {q.name: q.calls for q in maps.quantizer_map(clip) if q.calls}

    assert calls == {
        "visual_projection.input_quantizer": 1,
        "text_projection.weight_quantizer.1": 2,
    }


def test_map_counts_the_calls_of_the_forward_given(clip: CLIPModel) -> None:
    """With a forward given, its calls are the map's and no other is run."""
    seen = []

    def forward(model: Any) -> None:
        seen.append(model)
        for _ in range(3):
            model.logit.input_quantizer(torch.ones(2))

    calls = {q.name: q.calls for q in maps.quantizer_map(clip, forward) if q.calls}

    assert calls == {"logit.input_quantizer": 3}
    assert seen == [clip]


def test_counting_leaves_nothing_behind(clip: CLIPModel) -> None:
    """After a forward, also one that raises, no quantizer counts any more."""

    def broken(_: object) -> None:
        raise ValueError("no forward")

    first = maps.count_calls(clip, lambda m: families.forward(m, families.sample_inputs(m)))
    with pytest.raises(ValueError, match="no forward"):
        maps.count_calls(clip, broken)

    assert sum(first.values()) == 3
    assert not any(q._forward_pre_hooks for q in maps.tensor_quantizers(clip).values())


def test_outline_is_of_names_and_classes() -> None:
    """The outline is the SHA-256 of a line for each module, its path and the full name of its
    class.
    """
    container, linear = "torch.nn.modules.container.Sequential", "torch.nn.modules.linear.Linear"
    expected = hashlib.sha256(f" {container}\n0 {linear}\n1 {linear}".encode()).hexdigest()

    assert maps.outline(nn.Sequential(nn.Linear(2, 2), nn.Linear(3, 3))) == expected


@pytest.mark.parametrize(
    ("attributes", "name", "grain"),
    [
        ({"num_bits": (4, 3)}, "E4M3", "per-tensor"),
        ({"num_bits": (4, 3), "axis": 0}, "E4M3", "per-channel(0)"),
        ({"num_bits": 8, "axis": -1}, "INT8", "per-channel(-1)"),
        ({"num_bits": 8, "unsigned": True, "axis": (0, 1)}, "UINT8", "per-channel(0,1)"),
        ({"num_bits": 8, "block_sizes": {-1: None, "type": "dynamic"}}, "INT8", "per-token"),
        ({"num_bits": 4, "block_sizes": {-1: 128, "scale_bits": 8}}, "INT4", "block128"),
        ({"num_bits": 4, "block_sizes": {-1: 16, -2: 32}}, "INT4", "block32x16"),
        (
            {"num_bits": (2, 1), "block_sizes": {-1: 16, "scale_bits": (4, 3)}},
            "E2M1/E4M3",
            "block16",
        ),
        (
            {"num_bits": (2, 1), "block_sizes": {-1: 32, "scale_bits": (8, 0)}},
            "E2M1/E8M0",
            "block32",
        ),
    ],
)
def test_format_and_granularity_are_named(
    attributes: dict[str, Any], name: str, grain: str
) -> None:
    """A quantizer's format is named by element and block scale, its granularity by axes or the
    blocks' sizes.
    """
    from modelopt.torch.quantization.config import QuantizerAttributeConfig
    from modelopt.torch.quantization.nn import TensorQuantizer

    quantizer = TensorQuantizer(QuantizerAttributeConfig(**attributes))

    assert (maps.format_name(quantizer), maps.granularity(quantizer)) == (name, grain)


def test_what_no_recipe_can_quantize_is_told_by_tower() -> None:
    """Hidden blocks make a line for each tower and reason, their paths folded."""

    class SiglipModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision_model = nn.ModuleDict(
                {f"head{n}": nn.MultiheadAttention(2, 1) for n in (1, 2)}
            )
            self.vision_model["pool"] = nn.Sequential(nn.MultiheadAttention(2, 1))
            self.text_model = nn.ModuleDict(
                {"head": nn.MultiheadAttention(2, 1), "fc": nn.Linear(2, 2)}
            )

    reason = families.of(SiglipModel()).hidden["MultiheadAttention"]

    assert insertion.not_covered(SiglipModel()) == [
        f"vision vision_model.{{head1,head2}} vision_model.pool.0: {reason}",
        f"text text_model.head: {reason}",
    ]


# -- the difference of two maps


LAYERS = tuple(
    at(f"vision.layers.{n}.attn.{k}_proj.{i}_quantizer")
    for n in (0, 1, 2, 10)
    for k in "qkv"
    for i in ("input", "weight")
)


def changed(quantizers: QuantizerMap, pattern: str, **facts: Any) -> QuantizerMap:
    """*quantizers* with *facts* for the quantizers whose names *pattern* finds."""
    assert any(re.search(pattern, q.name) for q in quantizers)
    return tuple(replace(q, **facts) if re.search(pattern, q.name) else q for q in quantizers)


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({"enabled": False}, "off"),
        ({"enabled": False, "calls": 0, "dynamic": True}, "off"),
        ({}, "E4M3 per-tensor"),
        ({"dynamic": True}, "E4M3 per-tensor dynamic"),
        ({"calls": 0}, "E4M3 per-tensor called 0 times"),
        (
            {"calls": 2, "dynamic": True, "granularity": "block16"},
            "E4M3 block16 dynamic called 2 times",
        ),
    ],
)
def test_state_names_what_is_unusual(facts: dict[str, Any], text: str) -> None:
    """A state is off, or format and granularity, with dynamic and any number of calls but one."""
    assert maps.state(at("vision.fc.input_quantizer", **facts)) == text
    assert maps.state(None) == "absent"


def test_equal_maps_differ_in_nothing() -> None:
    """A map differs from itself in no line, with or without a look at the ranges."""
    assert maps.diff(LAYERS, LAYERS) == []
    assert maps.diff(LAYERS, LAYERS[::-1], amax_tolerance=0.0) == []
    assert maps.diff((), ()) == []


@pytest.mark.parametrize(
    ("pattern", "facts", "lines"),
    [
        (
            "layers.1.attn.q_proj.input",
            {"enabled": False},
            ["1 quantizer changes: vision attn.q_proj input E4M3 per-tensor to off, layers 1"],
        ),
        (
            "layers.(0|1|10).attn.q_proj.input",
            {"enabled": False},
            [
                "3 quantizers change: vision attn.q_proj input E4M3 per-tensor to off, layers "
                "0..1,10"
            ],
        ),
        (
            "[qk]_proj",
            {"format": "INT8"},
            [
                "16 quantizers change: vision attn.{q,k}_proj {input,weight} E4M3 per-tensor to "
                "INT8 per-tensor, "
                "layers 0..2,10"
            ],
        ),
        (
            "q_proj|v_proj.weight",
            {"calls": 2},
            [
                "12 quantizers change: vision attn.q_proj {input,weight}, attn.v_proj weight "
                "E4M3 per-tensor to E4M3 per-tensor called 2 times, layers 0..2,10"
            ],
        ),
    ],
)
def test_places_that_change_alike_share_a_line(
    pattern: str, facts: dict[str, Any], lines: list[str]
) -> None:
    """A line says how many quantizers changed alike, where, from what to what, and in which
    layers.
    """
    assert maps.diff(LAYERS, changed(LAYERS, pattern, **facts)) == lines


def test_what_changes_otherwise_is_another_line() -> None:
    """Other layers, another tower and another change each have a line of their own."""
    before = (
        *LAYERS,
        at("text.layers.0.attn.q_proj.input_quantizer"),
        at("text.head.weight_quantizer"),
    )
    after = changed(before, r"vision.layers.0.attn.q_proj.input|text.*proj", enabled=False)
    after = changed(after, r"layers.1.attn.q_proj.input", enabled=False)
    after = changed(after, r"layers.2.attn.k_proj.input", enabled=False)
    after = changed(after, r"text.head", format="INT8")

    assert maps.diff(before, after) == [
        "2 quantizers change: vision attn.q_proj input E4M3 per-tensor to off, layers 0..1",
        "1 quantizer changes: vision attn.k_proj input E4M3 per-tensor to off, layers 2",
        "1 quantizer changes: text attn.q_proj input E4M3 per-tensor to off, layers 0",
        "1 quantizer changes: text text.head weight E4M3 per-tensor to INT8 per-tensor",
    ]


def test_quantizers_come_and_go() -> None:
    """A quantizer of one map only is absent in the other; what has no module is named by its
    kind.
    """
    gone, come = (
        at("vision.blocks.3.fc.input_quantizer"),
        at("input_quantizer", tower="vision", enabled=False),
    )

    assert maps.diff((gone,), (come,), amax_tolerance=0.0) == [
        "1 quantizer changes: vision fc input E4M3 per-tensor to absent, layers 3",
        "1 quantizer changes: vision input absent to off",
    ]


def test_places_outside_the_layers_are_folded_by_path() -> None:
    """Modules outside the layers are reported by their whole path, those of one module folded at their
    last name.
    """
    before = tuple(at(f"vision.pool.attn.{k}_proj.input_quantizer") for k in "qk")

    assert maps.diff(before, all_off(before)) == [
        "2 quantizers change: vision vision.pool.attn.{q,k}_proj input E4M3 per-tensor to off"
    ]


def test_layer_number_counts_only_where_there_is_one() -> None:
    """Quantizers inside and outside the layers that share a place are reported with the layers of those
    that have one.
    """
    before = (at("vision.layers.4.fc.input_quantizer"), at("fc.input_quantizer", tower="vision"))

    assert maps.diff(before, all_off(before)) == [
        "2 quantizers change: vision fc input E4M3 per-tensor to off, layers 4"
    ]


RANGE = amax(1.0, 4.0, "a", 8)


@pytest.mark.parametrize(
    ("other", "tolerance", "change"),
    [
        (RANGE, 0.0, ""),
        (amax(1.0, 4.0, "b", 8), 0.0, "amax 4 to 4"),
        (amax(1.0, 4.0, "b", 8), None, ""),
        (amax(1.0, 4.0, "b", 8), 1e-9, ""),
        (amax(1.0, 4.4, "b", 8), 0.1, ""),
        (amax(1.0, 4.5, "b", 8), 0.1, "amax 4 to 4.5"),
        (amax(0.8, 4.0, "b", 8), 0.1, "amax 4 to 4"),
        (amax(0.95, 4.2, "b", 8), 0.1, ""),
        (amax(0.95, 4.2, "b", 7), 0.1, "amax 4 to 4.2"),
        (amax(1.0, 1234567.0, "b", 8), 0.1, "amax 4 to 1.23457e+06"),
        (None, 0.1, "an amax to no amax"),
        (None, 0.0, "an amax to no amax"),
        (None, None, ""),
    ],
    ids=[
        "equal",
        "one bit",
        "not asked",
        "one bit allowed",
        "within",
        "high beyond",
        "low beyond",
        "both within",
        "another count",
        "far",
        "gone",
        "gone, none allowed",
        "gone, not asked",
    ],
)
def test_ranges_differ_by_bits_or_beyond_a_tolerance(
    other: Amax | None, tolerance: float | None, change: str
) -> None:
    """None leaves ranges out, 0 asks for equal bits, more for equal counts and extremes within that
    relative part.
    """
    before, after = (
        at("vision.fc.input_quantizer", amax=RANGE),
        at("vision.fc.input_quantizer", amax=other),
    )
    line = [f"1 quantizer changes: vision vision.fc input {change}"] if change else []

    assert maps.diff((before,), (after,), amax_tolerance=tolerance) == line


def test_range_that_comes_is_told() -> None:
    """A range that was not there is reported, and none on either side is not a change."""
    bare, ranged = at("vision.fc.input_quantizer", amax=None), at("vision.fc.input_quantizer")

    assert maps.diff((bare,), (ranged,), amax_tolerance=0.1) == [
        "1 quantizer changes: vision vision.fc input no amax to an amax"
    ]
    assert maps.diff((bare,), (bare,), amax_tolerance=0.0) == []


def test_range_of_what_is_off_is_not_compared() -> None:
    """The range of a quantizer that is off in both maps, or that changes otherwise, adds
    nothing.
    """
    before, after = (
        at("vision.fc.input_quantizer"),
        at("vision.fc.input_quantizer", amax=amax(2.0, 2.0, "b")),
    )

    assert maps.diff(all_off((before,)), all_off((after,)), amax_tolerance=0.0) == []
    assert maps.diff((before,), (replace(after, calls=2),), amax_tolerance=0.0) == [
        "1 quantizer changes: vision vision.fc input E4M3 per-tensor to E4M3 per-tensor called 2 "
        "times"
    ]


@pytest.mark.parametrize(
    "values", [[], [math.nan], [math.nan, 1.0]], ids=["empty", "NaN", "NaN among others"]
)
def test_range_without_a_number_equals_itself(values: list[float]) -> None:
    """Equal bits are equal where they are no number, or none at all."""
    before, after = (
        at("vision.fc.input_quantizer", amax=Amax.of(torch.tensor(values))) for _ in range(2)
    )

    assert maps.diff((before,), (after,), amax_tolerance=0.0) == []
    assert maps.diff((before,), (after,), amax_tolerance=0.1) == []
