"""Tasks of language models from chat messages, by the tokenizer's own chat template."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optuna_merge._base.labels import IGNORED
from optuna_merge.tasks._data import LABELS, TensorData
from optuna_merge.tasks._language import language_data, language_splits, tokenizer_of
from optuna_merge.tasks._task import Task

Piece = tuple[str, bool]
"""A part of a conversation's text, and whether the model is to learn it."""


def chat_task(
    name: str,
    splits: Any,
    tokenizer: Any,
    *,
    messages: str = "messages",
    max_length: int = 1024,
    **options: Any,
) -> Task:
    """A `Task` in which a causal language model learns the assistant's turns of conversations.

    The tokenizer's chat template writes a conversation as text. Labelled is what the template adds
    for each turn of the assistant, with the tokens that end the turn, so a model learns to answer
    from exactly the tokens that generation starts from. Messages behind the last turn of the
    assistant are left out. A conversation is one example, unless the template writes earlier turns
    otherwise once more follow: then every answer is one.

    Args:
        name: The task's name.
        splits: As in `language_task`.
        tokenizer: A Hugging Face tokenizer with a chat template, or the name or folder of one.
        messages: Column of the conversations: lists of `{"role": ..., "content": ...}`.
        max_length: Tokens to keep of each conversation, the last ones.
        **options: Further fields of `Task`; see `language_task`.

    Raises:
        ValueError: a split or column that is missing, a tokenizer without a chat template, a
            conversation without a turn of the assistant, or one that is no list of messages.
    """
    tokenizer = tokenizer_of(name, tokenizer)
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError(
            f"task {name!r}: the tokenizer has no chat template, which messages need; take the "
            f"tokenizer of a chat model, set tokenizer.chat_template, or give prompts and answers"
        )

    def encoded(where: str, table: Any) -> TensorData:
        rows: list[list[int]] = []
        labels: list[list[int]] = []
        for number, conversation in enumerate(table[messages]):
            try:
                examples = chat_examples(tokenizer, conversation)
            except ValueError as error:
                raise ValueError(f"{where}: example {number}: {error}") from error
            for pieces in examples:
                row, learnt = _tokens(tokenizer, pieces)
                row, learnt = row[-max_length:], learnt[-max_length:]
                if not any(learnt[1:]):
                    raise ValueError(f"{where}: example {number} has no token to predict")
                rows.append(row)
                following = zip(row[1:], learnt[1:])
                labels.append([t if known else IGNORED for t, known in following] + [IGNORED])
        return language_data(tokenizer, rows, {LABELS: (labels, IGNORED)})

    return language_splits(name, splits, [messages], encoded, len(tokenizer), options)


def chat_examples(tokenizer: Any, conversation: Any) -> list[list[Piece]]:
    """The text of a conversation up to its last turn of the assistant, cut at these turns.

    It is one example. But where the template writes earlier turns otherwise once more follow (it
    may leave out what a model has thought), an answer begins an example of its own.
    """
    turns = _checked(conversation)
    answers = [place for place, turn in enumerate(turns) if turn["role"] == "assistant"]
    if not answers:
        roles = ", ".join(str(turn["role"]) for turn in turns) or "none"
        raise ValueError(
            f"there is no turn of the role 'assistant' to learn from (the roles are: {roles}); "
            f"leave such conversations out"
        )
    examples: list[list[Piece]] = []
    done = None
    for place in answers:
        before = _written(tokenizer, turns[:place], asks=True)
        after = _written(tokenizer, turns[: place + 1], asks=False)
        if not after.startswith(before):
            raise ValueError(
                f"the chat template writes message {place} otherwise than it asks for an answer; "
                f"give prompts and answers as columns"
            )
        if done is None or not before.startswith(done):
            examples.append([])
            done = ""
        examples[-1] += [(before[len(done) :], False), (after[len(before) :], True)]
        done = after
    return examples


def _checked(conversation: Any) -> list[dict[str, Any]]:
    if isinstance(conversation, str) or not isinstance(conversation, Iterable):
        raise ValueError(
            f"expected a list of messages, got {type(conversation).__name__} {conversation!r:.40}"
        )
    turns = list(conversation)
    for place, turn in enumerate(turns):
        if not isinstance(turn, Mapping) or not {"role", "content"} <= turn.keys():
            raise ValueError(
                f"message {place} is {turn!r:.60}; expected role and content, as in "
                f'{{"role": "user", "content": "..."}}'
            )
    # Tables of Arrow fill in what a message lacks; a template would write it as a value.
    return [{key: value for key, value in turn.items() if value is not None} for turn in turns]


def _written(tokenizer: Any, turns: Sequence[Mapping[str, Any]], *, asks: bool) -> str:
    if not turns:
        return ""  # an assistant that begins: most templates refuse no messages at all
    try:
        found = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=asks)
    except Exception as error:  # templates raise what they like
        raise ValueError(f"the chat template refuses it: {error}") from error
    return str(found)


def _tokens(tokenizer: Any, pieces: Sequence[Piece]) -> tuple[list[int], list[bool]]:
    """Each piece is tokenised by itself, as generation starts from whole pieces."""
    row: list[int] = []
    learnt: list[bool] = []
    for text, known in pieces:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        row += ids
        learnt += [known] * len(ids)
    return row, learnt
