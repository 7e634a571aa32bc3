"""Task weights in the words of other trainers: lines for their configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import optuna

from optuna_merge.trainers._units import WeightUnit
from optuna_merge.trials import read_study, stored_definition

Numbers = Mapping[str, float]
"""By task."""

_OF_AXOLOTL = (
    "# For axolotl 0.20 or newer: older ones don't read a weight, and take all rows.",
    "# Nothing is repeated: the data sets are cut to the shares.",
)


def mixture_lines(
    weights: Numbers,
    form: str,
    *,
    label_tokens: Numbers | None = None,
    examples: Mapping[str, int] | None = None,
) -> str:
    """Lines that mix the tasks' data by their weights in another trainer.

    What samples examples is given shares of examples, which are other ones than the task weights
    where its loss is averaged over label tokens; what takes a part of each data set is given
    parts. Comments say what the lines can't express. Data sets are called as the tasks.

    Args:
        weights: Task weights, on the simplex.
        form: "json", "datasets" (`interleave_datasets`), "llamafactory", "trl" (the YAML of its
            scripts), "axolotl" or "torchtitan".
        label_tokens: By task, mean label tokens of an example; needed where the loss is averaged
            over label tokens, as language models' is. None: over examples.
        examples: By task, the size of its training data; needed for "axolotl", and told of by
            "trl": how many rows are used, since nothing is repeated there.

    Raises:
        ValueError: an unknown form, or sizes or label tokens of a task that are missing.

    Examples:
        >>> print(mixture_lines({"math": 0.25, "chat": 0.75}, "llamafactory"))
        dataset: math,chat
        mix_strategy: interleave_over
        interleave_probs: 0.25,0.75  # as many as an eval_dataset has, if there is one
    """
    if form not in FORMS:
        raise ValueError(f"mixture {form!r} is not known; expected one of {', '.join(FORMS)}")
    active = {task: weight for task, weight in weights.items() if weight > 0}
    if not active:
        raise ValueError("no task has a weight above zero")
    of_tokens = None if label_tokens is None else {t: [n] for t, n in label_tokens.items()}
    shares = WeightUnit("examples", of_tokens).converted(active)
    numbers = [f"{share:.4g}" for share in shares.values()]
    if form == "json":
        return json.dumps({"task_weights": dict(weights), "shares_of_examples": shares}, indent=1)
    if form == "trl":
        return _trl(shares, examples)
    if form == "axolotl":
        return _data_sets(_OF_AXOLOTL, _parts(shares, examples, form), "weight")
    if form == "torchtitan":
        given = ", ".join(f"{weight:.4g}" for weight in active.values())
        return (
            f"# Shares of packed tokens are the task weights.\n"
            f"InterleavedDataset([{', '.join(active)}], weights=[{given}])"
        )
    if form == "datasets":
        return (
            f"interleave_datasets(\n    [{', '.join(shares)}],\n"
            f"    probabilities=[{', '.join(numbers)}],\n    seed=0,\n"
            f'    stopping_strategy="all_exhausted",  # small data sets are repeated\n)'
        )
    return (
        f"dataset: {','.join(shares)}\nmix_strategy: interleave_over\n"
        f"interleave_probs: {','.join(numbers)}  # as many as an eval_dataset has, if there is one"
    )


def _parts(shares: Numbers, examples: Mapping[str, int] | None, form: str) -> dict[str, float]:
    """Of each data set the part that is kept: the largest parts with these shares."""
    missing = [task for task in shares if not (examples or {}).get(task, 0) > 0]
    if examples is None or missing:
        raise ValueError(
            f"{form} takes parts of data sets: give the number of training examples of "
            f"{', '.join(missing)}"
        )
    whole = min(examples[task] / share for task, share in shares.items())
    return {task: whole * share / examples[task] for task, share in shares.items()}


def _trl(shares: Numbers, examples: Mapping[str, int] | None) -> str:
    notes = ["# Nothing is repeated, and the first rows are taken: shuffle the data sets before."]
    if examples is not None:
        parts = _parts(shares, examples, "trl")
        used = (f"{t} {round(part * examples[t])} of {examples[t]}" for t, part in parts.items())
        notes.append(f"# Rows that are used: {', '.join(used)}.")
    return _data_sets(notes, shares, "fraction")


def _data_sets(notes: Sequence[str], numbers: Numbers, word: str) -> str:
    lines = [*notes, "datasets:"]
    lines += [f"  - path: {task}\n    {word}: {part:.4g}" for task, part in numbers.items()]
    return "\n".join(lines)


FORMS = ("json", "datasets", "llamafactory", "trl", "axolotl", "torchtitan")
"""Trainers and libraries whose words are known."""


def study_mixture(
    study: optuna.Study,
    form: str,
    *,
    weights: Numbers | None = None,
    trial: int | None = None,
    label_tokens: Numbers | None = None,
    examples: Mapping[str, int] | None = None,
) -> str:
    """Lines that mix the tasks' data by the weights that a study has found; see `mixture_lines`.

    Args:
        study: The study.
        form: Whose words.
        weights: Task weights; None: those of a trial.
        trial: Number of that trial; None: the best finetune.
        label_tokens: None: as the study's definition says.
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
