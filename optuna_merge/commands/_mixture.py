"""Found task weights in the words of another trainer, for `optuna-merge export --mixture`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from optuna_merge.commands._existing import existing_study
from optuna_merge.commands._flags import StudyFlags
from optuna_merge.commands._numbers import numbers_by_task

if TYPE_CHECKING:
    import optuna

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
    from optuna_merge.trainers import mixture_lines

    sizes: Numbers | None = None
    tokens: Numbers | None = None
    chosen: Numbers
    if examples is not None:
        sizes = numbers_by_task(examples, "--examples")
    if label_tokens is not None:
        tokens = numbers_by_task(label_tokens, "--label-tokens")
    if weights is not None:
        chosen = {task: weight / sum(weights.values()) for task, weight in weights.items()}
    else:
        study = existing_study(where)
        chosen = _weights(study, trial)
        known_sizes, known_tokens = _known(study)
        sizes, tokens = sizes or known_sizes, tokens or known_tokens
    whole = None if sizes is None else {task: int(number) for task, number in sizes.items()}
    return mixture_lines(chosen, form, label_tokens=tokens, examples=whole)


def _weights(study: optuna.Study, trial: int | None) -> Numbers:
    """Task weights of a trial, or of the best finetune."""
    from optuna_merge.trials import read_study

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


def _known(study: optuna.Study) -> tuple[Numbers | None, Numbers | None]:
    """Sizes of training data and label tokens, where the study's definition says them."""
    from optuna_merge.trials import stored_definition

    definition: Mapping[str, Any] = stored_definition(study)
    sizes = None
    with suppress(KeyError, TypeError):  # of another kind of study, which has no sizes there
        sizes = {t["name"]: int(t["data"]["train"]["examples"]) for t in definition["tasks"]}
    return sizes, definition.get("weights", {}).get("mean_label_tokens")
