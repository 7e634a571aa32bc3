"""The report's tables as CSV files."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna

from optuna_merge._base.files import atomic_path
from optuna_merge.reports._reading import Reading
from optuna_merge.trials import SCORE, Outcome
from optuna_merge.visualization import cost_curve

Table = tuple[Sequence[str], Iterable[Sequence[Any]]]
"""Heads and rows."""


def write_csv(
    folder: str | os.PathLike[str], study: optuna.Study, report: Mapping[str, Any] | None = None
) -> list[Path]:
    """Write the tables of the report as CSV files into a folder, which is made; return the files.

    `weightings.csv` has every task weighting with its preview and truth, `metrics.csv` the best
    finetune and the baselines with their gains over uniform weights, of which positive ones are
    better whatever the direction, `cost.csv` the cost curve and `calibration.csv` how true the
    previews are. What is not known is empty.

    Args:
        folder: Where to.
        study: The study.
        report: As for `write_html`.

    Raises:
        ValueError: no trial has task weights yet.
    """
    reading = Reading.of(study, report)
    paths = []
    for table in (_weightings, _metrics, _cost, _calibration):
        head, rows = table(reading)
        path = Path(folder) / f"{table.__name__[1:]}.csv"
        with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(head)
            writer.writerows(rows)
        paths.append(path)
    return paths


def _weightings(reading: Reading) -> Table:
    tasks = reading.findings.tasks
    head = ["trial", "kind", "baseline", "repeat", "feasible", "steps", "preview", "truth"]
    head += [f"{kind}_{task}" for kind in ("weight", "preview", "truth") for task in tasks]
    return head, (
        [o.trial, o.kind, o.baseline, o.repeat, o.feasible, o.steps, o.preview, o.truth]
        + [of[task] for of in (o.weights, o.previews, o.truths) for task in tasks]
        for o in reading.findings.outcomes
    )


def _metrics(reading: Reading) -> Table:
    head = ["finetune", "trial", "quantity", "weight", "preview", "truth", "test", "direction"]
    quantities = [*reading.findings.tasks, *([] if reading.findings.several else [SCORE])]
    return [*head, "gain_over_uniform", "test_gain_over_uniform"], (
        [name, outcome.trial, *_values(reading, outcome, quantity)]
        for name, outcome in reading.rows.items()
        for quantity in quantities
    )


def _values(reading: Reading, outcome: Outcome, quantity: str | None) -> list[Any]:
    name, weight = reading.score, None
    if quantity is not SCORE:
        name, weight = quantity, outcome.weights[quantity]
    gain = reading.gain_over_uniform(outcome, quantity)
    metrics = reading.metrics(outcome, quantity).values()
    told = [_direction(reading, quantity), gain.validation, gain.test]
    return [name, weight, *metrics, *told]


def _cost(reading: Reading) -> Table:
    return ["steps", "truth", reading.curve_of.replace(" ", "_"), "trial", "kind"], (
        [p.steps, p.outcome.truth, p.best, p.outcome.trial, p.outcome.kind]
        for p in cost_curve(reading.findings)
    )


def _calibration(reading: Reading) -> Table:
    head = ["quantity", "truths", "bias", "slope", "spearman", "low", "high", "kendall"]
    return [*head, "top_quartile", "argmax_regret", "verdict", "direction"], (
        [quantity or "score", *_statistics(asdict(found)), _direction(reading, quantity)]
        for quantity, found in reading.judged
    )


def _statistics(found: Mapping[str, Any]) -> list[Any]:
    def of(statistic: str, part: str = "value") -> float | None:
        return None if found[statistic] is None else found[statistic][part]

    rank = [of("spearman", part) for part in ("value", "low", "high")]
    more = [found[name] for name in ("top_quartile", "argmax_regret", "verdict")]
    return [found["count"], of("bias"), of("slope"), *rank, of("kendall"), *more]


def _direction(reading: Reading, quantity: str | None) -> str:
    return "maximize" if reading.findings.maximize[quantity] else "minimize"
