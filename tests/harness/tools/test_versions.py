"""Releases: what is expected to differ between them does, anything else is named, and the page says
what is so.
"""

from __future__ import annotations

import configparser
import dataclasses
import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.baselines import Missing, Record, Store, carried, differences, overlay
from harness.baselines.differences import Way
from harness.errors import UsageError
from harness.evaluation import environment
from harness.evaluation.environment import DeviceKey
from harness.formats import deviations
from harness.gate.options import Options
from harness.gate.results import Results
from harness.gate.session import Gate
from harness.models import architectures
from harness.pytest_plugin import collector
from harness.quantization import quantize
from harness.quantization.maps import QuantizerMap, quantizer_map
from harness.recipes import loading
from harness.recipes.names import folder_name
from harness.tools.versions import check, measurement, table
from harness.tools.versions.__main__ import main
from harness.tools.versions.measurement import ReleaseMeasurement

ROOT = Path(__file__).parents[3]
BASELINES = ROOT / "baselines"
RECORDS = differences.load(BASELINES)
MEASURED = {m.release: m for m in measurement.every(BASELINES)}
NEWEST = next(reversed(MEASURED.values()))
PAIRS = list(itertools.permutations(MEASURED, 2))

HEAD = 'package: nvidia-modelopt\nrelease: "0.48"\ndifferences:\n'
ENTRY = (
    "  - {kind: quantizers, name: x, quantizers: ['*'], before: absent, after: 'off', reason: r, "
    "evidence: e}\n"
)


def write(folder: Path, text: str, name: str = "0.48.yaml") -> Path:
    """A folder of baselines with one file of expected differences."""
    path = folder / differences.FOLDER / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return folder


def to(*releases: str, records: Any = RECORDS) -> Way:
    """The way from one release of ModelOpt to another."""
    before, after = ({"nvidia-modelopt": release} for release in releases)
    return differences.way(records, before, after)


# -- what is committed


@pytest.mark.parametrize(("base", "fresh"), PAIRS, ids=map("-to-".join, PAIRS))
def test_every_difference_between_measured_releases_is_expected(base: str, fresh: str) -> None:
    """From any measured release to any other, back or forward, the records explain all that differs
    and all are met.
    """
    checked = check.check(MEASURED[fresh], MEASURED[base], RECORDS)

    assert not checked.findings, "\n".join(checked.lines(RECORDS))
    assert checked.met


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: r.name)
def test_every_record_is_needed(record: differences.ExpectedDifference) -> None:
    """Without the record, the release before the one that it is of differs in what nobody
    expects.
    """
    earlier = [
        m
        for m in MEASURED.values()
        if differences.release(m.release) < differences.release(record.release)
    ]
    rest = [r for r in RECORDS if r is not record]

    assert check.check(earlier[-1], NEWEST, rest).findings


def test_a_release_that_tox_tries_is_measured() -> None:
    """Each environment modelopt-X of tox.ini has its measurement, and the newest is the pinned
    release; a release candidate is tried before it is measured.
    """
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    (section,) = [name for name in tox.sections() if name.startswith("testenv:modelopt-")]
    tried = dict(re.findall(r"^(\S+): nvidia-modelopt==(\S+)$", tox[section]["deps"], re.MULTILINE))
    pinned = re.search(r"nvidia-modelopt==(\S+)", (ROOT / ".ci" / "constraints.txt").read_text())

    assert pinned is not None
    assert pinned[1] == NEWEST.release
    assert {release for release in tried.values() if "rc" not in release} <= MEASURED.keys()
    assert {release.rpartition(".")[0] for release in tried.values()} == set(tried)
    assert all(f"{name}" in section for name in tried)


def test_the_page_is_written_from_what_was_measured() -> None:
    """docs/versions.md is what the command makes of the committed measurements and records."""
    assert (ROOT / "docs" / "versions.md").read_text() == table.render(
        list(MEASURED.values()), RECORDS
    )


@pytest.mark.parametrize(
    "fact",
    [
        "| quantizers inserted | 837 | 837 | 837 | **987** | **996** | 996 | 996 |",
        "| `FP8_DEFAULT_CFG` | 292 / 146 | 292 / 146 | 292 / 146 | **342 / 171** | **0 / 171** | 0 "
        "/ 171 | 0 / 171 |",
        "(published) | 388 / 194 | 388 / 194 | 388 / 194 | **0 / 0** | 0 / 0 | 0 / 0 | **refused "
        "(RuntimeError)** |",
    ],
)
def test_the_page_shows_the_known_changes(fact: str) -> None:
    """LayerNorm in 0.44, the presets' vision tower in 0.45, the published dict that ends in its
    default.
    """
    assert fact in (ROOT / "docs" / "versions.md").read_text()


@pytest.mark.parametrize("name", ["fp8", "FP8_DEFAULT_CFG", "DEFAULT_LAST"])
def test_the_installed_release_is_as_it_was_measured(name: str) -> None:
    """What this release makes of a recipe, a preset and the published dict is what its file
    says.
    """
    blanks = {"embedded": architectures.build("embedded")}
    recorded = measurement.find(NEWEST.release, BASELINES).subjects[name]
    if environment.versions()["nvidia-modelopt"] != NEWEST.release:
        pytest.skip(
            "another release is held against the newest measured one by python -m "
            "harness.tools.versions check"
        )

    measured = measurement.subject(measurement.references()[name], blanks)

    assert measured.outcome == recorded.outcome
    assert set(measured.maps.get("embedded", ())) == set(recorded.maps.get("embedded", ()))


# -- the way from release to release


def test_records_are_undone_newest_first_and_done_oldest_first(tmp_path: Path) -> None:
    """Back from 0.50 the newer record applies first, from after to before; forward the older, from
    before to after.
    """
    for number in (48, 50):
        write(
            tmp_path,
            HEAD.replace("48", str(number)) + ENTRY.replace("x", f"x{number}"),
            f"0.{number}.yaml",
        )
    records = differences.load(tmp_path)

    back, forward = to("0.50.1", "0.47", records=records), to("0.47", "0.50.0rc1", records=records)

    assert [(s.difference.name, s.was, s.now) for s in back.steps] == [
        ("x50", "off", "absent"),
        ("x48", "off", "absent"),
    ]
    assert [s.difference.name for s in forward.steps] == ["x48", "x50"]
    assert [s.difference.name for s in to("0.48", "0.49", records=records).steps] == []
    assert [s.difference.name for s in to("0.48.0", "0.47.3", records=records).steps] == ["x48"]


def test_packages_travel_apart(tmp_path: Path) -> None:
    """A record of transformers applies where transformers moved, whatever ModelOpt did; torch never
    does.
    """
    write(
        tmp_path,
        HEAD.replace("nvidia-modelopt", "transformers").replace("0.48", "5.0") + ENTRY,
        "transformers-5.yaml",
    )
    records = differences.load(tmp_path)
    here = {"nvidia-modelopt": "0.47.0", "transformers": "5.14.1", "torch": "2.13.0"}

    moved = differences.way(records, here | {"transformers": "4.57.6", "torch": "2.14.0"}, here)

    assert [s.record.name for s in moved.steps] == ["transformers 5.0 x"]
    assert str(moved) == "transformers 4.57.6 to 5.14.1"
    assert differences.way(records, here, here) == Way((), ())


# -- overlays


@pytest.fixture(scope="module")
def fp8() -> QuantizerMap:
    """The map of the FP8 recipe on the embedded architecture."""
    return quantizer_map(quantize.structure(architectures.build("embedded"), loading.load("fp8")))


def changed(quantizers: QuantizerMap, word: str, **attributes: Any) -> QuantizerMap:
    """The map with attributes of those quantizers changed whose name holds *word*."""
    return tuple(replace(q, **attributes) if word in q.name else q for q in quantizers)


def without(quantizers: QuantizerMap, module_class: str) -> QuantizerMap:
    """The map with no quantizer at modules of a class."""
    return tuple(q for q in quantizers if q.module_class != module_class)


def test_what_is_expected_is_met_and_counted(fp8: QuantizerMap) -> None:
    """Under 0.44 the map has no Embedding: the overlay takes the baseline's away, and says how
    many.
    """
    older = without(fp8, "Embedding")

    laid = overlay.apply(fp8, older, to("0.47", "0.44"), "fp8")

    assert laid.findings == ()
    assert laid.map == older
    assert laid.met == {"nvidia-modelopt 0.45 embedding": 9}


def test_a_difference_that_no_record_expects_is_named_with_its_record(
    fp8: QuantizerMap, tmp_path: Path
) -> None:
    """The finding names quantizers, what was expected and found; its draft, completed, expects
    it.
    """
    moved = changed(fp8, "q_bmm", format="E5M2")
    (finding,) = overlay.apply(fp8, moved, to("0.47", "0.48"), "fp8").findings

    assert str(finding).splitlines() == [
        "7 quantizers are not as expected:",
        "  7 CLIPAttention quantizers are E5M2 per-tensor, expected E4M3 per-tensor:",
        "    text_model.encoder.layers.{0..2}.self_attn.q_bmm_quantizer",
        "    vision_model.encoder.layers.{0..3}.self_attn.q_bmm_quantizer",
    ]
    records = differences.load(write(tmp_path, HEAD + finding.draft))
    assert records[0].difference.before == "E4M3 per-tensor"
    assert not overlay.apply(fp8, moved, to("0.47", "0.48", records=records), "fp8").findings


def test_a_draft_runs_from_the_older_release_to_the_newer(fp8: QuantizerMap) -> None:
    """Found under an older release than the baseline's, before is what was found, and after the
    baseline's.
    """
    (finding,) = overlay.apply(fp8, without(fp8, "LayerNorm"), to("0.47", "0.46"), "fp8").findings
    (draft,) = yaml.safe_load(finding.draft)

    assert (draft["before"], draft["after"], draft["module_class"]) == (
        "absent",
        "off",
        "LayerNorm",
    )
    assert "*.layers.*.layer_norm1.input_quantizer" in draft["quantizers"]


def test_a_record_that_meets_nothing_fails_by_name(fp8: QuantizerMap) -> None:
    """A map under 0.44 with Embedding quantizers all the same is reported under the record's name, with
    its place.
    """
    findings = overlay.apply(without(fp8, "Embedding"), fp8, to("0.47", "0.44"), "fp8").findings

    assert "the expected difference nvidia-modelopt 0.45 embedding meets nothing" in str(
        findings[0]
    )
    assert f"{BASELINES / 'versions' / '0.45.yaml'}:" in str(findings[0])


def test_a_record_of_another_subject_is_left_alone(fp8: QuantizerMap) -> None:
    """What presets lost is not expected of a recipe, and is not missed there."""
    lost = changed(fp8, "vision", enabled=False)

    applied = overlay.apply(lost, fp8, to("0.47", "0.44"), "fp8")

    assert not any("presets" in name for name in applied.met)
    assert "expected off" in str(applied.findings)


@pytest.mark.parametrize(
    ("word", "state", "holds"),
    [
        ("present", "off", True),
        ("present", "absent", False),
        ("on", "off", False),
        ("on", "INT8 per-tensor", True),
        ("off", "off", True),
        ("INT8 *", "INT8 per-channel(0) called 0 times", True),
        ("INT8 *", "off", False),
    ],
)
def test_states_are_words_or_globs(word: str, state: str, holds: bool) -> None:
    """``on`` and ``present`` stand for several states; anything else is a glob over the state's own
    words.
    """
    assert differences.matches(word, state) is holds


def test_an_outcome_is_followed_over_releases() -> None:
    """The published dict was taken, then taken without effect, then refused: each step is a record,
    met both ways.
    """
    last = "DEFAULT_LAST"
    taken, nothing, refused = (
        MEASURED[r].subjects[last].outcome for r in ("0.43.0", "0.46.1", "0.47.0")
    )

    met, findings = overlay.outcome(refused, taken, to("0.47", "0.43"), last)

    assert (list(met), findings) == (
        [
            "nvidia-modelopt 0.47 nothing-enabled-is-refused",
            "nvidia-modelopt 0.44 default-is-an-entry-like-others",
        ],
        [],
    )
    assert overlay.outcome(taken, nothing, to("0.43", "0.46"), last)[1] == []
    (finding,) = overlay.outcome(
        refused, "3 vision, 0 text quantizers on", to("0.47", "0.46"), last
    )[1]
    assert "expected 0 vision, 0 text quantizers on" in str(finding)


def test_a_deviation_is_expected_where_its_release_has_it() -> None:
    """Packed NVFP4 fails on a CPU before 0.45, and only there; fixed or otherwise broken, it is
    reported.
    """
    name, fails = (
        "nvfp4-packed-zeros",
        "fails: AssertionError: Torch not compiled with CUDA enabled",
    )

    assert overlay.deviation(name, fails, to("0.47", "0.44"), "cpu")[1] == []
    assert overlay.deviation(name, "as recorded", to("0.47", "0.44"), "cuda")[1] == []
    assert overlay.deviation(name, "as recorded", to("0.47", "0.46"), "cpu")[1] == []
    assert "expected as recorded" in str(
        overlay.deviation(name, fails, to("0.47", "0.46"), "cpu")[1]
    )
    assert "expected fails: *" in str(
        overlay.deviation(name, "as recorded", to("0.47", "0.44"), "cpu")[1]
    )


def test_a_deviation_that_is_gone_is_told_with_where_to_write_it() -> None:
    """A case that ModelOpt now treats as the definition does fails the numerics suite and says what
    to correct.
    """
    known = deviations.KNOWN[0]
    repaired = replace(
        known, reproduce=lambda: deviations.Evidence(*[known.reproduce().definition] * 3)
    )

    _, (same,) = carried.deviation(repaired, RECORDS, {"nvidia-modelopt": known.measured_on}, "cpu")
    _, (later,) = carried.deviation(repaired, RECORDS, {"nvidia-modelopt": "0.99.0"}, "cpu")

    assert "found as defined" in same
    assert "Correct or remove it in harness/formats/deviations.py." in same
    assert "after: as defined" in later
    assert "baselines/versions/0.99.yaml" in later
    assert carried.deviation(known, RECORDS, {"nvidia-modelopt": known.measured_on}, "cpu") == (
        {},
        [],
    )


# -- the baseline of another release


def stored() -> Record:
    """The committed record of the FP8 recipe."""
    record = Store(BASELINES).find("embedded", "fp8", DeviceKey("any-1", "x86_64-avx512"))
    assert not isinstance(record, Missing)
    return record


def under(record: Record, release: str, module_class: str) -> Record:
    """*record* as if another release had given it, without quantizers at modules of a class."""
    versions = record.provenance.versions | {"nvidia-modelopt": release}
    left = tuple(q for q in record.quantizers if q["module_class"] != module_class)
    return replace(
        record, provenance=replace(record.provenance, versions=versions), quantizers=left
    )


def test_a_record_is_carried_to_the_release_that_runs() -> None:
    """The carried record has this run's releases and the map expected of them; the stored one is as
    it was.
    """
    recorded = stored()
    older = under(recorded, "0.44.0", "Embedding")

    carried_record = carried.carry(recorded, older, RECORDS)

    assert carried_record.unexpected is None
    assert carried_record.record.provenance.versions["nvidia-modelopt"] == "0.44.0"
    assert carried_record.record.quantizers == older.quantizers
    assert recorded.provenance.versions["nvidia-modelopt"] == NEWEST.release


def test_a_record_of_another_model_is_not_carried() -> None:
    """Where anything but the releases differs, the record is left for the comparison to refuse."""
    recorded = stored()
    older = under(recorded, "0.44.0", "Embedding")
    foreign = replace(older, provenance=replace(older.provenance, model_revision="0" * 64))

    assert carried.carry(recorded, foreign, RECORDS).record is recorded
    assert carried.carry(recorded, recorded, RECORDS).record is recorded


def test_the_message_says_what_was_met_what_was_not_and_how_to_write_it() -> None:
    """An upgrade to a release that nobody knows yet: the unexpected difference, the file, the
    record, the rerun.
    """
    recorded = stored()
    carried_record = carried.carry(recorded, under(recorded, "0.48.0", "Embedding"), RECORDS)

    assert carried_record.unexpected is not None
    message = carried_record.unexpected.message(
        "tests/test_insertion.py::test_map_equals_baseline[fp8-embedded]"
    )
    for line in (
        "the quantizer map is not what is expected after nvidia-modelopt 0.47.0 to 0.48.0",
        "  9 Embedding quantizers are absent, expected off:",
        "the release after 0.47.0, up to 0.48.0, that brought it (such as "
        "baselines/versions/0.48.yaml):",
        "  module_class: Embedding",
        "  before: 'off'",
        "  after: absent",
        "rerun:  pytest 'tests/test_insertion.py::test_map_equals_baseline[fp8-embedded]'",
    ):
        assert line in message


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    """A gate whose store holds the FP8 record that 0.44 would have left, next to the committed
    records of releases.
    """
    folder = tmp_path_factory.mktemp("baselines")
    for path in (BASELINES / "versions").glob("*.yaml"):
        write(folder, path.read_text(), path.name)
    (folder / "budgets.yaml").write_text((BASELINES / "budgets.yaml").read_text())
    older_gate = Gate(
        Options(recipes=("fp8",), calibration_size=64, baselines=folder, device="cpu")
    )
    older_gate.store.write(
        under(older_gate.cases()[0].record(accuracy=False), "0.44.0", "Embedding"), "as of 0.44"
    )
    return older_gate


def test_the_gate_compares_the_map_with_a_baseline_of_another_release(gate: Gate) -> None:
    """The map holds against the older record, and the run's results say which expected difference
    it met.
    """
    (case,) = gate.cases()
    drift = case.drift()

    assert not isinstance(drift, Missing)
    assert not drift.failed, drift.message()
    results = Results()
    collector.collect(gate, results, collector.Notes())
    assert results.environment["expected_differences"] == {
        "nvidia-modelopt 0.45 embedding": {
            "count": 9,
            "reason": RECORDS_BY_NAME["embedding"].reason,
        }
    }


RECORDS_BY_NAME = {r.difference.name: r.difference for r in RECORDS}


def test_results_of_workers_join_their_expected_differences() -> None:
    """Each process of a run says what it met; the one that reports shows all."""
    first, other = Results(), Results()
    first.environment.update(device="cpu", expected_differences={"a": {"count": 1, "reason": "x"}})
    met = {"a": {"count": 3, "reason": "x"}, "b": {"count": 2, "reason": "y"}}
    other.environment.update(device="cpu", expected_differences=met)

    first.merge(other.as_dict())

    counts = {n: m["count"] for n, m in first.environment["expected_differences"].items()}
    assert counts == {"a": 4, "b": 2}


# -- files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            HEAD + ENTRY.replace("quantizers, name", "quantisers, name"),
            r"0\.48\.yaml:4 .*differences\[0\]",
        ),
        (
            HEAD + ENTRY.replace(", reason: r", ""),
            r"0\.48\.yaml:4 .*'reason' is missing.* reason and evidence",
        ),
        (
            HEAD + ENTRY.replace("before: absent", "befor: absent"),
            r"'before' is missing|no setting 'befor'",
        ),
        (HEAD + ENTRY.replace("['*']", "[]"), r"0\.48\.yaml:4 .*quantizers"),
        (HEAD + ENTRY + ENTRY, r"0\.48\.yaml:5 .*the name 'x' is taken"),
        (HEAD.replace("0.48", "newest") + ENTRY, r"0\.48\.yaml:2 .*a release is written as 0\.44"),
        (HEAD.replace("nvidia-modelopt", "torch") + ENTRY, r"0\.48\.yaml:1 \(package\)"),
        ("differences: [", r"0\.48\.yaml:1: is not YAML"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_its_line(
    tmp_path: Path, text: str, message: str
) -> None:
    """What is wrong in a file of expected differences is reported with file, line and place."""
    with pytest.raises(UsageError, match=message):
        differences.load(write(tmp_path, text))


def test_two_files_for_one_release_are_refused(tmp_path: Path) -> None:
    """A release's differences stand in one file, so that a reviewer sees all of them."""
    write(tmp_path, HEAD + ENTRY, "a.yaml")
    write(tmp_path, HEAD.replace("0.48", "0.48.0") + ENTRY.replace("x", "y"), "b.yaml")

    with pytest.raises(
        UsageError, match=r"b\.yaml: is a second file for nvidia-modelopt 0\.48\.0, after a\.yaml"
    ):
        differences.load(tmp_path)


def test_a_folder_of_baselines_without_records_expects_nothing(tmp_path: Path) -> None:
    """A store of one's own needs no such files."""
    assert differences.load(tmp_path) == ()


def test_the_folder_of_records_is_no_model(tmp_path: Path) -> None:
    """The store does not take it for an orphan, and refuses a model of its name."""
    assert Store(write(tmp_path, HEAD + ENTRY)).orphans([]) == ()
    with pytest.raises(
        UsageError, match="the baselines keep this name for what releases are expected to change"
    ):
        folder_name("versions", "model")


names = st.builds(
    "{}.{}layers.{}.{}.{}_quantizer{}".format,
    st.sampled_from(["vision_model", "text_model"]),
    st.sampled_from(["encoder.", ""]),
    st.integers(0, 40),
    st.sampled_from(["mlp.fc1", "mlp.fc2", "self_attn", "layer_norm1"]),
    st.sampled_from(["input", "weight", "q_bmm", "bmm2_output"]),
    st.sampled_from(["", ".0", ".1"]),
) | st.sampled_from(
    ["visual_projection.weight_quantizer", "text_projection.input_quantizer", "input_quantizer"]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(names, unique=True, max_size=60))
def test_folded_names_unfold_to_themselves(among: list[str]) -> None:
    """Whichever quantizers are alike, their names come back from the file, each once."""
    unfolded = [name for pattern in measurement.fold(among) for name in measurement.unfold(pattern)]

    assert sorted(unfolded) == sorted(among)


def test_a_measurement_comes_back_from_its_file(fp8: QuantizerMap, tmp_path: Path) -> None:
    """States, sequences, calls and block formats survive, and equal measurements give equal
    files.
    """
    odd = changed(
        changed(fp8, "k_bmm", calls=0, dynamic=True),
        "fc1.weight",
        format="E2M1/E4M3",
        granularity="block16",
    )
    written = ReleaseMeasurement(
        {"nvidia-modelopt": "0.48.0"},
        {
            "fp8": measurement.SubjectState(
                "x", {"embedded": tuple(map(measurement._essential, odd))}
            )
        },
        {"a": "as recorded"},
    )
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    measurement.write(written, paths[0])

    read = measurement.read(paths[0])
    measurement.write(read, paths[1])

    assert set(read.subjects["fp8"].maps["embedded"]) == set(
        written.subjects["fp8"].maps["embedded"]
    )
    assert dataclasses.replace(read, subjects={}) == dataclasses.replace(written, subjects={})
    assert paths[0].read_text() == paths[1].read_text()


# -- commands


def test_two_releases_are_compared_with_one_command(capsys: pytest.CaptureFixture[str]) -> None:
    """From 0.44 to 0.45 the preset's vision tower goes off, by place and layer; 1 says that
    something changes.
    """
    assert main(["diff", "0.44", "0.45", "--subject", "FP8_DEFAULT_CFG"]) == 1

    assert "336 quantizers change: vision mlp.{fc1,fc2} {input,weight}" in capsys.readouterr().out


def test_releases_that_make_the_same_of_a_recipe_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    """No difference is 0, and reported."""
    assert main(["diff", "0.45", "0.47", "--subject", "fp8"]) == 0

    assert capsys.readouterr().out == "0.45.0 and 0.47.0 make the same of CLIP\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["diff", "0.44", "0.99"],
            "0.99: is neither a measured release nor a file. Measured: 0.41.0",
        ),
        (["diff", "0.44", "README.md"], "README.md:1: is not JSON"),
        (["--baselines", "tests", "check"], "tests/versions: holds no measurement to compare with"),
    ],
)
def test_what_cannot_be_compared_is_a_usage_error(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One line with the fix, and exit code 4."""
    monkeypatch.chdir(ROOT)

    assert main(arguments) == 4
    assert message in capsys.readouterr().err
