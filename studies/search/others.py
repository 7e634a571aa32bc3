"""Searches by SMAC3 and Syne Tune; run by the interpreter that has one of them.

    python studies/search/others.py NAME LANDSCAPE.json BUDGET SEED...

Prints a list of truths (cost, point, score seen) for each seed, as JSON. NAME is one of `METHODS`.
Task weights are numbers from 0 to 1, one a task, divided by their sum; the first ones are uniform.
Fidelities are the rungs of a finetune, which goes on where it stopped.
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

from studies.search.replay import Finetune, Finetunes, Landscape

STARTUP = 6

METHODS = {"SMAC": "smac", "ASHA": "syne-tune", "BOHB": "syne-tune"}
"""The environment of each method."""


def smac(finetunes: Finetunes, seed: int) -> None:
    """SMAC3's MultiFidelityFacade: random forest and Hyperband."""
    from ConfigSpace import Configuration, ConfigurationSpace, Float
    from smac import MultiFidelityFacade, Scenario
    from smac.runhistory.dataclasses import TrialValue

    steps = finetunes.landscape.steps
    names = _names(finetunes)
    space = ConfigurationSpace(seed=seed)
    space.add([Float(name, (0.0, 1.0)) for name in names])
    begun: dict[Any, Finetune] = {}
    with tempfile.TemporaryDirectory() as folder:
        scenario = Scenario(
            space,
            deterministic=True,
            n_trials=10_000,
            min_budget=steps[0],
            max_budget=steps[-1],
            seed=seed,
            output_directory=Path(folder),
        )
        same = Configuration(space, values=dict.fromkeys(names, 1 / len(names)))
        design = MultiFidelityFacade.get_initial_design(
            scenario, n_configs=STARTUP - 1, additional_configs=[same]
        )
        facade = MultiFidelityFacade(
            scenario,
            _not_called,
            initial_design=design,
            overwrite=True,
            logging_level=False,
        )
        while not finetunes.is_over:
            asked = facade.ask()
            if asked.config not in begun:
                numbers = [float(asked.config[name]) for name in names]
                begun[asked.config] = finetunes.begin(finetunes.nearest(numbers))
            rung = min(int(np.searchsorted(steps, asked.budget - 1e-6)), len(steps) - 1)
            value = begun[asked.config].train(rung)
            facade.tell(asked, TrialValue(cost=-value), save=False)


def syne_tune(name: str) -> Callable[[Finetunes, int], None]:
    """Syne Tune's ASHA (random points) or BOHB (kernel densities), of the stopping kind."""

    def search(finetunes: Finetunes, seed: int) -> None:
        from syne_tune.backend.trial_status import Trial
        from syne_tune.config_space import uniform
        from syne_tune.optimizer import baselines
        from syne_tune.optimizer.scheduler import SchedulerDecision

        steps = finetunes.landscape.steps
        names = _names(finetunes)
        np.random.seed(seed)  # noqa: NPY002 (brackets are drawn so)
        scheduler = getattr(baselines, name)(
            {name: uniform(0.0, 1.0) for name in names},
            metric="score",
            time_attr="step",
            max_t=steps[-1],
            grace_period=steps[0],
            do_minimize=False,
            random_seed=seed,
            points_to_evaluate=[dict.fromkeys(names, 1 / len(names))],
        )
        number = 0
        while not finetunes.is_over:
            config = scheduler.suggest().config
            trial = Trial(number, config, datetime.now())
            scheduler.on_trial_add(trial)
            finetune = finetunes.begin(finetunes.nearest([config[name] for name in names]))
            for rung, step in enumerate(steps):
                found = {"score": finetune.train(rung), "step": step}
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
    search = smac if name == "SMAC" else syne_tune(name)
    found = []
    for seed in map(int, seeds):
        finetunes = Finetunes(landscape, seed, float(budget))
        search(finetunes, seed)
        found.append(finetunes.truths)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
