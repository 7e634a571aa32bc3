"""Multitask models around transformers' sequence classification."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from optuna_merge.models._adapter import add_lora
from optuna_merge.models._multitask import MultitaskModel, fresh_heads
from optuna_merge.models._trainable import Trainable, find_layers
from optuna_merge.models._vocabulary import check_padding, check_tokens
from optuna_merge.tasks import Task, loading


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warning that heads are new: they are meant to be."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def from_transformers(
    name_or_path: str,
    tasks: Sequence[Task],
    *,
    trainable: Trainable = "all",
    adapter: Any = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> MultitaskModel:
    """A multitask model around a pretrained transformer, each head as its architecture has it.

    Every head is a `...ForSequenceClassification` network of the architecture, and all of them
    hold the same base model, which is the body. Where these heads read only the first token, as in
    BERT and its kin, the last layer is computed for that token alone after its attention.

    Args:
        name_or_path: A model's name on the hub, or a folder made by `save_pretrained`.
        tasks: Tasks with the tokenizer's columns.
        trainable: Which of the body's parameters are trained and merged.
        adapter: As in `from_language_model`.
        seed: Seed of the heads' initial values, and of the adapters' factors A.
        dtype: Of the parameters.
        **options: Passed to `from_pretrained`, such as `revision`.

    Raises:
        ImportError, TypeError: an adapter without peft, or one that is no `LoraConfig`.
        FileNotFoundError: there is no model of this name or in this folder.
        ValueError: an adapter that trains more than its factors B; tokens or positions that the
            body has no embedding of; an architecture that needs a padding token and has none.
    """
    from transformers import AutoModelForSequenceClassification

    networks: dict[str, Any] = {}
    body: Any = None
    with torch.random.fork_rng(), quiet(), loading("model", name_or_path):
        torch.manual_seed(seed)
        for head, size in fresh_heads(tasks).items():
            if body is None:
                network = AutoModelForSequenceClassification.from_pretrained(
                    name_or_path, num_labels=size, dtype=dtype, use_safetensors=True, **options
                )
                body = network.base_model
                end_at_first_token(body, network.config.model_type)
            else:
                config = copy.deepcopy(next(iter(networks.values())).config)
                config.num_labels = size
                network = AutoModelForSequenceClassification.from_config(config, dtype=dtype)
                setattr(network, network.base_model_prefix, body)
            networks[head] = network
    for network in networks.values():
        check_padding(network)
    check_tokens(body, tasks)
    trainable = add_lora(body, adapter, seed, trainable)
    return MultitaskModel(
        body, networks, tasks, inputs=_INPUTS, trainable=trainable, keywords=True
    )


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
