"""The report's tables as CSV files."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna

from optuna_merge._base.files import atomic_path
from optuna_merge._verdict import Gain
from optuna_merge.html_report._page import Page, Row, read_page
from optuna_merge.outcomes import SCORE, Outcome
from optuna_merge.visualization._cost import CostPoint, cost_curve

Table = tuple[Sequence[str], Iterable[Sequence[Any]]]


def write_csv(
    folder: str | os.PathLike[str],
    study: optuna.Study,
    report: Mapping[str, Any] | None = None,
    *,
    maximize: Mapping[str, bool] | None = None,
) -> list[Path]:
    """Write the tables of the report as CSV files into a folder, which is made.

    `weightings.csv` has every task weighting with its preview and truth, `metrics.csv` the best
    finetune and the baselines with their gains over uniform weights, of which positive ones are
    better whatever the direction, `cost.csv` the cost curve and `calibration.csv` how true the
    previews are. What is not known is empty.

    Args:
        folder: Where to.
        study: The study.
        report: As for `write_html`.
        maximize: As for `write_html`.

    Returns:
        The files.

    Raises:
        OSError: the folder can't be written.
        ValueError: no trial has task weights yet.
    """
    page = read_page(study, report, maximize=maximize)
    outcomes = page.findings.outcomes
    curve = cost_curve(study, outcomes) if page.data["curve"] else []
    paths = []
    for name, (head, rows) in _tables(page, outcomes, curve).items():
        path = Path(folder) / f"{name}.csv"
        with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(head)
            writer.writerows(rows)
        paths.append(path)
    return paths


def _tables(
    page: Page, outcomes: Sequence[Outcome], curve: Sequence[CostPoint]
) -> dict[str, Table]:
    tasks = page.tasks
    kinds = ("weight", "preview", "truth")
    return {
        "weightings": (
            ["trial", "kind", "baseline", "feasible", "steps", "preview", "truth"]
            + [f"{kind}_{task}" for kind in kinds for task in tasks],
            (
                [o.trial, o.kind, o.baseline, o.feasible, o.steps, o.preview, o.truth]
                + [of[task] for of in (o.weights, o.previews, o.truths) for task in tasks]
                for o in outcomes
            ),
        ),
        "metrics": (
            [
                "finetune",
                "trial",
                "quantity",
                "weight",
                "preview",
                "truth",
                "test",
                "direction",
                "gain_over_uniform",
                "test_gain_over_uniform",
            ],
            (line for row in page.rows for line in _metrics(page, row)),
        ),
        "cost": (
            ["steps", "truth", page.data["curve_of"].replace(" ", "_"), "trial", "kind"],
            ([p.steps, p.value, p.best, p.outcome.trial, p.outcome.kind] for p in curve),
        ),
        "calibration": (
            [
                "quantity",
                "truths",
                "bias",
                "slope",
                "spearman",
                "low",
                "high",
                "kendall",
                "top_quartile",
                "argmax_regret",
                "verdict",
                "direction",
            ],
            (
                [name, found["count"], _value(found["bias"]), _value(found["slope"])]
                + [_value(found["spearman"], key) for key in ("value", "low", "high")]
                + [_value(found["kendall"]), found["top_quartile"], found["argmax_regret"]]
                + [found["verdict"], _direction(page, name)]
                for name, found in page.calibration
            ),
        ),
    }


def _metrics(page: Page, row: Row) -> Iterable[Sequence[Any]]:
    for quantity, values in [*row.tasks.items(), (SCORE, row.score)]:
        if quantity not in page.findings.maximize:  # there is no score
            continue
        name, weight = page.score, None
        if quantity is not SCORE:
            name, weight = quantity, row.weights[quantity]
        gain = row.gains.get(quantity, Gain(None, None))
        told = [_direction(page, quantity), gain.validation, gain.test]
        yield [row.name, row.trial, name, weight, *values, *told]


def _direction(page: Page, quantity: str | None) -> str:
    """Of a task by its name; anything else is a score."""
    upwards = page.findings.maximize
    return "maximize" if upwards.get(quantity, upwards.get(SCORE)) else "minimize"


def _value(estimate: Mapping[str, float] | None, key: str = "value") -> float | None:
    return None if estimate is None else estimate[key]
