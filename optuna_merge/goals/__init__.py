"""What a study looks for: scores, constraints, fronts. Pure functions of metrics."""

from optuna_merge.goals._constraints import Constraint, Limits, make_constraints, total_violation
from optuna_merge.goals._fronts import (
    below_nadir,
    hypervolume,
    layers,
    non_dominated,
    volume_alone,
)
from optuna_merge.goals._goal import Direction, Goal
from optuna_merge.goals._scores import PARETO, Score, make_score

__all__ = [
    "PARETO", "Constraint", "Direction", "Goal", "Limits", "Score", "below_nadir", "hypervolume",
    "layers", "make_constraints", "make_score", "non_dominated", "total_violation", "volume_alone",
]  # fmt: skip
