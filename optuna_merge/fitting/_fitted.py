"""A definition with its task runs and posteriors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna_merge._base.files import json_hash
from optuna_merge._base.turns import models_turn
from optuna_merge.definition import StudyDefinition
from optuna_merge.finetuning import FinetuneStore, FinishedRun, Start
from optuna_merge.fitting._damping import Damping
from optuna_merge.fitting._workbench import (
    Measured,
    Report,
    anchor_weights,
    counts_as_reused,
    reference_point,
)
from optuna_merge.goals import Goal
from optuna_merge.models import MultitaskModel
from optuna_merge.previews import Previewer, refinement_settings, weighted_loss
from optuna_merge.tasks import Evaluation, Measurement, Task, check_finite


@dataclass(frozen=True)
class FittedStudy:
    """A definition with its task runs and posteriors, as `fit` returns it; a `Workbench` of a
    study.

    Attributes:
        definition: What was fitted.
        model: The resident model.
        tasks: The tasks as they run: on the frozen trunk's cached output where that applies.
        runs: By task, the finetune of this task alone; if there are several, the one with the seed
            of the real finetunes.
        previewer: Scores merges of the posteriors.
        damping: The damping; None for isotropic posteriors.
        costs: Training steps and seconds, by what they were spent on.
        parts: The complete definition, with the hashes of the posteriors, as JSON values.
        store: All finetunes of this definition.
        files: What another working folder needs to have the same fit.
    """

    definition: StudyDefinition
    model: MultitaskModel
    tasks: tuple[Task, ...]
    runs: dict[str, FinishedRun]
    previewer: Previewer
    damping: Damping | None
    costs: dict[str, float]
    parts: dict[str, Any]
    store: FinetuneStore
    files: tuple[Path, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Task names, in order."""
        return self.definition.names

    @property
    def steps(self) -> int:
        """Training steps of one finetune."""
        return self.definition.finetuning.steps

    @property
    def alone(self) -> dict[str, float]:
        """Each task's metric on validation data when it is finetuned alone."""
        return {name: run.evaluations[name].metric.value for name, run in self.runs.items()}

    @property
    def goal(self) -> Goal:
        """What the study looks for."""
        return self.definition.goal(self.alone)

    @property
    def reference_point(self) -> dict[str, float]:
        """By task, the metric that hypervolumes are measured from.

        A tenth of the range below the worst that the task has in the single-task runs (above it,
        where the metric is to be minimised).
        """
        runs = [run.evaluations for run in self.runs.values()]
        metrics = [{name: e.metric.value for name, e in found.items()} for found in runs]
        return reference_point(metrics, self.definition.greater_is_better)

    @property
    def fingerprint(self) -> str:
        """One hash of tasks, data, body, settings and posteriors."""
        return json_hash(self.parts)

    @property
    def anchors(self) -> tuple[dict[str, float], ...]:
        """Task weights whose truths make the previews: each task alone, uniform if anchored."""
        return anchor_weights(self.names, uniform=self.parts.get("anchor") is not None)

    def merge(self, weights: Mapping[str, float]) -> Start:
        """The merge at some weights as the start of a finetune."""
        made_of = [self.parts["posteriors"], self.parts["heads"]]
        if {"heads", "anchor"} & self.parts.get("preview", {}).keys():  # merges are not all
            made_of += [self.parts["preview"], self.parts.get("anchor")]
        return Start(json_hash(made_of), lambda: self.previewer.merged(weights))

    def preview(self, weights: Mapping[str, float]) -> Measured:
        """What the merge at these task weights is worth; see `Workbench`."""
        preview = self.previewer(weights)
        check_finite(preview.evaluations, "the merge")
        return Measured(_metrics(preview.evaluations), preview.seconds)

    def finetune(
        self,
        weights: Mapping[str, float],
        report: Report,
        *,
        repeat: int = 0,
        title: str | None = None,
    ) -> Measured:
        """Finetune at these task weights, or find the finished run; see `Workbench`.

        A repeat has the definition's seed plus its number.
        """

        def on_rung(step: int, evaluations: dict[str, Evaluation]) -> None:
            report(step, {name: e.metric.value for name, e in evaluations.items()})

        with models_turn():
            self.previewer.release()  # their memory on the device is the finetune's now
            run = self.store.run(
                self.model,
                self.tasks,
                weights,
                self.definition.finetuning.repeated(repeat),
                on_rung=on_rung,
                progress=title,
            )
        check_finite(run.evaluations, "the finetune")
        reused = counts_as_reused(run.reused, weights, self.anchors, repeat)
        return Measured(_metrics(run.evaluations), run.seconds, reused)

    def refine(
        self, weights: Mapping[str, float], steps: int, *, rate: float = 1.0
    ) -> dict[str, Evaluation]:
        """Train the merge at `weights` for a few steps on the weighted loss: a refined preview.

        By AdamW at a constant rate, with fresh moments. A tenth to a fifth of a finetune's steps
        make a preview truer than the same steps from the pretrained body do; beyond two fifths the
        refined model may be better than the finetune that it previews (studies/ladder.py).

        Args:
            weights: Task weight by name, on the simplex.
            steps: Training steps.
            rate: Multiple of the finetune's learning rates (or, of others than AdamW's, of its).

        Returns:
            Evaluations by task; the merge's own where training hasn't lowered the weighted loss.

        Raises:
            ValueError: `steps` below 1, or a rate that is not positive.
            TrainingDivergedError: a loss or gradient is not finite.
        """
        settings = refinement_settings(self.definition.finetuning, steps, rate)
        with models_turn():
            merge = self.previewer(weights).evaluations
            self.previewer.release()  # training needs the device's memory
            start = self.merge(weights)
            run = self.store.run(self.model, self.tasks, weights, settings, start=start)
        return min(merge, run.evaluations, key=lambda found: weighted_loss(weights, found))


def _metrics(evaluations: Mapping[str, Evaluation]) -> dict[str, Measurement]:
    return {name: evaluation.metric for name, evaluation in evaluations.items()}
