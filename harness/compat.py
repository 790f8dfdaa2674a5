"""The one place where an installed pair of packages is fixed before it is imported.

torchvision's wheels on the package registry are built for CUDA.  Next to a CPU build of torch their
C extension does not load, and ``import torchvision`` then stops at two fake-kernel registrations
for operators that the extension would have declared.  Declaring the two schemas is all that is
missing: nothing here runs the operators. Import this module before torchvision, transformers' image
processors or clip_benchmark; with a pair that fits it does nothing.  ModelOpt's own recipes are
pinned here as well (:mod:`harness.modelopt_tree`).
"""

from __future__ import annotations

import torch

from harness import modelopt_tree

_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
#: The definitions die with their library object, so it is kept here.
_keep: list[torch.library.Library] = []


def repair_torchvision() -> bool:
    """Declare torchvision's two unguarded operators where its extension cannot; True if anything
    was fixed.
    """
    import importlib.machinery
    import sys

    if "torchvision" in sys.modules or _keep or torch.version.cuda is not None:
        return False
    if importlib.machinery.PathFinder.find_spec("torchvision") is None:
        return False
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    else:
        return False
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name, schema in _SCHEMAS.items():
        library.define(name + schema)  # type: ignore[no-untyped-call]
    _keep.append(library)
    return True


repair_torchvision()
modelopt_tree.pin()
