"""The names that trials and tables are written under, of which some can't be a task's.

Most of what is known of a trial are user attributes in one namespace: those of each task, made
from its name, and the trial's own. In tables and reports tasks, baselines and the score stand
side by side. So a task whose name makes another one's attribute, or stands for something else
there, is refused before anything is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from optuna_merge.trials._attributes import UNIFORM, names_of_tasks, names_of_trials, of_task
from optuna_merge.trials._outcome import baseline_name

_STANDS_FOR = {
    UNIFORM: "uniform weights",
    baseline_name(UNIFORM, 1): "uniform weights with another seed",
    "best": "the best finetune",
    "score": "the study's score",
}
"""Names that stand beside the tasks' in reports, tables and baselines."""


def check_task_names(tasks: Sequence[str]) -> None:
    """Raise `ValueError` where a name stands for something else, or two make one attribute.

    Names that differ only in case are one to some databases and file systems.
    """
    owners: dict[str, str] = {}
    for task in tasks:
        if task.casefold() in _STANDS_FOR:
            raise ValueError(
                f"task name {task!r} stands for {_STANDS_FOR[task.casefold()]} in reports and "
                f"tables; take another"
            )
        for attribute in _attributes(task):
            key = attribute.casefold()
            if key in names_of_trials():
                raise ValueError(
                    f"task name {task!r} makes {attribute!r}, an attribute that trials have "
                    f"anyway; take another"
                )
            other = owners.setdefault(key, task)
            if other != task:
                raise ValueError(
                    f"tasks {other!r} and {task!r} would write one attribute of trials, "
                    f"{attribute!r} (case counts for nothing there); rename one of them"
                )


def _attributes(task: str) -> Iterator[str]:
    return (of_task(name, task) for name in names_of_tasks())
