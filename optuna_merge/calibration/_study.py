"""The calibration of a study, read from its trials alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import TrialState

from optuna_merge.calibration._calibrate import Calibration, calibrate
from optuna_merge.trials import Record, TrialReader, task_directions

Json = dict[str, Any]
Pairs = tuple[list[float], list[float]]


@dataclass(frozen=True)
class StudyCalibration:
    """How far a study's previews can be trusted.

    Attributes:
        score: Of the objective value; None where each task is an objective of its own.
        tasks: Of each task's metric, by task.
    """

    score: Calibration | None
    tasks: Mapping[str, Calibration]

    def items(self) -> list[tuple[str, Calibration]]:
        """Names and calibrations of the previews, the score first."""
        score = [] if self.score is None else [("score", self.score)]
        return [*score, *self.tasks.items()]

    def as_json(self) -> Json:
        """JSON values: the fields, and for each quantity its warning."""
        return {
            "score": None if self.score is None else _as_json(self.score),
            "tasks": {task: _as_json(found) for task, found in self.tasks.items()},
        }


def study_calibration(study: optuna.Study, tasks: Sequence[str]) -> StudyCalibration:
    """Judge the previews of a study by its finished finetunes.

    A task's metric is judged where the task's weight is neither 0 nor 1, the score where no
    weight is 0. Without weight a task's head is not trained in the truth, but it was for the
    preview; and at weight 1 every merge gives back the task's own run.

    Args:
        study: A study whose trials suggest `w_<task>`, report the preview at step 0 (if there is
            one objective) and hold the attributes `preview_<task>` and `truth_<task>`.
        tasks: Task names, in order.
    """
    trials = study.get_trials(deepcopy=False)
    records = TrialReader(tuple(tasks)).read(study.study_name, trials).records
    score = None
    if len(study.directions) == 1:
        upwards = study.direction == StudyDirection.MAXIMIZE
        score = calibrate(*score_pairs(records), maximize=upwards)
    directions = task_directions(study, tasks)
    return StudyCalibration(
        score,
        {
            task: calibrate(*_task_pairs(records, index), maximize=directions[task])
            for index, task in enumerate(tasks)
        },
    )


def _as_json(calibration: Calibration) -> Json:
    return asdict(calibration) | {"warning": calibration.warning}


def score_pairs(records: Iterable[Record]) -> Pairs:
    """Previews and truths of the score, at weights of which none is zero."""
    return _sound((r.preview, r.values[0]) for r in _judged(records) if min(r.weights) > 0)


def _task_pairs(records: Iterable[Record], index: int) -> Pairs:
    return _sound(
        (r.preview_metrics[index], r.truth_metrics[index])
        for r in _judged(records)
        if 0 < r.weights[index] < 1
    )


def _judged(records: Iterable[Record]) -> Iterable[Record]:
    """Weightings count once: a repeat has the same preview again."""
    done = (r for r in records if r.state == TrialState.COMPLETE and not r.repeat)
    return (r for r in done if r.weights and r.values and not r.is_at_anchor)


def _sound(pairs: Iterable[tuple[float, float]]) -> Pairs:
    kept = [(p, t) for p, t in pairs if not (math.isnan(p) or math.isnan(t))]
    return [p for p, _ in kept], [t for _, t in kept]


def format_calibration(calibration: Mapping[str, Any]) -> str:
    """`StudyCalibration.as_json` as a plain-text table, with a verdict on each quantity."""
    rows = {"score": calibration["score"], **calibration["tasks"]}
    rows = {name: found for name, found in rows.items() if found is not None}
    if all(found["verdict"] == "too few truths" for found in rows.values()):
        names: dict[str, list[str]] = {}
        for name, found in rows.items():
            names.setdefault(found["warning"], []).append(name)
        return "\n".join(f"{', '.join(of)}: {warning}" for warning, of in names.items())
    width = max(map(len, rows))
    head = ("truths", "bias", "slope", "Spearman (90%)", "Kendall", "top 1/4", "regret")
    lines = [f"{'':{width}}" + "".join(f"{title:>{w}}" for title, w in zip(head, _WIDTHS))]
    for name, found in rows.items():
        rho = found["spearman"]
        cells = (
            str(found["count"]),
            _cell(found["bias"], "+.4f"),
            _cell(found["slope"], ".2f"),
            "-" if rho is None else f"{rho['value']:.2f} ({rho['low']:.2f} to {rho['high']:.2f})",
            _cell(found["kendall"], ".2f"),
            _cell(found["top_quartile"], ".0%"),
            _cell(found["argmax_regret"], ".4f"),
        )
        lines.append(f"{name:{width}}" + "".join(f"{c:>{w}}" for c, w in zip(cells, _WIDTHS)))
    told = [f"{name}: {found['warning'] or found['verdict']}" for name, found in rows.items()]
    return "\n".join([*lines, *told])


_WIDTHS = (8, 10, 8, 24, 9, 9, 9)


def _cell(value: Json | float | None, style: str) -> str:
    if value is None:
        return "-"
    return format(value["value"] if isinstance(value, dict) else value, style)
