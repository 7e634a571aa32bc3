"""The sentiment study's data from the real archive, which the first run downloads."""

from __future__ import annotations

import pytest

from studies.fetch import default_cache
from studies.sentiment import data


def test_sizes_and_classes() -> None:
    tasks = data.load_tasks(default_cache())
    assert list(tasks) == ["tweets", "amazon", "movies", "news"]
    for parts in tasks.values():
        sizes = [len(parts[part]) for part in ("train", "validation", "test")]
        assert sizes == pytest.approx([1500, 400, 500], abs=25)
        for rows in parts.values():
            assert rows.column_names == ["text", "label"]
            assert 0.3 < sum(rows["label"]) / len(rows) < 0.75
        texts = [text for rows in parts.values() for text in rows["text"]]
        assert len(texts) == len(set(texts))


def test_no_review_is_in_two_splits() -> None:
    for task in ("amazon", "news"):
        source_of = {text: source for source, text, _ in data._sentences(task, default_cache())}
        parts = data.load_tasks(default_cache())[task].values()
        sources = [{source_of[text] for text in rows["text"]} for rows in parts]
        assert sum(map(len, sources)) == len(set.union(*sources)) > 100


def test_too_few_examples_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'tweets' has \d+ examples, too few"):
        data.load_tasks(default_cache(), train=5000)
