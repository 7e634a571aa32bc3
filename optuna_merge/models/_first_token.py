"""The last layer of an encoder that is read at its first token, for that token alone.

What follows the attention of a layer is done token by token. Where a classifier reads nothing but
the first token of the last layer, the other tokens' part of that is never used: three quarters of
the layer's products, which matters where few layers are run at all (`LastLayers`, with the frozen
ones cached). Outputs and gradients are the same up to rounding; only dropout's draws are others.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from optuna_merge.models._trainable import find_layers

_READ_AT_FIRST_TOKEN = frozenset(
    {"bert", "camembert", "deberta", "deberta-v2", "electra", "roberta", "xlm-roberta"}
)
"""Model types (transformers' names) whose `...ForSequenceClassification` reads only the first
token, and whose layers hold a module `attention.output` from (attended, hidden states) to hidden
states, with nothing but token-wise modules after it."""


def end_at_first_token(body: nn.Module, model_type: str) -> bool:
    """Let the last layer give hidden states of the first token only; False for other types."""
    if model_type not in _READ_AT_FIRST_TOKEN:
        return False
    last = list(find_layers(body)[1].children())[-1]
    last.get_submodule("attention.output").register_forward_pre_hook(_first_token)
    return True


def _first_token(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
    return tuple(hidden[:, :1] for hidden in inputs)
