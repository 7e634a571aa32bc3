"""What a Trainer must be like for a study, and what its arguments say of a batch."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import Trainer

from optuna_merge.trainers._data import check_data
from optuna_merge.trainers._shards import check_shards


def check_trainer(trainer: Any, folder: Path, tasks: Mapping[str, Any]) -> None:
    """See that it is a Trainer, and that its arguments go with a study."""
    if not isinstance(trainer, Trainer):
        raise TypeError(
            f"make_trainer gave a {type(trainer).__name__}; expected a transformers.Trainer"
        )
    args = trainer.args
    if Path(args.output_dir).resolve() != folder.resolve():
        raise ValueError(
            f"make_trainer({str(folder)!r}) gave a Trainer with output_dir={args.output_dir!r}; "
            f"give it the folder, where its checkpoints are looked for"
        )
    if args.max_steps <= 0:
        told = "set it: all finetunes are of equal length"
        raise ValueError(f"the Trainer has max_steps={args.max_steps}; {told}")
    for name in ("load_best_model_at_end", "save_only_model"):
        if getattr(args, name, False):
            raise ValueError(
                f"the Trainer has {name}=True; leave it out: a finetune is its last step, and "
                f"goes on from its checkpoints"
            )
    if args.n_gpu > 1:
        raise ValueError(
            f"the Trainer is one process on {args.n_gpu} GPUs; launch a process for each of them: "
            f"torchrun --nproc-per-node {args.n_gpu} {Path(sys.argv[0]).name}, or set "
            f"CUDA_VISIBLE_DEVICES, and start a worker on each"
        )
    check_shards(trainer)
    evaluated = trainer.eval_dataset
    if not isinstance(evaluated, Mapping):
        raise ValueError(
            f"the Trainer's eval_dataset is a {type(evaluated).__name__}; expected a dict with a "
            f"data set for each task: {', '.join(tasks)}"
        )
    for task in tasks:
        if task not in evaluated:
            told = f"the Trainer's eval_dataset has {sorted(evaluated)}, but none of this name"
            raise ValueError(f"task {task!r}: {told}")
        check_data(task, "validation", evaluated[task])


def averaged_over(trainer: Any) -> int:
    """Examples that one average of the loss is over."""
    args = trainer.args
    if not trainer.model_accepts_loss_kwargs and trainer.compute_loss_func is None:
        return int(args.train_batch_size)
    everywhere = args.average_tokens_across_devices
    return batch_size(trainer) if everywhere else batch_size(trainer) // int(args.world_size)


def batch_size(trainer: Any) -> int:
    """Examples of one optimizer step, in all processes together."""
    args = trainer.args
    return int(args.train_batch_size * args.gradient_accumulation_steps * args.world_size)
