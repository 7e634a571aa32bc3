"""What is said of a study's result: text, page, tables, notes and JSON say the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from optuna_merge.calibration import EVIDENT, Calibration, GainEstimate, Noise
from optuna_merge.pruners import Prospect
from optuna_merge.trials import SCORE, Findings, Outcome

Tested = Mapping[int, Mapping[str | None, float]]
"""Metrics on test data by trial, of tasks and of the score (`SCORE`), where they are known."""


@dataclass(frozen=True)
class Gain:
    """How much better one finetune is than another; positive is better in either direction."""

    validation: float | None
    test: float | None

    def __str__(self) -> str:
        parts = {"validation": self.validation, "test": self.test}
        told = [f"{gain:+.4f} on {data} data" for data, gain in parts.items() if gain is not None]
        return ", ".join(told) or "not known"


@dataclass(frozen=True)
class Verdict:
    """What a study has found, in numbers and in sentences.

    Gains are the best truth's, as they are seen and, where `expected`, shrunken for the noise and
    the choice; `warnings` are what a reader must know before believing them.
    """

    gain_over_uniform: Gain | None = None
    expected_gain: GainEstimate | None = None
    flat: bool = False
    gain_over_alone: Mapping[str, Gain] = field(default_factory=dict)
    headline: str = ""
    answer: Sequence[str] = ()
    warnings: Sequence[str] = ()


def gain(
    findings: Findings, quantity: str | None, outcome: Outcome, reference: Outcome, tested: Tested
) -> Gain:
    """How much better `outcome` is than `reference` in a task's metric or the score.

    Each is the mean over its repeats, on test data over those that were tested.
    """
    sign = findings.sign(quantity)

    def better(a: float | None, b: float | None) -> float | None:
        # The sum makes a zero of either sign a plain one.
        return None if a is None or b is None else sign * (a - b) + 0.0

    both = [findings.repeats(o) for o in (outcome, reference)]
    on_test = [
        [t for o in of.finetunes if (t := tested.get(o.trial, {}).get(quantity)) is not None]
        for of in both
    ]
    seen = better(*(of.mean(quantity) for of in both))
    return Gain(seen, better(*(sum(of) / len(of) if of else None for of in on_test)))


def judge(
    findings: Findings,
    *,
    tested: Tested = MappingProxyType({}),
    previews: Calibration | None = None,
    hypervolumes: tuple[float, float] | None = None,
    noise: Noise | None = None,
    estimate: GainEstimate | None = None,
    prospect: Prospect | None = None,
    constraints: Sequence[str] = (),
) -> Verdict:
    """Judge a study by its truths, and by what its reading has made of them."""
    warnings = list(constraints)
    if previews is not None and previews.warning:
        warnings.append(f"Previews of the score: {previews.warning}.")
    if findings.truths and findings.uniform is None:
        warnings.append("Uniform weights have no truth yet.")
    best = findings.best
    if best is None:
        return Verdict(answer=_without_best(findings, hypervolumes), warnings=warnings)
    over_uniform, answer, first = None, [], ""
    flat = prospect is not None and prospect.is_flat
    if findings.uniform is not None:
        over_uniform = gain(findings, SCORE, best, findings.uniform, tested)
        answer.append(_over_uniform(findings, findings.uniform, over_uniform))
        gains = findings.uniform.feasible and (over_uniform.validation or 0) > 0
        estimate = estimate if gains else None
        if estimate is not None:
            answer.append(
                f"Expected of another seed: {estimate.expected:+.4f} ± "
                f"{estimate.standard_error:.4f}, shrunken for the noise and for being the best of "
                f"{estimate.count}; a gain has probability {estimate.chance:.2f}."
            )
        if gains:
            warnings += _doubts(findings, over_uniform, noise, estimate)
        if findings.uniform.feasible and len(findings.tasks) > 1:
            first = headline(over_uniform.validation, over_uniform.test, estimate, flat=flat)
    if prospect is not None and flat:
        answer.append(f"The score is flat: {prospect.told}.")
    alone = findings.alone if len(findings.tasks) > 1 else {}
    over_alone = {name: gain(findings, name, best, of, tested) for name, of in alone.items()}
    if over_alone:
        lower = {True: "", False: " (by how much it is lower)"}
        parts = [f"{of}{lower[findings.maximize[of]]} {found}" for of, found in over_alone.items()]
        answer.append(f"Gain over each task finetuned alone: {'; '.join(parts)}.")
    if findings.uniform is not None:
        count = len(findings.repeats(findings.uniform).finetunes)
        if count > 1 and best is not findings.uniform:
            answer.append(f"Uniform weights stand there for the mean of their {count} finetunes.")
    return Verdict(over_uniform, estimate, flat, over_alone, first, answer, warnings)


def headline(
    seen: float | None, on_test: float | None, estimate: GainEstimate | None, *, flat: bool
) -> str:
    """What a reader is told first, by the gains seen and expected; empty where there are none."""
    if seen is None:
        return ""
    if seen <= 0:
        return f"{'Flat' if flat else 'No gain'}: use uniform weights."
    gain = f"{seen:+.4f}, its error is not known"
    if estimate is not None:
        gain = f"{estimate.expected:+.4f} ± {estimate.standard_error:.4f}"
    test = "; none on test data" if on_test is not None and on_test <= 0 else ""
    if flat:
        return f"Flat: no gain above the noise of a finetune is expected ({gain}{test})."
    if estimate is not None and not estimate.is_evident:
        return f"No evidence of a gain over uniform weights yet: {gain}{test}."
    return f"Gain over uniform weights: {gain}{test}."


def _without_best(findings: Findings, hypervolumes: tuple[float, float] | None) -> list[str]:
    """The answer where no finetune is the best one."""
    if not findings.truths:
        return ["No truth yet: nothing has been finetuned to its end, there are previews only."]
    closest = findings.closest
    if closest is not None:
        by = ", ".join(f"{name} by {value:.4f}" for name, value in closest.missed.items())
        return [
            f"No finetune satisfies the constraints: there is no best trial. The closest is trial "
            f"{closest.trial}, which misses {by}. Relax the constraints, or let it search on."
        ]
    if not findings.several:
        return ["No finetune has a score that is a number: there is no best trial."]
    told = [
        f"There is no single best: each task is an objective. {len(findings.front)} of "
        f"{findings.counts.truths} finetunes are on the Pareto front."
    ]
    if hypervolumes is not None:
        whole, baselines = hypervolumes
        told.append(f"Hypervolume {whole:.6g}, of the baselines alone {baselines:.6g}.")
    return told


def _over_uniform(findings: Findings, uniform: Outcome, over: Gain) -> str:
    if not uniform.feasible:
        return "Uniform weights don't satisfy the constraints; the best trial does."
    if over.validation is not None and over.validation <= 0:
        return "No weights beat uniform ones in this study: use uniform weights."
    how = "" if findings.maximize[SCORE] else " (by how much the score is lower)"
    return f"Gain over uniform weights{how}: {over}."


def _doubts(
    findings: Findings, over: Gain, noise: Noise | None, estimate: GainEstimate | None
) -> list[str]:
    told = []
    if over.test is not None and over.test <= 0:
        told.append("On test data uniform weights are as good or better.")
    if estimate is None:
        told.append(
            f"The best of {findings.counts.truths} finetunes is picked by the validation data "
            f"that it is measured on, which flatters it; test data, where shown, had no part in "
            f"the choice."
        )
    elif not estimate.is_evident and noise is not None:
        told.append(
            f"No evidence of a gain on validation data: its probability is below {EVIDENT:g} "
            f"(noise of a finetune {noise.told})."
        )
    return told
