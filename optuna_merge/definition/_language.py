"""Tasks and model of a YAML definition of a language model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from optuna_merge.definition._builder import Builder, adapter, trainable
from optuna_merge.definition._data import read_rows, reason_of
from optuna_merge.definition._sections import LanguageData, LanguageStudy, LanguageTask
from optuna_merge.definition._tables import Row
from optuna_merge.models import MultitaskModel, from_language_model
from optuna_merge.tasks import (
    Task,
    chat_task,
    language_task,
    perplexity,
    seq2seq_task,
    token_accuracy,
    token_loss,
)

_METRICS = {"token_loss": token_loss, "perplexity": perplexity, "token_accuracy": token_accuracy}

Form = Literal["answers", "messages", "text"]
"""Of the examples: prompts with answers, conversations, or texts."""


class LanguageBuilder(Builder[LanguageStudy]):
    """Tasks of a causal or an encoder-decoder language model, which needs no heads."""

    def build(self) -> tuple[list[Task], MultitaskModel]:
        """The tasks, and the model; errors have their lines."""
        self.check_names()
        specs = self.study.tasks
        read = [self._read(index, spec) for index, spec in enumerate(specs)]
        body = self.body()
        config, tokenizer = self._config(body), self.tokenizer(body)
        tasks = []
        for index, (spec, (data, form, splits)) in enumerate(zip(specs, read)):
            key = "chat" if data.chat else form
            if config.is_encoder_decoder and key != "answers":
                told = (
                    f"task {spec.name!r}: {key} is for causal language models; of the "
                    f"encoder-decoder {self.study.model.name!r} give prompt: and answer:"
                )
                raise self.fail(index)(key, told)
            try:
                tasks.append(_task(spec.name, data, form, splits, tokenizer, config))
            except Exception as error:  # of tokenizers and their templates
                raise self.fail(index)(_KEYS[form][-1], reason_of(error)) from error
        model = self.study.model
        try:
            return tasks, from_language_model(
                body, tasks, trainable=trainable(model), adapter=adapter(model), seed=model.seed
            )
        except Exception as error:  # of transformers, peft and readers of their files
            raise self.failed_model(error) from error

    def _read(
        self, index: int, spec: LanguageTask
    ) -> tuple[LanguageData, Form, dict[str, _Table]]:
        """A task's settings over those of all, the form of its examples, and these."""
        fail = self.fail(index)
        form = _form(spec, spec.name, fail) or _form(self.study.data, spec.name, fail) or "answers"
        data = self.settings(spec, LanguageData)
        columns = {str(getattr(data, key)): key for key in _KEYS[form]}

        def helped(key: str, told: str) -> ValueError:
            if form == "answers" and "no column" in told and "'messages'" in told:
                told = f"{told}; of conversations give messages: messages"
            return fail(key, told)

        rows, _ = read_rows(
            spec.name, data, self.folder, columns, helped, plain=form != "messages"
        )
        splits = {}
        for split, found in rows.items():
            kept = [row for row in found if row[str(getattr(data, _KEYS[form][-1]))] is not None]
            if not kept:
                key = _KEYS[form][-1]
                told = f"no row has anything in the column {getattr(data, key)!r}"
                raise fail(key, f"task {spec.name!r}, {split} data: {told}")
            splits[split] = _table(kept, data, form)
        return data, form, splits

    def _config(self, body: str) -> Any:
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(body)
        except Exception as error:
            raise self.failed_model(error) from error


_KEYS: dict[Form, tuple[str, ...]] = {
    "answers": ("prompt", "answer"),
    "messages": ("messages",),
    "text": ("text",),
}
"""The keys that name columns, what is learnt last."""


def _form(section: LanguageData, task: str, fail: Callable[[str, str], ValueError]) -> Form | None:
    """What the keys say that stand in one section; None: nothing."""
    given = [key for key, value in section.given().items() if value is not None]
    found = {form: [key for key in keys if key in given] for form, keys in _KEYS.items()}
    said = [form for form, keys in found.items() if keys]
    if len(said) > 1:
        one, other = found[said[0]][0], found[said[1]][0]
        raise fail(
            other,
            f"task {task!r}: both {one}: and {other}: are given; expected prompt: with answer:, "
            f"or messages:, or text:",
        )
    return said[0] if said else None


@dataclass(frozen=True)
class _Table:
    """Columns as the builders of tasks read them; conversations keep their own types."""

    columns: dict[str, list[Any]]

    @property
    def column_names(self) -> list[str]:
        return list(self.columns)

    def __getitem__(self, column: str) -> list[Any]:
        return self.columns[column]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))


def _table(rows: Sequence[Row], data: LanguageData, form: Form) -> _Table:
    if form == "messages":
        return _Table({"messages": [row[str(data.messages)] for row in rows]})
    return _Table(
        {
            key: [
                "" if (cell := row[str(getattr(data, key))]) is None else str(cell) for row in rows
            ]
            for key in _KEYS[form]
        }
    )


def _as_turns(table: _Table) -> _Table:
    """Prompts and answers as conversations of two turns."""
    return _Table(
        {
            "messages": [
                [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
                for prompt, answer in zip(table["prompt"], table["answer"])
            ]
        }
    )


def _task(
    name: str,
    data: LanguageData,
    form: Form,
    splits: dict[str, _Table],
    tokenizer: Any,
    config: Any,
) -> Task:
    options: dict[str, Any] = {"metrics": (_METRICS[data.metric],)}
    if form == "answers" and data.chat:
        form, splits = "messages", {split: _as_turns(table) for split, table in splits.items()}
    if form == "messages":
        return chat_task(name, splits, tokenizer, max_length=data.max_length, **options)
    if form == "text":
        options |= {"prompt": None, "target": "text", "max_target_length": data.max_length}
        return language_task(name, splits, tokenizer, **options)
    options |= {"target": "answer", "max_target_length": data.max_answer_length}
    if config.is_encoder_decoder:
        options |= {"source": "prompt", "max_source_length": data.max_prompt_length}
        start = config.decoder_start_token_id
        return seq2seq_task(name, splits, tokenizer, start=start, **options)
    behind = {
        split: _Table(table.columns | {"prompt": [p + data.separator for p in table["prompt"]]})
        for split, table in splits.items()
    }
    options["max_prompt_length"] = data.max_prompt_length
    return language_task(name, behind, tokenizer, **options)
