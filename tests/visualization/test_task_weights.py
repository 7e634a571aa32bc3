from __future__ import annotations

import optuna
import pytest
from study_helpers import study_by_hand

import optuna_merge as om
from optuna_merge.trials import read_study
from optuna_merge.visualization import plot_task_weights


def test_three_tasks_are_two_triangles(trio: tuple[optuna.Study, om.FittedStudy]) -> None:
    study, _ = trio
    outcomes = read_study(study).outcomes
    previews, truths = plot_task_weights(study).data
    assert previews.type == truths.type == "scatterternary"
    assert len(previews.a) == len(outcomes)
    assert list(truths.marker.color) == sorted(o.truth for o in outcomes if o.is_truth)
    assert all(abs(a + b + c - 1) < 1e-9 for a, b, c in zip(truths.a, truths.b, truths.c))
    assert any(text.endswith("uniform") for text in truths.text)
    of_task = plot_task_weights(study, "green").data[1]
    assert list(of_task.marker.color) == sorted(o.truths["green"] for o in outcomes if o.is_truth)


def test_other_numbers_of_tasks_are_parallel_lines(
    duo: tuple[optuna.Study, om.FittedStudy],
) -> None:
    study, _ = duo
    figure = plot_task_weights(study)
    outcomes = read_study(study).outcomes
    for axis, wanted in (("x", outcomes), ("x2", [o for o in outcomes if o.is_truth])):
        bar, *bins = [trace for trace in figure.data if trace.xaxis == axis]
        heights = [y for trace in bins for y in trace.y]
        lines = [tuple(heights[i : i + 2]) for i in range(0, len(heights), 3)]
        assert sorted(lines) == sorted(tuple(o.weights.values()) for o in wanted)
        values = [o.truth if axis == "x2" else o.preview for o in wanted]
        assert (bar.marker.cmin, bar.marker.cmax) == (min(values), max(values))
    assert figure.layout.xaxis.ticktext == ("red", "blue")


def test_of_many_points_the_best_and_the_worst_are_drawn(
    trio: tuple[optuna.Study, om.FittedStudy],
) -> None:
    study, _ = trio
    previews = [o.preview for o in read_study(study).outcomes]
    drawn = plot_task_weights(study, max_points=4).data[0].marker.color
    assert len(drawn) == 4 and (drawn[0], drawn[-1]) == (min(previews), max(previews))


def test_several_objectives_need_a_task(pareto: tuple[optuna.Study, om.FittedStudy]) -> None:
    study, _ = pareto
    with pytest.raises(ValueError, match="several objectives; name a task"):
        plot_task_weights(study)
    assert plot_task_weights(study, "red").layout.title.text == "Task weights: metric of red"
    with pytest.raises(ValueError, match="no task 'black' in study 'toys'"):
        plot_task_weights(study, "black")


@pytest.mark.parametrize("names", [("red", "blue"), ("red", "green", "blue")])
def test_of_what_is_minimised_the_lowest_are_the_brightest_and_on_top(
    names: tuple[str, ...],
) -> None:
    up, down = (
        plot_task_weights(study_by_hand(names, 20, 9, direction=direction), max_points=6)
        for direction in ("maximize", "minimize")
    )
    assert "lower is better" in down.layout.title.text
    assert "lower is better" not in up.layout.title.text
    if len(names) == 3:
        for risen, fallen in zip(up.data, down.data):
            assert risen.marker.colorscale[0][1] == fallen.marker.colorscale[-1][1]
            values = list(fallen.marker.color)
            assert values == sorted(risen.marker.color, reverse=True)
        return
    for axis in ("x", "x2"):
        (_, *risen), (bar, *fallen) = (
            [t for t in figure.data if t.xaxis == axis] for figure in (up, down)
        )
        # Bins of values: drawn first the largest, with the darkest colour.
        assert [t.name for t in fallen] == [t.name for t in risen][::-1]
        assert fallen[0].line.color == risen[0].line.color != fallen[-1].line.color
        assert bar.marker.colorscale[-1][1] == "#440154"  # the dark end of Viridis


def test_a_tasks_own_direction_is_kept() -> None:
    study = study_by_hand(("red", "blue"), 20, 9)
    study.set_user_attr("greater_is_better", {"red": False, "blue": True})
    for task, lower in (("red", True), ("blue", False), (None, False)):
        title = plot_task_weights(study, task).layout.title.text
        assert ("lower is better" in title) == lower
