"""Every family of model is read, driven and measured through the one table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import nn

from harness.checks import insertion, numerics
from harness.data import tasks
from harness.errors import UsageError
from harness.gate.case import Case
from harness.gate.options import Options
from harness.gate.session import Gate
from harness.models import architectures, families, references
from harness.models.families import INPUTS
from harness.problems import Problem
from harness.quantization import maps, quantize
from harness.recipes import loading, patterns, schema

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def embedded() -> references.Reference:
    """The embedded CLIP."""
    return references.load("embedded", CPU)


@pytest.fixture(scope="module", params=tiny.NAMES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint directory of each family but CLIP's own."""
    return tiny.write(request.param, tmp_path_factory.mktemp("tiny") / request.param)


def test_a_checkpoint_is_loaded_as_what_it_is(checkpoint: Path) -> None:
    """Directory, class and family agree, before the weights are read and after; every tower gives
    embeddings.
    """
    reference = references.load(str(checkpoint), CPU)
    family = families.of(reference.model)

    assert references.family_of(str(checkpoint)) == family.name
    assert reference.dtype is torch.float16
    with torch.no_grad():
        embeddings = families.forward(
            reference.model, families.sample_inputs(reference.model, batch=3)
        )
    assert set(embeddings) == set(family.towers)
    assert all(len(x) == 3 and x.isfinite().all() for x in embeddings.values())


def test_what_a_tower_needs_is_there_and_nothing_else(checkpoint: Path) -> None:
    """A checkpoint has the tokenizer where it reads words and the image processor where it sees
    pictures.
    """
    reference = references.load(str(checkpoint), CPU)
    towers = families.of(reference.model).towers

    assert (reference.tokenizer is not None) == ("text" in towers)
    assert (reference.image_processor is not None) == ("vision" in towers)


def test_a_recipe_may_name_the_attention_classes_of_every_family() -> None:
    """The names that a recipe's ``parent_class`` may have are those of the table of families, all
    and no others.
    """
    assert (
        tuple(sorted({name for f in families.FAMILIES for name in f.attention_classes}))
        == schema.ATTENTION_CLASSES
    )


def test_an_incomplete_checkpoint_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    """Without its configuration, or its weights, it is a usage error of one line."""
    for name in (
        "config.json",
        "open_clip_config.json",
        "model.safetensors",
        "open_clip_model.safetensors",
    ):
        if not (checkpoint / name).exists():
            continue
        folder = tmp_path / name
        folder.mkdir()
        for path in checkpoint.iterdir():
            if path.name != name:
                (folder / path.name).symlink_to(path)

        with pytest.raises(UsageError) as caught:
            references.load(str(folder), CPU)

        assert "\n" not in str(caught.value)


def test_every_quantizer_belongs_to_a_tower(checkpoint: Path) -> None:
    """The table's prefixes cover every module that ModelOpt has a place for, towers' kinds of layer
    included.
    """
    model = references.load(str(checkpoint), CPU).model
    quantizers = maps.quantizer_map(quantize.insert(model))

    kinds = {(q.tower, q.module_kind) for q in quantizers}
    assert {tower for tower, _ in kinds} == set(families.of(model).towers)
    for tower in families.of(model).towers:
        assert (tower, "linear") in kinds
    if "vision" in families.of(model).towers:
        assert ("vision", "patch_embedding") in kinds


@pytest.mark.parametrize(
    "name",
    ["SigLIP-B-16-224", "SigLIP2-B-16-naflex", "open_clip-EVA02-B-16", "open_clip-ViT-B-16-SigLIP"],
)
def test_attention_gets_its_four_quantizers_where_modelopt_can(name: str) -> None:
    """On the published architecture the four around attention are on in every block that the table
    does not hide.
    """
    model = architectures.build(name)
    family = families.of(model)
    blocks = {p for p, m in model.named_modules() if type(m).__name__ in family.attention_classes}
    quantizers = maps.quantizer_map(quantize.structure(model, loading.load("fp8")))

    assert blocks
    for kind in maps.FUSED_KINDS:
        on = {q.module for q in quantizers if q.kind == kind and q.enabled and q.calls == 1}
        assert on == blocks


def test_a_gate_of_every_family_holds(checkpoint: Path) -> None:
    """Insertion and numerics hold in every family where nothing is wrong."""
    case = case_on(checkpoint)

    assert inserted(case) == []
    assert case.observations
    assert [o for o in case.observations if o.mismatches or o.unsupported] == []
    assert numerics.folded_model_computes_the_same(case) == []


def test_a_planted_omission_is_caught_in_every_family(checkpoint: Path) -> None:
    """Of each tower: one Linear that lost its input quantizer is named, and so is the loss of all
    quantizers.
    """
    for tower in families.of(references.load(str(checkpoint), CPU).model).towers:
        for whole in (False, True):
            case = case_on(checkpoint)
            model = case.quantized.model
            mine = [
                (name, quantizer)
                for name, quantizer in maps.tensor_quantizers(model).items()
                if quantizer.is_enabled and families.tower_of(families.of(model), name) == tower
            ]
            lost = (
                mine
                if whole
                else [
                    own_quantizer
                    for own_quantizer in mine
                    if own_quantizer[0].endswith("input_quantizer")
                ][:1]
            )
            for _, quantizer in lost:
                quantizer.disable()

            problems = inserted(case)

            assert any(
                lost[0][0].rpartition(".")[0] in str(problem.names) for problem in problems
            ), (
                tower,
                whole,
            )
            assert any(f"whole {tower} tower" in problem.what for problem in problems) is whole


def case_on(checkpoint: Path) -> Case:
    """A case on *checkpoint* with the published recipe, or, where the family hides its attention,
    without attention.
    """
    recipe = "fp8-linear-only" if checkpoint.name == "open_clip" else "fp8"
    gate = Gate(Options(recipes=(recipe,), clip_models=(str(checkpoint),), calibration_size=64))
    (case,) = gate.cases()
    return case


def inserted(case: Case) -> list[Problem]:
    """What the insertion suite finds, the baseline aside."""
    return [
        *insertion.all_problems(case),
        *insertion.quantizers_are_what_the_recipe_says(case),
        *insertion.ranges_are_those_of_the_data(case),
        *insertion.nothing_but_quantizers_was_added(case),
    ]


# -- an embedding is an embedding ------------------------------------------------------------------


def test_patches_of_naflex_are_those_of_its_processor(tmp_path: Path) -> None:
    """A square picture is cut into the patches, in the order, that SigLIP 2's own processor
    cuts.
    """
    from PIL import Image
    from transformers import Siglip2ImageProcessor

    model = references.load(str(tiny.write("siglip2", tmp_path / "siglip2")), CPU).model
    pixels = torch.randint(0, 256, (32, 32, 3), generator=torch.Generator().manual_seed(1)).to(
        torch.uint8
    )
    processor = Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
    theirs = processor(Image.fromarray(pixels.numpy()), return_tensors="pt")

    values = (pixels.permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5
    ours: Any = families.of(model).towers["vision"].as_arguments
    tensors = ours(model, values)

    assert torch.allclose(tensors["pixel_values"], theirs["pixel_values"], atol=1e-6)
    assert theirs["pixel_attention_mask"].all()
    assert torch.equal(tensors["spatial_shapes"], torch.as_tensor(theirs["spatial_shapes"]))


@pytest.mark.parametrize("name", references.PARTS)
def test_a_part_computes_what_the_whole_does(embedded: references.Reference, name: str) -> None:
    """``embedded+CLASS`` gives the embeddings of the whole model, bit for bit, before or after the
    projection.
    """
    part = references.load(f"embedded+{name}", CPU)
    (tower,) = families.of(part.model).towers
    x = families.sample_inputs(embedded.model)[INPUTS[tower]]
    own = families.of(part.model).towers[tower]

    with torch.no_grad():
        embeddings = families.encode(part.model, tower, x)
        if own.completed_by:
            embeddings = getattr(embedded.model, own.completed_by)(embeddings)
        expected = families.encode(embedded.model, tower, x)

    assert torch.equal(embeddings, expected)
    assert part.name == f"embedded+{name}"
    assert part.revision != embedded.revision
    assert references.family_of(f"embedded+{name}") == families.of(part.model).name


def test_a_part_of_a_model_with_outliers_has_them(embedded: references.Reference) -> None:
    """Suffixes apply in order: the part is cut out of what stands before it."""
    plain, planted = (
        references.load(f"{base}+CLIPVisionModel", CPU).model
        for base in ("embedded", "embedded+outliers")
    )

    gains = [
        m.encoder.layers[0].layer_norm1.weight
        if hasattr(m, "encoder")
        else m.vision_model.encoder.layers[0].layer_norm1.weight
        for m in (plain, planted)
    ]
    assert (gains[1] / gains[0]).max() == 64


def test_a_part_of_what_is_no_clip_is_refused(tmp_path: Path) -> None:
    """Only a whole CLIP has parts of transformers' classes."""
    folder = tiny.write("siglip", tmp_path / "siglip")

    with pytest.raises(UsageError, match="has no part of class CLIPTextModel"):
        references.load(f"{folder}+CLIPTextModel", CPU)


@pytest.mark.parametrize("name", references.PARTS)
def test_a_part_answers_as_the_whole_does(embedded: references.Reference, name: str) -> None:
    """With the other tower of its checkpoint, a part gives every outcome that the whole model
    gives.
    """
    part = references.load(f"embedded+{name}", CPU)
    whole, own = (
        tasks.load_tasks(("emoji100",), None, ref)[0].subset(0, 128) for ref in (embedded, part)
    )

    expected = tasks.evaluate(embedded.model, whole)
    answered = tasks.evaluate(part.model, own)

    assert torch.equal(
        torch.from_numpy(answered.image_embeddings), torch.from_numpy(expected.image_embeddings)
    )
    assert torch.equal(
        torch.from_numpy(answered.text_embeddings), torch.from_numpy(expected.text_embeddings)
    )
    assert (answered.outcomes["acc1"].answers == expected.outcomes["acc1"].answers).all()


def test_a_completed_task_keeps_pictures_and_embeddings_together(
    embedded: references.Reference,
) -> None:
    """Parts and choices of a completed task carry the embeddings of their own pictures."""
    import numpy as np

    part = references.load("embedded+CLIPTextModel", CPU)
    (task,) = tasks.load_tasks(("emoji100",), None, part)
    chosen = np.array([5, 900, 17])
    assert task.completion is not None

    taken, cut = tasks.take(task, chosen), task.subset(100, 300).subset(50, 60)

    images = task.completion.embeddings["vision"]
    assert (tasks.image_embeddings(part.model, taken, 8) == images[chosen]).all()
    assert (tasks.image_embeddings(part.model, cut, 8) == images[150:160]).all()


# -- what cannot be quantized ----------------------------------------------------------------------


def test_hidden_blocks_are_told_with_their_reason(tmp_path: Path) -> None:
    """open_clip's attention and SigLIP's pooling head are listed as not covered, CLIP's nothing."""
    siglip, open_clip = (
        references.load(str(tiny.write(n, tmp_path / n)), CPU).model
        for n in ("siglip", "open_clip")
    )

    assert insertion.not_covered(references.load("embedded", CPU).model) == []
    (line,) = insertion.not_covered(siglip)
    assert line.startswith("vision vision_model.head.attention: the pooling head")
    assert [line.partition(":")[0] for line in insertion.not_covered(open_clip)] == [
        "vision visual.transformer.resblocks.{0..1}.attn",
        "text transformer.resblocks.{0..1}.attn",
    ]
    assert all(
        "python -m harness.models.openclip DIR OUT" in line
        for line in insertion.not_covered(open_clip)
    )


def test_attention_asked_for_in_vain_names_the_conversion(tmp_path: Path) -> None:
    """A recipe with attention quantizers fails on open_clip's attention, and the message says what helps."""
    model = references.load(str(tiny.write("open_clip", tmp_path / "open_clip")), CPU).model
    places, recipe = maps.quantizer_map(quantize.insert(model)), loading.load("fp8")

    problems = patterns.unmatched_patterns(places, recipe, families.hidden_in(model))

    assert [problem.rule for problem in problems] == ["pattern matches nothing"] * 2
    assert all(
        "visual.transformer.resblocks.0.attn and 3 more" in problem.fix for problem in problems
    )


def test_a_part_is_not_asked_for_the_other_tower(tmp_path: Path) -> None:
    """A pattern for the patch embedding matches nothing in a text tower and is right; a misspelt
    one is not.
    """
    recipe = tmp_path / "some.yaml"
    names = [
        "{quantizer_name: '*', enable: false}",
        "{quantizer_name: '*patch_embedding*', enable: false}",
        "{quantizer_name: '*fc7*', enable: false}",
    ]
    entries = "".join(f"    - {name}\n" for name in names)
    recipe.write_text(
        f"metadata: {{recipe_type: ptq}}\nquantize:\n  algorithm: max\n  quant_cfg:\n{entries}"
    )
    gate = Gate(
        Options(
            recipes=(str(recipe),), clip_models=("embedded+CLIPTextModel",), calibration_size=64
        )
    )

    (problem,) = insertion.every_pattern_matches(gate.cases()[0])

    assert "'*fc7*'" in problem.what


def test_an_unknown_family_is_told() -> None:
    """A model that no row describes is named with those that are."""
    with pytest.raises(TypeError, match="Linear is of no known family; known: CLIPModel"):
        families.of(nn.Linear(1, 1))
