"""From a definition to a workbench: task runs, posteriors, previews, finetunes. No Optuna here."""

from __future__ import annotations

from optuna_merge.fitting._curvature import check_curvature as check_curvature
from optuna_merge.fitting._damping import (
    MULTIPLES,
    Damping,
    Losses as Losses,
    noted_damping as noted_damping,
    trial_weightings,
)
from optuna_merge.fitting._finetune_files import DefinedFinetunes, FinetuneFiles, Finetunes
from optuna_merge.fitting._fit import finetune_store, fit
from optuna_merge.fitting._fitted import FittedStudy
from optuna_merge.fitting._given import (
    UNRELATED as UNRELATED,
    given_parameters as given_parameters,
    median_cosine as median_cosine,
)
from optuna_merge.fitting._units import FolderSharing, Sharing, Unit
from optuna_merge.fitting._workbench import (
    Measured,
    Report,
    Workbench,
    alone_weights as alone_weights,
    anchor_weights as anchor_weights,
    counts_as_reused as counts_as_reused,
    reference_point as reference_point,
    uniform_weights as uniform_weights,
)

__all__ = [
    "MULTIPLES",
    "Damping",
    "DefinedFinetunes",
    "FinetuneFiles",
    "Finetunes",
    "FittedStudy",
    "FolderSharing",
    "Measured",
    "Report",
    "Sharing",
    "Unit",
    "Workbench",
    "finetune_store",
    "fit",
    "trial_weightings",
]
