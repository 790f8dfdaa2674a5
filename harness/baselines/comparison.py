"""What comparing a case with the store can say: it drifted or not, there is no record, or the
record is unexpected.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence


class Comparison(ABC):
    """The answer to whether a case is what its stored record says."""

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
        """What another comparison of the same case would fail for as well."""
        return ()

    @property
    @abstractmethod
    def word(self) -> str:
        """The kind of answer, as results call it."""

    @property
    @abstractmethod
    def headline(self) -> str:
        """A few words for a table."""

    @abstractmethod
    def message(self, nodeid: str | None = None, options: Sequence[str] = ()) -> str:
        """All of it for a person, with the commands that rerun the case and accept it.

        Args:
            nodeid: pytest's id of the test, for the command that reruns it.
            options: those of this run that the case depends on.
        """
