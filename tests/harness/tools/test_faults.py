"""The catalogue holds real faults: each plants what it says, and leaves nothing behind."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from harness.checks import checkpoint
from harness.data import calibration, tasks
from harness.errors import UsageError
from harness.export import forms, graph
from harness.models import references
from harness.quantization import quantize
from harness.quantization.attention import diffusers_attention
from harness.recipes import finding, loading
from harness.tools.faults import CATALOGUE, FaultSite, Where
from harness.tools.faults.catalogue import add, after_quantizing, enabled, fault, replaced

Snapshot = Callable[[], list[Any]]


@pytest.fixture
def site(tmp_path: Path) -> FaultSite:
    """A place with a record and outcomes of two recipes in it, as the store lays them out."""
    for recipe in ("fp8", "int8"):
        folder = tmp_path / "baselines" / "embedded" / recipe
        folder.mkdir(parents=True)
        (folder / "record@x86_64@some.json").write_text(
            json.dumps({"tasks": {"a": {"correct": 7}}, "verdict": "PASS"})
        )
        (folder / "outcomes-0123.safetensors").write_bytes(b"0123456789")
    return FaultSite(tmp_path, tmp_path / "baselines", "fp8")


def test_there_are_enough_of_each_kind() -> None:
    """At least forty faults, three or more in each of ModelOpt, recipe, calibration, checkpoint,
    baseline, export.
    """
    kinds = Counter(f.where for f in CATALOGUE.values())

    assert len(CATALOGUE) >= 40
    for where in (
        Where.MODELOPT,
        Where.RECIPE,
        Where.CALIBRATION,
        Where.CHECKPOINT,
        Where.BASELINE,
        Where.EXPORT,
    ):
        assert kinds[where] >= 3, where


def test_each_says_what_it_plants_and_where_it_comes_from() -> None:
    """Name, origin and description are there, no two descriptions are equal, and recipes are
    default ones.
    """
    assert len({f.plants for f in CATALOGUE.values()}) == len(CATALOGUE)
    for entry in CATALOGUE.values():
        assert entry.name.strip(), entry
        assert entry.origin.strip(), entry
        assert entry.plants.strip(), entry
        assert entry.recipe in finding.DEFAULT, entry


def test_a_name_is_taken_once() -> None:
    """A second fault of one name, or one that does not say what it plants, is refused."""
    known = next(iter(CATALOGUE.values()))

    with pytest.raises(ValueError, match="twice"):
        add(known.name, known.where, "x", "y", known.plant)
    with pytest.raises(ValueError, match="does not say"):
        add("a new one", known.where, "x", "", known.plant)
    assert "a new one" not in CATALOGUE


def test_the_first_line_of_the_docstring_is_the_description() -> None:
    """A function becomes a fault with its own words."""

    @fault("for this test", Where.DATA, "nowhere")
    def _plant(_: FaultSite) -> Iterator[None]:
        """What it plants.

        More about it.
        """
        yield

    assert CATALOGUE.pop("for this test").plants == "What it plants."


def state() -> list[Any]:
    """Everything that faults replace, as it stands."""
    import modelopt.torch.quantization as mtq
    from modelopt.torch.quantization import tensor_quant

    attention = diffusers_attention()
    return [
        tensor_quant._fp8_eager,
        tensor_quant._tensor_quant,
        mtq.fold_weight,
        attention._functionals_to_replace,
        quantize.quantize,
        quantize.forward_loop_over,
        quantize.fold,
        references.load,
        tasks.load_tasks,
        tasks.evaluate,
        checkpoint.save,
        checkpoint.restore_in_fresh_process,
        calibration.load,
        graph.tower,
        forms.Form.codes,
        F.scaled_dot_product_attention,
        F.softmax,
    ]


REPLACING = [f for f in CATALOGUE.values() if f.where not in (Where.BASELINE, Where.RECIPE)]


@pytest.mark.parametrize("planted", REPLACING, ids=lambda f: f.name)
def test_a_fault_is_there_within_its_block_only(planted: Any, site: FaultSite) -> None:
    """Something is replaced, or an option set, within the block, and all is as before behind it."""
    before = state()

    with planted.planted(site):
        within = state()
    after = state()

    assert any(a is not b for a, b in zip(before, within, strict=True)) or site.options
    assert all(a is b for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("planted", REPLACING, ids=lambda f: f.name)
def test_a_fault_goes_even_if_the_run_raises(planted: Any, site: FaultSite) -> None:
    """What a fault replaced is put back when the block ends in an error."""
    before = state()

    with pytest.raises(ZeroDivisionError), planted.planted(site):
        raise ZeroDivisionError

    assert all(a is b for a, b in zip(before, state(), strict=True))


@pytest.mark.parametrize(
    "planted", [f for f in CATALOGUE.values() if f.where is Where.RECIPE], ids=lambda f: f.name
)
def test_a_recipe_fault_gives_another_recipe(planted: Any, site: FaultSite) -> None:
    """The gate is handed another recipe than the clean one, which loads or is refused for what was
    planted in it.
    """
    with planted.planted(site):
        (ref,) = site.options["recipes"]
        try:
            changed = loading.load(ref).hash
        except UsageError as error:
            changed = str(error)

    assert (".yaml" in changed) == (planted.name == "E5M2 configured")
    assert changed != loading.load(planted.recipe).hash


@pytest.mark.parametrize(
    "name",
    [
        "baseline edited",
        "outcomes truncated",
        "outcomes lost",
        "outcomes file is a pointer",
        "baseline of another recipe",
        "baseline removed",
    ],
)
def test_a_baseline_fault_changes_the_files_of_its_site(name: str, site: FaultSite) -> None:
    """The copy of the baselines is damaged."""

    def files() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in sorted(site.baselines.rglob("*")) if p.is_file()}

    if name == "baseline of another recipe":
        record = next((site.baselines / "embedded" / "int8").glob("record*"))
        record.write_text('{"recipe": "int8"}')
    before = files()

    with CATALOGUE[name].planted(site):
        assert files() != before


WRONG_ARITHMETIC = [
    f for f in CATALOGUE.values() if f.plant.__module__ == "harness.tools.faults.arithmetic"
]


def test_the_arithmetic_faults_are_known() -> None:
    """The list that the next test goes through is not empty."""
    assert len(WRONG_ARITHMETIC) >= 15


@pytest.mark.parametrize("planted", WRONG_ARITHMETIC, ids=lambda f: f.name)
def test_wrong_arithmetic_differs_from_modelopts(planted: Any, site: FaultSite) -> None:
    """Each wrong function returns other bits than ModelOpt's on some tensor, so the two are not
    equivalent.
    """
    from modelopt.torch.quantization import tensor_quant

    ties = torch.tensor([0.5, -0.5, 1.5, 2.5, 3.5, -1.0]) / 127
    x = torch.cat([torch.linspace(-1.2, 1.2, 4801), torch.linspace(0, 5e-5, 100), ties]).repeat(
        3, 1
    )
    amax = torch.tensor([[0.0], [1.0], [0.37]])

    def both() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        whole = tensor_quant._tensor_quant
        return (
            tensor_quant._fp8_eager(x, amax),
            whole(x, amax, narrow_range=False),
            whole(x, amax, narrow_range=True),
        )

    right = both()
    with planted.planted(site):
        wrong = both()

    same = [
        torch.equal(a.nan_to_num(9.0), b.nan_to_num(9.0)) for a, b in zip(right, wrong, strict=True)
    ]
    assert not all(same)


def test_the_unspoiled_arithmetic_is_modelopts() -> None:
    """Without a defect the replacement functions give ModelOpt's bits, so that each fault plants
    one thing only.
    """
    from modelopt.torch.quantization import tensor_quant

    from harness.tools.faults.arithmetic import _fp8, _integer

    x = torch.cat([torch.linspace(-700, 700, 20001), torch.tensor([0.0, -0.0])]).half()
    for amax in (
        torch.tensor(3.7),
        torch.tensor(448.0),
        torch.tensor(0.0),
        torch.tensor(600.0).half(),
    ):
        assert torch.equal(_fp8()(x, amax), tensor_quant._fp8_eager(x, amax))
        for narrow in (True, False):
            ours = _integer()(x, amax, 8, False, narrow)
            assert torch.equal(ours, tensor_quant._tensor_quant(x, amax, 8, False, narrow))


def test_a_fault_that_would_plant_nothing_says_so() -> None:
    """Looking for quantizers that a model does not have is an error, not a silent survivor."""
    with pytest.raises(LookupError, match="plant nothing"):
        enabled(nn.Linear(2, 2), "weight_quantizer")


def test_after_quantizing_changes_what_the_gate_gets() -> None:
    """The change is made on the model that ``quantize`` returns, after calibration."""
    seen: list[nn.Module] = []
    reference = references.load("embedded", torch.device("cpu"))

    with after_quantizing(seen.append):
        quantized = quantize.structure(reference.model, loading.load("fp8"))

    assert seen == [quantized]


def test_replaced_puts_back_what_was_there() -> None:
    """Several attributes are set within the block and restored behind it."""

    class Holder:
        a, b = 1, 2

    with replaced((Holder, "a", 3), (Holder, "b", 4)):
        assert (Holder.a, Holder.b) == (3, 4)
    assert (Holder.a, Holder.b) == (1, 2)


def test_one_bit_is_one_bit(tmp_path: Path) -> None:
    """The checkpoint fault of one bit changes exactly one bit of one weight in the file."""
    from safetensors.torch import load_file, save_file

    from harness.tools.faults.records import WEIGHT, _one_bit, _tensor

    weights = {WEIGHT: torch.randn(4, 4).half(), "other": torch.zeros(2)}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})

    _tensor(WEIGHT, _one_bit)(tmp_path)

    changed = load_file(tmp_path / "model.safetensors")
    difference = changed[WEIGHT].view(torch.int16) ^ weights[WEIGHT].view(torch.int16)
    assert int((difference != 0).sum()) == 1
    assert int(difference.abs().max()) == 1
    assert torch.equal(changed["other"], weights["other"])
