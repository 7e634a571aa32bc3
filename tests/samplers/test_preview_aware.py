"""Stock samplers that are shown previews as values."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler, GPSampler, GridSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from optuna_merge.samplers import PreviewAware

TASKS = ("a", "b")


class Watching(RandomSampler):
    """Remembers what it is shown."""

    def __init__(self) -> None:
        super().__init__(seed=0)
        self.seen: list[FrozenTrial] = []

    def sample_independent(self, study: Study, *arguments: Any) -> Any:
        self.seen = study.get_trials()
        return super().sample_independent(study, *arguments)


def added(w: float, preview: float, truth: float | None = None) -> FrozenTrial:
    return create_trial(
        state=TrialState.PRUNED if truth is None else TrialState.COMPLETE,
        value=truth,
        params={"w_a": w, "w_b": 1 - w},
        distributions=dict.fromkeys(("w_a", "w_b"), FloatDistribution(0, 1)),
        intermediate_values={0: preview},
    )


def shown(study: Study) -> dict[int, FrozenTrial]:
    """What a sampler sees when it samples the next trial, by number."""
    sampler = Watching()
    study.sampler = PreviewAware(sampler, TASKS)
    trial = study.ask()
    trial.suggest_float("w_a", 0, 1)
    study.tell(trial, state=TrialState.FAIL)
    ended = (TrialState.COMPLETE, TrialState.PRUNED)
    return {t.number: t for t in sampler.seen if t.state in ended}


def test_previews_are_values_until_truths_tell_more() -> None:
    study = optuna.create_study(direction="maximize")
    for w in (0.1, 0.3, 0.5, 0.7):
        study.add_trial(added(w, w))
    before = copy.deepcopy(study.trials)
    assert [t.value for t in shown(study).values()] == [0.1, 0.3, 0.5, 0.7]
    assert {t.state for t in shown(study).values()} == {TrialState.COMPLETE}
    assert study.trials[:4] == before  # nothing of it is written
    # Truths that are all 2 above their previews.
    for w in (0.2, 0.4, 0.6, 0.8):
        study.add_trial(added(w, w, w + 2))
    values = {n: t.value for n, t in shown(study).items() if n < 4}
    for number, w in enumerate((0.1, 0.3, 0.5, 0.7)):
        assert values[number] == pytest.approx(w + 2, abs=0.1)


def test_of_finetuned_weights_the_truth_alone_is_shown() -> None:
    study = optuna.create_study(direction="minimize")
    for w in (0.1, 0.3, 0.5):
        study.add_trial(added(w, w))
    study.add_trial(added(0.3, 0.3, 7.0))
    seen = shown(study)
    assert 1 not in seen
    assert seen[3].value == 7.0
    assert shown(optuna.create_study()) == {}


@pytest.mark.parametrize("wrapped", [GPSampler, TPESampler])
def test_a_stock_sampler_follows_the_previews(wrapped: type[BaseSampler]) -> None:
    """The best previews are at weight .8 of the first task; there is no truth."""

    def mean_distance(sampler: BaseSampler) -> float:
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for w in np.linspace(0.02, 0.98, 25).tolist():
            study.add_trial(added(w, -((w - 0.8) ** 2)))
        found = []
        for _ in range(6):
            trial = study.ask()
            a, b = (trial.suggest_float(f"w_{task}", 0, 1) for task in TASKS)
            trial.report(-((a / (a + b) - 0.8) ** 2), 0)
            study.tell(trial, state=TrialState.PRUNED)
            found.append(abs(a / (a + b) - 0.8))
        return float(np.mean(found))

    aware = mean_distance(PreviewAware(wrapped(seed=0), TASKS))  # type: ignore[call-arg]
    assert aware < 0.15
    if wrapped is GPSampler:  # sees no values at all; TPE takes pruned trials into account
        assert aware < mean_distance(wrapped(seed=0)) / 2  # type: ignore[call-arg]


def test_a_sampler_that_stops_the_study_does_so() -> None:
    grid = {"w_a": [0.2, 0.4], "w_b": [0.5]}
    study = optuna.create_study(sampler=PreviewAware(GridSampler(grid, seed=0), TASKS))
    study.optimize(lambda t: sum(t.suggest_float(name, 0, 1) for name in grid), n_trials=9)
    assert len(study.trials) == 2


def test_what_cannot_be_wrapped_is_refused() -> None:
    with pytest.raises(TypeError, match="sampler is str"):
        PreviewAware("tpe", TASKS)  # type: ignore[arg-type]
    several = optuna.create_study(
        directions=["maximize"] * 2, sampler=PreviewAware(RandomSampler(), TASKS)
    )
    with pytest.raises(ValueError, match="one objective; use PreviewSampler"):
        several.ask()
