"""The task weights that a study has found, in the words of another trainer."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import optuna

from optuna_merge.trainers._mixture_lines import mixture_lines
from optuna_merge.trials import read_study, stored_definition

Numbers = Mapping[str, float]


def study_mixture(
    study: optuna.Study,
    form: str,
    *,
    weights: Numbers | None = None,
    trial: int | None = None,
    label_tokens: Numbers | None = None,
    examples: Mapping[str, int] | None = None,
) -> str:
    """Lines that mix the tasks' data by the weights that a study has found.

    Args:
        study: The study.
        form: Whose words, see `mixture_lines`.
        weights: Task weights; None: those of a trial.
        trial: Number of that trial; None: the best finetune.
        label_tokens: See `mixture_lines`; None: as the study's definition says.
        examples: Likewise.

    Raises:
        ValueError: the study has no best finetune or no such trial, or as `mixture_lines`.
    """
    weights = _weights(study, trial) if weights is None else weights
    known_sizes, known_tokens = _known(study)
    return mixture_lines(
        weights, form, label_tokens=label_tokens or known_tokens, examples=examples or known_sizes
    )


def _weights(study: optuna.Study, trial: int | None) -> Numbers:
    """Task weights of a trial, or of the best finetune."""
    findings = read_study(study)
    if trial is None:
        if findings.best is None:
            raise ValueError(
                "the study has no best finetune (yet, or it has a Pareto front); give --trial"
            )
        return findings.best.weights
    for outcome in findings.outcomes:
        if outcome.trial == trial:
            return outcome.weights
    raise ValueError(f"no trial {trial} with task weights of its own in this study")


def _known(study: optuna.Study) -> tuple[Mapping[str, int] | None, Numbers | None]:
    """Sizes of training data and label tokens, where the study's definition says them."""
    definition: Mapping[str, Any] = stored_definition(study)
    sizes = None
    with suppress(KeyError, TypeError):  # of another kind of study, which has no sizes there
        sizes = {t["name"]: int(t["data"]["train"]["examples"]) for t in definition["tasks"]}
    return sizes, definition.get("weights", {}).get("mean_label_tokens")
