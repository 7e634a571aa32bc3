"""How far one finetune may lie from what finetunes at its weights give on average.

Finetunes at equal weights, with several seeds, tell it; but a study has one pair of them or a few,
and a standard deviation from a single pair is nearly a guess. So it is pooled with a weak prior,
as in a scaled inverse chi-squared posterior:

    noise² = (3 · 0.4 · e² + S) / (3 + d)

with S the squares of the repeats about their means, d their degrees of freedom, and e the sampling
error of the metric on the validation data. All finetunes are measured on the same examples, so
what two seeds differ by is mostly less than that error: on the tasks of the studies here noise² is
0.4 e² in the middle, and its logarithm varies by one, as 3 degrees of freedom say
(`studies/noise.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import optuna

from optuna_merge.goals import make_score
from optuna_merge.trials import SCORE, Findings, Repeats, stored_definition

PRIOR_FREEDOM = 3.0
"""Degrees of freedom of the prior of the noise."""
PRIOR_SHARE = 0.4
"""The share of the sampling variance that the prior takes as the variance of the noise."""

_DRAWS = 2000
_RELATIVE = "relative"  # stands in the names of scores that are relative to the tasks alone


@dataclass(frozen=True)
class Noise:
    """The noise of one finetune's truth, which predictions of the mean don't include.

    Attributes:
        std: Its standard deviation, in the unit of the truth; None: nothing estimates it.
        source: What it is taken from: finetunes that were repeated (with the sampling error of
            the validation data as a weak prior, where that is known), that error alone, or
            nothing.
        repeated: Weightings that were finetuned more than once.
        freedom: Degrees of freedom of the estimate, those of the prior included.
    """

    std: float | None
    source: Literal["repeats", "sampling", "unknown"]
    repeated: int = 0
    freedom: float = PRIOR_FREEDOM

    @property
    def told(self) -> str:
        """The noise and where it is from, in words."""
        number = "" if self.std is None else f"± {self.std:.4f}, "
        if self.source == "repeats":
            what = "weighting that was" if self.repeated == 1 else "weightings that were"
            return f"{number}from {self.repeated} {what} finetuned more than once"
        what = "not known"
        if self.source == "sampling":
            what = (
                f"guessed as {math.sqrt(PRIOR_SHARE):.2f} of the validation data's sampling error"
            )
        return f"{number}{what}, no weighting was finetuned twice"

    def as_json(self) -> dict[str, Any]:
        """As JSON values, with the words."""
        return {**asdict(self), "told": self.told}


def finetune_noise(study: optuna.Study, findings: Findings) -> dict[str | None, Noise]:
    """The noise of one finetune: of the score (`SCORE`), if there is one, and of each task.

    Args:
        study: The study.
        findings: What its trials say.
    """
    return {quantity: _noise(study, findings, quantity) for quantity in findings.quantities}


def _noise(study: optuna.Study, findings: Findings, quantity: str | None) -> Noise:
    squares, freedom, repeated = pooled_squares(findings.weightings, quantity)
    error = _sampling_error(study, findings, quantity)
    if error is None:
        if not squares > 0:  # repeats that tie don't say that there is no noise
            return Noise(None, "unknown", repeated)
        return Noise(math.sqrt(squares / freedom), "repeats", repeated, freedom)
    prior = PRIOR_FREEDOM * PRIOR_SHARE * error**2
    total = PRIOR_FREEDOM + freedom
    source: Literal["repeats", "sampling"] = "repeats" if repeated else "sampling"
    return Noise(math.sqrt((prior + squares) / total), source, repeated, total)


def pooled_squares(weightings: Iterable[Repeats], quantity: str | None) -> tuple[float, int, int]:
    """Squares of repeats about their means, degrees of freedom, and of how many weightings."""
    several = [np.array(v) for of in weightings if len(v := of.values(quantity)) > 1]
    squares = sum(float(np.square(of - of.mean()).sum()) for of in several)
    return squares, sum(len(of) - 1 for of in several), len(several)


def _sampling_error(study: optuna.Study, findings: Findings, quantity: str | None) -> float | None:
    """Standard error of the quantity over validation examples, at the truths where it is known."""
    if quantity is SCORE:
        return _sampling_error_of_score(study, findings)
    for outcomes in (findings.truths, findings.outcomes):
        errors = [o.standard_errors[quantity] for o in outcomes]
        known = [e for e in errors if e is not None]
        if known:
            return float(np.sqrt(np.mean(np.square(known)))) or None
    return None


def _sampling_error_of_score(study: optuna.Study, findings: Findings) -> float | None:
    """What the metrics' standard errors make of the score's, by draws around the truths.

    None for a score that is the user's function, and where a metric has no standard error.
    """
    each = [_sampling_error(study, findings, task) for task in findings.tasks]
    try:
        name, upwards = str(stored_definition(study).get("score")), findings.sign(SCORE) > 0
        score = make_score(name, findings.tasks, greater_is_better=upwards)
    except ValueError:
        return None
    known = [t for o in findings.truths if None not in (t := list(o.truths.values()))]
    alone = {name: of.truths[name] for name, of in findings.alone.items()}
    lacking = len(alone) < len(findings.tasks) or None in alone.values()
    if None in each or not known or (_RELATIVE in score.name and lacking):
        return None
    drawn = np.random.default_rng(0).normal(size=(_DRAWS, len(each))) * np.array(each)
    around = np.array(known, dtype=float)[:, None, :] + drawn
    names = {name: alone.get(name) or 1.0 for name in findings.tasks}
    variances = score.over(around, names).var(axis=1)
    return float(np.sqrt(variances.mean())) or None
