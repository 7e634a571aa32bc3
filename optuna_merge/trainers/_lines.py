"""Metrics as JSON lines, as a command writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna_merge.exceptions import ProgramError

NAME = "metrics.jsonl"


class MetricLines:
    """The file of metrics in a run's folder: `{"step": 50, "metrics": {"math": 0.41}}` a line."""

    def __init__(self, folder: Path, tasks: Sequence[str], metric: str) -> None:
        self._path, self._tasks, self._metric = folder / NAME, tasks, metric
        self._read = 0
        self._number = 0

    def mend(self) -> None:
        """Cut off a last line that a kill has left unfinished."""
        if self._path.exists():
            content = self._path.read_bytes()
            if (whole := content.rfind(b"\n") + 1) < len(content):
                self._path.write_bytes(content[:whole])

    def new(self) -> list[tuple[int, dict[str, float]]]:
        """Steps and metrics of the whole lines that were written since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._read)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._read += len(whole)
        found = []
        for line in whole.decode(errors="replace").splitlines():
            self._number += 1
            if line.strip():
                found.append(self._rung(line, f"{self._path}, line {self._number}"))
        return found

    def _rung(self, line: str, where: str) -> tuple[int, dict[str, float]]:
        try:
            row = json.loads(line)
            step, metrics = int(row["step"]), dict(row["metrics"])
        except (ValueError, KeyError, TypeError) as error:
            raise ProgramError(
                f'{where}: {line[:80]!r} is not of the form {{"step": 50, "metrics": {{"'
                f'{self._tasks[0]}": 0.41, ...}}}}'
            ) from error
        return step, by_task(metrics, self._tasks, self._metric, where)


def by_task(
    metrics: Mapping[str, Any], tasks: Sequence[str], metric: str, where: str
) -> dict[str, float]:
    """The tasks' metrics among those that were told."""
    found = {}
    for task in tasks:
        key = metric.replace("{task}", task)
        if key not in metrics:
            raise ProgramError(
                f"{where}: no metric {key!r} of task {task!r}; there are {sorted(metrics)}"
            )
        if isinstance(metrics[key], bool) or not isinstance(metrics[key], int | float):
            raise ProgramError(
                f"{where}: the metric {key!r} is {metrics[key]!r}; expected a number"
            )
        found[task] = float(metrics[key])
    return found


def last_object(text: str, where: str) -> dict[str, Any]:
    """The metrics in the last line of a command's output, alone or under "metrics"."""
    lines = [line for line in text.splitlines() if line.strip()]
    try:
        found = json.loads(lines[-1])
        return dict(found.get("metrics", found))
    except (IndexError, ValueError, TypeError, AttributeError) as error:
        last = lines[-1][:80] if lines else ""
        raise ProgramError(
            f"{where}: the last line of its output is {last!r}; expected the metrics as a JSON "
            f"object by name"
        ) from error
