"""What decides whether the parts of a recipe are such as ModelOpt takes.

The gate asks the installed ModelOpt (:class:`Installed`).  The lint, which imports none, asks what
was recorded of it (:class:`harness.lint.recorded.Recorded`).  Everything else about a recipe's form
is in :mod:`harness.recipes.loading`, for both.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from harness.errors import UsageError
from harness.recipes import algorithms, config_form, schema
from harness.recipes.installed import modelopt_config
from harness.recipes.tree import plain
from harness.recipes.yaml_reading import Document


@dataclass(frozen=True)
class Search:
    """The section ``auto_quantize`` of a recipe without its formats, defaults filled in."""

    constraints: dict[str, Any]
    disabled_layers: Sequence[str]
    cost_excluded_layers: Sequence[str]
    method: str
    score_size: int
    has_kv_cache: bool


class Schema(Protocol):
    """What is asked about a recipe's parts.  Each method may raise a UsageError that names the
    place.
    """

    def lines(self, quant_cfg: Mapping[str, object]) -> list[dict[str, object]]:
        """Return a quant_cfg in dict form as single-key lines, in the order in which they apply."""

    def entries(self, line: object, place: str) -> list[schema.Fields]:
        """Return the entries that one line of a quant_cfg means."""

    def snippet(self, document: Document, data: object) -> None:
        """Hold an imported snippet against the schema that it declares."""

    def kind(self, kind: str, path: Path) -> None:
        """Hold a ``recipe_type`` against the kinds that there are."""

    def algorithm(self, algorithm: object, place: str) -> None:
        """Hold the key ``algorithm`` against the methods and their settings."""

    def section(self, section: Mapping[str, object], path: Path) -> dict[str, object]:
        """Return the section ``quantize`` as ``mtq.quantize`` takes it."""

    def search(self, data: Mapping[str, object], path: Path) -> Search:
        """Return what an auto_quantize recipe says of the search."""


class Installed:
    """The installed ModelOpt's own schema, imported when it is first asked."""

    def lines(self, quant_cfg: Mapping[str, object]) -> list[dict[str, object]]:
        """As :class:`Schema`."""
        return config_form.lines(quant_cfg)

    def entries(self, line: object, place: str) -> list[schema.Fields]:
        """As :class:`Schema`."""
        return schema.check_entry(line, place)

    def snippet(self, document: Document, data: object) -> None:
        """As :class:`Schema`."""
        schema.check_snippet(document, data)

    def kind(self, kind: str, path: Path) -> None:
        """As :class:`Schema`."""
        schema.check_kind(kind, path)

    def algorithm(self, algorithm: object, place: str) -> None:
        """As :class:`Schema`."""
        algorithms.check(algorithm, place)

    def section(self, section: Mapping[str, object], path: Path) -> dict[str, object]:
        """As :class:`Schema`."""
        try:
            with warnings.catch_warnings():
                # Of the dict form, of which the gate says by itself what it does
                warnings.simplefilter("ignore")
                section_settings = {"algorithm": algorithms.DEFAULT} | plain(section)
                section_settings["quant_cfg"] = config_form.accepted(
                    section_settings["quant_cfg"], str(path)
                )
                checked = (
                    modelopt_config()
                    .QuantizeConfig(**section_settings)
                    .model_dump(exclude_unset=True)
                )
        except config_form.REFUSALS as error:
            fix = "Correct its quantize section."
            where = schema.refused_at(error, section, [section], str(path))
            raise UsageError(where, f"ModelOpt refuses it: {first_line(error)}", fix) from error
        return dict(checked)

    def search(self, data: Mapping[str, object], path: Path) -> Search:
        """As :class:`Schema`."""
        modelopt_config()
        from modelopt.recipe.config import ModelOptAutoQuantizeRecipe  # ModelOpt takes seconds

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                checked = ModelOptAutoQuantizeRecipe(**plain(data)).auto_quantize
        except config_form.REFUSALS as error:
            where = schema.refused_at(error, data, [data], str(path))
            raise UsageError(
                where, f"ModelOpt refuses it: {first_line(error)}", "Correct its sections."
            ) from error
        return Search(
            checked.constraints.model_dump(exclude_none=True),
            checked.disabled_layers,
            checked.cost_excluded_layers,
            checked.auto_quantize_method,
            checked.score_size,
            checked.kv_cache is not None,
        )


def first_line(error: BaseException) -> str:
    """Return what *error* says, on one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]
