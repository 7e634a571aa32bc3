"""How far one finetune may lie from what finetunes at its weights give on average."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import optuna

from optuna_merge.goals import make_score
from optuna_merge.surrogate import TruthModel, truth_noise
from optuna_merge.trials import DEFINITION, SCORE, Findings, Outcome, TrialReader

Models = Mapping[str | None, TruthModel | None]
"""Of the score (`SCORE`), where there is one, and by task; None where nothing is known."""

_DIGITS = 9  # decimals by which weights are told apart
_DRAWS = 2000
_TOLD = {
    "model": "the model's estimate",
    "sampling": "sampling error of the validation data",
    "unknown": "not known",
}
_RELATIVE = "relative"  # stands in the names of scores that are relative to the tasks alone


@dataclass(frozen=True)
class Noise:
    """The noise of one finetune's truth, which predictions of the mean do not have in them.

    Attributes:
        std: Its standard deviation, in the unit of the truth; None: nothing estimates it.
        source: What it is taken from: finetunes that were repeated, the model of the truths, the
            sampling error of the validation data, or nothing.
        repeated: Weightings that were finetuned more than once.
    """

    std: float | None
    source: Literal["repeats", "model", "sampling", "unknown"]
    repeated: int = 0

    @property
    def told(self) -> str:
        """The noise and where it is from, in words."""
        number = "" if self.std is None else f"± {self.std:.4f}, "
        if self.source == "repeats":
            what = "weighting that was" if self.repeated == 1 else "weightings that were"
            return f"{number}from {self.repeated} {what} finetuned more than once"
        return f"{number}{_TOLD[self.source]}, no weighting was finetuned twice"

    def as_json(self) -> dict[str, Any]:
        """As JSON values, with the words."""
        return {**asdict(self), "told": self.told}


def truth_models(study: optuna.Study, findings: Findings) -> Models:
    """The posteriors of the score and of each task's metric, from all previews and truths."""
    trials = study.get_trials(deepcopy=False)
    history = TrialReader(findings.tasks).read(study.study_name, trials)
    models: dict[str | None, TruthModel | None] = {}
    for quantity in findings.quantities:
        sign = findings.sign(quantity)
        if quantity is SCORE:
            series = history.score(sign)
        else:
            series = history.metric(findings.tasks.index(quantity), sign)
        known = len(series.previews) + len(series.truths)
        models[quantity] = TruthModel.fit(replace(series, pending=None)) if known else None
    return models


def finetune_noise(
    study: optuna.Study, findings: Findings, models: Models
) -> dict[str | None, Noise]:
    """The noise of one finetune, of the score and of each task's metric.

    Weightings that were finetuned more than once tell it. Without any it is the larger one of two
    that are less: what the model of the truths takes for noise, and the sampling error of the
    metric on validation data, of which the previews have it.

    Args:
        study: The study.
        findings: What its trials say.
        models: From `truth_models`.
    """
    found = {}
    for quantity, model in models.items():
        std, repeated = _of_repeats(findings.truths, quantity)
        modelled = None if model is None else truth_noise(model)
        sampling = _sampling_error(study, findings, quantity)
        if std is not None:
            found[quantity] = Noise(std, "repeats", repeated)
        elif modelled is not None and modelled >= (sampling or 0.0):
            found[quantity] = Noise(modelled, "model")
        else:
            found[quantity] = Noise(sampling, "unknown" if sampling is None else "sampling")
    return found


def _of_repeats(truths: Sequence[Outcome], quantity: str | None) -> tuple[float | None, int]:
    """The pooled standard deviation of finetunes at equal weights, and of how many weightings.

    None without any, and where they agree to the last bit: then it was one run, done again.
    """
    groups: dict[tuple[float, ...], list[float]] = defaultdict(list)
    for outcome in truths:
        value = outcome.found(quantity)
        if not outcome.reused and value is not None:
            groups[tuple(round(w, _DIGITS) for w in outcome.weights.values())].append(value)
    several = [np.array(of) for of in groups.values() if len(of) > 1]
    squares = sum(float(np.square(of - of.mean()).sum()) for of in several)
    if not squares > 0:
        return None, 0
    return math.sqrt(squares / sum(len(of) - 1 for of in several)), len(several)


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

    The tasks' examples are taken to be drawn apart. None for a score that is a function of the
    user's, which the study does not have, and where a metric has no standard error.
    """
    parts: dict[str, Any] = json.loads(study.user_attrs.get(DEFINITION, "{}"))
    each = [_sampling_error(study, findings, task) for task in findings.tasks]
    try:
        score = make_score(
            str(parts.get("score")), findings.tasks, greater_is_better=findings.sign(SCORE) > 0
        )
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
