"""Fidelities between a merge and a real finetune: a few steps from the merge, or from the body.

`studies/families.py --rungs` compares them at the same task weights. Both spend the same steps:
refined previews at a constant rate from a family's merge (`FittedStudy.refine`), and short
finetunes from the pretrained body on the finetune's own schedule. What would take as many examples
as the real finetune, or more, is left out.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from optuna_merge.finetuning import FinetuneSettings
from optuna_merge.fitting import FittedStudy
from optuna_merge.previews import weighted_loss
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

    def refinements(self, finetuning: FinetuneSettings) -> dict[int, tuple[int, ...]]:
        """The rungs of each batch size."""
        return {
            multiple * finetuning.batch_size: rungs
            for multiple in self.multiples
            if (rungs := tuple(s for s in self.rungs if s * multiple < finetuning.steps))
        }

    def finetunes(self, finetuning: FinetuneSettings) -> list[FinetuneSettings]:
        """One for each batch size and rung, from the body."""
        return [
            replace(finetuning, steps=steps, batch_size=batch_size, num_rungs=1, rung_steps=None)
            for batch_size, rungs in self.refinements(finetuning).items()
            for steps in rungs
        ]


def with_batches(fitted: FittedStudy, batch_size: int) -> FittedStudy:
    """The same task runs and posteriors, whose merges are refined by batches of that size."""
    finetuning = replace(fitted.definition.finetuning, batch_size=batch_size)
    return replace(fitted, definition=replace(fitted.definition, finetuning=finetuning))


def best_rate(fitted: FittedStudy, steps: int, rates: Sequence[float]) -> float:
    """The rate whose refinement at uniform weights has the lowest weighted validation loss.

    Too large a rate makes a refinement worse than the merge. Of equal losses the smaller is taken.
    """
    if len(rates) == 1:
        return rates[0]
    names = fitted.definition.names
    uniform = dict.fromkeys(names, 1 / len(names))

    def loss(rate: float) -> float:
        return weighted_loss(uniform, fitted.refine(uniform, steps, rate=rate))

    return min(sorted(rates), key=loss)


def refined_previews(
    fitted: FittedStudy,
    base: FittedStudy,
    family: str,
    seed: int,
    weights: TaskWeights,
    rungs: Sequence[int],
    rate: float,
) -> list[Point]:
    """The refined previews at some weights, one for each rung.

    A rung that does not lower the weighted loss is thrown away: its point is that of the rung
    before, or of the merge. Seconds are the clock's; of a run that is there already, next to none.
    """
    points, so_far = [], []
    for steps in rungs:
        started = time.perf_counter()
        found = fitted.refine(weights, steps, rate=rate)
        seconds = time.perf_counter() - started
        so_far.append(found)
        best = min(so_far, key=lambda evaluations: weighted_loss(weights, evaluations))
        points.append(
            point(
                family,
                seed,
                weights,
                best,
                _score(base, best),
                steps=steps,
                seconds=seconds,
                batch_size=fitted.definition.finetuning.batch_size,
            )
        )
    return points


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


def _score(base: FittedStudy, evaluations: Mapping[str, Evaluation]) -> float:
    return base.goal.score_of(
        {task: evaluation.metric.value for task, evaluation in evaluations.items()}
    )
