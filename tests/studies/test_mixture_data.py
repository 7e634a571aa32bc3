"""The mixture study's data and bodies: splits, windows, pretraining; no archive is needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from studies.mixture import body, data
from studies.mixture.body import (
    BODIES,
    END,
    Body,
    english_loss,
    fresh_model,
    language_tasks,
    make_tokenizer,
    pretrained_body,
    window_loss,
    windows,
)

WORDS = " ".join(f"word{i} and so on;" for i in range(900))


def book(language: str, count: int = 400) -> str:
    """A book of paragraphs that say where they are; a few are no running text."""
    line = "{0} paragraph {1}, which is long enough to be one of the running text in {0}"
    blocks = [line.format(language, i) for i in range(count)]
    blocks[7] = "$ sudo apt-get install something-that-is-long-enough-to-be-a-paragraph-of-it"
    blocks[9] = "    +-----------+\n    | a table that is long enough to count as a paragraph |"
    blocks[11] = "A heading"
    return "\n\n".join(blocks)


def test_paragraphs_leave_out_what_is_no_running_text() -> None:
    found = data._paragraphs(book("Latin"))
    assert len(found) == 397
    assert all("Latin paragraph" in p for p in found)


def test_a_passage_is_in_the_same_split_in_all_languages() -> None:
    one, other = (data._book(data._paragraphs(book(name))) for name in ("German", "French"))
    for split, text in one.items():
        numbers = [line.split()[2] for line in text.split("\n")]
        assert numbers == [line.split()[2] for line in other[split].split("\n")]
    lines = [line for text in one.values() for line in text.split("\n")]
    assert len(lines) == len(set(lines)) == 397
    assert len(one["train"].split("\n")) == pytest.approx(0.8 * 397, abs=10)


def test_paragraphs_left_in_english_are_dropped() -> None:
    assert data.translated("Les pages du manuel se trouvent dans le répertoire usuel du système")
    assert not data.translated("See the manual of the package, and what is in it for the user")


def test_documents_are_split_whole_by_their_names() -> None:
    documents = {f"module{i}": f"text of {i}" for i in range(200)}
    found = data.by_hash(documents)
    lines = [line for text in found.values() for line in text.split("\n")]
    assert sorted(lines) == sorted(documents.values())
    assert data.by_hash(dict(reversed(documents.items()))) == found
    assert len(found["train"].split("\n")) == pytest.approx(160, abs=15)
    more = data.by_hash(documents | {"another": "x"})
    assert set(found["validation"].split("\n")) <= set(more["validation"].split("\n")) | {"x"}


def test_windows_are_spread_over_the_text_and_labels_are_the_next_tokens() -> None:
    tokenizer = make_tokenizer([WORDS], symbols=300)
    assert tokenizer.eos_token == END
    ids = torch.tensor(tokenizer(WORDS)["input_ids"])
    few = windows(tokenizer, WORDS, 5, 16)
    rows, labels = few["input_ids"], few["labels"]
    assert rows.shape == labels.shape == (5, 16)
    assert torch.equal(rows[:, 1:], labels[:, :-1])
    assert torch.equal(rows[0], ids[:16])
    assert not any(torch.equal(rows[i], rows[i + 1]) for i in range(4))
    every = windows(tokenizer, WORDS, 10**6, 16)["input_ids"]
    assert torch.equal(every.flatten(), ids[: every.numel()]), "all of it, none twice"
    with pytest.raises(ValueError, match="a window has 16 tokens and one more, the text has"):
        windows(tokenizer, "short", 5, 16)


def test_tasks_measure_the_mean_loss_of_a_token() -> None:
    tokenizer = make_tokenizer([WORDS], symbols=300)
    splits = {"train": WORDS, "validation": WORDS, "test": WORDS}
    (task,) = language_tasks({"words": splits}, tokenizer, {"words": 7}, 4, 16)
    sizes = [len(task.data(split)) for split in ("train", "validation", "test")]
    assert sizes == [7, 4, 4]
    assert not task.metric.greater_is_better
    labels = task.data("validation")[[0, 1, 2, 3]]["labels"]
    outputs = torch.randn(4, 16, 300, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.cross_entropy(outputs.flatten(0, 1), labels.flatten())
    found = window_loss(outputs, labels)
    assert found.value == pytest.approx(float(expected), rel=1e-5)
    assert 0 < found.standard_error < 0.3


def test_each_body_is_pretrained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
    longer = replace(BODIES["medium"].pretraining, steps=8, num_rungs=2, learning_rate=0.03)
    made = {
        "small": Body(BODIES["small"].shape | tiny, replace(longer, steps=1, num_rungs=1), 1e-3),
        "medium": Body(BODIES["medium"].shape | tiny | {"num_hidden_layers": 2}, longer, 1e-3),
    }
    monkeypatch.setattr(body, "BODIES", made)
    folders = {
        name: pretrained_body(tmp_path, ["some training data"], WORDS, name) for name in made
    }
    assert folders["small"] != folders["medium"]
    losses = [english_loss(folder, WORDS) for folder in folders.values()]
    assert losses[0] > losses[1] + 0.1
    monkeypatch.setattr(body, "_pretrain", None)
    assert pretrained_body(tmp_path, ["some training data"], WORDS, "medium") == folders["medium"]


def test_the_medium_body_has_millions_of_parameters() -> None:
    sizes = [sum(p.numel() for p in fresh_model(b.shape).parameters()) for b in BODIES.values()]
    assert sizes == [1_127_296, 5_868_800]
