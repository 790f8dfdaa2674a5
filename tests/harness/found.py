"""Results for the tests of reports: measured by the gate itself, and made hostile."""

from __future__ import annotations

import copy
import functools
from typing import Any

#: Names that mean something to a terminal, to a runner of GitHub, to Markdown or to HTML.
HOSTILE = (
    '<script>window.pwned=1</script><img src=x onerror="window.pwned=1">',
    "\"' onmouseover=window.pwned=1 x='",
    "</title></style></script><h1>pwned</h1>",
    "::set-output name=x::pwned",
    "ok\n::set-output name=x::pwned",
    "ok\r\n##[set-env name=x]pwned",
    " ##[error]pwned",
    "\x1b[31mred\x1b[0m\x07\x00",
    "\u202egpj.exe\u200b",
    "| a | b |\n|---|---|\n# pwned",
    "`` ` ``` </details> ```\n# pwned",
    "[pwned](https://pwned.example/) ![x](https://pwned.example/x.png) <https://pwned.example/>",
    "https://pwned.example/ www.pwned.example @everyone #1",
    "**pwned** _pwned_ ~~pwned~~ &lt;b&gt; \\| \\",
    "{{ 7 * 7 }}{% raw %}${{ secrets.TOKEN }}",
    "\ud800 lone surrogate",
)


@functools.cache
def _measured() -> dict[str, Any]:
    from harness import compat  # noqa: F401
    from harness.data import tasks
    from harness.diagnosis import gallery, layers
    from harness.gate.options import Options
    from harness.gate.results import Results
    from harness.gate.session import Gate
    from harness.pytest_plugin import collector
    from harness.statistics import verdicts
    from harness.statistics.verdicts import Budget

    gate = Gate(Options(recipes=("fp8",), calibration_size=64))
    case = gate.cases()[0]
    assert case.map
    assert case.observations
    reference, quantized = case.reference, case.quantized
    results = Results()
    collector.collect(gate, results, collector.Notes())
    section = results.section(case.recipe_name, case.model_name, "accuracy")
    judged, changed = [], {}
    for task in case.tasks[:2]:
        part = task.subset(0, 192)
        before, after = (
            tasks.evaluate(model, part, batch_size=64).outcomes
            for model in (reference.model, quantized.folded)
        )
        for metric, outcomes in before.items():
            judged.append(verdicts.compare(outcomes, after[metric], Budget(points=2.5)))
            changed[f"{task.name}/{metric}"] = gallery.changed_answers(
                part, outcomes, after[metric]
            )
    family = verdicts.family(judged, recipe="fp8", model="embedded")
    section.update(
        decision=family.decision,
        headline=family.headline(),
        verdicts=[v.as_dict() for v in family.verdicts],
        beyond={
            f"{v.task}/{v.metric}": {"kl_mean": 0.0125, "kl_max": float("inf")}
            for v in family.verdicts
        },
        changed=changed,
    )
    whole: dict[str, Any] = results.as_dict()
    whole["environment"] = {
        "versions": {"torch": "2.13.0"},
        "device": "cpu",
        "date": "2026-11-23T07:00:00Z",
    }
    measured = whole["cases"][0]
    measured["layer_error"] = layers.layer_errors(
        reference.model, quantized.model, quantized.inputs
    )
    measured["drift"] = {"map": {"kind": "missing", "headline": "no baseline"}}
    measured["throughput"] = {
        "vision": {
            "reference_per_second": 120.0,
            "quantized_per_second": 40.0,
            "ratio": 1 / 3,
            "low": 0.32,
            "high": 0.34,
            "rounds": 16,
            "baseline_ratio": 0.5,
            "baseline_low": 0.48,
            "baseline_high": 0.52,
            "moved": "slower",
        }
    }
    measured["blame"] = {
        "groups": [
            {
                "name": "vision_model.encoder.layers.0.mlp linear",
                "off_points": 1.5,
                "alone_points": -0.25,
            }
        ],
        "patch": "- quantizer_name: '*layers.0.mlp*'\n  enable: false\n",
        "verified": True,
    }
    measured["checkpoint"] = {"pretrained": [], "mto": []}
    return whole


def measured() -> dict[str, Any]:
    """A run on fp8: map, numerics, layers and changed answers measured on the embedded model, 192
    pictures a task.
    """
    return copy.deepcopy(_measured())


def hostile(name: str) -> dict[str, Any]:
    """The same run with *name* for every name and text that does not come from the gate's own
    code.
    """
    results = measured()
    unchanged = {"tower", "image", "reference_image", "quantized_image", "decision"}

    def replaced(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: replaced(item, k) for k, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [replaced(item, key) for item in value]
        if key == "kind" and value in ("lost", "won", "changed"):
            return value
        if isinstance(value, str) and not hasattr(value, "value") and key not in unchanged:
            return f"- {name}" if key == "patch" else name
        return value

    wrong: dict[str, Any] = replaced(results)
    case = wrong["cases"][0]
    case["insertion"]["problems"] = [
        {"rule": name, "what": name, "names": [name, name], "fix": name}
    ]
    case["numerics"]["observations"][0].update(mismatches=3, first=name)
    case[name or "other"] = {name: [name]}
    case["drift"] = {name: {"kind": name, "headline": name}}
    case["throughput"] = {name: case["throughput"]["vision"]}
    case["accuracy"]["changed"] = {
        name: [entry for part in case["accuracy"]["changed"].values() for entry in part]
    }
    check = {"test": name, "suite": name, "outcome": "failed", "message": name}
    checks = {
        "counts": {"failed": 1, "passed": 2, "dependent": 1},
        "failed": [check],
        "depending": {name: 1},
    }
    case["checks"], wrong["checks"] = checks, checks
    case["not_gated"] = name
    case["accuracy"]["limits"] = [
        {"task": name, "metric": name, "name": name, "exceeded": True, "message": name}
    ]
    effect = {"recipe": name, "by_architecture": {name: [name]}, "beyond_map": [name]}
    selection = {"refused": {name: name}, "not_gated": {name: name}, "effects": [effect]}
    wrong["environment"] = {
        "versions": {name: name},
        "device": name,
        "date": name,
        "command": name,
        "selection": selection,
    }
    wrong["refused"] = name
    return wrong
