"""Heads solved again for a merged body."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from optuna_merge._base.tensors import load_sound, load_tensors, save_tensors
from optuna_merge._base.turns import models_turn
from optuna_merge.models import MultitaskModel
from optuna_merge.previews._settings import PreviewSettings
from optuna_merge.tasks import LABELS, Batch, Loss, Task, batches_in_order, own_draws, to_device

_STEPS = 100  # of L-BFGS, in each precision
_PARAMETERS = ("weight", "bias")  # of a linear layer, which may have no bias
_TOLERANCE = 1e-4  # of the gradient's entries: with a tenth of it one label of 2,000 differs


class _NotFinite(Exception):
    """The loss is not finite, of which the line search would make an error of its own."""


@dataclass(frozen=True)
class _Seen:
    """What a task's last layer is given for some training examples, `n x features`, and labels."""

    features: Tensor
    labels: Tensor


@dataclass(frozen=True)
class _Problem:
    """What is minimal at a solved layer's values, see `HeadSolver`.

    Attributes:
        terms: Weight, task and data of each task that uses the layer.
        merged: The values of the merge.
        left: The weighted sum of the gradients that the task runs left.
        decay: The pull towards the values of the merge.
    """

    terms: Sequence[tuple[float, Task, _Seen]]
    merged: Sequence[Tensor]
    left: Sequence[Tensor]
    decay: float

    def to(self, dtype: torch.dtype) -> _Problem:
        """The same in another precision."""
        return _Problem(
            [(w, task, replace(d, features=d.features.to(dtype))) for w, task, d in self.terms],
            [value.to(dtype) for value in self.merged],
            [gradient.to(dtype) for gradient in self.left],
            self.decay,
        )

    def __call__(self, values: Sequence[Tensor]) -> Tensor:
        """The objective."""
        total = torch.stack([w * _loss(task, data, values) for w, task, data in self.terms]).sum()
        for value, merged, gradient in zip(values, self.merged, self.left):
            pull = self.decay / 2 * (value - merged).square().sum()
            total = total + pull - (gradient * value).sum()
        return total


def _minimum(problem: _Problem, start: Sequence[Tensor]) -> list[Tensor]:
    """The values that L-BFGS finds from the start, in the problem's precision.

    Raises:
        _NotFinite: the loss is not finite.
    """
    dtype = problem.merged[0].dtype
    values = [value.detach().to(dtype).clone().requires_grad_(True) for value in start]
    optimizer = torch.optim.LBFGS(
        values,
        max_iter=_STEPS,
        tolerance_grad=_TOLERANCE,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        total = problem(values)
        if not total.isfinite():
            raise _NotFinite
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(objective)  # type: ignore[no-untyped-call]
    return [value.detach() for value in values]


class HeadSolver:
    """Solves the last linear layer of each head again, on the features of a merged body.

    A head that was trained on its own run's features does not fit those of a merge, and a shared
    head is merged as if it did. With the body as it is, the layer's weights W (and biases) are the
    minimum of

        sum_t a_t (loss_t(W) - <g_t, W>) + decay / 2 |W - W_0|^2

    over the tasks that use it, W_0 the head of the merge: a convex problem, solved by L-BFGS on
    the CPU, in single precision as far as that goes and to its end in double. g_t is the gradient
    that was left of loss_t where the task's own run ended, on that run's features: runs stop
    early, and a real multitask finetune does, too. So the merge at a task alone gives back its
    own run's head, and a task without weight keeps its head.

    Args:
        model: The model that merges are put into.
        tasks: Its tasks, in order.
        states: By task, the trained parameters of its own run.
        examples: Training examples per task, drawn at random, the same ones in all processes.
        decay: The pull towards the head of the merge, in units of the loss.
        batch_size: Examples a forward pass.
        files: By task, the file that keeps g_t for other processes; without one g_t is found once
            in each.

    Raises:
        ValueError: a head that doesn't end in a linear layer of its own, from features
            (batch, features) to the outputs.
    """

    def __init__(
        self,
        model: MultitaskModel,
        tasks: Sequence[Task],
        states: Mapping[str, Mapping[str, Tensor]],
        *,
        examples: int,
        decay: float,
        batch_size: int,
        files: Mapping[str, Path] | None = None,
    ) -> None:
        self._model, self._tasks, self._states = model, tuple(tasks), states
        self._files = files or {}
        self._examples, self._decay, self._batch_size = examples, decay, batch_size
        self._layers = {task.name: _last_layer(model, task) for task in tasks}
        self._left: dict[str, list[Tensor]] = {}

    def prepare(self) -> None:
        """Find what the task runs left of their gradients, once; may change the parameters."""
        if not self._left:
            self._left = {task.name: self._left_by(task) for task in self._tasks}

    def _left_by(self, task: Task) -> list[Tensor]:
        """Of one task, from its file, or found and written there."""
        path = self._files.get(task.name)
        kept = None if path is None else load_sound(path, load_tensors)
        if kept is not None:
            return [kept[0][name] for name in _PARAMETERS if name in kept[0]]
        self._model.load(self._states[task.name], source=f"the run of task {task.name!r}")
        values = _values(self._layers[task.name])
        for value in values:
            value.requires_grad_(True)
        loss = _loss(task, self._see(task), values)
        left = list(torch.autograd.grad(loss, values))
        if path is not None:
            save_tensors(dict(zip(_PARAMETERS, left)), path)
        return left

    def __call__(self, weights: Mapping[str, float]) -> None:
        """Solve the heads of the merge in the model, in place; `prepare` comes before it."""
        if max(weights.values()) == 1.0:
            return  # the task's own run
        seen = {task.name: self._see(task) for task in self._tasks if weights[task.name]}
        for layer in dict.fromkeys(self._layers.values()):
            users = [t for t in self._tasks if self._layers[t.name] is layer and t.name in seen]
            if users:
                self._solve(layer, users, seen, weights)

    def _solve(
        self,
        layer: nn.Linear,
        users: Sequence[Task],
        seen: Mapping[str, _Seen],
        weights: Mapping[str, float],
    ) -> None:
        merged = _values(layer)
        problem = _Problem(
            terms=[(weights[task.name], task, seen[task.name]) for task in users],
            merged=merged,
            left=[
                sum((weights[t.name] * self._left[t.name][i] for t in users), torch.zeros(()))
                for i in range(len(merged))
            ],
            decay=self._decay,
        )
        values = merged
        try:
            # Single precision takes half the time, and leaves little to do.
            for dtype in (torch.float32, torch.float64):
                values = _minimum(problem.to(dtype), values)
        except _NotFinite:
            return  # features that overflow: the merge's own head says so
        with torch.no_grad():
            for parameter, value in zip(_parameters(layer), values):
                parameter.copy_(value)

    def _see(self, task: Task) -> _Seen:
        """The features of the task's training examples under the model's present parameters."""
        found: list[Tensor] = []
        labels: list[Tensor] = []
        self._model.prepare(task)  # before the hook: statistics are found by forward passes
        handle = self._layers[task.name].register_forward_pre_hook(
            lambda layer, arguments: found.append(arguments[0].detach())
        )
        try:
            # Data may be transformed at random when they are read.
            with torch.no_grad(), own_draws(self._model.device):
                for batch in self._batches(task):
                    self._model(batch, task.name)
                    labels.append(batch[LABELS])
        finally:
            handle.remove()
        return _Seen(torch.cat(found).cpu().double(), torch.cat(labels).cpu())

    def _batches(self, task: Task) -> Iterator[Batch]:
        data = task.data("train")
        rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
        for part in batches_in_order(data, self._batch_size, rows[: self._examples].tolist()):
            yield to_device(data[part], self._model.device)


def _loss(task: Task, seen: _Seen, values: Sequence[Tensor]) -> Tensor:
    assert isinstance(task.loss, Loss)
    outputs = nn.functional.linear(seen.features, *values)
    return task.loss(outputs, seen.labels).mean()


def _parameters(layer: nn.Linear) -> list[Tensor]:
    bias: Tensor | None = layer.bias  # torch's stubs forget that there may be none
    return [layer.weight] if bias is None else [layer.weight, bias]


def _values(layer: nn.Linear) -> list[Tensor]:
    return [parameter.detach().cpu().double() for parameter in _parameters(layer)]


@models_turn()
def settled(
    settings: PreviewSettings, model: MultitaskModel, tasks: Sequence[Task]
) -> PreviewSettings:
    """The settings with heads "auto" made "resolved" or "merged", whichever these tasks allow.

    One task has no anchor: uniform weights are the task alone.
    """
    if len(tasks) == 1:
        settings = replace(settings, anchor="none")
    if settings.heads != "auto":
        return settings
    solvable = all(_is_convex(task) and _find_last_layer(model, task) for task in tasks)
    return replace(settings, heads="resolved" if solvable else "merged")


def _is_convex(task: Task) -> bool:
    """Whether the loss is known to be convex in the outputs: those that labels are drawn from."""
    return isinstance(task.loss, Loss) and task.loss.sample_labels is not None


def _last_layer(model: MultitaskModel, task: Task) -> nn.Linear:
    """The linear layer whose outputs are the task's.

    Raises:
        ValueError: there is none.
    """
    found = _find_last_layer(model, task)
    if found is None:
        raise ValueError(
            f"task {task.name!r}: heads='resolved' needs a head that ends in a linear layer from "
            f"features (batch, features) to the outputs, which {str(task.head)!r} does not; use "
            f"PreviewSettings(heads='merged')"
        )
    return found


def _find_last_layer(model: MultitaskModel, task: Task) -> nn.Linear | None:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    linear = [m for m in model.heads[str(task.head)].modules() if isinstance(m, nn.Linear)]
    # Where weight or bias is computed from other parameters (weight norm), none can be put in.
    plain = [m for m in linear if {"weight", "bias"} <= m._parameters.keys()]
    mine = [m for m in plain if names[id(m.weight)].startswith("heads.")]
    given: list[Tensor] = []
    made: list[Tensor] = []
    if mine:

        def note(layer: nn.Module, arguments: tuple[Tensor, ...], outputs: Tensor) -> None:
            given.append(arguments[0])
            made.append(outputs)

        handle = mine[-1].register_forward_hook(note)
        model.eval()
        try:
            with torch.no_grad():
                outputs = model(to_device(task.data("train")[[0]], model.device), task.name)
        finally:
            handle.remove()
        if [x.ndim for x in given] == [2] and torch.equal(made[0], outputs):
            return mine[-1]
    return None
