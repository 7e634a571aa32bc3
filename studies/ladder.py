"""Fidelities between a merge and a real finetune: a few steps from the merge, or from the body.

`studies/families.py --rungs` compares them at the same task weights. Both spend the same steps:
refined previews at a constant rate from a family's merge, one run through all rungs; short
finetunes from the pretrained body on the finetune's own schedule, one run for each rung. What
would take as many examples as the real finetune, or more, is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from optuna_merge.finetuning import FinetuneSettings
from optuna_merge.fitting import FittedStudy
from optuna_merge.previews import RefinementSettings
from optuna_merge.tasks import Evaluation
from studies.extension import Known
from studies.preview_quality import Point, point

TaskWeights = dict[str, float]


@dataclass(frozen=True)
class Ladder:
    """What is compared.

    Attributes:
        rungs: Training steps, rising; none: only merges are compared.
        families: Families whose merges are refined.
        multiples: Batch sizes, in multiples of the finetune's.
        rates: Learning rates to choose the refinements' from, in multiples of the finetune's.
        seeds: Sets of posteriors whose merges are refined, and seeds of the short finetunes.
    """

    rungs: tuple[int, ...] = ()
    families: tuple[str, ...] = ()
    multiples: tuple[int, ...] = (1, 4)
    rates: tuple[float, ...] = (0.1, 0.3, 1.0)
    seeds: int = 1

    def refinements(self, finetuning: FinetuneSettings) -> list[RefinementSettings]:
        """One for each batch size."""
        return [
            RefinementSettings(rungs, multiple * finetuning.batch_size, self.rates)
            for multiple in self.multiples
            if (rungs := self._cheaper(finetuning, multiple))
        ]

    def finetunes(self, finetuning: FinetuneSettings) -> list[FinetuneSettings]:
        """One for each batch size and rung, from the body."""
        return [
            replace(
                finetuning,
                steps=steps,
                batch_size=multiple * finetuning.batch_size,
                num_rungs=1,
                rung_steps=None,
            )
            for multiple in self.multiples
            for steps in self._cheaper(finetuning, multiple)
        ]

    def _cheaper(self, finetuning: FinetuneSettings, multiple: int) -> tuple[int, ...]:
        return tuple(steps for steps in self.rungs if steps * multiple < finetuning.steps)


def refined_previews(
    fitted: FittedStudy, base: FittedStudy, family: str, seed: int, weights: TaskWeights
) -> list[Point]:
    """The refined previews at some weights, one for each rung of the fitted study's refinement.

    Seconds are the share of the run that was done by the rung.
    """
    assert fitted.refiner is not None
    settings = fitted.refiner.settings
    found: dict[int, dict[str, Evaluation]] = {}
    run = fitted.refiner(weights, on_rung=found.__setitem__)
    return [
        point(
            family,
            seed,
            weights,
            evaluations,
            _score(base, evaluations),
            steps=steps,
            seconds=run.seconds * steps / run.steps,
            batch_size=settings.batch_size,
        )
        for steps, evaluations in found.items()
    ]


def short_finetunes(
    base: FittedStudy,
    ladder: Ladder,
    seed: int,
    weightings: Sequence[TaskWeights],
    known: Known,
) -> list[Point]:
    """The short finetunes of the ladder at the weights where the known tables lack them."""
    points = []
    finetuning = base.definition.finetuning
    for settings in ladder.finetunes(replace(finetuning, seed=finetuning.seed + seed)):
        kind = f"pretrained + {settings.steps} x {settings.batch_size}"
        for weights in known.missing(kind, seed, weightings):
            run = base.store.run(base.model, base.tasks, weights, settings)
            points.append(
                point(
                    "none",
                    seed,
                    weights,
                    run.evaluations,
                    _score(base, run.evaluations),
                    steps=run.steps,
                    seconds=run.seconds,
                    start="pretrained",
                    batch_size=settings.batch_size,
                )
            )
    return points


def _score(base: FittedStudy, evaluations: dict[str, Evaluation]) -> float:
    return base.score({task: evaluation.metric.value for task, evaluation in evaluations.items()})
