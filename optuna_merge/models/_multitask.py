"""The multitask model: one network per head, all around one shared body."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from optuna_merge._base.batch_norm import reestimate_batch_norm, running_batch_norms
from optuna_merge._base.beside_tensors import beside_tensors
from optuna_merge._base.checkpoint_files import same_shapes
from optuna_merge._base.files import json_hash
from optuna_merge.models._generation import LanguageModel, Writer
from optuna_merge.models._trainable import Trainable, check_computed_weights, trainable_names
from optuna_merge.tasks import Batch, Measurement, Metric, Task, check_tasks, own_draws, to_device

TRUNK = "trunk_activations"
"""Column of a batch that holds the frozen trunk's output; see `cache_trunk`."""

BatchNorm = Literal["pretrained", "reestimated"]
"""Where the statistics of trained batch norms come from."""

_STATISTICS_BATCH = 64
"""Most examples of a batch that statistics are re-estimated on."""

_WRITERS = "make the model with from_language_model, or give the network a method write"


class MultitaskModel(nn.Module):
    """One shared body and one network per head, each of which contains the body.

    Parameters are named `body.<name>` and `heads.<head>.<name>`. *Shared* parameters (those of the
    body that are trained, and of heads that several tasks use) are merged; a head of one task's
    own is trained with that task and never merged. Frozen modules stay in evaluation mode while
    training (no dropout in them), and frozen batch norms keep their statistics.

    Trained batch norms either keep the pretrained statistics too; or they are re-estimated: while
    training they normalise by each task's batch, and before a task is evaluated (see `prepare`)
    their statistics are set to those of a fixed choice of its training data under the present
    parameters. None are trained, merged or saved.

    Args:
        body: The shared part.
        heads: Network per head name, each holding `body` as a submodule and taking the inputs.
        tasks: The tasks; each names one of the heads.
        inputs: Columns of the batch that the networks take.
        trainable: Which of the body's parameters are trained and merged.
        keywords: Pass the columns by name (and leave out those a batch lacks), or by position.
        batch_norm: "pretrained" or "reestimated" statistics of trained batch norms.
        batch_norm_examples: Training examples of a task that they are re-estimated on; every
            preview of a task costs so many forward passes more.

    Raises:
        ValueError: a task's head is missing, or there is nothing to merge; a metric that a network
            doesn't serve; a parameter that is NaN or infinite; a trained layer whose weight is
            computed otherwise than from parameters alone (spectral norm, pruning).
    """

    def __init__(
        self,
        body: nn.Module,
        heads: Mapping[str, nn.Module],
        tasks: Sequence[Task],
        *,
        inputs: Sequence[str],
        trainable: Trainable = "all",
        keywords: bool = False,
        batch_norm: BatchNorm = "pretrained",
        batch_norm_examples: int = 512,
    ) -> None:
        super().__init__()
        if batch_norm not in get_args(BatchNorm):
            raise ValueError(
                f"batch_norm must be one of {', '.join(get_args(BatchNorm))}, got {batch_norm!r}"
            )
        if batch_norm_examples < 2:
            raise ValueError(f"batch_norm_examples must be at least 2, got {batch_norm_examples}")
        tasks = check_tasks(tasks)
        for task in tasks:
            _check_head(task, heads)
        self.body = body
        self.heads = nn.ModuleDict(heads)
        _check_finite(self)
        self.inputs = tuple(inputs)
        self.trainable = trainable
        self._keywords = keywords
        self._head_of = {task.name: str(task.head) for task in tasks}
        self._shared, self._own = self._split()
        check_computed_weights(self)
        self._initial = self.state()
        self.replaying: Callable[[Tensor], AbstractContextManager[None]] = _no_trunk
        self._batch_norm = batch_norm
        self._batch_norm_examples = batch_norm_examples
        # Tuples, so that torch doesn't see them as submodules of this one.
        self._never_training = tuple(self._kept_in_evaluation())
        self.train()
        self._reestimated = tuple(n for n in running_batch_norms(self) if n.training)
        self._initial_statistics = {
            name: buffer.clone()
            for path, module in self.named_modules()
            if module in self._reestimated
            for name, buffer in module.named_buffers(prefix=path)
        }
        self.eval()

    def _split(self) -> tuple[list[str], dict[str, list[str]]]:
        """Names of what is merged, and of each task's own head; the others are frozen."""
        users: dict[str, list[str]] = {head: [] for head in self.heads}
        for task, head in self._head_of.items():
            users[head].append(task)
        shared: list[str] = []
        own: dict[str, list[str]] = {task: [] for task in self._head_of}
        merged = {f"body.{name}" for name in trainable_names(self.body, self.trainable)}
        for name, parameter in self.named_parameters():
            part, head, *_ = name.split(".")
            tasks = users[head] if part == "heads" else []
            parameter.requires_grad_(bool(tasks) or name in merged)
            if len(tasks) == 1:
                own[tasks[0]].append(name)
            elif parameter.requires_grad:
                shared.append(name)
        if not shared:
            raise ValueError(
                f"nothing to merge: trainable={self.trainable!r} trains no parameter of the body "
                f"and no head is shared"
            )
        return shared, own

    @property
    def tasks(self) -> tuple[str, ...]:
        """Task names, in order."""
        return tuple(self._head_of)

    @property
    def reestimates(self) -> bool:
        """Whether there are batch norms whose statistics are re-estimated."""
        return bool(self._reestimated)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def forward(self, batch: Mapping[str, Tensor], task: str) -> Tensor:
        """Outputs (batch, ...) of the task's head; columns that aren't inputs are ignored."""
        network = self.heads[self._head_of[task]]
        with self.replaying(batch[TRUNK]) if TRUNK in batch else nullcontext():
            if self._keywords:
                columns = {name: batch[name] for name in self.inputs if name in batch}
                outputs: Any = network(**columns)
            else:
                outputs = network(*(batch[name] for name in self.inputs))
        return getattr(outputs, "logits", outputs)  # type: ignore[no-any-return]

    def generate(self, batch: Batch, task: str) -> Tensor:
        """Token ids that the task's network writes, (batch, tokens), -100 behind the end.

        Deterministic, in evaluation mode; see `GenerationSettings`. A causal model goes on from
        each example's prompt: all of it up to the first label that isn't -100.

        Raises:
            ValueError: the task's network can't generate.
        """
        network = self.heads[self._head_of[task]]
        if not isinstance(network, Writer):
            raise ValueError(f"the network of task {task!r} can't generate; {_WRITERS}")
        return network.write(batch)

    def measure(self, metric: Metric, task: str, split: str) -> Measurement:
        """The value of a metric of the whole model, on its own data of "validation" or "test"."""
        network = self.heads[self._head_of[task]]
        assert isinstance(network, LanguageModel) and metric.of_model is not None
        with network.greedy() as inner, own_draws(self.device):
            return metric.of_model(inner, split)

    def functional(
        self, parameters: Mapping[str, Tensor], batch: Mapping[str, Tensor], task: str
    ) -> Tensor:
        """`forward` with the named parameters replaced; differentiable, and fit for vmap."""
        places = self._places()
        values = {place: tensor for name, tensor in parameters.items() for place in places[name]}
        # Every place is named once here. With tie_weights, torch would visit a shared module by
        # each of its names, and on the way back put a dead wrapper where the parameter was.
        return functional_call(self, values, (batch, task), tie_weights=False)  # type: ignore[no-any-return]

    def _places(self) -> dict[str, list[str]]:
        """Names of all modules' attributes that hold each parameter, each attribute once."""
        names = {id(parameter): name for name, parameter in self.named_parameters()}
        places: dict[str, list[str]] = {name: [] for name in names.values()}
        seen: set[tuple[int, str]] = set()
        for path, parameter in self.named_parameters(remove_duplicate=False):
            module, _, attribute = path.rpartition(".")
            place = (id(self.get_submodule(module)), attribute)
            if place not in seen:
                seen.add(place)
                places[names[id(parameter)]].append(path)
        return places

    def train(self, mode: bool = True) -> MultitaskModel:
        """Training mode for what is trained; what is frozen or kept stays in evaluation mode."""
        super().train(mode)
        if mode:
            for module in self._never_training:
                module.eval()
        return self

    def _kept_in_evaluation(self) -> Iterator[nn.Module]:
        for module in self.modules():
            parameters = list(module.parameters())
            frozen = parameters and not any(p.requires_grad for p in parameters)
            kept = isinstance(module, _BatchNorm) and self._batch_norm == "pretrained"
            if frozen or kept:
                yield module
        for module in self.body.modules():
            if len({p.requires_grad for p in module.parameters()}) == 2:
                # Dropout between frozen and trained modules, as behind position embeddings.
                for child in module.children():
                    if not any(True for _ in child.parameters()):
                        yield child

    def prepare(self, task: Task) -> None:
        """Make ready for evaluating the task: evaluation mode, with the task's statistics.

        Batch norms that are re-estimated get those of the task's training data under the present
        parameters, in batches of at most 64 examples
        (`optuna_merge.merging.reestimate_batch_norm`).
        """
        self.eval()
        if not self._reestimated:
            return
        with own_draws(self.device):
            reestimate_batch_norm(
                nn.ModuleList(self._reestimated),
                self._statistics_batches(task),
                predict=lambda batch: self(batch, task.name),
            )

    def _statistics_batches(self, task: Task) -> Iterator[Batch]:
        data = task.data("train")
        rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
        rows = rows[: self._batch_norm_examples]
        # Of equal sizes: no last batch of one example, which has no variance.
        for part in rows.tensor_split(math.ceil(len(rows) / _STATISTICS_BATCH)):
            yield to_device(data[part.tolist()], self.device)

    def shared_names(self) -> list[str]:
        """Names of the parameters that are trained by all tasks and merged."""
        return list(self._shared)

    def own_names(self, task: str) -> list[str]:
        """Names of the parameters of the task's own head; none if it shares its head."""
        return list(self._own[task])

    def trained_names(self, tasks: Sequence[str] | None = None) -> list[str]:
        """Names that a run on these tasks (default: all) trains."""
        chosen = self.tasks if tasks is None else tasks
        return self._shared + [name for task in chosen for name in self._own[task]]

    def state(self, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Copies of the named parameters (default: all that are trained)."""
        parameters = dict(self.named_parameters())
        chosen = self.trained_names() if names is None else names
        return {name: parameters[name].detach().clone() for name in chosen}

    def load(self, tensors: Mapping[str, Tensor], *, source: str = "the given tensors") -> None:
        """Copy tensors into the parameters of the same names, in place; all of them, or none."""
        parameters = dict(self.named_parameters())
        if unknown := sorted(tensors.keys() - parameters.keys()):
            raise ValueError(f"{source}: the model has no parameter {unknown[0]!r}")
        own = {name: parameters[name] for name in tensors}
        same_shapes(source, tensors, own, "; was it made with another body?")
        with torch.no_grad():
            for name, tensor in tensors.items():
                own[name].copy_(tensor)

    def reset(self) -> None:
        """Back to the parameters that the model was made with: pretrained body, fresh heads."""
        self.load(self._initial)
        for name, buffer in self._initial_statistics.items():
            self.get_buffer(name).copy_(buffer)

    def initial(self, names: Sequence[str]) -> dict[str, Tensor]:
        """The named trained parameters as the model was made with them."""
        return {name: self._initial[name] for name in names}

    def describe(self) -> dict[str, Any]:
        """What must be the same on all workers, as JSON values."""
        return self._describe(self._hashed(hashlib.sha256(), ["body."]), list(self.heads))

    def describe_tasks(self) -> dict[str, dict[str, Any]]:
        """By task, the same of what its own finetune depends on: no other task's own head."""
        body = self._hashed(hashlib.sha256(), ["body."])
        shared = {name.split(".")[1] for name in self._shared if name.startswith("heads.")}
        used = {
            task: [head for head in self.heads if head in {own, *shared}]
            for task, own in self._head_of.items()
        }
        return {t: self._describe(body, heads) | {"heads": heads} for t, heads in used.items()}

    def _describe(self, body: Any, heads: Sequence[str]) -> dict[str, Any]:
        described = {
            "class": type(self.body).__name__,
            "hash": self._hashed(body, [f"heads.{head}." for head in heads]).hexdigest(),
            "trainable": repr(self.trainable),
            "shared_parameters": sum(self._initial[name].numel() for name in self._shared),
        }
        networks = [("body", self.body), *((head, self.heads[head]) for head in heads)]
        if beside := {name: own for name, of in networks if (own := beside_tensors(of))}:
            described["beside_tensors"] = json_hash(beside)
        if self._reestimated:
            described["batch_norm"] = f"reestimated on {self._batch_norm_examples} examples"
        if writers := {h: n for h, n in networks[1:] if isinstance(n, Writer)}:
            described["generation"] = {h: n.describe_generation() for h, n in writers.items()}
        return described

    def _hashed(self, digest: Any, prefixes: Sequence[str]) -> Any:
        """The digest, and in it parameters and buffers of these names, as they were made."""
        digest = digest.copy()
        tensors = dict(self.named_parameters()) | dict(self.named_buffers())
        tensors |= self._initial | self._initial_statistics
        for name in sorted(name for name in tensors if name.startswith(tuple(prefixes))):
            tensor = tensors[name].detach().cpu().contiguous()
            digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
        return digest


def _check_head(task: Task, heads: Mapping[str, nn.Module]) -> None:
    if task.head not in heads:
        raise ValueError(
            f"task {task.name!r} uses the head {task.head!r}, but the model has only "
            f"{sorted(heads)}"
        )
    network = heads[str(task.head)]
    for metric in task.metrics:
        if metric.generated and not isinstance(network, Writer):
            raise ValueError(
                f"task {task.name!r} has the metric {metric.name!r} of generated texts, but its "
                f"network can't generate; {_WRITERS}"
            )
        if metric.of_model is not None and not isinstance(network, LanguageModel):
            raise ValueError(
                f"task {task.name!r} has the metric {metric.name!r} of a whole language model; "
                f"make the model with from_language_model"
            )


def _check_finite(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        # A sum needs no memory, but may overflow where all numbers are finite.
        if parameter.is_meta or bool(torch.isfinite(parameter.detach().sum())):
            continue
        bad = int((~torch.isfinite(parameter)).sum())
        if bad:
            raise ValueError(
                f"{bad} of the {parameter.numel()} numbers of the parameter {name!r} are NaN or "
                f"infinite before anything is trained; is the checkpoint damaged, or was it "
                f"converted to a type of too small a range?"
            )


def _no_trunk(activations: Tensor) -> AbstractContextManager[None]:
    raise ValueError(
        f"the batch has a column {TRUNK!r} {tuple(activations.shape)}, but cache_trunk was not "
        f"called on this model"
    )


def fresh_heads(tasks: Sequence[Task]) -> dict[str, int]:
    """Head names with their number of outputs, in task order."""
    return {str(task.head): task.num_outputs for task in check_tasks(tasks)}
