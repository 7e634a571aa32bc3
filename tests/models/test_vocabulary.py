"""Tokenizers and bodies that do not fit are refused when the model is made."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from helpers import image_tasks, save_bert, token_task
from language_helpers import WORDS, word_tokenizer
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5ForConditionalGeneration,
)

from optuna_merge.models import MultitaskModel, from_language_model, from_timm, from_transformers
from optuna_merge.tasks import Task, language_task, seq2seq_task, text_task

SMALL: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def save(folder: Path, model: Any) -> str:
    model.save_pretrained(folder)
    return str(folder)


def texts(*more: str) -> dict[str, Dataset]:
    """Texts of four tokens, in all splits; further ones at the end of the test data."""
    rows = ["w0 w1 w2 :", "w3 w4 w5 :"] * 3
    splits = {"train": rows, "validation": rows, "test": [*rows, *more]}
    return {
        split: Dataset.from_dict(
            {
                "text": some,
                "label": [i % 2 for i in range(len(some))],
                "prompt": some,
                "source": some,
                "target": ["w0"] * len(some),
            }
        )
        for split, some in splits.items()
    }


def grown() -> Any:
    """The tokenizer after a token was added to it, which has no row in the bodies here."""
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(["<user>"])
    return tokenizer


def bert(folder: Path, **changes: Any) -> str:
    return save(folder, BertModel(BertConfig(**SMALL | changes)))


def llama(folder: Path) -> str:
    sizes = SMALL | {"num_key_value_heads": 2, "eos_token_id": 2, "bos_token_id": 1}
    return save(folder, LlamaForCausalLM(LlamaConfig(**sizes)))


def t5(folder: Path) -> str:
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    config = T5Config(vocab_size=len(WORDS), decoder_start_token_id=0, **sizes)
    return save(folder, T5ForConditionalGeneration(config))


def test_a_token_that_was_added_to_the_tokenizer_alone_is_named_with_both_sizes(
    tmp_path: Path,
) -> None:
    folder = bert(tmp_path)
    told = re.escape(
        f"task 'one', test data: 'input_ids' has {len(WORDS)} in example 6 (counted from 0), but "
        f"the body's embedding has {len(WORDS)} rows, for 0..{len(WORDS) - 1}, while the "
        f"tokenizer has {len(WORDS) + 1} tokens; use the tokenizer"
    )
    with pytest.raises(ValueError, match=f"{told}.*resize_token_embeddings"):
        from_transformers(folder, [text_task("one", texts("w0 <user>"), grown())])
    # One that occurs nowhere does no harm.
    assert from_transformers(folder, [text_task("one", texts(), grown())])


def test_data_that_are_read_piece_by_piece_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optuna_merge.models._vocabulary._READ", 4)
    known = token_task("one", 1).train
    columns = {name: column.tolist() for name, column in known.columns.items()}  # type: ignore[union-attr]
    columns["input_ids"][9][2] = 50
    table = Dataset.from_dict(columns).with_format("torch")
    task = Task("one", known, table, 2)
    with pytest.raises(
        ValueError, match=r"validation data: 'input_ids' has 50 in example 9 .*0\.\.49;"
    ):
        from_transformers(save_bert(tmp_path), [task])


@pytest.mark.parametrize("kind", ["causal", "encoder-decoder"])
def test_language_models_too(tmp_path: Path, kind: str) -> None:
    make: Any = language_task if kind == "causal" else seq2seq_task
    folder = (llama if kind == "causal" else t5)(tmp_path)
    assert from_language_model(folder, [make("one", texts(), word_tokenizer())])
    with pytest.raises(
        ValueError, match=r"has 12 tokens, but the model's output layer 11.*resize"
    ):
        from_language_model(folder, [make("one", texts("<user>"), grown())])
    # Also where the head of the task hides it.
    task = make("one", texts("w0 <user>"), grown())
    object.__setattr__(task, "num_outputs", len(WORDS))
    with pytest.raises(ValueError, match=r"'input_ids' has 11 in example 6 .* has 12 tokens"):
        from_language_model(folder, [task])


def test_types_of_tokens_too(tmp_path: Path) -> None:
    columns = {"input_ids": torch.ones(4, 3).long(), "labels": torch.arange(4) % 2}
    columns["token_type_ids"] = torch.tensor([[0, 0, 1]]).expand(4, 3)
    task = Task("one", columns, columns, 2)
    assert from_transformers(bert(tmp_path / "two"), [task])
    with pytest.raises(
        ValueError, match=r"'token_type_ids' has 1 in example 0 .* leave the column"
    ):
        from_transformers(bert(tmp_path / "one", type_vocab_size=1), [task])


def positions(kind: str, folder: Path) -> str:
    """A body of five positions."""
    if kind == "bert":
        return bert(folder, max_position_embeddings=5)
    if kind == "roberta":  # they begin behind the padding token's
        config = RobertaConfig(**SMALL, max_position_embeddings=7, pad_token_id=1)
        return save(folder, RobertaModel(config))
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "pad_token_id": 0}
    return save(folder, GPT2Model(GPT2Config(vocab_size=len(WORDS), n_positions=5, **sizes)))


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2"])
def test_texts_that_are_longer_than_there_are_positions(tmp_path: Path, kind: str) -> None:
    folder = positions(kind, tmp_path)

    def model(words: int, **options: Any) -> MultitaskModel:
        longer = texts(" ".join(["w1"] * words))
        return from_transformers(folder, [text_task("one", longer, word_tokenizer(), **options)])

    assert model(5)(  # in truth it takes as many
        {"input_ids": torch.ones(2, 5).long() * 4, "attention_mask": torch.ones(2, 5).long()},
        "one",
    ).shape == (2, 2)
    assert model(9, max_length=5)
    told = "task 'one', test data: 'input_ids' is up to 6 tokens long, but the body has only 5 pos"
    with pytest.raises(ValueError, match=told):
        model(6)


@pytest.mark.parametrize("column", ["source", "target"])
def test_positions_of_encoder_and_decoder(tmp_path: Path, column: str) -> None:
    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 5}
    heads = {f"{part}_attention_heads": 2 for part in ("encoder", "decoder")}
    widths = {f"{part}_ffn_dim": 8 for part in ("encoder", "decoder")}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    config = BartConfig(vocab_size=len(WORDS), **sizes, **heads, **widths, **tokens)
    config.forced_eos_token_id = None
    folder = save(tmp_path, BartForConditionalGeneration(config))

    def model(words: int) -> MultitaskModel:
        splits = texts("w1")
        rows = splits["test"].to_dict()
        rows[column][-1] = " ".join(["w1"] * words)
        splits["test"] = Dataset.from_dict(rows)
        return from_language_model(
            folder, [seq2seq_task("one", splits, word_tokenizer(), start=2)]
        )

    room = 5 if column == "source" else 4  # and the end token
    longest = model(room)
    batch = {name: torch.full((1, 5), 4) for name in ("input_ids", "decoder_input_ids")}
    assert longest(batch, "one").shape[1] == 5
    name = "input_ids" if column == "source" else "decoder_input_ids"
    with pytest.raises(ValueError, match=rf"test data: '{name}' is up to 6 tokens long"):
        model(room + 1)


def test_positions_without_a_table_have_no_limit(tmp_path: Path) -> None:
    longer = texts(" ".join(["w1"] * 100))
    assert from_language_model(llama(tmp_path), [language_task("one", longer, word_tokenizer())])


def test_a_classifier_of_last_tokens_needs_a_padding_token(tmp_path: Path) -> None:
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2}
    folder = save(tmp_path, GPT2Model(GPT2Config(vocab_size=len(WORDS), **sizes)))
    task = text_task("one", texts(), word_tokenizer())
    told = r"GPT2ForSequenceClassification reads each text's last token.*give pad_token_id="
    with pytest.raises(ValueError, match=told):
        from_transformers(folder, [task])
    model = from_transformers(folder, [task], pad_token_id=0)
    assert model(task.data("train")[[0, 1]], "one").shape == (2, 2)


def test_texts_need_a_padding_token() -> None:
    tokenizer = word_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="task 'one': the tokenizer has no padding token"):
        text_task("one", texts(), tokenizer)


@pytest.mark.parametrize("name", ["./missing", "/missing/folder", "a b", "here/is/none"])
def test_a_folder_that_there_is_not_is_named_by_every_builder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    builders: list[tuple[str, Any]] = [
        ("model", lambda: from_transformers(name, [token_task("one", 1)])),
        ("model", lambda: from_language_model(name, [token_task("one", 1)])),
        ("tokenizer", lambda: text_task("one", texts(), name)),
        ("tokenizer", lambda: language_task("one", texts(), name)),
        ("tokenizer", lambda: seq2seq_task("one", texts(), name)),
    ]
    for what, build in builders:
        told = (
            rf"there is neither a folder {name!r} \(looked for in .*\) nor a {what} of that name"
        )
        with pytest.raises(FileNotFoundError, match=told):
            build()
    with pytest.raises(
        ValueError, match=rf"timm knows no model {name!r}: nor is there such a fol"
    ):
        from_timm(name, image_tasks())


def test_a_folder_that_lacks_something_says_what(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises((OSError, ValueError), match=r"config\.json|model_type"):
        from_transformers(str(tmp_path / "empty"), [token_task("one", 1)])
    with pytest.raises(ValueError, match="it is a folder, which is written 'local-dir:"):
        from_timm(str(tmp_path / "empty"), image_tasks())
