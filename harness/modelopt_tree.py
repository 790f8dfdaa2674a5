"""Where the recipes of the installed ModelOpt are.

ModelOpt reads its own presets from the package ``modelopt_recipes``, which Python looks for like
any other.  A recipe tree under review has that name too: in the working folder, or at pytest's
root, it would be imported in its place, and its ``__init__.py`` would run.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from harness import files

NAME = "modelopt_recipes"


def installed() -> Path | None:
    """Return the tree that was installed together with ModelOpt, found without importing either;
    None without one.
    """
    spec = importlib.util.find_spec("modelopt")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(place).parent / NAME
        if files.is_file(path / "__init__.py"):
            return path
    return None


def pin() -> None:
    """Make ``import modelopt_recipes`` mean the installed tree, whatever of that name is found
    first on the path.
    """
    path = installed()
    if path is None or NAME in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        NAME, path / "__init__.py", submodule_search_locations=[str(path)]
    )
    assert spec is not None, "a file of Python"
    assert spec.loader is not None, "a file of Python"
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
