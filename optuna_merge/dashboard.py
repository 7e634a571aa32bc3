"""What optuna-dashboard shows of a study besides its trials: figures and notes, kept fresh."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial, TrialState

from optuna_merge._noise import finetune_noise, truth_models
from optuna_merge._verdict import Verdict, judge
from optuna_merge.calibration import study_calibration
from optuna_merge.outcomes import SCORE, Findings, Outcome, read_study
from optuna_merge.trials import PROMOTED_FROM, UNIFORM, TrialHandle, task_names

if TYPE_CHECKING:
    import plotly.graph_objects as go

_logger = logging.getLogger(__name__)

OURS = "*Kept fresh by optuna_merge: delete this line to keep a text of your own.*"
MAX_BYTES = 100_000
"""A figure in a study is no larger: the dashboard loads all of them at every refresh."""

_MAX_POINTS = 500
_DIGITS = 5


class Dashboard:
    """Keeps a study's figures and notes fresh while it runs; for `run_trials(after_trial=...)`.

    Args:
        study: The study.
        workdir: Working folder; workers there take turns.
        every: Seconds between two updates at least; the first is made at once.

    Raises:
        ImportError: optuna-dashboard or plotly is missing; `pip install optuna-merge[dashboard]`.
    """

    def __init__(self, study: optuna.Study, workdir: Path, *, every: float = 30.0) -> None:
        import optuna_dashboard  # noqa: F401
        import plotly  # noqa: F401

        self._study = study
        self._lock = FileLock(workdir / "dashboard.lock")
        self._every = every
        self._last = -math.inf

    def __call__(self, trial: FrozenTrial) -> None:
        """After a trial: update if it was finetuned and the last update is not just made.

        What goes wrong is logged: no worker ends because of a figure.
        """
        due = time.monotonic() - self._last >= self._every
        if trial.state == TrialState.COMPLETE and due:
            try:
                self.update()
            except Exception:
                _logger.warning("the dashboard's figures are not updated", exc_info=True)

    def update(self) -> None:
        """Update now, unless another worker is doing so."""
        try:
            with self._lock.acquire(timeout=0):
                update_dashboard(self._study)
        except Timeout:
            return
        self._last = time.monotonic()


def update_dashboard(study: optuna.Study) -> None:
    """Write the study's figures, its note, and a note for each finetuned trial without one.

    Figures are at most 100 KB each: numbers have five digits, and of more than 500 previews a
    part is drawn. A note that somebody has written is left alone.

    Raises:
        ImportError: optuna-dashboard or plotly is missing; `pip install optuna-merge[dashboard]`.
    """
    from optuna_dashboard import get_note, save_note, save_plotly_graph_object

    try:
        findings = read_study(study)
    except ValueError:  # no trial with task weights yet
        return
    for name, figure in _figures(study):
        save_plotly_graph_object(study, figure, graph_object_id=name)
    note = get_note(study)
    if not note or OURS in note:
        save_note(study, study_note(findings, _verdict(study, findings)))
    trials = study.get_trials(deepcopy=False)
    for outcome in findings.truths:
        handle = TrialHandle(study, outcome.trial)
        if not get_note(handle):
            save_note(handle, trial_note(findings, outcome, trials))


def _figures(study: optuna.Study) -> Iterator[tuple[str, go.Figure]]:
    from optuna_merge import visualization as plots

    several = len(study.directions) > 1
    first = task_names(study)[0] if several else None
    makers: list[tuple[str, Callable[[], go.Figure]]] = [
        ("task-weights", lambda: plots.plot_task_weights(study, first, max_points=_MAX_POINTS)),
        ("preview-truth", lambda: plots.plot_preview_truth(study, first)),
        ("cost", lambda: plots.plot_cost(study)),
    ]
    if several:
        makers.append(("front", lambda: plots.plot_front(study)))
    else:
        makers.append(("baselines", lambda: plots.plot_baselines(study)))
    for name, make in makers:
        with contextlib.suppress(ValueError):  # nothing of that kind is known yet
            figure = small(make())
            size = len(figure.to_json())
            if size <= MAX_BYTES:
                yield name, figure
            else:
                _logger.warning("figure %s is left out of the dashboard: %d bytes", name, size)


def small(figure: go.Figure) -> go.Figure:
    """The figure with shorter numbers."""
    import plotly.graph_objects as go

    parts = json.loads(figure.to_json())
    return go.Figure(data=_rounded(parts["data"]), layout=parts["layout"])


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


def _verdict(study: optuna.Study, findings: Findings) -> Verdict:
    noise = finetune_noise(study, findings, truth_models(study, findings))
    previews = study_calibration(study, findings.tasks).as_json()["score"]
    return judge(findings, previews=previews, noise=noise.get(SCORE))


def study_note(findings: Findings, verdict: Verdict) -> str:
    """What the study looks for and what it has found, in Markdown."""
    counts, best, uniform = findings.counts, findings.best, findings.uniform
    lines = [
        f"**Task weights for {len(findings.tasks)} tasks**: "
        f"{', '.join(map(_escaped, findings.tasks))}. "
        f"{counts.previews} weightings previewed, {counts.truths} finetuned.",
        "",
    ]
    if findings.several:
        numbers = ", ".join(str(o.trial) for o in findings.front) or "none yet"
        lines += [f"**Pareto front of the finetunes**: trials {numbers}.", ""]
    elif best is not None and best.truth is not None:
        lower = "" if findings.maximize[SCORE] else ", lower is better"
        lines.append(f"**Best so far** (trial {best.trial}): truth {best.truth:.4f}{lower}, at")
        lines += ["", *_weights_table(best), ""]
        if uniform is not None and uniform.truth is not None and uniform.trial != best.trial:
            lines += [f"Uniform weights: {uniform.truth:.4f} (trial {uniform.trial}).", ""]
    lines.append(" ".join(map(_escaped_words, (*verdict.answer, *verdict.warnings))))
    return "\n".join(
        [
            *lines,
            "",
            "Step 0 of a trial is its *preview*, the merged model's score without training; its "
            "value is the *truth*, the score of a real finetune. PRUNED means previewed only. "
            "`weight_…`, `preview_…` and `truth_…` are user attributes, by task.",
            "",
            OURS,
        ]
    )


def trial_note(findings: Findings, outcome: Outcome, trials: Sequence[FrozenTrial]) -> str:
    """What a finetuned trial is, why it was finetuned and what came out, in Markdown."""
    trial = trials[outcome.trial]
    earlier = [
        o
        for o in findings.truths
        if o.trial != outcome.trial and _ended_before(o, trial.datetime_complete)
    ]
    lines = [*_weights_table(outcome), ""]
    if outcome.baseline is not None:
        what = "uniform weights" if outcome.baseline == UNIFORM else f"{outcome.baseline} alone"
        lines.append(f"**Why**: the baseline of {_escaped(what)}, always finetuned.")
    else:
        lines.append(f"**Why**: {_promotion(findings, outcome, trials)}")
    metrics = ", ".join(
        f"{_escaped(task)} {value:.4f}"
        for task, value in outcome.truths.items()
        if value is not None
    )
    result = f"**Result**: {metrics}"
    if outcome.truth is not None:
        result = f"**Result**: truth {outcome.truth:.4f}"
        if outcome.preview is not None:
            result += f" (preview {outcome.preview:.4f})"
        sign = findings.sign(SCORE)
        known = [o.truth for o in earlier if o.truth is not None]
        rank = 1 + sum(sign * value > sign * outcome.truth for value in known)
        result += f", number {rank} of {len(known) + 1} by then; {metrics}"
    lines += ["", result + ("." if outcome.feasible else ". It violates the constraints.")]
    return "\n".join(lines)


def _promotion(findings: Findings, outcome: Outcome, trials: Sequence[FrozenTrial]) -> str:
    trial = trials[outcome.trial]
    source = trial.user_attrs.get(PROMOTED_FROM)
    origin = "promoted" if source is None else f"promoted from trial {source}"
    n_truths = sum(_ended_before(o, trial.datetime_start) for o in findings.truths)
    rule = f"by what the {n_truths} truths and all previews until then let its truth promise"
    if outcome.preview is None:
        return f"{origin}, {rule}."
    sign = findings.sign(SCORE)
    seen = [
        o.preview
        for o in findings.outcomes
        if o.preview is not None
        and (o.previewed or o is outcome)
        and (o.first <= outcome.first or o.first < outcome.trial)
    ]
    rank = 1 + sum(sign * value > sign * outcome.preview for value in seen)
    return f"{origin}, {rule}; its preview was number {rank} of {len(seen)}."


def _ended_before(outcome: Outcome, when: Any) -> bool:
    return outcome.ended is not None and when is not None and outcome.ended < when


def _weights_table(outcome: Outcome) -> list[str]:
    names = [_escaped(name) for name in outcome.weights]
    return [
        f"| {' | '.join(names)} |",
        f"|{' --- |' * len(names)}",
        f"| {' | '.join(f'{weight:.3f}' for weight in outcome.weights.values())} |",
    ]


def _escaped_words(sentence: str) -> str:
    """A sentence with names in it; signs that only begin a list or a heading stay as they are."""
    return "".join(f"\\{sign}" if sign in "\\`*_[]<>|~" else sign for sign in sentence)


def _escaped(text: str) -> str:
    """A name as Markdown shows it; the dashboard takes no HTML, but `|`, `*` and `_` are signs."""
    return "".join(f"\\{sign}" if sign in "\\`*_{}[]<>()#+-!|~" else sign for sign in text)
