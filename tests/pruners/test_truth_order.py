"""Promotion by the posterior of the truth, on trials made by hand and in real studies."""

from __future__ import annotations

import copy
import logging
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from optuna_merge.pruners import PromotionPruner, read_ledger
from optuna_merge.pruners._truth_order import most_promising_truths
from optuna_merge.samplers import PreviewSampler
from optuna_merge.surrogate import Aim
from optuna_merge.trials import TrialReader, suggest_weights, weight_params

TASKS = ("a", "b")
Array = npt.NDArray[np.float64]


def trial(
    a: float,
    preview: float | None,
    state: str = "PRUNED",
    value: float | None = None,
    **attrs: Any,
) -> FrozenTrial:
    """Weight `a` for the first task, the rest for the second."""
    return create_trial(
        state=TrialState[state],
        value=value,
        params={"w_a": a, "w_b": 1 - a},
        distributions=dict.fromkeys(("w_a", "w_b"), FloatDistribution(0, 1)),
        intermediate_values={} if preview is None else {0: preview},
        user_attrs=attrs,
    )


def ordered(
    trials: Sequence[FrozenTrial], n: int | None = 1, maximize: bool = True, **options: Any
) -> list[float]:
    """Weights `w_a` of the `n` candidates that come first."""
    for number, made in enumerate(trials):
        made.number = number
    history = TrialReader(TASKS).read("s", trials)
    ledger = read_ledger(trials)
    aim = Aim((maximize,), options.pop("score", None), options.pop("constraints", None))
    order = most_promising_truths(
        ledger.candidates, history, aim=aim, n_promoted=len(ledger.claims), **options
    )
    return [trials[c.number].params["w_a"] for c in islice(order, n)]


def baselines(truth: Callable[[float], float], *weights: float) -> list[FrozenTrial]:
    """Finetunes whose preview is the weight itself."""
    return [trial(w, w, "COMPLETE", truth(w), baseline=str(w)) for w in weights]


def candidates(*weights: float) -> list[FrozenTrial]:
    return [trial(w, w) for w in weights]


@pytest.mark.parametrize("maximize", [True, False])
def test_the_truth_s_posterior_overrules_previews(maximize: bool) -> None:
    """Previews say "the more of task a the better"; the best truth is in the middle."""
    sign = 1.0 if maximize else -1.0
    trials = [
        *baselines(lambda w: -sign * (w - 0.5) ** 2, 0.0, 0.2, 0.35, 0.6, 0.8, 1.0),
        *candidates(0.05, 0.1, 0.48, 0.9, 0.95),
    ]
    for made in trials:
        made.intermediate_values = {0: sign * made.intermediate_values[0]}
    assert ordered(trials, maximize=maximize) == [0.48]


@pytest.mark.parametrize("n_truths", [0, 1])
def test_before_there_are_truths_the_preview_decides(n_truths: int) -> None:
    trials = [*baselines(lambda w: -w, 0.0)[:n_truths], *candidates(0.4, 0.9, 0.6, 0.9)]
    assert ordered(trials, None) == [0.9, 0.9, 0.6, 0.4]
    assert ordered(trials, None, maximize=False)[0] == 0.4


def test_trials_without_task_weights_come_last() -> None:
    other = create_trial(state=TrialState.PRUNED, intermediate_values={0: 5.0})
    trials = [*baselines(lambda w: w, 0.0, 0.5, 1.0), other, *candidates(0.2, 0.7)]
    for number, made in enumerate(trials):
        made.number = number
    history = TrialReader(TASKS).read("s", trials)
    aim = Aim((True,))
    found = most_promising_truths(read_ledger(trials).candidates, history, aim=aim, n_promoted=0)
    assert [c.number for c in found][-1] == 3
    alone = [c for c in read_ledger(trials).candidates if c.number == 3]
    assert list(most_promising_truths(alone, history, aim=aim, n_promoted=0)) == alone


def test_of_very_many_candidates_some_are_compared_and_none_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("optuna_merge.pruners._truth_order._MAX_CANDIDATES", 6)
    weights = np.linspace(0.01, 0.99, 20).tolist()
    trials = [*baselines(lambda w: -((w - 0.5) ** 2), 0.0, 0.3, 0.7, 1.0), *candidates(*weights)]
    found = ordered(trials, None)
    assert sorted(found) == weights
    assert found[6:] == sorted(found[6:], reverse=True)  # by the preview, which is the weight


def test_all_candidates_are_ordered_and_nothing_else() -> None:
    trials = [*baselines(lambda w: w, 0.0, 0.5, 1.0), *candidates(0.2, 0.7, 0.4, 0.7)]
    assert sorted(ordered(trials, None)) == [0.2, 0.4, 0.7, 0.7]


def test_it_is_a_function_of_trials_and_seed() -> None:
    rng = np.random.default_rng(0)
    trials = [
        *baselines(lambda w: math.sin(7 * w), *rng.random(8).tolist()),
        *candidates(*rng.random(20).tolist()),
    ]
    first = ordered(trials, 5, seed=3)
    before = repr(trials)
    assert ordered(trials, 5, seed=3) == first
    assert ordered(copy.deepcopy(trials), 5, seed=3) == first
    assert repr(trials) == before


def test_slots_filled_at_once_are_spread() -> None:
    """The runner-up of one slot is not the twin of the first, but something else to learn from."""
    trials = [
        *baselines(lambda w: -((w - 0.5) ** 2), 0.0, 0.1, 1.0),
        *candidates(0.6, 0.6005, 0.601, 0.8),
    ]
    first, second = ordered(trials, 2)
    assert first < 0.7
    assert second == 0.8
    running = [*trials, trial(0.615, 0.6, "RUNNING", promoted_from=99)]
    assert ordered(running) == [0.8]


@pytest.mark.parametrize("state", ["COMPLETE", "RUNNING", "WAITING"])
def test_weights_that_are_finetuned_already_come_last(state: str) -> None:
    value = 1.0 if state == "COMPLETE" else None
    trials = [
        *baselines(lambda w: w, 0.0, 0.5),
        trial(1.0, 1.0, state, value, baseline="a"),
        *candidates(1.0, 0.1, 0.2),
    ]
    assert ordered(trials, None)[-1] == 1.0


def unrelated() -> list[FrozenTrial]:
    """Truths without any relation to their previews, all between 0.4 and 0.6; one promoted."""
    weights = np.linspace(0.4, 0.6, 8)
    previews, truths = [3, 1, 4, 2, 6, 8, 5, 7], [4, 5, 3, 6, 5, 3, 6, 4]
    made = [
        trial(w, p, "COMPLETE", float(t), baseline=str(w))
        for w, p, t in zip(weights, previews, truths)
    ]
    return [*made, *(trial(w, 5.0 + w) for w in (0.45, 0.52, 0.98, 0.58))]


def test_while_no_correlation_shows_some_truths_are_for_learning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "optuna_merge"):
        assert ordered(unrelated()) == [0.98]  # the only one far from all truths
    (record,) = caplog.records
    assert "No evidence yet that previews tell good weights from bad ones" in record.message
    caplog.clear()
    promoted = [trial(0.5, 5.0, "FAIL", promoted_from=99)]
    assert read_ledger([*unrelated(), *promoted]).claims  # the next promotion is the second
    ordered([*unrelated(), *promoted])
    assert not caplog.records


def test_previews_that_prove_true_are_exploited(caplog: pytest.LogCaptureFixture) -> None:
    trials = [
        *baselines(lambda w: 2 * w, 0.4, 0.45, 0.5, 0.52, 0.55, 0.6, 0.3),
        *candidates(0.02, 0.5, 0.7),
    ]
    assert ordered(trials) == [0.7]
    assert not caplog.records


def worst(metrics: Array) -> Array:
    return np.asarray(metrics.min(axis=-1))


def test_a_score_is_composed_of_the_tasks_metrics() -> None:
    """Each metric is linear in the weights: three truths tell where the worst one is best."""

    def measured(w: float, state: str) -> FrozenTrial:
        metrics = {"a": w, "b": 0.5 * (1 - w) + 0.25}
        attrs = {f"preview_{t}": v for t, v in metrics.items()}
        if state == "COMPLETE":
            attrs |= {f"truth_{t}": v for t, v in metrics.items()} | {"baseline": w}
        value = min(metrics.values())
        return trial(w, value, state, value if state == "COMPLETE" else None, **attrs)

    trials = [
        *(measured(w, "COMPLETE") for w in (0.0, 0.2, 1.0)),
        *(measured(w, "PRUNED") for w in (0.1, 0.3, 0.49, 0.7, 0.9)),
    ]
    assert ordered(trials, score=worst) == [0.49]
    with pytest.raises(ValueError, match="score must turn an array of metrics"):
        ordered(trials, score=lambda metrics: np.zeros(3))
    # Without the attributes the value itself is modelled, and the score is not asked.
    for made in trials:
        made.user_attrs = {k: v for k, v in made.user_attrs.items() if k == "baseline"}
    assert len(ordered(trials, score=lambda metrics: np.zeros(3))) == 1


def test_a_candidate_that_runs_is_not_pending() -> None:
    """The current trial, whose preview has just been made, competes on equal terms."""
    trials = [*baselines(lambda w: w, 0.0, 0.3, 0.5), *candidates(0.1, 0.2)]
    current = trial(0.9, 0.9, "RUNNING")
    trials.append(current)
    for number, made in enumerate(trials):
        made.number = number
    history = TrialReader(TASKS).read("s", trials)
    left = read_ledger(trials).candidates
    order = most_promising_truths(left, history, aim=Aim((True,)), n_promoted=0)
    assert next(iter(order)).number == current.number


# In studies


@pytest.fixture
def study() -> Iterator[optuna.Study]:
    names = ["a", "b", "c"]
    study = optuna.create_study(
        direction="maximize",
        sampler=PreviewSampler(names, seed=0),
        pruner=PromotionPruner(fraction=0.25, seed=0),
    )
    for name in names:
        weights = {other: float(other == name) for other in names}
        study.enqueue_trial(weight_params(weights), user_attrs={"baseline": name})
    yield study


def objective(trial: optuna.Trial) -> float:
    """The best weights are .5, .3, .2; the preview is drawn towards the first task."""
    w = np.array(list(suggest_weights(trial, ["a", "b", "c"]).values()))
    truth = -float(((w - [0.5, 0.3, 0.2]) ** 2).sum())
    if "promoted_from" not in trial.user_attrs:
        trial.report(0.5 * truth + 0.3 * w[0], 0)
    if trial.should_prune():
        raise optuna.TrialPruned
    return truth


def test_a_study_finds_the_best_truth_within_its_budget(study: optuna.Study) -> None:
    study.optimize(objective, n_trials=40)
    while study.get_trials(states=[TrialState.WAITING]):
        study.optimize(objective, n_trials=1)
    ledger = read_ledger(study.trials)
    assert len(ledger.claims) == len(ledger.previews) // 4
    complete = study.get_trials(states=[TrialState.COMPLETE])
    assert len(complete) == len(ledger.claims) + 3
    assert study.best_value > -0.002
    # The best preview's truth is worse: there w_a is .8.
    top = max(study.trials, key=lambda t: t.intermediate_values[0])
    weights = np.array(list(top.params.values()))
    assert ((weights - [0.5, 0.3, 0.2]) ** 2).sum() > 0.01


def test_every_worker_decides_the_same(study: optuna.Study) -> None:
    study.optimize(objective, n_trials=24)
    used, queued = study.pruner, []
    assert isinstance(used, PromotionPruner)
    fresh = PromotionPruner(fraction=0.9, seed=0)
    used._budget = fresh._budget  # slots to fill
    for pruner in (used, fresh):
        other = optuna.create_study(direction="maximize")
        other.add_trials(study.trials)
        preview = next(t for t in other.trials if t.state == TrialState.PRUNED)
        assert pruner.prune(other, preview)
        new = other.trials[len(study.trials) :]
        queued.append([trial.user_attrs["promoted_from"] for trial in new])
    assert queued[0] == queued[1]
    assert len(queued[0]) > 3


def test_torch_is_imported_when_a_slot_is_free_and_there_are_truths() -> None:
    code = """
import sys, optuna
from optuna_merge.pruners import PromotionPruner

def objective(trial):
    w = [trial.suggest_float(f"w_{task}", 0, 1) for task in "ab"]
    trial.report(w[0], 0)
    if trial.should_prune():
        raise optuna.TrialPruned
    return w[0]

optuna.logging.set_verbosity(optuna.logging.ERROR)
pruner = PromotionPruner(fraction=0.5, warmup=6)
study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), pruner=pruner)
for w in (0.2, 0.8):
    study.enqueue_trial({"w_a": w, "w_b": 0.5}, user_attrs={"baseline": str(w)})
study.optimize(objective, n_trials=7)
print("torch" in sys.modules)
study.optimize(objective, n_trials=1)
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"], done.stderr


def with_metrics(made: FrozenTrial) -> FrozenTrial:
    """Metrics of both tasks: their weights, in preview and truth."""
    for task in TASKS:
        made.user_attrs[f"preview_{task}"] = made.params[f"w_{task}"]
        if made.state == TrialState.COMPLETE:
            made.user_attrs[f"truth_{task}"] = made.params[f"w_{task}"]
    return made


def first(m: Array) -> Array:
    return m[..., 0]


def b_at_least(bound: float) -> Callable[[Array], Array]:
    return lambda m: bound - m[..., 1:2]


CONSTRAINED: list[tuple[str, list[float], list[float], float, list[float]]] = [
    # name, weights of truths, of candidates, bound on task b, order
    ("no truths: feasible previews first", [], [0.2, 0.9, 0.5, 0.6], 0.4, [0.6, 0.5, 0.2, 0.9]),
    ("then the smallest violation", [], [0.8, 0.9, 0.7], 0.4, [0.7, 0.8, 0.9]),
    ("the best that stays feasible", [0.0, 0.3, 1.0], [0.1, 0.58, 0.8, 0.95], 0.4, [0.58]),
    ("nothing feasible yet", [0.6, 0.8, 1.0], [0.2, 0.9, 0.7, 0.5], 0.7, [0.2]),
    ("impossible", [0.0, 0.5, 1.0], [0.2, 0.9, 0.7], 3.0, [0.2]),
    ("nothing is ever violated", [0.0, 0.3, 0.5], [0.2, 0.9, 0.4], -1.0, [0.9]),
]


@pytest.mark.parametrize(
    ("truths", "left", "bound", "expected"),
    [row[1:] for row in CONSTRAINED],
    ids=[row[0] for row in CONSTRAINED],
)
def test_constraints(
    truths: list[float], left: list[float], bound: float, expected: list[float]
) -> None:
    """The score is task a's metric, its weight."""
    trials = [*baselines(lambda w: w, *truths), *candidates(*left)]
    trials = [with_metrics(made) for made in trials]
    found = ordered(trials, len(expected), score=first, constraints=b_at_least(bound))
    assert found == expected


@pytest.mark.parametrize("n_truths", [0, 4])
def test_the_front_of_several_objectives(n_truths: int) -> None:
    """Square roots of the weights: the truths leave a gap in the middle of the front."""
    trials = []
    for w in [0.0, 0.05, 0.9, 1.0][:n_truths]:
        made = with_metrics(create_trial(
            state=TrialState.COMPLETE, values=[math.sqrt(w), math.sqrt(1 - w)],
            params={"w_a": w, "w_b": 1 - w},
            distributions=dict.fromkeys(("w_a", "w_b"), FloatDistribution(0, 1)),
            user_attrs={"baseline": str(w)},
        ))  # fmt: skip
        trials.append(made)
    for w in (0.02, 0.45, 0.95):
        made = with_metrics(trial(w, None))
        made.user_attrs |= {"preview_a": math.sqrt(w), "preview_b": math.sqrt(1 - w)}
        trials.append(made)
    for number, made in enumerate(trials):
        made.number = number
    history = TrialReader(TASKS).read("s", trials)
    left = read_ledger(trials, TASKS, several=True).candidates
    for reference in (None, np.array([-0.1, -0.1])):
        aim = Aim((True, True), reference=reference)
        order = most_promising_truths(left, history, aim=aim, n_promoted=0)
        assert trials[next(order).number].params["w_a"] == 0.45
    other = Aim((True, True), reference=np.array([0.95, 0.0]))
    order = most_promising_truths(left, history, aim=other, n_promoted=0)
    assert trials[next(order).number].params["w_a"] == 0.95
