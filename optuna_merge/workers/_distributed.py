"""Finetunes on several GPUs: one worker of a study, made of all processes of a launch."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optuna_merge._base.files import canonical_json, sha256_text
from optuna_merge.definition import CommandDefinition, StudyDefinition
from optuna_merge.exceptions import DefinitionMismatchError
from optuna_merge.finetuning import (
    FinetuneSettings,
    Group,
    hollow_shards,
    joined_group,
    make_accelerator,
    train_along,
    training_device,
)
from optuna_merge.fitting import cached_tasks

_logger = logging.getLogger(__name__)


def meet() -> None:
    """Connect with the other processes of a launch by `accelerate launch` or `torchrun`, if any.

    All processes must come to it, so it is called before one makes the others wait for a file.
    """
    if "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        make_accelerator("no")


@contextmanager
def process_group(definition: StudyDefinition | CommandDefinition) -> Iterator[bool]:
    """Make one worker of all processes that were launched together.

        with process_group(definition) as leads:
            if leads:
                fitted = fit(definition, "workdir")
                ...

    The main process leads: it alone talks to the study, writes files, previews, and decides at
    rungs. The others enter the block, with False, after it has left its own; until then they take
    their shares of every training batch. `batch_size` is that of all processes together, so that
    a study means the same on one process.

    Launched by `accelerate launch --use_fsdp --fsdp_version 2`, the processes train in shards:
    each holds a part of the parameters, gradients and optimizer state. A layer's parameters are
    put together while it is passed through; what is outside of layers (embeddings, heads) for a
    whole step. Of accelerate's other settings for FSDP, `reshard_after_forward` and
    `transformer_layer_cls_to_wrap` are followed. Checkpoints are whole, so that a run may go on
    under another launch or none. Only finetunes are in shards: the main process previews, merges,
    estimates curvature and evaluates at rungs with whole parameters, on its device; and every
    process keeps a whole model in the CPU's memory. Else every process trains a whole model.

    All processes must be given the same definition. Without a launch the process leads alone.

    Raises:
        ValueError: they were launched for DeepSpeed or Megatron-LM, or with settings of FSDP that
            finetunes can't follow (FSDP 1, offloading, activation checkpointing), or FSDP can't
            cut the model.
        DefinitionMismatchError: the processes have different definitions.
    """
    with joined_group() as group:
        if group is None:
            yield True
            return
        if isinstance(definition, CommandDefinition):
            raise ValueError(
                "a command trains in processes of its own: start this one alone, not by torchrun "
                "or accelerate launch, which belong into the command"
            )
        described = definition.describe()
        mine = sha256_text(canonical_json(described))
        if not group.agree(group.broadcast(mine) == mine):
            raise DefinitionMismatchError(
                "the processes of this launch have different definitions (data, body, settings); "
                "initial parameters must not depend on the process"
            )
        if group.sharding is not None:  # what can't be cut is told now, on all processes
            device = training_device(definition.finetuning)
            hollow_shards(definition.model, group.sharding, device)
        if not group.is_main:
            _follow(group, definition)
            yield False
            return
        how = "run in shards on" if group.sharding else "are shared out among"
        _logger.info("finetunes %s %d processes", how, group.size)
        try:
            yield True
        finally:
            group.end()


def _follow(group: Group, definition: StudyDefinition) -> None:
    """Do what the main process says until it ends."""
    model, tasks = definition.model, definition.tasks
    model.to(training_device(definition.finetuning))
    while True:
        command, *arguments = group.broadcast()
        if command == "end":
            return
        if command == "fit":
            tasks = cached_tasks(definition, Path(arguments[0]))
        else:
            weights, described, done = arguments
            settings = FinetuneSettings.of(described)
            train_along(model, tasks, weights, settings, done, group)
