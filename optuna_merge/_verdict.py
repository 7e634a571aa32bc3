"""What is said of a study's result: text, page, tables, notes and JSON say the same."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from optuna_merge._noise import Noise
from optuna_merge.outcomes import SCORE, Findings, Outcome

Tested = Mapping[int, Mapping[str | None, float]]
"""Metrics on test data by trial, of tasks and of the score (`SCORE`), where they are known."""


@dataclass(frozen=True)
class Gain:
    """How much better one finetune is than another; positive is better in either direction.

    Attributes:
        validation: On validation data; None where not known.
        test: On test data.
    """

    validation: float | None
    test: float | None

    def __str__(self) -> str:
        parts = {"validation": self.validation, "test": self.test}
        told = [f"{gain:+.4f} on {data} data" for data, gain in parts.items() if gain is not None]
        return ", ".join(told) or "not known"


@dataclass(frozen=True)
class Verdict:
    """What a study has found, in numbers and in sentences.

    Attributes:
        over_uniform: Gain of the best truth's score over uniform weights'; None without both.
        over_alone: By task, gain of the best truth over the task finetuned alone.
        answer: The sentences that answer what was asked.
        warnings: What a reader must know before believing them.
    """

    over_uniform: Gain | None = None
    over_alone: Mapping[str, Gain] = field(default_factory=dict)
    answer: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "gain_over_uniform": None if self.over_uniform is None else asdict(self.over_uniform),
            "gain_over_alone": {name: asdict(gain) for name, gain in self.over_alone.items()},
            "answer": list(self.answer),
            "warnings": list(self.warnings),
        }


def gain(
    findings: Findings,
    quantity: str | None,
    outcome: Outcome,
    reference: Outcome,
    tested: Tested,
) -> Gain:
    """How much better `outcome` is than `reference` in a task's metric or the score."""
    sign = findings.sign(quantity)

    def better(a: float | None, b: float | None) -> float | None:
        # The sum makes a zero of either sign a plain one.
        return None if a is None or b is None else sign * (a - b) + 0.0

    return Gain(
        better(outcome.found(quantity), reference.found(quantity)),
        better(
            tested.get(outcome.trial, {}).get(quantity),
            tested.get(reference.trial, {}).get(quantity),
        ),
    )


def judge(
    findings: Findings,
    *,
    tested: Tested | None = None,
    previews: Mapping[str, Any] | None = None,
    hypervolumes: tuple[float, float] | None = None,
    noise: Noise | None = None,
    constraints: Sequence[str] = (),
) -> Verdict:
    """Judge a study by its truths.

    Args:
        findings: What its trials say.
        tested: Metrics on test data.
        previews: The score's calibration as JSON values.
        hypervolumes: Of a study of several objectives, of all truths and of the baselines.
        noise: Of one finetune's score.
        constraints: What is to be said of the constraints besides.
    """
    tested = {} if tested is None else tested
    warnings = list(constraints)
    if previews is not None and previews["warning"]:
        warnings.append(f"Previews of the score: {previews['warning']}.")
    if not findings.truths:
        told = "No truth yet: nothing has been finetuned to its end, there are previews only."
        return Verdict(answer=(told,), warnings=tuple(warnings))
    if findings.uniform is None:
        warnings.append("Uniform weights have no truth yet.")
    if findings.closest is not None:
        return Verdict(answer=(infeasible(findings.closest),), warnings=tuple(warnings))
    if findings.several:
        return Verdict(answer=_of_front(findings, hypervolumes), warnings=tuple(warnings))
    best = findings.best
    if best is None:  # no truth has a finite score
        told = "No finetune has a score that is a number: there is no best trial."
        return Verdict(answer=(told,), warnings=tuple(warnings))
    over_uniform, answer = None, []
    if findings.uniform is not None:
        over_uniform = gain(findings, SCORE, best, findings.uniform, tested)
        answer.append(_over_uniform(findings, findings.uniform, over_uniform))
        if findings.uniform.feasible:
            warnings += _doubts(findings, over_uniform, noise)
    over_alone = {}
    if len(findings.tasks) > 1:
        over_alone = {
            name: gain(findings, name, best, alone, tested)
            for name, alone in findings.alone.items()
        }
    if over_alone:
        parts = [f"{_named(findings, name)} {found}" for name, found in over_alone.items()]
        answer.append(f"Gain over each task finetuned alone: {'; '.join(parts)}.")
    return Verdict(over_uniform, over_alone, tuple(answer), tuple(warnings))


def _over_uniform(findings: Findings, uniform: Outcome, over: Gain) -> str:
    if not uniform.feasible:
        return "Uniform weights don't satisfy the constraints; the best trial does."
    if over.validation is not None and over.validation <= 0:
        return "No weights beat uniform ones in this study: use uniform weights."
    how = "" if findings.maximize[SCORE] else " (by how much the score is lower)"
    return f"Gain over uniform weights{how}: {over}."


def _named(findings: Findings, task: str) -> str:
    return task if findings.maximize[task] else f"{task} (by how much it is lower)"


def _doubts(findings: Findings, over: Gain, noise: Noise | None) -> list[str]:
    if over.validation is None or over.validation <= 0:
        return []
    told = []
    if over.test is not None and over.test <= 0:
        told.append("On test data uniform weights are as good or better.")
    # The difference of two finetunes has the noise of both.
    std = None if noise is None else noise.std
    if noise is not None and std is not None and over.validation < math.sqrt(2) * std:
        told.append(
            f"No evidence of a gain on validation data: it is within the noise of two finetunes "
            f"(of each {noise.told})."
        )
    told.append(
        f"The best of {findings.counts.truths} finetunes is picked by the validation data that "
        f"it is measured on, which flatters it; test data, where shown, had no part in the choice."
    )
    return told


def tested_metrics(rows: Iterable[Mapping[str, Any]]) -> dict[int, dict[str | None, float]]:
    """Metrics on test data of a report's rows, as `judge` wants them."""
    found: dict[int, dict[str | None, float]] = {}
    for row in rows:
        values = {name: task["test"] for name, task in row["tasks"].items()}
        values |= {SCORE: row["score"]["test"]} if "score" in row else {}
        found[row["trial"]] = {name: v for name, v in values.items() if v is not None}
    return found


def infeasible(closest: Outcome) -> str:
    """Of a study whose truths violate its constraints: which comes closest, and by how much."""
    by = ", ".join(f"{name} by {value:.4f}" for name, value in closest.missed.items())
    return (
        f"No finetune satisfies the constraints: there is no best trial. The closest is trial "
        f"{closest.trial}, which misses {by}. Relax the constraints, or let it search on."
    )


def _of_front(findings: Findings, hypervolumes: tuple[float, float] | None) -> tuple[str, ...]:
    told = (
        f"There is no single best: each task is an objective. {len(findings.front)} of "
        f"{findings.counts.truths} finetunes are on the Pareto front."
    )
    if hypervolumes is None:
        return (told,)
    whole, baselines = hypervolumes
    return told, f"Hypervolume {whole:.6g}, of the baselines alone {baselines:.6g}."
