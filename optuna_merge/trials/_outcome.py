"""One finetune or preview at some task weights, and the repeats of a finetune."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from optuna.trial import FrozenTrial

from optuna_merge.trials._attributes import BASELINE, REPEAT

_DIGITS = 9  # decimals by which weights are told apart
_ORDINALS = ("second", "third", "fourth", "fifth")

SCORE = None
"""The name of the score, where other names are those of tasks."""


@dataclass(frozen=True)
class Outcome:
    """One task weighting: a preview and, if it was finetuned, its truth.

    Trials that go on from one another (a promoted copy, the retry of a killed trial) are one.

    Attributes:
        trial: Number of its trial that was finetuned to the end, or else of its latest.
        first: Number of the first one, which made the preview.
        promoted_from: Number of the previewed trial that `trial` is the promoted copy of.
        kind: "preview", or if it was finetuned to the end "promoted" or "baseline".
        baseline: Name of the baseline, if it is one.
        repeat: Which repeat of a finetune at its weights it is, see `Workbench.finetune`.
        weights: By task.
        preview: The score of the preview; None: not known, or no score in a Pareto study.
        truth: The score of the finetune.
        previews: Metrics of the preview, by task.
        truths: Metrics of the finetune, by task.
        previewed: Whether a preview was made for it, and not taken from another trial.
        standard_errors: Of the preview's metrics, by task, over validation examples.
        constraints: Constraint values of the truth by name, feasible is 0 or less.
        reused: Whether its finetune was found finished: nothing was trained for it.
        preview_seconds: What its own preview took, however often it was tried.
        finetune_seconds: What its finetune took; None where none was trained for it.
        steps: Training steps of its finetune; 0 for one that was found finished.
        started: When its latest trial began.
        ended: When that ended.
        at_anchor: Whether the truth at its weights made the preview, which then proves nothing.
    """

    trial: int
    first: int
    promoted_from: int | None
    kind: Literal["preview", "promoted", "baseline"]
    baseline: str | None
    repeat: int
    weights: Mapping[str, float]
    preview: float | None
    truth: float | None
    previews: Mapping[str, float | None]
    truths: Mapping[str, float | None]
    previewed: bool
    standard_errors: Mapping[str, float | None]
    constraints: Mapping[str, float]
    reused: bool
    preview_seconds: float
    finetune_seconds: float | None
    steps: int
    started: datetime.datetime | None
    ended: datetime.datetime | None
    at_anchor: bool = False

    @property
    def label(self) -> str:
        """Its trial and its name, such as "trial 0 uniform"."""
        return f"trial {self.trial} {self.name or ''}".strip()

    @property
    def name(self) -> str | None:
        """The baseline's name with its repeat; of a repeat that is none, "second seed"."""
        if self.baseline is not None:
            return baseline_name(self.baseline, self.repeat)
        return seed_name(self.repeat) if self.repeat else None

    @property
    def is_truth(self) -> bool:
        """Whether it was finetuned to the end."""
        return self.kind != "preview"

    @property
    def feasible(self) -> bool:
        """Whether it satisfies the study's constraints; True without any."""
        return not self.missed

    @property
    def missed(self) -> dict[str, float]:
        """The constraints that it violates, and by how much."""
        return {name: value for name, value in self.constraints.items() if not value <= 0}

    def seen(self, task: str | None) -> float | None:
        """The preview of a task's metric, or of the score (`SCORE`)."""
        return self.preview if task is None else self.previews[task]

    def found(self, task: str | None) -> float | None:
        """The truth of a task's metric, or of the score (`SCORE`)."""
        return self.truth if task is None else self.truths[task]


@dataclass(frozen=True)
class Repeats:
    """The finetunes at one weighting, a seed each.

    Attributes:
        finetunes: By their trials' numbers; at least one.
    """

    finetunes: tuple[Outcome, ...]

    @property
    def first(self) -> Outcome:
        """The one that stands for all."""
        return self.finetunes[0]

    def values(self, quantity: str | None) -> list[float]:
        """The truths of a task's metric, or of the score (`SCORE`), as far as they are known."""
        found = (finetune.found(quantity) for finetune in self.finetunes)
        return [value for value in found if value is not None]

    def mean(self, quantity: str | None) -> float | None:
        """Their mean; None where none is known."""
        values = self.values(quantity)
        return float(np.mean(values)) if values else None


def repeated_finetunes(truths: Iterable[Outcome]) -> tuple[Repeats, ...]:
    """Finetunes by their weighting, in the order of each one's first trial.

    One that was found finished, or has the same truths, is the same run as another of its repeat.
    """
    groups: dict[tuple[float, ...], list[Outcome]] = {}
    for outcome in sorted(truths, key=lambda o: o.trial):
        group = groups.setdefault(tuple(round(w, _DIGITS) for w in outcome.weights.values()), [])
        mine = [o for o in group if o.repeat == outcome.repeat]
        same = (o for o in mine if (o.truth, o.truths) == (outcome.truth, outcome.truths))
        again = outcome.reused or any(same)
        if not (mine and again):
            group.append(outcome)
    return tuple(Repeats(tuple(group)) for group in groups.values())


def seed_name(repeat: int) -> str:
    """What a repeat is called: "second seed" is the first repeat."""
    return f"{_ORDINALS[repeat - 1]} seed" if repeat <= len(_ORDINALS) else f"seed {repeat + 1}"


def baseline_name(name: str, repeat: int) -> str:
    """What a baseline is called in reports, such as "uniform, second seed"."""
    return f"{name}, {seed_name(repeat)}" if repeat else name


def baseline_of(trial: FrozenTrial) -> str | None:
    """The name of the baseline that a trial is, with its repeat; None: it is none."""
    name = trial.user_attrs.get(BASELINE)
    return None if name is None else baseline_name(name, int(trial.user_attrs.get(REPEAT, 0)))
