"""Names of tasks: which attributes of trials they make, and that these are all that there are."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from helpers import toy_definition, toy_settings, toy_task
from optuna.trial import FrozenTrial

import optuna_merge as om
from optuna_merge.definition import PosteriorSettings
from optuna_merge.trials import CLAIM, DECISION, OF_TASKS, OF_TRIALS, REFINED, check_task_names

TASKS = ("math", "math_hard", "se", "seconds_se")
"""Names that are prefixes and suffixes of others, and yet make attributes of their own."""
STEPS = (2, 4)


def searched(folder: Path, racing: om.Racing | None) -> list[FrozenTrial]:
    tasks = [toy_task(name, seed) for seed, name in enumerate(TASKS, 1)]
    changes: dict[str, object] = {
        "compare": [PosteriorSettings(family="isotropic")],
        "finetuning": toy_settings(steps=4),
    }
    if racing is None:  # which goes with neither
        changes |= {
            "refinement": om.RefinementSettings(steps=STEPS, learning_rates=(1.0,)),
            "constraints": 0.5,
        }
    fitted = om.fit(toy_definition(tasks, **changes), folder, progress=False)
    study = om.open_study(
        "names",
        optuna.storages.InMemoryStorage(),
        "maximize",
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=om.PromotionPruner(
            fraction=0.25, warmup=2, refinements=fitted.definition.refinement_steps, seed=0
        ),
    )
    om.prepare_study(study, fitted)
    study.optimize(om.Objective(fitted, progress=False, racing=racing), n_trials=20)
    return study.trials


@pytest.mark.parametrize("racing", [None, om.Racing(alpha=0.3)])
def test_the_lists_of_attributes_are_complete(tmp_path: Path, racing: om.Racing | None) -> None:
    check_task_names(TASKS)
    of_gates = {f"{name}{step}" for name in (DECISION, CLAIM) for step in ("", "_2", "_4")}
    of_tasks = [template.format(task=task) for template in OF_TASKS for task in TASKS]
    of_tasks += [REFINED.format(step=step, task=task) for step in STEPS for task in TASKS]
    assert len(of_tasks) == len(set(of_tasks))
    assert not {*OF_TRIALS, *of_gates} & set(of_tasks)
    prefixes = {template.partition("{")[0] for template in (*OF_TASKS, REFINED)}

    seen = {key for trial in searched(tmp_path, racing) for key in trial.user_attrs}
    ours = {key for key in seen if key.startswith(tuple(prefixes))}
    assert ours <= {*OF_TRIALS, *of_gates, *of_tasks}
    expected = {"weight_math", "preview_se_se", "truth_math_hard", "preview_seconds"}
    expected |= {"partial_preview_se"} if racing else {"refined_2_math", "constraint_math_hard_"}
    assert all(any(key.startswith(name) for key in seen) for name in expected)
