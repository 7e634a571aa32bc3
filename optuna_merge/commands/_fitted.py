"""The study and the fit that commands begin with."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import optuna
import torch
from torch import nn

from optuna_merge.artifacts import SharedFiles, open_artifact_store
from optuna_merge.commands._display import fit_shown
from optuna_merge.commands._existing import check_fitted
from optuna_merge.definition import CommandDefinition, StudyDefinition
from optuna_merge.fitting import DefinedFinetunes, Finetunes, FittedStudy, Sharing, fit
from optuna_merge.pruners import PromotionPruner
from optuna_merge.search import check_definition, open_study
from optuna_merge.trainers import FittedProgram, WeightUnit, from_command
from optuna_merge.workers import StudySharing

AnyDefinition = StudyDefinition | CommandDefinition
Fit = FittedStudy | FittedProgram

SMALL = 1_000_000
"""Parameters of a model whose matrices are too small to be shared out among threads."""

_default = torch.get_num_threads()


def opened(
    definition: AnyDefinition,
    name: str,
    storage: optuna.storages.BaseStorage,
    pruner: PromotionPruner | None = None,
) -> optuna.Study:
    """The study, made if it is missing; `DefinitionMismatchError` if it is another's."""
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
    one_thread_if_small(definition.model)
    with fit_shown():
        return fit(definition, workdir, progress=sys.stderr.isatty(), sharing=sharing)


def workbench(definition: AnyDefinition, workdir: Path, sharing: Sharing | None = None) -> Fit:
    """The fit of either, with what is seen of it in a terminal."""
    if isinstance(definition, CommandDefinition):
        return _of_command(definition, workdir)
    return fitted(definition, workdir, sharing)


def finetunes(fit: Fit, workdir: Path) -> Finetunes:
    """Where the finetunes of either are."""
    return DefinedFinetunes(fit.definition, workdir) if isinstance(fit, FittedStudy) else fit


def existing_finetunes(study: optuna.Study, definition: AnyDefinition, workdir: Path) -> Finetunes:
    """Where the finetunes of a study are that was fitted here; nothing is trained."""
    if isinstance(definition, StudyDefinition):
        return DefinedFinetunes(definition, workdir)
    check_definition(study, definition.describe())
    check_fitted(workdir)
    return _of_command(definition, workdir)


def check_own_loop(definition: AnyDefinition, **flags: object) -> None:
    """Raise `ValueError` where a flag is given that a program's study has no use of."""
    if isinstance(definition, CommandDefinition):
        for name, value in flags.items():
            if value is not None:
                raise ValueError(
                    f"--{name.replace('_', '-')} is for studies of the own training loop, not for "
                    f"those of a command; leave it out"
                )


def _of_command(definition: CommandDefinition, workdir: Path) -> FittedProgram:
    given = dict(definition.given)
    if not isinstance(given["unit"], str):
        unit = dict(given["unit"])
        lengths = unit.pop("label_tokens", None)
        if lengths is not None:
            lengths = {task: [float(mean)] for task, mean in lengths.items()}
        given["unit"] = WeightUnit(**unit, label_tokens=lengths)
    return from_command(
        tasks=definition.names,
        greater_is_better=definition.greater_is_better,
        score=definition.score,
        constraints=definition.constraints,
        workdir=workdir,
        **given,
    )


def one_thread_if_small(model: nn.Module) -> None:
    """Let torch compute on one thread if the model is small.

    Threads on small matrices wait for each other longer than they compute. Nothing is done where
    `OMP_NUM_THREADS` is set, or where the study's own code has called `torch.set_num_threads`.
    """
    if "OMP_NUM_THREADS" in os.environ or torch.get_num_threads() != _default:
        return
    if sum(parameter.numel() for parameter in model.parameters()) <= SMALL:
        torch.set_num_threads(1)
