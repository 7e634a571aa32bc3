from __future__ import annotations

import math
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from botorch.utils.multi_objective.hypervolume import Hypervolume
from optuna.samplers import BaseSampler, PartialFixedSampler, TPESampler
from optuna.trial import TrialState

from optuna_merge.pruners import PromotionPruner
from optuna_merge.samplers import PreviewSampler
from optuna_merge.surrogate import startup_design
from optuna_merge.trials import TrialReader, suggest_weights, weight_params

TASKS = ["a", "b", "c"]
BEST = {"a": 0.5, "b": 0.5, "c": 0.0}


def distance(w: dict[str, float]) -> float:
    return sum((w[t] - BEST[t]) ** 2 for t in TASKS)


def objective(trial: optuna.Trial) -> float:
    """Loss to minimise: a biased preview, every fourth trial promoted."""
    w = suggest_weights(trial, TASKS)
    trial.report(2 * distance(w) + 0.2 * w["a"] + 3.0, 0)
    if trial.number % 4 < 3:
        raise optuna.TrialPruned
    return distance(w)


def make_study(n: int, *, seed: int = 0, sampler: BaseSampler | None = None) -> optuna.Study:
    study = optuna.create_study(sampler=sampler or PreviewSampler(TASKS, seed=seed))
    study.optimize(objective, n_trials=n)
    return study


def params_of(study: optuna.Study) -> list[tuple[float, ...]]:
    return [tuple(t.params.values()) for t in study.get_trials(deepcopy=False)]


def test_points_are_on_the_simplex_exactly_and_the_first_ones_are_the_corners() -> None:
    study = make_study(20)
    for p in params_of(study):
        assert sum(p) == 1.0
        assert all(type(v) is float for v in p)
    assert params_of(study)[0] == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert params_of(study)[1:4] == [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert len(set(params_of(study))) == 20
    assert list(study.trials[15].params) == ["w_a", "w_b", "w_c"]


def test_start_up_skips_what_the_study_has() -> None:
    study = optuna.create_study(sampler=PreviewSampler(TASKS, seed=0))
    study.enqueue_trial(weight_params({"a": 0, "b": 1, "c": 0}))
    study.enqueue_trial({"w_a": 1.0, "w_b": 1.0, "w_c": 1.0})
    study.optimize(objective, n_trials=4)
    assert params_of(study) == [(0, 1, 0), (1, 1, 1), (1, 0, 0), (0, 0, 1)]


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_finds_the_optimum_of_the_truth(direction: str) -> None:
    sign = 1.0 if direction == "minimize" else -1.0

    def signed(trial: optuna.Trial) -> float:
        w = suggest_weights(trial, TASKS)
        trial.report(sign * (2 * distance(w) + 0.2 * w["a"]), 0)
        if trial.number % 4 < 3:
            raise optuna.TrialPruned
        return sign * distance(w)

    study = optuna.create_study(direction=direction, sampler=PreviewSampler(TASKS, seed=1))
    study.optimize(signed, n_trials=32)
    assert abs(study.best_value) < 1e-3
    assert study.best_params["w_c"] == 0.0


def test_a_restart_changes_nothing(tmp_path: Path) -> None:
    whole = make_study(16, seed=7)
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    for _ in range(2):
        study = optuna.create_study(
            study_name="s",
            storage=storage,
            load_if_exists=True,
            sampler=PreviewSampler(TASKS, seed=7),
        )
        study.optimize(objective, n_trials=8)
    assert params_of(study) == params_of(whole)
    assert params_of(make_study(9, seed=8)) != params_of(whole)[:9]


def test_trials_of_other_samplers_are_understood() -> None:
    study = make_study(25, sampler=TPESampler(seed=0))
    assert any(sum(p) != 1.0 for p in params_of(study))
    study.sampler = PreviewSampler(TASKS, seed=0)
    study.optimize(objective, n_trials=16)
    assert all(sum(p) == 1.0 for p in params_of(study)[25:])
    assert study.best_value < 2e-3
    study.sampler = TPESampler(seed=0)
    study.optimize(objective, n_trials=2)


@pytest.mark.parametrize("n_before", [0, 12])
@pytest.mark.parametrize("fixed", [{"w_a": 0.4}, {"w_a": 0.25, "w_c": 0.25}, {"w_b": 1.0}])
def test_held_weights(n_before: int, fixed: dict[str, float]) -> None:
    study = make_study(n_before)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study.sampler = PartialFixedSampler(fixed, PreviewSampler(TASKS, seed=0))
    study.optimize(objective, n_trials=12)
    new = study.trials[n_before:]  # the first one, too, before which nothing was held
    total = 1.0 if sum(fixed.values()) < 1 else 2.0
    for trial in new:
        assert fixed.items() <= trial.params.items()
        assert sum(trial.params.values()) == pytest.approx(total)
    if fixed == {"w_a": 0.4}:
        best = min((t for t in new), key=lambda t: t.intermediate_values[0])
        assert best.params == pytest.approx({"w_a": 0.4, "w_b": 0.55, "w_c": 0.05}, abs=0.06)


def test_foreign_and_conditional_parameters() -> None:
    study = optuna.create_study(sampler=PreviewSampler(TASKS, seed=0, n_startup_trials=5))

    def mixed(trial: optuna.Trial) -> float:
        rate = trial.suggest_float("rate", 1e-5, 1e-1, log=True)
        w = suggest_weights(trial, TASKS) if trial.number % 3 else {"a": 1.0, "b": 0.0, "c": 0.0}
        if w["a"] > 0.2:
            trial.suggest_categorical("kind", ["x", "y"])
        return distance(w) + rate

    study.optimize(mixed, n_trials=20)
    assert len({t.params["rate"] for t in study.trials}) == 20
    with_weights = [t for t in study.trials if "w_a" in t.params]
    assert all(sum(t.params[f"w_{k}"] for k in TASKS) == 1.0 for t in with_weights)


def test_narrower_bounds_are_honoured() -> None:
    study = make_study(10)
    space = {
        "w_a": optuna.distributions.FloatDistribution(0.1, 0.3),
        "w_b": optuna.distributions.FloatDistribution(0.0, 1.0),
    }
    for _ in range(5):
        trial = study.ask()
        params = study.sampler.sample_relative(study, study.trials[trial.number], space)
        assert list(params) == ["w_a", "w_b"]
        assert 0.1 <= params["w_a"] <= 0.3


def test_one_task() -> None:
    study = optuna.create_study(sampler=PreviewSampler(["only"]))
    study.optimize(lambda t: suggest_weights(t, ["only"])["only"], n_trials=8)
    assert params_of(study) == [(1.0,)] * 8


def test_many_tasks() -> None:
    tasks = [f"t{i}" for i in range(32)]
    study = optuna.create_study(sampler=PreviewSampler(tasks, seed=0), direction="maximize")

    def run(trial: optuna.Trial) -> float:
        w = list(suggest_weights(trial, tasks).values())
        trial.report(-sum((v - 0.5) ** 2 for v in w[:2]), 0)
        raise optuna.TrialPruned

    study.optimize(run, n_trials=46)
    previews = [t.intermediate_values[0] for t in study.trials]
    assert max(previews[36:]) > max(previews[:36])


@pytest.mark.parametrize("values", [[math.nan], [math.inf], [-math.inf], [1.0]])
def test_degenerate_objectives(values: list[float]) -> None:
    study = optuna.create_study(sampler=PreviewSampler(TASKS, seed=0, n_startup_trials=3))

    def run(trial: optuna.Trial) -> float:
        suggest_weights(trial, TASKS)
        trial.report(values[0], 0)
        return values[0]

    study.optimize(run, n_trials=8)
    assert len(set(params_of(study))) == 8


def test_weights_that_are_tried_twice_take_no_place_of_the_design() -> None:
    """As uniform weights are, whose second seed tells the noise."""
    study = optuna.create_study(sampler=PreviewSampler(TASKS, seed=0))
    for _ in range(3):
        study.enqueue_trial(dict.fromkeys(("w_a", "w_b", "w_c"), 1.0))
    study.optimize(objective, n_trials=9)
    found = {tuple(round(w, 9) for w in params) for params in params_of(study)[3:]}
    axial = {tuple(round(w, 9) for w in row) for row in startup_design(3, 7, seed=0)[1:]}
    assert found == axial


def test_the_model_begins_where_enough_weights_differ_however_late_they_come() -> None:
    """A study of hundreds of trials at one place, then as many places as the model needs."""
    places = [(1.0, 0.0, 0.0)] * 60 + [(0.2, 0.2, 0.6), (0.2, 0.6, 0.2), (0.6, 0.2, 0.2)]
    suggested = {}
    for n_startup in (4, 5):  # with as many as there are, and with one more
        sampler = PreviewSampler(TASKS, seed=0, n_startup_trials=n_startup)
        study = optuna.create_study(sampler=sampler)
        for place in places:
            study.enqueue_trial(dict(zip(("w_a", "w_b", "w_c"), place)))
        study.optimize(objective, n_trials=len(places) + 1)
        suggested[n_startup] = params_of(study)[-1]
    design = {tuple(round(w, 9) for w in row) for row in startup_design(3, 70, seed=0)}
    assert tuple(round(w, 9) for w in suggested[4]) not in design
    assert tuple(round(w, 9) for w in suggested[5]) in design


def test_workers_at_once_preview_apart_from_one_another() -> None:
    """Four workers ask before any of them has a preview."""
    study = optuna.create_study(
        direction="maximize", sampler=PreviewSampler(TASKS, seed=0), pruner=PromotionPruner()
    )

    def preview(trial: optuna.Trial) -> None:
        w = suggest_weights(trial, TASKS)
        for task in TASKS:
            trial.set_user_attr(f"preview_{task}", w[task])
            trial.set_user_attr(f"preview_{task}_se", 1.0)
        trial.report(-distance(w), 0)
        study.tell(trial, state=TrialState.PRUNED)

    for _ in range(10):
        preview(study.ask())
    trials = [study.ask() for _ in range(4)]
    points = np.array([list(suggest_weights(trial, TASKS).values()) for trial in trials])
    gaps = np.abs(points[:, None] - points).max(axis=2)[np.triu_indices(4, 1)]
    assert gaps.min() > 0.03


def test_failing_trials_are_not_repeated() -> None:
    study = optuna.create_study(sampler=PreviewSampler(TASKS, seed=0))

    def fail(trial: optuna.Trial) -> float:
        suggest_weights(trial, TASKS)
        raise RuntimeError("out of memory")

    study.optimize(fail, n_trials=10, catch=RuntimeError)
    assert len(set(params_of(study))) == 10


def test_concurrent_trials_differ() -> None:
    study = optuna.create_study(sampler=PreviewSampler(TASKS, seed=0))
    first = [study.ask() for _ in range(4)]
    started = [suggest_weights(t, TASKS) for t in first]
    assert len({tuple(w.values()) for w in started}) == 4
    for t in first:
        study.tell(t, float(t.number))
    study.optimize(objective, n_trials=12)
    pending = [suggest_weights(study.ask(), TASKS) for _ in range(4)]
    points = np.array([list(w.values()) for w in pending])
    gaps = [np.abs(a - b).max() for i, a in enumerate(points) for b in points[:i]]
    assert min(gaps) > 1e-3


def test_threads() -> None:
    study = optuna.create_study(sampler=PreviewSampler(TASKS, seed=0))
    study.optimize(objective, n_trials=16, n_jobs=3)
    assert len(set(params_of(study))) == 16


def test_weights_that_are_written_while_another_trial_is_sampled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thread's trial that was on its way to its weights has them when the history is read."""
    study = optuna.create_study(sampler=PreviewSampler(TASKS, seed=0))
    one, two, three = (study.ask() for _ in range(3))
    read = TrialReader.read

    def late(self: TrialReader, *given: Any, **options: Any) -> Any:
        monkeypatch.undo()
        suggest_weights(one, TASKS)
        return read(self, *given, **options)

    monkeypatch.setattr(TrialReader, "read", late)
    assert two.relative_params != three.relative_params
    assert len({tuple(suggest_weights(trial, TASKS).values()) for trial in (one, two, three)}) == 3


def test_weights_that_are_half_written_are_still_to_come() -> None:
    """Another worker's point of the design, of which one weight is in the storage yet."""
    study = optuna.create_study(sampler=PreviewSampler(TASKS, seed=0))
    other = study.ask()
    other.suggest_float(f"w_{TASKS[0]}", 0.0, 1.0)
    mine = [study.ask().suggest_float(f"w_{task}", 0.0, 1.0) for task in TASKS[:1]]
    assert mine != [other.params[f"w_{TASKS[0]}"]]


def test_promoted_copies_and_waiting_trials() -> None:
    study = make_study(12)
    original = next(t for t in study.trials if t.state == TrialState.PRUNED)
    study.add_trial(
        optuna.trial.create_trial(
            state=TrialState.WAITING,
            params=original.params,
            distributions=original.distributions,
            intermediate_values=original.intermediate_values,
            user_attrs={"promoted_from": original.number},
        )
    )
    study.optimize(objective, n_trials=3)
    assert study.trials[12].params == original.params
    assert len(set(params_of(study)[13:])) == 2


@pytest.mark.parametrize("n_objectives", [2, 3, 5])
@pytest.mark.parametrize("with_previews", [True, False])
def test_several_objectives(n_objectives: int, with_previews: bool) -> None:
    tasks = TASKS[:n_objectives] if n_objectives < 4 else [f"t{i}" for i in range(n_objectives)]
    directions = ["minimize"] + ["maximize"] * (n_objectives - 1)
    study = optuna.create_study(directions=directions, sampler=PreviewSampler(tasks, seed=0))

    def run(trial: optuna.Trial) -> list[float]:
        w = suggest_weights(trial, tasks)
        metrics = [math.sqrt(v) for v in w.values()]
        metrics[0] *= -1
        if with_previews:
            for task, metric in zip(tasks, metrics):
                trial.set_user_attr(f"preview_{task}", 0.5 * metric - 1)
            if trial.number % 3:
                raise optuna.TrialPruned
        return metrics

    study.optimize(run, n_trials=len(tasks) + 12)
    points = np.array(params_of(study))
    assert (points.sum(axis=1) == 1.0).all()
    assert len(set(params_of(study))) == len(points)
    later = points[len(tasks) + 4 :]
    # every weighting is Pareto-optimal here: the front is spread over all objectives
    assert (later.max(axis=0) > 0.2).all()


def test_two_objectives_beat_random_in_hypervolume() -> None:
    def run(trial: optuna.Trial) -> tuple[float, float]:
        w = suggest_weights(trial, TASKS)
        return (w["a"] - 0.7) ** 2 + w["c"], (w["b"] - 0.7) ** 2 + w["c"]

    def volume(sampler: BaseSampler) -> float:
        study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)
        study.optimize(run, n_trials=20)
        losses = torch.tensor([t.values for t in study.trials])
        return float(Hypervolume(torch.tensor([-0.3, -0.3])).compute(-losses))

    assert volume(PreviewSampler(TASKS, seed=0)) > 1.2 * volume(
        optuna.samplers.RandomSampler(seed=0)
    )


def test_score_of_the_metrics() -> None:
    """The scalar preview is useless here; only the tasks' own metrics show the way."""

    def run(trial: optuna.Trial) -> float:
        w = suggest_weights(trial, TASKS)
        metrics = [1 - (1 - v) ** 2 for v in w.values()]
        for task, metric in zip(TASKS, metrics):
            trial.set_user_attr(f"preview_{task}", metric - 0.3)
            trial.set_user_attr(f"preview_{task}_se", 0.01)
        trial.report(0.0, 0)
        if trial.number % 3:
            raise optuna.TrialPruned
        for task, metric in zip(TASKS, metrics):
            trial.set_user_attr(f"truth_{task}", metric)
        return min(metrics)

    def worst(metrics: np.ndarray) -> np.ndarray:
        return metrics.min(axis=-1)

    sampler = PreviewSampler(TASKS, seed=0, score=worst)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for vertex in np.eye(3).tolist():  # uniform weights, the answer, must be found
        study.enqueue_trial(weight_params(dict(zip(TASKS, vertex))))
    for edge in ([1, 3, 0], [0, 3, 1], [6, 2, 2], [2, 6, 2]):
        study.enqueue_trial(weight_params(dict(zip(TASKS, edge))))
    study.optimize(run, n_trials=16)
    assert np.abs(np.array(params_of(study)[7:]) - 1 / 3).max(axis=1).min() < 0.05
    # where the metrics are missing, the scalar takes over
    plain = make_study(9, sampler=PreviewSampler(TASKS, seed=0, score=worst))
    assert params_of(plain) == params_of(make_study(9))
    study.sampler = PreviewSampler(TASKS, seed=0, score=lambda m: m[..., 0, 0])
    with pytest.raises(ValueError, match="one number per vector"):
        study.optimize(run, n_trials=1)


def test_constraints_of_the_metrics() -> None:
    """Metrics 1 - (1 - w)^2, the first one is the score; the second must be at least 0.5."""

    def run(trial: optuna.Trial) -> float:
        w = suggest_weights(trial, TASKS)
        metrics = [1 - (1 - v) ** 2 for v in w.values()]
        for task, metric in zip(TASKS, metrics):
            trial.set_user_attr(f"preview_{task}", metric - 0.2)
        trial.report(metrics[0], 0)
        if trial.number % 3:
            raise optuna.TrialPruned
        for task, metric in zip(TASKS, metrics):
            trial.set_user_attr(f"truth_{task}", metric)
        trial.set_constraint("b", 0.5 - metrics[1])
        return metrics[0]

    sampler = PreviewSampler(
        TASKS, seed=0, score=lambda m: m[..., 0], constraints=lambda m: 0.5 - m[..., 1:2]
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(run, n_trials=32)
    bound = 1 - math.sqrt(0.5)  # the weight of task b that is just enough
    assert study.best_params["w_b"] == pytest.approx(bound, abs=0.03)
    assert study.best_params["w_a"] == pytest.approx(1 - bound, abs=0.03)


@pytest.mark.parametrize("directions", [["maximize"], ["maximize", "minimize"]])
def test_constraints_need_the_metrics(directions: list[str]) -> None:
    sampler = PreviewSampler(TASKS, constraints=lambda m: m[..., :1])
    study = optuna.create_study(directions=directions, sampler=sampler)
    with pytest.raises(ValueError, match="constraints are functions of the tasks' metrics"):
        study.ask()


def test_constraints_of_several_objectives() -> None:
    """One objective per task: its weight's square root. The first one must be at least 0.8."""

    def run(trial: optuna.Trial) -> list[float]:
        metrics = [math.sqrt(v) for v in suggest_weights(trial, TASKS).values()]
        trial.set_constraint("a", 0.8 - metrics[0])
        return metrics

    sampler = PreviewSampler(TASKS, seed=0, constraints=lambda m: 0.8 - m[..., :1])
    study = optuna.create_study(directions=["maximize"] * 3, sampler=sampler)
    study.set_user_attr("reference_point", {"a": -0.1, "b": -0.1, "c": -0.1})
    study.optimize(run, n_trials=22)
    later = np.array(params_of(study))[10:]
    assert np.mean(later[:, 0] > 0.6) > 0.8, "a weight of 0.64 is enough"
    assert (later[:, 1:].max(axis=0) > 0.15).all()
    for trial in study.best_trials:
        assert trial.values[0] >= 0.8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PreviewSampler([]), "got 0"),
        (lambda: PreviewSampler(["a", "a"]), "more than once: a"),
        (lambda: PreviewSampler(["a", ""]), "non-empty"),
        (lambda: PreviewSampler("abc"), "string 'abc'"),
        (lambda: PreviewSampler(["a"], n_startup_trials=0), "n_startup_trials"),
        (lambda: PreviewSampler(["a"], n_candidates=10), "n_candidates"),
    ],
)
def test_bad_arguments(make: Callable[[], PreviewSampler], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_reseed_changes_suggestions() -> None:
    study = make_study(10)
    number = study.ask().number
    frozen = study.trials[number]
    space = study.sampler.infer_relative_search_space(study, frozen)
    first = study.sampler.sample_relative(study, frozen, space)
    assert first == study.sampler.sample_relative(study, frozen, space)
    study.sampler.reseed_rng()
    assert first != study.sampler.sample_relative(study, frozen, space)


def test_import_and_start_up_are_light() -> None:
    code = """
import sys, optuna
from optuna_merge.samplers import PreviewSampler
heavy = {"torch", "botorch", "gpytorch", "transformers"}
assert not heavy & set(sys.modules)
study = optuna.create_study(sampler=PreviewSampler(["a", "b"], seed=0))
study.optimize(lambda t: t.suggest_float("w_a", 0, 1) + t.suggest_float("w_b", 0, 1), n_trials=5)
assert not heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
