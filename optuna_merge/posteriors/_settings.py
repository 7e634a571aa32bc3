"""How a study's posteriors are made: one family's name, and what it reads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from optuna_merge.posteriors._families import FAMILIES
from optuna_merge.posteriors._mixture import RESPONSIBILITIES, Responsibilities


@dataclass(frozen=True)
class PosteriorSettings:
    """How the tasks' posteriors are made: their family, curvature and damping.

    Attributes:
        family: The name of one of `optuna_merge.posteriors.FAMILIES`. "diagonal" weighs each
            parameter by its own curvature, "isotropic" averages.
        components: Task runs per task, with consecutive seeds. With more than one the posterior is
            a mixture, and a task's own head is the mean of the heads of its runs.
        responsibilities: How the mixture is merged; see `Mixture`.
        rank: Directions of the low-rank family; memory is this times the parameters.
        examples: Training examples per task from which the curvature is estimated.
        damping: The precision of the prior, which is added to the curvature, on the scale of the
            averaged loss. None: the study chooses among multiples of the mean curvature, by the
            weighted loss of merges on validation data.
        damping_examples: Validation examples per task for that choice.
        chunk_size: Per-example gradients that are held at once.
        seed: Seed of the choice of examples, and of the labels drawn from the model.
    """

    family: str = "diagonal"
    components: int = 1
    responsibilities: Responsibilities = "fixed"
    rank: int = 8
    examples: int = 512
    damping: float | None = None
    damping_examples: int = 256
    chunk_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        _check_choice("family", self.family, FAMILIES)
        _check_choice("responsibilities", self.responsibilities, RESPONSIBILITIES)
        family = FAMILIES[self.family]
        couplings = RESPONSIBILITIES[self.responsibilities]
        if self.components > 1 and family.gaussian.coupling not in couplings:
            allowed = [n for n, f in FAMILIES.items() if f.gaussian.coupling in couplings]
            raise ValueError(
                f"responsibilities={self.responsibilities!r} need parts that are independent, "
                f"which those of family={self.family!r} are not; use one of {', '.join(allowed)}, "
                f"or responsibilities='task' or 'fixed'"
            )
        for name in ("components", "rank", "examples", "damping_examples", "chunk_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.damping is not None and not self.damping > 0:
            raise ValueError(f"damping must be positive, got {self.damping}")

    @property
    def label(self) -> str:
        """Its short name: the family, and of mixtures how many runs and what is merged."""
        several = f":{self.components}:{self.responsibilities}" if self.components > 1 else ""
        return f"{self.family}{several}"


def _check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
