"""The study and the fit that commands begin with."""

from __future__ import annotations

import sys
from pathlib import Path

import optuna

from optuna_merge.artifacts import SharedFiles, open_artifact_store
from optuna_merge.commands._display import fit_shown
from optuna_merge.definition import StudyDefinition
from optuna_merge.fitting import FittedStudy, Sharing, fit
from optuna_merge.pruners import PromotionPruner
from optuna_merge.search import check_definition, open_study
from optuna_merge.workers import StudySharing


def opened(
    definition: StudyDefinition,
    name: str,
    storage: optuna.storages.BaseStorage,
    pruner: PromotionPruner | None = None,
) -> optuna.Study:
    """The study, made if it is missing.

    Raises:
        DefinitionMismatchError: it is one of another definition.
    """
    study = open_study(name, storage, definition.directions, pruner=pruner)
    check_definition(study, definition.describe())
    return study


def shared_among(
    study: optuna.Study, artifacts: str, workdir: Path, *, claims: bool = True
) -> Sharing:
    """The fit's work, shared out among the machines of the study."""
    files = SharedFiles(study, open_artifact_store(artifacts), workdir)
    return StudySharing(study, files, workdir, claims=claims)


def fitted(
    definition: StudyDefinition, workdir: Path, sharing: Sharing | None = None
) -> FittedStudy:
    """`fit`, with what is seen of it in a terminal."""
    with fit_shown():
        return fit(definition, workdir, progress=sys.stderr.isatty(), sharing=sharing)
