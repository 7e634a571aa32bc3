from __future__ import annotations

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial
from study_helpers import study_by_hand

import optuna_merge as om
from optuna_merge.visualization import plot_preview_truth


def study_of(points: list[tuple[float, float, str | None]]) -> optuna.Study:
    study = optuna.create_study(direction="maximize")
    for preview, truth, baseline in points:
        attrs = {"preview_red": preview / 2, "truth_red": truth / 2}
        study.add_trial(
            create_trial(
                state=TrialState.COMPLETE,
                value=truth,
                params={"w_red": 1.0},
                distributions={"w_red": FloatDistribution(0, 1)},
                intermediate_values={0: preview, 5: truth},
                user_attrs=attrs if baseline is None else attrs | {"baseline": baseline},
            )
        )
    return study


def test_promoted_trials_and_baselines_are_apart() -> None:
    study = study_of([(0.2, 0.4, "uniform"), (0.3, 0.6, None), (0.5, 0.5, None)])
    line, promoted, baselines = plot_preview_truth(study).data
    assert (line.x, line.y) == ((0.2, 0.6), (0.2, 0.6))
    assert (promoted.x, promoted.y) == ((0.3, 0.5), (0.6, 0.5))
    assert (baselines.x, baselines.y, baselines.text) == ((0.2,), (0.4,), ("trial 0 uniform",))


def test_the_line_that_fits_the_judged_pairs(
    trio: tuple[optuna.Study, om.FittedStudy],
) -> None:
    study, fitted = trio
    *_, line = plot_preview_truth(study).data
    slope = om.make_report(study, fitted, test=False)["calibration"]["score"]["slope"]["value"]
    assert (line.y[1] - line.y[0]) / (line.x[1] - line.x[0]) == pytest.approx(slope)
    assert line.name == f"fit: slope {slope:.2f}"


def test_a_tasks_metric_in_place_of_the_score() -> None:
    figure = plot_preview_truth(study_of([(0.2, 0.4, None)]), task="red")
    assert (figure.data[1].x, figure.data[1].y) == ((0.1,), (0.2,))
    assert figure.layout.title.text == "Previews and truths: metric of red"


def test_a_study_without_truths_says_so() -> None:
    study = study_by_hand(("red", "blue"), 4, 0)
    with pytest.raises(ValueError, match="no finetuned trial with preview and truth of blue yet"):
        plot_preview_truth(study, task="blue")
    with pytest.raises(ValueError, match="no task 'green' in study 'by hand'"):
        plot_preview_truth(study, task="green")


def test_a_study_of_several_objectives_needs_a_task() -> None:
    study = optuna.create_study(study_name="s", directions=["maximize"] * 2)
    with pytest.raises(ValueError, match="study 's' has several objectives; name a task"):
        plot_preview_truth(study)
