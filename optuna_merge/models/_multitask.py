"""The multitask model: one network per head, all around one shared body."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from optuna_merge.models._trainable import Trainable, trainable_names
from optuna_merge.tasks import Task, check_tasks

TRUNK = "trunk_activations"
"""Column of a batch that holds the frozen trunk's output; see `cache_trunk`."""


class MultitaskModel(nn.Module):
    """One shared body and one network per head, each of which contains the body.

    Parameters are named `body.<name>` and `heads.<head>.<name>`. *Shared* parameters (those of
    the body that are trained, and of heads that several tasks use) are merged; a head of one
    task's own is trained with that task and never merged. Frozen modules stay in evaluation mode
    while training (no dropout in them), and batch-norm statistics stay as pretrained.

    Args:
        body: The shared part.
        heads: Network per head name, each holding `body` as a submodule and taking the batch's
            inputs.
        tasks: The tasks; each names one of the heads.
        inputs: Columns of the batch that the networks take.
        trainable: Which of the body's parameters are trained and merged.
        keywords: Pass the columns by name (and leave out those a batch lacks), or by position.

    Raises:
        ValueError: a task's head is missing, or nothing of the body is trained and no head is
            shared, so that there is nothing to merge.
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
    ) -> None:
        super().__init__()
        tasks = check_tasks(tasks)
        missing = [task for task in tasks if task.head not in heads]
        if missing:
            raise ValueError(
                f"task {missing[0].name!r} uses the head {missing[0].head!r}, but the model has "
                f"only {sorted(heads)}"
            )
        self.body = body
        self.heads = nn.ModuleDict(heads)
        self.inputs = tuple(inputs)
        self.trainable = trainable
        self._keywords = keywords
        self._head_of = {task.name: str(task.head) for task in tasks}
        users = list(self._head_of.values())
        shared_heads = {head for head in users if users.count(head) > 1}

        merged = {f"body.{name}" for name in trainable_names(body, trainable)}
        self._shared: list[str] = []
        self._own: dict[str, list[str]] = {task.name: [] for task in tasks}
        for name, parameter in self.named_parameters():
            part, head, *_ = name.split(".")
            if part == "heads" and head not in shared_heads and head in users:
                self._own[next(task for task, h in self._head_of.items() if h == head)].append(
                    name
                )
                parameter.requires_grad_(True)
            elif name in merged or (part == "heads" and head in shared_heads):
                self._shared.append(name)
                parameter.requires_grad_(True)
            else:
                parameter.requires_grad_(False)
        if not self._shared:
            raise ValueError(
                f"nothing to merge: trainable={trainable!r} trains no parameter of the body and "
                f"no head is shared"
            )
        self._initial = self.state()
        self.replaying: Callable[[Tensor], AbstractContextManager[None]] = _no_trunk
        self.eval()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Task names, in order."""
        return tuple(self._head_of)

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
        """Training mode for what is trained; frozen modules and batch norms stay in evaluation."""
        super().train(mode)
        if mode:
            for module in self.modules():
                parameters = list(module.parameters())
                frozen = parameters and not any(p.requires_grad for p in parameters)
                if frozen or isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
            for module in self.body.modules():
                if len({p.requires_grad for p in module.parameters()}) == 2:
                    # Dropout between frozen and trained modules, as behind position embeddings.
                    for child in module.children():
                        if not any(True for _ in child.parameters()):
                            child.eval()
        return self

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
        """Copy tensors into the parameters of the same names, in place.

        Raises:
            ValueError: a name or shape that the model does not have; nothing is copied then.
        """
        parameters = dict(self.named_parameters())
        for name, tensor in tensors.items():
            if name not in parameters:
                raise ValueError(f"{source}: the model has no parameter {name!r}")
            if parameters[name].shape != tensor.shape:
                raise ValueError(
                    f"{source}: {name!r} has shape {tuple(tensor.shape)}, but the model's has "
                    f"{tuple(parameters[name].shape)}; was it made with another body?"
                )
        with torch.no_grad():
            for name, tensor in tensors.items():
                parameters[name].copy_(tensor)

    def reset(self) -> None:
        """Back to the parameters that the model was made with: pretrained body, fresh heads."""
        self.load(self._initial)

    def initial(self, names: Sequence[str]) -> dict[str, Tensor]:
        """The named trained parameters as the model was made with them."""
        return {name: self._initial[name] for name in names}

    def describe(self) -> dict[str, Any]:
        """What must be the same on all workers, as JSON values."""
        return {
            "class": type(self.body).__name__,
            "hash": self._hash(),
            "trainable": repr(self.trainable),
            "shared_parameters": sum(self._initial[name].numel() for name in self._shared),
        }

    def _hash(self) -> str:
        """SHA-256 over all parameters and buffers, the trained ones as they were at the start."""
        digest = hashlib.sha256()
        tensors = dict(self.named_parameters()) | dict(self.named_buffers()) | self._initial
        for name in sorted(tensors):
            tensor = tensors[name].detach().cpu().contiguous()
            digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def _no_trunk(activations: Tensor) -> AbstractContextManager[None]:
    raise ValueError(
        f"the batch has a column {TRUNK!r} {tuple(activations.shape)}, but cache_trunk was not "
        f"called on this model"
    )


def fresh_heads(tasks: Sequence[Task]) -> dict[str, int]:
    """Head names with their number of outputs, in task order."""
    return {str(task.head): task.num_outputs for task in check_tasks(tasks)}
