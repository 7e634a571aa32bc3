"""A Trainer's rungs: evaluate, save, report, and stop where the report says so."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from optuna_merge.fitting import Report
from optuna_merge.trainers._ranks import Ranks


class RungWatch(TrainerCallback):  # type: ignore[misc]
    """Evaluates all tasks after each rung's step, and reports once its checkpoint is there.

    An exception of the report stops the training by `control.should_training_stop`, so that the
    Trainer ends as it always does, in all processes of its launch; it is kept in `stopped_by`.
    Rank 0 alone reports, and keeps the metrics as JSON lines in the folder.
    """

    def __init__(
        self,
        rungs: Sequence[int],
        evaluate: Callable[[], Mapping[str, float]],
        report: Report,
        folder: Path,
        ranks: Ranks,
    ) -> None:
        self._rungs, self._evaluate, self._report = set(rungs), evaluate, report
        self._ranks = ranks
        self._path = folder / "metrics.jsonl"
        self._known: dict[int, Mapping[str, float]] = {}
        self.stopped_by: BaseException | None = None

    def go_on_from(self, step: int) -> BaseException | None:
        """Report up to this step again, forget what came after it; give what the report raised."""
        return self._ranks.decided(lambda: self._report_again(step))

    def _report_again(self, step: int) -> None:
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:  # the last one, where the process was killed
                break
            if row["step"] <= step:
                self._known[row["step"]] = row["metrics"]
        found = sorted(self._known.items())
        self._path.write_text("".join(_line(*rung) for rung in found), encoding="utf-8")
        for rung in found:
            self._report(*rung)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Evaluate at a rung, and have the Trainer save."""
        step = state.global_step
        if step in self._rungs:
            self._known[step] = self._evaluate()
            if self._ranks.leads:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(_line(step, self._known[step]))
            control.should_save = True
        return control

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Report a rung, now that a kill would lose nothing."""
        step = state.global_step
        if step in self._rungs:
            self._rungs.discard(step)  # a Trainer may save twice at its end
            self._ranks.meet()  # all have saved their part
            self.stopped_by = self._ranks.decided(lambda: self._report(step, self._known[step]))
            if self.stopped_by is not None:
                control.should_training_stop = True
        return control


def _line(step: int, metrics: Mapping[str, float]) -> str:
    return json.dumps({"step": step, "metrics": dict(metrics)}) + "\n"
