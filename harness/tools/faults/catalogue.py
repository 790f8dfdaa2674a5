"""What a fault is, and the registry that all of them stand in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypedDict, TypeVar
from unittest import mock

from torch import nn

if TYPE_CHECKING:
    from harness.modelopt_types import TensorQuantizer

P = ParamSpec("P")
T = TypeVar("T")


class Where(Enum):
    """What a fault is planted in."""

    MODELOPT = "ModelOpt"
    RECIPE = "recipe"
    CALIBRATION = "calibration"
    MODEL = "model"
    DATA = "data"
    CHECKPOINT = "checkpoint"
    BASELINE = "baseline"
    EXPORT = "export"


class ChangedOptions(TypedDict, total=False):
    """Fields of ``harness.gate.options.Options`` that a fault or a check of the proof sets."""

    recipes: tuple[str, ...]
    consumers: tuple[str, ...]


@dataclass
class FaultSite:
    """Where one fault is planted: a folder of its own, and a copy of the clean baselines that it
    may damage.

    ``options`` are fields of ``harness.gate.options.Options`` that the fault sets, such as another
    recipe.
    """

    folder: Path
    baselines: Path
    recipe: str
    options: ChangedOptions = field(default_factory=ChangedOptions)


Plant = Callable[[FaultSite], AbstractContextManager[None]]


@dataclass(frozen=True)
class Fault:
    """One defect.

    ``plants`` says what is wrong while it is planted, ``origin`` which real bug or class of bugs it
    stands for. ``recipe`` is the clean recipe that the gate runs, and ``rebuilt`` names what of a
    clean run the fault spoils, so that it must not be shared with it (the kinds of ``Gate.share``).
    """

    name: str
    where: Where
    origin: str
    plants: str
    plant: Plant
    recipe: str
    rebuilt: frozenset[str]

    def planted(self, site: FaultSite) -> AbstractContextManager[None]:
        """The defect, for as long as the block lasts."""
        return self.plant(site)


CATALOGUE: dict[str, Fault] = {}


def fault(
    name: str, where: Where, origin: str, recipe: str = "fp8", rebuilt: tuple[str, ...] = ()
) -> Callable[[Callable[[FaultSite], Iterator[None]]], Plant]:
    """Register a generator function as a fault; the first line of its docstring says what it
    plants.
    """

    def register(plant: Callable[[FaultSite], Iterator[None]]) -> Plant:
        what = (plant.__doc__ or "").strip().splitlines()[0]
        return add(name, where, origin, what, contextmanager(plant), recipe, rebuilt)

    return register


def add(
    name: str,
    where: Where,
    origin: str,
    plants: str,
    plant: Plant,
    recipe: str = "fp8",
    rebuilt: tuple[str, ...] = (),
) -> Plant:
    """Register *plant* as a fault.

    Raises:
        ValueError: the name is taken, or nothing is said about it.
    """
    if name in CATALOGUE or not (plants and origin):
        raise ValueError(
            f"fault {name!r} is registered twice, or does not say what it plants and where it "
            f"comes from"
        )
    CATALOGUE[name] = Fault(name, where, origin, plants, plant, recipe, frozenset(rebuilt))
    return plant


def replaced(*changes: tuple[object, str, object]) -> AbstractContextManager[None]:
    """(object, attribute, value) set within the block."""

    @contextmanager
    def block() -> Iterator[None]:
        with ExitStack() as stack:
            for holder, name, value in changes:
                stack.enter_context(mock.patch.object(holder, name, value))
            yield

    return block()


def with_result(function: Callable[P, T], change: Callable[[T], T]) -> Callable[P, T]:
    """*function*, whose result goes through *change*."""

    def changed(*args: P.args, **kwargs: P.kwargs) -> T:
        return change(function(*args, **kwargs))

    return changed


def after_quantizing(change: Callable[[nn.Module], None]) -> AbstractContextManager[None]:
    """Every quantized model goes through *change* as it leaves ``mtq.quantize``."""
    from harness.quantization import quantize

    def changed(model: nn.Module) -> nn.Module:
        change(model)
        return model

    return replaced((quantize, "quantize", with_result(quantize.quantize, changed)))


def enabled(model: nn.Module, *endings: str) -> list[TensorQuantizer]:
    """The enabled quantizers of *model* whose names end in one of *endings* (all without any), in
    module order.
    """
    from harness.quantization.maps import tensor_quantizers

    quantizers = [
        q
        for name, q in tensor_quantizers(model).items()
        if q.is_enabled and name.endswith(endings or ("",))
    ]
    if not quantizers and not any(p.is_meta for p in model.parameters()):
        raise LookupError(
            f"no enabled quantizer ends in {' or '.join(endings)}: the fault would plant nothing"
        )
    return quantizers
