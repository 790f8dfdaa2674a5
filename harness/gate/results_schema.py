"""``results.json`` as types: what reports read, and what its published JSON Schema is made from.

Print the schema with ``python -m harness.gate.results_schema`` after a change here, into
``harness/report/templates/results.schema.json``.

A key that these types do not have is kept and ignored, as docs/results-schema.md asks of every
reader.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema
from typing_extensions import TypeAliasType

from harness.escaping import visible
from harness.gate.results import SCHEMA, Word

_NUMBER = {
    "description": "A number; what JSON has no number for is written in words.",
    "anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}],
}
_IMAGE = {"type": "string", "pattern": "^data:image/(png|jpeg|webp);base64,[A-Za-z0-9+/]+={0,2}$"}
_WORDS = {"enum": [word.value for word in Word]}

Count = Annotated[int, Field(ge=0)]
Number = TypeAliasType("Number", Annotated[float, WithJsonSchema(_NUMBER)])
Image = TypeAliasType("Image", Annotated[str, WithJsonSchema(_IMAGE)])
RunWord = TypeAliasType("RunWord", Annotated[str, WithJsonSchema(_WORDS)])
DecisionWord = Literal["PASS", "FAIL", "INCONCLUSIVE", "GAIN"]


class _Part(BaseModel):
    """A part of the file, never changed after it is read."""

    model_config = ConfigDict(extra="allow", frozen=True)


class _Whole(_Part):
    """A part of which a file has every key; a default is only for what reads an older one."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)


# -- how the tests ended ---------------------------------------------------------------------------


class FailedCheck(_Whole):
    """A test that fell short."""

    test: str = Field(description="pytest's id")
    suite: str = Field(default="", description="the marker, or empty")
    outcome: Literal["failed", "error", "gain", "inconclusive"]
    message: str = Field(default="", description="the first line of what it said")


class KnownFailureResult(_Whole):
    """A test that failed as a known failure lists it (outcome xfailed)."""

    test: str = Field(description="pytest's id")
    suite: str = Field(default="", description="the marker, or empty")
    message: str = Field(default="", description="the first line of what it said")
    reason: str = Field(
        description="why that is accepted, by whom, until when, and where it says so"
    )


class CheckCounts(_Whole):
    """How the tests ended."""

    counts: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default={},
        description="by outcome: passed, skipped, xfailed, inconclusive, gain, failed, error, "
        "dependent",
    )
    failed: list[FailedCheck] = []
    depending: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default={},
        description="by the id of a failed test: how many others were not run for the same cause",
    )
    known: list[KnownFailureResult] = []


# -- insertion and numerics ------------------------------------------------------------------------


class AmaxResult(_Part):
    """A calibrated range: how many values, their extremes."""

    count: Count
    low: Number
    high: Number
    digest: str = Field(description="SHA-256 of the fp32 values, 16 hex digits")
    empty: Count = Field(
        default=0, description="channels without a range; absent if there are none"
    )


class QuantizerResult(_Part):
    """One quantizer of the map."""

    name: str
    kind: str = Field(
        description="weight, input, output, q_bmm, k_bmm, v_bmm, p_bmm, bmm2_output, softmax; a "
        "chain's members end in .0, .1"
    )
    tower: str
    layer: Count | None
    module_class: str
    module_kind: str
    format: str
    granularity: str
    enabled: bool
    dynamic: bool
    calls: Count = Field(description="in one forward of every tower")
    amax: AmaxResult | None
    constant: bool = Field(
        default=False,
        description="whether the range is a constant of the format; absent if it is not",
    )


class ProblemResult(_Whole):
    """An invariant that does not hold."""

    rule: str
    what: str
    names: list[str] = []
    fix: str = ""
    place: str = Field(
        default="", description="where the recipe causes it, file:line:column; empty if unknown"
    )


class InsertionResult(_Part):
    """The quantizer map and what is wrong with it."""

    map: list[QuantizerResult] = []
    problems: list[ProblemResult] = []
    not_covered: list[str] = Field(
        default=[], description="what of the model no recipe can quantize, and why"
    )


class ObservationResult(_Whole):
    """One quantizer's arithmetic in one forward, against the definition of its format."""

    name: str
    elements: Count = 0
    mismatches: Count = Field(default=0, description="elements whose bits are not the definition's")
    first: str = ""
    saturation: Number = Field(default=0.0, description="fraction, 0 to 1")
    underflow: Number = Field(default=0.0, description="fraction, 0 to 1")
    unsupported: str = Field(default="", description="why it was not compared; empty if it was")


class NumericsResult(_Part):
    """Every enabled quantizer against the definition."""

    observations: list[ObservationResult] = []
    folded: list[ProblemResult] = Field(
        default=[], description="what the copy that accuracy is measured on computes otherwise"
    )


# -- accuracy --------------------------------------------------------------------------------------


class BudgetResult(_Part):
    """The allowed loss of one metric of one task."""

    points: Number = Field(description="allowed loss, percentage points")
    alpha: Number
    power: Number | None = None
    reason: str = ""
    expected_loss: Number | None = None
    discordance: Number | None = None
    design_effect: Number | None = None
    large_margin: Number | None = None
    limits: dict[str, Number | None] = Field(
        default={}, description="Limits beyond accuracy; null: measured, not limited."
    )
    place: str = ""
    share: Number | None = Field(
        default=None, description="Share of the reference's accuracy that must be kept."
    )
    most_gain: Number | None = None


class VerdictResult(_Part):
    """A decision about one metric of one task, after Holm's correction over the tasks."""

    task: str
    metric: str
    budget: BudgetResult
    n: Annotated[int, Field(ge=1)]
    clusters: Count
    design_effect: Number
    reference_accuracy: Number = Field(description="fraction, 0 to 1")
    quantized_accuracy: Number = Field(description="fraction, 0 to 1")
    difference: Number = Field(description="quantized minus reference, points")
    interval: Annotated[list[Number], Field(min_length=2, max_length=2)] = Field(
        description="two-sided 1 - 2 alpha, points"
    )
    lost: Count
    won: Count
    changed: Count
    lost_large: Count
    lost_borderline: Count
    large_margin: Number
    p_loss: Number
    p_change: Number
    p_noninferior: Number
    p_inferior: Number
    p_gain: Number = 1.0
    samples_needed: Count | None
    decision: DecisionWord
    lost_ids: list[str]
    won_ids: list[str]
    fraction_used: Number = Field(description="fraction, 0 to 1")
    note: str
    fix: str = Field(
        default="", description="what to do, where it is not what such a verdict says by itself"
    )
    block: Number = Field(
        default=1.0,
        description="samples that a cluster which is not among the data could lose at once",
    )


class LimitResult(_Whole):
    """A measure beyond accuracy and its limit."""

    task: str
    metric: str = Field(description="empty for embeddings")
    name: str
    value: Number | None = None
    limit: Number | None = None
    at_most: bool = Field(default=True, description="whether the limit is an upper one")
    exceeded: bool
    message: str


class ChangedAnswer(_Part):
    """A sample that the two models answer differently."""

    sample: str
    image: Image | None
    target: str
    reference: str = Field(description="what FP16 put first")
    quantized: str = Field(description="what the quantized model put first")
    reference_margin: Number = Field(description="logits")
    quantized_margin: Number = Field(description="logits")
    kind: Literal["lost", "won", "changed"]
    query: str | None = Field(default=None, description="the caption, where answers are pictures")
    reference_image: Image | None = None
    quantized_image: Image | None = None


class AccuracyResult(_Part):
    """The verdicts of the recipe's family of tasks."""

    model_config = ConfigDict(json_schema_extra={"required": ["decision", "headline", "verdicts"]})

    decision: DecisionWord
    headline: str = ""
    verdicts: list[VerdictResult] = []
    beyond: dict[str, dict[str, Number | None]] = Field(
        default={}, description="by task/metric, then by measure"
    )
    limits: list[LimitResult] = Field(default=[], description="every measure that has a limit")
    changed: dict[str, list[ChangedAnswer]] = Field(
        default={}, description="by task/metric, worst first"
    )


class ErrorMap(_Part):
    """A picture whose patches moved most, with the relative error of each patch, row by row."""

    item: str
    image: Image
    side: Count = Field(description="patches of a row")
    errors: list[Number]


class ConsumersResult(_Part):
    """What the consumers of the towers read, token by token."""

    decision: RunWord = ""
    headline: str = ""
    verdicts: list[VerdictResult] = Field(default=[], description="one per consumer and probe")
    beyond: dict[str, dict[str, Number | None]] = Field(
        default={}, description="by consumer/read, then by measure"
    )
    limits: list[LimitResult] = Field(default=[], description="every measure that has a limit")
    maps: dict[str, list[ErrorMap]] = Field(
        default={}, description="by consumer/read, worst first; in a run with a report"
    )


class DriftResult(_Part):
    """How the measurement compares with the baseline."""

    kind: str
    headline: str


# -- what a case costs, and what is at fault -------------------------------------------------------


class QuantizeResult(_Part):
    """Quantizing and calibrating."""

    seconds: Number | None = None
    calibration_size: Count | None = None


class SpeedResult(_Part):
    """Samples a second of one tower."""

    reference_per_second: Number | None = None
    quantized_per_second: Number | None = None
    ratio: Number | None = Field(
        default=None,
        description="how many times faster than the reference: the median of rounds in turn",
    )
    low: Number | None = Field(default=None, description="of the ratio's interval")
    high: Number | None = None
    rounds: Count = 0
    baseline_ratio: Number | None = None
    baseline_low: Number | None = None
    baseline_high: Number | None = None
    moved: str = Field(
        default="",
        description="slower or faster where the two intervals have nothing in common, else empty; "
        "it fails nothing",
    )


class MemoryResult(_Whole):
    """Bytes before and after mtq.compress."""

    before: dict[str, int] = {}
    after: dict[str, int] = {}
    parameters: int = 0
    scales: int = 0
    quantized: dict[str, int] = Field(
        default={},
        description="numbers, the bytes that they take, and the bytes that they should take",
    )
    problems: list[ProblemResult]


class LayerError(_Part):
    """Error of one encoder layer's output."""

    module: str
    tower: str
    layer: Count | None
    sqnr_db: Number = Field(description="Infinity where nothing differs")
    cosine: Number


class HarmResult(_Part):
    """A group of quantizers and the harm that it does."""

    name: str
    tower: str = ""
    off_points: Number = Field(description="points won back with the group off")
    alone_points: Number = Field(description="points lost with the group alone on")
    off_margin: Number | None = None
    alone_margin: Number | None = None


class SuggestionResult(_Part):
    """The patch as the change of one line of the recipe's file."""

    file: str = Field(description="from the root of its repository")
    line: Count
    text: str = Field(description="what stands for the line; the line itself comes first")


class BlameResult(_Part):
    """Groups of quantizers, worst first, and the patch that wins the budget back."""

    task: str = ""
    metric: str = ""
    groups: list[HarmResult]
    culprits: list[str] = []
    patch: str = Field(description="YAML entries to append to quant_cfg")
    verified: bool
    seconds: Number | None = None
    note: str = ""
    place: str = Field(
        default="", description="file:line:column of the entry that is about most of the culprits"
    )
    suggestion: SuggestionResult | None = None


class GainResult(_Part):
    """What fine-tuning won back on one metric."""

    task: str
    metric: str
    reference: Number
    before: Number
    after: Number
    lost: Count
    won: Count
    p: Number = Field(description="of no gain")


class TuningResult(_Part):
    """What fine-tuning won back."""

    seconds: Annotated[Number, Field(ge=0)] | None = None
    losses: list[Number] = []
    gains: list[GainResult] = []


# -- export ----------------------------------------------------------------------------------------


class ParityResult(_Part):
    """How far a graph's rows are from fake quantization's."""

    holds: bool
    error: Number
    bound: Number


class AnswersResult(_Part):
    """A task answered by the graphs and by fake quantization."""

    task: str
    metric: str
    n: Count
    drop: Number = Field(description="points")
    changed: Count
    differing: list[str] = Field(description="samples whose answers no rounding explains")
    towers: dict[str, ParityResult]


class ExportResult(_Part):
    """The ONNX graphs."""

    no_form: str | None = Field(default=None, description="why there are none, else null")
    runtime: str = "it"
    problems: dict[str, list[ProblemResult]] = Field(default={}, description="by tower/dtype")
    parity: dict[str, ParityResult] = Field(default={}, description="by tower")
    optimized: dict[str, ParityResult] = Field(default={}, description="by tower")
    answers: AnswersResult | None = None
    published: str | list[str] = Field(
        default="", description="what is wrong in ModelOpt's own export, or why there is none"
    )


# -- the run ---------------------------------------------------------------------------------------


class EffectResult(_Part):
    """What a pull request does to the quantizer map of one recipe."""

    recipe: str = ""
    by_architecture: dict[str, list[str]] = {}
    beyond_map: list[str] = []


class ChangeTableResult(_Part):
    """What a pull request does to every architecture that its recipes are for."""

    recipes: list[list[str]] = Field(
        default=[], description="of each column, on which the change does the same"
    )
    counts: dict[str, list[int | None]] = Field(
        default={},
        description="by architecture, quantizers that change, one number per column; null: the "
        "recipes are not for it",
    )
    differences: list[str] = Field(
        default=[], description="lines of the map differences, with the architectures"
    )
    brought: list[str] = Field(default=[], description="faults of shape that the change brings")
    fixed: list[str] = []
    there: list[str] = Field(default=[], description="faults of before, and declared ones")
    not_judged: dict[str, str] = {}


class SelectionResult(_Part):
    """What the pull request reaches (--changed-since): gated recipes, reasons by recipe or file,
    effects on the quantizer map.
    """

    compared: str = ""
    gated: list[str] = []
    refused: dict[str, str] = {}
    not_gated: dict[str, str] = {}
    undecided: dict[str, str] = {}
    left_out: dict[str, str] = {}
    unused: dict[str, str] = {}
    effects: list[EffectResult] = []
    architectures: ChangeTableResult = ChangeTableResult()
    faults: dict[str, str] = Field(
        default={}, description="recipes to which the change brings faults of shape"
    )
    affected: list[dict[str, Any]] = []


class ExpectedResult(_Part):
    """A difference between releases that was expected, and met."""

    count: Count
    reason: str


class EnvironmentResult(_Part):
    """What the run ran on."""

    versions: dict[str, str | None] = {}
    device: str = ""
    date: str = Field(default="", description="UTC, ISO 8601")
    attention: str = ""
    command: str = ""
    selection: SelectionResult = SelectionResult()
    expected_differences: dict[str, ExpectedResult] = {}


class CaseResult(_Part):
    """One recipe on one model; a section that the run did not touch is absent."""

    model_config = ConfigDict(
        json_schema_extra={"required": ["recipe", "model", "decision", "headline"]}
    )

    recipe: str
    model: str
    decision: RunWord = Field(
        default="", description="the worst word of everything that was judged of the case"
    )
    headline: str = ""
    not_gated: str = Field(default="", description="why the case has no verdict on this device")
    checks: CheckCounts = CheckCounts()
    quantize: QuantizeResult | None = None
    insertion: InsertionResult | None = None
    numerics: NumericsResult | None = None
    accuracy: AccuracyResult | None = None
    consumers: ConsumersResult | None = None
    drift: dict[str, DriftResult] = Field(default={}, description="by task/metric, and map")
    throughput: dict[str, SpeedResult] = Field(default={}, description="by tower")
    memory: MemoryResult | None = None
    layer_error: list[LayerError] = Field(default=[], description="in module order")
    blame: BlameResult | None = None
    checkpoint: dict[str, list[str]] = Field(
        default={},
        description="by form of checkpoint: what differs after restoring; an empty list is none",
    )
    qat: TuningResult | None = None
    export: ExportResult | None = None

    @model_validator(mode="before")
    @classmethod
    def _sections(cls, sections: Mapping[str, Any]) -> dict[str, Any]:
        """What has something in it, under names that any text may be."""
        return {visible(name): section for name, section in sections.items() if section != {}}


class RunResult(_Part):
    """The whole file."""

    model_config = ConfigDict(
        title="results.json of the quantized CLIP gate",
        json_schema_extra={
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "description": f"Version {SCHEMA}. Described in docs/results-schema.md.",
            "required": ["schema", "decision", "headline", "environment", "cases"],
        },
    )

    schema_: int = Field(default=SCHEMA, alias="schema", json_schema_extra={"const": SCHEMA})
    decision: RunWord = Field(
        default="",
        description="the worst word of everything that the run judged; the exit code follows it",
    )
    headline: str = ""
    environment: EnvironmentResult
    cases: list[CaseResult]
    checks: CheckCounts = Field(
        default=CheckCounts(),
        description="of no case: the arithmetic of formats, orphans, references",
    )
    refused: str = Field(default="", description="the line of the usage error that ended the run")
    interrupted: str = Field(default="", description="why the run did not come to its end")


# -- the published schema --------------------------------------------------------------------------


class _Published(GenerateJsonSchema):
    """A schema without the titles and defaults that only Python needs."""

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        """The schema of the value; what a reader assumes of an absent key is not part of it."""
        return self.generate_inner(schema["schema"])

    def field_title_should_be_set(self, schema: object) -> bool:
        """Never: the key says it."""
        return False


def schema_text() -> str:
    """The JSON Schema of ``results.json``, as it is published."""
    schema = RunResult.model_json_schema(mode="serialization", schema_generator=_Published)
    return json.dumps(schema, indent=1) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
