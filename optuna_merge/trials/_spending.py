"""What a study has cost, in the unit that people think in: finetunes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import optuna
from optuna.trial import TrialState

from optuna_merge.trials._attributes import COSTS
from optuna_merge.trials._record import Record, read_trial
from optuna_merge.trials._study import finetune_steps, task_names

_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
_SAME = 1e-6


@dataclass(frozen=True)
class Spending:
    """What a study has spent, in units of a finetune at uniform weights.

    Attributes:
        task_runs: On the tasks' own finetunes.
        posteriors: On their posteriors.
        previews: On previews.
        finetunes: On finetunes, those that failed or were stopped at a rung included; what was
            found finished cost nothing.
        seconds: What one finetune at uniform weights takes; None: not known, and training steps
            are counted, of which previews and posteriors have none.
    """

    task_runs: float
    posteriors: float
    previews: float
    finetunes: float
    seconds: float | None

    @property
    def total(self) -> float:
        """All of it."""
        return self.task_runs + self.posteriors + self.previews + self.finetunes

    def said(self, budget: float | None) -> str:
        """All of it in words, and what is left of a budget."""
        of = "" if budget is None else f" of {budget:g}"
        left = "" if budget is None else f", {max(budget - self.total, 0.0):.1f} left"
        return f"{self.total:.1f}{of} finetunes' worth of time{left}"

    @property
    def told(self) -> str:
        """The parts, in words."""
        parts = ("task_runs", "posteriors", "previews", "finetunes")
        told = ", ".join(f"{of.replace('_', ' ')} {getattr(self, of):.1f}" for of in parts)
        return f"{told}{'' if self.seconds is not None else '; in training steps'}"


def spending(
    records: Sequence[Record], costs: Mapping[str, float], n_tasks: int, steps: int | None
) -> Spending:
    """What was spent, by the trials and by what came before them.

    One finetune is what uniform weights took, the mean over their repeats; before there is one,
    the mean task run; and where seconds are not known of either, its training steps.

    Args:
        records: Of all trials.
        costs: `Workbench.costs`.
        n_tasks: Number of tasks.
        steps: Training steps of one finetune; None: not known.
    """
    ended = (r for r in records if r.state in _ENDED and not r.reused)
    trained = [r for r in ended if r.state == TrialState.COMPLETE or r.last_step > 0]
    trained += _failed(records)
    unit = _seconds_of_one(records, costs, n_tasks)
    if unit is None:
        whole = steps or max((r.last_step for r in trained), default=0) or 1
        runs = costs.get("task_run_steps", 0.0)
        done = sum(r.last_step if r.last_step > 0 else whole for r in trained)
        return Spending(runs / whole, 0.0, 0.0, done / whole, None)
    previews: dict[int, float] = {}  # a retry has the attributes of the try before
    for r in records:
        if not (r.is_copy or r.repeat or math.isnan(r.preview_seconds)):
            previews[r.lineage] = r.preview_seconds
    taken = sum(r.truth_seconds for r in trained if not math.isnan(r.truth_seconds))
    runs, posteriors = (costs.get(f"{of}_seconds", 0.0) / unit for of in ("task_run", "posterior"))
    return Spending(runs, posteriors, sum(previews.values()) / unit, taken / unit, unit)


def _failed(records: Sequence[Record]) -> list[Record]:
    """Finetunes that have failed; a retry has the attributes of the try before."""
    found: dict[tuple[int, float], Record] = {}
    for r in records:
        if r.state == TrialState.FAIL and r.truth_seconds > 0:
            found.setdefault((r.lineage, r.truth_seconds), r)
    return list(found.values())


def study_spending(study: optuna.Study) -> Spending:
    """What a study has spent, by its trials and its attribute `costs`."""
    trials = study.get_trials(deepcopy=False)
    tasks = task_names(study, trials)
    records = [read_trial(trial, tasks) for trial in trials]
    return spending(records, study_costs(study), len(tasks), finetune_steps(study))


def study_costs(study: optuna.Study) -> dict[str, float]:
    """What was spent before a study's first preview, as it was prepared; {}: nothing is known."""
    found = study.user_attrs.get(COSTS)
    return dict(found) if isinstance(found, Mapping) else {}


def _seconds_of_one(
    records: Sequence[Record], costs: Mapping[str, float], n_tasks: int
) -> float | None:
    timed = (r for r in records if r.state == TrialState.COMPLETE and r.truth_seconds > 0)
    flat = (r for r in timed if r.weights and max(r.weights) - min(r.weights) < _SAME)
    uniform = [r.truth_seconds for r in flat]
    if uniform:
        return sum(uniform) / len(uniform)
    runs = costs.get("task_run_seconds", 0.0)
    return runs / n_tasks if runs > 0 and n_tasks else None
