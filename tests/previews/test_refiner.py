from __future__ import annotations

from pathlib import Path

import pytest
from helpers import raise_at, same, toy_definition, toy_settings

from optuna_merge.definition import StudyDefinition
from optuna_merge.finetuning import FinetuneSettings
from optuna_merge.fitting import FittedStudy, fit
from optuna_merge.previews import RefinementSettings
from optuna_merge.previews._refiner import weighted_loss
from optuna_merge.tasks import Evaluation

WEIGHTS = {"red": 0.3, "blue": 0.7}
STEPS = (2, 5)

Seen = list[tuple[int, dict[str, Evaluation]]]


def definition(**changes: object) -> StudyDefinition:
    refinement = RefinementSettings(STEPS, **changes)  # type: ignore[arg-type]
    return toy_definition(refinement=refinement)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> FittedStudy:
    return fit(definition(), tmp_path_factory.mktemp("workdir"), progress=False)


def test_a_refinement_starts_at_the_merge_and_lowers_the_weighted_loss(
    fitted: FittedStudy,
) -> None:
    assert fitted.refiner is not None
    preview = fitted.previewer(WEIGHTS).evaluations
    seen: Seen = []
    run = fitted.refiner(WEIGHTS, on_rung=lambda step, found: seen.append((step, found)))
    assert [step for step, _ in seen] == list(STEPS)
    losses = [weighted_loss(WEIGHTS, found) for found in (preview, *(e for _, e in seen))]
    assert losses[-1] < losses[0]
    assert losses == sorted(losses, reverse=True)
    # By hand: the same steps from the merge give the same parameters, other starts do not.
    settings = fitted.refiner.settings
    assert run.path != fitted.store.path(WEIGHTS, settings)
    from_body = fitted.store.run(fitted.model, fitted.tasks, WEIGHTS, settings)
    assert not same(from_body.parameters(), run.parameters())


def test_a_rung_that_does_not_lower_the_loss_is_thrown_away(tmp_path: Path) -> None:
    far = fit(definition(learning_rates=(1e5,)), tmp_path, progress=False)
    assert far.refiner is not None
    preview = far.previewer(WEIGHTS).evaluations
    seen: Seen = []
    run = far.refiner(WEIGHTS, on_rung=lambda step, found: seen.append((step, found)))
    assert weighted_loss(WEIGHTS, run.evaluations) > weighted_loss(WEIGHTS, preview)
    assert [found for _, found in seen] == [preview, preview]


def test_a_refinement_that_was_stopped_goes_on_at_its_rung(
    fitted: FittedStudy, tmp_path: Path
) -> None:
    assert fitted.refiner is not None
    whole = fitted.refiner(WEIGHTS)
    other = fit(definition(), tmp_path, progress=False)
    assert other.refiner is not None
    with pytest.raises(KeyboardInterrupt):
        other.refiner(WEIGHTS, on_rung=raise_at(2))
    # Somebody else has used the model in the meantime.
    other.previewer({"red": 1.0, "blue": 0.0})
    seen: Seen = []
    run = other.refiner(WEIGHTS, on_rung=lambda step, found: seen.append((step, found)))
    assert [step for step, _ in seen] == list(STEPS)
    assert same(run.parameters(), whole.parameters())


def test_the_rate_is_the_best_at_uniform_weights(fitted: FittedStudy) -> None:
    refinement = fitted.definition.refinement
    assert refinement is not None and fitted.refiner is not None
    losses = {}
    for multiple in refinement.learning_rates:
        settings = refinement.training(fitted.definition.finetuning, multiple)
        uniform = {"red": 0.5, "blue": 0.5}
        run = fitted.store.find(uniform, settings, fitted.merge(uniform))
        assert run is not None and run.path in fitted.files
        losses[multiple] = weighted_loss(uniform, run.evaluations)
    assert fitted.parts["refinement_rate"] == min(losses, key=lambda rate: losses[rate])
    assert fitted.costs["refinement_choice_steps"] == 2 * STEPS[-1]
    assert fitted.refiner.settings.peak_rate == pytest.approx(
        fitted.parts["refinement_rate"] * fitted.definition.finetuning.peak_rate
    )


def test_the_definition_knows_of_refinements_and_starts_only_where_there_are_some() -> None:
    plain = toy_definition().describe()
    assert "refinement" not in plain and "start" not in plain
    assert definition().describe()["refinement"]["steps"] == STEPS
    assert toy_definition(start="merged").describe()["start"] == "merged"
    with pytest.raises(ValueError, match="start must be 'pretrained' or 'merged', got 'random'"):
        toy_definition(start="random")


def test_a_finetune_from_the_merge_keeps_the_heads_of_tasks_without_weight(tmp_path: Path) -> None:
    fitted = fit(toy_definition(start="merged"), tmp_path, progress=False)
    weights = {"red": 1.0, "blue": 0.0}
    start = fitted.start(weights)
    assert start is not None
    run = fitted.store.run(
        fitted.model, fitted.tasks, weights, fitted.definition.finetuning, start=start
    )
    blue = fitted.model.own_names("blue")
    expected = fitted.previewer.merged(weights)
    assert same({n: run.parameters()[n] for n in blue}, {n: expected[n] for n in blue})
    assert not run.reused  # it is another run than the task's own
    again = fitted.store.run(
        fitted.model, fitted.tasks, weights, fitted.definition.finetuning, start=start
    )
    assert again.reused and same(again.parameters(), run.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": ()}, r"steps must be positive and rise, got \(\)"),
        ({"steps": (5, 5)}, r"steps must be positive and rise, got \(5, 5\)"),
        ({"steps": (0, 5)}, "steps must be positive and rise"),
        ({"steps": (5,), "batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"steps": (5,), "learning_rates": ()}, "learning_rates must be positive multiples"),
        ({"steps": (5,), "learning_rates": (-1.0,)}, "learning_rates must be positive multiples"),
    ],
)
def test_bad_settings(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RefinementSettings(**changes)  # type: ignore[arg-type]


def test_refinements_train_by_adamw_whatever_the_task_runs_do() -> None:
    refinement = RefinementSettings([3, 6], batch_size=64)  # type: ignore[arg-type]
    settings = refinement.training(
        toy_settings(head_learning_rate=0.1, learning_rate=0.02, warmup=0.5), 0.5
    )
    assert settings.rungs() == (3, 6) and settings.batch_size == 64
    assert (settings.learning_rate, settings.head_learning_rate) == (0.01, 0.05)
    assert [settings.rate(step) for step in range(6)] == [1.0] * 6
    ivon = refinement.training(FinetuneSettings(optimizer="ivon", learning_rate=0.3), 1.0)
    assert ivon.optimizer == "adamw" and ivon.learning_rate == 5e-5
