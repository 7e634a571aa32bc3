"""A study, read once for whatever is written of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import optuna

from optuna_merge.calibration import (
    Calibration,
    Noise,
    StudyCalibration,
    estimated_gain,
    finetune_noise,
    study_calibration,
)
from optuna_merge.pruners import PromotionPruner, prospect
from optuna_merge.reports._grid import Grid, grids, time_told
from optuna_merge.reports._verdict import Gain, Tested, Verdict, gain, judge
from optuna_merge.surrogate import Models, truth_models
from optuna_merge.trials import (
    SCORE,
    UNIFORM,
    Findings,
    Outcome,
    Spending,
    read_study,
    study_spending,
)
from optuna_merge.visualization import dominated_volume

Json = dict[str, Any]


@dataclass(frozen=True)
class Reading:
    """What a study says, with what only its working folder knows put in."""

    study: optuna.Study
    findings: Findings
    tested: Tested = field(default_factory=dict)
    constraints: Sequence[str] = ()

    @classmethod
    def of(cls, study: optuna.Study, report: Mapping[str, Any] | None = None) -> Reading:
        """Read a study, and the test metrics in `make_report`'s result."""
        return cls(study, read_study(study), {} if report is None else _tested(report))

    @cached_property
    def calibration(self) -> StudyCalibration:
        """How far the previews can be trusted."""
        return study_calibration(self.study, self.findings.tasks)

    @property
    def judged(self) -> Iterator[tuple[str | None, Calibration]]:
        """The same of the score (`SCORE`), if there is one, and of each task."""
        return zip(self.findings.quantities, (of for _, of in self.calibration.items()))

    @cached_property
    def models(self) -> Models:
        """Models of the truth, of the score and of each task's metric."""
        return truth_models(self.study, self.findings)

    @cached_property
    def noise(self) -> dict[str | None, Noise]:
        """The noise of one finetune, of the score and of each task's metric."""
        return finetune_noise(self.study, self.findings)

    @cached_property
    def hypervolumes(self) -> tuple[float, float] | None:
        """Of a study of several objectives, of all truths and of the baselines."""
        parts = (self.findings.truths, self.findings.baselines.values())
        whole, baselines = (dominated_volume(self.findings, of) for of in parts)
        return None if whole is None or baselines is None else (whole, baselines)

    @cached_property
    def verdict(self) -> Verdict:
        """What is said of the result."""
        return judge(
            self.findings,
            tested=self.tested,
            previews=self.calibration.score,
            hypervolumes=self.hypervolumes,
            noise=self.noise.get(SCORE),
            estimate=estimated_gain(self.findings, self.noise.get(SCORE)),
            prospect=prospect(self.study, self.findings),
            constraints=self.constraints,
        )

    @property
    def spent(self) -> str:
        """What the study has cost, in words, and what is left of its pruner's budget."""
        pruner = self.study.pruner
        budget = pruner.budget if isinstance(pruner, PromotionPruner) else None
        spent = self.spending
        taken = f", {time_told(spent.total * spent.seconds)} in all" if spent.seconds else ""
        return f"{spent.said(budget)}{taken} ({spent.told})"

    @cached_property
    def grids(self) -> list[Grid]:
        """What grids of finetunes would have cost in place of the study."""
        return grids(len(self.findings.tasks), self.spending.seconds)

    @cached_property
    def spending(self) -> Spending:
        """What the study has cost, in finetunes."""
        return study_spending(self.study)

    @property
    def score(self) -> str | None:
        """The score's name; None in a Pareto study."""
        names = self.study.metric_names or ["score"]
        return None if self.findings.several else names[0]

    @property
    def curve_of(self) -> str:
        """What the cost curve is of."""
        return "hypervolume" if self.findings.several else "best truth"

    @cached_property
    def rows(self) -> dict[str, Outcome]:
        """By name the best finetune, or those on the Pareto front, and the baselines."""
        findings = self.findings
        best = {} if findings.best is None else {"best": findings.best}
        front = {f"trial {o.trial}": o for o in findings.front if o.kind == "promoted"}
        baselines = {
            name if o.baseline == UNIFORM else f"{name} alone": o
            for name, o in findings.baselines.items()
        }
        return best | front | baselines

    def metrics(self, outcome: Outcome, quantity: str | None) -> dict[str, float | None]:
        """Preview, truth and test of a task's metric, or of the score (`SCORE`)."""
        return {
            "preview": outcome.seen(quantity),
            "truth": outcome.found(quantity),
            "test": self.tested.get(outcome.trial, {}).get(quantity),
        }

    def gain_over_uniform(self, outcome: Outcome, quantity: str | None) -> Gain:
        """How much better it is than uniform weights."""
        uniform = self.findings.uniform
        if uniform is None:
            return Gain(None, None)
        return gain(self.findings, quantity, outcome, uniform, self.tested)

    @property
    def costs(self) -> Json:
        """What previews and finetunes took, as JSON values."""
        outcomes = self.findings.outcomes
        previews = [o.preview_seconds for o in outcomes if o.previewed]
        finetunes = [o.finetune_seconds for o in outcomes if o.finetune_seconds is not None]
        per_preview, per_finetune = (sum(s) / len(s) if s else None for s in (previews, finetunes))
        ratio = None
        if per_preview is not None and per_finetune:
            ratio = per_preview / per_finetune
        return {
            "preview_seconds": sum(previews),
            "finetune_steps": sum(o.steps for o in outcomes),
            "finetune_seconds": sum(finetunes),
            "seconds_per_preview": per_preview,
            "seconds_per_finetune": per_finetune,
            "preview_to_finetune": ratio,
        }


def _tested(report: Mapping[str, Any]) -> Tested:
    """Metrics on test data of the report's finetunes."""
    front = report["front"]["points"] if report["front"] else []
    found: dict[int, dict[str | None, float]] = {}
    for row in (report["best"], *report["baselines"].values(), *front):
        if row is not None:
            metrics = {**row["tasks"], SCORE: row.get("score", {"test": None})}
            known = {of: m["test"] for of, m in metrics.items() if m["test"] is not None}
            found[row["trial"]] = known
    return found
