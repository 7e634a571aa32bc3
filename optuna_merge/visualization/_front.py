"""The Pareto front of two tasks: the truths, and the front that the models expect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import optuna

from optuna_merge.surrogate import estimated_front
from optuna_merge.trials import read_study, task_names
from optuna_merge.visualization._marks import finetune_marks

if TYPE_CHECKING:
    import plotly.graph_objects as go


def plot_front(study: optuna.Study, tasks: Sequence[str] | None = None) -> go.Figure:
    """True metrics of two tasks against each other, with the estimated front of all tasks.

    Args:
        study: A study of `optuna_merge`, of one objective or several.
        tasks: Two task names; None: the first two.

    Returns:
        The estimated front has bars of one standard deviation of what is not known, without the
        noise of a finetune; of more than two tasks it is seen from one side.

    Raises:
        ImportError: plotly is missing; `pip install optuna-merge[dashboard]` brings it.
        ValueError: not two different tasks of the study, or no previews and truths of theirs.
    """
    import plotly.graph_objects as go

    names = task_names(study)
    pair = tuple(names[:2] if tasks is None else tasks)
    if len(set(pair)) != 2 or not set(pair) <= set(names):
        raise ValueError(f"expected two different tasks among {list(names)}, got {list(pair)}")
    first, second = pair
    front = estimated_front(study)
    expected = go.Scatter(
        x=[p.mean[first] for p in front],
        y=[p.mean[second] for p in front],
        error_x={"array": [p.std[first] for p in front], "thickness": 0.5},
        error_y={"array": [p.std[second] for p in front], "thickness": 0.5},
        text=[_written(p.weights) for p in front],
        mode="markers",
        marker={"symbol": "circle-open"},
        name="estimated front",
    )
    truths = read_study(study).truths
    marks = finetune_marks(
        (
            o,
            o.truths[first],
            o.truths[second],
            f"{o.label} {_written(o.weights)}{'' if o.feasible else ' (violates constraints)'}",
        )
        for o in truths
    )
    return go.Figure([expected, *marks]).update_layout(
        title="True metrics and the estimated front", xaxis_title=first, yaxis_title=second
    )


def _written(weights: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {weight:.2f}" for name, weight in weights.items())
