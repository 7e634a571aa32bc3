from __future__ import annotations

import optuna
import pytest

import optuna_merge as om
from optuna_merge.outcomes import study_outcomes
from optuna_merge.visualization import plot_task_weights


def test_three_tasks_are_two_triangles(trio: tuple[optuna.Study, om.FittedStudy]) -> None:
    study, _ = trio
    outcomes = study_outcomes(study)
    previews, truths = plot_task_weights(study).data
    assert previews.type == truths.type == "scatterternary"
    assert len(previews.a) == len(outcomes)
    assert list(truths.marker.color) == [o.truth for o in outcomes if o.is_truth]
    assert all(abs(a + b + c - 1) < 1e-9 for a, b, c in zip(truths.a, truths.b, truths.c))
    assert truths.text[0].endswith("uniform")
    of_task = plot_task_weights(study, "green").data[1]
    assert list(of_task.marker.color) == [o.truths["green"] for o in outcomes if o.is_truth]


def test_other_numbers_of_tasks_are_parallel_lines(
    ladder: tuple[optuna.Study, om.FittedStudy],
) -> None:
    study, _ = ladder
    previews, truths = plot_task_weights(study).data
    assert [d.label for d in previews.dimensions] == ["red", "blue", "score"]
    assert len(truths.dimensions[0]["values"]) == sum(o.is_truth for o in study_outcomes(study))


def test_several_objectives_need_a_task(pareto: tuple[optuna.Study, om.FittedStudy]) -> None:
    study, _ = pareto
    with pytest.raises(ValueError, match="several objectives; name a task"):
        plot_task_weights(study)
    assert plot_task_weights(study, "red").layout.title.text == "Task weights: metric of red"
    with pytest.raises(ValueError, match="no task 'black' in study 'toys'"):
        plot_task_weights(study, "black")
