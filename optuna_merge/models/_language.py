"""Multitask models around transformers' causal and encoder-decoder language models."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from optuna_merge._base.labels import IGNORED
from optuna_merge.models._adapter import add_lora
from optuna_merge.models._generation import GenerationSettings, LanguageModel
from optuna_merge.models._multitask import MultitaskModel
from optuna_merge.models._trainable import Trainable
from optuna_merge.models._transformers import quiet
from optuna_merge.models._vocabulary import check_tokens
from optuna_merge.tasks import DECODER, LABELS, Task, TensorData, check_tasks, loading

_logger = logging.getLogger(__name__)

_INPUTS = ("input_ids", "attention_mask", DECODER)


def from_language_model(
    name_or_path: str,
    tasks: Sequence[Task],
    *,
    trainable: Trainable = "all",
    adapter: Any = None,
    generation: GenerationSettings | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> MultitaskModel:
    """A multitask model around a pretrained language model, all of which is the shared body.

    Its output layer predicts tokens for every task, so that no task has a head of its own: all
    that is trained is merged. `MultitaskModel.generate` writes texts, for metrics of them.

    Args:
        name_or_path: A causal or encoder-decoder model's name on the hub, or a folder made by
            `save_pretrained`.
        tasks: Tasks with columns as `language_task` makes them, or `seq2seq_task` for an
            encoder-decoder model.
        trainable: Which of the parameters are trained and merged. Of an encoder-decoder model
            `LastLayers(n)` means layers of the encoder (if it has as many as the decoder), with
            all of the decoder behind them.
        adapter: A `peft.LoraConfig`: only the adapters' factors B are trained and merged; the
            factors A are random, frozen and the same for all tasks.
        generation: How texts are generated; default: `GenerationSettings()`.
        seed: Seed of the adapters' factors A.
        dtype: Of the parameters.
        **options: Passed to `from_pretrained`, such as `revision`.

    Raises:
        ImportError, TypeError: an adapter without peft, or one that is no `LoraConfig`.
        ValueError: an adapter that trains more than its factors B; a task for the other kind of
            model, or with tokens or positions that this one doesn't have.
        FileNotFoundError: there is no model of this name or in this folder.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    with quiet(), loading("model", name_or_path):
        config = AutoConfig.from_pretrained(name_or_path, **options)
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        network = kind.from_pretrained(name_or_path, dtype=dtype, use_safetensors=True, **options)
    trainable = add_lora(network, adapter, seed, trainable)
    tasks = check_tasks(tasks)
    settings = generation or GenerationSettings()
    heads = {str(task.head): LanguageModel(network, settings) for task in tasks}
    for task in tasks:
        _check_task(task, network, heads[str(task.head)].ends)
    check_tokens(network, tasks)
    return MultitaskModel(
        network, heads, tasks, inputs=_INPUTS, trainable=trainable, keywords=True
    )


def _check_task(task: Task, network: Any, ends: Sequence[int]) -> None:
    config, where = network.config, f"task {task.name!r}"
    first = task.data("train")[[0]]
    if (DECODER in first) != config.is_encoder_decoder:
        builder = "seq2seq_task" if config.is_encoder_decoder else "language_task"
        has = "has" if DECODER in first else "lacks"
        raise ValueError(
            f"{where} {has} a column {DECODER!r}, unlike what {type(network).__name__} takes; "
            f"make it with {builder}"
        )
    size = network.get_output_embeddings().weight.shape[0]
    if task.num_outputs > size:
        raise ValueError(
            f"{where} has {task.num_outputs} tokens, but the model's output layer {size}; is its "
            f"tokenizer another model's? If tokens were added to it, make room for them: "
            f"model.resize_token_embeddings(len(tokenizer)) and model.save_pretrained(folder)"
        )
    if config.is_encoder_decoder:
        start, expected = int(first[DECODER][0, 0]), config.decoder_start_token_id
        if expected is not None and start != expected:
            raise ValueError(
                f"{where}: decoder inputs start with token {start}, but the model starts with "
                f"{expected}; make the task with seq2seq_task(..., start={expected})"
            )
    data = task.data("train")
    if isinstance(data, TensorData) and any(metric.generated for metric in task.metrics):
        labels = data.columns[LABELS]
        if not torch.isin(labels[labels != IGNORED], torch.tensor(ends)).any():
            _logger.warning(
                "%s: no target ends with one of the model's end tokens %s, so that it will not "
                "learn to stop",
                where,
                list(ends),
            )
