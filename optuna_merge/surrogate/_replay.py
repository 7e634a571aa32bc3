"""How much replay: what own data and a general set are worth at every share of the latter."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import optuna
from scipy.special import ndtr, ndtri

from optuna_merge.calibration import Noise, finetune_noise
from optuna_merge.goals import Constraint
from optuna_merge.surrogate._of_study import Models, truth_models
from optuna_merge.trials import Findings, read_study

Array = npt.NDArray[np.float64]
Expected = tuple[Array, Array, Noise]
"""Of a metric the expected value and its error at each share, and the noise of a finetune."""

COVERED = 0.9
"""Probability that the intervals cover, and that the cautious share keeps the bound with."""
_SHARES = np.linspace(0.0, 1.0, 101)  # of the curve
_ROUNDING = 1e-12
_CLOSE = 0.5  # shares of a finetune's noise by which the own metric may be worse, to be as good


@dataclass(frozen=True)
class MetricCurve:
    """One task's true metric over the share of the general set.

    Attributes:
        task: The task's name.
        greater_is_better: Whether larger is better.
        mean: The expected metric at each share.
        low: Lower end of its 90 % interval, without the noise of a finetune.
        high: Upper end.
        noise: Of one finetune's metric.
    """

    task: str
    greater_is_better: bool
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    noise: Noise


@dataclass(frozen=True)
class Share:
    """What is expected at one share of the general set; errors without a finetune's noise.

    Attributes:
        share: Task weight of the general set.
        own: Own metric.
        own_std: Its standard deviation.
        general: General metric.
        general_std: Its standard deviation.
        chance: Probability that a finetune's general metric keeps the bound, its noise included.
    """

    share: float
    own: float
    own_std: float
    general: float
    general_std: float
    chance: float


@dataclass(frozen=True)
class FinetunedShare:
    """A share that was really finetuned, by the means over its seeds.

    Attributes:
        share: Task weight of the general set.
        trial: Number of the first of its trials.
        name: Of a baseline, or None.
        seeds: How many finetunes the means are of.
        own: Own metric.
        general: General metric.
        keeps: Whether the general metric keeps the bound.
    """

    share: float
    trial: int
    name: str | None
    seeds: int
    own: float
    general: float
    keeps: bool


@dataclass(frozen=True)
class Replay:
    """The answer to "how much replay?".

    Attributes:
        keep: Share of the general set's metric that is to be kept.
        alone: The general metric of the finetune on the general set alone.
        bound: What the general metric must reach: `keep` times `alone`, or of a metric that is to
            be minimised at most `alone / keep`.
        shares: Of the curves, from 0 to 1.
        own: Curve of the own data's metric.
        general: Curve of the general set's.
        best: The share with the best expected own metric where the expected general metric keeps
            the bound; None: no share is expected to.
        close: The smallest and the largest share around the best one of which the expected own
            metric is worse by at most half the noise of a finetune, the bound kept.
        cautious: As `best`, where one finetune keeps the bound with a probability of .9.
        finetuned: All that were finetuned, by rising share.
        finetuned_best: The best of those that keep the bound.
    """

    keep: float
    alone: float
    bound: float
    shares: tuple[float, ...]
    own: MetricCurve
    general: MetricCurve
    best: Share | None
    close: tuple[float, float] | None
    cautious: Share | None
    finetuned: tuple[FinetunedShare, ...]
    finetuned_best: FinetunedShare | None


def replay(study: optuna.Study, general: str, keep: float = 0.95) -> Replay:
    """Read from a study of two tasks how much of the general set is best.

    Curves are the posteriors of the truth, by all previews and finetunes so far, whatever the
    study's score.

    Args:
        study: A study of two tasks: own data, and the general set that is replayed.
        general: The general task's name.
        keep: The share of the general metric that must be kept: of what the finetune on the
            general set alone reaches.

    Raises:
        ValueError: not two tasks, no such task, `keep` outside of (0, 1], or the general set has
            not been finetuned alone yet, or with a metric that isn't above zero.
    """
    return replays(study, general, [keep])[0]


def replays(
    study: optuna.Study, general: str, keeps: Sequence[float], models: Models | None = None
) -> list[Replay]:
    """The same at several bounds, from one pair of curves, or of `models` that are there already.

    Raises:
        ValueError: as `replay`.
    """
    findings = read_study(study)
    own = own_task(findings.tasks, general)
    constraints = [keeping(general, keep) for keep in keeps]
    alone = _alone(findings, general)
    noise = finetune_noise(study, findings)
    models = truth_models(study, findings, findings.tasks) if models is None else models
    weights = np.stack([1 - _SHARES, _SHARES], 1)
    if findings.tasks[0] == general:
        weights = weights[:, ::-1]
    curves: dict[str, Expected] = {}
    for task in (own, general):
        model = models[task]
        if model is None:
            raise ValueError(f"nothing is known of task {task!r} in this study yet")
        curves[task] = (*model.predict(weights), noise[task])
    return [_answer(findings, curves[own], curves[general], of, alone) for of in constraints]


def _answer(
    findings: Findings, own: Expected, general: Expected, constraint: Constraint, alone: float
) -> Replay:
    """What the curves say under one constraint."""
    names = (own_task(findings.tasks, constraint.task), constraint.task)
    upwards, sign = [findings.maximize[task] for task in names], findings.sign(names[0])
    sense, bound = constraint.limit({constraint.task: alone}, greater_is_better=upwards[1])
    mean, std, noise = general
    spread = np.sqrt(np.square(std) + (noise.std or 0.0) ** 2)
    chances = ndtr(sense * (mean - bound) / np.maximum(spread, 1e-12))
    rows = np.stack([_SHARES, *own[:2], mean, std, chances], axis=1).tolist()
    points = [Share(*row) for row in rows]
    able = sense * (mean - bound) >= -_ROUNDING
    best = _best(points, able, sign)
    allowed = _CLOSE * (own[2].std or 0.0)
    finetuned = tuple(sorted(_finetuned(findings, *names, sense, bound), key=lambda of: of.share))
    kept = [of for of in finetuned if of.keeps]
    assert constraint.of_alone is not None
    return Replay(
        keep=constraint.of_alone,
        alone=alone,
        bound=bound,
        shares=tuple(_SHARES.tolist()),
        own=_curve(names[0], upwards[0], *own),
        general=_curve(names[1], upwards[1], *general),
        best=best,
        close=None if best is None else _close(points, able, best, sign, allowed),
        cautious=_best(points, chances - COVERED >= -_ROUNDING, sign),
        finetuned=finetuned,
        finetuned_best=max(kept, key=lambda of: (sign * of.own, -of.trial), default=None),
    )


def own_task(tasks: Sequence[str], general: str) -> str:
    """The other one of two tasks.

    Raises:
        ValueError: there are not two, or none is called so.
    """
    if general not in tasks:
        raise ValueError(f"no task {general!r} among {list(tasks)}; which is the general set?")
    if len(tasks) != 2:
        raise ValueError(
            f"how much replay is a question of two tasks, own data and a general set, and here "
            f"are {len(tasks)}: {', '.join(tasks)}; put the own data together as one task, or "
            f"search the weights of all by optimize"
        )
    return next(task for task in tasks if task != general)


def keeping(general: str, keep: float) -> Constraint:
    """The constraint that the general metric is kept.

    Raises:
        ValueError: `keep` is outside of (0, 1].
    """
    if not 0 < keep <= 1:
        raise ValueError(
            f"keep is {keep:g}; expected the share of the metric of {general} that is to be kept, "
            f"above 0 and at most 1, such as 0.95"
        )
    return Constraint(general, of_alone=keep)


def _alone(findings: Findings, general: str) -> float:
    outcome = findings.alone.get(general)
    value = None if outcome is None else findings.repeats(outcome).mean(general)
    if value is None:
        raise ValueError(
            f"the general set {general!r} has not been finetuned alone in this study yet, and "
            f"what is to be kept is a share of that; let the study run on"
        )
    return value


def _curve(task: str, upwards: bool, mean: Array, std: Array, noise: Noise) -> MetricCurve:
    reach = float(ndtri(0.5 + COVERED / 2)) * std
    middle, low, high = (tuple(of.tolist()) for of in (mean, mean - reach, mean + reach))
    return MetricCurve(task, upwards, middle, low, high, noise)


def _best(points: Sequence[Share], able: npt.NDArray[np.bool_], sign: float) -> Share | None:
    """Of equals that with the larger general share."""
    kept = [point for point, good in zip(points, able) if good]
    return max(kept, key=lambda of: (sign * of.own, of.share), default=None)


def _close(
    points: Sequence[Share], able: npt.NDArray[np.bool_], best: Share, sign: float, allowed: float
) -> tuple[float, float]:
    """Ends of the unbroken range around the best share that is as good."""
    good = [ok and sign * (best.own - of.own) <= allowed for ok, of in zip(able, points)]
    low = high = points.index(best)
    while low > 0 and good[low - 1]:
        low -= 1
    while high + 1 < len(points) and good[high + 1]:
        high += 1
    return points[low].share, points[high].share


def _finetuned(
    findings: Findings, own: str, general: str, sense: float, bound: float
) -> Iterator[FinetunedShare]:
    for of in findings.weightings:
        mine, theirs = of.mean(own), of.mean(general)
        if mine is not None and theirs is not None and math.isfinite(mine + theirs):
            share, keeps = of.first.weights[general], sense * (theirs - bound) >= -_ROUNDING
            seeds = len(of.finetunes)
            yield FinetunedShare(
                share, of.first.trial, of.first.name, seeds, mine, theirs, bool(keeps)
            )
