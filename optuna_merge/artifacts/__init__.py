"""Files that the workers of a study share through Optuna's artifact stores."""

from optuna_merge.artifacts._shared_files import SharedFiles
from optuna_merge.artifacts._stores import open_artifact_store

__all__ = ["SharedFiles", "open_artifact_store"]
