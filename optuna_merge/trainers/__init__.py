"""Your own trainer: finetunes by transformers' Trainer or by a command, as a study's workbench."""

from __future__ import annotations

from optuna_merge.trainers._fitted import FittedProgram, Wanted, fit_program
from optuna_merge.trainers._from_command import from_command
from optuna_merge.trainers._from_trainer import from_trainer
from optuna_merge.trainers._mixture_lines import FORMS as FORMS, mixture_lines, study_mixture
from optuna_merge.trainers._posteriors import Evaluated, Resident, make_previews
from optuna_merge.trainers._program import AdoptingProgram, Previews, Program, Run
from optuna_merge.trainers._units import WeightUnit

__all__ = [
    "AdoptingProgram",
    "Evaluated",
    "FittedProgram",
    "Previews",
    "Program",
    "Resident",
    "Run",
    "Wanted",
    "WeightUnit",
    "fit_program",
    "from_command",
    "from_trainer",
    "make_previews",
    "mixture_lines",
    "study_mixture",
]
