"""Which posterior family previews best, by the truths that several families previewed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from optuna_merge.calibration._calibrate import Calibration
from optuna_merge.calibration._estimates import (
    LEVEL,
    MIN_TRUTHS,
    RESAMPLES,
    Array,
    Estimate,
    bootstrap_counts,
    spearman,
)

FAMILY_PREVIEWS = "family_previews"
"""User attribute of a finished finetune: by family, the study's own first, `score` and `metrics`.

The score is None in a study of several objectives, `metrics` is a mapping from task to number.
"""


@dataclass(frozen=True)
class FamilyCalibration:
    """How the previews of one posterior family relate to the truths.

    Attributes:
        score: Of the objective value; None where each task is an objective of its own.
        tasks: Of each task's metric, by task.
    """

    score: Calibration | None
    tasks: Mapping[str, Calibration]

    @property
    def trust(self) -> float | None:
        """The rank correlation of the score, or else the mean of the tasks'; None: undefined."""
        if self.score is not None:
            return None if self.score.spearman is None else self.score.spearman.value
        found = [c.spearman.value for c in self.tasks.values() if c.spearman is not None]
        return float(np.mean(found)) if found else None

    @property
    def error(self) -> float | None:
        """Mean absolute error of the tasks' metrics; None where there are too few truths."""
        return _mean([c.error for c in self.tasks.values()])

    @property
    def bias(self) -> float | None:
        """Mean of truth minus preview of the tasks' metrics."""
        return _mean([c.bias for c in self.tasks.values()])

    @property
    def ranks(self) -> bool:
        """Whether it is shown that it ranks truths: the verdict is "previews are true"."""
        judged = list(self.tasks.values()) if self.score is None else [self.score]
        return bool(judged) and all(c.verdict == "previews are true" for c in judged)


@dataclass(frozen=True)
class FamilyComparison:
    """Posterior families on the same truths.

    Attributes:
        families: By family, the study's own first.
        lead: Of the best family over the study's own, the difference of the score's rank
            correlations, over the same resamples; None where it is the own, or there is no score.
    """

    families: Mapping[str, FamilyCalibration]
    lead: Estimate | None = None

    @property
    def own(self) -> str:
        """The study's own family."""
        return next(iter(self.families))

    @property
    def best(self) -> str | None:
        """The family that ranks truths best; None where too few truths tell."""
        return best_family(self.families)

    @property
    def advice(self) -> str:
        """What the comparison means for the study, in a sentence."""
        best, own = self.best, self.own
        if best is None:
            return f"too few truths to compare posterior families (fewer than {MIN_TRUTHS})"
        trust = {name: found.trust for name, found in self.families.items()}
        if not any(found.ranks for found in self.families.values()):
            return (
                "no posterior family that is compared is shown to rank the truths: more task runs "
                "(PosteriorSettings(components=...)), more examples for the posteriors or more "
                "truths may help, or the weights hardly matter"
            )
        if best == own:
            return (
                f"{own}, this study's posterior family, ranks the truths best ({trust[own]:.2f})"
            )
        beside = "none" if trust[own] is None else f"{trust[own]:.2f}"
        sure = self.lead is not None and self.lead.low > 0
        more = "" if sure else "; not for sure, the interval of the difference includes zero"
        return (
            f"{best} ranks the truths better than {own}, this study's posterior family "
            f"({trust[best]:.2f} against {beside}{more})"
        )

    def as_json(self) -> dict[str, Any]:
        """JSON values, for reports."""
        return {
            "families": {
                name: {
                    "error": found.error,
                    "bias": found.bias,
                    "trust": found.trust,
                    "count": _count(found),
                    "spearman": _interval(found),
                }
                for name, found in self.families.items()
            },
            "own": self.own,
            "best": self.best,
            "lead": None
            if self.lead is None
            else {"value": self.lead.value, "low": self.lead.low, "high": self.lead.high},
            "advice": self.advice,
        }


def best_family(families: Mapping[str, FamilyCalibration]) -> str | None:
    """The family of the largest rank correlation, of equals the one with the smallest error."""
    judged = {n: (f.trust, -(f.error or 0.0)) for n, f in families.items() if f.trust is not None}
    return max(judged, key=lambda name: judged[name]) if judged else None


def lead_over(
    best: Array, own: Array, truths: Array, *, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate | None:
    """Difference of two rank correlations with the same truths, with its 90% bootstrap interval.

    Args:
        best: Previews of one family, `n`.
        own: Previews of the other, at the same weights.
        truths: `n`.
        resamples: Bootstrap samples, of triples.
        seed: Of the bootstrap.
    """
    counts = bootstrap_counts(len(truths), resamples, seed)
    every = np.ones((1, len(truths)))
    value = spearman(best, truths, every)[0] - spearman(own, truths, every)[0]
    drawn = spearman(best, truths, counts) - spearman(own, truths, counts)
    drawn = drawn[np.isfinite(drawn)]
    if not np.isfinite(value) or not len(drawn):
        return None
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Estimate(float(value), float(low), float(high), len(truths))


def format_comparison(comparison: Mapping[str, Any]) -> list[str]:
    """`FamilyComparison.as_json` as lines of a plain-text table, and what it means."""
    rows = comparison["families"]
    width = max(map(len, [*rows, "posteriors"]))
    lines = [f"{'posteriors':{width}}{'truths':>8}{'error':>10}{'bias':>10}{'Spearman (90%)':>24}"]
    for name, row in rows.items():
        error = "-" if row["error"] is None else f"{row['error']:.4f}"
        bias = "-" if row["bias"] is None else f"{row['bias']:+.4f}"
        rho = row["spearman"]
        told = "-" if row["trust"] is None else f"{row['trust']:.2f}"
        if rho is not None:
            told = f"{rho['value']:.2f} ({rho['low']:.2f} to {rho['high']:.2f})"
        lines.append(f"{name:{width}}{row['count']:>8}{error:>10}{bias:>10}{told:>24}")
    return [*lines, f"posteriors: {comparison['advice']}"]


def _mean(estimates: list[Estimate | None]) -> float | None:
    found = [estimate.value for estimate in estimates if estimate is not None]
    return float(np.mean(found)) if found else None


def _count(found: FamilyCalibration) -> int:
    if found.score is not None:
        return found.score.count
    return max((c.count for c in found.tasks.values()), default=0)


def _interval(found: FamilyCalibration) -> dict[str, float] | None:
    """The score's, where there is one."""
    rho = None if found.score is None else found.score.spearman
    return None if rho is None else {"value": rho.value, "low": rho.low, "high": rho.high}
