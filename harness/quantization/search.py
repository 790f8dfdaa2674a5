"""Recipes that search: ``mtq.auto_quantize`` on CLIP, and the recipe that its choice amounts to.

ModelOpt tries every candidate format on every layer, scores what each does to the loss and spends
the allowed bits where they matter.  The loss here is CLIP's own over the calibration pairs.  What
the search settles on is read back from the model and stated as a ptq recipe, one entry per
quantizer, so that the suites judge it like one that a person wrote.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from harness.models import families
from harness.models.halves import half_products
from harness.problems import Problem
from harness.quantization.contrastive import differentiable_attention, matched, similarities
from harness.quantization.maps import original_class
from harness.recipes import applied
from harness.recipes.loading import SEARCHED, Entry, Recipe

Batch = Mapping[str, Tensor]
#: What the loss of an FP16 model is multiplied with, so that its gradients stay above FP16's
#: smallest number.  Scores grow by the square, all alike, and the choice does not change.
LOSS_SCALE = 1024.0


def run(model: nn.Module, recipe: Recipe, batches: Iterable[Batch]) -> nn.Module:
    """*model* with the formats that ModelOpt's search finds for *recipe*, quantized in place.

    Args:
        model: with a tower for pictures and one for words, its attention registered.
        recipe: of kind auto_quantize.
        batches: of the calibration; all calibrate each format, and the first ``score_size`` pairs
            score it.

    Raises:
        ValueError: the model has one tower only, so that there is no loss to score by.
    """
    import modelopt.torch.quantization as mtq

    if set(families.of(model).towers) != {"vision", "text"}:
        raise ValueError("a search scores formats by CLIP's loss, which takes both towers")
    arguments = copy.deepcopy(recipe.quant_cfg)
    pairs = [len(next(iter(batch.values()))) for batch in batches]
    wanted, steps = arguments.pop("score_size"), 0
    while steps < len(pairs) and sum(pairs[:steps]) < wanted:
        steps += 1
    temperature = float(model.logit_scale.detach().exp())  # type: ignore[operator]
    scale = LOSS_SCALE if next(model.parameters()).dtype is torch.float16 else 1.0

    def logits(quantized: nn.Module, batch: Batch) -> Tensor:
        with half_products():
            embeddings = families.forward(quantized, batch)
        return similarities(
            {tower: features.float() for tower, features in embeddings.items()}, temperature
        )

    def loss(embeddings: Tensor, _: Batch) -> Tensor:
        return matched(embeddings) * scale

    with differentiable_attention(), contextlib.redirect_stderr(io.StringIO()):
        result, _ = mtq.auto_quantize(
            model,
            data_loader=batches,
            forward_step=logits,
            loss_func=loss,
            num_calib_steps=len(pairs),
            num_score_steps=steps,
            **arguments,
        )
    embeddings: nn.Module = result
    return embeddings


def chosen(model: nn.Module, recipe: Recipe) -> Recipe:
    """Return the recipe that *model* was quantized with: *recipe* itself, or for a search the ptq
    recipe of the formats that it chose.

    Each format is applied to a layer by itself, as ModelOpt does it: patterns see
    ``weight_quantizer``, no path. Entries for what is not a layer (the quantizers around attention)
    apply in a fixed baseline only.

    Args:
        model: as :func:`harness.quantization.quantize.quantize` made it from *recipe*.
        recipe: of either kind.
    """
    if recipe.kind != SEARCHED:
        return recipe
    fixed = _fixed(recipe)
    entries = list(fixed.entries) if fixed else [Entry("*", None, False, None, recipe.source)]
    entries += [
        Entry(p, None, False, None, recipe.source) for p in recipe.quant_cfg["disabled_layers"]
    ]
    for name, part in _decided(model, recipe):
        entries += _at_layer(model, name, part, recipe.source)
    listed = [
        {"quantizer_name": e.pattern, "enable": e.enable}
        | ({} if e.cfg is None else {"cfg": e.cfg})
        | ({} if e.parent_class is None else {"parent_class": e.parent_class})
        for e in entries
    ]
    cfg = {"quant_cfg": listed, "algorithm": recipe.algorithm or "max"}
    return dataclasses.replace(
        recipe, quant_cfg=cfg, entries=tuple(entries), kind="ptq", candidates=()
    )


def problems(model: nn.Module, recipe: Recipe) -> list[Problem]:
    """Layers for which the search chose, and billed, a format that quantizes no weight there.

    A format whose entries do not match a layer (``parent_class``, a path in a pattern) costs it
    nothing and counts as compression, so the search takes it first.
    """
    if recipe.kind != SEARCHED:
        return []
    empty = [
        name
        for name, part in _decided(model, recipe)
        if part is not None
        and not any(
            e.enable and "weight_quantizer" in e.pattern for e in _at_layer(model, name, part, "")
        )
    ]
    if not empty:
        return []
    what = (
        f"the search of recipe {recipe.name} chose for {len(empty)} layers a format that quantizes "
        f"no weight there:"
    )
    fix = (
        "It counts them as compressed and they stay as they are. Give the format entries that "
        "match these layers "
        "(formats apply layer by layer, so a pattern sees 'weight_quantizer' and no path), or "
        "exclude the layers: "
        "auto_quantize.disabled_layers."
    )
    return [Problem("format without effect", what, tuple(empty), fix)]


def _fixed(recipe: Recipe) -> Recipe | None:
    return (
        recipe.candidates[0] if recipe.quant_cfg["fixed_quantization_config"] is not None else None
    )


def _decided(model: nn.Module, recipe: Recipe) -> Iterator[tuple[str, Recipe | None]]:
    """Return (layer, the candidate that the search chose for it) in the model's order; None: left
    as it is.
    """
    from modelopt.torch.opt.utils import named_hparams
    from modelopt.torch.quantization.algorithms import QuantRecipe, QuantRecipeHparam

    known = {
        QuantRecipe(copy.deepcopy(part.quant_cfg), name=part.name).checkpoint_signature: part
        for part in recipe.candidates
    }
    for _, parameter in named_hparams(model, unique=True):
        if isinstance(parameter, QuantRecipeHparam) and not parameter.is_fixed:
            for name in parameter.quant_module_names:
                yield name, known.get(parameter.active.checkpoint_signature)


def _at_layer(model: nn.Module, name: str, part: Recipe | None, source: str) -> list[Entry]:
    """What *part* says of the quantizers of the layer *name*: an entry each, the last one of *part*
    that matches.
    """
    layer = model.get_submodule(name)
    entries = []
    for attribute in dict.fromkeys(
        n.partition(".")[0] for n, _ in layer.named_modules() if "quantizer" in n
    ):
        off, last = Entry(f"{name}.{attribute}", None, False, None, source), None
        cfg = None
        for entry in part.entries if part else ():
            if applied.speaks_of(entry, attribute, original_class(layer)):
                last, cfg = entry, entry.cfg if entry.cfg is not None else cfg
        entries.append(
            off if last is None else Entry(off.pattern, None, last.enable, cfg, last.origin)
        )
    return entries
