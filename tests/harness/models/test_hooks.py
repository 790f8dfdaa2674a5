"""Looking at what goes through modules: what is seen, what is replaced, and that nothing stays
behind.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.models.hooks import after_each, before_each


class Broken(nn.Identity):
    """A module that takes no hook."""

    def register_forward_hook(self, *_: Any, **__: Any) -> Any:
        """Refuse."""
        raise RuntimeError("no hooks here")


@pytest.fixture
def pair() -> nn.Sequential:
    """Two modules, one after the other."""
    return nn.Sequential(nn.Identity(), nn.ReLU())


def hooks(model: nn.Module) -> int:
    """How many hooks are left on the modules of *model*."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_arguments_and_outputs_are_seen_by_key(pair: nn.Sequential) -> None:
    """Before and after each module, under the key that it was given; nothing is left behind the
    block.
    """
    seen: list[tuple[Any, float]] = []
    modules = dict(pair.named_children())

    with before_each(modules, lambda key, _, args: seen.append((key, float(args[0])))):
        pair(torch.tensor(-1.0))
    with after_each(modules, lambda key, _, args, output: seen.append((key, float(output)))):
        pair(torch.tensor(-1.0))

    assert seen == [("0", -1.0), ("1", -1.0), ("0", -1.0), ("1", 0.0)]
    assert hooks(pair) == 0


def test_a_returned_value_takes_the_place_of_the_output(pair: nn.Sequential) -> None:
    """None leaves the output as it is."""

    def see(key: str, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        return output + 5 if key == "0" else None

    with after_each(dict(pair.named_children()), see):
        assert float(pair(torch.tensor(-1.0))) == 4.0


def test_hooks_go_when_a_forward_or_a_registration_raises(pair: nn.Sequential) -> None:
    """Whatever raises, no hook stays."""
    modules = dict(pair.named_children())

    def fail(*_: Any) -> None:
        raise ValueError("seen enough")

    with pytest.raises(ValueError, match="seen enough"), before_each(modules, fail):
        pair(torch.tensor(1.0))
    with (
        pytest.raises(RuntimeError, match="no hooks here"),
        after_each(modules | {"2": Broken()}, lambda *_: None),
    ):
        pass

    assert hooks(pair) == 0
