"""Notes in Markdown: what a study looks for and has found, and what a finetune was for."""

from __future__ import annotations

import datetime

from optuna_merge.reports._reading import Reading
from optuna_merge.trials import SCORE, UNIFORM, Findings, Outcome, seed_name

OURS = "*Kept fresh by optuna_merge: delete this line to keep a text of your own.*"

_WORDS = (
    "Step 0 of a trial is its *preview*, the merged model's score without training; its value is "
    "the *truth*, the score of a real finetune. PRUNED means previewed only. `weight_…`, "
    "`preview_…` and `truth_…` are user attributes, by task."
)
_IN_NAMES = "\\`*_{}[]<>()#+-!|~"
_IN_SENTENCES = "\\`*_[]<>|~"  # the others only begin a list or a heading


def study_note(reading: Reading) -> str:
    """What the study looks for and what it has found."""
    findings, verdict = reading.findings, reading.verdict
    best, uniform = findings.best, findings.uniform
    names = ", ".join(map(_escaped, findings.tasks))
    lines = [
        f"**Task weights for {len(findings.tasks)} tasks**: {names}. "
        f"{findings.counts.previews} weightings previewed, {findings.counts.truths} finetuned.",
        "",
    ]
    if findings.several:
        numbers = ", ".join(str(o.trial) for o in findings.front) or "none yet"
        lines += [f"**Pareto front of the finetunes**: trials {numbers}.", ""]
    elif best is not None and best.truth is not None:
        lower = "" if findings.maximize[SCORE] else ", lower is better"
        lines.append(f"**Best so far** (trial {best.trial}): truth {best.truth:.4f}{lower}, at")
        lines += ["", *_weights_table(best), ""]
        if uniform is not None and uniform.truth is not None and uniform is not best:
            lines += [f"Uniform weights: {uniform.truth:.4f} (trial {uniform.trial}).", ""]
    told = " ".join(_escaped(s, _IN_SENTENCES) for s in (*verdict.answer, *verdict.warnings))
    return "\n".join([*lines, told, "", _WORDS, "", OURS])


def trial_note(findings: Findings, outcome: Outcome) -> str:
    """What a finetuned trial is, why it was finetuned and what came out."""
    kept = "." if outcome.feasible else ". It violates the constraints."
    why, result = _why(findings, outcome), _result(findings, outcome)
    lines = ["", f"**Why**: {why}", "", f"**Result**: {result}{kept}"]
    return "\n".join([*_weights_table(outcome), *lines])


def _why(findings: Findings, outcome: Outcome) -> str:
    if outcome.baseline is not None:
        what = "uniform weights" if outcome.baseline == UNIFORM else f"{outcome.baseline} alone"
        if outcome.repeat:
            what += f" with a {seed_name(outcome.repeat)}"
        return f"the baseline of {_escaped(what)}, always finetuned."
    if outcome.repeat:
        return f"a {seed_name(outcome.repeat)} of weights that were among the best."
    source = outcome.promoted_from
    origin = "promoted" if source is None else f"promoted from trial {source}"
    known = len(_ended_before(findings, outcome.started))
    why = f"{origin}, by what the {known} truths and all previews until then let its truth promise"
    if outcome.preview is None:
        return f"{why}."
    seen = [
        o.preview
        for o in findings.outcomes
        if o is outcome or (o.previewed and o.first < outcome.trial)
    ]
    rank, number = _rank(findings, outcome.preview, seen)
    return f"{why}; its preview was number {rank} of {number}."


def _result(findings: Findings, outcome: Outcome) -> str:
    truths = outcome.truths.items()
    metrics = ", ".join(f"{_escaped(task)} {v:.4f}" for task, v in truths if v is not None)
    if outcome.truth is None:
        return metrics
    seen = "" if outcome.preview is None else f" (preview {outcome.preview:.4f})"
    earlier = [o.truth for o in _ended_before(findings, outcome.ended)]
    rank, number = _rank(findings, outcome.truth, [*earlier, outcome.truth])
    return f"truth {outcome.truth:.4f}{seen}, number {rank} of {number} by then; {metrics}"


def _ended_before(findings: Findings, when: datetime.datetime | None) -> list[Outcome]:
    return [o for o in findings.truths if o.ended and when and o.ended < when]


def _rank(findings: Findings, score: float, among: list[float | None]) -> tuple[int, int]:
    """The place of a score among some, and how many they are."""
    known = [value for value in among if value is not None]
    sign = findings.sign(SCORE)
    return 1 + sum(sign * value > sign * score for value in known), len(known)


def _weights_table(outcome: Outcome) -> list[str]:
    names = [_escaped(name) for name in outcome.weights]
    return [
        f"| {' | '.join(names)} |",
        f"|{' --- |' * len(names)}",
        f"| {' | '.join(f'{weight:.3f}' for weight in outcome.weights.values())} |",
    ]


def _escaped(text: str, signs: str = _IN_NAMES) -> str:
    """As Markdown shows it; the dashboard takes no HTML, but `|`, `*` and `_` are signs."""
    return "".join(f"\\{sign}" if sign in signs else sign for sign in text)
