"""Finetunes by transformers' Trainer, or a subclass of it, as the user has made it."""

from __future__ import annotations

import gc
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from torch import Tensor
from transformers import (
    DefaultFlowCallback,
    PrinterCallback,
    ProgressCallback,
    TrainingArguments,
    set_seed,
)

from optuna_merge._base.beside_tensors import beside_tensors
from optuna_merge._base.files import json_hash, sha256_file
from optuna_merge._base.tensors import content_hash, load_tensors, save_tensors
from optuna_merge.definition import GivenRun
from optuna_merge.exceptions import CorruptFileError, ProgramError
from optuna_merge.fitting import Report, given_parameters
from optuna_merge.posteriors import PosteriorSettings
from optuna_merge.tasks import own_draws
from optuna_merge.trainers._check_trainer import averaged_over, batch_size, check_trainer
from optuna_merge.trainers._checkpoints import newest_checkpoint, remove_checkpoints
from optuna_merge.trainers._data import check_data, describe_data, prepared, rows_of
from optuna_merge.trainers._evaluation import evaluate_tasks, label_lengths, one_by_one
from optuna_merge.trainers._given_curvature import OPTIMIZER, from_file, from_optimizer
from optuna_merge.trainers._labels import shifts_labels, squared_gradients
from optuna_merge.trainers._mixture import Mixture
from optuna_merge.trainers._posteriors import Evaluated, make_previews, settled
from optuna_merge.trainers._program import Previews, Run
from optuna_merge.trainers._ranks import Ranks
from optuna_merge.trainers._shards import gathered, keep_whole, saves_whole
from optuna_merge.trainers._units import WeightUnit
from optuna_merge.trainers._watch import RungWatch

_logger = logging.getLogger(__name__)

MakeTrainer = Callable[[str], Any]
LossAverage = Literal["auto", "examples", "tokens"]

_MODEL, _TRAINED = "model", "trained.safetensors"
_ARGUMENTS = (
    "learning_rate",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "optim",
    "optim_args",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "warmup_ratio",
    "label_smoothing_factor",
    "neftune_noise_alpha",
    "bf16",
    "fp16",
    "seed",
    "data_seed",
    "train_sampling_strategy",
)
"""Of the training arguments, those that a finetune's numbers depend on."""


class TrainerProgram:
    """A `Program`: every finetune by a fresh Trainer, previews by one that is kept in `folder`."""

    def __init__(
        self,
        make_trainer: MakeTrainer,
        tasks: Mapping[str, Any],
        metric: str,
        folder: Path,
        loss_average: LossAverage,
        num_rungs: int,
        posterior: PosteriorSettings | None,
        given: Mapping[str, GivenRun],
    ) -> None:
        if loss_average not in ("auto", "examples", "tokens"):
            raise ValueError(
                f"loss_average must be auto, examples or tokens, got {loss_average!r}"
            )
        if not metric.startswith("eval_{task}_"):
            raise ValueError(
                f"metric {metric!r} must begin with 'eval_{{task}}_', as the names do that a "
                f"Trainer's evaluate gives for an eval_dataset by task"
            )
        if not tasks:
            raise ValueError("tasks is empty; expected a training data set by task")
        for task, data in tasks.items():
            check_data(task, "training", data)
        Ranks.refuse_a_second()
        self._make, self._tasks, self._metric, self._folder = make_trainer, tasks, metric, folder
        self._kept: Any = None
        self._evaluation_works = False
        trainer = self._resident()
        self._tasks = {task: prepared(trainer, task, data) for task, data in tasks.items()}
        args, model, evaluated = trainer.args, trainer.model, trainer.eval_dataset
        self.names, self.steps = tuple(tasks), int(args.max_steps)
        count = min(num_rungs, self.steps)
        self._rungs = [math.ceil(self.steps * rung / count) for rung in range(1, count + 1)]
        self._shifts = shifts_labels(model)
        self.unit = self._unit(trainer, loss_average)
        self._per_token = self.unit.label_tokens is not None
        parameters = dict(model.named_parameters())
        self._names = [name for name, p in parameters.items() if p.requires_grad]
        if not self._names:
            raise ValueError("the Trainer's model has no parameter with requires_grad")
        self._posterior = settled(posterior, self._names)
        self._given = given
        self._check_given()
        self._described = self._describe(trainer, parameters)
        self._data = {
            task: {"train": describe_data(data), "validation": describe_data(evaluated[task])}
            for task, data in self._tasks.items()
        }
        self._ranks = Ranks(json_hash([self._described, self._data]))

    def _unit(self, trainer: Any, loss_average: LossAverage) -> WeightUnit:
        lengths = None
        if loss_average != "examples":
            lengths = label_lengths(trainer, self._tasks, shifts=self._shifts)
        if loss_average == "tokens" and lengths is None:
            raise ValueError(
                "loss_average='tokens', but the batches have no integer labels of several tokens "
                "an example; use loss_average='examples'"
            )
        return WeightUnit("examples", lengths, averaged_over(trainer) if lengths else None)

    def _describe(self, trainer: Any, parameters: Mapping[str, Tensor]) -> dict[str, Any]:
        args, beside = trainer.args, beside_tensors(trainer.model)
        return {
            "trainer": type(trainer).__qualname__,
            "model": type(trainer.model).__qualname__,
            "parameters": content_hash(parameters, {}),
            "trained": content_hash({name: torch.empty(0) for name in self._names}, {}),
            "collator": _qualname(trainer.data_collator),
            "metric": self._metric,
            "metrics_by": _qualname(trainer.compute_metrics),
            "rungs": self._rungs,
            "batch": batch_size(trainer),
            "micro_batch": args.train_batch_size,
            **{name: _json(getattr(args, name, None)) for name in _ARGUMENTS},
            **_own_arguments(args),
            **({"beside_tensors": json_hash(beside)} if beside else {}),
        }

    def describe(self) -> Mapping[str, Any]:
        """Model, training arguments and loss; a loss of the user's own by its name only."""
        return self._described

    def describe_task(self, task: str) -> Any:
        """Hashes of the task's data."""
        return self._data[task]

    @property
    def leads(self) -> bool:
        """Whether this is rank 0 of a launch, or the only process."""
        return self._ranks.leads

    def follow(self) -> NoReturn:
        """Train and evaluate along with rank 0, until it ends; see `Ranks.follow`."""
        self._ranks.follow(lambda command, *arguments: getattr(self, command)(*arguments))

    def train(self, run: Run, report: Report) -> None:
        """Train by a fresh Trainer, or one that goes on from the newest whole checkpoint."""
        with self._ranks.all_do("_train", run):
            stopped_by = self._train(run, report)
        if stopped_by is not None:
            raise stopped_by

    def _train(self, run: Run, report: Report | None = None) -> BaseException | None:
        """What the report has raised, or None; in all processes."""
        if not self._evaluation_works:  # to know it before the training is paid for
            with _draws():  # by another Trainer: one that has evaluated would train in no DDP
                evaluate_tasks(self._resident(), self._tasks, self._metric)
            self._evaluation_works = True
        self._release()
        with _draws():
            trainer = self._made(run.folder)
            if run.title is None:
                _remove_callbacks(trainer, (ProgressCallback, PrinterCallback))
            args = trainer.args
            args.seed += run.repeat
            if args.data_seed is not None:
                args.data_seed += run.repeat
            seed = args.seed if args.data_seed is None else args.data_seed
            size = self.steps * batch_size(trainer)
            trainer.train_dataset = Mixture(self._tasks, run.converted, size, seed)
            evaluate = partial(self._at_rung, trainer)
            tell = report or (lambda step, metrics: None)  # of processes that follow: nobody
            watch = RungWatch(self._rungs, evaluate, tell, run.folder, self._ranks)
            trainer.add_callback(watch)
            step, checkpoint = self._ranks.tell(newest_checkpoint(run.folder) or (0, None))
            if (stopped_by := watch.go_on_from(step)) is not None:
                return stopped_by
            if checkpoint is not None and self.leads:
                _logger.info("going on from %s", checkpoint)
            set_seed(args.seed)
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            if watch.stopped_by is not None:
                return watch.stopped_by
            if trainer.state.global_step < self.steps:
                raise ProgramError(
                    f"the Trainer in {run.folder} has stopped after step "
                    f"{trainer.state.global_step} of {self.steps}; did a callback stop it? "
                    f"Finetunes are of equal length: leave out early stopping"
                )
            self._ranks.meet()  # the others need no checkpoint any more
            if run.makes_previews:
                state = gathered(trainer, self._names)
                if self.leads:
                    save_tensors(state, run.folder / _TRAINED)
            if self.leads:
                shutil.rmtree(run.folder / _MODEL, ignore_errors=True)
            with saves_whole(trainer):
                trainer.save_model(str(run.folder / _MODEL))
            if self.leads:
                remove_checkpoints(run.folder)
            return None

    def _at_rung(self, trainer: Any) -> Mapping[str, float]:
        apart = trainer.model_wrapped is trainer.model and not trainer.is_fsdp_enabled
        if self._ranks.size > 1 and apart:
            raise ProgramError(
                f"the {self._ranks.size} processes train apart, each a model of its own, as a "
                f"Trainer does that has evaluated before its training; make_trainer must not call "
                f"evaluate or predict"
            )
        return evaluate_tasks(trainer, self._tasks, self._metric).metrics

    def model(self, folder: Path) -> Path:
        """What `save_model` has saved."""
        return folder / _MODEL

    def previews(self, runs: Mapping[str, Path], anchor: Path | None, folder: Path) -> Previews:
        """Of merges that are put into the Trainer's model that is kept."""
        return make_previews(self, runs, anchor, self._posterior, folder)

    def parameters(self, folder: Path) -> Mapping[str, Tensor]:
        """The trained parameters of a task's own run.

        Raises:
            ProgramError: they are not there, or damaged.
        """
        try:
            return load_tensors(folder / _TRAINED)[0]
        except (FileNotFoundError, CorruptFileError) as error:
            raise ProgramError(
                f"the run in {folder} is finished, but its parameters can't be read ({error}); "
                f"delete that whole folder, and the run is made again"
            ) from error

    def evaluate(self, parameters: Mapping[str, Tensor], limit: int | None = None) -> Evaluated:
        """By the Trainer that is kept, with these parameters put into its model."""
        with self._ranks.all_do("_evaluate_kept", limit):
            return self._evaluate_kept(limit, parameters)

    def _evaluate_kept(
        self, limit: int | None, parameters: Mapping[str, Tensor] | None = None
    ) -> Evaluated:
        """With rank 0's parameters; the other processes have none."""
        shapes = self._ranks.tell(parameters and {n: p.shape for n, p in parameters.items()})
        if parameters is None:
            parameters = {name: torch.empty(shape) for name, shape in shapes.items()}
        trainer = self._loaded(parameters)
        own = dict(trainer.model.named_parameters())
        for name in self._names:
            own[name].data = self._ranks.shared(own[name].data)
        found = evaluate_tasks(trainer, self._tasks, self._metric, limit)
        trainer.state.log_history.clear()  # it would grow with every preview
        return found

    def adopt(self, run: Run, path: Path) -> Mapping[str, float]:
        """Keep the trained parameters of the checkpoint, and evaluate them."""
        (task,) = (task for task, weight in run.weights.items() if weight)
        with self._ranks.all_do("_resident"):
            model = self._resident().model
        # _check_given has looked at the base, which the model has no longer.
        state = given_parameters(task, path, model, self._names, any_base=True)
        save_tensors(state, run.folder / _TRAINED)
        return self.evaluate(state).metrics

    def _check_given(self) -> None:
        """See that all given checkpoints fit, before anything is trained."""
        for task, run in self._given.items():
            model, path = self._resident().model, Path(run.path)
            given_parameters(task, path, model, self._names, any_base=run.any_base)
            if run.curvature != "loss" and self._posterior.family != "diagonal":
                raise ValueError(
                    f"runs: task {task!r}: curvature={str(run.curvature)!r}, but posteriors of "
                    f"the family {self._posterior.family!r} need none; leave it out"
                )

    def describe_curvature(self, task: str, settings: PosteriorSettings) -> Sequence[Any]:
        """The task's data and how they are used; of a given checkpoint its file of curvature."""
        given = self._given.get(task)
        if given is None or given.curvature == "loss":
            used = [settings.examples, settings.seed, self._described, self._per_token]
            return [self.describe_task(task), *used]
        if given.curvature == "optimizer":
            state = Path(given.path) / OPTIMIZER
            return [sha256_file(state) if state.is_file() else None, self._of_a_step(task)]
        return [sha256_file(Path(given.curvature))]

    def describe_losses(self) -> Any:
        """The validation data, and how the Trainer uses them."""
        return [self._described, {task: of["validation"] for task, of in self._data.items()}]

    def _of_a_step(self, task: str) -> float:
        """Examples that a step of a given run averaged, or label tokens."""
        examples = self._given[task].batch_size or batch_size(self._resident())
        lengths = self.unit.label_tokens
        return float(examples) if lengths is None else examples * float(np.mean(lengths[task]))

    def squared_gradients(
        self, task: str, parameters: Mapping[str, Tensor], settings: PosteriorSettings
    ) -> Mapping[str, Tensor]:
        """Of the Trainer's own loss, on rank 0; of a given run from where it was said to come."""
        with self._ranks.all_do("_resident"):
            self._resident()
        trainer = self._loaded(parameters)
        given = self._given.get(task)
        if given is not None and given.curvature != "loss":
            if given.curvature != "optimizer":
                return from_file(task, Path(given.curvature), parameters)
            scale = self._of_a_step(task)
            return from_optimizer(task, Path(given.path), trainer, parameters, scale)
        generator = torch.Generator().manual_seed(settings.seed)
        data = self._tasks[task]
        rows = torch.randperm(len(data), generator=generator)[: settings.examples].tolist()
        with _draws():
            return squared_gradients(
                trainer,
                one_by_one(trainer, rows_of(data, rows)),
                self._names,
                seed=settings.seed,
                shifts=self._shifts,
                per_token=self._per_token,
            )

    def _resident(self) -> Any:
        if self._kept is None:
            with _draws():
                self._kept = self._made(self._folder)
            keep_whole(self._kept)
            _remove_callbacks(self._kept, but=DefaultFlowCallback)
        return self._kept

    def _loaded(self, parameters: Mapping[str, Tensor]) -> Any:
        trainer = self._resident()
        own = dict(trainer.model.named_parameters())
        with torch.no_grad():
            for name in self._names:
                own[name].data = parameters[name].to(own[name])  # of more ranks, in adapters
        return trainer

    def _release(self) -> None:
        """Let the kept Trainer go: its memory is the finetune's now."""
        self._kept = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _made(self, folder: Path) -> Any:
        trainer = self._make(str(folder))
        check_trainer(trainer, folder, self._tasks)
        return trainer


def _remove_callbacks(trainer: Any, kinds: Any = (), but: Any = ()) -> None:
    for callback in list(trainer.callback_handler.callbacks):
        if isinstance(callback, kinds) or (but and not isinstance(callback, but)):
            trainer.remove_callback(callback)


@contextmanager
def _draws() -> Iterator[None]:
    """Draws of a Trainer begin at one seed: its new heads are equal in all runs."""
    name = "cuda" if torch.cuda.is_available() else "cpu"
    with own_draws(torch.device(name)):
        yield


def _own_arguments(args: Any) -> dict[str, Any]:
    """Of a subclass's arguments those that are set otherwise than by default, as JSON values."""
    known, found = {f.name for f in fields(TrainingArguments)}, {}
    for field in fields(args):
        if field.name not in known:
            made = field.default_factory
            default = field.default if made is MISSING else made()
            if (value := getattr(args, field.name)) != default:
                found[field.name] = _json(value)
    return found


def _qualname(thing: Any) -> str | None:
    return None if thing is None else getattr(thing, "__qualname__", type(thing).__qualname__)


def _json(value: Any) -> Any:
    value = getattr(value, "value", value)  # of an enumeration
    plain = value is None or isinstance(value, bool | int | float | str | dict)
    return value if plain else str(value)
