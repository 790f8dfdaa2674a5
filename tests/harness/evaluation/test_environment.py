"""What a measurement depends on besides model and data: devices, conditions, releases."""

from __future__ import annotations

import re

import pytest

from harness.evaluation.environment import DeviceKey


def test_device_key_of_this_cpu_is_stable_and_plain() -> None:
    """The key of the CPU is the same each time and fits a file name."""
    import torch

    from harness.evaluation import environment

    key = DeviceKey.of(torch.device("cpu"))
    assert key == DeviceKey.of(torch.device("cpu"))
    assert re.fullmatch(r"[a-z0-9._-]+", key.exact)
    assert environment.bits_condition(torch.device("cpu"), 64) != environment.bits_condition(
        torch.device("cpu"), 32
    )
    assert set(environment.versions()) == {"nvidia-modelopt", "torch", "transformers"}
    assert "+" not in environment.versions()["torch"]


@pytest.mark.parametrize("text", ["a@b", "A", "", "../x", "a/b", "-a", "x" * 81])
def test_device_key_refuses_what_a_file_name_cannot_hold(text: str) -> None:
    """A key cannot smuggle a path or the separator into a file name."""
    with pytest.raises(ValueError, match="not a device key"):
        DeviceKey(text, "x86_64")
    with pytest.raises(ValueError, match="not a device key"):
        DeviceKey("cpu", text)
