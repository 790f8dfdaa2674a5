"""What a person can choose for a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.models import checkpoint_files
from harness.places import BASELINES
from harness.recipes import finding


@dataclass(frozen=True)
class Options:
    """What a person can choose; the names are those of the command line."""

    recipes: tuple[str, ...] = finding.DEFAULT
    recipes_root: Path | None = None
    clip_models: tuple[str, ...] = ("embedded",)
    tasks: tuple[str, ...] | None = None
    consumers: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()
    data_root: Path | None = None
    calibration_data: Path | None = None
    calibration_size: int = 8192
    batch_size: int | None = None
    device: str = "auto"
    attention: str = "diffusers"
    early_stop: bool = False
    cluster: str | None = None
    report: bool = False
    baselines: Path = BASELINES
    progress: bool = False

    def __post_init__(self) -> None:
        # A pipeline stands for its parts.
        object.__setattr__(self, "clip_models", checkpoint_files.expanded(self.clip_models))
        if self.recipes == finding.DEFAULT and self.recipes_root is not None:
            # The default recipes are this package's, whatever files of their names the tree holds.
            own = tuple(finding.own_reference(name, self.recipes_root) for name in self.recipes)
            object.__setattr__(self, "recipes", own)

    @property
    def is_default(self) -> bool:
        """Whether this is what a plain run gates: all default recipes on the default models and
        tasks.
        """
        plain = Options()
        return (self.recipes, self.clip_models, self.tasks) == (
            plain.recipes,
            plain.clip_models,
            plain.tasks,
        )
