"""The regression gate for quantized CLIP.  What is named here is public; the rest may move between
releases.

Nothing is imported before it is asked for::

    from harness import Gate, Options

    gate = Gate(Options(recipes=("fp8",)))
"""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.baselines import Drift as Drift
    from harness.baselines import Record as Record
    from harness.baselines import Store as Store
    from harness.errors import UsageError as UsageError
    from harness.gate.case import Case as Case
    from harness.gate.options import Options as Options
    from harness.gate.session import Gate as Gate
    from harness.models.references import Reference as Reference
    from harness.problems import Problem as Problem
    from harness.quantization.maps import Quantizer as Quantizer
    from harness.recipes.loading import Recipe as Recipe
    from harness.statistics.verdicts import Budget as Budget
    from harness.statistics.verdicts import Decision as Decision
    from harness.statistics.verdicts import Verdict as Verdict

#: The module of each public name.
_HOMES = {
    "Budget": "harness.statistics.verdicts",
    "Case": "harness.gate.case",
    "Decision": "harness.statistics.verdicts",
    "Drift": "harness.baselines",
    "Gate": "harness.gate.session",
    "Options": "harness.gate.options",
    "Problem": "harness.problems",
    "Quantizer": "harness.quantization.maps",
    "Recipe": "harness.recipes.loading",
    "Record": "harness.baselines",
    "Reference": "harness.models.references",
    "Store": "harness.baselines",
    "UsageError": "harness.errors",
    "Verdict": "harness.statistics.verdicts",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for first."""
    if name == "__version__":
        return metadata.version("quantized-clip-gate")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
