"""Does a quantized model come back whole, in a process that never saw it?"""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.checks import checkpoint
from harness.gate.listing import CaseName
from harness.gate.quantized import Quantized
from harness.gate.session import Gate
from harness.pytest_plugin.judge import Judge

pytestmark = pytest.mark.checkpoint


@pytest.mark.parametrize("form", checkpoint.FORMS)
def test_restored_model_is_the_saved_one(
    gate: Gate,
    case: CaseName,
    quantized: Quantized,
    form: checkpoint.Form,
    tmp_path: Path,
    check: Judge,
) -> None:
    """Restored in a fresh process, the model has the same quantizer map and computes the same
    bits.
    """
    check.problems(checkpoint.restored_model_is_the_saved_one(gate[case], form, tmp_path))
