"""Several workers on one study, interleaved at every call of the storage, some of them dying.

The workers are threads of which one runs at a time; whose turn it is, and who dies, is drawn from
a seed, so that a failure can be had again. After all of it the budget is used exactly.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from functools import partial
from typing import Any

import optuna
import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from optuna_merge.pruners import PromotionPruner, read_ledger
from optuna_merge.trials import fail_and_requeue, lineage


class Killed(BaseException):
    """The worker's process is no more: nothing that it would have done happens."""


class Turns:
    """Lets one thread go on at a time, from one call of `wait` to its next."""

    def __init__(self, seed: int, deaths: float) -> None:
        self._random = random.Random(seed)
        self._deaths = deaths
        self._condition = threading.Condition()
        self._waiting: set[int] = set()
        self._alive: set[int] = set()
        self._dead: set[int] = set()
        self._turn: int | None = None

    def wait(self) -> None:
        me = threading.get_ident()
        if me not in self._alive:
            return  # not a worker: nothing to schedule
        with self._condition:
            self._waiting.add(me)
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._turn == me)
            self._turn = None
            self._waiting.remove(me)
            if self._random.random() < self._deaths:
                self._dead.add(me)
        if me in self._dead:
            raise Killed

    def run(self, works: list[Any]) -> None:
        def work(function: Any) -> None:
            ready.wait()
            try:
                function()
            except BaseException as error:
                # Optuna may turn a death within `tell` into another error.
                if threading.get_ident() not in self._dead:
                    errors.append(error)
            finally:
                with self._condition:
                    self._alive.discard(threading.get_ident())
                    self._condition.notify_all()

        ready = threading.Event()
        errors: list[BaseException] = []
        threads = [threading.Thread(target=work, args=(function,)) for function in works]
        for thread in threads:
            thread.start()
        self._alive = {thread.ident or 0 for thread in threads}
        ready.set()
        with self._condition:
            while self._alive:
                all_wait = self._condition.wait_for(
                    lambda: self._turn is None and self._alive == self._waiting, timeout=30
                )
                assert all_wait, "a worker neither waits nor ends"
                # Drawn by the order of starting, not by the system's thread numbers.
                order = [t.ident for t in threads if t.ident in self._waiting]
                if order:
                    self._turn = self._random.choice(order)
                    self._condition.notify_all()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]


class InterleavedStorage(InMemoryStorage):
    """Memory in which each read and each write is a turn of its own, as in a database."""

    def __init__(self, turns: Turns) -> None:
        super().__init__()
        self._turns = turns

    def get_all_trials(self, *args: Any, **kwargs: Any) -> Any:
        self._turns.wait()
        return super().get_all_trials(*args, **kwargs)

    def create_new_trial(self, *args: Any, **kwargs: Any) -> Any:
        self._turns.wait()
        return super().create_new_trial(*args, **kwargs)

    def set_trial_user_attr(self, *args: Any, **kwargs: Any) -> Any:
        self._turns.wait()
        return super().set_trial_user_attr(*args, **kwargs)

    def set_trial_intermediate_value(self, *args: Any, **kwargs: Any) -> Any:
        self._turns.wait()
        return super().set_trial_intermediate_value(*args, **kwargs)

    def set_trial_state_values(self, *args: Any, **kwargs: Any) -> Any:
        self._turns.wait()
        return super().set_trial_state_values(*args, **kwargs)


@pytest.mark.parametrize("deaths", [0.0, 0.04])
@pytest.mark.parametrize("fraction", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("block", range(3))
def test_the_budget_is_met_exactly(block: int, fraction: float, deaths: float) -> None:
    optuna.logging.get_logger("optuna")  # configured here, not in the threads
    for seed in range(50 * block, 50 * (block + 1)):
        _one_study(seed, fraction, deaths)


def test_it_is_met_when_the_truths_posterior_decides() -> None:
    optuna.logging.get_logger("optuna")
    for seed in range(25):
        _one_study(seed, 0.6, 0.02, n_tasks=2)


@pytest.mark.parametrize("deaths", [0.0, 0.04])
def test_with_automatic_pacing_nothing_is_finetuned_twice(deaths: float) -> None:
    optuna.logging.get_logger("optuna")
    begun = sum(_one_study(seed, None, deaths, n_tasks=2) for seed in range(6))
    assert begun > 6


def _one_study(
    seed: int,
    fraction: float | None,
    deaths: float,
    n_tasks: int = 1,
) -> int:
    """The number of finetunes that ended."""
    turns = Turns(seed, deaths)
    storage = InterleavedStorage(turns)
    draws = random.Random(seed)
    # Short studies: what goes wrong at the end can't be mended by a later preview.
    warmup, n_workers, n_trials = draws.randint(0, 4), draws.randint(2, 4), draws.randint(1, 4)
    n_trials *= n_tasks**2
    finetunes: list[int] = []

    def study(index: int) -> optuna.Study:
        return optuna.create_study(
            study_name="s",
            storage=storage,
            direction="maximize",
            sampler=optuna.samplers.RandomSampler(seed=100 * seed + index),
            pruner=PromotionPruner(fraction=fraction, warmup=warmup),
            load_if_exists=True,
        )

    def objective(trial: optuna.Trial) -> float:
        w, *_ = [trial.suggest_float(f"w_{task}", 0, 1) for task in "ab"[:n_tasks]]
        if 0 not in storage.get_trial(trial._trial_id).intermediate_values:
            trial.report(w, 0)
        if trial.should_prune():
            raise optuna.TrialPruned
        turns.wait()
        finetunes.append(trial.user_attrs["promoted_from"])
        return w

    def worker(index: int) -> None:
        mine = study(index)
        for _ in range(n_trials):
            mine.optimize(objective, n_trials=1)

    main = study(0)
    turns.run([partial(worker, index) for index in range(1, n_workers + 1)])
    # What is left: dead workers' trials are requeued, and all that waits is executed.
    while left := main.get_trials(states=[TrialState.RUNNING, TrialState.WAITING]):
        for trial in left:
            fail_and_requeue(main, trial, max_retry=100)
        if any(trial.state == TrialState.WAITING for trial in main.trials):
            main.optimize(objective, n_trials=1)

    trials = main.trials
    ledger = read_ledger(trials)
    n_previews = len(ledger.previews)
    if fraction is None:
        cap = len(ledger.claims)
    else:
        cap = int(fraction * n_previews + 1e-9) if n_previews >= warmup else 0
    assert len(ledger.claims) == cap, f"seed {seed}"
    complete = Counter(lineage(t) for t in trials if t.state == TrialState.COMPLETE)
    assert len(complete) == cap, f"seed {seed}"
    assert set(complete.values()) <= {1}, f"seed {seed}"
    if deaths == 0:
        assert len(finetunes) == len(set(finetunes)) == cap
        copies = [trial for trial in trials if "promoted_from" in trial.user_attrs]
        assert n_previews + len(copies) == len(trials)
    return len(complete)
