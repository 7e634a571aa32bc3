"""What several plots draw alike."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import optuna

from optuna_merge.trials import Outcome, task_names


def finetune_marks(points: Iterable[tuple[Outcome, float | None, float | None, str]]) -> list[Any]:
    """Markers of finetunes, given with x, y and text: promoted ones, then baselines."""
    import plotly.graph_objects as go

    known = [p for p in points if p[1] is not None and p[2] is not None]
    traces = []
    for kind, name in (("promoted", "promoted"), ("baseline", "baselines")):
        of = [p[1:] for p in known if p[0].kind == kind]
        x, y, text = zip(*of) if of else ((), (), ())
        traces.append(go.Scatter(x=x, y=y, text=text, mode="markers", name=name))
    return traces


def check_quantity(study: optuna.Study, task: str | None) -> str:
    """What a task's name, or the score's None, stands for; `ValueError` where for nothing."""
    if task is None:
        if len(study.directions) > 1:
            raise ValueError(f"study {study.study_name!r} has several objectives; name a task")
        return "score"
    names = task_names(study)
    if names and task not in names:
        raise ValueError(f"no task {task!r} in study {study.study_name!r}: {list(names)}")
    return f"metric of {task}"
