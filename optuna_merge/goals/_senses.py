"""Whether a metric is to be maximised: by its name, and by what the task runs have reached."""

from __future__ import annotations

import re
from collections.abc import Mapping

LOWER_IS_BETTER = (
    "loss",
    "perplexity",
    "ppl",
    "error",
    "mse",
    "rmse",
    "mae",
    "mape",
    "wer",
    "cer",
    "ter",
)
"""Last words of the names of metrics that are to be minimised."""


def is_to_be_maximised(metric: str, said: bool | None = None) -> bool:
    """Whether a metric is to be maximised.

    Args:
        metric: Its key, such as "eval_{task}_loss".
        said: What the user says; None: it goes by the last word of the key.

    Examples:
        >>> is_to_be_maximised("eval_{task}_accuracy"), is_to_be_maximised("eval_{task}_wer")
        (True, False)
    """
    if said is not None:
        return said
    words = re.findall("[a-z]+", metric.replace("{task}", "").lower())
    return not words or words[-1] not in LOWER_IS_BETTER


def doubtful_sense(
    runs: Mapping[str, Mapping[str, float]], greater_is_better: Mapping[str, bool]
) -> str | None:
    """What is to be said where every task's own run is the worst at its task.

    Args:
        runs: By task the metrics, by task, of its own run.
        greater_is_better: By task, whether its metric is to be maximised.

    Returns:
        None where some task's own run is no worse than another's, and with one task.

    Examples:
        >>> runs = {"math": {"math": 0.2, "chat": 0.9}, "chat": {"math": 0.7, "chat": 0.3}}
        >>> doubtful_sense(runs, {"math": False, "chat": False}) is None
        True
        >>> str(doubtful_sense(runs, {"math": True, "chat": True}))[:44]
        "every task's own run is worse at its task th"
    """
    for task, mine in runs.items():
        sign = 1.0 if greater_is_better[task] else -1.0
        others = [sign * of[task] for other, of in runs.items() if other != task]
        if not others or not sign * mine[task] < min(others):
            return None
    wanted = " and ".join(
        f"{'maximised' if up else 'minimised'}" for up in sorted(set(greater_is_better.values()))
    )
    return (
        f"every task's own run is worse at its task than the runs of all other tasks, by metrics "
        f"that are {wanted}: if that is the wrong way round, say greater_is_better of the metric; "
        f"else the finetunes have learnt nothing"
    )
