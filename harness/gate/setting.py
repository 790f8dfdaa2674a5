"""What all cases of a run share: options, device, evaluator, store and policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial

from harness.baselines import Store, carried, differences
from harness.data import inputs
from harness.evaluation import environment, evaluators
from harness.evaluation.subjects import Evaluator
from harness.formats.deviations import Deviation
from harness.gate import listing
from harness.gate.built import attempt
from harness.gate.options import Options
from harness.gate.quantized import Quantized
from harness.models import references
from harness.outlines import fit
from harness.outlines.matrix import Matrix, MatrixLine
from harness.outlines.rows import ROWS
from harness.outlines.structures import Structures
from harness.quantization.maps import QuantizerMap
from harness.recipes import finding, loading
from harness.recipes.loading import Recipe
from harness.recipes.tree import Tree
from harness.statistics import budgets


class Setting:
    """What a run is bound to and what belongs to no single case.

    Args:
        options: what was chosen.
        evaluator: who runs models over tasks; by default what the options say.
    """

    def __init__(self, options: Options, evaluator: Evaluator | None = None) -> None:
        self.options = options
        self.device = references.resolve_device(options.device)
        self.evaluator = evaluator or evaluators.evaluator(
            self.device,
            options.batch_size,
            cluster=options.cluster,
            data_root=options.data_root,
            progress=options.progress,
        )
        self.store = Store(options.baselines, partial(listing.words_of_names, options))
        #: Expected differences between releases that known deviations met, with how often, by
        #: deviation.
        self.deviations_met: dict[str, Mapping[str, int]] = {}
        self._recipes: dict[str, Recipe] = {}
        self._structures = Structures(options.attention)
        self._shapes: dict[str, MatrixLine] = {}
        self._latest: tuple[object, Quantized] | None = None

    @property
    def batch_size(self) -> int:
        """Rows per forward: the option's value, or what suits the device."""
        return self.options.batch_size or inputs.default_batch_size(self.device)

    @cached_property
    def device_key(self) -> environment.DeviceKey:
        """What records of this device are stored under."""
        return environment.DeviceKey.of(self.device)

    @cached_property
    def policy(self) -> budgets.Policy:
        """Budgets and declared expectations."""
        return budgets.load(self.options.baselines / "budgets.yaml")

    @cached_property
    def expected(self) -> tuple[differences.ExpectedDifference, ...]:
        """The differences that are expected between releases of ModelOpt and transformers."""
        return differences.load(self.options.baselines)

    def deviation(self, known: Deviation) -> list[str]:
        """How the installed ModelOpt differs in a known deviation from what it was recorded, or is
        expected, to do.
        """
        met, problem = carried.deviation(
            known, self.expected, environment.versions(), self.device.type
        )
        self.deviations_met[known.name] = met
        return problem

    # -- built once for all cases ------------------------------------------------------------------

    def recipe(self, reference: str) -> Recipe:
        """A recipe, loaded once."""
        if reference not in self._recipes:
            self._recipes[reference] = attempt(
                self,
                f"recipe {reference}",
                lambda: loading.load(reference, self.options.recipes_root),
            )
        return self._recipes[reference]

    @cached_property
    def matrix(self) -> Matrix:
        """What is known of the recipes of the run's tree on architectures of the table."""
        root = self.options.recipes_root
        return Matrix(Tree(root if root is not None else finding.installed_root()))

    def shapes(self, ref: str) -> MatrixLine:
        """The recipe of *ref* on the architectures that were asked for."""
        if ref not in self._shapes:
            rows = [row for row in ROWS if row.name in self.options.architectures]
            subject = fit.named(self.recipe(ref), self.matrix.tree)
            self._shapes[ref] = self.matrix.line(subject, rows)
        return self._shapes[ref]

    def shapes_told(self) -> list[str]:
        """The shares of quantized weights, a line for each recipe and architecture looked at."""
        return [
            f"{line.recipe} on {cell.architecture}: "
            + "; ".join(f"{part} {share}" for part, share in cell.shares.items())
            for line in self._shapes.values()
            for cell in line.cells
            if cell.shares
        ]

    def structure(self, recipe: Recipe, architecture: str) -> QuantizerMap:
        """The map of *recipe* on an architecture without weights."""
        name = f"structure of {recipe.hash} on {architecture}"
        return attempt(self, name, lambda: self._structures.of(recipe, architecture))

    def latest(self, owner: object, make: Callable[[], Quantized]) -> Quantized:
        """The quantized model of *owner*, made where the latest one is another's: only one stays in
        memory.
        """
        if self._latest is None or self._latest[0] is not owner:
            self._latest = None
            self.forget_frames()
            self._latest = owner, make()
        return self._latest[1]

    def forget_frames(self) -> None:
        """Drop what the frames of remembered errors hold: models of cases that came before."""
