"""What was given can be used: recipes, models, data, budgets and baselines, looked at before
anything is computed.
"""

from __future__ import annotations

from collections.abc import Mapping

from harness import errors
from harness.baselines import Missing, Record, differences
from harness.consumers import contracts, reading
from harness.data import sample_counts, tasks
from harness.errors import UsageError
from harness.evaluation import early
from harness.gate import unresolved
from harness.gate.case import Case
from harness.gate.session import Gate
from harness.quantization import fit
from harness.recipes import finding
from harness.statistics import verdicts


def preflight(gate: Gate, *, accuracy: bool, decode: bool = False) -> None:
    """Look at all that was given before anything is computed.

    Args:
        gate: the run.
        accuracy: look at the tasks and their budgets as well.
        decode: decode the pictures that this process will need, and keep them: one that cannot be
            decoded is found before a model is quantized.

    Raises:
        UsageError: something cannot be used.
    """
    options, cases = gate.options, gate.cases()
    for case in cases:
        with errors.reading(f"--recipe {case.name.recipe}"):
            case.recipe  # noqa: B018 - loaded here, and kept
    with errors.reading(options.baselines):
        policy = gate.policy
        differences.load(options.baselines)
        known_recipes = [case.recipe.name for case in cases] + [*finding.DEFAULT, *finding.MORE]
        policy.check_names(known_recipes, (*tasks.EMBEDDED_TASKS, *contracts.CONTRACTS))
        if options.architectures:
            return  # no model is loaded, and nothing is compared
        # Records first: reading them costs nothing, and a damaged one makes the rest pointless.
        records = {case: case.stored for case in cases}
    for case in cases:
        with errors.reading(f"--clip-model {case.name.model}"):
            case.reference  # noqa: B018
        reading.check(case.shared.model, case.model_name, options.consumers)
    if accuracy:
        with errors.reading(f"--data-root {options.data_root}"):
            errors.raise_all(_budget_refusals(gate, records))
    for case in cases:
        _check_fit(case)
    for case in cases:
        with errors.reading(f"--calibration-data {options.calibration_data}"):
            case.calibration  # noqa: B018
        if accuracy and not case.shared.lacks(accuracy=True):
            with errors.reading(f"--data-root {options.data_root}"):
                case.tasks  # noqa: B018
    if accuracy:
        gate.evaluator.ready()
    if decode:
        _decode(gate, accuracy)


def _check_fit(case: Case) -> None:
    """Refuse a recipe that ModelOpt cannot apply to the tensors of the case's model, before it
    tries.
    """
    if case.not_gated() is not None:
        return
    survey = case.shared.survey
    fit.check(case.recipe, survey, case.setting.options.attention)
    fit.check_weights(case.recipe, survey, case.shared.model, case.name.model)


def _decode(gate: Gate, accuracy: bool) -> None:
    """Decode what every case will need; tasks only where this process takes each of them whole."""
    whole = accuracy and not gate.options.early_stop and gate.options.cluster is None
    for case in gate.cases():
        case.calibration.decode()
        for task in case.tasks if whole and not case.shared.lacks(accuracy=True) else ():
            task.decode()


def _budget_refusals(gate: Gate, records: Mapping[Case, Record | Missing]) -> list[UsageError]:
    """Every budget that its task's samples cannot resolve, or that an early stop cannot test, from
    the counts alone: no picture is read.
    """
    counts = sample_counts.of(gate.options.tasks, gate.options.data_root)
    refused: list[UsageError] = []
    unrecorded: dict[tuple[str, str], list[verdicts.Budget]] = {}
    for (task, metric), n in counts.items():
        stops = gate.options.early_stop and metric == tasks.ACC1 and early.is_long_enough(n)
        for case, record in records.items():
            if case.shared.lacks(accuracy=True):
                continue
            budget = case.budget(task, metric)
            try:
                if stops:
                    early.check_budget(task, budget)
            except UsageError as error:
                refused.append(error)
                continue
            if isinstance(record, Missing) or record.task(task, metric) is None:
                unrecorded.setdefault((task, metric), []).append(budget)
    return refused + unresolved.refusals(gate.policy, counts, unrecorded)
