"""The list of families: a new one is a file, a line here, and nothing else."""

from __future__ import annotations

from typing import Any

from optuna_merge.posteriors._diagonal import DIAGONAL
from optuna_merge.posteriors._family import Family
from optuna_merge.posteriors._full import FULL
from optuna_merge.posteriors._gaussian import Gaussian
from optuna_merge.posteriors._isotropic import ISOTROPIC
from optuna_merge.posteriors._kronecker import KRONECKER
from optuna_merge.posteriors._low_rank import LOW_RANK
from optuna_merge.posteriors._mixture import Mixture
from optuna_merge.posteriors._per_tensor import PER_TENSOR
from optuna_merge.posteriors._rows_columns import ROWS_COLUMNS

Posterior = Gaussian | Mixture
"""Any of the families."""

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (ISOTROPIC, PER_TENSOR, DIAGONAL, ROWS_COLUMNS, LOW_RANK, KRONECKER, FULL)
}
"""The families that `PosteriorSettings` can name."""

CLASSES: dict[str, Any] = {
    made.__name__: made for made in (*(each.gaussian for each in FAMILIES.values()), Mixture)
}
"""The classes of posteriors, as files name them."""
