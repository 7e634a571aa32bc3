"""A study of a command that trains, in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from optuna_merge.definition import Runs, given_runs
from optuna_merge.goals import Constraint, Score, is_to_be_maximised
from optuna_merge.trainers._command import CommandProgram
from optuna_merge.trainers._fitted import FittedProgram, Wanted, fit_program
from optuna_merge.trainers._merged_checkpoints import check_alike
from optuna_merge.trainers._template import Template
from optuna_merge.trainers._units import Kind, WeightUnit


def from_command(
    train: str | Sequence[str],
    tasks: Sequence[str],
    *,
    evaluate: str | Sequence[str],
    steps: int,
    unit: WeightUnit | Kind,
    metric: str = "{task}",
    workdir: str | Path = "workdir",
    checkpoint: str = "model",
    score: str | Callable[[Mapping[str, float]], float] | Score = "mean",
    constraints: float | Sequence[Constraint] = (),
    greater_is_better: bool | None = None,
    seed: int = 0,
    time_limit: float | None = None,
    grace: float = 30.0,
    about: Mapping[str, Any] | None = None,
    runs: Runs | None = None,
    anchor: Literal["uniform", "none"] = "uniform",
) -> FittedProgram:
    """Finetune each task alone with a training command, and make what a study of it needs.

        fitted = om.from_command(
            "bash train.sh {folder} {weight:math} {weight:chat} {seed} {checkpoint}",
            ["math", "chat"],
            evaluate="python evaluate.py {checkpoint}",
            steps=1000,
            unit="examples",
        )

    The command trains at the given weights, and writes its model to `{checkpoint}`: a folder as
    `save_pretrained` writes it, a LoRA adapter's folder, or a safetensors file. After a kill it is
    started again in the same folder, and should continue from what it finds there. SIGTERM asks it
    to end. If it evaluates while it trains, it adds lines `{"step": 50, "metrics": {"math": 0.4}}`
    to `metrics.jsonl` in the folder, each after the checkpoint of its step. These steps are rungs,
    at which the study's pruner may stop it. When it continues from a checkpoint, it should add
    that step's line again: a kill may have come before it, and a repeated line is ignored. If this
    process dies while the command runs, the next call waits for that command and does not start a
    second one; this needs the locks and process groups of POSIX.

    Previews are averages of the task runs' checkpoints (for adapters, of their updates), which the
    command `evaluate` scores. It also scores a finetune that has no line for its last step.

    Args:
        train: The command, with placeholders `{weights}` (a JSON object), or `{weight:task}` for
            each task; and `{folder}`, `{checkpoint}`, `{seed}`, `{steps}`. No shell reads it.
        tasks: The tasks' names.
        evaluate: A command with `{checkpoint}`. The last line of its output must be a JSON object
            of the metrics.
        steps: Training steps of one finetune.
        unit: How the command uses weights: "examples" (as shares of the sampled examples),
            "losses" (as factors of averaged losses), "tokens" (as shares of packed tokens), or a
            `WeightUnit`, if its loss is averaged over label tokens.
        metric: Key of a task's metric in the JSON objects.
        workdir: The working folder; results in it are reused.
        checkpoint: Name of the checkpoint in a run's folder; ends with .safetensors for a file.
        score: As in a `StudyDefinition`.
        constraints: The same.
        greater_is_better: Whether the metric is to be maximised; None: yes, unless the last word
            of its name is that of a loss or an error (loss, perplexity, mse, wer, ...).
        seed: `{seed}` of a finetune; a repetition has this seed plus its number.
        time_limit: Seconds that one call may take; None: no limit.
        grace: Seconds between SIGTERM and SIGKILL.
        about: What else the results depend on (JSON). If it changes, everything is trained again.
        runs: By task, checkpoints of this form that replace the task runs and cost nothing.
        anchor: "uniform": uniform weights are finetuned now, and this finetune corrects all
            previews; "none": previews are plain averages.

    Raises:
        ValueError: a placeholder of no task, or none that is needed; an unknown unit; given
            checkpoints that are not of one base, or of no task.
        FileNotFoundError: a given checkpoint isn't there.
        ProgramError: a command ended with an exit code, a signal or its time limit, without a
            checkpoint, or without a task's metric.
        NotFiniteError: a metric of a task run is NaN or infinite.
    """
    folder = Path(workdir).resolve()
    given = given_runs(runs, tasks)
    for task, run in given.items():
        if run.curvature != "loss":
            raise ValueError(
                f"runs: task {task!r}: curvature={str(run.curvature)!r}, but previews of a "
                f"command are averages, which need none; leave it out"
            )
    check_alike({task: Path(run.path) for task, run in given.items()})
    program = CommandProgram(
        Template(train, tasks, ("weights", "weight")),
        Template(evaluate, tasks, ("checkpoint",)),
        tuple(tasks),
        metric=metric,
        steps=steps,
        unit=unit if isinstance(unit, WeightUnit) else WeightUnit(unit),
        checkpoint=checkpoint,
        seed=seed,
        time_limit=time_limit,
        grace=grace,
        about=about or {},
        scratch=folder / "merged",
    )
    wanted = Wanted(score, constraints, is_to_be_maximised(metric, greater_is_better))
    return fit_program(program, wanted, folder, given=given, anchor=anchor)
