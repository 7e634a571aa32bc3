"""Task weights in the words of other trainers: lines for their configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping

from optuna_merge.trainers._units import WeightUnit

Shares = Mapping[str, float]


def mixture_lines(
    weights: Mapping[str, float],
    form: str,
    *,
    label_tokens: Mapping[str, float] | None = None,
    examples: Mapping[str, int] | None = None,
) -> str:
    """Lines that mix the tasks' data by their weights in another trainer.

    Task weights weigh averaged losses. What samples examples is given shares of examples, which
    are other ones where its loss is averaged over label tokens; what takes a part of each data set
    is given parts. Comments say what the lines can't express. Data sets are called as the tasks.

    Args:
        weights: Task weights, on the simplex.
        form: "json", "datasets" (`interleave_datasets`), "llamafactory", "trl" (the YAML of its
            scripts), "axolotl" or "torchtitan".
        label_tokens: By task, mean label tokens of an example; needed where the loss is averaged
            over label tokens, as language models' is in transformers, TRL, axolotl and
            LLaMA-Factory. None: over examples.
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
    if form == "json":
        return json.dumps({"task_weights": dict(weights), "shares_of_examples": shares}, indent=1)
    if form == "torchtitan":
        return _torchtitan(active)
    if form == "trl":
        return _trl(shares, examples)
    if form == "axolotl":
        return _axolotl(_parts(shares, examples, form))
    return (_datasets if form == "datasets" else _llamafactory)(shares)


def _parts(shares: Shares, examples: Mapping[str, int] | None, form: str) -> dict[str, float]:
    """Of each data set the part that is kept: the largest parts with these shares."""
    missing = [task for task in shares if not (examples or {}).get(task, 0) > 0]
    if examples is None or missing:
        raise ValueError(
            f"{form} takes parts of data sets: give the number of training examples of "
            f"{', '.join(missing)}"
        )
    whole = min(examples[task] / share for task, share in shares.items())
    return {task: whole * share / examples[task] for task, share in shares.items()}


def _datasets(shares: Shares) -> str:
    numbers = ", ".join(map(_number, shares.values()))
    return (
        f"interleave_datasets(\n    [{', '.join(shares)}],\n    probabilities=[{numbers}],\n"
        f'    seed=0,\n    stopping_strategy="all_exhausted",  # small data sets are repeated\n)'
    )


def _llamafactory(shares: Shares) -> str:
    numbers = ",".join(map(_number, shares.values()))
    return (
        f"dataset: {','.join(shares)}\n"
        f"mix_strategy: interleave_over\n"
        f"interleave_probs: {numbers}  # as many as an eval_dataset has, if there is one"
    )


def _trl(shares: Shares, examples: Mapping[str, int] | None) -> str:
    notes = ["# Nothing is repeated, and the first rows are taken: shuffle the data sets before."]
    if examples is not None:
        parts = _parts(shares, examples, "trl")
        used = (f"{t} {round(part * examples[t])} of {examples[t]}" for t, part in parts.items())
        notes.append(f"# Rows that are used: {', '.join(used)}.")
    return _data_sets(notes, shares, "fraction")


def _axolotl(parts: Shares) -> str:
    notes = [
        "# For axolotl 0.20 or newer: older ones don't read a weight, and take all rows.",
        "# Nothing is repeated: the data sets are cut to the shares.",
    ]
    return _data_sets(notes, parts, "weight")


def _data_sets(notes: list[str], numbers: Shares, word: str) -> str:
    lines = [*notes, "datasets:"]
    lines += [f"  - path: {task}\n    {word}: {_number(part)}" for task, part in numbers.items()]
    return "\n".join(lines)


def _torchtitan(weights: Shares) -> str:
    numbers = ", ".join(map(_number, weights.values()))
    return (
        f"# Shares of packed tokens are the task weights.\n"
        f"InterleavedDataset([{', '.join(weights)}], weights=[{numbers}])"
    )


def _number(value: float) -> str:
    return f"{value:.4g}"


FORMS = ("json", "datasets", "llamafactory", "trl", "axolotl", "torchtitan")
"""Trainers and libraries whose words are known."""
