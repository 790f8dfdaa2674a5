"""Where the parts of this project are that are not modules of ``harness``.

In a checkout they are at its top.  In an installed gate they are parts of the package
(``setup.py``).
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent
#: Whether this is an installed gate, without a checkout around it.
INSTALLED = (_PACKAGE / "suites").is_dir()
#: What ``pytest --pyargs`` calls the suites of an installed gate.
SUITES_PACKAGE = "harness.suites"
#: The suites.
SUITES = _PACKAGE / "suites" if INSTALLED else _PACKAGE.parent / "tests"
#: Budgets, and baselines of the embedded model.
BASELINES = _PACKAGE / "baselines" / "stored" if INSTALLED else _PACKAGE.parent / "baselines"
BUDGETS = BASELINES / "budgets.yaml"
#: Where the documents are that runs write: nothing is written into an installed gate.
DOCS = Path() if INSTALLED else _PACKAGE.parent / "docs"
