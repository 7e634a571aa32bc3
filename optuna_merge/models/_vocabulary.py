"""Whether a tokenizer's output fits the body: token ids, types of tokens, positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from optuna_merge.tasks import DECODER, MASK, SPLITS, Data, Task, TensorData

_IDS = "input_ids"
_TYPES = "token_type_ids"
_POSITIONS = ("position_embeddings", "wpe", "embed_positions")
"""Names of learned embeddings of positions in transformers' models."""
_READ = 4096
"""Examples that are read at once."""


def check_tokens(network: Any, tasks: Sequence[Task]) -> None:
    """See that each token, type and position of the tasks' data has a row in the embeddings."""
    rows = _rows(network)
    for task in tasks:
        for split in SPLITS:
            data = getattr(task, split)
            if data is not None:
                _check_split(f"task {task.name!r}, {split} data", data, rows, _positions(network))


def _check_split(where: str, data: Data, rows: dict[str, int], positions: dict[str, int]) -> None:
    start = 0
    for batch in _pieces(data):
        for column, size in rows.items():
            if column not in batch:
                continue
            ids = batch[column].reshape(len(batch[column]), -1)
            if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= size):
                row = int(((ids < 0) | (ids >= size)).any(1).long().argmax())
                bad = ids[row][(ids[row] < 0) | (ids[row] >= size)][0]
                raise ValueError(
                    f"{where}: {column!r} has {int(bad)} in example {start + row} (counted from "
                    f"0), but the body's embedding has {size} rows, for 0..{size - 1}"
                    + (_of_tokens(data) if column != _TYPES else _OF_TYPES)
                )
        for column, most in positions.items():
            if column in batch and (length := _length(batch, column)) > most:
                raise ValueError(
                    f"{where}: {column!r} is up to {length} tokens long, but the body has only "
                    f"{most} positions; make the task with a smaller maximum (max_length of "
                    f"text_task, or the maxima of language_task and seq2seq_task)"
                )
        start += _READ


_OF_TYPES = (
    "; leave the column out, or use the tokenizer that the body was trained with: texts come in "
    "pairs, perhaps, of which it knows nothing"
)


def _of_tokens(data: Data) -> str:
    size = getattr(data, "vocabulary", None)
    known = "" if size is None else f", while the tokenizer has {size} tokens"
    return (
        f"{known}; use the tokenizer that the body was trained with, or, if tokens were added to "
        f"it, make room for them: model.resize_token_embeddings(len(tokenizer)) and "
        f"model.save_pretrained(folder) before the folder is given here"
    )


def _pieces(data: Data) -> Iterator[dict[str, Tensor]]:
    """All of the data; what is in memory in one piece, with the padding that no batch has."""
    if isinstance(data, TensorData):
        yield data.columns
        return
    for start in range(0, len(data), _READ):
        yield data[list(range(start, min(start + _READ, len(data))))]


def _length(batch: dict[str, Tensor], column: str) -> int:
    """Tokens of the longest example, without padding on the right where a mask tells it."""
    mask = batch.get(MASK)
    if column == _IDS and mask is not None and mask.ndim == 2:
        return int(mask.any(0).nonzero().max()) + 1 if bool(mask.any()) else 0
    return int(batch[column].shape[1])


def _rows(network: Any) -> dict[str, int]:
    """Rows of the embeddings by the column that is looked up in them."""
    found = {}
    tokens = network.get_input_embeddings()
    if isinstance(getattr(tokens, "weight", None), Tensor):
        found[_IDS] = found[DECODER] = len(tokens.weight)
    for name, module in network.named_modules():
        if name.endswith("token_type_embeddings") and isinstance(module, nn.Embedding):
            found[_TYPES] = module.num_embeddings
    return found


def _positions(network: Any) -> dict[str, int]:
    """Most tokens by column, where positions are learned; others have no limit."""
    found: dict[str, int] = {}
    for name, module in network.named_modules():
        parts = name.split(".")
        if parts[-1] not in _POSITIONS or not isinstance(module, nn.Embedding):
            continue
        # RoBERTa counts from the padding token's row on, BART and OPT from an offset on.
        skipped = getattr(module, "offset", None)
        if skipped is None:
            skipped = 0 if module.padding_idx is None else module.padding_idx + 1
        decodes = network.config.is_encoder_decoder and "decoder" in parts
        column = DECODER if decodes else _IDS
        most = module.num_embeddings - int(skipped)
        found[column] = min(found.get(column, most), most)
    return found


def check_padding(network: Any) -> None:
    """See that a classifier which looks for the last token can tell it from padding."""
    if getattr(network.config, "pad_token_id", None) is not None:
        return
    try:
        with torch.inference_mode():
            network(input_ids=torch.ones(2, 1, dtype=torch.long, device=network.device))
    except Exception as error:
        if "padding token" not in str(error):
            return  # it wants more than tokens, which is no matter of padding
        raise ValueError(
            f"{type(network).__name__} reads each text's last token, and its configuration has no "
            f"padding token to tell it by; give pad_token_id=tokenizer.pad_token_id, of a "
            f"tokenizer that has one, or set it in the folder's config.json"
        ) from error
