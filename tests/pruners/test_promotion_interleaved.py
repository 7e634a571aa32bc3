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

from optuna_merge._optuna import fail_and_requeue
from optuna_merge.pruners import PromotionPruner, read_ledger
from optuna_merge.pruners._decision import Gate, value_at


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


@pytest.mark.parametrize("deaths", [0.0, 0.03])
@pytest.mark.parametrize("refinements", [(3,), (2, 7)])
def test_it_is_met_at_every_gate(refinements: tuple[int, ...], deaths: float) -> None:
    optuna.logging.get_logger("optuna")
    for seed in range(60):
        _one_study(seed, 0.3, deaths, refinements=refinements)


@pytest.mark.parametrize("previews_are_true", [False, True])
@pytest.mark.parametrize("deaths", [0.0, 0.03])
def test_it_is_met_while_the_gates_fractions_change(
    previews_are_true: bool, deaths: float
) -> None:
    optuna.logging.get_logger("optuna")
    # Fractions are measured from eight finetunes on: half of these previews, in long studies.
    refined = [
        _one_study(seed, 0.5, deaths, 2, (3,), rank="preview", previews_are_true=previews_are_true)
        for seed in range(12)
    ]
    equal, measured = sum(e for e, _ in refined), sum(m for _, m in refined)
    if deaths:  # studies are shorter
        assert measured <= equal if previews_are_true else measured >= equal
    else:
        assert measured < 0.9 * equal if previews_are_true else measured > 1.1 * equal


@pytest.mark.parametrize("deaths", [0.0, 0.04])
@pytest.mark.parametrize("rungs", [False, True])
def test_a_budget_in_steps_is_never_passed(rungs: bool, deaths: float) -> None:
    optuna.logging.get_logger("optuna")
    for seed in range(60):
        _one_study(seed, 1.0, deaths, max_steps=3 * STEPS + 2, rungs=rungs)


STEPS, FIRST_RUNG = 5, 2


def _one_study(
    seed: int,
    fraction: float,
    deaths: float,
    n_tasks: int = 1,
    refinements: tuple[int, ...] = (),
    max_steps: int | None = None,
    rungs: bool = False,
    rank: Any = "truth",
    previews_are_true: bool | None = None,
) -> tuple[int, int]:
    """Run it; how many previews equal fractions had refined first, and how many were."""
    turns = Turns(seed, deaths)
    storage = InterleavedStorage(turns)
    draws = random.Random(seed)
    # Short studies: what goes wrong at the end can't be mended by a later preview.
    warmup, n_workers, n_trials = draws.randint(0, 4), draws.randint(2, 4), draws.randint(1, 4)
    n_trials *= n_tasks**2 * (1 + 2 * len(refinements))
    finetunes: list[int] = []

    def study(index: int) -> optuna.Study:
        return optuna.create_study(
            study_name="s",
            storage=storage,
            direction="maximize",
            sampler=optuna.samplers.RandomSampler(seed=100 * seed + index),
            pruner=PromotionPruner(
                fraction=fraction,
                warmup=warmup,
                max_steps=max_steps,
                finetune_steps=STEPS,
                refinements=refinements,
                rank=rank,
            ),
            load_if_exists=True,
        )

    def objective(trial: optuna.Trial) -> float:
        w, *_ = [trial.suggest_float(f"w_{task}", 0, 1) for task in "ab"[:n_tasks]]
        if 0 not in storage.get_trial(trial._trial_id).intermediate_values:
            trial.report(w if previews_are_true is not False else (7.3 * w) % 1, 0)
        if trial.should_prune():
            raise optuna.TrialPruned
        for step in refinements:
            if step not in storage.get_trial(trial._trial_id).intermediate_values:
                refined = (7.3 * w * step) % 1 if previews_are_true is None else w
                trial.report(refined, step)
                if trial.should_prune():
                    raise optuna.TrialPruned
        turns.wait()
        finetunes.append(trial.user_attrs.get("promoted_from", trial.number))
        if rungs and w > 0.4:
            trial.report(w, FIRST_RUNG)
            raise optuna.TrialPruned
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
    gates = [Gate(step) for step in (0, *refinements)]
    n_previews = len(read_ledger(trials).previews)
    for index, gate in enumerate(gates):
        ledger = read_ledger(trials, value_at(gate), gate)
        passing = fraction ** ((index + 1) / len(gates))
        cap = int(passing * n_previews + 1e-9) if n_previews >= warmup else 0
        if max_steps is None and (previews_are_true is None or gate == gates[-1]):
            assert len(ledger.claims) == cap, f"seed {seed}, step {gate.step}"
    complete = Counter(_lineage(trials, t) for t in trials if t.state == TrialState.COMPLETE)
    if max_steps is not None:
        stopped = Counter(
            _lineage(trials, t)
            for t in trials
            if t.state == TrialState.PRUNED and FIRST_RUNG in t.intermediate_values
        )
        assert set(stopped.values()) <= {1}, f"seed {seed}"
        spent = STEPS * len(complete) + FIRST_RUNG * len(stopped)
        assert spent <= max_steps, f"seed {seed}"
        cap = min(cap, max_steps // STEPS)
        if rungs:  # what they give back is used from the next preview on, if there is one
            assert len(complete) + len(stopped) >= cap, f"seed {seed}"
            return 0, 0
    assert len(complete) == cap, f"seed {seed}"
    assert set(complete.values()) <= {1}, f"seed {seed}"
    if deaths == 0:
        assert len(finetunes) == len(set(finetunes)) == cap
        copies = [trial for trial in trials if "promoted_from" in trial.user_attrs]
        ledger = read_ledger(trials)
        assert len(ledger.previews) + len(copies) == len(trials)
    equal = int(fraction ** (1 / len(gates)) * n_previews + 1e-9)
    return equal, len(read_ledger(trials).claims)


def _lineage(trials: list[optuna.trial.FrozenTrial], trial: optuna.trial.FrozenTrial) -> int:
    """The number of the trial that all went on from."""
    source = trial.user_attrs.get("promoted_from")
    if source is not None:
        return _lineage(trials, trials[source])
    history = trial.system_attrs.get("retry_history") or [trial.number]
    return int(history[0])
