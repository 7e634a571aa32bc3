"""Merges of LoRA adapters of which both factors were trained: the mean of the products, exactly.

The weighted mean of the updates B_t A_t is [a_1 B_1, ..., a_T B_T] [A_1; ...; A_T]: an adapter of
the summed ranks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from optuna_merge._base.checkpoint_files import adapter_parts, same_shapes

_A = re.compile(r"(^|\.)lora_(embedding_)?A(\.|$)")
_B = re.compile(r"(^|\.)lora_(embedding_)?B(\.|$)")


def has_products(names: Sequence[str]) -> bool:
    """Whether both factors of some adapter are among the names; other parts of it are refused."""
    found = False
    for module, parts in adapter_parts(names).items():
        if len(parts) < 2:
            continue
        members = [name for each in parts.values() for name in each]
        if any(not _A.search(name) and not _B.search(name) for name in members):
            raise ValueError(
                f"the adapter of {module!r} has the trained parts {', '.join(parts)}, whose means "
                f"are not the adapter's of the mean; take LoRA without DoRA and without biases, "
                f"or train one part alone"
            )
        found = True
    return found


def merge_products(
    states: Sequence[Mapping[str, Tensor]], weights: Sequence[float]
) -> dict[str, Tensor]:
    """Factors of the summed ranks (zeros add none), and the weighted means of all else."""
    for state in states[1:]:
        same_shapes("the run of another task", state, states[0])
    used = [(state, weight) for state, weight in zip(states, weights) if weight]
    merged = {}
    for name in states[0]:
        tensors = [state[name] for state, _ in used]
        if _A.search(name):
            merged[name] = torch.cat(tensors, 0)
        elif _B.search(name):
            merged[name] = torch.cat([weight * state[name] for state, weight in used], 1)
        else:
            total = sum(weight * state[name].float() for state, weight in used)
            assert isinstance(total, Tensor)
            merged[name] = total.to(tensors[0].dtype)
    return merged
