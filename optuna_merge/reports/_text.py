"""The report as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from optuna_merge.calibration import format_calibration

Json = Mapping[str, Any]

_BESIDE = 8  # finetunes of a table that stand beside one another


def format_report(report: Json) -> str:
    """Format what `make_report` or `study_report` returns as text, for terminals and logs."""
    lines = [f"Study {report['study']!r}, score: {report['score']}{_sense(report['maximize'])}"]
    lines += ["", *_result(report), "", *_told(report), "", *_counted(report)]
    if "cost" in report:
        lines += _costs(report["cost"], report["definition"].get("runs", {}))
    spent = report["spent"]
    lines += [f"Spent: {spent['told']}.", *filter(None, [spent["grid_told"]])]
    lines += ["", "Previews against truths:", format_calibration(report["calibration"])]
    return "\n".join(lines)


def _sense(maximize: Json) -> str:
    """A word on what is minimised; nothing where larger is better, as one expects."""
    if maximize["score"] is not None:
        return "" if maximize["score"] else " (lower is better)"
    lower = [name for name, upwards in maximize["tasks"].items() if not upwards]
    return f" (lower is better: {', '.join(lower)})" if lower else ""


def _result(report: Json) -> list[str]:
    """The front, or else the best finetune or the closest one beside the baselines."""
    best, front, constraints = report["best"], report["front"], report["constraints"]
    if front is not None:
        return _front(report) if front["points"] else []
    if best is not None:
        weights = f"Best task weights: {_written(best['weights'])}  (trial {best['trial']})"
        return [weights, "", *_table({"best": best, **report["baselines"]})]
    closest = None if constraints is None else constraints["closest"]
    return [] if closest is None else _table({"closest": closest, **report["baselines"]})


def _front(report: Json) -> list[str]:
    front, names = report["front"], list(report["maximize"]["tasks"])
    baselines = {row["trial"]: name for name, row in report["baselines"].items()}
    kinds = ["truth", *_tested(front["points"])]
    width = max(map(len, [*names, "x" * (6 + 8 * len(kinds))]))
    shown = ", ".join(["weight", *kinds])
    lines = [
        f"Pareto front of the truths, {len(front['points'])} points ({shown}):",
        f"{'trial':>14}" + "".join(f"  {name:^{width}}" for name in names),
    ]
    for row in front["points"]:
        label = f"{baselines.get(row['trial'], '')} {row['trial']}".strip()
        cells = (
            f"{row['weights'][name]:6.3f} {_cells(row['tasks'][name], kinds, 7)}" for name in names
        )
        lines.append(f"{label:>14}" + "".join(f"  {cell:>{width}}" for cell in cells))
    corner = front["reference_point"] or {}
    point = ", ".join(f"{name} {value:.4f}" for name, value in corner.items())
    told = f"Hypervolumes are measured from the reference point {point}."
    return [*lines, "", told] if point else lines


def _table(rows: Json) -> list[str]:
    """Preview, truth and test metrics of some finetunes, a line per task and one for the score.

    Of many finetunes, as a study of many tasks has them, a few stand beside one another.
    """
    names = list(rows)
    parts = [names[i : i + _BESIDE] for i in range(0, len(names), _BESIDE)]
    lines = [["", *_columns({name: rows[name] for name in part})] for part in parts]
    return [line for part in lines for line in part][1:]


def _columns(rows: Json) -> list[str]:
    kinds = ["preview", "truth", *_tested(rows.values())]
    across = 9 * len(kinds) - 1
    tasks = list(next(iter(rows.values()))["weights"])
    width = max(map(len, [*tasks, "score"]))

    def line(name: str, cells: Iterable[str]) -> str:
        return f"{name:{width}}" + "".join(f"  {cell}" for cell in cells)

    return [
        line("", (f"{name:^{across}}" for name in rows)),
        line("", [" ".join(f"{kind:>8}" for kind in kinds)] * len(rows)),
        *(line(t, (_cells(row["tasks"][t], kinds, 8) for row in rows.values())) for t in tasks),
        line("score", (_cells(row["score"], kinds, 8) for row in rows.values())),
    ]


def _tested(rows: Iterable[Json]) -> list[str]:
    """The column of test metrics, if any finetune has some."""
    cells = (cell for row in rows for cell in row["tasks"].values())
    return ["test"] if any(cell["test"] is not None for cell in cells) else []


def _cells(values: Json, kinds: Iterable[str], width: int) -> str:
    found = (values[kind] for kind in kinds)
    return " ".join(f"{'-' if v is None else format(v, '.4f'):>{width}}" for v in found)


def _told(report: Json) -> list[str]:
    """The verdict, what constraints the best one keeps, and the noise of one finetune."""
    verdict, best, noise = report["verdict"], report["best"], report["noise"]
    lines = [*verdict["answer"], *verdict["warnings"]]
    if best is not None and best.get("constraints"):
        kept = [f"{name} by {-value:.4f}" for name, value in best["constraints"].items()]
        lines.append(f"Constraints kept: {', '.join(kept)}")
    if report["counts"]["truths"]:
        score = {} if noise["score"] is None else {"score": noise["score"]}
        lines += [
            f"Noise of one finetune, {name}: {of['told']}"
            for name, of in (score | noise["tasks"]).items()
        ]
    return lines


def _counted(report: Json) -> list[str]:
    """How many previews and finetunes there are, and what was given up."""
    counts = report["counts"]
    retried = f" ({counts['retried']} tried again)" if counts["retried"] else ""
    lines = [
        f"Previews {counts['previews']}, finetunes {counts['truths']} "
        f"({counts['promoted']} promoted, {counts['baselines']} baselines), "
        f"failed {counts['failed']}{retried}"
    ]
    for row in report["failures"]:
        what = row["baseline"] or (_written(row["weights"]) if row["weights"] else "-")
        tries = f"{row['tries']} {'try' if row['tries'] == 1 else 'tries'}"
        lines.append(f"Given up after {tries}: {what} (trial {row['trial']}): {row['reason']}")
    return lines


def _costs(cost: Json, given: Json) -> list[str]:
    rows = (
        ("task runs", cost.get("task_run_steps", ""), cost.get("task_run_seconds", 0.0)),
        ("posteriors", "", cost.get("posterior_seconds", 0.0)),
        ("previews", "", cost["preview_seconds"]),
        ("finetunes", cost["finetune_steps"], cost["finetune_seconds"]),
    )
    lines = [f"{'Cost':14} {'steps':>8} {'seconds':>9}"]
    lines += [f"{what:14} {steps:>8} {seconds:>9.1f}" for what, steps, seconds in rows]
    if given:
        lines.append(f"Given runs, which cost nothing: {', '.join(given)}")
    if cost["preview_to_finetune"] is not None:
        lines.append(
            f"One preview: {cost['seconds_per_preview']:.2f} s, one finetune: "
            f"{cost['seconds_per_finetune']:.1f} s, ratio 1/{1 / cost['preview_to_finetune']:.0f}"
        )
    return lines


def _written(weights: Json) -> str:
    return ", ".join(f"{task} {weight:.3f}" for task, weight in weights.items())
