"""Searches by SMAC3 and Syne Tune; run by the interpreter that has one of them.

    python studies/search/others.py NAME LANDSCAPE.json BUDGET SEED...

Prints a record for each seed, as JSON: truths (costs, point, score seen), and how many finetunes
ended at each rung. NAME is one of `METHODS`. Task weights are numbers from 0 to 1, one a task,
divided by their sum, or with "-log u" in the name their logarithms (`simplex_weights`); the first
ones are uniform. Fidelities are the rungs of a finetune, which goes on where it stopped.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from studies.search.replay import (
    REDUCTION,
    Finetune,
    Finetunes,
    Landscape,
    resources,
    simplex_weights,
)

STARTUP = 6

SIMPLEX = " (-log u)"
METHODS = {
    name + suffix: environment
    for name, environment in (("SMAC", "smac"), ("ASHA", "syne-tune"), ("BOHB", "syne-tune"))
    for suffix in ("", SIMPLEX)
}
"""The environment of each method."""

Space = Callable[[list[float]], list[float]]


def smac(finetunes: Finetunes, seed: int, space: Space) -> None:
    """SMAC3's MultiFidelityFacade: random forest and Hyperband."""
    from ConfigSpace import Configuration, ConfigurationSpace, Float
    from smac import MultiFidelityFacade, Scenario
    from smac.runhistory.dataclasses import TrialValue

    budgets = resources(len(finetunes.landscape.steps))
    names = _names(finetunes)
    cube = ConfigurationSpace(seed=seed)
    cube.add([Float(name, (0.0, 1.0)) for name in names])
    begun: dict[Any, Finetune] = {}
    with tempfile.TemporaryDirectory() as folder:
        scenario = Scenario(
            cube,
            deterministic=True,
            n_trials=10_000,
            min_budget=budgets[0],
            max_budget=budgets[-1],
            seed=seed,
            output_directory=Path(folder),
        )
        same = Configuration(cube, values=dict.fromkeys(names, 0.5))
        design = MultiFidelityFacade.get_initial_design(
            scenario, n_configs=STARTUP - 1, additional_configs=[same]
        )
        facade = MultiFidelityFacade(
            scenario,
            _not_called,
            initial_design=design,
            intensifier=MultiFidelityFacade.get_intensifier(scenario, eta=REDUCTION),
            overwrite=True,
            logging_level=False,
        )
        while not finetunes.is_over:
            asked = facade.ask()
            if asked.config not in begun:
                numbers = [float(asked.config[name]) for name in names]
                begun[asked.config] = finetunes.begin(finetunes.nearest(space(numbers)))
            rung = int(np.abs(np.array(budgets) - asked.budget).argmin())
            value = begun[asked.config].train(rung)
            facade.tell(asked, TrialValue(cost=-value), save=False)


def syne_tune(name: str) -> Callable[[Finetunes, int, Space], None]:
    """Syne Tune's ASHA (random points) or BOHB (kernel densities), of the stopping kind."""

    def search(finetunes: Finetunes, seed: int, space: Space) -> None:
        from syne_tune.backend.trial_status import Trial
        from syne_tune.config_space import uniform
        from syne_tune.optimizer import baselines
        from syne_tune.optimizer.scheduler import SchedulerDecision

        budgets = resources(len(finetunes.landscape.steps))
        names = _names(finetunes)
        np.random.seed(seed)  # noqa: NPY002 (brackets are drawn so)
        scheduler = getattr(baselines, name)(
            {name: uniform(0.0, 1.0) for name in names},
            metric="score",
            time_attr="step",
            max_t=budgets[-1],
            grace_period=budgets[0],
            reduction_factor=REDUCTION,
            do_minimize=False,
            random_seed=seed,
            points_to_evaluate=[dict.fromkeys(names, 0.5)],
        )
        number = 0
        while not finetunes.is_over:
            config = scheduler.suggest().config
            trial = Trial(number, config, datetime.now())
            scheduler.on_trial_add(trial)
            weights = space([float(config[name]) for name in names])
            finetune = finetunes.begin(finetunes.nearest(weights))
            for rung, resource in enumerate(budgets):
                found = {"score": finetune.train(rung), "step": resource}
                if scheduler.on_trial_result(trial, found) != SchedulerDecision.CONTINUE:
                    break
            scheduler.on_trial_remove(trial)
            number += 1

    return search


def _names(finetunes: Finetunes) -> list[str]:
    return [f"w{i}" for i in range(finetunes.landscape.weights.shape[1])]


def _not_called(config: Any, seed: int = 0, budget: float = 0.0) -> float:
    raise NotImplementedError  # it is asked and told


def main() -> None:
    name, path, budget, *seeds = sys.argv[1:]
    logging.disable(logging.WARNING)
    landscape = Landscape.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
    base = name.removesuffix(SIMPLEX)
    space: Space = simplex_weights if name.endswith(SIMPLEX) else list
    search = smac if base == "SMAC" else syne_tune(base)
    found = []
    for seed in map(int, seeds):
        finetunes = Finetunes(landscape, seed, float(budget))
        search(finetunes, seed, space)
        found.append(finetunes.record)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
