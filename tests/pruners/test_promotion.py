from __future__ import annotations

import math
from collections import Counter
from typing import Any

import optuna
import pytest
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from optuna_merge.pruners import PromotionPruner, read_ledger, should_prune
from optuna_merge.trials import fail_and_requeue


def objective(trial: optuna.Trial) -> float:
    """The preview is w_a, and so is the truth."""
    w = trial.suggest_float("w_a", 0, 1)
    if "promoted_from" not in trial.user_attrs:
        trial.report(w, 0)
    if trial.should_prune():
        raise optuna.TrialPruned
    return w


def create_study(
    storage: BaseStorage | None = None, maximize: bool = True, **arguments: Any
) -> optuna.Study:
    return optuna.create_study(
        storage=storage,
        direction="maximize" if maximize else "minimize",
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=PromotionPruner(**arguments),
    )


def previewed(study: optuna.Study) -> list[FrozenTrial]:
    return [
        t
        for t in study.trials
        if 0 in t.intermediate_values and not {"promoted_from", "baseline"} & t.user_attrs.keys()
    ]


def finetuned(study: optuna.Study) -> list[FrozenTrial]:
    return [
        t
        for t in study.trials
        if t.state == TrialState.COMPLETE and "baseline" not in t.user_attrs
    ]


def drain(study: optuna.Study) -> None:
    """Execute the promotions that are queued."""
    while study.get_trials(deepcopy=False, states=[TrialState.WAITING]):
        study.optimize(objective, n_trials=1)


@pytest.mark.parametrize("maximize", [True, False])
def test_the_budget_goes_to_the_best(storage: BaseStorage, maximize: bool) -> None:
    study = create_study(storage, maximize)
    study.optimize(objective, n_trials=40)
    drain(study)
    cap = len(previewed(study)) // 4
    values = [t.value for t in finetuned(study)]
    assert len(values) == len(set(values)) == cap
    # The best preview is always finetuned, whenever it was made.
    previews = [t.intermediate_values[0] for t in previewed(study)]
    assert (max if maximize else min)(previews) in values
    assert {t.state for t in study.trials} == {TrialState.COMPLETE, TrialState.PRUNED}


@pytest.mark.parametrize("maximize", [True, False])
def test_a_promoted_copy_carries_on(storage: BaseStorage, maximize: bool) -> None:
    study = create_study(storage, maximize, fraction=0.5, warmup=2)
    best, other = (0.9, 0.1) if maximize else (0.1, 0.9)
    for w in (best, other):
        study.enqueue_trial({"w_a": w}, user_attrs={"weight_a": 1.0})

    def stops(trial: optuna.Trial) -> float:
        trial.set_user_attr("preview_a", 0.5)
        return objective(trial)

    study.optimize(stops, n_trials=2)
    original, current, copied = study.trials
    assert [t.state for t in (original, current)] == [TrialState.PRUNED] * 2
    assert copied.state == TrialState.WAITING
    assert copied.params == original.params == {"w_a": best}
    assert copied.distributions == original.distributions
    assert copied.intermediate_values == {0: best}
    assert copied.user_attrs == {
        "weight_a": 1.0,
        "preview_a": 0.5,
        "promoted_from": 0,
        "promotion": "queued",
    }
    assert copied.system_attrs == {}
    study.optimize(objective, n_trials=1)
    assert study.trials[2].state == TrialState.COMPLETE
    assert study.trials[2].value == best
    assert study.trials[2].user_attrs["promotion"] == "begun"


@pytest.mark.parametrize("first", [0.5, math.nan])
def test_a_second_question_gets_the_same_answer(storage: BaseStorage, first: float) -> None:
    study = create_study(storage, fraction=0.5, warmup=0)
    answers = []
    for value in (first, 0.9, 0.1, 0.8, math.nan, 0.7):
        trial = study.ask()
        copied = "promoted_from" in trial.user_attrs
        if not copied:
            trial.suggest_float("w_a", 0, 1)
            trial.report(value, 0)
        answer = trial.should_prune()
        assert answer is not copied
        n_trials = len(study.trials)
        assert [trial.should_prune() for _ in range(3)] == [answer] * 3
        # As another process sees it, and nothing more has been queued.
        study.pruner = PromotionPruner(fraction=0.5, warmup=0)
        assert study.pruner.prune(study, study.trials[trial.number]) is answer
        assert len(study.trials) == n_trials
        study.tell(trial, state=TrialState.PRUNED) if answer else study.tell(trial, 1.0)
        answers.append(answer)
    assert set(answers) == {True, False}


@pytest.mark.parametrize("dies", ["before it asks", "after it asked"])
def test_a_preview_whose_worker_dies_is_promoted_once(storage: BaseStorage, dies: str) -> None:
    study = create_study(storage, warmup=4)
    for w in (0.1, 0.2, 0.3):
        study.enqueue_trial({"w_a": w})
    study.optimize(objective, n_trials=3)
    trial = study.ask()
    trial.suggest_float("w_a", 0, 1)
    trial.report(0.9, 0)
    if dies == "after it asked":
        assert trial.should_prune()
    assert fail_and_requeue(study, trial.number)
    drain(study)
    clone = next(t for t in study.trials if t.system_attrs.get("retry_history") == [trial.number])
    assert clone.state == TrialState.PRUNED
    assert clone.intermediate_values == {0: 0.9}
    # The lineage has used one slot of one, and no other preview got another.
    (done,) = finetuned(study)
    assert done.user_attrs["promoted_from"] == trial.number
    assert done.intermediate_values == {0: 0.9}


@pytest.mark.parametrize("promotion", ["begun", "withdrawn"])
def test_a_retry_clone_of_a_copy_gets_the_same_answer(
    storage: BaseStorage, promotion: str
) -> None:
    study = create_study(storage, fraction=0.5, warmup=2)
    for w in (0.9, 0.1):
        study.enqueue_trial({"w_a": w})
    study.optimize(objective, n_trials=2)
    (queued,) = study.get_trials(states=[TrialState.WAITING])
    if promotion == "withdrawn":
        study.add_trial(queued)  # what another worker does at the same time
    copies = [study.ask() for _ in range(1 + (promotion == "withdrawn"))]
    assert copies[-1].should_prune() is (promotion == "withdrawn")
    assert fail_and_requeue(study, copies[-1].number)
    clone = study.ask()
    assert clone.user_attrs["promotion"] == promotion
    assert clone.should_prune() is (promotion == "withdrawn")
    assert len(read_ledger(study.trials).claims) == 1


def test_baselines_are_always_finetuned(storage: BaseStorage) -> None:
    study = create_study(storage, fraction=0.0)
    study.enqueue_trial({"w_a": 0.3}, user_attrs={"baseline": "uniform"})
    study.enqueue_trial({"w_a": 0.0}, user_attrs={"baseline": "a"})
    study.optimize(objective, n_trials=12)
    assert [t.number for t in study.get_trials(states=[TrialState.COMPLETE])] == [0, 1]


@pytest.mark.parametrize(
    "arguments",
    [{"fraction": 0.0}, {"max_promotions": 0}, {"budget": 0}],
)
def test_a_budget_of_zero_promotes_nothing(arguments: dict[str, float]) -> None:
    study = create_study(**arguments)
    study.optimize(objective, n_trials=30)
    assert Counter(t.state for t in study.trials) == {TrialState.PRUNED: 30}


def test_a_fraction_of_one_promotes_everything() -> None:
    study = create_study(fraction=1.0)
    study.optimize(objective, n_trials=30)
    drain(study)
    assert len(finetuned(study)) == len(previewed(study))


def test_max_promotions() -> None:
    study = create_study(max_promotions=3)
    study.optimize(objective, n_trials=40)
    drain(study)
    assert len(finetuned(study)) == 3


def test_nothing_is_promoted_during_the_warm_up() -> None:
    study = create_study(warmup=10)
    study.optimize(objective, n_trials=9)
    assert {t.state for t in study.trials} == {TrialState.PRUNED}
    study.optimize(objective, n_trials=1)
    drain(study)
    assert len(finetuned(study)) == 2


def test_previews_that_are_nan_are_pruned_and_never_promoted(storage: BaseStorage) -> None:
    def mostly_nan(trial: optuna.Trial) -> float:
        w = trial.suggest_float("w_a", 0, 1)
        if "promoted_from" not in trial.user_attrs:
            trial.report(w if trial.number % 4 == 0 else math.nan, 0)
        if trial.should_prune():
            raise optuna.TrialPruned
        return w

    study = create_study(storage, fraction=1.0, warmup=0)
    study.optimize(mostly_nan, n_trials=12)
    drain(study)
    finite = {t.number for t in previewed(study) if not math.isnan(t.intermediate_values[0])}
    assert {t.user_attrs["promoted_from"] for t in finetuned(study)} == finite
    assert 0 < len(finite) < len(previewed(study))


def test_failed_trials_do_not_count(storage: BaseStorage) -> None:
    def fails(trial: optuna.Trial) -> float:
        trial.report(0.99, 0)
        raise RuntimeError

    study = create_study(storage, warmup=0)
    study.optimize(fails, n_trials=6, catch=RuntimeError)
    for w in (0.1, 0.2, 0.3):
        study.enqueue_trial({"w_a": w})
    study.optimize(objective, n_trials=3)
    assert Counter(t.state for t in study.trials) == {TrialState.FAIL: 6, TrialState.PRUNED: 3}


def test_a_failed_finetune_is_not_replaced() -> None:
    """A finetune that always fails must not eat its way through all previews."""

    def fails(trial: optuna.Trial) -> float:
        objective(trial)
        raise RuntimeError

    study = create_study(warmup=4)
    study.optimize(fails, n_trials=23, catch=RuntimeError)
    failed = study.get_trials(states=[TrialState.FAIL])
    assert len(failed) <= len(previewed(study)) // 4


def test_two_workers_that_promote_the_same_preview(storage: BaseStorage) -> None:
    """Both queue a copy of it; the second copy gives way."""
    study = create_study(storage, fraction=0.5, warmup=2)
    for w in (0.9, 0.1):
        study.enqueue_trial({"w_a": w})
    study.optimize(objective, n_trials=2)
    (queued,) = study.get_trials(states=[TrialState.WAITING])
    study.add_trial(queued)  # what the other worker does
    first, second = study.ask(), study.ask()
    assert second.should_prune() is True  # though the first one has not asked yet
    assert first.should_prune() is False
    study.tell(first, 1.0)
    study.tell(second, state=TrialState.PRUNED)
    assert second.user_attrs["promotion"] == "withdrawn"
    assert len(study.trials) == 4


def test_two_workers_that_fill_one_slot(storage: BaseStorage) -> None:
    """Each has queued the best that it could see: the first copy runs, the second withdraws."""
    study = create_study(storage, fraction=0.5, warmup=2)
    for w in (0.9, 0.1):
        study.enqueue_trial({"w_a": w})
    study.optimize(objective, n_trials=2)
    (queued,) = study.get_trials(states=[TrialState.WAITING])
    queued.user_attrs["promoted_from"] = 1
    study.add_trial(queued)  # what the other worker does
    first, second = study.ask(), study.ask()
    assert first.should_prune() is False
    assert second.should_prune() is True
    study.tell(first, 0.9)
    study.tell(second, state=TrialState.PRUNED)
    for w in (0.05, 0.05):
        study.enqueue_trial({"w_a": w})
    study.optimize(objective, n_trials=2)
    drain(study)
    assert [t.user_attrs["promoted_from"] for t in finetuned(study)] == [0, 1]


def test_trials_without_a_preview_are_left_alone() -> None:
    study = create_study(fraction=0.0, warmup=0)
    trial = study.ask()
    assert trial.should_prune() is False
    trial.report(0.1, 5)
    assert trial.should_prune() is False


def test_a_finetune_is_not_pruned_at_rungs() -> None:
    study = create_study(fraction=1.0, warmup=0)
    study.enqueue_trial({"w_a": 0.5})
    study.optimize(objective, n_trials=1)
    copied = study.ask()
    assert copied.should_prune() is False
    for step in (10, 20):
        copied.report(0.01, step)
        assert copied.should_prune() is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fraction": -0.1}, "fraction is -0.1"),
        ({"fraction": 1.1}, "fraction is 1.1"),
        ({"fraction": math.nan}, "fraction is nan"),
        ({"max_promotions": -1}, "max_promotions is -1"),
        ({"warmup": -1}, "warmup is -1"),
        ({"budget": -1}, "finetunes is -1, expected 0 or more"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromotionPruner(**arguments)


def test_a_score_that_is_no_function() -> None:
    with pytest.raises(TypeError, match="score is str, expected a function or None"):
        PromotionPruner(score="mean")  # type: ignore[arg-type]


def test_with_one_task_the_seed_changes_nothing() -> None:
    studies = [create_study(seed=seed) for seed in (None, 7)]
    for study in studies:
        study.optimize(objective, n_trials=30)
    first, second = ([(t.state, t.params) for t in s.trials] for s in studies)
    assert first == second


def several(trial: optuna.Trial) -> tuple[float, float]:
    """Previews are the weights, the truths their square roots; nothing is reported."""
    w = [trial.suggest_float(f"w_{task}", 0, 1) for task in "ab"]
    shares = [v / sum(w) for v in w]
    for task, share in zip("ab", shares):
        trial.set_user_attr(f"preview_{task}", share)
    if should_prune(trial):
        raise optuna.TrialPruned
    return math.sqrt(shares[0]), math.sqrt(shares[1])


def test_several_objectives(storage: BaseStorage) -> None:
    study = optuna.create_study(
        storage=storage,
        directions=["maximize"] * 2,
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=PromotionPruner(fraction=0.25, warmup=4),
    )
    study.set_user_attr("reference_point", {"a": -0.1, "b": -0.1})
    study.enqueue_trial({"w_a": 1.0, "w_b": 1.0}, user_attrs={"baseline": "uniform"})
    study.optimize(several, n_trials=25)
    while study.get_trials(deepcopy=False, states=[TrialState.WAITING]):
        study.optimize(several, n_trials=1)
    trials = study.trials
    copies = [t for t in trials if "promoted_from" in t.user_attrs]
    previews = [t for t in trials[1:] if t not in copies]
    done = [t for t in trials[1:] if t.state == TrialState.COMPLETE]
    assert len(done) == len(previews) // 4
    assert copies
    for made in copies:
        source = trials[made.user_attrs["promoted_from"]]
        assert made.params == source.params
        assert made.intermediate_values == {}
        assert made.user_attrs["preview_a"] == source.user_attrs["preview_a"]
    # spread over the front, not crowded where one preview is large
    shares = sorted(t.values[0] ** 2 for t in done)
    assert max(shares) - min(shares) > 0.4
    assert {t.state for t in trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    again = PromotionPruner(fraction=0.25, warmup=4)
    for made in trials:
        assert again.prune(study, made) == (made.state == TrialState.PRUNED)
    assert len(study.trials) == len(trials)


def test_a_trial_without_preview_is_not_pruned() -> None:
    study = optuna.create_study(directions=["maximize"] * 2, pruner=PromotionPruner())
    trial = study.ask()
    for task in "ab":
        trial.suggest_float(f"w_{task}", 0, 1)
    assert not should_prune(trial)
    trial.set_user_attr("preview_a", 0.5)
    assert not should_prune(trial)


@pytest.mark.filterwarnings("ignore:Fixed parameter")
def test_what_can_not_be_copied_is_no_candidate(storage: BaseStorage) -> None:
    """Optuna takes an enqueued value out of its range once: of such a trial there is no copy."""
    study = create_study(storage, fraction=0.25, warmup=4)
    study.enqueue_trial({"w_a": 2.0})  # the best preview by far
    study.optimize(objective, n_trials=12)
    drain(study)
    assert study.trials[0].params == {"w_a": 2.0}
    assert study.trials[0].state == TrialState.PRUNED
    assert TrialState.FAIL not in {t.state for t in study.trials}
    assert len(finetuned(study)) == len(previewed(study)) // 4 >= 2
    assert all(0 <= t.params["w_a"] <= 1 for t in finetuned(study))


@pytest.mark.filterwarnings("ignore:Fixed parameter")
def test_what_can_not_be_copied_is_given_up_when_its_worker_dies(storage: BaseStorage) -> None:
    study = create_study(storage, fraction=0.25, warmup=4)
    study.enqueue_trial({"w_a": 2.0})
    trial = study.ask()
    trial.suggest_float("w_a", 0, 1)
    assert fail_and_requeue(study, trial.number, "its worker died")
    (failed,) = study.trials
    assert failed.state == TrialState.FAIL
