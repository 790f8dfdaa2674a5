"""Is what LLaVA, Stable Diffusion or OWL-ViT reads of the towers no worse, token by token?"""

from __future__ import annotations

import pytest

from harness.checks import consumers
from harness.checks.consumers import Question
from harness.consumers.reading import Reading
from harness.gate.listing import CaseName
from harness.gate.session import Gate
from harness.pytest_plugin.judge import Judge

pytestmark = pytest.mark.consumers


def test_tokens_stay_close(gate: Gate, case: CaseName, reading: Reading, check: Judge) -> None:
    """Cosine, error, similarity and norm of every token that a consumer reads stay within their
    limits.
    """
    check.problems(consumers.tokens_stay_close(gate[case], reading))


def test_probe_loss_is_within_budget(
    gate: Gate, case: CaseName, question: Question, check: Judge
) -> None:
    """Token by token against FP16, a frozen probe loses less than the budget at the declared
    confidence.
    """
    check.verdict(consumers.probe_loss_is_within_budget(gate[case], question))


def test_probe_equals_baseline(
    gate: Gate, case: CaseName, question: Question, check: Judge
) -> None:
    """The probe reads in the reference and in the quantized model what it read when the baseline
    was accepted.
    """
    check.drift(consumers.probe_equals_baseline(gate[case], question))
