"""A catalogue of faults: each plants one defect, known from real bugs, for as long as a ``with``
block lasts.

``harness.tools.proof`` runs the gate on each and records what catches it.  A fault changes the
thing itself (ModelOpt's functions, a recipe's file, the batches of the calibration, the bytes of a
checkpoint or of a baseline) and never the gate's own decisions.
"""

from harness.tools.faults.catalogue import CATALOGUE, Fault, FaultSite, Where

# Importing a module of faults fills the catalogue, in the order of the data's way through the gate.
from harness.tools.faults import arithmetic, recipe, modelopt, consumers  # isort: skip
from harness.tools.faults import ranges, data, records, export  # isort: skip

__all__ = [
    "CATALOGUE",
    "Fault",
    "FaultSite",
    "Where",
    "arithmetic",
    "consumers",
    "data",
    "export",
    "modelopt",
    "ranges",
    "recipe",
    "records",
]
