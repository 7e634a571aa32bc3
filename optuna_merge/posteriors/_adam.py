"""A diagonal that costs nothing: the second moments of a finished Adam run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


def adam_second_moments(
    state: Optimizer | Mapping[str, Any], names: Sequence[str] | None = None, *, batch_size: int
) -> dict[str, Tensor]:
    """Curvature from Adam's or AdamW's state: bias-corrected second moments times the batch size.

    Rougher than `squared_gradients`: gradients are of minibatches with the data's labels, dropout
    on, at the parameters of the last 1 / (1 - beta2) steps, and clipped if they were. The factor
    of the batch size undoes the averaging as far as the examples' gradients are independent. For a
    state that was saved to a file, see this folder's README.

    Args:
        state: The optimizer or its `state_dict()`.
        names: The parameters' names in the optimizer's order; default: those that an optimizer
            keeps which was made of `model.named_parameters()`.
        batch_size: Examples averaged for one step, accumulation and processes included.

    Returns:
        Tensors by name, of parameters that were stepped: the data part of the averaged loss.

    Raises:
        ValueError: other names than parameters, or an optimizer that has no second moments.
    """
    described = state.state_dict() if isinstance(state, Optimizer) else state
    moments: dict[str, Tensor] = {}
    count = sum(len(group["params"]) for group in described["param_groups"])
    if names is None:
        names = [n for group in described["param_groups"] for n in group.get("param_names", [])]
        if not names and count:
            raise ValueError(
                "the optimizer kept no names, as it was not made of model.named_parameters(); "
                "give the parameters' names in the optimizer's order"
            )
    if len(names) != count:
        raise ValueError(f"{len(names)} names for the optimizer's {count} parameters")
    for group in described["param_groups"]:
        for index in group["params"]:
            values = described["state"].get(index)
            if values is None and "betas" in group:
                continue
            if "betas" not in group or "exp_avg_sq" not in values:
                raise ValueError("the optimizer keeps no second moments; expected Adam or AdamW")
            correction = 1 - group["betas"][1] ** float(values["step"])
            moments[names[index]] = values["exp_avg_sq"].detach() * (batch_size / correction)
    return moments
