"""Found task weights in the words of another trainer, for `optuna-merge export --mixture`."""

from __future__ import annotations

import math
from collections.abc import Mapping

from optuna_merge.commands._existing import existing_study
from optuna_merge.commands._flags import StudyFlags
from optuna_merge.commands._numbers import numbers_by_task

Numbers = Mapping[str, float]


def mixture(
    form: str,
    where: StudyFlags,
    trial: int | None,
    weights: Numbers | None,
    examples: str | None,
    label_tokens: str | None,
) -> str:
    """Lines for another trainer's configuration.

    Args:
        form: Whose words.
        where: The study.
        trial: Number of a trial; None: the best finetune.
        weights: Task weights; None: those of the study, which is not looked at otherwise.
        examples: Sizes of the training data, as a flag; None: as the study knows them.
        label_tokens: Mean label tokens of an example, likewise.
    """
    from optuna_merge.trainers import mixture_lines, study_mixture

    sizes: Mapping[str, int] | None = None
    tokens: Numbers | None = None
    if examples is not None:
        given = numbers_by_task(examples, "--examples")
        sizes = {task: int(number) for task, number in given.items()}
    if label_tokens is not None:
        tokens = numbers_by_task(label_tokens, "--label-tokens")
    if weights is not None:
        if min(weights.values()) < 0 or not 0 < sum(weights.values()) < math.inf:
            shown = ", ".join(f"{task} {weight:g}" for task, weight in weights.items())
            raise ValueError(f"--weights are {shown}; expected numbers of 0 or more, not all 0")
        chosen = {task: weight / sum(weights.values()) for task, weight in weights.items()}
        return mixture_lines(chosen, form, label_tokens=tokens, examples=sizes)
    study = existing_study(where)
    return study_mixture(study, form, trial=trial, label_tokens=tokens, examples=sizes)
