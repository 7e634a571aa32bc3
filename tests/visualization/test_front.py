from __future__ import annotations

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from optuna_merge.visualization import plot_front

NAMES = ("red", "blue", "green")


def study_of(n_objectives: int) -> optuna.Study:
    """Metrics are the weights; every third trial is finetuned, the first one a baseline."""
    study = optuna.create_study(directions=["maximize"] * n_objectives)
    for number in range(9):
        weights = dict(zip(NAMES, (number / 8, 1 - number / 8, 0.0)))
        attrs = {f"preview_{n}": w - 0.1 for n, w in weights.items()}
        attrs |= {f"weight_{n}": w for n, w in weights.items()}
        done = number % 3 == 0
        if done:
            attrs |= {f"truth_{n}": w for n, w in weights.items()}
        trial = create_trial(
            state=TrialState.COMPLETE if done else TrialState.PRUNED,
            values=[1.0] * n_objectives if done else None,
            params={f"w_{n}": w for n, w in weights.items()},
            distributions={f"w_{n}": FloatDistribution(0, 1) for n in NAMES},
            user_attrs=attrs | ({"baseline": "uniform"} if number == 0 else {}),
            constraints={"red": 0.5 - weights["red"]},
        )
        study.add_trial(trial)
    return study


@pytest.mark.parametrize("n_objectives", [1, 3])
def test_truths_and_the_estimated_front(n_objectives: int) -> None:
    estimated, promoted, baselines = plot_front(study_of(n_objectives)).data
    assert (promoted.x, promoted.y) == ((0.375, 0.75), (0.625, 0.25))
    assert promoted.text == (
        "trial 3 red 0.38, blue 0.62, green 0.00 (violates constraints)",
        "trial 6 red 0.75, blue 0.25, green 0.00",
    )
    assert (baselines.x, baselines.y) == ((0.0,), (1.0,))
    assert "uniform" in baselines.text[0]
    assert max(estimated.x) > 0.9 and max(estimated.y) > 0.9
    assert len(estimated.error_x.array) == len(estimated.x)


def test_two_tasks_are_chosen_by_name() -> None:
    figure = plot_front(study_of(3), ["blue", "green"])
    assert figure.layout.xaxis.title.text == "blue"
    assert figure.data[1].y == (0.0, 0.0)


@pytest.mark.parametrize("tasks", [["red"], ["red", "red"], ["red", "black"], NAMES])
def test_other_choices_are_refused(tasks: list[str]) -> None:
    with pytest.raises(ValueError, match="expected two different tasks among"):
        plot_front(study_of(1), tasks)
