"""A study of a transformers Trainer, in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from optuna_merge.definition import Runs, given_runs
from optuna_merge.goals import Constraint, Score
from optuna_merge.posteriors import PosteriorSettings
from optuna_merge.trainers._fitted import FittedProgram, Wanted, fit_program

if TYPE_CHECKING:
    from optuna_merge.trainers._transformers import LossAverage, MakeTrainer


def from_trainer(
    make_trainer: MakeTrainer,
    tasks: Mapping[str, Any],
    metric: str = "eval_{task}_loss",
    workdir: str | Path = "workdir",
    *,
    score: str | Callable[[Mapping[str, float]], float] | Score = "mean",
    constraints: float | Sequence[Constraint] = (),
    greater_is_better: bool | None = None,
    posterior: PosteriorSettings | None = None,
    loss_average: LossAverage = "auto",
    num_rungs: int = 3,
    runs: Runs | None = None,
    anchor: Literal["uniform", "none"] = "uniform",
    progress: bool = True,
) -> FittedProgram:
    """Finetune each task alone with your own Trainer, and make what a study of it needs.

        fitted = om.from_trainer(make_trainer, {"math": math, "chat": chat}, workdir="work")
        study = om.open_search(fitted, "mine", "sqlite:///mine.db")
        study.optimize(om.Objective(fitted), n_trials=40)

    A finetune at task weights samples the tasks' examples. Task weights weigh averaged losses;
    `fitted.unit` says how they are converted into shares of examples. A finetune is evaluated at
    each rung, stops there if the study's pruner says so, and after a kill continues from its
    newest complete checkpoint. Everything else of your Trainer stays as it is: optimizer,
    precision, accumulation, collator, callbacks.

    Launched as several processes (`torchrun --nproc-per-node 2 optimize.py`, `accelerate launch`),
    they train and evaluate together, in shards by FSDP 2 or ZeRO 1 and 2 (this folder's README).
    Only rank 0 returns from this call; the other ranks follow it, and exit when it exits.

    Args:
        make_trainer: A function that takes a folder and returns a new `transformers.Trainer` (or a
            subclass) with this `output_dir`, with `max_steps`, and with a dict `eval_dataset` of
            each task's validation data. Its `train_dataset` is replaced. New parts of its model (a
            head) start from the same values in all finetunes.
        tasks: By task, map-style training data, with rows as the Trainer's collator takes them.
        metric: Key of a task's metric in the result of the Trainer's `evaluate`.
        workdir: The working folder; results in it are reused.
        score: As in a `StudyDefinition`.
        constraints: The same.
        greater_is_better: Whether the metric is to be maximised; None: yes, unless its name ends
            with "loss".
        posterior: How posteriors are made. The family is "diagonal" or "isotropic", which is
            averaging. None: diagonal; for LoRA adapters with two trained factors, averages of
            their updates. The diagonal costs a backward pass for each of its `examples`, and,
            unless `damping` is given, 8 (T + 1) evaluations of `damping_examples` of each of the T
            tasks.
        loss_average: What the Trainer averages its loss over: "examples", or the label "tokens" of
            a batch. "auto": tokens, if labels are integers and an example has more than one.
        num_rungs: How often a finetune is evaluated and saved, including its end.
        runs: By task, checkpoints that you already have: folders, LoRA adapters or safetensors
            files, or a `GivenRun`, which says where its curvature comes from. They replace the
            task runs: they are evaluated and cost nothing. The other tasks are trained.
        anchor: "uniform": uniform weights are finetuned now, which every study needs, and this
            finetune corrects all previews. "none": previews are plain merges, and with `runs` of
            all tasks nothing is trained at all.
        progress: Whether to show the Trainer's own progress bars in the task runs.

    Raises:
        TypeError: `make_trainer` returns no Trainer, or data have no length.
        ValueError: an argument of the Trainer that doesn't go with a study, empty data, a task
            without validation data, an adapter that is not plain LoRA; a given checkpoint of
            another base, or of no task.
        FileNotFoundError: a given checkpoint isn't there.
        ProgramError: the Trainer's `evaluate` doesn't give the metric.
        NotFiniteError: a metric of a task run is NaN or infinite.
        DefinitionMismatchError: processes of one launch have different models, data or arguments.
        SystemExit: this process has followed rank 0, which has ended.
    """
    from optuna_merge.trainers._transformers import TrainerProgram  # a matter of seconds

    folder = Path(workdir)
    program = TrainerProgram(
        make_trainer,
        dict(tasks),
        metric,
        folder / "resident",
        loss_average,
        num_rungs,
        posterior,
        given := given_runs(runs, list(tasks)),
    )
    if not program.leads:
        program.follow()
    if greater_is_better is None:
        greater_is_better = not metric.endswith("loss")
    wanted = Wanted(score, constraints, greater_is_better)
    return fit_program(program, wanted, folder, progress=progress, given=given, anchor=anchor)
