"""One run of the gate: its cases, and the store that they are compared with.

Nothing here knows pytest.  A notebook does what the suites do::

    from harness import Gate, Options
    gate = Gate(Options(recipes=("fp8",)))
    case = gate.cases()[0]
    print(case.map)
    print(case.verdicts)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from harness import baselines
from harness.baselines import Record
from harness.consumers import contracts
from harness.data import tasks
from harness.errors import sentences
from harness.evaluation.subjects import Evaluator
from harness.gate import listing
from harness.gate.built import forget_frames
from harness.gate.case import Case
from harness.gate.listing import CaseName
from harness.gate.options import Options
from harness.gate.reference_side import Prepared, ReferenceSide
from harness.gate.setting import Setting
from harness.models import outliers
from harness.recipes import finding, names


class Gate(Setting):
    """One run: the cases that its options make, each built once.

    Args:
        options: what was chosen.
        evaluator: who runs models over tasks; by default what the options say.
        prepared: what of each model is taken over from another run, by the model as the person
            named it.
    """

    def __init__(
        self,
        options: Options,
        evaluator: Evaluator | None = None,
        prepared: Mapping[str, Prepared] | None = None,
    ) -> None:
        super().__init__(options, evaluator)
        self._prepared = dict(prepared or {})
        self._cases: dict[CaseName, Case] = {}
        self._sides: dict[str, ReferenceSide] = {}

    def cases(self) -> list[Case]:
        """Every recipe on every model."""
        return [self[name] for name in listing.cases_of(self.options)]

    def __getitem__(self, name: CaseName) -> Case:
        """The case of that name; the same object each time."""
        if name not in self._cases:
            self._cases[name] = Case(self, name, self.side(name.model))
        return self._cases[name]

    def touched(self) -> list[Case]:
        """The cases that were used, in the order of their first use."""
        return list(self._cases.values())

    def side(self, model: str) -> ReferenceSide:
        """Return what all recipes on *model* share."""
        if model not in self._sides:
            self._sides[model] = ReferenceSide(self, model, self._prepared.get(model, Prepared()))
        return self._sides[model]

    def forget_frames(self) -> None:
        """Drop what the frames of remembered errors hold: models of cases that came before."""
        for owner in (
            self,
            *self._cases.values(),
            *(case.graphs for case in self._cases.values()),
            *self._sides.values(),
        ):
            forget_frames(owner)

    # -- the store ---------------------------------------------------------------------------------

    def measured(self) -> dict[Case, Record]:
        """What this run measured of every case that was compared with the store."""
        records = {case: case.to_store for case in self._cases.values()}
        return {case: record for case, record in records.items() if record is not None}

    def accept(
        self,
        *,
        reason: str | None,
        new_only: bool,
        show: Callable[[str], object],
        left_out: Mapping[Case, str] | None = None,
    ) -> None:
        """Store what this run measured of every case that was compared with the store.

        Args:
            reason: why the baselines change.
            new_only: store what is missing, and change nothing that is there.
            show: gets each change before it is stored, and each case that is not stored.
            left_out: cases that are not stored, with the reason.
        """
        for case, record in self.measured().items():
            if left_out and case in left_out:
                fix = "Fix it, or accept it as it is: --update-baselines --reason TEXT"
                show(f"not stored: {case.id}: {sentences(left_out[case], fix)}")
                continue
            self.store.update(record, reason=reason, new_only=new_only, show=show)

    def orphans(self) -> tuple[baselines.Orphan, ...]:
        """Records in the store that none of this run's cases uses, nor further recipes or the
        stressed model.
        """
        named = list(names.of_models(self.options.clip_models).values())
        named += [model + outliers.SUFFIX for model in named]
        used = [(model, recipe) for model in named for recipe in (*finding.DEFAULT, *finding.MORE)]
        used += [(name.model_name, name.recipe_name) for name in listing.cases_of(self.options)]
        return self.store.orphans(
            used,
            (
                *(tasks.EMBEDDED_TASKS if self.options.tasks is None else self.options.tasks),
                *contracts.CONTRACTS,
            ),
        )
