"""The names that trials and tables are written under, of which some can't be a task's.

Most of what is known of a trial are user attributes in one namespace: those of each task, made
from its name, and the trial's own. In tables and reports tasks, baselines and the score stand
side by side. So a task whose name makes another one's attribute, or stands for something else
there, is refused before anything is trained.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from optuna_merge.study import UNIFORM

DECISION = "preview_decision"
"""User attribute: what was decided at the preview; with `_<step>`, at a refined preview."""
CLAIM = "preview_claim"
"""User attribute of a trial that claims a slot there; with `_<step>`, at a refined preview."""
REFINED = "refined_{step}_{task}"
"""User attribute of a task's metric in the preview that was refined by `step` training steps."""

OF_TASKS = (
    "weight_{task}",
    "preview_{task}",
    "preview_{task}_se",
    "partial_preview_{task}",
    "partial_preview_{task}_se",
    "truth_{task}",
)
"""User attributes of a trial for each task, beside `REFINED`; no other prefix is in use."""
OF_TRIALS = (
    "preview_seconds",
    "preview_taken_from",
    "preview_examples",
    "partial_preview_seconds",
    "truth_seconds",
    "truth_reused",
)
"""User attributes of the trial itself that begin as those of tasks do, beside those of gates."""
_OF_GATES = re.compile(rf"({DECISION}|{CLAIM})(_\d+)?")

_STANDS_FOR = {
    UNIFORM: "uniform weights",
    "best": "the best finetune",
    "score": "the study's score",
}
"""Names that stand beside the tasks' in reports, tables and baselines."""

MOST_LETTERS = 100
"""Of a name: it is a part of file names, which may have 255, and of keys in databases."""


def check_task_names(tasks: Sequence[str]) -> None:
    """See that no name stands for something else, and that no two make one attribute.

    Names that differ only in case are one to some databases and file systems.

    Raises:
        ValueError: one does; the message says which names are at odds.
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
            if key in OF_TRIALS or _OF_GATES.fullmatch(key):
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
    return (template.format(task=task) for template in OF_TASKS)
