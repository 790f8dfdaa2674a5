"""Turn what checks return into outcomes of tests, and what a run measured into the results that
reports show.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import pytest

from harness.checks.registry import NotJudged
from harness.pytest_plugin import private
from harness.pytest_plugin.run import parameters

if TYPE_CHECKING:
    from harness.diagnosis.blame import Blame
    from harness.diagnosis.qat import FineTuned
    from harness.gate.case import Case
    from harness.gate.graphs import Graphs
    from harness.gate.listing import CaseName
    from harness.gate.quantized import Quantized
    from harness.gate.results import Results
    from harness.gate.session import Gate


@dataclass
class Notes:
    """What the plugin keeps for the results, in addition to what the run's cases know themselves.

    Attributes:
        problems: what a check returned, by case and the check's name.
        checkpoints: what differs after restoring, by case and form of checkpoint.
        layer_errors: the error of every layer, measured while the model was in memory.
        blames: the quantizers at fault.
        tuned: fine-tuned models.
    """

    problems: dict[tuple[CaseName, str], list[object]] = field(default_factory=dict)
    checkpoints: dict[CaseName, dict[str, list[str]]] = field(default_factory=dict)
    layer_errors: dict[Case, list[dict[str, Any]]] = field(default_factory=dict)
    blames: dict[Case, Blame] = field(default_factory=dict)
    tuned: dict[Case, FineTuned] = field(default_factory=dict)


_NOTES = pytest.StashKey[Notes]()


def notes_of(config: pytest.Config) -> Notes:
    """The notes of a run."""
    return config.stash.setdefault(_NOTES, Notes())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Skip a test whose check has nothing to judge."""
    try:
        yield
    except NotJudged as reason:
        private.skip_at(item, str(reason))


def keep_problems(item: pytest.Item, problems: list[object]) -> None:
    """Keep the problems that the check of a test returned, if the test is about a case."""
    from harness.pytest_plugin.outcomes import case_of

    case = case_of(item)
    if case is None or not isinstance(item, pytest.Function):
        return
    notes = notes_of(item.config)
    notes.problems[case, item.originalname.removeprefix("test_")] = problems
    form = parameters(item).get("form")
    if form is not None:
        notes.checkpoints.setdefault(case, {})[form] = [str(problem) for problem in problems]


def quantized(case: Case, notes: Notes) -> Quantized:
    """The case's quantized model; for a report, the error of every layer is measured while it is in
    memory.
    """
    model = case.quantized
    if case.setting.options.report and case not in notes.layer_errors:
        from harness.diagnosis import layers

        notes.layer_errors[case] = layers.layer_errors(
            model.reference.model, model.model, model.inputs
        )
    return model


def tuned(case: Case, notes: Notes) -> FineTuned:
    """The case's model, fine-tuned."""
    from harness.diagnosis.qat import FineTuned

    notes.tuned[case] = FineTuned(case)
    return notes.tuned[case]


# -- results ---------------------------------------------------------------------------------------


def describe(gate: Gate, results: Results, words: Sequence[object]) -> None:
    """Add to the results what the run is bound to.

    Args:
        gate: the run.
        results: what is filled.
        words: the words of the command line behind ``pytest``.
    """
    from harness.evaluation import environment

    results.environment.update(
        command=shlex.join(["pytest", *map(str, words)]),
        versions=environment.versions(),
        device=str(gate.device_key),
        attention=gate.options.attention,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def collect(gate: Gate, results: Results, notes: Notes) -> None:
    """Add to the results what the run measured; nothing is measured for it."""
    own = [] if gate.options.architectures else gate.cases()
    for case in gate.touched():
        # A published architecture is a case too; it needs no device.
        reason = case.not_gated() if case in own else None
        if reason is not None:
            results.case(case.recipe_name, case.model_name)["not_gated"] = reason
        for name, section in sections_of(case, notes).items():
            if isinstance(section, dict):
                results.section(case.recipe_name, case.model_name, name).update(section)
            else:
                results.case(case.recipe_name, case.model_name)[name] = section
    met: Counter[str] = Counter()
    for counted in (*(case.expected_met for case in gate.touched()), *gate.deviations_met.values()):
        met.update(counted)
    if met:
        reasons = {
            record.name: " ".join(record.difference.reason.split()) for record in gate.expected
        }
        met_differences = {
            name: {"count": count, "reason": reasons[name]} for name, count in met.items()
        }
        results.environment["expected_differences"] = met_differences


def sections_of(case: Case, notes: Notes) -> dict[str, Any]:
    """The sections of a case's results, as far as there is anything to say."""
    from harness.gate.built import is_built

    sections: dict[str, Any] = {}
    if case.seconds is not None:
        sections["quantize"] = {
            "seconds": round(case.seconds, 3),
            "calibration_size": case.calibration.n,
        }
    if case in notes.layer_errors:
        sections["layer_error"] = notes.layer_errors[case]
    if is_built(case, "map"):
        sections["insertion"] = _insertion(case)
    if is_built(case, "verdicts"):
        sections["accuracy"] = _accuracy(case)
    if is_built(case, "read"):
        sections["consumers"] = _consumers(case)
    if is_built(case, "compression"):
        compression = case.compression
        sections["memory"] = compression.as_dict() | {"problems": _records(compression.problems())}
    if case in notes.blames:
        sections["blame"] = _blame(case, notes.blames[case])
    sections["checkpoint"] = notes.checkpoints.get(case.name)
    sections["numerics"] = _numerics(case, notes)
    sections["drift"] = _drift(case)
    sections["export"] = _export(case.graphs)
    sections["throughput"] = {tower: _speed(case, tower) for tower in case.speeds}
    if case in notes.tuned:
        sections["qat"] = _tuned(notes.tuned[case])
    return {name: section for name, section in sections.items() if section}


def _records(problems: Sequence[object]) -> list[dict[str, Any]]:
    return [
        asdict(problem)
        for problem in problems
        if is_dataclass(problem) and not isinstance(problem, type)
    ]


def _insertion(case: Case) -> dict[str, Any]:
    from harness.checks import insertion

    return {
        "map": [quantizer.as_dict() for quantizer in case.map],
        "not_covered": insertion.not_covered(case.shared.model),
        "problems": _records(insertion.all_problems(case)),
    }


def _blame(case: Case, blame: Blame) -> dict[str, Any]:
    """The quantizers at fault, with the line of the recipe that is about them, and the change."""
    from harness.checks import insertion
    from harness.diagnosis import suggestion
    from harness.report import annotated

    content = blame.as_dict()
    names = [name for group in blame.culprits for name in group.quantizers]
    content["place"] = insertion.place_of_most(names, case.map, case.recipe)
    change = None
    if blame.verified and not case.recipe.candidates:
        change = suggestion.of_patch(case.recipe.path, blame.patch)
    if change is None:
        content["suggestion"] = None
        return content
    where, line, _ = annotated.parts_of(change.place)
    content["suggestion"] = {
        "file": annotated.in_repository(where),
        "line": line,
        "text": change.text,
    }
    return content


def _numerics(case: Case, notes: Notes) -> dict[str, Any]:
    from harness.gate.built import is_built

    section: dict[str, Any] = {}
    if is_built(case, "observations"):
        section["observations"] = [observation.as_dict() for observation in case.observations]
    folded = notes.problems.get((case.name, "folded_model_computes_the_same"))
    if folded is not None:
        section["folded"] = _records(folded)
    if is_built(case, "packed_weights"):
        section["packed_weights"] = case.packed_weights[1]
    return section


def _accuracy(case: Case) -> dict[str, Any]:
    from harness.diagnosis import gallery

    family = case.verdicts
    limits = [measurement for task in case.runs[0] for measurement in case.measurements(task)]
    section: dict[str, Any] = {
        "decision": family.decision.value,
        "headline": family.headline(),
        "verdicts": [verdict.as_dict() for verdict in family.verdicts],
        "beyond": {f"{v.task}/{v.metric}": case.beyond(v.task, v.metric) for v in family.verdicts},
        "limits": [
            measurement.as_dict() for measurement in limits if measurement.limit is not None
        ],
    }
    if case.setting.options.report:
        section["changed"] = gallery.of_case(case)
    return section


def _consumers(case: Case) -> dict[str, Any]:
    """What the consumers read; a map of the errors for a report."""
    read, family = case.read, case.consumed if case.read.verdicts else None
    section: dict[str, Any] = {
        "decision": "" if family is None else family.decision.value,
        "headline": "" if family is None else family.headline(),
        "verdicts": [verdict.as_dict() for verdict in (family.verdicts if family else ())],
        "beyond": {
            f"{consumer}/{name}": {
                measurement.name: measurement.value for measurement in moved.measurements
            }
            for (consumer, name), moved in read.all_moved.items()
        },
        "limits": [
            measurement.as_dict()
            for moved in read.all_moved.values()
            for measurement in moved.measurements
            if measurement.limit is not None
        ],
    }
    if case.setting.options.report:
        maps = {
            f"{consumer}/{name}": read.maps((consumer, name)) for consumer, name in read.all_moved
        }
        section["maps"] = {where: of for where, of in maps.items() if of}
    return section


def _drift(case: Case) -> dict[str, Any]:
    return {
        "map" if task is None else f"{task}/{metric}": {
            "kind": compared.word,
            "headline": compared.headline,
        }
        for (task, metric), compared in case.comparisons.items()
    }


def _export(graphs: Graphs) -> dict[str, Any]:
    from harness import export
    from harness.gate.built import is_built

    section: dict[str, Any] = {}
    if is_built(graphs, "no_form"):
        section.update(no_form=graphs.no_form, runtime=export.RUNTIME)
    for (tower, dtype), problems in graphs.problems.items():
        section.setdefault("problems", {})[f"{tower}/{str(dtype).removeprefix('torch.')}"] = (
            _records(problems)
        )
    for (tower, optimized), parity in graphs.parities.items():
        section.setdefault("optimized" if optimized else "parity", {})[tower] = parity.as_dict()
    if is_built(graphs, "published"):
        published = graphs.published
        section["published"] = (
            published if isinstance(published, str) else [str(problem) for problem in published]
        )
    if graphs.engines:
        section["engine"] = {
            tower: measured.as_dict() for tower, measured in graphs.engines.items()
        }
    for answers in graphs.answers.values():
        section["answers"] = answers.as_dict()
    return section


def _speed(case: Case, tower: str) -> dict[str, Any]:
    """A quantized tower's speed next to its reference's, and where the ratio moved against the
    baseline.
    """
    from harness.statistics.speed import moved

    speed, stored = case.speeds[tower], case.stored_ratio(tower)
    if stored is None:
        return speed.as_dict() | {"baseline_ratio": None, "moved": ""}
    baseline: Mapping[str, Any] = {
        "baseline_ratio": stored.value,
        "baseline_low": stored.low,
        "baseline_high": stored.high,
        "moved": moved(stored, speed.ratio),
    }
    return speed.as_dict() | dict(baseline)


def _tuned(model: FineTuned) -> dict[str, Any]:
    from harness.gate.built import is_built

    section: dict[str, Any] = {"seconds": round(model.seconds, 1), "losses": list(model.losses)}
    if is_built(model, "gains"):
        section["gains"] = [asdict(gain) for gain in model.gains]
    return section
