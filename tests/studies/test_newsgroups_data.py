"""The newsgroups study's data from the real archive, which the first run downloads."""

from __future__ import annotations

from studies.fetch import default_cache
from studies.newsgroups import data
from studies.text.data import NEWSGROUPS


def test_sizes_and_classes() -> None:
    tasks = data.load_tasks(default_cache())
    assert list(tasks) == list(data.GROUPS)
    assert sorted(sum(data.GROUPS.values(), ())) == list(range(len(NEWSGROUPS)))
    for task, parts in tasks.items():
        assert [len(parts[part]) for part in ("train", "validation", "test")] == [1500, 400, 500]
        for rows in parts.values():
            assert rows.column_names == ["text", "label"]
            assert set(rows["label"]) == set(data.GROUPS[task])
            assert rows.features["label"].names == list(NEWSGROUPS)


def test_no_text_is_in_two_splits_or_two_tasks() -> None:
    tasks = data.load_tasks(default_cache())
    texts = [text for parts in tasks.values() for rows in parts.values() for text in rows["text"]]
    assert len(texts) == len(set(texts))
