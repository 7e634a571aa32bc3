"""A study's tables of truths and previews (see `studies/families.py`) as arrays to replay."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from optuna_merge.goals import make_score
from studies.preview_quality import ANCHORED, Point, read_points, spearman
from studies.search.replay import Array, Landscape, Prices


@dataclass(frozen=True)
class Tables:
    """Metrics at the same n task weights; larger is better.

    Attributes:
        name: Of the study.
        tasks: Names in order.
        weights: `n x T`.
        steps: Rungs of the finetunes, the last is the end.
        truths: `seeds x rungs x n x T`.
        previews: Of the merges, `sets of posteriors x n x T`.
        refined: By training steps from the merge, likewise; NaN where there are none.
        prices: Of the parts of a search.
        examples: Validation examples of a task.
        batch_size: Of the finetunes, and of the refinements.
        sizes: Training examples of each task.
        anchored: Whether the finetune at uniform weights corrects the previews.
    """

    name: str
    tasks: tuple[str, ...]
    weights: Array
    steps: tuple[int, ...]
    truths: Array
    previews: Array
    refined: dict[int, Array]
    prices: Prices
    examples: int
    batch_size: int
    sizes: tuple[int, ...]
    anchored: bool = False

    @property
    def alone(self) -> dict[str, float] | None:
        """Each task's metric of the task alone, mean over seeds; None without these weights."""
        corners = [np.flatnonzero(self.weights[:, i] == 1) for i in range(len(self.tasks))]
        if not all(map(len, corners)):
            return None
        ends = self.truths[:, -1].mean(axis=0)
        return {t: float(ends[c[0], i]) for i, (t, c) in enumerate(zip(self.tasks, corners))}

    def score(self, name: str, metrics: Array) -> Array:
        """A score by its name in a definition, of metrics `... x T`.

        Raises:
            ValueError: it is relative to the tasks alone, which the tables don't have.
        """
        alone = self.alone
        if alone is None:
            if "relative" in name:
                raise ValueError(
                    f"the score {name!r} needs finetunes of each task alone, which the tables of "
                    f"{self.name!r} don't have; make them without --interior"
                )
            alone = dict.fromkeys(self.tasks, 1.0)
        return make_score(name, self.tasks).over(metrics, alone)

    def ranks(self, score: str) -> dict[str, float]:
        """Spearman's rank correlation with the truth of the score, where no weight is zero.

        Of previews and refined previews, of the finetunes' first rungs, and of one seed with the
        mean of the others; NaN where there are too few points.
        """
        inside = self.weights.min(axis=1) > 0
        truth = self.score(score, self.truths)[:, :, inside]
        ends = truth[:, -1].mean(axis=0)
        found = {"previews": self.score(score, self.previews[0])[inside]}
        for step, metrics in self.refined.items():
            found[f"{step} steps from the merge"] = self.score(score, metrics[0])[inside]
        for rung, step in enumerate(self.steps[:-1]):
            found[f"finetunes at step {step}"] = truth[:, rung].mean(axis=0)
        ranks = {name: spearman(values.tolist(), ends.tolist()) for name, values in found.items()}
        if len(truth) > 1:
            ranks["another seed"] = spearman(
                truth[0, -1].tolist(), truth[1:, -1].mean(axis=0).tolist()
            )
        return ranks

    def landscape(self, score: str) -> Landscape:
        return Landscape(self.weights, self.steps, self.score(score, self.truths), self.prices)


def read_tables(folder: Path, family: str = "diagonal") -> Tables:
    """Read truth.csv, previews.csv, run.json, and the study's prices.json.

    Args:
        folder: The results of a study.
        family: Posteriors whose previews are read.

    Raises:
        ValueError: there are no previews of the family at all weights of the truths.
    """
    truths, tasks = read_points(folder / "truth.csv")
    previews, _ = read_points(folder / "previews.csv")
    about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    if "training_examples" not in about:
        raise ValueError(
            f"{folder / 'run.json'} doesn't say how many training examples the tasks have; make "
            f"the tables by studies/families.py again, with --extend to keep what is there"
        )
    batch_size = int(about["definition"]["finetuning"]["batch_size"])
    weights = list(dict.fromkeys(t.weights for t in truths))
    steps = sorted({t.steps for t in truths})
    seeds = sorted({t.seed for t in truths})
    mine = [p for p in previews if p.family == family and p.start == "merged"]
    merges = [p for p in mine if not p.steps]
    refined = [p for p in mine if p.steps and p.batch_size == batch_size]
    sets = sorted({p.seed for p in merges})
    if refined:
        sets = [s for s in sets if any(p.seed == s for p in refined)]
    if not sets or np.isnan(arranged(merges, sets, weights)).any():
        raise ValueError(f"{folder} has no previews of {family!r} at all weights of truth.csv")
    rungs = [arranged([t for t in truths if t.steps == s], seeds, weights) for s in steps]
    return Tables(
        study_of(folder),
        tuple(tasks),
        np.array(weights),
        tuple(steps),
        np.stack(rungs, axis=1),
        arranged(merges, sets, weights),
        {
            s: arranged([p for p in refined if p.steps == s], sets, weights)
            for s in sorted({p.steps for p in refined})
        },
        read_prices(folder),
        examples_of([m for t in truths for m in t.metrics]),
        batch_size,
        tuple(map(int, about["training_examples"])),
        family.endswith(ANCHORED),
    )


def read_prices(folder: Path) -> Prices:
    """The prices of a folder of tables, or of the study whose tables it has.

    Raises:
        ValueError: they were not measured.
    """
    for place in (folder.resolve(), *folder.resolve().parents):
        if (path := place / "prices.json").exists():
            found = json.loads(path.read_text(encoding="utf-8"))["prices"]
            return Prices.from_json(found)
        if place.name == "results":
            break
    raise ValueError(
        f"{folder} has no prices.json; measure what the parts of a search cost: "
        f"python studies/search/prices.py studies/{study_of(folder)}/optimize.py"
    )


def study_of(folder: Path) -> str:
    """The name of the study that has this folder: the one above `results`."""
    above = [folder.resolve(), *folder.resolve().parents]
    return next((f.parent.name for f in above if f.name == "results"), above[1].name)


def arranged(
    points: Sequence[Point], seeds: Sequence[int], weights: Sequence[tuple[float, ...]]
) -> Array:
    """Metrics as `seeds x weights x T`; NaN where there is no point."""
    found = np.full((len(seeds), len(weights), len(weights[0])), np.nan)
    rows = {s: i for i, s in enumerate(seeds)}
    columns = {w: i for i, w in enumerate(weights)}
    for p in points:
        if p.seed in rows and p.weights in columns:
            found[rows[p.seed], columns[p.weights]] = p.metrics
    return found


def examples_of(metrics: Sequence[float]) -> int:
    """The smallest number of examples of which all metrics are shares, as accuracies are."""
    shares = np.array(metrics)
    for n in range(1, 20_001):
        if np.abs(shares * n - np.round(shares * n)).max() < 1e-7 * n + 1e-9:
            return n
    raise ValueError("the metrics are no shares of any number of validation examples up to 20,000")
