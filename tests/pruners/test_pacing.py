"""When a finetune is due, on trials made by hand and in real studies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from optuna_merge.pruners import (
    Budget,
    PromotionPruner,
    is_time,
    preview_price,
    read_ledger,
    should_prune,
)
from optuna_merge.samplers import PreviewSampler
from optuna_merge.search import baseline_weights
from optuna_merge.surrogate import Aim
from optuna_merge.trials import TrialReader, read_trial, suggest_weights, weight_params

TASKS = ("a", "b")
NAMES = ("a", "b", "c")
BEST = np.array([0.5, 0.3, 0.2])


def trial(
    a: float,
    state: str = "PRUNED",
    preview: float | None = None,
    value: float | None = None,
    **attrs: Any,
) -> FrozenTrial:
    """Weight `a` for the first task; the preview is best at .5, unless it is given."""
    return create_trial(
        state=TrialState[state],
        value=value,
        params={"w_a": a, "w_b": 1 - a},
        distributions=dict.fromkeys(("w_a", "w_b"), FloatDistribution(0, 1)),
        intermediate_values={0: 1 - (a - 0.5) ** 2 if preview is None else preview},
        user_attrs=attrs,
    )


def finetuned(a: float, **attrs: Any) -> FrozenTrial:
    return trial(a, "COMPLETE", value=0.9 - (a - 0.5) ** 2, **attrs)


BASELINES = [
    finetuned(0.5, baseline="uniform"),
    finetuned(1.0, baseline="a"),
    finetuned(0.0, baseline="b"),
]
DENSE = [trial(a) for a in (0.1, 0.2, 0.3, 0.4, 0.45, 0.55, 0.6, 0.7, 0.8, 0.9)]


def due(trials: Sequence[FrozenTrial]) -> bool:
    for number, made in enumerate(trials):
        made.number = number
    history = TrialReader(TASKS).read("s", list(trials))
    return is_time(read_ledger(trials), history, Aim((True,)))


@pytest.mark.parametrize(
    "trials",
    [
        pytest.param([], id="no trial"),
        pytest.param(BASELINES, id="no candidate"),
        pytest.param([*BASELINES, *DENSE[:2]], id="fewer previews than the design"),
        pytest.param(
            [*BASELINES, *DENSE, trial(0.45, "WAITING", promoted_from=7, promotion="queued")],
            id="a copy waits",
        ),
        pytest.param([*BASELINES[:2], trial(0.0, "WAITING", baseline="b"), *DENSE], id="baseline"),
    ],
)
def test_it_is_not_time(trials: list[FrozenTrial]) -> None:
    assert not due(trials)


def test_it_is_time_when_the_previews_have_shown_what_they_can() -> None:
    assert due([*BASELINES, *DENSE])


def test_a_copy_that_is_begun_is_pending_and_stands_in_nobodys_way() -> None:
    begun = trial(0.45, "RUNNING", promoted_from=7, promotion="begun")
    assert due([*BASELINES, *DENSE, begun, trial(0.35)])


@pytest.mark.parametrize(("n", "enough"), [(6, False), (7, True)])
def test_previews_for_a_fourth_of_the_price_of_a_finetune_are_enough(n: int, enough: bool) -> None:
    """Of two tasks six make the design, three baselines among them; four cost a fourth."""
    rough = np.random.default_rng(0)
    baselines = [finetuned(a, baseline=str(a), truth_seconds=16.0) for a in (0.0, 0.5, 1.0)]
    points = np.linspace(0.05, 0.95, n).tolist()
    previews = [trial(a, preview=float(rough.normal()), preview_seconds=1.0) for a in points]
    assert due([*baselines, *previews]) == enough


@pytest.mark.parametrize(
    ("previews", "truths", "price"),
    [
        ([], [], 0.1),
        ([1.0], [], 0.1),
        ([], [3.0], 0.1),
        ([1.0, 1.1, 30.0], [17.0, 15.0, 16.0], 1 / 16),
        ([1.0], [20.0], 1 / 16),  # the next power of two
        ([5.0], [1.0], 1.0),
        ([1e-9], [1.0], 1 / 256),
        ([0.0], [1.0], 0.1),  # not measured
    ],
)
def test_a_preview_has_a_price(previews: list[float], truths: list[float], price: float) -> None:
    trials = [trial(0.5, preview_seconds=s) for s in previews]
    trials += [finetuned(0.5, truth_seconds=s) for s in truths]
    if truths:
        trials += [finetuned(1.0, truth_seconds=1e-3)] * 5  # of a task alone
    trials += [  # neither was made
        trial(0.5, preview_seconds=900.0, preview_taken_from=0),
        trial(0.5, "WAITING", preview_seconds=900.0, promoted_from=0),
    ]
    assert preview_price([read_trial(t, TASKS) for t in trials]) == price


def test_caps_and_the_warm_up_hold_beside_automatic_pacing() -> None:
    paced = Budget(fraction=None, warmup=0)
    assert paced.is_automatic
    assert not Budget().is_automatic
    assert not paced.is_zero
    assert paced.cap(100) == 100
    assert Budget(fraction=None, max_promotions=2, warmup=0).cap(100) == 2
    assert Budget(fraction=None, warmup=5).cap(4) == 0


# In studies


def study_of(names: Sequence[str], **arguments: Any) -> optuna.Study:
    study = optuna.create_study(
        directions=arguments.pop("directions", ["maximize"]),
        sampler=PreviewSampler(names, seed=0),
        pruner=PromotionPruner(seed=0, **arguments),
    )
    for name, weights in baseline_weights(names).items():
        study.enqueue_trial(weight_params(weights), user_attrs={"baseline": name})
    return study


def objective(trial: optuna.Trial) -> float:
    """The preview is drawn towards the first task."""
    w = np.array(list(suggest_weights(trial, NAMES).values()))
    truth = -float(((w - BEST) ** 2).sum())
    if "promoted_from" not in trial.user_attrs:
        trial.report(0.5 * truth + 0.1 * w[0], 0)
        trial.set_user_attr(f"preview_{NAMES[0]}_se", 0.01)
    if trial.should_prune():
        raise optuna.TrialPruned
    return truth


def points_of(trials: Sequence[FrozenTrial]) -> np.ndarray:
    return np.array([list(t.params.values()) for t in trials])


def test_a_study_finetunes_one_at_a_time_and_repeats_no_preview() -> None:
    study = study_of(NAMES)
    for _ in range(30):
        study.optimize(objective, n_trials=1)
        assert len(study.get_trials(states=[TrialState.WAITING], deepcopy=False)) <= 4
        copies = [t for t in study.trials if "promoted_from" in t.user_attrs]
        assert sum(t.state == TrialState.WAITING for t in copies) <= 1
    assert study.best_value > -0.004
    previews = [t for t in study.trials if "promoted_from" not in t.user_attrs]
    points = points_of(previews[7:])
    seen = points_of(previews[:7])
    for point in points:
        assert np.abs(seen - point).max(axis=1).min() > 0.03
        seen = np.concatenate([seen, point[None]])
    # More of it is spent on finetunes than a fourth.
    assert len(copies) > len(previews) / 4


def test_a_fresh_pruner_decides_the_same() -> None:
    studies = [study_of(NAMES) for _ in range(2)]
    for _ in range(18):
        studies[1].pruner = PromotionPruner(seed=0)
        for study in studies:
            study.optimize(objective, n_trials=1)
    assert points_of(studies[0].trials).tolist() == points_of(studies[1].trials).tolist()


def test_workers_that_are_idle_get_more_finetunes_and_never_two_of_one_decision() -> None:
    """Copies are begun and never end: what comes next is chosen beside them."""
    study = study_of(NAMES)
    study.optimize(objective, n_trials=4)
    begun = 0
    for _ in range(24):
        trial = study.ask()
        if "promoted_from" in trial.user_attrs:
            assert not trial.should_prune()
            begun += 1
            continue
        before = len(study.trials)
        w = np.array(list(suggest_weights(trial, NAMES).values()))
        trial.report(-0.5 * float(((w - BEST) ** 2).sum()) + 0.1 * w[0], 0)
        assert trial.should_prune()
        study.tell(trial, state=TrialState.PRUNED)
        assert len(study.trials) <= before + 1
    assert begun >= 3


def test_a_pareto_study_is_paced_by_its_front() -> None:
    study = study_of(TASKS, directions=["maximize", "maximize"])

    def both(trial: optuna.Trial) -> tuple[float, float]:
        w = list(suggest_weights(trial, TASKS).values())
        truths = tuple(float(np.sqrt(x + 0.02)) for x in w)
        if "preview_a" not in trial.user_attrs:
            for name, truth in zip(TASKS, truths):
                trial.set_user_attr(f"preview_{name}", 0.8 * truth + 0.05)
        if should_prune(trial):
            raise optuna.TrialPruned
        return truths[0], truths[1]

    study.optimize(both, n_trials=24)
    copies = [t for t in study.trials if "promoted_from" in t.user_attrs]
    assert len(copies) >= 4
    assert len({tuple(t.params.values()) for t in copies}) == len(copies)


def test_of_one_task_a_fourth_is_finetuned() -> None:
    study = study_of(["a"])

    def one(trial: optuna.Trial) -> float:
        w = suggest_weights(trial, ["a"])["a"]
        if "promoted_from" not in trial.user_attrs:
            trial.report(w, 0)
        if trial.should_prune():
            raise optuna.TrialPruned
        return w

    study.optimize(one, n_trials=12)
    ledger = read_ledger(study.trials)
    assert len(ledger.claims) == len(ledger.previews) // 4 > 0


def test_where_workers_only_preview_a_fourth_is_finetuned() -> None:
    study = study_of(NAMES)
    study.set_user_attr("preview_run:x", "open")
    study.optimize(objective, n_trials=4)
    for _ in range(12):  # a worker that leaves the copies to others
        trial = study.ask({f"w_{name}": FloatDistribution(0, 1) for name in NAMES})
        if "promoted_from" in trial.user_attrs:
            continue
        trial.report(float(trial.number), 0)
        assert trial.should_prune()
        study.tell(trial, state=TrialState.PRUNED)
    ledger = read_ledger(study.trials)
    assert len(ledger.claims) == len(ledger.previews) // 4 == 2
