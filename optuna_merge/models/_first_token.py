"""The last layer of an encoder that is read at its first token, for that token alone.

What follows the attention of a layer is done token by token. Where a classifier reads nothing but
the first token of the last layer, the other tokens' part of that is never used: three quarters of
the layer's products, which matters where few layers are run at all (`LastLayers`, with the frozen
ones cached). Nor are the other tokens' queries, where the layer has a module for them. Outputs and
gradients are the same up to rounding; only dropout's draws are others.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from optuna_merge.models._trainable import find_layers

_READ_AT_FIRST_TOKEN = frozenset(
    {"bert", "camembert", "deberta", "deberta-v2", "electra", "roberta", "xlm-roberta"}
)
"""Model types (transformers' names) whose `...ForSequenceClassification` reads only the first
token, and whose layers hold a module `attention.output` from (attended, hidden states) to hidden
states, with nothing but token-wise modules after it."""


_QUERY = "attention.self.query"
"""A linear layer, from hidden states to the queries of all tokens."""


def end_at_first_token(body: nn.Module, model_type: str) -> bool:
    """Let the last layer give hidden states of the first token only; nothing for other types.

    Args:
        body: The base model of a `...ForSequenceClassification` network.
        model_type: `config.model_type`.

    Returns:
        Whether it does.
    """
    if model_type not in _READ_AT_FIRST_TOKEN:
        return False
    last = list(find_layers(body)[1].children())[-1]
    last.get_submodule("attention.output").register_forward_pre_hook(_first_token)
    if _QUERY in dict(last.named_modules()):
        query = last.get_submodule(_QUERY)
        query.forward = partial(_same_for_all, query.forward)
    return True


def _first_token(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
    return tuple(hidden[:, :1] for hidden in inputs)


def _same_for_all(forward: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
    """The first token's query in the place of every token's."""
    return forward(hidden[:, :1]).expand(-1, hidden.shape[1], -1)
