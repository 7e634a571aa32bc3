"""Tasks of language models from `datasets.Dataset`s: from a prompt to a target text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from optuna_merge._base.labels import IGNORED
from optuna_merge.tasks._data import DECODER, LABELS, MASK, TensorData
from optuna_merge.tasks._losses import token_cross_entropy
from optuna_merge.tasks._metrics._tokens import token_accuracy
from optuna_merge.tasks._pretrained import load_tokenizer
from optuna_merge.tasks._splits import tables_of
from optuna_merge.tasks._task import Task


def language_task(
    name: str,
    splits: Any,
    tokenizer: Any,
    *,
    prompt: str | None = "prompt",
    target: str = "target",
    max_prompt_length: int = 256,
    max_target_length: int = 128,
    special_tokens: bool = True,
    **options: Any,
) -> Task:
    """A `Task` in which a causal language model goes on from a prompt, tokenised once.

    An example's tokens are the prompt's, the target's and the end token. Only those of the target
    and the end are labelled: label t is the token after token t, and -100 stands at the rest.
    Prompt and target are tokenised apart, so that generation starts from exactly the tokens that
    training saw; a space or line break between them must be in one of the texts.

    Args:
        name: The task's name.
        splits: `{"train": ..., "validation": ..., "test": ...}` of `datasets.Dataset` (a
            `DatasetDict` will do); "test" may be missing.
        tokenizer: A Hugging Face tokenizer, or the name or folder of one.
        prompt: Column of the prompts; None: texts have none, and all their tokens but the first
            are labelled.
        target: Column of the texts to be learnt.
        max_prompt_length: Tokens to keep of each prompt, the last ones.
        max_target_length: Tokens to keep of each target, its end token included.
        special_tokens: Let the tokenizer put its tokens around the prompt (an end token after it
            is left out); False for prompts that have them already, as chat templates make them.
        **options: Further fields of `Task`, such as `metrics`; default: `token_cross_entropy`
            and `token_accuracy`. For metrics of generated texts see `text_metric`.

    Raises:
        ValueError: a split or column that is missing, a tokenizer without an end token, an
            example without any token to predict from.
    """
    tokenizer = tokenizer_of(name, tokenizer)
    columns = [target] if prompt is None else [prompt, target]

    def encoded(where: str, table: Any) -> TensorData:
        targets = _ended(tokenizer, table[target], max_target_length)
        prompts: list[list[int]] = [[] for _ in targets]
        if prompt is not None:
            prompts = _ids(tokenizer, table[prompt], special_tokens)
        rows: list[list[int]] = []
        labels: list[list[int]] = []
        for before, after in zip(prompts, targets):
            if before and before[-1] == tokenizer.eos_token_id:
                before = before[:-1]
            before = before[-max_prompt_length:]
            row = before + after
            known = max(1, len(before))
            if len(row) <= known:
                raise ValueError(
                    f"{where}: example {len(rows)} has no token to predict; its tokens are {row}"
                )
            rows.append(row)
            labels.append([IGNORED] * (known - 1) + row[known:] + [IGNORED])
        return language_data(tokenizer, rows, {LABELS: (labels, IGNORED)})

    return language_splits(name, splits, columns, encoded, len(tokenizer), options)


def seq2seq_task(
    name: str,
    splits: Any,
    tokenizer: Any,
    *,
    source: str = "source",
    target: str = "target",
    max_source_length: int = 256,
    max_target_length: int = 128,
    start: int | None = None,
    **options: Any,
) -> Task:
    """A `Task` in which an encoder-decoder model turns a source text into a target text.

    Columns are the source's tokens, the target's tokens with an end token as labels (padded with
    -100), and `decoder_input_ids`, which are the labels one position later behind the start token.

    Args:
        name: The task's name.
        splits: See `language_task`.
        tokenizer: The same.
        source: Column of the texts that the encoder reads.
        target: Column of the texts to be learnt.
        max_source_length: Tokens to keep of each source.
        max_target_length: Tokens to keep of each target, its end token included.
        start: The model's `decoder_start_token_id`; default: the padding token, as T5 and Marian
            have it. BART starts with its end token.
        **options: See `language_task`.

    Raises:
        ValueError: as `language_task`; no `start`, and a tokenizer without a padding token.
    """
    tokenizer = tokenizer_of(name, tokenizer)
    if start is None:
        start = tokenizer.pad_token_id
        if start is None:
            raise ValueError(
                f"task {name!r}: the tokenizer has no padding token; give start=, the model's "
                f"decoder_start_token_id"
            )

    def encoded(where: str, table: Any) -> TensorData:
        sources = tokenizer(list(table[source]), truncation=True, max_length=max_source_length)
        labels = _ended(tokenizer, table[target], max_target_length)
        before = [[start, *row[:-1]] for row in labels]
        more = {LABELS: (labels, IGNORED), DECODER: (before, _padding(tokenizer))}
        return language_data(tokenizer, sources["input_ids"], more)

    return language_splits(name, splits, [source, target], encoded, len(tokenizer), options)


def language_splits(
    name: str,
    splits: Any,
    columns: Sequence[str],
    encoded: Any,
    size: int,
    options: dict[str, Any],
) -> Task:
    """A task of tables that are encoded, with the loss and metric of tokens."""
    tables = tables_of(name, splits, columns)
    data = {split: encoded(where, table) for split, where, table in tables}
    fields: dict[str, Any] = {"loss": token_cross_entropy, "metrics": (token_accuracy,)} | options
    return Task(name, data["train"], data["validation"], size, test=data.get("test"), **fields)


def tokenizer_of(name: str, tokenizer: Any) -> Any:
    """The tokenizer, loaded where it is a name, and seen to have an end token."""
    tokenizer = load_tokenizer(tokenizer)
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"task {name!r}: the tokenizer has no end token, so that a model would never learn "
            f"to stop; set tokenizer.eos_token"
        )
    return tokenizer


def _ids(tokenizer: Any, texts: Any, special_tokens: bool) -> list[list[int]]:
    return tokenizer(list(texts), add_special_tokens=special_tokens)["input_ids"]  # type: ignore[no-any-return]


def _ended(tokenizer: Any, texts: Any, length: int) -> list[list[int]]:
    """Tokens of the texts, each with the end token behind, as far as there is room."""
    return [[*row, tokenizer.eos_token_id][:length] for row in _ids(tokenizer, texts, False)]


def _padding(tokenizer: Any) -> int:
    """A token for positions that are masked: which one doesn't matter."""
    padding = tokenizer.pad_token_id
    return int(tokenizer.eos_token_id if padding is None else padding)


def language_data(
    tokenizer: Any,
    rows: Sequence[Sequence[int]],
    more: Mapping[str, tuple[Sequence[Sequence[int]], int]],
) -> TensorData:
    """Padded on the right: tokens, their mask, and more columns, each with what pads it."""
    mask = _matrix([[1] * len(row) for row in rows], 0)
    columns = {"input_ids": _matrix(rows, _padding(tokenizer)), MASK: mask}
    columns |= {name: _matrix(found, padding) for name, (found, padding) in more.items()}
    return TensorData(columns, vocabulary=len(tokenizer))


def _matrix(rows: Sequence[Sequence[int]], padding: int) -> torch.Tensor:
    matrix = torch.full((len(rows), max(map(len, rows))), padding)
    for i, row in enumerate(rows):
        matrix[i, : len(row)] = torch.as_tensor(row, dtype=torch.long)
    return matrix
