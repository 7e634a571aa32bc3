"""How a study's posteriors are made: one family's name, and what it reads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from optuna_merge.posteriors._families import FAMILIES
from optuna_merge.posteriors._family import Family
from optuna_merge.posteriors._mixture import RESPONSIBILITIES, Responsibilities

ESTIMATORS = ("squared_gradients", "ivon")


@dataclass(frozen=True)
class PosteriorSettings:
    """How the tasks' posteriors are made: their family, curvature and damping.

    Attributes:
        family: The name of one of `optuna_merge.posteriors.FAMILIES`. "diagonal" weighs each
            parameter by its own curvature, "isotropic" averages.
        estimator: How the curvature is estimated. "squared_gradients": at the end of each task
            run, from `examples` examples. "ivon": during the task runs, which then need
            `FinetuneSettings(optimizer="ivon")`, at no further cost; for families with one number
            per parameter.
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
    estimator: Literal["squared_gradients", "ivon"] = "squared_gradients"
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
        _check_choice("estimator", self.estimator, ESTIMATORS)
        _check_choice("responsibilities", self.responsibilities, RESPONSIBILITIES)
        family = FAMILIES[self.family]
        served = [f for f in FAMILIES.values() if f.curvature and "ivon" in f.curvature.estimators]
        if self.estimator == "ivon" and family not in served:
            raise ValueError(
                f"estimator='ivon' gives one number per parameter, for the families "
                f"{_listed(served)}, got family={self.family!r}; use estimator='squared_gradients'"
            )
        couplings = RESPONSIBILITIES[self.responsibilities]
        if self.components > 1 and family.gaussian.coupling not in couplings:
            allowed = [f for f in FAMILIES.values() if f.gaussian.coupling in couplings]
            raise ValueError(
                f"responsibilities={self.responsibilities!r} need parts that are independent, "
                f"which those of family={self.family!r} are not; use one of {_listed(allowed)}, "
                f"or responsibilities='task' or 'fixed'"
            )
        for name in ("components", "rank", "examples", "damping_examples", "chunk_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.damping is not None and not self.damping > 0:
            raise ValueError(f"damping must be positive, got {self.damping}")

    @property
    def label(self) -> str:
        """Its short name: the family, and what of mixtures and estimators isn't the default."""
        parts: list[str] = [self.family]
        if self.components > 1:
            parts += [str(self.components), self.responsibilities]
        if self.estimator != "squared_gradients":
            parts.append(self.estimator)
        return ":".join(parts)


def _listed(families: Iterable[Family]) -> str:
    return ", ".join(family.name for family in families)


def _check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
