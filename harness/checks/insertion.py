"""Quantizers are where the recipe says, and run with calibrated scales.

Each function returns what is wrong; nothing wrong is an empty list.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from harness.baselines import Comparison
from harness.checks import agreement, registry
from harness.evaluation import environment
from harness.files.located import spot
from harness.lint import rules
from harness.models import architectures, families, references
from harness.outlines import structures
from harness.problems import Problem, collapse
from harness.quantization import search
from harness.quantization.maps import ATTENTION_KINDS, FUSED_KINDS, Quantizer, QuantizerMap, kind_of
from harness.quantization.quantize import QuantizationError
from harness.recipes import applied
from harness.recipes.algorithms import methods
from harness.recipes.loading import Entry, Recipe
from harness.recipes.patterns import means_all, overridden_patterns, unmatched_patterns

if TYPE_CHECKING:
    from harness.gate.case import Case

#: What every tower must have quantized, unless the budgets file declares otherwise.
COVERED_KINDS = ("linear", "patch_embedding", "attention")


def check(
    quantizers: QuantizerMap,
    recipe: Recipe,
    *,
    left_out: Collection[tuple[str, str]] = (),
    calibrated: bool = True,
    hidden: Mapping[str, str] | None = None,
    elsewhere: QuantizerMap = (),
    absent: Collection[str] = (),
) -> list[Problem]:
    """All invariants of one map.

    Args:
        quantizers: the map.
        recipe: what was asked for.
        left_out: (tower, module kind) pairs that the budgets file declares to stay unquantized.
        calibrated: False for a model on the meta device, which can hold no amax.
        hidden: see :func:`unmatched_patterns`.
        elsewhere: see :func:`unmatched_patterns`.
        absent: see :func:`unmatched_patterns`.
    """
    problems = unmatched_patterns(quantizers, recipe, hidden, elsewhere, absent, _is_for_others)
    problems += overridden_patterns(quantizers, recipe, elsewhere)
    problems += uncovered(quantizers, left_out)
    problems += broken_attention(quantizers, recipe, left_out)
    problems += never_run(quantizers)
    problems += run_twice(quantizers)
    if calibrated:
        problems += uncalibrated(quantizers, recipe)
    return [_placed(problem, quantizers, recipe) for problem in problems]


def _placed(problem: Problem, quantizers: QuantizerMap, recipe: Recipe) -> Problem:
    """Return *problem* with the place of the entry that decides about most of its names."""
    if problem.place or not problem.names:
        return problem
    named = set(problem.names)
    # Layers are named by their modules, quantizers that are not there by a name of their own.
    names = [q.name for q in quantizers if q.module in named] or list(problem.names)
    return replace(problem, place=place_of_most(names, quantizers, recipe))


def place_of_most(names: Iterable[str], quantizers: QuantizerMap, recipe: Recipe) -> str:
    """Return ``file:line:column`` of the entry that is the last one about most of *names*, or an
    empty string.
    """
    entries = [entry for part in recipe.parts for entry in part.entries]
    classes = {q.module: q.module_class for q in quantizers}
    deciding_entries = (
        applied.last_about(entries, name, classes.get(name.rpartition(".")[0], ""))
        for name in names
    )
    deciding = Counter(index for index in deciding_entries if index is not None)
    return spot(entries[max(deciding, key=deciding.__getitem__)].position) if deciding else ""


def uncovered(quantizers: QuantizerMap, left_out: Iterable[tuple[str, str]] = ()) -> list[Problem]:
    """Towers, and kinds of layer in a tower, with no enabled quantizer although nobody declared it
    (S1).
    """
    declared = set(left_out)
    there: dict[str, dict[str, list[Quantizer]]] = defaultdict(lambda: defaultdict(list))
    for q in quantizers:
        if q.tower != "none" and q.module_kind in COVERED_KINDS:
            there[q.tower][q.module_kind].append(q)
    problems = []
    for tower, kinds in there.items():
        on = {kind for kind, group in kinds.items() if any(q.enabled for q in group)}
        missing = [
            k for k in COVERED_KINDS if k in kinds and k not in on and (tower, k) not in declared
        ]
        if not missing:
            continue
        total = sum(map(len, kinds.values()))
        whole = not on
        what = f"the whole {tower} tower is unquantized: 0 of {total} quantizers are enabled."
        if not whole:
            places = " or ".join(kind.replace("_", " ") for kind in missing)
            what = f"{tower} tower: no enabled quantizer at any {places}."
        names = tuple(sorted({q.module for kind in missing for q in kinds[kind]}))
        problems.append(
            Problem(
                "tower unquantized" if whole else "kind of layer unquantized",
                what,
                names,
                f"Enable them in the recipe, or declare in the budgets file that {tower} "
                f"{', '.join(missing)} stays as it is, with the reason.",
            )
        )
    return problems


def not_covered(model: nn.Module) -> list[str]:
    """Return the parts of *model* that no recipe can quantize, one line per tower and reason: which
    blocks, and why.
    """
    family = families.of(model)
    paths_by_reason: dict[tuple[str, str], list[str]] = defaultdict(list)
    for path, reason in families.hidden_in(model).items():
        paths_by_reason[families.tower_of(family, path), reason].append(path)
    return [
        f"{tower} {' '.join(collapse(paths))}: {reason}"
        for (tower, reason), paths in paths_by_reason.items()
    ]


def broken_attention(
    quantizers: QuantizerMap, recipe: Recipe, left_out: Iterable[tuple[str, str]] = ()
) -> list[Problem]:
    """Attention blocks quantized in part, or without every working quantizer the recipe asks for
    (S3, S4).
    """
    declared = set(left_out)
    blocks: dict[str, dict[str, Quantizer]] = defaultdict(dict)
    for q in quantizers:
        if q.module_kind == "attention":
            blocks[q.module][q.kind] = q
    missing: list[str] = []
    idle: list[str] = []
    for block, present in blocks.items():
        tower = next(iter(present.values())).tower
        if (tower, "attention") in declared:
            continue
        for kind in _asked_of_attention(recipe, block, next(iter(present.values())).module_class):
            quantizer = present.get(kind)
            if quantizer is None or not quantizer.enabled:
                missing.append(f"{block}.{kind}_quantizer")
            elif quantizer.calls == 0:
                idle.append(quantizer.name)
    problems = []
    if missing:
        affected = len({n.rpartition(".")[0] for n in missing})
        problems.append(
            Problem(
                "attention quantizer missing",
                f"{affected} of {len(blocks)} attention blocks lack quantizers that the recipe "
                f"asks for:",
                tuple(missing),
                _SEARCH_MEND
                if recipe.candidates
                else "Register the attention class that has them (--attention diffusers for "
                "bmm2_output), or take the pattern out of the recipe.",
            )
        )
    if idle:
        problems.append(
            Problem(
                "attention quantizer never runs",
                f"{len(idle)} attention quantizers are enabled and never ran in a forward of both "
                f"towers:",
                tuple(idle),
                _sentence(_idle_attention_fix(idle)),
            )
        )
    return problems + _attention_in_part(blocks, recipe, declared)


_SEARCH_MEND = (
    "mtq.auto_quantize decides on Linear and convolution layers only; all quantizers around "
    "attention end up off, "
    "whatever its formats say; a fixed baseline keeps q, k and v and loses the output. Take these "
    "entries out of the "
    "formats, or put them behind what mtq.get_auto_quantize_config returns and gate that as a ptq "
    "recipe."
)


def _attention_in_part(
    blocks: dict[str, dict[str, Quantizer]], recipe: Recipe, declared: set[tuple[str, str]]
) -> list[Problem]:
    """Return blocks where some of the quantizers around attention are on and others off, as if a
    line of the recipe were lost.

    A line of the recipe that names such quantizers and turns them off in some layers is a choice.
    Off in a whole tower is not one: flipping the entry that enabled them loses as much as deleting
    it.
    """
    off: list[str] = []
    among = 0
    for present in blocks.values():
        whole = [present[kind] for kind in FUSED_KINDS if kind in present]
        if not any(q.enabled for q in whole) or (whole[0].tower, "attention") in declared:
            continue
        among += 1
        for q in whole:
            peers = [
                b[q.kind] for b in blocks.values() if q.kind in b and b[q.kind].tower == q.tower
            ]
            chosen = _named_off(recipe, q) and any(peer.enabled for peer in peers)
            if not q.enabled and not chosen:
                off.append(q.name)
    if not off:
        return []
    affected = len({name.rpartition(".")[0] for name in off})
    return [
        Problem(
            "attention quantized in part",
            f"{affected} of {among} quantized attention blocks have some of their quantizers on "
            f"and these off:",
            tuple(off),
            "All around scaled_dot_product_attention are on, or none: enable these, or disable the "
            "others, or declare "
            "in the budgets file that attention stays as it is, with the reason.",
        )
    ]


def _named_off(recipe: Recipe, q: Quantizer) -> bool:
    """Whether the last entry that is about *q* turns it off by name, rather than together with
    everything else.
    """
    entries = [entry for part in recipe.parts for entry in part.entries]
    last = applied.last_about(entries, q.name, q.module_class)
    if last is None:
        return False
    return not entries[last].enable and not means_all(entries[last].pattern)


def _asked_of_attention(recipe: Recipe, block: str, module_class: str = "") -> list[str]:
    """Return the kinds of attention quantizer that the recipe's last matching entry enables,
    whether or not the model has them.

    Of a search those of every format: it has no other place to ask for them.
    """
    if recipe.candidates:
        asked_by = [_asked_of_attention(part, block, module_class) for part in recipe.candidates]
        return [kind for kind in ATTENTION_KINDS if any(kind in asked for asked in asked_by)]
    asked = []
    for kind in ATTENTION_KINDS:
        name, last = f"{block}.{kind}_quantizer", None
        for entry in recipe.entries:
            if applied.speaks_of(entry, name, module_class):
                last = entry
        # '*' or '*_quantizer' asks for what is there, not for a particular place in the attention.
        if (
            last is not None
            and last.enable
            and any(w in last.pattern for w in ("bmm", "softmax", "attn"))
        ):
            asked.append(kind)
    return asked


#: Quantizers of both attention classes that scaled_dot_product_attention passes by: it keeps the
#: probabilities inside.
UNREACHED_KINDS = ("softmax", "p_bmm")


def _idle_attention_fix(names: Iterable[str]) -> str:
    """The fix for quantizers around attention that never ran."""
    kinds = {kind_of(name).partition(".")[0] for name in names}
    if unreached := [kind for kind in UNREACHED_KINDS if kind in kinds]:
        patterns = " and ".join(
            f"{{quantizer_name: '*{kind}_quantizer', enable: false}}" for kind in unreached
        )
        fix = (
            f"scaled_dot_product_attention never hands out its probabilities: end the recipe with "
            f"{patterns}."
        )
        if set(unreached) == kinds:
            return fix
        return f"{fix} For the others: {_LOAD_WITH_SDPA}"
    return _LOAD_WITH_SDPA


_LOAD_WITH_SDPA = (
    'load the model with attn_implementation="sdpa", the only one that diffusers\' attention class '
    "intercepts."
)


def never_run(quantizers: QuantizerMap) -> list[Problem]:
    """Enabled quantizers that a forward of every tower never enters (S3, S6)."""
    names = tuple(q.name for q in quantizers if q.enabled and q.calls == 0)
    enabled = sum(q.enabled for q in quantizers)
    if not names:
        return []
    around = [q.name for q in quantizers if q.name in names and q.module_kind == "attention"]
    fix = "They are configured and compute nothing: turn them off in the recipe."
    if around:
        others = "" if len(around) == len(names) else " The rest: turn them off in the recipe."
        fix = f"{_sentence(_idle_attention_fix(around))}{others}"
    what = f"{len(names)} of {enabled} enabled quantizers never ran in a forward of both towers:"
    return [Problem("never runs", what, names, fix)]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] if not text.startswith("scaled_") else text


def run_twice(quantizers: QuantizerMap) -> list[Problem]:
    """Enabled quantizers that run more than once in one forward: a tensor is quantized twice, or a
    module shared.
    """
    names = tuple(q.name for q in quantizers if q.enabled and q.calls > 1)
    if not names:
        return []
    most = max(q.calls for q in quantizers if q.enabled)
    return [
        Problem(
            "runs twice",
            f"{len(names)} enabled quantizers ran up to {most} times in one forward, where once is "
            f"right:",
            names,
            "Two wrappers quantize the same tensor, or a module is shared between places with "
            "different ranges.",
        )
    ]


def uncalibrated(quantizers: QuantizerMap, recipe: Recipe | None = None) -> list[Problem]:
    """Enabled static quantizers whose amax is missing, not finite or not positive (S7).

    A range of zero is one where the part of the weight that it belongs to is all zeros, which stay
    zeros.

    Args:
        quantizers: the map.
        recipe: what was asked for, if it is known: a recipe may have ModelOpt calibrate nothing.
    """
    static = [q for q in quantizers if q.enabled and not q.dynamic]
    without = tuple(q.name for q in static if q.amax is None)
    unusable = [q for q in static if q.amax is not None and not q.amax.usable]
    problems = []
    if without:
        towers = sorted({q.tower for q in static if q.amax is None})
        fix = (
            "The calibration never reached them: its forward loop must feed pictures and words to "
            "both towers."
        )
        if all(q.calls == 0 for q in static if q.amax is None):
            around = all(q.module_kind == "attention" for q in static if q.amax is None)
            fix = "They never run, so no calibration reaches them: turn them off in the recipe."
            fix = _sentence(_idle_attention_fix(without)) if around else fix
        elif recipe is not None and not methods(recipe.algorithm):
            written = (
                f"is {recipe.algorithm!r}" if "algorithm" in recipe.quant_cfg else "is missing"
            )
            fix = (
                f"The recipe's algorithm {written}, so nothing was calibrated: write algorithm: "
                f"max."
            )
        problems.append(
            Problem(
                "no amax",
                f"{len(without)} of {len(static)} enabled static quantizers have no amax and run "
                f"dynamic "
                f"({', '.join(towers)}):",
                without,
                fix,
            )
        )
    if unusable:
        fix = "Look at what the calibration data gives these layers: all zero, inf or NaN."
        if all(q.kind.partition(".")[0] == "weight" for q in unusable):
            zeros = all(q.amax is not None and q.amax.empty == q.amax.count for q in unusable)
            fix = (
                "Look at these weights of the checkpoint: they hold inf or NaN, or are zero where "
                "their range is not."
            )
            if zeros:
                fix = (
                    "These weights are all zeros, so there is nothing to quantize: turn their "
                    "quantizers off."
                )
        problems.append(
            Problem(
                "unusable amax",
                f"{len(unusable)} enabled quantizers have an amax that is not finite and positive:",
                tuple(q.name for q in unusable),
                fix,
            )
        )
    return problems


# -- the checks of the suite -----------------------------------------------------------------------


@registry.check("insertion")
def every_pattern_matches(case: Case) -> list[Problem]:
    """Return the patterns of the recipe that name no quantizer of the model."""
    return unmatched_patterns(
        case.shared.places, case.recipe, **case.shared.beyond_places, others=_is_for_others
    )


def _is_for_others(recipe: Recipe, entry: Entry) -> bool:
    """Whether *entry* is for a family of model that is not one of CLIP's, as the lint finds it."""
    return rules.is_for_others(recipe, entry, rules.families_here())


@registry.check("insertion")
def no_pattern_is_overridden(case: Case) -> list[Problem]:
    """Return the entries without effect, because later ones set again all that they set."""
    return overridden_patterns(
        case.shared.places, case.recipe, case.shared.beyond_places["elsewhere"]
    )


@registry.check("insertion")
def every_tower_is_covered(case: Case) -> list[Problem]:
    """Return the towers, and kinds of layer in a tower, without an enabled quantizer or a declared
    reason.
    """
    return uncovered(case.map, case.left_out)


@registry.check("insertion")
def attention_has_its_quantizers(case: Case) -> list[Problem]:
    """Return the attention blocks without a quantizer that the recipe asks for, enabled and
    running.
    """
    return broken_attention(case.map, case.recipe, case.left_out)


@registry.check("insertion")
def every_enabled_quantizer_runs(case: Case) -> list[Problem]:
    """Return the enabled quantizers that a forward of every tower does not call."""
    return never_run(case.map)


@registry.check("insertion")
def no_quantizer_runs_twice(case: Case) -> list[Problem]:
    """Return the quantizers that one forward calls twice."""
    return run_twice(case.map)


@registry.check("insertion")
def every_static_quantizer_is_calibrated(case: Case) -> list[Problem]:
    """Return the enabled static quantizers without a finite, positive amax."""
    return uncalibrated(case.map, case.recipe)


@registry.check("insertion")
def quantizers_are_what_the_recipe_says(case: Case) -> list[Problem]:
    """Return the quantizers that are not what the last entry matching them says, and formats
    without effect.
    """
    quantized = case.quantized
    problems = agreement.with_recipe(quantized.model, quantized.recipe, case.map)
    return problems + search.problems(quantized.model, case.recipe)


@registry.check("insertion")
def ranges_are_those_of_the_data(case: Case) -> list[Problem]:
    """Return the ranges that the calibration data do not give: by bits on a CPU, nearly
    elsewhere.
    """
    tolerance = 0.0 if case.setting.device.type == "cpu" else 2.0**-7
    quantized = case.quantized
    return agreement.with_data(quantized.model, quantized.recipe, case.shared.magnitudes, tolerance)


@registry.check("insertion")
def nothing_but_quantizers_was_added(case: Case) -> list[Problem]:
    """Return the outputs that differ from the reference's although every quantizer is off."""
    quantized, reference = case.quantized, case.shared.model
    on_cpu = case.setting.device.type == "cpu"
    return agreement.with_reference(
        quantized.model, reference, quantized.recipe, quantized.inputs, deterministic=on_cpu
    )


@registry.check("insertion", recorded=True)
def map_equals_baseline(case: Case) -> Comparison:
    """Compare the quantizer map with the one that was measured and accepted."""
    return case.drift()


def _architectures(case: Case) -> list[str]:
    return list(architectures.of_family(references.family_of(case.name.model)))


@registry.check("insertion", architecture=_architectures)
def structure_of_published_architecture(case: Case, architecture: str) -> list[Problem]:
    """Return what is wrong with the recipe on a published architecture, without weights."""
    blank = structures.blank(architecture).model
    return check(
        case.structure(architecture),
        case.recipe,
        left_out=case.left_out,
        calibrated=False,
        hidden=families.hidden_in(blank),
        absent=families.of(blank).absent,
    )


@registry.check("insertion")
def rules_of_shape_hold(case: Case, architecture_name: str) -> list[Problem]:
    """Return what the rules of shape say about the recipe on an architecture of the table; what is
    declared of ModelOpt's own recipes is left out.

    Raises:
        NotJudged: ModelOpt searches the recipe's formats, or cannot build the architecture.
    """
    line = case.setting.shapes(case.name.recipe)
    unsupported = [
        cell.unsupported for cell in line.cells if cell.architecture == architecture_name
    ]
    reason = line.not_judged or "".join(unsupported)
    if reason:
        raise registry.NotJudged(f"{line.recipe} on {architecture_name}: {reason}")
    return [
        replace(fault.problem, what=f"{fault.architecture}: {fault.problem.what}")
        for fault in line.undeclared
        if fault.architecture == architecture_name
    ]


# -- for people ------------------------------------------------------------------------------------


def all_problems(case: Case) -> list[Problem]:
    """Return what all rules of the suite that need nothing but the map say about the case."""
    return check(case.map, case.recipe, left_out=case.left_out, **case.shared.beyond_places)


def explain(case: Case, error: QuantizationError) -> str:
    """Say why there is no quantized model, with what the recipe's entries say about it."""
    problems = overridden_patterns(case.shared.places, error.recipe)
    problems += unmatched_patterns(case.shared.places, error.recipe)
    headline = f"{error.headline} (ModelOpt {environment.versions()['nvidia-modelopt']})"
    return "\n\n".join([headline, *map(str, problems)])
