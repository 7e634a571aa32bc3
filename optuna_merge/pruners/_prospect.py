"""What the best weights of a study are expected to gain: by now, and by one more finetune.

A pure function of the study's trials, as promotions are: all workers and readers find the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import optuna

from optuna_merge import surrogate
from optuna_merge.calibration import estimated_gain, finetune_noise
from optuna_merge.trials import SCORE, Findings, History, TrialReader, read_study

FLAT = 0.5
"""A study is flat while all that is expected is less than this share of the noise."""

_MIN_PROMOTED = 2


@dataclass(frozen=True)
class Prospect:
    """What a study is expected to gain, in units of the score; larger is better.

    Attributes:
        gain: Of the best weights so far over uniform ones, shrunken (`estimated_gain`); negative
            where uniform weights are better than all others so far.
        improvement: What the next finetune is expected to be better than the best so far, at the
            preview where that is largest: the expected improvement by the model of the truth.
        noise: Of one finetune.
    """

    gain: float
    improvement: float
    noise: float

    @property
    def is_flat(self) -> bool:
        """Whether gain and improvement together are below half the noise of one finetune."""
        return max(self.gain, 0.0) + self.improvement < FLAT * self.noise

    @property
    def told(self) -> str:
        """What is expected, in words."""
        return (
            f"the best weights are expected to gain {max(self.gain, 0.0):.4f} over uniform ones "
            f"and another finetune {self.improvement:.4f} more; the noise of a finetune is "
            f"{self.noise:.4f}"
        )


def prospect(
    study: optuna.Study, findings: Findings | None = None, aim: surrogate.Aim | None = None
) -> Prospect | None:
    """What the study is expected to gain, or None while too little is known.

    That is until there is a truth more than tasks and uniform weights, and two of promoted
    weights; without uniform weights that satisfy the constraints, without an estimate of the
    noise, and always with several objectives. With constraints it is None, too, unless the `aim`
    has them, and the score: what can't be feasible is nothing to gain. `findings`, where they have
    been read already.
    """
    if len(study.directions) > 1:
        return None
    trials = study.get_trials(deepcopy=False)
    constrained = any(trial.constraints for trial in trials)
    if constrained and (aim is None or aim.constraints is None or aim.score is None):
        return None
    if findings is None:
        try:
            findings = read_study(study)
        except ValueError:  # no trial with task weights yet
            return None
    counts, uniform = findings.counts, findings.uniform
    enough = counts.truths >= len(findings.tasks) + 2 and counts.promoted >= _MIN_PROMOTED
    if not enough or uniform is None or not uniform.feasible:
        return None
    noise = finetune_noise(study, findings)[SCORE]
    gain = estimated_gain(findings, noise)
    if gain is None or noise.std is None:
        return None
    history = TrialReader(findings.tasks).read(study.study_name, trials)
    if constrained and aim is not None:
        improvement = _feasible_improvement(history, aim)
    else:
        improvement = _improvement(history, findings.sign(SCORE))
    return Prospect(gain.expected, improvement, noise.std)


def reason_to_stop(
    study: optuna.Study, when_flat: bool, until: float | None, aim: surrogate.Aim | None = None
) -> str | None:
    """Why a search is to stop: the study is flat, or promises less than a share of the noise."""
    found = prospect(study, aim=aim) if when_flat or until is not None else None
    if found is None:
        return None
    if when_flat and found.is_flat:
        return f"the score is flat: {found.told} (--keep-going searches on)"
    if until is not None and found.improvement < until * found.noise:
        return f"another finetune promises less than {until:g} of the noise: {found.told}"
    return None


def _improvement(history: History, sign: float) -> float:
    """The largest expected improvement of the score among the previewed weights."""
    series = replace(history.score(sign), pending=None)
    if not len(series.preview_weights):
        return 0.0
    model = surrogate.TruthModel.fit(series)
    promise = surrogate.TruthImprovement(model)(series.preview_weights)
    return math.exp(float(promise.max())) * model.scale


def _feasible_improvement(history: History, aim: surrogate.Aim) -> float:
    """The same under constraints: by draws that satisfy them, on the best truth that does."""
    assert aim.score is not None and aim.constraints is not None
    previewed = history.previewed()
    if not len(previewed):
        return 0.0
    metrics = [replace(series, pending=None) for series in aim.metrics(history)]
    model = surrogate.ScoreModel([surrogate.TruthModel.fit(s) for s in metrics], aim.score)
    seen, draws = model.means(model.truth_weights), model.metric_draws(previewed)
    able = (aim.constraints(seen) <= 0).all(axis=-1)
    if not able.any():  # nothing is known to be improved on
        return math.inf
    sign = aim.signs[0]
    best = (sign * model.score(seen))[able].max()
    gains = np.maximum(sign * model.score(draws) - best, 0.0)
    return float((gains * (aim.constraints(draws) <= 0).all(axis=-1)).mean(axis=0).max())
