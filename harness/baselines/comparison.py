"""The result of comparing a case with the store: drift or none, no record, or an unexpected
difference.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence


class Comparison(ABC):
    """The result of comparing a case with its stored record."""

    @property
    def failed(self) -> bool:
        """Whether a person must look at it."""
        return True

    @property
    def only_adds(self) -> bool:
        """Whether accepting what was measured adds to the store and replaces nothing."""
        return False

    @property
    def causes(self) -> Sequence[str]:
        """What would also fail another comparison of the same case."""
        return ()

    @property
    @abstractmethod
    def word(self) -> str:
        """The kind of result, as the results call it."""

    @property
    @abstractmethod
    def headline(self) -> str:
        """A few words for a table."""

    @abstractmethod
    def message(self, nodeid: str | None = None, options: Sequence[str] = ()) -> str:
        """Return the full text for a person, with the commands that rerun the case and accept it.

        Args:
            nodeid: pytest's id of the test, for the command that reruns it.
            options: those of this run that the case depends on.
        """
