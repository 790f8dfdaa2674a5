"""What tests of the store share: a clock that stands still, what is said of a refusal, devices by
name.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone, tzinfo

import pytest

from harness.errors import UsageError
from harness.evaluation.environment import DeviceKey


class Clock:
    """Time that stands still until it is moved; *now* as ``datetime.now``."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 2, 23, 4, 5, 678_901, tzinfo=timezone.utc)

    def now(self, zone: tzinfo | None = None) -> datetime:
        """The moment in *zone*; of this machine and without a zone where none is given."""
        return self.time.astimezone(zone) if zone else self.time.astimezone().replace(tzinfo=None)


def said(call: Callable[[], object]) -> str:
    """The usage error that *call* ends with."""
    with pytest.raises(UsageError) as caught:
        call()
    return str(caught.value)


def named(name: str, architecture: str) -> DeviceKey:
    """A device."""
    return DeviceKey(name, architecture)
