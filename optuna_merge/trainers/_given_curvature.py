"""Curvature of a given checkpoint that costs nothing: from Adam's state, or from a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from optuna_merge._base.checkpoint_files import same_shapes
from optuna_merge._base.tensors import load_pickled
from optuna_merge.exceptions import CorruptFileError
from optuna_merge.posteriors import adam_second_moments

OPTIMIZER = "optimizer.pt"
"""What a Trainer calls its optimizer's state in a checkpoint."""


def from_optimizer(
    task: str, folder: Path, trainer: Any, parameters: Mapping[str, Tensor], scale: float
) -> dict[str, Tensor]:
    """Adam's second moments of a Trainer's checkpoint, by the names of the parameters.

    The file has an order, which is taken to be that of the optimizer that the Trainer here makes,
    if all groups are of the same sizes and all moments have the shapes of their parameters.
    `scale` is the examples (or label tokens) of a step.
    """
    path = folder / OPTIMIZER
    where = f"runs: task {task!r}: {path}"
    if not path.is_file():
        raise FileNotFoundError(
            f"runs: task {task!r}: {folder} has no {OPTIMIZER}; expected a checkpoint-... folder "
            f"of a Trainer. Give curvature='loss', which needs none"
        )
    state = load_pickled(path, where=where)
    if not isinstance(state, dict) or not {"state", "param_groups"} <= state.keys():
        raise CorruptFileError(f"{where} is no optimizer's state")
    names = _names_in_order(where, state, trainer)
    try:
        moments = adam_second_moments(state, names, batch_size=1)
    except ValueError as error:
        raise ValueError(f"{where}: {error}; give curvature='loss'") from error
    own = dict(trainer.model.named_parameters())
    same_shapes(where, moments, {name: own[name] for name in moments})
    found = same_shapes(where, moments, parameters)
    return {name: moment.float() * scale for name, moment in found.items()}


def _names_in_order(where: str, state: Mapping[str, Any], trainer: Any) -> list[str]:
    """Names of the parameters in the order of the state's groups."""
    groups = state["param_groups"]
    if all("param_names" in group for group in groups):
        return [name for group in groups for name in group["param_names"]]
    before = trainer.optimizer
    own = trainer.create_optimizer() if before is None else before
    trainer.optimizer = before
    named = {id(p): name for name, p in trainer.model.named_parameters()}
    order = [[named.get(id(p), "") for p in group["params"]] for group in own.param_groups]
    sizes, found = [len(group) for group in order], [len(group["params"]) for group in groups]
    if sizes != found:
        raise ValueError(
            f"{where}: the optimizer has groups of {found} parameters, but the Trainer here makes "
            f"groups of {sizes}, so that it is not known which moment is whose; give "
            f"curvature='loss'"
        )
    names = [name for group in order for name in group]
    places = [index for group in groups for index in group["params"]]
    if places != sorted(places):
        raise ValueError(f"{where}: the optimizer's parameters are in no order; give 'loss'")
    return names


def from_file(task: str, path: Path, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Curvature that a safetensors file holds, a tensor a parameter."""
    where = f"runs: task {task!r}: the curvature in {path}"
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CorruptFileError(f"{where} can't be read as safetensors: {error}") from error
    found = same_shapes(where, tensors, parameters)
    for name, tensor in found.items():
        if bool((tensor < 0).any()):
            raise ValueError(f"{where}: {name!r} is negative; expected squares of gradients")
    return {name: tensor.float() for name, tensor in found.items()}
