"""Values that JSON can hold, as types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias, Union

#: A value of JSON that is only read; an object's keys are text.
Json: TypeAlias = Union[
    "Mapping[str, Json]", "Sequence[Json]", "str", "int", "float", "bool", "None"
]
#: An object of JSON.
JsonObject: TypeAlias = dict[str, Json]
