"""The page's section of a study of two tasks: both metrics over the share, and the best share."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from optuna_merge.reports._reading import Json, Reading
from optuna_merge.reports._replay import answer_told, interval_told
from optuna_merge.surrogate import Replay, replays

_KEEPS = (0.8, 0.85, 0.9, 0.95, 0.98, 1.0)
_DEFAULT = 0.95
_EVERY = 10  # of the curve's points, in the table
_DIGITS = 6  # of a number, which is more than is drawn


def short(value: float | None) -> float | None:
    """A number of the page's scripts."""
    return None if value is None else float(f"{value:.{_DIGITS}g}")


def shares(reading: Reading) -> list[Json]:
    """What `optuna-merge replay` says at several bounds, with either task as the general set.

    The likelier one comes first. Nothing of more or fewer tasks than two, and of a task that has
    not been finetuned alone.
    """
    tasks = reading.findings.tasks
    if len(tasks) != 2:
        return []
    asked = dict(_asked(reading))
    found = []
    for general in sorted(tasks, key=lambda task: (task not in asked, -tasks.index(task))):
        with suppress(ValueError):  # not finetuned alone yet, or not above zero
            wanted = asked.get(general, _DEFAULT)
            keeps = sorted({*_KEEPS, wanted})
            answers = replays(reading.study, general, keeps, reading.models)
            found.append(_section(answers, keeps.index(wanted), asked=general in asked))
    return found


def _asked(reading: Reading) -> Iterable[tuple[str, float]]:
    """The tasks that the study's constraints keep, and how much of their metrics alone."""
    for task in reading.findings.tasks:
        for name in {name for o in reading.findings.outcomes for name in o.constraints}:
            lead, _, keep = name.rpartition("_of_alone_")
            if lead == task and float(keep) <= 1:
                yield task, float(keep)


def _section(answers: list[Replay], chosen: int, *, asked: bool) -> Json:
    first = answers[0]
    curves = (first.own, first.general)
    rows = range(0, len(first.shares), _EVERY)
    return {
        "general": first.general.task,
        "own": first.own.task,
        "asked": asked,
        "shares": [short(share) for share in first.shares],
        "curves": [
            {"mean": _all(of.mean), "low": _all(of.low), "high": _all(of.high)} for of in curves
        ],
        "rows": [[f"{first.shares[i]:.2f}", *(interval_told(c, i) for c in curves)] for i in rows],
        "chosen": chosen,
        "answers": [
            {
                "keep": of.keep,
                "bound": short(of.bound),
                "best": None if of.best is None else of.best.share,
                "told": answer_told(of),
            }
            for of in answers
        ],
    }


def _all(values: Iterable[float]) -> list[float | None]:
    return [short(value) for value in values]
