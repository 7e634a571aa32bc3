"""Any Optuna sampler, shown previews as if they were values."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from optuna_merge._optuna import study_view
from optuna_merge.samplers._history import TrialReader
from optuna_merge.weights import check_tasks

_MIN_TRUTHS = 2
"""With fewer truths the previews stand as they are."""

_MAX_VIEWS = 64


class PreviewAware(BaseSampler):
    """A stock sampler that learns from previews.

    Most of Optuna's samplers see values only, and those that look at pruned trials take what was
    reported last for a value on the way. The wrapped sampler is shown the study with its previews
    as COMPLETE trials: the value of one that was pruned is the truth that the models of
    `PreviewSampler` expect at its weights, from all previews and truths so far (before there are
    two truths: the preview itself). Of weights that are finetuned only the truth is shown. Nothing
    of this is written anywhere.

    For samplers that are to be compared with `PreviewSampler`, or that search other parameters
    beside the task weights: it is no better than they are, and `PreviewSampler` knows more of
    where a truth is worth its cost.

    Args:
        sampler: The sampler to wrap.
        tasks: Task names, in order.

    Raises:
        TypeError: `sampler` is no Optuna sampler.
        ValueError: No task, empty or repeated names; in a trial, a study of several objectives.

    Examples:
        >>> import optuna
        >>> sampler = PreviewAware(optuna.samplers.TPESampler(seed=0), ["reviews", "topics"])
    """

    def __init__(self, sampler: BaseSampler, tasks: Sequence[str]) -> None:
        if not isinstance(sampler, BaseSampler):
            raise TypeError(f"sampler is {type(sampler).__name__}, expected an Optuna sampler")
        self._sampler = sampler
        self._tasks = check_tasks(tasks)
        self._reader = TrialReader(self._tasks)
        self._views: dict[tuple[str, int], Study] = {}  # of the trials that are being sampled

    def reseed_rng(self) -> None:
        self._sampler.reseed_rng()

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        if len(study.directions) > 1:
            raise ValueError(
                "PreviewAware works in studies of one objective; use PreviewSampler in those of "
                "several"
            )
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._sampler.infer_relative_search_space(self._view(study, trial), trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler.sample_relative(self._view(study, trial), trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self._sampler.sample_independent(
            self._view(study, trial), trial, param_name, param_distribution
        )

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        self._views.pop((study.study_name, trial.number), None)
        self._sampler.after_trial(study, trial, state, values)

    def _view(self, study: Study, trial: FrozenTrial) -> Study:
        """The study as the wrapped sampler sees it: one view per trial, of when it was first made.

        Reads through it are fresh, but a preview made since is not shown yet.
        """
        key = (study.study_name, trial.number)
        if key not in self._views:
            expected, finetuned = self._expected_truths(study)

            def keep(seen: FrozenTrial) -> FrozenTrial | None:
                if seen.number not in expected or seen.state != TrialState.PRUNED:
                    return seen
                if seen.number in finetuned:
                    return None
                shown = copy.copy(seen)
                shown.state, shown.value = TrialState.COMPLETE, expected[seen.number]
                return shown

            self._views[key] = study_view(study, study.pruner, keep)
            while len(self._views) > _MAX_VIEWS:  # of trials that were never told
                del self._views[next(iter(self._views))]
        return self._views[key]

    def _expected_truths(self, study: Study) -> tuple[Mapping[int, float], set[int]]:
        """The truth to expect of each pruned preview by its number, and those finetuned since."""
        history = self._reader.read(study.study_name, study.get_trials(deepcopy=False))
        done = {r.weights for r in history.records if r.state == TrialState.COMPLETE}
        pruned = [
            r
            for r in history.records
            if r.state == TrialState.PRUNED and r.weights and math.isfinite(r.preview)
        ]
        values = [r.preview for r in pruned]
        sign = 1.0 if study.direction == StudyDirection.MAXIMIZE else -1.0
        series = history.score(sign)
        if pruned and len(series.truths) >= _MIN_TRUTHS:
            from optuna_merge.samplers._model import TruthModel

            weights = np.array([r.weights for r in pruned])
            values = TruthModel.fit(series).predict(weights)[0].tolist()
        finetuned = {r.number for r in pruned if r.weights in done}
        return dict(zip((r.number for r in pruned), values)), finetuned
