"""The page's table of costs: what was spent, and what a grid of finetunes would take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna_merge.reports._reading import Json, Reading
from optuna_merge.trials import finetune_steps


@dataclass(frozen=True)
class CostRow:
    """One line; `of_what`: whether it is a part of what was spent, not a sum or a grid."""

    what: str
    steps: int | None
    seconds: float | None
    finetunes: float
    of_what: bool = True


def cost_rows(reading: Reading, report: Mapping[str, Any] | None) -> list[CostRow]:
    """What was spent, by what for, then all of it, then grids of finetunes."""
    known: Json = reading.costs | ({} if report is None else report["cost"])
    findings, counts, spent = reading.findings, reading.findings.counts, reading.spending
    steps = known.get("task_run_steps", findings.task_run_steps or None)
    given = {} if report is None else report["definition"].get("runs", {})
    runs = f"{len(findings.tasks)} task runs" + (f" ({len(given)} of them given)" if given else "")
    previews, finetunes = known["preview_seconds"] or None, known["finetune_seconds"] or None
    rows = [CostRow(runs, steps, known.get("task_run_seconds"), spent.task_runs)]
    if report is not None:
        rows.append(CostRow("posteriors", None, known.get("posterior_seconds"), spent.posteriors))
    rows += [
        CostRow(f"{counts.previews:,} previews", None, previews, spent.previews),
        CostRow(
            f"{counts.truths:,} finetunes", known["finetune_steps"], finetunes, spent.finetunes
        ),
    ]
    taken = None if spent.seconds is None else spent.total * spent.seconds
    rows.append(CostRow("all of it", sum(r.steps or 0 for r in rows), taken, spent.total, False))
    one = finetune_steps(reading.study)
    for grid in reading.grids:
        steps = None if one is None else grid.finetunes * one
        what = f"a grid in steps of {grid.step:g}"
        rows.append(CostRow(what, steps, grid.seconds, grid.finetunes, of_what=False))
    return rows
