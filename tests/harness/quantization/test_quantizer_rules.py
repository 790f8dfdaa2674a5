"""The rules of the quantizer map on maps built by hand: what each counts, what it names, what it tells to do."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.checks import insertion, patterns
from harness.models import families
from harness.problems import Problem, collapse
from harness.quantization import maps
from harness.quantization.maps import Amax, Quantizer, QuantizerMap
from harness.recipes.loading import Entry, Recipe

INF, NAN = math.inf, math.nan
OWN = Path("recipes/r.yaml")
QKV = ("q_bmm", "k_bmm", "v_bmm")
FUSED = (*QKV, "bmm2_output")


def amax(low: float = 1.0, high: float = 1.0, digest: str = "same", count: int = 1) -> Amax:
    """A range; by default of one value, 1."""
    return Amax(count, low, high, digest)


def at(name: str, **other: Any) -> Quantizer:
    """An enabled static FP8 quantizer that ran once, of a linear layer of the tower that its name begins with."""
    facts: dict[str, Any] = {
        "name": name,
        "kind": maps.kind_of(name),
        "tower": name.partition(".")[0],
        "layer": families.layer_of(name),
        "module_class": "Linear",
        "module_kind": "linear",
        "format": "E4M3",
        "granularity": "per-tensor",
        "enabled": True,
        "dynamic": False,
        "calls": 1,
        "amax": amax(),
    }
    return Quantizer(**facts | other)


def attention(block: str, kinds: Iterable[str] = FUSED, **other: Any) -> QuantizerMap:
    """The quantizers around the attention of *block*."""
    facts = {"module_class": "CLIPAttention", "module_kind": "attention"} | other
    return tuple(at(f"{block}.{kind}_quantizer", **facts) for kind in kinds)


def without(found: QuantizerMap, *names: str) -> QuantizerMap:
    """*found* with the quantizers *names* off."""
    assert set(names) <= {q.name for q in found}
    return tuple(replace(q, enabled=q.enabled and q.name not in names) for q in found)


def on(pattern: str, parent: str | None = None, origin: str = f"{OWN}:5") -> Entry:
    """An entry that enables, of the recipe's own file."""
    return Entry(pattern, parent, True, {"num_bits": (4, 3)}, origin)


def off(pattern: str, parent: str | None = None, origin: str = f"{OWN}:7") -> Entry:
    """An entry that turns off, of the recipe's own file."""
    return Entry(pattern, parent, False, None, origin)


def imported(pattern: str) -> Entry:
    """An entry of a deny-list that the recipe imports."""
    return off(pattern, origin="units/deny.yaml:3")


def recipe(*entries: Entry, path: Path | None = OWN, name: str = "r", candidates: tuple[Recipe, ...] = ()) -> Recipe:
    """A recipe of *entries*."""
    return Recipe(name, name, path, {}, "max", entries, (), "", "auto_quantize" if candidates else "ptq", candidates)


def searching(*formats: tuple[Entry, ...]) -> Recipe:
    """A search among formats named ``format 1`` and on."""
    found = tuple(recipe(*entries, name=f"format {n}") for n, entries in enumerate(formats, 1))
    return recipe(name="search", candidates=found)


def only(problems: list[Problem], rule: str) -> Problem:
    """The one problem there is, of the rule named *rule*."""
    assert [p.rule for p in problems] == [rule]
    return problems[0]


def numbers(text: str) -> list[int]:
    """The whole numbers that stand by themselves in *text*."""
    return [int(n) for n in re.findall(r"(?<![\w.-])-?\d+(?![\w.])", text)]


# -- the records ----------------------------------------------------------------------------------------------------


def test_amax_is_summarised_by_count_extremes_and_bytes() -> None:
    """A range of any shape and dtype is told by its count, its extremes and the SHA-256 of its fp32 bytes."""
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
def test_amax_is_usable_if_finite_and_positive(count: int, low: float, high: float, usable: bool) -> None:
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
    """A quantizer's name is the path of its module and its kind, of a part of a sequence with the part's number."""
    assert (maps.holder_of(name), maps.kind_of(name)) == (holder, kind)


def test_quantizer_knows_its_module() -> None:
    """The module that holds a quantizer, or a part of a sequence, is what its path begins with."""
    assert at("vision.layers.1.fc.weight_quantizer").module == "vision.layers.1.fc"
    assert at("vision.layers.1.fc.weight_quantizer.0").module == "vision.layers.1.fc"
    assert at("input_quantizer").module == ""


def test_record_is_read_back_whole() -> None:
    """A quantizer is the same after it was kept as a record, with a range and without."""
    for q in (at("vision.fc.input_quantizer", dynamic=True), at("text.fc.weight_quantizer", amax=None, calls=3)):
        assert maps.of_dict(q.as_dict()) == q


def test_record_keeps_what_is_unusual_only() -> None:
    """Constant ranges and empty parts of weights are read back, and are in no record of a quantizer without them."""
    fixed = at("vision.fc.input_quantizer", constant=True)
    pruned = at("vision.fc.weight_quantizer", amax=Amax.of(torch.tensor([0.0, 2.0]), torch.tensor([True, False])))

    assert [maps.of_dict(q.as_dict()) for q in (fixed, pruned)] == [fixed, pruned]
    assert pruned.amax is not None
    assert (pruned.amax.empty, pruned.amax.low, pruned.amax.usable) == (1, 2.0, True)
    assert maps.state(fixed) == "E4M3 per-tensor constant 1"
    plain = at("vision.fc.input_quantizer").as_dict()
    assert "constant" not in plain
    assert "empty" not in plain["amax"]


def test_record_of_another_version_is_read_as_far_as_known() -> None:
    """What a record has beside the known fields is left out, and what it lacks is None."""
    q = maps.of_dict({"name": "n", "calls": 2, "colour": "red", "amax": {"low": 0.5, "mean": 1.0}})
    facts = q.as_dict()

    assert [facts[field] for field in ("name", "calls", "kind", "layer")] == ["n", 2, None, None]
    assert q.amax == Amax(None, 0.5, None, None)  # type: ignore[arg-type]
    assert maps.of_dict({"name": "n"}).amax is None


def test_problem_reads_what_where_mend() -> None:
    """A problem is told in lines: what is wrong, the names folded and indented, the mend; an empty part has none."""
    names = ("v.layers.0.fc.w_quantizer", "v.layers.1.fc.w_quantizer", "head.w_quantizer")

    assert str(Problem("rule", "Two are wrong:", names, "Mend them.")) == (
        "Two are wrong:\n  v.layers.{0,1}.fc.w_quantizer\n  head.w_quantizer\nMend them."
    ).replace("{0,1}", "{0..1}")
    assert str(Problem("rule", "Wrong.", (), "")) == "Wrong."


# -- the map of a model ---------------------------------------------------------------------------------------------


class CLIPModel(nn.Module):
    """By the name of its class of the family clip: layers of every kind that the map tells apart, all tiny."""

    def __init__(self) -> None:
        from modelopt.torch.quantization.nn import QuantModuleRegistry, SequentialQuantizer, TensorQuantizer

        super().__init__()
        attention_block = nn.Identity()
        layers = nn.ModuleList([nn.ModuleDict({"self_attn": attention_block, "fc": nn.Linear(2, 2)})])
        self.vision_model = nn.ModuleDict(
            {
                "patch_embedding": nn.Conv2d(3, 2, 2),
                "stem": nn.Conv2d(3, 2, 2),
                "layers": layers,
                "norm": nn.LayerNorm(2),
                "pool": nn.AvgPool1d(1),
            }
        )
        self.text_model = nn.ModuleDict({"patch_embedding": nn.LayerNorm(2), "words": nn.Embedding(4, 2)})
        self.text_projection = nn.Linear(2, 2)
        self.visual_projection = QuantModuleRegistry.convert(nn.Linear(2, 2))
        self.logit = nn.Linear(2, 2)
        for path in ("patch_embedding", "stem", "layers.0.self_attn", "layers.0.fc", "norm", "pool"):
            kind = "q_bmm" if path.endswith("attn") else "input"
            setattr(self.vision_model.get_submodule(path), f"{kind}_quantizer", TensorQuantizer())
        for module in (self.text_model["patch_embedding"], self.text_model["words"], self.logit):
            module.input_quantizer = TensorQuantizer()
        self.text_projection.weight_quantizer = SequentialQuantizer(TensorQuantizer(), TensorQuantizer())
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
    """A model's quantizers are the leaves in module order: the parts of a sequence, not the sequence."""
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
    """A quantizer is told by the class, kind, tower and layer of the module that holds it."""
    found = {q.name: (q.module_class, q.module_kind, q.tower, q.layer, q.kind) for q in maps.quantizer_map(clip)}

    assert found == {
        "vision_model.patch_embedding.input_quantizer": ("Conv2d", "patch_embedding", "vision", None, "input"),
        "vision_model.stem.input_quantizer": ("Conv2d", "conv", "vision", None, "input"),
        "vision_model.layers.0.self_attn.q_bmm_quantizer": ("Identity", "attention", "vision", 0, "q_bmm"),
        "vision_model.layers.0.fc.input_quantizer": ("Linear", "linear", "vision", 0, "input"),
        "vision_model.norm.input_quantizer": ("LayerNorm", "layernorm", "vision", None, "input"),
        "vision_model.pool.input_quantizer": ("AvgPool1d", "avgpool1d", "vision", None, "input"),
        "text_model.patch_embedding.input_quantizer": ("LayerNorm", "layernorm", "text", None, "input"),
        "text_model.words.input_quantizer": ("Embedding", "embedding", "text", None, "input"),
        "text_projection.weight_quantizer.0": ("Linear", "linear", "text", None, "weight.0"),
        "text_projection.weight_quantizer.1": ("Linear", "linear", "text", None, "weight.1"),
        "visual_projection.input_quantizer": ("Linear", "linear", "vision", None, "input"),
        "visual_projection.output_quantizer": ("Linear", "linear", "vision", None, "output"),
        "visual_projection.weight_quantizer": ("Linear", "linear", "vision", None, "weight"),
        "logit.input_quantizer": ("Linear", "linear", "none", None, "input"),
    }


def test_patch_embedding_may_be_a_linear_layer() -> None:
    """Where the family's pattern finds the patch embedding, a linear layer is one as well as a convolution."""
    for layer in (nn.Linear(2, 2), nn.Conv2d(3, 2, 2)):
        kind = maps._module_kind(families.CLIP, layer, "weight", "vision_model.embeddings.patch_embedding")
        assert kind == "patch_embedding"


def test_map_takes_state_from_the_quantizer(clip: CLIPModel) -> None:
    """Format, granularity, being on, being dynamic and the range are those that the quantizer has."""
    found: Any = maps.tensor_quantizers(clip)
    q, blocks, tensor, meta = (
        found[f"vision_model.{path}.input_quantizer"] for path in ("stem", "norm", "pool", "patch_embedding")
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

    assert (q.format, q.granularity, q.enabled, q.dynamic) == ("E4M3", "per-channel(0)", True, False)
    assert q.amax == Amax.of(torch.tensor([2.0, 0.25]))
    assert (blocks.format, blocks.granularity, blocks.enabled, blocks.dynamic) == ("E2M1/E4M3", "block16", True, True)
    assert (tensor.format, tensor.granularity, tensor.enabled, tensor.dynamic) == ("INT8", "per-tensor", False, True)
    assert (blocks.amax, tensor.amax, meta.amax) == (None, None, None)


def test_map_counts_the_calls_of_a_forward_of_both_towers(clip: CLIPModel) -> None:
    """Without another forward the map's calls are those of one forward of every tower, each call counted."""
    calls = {q.name: q.calls for q in maps.quantizer_map(clip) if q.calls}

    assert calls == {"visual_projection.input_quantizer": 1, "text_projection.weight_quantizer.1": 2}


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
    """The outline is the SHA-256 of a line for each module, its path and the full name of its class."""
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
        ({"num_bits": (2, 1), "block_sizes": {-1: 16, "scale_bits": (4, 3)}}, "E2M1/E4M3", "block16"),
        ({"num_bits": (2, 1), "block_sizes": {-1: 32, "scale_bits": (8, 0)}}, "E2M1/E8M0", "block32"),
    ],
)
def test_format_and_granularity_are_named(attributes: dict[str, Any], name: str, grain: str) -> None:
    """A quantizer's format is named by element and block scale, its granularity by axes or the blocks' sizes."""
    from modelopt.torch.quantization.config import QuantizerAttributeConfig
    from modelopt.torch.quantization.nn import TensorQuantizer

    quantizer = TensorQuantizer(QuantizerAttributeConfig(**attributes))

    assert (maps.format_name(quantizer), maps.granularity(quantizer)) == (name, grain)


def test_what_no_recipe_can_quantize_is_told_by_tower() -> None:
    """Hidden blocks make a line for each tower and reason, their paths folded."""

    class SiglipModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision_model = nn.ModuleDict({f"head{n}": nn.MultiheadAttention(2, 1) for n in (1, 2)})
            self.vision_model["pool"] = nn.Sequential(nn.MultiheadAttention(2, 1))
            self.text_model = nn.ModuleDict({"head": nn.MultiheadAttention(2, 1), "fc": nn.Linear(2, 2)})

    reason = families.of(SiglipModel()).hidden["MultiheadAttention"]

    assert insertion.not_covered(SiglipModel()) == [
        f"vision vision_model.{{head1,head2}} vision_model.pool.0: {reason}",
        f"text text_model.head: {reason}",
    ]


# -- patterns -------------------------------------------------------------------------------------------------------

PAIR = (at("vision.fc.weight_quantizer"), at("text.conv.input_quantizer", module_class="Conv2d"))


@pytest.mark.parametrize(
    ("pattern", "parent", "found"),
    [
        ("*", None, {0, 1}),
        ("*weight_quantizer", None, {0}),
        ("weight_quantizer", None, set()),
        ("*Weight_quantizer", None, set()),
        ("vision.fc", None, set()),
        ("*_quantizer", "nn.Conv2d", {1}),
        ("*_quantizer", "Conv2d", {1}),
        ("*_quantizer", "torch.nn.Linear", {0}),
        ("*weight*", "nn.Conv2d", set()),
        ("*", "nn.Conv", set()),
    ],
)
def test_pattern_is_a_glob_over_whole_names_of_a_class(pattern: str, parent: str | None, found: set[int]) -> None:
    """An entry speaks of the names that its glob matches whole, case and all, in modules of its class if it has one."""
    assert maps.matched(PAIR, on(pattern, parent)) == {PAIR[n].name for n in found}


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*weight_quantizer", {0, 10}),
        ("*weight_quantizer.0", {0}),
        ("*weight_quantizer.1", set()),
        ("*.10", {10}),
        ("vision.fc.weight_quantizer", {0, 10}),
        ("*fc", set()),
    ],
)
def test_part_of_a_sequence_goes_by_its_holder(pattern: str, found: set[int]) -> None:
    """Parts of a sequential quantizer match by their own name and by that of the sequence."""
    parts = tuple(at(f"vision.fc.weight_quantizer.{n}") for n in (0, 10))

    assert maps.matched(parts, on(pattern)) == {f"vision.fc.weight_quantizer.{n}" for n in found}


@pytest.mark.parametrize(
    ("entry", "path", "told"),
    [
        (on("*wrong"), OWN, True),
        (off("*wrong"), OWN, True),
        (imported("*wrong"), OWN, False),
        (imported("*wrong"), None, True),
        (on("*wrong", origin="units/on.yaml:2"), OWN, True),
        (off("*weight_quantizer"), OWN, False),
        (on("*weight_quantizer"), OWN, False),
        (on("*wrong", "nn.Conv2d"), OWN, False),
        (on("*wrong", "nn.Linear"), OWN, True),
        (on("*elsewhere_quantizer"), OWN, False),
    ],
    ids=["on", "off", "imported off", "off in Python", "imported on", "matches", "matches on", "absent class",
         "class that is there", "other tower"],
)  # fmt: skip
def test_unmatched_pattern_is_told_unless_it_may_be(entry: Entry, path: Path | None, told: bool) -> None:
    """What matches nothing is told, but not a shared deny-list, a class of other families or the tower left out."""
    found = patterns.unmatched_patterns(
        PAIR, recipe(entry, path=path), elsewhere=(at("text.elsewhere_quantizer"),), absent=("nn.Conv2d",)
    )

    assert [p.rule for p in found] == ["pattern matches nothing"] * told


def test_unmatched_pattern_is_told_with_its_place() -> None:
    """The message names entry, recipe, pattern, origin and how many quantizers were asked; entries before it count."""
    problems = patterns.unmatched_patterns(PAIR, recipe(imported("*lm_head*"), on("*"), on("*wrong", "nn.Linear")))
    problem = only(problems, "pattern matches nothing")

    assert "entry 3 of recipe r, '*wrong' (recipes/r.yaml:5), matches none of the 2 quantizers" in problem.what
    assert problem.what.endswith("this model (only those of nn.Linear modules asked).")
    assert problem.names == ()
    assert "input_quantizer, weight_quantizer." in problem.mend
    plain = only(patterns.unmatched_patterns(PAIR, recipe(on("*wrong"))), "pattern matches nothing")
    assert plain.what.endswith("of this model.")


def test_unmatched_patterns_of_a_search_are_those_of_its_formats() -> None:
    """In a search each format's entries are asked, numbered and named by themselves."""
    found = patterns.unmatched_patterns(PAIR, searching((on("*"), on("*a?b")), (on("*"),), (on("*c?d"),)))

    assert [re.match(r"entry (\d) of recipe (format \d), '(.*?)'", p.what).groups() for p in found] == [  # type: ignore[union-attr]
        ("2", "format 1", "*a?b"),
        ("1", "format 3", "*c?d"),
    ]


HIDDEN = {"vision.head": "it is packed", "vision.pool": "it is packed too"}


@pytest.mark.parametrize(
    ("pattern", "hidden", "block", "mend"),
    [
        ("*q_bmm_quantizer", HIDDEN, False, r"vision\.head and 1 more: it is packed\."),
        ("*bmm2_output_quantizer", HIDDEN, False, r"vision\.head and 1 more: it is packed\."),
        ("*bmm2_output_quantizer", HIDDEN, True, ".*--attention diffusers"),
        ("*bmm2_output_quantizer", {}, False, ".*--attention diffusers"),
        ("*p_bmm_quantizer", {}, False, "Remove the entry"),
        ("*p_bmm_quantizer", HIDDEN, True, "Remove the entry"),
        (
            "*wieght_quantizer",
            HIDDEN,
            False,
            r"Did you mean '\*weight_quantizer'\? .*: input_quantizer, weight_q\w+\.$",
        ),
        ("*fc.*.inputt_quantizer", {}, False, r"Did you mean '\*input_quantizer'\?"),
        ("*fc[01].inputt_quantizer", {}, False, r"Did you mean '\*input_quantizer'\?"),
        ("inputt_quantizer?zz", {}, False, r"Did you mean '\*input_quantizer'\?"),
        ("*Weight_quantizer", {}, False, r"Did you mean '\*weight_quantizer'\?"),
        ("weight_quantizer", {}, False, r"Did you mean '\*weight_quantizer'\?"),
        ("*weight_quantizer.1", {}, False, r"Did you mean '\*weight_quantizer'\?"),
        ("*{fc,conv}.weight_quantizer", {}, False, r".*have no braces: .*Write one entry for each\.$"),
        ("*f{a..c}.weight_quantizer", {}, False, r".*have no braces: .*Did you mean '\*f\[a-c\].weight_quantizer'\?$"),
        ("*quantiz", {}, False, "Correct the pattern .*: input_quantizer, weight_quantizer.$"),
        ("sion.f", HIDDEN, False, r"Did you mean '\*sion\.f\*'\?"),
        ("max.fc", HIDDEN, False, "Correct the pattern"),
        ("zz*", {}, False, "Correct the pattern"),
        ("zz?", {}, False, "Correct the pattern"),
        ("z[z", {}, False, "Correct the pattern"),
        (".", {}, False, "Correct the pattern"),
    ],
)
def test_unmatched_pattern_is_told_with_what_was_meant(
    pattern: str, hidden: dict[str, str], block: bool, mend: str
) -> None:
    """The mend is why the block is hidden, the attention class that has it, the name meant, or the names there are."""
    there = PAIR + attention("vision.attn", ("k_bmm",)) * block

    problem = only(patterns.unmatched_patterns(there, recipe(on(pattern)), hidden), "pattern matches nothing")

    assert re.match(mend, problem.mend)


def test_unmatched_pattern_on_a_model_without_quantizers() -> None:
    """Where there is no quantizer at all, even '*' matches nothing and no name can be meant."""
    problem = only(patterns.unmatched_patterns((), recipe(on("*"))), "pattern matches nothing")

    assert "none of the 0 quantizers" in problem.what
    assert problem.mend.startswith("Correct the pattern")


@pytest.mark.parametrize(
    ("entries", "path", "told"),
    [
        ((on("*weight*"), off("*")), OWN, [(1, 2)]),
        ((on("*weight*"), off("*")), None, [(1, 2)]),
        ((off("*"), on("*weight*")), OWN, []),
        ((on("*weight*"), off("*weight*")), OWN, []),
        ((on("*weight*"), off("*weight*")), None, []),
        ((on("*weight*"), imported("*weight*")), OWN, [(1, 2)]),
        ((on("*"), imported("*weight*")), OWN, []),
        ((on("*"), imported("*weight*"), imported("*input*")), OWN, [(1, 3)]),
        ((on("*"), off("*weight*"), imported("*input*")), OWN, []),
        ((on("*none*"), off("*")), OWN, []),
        ((off("*"), off("*")), OWN, []),
        ((on("*weight*"), on("*"), off("*"), off("*")), OWN, [(1, 3), (2, 3)]),
        ((on("*none*"), off("*input*"), on("*weight*"), imported("*nothing*"), off("*")), OWN, [(3, 5)]),
    ],
    ids=["deny-all", "deny-all in Python", "before", "own line", "own line in Python", "imported", "a part",
         "two imported", "own and imported", "matches nothing", "nothing on", "two enabled", "others between"],
)  # fmt: skip
def test_overridden_pattern_is_told_with_both_entries(
    entries: tuple[Entry, ...], path: Path | None, told: list[tuple[int, int]]
) -> None:
    """An entry that a deny-all or imported deny-lists behind it leave nothing of is told, with the last one."""
    problems = patterns.overridden_patterns(PAIR, recipe(*entries, path=path))

    assert [p.rule for p in problems] == ["pattern overridden"] * len({last for _, last in told})
    for problem, last in zip(problems, sorted({last for _, last in told}), strict=True):
        enabling = [(first, entries[first - 1].pattern) for first, other in told if other == last]
        behind = entries[last - 1]
        named = ", ".join(f"{first} ({pattern!r})" for first, pattern in enabling)
        assert f"entry {last} of recipe r, '{behind.pattern}' ({behind.origin}), stands behind" in problem.what
        assert problem.what.endswith(f"{named}.")
        assert problem.names == ()
        assert re.search(rf"move '{re.escape(behind.pattern)}'.* before '{re.escape(enabling[0][1])}'", problem.mend)


@pytest.mark.parametrize(
    ("entries", "early"),
    [
        ((off("*fc*"), off("*"), on("*_quantizer")), [1]),
        ((off("*"), off("*fc*"), on("*_quantizer"), on("*input*")), [2]),
        ((off("*"), off("vision*"), on("*_quantizer")), [2]),
        ((off("*"), on("*_quantizer"), off("*fc*")), []),
        ((off("*"), off("*_quantizer"), on("*weight*")), []),
        ((off("*"), off("*conv*"), on("*weight*")), []),
        ((off("*"), imported("*fc*"), on("*_quantizer")), []),
        ((off("*"), off("*none*"), on("*")), []),
        ((off("*"), Entry("*fc*", None, True, {"num_bits": 4}, "x"), on("*_quantizer")), [2]),
        ((off("*"), on("*fc*"), on("*_quantizer")), []),
    ],
    ids=["before the deny-all", "behind it", "a tower", "in its place", "refined", "stays off", "imported",
         "matches nothing", "other attributes", "the same attributes"],
)  # fmt: skip
def test_exception_before_what_it_excepts_is_told(entries: tuple[Entry, ...], early: list[int]) -> None:
    """An author's exception that later entries undo everywhere has no effect; the fix is to move it behind them."""
    given = recipe(*entries, path=None)
    if any(entry.origin.startswith("units") for entry in entries):
        given = replace(given, path=OWN)
    problems = patterns.overridden_patterns(PAIR, given)

    assert [p.rule for p in problems] == ["exception before what it excepts"] * len(early)
    for problem, number in zip(problems, early, strict=True):
        moved = re.search(r"behind entry (\d+), ", problem.mend)
        assert moved is not None
        order = [entry for n, entry in enumerate(entries, 1) if n != number]
        order.insert(int(moved[1]) - 1, entries[number - 1])
        assert patterns.overridden_patterns(PAIR, recipe(*order, path=None)) == []


def test_entry_that_is_written_again_is_told() -> None:
    """Of two entries for the same quantizers with other attributes the first has no effect, and one is to go."""
    entries = (off("*"), Entry("*fc*", None, True, {"num_bits": 4}, "x"), on("*weight*"))
    problem = only(patterns.overridden_patterns(PAIR, recipe(*entries, path=None)), "exception before what it excepts")

    assert problem.mend.endswith("remove entry 2, or entry 3.")
    assert patterns.overridden_patterns(PAIR, recipe(*entries[:2], path=None)) == []
    assert patterns.overridden_patterns(PAIR, recipe(entries[0], entries[2], path=None)) == []


def test_exception_that_holds_in_the_other_tower_is_no_problem() -> None:
    """On a single tower an entry may have its effect in the tower that is not there."""
    entries = (off("*"), Entry("*weight*", None, True, {"num_bits": 4}, "x"), on("vision*weight*"))

    assert len(patterns.overridden_patterns(PAIR, recipe(*entries, path=None))) == 1
    assert patterns.overridden_patterns(PAIR, recipe(*entries, path=None), (at("text.fc.weight_quantizer"),)) == []


def test_overridden_patterns_of_a_search_are_those_of_its_formats() -> None:
    """In a search an entry is overridden by entries of its own format only."""
    found = patterns.overridden_patterns(PAIR, searching((on("*"),), (off("*"),), (on("*input*"), off("*"))))

    assert "entry 2 of recipe format 3, '*'" in only(found, "pattern overridden").what


# -- coverage -------------------------------------------------------------------------------------------------------


def tower(name: str) -> QuantizerMap:
    """A tower with all three kinds that must be covered, and one that need not be."""
    return (
        at(f"{name}.layers.0.fc2.weight_quantizer"),
        at(f"{name}.layers.0.fc1.weight_quantizer"),
        at(f"{name}.layers.0.fc1.input_quantizer"),
        at(f"{name}.patches.weight_quantizer", module_kind="patch_embedding"),
        at(f"{name}.norm.input_quantizer", module_kind="layernorm"),
        *attention(f"{name}.layers.0.attn", ("q_bmm",)),
    )


def all_off(found: QuantizerMap, *kinds: str) -> QuantizerMap:
    """*found* with the quantizers of modules of *kinds*, or all, off."""
    return tuple(replace(q, enabled=q.enabled and bool(kinds) and q.module_kind not in kinds) for q in found)


def test_untouched_tower_is_told_with_its_modules() -> None:
    """A tower with nothing enabled is told whole: how many quantizers of its covered kinds, every module, in order."""
    found = tower("vision") + all_off(tower("text"))
    problem = only(insertion.uncovered(found), "tower unquantized")

    assert "the whole text tower is unquantized: 0 of 5 quantizers" in problem.what
    assert problem.names == ("text.layers.0.attn", "text.layers.0.fc1", "text.layers.0.fc2", "text.patches")
    assert "text linear, patch_embedding, attention stays" in problem.mend


def test_untouched_kind_of_layer_is_told_with_its_modules() -> None:
    """A kind of layer with nothing enabled in a tower is told for that tower, with the modules of that kind only."""
    found = all_off(tower("vision"), "patch_embedding", "attention") + tower("text")
    problem = only(insertion.uncovered(found), "kind of layer unquantized")

    assert "vision tower: no enabled quantizer at any patch embedding or attention." in problem.what
    assert problem.names == ("vision.layers.0.attn", "vision.patches")
    assert "vision patch_embedding, attention stays" in problem.mend


def test_one_enabled_quantizer_covers_a_kind() -> None:
    """A kind of layer is covered by one enabled quantizer in the tower."""
    found = without(tower("vision"), "vision.layers.0.fc1.weight_quantizer", "vision.layers.0.fc1.input_quantizer")

    assert insertion.uncovered(found) == []


def test_every_tower_is_asked() -> None:
    """Two untouched towers are two problems, in the order of the map."""
    found = all_off(tower("vision")) + all_off(tower("text"), "linear")

    assert [(p.rule, p.what.split()[0]) for p in insertion.uncovered(found)] == [
        ("tower unquantized", "the"),
        ("kind of layer unquantized", "text"),
    ]


def test_declared_omissions_are_not_told() -> None:
    """What the budgets file leaves out in one tower is told neither there nor taken for said of the other."""
    both = all_off(tower("vision"), "attention") + all_off(tower("text"), "attention")

    problem = only(insertion.uncovered(both, [("vision", "attention")]), "kind of layer unquantized")
    assert problem.names == ("text.layers.0.attn",)
    assert insertion.uncovered(both, [("vision", "attention"), ("text", "attention")]) == []


def test_tower_off_but_for_what_is_declared_is_told_whole() -> None:
    """A tower with nothing on is told whole even where one of its kinds is declared, and then without that kind."""
    problem = only(insertion.uncovered(all_off(tower("vision")), [("vision", "patch_embedding")]), "tower unquantized")

    assert "0 of 5" in problem.what
    assert "vision.patches" not in problem.names
    assert "vision linear, attention stays" in problem.mend


def test_what_is_in_no_tower_need_not_be_covered() -> None:
    """Modules outside the towers, and kinds that are not among the covered ones, may stay unquantized."""
    found = (
        at("none.logit.input_quantizer", enabled=False),
        at("vision.norm.input_quantizer", module_kind="layernorm", enabled=False),
    )

    assert insertion.uncovered(found) == []


def test_tower_without_a_kind_need_not_cover_it() -> None:
    """A tower that has no layer of a kind, such as a text tower a patch embedding, lacks nothing."""
    assert insertion.uncovered((at("text.fc.weight_quantizer"),)) == []


# -- attention ------------------------------------------------------------------------------------------------------

BLOCKS = ("vision.layers.0.attn", "vision.layers.1.attn", "text.layers.0.attn")
WHOLE = tuple(q for block in BLOCKS for q in attention(block))
ASKS = recipe(on("*[qkv]_bmm_quantizer"), on("*bmm2_output_quantizer"))


def test_attention_quantized_whole_is_no_problem() -> None:
    """Blocks with all that the recipe asks for, on and run, break no rule, nor do those beside attention."""
    beside = at("vision.layers.0.fc.q_bmm_quantizer", enabled=False)

    assert insertion.broken_attention((*WHOLE, beside), ASKS) == []


def test_attention_quantizer_that_is_not_there_is_told() -> None:
    """A quantizer that the recipe asks for and a block lacks is named, with the number of such blocks of all."""
    found = attention(BLOCKS[0], QKV) + attention(BLOCKS[1]) + attention(BLOCKS[2], QKV)
    problem = only(insertion.broken_attention(found, ASKS), "attention quantizer missing")

    assert numbers(problem.what) == [2, 3]
    assert problem.names == (f"{BLOCKS[0]}.bmm2_output_quantizer", f"{BLOCKS[2]}.bmm2_output_quantizer")
    assert re.search(r"--attention diffusers for bmm2_output.*or take the pattern out", problem.mend)


def test_attention_quantizers_that_are_off_are_told_by_block() -> None:
    """Quantizers that are asked for and off count by block, not by name; a part that is off is told as well."""
    names = (f"{BLOCKS[1]}.q_bmm_quantizer", f"{BLOCKS[1]}.k_bmm_quantizer")

    missing, part = insertion.broken_attention(without(WHOLE, *names), ASKS)

    assert (missing.rule, part.rule) == ("attention quantizer missing", "attention quantized in part")
    assert (numbers(missing.what), missing.names) == ([1, 3], names)
    assert (numbers(part.what), part.names) == ([1, 3], names)


def test_attention_quantizer_that_never_runs_is_told() -> None:
    """Enabled quantizers around attention without a call are counted and named; those that are off are missing."""
    idle = attention(BLOCKS[0], calls=0) + attention(BLOCKS[1])
    problem = only(insertion.broken_attention(idle, ASKS), "attention quantizer never runs")

    assert numbers(problem.what) == [4]
    assert problem.names == tuple(f"{BLOCKS[0]}.{kind}_quantizer" for kind in FUSED)
    assert 'attn_implementation="sdpa"' in problem.mend


def test_attention_quantizer_that_runs_twice_runs() -> None:
    """One call is enough, and two are not for this rule to tell."""
    assert insertion.broken_attention(attention(BLOCKS[0], calls=2), ASKS) == []


def test_attention_that_is_neither_there_nor_run_is_two_problems() -> None:
    """What is missing in one block and what is idle in another are told apart."""
    found = attention(BLOCKS[0], QKV) + attention(BLOCKS[1], calls=0)

    assert [(p.rule, numbers(p.what)) for p in insertion.broken_attention(found, ASKS)] == [
        ("attention quantizer missing", [1, 2]),
        ("attention quantizer never runs", [4]),
    ]


def test_declared_attention_is_not_asked() -> None:
    """Attention that the budgets file leaves out in one tower is not asked for there, and is in the other."""
    found = attention(BLOCKS[0], QKV, calls=0) + attention(BLOCKS[2], QKV)
    vision = [("vision", "attention")]

    problem = only(insertion.broken_attention(found, ASKS, vision), "attention quantizer missing")

    assert problem.names == (f"{BLOCKS[2]}.bmm2_output_quantizer",)
    assert insertion.broken_attention(found, ASKS, [*vision, ("text", "attention")]) == []
    assert len(insertion.broken_attention(found, ASKS, [("vision", "linear")])) == 2


@pytest.mark.parametrize(
    ("entries", "asked"),
    [
        ((on("*p_bmm_quantizer"), on("*softmax_quantizer")), ["p_bmm", "softmax"]),
        ((on("*attn*"),), ["q_bmm", "k_bmm", "v_bmm", "p_bmm", "softmax", "bmm2_output"]),
        ((on("*"),), []),
        ((on("*_quantizer"),), []),
        ((on("*q_bmm*"), off("*")), []),
        ((off("*"), on("*q_bmm*")), ["q_bmm"]),
        ((on("*q_bmm*"), off("text*")), ["q_bmm"]),
        ((on("*q_bmm*", "nn.Linear"),), []),
        ((on("*q_bmm*"), off("*", "nn.Linear")), ["q_bmm"]),
        ((on("*q_bmm*"), on("*")), []),
        ((on("*Q_bmm*"),), []),
        ((on("text*q_bmm*"),), []),
    ],
)
def test_attention_is_asked_for_by_the_last_entry_that_matches(entries: tuple[Entry, ...], asked: list[str]) -> None:
    """A kind is asked for if the last entry without a class that matches its place enables it and names attention."""
    assert insertion._asked_of_attention(recipe(*entries), BLOCKS[0]) == asked


def test_attention_is_asked_for_block_by_block() -> None:
    """What a recipe, or a format of a search, asks for in some blocks is missing in these only."""
    found = all_off(attention(BLOCKS[0])) + all_off(attention(BLOCKS[2]))
    entries = (on("text*q_bmm*"),)

    for asking in (recipe(*entries), searching(entries)):
        problem = only(insertion.broken_attention(found, asking), "attention quantizer missing")
        assert problem.names == (f"{BLOCKS[2]}.q_bmm_quantizer",)


def test_search_asks_for_the_attention_of_every_format() -> None:
    """A search asks for what any of its formats does, each judged alone, and is told what a search can hold."""
    search = searching((on("*v_bmm*"), off("*")), (on("*k_bmm*"),), (on("*q_bmm*"),))
    found = without(attention(BLOCKS[0]), *(q.name for q in attention(BLOCKS[0])))

    problem = only(insertion.broken_attention(found, search), "attention quantizer missing")

    assert problem.names == (f"{BLOCKS[0]}.q_bmm_quantizer", f"{BLOCKS[0]}.k_bmm_quantizer")
    assert "mtq.get_auto_quantize_config" in problem.mend


NOTHING = recipe(on("*weight_quantizer"))


def test_attention_in_part_names_what_is_off() -> None:
    """Of blocks with some of the four on, those off are named and the blocks counted; a block all off is none."""
    names = (f"{BLOCKS[0]}.q_bmm_quantizer", f"{BLOCKS[0]}.v_bmm_quantizer", f"{BLOCKS[2]}.bmm2_output_quantizer")
    found = without(WHOLE, *names, *(f"{BLOCKS[1]}.{kind}_quantizer" for kind in FUSED))
    problem = only(insertion.broken_attention(found, NOTHING), "attention quantized in part")

    assert numbers(problem.what) == [2, 2]
    assert problem.names == names
    assert re.search("enable these, or disable the others, or declare.*budgets file", problem.mend)


def test_only_the_four_around_the_product_belong_together() -> None:
    """The quantizers of probabilities may be off beside the four, and on beside none of them."""
    beside = ("p_bmm", "softmax")
    fused, rest = attention(BLOCKS[0]), attention(BLOCKS[0], beside)

    assert insertion.broken_attention(fused + all_off(rest), NOTHING) == []
    assert insertion.broken_attention(all_off(fused) + rest, NOTHING) == []


@pytest.mark.parametrize("kinds", [QKV, FUSED[:1], ("p_bmm",)])
def test_block_without_all_four_may_be_whole(kinds: tuple[str, ...]) -> None:
    """A block whose class has some of the four, or none, is whole with these on."""
    assert insertion.broken_attention(attention(BLOCKS[0], kinds), NOTHING) == []


def test_declared_attention_may_be_in_part() -> None:
    """Attention that the budgets file leaves out in a tower may be on in part there, and not in the other."""
    names = (f"{BLOCKS[0]}.q_bmm_quantizer", f"{BLOCKS[2]}.q_bmm_quantizer")
    found = without(WHOLE, *names)

    problem = only(insertion.broken_attention(found, NOTHING, [("vision", "attention")]), "attention quantized in part")

    assert (numbers(problem.what), problem.names) == ([1, 1], names[1:])


@pytest.mark.parametrize(
    ("entries", "chosen"),
    [
        ((off("*layers.0.*q_bmm_quantizer"),), True),
        ((off("*q_bmm*"),), True),
        ((on("*q_bmm*"),), False),
        ((off("*layers.0.*q_bmm_quantizer"), on("*q_bmm*")), False),
        ((on("*q_bmm*"), off("*layers.0.*q_bmm_quantizer")), True),
        ((off("*layers.1.*q_bmm_quantizer"),), False),
        ((off("*"),), False),
        ((off("*_quantizer"),), False),
        ((off("*quantizer"),), False),
        ((off("*_quantizer*"),), False),
        ((off("*layers.0.*Q_bmm_quantizer"),), False),
        ((), False),
    ],
)
def test_attention_off_in_a_layer_may_be_chosen(entries: tuple[Entry, ...], chosen: bool) -> None:
    """Off in one layer is a choice if the last entry that matches turns it off and does not mean everything."""
    name = f"{BLOCKS[0]}.q_bmm_quantizer"
    problems = insertion.broken_attention(without(WHOLE, name), replace(NOTHING, entries=entries))

    assert ("attention quantized in part" in {p.rule for p in problems}) is not chosen


def test_attention_off_in_a_whole_tower_is_no_choice() -> None:
    """A line that turns a kind off in all layers of a tower is told, the other tower's layers being no help."""
    names = (f"{BLOCKS[0]}.q_bmm_quantizer", f"{BLOCKS[1]}.q_bmm_quantizer")
    problems = insertion.broken_attention(without(WHOLE, *names), recipe(off("vision*q_bmm_quantizer")))

    assert only(problems, "attention quantized in part").names == names


def test_choice_in_a_format_of_a_search_counts() -> None:
    """What a format of a search turns off in a layer is chosen as well."""
    found = without(WHOLE, f"{BLOCKS[0]}.q_bmm_quantizer")

    assert insertion.broken_attention(found, searching((off("*layers.0.*q_bmm_quantizer"),))) == []


def test_peers_are_of_the_same_kind() -> None:
    """A kind that only one block has is chosen by no peer of another kind."""
    found = attention(BLOCKS[0], enabled=True) + attention(BLOCKS[1], QKV)
    name = f"{BLOCKS[0]}.bmm2_output_quantizer"
    problems = insertion.broken_attention(without(found, name), recipe(off("*bmm2_output_quantizer")))

    assert only(problems, "attention quantized in part").names == (name,)


# -- calls and ranges -----------------------------------------------------------------------------------------------


def called(*calls: int) -> QuantizerMap:
    """Quantizers with these calls, and one that is off and was never called, and one off that was called nine times."""
    live = tuple(at(f"vision.layers.{n}.fc.input_quantizer", calls=count) for n, count in enumerate(calls))
    rest = (at("text.a.input_quantizer", calls=0, enabled=False), at("text.b.input_quantizer", calls=9, enabled=False))
    return live + rest


def test_enabled_quantizer_without_a_call_never_runs() -> None:
    """Quantizers that are on and have no call are counted among those that are on, and named."""
    problem = only(insertion.never_run(called(1, 0, 2, 0, 1)), "never runs")

    assert numbers(problem.what) == [2, 5]
    assert problem.names == ("vision.layers.1.fc.input_quantizer", "vision.layers.3.fc.input_quantizer")
    assert "turn them off in the recipe" in problem.mend
    assert insertion.never_run(called(1, 2)) == []


@pytest.mark.parametrize(
    ("kinds", "fixes"),
    [
        (("softmax",), ["quantizer_name: '*softmax_quantizer', enable: false"]),
        (("p_bmm",), ["quantizer_name: '*p_bmm_quantizer', enable: false"]),
        (QKV, ['attn_implementation="sdpa"']),
        (("q_bmm", "softmax"), ["'*softmax_quantizer', enable: false", 'attn_implementation="sdpa"']),
    ],
)
def test_idle_attention_is_told_with_the_fix_that_works(kinds: tuple[str, ...], fixes: list[str]) -> None:
    """What scaled_dot_product_attention passes by is turned off; loading with sdpa helps only what it does reach."""
    idle = attention(BLOCKS[0], kinds, calls=0)
    asks = recipe(*(on(f"*{kind}_quantizer") for kind in kinds))
    told = [*insertion.never_run(idle), *insertion.broken_attention(idle, asks)]

    assert len(told) >= 2
    for problem in told[:2]:
        assert all(fix in problem.mend for fix in fixes), problem.mend
        assert ("sdpa" in problem.mend) == any("sdpa" in fix for fix in fixes)


def test_enabled_quantizer_with_two_calls_runs_twice() -> None:
    """Quantizers that are on and have more than one call are counted and named, with the most calls of any."""
    problem = only(insertion.run_twice(called(1, 0, 2, 3, 1)), "runs twice")

    assert numbers(problem.what) == [2, 3]
    assert problem.names == ("vision.layers.2.fc.input_quantizer", "vision.layers.3.fc.input_quantizer")
    assert "shared" in problem.mend
    assert insertion.run_twice(called(0, 1)) == []


def test_static_quantizer_needs_a_usable_range() -> None:
    """Without a range and with one that cannot be used are told apart; what is off or dynamic needs none."""
    found = (
        at("vision.a.input_quantizer", amax=None),
        at("text.a.input_quantizer", amax=None),
        at("vision.b.input_quantizer", amax=None),
        at("vision.c.input_quantizer", amax=amax(0.0)),
        at("vision.d.input_quantizer"),
        at("vision.e.input_quantizer", amax=None, dynamic=True),
        at("vision.f.input_quantizer", amax=amax(0.0), dynamic=True),
        at("other.g.input_quantizer", amax=None, enabled=False),
        at("other.h.input_quantizer", amax=amax(NAN), enabled=False),
    )
    without_any, unusable = insertion.uncalibrated(found)

    assert (without_any.rule, unusable.rule) == ("no amax", "unusable amax")
    assert numbers(without_any.what) == [3, 5]
    assert "(text, vision)" in without_any.what
    assert without_any.names == ("vision.a.input_quantizer", "text.a.input_quantizer", "vision.b.input_quantizer")
    assert "both towers" in without_any.mend
    assert numbers(unusable.what) == [1]
    assert unusable.names == ("vision.c.input_quantizer",)
    assert "calibration data" in unusable.mend
    assert insertion.uncalibrated(found[4:]) == []


def test_check_asks_every_rule() -> None:
    """The check of a map is all rules in their order, each with what it needs."""
    found = (
        at("vision.fc.weight_quantizer", amax=None),
        at("vision.fc.input_quantizer", calls=0),
        at("vision.fc.output_quantizer", calls=2),
        at("vision.patches.weight_quantizer", enabled=False, module_kind="patch_embedding"),
        *without(attention("vision.attn"), "vision.attn.q_bmm_quantizer"),
    )
    asked = recipe(on("*wrong"), on("*weight*"), off("*"))

    assert [p.rule for p in insertion.check(found, asked)] == [
        "pattern matches nothing",
        "pattern overridden",
        "kind of layer unquantized",
        "attention quantized in part",
        "never runs",
        "runs twice",
        "no amax",
    ]
    assert "no amax" not in {p.rule for p in insertion.check(found, asked, calibrated=False)}
    left = [("vision", "patch_embedding"), ("vision", "attention")]
    rules = {p.rule for p in insertion.check(found, asked, left_out=left)}
    assert not rules & {"kind of layer unquantized", "attention quantized in part"}


def test_check_tells_the_patterns_what_is_beside_the_model() -> None:
    """The check passes on hidden blocks, the other tower's quantizers and classes that the family lacks."""
    found = (at("vision.fc.weight_quantizer"),)
    asked = recipe(on("*weight_quantizer"), on("*q_bmm_quantizer"), on("*text_only"), on("*conv*", "nn.Conv2d"))

    problem = only(
        insertion.check(found, asked, hidden=HIDDEN, elsewhere=(at("text.text_only"),), absent=("nn.Conv2d",)),
        "pattern matches nothing",
    )

    assert "entry 2" in problem.what
    assert problem.mend == "vision.head and 1 more: it is packed."


# -- reading many names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "lines"),
    [
        ([], []),
        (["input_quantizer"], ["input_quantizer"]),
        (["input_quantizer", "weight_quantizer"], ["{input,weight}_quantizer"]),
        (["a.b.input_quantizer"], ["a.b.input_quantizer"]),
        (["a.layers.3.w_quantizer"], ["a.layers.3.w_quantizer"]),
        ([f"a.layers.{n}.w_quantizer" for n in (10, 2, 1, 9, 4)], ["a.layers.{1..2,4,9..10}.w_quantizer"]),
        (["a.layers.0.q_quantizer", "a.layers.1.k_quantizer"],
         ["a.layers.0.q_quantizer", "a.layers.1.k_quantizer"]),
        ([f"a.layers.{n}.{k}_quantizer" for n in (0, 1) for k in ("q_bmm", "k_bmm", "bmm2_output")],
         ["a.layers.{0..1}.{q,k}_bmm_quantizer bmm2_output_quantizer"]),
        ([f"a.layers.1.fc.weight_quantizer.{n}" for n in (0, 1)], ["a.layers.1.fc.weight_quantizer.{0,1}"]),
        (["a.w_quantizer", "b.w_quantizer"], ["a.w_quantizer", "b.w_quantizer"]),
        (["a.w_quantizer", "a.w_quantizer"], ["a.w_quantizer"]),
        (["a.w", "a.x"], ["a.{w,x}"]),
        (["a{0}#.1.{b}.w", "a{0}#.2.{b}.w"], ["a{0}#.{1..2}.{b}.w"]),
    ],
)  # fmt: skip
def test_names_are_folded(names: list[str], lines: list[str]) -> None:
    """Names that differ by the number of their layer or by their leaf make one line; others one each."""
    assert collapse(names) == lines


@pytest.mark.parametrize(
    ("stages", "lines"),
    [
        ([(2, 5)], ["v.stages.2.blocks.5.fc.w_quantizer"]),
        ([(0, 0), (0, 1), (1, 0), (1, 1)], ["v.stages.{0..1}.blocks.{0..1}.fc.w_quantizer"]),
        ([(0, 9), (0, 10), (1, 10), (1, 9)], ["v.stages.{0..1}.blocks.{9..10}.fc.w_quantizer"]),
        ([(10, 0), (9, 1)], ["v.stages.9.blocks.1.fc.w_quantizer", "v.stages.10.blocks.0.fc.w_quantizer"]),
        ([(2, 0), (2, 1), (3, 7)], ["v.stages.2.blocks.{0..1}.fc.w_quantizer", "v.stages.3.blocks.7.fc.w_quantizer"]),
    ],
)
def test_names_with_two_numbers_keep_both(stages: list[tuple[int, int]], lines: list[str]) -> None:
    """A name with two numbers, as of stages of blocks, is folded at each place, and no other name is told."""
    assert collapse([f"v.stages.{a}.blocks.{b}.fc.w_quantizer" for a, b in stages]) == lines


def test_many_groups_are_cut_with_their_number() -> None:
    """Up to the limit every group is told; of more the first and how many were left out."""
    names = [f"m{n}.w_quantizer" for n in range(14)]

    assert collapse(names[:12]) == names[:12]
    assert collapse(names[:13]) == [*names[:12], "... and 1 more groups"]
    assert collapse(names, 3) == [*names[:3], "... and 11 more groups"]


# -- the difference of two maps -------------------------------------------------------------------------------------

LAYERS = tuple(
    at(f"vision.layers.{n}.attn.{k}_proj.{i}_quantizer")
    for n in (0, 1, 2, 10)
    for k in "qkv"
    for i in ("input", "weight")
)


def changed(found: QuantizerMap, pattern: str, **facts: Any) -> QuantizerMap:
    """*found* with *facts* for the quantizers whose names *pattern* finds."""
    assert any(re.search(pattern, q.name) for q in found)
    return tuple(replace(q, **facts) if re.search(pattern, q.name) else q for q in found)


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({"enabled": False}, "off"),
        ({"enabled": False, "calls": 0, "dynamic": True}, "off"),
        ({}, "E4M3 per-tensor"),
        ({"dynamic": True}, "E4M3 per-tensor dynamic"),
        ({"calls": 0}, "E4M3 per-tensor called 0 times"),
        ({"calls": 2, "dynamic": True, "granularity": "block16"}, "E4M3 block16 dynamic called 2 times"),
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
        ("layers.1.attn.q_proj.input", {"enabled": False},
         ["1 quantizer changes: vision attn.q_proj input E4M3 per-tensor to off, layers 1"]),
        ("layers.(0|1|10).attn.q_proj.input", {"enabled": False},
         ["3 quantizers change: vision attn.q_proj input E4M3 per-tensor to off, layers 0..1,10"]),
        ("[qk]_proj", {"format": "INT8"},
         ["16 quantizers change: vision attn.{q,k}_proj {input,weight} E4M3 per-tensor to INT8 per-tensor, "
          "layers 0..2,10"]),
        ("q_proj|v_proj.weight", {"calls": 2},
         ["12 quantizers change: vision attn.q_proj {input,weight}, attn.v_proj weight "
          "E4M3 per-tensor to E4M3 per-tensor called 2 times, layers 0..2,10"]),
    ],
)  # fmt: skip
def test_places_that_change_alike_share_a_line(pattern: str, facts: dict[str, Any], lines: list[str]) -> None:
    """A line tells how many quantizers changed alike, where, from what to what, and in which layers."""
    assert maps.diff(LAYERS, changed(LAYERS, pattern, **facts)) == lines


def test_what_changes_otherwise_is_another_line() -> None:
    """Other layers, another tower and another change each have a line of their own."""
    before = (*LAYERS, at("text.layers.0.attn.q_proj.input_quantizer"), at("text.head.weight_quantizer"))
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
    """A quantizer of one map only is absent in the other; what has no module is named by its kind."""
    gone, come = at("vision.blocks.3.fc.input_quantizer"), at("input_quantizer", tower="vision", enabled=False)

    assert maps.diff((gone,), (come,), amax_tolerance=0.0) == [
        "1 quantizer changes: vision fc input E4M3 per-tensor to absent, layers 3",
        "1 quantizer changes: vision input absent to off",
    ]


def test_places_outside_the_layers_are_folded_by_path() -> None:
    """Modules outside the layers are told by their whole path, those of one module folded at their last name."""
    before = tuple(at(f"vision.pool.attn.{k}_proj.input_quantizer") for k in "qk")

    assert maps.diff(before, all_off(before)) == [
        "2 quantizers change: vision vision.pool.attn.{q,k}_proj input E4M3 per-tensor to off"
    ]


def test_layer_number_counts_only_where_there_is_one() -> None:
    """Quantizers inside and outside the layers that share a place are told with the layers of those that have one."""
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
    ids=["equal", "one bit", "not asked", "one bit allowed", "within", "high beyond", "low beyond", "both within",
         "another count", "far", "gone", "gone, none allowed", "gone, not asked"],
)  # fmt: skip
def test_ranges_differ_by_bits_or_beyond_a_tolerance(other: Amax | None, tolerance: float | None, change: str) -> None:
    """None leaves ranges out, 0 asks for equal bits, more for equal counts and extremes within that relative part."""
    before, after = at("vision.fc.input_quantizer", amax=RANGE), at("vision.fc.input_quantizer", amax=other)
    line = [f"1 quantizer changes: vision vision.fc input {change}"] if change else []

    assert maps.diff((before,), (after,), amax_tolerance=tolerance) == line


def test_range_that_comes_is_told() -> None:
    """A range that was not there is told, and none on either side is no change."""
    bare, ranged = at("vision.fc.input_quantizer", amax=None), at("vision.fc.input_quantizer")

    assert maps.diff((bare,), (ranged,), amax_tolerance=0.1) == [
        "1 quantizer changes: vision vision.fc input no amax to an amax"
    ]
    assert maps.diff((bare,), (bare,), amax_tolerance=0.0) == []


def test_range_of_what_is_off_is_not_compared() -> None:
    """The range of a quantizer that is off in both maps, or that changes otherwise, adds nothing."""
    before, after = at("vision.fc.input_quantizer"), at("vision.fc.input_quantizer", amax=amax(2.0, 2.0, "b"))

    assert maps.diff(all_off((before,)), all_off((after,)), amax_tolerance=0.0) == []
    assert maps.diff((before,), (replace(after, calls=2),), amax_tolerance=0.0) == [
        "1 quantizer changes: vision vision.fc input E4M3 per-tensor to E4M3 per-tensor called 2 times"
    ]


@pytest.mark.parametrize("values", [[], [math.nan], [math.nan, 1.0]], ids=["empty", "NaN", "NaN among others"])
def test_range_without_a_number_equals_itself(values: list[float]) -> None:
    """Equal bits are equal where they are no number, or none at all."""
    before, after = (at("vision.fc.input_quantizer", amax=Amax.of(torch.tensor(values))) for _ in range(2))

    assert maps.diff((before,), (after,), amax_tolerance=0.0) == []
    assert maps.diff((before,), (after,), amax_tolerance=0.1) == []
