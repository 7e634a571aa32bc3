"""Refined previews: a few weighted training steps from a merge."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import files_below, same, toy_definition, toy_settings

from optuna_merge.finetuning import FinetuneSettings
from optuna_merge.fitting import FittedStudy, fit
from optuna_merge.previews import refinement_settings, weighted_loss

WEIGHTS = {"red": 0.3, "blue": 0.7}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workdir")


@pytest.fixture(scope="module")
def fitted(folder: Path) -> FittedStudy:
    return fit(toy_definition(), folder, progress=False)


def test_a_refinement_starts_at_the_merge_and_lowers_the_weighted_loss(
    fitted: FittedStudy,
) -> None:
    merge = fitted.previewer(WEIGHTS).evaluations
    few, more = (fitted.refine(WEIGHTS, steps, rate=1.0) for steps in (2, 5))
    losses = [weighted_loss(WEIGHTS, found) for found in (merge, few, more)]
    assert losses == sorted(losses, reverse=True) and len(set(losses)) == 3
    settings = refinement_settings(fitted.definition.finetuning, 5, rate=1.0)
    run = fitted.store.find(WEIGHTS, settings, fitted.merge(WEIGHTS))
    assert run is not None
    assert run.evaluations == more
    # The same steps from the body end elsewhere.
    from_body = fitted.store.run(fitted.model, fitted.tasks, WEIGHTS, settings)
    assert from_body.path != run.path
    assert not same(from_body.parameters(), run.parameters())


def test_a_refinement_is_kept_and_the_study_s_previews_stay(
    fitted: FittedStudy, folder: Path
) -> None:
    merge = fitted.previewer(WEIGHTS).evaluations
    first = fitted.refine(WEIGHTS, 4)
    before = files_below(folder)
    assert fitted.refine(WEIGHTS, 4) == first
    assert files_below(folder) == before
    assert fitted.previewer(WEIGHTS).evaluations == merge
    assert fitted.refine(WEIGHTS, 4, rate=0.31) != first, "another run"
    assert len(files_below(folder)) == len(before) + 1


def test_what_does_not_lower_the_loss_is_thrown_away(fitted: FittedStudy) -> None:
    merge = fitted.previewer(WEIGHTS).evaluations
    assert fitted.refine(WEIGHTS, 2, rate=1e5) == merge
    settings = refinement_settings(fitted.definition.finetuning, 2, rate=1e5)
    run = fitted.store.find(WEIGHTS, settings, fitted.merge(WEIGHTS))
    assert run is not None
    assert weighted_loss(WEIGHTS, run.evaluations) > weighted_loss(WEIGHTS, merge)


def test_a_task_without_weight_keeps_its_head(fitted: FittedStudy) -> None:
    weights = {"red": 1.0, "blue": 0.0}
    fitted.refine(weights, 3)
    settings = refinement_settings(fitted.definition.finetuning, 3, rate=1.0)
    run = fitted.store.find(weights, settings, fitted.merge(weights))
    assert run is not None
    blue = fitted.model.own_names("blue")
    expected = fitted.previewer.merged(weights)
    assert same({n: run.parameters()[n] for n in blue}, {n: expected[n] for n in blue})


@pytest.mark.parametrize(
    ("steps", "rate", "message"),
    [
        (0, 0.3, "steps must be at least 1, got 0"),
        (2, 0.0, "rate is a positive multiple of the learning rate, got 0.0"),
        (2, -1.0, "rate is a positive multiple"),
        (2, float("nan"), "rate is a positive multiple"),
    ],
)
def test_bad_numbers_are_named_before_anything_is_trained(
    steps: int, rate: float, message: str, fitted: FittedStudy, folder: Path
) -> None:
    before = files_below(folder)
    with pytest.raises(ValueError, match=message):
        fitted.refine(WEIGHTS, steps, rate=rate)
    assert files_below(folder) == before


def test_it_is_by_adamw_at_a_constant_rate_whatever_the_task_runs_do() -> None:
    settings = refinement_settings(
        toy_settings(head_learning_rate=0.1, learning_rate=0.02, warmup=0.5), 6, rate=0.5
    )
    assert settings.rungs() == (6,)
    assert (settings.learning_rate, settings.head_learning_rate) == (0.01, 0.05)
    assert [settings.rate(step) for step in range(6)] == [1.0] * 6
    ivon = refinement_settings(FinetuneSettings(optimizer="ivon", learning_rate=0.3), 6, rate=1.0)
    assert ivon.optimizer == "adamw" and ivon.learning_rate == 5e-5
