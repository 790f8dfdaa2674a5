"""A reference that leads to no recipe is answered in a short line with what was probably meant."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.recipes import loading

RECIPE = "metadata: {recipe_type: ptq}\nquantize:\n  quant_cfg:\n  - {quantizer_name: '*', enable: false}\n"
MODULE = """
import threading
CFG = {"quant_cfg": {"*": {"enable": False}}, "algorithm": "max"}
NUMBER, LOCK, RING = 3, {"quant_cfg": {"*": {"num_bits": threading.Lock()}}}, {}
RING["quant_cfg"] = {"*": RING}
class Holder:
    @property
    def cfg(self): raise OSError("gone")
holder = Holder()
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with recipes, and with what is not one."""
    for name in ("mine.yaml", "some/a.yaml", "some/b.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(RECIPE)
    (tmp_path / "dangling.yaml").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "door_module.py").write_text(MODULE)
    (tmp_path / "door_raises.py").write_text("x = 1\n\nraise ValueError('boom')\n")
    (tmp_path / "door_exits.py").write_text("import sys\nsys.exit(3)\n")
    (tmp_path / "door_needs.py").write_text("import no_such_library_at_all\n")
    (tmp_path / "door_skips.py").write_text("import pytest\npytest.skip(allow_module_level=True)\n")
    (tmp_path / "door_broken.py").write_text("CFG = {\n")
    (tmp_path / "door_package").mkdir()
    (tmp_path / "door_package/__init__.py").write_text("")
    (tmp_path / "door_package/recipes.py").write_text("CFG = {}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("ref", "what", "fix"),
    [
        ("fp9", "names no recipe of this package", "Did you mean 'fp8'?"),
        ("FP8", "names no recipe of this package", "Did you mean 'fp8'?"),
        ("int8-smothquant", "names no recipe", "Did you mean 'int8-smoothquant'?"),
        ("huggingface/vit/ptq/fp9", "names no recipe", "Did you mean 'huggingface/vit/ptq/fp8'?"),
        ("zzzzzz", "names no recipe", "Give one of fp8, fp8-patch-embedding-fp16"),
        ("mtq.FP8_DEFAULT_CFG", "names no recipe", "modelopt.torch.quantization:FP8_DEFAULT_CFG"),
        ("fp8.yaml", "there is no such file", "Did you mean 'fp8'?"),
        ("./minn.yml", "there is no such file", "Did you mean './mine.yaml'?"),
        ("some/c.yaml", "there is no such file", "Correct the path."),
        ("no/such/x.yaml", "no/such is not a folder", "Correct the path."),
        ("some", "is a folder and not a recipe", "some/a.yaml, some/b.yaml"),
        ("huggingface/vit/ptq", "is a folder of", "huggingface/vit/ptq/fp8"),
        ("dangling.yaml", "is a link to nothing", "Correct the link"),
        ("pipe.yaml", "is not a regular file", "Give a YAML file."),
        ("int8,fp8", "names 2 recipes at once", "once for each: --recipe int8 --recipe fp8"),
        ("int8 fp8", "names 2 recipes at once", "once for each: --recipe int8 --recipe fp8"),
        ("a; b;c;d", "names 4 recipes at once", "--recipe a --recipe b --recipe c ..."),
        ("some/*.yaml", "is a pattern", "once for each file"),
        ("https://x.org/r.yaml", "is an address", "Download it"),
        ("door_module.py", "is a Python file", "door_module:quant_cfg"),
        ("door_module.py:CFG", "there is no module 'door_module.py'", "door_module:ATTRIBUTE"),
        ("some/x.py:CFG", "is neither a file nor module:ATTRIBUTE", "some.x:CFG"),
        ("door_modul:CFG", "there is no module 'door_modul'", "Did you mean 'door_module'?"),
        ("door_package.recipe:C", "no module 'door_package.recipe'", "'door_package.recipes'?"),
        ("door_package:recipes.C", "is a module of door_package", "door_package.recipes:"),
        ("door_module:CGF", "door_module has no attribute 'CGF'", "Did you mean 'CFG'?"),
        ("door_module:NUMBER", "is not a quant_cfg: it is of type int", "Name a dict"),
        ("door_module:LOCK", "holds what cannot be copied", "plain data"),
        ("door_module:RING", "holds itself", "plain data"),
        ("door_module:holder.cfg", "holder.cfg raises OSError: gone while", "door_module.py:8)"),
        ("door_raises:CFG", "raises ValueError: boom while it is imported", "door_raises.py:3)"),
        ("door_exits:CFG", "raises SystemExit: 3 while it is imported", "door_exits.py:2)"),
        ("door_needs:CFG", "No module named 'no_such_library_at_all'", "door_needs.py:1)"),
        ("door_skips:CFG", "raises Skipped", "door_skips.py:2)"),
        ("door_broken:CFG", "raises SyntaxError", "door_broken.py:1)"),
    ],
)
def test_what_a_reference_lacks_is_said_in_a_short_line(
    place: Path, ref: str, what: str, fix: str
) -> None:
    """Each way to lead nowhere has its own words, and the nearest thing that is there."""
    before = set(sys.modules)
    with pytest.raises(UsageError) as caught:
        loading.load(ref)
    for name in set(sys.modules) - before:
        if name.startswith("door_"):
            del sys.modules[name]

    assert str(caught.value.where) == f"--recipe {ref}"
    assert what in str(caught.value)
    assert fix in str(caught.value)
    assert len(str(caught.value).replace(str(place), "")) < 330


@pytest.mark.parametrize(
    ("source", "is_quick"),
    [
        ("import json, collections.abc\nCFG = {}", True),
        ("from pathlib import Path", True),
        ("CFG = {", True),
        ("def f():\n    import torch", False),
        ("from modelopt.torch import quantization", False),
        ("from . import other", False),
    ],
)
def test_a_module_is_imported_early_where_it_needs_no_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, is_quick: bool
) -> None:
    """What only Python's own library is needed for can be refused before torch is imported."""
    (tmp_path / "door_source.py").write_text(source)
    monkeypatch.chdir(tmp_path)

    assert loading.is_quick("door_source:CFG") == is_quick
