"""The user attributes of studies and trials: every name once, and what stands under it.

A study in a database is all that workers share, so these names are its format. Nobody else spells
one out: rooms import the constants, and `of_task` makes a name of a task's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

FINGERPRINT = "optuna_merge_fingerprint"
DEFINITION = "optuna_merge_definition"
TASKS = "tasks"
GREATER_IS_BETTER = "greater_is_better"
REFERENCE_POINT = "reference_point"
COSTS = "costs"
PREVIEW_RUN = "preview_run:{run}"
SHARED_FILE = "file:{file}"

BASELINE = "baseline"
DUPLICATE_OF = "duplicate_of"
REPEAT = "repeat"
WEIGHT = "weight_{task}"
PREVIEW = "preview_{task}"
PREVIEW_SE = "preview_{task}_se"
PREVIEW_SECONDS = "preview_seconds"
PREVIEW_TAKEN_FROM = "preview_taken_from"
PREVIEW_AT_ANCHOR = "preview_at_anchor"
PROMOTED_FROM = "promoted_from"
PROMOTION = "promotion"
TRUTH = "truth_{task}"
TRUTH_SECONDS = "truth_seconds"
TRUTH_REUSED = "truth_reused"
CONSTRAINT = "constraint_{constraint}"
RUN = "run"
FAILURE = "failure"
TRIES = "tries"
GIVEN_UP = "given_up"
HANDED_BACK = "handed_back"
UNIT = "unit"
UNIT_NAME = "name"

QUEUED = "queued"
"""Under `PROMOTION`: the copy waits, or runs and has not compared its claim yet."""
BEGUN = "begun"
"""Under `PROMOTION`: the copy holds its slot for good."""
WITHDRAWN = "withdrawn"
"""Under `PROMOTION`: the copy gave its slot back, and ends."""

UNIFORM = "uniform"
"""What stands under `BASELINE` for uniform weights; for a task alone it is the task's name."""


@dataclass(frozen=True)
class Attribute:
    """One user attribute.

    Attributes:
        name: Its name; braces stand for a task, a constraint, a run or a file.
        of: What it is an attribute of: "study", "trial", or a "fit" trial of the companion study
            in which workers share out task runs.
        kind: The type of its JSON value.
        written: By whom, and when.
        read: By whom.
        about: What it says.
    """

    name: str
    of: str
    kind: str
    written: str
    read: str
    about: str


_OBJECTIVE = "objective, with the preview"
_TRUTH = "objective, when the finetune has ended"
_READERS = "sampler, pruner, calibration, reports"

_TABLE = f"""
{FINGERPRINT} | study | str | prepare_study, last | objective, export
    hash of the definition with its posteriors
{DEFINITION} | study | str (JSON) | prepare_study | prepare_study, reports, garbage
    the definition, part by part, to say what differs
{TASKS} | study | list of str | prepare_study | all readers
    tasks in order
{GREATER_IS_BETTER} | study | object of bool | prepare_study | calibration, reports
    by task, whether its metric is to be maximised
{REFERENCE_POINT} | study | object of float | prepare_study (Pareto) | sampler, pruner, pictures
    the point that hypervolumes are measured from, by task
{COSTS} | study | object of float | prepare_study | pruner, reports
    training steps and seconds before the first preview, by what for
{PREVIEW_RUN} | study | str | previewing run_trials, at both ends | finetuning run_trials, pruner
    `open` or `ended`: whether previews may still come
{SHARED_FILE} | study | object | shared fits, after the upload | other workers
    an artifact's id and the file's hash
{BASELINE} | trial | str | prepare_study | {_READERS}
    always finetuned, and no candidate: `uniform`, or the task that has all weight
{DUPLICATE_OF} | trial | int | objective, before it fails the trial | reports, run_trials
    the trial that has the same baseline: two workers had queued it
{REPEAT} | trial | int | prepare_study, pruner | objective, all readers
    which repeat of a finetune at its weights it is: r has the definition's seed plus r
{WEIGHT} | trial | float | {_OBJECTIVE} | {_READERS}
    the task weight, on the simplex
{PREVIEW} | trial | float or null | {_OBJECTIVE} | {_READERS}
    the preview's metric
{PREVIEW_SE} | trial | float or null | {_OBJECTIVE} | sampler, reports
    its standard error over validation examples
{PREVIEW_SECONDS} | trial | float | {_OBJECTIVE} | reports
    what it took
{PREVIEW_TAKEN_FROM} | trial | int | {_OBJECTIVE} | reports
    the trial of equal weights whose preview was taken over
{PREVIEW_AT_ANCHOR} | trial | bool | {_OBJECTIVE} | calibration, sampler, pruner
    whether the truth at its weights made the preview (each task alone, an anchor)
{PROMOTED_FROM} | trial | int | pruner, with the copy | all readers
    the trial is a promoted copy: the first trial of its weighting, which was previewed
{PROMOTION} | trial | str | pruner, with the copy and when it asks | pruner, run_trials
    `queued`, `begun` (it holds its slot for good) or `withdrawn` (it gave the slot back)
{TRUTH} | trial | float or null | {_TRUTH} | {_READERS}
    the finetune's metric
{TRUTH_SECONDS} | trial | float | {_TRUTH} | pruner, reports
    what it took
{TRUTH_REUSED} | trial | bool | {_TRUTH} | reports
    it was found finished: nothing trained
{CONSTRAINT} | trial | float or null | objective, at its end | people, dashboards
    the constraint's value, feasible at 0 or less; Optuna's own constraints hold it, too
{RUN} | trial | str | run_trials | run_trials
    the run that works on it
{FAILURE} | trial | str | whoever fails it | people, reports
    why it failed
{TRIES} | trial | int | whoever fails it | whoever fails the next try
    how many tries of its weighting have failed, this one included
{GIVEN_UP} | trial | bool | whoever fails it | reports
    no other try follows
{HANDED_BACK} | trial | bool | whoever fails it | run_trials
    it failed through no fault of its own (the worker was asked to end, the disk was full)
{UNIT} | fit | str | shared fits | shared fits
    key of the unit that it does
{UNIT_NAME} | fit | str | shared fits | people
    the unit in words
"""
"""Name, of what, type, who writes and who reads; below it what it says."""

_LINES = _TABLE.strip().splitlines()
ATTRIBUTES = tuple(
    Attribute(*(cell.strip() for cell in f"{head} | {about}".split(" | ")))
    for head, about in zip(_LINES[::2], _LINES[1::2])
)
"""All attributes of trials and studies."""


def of_task(name: str, task: str) -> str:
    """The attribute of a task, such as `of_task(PREVIEW, "news")`: `preview_news`."""
    return name.format(task=task)


def names_of_previews(tasks: Iterable[str]) -> list[str]:
    """The attributes that tell a preview: the task weights, the metrics, their errors."""
    return [of_task(name, task) for task in tasks for name in (WEIGHT, PREVIEW, PREVIEW_SE)]


def names_of_tasks() -> Iterator[str]:
    """The names that are made of a task's."""
    return (attribute.name for attribute in ATTRIBUTES if "{task}" in attribute.name)


def names_of_trials() -> frozenset[str]:
    """The names of a trial's own attributes, which no task's may make again."""
    return frozenset(a.name for a in ATTRIBUTES if a.of == "trial" and "{" not in a.name)
