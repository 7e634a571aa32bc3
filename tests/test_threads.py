"""Threads of one process: what they find at once is what one of them finds alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import optuna
from helpers import same, toy_definition, toy_settings
from safetensors.torch import load_file

import optuna_merge as om
from optuna_merge.definition import StudyDefinition
from optuna_merge.exporting import export_model

FINISHED = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
WEIGHTINGS = [{"red": share, "blue": 1 - share} for share in (0.125, 0.25, 0.5, 0.625, 0.875)]


def fitted_in(folder: Path, **changes: object) -> om.FittedStudy:
    return om.fit(toy_definition(**changes), folder, progress=False)


def preview_of(fitted: om.FittedStudy, weights: dict[str, float]) -> dict[str, float]:
    found = fitted.previewer(weights).evaluations
    return {name: evaluation.loss.value for name, evaluation in found.items()}


def truth_of(fitted: om.FittedStudy, weights: dict[str, float]) -> dict[str, float]:
    settings = fitted.definition.finetuning
    run = fitted.store.run(fitted.model, fitted.tasks, weights, settings)
    return {name: evaluation.loss.value for name, evaluation in run.evaluations.items()}


def refined_of(fitted: om.FittedStudy, weights: dict[str, float]) -> dict[str, float]:
    found = fitted.refine(weights, steps=4, rate=1.0)
    return {name: evaluation.loss.value for name, evaluation in found.items()}


def at_once(*works: Callable[[], object]) -> list[object]:
    """The results of functions that threads begin at one moment."""
    together = threading.Barrier(len(works))

    def begin(work: Callable[[], object]) -> object:
        together.wait()
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result() for future in [pool.submit(begin, work) for work in works]]


def test_a_search_in_threads_finds_what_one_thread_finds(tmp_path: Path) -> None:
    settings = toy_settings(steps=12)
    fitted = fitted_in(tmp_path / "threads", finetuning=settings)
    study = om.open_study(
        "threads",
        optuna.storages.InMemoryStorage(),
        "maximize",
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=om.PromotionPruner(fraction=0.5, warmup=2, seed=0),
    )
    om.prepare_study(study, fitted, second_seed=False)
    study.optimize(om.Objective(fitted, progress=False), n_trials=14, n_jobs=4)

    fresh = fitted_in(tmp_path / "alone", finetuning=settings)
    truths = 0
    for trial in study.get_trials(states=FINISHED):
        attrs = trial.user_attrs
        weights = {name: attrs[f"weight_{name}"] for name in ("red", "blue")}
        for name, evaluation in fresh.previewer(weights).evaluations.items():
            assert attrs[f"preview_{name}"] == evaluation.metric.value
        if trial.state != optuna.trial.TrialState.COMPLETE:
            continue
        truths += 1
        run = fresh.store.run(fresh.model, fresh.tasks, weights, settings)
        for name, evaluation in run.evaluations.items():
            assert attrs[f"truth_{name}"] == evaluation.metric.value
        kept = fitted.store.find(weights, settings)
        assert kept is not None
        assert same(kept.parameters(), run.parameters())
    assert truths >= 4


def test_two_fits_of_one_model_take_turns(tmp_path: Path) -> None:
    definition = toy_definition(finetuning=toy_settings(steps=12))
    one, two = (om.fit(definition, tmp_path / name, progress=False) for name in ("one", "two"))
    found = at_once(
        lambda: [truth_of(one, weights) for weights in WEIGHTINGS],
        lambda: [preview_of(two, weights) for weights in WEIGHTINGS * 4],
        lambda: [export_model(two, tmp_path / "export", weights=WEIGHTINGS[0])],
        lambda: [refined_of(two, weights) for weights in WEIGHTINGS],
    )
    fresh = fitted_in(tmp_path / "fresh", finetuning=toy_settings(steps=12))
    assert found[0] == [truth_of(fresh, weights) for weights in WEIGHTINGS]
    assert found[1] == [preview_of(fresh, weights) for weights in WEIGHTINGS * 4]
    assert found[3] == [refined_of(fresh, weights) for weights in WEIGHTINGS]
    export_model(fresh, tmp_path / "expected", weights=WEIGHTINGS[0])
    files = sorted(path.relative_to(tmp_path / "expected") for path in model_files(tmp_path))
    assert files
    for file in files:
        assert same(load_file(tmp_path / "export" / file), load_file(tmp_path / "expected" / file))


def model_files(folder: Path) -> list[Path]:
    return list((folder / "expected").rglob("*.safetensors"))


def test_fits_and_finetunes_of_different_models_at_once(tmp_path: Path) -> None:
    """Dropout and transforms draw from generators of the whole process."""

    seeds = (0, 1, 2)

    def definitions() -> list[StudyDefinition]:
        return [toy_definition(finetuning=toy_settings(steps=12, seed=seed)) for seed in seeds]

    def searched(definition: StudyDefinition, folder: Path) -> list[dict[str, float]]:
        fitted = om.fit(definition, folder, progress=False)
        return [truth_of(fitted, weights) for weights in WEIGHTINGS[:2]]

    works = [
        partial(searched, definition, tmp_path / f"at once {seed}")
        for seed, definition in zip(seeds, definitions())
    ]
    found = at_once(*works)
    alone = [
        searched(definition, tmp_path / f"alone {seed}")
        for seed, definition in zip(seeds, definitions())
    ]
    assert found == alone
    assert found[0] != found[1]
