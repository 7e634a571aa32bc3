"""The groups study's data from the real archive, which the first run downloads."""

from __future__ import annotations

import torch

from studies.fetch import default_cache
from studies.groups import data
from studies.groups.optimize import own_accuracy
from studies.text.data import NEWSGROUPS


def test_the_target_shares_each_of_its_groups() -> None:
    others = [set(names) for task, names in data.GROUPS.items() if task != data.TARGET]
    assert all(any(name in names for names in others) for name in data.GROUPS[data.TARGET])
    assert set().union(*others) == set(NEWSGROUPS)


def test_sizes_and_labels_and_no_text_is_in_two_splits_or_two_tasks() -> None:
    tasks = data.load_tasks(default_cache())
    assert list(tasks) == list(data.GROUPS) == list(data.SIZES)
    for task, parts in tasks.items():
        assert len(parts["train"]) == data.SIZES[task]
        assert len(parts["validation"]) == 300
        assert 250 < len(parts["test"]) <= 400
        for rows in parts.values():
            assert {NEWSGROUPS[label] for label in rows["label"]} == set(data.GROUPS[task])
    texts = [text for parts in tasks.values() for rows in parts.values() for text in rows["text"]]
    assert len(texts) == len(set(texts))


def test_a_task_s_readers_choose_among_its_own_newsgroups() -> None:
    outputs = torch.tensor([[9.0, 1.0, 0.0, 2.0], [9.0, 0.0, 5.0, 3.0], [9.0, 4.0, 0.0, 0.0]])
    labels = torch.tensor([3, 3, 1])
    assert own_accuracy([1, 3])(outputs, labels).value == 1
    assert own_accuracy([1, 2, 3])(outputs, labels).value == 2 / 3
    assert own_accuracy([0, 1, 2, 3])(outputs, labels).value == 0
