"""The shipped probes belong to the embedded model and know what they are asked."""

from __future__ import annotations

import pytest

from harness.consumers import probes, reading
from harness.models.references import Reference

#: Least share of right answers of the reference.
LEAST = {
    ("llava", probes.FOREGROUND): 0.9,
    ("llava", probes.COLOUR): 0.7,
    ("owlvit", probes.FOREGROUND): 0.6,
    ("owlvit", probes.COLOUR): 0.5,
    ("sd15", probes.FIRST_WORD): 0.4,
    ("sdxl", probes.FIRST_WORD): 0.4,
}


def test_the_reference_answers_far_better_than_guesses(reference: Reference) -> None:
    """Each probe was trained on other pictures or texts, and answers these; clusters are pictures
    and texts, and padding positions are asked too.
    """
    of = reading.material(reference, None, None)
    consumers = tuple(dict.fromkeys(consumer for consumer, _ in probes.PROBED))
    tokens = reading.read_all(reference.model, of, consumers, 64)

    asked = {
        (probe.consumer, probe.metric): probes.ask(probe, of, tokens[probe.consumer, probe.read])
        for probe in probes.of_model(reference.revision, consumers)
    }

    assert set(asked) == set(LEAST) == set(probes.QUESTIONS)
    for key, outcomes in asked.items():
        assert outcomes.accuracy >= LEAST[key], key
        assert len(set(outcomes.clusters.tolist())) <= 96
    assert asked["llava", probes.FOREGROUND].n == 96 * 36
    last = [name for name in asked["sd15", probes.FIRST_WORD].sample_ids if name.endswith("@23")]
    assert len(last) > 80


@pytest.mark.parametrize("revision", ["", "0" * 64])
def test_another_model_has_no_probes(revision: str) -> None:
    """A frozen probe reads the tokens of the one model that it was trained on."""
    assert probes.of_model(revision, ("llava", "sd15")) == []
