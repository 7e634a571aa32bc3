from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from helpers import toy_columns

from optuna_merge.tasks import Data, TensorData, fingerprint
from optuna_merge.tasks._data import batches_in_order, unpadded_batches


def masked(*lengths: int, width: int = 6) -> TensorData:
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    ids = torch.arange(1, len(lengths) * width + 1).view(-1, width) * mask
    return TensorData(
        {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(len(lengths))}
    )


def test_rows_come_in_the_order_that_was_asked_for() -> None:
    data = TensorData(toy_columns())
    batch = data[[5, 2, 5]]
    assert torch.equal(batch["x"], data.columns["x"][[5, 2, 5]])
    assert torch.equal(batch["labels"], data.columns["labels"][[5, 2, 5]])
    assert len(data) == 24
    assert isinstance(data, Data)


def test_padding_is_cut_to_the_longest_example_of_the_batch() -> None:
    data = masked(2, 5, 3)
    batch = data[[0, 2]]
    assert batch["input_ids"].tolist() == [[1, 2, 0], [13, 14, 15]]
    assert batch["attention_mask"].shape == (2, 3)
    assert batch["labels"].tolist() == [0, 2]
    assert data[[1]]["input_ids"].shape == (1, 5)


def test_left_padding_is_never_cut() -> None:
    mask = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
    data = TensorData({"attention_mask": mask, "labels": torch.arange(2)})
    assert torch.equal(data[[0]]["attention_mask"], mask[:1])


def test_batches_cover_all_rows_once_longest_first() -> None:
    data = masked(2, 5, 3, 6, 1)
    assert batches_in_order(data, 2) == [[3, 1], [2, 0], [4]]
    assert batches_in_order(data, 2, [4, 2, 0]) == [[2, 0], [4]]
    assert batches_in_order(TensorData(toy_columns(5)), 2) == [[0, 1], [2, 3], [4]]


def test_a_fingerprint_is_of_the_examples_not_of_their_container() -> None:
    columns = toy_columns(1500)  # more than are read at once
    data = TensorData(columns)
    table = Dataset.from_dict({name: column.tolist() for name, column in columns.items()})
    assert fingerprint(table.with_format("torch")) == fingerprint(data)
    assert fingerprint(TensorData(dict(reversed(columns.items())))) == fingerprint(data)


def test_padding_belongs_to_the_fingerprint() -> None:
    one, other = masked(2, 3), masked(2, 3)
    other.columns["input_ids"][0, 5] = 9  # where every batch would be cut
    assert fingerprint(one) != fingerprint(other)


@pytest.mark.parametrize("change", ["value", "order", "type", "shape", "name", "row"])
def test_whatever_changes_in_the_data_changes_the_fingerprint(change: str) -> None:
    columns = toy_columns(1500)
    before = fingerprint(TensorData(columns))
    if change == "value":
        columns["x"][1499, 5] += 1e-6
    elif change == "order":
        columns = {name: column.flip(0) for name, column in columns.items()}
    elif change == "type":
        columns["labels"] = columns["labels"].view(torch.float64)  # the same bytes
    elif change == "shape":
        columns["x"] = columns["x"].view(-1, 2, 3)
    elif change == "name":
        columns["y"] = columns.pop("x")
    else:
        columns = {name: column[:-1] for name, column in columns.items()}
    assert fingerprint(TensorData(columns)) != before


def test_data_without_tensors_are_refused_by_column() -> None:
    table = Dataset.from_dict({"words": ["a", "b"], "labels": [0, 1]})
    with pytest.raises(TypeError, match=r"column 'words' must hold tensors.*got list; use with_f"):
        fingerprint(table)


def test_unpadded_batches_have_no_mask_and_cover_all_rows_once() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 1, 0]])
    data = TensorData({"attention_mask": mask, "x": torch.arange(16).reshape(4, 4)})
    batches = list(unpadded_batches(data, [0, 1, 2, 3], 2))
    assert [batch["x"].tolist() for batch in batches] == [
        [[0, 1], [8, 9]],
        [[12, 13, 14]],  # padded on the left: keeps its mask
        [[4, 5, 6, 7]],
    ]
    assert ["attention_mask" in batch for batch in batches] == [False, True, False]
    plain = TensorData({"x": torch.arange(3)})
    assert [b["x"].tolist() for b in unpadded_batches(plain, [2, 0, 1], 2)] == [[2, 0], [1]]
