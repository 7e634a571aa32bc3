"""A workbench of two tasks whose metrics are known functions of the general set's share."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna

import optuna_merge as om
from optuna_merge.fitting import Measured, Report, anchor_weights
from optuna_merge.goals import Goal, Limits, make_constraints, make_score
from optuna_merge.tasks import Measurement

NOISE = 0.003
KEEP = 0.95
ANSWER = 0.013 / 0.055
"""The share at which `general` is 0.95 of what it is alone; `own` falls with the share."""


def own(share: float) -> float:
    return 0.9 * (1 - math.exp(-(1 - share) / 0.3))


def general(share: float) -> float:
    return 0.5 + 0.315 * share / (share + 0.05)


class SharesBench:
    """Of "own" and "general"; previews are too low between the ends, and exact at uniform weights.

    Args:
        score: The score's name.
        keep: What the general metric must keep; None: no constraint.
        losses: Whether the metrics are one over the functions, and to be minimised.
    """

    names = ("own", "general")
    steps = 10
    costs: Mapping[str, float] = {"task_run_seconds": 20.0}
    reference_point: Mapping[str, float] = {}
    anchors = anchor_weights(names, uniform=True)

    def __init__(
        self, score: str = "target:own", keep: float | None = KEEP, *, losses: bool = False
    ) -> None:
        self.losses = losses
        senses = dict.fromkeys(self.names, not losses)
        alone = {task: self._metrics(float(task == "general"))[task] for task in self.names}
        limits = None
        if keep is not None:
            constraints = make_constraints([om.Constraint("general", of_alone=keep)], self.names)
            limits = Limits.of(constraints, alone, senses)
        self.goal = Goal(
            make_score(score, self.names, greater_is_better=not losses), senses, alone, limits
        )
        self.parts: Mapping[str, Any] = {"score": score, "finetuning": {"steps": self.steps}}
        self.fingerprint = f"{score}, {keep}, {losses}"

    def _metrics(self, share: float, lower: float = 0.0) -> dict[str, float]:
        found = {"own": own(share) - lower, "general": general(share) - lower}
        found = {task: max(value, 0.05) for task, value in found.items()}
        return {task: 1 / value for task, value in found.items()} if self.losses else found

    def _noise(self, share: float, repeat: int) -> np.ndarray:
        """Of a finetune: both metrics' errors."""
        seed = zlib.crc32(repr((round(share, 9), repeat)).encode())
        return np.random.default_rng(seed).normal(scale=NOISE, size=2)

    def preview(self, weights: Mapping[str, float]) -> Measured:
        share = weights["general"]
        metrics = self._metrics(share, 0.6 * abs(share * (1 - share) * (0.5 - share)))
        return Measured({t: Measurement(v, 0.002) for t, v in metrics.items()}, 1.0)

    def finetune(
        self,
        weights: Mapping[str, float],
        report: Report,
        *,
        repeat: int = 0,
        title: str | None = None,
    ) -> Measured:
        share = weights["general"]
        noise = self._noise(share, repeat)
        found = {t: v + float(e) for (t, v), e in zip(self._metrics(share).items(), noise)}
        report(self.steps, found)
        return Measured({t: Measurement(v, 0.005) for t, v in found.items()}, 10.0)


def searched(
    bench: Any, n_trials: int = 24, max_promotions: int | None = 4, **options: Any
) -> optuna.Study:
    """A search of it that has ended."""
    study = om.open_search(bench, "shares", max_promotions=max_promotions, seed=0, **options)
    objective = om.Objective(bench, progress=False)
    study.optimize(objective, n_trials=n_trials)
    while study.get_trials(states=[optuna.trial.TrialState.WAITING], deepcopy=False):
        study.optimize(objective, n_trials=1)
    return study
